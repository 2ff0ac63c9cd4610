//! Where a service's rollout stands: what the store keeps, and nothing that can be computed from it.

use super::effect::AnalysisKind;
use crate::model::{Timestamp, VersionName, Weight};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Everything a restart needs to continue. Made by `State::default()` (nothing deployed) and moved by
/// [`super::transition`] only.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The version that is trusted; absent until the first deploy.
    pub stable: Option<VersionName>,
    /// What is going on.
    pub stage: Stage,
    /// Versions that were stable, oldest first: where `undo` goes.
    pub formers: Vec<Former>,
    /// Every version ever deployed here, in order of its first deploy: what a rollback window counts.
    pub seen: Vec<VersionName>,
    /// The number the next analysis run gets.
    pub next_run: u64,
    /// The service's absolute alarm, while it rings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alarm: Option<Ringing>,
}

/// Too much of a service fails, whichever version answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ringing {
    /// Since when.
    pub since: Timestamp,
    /// What was seen.
    pub message: String,
}

/// A version that was stable once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Former {
    /// Its name.
    pub version: VersionName,
    /// When it stopped being stable.
    pub retired: Timestamp,
}

/// The number of an analysis run, unique within a service.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct RunId(pub u64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What is going on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// No version was ever deployed.
    #[default]
    Empty,
    /// Stable serves everything and nothing is on trial.
    Healthy,
    /// A version is on trial.
    Rolling(Box<Rolling>),
    /// A version was on trial and is not any more; stable serves everything.
    Aborted(Box<Aborted>),
}

/// A version on trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rolling {
    /// The canary.
    pub version: VersionName,
    /// 1 at the deploy, one more with every retry.
    pub attempt: u32,
    /// When this attempt began.
    pub since: Timestamp,
    /// Whether the canary has enough healthy endpoints.
    pub pool: Pool,
    /// The index of the step now executing; the number of steps when they are finished.
    pub step: usize,
    /// What that step waits for.
    pub at: At,
    /// The share that the steps, or a hand, have given the canary: effective unless something holds it at zero.
    pub weight: Weight,
    /// What keeps the steps from going on, whatever they wait for. At most one of each kind.
    pub holds: Vec<Hold>,
    /// The analysis beside the steps.
    pub background: BackgroundRun,
    /// Header and mirror routes set by steps, in the order of their first setting.
    pub routes: Vec<Route>,
    /// Whether a person has been called for its 4xx answers: once in an attempt, for whoever lets it go on has seen them.
    #[serde(default)]
    pub client_errors_told: bool,
}

/// Whether a version can take traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Pool {
    /// Enough healthy endpoints.
    Ready,
    /// Not enough, since then: the weight is zero and the deadline runs.
    Waiting {
        /// Since when.
        since: Timestamp,
    },
}

/// What the current step waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum At {
    /// Nothing: the step is about to be entered.
    Enter,
    /// Endpoints, and then everything at once: a way back that skips the steps.
    FastTrack,
    /// The end of a pause step.
    Pause {
        /// Since when; moved forward by time that does not count.
        since: Timestamp,
    },
    /// The end of the bake time: a small share is still on stable.
    Bake {
        /// Since when; moved forward by time that does not count.
        since: Timestamp,
    },
    /// Evidence that the next weight does no harm.
    UntilEvidence {
        /// Since when; moved forward by time that does not count.
        since: Timestamp,
    },
    /// A human, because that evidence did not come in the time that the plan gives it.
    NoEvidence,
    /// The verdict of an analysis.
    Analysis {
        /// Which run.
        run: RunId,
        /// Why it runs.
        kind: AnalysisKind,
        /// Since when.
        since: Timestamp,
    },
    /// A human, because that analysis ended without a verdict.
    Undecided {
        /// Why it ran.
        kind: AnalysisKind,
        /// Whether it could not measure, rather than not decide.
        error: bool,
        /// What it said.
        message: String,
    },
    /// A decision of the background analysis, without which nothing reaches 100 %.
    Evidence,
    /// Nothing: blue-green is about to pause before the switch, or to switch.
    BeforeSwitch,
    /// Blue-green: the switch, by a human or after `autoPromotionSeconds`.
    Switch {
        /// Since when.
        since: Timestamp,
    },
}

/// Something that keeps the steps from going on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Hold {
    /// A user paused, or set the weight by hand.
    Manual,
    /// The background analysis ended without a verdict.
    Background {
        /// Whether it could not measure, rather than not decide.
        error: bool,
        /// What it said.
        message: String,
    },
    /// Stable failed just as the canary did: weight zero, nobody to blame.
    SharedFate {
        /// What was seen.
        message: String,
    },
    /// Every canary endpoint failed and the operator chose to pause: weight zero.
    HardFailure {
        /// What was seen.
        message: String,
    },
    /// The canary answers 4xx more often than stable, or more seldom.
    ClientErrors {
        /// What was seen.
        message: String,
    },
    /// The service's alarm rings: no evidence against the canary, and no time to give it more.
    Alarm {
        /// What was seen.
        message: String,
    },
}

/// The background analysis of this attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BackgroundRun {
    /// Not started, or none declared.
    Off,
    /// Measuring.
    Running {
        /// Which run.
        run: RunId,
        /// Whether every declared metric has made a real decision.
        decided: bool,
    },
    /// Ended as Successful before the steps did.
    Passed,
    /// Ended without a verdict; a hold waits for a human.
    Undecided,
}

/// A header or mirror route set by a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Its name in the plan.
    pub name: String,
    /// What it does.
    pub kind: RouteKind,
    /// Which requests; entries are alternatives.
    #[serde(rename = "match")]
    pub matches: Vec<serde_json::Value>,
}

/// What a managed route does with its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteKind {
    /// They go to the canary whatever the weight.
    Header,
    /// This share of them is copied to the canary, the answer is dropped.
    Mirror(Weight),
}

/// A version whose trial ended badly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Aborted {
    /// The version that was on trial.
    pub version: VersionName,
    /// Which attempt that was.
    pub attempt: u32,
    /// When.
    pub at: Timestamp,
    /// Why, as metrics count it.
    pub cause: AbortCause,
    /// Why, as people read it.
    pub message: String,
}

/// Why a rollout was aborted: the label `cause` of `serin_rollout_aborts_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum AbortCause {
    /// Somebody said so.
    User,
    /// An analysis found it bad.
    AnalysisFailed,
    /// An analysis could not measure.
    AnalysisError,
    /// Every endpoint of the canary failed at once.
    HardFailure,
    /// Too long without enough healthy endpoints.
    ProgressDeadline,
}

impl AbortCause {
    /// All causes, for series that start at zero.
    pub const ALL: [AbortCause; 5] = [
        AbortCause::User,
        AbortCause::AnalysisFailed,
        AbortCause::AnalysisError,
        AbortCause::HardFailure,
        AbortCause::ProgressDeadline,
    ];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            AbortCause::User => "user",
            AbortCause::AnalysisFailed => "analysis_failed",
            AbortCause::AnalysisError => "analysis_error",
            AbortCause::HardFailure => "hard_failure",
            AbortCause::ProgressDeadline => "progress_deadline",
        }
    }
}
