//! What a scrape shows of each service's rollout.

use super::{lines::Lines, names};
use crate::rollout::{AbortCause, PauseReason, Phase};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Where a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RolloutView {
    /// `serin_rollout_phase`
    pub phase: Phase,
    /// `serin_rollout_pause_reason`
    pub pause_reason: Option<PauseReason>,
    /// `serin_rollout_step`, from 0
    pub step: usize,
    /// `serin_service_alarm`
    pub alarm: bool,
}

/// What is shown of one service. Series are there once somebody has said something.
#[derive(Debug, Default)]
struct Shown {
    view: Option<RolloutView>,
    paused_seconds: Option<f64>,
    aborts: [u64; AbortCause::ALL.len()],
}

/// The gauges and counters of all rollouts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RolloutMetrics {
    services: Arc<Mutex<BTreeMap<String, Shown>>>,
}

impl RolloutMetrics {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Shown>> {
        // Each entry is whole between two statements.
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, service: &str, change: impl FnOnce(&mut Shown)) {
        let mut services = self.lock();
        match services.get_mut(service) {
            Some(shown) => change(shown),
            None => change(services.entry(service.to_owned()).or_default()),
        }
    }

    /// Shows where a rollout stands.
    pub fn show(&self, service: &str, view: RolloutView) {
        self.change(service, |shown| shown.view = Some(view));
    }

    /// Shows for how many seconds it has been paused: `serin_rollout_paused_seconds`.
    pub fn show_paused(&self, service: &str, seconds: f64) {
        self.change(service, |shown| shown.paused_seconds = Some(seconds));
    }

    /// Counts an abort: `serin_rollout_aborts_total`.
    pub fn count_abort(&self, service: &str, cause: AbortCause) {
        self.change(service, |shown| {
            for (of, count) in AbortCause::ALL.iter().zip(&mut shown.aborts) {
                *count += u64::from(*of == cause);
            }
        });
    }

    /// What was last shown of a service.
    pub fn view(&self, service: &str) -> Option<RolloutView> {
        self.lock().get(service).and_then(|shown| shown.view)
    }

    /// A service is served no more: its series go.
    pub(super) fn forget(&self, service: &str) {
        self.lock().remove(service);
    }

    /// The lines of all services.
    pub(super) fn read(&self) -> [Lines; 6] {
        let mut phases = Lines::of(&names::PHASE);
        let mut reasons = Lines::of(&names::PAUSE_REASON);
        let mut steps = Lines::of(&names::STEP);
        let mut alarms = Lines::of(&names::ALARM);
        let mut paused = Lines::of(&names::PAUSED_SECONDS);
        let mut aborts = Lines::of(&names::ABORTS);
        for (service, shown) in self.lock().iter() {
            let service = service.as_str();
            if let Some(view) = shown.view {
                for phase in Phase::ALL {
                    phases.count(&[service, phase.as_str()], u64::from(phase == view.phase));
                }
                for reason in PauseReason::ALL {
                    let is = view.pause_reason == Some(reason);
                    reasons.count(&[service, reason.label()], u64::from(is));
                }
                steps.count(&[service], u64::try_from(view.step).unwrap_or(u64::MAX));
                alarms.count(&[service], u64::from(view.alarm));
            }
            if let Some(seconds) = shown.paused_seconds {
                paused.row(&[service], seconds);
            }
            for (cause, count) in AbortCause::ALL.iter().zip(shown.aborts) {
                aborts.count(&[service, cause.as_str()], count);
            }
        }
        [phases, reasons, steps, alarms, paused, aborts]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &RolloutMetrics) -> String {
        let mut text = super::super::text::Text::default();
        for lines in metrics.read() {
            text.lines(&lines);
        }
        text.finish()
    }

    const VIEW: RolloutView = RolloutView {
        phase: Phase::Paused,
        pause_reason: Some(PauseReason::Manual),
        step: 3,
        alarm: true,
    };

    #[test]
    fn every_phase_reason_and_cause_is_there_and_one_of_them_is_1() {
        let metrics = RolloutMetrics::default();
        metrics.show("shop", VIEW);
        metrics.count_abort("shop", AbortCause::HardFailure);
        let text = text(&metrics);
        let samples = |family: &str| {
            let of = |line: &&str| line.starts_with(family);
            text.lines().filter(of).map(str::to_owned).collect::<Vec<_>>()
        };
        let phases = samples("serin_rollout_phase{");
        assert_eq!(phases.len(), Phase::ALL.len());
        assert!(phases.contains(&r#"serin_rollout_phase{serin_service="shop",phase="Paused"} 1"#.to_owned()));
        assert_eq!(
            phases.iter().filter(|line| line.ends_with(" 0")).count(),
            Phase::ALL.len() - 1
        );
        let reasons = samples("serin_rollout_pause_reason{");
        assert_eq!(
            reasons.iter().filter(|line| line.ends_with(" 1")).count(),
            1,
            "{reasons:?}"
        );
        let aborts = samples("serin_rollout_aborts_total{");
        assert_eq!(aborts.len(), AbortCause::ALL.len());
        assert!(aborts.contains(
            &r#"serin_rollout_aborts_total{serin_service="shop",cause="hard_failure"} 1"#.to_owned()
        ));
        assert_eq!(
            samples("serin_rollout_step{"),
            [r#"serin_rollout_step{serin_service="shop"} 3"#]
        );
        assert_eq!(
            samples("serin_service_alarm{"),
            [r#"serin_service_alarm{serin_service="shop"} 1"#]
        );
        assert!(
            samples("serin_rollout_paused_seconds{").is_empty(),
            "nobody has said how long"
        );
    }

    #[test]
    fn a_forgotten_service_leaves_nothing_and_the_others_stay() {
        let metrics = RolloutMetrics::default();
        metrics.show("shop", VIEW);
        metrics.show("shop-2", VIEW);
        metrics.show_paused("shop", 1.5);
        metrics.forget("shop");
        let text = text(&metrics);
        assert!(
            !text.contains(r#""shop""#) && text.contains(r#""shop-2""#),
            "{text}"
        );
        assert_eq!((metrics.view("shop"), metrics.view("shop-2")), (None, Some(VIEW)));
    }
}
