//! Which idle connections are closed where somebody waits: a place, or a descriptor, is worth more than a kept connection.
//!
//! As many as are wanted, for each may have to be opened again, and those that have been idle for longest.

use super::{
    super::{Capacity, Descriptors},
    Connections, Pools,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How many idle connections are looked at for each that is closed, and at how many endpoints unless there are too few.
const TO_CHOOSE_FROM: usize = 8;
const MOST_LOOKED_AT: usize = 1024;
/// For how long nobody looks for more when there were too few.
const BREATH: Duration = Duration::from_millis(10);

/// An idle connection to this endpoint, and since when.
type Rest<'a, B> = (Instant, &'a Connections<B>);

impl<B> Pools<B> {
    /// Closes idle connections where somebody waits: a place, or a descriptor, is worth more than a kept connection. As many
    /// as are wanted, of those that have been idle for long: each one may have to be opened again. Whether there were any.
    pub fn make_room(&self, descriptors: &Descriptors, now: Instant) -> bool {
        let wanted = descriptors.wanted_by_versions();
        let heard = self.heard.replace(wanted) != wanted;
        let places = heard && self.make_places(now);
        let excess = descriptors.excess();
        let just_now = |then: Instant| now.saturating_duration_since(then) < BREATH;
        let looks = excess > 0 && !self.too_few.get().is_some_and(just_now);
        looks && self.close_some(excess, now) || places
    }

    /// Closes idle connections to versions that may have no more. Whether there were any.
    pub(super) fn make_places(&self, now: Instant) -> bool {
        let all = self.all.borrow();
        let mut crowded: Vec<(&Arc<Capacity>, Vec<Rest<'_, B>>)> = Vec::new();
        for connections in all.iter() {
            let capacity = &connections.endpoint.capacity;
            let excess = capacity.excess();
            if excess == 0 {
                continue;
            }
            let rests = connections.rests(now, excess);
            match crowded.iter_mut().find(|(known, _)| Arc::ptr_eq(known, capacity)) {
                Some((_, known)) => known.extend(rests),
                None => crowded.push((capacity, rests.collect())),
            }
        }
        let mut any = false;
        for (capacity, rests) in crowded {
            any |= close_longest(rests, capacity.excess(), now);
        }
        any
    }

    /// Closes so many idle connections to any version, the longest idle of a few: to look at all of them each time would take
    /// longer than to open one. Whether there were any.
    fn close_some(&self, count: usize, now: Instant) -> bool {
        let all = self.all.borrow();
        let enough = count.saturating_mul(TO_CHOOSE_FROM);
        let mut rests = Vec::new();
        for looked in 0..all.len() {
            if rests.len() >= enough || looked >= MOST_LOOKED_AT && rests.len() >= count {
                break;
            }
            let at = self.hand.get() % all.len();
            self.hand.set(at + 1);
            let Some(connections) = all.get(at) else { break };
            rests.extend(connections.rests(now, count));
        }
        if rests.len() < count {
            self.too_few.set(Some(now));
        }
        close_longest(rests, count, now)
    }
}

/// Closes so many, those that have been idle for longest. Whether there were any.
fn close_longest<B>(mut rests: Vec<Rest<'_, B>>, count: usize, now: Instant) -> bool {
    if rests.len() > count {
        rests.select_nth_unstable_by_key(count, |(since, _)| *since);
        rests.truncate(count);
    }
    for (_, connections) in &rests {
        connections.close_longest_idle(now);
    }
    !rests.is_empty()
}

impl<B> Connections<B> {
    /// Since when each idle connection has been so, those of HTTP/1.1 longest first and no more than `most` of them.
    fn rests(&self, now: Instant, most: usize) -> impl Iterator<Item = Rest<'_, B>> {
        let (mut idle, mut shared) = (self.idle.borrow_mut(), self.shared.borrow_mut());
        // What the other side has closed makes no room.
        idle.retain(|idle| !idle.kept.sender.is_closed());
        shared.retain(|shared| !shared.is_closed());
        let mut since: Vec<_> = idle.iter().take(most).map(|idle| idle.since).collect();
        since.extend(shared.iter().filter_map(|shared| shared.empty_since(now)));
        since.into_iter().map(move |since| (since, self))
    }

    /// Closes the connection of HTTP/1.1 that has been idle for longest, or the one of HTTP/2 that nobody has been on for
    /// longest.
    fn close_longest_idle(&self, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        if !idle.is_empty() {
            idle.remove(0);
            return;
        }
        drop(idle);
        let mut shared = self.shared.borrow_mut();
        let empty = shared.iter().enumerate();
        let longest = empty
            .filter_map(|(at, shared)| Some((shared.empty_since(now)?, at)))
            .min();
        if let Some((_, at)) = longest {
            shared.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{super::Endpoint, Idle, Kept, Pools},
        *,
    };
    use crate::config::Limits;
    use bytes::Bytes;
    use futures_util::FutureExt;
    use http_body_util::Empty;
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use std::{rc::Rc, sync::Weak};
    use tokio::{io::DuplexStream, task::LocalSet};

    const LONG: Duration = Duration::from_secs(60);
    type Body = Empty<Bytes>;

    /// A worker's idle connections to `endpoints` of one version, one each, that have rested for 1, 2, 3 … seconds.
    struct Resting {
        pools: Pools<Body>,
        endpoints: Vec<Rc<Connections<Body>>>,
        capacity: Arc<Capacity>,
        descriptors: Arc<Descriptors>,
        now: Instant,
        /// Where the connections lead to.
        others: Vec<DuplexStream>,
    }

    impl Resting {
        async fn new(endpoints: u64, connections: u32, files: usize) -> Resting {
            let limits = Limits {
                connections,
                ..Limits::default()
            };
            let descriptors = Arc::new(Descriptors::new(files));
            let capacity = Arc::new(Capacity::new(&limits, 1, Arc::clone(&descriptors)));
            let mut resting = Resting {
                pools: Pools::default(),
                endpoints: Vec::new(),
                capacity: Arc::clone(&capacity),
                descriptors,
                now: Instant::now() + LONG,
                others: Vec::new(),
            };
            for rests in 1..=endpoints {
                let url = format!("http://127.0.0.1:{rests}").parse().unwrap();
                let endpoint = Endpoint::of(url, None, Weak::new(), Arc::clone(&capacity));
                let connections = resting.pools.of(&Arc::new(endpoint));
                let (io, other) = tokio::io::duplex(1024);
                let (sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
                let mut place = capacity.place().unwrap();
                assert!(place.take_descriptor(LONG).await);
                tokio::task::spawn_local(async move {
                    let _place = place;
                    connection.await
                });
                let kept = Kept { sender, served: 1 };
                let since = resting.now - Duration::from_secs(rests);
                connections.idle.borrow_mut().push(Idle { kept, since });
                resting.endpoints.push(connections);
                resting.others.push(other);
            }
            resting
        }

        fn make_room(&self) -> bool {
            self.pools.make_room(&self.descriptors, self.now)
        }

        /// Whose connections are still there, by the seconds they have rested.
        fn left(&self) -> Vec<usize> {
            let kept = |at: &usize| !self.endpoints[*at].idle.borrow().is_empty();
            (0..self.endpoints.len()).filter(kept).map(|at| at + 1).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_make_way_as_wait_for_a_place_the_longest_idle_first() {
        let test = async {
            let resting = Resting::new(5, 5, 100).await;
            assert!(!resting.make_room());
            let turns: Vec<_> = (0..2).map(|_| resting.capacity.queue().unwrap()).collect();
            assert!(resting.make_room());
            assert_eq!(resting.left(), [1, 2, 3]);
            for turn in &turns {
                turn.place().await;
            }
            assert!(!resting.make_room());
            assert_eq!(resting.left(), [1, 2, 3]);
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_make_way_as_wait_for_a_descriptor_the_longest_idle_first() {
        let test = async {
            let resting = Resting::new(5, 100, 5).await;
            let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(resting.descriptors.take(LONG))).collect();
            assert!(waiting.iter_mut().all(|wait| wait.now_or_never().is_none()));
            assert!(resting.make_room());
            assert_eq!(resting.left(), [1, 2, 3]);
            for wait in waiting {
                assert!(wait.await.is_some());
            }
            assert!(!resting.make_room());
            assert_eq!(resting.left(), [1, 2, 3]);
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn of_very_many_a_few_are_looked_at_each_time_and_in_the_end_all() {
        let test = async {
            let mut resting = Resting::new(50, 100, 50).await;
            for already in 0..50 {
                assert_eq!(resting.left().len(), 50 - already);
                let mut wait = Box::pin(resting.descriptors.take(LONG));
                assert!((&mut wait).now_or_never().is_none());
                assert!(resting.make_room());
                // It stays in use.
                std::mem::forget(wait.await.unwrap());
            }
            let mut wait = Box::pin(resting.descriptors.take(LONG));
            assert!((&mut wait).now_or_never().is_none());
            assert!(!resting.make_room());
            resting.endpoints.clear();
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_other_side_has_closed_makes_no_room() {
        let test = async {
            let mut resting = Resting::new(3, 3, 100).await;
            resting.others.pop();
            // Its place is free at once, and somebody else's.
            let _taken = resting.capacity.queue().unwrap().place().await;
            let turn = resting.capacity.queue().unwrap();
            assert!(resting.make_room());
            turn.place().await;
            assert_eq!(resting.left(), [1]);
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_only_idle_connection_is_found_among_thousands_of_endpoints() {
        let test = async {
            let resting = Resting::new(1, 10_000, 1).await;
            let busy = |port: u16| {
                let url = format!("http://127.0.0.1:{port}").parse().unwrap();
                let endpoint = Endpoint::of(url, None, Weak::new(), Arc::clone(&resting.capacity));
                let endpoint = Arc::new(endpoint);
                resting.pools.of(&endpoint);
                endpoint
            };
            let _busy: Vec<_> = (2000..6000).map(busy).collect();
            resting.pools.hand.set(1);
            let mut wait = Box::pin(resting.descriptors.take(LONG));
            assert!((&mut wait).now_or_never().is_none());
            assert!(resting.make_room());
            assert!(wait.await.is_some());
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_that_nobody_publishes_any_more_are_not_walked_over() {
        let test = async {
            let resting = Resting::new(3, 100, 3).await;
            let published = |at: &usize| Arc::clone(resting.endpoints[*at].endpoint());
            let _published: Vec<_> = [0, 2].iter().map(published).collect();
            resting.pools.sweep(resting.now);
            assert_eq!(resting.pools.all.borrow().len(), 2);
        };
        LocalSet::new().run_until(test).await;
    }
}
