//! How many requests it takes to find a slower canary.

use super::{canary, weights};
use crate::{
    Size,
    analysis::{Advice, JudgeConfig},
    model::Role,
    runs::{all, quantile, share, whole},
    simulation::{Dice, Ended, Held, Slower, Trial, held, trial},
};
use std::{
    cell::RefCell,
    io::{self, Write},
};

/// What is asked of one row: its name, requests per second, weight, warm-up and the design's share and median.
struct Row {
    name: &'static str,
    rps: u64,
    weight: &'static str,
    warmup: f64,
    design: &'static str,
    slower: &'static Slower,
}

const fn row(
    name: &'static str,
    rps: u64,
    weight: &'static str,
    design: &'static str,
    slower: &'static Slower,
) -> Row {
    Row {
        name,
        rps,
        weight,
        warmup: 0.0,
        design,
        slower,
    }
}

/// The slowest 2 % of stable's requests take longer than this.
pub(super) const SLOWEST: f64 = 0.105;

fn of_canary(role: Role, took: f64, factor: f64) -> f64 {
    match role {
        Role::Canary => took * factor,
        Role::Stable => took,
    }
}

fn rows() -> [Row; 15] {
    let cold: &Slower =
        &|role, took, t, _: &mut Dice| of_canary(role, took, if t < 60.0 { 3.0 } else { 1.0 });
    let tail: &Slower =
        &|role, took, _, _: &mut Dice| of_canary(role, took, if took > SLOWEST { 2.0 } else { 1.0 });
    [
        row("same", 500, "5", "0%", &|_, took, _, _| took),
        row("same", 500, "25", "0%", &|_, took, _, _| took),
        row("×1.1", 500, "5", "0%", &|role, took, _, _| {
            of_canary(role, took, 1.1)
        }),
        row("×1.2", 500, "5", "90% 3,094", &|role, took, _, _| {
            of_canary(role, took, 1.2)
        }),
        row("×1.2", 500, "25", "100% 4,178", &|role, took, _, _| {
            of_canary(role, took, 1.2)
        }),
        row("×1.5", 500, "5", "100% 220", &|role, took, _, _| {
            of_canary(role, took, 1.5)
        }),
        row("×2", 500, "5", "100% 62", &|role, took, _, _| {
            of_canary(role, took, 2.0)
        }),
        row("slowest 2 % ×2", 500, "5", "77% 5,002", tail),
        row("slowest 2 % ×2", 500, "25", "100% 6,654", tail),
        row(
            "5 % of requests ×10",
            500,
            "5",
            "100% 342",
            &|role, took, _, dice| {
                let factor = if dice.chance(0.05) { 10.0 } else { 1.0 };
                of_canary(role, took, factor)
            },
        ),
        row("×3 for the first 60 s", 500, "5", "100% 28", cold),
        Row {
            warmup: 60.0,
            ..row("×3 for the first 60 s, warm-up 60 s", 500, "5", "0%", cold)
        },
        row("×0.7", 500, "5", "0%", &|role, took, _, _| {
            of_canary(role, took, 0.7)
        }),
        row("×2", 20, "5", "100% 51", &|role, took, _, _| {
            of_canary(role, took, 2.0)
        }),
        row("both ×3 for 2 min", 500, "5", "0%", &|_, took, t, _| {
            took * if (60.0..180.0).contains(&t) { 3.0 } else { 1.0 }
        }),
    ]
}

/// Latencies at a fixed weight.
pub(super) fn found(size: Size, out: &mut dyn Write) -> io::Result<()> {
    let runs = size.runs(60, 12);
    writeln!(
        out,
        "### T4. A slower canary: share found within 5 minutes, canary requests in the median / 95th percentile ({runs} runs)\n\n\
         Response times around 20 ms (lognormal, sigma 0.6), one of fifty ten times as slow; 10 % are tolerated.\n\n\
         | canary | rps | weight | Serin's judge | in the design | p99 of a minute > 1.2 × stable's |\n|---|---|---|---|---|---|"
    )?;
    for (index, row) in rows().iter().enumerate() {
        let first = size.seed + 1_000_000 * index as u64;
        let runs_of_judge = all(first, runs, |seed| judged(seed, row));
        let naive = all(first, runs, |seed| naive(seed, row));
        let is_found = |run: &Ended| run.advice == Advice::Rollback;
        writeln!(
            out,
            "| {} | {} | {}% | {} | {} | {} |",
            row.name,
            row.rps,
            row.weight,
            shown(&canary(&runs_of_judge, is_found)),
            row.design,
            shown(&naive)
        )?;
        out.flush()?;
    }
    Ok(())
}

fn shown(requests: &[Option<f64>]) -> String {
    let found = requests.iter().flatten().count();
    let share = share(found, requests.len());
    match (quantile(requests, 0.5), quantile(requests, 0.95)) {
        (None, _) => share,
        (median, None) => format!("{share} {}", whole(median)),
        (median, late) => format!("{share} {} / {}", whole(median), whole(late)),
    }
}

fn judged(seed: u64, row: &Row) -> Ended {
    trial(
        seed,
        &Trial {
            judge: JudgeConfig {
                err_share: 0.0,
                warmup_s: row.warmup,
                step_warmup_s: 0.0,
                ..JudgeConfig::default()
            },
            weights: &weights(&[row.weight]),
            rps: row.rps,
            ticks_per_second: 10,
            seconds: 300,
            moves: false,
            rate: &|_, _| 0.0,
            slower: Some(row.slower),
        },
    )
}

/// The gate that people write: canary requests until the 99th percentile of a minute was a fifth above stable's.
#[expect(clippy::cast_precision_loss, reason = "requests of one run")]
fn naive(seed: u64, row: &Row) -> Option<f64> {
    let plan = Held {
        weights: weights(&[row.weight]),
        ticks: 5,
        tick: 60.0,
        requests: 60 * row.rps,
    };
    let took = RefCell::new([Vec::new(), Vec::new()]);
    let (mut total, mut found) = (0, None);
    held(
        seed,
        &plan,
        |dice, role, _, number| {
            let latency = dice.latency();
            let now = number as f64 / row.rps as f64;
            let latency = (row.slower)(role, latency, now, dice);
            took.borrow_mut()[usize::from(role == Role::Canary)].push(latency);
            false
        },
        |seen| {
            total += seen.counts.canary;
            let [stable, canary] = std::mem::take(&mut *took.borrow_mut()).map(p99);
            if canary > 1.2 * stable {
                found = Some(total as f64);
            }
            found.is_none()
        },
    );
    found
}

fn p99(mut latencies: Vec<f64>) -> f64 {
    latencies.sort_by(f64::total_cmp);
    let index = latencies.len() * 99 / 100;
    latencies.get(index).copied().unwrap_or(0.0)
}
