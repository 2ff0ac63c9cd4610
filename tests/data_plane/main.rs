//! The data plane, driven from outside: the built binary, real sockets, a client that counts.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall fail")]

#[path = "../support/mod.rs"]
mod support;

mod access_log;
mod bad_input;
mod checks;
mod clients;
mod descriptors;
mod differential;
mod dns;
mod ejection;
mod forwarded;
mod hard_failure;
mod health;
mod http2;
mod lifecycle;
mod limits;
mod metrics;
mod pairs;
mod protocols;
mod proxy_protocol;
mod retries;
mod rewrite;
mod split;
mod streaming;
mod systemd;
mod timeouts;
mod tls;
mod tracing;
mod trust;
mod unix;
mod upgrades;
mod upstream_tls;
