//! How often versions that are equal are told apart.

use super::{errors_only, percent, weights};
use crate::{
    Size,
    analysis::Advice,
    gates::{GATES, Gates},
    model::Role,
    runs::{all, float, share},
    simulation::{Dice, Equal, Held, Unit, enter, false_pause, false_rollback, held, judge_of, sticky, tell},
    stats::Counts,
};
use std::io::{self, Write};

/// Equal versions under everything that could fool the judge.
pub(super) fn equal(size: Size, out: &mut dyn Write) -> io::Result<()> {
    let kinds = [
        ("0.1%", Equal::Rate(0.001)),
        ("0.5%", Equal::Rate(0.005)),
        ("1%", Equal::Rate(0.01)),
        ("30%", Equal::Rate(0.3)),
        ("0.1%, both 5% for a fifth of each step", Equal::Incident),
        ("drifting 0.02-0.38%", Equal::Drift),
        ("every request fails", Equal::Periodic(1)),
        ("every 2nd request fails", Equal::Periodic(2)),
        ("every 3rd", Equal::Periodic(3)),
        ("every 5th", Equal::Periodic(5)),
        ("every 10th", Equal::Periodic(10)),
        ("every 20th", Equal::Periodic(20)),
        ("5 of 500 sticky clients always fail", Equal::Sticky),
        (
            "latencies, both three times as slow for a fifth of each step",
            Equal::Latency,
        ),
    ];
    let plans = [
        ["1", "5", "25", "50"],
        ["15", "45", "15", "30"],
        ["5", "40", "45", "1/3"],
    ];
    let runs = size.runs(240, 24);
    let header: Vec<String> = plans.iter().map(|plan| plan.join(", ") + " %").collect();
    writeln!(
        out,
        "### T0. Equal versions rolled back, of {runs} rollouts for each kind of failure and each plan (60,000 requests each, \
         alpha 1 %)\n\n| failures of both versions | {} |\n|---|---|---|---|",
        header.join(" | ").replace("1/3 %", "33.3… %")
    )?;
    let (mut wrong, mut paused) = (0, 0);
    for (row, (name, kind)) in kinds.iter().enumerate() {
        write!(out, "| {name} |")?;
        for (column, plan) in plans.iter().enumerate() {
            let plan = Held {
                weights: weights(plan),
                ticks: 50,
                tick: 1.0,
                requests: 300,
            };
            let first = size.seed + 1_000_000 * (3 * row + column) as u64;
            let rolled = all(first, runs, |seed| false_rollback(seed, &plan, *kind));
            let rolled = rolled.iter().filter(|rolled| **rolled).count();
            wrong += rolled;
            write!(out, " {rolled} |")?;
            if !matches!(kind, Equal::Latency) {
                let alarms = all(first, runs, |seed| false_pause(seed, &plan, *kind));
                paused += alarms.iter().filter(|paused| **paused).count();
            }
        }
        writeln!(out)?;
        out.flush()?;
    }
    let rollouts = runs * kinds.len() * plans.len();
    writeln!(
        out,
        "\n{wrong} of {rollouts} rollouts: {:.2}% (bound: 1%)",
        100.0 * float(wrong) / float(rollouts)
    )?;
    let told = rollouts - runs * plans.len();
    writeln!(
        out,
        "The same, with 4xx answers in the place of failures (latencies left out): {paused} of {told} paused, {:.2}% (bound: 1%)",
        100.0 * float(paused) / float(told)
    )
}

/// The error rate of a role after so many seconds.
type Rate = fn(Role, f64) -> f64;

/// An hour's rollout of equal versions, beside the gates of others.
pub(super) fn beside_gates(size: Size, out: &mut dyn Write) -> io::Result<()> {
    let rows: [(&str, u64, Rate); 11] = [
        ("0", 200, |_, _| 0.0),
        ("0.01%", 200, |_, _| 0.0001),
        ("0.1%", 200, |_, _| 0.001),
        ("0.5%", 200, |_, _| 0.005),
        ("0.9%", 200, |_, _| 0.009),
        ("1%", 200, |_, _| 0.01),
        ("0.1% + incident 5% for 2 min", 200, |_, t| {
            if (1500.0..1620.0).contains(&t) {
                0.05
            } else {
                0.001
            }
        }),
        ("drifting 0.02-0.38%", 200, |_, t| {
            0.002 + 0.0018 * (t / 286.5).sin()
        }),
        ("0.5%, 10 rps", 10, |_, _| 0.005),
        ("0.1%, 5000 rps", 5000, |_, _| 0.001),
        ("canary 0.15%, stable 0.10% (as tolerated)", 200, |role, _| {
            if role == Role::Canary { 0.0015 } else { 0.001 }
        }),
    ];
    writeln!(
        out,
        "### T1. Rolled back in a 60-minute rollout (1, 5, 25, 50 %, 15 minutes each) of a canary equal to stable\n\n\
         | stable's errors | rps | runs | {} | Serin's judge |\n|---|---|---|---|---|---|---|---|",
        GATES.join(" | ")
    )?;
    for (row, (name, rps, rate)) in rows.into_iter().enumerate() {
        let runs = if rps > 1000 {
            size.runs(100, 1)
        } else {
            size.runs(1000, 25)
        };
        let first = size.seed + 1_000_000 * row as u64;
        let results = all(first, runs, |seed| hour(seed, rps, rate));
        write!(out, "| {name} | {rps} | {runs} |")?;
        for gate in 0..5 {
            let wrong = results.iter().filter(|result| result[gate]).count();
            write!(out, " {} |", share(wrong, runs))?;
        }
        writeln!(out)?;
        out.flush()?;
    }
    Ok(())
}

/// Which gates roll back: the four of others, then the judge.
#[expect(clippy::cast_precision_loss, reason = "requests of one run")]
fn hour(seed: u64, rps: u64, rate: Rate) -> [bool; 5] {
    let plan = Held {
        weights: weights(&["1", "5", "25", "50"]),
        ticks: 450,
        tick: 2.0,
        requests: 2 * rps,
    };
    let mut judge = judge_of(errors_only(0.01), &plan.weights);
    let mut gates = Gates::default();
    let (mut step, mut ticks, mut rolled) = (0, 0, false);
    let mut minute = Counts::default();
    held(
        seed,
        &plan,
        |dice: &mut Dice, role, _, number| dice.chance(rate(role, number as f64 / rps as f64)),
        |seen| {
            if seen.step != step {
                step = seen.step;
                enter(&mut judge, &plan.weights, step);
            }
            rolled |= tell(&mut judge, 2.0, &seen.counts) == Advice::Rollback;
            minute.canary += seen.counts.canary;
            minute.canary_bad += seen.counts.canary_bad;
            minute.stable += seen.counts.stable;
            minute.stable_bad += seen.counts.stable_bad;
            ticks += 1;
            if ticks % 30 == 0 {
                gates.minute(std::mem::take(&mut minute));
            }
            true
        },
    );
    let [a, b, c, d] = gates.decided.map(|decided| decided.is_some());
    [a, b, c, d, rolled]
}

/// What is assigned, and what counts.
pub(super) fn units(size: Size, out: &mut dyn Write) -> io::Result<()> {
    let runs = size.runs(2000, 100);
    writeln!(
        out,
        "### T7. Equal versions rolled back when 5 of 500 clients always fail (5 %, 15 minutes, 40 requests per client and \
         minute, {runs} runs)\n\n| assigned, and counted | false rollback | in the design |\n|---|---|---|"
    )?;
    for (name, unit, design) in [
        ("each request", Unit::Request, "0.05%"),
        ("clients; each failure", Unit::Failures, "22.95%"),
        ("clients; the first failure of each", Unit::Client, "0.05%"),
    ] {
        let plan = Held {
            weights: weights(&["5"]),
            ticks: 900,
            tick: 1.0,
            requests: 333,
        };
        let rolled = all(size.seed, runs, |seed| {
            sticky(seed, &plan, &mut judge_of(errors_only(0.01), &plan.weights), unit)
        });
        let rolled = rolled.iter().filter(|rolled| **rolled).count();
        let found = percent(float(rolled) / float(runs));
        writeln!(out, "| {name} | {found} | {design} |")?;
        out.flush()?;
    }
    Ok(())
}
