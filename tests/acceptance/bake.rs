//! What breaks late, and what breaks both versions: the share that is held back, and the alarm of a service.

use super::judge::{ends, shop};
use crate::support::{Serin, load::Load, upstream::Upstream};
use serde_json::Value;

const HELD_BACK: &str = "analysis: {templates: [{templateName: quick}]}, auto: {weights: [50]}, holdback: {share: 10, duration: 10m}";

#[test]
fn a_regression_in_the_bake_rolls_back_and_until_then_everybody_says_that_it_bakes() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start_with(&shop(&v1, HELD_BACK, ""));
    let load = Load::start(serin.web, 500);
    let deploy = format!(
        "deploy shop --version v2 --endpoint {} --until paused --timeout 60s",
        v2.url()
    );
    ends(&serin, 0, &deploy);
    let status = serin.status("shop");
    assert_eq!(
        (&status["reason"], &status["setWeight"]),
        (&"Bake".into(), &90.into()),
        "{status:#}"
    );
    for (line, part) in [
        ("get shop", "Bake: bakes with 10% on stable until "),
        ("get shop", "auto-resume in 9m"),
        ("explain shop", "a regression now still rolls back"),
        ("history shop", "Bake: bakes with 10% on stable until "),
    ] {
        let said = ends(&serin, 0, line);
        assert!(said.contains(part), "{line}\n{said}");
    }
    assert_eq!(load.seen().errors(), 0);
    v2.fail(200);
    let said = ends(&serin, 3, "wait shop --until healthy --version v2 --timeout 60s");
    assert!(said.contains("ROLL BACK at weight 90%: canary failed "), "{said}");
    load.stop();
    let status = serin.status("shop");
    assert_eq!(
        (&status["stable"], &status["setWeight"], &status["phase"]),
        (&"v1".into(), &0.into(), &"Degraded".into())
    );
}

#[test]
fn what_both_versions_fail_is_an_alarm_that_holds_the_rollout_and_blames_nobody() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let alarm = "    alarm: {errors: 5%, over: 5s, requests: 50}\n";
    let serin = Serin::start_with(&shop(&v1, "steps: [{setWeight: 50}, {pause: {}}]", alarm));
    let load = Load::start(serin.web, 200);
    let gauge = |value: u64| {
        serin.metrics().contains(&format!(
            "serin_service_alarm{{serin_service=\"shop\"}} {value}\n"
        ))
    };
    assert!(gauge(0));
    let deploy = format!(
        "deploy shop --version v2 --endpoint {} --until weight=50 --timeout 60s",
        v2.url()
    );
    ends(&serin, 0, &deploy);
    v1.fail(300);
    v2.fail(300);
    let status = serin.wait_status("shop", "the alarm", |status| status["alarm"].is_object());
    assert_eq!(
        (&status["reason"], &status["setWeight"], &status["aborted"]),
        (&"Alarm".into(), &50.into(), &Value::Null),
        "{status:#}"
    );
    assert!(gauge(1));
    for (line, part) in [
        ("get shop", "until the alarm is over"),
        ("get shop", "of both versions together (the alarm rings above 5%)"),
        (
            "explain shop",
            "It goes on by itself when the alarm is over, or when somebody says so",
        ),
        ("history shop", "alarm_raised"),
    ] {
        let said = ends(&serin, 0, line);
        assert!(said.contains(part), "{line}\n{said}");
    }
    v1.fail(0);
    v2.fail(0);
    let status = serin.wait_status("shop", "the end of the alarm", |status| status["alarm"].is_null());
    assert_eq!(
        (&status["reason"], &status["setWeight"]),
        (&"CanaryPauseStep".into(), &50.into())
    );
    assert!(gauge(0));
    load.stop();
}
