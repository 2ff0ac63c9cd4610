//! 4xx answers, and what gRPC has instead, over real traffic: another share than stable's pauses a rollout and never aborts it.

use crate::{
    faults::grpc_shop,
    judge::{ends, shop, wait_until_kept},
    support::{Serin, exchange, load::Load, python::Servers, upstream::Upstream, wait_for},
};
use serde_json::Value;
use std::time::Duration;

const STRATEGY: &str = "analysis: {templates: [{templateName: quick}]}, auto: {weights: [5, 50]}";

fn deploy(v2: &Upstream, until: &str) -> String {
    format!(
        "deploy shop --version v2 --endpoint {} --until {until} --timeout 60s",
        v2.url()
    )
}

/// What the judge says of 4xx answers.
fn seen(status: &Value) -> &Value {
    &status["analyses"][0]["metrics"][0]["judge"]["clientErrors"]
}

#[test]
fn a_canary_that_refuses_more_is_paused_and_goes_on_when_somebody_says_so() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    v2.refuse(200);
    let serin = Serin::start_with(&shop(&v1, STRATEGY, ""));
    let load = Load::start(serin.web, 500);
    let said = ends(&serin, 5, &deploy(&v2, "healthy"));
    assert!(said.contains("ClientErrors"), "{said}");
    let status = serin.status("shop");
    assert_eq!(
        (&status["phase"], &status["reason"], &status["setWeight"]),
        (&"Paused".into(), &"ClientErrors".into(), &5.into()),
        "{status:#}"
    );
    let message = status["message"].as_str().unwrap();
    assert!(
        message.starts_with("ClientErrors: PAUSE at weight 5%: 4xx: canary ")
            && message.contains(", stable 0.00% of ")
            && message.contains("(false-pause risk <= 1% for the whole rollout)"),
        "{message}"
    );
    for verb in ["get shop", "explain shop", "history shop"] {
        let shown = ends(&serin, 0, verb);
        assert!(shown.contains("4xx: canary "), "{verb}\n{shown}");
    }
    let is_paused = || serin.metric("serin_rollout_pause_reason", &[("reason", "client_errors")]);
    assert!((is_paused() - 1.0).abs() < 0.1);
    // It stays at its weight, and is watched.
    let before = v2.requests();
    wait_for("more requests of the canary", Duration::from_secs(20), || {
        (v2.requests() > before + 5).then_some(())
    });
    ends(&serin, 0, "resume shop");
    // It refuses as before, and whoever has let it go on knows.
    ends(&serin, 0, "wait shop --until healthy --version v2 --timeout 60s");
    let refused = load.stop();
    assert!(refused.with(404, "v2") > 0 && refused.with(404, "v1") == 0);
    assert!(is_paused().abs() < 0.1);
    assert!(
        serin
            .metric("serin_rollout_aborts_total", &[("cause", "analysis_failed")])
            .abs()
            < 0.1
    );

    let said = wait_for("three decisions", Duration::from_secs(10), || {
        let (code, said, _) = serin.run("replay");
        (code == 0 && said.ends_with("3 of 3 decisions of judges reproduced\n")).then_some(said)
    });
    assert!(said.contains("  PAUSE at weight 5%: 4xx: canary "), "{said}");
    let rejudged = |tolerance: &str| {
        let line = format!("what-if shop --client-error-tolerance {tolerance} -o json");
        let json: Value = serde_json::from_str(&ends(&serin, 0, &line)).unwrap();
        let would = json["judges"][0]["would"].as_array().unwrap().clone();
        would
            .iter()
            .map(|said| said["advice"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(rejudged("0.1pp"), ["pause", "proceed", "proceed"]);
    assert_eq!(rejudged("30pp"), ["proceed", "proceed"]);
}

#[test]
fn a_canary_that_refuses_as_much_as_stable_is_promoted() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    v1.refuse(200);
    v2.refuse(200);
    let serin = Serin::start_with(&shop(&v1, STRATEGY, ""));
    let load = Load::start(serin.web, 500);
    ends(&serin, 0, &deploy(&v2, "healthy"));
    let seen = load.stop();
    assert!(seen.with(404, "v1") > 0 && seen.with(404, "v2") > 0);
}

#[test]
fn a_grpc_canary_whose_calls_end_by_the_clients_fault_is_paused() {
    let (_v1, stable, _) = Servers::start("serve");
    let (_v2, canary, _) = Servers::start("lame 200 FAILED_PRECONDITION");
    let serin = Serin::start_with(&grpc_shop(stable, "auto: {weights: [20, 50]}"));
    let (calls, _, _) = Servers::start(&format!("call {}", serin.web.port()));
    let deploy =
        format!("deploy shop --version v2 --endpoint h2c://127.0.0.1:{canary} --until healthy --timeout 60s");
    let said = ends(&serin, 5, &deploy);
    assert!(
        said.contains("ClientErrors: PAUSE at weight 20%: 4xx: canary "),
        "{said}"
    );
    let status = serin.status("shop");
    assert_eq!(
        status["analyses"][0]["metrics"][0]["judge"]["tests"][0]["canaryBad"], 0,
        "none of them is a failure: {status:#}"
    );
    let codes = calls.finish();
    assert!(codes.contains("FAILED_PRECONDITION "), "{codes}");
}

#[test]
fn only_answers_that_are_no_failures_count_and_each_user_once() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let more = "    sticky: {header: x-user}\n    failure: {statuses: [5xx, \"429\"]}\n";
    let serin = Serin::start_with(&shop(&v1, "auto: {weights: [50]}", more));
    ends(&serin, 0, &deploy(&v2, "weight=50"));
    let ask = |serin: &Serin, user: usize, path: &str| {
        let text =
            format!("GET {path} HTTP/1.1\r\nhost: shop\r\nx-user: u{user}\r\nconnection: close\r\n\r\n");
        let (status, head, _) = exchange(serin.web, &text);
        (status, head.to_lowercase().contains("x-version: v2"))
    };
    let users: Vec<usize> = (0..60).filter(|user| ask(&serin, *user, "/").1).collect();
    let [one, other, third, ..] = users.as_slice() else {
        panic!("{users:?} of 60")
    };
    for _ in 0..20 {
        assert_eq!(ask(&serin, *one, "/status/404"), (404, true));
    }
    assert_eq!(ask(&serin, *other, "/status/401"), (401, true));
    // A failure by the configuration, and what stands for a client that went away.
    assert_eq!(ask(&serin, *third, "/status/429"), (429, true));
    assert_eq!(ask(&serin, *third, "/status/499"), (499, true));
    let counted = |status: &Value| {
        let judge = &status["analyses"][0]["metrics"][0]["judge"];
        (
            judge["tests"][0]["canaryBad"].as_u64(),
            seen(status)["canaryBad"].as_u64(),
            seen(status)["canary"].as_u64() == Some(users.len() as u64),
        )
    };
    let knows = |status: &Value| counted(status) == (Some(1), Some(2), true);
    serin.wait_status("shop", "one failure, and two users answered 4xx", knows);
    // Whoever is known stays known over a kill, once that is stored.
    wait_until_kept(&serin, "$.judge.client_errors.seen.canary_bad", 2);
    let serin = serin.crash_then(|_| {});
    serin.wait_status("shop", "the same again", knows);
    assert_eq!(ask(&serin, *one, "/status/404"), (404, true));
    assert_eq!(ask(&serin, *third, "/status/403"), (403, true));
    serin.wait_status("shop", "one user more", |status| {
        counted(status).1 == Some(3) || status["phase"] == "Paused"
    });
    let status = serin.status("shop");
    assert_eq!(counted(&status).1, Some(3), "{status:#}");
}
