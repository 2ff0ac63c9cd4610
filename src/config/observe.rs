//! `accessLog` and `tracing`: what is told about each request, and to whom.

use super::cx::Cx;
use super::decode::Located;
use super::secret::Redacted;
use super::service::header_name;
use super::upstream_tls::ca_of;
use crate::model::Weight;
use http::{HeaderName, HeaderValue};
use rustls::RootCertStore;
use serde::Deserialize;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

/// One line for each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// How a line looks.
    pub format: LogFormat,
    /// Where lines go.
    pub path: LogPath,
    /// The share of requests that went well to log.
    pub sample: Weight,
    /// Whether queries are logged.
    pub query: bool,
    /// Request fields to log.
    pub headers: Vec<HeaderName>,
}

/// How a line of the access log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One object per line.
    Json,
    /// The combined log format of Apache and nginx, followed by `key=value`.
    Clf,
}

/// Where the access log is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPath {
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// Spans for a collector that speaks OTLP over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Otlp {
    /// The whole address that spans are posted to.
    pub endpoint: String,
    /// Who may have signed its certificate; none: whom this system trusts.
    pub ca: Option<Authorities>,
    /// Sent along.
    pub headers: Vec<(HeaderName, Redacted)>,
    /// The share of requests without a parent that are traced.
    pub sample: Weight,
    /// The resource's `service.name`.
    pub service_name: String,
}

/// Authorities as their file held them when the configuration was read.
#[derive(Debug, Clone)]
pub struct Authorities(pub Arc<RootCertStore>);

impl PartialEq for Authorities {
    fn eq(&self, other: &Self) -> bool {
        self.0.roots == other.0.roots
    }
}

impl Eq for Authorities {}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AccessLogConfig {
    /// `json` or `clf`. Absent: json.
    format: Option<FormatConfig>,
    /// `stdout`, or a file relative to this one. Absent: stdout.
    path: Option<String>,
    /// The share of requests that went well to log; what failed, was refused or was rescued is always logged. Absent: 100%.
    sample: Option<Weight>,
    /// Whether queries are logged. Absent: paths alone.
    #[serde(default)]
    query: bool,
    /// Request fields to log. Absent: none.
    #[serde(default)]
    headers: Vec<Located<String>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FormatConfig {
    Json,
    Clf,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TracingConfig {
    /// Where spans go.
    otlp: OtlpConfig,
    /// The share of requests without a sampled or unsampled parent that are traced. Absent: 100%.
    sample_ratio: Option<Weight>,
    /// The resource's `service.name`. Absent: serin.
    service_name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OtlpConfig {
    /// A collector's OTLP/HTTP address; `/v1/traces` is added when it has no path.
    endpoint: String,
    /// Sent with every export; for an API key write `${ENV}`. Absent: none.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// PEM: who may have signed its certificate. Absent: the authorities that this system trusts.
    ca: Option<String>,
}

pub(super) fn access_log(config: &AccessLogConfig, cx: &mut Cx) -> AccessLog {
    let mut headers = Vec::new();
    for Located { path, value } in &config.headers {
        if let Some(name) = header_name(value, path, cx) {
            if ["authorization", "proxy-authorization", "cookie"].contains(&name.as_str()) {
                cx.warn(path, format!("`{name}` will stand in the log in clear text"), "");
            }
            headers.push(name);
        }
    }
    if config.sample.is_some_and(Weight::is_zero) {
        let hint = "only failures will be logged; remove accessLog to log nothing";
        cx.warn(
            "accessLog.sample",
            "no request that goes well will be logged",
            hint,
        );
    }
    AccessLog {
        format: match config.format {
            Some(FormatConfig::Json) | None => LogFormat::Json,
            Some(FormatConfig::Clf) => LogFormat::Clf,
        },
        path: match config.path.as_deref() {
            None | Some("stdout" | "-") => LogPath::Stdout,
            Some("") => {
                cx.error("accessLog.path", "the path is empty", "write stdout or a file");
                LogPath::Stdout
            }
            Some(file) => LogPath::File(cx.resolve(file)),
        },
        sample: config.sample.unwrap_or(Weight::percent(100)),
        query: config.query,
        headers,
    }
}

pub(super) fn tracing(config: &TracingConfig, cx: &mut Cx) -> Otlp {
    let text = &config.otlp.endpoint;
    let endpoint = text.parse::<http::Uri>().ok().filter(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.query().is_none()
    });
    if endpoint.is_none() {
        cx.error(
            "tracing.otlp.endpoint",
            format!("`{text}` is not a collector's address"),
            "write for example http://127.0.0.1:4318",
        );
    }
    let whole = |uri: http::Uri| {
        if uri.path().trim_end_matches('/').is_empty() {
            format!("{}/v1/traces", text.trim_end_matches('/'))
        } else {
            text.clone()
        }
    };
    let headers = sent_headers(&config.otlp.headers, "tracing.otlp.headers", cx);
    let ca = ca_of(config.otlp.ca.as_deref(), (text, false), "tracing.otlp", cx);
    Otlp {
        ca: ca.and_then(|ca| ca.read().ok()).map(Authorities),
        endpoint: endpoint.map(whole).unwrap_or_default(),
        headers,
        sample: config.sample_ratio.unwrap_or(Weight::percent(100)),
        service_name: config.service_name.clone().unwrap_or_else(|| "serin".to_owned()),
    }
}

/// Fields that are sent along with requests of our own.
pub(super) fn sent_headers(
    written: &BTreeMap<String, String>,
    path: &str,
    cx: &mut Cx,
) -> Vec<(HeaderName, Redacted)> {
    let mut headers = Vec::new();
    for (name, value) in written {
        let path = format!("{path}.{name}");
        if HeaderValue::from_str(value).is_err() {
            cx.error(
                &path,
                "this is not a header's value",
                "write one line of visible characters",
            );
        } else if let Some(name) = header_name(name, &path, cx) {
            headers.push((name, Redacted::new(value)));
        }
    }
    headers
}
