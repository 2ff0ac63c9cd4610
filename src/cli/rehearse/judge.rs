//! Cases of the sequential judge: single tests, latency thresholds, whole rollouts; to within the file's tolerance.

use super::{BadScenario, Printer, bad, check_keys};
use crate::{
    analysis::{Batch, Judge, JudgeConfig},
    stats::{BUCKETS, Baseline, Counts, EProcess, Side, UnitCounts, bucket, shift_for},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

type Sparse = BTreeMap<usize, u64>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TestCase {
    name: String,
    side: Side,
    rho: f64,
    delta: f64,
    #[serde(default)]
    new_step_before: Vec<usize>,
    ticks: Vec<(f64, u64, u64, u64, u64)>,
    log_e: Vec<f64>,
    #[serde(default)]
    final_log_m: Vec<Option<f64>>,
    final_reserve: Option<f64>,
    final_pending: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LatencyCase {
    name: String,
    dt: f64,
    half_life: f64,
    q: Vec<f64>,
    tol: f64,
    shift: Option<usize>,
    ticks: Vec<LatencyTick>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LatencyTick {
    canary: Sparse,
    stable: Sparse,
    threshold: Vec<Option<usize>>,
    k_c: Vec<Option<u64>>,
    k_s: Vec<Option<u64>>,
    baseline_total: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JudgeCase {
    name: String,
    dt: f64,
    /// The judge's, and `steps`: the weights; after the last comes everything.
    #[serde(default)]
    config: Map<String, Value>,
    ticks: Vec<JudgeTick>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JudgeTick {
    w: f64,
    n_c: u64,
    k_c: u64,
    n_s: u64,
    k_s: u64,
    lat_c: Sparse,
    lat_s: Sparse,
    log_e_total: f64,
    log_e_ok_err: Option<f64>,
    #[serde(default)]
    log_e_ok_lat: Vec<f64>,
    action: String,
    #[serde(default)]
    promoted: bool,
    #[expect(dead_code, reason = "people read it; the numbers are compared")]
    text: Option<String>,
}

/// What came out, beside what was expected, to within a tolerance.
struct Report<'a, 'b> {
    printer: &'a mut Printer<'b>,
    tolerance: f64,
    held: bool,
}

impl Report<'_, '_> {
    fn number(&mut self, what: &str, expected: f64, found: f64) {
        if (expected - found).abs() > self.tolerance * expected.abs().max(1.0) || found.is_nan() {
            self.broken(what, &expected.to_string(), &found.to_string());
        }
    }

    fn same(&mut self, what: &str, expected: &Value, found: &Value) {
        if expected != found {
            self.broken(what, &expected.to_string(), &found.to_string());
        }
    }

    fn broken(&mut self, what: &str, expected: &str, found: &str) {
        self.held = false;
        self.printer.line(format_args!(
            "  BROKEN {what}: expected {expected}, but it is {found}"
        ));
    }
}

/// Replays one case of `kind` (`eprocess`, `latency` or `judge`); whether everything it expects came out.
pub(super) fn replay(
    case: &Map<String, Value>,
    kind: &str,
    tolerance: f64,
    printer: &mut Printer<'_>,
) -> Result<bool, BadScenario> {
    let mut report = Report {
        printer,
        tolerance,
        held: true,
    };
    let case = Value::Object(case.clone());
    let name = match kind {
        "eprocess" => test(serde_json::from_value(case).or_else(bad)?, &mut report),
        "latency" => latency(serde_json::from_value(case).or_else(bad)?, &mut report),
        _ => judge(serde_json::from_value(case).or_else(bad)?, &mut report)?,
    };
    let held = report.held;
    printer.line(format_args!(
        "{} {kind} {name}",
        if held { "holds " } else { "BROKEN" }
    ));
    Ok(held)
}

/// `buckets: [[seconds, bucket], …]`: one case.
pub(super) fn buckets(pairs: &Value, printer: &mut Printer<'_>) -> Result<bool, BadScenario> {
    let pairs: Vec<(f64, usize)> = serde_json::from_value(pairs.clone()).or_else(bad)?;
    let wrong = pairs
        .iter()
        .filter(|(seconds, expected)| bucket(*seconds) != *expected);
    let wrong: Vec<String> = wrong
        .map(|(seconds, expected)| format!("{seconds} s is not in {expected}"))
        .collect();
    let held = wrong.is_empty();
    printer.line(format_args!(
        "{} buckets {}",
        if held { "holds " } else { "BROKEN" },
        wrong.join(", ")
    ));
    Ok(held)
}

/// The tolerance of a file, and that its other keys are known.
pub(super) fn tolerance(root: &Map<String, Value>) -> Result<f64, BadScenario> {
    let known = [
        "tolerance",
        "about",
        "note",
        "eprocess",
        "latency",
        "judge",
        "buckets",
        "cases",
        "canary",
        "blueGreen",
    ];
    check_keys(root, "file", &known)?;
    Ok(root.get("tolerance").and_then(Value::as_f64).unwrap_or(1e-9))
}

fn test(case: TestCase, report: &mut Report<'_, '_>) -> String {
    let mut test = EProcess::new(case.side, case.rho, case.delta);
    let mut last = 0.0;
    for (index, (w, canary, canary_bad, stable, stable_bad)) in case.ticks.into_iter().enumerate() {
        if case.new_step_before.contains(&index) {
            test.new_step();
        }
        last = test.tick(&Counts {
            w,
            canary,
            canary_bad,
            stable,
            stable_bad,
        });
        let expected = case.log_e.get(index).copied().unwrap_or(f64::NAN);
        report.number(&format!("log e after tick {index}"), expected, last);
    }
    report
        .printer
        .line(format_args!("  {} -> log e {last}", case.name));
    let (capital, reserve, pending) = test.parts();
    for (expected, found) in case.final_log_m.iter().zip(capital) {
        match (expected, found) {
            (Some(expected), Some(found)) => report.number("capital", *expected, found),
            (expected, found) => report.same("capital", &(*expected).into(), &found.into()),
        }
    }
    for (what, expected, found) in [
        ("reserve", case.final_reserve, reserve),
        ("pending", case.final_pending, pending),
    ] {
        if let Some(expected) = expected {
            report.number(what, expected, found);
        }
    }
    case.name
}

/// All buckets of a sparse histogram.
fn dense(sparse: &Sparse) -> Vec<u64> {
    let mut counts = vec![0; BUCKETS];
    for (bucket, count) in sparse {
        counts[(*bucket).min(BUCKETS - 1)] += count;
    }
    counts
}

fn latency(case: LatencyCase, report: &mut Report<'_, '_>) -> String {
    let shift = shift_for(case.tol);
    if let Some(expected) = case.shift {
        report.same("shift", &expected.into(), &shift.into());
    }
    let mut baseline = Baseline::new(case.half_life);
    for (index, tick) in case.ticks.iter().enumerate() {
        let found: Vec<Option<usize>> = case.q.iter().map(|q| baseline.threshold(*q)).collect();
        let above = |counts: &Sparse, shift: usize| -> Vec<Option<u64>> {
            let one = |threshold: &Option<usize>| {
                threshold.map(|threshold| {
                    counts
                        .range(threshold + shift + 1..)
                        .map(|(_, count)| count)
                        .sum()
                })
            };
            found.iter().map(one).collect()
        };
        report.same(
            &format!("thresholds at tick {index}"),
            &tick.threshold.clone().into(),
            &found.clone().into(),
        );
        report.same(
            &format!("slow canary at {index}"),
            &tick.k_c.clone().into(),
            &above(&tick.canary, shift).into(),
        );
        report.same(
            &format!("slow stable at {index}"),
            &tick.k_s.clone().into(),
            &above(&tick.stable, 0).into(),
        );
        baseline.update(case.dt, &dense(&tick.stable));
        report.number(
            &format!("baseline after tick {index}"),
            tick.baseline_total,
            baseline.total(),
        );
    }
    case.name
}

/// One role's part of a tick; each request has a latency, where there are any.
fn units(requests: u64, failed: u64, latency: &Sparse) -> Result<UnitCounts, BadScenario> {
    let mut dense = dense(latency);
    if latency.is_empty() {
        dense[0] = requests;
    }
    if dense.iter().sum::<u64>() != requests {
        return bad("a tick must have as many latencies as requests");
    }
    Ok(UnitCounts::of(failed, dense))
}

fn judge(mut case: JudgeCase, report: &mut Report<'_, '_>) -> Result<String, BadScenario> {
    let steps: Vec<f64> = match case.config.remove("steps") {
        Some(steps) => serde_json::from_value(steps).or_else(bad)?,
        None => vec![0.01, 0.05, 0.25, 0.50],
    };
    // The reference knows no least time; whoever wants it says so.
    case.config.entry("warmup_least_s").or_insert(Value::from(0.0));
    let config: JudgeConfig = serde_json::from_value(Value::Object(case.config)).or_else(bad)?;
    let weight = |step: usize| steps.get(step).copied().unwrap_or(1.0);
    let mut step = 0;
    let mut judge = Judge::new(config, weight(0), weight(1), Judge::empty_baseline());
    for (index, tick) in case.ticks.iter().enumerate() {
        let batch = Batch {
            weight: tick.w,
            canary: units(tick.n_c, tick.k_c, &tick.lat_c)?,
            stable: units(tick.n_s, tick.k_s, &tick.lat_s)?,
        };
        let advice = judge.tick(case.dt, &[batch]);
        report.same(
            &format!("action at tick {index}"),
            &tick.action.clone().into(),
            &advice.as_str().into(),
        );
        report.number(
            &format!("log e at tick {index}"),
            tick.log_e_total,
            judge.log_harm(),
        );
        let (errors, quantiles) = judge.log_fine();
        if let Some(expected) = tick.log_e_ok_err {
            report.number(&format!("proceed log e at tick {index}"), expected, errors);
        }
        for (expected, found) in tick.log_e_ok_lat.iter().zip(quantiles) {
            report.number(&format!("latency log e at tick {index}"), *expected, found);
        }
        if tick.action == "hold" {
            continue;
        }
        let name = &case.name;
        let said = judge.report().sentence;
        report
            .printer
            .line(format_args!("  {name} tick {index} -> {said}"));
        if tick.action == "proceed" && !tick.promoted {
            step += 1;
            judge.enter(weight(step), weight(step + 1));
        }
    }
    Ok(case.name)
}
