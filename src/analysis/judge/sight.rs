//! What a judge will be able to see, told before the rollout: how many of the canary's requests it takes to roll back a
//! release with a stated fault, and to go on with a healthy one.
//!
//! The typical course: the evidence grows as its logarithm does on average. The tests hold it against the medians of
//! simulated rollouts.

use super::JudgeConfig;
use crate::stats::{EProcess, Side};

/// A fault of a canary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// This share of its requests fails, 0 to 1.
    Failing(f64),
    /// This share of its responses is slower than stable's quantile of that place, and what is tolerated beyond it.
    Slow {
        /// The place of the quantile in [`JudgeConfig::lat_q`].
        quantile: usize,
        /// Of stable's responses, one minus the quantile is.
        share: f64,
    },
    /// Such shares of its answers and of stable's are 4xx, 0 to 1: it is paused, not rolled back.
    ClientErrors {
        /// Of its own.
        canary: f64,
        /// Of stable's.
        stable: f64,
    },
}

impl JudgeConfig {
    /// After how many canary requests at `weight` a release with this fault is rolled back, or paused, typically, when the share
    /// `stable_fails` of stable's requests fails. `None`: not by this.
    pub fn finds(&self, weight: f64, stable_fails: f64, fault: Fault) -> Option<f64> {
        let (of_errors, of_quantile) = self.shares();
        let (test, share, bad, of_stable) = match fault {
            Fault::Failing(rate) => {
                let test = EProcess::new(Side::Rollback, self.err_rho, self.err_delta);
                (test, of_errors, rate, stable_fails)
            }
            Fault::Slow { quantile, share } => {
                let of_stable = 1.0 - self.lat_q.get(quantile)?;
                let test = EProcess::new(Side::Rollback, 1.0, 0.0);
                (test, of_quantile, share, of_stable)
            }
            Fault::ClientErrors { canary, stable } => {
                return self.finds_client_errors(weight, (canary, stable));
            }
        };
        let log = -(self.alpha.ln() + share.ln());
        let needed = test.needs(log, weight, divided(weight, bad, of_stable))? * weight;
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let least = self.min_canary_events as f64 / bad;
        Some(needed.max(least).ceil())
    }

    /// After how many canary requests at `weight` the judge lets a release that is like stable go on to `next`, typically.
    /// `None`: never.
    pub fn lets_go_on(&self, weight: f64, next: f64, stable_fails: f64) -> Option<f64> {
        if stable_fails > self.freeze_stable_err {
            return None;
        }
        let errors = EProcess::new(Side::Proceed, self.err_ok_rho, self.error_margin(next));
        let slow = self.lat_q.iter().map(|q| {
            let test = EProcess::new(Side::Proceed, 1.0, self.latency_margin(*q, next));
            (test, 1.0 - q)
        });
        std::iter::once((errors, stable_fails))
            .chain(slow)
            .map(|(test, bad)| test.needs(-self.beta.ln(), weight, divided(weight, bad, bad)))
            .try_fold(0.0f64, |most, needed| Some(most.max(needed?)))
            .map(|needed| (needed * weight).ceil())
    }
}

/// How requests divide into canary bad, canary good, stable bad, stable good where such shares of both are bad.
pub(super) fn divided(w: f64, canary: f64, stable: f64) -> [f64; 4] {
    [
        w * canary,
        w * (1.0 - canary),
        (1.0 - w) * stable,
        (1.0 - w) * (1.0 - stable),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_about(found: Option<f64>, median: f64, what: &str) {
        let Some(found) = found else {
            panic!("{what}: never instead of {median}")
        };
        let off = (found / median).max(median / found);
        assert!(off <= 1.3, "{what}: {found} instead of {median}");
    }

    #[test]
    fn faults_are_found_about_when_simulated_rollouts_find_them() {
        let judge = JudgeConfig::default();
        // Table T2, column "share e (rec.)".
        for (weight, stable, canary, median) in [
            (0.05, 0.001, 0.05, 70.0),
            (0.01, 0.001, 0.05, 60.0),
            (0.25, 0.001, 0.05, 141.0),
            (0.5, 0.001, 0.05, 282.0),
            (0.05, 0.001, 0.011, 638.0),
            (0.05, 0.005, 0.015, 1448.0),
            (0.05, 0.01, 0.02, 2458.0),
            (0.25, 0.005, 0.015, 2012.0),
            (0.05, 0.0, 0.01, 374.0),
            (0.01, 0.001, 1.0, 3.0),
        ] {
            let found = judge.finds(weight, stable, Fault::Failing(canary));
            is_about(found, median, &format!("{stable} to {canary} at {weight}"));
        }
    }

    #[test]
    fn slowness_is_found_about_when_simulated_rollouts_find_it() {
        // Table T4, "p50 only", is of centred bets: these take about twice as many requests (section 4).
        let judge = JudgeConfig {
            err_share: 0.0,
            lat_q: vec![0.5],
            ..JudgeConfig::default()
        };
        // Half again as slow: of lognormal times with sigma 0.6, 70 of 100 are beyond the median and a tenth.
        let slow = Fault::Slow {
            quantile: 0,
            share: 0.696,
        };
        is_about(judge.finds(0.05, 0.0, slow), 2.0 * 128.0, "x1.5 at 5 %");
    }

    #[test]
    fn what_is_tolerated_or_within_stables_own_rate_is_never_found() {
        let judge = JudgeConfig::default();
        assert_eq!(judge.finds(0.05, 0.01, Fault::Failing(0.0104)), None);
        let same = Fault::Slow {
            quantile: 1,
            share: 0.1,
        };
        assert_eq!(judge.finds(0.05, 0.01, same), None);
        assert_eq!(judge.finds(1.0, 0.0, Fault::Failing(1.0)), None);
    }

    #[test]
    fn a_healthy_release_needs_what_its_next_weight_could_cost() {
        let judge = JudgeConfig {
            lat_q: Vec::new(),
            ..JudgeConfig::default()
        };
        // `spec/statistics.md` section 5, without errors.
        for (weight, next, requests) in [
            (0.01, 0.05, 260.0),
            (0.05, 0.25, 1300.0),
            (0.25, 0.5, 2600.0),
            (0.5, 1.0, 5200.0),
        ] {
            is_about(
                judge.lets_go_on(weight, next, 0.0),
                requests,
                &format!("at {weight}"),
            );
        }
        let with_latency = JudgeConfig::default().lets_go_on(0.05, 0.25, 0.0);
        assert!(with_latency >= judge.lets_go_on(0.05, 0.25, 0.0));
    }
}
