//! Judges of one name in one plan: they are one judge, so they must be alike.
//!
//! A judge belongs to a metric's name and a rollout, whatever steps refer to it: that is what its risk holds for. Of two with other
//! parameters the later would put the former out of its seat, and neither would gather evidence.

use super::strategy::built_in_gate;
use crate::analysis::{JudgeConfig, Provider, Template};
use crate::rollout::{AnalysisRef, Canary};
use std::collections::BTreeMap;

/// A judge that is called like another one and is not like it.
#[derive(Debug)]
pub(super) struct Unlike {
    /// The place of the step that names it; none: the background analysis does.
    pub(super) step: Option<usize>,
    /// Which two.
    pub(super) what: String,
    /// How to mend it.
    pub(super) hint: &'static str,
}

/// Every judge of a plan that is called like an earlier one with other parameters; the background analysis comes first.
/// Templates that nobody knows are somebody else's to report.
pub(super) fn unlike<'a>(canary: &Canary, known: impl Fn(&str) -> Option<&'a Template>) -> Vec<Unlike> {
    let built_in = built_in_gate();
    let mut seen: BTreeMap<&str, (&JudgeConfig, String)> = BTreeMap::new();
    let mut found = Vec::new();
    for (step, analysis) in analyses(canary) {
        for reference in &analysis.templates {
            let name = reference.template_name.as_str();
            let built_in = (name == built_in.name).then_some(&built_in);
            for metric in built_in
                .or_else(|| known(name))
                .map_or(&[][..], |template| &template.metrics)
            {
                let Provider::Judge(judge) = &metric.provider else {
                    continue;
                };
                let place = step.map_or("beside the steps".to_owned(), |step| format!("steps[{step}]"));
                let (first, where_first) = seen
                    .entry(&metric.name)
                    .or_insert_with(|| (judge, format!("`{name}` ({place})")));
                if *first != judge {
                    let metric = &metric.name;
                    found.push(Unlike {
                        step,
                        what: format!(
                            "the metric `{metric}` is one judge in the template {where_first} and another one in the template \
                             `{name}`, and a rollout has one judge of a name"
                        ),
                        hint: "give both the same parameters, or rename one metric",
                    });
                }
            }
        }
    }
    found
}

fn analyses(canary: &Canary) -> impl Iterator<Item = (Option<usize>, &AnalysisRef)> {
    let beside = canary
        .background
        .iter()
        .map(|background| (None, &background.analysis));
    let steps = canary
        .steps
        .iter()
        .enumerate()
        .filter_map(|(index, step)| Some((Some(index), step.analysis()?)));
    beside.chain(steps)
}
