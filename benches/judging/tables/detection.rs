//! How many requests it takes to find a canary with more errors.

use super::{canary, errors_only, percent, weights};
use crate::{
    Size,
    analysis::Advice,
    gates::{Cost, GATES, Gates},
    model::Role,
    runs::{all, quantile, whole},
    simulation::{Ended, Held, Trial, held, trial},
};
use std::io::{self, Write};

/// Requests per second, the canary's weight, stable's and the canary's error rate, and the design's median.
type Row = (u64, &'static str, f64, f64, Option<f64>);

const ROWS: [Row; 20] = [
    (100, "5", 0.001, 1.0, Some(3.0)),
    (1000, "1", 0.001, 1.0, Some(3.0)),
    (100, "5", 0.001, 0.5, Some(6.0)),
    (100, "5", 0.001, 0.05, Some(74.0)),
    (1000, "5", 0.001, 0.05, Some(70.0)),
    (1000, "1", 0.001, 0.05, Some(60.0)),
    (1000, "25", 0.001, 0.05, Some(141.0)),
    (1000, "50", 0.001, 0.05, Some(282.0)),
    (1000, "5", 0.001, 0.011, Some(638.0)),
    (1000, "5", 0.005, 0.015, Some(1448.0)),
    (1000, "5", 0.01, 0.02, Some(2458.0)),
    (1000, "25", 0.005, 0.015, Some(2012.0)),
    (1000, "5", 0.0, 0.001, Some(39_798.0)),
    (1000, "5", 0.001, 0.002, None),
    (5000, "5", 0.001, 0.002, Some(101_171.0)),
    (5000, "25", 0.001, 0.002, Some(112_561.0)),
    (1000, "5", 0.0, 0.01, Some(374.0)),
    (10, "5", 0.001, 0.05, Some(71.0)),
    (10, "50", 0.001, 0.05, Some(249.0)),
    (10, "5", 0.001, 1.0, Some(3.0)),
];

/// Errors at a fixed weight.
pub(super) fn errors(size: Size, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "### T2. Canary requests until a regression is found, at a fixed weight: median / 95th percentile / **failed ones**\n\n\
         Within 30 minutes (10 rps: an hour); `-`: fewer than half were found. The judge has half of alpha = 1 % for errors.\n\n\
         | rps | weight | stable | canary | runs | Serin's judge | the design's median | {} |\n\
         |---|---|---|---|---|---|---|---|---|---|---|",
        GATES.join(" | ")
    )?;
    for (index, row) in ROWS.into_iter().enumerate() {
        let (rps, weight, stable, bad, design) = row;
        // A tenth of a point takes half an hour of traffic to find.
        let long = bad - stable < 0.002;
        if size.quick && rps > 1000 {
            continue;
        }
        let runs = if long && rps <= 1000 {
            size.runs(400, 24)
        } else {
            size.runs(400, 200)
        };
        let first = size.seed + 1_000_000 * index as u64;
        let found = all(first, runs, |seed| judged(seed, row));
        let others = all(first, size.runs(if rps > 1000 { 50 } else { 400 }, 10), |seed| {
            gates(seed, row)
        });
        let is_found = |run: &Ended| run.advice == Advice::Rollback;
        let failed: Vec<Option<f64>> = found
            .iter()
            .map(|run| is_found(run).then(|| float(run.failed)))
            .collect();
        let requests = canary(&found, is_found);
        write!(
            out,
            "| {rps} | {weight}% | {} | {} | {runs} | {} | {} |",
            percent(stable),
            percent(bad),
            three(&requests, &failed),
            compared(quantile(&requests, 0.5), design)
        )?;
        for gate in 0..GATES.len() {
            let part = |of: fn(Cost) -> u64| -> Vec<Option<f64>> {
                others
                    .iter()
                    .map(|run| run[gate].map(|cost| float(of(cost))))
                    .collect()
            };
            write!(
                out,
                " {} |",
                three(&part(|cost| cost.canary), &part(|cost| cost.failed))
            )?;
        }
        writeln!(out)?;
        out.flush()?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "requests of one run")]
fn float(count: u64) -> f64 {
    count as f64
}

/// The design's median, and the measured one as a multiple of it.
fn compared(found: Option<f64>, design: Option<f64>) -> String {
    match (found, design) {
        (Some(found), Some(design)) => format!("{} (×{:.2})", whole(Some(design)), found / design),
        (_, design) => whole(design),
    }
}

fn three(requests: &[Option<f64>], failed: &[Option<f64>]) -> String {
    match quantile(requests, 0.5) {
        None => "-".to_owned(),
        median => format!(
            "{} / {} / **{}**",
            whole(median),
            quantile(requests, 0.95).map_or("later".to_owned(), |late| whole(Some(late))),
            whole(quantile(failed, 0.5))
        ),
    }
}

fn horizon(rps: u64) -> u64 {
    if rps > 10 { 1800 } else { 3600 }
}

fn judged(seed: u64, (rps, weight, stable, bad, _): Row) -> Ended {
    trial(
        seed,
        &Trial {
            judge: errors_only(0.005),
            weights: &weights(&[weight]),
            rps,
            ticks_per_second: 10,
            seconds: horizon(rps),
            moves: false,
            rate: &|role, _| if role == Role::Canary { bad } else { stable },
            slower: None,
        },
    )
}

fn gates(seed: u64, (rps, weight, stable, bad, _): Row) -> [Option<Cost>; 4] {
    let plan = Held {
        weights: weights(&[weight]),
        ticks: horizon(rps) / 60,
        tick: 60.0,
        requests: 60 * rps,
    };
    let mut gates = Gates::default();
    held(
        seed,
        &plan,
        |dice, role, _, _| dice.chance(if role == Role::Canary { bad } else { stable }),
        |seen| {
            gates.minute(seen.counts);
            !gates.all_decided()
        },
    );
    gates.decided
}
