//! What the judge counts of one role: units that ended, failed, or have not ended in time.

use super::BUCKETS;
use serde::{Deserialize, Serialize};

/// How many thresholds tell slow units in flight at most.
pub const MOST_CUTS: usize = 4;

/// A merged reading of the units; readings of one generation subtract to ticks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnitCounts {
    /// Units that failed. One that had ended well (a stream, by its head; a key, by its first request) may still fail later:
    /// then a tick has a failure without an end.
    pub failed: u64,
    /// Units that ended, by duration; one list for each number of thresholds that they had passed in flight, empty when there
    /// were none.
    pub latency: [Vec<u64>; MOST_CUTS + 1],
    /// Units that passed each threshold in flight.
    pub overdue: [u64; MOST_CUTS],
    /// Units in flight.
    pub in_flight: u64,
    /// Units that were answered 4xx where that is no failure. Like a failure it may come without an end.
    #[serde(default)]
    pub client_errors: u64,
}

impl UnitCounts {
    /// What has come since an earlier reading of the same generation.
    #[must_use]
    pub fn since(&self, earlier: &UnitCounts) -> UnitCounts {
        let minus = |level: usize| {
            let mut news = self.latency[level].clone();
            for (now, then) in news.iter_mut().zip(&earlier.latency[level]) {
                *now = now.saturating_sub(*then);
            }
            news
        };
        UnitCounts {
            failed: self.failed.saturating_sub(earlier.failed),
            latency: std::array::from_fn(minus),
            overdue: std::array::from_fn(|cut| self.overdue[cut].saturating_sub(earlier.overdue[cut])),
            in_flight: self.in_flight,
            client_errors: self.client_errors.saturating_sub(earlier.client_errors),
        }
    }

    /// Ended units only, with these durations: what a histogram of somewhere else says.
    pub fn of(failed: u64, latency: Vec<u64>) -> UnitCounts {
        let mut counts = UnitCounts {
            failed,
            ..UnitCounts::default()
        };
        counts.latency[0] = latency;
        counts
    }

    /// The same units for somebody who has thresholds of his own: they count when they end.
    #[must_use]
    pub fn by_their_end(&self) -> UnitCounts {
        UnitCounts {
            in_flight: self.in_flight,
            client_errors: self.client_errors,
            ..UnitCounts::of(self.failed, self.durations())
        }
    }

    /// Units that ended.
    pub fn ended(&self) -> u64 {
        self.latency.iter().map(|level| level.iter().sum::<u64>()).sum()
    }

    /// Whether nothing has happened.
    pub fn is_empty(&self) -> bool {
        self.failed == 0 && self.client_errors == 0 && self.ended() == 0 && self.overdue == [0; MOST_CUTS]
    }

    /// Units that ended, by duration, whatever thresholds were passed.
    pub fn durations(&self) -> Vec<u64> {
        let mut all = vec![0; BUCKETS];
        self.add_latency_to(&mut all);
        all
    }

    /// Adds every duration, whatever thresholds were passed.
    pub fn add_latency_to(&self, sums: &mut [u64]) {
        for level in &self.latency {
            for (sum, count) in sums.iter_mut().zip(level) {
                *sum += count;
            }
        }
    }

    /// For the threshold of this index: how many units were judged by it, and how many of them were slow, with `bucket` the last
    /// that is not. Each unit once: when it passes the threshold in flight, or when it ends.
    pub fn judged(&self, threshold: usize, bucket: usize) -> (u64, u64) {
        let overdue = self.overdue.get(threshold).copied().unwrap_or(0);
        let mut judged = (overdue, overdue);
        for level in self.latency.iter().take(threshold + 1) {
            judged.0 += level.iter().sum::<u64>();
            judged.1 += level.iter().skip(bucket + 1).sum::<u64>();
        }
        judged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_is_judged_once_by_each_threshold() {
        let mut counts = UnitCounts::default();
        counts.latency[0] = vec![0; BUCKETS];
        counts.latency[0][10] = 5;
        counts.latency[0][100] = 2;
        // Three had passed the first threshold in flight and ended, one is still there.
        counts.latency[1] = vec![0; BUCKETS];
        counts.latency[1][150] = 3;
        counts.overdue = [1, 0, 0, 0];
        assert_eq!(counts.judged(0, 50), (8, 3));
        assert_eq!(counts.judged(1, 120), (10, 3));
        assert_eq!(counts.ended(), 10);
        assert_eq!(counts.by_their_end().judged(0, 50), (10, 5));
        let none = counts.since(&counts);
        assert!(none.is_empty() && none.ended() == 0);
    }
}
