//! The endpoints of one version as workers see them: the health machine's decisions, put where a draw finds them.
//!
//! The machine stands behind a lock that only failures and ticks take; what it decides is flags of the endpoints.

use super::{
    Endpoint,
    capacity::Capacity,
    check::CheckError,
    descriptors::Descriptors,
    health::{Change, Event, Machine, Reason, Rules},
};
use crate::{config, model::Span};
use arc_swap::ArcSwap;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// What an operator asks for all versions of a service.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Health checks and ejection.
    pub rules: Rules,
    /// How long a new or recovered endpoint takes to get its full share; none: it has it at once.
    pub slow_start: Option<Span>,
    /// What each version may use up.
    pub limits: config::Limits,
    /// Where names may lead.
    pub reach: config::Reach,
}

/// What all versions of a service have in common.
#[derive(Debug, Clone, Default)]
pub(super) struct Common {
    pub(super) policy: Arc<ArcSwap<Policy>>,
    pub(super) workers: usize,
    /// What the process keeps for connections to versions.
    pub(super) descriptors: Arc<Descriptors>,
    /// Wakes who looks names up.
    pub(super) names: Arc<Notify>,
}

impl Policy {
    /// What a configuration says about one of its services.
    pub fn of(config: &config::Config, service: &config::Service) -> Policy {
        Policy {
            rules: Rules {
                health: service.health.clone(),
                ejection: service.ejection,
            },
            slow_start: service.slow_start,
            limits: service.limits,
            reach: config::Reach::of(config, service),
        }
    }
}

/// What an endpoint was ejected for. The label `reason` of `serin_upstream_ejections_total`; named as the keys of `ejection`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ejected {
    /// Attempts in a row that nobody answered.
    Failures,
    /// Answers in a row that were failures of the version.
    BadResponses,
    /// The share of its requests that went well.
    SuccessRate,
}

impl Ejected {
    /// Every one, in the order in which they are counted.
    pub(super) const ALL: [Ejected; 3] = [Ejected::Failures, Ejected::BadResponses, Ejected::SuccessRate];

    /// The label's value.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Ejected::Failures => "failures",
            Ejected::BadResponses => "bad_responses",
            Ejected::SuccessRate => "success_rate",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Rotation {
    /// How it is called in logs: service and version.
    name: String,
    policy: Arc<ArcSwap<Policy>>,
    machine: Mutex<Machine>,
    /// Whether it was last said that too few are healthy.
    panicking: AtomicBool,
    /// By [`Ejected`].
    ejections: [AtomicU64; Ejected::ALL.len()],
    pub(super) members: Arc<ArcSwap<Vec<Arc<Endpoint>>>>,
    pub(super) capacity: Arc<Capacity>,
}

impl Rotation {
    pub(super) fn new(name: String, common: &Common) -> Rotation {
        let limits = common.policy.load().limits;
        let capacity = Capacity::new(&limits, common.workers, Arc::clone(&common.descriptors));
        Rotation {
            name,
            policy: Arc::clone(&common.policy),
            capacity: Arc::new(capacity),
            machine: Mutex::default(),
            panicking: AtomicBool::new(false),
            ejections: Default::default(),
            members: Arc::default(),
        }
    }

    /// How it is called in logs.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the operator asks for.
    pub(super) fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// These are the endpoints from now on.
    pub(super) fn publish(&self, set: Vec<Arc<Endpoint>>) {
        let ids: Vec<u64> = set.iter().map(|endpoint| endpoint.id).collect();
        // Under the machine's lock, so that a decision about the old set cannot come after the new one is in force.
        let mut machine = self.machine();
        let old = self.members.swap(Arc::new(set));
        if self.policy.load().slow_start.is_some() && !old.is_empty() {
            let members = self.members.load();
            let fresh = members
                .iter()
                .filter(|one| !old.iter().any(|known| known.id == one.id));
            // When that is, the next tick says.
            fresh.for_each(|endpoint| endpoint.start_slowly(None, Duration::ZERO));
        }
        let changes = machine.apply(&Event::Members(&ids), Duration::ZERO, &self.policy().rules);
        self.show(&machine, &changes, None, "");
    }

    /// How often endpoints were ejected for this reason, since the version is known.
    pub(super) fn ejections(&self, reason: Ejected) -> u64 {
        self.ejections[reason as usize].load(Ordering::Relaxed)
    }

    /// Counts the ejections since there were `before`; called under the machine's lock.
    fn count_ejections(&self, machine: &Machine, before: u64, reason: Ejected) {
        self.ejections[reason as usize].fetch_add(machine.ejections() - before, Ordering::Relaxed);
    }

    /// An endpoint's failures in a row; when there are enough of them it is ejected.
    pub(super) fn failing(&self, endpoint: &Endpoint, unanswered: u32, bad: u32, now: Duration) {
        let policy = self.policy.load();
        let ejection = &policy.rules.ejection;
        let due = unanswered >= ejection.failures || ejection.bad_responses.is_some_and(|most| bad >= most);
        if due && !endpoint.is_ejected() {
            let event = Event::Failing { id: endpoint.id };
            let mut machine = self.machine();
            let before = machine.ejections();
            let changes = machine.apply(&event, now, &policy.rules);
            let reason = if unanswered >= ejection.failures {
                Ejected::Failures
            } else {
                Ejected::BadResponses
            };
            self.count_ejections(&machine, before, reason);
            self.show(&machine, &changes, Some(now), "its requests fail");
        }
    }

    /// An active check ended.
    pub(super) fn checked(&self, id: u64, said: &Result<(), CheckError>, dice: u64, now: Duration) {
        let policy = self.policy();
        let (good, why) = match said {
            Ok(()) => (Some(true), String::new()),
            Err(error @ CheckError::Bad(_)) => (Some(false), error.to_string()),
            Err(error @ CheckError::Local(_)) => (None, error.to_string()),
        };
        let event = Event::Checked { id, good, dice };
        let mut machine = self.machine();
        let changes = machine.apply(&event, now, &policy.rules);
        self.show(&machine, &changes, Some(now), &why);
    }

    /// Time has passed: ejections end, windows are judged. Returns the endpoints to check now, and when to come back at the
    /// latest.
    pub(super) fn tick(
        &self,
        now: Duration,
        dice: impl FnMut() -> u64,
    ) -> (Vec<Arc<Endpoint>>, Option<Duration>) {
        self.capacity.seats.relax();
        let policy = self.policy();
        let members = self.members.load();
        let mut machine = self.machine();
        let mut changes = Vec::new();
        for endpoint in members.iter() {
            endpoint.tidy(now, policy.slow_start.map_or(Duration::ZERO, Span::as_duration));
            let (requests, failures) = endpoint.take_counts();
            if policy.rules.ejection.success_rate.is_some() && requests + failures > 0 {
                let event = Event::Served {
                    id: endpoint.id,
                    requests,
                    failures,
                };
                changes.extend(machine.apply(&event, now, &policy.rules));
            }
        }
        let before = machine.ejections();
        changes.extend(machine.apply(&Event::Tick, now, &policy.rules));
        self.count_ejections(&machine, before, Ejected::SuccessRate);
        let due = machine.due(now, &policy.rules, dice);
        let next = machine.next(now, &policy.rules);
        self.show(&machine, &changes, Some(now), "too few of its requests succeed");
        let due = members.iter().filter(|endpoint| due.contains(&endpoint.id));
        (due.cloned().collect(), next)
    }

    /// Puts changes into the endpoints' flags; called under the machine's lock, so that they arrive in their order. `now` is
    /// absent for endpoints that have just been published; `why` is what was seen of an endpoint that goes out.
    fn show(&self, machine: &Machine, changes: &[Change], now: Option<Duration>, why: &str) {
        let members = self.members.load();
        for change in changes {
            let Some(endpoint) = members.iter().find(|endpoint| endpoint.id == change.id) else {
                continue;
            };
            endpoint.set_rotation(*change);
            if let Some(now) = now.filter(|_| change.turned) {
                self.say(endpoint, *change, now, why);
            }
        }
        let (pool, panicking) = (&self.name, machine.is_panicking());
        if self.panicking.swap(panicking, Ordering::Relaxed) == panicking {
            return;
        }
        if panicking {
            tracing::warn!(
                pool,
                "too few endpoints of {pool} are healthy: all are used until more are (ejection.panic)"
            );
        } else {
            tracing::info!(pool, "enough endpoints of {pool} are healthy: only they are used");
        }
    }

    fn say(&self, endpoint: &Endpoint, change: Change, now: Duration, why: &str) {
        let (pool, url, in_rotation) = (&self.name, endpoint.label(), change.in_rotation);
        match change.reason {
            Reason::Healthy => {
                if let Some(over) = self.policy.load().slow_start {
                    endpoint.start_slowly(Some(now), over.as_duration());
                }
                tracing::info!(pool, endpoint = %url, "endpoint {url} of {pool} is back in rotation");
            }
            Reason::Checks => {
                tracing::warn!(pool, endpoint = %url, in_rotation, why, "endpoint {url} of {pool} fails its health checks: {why}");
            }
            Reason::Ejected => {
                tracing::warn!(pool, endpoint = %url, in_rotation, "endpoint {url} of {pool} is ejected for a while: {why}");
            }
        }
    }
}
