//! Whether the canary answers 4xx more often than stable, or more seldom: a difference that a person must see, and no reason to
//! roll back. A release may refuse what it should take, or take what it should refuse; it may also mend either.
//!
//! Two bets with half the capital each, one that the canary has more and one that stable has, against "the shares differ by no
//! more than tolerated". A mixture of such bets passes 1/alpha with a probability of at most alpha over the whole rollout, so this
//! test has an `alpha` of its own: its risk is that of a false pause, and takes nothing from that of a false rollback.

use super::{
    Advice, Judge, JudgeConfig, Seen,
    report::{e, figure, general, percent},
};
use crate::{
    model::thousands,
    stats::{Counts, EProcess, Side, log_sum_exp},
};
use serde::{Deserialize, Serialize};

/// What each of the two bets begins with.
const HALF: f64 = 0.5;

/// The two bets, and what they were made on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ClientErrors {
    more: EProcess,
    fewer: EProcess,
    seen: Seen,
}

impl ClientErrors {
    /// Before the first request. `delta` is the difference of shares that is tolerated.
    pub(super) fn new(delta: f64) -> ClientErrors {
        let test = EProcess::new(Side::Rollback, 1.0, delta);
        ClientErrors {
            more: test.clone(),
            fewer: test,
            seen: Seen::default(),
        }
    }

    pub(super) fn new_step(&mut self) {
        self.more.new_step();
        self.fewer.new_step();
    }

    pub(super) fn tick(&mut self, counts: &Counts) {
        self.seen.add(counts);
        self.more.tick(counts);
        // The same question with the roles exchanged: a request goes to stable with what is left.
        self.fewer.tick(&Counts {
            w: 1.0 - counts.w,
            canary: counts.stable,
            canary_bad: counts.stable_bad,
            stable: counts.canary,
            stable_bad: counts.canary_bad,
        });
    }

    fn log_e(&self) -> f64 {
        let bets = [&self.more, &self.fewer];
        log_sum_exp(bets.map(|bet| HALF.ln() + bet.log_e()))
    }

    /// As many as a rollback needs, by the version that has more.
    fn has_enough(&self, least: u64) -> bool {
        let of_more = if self.more.log_e() >= self.fewer.log_e() {
            self.seen.canary_bad
        } else {
            self.seen.stable_bad
        };
        of_more >= least
    }
}

/// How the canary's 4xx answers compare with stable's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientErrorsReport {
    /// The canary's requests.
    pub canary: u64,
    /// Of these, answered 4xx.
    pub canary_bad: u64,
    /// Stable's requests.
    pub stable: u64,
    /// Of these, answered 4xx.
    pub stable_bad: u64,
    /// The evidence that the shares differ by more than tolerated.
    pub evidence: f64,
    /// What it must reach for a pause: one over the risk of a false one.
    pub needs: f64,
    /// Whether it has.
    pub differs: bool,
    /// The same in one sentence.
    pub sentence: String,
}

impl Judge {
    /// The logarithm of the evidence that the shares of 4xx answers differ; `None`: nobody asked.
    pub fn log_client_errors(&self) -> Option<f64> {
        self.client_errors.as_ref().map(ClientErrors::log_e)
    }

    /// Whether a person must look at the canary's 4xx answers, if nobody has yet. Beside [`Judge::advice`], which does not go by
    /// them.
    pub fn pauses(&self) -> bool {
        self.client_errors.as_ref().is_some_and(|test| {
            test.log_e() >= -self.config.alpha.ln() && test.has_enough(self.config.min_canary_events)
        })
    }

    /// How 4xx answers compare, when they are watched.
    pub fn client_errors(&self) -> Option<ClientErrorsReport> {
        let test = self.client_errors.as_ref()?;
        let (seen, evidence, needs) = (test.seen, e(test.log_e()), 1.0 / self.config.alpha);
        let share = |bad: u64, of: u64| format!("{}% of {}", percent(bad, of, 2), thousands(of));
        let numbers = format!(
            "4xx: canary {}, stable {}",
            share(seen.canary_bad, seen.canary),
            share(seen.stable_bad, seen.stable)
        );
        let differs = self.pauses();
        let sentence = if differs {
            format!(
                "{} at weight {}%: {numbers}; e-value {} >= {} (false-pause risk <= {}% for the whole rollout)",
                Advice::Pause.as_str().to_uppercase(),
                general(100.0 * self.weight, 6),
                figure(evidence),
                general(needs, 6),
                general(100.0 * self.config.alpha, 6)
            )
        } else {
            format!(
                "{numbers} (e={}, a pause needs {})",
                figure(evidence),
                general(needs, 6)
            )
        };
        Some(ClientErrorsReport {
            canary: seen.canary,
            canary_bad: seen.canary_bad,
            stable: seen.stable,
            stable_bad: seen.stable_bad,
            evidence,
            needs,
            differs,
            sentence,
        })
    }
}

impl JudgeConfig {
    /// After how many canary requests at `weight` a release is paused, typically, whose share of 4xx answers is `canary` where
    /// stable's is `stable`. `None`: not by this.
    pub(super) fn finds_client_errors(&self, weight: f64, (canary, stable): (f64, f64)) -> Option<f64> {
        let test = EProcess::new(Side::Rollback, 1.0, self.client_err_delta?);
        let log = -(self.alpha.ln() + HALF.ln());
        let (weight_of_more, more, less) = if canary >= stable {
            (weight, canary, stable)
        } else {
            (1.0 - weight, stable, canary)
        };
        let shares = super::sight::divided(weight_of_more, more, less);
        let needed = test.needs(log, weight_of_more, shares)? * weight;
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let least = self.min_canary_events as f64 / more * weight / weight_of_more;
        Some(needed.max(least).ceil())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::{Batch, Fault, simulation::Dice};
    use crate::stats::UnitCounts;

    fn config() -> JudgeConfig {
        JudgeConfig {
            lat_q: Vec::new(),
            ..JudgeConfig::default()
        }
    }

    fn judge(config: JudgeConfig) -> Judge {
        Judge::new(config, 0.05, 0.25, Judge::empty_baseline())
    }

    fn units(ended: u64, client_errors: u64) -> UnitCounts {
        UnitCounts {
            client_errors,
            ..UnitCounts::of(0, vec![ended])
        }
    }

    fn tick(judge: &mut Judge, canary: (u64, u64), stable: (u64, u64)) -> Advice {
        let batch = Batch {
            weight: 0.05,
            canary: units(canary.0, canary.1),
            stable: units(stable.0, stable.1),
        };
        judge.tick(0.1, &[batch])
    }

    /// Canary requests until the pause, at 5 % by independent draws; the shares are of 4xx.
    fn paused_after(seed: u64, canary_share: f64, stable_share: f64, most: u64) -> Option<u64> {
        let (mut judge, mut dice, mut canary) = (judge(config()), Dice::new(seed), 0);
        while canary < most {
            let mut counts = [(0, 0); 2];
            for _ in 0..10 {
                let of_canary = dice.chance(0.05);
                let share = if of_canary { canary_share } else { stable_share };
                let count = &mut counts[usize::from(of_canary)];
                *count = (count.0 + 1, count.1 + u64::from(dice.chance(share)));
            }
            canary += counts[1].0;
            let advice = tick(&mut judge, counts[1], counts[0]);
            assert_ne!(advice, Advice::Rollback, "4xx answers never roll back");
            if judge.pauses() {
                return Some(canary);
            }
        }
        None
    }

    fn median(canary: f64, stable: f64) -> u64 {
        let mut found: Vec<u64> = (0..101)
            .map(|seed| paused_after(seed, canary, stable, 20_000).unwrap_or(u64::MAX))
            .collect();
        found.sort_unstable();
        found[found.len() / 2]
    }

    #[test]
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    fn a_different_share_is_found_about_when_it_is_foretold() {
        for (canary, stable, most) in [(0.05, 0.005, 200), (0.2, 0.005, 30), (0.002, 0.05, 400)] {
            let found = median(canary, stable);
            assert!(found <= most, "{stable} to {canary}: {found}");
            let fault = Fault::ClientErrors { canary, stable };
            let foretold = config().finds(0.05, 0.0, fault).unwrap();
            let off = found as f64 / foretold;
            assert!((0.6..1.6).contains(&off), "{found} instead of {foretold}");
        }
        let same = Fault::ClientErrors {
            canary: 0.0509,
            stable: 0.05,
        };
        assert_eq!(config().finds(0.05, 0.0, same), None, "this is tolerated");
    }

    #[test]
    fn the_sentence_has_the_numbers() {
        let mut judge = judge(config());
        tick(&mut judge, (20, 1), (380, 2));
        let calm = judge.client_errors().unwrap();
        assert!(!calm.differs);
        assert!(
            calm.sentence
                .starts_with("4xx: canary 5.00% of 20, stable 0.53% of 380 (e=")
                && calm.sentence.ends_with(", a pause needs 100)"),
            "{calm:#?}"
        );
        tick(&mut judge, (400, 33), (7_600, 30));
        let said = judge.report().client_errors.unwrap();
        assert!(said.differs && said.evidence >= 100.0);
        assert!(
            said.sentence
                .starts_with("PAUSE at weight 5%: 4xx: canary 8.10% of 420, stable 0.40% of 7,980; e-value ")
                && said
                    .sentence
                    .ends_with(" >= 100 (false-pause risk <= 1% for the whole rollout)"),
            "{said:#?}"
        );
    }

    #[test]
    fn fewer_than_stable_is_a_difference_too() {
        let mut judge = judge(config());
        for _ in 0..20 {
            tick(&mut judge, (50, 0), (950, 95));
        }
        assert!(judge.pauses());
    }

    #[test]
    fn it_takes_three_and_two_are_never_enough() {
        let mut judge = Judge::new(config(), 0.001, 0.01, Judge::empty_baseline());
        let mut one_more = || {
            let batch = Batch {
                weight: 0.001,
                canary: units(1, 1),
                stable: units(999, 0),
            };
            judge.tick(0.1, &[batch]);
            (judge.log_client_errors().unwrap() >= 100f64.ln(), judge.pauses())
        };
        assert_eq!(one_more(), (false, false));
        assert_eq!(one_more(), (true, false));
        assert_eq!(one_more(), (true, true));
    }

    #[test]
    fn failures_say_nothing_about_4xx_and_4xx_nothing_about_failures() {
        let (mut watching, mut blind) = (
            judge(config()),
            judge(JudgeConfig {
                client_err_delta: None,
                ..config()
            }),
        );
        for tick in 0..50 {
            let canary = UnitCounts {
                client_errors: 10,
                ..UnitCounts::of(u64::from(tick % 7 == 0), vec![50])
            };
            let batch = Batch {
                weight: 0.05,
                canary,
                stable: units(950, 3),
            };
            watching.tick(0.1, std::slice::from_ref(&batch));
            blind.tick(0.1, &[batch]);
        }
        assert!(watching.pauses() && !blind.pauses());
        assert_eq!(watching.log_harm().to_bits(), blind.log_harm().to_bits());
        assert_eq!(watching.log_fine(), blind.log_fine());
        assert_eq!(blind.report().client_errors, None);
    }

    #[test]
    fn a_judge_from_before_reads_and_writes_as_it_did() {
        let before = judge(JudgeConfig {
            client_err_delta: None,
            ..config()
        });
        let text = serde_json::to_string(&before).unwrap();
        assert!(!text.contains("client_err"), "its fingerprint is what it was");
        assert_eq!(serde_json::from_str::<Judge>(&text).unwrap(), before);
        let mut now = judge(config());
        tick(&mut now, (20, 1), (380, 2));
        let text = serde_json::to_string(&now).unwrap();
        assert_eq!(serde_json::from_str::<Judge>(&text).unwrap(), now);
    }
}
