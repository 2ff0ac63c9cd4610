//! One service in virtual time: understands the event words of scenario files and feeds the machine with them.

use super::{BadScenario, Printer, bad, check_keys, millis, text};
use crate::{
    analysis::{OnError, RunPhase},
    model::{Span, Timestamp, VersionName, Weight},
    rollout::{AnalysisKind, Event, Plan, Refused, RouteKind, RunId, State, Step, Strategy, transition},
};
use serde_json::{Map, Value};
use std::time::Duration;

/// How long a pool is down before an event says that it was too long, where the plan has no deadline.
const DEADLINE: Span = Span::secs(600);

const WORDS: &str = "deploy, tick, promote, promote_full, abort, retry, undo, pause, resume, set_weight, set_steps, \
                     step_analysis, background_analysis, pre_analysis, post_analysis, evidence, client_errors, canary_pool_down, \
                     canary_pool_up, canary_pool_down_past_deadline, hard_failure, shared_fate, alarm_raised, \
                     alarm_cleared, restart";

const EVENT_KEYS: [&str; 21] = [
    "do",
    "t",
    "version",
    "phase",
    "steps",
    "weight",
    "full",
    "reason",
    "message",
    "to",
    "skipAnalysis",
    "onError",
    "action",
    "downtime",
    "note",
    "expect",
    "revision",
    "to_revision",
    "toRevision",
    "metric",
    "value",
];

/// A service under rehearsal.
pub(super) struct Player {
    pub(super) state: State,
    pub(super) plan: Plan,
    t: Timestamp,
    pool_down: bool,
}

/// What an event did.
pub(super) struct Played {
    line: String,
    refused: bool,
}

impl Player {
    /// A service whose stable version serves everything.
    pub(super) fn new(plan: Plan, stable: &VersionName) -> Player {
        let mut player = Player {
            state: State::default(),
            plan,
            t: Timestamp::from_secs(0),
            pool_down: false,
        };
        // The first version is stable at once and never refused.
        let _ = player.apply(&Event::Deploy {
            version: stable.clone(),
        });
        player
    }

    fn apply(&mut self, event: &Event) -> Result<(), Refused> {
        let (state, _) = transition(&self.state, event, &self.plan, self.t)?;
        self.state = state;
        Ok(())
    }

    /// Facts that follow by themselves: endpoints are healthy unless an event said otherwise, and time has its effect.
    fn settle(&mut self) {
        if !self.pool_down {
            let _ = self.apply(&Event::EndpointsReady);
        }
        let _ = self.apply(&Event::Tick);
    }

    /// Plays one event as a scenario file writes it.
    pub(super) fn play(&mut self, event: &Map<String, Value>) -> Result<Played, BadScenario> {
        check_keys(event, "event", &EVENT_KEYS)?;
        if let Some(t) = event.get("t") {
            self.t = Timestamp::from_millis(millis(t, "t")?);
        }
        let Some(word) = text(event, "do").map(normal) else {
            return bad(format_args!("an event needs `do` (one of {WORDS})"));
        };
        let word = word.as_str();
        let refused = match self.facts(word, event)? {
            Some(()) => None,
            None => match self.understood(word, event)? {
                Ok(event) => self.apply(&event).err().map(|refused| refused.reason),
                Err(reason) => Some(reason),
            },
        };
        self.settle();
        let seconds = Duration::from_millis(self.t.as_millis()).as_secs_f64();
        let refusal = refused
            .as_ref()
            .map_or(String::new(), |reason| format!(" refused ({reason})"));
        Ok(Played {
            line: format!("t={seconds} {}{refusal} -> {}", said(word, event), self.shown()),
            refused: refused.is_some(),
        })
    }

    /// Words that are not one event of the machine: they are played here.
    fn facts(&mut self, word: &str, event: &Map<String, Value>) -> Result<Option<()>, BadScenario> {
        match word {
            "canary_pool_down" | "canary_pool_unhealthy" | "endpoints_lost" => {
                self.pool_down = true;
                let _ = self.apply(&Event::EndpointsLost);
            }
            "canary_pool_up" | "canary_pool_healthy" | "endpoints_ready" => {
                self.pool_down = false;
                let _ = self.apply(&Event::EndpointsReady);
            }
            "canary_pool_down_past_deadline" => {
                self.pool_down = true;
                let _ = self.apply(&Event::EndpointsLost);
                let deadline = *self.plan.progress_deadline.get_or_insert(DEADLINE);
                let before = self.t;
                self.t = before.plus(deadline.as_duration() + Duration::from_secs(1));
                let _ = self.apply(&Event::Tick);
                self.t = before;
            }
            "restart" => {
                let downtime = event
                    .get("downtime")
                    .map_or(Ok(0), |downtime| millis(downtime, "downtime"))?;
                self.t = self.t.plus(Duration::from_millis(downtime));
                let _ = self.apply(&Event::Restarted {
                    downtime: Span::millis(downtime),
                });
            }
            _ => return Ok(None),
        }
        Ok(Some(()))
    }

    /// The machine's event for a word; the inner error is why there is none just now.
    fn understood(
        &mut self,
        word: &str,
        event: &Map<String, Value>,
    ) -> Result<Result<Event, String>, BadScenario> {
        let message = || {
            text(event, "message")
                .unwrap_or("as the scenario says")
                .to_owned()
        };
        let version = |key: &str| match text(event, key) {
            None => Ok(None),
            Some(version) => VersionName::new(version).map(Some).or_else(bad),
        };
        let truth = |key: &str| event.get(key) == Some(&Value::Bool(true));
        Ok(Ok(match word {
            "deploy" | "set_image" | "redeploy" => {
                let Some(version) = version("version")? else {
                    return bad("deploy needs `version`");
                };
                self.pool_down = false;
                Event::Deploy { version }
            }
            "tick" | "wait" => Event::Tick,
            "promote" => Event::Promote {
                full: truth("full"),
                skip_analysis: true,
            },
            "promote_full" | "full_promote" => Event::Promote {
                full: true,
                skip_analysis: true,
            },
            "abort" => Event::Abort {
                reason: text(event, "reason").map(str::to_owned),
            },
            "retry" => {
                self.pool_down = false;
                Event::Retry
            }
            "undo" | "rollback" => {
                let named = version("to")?.or(version("version")?);
                let number = ["revision", "to_revision", "toRevision"]
                    .iter()
                    .find_map(|key| event.get(*key));
                let number = number
                    .and_then(Value::as_u64)
                    .and_then(|number| usize::try_from(number).ok());
                // Revision 1 is the first version ever deployed; 0 is the previous one, as in Argo.
                let numbered = number.and_then(|number| self.state.seen.get(number.checked_sub(1)?).cloned());
                return Ok(Ok(self.undo(named.or(numbered))));
            }
            "pause" => Event::Pause,
            "resume" | "unpause" => Event::Resume,
            "set_weight" | "setweight" => match event.get("weight") {
                Some(weight) => Event::SetWeight {
                    weight: percent(weight)?,
                },
                None => return bad("set_weight needs `weight`"),
            },
            "set_steps" | "setsteps" | "edit_steps" => {
                let (Some(steps), Strategy::Canary(canary)) = (event.get("steps"), &mut self.plan.strategy)
                else {
                    return bad("set_steps needs `steps`, and a canary");
                };
                canary.steps = steps_of(steps)?;
                Event::SetSteps
            }
            "step_analysis" | "inline_analysis" | "experiment" => {
                return self.verdict(event, &[AnalysisKind::Inline, AnalysisKind::Experiment]);
            }
            "background_analysis" => return self.verdict(event, &[AnalysisKind::Background]),
            "pre_analysis" | "pre_promotion_analysis" => {
                return self.verdict(event, &[AnalysisKind::PrePromotion]);
            }
            "post_analysis" | "post_promotion_analysis" => {
                return self.verdict(event, &[AnalysisKind::PostPromotion]);
            }
            "evidence" => match self.run(&[AnalysisKind::Background]) {
                Some(run) => match self.state.rolling() {
                    Some(rolling) if rolling.waits_for_evidence() => Event::EvidenceSuffices {
                        run,
                        step: rolling.step,
                        message: message(),
                    },
                    Some(_) | None => Event::EvidenceGathered { run },
                },
                None => return Ok(Err("no background analysis is running".to_owned())),
            },
            "client_errors" => match self.run(&[AnalysisKind::Background, AnalysisKind::Inline]) {
                Some(run) => Event::ClientErrors {
                    run,
                    message: message(),
                },
                None => return Ok(Err("no analysis is running".to_owned())),
            },
            "hard_failure" => Event::HardFailure {
                action: on_error(event, "action")?,
                message: message(),
            },
            "shared_fate" => Event::SharedFate { message: message() },
            "alarm_raised" => Event::AlarmRaised { message: message() },
            "alarm_cleared" => Event::AlarmCleared { message: message() },
            _ => return bad(format_args!("unknown event `{word}` (allowed: {WORDS})")),
        }))
    }

    /// Undo to a version that is not warm any more is a normal rollout to it.
    fn undo(&mut self, to: Option<VersionName>) -> Event {
        let event = Event::Undo { to, warm: true };
        let Strategy::BlueGreen(blue_green) = &self.plan.strategy else {
            return event;
        };
        let Ok((after, _)) = transition(&self.state, &event, &self.plan, self.t) else {
            return event;
        };
        let delay = blue_green.scale_down_delay.as_duration();
        let target = after
            .stable
            .filter(|target| Some(target) != self.state.stable.as_ref());
        let cold = target.filter(|target| {
            let former = self.state.formers.iter().find(|former| former.version == *target);
            former.is_none_or(|former| self.t.since(former.retired) > delay)
        });
        cold.map_or(event, |version| Event::Deploy { version })
    }

    fn run(&self, kinds: &[AnalysisKind]) -> Option<RunId> {
        let runs = self.state.runs();
        runs.into_iter()
            .find(|(_, kind)| kinds.contains(kind))
            .map(|(run, _)| run)
    }

    fn verdict(
        &self,
        event: &Map<String, Value>,
        kinds: &[AnalysisKind],
    ) -> Result<Result<Event, String>, BadScenario> {
        let phase = match text(event, "phase") {
            Some("Successful") => RunPhase::Successful,
            Some("Failed") => RunPhase::Failed,
            Some("Error") => RunPhase::Error,
            Some("Inconclusive") => RunPhase::Inconclusive,
            Some("Running") => RunPhase::Running,
            Some("Pending") => RunPhase::Pending,
            Some(other) => {
                return bad(format_args!(
                    "unknown phase `{other}` (allowed: Successful, Failed, Error, Inconclusive, Running, Pending)"
                ));
            }
            None => return bad("an analysis event needs `phase`"),
        };
        if !phase.is_completed() {
            return Ok(Ok(Event::Tick));
        }
        let Some(run) = self.run(kinds) else {
            return Ok(Err("no such analysis is running".to_owned()));
        };
        Ok(Ok(Event::AnalysisFinished {
            run,
            phase,
            on_error: on_error(event, "onError")?,
            message: text(event, "message").unwrap_or_default().to_owned(),
        }))
    }

    /// Everything there is to see, in one line.
    fn shown(&self) -> String {
        let (step, steps) = self.state.step(&self.plan);
        let traffic: Vec<String> = self
            .state
            .traffic()
            .into_iter()
            .map(|(version, weight)| format!("{version} {weight}"))
            .collect();
        let stable = self.state.stable.as_ref().map_or("-", VersionName::as_str);
        let step = if steps == 0 {
            String::new()
        } else {
            format!(" {step}/{steps}")
        };
        let message = self.state.message(&self.plan);
        let message = if message.is_empty() {
            message
        } else {
            format!(": {message}")
        };
        format!(
            "{}{step} [{}] stable {stable}{message}",
            self.state.phase(),
            traffic.join(", ")
        )
    }

    /// Compares what is seen with what a scenario expects; each difference is a line.
    pub(super) fn differences(
        &self,
        played: Option<&Played>,
        expect: &Map<String, Value>,
    ) -> Result<Vec<String>, BadScenario> {
        let mut differences = Vec::new();
        for (key, expected) in expect {
            let found = self.seen(key, expected, played)?;
            let holds = match (key.as_str(), expected, &found) {
                ("message", Value::String(part), Value::String(all)) => {
                    all.to_lowercase().contains(&part.to_lowercase())
                }
                (_, Value::Number(expected), Value::Number(found)) => {
                    match (expected.as_f64(), found.as_f64()) {
                        (Some(expected), Some(found)) => (expected - found).abs() < 1e-6,
                        (_, _) => expected == found,
                    }
                }
                ("traffic", Value::Object(expected), Value::Object(found)) => same_traffic(expected, found),
                (_, expected, found) => expected == found,
            };
            if !holds {
                differences.push(format!("{key}: expected {expected}, but it is {found}"));
            }
        }
        Ok(differences)
    }

    fn seen(&self, key: &str, expected: &Value, played: Option<&Played>) -> Result<Value, BadScenario> {
        let name =
            |version: Option<&VersionName>| version.map_or(Value::Null, |version| version.as_str().into());
        let (step, steps) = self.state.step(&self.plan);
        Ok(match key {
            "traffic" => self
                .state
                .traffic()
                .into_iter()
                .map(|(version, weight)| (version.to_string(), weight.as_percent().into()))
                .collect::<Map<String, Value>>()
                .into(),
            "stable" => name(self.state.stable.as_ref()),
            "canary" => name(self.state.canary()),
            "active" => name(self.state.active()),
            "preview" => name(self.state.preview()),
            "phase" => self.state.phase().as_str().into(),
            "step" if expected.is_number() => step.into(),
            "step" => format!("{step}/{steps}").into(),
            "weight" => self.state.weight().as_percent().into(),
            "message" | "reason" => self.state.message(&self.plan).into(),
            "refused" => played.is_some_and(|played| played.refused).into(),
            "managed_routes" => self
                .state
                .routes()
                .iter()
                .map(|route| {
                    let kind = match route.kind {
                        RouteKind::Header => "header",
                        RouteKind::Mirror(_) => "mirror",
                    };
                    (route.name.clone(), kind.into())
                })
                .collect::<Map<String, Value>>()
                .into(),
            _ => {
                return bad(format_args!(
                    "expect: unknown key `{key}` (allowed: traffic, stable, canary, active, preview, phase, step, weight, \
                     message, refused, managed_routes)"
                ));
            }
        })
    }

    /// Plays one event, prints its line, and says whether what it expects came out.
    pub(super) fn perform(
        &mut self,
        event: Option<&Map<String, Value>>,
        expect: Option<&Map<String, Value>>,
        printer: &mut Printer<'_>,
    ) -> Result<bool, BadScenario> {
        let played = event.map(|event| self.play(event)).transpose()?;
        if let Some(played) = &played {
            printer.line(format_args!("  {}", played.line));
        }
        let Some(expect) = expect else {
            return Ok(true);
        };
        let differences = self.differences(played.as_ref(), expect)?;
        for difference in &differences {
            printer.line(format_args!("    BROKEN {difference}"));
        }
        Ok(differences.is_empty())
    }
}

/// A version that is not named has no traffic.
fn same_traffic(expected: &Map<String, Value>, found: &Map<String, Value>) -> bool {
    let share =
        |map: &Map<String, Value>, version: &String| map.get(version).and_then(Value::as_f64).unwrap_or(0.0);
    let mut versions = expected.keys().chain(found.keys());
    versions.all(|version| (share(expected, version) - share(found, version)).abs() < 1e-6)
}

/// `promote --full`, `set-weight` and `set_weight` are written in many ways.
fn normal(word: &str) -> String {
    word.to_lowercase().replace(" --", "_").replace([' ', '-'], "_")
}

fn on_error(event: &Map<String, Value>, key: &str) -> Result<OnError, BadScenario> {
    match text(event, key) {
        None | Some("abort") => Ok(OnError::Abort),
        Some("pause") => Ok(OnError::Pause),
        Some(other) => bad(format_args!(
            "{key}: unknown value `{other}` (allowed: abort, pause)"
        )),
    }
}

fn said(word: &str, event: &Map<String, Value>) -> String {
    let details = event
        .iter()
        .filter(|(key, _)| !["do", "t", "expect", "note"].contains(&key.as_str()));
    let mut line = word.to_owned();
    for (_, value) in details {
        line.push(' ');
        match value {
            Value::String(text) => line.push_str(text),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                line.push_str(&value.to_string());
            }
        }
    }
    line
}

/// A weight as scenario files write it.
pub(super) fn percent(value: &Value) -> Result<Weight, BadScenario> {
    serde_json::from_value(value.clone()).or_else(bad)
}

/// Steps as scenario files write them: Argo's spelling, `duration_s` for a pause, and pod steps that do nothing here.
pub(super) fn steps_of(steps: &Value) -> Result<Vec<Step>, BadScenario> {
    let Value::Array(steps) = steps else {
        return bad("`steps` must be a list");
    };
    let read = |(index, step): (usize, &Value)| {
        step_of(step).or_else(|error| bad(format_args!("steps[{index}]: {error}")))
    };
    steps.iter().enumerate().map(read).collect()
}

fn step_of(step: &Value) -> Result<Step, BadScenario> {
    const STEPS: &str = "setWeight, pause, bake, analysis, experiment, setHeaderRoute, setMirrorRoute, setCanaryScale, replicaProgressThreshold";
    let (kind, body) = match step {
        Value::Object(map) if map.len() == 1 => match map.iter().next() {
            Some(entry) => entry,
            None => return bad(format_args!("a step has one key (allowed: {STEPS})")),
        },
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            return bad(format_args!(
                "a step is an object with one key (allowed: {STEPS})"
            ));
        }
    };
    let mut body = body.clone();
    match kind.as_str() {
        "setWeight" => return percent(&body).map(Step::SetWeight),
        "setCanaryScale" | "replicaProgressThreshold" => return Ok(Step::Skipped(kind.clone())),
        "pause" | "bake" | "analysis" | "experiment" | "setHeaderRoute" | "setMirrorRoute" => {}
        other => return bad(format_args!("unknown step `{other}` (allowed: {STEPS})")),
    }
    match &mut body {
        Value::Null => body = Value::Object(Map::new()),
        Value::Object(map) => {
            if let Some(seconds) = map.remove("duration_s") {
                let millis = millis(&seconds, "duration_s")?;
                map.insert("duration".to_owned(), Span::millis(millis).to_string().into());
            }
            // Experiments name their analyses one level deeper; for the machine it is that they run.
            if kind == "experiment" {
                map.retain(|key, _| key == "duration");
            }
            if map.get("match") == Some(&Value::Null) {
                map.remove("match");
            }
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            return bad(format_args!("`{kind}` must be an object"));
        }
    }
    let whole = Map::from_iter([(kind.clone(), body)]);
    serde_json::from_value(Value::Object(whole)).or_else(bad)
}
