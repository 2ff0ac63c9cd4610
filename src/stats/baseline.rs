//! What "slow" means: quantiles of stable's own latency, over the last minutes and never from the current tick.

use super::latency::BUCKETS;
use serde::{Deserialize, Serialize};

/// An exponentially decayed histogram of stable's latencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Baseline {
    counts: Vec<f64>,
    total: f64,
    half_life: f64,
}

/// A tolerated slowdown as whole buckets: 0.1 is two of them (×1.1025).
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the number of buckets"
)]
pub fn shift_for(tolerance: f64) -> usize {
    let buckets = (tolerance.max(0.0).ln_1p() / 1.05f64.ln()).round_ties_even();
    buckets.clamp(0.0, 289.0) as usize
}

impl Baseline {
    /// Nothing seen; what is seen counts half after `half_life` seconds.
    pub fn new(half_life: f64) -> Baseline {
        Baseline {
            counts: vec![0.0; BUCKETS],
            total: 0.0,
            half_life,
        }
    }

    /// The smallest bucket with at most `1-q` of the baseline above it; `None` while fewer than five would be.
    pub fn threshold(&self, q: f64) -> Option<usize> {
        if self.total * (1.0 - q) < 5.0 {
            return None;
        }
        let limit = (1.0 - q) * self.total * (1.0 + 1e-9);
        let mut above = 0.0;
        let mut bucket = self.counts.len().saturating_sub(1);
        while bucket > 0 && above + self.counts[bucket] <= limit {
            above += self.counts[bucket];
            bucket -= 1;
        }
        Some(bucket)
    }

    /// Takes in the latencies (by bucket) of the last `dt` seconds.
    #[expect(clippy::cast_precision_loss, reason = "counts of one tick are far below 2^53")]
    pub fn update(&mut self, dt: f64, stable: &[u64]) {
        let factor = 0.5f64.powf(dt / self.half_life);
        self.total *= factor;
        for count in &mut self.counts {
            *count *= factor;
        }
        let came = self.counts.iter_mut().zip(stable).filter(|(_, new)| **new > 0);
        for (count, new) in came {
            *count += *new as f64;
            self.total += *new as f64;
        }
    }

    /// How many requests it is made of, faded.
    pub fn total(&self) -> f64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerances_are_whole_buckets() {
        assert_eq!((shift_for(0.10), shift_for(2.0), shift_for(0.0)), (2, 23, 0));
    }

    #[test]
    fn too_little_data_has_no_threshold_and_old_data_fades() {
        let mut baseline = Baseline::new(60.0);
        let mut counts = vec![0; BUCKETS];
        counts[100] = 9;
        baseline.update(1.0, &counts);
        assert_eq!(baseline.threshold(0.5), None);
        counts[120] = 10;
        baseline.update(1.0, &counts);
        assert_eq!(baseline.threshold(0.5), Some(100));
        baseline.update(6000.0, &[]);
        assert!(baseline.total() < 1e-9);
    }
}
