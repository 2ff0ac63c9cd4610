//! Failures out of requests: how sure one can be of a rate, and how often a fixed gate rejects a healthy release.

/// A range in [0, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// The Wilson score interval of a proportion; `z` is 1.96 for 95 %. Without trials everything is possible.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
pub fn wilson(hits: u64, trials: u64, z: f64) -> Interval {
    if trials == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (n, p) = (trials as f64, hits.min(trials) as f64 / trials as f64);
    let z2 = z * z;
    let center = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    Interval {
        low: (center - half).max(0.0),
        high: (center + half).min(1.0),
    }
}

/// The probability of at least `least` hits in `trials` independent tries of probability `p`.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
pub fn binomial_tail(trials: u64, p: f64, least: u64) -> f64 {
    if least == 0 {
        return 1.0;
    }
    if least > trials || p.is_nan() || p <= 0.0 {
        return 0.0;
    }
    if p >= 1.0 {
        return 1.0;
    }
    // The terms grow up to the mode and shrink after it, each by a simple ratio: logarithms keep them in range.
    let n = trials as f64;
    let odds = (p / (1.0 - p)).ln();
    let mut term = n * (-p).ln_1p();
    let mut below = 0.0;
    for k in 0..least {
        below += term.exp();
        let k = k as f64;
        term += ((n - k) / (k + 1.0)).ln() + odds;
    }
    if below < 0.9 {
        return (1.0 - below).clamp(0.0, 1.0);
    }
    // Little is left: add it up, so that it is not lost in the difference from one.
    let mut above = 0.0;
    for k in least..=trials {
        let part = term.exp();
        above += part;
        if k as f64 > n * p && part < above * 1e-17 {
            break;
        }
        let k = k as f64;
        term += ((n - k) / (k + 1.0)).ln() + odds;
    }
    above.clamp(0.0, 1.0)
}

/// How often a window of `requests` of a healthy version with error rate `rate` has more errors than the share `limit`:
/// the false alarms of a fixed gate such as `result <= limit` with `failureLimit: 0`.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of requests, clamped to be one"
)]
pub fn false_alarm(requests: u64, rate: f64, limit: f64) -> f64 {
    // The small number keeps 0.01 of 300 at three.
    let forgiven = (requests as f64 * limit.max(0.0) + 1e-9)
        .floor()
        .min(requests as f64) as u64;
    binomial_tail(requests, rate, forgiven + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_gate_on_a_small_sample_false_alarms_as_often_as_documented() {
        for (requests, percent, tolerance) in [(60, 26.0, 0.05), (300, 6.5, 0.05), (1500, 0.5, 0.06)] {
            let found = false_alarm(requests, 0.005, 0.01) * 100.0;
            assert!((found - percent).abs() < tolerance, "{requests}: {found}");
        }
    }

    #[test]
    fn the_tail_agrees_with_figures_computed_elsewhere() {
        for (trials, p, least, expected) in [
            (10, 0.5, 5, 0.623_046_875),
            (10, 0.5, 10, 0.000_976_562_5),
            (3, 0.1, 1, 0.271),
            (100, 0.01, 0, 1.0),
            (5, 0.0, 1, 0.0),
            (5, 1.0, 5, 1.0),
            (5, 0.3, 6, 0.0),
        ] {
            let found = binomial_tail(trials, p, least);
            assert!((found - expected).abs() < 1e-12, "{trials} {p} {least}: {found}");
        }
        let far = binomial_tail(1_000_000, 0.01, 12_000);
        assert!(far > 0.0 && far < 1e-60, "{far}");
    }

    #[test]
    fn the_wilson_interval_holds_the_rate_and_stays_between_nothing_and_all() {
        let interval = wilson(4, 1204, 1.96);
        assert!(
            (interval.low - 0.001_293).abs() < 1e-5 && (interval.high - 0.008_513).abs() < 1e-5,
            "{interval:?}"
        );
        assert_eq!(wilson(0, 0, 1.96), Interval { low: 0.0, high: 1.0 });
        assert!(wilson(0, 50, 1.96).low.abs() < 1e-12 && wilson(50, 50, 1.96).high > 0.999);
    }
}
