//! `mannWhitney`: a metric that is Kayenta's rank test of both versions' samples.

use super::cx::Cx;
use super::template::{ProviderConfig, compile_provider};
use crate::analysis::{Compared, Direction, MOST_SAMPLES, MannWhitney, Provider, SerinMetric, SerinQuery};
use crate::model::Span;

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MannWhitneyConfig {
    /// errorRate, successRate, requestRate or latency, as Serin measures them; this, or canary and stable.
    metric: Option<SerinMetric>,
    /// For latency. Absent: 0.5.
    quantile: Option<f64>,
    /// So many requests of each version an interval needs, or it gives no sample. Absent: 10.
    min_requests: Option<u64>,
    /// Whom to ask for the canary's value: prometheus or web.
    canary: Option<ProviderConfig>,
    /// Whom to ask for stable's.
    stable: Option<ProviderConfig>,
    /// From one sample to the next. Absent: 10s.
    interval: Option<Span>,
    /// All samples are taken in this time, then the test is made, once. Absent: 10m.
    window: Option<Span>,
    /// With fewer samples of both there is no data. Absent: 10.
    min_samples: Option<usize>,
    /// How sure the test must be. Absent: 0.98.
    confidence: Option<f64>,
    /// The interval must lie beyond this share of the shift itself. Absent: 0.25.
    tolerance: Option<f64>,
    /// Which differences count. Absent: either.
    direction: Option<Direction>,
    /// A mean up to this many times stable's is no difference. Absent: any is one.
    allowed_increase: Option<f64>,
    /// A mean down to this many times stable's is no difference. Absent: any is one.
    allowed_decrease: Option<f64>,
    /// Without data it has failed, too. Absent: false.
    #[serde(default)]
    pub(super) critical: bool,
}

impl MannWhitneyConfig {
    /// Whom it asks, with the keys.
    pub(super) fn providers(&self) -> impl Iterator<Item = (&'static str, &ProviderConfig)> {
        let both = [("canary", &self.canary), ("stable", &self.stable)];
        both.into_iter()
            .filter_map(|(key, provider)| Some((key, provider.as_ref()?)))
    }
}

/// Requests that each version needs in an interval where nothing is written.
const REQUESTS: u64 = 10;

/// Compiles the test; `path` is where it stands.
pub(super) fn compile(config: &MannWhitneyConfig, path: &str, cx: &mut Cx) -> Option<Provider> {
    let default = MannWhitney::of(compared(config, path, cx)?);
    let test = MannWhitney {
        interval: config.interval.unwrap_or(default.interval),
        window: config.window.unwrap_or(default.window),
        min_samples: config.min_samples.unwrap_or(default.min_samples),
        confidence: config.confidence.unwrap_or(default.confidence),
        tolerance: config.tolerance.unwrap_or(default.tolerance),
        direction: config.direction.unwrap_or(default.direction),
        allowed_increase: config.allowed_increase,
        allowed_decrease: config.allowed_decrease,
        ..default
    };
    let sound = check_numbers(&test, path, cx);
    if sound {
        check_samples(&test, path, cx);
    }
    Some(Provider::MannWhitney(test))
}

fn compared(config: &MannWhitneyConfig, path: &str, cx: &mut Cx) -> Option<Compared> {
    match (config.metric, &config.canary, &config.stable) {
        (Some(metric), None, None) => Some(Compared::Own(own(metric, config, path, cx))),
        (None, Some(canary), Some(stable)) => {
            for (key, written) in [
                ("quantile", config.quantile.is_some()),
                ("minRequests", config.min_requests.is_some()),
            ] {
                if written {
                    let path = format!("{path}.{key}");
                    cx.error(
                        &path,
                        "belongs to metric: a provider's answer is taken as it is",
                        "remove it",
                    );
                }
            }
            let mut side = |provider: &ProviderConfig, key: &str| {
                let path = format!("{path}.{key}");
                match compile_provider(provider, &path, cx)? {
                    asked @ (Provider::Prometheus(_) | Provider::Web(_)) => Some(asked),
                    Provider::Serin(_) | Provider::Judge(_) | Provider::MannWhitney(_) => {
                        let what = "Serin's own counters are compared by metric, of both versions at once";
                        cx.error(
                            &path,
                            what,
                            "write metric: errorRate, for example, instead of canary and stable",
                        );
                        None
                    }
                }
            };
            // Both are looked at, so that the faults of both are reported.
            let (canary, stable) = (side(canary, "canary"), side(stable, "stable"));
            let (canary, stable) = (canary?, stable?);
            if canary == stable {
                cx.error(
                    &format!("{path}.stable"),
                    "asks the same as canary: there will never be a difference",
                    "select a version in each, with {{args.canary-version}} and {{args.stable-version}}",
                );
            }
            Some(Compared::Asked {
                canary: Box::new(canary),
                stable: Box::new(stable),
            })
        }
        (None, None, None) => {
            cx.error(
                path,
                "nothing is compared",
                "add for example metric: latency, or canary: {prometheus: …} and stable: {prometheus: …}",
            );
            None
        }
        (Some(_), _, _) => {
            cx.error(
                path,
                "metric excludes canary and stable",
                "keep metric, or both others",
            );
            None
        }
        (None, _, _) => {
            cx.error(path, "canary and stable go together", "add the other one");
            None
        }
    }
}

fn own(metric: SerinMetric, config: &MannWhitneyConfig, path: &str, cx: &mut Cx) -> SerinQuery {
    if metric == SerinMetric::ErrorRateDifference {
        cx.error(
            &format!("{path}.metric"),
            "the test compares both versions itself",
            "write errorRate",
        );
    }
    let is_latency = metric == SerinMetric::Latency;
    if config.quantile.is_some() && !is_latency {
        cx.error(
            &format!("{path}.quantile"),
            "only latency has quantiles",
            "remove it",
        );
    }
    if config
        .quantile
        .is_some_and(|quantile| !(quantile > 0.0 && quantile < 1.0))
    {
        let path = format!("{path}.quantile");
        cx.error(&path, "a quantile lies between 0 and 1", "write for example 0.5");
    }
    SerinQuery {
        quantile: is_latency.then(|| config.quantile.unwrap_or(0.5)),
        min_samples: config.min_requests.unwrap_or(REQUESTS).max(1),
        ..SerinQuery::of(metric)
    }
}

/// Whether the numbers are such that the test can be made.
fn check_numbers(test: &MannWhitney, path: &str, cx: &mut Cx) -> bool {
    let mut sound = true;
    let mut refuse = |key: &str, what: &str, hint: &str| {
        cx.error(&format!("{path}.{key}"), what, hint);
        sound = false;
    };
    if !(0.5..=0.9999).contains(&test.confidence) {
        refuse(
            "confidence",
            "a confidence lies between 0.5 and 0.9999",
            "write for example 0.98",
        );
    }
    if !(0.0..1.0).contains(&test.tolerance) {
        refuse(
            "tolerance",
            "a tolerance of 1 or more of the shift is never exceeded",
            "write a number from 0 to below 1, such as 0.25",
        );
    }
    if test
        .allowed_increase
        .is_some_and(|ratio| !(ratio.is_finite() && ratio >= 1.0))
    {
        refuse(
            "allowedIncrease",
            "is how many times stable's mean is allowed, 1 or more",
            "write for example 1.1",
        );
    }
    if test
        .allowed_decrease
        .is_some_and(|ratio| !(0.0..=1.0).contains(&ratio))
    {
        refuse(
            "allowedDecrease",
            "is how many times stable's mean is allowed, from 0 to 1",
            "write for example 0.9",
        );
    }
    if test.interval.is_zero() {
        refuse(
            "interval",
            "interval must be longer than 0s",
            "write for example 10s",
        );
    }
    sound
}

/// Whether there will be as many samples as are needed, and no more than can be compared.
fn check_samples(test: &MannWhitney, path: &str, cx: &mut Cx) {
    let (planned, least) = (test.planned(), test.least_samples());
    if test.min_samples < least {
        cx.error(
            &format!("{path}.minSamples"),
            format!(
                "{} samples of each version can show nothing with confidence {}",
                test.min_samples, test.confidence
            ),
            format!("write {least} or more"),
        );
    }
    if planned < test.min_samples {
        cx.error(
            &format!("{path}.window"),
            format!(
                "{} at one sample every {} gives {planned} samples, and minSamples is {}",
                test.window, test.interval, test.min_samples
            ),
            "lengthen the window or shorten the interval",
        );
    }
    if planned > MOST_SAMPLES {
        cx.error(
            &format!("{path}.window"),
            format!(
                "{} at one sample every {} gives {planned} samples, and at most {MOST_SAMPLES} are compared",
                test.window, test.interval
            ),
            "shorten the window or lengthen the interval",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::{MetricSpec, OnError, OnNoData, WebQuery};
    use crate::config::load_text;
    use std::path::Path;

    fn metric(written: &str) -> Result<MetricSpec, String> {
        let text = format!(
            "listeners: [{{address: '127.0.0.1:8080'}}]\nservices:\n- name: app\n  stable: {{version: v1, endpoints: \
             ['http://a']}}\nanalysisTemplates:\n- name: t\n  metrics:\n  - {written}\n"
        );
        match load_text(&text, "f", Path::new("."), &|_| None) {
            Ok(loaded) => Ok(loaded.config.templates["t"].metrics[0].clone()),
            Err(problems) => {
                let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
                Err(said.join("\n"))
            }
        }
    }

    fn test(spec: &MetricSpec) -> &MannWhitney {
        match &spec.provider {
            Provider::MannWhitney(test) => test,
            other
            @ (Provider::Serin(_) | Provider::Prometheus(_) | Provider::Web(_) | Provider::Judge(_)) => {
                panic!("{other:?}")
            }
        }
    }

    #[test]
    fn what_is_not_written_is_as_kayenta_has_it() {
        let spec = metric("{name: m, mannWhitney: {metric: latency}}").unwrap();
        let own = SerinQuery {
            quantile: Some(0.5),
            min_samples: 10,
            ..SerinQuery::of(SerinMetric::Latency)
        };
        assert_eq!(*test(&spec), MannWhitney::of(Compared::Own(own)));
        assert_eq!((test(&spec).confidence, test(&spec).tolerance), (0.98, 0.25));
        assert_eq!(test(&spec).direction, Direction::Either);
        assert_eq!(
            (spec.on_no_data, spec.on_error()),
            (OnNoData::Inconclusive, OnError::Abort)
        );
        assert_eq!((spec.effective_count(), spec.is_bounded()), (Some(1), true));
        let stored = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<MetricSpec>(&stored).unwrap(), spec);
    }

    #[test]
    fn what_is_written_holds() {
        let spec = metric(
            "{name: m, initialDelay: 5s, dryRun: true, mannWhitney: {metric: errorRate, minRequests: 3, interval: 5s, window: 3m, \
             minSamples: 20, confidence: 0.95, tolerance: 0.1, direction: increase, allowedIncrease: 1.1, allowedDecrease: 0.5, \
             critical: true}}",
        )
        .unwrap();
        let own = SerinQuery {
            min_samples: 3,
            ..SerinQuery::of(SerinMetric::ErrorRate)
        };
        let wanted = MannWhitney {
            of: Compared::Own(own),
            interval: Span::secs(5),
            window: Span::secs(180),
            min_samples: 20,
            confidence: 0.95,
            tolerance: 0.1,
            direction: Direction::Increase,
            allowed_increase: Some(1.1),
            allowed_decrease: Some(0.5),
        };
        assert_eq!(*test(&spec), wanted);
        assert_eq!(
            (spec.on_no_data, spec.initial_delay),
            (OnNoData::Fail, Some(Span::secs(5)))
        );
    }

    #[test]
    fn two_questions_may_be_asked_of_others() {
        let spec = metric(
            "{name: m, mannWhitney: {canary: {web: {url: 'http://h/{{args.canary-version}}', jsonPath: '{$.a}'}}, stable: {web: \
             {url: 'http://h/{{args.stable-version}}'}}}}",
        )
        .unwrap();
        let Compared::Asked { canary, .. } = &test(&spec).of else {
            panic!("{spec:?}")
        };
        assert!(
            matches!(&**canary, Provider::Web(WebQuery { json_path: Some(path), .. }) if path == "{$.a}"),
            "{canary:?}"
        );
        assert_eq!(spec.on_error(), OnError::Pause);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_where_it_stands() {
        let same = "{web: {url: 'http://h/canary'}}";
        let both = format!("canary: {same}, stable: {same}");
        let with = |more: &str| format!("mannWhitney: {{metric: latency, {more}}}");
        for (written, key, part) in [
            ("mannWhitney: {}".to_owned(), "mannWhitney", "nothing is compared"),
            (with(&both), "mannWhitney", "metric excludes canary and stable"),
            (format!("mannWhitney: {{canary: {same}}}"), "mannWhitney", "go together"),
            (format!("mannWhitney: {{{both}}}"), "mannWhitney.stable", "asks the same"),
            (
                format!("mannWhitney: {{canary: {same}, stable: {{serin: {{metric: latency}}}}}}"),
                "mannWhitney.stable",
                "by metric",
            ),
            (
                format!("mannWhitney: {{{both}, minRequests: 3}}"),
                "mannWhitney.minRequests",
                "belongs to metric",
            ),
            (
                "mannWhitney: {canary: {web: {url: 'http://h/{{args.nope}}'}}, stable: {web: {url: 'http://h/'}}}".to_owned(),
                "mannWhitney.canary.web.url",
                "nope",
            ),
            ("mannWhitney: {metric: errorRateDifference}".to_owned(), "mannWhitney.metric", "itself"),
            ("mannWhitney: {metric: errorRate, quantile: 0.5}".to_owned(), "mannWhitney.quantile", "only latency"),
            (with("quantile: 1"), "mannWhitney.quantile", "between 0 and 1"),
            (with("confidence: 98"), "mannWhitney.confidence", "between 0.5 and 0.9999"),
            (with("tolerance: 1"), "mannWhitney.tolerance", "never exceeded"),
            (with("allowedIncrease: 0.1"), "mannWhitney.allowedIncrease", "1 or more"),
            (with("allowedDecrease: 1.1"), "mannWhitney.allowedDecrease", "from 0 to 1"),
            (with("interval: 0s"), "mannWhitney.interval", "longer than 0s"),
            (with("minSamples: 4"), "mannWhitney.minSamples", "write 5 or more"),
            (with("window: 90s"), "mannWhitney.window", "gives 9 samples, and minSamples is 10"),
            (with("interval: 1s"), "mannWhitney.window", "at most 500 are compared"),
            (with("onse: 1"), "mannWhitney.onse", "unknown key"),
            (format!("count: 3, {}", with("")), "count", "made once, over its own window"),
            (format!("interval: 3s, {}", with("")), "interval", "its interval stands in mannWhitney"),
            (format!("judge: {{}}, {}", with("")), "metrics[0]", "exclude each other"),
            (format!("onNoData: pass, {}", with("critical: true")), "onNoData", "no data is a failure"),
            ("provider: {kayenta: {}}".to_owned(), "provider.kayenta", "write mannWhitney"),
        ] {
            let said = metric(&format!("{{name: m, {written}}}")).expect_err(&written);
            assert!(said.contains(key) && said.contains(part), "{written}\n{said}");
        }
    }
}
