//! The sequential judge: is the canary worse than stable, answered after every tick, with one risk for the whole rollout.
//!
//! Errors and slow responses are each a test of `stats::EProcess`; the rollback tests share `alpha`, and a step is left when
//! every proceed test has ruled out the harm that the next weight could do. Nothing in Serin's engine asks it yet;
//! `serin rehearse` replays it.

use crate::stats::{BUCKETS, Baseline, Counts, EProcess, Side, log_sum_exp, shift_for};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is tolerated, and how sure the judge must be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JudgeConfig {
    /// The probability of a false rollback over the whole rollout.
    pub alpha: f64,
    /// The probability of leaving a step although the harm is at least the margin.
    pub beta: f64,
    /// The weights; after the last comes everything.
    pub steps: Vec<f64>,
    /// Errors are tolerated up to `err_rho` × stable's …
    pub err_rho: f64,
    /// … plus this.
    pub err_delta: f64,
    /// How much slower is tolerated.
    pub lat_tol: f64,
    /// At which quantiles.
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
    /// A step takes at least this long.
    pub min_step_s: f64,
    /// No rollback on fewer bad canary requests than this.
    pub min_canary_events: u64,
    /// Never proceed while stable itself fails more than this.
    pub freeze_stable_err: f64,
}

impl Default for JudgeConfig {
    fn default() -> JudgeConfig {
        let margins = [("0.5", 0.05), ("0.9", 0.03), ("0.99", 0.005)];
        JudgeConfig {
            alpha: 0.01,
            beta: 0.05,
            steps: vec![0.01, 0.05, 0.25, 0.50],
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
            min_step_s: 10.0,
            min_canary_events: 3,
            freeze_stable_err: 0.02,
        }
    }
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Advice {
    /// The canary is worse than tolerated.
    Rollback,
    /// The harm that the next weight could do is ruled out.
    Proceed,
    /// Not enough is known.
    Hold,
}

impl Advice {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Advice::Rollback => "rollback",
            Advice::Proceed => "proceed",
            Advice::Hold => "hold",
        }
    }
}

/// One quantile's tests and totals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Slowness {
    q: f64,
    harm: EProcess,
    fine: EProcess,
    seen: Seen,
}

/// Totals, for people and for the least number of events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    canary: u64,
    canary_bad: u64,
    stable: u64,
    stable_bad: u64,
}

impl Seen {
    fn add(&mut self, counts: &Counts) {
        self.canary += counts.canary;
        self.canary_bad += counts.canary_bad;
        self.stable += counts.stable;
        self.stable_bad += counts.stable_bad;
    }
}

/// The judge of one rollout. Stored and resumed whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judge {
    config: JudgeConfig,
    step: usize,
    t: f64,
    t_step: f64,
    t_first: Option<f64>,
    warm: bool,
    harm: EProcess,
    fine: EProcess,
    seen: Seen,
    slow: Vec<Slowness>,
    baseline: Baseline,
    /// Stable's requests and failures of the last seconds, faded.
    recent: (f64, f64),
}

impl Judge {
    /// A judge before the first request.
    pub fn new(config: JudgeConfig) -> Judge {
        let harm = EProcess::new(Side::Rollback, config.err_rho, config.err_delta);
        let slow = config.lat_q.iter().map(|&q| Slowness {
            q,
            harm: EProcess::new(Side::Rollback, 1.0, 0.0),
            fine: EProcess::new(Side::Proceed, 1.0, 0.0),
            seen: Seen::default(),
        });
        let mut judge = Judge {
            step: 0,
            t: 0.0,
            t_step: 0.0,
            t_first: None,
            warm: false,
            fine: harm.clone(),
            harm,
            seen: Seen::default(),
            slow: slow.collect(),
            baseline: Baseline::new(60.0),
            recent: (0.0, 0.0),
            config,
        };
        judge.fresh_proceed_tests();
        judge
    }

    /// Whether this is the last weight before everything.
    pub fn is_last_step(&self) -> bool {
        self.step + 1 >= self.config.steps.len()
    }

    fn next_weight(&self) -> f64 {
        self.config.steps.get(self.step + 1).copied().unwrap_or(1.0)
    }

    fn fresh_proceed_tests(&mut self) {
        let next = self.next_weight();
        let margin = (self.config.harm_budget / next).min(0.5);
        self.fine = EProcess::new(Side::Proceed, self.config.err_ok_rho, margin);
        for slow in &mut self.slow {
            // Up to three times the margin of the last step while the next weight is small.
            let margin = self
                .config
                .lat_ok_delta
                .get(&slow.q.to_string())
                .copied()
                .unwrap_or(0.05);
            slow.fine = EProcess::new(Side::Proceed, 1.0, margin * (1.0 / next).min(3.0));
        }
    }

    /// The next weight has been set.
    pub fn advance(&mut self) {
        self.step += 1;
        self.t_step = self.t;
        self.harm.new_step();
        for slow in &mut self.slow {
            slow.harm.new_step();
        }
        self.fresh_proceed_tests();
    }

    /// Takes in the requests of `dt` seconds: error counts, and latencies by bucket.
    pub fn tick(&mut self, dt: f64, errors: &Counts, canary: &[u64], stable: &[u64]) -> Advice {
        if self.t_first.is_none() && errors.canary > 0 {
            self.t_first = Some(self.t);
        }
        let warm = self
            .t_first
            .is_some_and(|first| self.t - first >= self.config.warmup_s)
            && self.t - self.t_step >= self.config.step_warmup_s;
        if warm && !self.warm {
            self.warm = true;
            for slow in &mut self.slow {
                slow.seen = Seen::default();
            }
        }
        self.seen.add(errors);
        self.harm.tick(errors);
        self.fine.tick(errors);
        let shift = shift_for(if warm {
            self.config.lat_tol
        } else {
            self.config.warmup_tol
        });
        for slow in &mut self.slow {
            // From before this tick's data: predictable, which is all that validity needs.
            let Some(threshold) = self.baseline.threshold(slow.q) else {
                continue;
            };
            let counts = Counts {
                w: errors.w,
                canary: canary.iter().sum(),
                canary_bad: above(canary, threshold + shift),
                stable: stable.iter().sum(),
                stable_bad: above(stable, threshold),
            };
            slow.seen.add(&counts);
            slow.harm.tick(&counts);
            if warm {
                slow.fine.tick(&counts);
            }
        }
        self.baseline.update(dt, stable);
        self.fade(dt, errors);
        self.t += dt;
        self.advice()
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of one tick are far below 2^53")]
    fn fade(&mut self, dt: f64, errors: &Counts) {
        let factor = 0.5f64.powf(dt / 10.0);
        self.recent.0 = self.recent.0 * factor + errors.stable as f64;
        self.recent.1 = self.recent.1 * factor + errors.stable_bad as f64;
    }

    /// Each rollback test's evidence with its share of `alpha`, and the bad requests behind it.
    fn harms(&self) -> Vec<(f64, u64)> {
        let latency = if self.slow.is_empty() {
            0.0
        } else {
            1.0 - self.config.err_share
        };
        let errors = 1.0 - latency;
        let tests = f64::from(u32::try_from(self.slow.len()).unwrap_or(u32::MAX));
        let first = (errors.ln() + self.harm.log_e(), self.seen.canary_bad);
        let others = self
            .slow
            .iter()
            .map(|slow| ((latency / tests).ln() + slow.harm.log_e(), slow.seen.canary_bad));
        std::iter::once(first).chain(others).collect()
    }

    /// The logarithm of all evidence of harm.
    pub fn log_harm(&self) -> f64 {
        log_sum_exp(self.harms().into_iter().map(|(log, _)| log).collect::<Vec<_>>())
    }

    /// The logarithms of the evidence that there is no harm: errors, then each quantile.
    pub fn log_fine(&self) -> (f64, Vec<f64>) {
        (
            self.fine.log_e(),
            self.slow.iter().map(|slow| slow.fine.log_e()).collect(),
        )
    }

    fn advice(&self) -> Advice {
        let harms = self.harms();
        let mut lead = (f64::NEG_INFINITY, 0);
        for harm in &harms {
            if harm.0 > lead.0 {
                lead = *harm;
            }
        }
        if self.log_harm() >= -self.config.alpha.ln() && lead.1 >= self.config.min_canary_events {
            return Advice::Rollback;
        }
        let (requests, failures) = self.recent;
        if requests >= 50.0 && failures > self.config.freeze_stable_err * requests {
            return Advice::Hold;
        }
        let (errors, quantiles) = self.log_fine();
        let weakest = quantiles.into_iter().fold(errors, f64::min);
        let in_time = self.t - self.t_step >= self.config.min_step_s;
        if in_time && weakest >= -self.config.beta.ln() {
            return Advice::Proceed;
        }
        Advice::Hold
    }
}

fn above(counts: &[u64], bucket: usize) -> u64 {
    counts.iter().take(BUCKETS).skip(bucket + 1).sum()
}
