//! Steps that a deploy brings: the same words as in the file, as JSON, naming templates that are there.

use super::blind;
use super::compiled::{Config, Service};
use super::cx::Cx;
use super::decode::{Findings, Located, decode};
use super::holdback;
use super::judge_names;
use super::problem::Problem;
use super::strategy::{self, StepConfig, Templates, Uses};
use super::template::CompiledTemplate;
use super::yaml::Node;
use crate::analysis::Template;
use crate::rollout::{Canary, Plan, Step, Strategy};
use std::{path::Path, sync::Arc};

impl Config {
    /// The service's plan with other steps, and the templates it names; the background analysis and everything else stay.
    ///
    /// `steps` is the list under `steps` as JSON. Steps may name templates and never bring providers.
    pub fn plan_with_steps(
        &self,
        service: &Service,
        steps: &serde_json::Value,
    ) -> Result<(Plan, Vec<Arc<Template>>), Vec<Problem>> {
        const FILE: &str = "deploy";
        let refused = |what: String| {
            vec![Problem::of_file(
                FILE,
                what,
                "write a list such as [{\"setWeight\": 25}]",
            )]
        };
        let root = Node::from_json(steps, "steps").map_err(|what| refused(format!("steps: {what}")))?;
        let mut findings = Findings::default();
        let configs: Vec<Located<StepConfig>> = decode(&root, FILE, &mut findings).unwrap_or_default();
        let mut cx = Cx::new(FILE, Path::new("."), &root, findings.problems, findings.warnings);
        if configs.is_empty() {
            cx.error(
                "steps",
                "there is no step",
                "leave steps out for the service's own",
            );
        }
        let templates: Templates = self
            .templates
            .iter()
            .map(|(name, template)| (name.clone(), known(template)))
            .collect();
        let mut uses = Uses::default();
        let mut compiled = strategy::steps(&configs, &templates, &mut uses, &mut cx);
        holdback::apply(&mut compiled, service.plan.bake(), "steps", &mut cx);
        for name in &uses.bounded {
            let Some(template) = self.templates.get(name) else {
                continue;
            };
            for metric in template.metrics.iter().filter(|metric| !metric.is_bounded()) {
                let what = format!(
                    "the template `{name}` has a metric `{}` without an end",
                    metric.name
                );
                cx.error("steps", what, "an analysis step needs count or duration there");
            }
        }
        for (path, what) in &uses.not_yet {
            let problem = cx.not_yet(path, what);
            cx.problems.push(problem);
        }
        if !cx.problems.is_empty() {
            return Err(cx.problems);
        }
        let background = service.plan.background().cloned();
        let named = background
            .iter()
            .flat_map(|background| &background.analysis.templates);
        uses.templates
            .extend(named.map(|reference| reference.template_name.clone()));
        let mut plan = service.plan.clone();
        let mut canary = Canary {
            background: background.map(|mut background| {
                // The shorter list may end before the step that the file means, or wait for evidence before it.
                let waits = compiled.iter().position(Step::waits_for_evidence);
                let last = waits.unwrap_or(configs.len() - 1);
                background.starting_step = background.starting_step.min(last);
                background
            }),
            steps: compiled,
        };
        let is_judge = |name: &str| {
            self.templates
                .get(name)
                .is_some_and(|template| template.has_judge())
        };
        if strategy::ensure_judge(&mut canary, is_judge) {
            uses.templates.insert(strategy::BUILT_IN_GATE.to_owned());
        }
        let known = |name: &str| self.templates.get(name).map(Arc::as_ref);
        for unlike in judge_names::unlike(&canary, known) {
            let step = unlike.step.unwrap_or_default();
            cx.error(&format!("steps[{step}].analysis"), unlike.what, unlike.hint);
        }
        for blind in blind::blind(&canary, is_judge) {
            let place = blind
                .step
                .map_or("steps".to_owned(), |step| format!("steps[{step}]"));
            cx.error(&place, blind.what, blind.hint);
        }
        if !cx.problems.is_empty() {
            return Err(cx.problems);
        }
        plan.strategy = Strategy::Canary(canary);
        let named = uses
            .templates
            .iter()
            .filter_map(|name| self.templates.get(name).cloned());
        Ok((plan, named.collect()))
    }
}

fn known(template: &Template) -> CompiledTemplate {
    CompiledTemplate {
        template: template.clone(),
        path: String::new(),
        metric_paths: Vec::new(),
    }
}
