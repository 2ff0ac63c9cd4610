//! What each command means: checked against the state, then recorded. A refused command leaves no trace but the audit.

use super::{
    Attempt, Caller, Refusal, RefusalKind, VersionState,
    command::{Accepted, Command, Deploy, EndpointChange, Expect, OnConflict},
    engine::{By, Engine, Recorded, UndoTarget, no_service},
    keeping::not_stored,
    ledger::{DeployFact, Fact},
    managed::Managed,
    raising::{Asker, overtaken},
    store::KeyRow,
};
use crate::{
    analysis::Template,
    config::{self, Problem, Service},
    model::{EndpointUrl, ServiceName, VersionName},
    rollout::{Event, Plan, Stage, Step, Strategy},
};
use std::sync::Arc;
use tokio::sync::oneshot;

/// What a command comes to: facts to record, and whether a new rollout begins.
pub(super) struct Decision {
    pub(super) facts: Vec<Fact>,
    created: bool,
}

/// What has become of a command.
enum Done {
    Now(Accepted),
    /// It is done when it is stored.
    OnItsWay {
        name: ServiceName,
        /// Whether a new rollout begins.
        created: bool,
    },
}

/// Who is answered.
type Reply = oneshot::Sender<Result<Accepted, Refusal>>;

impl Decision {
    fn of(event: Event) -> Decision {
        Decision {
            facts: vec![Fact::Moved { by: event }],
            created: false,
        }
    }
}

impl Engine {
    /// Does a command, and keeps the attempt whatever comes of it. Nothing, when what is asked for has to be stored first: then
    /// it is answered afterwards.
    pub(super) fn command(
        &mut self,
        service: &str,
        command: Command,
        expect: &Expect,
        caller: Caller,
        warm: bool,
        reply: Reply,
    ) -> Option<(Result<Accepted, Refusal>, Reply)> {
        let verb = command.verb().to_owned();
        let before = self.standing(service);
        let result = self.decide_and_record(service, command, expect, &caller, warm);
        let mut attempt = Attempt {
            at: self.now(),
            service: service.to_owned(),
            verb,
            caller,
            refused: None,
            before,
            after: String::new(),
        };
        let result = match result {
            Ok(Done::Now(accepted)) => Ok(accepted),
            Ok(Done::OnItsWay { name, created }) => {
                let asker = Asker {
                    attempt,
                    created,
                    reply,
                };
                self.raise_is_for(&name, asker);
                return None;
            }
            Err(refusal) => Err(refusal),
        };
        attempt.refused = result.as_ref().err().map(|refusal| refusal.code.clone());
        attempt.after = self.standing(service);
        self.audit(&attempt);
        Some((result, reply))
    }

    fn decide_and_record(
        &mut self,
        service: &str,
        command: Command,
        expect: &Expect,
        caller: &Caller,
        warm: bool,
    ) -> Result<Done, Refusal> {
        let name = ServiceName::new(service).map_err(|_| no_service(service))?;
        if !self.managed.contains_key(&name) {
            return Err(no_service(service));
        }
        if self.stateless {
            return Err(Refusal::new(
                RefusalKind::Unavailable,
                "stateless",
                "Serin runs without its state and serves stable only",
            )
            .hint("start it without --stateless"));
        }
        let last = self.undo_leads_to(&name, &command);
        if let Some(done) = self.check_and_record(&name, command.clone(), expect, caller, warm)? {
            return Ok(done);
        }
        // A step that was stored already has come into force before it: all of it is looked at again.
        let still_warm = warm && self.undo_leads_to(&name, &command) == last;
        match self.check_and_record(&name, command, expect, caller, still_warm) {
            Ok(Some(done)) => Ok(done),
            Ok(None) => Err(not_stored("something else is being stored")),
            Err(_) if still_warm != warm => Err(overtaken(
                "another version has become stable meanwhile, and nobody has probed the one before it",
            )),
            Err(refusal) => Err(refusal),
        }
    }

    /// The version that was probed for an `undo`.
    fn undo_leads_to(&self, name: &ServiceName, command: &Command) -> Option<VersionName> {
        let Command::Undo { to } = command else {
            return None;
        };
        let former = || {
            let formers = &self.managed.get(name)?.saved.state.formers;
            formers.last().map(|former| former.version.clone())
        };
        to.clone().or_else(former)
    }

    /// Does a command if it may be done as things stand. Nothing, when they have changed meanwhile.
    fn check_and_record(
        &mut self,
        name: &ServiceName,
        command: Command,
        expect: &Expect,
        caller: &Caller,
        warm: bool,
    ) -> Result<Option<Done>, Refusal> {
        let asked = format!("{command:?}");
        if let Some(created) = self.recalled(name, &asked, caller)? {
            return self.accepted(name, created, true).map(Done::Now).map(Some);
        }
        let managed = self.managed.get(name).ok_or_else(|| no_service(name.as_str()))?;
        managed.check(expect)?;
        let decision = self.decide(name, command, caller, warm)?;
        if !decision.facts.is_empty() {
            let key = caller.idempotency_key.as_ref().map(|key| KeyRow {
                key: key.clone(),
                asked,
                answer: decision.created.to_string(),
            });
            let by = By {
                caller: Some(caller.clone()),
                numbers: None,
                key,
            };
            match self.record(name, decision.facts, by)? {
                Recorded::InForce => {}
                Recorded::OnItsWay => {
                    let (name, created) = (name.clone(), decision.created);
                    return Ok(Some(Done::OnItsWay { name, created }));
                }
                Recorded::NotYet => return Ok(None),
            }
        }
        let accepted = self.accepted(name, decision.created, false)?;
        Ok(Some(Done::Now(accepted)))
    }

    /// What was answered to this key before.
    fn recalled(&self, name: &ServiceName, asked: &str, caller: &Caller) -> Result<Option<bool>, Refusal> {
        let Some(key) = &caller.idempotency_key else {
            return Ok(None);
        };
        match self.keys.recall(name, key, self.now()) {
            None => Ok(None),
            Some(row) if row.asked == asked => Ok(Some(row.answer == "true")),
            Some(_) => Err(Refusal::new(
                RefusalKind::Invalid,
                "idempotencyKeyReused",
                format!("the idempotency key `{key}` was used for something else"),
            )
            .hint("use a new key for each request")),
        }
    }

    pub(super) fn accepted(
        &self,
        name: &ServiceName,
        created: bool,
        repeated: bool,
    ) -> Result<Accepted, Refusal> {
        let managed = self.managed.get(name).ok_or_else(|| no_service(name.as_str()))?;
        Ok(Accepted {
            created,
            repeated,
            status: Box::new(self.status_of(managed)),
        })
    }

    /// Phase, step and weight, for the audit.
    pub(super) fn standing(&self, service: &str) -> String {
        let Some(managed) = self.managed.get(service) else {
            return String::new();
        };
        let state = &managed.saved.state;
        let (step, of) = state.step(&managed.saved.plan);
        format!("{} step {step}/{of} at {}", state.phase(), state.weight())
    }

    pub(super) fn decide(
        &mut self,
        name: &ServiceName,
        command: Command,
        caller: &Caller,
        warm: bool,
    ) -> Result<Decision, Refusal> {
        match command {
            Command::Deploy(deploy) => self.decide_deploy(name, deploy, caller),
            Command::SetEndpoints { version, change } => self.decide_endpoints(name, &version, change),
            Command::Promote { full, skip_analysis } => {
                Ok(Decision::of(Event::Promote { full, skip_analysis }))
            }
            Command::Abort => Ok(Decision::of(Event::Abort {
                reason: caller.reason.clone(),
            })),
            Command::Retry => self.decide_retry(name),
            Command::Undo { to } => Ok(Decision::of(Event::Undo { to, warm })),
            Command::Pause => Ok(Decision::of(Event::Pause)),
            Command::Resume => Ok(Decision::of(Event::Resume)),
            Command::SetWeight { weight } => Ok(Decision::of(Event::SetWeight { weight })),
        }
    }

    fn decide_deploy(
        &mut self,
        name: &ServiceName,
        deploy: Deploy,
        caller: &Caller,
    ) -> Result<Decision, Refusal> {
        let rollout = self.fresh_id();
        let config = Arc::clone(&self.config);
        let managed = self.managed.get(name).ok_or_else(|| no_service(name.as_str()))?;
        managed.check_sequence(&deploy)?;
        managed.allow(&config, &deploy.version, &deploy.endpoints)?;
        let own_steps = deploy.steps.is_some();
        let (plan, templates) = plan_for(&managed.config, &config, deploy.steps.clone())?;
        let legal = managed.saved.state.legal_verbs(&managed.saved.plan);
        let version = deploy.version.clone();
        let again = managed.deployed_again(&deploy);
        let fact = Box::new(DeployFact {
            rollout,
            version: deploy.version,
            endpoints: deploy.endpoints,
            plan,
            templates,
            sequence: deploy.sequence,
            actor: caller.actor.clone(),
        });
        match &managed.saved.state.stage {
            Stage::Rolling(rolling) if rolling.version == version => {
                let same = !own_steps || fact.plan == managed.saved.plan;
                match (deploy.replace, same) {
                    (true, _) => Ok(Decision {
                        facts: vec![Fact::Replace(fact)],
                        created: false,
                    }),
                    (false, true) => Ok(Decision {
                        facts: again,
                        created: false,
                    }),
                    (false, false) => Err(Refusal::new(
                        RefusalKind::Conflict,
                        "planChanged",
                        format!("{version} is on trial already, with other steps"),
                    )
                    .hint("deploy --replace starts it again at step 0 with the new steps")
                    .legal(legal)),
                }
            }
            Stage::Aborted(aborted) if aborted.version == version => Err(Refusal::new(
                RefusalKind::Conflict,
                "versionAborted",
                format!("{version} was aborted: {}", aborted.message),
            )
            .hint("retry")
            .legal(legal)),
            Stage::Healthy if managed.saved.state.stable.as_ref() == Some(&version) => Ok(Decision {
                facts: again,
                created: false,
            }),
            Stage::Rolling(rolling) if deploy.on_conflict == OnConflict::Refuse => Err(Refusal::new(
                RefusalKind::Conflict,
                "rolloutInProgress",
                format!("the rollout of {} is still going on", rolling.version),
            )
            .hint("wait for it, or deploy with onConflict: supersede")
            .legal(legal)),
            Stage::Empty | Stage::Healthy | Stage::Rolling(_) | Stage::Aborted(_) => {
                managed.has_endpoints(&version, &fact.endpoints)?;
                Ok(Decision {
                    facts: vec![Fact::Deploy(fact)],
                    created: true,
                })
            }
        }
    }

    fn decide_endpoints(
        &self,
        name: &ServiceName,
        version: &VersionName,
        change: EndpointChange,
    ) -> Result<Decision, Refusal> {
        let managed = self.managed.get(name).ok_or_else(|| no_service(name.as_str()))?;
        let Some(known) = managed.saved.version(version) else {
            return Err(Refusal::new(
                RefusalKind::NotFound,
                "noVersion",
                format!("`{name}` has no version {version}"),
            )
            .hint("deploy it with its endpoints"));
        };
        let mut set = known.endpoints.clone();
        match change {
            EndpointChange::Set(urls) => {
                managed.allow(&self.config, version, &urls)?;
                set = urls;
            }
            EndpointChange::Add(urls) => {
                managed.allow(&self.config, version, &urls)?;
                let new = urls.into_iter().filter(|url| !known.endpoints.contains(url));
                set.extend(new);
            }
            EndpointChange::Drain(urls) => set.retain(|url| !urls.contains(url)),
        }
        let mut unique: Vec<EndpointUrl> = Vec::with_capacity(set.len());
        for url in set {
            if !unique.contains(&url) {
                unique.push(url);
            }
        }
        let state = &managed.saved.state;
        if unique.is_empty() && state.stable.as_ref() == Some(version) {
            return Err(Refusal::new(
                RefusalKind::Conflict,
                "lastEndpoints",
                format!("{version} is stable; without endpoints every request would fail"),
            )
            .hint("add the new endpoints first, or undo to another version"));
        }
        let mut facts = Vec::new();
        if unique != known.endpoints {
            if unique.is_empty() && state.canary() == Some(version) {
                facts.push(Fact::Moved {
                    by: Event::EndpointsLost,
                });
            }
            facts.push(Fact::Endpoints {
                version: version.clone(),
                endpoints: unique,
                sequence: None,
            });
        }
        Ok(Decision {
            facts,
            created: false,
        })
    }

    fn decide_retry(&self, name: &ServiceName) -> Result<Decision, Refusal> {
        let managed = self.managed.get(name).ok_or_else(|| no_service(name.as_str()))?;
        if let Stage::Aborted(aborted) = &managed.saved.state.stage {
            managed.has_endpoints(&aborted.version, &[])?;
        }
        Ok(Decision::of(Event::Retry))
    }

    /// Where an `undo` would lead, when that pool is warm.
    pub(super) fn undo_target(&self, service: &str, to: Option<&VersionName>) -> Option<UndoTarget> {
        let managed = self.managed.get(service)?;
        let state = &managed.saved.state;
        let target = match to {
            Some(to) => to,
            None => &state.formers.last()?.version,
        };
        let version = managed.saved.version(target)?;
        if version.state != VersionState::Warm || version.endpoints.is_empty() {
            return None;
        }
        let ready = &managed.config.ready;
        Some(UndoTarget {
            endpoints: managed.pools.get(target)?.endpoints().to_vec(),
            path: ready.http.clone(),
            min_healthy: usize::try_from(ready.min_healthy.max(1)).unwrap_or(usize::MAX),
        })
    }
}

impl Managed {
    /// Whether what the caller believes holds.
    fn check(&self, expect: &Expect) -> Result<(), Refusal> {
        let state = &self.saved.state;
        let legal = || state.legal_verbs(&self.saved.plan);
        let no = |code: &str, message: String| {
            Err(Refusal::new(RefusalKind::Precondition, code, message)
                .hint("get shows where it stands now")
                .legal(legal()))
        };
        if let Some(version) = &expect.version
            && state.desired() != Some(version)
        {
            let now = state.desired().map_or("none", VersionName::as_str);
            return no("otherVersion", format!("expected version {version}, it is {now}"));
        }
        if let Some(step) = expect.step {
            let (now, _) = state.step(&self.saved.plan);
            if step != now {
                return no("otherStep", format!("expected step {step}, it is at step {now}"));
            }
        }
        if let Some(generation) = expect.generation
            && generation != self.saved.facts
        {
            let now = self.saved.facts;
            return no(
                "otherGeneration",
                format!("expected generation {generation}, it is {now}"),
            );
        }
        Ok(())
    }

    fn check_sequence(&self, deploy: &Deploy) -> Result<(), Refusal> {
        match (deploy.sequence, self.saved.sequence) {
            (Some(this), Some(last)) if this < last => Err(Refusal::new(
                RefusalKind::Conflict,
                "superseded",
                format!("sequence {this} is older than {last}, which was deployed already"),
            )
            .hint("a newer pipeline run has taken over")),
            (_, _) => Ok(()),
        }
    }

    fn has_endpoints(&self, version: &VersionName, given: &[EndpointUrl]) -> Result<(), Refusal> {
        let known = self
            .saved
            .version(version)
            .is_some_and(|known| !known.endpoints.is_empty());
        if known || !given.is_empty() {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalKind::Invalid,
            "noEndpoints",
            format!("Serin does not know where {version} listens"),
        )
        .hint("deploy it with --endpoint URL"))
    }

    /// What a deploy of a version changes that is there already: where it listens, and the number that later ones must not be
    /// below.
    fn deployed_again(&self, deploy: &Deploy) -> Vec<Fact> {
        let known = self.saved.version(&deploy.version);
        let known = known.map_or(&[][..], |known| &known.endpoints);
        let moves = !deploy.endpoints.is_empty() && known != deploy.endpoints;
        if !moves && deploy.sequence <= self.saved.sequence {
            return Vec::new();
        }
        vec![Fact::Endpoints {
            version: deploy.version.clone(),
            endpoints: if moves {
                deploy.endpoints.clone()
            } else {
                known.to_vec()
            },
            sequence: deploy.sequence,
        }]
    }
}

/// The plan and templates of a deploy, as they are now.
pub(super) fn plan_for(
    service: &Service,
    config: &config::Config,
    steps: Option<Vec<Step>>,
) -> Result<(Plan, Vec<Template>), Refusal> {
    let Some(steps) = steps else {
        let templates = service.templates.iter().map(|template| (**template).clone());
        return Ok((service.plan.clone(), templates.collect()));
    };
    if !matches!(service.plan.strategy, Strategy::Canary(_)) {
        return Err(Refusal::new(
            RefusalKind::Invalid,
            "noSteps",
            "the service's strategy is not a canary, so a deploy cannot bring steps".to_owned(),
        ));
    }
    // By the words of the file, so that both are held to the same rules.
    let written = serde_json::to_value(&steps).unwrap_or_default();
    let (plan, templates) = config.plan_with_steps(service, &written).map_err(|problems| {
        let said = |problem: &Problem| format!("{}: {}", problem.key, problem.what);
        let hint = problems
            .first()
            .map(|problem| problem.hint.clone())
            .unwrap_or_default();
        let all: Vec<String> = problems.iter().map(said).collect();
        Refusal::new(RefusalKind::Invalid, "invalidSteps", all.join("; ")).hint(hint)
    })?;
    let templates = templates.iter().map(|template| (**template).clone());
    Ok((plan, templates.collect()))
}
