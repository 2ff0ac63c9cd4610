//! Whether an endpoint is ready: it answers a path with 2xx, or accepts a connection when there is no path.

use super::providers::{Question, fetch::Clients};
use crate::{
    config::Check,
    model::Scheme,
    upstream::{self, Endpoint},
};
use std::time::Duration;

/// How long one probe may take.
pub(crate) const PROBE: Duration = Duration::from_secs(2);

/// Probes an endpoint once.
pub(crate) async fn probe(
    clients: &Clients,
    endpoint: &Endpoint,
    path: Option<&str>,
    timeout: Duration,
) -> Result<(), String> {
    match (endpoint.url.scheme(), path) {
        (Scheme::Https, Some(path)) => {
            let question = Question {
                method: http::Method::GET,
                url: format!("https://{}{path}", endpoint.url.authority()),
                headers: Vec::new(),
                body: String::new(),
                timeout,
                insecure: false,
            };
            match clients.fetch(question).await? {
                (200..=299, _) => Ok(()),
                (status, _) => Err(format!("{path} answered {status}")),
            }
        }
        (Scheme::Http | Scheme::H2c | Scheme::Https | Scheme::Unix, path) => {
            let check = path.map_or(Check::Tcp, |path| Check::Http(path.to_owned()));
            upstream::check(&endpoint.url, endpoint.address, &check, timeout).await
        }
    }
}
