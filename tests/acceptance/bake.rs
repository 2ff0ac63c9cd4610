//! What breaks late, and what breaks both versions: the share that is held back, and the alarm of a service.

use super::judge::{ends, shop};
use crate::support::{Serin, load::Load, upstream::Upstream};

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
