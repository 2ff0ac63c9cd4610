//! How much of a version may be used at once, over all workers: requests in flight, connections, requests that wait for one.
//!
//! Connections are permits of one semaphore, taken when a connection is opened and given back when its task ends; a request
//! over a kept connection touches nothing here. Whoever finds none left waits in turn, and says so: workers with idle
//! connections then close them, as they do when there are more than a lowered limit allows.

use super::{
    descriptors::{Descriptor, Descriptors},
    seats::Seats,
};
use crate::config::Limits;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// What a version may use. Shared by all workers.
#[derive(Debug)]
pub struct Capacity {
    /// Requests in flight.
    pub seats: Seats,
    places: Arc<Semaphore>,
    /// How many permits there are in all.
    allowed: Mutex<usize>,
    /// Permits that a lowered limit still wants back.
    owed: AtomicUsize,
    waiting: AtomicU32,
    most_waiting: AtomicU32,
    /// Requests on one connection.
    most_served: AtomicU32,
    /// Tells workers that somebody waits.
    crowded: Arc<Notify>,
    /// What all versions share.
    descriptors: Arc<Descriptors>,
}

/// One open connection's place among those allowed.
#[derive(Debug)]
pub struct Place {
    capacity: Arc<Capacity>,
    permit: Option<OwnedSemaphorePermit>,
    descriptor: Option<Descriptor>,
}

/// One request's turn in the queue for a connection.
#[derive(Debug)]
pub struct Turn(Arc<Capacity>);

impl Capacity {
    /// What these limits allow `workers` together.
    pub fn new(limits: &Limits, workers: usize, crowded: Arc<Notify>) -> Capacity {
        let connections = usize::try_from(limits.connections).unwrap_or(usize::MAX);
        Capacity {
            seats: Seats::new(workers, limits.requests),
            places: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            allowed: Mutex::new(connections),
            owed: AtomicUsize::new(0),
            waiting: AtomicU32::new(0),
            most_waiting: AtomicU32::new(limits.pending),
            most_served: AtomicU32::new(limits.requests_per_connection.unwrap_or(u32::MAX)),
            crowded,
            descriptors: Arc::default(),
        }
    }

    /// Its connections are among these of the process.
    #[must_use]
    pub fn among(self, descriptors: Arc<Descriptors>) -> Capacity {
        Capacity { descriptors, ..self }
    }

    /// These limits hold from now on; what is in use or waits stays, and connections that are too many go as they fall idle.
    pub fn set(&self, limits: &Limits) {
        self.seats.set_limit(limits.requests);
        self.most_waiting.store(limits.pending, Ordering::Relaxed);
        let served = limits.requests_per_connection.unwrap_or(u32::MAX);
        self.most_served.store(served, Ordering::Relaxed);
        let wanted = usize::try_from(limits.connections).unwrap_or(usize::MAX);
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted > *allowed {
            // What is owed is forgiven first.
            let more = wanted - *allowed;
            let update = |owed: usize| Some(owed.saturating_sub(more));
            let owed = self
                .owed
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, update)
                .unwrap_or_default();
            self.places.add_permits(more.saturating_sub(owed));
        } else {
            let fewer = *allowed - wanted;
            let taken = self.places.forget_permits(fewer);
            self.owed.fetch_add(fewer - taken, Ordering::AcqRel);
            self.crowded.notify_waiters();
        }
        *allowed = wanted;
    }

    /// A place for one more connection, if one is free and nobody waits for it.
    pub fn place(self: &Arc<Self>) -> Option<Place> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Place {
            capacity: Arc::clone(self),
            permit: Some(permit),
            descriptor: None,
        })
    }

    /// Takes a turn in the queue, unless it is full. It is not for whoever waits only until another worker has closed an idle
    /// connection.
    pub fn queue(self: &Arc<Self>) -> Option<Turn> {
        let most = self.most_waiting.load(Ordering::Relaxed);
        let before = self.waiting.fetch_add(1, Ordering::AcqRel);
        let turn = Turn(Arc::clone(self));
        if before >= most && !self.has_idle() {
            return None;
        }
        self.crowded.notify_waiters();
        Some(turn)
    }

    /// Whether there are connections for all requests in flight, this one among them: then one that is not free is idle.
    fn has_idle(&self) -> bool {
        let allowed = *self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        self.seats.taken() <= u64::try_from(allowed).unwrap_or(u64::MAX)
    }

    /// Whether somebody waits for a connection: then none may be kept idle.
    pub fn is_crowded(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) != 0
    }

    /// Whether idle connections should be closed: somebody waits for one, or for a descriptor for one to another version, or
    /// there are more than a lowered limit allows.
    pub fn wants_room(&self) -> bool {
        self.is_crowded() || self.descriptors.are_scarce() || self.owed.load(Ordering::Relaxed) > 0
    }

    /// How many requests one connection may carry; `u32::MAX`: as many as come.
    pub fn most_served(&self) -> u32 {
        self.most_served.load(Ordering::Relaxed)
    }

    /// Requests that wait for a connection.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl Turn {
    /// Waits until a place is free; first come, first served.
    pub async fn place(&self) -> Place {
        let permit = Arc::clone(&self.0.places).acquire_owned().await;
        Place {
            capacity: Arc::clone(&self.0),
            // The semaphore is never closed.
            permit: permit.ok(),
            descriptor: None,
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Place {
    /// Takes the descriptor that its connection will need; whether there was one within `limit`.
    pub async fn take_descriptor(&mut self, limit: Duration) -> bool {
        self.descriptor = self.capacity.descriptors.take(limit).await;
        self.descriptor.is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let take_one = |owed: usize| owed.checked_sub(1);
        let owed = &self.capacity.owed;
        if owed.load(Ordering::Relaxed) > 0
            && owed
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, take_one)
                .is_ok()
            && let Some(permit) = self.permit.take()
        {
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    fn capacity(connections: u32, pending: u32) -> Arc<Capacity> {
        let limits = Limits {
            pending,
            connections,
            ..Limits::default()
        };
        Arc::new(Capacity::new(&limits, 2, Arc::default()))
    }

    fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn places_are_as_many_as_allowed_and_the_queue_as_long() {
        let capacity = capacity(2, 1);
        let held = [capacity.place().unwrap(), capacity.place().unwrap()];
        assert!(capacity.place().is_none());
        (0..4).for_each(|_| assert!(capacity.seats.enter(0)));
        let turn = capacity.queue().unwrap();
        assert!(capacity.queue().is_none() && capacity.is_crowded());
        assert_eq!(capacity.waiting(), 1);
        assert!(ready(turn.place()).is_none());
        drop(held);
        assert!(ready(turn.place()).is_some());
        drop(turn);
        assert!(!capacity.is_crowded());
    }

    #[test]
    fn who_waits_only_for_an_idle_connection_to_be_closed_takes_no_place_in_the_queue() {
        let capacity = capacity(1, 0);
        let idle = capacity.place().unwrap();
        assert!(capacity.seats.enter(1));
        let turn = capacity.queue().unwrap();
        assert!(capacity.wants_room());
        drop(idle);
        assert!(ready(turn.place()).is_some());
        assert!(capacity.seats.enter(0));
        assert!(
            capacity.queue().is_none(),
            "one is served, the other would have to wait for it"
        );
    }

    #[test]
    fn who_waits_first_is_served_first() {
        let capacity = capacity(1, 9);
        let held = capacity.place().unwrap();
        let (first, second) = (capacity.queue().unwrap(), capacity.queue().unwrap());
        let (mut first, mut second) = (pin!(first.place()), pin!(second.place()));
        let mut context = Context::from_waker(Waker::noop());
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_pending());
        drop(held);
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(first.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn a_changed_limit_takes_effect_as_connections_close() {
        let capacity = capacity(3, 9);
        let mut held: Vec<Place> = (0..3).map(|_| capacity.place().unwrap()).collect();
        let limits = |connections| Limits {
            connections,
            ..Limits::default()
        };
        assert!(!capacity.wants_room());
        capacity.set(&limits(1));
        held.pop();
        assert!(capacity.wants_room(), "one more than allowed is open");
        held.pop();
        assert!(!capacity.wants_room());
        assert!(capacity.place().is_none(), "one is still open");
        held.pop();
        held.push(capacity.place().unwrap());
        assert!(capacity.place().is_none());
        capacity.set(&limits(2));
        held.push(capacity.place().unwrap());
        capacity.set(&limits(1));
        capacity.set(&limits(2));
        held.clear();
        let again: Vec<Place> = std::iter::from_fn(|| capacity.place()).collect();
        assert_eq!(again.len(), 2);
    }
}
