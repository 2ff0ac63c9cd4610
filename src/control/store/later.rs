//! What is stored without anybody waiting for it: facts that are in force already, signs of life, how an analysis stands,
//! attempts. While the disk takes its time the judges go on.
//!
//! Order is kept, and what fails is tried again before whatever comes after it, so that nothing is lost but by the end of the
//! process.

use super::{Store, StoreError};
use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// So much waits at the most.
const MOST: usize = 1000;

/// Something to be stored, as often as it takes.
pub(super) type Write = Box<dyn Fn(&dyn Store) -> Result<(), StoreError> + Send>;

#[expect(
    clippy::disallowed_methods,
    reason = "a real disk is timed, as it is where its answers are waited for"
)]
fn now() -> Instant {
    Instant::now()
}

/// The writes that nobody waits for.
#[derive(Clone, Default)]
pub(super) struct Later(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Written by nobody yet.
    waiting: usize,
    /// When the last one was done, or the first one came.
    moved: Option<Instant>,
    /// Those that have failed, in their order.
    failed: VecDeque<Write>,
    /// Why, until it has been told.
    trouble: Option<StoreError>,
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Later").field(&self.state().waiting).finish()
    }
}

impl Later {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more is on its way; not when too many are.
    pub(super) fn comes(&self) -> bool {
        let mut state = self.state();
        if state.waiting + state.failed.len() >= MOST {
            return false;
        }
        if state.waiting == 0 {
            state.moved = Some(now());
        }
        state.waiting += 1;
        true
    }

    /// It is its turn.
    pub(super) fn write(&self, store: &dyn Store, write: Write) {
        self.state().failed.push_back(write);
        self.retry(store);
        let mut state = self.state();
        state.waiting = state.waiting.saturating_sub(1);
        state.moved = Some(now());
    }

    /// Writes what is left, in its order, until something fails.
    pub(super) fn retry(&self, store: &dyn Store) {
        loop {
            // Not under the lock: it may take its time.
            let mut state = self.state();
            let Some(write) = state.failed.pop_front() else {
                // What has come about is no trouble any more.
                state.trouble = None;
                return;
            };
            drop(state);
            if let Err(error) = write(store) {
                let mut state = self.state();
                state.failed.push_front(write);
                state.trouble = Some(error);
                return;
            }
        }
    }

    /// Writes what is left; an error when something still is.
    pub(super) fn catch_up(&self, store: &dyn Store) -> Result<(), StoreError> {
        self.retry(store);
        self.state().trouble.take().map_or(Ok(()), Err)
    }

    /// Whether nothing has moved for longer than `patience`.
    pub(super) fn hangs(&self, patience: Duration) -> bool {
        let state = self.state();
        state.waiting > 0 && state.moved.is_some_and(|moved| moved.elapsed() > patience)
    }

    /// Why the last write failed, once.
    pub(super) fn trouble(&self) -> Option<StoreError> {
        self.state().trouble.take()
    }
}
