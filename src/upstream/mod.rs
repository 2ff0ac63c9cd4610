//! Reaching a version: endpoints, balancing, pooled connections.
//!
//! What both planes share stands in `endpoint`, `version` and `live`; control publishes there, workers read. What only a
//! worker uses (`balance`, `pool`, `connect`) is `!Send` and never leaves its thread.

mod collector;
mod endpoint;
mod live;
mod version;

pub use collector::ServicesCollector;
pub use endpoint::{Endpoint, Health};
pub use live::{LiveService, Services, TripReport};
pub use version::{Target, Version};
