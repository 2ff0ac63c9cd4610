//! What somebody may ask of a service, who asks, and how a refusal is said.

use super::ServiceStatus;
use crate::{
    model::{EndpointUrl, VersionName, Weight},
    rollout::{Step, Verb},
};
use serde::{Deserialize, Serialize};

/// One thing to do to a service.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Bring in a version.
    Deploy(Deploy),
    /// Change where a version listens; no new rollout.
    SetEndpoints {
        /// Which version.
        version: VersionName,
        /// How.
        change: EndpointChange,
    },
    /// Release the current pause.
    Promote {
        /// Skip everything that is left.
        full: bool,
        /// Also pass a running analysis, or the wait for evidence.
        skip_analysis: bool,
    },
    /// Back to stable.
    Abort,
    /// Start the aborted version again.
    Retry,
    /// Back to a former version.
    Undo {
        /// Which. Absent: stable during a rollout, otherwise the one before it.
        to: Option<VersionName>,
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
}

impl Command {
    /// Whether it only ever takes traffic away from a canary.
    pub const fn is_towards_stable(&self) -> bool {
        match self {
            Command::Abort | Command::Undo { .. } => true,
            Command::Deploy(_)
            | Command::SetEndpoints { .. }
            | Command::Promote { .. }
            | Command::Retry
            | Command::Pause
            | Command::Resume
            | Command::SetWeight { .. } => false,
        }
    }

    /// As it is typed, logged and stored.
    pub const fn verb(&self) -> &'static str {
        match self {
            Command::Deploy(_) => "deploy",
            Command::SetEndpoints { .. } => "endpoints",
            Command::Promote { full: false, .. } => "promote",
            Command::Promote { full: true, .. } => "promote --full",
            Command::Abort => "abort",
            Command::Retry => "retry",
            Command::Undo { .. } => "undo",
            Command::Pause => "pause",
            Command::Resume => "resume",
            Command::SetWeight { .. } => "set-weight",
        }
    }
}

/// A deploy.
#[derive(Debug, Clone, PartialEq)]
pub struct Deploy {
    /// Which version.
    pub version: VersionName,
    /// Where it listens. May be empty for a version whose endpoints are known.
    pub endpoints: Vec<EndpointUrl>,
    /// Steps of its own; they may name templates, never bring providers. Absent: the service's.
    pub steps: Option<Vec<Step>>,
    /// What to do when another rollout is going on.
    pub on_conflict: OnConflict,
    /// A number that counts up with the releases of a pipeline: a lower one is refused.
    pub sequence: Option<u64>,
    /// Start this version again at step 0 with a new plan, even if it is the one on trial.
    pub replace: bool,
}

impl Deploy {
    /// A deploy that says nothing but what and where.
    pub fn of(version: VersionName, endpoints: Vec<EndpointUrl>) -> Deploy {
        Deploy {
            version,
            endpoints,
            steps: None,
            on_conflict: OnConflict::default(),
            sequence: None,
            replace: false,
        }
    }
}

/// What a deploy does to another rollout that is going on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnConflict {
    /// Ends it and takes its place.
    #[default]
    Supersede,
    /// Leaves it alone: the deploy is refused.
    Refuse,
}

/// How a version's set of endpoints changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointChange {
    /// This is the whole set.
    Set(Vec<EndpointUrl>),
    /// These too.
    Add(Vec<EndpointUrl>),
    /// These no longer: they finish what they have.
    Drain(Vec<EndpointUrl>),
}

/// What the caller believes; when it does not hold, nothing is done. Unknown fields are refused: a misspelt one would let
/// everything pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Expect {
    /// The version on trial (stable, when none is).
    #[serde(default)]
    pub version: Option<VersionName>,
    /// The index of the step now executing.
    #[serde(default)]
    pub step: Option<usize>,
    /// The status' generation: `If-Match`.
    #[serde(default)]
    pub generation: Option<u64>,
}

/// Who asks, for the audit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Caller {
    /// The token's name, the socket's user, or `file`.
    pub actor: String,
    /// `viewer`, `deployer`, `approver`, `admin`, or empty for Serin itself.
    pub role: String,
    /// Where from: an address, `socket`, or `config`.
    pub source: String,
    /// Why, in their words.
    pub reason: Option<String>,
    /// The same key within 24 h does nothing and gets the same answer.
    pub idempotency_key: Option<String>,
}

impl Caller {
    /// The configuration file.
    pub fn file() -> Caller {
        Caller {
            actor: "file".to_owned(),
            source: "config".to_owned(),
            ..Caller::default()
        }
    }
}

/// What a command that was allowed has led to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Accepted {
    /// Whether a new rollout began (201 rather than 200).
    pub created: bool,
    /// Whether this is the stored answer to an earlier request with the same idempotency key.
    pub repeated: bool,
    /// Where the service stands now.
    pub status: Box<ServiceStatus>,
}

/// Which kind of refusal: what a client should make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RefusalKind {
    /// The state does not allow it: 409.
    Conflict,
    /// What the caller expected does not hold: 412.
    Precondition,
    /// There is no such service or version: 404.
    NotFound,
    /// What was asked makes no sense: 422.
    Invalid,
    /// The caller may not have that: 403.
    Forbidden,
    /// Not now: the state cannot be stored, or Serin is stopping: 503.
    Unavailable,
}

/// Something that was not done, why not, and what can be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Which kind.
    pub kind: RefusalKind,
    /// A word for programs: `wrongState`, `versionAborted`, `storeUnhealthy`, …
    pub code: String,
    /// One sentence for people.
    pub message: String,
    /// What would do instead, where one thing clearly would.
    pub hint: Option<String>,
    /// What can be done now.
    pub legal: Vec<Verb>,
}

impl Refusal {
    /// A refusal without hint.
    pub fn new(kind: RefusalKind, code: &str, message: impl Into<String>) -> Refusal {
        Refusal {
            kind,
            code: code.to_owned(),
            message: message.into(),
            hint: None,
            legal: Vec::new(),
        }
    }

    /// Says what would do instead.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Refusal {
        self.hint = Some(hint.into());
        self
    }

    /// Says what can be done now.
    #[must_use]
    pub fn legal(mut self, legal: Vec<Verb>) -> Refusal {
        self.legal = legal;
        self
    }
}
