//! How long things took, in the buckets dashboards know.

use super::Cell;
use std::time::Duration;

/// Upper bounds in seconds: OpenTelemetry's fourteen for HTTP plus 0.001, 0.0025, 30 and 60.
pub const BUCKETS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0,
    60.0,
];

/// The same bounds in microseconds, so that recording compares integers.
const BOUNDS_MICROS: [u64; 18] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000, 1_000_000,
    2_500_000, 5_000_000, 7_500_000, 10_000_000, 30_000_000, 60_000_000,
];

/// One worker's histogram.
#[derive(Debug, Default)]
pub struct HistogramCells {
    buckets: [Cell; 19],
    sum_nanos: Cell,
}

/// A merged reading: counts per bucket (not cumulative; the last is above every bound) and the sum.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HistogramSnapshot {
    /// Counts per bucket of [`BUCKETS`], then the overflow.
    pub counts: [u64; 19],
    /// Sum of all observations in seconds.
    pub sum: f64,
}

impl HistogramCells {
    /// Counts one observation. A value equal to a bound belongs to that bucket, as Prometheus' `le` says.
    pub fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let micros = nanos.div_ceil(1000);
        // Most observations are small: a walk from the low end beats a binary search.
        let index = BOUNDS_MICROS
            .iter()
            .position(|bound| micros <= *bound)
            .unwrap_or(BOUNDS_MICROS.len());
        self.buckets[index].inc();
        self.sum_nanos.add(nanos);
    }

    /// Adds this worker's counts to a merged reading.
    pub fn add_to(&self, snapshot: &mut HistogramSnapshot) {
        for (sum, cell) in snapshot.counts.iter_mut().zip(&self.buckets) {
            *sum += cell.get();
        }
        #[allow(
            clippy::cast_precision_loss,
            reason = "a sum of seconds is a float in every exposition format"
        )]
        let nanos = self.sum_nanos.get() as f64;
        snapshot.sum += nanos / 1e9;
    }
}

impl HistogramSnapshot {
    /// How many observations there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let cells = HistogramCells::default();
        for took in [
            Duration::from_millis(1),
            Duration::from_nanos(1_000_001),
            Duration::from_secs(61),
            Duration::ZERO,
        ] {
            cells.observe(took);
        }
        let mut snapshot = HistogramSnapshot::default();
        cells.add_to(&mut snapshot);
        assert_eq!(
            (
                snapshot.counts[0],
                snapshot.counts[1],
                snapshot.counts[18],
                snapshot.count()
            ),
            (2, 1, 1, 4)
        );
        assert!((snapshot.sum - 61.002_000_001).abs() < 1e-9);
    }

    #[test]
    fn both_spellings_of_the_bounds_agree() {
        for (seconds, micros) in BUCKETS.iter().zip(BOUNDS_MICROS) {
            assert_eq!(Duration::from_secs_f64(*seconds), Duration::from_micros(micros));
        }
    }
}
