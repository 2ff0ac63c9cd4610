//! How much of a version may be used at once, over all workers: requests in flight, connections, requests that wait for one.
//!
//! Each open connection has a place, taken when it is opened and given back when its task ends; a request over a kept
//! connection touches nothing here. Whoever finds none free waits in turn, and says so: workers with idle connections then
//! close them, as they do when there are more than a lowered limit allows. A place that comes free is the one's who has waited
//! longest, who from that moment on waits no more, seen or not: else the queue would be full of requests that are served.

use super::{
    descriptors::{Descriptor, Descriptors},
    seats::Seats,
};
use crate::config::Limits;
use std::{
    cell::Cell,
    collections::BTreeMap,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

/// What a version may use. Shared by all workers.
#[derive(Debug)]
pub struct Capacity {
    /// Requests in flight.
    pub seats: Seats,
    /// Free places. Whoever adds holds the queue, and nobody waits then.
    free: AtomicU32,
    /// Places that a lowered limit still wants back. Whoever changes it holds the queue.
    owed: AtomicU32,
    queue: Mutex<Queue>,
    /// How many wait in the queue. Whoever changes it holds the queue.
    waiting: AtomicU32,
    most_waiting: AtomicU32,
    /// Requests on one connection.
    most_served: AtomicU32,
    /// What all versions share, and what tells workers that somebody waits.
    descriptors: Arc<Descriptors>,
}

/// Who waits for a place.
#[derive(Debug)]
struct Queue {
    /// How many places there are in all.
    allowed: u32,
    /// The next one's number.
    next: u64,
    /// By their numbers, longest first; what wakes them, which is nothing until they have looked.
    waiters: BTreeMap<u64, Waker>,
}

/// One open connection's place among those allowed.
#[derive(Debug)]
pub struct Place {
    capacity: Arc<Capacity>,
    descriptor: Option<Descriptor>,
}

/// One request's turn in the queue for a connection. One that is not in the queue any more and has neither left nor seen its
/// place has one.
#[derive(Debug)]
pub struct Turn {
    capacity: Arc<Capacity>,
    number: u64,
    /// It has left, or seen its place.
    over: Cell<bool>,
}

impl Capacity {
    /// What these limits allow `workers` together; its connections are among these of the process.
    pub fn new(limits: &Limits, workers: usize, descriptors: Arc<Descriptors>) -> Capacity {
        Capacity {
            seats: Seats::new(workers, limits.requests),
            free: AtomicU32::new(limits.connections),
            owed: AtomicU32::new(0),
            queue: Mutex::new(Queue {
                allowed: limits.connections,
                next: 0,
                waiters: BTreeMap::new(),
            }),
            waiting: AtomicU32::new(0),
            most_waiting: AtomicU32::new(limits.pending),
            most_served: AtomicU32::new(limits.requests_per_connection.unwrap_or(u32::MAX)),
            descriptors,
        }
    }

    /// These limits hold from now on; what is in use or waits stays, and connections that are too many go as they fall idle.
    pub fn set(&self, limits: &Limits) {
        self.seats.set_limit(limits.requests);
        self.most_waiting.store(limits.pending, Ordering::Relaxed);
        let served = limits.requests_per_connection.unwrap_or(u32::MAX);
        self.most_served.store(served, Ordering::Relaxed);
        let wanted = limits.connections;
        let mut queue = self.lock();
        let owed = self.owed.load(Ordering::Relaxed);
        let mut woken = Vec::new();
        let fewer = queue.allowed.saturating_sub(wanted);
        if fewer > 0 {
            let update = |free: u32| Some(free.saturating_sub(fewer));
            let free = self
                .free
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
            let taken = free.unwrap_or_default().min(fewer);
            self.owed
                .store(owed.saturating_add(fewer - taken), Ordering::Relaxed);
        } else {
            let mut more = wanted - queue.allowed;
            // What is owed is forgiven first.
            let forgiven = owed.min(more);
            self.owed.store(owed - forgiven, Ordering::Relaxed);
            more -= forgiven;
            while more > 0
                && let Some(waker) = self.serve(&mut queue)
            {
                woken.push(waker);
                more -= 1;
            }
            self.free.fetch_add(more, Ordering::AcqRel);
        }
        queue.allowed = wanted;
        drop(queue);
        woken.into_iter().for_each(Waker::wake);
        if fewer > 0 {
            self.descriptors.version_wants_room();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_free(&self) -> bool {
        let take_one = |free: u32| free.checked_sub(1);
        let taken = self
            .free
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take_one);
        taken.is_ok()
    }

    /// A place for one more connection, if one is free; then nobody waits for it.
    pub fn place(self: &Arc<Self>) -> Option<Place> {
        self.take_free().then(|| self.taken())
    }

    fn taken(self: &Arc<Self>) -> Place {
        Place {
            capacity: Arc::clone(self),
            descriptor: None,
        }
    }

    /// Takes a turn in the queue, unless it is full. It is not for whoever waits only until another worker has closed an idle
    /// connection, nor for whoever finds that a place has come free.
    pub fn queue(self: &Arc<Self>) -> Option<Turn> {
        let mut queue = self.lock();
        let number = queue.next;
        queue.next += 1;
        let waits = !self.take_free();
        if waits {
            let most = self.most_waiting.load(Ordering::Relaxed);
            if self.waiting() >= most && !self.has_idle(&queue) {
                return None;
            }
            queue.waiters.insert(number, Waker::noop().clone());
            self.count(&queue);
        }
        drop(queue);
        if waits {
            self.descriptors.version_wants_room();
        }
        Some(Turn {
            capacity: Arc::clone(self),
            number,
            over: Cell::new(false),
        })
    }

    /// Gives a place to whoever has waited longest; what wakes that one. None: nobody waits.
    fn serve(&self, queue: &mut Queue) -> Option<Waker> {
        let (_, waker) = queue.waiters.pop_first()?;
        self.count(queue);
        Some(waker)
    }

    fn count(&self, queue: &Queue) {
        let waiting = u32::try_from(queue.waiters.len()).unwrap_or(u32::MAX);
        self.waiting.store(waiting, Ordering::Release);
    }

    /// A place is not needed any more.
    fn give_back(&self) {
        let mut queue = self.lock();
        let owed = self.owed.load(Ordering::Relaxed);
        if owed > 0 {
            self.owed.store(owed - 1, Ordering::Relaxed);
        } else if let Some(waker) = self.serve(&mut queue) {
            drop(queue);
            waker.wake();
        } else {
            self.free.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether there are connections for all requests in flight, this one among them: then one that is not free is idle.
    fn has_idle(&self, queue: &Queue) -> bool {
        self.seats.taken() <= u64::from(queue.allowed)
    }

    /// Whether somebody waits for a connection: then one that comes free is not kept idle.
    pub fn is_crowded(&self) -> bool {
        self.waiting() != 0
    }

    /// How many idle connections should be closed: somebody waits for their places, or there are more than a lowered limit
    /// allows.
    pub fn excess(&self) -> usize {
        let owed = self.owed.load(Ordering::Relaxed);
        usize::try_from(self.waiting().saturating_add(owed)).unwrap_or(usize::MAX)
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
    /// Waits for a place, which it gets once; first come, first served.
    pub async fn place(&self) -> Place {
        poll_fn(|cx| self.poll_place(cx)).await
    }

    fn poll_place(&self, cx: &Context<'_>) -> Poll<Place> {
        if self.over.get() {
            return Poll::Pending;
        }
        let mut queue = self.capacity.lock();
        let Some(wakes) = queue.waiters.get_mut(&self.number) else {
            self.over.set(true);
            return Poll::Ready(self.capacity.taken());
        };
        let before = std::mem::replace(wakes, cx.waker().clone());
        drop(queue);
        // It may hold the last of another task, which is not to end within the lock.
        drop(before);
        Poll::Pending
    }

    /// Leaves the queue for having found something else. Whether it was still there: otherwise it has its place or has left.
    pub fn leave(&self) -> bool {
        if self.over.get() {
            return false;
        }
        let mut queue = self.capacity.lock();
        let left = queue.waiters.remove(&self.number);
        self.capacity.count(&queue);
        drop(queue);
        self.over.set(left.is_some());
        left.is_some()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.over.get() && !self.leave() {
            // It has been given a place that it will never see.
            self.capacity.give_back();
        }
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
        // First, for whoever is given the place needs one at once.
        drop(self.descriptor.take());
        self.capacity.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::SmallRng};
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
        assert!(capacity.excess() > 0);
        drop(idle);
        let _served = ready(turn.place()).unwrap();
        assert!(capacity.seats.enter(0));
        assert!(
            capacity.queue().is_none(),
            "one is served, the other would have to wait for it"
        );
    }

    /// A version that may have one connection, which is taken, with so many requests that none is idle.
    fn taken(pending: u32) -> (Arc<Capacity>, Place) {
        let capacity = capacity(1, pending);
        (0..9).for_each(|_| assert!(capacity.seats.enter(0)));
        let place = capacity.place().unwrap();
        (capacity, place)
    }

    #[test]
    fn who_has_been_given_a_place_waits_no_more_whether_it_has_seen_it_or_not() {
        let (capacity, held) = taken(1);
        let first = capacity.queue().unwrap();
        let mut given = Box::pin(first.place());
        assert!(ready(&mut given).is_none() && capacity.queue().is_none());
        drop(held);
        assert!(capacity.place().is_none(), "it is the first one's");
        assert_eq!(capacity.waiting(), 0);
        let second = capacity.queue().expect("nobody else waits");
        assert!(capacity.queue().is_none());
        assert!(ready(second.place()).is_none());
        let held = ready(&mut given).unwrap();
        drop(given);
        drop(first);
        assert_eq!(capacity.waiting(), 1, "the second one");
        drop(held);
        assert!(ready(second.place()).is_some());
    }

    #[test]
    fn who_finds_a_place_in_the_queue_has_not_waited() {
        let (capacity, held) = taken(0);
        assert!(capacity.queue().is_none());
        // It comes free between two looks.
        drop(held);
        let turn = capacity.queue().unwrap();
        assert!(!capacity.is_crowded() && capacity.place().is_none());
        let held = ready(turn.place()).unwrap();
        drop(turn);
        assert!(capacity.place().is_none());
        drop(held);
        drop(capacity.queue().unwrap());
        assert!(capacity.place().is_some(), "it was not wanted");
    }

    #[test]
    fn a_place_given_to_a_request_that_went_away_is_for_the_next_one() {
        let (capacity, held) = taken(3);
        let turns: Vec<Turn> = (0..3).map(|_| capacity.queue().unwrap()).collect();
        let [leaves, away, stays] = <[Turn; 3]>::try_from(turns).unwrap();
        assert!(ready(leaves.place()).is_none() && ready(stays.place()).is_none());
        drop(away);
        assert_eq!(capacity.waiting(), 2);
        drop(held);
        assert_eq!(capacity.waiting(), 1);
        drop(leaves);
        assert_eq!(capacity.waiting(), 0);
        let held = ready(stays.place()).unwrap();
        drop(stays);
        assert!(capacity.place().is_none());
        drop(held);
        assert!(capacity.place().is_some() && !capacity.is_crowded());
    }

    #[test]
    fn no_request_is_refused_while_there_is_room_for_it_however_they_meet() {
        let (capacity, held) = taken(2);
        drop(held);
        // One has the place, two wait: there is room for all three at any time.
        let together = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for thread in 0..3_u32 {
                let (capacity, together) = (&capacity, &together);
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    together.wait();
                    for round in 0..3000 {
                        let place = capacity.place().or_else(|| {
                            let turn = capacity.queue().expect("there is room");
                            // Now and then one goes away, whether it has been given a place or not.
                            let leaves = (round + thread) % 3 == 0;
                            ready(turn.place()).or_else(|| (!leaves).then(|| runtime.block_on(turn.place())))
                        });
                        // Others come meanwhile.
                        std::thread::yield_now();
                        drop(place);
                    }
                });
            }
        });
        assert_eq!(capacity.waiting(), 0);
        let left = capacity.place();
        assert!(
            left.is_some() && capacity.place().is_none(),
            "one place, as before"
        );
    }

    /// One worker's requests, each in one of the ways in which a request meets a version at its limit. `most`: more places than
    /// there may ever be. Whoever waits does so until it is served, or goes away after a few looks.
    async fn crowd(capacity: Arc<Capacity>, held: Arc<AtomicU32>, most: u32, seed: u64) {
        let requests = (0..6).map(|request| {
            let (capacity, held) = (&capacity, &held);
            let mut dice = SmallRng::seed_from_u64(seed ^ request << 32);
            async move {
                for _ in 0..60 {
                    let place = match capacity.place() {
                        Some(place) => Some(place),
                        None => {
                            let turn = capacity.queue().expect("the queue is long enough");
                            match dice.random_range(0..4) {
                                0 => Some(turn.place().await),
                                1 => await_briefly(turn.place(), dice.random_range(0..4)).await,
                                2 => {
                                    let found = await_briefly(turn.place(), dice.random_range(0..2)).await;
                                    // It has found something else, unless it has a place by now.
                                    let served = found.is_none() && !turn.leave();
                                    if served { Some(turn.place().await) } else { found }
                                }
                                _ => None,
                            }
                        }
                    };
                    if place.is_some() {
                        assert!(
                            held.fetch_add(1, Ordering::SeqCst) < most,
                            "a place was given twice"
                        );
                        (0..dice.random_range(0..3)).for_each(|_| std::thread::yield_now());
                        if dice.random_bool(0.5) {
                            tokio::task::yield_now().await;
                        }
                        held.fetch_sub(1, Ordering::SeqCst);
                    }
                }
            }
        });
        futures_util::future::join_all(requests).await;
    }

    /// What comes within so many looks.
    async fn await_briefly<T>(future: impl Future<Output = T>, looks: u32) -> Option<T> {
        let mut future = pin!(future);
        for _ in 0..looks {
            if let Some(value) = ready(future.as_mut()) {
                return Some(value);
            }
            tokio::task::yield_now().await;
        }
        None
    }

    #[test]
    fn no_place_is_lost_or_given_twice_and_nobody_is_forgotten_whoever_goes_away_and_whatever_is_allowed() {
        for seed in 0..60 {
            let mut dice = SmallRng::seed_from_u64(seed);
            let most = dice.random_range(1..5);
            let (capacity, held) = (capacity(most, 1000), Arc::new(AtomicU32::new(0)));
            let (done, ends) = std::sync::mpsc::channel();
            let workers = [0, 1, 2].map(|worker| {
                let (capacity, held, done) = (Arc::clone(&capacity), Arc::clone(&held), done.clone());
                std::thread::spawn(move || {
                    // Goes when the thread ends, however it does.
                    let _done: std::sync::mpsc::Sender<()> = done;
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    runtime.block_on(crowd(capacity, held, most, seed << 8 | worker));
                })
            });
            drop(done);
            let allow = |connections| {
                capacity.set(&Limits {
                    pending: 1000,
                    connections,
                    ..Limits::default()
                });
            };
            let changes = dice.random_range(0..40);
            (0..changes).for_each(|_| {
                allow(dice.random_range(0..=most));
                std::thread::yield_now();
            });
            allow(most);
            let ended = ends.recv_timeout(Duration::from_secs(20));
            let nobody_waits = Err(std::sync::mpsc::RecvTimeoutError::Disconnected);
            assert_eq!(ended, nobody_waits, "seed {seed}: {capacity:?}");
            for worker in workers {
                assert!(worker.join().is_ok(), "seed {seed}: it says what is wrong");
            }
            assert_eq!(
                (capacity.waiting(), held.load(Ordering::SeqCst)),
                (0, 0),
                "seed {seed}"
            );
            let left: Vec<Place> = std::iter::from_fn(|| capacity.place()).collect();
            assert_eq!(u32::try_from(left.len()), Ok(most), "seed {seed}: {capacity:?}");
            assert!(capacity.excess() == 0, "seed {seed}");
        }
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
        assert!(capacity.excess() == 0);
        capacity.set(&limits(1));
        held.pop();
        assert!(capacity.excess() > 0, "one more than allowed is open");
        held.pop();
        assert!(capacity.excess() == 0);
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
