//! The data plane: the life of one request.
//!
//! `listener` accepts, `admission` lets in, `arrival` asks a load balancer who the client is (`proxy_protocol`) and decrypts,
//! `connection` finds the protocol and serves it, `service` is the spine that a
//! request follows: `inbound` (is it safe?) -> `table` (which service?) -> `choose` (which version?) -> `headers` -> `forward` (which
//! endpoint, and what if it fails?) -> `body` (streaming back) -> `exchange` (what is recorded). `account` is what
//! `access_log` and `trace` are told when somebody observes. `worker` is the thread
//! all of that happens on. Nothing here knows of rollouts; control is met only at the shared objects in `upstream`.

mod access_log;
mod account;
mod admission;
mod apart;
mod arrival;
mod body;
mod choose;
mod closing;
mod connection;
mod detached;
mod exchange;
mod filters;
mod forward;
mod frames;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod gather;
mod grpc;
mod guard;
mod head_size;
mod headers;
mod inbound;
mod io;
mod leftovers;
mod listener;
mod no_content;
mod observers;
pub mod proxy_protocol;
mod received;
mod reply;
mod retry;
mod routes;
mod seen;
mod service;
mod share;
mod spare;
mod streams;
mod table;
mod timer;
pub mod tls;
mod too_large;
mod trace;
mod untouched;
mod upgrade;
mod websocket;
mod who;
mod windows;
mod withdrawn;
mod worker;

pub use access_log::{AccessLog, Writer};
pub use listener::{BindError, Socket, SocketFile, adopt, bind};
pub use observers::{Observers, Set};
pub use table::{Entry, Table};
pub use trace::Tracer;
pub use worker::{Inlet, Shared, Stop, WorkerParts, run};
