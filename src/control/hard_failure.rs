//! Every endpoint of the canary failed at once: the proxy has already sent everything to stable; here it is confirmed,
//! and the rollout told.
//!
//! Is it the canary? When stable fails alike within ten seconds it is not: then nobody is to blame, the weight stays at
//! zero and the rollout waits for a human.

use super::{engine::Engine, managed::Fate};
use crate::{
    analysis::OnError,
    config::HardFailureAction,
    model::{ServiceName, Timestamp},
    rollout::{AbortCause, Event, Hold, Stage},
    upstream::TripReport,
};
use serde_json::json;
use std::time::Duration;
use tracing::warn;

/// How long stable is watched after the canary has failed.
const ALIKE: Duration = Duration::from_secs(10);

impl Engine {
    /// A worker has tripped a service.
    pub(super) fn tripped(&mut self, report: &TripReport) {
        let name = &report.service;
        let known = self.facts(name);
        if known.is_none() {
            if let Some(live) = self.services.get(name.as_str()) {
                live.cell.confirm_trip();
            }
            return;
        }
        warn!(
            service = %name,
            version = %report.version,
            generation = report.generation,
            reason = %report.reason,
            "`{name}`: every endpoint of the canary {} failed: {}",
            report.version,
            report.reason
        );
        // A step that was stored already may have come into force before it: then it is looked at again as things stand now.
        if !self.heed_trip(report) && self.facts(name) != known {
            self.heed_trip(report);
        }
    }

    /// Whether there is no more to do about a trip.
    fn heed_trip(&mut self, report: &TripReport) -> bool {
        let (name, now) = (&report.service, self.now());
        let Some(managed) = self.managed.get_mut(name) else {
            return true;
        };
        let is_canary = managed.saved.state.canary() == Some(&report.version);
        // Seen under an earlier weight or in an earlier attempt: it counts if it still holds.
        let holds = report.generation == managed.live.cell.load_full().generation
            || managed
                .pool(&report.version)
                .is_down(managed.live.hard_failure_attempts());
        if !is_canary || !holds {
            managed.live.cell.confirm_trip();
            return true;
        }
        let message = format!("every endpoint of {} failed: {}", report.version, report.reason);
        let numbers = json!({
            "trip": {"version": report.version, "generation": report.generation, "reason": report.reason},
            "before": managed.numbers(),
        });
        if managed.stable_is_down() {
            let message = format!("{message}; stable fails alike");
            return self.happened(name, Event::SharedFate { message }, Some(numbers));
        }
        let action = match managed.config.hard_failure.action {
            HardFailureAction::Abort => OnError::Abort,
            HardFailureAction::Pause => OnError::Pause,
        };
        let fate = Fate {
            until: now.plus(ALIKE),
            reason: message.clone(),
        };
        let told = self.happened(name, Event::HardFailure { action, message }, Some(numbers));
        if told && let Some(managed) = self.managed.get_mut(name) {
            managed.fate = Some(fate);
        }
        told
    }

    /// Whether stable fails as the canary did a moment ago.
    pub(super) fn watch_fate(&mut self, name: &ServiceName, now: Timestamp) {
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        let Some(fate) = &managed.fate else { return };
        if fate.until < now {
            managed.fate = None;
            return;
        }
        if !managed.stable_is_down() {
            return;
        }
        let message = format!("{}; stable fails alike", fate.reason);
        // An abort for this reason is taken back: it waits at zero for a human instead.
        let applies = match &managed.saved.state.stage {
            Stage::Aborted(aborted) => aborted.cause == AbortCause::HardFailure,
            Stage::Rolling(rolling) => rolling.holds.iter().any(|hold| match hold {
                Hold::HardFailure { .. } => true,
                Hold::Manual
                | Hold::Background { .. }
                | Hold::SharedFate { .. }
                | Hold::ClientErrors { .. }
                | Hold::Alarm { .. } => false,
            }),
            Stage::Empty | Stage::Healthy => false,
        };
        managed.fate = None;
        if applies {
            self.happened(name, Event::SharedFate { message }, None);
        }
    }
}

impl super::managed::Managed {
    /// Whether every endpoint of stable fails as well.
    fn stable_is_down(&self) -> bool {
        let split = self.live.cell.load_full();
        split.stable.version.is_down(self.live.hard_failure_attempts())
    }
}
