//! Says where a service stands: saved state and the numbers of the moment, as people read them.

use super::{
    AbortStatus, AlarmStatus, AnalysisStatus, EndpointStatus, MetricStatus, Observed, PausedStatus,
    RolloutStatus, ServiceStatus, StepStatus, VersionState, VersionStatus, engine::Engine, judging::Shown,
    managed::Managed, observe::ActiveRun, samples,
};
use crate::{
    metrics::Registry,
    model::{Role, ServiceName},
    rollout::{Pause, PauseReason, Pool, Stage, State, Step, Verb},
    upstream::{Health, LiveService},
};
use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

/// A step in words.
pub(crate) fn step_text(step: &Step) -> String {
    let names = |analysis: &crate::rollout::AnalysisRef| {
        let names: Vec<&str> = analysis
            .templates
            .iter()
            .map(|one| one.template_name.as_str())
            .collect();
        names.join(", ")
    };
    match step {
        Step::SetWeight(weight) => format!("setWeight {weight}"),
        Step::Pause(Pause {
            duration: Some(duration),
            ..
        }) => format!("pause {duration}"),
        Step::Pause(pause) if pause.is_manual() => "pause until promoted".to_owned(),
        Step::Pause(_) => "pause until the evidence suffices".to_owned(),
        Step::Analysis(analysis) => format!("analysis {}", names(analysis)),
        Step::Experiment(experiment) => format!("experiment {}", names(&experiment.analysis)),
        Step::SetHeaderRoute(route) => format!("setHeaderRoute {}", route.name),
        Step::SetMirrorRoute(route) => format!("setMirrorRoute {}", route.name),
        Step::Bake(bake) => format!("bake {} with {} on stable", bake.duration, bake.share),
        Step::Skipped(what) => format!("{what} (nothing to do)"),
    }
}

/// An analysis run as it is shown.
pub(super) fn analysis(active: &ActiveRun) -> AnalysisStatus {
    let run = &active.run;
    AnalysisStatus {
        run: active.id,
        kind: active.kind,
        rollout: active.rollout.clone(),
        version: active.canary.clone(),
        phase: run.phase,
        reason: run.stopped.then(|| "stopped".to_owned()),
        message: run.message.clone().unwrap_or_default(),
        started: run.started,
        ended: run.finished,
        metrics: run
            .specs
            .iter()
            .zip(&run.metrics)
            .enumerate()
            .map(|(index, (spec, state))| MetricStatus {
                name: spec.name.clone(),
                phase: state.phase,
                message: state
                    .measurements
                    .last()
                    .and_then(|last| last.message.clone())
                    .unwrap_or_default(),
                dry_run: spec.dry_run,
                success_condition: spec.success_condition.clone(),
                failure_condition: spec.failure_condition.clone(),
                count: state.count,
                successful: state.successful,
                failed: state.failed,
                inconclusive: state.inconclusive,
                errors: state.error,
                measurements: state.measurements.clone(),
                judge: active.judged(index).cloned(),
            })
            .collect(),
    }
}

impl Engine {
    /// Tells whoever watches.
    pub(super) fn publish_status(&self, name: &ServiceName) {
        let Some(managed) = self.managed.get(name) else {
            return;
        };
        let status = self.status_of(managed);
        self.shared.publish(name, status, managed);
    }

    pub(super) fn status_of(&self, managed: &Managed) -> ServiceStatus {
        let now = self.now();
        let (state, saved) = (&managed.saved.state, &managed.saved);
        let aborted = match &state.stage {
            Stage::Aborted(aborted) => Some(AbortStatus {
                version: aborted.version.clone(),
                cause: aborted.cause,
                message: aborted.message.clone(),
                at: aborted.at,
            }),
            Stage::Empty | Stage::Healthy | Stage::Rolling(_) => None,
        };
        let mut status = ServiceStatus {
            service: managed.name.clone(),
            phase: state.phase(),
            reason: reason(managed),
            message: message(managed),
            stable: state.stable.clone(),
            canary: state.canary().cloned(),
            desired: state.desired().cloned(),
            rolled_back_from: aborted.as_ref().map(|aborted| aborted.version.clone()),
            rollout: saved.rollout.clone(),
            step: step(managed),
            set_weight: state.weight(),
            observed: Observed::default(),
            paused: saved.paused.map(|since| PausedStatus {
                since,
                // The machine asks to be woken just after the pause ends.
                until: state
                    .next_wakeup(&saved.plan)
                    .filter(|_| {
                        // Without endpoints it is the deadline that comes next, and no resume.
                        let ready = state.rolling().is_some_and(|rolling| rolling.pool == Pool::Ready);
                        let by_plan = [PauseReason::CanaryPauseStep, PauseReason::Bake];
                        ready
                            && state
                                .pause_reason()
                                .is_some_and(|reason| by_plan.contains(&reason))
                    })
                    .map(|until| until.minus(Duration::from_millis(1))),
                reason: state
                    .pause_reason()
                    .map(|reason| reason.as_str().to_owned())
                    .unwrap_or_default(),
            }),
            alarm: state.alarm.as_ref().map(|alarm| AlarmStatus {
                since: alarm.since,
                message: alarm.message.clone(),
            }),
            aborted,
            versions: versions(managed),
            analyses: managed
                .runs
                .values()
                .rev()
                .map(analysis)
                .chain(
                    managed
                        .ended
                        .iter()
                        .filter(|ended| is_current(ended, saved.rollout.as_ref()))
                        .cloned(),
                )
                .collect(),
            legal: legal(state, managed),
            drift: managed.drift(),
            warnings: self.warnings(managed),
            generation: saved.facts,
            updated: now,
        };
        let metrics = self.services.metrics();
        refresh(&mut status, &managed.live, metrics, &managed.judging.shown);
        status
    }

    fn warnings(&self, managed: &Managed) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(why) = self.store_trouble() {
            warnings.push(format!(
                "the state cannot be stored, Serin tries again by itself: {why}"
            ));
        }
        if let Some(alarm) = &managed.saved.state.alarm {
            warnings.push(format!(
                "the alarm rings since {}: {}",
                alarm.since, alarm.message
            ));
        }
        if managed.saved.state.stable.is_none() {
            warnings.push(
                "there is no stable version: every request is answered 503 until one is deployed".to_owned(),
            );
        }
        if self.stateless {
            warnings
                .push("stateless: nothing can be deployed until Serin runs with its state file".to_owned());
        }
        warnings
    }
}

fn is_current(ended: &AnalysisStatus, rollout: Option<&RolloutStatus>) -> bool {
    rollout.is_some_and(|rollout| rollout.id == ended.rollout)
}

fn legal(state: &State, managed: &Managed) -> Vec<Verb> {
    let mut legal = state.legal_verbs(&managed.saved.plan);
    // Out of the machine's sight: whether there is a warm version to go back to.
    let warm = managed
        .saved
        .versions
        .iter()
        .any(|version| version.state == VersionState::Warm);
    if matches!(state.stage, Stage::Healthy) && !warm {
        legal.retain(|verb| *verb != Verb::Undo);
    }
    legal
}

fn reason(managed: &Managed) -> Option<String> {
    let state = &managed.saved.state;
    match (&state.stage, state.pause_reason()) {
        (_, Some(reason)) => Some(reason.as_str().to_owned()),
        (Stage::Aborted(_), None) => Some("RolloutAborted".to_owned()),
        (Stage::Rolling(_), None) if managed.waiting_version().is_some() => {
            Some("WaitingForEndpoints".to_owned())
        }
        (Stage::Rolling(rolling), None) if rolling.waits_for_evidence() || rolling.waits_for_a_decision() => {
            Some(WAITING_FOR_EVIDENCE.to_owned())
        }
        (Stage::Empty | Stage::Healthy | Stage::Rolling(_), None) => None,
    }
}

/// The reason of a rollout that goes on as soon as the evidence suffices.
const WAITING_FOR_EVIDENCE: &str = "WaitingForEvidence";

fn message(managed: &Managed) -> String {
    let message = managed.saved.state.message(&managed.saved.plan);
    match (&managed.gate.last, managed.waiting_version()) {
        (Some(said), Some(_)) => format!("{message}: {said}"),
        (_, _) => message,
    }
}

fn step(managed: &Managed) -> Option<StepStatus> {
    let saved = &managed.saved;
    if matches!(saved.state.stage, Stage::Empty) || saved.plan.steps().is_empty() {
        return None;
    }
    let (index, count) = saved.state.step(&saved.plan);
    let all: Vec<String> = saved.plan.steps().iter().map(step_text).collect();
    let text = all.get(index).cloned().unwrap_or_default();
    Some(StepStatus {
        index,
        count,
        text,
        all,
    })
}

fn versions(managed: &Managed) -> Vec<VersionStatus> {
    let state = &managed.saved.state;
    let mut versions: Vec<VersionStatus> = managed
        .saved
        .versions
        .iter()
        .rev()
        .map(|version| {
            let role = if Some(&version.name) == state.stable.as_ref() {
                Some(Role::Stable)
            } else if Some(&version.name) == state.canary() {
                Some(Role::Canary)
            } else {
                None
            };
            let pool = managed.pools.get(&version.name);
            VersionStatus {
                version: version.name.clone(),
                role,
                state: version.state,
                since: version.since,
                until: version.until,
                in_flight: 0,
                endpoints: pool.map(|pool| endpoints(pool)).unwrap_or_default(),
                evidence: None,
            }
        })
        .collect();
    versions.sort_by_key(|version| match version.role {
        Some(Role::Stable) => 0,
        Some(Role::Canary) => 1,
        None => 2,
    });
    versions
}

/// The endpoints of a pool, and those whose names have no address yet.
fn endpoints(pool: &crate::upstream::Version) -> Vec<EndpointStatus> {
    let nowhere = pool.unresolved().into_iter().map(|(url, _)| EndpointStatus {
        url: url.to_string(),
        address: None,
        ready: false,
        failures: 0,
        healthy: false,
    });
    let known = pool.endpoints();
    known
        .iter()
        .map(|one| endpoint_status(one))
        .chain(nowhere)
        .collect()
}

fn endpoint_status(endpoint: &crate::upstream::Endpoint) -> EndpointStatus {
    let failures = match endpoint.health() {
        Health::Good => 0,
        Health::Failing(failures) => failures,
    };
    EndpointStatus {
        url: endpoint.url.to_string(),
        address: endpoint.url.ip().is_none().then_some(endpoint.address).flatten(),
        ready: endpoint.is_ready(),
        failures,
        healthy: endpoint.is_healthy(),
    }
}

/// Puts the numbers of the moment into a status.
pub(crate) fn refresh(
    status: &mut ServiceStatus,
    live: &Arc<LiveService>,
    metrics: &Registry,
    judged: &Shown,
) {
    say_judged(status, judged);
    let split = live.cell.load_full();
    if split.generation == 0 {
        return;
    }
    let ticket = split.ticket();
    let canary = ticket.canary_count(split.weight);
    #[allow(clippy::cast_precision_loss, reason = "a share for people")]
    let share = if ticket.number == 0 {
        0.0
    } else {
        canary as f64 / ticket.number as f64
    };
    status.observed = Observed {
        requests: ticket.number,
        canary,
        share,
        error: ticket.error(split.weight),
    };
    for version in &mut status.versions {
        version.in_flight = metrics.in_flight(&status.service, &version.version);
        let target = if split.stable.version.name == version.version {
            Some(&split.stable)
        } else {
            split
                .canary
                .as_ref()
                .filter(|canary| canary.version.name == version.version)
        };
        version.evidence = target.map(|target| samples::summary(&target.evidence.counts()));
        if let Some(target) = target {
            version.endpoints = endpoints(&target.version);
        }
    }
}

/// What the judge says that sits, or that sat last in this rollout.
pub(super) fn judged(status: &ServiceStatus) -> Option<String> {
    let metrics = status.analyses.iter().flat_map(|run| &run.metrics);
    let mut deciding = metrics.filter(|metric| !metric.dry_run);
    deciding.find_map(|metric| Some(metric.judge.as_ref()?.sentence.clone()))
}

/// What the judges say now, with their metrics; and for a rollout that waits for them, as its message.
fn say_judged(status: &mut ServiceStatus, judged: &Shown) {
    let judged = judged.lock().unwrap_or_else(PoisonError::into_inner);
    let running = status.analyses.iter_mut().filter(|run| !run.phase.is_completed());
    let mut sentence = None;
    for metric in running.flat_map(|run| &mut run.metrics) {
        let Some(report) = judged.get(&metric.name).filter(|_| !metric.phase.is_completed()) else {
            continue;
        };
        if !metric.dry_run {
            sentence.get_or_insert_with(|| report.sentence.clone());
        }
        metric.judge = Some(report.clone());
    }
    if status.reason.as_deref() == Some(WAITING_FOR_EVIDENCE)
        && let Some(sentence) = sentence
    {
        status.message = format!("waiting for evidence: {sentence}");
    }
}
