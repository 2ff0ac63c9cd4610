//! Latencies in buckets that grow by 5 %: fine enough for a tolerance of 10 %, small enough to keep per worker.
//!
//! Bucket 0 holds everything up to 0.1 ms, bucket `i` (1e-4·1.05^(i−1), 1e-4·1.05^i] seconds, the last everything beyond.

/// How many buckets there are; the last begins at about 127 s.
pub const BUCKETS: usize = 290;

const LOWEST: f64 = 1e-4;
const GROWTH: f64 = 1.05;

/// The bucket of a latency in seconds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the buckets just before"
)]
pub fn bucket(seconds: f64) -> usize {
    // A NaN is no latency; it falls into the first bucket, as nothing would.
    if seconds.is_nan() || seconds <= LOWEST {
        return 0;
    }
    // The small number keeps a latency that lies exactly on an edge below it.
    let index = ((seconds / LOWEST).ln() / GROWTH.ln() - 1e-9).ceil();
    index.clamp(0.0, last()) as usize
}

/// The upper edge of a bucket in seconds.
pub fn edge(bucket: usize) -> f64 {
    let exponent = i32::try_from(bucket.min(BUCKETS - 1)).unwrap_or(i32::MAX);
    LOWEST * GROWTH.powi(exponent)
}

fn last() -> f64 {
    f64::from(u32::try_from(BUCKETS - 1).unwrap_or(u32::MAX))
}

/// The smallest bucket with at least the share `q` of all counts at or below it; `None` without counts.
pub fn quantile_bucket(counts: &[u64], q: f64) -> Option<usize> {
    let total: u64 = counts.iter().sum();
    if total == 0 || !(0.0..=1.0).contains(&q) {
        return None;
    }
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank in [1, total]; off by one far beyond 2^53 requests"
    )]
    let rank = ((q * total as f64).ceil() as u64).clamp(1, total);
    let mut below = 0;
    counts.iter().position(|count| {
        below += count;
        below >= rank
    })
}

/// A quantile in seconds, at most 5 % too high: the upper edge of its bucket. `None` without counts.
pub fn quantile(counts: &[u64], q: f64) -> Option<f64> {
    quantile_bucket(counts, q).map(edge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_the_buckets_of_the_reference() {
        for (seconds, expected) in [
            (0.0, 0),
            (5e-5, 0),
            (1e-4, 0),
            (1.0001e-4, 1),
            (1.05e-4, 1),
            (1e-3, 48),
            (0.0123, 99),
            (0.25, 161),
            (1.0, 189),
            (30.0, 259),
            (1e4, 289),
            (f64::INFINITY, 289),
            (f64::NAN, 0),
            (-1.0, 0),
        ] {
            assert_eq!(bucket(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn every_edge_lies_in_its_own_bucket() {
        for index in 0..BUCKETS {
            assert_eq!(bucket(edge(index)), index);
        }
    }

    #[test]
    fn a_quantile_is_at_most_one_bucket_too_high() {
        let mut counts = vec![0; BUCKETS];
        for millis in 1..=1000 {
            counts[bucket(f64::from(millis) / 1000.0)] += 1;
        }
        for (q, exact) in [(0.5, 0.5), (0.9, 0.9), (0.99, 0.99), (1.0, 1.0), (0.0, 0.001)] {
            let found = quantile(&counts, q).unwrap();
            assert!((exact..=exact * 1.051).contains(&found), "{q}: {found}");
        }
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&vec![0; BUCKETS], 0.5), None);
        assert_eq!(quantile(&counts, 1.5), None);
    }
}
