//! The live table of one service: one writer (control), many lock-free readers (workers).
//!
//! A [`Split`] is immutable but for its ticket: a new weight is a new `Split`, a new generation. `V` is what stands
//! behind a role (`upstream::Target`); this floor does not know it.

use super::{Ticket, pick, sticky::StickyHash};
use crate::model::{Role, Weight};
use arc_swap::{ArcSwap, Cache, Guard};
use crossbeam_utils::CachePadded;
use siphasher::sip::SipHasher13;
use std::{
    hash::Hasher,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// One generation: a weight, who is stable and who is canary, and the tickets drawn under it.
#[derive(Debug)]
pub struct Split<V> {
    /// Counts up by one with every swap of the cell's weight.
    pub generation: u64,
    /// The canary's share.
    pub weight: Weight,
    /// What serves everything the canary does not.
    pub stable: V,
    /// What is on trial; absent between rollouts.
    pub canary: Option<V>,
    /// Which keys go first in this rollout.
    pub sticky: StickyHash,
    /// Key of the ticket draws: a run can be replayed from it.
    pub key: [u64; 2],
    // Shared, so that a swap that keeps the weight goes on with the very same tickets.
    ticket: Arc<CachePadded<AtomicU64>>,
}

/// What the exact split decided for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assigned {
    /// The version's role.
    pub role: Role,
    /// The ticket's number within its generation.
    pub number: u64,
}

impl<V> Split<V> {
    /// A generation with no ticket drawn yet.
    pub fn new(
        generation: u64,
        weight: Weight,
        stable: V,
        canary: Option<V>,
        sticky: StickyHash,
        key: [u64; 2],
    ) -> Self {
        Split {
            generation,
            weight,
            stable,
            canary,
            sticky,
            key,
            ticket: Arc::default(),
        }
    }

    /// Draws the next ticket. Lock-free: retries only when another worker drew in between.
    pub fn draw(&self) -> Assigned {
        let mut word = self.ticket.load(Ordering::Relaxed);
        loop {
            let state = Ticket::unpack(word);
            let mut hasher = SipHasher13::new_with_keys(self.key[0], self.key[1]);
            hasher.write_u64(state.number);
            let (role, next) = pick(state, self.weight, hasher.finish());
            match self
                .ticket
                .compare_exchange_weak(word, next.pack(), Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => {
                    return Assigned {
                        role,
                        number: state.number,
                    };
                }
                Err(seen) => word = seen,
            }
        }
    }

    /// Tickets drawn so far in this generation.
    pub fn ticket(&self) -> Ticket {
        Ticket::unpack(self.ticket.load(Ordering::Relaxed))
    }

    /// Continues another generation's tickets: for a swap that leaves weight and key alone.
    #[must_use]
    pub fn continuing(mut self, from: &Split<V>) -> Self {
        self.ticket = Arc::clone(&from.ticket);
        self
    }

    /// What stands behind a role; stable's when there is no canary.
    pub fn target(&self, role: Role) -> &V {
        match role {
            Role::Stable => &self.stable,
            Role::Canary => self.canary.as_ref().unwrap_or(&self.stable),
        }
    }
}

/// Whether a trip was new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trip {
    /// This call tripped the cell.
    Now,
    /// It was tripped before.
    Already,
}

/// One reader's copy of the generation in force, looked up only when that has changed.
pub type Followed<V> = Cache<Arc<ArcSwap<Split<V>>>, Arc<Split<V>>>;

/// The live table of one service.
#[derive(Debug)]
pub struct SplitCell<V> {
    live: Arc<ArcSwap<Split<V>>>,
    tripped: AtomicBool,
}

impl<V> SplitCell<V> {
    /// A cell that starts with `split`, not tripped.
    pub fn new(split: Split<V>) -> Self {
        SplitCell {
            live: Arc::new(ArcSwap::from_pointee(split)),
            tripped: AtomicBool::new(false),
        }
    }

    /// The generation in force; a request loads it once and keeps it to its end.
    pub fn load(&self) -> Guard<Arc<Split<V>>> {
        self.live.load()
    }

    /// The generation in force, to keep for longer than a request.
    pub fn load_full(&self) -> Arc<Split<V>> {
        self.live.load_full()
    }

    /// For a reader that asks often: it touches nothing shared as long as the generation stays.
    pub fn follow(&self) -> Followed<V> {
        Cache::new(Arc::clone(&self.live))
    }

    /// Control's side: from the next load on, every worker splits by `split`.
    pub fn publish(&self, split: Split<V>) -> Arc<Split<V>> {
        self.live.swap(Arc::new(split))
    }

    /// The proxy's side: sends everything to stable until control has confirmed. One way.
    pub fn trip(&self) -> Trip {
        if self.tripped.swap(true, Ordering::AcqRel) {
            Trip::Already
        } else {
            Trip::Now
        }
    }

    /// Whether everything goes to stable for now.
    pub fn is_tripped(&self) -> bool {
        // Pairs with `confirm_trip`: a later load of the generation cannot see an earlier one.
        self.tripped.load(Ordering::Acquire)
    }

    /// Control's side: the trip is known and acted upon; the published weight counts again.
    pub fn confirm_trip(&self) {
        self.tripped.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(generation: u64, weight: &str) -> Split<&'static str> {
        Split::new(
            generation,
            weight.parse().unwrap(),
            "v1",
            Some("v2"),
            StickyHash::new(b"", ""),
            [generation, 9],
        )
    }

    #[test]
    fn the_bound_holds_with_1_to_64_threads_and_changing_weights() {
        for threads in [1, 2, 7, 64] {
            for weight in ["0.01", "1", "5", "15", "33.33", "40", "99.9", "2/7"] {
                let cell = SplitCell::new(split(1, weight));
                let counts: Vec<_> = (0..4).map(|_| AtomicU64::new(0)).collect();
                let per_thread = 6400 / threads;
                std::thread::scope(|scope| {
                    for _ in 0..threads {
                        scope.spawn(|| {
                            for _ in 0..per_thread {
                                let split = cell.load();
                                if split.draw().role == Role::Canary {
                                    counts[usize::try_from(split.generation).unwrap()]
                                        .fetch_add(1, Ordering::Relaxed);
                                }
                            }
                        });
                    }
                    let first = cell.publish(split(2, "30"));
                    assert_eq!(first.generation, 1);
                    // Readers that still hold generation 1 go on drawing from it; both keep their bound.
                    drop(first);
                });
                let live = cell.load_full();
                let error = live.ticket().error(live.weight);
                assert!(error.abs() < 1.0, "{weight} with {threads} threads: {error}");
                assert_eq!(
                    live.ticket().canary_count(live.weight),
                    counts[2].load(Ordering::Relaxed)
                );
            }
        }
    }

    #[test]
    fn a_trip_is_one_way_until_confirmed() {
        let cell = SplitCell::new(split(1, "5"));
        assert_eq!(
            (cell.is_tripped(), cell.trip(), cell.trip()),
            (false, Trip::Now, Trip::Already)
        );
        assert!(cell.is_tripped());
        cell.confirm_trip();
        assert!(!cell.is_tripped());
    }

    #[test]
    fn a_reload_that_leaves_the_weight_alone_keeps_the_tickets() {
        let first = split(1, "5");
        for _ in 0..33 {
            first.draw();
        }
        assert_eq!(split(1, "5").continuing(&first).ticket(), first.ticket());
    }

    #[test]
    fn the_same_key_replays_the_same_choices() {
        let (a, b) = (split(1, "40"), split(1, "40"));
        for _ in 0..1000 {
            assert_eq!(a.draw(), b.draw());
        }
    }
}
