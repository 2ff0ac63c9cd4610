//! How long a rollout takes that the judge moves: good versions to the end, bad ones to the rollback.

use super::{canary, errors_only, latency::SLOWEST, percent, weights};
use crate::{
    Size,
    analysis::{Advice, JudgeConfig},
    model::Role,
    runs::{all, quantile, share, time, whole},
    simulation::{Ended, Slower, Trial, trial},
};
use std::io::{self, Write};

const STEPS: [&str; 4] = ["1", "5", "25", "50"];

/// Requests per second, stable's and the canary's error rate, and the design's median in seconds.
type Row = (u64, f64, f64, f64);

const ROWS: [Row; 40] = [
    (10, 0.0, 0.0, 7440.0),
    (10, 0.0001, 0.0001, 7620.0),
    (10, 0.001, 0.001, 10800.0),
    (10, 0.005, 0.005, 15180.0),
    (10, 0.01, 0.01, 15720.0),
    (10, 0.001, 0.011, 4620.0),
    (10, 0.005, 0.015, 9480.0),
    (10, 0.001, 0.05, 600.0),
    (10, 0.001, 1.0, 30.0),
    (100, 0.0, 0.0, 720.0),
    (100, 0.0001, 0.0001, 780.0),
    (100, 0.001, 0.001, 1020.0),
    (100, 0.005, 0.005, 1440.0),
    (100, 0.01, 0.01, 1560.0),
    (100, 0.001, 0.002, 4800.0),
    (100, 0.001, 0.011, 464.0),
    (100, 0.005, 0.015, 960.0),
    (100, 0.001, 0.05, 53.0),
    (100, 0.001, 0.5, 6.0),
    (100, 0.001, 1.0, 3.0),
    (1000, 0.0, 0.0, 76.0),
    (1000, 0.0001, 0.0001, 79.0),
    (1000, 0.001, 0.001, 112.0),
    (1000, 0.005, 0.005, 167.0),
    (1000, 0.01, 0.01, 168.0),
    (1000, 0.001, 0.002, 500.0),
    (1000, 0.001, 0.011, 48.0),
    (1000, 0.005, 0.015, 93.0),
    (1000, 0.001, 0.05, 6.0),
    (1000, 0.001, 0.5, 1.0),
    (1000, 0.001, 1.0, 1.0),
    (1000, 0.001, 0.00225, 371.0),
    (5000, 0.0, 0.0, 40.0),
    (5000, 0.0001, 0.0001, 40.0),
    (5000, 0.001, 0.001, 40.0),
    (5000, 0.005, 0.005, 46.0),
    (5000, 0.01, 0.01, 48.0),
    (5000, 0.001, 0.011, 12.0),
    (5000, 0.001, 0.05, 2.0),
    (5000, 0.001, 1.0, 1.0),
];

/// Errors only.
pub(super) fn errors(size: Size, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "### T5. A rollout 1, 5, 25, 50, 100 % that moves as soon as the evidence suffices: errors only\n\n\
         | rps | stable | canary | runs | rolled back | promoted | median time | the design's | 95th percentile | canary requests | \
         failed ones |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )?;
    for (index, (rps, stable, bad, design)) in ROWS.into_iter().enumerate() {
        // The short form shows what is healthy, and leaves out what takes hours to tell.
        let healthy = (stable - bad).abs() < 1e-9;
        if size.quick && (rps == 5000 || !healthy && (bad < 0.003 || rps == 10)) {
            continue;
        }
        let runs = size.runs(300, if rps == 10 { 12 } else { 24 });
        let first = size.seed + 1_000_000 * index as u64;
        let weights = weights(&STEPS);
        let both = |role: Role, _: f64| if role == Role::Canary { bad } else { stable };
        let ended = all(first, runs, |seed| moved(seed, &weights, rps, &both));
        let name = (percent(stable), percent(bad));
        line(out, rps, &name, &ended, Some(design))?;
    }
    let runs = size.runs(300, 24);
    let weights = weights(&STEPS);
    let incident = |_: Role, t: f64| if (30.0..150.0).contains(&t) { 0.05 } else { 0.001 };
    let ended = all(size.seed, runs, |seed| moved(seed, &weights, 1000, &incident));
    let name = ("0.1%".to_owned(), "both 5% for 2 min".to_owned());
    line(out, 1000, &name, &ended, Some(110.0))
}

fn moved(
    seed: u64,
    weights: &[crate::model::Weight],
    rps: u64,
    rate: &(dyn Fn(Role, f64) -> f64 + Sync),
) -> Ended {
    trial(
        seed,
        &Trial {
            judge: JudgeConfig {
                freeze_stable_err: 1.0,
                ..errors_only(0.01)
            },
            weights,
            rps,
            ticks_per_second: if rps >= 100 { 10 } else { 1 },
            seconds: 12 * 3600,
            moves: true,
            rate,
            slower: None,
        },
    )
}

fn line(
    out: &mut dyn Write,
    rps: u64,
    name: &(String, String),
    ended: &[Ended],
    design: Option<f64>,
) -> io::Result<()> {
    let (stable, bad) = name;
    let rolled = |run: &&Ended| run.advice == Advice::Rollback;
    let promoted = |run: &&Ended| run.advice == Advice::Proceed;
    let decided = |run: &Ended| run.advice != Advice::Hold;
    let seconds: Vec<Option<f64>> = ended
        .iter()
        .map(|run| decided(run).then_some(run.seconds))
        .collect();
    #[expect(clippy::cast_precision_loss, reason = "requests of one run")]
    let failed: Vec<Option<f64>> = ended
        .iter()
        .map(|run| decided(run).then_some(run.failed as f64))
        .collect();
    let median = quantile(&seconds, 0.5);
    let compared = match (median, design) {
        (Some(median), Some(design)) => format!("{} (×{:.2})", time(Some(design)), median / design),
        (_, design) => time(design),
    };
    writeln!(
        out,
        "| {rps} | {stable} | {bad} | {} | {} | {} | {} | {compared} | {} | {} | {} / {} |",
        ended.len(),
        share(ended.iter().filter(rolled).count(), ended.len()),
        share(ended.iter().filter(promoted).count(), ended.len()),
        time(median),
        time(quantile(&seconds, 0.95)),
        whole(quantile(&canary(ended, decided), 0.5)),
        whole(quantile(&failed, 0.5)),
        whole(quantile(&failed, 0.95)),
    )?;
    out.flush()
}

/// A whole rollout of one kind: its name, requests per second, warm-up, the canary's and stable's error rate, how slow it is
/// and the design's median in seconds.
struct Whole {
    name: &'static str,
    rps: u64,
    warmup: f64,
    rate: fn(Role, f64) -> f64,
    slower: &'static Slower,
    design: f64,
}

fn of_canary(role: Role, canary: f64, stable: f64) -> f64 {
    match role {
        Role::Canary => canary,
        Role::Stable => stable,
    }
}

fn wholes() -> [Whole; 16] {
    let same: &Slower = &|_, took, _, _| took;
    let cold: &Slower = &|role, took, t, _| took * of_canary(role, if t < 60.0 { 3.0 } else { 1.0 }, 1.0);
    let one = |name, design| Whole {
        name,
        rps: 500,
        warmup: 30.0,
        rate: |_, _| 0.001,
        slower: same,
        design,
    };
    let slower = |name, design, slower| Whole {
        slower,
        ..one(name, design)
    };
    let half: &Slower = &|role, took, _, _| took * of_canary(role, 1.5, 1.0);
    [
        one("healthy", 287.0),
        Whole {
            rate: |role, _| of_canary(role, 0.011, 0.001),
            ..one("errors +1pp", 116.0)
        },
        Whole {
            rate: |role, _| of_canary(role, 0.05, 0.001),
            ..one("errors 5%", 13.0)
        },
        slower("latency ×1.2", 345.0, &|role, took, _, _| {
            took * of_canary(role, 1.2, 1.0)
        }),
        slower("latency ×1.5", 78.0, half),
        slower("latency ×2", 44.0, &|role, took, _, _| {
            took * of_canary(role, 2.0, 1.0)
        }),
        slower("latency ×8 (seen in the warm-up)", 4.0, &|role, took, _, _| {
            took * of_canary(role, 8.0, 1.0)
        }),
        slower("slowest 2 % ×2", 547.0, &|role, took, _, _| {
            took * of_canary(role, if took > SLOWEST { 2.0 } else { 1.0 }, 1.0)
        }),
        slower("5 % of requests ×10", 110.0, &|role, took, _, dice| {
            let factor = if dice.chance(0.05) { 10.0 } else { 1.0 };
            took * of_canary(role, factor, 1.0)
        }),
        slower("×3 for 60 s, warm-up 30 s", 36.0, cold),
        Whole {
            warmup: 60.0,
            ..slower("×3 for 60 s, warm-up 60 s", 319.0, cold)
        },
        Whole {
            rate: |_, t| if (60.0..180.0).contains(&t) { 0.05 } else { 0.001 },
            slower: &|_, took, t, _| took * if (60.0..180.0).contains(&t) { 3.0 } else { 1.0 },
            ..one("both: 5% errors and ×3 for 2 min", 361.0)
        },
        slower("canary ×0.7", 252.0, &|role, took, _, _| {
            took * of_canary(role, 0.7, 1.0)
        }),
        Whole {
            rps: 50,
            ..one("healthy", 2603.0)
        },
        Whole {
            rps: 50,
            rate: |role, _| of_canary(role, 0.05, 0.001),
            ..one("errors 5%", 121.0)
        },
        Whole {
            rps: 50,
            ..slower("latency ×1.5", 408.0, half)
        },
    ]
}

/// Errors and latencies, with every default.
pub(super) fn everything(size: Size, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "### T6. The same with errors and latencies, every default; stable fails 0.1 %\n\n\
         | rps | canary | warm-up | runs | rolled back | promoted | median time | the design's | 95th percentile | canary requests | \
         failed ones |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )?;
    for (index, kind) in wholes().iter().enumerate() {
        let runs = size.runs(60, 8);
        let first = size.seed + 1_000_000 * index as u64;
        let weights = weights(&STEPS);
        let ended = all(first, runs, |seed| {
            trial(
                seed,
                &Trial {
                    judge: JudgeConfig {
                        warmup_s: kind.warmup,
                        ..JudgeConfig::default()
                    },
                    weights: &weights,
                    rps: kind.rps,
                    ticks_per_second: if kind.rps >= 100 { 10 } else { 2 },
                    seconds: 6 * 3600,
                    moves: true,
                    rate: &kind.rate,
                    slower: Some(kind.slower),
                },
            )
        });
        let name = (kind.name.to_owned(), format!("{} s", kind.warmup));
        line(out, kind.rps, &name, &ended, Some(kind.design))?;
    }
    Ok(())
}
