//! Who is asked for a measurement, and what an answer can be.
//!
//! `serin` reads our own counters and answers at once; `prometheus` and `web` go out over [`Outside`], which tests
//! replace. Judging an answer is `analysis::Conditions`' business, not ours.

pub(crate) mod fetch;
pub(crate) mod prometheus;
pub(crate) mod serin;
pub(crate) mod web;

use crate::{
    analysis::{Args, BadArgs, JsonPath, PrometheusQuery, WebQuery},
    model::Span,
    upstream::{ClientTls, Endpoint},
};
use futures_util::future::BoxFuture;
use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

/// How long a provider may take when nothing is written.
pub(crate) const TIMEOUT: Span = Span::secs(30);

/// What a provider answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// One number.
    Number(f64),
    /// A list of numbers.
    Vector(Vec<f64>),
    /// A JSON value.
    Json(serde_json::Value),
    /// Too few requests to say anything.
    TooFew,
}

/// An answer, and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reply {
    pub(crate) answer: Answer,
    /// For people: the counts behind the number, a provider's warnings.
    pub(crate) note: Option<String>,
}

impl Answer {
    /// Shortened for people.
    pub(crate) fn shown(&self) -> Option<String> {
        let text = match self {
            Answer::Number(value) => format!("{value}"),
            Answer::Vector(values) => format!("{values:?}"),
            Answer::Json(value) => value.to_string(),
            Answer::TooFew => return None,
        };
        Some(shorten(&text, 200))
    }
}

/// At most `limit` characters.
pub(crate) fn shorten(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// One HTTP request to a provider, its arguments filled in.
#[derive(Clone, PartialEq)]
pub(crate) struct Question {
    pub(crate) method: http::Method,
    pub(crate) url: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    pub(crate) timeout: Duration,
    /// The authorities that may have signed the certificate; none: those that the system trusts.
    pub(crate) ca: Option<PathBuf>,
    pub(crate) insecure: bool,
}

impl fmt::Debug for Question {
    /// Without headers and query: they may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url.split('?').next().unwrap_or_default();
        write!(f, "{} {url}", self.method)
    }
}

/// The network, as control uses it; tests bring their own.
pub(crate) trait Outside: Send + Sync + fmt::Debug {
    /// Whether an endpoint is ready: it answers `path` with 2xx, or accepts a connection when there is none.
    fn probe(
        &self,
        tls: Arc<ClientTls>,
        endpoint: &Arc<Endpoint>,
        path: Option<&str>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<(), String>>;

    /// Asks.
    fn fetch(&self, question: Question) -> BoxFuture<'static, Result<Fetched, String>>;
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// `Retry-After`, as it was written.
    pub(crate) retry_after: Option<String>,
}

/// The real network.
#[derive(Debug, Default)]
pub(crate) struct Network {
    clients: fetch::Clients,
}

impl Outside for Network {
    fn probe(
        &self,
        tls: Arc<ClientTls>,
        endpoint: &Arc<Endpoint>,
        path: Option<&str>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<(), String>> {
        let (endpoint, path) = (Arc::clone(endpoint), path.map(str::to_owned));
        Box::pin(async move { super::ready::probe(&tls, &endpoint, path.as_deref(), timeout).await })
    }

    fn fetch(&self, question: Question) -> BoxFuture<'static, Result<Fetched, String>> {
        let clients = self.clients.clone();
        Box::pin(async move { clients.fetch(question).await })
    }
}

/// Headers with their arguments filled in.
fn headers(
    headers: &std::collections::BTreeMap<String, String>,
    args: &Args,
) -> Result<Vec<(String, String)>, BadArgs> {
    headers
        .iter()
        .map(|(name, value)| Ok((name.clone(), args.substitute(value)?)))
        .collect()
}

/// An external provider's question, ready to be asked any number of times.
#[derive(Debug, Clone)]
pub(crate) enum External {
    /// A Prometheus server.
    Prometheus(Question),
    /// Any HTTP endpoint, and the part of its answer that counts.
    Web(Question, Option<JsonPath>),
}

impl External {
    /// A question to Prometheus.
    pub(crate) fn prometheus(query: &PrometheusQuery, args: &Args) -> Result<External, String> {
        prometheus::question(query, args)
            .map(External::Prometheus)
            .map_err(|error| error.to_string())
    }

    /// A question to a web endpoint.
    pub(crate) fn web(query: &WebQuery, args: &Args) -> Result<External, String> {
        let path = query.json_path.as_deref().map(JsonPath::parse).transpose()?;
        let question = web::question(query, args)?;
        Ok(External::Web(question, path))
    }

    /// Asks.
    pub(crate) async fn ask(self, outside: std::sync::Arc<dyn Outside>) -> Result<Reply, String> {
        match self {
            External::Prometheus(question) => {
                let fetched = outside.fetch(question).await?;
                prometheus::parse(fetched.status, &fetched.body)
            }
            External::Web(question, path) => {
                let fetched = outside.fetch(question).await?;
                web::parse(fetched.status, &fetched.body, path.as_ref())
            }
        }
    }
}
