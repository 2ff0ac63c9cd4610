//! The six milestones of a canary lab, as a user goes through them: once with what Serin measures itself, once with a
//! real Prometheus that scrapes it.

use crate::judge::ends;
use crate::support::{
    HEAD, Serin, get,
    load::Load,
    prometheus::{Prometheus, promtool_complains},
    upstream::Upstream,
    wait_for,
};
use serde_json::Value;
use std::time::Duration;

/// Built in: the canary's own error rate since the weight was set.
fn by_serin(_: &Serin) -> (String, Option<Prometheus>) {
    let metric = "
      - name: error-rate
        interval: 500ms
        count: 2
        successCondition: result < 0.01
        provider: {serin: {metric: errorRate, role: canary, minSamples: 40, noDataTimeout: 60s}}
";
    (metric.to_owned(), None)
}

/// Asked of a Prometheus, by a query that selects the canary. Where it has not seen a request, as when it was late on a busy
/// machine, it answers nothing, which is an error and asked again, rather than 0/0, which would fail the measurement.
fn by_prometheus(serin: &Serin) -> (String, Option<Prometheus>) {
    let prometheus = Prometheus::scraping(serin.admin);
    let metric = format!(
        r#"
      - name: error-rate
        initialDelay: 2s
        interval: 500ms
        count: 2
        consecutiveErrorLimit: 20
        successCondition: result[0] < 0.01
        provider:
          prometheus:
            address: {}
            query: |
              sum(rate(http_requests_total{{job="order-gateway",version="{{{{args.canary-version}}}}",status=~"5.."}}[5s]))
              /
              (sum(rate(http_requests_total{{job="order-gateway",version="{{{{args.canary-version}}}}"}}[5s])) > 0)
"#,
        prometheus.url()
    );
    (metric, Some(prometheus))
}

#[test]
fn a_canary_lab_with_what_serin_measures() {
    lab(by_serin);
}

#[test]
fn a_canary_lab_with_a_prometheus_that_scrapes_serin() {
    lab(by_prometheus);
}

fn lab(template: fn(&Serin) -> (String, Option<Prometheus>)) {
    let (v1, v2, v3) = (
        Upstream::start("v1"),
        Upstream::start("v2"),
        Upstream::start("v3"),
    );

    // 1. Install and start; 2. a stable service is taken over.
    let stable = format!(
        "services:
  - name: order-gateway
    stable: {{version: v1, endpoints: [\"{}\"]}}
    ready: {{http: /healthz}}
    deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}}
",
        v1.url()
    );
    let serin = Serin::start(&stable);
    let load = Load::start(serin.web, 500);
    let (code, out, _) = serin.run("get order-gateway");
    assert!(
        code == 0 && out.contains("Healthy") && out.contains("v1"),
        "{out}"
    );
    wait_for("stable to serve", Duration::from_secs(20), || {
        (load.seen().with(200, "v1") > 20).then_some(())
    });

    // 3. The error-rate template is defined, in the file that is being served.
    let (metric, prometheus) = template(&serin);
    serin.rewrite(&format!(
        "{HEAD}{stable}    strategy:
      canary:
        steps:
          - setWeight: 5
          - pause: {{duration: 1s}}
          - analysis: {{templates: [{{templateName: error-rate-check}}]}}
          - setWeight: 25
          - analysis: {{templates: [{{templateName: error-rate-check}}]}}
          - setWeight: 50
          - pause: {{duration: 300ms}}
          - setWeight: 100
          - pause: {{duration: 300ms}}
analysisTemplates:
  - name: error-rate-check
    metrics:{metric}"
    ));
    ends(&serin, 0, "check serin.yaml");
    wait_for("the template to be taken", Duration::from_secs(20), || {
        serin.log().contains("configuration reloaded").then_some(())
    });

    // 4. A pipeline deploys: 5 %, and a pause before the analysis. 5. The version fails one request of twenty.
    v2.fail(50);
    let deployed = pipeline(&serin, "deploy order-gateway --version v2", &v2, "paused");
    assert_eq!(deployed.0, 0, "{deployed:?}");
    let status = serin.status("order-gateway");
    assert_eq!(
        (status["canary"].as_str(), status["setWeight"].as_f64()),
        (Some("v2"), Some(5.0))
    );
    let failed = pipeline(&serin, "deploy order-gateway --version v2", &v2, "healthy");
    // Not before: the pause would be over, and the version gone, while a busy machine looks at them.
    for path in ["/metrics", "/metrics/compat"] {
        assert_eq!(promtool_complains(&get(serin.admin, path).1), None, "{path}");
    }
    assert_eq!(failed.0, 3, "{failed:?}");
    let status = serin.status("order-gateway");
    assert_eq!(status["phase"], "Degraded", "{status:#}");
    assert_eq!(status["setWeight"].as_f64(), Some(0.0));
    assert_eq!(
        (&status["stable"], &status["rolledBackFrom"]),
        (&"v1".into(), &"v2".into())
    );
    let why = status["message"].as_str().unwrap();
    assert!(
        why.contains("error-rate") && why.contains("failed (1) > failureLimit (0)"),
        "{why}"
    );
    assert!(
        failed.1.contains("rolled back") && failed.1.contains("error-rate"),
        "{failed:?}"
    );
    let (_, out, _) = serin.run("get order-gateway");
    assert!(out.contains("Degraded"), "{out}");
    // Nothing new reaches it.
    let (before, served) = (v2.requests(), v1.requests());
    wait_for("stable to serve all", Duration::from_secs(20), || {
        (v1.requests() > served + 100).then_some(())
    });
    assert!(v2.requests() <= before + 1, "{} after {before}", v2.requests());

    // 6. A healthy one is promoted through 25, 50 to 100.
    let clean = load.seen();
    let promoted = pipeline(&serin, "deploy order-gateway --version v3", &v3, "healthy");
    let analyses = || get(serin.admin, "/v1/services/order-gateway/analysis").1;
    assert_eq!(promoted.0, 0, "{promoted:?}\n{}\n{:?}", analyses(), load.seen());
    assert_eq!(serin.status("order-gateway")["stable"], "v3");
    assert_eq!(weights(&serin, "v3"), [5.0, 25.0, 50.0, 100.0]);
    let seen = load.seen();
    assert_eq!(seen.errors(), clean.errors(), "{seen:?}");
    assert_eq!(seen.with(500, "v2"), seen.errors(), "only v2 failed: {seen:?}");
    // What Serin has counted is what clients saw, to the last request.
    let seen = load.stop();
    for ((status, version), count) in &seen.answers {
        let labels = [("status", &*status.to_string()), ("version", version)];
        wait_for("the count to be clients' count", Duration::from_secs(10), || {
            let counted = serin.metric("serin_http_requests_total", &labels);
            (format!("{counted}") == count.to_string()).then_some(())
        });
    }
    drop(prometheus);
}

/// What a CI job runs: exit code and what it said.
fn pipeline(serin: &Serin, verb: &str, upstream: &Upstream, until: &str) -> (i32, String) {
    let endpoint = upstream.url();
    let (code, out, err) = serin.run(&format!(
        "{verb} --endpoint {endpoint} --until {until} --timeout 60s"
    ));
    (code, out + &err)
}

/// The canary's shares in the order in which they were set.
fn weights(serin: &Serin, version: &str) -> Vec<f64> {
    let (code, out, err) = serin.run("history order-gateway --limit 200 -o json");
    assert_eq!(code, 0, "{err}");
    let history: Value = serde_json::from_str(&out).unwrap();
    let rollouts = history["rollouts"].as_array().unwrap();
    let rollout = rollouts.iter().find(|one| one["version"] == version).unwrap();
    let events = history["events"].as_array().unwrap().iter().rev();
    let mut weights: Vec<f64> = events
        .filter(|event| event["rollout"] == rollout["id"])
        .filter_map(|event| event["weight"].as_f64())
        .filter(|weight| *weight > 0.0)
        .collect();
    weights.dedup();
    weights
}
