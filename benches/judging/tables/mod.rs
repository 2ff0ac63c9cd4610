//! The tables, one file for each question.

mod detection;
mod false_alarms;
mod latency;
mod promotion;

use crate::{Size, analysis::JudgeConfig, model::Weight, simulation::Ended};
use std::io::{self, Write};

/// Prints one table.
type Table = fn(Size, &mut dyn Write) -> io::Result<()>;

/// Every table by its name.
pub(crate) const ALL: [(&str, Table); 7] = [
    ("T0", false_alarms::equal),
    ("T1", false_alarms::beside_gates),
    ("T2", detection::errors),
    ("T4", latency::found),
    ("T5", promotion::errors),
    ("T6", promotion::everything),
    ("T7", false_alarms::units),
];

/// Weights in percent.
fn weights(percent: &[&str]) -> Vec<Weight> {
    percent.iter().filter_map(|text| text.parse().ok()).collect()
}

/// A judge of errors only, with all of a risk of one in `1/alpha`.
fn errors_only(alpha: f64) -> JudgeConfig {
    JudgeConfig {
        alpha,
        lat_q: Vec::new(),
        ..JudgeConfig::default()
    }
}

fn percent(rate: f64) -> String {
    let digits = format!("{:.3}", rate * 100.0);
    format!("{}%", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// What a quantity was in the runs that decided; absent in the others.
#[expect(clippy::cast_precision_loss, reason = "requests of one run")]
fn canary(runs: &[Ended], decided: impl Fn(&Ended) -> bool) -> Vec<Option<f64>> {
    runs.iter()
        .map(|run| decided(run).then_some(run.canary as f64))
        .collect()
}
