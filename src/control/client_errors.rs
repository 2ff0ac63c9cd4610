//! A judge has found that the canary answers 4xx more often than stable, or more seldom: the rollout waits for a person.
//!
//! Its judges go on meanwhile: a canary that fails is pulled back out of this pause as well. That a person was called is the
//! rollout's knowledge, once in an attempt; what for, the judge's.

use super::{engine::Engine, managed::Managed, report};
use crate::{
    analysis::Advice,
    model::{ServiceName, Timestamp},
    rollout::{Event, RunId},
};
use serde_json::json;

/// Who calls, and why.
#[derive(Debug)]
struct Call {
    run: RunId,
    message: String,
}

impl Engine {
    /// Pauses a rollout whose judge calls for a person.
    pub(super) fn heed_client_errors(&mut self, name: &ServiceName, now: Timestamp) {
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        let Some(Call { run, message }) = managed.call_for_client_errors(now) else {
            return;
        };
        let analysis = managed.runs.get(&run.0).map(report::analysis);
        let numbers = json!({"analysis": analysis, "evidence": managed.numbers()});
        let event = Event::ClientErrors { run, message };
        if self.happened(name, event, Some(numbers)) {
            self.save_judges_soon();
        }
    }
}

impl Managed {
    /// The first judge with a say that calls for a person, when nobody has been called and none rolls back anyway.
    fn call_for_client_errors(&mut self, now: Timestamp) -> Option<Call> {
        let rolling = self.saved.state.rolling()?;
        if rolling.client_errors_told || self.quiet_until > now {
            return None;
        }
        let mut caller = None;
        for active in self.runs.values() {
            for (index, metric, _) in active.judges() {
                let Some((judge, _)) = self.judging.seat(metric) else {
                    continue;
                };
                if active.run.specs[index].dry_run {
                    continue;
                }
                if judge.advice() == Advice::Rollback {
                    return None;
                }
                if caller.is_none() && judge.pauses() {
                    caller = Some((active.id, index, metric.to_owned()));
                }
            }
        }
        let (run, index, metric) = caller?;
        let (judge, recorder) = self.judging.seat(&metric)?;
        let report = judge.report();
        let message = report.client_errors.as_ref()?.sentence.clone();
        recorder.paused(judge, now);
        if let Some(active) = self.runs.get_mut(&run.0) {
            active.show_judge(index, report);
        }
        Some(Call { run, message })
    }
}
