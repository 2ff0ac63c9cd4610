//! Requests in flight at a version, exactly limited over all workers, without a shared counter.
//!
//! Each worker counts in a cell of its own, which nobody else writes. Far below the limit that is all: as long as the sum
//! was below three quarters of the limit when somebody last looked, a worker with less than its small share goes on without
//! looking. From there on each one who enters adds up all cells, its own request included, and leaves again when the sum is
//! above the limit. Every cell is written before the others are read, in one order for all, so of two who take the last seat
//! at once at least one sees the other: the limit is never passed.

use crate::metrics::part_of;
use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};

/// Nobody needs to look.
const FAR: u8 = 0;
/// It was near the limit and may not be any more: everybody looks.
const LEAVING: u8 = 1;
/// Everybody looks.
const NEAR: u8 = 2;

/// See the module.
#[derive(Debug)]
pub struct Seats {
    cells: Box<[CachePadded<AtomicU32>]>,
    /// Read by all, written rarely.
    state: AtomicU8,
    limit: AtomicU32,
    /// What a worker may have without looking while the limit is far.
    share: AtomicU32,
}

impl Seats {
    /// So many seats, for so many workers.
    pub fn new(workers: usize, limit: u32) -> Seats {
        let seats = Seats {
            cells: (0..workers.max(1)).map(|_| CachePadded::default()).collect(),
            state: AtomicU8::new(NEAR),
            limit: AtomicU32::new(0),
            share: AtomicU32::new(0),
        };
        seats.set_limit(limit);
        seats
    }

    /// There are so many seats from now on; who has one keeps it.
    pub fn set_limit(&self, limit: u32) {
        let workers = u32::try_from(self.cells.len()).unwrap_or(u32::MAX);
        self.share.store(0, SeqCst);
        self.state.store(NEAR, SeqCst);
        self.limit.store(limit, SeqCst);
        self.share.store(limit / workers.saturating_mul(8), SeqCst);
    }

    /// Takes a seat, if one is left. Only `worker` itself calls this.
    pub fn enter(&self, worker: usize) -> bool {
        let cell = part_of(&self.cells, worker);
        let mine = cell.load(SeqCst) + 1;
        cell.store(mine, SeqCst);
        if mine < self.share.load(SeqCst) && self.state.load(SeqCst) == FAR {
            return true;
        }
        self.look(cell, mine)
    }

    #[cold]
    fn look(&self, cell: &AtomicU32, mine: u32) -> bool {
        let (taken, limit) = (self.taken(), u64::from(self.limit.load(SeqCst)));
        if taken > limit {
            cell.store(mine - 1, SeqCst);
            return false;
        }
        if self.is_near(taken) && self.state.load(SeqCst) != NEAR {
            self.state.store(NEAR, SeqCst);
        }
        true
    }

    /// Gives a seat back. Only `worker` itself calls this, once for each that was taken.
    pub fn leave(&self, worker: usize) {
        let cell = part_of(&self.cells, worker);
        cell.store(cell.load(SeqCst).saturating_sub(1), SeqCst);
    }

    /// Seats taken right now.
    pub fn taken(&self) -> u64 {
        self.cells.iter().map(|cell| u64::from(cell.load(SeqCst))).sum()
    }

    fn is_near(&self, taken: u64) -> bool {
        // Twice what all workers together may take without looking.
        let margin = 2 * u64::from(self.share.load(SeqCst)) * self.cells.len() as u64;
        taken + margin >= u64::from(self.limit.load(SeqCst))
    }

    /// Called now and then: after two calls with room between them workers need not look any more. Two, so that whoever was
    /// looking at the first has long said what it saw.
    pub fn relax(&self) {
        if self.is_near(self.taken()) {
            return;
        }
        let state = self.state.load(SeqCst);
        if state != FAR {
            let next = if state == NEAR { LEAVING } else { FAR };
            let _ = self.state.compare_exchange(state, next, SeqCst, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn the_limit_is_reached_and_never_passed_by_one_worker() {
        let seats = Seats::new(4, 10);
        assert_eq!((0..20).filter(|_| seats.enter(1)).count(), 10);
        assert!(!seats.enter(2));
        seats.leave(1);
        assert!(seats.enter(3) && !seats.enter(1));
        assert_eq!(seats.taken(), 10);
    }

    #[test]
    fn a_quiet_version_is_not_looked_at_and_a_busy_one_is_again() {
        let seats = Seats::new(2, 160);
        seats.relax();
        seats.relax();
        assert_eq!(seats.state.load(SeqCst), FAR);
        // One worker alone fills it: beyond its share it looks, so nothing is passed.
        assert_eq!((0..200).filter(|_| seats.enter(0)).count(), 160);
        assert_eq!(seats.state.load(SeqCst), NEAR);
        assert!(!seats.enter(1), "the other one looks as well");
    }

    #[test]
    fn the_limit_is_never_passed_by_many_at_once() {
        for (workers, limit) in [(4, 3), (4, 100), (3, 96)] {
            let seats = Seats::new(workers, limit);
            let (refused, inside) = (AtomicU64::new(0), AtomicU64::new(0));
            std::thread::scope(|scope| {
                for worker in 0..workers {
                    let (seats, refused, inside) = (&seats, &refused, &inside);
                    scope.spawn(move || {
                        let mut held = 0u32;
                        for round in 0u32..30_000 {
                            if seats.enter(worker) {
                                held += 1;
                                assert!(inside.fetch_add(1, SeqCst) < u64::from(limit));
                            } else {
                                refused.fetch_add(1, SeqCst);
                            }
                            // Bursts, so that the limit is reached and left again and again, by one alone if need be.
                            let most = if round / 1000 % 2 == 0 { limit } else { 1 };
                            while held > most {
                                inside.fetch_sub(1, SeqCst);
                                seats.leave(worker);
                                held -= 1;
                            }
                            if round % 500 == 0 {
                                seats.relax();
                            }
                        }
                        for _ in 0..held {
                            inside.fetch_sub(1, SeqCst);
                            seats.leave(worker);
                        }
                    });
                }
            });
            assert_eq!(seats.taken(), 0);
            assert!(refused.load(SeqCst) > 0);
        }
    }
}
