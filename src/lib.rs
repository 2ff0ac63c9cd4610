//! Serin: an HTTP reverse proxy that splits traffic between a stable and a canary version of a service, measures
//! both itself, and promotes or rolls back by itself.
//!
//! This page is the map. Two planes that never import each other meet at three shared objects on lower floors: the
//! [`split::SplitCell`] (control writes weights, the proxy reads them), the `metrics::VersionMetrics` (the proxy
//! writes outcomes, control reads them) and the upstream pools (control publishes endpoints, the proxy reads them).
//!
//! ```text
//! cli                                        floor 9   words for humans
//! app                                        floor 8   builds, reloads, stops everything
//! admin                                      floor 7   REST API, events, dashboard
//! proxy (data plane)  ||  control (rollouts) floor 6   no import either way
//! upstream                                   floor 5   reaching a version
//! config    metrics    telemetry   threads   floor 4   what is asked, counted, said; who comes first
//! rollout                                    floor 3 ┐
//! analysis                                   floor 2 │ pure: no clock, socket, file, task or dice
//! split   route   stats                      floor 1 │ of their own; everything is an argument
//! model                                      floor 0 ┘
//! ```
//!
//! Imports go down only; siblings on a floor never import each other. `tests/tidy.rs` checks that.
//!
//! **A request**: accept -> protocol -> load the table once -> route -> tripped? force? sticky? exact weight names the
//! version -> an endpoint of that version -> headers -> send, stream back -> record when the body ends or is dropped.
//!
//! **A rollout**: config or `deploy` -> plan -> the engine waits -> observe (snapshot, provider) -> the event is stored
//! -> `transition` -> effects performed (each safe to repeat) -> the split cell is swapped -> the next request sees it
//! -> watchers are told.

pub mod admin;
pub mod analysis;
pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod metrics;
pub mod model;
pub mod proxy;
pub mod rollout;
pub mod route;
pub mod split;
pub mod stats;
pub mod telemetry;
pub mod threads;
pub mod upstream;
