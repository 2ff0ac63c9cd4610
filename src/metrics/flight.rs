//! How old the requests in flight are: counted by the tenth of a second in which they began.
//!
//! A request costs an addition when it begins and one when it ends. Whoever asks learns how many have been in flight since
//! before a moment, so that a request that hangs is slow long before it ends.

use super::Cell;
use std::{
    hint,
    sync::atomic::{Ordering, fence},
    time::Duration,
};

/// So many tenths of a second are told apart; what is older is only known to be.
const SLOTS: u64 = CELLS as u64;
const CELLS: usize = 256;
/// So many are looked at together.
const GROUP: usize = 8;
/// How often a reader tries again when the writer moves in the meantime.
const TRIES: u32 = 16;

/// A tenth of a second, counted from the process' epoch.
pub(super) type Slot = u64;

/// The slot of a time since the process' epoch.
pub(super) fn slot_of(since_epoch: Duration) -> Slot {
    since_epoch.as_secs() * 10 + u64::from(since_epoch.subsec_millis() / 100)
}

/// One worker's requests in flight.
#[derive(Debug)]
pub(super) struct Flight {
    /// Odd while the slots move: a reader then reads again.
    version: Cell,
    /// The newest slot.
    head: Cell,
    slots: [Cell; CELLS],
    /// In flight for longer than the slots reach back.
    ancient: Cell,
}

impl Default for Flight {
    fn default() -> Flight {
        Flight {
            version: Cell::default(),
            head: Cell::default(),
            slots: std::array::from_fn(|_| Cell::default()),
            ancient: Cell::default(),
        }
    }
}

const fn index(slot: Slot) -> usize {
    (slot % SLOTS) as usize
}

impl Flight {
    /// A request begins. Only the owning worker calls this.
    pub(super) fn enter(&self, began: Slot) {
        if began > self.head.get() {
            self.advance(began);
        }
        self.cell(began).inc();
    }

    /// A request that began then ends. Only the owning worker calls this.
    pub(super) fn leave(&self, began: Slot) {
        self.cell(began).dec();
    }

    fn cell(&self, began: Slot) -> &Cell {
        if began + SLOTS <= self.head.get() {
            &self.ancient
        } else {
            &self.slots[index(began)]
        }
    }

    /// Makes room for newer slots: what is still in flight of the oldest becomes ancient.
    fn advance(&self, to: Slot) {
        self.version.inc();
        fence(Ordering::Release);
        let from = (self.head.get() + 1).max(to.saturating_sub(SLOTS - 1));
        for slot in from..=to {
            let cell = &self.slots[index(slot)];
            let left = cell.get();
            if left > 0 {
                self.ancient.add(left);
                cell.set(0);
            }
        }
        self.head.set(to);
        self.version.inc_after_all_before();
    }

    /// How many are in flight that began before each of the slots `cuts`; `None` when the writer would not stand still.
    /// What is ancient counts only before a cut that is certainly later.
    pub(super) fn since_before<const N: usize>(&self, cuts: &[Slot; N]) -> Option<[u64; N]> {
        for _ in 0..TRIES {
            let version = self.version.get_with_all_before();
            if version % 2 == 1 {
                hint::spin_loop();
                continue;
            }
            let head = self.head.get();
            let oldest = head.saturating_sub(SLOTS - 1);
            let ancient = self.ancient.get();
            let mut found = cuts.map(|cut| if cut >= oldest { ancient } else { 0 });
            // Nearly all are empty: a group at a time, for this is most of what a look of the judge costs.
            for (group, first) in self.slots.chunks_exact(GROUP).zip((0..).step_by(GROUP)) {
                if group.iter().fold(0, |any, cell| any | cell.get()) == 0 {
                    continue;
                }
                for (cell, place) in group.iter().zip(first..) {
                    let count = cell.get();
                    let slot = head.wrapping_sub(head.wrapping_sub(place) % SLOTS);
                    for (found, cut) in found.iter_mut().zip(cuts) {
                        *found += if slot < *cut { count } else { 0 };
                    }
                }
            }
            fence(Ordering::Acquire);
            if self.version.get() == version {
                return Some(found);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn what_began_before_a_moment_is_counted_until_it_ends() {
        let flight = Flight::default();
        flight.enter(1000);
        flight.enter(1005);
        flight.enter(1005);
        assert_eq!(flight.since_before(&[1000, 1001, 1005, 1006]), Some([0, 1, 1, 3]));
        flight.leave(1005);
        flight.leave(1000);
        assert_eq!(flight.since_before(&[1005, 1006]), Some([0, 1]));
    }

    #[test]
    fn what_is_older_than_the_slots_is_kept_apart_and_found_when_it_ends() {
        let flight = Flight::default();
        flight.enter(10);
        flight.enter(11);
        flight.enter(10 + SLOTS);
        assert_eq!(flight.since_before(&[10, 11, 12]), Some([0, 1, 2]));
        flight.enter(5000);
        assert_eq!(
            flight.since_before(&[11, 5000 - SLOTS, 5000 - SLOTS + 1, 5001]),
            Some([0, 0, 3, 4])
        );
        for began in [10, 11, 10 + SLOTS, 5000] {
            flight.leave(began);
        }
        assert_eq!(flight.since_before(&[u64::MAX]), Some([0]));
    }

    #[test]
    fn a_reader_never_counts_one_request_twice_while_the_slots_move() {
        let flight = Flight::default();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Three are in flight at any time, whatever the slot.
                let mut began = [1, 2, 3];
                for slot in began {
                    flight.enter(slot);
                }
                for slot in 4..200_000 {
                    let oldest = &mut began[index(slot) % 3];
                    flight.leave(*oldest);
                    *oldest = slot * 97;
                    flight.enter(*oldest);
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                if let Some([all]) = flight.since_before(&[u64::MAX]) {
                    assert!(all <= 3, "{all}");
                }
            }
        });
    }
}
