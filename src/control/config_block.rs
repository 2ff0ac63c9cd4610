//! What a configuration means to rollouts: at the start and at every reload.
//!
//! `stable` and `canary` of the file are initial values. The store keeps the block last acted upon and only a change of it
//! acts: a new `canary.version` is a deploy, changed endpoints of a live version apply at once. Who is stable is the
//! store's knowledge. So a restart or a reload with an unchanged file does nothing.

use super::{
    Caller, Change, Refusal, ReloadRefused, VersionState,
    commands::plan_for,
    engine::{By, Engine, Route},
    ledger::{Block, BlockVersion, DeployFact, Fact, Saved},
    managed::Managed,
    observe::KeptRun,
};
use crate::{
    config::{Config, Service, VersionBlock},
    model::{ServiceName, Span, VersionName},
    rollout::{Event, Stage},
};
use std::{collections::BTreeSet, sync::Arc};
use tracing::{info, warn};

/// What a block asks for, as facts and in words.
type Asked = (Vec<Fact>, Vec<String>);

fn block_of(service: &Service) -> Block {
    let of = |version: &Option<VersionBlock>| {
        version.as_ref().map(|version| BlockVersion {
            version: version.version.clone(),
            endpoints: version.endpoints.clone(),
        })
    };
    Block {
        stable: of(&service.stable),
        canary: of(&service.canary),
    }
}

impl Engine {
    /// The start: every service of the file, with what is known of it.
    pub(super) fn begin(&mut self, config: &Arc<Config>) -> Result<(), Refusal> {
        let downtime = Span::from(self.downtime);
        let mut restarted = Vec::new();
        for service in &config.services {
            let name = service.name.clone();
            let known = self.resting.contains_key(&name);
            self.adopt(service);
            if known {
                let rolling = self
                    .managed
                    .get(&name)
                    .is_some_and(|it| it.saved.state.rolling().is_some());
                if rolling {
                    let by_restart = Fact::Moved {
                        by: Event::Restarted { downtime },
                    };
                    restarted.push((name, vec![by_restart]));
                } else {
                    let now = self.now();
                    self.perform(&name, now);
                }
            }
        }
        let results = self.record_all(restarted, &By::default());
        results.into_iter().collect::<Result<(), Refusal>>()?;
        for (_, result) in self.act_on_blocks(config) {
            result?;
        }
        for service in &config.services {
            self.publish_status(&service.name);
        }
        self.downtime = std::time::Duration::ZERO;
        self.shared.set_ready(true);
        Ok(())
    }

    /// Takes a service into the engine's hands.
    fn adopt(&mut self, service: &Arc<Service>) {
        let name = &service.name;
        let live = self.services.ensure(name);
        live.set_hard_failure_attempts(service.hard_failure.attempts);
        let known = self.resting.remove(name);
        let is_new = known.is_none();
        let mut managed = Managed::new(live, Arc::clone(service), known.unwrap_or_default(), self.now());
        if is_new {
            // Of what the store has never heard of it keeps nothing: a thousand questions less at the first start.
            self.managed.insert(name.clone(), managed);
            return;
        }
        // Newest first; a run that cannot be read back is only not shown.
        for row in self
            .store
            .runs(name.as_str(), 20)
            .unwrap_or_default()
            .into_iter()
            .rev()
        {
            match serde_json::from_str::<KeptRun>(&row.json) {
                // One that is over may have been stored last while it went on: the process was killed before its end was.
                Ok(kept) if kept.run.phase.is_completed() || !managed.saved.runs.contains_key(&row.run) => {
                    managed.remember_run(kept.shown);
                }
                Ok(kept) => {
                    managed.kept_runs.insert(row.run, kept);
                }
                Err(_) => {}
            }
        }
        // Without it the judge begins anew.
        let judges = self.store.judges(name.as_str()).unwrap_or_default();
        managed.judging.restore(name, &judges);
        self.managed.insert(name.clone(), managed);
    }

    /// What speaks against a configuration.
    pub(super) fn refusals(&self, config: &Config) -> Result<(), ReloadRefused> {
        let mut reasons = Vec::new();
        for (name, managed) in &self.managed {
            let Stage::Rolling(rolling) = &managed.saved.state.stage else {
                continue;
            };
            if config.service(name.as_str()).is_none() {
                reasons.push(format!(
                    "service `{name}` is in use: {} is on trial; abort or promote it before the service is removed",
                    rolling.version
                ));
                continue;
            }
            for template in &managed.saved.templates {
                if !config.templates.contains_key(&template.name) {
                    reasons.push(format!(
                        "analysis template `{}` is in use by the rollout of {} on `{name}`; remove it when that has ended",
                        template.name, rolling.version
                    ));
                }
            }
        }
        if config.state.path != self.config.state.path {
            reasons.push("state.path cannot change while Serin runs; restart it".to_owned());
        }
        if reasons.is_empty() {
            Ok(())
        } else {
            Err(ReloadRefused { reasons })
        }
    }

    /// Takes a configuration: all of it, or nothing when something speaks against it.
    pub(super) fn configure(
        &mut self,
        config: &Arc<Config>,
        route: Route,
    ) -> Result<Vec<Change>, ReloadRefused> {
        self.settle_raises();
        self.refusals(config)?;
        let raises = config.services.iter().any(|service| self.would_act(service));
        if raises && let Some(why) = self.store_trouble() {
            return Err(ReloadRefused {
                reasons: vec![format!("it asks for a deploy, which cannot be stored now: {why}")],
            });
        }
        self.config = Arc::clone(config);
        self.notifier.configure(config);
        self.notifier.are_heard(config);
        let mut changes = Vec::new();
        let change = |service: &ServiceName, text: String| Change {
            service: service.clone(),
            text,
        };
        for service in &config.services {
            let name = &service.name;
            if let Some(managed) = self.managed.get_mut(name) {
                managed
                    .live
                    .set_hard_failure_attempts(service.hard_failure.attempts);
                managed.config = Arc::clone(service);
            } else {
                self.adopt(service);
                changes.push(change(name, "added".to_owned()));
            }
            let now = self.now();
            self.perform(name, now);
        }
        for (name, result) in self.act_on_blocks(config) {
            match result {
                Ok(said) => changes.extend(said.into_iter().map(|text| change(&name, text))),
                Err(refusal) => {
                    warn!(service = %name, "`{name}`: what the file asks for was not done: {refusal}");
                    changes.push(change(&name, format!("not done: {refusal}")));
                }
            }
        }
        for service in &config.services {
            self.publish_status(&service.name);
        }
        // A request that is routed to a service finds its versions: those that come are there before the routes, and
        // those that go are there until the routes have changed.
        (route.0)();
        let named: BTreeSet<&ServiceName> = config.services.iter().map(|service| &service.name).collect();
        let gone = self.managed.keys().filter(|name| !named.contains(name));
        let gone: Vec<ServiceName> = gone.cloned().collect();
        for name in gone {
            self.rest(&name);
            changes.push(Change {
                service: name,
                text: "removed; its state is kept for when it comes back".to_owned(),
            });
        }
        for change in &changes {
            info!(service = %change.service, "`{}`: {}", change.service, change.text);
        }
        Ok(changes)
    }

    fn would_act(&self, service: &Service) -> bool {
        let block = block_of(service);
        self.managed
            .get(&service.name)
            .is_none_or(|managed| managed.saved.block != block)
    }

    /// Lets go of a service; what is known of it stays in the store.
    fn rest(&mut self, name: &ServiceName) {
        let now = self.now();
        if let Some(mut managed) = self.managed.remove(name) {
            managed.stop_tasks();
            self.services.remove(name.as_str());
            for version in &managed.saved.versions {
                for role in crate::model::Role::ALL {
                    self.services.metrics().retire(name, role, &version.name, now);
                }
            }
            self.services.metrics().control.forget_service(name.as_str());
            self.resting.insert(name.clone(), managed.saved);
            self.shared.forget(name);
        }
    }

    /// Acts on what has changed in the file's blocks since they were last acted upon; says what was done in whose.
    fn act_on_blocks(&mut self, config: &Config) -> Vec<(ServiceName, Result<Vec<String>, Refusal>)> {
        let mut done = Vec::new();
        let mut asked = Vec::new();
        for service in &config.services {
            match self.facts_of_block(service) {
                Ok(None) => {}
                Ok(Some((facts, said))) => {
                    asked.push((service.name.clone(), facts));
                    done.push((service.name.clone(), Ok(said)));
                }
                Err(refusal) => done.push((service.name.clone(), Err(refusal))),
            }
        }
        let by = By {
            caller: Some(Caller::file()),
            ..By::default()
        };
        let recorded = self.record_all(asked, &by).into_iter();
        let could = done.iter_mut().filter(|(_, result)| result.is_ok());
        for ((_, result), recorded) in could.zip(recorded) {
            if let Err(refusal) = recorded {
                *result = Err(refusal);
            }
        }
        done
    }

    /// What a block asks for; nothing, when it is as it was.
    fn facts_of_block(&mut self, service: &Arc<Service>) -> Result<Option<Asked>, Refusal> {
        let (name, block) = (&service.name, block_of(service));
        let Some(managed) = self.managed.get(name) else {
            return Ok(None);
        };
        if managed.saved.block == block {
            return Ok(None);
        }
        let saved = managed.saved.clone();
        let mut facts = Vec::new();
        let mut said = Vec::new();
        if let Some(stable) = &block.stable {
            if saved.state.stable.is_none() {
                facts.push(self.file_deploy(service, stable)?);
                said.push(format!("{} is stable, as the file says", stable.version));
            } else if saved.block.stable.as_ref() != Some(stable) {
                move_endpoints(&saved, stable, &mut facts, &mut said);
            }
        }
        if let Some(canary) = &block.canary
            && saved.block.canary.as_ref() != Some(canary)
        {
            let asked = saved.block.canary.as_ref().map(|canary| &canary.version);
            let current = saved.state.desired() == Some(&canary.version);
            if asked == Some(&canary.version) || current {
                move_endpoints(&saved, canary, &mut facts, &mut said);
            } else if self.stateless {
                said.push(format!(
                    "{} is not deployed: Serin runs without its state",
                    canary.version
                ));
            } else {
                facts.push(self.file_deploy(service, canary)?);
                said.push(format!("{} is deployed, as the file says", canary.version));
            }
        }
        facts.push(Fact::Block { block });
        Ok(Some((facts, said)))
    }

    fn file_deploy(&mut self, service: &Service, version: &BlockVersion) -> Result<Fact, Refusal> {
        let (plan, templates) = plan_for(service, &self.config, None)?;
        Ok(Fact::Deploy(Box::new(DeployFact {
            rollout: self.fresh_id(),
            version: version.version.clone(),
            endpoints: version.endpoints.clone(),
            plan,
            templates,
            sequence: None,
            actor: Caller::file().actor,
        })))
    }
}

/// New endpoints of a version that is live.
fn move_endpoints(saved: &Saved, version: &BlockVersion, facts: &mut Vec<Fact>, said: &mut Vec<String>) {
    let Some(known) = saved.version(&version.version) else {
        return;
    };
    if known.state == VersionState::Gone || known.endpoints == version.endpoints {
        return;
    }
    facts.push(Fact::Endpoints {
        version: version.version.clone(),
        endpoints: version.endpoints.clone(),
        sequence: None,
    });
    said.push(format!("{} has new endpoints", version.version));
}

impl Managed {
    /// Where the running service differs from what the file says.
    pub(super) fn drift(&self) -> Vec<String> {
        let mut drift = Vec::new();
        let block = block_of(&self.config);
        let state = &self.saved.state;
        let shown = |version: Option<&VersionName>| version.map_or("none", VersionName::as_str).to_owned();
        if let Some(stable) = &block.stable
            && state.stable.as_ref() != Some(&stable.version)
        {
            let now = shown(state.stable.as_ref());
            drift.push(format!("stable is {now}, the file says {}", stable.version));
        }
        if let Some(canary) = &block.canary
            && state.desired() != Some(&canary.version)
        {
            let now = shown(state.desired());
            drift.push(format!(
                "{now} was asked for last, the file says {}",
                canary.version
            ));
        }
        for version in [&block.stable, &block.canary].into_iter().flatten() {
            if let Some(known) = self.saved.version(&version.version)
                && known.state == VersionState::Serving
                && known.endpoints != version.endpoints
            {
                drift.push(format!(
                    "{} has other endpoints than the file says",
                    version.version
                ));
            }
        }
        drift
    }
}
