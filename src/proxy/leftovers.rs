//! Request bodies whose answers are over and that their clients are still sending.
//!
//! Whoever reads such a body ends it by itself after a moment, if it is read at all: over HTTP/2 nobody does while the version's
//! window is closed. It must not hold its client's connection for that, so the worker looks at them once a second.

use super::body::{BodyHandle, LONGEST_REST, WeakBody};
use std::cell::RefCell;
use tokio::time::Instant;

/// One worker's.
#[derive(Debug, Default)]
pub(super) struct Leftovers(RefCell<Vec<(Instant, WeakBody)>>);

impl Leftovers {
    /// The answer is over: the rest of the body is read for a moment, then cut off.
    pub(super) fn add(&self, body: &BodyHandle, now: Instant) {
        body.abandon(now);
        self.0.borrow_mut().push((now + LONGEST_REST, body.downgrade()));
    }

    /// Ends those whose time is over.
    pub(super) fn look(&self, now: Instant) {
        if self.0.borrow().is_empty() {
            return;
        }
        let mut all = self.0.take();
        all.retain(|(until, body)| {
            let Some(body) = body.upgrade() else { return false };
            if now >= *until {
                body.cut();
            }
            now < *until
        });
        self.0.borrow_mut().append(&mut all);
    }
}
