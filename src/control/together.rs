//! Facts of many services that come into force together: at a start, at a reload, one transaction instead of one for each.
//!
//! The order is that of `engine`: what lowers a canary's exposure acts at once and is stored after, service by service; all the
//! rest is stored first, all of it or nothing, and acts then.

use super::{
    Refusal,
    engine::{By, Engine, Step},
    ledger::Fact,
    store::Appended,
};
use crate::model::ServiceName;

/// Services whose facts share a transaction at the most: it must be over well before the engine gives the disk up.
const TOGETHER: usize = 1000;

impl Engine {
    /// [`Engine::record`] for services, each named once. Answers for each, in their order.
    pub(super) fn record_all(
        &mut self,
        asked: Vec<(ServiceName, Vec<Fact>)>,
        by: &By,
    ) -> Vec<Result<(), Refusal>> {
        self.settle_raises();
        let mut results: Vec<Result<(), Refusal>> = Vec::with_capacity(asked.len());
        let mut first: Vec<(usize, ServiceName, Step)> = Vec::new();
        for (index, (name, facts)) in asked.into_iter().enumerate() {
            let result = match self.prepare(&name, facts, by) {
                Ok(Some(step)) if step.acts_first || self.has_unsaved(&name) => {
                    self.bring_about(&name, step, None).map(drop)
                }
                Ok(Some(step)) => {
                    first.push((index, name, step));
                    Ok(())
                }
                Ok(None) => Ok(()),
                Err(refusal) => Err(refusal),
            };
            results.push(result);
        }
        while !first.is_empty() {
            let rest = first.split_off(first.len().min(TOGETHER));
            self.store_and_act(std::mem::replace(&mut first, rest), &mut results);
        }
        results
    }

    fn store_and_act(&mut self, steps: Vec<(usize, ServiceName, Step)>, results: &mut [Result<(), Refusal>]) {
        let appended: Vec<Appended> = steps
            .iter()
            .map(|(_, service, step)| Appended {
                service: service.clone(),
                rows: step.rows.clone(),
                saved: step.next.clone(),
            })
            .collect();
        match self.append_all(&appended) {
            Ok(ids) => {
                for ((_, name, step), ids) in steps.into_iter().zip(ids) {
                    self.commit(&name, step.next, step.at);
                    self.tell(&name, &step.rows, &ids, step.was_aborted);
                }
            }
            Err(refusal) => {
                for (index, _, _) in steps {
                    results[index] = Err(refusal.clone());
                }
            }
        }
    }
}
