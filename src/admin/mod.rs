//! The REST API: what people, pipelines and the command line ask of a running Serin.
//!
//! A request's way: `listen` accepts and bounds it -> `gate` checks `Host`, token and role -> a handler (`read`, `write`,
//! `events`, `operate`) asks [`control::Control`](crate::control::Control) -> an answer, or a [`Problem`]. `routes` is the
//! one table of paths; `openapi` describes it and a test compares the two. Nothing is decided here.

mod auth;
mod body;
mod connections;
mod events;
mod gate;
mod goal;
mod host;
mod listen;
mod openapi;
mod operate;
mod page;
mod probes;
mod problem;
mod read;
mod routes;
mod schema;
mod stall;
#[cfg(test)]
mod tests;
mod wire;
mod write;

pub use auth::{Identity, Peer, Tokens, hash_of};
#[cfg(test)]
pub(crate) use goal::tests as fixtures;
pub use goal::{BadGoal, Goal, Standing, Wait};
pub use host::Hosts;
pub use listen::{BindError, Listeners, Socket};
pub use openapi::document;
pub use operate::{Answer, Operator};
pub use probes::Probes;
pub use problem::Problem;
pub use wire::{
    ConfigCheck, ConfigText, DeployRequest, EndpointsRequest, EndpointsVerb, PromoteRequest, ReasonRequest,
    Reloaded, ServiceList, UndoRequest, VerbRequest, WeightRequest,
};

use crate::{control::Control, metrics::Registry, model::Clock};
use axum::Router;
use std::sync::Arc;
use tokio::sync::{Mutex, Semaphore, watch};

/// How many clients may follow events at once.
const FOLLOWERS: usize = 64;

/// What the REST API is made of; `app` fills it in.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The rollouts.
    pub control: Control,
    /// What a scrape reads.
    pub metrics: Registry,
    /// What the probes say.
    pub probes: Probes,
    /// Who may do what.
    pub tokens: Tokens,
    /// What it may be called besides IP addresses and `localhost`.
    pub hosts: Hosts,
    /// Configuration: shown, checked, reloaded.
    pub operator: Arc<dyn Operator>,
    /// The time, for attempts refused at the door.
    pub clock: Arc<dyn Clock>,
    /// Connections at once, at each address.
    pub connections: usize,
}

/// Returns when Serin stops; a sender that is gone means the same.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// The REST API. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admin {
    parts: Arc<Parts>,
    followers: Arc<Semaphore>,
    /// Whose scrape is being written.
    scrapes: Arc<Mutex<()>>,
    recorded: Arc<gate::Recorder>,
    /// Becomes true when everything that waits should end.
    stopping: watch::Receiver<bool>,
}

impl Admin {
    /// Builds it; nothing listens yet. `stopping` becomes true when long polls, event streams and servers should end.
    pub fn new(parts: Parts, stopping: watch::Receiver<bool>) -> Admin {
        Admin {
            parts: Arc::new(parts),
            followers: Arc::new(Semaphore::new(FOLLOWERS)),
            scrapes: Arc::default(),
            recorded: Arc::default(),
            stopping,
        }
    }

    /// Every route of the admin address and socket. Requests carry a [`Peer`] as extension; one without is nobody.
    pub fn router(&self) -> Router {
        routes::router(self, &routes::table(), true)
    }

    /// The same where the client has checked by a certificate whom it talks to: any name will do.
    pub fn router_over_tls(&self) -> Router {
        routes::router(self, &routes::table(), false)
    }

    /// The routes of the telemetry address: reads that show no configuration and change nothing.
    pub fn telemetry_router(&self) -> Router {
        let mut table = routes::table();
        table.retain(|route| route.telemetry);
        routes::router(self, &table, false)
    }

    /// Serves until `stopping`, then finishes what is in flight (bounded) and removes the socket.
    pub async fn serve(&self, listeners: Listeners) {
        listen::serve(self, listeners).await;
    }
}
