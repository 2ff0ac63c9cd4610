//! The data plane, driven from outside: the built binary, real sockets, a client that counts.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

#[path = "../support/mod.rs"]
mod support;

mod access_log;
mod bad_input;
mod clients;
mod dns;
mod health;
mod http2;
mod limits;
mod rewrite;
mod split;
mod streaming;
mod tls;
mod tracing;
mod upgrades;
