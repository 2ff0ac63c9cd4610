//! Who wants to be told about requests: the access log and the tracer. Usually nobody, which costs a request one branch.

use super::{access_log::AccessLog, trace::Tracer};
use arc_swap::{ArcSwap, Guard};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// The observers in force; swapped whole by a reload.
#[derive(Debug, Default)]
pub struct Observers {
    some: AtomicBool,
    set: ArcSwap<Set>,
}

/// Some observers.
#[derive(Debug, Default, Clone)]
pub struct Set {
    /// One line for each request.
    pub log: Option<Arc<AccessLog>>,
    /// Spans of sampled requests.
    pub tracer: Option<Arc<Tracer>>,
}

impl Observers {
    /// Puts others in their place; requests in flight keep theirs.
    pub fn replace(&self, set: Set) {
        let some = set.log.is_some() || set.tracer.is_some();
        self.set.store(Arc::new(set));
        self.some.store(some, Ordering::Relaxed);
    }

    /// The observers, if there are any.
    pub(super) fn get(&self) -> Option<Guard<Arc<Set>>> {
        self.some.load(Ordering::Relaxed).then(|| self.set.load())
    }
}
