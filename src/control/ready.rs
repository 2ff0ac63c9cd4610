//! Whether an endpoint is ready: it answers a path with 2xx, or accepts a connection when there is no path.

use crate::{
    config::Check,
    upstream::{self, ClientTls, Endpoint},
};
use std::time::Duration;

/// How long one probe may take.
pub(crate) const PROBE: Duration = Duration::from_secs(2);

/// Probes an endpoint once, in the way in which requests reach it.
pub(crate) async fn probe(
    tls: &ClientTls,
    endpoint: &Endpoint,
    path: Option<&str>,
    timeout: Duration,
) -> Result<(), String> {
    let check = path.map_or(Check::Tcp, |path| Check::Http(path.to_owned()));
    let said = upstream::check(&endpoint.url, endpoint.address, tls, &check, timeout).await;
    said.map_err(|error| error.to_string())
}
