//! What cannot be done now, why, and what can.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A verb that a person may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// Bring in a version.
    Deploy,
    /// Release the current pause.
    Promote,
    /// Skip everything that is left.
    PromoteFull,
    /// Back to stable.
    Abort,
    /// Start the aborted version again.
    Retry,
    /// Back to a former version.
    Undo,
    /// Stop the steps.
    Pause,
    /// Let the steps go on.
    Resume,
    /// Give the canary a share by hand.
    SetWeight,
}

impl Verb {
    /// As it is typed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verb::Deploy => "deploy",
            Verb::Promote => "promote",
            Verb::PromoteFull => "promote --full",
            Verb::Abort => "abort",
            Verb::Retry => "retry",
            Verb::Undo => "undo",
            Verb::Pause => "pause",
            Verb::Resume => "resume",
            Verb::SetWeight => "set-weight",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An event that leaves the state as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{event} is refused: {reason}")]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// What was asked.
    pub event: String,
    /// Why not.
    pub reason: String,
    /// What would do instead, where one thing clearly would.
    pub hint: Option<String>,
    /// What can be done now.
    pub legal: Vec<Verb>,
}
