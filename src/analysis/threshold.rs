//! What a fixed threshold comes down to: how often it rejects a healthy release, and how often it notices a bad one.
//!
//! For conditions such as `result < 0.01` over a share of requests: each measurement is a binomial draw, and a metric fails
//! when more of its measurements fail than are forgiven.

use super::spec::{MetricSpec, Provider, SerinMetric};
use crate::stats::binomial_tail;
use regex::Regex;
use std::sync::LazyLock;

/// `result < 0.01` and its kin: the operator, and the number.
static CONDITION: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^\s*result(?:\[0\])?\s*(<=|<|>=|>)\s*([0-9]*\.?[0-9]+)\s*$").ok());

/// Requests behind one measurement where nobody says how many.
const ASSUMED_REQUESTS: u64 = 300;
/// Measurements of a background analysis that goes on for ever.
const ASSUMED_COUNT: u32 = 10;

/// A metric that fails when too large a share of the canary's requests has failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    /// The key that the condition stands under.
    pub key: &'static str,
    /// The canary's requests behind one measurement.
    pub requests: u64,
    /// Whether their number is known, and not assumed.
    pub certain: bool,
    /// The error rate of a release that ought to pass: half of what the condition forbids.
    pub healthy: f64,
    /// This many errors fail a measurement.
    pub fails_at: u64,
    /// How many measurements.
    pub count: u32,
    /// So many of them may fail.
    pub forgiven: u32,
}

impl Threshold {
    /// What `metric` comes down to when each measurement sees `requests` of the canary's, or as many as it waits for. `None`:
    /// its condition is not a bound on a share of failed requests.
    pub fn of(metric: &MetricSpec, requests: Option<u64>) -> Option<Threshold> {
        let (key, condition, fails_when_true) = match (&metric.success_condition, &metric.failure_condition) {
            (Some(condition), None) => ("successCondition", condition, false),
            (None, Some(condition)) => ("failureCondition", condition, true),
            (Some(_), Some(_)) | (None, None) => return None,
        };
        let parts = CONDITION.as_ref()?.captures(condition)?;
        let number: f64 = parts.get(2)?.as_str().parse().ok()?;
        let operator = parts.get(1)?.as_str();
        let (requests, certain, rate_of) = match &metric.provider {
            Provider::Serin(query) => (requests.unwrap_or(0).max(query.min_samples), true, query.metric),
            // What a query returns is not known; small numbers are error rates.
            Provider::Prometheus(query) if query.query.contains('/') && metric.failure_limit == 0 => {
                let metric = if operator.starts_with('<') == fails_when_true {
                    SerinMetric::SuccessRate
                } else {
                    SerinMetric::ErrorRate
                };
                (requests.unwrap_or(ASSUMED_REQUESTS), requests.is_some(), metric)
            }
            Provider::Prometheus(_) | Provider::Web(_) | Provider::Judge(_) | Provider::MannWhitney(_) => {
                return None;
            }
        };
        // Everything becomes "fails from this error rate on".
        let (limit, healthy) = match rate_of {
            SerinMetric::ErrorRate => (number, number / 2.0),
            SerinMetric::SuccessRate => (1.0 - number, (1.0 - number) / 2.0),
            SerinMetric::ErrorRateDifference => (number + 0.005, 0.005),
            SerinMetric::RequestRate | SerinMetric::Latency => return None,
        };
        let upward = rate_of != SerinMetric::SuccessRate;
        let passes_below = upward == (operator.starts_with('<') != fails_when_true);
        if !passes_below || !(0.0..=0.2).contains(&limit) || limit <= 0.0 {
            return None;
        }
        let strict = matches!(operator, "<" | ">") != fails_when_true;
        let by_duration = metric.duration.zip(metric.interval).map(|(duration, interval)| {
            u32::try_from(duration.as_millis() / interval.as_millis().max(1))
                .unwrap_or(u32::MAX)
                .max(1)
        });
        Some(Threshold {
            key,
            requests,
            certain,
            healthy,
            fails_at: fails_at(limit, requests, strict),
            count: by_duration
                .or(metric.effective_count())
                .unwrap_or(ASSUMED_COUNT)
                .min(10_000),
            forgiven: u32::try_from(metric.failure_limit).ok()?,
        })
    }

    /// The chance that one measurement fails when this share of requests fails.
    pub fn fails_one(&self, rate: f64) -> f64 {
        binomial_tail(self.requests, rate, self.fails_at)
    }

    /// The chance that the metric fails, and with it the analysis.
    pub fn fails(&self, rate: f64) -> f64 {
        binomial_tail(
            u64::from(self.count),
            self.fails_one(rate),
            u64::from(self.forgiven) + 1,
        )
    }
}

/// How many errors of so many requests are beyond the limit.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positive, and far below 2^52"
)]
fn fails_at(limit: f64, requests: u64, strict: bool) -> u64 {
    let edge = limit * requests as f64;
    if strict {
        (edge - 1e-9).ceil().max(1.0) as u64
    } else {
        (edge + 1e-9).floor() as u64 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::SerinQuery;

    fn below(number: &str, count: i32, forgiven: i32) -> MetricSpec {
        let mut metric = MetricSpec::named("m", Provider::Serin(SerinQuery::of(SerinMetric::ErrorRate)));
        metric.success_condition = Some(format!("result < {number}"));
        (metric.count, metric.failure_limit) = (Some(count), forgiven);
        metric
    }

    #[test]
    fn more_requests_make_both_errors_rarer() {
        let few = Threshold::of(&below("0.01", 5, 0), Some(60)).unwrap();
        let many = Threshold::of(&below("0.01", 5, 0), Some(6000)).unwrap();
        assert_eq!((few.fails_at, many.fails_at), (1, 60));
        assert!(few.fails(0.005) > 0.75 && many.fails(0.005) < 0.001);
        assert!(few.fails(0.0) < 1e-12 && many.fails(0.02) > 0.999);
    }

    #[test]
    fn fewer_requests_than_a_measurement_waits_for_are_never_behind_it() {
        assert_eq!(Threshold::of(&below("0.01", 1, 0), Some(3)).unwrap().requests, 20);
        assert_eq!(Threshold::of(&below("0.01", 1, 0), None).unwrap().requests, 20);
    }

    #[test]
    fn forgiven_measurements_are() {
        let strict = Threshold::of(&below("0.05", 5, 0), None).unwrap();
        let mild = Threshold::of(&below("0.05", 5, 2), None).unwrap();
        assert!(mild.fails(0.05) < strict.fails(0.05));
        // All may fail: it cannot say no.
        let never = Threshold::of(&below("0.05", 5, 5), None).unwrap();
        assert!(never.fails(1.0) < 1e-12);
    }

    #[test]
    fn what_is_no_bound_on_a_share_is_not_a_threshold() {
        let mut latency = MetricSpec::named("m", Provider::Serin(SerinQuery::of(SerinMetric::Latency)));
        latency.success_condition = Some("result < 0.1".to_owned());
        assert_eq!(Threshold::of(&latency, None), None);
        assert_eq!(Threshold::of(&below("0.5", 1, 0), None), None);
    }
}
