//! Everything that can happen to a rollout. Stored before it is applied; replaying them gives the same state.

use super::state::RunId;
use crate::{
    analysis::{OnError, RunPhase},
    model::{Span, VersionName, Weight},
};
use serde::{Deserialize, Serialize};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "event")]
pub enum Event {
    /// A user, a CI job or a changed file asks for a version. During another rollout it supersedes.
    Deploy {
        /// Which version.
        version: VersionName,
    },
    /// The same version starts again at step 0 with a new plan (which the caller passes to `transition` from now on).
    SetSteps,
    /// The canary has enough healthy endpoints.
    EndpointsReady,
    /// It has not, or not any more: weight zero now, and the deadline runs.
    EndpointsLost,
    /// Time has passed. Send one when [`super::State::next_wakeup`] says so; more do no harm.
    Tick,
    /// Serin was down for this long: pauses and deadlines do not count it. The effects restore everything.
    Restarted {
        /// From the last stored sign of life to now.
        downtime: Span,
    },
    /// An analysis ended.
    AnalysisFinished {
        /// Which one.
        run: RunId,
        /// How: a completed phase.
        phase: RunPhase,
        /// What to do when it is Error.
        on_error: OnError,
        /// The run's message.
        message: String,
    },
    /// Every declared metric of the background analysis has made a real decision.
    EvidenceGathered {
        /// Which run.
        run: RunId,
    },
    /// The judge of the background analysis has ruled out the harm that the next weight could do.
    EvidenceSuffices {
        /// Which run.
        run: RunId,
        /// At which step: evidence for another weight is none for this one.
        step: usize,
        /// What was ruled out, with its numbers.
        message: String,
    },
    /// The judge of an analysis has found that the canary answers 4xx more often than stable, or more seldom: a person must look. Once
    /// in an attempt.
    ClientErrors {
        /// Which run.
        run: RunId,
        /// What was seen, with its numbers.
        message: String,
    },
    /// Release the current pause.
    Promote {
        /// Skip everything that is left.
        full: bool,
        /// Also pass a running analysis, or the wait for evidence.
        skip_analysis: bool,
    },
    /// Back to stable.
    Abort {
        /// Why, in the user's words.
        reason: Option<String>,
    },
    /// Start the aborted version again at step 0.
    Retry,
    /// Back to stable, or to the version before it.
    Undo {
        /// Which version. Absent: stable during a rollout, otherwise the previous one.
        to: Option<VersionName>,
        /// Whether that version's pool is warm and healthy.
        warm: bool,
    },
    /// Stop the steps; traffic and analyses go on.
    Pause,
    /// Let the steps go on.
    Resume,
    /// Give the canary this share and pause there.
    SetWeight {
        /// How much.
        weight: Weight,
    },
    /// Every endpoint of the canary failed at once; the proxy has already sent everything to stable.
    HardFailure {
        /// `abort`, or `pause` where the operator chose that.
        action: OnError,
        /// What was seen.
        message: String,
    },
    /// Every endpoint of the canary failed, and stable's too.
    SharedFate {
        /// What was seen.
        message: String,
    },
    /// Too much of the service fails, whichever version answers: a version on trial is held where it is.
    AlarmRaised {
        /// What was seen.
        message: String,
    },
    /// That is over.
    AlarmCleared {
        /// What was seen.
        message: String,
    },
}

impl Event {
    /// The word for it in logs, refusals and the history.
    pub const fn name(&self) -> &'static str {
        match self {
            Event::Deploy { .. } => "deploy",
            Event::SetSteps => "set_steps",
            Event::EndpointsReady => "endpoints_ready",
            Event::EndpointsLost => "endpoints_lost",
            Event::Tick => "tick",
            Event::Restarted { .. } => "restarted",
            Event::AnalysisFinished { .. } => "analysis_finished",
            Event::EvidenceGathered { .. } => "evidence_gathered",
            Event::EvidenceSuffices { .. } => "evidence_suffices",
            Event::ClientErrors { .. } => "client_errors",
            Event::Promote { full: false, .. } => "promote",
            Event::Promote { full: true, .. } => "promote --full",
            Event::Abort { .. } => "abort",
            Event::Retry => "retry",
            Event::Undo { .. } => "undo",
            Event::Pause => "pause",
            Event::Resume => "resume",
            Event::SetWeight { .. } => "set-weight",
            Event::HardFailure { .. } => "hard_failure",
            Event::SharedFate { .. } => "shared_fate",
            Event::AlarmRaised { .. } => "alarm_raised",
            Event::AlarmCleared { .. } => "alarm_cleared",
        }
    }
}
