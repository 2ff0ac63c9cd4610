//! How the files that may be open are shared between clients and connections to versions, over all workers and services.
//!
//! Versions have a part of their own. Beyond it, where there are many, they are lent half of what clients leave of theirs, so
//! that connections to thousands of endpoints are kept and not opened again for each request. As clients come that is called
//! in: what nobody uses first, then idle connections, and the rest when it closes. Whoever finds none left waits for one for as long as
//! connecting may take, and until then workers close idle connections, as many as are wanted. A request over a kept connection
//! touches nothing here.

use futures_util::FutureExt;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit},
    time::{Instant, timeout},
};

/// Who waits asks again this often for idle connections to be closed: one that is in use now may be idle a moment later.
const AGAIN: Duration = Duration::from_millis(50);
/// What clients leave counts beyond this many only: so many may come at once, before anything could be called in.
const MARGIN: u64 = 512;
/// Half as many clients may come and go before anything is called in, so that no connection is closed for one that is gone a
/// moment later.
const SLACK: u64 = 256;
/// Workers are not called more often than this for the sake of clients: each of them wakes up, perhaps for nothing.
const BREATH: Duration = Duration::from_millis(10);

/// The descriptors for clients and for connections to versions.
#[derive(Debug)]
pub struct Descriptors {
    /// For versions, lent ones included.
    free: Semaphore,
    /// How many of the clients' part versions have, in use or free.
    lent: AtomicU64,
    clients: AtomicU64,
    most_clients: AtomicU64,
    waiting: AtomicU32,
    /// Tells workers that idle connections are to be closed.
    wanted: Notify,
    /// How often that was for the sake of a version's own limit.
    by_versions: AtomicU64,
    started: Instant,
    /// When workers were last called for the sake of clients, in milliseconds since the start.
    called: AtomicU64,
}

/// A version's descriptor, while its connection is open.
#[derive(Debug)]
pub struct Descriptor {
    all: Arc<Descriptors>,
}

/// Counts down when the wait ends, however it ends.
struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Descriptors {
    /// That many for versions, and none for clients yet.
    pub fn new(versions: usize) -> Descriptors {
        Descriptors {
            free: Semaphore::new(versions.min(Semaphore::MAX_PERMITS)),
            lent: AtomicU64::new(0),
            clients: AtomicU64::new(0),
            most_clients: AtomicU64::new(0),
            waiting: AtomicU32::new(0),
            wanted: Notify::new(),
            by_versions: AtomicU64::new(0),
            started: Instant::now(),
            called: AtomicU64::new(0),
        }
    }

    /// That many for clients from now on; those that are there stay.
    pub fn allow_clients(&self, most: u64) {
        self.most_clients.store(most, Ordering::Relaxed);
        self.call_in();
    }

    /// Counts one more client. Whether there is a descriptor for it; otherwise it must not stay.
    pub fn enter(&self) -> bool {
        let others = self.clients.fetch_add(1, Ordering::AcqRel);
        if self.lent.load(Ordering::Acquire) > 0 {
            self.call_in();
        }
        let lent = self.lent.load(Ordering::Acquire);
        others.saturating_add(lent) < self.most_clients.load(Ordering::Relaxed)
    }

    /// One client less.
    pub fn leave(&self) {
        self.clients.fetch_sub(1, Ordering::AcqRel);
        if self.waiting.load(Ordering::Acquire) > 0 {
            self.lend();
        }
    }

    /// One for a version; none when all are in use and stay so for as long as `limit`.
    pub async fn take(self: &Arc<Self>, limit: Duration) -> Option<Descriptor> {
        if self.free.try_acquire().map(SemaphorePermit::forget).is_err() {
            self.wait(limit).await?;
        }
        Some(Descriptor {
            all: Arc::clone(self),
        })
    }

    #[cold]
    async fn wait(&self, limit: Duration) -> Option<()> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let _waiting = Waiting(&self.waiting);
        let mut turn = std::pin::pin!(self.free.acquire());
        let asking = async {
            loop {
                // What is lent now is somebody else's who waits for longer.
                if self.lend()
                    && let Some(permit) = turn.as_mut().now_or_never()
                {
                    return permit.ok().map(SemaphorePermit::forget);
                }
                self.wanted.notify_waiters();
                if let Ok(permit) = timeout(AGAIN, turn.as_mut()).await {
                    // The semaphore is never closed.
                    return permit.ok().map(SemaphorePermit::forget);
                }
            }
        };
        timeout(limit, asking).await.ok().flatten()
    }

    /// Half of what clients leave beyond this.
    fn half_beyond(&self, margin: u64) -> u64 {
        let most = self.most_clients.load(Ordering::Relaxed);
        let left = most.saturating_sub(self.clients.load(Ordering::Acquire));
        left.saturating_sub(margin) / 2
    }

    /// Lends versions one more; whether there is one.
    fn lend(&self) -> bool {
        let most = self.half_beyond(MARGIN + SLACK);
        let more = |lent: u64| (lent < most).then(|| lent + 1);
        let lends = self
            .lent
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .is_ok();
        if lends {
            self.free.add_permits(1);
        }
        lends
    }

    /// A version is done with one. Whether clients had lent it and need it now.
    fn is_due(&self) -> bool {
        let most = self.half_beyond(MARGIN);
        let fewer = |lent: u64| (lent > most).then(|| lent - 1);
        let update = self.lent.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer);
        update.is_ok()
    }

    /// Takes back what has been lent too much: what is free at once, the rest as connections are closed.
    #[cold]
    fn call_in(&self) {
        let over = self.overlent();
        if over == 0 {
            return;
        }
        let free = self.free.forget_permits(over);
        let taken = u64::try_from(free).unwrap_or(u64::MAX);
        let fewer = |lent: u64| Some(lent.saturating_sub(taken));
        let before = self
            .lent
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer)
            .unwrap_or_default();
        // Somebody else may have taken them back in the same moment.
        let own = taken.saturating_sub(before);
        self.free.add_permits(usize::try_from(own).unwrap_or_default());
        if free < over && self.may_call() {
            self.wanted.notify_waiters();
        }
    }

    /// Whether the last call for the sake of clients is some time ago.
    fn may_call(&self) -> bool {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let breath = u64::try_from(BREATH.as_millis()).unwrap_or(u64::MAX);
        let last = self.called.load(Ordering::Relaxed);
        now >= last + breath && self.called.swap(now, Ordering::Relaxed) == last
    }

    /// How many more versions have than they may be lent.
    fn overlent(&self) -> usize {
        let lent = self.lent.load(Ordering::Acquire);
        usize::try_from(lent.saturating_sub(self.half_beyond(MARGIN))).unwrap_or(usize::MAX)
    }

    /// How many idle connections to versions should be closed: somebody waits for their descriptors.
    pub fn excess(&self) -> usize {
        let waiting = self.waiting.load(Ordering::Acquire);
        self.overlent()
            .saturating_add(usize::try_from(waiting).unwrap_or(usize::MAX))
    }

    /// Tells workers that somebody waits for a connection to a version that may have no more, or that it has too many.
    pub fn version_wants_room(&self) {
        self.by_versions.fetch_add(1, Ordering::AcqRel);
        self.wanted.notify_waiters();
    }

    /// Calls workers whenever idle connections are to be closed.
    pub const fn wanted(&self) -> &Notify {
        &self.wanted
    }

    /// How often versions have wanted room.
    pub fn wanted_by_versions(&self) -> u64 {
        self.by_versions.load(Ordering::Acquire)
    }
}

impl Default for Descriptors {
    /// As many as anybody asks for.
    fn default() -> Descriptors {
        Descriptors::new(Semaphore::MAX_PERMITS)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if !self.all.is_due() {
            self.all.free.add_permits(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    const LONG: Duration = Duration::from_secs(60);
    /// So many clients leave before versions are lent anything.
    const LEFT: u64 = MARGIN + SLACK;

    fn shared(versions: usize, clients: u64) -> Arc<Descriptors> {
        let descriptors = Descriptors::new(versions);
        descriptors.allow_clients(clients);
        Arc::new(descriptors)
    }

    /// As many as versions get without waiting.
    fn take_all(descriptors: &Arc<Descriptors>) -> Vec<Descriptor> {
        // More than a task may do in one turn.
        let take = || {
            tokio::task::unconstrained(descriptors.take(LONG))
                .now_or_never()
                .flatten()
        };
        std::iter::from_fn(take).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_none_waits_for_one_and_says_so() {
        let descriptors = shared(1, 0);
        let held = descriptors.take(LONG).await.unwrap();
        assert_eq!(descriptors.excess(), 0);
        let waiting = tokio::spawn({
            let descriptors = Arc::clone(&descriptors);
            async move { descriptors.take(LONG).await.is_some() }
        });
        descriptors.wanted().notified().await;
        assert_eq!(descriptors.excess(), 1);
        drop(held);
        assert!(waiting.await.unwrap());
        assert_eq!(descriptors.excess(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_in_vain_gets_none() {
        let descriptors = shared(0, 0);
        assert!(descriptors.take(Duration::from_millis(300)).await.is_none());
        assert_eq!(descriptors.excess(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn versions_are_lent_half_of_what_clients_leave_beyond_a_margin() {
        let descriptors = shared(10, LEFT + 1000);
        assert_eq!(take_all(&descriptors).len(), 10 + 500);
        for _ in 0..400 {
            assert!(descriptors.enter());
        }
        assert_eq!(
            take_all(&descriptors).len(),
            10 + 428,
            "half of what is left beyond the margin"
        );
        (0..400).for_each(|_| descriptors.leave());
        assert_eq!(take_all(&descriptors).len(), 10 + 500);
        assert_eq!(take_all(&shared(10, LEFT)).len(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_clients_who_come_and_go_call_nothing_in() {
        let descriptors = shared(10, LEFT + 1000);
        let held = take_all(&descriptors);
        for _ in 0..10 {
            (0..SLACK).for_each(|_| assert!(descriptors.enter()));
            assert_eq!(descriptors.excess(), 0);
            (0..SLACK).for_each(|_| descriptors.leave());
        }
        assert_eq!(held.len(), 510);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_lent_what_a_client_leaves() {
        let descriptors = shared(0, LEFT + 4);
        (0..4).for_each(|_| assert!(descriptors.enter()));
        let mut wait = Box::pin(descriptors.take(LONG));
        assert!((&mut wait).now_or_never().is_none());
        (0..2).for_each(|_| descriptors.leave());
        assert!((&mut wait).now_or_never().flatten().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn clients_who_come_get_theirs_back_as_connections_close() {
        let all = LEFT + 100;
        let descriptors = shared(10, all);
        let mut held = take_all(&descriptors);
        let mut inside = 0;
        // Whoever is told that room is wanted closes as many as that.
        while inside < all && descriptors.enter() {
            inside += 1;
            held.truncate(held.len() - descriptors.excess());
        }
        assert_eq!((inside, held.len()), (all, 10));
        assert!(!descriptors.enter(), "there are no more than were allowed");
    }

    #[tokio::test(start_paused = true)]
    async fn what_versions_do_not_give_back_is_not_there_for_clients() {
        let all = LEFT + 100;
        let descriptors = shared(10, all);
        let held = take_all(&descriptors);
        assert_eq!((0..all).filter(|_| descriptors.enter()).count(), 818);
        assert_eq!(descriptors.excess(), 50);
        drop(held);
        assert_eq!(descriptors.excess(), 0);
        (0..all).for_each(|_| descriptors.leave());
        assert_eq!((0..=all).filter(|_| descriptors.enter()).count(), 868);
        assert_eq!(take_all(&descriptors).len(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn fewer_for_clients_call_in_what_was_lent() {
        let descriptors = shared(10, LEFT + 100);
        let mut held = take_all(&descriptors);
        descriptors.allow_clients(MARGIN + 20);
        assert_eq!(descriptors.excess(), 40);
        held.truncate(20);
        assert_eq!(descriptors.excess(), 0);
        drop(held);
        assert_eq!(take_all(&descriptors).len(), 20);
    }

    /// Several threads at once: none is lost, and none is there twice.
    #[test]
    fn whoever_comes_and_goes_there_are_as_many_descriptors_as_before() {
        for seed in 0..40 {
            let descriptors = shared(20, LEFT + 40);
            let threads: Vec<_> = (0..3u64)
                .map(|thread| {
                    let descriptors = Arc::clone(&descriptors);
                    let random = SmallRng::seed_from_u64(seed * 3 + thread);
                    std::thread::spawn(move || come_and_go(&descriptors, random))
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
            let free = u64::try_from(descriptors.free.available_permits()).unwrap();
            let lent = descriptors.lent.load(Ordering::SeqCst);
            assert_eq!(free, 20 + lent, "seed {seed}");
            let clients = (0..1000).filter(|_| descriptors.enter()).count();
            assert_eq!(clients, 808, "seed {seed}");
            assert_eq!(descriptors.free.available_permits(), 20, "seed {seed}");
        }
    }

    fn come_and_go(descriptors: &Arc<Descriptors>, mut random: SmallRng) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let runtime = runtime.unwrap();
        let _timers = runtime.enter();
        let (mut held, mut inside) = (Vec::new(), 0);
        for _ in 0..500 {
            match random.random_range(0..4) {
                0 => held.extend(descriptors.take(Duration::ZERO).now_or_never().flatten()),
                1 => drop(held.pop()),
                2 if descriptors.enter() => inside += 1,
                2 => descriptors.leave(),
                _ if inside > 0 => {
                    inside -= 1;
                    descriptors.leave();
                }
                _ => {}
            }
        }
        (0..inside).for_each(|_| descriptors.leave());
    }
}
