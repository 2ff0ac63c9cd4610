//! What a configuration means once it has been checked: plain types, every default filled in.
//!
//! `proxy`, `control`, `upstream` and `admin` build on these; what an operator may write is next door, one file per
//! concern. Nothing here is optional because it was not written, only because absence means something.

use super::dns::Dns;
use super::filters::Filters;
use super::health::{Ejection, Health};
use super::notifications::Notification;
use super::observe::{AccessLog, Otlp};
use super::problem::Problem;
use super::secret::Redacted;
use super::tls::Tls;
use super::upstream_tls::UpstreamTls;
use crate::analysis::{AlarmRule, Template};
use crate::model::{ByteSize, EndpointUrl, ServiceName, Span, VersionName, Weight};
use crate::rollout::Plan;
use crate::route::{RouteMatch, Router, Rule};
use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

/// Everything one Serin does.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where requests come in; at least one, names are unique.
    pub listeners: Vec<Listener>,
    /// The REST API.
    pub admin: Admin,
    /// The read-only address; none: only at `admin`.
    pub telemetry: Option<SocketAddr>,
    /// Where rollouts are remembered.
    pub state: StateStore,
    /// One line for each request; none: no access log.
    pub access_log: Option<AccessLog>,
    /// Where spans go; none: nothing is traced.
    pub tracing: Option<Otlp>,
    /// Who is told what happens; names are unique.
    pub notifications: Vec<Arc<Notification>>,
    /// How endpoints' names are resolved.
    pub dns: Dns,
    /// What is served, in the order of the files; names are unique.
    pub services: Vec<Arc<Service>>,
    /// Every template, by name; the built-in judge is among them.
    pub templates: BTreeMap<String, Arc<Template>>,
    /// Where it listens in fact, once it does, and what for.
    pub(super) bound: Vec<(String, SocketAddr)>,
    /// What was written, without secrets.
    pub(super) shown: serde_json::Value,
    /// Keys that are understood and that `serve` cannot do yet.
    pub(super) not_yet: Vec<Problem>,
}

impl Config {
    /// The service of this name.
    pub fn service(&self, name: &str) -> Option<&Arc<Service>> {
        self.services.iter().find(|service| service.name.as_str() == name)
    }

    /// What was written that `serve` cannot do yet: it refuses to start with these.
    pub fn not_yet(&self) -> &[Problem] {
        &self.not_yet
    }

    /// What is wrong with the certificate files that it names; at the start each of these is a fault.
    pub fn unreadable_certificates(&self) -> Vec<Problem> {
        let listeners = self.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let served = listeners.chain(&self.admin.tls).flat_map(|tls| &tls.certificates);
        let shown = self
            .services
            .iter()
            .flat_map(|service| service.upstream_tls.unreadable());
        served
            .filter_map(|files| files.read().err())
            .chain(shown)
            .collect()
    }

    /// The configuration as it was written, all files together, without secrets: for `GET /v1/config`.
    pub fn redacted_json(&self) -> &serde_json::Value {
        &self.shown
    }

    /// All rules, each leading to the index of its service in [`Config::services`].
    pub fn router(&self) -> Router<usize> {
        Router::new(self.services.iter().enumerate().map(|(index, service)| Rule {
            matches: service.matches.clone(),
            target: index,
        }))
    }
}

/// An address that requests come in at.
#[derive(Debug, Clone)]
pub struct Listener {
    /// How logs and `match` call it.
    pub name: String,
    /// Where it is bound.
    pub address: BindAddress,
    /// Who may connect to a Unix socket; none: whom the umask lets.
    pub socket_mode: Option<u32>,
    /// What happens to forwarded fields.
    pub mode: Mode,
    /// Whether versions are told by `Forwarded` (RFC 7239) as well.
    pub forwarded: bool,
    /// Peers whose forwarded fields are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whose connections begin by saying who the client is; none: a connection's peer is its client.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// What TLS is served with; none: plain HTTP.
    pub tls: Option<Tls>,
    /// The defaults with what the listener says.
    pub timeouts: Timeouts,
    /// What one connection or request may use up.
    pub limits: ListenerLimits,
}

/// Who says by the PROXY protocol whose connections they bring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Networks of load balancers; of no meaning at a Unix socket.
    pub from: Vec<IpNet>,
}

impl ProxyProtocol {
    /// Whether a peer may say who its client is. Who can connect to a Unix socket may: its mode says who that is.
    pub fn believes(&self, peer: Option<IpAddr>) -> bool {
        peer.is_none_or(|ip| {
            let ip = ip.to_canonical();
            self.from.iter().any(|net| net.contains(&ip))
        })
    }
}

/// A place to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindAddress {
    /// IP address and port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BindAddress::Tcp(address) => write!(f, "{address}"),
            BindAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What a listener does with `X-Forwarded-*` and `Forwarded` of peers that are not trusted proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They are overwritten: the peer is the client.
    Edge,
    /// They are appended to: the peer is a proxy next door.
    Sidecar,
}

/// How long each kind of waiting may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To reach an endpoint; 1s.
    pub connect: Span,
    /// From accept to a client's first byte; 10s.
    pub first_byte: Span,
    /// For a whole request head; 10s.
    pub request_headers: Span,
    /// Between two pieces of a request body; 30s.
    pub body_idle: Span,
    /// From the request sent to the response head (interim ones do not count); 60s.
    pub response_headers: Span,
    /// Between two pieces of a response; 5m.
    pub stream_idle: Span,
    /// Silence on an upgraded connection; 1h.
    pub upgrade_idle: Span,
    /// The whole request; none: no limit.
    pub request: Option<Span>,
    /// A client that reads nothing; 30s.
    pub write_stall: Span,
    /// An idle client connection; 60s.
    pub keep_alive: Span,
    /// What is in flight when stopping or aborting; 30s.
    pub drain: Span,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Span::secs(1),
            first_byte: Span::secs(10),
            request_headers: Span::secs(10),
            body_idle: Span::secs(30),
            response_headers: Span::secs(60),
            stream_idle: Span::secs(300),
            upgrade_idle: Span::secs(3600),
            request: None,
            write_stall: Span::secs(30),
            keep_alive: Span::secs(60),
            drain: Span::secs(30),
        }
    }
}

/// What clients may use up at one listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerLimits {
    /// The largest request body; none: no limit.
    pub body: Option<ByteSize>,
    /// Header fields in one request; 100.
    pub headers: u32,
    /// Bytes of one request head; 64KiB.
    pub header_bytes: ByteSize,
    /// HTTP/2 streams at once on one connection; 200.
    pub streams: u32,
    /// HTTP/2 streams that a client may reset on one connection within a second; 200.
    pub resets: u32,
    /// Bytes of a request body on one HTTP/2 stream that may wait for a version; 256KiB.
    pub stream_window: ByteSize,
    /// The same of all streams of one connection together; 1MiB.
    pub connection_window: ByteSize,
    /// Client connections at once; none: as many as the process may have files open for.
    pub connections: Option<u32>,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        ListenerLimits {
            body: None,
            headers: 100,
            header_bytes: ByteSize::kib(64),
            streams: 200,
            resets: 200,
            stream_window: ByteSize::kib(256),
            connection_window: ByteSize::kib(1024),
            connections: None,
        }
    }
}

/// What requests may use up at each version of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest request body; none: the listener's limit.
    pub body: Option<ByteSize>,
    /// Requests in flight; 1024.
    pub requests: u32,
    /// Requests waiting for a connection; 1024.
    pub pending: u32,
    /// Connections to its endpoints; 1024.
    pub connections: u32,
    /// Requests on one connection, which is closed after the last; none: no limit.
    pub requests_per_connection: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body: None,
            requests: 1024,
            pending: 1024,
            connections: 1024,
            requests_per_connection: None,
        }
    }
}

/// When a request that failed at one endpoint is tried at another of the same version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// Retries as a share of requests; 20%. Ten a second are always allowed.
    pub budget: Weight,
    /// How long one attempt may wait for its response head; none: `timeouts.responseHeaders`.
    pub per_try: Option<Span>,
}

impl Default for Retries {
    fn default() -> Self {
        Retries {
            budget: Weight::percent(20),
            per_try: None,
        }
    }
}

/// The REST API.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Where it is served; 127.0.0.1:9900.
    pub address: SocketAddr,
    /// The local socket that gives its owner full rights; `serin.sock` beside the file.
    pub socket: PathBuf,
    /// Who may do what over TCP.
    pub tokens: Vec<Token>,
    /// Names besides IP addresses and `localhost` that requests over plain HTTP may call it by, in lower case.
    pub hosts: Vec<String>,
    /// Plain HTTP off loopback was asked for.
    pub insecure: bool,
    /// What TLS is served with; none: plain HTTP.
    pub tls: Option<Tls>,
}

/// Somebody who may use the REST API.
#[derive(Debug, Clone)]
pub struct Token {
    /// Who it is, in the audit.
    pub name: String,
    /// What they may do.
    pub role: TokenRole,
    /// Where they may do it; none: everywhere.
    pub services: Option<Vec<ServiceName>>,
    /// SHA-256 of the secret; the secret itself is not kept.
    pub hash: TokenHash,
}

/// SHA-256 of a token; compare it in constant time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenHash(pub [u8; 32]);

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What a token allows; each role includes the ones before it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum TokenRole {
    /// Reads.
    Viewer,
    /// Deploys, aborts, waits.
    Deployer,
    /// Promotes, resumes, undoes.
    Approver,
    /// Full promotion, skipped analysis, weights, reload.
    Admin,
}

/// Where rollouts are remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateStore {
    /// The SQLite file; `serin.db` beside the configuration.
    pub path: PathBuf,
    /// Finished rollouts kept for each service; 100.
    pub keep_rollouts: u32,
    /// How long events are kept; 90d.
    pub keep_events: Span,
    /// What the file may hold before the recordings of older rollouts go; 1GiB. Those of each service's last rollout stay.
    pub keep_recordings: ByteSize,
}

/// A service: what requests it takes and how its versions change.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Alternatives; none at all: every request.
    pub matches: Vec<RouteMatch>,
    /// What is changed in the requests of each alternative (of every request, when there is none); empty: nothing.
    pub filters: Vec<Option<Arc<Filters>>>,
    /// The initial stable version (design section 8.1).
    pub stable: Option<VersionBlock>,
    /// The initial canary; none until somebody deploys.
    pub canary: Option<VersionBlock>,
    /// What keeps a user on one version; none: each request by itself.
    pub sticky: Option<Sticky>,
    /// How testers choose a version; none: they cannot.
    pub force: Option<Force>,
    /// How `https://` endpoints are talked to.
    pub upstream_tls: UpstreamTls,
    /// What counts as the version's failure.
    pub failure: FailureRule,
    /// When a new version may get its first request.
    pub ready: Ready,
    /// Active health checks of every endpoint; none: requests alone tell.
    pub health: Option<Health>,
    /// How an endpoint that fails is left out.
    pub ejection: Ejection,
    /// How long a new or recovered endpoint takes to get its full share; none: it has it at once.
    pub slow_start: Option<Span>,
    /// Which of a version's endpoints gets a request.
    pub balance: Balance,
    /// What happens when a whole version stops answering.
    pub hard_failure: HardFailure,
    /// How much of the service may fail, whichever version answers; none: nobody is told.
    pub alarm: Option<AlarmRule>,
    /// Which endpoints a deploy may name.
    pub deploy: DeployRule,
    /// What the service says; [`TimeoutsSet::over`] the listener's gives what holds for a request.
    pub timeouts: TimeoutsSet,
    /// How a new version is brought in, as a deploy would take it now.
    pub plan: Plan,
    /// The templates that `plan` names.
    pub templates: Vec<Arc<Template>>,
    /// For each version.
    pub limits: Limits,
    /// Within a version.
    pub retries: Retries,
    /// Protocols that connections may switch to.
    pub upgrades: Arc<[Box<str>]>,
}

/// A version and where it can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionBlock {
    /// The release name.
    pub version: VersionName,
    /// At least one.
    pub endpoints: Vec<EndpointUrl>,
}

/// Which timeouts somebody has set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeoutsSet {
    /// See [`Timeouts::connect`].
    pub connect: Option<Span>,
    /// See [`Timeouts::first_byte`].
    pub first_byte: Option<Span>,
    /// See [`Timeouts::request_headers`].
    pub request_headers: Option<Span>,
    /// See [`Timeouts::body_idle`].
    pub body_idle: Option<Span>,
    /// See [`Timeouts::response_headers`].
    pub response_headers: Option<Span>,
    /// See [`Timeouts::stream_idle`].
    pub stream_idle: Option<Span>,
    /// See [`Timeouts::upgrade_idle`].
    pub upgrade_idle: Option<Span>,
    /// See [`Timeouts::request`]; the inner none is `off`.
    pub request: Option<Option<Span>>,
    /// See [`Timeouts::write_stall`].
    pub write_stall: Option<Span>,
    /// See [`Timeouts::keep_alive`].
    pub keep_alive: Option<Span>,
    /// See [`Timeouts::drain`].
    pub drain: Option<Span>,
}

impl TimeoutsSet {
    /// These where they are set, the others where they are not: `service.timeouts.over(&listener.timeouts)`.
    pub fn over(&self, others: &Timeouts) -> Timeouts {
        Timeouts {
            connect: self.connect.unwrap_or(others.connect),
            first_byte: self.first_byte.unwrap_or(others.first_byte),
            request_headers: self.request_headers.unwrap_or(others.request_headers),
            body_idle: self.body_idle.unwrap_or(others.body_idle),
            response_headers: self.response_headers.unwrap_or(others.response_headers),
            stream_idle: self.stream_idle.unwrap_or(others.stream_idle),
            upgrade_idle: self.upgrade_idle.unwrap_or(others.upgrade_idle),
            request: self.request.unwrap_or(others.request),
            write_stall: self.write_stall.unwrap_or(others.write_stall),
            keep_alive: self.keep_alive.unwrap_or(others.keep_alive),
            drain: self.drain.unwrap_or(others.drain),
        }
    }
}

/// What keeps a user on one version.
#[derive(Debug, Clone)]
pub struct Sticky {
    /// Where the key is read.
    pub source: StickySource,
    /// What happens to a request without a key.
    pub missing: MissingKey,
    /// Shared by replicas that must agree; none: the random one in the store.
    pub secret: Option<Redacted>,
}

/// Where a sticky key is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StickySource {
    /// A request header.
    Header(HeaderName),
    /// A cookie that Serin sets itself: a random 128-bit id.
    Cookie(StickyCookie),
    /// A query parameter.
    Query(String),
}

/// The cookie that Serin sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StickyCookie {
    /// Its name; `serin-id`.
    pub name: String,
    /// How long a browser keeps it; 24h.
    pub max_age: Span,
}

/// Which of a version's endpoints gets a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// The less busy of two drawn at random.
    #[default]
    LeastRequest,
    /// Each in turn, on every worker.
    RoundRobin,
}

/// Where a request without a sticky key goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingKey {
    /// By weight, like a request of a service without stickiness.
    Weight,
    /// To stable.
    Stable,
}

/// How testers choose a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Force {
    /// `always` is the canary, `never` is stable.
    pub header: HeaderName,
    /// Who may use it; loopback and private networks when nothing is written.
    pub from: Vec<IpNet>,
}

impl Force {
    /// Whether a client may choose.
    pub fn allows(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.from.iter().any(|net| net.contains(&client))
    }
}

/// What counts as a version's failure.
#[derive(Clone, PartialEq, Eq)]
pub struct FailureRule {
    /// One bit for each status from 0 to 1023.
    pub(super) statuses: [u64; 16],
    /// One bit for each gRPC code from 0 to 31.
    pub(super) grpc: u32,
    /// A response header that means failure.
    pub response_header: Option<FailureHeader>,
}

/// A response header that means failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureHeader {
    /// Its name.
    pub name: HeaderName,
    /// The value that means failure; none: any.
    pub value: Option<HeaderValue>,
}

impl FailureRule {
    /// Whether a response with this status is the version's failure.
    pub fn is_failure_status(&self, status: u16) -> bool {
        let word = self.statuses.get(usize::from(status >> 6)).copied().unwrap_or(0);
        word >> (status & 63) & 1 == 1
    }

    /// Whether a gRPC response with this code is the version's failure; codes nobody knows are.
    pub fn is_failure_grpc(&self, code: u32) -> bool {
        code > 16 || self.grpc >> code & 1 == 1
    }

    /// Whether a response head is the version's failure (the gRPC code may follow in trailers).
    pub fn is_failure_head(&self, status: u16, headers: &http::HeaderMap) -> bool {
        let marked = |rule: &FailureHeader| {
            let mut lines = headers.get_all(&rule.name).iter();
            lines.any(|line| rule.value.as_ref().is_none_or(|value| value == line))
        };
        self.is_failure_status(status) || self.response_header.as_ref().is_some_and(marked)
    }

    /// One more status that is a failure.
    pub(super) fn add_status(&mut self, status: u16) {
        if let Some(word) = self.statuses.get_mut(usize::from(status >> 6)) {
            *word |= 1 << (status & 63);
        }
    }
}

impl Default for FailureRule {
    /// 5xx, and the gRPC codes that are a server's fault: `UNKNOWN`, `DEADLINE_EXCEEDED`, `UNIMPLEMENTED`, `INTERNAL`,
    /// `UNAVAILABLE`, `DATA_LOSS`.
    fn default() -> Self {
        let mut rule = FailureRule {
            statuses: [0; 16],
            grpc: 1 << 2 | 1 << 4 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 15,
            response_header: None,
        };
        (500..600).for_each(|status| rule.add_status(status));
        rule
    }
}

impl fmt::Debug for FailureRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let statuses: Vec<u16> = (0..1024)
            .filter(|status| self.is_failure_status(*status))
            .collect();
        let grpc: Vec<u32> = (0..17).filter(|code| self.is_failure_grpc(*code)).collect();
        f.debug_struct("FailureRule")
            .field("statuses", &statuses)
            .field("grpc", &grpc)
            .field("response_header", &self.response_header)
            .finish()
    }
}

/// When a new version may get its first request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// A path that must answer 2xx; none: an endpoint that accepts connections is ready.
    pub http: Option<String>,
    /// Ready endpoints needed; 1.
    pub min_healthy: u32,
    /// A version that is not ready by then is aborted; 10m.
    pub progress_deadline: Span,
}

impl Default for Ready {
    fn default() -> Self {
        Ready {
            http: None,
            min_healthy: 1,
            progress_deadline: Span::secs(600),
        }
    }
}

/// What happens when every endpoint of a canary stops answering (design section 8.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HardFailure {
    /// Failures in a row on every endpoint in rotation; 3.
    pub attempts: u32,
    /// What the rollout does.
    pub action: HardFailureAction,
}

impl Default for HardFailure {
    fn default() -> Self {
        HardFailure {
            attempts: 3,
            action: HardFailureAction::Abort,
        }
    }
}

/// What a rollout does after a hard failure; all traffic is on stable either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HardFailureAction {
    /// It is rolled back.
    Abort,
    /// It waits for a person.
    Pause,
}

/// Which endpoints a deploy may name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeployRule {
    /// Whether somebody wrote it; otherwise it is made of what the file names.
    pub listed: bool,
    /// Networks that IP addresses may be in.
    pub networks: Vec<IpNet>,
    /// Host names, exact or `*.example.com`, in lower case.
    pub hosts: Vec<String>,
    /// Unix sockets, exact or with a trailing `*`.
    pub sockets: Vec<String>,
}

impl DeployRule {
    /// Whether a deploy may name this endpoint.
    pub fn allows(&self, endpoint: &EndpointUrl) -> bool {
        if endpoint.scheme().is_unix() {
            return self.sockets.iter().any(|socket| match socket.strip_suffix('*') {
                Some(start) => endpoint.host().starts_with(start) && !endpoint.host().contains("/../"),
                None => socket == endpoint.host(),
            });
        }
        match endpoint.ip() {
            Some(ip) => {
                let ip = ip.to_canonical();
                self.networks.iter().any(|net| net.contains(&ip))
            }
            None => {
                let host = endpoint.host();
                let covers = |entry: &String| entry == host || super::reach::is_below(host, entry);
                self.hosts.iter().any(covers)
            }
        }
    }
}
