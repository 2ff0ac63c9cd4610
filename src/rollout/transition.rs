//! The one function that moves a rollout. Total: no clock, no dice, no I/O, no panic.
//!
//! What an event means is decided here, stage by stage; what the steps do when nothing holds them is `steps`; what the
//! world must look like afterwards follows from comparing the two states (`effect`).

use super::{
    effect::{self, AnalysisKind, Effect},
    event::Event,
    plan::{Plan, Strategy},
    refused::Refused,
    state::{
        AbortCause, Aborted, At, BackgroundRun, Former, Hold, Pool, Ringing, Rolling, RunId, Stage, State,
    },
    steps::{Trial, Verdict},
};
use crate::{
    analysis::{OnError, RunPhase},
    model::{Timestamp, VersionName, Weight},
};

/// The new state, and what the world must look like because of it.
pub type Moved = (State, Vec<Effect>);

/// How many former versions are remembered for `undo`.
const FORMERS: usize = 10;
/// How many versions a rollback window can look back over.
const SEEN: usize = 100;

/// Moves a rollout by one event. `now` must not include time that does not count (see [`Event::Restarted`]).
///
/// A refused event leaves the state as it is. Facts that do not matter any more (an endpoint that comes up after an abort)
/// are not refused: they change nothing.
pub fn transition(state: &State, event: &Event, plan: &Plan, now: Timestamp) -> Result<Moved, Refused> {
    match moved(state.clone(), event, plan, now) {
        Ok(next) => {
            let effects = match event {
                Event::Restarted { .. } => effect::everything(&next, plan),
                Event::Deploy { .. }
                | Event::SetSteps
                | Event::EndpointsReady
                | Event::EndpointsLost
                | Event::Tick
                | Event::AnalysisFinished { .. }
                | Event::EvidenceGathered { .. }
                | Event::EvidenceSuffices { .. }
                | Event::ClientErrors { .. }
                | Event::Promote { .. }
                | Event::Abort { .. }
                | Event::Retry
                | Event::Undo { .. }
                | Event::Pause
                | Event::Resume
                | Event::SetWeight { .. }
                | Event::HardFailure { .. }
                | Event::SharedFate { .. }
                | Event::AlarmRaised { .. }
                | Event::AlarmCleared { .. } => effect::between(state, &next, plan, event),
            };
            Ok((next, effects))
        }
        Err(No { reason, hint }) => Err(Refused {
            event: event.name().to_owned(),
            reason,
            hint: hint.map(str::to_owned),
            legal: state.legal_verbs(plan),
        }),
    }
}

/// Why not.
#[derive(Debug)]
pub(super) struct No {
    reason: String,
    hint: Option<&'static str>,
}

pub(super) fn no<T>(reason: impl Into<String>, hint: Option<&'static str>) -> Result<T, No> {
    Err(No {
        reason: reason.into(),
        hint,
    })
}

fn moved(mut state: State, event: &Event, plan: &Plan, now: Timestamp) -> Result<State, No> {
    let was = std::mem::take(&mut state.stage);
    ring(&mut state, event, now);
    match (was, event) {
        (was, Event::Deploy { version }) => deploy(state, was, version, plan, now),
        (was, Event::Undo { to, warm }) => undo(state, &was, to.as_ref(), *warm, now),
        (Stage::Rolling(rolling), event) => trial(state, *rolling, event, plan, now),
        (Stage::Aborted(aborted), event) => after_abort(state, *aborted, event, now),
        (was @ (Stage::Empty | Stage::Healthy), event) => at_rest(state, was, event),
    }
}

/// The alarm belongs to the service and not to a trial: it rings whatever goes on.
fn ring(state: &mut State, event: &Event, now: Timestamp) {
    match event {
        Event::AlarmRaised { message } => {
            let since = state.alarm.as_ref().map_or(now, |alarm| alarm.since);
            let message = message.clone();
            state.alarm = Some(Ringing { since, message });
        }
        Event::AlarmCleared { .. } => state.alarm = None,
        Event::Deploy { .. }
        | Event::SetSteps
        | Event::EndpointsReady
        | Event::EndpointsLost
        | Event::Tick
        | Event::Restarted { .. }
        | Event::AnalysisFinished { .. }
        | Event::EvidenceGathered { .. }
        | Event::EvidenceSuffices { .. }
        | Event::ClientErrors { .. }
        | Event::Promote { .. }
        | Event::Abort { .. }
        | Event::Retry
        | Event::Undo { .. }
        | Event::Pause
        | Event::Resume
        | Event::SetWeight { .. }
        | Event::HardFailure { .. }
        | Event::SharedFate { .. } => {}
    }
}

/// What holds a trial from its beginning.
fn at_first(state: &State) -> Vec<Hold> {
    let alarm = state.alarm.iter();
    alarm
        .map(|alarm| Hold::Alarm {
            message: alarm.message.clone(),
        })
        .collect()
}

/// What events mean while no version is on trial.
fn at_rest(mut state: State, was: Stage, event: &Event) -> Result<State, No> {
    state.stage = was;
    match event {
        Event::SetSteps
        | Event::EndpointsReady
        | Event::EndpointsLost
        | Event::Tick
        | Event::Restarted { .. }
        | Event::HardFailure { .. }
        | Event::SharedFate { .. }
        | Event::AlarmRaised { .. }
        | Event::AlarmCleared { .. } => Ok(state),
        Event::AnalysisFinished { run, .. }
        | Event::EvidenceGathered { run }
        | Event::EvidenceSuffices { run, .. }
        | Event::ClientErrors { run, .. } => stale(*run),
        Event::Deploy { .. }
        | Event::Undo { .. }
        | Event::Promote { .. }
        | Event::Abort { .. }
        | Event::Retry
        | Event::Pause
        | Event::Resume
        | Event::SetWeight { .. } => no("no version is on trial", Some("deploy")),
    }
}

/// What events mean after an abort: it is sticky until somebody says otherwise.
fn after_abort(mut state: State, aborted: Aborted, event: &Event, now: Timestamp) -> Result<State, No> {
    match event {
        Event::Retry => {
            state.stage = begin(
                aborted.version,
                aborted.attempt.saturating_add(1),
                At::Enter,
                at_first(&state),
                now,
            );
            Ok(state)
        }
        Event::Promote { full: true, .. } => {
            state.stage = begin(
                aborted.version,
                aborted.attempt.saturating_add(1),
                At::FastTrack,
                Vec::new(),
                now,
            );
            Ok(state)
        }
        // Stable fails alike: the abort is taken back, and the same attempt waits at zero for somebody.
        Event::SharedFate { message } if aborted.cause == AbortCause::HardFailure => {
            state.stage = begin(
                aborted.version,
                aborted.attempt,
                At::Enter,
                vec![Hold::SharedFate {
                    message: message.clone(),
                }],
                now,
            );
            Ok(state)
        }
        Event::SetSteps
        | Event::EndpointsReady
        | Event::EndpointsLost
        | Event::Tick
        | Event::Restarted { .. }
        | Event::HardFailure { .. }
        | Event::SharedFate { .. }
        | Event::AlarmRaised { .. }
        | Event::AlarmCleared { .. } => {
            state.stage = Stage::Aborted(Box::new(aborted));
            Ok(state)
        }
        Event::AnalysisFinished { run, .. }
        | Event::EvidenceGathered { run }
        | Event::EvidenceSuffices { run, .. }
        | Event::ClientErrors { run, .. } => stale(*run),
        Event::Abort { .. } => no(format!("{} is already aborted", aborted.version), Some("retry")),
        Event::Deploy { .. }
        | Event::Undo { .. }
        | Event::Promote { full: false, .. }
        | Event::Pause
        | Event::Resume
        | Event::SetWeight { .. } => no(format!("{} was aborted", aborted.version), Some("retry")),
    }
}

/// What events mean to a version on trial.
fn trial(state: State, rolling: Rolling, event: &Event, plan: &Plan, now: Timestamp) -> Result<State, No> {
    let mut trial = Trial {
        state,
        rolling,
        plan,
        now,
    };
    match event {
        Event::Tick => {
            if trial.is_past_deadline() {
                let deadline = plan.progress_deadline.unwrap_or_default();
                let message =
                    format!("ProgressDeadlineExceeded: not enough healthy endpoints for {deadline}");
                return Ok(trial.abort(AbortCause::ProgressDeadline, message));
            }
            Ok(trial.run_on())
        }
        Event::EndpointsReady => {
            trial.endpoints_ready();
            Ok(trial.run_on())
        }
        Event::EndpointsLost => {
            if trial.rolling.pool == Pool::Ready {
                trial.rolling.pool = Pool::Waiting { since: now };
            }
            Ok(trial.stay())
        }
        Event::Restarted { downtime } => {
            trial.shift(downtime.as_duration());
            Ok(trial.stay())
        }
        Event::SetSteps => Ok(trial.start_over()),
        Event::AnalysisFinished {
            run,
            phase,
            on_error,
            message,
        } => finished(trial, *run, *phase, *on_error, message),
        Event::EvidenceGathered { run } => match &mut trial.rolling.background {
            BackgroundRun::Running { run: this, decided } if this == run => {
                *decided = true;
                Ok(trial.run_on())
            }
            BackgroundRun::Running { .. }
            | BackgroundRun::Off
            | BackgroundRun::Passed
            | BackgroundRun::Undecided => stale(*run),
        },
        Event::EvidenceSuffices { run, step, .. } => trial.evidence(*run, *step),
        Event::ClientErrors { run, message } => trial.client_errors(*run, message),
        Event::Promote { full, skip_analysis } => trial.promote(*full, *skip_analysis),
        Event::Abort { reason } => {
            let message = match reason {
                Some(reason) => format!("aborted by hand: {reason}"),
                None => "aborted by hand".to_owned(),
            };
            Ok(trial.abort(AbortCause::User, message))
        }
        Event::Pause => {
            trial.hold(Hold::Manual);
            Ok(trial.stay())
        }
        Event::Resume => trial.resume(),
        Event::SetWeight { weight } => set_weight(trial, *weight),
        Event::HardFailure { action, message } => match action {
            OnError::Abort => Ok(trial.abort(AbortCause::HardFailure, format!("HardFailure: {message}"))),
            OnError::Pause => {
                trial.hold(Hold::HardFailure {
                    message: message.clone(),
                });
                Ok(trial.stay())
            }
        },
        Event::AlarmRaised { .. } => {
            trial.heed_alarm();
            Ok(trial.stay())
        }
        Event::AlarmCleared { .. } => Ok(trial.alarm_cleared()),
        Event::SharedFate { message } => {
            trial.hold(Hold::SharedFate {
                message: message.clone(),
            });
            Ok(trial.stay())
        }
        Event::Retry => no(
            format!("{} was not aborted", trial.rolling.version),
            Some("promote"),
        ),
        Event::Deploy { .. } | Event::Undo { .. } => Ok(trial.stay()),
    }
}

fn finished(
    mut trial: Trial<'_>,
    run: RunId,
    phase: RunPhase,
    on_error: OnError,
    message: &str,
) -> Result<State, No> {
    let background =
        matches!(trial.rolling.background, BackgroundRun::Running { run: this, .. } if this == run);
    let kind = match trial.rolling.at {
        _ if background => AnalysisKind::Background,
        At::Analysis { run: this, kind, .. } if this == run => kind,
        At::Analysis { .. }
        | At::Enter
        | At::FastTrack
        | At::Pause { .. }
        | At::Bake { .. }
        | At::UntilEvidence { .. }
        | At::NoEvidence
        | At::Undecided { .. }
        | At::Evidence
        | At::BeforeSwitch
        | At::Switch { .. } => return stale(run),
    };
    let said = || format!("{} analysis phase error/failed: {message}", kind.title());
    match (phase, on_error) {
        (RunPhase::Running | RunPhase::Pending, _) => no(format!("run {run} is still {phase}"), None),
        (RunPhase::Successful, _) => {
            trial.passed(kind);
            Ok(trial.run_on())
        }
        (RunPhase::Failed, _) => Ok(trial.abort(AbortCause::AnalysisFailed, said())),
        (RunPhase::Error, OnError::Abort) => Ok(trial.abort(AbortCause::AnalysisError, said())),
        (RunPhase::Error, OnError::Pause) => {
            trial.undecided(kind, true, message.to_owned());
            Ok(trial.stay())
        }
        (RunPhase::Inconclusive, _) => {
            trial.undecided(kind, false, message.to_owned());
            Ok(trial.stay())
        }
    }
}

fn set_weight(mut trial: Trial<'_>, weight: Weight) -> Result<State, No> {
    match trial.plan.strategy {
        Strategy::BlueGreen(_) | Strategy::Immediate => {
            no("only a canary has a weight to set", Some("promote"))
        }
        Strategy::Canary(_) if trial.rolling.pool != Pool::Ready => {
            no("the canary has not enough healthy endpoints", Some("abort"))
        }
        Strategy::Canary(_) => {
            // By hand is an answer to whatever held the weight at zero.
            trial.rolling.holds.retain(|hold| match hold {
                Hold::SharedFate { .. } | Hold::HardFailure { .. } => false,
                Hold::Manual | Hold::Background { .. } | Hold::ClientErrors { .. } | Hold::Alarm { .. } => {
                    true
                }
            });
            trial.rolling.weight = weight;
            trial.hold(Hold::Manual);
            Ok(trial.stay())
        }
    }
}

pub(super) fn stale<T>(run: RunId) -> Result<T, No> {
    no(format!("analysis run {run} does not matter any more"), None)
}

/// A version is asked for.
fn deploy(
    mut state: State,
    was: Stage,
    version: &VersionName,
    plan: &Plan,
    now: Timestamp,
) -> Result<State, No> {
    if !state.seen.contains(version) {
        state.seen.push(version.clone());
        let surplus = state.seen.len().saturating_sub(SEEN);
        state.seen.drain(..surplus);
    }
    state.stage = match (&state.stable, was) {
        (None, _) => {
            state.stable = Some(version.clone());
            Stage::Healthy
        }
        (Some(stable), _) if stable == version => Stage::Healthy,
        (Some(_), Stage::Rolling(rolling)) if rolling.version == *version => Stage::Rolling(rolling),
        (Some(_), Stage::Aborted(aborted)) if aborted.version == *version => {
            return no(
                format!("{version} was aborted: {}", aborted.message),
                Some("retry"),
            );
        }
        (Some(stable), Stage::Empty | Stage::Healthy | Stage::Rolling(_) | Stage::Aborted(_)) => {
            let fast = is_within_window(&state, stable, version, plan) || is_warm(&state, version, plan, now);
            let (at, holds) = if fast {
                (At::FastTrack, Vec::new())
            } else {
                (At::Enter, at_first(&state))
            };
            begin(version.clone(), 1, at, holds, now)
        }
    };
    Ok(state)
}

/// Back to stable during a trial and after an abort, otherwise to a former version.
fn undo(
    mut state: State,
    was: &Stage,
    to: Option<&VersionName>,
    warm: bool,
    now: Timestamp,
) -> Result<State, No> {
    let Some(stable) = state.stable.clone() else {
        return no("no version has been deployed", Some("deploy"));
    };
    let target = match (to, was) {
        (Some(to), _) => to.clone(),
        (None, Stage::Rolling(_) | Stage::Aborted(_)) => stable.clone(),
        (None, Stage::Empty | Stage::Healthy) => match state.formers.last() {
            Some(former) => former.version.clone(),
            None => return no("no version was stable before this one", Some("deploy")),
        },
    };
    if target == stable {
        state.stage = Stage::Healthy;
        return Ok(state);
    }
    // A former version may be on trial again: going back to it is then a promotion, and not by this way.
    match was {
        Stage::Rolling(rolling) if rolling.version == target => {
            return no(format!("{target} is on trial"), Some("promote"));
        }
        Stage::Aborted(aborted) if aborted.version == target => {
            return no(format!("{target} was aborted"), Some("retry"));
        }
        Stage::Rolling(_) | Stage::Aborted(_) | Stage::Empty | Stage::Healthy => {}
    }
    if !state.formers.iter().any(|former| former.version == target) {
        return no(format!("{target} was never stable here"), Some("deploy"));
    }
    if !warm {
        return no(
            format!("{target} is not warm and healthy any more; deploy it to bring it back step by step"),
            Some("deploy"),
        );
    }
    make_stable(&mut state, target, now);
    Ok(state)
}

/// The version becomes stable; the one before it can be gone back to.
pub(super) fn make_stable(state: &mut State, version: VersionName, now: Timestamp) {
    state.formers.retain(|former| former.version != version);
    if let Some(stable) = state.stable.replace(version) {
        state.formers.retain(|former| former.version != stable);
        state.formers.push(Former {
            version: stable,
            retired: now,
        });
        let surplus = state.formers.len().saturating_sub(FORMERS);
        state.formers.drain(..surplus);
    }
    state.stage = Stage::Healthy;
}

fn begin(version: VersionName, attempt: u32, at: At, holds: Vec<Hold>, now: Timestamp) -> Stage {
    Stage::Rolling(Box::new(Rolling {
        version,
        attempt,
        since: now,
        pool: Pool::Waiting { since: now },
        step: 0,
        at,
        weight: Weight::ZERO,
        holds,
        background: BackgroundRun::Off,
        routes: Vec::new(),
        client_errors_told: false,
    }))
}

/// Whether strictly fewer versions than the window lie between the target and stable, by their first deploy.
fn is_within_window(state: &State, stable: &VersionName, target: &VersionName, plan: &Plan) -> bool {
    let place = |version: &VersionName| state.seen.iter().position(|seen| seen == version);
    let was_stable = state.formers.iter().any(|former| former.version == *target);
    match (plan.rollback_window, place(target), place(stable)) {
        (Some(window), Some(target), Some(stable)) if was_stable && target < stable => {
            u32::try_from(stable - target - 1).is_ok_and(|between| between < window.revisions)
        }
        (Some(_) | None, _, _) => false,
    }
}

/// Blue-green: whether the version still runs because its scale-down delay has not passed.
fn is_warm(state: &State, version: &VersionName, plan: &Plan, now: Timestamp) -> bool {
    let Strategy::BlueGreen(blue_green) = &plan.strategy else {
        return false;
    };
    let limit = blue_green.scale_down_delay_revision_limit;
    let limit = limit
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(usize::MAX);
    let mut recent = state.formers.iter().rev().take(limit);
    recent.any(|former| {
        former.version == *version && now.since(former.retired) <= blue_green.scale_down_delay.as_duration()
    })
}

impl Trial<'_> {
    /// Everything back to stable.
    pub(super) fn abort(mut self, cause: AbortCause, message: String) -> State {
        self.state.stage = Stage::Aborted(Box::new(Aborted {
            version: self.rolling.version,
            attempt: self.rolling.attempt,
            at: self.now,
            cause,
            message,
        }));
        self.state
    }

    /// The trial goes on where it is.
    pub(super) fn stay(mut self) -> State {
        self.state.stage = Stage::Rolling(Box::new(self.rolling));
        self.state
    }

    /// The steps go on as far as they can.
    pub(super) fn run_on(mut self) -> State {
        match self.advance() {
            Verdict::Waiting => self.stay(),
            Verdict::Promoted => {
                make_stable(&mut self.state, self.rolling.version, self.now);
                self.state
            }
        }
    }
}
