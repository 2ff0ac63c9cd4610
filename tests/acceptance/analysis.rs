//! What an analysis measures and what becomes of a rollout by it, beyond the two ways of the milestones.

use crate::support::{Serin, authority::Authority, http::Server, load::Load, upstream::Upstream};
use serde_json::Value;

/// A service `shop` with this strategy and these metrics of the template `check`.
fn shop(v1: &Upstream, canary: &str, metrics: &str) -> String {
    format!(
        "services:
  - name: shop
    stable: {{version: v1, endpoints: [\"{}\"]}}
    deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}}
    ready: {{progressDeadline: 400ms}}
    strategy: {{canary: {{{canary}}}}}
analysisTemplates:
  - name: check
    args: [{{name: key, secretFile: key}}, {{name: limit, value: \"0.5\"}}]
    metrics:
{metrics}",
        v1.url()
    )
}

const GATE: &str = "steps: [{setWeight: 50}, {analysis: {templates: [{templateName: check}]}}, {pause: {}}]";

fn start(services: &str) -> Serin {
    start_in(tempfile::tempdir().unwrap(), services)
}

fn start_in(folder: tempfile::TempDir, services: &str) -> Serin {
    std::fs::write(
        folder.path().join("serin.yaml"),
        format!("{}{services}", crate::support::HEAD),
    )
    .unwrap();
    std::fs::write(folder.path().join("token"), "secret-token\n").unwrap();
    std::fs::write(folder.path().join("key"), "a-secret-argument\n").unwrap();
    Serin::run_in(folder, &[])
}

#[track_caller]
fn ends(serin: &Serin, code: i32, line: &str) -> String {
    let (exit, out, err) = serin.run(line);
    let said = out + &err;
    assert_eq!(exit, code, "serin {line}\n{said}");
    said
}

fn deploy(v2: &Upstream, until: &str) -> String {
    format!(
        "deploy shop --version v2 --endpoint {} --until {until} --timeout 40s",
        v2.url()
    )
}

#[test]
fn every_built_in_metric_and_the_answer_of_a_web_service_can_be_a_gate() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    // The copies of the service send back what they are sent, so one of them can be the web service too.
    let judge = Upstream::start("judge");
    let built_in = |name: &str, condition: &str, query: &str| {
        format!(
            "      - {{name: {name}, interval: 100ms, count: 2, successCondition: \"{condition}\", provider: {{serin: {{{query}, minSamples: 10}}}}}}\n"
        )
    };
    let metrics = [
        built_in("errors", "result < 0.01", "metric: errorRate, role: canary"),
        built_in("stable-errors", "result == 0", "metric: errorRate, role: stable"),
        built_in("successes", "result > {{args.limit}}", "metric: successRate"),
        built_in("rate", "result > 1 && result < 100000", "metric: requestRate"),
        built_in(
            "median",
            "result > 0 && result < 15",
            "metric: latency, quantile: 0.5",
        ),
        built_in("difference", "result < 0.01", "metric: errorRateDifference"),
        format!(
            "      - name: web
        successCondition: result.canary == \"v2\" && asFloat(result.score) >= 0.9
        provider:
          web:
            url: {}/judge
            method: POST
            headers: [{{key: authorization, value: \"Bearer {{{{args.key}}}}\"}}]
            body: '{{\"verdict\": {{\"canary\": \"{{{{args.canary-version}}}}\", \"score\": \"0.93\"}}}}'
            jsonPath: \"{{$.verdict}}\"
",
            judge.url()
        ),
    ]
    .concat();
    let serin = start(&shop(&v1, GATE, &metrics));
    let load = Load::start(serin.web, 300);
    ends(&serin, 0, &deploy(&v2, "step=2"));
    let status = serin.status("shop");
    let run = &status["analyses"][0];
    assert_eq!(run["phase"], "Successful", "{run:#}");
    for metric in run["metrics"].as_array().unwrap() {
        let wanted = if metric["name"] == "web" { 1 } else { 2 };
        assert_eq!(
            (&metric["successful"], &metric["failed"]),
            (&wanted.into(), &0.into()),
            "{metric:#}"
        );
    }
    assert_eq!(judge.requests(), 1);
    // Every measurement is kept with its number, and no secret with it.
    for path in [
        "/v1/services/shop/analysis",
        "/v1/services/shop/history",
        "/v1/config",
        "/v1/services/shop",
    ] {
        let (status, _, answer) = serin.api("GET", path, "secret-token", "");
        assert!(
            status == 200 && !answer.to_string().contains("a-secret-argument"),
            "{path}: {answer:#}"
        );
    }
    let (_, _, window) = serin.api("GET", "/v1/services/shop/metrics?window=1m", "secret-token", "");
    let versions = window["versions"].as_array().unwrap();
    assert!(
        versions.iter().all(|one| one["requests"].as_u64() > Some(0)),
        "{window:#}"
    );
    assert_eq!(load.stop().errors(), 0);
}

#[test]
fn a_provider_that_is_away_pauses_a_rollout_and_aborts_only_one_that_says_so() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let away = |on_error: &str| {
        format!(
            "      - name: away
        consecutiveErrorLimit: 0
        {on_error}
        successCondition: result[0] < 1
        provider: {{prometheus: {{address: \"http://127.0.0.1:9\", query: \"up{{version=\\\"{{{{args.canary-version}}}}\\\"}}\"}}}}
"
        )
    };
    let serin = start(&shop(&v1, GATE, &away("")));
    ends(&serin, 5, &deploy(&v2, "healthy"));
    let status = serin.status("shop");
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&"Paused".into(), &"AnalysisRunError".into()),
        "{status:#}"
    );
    assert!(
        status["analyses"][0].to_string().contains("127.0.0.1:9"),
        "{status:#}"
    );

    let serin = start(&shop(&v1, GATE, &away("onError: abort")));
    ends(&serin, 3, &deploy(&v2, "healthy"));
    assert_eq!(serin.status("shop")["phase"], "Degraded");
}

#[test]
fn a_canary_without_traffic_is_neither_good_nor_bad() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let metric = "      - {name: errors, successCondition: result < 0.01, provider: {serin: {metric: errorRate, noDataTimeout: 300ms}}}\n";
    let serin = start(&shop(&v1, GATE, metric));
    ends(&serin, 5, &deploy(&v2, "healthy"));
    let status = serin.status("shop");
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&"Paused".into(), &"InconclusiveAnalysisRun".into()),
        "{status:#}"
    );
    let said = ends(&serin, 0, "explain shop");
    assert!(said.contains("promote"), "{said}");
    ends(&serin, 0, "promote shop --until step=2 --timeout 20s");
}

#[test]
fn a_running_analysis_is_passed_only_by_who_says_so() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let metric = "      - {name: errors, successCondition: result < 0.01, provider: {serin: {metric: errorRate, noDataTimeout: 10m}}}\n";
    let serin = start(&shop(&v1, GATE, metric));
    ends(&serin, 0, &deploy(&v2, "step=1"));
    let said = ends(&serin, 6, "promote shop");
    assert!(said.contains("skip"), "{said}");
    assert_eq!(serin.status("shop")["step"]["index"], 1);
    ends(
        &serin,
        0,
        "promote shop --skip-analysis --until step=2 --timeout 20s",
    );
    ends(&serin, 0, "promote shop --full --until healthy --timeout 20s");
    assert_eq!(serin.status("shop")["stable"], "v2");
}

#[test]
fn a_background_analysis_pulls_a_bad_version_back_while_everybody_waits_at_a_pause() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let metric = "      - {name: errors, interval: 100ms, successCondition: result < 0.01, provider: {serin: {metric: errorRate, minSamples: 10}}}\n";
    let strategy = "analysis: {templates: [{templateName: check}], startingStep: 1}, steps: [{setWeight: 20}, {pause: {}}, {setWeight: 50}, {pause: {}}]";
    let serin = start(&shop(&v1, strategy, metric));
    let load = Load::start(serin.web, 300);
    ends(&serin, 0, &deploy(&v2, "paused"));
    ends(&serin, 0, "promote shop --until weight=50 --timeout 20s");
    v2.fail(500);
    let said = ends(
        &serin,
        3,
        "wait shop --until healthy --version v2 --through-pauses --timeout 40s",
    );
    assert!(said.contains("Background analysis phase"), "{said}");
    assert_eq!(serin.status("shop")["aborted"]["version"], "v2");
    drop(load);
}

#[test]
fn a_version_that_never_answers_gets_nothing_and_is_given_up_at_its_deadline() {
    let v1 = Upstream::start("v1");
    let serin = start(&shop(&v1, "steps: [{setWeight: 50}, {pause: {}}]", ONE));
    let said = ends(
        &serin,
        3,
        "deploy shop --version v2 --endpoint http://127.0.0.1:9 --until paused --timeout 40s",
    );
    assert!(said.contains("rolled back"), "{said}");
    for _ in 0..10 {
        assert_eq!(crate::support::get(serin.web, "/"), (200, "v1".to_owned()));
    }
}

const ONE: &str =
    "      - {name: errors, successCondition: result < 0.01, provider: {serin: {metric: errorRate}}}\n";

#[test]
fn an_analysis_that_is_killed_goes_on_with_what_it_had_counted() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let metric = "      - {name: errors, interval: 50ms, count: 6, successCondition: result < 0.01, provider: {serin: {metric: errorRate, minSamples: 10}}}\n";
    let mut serin = start(&shop(&v1, GATE, metric));
    ends(&serin, 0, &deploy(&v2, "step=1"));
    let counted = |status: &Value| {
        status["analyses"][0]["metrics"][0]["successful"]
            .as_u64()
            .unwrap_or(0)
    };
    let mut run = Value::Null;
    for life in 1..=3 {
        let load = Load::start(serin.web, 300);
        let status = serin.wait_status("shop", "measurements", |status| counted(status) >= 2 * life);
        drop(load);
        if life == 1 {
            run = status["analyses"][0]["run"].clone();
        }
        serin = serin.crash_and_restart();
        let again = serin.status("shop");
        assert_eq!(again["analyses"][0]["run"], run, "{again:#}");
        assert!(counted(&again) >= 2 * life, "life {life}: {again:#}");
    }
    let status = serin.wait_status("shop", "the end", |status| status["step"]["index"] == 2);
    assert_eq!(
        (&status["analyses"][0]["phase"], counted(&status)),
        (&"Successful".into(), 6),
        "{status:#}"
    );
}

#[test]
fn a_provider_whose_authority_is_its_own_is_believed_by_the_ca_that_is_named_and_by_no_other() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let provider = Server::tls_at(0, &ours, &["http/1.1"]);
    let at = format!("https://127.0.0.1:{}", provider.port());
    let web = format!("web: {{url: \"{at}/\"");
    let prometheus =
        format!("prometheus: {{address: \"{at}\", query: \"up{{version='{{{{args.canary-version}}}}'}}\"");
    for (provider, ca, shows) in [
        (&web, ", ca: ours.pem", "\"phase\":\"Successful\""),
        (&web, ", ca: other.pem", "UnknownIssuer"),
        (&web, "", "UnknownIssuer"),
        // It is no Prometheus, but it is heard.
        (&prometheus, ", ca: ours.pem", "not an answer of Prometheus"),
        (&prometheus, ", ca: other.pem", "UnknownIssuer"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for (name, authority) in [("ours.pem", &ours), ("other.pem", &other)] {
            std::fs::write(folder.path().join(name), authority.pem()).unwrap();
        }
        let metric = format!(
            "      - {{name: outside, consecutiveErrorLimit: 0, successCondition: \"len(result) > 0\", provider: {{{provider}{ca}}}}}}}\n"
        );
        let serin = start_in(folder, &shop(&v1, GATE, &metric));
        ends(&serin, 0, &deploy(&v2, "step=1"));
        serin.wait_status("shop", shows, |status| {
            status["analyses"].to_string().contains(shows)
        });
    }
}
