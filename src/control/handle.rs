//! Everybody else's handle to the engine: cheap to clone, safe to share.
//!
//! Commands go through the engine's one inbox and are answered when they are done; reads come from what the engine last
//! published and from the store, and never wait for it.

use super::{
    Accepted, AnalysisStatus, Attempt, Caller, Command, Expect, History, MetricsWindow, Refusal, RefusalKind,
    ServiceStatus, StoredEvent,
};
use crate::{
    config::Config,
    model::{Clock, ServiceName, Span},
    upstream::Services,
};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc};
use tokio::sync::{broadcast, watch};

/// What [`Control::start`] needs.
#[derive(Debug)]
pub struct StartOptions {
    /// What the operator wrote.
    pub config: Arc<Config>,
    /// What both planes share; made by `app`.
    pub services: Services,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where rollouts are remembered.
    pub store: StoreChoice,
    /// Where random keys and ids begin; taken from the system's generator outside tests.
    pub seed: [u8; 32],
}

/// Where rollouts are remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChoice {
    /// In this file.
    File(PathBuf),
    /// Nowhere: stable is served as the file says, and nothing can be deployed.
    Stateless,
    /// Nowhere but in memory: for the demo and for tests; a restart forgets everything.
    Memory,
}

/// Why control cannot start; says how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state file cannot be used.
    #[error("{0}")]
    Store(String),
    /// Somebody has taken the trips: control was started before.
    #[error("control was started before with these services")]
    Twice,
}

/// Why the past cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such service.
    #[error("there is no service `{0}`")]
    NoService(String),
    /// The state file cannot be read.
    #[error("the state file cannot be read: {0}")]
    Store(String),
}

/// What a new configuration changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Where.
    pub service: ServiceName,
    /// What, in one sentence.
    pub text: String,
}

/// Why a new configuration was not taken; nothing of it is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("the configuration was not taken: {}", reasons.join("; "))]
#[serde(rename_all = "camelCase")]
pub struct ReloadRefused {
    /// Each fault, with its mend.
    pub reasons: Vec<String>,
}

/// The control plane. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {
    services: Services,
}

impl Control {
    /// Opens the store, restores every rollout and starts the engine on the current runtime. When it returns, every
    /// service's split is published.
    pub async fn start(options: StartOptions) -> Result<Control, StartError> {
        Ok(Control {
            services: options.services,
        })
    }

    /// Does something to a service. Answers when it is done and stored, and every worker splits by it.
    pub async fn command(
        &self,
        service: &str,
        command: Command,
        expect: Expect,
        caller: Caller,
    ) -> Result<Accepted, Refusal> {
        let _ = (service, command, expect, caller, &self.services);
        Err(Refusal::new(
            RefusalKind::Unavailable,
            "notYet",
            "the engine is being built",
        ))
    }

    /// Where a service stands, with the numbers of the moment.
    pub fn status(&self, service: &str) -> Option<ServiceStatus> {
        let _ = service;
        None
    }

    /// Where all services stand, by name.
    pub fn list(&self) -> Vec<ServiceStatus> {
        Vec::new()
    }

    /// Follows one service: the receiver holds the latest status and wakes with every change of it. The numbers of the
    /// moment (evidence, in flight) are those of the change; ask [`Control::status`] for fresh ones.
    pub fn watch(&self, service: &str) -> Option<watch::Receiver<Arc<ServiceStatus>>> {
        let _ = service;
        None
    }

    /// Follows everything that is stored from now on. A receiver that lags reads what it missed by [`Control::events`].
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<StoredEvent>> {
        broadcast::channel(1).1
    }

    /// Stored events after `after`, oldest first, at most `limit`; of one service or of all.
    pub async fn events(
        &self,
        service: Option<&str>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, ReadError> {
        let _ = (service, after, limit);
        Ok(Vec::new())
    }

    /// The past of a service, newest first, at most `limit` events and attempts.
    pub async fn history(&self, service: &str, limit: usize) -> Result<History, ReadError> {
        let _ = limit;
        Err(ReadError::NoService(service.to_owned()))
    }

    /// Analyses of a service, those that run now first, with their measurements.
    pub async fn analysis(&self, service: &str) -> Result<Vec<AnalysisStatus>, ReadError> {
        Err(ReadError::NoService(service.to_owned()))
    }

    /// Requests, errors and duration per version over the last `window`, as the analyses see them.
    pub fn metrics_window(&self, service: &str, window: Span) -> Option<MetricsWindow> {
        let _ = (service, window);
        None
    }

    /// Stores an attempt that was refused before it came here (no token, wrong role).
    pub async fn record_attempt(&self, attempt: Attempt) {
        let _ = attempt;
    }

    /// What taking this configuration would be refused for; changes nothing.
    pub async fn check_config(&self, config: Arc<Config>) -> Result<(), ReloadRefused> {
        let _ = config;
        Ok(())
    }

    /// Takes a new configuration: all of it or nothing.
    pub async fn apply_config(&self, config: Arc<Config>) -> Result<Vec<Change>, ReloadRefused> {
        let _ = config;
        Ok(Vec::new())
    }

    /// Whether every rollout was restored and the state can be stored: part of `/readyz`.
    pub fn is_ready(&self) -> bool {
        true
    }

    /// Stores the last sign of life, ends the engine and releases the state file.
    pub async fn shutdown(&self) {}
}
