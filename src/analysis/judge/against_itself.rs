//! Stable against itself: what the judge makes of real traffic when there is nothing to find.
//!
//! Each tick's requests of stable are divided into a pretended canary's and the others by the exact split; which of them are the
//! canary's is drawn. Pure: draws are an argument. Of a request that failed its duration is not known: failures and durations are
//! divided each by itself, as each test looks at one of the two.

use super::{Advice, Batch, Judge, JudgeConfig};
use crate::{
    model::{Role, Weight},
    split::{Ticket, pick},
    stats::{UnitCounts, below, drawn},
};
use std::time::Duration;

/// What came of one pretended rollout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Course {
    /// Whether it would have been rolled back.
    pub rolled_back: bool,
    /// Whether it would have been paused for its 4xx answers.
    pub paused: bool,
    /// After how long it would have gone on to the next weight, if it would have.
    pub passed: Option<Duration>,
    /// The most evidence of harm that there was (its logarithm).
    pub log_harm: f64,
    /// The pretended canary's requests.
    pub canary: u64,
}

/// One pretended rollout over stable's `ticks`, at `weight` until the first rollback.
pub fn against_itself(
    config: JudgeConfig,
    (weight, next): (Weight, Weight),
    ticks: &[(Duration, UnitCounts)],
    draw: &mut dyn FnMut() -> u64,
) -> Course {
    let mut judge = Judge::new(
        config,
        weight.as_ratio(),
        next.as_ratio(),
        Judge::empty_baseline(),
    );
    let mut ticket = Ticket::default();
    let mut course = Course {
        rolled_back: false,
        paused: false,
        passed: None,
        log_harm: 0.0,
        canary: 0,
    };
    let mut seconds = Duration::ZERO;
    for (dt, counts) in ticks {
        let ended = counts.ended();
        let mut canaries = 0;
        for _ in 0..ended {
            let (role, after) = pick(ticket, weight, draw());
            (ticket, canaries) = (after, canaries + u64::from(role == Role::Canary));
        }
        let batch = divided(counts, (canaries, ended), weight, draw);
        course.canary += canaries;
        seconds += *dt;
        let advice = judge.tick(dt.as_secs_f64(), &[batch]);
        course.paused |= judge.pauses();
        course.log_harm = course.log_harm.max(judge.log_harm());
        match advice {
            Advice::Rollback => {
                course.rolled_back = true;
                return course;
            }
            Advice::Proceed => {
                course.passed.get_or_insert(seconds);
            }
            Advice::Hold | Advice::Pause => {}
        }
    }
    course
}

/// So many of the tick's requests are the canary's; which, is drawn without putting back.
fn divided(
    counts: &UnitCounts,
    (canaries, ended): (u64, u64),
    weight: Weight,
    draw: &mut dyn FnMut() -> u64,
) -> Batch {
    let mut stable = counts.durations();
    let canary = drawn(&stable, canaries, draw);
    for (left, taken) in stable.iter_mut().zip(&canary) {
        *left -= taken;
    }
    let mut marked = |all: u64| the_canarys(all, (canaries, ended), weight, draw);
    let (failed, client_errors) = (marked(counts.failed), marked(counts.client_errors));
    Batch {
        weight: weight.as_ratio(),
        canary: UnitCounts {
            client_errors,
            ..UnitCounts::of(failed, canary)
        },
        stable: UnitCounts {
            client_errors: counts.client_errors - client_errors,
            ..UnitCounts::of(counts.failed - failed, stable)
        },
    }
}

/// How many of `all` failures, or 4xx answers, are the canary's.
fn the_canarys(
    all: u64,
    (canaries, ended): (u64, u64),
    weight: Weight,
    draw: &mut dyn FnMut() -> u64,
) -> u64 {
    let (mut found, mut canary_left) = (0, canaries);
    for seen in 0..all {
        let left = ended.saturating_sub(seen);
        // More than have ended: requests that had ended before and failed after all. Each is the canary's with its share.
        let is_canary = if left == 0 {
            below(draw(), u64::from(weight.q())) < u64::from(weight.p())
        } else {
            below(draw(), left) < canary_left
        };
        found += u64::from(is_canary);
        canary_left = canary_left.saturating_sub(u64::from(is_canary));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::BUCKETS;
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    /// Two minutes of 200 requests a second, of which a hundredth fails, and more of them for a while.
    fn traffic() -> Vec<(Duration, UnitCounts)> {
        let tick = |second: u64| {
            let mut latency = vec![0; BUCKETS];
            for (bucket, count) in [(70, 20), (80, 100), (90, 70), (120, 10)] {
                latency[bucket + usize::from(second > 60) * 5] = count;
            }
            let failed = if (40..60).contains(&second) { 30 } else { 2 };
            let counts = UnitCounts {
                client_errors: 2 * failed,
                ..UnitCounts::of(failed, latency)
            };
            (Duration::from_secs(1), counts)
        };
        (0..120).map(tick).collect()
    }

    fn weights(weight: &str, next: &str) -> (Weight, Weight) {
        (weight.parse().unwrap(), next.parse().unwrap())
    }

    #[test]
    fn what_is_divided_is_neither_more_nor_less_and_the_share_is_exact() {
        let mut dice = SmallRng::seed_from_u64(1);
        let (weight, _) = weights("15", "50");
        let (mut failed, mut client_errors) = (0, 0);
        for (_, counts) in traffic().iter().cycle().take(1200) {
            let batch = divided(counts, (30, 200), weight, &mut || dice.next_u64());
            assert_eq!((batch.canary.ended(), batch.stable.ended()), (30, 170));
            assert_eq!(batch.canary.failed + batch.stable.failed, counts.failed);
            let (mut sums, mut all) = (vec![0; BUCKETS], vec![0; BUCKETS]);
            batch.canary.add_latency_to(&mut sums);
            batch.stable.add_latency_to(&mut sums);
            counts.add_latency_to(&mut all);
            assert_eq!(sums, all);
            assert_eq!(
                batch.canary.client_errors + batch.stable.client_errors,
                counts.client_errors
            );
            failed += batch.canary.failed;
            client_errors += batch.canary.client_errors;
        }
        // 15 % of 8,000, whose standard deviation is about 30.
        assert!((1050..1350).contains(&failed), "{failed}");
        assert!((2200..2600).contains(&client_errors), "{client_errors}");
    }

    #[test]
    fn equal_versions_are_seldom_rolled_back_and_go_on() {
        let mut dice = SmallRng::seed_from_u64(7);
        let traffic = traffic();
        let (mut wrong, mut passed, mut called) = (0, 0, 0);
        for _ in 0..60 {
            let course = against_itself(
                JudgeConfig {
                    harm_budget: 0.05,
                    ..JudgeConfig::default()
                },
                weights("40", "50"),
                &traffic,
                &mut || dice.next_u64(),
            );
            wrong += u64::from(course.rolled_back);
            passed += u64::from(course.passed.is_some());
            called += u64::from(course.paused);
            assert!(course.rolled_back || course.canary == 9600, "{course:?}");
        }
        assert!(
            wrong <= 2 && called <= 2 && passed > 30,
            "{wrong} rolled back, {called} paused, {passed} passed"
        );
    }

    #[test]
    fn a_judge_that_asks_for_more_than_equality_is_caught() {
        let mut dice = SmallRng::seed_from_u64(7);
        let traffic = traffic();
        // Equal versions are five times as bad as this one tolerates.
        let rash = JudgeConfig {
            err_rho: 0.2,
            ..JudgeConfig::default()
        };
        let wrong = (0..60).filter(|_| {
            let weights = weights("40", "50");
            against_itself(rash.clone(), weights, &traffic, &mut || dice.next_u64()).rolled_back
        });
        assert!(wrong.count() > 55);
    }
}
