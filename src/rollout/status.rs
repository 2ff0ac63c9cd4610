//! What people see of a rollout's state: phase, message, weight, the legal verbs. Nothing of this is stored.

use super::{
    effect::AnalysisKind,
    plan::{Plan, Step, Strategy},
    refused::Verb,
    state::{At, BackgroundRun, Hold, Pool, Rolling, Route, RunId, Stage, State},
};
use crate::model::{Timestamp, VersionName, Weight};
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// The four words for where a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Phase {
    /// Stable serves everything and nothing else was asked for.
    Healthy,
    /// On the way.
    Progressing,
    /// Waiting for a time or for somebody.
    Paused,
    /// Rolled back: stable is healthy and serves everything, but it is not the version that was asked for.
    Degraded,
}

impl Phase {
    /// All of them, for series that start at zero.
    pub const ALL: [Phase; 4] = [Phase::Healthy, Phase::Progressing, Phase::Paused, Phase::Degraded];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Phase::Healthy => "Healthy",
            Phase::Progressing => "Progressing",
            Phase::Paused => "Paused",
            Phase::Degraded => "Degraded",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a rollout is paused; the first that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PauseReason {
    /// By a user, or because the weight was set by hand.
    Manual,
    /// Every canary endpoint failed and the operator chose to pause.
    HardFailure,
    /// Stable failed just as the canary did.
    SharedFate,
    /// The service's alarm rings.
    Alarm,
    /// An analysis ended without a verdict.
    InconclusiveAnalysisRun,
    /// An experiment ended without a verdict.
    InconclusiveExperiment,
    /// An analysis could not measure, and its metric says `onError: pause`.
    AnalysisRunError,
    /// The canary answers 4xx more often than stable, or more seldom.
    ClientErrors,
    /// The judge did not learn enough in the time that the plan gives it.
    NoEvidence,
    /// The current step is a pause.
    CanaryPauseStep,
    /// Nearly everything is on the new version, and a small share stays on stable for the bake time.
    Bake,
    /// Blue-green waits for the switch.
    BlueGreenPause,
}

impl PauseReason {
    /// All reasons, for series that start at zero.
    pub const ALL: [PauseReason; 12] = [
        PauseReason::Manual,
        PauseReason::HardFailure,
        PauseReason::SharedFate,
        PauseReason::InconclusiveAnalysisRun,
        PauseReason::InconclusiveExperiment,
        PauseReason::AnalysisRunError,
        PauseReason::ClientErrors,
        PauseReason::Alarm,
        PauseReason::NoEvidence,
        PauseReason::CanaryPauseStep,
        PauseReason::Bake,
        PauseReason::BlueGreenPause,
    ];

    /// The value of the label `reason` of `serin_rollout_pause_reason`.
    pub const fn label(self) -> &'static str {
        match self {
            PauseReason::Manual => "manual",
            PauseReason::HardFailure => "hard_failure",
            PauseReason::SharedFate => "shared_fate",
            PauseReason::InconclusiveAnalysisRun => "inconclusive_analysis",
            PauseReason::InconclusiveExperiment => "inconclusive_experiment",
            PauseReason::AnalysisRunError => "analysis_error",
            PauseReason::ClientErrors => "client_errors",
            PauseReason::Alarm => "alarm",
            PauseReason::NoEvidence => "no_evidence",
            PauseReason::CanaryPauseStep => "pause_step",
            PauseReason::Bake => "bake",
            PauseReason::BlueGreenPause => "blue_green",
        }
    }

    /// As people read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            PauseReason::Manual => "manually paused",
            PauseReason::HardFailure => "HardFailure",
            PauseReason::SharedFate => "SharedFate",
            PauseReason::Alarm => "Alarm",
            PauseReason::InconclusiveAnalysisRun => "InconclusiveAnalysisRun",
            PauseReason::InconclusiveExperiment => "InconclusiveExperiment",
            PauseReason::AnalysisRunError => "AnalysisRunError",
            PauseReason::ClientErrors => "ClientErrors",
            PauseReason::NoEvidence => "NoEvidence",
            PauseReason::CanaryPauseStep => "CanaryPauseStep",
            PauseReason::Bake => "Bake",
            PauseReason::BlueGreenPause => "BlueGreenPause",
        }
    }
}

impl fmt::Display for PauseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl State {
    /// The version on trial, and how its trial goes.
    pub fn rolling(&self) -> Option<&Rolling> {
        match &self.stage {
            Stage::Rolling(rolling) => Some(rolling),
            Stage::Empty | Stage::Healthy | Stage::Aborted(_) => None,
        }
    }

    /// The version on trial.
    pub fn canary(&self) -> Option<&VersionName> {
        self.rolling().map(|rolling| &rolling.version)
    }

    /// The version that was asked for last: on trial, aborted, or stable.
    pub fn desired(&self) -> Option<&VersionName> {
        match &self.stage {
            Stage::Rolling(rolling) => Some(&rolling.version),
            Stage::Aborted(aborted) => Some(&aborted.version),
            Stage::Empty | Stage::Healthy => self.stable.as_ref(),
        }
    }

    /// The canary's share now.
    pub fn weight(&self) -> Weight {
        self.rolling().map_or(Weight::ZERO, Rolling::effective_weight)
    }

    /// Every version that takes traffic or is on trial, with its share.
    pub fn traffic(&self) -> Vec<(&VersionName, Weight)> {
        let stable = self
            .stable
            .iter()
            .map(|stable| (stable, self.weight().complement()));
        let canary = self.canary().map(|canary| (canary, self.weight()));
        stable.chain(canary).collect()
    }

    /// Blue-green: the version that production reaches.
    pub fn active(&self) -> Option<&VersionName> {
        if self.weight().is_full() {
            self.canary()
        } else {
            self.stable.as_ref()
        }
    }

    /// Blue-green: the version that the preview address reaches.
    pub fn preview(&self) -> Option<&VersionName> {
        self.desired()
    }

    /// The header and mirror routes in force.
    pub fn routes(&self) -> &[Route] {
        self.rolling().map_or(&[], |rolling| &rolling.routes)
    }

    /// The analyses that should be running.
    pub fn runs(&self) -> Vec<(RunId, AnalysisKind)> {
        let Some(rolling) = self.rolling() else {
            return Vec::new();
        };
        let step = match rolling.at {
            At::Analysis { run, kind, .. } => Some((run, kind)),
            At::Enter
            | At::FastTrack
            | At::Pause { .. }
            | At::Bake { .. }
            | At::UntilEvidence { .. }
            | At::NoEvidence
            | At::Undecided { .. }
            | At::Evidence
            | At::BeforeSwitch
            | At::Switch { .. } => None,
        };
        let background = match rolling.background {
            BackgroundRun::Running { run, .. } => Some((run, AnalysisKind::Background)),
            BackgroundRun::Off | BackgroundRun::Passed | BackgroundRun::Undecided => None,
        };
        step.into_iter().chain(background).collect()
    }

    /// Where the rollout stands. The first that applies, as in Argo Rollouts.
    pub fn phase(&self) -> Phase {
        match &self.stage {
            Stage::Aborted(_) => Phase::Degraded,
            Stage::Rolling(rolling) if rolling.pause_reason().is_some() => Phase::Paused,
            Stage::Rolling(_) | Stage::Empty => Phase::Progressing,
            Stage::Healthy => Phase::Healthy,
        }
    }

    /// Why it is paused, when it is.
    pub fn pause_reason(&self) -> Option<PauseReason> {
        self.rolling().and_then(Rolling::pause_reason)
    }

    /// The index of the step now executing, and how many there are; equal when finished.
    pub fn step(&self, plan: &Plan) -> (usize, usize) {
        let all = plan.steps().len();
        match &self.stage {
            Stage::Rolling(rolling) => (rolling.step.min(all), all),
            Stage::Healthy => (all, all),
            Stage::Empty | Stage::Aborted(_) => (0, all),
        }
    }

    /// Why it stands where it stands, in one sentence.
    pub fn message(&self, plan: &Plan) -> String {
        match &self.stage {
            Stage::Empty => "no version has been deployed".to_owned(),
            Stage::Healthy => self
                .alarm
                .as_ref()
                .map_or_else(String::new, |alarm| format!("Alarm: {}", alarm.message)),
            Stage::Aborted(aborted) => format!("RolloutAborted: {}", aborted.message),
            Stage::Rolling(rolling) => rolling.message(plan),
        }
    }

    /// Whether more people meet an untrusted version than in `old`: then the event is stored before it is acted upon.
    /// Going back, by an abort or to a version that was stable, acts first.
    pub fn exposes_more_than(&self, old: &State) -> bool {
        let promoted = self.stable != old.stable
            && !old
                .formers
                .iter()
                .any(|former| Some(&former.version) == self.stable.as_ref());
        let same = self.canary() == old.canary();
        let more = if same {
            self.weight() > old.weight()
        } else {
            !self.weight().is_zero()
        };
        promoted || more
    }

    /// When the next [`super::Event::Tick`] is needed, if nothing else happens.
    pub fn next_wakeup(&self, plan: &Plan) -> Option<Timestamp> {
        let rolling = self.rolling()?;
        let deadline = match (rolling.pool, plan.progress_deadline) {
            (Pool::Waiting { since }, Some(deadline)) if rolling.deadline_runs() => {
                Some(since.plus(deadline.as_duration()))
            }
            (Pool::Waiting { .. } | Pool::Ready, _) => None,
        };
        let step = rolling.waits_until(plan).filter(|_| rolling.is_free());
        // Strictly after: one millisecond past the end.
        let moments = [deadline, step].into_iter().flatten();
        moments.map(|moment| moment.plus(Duration::from_millis(1))).min()
    }

    /// What a person can do now.
    pub fn legal_verbs(&self, plan: &Plan) -> Vec<Verb> {
        let mut verbs = vec![Verb::Deploy];
        match &self.stage {
            Stage::Empty => {}
            Stage::Healthy => verbs.extend((!self.formers.is_empty()).then_some(Verb::Undo)),
            Stage::Aborted(_) => verbs.extend([Verb::Retry, Verb::PromoteFull, Verb::Undo]),
            Stage::Rolling(rolling) => {
                if rolling.pool == Pool::Ready {
                    verbs.extend([Verb::Promote, Verb::PromoteFull]);
                }
                verbs.extend([Verb::Abort, Verb::Undo, Verb::Pause]);
                verbs.extend((!rolling.holds.is_empty() || rolling.is_undecided()).then_some(Verb::Resume));
                let canary = matches!(plan.strategy, Strategy::Canary(_));
                verbs.extend((canary && rolling.pool == Pool::Ready).then_some(Verb::SetWeight));
            }
        }
        verbs
    }
}

impl Rolling {
    /// The canary's share now: what the steps gave it, unless something holds it at zero.
    pub fn effective_weight(&self) -> Weight {
        let zero = self.pool != Pool::Ready
            || self.holds.iter().any(|hold| match hold {
                Hold::SharedFate { .. } | Hold::HardFailure { .. } => true,
                Hold::Manual | Hold::Background { .. } | Hold::ClientErrors { .. } | Hold::Alarm { .. } => {
                    false
                }
            });
        if zero { Weight::ZERO } else { self.weight }
    }

    /// Whether the steps may go on as far as holds and endpoints are concerned.
    pub(super) fn is_free(&self) -> bool {
        self.holds.is_empty() && self.pool == Pool::Ready
    }

    /// Whether being without endpoints is held against the canary: not while somebody has paused it, nor while stable
    /// fails alike.
    pub(super) fn deadline_runs(&self) -> bool {
        self.holds.iter().all(|hold| match hold {
            Hold::Manual | Hold::SharedFate { .. } => false,
            Hold::Background { .. }
            | Hold::HardFailure { .. }
            | Hold::ClientErrors { .. }
            | Hold::Alarm { .. } => true,
        })
    }

    pub(super) fn is_undecided(&self) -> bool {
        matches!(self.at, At::Undecided { .. } | At::NoEvidence)
    }

    /// Whether only evidence is missing for the steps to go on: what the judge has found out moves it.
    pub fn waits_for_evidence(&self) -> bool {
        matches!(self.at, At::UntilEvidence { .. }) && self.is_free()
    }

    /// Whether it may not go on to everything before what watches beside the steps has decided something.
    pub fn waits_for_a_decision(&self) -> bool {
        matches!(self.at, At::Evidence) && self.is_free()
    }

    /// When the current step is over by itself: strictly after this moment.
    pub(super) fn waits_until(&self, plan: &Plan) -> Option<Timestamp> {
        match &self.at {
            At::Pause { since } => match plan.steps().get(self.step) {
                Some(Step::Pause(pause)) => Some(since.plus(pause.duration?.as_duration())),
                Some(_) | None => None,
            },
            At::Bake { since } => match plan.steps().get(self.step) {
                Some(Step::Bake(bake)) => Some(since.plus(bake.duration.as_duration())),
                Some(_) | None => None,
            },
            At::UntilEvidence { since } => match plan.steps().get(self.step) {
                Some(Step::Pause(pause)) => Some(since.plus(pause.until_evidence?.max?.as_duration())),
                Some(_) | None => None,
            },
            At::Analysis {
                kind: AnalysisKind::Experiment,
                since,
                ..
            } => match plan.steps().get(self.step) {
                Some(Step::Experiment(experiment)) => Some(since.plus(experiment.duration?.as_duration())),
                Some(_) | None => None,
            },
            At::Switch { since } => match &plan.strategy {
                Strategy::BlueGreen(blue_green) if blue_green.auto_promotion_enabled => {
                    Some(since.plus(blue_green.auto_promotion_after?.as_duration()))
                }
                Strategy::BlueGreen(_) | Strategy::Canary(_) | Strategy::Immediate => None,
            },
            At::Enter
            | At::FastTrack
            | At::BeforeSwitch
            | At::Analysis { .. }
            | At::Undecided { .. }
            | At::NoEvidence
            | At::Evidence => None,
        }
    }

    fn pause_reason(&self) -> Option<PauseReason> {
        let rank = |hold: &Hold| match hold {
            Hold::Manual => PauseReason::Manual,
            Hold::HardFailure { .. } => PauseReason::HardFailure,
            Hold::SharedFate { .. } => PauseReason::SharedFate,
            Hold::Alarm { .. } => PauseReason::Alarm,
            Hold::Background { error: true, .. } => PauseReason::AnalysisRunError,
            Hold::Background { error: false, .. } => PauseReason::InconclusiveAnalysisRun,
            Hold::ClientErrors { .. } => PauseReason::ClientErrors,
        };
        if self.holds.contains(&Hold::Manual) {
            return Some(PauseReason::Manual);
        }
        let held = self.holds.first().map(rank);
        held.or(match &self.at {
            At::Undecided { error: true, .. } => Some(PauseReason::AnalysisRunError),
            At::Undecided {
                kind: AnalysisKind::Experiment,
                ..
            } => Some(PauseReason::InconclusiveExperiment),
            At::Undecided { .. } => Some(PauseReason::InconclusiveAnalysisRun),
            At::NoEvidence => Some(PauseReason::NoEvidence),
            At::Pause { .. } => Some(PauseReason::CanaryPauseStep),
            At::Bake { .. } => Some(PauseReason::Bake),
            At::Switch { .. } => Some(PauseReason::BlueGreenPause),
            At::Enter
            | At::FastTrack
            | At::BeforeSwitch
            | At::Analysis { .. }
            | At::UntilEvidence { .. }
            | At::Evidence => None,
        })
    }

    /// What the bake time means, and when it is over.
    fn bakes(&self, plan: &Plan) -> Option<String> {
        let (until, share) = (self.waits_until(plan)?, self.weight.complement());
        Some(format!(
            "bakes with {share} on stable until {until}; a regression still rolls back"
        ))
    }

    fn message(&self, plan: &Plan) -> String {
        if let Some(reason) = self.pause_reason() {
            let said = self.holds.iter().find_map(|hold| match hold {
                Hold::Background { message, .. }
                | Hold::SharedFate { message }
                | Hold::Alarm { message }
                | Hold::ClientErrors { message }
                | Hold::HardFailure { message } => Some(message.as_str()),
                Hold::Manual => None,
            });
            let bakes = self.bakes(plan).filter(|_| self.pool == Pool::Ready);
            let said = match (&self.at, reason) {
                (_, PauseReason::Manual) => None,
                (At::Undecided { message, .. }, _) => said.or(Some(message)),
                (At::Bake { .. }, PauseReason::Bake) => bakes.as_deref(),
                (At::NoEvidence, PauseReason::NoEvidence) => {
                    Some("the judge has not learned enough in the time that the plan gives it")
                }
                (_, _) if said.is_none() && self.pool != Pool::Ready => Some("waiting for endpoints"),
                (_, _) => said,
            };
            return match said.filter(|said| !said.is_empty()) {
                Some(said) => format!("{reason}: {said}"),
                None => reason.to_string(),
            };
        }
        if self.pool != Pool::Ready {
            return "waiting for endpoints".to_owned();
        }
        match &self.at {
            At::Analysis {
                kind: AnalysisKind::PrePromotion,
                ..
            } => "active service cutover pending".to_owned(),
            At::Analysis { run, .. } => format!("waiting for analysis to complete (run {run})"),
            At::UntilEvidence { .. } => {
                format!("waiting for evidence that more than {} does no harm", self.weight)
            }
            At::Evidence => {
                "waiting for evidence: a background metric has not decided anything yet".to_owned()
            }
            At::Enter
            | At::FastTrack
            | At::BeforeSwitch
            | At::Pause { .. }
            | At::Bake { .. }
            | At::NoEvidence
            | At::Undecided { .. }
            | At::Switch { .. } => match plan.strategy {
                Strategy::Canary(_) => "waiting for all steps to complete".to_owned(),
                Strategy::BlueGreen(_) | Strategy::Immediate => "active service cutover pending".to_owned(),
            },
        }
    }
}
