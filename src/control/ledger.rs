//! What is remembered of a service, and the one function that moves it by a stored fact. Pure.
//!
//! Facts are the truth: [`Saved`] is their fold, kept beside them only so that a start is fast. A fact is a rollout's event
//! or something around it that the pure machine does not know: endpoints, plans, the file's block, a version's afterlife.

use super::{RolloutStatus, VersionState};
use crate::{
    analysis::Template,
    model::{EndpointUrl, Timestamp, VersionName, Weight},
    rollout::{
        AnalysisKind, AnalysisRef, Effect, Event, Plan, Refused, RunId, Stage, State, Strategy, transition,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

/// How long a version that was stable stays warm: `undo` to it is instant.
const WARM: Duration = Duration::from_secs(600);
/// Versions that are gone and still listed.
const GONE_KEPT: usize = 5;

/// Everything a restart needs to know of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Saved {
    /// The rollout machine.
    pub(crate) state: State,
    /// The plan of the rollout, as it was at its deploy.
    pub(crate) plan: Plan,
    /// The templates it refers to, as they were at its deploy.
    pub(crate) templates: Vec<Template>,
    /// The rollout now going on, or the last one.
    pub(crate) rollout: Option<RolloutStatus>,
    /// Every version, in the order of their first deploy.
    pub(crate) versions: Vec<VersionRecord>,
    /// The analyses that should be running.
    pub(crate) runs: BTreeMap<u64, RunRecord>,
    /// `stable` and `canary` of the file, as they were last acted upon.
    pub(crate) block: Block,
    /// The highest number a pipeline has deployed with.
    pub(crate) sequence: Option<u64>,
    /// When the current pause began.
    pub(crate) paused: Option<Timestamp>,
    /// How many facts have been applied: the generation.
    pub(crate) facts: u64,
}

impl Default for Saved {
    fn default() -> Saved {
        Saved {
            state: State::default(),
            plan: Plan::of(Strategy::Immediate),
            templates: Vec::new(),
            rollout: None,
            versions: Vec::new(),
            runs: BTreeMap::new(),
            block: Block::default(),
            sequence: None,
            paused: None,
            facts: 0,
        }
    }
}

/// One version and its afterlife.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VersionRecord {
    pub(crate) name: VersionName,
    pub(crate) endpoints: Vec<EndpointUrl>,
    pub(crate) state: VersionState,
    pub(crate) since: Timestamp,
    pub(crate) until: Option<Timestamp>,
}

/// An analysis that should be running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RunRecord {
    pub(crate) kind: AnalysisKind,
    pub(crate) canary: VersionName,
    pub(crate) analysis: AnalysisRef,
}

/// `stable` and `canary` as the file says them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Block {
    pub(crate) stable: Option<BlockVersion>,
    pub(crate) canary: Option<BlockVersion>,
}

/// One version as the file says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BlockVersion {
    pub(crate) version: VersionName,
    pub(crate) endpoints: Vec<EndpointUrl>,
}

/// One thing that happened to a service, as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "fact")]
pub(crate) enum Fact {
    /// A version was asked for.
    Deploy(Box<DeployFact>),
    /// The version on trial starts again at step 0 with a new plan.
    Replace(Box<DeployFact>),
    /// The rollout machine was moved.
    Moved {
        /// By what.
        by: Event,
    },
    /// This is where a version listens from now on.
    Endpoints {
        /// Which version.
        version: VersionName,
        /// The whole set.
        endpoints: Vec<EndpointUrl>,
        /// The number of the pipeline run that deployed it again, if it was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sequence: Option<u64>,
    },
    /// The file's block was acted upon.
    Block {
        /// As it is now.
        block: Block,
    },
    /// A version that does not serve any more went one step further.
    Afterlife {
        /// Which version.
        version: VersionName,
        /// Draining, releasable or gone.
        state: VersionState,
    },
}

/// A deploy with everything it needs to be replayed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeployFact {
    pub(crate) rollout: String,
    pub(crate) version: VersionName,
    /// Empty: those already known.
    pub(crate) endpoints: Vec<EndpointUrl>,
    pub(crate) plan: Plan,
    pub(crate) templates: Vec<Template>,
    pub(crate) sequence: Option<u64>,
    pub(crate) actor: String,
}

impl Fact {
    /// The word for it in logs and in the history.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Fact::Deploy(_) => "deploy",
            Fact::Replace(_) => "set_steps",
            Fact::Moved { by } => by.name(),
            Fact::Endpoints { .. } => "endpoints",
            Fact::Block { .. } => "file",
            Fact::Afterlife { state, .. } => match state {
                VersionState::Serving => "serving",
                VersionState::Warm => "warm",
                VersionState::Draining => "draining",
                VersionState::Releasable => "releasable",
                VersionState::Gone => "gone",
            },
        }
    }
}

impl Fact {
    /// As it is shown to those who may only read: without its templates and the values of arguments, which may hold what a provider
    /// is sent as a secret.
    pub(crate) fn shown(&self) -> Value {
        let mut shown = serde_json::to_value(self).unwrap_or_default();
        if let Some(fields) = shown.as_object_mut() {
            fields.remove("templates");
            fields.values_mut().for_each(hide_arguments);
        }
        shown
    }
}

fn hide_arguments(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let args = fields.get_mut("args").and_then(Value::as_array_mut);
            for value in args.into_iter().flatten().filter_map(|arg| arg.get_mut("value")) {
                *value = Value::String("[redacted]".to_owned());
            }
            fields.values_mut().for_each(hide_arguments);
        }
        Value::Array(items) => items.iter_mut().for_each(hide_arguments),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Who serves how much: what is published to the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exposure {
    pub(crate) stable: Option<VersionName>,
    pub(crate) canary: Option<VersionName>,
    pub(crate) weight: Weight,
}

impl Exposure {
    /// Whether nothing is given to a version that `other` did not give it as well.
    pub(crate) fn is_within(&self, other: &Exposure) -> bool {
        let same_canary = self.weight.is_zero() || self.canary == other.canary;
        self.stable == other.stable && same_canary && self.weight <= other.weight
    }
}

impl Saved {
    /// Who serves how much.
    pub(crate) fn exposure(&self) -> Exposure {
        Exposure {
            stable: self.state.stable.clone(),
            canary: self.state.canary().cloned(),
            weight: self.state.weight(),
        }
    }

    /// What is known of a version.
    pub(crate) fn version(&self, name: &VersionName) -> Option<&VersionRecord> {
        self.versions.iter().find(|known| known.name == *name)
    }

    /// The state after `fact`, and what it asks to be told. Leaves `self` alone: nothing holds before it is stored.
    pub(crate) fn apply(&self, fact: &Fact, now: Timestamp) -> Result<(Saved, Vec<Effect>), Refused> {
        let mut next = self.clone();
        next.facts += 1;
        let effects = match fact {
            Fact::Deploy(deploy) => next.deploy(deploy, now)?,
            Fact::Replace(deploy) => next.replace(deploy, now)?,
            Fact::Moved { by } => next.step(by, now)?,
            Fact::Endpoints {
                version,
                endpoints,
                sequence,
            } => {
                next.set_endpoints(version, endpoints, now);
                next.deployed_again(version, *sequence);
                Vec::new()
            }
            Fact::Block { block } => {
                next.block = block.clone();
                Vec::new()
            }
            Fact::Afterlife { version, state } => {
                next.set_afterlife(version, *state, now);
                Vec::new()
            }
        };
        next.settle(now);
        Ok((next, effects))
    }

    fn deploy(&mut self, deploy: &DeployFact, now: Timestamp) -> Result<Vec<Effect>, Refused> {
        self.end_rollout(now);
        self.plan = deploy.plan.clone();
        self.templates.clone_from(&deploy.templates);
        self.sequence = self.sequence.max(deploy.sequence);
        if !deploy.endpoints.is_empty() || self.version(&deploy.version).is_none() {
            self.set_endpoints(&deploy.version, &deploy.endpoints, now);
        }
        self.rollout = Some(RolloutStatus {
            id: deploy.rollout.clone(),
            version: deploy.version.clone(),
            attempt: 1,
            started: now,
            ended: None,
            actor: deploy.actor.clone(),
            sequence: deploy.sequence,
            strategy: match deploy.plan.strategy {
                Strategy::Canary(_) => "canary",
                Strategy::BlueGreen(_) => "blueGreen",
                Strategy::Immediate => "immediate",
            }
            .to_owned(),
        });
        self.step(
            &Event::Deploy {
                version: deploy.version.clone(),
            },
            now,
        )
    }

    fn replace(&mut self, deploy: &DeployFact, now: Timestamp) -> Result<Vec<Effect>, Refused> {
        self.plan = deploy.plan.clone();
        self.templates.clone_from(&deploy.templates);
        self.deployed_again(&deploy.version, deploy.sequence);
        if !deploy.endpoints.is_empty() {
            self.set_endpoints(&deploy.version, &deploy.endpoints, now);
        }
        self.step(&Event::SetSteps, now)
    }

    /// Moves the machine, and keeps the list of analyses that should be running.
    fn step(&mut self, event: &Event, now: Timestamp) -> Result<Vec<Effect>, Refused> {
        if let Event::Restarted { downtime } = event {
            self.paused = self.paused.map(|since| since.plus(downtime.as_duration()));
        }
        let (state, effects) = transition(&self.state, event, &self.plan, now)?;
        self.state = state;
        for effect in &effects {
            match effect {
                Effect::StartAnalysis {
                    run,
                    kind,
                    canary,
                    analysis,
                } => {
                    let record = RunRecord {
                        kind: *kind,
                        canary: canary.clone(),
                        analysis: analysis.clone(),
                    };
                    self.runs.insert(run.0, record);
                }
                Effect::StopAnalysis { run } => {
                    self.runs.remove(&run.0);
                }
                Effect::MakeStable { .. }
                | Effect::SetWeight { .. }
                | Effect::SetPreview { .. }
                | Effect::SetRoutes { .. }
                | Effect::Retire { .. }
                | Effect::Notify(_) => {}
            }
        }
        Ok(effects)
    }

    /// Brings everything that follows from the machine's state up to date with it.
    fn settle(&mut self, now: Timestamp) {
        let wanted: Vec<RunId> = self.state.runs().into_iter().map(|(run, _)| run).collect();
        self.runs.retain(|run, _| wanted.contains(&RunId(*run)));
        let paused = self.state.pause_reason().is_some();
        self.paused = if paused { self.paused.or(Some(now)) } else { None };
        match &self.state.stage {
            Stage::Rolling(rolling) => {
                let attempt = rolling.attempt;
                if let Some(rollout) = &mut self.rollout {
                    rollout.attempt = attempt;
                    rollout.ended = None;
                }
            }
            Stage::Healthy | Stage::Aborted(_) | Stage::Empty => self.end_rollout(now),
        }
        self.settle_versions(now);
    }

    fn end_rollout(&mut self, now: Timestamp) {
        if let Some(rollout) = &mut self.rollout {
            rollout.ended.get_or_insert(now);
        }
    }

    fn settle_versions(&mut self, now: Timestamp) {
        let (stable, canary) = (self.state.stable.clone(), self.state.canary().cloned());
        let warm_for = match &self.plan.strategy {
            Strategy::BlueGreen(blue_green) => blue_green.scale_down_delay.as_duration(),
            Strategy::Canary(_) | Strategy::Immediate => WARM,
        };
        for version in &mut self.versions {
            let serves = Some(&version.name) == stable.as_ref() || Some(&version.name) == canary.as_ref();
            let was_stable = || {
                let formers = &self.state.formers;
                formers
                    .iter()
                    .any(|former| former.version == version.name && former.retired == now)
            };
            let (state, until) = match (serves, version.state) {
                (true, _) => (VersionState::Serving, None),
                (false, VersionState::Serving) if was_stable() => {
                    (VersionState::Warm, Some(now.plus(warm_for)))
                }
                (false, VersionState::Serving) => (VersionState::Draining, None),
                (
                    false,
                    same @ (VersionState::Warm
                    | VersionState::Draining
                    | VersionState::Releasable
                    | VersionState::Gone),
                ) => (same, version.until),
            };
            if state != version.state {
                (version.state, version.since, version.until) = (state, now, until);
            }
        }
        let gone = |version: &VersionRecord| version.state == VersionState::Gone;
        let mut surplus = self
            .versions
            .iter()
            .filter(|v| gone(v))
            .count()
            .saturating_sub(GONE_KEPT);
        self.versions.retain(|version| {
            let drop = surplus > 0 && gone(version);
            surplus -= usize::from(drop);
            !drop
        });
    }

    fn set_endpoints(&mut self, version: &VersionName, endpoints: &[EndpointUrl], now: Timestamp) {
        if let Some(known) = self.versions.iter_mut().find(|known| known.name == *version) {
            known.endpoints = endpoints.to_vec();
            if known.state == VersionState::Gone && !endpoints.is_empty() {
                (known.state, known.since) = (VersionState::Releasable, now);
            }
            return;
        }
        self.versions.push(VersionRecord {
            name: version.clone(),
            endpoints: endpoints.to_vec(),
            // A version that never serves is idle; `settle` knows better a moment later.
            state: VersionState::Releasable,
            since: now,
            until: None,
        });
    }

    /// A pipeline run of this number asked for what is there already.
    fn deployed_again(&mut self, version: &VersionName, sequence: Option<u64>) {
        self.sequence = self.sequence.max(sequence);
        if let Some(rollout) = self
            .rollout
            .as_mut()
            .filter(|rollout| rollout.version == *version)
        {
            rollout.sequence = rollout.sequence.max(sequence);
        }
    }

    fn set_afterlife(&mut self, version: &VersionName, state: VersionState, now: Timestamp) {
        if let Some(known) = self.versions.iter_mut().find(|known| known.name == *version)
            && known.state != VersionState::Serving
        {
            (known.state, known.since, known.until) = (state, now, None);
            if state == VersionState::Gone {
                known.endpoints.clear();
            }
        }
    }
}
