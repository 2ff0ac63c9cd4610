//! What the judge tolerates, and how sure it must be.

use crate::stats::{bucket, edge, shift_for};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The parameters of one judge. Probabilities and shares are fractions of one, times seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JudgeConfig {
    /// The probability of a false rollback over the whole rollout.
    pub alpha: f64,
    /// The probability of leaving a step although the harm is at least the margin.
    pub beta: f64,
    /// Errors are tolerated up to `err_rho` × stable's …
    pub err_rho: f64,
    /// … plus this.
    pub err_delta: f64,
    /// How much slower is tolerated.
    pub lat_tol: f64,
    /// At which quantiles, ascending; at most [`crate::stats::MOST_CUTS`].
    pub lat_q: Vec<f64>,
    /// Extra failed requests per request at the next weight.
    pub harm_budget: f64,
    /// A step is left when errors above this × stable's plus the margin are ruled out.
    pub err_ok_rho: f64,
    /// Extra share of slow requests to rule out at the last step, by quantile.
    pub lat_ok_delta: BTreeMap<String, f64>,
    /// The share of `alpha` that is for errors; the rest is for the latency quantiles, equally.
    pub err_share: f64,
    /// For so long after the first canary request only gross slowness counts.
    pub warmup_s: f64,
    /// The same after each weight.
    pub step_warmup_s: f64,
    /// What gross means: 2 is three times as slow.
    pub warmup_tol: f64,
    /// And by at least so many seconds: a cold cache costs a fast service many times its usual fraction of a millisecond.
    pub warmup_least_s: f64,
    /// A step takes at least this long.
    pub min_step_s: f64,
    /// No rollback on fewer bad canary requests than this.
    pub min_canary_events: u64,
    /// Never proceed while stable itself fails more than this.
    pub freeze_stable_err: f64,
    /// Shares of 4xx answers that differ by more than this call for a person. Absent, as in what was stored before there was such a
    /// test: they are not watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_err_delta: Option<f64>,
}

impl Default for JudgeConfig {
    fn default() -> JudgeConfig {
        let margins = [("0.5", 0.05), ("0.9", 0.03), ("0.99", 0.005)];
        JudgeConfig {
            alpha: 0.01,
            beta: 0.05,
            err_rho: 1.0,
            err_delta: 0.0005,
            lat_tol: 0.10,
            lat_q: vec![0.5, 0.9, 0.99],
            harm_budget: 0.001,
            err_ok_rho: 1.25,
            lat_ok_delta: margins.map(|(q, margin)| (q.to_owned(), margin)).into(),
            err_share: 0.5,
            warmup_s: 30.0,
            step_warmup_s: 5.0,
            warmup_tol: 2.0,
            warmup_least_s: 0.010,
            min_step_s: 10.0,
            min_canary_events: 3,
            freeze_stable_err: 0.02,
            client_err_delta: Some(0.001),
        }
    }
}

impl JudgeConfig {
    /// Extra failures per request that the next weight may cost.
    pub fn error_margin(&self, next: f64) -> f64 {
        (self.harm_budget / next).min(0.5)
    }

    /// Extra share of slow requests to rule out; up to three times that of the last step while the next weight is small.
    pub fn latency_margin(&self, q: f64, next: f64) -> f64 {
        let known = self.lat_ok_delta.get(&q.to_string()).copied();
        // Half of what is slow in any case, where nothing is written.
        let margin = known.unwrap_or_else(|| (0.5 * (1.0 - q)).clamp(0.0005, 0.05));
        margin * (1.0 / next).min(3.0)
    }

    /// The bucket beyond which the canary is slow where stable is beyond `stable`; before it is warm only gross slowness is.
    pub fn slow_from(&self, stable: usize, warm: bool) -> usize {
        if warm {
            return stable + shift_for(self.lat_tol);
        }
        let gross = stable + shift_for(self.warmup_tol);
        gross.max(bucket(edge(stable) + self.warmup_least_s))
    }

    /// Each test's share of `alpha`: errors, and each quantile.
    pub fn shares(&self) -> (f64, f64) {
        let quantiles = f64::from(u32::try_from(self.lat_q.len()).unwrap_or(u32::MAX));
        if self.lat_q.is_empty() {
            (1.0, 0.0)
        } else {
            (self.err_share, (1.0 - self.err_share) / quantiles)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_it_is_warm_a_canary_is_slow_by_three_times_and_ten_milliseconds() {
        let config = JudgeConfig::default();
        let seconds = |stable: f64, warm| edge(config.slow_from(bucket(stable), warm));
        let is_about =
            |found: f64, wanted: f64| assert!((found / wanted - 1.0).abs() < 0.06, "{found} {wanted}");
        is_about(seconds(0.000_3, false), 0.010_3);
        is_about(seconds(0.002, false), 0.012);
        is_about(seconds(0.1, false), 0.3);
        is_about(seconds(0.000_3, true), 0.000_33);
        is_about(seconds(0.1, true), 0.11);
    }
}
