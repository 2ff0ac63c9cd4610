//! One service in the engine's hands: what is saved of it, and what exists only while the process runs.

use super::{
    AnalysisStatus,
    alarm::Failures,
    judging::{self, Judging},
    ledger::Saved,
    observe::{ActiveRun, KeptRun},
    raising::Raising,
    samples::{self, Samples},
    store::{KeyRow, Row},
};
use crate::{
    config::Service,
    metrics::KnownKeys,
    model::{ServiceName, Timestamp, VersionName},
    upstream::{LiveService, Target, Version},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Ended analyses that are shown.
const ENDED_SHOWN: usize = 10;

/// See the module.
#[derive(Debug)]
pub(crate) struct Managed {
    pub(super) name: ServiceName,
    pub(super) live: Arc<LiveService>,
    pub(super) config: Arc<Service>,
    pub(super) saved: Saved,
    /// The versions as the proxy sees them.
    pub(super) pools: BTreeMap<VersionName, Arc<Version>>,
    /// Roles that have ended and may still have requests in flight.
    pub(super) past: Vec<Arc<Target>>,
    pub(super) runs: BTreeMap<u64, ActiveRun>,
    /// Newest first.
    pub(super) ended: VecDeque<AnalysisStatus>,
    /// Runs that a restart has interrupted, by their number, until they go on.
    pub(super) kept_runs: BTreeMap<u64, KeptRun>,
    /// What comes into force as soon as it is stored.
    pub(super) raising: Option<Raising>,
    /// Acted upon, and not stored yet.
    pub(super) unsaved: Vec<Row>,
    /// Answered by what is not stored yet.
    pub(super) unsaved_keys: Vec<KeyRow>,
    /// Until then events that come by themselves wait: one was just refused or did nothing.
    pub(super) quiet_until: Timestamp,
    pub(super) gate: Gate,
    pub(super) fate: Option<Fate>,
    pub(super) samples: Arc<Mutex<Samples>>,
    pub(super) judging: Judging,
    /// What the alarm looks at.
    pub(super) failures: Failures,
    /// When the split in force was published.
    pub(super) published: Timestamp,
    /// The sticky keys that have failed or been answered 4xx, and in which trial.
    pub(super) known_keys: Option<(TrialId, Arc<KnownKeys>)>,
    /// What the sticky hash in force was made of.
    pub(super) sticky: Option<(Vec<u8>, String)>,
}

/// One try of one version: a retry and a new plan begin another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TrialId {
    rollout: String,
    attempt: u32,
    since: Timestamp,
}

impl TrialId {
    /// The rollout that it is a trial of.
    pub(super) fn rollout(&self) -> &str {
        &self.rollout
    }
}

/// The probes of a version that waits for its endpoints.
#[derive(Debug, Default)]
pub(super) struct Gate {
    pub(super) next: Timestamp,
    pub(super) in_flight: bool,
    /// What the last probes said, for people.
    pub(super) last: Option<String>,
}

/// Stable is watched for a while after the canary has failed hard.
#[derive(Debug)]
pub(super) struct Fate {
    pub(super) until: Timestamp,
    pub(super) reason: String,
}

impl Managed {
    pub(super) fn new(live: Arc<LiveService>, config: Arc<Service>, saved: Saved, now: Timestamp) -> Managed {
        Managed {
            name: config.name.clone(),
            live,
            config,
            saved,
            pools: BTreeMap::new(),
            past: Vec::new(),
            runs: BTreeMap::new(),
            ended: VecDeque::new(),
            kept_runs: BTreeMap::new(),
            raising: None,
            unsaved: Vec::new(),
            unsaved_keys: Vec::new(),
            quiet_until: Timestamp::default(),
            gate: Gate::default(),
            fate: None,
            samples: Arc::default(),
            judging: Judging::default(),
            failures: Failures::default(),
            published: now,
            known_keys: None,
            sticky: None,
        }
    }

    /// The trial that is going on, or the last one.
    pub(super) fn trial(&self) -> TrialId {
        let rollout = self.saved.rollout.as_ref().map(|rollout| rollout.id.clone());
        let rolling = self.saved.state.rolling();
        TrialId {
            rollout: rollout.unwrap_or_default(),
            attempt: rolling.map_or(0, |rolling| rolling.attempt),
            since: rolling.map_or_else(Timestamp::default, |rolling| rolling.since),
        }
    }

    /// The pool of a version; made when it is new.
    pub(super) fn pool(&mut self, name: &VersionName) -> Arc<Version> {
        let endpoints = self
            .saved
            .version(name)
            .map(|version| version.endpoints.clone())
            .unwrap_or_default();
        let live = &self.live;
        let pool = self
            .pools
            .entry(name.clone())
            .or_insert_with(|| live.version(name, &endpoints));
        Arc::clone(pool)
    }

    /// The numbers of the moment, for the history.
    pub(super) fn numbers(&self) -> serde_json::Value {
        let split = self.live.cell.load_full();
        if split.generation == 0 {
            return serde_json::Value::Null;
        }
        let of = |target: &Arc<Target>| {
            let summary = samples::summary(&target.evidence.counts());
            json!({"version": target.version.name, "evidence": summary})
        };
        let ticket = split.ticket();
        json!({
            "generation": split.generation,
            "weight": split.weight,
            "tickets": ticket.number,
            "canaryTickets": ticket.canary_count(split.weight),
            "stable": of(&split.stable),
            "canary": split.canary.as_ref().map(of),
        })
    }

    /// When something of this service is due.
    pub(super) fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        // Nothing is due by the clock while the next step is on its way.
        let machine = self.saved.state.next_wakeup(&self.saved.plan);
        let machine = machine.filter(|_| self.raising.is_none());
        let machine = machine.map(|due| due.max(self.quiet_until));
        let runs = self.runs.values().filter_map(ActiveRun::next_due);
        let runs = runs.map(|due| due.max(self.quiet_until)).min();
        let fate = self.fate.as_ref().map(|_| now.plus(Duration::from_millis(100)));
        let waiting = self.waiting_version().is_some() && !self.gate.in_flight;
        let gate = waiting.then_some(self.gate.next);
        [machine, runs, fate, gate].into_iter().flatten().min()
    }

    /// Whether it is enough to look at it once a second: nothing is on trial, nothing is due, and nothing has just changed.
    pub(super) fn rests(&self, now: Timestamp) -> bool {
        self.saved.state.rolling().is_none()
            && self.past.is_empty()
            && now.since(self.published) > judging::AT_REST * 2
            && !self.is_judging()
            && self.next_due(now).is_none()
    }

    /// The version on trial, while it waits for endpoints.
    pub(super) fn waiting_version(&self) -> Option<&VersionName> {
        let rolling = self.saved.state.rolling()?;
        (rolling.pool != crate::rollout::Pool::Ready).then_some(&rolling.version)
    }

    /// Remembers how an analysis ended.
    pub(super) fn remember_run(&mut self, status: AnalysisStatus) {
        self.ended.retain(|known| known.run != status.run);
        self.ended.push_front(status);
        self.ended.truncate(ENDED_SHOWN);
    }

    pub(super) fn with_samples<T>(&self, of: impl FnOnce(&mut Samples) -> T) -> T {
        of(&mut self.samples.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends what runs beside the engine.
    pub(super) fn stop_tasks(&mut self) {
        for active in self.runs.values_mut() {
            active.stop_tasks();
        }
    }
}
