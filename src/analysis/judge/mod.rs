//! The sequential judge: is the canary worse than stable, answered after every tick, with one risk for the whole rollout.
//!
//! Errors and slow responses are each a test of `stats::EProcess`; the rollback tests share `alpha`, and a step is left when
//! every proceed test has ruled out the harm that the next weight could do. Beside them, with a risk of its own, stands what calls
//! for a person: another share of 4xx answers than stable's (`client_errors`). Pure: `control::judging` reads the counters and
//! keeps the state, `serin rehearse` replays cases.

pub mod against_itself;
mod client_errors;
mod config;
pub mod record;
pub mod replay;
mod report;
mod sight;

pub use client_errors::ClientErrorsReport;
pub use config::JudgeConfig;
pub use report::{Eta, JudgeReport, Piece, TestReport};
pub use sight::Fault;

use crate::stats::{Baseline, Counts, EProcess, Side, UnitCounts, edge, log_sum_exp};
use client_errors::ClientErrors;
use serde::{Deserialize, Serialize};

/// Stable's latencies count half after so many seconds.
const HALF_LIFE: f64 = 60.0;
/// Stable's failures, and the traffic of now, count half after so many seconds.
const RECENT: f64 = 10.0;
/// Fewer of stable's recent requests than this freeze nothing.
const LEAST_RECENT: f64 = 50.0;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Advice {
    /// The canary is worse than tolerated.
    Rollback,
    /// The harm that the next weight could do is ruled out.
    Proceed,
    /// Not enough is known.
    Hold,
    /// A person must look at the canary's 4xx answers. Stands beside the others: [`Judge::advice`] never says it.
    Pause,
}

impl Advice {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Advice::Rollback => "rollback",
            Advice::Proceed => "proceed",
            Advice::Hold => "hold",
            Advice::Pause => "pause",
        }
    }
}

/// What came of one generation of the split in one tick.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// The canary's share when these requests were assigned.
    pub weight: f64,
    /// The canary's.
    pub canary: UnitCounts,
    /// Stable's.
    pub stable: UnitCounts,
}

/// One of the questions: errors, or slowness at a quantile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Test {
    harm: EProcess,
    fine: EProcess,
    /// Since the rollout began; for slowness, since the warm-up ended.
    seen: Seen,
    /// Of that, at this step.
    here: Seen,
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

impl Test {
    fn new(rho: f64, delta: f64) -> Test {
        let harm = EProcess::new(Side::Rollback, rho, delta);
        Test {
            fine: harm.clone(),
            harm,
            seen: Seen::default(),
            here: Seen::default(),
        }
    }

    fn new_step(&mut self, rho: f64, margin: f64) {
        self.fine = EProcess::new(Side::Proceed, rho, margin);
        self.here = Seen::default();
    }
}

/// Requests of the last seconds, faded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Recent {
    seconds: f64,
    canary: f64,
    stable: f64,
    stable_bad: f64,
}

/// The judge of one rollout. Stored and resumed whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judge {
    config: JudgeConfig,
    weight: f64,
    next: f64,
    t: f64,
    t_step: f64,
    t_first: Option<f64>,
    was_warm: bool,
    errors: Test,
    slow: Vec<Test>,
    baseline: Baseline,
    recent: Recent,
    /// Absent, also in what is stored: 4xx answers are not watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_errors: Option<ClientErrors>,
    /// When the canary's last request ended, or the judge began. Absent, also in what is stored: by a Serin that did not say for
    /// how long there was none; what it recorded is replayed without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    heard: Option<f64>,
}

impl Judge {
    /// A judge before the first request at the first weight. `next` is the weight after it: 1 when that is everything.
    /// `baseline` is what stable's latencies have been so far.
    pub fn new(config: JudgeConfig, weight: f64, next: f64, baseline: Baseline) -> Judge {
        let mut judge = Judge {
            weight,
            next,
            t: 0.0,
            t_step: 0.0,
            t_first: None,
            was_warm: false,
            errors: Test::new(config.err_rho, config.err_delta),
            slow: config.lat_q.iter().map(|_| Test::new(1.0, 0.0)).collect(),
            baseline,
            recent: Recent::default(),
            client_errors: config.client_err_delta.map(ClientErrors::new),
            heard: Some(0.0),
            config,
        };
        judge.fresh_proceed_tests();
        judge
    }

    /// A baseline before stable's first request.
    pub fn empty_baseline() -> Baseline {
        Baseline::new(HALF_LIFE)
    }

    /// What stable's latencies have been so far.
    pub fn baseline(&self) -> &Baseline {
        &self.baseline
    }

    /// What it goes by.
    pub fn config(&self) -> &JudgeConfig {
        &self.config
    }

    /// The weight of this step, and the one after it.
    pub fn step(&self) -> (f64, f64) {
        (self.weight, self.next)
    }

    fn fresh_proceed_tests(&mut self) {
        let margin = self.config.error_margin(self.next);
        self.errors.new_step(self.config.err_ok_rho, margin);
        for (test, q) in self.slow.iter_mut().zip(&self.config.lat_q) {
            test.new_step(1.0, self.config.latency_margin(*q, self.next));
        }
    }

    /// Another weight has been set.
    pub fn enter(&mut self, weight: f64, next: f64) {
        (self.weight, self.next, self.t_step) = (weight, next, self.t);
        self.errors.harm.new_step();
        for test in &mut self.slow {
            test.harm.new_step();
        }
        if let Some(test) = &mut self.client_errors {
            test.new_step();
        }
        self.fresh_proceed_tests();
    }

    /// Whether real slowness counts by now, and not only gross one.
    fn is_warm(&self) -> bool {
        let first = self
            .t_first
            .is_some_and(|first| self.t - first >= self.config.warmup_s);
        first && self.t - self.t_step >= self.config.step_warmup_s
    }

    /// Takes in what came in `dt` seconds.
    pub fn tick(&mut self, dt: f64, batches: &[Batch]) -> Advice {
        let mut stable = vec![0; crate::stats::BUCKETS];
        for batch in batches {
            batch.stable.add_latency_to(&mut stable);
        }
        // Where there was no choice there is nothing to compare; nor is there of a generation that has ended.
        let chosen = |batch: &&Batch| batch.weight > 0.0 && batch.weight < 1.0 && !batch.is_empty();
        let batches: Vec<&Batch> = batches.iter().filter(chosen).collect();
        if batches.iter().any(|batch| batch.canary.ended() > 0) {
            self.t_first.get_or_insert(self.t);
            self.heard = self.heard.map(|_| self.t + dt);
        }
        let warm = self.is_warm();
        if warm && !self.was_warm {
            self.was_warm = true;
            for test in &mut self.slow {
                (test.seen, test.here) = (Seen::default(), Seen::default());
            }
        }
        self.recent.fade(dt);
        for batch in &batches {
            let counts = batch.errors();
            self.recent.add(&counts);
            self.errors.seen.add(&counts);
            self.errors.here.add(&counts);
            self.errors.harm.tick(&counts);
            self.errors.fine.tick(&counts);
            if let Some(test) = &mut self.client_errors {
                test.tick(&batch.client_errors(counts));
            }
        }
        for (index, test) in self.slow.iter_mut().enumerate() {
            // From before this tick's data: predictable, which is all that validity needs.
            let Some(threshold) = self.baseline.threshold(self.config.lat_q[index]) else {
                continue;
            };
            let canary = self.config.slow_from(threshold, warm);
            for batch in &batches {
                let counts = batch.slow(index, threshold, canary);
                test.seen.add(&counts);
                test.here.add(&counts);
                test.harm.tick(&counts);
                if warm {
                    test.fine.tick(&counts);
                }
            }
        }
        self.baseline.update(dt, &stable);
        self.t += dt;
        self.advice()
    }

    /// After how many seconds a request of stable and one of the canary is slow, for each quantile, ascending.
    pub fn slow_after(&self) -> Vec<Option<(f64, f64)>> {
        let warm = self.is_warm();
        let after = |q: &f64| {
            let threshold = self.baseline.threshold(*q)?;
            Some((edge(threshold), edge(self.config.slow_from(threshold, warm))))
        };
        self.config.lat_q.iter().map(after).collect()
    }

    /// Each rollback test's evidence with its share of `alpha`, and the bad requests behind it.
    fn harms(&self) -> Vec<(f64, u64)> {
        let (errors, quantile) = self.config.shares();
        let weigh = |share: f64, test: &Test| (share.ln() + test.harm.log_e(), test.seen.canary_bad);
        let slow = self.slow.iter().map(|test| weigh(quantile, test));
        std::iter::once(weigh(errors, &self.errors)).chain(slow).collect()
    }

    /// The logarithm of all evidence of harm.
    pub fn log_harm(&self) -> f64 {
        together(&self.harms())
    }

    /// The logarithms of the evidence that there is no harm: errors, then each quantile.
    pub fn log_fine(&self) -> (f64, Vec<f64>) {
        (
            self.errors.fine.log_e(),
            self.slow.iter().map(|test| test.fine.log_e()).collect(),
        )
    }

    /// The test with the most evidence of harm: 0 is errors, then each quantile.
    fn lead(&self) -> usize {
        leads(&self.harms())
    }

    fn test(&self, index: usize) -> &Test {
        index
            .checked_sub(1)
            .and_then(|index| self.slow.get(index))
            .unwrap_or(&self.errors)
    }

    /// Whether stable itself fails so much that nothing goes on.
    fn is_frozen(&self) -> bool {
        let (requests, failures) = (self.recent.stable, self.recent.stable_bad);
        requests >= LEAST_RECENT && failures > self.config.freeze_stable_err * requests
    }

    /// What to do after the last tick.
    pub fn advice(&self) -> Advice {
        let harms = self.harms();
        let (_, bad) = harms[leads(&harms)];
        if together(&harms) >= -self.config.alpha.ln() && bad >= self.config.min_canary_events {
            return Advice::Rollback;
        }
        if self.is_frozen() {
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

/// All evidence of several tests.
fn together(harms: &[(f64, u64)]) -> f64 {
    log_sum_exp(harms.iter().map(|(log, _)| *log))
}

/// The first of the tests with the most evidence; one of them at least is there.
fn leads(harms: &[(f64, u64)]) -> usize {
    let mut lead = (0, f64::NEG_INFINITY);
    for (index, (log, _)) in harms.iter().enumerate() {
        if *log > lead.1 {
            lead = (index, *log);
        }
    }
    lead.0
}

impl Recent {
    fn fade(&mut self, dt: f64) {
        let factor = 0.5f64.powf(dt / RECENT);
        self.seconds = self.seconds * factor + dt;
        self.canary *= factor;
        self.stable *= factor;
        self.stable_bad *= factor;
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of one tick are far below 2^53")]
    fn add(&mut self, counts: &Counts) {
        self.canary += counts.canary as f64;
        self.stable += counts.stable as f64;
        self.stable_bad += counts.stable_bad as f64;
    }
}

impl Batch {
    /// The same for a judge with thresholds of its own: what was slow in flight was so by somebody else's, and counts when it
    /// ends.
    #[must_use]
    pub fn by_their_end(&self) -> Batch {
        Batch {
            weight: self.weight,
            canary: self.canary.by_their_end(),
            stable: self.stable.by_their_end(),
        }
    }

    fn errors(&self) -> Counts {
        Counts {
            w: self.weight,
            canary: self.canary.ended(),
            canary_bad: self.canary.failed,
            stable: self.stable.ended(),
            stable_bad: self.stable.failed,
        }
    }

    /// Of the same requests as [`Batch::errors`].
    fn client_errors(&self, errors: Counts) -> Counts {
        Counts {
            canary_bad: self.canary.client_errors,
            stable_bad: self.stable.client_errors,
            ..errors
        }
    }

    fn is_empty(&self) -> bool {
        self.canary.is_empty() && self.stable.is_empty()
    }

    /// Slow is beyond the bucket `of_stable` for stable, and beyond `of_canary` for the canary.
    fn slow(&self, index: usize, of_stable: usize, of_canary: usize) -> Counts {
        let (canary, canary_bad) = self.canary.judged(index, of_canary);
        let (stable, stable_bad) = self.stable.judged(index, of_stable);
        Counts {
            w: self.weight,
            canary,
            canary_bad,
            stable,
            stable_bad,
        }
    }
}
