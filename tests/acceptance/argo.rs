//! What a user brings from Argo Rollouts: its steps and metrics, pasted unchanged.

use crate::support::{HEAD, Serin, binary, load::Load, prometheus::Prometheus, upstream::Upstream, wait_for};
use std::{fmt::Write, time::Duration};

const BROUGHT: &str = include_str!("../cases/order-gateway-argo.yaml");

/// The lines of the user's file below this key, moved to the left or right as a whole.
fn pasted(key: &str, indent: usize) -> String {
    let start = BROUGHT.lines().position(|line| line.trim() == key).unwrap() + 1;
    let below = BROUGHT.lines().skip(start).take_while(|line| *line != "---");
    let lines: Vec<&str> = below.collect();
    let depth = lines[0].len() - lines[0].trim_start().len();
    lines.iter().fold(String::new(), |mut text, line| {
        let (blanks, line) = (" ".repeat(indent), &line[depth..]);
        writeln!(text, "{blanks}{line}").unwrap();
        text
    })
}

/// A configuration with the user's steps and template.
fn configuration(stable: &str) -> String {
    format!(
        "{HEAD}
services:
  - name: order-gateway
    stable: {{version: v41, endpoints: [\"{stable}\"]}}
    deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}}
    strategy:
      canary:
        steps:
{}
analysisTemplates:
  - name: error-rate-check
    metrics:
{}",
        pasted("steps:", 10),
        pasted("metrics:", 6)
    )
}

#[test]
fn an_argo_rollout_is_refused_only_for_the_analysis_that_would_never_end() {
    let folder = tempfile::tempdir().unwrap();
    let text = configuration("http://127.0.0.1:9001");
    let file = folder.path().join("serin.yaml");
    std::fs::write(&file, &text).unwrap();
    std::fs::write(folder.path().join("token"), "secret-token\n").unwrap();
    let check = || {
        let output = std::process::Command::new(binary())
            .args(["check", "serin.yaml"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code().unwrap(), said)
    };

    let (code, said) = check();
    let interval = text
        .lines()
        .position(|line| line.trim() == "interval: 1m")
        .unwrap()
        + 1;
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains(&format!("serin.yaml:{interval}:")),
        "line {interval}: {said}"
    );
    assert!(
        said.contains("analysisTemplates[0].metrics[0].interval"),
        "{said}"
    );
    assert!(said.contains("add count: 5 or duration: 5m"), "{said}");
    assert!(said.contains("serin.yaml: 1 error"), "{said}");

    std::fs::write(
        &file,
        text.replace("interval: 1m", "interval: 1m\n        count: 5"),
    )
    .unwrap();
    let (code, said) = check();
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("does not select the canary"), "{said}");
}

#[test]
fn an_argo_manifest_as_a_whole_is_told_where_its_parts_go() {
    let output = std::process::Command::new(binary())
        .args(["check", "tests/cases/order-gateway-argo.yaml"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let line = 1 + BROUGHT
        .lines()
        .position(|line| line.trim() == "interval: 1m")
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("services[].strategy") && said.contains("analysisTemplates[]"),
        "{said}"
    );
    assert!(
        said.contains(&format!("order-gateway-argo.yaml:{line}:")),
        "{said}"
    );
    assert!(said.contains("add count: 5 or duration: 5m"), "{said}");
}

#[test]
fn an_argo_rollout_with_a_count_runs_to_its_end() {
    let (v41, v42) = (Upstream::start("v41"), Upstream::start("v42"));
    let waiting = format!(
        "{HEAD}services: [{{name: order-gateway, stable: {{version: v41, endpoints: [\"{}\"]}}}}]",
        v41.url()
    );
    let serin = Serin::start_with(&waiting);
    let load = Load::start(serin.web, 300);
    let prometheus = Prometheus::scraping(serin.admin);
    let text = configuration(&v41.url())
        .replace("http://prometheus.monitoring:9090", &prometheus.url())
        .replace("{ duration: 5m }", "{ duration: 1s }")
        .replace("interval: 1m", "interval: 500ms\n        count: 2");
    serin.rewrite(&text);
    wait_for("the reload", Duration::from_secs(20), || {
        serin.log().contains("configuration reloaded").then_some(())
    });
    let (code, out, err) = serin.run(&format!(
        "deploy order-gateway --version v42 --endpoint {} --until healthy --timeout 60s",
        v42.url()
    ));
    assert_eq!(code, 0, "{out}{err}\n{:#}", serin.status("order-gateway"));
    let status = serin.status("order-gateway");
    assert_eq!(status["stable"], "v42");
    let runs = status["analyses"].as_array().unwrap();
    assert_eq!(runs.len(), 2, "{runs:#?}");
    for run in runs {
        assert_eq!(
            (&run["phase"], &run["metrics"][0]["successful"]),
            (&"Successful".into(), &2.into())
        );
    }
    let seen = load.stop();
    assert_eq!(seen.errors(), 0, "{seen:?}");
    assert!(seen.with(200, "v42") > 0 && v42.requests() > 0);
}
