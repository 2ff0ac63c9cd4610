//! A rollout from its deploy to its end.

use super::*;
use crate::{
    control::VersionState,
    rollout::{AbortCause, Phase, Verb},
};

#[tokio::test(start_paused = true)]
async fn the_first_version_of_the_file_is_stable_at_once() {
    let lab = Lab::new(config(STEPS, ERRORS));
    let status = lab.status();
    assert_eq!((status.phase, status.stable), (Phase::Healthy, Some(v("v1"))));
    let split = lab.live().cell.load_full();
    assert_eq!((split.generation, split.stable.version.name.as_str()), (1, "v1"));
}

#[tokio::test(start_paused = true)]
async fn a_healthy_canary_goes_through_its_steps_and_becomes_stable() {
    let lab = Lab::new(config(STEPS, ERRORS));
    let accepted = lab.deploy("v2", 9002).await.unwrap();
    assert!(accepted.created);
    let status = lab
        .until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    assert_eq!(
        status.step.as_ref().map(|step| (step.index, step.text.as_str())),
        Some((1, "pause 1m"))
    );
    assert_eq!(lab.weight(), Weight::percent(5));
    lab.serve(Role::Canary, 100, 0);
    lab.until("analysing", |status| {
        status.step.as_ref().is_some_and(|step| step.index == 2)
    })
    .await;
    seconds(5).await;
    lab.serve(Role::Canary, 100, 1);
    lab.until("at 50 %", |status| status.set_weight == Weight::percent(50))
        .await;
    let status = lab.until("stable", |status| status.stable == Some(v("v2"))).await;
    assert_eq!((status.phase, lab.weight()), (Phase::Healthy, Weight::ZERO));
    assert_eq!(lab.live().cell.load_full().stable.version.name.as_str(), "v2");
    let analyses = lab.control.analysis("shop").await.unwrap();
    assert_eq!(analyses.len(), 1);
    assert_eq!(analyses[0].metrics[0].successful, 2);
}

#[tokio::test(start_paused = true)]
async fn a_failing_canary_is_aborted_with_its_numbers() {
    let lab = Lab::new(config(STEPS, ERRORS));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    lab.serve(Role::Canary, 95, 5);
    let status = lab
        .until("degraded", |status| status.phase == Phase::Degraded)
        .await;
    let aborted = status.aborted.unwrap();
    assert_eq!(
        (aborted.cause, status.rolled_back_from),
        (AbortCause::AnalysisFailed, Some(v("v2")))
    );
    assert!(
        aborted.message.contains("5 of 100 canary requests failed"),
        "{}",
        aborted.message
    );
    assert_eq!((lab.weight(), status.set_weight), (Weight::ZERO, Weight::ZERO));
    assert!(lab.live().cell.load_full().canary.is_none());
    let refusal = lab.deploy("v2", 9002).await.unwrap_err();
    assert_eq!(
        (refusal.code.as_str(), refusal.hint.as_deref()),
        ("versionAborted", Some("retry"))
    );
    assert!(refusal.legal.contains(&Verb::Retry));
    let events = lab.control.events(Some("shop"), 0, 100).await.unwrap();
    let last = events
        .iter()
        .rev()
        .find(|event| event.event == "analysis_finished")
        .unwrap();
    assert_eq!(last.numbers["evidence"]["canary"]["evidence"]["errors"], 5);
}

#[tokio::test(start_paused = true)]
async fn a_canary_waits_for_its_endpoints_and_is_aborted_at_the_deadline() {
    let lab = Lab::new(config(
        &format!("    ready: {{progressDeadline: 30s}}\n{STEPS}"),
        ERRORS,
    ));
    lab.outside.down.lock().unwrap().insert(url(9002).to_string());
    lab.deploy("v2", 9002).await.unwrap();
    seconds(5).await;
    let status = lab.status();
    assert_eq!(
        (status.phase, status.set_weight),
        (Phase::Progressing, Weight::ZERO)
    );
    assert!(
        status.message.contains("waiting for endpoints: 0 of 1"),
        "{}",
        status.message
    );
    let status = lab
        .until("degraded", |status| status.phase == Phase::Degraded)
        .await;
    assert_eq!(status.aborted.unwrap().cause, AbortCause::ProgressDeadline);
    lab.outside.down.lock().unwrap().clear();
    lab.command(Command::Retry).await.unwrap();
    let status = lab
        .until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    assert_eq!(status.rollout.unwrap().attempt, 2);
}

#[tokio::test(start_paused = true)]
async fn the_old_version_is_warm_then_releasable_then_gone() {
    let lab = Lab::new(config("    strategy: {immediate: {}}", ""));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("stable", |status| status.stable == Some(v("v2"))).await;
    let state = |status: &ServiceStatus| {
        let old = status.versions.iter().find(|version| version.version == v("v1"));
        old.map(|version| version.state)
    };
    assert_eq!(state(&lab.status()), Some(VersionState::Warm));
    // A request that v1 still has keeps it from being released.
    let metrics = lab
        .services
        .metrics()
        .version(&ServiceName::new("shop").unwrap(), Role::Stable, &v("v1"));
    metrics.shard(0).enter();
    lab.until("draining", |status| state(status) == Some(VersionState::Draining))
        .await;
    seconds(30).await;
    assert_eq!(state(&lab.status()), Some(VersionState::Draining));
    metrics.shard(0).leave();
    lab.until("releasable", |status| {
        state(status) == Some(VersionState::Releasable)
    })
    .await;
    lab.until("gone", |status| state(status) == Some(VersionState::Gone))
        .await;
}

#[tokio::test(start_paused = true)]
async fn silence_is_no_data_and_a_human_decides() {
    let lab = Lab::new(config(STEPS, ERRORS));
    lab.deploy("v2", 9002).await.unwrap();
    let status = lab
        .until("inconclusive", |status| {
            status.reason.as_deref() == Some("InconclusiveAnalysisRun")
        })
        .await;
    assert_eq!((status.phase, lab.weight()), (Phase::Paused, Weight::percent(5)));
    let promoted = Command::Promote {
        full: false,
        skip_analysis: false,
    };
    lab.command(promoted).await.unwrap();
    assert_eq!(lab.status().set_weight, Weight::percent(50));
}

#[tokio::test(start_paused = true)]
async fn a_prometheus_that_is_down_pauses_and_does_not_roll_back() {
    let template = "analysisTemplates:
  - name: errors
    metrics:
      - name: prom
        interval: 10s
        count: 2
        successCondition: result[0] < 0.02
        provider: {prometheus: {address: \"http://127.0.0.1:9090\", query: \"x{version='{{args.canary-version}}'}\"}}";
    let lab = Lab::new(config(STEPS, template));
    lab.deploy("v2", 9002).await.unwrap();
    let status = lab
        .until("paused", |status| {
            status.reason.as_deref() == Some("AnalysisRunError")
        })
        .await;
    assert_eq!(lab.weight(), Weight::percent(5), "{}", status.message);
    let good =
        br#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"0.01"]}]}}"#;
    for _ in 0..2 {
        lab.outside
            .answers
            .lock()
            .unwrap()
            .push_back(Ok((200, good.to_vec())));
    }
    lab.command(Command::Resume).await.unwrap();
    lab.until("at 50 %", |status| status.set_weight == Weight::percent(50))
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_late_gets_requests_as_soon_as_it_is_ready() {
    let lab = Lab::new(config(STEPS, ERRORS));
    lab.outside.down.lock().unwrap().insert(url(9003).to_string());
    let deploy = Deploy::of(v("v2"), vec![url(9002), url(9003)]);
    lab.command(Command::Deploy(deploy)).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    let ready = |lab: &Lab| -> Vec<bool> {
        let split = lab.live().cell.load_full();
        split
            .canary
            .as_ref()
            .unwrap()
            .version
            .endpoints()
            .iter()
            .map(|one| one.is_ready())
            .collect()
    };
    assert_eq!(ready(&lab), [true, false]);
    lab.outside.down.lock().unwrap().clear();
    seconds(3).await;
    assert_eq!(ready(&lab), [true, true]);
}
