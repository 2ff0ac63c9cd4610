//! Makes the world look like the saved state: pools, the split, analyses, metrics. Safe to repeat at any time.
//!
//! It compares what is with what should be, so that a restart, a retry and a change take the same path.

use super::{engine::Engine, ledger::Exposure, managed::Managed};
use crate::{
    metrics::{Keys, KnownKeys, RolloutView, Trial},
    model::{Role, ServiceName, Timestamp, Weight},
    rollout::{Hold, Pool},
    split::{Split, StickyHash},
    upstream::{Services, Target},
};
use rand::Rng;
use std::sync::Arc;

impl Engine {
    /// Brings everything outside the saved state up to date with it.
    pub(super) fn perform(&mut self, name: &ServiceName, now: Timestamp) {
        let key = [self.rng.next_u64(), self.rng.next_u64()];
        let secret = self.secret;
        if let Some(managed) = self.managed.get_mut(name) {
            managed.update_pools();
            managed.publish(&self.services, &secret, key, now);
        }
        self.reconcile_runs(name, now);
        self.count(name);
    }

    /// The gauges of a rollout.
    pub(super) fn count(&self, name: &ServiceName) {
        let Some(managed) = self.managed.get(name) else {
            return;
        };
        let state = &managed.saved.state;
        let (step, _) = state.step(&managed.saved.plan);
        let view = RolloutView {
            phase: state.phase(),
            pause_reason: state.pause_reason(),
            step,
            alarm: state.alarm.is_some(),
        };
        self.services.metrics().control.rollouts.show(name.as_str(), view);
    }

    /// What changes with time alone.
    pub(super) fn show_time(&self, name: &ServiceName, now: Timestamp) {
        let Some(managed) = self.managed.get(name) else {
            return;
        };
        let paused = managed
            .saved
            .paused
            .map_or(0.0, |since| now.since(since).as_secs_f64());
        let rollouts = &self.services.metrics().control.rollouts;
        rollouts.show_paused(name.as_str(), paused);
    }

    /// A reading now and then, for windows.
    pub(super) fn sample(&self, name: &ServiceName, now: Timestamp) {
        let Some(managed) = self.managed.get(name) else {
            return;
        };
        let split = managed.live.cell.load_full();
        if split.generation > 0 {
            managed.with_samples(|samples| samples.take(&split, now));
        }
    }
}

impl Managed {
    /// The endpoints of every version, as they are saved.
    fn update_pools(&mut self) {
        let versions = self.saved.versions.clone();
        for version in &versions {
            let pool = self.pool(&version.name);
            if pool.urls() != version.endpoints {
                pool.set_endpoints(&version.endpoints);
            }
        }
        self.pools
            .retain(|name, _| versions.iter().any(|version| version.name == *name));
    }

    /// What the proxy may see: a canary that waits, or that has failed hard, is not there at all, not even for those who
    /// force it.
    fn visible(&self) -> Exposure {
        let mut exposure = self.saved.exposure();
        let usable = self.saved.state.rolling().is_some_and(|rolling| {
            rolling.pool == Pool::Ready
                && rolling.holds.iter().all(|hold| match hold {
                    Hold::Manual
                    | Hold::Background { .. }
                    | Hold::ClientErrors { .. }
                    | Hold::Alarm { .. } => true,
                    Hold::SharedFate { .. } | Hold::HardFailure { .. } => false,
                })
        });
        if !usable {
            exposure.canary = None;
            exposure.weight = Weight::ZERO;
        }
        exposure
    }

    /// Publishes the split that the saved state asks for, unless it is the one in force. Confirms a trip: what was seen is
    /// acted upon now.
    fn publish(&mut self, services: &Services, secret: &[u8], key: [u64; 2], now: Timestamp) {
        let exposure = self.visible();
        let Some(stable) = exposure.stable.clone() else {
            return;
        };
        let secret = match self
            .config
            .sticky
            .as_ref()
            .and_then(|sticky| sticky.secret.as_ref())
        {
            Some(shared) => shared.expose().as_bytes().to_vec(),
            None => secret.to_vec(),
        };
        let rollout = self
            .saved
            .rollout
            .as_ref()
            .map_or(String::new(), |rollout| rollout.id.clone());
        // Replicas that share a secret must agree without sharing rollout ids: the version is what they have in common.
        let salt = match (&self.config.sticky, &exposure.canary) {
            (Some(sticky), Some(canary)) if sticky.secret.is_some() => canary.to_string(),
            _ => rollout,
        };
        let hash = StickyHash::new(&secret, &salt);
        let sticky = Some((secret, salt));
        let stable = self.pool(&stable);
        let canary = exposure.canary.as_ref().map(|canary| self.pool(canary));
        let live = self.live.cell.load_full();
        let same = live.generation > 0
            && live.weight == exposure.weight
            && Arc::ptr_eq(&live.stable.version, &stable)
            && match (&live.canary, &canary) {
                (Some(live), Some(canary)) => Arc::ptr_eq(&live.version, canary),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            }
            // What a unit is cannot change within a generation.
            && (canary.is_none() || live.stable.evidence.is_keyed() == self.config.sticky.is_some());
        if same {
            if self.sticky != sticky {
                self.sticky = sticky;
                let split = Split::new(
                    live.generation,
                    live.weight,
                    Arc::clone(&live.stable),
                    live.canary.clone(),
                    hash,
                    live.key,
                );
                self.live.cell.publish(split.continuing(&live));
            }
        } else {
            self.sticky = sticky;
            let keys = self.config.sticky.is_some().then(|| Keys::new(self.known_keys()));
            let trial = |alarm| Trial {
                keys: keys.clone(),
                alarm,
            };
            let stable = services.target(&stable, Role::Stable, canary.as_ref().map(|_| trial(None)));
            let alarm = || Some(Arc::clone(services.failures()));
            let canary = canary.map(|canary| services.target(&canary, Role::Canary, Some(trial(alarm()))));
            let next = Split::new(live.generation + 1, exposure.weight, stable, canary, hash, key);
            let old = self.live.cell.publish(next);
            self.published = now;
            let new = self.live.cell.load_full();
            self.with_samples(|samples| {
                if old.generation > 0 {
                    samples.push(&old, now);
                }
                samples.push(&new, now);
            });
            // At once: a generation may be over before the judge looks again.
            self.judging.follow(&new, now);
            self.keep_past(&old, &new);
        }
        // Only now: until here the flag alone kept traffic off the canary.
        if self.live.cell.is_tripped() && exposure.weight.is_zero() {
            self.live.cell.confirm_trip();
        }
    }

    /// What is known of sticky keys in this trial: nothing when another has begun.
    pub(super) fn known_keys(&mut self) -> Arc<KnownKeys> {
        let trial = self.trial();
        if self.known_keys.as_ref().is_none_or(|(of, _)| *of != trial) {
            self.known_keys = Some((trial, Arc::default()));
        }
        self.known_keys
            .as_ref()
            .map_or_else(Arc::default, |(_, keys)| Arc::clone(keys))
    }

    /// Roles that ended are watched until their last request is done, and their series retired then.
    fn keep_past(&mut self, old: &Split<Arc<Target>>, new: &Split<Arc<Target>>) {
        let current = |target: &Arc<Target>| {
            [Some(&new.stable), new.canary.as_ref()]
                .into_iter()
                .flatten()
                .any(|now| Arc::ptr_eq(&now.metrics, &target.metrics))
        };
        if old.generation > 0 {
            self.past.push(Arc::clone(&old.stable));
            self.past.extend(old.canary.clone());
        }
        self.past.retain(|target| !current(target));
        let mut seen: Vec<*const crate::metrics::VersionMetrics> = Vec::new();
        self.past.retain(|target| {
            let at = Arc::as_ptr(&target.metrics);
            let fresh = !seen.contains(&at);
            seen.push(at);
            fresh
        });
    }
}
