//! Judges that would never see both versions: a plan that waits for one has no end.
//!
//! A judge compares what both versions do at the same time. Before the canary's first share there is nothing to compare, and at
//! 100 % nothing is left to compare with.

use super::strategy::BUILT_IN_GATE;
use crate::model::Weight;
use crate::rollout::{AnalysisRef, Canary, Step};

/// A judge that is asked where it sees nothing.
#[derive(Debug)]
pub(super) struct Blind {
    /// The place of the step that waits for it; none: the background analysis does.
    pub(super) step: Option<usize>,
    /// What is asked.
    pub(super) what: String,
    /// How to mend it.
    pub(super) hint: &'static str,
}

/// With a `max` somebody is asked in the end.
fn waits_without_end(step: &Step) -> bool {
    let Step::Pause(pause) = step else { return false };
    pause
        .until_evidence
        .as_ref()
        .is_some_and(|until| until.max.is_none())
}

/// Every step that waits for a judge at 0 or 100 %, and the background judge of a plan that goes to (nearly) everything before any
/// share at which there is something to compare. `is_judge`: whether a template of this name has a judge with a say.
pub(super) fn blind(canary: &Canary, is_judge: impl Fn(&str) -> bool) -> Vec<Blind> {
    let asks = |analysis: &AnalysisRef| {
        let mut names = analysis
            .templates
            .iter()
            .map(|reference| reference.template_name.as_str());
        names.any(|name| name == BUILT_IN_GATE || is_judge(name))
    };
    let serves_both = |weight: Weight| !(weight.is_zero() || weight.is_full());
    let mut found = Vec::new();
    let (mut weight, mut compared, mut raised) = (Weight::ZERO, false, false);
    for (index, step) in canary.steps.iter().enumerate() {
        let to = step.weight().unwrap_or(weight);
        // Both wait for the background judge before they begin.
        raised |= !compared && (to.is_full() || matches!(step, Step::Bake(_)));
        weight = to;
        compared |= serves_both(weight);
        let waits = waits_without_end(step) || step.analysis().is_some_and(asks);
        if waits && !serves_both(weight) {
            found.push(Blind {
                step: Some(index),
                what: format!(
                    "a judge compares both versions, and at {weight} only one of them serves: this would wait for ever"
                ),
                hint: if weight.is_zero() {
                    "put a setWeight before it"
                } else {
                    "put it before setWeight: 100, or write holdback, which keeps a small share on stable"
                },
            });
        }
    }
    let beside = canary.background.as_ref();
    if found.is_empty()
        && (raised || !compared)
        && beside.is_some_and(|background| asks(&background.analysis))
    {
        found.push(Blind {
            step: None,
            what: "a judge compares both versions, and no step before everything goes to the canary lets both serve: the rollout \
                   would wait for ever"
                .to_owned(),
            hint: "begin with a step such as setWeight: 5",
        });
    }
    found
}
