//! When each step of a plan begins.

use crate::analysis::{MetricSpec, Provider, Template};
use crate::model::{Span, Weight};
use crate::rollout::{AnalysisRef, Plan, Step, Strategy, UntilEvidence};
use std::{sync::Arc, time::Duration};

/// When each step of a plan begins, if every analysis passes; one line each.
pub(super) fn timeline(plan: &Plan, templates: &[Arc<Template>]) -> Vec<String> {
    match &plan.strategy {
        Strategy::Canary(_) => {}
        Strategy::Immediate => {
            return vec!["immediate: all traffic as soon as the endpoints are ready".to_owned()];
        }
        Strategy::BlueGreen(_) => return vec!["blue-green: all traffic at once, after its gates".to_owned()],
    }
    let mut lines = Vec::new();
    let mut clock = Clock::default();
    let background = plan.background();
    let judges =
        |analysis: &AnalysisRef| metrics(analysis, templates).any(|one| one.is_judge() && !one.dry_run);
    // Nothing goes to everything before a judge beside the steps has decided something.
    let mut decided = !background.is_some_and(|background| judges(&background.analysis));
    for (index, step, weight) in plan.weighed_steps() {
        if weight.is_full() || matches!(step, Step::Bake(_)) {
            clock.decision(&mut decided);
        }
        if let Some(background) = background.filter(|background| background.starting_step == index) {
            lines.push(format!(
                "{clock}  background analysis {}",
                names(&background.analysis)
            ));
        }
        let what = match step {
            Step::SetWeight(next) => format!("weight {next}"),
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
            Step::Bake(bake) => format!(
                "weight {weight}, bake {}: {} stays on stable, a regression still rolls back",
                bake.duration, bake.share
            ),
            Step::Skipped(name) => format!("{name} (passed at once)"),
        };
        lines.push(format!("{clock}  step {index}: {what}"));
        match step {
            Step::Pause(pause) if pause.until_evidence.is_some() => {
                clock.evidence();
                decided = true;
            }
            Step::Pause(pause) => clock.pass(pause.duration),
            Step::Bake(bake) => clock.pass(Some(bake.duration)),
            Step::Analysis(analysis) => {
                if judges(analysis) {
                    clock.evidence();
                }
                clock.pass(Some(length(analysis, templates)));
            }
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
    clock.decision(&mut decided);
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

/// The metrics that an analysis is made of.
pub(super) fn metrics<'a>(
    analysis: &'a AnalysisRef,
    templates: &'a [Arc<Template>],
) -> impl Iterator<Item = &'a MetricSpec> {
    let named = analysis.templates.iter().filter_map(|reference| {
        templates
            .iter()
            .find(|template| template.name == reference.template_name)
    });
    named.flat_map(|template| &template.metrics)
}

/// How long an analysis takes when everything passes: the longest of its metrics.
fn length(analysis: &AnalysisRef, templates: &[Arc<Template>]) -> Span {
    let one = |metric: &MetricSpec| {
        let delay = metric.initial_delay.map_or(Duration::ZERO, Span::as_duration);
        if let Provider::MannWhitney(test) = &metric.provider {
            return delay.saturating_add(test.window.as_duration());
        }
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
fn needs(analysis: &AnalysisRef, templates: &[Arc<Template>], weight: Weight) -> String {
    let samples = |metric: &MetricSpec| match &metric.provider {
        Provider::Serin(query) => Some(query.min_samples),
        Provider::Prometheus(_) | Provider::Web(_) | Provider::Judge(_) | Provider::MannWhitney(_) => None,
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

    /// A wait for the first decision, unless there has been one.
    fn decision(&mut self, decided: &mut bool) {
        if !std::mem::replace(decided, true) {
            self.evidence();
        }
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
