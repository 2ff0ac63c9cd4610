//! What one measurement found, and the phases that metrics and runs go through.

use crate::model::Timestamp;
use serde::{Deserialize, Serialize};

/// What one finished measurement means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Outcome {
    /// The conditions hold.
    Successful,
    /// The conditions say that the canary is bad.
    Failed,
    /// Neither: a human must decide.
    Inconclusive,
    /// The measurement itself went wrong: provider unreachable, condition not computable. Does not consume `count`.
    Error,
    /// Too few requests to say anything. Counts to nothing; the window grows until `noDataTimeout`.
    NoData,
}

impl Outcome {
    /// The word that people read and metrics carry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Successful => "Successful",
            Outcome::Failed => "Failed",
            Outcome::Inconclusive => "Inconclusive",
            Outcome::Error => "Error",
            Outcome::NoData => "NoData",
        }
    }
}

/// Where a metric or a run stands. The order is that of severity, best first.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
pub enum RunPhase {
    /// Every condition held, within the limits.
    Successful,
    /// Still measuring.
    Running,
    /// Nothing measured yet.
    #[default]
    Pending,
    /// Ended without a verdict.
    Inconclusive,
    /// Ended because it could not measure.
    Error,
    /// Ended because the canary is bad.
    Failed,
}

impl RunPhase {
    /// Whether nothing more will be measured.
    pub const fn is_completed(self) -> bool {
        match self {
            RunPhase::Successful | RunPhase::Inconclusive | RunPhase::Error | RunPhase::Failed => true,
            RunPhase::Running | RunPhase::Pending => false,
        }
    }

    /// The word that people read.
    pub const fn as_str(self) -> &'static str {
        match self {
            RunPhase::Successful => "Successful",
            RunPhase::Running => "Running",
            RunPhase::Pending => "Pending",
            RunPhase::Inconclusive => "Inconclusive",
            RunPhase::Error => "Error",
            RunPhase::Failed => "Failed",
        }
    }
}

impl std::fmt::Display for RunPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One measurement, as people see it in the history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Measurement {
    /// When the provider was asked.
    pub started: Timestamp,
    /// When its answer was judged; absent while it is in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// What it means; absent while it is in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// What the provider answered, shortened for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Why it went wrong, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
