//! The afterlife of versions: warm, then draining, then releasable, which is the word CI waits for before it stops
//! processes, then gone.

use super::{
    VersionState,
    engine::{By, Engine},
    ledger::Fact,
};
use crate::{
    model::{ServiceName, Timestamp, VersionName},
    rollout::Stage,
};
use std::time::Duration;

/// A worker may have read the table just before it changed; so long it may still begin a request with it.
const GRACE: Duration = Duration::from_secs(1);
/// How long the endpoints of a releasable version are remembered.
const REMEMBERED: Duration = Duration::from_secs(600);

impl Engine {
    /// Moves versions that do not serve any more one step further, when it is time.
    pub(super) fn afterlife(&mut self, name: &ServiceName, now: Timestamp) {
        self.retire_series(name, now);
        if self.store_trouble().is_some() {
            return;
        }
        for (version, state) in self.next_afterlife(name, now) {
            // Refused only while the store fails; then it comes again.
            let _ = self.record(name, vec![Fact::Afterlife { version, state }], By::default());
        }
    }

    fn next_afterlife(&self, name: &ServiceName, now: Timestamp) -> Vec<(VersionName, VersionState)> {
        let Some(managed) = self.managed.get(name) else {
            return Vec::new();
        };
        let aborted = match &managed.saved.state.stage {
            Stage::Aborted(aborted) => Some(&aborted.version),
            Stage::Empty | Stage::Healthy | Stage::Rolling(_) => None,
        };
        let metrics = self.services.metrics();
        let step = |version: &super::ledger::VersionRecord| {
            let idle = || metrics.in_flight(name, &version.name) == 0;
            let passed = |span| now.since(version.since) >= span;
            let next = match version.state {
                VersionState::Warm if version.until.is_some_and(|until| until <= now) => {
                    Some(VersionState::Draining)
                }
                VersionState::Draining if passed(GRACE) && idle() => Some(VersionState::Releasable),
                VersionState::Releasable if passed(REMEMBERED) && aborted != Some(&version.name) => {
                    Some(VersionState::Gone)
                }
                VersionState::Serving
                | VersionState::Warm
                | VersionState::Draining
                | VersionState::Releasable
                | VersionState::Gone => None,
            };
            next.map(|next| (version.name.clone(), next))
        };
        managed.saved.versions.iter().filter_map(step).collect()
    }

    /// The series of a role that ended go when its last request is done; a scrape shows them for a while after that.
    fn retire_series(&mut self, name: &ServiceName, now: Timestamp) {
        let Some(managed) = self
            .managed
            .get_mut(name)
            .filter(|managed| !managed.past.is_empty())
        else {
            return;
        };
        let metrics = self.services.metrics();
        managed.past.retain(|target| {
            let busy = target.metrics.in_flight() > 0;
            if !busy {
                let key = &target.metrics.key;
                metrics.retire(&key.service, key.role, &key.version, now);
            }
            busy
        });
    }
}
