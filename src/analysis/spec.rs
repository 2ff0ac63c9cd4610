//! What a template asks to be measured: the metric, its limits and its provider, spelled as in Argo Rollouts.

use super::{
    args::ArgSpec,
    judge::JudgeConfig,
    mann_whitney::{Compared, MannWhitney},
};
use crate::model::{Role, Span};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{collections::BTreeMap, path::PathBuf};

/// A named set of metrics that analyses refer to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Template {
    /// What `templateName` refers to.
    pub name: String,
    /// Arguments with their defaults; those without one must be given where the template is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<ArgSpec>,
    /// What is measured; at least one.
    pub metrics: Vec<MetricSpec>,
}

impl Template {
    /// Whether there is a judge with a say in it.
    pub fn has_judge(&self) -> bool {
        let mut metrics = self.metrics.iter();
        metrics.any(|metric| metric.is_judge() && !metric.dry_run)
    }
}

/// One metric of an analysis and how its measurements are counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MetricSpec {
    /// Unique among the metrics of one analysis.
    pub name: String,
    /// From the end of one measurement to the start of the next. Absent: measured once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
    /// From the start of the run to the first measurement. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_delay: Option<Span>,
    /// How many measurements. Absent: one without `interval`, otherwise no end (background analysis only).
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_number"
    )]
    pub count: Option<i32>,
    /// Serin's alternative to `count`: measure for this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Span>,
    /// How many failed measurements are forgiven, in total. Absent: 0. -1: failures are not counted against it.
    #[serde(default, deserialize_with = "number")]
    pub failure_limit: i32,
    /// This many successes in a row end the metric as Successful. Absent: 0, off.
    #[serde(default, deserialize_with = "number")]
    pub consecutive_success_limit: i32,
    /// How many inconclusive measurements are forgiven. Absent: 0.
    #[serde(default, deserialize_with = "number")]
    pub inconclusive_limit: i32,
    /// How many errors in a row are forgiven. Absent: 4.
    #[serde(default = "four", deserialize_with = "number")]
    pub consecutive_error_limit: i32,
    /// Holds for a good value. Absent: whatever `failureCondition` does not call a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_condition: Option<String>,
    /// Holds for a bad value. Absent: whatever `successCondition` does not call a success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_condition: Option<String>,
    /// Measured and shown, but without a say in the run's phase.
    #[serde(default)]
    pub dry_run: bool,
    /// What too little traffic means once `noDataTimeout` has passed (provider `serin`).
    #[serde(default)]
    pub on_no_data: OnNoData,
    /// What an analysis that ends in Error because of this metric does to the rollout. Absent: `pause` for providers
    /// outside Serin (their outage must not roll back a healthy release), `abort` for `serin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_error: Option<OnError>,
    /// Who is asked.
    pub provider: Provider,
}

const fn four() -> i32 {
    4
}

impl MetricSpec {
    /// A metric that is measured once, with every limit at its default.
    pub fn named(name: &str, provider: Provider) -> MetricSpec {
        MetricSpec {
            name: name.to_owned(),
            interval: None,
            initial_delay: None,
            count: None,
            duration: None,
            failure_limit: 0,
            consecutive_success_limit: 0,
            inconclusive_limit: 0,
            consecutive_error_limit: four(),
            success_condition: None,
            failure_condition: None,
            dry_run: false,
            on_no_data: OnNoData::default(),
            on_error: None,
            provider,
        }
    }

    /// After how many counted measurements the metric is complete; `None` is "no end" or "by `duration`".
    pub fn effective_count(&self) -> Option<u32> {
        match self.count.and_then(|count| u32::try_from(count).ok()) {
            Some(count) if count > 0 => Some(count),
            Some(_) | None if self.is_judge() => None,
            Some(_) | None if self.interval.is_none() => Some(1),
            Some(_) | None => None,
        }
    }

    /// Whether the metric ends by itself, as an inline analysis needs.
    pub fn is_bounded(&self) -> bool {
        self.effective_count().is_some() || self.duration.is_some() || self.is_judge()
    }

    /// Whether it is the sequential judge: it looks at every request, and says when it knows enough.
    pub fn is_judge(&self) -> bool {
        matches!(self.provider, Provider::Judge(_))
    }

    /// What an Error of this metric does to the rollout, the default resolved.
    pub fn on_error(&self) -> OnError {
        self.on_error.unwrap_or(match &self.provider {
            Provider::Serin(_) | Provider::Judge(_) => OnError::Abort,
            Provider::Prometheus(_) | Provider::Web(_) => OnError::Pause,
            Provider::MannWhitney(test) => match test.of {
                Compared::Own(_) => OnError::Abort,
                Compared::Asked { .. } => OnError::Pause,
            },
        })
    }
}

/// What "too few requests" resolves to once the wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnNoData {
    /// A human decides.
    #[default]
    Inconclusive,
    /// Silence is taken for health.
    Pass,
    /// Silence is taken for harm.
    Fail,
}

/// What an analysis that could not measure does to the rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnError {
    /// Stay at this weight until a human decides.
    Pause,
    /// Roll back, as Argo Rollouts does.
    Abort,
}

/// Who is asked for the value; exactly one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Provider {
    /// Serin's own counters; the result is one number.
    Serin(SerinQuery),
    /// A Prometheus server; a vector is a list of numbers, a scalar one number.
    Prometheus(PrometheusQuery),
    /// Any HTTP endpoint that answers JSON.
    Web(WebQuery),
    /// The sequential judge over Serin's own counters; written `judge:` beside the metric's name.
    Judge(JudgeConfig),
    /// The rank test, once over a window; written `mannWhitney:` beside the metric's name.
    MannWhitney(MannWhitney),
}

/// A question to Serin's own counters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SerinQuery {
    /// What is computed.
    pub metric: SerinMetric,
    /// Whose requests. Absent: the canary's.
    #[serde(default = "canary")]
    pub role: Role,
    /// Fewer requests than this in the window are "no data". Absent: 20.
    #[serde(default = "twenty")]
    pub min_samples: u64,
    /// How long the window may grow before "no data" is resolved by `onNoData`. Absent: 10m.
    #[serde(default = "ten_minutes")]
    pub no_data_timeout: Span,
    /// How far back to look, cut at weight changes. Absent: since the previous measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
    /// For `latency`: which quantile, in (0, 1). Absent: 0.99.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantile: Option<f64>,
}

impl SerinQuery {
    /// The canary's `metric` with the defaults.
    pub fn of(metric: SerinMetric) -> SerinQuery {
        SerinQuery {
            metric,
            role: Role::Canary,
            min_samples: twenty(),
            no_data_timeout: ten_minutes(),
            window: None,
            quantile: None,
        }
    }
}

const fn canary() -> Role {
    Role::Canary
}
const fn twenty() -> u64 {
    20
}
const fn ten_minutes() -> Span {
    Span::secs(600)
}

/// What Serin can tell of a version by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SerinMetric {
    /// Failed first attempts over all, 0 to 1.
    ErrorRate,
    /// 1 minus the error rate.
    SuccessRate,
    /// Requests per second.
    RequestRate,
    /// A quantile of the response time, in seconds.
    Latency,
    /// The canary's error rate minus stable's over the same window, -1 to 1; both need `minSamples`.
    ErrorRateDifference,
}

/// A question to a Prometheus server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PrometheusQuery {
    /// Base address, `http://` or `https://`.
    pub address: String,
    /// PromQL; `{{args.x}}` is replaced.
    pub query: String,
    /// Absent: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Sent with every request; values may hold `{{args.x}}`.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "headers"
    )]
    pub headers: BTreeMap<String, String>,
    /// A PEM file with the authorities that may have signed its certificate. Absent: those that the system trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Accept any certificate. Absent: no.
    #[serde(default)]
    pub insecure: bool,
}

/// A question to an HTTP endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WebQuery {
    /// Where; `{{args.x}}` is replaced.
    pub url: String,
    /// Absent: GET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Sent with every request; values may hold `{{args.x}}`.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "headers"
    )]
    pub headers: BTreeMap<String, String>,
    /// Sent as it is, with PUT and POST.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Which part of the answer is the result, such as `{$.data.ok}`. Absent: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_path: Option<String>,
    /// Absent: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none", alias = "timeoutSeconds")]
    pub timeout: Option<Span>,
    /// A PEM file with the authorities that may have signed its certificate. Absent: those that the system trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Accept any certificate. Absent: no.
    #[serde(default)]
    pub insecure: bool,
}

/// Argo writes limits as numbers or as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(i32),
    Text(String),
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    match NumberOrText::deserialize(deserializer)? {
        NumberOrText::Number(number) => Ok(number),
        NumberOrText::Text(text) => text
            .trim()
            .parse()
            .map_err(|_| de::Error::custom(format_args!("`{text}` is not a whole number"))),
    }
}

fn optional_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    number(deserializer).map(Some)
}

/// Headers are a map, or Argo's list of `{key, value}`.
fn headers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pair {
        key: String,
        value: String,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Headers {
        Map(BTreeMap<String, String>),
        List(Vec<Pair>),
    }
    Ok(match Headers::deserialize(deserializer)? {
        Headers::Map(map) => map,
        Headers::List(list) => list.into_iter().map(|pair| (pair.key, pair.value)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argos_spelling_is_read_as_it_is() {
        let text = r#"{"name": "error-rate", "interval": "1m", "failureLimit": "2",
            "successCondition": "result[0] < 0.01",
            "provider": {"web": {"url": "http://h/", "jsonPath": "{$.data}", "timeoutSeconds": 20,
                                 "headers": [{"key": "a", "value": "b"}]}}}"#;
        let spec: MetricSpec = serde_json::from_str(text).unwrap();
        assert_eq!(
            (
                spec.failure_limit,
                spec.consecutive_error_limit,
                spec.effective_count()
            ),
            (2, 4, None)
        );
        let Provider::Web(web) = &spec.provider else {
            panic!("{spec:?}");
        };
        assert_eq!(
            (web.timeout, web.headers.get("a").map(String::as_str)),
            (Some(Span::secs(20)), Some("b"))
        );
        let stored = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<MetricSpec>(&stored).unwrap(), spec);
    }

    #[test]
    fn an_outage_of_somebody_elses_provider_does_not_roll_back_unless_told_to() {
        let own = MetricSpec::named("m", Provider::Serin(SerinQuery::of(SerinMetric::Latency)));
        assert_eq!(own.on_error(), OnError::Abort);
        let text = r#"{"name": "m", "provider": {"prometheus": {"address": "http://p", "query": "up"}}}"#;
        let mut theirs: MetricSpec = serde_json::from_str(text).unwrap();
        assert_eq!(theirs.on_error(), OnError::Pause);
        theirs.on_error = Some(OnError::Abort);
        assert_eq!(theirs.on_error(), OnError::Abort);
    }
}
