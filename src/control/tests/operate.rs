//! What people and pipelines do to a rollout.

use super::*;
use crate::{
    control::{EndpointChange, OnConflict, RefusalKind},
    model::Span,
    rollout::Phase,
};

const MANUAL: &str =
    "    strategy: {canary: {steps: [{setWeight: 5}, {pause: {}}, {setWeight: 50}, {pause: {}}]}}";
const PROMOTE: Command = Command::Promote {
    full: false,
    skip_analysis: false,
};

async fn paused_at_5() -> Lab {
    let lab = Lab::new(config(MANUAL, ""));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("paused", |status| status.phase == Phase::Paused).await;
    lab
}

#[tokio::test(start_paused = true)]
async fn a_repeated_promote_with_its_expectation_cannot_release_the_next_gate() {
    let lab = paused_at_5().await;
    let expect = Expect {
        version: Some(v("v2")),
        step: Some(1),
        generation: None,
    };
    let promote = || lab.control.command("shop", PROMOTE, expect.clone(), caller());
    promote().await.unwrap();
    let refusal = promote().await.unwrap_err();
    assert_eq!(
        (refusal.kind, lab.weight()),
        (RefusalKind::Precondition, Weight::percent(50))
    );
}

#[tokio::test(start_paused = true)]
async fn an_idempotency_key_makes_a_second_promote_do_nothing() {
    let lab = paused_at_5().await;
    let caller = Caller {
        idempotency_key: Some("run-17".into()),
        ..caller()
    };
    let promote = || {
        lab.control
            .command("shop", PROMOTE, Expect::default(), caller.clone())
    };
    assert!(!promote().await.unwrap().repeated);
    assert!(promote().await.unwrap().repeated);
    assert_eq!(lab.weight(), Weight::percent(50));
    let abort = lab
        .control
        .command("shop", Command::Abort, Expect::default(), caller.clone())
        .await;
    assert_eq!(abort.unwrap_err().code, "idempotencyKeyReused");
}

#[tokio::test(start_paused = true)]
async fn the_same_deploy_again_is_the_same_rollout() {
    let lab = paused_at_5().await;
    let before = lab.status().rollout.unwrap();
    let again = lab.deploy("v2", 9002).await.unwrap();
    assert!(!again.created);
    assert_eq!(again.status.rollout.unwrap(), before);
}

#[tokio::test(start_paused = true)]
async fn another_version_supersedes_unless_it_is_told_to_refuse() {
    let lab = paused_at_5().await;
    let mut deploy = Deploy::of(v("v3"), vec![url(9003)]);
    deploy.on_conflict = OnConflict::Refuse;
    let refusal = lab.command(Command::Deploy(deploy.clone())).await.unwrap_err();
    assert_eq!(refusal.code, "rolloutInProgress");
    deploy.on_conflict = OnConflict::Supersede;
    deploy.sequence = Some(5);
    lab.command(Command::Deploy(deploy.clone())).await.unwrap();
    assert_eq!(lab.weight(), Weight::ZERO, "v2 lost its share at once");
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    assert_eq!(lab.status().canary, Some(v("v3")));
    deploy.version = v("v2");
    deploy.sequence = Some(4);
    let refusal = lab.command(Command::Deploy(deploy)).await.unwrap_err();
    assert_eq!(refusal.code, "superseded");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_deploys_what_is_there_already_takes_over_from_earlier_ones() {
    let lab = paused_at_5().await;
    let mut deploy = Deploy::of(v("v2"), vec![url(9002)]);
    deploy.sequence = Some(7);
    let again = lab.command(Command::Deploy(deploy.clone())).await.unwrap();
    assert!(!again.created);
    let rollout = again.status.rollout.unwrap();
    assert_eq!((rollout.version, rollout.sequence), (v("v2"), Some(7)));
    let facts = again.status.generation;
    let again = lab.command(Command::Deploy(deploy.clone())).await.unwrap();
    assert_eq!(again.status.generation, facts, "nothing new");
    (deploy.sequence, deploy.replace) = (Some(8), true);
    let replaced = lab.command(Command::Deploy(deploy)).await.unwrap().status;
    assert_eq!(replaced.rollout.unwrap().sequence, Some(8));
    let mut earlier = Deploy::of(v("v3"), vec![url(9003)]);
    earlier.sequence = Some(6);
    let refusal = lab.command(Command::Deploy(earlier)).await.unwrap_err();
    assert_eq!(refusal.code, "superseded");
}

#[tokio::test(start_paused = true)]
async fn deploying_stable_again_ends_the_rollout_healthy() {
    let lab = paused_at_5().await;
    lab.deploy("v1", 9001).await.unwrap();
    let status = lab.status();
    assert_eq!(
        (status.phase, status.canary, lab.weight()),
        (Phase::Healthy, None, Weight::ZERO)
    );
}

#[tokio::test(start_paused = true)]
async fn undo_is_instant_while_the_old_version_is_warm_and_healthy_and_refused_after() {
    let lab = Lab::new(config("    strategy: {immediate: {}}", ""));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("stable", |status| status.stable == Some(v("v2"))).await;
    lab.outside.down.lock().unwrap().insert(url(9001).to_string());
    let refusal = lab.command(Command::Undo { to: None }).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Conflict, "its endpoint is down");
    lab.outside.down.lock().unwrap().clear();
    lab.command(Command::Undo { to: None }).await.unwrap();
    assert_eq!(lab.live().cell.load_full().stable.version.name.as_str(), "v1");
    // Now v2 is the warm one, for ten minutes.
    seconds(11 * 60).await;
    let refusal = lab.command(Command::Undo { to: None }).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn endpoints_change_without_a_new_rollout() {
    let lab = paused_at_5().await;
    let before = lab.live().cell.load_full();
    let change = |change| Command::SetEndpoints {
        version: v("v2"),
        change,
    };
    lab.command(change(EndpointChange::Add(vec![url(9012)])))
        .await
        .unwrap();
    let urls = |lab: &Lab| -> Vec<u16> {
        let split = lab.live().cell.load_full();
        split
            .canary
            .as_ref()
            .unwrap()
            .version
            .endpoints()
            .iter()
            .map(|one| one.url.port())
            .collect()
    };
    assert_eq!(urls(&lab), [9002, 9012]);
    lab.command(change(EndpointChange::Drain(vec![url(9002)])))
        .await
        .unwrap();
    assert_eq!(urls(&lab), [9012]);
    assert_eq!(
        lab.live().cell.load_full().generation,
        before.generation,
        "the tickets go on"
    );
    let forbidden = lab.command(change(EndpointChange::Add(vec![
        "http://169.254.169.254".parse().unwrap(),
    ])));
    assert_eq!(forbidden.await.unwrap_err().kind, RefusalKind::Forbidden);
    let last = Command::SetEndpoints {
        version: v("v1"),
        change: EndpointChange::Set(Vec::new()),
    };
    assert_eq!(lab.command(last).await.unwrap_err().code, "lastEndpoints");
}

#[tokio::test(start_paused = true)]
async fn every_attempt_is_kept_allowed_or_refused() {
    let lab = paused_at_5().await;
    lab.command(Command::Retry).await.unwrap_err();
    lab.command(Command::Abort).await.unwrap();
    let attempts = lab.control.history("shop", 10).await.unwrap().attempts;
    let said: Vec<(&str, Option<&str>)> = attempts
        .iter()
        .map(|attempt| (attempt.verb.as_str(), attempt.refused.as_deref()))
        .collect();
    assert_eq!(
        said,
        [("abort", None), ("retry", Some("wrongState")), ("deploy", None)]
    );
    assert!(
        attempts[0].before.contains("Paused step 1/4 at 5%"),
        "{}",
        attempts[0].before
    );
    assert!(attempts[0].after.contains("Degraded"), "{}", attempts[0].after);
}

#[tokio::test(start_paused = true)]
async fn a_weight_by_hand_pauses_there() {
    let lab = paused_at_5().await;
    let weight: Weight = "1/3".parse().unwrap();
    lab.command(Command::SetWeight { weight }).await.unwrap();
    assert_eq!((lab.weight(), lab.status().phase), (weight, Phase::Paused));
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_acts_once_and_an_unchanged_one_never() {
    let with_canary = |endpoint: u16| {
        config(
            &format!("    canary: {{version: v2, endpoints: [\"http://127.0.0.1:{endpoint}\"]}}\n{MANUAL}"),
            "",
        )
    };
    let lab = Lab::new(config(MANUAL, ""));
    assert_eq!(
        lab.control.apply_config(config(MANUAL, ""), || ()).await.unwrap(),
        []
    );
    let changes = lab.control.apply_config(with_canary(9002), || ()).await.unwrap();
    assert!(changes[0].text.contains("v2 is deployed"), "{changes:?}");
    lab.until("paused", |status| status.phase == Phase::Paused).await;
    let generation = lab.live().cell.load_full().generation;
    assert_eq!(
        lab.control.apply_config(with_canary(9002), || ()).await.unwrap(),
        []
    );
    assert_eq!(lab.live().cell.load_full().generation, generation);
    let changes = lab.control.apply_config(with_canary(9022), || ()).await.unwrap();
    assert!(changes[0].text.contains("new endpoints"), "{changes:?}");
    assert_eq!(
        lab.live().cell.load_full().generation,
        generation,
        "endpoints are no new weight"
    );
    lab.command(Command::Abort).await.unwrap();
    lab.control.apply_config(with_canary(9022), || ()).await.unwrap();
    assert_eq!(lab.status().phase, Phase::Degraded, "a reload does not retry");
    assert_eq!(lab.status().drift, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn removing_what_is_in_use_refuses_the_reload_with_the_reason() {
    let lab = Lab::new(config(STEPS, ERRORS));
    lab.deploy("v2", 9002).await.unwrap();
    let other = "listeners: [{name: web, address: \"127.0.0.1:8080\"}]\nservices:\n  - name: other\n    stable: {version: v1, endpoints: [\"http://127.0.0.1:9001\"]}\n";
    let other = load_text(other, "test.yaml", Path::new("."), &|_| None)
        .unwrap()
        .config;
    let refused = lab.control.apply_config(other.clone(), || ()).await.unwrap_err();
    assert!(refused.reasons[0].contains("`shop` is in use"), "{refused}");
    let refused = lab
        .control
        .apply_config(config(MANUAL, ""), || ())
        .await
        .unwrap_err();
    assert!(refused.reasons[0].contains("`errors` is in use"), "{refused}");
    lab.command(Command::Abort).await.unwrap();
    lab.control.apply_config(other, || ()).await.unwrap();
    assert!(lab.control.status("shop").is_none() && lab.control.status("other").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_deploy_may_bring_steps_but_only_with_known_templates() {
    let lab = Lab::new(config(STEPS, ERRORS));
    let mut deploy = Deploy::of(v("v2"), vec![url(9002)]);
    deploy.steps = Some(
        serde_json::from_str(
            r#"[{"setWeight": 10}, {"analysis": {"templates": [{"templateName": "nope"}]}}]"#,
        )
        .unwrap(),
    );
    let refusal = lab.command(Command::Deploy(deploy.clone())).await.unwrap_err();
    assert_eq!(refusal.code, "invalidSteps");
    assert!(
        refusal.message.contains("there is no template `nope`"),
        "{refusal:?}"
    );
    for (steps, said) in [
        (
            r#"[{"analysis": {"templates": [{"templateName": "errors"}, {"templateName": "errors"}]}}]"#,
            "named twice",
        ),
        (
            r#"[{"experiment": {"templates": [{"templateName": "errors"}]}}]"#,
            "cannot do this yet",
        ),
        ("[]", "there is no step"),
    ] {
        deploy.steps = Some(serde_json::from_str(steps).unwrap());
        let refusal = lab.command(Command::Deploy(deploy.clone())).await.unwrap_err();
        assert!(
            refusal.code == "invalidSteps" && refusal.message.contains(said),
            "{refusal:?}"
        );
    }
    deploy.steps = Some(serde_json::from_str(r#"[{"setWeight": 10}, {"pause": {}}]"#).unwrap());
    lab.command(Command::Deploy(deploy.clone())).await.unwrap();
    lab.until("at 10 %", |status| status.set_weight == Weight::percent(10))
        .await;
    deploy.steps = Some(serde_json::from_str(r#"[{"setWeight": 20}, {"pause": {}}]"#).unwrap());
    assert_eq!(
        lab.command(Command::Deploy(deploy.clone()))
            .await
            .unwrap_err()
            .code,
        "planChanged"
    );
    deploy.replace = true;
    lab.command(Command::Deploy(deploy)).await.unwrap();
    lab.until("at 20 %", |status| status.set_weight == Weight::percent(20))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_window_sums_over_weights_and_shows_each_role() {
    let lab = paused_at_5().await;
    lab.serve(Role::Canary, 9, 1);
    lab.serve(Role::Stable, 100, 0);
    lab.command(PROMOTE).await.unwrap();
    lab.serve(Role::Canary, 20, 0);
    seconds(20).await;
    let window = lab.control.metrics_window("shop", Span::secs(300)).unwrap();
    let of = |role| window.versions.iter().find(|one| one.role == role).unwrap();
    assert_eq!(
        (
            of(Role::Canary).evidence.requests,
            of(Role::Canary).evidence.errors
        ),
        (30, 1)
    );
    assert_eq!(of(Role::Stable).evidence.requests, 100);
}

#[tokio::test(start_paused = true)]
async fn a_deploy_leads_neither_to_serin_itself_nor_to_where_nobody_allowed() {
    let lab = Lab::new(config(
        "    deploy: {allowedEndpoints: [\"127.0.0.0/8\", \"169.254.0.0/16\"]}",
        "",
    ));
    // The listener, the admin address by default, the cloud's metadata, and a host that is not on the list.
    for (endpoint, why) in [
        ("http://127.0.0.1:8080", "listener `web`"),
        ("http://127.0.0.1:9900", "admin address"),
        ("http://169.254.169.254:80", "link-local"),
        ("http://10.1.2.3:9002", "allowedEndpoints"),
    ] {
        let endpoint: EndpointUrl = endpoint.parse().unwrap();
        let deploy = Command::Deploy(Deploy::of(v("v2"), vec![endpoint.clone()]));
        let change = super::super::EndpointChange::Add(vec![endpoint]);
        let endpoints = Command::SetEndpoints {
            version: v("v1"),
            change,
        };
        for command in [deploy, endpoints] {
            let refusal = lab.command(command).await.unwrap_err();
            let said = format!("{} {}", refusal.message, refusal.hint.unwrap_or_default());
            assert_eq!(refusal.code, "endpointNotAllowed");
            assert!(said.contains(why), "{said}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_timed_pause_without_endpoints_promises_no_resume() {
    let lab = Lab::new(config(STEPS, ERRORS));
    lab.deploy("v2", 9002).await.unwrap();
    let paused = lab.until("paused", |status| status.phase == Phase::Paused).await;
    assert!(paused.paused.unwrap().until.is_some());
    let none = Command::SetEndpoints {
        version: v("v2"),
        change: EndpointChange::Set(Vec::new()),
    };
    lab.command(none).await.unwrap();
    let status = lab.status();
    assert!(
        status.message.contains("waiting for endpoints"),
        "{}",
        status.message
    );
    assert_eq!(
        status.paused.unwrap().until,
        None,
        "what comes next is the deadline"
    );
}
