//! Restarts, and stores that fail.

use super::*;
use crate::rollout::Phase;

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_at_the_same_step_and_weight_and_downtime_does_not_count() {
    let lab = Lab::new(config(STEPS, ERRORS));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    seconds(30).await;
    let before = lab.status();
    let lab = lab
        .kill_and_restart(config(STEPS, ERRORS), Duration::from_secs(3600))
        .await;
    let after = lab.status();
    assert_eq!(
        (after.phase, &after.step, after.set_weight),
        (before.phase, &before.step, before.set_weight)
    );
    assert_eq!(
        after.rollout.as_ref().map(|one| &one.id),
        before.rollout.as_ref().map(|one| &one.id)
    );
    assert_eq!(lab.weight(), Weight::percent(5));
    seconds(25).await;
    assert_eq!(
        lab.status().step.unwrap().index,
        1,
        "55 of 60 seconds were served"
    );
    seconds(10).await;
    assert_eq!(lab.status().step.unwrap().index, 2, "65 of 60");
}

#[tokio::test(start_paused = true)]
async fn an_analysis_in_flight_keeps_its_count_and_starts_a_new_window() {
    let lab = Lab::new(config(STEPS, ERRORS));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    lab.serve(Role::Canary, 50, 0);
    let measured = |status: &ServiceStatus| {
        status
            .analyses
            .first()
            .is_some_and(|run| run.metrics[0].count == 1)
    };
    let before = lab.until("measured once", measured).await.analyses[0].clone();
    let lab = lab
        .kill_and_restart(config(STEPS, ERRORS), Duration::from_secs(60))
        .await;
    let after = lab.status().analyses[0].clone();
    assert_eq!((after.run, after.metrics[0].count), (before.run, 1));
    // Nothing of before the restart is in this window.
    seconds(15).await;
    assert_eq!(lab.status().analyses[0].metrics[0].count, 1);
    lab.serve(Role::Canary, 30, 0);
    lab.until("at 50 %", |status| status.set_weight == Weight::percent(50))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_raise_is_refused_while_the_store_fails_and_an_abort_is_not() {
    let lab = Lab::new(config(STEPS, ERRORS));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    lab.store.fails.store(true, Ordering::SeqCst);
    let promote = Command::Promote {
        full: true,
        skip_analysis: true,
    };
    let refusal = lab.command(promote).await.unwrap_err();
    assert_eq!(
        (refusal.code.as_str(), lab.weight()),
        ("storeUnhealthy", Weight::percent(5))
    );
    lab.serve(Role::Canary, 100, 0);
    seconds(300).await;
    assert_eq!(lab.weight(), Weight::percent(5), "the steps wait for the store");
    lab.command(Command::Abort).await.unwrap();
    assert_eq!(lab.weight(), Weight::ZERO);
}

#[tokio::test(start_paused = true)]
async fn from_every_stored_prefix_a_restart_exposes_no_more_than_was_stored_last() {
    for writes in 1..14 {
        let lab = Lab::new(config(STEPS, ERRORS));
        lab.store.appends.store(writes, Ordering::SeqCst);
        // Refused once the writes are used up.
        let _ = lab.deploy("v2", 9002).await;
        for _ in 0..60 {
            seconds(3).await;
            lab.serve(Role::Canary, 100, 0);
        }
        let stored = lab.store.inner.last_events("shop", 1).unwrap();
        let (phase, weight) = stored
            .first()
            .map_or((Phase::Healthy, Weight::ZERO), |last| (last.phase, last.weight));
        assert!(
            lab.weight() <= weight,
            "after {writes} writes: {} published, {weight} stored",
            lab.weight()
        );
        let lab = lab
            .kill_and_restart(config(STEPS, ERRORS), Duration::from_secs(10))
            .await;
        assert!(
            lab.weight() <= weight,
            "after {writes} writes and a restart: {} > {weight}",
            lab.weight()
        );
        assert_eq!(lab.status().phase, phase, "after {writes} writes");
    }
}

#[tokio::test(start_paused = true)]
async fn the_state_file_holds_it_all_over_a_clean_stop() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("serin.db");
    let manual = "    strategy: {canary: {steps: [{setWeight: 5}, {pause: {}}]}}";
    let clock = PausedClock::new();
    let open = || {
        let store = Faulty::new(Arc::new(SqliteStore::open(&path).unwrap()));
        Lab::begin(config(manual, ""), store, clock.clone(), Arc::default()).unwrap()
    };
    let lab = open();
    lab.deploy("v2", 9002).await.unwrap();
    let before = lab.until("paused", |status| status.phase == Phase::Paused).await;
    lab.control.shutdown().await;
    assert!(!lab.control.is_ready());
    drop(lab);
    seconds(1).await;
    let lab = open();
    let after = lab.status();
    assert_eq!(
        (after.canary, after.step, after.set_weight),
        (before.canary, before.step, before.set_weight)
    );
    assert_eq!(lab.control.history("shop", 50).await.unwrap().rollouts.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn stateless_serves_stable_only() {
    let services = Services::new(Registry::new(1).unwrap());
    let control = Control::start(StartOptions {
        config: config(
            "    canary: {version: v2, endpoints: [\"http://127.0.0.1:9002\"]}",
            "",
        ),
        services: services.clone(),
        clock: PausedClock::new(),
        store: crate::control::StoreChoice::Stateless.open().unwrap(),
        seed: [1; 32],
    })
    .await
    .unwrap();
    let status = control.status("shop").unwrap();
    assert_eq!((status.stable, status.canary), (Some(v("v1")), None));
    let deploy = Command::Deploy(Deploy::of(v("v3"), vec![url(9001)]));
    let refusal = control
        .command("shop", deploy, Expect::default(), caller())
        .await
        .unwrap_err();
    assert_eq!(refusal.code, "stateless");
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_is_set_neither_ends_nor_stretches_a_pause() {
    for set in [-7200, 7200] {
        let lab = Lab::new(config(STEPS, ERRORS));
        lab.deploy("v2", 9002).await.unwrap();
        lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
            .await;
        seconds(20).await;
        lab.set_wall(set);
        seconds(20).await;
        assert_eq!(
            lab.status().step.unwrap().index,
            1,
            "40 of 60 seconds, clock set by {set} s"
        );
        let lab = lab
            .kill_and_restart(config(STEPS, ERRORS), Duration::from_secs(30))
            .await;
        seconds(15).await;
        assert_eq!(
            lab.status().step.unwrap().index,
            1,
            "55 of 60 seconds, clock set by {set} s"
        );
        seconds(10).await;
        assert_eq!(
            lab.status().step.unwrap().index,
            2,
            "65 of 60 seconds, clock set by {set} s"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_after_a_sweep_still_replays_to_the_same_state() {
    let lab = Lab::new(config("    strategy: {immediate: {}}", ""));
    for (version, port) in [("v2", 9002), ("v3", 9003), ("v4", 9004)] {
        lab.deploy(version, port).await.unwrap();
        lab.until("stable", |status| status.stable == Some(v(version)))
            .await;
        seconds(60).await;
    }
    let retention = Retention {
        rollouts: 2,
        events: crate::model::Span::secs(90),
        recordings: crate::model::ByteSize::kib(1024),
    };
    let before = lab.store.inner.events(None, 0, 1000).unwrap().len();
    let now = lab.status().updated.plus(Duration::from_secs(60));
    lab.store.inner.sweep(retention, now).unwrap();
    let after = lab.store.inner.events(None, 0, 1000).unwrap().len();
    assert!(0 < after && after < before, "{after} of {before}");
    assert_eq!(lab.store.inner.rollouts("shop").unwrap().len(), 2);
    let loaded = lab.store.inner.load().unwrap();
    assert_eq!(loaded[0].replayed.as_ref(), Some(&loaded[0].saved));
}

/// An abort acted first, and the store could not take it.
async fn aborted_while_the_store_fails(lab: &Lab) {
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    lab.store.fails.store(true, Ordering::SeqCst);
    lab.command(Command::Abort).await.unwrap();
    // Long enough for the patience to grow to its most.
    seconds(30).await;
    lab.store.fails.store(false, Ordering::SeqCst);
}

fn is_abort_stored(lab: &Lab) -> bool {
    let events = lab.store.inner.last_events("shop", 10).unwrap();
    events.iter().any(|event| event.event == "abort")
}

#[tokio::test(start_paused = true)]
async fn a_clean_stop_stores_what_acted_first_though_the_store_failed_a_moment_ago() {
    let lab = Lab::new(config(STEPS, ERRORS));
    aborted_while_the_store_fails(&lab).await;
    lab.control.shutdown().await;
    assert!(is_abort_stored(&lab));
    let lab = lab
        .kill_and_restart(config(STEPS, ERRORS), Duration::from_secs(10))
        .await;
    assert_eq!(
        (lab.status().phase, lab.weight()),
        (Phase::Degraded, Weight::ZERO)
    );
}

#[tokio::test(start_paused = true)]
async fn what_acted_first_is_stored_though_another_service_finds_the_store_working_before() {
    let other = "  - {name: other, stable: {version: v1, endpoints: [\"http://127.0.0.1:9101\"]}}";
    let lab = Lab::new(config(&format!("{STEPS}\n{other}"), ERRORS));
    aborted_while_the_store_fails(&lab).await;
    let deploy = Command::Deploy(Deploy::of(v("v2"), vec![url(9102)]));
    let accepted = lab
        .control
        .command("other", deploy, Expect::default(), caller())
        .await;
    accepted.unwrap();
    assert!(lab.control.is_store_healthy());
    seconds(10).await;
    assert!(is_abort_stored(&lab));
    lab.command(Command::Retry).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_could_not_be_kept_is_kept_when_the_store_works_again() {
    let lab = Lab::new(config(STEPS, ERRORS));
    lab.store.fails.store(true, Ordering::SeqCst);
    lab.deploy("v2", 9002).await.unwrap_err();
    assert_eq!(lab.control.history("shop", 5).await.unwrap().attempts.len(), 0);
    lab.store.fails.store(false, Ordering::SeqCst);
    lab.until("healthy store", |_| lab.control.is_store_healthy())
        .await;
    let attempts = lab.control.history("shop", 5).await.unwrap().attempts;
    assert_eq!(attempts[0].refused.as_deref(), Some("storeUnhealthy"));
}

#[tokio::test(start_paused = true)]
async fn a_bad_verdict_acts_although_a_step_that_is_due_cannot_be_stored() {
    let service = "    strategy:
      canary:
        analysis: {templates: [{templateName: watch}]}
        steps: [{setWeight: 5}, {pause: {duration: 30s}}, {setWeight: 50}, {pause: {}}]";
    let beside = "analysisTemplates:
  - name: watch
    metrics:
      - {name: errors, interval: 60s, successCondition: result < 0.02, provider: {serin: {metric: errorRate, minSamples: 20}}}";
    let lab = Lab::new(config(service, beside));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    lab.serve(Role::Canary, 100, 0);
    lab.until("measured", |status| status.analyses[0].metrics[0].count == 1)
        .await;
    lab.store.fails.store(true, Ordering::SeqCst);
    seconds(45).await;
    assert_eq!(
        lab.weight(),
        Weight::percent(5),
        "50 % is due, and waits for the store"
    );
    lab.serve(Role::Canary, 50, 50);
    lab.until("degraded", |status| status.phase == Phase::Degraded)
        .await;
    assert_eq!(lab.weight(), Weight::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_bad_verdict_acts_before_its_run_is_stored() {
    for template in [
        "{name: errors, interval: 60s, failureCondition: result > 0.1, provider: {serin: {metric: errorRate}}}",
        "{name: no-worse, judge: {}}",
    ] {
        let service = "    strategy:
      canary:
        analysis: {templates: [{templateName: watch}]}
        steps: [{setWeight: 5}, {pause: {}}]";
        let beside = format!("analysisTemplates: [{{name: watch, metrics: [{template}]}}]");
        let lab = Lab::new(config(service, &beside));
        lab.deploy("v2", 9002).await.unwrap();
        lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
            .await;
        *lab.store.watched.lock().unwrap() = Some(lab.services.clone());
        lab.serve(Role::Stable, 500, 0);
        lab.serve(Role::Canary, 0, 30);
        lab.until("degraded", |status| status.phase == Phase::Degraded)
            .await;
        seconds(1).await;
        let stored = lab.store.runs.lock().unwrap().clone();
        let failed: Vec<Weight> = stored
            .iter()
            .filter(|(phase, _)| phase == "Failed")
            .map(|(_, weight)| *weight)
            .collect();
        assert!(
            !failed.is_empty() && failed.iter().all(|weight| *weight == Weight::ZERO),
            "{template}: {stored:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_abort_with_a_key_acts_although_the_store_cannot_even_be_read() {
    let lab = Lab::new(config(STEPS, ERRORS));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    lab.store.fails.store(true, Ordering::SeqCst);
    let keyed = |key: &str| Caller {
        idempotency_key: Some(key.to_owned()),
        ..caller()
    };
    let ask = |command, key| {
        lab.control
            .command("shop", command, Expect::default(), keyed(key))
    };
    let weight = Weight::percent(20);
    let refusal = ask(Command::SetWeight { weight }, "a").await.unwrap_err();
    assert_eq!(refusal.code, "storeUnhealthy");
    // What was refused has not been answered yet.
    let refusal = ask(Command::SetWeight { weight }, "a").await.unwrap_err();
    assert_eq!(refusal.code, "storeUnhealthy");
    ask(Command::Abort, "b").await.unwrap();
    assert_eq!(lab.weight(), Weight::ZERO);
}

#[tokio::test(start_paused = true)]
async fn every_key_of_what_acted_before_it_could_be_stored_is_stored_with_it() {
    let lab = Lab::new(config(STEPS, ERRORS));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    lab.store.fails.store(true, Ordering::SeqCst);
    let weight = Weight::percent(1);
    for (command, key) in [(Command::SetWeight { weight }, "lower"), (Command::Abort, "away")] {
        let keyed = Caller {
            idempotency_key: Some(key.to_owned()),
            ..caller()
        };
        let asked = lab.control.command("shop", command, Expect::default(), keyed);
        asked.await.unwrap();
    }
    lab.store.fails.store(false, Ordering::SeqCst);
    let keys = || lab.store.keys(Timestamp::default()).unwrap();
    lab.until("stored", |_| !keys().is_empty()).await;
    let kept = keys();
    let kept: Vec<&str> = kept.iter().map(|(_, _, row)| row.key.as_str()).collect();
    assert_eq!(kept, ["away", "lower"]);
}

#[tokio::test(start_paused = true)]
async fn a_rollout_that_was_superseded_has_ended_in_the_history() {
    let lab = Lab::new(config(STEPS, ERRORS));
    for (version, port) in [("v2", 9002), ("v3", 9003), ("v4", 9004)] {
        lab.deploy(version, port).await.unwrap();
        seconds(5).await;
    }
    let rollouts = lab.control.history("shop", 5).await.unwrap().rollouts;
    let going_on: Vec<&str> = rollouts
        .iter()
        .filter(|one| one.ended.is_none())
        .map(|one| one.version.as_str())
        .collect();
    assert_eq!((rollouts.len(), going_on), (4, vec!["v4"]));
}

#[tokio::test(start_paused = true)]
async fn what_a_provider_is_sent_as_a_secret_stands_in_no_event() {
    let steps = "    strategy: {canary: {steps: [{analysis: {templates: [{templateName: asks}], args: [{name: key, value: geheim-1}]}}]}}";
    let asks = "analysisTemplates:
  - name: asks
    args: [{name: key}]
    metrics:
      - name: ok
        successCondition: result == \"ok\"
        provider: {web: {url: \"http://127.0.0.1:7000\", headers: {authorization: Bearer geheim-2, x-key: \"{{args.key}}\"}}}";
    let lab = Lab::new(config(steps, asks));
    let mut live = lab.control.subscribe();
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("asked", |_| !lab.outside.asked.lock().unwrap().is_empty())
        .await;
    let sent = format!("{:?}", lab.outside.asked.lock().unwrap()[0].headers);
    assert!(sent.contains("geheim-1") && sent.contains("geheim-2"), "{sent}");
    let mut told = Vec::new();
    while let Ok(event) = live.try_recv() {
        told.push(StoredEvent::clone(&event));
    }
    let stored = lab.control.events(Some("shop"), 0, 100).await.unwrap();
    let is_deploy = |event: &&StoredEvent| event.event == "deploy" && event.detail["version"] == "v2";
    for events in [told, stored] {
        let deploy = events.iter().find(is_deploy).unwrap();
        let args = &deploy.detail["plan"]["strategy"]["canary"]["steps"][0]["analysis"]["args"];
        assert_eq!(args[0]["value"], "[redacted]", "{:#}", deploy.detail);
        let all = serde_json::to_string(&events).unwrap();
        assert!(!all.contains("geheim"), "{all}");
    }
}
