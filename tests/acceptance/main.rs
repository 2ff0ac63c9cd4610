//! The main job, end to end: a user's way through a canary lab, and what happens to it when something breaks.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod analysis;
mod argo;
mod bake;
mod client_errors;
mod crash;
mod disk;
mod earlier;
mod events;
mod exits;
mod faults;
mod judge;
mod lifecycle;
mod milestones;
mod notifications;
mod ranks;
mod reload;
mod replay;
mod store;
mod tls;
