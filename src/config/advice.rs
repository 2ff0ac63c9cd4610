//! What is legal and probably not meant: the warnings of `serin check` (design section 3), each computed.

use super::compiled::{Config, Service};
use super::cx::Cx;
use super::template::CompiledTemplate;
use crate::analysis::{Compared, Conditions, MetricSpec, Outcome, Provider, Threshold};
use crate::model::Weight;
use crate::rollout::{Step, Strategy};

/// Warns about a service's plan; `path` is where the service stands.
pub(super) fn advise(config: &Config, service: &Service, path: &str, cx: &mut Cx) {
    for (block, version) in [("stable", &service.stable), ("canary", &service.canary)] {
        let endpoints = version.iter().flat_map(|version| &version.endpoints).enumerate();
        for (index, endpoint) in endpoints {
            if let Some(what) = config.own_address(endpoint) {
                cx.warn(
                    &format!("{path}.{block}.endpoints[{index}]"),
                    format!("this is Serin's own {what}: its requests would come back to it"),
                    "name the address that the instance serves at",
                );
            }
        }
    }
    idle_try_limit(config, service, path, cx);
    match &service.plan.strategy {
        Strategy::Canary(_) => canary(service, path, cx),
        Strategy::Immediate => cx.warn(
            &format!("{path}.strategy.immediate"),
            "a new version gets all traffic at once, and nothing judges it",
            "remove strategy for the default plan (1, 5, 25, 50 %, at the pace of the evidence)",
        ),
        Strategy::BlueGreen(_) => {}
    }
    for (index, matching) in service.matches.iter().enumerate() {
        // An entry with filters of its own means something also beside one that matches everything.
        let several = service.matches.len() > 1 && service.filters.is_empty();
        let everything = several && matching.is_everything();
        if everything {
            cx.warn(
                &format!("{path}.match[{index}]"),
                "matches every request: the other entries mean nothing",
                "",
            );
        }
    }
}

/// A limit of each attempt means something only while there is time left for another one (`proxy::table` takes the lesser).
fn idle_try_limit(config: &Config, service: &Service, path: &str, cx: &mut Cx) {
    let Some(per_try) = service.retries.per_try else {
        return;
    };
    let comes_from = |index| {
        let mut listeners = service.matches.iter().map(|matching| matching.listener);
        service.matches.is_empty() || listeners.any(|only| only.is_none_or(|only| only == index))
    };
    let reached = config
        .listeners
        .iter()
        .enumerate()
        .filter(|(index, _)| comes_from(*index));
    for (_, listener) in reached {
        let timeouts = service.timeouts.over(&listener.timeouts);
        let head = (timeouts.response_headers, "responseHeaders");
        let whole = timeouts.request.map(|whole| (whole, "request"));
        let (limit, key) = whole.filter(|(whole, _)| *whole < head.0).unwrap_or(head);
        if per_try >= limit {
            cx.warn(
                &format!("{path}.retries.perTry"),
                format!(
                    "{per_try} never leaves time for another attempt: timeouts.{key} ends a request of listener `{}` \
                     after {limit}",
                    listener.name
                ),
                format!("write less than {limit} (half of it leaves time for a second attempt), or off"),
            );
        }
    }
}

fn canary(service: &Service, path: &str, cx: &mut Cx) {
    let steps = service.plan.steps();
    let key = format!("{path}.strategy.canary.steps");
    let weights = || {
        let given = steps.iter().enumerate();
        given.filter_map(|(index, step)| Some((index, step.weight().filter(|weight| !weight.is_zero())?)))
    };
    let first = weights().next();
    if let Some((index, weight)) = first.filter(|(_, weight)| *weight > Weight::percent(5)) {
        cx.warn(
            &format!("{key}[{index}]"),
            format!("the first step gives an unknown version {weight} of the traffic at once"),
            "begin with 5 or less",
        );
    }
    let background = service.plan.background().is_some();
    let is_analysis = |step: &Step| step.analysis().is_some();
    let is_manual = |step: &Step| matches!(step, Step::Pause(pause) if pause.is_manual());
    let judged = background || steps.iter().any(is_analysis);
    let after_first = first.map_or(steps, |(index, _)| &steps[index..]);
    if !background
        && !after_first
            .iter()
            .any(|step| is_analysis(step) || is_manual(step))
    {
        cx.warn(
            &key,
            "there is no gate between the first step and 100 %: a bad version is promoted by the clock",
            "add an analysis step, a background analysis, or pause: {}",
        );
    }
    let pauses = || steps.iter().filter(|step| matches!(step, Step::Pause(_)));
    if !judged && pauses().next().is_some() && pauses().all(is_manual) {
        cx.warn(
            &key,
            "nothing but indefinite pauses: a person has to watch and promote every step",
            "add an analysis, and give pauses a duration",
        );
    }
}

/// Warns about a template that some plan uses.
pub(super) fn advise_template(compiled: &CompiledTemplate, cx: &mut Cx) {
    for (metric, path) in compiled.template.metrics.iter().zip(&compiled.metric_paths) {
        if metric.dry_run {
            continue;
        }
        blind_query(metric, path, cx);
        silent_nan(metric, path, cx);
        false_alarms(metric, path, cx);
    }
}

/// At 5 % a query over both versions sees a twentieth of the harm.
fn blind_query(metric: &MetricSpec, path: &str, cx: &mut Cx) {
    let (at, provider) = match &metric.provider {
        Provider::MannWhitney(test) => match &test.of {
            Compared::Asked { canary, .. } => ("mannWhitney.canary", &**canary),
            Compared::Own(_) => return,
        },
        other @ (Provider::Serin(_) | Provider::Prometheus(_) | Provider::Web(_) | Provider::Judge(_)) => {
            ("provider", other)
        }
    };
    let (key, text) = match provider {
        Provider::Prometheus(query) => ("prometheus.query", query.query.clone()),
        Provider::Web(query) => (
            "web.url",
            format!("{} {}", query.url, query.body.as_deref().unwrap_or("")),
        ),
        Provider::Serin(query) => {
            if query.role == crate::model::Role::Stable {
                let key = format!("{path}.provider.serin.role");
                cx.warn(&key, "judges stable, not the canary", "remove role");
            }
            return;
        }
        Provider::Judge(_) | Provider::MannWhitney(_) => return,
    };
    // Any argument may be what selects it: only a text without arguments is surely blind.
    let lower = text.to_lowercase();
    let selects = lower.contains("canary") || lower.contains("{{args.") && !only_service(&lower);
    if !selects {
        cx.warn(
            &format!("{path}.{at}.{key}"),
            "does not select the canary: at 5 % it sees a twentieth of the harm",
            "add version=\"{{args.canary-version}}\", or use the provider serin",
        );
    }
}

/// Whether the only argument is `service`, which both versions share.
fn only_service(text: &str) -> bool {
    text.split("{{")
        .skip(1)
        .all(|rest| rest.trim_start().starts_with("args.service"))
}

/// A query that divides by the requests of a window answers NaN when there were none. Argo's rules hold for it: no comparison
/// with NaN is true, so silence is what the conditions happen to make of that.
fn silent_nan(metric: &MetricSpec, path: &str, cx: &mut Cx) {
    let Provider::Prometheus(query) = &metric.provider else {
        return;
    };
    let may_be_nan = query.query.contains('/') || query.query.contains("quantile");
    // Arguments are filled in later; that they are numbers is likely, and which does not matter.
    let filled = |condition: &Option<String>| condition.as_deref().map(without_arguments);
    let (success, failure) = (
        filled(&metric.success_condition),
        filled(&metric.failure_condition),
    );
    let Ok(conditions) = Conditions::compile(success.as_deref(), failure.as_deref()) else {
        return;
    };
    let is_written = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains("isNaN"));
    if is_written(&success) || is_written(&failure) {
        return;
    }
    let (key, what) = match (conditions.judge_vector(&[f64::NAN]).0, &success, &failure) {
        (Outcome::Successful, _, Some(_)) => ("failureCondition", "so silence counts as success"),
        (Outcome::Failed, Some(_), _) if may_be_nan => {
            ("successCondition", "so silence fails the measurement")
        }
        (_, _, _) => return,
    };
    cx.warn(
        &format!("{path}.{key}"),
        format!("NaN (no traffic) is below and above nothing, {what}"),
        "write successCondition and failureCondition: what is neither is inconclusive; or say what it means with isNaN(…)",
    );
}

/// `{{args.limit}}` and its kin as a number.
fn without_arguments(condition: &str) -> String {
    let mut text = String::with_capacity(condition.len());
    let mut rest = condition;
    while let Some((before, after)) = rest.split_once("{{") {
        let Some((_, behind)) = after.split_once("}}") else {
            break;
        };
        text.push_str(before);
        text.push('1');
        rest = behind;
    }
    text.push_str(rest);
    text
}

/// Gates that are wrong more often than this are warned of.
const TOLERABLE: f64 = 0.05;

/// A fixed threshold on a small sample rejects healthy releases (`spec/rollout.md` section 0.2).
fn false_alarms(metric: &MetricSpec, path: &str, cx: &mut Cx) {
    let Some(gate) = Threshold::of(metric, None) else {
        return;
    };
    let (one, any) = (gate.fails_one(gate.healthy), gate.fails(gate.healthy));
    if any <= TOLERABLE {
        return;
    }
    let assumed = if gate.certain { "" } else { " (assumed)" };
    let requests = format!("{} canary requests{assumed}", gate.requests);
    cx.warn(
        &format!("{path}.{}", gate.key),
        format!(
            "a fixed threshold on a small sample: a healthy release with {:.2}% errors fails one measurement over \
             {requests} with probability {:.1}%, and this metric ({} of {} may fail) with {:.1}%",
            gate.healthy * 100.0,
            one * 100.0,
            gate.forgiven,
            gate.count,
            any * 100.0
        ),
        "raise minSamples, failureLimit or the threshold",
    );
}

#[cfg(test)]
#[allow(clippy::format_collect, reason = "short in tests")]
mod tests {
    use crate::config::load_text;
    use std::path::Path;

    fn warnings(strategy: &str, metric: &str) -> String {
        let text = format!(
            "listeners: [{{address: '127.0.0.1:8080'}}]\nservices:\n- name: app\n  stable: {{version: v1, endpoints: \
             ['http://a']}}\n  strategy: {strategy}\nanalysisTemplates:\n- name: t\n  metrics:\n  - {metric}\n"
        );
        let loaded = load_text(&text, "f", Path::new("."), &|_| None);
        let loaded = loaded.map_err(|problems| format!("{problems:#?}")).unwrap();
        loaded
            .warnings
            .iter()
            .map(|warning| format!("{warning}\n"))
            .collect()
    }

    const ANALYSIS: &str =
        "{canary: {steps: [{setWeight: 5}, {analysis: {templates: [{templateName: t}]}}]}}";
    const QUIET: &str = "{name: m, provider: {serin: {metric: latency}}, successCondition: result < 0.5}";

    fn prometheus(query: &str, rest: &str) -> String {
        format!("{{name: m, {rest}, provider: {{prometheus: {{address: 'http://p', query: '{query}'}}}}}}")
    }

    #[test]
    fn a_sound_plan_is_not_warned_of() {
        assert_eq!(warnings(ANALYSIS, QUIET), "");
    }

    #[test]
    fn each_doubtful_plan_is_named() {
        let unused = "no strategy uses the template";
        for (strategy, expected) in [
            (
                "{canary: {steps: [{setWeight: 10}, {pause: {}}]}}",
                "steps[0]: the first step gives an unknown version 10%",
            ),
            (
                "{canary: {steps: [{setWeight: 5}, {pause: {duration: 5m}}]}}",
                "no gate between the first step and 100 %",
            ),
            (
                "{canary: {steps: [{pause: {}}, {setWeight: 5}]}}",
                "no gate between the first step and 100 %",
            ),
            (
                "{canary: {steps: []}}",
                "no gate between the first step and 100 %",
            ),
            (
                "{canary: {steps: [{setWeight: 5}, {pause: {}}, {setWeight: 50}, {pause: {}}]}}",
                "nothing but indefinite pauses",
            ),
            ("{immediate: {}}", "gets all traffic at once"),
        ] {
            let warnings = warnings(strategy, QUIET);
            assert!(
                warnings.contains(expected) && warnings.contains(unused),
                "{strategy}\n{warnings}"
            );
        }
        let background =
            "{canary: {analysis: {templates: [{templateName: t}]}, steps: [{setWeight: 5}, {pause: {}}]}}";
        assert_eq!(warnings(background, QUIET), "");
    }

    #[test]
    fn a_query_that_does_not_select_the_canary_is_named() {
        let blind = |query: &str| {
            warnings(
                ANALYSIS,
                &prometheus(query, "successCondition: \"result[0] < 900\""),
            )
            .contains("does not select the canary")
        };
        assert!(blind("sum(rate(http_requests_total{job=\"a\"}[5m]))"));
        assert!(blind("x{service=\"{{args.service}}\"}"));
        assert!(!blind("x{version=\"{{args.canary-version}}\"}"));
        assert!(!blind("x{role=\"canary\"}"));
    }

    #[test]
    fn an_endpoint_that_is_serin_itself_is_named() {
        let text = "listeners: [{name: web, address: '0.0.0.0:8080'}]\nservices:\n- name: a\n  stable: {version: v1, \
                    endpoints: ['http://127.0.0.1:8080', 'http://127.0.0.1:9001', 'http://localhost:9900']}\n";
        let loaded = crate::config::load_text(text, "f", std::path::Path::new("."), &|_| None).unwrap();
        let said: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 2, "{said:#?}");
        assert!(
            said[0].contains("endpoints[0]: this is Serin's own listener `web`"),
            "{said:#?}"
        );
        assert!(
            said[1].contains("endpoints[2]: this is Serin's own admin address"),
            "{said:#?}"
        );
    }

    #[test]
    fn a_limit_of_each_attempt_that_never_leaves_time_for_another_is_named() {
        let said = |web: &str, inner: &str, service: &str| {
            let text = format!(
                "listeners: [{{name: web, address: '127.0.0.1:8080', timeouts: {{{web}}}}}, {{name: inner, address: \
                 '127.0.0.1:8081', timeouts: {{{inner}}}}}]\nservices:\n- name: a\n  stable: {{version: v1, endpoints: \
                 ['http://127.0.0.1:9001']}}\n  {service}\n"
            );
            let loaded = crate::config::load_text(&text, "f", std::path::Path::new("."), &|_| None).unwrap();
            let said = loaded.warnings.iter().map(ToString::to_string);
            said.collect::<Vec<String>>()
        };
        let heads = |limit| format!("responseHeaders: {limit}");
        let (short, long) = (&*heads("2s"), &*heads("2001ms"));
        let two = said(short, short, "retries: {perTry: 2s}");
        assert!(two.len() == 2 && two[1].contains("`inner`"), "{two:#?}");
        assert!(
            two[0].contains(
                "services[0].retries.perTry: 2s never leaves time for another attempt: timeouts.responseHeaders ends a \
                 request of listener `web` after 2s"
            ) && two[0].contains("write less than 2s"),
            "{two:#?}"
        );
        for (web, inner, service, expected) in [
            (long, long, "retries: {perTry: 2s}", 0),
            (short, short, "retries: {perTry: off}", 0),
            (short, short, "retries: {budget: 10%}", 0),
            (long, short, "retries: {perTry: 2s}", 1),
            // Nothing comes to it from the other one.
            (
                long,
                short,
                "match: [{listener: web}]\n  retries: {perTry: 2s}",
                0,
            ),
            (
                short,
                long,
                "match: [{listener: web}]\n  retries: {perTry: 2s}",
                1,
            ),
            // The service's own hold at every listener.
            (
                short,
                short,
                "timeouts: {responseHeaders: 3s}\n  retries: {perTry: 2s}",
                0,
            ),
            (
                long,
                long,
                "timeouts: {responseHeaders: 1s}\n  retries: {perTry: 2s}",
                2,
            ),
            (long, long, "timeouts: {request: 1s}\n  retries: {perTry: 1s}", 2),
        ] {
            let said = said(web, inner, service);
            assert_eq!(said.len(), expected, "{web} {inner} {service} {said:#?}");
        }
        let whole = said(long, long, "timeouts: {request: 1s}\n  retries: {perTry: 1s}");
        assert!(whole[0].contains("timeouts.request ends"), "{whole:#?}");
    }

    #[test]
    fn what_silence_counts_as_is_named_unless_it_is_inconclusive_or_written() {
        let ratio = "a{role=\"canary\"} / b{role=\"canary\"}";
        let said = |query: &str, conditions: &str| {
            let warnings = warnings(ANALYSIS, &prometheus(query, conditions));
            let of = |what: &str| warnings.contains(what);
            (
                of("silence counts as success"),
                of("silence fails the measurement"),
            )
        };
        let plain = "x{role=\"canary\"}";
        let quantile = "histogram_quantile(0.9, x{role=\"canary\"})";
        for (query, conditions, expected) in [
            (plain, "failureCondition: \"result[0] > 900\"", (true, false)),
            (
                ratio,
                "failureCondition: \"result[0] > {{args.canary-version}}\"",
                (true, false),
            ),
            (ratio, "successCondition: \"result[0] < 0.5\"", (false, true)),
            (
                ratio,
                "successCondition: \"result[0] < {{args.canary-version}}\"",
                (false, true),
            ),
            (quantile, "successCondition: \"result[0] < 0.5\"", (false, true)),
            (
                ratio,
                "successCondition: \"!(result[0] >= 0.5)\", failureCondition: \"result[0] > 1\"",
                (true, false),
            ),
            // A count is never NaN.
            (plain, "successCondition: \"result[0] < 900\"", (false, false)),
            (
                ratio,
                "successCondition: \"result[0] < 0.5\", failureCondition: \"result[0] >= 0.5\"",
                (false, false),
            ),
            (
                ratio,
                "successCondition: \"isNaN(result[0]) || result[0] < 0.5\"",
                (false, false),
            ),
            (
                ratio,
                "failureCondition: \"isNaN(result[0]) || result[0] > 0.5\"",
                (false, false),
            ),
            (ratio, "failureLimit: 1", (false, false)),
        ] {
            assert_eq!(said(query, conditions), expected, "{query} {conditions}");
        }
    }

    #[test]
    fn a_threshold_that_rejects_healthy_releases_is_warned_of_with_the_figure() {
        let serin = |rest: &str, samples: u32| {
            let metric = format!(
                "{{name: m, interval: 1m, {rest}, provider: {{serin: {{metric: errorRate, minSamples: {samples}}}}}}}"
            );
            warnings(ANALYSIS, &metric)
        };
        let shown = serin("count: 5, successCondition: result <= 0.01", 60);
        assert!(
            shown.contains(
                "0.50% errors fails one measurement over 60 canary requests with probability 26.0%"
            ),
            "{shown}"
        );
        assert!(shown.contains("(0 of 5 may fail) with 77.8%"), "{shown}");
        assert!(serin("count: 5, failureCondition: result > 0.01", 60).contains("26.0%"));
        assert_eq!(
            serin("count: 5, failureLimit: 1, successCondition: result < 0.01", 3000),
            ""
        );
        let query = "a{role=\"canary\"} / b{role=\"canary\"}";
        let shown = warnings(
            ANALYSIS,
            &prometheus(
                query,
                "interval: 1m, count: 5, successCondition: \"result[0] < 0.01\"",
            ),
        );
        assert!(shown.contains("over 300 canary requests (assumed)"), "{shown}");
        let shown = warnings(
            ANALYSIS,
            &prometheus(
                query,
                "interval: 1m, count: 5, successCondition: \"result[0] > 0.99\"",
            ),
        );
        assert!(shown.contains("0.50% errors"), "{shown}");
    }
}
