//! The given case files hold, and broken ones say what is wrong with them.

use super::*;
use crate::{
    model::VersionName,
    rollout::{Pause, Plan, Step},
};
use std::path::PathBuf;

fn rehearse(files: &[PathBuf], planned: Option<&script::Planned>) -> (u8, String) {
    let mut out = Vec::new();
    let code = run(files, planned, &mut out).unwrap();
    (code, String::from_utf8(out).unwrap())
}

fn rehearse_text(text: &str) -> (u8, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scenario.yaml");
    fs::write(&file, text).unwrap();
    rehearse(&[file], None)
}

fn given(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/cases")
        .join(name)
}

#[test]
fn every_given_analysis_case_holds() {
    let (code, out) = rehearse(&[given("analysis.json")], None);
    assert_eq!(code, HELD, "{out}");
    assert!(out.ends_with("37/37 hold\n"), "{out}");
}

#[test]
fn every_given_rollout_case_holds() {
    let (code, out) = rehearse(&[given("rollout.json")], None);
    assert_eq!(code, HELD, "{out}");
}

#[test]
fn every_case_derived_from_the_rules_holds() {
    let files = [given("analysis-rules.json"), given("rollout-rules.json")];
    let (code, out) = rehearse(&files, None);
    assert_eq!(code, HELD, "{out}");
    assert!(out.ends_with("208/208 hold\n"), "{out}");
}

#[test]
fn every_given_judge_case_holds() {
    let (code, out) = rehearse(&[given("judge.json")], None);
    assert_eq!(code, HELD, "{out}");
    assert!(out.ends_with("13/13 hold\n"), "{out}");
}

#[test]
fn an_expectation_that_does_not_hold_is_shown_and_counted() {
    let (code, out) = rehearse_text(
        "canary: [{id: X1, spec: {steps: [{setWeight: 20}, {pause: {}}]}, timeline: [
           {event: {do: deploy, version: v2}, expect: {phase: Healthy, traffic: {v2: 20, v1: 80}}}]}]",
    );
    assert_eq!(code, BROKEN, "{out}");
    assert!(
        out.contains("phase: expected \"Healthy\", but it is \"Paused\""),
        "{out}"
    );
    assert!(out.ends_with("0/1 hold\n"), "{out}");
}

#[test]
fn unknown_words_are_named_with_the_case_and_what_is_allowed() {
    for (text, parts) in [
        (
            "canary: [{id: X1, timeline: [{event: {do: explode}}]}]",
            vec!["case X1", "`explode`", "promote"],
        ),
        (
            "canary: [{id: X1, spec: {stepz: []}, timeline: []}]",
            vec!["case X1", "`stepz`", "steps"],
        ),
        (
            "canary: [{id: X1, spec: {steps: [{plugin: {}}]}, timeline: []}]",
            vec!["steps[0]", "`plugin`"],
        ),
        (
            "canary: [{id: X1, timeline: [{expect: {fase: x}}]}]",
            vec!["`fase`", "phase"],
        ),
        (
            "cases: [{id: X1, level: guess}]",
            vec!["case X1", "`guess`", "condition"],
        ),
        (
            "cases: [{id: X1, level: run, metrics: [{nam: x}], sequence: [], expect: {}}]",
            vec!["`nam`"],
        ),
        ("judge: [{name: X1}]", vec!["case X1", "dt"]),
        ("events: []", vec!["--config"]),
        ("other: []", vec!["`cases`"]),
        ("[1]", vec!["object"]),
        ("{", vec!["JSON"]),
    ] {
        let (code, out) = rehearse_text(text);
        assert_eq!(code, UNUSABLE, "{text}: {out}");
        for part in parts {
            assert!(out.contains(part), "{text}: {out}");
        }
    }
    let (code, out) = rehearse(&[PathBuf::from("/nowhere/at-all.json")], None);
    assert!(
        code == UNUSABLE && out.contains("/nowhere/at-all.json: cannot be read"),
        "{out}"
    );
}

#[test]
fn a_refused_verb_is_printed_and_changes_nothing() {
    let (code, out) = rehearse_text(
        "canary: [{id: X1, timeline: [{event: {do: abort}, expect: {phase: Healthy, refused: true}}]}]",
    );
    assert_eq!(code, HELD, "{out}");
    assert!(out.contains("abort refused (no version is on trial)"), "{out}");
}

#[test]
fn events_run_on_a_plan_of_the_users_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.yaml");
    let text = "events:
      - {t: 0, do: deploy, version: v2, expect: {weight: 5}}
      - {do: promote, expect: {phase: Healthy, stable: v2}}";
    fs::write(&file, text).unwrap();
    let planned = script::Planned {
        plan: Plan::canary(vec![
            Step::SetWeight(crate::model::Weight::percent(5)),
            Step::Pause(Pause::default()),
        ]),
        stable: VersionName::new("v1").unwrap(),
    };
    let (code, out) = rehearse(&[file], Some(&planned));
    assert_eq!((code, out.lines().last()), (HELD, Some("1/1 hold")), "{out}");
}

const CONFIG: &str = "
listeners: [{address: \"127.0.0.1:8080\"}]
services:
  - name: orders
    stable: {version: v41, endpoints: [\"http://127.0.0.1:9001\"]}
    strategy:
      canary:
        steps:
          - setWeight: 5
          - pause: {duration: 5m}
          - analysis: {templates: [{templateName: error-rate}]}
          - setWeight: 50
          - pause: {}
analysisTemplates:
  - name: error-rate
    metrics:
      - name: error-rate
        interval: 1m
        count: 5
        successCondition: result < 0.01
        provider: {serin: {metric: errorRate}}
";

#[test]
fn a_configured_service_is_rehearsed_on_its_own_plan() {
    let folder = tempfile::tempdir().unwrap();
    let (config, events) = (folder.path().join("serin.yaml"), folder.path().join("mine.yaml"));
    fs::write(&config, CONFIG).unwrap();
    let text = "events:
      - {t: 0, do: deploy, version: v42, expect: {weight: 5, phase: Paused, stable: v41}}
      - {t: 301, do: tick, expect: {step: 2, phase: Progressing}}
      - {do: step_analysis, phase: Failed, expect: {phase: Degraded, weight: 0}}";
    fs::write(&events, text).unwrap();
    for service in [Some("orders"), None] {
        let planned = script::Planned::of(&config, service).unwrap();
        let (code, out) = rehearse(std::slice::from_ref(&events), Some(&planned));
        assert_eq!(code, HELD, "{out}");
    }
    let error = script::Planned::of(&config, Some("nope"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("orders"), "{error}");
    fs::write(&config, "servicez: []").unwrap();
    let error = script::Planned::of(&config, None).unwrap_err().to_string();
    assert!(error.contains("servicez"), "{error}");
}

#[test]
fn one_case_that_cannot_be_understood_does_not_hide_the_others() {
    let (code, out) = rehearse_text(
        "canary:
  - {id: X1, timeline: [{event: {do: explode}}]}
  - {id: X2, timeline: [{event: {do: deploy, version: v2}, expect: {stable: v2}}]}",
    );
    assert_eq!((code, out.lines().last()), (UNUSABLE, Some("1/2 hold")), "{out}");
}

#[test]
fn words_and_weights_are_read_as_people_write_them() {
    let (code, out) = rehearse_text(
        "canary:
  - id: X1
    spec: {maxTrafficWeight: 1000, steps: [{setWeight: 5}, {pause: {duration: 5m}}, {setCanaryScale: {weight: 5}}, {experiment: {duration: 1m, templates: []}}, {pause: }]}
    timeline:
      - {event: {do: deploy, version: v2}, expect: {traffic: {v1: 99.5, v2: 0.5}, step: 1/5}}
      - {event: {do: tick, t: 301}, expect: {step: 3/5, phase: Progressing}}
      - {event: {do: tick, t: 362}, expect: {step: 4/5, phase: Paused}}
      - {event: {do: set-weight, weight: 1/3}, expect: {weight: 33.333333333333336}}
      - {event: {do: promote --full}, expect: {stable: v2}}
      - {event: {do: undo, to_revision: 1}, expect: {stable: v1, phase: Healthy}}",
    );
    assert_eq!(code, HELD, "{out}");
}
