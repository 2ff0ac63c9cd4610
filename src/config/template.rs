//! `analysisTemplates`: what analyses measure. Argo's `metrics` paste unchanged.

use super::cx::Cx;
use super::decode::Located;
use super::judge::{self, JudgeConfig};
use super::mann_whitney::{self, MannWhitneyConfig};
use super::upstream_tls::ca_of;
use crate::analysis::{
    self, ArgSpec, MetricSpec, OnError, OnNoData, PrometheusQuery, Provider, SerinMetric, SerinQuery,
    Template, WebQuery,
};
use crate::model::{Role, Span};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::{collections::BTreeMap, fmt};

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TemplateConfig {
    /// What `templateName` refers to; unique over all files.
    pub(super) name: String,
    /// Absent: only the built-in arguments.
    #[serde(default)]
    args: Vec<Located<ArgConfig>>,
    /// At least one.
    pub(super) metrics: Vec<Located<MetricConfig>>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ArgConfig {
    /// What stands between `{{args.` and `}}`.
    name: String,
    /// Absent: given where the template is used.
    value: Option<String>,
    /// Relative to the configuration; its trimmed content is the value and never shown.
    secret_file: Option<String>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MetricConfig {
    /// Unique in its template.
    name: String,
    /// Absent: measured once.
    interval: Option<Span>,
    /// Absent: none.
    initial_delay: Option<Span>,
    /// Absent: one without `interval`, otherwise no end (background analysis only).
    count: Option<i32>,
    /// Instead of `count`: measure for this long.
    duration: Option<Span>,
    /// Absent: 0. -1: failures are not counted.
    failure_limit: Option<i32>,
    /// Absent: 0, off.
    consecutive_success_limit: Option<i32>,
    /// Absent: 0.
    inconclusive_limit: Option<i32>,
    /// Absent: 4.
    consecutive_error_limit: Option<i32>,
    /// Absent: whatever `failureCondition` does not call a failure.
    success_condition: Option<String>,
    /// Absent: whatever `successCondition` does not call a success.
    failure_condition: Option<String>,
    /// Absent: false.
    #[serde(default)]
    dry_run: bool,
    /// Absent: inconclusive.
    on_no_data: Option<OnNoData>,
    /// Absent: pause for providers outside Serin, abort for serin.
    on_error: Option<OnError>,
    /// One of this, `judge` and `mannWhitney`.
    provider: Option<ProviderConfig>,
    /// The sequential judge: no provider, interval or condition.
    judge: Option<JudgeConfig>,
    /// The rank test, once over a window: no provider, interval or condition.
    mann_whitney: Option<MannWhitneyConfig>,
}

/// Exactly one.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProviderConfig {
    serin: Option<SerinConfig>,
    prometheus: Option<PrometheusConfig>,
    web: Option<WebConfig>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct SerinConfig {
    /// errorRate, successRate, requestRate, latency, …
    metric: SerinMetric,
    /// Absent: canary.
    role: Option<Role>,
    /// Absent: 20.
    min_samples: Option<u64>,
    /// Absent: 10m.
    no_data_timeout: Option<Span>,
    /// Absent: since the previous measurement.
    window: Option<Span>,
    /// For latency. Absent: 0.99.
    quantile: Option<f64>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct PrometheusConfig {
    /// `http://…` or `https://…`.
    address: String,
    /// PromQL.
    query: String,
    /// Absent: 30s.
    timeout: Option<Span>,
    /// Absent: none.
    #[serde(default)]
    headers: Headers,
    /// PEM: who may have signed its certificate. Absent: the authorities that this system trusts.
    ca: Option<String>,
    /// Absent: false.
    #[serde(default)]
    insecure: bool,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct WebConfig {
    /// `http://…` or `https://…`.
    url: String,
    /// Absent: GET.
    method: Option<String>,
    /// Absent: none.
    #[serde(default)]
    headers: Headers,
    /// Sent with PUT and POST. Absent: empty.
    body: Option<String>,
    /// Absent: the whole answer.
    json_path: Option<String>,
    /// Absent: 30s.
    #[serde(alias = "timeoutSeconds")]
    timeout: Option<Span>,
    /// PEM: who may have signed its certificate. Absent: the authorities that this system trusts.
    ca: Option<String>,
    /// Absent: false.
    #[serde(default)]
    insecure: bool,
}

/// A mapping, or Argo's list of `{key, value}`.
#[derive(Debug, Default)]
struct Headers(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Pair {
            key: String,
            value: String,
        }
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Headers;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of header names to values, or a list of {key, value}")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut headers = BTreeMap::new();
                while let Some((key, value)) = map.next_entry()? {
                    headers.insert(key, value);
                }
                Ok(Headers(headers))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Headers, A::Error> {
                let mut headers = BTreeMap::new();
                while let Some(Pair { key, value }) = list.next_element()? {
                    headers.insert(key, value);
                }
                Ok(Headers(headers))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A template and where it stands.
#[derive(Debug)]
pub(super) struct CompiledTemplate {
    pub(super) template: Template,
    pub(super) path: String,
    /// The paths of its metrics, in their order.
    pub(super) metric_paths: Vec<String>,
}

/// Compiles a template and checks whatever does not depend on where it is used.
pub(super) fn compile(config: &Located<TemplateConfig>, cx: &mut Cx) -> CompiledTemplate {
    let Located { path, value: config } = config;
    if config.name.is_empty() || config.name.len() > 100 || config.name.chars().any(char::is_control) {
        cx.error(
            &format!("{path}.name"),
            "this is not a template's name",
            "use 1 to 100 printable characters",
        );
    }
    let args = config.args.iter().map(|arg| compile_arg(arg, cx)).collect();
    let mut metrics: Vec<MetricSpec> = Vec::new();
    let mut metric_paths = Vec::new();
    for Located { path, value: metric } in &config.metrics {
        let Some(provider) = compile_kind(metric, path, cx) else {
            continue;
        };
        if metrics.iter().any(|other| other.name == metric.name) {
            let what = format!("two metrics of this template are called `{}`", metric.name);
            cx.error(&format!("{path}.name"), what, "rename one");
        }
        metrics.push(compile_metric(metric, provider));
        metric_paths.push(path.clone());
    }
    if config.metrics.is_empty() {
        cx.error(
            &format!("{path}.metrics"),
            "a template needs at least one metric",
            "add metrics: [{name: …, provider: …}]",
        );
    }
    let template = Template {
        name: config.name.clone(),
        args,
        metrics,
    };
    // Background is the most that any use allows: what is wrong there is wrong everywhere.
    check_metrics(&template, &metric_paths, analysis::Context::Background, false, cx);
    check_arguments(config, &template, cx);
    CompiledTemplate {
        template,
        path: path.clone(),
        metric_paths,
    }
}

/// Exactly one of the three ways to come to a verdict.
fn compile_kind(metric: &MetricConfig, path: &str, cx: &mut Cx) -> Option<Provider> {
    match (&metric.provider, &metric.judge, &metric.mann_whitney) {
        (Some(provider), None, None) => compile_provider(provider, &format!("{path}.provider"), cx),
        (None, Some(config), None) => {
            unmixed(metric, JUDGE, path, cx);
            if metric.initial_delay.is_some() {
                cx.error(&format!("{path}.initialDelay"), JUDGE, "remove it");
            }
            let path = format!("{path}.judge");
            Some(Provider::Judge(judge::compile(config, &path, cx)))
        }
        (None, None, Some(test)) => {
            unmixed(metric, RANKS, path, cx);
            if test.critical && metric.on_no_data.is_some_and(|written| written != OnNoData::Fail) {
                cx.error(
                    &format!("{path}.onNoData"),
                    "critical says that no data is a failure",
                    "remove one of them",
                );
            }
            mann_whitney::compile(test, &format!("{path}.mannWhitney"), cx)
        }
        (None, None, None) => {
            cx.error(
                path,
                "the metric has no provider",
                "add for example provider: {serin: {metric: errorRate}}, or judge: {}",
            );
            None
        }
        (_, _, _) => {
            let what = "provider, judge and mannWhitney exclude each other";
            cx.error(path, what, "keep one of them");
            None
        }
    }
}

const JUDGE: &str = "a judge looks at every request: it has no interval, count, limit or condition";
const RANKS: &str = "a rank test is made once, over its own window: it has no count, limit or condition, and its interval \
                     stands in mannWhitney";

/// Keys that say when and how often to measure mean nothing to what decides by itself.
fn unmixed(metric: &MetricConfig, why: &str, path: &str, cx: &mut Cx) {
    let foreign = [
        ("interval", metric.interval.is_some()),
        ("count", metric.count.is_some()),
        ("duration", metric.duration.is_some()),
        ("failureLimit", metric.failure_limit.is_some()),
        (
            "consecutiveSuccessLimit",
            metric.consecutive_success_limit.is_some(),
        ),
        ("inconclusiveLimit", metric.inconclusive_limit.is_some()),
        ("consecutiveErrorLimit", metric.consecutive_error_limit.is_some()),
        ("successCondition", metric.success_condition.is_some()),
        ("failureCondition", metric.failure_condition.is_some()),
    ];
    for (key, _) in foreign.iter().filter(|(_, written)| *written) {
        cx.error(&format!("{path}.{key}"), why, "remove it");
    }
}

/// Reports what `context` refuses. `only_bounds`: the rest was reported before.
pub(super) fn check_metrics(
    template: &Template,
    paths: &[String],
    context: analysis::Context,
    only_bounds: bool,
    cx: &mut Cx,
) {
    for (metric, path) in template.metrics.iter().zip(paths) {
        if only_bounds {
            if !metric.is_bounded() {
                cx.error(
                    &format!("{path}.interval"),
                    "has an interval but no end, and is used in an analysis that must end by itself",
                    "add count: 5 or duration: 5m",
                );
            }
            continue;
        }
        for bad in analysis::validate(&with_arguments(metric), context) {
            cx.error(&format!("{path}.{}", bad.key), bad.reason, "");
        }
    }
}

/// The metric with a number in place of each argument, so that its conditions can be read before arguments are known.
fn with_arguments(metric: &MetricSpec) -> MetricSpec {
    let fill = |condition: &Option<String>| {
        let mut text = condition.clone()?;
        while let Some(start) = text.find("{{") {
            let end = text[start..].find("}}").map_or(text.len(), |end| start + end + 2);
            text.replace_range(start..end, "0");
        }
        Some(text)
    };
    MetricSpec {
        success_condition: fill(&metric.success_condition),
        failure_condition: fill(&metric.failure_condition),
        ..metric.clone()
    }
}

fn compile_arg(arg: &Located<ArgConfig>, cx: &mut Cx) -> ArgSpec {
    let Located { path, value: arg } = arg;
    if arg.value.is_some() && arg.secret_file.is_some() {
        cx.error(
            path,
            "value and secretFile exclude each other",
            "keep one of them",
        );
    }
    let secret_file = arg.secret_file.as_ref().map(|file| {
        cx.secret_file(&format!("{path}.secretFile"), file);
        cx.resolve(file).display().to_string()
    });
    let key = format!("{path}.value");
    let written = cx.environment_at(&key).map(str::to_owned);
    let name = |text: &str| Some(text.strip_prefix("${")?.strip_suffix('}')?.to_owned());
    let variable = written
        .as_deref()
        .and_then(name)
        .filter(|name| !name.contains("${"));
    if written.is_some_and(|text| text.replace("$${", "").contains("${")) && variable.is_none() {
        cx.warn(
            &key,
            NOT_KEPT,
            "make the variable the whole value, then it is a secret",
        );
    }
    ArgSpec {
        name: arg.name.clone(),
        value: if variable.is_some() {
            None
        } else {
            arg.value.clone()
        },
        secret_file,
        secret_env: variable,
    }
}

const NOT_KEPT: &str = "what comes from the environment here is stored with each rollout and may be shown";

fn compile_metric(metric: &MetricConfig, provider: Provider) -> MetricSpec {
    let mut default = MetricSpec::named(&metric.name, provider);
    if let Some(test) = &metric.mann_whitney {
        // Another window after one that could not be measured would be another question.
        default.consecutive_error_limit = 0;
        if test.critical {
            default.on_no_data = OnNoData::Fail;
        }
    }
    let default = MetricSpec {
        dry_run: metric.dry_run,
        on_no_data: metric.on_no_data.unwrap_or(default.on_no_data),
        on_error: metric.on_error,
        initial_delay: metric.initial_delay,
        ..default
    };
    if metric.provider.is_none() {
        // Whatever else is written is refused for that (`unmixed`), and not for its value too.
        return default;
    }
    MetricSpec {
        interval: metric.interval,
        count: metric.count,
        duration: metric.duration,
        failure_limit: metric.failure_limit.unwrap_or(default.failure_limit),
        consecutive_success_limit: metric
            .consecutive_success_limit
            .unwrap_or(default.consecutive_success_limit),
        inconclusive_limit: metric.inconclusive_limit.unwrap_or(default.inconclusive_limit),
        consecutive_error_limit: metric
            .consecutive_error_limit
            .unwrap_or(default.consecutive_error_limit),
        success_condition: metric.success_condition.clone(),
        failure_condition: metric.failure_condition.clone(),
        ..default
    }
}

pub(super) fn compile_provider(config: &ProviderConfig, path: &str, cx: &mut Cx) -> Option<Provider> {
    match (&config.serin, &config.prometheus, &config.web) {
        (Some(query), None, None) => Some(Provider::Serin(serin(query, &format!("{path}.serin"), cx))),
        (None, Some(query), None) => Some(Provider::Prometheus(prometheus(
            query,
            &format!("{path}.prometheus"),
            cx,
        ))),
        (None, None, Some(query)) => Some(Provider::Web(web(query, &format!("{path}.web"), cx))),
        (None, None, None) => {
            cx.error(
                path,
                "the provider is missing",
                "write one of serin, prometheus, web",
            );
            None
        }
        (_, _, _) => {
            cx.error(path, "a metric has exactly one provider", "make a metric of each");
            None
        }
    }
}

fn serin(config: &SerinConfig, path: &str, cx: &mut Cx) -> SerinQuery {
    let default = SerinQuery::of(config.metric);
    if config
        .quantile
        .is_some_and(|quantile| !(quantile > 0.0 && quantile < 1.0))
    {
        cx.error(
            &format!("{path}.quantile"),
            "a quantile lies between 0 and 1",
            "write for example 0.99",
        );
    }
    if config.quantile.is_some() && config.metric != SerinMetric::Latency {
        cx.error(
            &format!("{path}.quantile"),
            "only latency has quantiles",
            "remove it",
        );
    }
    if config.window.is_some_and(Span::is_zero) {
        cx.error(
            &format!("{path}.window"),
            "a window must be longer than 0s",
            "remove it, or write for example 5m",
        );
    }
    SerinQuery {
        metric: config.metric,
        role: config.role.unwrap_or(default.role),
        min_samples: config.min_samples.unwrap_or(default.min_samples),
        no_data_timeout: config.no_data_timeout.unwrap_or(default.no_data_timeout),
        window: config.window,
        quantile: config.quantile,
    }
}

fn check_url(url: &str, path: &str, cx: &mut Cx) {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    if rest.is_none_or(|rest| rest.is_empty() || rest.starts_with('/')) && !url.starts_with("{{") {
        cx.error(
            path,
            format!("`{url}` is not an address"),
            "write http://HOST:PORT or https://HOST:PORT",
        );
    }
}

fn check_headers(headers: &Headers, path: &str, cx: &mut Cx) {
    for (name, value) in &headers.0 {
        let path = format!("{path}.headers.{name}");
        if http::HeaderName::from_bytes(name.as_bytes()).is_err()
            || http::HeaderValue::from_str(value).is_err()
        {
            cx.error(
                &path,
                "this is not a header",
                "a name of letters, digits and `-`, a value of one line",
            );
        }
        if cx.environment_at(&path).is_some() {
            cx.warn(
                &path,
                NOT_KEPT,
                "write {{args.token}} here and give the argument secretFile, or value: ${ENV}",
            );
        }
    }
}

fn prometheus(config: &PrometheusConfig, path: &str, cx: &mut Cx) -> PrometheusQuery {
    check_url(&config.address, &format!("{path}.address"), cx);
    check_headers(&config.headers, path, cx);
    if config.query.trim().is_empty() {
        cx.error(&format!("{path}.query"), "the query is empty", "write PromQL");
    }
    let asked = (config.address.as_str(), config.insecure);
    PrometheusQuery {
        address: config.address.clone(),
        query: config.query.clone(),
        timeout: config.timeout,
        headers: config.headers.0.clone(),
        ca: ca_of(config.ca.as_deref(), asked, path, cx).map(|ca| ca.path),
        insecure: config.insecure,
    }
}

fn web(config: &WebConfig, path: &str, cx: &mut Cx) -> WebQuery {
    check_url(&config.url, &format!("{path}.url"), cx);
    check_headers(&config.headers, path, cx);
    if config
        .method
        .as_deref()
        .is_some_and(|method| !matches!(method, "GET" | "POST" | "PUT"))
    {
        cx.error(
            &format!("{path}.method"),
            "a measurement is made with GET, POST or PUT",
            "write one of these",
        );
    }
    if let Some(Err(why)) = config.json_path.as_deref().map(analysis::JsonPath::parse) {
        cx.error(
            &format!("{path}.jsonPath"),
            why,
            "write for example {$.data.errorRate}",
        );
    }
    let asked = (config.url.as_str(), config.insecure);
    WebQuery {
        ca: ca_of(config.ca.as_deref(), asked, path, cx).map(|ca| ca.path),
        url: config.url.clone(),
        method: config.method.clone(),
        headers: config.headers.0.clone(),
        body: config.body.clone(),
        json_path: config.json_path.clone(),
        timeout: config.timeout,
        insecure: config.insecure,
    }
}

/// What of a provider may hold arguments, with its key.
fn with_arguments_in(provider: &ProviderConfig, at: &str) -> Vec<(String, Option<String>)> {
    let headers = |of: &Headers, which: &str| -> Vec<(String, Option<String>)> {
        let text =
            |(name, value): (&String, &String)| (format!("{at}.{which}.headers.{name}"), Some(value.clone()));
        of.0.iter().map(text).collect()
    };
    let mut texts = Vec::new();
    if let Some(query) = &provider.prometheus {
        texts.push((format!("{at}.prometheus.address"), Some(query.address.clone())));
        texts.push((format!("{at}.prometheus.query"), Some(query.query.clone())));
        texts.extend(headers(&query.headers, "prometheus"));
    }
    if let Some(query) = &provider.web {
        texts.push((format!("{at}.web.url"), Some(query.url.clone())));
        texts.push((format!("{at}.web.body"), query.body.clone()));
        texts.extend(headers(&query.headers, "web"));
    }
    texts
}

/// Whatever `{{args.x}}` a template uses must be declared or built in.
fn check_arguments(config: &TemplateConfig, template: &Template, cx: &mut Cx) {
    let mut args = analysis::Args::built_in("service", "canary", "stable");
    for (arg, located) in template.args.iter().zip(&config.args) {
        if args.has(&arg.name) {
            cx.error(
                &format!("{}.name", located.path),
                format!("the argument `{}` is there already", arg.name),
                "rename it",
            );
        }
        args.set(&arg.name, analysis::ArgValue::plain("x"));
    }
    for Located { path, value: metric } in &config.metrics {
        let mut texts = vec![
            ("successCondition".to_owned(), metric.success_condition.clone()),
            ("failureCondition".to_owned(), metric.failure_condition.clone()),
        ];
        if let Some(provider) = &metric.provider {
            texts.extend(with_arguments_in(provider, "provider"));
        }
        for (side, provider) in metric.mann_whitney.iter().flat_map(MannWhitneyConfig::providers) {
            texts.extend(with_arguments_in(provider, &format!("mannWhitney.{side}")));
        }
        for (key, text) in texts
            .iter()
            .filter_map(|(key, text)| text.as_ref().map(|text| (key, text)))
        {
            if let Err(error) = args.substitute(text) {
                cx.error(&format!("{path}.{key}"), error.to_string(), "");
            }
        }
    }
}
