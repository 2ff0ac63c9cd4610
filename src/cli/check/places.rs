//! Where a plan decides: which metrics, at which weights, and how often.

use super::timeline::metrics;
use crate::{analysis::MetricSpec, config::Service, model::Weight};

/// A gate, and the weights at which it decides.
pub(super) struct Gate<'a> {
    pub(super) metric: &'a MetricSpec,
    /// Each with the one after it.
    pub(super) weights: Vec<(Weight, Weight)>,
    /// The weights at which an analysis with it begins: a step each, and the one beside the steps once.
    pub(super) asked: Vec<Weight>,
}

/// Every metric of a plan that decides at some weight where both versions serve.
pub(super) fn gates(service: &Service) -> Vec<Gate<'_>> {
    let plan = &service.plan;
    let mut gates = Vec::new();
    let mut beside_goes_on = false;
    for (index, step, weight) in plan.weighed_steps() {
        if weight.is_zero() || weight.is_full() {
            continue;
        }
        let analysis = step.analysis();
        let beside = plan
            .background()
            .filter(|background| background.starting_step <= index);
        let at = (weight, plan.next_weight(index, weight));
        let begins = !std::mem::replace(&mut beside_goes_on, beside.is_some());
        let beside = beside.map(|background| (&background.analysis, begins));
        for (analysis, begins) in beside
            .into_iter()
            .chain(analysis.map(|analysis| (analysis, true)))
        {
            for metric in metrics(analysis, &service.templates) {
                let gate = decides(&mut gates, metric, at);
                gate.asked.extend(begins.then_some(weight));
            }
        }
    }
    gates
}

fn decides<'a, 'b>(
    gates: &'b mut Vec<Gate<'a>>,
    metric: &'a MetricSpec,
    at: (Weight, Weight),
) -> &'b mut Gate<'a> {
    let known = gates.iter().position(|gate| std::ptr::eq(gate.metric, metric));
    let place = known.unwrap_or(gates.len());
    if known.is_none() {
        gates.push(Gate {
            metric,
            weights: Vec::new(),
            asked: Vec::new(),
        });
    }
    let gate = &mut gates[place];
    if !gate.weights.contains(&at) {
        gate.weights.push(at);
    }
    gate
}
