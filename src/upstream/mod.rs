//! Reaching a version: endpoints, balancing, pooled connections.
//!
//! What both planes share stands in `endpoint`, `version` and `live`; control publishes there, workers read. What only a
//! worker uses (`balance`, `pool`, `connect`) is `!Send` and never leaves its thread.

pub mod balance;
mod collector;
mod connect;
mod endpoint;
mod live;
mod pool;
mod version;

pub use collector::ServicesCollector;
pub use connect::{ConnectError, LocalExecutor};
pub use endpoint::{Endpoint, Health};
pub use live::{LiveService, Services, TripReport};
pub use pool::{Connections, Lease, Pools, SendError};
pub use version::{Target, Version};
