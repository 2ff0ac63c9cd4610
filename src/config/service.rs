//! `services`: what is served, by which versions, and what counts as their failure.

use super::admin::secret;
use super::alarm::AlarmConfig;
use super::compiled::{
    Balance, DeployRule, FailureHeader, FailureRule, Force, HardFailure, HardFailureAction, MissingKey,
    Ready, Retries, Service, Sticky, StickyCookie, StickySource, VersionBlock,
};
use super::cx::Cx;
use super::decode::Located;
use super::filters::{self, FilterConfig};
use super::health::{EjectionConfig, HealthConfig};
use super::listener::{LimitsConfig, TimeoutsConfig};
use super::matching::{self, MatchConfig};
use super::strategy::{self, Around, RollbackWindowConfig, StrategyConfig, Templates, Uses};
use super::units::{Network, OrOff, near, network};
use super::upstream_tls::{self, UpstreamTlsConfig};
use crate::model::{EndpointUrl, Scheme, ServiceName, Span, VersionName, Weight};
use crate::rollout::RollbackWindow;
use http::{HeaderName, HeaderValue};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceConfig {
    /// Unique over all files.
    pub(super) name: ServiceName,
    /// Alternatives. Absent: every request.
    #[serde(default, rename = "match")]
    matches: Vec<Located<MatchConfig>>,
    /// What is changed in requests and responses. Absent: nothing; an entry of `match` may have its own.
    #[serde(default)]
    filters: Vec<Located<FilterConfig>>,
    /// An initial value (design section 8.1). Absent: the first version deployed.
    stable: Option<VersionConfig>,
    /// An initial value. Absent: until somebody deploys.
    canary: Option<VersionConfig>,
    /// Absent: each request is assigned by itself.
    sticky: Option<StickyConfig>,
    /// Absent: nobody can force a version.
    force: Option<ForceConfig>,
    /// Absent: the system's authorities are believed, nothing is shown.
    upstream_tls: Option<UpstreamTlsConfig>,
    /// Absent: 5xx and the gRPC codes that are a server's fault.
    failure: Option<FailureConfig>,
    /// Absent: the defaults written at each.
    #[serde(default)]
    ready: ReadyConfig,
    /// Absent: no active checks.
    health: Option<HealthConfig>,
    /// Absent: the defaults written at each.
    #[serde(default)]
    ejection: EjectionConfig,
    /// How long a new or recovered endpoint takes to get its full share. Absent: off.
    slow_start: Option<OrOff<Span>>,
    /// Absent: leastRequest.
    balance: Option<BalanceConfig>,
    /// Absent: the defaults written at each.
    #[serde(default)]
    hard_failure: HardFailureConfig,
    /// Absent: none.
    alarm: Option<AlarmConfig>,
    /// Absent: hosts that this service's endpoints name.
    deploy: Option<DeployConfig>,
    /// Absent: 1, 5, 25, 50 %, at the pace of the evidence.
    strategy: Option<StrategyConfig>,
    /// Absent: going back takes every step.
    rollback_window: Option<RollbackWindowConfig>,
    /// Absent: the listener's.
    #[serde(default)]
    timeouts: TimeoutsConfig,
    /// Absent: the defaults written at each.
    #[serde(default)]
    limits: LimitsConfig,
    /// Absent: the defaults written at each.
    #[serde(default)]
    retries: RetriesConfig,
    /// Protocols that connections may switch to (`Upgrade`). Absent: websocket.
    upgrades: Option<Vec<Located<String>>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum BalanceConfig {
    LeastRequest,
    RoundRobin,
}

#[derive(Debug, Deserialize)]
struct VersionConfig {
    version: VersionName,
    /// At least one.
    endpoints: Vec<Located<EndpointUrl>>,
}

/// Exactly one of header, cookie, query.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StickyConfig {
    header: Option<String>,
    cookie: Option<CookieConfig>,
    query: Option<String>,
    /// Absent: weight.
    missing: Option<MissingConfig>,
    /// Shared by replicas. Absent: a random one in the store. One of this and `secret`.
    secret_file: Option<String>,
    /// The secret itself: write `${ENV}`.
    secret: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CookieConfig {
    /// Absent: serin-id.
    name: Option<String>,
    /// Absent: 24h.
    max_age: Option<Span>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MissingConfig {
    Weight,
    Stable,
}

#[derive(Debug, Deserialize)]
struct ForceConfig {
    /// Such as x-canary.
    header: String,
    /// Absent: loopback and private networks.
    from: Option<Vec<Network>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FailureConfig {
    /// `5xx`, `429` or `500-599`. Absent: 5xx.
    statuses: Option<Vec<Located<String>>>,
    /// Absent: none.
    response_header: Option<FailureHeaderConfig>,
    /// Names or numbers. Absent: those of [`FailureRule::default`].
    grpc: Option<Vec<Located<String>>>,
}

#[derive(Debug, Deserialize)]
struct FailureHeaderConfig {
    name: String,
    /// Absent: any value.
    value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadyConfig {
    /// A path that must answer 2xx. Absent: accepting a connection is enough.
    http: Option<String>,
    /// Absent: 1.
    min_healthy: Option<u32>,
    /// Absent: 10m.
    progress_deadline: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
struct HardFailureConfig {
    /// Absent: 3.
    attempts: Option<u32>,
    /// Absent: abort.
    action: Option<HardFailureAction>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeployConfig {
    /// Networks, host names (`*.example.com`) and sockets (`unix:/run/app/*`).
    allowed_endpoints: Vec<Located<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RetriesConfig {
    /// Absent: 20%.
    budget: Option<Weight>,
    /// Absent: off.
    per_try: Option<OrOff<Span>>,
}

/// Compiles a service; its faults are in `cx`.
#[expect(
    clippy::too_many_lines,
    reason = "one line for each key of a service; splitting would hide the list"
)]
pub(super) fn compile(
    config: &Located<ServiceConfig>,
    listeners: &[&str],
    templates: &Templates,
    uses: &mut Uses,
    cx: &mut Cx,
) -> Service {
    let Located { path, value: config } = config;
    let at = |key: &str| format!("{path}.{key}");
    let stable = config
        .stable
        .as_ref()
        .map(|block| version(block, &at("stable"), cx));
    let canary = config
        .canary
        .as_ref()
        .map(|block| version(block, &at("canary"), cx));
    if let Some(canary) = &canary {
        match &stable {
            None => cx.error(
                &at("canary"),
                "there is no stable version to compare it with",
                "add stable: {…}",
            ),
            Some(stable) if stable.version == canary.version => {
                let what = format!("canary and stable are both `{}`", canary.version);
                cx.error(
                    &at("canary.version"),
                    what,
                    "remove canary, or give it another version",
                );
            }
            Some(_) => {}
        }
    }
    let blocks = || stable.iter().chain(&canary).flat_map(|block| &block.endpoints);
    let deploy = match &config.deploy {
        Some(rule) => deploy_rule(rule, cx),
        None => named_hosts(blocks()),
    };
    let ready = ready(&config.ready, &at("ready"), cx);
    let around = Around {
        rollback_window: config.rollback_window.map(|window| RollbackWindow {
            revisions: window.revisions,
        }),
        progress_deadline: ready.progress_deadline,
    };
    let mut own = Uses {
        some_unreadable: uses.some_unreadable,
        ..Uses::default()
    };
    let plan = strategy::compile(
        config.strategy.as_ref(),
        &at("strategy"),
        around,
        templates,
        &mut own,
        cx,
    );
    let mut plan_templates = Vec::new();
    for name in &own.templates {
        match templates.get(name) {
            Some(compiled) => plan_templates.push(std::sync::Arc::new(compiled.template.clone())),
            None => plan_templates.push(std::sync::Arc::new(strategy::built_in_gate())),
        }
    }
    uses.templates.append(&mut own.templates);
    uses.bounded.append(&mut own.bounded);
    uses.not_yet.append(&mut own.not_yet);
    let retries = Retries::default();
    if let Some(Some(per_try)) = config.retries.per_try.map(|per_try| per_try.0)
        && per_try.is_zero()
    {
        cx.error(
            &at("retries.perTry"),
            "no time at all would fail every attempt",
            "write off for no limit",
        );
    }
    let matches = matching::compile(&config.matches, listeners, cx);
    Service {
        name: config.name.clone(),
        filters: filters::compile(&config.filters, &config.matches, &matches, cx),
        matches,
        sticky: config
            .sticky
            .as_ref()
            .and_then(|sticky| compile_sticky(sticky, &at("sticky"), cx)),
        force: config
            .force
            .as_ref()
            .and_then(|force| compile_force(force, &at("force"), cx)),
        upstream_tls: upstream_tls::compile(config.upstream_tls.as_ref(), &at("upstreamTls"), cx),
        failure: config
            .failure
            .as_ref()
            .map_or_else(FailureRule::default, |failure| {
                compile_failure(failure, &at("failure"), cx)
            }),
        health: config
            .health
            .as_ref()
            .map(|health| health.compile(&ready, &at("health"), cx)),
        ejection: config.ejection.compile(&at("ejection"), cx),
        slow_start: config.slow_start.and_then(|slow_start| slow_start.0),
        balance: match config.balance {
            Some(BalanceConfig::LeastRequest) | None => Balance::LeastRequest,
            Some(BalanceConfig::RoundRobin) => Balance::RoundRobin,
        },
        alarm: config.alarm.map(|alarm| alarm.compile(&at("alarm"), cx)),
        hard_failure: hard_failure(&config.hard_failure, &at("hardFailure"), cx),
        ready,
        stable,
        canary,
        deploy,
        plan,
        templates: plan_templates,
        timeouts: config.timeouts.compile(&at("timeouts"), true, cx),
        limits: config.limits.service(&at("limits"), cx),
        retries: Retries {
            budget: config.retries.budget.unwrap_or(retries.budget),
            per_try: config.retries.per_try.and_then(|per_try| per_try.0),
        },
        upgrades: match &config.upgrades {
            Some(list) => list.iter().filter_map(|one| upgrade(one, cx)).collect(),
            None => std::sync::Arc::new(["websocket".into()]),
        },
    }
}

/// A protocol to switch to. HTTP itself is none: what would follow is past every rule (`h2c` smuggling).
fn upgrade(Located { path, value }: &Located<String>, cx: &mut Cx) -> Option<Box<str>> {
    let (name, version) = value.split_once('/').unwrap_or((value, "1"));
    let is_token = |part: &str| HeaderName::from_bytes(part.as_bytes()).is_ok();
    let lower = name.to_ascii_lowercase();
    if !is_token(name) || !is_token(version) {
        let what = format!("`{value}` is not a protocol");
        cx.error(path, what, "write for example websocket or tcp");
        return None;
    }
    if ["h2c", "h2", "h3", "http", "tls"].contains(&lower.as_str()) {
        let what = format!("a switch to `{value}` would carry requests past every rule");
        cx.error(path, what, "remove it; HTTP/2 without TLS needs no upgrade here");
        return None;
    }
    Some(value.as_str().into())
}

fn version(config: &VersionConfig, path: &str, cx: &mut Cx) -> VersionBlock {
    let mut endpoints: Vec<EndpointUrl> = Vec::new();
    for Located {
        path,
        value: endpoint,
    } in &config.endpoints
    {
        if endpoints.contains(endpoint) {
            cx.error(path, format!("{endpoint} stands here twice"), "remove one");
        } else {
            endpoints.push(endpoint.clone());
        }
    }
    if config.endpoints.is_empty() {
        cx.error(
            &format!("{path}.endpoints"),
            "a version needs at least one endpoint",
            "add for example http://127.0.0.1:9001",
        );
    }
    VersionBlock {
        version: config.version.clone(),
        endpoints,
    }
}

pub(super) fn header_name(text: &str, path: &str, cx: &mut Cx) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok();
    if name.is_none() {
        cx.error(
            path,
            format!("`{text}` is not a header name"),
            "write for example x-user-id",
        );
    }
    name
}

fn compile_sticky(config: &StickyConfig, path: &str, cx: &mut Cx) -> Option<Sticky> {
    let source = match (&config.header, &config.cookie, &config.query) {
        (Some(header), None, None) => {
            StickySource::Header(header_name(header, &format!("{path}.header"), cx)?)
        }
        (None, Some(cookie), None) => {
            let name = cookie.name.clone().unwrap_or_else(|| "serin-id".to_owned());
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                cx.error(
                    &format!("{path}.cookie.name"),
                    format!("`{name}` is not a cookie's name"),
                    "use letters, digits and `-`",
                );
            }
            let max_age = cookie.max_age.unwrap_or(Span::secs(86_400));
            if max_age.is_zero() {
                cx.error(
                    &format!("{path}.cookie.maxAge"),
                    "a cookie of no age is dropped at once",
                    "write for example 24h",
                );
            }
            StickySource::Cookie(StickyCookie { name, max_age })
        }
        (None, None, Some(name)) if !name.is_empty() => StickySource::Query(name.clone()),
        (_, _, _) => {
            cx.error(
                path,
                "exactly one of header, cookie and query is needed",
                "write for example {header: x-user-id}",
            );
            return None;
        }
    };
    Some(Sticky {
        source,
        missing: match config.missing {
            Some(MissingConfig::Weight) | None => MissingKey::Weight,
            Some(MissingConfig::Stable) => MissingKey::Stable,
        },
        secret: secret(path, config.secret_file.as_deref(), config.secret.as_deref(), cx),
    })
}

fn compile_force(config: &ForceConfig, path: &str, cx: &mut Cx) -> Option<Force> {
    Some(Force {
        header: header_name(&config.header, &format!("{path}.header"), cx)?,
        from: match &config.from {
            Some(from) => from.iter().map(|net| net.0).collect(),
            None => near(),
        },
    })
}

/// `5xx`, `429` or `500-599`.
fn statuses(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let in_range = |range: std::ops::RangeInclusive<u16>| {
        (*range.start() >= 100 && *range.end() <= 599 && range.start() <= range.end()).then_some(range)
    };
    let lower = text.to_ascii_lowercase();
    if let Some(class) = lower.strip_suffix("xx") {
        let class: u16 = class.parse().ok().filter(|class| (1..=5).contains(class))?;
        return in_range(class * 100..=class * 100 + 99);
    }
    match text.split_once('-') {
        Some((from, to)) => in_range(from.trim().parse().ok()?..=to.trim().parse().ok()?),
        None => text.parse().ok().and_then(|status| in_range(status..=status)),
    }
}

const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

fn compile_statuses(list: &[Located<String>], rule: &mut FailureRule, path: &str, cx: &mut Cx) {
    rule.statuses = [0; 16];
    let mut all_read = true;
    for Located { path, value: text } in list {
        let Some(range) = statuses(text) else {
            all_read = false;
            cx.error(
                path,
                format!("`{text}` is not a status"),
                "write 5xx, 429 or 500-599",
            );
            continue;
        };
        if *range.start() < 300 && *range.end() >= 200 {
            // Not a fault: somebody may well try out what happens to a version of which everything fails.
            cx.warn(
                path,
                format!("`{text}` makes failures of answers that say success (2xx)"),
                "write what says failure, such as 5xx, 429 or 500-599",
            );
        }
        range.for_each(|status| rule.add_status(status));
    }
    let counts = |status| rule.is_failure_status(status);
    if all_read && !list.is_empty() && !(500..600).any(counts) {
        cx.warn(
            path,
            "no answer of 5xx counts as failure: the list replaces the default",
            "add 5xx to it",
        );
    }
}

fn compile_failure(config: &FailureConfig, path: &str, cx: &mut Cx) -> FailureRule {
    let mut rule = FailureRule::default();
    if let Some(list) = &config.statuses {
        compile_statuses(list, &mut rule, &format!("{path}.statuses"), cx);
    }
    if let Some(list) = &config.grpc {
        rule.grpc = 0;
        for Located { path, value: text } in list {
            let named = GRPC.iter().position(|name| name.eq_ignore_ascii_case(text));
            let code = named.or_else(|| text.parse().ok());
            if let Some(code) = code.filter(|code| (1..=16).contains(code)) {
                rule.grpc |= 1 << code;
            } else {
                let what = format!("`{text}` is not a gRPC code of a failure");
                cx.error(
                    path,
                    what,
                    "write a name such as UNAVAILABLE, or a number from 1 to 16",
                );
            }
        }
    }
    if let Some(header) = &config.response_header {
        let path = format!("{path}.responseHeader");
        let value = header.value.as_deref().map(HeaderValue::from_str);
        match (
            header_name(&header.name, &format!("{path}.name"), cx),
            value.transpose(),
        ) {
            (Some(name), Ok(value)) => rule.response_header = Some(FailureHeader { name, value }),
            (_, Err(_)) => cx.error(
                &format!("{path}.value"),
                "this is not a header's value",
                "write one line of visible characters",
            ),
            (None, Ok(_)) => {}
        }
    }
    rule
}

pub(super) fn check_path(text: Option<&String>, path: &str, cx: &mut Cx) {
    if let Some(text) = text
        && (!text.starts_with('/') || text.parse::<http::uri::PathAndQuery>().is_err())
    {
        cx.error(
            path,
            format!("`{text}` is not a path"),
            "write for example /healthz",
        );
    }
}

pub(super) fn at_least_one(value: Option<u32>, default: u32, path: &str, cx: &mut Cx) -> u32 {
    if value == Some(0) {
        cx.error(path, "0 means nothing here", "write at least 1");
    }
    value.unwrap_or(default).max(1)
}

fn ready(config: &ReadyConfig, path: &str, cx: &mut Cx) -> Ready {
    let default = Ready::default();
    check_path(config.http.as_ref(), &format!("{path}.http"), cx);
    let progress_deadline = config.progress_deadline.unwrap_or(default.progress_deadline);
    if progress_deadline.is_zero() {
        cx.error(
            &format!("{path}.progressDeadline"),
            "no time at all would abort every deploy",
            "write for example 10m",
        );
    }
    Ready {
        http: config.http.clone(),
        min_healthy: at_least_one(
            config.min_healthy,
            default.min_healthy,
            &format!("{path}.minHealthy"),
            cx,
        ),
        progress_deadline,
    }
}

fn hard_failure(config: &HardFailureConfig, path: &str, cx: &mut Cx) -> HardFailure {
    let default = HardFailure::default();
    HardFailure {
        attempts: at_least_one(config.attempts, default.attempts, &format!("{path}.attempts"), cx),
        action: config.action.unwrap_or(default.action),
    }
}

fn deploy_rule(config: &DeployConfig, cx: &mut Cx) -> DeployRule {
    let mut rule = DeployRule {
        listed: true,
        ..DeployRule::default()
    };
    for Located { path, value: text } in &config.allowed_endpoints {
        let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        if let Some(socket) = text
            .strip_prefix("unix:")
            .or_else(|| text.strip_prefix("unix+h2c:"))
            .filter(|socket| socket.starts_with('/'))
        {
            rule.sockets.push(socket.to_owned());
        } else if let Some(net) = network(bracketed.unwrap_or(text)) {
            rule.networks.push(net);
        } else {
            let name = text.strip_prefix("*.").unwrap_or(text);
            let valid = !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                && !name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            if valid {
                rule.hosts.push(text.to_ascii_lowercase());
            } else {
                let hint = "write a network (10.0.0.0/8), a host (app or *.example.com) or unix:/run/app/*";
                cx.error(path, format!("`{text}` does not name endpoints"), hint);
            }
        }
    }
    rule
}

/// The hosts and sockets that a service names itself.
fn named_hosts<'a>(endpoints: impl Iterator<Item = &'a EndpointUrl>) -> DeployRule {
    let mut rule = DeployRule::default();
    for endpoint in endpoints {
        match (endpoint.scheme(), endpoint.ip()) {
            (Scheme::Unix | Scheme::UnixH2c, _) => rule.sockets.push(endpoint.host().to_owned()),
            (Scheme::Http | Scheme::H2c | Scheme::Https, Some(ip)) => {
                rule.networks.push(ip.to_canonical().into());
            }
            (Scheme::Http | Scheme::H2c | Scheme::Https, None) => rule.hosts.push(endpoint.host().to_owned()),
        }
    }
    rule
}
