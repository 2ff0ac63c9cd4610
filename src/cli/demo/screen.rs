//! What the demo shows: a line per half second on a terminal (redrawn in place), a line per change elsewhere.

use super::load::Counts;
use crate::{
    control::{ServiceStatus, VersionStatus},
    model::Role,
};
use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

/// Where the demo is shown.
pub(super) struct Screen<'a> {
    out: &'a mut dyn Write,
    live: bool,
    /// Lines of the block that is redrawn.
    drawn: usize,
    last: String,
    previous: Option<(Duration, u64)>,
}

impl<'a> Screen<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Screen<'a> {
        Screen {
            out,
            live: io::stdout().is_terminal(),
            drawn: 0,
            last: String::new(),
            previous: None,
        }
    }

    /// A sentence of the story.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        self.drawn = 0;
        self.previous = None;
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// Where the rollout stands.
    pub(super) fn show(
        &mut self,
        status: &ServiceStatus,
        counts: &Counts,
        elapsed: Duration,
        last: bool,
    ) -> io::Result<()> {
        let rate = self.rate(elapsed, counts.answered);
        let head = headline(status, elapsed, rate);
        let versions: Vec<String> = status
            .versions
            .iter()
            .filter(|v| v.role.is_some())
            .map(version)
            .collect();
        if !self.live {
            // One line per change of what matters, not per half second.
            let key = format!(
                "{} {} {:?}",
                status.phase,
                status.set_weight,
                status.step.as_ref().map(|step| step.index)
            );
            if key == self.last && !last {
                return Ok(());
            }
            self.last = key;
            return writeln!(
                self.out,
                "   {head}   {}",
                versions.join("   ").replace("  ", " ")
            );
        }
        if self.drawn > 0 {
            // Up to the block's first line, and clear from there.
            write!(self.out, "\x1b[{}A\x1b[J", self.drawn)?;
        }
        writeln!(self.out, "   {head}")?;
        for line in &versions {
            writeln!(self.out, "     {line}")?;
        }
        writeln!(self.out, "     {}", status.message)?;
        self.drawn = if last { 0 } else { versions.len() + 2 };
        self.out.flush()
    }

    fn rate(&mut self, elapsed: Duration, answered: u64) -> f64 {
        let before = self.previous.replace((elapsed, answered));
        let Some((then, count)) = before else { return 0.0 };
        let seconds = elapsed.saturating_sub(then).as_secs_f64().max(0.001);
        #[allow(clippy::cast_precision_loss, reason = "a rate to look at")]
        let fresh = answered.saturating_sub(count) as f64;
        fresh / seconds
    }
}

fn headline(status: &ServiceStatus, elapsed: Duration, rate: f64) -> String {
    let step = status.step.as_ref().map_or(String::new(), |step| {
        format!("step {}/{}", step.index, step.count)
    });
    let bar = bar(status.set_weight.as_ratio());
    let phase = status.phase.to_string();
    let rate = if rate > 0.0 {
        format!("   {rate:.0} req/s")
    } else {
        String::new()
    };
    format!(
        "{:>3}s  {phase:<11} {step:<9} canary {:>4} {bar}{rate}",
        elapsed.as_secs(),
        status.set_weight.to_string()
    )
}

fn bar(ratio: f64) -> String {
    let filled = (1..=20)
        .filter(|cell| f64::from(*cell) / 20.0 <= ratio + 1e-9)
        .count();
    format!("[{}{}]", "#".repeat(filled), ".".repeat(20 - filled))
}

fn version(version: &VersionStatus) -> String {
    let role = match version.role {
        Some(Role::Stable) => "stable",
        Some(Role::Canary) => "canary",
        None => "",
    };
    let evidence = version.evidence.unwrap_or_default();
    let millis =
        |seconds: Option<f64>| seconds.map_or("-".to_owned(), |seconds| format!("{:.1}", seconds * 1000.0));
    let rate = evidence
        .error_rate
        .map_or("-".to_owned(), |rate| format!("{:.2} %", rate * 100.0));
    format!(
        "{role} {:<4} {:>6} requests at this weight   errors {:>7} ({})   p50/p99 {}/{} ms",
        version.version.as_str(),
        evidence.requests,
        rate,
        evidence.errors,
        millis(evidence.p50),
        millis(evidence.p99)
    )
}
