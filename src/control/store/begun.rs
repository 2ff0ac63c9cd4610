//! Facts on their way to the disk: whoever has brought them there may go on, wait for them, or want them no more.
//!
//! What nobody wants any more does not come about: it is not begun, or it is taken back before anything that is asked for later.

use super::StoreError;
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What becomes of an append: the facts' numbers, or why they are not stored.
pub(crate) type Stored = Result<Vec<u64>, StoreError>;

/// An append that has been begun.
#[derive(Debug)]
pub(crate) enum Begun {
    /// It is over.
    Done(Stored),
    /// The disk has it.
    OnItsWay(OnItsWay),
}

/// See the module.
pub(crate) struct OnItsWay {
    pub(super) wait: Box<dyn FnOnce() -> Stored + Send>,
    pub(super) wanted: Wanted,
}

impl OnItsWay {
    /// Waits for the disk, which may take seconds.
    pub(crate) fn wait(self) -> Stored {
        (self.wait)()
    }

    /// Whether it is wanted.
    pub(crate) fn wanted(&self) -> Wanted {
        self.wanted.clone()
    }
}

impl fmt::Debug for OnItsWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnItsWay").field(&self.wanted).finish()
    }
}

/// How far something is, and whether anybody wants it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// Somebody waits for it.
    #[default]
    Wanted,
    /// Nobody wants it any more, and the disk is not through with it.
    GivenUp,
    /// The same, because the disk took too long.
    Stuck,
    /// The disk is through with it.
    Over,
}

/// Shared by whoever asked for something and the thread that does it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted(Arc<Mutex<Stage>>);

impl Wanted {
    pub(super) fn stage(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It shall not come about. False: too late, it has come about, has failed, or was given up before, and nothing changes.
    pub(crate) fn give_up(&self) -> bool {
        let mut stage = self.stage();
        let in_time = *stage == Stage::Wanted;
        if in_time {
            *stage = Stage::GivenUp;
        }
        in_time
    }
}
