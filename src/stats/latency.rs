//! Latencies in buckets that grow by 5 %: fine enough for a tolerance of 10 %, small enough to keep per worker.
//!
//! Bucket 0 holds everything up to 0.1 ms, bucket `i` (1e-4·1.05^(i−1), 1e-4·1.05^i] seconds, the last everything beyond.

use std::time::Duration;

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

/// The bucket of a latency that was measured: the same as [`bucket`], without a logarithm, for every request.
pub fn bucket_of(took: Duration) -> usize {
    let nanos = took
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::from(took.subsec_nanos()));
    if nanos <= EDGES[0] {
        return 0;
    }
    // The highest bits name a stretch so short (1/32 of an octave) that at most one edge lies inside.
    let top = nanos.ilog2();
    let stretch = (nanos >> (top - STRETCH_BITS)) & (STRETCHES - 1);
    let index = u64::from(top - LOWEST_BIT) * STRETCHES + stretch;
    let Some(first) = usize::try_from(index).ok().and_then(|index| FIRST.get(index)) else {
        return BUCKETS - 1;
    };
    let first = usize::from(*first);
    first + usize::from(first < BUCKETS - 1 && nanos > EDGES[first])
}

const STRETCH_BITS: u32 = 5;
const STRETCHES: u64 = 1 << STRETCH_BITS;
/// The highest bit of 0.1 ms in nanoseconds.
const LOWEST_BIT: u32 = 16;
/// Up to 2^37 ns, which lies in the last bucket.
const OCTAVES: usize = 21;

/// The upper edges in whole nanoseconds.
static EDGES: [u64; BUCKETS] = edges();
/// The bucket in which each stretch begins.
static FIRST: [u16; OCTAVES << STRETCH_BITS] = first_buckets();

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "edges are positive and below 2^38"
)]
const fn edges() -> [u64; BUCKETS] {
    let mut edges = [0; BUCKETS];
    let mut edge = LOWEST * 1e9;
    let mut index = 0;
    while index < BUCKETS {
        // The small number is that of `bucket` (as a factor, so times ln 1.05).
        edges[index] = (edge * (1.0 + 1e-9 * 0.048_790_164_169_432_05)) as u64;
        edge *= GROWTH;
        index += 1;
    }
    edges
}

#[expect(clippy::cast_possible_truncation, reason = "there are 21 octaves")]
const fn first_buckets() -> [u16; OCTAVES << STRETCH_BITS] {
    let edges = edges();
    let mut first = [0; OCTAVES << STRETCH_BITS];
    let (mut index, mut bucket) = (0, 0);
    while index < first.len() {
        let octave = index >> STRETCH_BITS;
        let begins =
            (STRETCHES + (index as u64 & (STRETCHES - 1))) << (octave as u32 + LOWEST_BIT - STRETCH_BITS);
        while (bucket as usize) < BUCKETS - 1 && edges[bucket as usize] < begins {
            bucket += 1;
        }
        first[index] = bucket;
        index += 1;
    }
    first
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
    fn both_ways_to_a_bucket_agree_on_every_edge_and_beside_it() {
        let mut checked = 0;
        let mut check = |nanos: u64| {
            let took = Duration::from_nanos(nanos);
            let expected = bucket(took.as_secs_f64());
            assert_eq!(bucket_of(took), expected, "{nanos} ns");
            checked += 1;
        };
        for edge in EDGES {
            (edge.saturating_sub(2)..=edge + 2).for_each(&mut check);
        }
        for shift in 0..40 {
            let power = 1u64 << shift;
            (0..64).for_each(|step| check(power + power * step / 64));
        }
        assert!(checked > 4000);
        assert_eq!(bucket_of(Duration::MAX), BUCKETS - 1);
        assert_eq!(bucket_of(Duration::ZERO), 0);
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
