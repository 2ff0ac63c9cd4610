//! How a status reads: text made of data, nothing else.

use crate::{
    control::{
        AnalysisStatus, EvidenceStatus, MetricStatus, MetricsWindow, ServiceStatus, StoredEvent,
        VersionStatus,
    },
    model::{Role, Timestamp, thousands},
    rollout::Phase,
};
use std::{fmt::Write as _, time::Duration};

/// Everything about one service; see the tests for how it looks.
pub(super) fn status(
    status: &ServiceStatus,
    window: Option<&MetricsWindow>,
    last: &[StoredEvent],
    now: Timestamp,
) -> String {
    let mut text = headline(status, now);
    text.push('\n');
    text.push_str(&progress(status));
    text.push('\n');
    if !status.versions.is_empty() {
        text.push_str(&versions(status, window));
    }
    for metric in measured(status) {
        let _ = writeln!(text, "{metric}");
    }
    let mut newest: Vec<&StoredEvent> = last.iter().take(3).collect();
    newest.sort_by_key(|event| event.id);
    if let Some(latest) = newest.last() {
        let words: Vec<String> = newest
            .iter()
            .map(|event| format!("{} {}", clock_time(event.at), event.event))
            .collect();
        let _ = writeln!(text, "last  {}   journal #{}", words.join("   "), latest.id);
    }
    for drift in &status.drift {
        let _ = writeln!(text, "drift  {drift}");
    }
    for warning in &status.warnings {
        let _ = writeln!(text, "warning  {warning}");
    }
    text
}

/// `shop   Paused  CanaryPauseStep (4m12s, auto-resume in 48s)   rollout 7c1e  attempt 1  by ci`
pub(super) fn headline(status: &ServiceStatus, now: Timestamp) -> String {
    let mut text = format!("{}   {}", status.service, status.phase);
    let said = said(status);
    if !said.is_empty() {
        let _ = write!(text, "  {said}");
    }
    if let (Phase::Paused, Some(paused)) = (status.phase, &status.paused) {
        let long = short(now.since(paused.since));
        let endless = if paused.reason == "Alarm" {
            "until the alarm is over"
        } else {
            "until somebody promotes"
        };
        let end = paused.until.map_or(endless.to_owned(), |until| {
            format!("auto-resume in {}", short(until.since(now)))
        });
        let _ = write!(text, " ({long}, {end})");
    }
    if let Some(rollout) = &status.rollout {
        let id: String = rollout.id.chars().take(8).collect();
        let _ = write!(
            text,
            "   rollout {id}  attempt {}  by {}",
            rollout.attempt, rollout.actor
        );
    }
    text
}

fn progress(status: &ServiceStatus) -> String {
    let mut text = match &status.step {
        Some(step) if step.index < step.count => {
            format!("step {}/{} ({})   ", step.index, step.count, step.text)
        }
        Some(step) => format!("step {}/{}   ", step.index, step.count),
        None => String::new(),
    };
    let _ = write!(text, "weight set {}", status.set_weight);
    let observed = &status.observed;
    if observed.requests > 0 {
        let _ = write!(
            text,
            "   observed {:.3}% ({} / {} req, error {:+.2})",
            observed.share * 100.0,
            thousands(observed.canary),
            thousands(observed.requests),
            observed.error
        );
    }
    text
}

fn versions(status: &ServiceStatus, window: Option<&MetricsWindow>) -> String {
    let mut rows = vec![
        [
            "",
            "version",
            "req/s",
            "errors",
            "p50/p99",
            "endpoints",
            "in flight",
        ]
        .map(str::to_owned),
    ];
    for version in &status.versions {
        let rate = window.and_then(|window| {
            let of = window
                .versions
                .iter()
                .filter(|one| one.version == version.version);
            of.map(|one| one.rate).reduce(|a, b| a + b)
        });
        rows.push([
            kind_of(version).to_owned(),
            version.version.to_string(),
            rate.map_or("-".to_owned(), |rate| format!("{rate:.1}")),
            errors(version.evidence.as_ref()),
            latency(version.evidence.as_ref()),
            endpoints(version),
            version.in_flight.to_string(),
        ]);
    }
    table(&rows)
}

fn kind_of(version: &VersionStatus) -> &'static str {
    match version.role {
        Some(Role::Stable) => "stable",
        Some(Role::Canary) => "canary",
        None => version.state.as_str(),
    }
}

fn errors(evidence: Option<&EvidenceStatus>) -> String {
    match evidence {
        Some(seen) if seen.requests > 0 => {
            let rate = seen.error_rate.unwrap_or(0.0) * 100.0;
            format!("{rate:.2}% ({}/{})", seen.errors, seen.requests)
        }
        Some(_) | None => "-".to_owned(),
    }
}

fn latency(evidence: Option<&EvidenceStatus>) -> String {
    match evidence.and_then(|seen| Some((seen.p50?, seen.p99?))) {
        Some((p50, p99)) => format!("{}/{} ms", millis(p50), millis(p99)),
        None => "-".to_owned(),
    }
}

fn millis(seconds: f64) -> String {
    let millis = seconds * 1000.0;
    if millis < 10.0 {
        format!("{millis:.1}")
    } else {
        format!("{millis:.0}")
    }
}

fn endpoints(version: &VersionStatus) -> String {
    let healthy = version.endpoints.iter().filter(|one| one.healthy).count();
    format!("{healthy}/{} healthy", version.endpoints.len())
}

/// The analyses of this rollout, a line for each metric.
fn measured(status: &ServiceStatus) -> Vec<String> {
    let ours = |run: &&AnalysisStatus| {
        let rollout = status.rollout.as_ref();
        rollout.is_some_and(|rollout| rollout.id == run.rollout)
    };
    let lines = |run: &AnalysisStatus| {
        // A run that was stopped keeps the phase that Argo gives it; it has proved nothing.
        let why = run
            .reason
            .as_deref()
            .map_or(String::new(), |why| format!("  [{why}]"));
        let line = |metric: &MetricStatus| format!("analysis #{}{why}  {}", run.run, metric_line(metric));
        let mut all: Vec<String> = run.metrics.iter().map(line).collect();
        if all.is_empty() {
            all.push(format!("analysis #{}  {} {}", run.run, run.phase, run.message));
        }
        all
    };
    status
        .analyses
        .iter()
        .filter(ours)
        .take(4)
        .flat_map(lines)
        .collect()
}

/// `serin-judge  Running  HOLD at 5%: …`, or
/// `error-rate  Running  ok 2, bad 0, ? 0, err 0  last 0.0033 (result < 0.01)`
pub(super) fn metric_line(metric: &MetricStatus) -> String {
    if let Some(judge) = &metric.judge {
        let observes = if metric.dry_run { "  only observes" } else { "" };
        let seen = judge.client_errors.as_ref();
        let seen = seen.filter(|seen| seen.canary_bad + seen.stable_bad > 0);
        let of_4xx = seen.map_or(String::new(), |seen| format!("  {}", seen.sentence));
        return format!(
            "{}  {}{observes}  {}{of_4xx}",
            metric.name, metric.phase, judge.sentence
        );
    }
    let mut text = format!(
        "{}  {}  ok {}, bad {}, ? {}, err {}",
        metric.name, metric.phase, metric.successful, metric.failed, metric.inconclusive, metric.errors
    );
    let value = metric
        .measurements
        .iter()
        .rev()
        .find_map(|one| one.value.as_deref());
    if let Some(value) = value {
        let _ = write!(text, "  last {value}");
    }
    if let Some(condition) = metric
        .success_condition
        .as_ref()
        .or(metric.failure_condition.as_ref())
    {
        let _ = write!(text, " ({condition})");
    }
    if metric.dry_run {
        text.push_str("  dry run");
    }
    if !metric.message.is_empty() {
        let _ = write!(text, "  {}", plain(&metric.message));
    }
    text
}

/// A line for each service.
pub(super) fn list(services: &[ServiceStatus]) -> String {
    let mut rows = vec![["service", "phase", "stable", "canary", "weight", "message"].map(str::to_owned)];
    let name =
        |version: Option<&crate::model::VersionName>| version.map_or("-".to_owned(), ToString::to_string);
    for one in services {
        rows.push([
            one.service.to_string(),
            one.phase.to_string(),
            name(one.stable.as_ref()),
            name(one.canary.as_ref()),
            one.set_weight.to_string(),
            said(one),
        ]);
    }
    table(&rows)
}

/// One event in one line.
pub(super) fn event(event: &StoredEvent) -> String {
    let mut text = format!("#{}  {}  {}  {}", event.id, event.at, event.service, event.event);
    let _ = write!(text, "  -> {}", event.phase);
    if let Some(step) = event.step {
        let _ = write!(text, " step {step}");
    }
    let _ = write!(text, " weight {}", event.weight);
    if !event.message.is_empty() {
        let _ = write!(text, "  {}", event.message);
    }
    if let Some(why) = event.detail["by"]["message"].as_str()
        && event.event == "evidence_suffices"
    {
        let _ = write!(text, "  {why}");
    }
    if let Some(caller) = &event.caller {
        let _ = write!(text, "  (by {}", caller.actor);
        if let Some(reason) = &caller.reason {
            let _ = write!(text, ": {reason}");
        }
        text.push(')');
    }
    plain(&text)
}

/// Without control characters: what comes from outside must not move the cursor or forge a line.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Where it stands, in a few words: for progress while waiting.
pub(super) fn brief(status: &ServiceStatus) -> String {
    let mut text = format!("{}", status.phase);
    if let Some(step) = &status.step {
        let _ = write!(text, "  step {}/{}", step.index, step.count);
    }
    let _ = write!(text, "  weight {}", status.set_weight);
    let said = said(status);
    if !said.is_empty() {
        let _ = write!(text, "  {said}");
    }
    text
}

/// The message of a status, without the judge's numbers: they have a line of their own, and change every second.
fn said(status: &ServiceStatus) -> String {
    let judges = status.analyses.iter().flat_map(|run| &run.metrics);
    let mut judges = judges.filter_map(|metric| metric.judge.as_ref());
    let waits = status.reason.as_deref() == Some("WaitingForEvidence");
    if waits && judges.any(|judge| status.message.ends_with(&judge.sentence)) {
        "waiting for evidence".to_owned()
    } else {
        plain(&status.message)
    }
}

/// Columns as wide as what is in them.
pub(super) fn table(rows: &[impl AsRef<[String]>]) -> String {
    let mut widths = Vec::new();
    for row in rows {
        for (column, cell) in row.as_ref().iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(column) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::from("  ");
        for (width, cell) in widths.iter().zip(row.as_ref()) {
            let _ = write!(line, "{cell:<width$}   ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `4m12s`: the two largest units.
pub(super) fn short(time: Duration) -> String {
    let all = time.as_secs();
    let (days, hours, minutes, seconds) = (all / 86400, all / 3600 % 24, all / 60 % 60, all % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{seconds:02}s"),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        (_, _, _) => format!("{days}d{hours:02}h"),
    }
}

/// `10:41:07`, UTC.
fn clock_time(at: Timestamp) -> String {
    let shown = at.to_string();
    shown.get(11..19).unwrap_or(&shown).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fixtures::{paused, rolling};
    use serde_json::json;

    fn at(text: &str) -> Timestamp {
        serde_json::from_value(json!(text)).unwrap()
    }

    #[test]
    fn a_service_reads_like_this() {
        let status = paused(Some(at("2026-01-02T10:05:00Z")));
        let window = serde_json::from_value(json!({"service": "shop", "window": "1m", "covered": "1m", "versions": [
            {"version": "v1", "role": "stable", "rate": 152.0, "requests": 1, "errors": 0, "errorRate": 0.0, "p50": null, "p99": null},
            {"version": "v2", "role": "canary", "rate": 8.0, "requests": 1, "errors": 0, "errorRate": 0.0, "p50": null, "p99": null}]}))
        .unwrap();
        let events: Vec<StoredEvent> = serde_json::from_value(json!([
            {"id": 1182, "at": "2026-01-02T10:00:00Z", "service": "shop", "rollout": null, "event": "tick", "detail": {},
             "numbers": null, "caller": null, "phase": "Paused", "step": 1, "weight": 5, "message": ""},
            {"id": 1181, "at": "2026-01-02T09:59:58Z", "service": "shop", "rollout": null, "event": "deploy", "detail": {},
             "numbers": null, "caller": null, "phase": "Progressing", "step": 0, "weight": 0, "message": ""}]))
        .unwrap();
        let shown = super::status(&status, Some(&window), &events, at("2026-01-02T10:04:12Z"));
        let expected = "\
shop   Paused  CanaryPauseStep (4m12s, auto-resume in 48s)   rollout 7c1e  attempt 1  by ci
step 1/4 (pause 5m)   weight set 5%   observed 4.998% (1,204 / 24,091 req, error -0.55)
           version   req/s   errors             p50/p99    endpoints     in flight
  stable   v1        152.0   0.41% (94/22887)   12/88 ms   1/1 healthy   3
  canary   v2        8.0     0.33% (4/1204)     12/91 ms   1/1 healthy   1
last  09:59:58 deploy   10:00:00 tick   journal #1182
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn all_services_are_a_line_each() {
        let shown = list(&[rolling()]);
        assert_eq!(shown.lines().count(), 2);
        assert!(shown.contains("shop"), "{shown}");
    }

    #[test]
    fn spans_and_numbers_are_short() {
        let long = |seconds| short(Duration::from_secs(seconds));
        assert_eq!(
            (long(48), long(252), long(3700)),
            ("48s".into(), "4m12s".into(), "1h01m".into())
        );
        assert_eq!(long(90_000), "1d01h");
        assert_eq!(
            (thousands(0), thousands(999), thousands(1_234_567)),
            ("0".into(), "999".into(), "1,234,567".into())
        );
    }

    #[test]
    fn an_event_cannot_forge_a_line() {
        let event_of = |reason: &str| -> StoredEvent {
            serde_json::from_value(json!({"id": 1, "at": "2026-01-02T10:00:00Z", "service": "shop", "rollout": null,
                "event": "abort", "detail": {}, "numbers": null, "phase": "Degraded", "step": null, "weight": 0,
                "message": "", "caller": {"actor": "ci", "role": "deployer", "source": "::1", "reason": reason,
                "idempotencyKey": null}}))
            .unwrap()
        };
        let shown = event(&event_of("bad\n#2  forged\u{1b}[2J"));
        assert_eq!(shown.lines().count(), 1);
        assert!(!shown.contains('\u{1b}'));
        assert!(shown.contains("by ci: bad"));
    }
}
