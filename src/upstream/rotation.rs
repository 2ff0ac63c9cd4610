//! The endpoints of one version as workers see them: the health machine's decisions, put where a draw finds them.
//!
//! The machine stands behind a lock that only failures and ticks take; what it decides is flags of the endpoints.

use super::{
    Endpoint,
    capacity::Capacity,
    health::{Change, Event, Machine, Reason, Rules},
};
use crate::{config, model::Span};
use arc_swap::ArcSwap;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
}

/// What all versions of a service have in common.
#[derive(Debug, Clone, Default)]
pub(super) struct Common {
    pub(super) policy: Arc<ArcSwap<Policy>>,
    pub(super) workers: usize,
    /// Tells workers that somebody waits for a connection.
    pub(super) crowded: Arc<Notify>,
    /// Wakes who looks names up.
    pub(super) names: Arc<Notify>,
}

impl Policy {
    /// What a service's configuration says.
    pub fn of(service: &config::Service) -> Policy {
        Policy {
            rules: Rules {
                health: service.health.clone(),
                ejection: service.ejection,
            },
            slow_start: service.slow_start,
            limits: service.limits,
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
    pub(super) members: ArcSwap<Vec<Arc<Endpoint>>>,
    pub(super) capacity: Arc<Capacity>,
}

impl Rotation {
    pub(super) fn new(name: String, common: &Common) -> Rotation {
        let limits = common.policy.load().limits;
        let capacity = Capacity::new(&limits, common.workers, Arc::clone(&common.crowded));
        Rotation {
            name,
            policy: Arc::clone(&common.policy),
            capacity: Arc::new(capacity),
            machine: Mutex::default(),
            members: ArcSwap::default(),
        }
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
        self.show(&changes, None);
    }

    /// An endpoint's failures in a row; when there are enough of them it is ejected.
    pub(super) fn failing(&self, endpoint: &Endpoint, unanswered: u32, bad: u32, now: Duration) {
        let policy = self.policy.load();
        let ejection = &policy.rules.ejection;
        let due = unanswered >= ejection.failures || ejection.bad_responses.is_some_and(|most| bad >= most);
        if due && !endpoint.is_ejected() {
            let event = Event::Failing { id: endpoint.id };
            let mut machine = self.machine();
            let changes = machine.apply(&event, now, &policy.rules);
            self.show(&changes, Some(now));
        }
    }

    /// An active check ended.
    pub(super) fn checked(&self, id: u64, good: bool, dice: u64, now: Duration) {
        let policy = self.policy();
        let event = Event::Checked { id, good, dice };
        let mut machine = self.machine();
        let changes = machine.apply(&event, now, &policy.rules);
        self.show(&changes, Some(now));
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
        changes.extend(machine.apply(&Event::Tick, now, &policy.rules));
        let due = machine.due(now, &policy.rules, dice);
        let next = machine.next();
        self.show(&changes, Some(now));
        let due = members.iter().filter(|endpoint| due.contains(&endpoint.id));
        (due.cloned().collect(), next)
    }

    /// Puts changes into the endpoints' flags; called under the machine's lock, so that they arrive in their order. `now` is absent for endpoints that have just been published.
    fn show(&self, changes: &[Change], now: Option<Duration>) {
        let members = self.members.load();
        for change in changes {
            let Some(endpoint) = members.iter().find(|endpoint| endpoint.id == change.id) else {
                continue;
            };
            endpoint.set_rotation(*change);
            let (Some(now), pool, url) = (now, &self.name, endpoint.label()) else {
                continue;
            };
            match change.reason {
                Reason::Healthy => {
                    if let Some(over) = self.policy.load().slow_start
                        && change.came_back
                    {
                        endpoint.start_slowly(Some(now), over.as_duration());
                    }
                    if change.came_back {
                        tracing::info!(pool, endpoint = %url, "endpoint {url} of {pool} is back in rotation");
                    }
                }
                Reason::Checks => {
                    tracing::warn!(pool, endpoint = %url, in_rotation = change.in_rotation, "endpoint {url} of {pool} fails its health checks");
                }
                Reason::Ejected => {
                    tracing::warn!(pool, endpoint = %url, in_rotation = change.in_rotation, "endpoint {url} of {pool} is ejected for a while: its requests fail");
                }
            }
        }
    }
}
