//! A counter with one writer and any number of readers.
//!
//! The writer loads and stores, both relaxed: no locked instruction, no shared line bounced between workers. That is
//! correct only while one thread writes, which is why a cell always lives in a worker's shard.

use std::sync::atomic::{AtomicU64, Ordering};

/// One worker's part of what has a part for each: the first one's for a worker that has none. At least one part exists.
pub fn part_of<T>(parts: &[T], worker: usize) -> &T {
    // Not the remainder: a division costs more than all else that is counted here.
    parts.get(worker).unwrap_or(&parts[0])
}

/// A 64-bit count that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Cell {
    /// Adds `n`. Only the owning worker calls this.
    pub fn add(&self, n: u64) {
        self.0
            .store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Adds one. Only the owning worker calls this.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Takes one away, for gauges. Only the owning worker calls this.
    pub fn dec(&self) {
        self.0
            .store(self.0.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed);
    }

    /// Adds one, and whoever sees it with [`Cell::get_with_all_before`] sees everything that was written before it. Only the
    /// owning worker calls this.
    pub fn inc_after_all_before(&self) {
        let next = self.0.load(Ordering::Relaxed).wrapping_add(1);
        self.0.store(next, Ordering::Release);
    }

    /// What has been written so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The same; see [`Cell::inc_after_all_before`].
    pub fn get_with_all_before(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Writes `n`. Only the owning worker calls this.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
}
