//! Reaching a version: endpoints, balancing, pooled connections.
//!
//! What both planes share stands in `endpoint`, `version` and `live`; control publishes there, workers read. What only a
//! worker uses (`balance`, `pool`, `connect`) is `!Send` and never leaves its thread. Who is in rotation is decided by
//! `health`, a pure machine; `rotation` and `active` are its hands, beside the workers.

mod active;
pub mod balance;
mod capacity;
mod check;
mod connect;
mod descriptors;
mod dns;
mod endpoint;
mod heads;
pub mod health;
mod live;
mod patient;
mod pool;
mod rotation;
mod scrape;
mod seats;
mod settings;
mod shared;
mod tls;
mod version;

pub use active::look_after;
pub use capacity::{Capacity, Place, Turn};
pub use check::{CheckError, check};
pub use connect::{ConnectError, LocalExecutor, is_local};
pub use descriptors::{Descriptor, Descriptors};
pub use dns::{Names, first_answers, resolve};
pub use endpoint::{Endpoint, Fault, Health};
pub use live::{LiveService, Services, TripReport};
pub use pool::{Connections, Lease, Members, Pools, Room, SendError};
pub use rotation::{Policy, Rotation};
pub use scrape::ServicesSource;
pub use seats::Seats;
pub use settings::setting;
pub use tls::{AnyCertificate, ClientTls};
pub use version::{Target, Version};
