//! The data plane: the life of one request.
//!
//! `listener` accepts, `connection` finds the protocol and serves it, `service` is the spine that a request follows:
//! `inbound` (is it safe?) -> `table` (which service?) -> `choose` (which version?) -> `headers` -> `forward` (which
//! endpoint, and what if it fails?) -> `body` (streaming back) -> `exchange` (what is recorded). `worker` is the thread
//! all of that happens on. Nothing here knows of rollouts; control is met only at the shared objects in `upstream`.

mod body;
mod choose;
mod connection;
mod exchange;
mod forward;
mod headers;
mod inbound;
mod io;
mod listener;
mod reply;
mod seen;
mod service;
mod table;
mod timer;
mod worker;

pub use listener::{BindError, Socket, bind};
pub use table::{Entry, Table};
pub use worker::{Shared, Stop, WorkerParts, run};
