//! The words every other floor speaks: names, weights, units, time. Pure; imports nothing of ours.

mod endpoint;
mod names;
#[cfg(test)]
pub(crate) mod replay;
mod time;
mod units;
mod weight;

pub use endpoint::{BadEndpoint, EndpointUrl, Scheme};
pub use names::{BadName, Role, ServiceName, VersionName};
pub use time::{Clock, ManualClock, Timestamp};
pub use units::{BadUnit, ByteSize, Span, thousands};
pub use weight::{BadWeight, Weight};
