//! Are the canary's samples higher than stable's? The rank test that Kayenta judges by, for those who come from there.
//!
//! The interval of Hodges and Lehmann for the shift between two samples: the ends are order statistics of all pairwise
//! differences, placed by the normal approximation of the rank sum with corrections for ties and continuity (as R's
//! `wilcox.test(…, conf.int = TRUE, exact = FALSE)`). A difference counts when the whole interval lies beyond a share of
//! the shift itself. Unlike the sequential judge it may be asked once, not after every sample: `EProcess` is next door.

/// The shift of the canary's samples against stable's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shift {
    /// The lower end of the interval.
    pub low: f64,
    /// The median of all pairwise differences.
    pub estimate: f64,
    /// The upper end.
    pub high: f64,
}

/// What the rank test says of the canary's samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranked {
    /// Higher than stable's.
    High,
    /// Lower.
    Low,
    /// No difference is shown.
    Same,
    /// One of the two has no samples.
    NoData,
}

/// Compares two samples at `confidence` (Kayenta: 0.98); shifts below `tolerance` (0.25) of themselves do not count.
pub fn mann_whitney(canary: &[f64], stable: &[f64], confidence: f64, tolerance: f64) -> Ranked {
    let Some(shift) = shift(canary, stable, confidence) else {
        return Ranked::NoData;
    };
    let critical = tolerance * shift.estimate.abs();
    if shift.low > critical {
        Ranked::High
    } else if shift.high < -critical {
        Ranked::Low
    } else {
        Ranked::Same
    }
}

/// The interval of Hodges and Lehmann; `None` when one of the two has no numbers.
#[expect(clippy::cast_precision_loss, reason = "samples are few")]
pub fn shift(canary: &[f64], stable: &[f64], confidence: f64) -> Option<Shift> {
    let numbers = |samples: &[f64]| -> Vec<f64> {
        let mut numbers: Vec<f64> = samples.iter().copied().filter(|x| x.is_finite()).collect();
        numbers.sort_by(f64::total_cmp);
        numbers
    };
    let (canary, stable) = (numbers(canary), numbers(stable));
    if canary.is_empty() || stable.is_empty() {
        return None;
    }
    let mut differences: Vec<f64> = canary
        .iter()
        .flat_map(|x| stable.iter().map(move |y| x - y))
        .collect();
    differences.sort_by(f64::total_cmp);
    let (m, n) = (canary.len() as f64, stable.len() as f64);
    let pairs = differences.len();
    // Ties between the two samples happen at single shifts only and move no end of the interval.
    let ties = (ties(&canary) + ties(&stable)) / ((m + n) * (m + n - 1.0));
    let sigma = (m * n / 12.0 * (m + n + 1.0 - ties)).max(0.0).sqrt();
    let reach = normal_quantile(f64::midpoint(1.0, confidence)) * sigma;
    // Beyond k differences the rank sum lies pairs/2 − k above its middle; half a rank goes to continuity.
    let inside = |k: usize| (pairs as f64 / 2.0 - k as f64).abs() - 0.5 <= reach;
    let outside = (0..=pairs / 2).take_while(|k| !inside(*k)).count();
    // So few samples cannot be that sure of anything. Kayenta takes the extreme differences for ends then, and finds one
    // sample above another to be a difference.
    let (low, high) = if outside == 0 {
        (f64::NEG_INFINITY, f64::INFINITY)
    } else {
        (differences[outside - 1], differences[pairs - outside])
    };
    let middle = (differences[(pairs - 1) / 2], differences[pairs / 2]);
    Some(Shift {
        low,
        estimate: f64::midpoint(middle.0, middle.1),
        high,
    })
}

/// Sum of t³ − t over groups of t equal numbers, which are sorted.
#[expect(clippy::cast_precision_loss, reason = "samples are few")]
fn ties(sorted: &[f64]) -> f64 {
    sorted
        .chunk_by(|a, b| a.total_cmp(b).is_eq())
        .map(|group| {
            let t = group.len() as f64;
            t * t * t - t
        })
        .sum()
}

/// The number that a standard normal variable stays below with probability `p`, between −7 and 7.
pub fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-7.0, 7.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if normal_below(middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::midpoint(low, high)
}

/// The probability that a standard normal variable is below `x`, by its power series: exact to 1e-13 for |x| < 7.
pub fn normal_below(x: f64) -> f64 {
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    (0.5 + density * sum).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_the_normal_distribution_are_those_of_the_tables() {
        for (p, z) in [
            (0.5, 0.0),
            (0.975, 1.959_963_984_540),
            (0.99, 2.326_347_874_041),
            (0.01, -2.326_347_874_041),
            (0.999, 3.090_232_306_168),
        ] {
            assert!((normal_quantile(p) - z).abs() < 1e-9, "{p}");
        }
    }

    /// The permeability of membranes (Hollander and Wolfe 1973, page 69), which R's help page of `wilcox.test` uses.
    const TERM: [f64; 10] = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46];
    const WEEKS: [f64; 5] = [1.15, 0.88, 0.90, 0.74, 1.21];

    #[test]
    fn the_shift_of_a_known_example_is_the_published_one() {
        let shift = shift(&TERM, &WEEKS, 0.95).unwrap();
        assert!((shift.estimate - 0.305).abs() < 1e-12, "{shift:?}");
    }

    #[test]
    #[expect(clippy::cast_precision_loss, reason = "samples are few")]
    fn the_ends_are_where_the_rank_sum_itself_says() {
        // By definition: shift the canary's samples, rank both together, and see whether the sum is too far off.
        let rejected = |canary: &[f64], stable: &[f64], by: f64, confidence: f64| {
            let moved: Vec<f64> = canary.iter().map(|x| x - by).collect();
            let all: Vec<f64> = moved.iter().chain(stable).copied().collect();
            let below = |x: f64| all.iter().filter(|y| **y < x).count() as f64;
            let equal = |x: f64| all.iter().filter(|y| (**y - x).abs() < 1e-12).count() as f64;
            let ranks: f64 = moved
                .iter()
                .map(|x| below(*x) + f64::midpoint(1.0, equal(*x)))
                .sum();
            let (m, n) = (canary.len() as f64, stable.len() as f64);
            let u = ranks - m * (m + 1.0) / 2.0 - m * n / 2.0;
            let ties: f64 = all.iter().map(|x| equal(*x).powi(2) - 1.0).sum();
            let sigma = (m * n / 12.0 * (m + n + 1.0 - ties / ((m + n) * (m + n - 1.0)))).sqrt();
            (u.abs() - 0.5) / sigma > normal_quantile(f64::midpoint(1.0, confidence))
        };
        let tied = [0.0, 0.0, 0.0, 0.2, 0.4, 0.4, 0.0, 0.1, 0.0, 0.3, 0.9];
        for (canary, stable) in [
            (&TERM[..], &WEEKS[..]),
            (&tied[..], &TERM[..]),
            (&TERM[..], &tied[..]),
        ] {
            for confidence in [0.8, 0.9, 0.95, 0.98] {
                let shift = shift(canary, stable, confidence).unwrap();
                for (inside, outside) in [
                    (shift.low + 1e-6, shift.low - 1e-6),
                    (shift.high - 1e-6, shift.high + 1e-6),
                ] {
                    assert!(
                        !rejected(canary, stable, inside, confidence),
                        "{confidence} {shift:?}"
                    );
                    assert!(
                        rejected(canary, stable, outside, confidence),
                        "{confidence} {shift:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn ten_minutes_of_equal_ratios_are_the_same_and_ten_times_as_many_errors_are_not() {
        let stable = [0.001, 0.002, 0.001, 0.0, 0.001, 0.003, 0.001, 0.002, 0.0, 0.001];
        let worse = stable.map(|x| x * 10.0 + 0.01);
        let judged = |canary: &[f64], stable: &[f64]| mann_whitney(canary, stable, 0.98, 0.25);
        assert_eq!(judged(&stable, &stable), Ranked::Same);
        assert_eq!(judged(&worse, &stable), Ranked::High);
        assert_eq!(judged(&stable, &worse), Ranked::Low);
        // It takes five samples a side to be sure of anything to 98 %.
        assert_eq!(judged(&worse[..4], &stable[..4]), Ranked::Same);
        assert_eq!(judged(&worse[..5], &stable[..5]), Ranked::High);
        assert_eq!(judged(&[f64::NAN], &stable), Ranked::NoData);
        assert_eq!(judged(&stable, &[]), Ranked::NoData);
        assert_eq!(judged(&[0.0; 10], &[0.0; 10]), Ranked::Same);
        assert_eq!(judged(&[1.0; 10], &[0.0; 10]), Ranked::High);
    }
}
