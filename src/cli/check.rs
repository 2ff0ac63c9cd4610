//! `serin check FILE`: is this configuration right, what is doubtful in it, and how long would a rollout take?

use super::Out;
use crate::analysis::{MetricSpec, Provider, Template};
use crate::app::Descriptors;
use crate::config::{self, Config, Loaded, Problem, Service};
use crate::model::{Span, Weight};
use crate::rollout::{AnalysisRef, Plan, Step, Strategy, UntilEvidence};
use std::{
    io::{self, Write},
    path::Path,
    time::Duration,
};

/// Right, perhaps with warnings.
const RIGHT: i32 = 0;
/// Faults, or nobody to tell them to.
const WRONG: i32 = 2;

/// Checks a file and says everything about it; the exit code. What is wrong or doubtful goes where errors go, as pipelines
/// expect of a checker; standard output has what the file comes to.
pub fn run(path: &Path, out: &mut Out) -> i32 {
    let loaded = config::load(path).and_then(|loaded| {
        let unreadable = loaded.config.unreadable_certificates();
        if unreadable.is_empty() {
            Ok(loaded)
        } else {
            Err(unreadable)
        }
    });
    match report(path, &loaded, out) {
        Ok(code) => code,
        Err(_) => WRONG,
    }
}

fn report(path: &Path, loaded: &Result<Loaded, Vec<Problem>>, out: &mut Out) -> io::Result<i32> {
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(problems) => {
            for problem in problems {
                out.note(format!("error: {problem}"));
            }
            let s = if problems.len() == 1 { "" } else { "s" };
            out.note(format!("\n{}: {} error{s}", path.display(), problems.len()));
            return Ok(WRONG);
        }
    };
    let config = &loaded.config;
    for problem in loaded.warnings.iter().chain(config.not_yet()) {
        out.note(format!("warning: {problem}"));
    }
    for service in &config.services {
        describe(service, out)?;
    }
    clients(config, out)?;
    let s = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    let warnings = loaded.warnings.len() + config.not_yet().len();
    writeln!(
        out,
        "{}: ok ({}, {}, {})",
        path.display(),
        s(config.services.len(), "service"),
        s(config.templates.len().saturating_sub(1), "template"),
        s(warnings, "warning")
    )?;
    Ok(RIGHT)
}

/// How many clients each listener may have, where this runs.
fn clients(config: &Config, out: &mut Out) -> io::Result<()> {
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let divided = match Descriptors::estimate(config, workers) {
        Ok(divided) => divided,
        Err(too_few) => {
            out.note(format!("warning: {too_few}"));
            return Ok(());
        }
    };
    let most = divided.clients(config);
    for listener in &config.listeners {
        let mut place = listener.name.clone();
        if place != listener.address.to_string() {
            place = format!("{place} at {}", listener.address);
        }
        let limit = listener.limits.connections.map(u64::from);
        let beyond = limit
            .filter(|limit| *limit > most)
            .map(|limit| format!(", not limits.connections {limit}"));
        writeln!(
            out,
            "listener {place}: up to {} client connections{} where {} files may be open, as here",
            limit.map_or(most, |limit| limit.min(most)),
            beyond.unwrap_or_default(),
            divided.limit
        )?;
    }
    writeln!(out)
}

fn describe(service: &Service, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", service.name)?;
    for (role, block) in [("stable", &service.stable), ("canary", &service.canary)] {
        if let Some(block) = block {
            let endpoints: Vec<String> = block.endpoints.iter().map(ToString::to_string).collect();
            writeln!(out, "  {role} {} at {}", block.version, endpoints.join(", "))?;
        }
    }
    for line in timeline(&service.plan, &service.templates) {
        writeln!(out, "  {line}")?;
    }
    writeln!(out)
}

/// When each step of a plan begins, if every analysis passes; one line each.
pub fn timeline(plan: &Plan, templates: &[std::sync::Arc<Template>]) -> Vec<String> {
    let steps = match &plan.strategy {
        Strategy::Canary(canary) => &canary.steps,
        Strategy::Immediate => {
            return vec!["immediate: all traffic as soon as the endpoints are ready".to_owned()];
        }
        Strategy::BlueGreen(_) => return vec!["blue-green: all traffic at once, after its gates".to_owned()],
    };
    let mut lines = Vec::new();
    let mut clock = Clock::default();
    let mut weight = Weight::ZERO;
    let background = plan.background();
    for (index, step) in steps.iter().enumerate() {
        if let Some(background) = background.filter(|background| background.starting_step == index) {
            lines.push(format!(
                "{clock}  background analysis {}",
                names(&background.analysis)
            ));
        }
        let what = match step {
            Step::SetWeight(next) => {
                weight = *next;
                format!("weight {next}")
            }
            Step::Pause(pause) => match (pause.duration, pause.until_evidence) {
                (Some(duration), _) => format!("pause {duration}"),
                (None, Some(UntilEvidence { max: Some(max) })) => {
                    format!("pause until the evidence suffices; after {max} somebody must decide")
                }
                (None, Some(UntilEvidence { max: None })) => "pause until the evidence suffices".to_owned(),
                (None, None) => "pause until somebody promotes".to_owned(),
            },
            Step::Analysis(analysis) => {
                format!(
                    "analysis {}{}",
                    names(analysis),
                    needs(analysis, templates, weight)
                )
            }
            Step::Experiment(experiment) => format!("experiment {}", names(&experiment.analysis)),
            Step::SetHeaderRoute(route) => format!("header route {}", route.name),
            Step::SetMirrorRoute(route) => format!("mirror route {}", route.name),
            Step::Skipped(name) => format!("{name} (passed at once)"),
        };
        lines.push(format!("{clock}  step {index}: {what}"));
        match step {
            Step::Pause(pause) if pause.until_evidence.is_some() => clock.evidence(),
            Step::Pause(pause) => clock.pass(pause.duration),
            Step::Analysis(analysis) => clock.pass(Some(length(analysis, templates))),
            Step::Experiment(experiment) => {
                clock.pass(Some(
                    experiment
                        .duration
                        .unwrap_or_else(|| length(&experiment.analysis, templates)),
                ));
            }
            Step::SetWeight(_) | Step::SetHeaderRoute(_) | Step::SetMirrorRoute(_) | Step::Skipped(_) => {}
        }
    }
    lines.push(format!("{clock}  promoted"));
    lines
}

fn names(analysis: &AnalysisRef) -> String {
    let names: Vec<&str> = analysis
        .templates
        .iter()
        .map(|template| template.template_name.as_str())
        .collect();
    names.join(" + ")
}

fn metrics<'a>(
    analysis: &'a AnalysisRef,
    templates: &'a [std::sync::Arc<Template>],
) -> impl Iterator<Item = &'a MetricSpec> {
    let named = analysis.templates.iter().filter_map(|reference| {
        templates
            .iter()
            .find(|template| template.name == reference.template_name)
    });
    named.flat_map(|template| &template.metrics)
}

/// How long an analysis takes when everything passes: the longest of its metrics.
fn length(analysis: &AnalysisRef, templates: &[std::sync::Arc<Template>]) -> Span {
    let one = |metric: &MetricSpec| {
        let delay = metric.initial_delay.map_or(Duration::ZERO, Span::as_duration);
        let interval = metric.interval.map_or(Duration::ZERO, Span::as_duration);
        // The provider serin looks back over the interval: its first measurement waits for one.
        let first = u32::from(!matches!(
            metric.provider,
            Provider::Serin(_) | Provider::Judge(_)
        ));
        let measured = match metric.duration {
            Some(duration) => duration.as_duration(),
            None => interval.saturating_mul(metric.effective_count().unwrap_or(1).saturating_sub(first)),
        };
        delay.saturating_add(measured)
    };
    metrics(analysis, templates)
        .map(one)
        .max()
        .unwrap_or_default()
        .into()
}

/// How many requests the provider serin waits for at a weight.
fn needs(analysis: &AnalysisRef, templates: &[std::sync::Arc<Template>], weight: Weight) -> String {
    let samples = |metric: &MetricSpec| match &metric.provider {
        Provider::Serin(query) => Some(query.min_samples),
        Provider::Prometheus(_) | Provider::Web(_) | Provider::Judge(_) => None,
    };
    match metrics(analysis, templates).filter_map(samples).max() {
        Some(samples) if samples > 0 && !weight.is_zero() => {
            let all = u128::from(samples) * u128::from(weight.q()) / u128::from(weight.p());
            format!(" (each measurement needs {samples} canary requests: about {all} in all at {weight})")
        }
        Some(_) | None => String::new(),
    }
}

/// Time since the deploy, or since somebody promoted.
#[derive(Default)]
struct Clock {
    passed: Duration,
    promotions: u32,
    /// Waits for evidence: how long they take depends on the traffic.
    evidence: u32,
}

impl Clock {
    fn pass(&mut self, span: Option<Span>) {
        if let Some(span) = span {
            self.passed = self.passed.saturating_add(span.as_duration());
        } else {
            self.promotions += 1;
            (self.passed, self.evidence) = (Duration::ZERO, 0);
        }
    }

    fn evidence(&mut self) {
        self.evidence += 1;
    }
}

impl std::fmt::Display for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let passed = Span::from(self.passed).to_string();
        let after = match self.evidence {
            0 => format!("+{passed}"),
            _ => format!("evidence +{passed}"),
        };
        let since = match self.promotions {
            0 => after,
            1 => format!("promote {after}"),
            n => format!("promote {n} {after}"),
        };
        write!(f, "{since:>14}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, rc::Rc};

    /// What a test reads of what was written.
    #[derive(Clone, Default)]
    struct Page(Rc<RefCell<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The exit code, what the file comes to, and what is wrong with it.
    fn check_at(path: &Path) -> (i32, String, String) {
        let (shown, said) = (Page::default(), Page::default());
        let code = run(
            path,
            &mut Out::to(Box::new(shown.clone()), Box::new(said.clone())),
        );
        let text = |page: Page| String::from_utf8(page.0.take()).unwrap();
        (code, text(shown), text(said))
    }

    fn check(text: &str) -> (i32, String, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serin.yaml");
        std::fs::write(&path, text).unwrap();
        let (code, shown, said) = check_at(&path);
        let plain = |text: String| text.replace(&folder.path().display().to_string(), "");
        (code, plain(shown), plain(said))
    }

    const GOOD: &str = "listeners: [{address: '127.0.0.1:8080'}]
services:
- name: app
  stable: {version: v1, endpoints: ['http://127.0.0.1:9001']}
  strategy:
    canary:
      analysis: {templates: [{templateName: slow}], startingStep: 1}
      steps:
      - setWeight: 5
      - pause: {duration: 5m}
      - analysis: {templates: [{templateName: slow}]}
      - pause: {}
      - setWeight: 50
      - pause: {duration: 90s}
analysisTemplates:
- name: slow
  metrics:
  - {name: p99, interval: 1m, count: 5, successCondition: result < 0.5, provider: {serin: {metric: latency}}}
";

    #[test]
    fn a_good_file_shows_its_timeline_and_exits_0() {
        let (code, shown, said) = check(GOOD);
        assert_eq!((code, said.as_str()), (0, ""), "{shown}");
        let expected = "app
  stable v1 at http://127.0.0.1:9001
             +0s  step 0: weight 5%
             +0s  background analysis slow
             +0s  step 1: pause 5m
             +5m  step 2: analysis slow (each measurement needs 20 canary requests: about 400 in all at 5%)
            +10m  step 3: pause until somebody promotes
     promote +0s  step 4: weight 50%
     promote +0s  step 5: pause 1m30s
  promote +1m30s  promoted

/serin.yaml: ok (1 service, 1 template, 0 warnings)
";
        let (before, after) = expected.split_once("/serin.yaml").unwrap();
        // How many clients depends on the machine.
        let rest = shown.strip_prefix(before).unwrap_or_else(|| panic!("{shown}"));
        let (clients, end) = rest.split_once("\n\n").unwrap();
        assert!(
            clients.starts_with("listener 127.0.0.1:8080: up to ")
                && clients.contains(" client connections where ")
        );
        assert_eq!(end, format!("/serin.yaml{after}"));
    }

    #[test]
    fn faults_have_their_places_and_exit_2() {
        let (code, shown, said) = check(
            &GOOD
                .replace("setWeight: 50", "setWieght: 50")
                .replace("name: app", "name: APP"),
        );
        assert_eq!((code, shown.as_str()), (2, ""));
        let lines: Vec<&str> = said.lines().collect();
        assert!(
            lines[0].starts_with("error: /serin.yaml:3:9: services[0].name: `APP`"),
            "{said}"
        );
        assert_eq!(*lines.last().unwrap(), "/serin.yaml: 2 errors", "{said}");
        assert!(said.contains("/serin.yaml:13:9: services[0].strategy.canary.steps[4].setWieght: unknown key; did you mean `setWeight`?"));
    }

    #[test]
    fn warnings_do_not_fail_a_check() {
        let (code, shown, said) = check(&GOOD.replace("setWeight: 5\n", "setWeight: 6\n"));
        assert_eq!(code, 0);
        assert!(
            said.starts_with("warning: /serin.yaml:9:9: services[0].strategy.canary.steps[0]: the first"),
            "{said}"
        );
        assert!(
            shown.ends_with("/serin.yaml: ok (1 service, 1 template, 1 warning)\n"),
            "{shown}"
        );
    }

    #[test]
    fn a_missing_file_says_what_to_do() {
        let (code, shown, said) = check_at(Path::new("/nonexistent/serin.yaml"));
        assert_eq!((code, shown.as_str()), (2, ""));
        assert!(said.contains("name an existing file"), "{said}");
    }
}
