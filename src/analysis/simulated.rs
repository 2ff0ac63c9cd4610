//! What the judge's proof promises, seen in whole rollouts: rarely wrong, and soon right.
//!
//! Every request is drawn by the real splitter. The full form, with ten thousand rollouts, is `benches/judge`.

use super::simulation::{
    Ended, Equal, Held, Trial, Unit, false_pause, false_rollback, judge_of, sticky, trial,
};
use super::{Advice, JudgeConfig};
use crate::model::{Role, Weight};

fn weights(percent: &[&str]) -> Vec<Weight> {
    percent.iter().map(|text| text.parse().unwrap()).collect()
}

const KINDS: [Equal; 13] = [
    Equal::Rate(0.001),
    Equal::Rate(0.005),
    Equal::Rate(0.01),
    Equal::Rate(0.3),
    Equal::Incident,
    Equal::Drift,
    Equal::Periodic(1),
    Equal::Periodic(2),
    Equal::Periodic(3),
    Equal::Periodic(5),
    Equal::Periodic(10),
    Equal::Periodic(20),
    Equal::Sticky,
];

/// Rollouts of equal versions, five of each kind and plan, are seldom an alarm.
#[track_caller]
fn seldom_alarms(kinds: &[Equal], alarms: impl Fn(u64, &Held, Equal) -> bool) {
    let plans = [
        ["1", "5", "25", "50"],
        ["15", "45", "15", "30"],
        ["5", "40", "45", "1/3"],
    ];
    let (mut rollouts, mut wrong) = (0, Vec::new());
    for seed in 0..5 {
        for kind in kinds {
            for plan in &plans {
                let plan = Held {
                    weights: weights(plan),
                    ticks: 50,
                    tick: 1.0,
                    requests: 40,
                };
                rollouts += 1;
                if alarms(seed, &plan, *kind) {
                    wrong.push((seed, kind, plan.weights));
                }
            }
        }
    }
    assert!(
        wrong.len() * 100 <= rollouts,
        "{} of {rollouts}: {wrong:?}",
        wrong.len()
    );
}

#[test]
fn equal_versions_are_rolled_back_in_at_most_one_of_a_hundred_rollouts() {
    let kinds = [&KINDS[..], &[Equal::Latency]].concat();
    seldom_alarms(&kinds, false_rollback);
}

#[test]
fn versions_that_answer_4xx_alike_are_paused_in_at_most_one_of_a_hundred_rollouts() {
    seldom_alarms(&KINDS, false_pause);
}

#[test]
fn clients_that_fail_again_and_again_count_once() {
    let plan = Held {
        weights: weights(&["5"]),
        ticks: 50,
        tick: 1.0,
        requests: 333,
    };
    let rolled_back = |unit| {
        let config = JudgeConfig {
            lat_q: Vec::new(),
            ..JudgeConfig::default()
        };
        let judge = || judge_of(config.clone(), &plan.weights);
        (0..60)
            .filter(|seed| sticky(*seed, &plan, &mut judge(), unit))
            .count()
    };
    let each = rolled_back(Unit::Failures);
    // One of five clients that always fail is on the canary in 23 % of all rollouts.
    assert!((6..=24).contains(&each), "{each} of 60 (seeds 0..60)");
    assert_eq!((rolled_back(Unit::Request), rolled_back(Unit::Client)), (0, 0));
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Errors only, and their half of the risk that they have beside latencies.
fn half() -> JudgeConfig {
    JudgeConfig {
        alpha: 0.005,
        lat_q: Vec::new(),
        ..JudgeConfig::default()
    }
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "requests of one rollout")]
fn regressions_are_found_with_as_few_requests_as_the_design_says() {
    for (rps, weight, stable, canary, expected) in [
        (100, "5", 0.001, 1.0, 3.0),
        (1000, "1", 0.001, 1.0, 3.0),
        (100, "5", 0.001, 0.5, 6.0),
        (1000, "5", 0.001, 0.05, 70.0),
        (1000, "25", 0.001, 0.05, 141.0),
        (1000, "50", 0.001, 0.05, 282.0),
        (1000, "5", 0.001, 0.011, 638.0),
        (1000, "5", 0.0, 0.01, 374.0),
        (10, "50", 0.001, 0.05, 249.0),
    ] {
        let weight = weights(&[weight]);
        let trial_of = Trial {
            judge: half(),
            weights: &weight,
            rps,
            ticks_per_second: 10,
            seconds: 3600,
            moves: false,
            rate: &|role, _| if role == Role::Canary { canary } else { stable },
            slower: None,
        };
        let runs: Vec<Ended> = (0..61).map(|seed| trial(seed, &trial_of)).collect();
        assert!(runs.iter().all(|run| run.advice == Advice::Rollback));
        let needed = median(runs.iter().map(|run| run.canary as f64).collect());
        assert!(
            needed <= 1.25 * expected,
            "{rps} rps, {weight:?}, {stable} and {canary}: {needed} canary requests, expected {expected} (seeds 0..61)"
        );
    }
}

#[test]
fn healthy_versions_are_promoted_as_soon_as_the_design_says() {
    let plan = weights(&["1", "5", "25", "50"]);
    for (stable, latency, expected) in [
        (0.0, false, 76.0),
        (0.001, false, 112.0),
        (0.01, false, 168.0),
        (0.001, true, 287.0),
    ] {
        let same = |_: Role, took: f64, _: f64, _: &mut super::simulation::Dice| took;
        let judge = JudgeConfig {
            lat_q: if latency {
                JudgeConfig::default().lat_q
            } else {
                Vec::new()
            },
            ..JudgeConfig::default()
        };
        let trial_of = Trial {
            judge,
            weights: &plan,
            rps: if latency { 500 } else { 1000 },
            ticks_per_second: if latency { 2 } else { 10 },
            seconds: 3600,
            moves: true,
            rate: &|_, _| stable,
            slower: latency.then_some(&same),
        };
        let runs: Vec<Ended> = (0..7).map(|seed| trial(seed, &trial_of)).collect();
        let promoted = runs.iter().filter(|run| run.advice == Advice::Proceed);
        assert_eq!(promoted.count(), runs.len(), "{runs:?}");
        let took = median(runs.iter().map(|run| run.seconds).collect());
        assert!(
            took <= 1.25 * expected,
            "{stable}: {took} s, expected {expected} s (seeds 0..7): {runs:?}"
        );
    }
}
