//! The rank test over real traffic: one question over a window, and what its answer does.

use super::judge::ends;
use crate::support::{HEAD, Serin, load::Load, upstream::Upstream};

#[test]
fn a_version_like_stable_passes_the_rank_test_and_a_worse_one_is_pulled_back_with_its_numbers() {
    let (v1, v2, v3) = (
        Upstream::start("v1"),
        Upstream::start("v2"),
        Upstream::start("v3"),
    );
    v3.fail(400);
    let config = format!(
        "{HEAD}services:
  - name: shop
    stable: {{version: v1, endpoints: [\"{}\"]}}
    deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}}
    strategy: {{canary: {{steps: [{{setWeight: 50}}, {{analysis: {{templates: [{{templateName: as-kayenta}}]}}}}]}}}}
analysisTemplates:
  - name: as-kayenta
    metrics:
      - name: errors
        mannWhitney: {{metric: errorRate, interval: 200ms, window: 4s, minRequests: 3, direction: increase}}
",
        v1.url()
    );
    let serin = Serin::start_with(&config);
    let load = Load::start(serin.web, 300);
    let deploy = |version: &str, copy: &Upstream| {
        format!(
            "deploy shop --version {version} --endpoint {} --until healthy --timeout 60s",
            copy.url()
        )
    };
    ends(&serin, 0, &deploy("v2", &v2));
    let history = ends(&serin, 0, "history shop --limit 50");
    assert!(history.contains("analysis_finished"), "{history}");
    let (_, _, analyses) = serin.api("GET", "/v1/services/shop/analysis", "secret-token", "");
    let measured = &analyses["analyses"][0]["metrics"][0]["measurements"][0];
    let said = measured["message"].as_str().unwrap_or_default();
    assert!(
        said.starts_with("no difference between canary and stable is shown: medians 0% and 0% of "),
        "{analyses:#}"
    );
    // In its place the new version fails two of five.
    let said = ends(&serin, 3, &deploy("v3", &v3));
    assert!(
        said.contains("canary is higher than stable: medians ") && said.contains(", shifted by +"),
        "{said}"
    );
    let status = serin.status("shop");
    assert_eq!(
        (&status["phase"], &status["stable"], &status["aborted"]["cause"]),
        (&"Degraded".into(), &"v2".into(), &"analysisFailed".into()),
        "{status:#}"
    );
    assert!(load.stop().with(500, "v3") > 0);
}
