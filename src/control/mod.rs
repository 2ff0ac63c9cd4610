//! The life of one rollout: from a deploy or a changed file to the version being stable or pulled back.
//!
//! One task, the engine, owns all rollouts: it waits (for commands, trips, timers, measurements, probes), stores what
//! happened, moves the pure machine by it, and publishes what that means to the shared objects of `upstream`. [`Control`]
//! is everybody else's handle to it. Requests never wait for anything here.

mod alarm;
mod client_errors;
mod command;
mod commands;
mod config_block;
mod engine;
mod gate;
mod handle;
mod hard_failure;
mod judging;
mod keeping;
mod keys;
mod ledger;
mod managed;
mod notify;
mod observe;
mod order;
mod perform;
mod providers;
mod raising;
mod ranks;
mod reach;
mod ready;
mod recorder;
mod recordings;
mod registry;
mod report;
mod samples;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod together;

pub use command::{
    Accepted, Caller, Command, Deploy, EndpointChange, Expect, OnConflict, Refusal, RefusalKind,
};
pub use handle::{
    Change, Control, OpenStore, ReadError, ReloadRefused, StartError, StartOptions, StoreChoice,
};
pub use recordings::{Recording, Recordings, StableUnits, StateFile, StretchBytes, Unrecorded};
pub use status::{
    AbortStatus, AlarmStatus, AnalysisStatus, Attempt, EndpointStatus, EvidenceStatus, History, MetricStatus,
    MetricsWindow, NotificationTest, Observed, PausedStatus, RolloutStatus, ServiceJudge, ServiceJudges,
    ServiceStatus, StepStatus, StoredEvent, VersionState, VersionStatus, VersionWindow,
};
