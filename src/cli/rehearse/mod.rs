//! `serin rehearse`: runs the pure machines in virtual time over scenario files, and says which expectations hold.
//!
//! The kind of a file is told by its top-level keys: `cases` (analysis), `canary` / `blueGreen` (rollout), `eprocess` /
//! `latency` / `judge` (the sequential judge), or `events` together with a configuration (a user's own plan). Each event
//! prints one line; the last line is `N/M hold`.

mod analysis;
mod judge;
mod player;
mod rollout;
mod script;
#[cfg(test)]
mod tests;

pub use script::Planned;

use serde_json::{Map, Value};
use std::{fmt, fs, io, path::Path};

/// Everything held.
pub const HELD: u8 = 0;
/// An expectation does not hold.
pub const BROKEN: u8 = 1;
/// A file cannot be read or understood.
pub const UNUSABLE: u8 = 2;

/// What is wrong with a scenario file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadScenario(String);

fn bad<T>(reason: impl fmt::Display) -> Result<T, BadScenario> {
    Err(BadScenario(reason.to_string()))
}

/// How many of the cases hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// All that they expect came out.
    pub hold: usize,
    /// All cases.
    pub all: usize,
}

/// Prints lines, and remembers when that failed: nobody reads any more.
struct Printer<'a> {
    out: &'a mut dyn io::Write,
    failed: Option<io::Error>,
}

impl Printer<'_> {
    fn line(&mut self, text: impl fmt::Display) {
        if self.failed.is_none() {
            self.failed = writeln!(self.out, "{text}").err();
        }
    }
}

/// Replays the files and returns the exit code: 0 when everything held, 1 when something did not, 2 when a file cannot be
/// used. `planned` is the plan that files with `events` run on.
pub fn run(files: &[impl AsRef<Path>], planned: Option<&Planned>, out: &mut dyn io::Write) -> io::Result<u8> {
    let mut printer = Printer { out, failed: None };
    let mut tally = Tally::default();
    let mut unusable = false;
    for file in files {
        let file = file.as_ref();
        if let Err(error) = replay(file, planned, &mut printer, &mut tally) {
            unusable = true;
            printer.line(format_args!("{}: {error}", file.display()));
        }
    }
    printer.line(format_args!("{}/{} hold", tally.hold, tally.all));
    match printer.failed {
        Some(error) => Err(error),
        None if unusable => Ok(UNUSABLE),
        None if tally.hold < tally.all => Ok(BROKEN),
        None => Ok(HELD),
    }
}

fn replay(
    file: &Path,
    planned: Option<&Planned>,
    printer: &mut Printer<'_>,
    tally: &mut Tally,
) -> Result<(), BadScenario> {
    let text = fs::read_to_string(file).or_else(|error| bad(format_args!("cannot be read: {error}")))?;
    let root = parse(&text)?;
    let Value::Object(root) = root else {
        return bad("a scenario file is an object with `cases`, `canary`, `blueGreen` or `events`");
    };
    let mut known = false;
    if let Some(cases) = root.get("cases") {
        known = true;
        each(cases, "cases", tally, |case| analysis::replay(case, printer))?;
    }
    for strategy in ["canary", "blueGreen"] {
        if let Some(cases) = root.get(strategy) {
            known = true;
            each(cases, strategy, tally, |case| {
                rollout::replay(case, strategy, printer)
            })?;
        }
    }
    if let Some(events) = root.get("events") {
        known = true;
        let Some(planned) = planned else {
            return bad("`events` run on a plan of yours: give --config FILE and --service NAME");
        };
        let held = script::replay(events, planned, printer)?;
        tally.all += 1;
        tally.hold += usize::from(held);
    }
    for kind in ["eprocess", "latency", "judge"] {
        if let Some(cases) = root.get(kind) {
            known = true;
            let tolerance = judge::tolerance(&root)?;
            each(cases, kind, tally, |case| {
                judge::replay(case, kind, tolerance, printer)
            })?;
        }
    }
    if let Some(pairs) = root.get("buckets") {
        known = true;
        tally.all += 1;
        tally.hold += usize::from(judge::buckets(pairs, printer)?);
    }
    if known {
        return Ok(());
    }
    let keys: Vec<&str> = root.keys().map(String::as_str).collect();
    bad(format_args!(
        "none of its top-level keys ({}) says what to rehearse: write `cases` (analysis), `canary` or `blueGreen` \
         (rollout), `eprocess`, `latency` or `judge` (the sequential judge), or `events`",
        keys.join(", ")
    ))
}

fn parse(text: &str) -> Result<Value, BadScenario> {
    let json = match serde_json::from_str(text) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    serde_saphyr::from_str(text).or_else(|yaml| {
        if text.trim_start().starts_with('{') {
            bad(format_args!("is not JSON: {json}"))
        } else {
            bad(format_args!("is neither JSON nor YAML: {yaml}"))
        }
    })
}

fn each(
    cases: &Value,
    key: &str,
    tally: &mut Tally,
    mut replay: impl FnMut(&Map<String, Value>) -> Result<bool, BadScenario>,
) -> Result<(), BadScenario> {
    let Value::Array(cases) = cases else {
        return bad(format_args!("`{key}` must be a list of cases"));
    };
    let mut faults = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let Value::Object(case) = case else {
            return bad(format_args!("{key}[{index}] must be an object"));
        };
        let id = text(case, "id")
            .or_else(|| text(case, "name"))
            .unwrap_or_default();
        let id = if id.is_empty() {
            format!("{key}[{index}]")
        } else {
            id.to_owned()
        };
        tally.all += 1;
        match replay(case) {
            Ok(held) => tally.hold += usize::from(held),
            // One case that cannot be understood does not hide what became of the others.
            Err(error) => faults.push(format!("case {id}: {error}")),
        }
    }
    if faults.is_empty() {
        Ok(())
    } else {
        bad(faults.join("\n  "))
    }
}

/// The keys of `map` must be among `allowed`.
fn check_keys(map: &Map<String, Value>, what: &str, allowed: &[&str]) -> Result<(), BadScenario> {
    match map.keys().find(|key| !allowed.contains(&key.as_str())) {
        Some(key) => bad(format_args!(
            "{what}: unknown key `{key}` (allowed: {})",
            allowed.join(", ")
        )),
        None => Ok(()),
    }
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    map.get(key).and_then(Value::as_str)
}

fn object<'a>(map: &'a Map<String, Value>, key: &str) -> Result<&'a Map<String, Value>, BadScenario> {
    match map.get(key) {
        Some(Value::Object(object)) => Ok(object),
        Some(_) => bad(format_args!("`{key}` must be an object")),
        None => bad(format_args!("`{key}` is missing")),
    }
}

/// Seconds, written as a number or as a length of time, in milliseconds.
fn millis(value: &Value, what: &str) -> Result<u64, BadScenario> {
    let spelled = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string() + "s",
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => String::new(),
    };
    match spelled.parse::<crate::model::Span>() {
        Ok(span) => Ok(span.as_millis()),
        Err(_) => bad(format_args!("{what}: `{value}` is not a number of seconds")),
    }
}
