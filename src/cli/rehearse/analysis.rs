//! Analysis cases: conditions, whole runs, timing, and which specs are refused.

use super::{BadScenario, Printer, bad, check_keys, millis, object, text};
use crate::{
    analysis::{
        Conditions, Context, MetricSpec, Outcome, Provider, Run, SerinMetric, SerinQuery, validate,
        validate_all,
    },
    model::Timestamp,
};
use serde_json::{Map, Value};

const LEVELS: &str = "condition, run, timing, validate";
const COMMON: [&str; 8] = [
    "id",
    "name",
    "level",
    "expect",
    "note",
    "about",
    "source",
    "proxy_rule",
];

/// Replays one case; whether everything it expects came out.
pub(super) fn replay(case: &Map<String, Value>, printer: &mut Printer<'_>) -> Result<bool, BadScenario> {
    let (id, name) = (text(case, "id").unwrap_or("?"), text(case, "name").unwrap_or(""));
    let mut report = Report {
        printer,
        id: id.to_owned(),
        held: true,
    };
    match text(case, "level") {
        Some("condition") => condition(case, &mut report)?,
        Some("run") => run(case, &mut report)?,
        Some("timing") => timing(case, &mut report)?,
        Some("validate") => validation(case, &mut report)?,
        Some(level) => return bad(format_args!("unknown level `{level}` (allowed: {LEVELS})")),
        None => return bad(format_args!("`level` is missing (one of {LEVELS})")),
    }
    let held = report.held;
    printer.line(format_args!(
        "{} {id} {name}",
        if held { "holds " } else { "BROKEN" }
    ));
    Ok(held)
}

/// What came out, beside what was expected.
struct Report<'a, 'b> {
    printer: &'a mut Printer<'b>,
    id: String,
    held: bool,
}

impl Report<'_, '_> {
    fn event(&mut self, text: &str) {
        let id = &self.id;
        self.printer.line(format_args!("  {id} {text}"));
    }

    fn compare(&mut self, what: &str, expected: &Value, found: &Value) {
        if !same(expected, found) {
            self.held = false;
            let id = &self.id;
            self.printer.line(format_args!(
                "  {id} {what}: expected {expected}, but it is {found}"
            ));
        }
    }
}

/// Numbers are compared by value: `67` and `67.0` are the same.
fn same(expected: &Value, found: &Value) -> bool {
    match (expected.as_f64(), found.as_f64()) {
        (Some(expected), Some(found)) => (expected - found).abs() < 1e-9,
        (_, _) => expected == found,
    }
}

/// `"NaN"` and the infinities are written as text; everything else is what it is.
fn value(case: &Value) -> expr::Value {
    match case {
        Value::String(text) => match text.as_str() {
            "NaN" => expr::Value::Float(f64::NAN),
            "Inf" | "+Inf" | "Infinity" => expr::Value::Float(f64::INFINITY),
            "-Inf" | "-Infinity" => expr::Value::Float(f64::NEG_INFINITY),
            text => expr::Value::String(text.to_owned()),
        },
        Value::Array(items) => expr::Value::Array(items.iter().map(value).collect()),
        Value::Object(map) => map.iter().map(|(key, item)| (key.clone(), value(item))).collect(),
        Value::Null => expr::Value::Nil,
        Value::Bool(truth) => expr::Value::Bool(*truth),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => expr::Value::Integer(whole),
            None => expr::Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
    }
}

/// M1: a condition that cannot be compiled makes every measurement an Error.
fn judge(success: Option<&str>, failure: Option<&str>, found: &Value) -> (Outcome, Option<String>) {
    match Conditions::compile(success, failure) {
        Ok(conditions) => conditions.judge(&value(found)),
        Err(error) => (Outcome::Error, Some(error.to_string())),
    }
}

fn condition(case: &Map<String, Value>, report: &mut Report<'_, '_>) -> Result<(), BadScenario> {
    let own = ["successCondition", "failureCondition", "value"];
    check_keys(case, "case", &[&COMMON[..], &own].concat())?;
    let expect = object(case, "expect")?;
    check_keys(expect, "expect", &["measurement"])?;
    let found = case.get("value").unwrap_or(&Value::Null);
    let (outcome, reason) = judge(
        text(case, "successCondition"),
        text(case, "failureCondition"),
        found,
    );
    let reason = reason.map_or(String::new(), |reason| format!(" ({reason})"));
    report.event(&format!("{found} -> {}{reason}", outcome.as_str()));
    if let Some(expected) = expect.get("measurement") {
        report.compare("measurement", expected, &outcome.as_str().into());
    }
    Ok(())
}

/// A metric as the case files write it: the provider may be left out, and limits of Argo's are all allowed.
fn metric(spec: &Value) -> Result<Result<MetricSpec, String>, BadScenario> {
    let Value::Object(spec) = spec else {
        return bad("a metric must be an object");
    };
    let mut spec = spec.clone();
    spec.entry("name").or_insert_with(|| "m".into());
    spec.retain(|_, value| !value.is_null());
    let provider = match spec.remove("provider") {
        None => None,
        Some(Value::Object(provider)) if provider.len() == 1 => {
            serde_json::from_value::<Provider>(Value::Object(provider)).ok()
        }
        Some(_) => return Ok(Err("exactly one provider is required".to_owned())),
    };
    let provider = provider.unwrap_or(Provider::Serin(SerinQuery::of(SerinMetric::ErrorRate)));
    let Ok(provider) = serde_json::to_value(provider) else {
        return bad("the provider cannot be written down");
    };
    spec.insert("provider".to_owned(), provider);
    serde_json::from_value(Value::Object(spec))
        .map(Ok)
        .or_else(|error| bad(format_args!("metric: {error}")))
}

fn metrics(case: &Map<String, Value>) -> Result<Vec<MetricSpec>, BadScenario> {
    let Some(Value::Array(specs)) = case.get("metrics") else {
        return bad("`metrics` must be a list");
    };
    let read = |spec| metric(spec)?.or_else(|reason| bad(format_args!("metric: {reason}")));
    specs.iter().map(read).collect()
}

/// Regular expressions on metric names; each must match something.
fn dry_run(case: &Map<String, Value>, specs: &mut [MetricSpec]) -> Result<Result<(), String>, BadScenario> {
    let rules = match case.get("dryRun") {
        None => return Ok(Ok(())),
        Some(Value::Array(rules)) => rules,
        Some(_) => return bad("`dryRun` must be a list of {metricName}"),
    };
    for rule in rules {
        let name = rule
            .as_str()
            .or_else(|| rule.get("metricName").and_then(Value::as_str));
        let Some(name) = name else {
            return bad("`dryRun` must be a list of {metricName}");
        };
        let Ok(pattern) = regex::Regex::new(name) else {
            return Ok(Err(format!("dryRun rule `{name}` is not a regular expression")));
        };
        let mut matched = false;
        for spec in specs.iter_mut().filter(|spec| pattern.is_match(&spec.name)) {
            matched = true;
            spec.dry_run = true;
        }
        if !matched {
            return Ok(Err(format!("dryRun rule `{name}` matches no metric")));
        }
    }
    Ok(Ok(()))
}

fn run(case: &Map<String, Value>, report: &mut Report<'_, '_>) -> Result<(), BadScenario> {
    check_keys(
        case,
        "case",
        &[&COMMON[..], &["metrics", "sequence", "dryRun"]].concat(),
    )?;
    let mut specs = metrics(case)?;
    let mut now = Timestamp::from_secs(0);
    let mut run = match dry_run(case, &mut specs)? {
        Ok(()) => Run::start(specs, now),
        Err(reason) => Run::invalid(reason, now),
    };
    let empty = Vec::new();
    let sequence = case.get("sequence").and_then(Value::as_array).unwrap_or(&empty);
    let mut after_each = Vec::new();
    for item in sequence {
        now = now.plus(std::time::Duration::from_secs(60));
        let Value::Object(item) = item else {
            return bad("an item of `sequence` must be an object");
        };
        let (what, taken) = feed(&mut run, item, now)?;
        let phase = if taken { run.phase.as_str() } else { "ignored" };
        report.event(&format!("{what} -> {phase}"));
        after_each.push(Value::from(phase));
    }
    let expect = object(case, "expect")?;
    let own = [
        "run_phase_after_each",
        "final_run_phase",
        "final_metric_phases",
        "counters_first_metric",
        "counters",
        "message",
    ];
    check_keys(expect, "expect", &own)?;
    compare_run(expect, &run, after_each, report);
    Ok(())
}

/// One item of a sequence: what it was, and whether the run took it.
fn feed(run: &mut Run, item: &Map<String, Value>, now: Timestamp) -> Result<(String, bool), BadScenario> {
    check_keys(
        item,
        "sequence",
        &[
            "metric",
            "outcome",
            "value",
            "start",
            "terminate",
            "t",
            "note",
            "message",
        ],
    )?;
    if item.get("terminate") == Some(&Value::Bool(true)) {
        run.terminate(now);
        return Ok(("terminate".to_owned(), true));
    }
    let name = match text(item, "metric") {
        Some(name) => name,
        None => run.specs.first().map_or("", |spec| spec.name.as_str()),
    };
    let name = name.to_owned();
    let Some(index) = run.specs.iter().position(|spec| spec.name == name) else {
        if run.specs.is_empty() {
            return Ok((name, false));
        }
        return bad(format_args!("sequence: there is no metric `{name}`"));
    };
    if item.get("start") == Some(&Value::Bool(true)) {
        return Ok((format!("{name} starts"), run.begin(index, now).is_ok()));
    }
    let (outcome, mut message) = match (text(item, "outcome"), item.get("value")) {
        (Some(word), _) => (outcome(word)?, None),
        (None, Some(value)) => {
            let spec = &run.specs[index];
            judge(
                spec.success_condition.as_deref(),
                spec.failure_condition.as_deref(),
                value,
            )
        }
        (None, None) => return bad("an item needs `outcome`, `value`, `start: true` or `terminate: true`"),
    };
    message = message.or_else(|| text(item, "message").map(str::to_owned));
    let value = item.get("value").map(Value::to_string);
    let taken = run.finish(index, outcome, value, message, now).is_ok();
    Ok((format!("{name} {}", outcome.as_str()), taken))
}

fn outcome(word: &str) -> Result<Outcome, BadScenario> {
    match word {
        "Successful" => Ok(Outcome::Successful),
        "Failed" => Ok(Outcome::Failed),
        "Inconclusive" => Ok(Outcome::Inconclusive),
        "Error" => Ok(Outcome::Error),
        "NoData" => Ok(Outcome::NoData),
        _ => bad(format_args!(
            "unknown outcome `{word}` (allowed: Successful, Failed, Inconclusive, Error, NoData)"
        )),
    }
}

fn compare_run(expect: &Map<String, Value>, run: &Run, after_each: Vec<Value>, report: &mut Report<'_, '_>) {
    if let Some(expected) = expect.get("run_phase_after_each") {
        report.compare("phase after each", expected, &Value::Array(after_each));
    }
    if let Some(expected) = expect.get("final_run_phase") {
        report.compare("run phase", expected, &run.phase.as_str().into());
    }
    if let Some(Value::Object(phases)) = expect.get("final_metric_phases") {
        for (name, expected) in phases {
            let index = run.specs.iter().position(|spec| spec.name == *name);
            let found = index.map_or(Value::Null, |index| run.metrics[index].phase.as_str().into());
            report.compare(&format!("phase of {name}"), expected, &found);
        }
    }
    if let Some(Value::Object(counters)) = expect.get("counters_first_metric") {
        compare_counters(counters, run, 0, report);
    }
    if let Some(Value::Object(all)) = expect.get("counters") {
        for (name, counters) in all {
            let index = run.specs.iter().position(|spec| spec.name == *name);
            if let (Some(index), Value::Object(counters)) = (index, counters) {
                compare_counters(counters, run, index, report);
            }
        }
    }
    if let Some(Value::String(part)) = expect.get("message") {
        let message = run.message.clone().unwrap_or_default();
        if !message.contains(part.as_str()) {
            report.compare("message", &Value::String(part.clone()), &message.into());
        }
    }
}

fn compare_counters(expected: &Map<String, Value>, run: &Run, index: usize, report: &mut Report<'_, '_>) {
    let found = run
        .metrics
        .get(index)
        .and_then(|state| serde_json::to_value(state).ok());
    for (counter, value) in expected {
        let found = found
            .as_ref()
            .and_then(|found| found.get(counter))
            .unwrap_or(&Value::Null);
        report.compare(counter, value, found);
    }
}

fn timing(case: &Map<String, Value>, report: &mut Report<'_, '_>) -> Result<(), BadScenario> {
    let own = [
        "metric",
        "run_started_at_s",
        "last_measurement",
        "terminating",
        "terminated",
    ];
    check_keys(case, "case", &[&COMMON[..], &own].concat())?;
    let spec = metric(case.get("metric").unwrap_or(&Value::Null))?.or_else(bad)?;
    let at = |map: &Map<String, Value>, key: &str| match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => millis(value, key).map(|millis| Some(Timestamp::from_millis(millis))),
    };
    let started = at(case, "run_started_at_s")?.unwrap_or_default();
    let mut run = Run::start(vec![spec], started);
    let mut resume = None;
    if let Some(Value::Object(last)) = case.get("last_measurement") {
        let own = [
            "started_at_s",
            "finished_at_s",
            "outcome",
            "completed_count",
            "resume_at_s",
        ];
        check_keys(last, "last_measurement", &own)?;
        let begun = at(last, "started_at_s")?.unwrap_or(started);
        resume = at(last, "resume_at_s")?;
        let word = text(last, "outcome").unwrap_or("Successful");
        let counted = last.get("completed_count").and_then(Value::as_u64).unwrap_or(0);
        let before = counted.saturating_sub(u64::from(word != "Error"));
        for _ in 0..before.min(10_000) {
            // What a complete metric does not take any more changes nothing here either.
            let _ = run.finish(0, Outcome::Successful, None, None, begun);
        }
        let _ = match at(last, "finished_at_s")? {
            Some(finished) if word != "Running" => run.finish(0, outcome(word)?, None, None, finished),
            Some(_) | None => run.begin(0, begun),
        };
    }
    let ends = |key: &str| case.get(key) == Some(&Value::Bool(true));
    if ends("terminating") || ends("terminated") {
        run.terminate(started);
    }
    let next = if run.phase.is_completed() {
        None
    } else {
        run.next_due().or(resume)
    };
    let found = next.map_or(Value::Null, |at| {
        let millis = at.as_millis();
        if millis % 1000 == 0 {
            (millis / 1000).into()
        } else {
            at_seconds(millis).into()
        }
    });
    report.event(&format!("next measurement at {found}"));
    let expect = object(case, "expect")?;
    check_keys(expect, "expect", &["next_measurement_at_s"])?;
    if let Some(expected) = expect.get("next_measurement_at_s") {
        report.compare("next measurement", expected, &found);
    }
    Ok(())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "scenario times are far below 2^53 milliseconds"
)]
fn at_seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

fn validation(case: &Map<String, Value>, report: &mut Report<'_, '_>) -> Result<(), BadScenario> {
    check_keys(
        case,
        "case",
        &[&COMMON[..], &["context", "metric", "metrics", "dryRun"]].concat(),
    )?;
    let context = match text(case, "context").unwrap_or("inline") {
        "inline" | "step" => Context::Inline,
        "background" => Context::Background,
        "blueGreen" | "bluegreen" | "prePromotion" | "postPromotion" | "pre" | "post" => Context::BlueGreen,
        other => {
            return bad(format_args!(
                "unknown context `{other}` (allowed: inline, background, blueGreen)"
            ));
        }
    };
    let reasons = refusals(case, context)?;
    let found = if reasons.is_empty() {
        "valid".to_owned()
    } else {
        reasons.join("; ")
    };
    report.event(&found);
    let expect = object(case, "expect")?;
    check_keys(expect, "expect", &["valid", "reason"])?;
    if let Some(expected) = expect.get("valid") {
        report.compare("valid", expected, &reasons.is_empty().into());
    }
    if let Some(Value::String(reason)) = expect.get("reason")
        && !says(&found, reason)
    {
        report.compare("reason", &Value::String(reason.clone()), &found.into());
    }
    Ok(())
}

fn refusals(case: &Map<String, Value>, context: Context) -> Result<Vec<String>, BadScenario> {
    let list = match (case.get("metric"), case.get("metrics")) {
        (Some(one), _) => vec![one.clone()],
        (None, Some(Value::Array(all))) => all.clone(),
        (None, _) => return bad("`metric` or `metrics` is missing"),
    };
    let mut reasons = Vec::new();
    let mut specs = Vec::new();
    for one in &list {
        match metric(one) {
            Ok(Ok(spec)) => specs.push(spec),
            // What cannot be read is not accepted: here that is an answer, and no fault of the file.
            Ok(Err(reason)) | Err(BadScenario(reason)) => reasons.push(reason),
        }
    }
    if let Err(reason) = dry_run(case, &mut specs)? {
        reasons.push(reason);
    }
    let refused = if case.contains_key("metric") {
        specs.iter().flat_map(|spec| validate(spec, context)).collect()
    } else {
        validate_all(&specs, context).err().unwrap_or_default()
    };
    reasons.extend(refused.into_iter().map(|refused| refused.to_string()));
    Ok(reasons)
}

/// Case files give reasons in words of their own: what matters is that ours speaks of the same things.
fn says(found: &str, reason: &str) -> bool {
    let found = found.to_lowercase();
    let reason = reason.to_lowercase();
    let words = || {
        reason
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| word.len() > 3)
    };
    let (all, said) = (
        words().count(),
        words().filter(|word| found.contains(word)).count(),
    );
    found.contains(&reason) || said * 2 >= all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::RunPhase;

    #[test]
    fn a_reason_is_recognised_by_what_it_speaks_of() {
        assert!(says(
            "metric `m`: interval is required when count > 1",
            "interval is required"
        ));
        assert!(!says("valid", "interval is required"));
    }

    #[test]
    fn phases_and_outcomes_share_their_words() {
        assert_eq!(RunPhase::Successful.as_str(), Outcome::Successful.as_str());
    }
}
