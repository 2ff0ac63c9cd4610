//! Whether a version has been withdrawn from what it still serves.
//!
//! A response may have no end: a stream of events, a long call, a tunnel. It outlives a promotion, for then its version is
//! stable. A canary that was aborted or superseded has `drain` for what it has begun; then it is cut off, so that its users
//! come back to stable and the version can be stopped (design section 8.9).

use crate::upstream::{LiveService, Target};
use std::{cell::Cell, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How often it is looked whether a version has been withdrawn.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// What one response knows of the canary that serves it.
#[derive(Debug)]
pub(super) struct Withdrawal {
    live: Arc<LiveService>,
    target: Arc<Target>,
    /// How long it may go on.
    drain: Duration,
    since: Cell<Option<Instant>>,
}

impl Withdrawal {
    pub(super) fn new(live: &Arc<LiveService>, target: &Arc<Target>, drain: Duration) -> Withdrawal {
        Withdrawal {
            live: Arc::clone(live),
            target: Arc::clone(target),
            drain,
            since: Cell::new(None),
        }
    }

    /// Whether the version was withdrawn `drain` ago or earlier, as far as earlier looks have seen it.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        if !self.is_withdrawn() {
            self.since.set(None);
            return false;
        }
        let since = self.since.get().unwrap_or(now);
        self.since.set(Some(since));
        now.saturating_duration_since(since) >= self.drain
    }

    /// A canary that is neither canary nor stable any more was aborted or superseded; one that was promoted is stable.
    fn is_withdrawn(&self) -> bool {
        let split = self.live.cell.load();
        let name = &self.target.version.name;
        let serves = |target: &Arc<Target>| target.version.name == *name;
        let tripped = self.live.cell.is_tripped();
        !serves(&split.stable) && (tripped || !split.canary.as_ref().is_some_and(serves))
    }
}
