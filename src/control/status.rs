//! What people and pipelines see of a service: the answer of `GET /v1/services/{s}`.
//!
//! Plain data, readable back by the command line. Nothing here decides; `engine` fills in what it decided and `live`
//! the numbers of the moment.

use crate::{
    analysis::{JudgeConfig, JudgeReport, Measurement, RunPhase},
    model::{Role, ServiceName, Span, Timestamp, VersionName, Weight},
    rollout::{AbortCause, AnalysisKind, Phase, RunId, Verb},
};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Where a service stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Its name.
    pub service: ServiceName,
    /// Healthy, Progressing, Paused or Degraded.
    pub phase: Phase,
    /// The reason in one word, where there is one: `CanaryPauseStep`, `SharedFate`, …
    pub reason: Option<String>,
    /// Where it stands, in one sentence.
    pub message: String,
    /// The version that is trusted.
    pub stable: Option<VersionName>,
    /// The version on trial; after an abort there is none.
    pub canary: Option<VersionName>,
    /// The version last asked for; differs from stable during a rollout and after an abort.
    pub desired: Option<VersionName>,
    /// The version that was pulled back, until another is deployed or it is retried.
    pub rolled_back_from: Option<VersionName>,
    /// The rollout now going on, or the last one.
    pub rollout: Option<RolloutStatus>,
    /// The step now executing.
    pub step: Option<StepStatus>,
    /// The canary's share, as control has set it.
    pub set_weight: Weight,
    /// The share it got under that weight.
    pub observed: Observed,
    /// Since when and until when it is paused.
    pub paused: Option<PausedStatus>,
    /// The service's absolute alarm, while it rings.
    #[serde(default)]
    pub alarm: Option<AlarmStatus>,
    /// How the last trial ended, when it ended badly.
    pub aborted: Option<AbortStatus>,
    /// Every version there is, stable first.
    pub versions: Vec<VersionStatus>,
    /// Analyses that run now, then those of this rollout that have ended, newest first.
    pub analyses: Vec<AnalysisStatus>,
    /// What can be done now.
    pub legal: Vec<Verb>,
    /// Where the running service differs from what the file says.
    pub drift: Vec<String>,
    /// What needs attention although nothing is refused yet: a store that cannot be written, no stable version.
    pub warnings: Vec<String>,
    /// Counts up with everything that happened to this service: the `ETag`.
    pub generation: u64,
    /// When it last changed.
    pub updated: Timestamp,
}

/// Which rollout this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// Unique; a retry keeps it.
    pub id: String,
    /// The version it brings in.
    pub version: VersionName,
    /// 1 at the deploy, one more with every retry.
    pub attempt: u32,
    /// When it was deployed.
    pub started: Timestamp,
    /// When it ended, promoted or aborted or superseded.
    pub ended: Option<Timestamp>,
    /// Who deployed it.
    pub actor: String,
    /// The number a pipeline gave it.
    pub sequence: Option<u64>,
    /// `canary`, `blueGreen` or `immediate`.
    pub strategy: String,
}

/// The step now executing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// Counted from 0; the number of steps when they are finished.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    /// The step in words: `pause 5m`, `setWeight 25%`.
    pub text: String,
    /// All of them in words, for a picture of the whole plan.
    pub all: Vec<String>,
}

/// What the split did under the weight in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// Requests the split has decided.
    pub requests: u64,
    /// Of those, given to the canary.
    pub canary: u64,
    /// Their share, 0 to 1.
    pub share: f64,
    /// Canary requests minus the exact expectation: inside (-1, 1).
    pub error: f64,
}

/// A pause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PausedStatus {
    /// Since when.
    pub since: Timestamp,
    /// When it ends by itself; absent: when somebody says so.
    pub until: Option<Timestamp>,
    /// Why, in one word.
    pub reason: String,
}

/// Too much of the service fails, whichever version answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AlarmStatus {
    /// Since when.
    pub since: Timestamp,
    /// What was seen, in words.
    pub message: String,
}

/// A trial that ended badly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AbortStatus {
    /// Which version.
    pub version: VersionName,
    /// Why, as metrics count it.
    pub cause: AbortCause,
    /// Why, in words.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// What a version's processes are good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum VersionState {
    /// It is stable or canary.
    Serving,
    /// It was stable until just now: `undo` is instant.
    Warm,
    /// It gets nothing new and finishes what it has.
    Draining,
    /// Nothing is in flight: its processes may be stopped.
    Releasable,
    /// Serin has forgotten its endpoints.
    Gone,
}

impl VersionState {
    /// The word people read.
    pub const fn as_str(self) -> &'static str {
        match self {
            VersionState::Serving => "serving",
            VersionState::Warm => "warm",
            VersionState::Draining => "draining",
            VersionState::Releasable => "releasable",
            VersionState::Gone => "gone",
        }
    }
}

/// One version of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionStatus {
    /// Its name.
    pub version: VersionName,
    /// What it serves as, if it serves.
    pub role: Option<Role>,
    /// What its processes are good for.
    pub state: VersionState,
    /// Since when it is in that state.
    pub since: Timestamp,
    /// When a warm version stops being one.
    pub until: Option<Timestamp>,
    /// Requests it has now.
    pub in_flight: u64,
    /// Where it listens.
    pub endpoints: Vec<EndpointStatus>,
    /// What it has shown since this weight was set; only for a version that serves.
    pub evidence: Option<EvidenceStatus>,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// Where.
    pub url: String,
    /// At which address, when `url` has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<SocketAddr>,
    /// Whether the last readiness probe held.
    pub ready: bool,
    /// Attempts in a row without a response.
    pub failures: u32,
    /// Whether it takes requests now.
    pub healthy: bool,
}

/// Requests, errors, duration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvidenceStatus {
    /// Requests that say something about the version.
    pub requests: u64,
    /// Of those, failed by its fault.
    pub errors: u64,
    /// `errors / requests`; absent without requests.
    pub error_rate: Option<f64>,
    /// Seconds within which half of them were answered.
    pub p50: Option<f64>,
    /// Seconds within which 99 of 100 were answered.
    pub p99: Option<f64>,
}

/// An analysis run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AnalysisStatus {
    /// Its number within the service.
    pub run: RunId,
    /// Why it runs.
    pub kind: AnalysisKind,
    /// The rollout it belongs to.
    pub rollout: String,
    /// The version on trial.
    pub version: VersionName,
    /// Where it stands.
    pub phase: RunPhase,
    /// Why it stands there: `stopped` for one that was ended from outside.
    pub reason: Option<String>,
    /// What it says for itself.
    pub message: String,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// Its metrics.
    pub metrics: Vec<MetricStatus>,
}

/// One metric of an analysis run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricStatus {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub phase: RunPhase,
    /// What it says for itself.
    pub message: String,
    /// Shown, but without a say.
    pub dry_run: bool,
    /// The condition a good value meets.
    pub success_condition: Option<String>,
    /// The condition a bad value meets.
    pub failure_condition: Option<String>,
    /// Measurements that counted.
    pub count: u32,
    /// Good ones.
    pub successful: u32,
    /// Bad ones.
    pub failed: u32,
    /// Neither.
    pub inconclusive: u32,
    /// Those that went wrong.
    pub errors: u32,
    /// The last few, oldest first.
    pub measurements: Vec<Measurement>,
    /// For the sequential judge: where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<JudgeReport>,
}

/// The judges that the next rollout of a service will have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceJudges {
    /// Each metric that is one; none where the plan has no judge.
    pub judges: Vec<ServiceJudge>,
}

/// A judge as the next rollout of a service will have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceJudge {
    /// The metric that it sits for.
    pub metric: String,
    /// It has no say.
    pub dry_run: bool,
    /// Its parameters; shares are fractions of one, times seconds.
    pub parameters: JudgeConfig,
}

/// Requests, errors and duration of a service over a window, per version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricsWindow {
    /// The service.
    pub service: ServiceName,
    /// How far back was asked for.
    pub window: Span,
    /// How far back there was something to read.
    pub covered: Span,
    /// Per version and role.
    pub versions: Vec<VersionWindow>,
}

/// One version's part of a [`MetricsWindow`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionWindow {
    /// The version.
    pub version: VersionName,
    /// What it served as.
    pub role: Role,
    /// Requests per second.
    pub rate: f64,
    /// Requests, errors, duration.
    #[serde(flatten)]
    pub evidence: EvidenceStatus,
}

/// One line of the history: something that happened, with the numbers it was decided by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoredEvent {
    /// Counts up over all services: the `Last-Event-ID`.
    pub id: u64,
    /// When.
    pub at: Timestamp,
    /// Whose.
    pub service: ServiceName,
    /// In which rollout.
    pub rollout: Option<String>,
    /// What, in one word: `deploy`, `tick`, `analysis_finished`, …
    pub event: String,
    /// The event as it was applied, without what may hold secrets: templates, and the values of arguments.
    pub detail: serde_json::Value,
    /// The numbers it was decided by.
    pub numbers: serde_json::Value,
    /// Who asked, when somebody did.
    pub caller: Option<super::Caller>,
    /// The phase it led to.
    pub phase: Phase,
    /// The step it led to.
    pub step: Option<usize>,
    /// The canary's share it led to.
    pub weight: Weight,
    /// Where that leaves the service, in one sentence.
    pub message: String,
}

/// What a test message to a receiver of notifications came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotificationTest {
    /// Whether it was answered with 2xx.
    pub delivered: bool,
    /// The answer, or why there was none.
    pub message: String,
}

/// Everything that is known of the past of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// Rollouts, newest first.
    pub rollouts: Vec<RolloutStatus>,
    /// Decisions, newest first.
    pub events: Vec<StoredEvent>,
    /// Who tried what, newest first.
    pub attempts: Vec<Attempt>,
}

/// One attempt to change something, allowed or refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// When.
    pub at: Timestamp,
    /// The service, as it was named.
    pub service: String,
    /// `deploy`, `promote`, …
    pub verb: String,
    /// Who.
    pub caller: super::Caller,
    /// Absent when it was allowed: the code of the refusal.
    pub refused: Option<String>,
    /// The phase, step and weight before.
    pub before: String,
    /// The phase, step and weight after.
    pub after: String,
}
