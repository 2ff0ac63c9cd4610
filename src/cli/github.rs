//! How a command's end is told to GitHub Actions: outputs, a step summary, annotations.

use super::{exit::Exit, render};
use crate::control::ServiceStatus;
use std::{
    env,
    fmt::Write as _,
    fs::OpenOptions,
    io::{self, Write},
    path::Path,
};

/// Appends outputs and summary where the runner wants them; returns the annotation for the log, if there is one.
pub(super) fn report(status: &ServiceStatus, url: &str, exit: Exit, why: &str) -> io::Result<Option<String>> {
    if let Some(file) = env::var_os("GITHUB_OUTPUT") {
        append(Path::new(&file), &outputs(status, url))?;
    }
    if let Some(file) = env::var_os("GITHUB_STEP_SUMMARY") {
        append(Path::new(&file), &summary(status, why))?;
    }
    Ok(annotation(exit, why))
}

fn append(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)?
        .write_all(text.as_bytes())
}

/// `phase`, `weight`, `reason`, `rollout_id`, `url`: a line each.
fn outputs(status: &ServiceStatus, url: &str) -> String {
    let rollout = status.rollout.as_ref().map_or("", |rollout| rollout.id.as_str());
    let weight = status.set_weight.to_string();
    let fields = [
        ("phase", status.phase.as_str()),
        ("weight", weight.trim_end_matches('%')),
        ("reason", &status.message),
        ("rollout_id", rollout),
        ("url", url),
    ];
    // A line break in a value would begin another output.
    fields.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name}={}", render::plain(value));
        text
    })
}

/// The evidence as a Markdown table.
fn summary(status: &ServiceStatus, why: &str) -> String {
    let cell = |text: &str| render::plain(text).replace('|', "\\|").replace('<', "&lt;");
    let mut text = format!("### {}: {}\n\n{}\n\n", status.service, status.phase, cell(why));
    text.push_str(
        "| | version | requests | errors | p50 | p99 | state |\n|---|---|---:|---:|---:|---:|---|\n",
    );
    for version in &status.versions {
        let seen = version.evidence.unwrap_or_default();
        let rate = seen
            .error_rate
            .map_or("-".to_owned(), |rate| format!("{:.2} %", rate * 100.0));
        let ms = |seconds: Option<f64>| seconds.map_or("-".to_owned(), |s| format!("{:.0} ms", s * 1000.0));
        let role = version.role.map_or("", crate::model::Role::as_str);
        let _ = writeln!(
            text,
            "| {role} | {} | {} | {rate} | {} | {} | {} |",
            cell(version.version.as_str()),
            seen.requests,
            ms(seen.p50),
            ms(seen.p99),
            version.state.as_str()
        );
    }
    for metric in status.analyses.iter().flat_map(|run| &run.metrics) {
        let _ = writeln!(text, "\n- {}", cell(&render::metric_line(metric)));
    }
    text.push('\n');
    text
}

/// What the log shows in red: for anything but the goal.
pub(super) fn annotation(exit: Exit, why: &str) -> Option<String> {
    let level = match exit {
        Exit::Reached => return None,
        Exit::TimedOut | Exit::NeedsHuman => "warning",
        Exit::Internal
        | Exit::Usage
        | Exit::RolledBack
        | Exit::Conflict
        | Exit::Unauthorised
        | Exit::Superseded => "error",
    };
    let why = why.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    Some(format!("::{level} title=serin::{why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fixtures::{degraded, rolling};

    #[test]
    fn outputs_are_one_line_each_whatever_the_message_says() {
        let mut status = degraded();
        status.message = "failed\nurl=http://evil".to_owned();
        let shown = outputs(&status, "http://127.0.0.1:9900");
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(
            lines,
            [
                "phase=Degraded",
                "weight=0",
                "reason=failed url=http://evil",
                "rollout_id=7c1e",
                "url=http://127.0.0.1:9900"
            ]
        );
    }

    #[test]
    fn the_summary_is_a_table_of_evidence() {
        let shown = summary(&rolling(), "a|b <script>");
        assert!(
            shown.contains("| canary | v2 | 1204 | 0.33 % | 12 ms | 91 ms | serving |"),
            "{shown}"
        );
        assert!(shown.contains("a\\|b &lt;script>"), "{shown}");
    }

    #[test]
    fn a_rollback_is_an_error_and_a_pause_a_warning() {
        assert_eq!(annotation(Exit::Reached, "x"), None);
        let error = annotation(Exit::RolledBack, "50% bad\nreally").unwrap();
        assert_eq!(error, "::error title=serin::50%25 bad%0Areally");
        assert!(
            annotation(Exit::NeedsHuman, "x")
                .unwrap()
                .starts_with("::warning")
        );
    }
}
