//! Spans on their way to a collector: OTLP over HTTP, in JSON.
//!
//! Whoever serves requests only offers a span to a bounded queue; when that is full, or the collector does not take them, they
//! are dropped and counted. One task sends them in batches. What a request's span says is decided elsewhere.

use super::Causes;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use prometheus::IntCounter;
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};

/// Spans that may wait; about 1 MiB.
const QUEUE: usize = 4096;
/// Spans sent at once.
const BATCH: usize = 512;
/// How long a span waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long a collector may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a batch is sent when the collector asks for patience.
const TRIES: u32 = 3;

/// One finished request.
#[derive(Debug)]
pub struct Span {
    /// 16 bytes, not all zero.
    pub trace_id: [u8; 16],
    /// 8 bytes, not all zero.
    pub span_id: [u8; 8],
    /// The caller's span, if there was one.
    pub parent: Option<[u8; 8]>,
    /// The trace's flags as in `traceparent`: 1 sampled, 2 a random trace id.
    pub flags: u8,
    /// `tracestate`, as it came.
    pub trace_state: String,
    /// What was done, in few words.
    pub name: String,
    /// Nanoseconds since the Unix epoch.
    pub start: u64,
    /// Nanoseconds since the Unix epoch.
    pub end: u64,
    /// What is known of it.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// Why it failed.
    pub error: Option<&'static str>,
}

/// A value of an attribute.
#[derive(Debug)]
pub enum Attribute {
    /// Text.
    Text(String),
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
}

/// Where spans are offered. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spans {
    queue: mpsc::Sender<Span>,
    dropped: IntCounter,
}

impl Spans {
    /// Takes a span if there is room; never waits.
    pub fn offer(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.dropped.inc();
        }
    }
}

/// A collector.
#[derive(Debug, Clone)]
pub struct Collector {
    /// Where spans are posted.
    pub endpoint: String,
    /// Who may have signed its certificate; none: whom this system trusts.
    pub roots: Option<Arc<RootCertStore>>,
    /// Sent along.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The resource's `service.name`.
    pub service_name: String,
}

/// The task that sends; it ends when the last [`Spans`] is gone and the queue is empty.
#[derive(Debug)]
pub struct Exporter(JoinHandle<()>);

impl Exporter {
    /// Waits for what is queued to be sent, for a moment.
    pub async fn finished(self) {
        // It is dropped with the runtime if it takes longer.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.0).await;
    }
}

/// Starts sending to a collector. Must be called inside a runtime; a collector that is away is no error here.
pub fn start(collector: Collector, dropped: IntCounter) -> std::io::Result<(Spans, Exporter)> {
    let builder = HttpsConnectorBuilder::new();
    let builder = match &collector.roots {
        None => builder.with_provider_and_native_roots(ring::default_provider())?,
        Some(roots) => {
            let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(std::io::Error::other)?
                .with_root_certificates(Arc::clone(roots))
                .with_no_client_auth();
            builder.with_tls_config(config)
        }
    };
    let connector = builder.https_or_http().enable_http1().build();
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let (queue, waiting) = mpsc::channel(QUEUE);
    let spans = Spans {
        queue,
        dropped: dropped.clone(),
    };
    let sender = Sender {
        collector,
        client,
        dropped,
        failing: false,
    };
    Ok((spans, Exporter(tokio::spawn(sender.run(waiting)))))
}

struct Sender {
    collector: Collector,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    dropped: IntCounter,
    failing: bool,
}

impl Sender {
    async fn run(mut self, mut queue: mpsc::Receiver<Span>) {
        let mut batch = Vec::with_capacity(BATCH);
        while queue.recv_many(&mut batch, BATCH).await > 0 {
            let until = Instant::now() + LINGER;
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                match tokio::time::timeout_at(until, queue.recv_many(&mut batch, room)).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            self.send(&batch).await;
            batch.clear();
        }
    }

    async fn send(&mut self, batch: &[Span]) {
        let body = Bytes::from(export(&self.collector.service_name, batch).to_string());
        let mut last = String::new();
        for attempt in 1..=TRIES {
            match self.post(body.clone()).await {
                Ok(()) => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(endpoint = %self.collector.endpoint, "the trace collector takes spans again");
                    }
                    return;
                }
                Err((again, why)) => {
                    last = why;
                    if !again || attempt == TRIES {
                        break;
                    }
                    tokio::time::sleep(LINGER * attempt).await;
                }
            }
        }
        self.dropped
            .inc_by(u64::try_from(batch.len()).unwrap_or(u64::MAX));
        // Said once, not for each batch.
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(endpoint = %self.collector.endpoint, "the trace collector does not take spans, they are dropped: {last}");
        }
    }

    /// The error says whether it is worth trying again.
    async fn post(&self, body: Bytes) -> Result<(), (bool, String)> {
        let mut request = http::Request::post(&self.collector.endpoint)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("serin/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &self.collector.headers {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| (false, error.to_string()))?;
        let answered = async {
            let response = self
                .client
                .request(request)
                .await
                .map_err(|error| (true, Causes(&error).to_string()))?;
            let status = response.status();
            // Read to its end, so that the connection can be used again.
            let _ = Limited::new(response.into_body(), 1 << 20).collect().await;
            let busy = [
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::BAD_GATEWAY,
                StatusCode::SERVICE_UNAVAILABLE,
                StatusCode::GATEWAY_TIMEOUT,
            ];
            if status.is_success() {
                Ok(())
            } else {
                Err((busy.contains(&status), format!("HTTP {status}")))
            }
        };
        let late = |_| Err((true, "no answer in time".to_owned()));
        tokio::time::timeout(TIMEOUT, answered).await.unwrap_or_else(late)
    }
}

/// `ExportTraceServiceRequest` in OTLP's JSON: ids in hexadecimal, 64-bit numbers as text.
fn export(service_name: &str, spans: &[Span]) -> Value {
    let resource = [
        ("service.name", Attribute::Text(service_name.to_owned())),
        (
            "service.version",
            Attribute::Text(env!("CARGO_PKG_VERSION").to_owned()),
        ),
    ];
    json!({"resourceSpans": [{
        "resource": {"attributes": attributes(&resource)},
        "scopeSpans": [{
            "scope": {"name": "serin", "version": env!("CARGO_PKG_VERSION")},
            "spans": spans.iter().map(span).collect::<Vec<_>>(),
        }],
    }]})
}

fn span(span: &Span) -> Value {
    let mut value = json!({
        "traceId": hex(&span.trace_id),
        "spanId": hex(&span.span_id),
        "flags": span.flags, // the lowest eight bits are W3C's
        "name": span.name,
        "kind": 2, // SPAN_KIND_SERVER
        "startTimeUnixNano": span.start.to_string(),
        "endTimeUnixNano": span.end.to_string(),
        "attributes": attributes(&span.attributes),
        "status": span.error.map_or(json!({}), |why| json!({"code": 2, "message": why})),
    });
    if let Some(parent) = &span.parent {
        value["parentSpanId"] = Value::String(hex(parent));
    }
    if !span.trace_state.is_empty() {
        value["traceState"] = Value::String(span.trace_state.clone());
    }
    value
}

fn attributes(attributes: &[(&'static str, Attribute)]) -> Vec<Value> {
    let one = |(key, value): &(&'static str, Attribute)| {
        let value = match value {
            Attribute::Text(text) => json!({"stringValue": text}),
            Attribute::Number(number) => json!({"intValue": number.to_string()}),
            Attribute::Flag(flag) => json!({"boolValue": flag}),
        };
        json!({"key": key, "value": value})
    };
    attributes.iter().map(one).collect()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Span {
        Span {
            trace_id: [1; 16],
            span_id: [2; 8],
            parent: Some([3; 8]),
            flags: 3,
            trace_state: String::new(),
            name: "GET shop".to_owned(),
            start: 1,
            end: u64::MAX,
            attributes: vec![
                ("serin.attempts", Attribute::Number(2)),
                ("serin.rescued", Attribute::Flag(true)),
            ],
            error: Some("reset"),
        }
    }

    #[test]
    fn an_export_is_otlp_json() {
        let value = export("serin", &[sample()]);
        let span = &value["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!(span["traceId"], "01".repeat(16));
        assert_eq!(span["parentSpanId"], "03".repeat(8));
        assert_eq!(span["flags"], 3, "a number: it has 32 bits");
        assert_eq!(span["endTimeUnixNano"], u64::MAX.to_string());
        assert_eq!(span["status"]["code"], 2);
        assert_eq!(span["attributes"][0]["value"]["intValue"], "2");
        assert_eq!(span["attributes"][1]["value"]["boolValue"], true);
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_is_away_costs_spans_and_nothing_else() {
        let dropped = IntCounter::new("dropped", "help").unwrap();
        let collector = Collector {
            endpoint: "http://127.0.0.1:1/v1/traces".to_owned(),
            roots: None,
            headers: Vec::new(),
            service_name: "serin".to_owned(),
        };
        let (spans, Exporter(task)) = start(collector, dropped.clone()).unwrap();
        for _ in 0..QUEUE + 10 {
            spans.offer(sample());
        }
        assert_eq!(dropped.get(), 10, "a full queue drops at once");
        drop(spans);
        task.await.unwrap();
        assert_eq!(dropped.get(), u64::try_from(QUEUE).unwrap() + 10);
    }
}
