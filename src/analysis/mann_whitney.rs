//! The rank test as a metric: what it compares, and what its one answer means.
//!
//! Kayenta's judge of one metric, for those who come from there: samples of both versions over a window, the interval of
//! Hodges and Lehmann for their shift ([`crate::stats::shift`]), and a direction that counts. It holds its risk when it is
//! asked once: asked again on more samples it is wrong more often, which is what the sequential judge next door is for.

use super::{
    outcome::Outcome,
    spec::{Provider, SerinMetric, SerinQuery},
};
use crate::{
    model::Span,
    stats::{Ranked, Shift, mann_whitney, shift},
};
use serde::{Deserialize, Serialize};

/// One rank test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MannWhitney {
    /// What is sampled.
    pub of: Compared,
    /// From one sample of both versions to the next.
    pub interval: Span,
    /// From the first request that counts to the verdict.
    pub window: Span,
    /// Fewer samples of both are "no data".
    pub min_samples: usize,
    /// How sure the test must be, such as 0.98.
    pub confidence: f64,
    /// The interval must lie beyond this share of the shift itself.
    pub tolerance: f64,
    /// Which differences count.
    pub direction: Direction,
    /// A higher mean than stable's is no difference up to this many times it. Absent: any is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_increase: Option<f64>,
    /// A lower mean than stable's is no difference down to this many times it. Absent: any is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_decrease: Option<f64>,
}

/// What is sampled of both versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Compared {
    /// Serin's own counters, over each interval; `minSamples` are the requests that each version needs in it.
    Own(SerinQuery),
    /// One question for each version, asked at the end of each interval.
    Asked {
        /// The canary's.
        canary: Box<Provider>,
        /// Stable's.
        stable: Box<Provider>,
    },
}

/// Which differences count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// Higher is worse.
    Increase,
    /// Lower is worse.
    Decrease,
    /// Any difference is, as for Kayenta where nothing is written.
    #[default]
    Either,
}

impl Direction {
    const fn as_str(self) -> &'static str {
        match self {
            Direction::Increase => "increase",
            Direction::Decrease => "decrease",
            Direction::Either => "either",
        }
    }

    fn counts(self, found: Ranked) -> bool {
        match found {
            Ranked::High => self != Direction::Decrease,
            Ranked::Low => self != Direction::Increase,
            Ranked::Same | Ranked::NoData => false,
        }
    }
}

/// More samples are not compared: the test looks at every pair of them.
pub const MOST_SAMPLES: usize = 500;

/// What a test has found out.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Successful: no difference that counts is shown. Failed: one is. `NoData`: too few samples.
    pub outcome: Outcome,
    /// The shift of the canary's samples against stable's; none without data.
    pub shift: Option<f64>,
    /// The same in a sentence, with its numbers.
    pub said: String,
}

impl MannWhitney {
    /// The test of `of` as Kayenta has it.
    pub fn of(of: Compared) -> MannWhitney {
        MannWhitney {
            of,
            interval: Span::secs(10),
            window: Span::secs(600),
            min_samples: 10,
            confidence: 0.98,
            tolerance: 0.25,
            direction: Direction::Either,
            allowed_increase: None,
            allowed_decrease: None,
        }
    }

    /// How many samples of each version fit into the window.
    pub fn planned(&self) -> usize {
        let planned = self.window.as_millis() / self.interval.as_millis().max(1);
        usize::try_from(planned).unwrap_or(usize::MAX)
    }

    /// How many samples of each version it takes to show anything at all at this confidence.
    #[expect(clippy::cast_precision_loss, reason = "samples are few")]
    pub fn least_samples(&self) -> usize {
        let shows = |n: &usize| {
            let stable: Vec<f64> = (0..*n).map(|at| at as f64).collect();
            let canary: Vec<f64> = stable.iter().map(|value| value + *n as f64).collect();
            shift(&canary, &stable, self.confidence).is_some_and(|shift| shift.low.is_finite())
        };
        (1..=MOST_SAMPLES).find(shows).unwrap_or(MOST_SAMPLES)
    }

    /// The probability that a version equal to stable fails it.
    pub fn risk(&self) -> f64 {
        match self.direction {
            Direction::Either => 1.0 - self.confidence,
            Direction::Increase | Direction::Decrease => (1.0 - self.confidence) / 2.0,
        }
    }

    /// What the samples say: pairs of the canary's and stable's.
    pub fn verdict(&self, samples: &[(f64, f64)]) -> Verdict {
        let (canary, stable): (Vec<f64>, Vec<f64>) = samples
            .iter()
            .copied()
            .filter(|(canary, stable)| canary.is_finite() && stable.is_finite())
            .unzip();
        let found = shift(&canary, &stable, self.confidence).filter(|_| canary.len() >= self.min_samples);
        let Some(shift) = found else {
            return Verdict {
                outcome: Outcome::NoData,
                shift: None,
                said: format!(
                    "{} samples of both versions in {}, and at least {} are needed",
                    canary.len(),
                    self.window,
                    self.min_samples
                ),
            };
        };
        let found = mann_whitney(&canary, &stable, self.confidence, self.tolerance);
        let ratio = mean(&canary) / mean(&stable);
        let (outcome, what) = self.meaning(found, ratio);
        Verdict {
            outcome,
            shift: Some(shift.estimate),
            said: format!("{what}: {}", self.numbers(shift, &canary, &stable)),
        }
    }

    fn meaning(&self, found: Ranked, ratio: f64) -> (Outcome, String) {
        let (word, allowed) = match found {
            Ranked::High => ("higher", self.allowed_increase.filter(|most| ratio < *most)),
            Ranked::Low => ("lower", self.allowed_decrease.filter(|least| ratio > *least)),
            Ranked::Same | Ranked::NoData => {
                let what = "no difference between canary and stable is shown";
                return (Outcome::Successful, what.to_owned());
            }
        };
        if !self.direction.counts(found) {
            let what = format!(
                "canary is {word} than stable, which does not count by direction {}",
                self.direction.as_str()
            );
            return (Outcome::Successful, what);
        }
        match allowed {
            Some(allowed) => {
                let what = format!(
                    "canary is {word} than stable by no more than is allowed, its mean {ratio:.3} times stable's and {allowed} \
                     are"
                );
                (Outcome::Successful, what)
            }
            None => (Outcome::Failed, format!("canary is {word} than stable")),
        }
    }

    fn numbers(&self, shift: Shift, canary: &[f64], stable: &[f64]) -> String {
        let (value, by) = (|x: f64| self.shown(x, false), |x: f64| self.shown(x, true));
        format!(
            "medians {} and {} of {} samples of each, shifted by {} ({}% interval {} to {}, tolerance {})",
            value(median(canary)),
            value(median(stable)),
            canary.len(),
            by(shift.estimate),
            rounded(100.0 * self.confidence),
            by(shift.low),
            by(shift.high),
            by(self.tolerance * shift.estimate.abs()).trim_start_matches('+'),
        )
    }

    /// A value in its unit.
    fn shown(&self, x: f64, signed: bool) -> String {
        let (factor, unit) = match &self.of {
            Compared::Own(query) => match query.metric {
                SerinMetric::Latency => (1000.0, "ms"),
                SerinMetric::ErrorRate | SerinMetric::SuccessRate | SerinMetric::ErrorRateDifference => {
                    (100.0, if signed { "pp" } else { "%" })
                }
                SerinMetric::RequestRate => (1.0, "/s"),
            },
            Compared::Asked { .. } => (1.0, ""),
        };
        let plus = if signed && x > 0.0 { "+" } else { "" };
        format!("{plus}{}{unit}", rounded(factor * x))
    }
}

/// With about four digits.
fn rounded(x: f64) -> String {
    let decimals: usize = match x.abs() {
        size if size >= 1000.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 10.0 => 2,
        size if size >= 0.01 => 4,
        _ => 7,
    };
    let text = format!("{x:.decimals$}");
    if decimals == 0 || !x.is_finite() {
        return text;
    }
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0" } else { text }.to_owned()
}

#[expect(clippy::cast_precision_loss, reason = "samples are few")]
fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len() as f64
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len() - 1;
    f64::midpoint(sorted[last / 2], sorted[sorted.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

    fn latency() -> MannWhitney {
        MannWhitney::of(Compared::Own(SerinQuery {
            quantile: Some(0.5),
            ..SerinQuery::of(SerinMetric::Latency)
        }))
    }

    /// Stable's medians, and the canary's, which are `factor` times as long.
    fn slower(factor: f64) -> Vec<(f64, f64)> {
        let at = |n: u32| 0.010 + 0.000_1 * f64::from(n * 7 % 13);
        (0..20).map(|n| (factor * at(n), at(n + 5))).collect()
    }

    #[test]
    fn a_slower_canary_fails_with_its_numbers_and_only_in_a_direction_that_counts() {
        let test = latency();
        let verdict = test.verdict(&slower(1.5));
        assert_eq!(verdict.outcome, Outcome::Failed);
        assert!((verdict.shift.unwrap() - 0.005_15).abs() < 1e-9, "{verdict:?}");
        assert_eq!(
            verdict.said,
            "canary is higher than stable: medians 15.82ms and 10.65ms of 20 samples of each, shifted by +5.15ms \
             (98% interval +4.7ms to +5.6ms, tolerance 1.2875ms)"
        );
        let said = |direction| {
            let test = MannWhitney {
                direction,
                ..latency()
            };
            let verdict = test.verdict(&slower(1.5));
            (verdict.outcome, verdict.said)
        };
        assert_eq!(said(Direction::Increase).0, Outcome::Failed);
        let (outcome, what) = said(Direction::Decrease);
        assert_eq!(outcome, Outcome::Successful);
        assert!(
            what.starts_with(
                "canary is higher than stable, which does not count by direction decrease: medians "
            ),
            "{what}"
        );
        let faster = MannWhitney {
            direction: Direction::Decrease,
            ..latency()
        };
        assert_eq!(faster.verdict(&slower(0.5)).outcome, Outcome::Failed);
        assert_eq!(latency().verdict(&slower(1.0)).outcome, Outcome::Successful);
    }

    #[test]
    fn what_is_allowed_is_no_difference_and_a_mean_of_zero_allows_nothing() {
        let up_to = |allowed_increase| MannWhitney {
            allowed_increase,
            ..latency()
        };
        assert_eq!(up_to(Some(1.4)).verdict(&slower(1.5)).outcome, Outcome::Failed);
        let verdict = up_to(Some(1.6)).verdict(&slower(1.5));
        assert_eq!(verdict.outcome, Outcome::Successful, "{verdict:?}");
        assert!(
            verdict.said.contains("its mean 1.483 times stable's and 1.6"),
            "{verdict:?}"
        );
        let down_to = |allowed_decrease| MannWhitney {
            allowed_decrease,
            ..latency()
        };
        assert_eq!(
            down_to(Some(0.4)).verdict(&slower(0.5)).outcome,
            Outcome::Successful
        );
        assert_eq!(down_to(Some(0.6)).verdict(&slower(0.5)).outcome, Outcome::Failed);
        let errors = [(0.5, 0.0); 20];
        assert_eq!(up_to(Some(100.0)).verdict(&errors).outcome, Outcome::Failed);
    }

    #[test]
    fn too_few_samples_are_no_data_and_numbers_that_are_none_are_not_samples() {
        let test = latency();
        assert_eq!((test.least_samples(), test.planned()), (5, 60));
        let mut samples = slower(2.0);
        samples.truncate(10);
        assert_eq!(test.verdict(&samples).outcome, Outcome::Failed);
        samples[3].1 = f64::NAN;
        let verdict = test.verdict(&samples);
        assert_eq!((verdict.outcome, verdict.shift), (Outcome::NoData, None));
        assert_eq!(
            verdict.said,
            "9 samples of both versions in 10m, and at least 10 are needed"
        );
        assert_eq!(test.verdict(&[]).outcome, Outcome::NoData);
    }

    #[test]
    fn equal_versions_fail_it_as_rarely_as_it_says() {
        let mut dice = SmallRng::seed_from_u64(1);
        for (direction, most) in [(Direction::Either, 0.02), (Direction::Increase, 0.01)] {
            let test = MannWhitney {
                direction,
                tolerance: 0.0,
                ..latency()
            };
            assert!((test.risk() - most).abs() < 1e-9);
            let mut one = || -> f64 { dice.random::<f64>().powi(3) + f64::from(dice.next_u32() % 3) };
            let failed = (0..4000)
                .filter(|_| {
                    let samples: Vec<(f64, f64)> = (0..30).map(|_| (one(), one())).collect();
                    test.verdict(&samples).outcome == Outcome::Failed
                })
                .count();
            // The standard deviation is at most 9.
            #[expect(clippy::cast_precision_loss, reason = "at most 4,000")]
            let share = failed as f64 / 4000.0;
            assert!(
                (most - 0.007..most + 0.007).contains(&share),
                "{direction:?}: {share}"
            );
        }
    }
}
