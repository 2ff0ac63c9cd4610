//! The judge in the engine: what it decides, when, and what a restart leaves of it.

use super::*;
use crate::{
    metrics::AssignReason,
    rollout::{AbortCause, Phase},
};

/// A judge that is quick to be warm, and whatever a test adds to its metric.
pub(super) fn judge(more: &str) -> String {
    format!(
        "analysisTemplates:
  - name: judge
    metrics:
      - name: no-worse
        judge: {{warmup: 1s, stepWarmup: 0s, minStep: 1s}}
{more}"
    )
}

pub(super) const BESIDE: &str = "    strategy:
      canary:
        analysis: {templates: [{templateName: judge}]}
        steps: [{setWeight: 5}, {pause: {untilEvidence: {}}}, {setWeight: 50}, {pause: {untilEvidence: {max: 20m}}}]";

impl Lab {
    /// A second of traffic at the weight of now: so many requests in all, of which the canary fails a share.
    pub(super) async fn traffic(&self, requests: u32, canary_fails: f64) {
        let canary = (f64::from(requests) * self.weight().as_ratio()).round();
        let failed = (canary * canary_fails).round();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "small counts"
        )]
        let (canary, failed) = (canary as u32, failed as u32);
        self.serve(Role::Stable, requests - canary, 0);
        if canary > 0 {
            self.serve(Role::Canary, canary - failed, failed);
        }
        seconds(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_strategy_a_dead_canary_is_gone_after_three_failed_requests() {
    let lab = Lab::new(config("", ""));
    lab.serve(Role::Stable, 1000, 7);
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 1 %", |status| status.set_weight == Weight::percent(1))
        .await;
    let mut failed = 0;
    while lab.status().phase != Phase::Degraded {
        failed += 1;
        assert!(failed < 10, "{:#?}", lab.status());
        lab.serve(Role::Stable, 99, 0);
        lab.serve(Role::Canary, 0, 1);
        // Far less than the time between two regular looks: the failure itself wakes the judge.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((failed, lab.weight()), (3, Weight::ZERO));
    let aborted = lab.status().aborted.unwrap();
    assert_eq!(aborted.cause, AbortCause::AnalysisFailed);
    let said = "Metric \"serin-judge\" assessed Failed due to failed (1) > failureLimit (0): ROLL BACK at weight 1%: canary \
                failed 100.00% (3/3) vs stable 0.00% (0/297); canary got 1.0% of requests but 100.0% of the bad ones; e-value ";
    assert!(aborted.message.contains(said), "{}", aborted.message);
    let events = lab.control.events(Some("shop"), 0, 100).await.unwrap();
    let last = events
        .iter()
        .rev()
        .find(|event| event.event == "analysis_finished");
    let judged = &last.unwrap().numbers["analysis"]["metrics"][0]["judge"];
    assert_eq!(
        (&judged["advice"], &judged["tests"][0]["canaryBad"]),
        (&"rollback".into(), &3.into()),
        "{judged:#}"
    );
}

#[tokio::test(start_paused = true)]
async fn evidence_promotes_a_healthy_canary_and_silence_does_not() {
    let lab = Lab::new(config("", ""));
    lab.deploy("v2", 9002).await.unwrap();
    let status = lab
        .until("at 1 %", |status| status.set_weight == Weight::percent(1))
        .await;
    assert_eq!(
        (status.phase, status.reason.as_deref()),
        (Phase::Progressing, Some("WaitingForEvidence"))
    );
    seconds(3605).await;
    let status = lab.status();
    assert_eq!(status.set_weight, Weight::percent(1));
    assert!(
        status
            .message
            .starts_with("waiting for evidence: HOLD at 1%: inconclusive: no canary traffic for 60 min; rollback e=1 (needs 100); \
                          proceed waits for errors e=1 (needs 20)"),
        "{}",
        status.message
    );
    let mut took = 0;
    while lab.status().stable != Some(v("v2")) {
        took += 1;
        assert!(took < 600, "{:#?}", lab.status());
        lab.traffic(1000, 0.0).await;
    }
    // Table T6 has 287 s at 500 rps; this is twice the traffic, and nothing fails.
    assert!((70..250).contains(&took), "{took} s");
    let events = lab.control.events(Some("shop"), 0, 100).await.unwrap();
    let moved = events.iter().filter(|event| event.event == "evidence_suffices");
    let said: Vec<&str> = moved
        .filter_map(|event| event.detail["by"]["message"].as_str())
        .collect();
    assert_eq!(said.len(), 4, "{events:#?}");
    assert!(
        said[1].starts_with("PROCEED from 5%: ruled out: errors above 1.25 x stable + 0.40pp"),
        "{said:#?}"
    );
}

#[tokio::test(start_paused = true)]
async fn where_only_forced_requests_come_that_is_what_is_said() {
    let lab = Lab::new(config("", ""));
    let assign = |reason, requests: u32| {
        let split = lab.live().cell.load_full();
        let shard = split.target(Role::Canary).metrics.shard(0);
        (0..requests).for_each(|_| shard.assign(reason));
    };
    let silence = || {
        let message = lab.status().message;
        let said = message.split_once("inconclusive: ").map(|(_, said)| said);
        let said = said.and_then(|said| said.split_once("; rollback "));
        said.map_or_else(|| panic!("{message}"), |(said, _)| said.to_owned())
    };
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 1 %", |status| status.set_weight == Weight::percent(1))
        .await;
    // What was forced before somebody judged is not of it.
    assign(AssignReason::Force, 3);
    seconds(2).await;
    assert!(!silence().contains("forced"), "{}", silence());
    assign(AssignReason::Force, 3);
    seconds(100).await;
    let lasts = silence();
    assert!(
        lasts.starts_with("no canary traffic that counts for ")
            && lasts.ends_with(" s: only forced requests came"),
        "{lasts}"
    );
    // Those are not of a silence that begins after them.
    assign(AssignReason::Weight, 1);
    lab.serve(Role::Canary, 1, 0);
    seconds(100).await;
    let lasts = silence();
    assert!(
        lasts.starts_with("no canary traffic for ") && lasts.ends_with(" s"),
        "{lasts}"
    );
    assign(AssignReason::Force, 1);
    seconds(2).await;
    assert!(silence().ends_with("only forced requests came"), "{}", silence());
}

#[tokio::test(start_paused = true)]
async fn a_canary_with_five_percent_errors_is_pulled_back_and_says_so_with_its_numbers() {
    let lab = Lab::new(config(BESIDE, &judge("")));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    let mut took = 0;
    while lab.status().phase != Phase::Degraded {
        took += 1;
        assert!(took < 20, "{:#?}", lab.status());
        lab.traffic(1000, 0.05).await;
    }
    let said = lab.status().aborted.unwrap().message;
    assert!(said.contains("ROLL BACK at weight 5%: canary failed "), "{said}");
}

#[tokio::test(start_paused = true)]
async fn what_the_judge_knows_survives_a_kill() {
    let config = config("", "");
    let lab = Lab::new(config.clone());
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 1 %", |status| status.set_weight == Weight::percent(1))
        .await;
    for _ in 0..2 {
        lab.serve(Role::Stable, 99, 0);
        lab.serve(Role::Canary, 0, 1);
    }
    seconds(3).await;
    assert_eq!(lab.status().phase, Phase::Progressing);
    let lab = lab.kill_and_restart(config, Duration::from_secs(600)).await;
    seconds(1).await;
    let status = lab.status();
    let judged = status.analyses[0].metrics[0].judge.as_ref().unwrap();
    assert_eq!(judged.tests[0].canary_bad, 2, "{judged:#?}");
    lab.serve(Role::Stable, 99, 0);
    lab.serve(Role::Canary, 0, 1);
    seconds(1).await;
    let said = lab.status().aborted.unwrap().message;
    assert!(said.contains("(3/3) vs stable 0.00% (0/297)"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_judged_anew() {
    let lab = Lab::new(config("", ""));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 1 %", |status| status.set_weight == Weight::percent(1))
        .await;
    lab.serve(Role::Stable, 297, 0);
    lab.serve(Role::Canary, 0, 3);
    lab.until("degraded", |status| status.phase == Phase::Degraded)
        .await;
    lab.command(Command::Retry).await.unwrap();
    lab.until("at 1 %", |status| status.set_weight == Weight::percent(1))
        .await;
    lab.serve(Role::Stable, 198, 0);
    lab.serve(Role::Canary, 0, 2);
    seconds(2).await;
    let status = lab.status();
    let judged = status.analyses[0].metrics[0].judge.as_ref().unwrap();
    assert_eq!(
        (status.phase, judged.tests[0].canary_bad),
        (Phase::Progressing, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn a_judge_that_only_observes_says_what_it_would_do_and_does_nothing() {
    let observes = "    strategy:
      canary:
        analysis: {templates: [{templateName: judge}]}
        steps: [{setWeight: 5}, {pause: {duration: 60s}}, {setWeight: 50}, {pause: {}}]";
    let lab = Lab::new(config(observes, &judge("        dryRun: true")));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    lab.traffic(1000, 1.0).await;
    let status = lab.status();
    let metric = &status.analyses[0].metrics[0];
    assert!(
        metric.message.starts_with("ROLL BACK at weight 5%"),
        "{metric:#?}"
    );
    assert_eq!(status.phase, Phase::Paused);
    // A plan whose only judge observes waits for no evidence of its.
    lab.until("at 50 %", |status| status.set_weight == Weight::percent(50))
        .await;
}

#[tokio::test(start_paused = true)]
async fn steps_that_refer_to_one_judge_share_its_risk() {
    let steps = "    strategy:
      canary:
        steps: [{setWeight: 5}, {analysis: {templates: [{templateName: judge}]}}, {setWeight: 50}, {analysis: {templates: [{templateName: judge}]}}]";
    let lab = Lab::new(config(steps, &judge("")));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    let mut at_5 = 0;
    while lab.weight() == Weight::percent(5) {
        at_5 += 50;
        assert!(at_5 < 10_000, "{:#?}", lab.status());
        lab.traffic(1000, 0.0).await;
    }
    lab.traffic(1000, 0.0).await;
    let status = lab.status();
    let judged = status.analyses[0].metrics[0].judge.as_ref().unwrap();
    assert!(
        judged.tests[0].canary > at_5,
        "{at_5} at the first step, {judged:#?}"
    );
    while lab.status().stable != Some(v("v2")) {
        lab.traffic(1000, 0.0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn evidence_that_stays_away_calls_a_person() {
    let steps = "    strategy: {canary: {auto: {weights: [5, 50], max: 10m}}}";
    let lab = Lab::new(config(steps, ""));
    lab.deploy("v2", 9002).await.unwrap();
    let status = lab.until("paused", |status| status.phase == Phase::Paused).await;
    assert_eq!(
        (status.reason.as_deref(), lab.weight()),
        (Some("NoEvidence"), Weight::percent(5))
    );
    let promote = Command::Promote {
        full: false,
        skip_analysis: false,
    };
    lab.command(promote).await.unwrap();
    assert_eq!(lab.weight(), Weight::percent(50));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_hangs_is_slow_before_it_ends() {
    let lab = Lab::new(config(BESIDE, &judge("")));
    // Stable answers within 5 ms.
    lab.serve(Role::Stable, 20_000, 0);
    seconds(2).await;
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    let mut hanging = Vec::new();
    while lab.status().phase != Phase::Degraded {
        lab.serve(Role::Stable, 95, 0);
        let split = lab.live().cell.load_full();
        let canary = split.canary.clone().unwrap();
        for _ in 0..5 {
            let since = lab.clock.monotonic();
            let ticket = canary.evidence.begin(0, crate::metrics::Unit::Request, since);
            hanging.push((canary.clone(), ticket));
        }
        assert!(hanging.len() < 200, "{:#?}", lab.status());
        seconds(1).await;
    }
    let said = lab.status().aborted.unwrap().message;
    assert!(said.contains("canary slower than stable's p"), "{said}");
    for (canary, ticket) in hanging {
        canary
            .evidence
            .end(0, ticket, Outcome::Canceled, Duration::from_secs(9));
    }
}

#[tokio::test(start_paused = true)]
async fn requests_of_an_earlier_weight_count_at_that_weight() {
    let lab = Lab::new(config(BESIDE, &judge("")));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    let before = lab.live().cell.load_full();
    lab.command(Command::SetWeight {
        weight: Weight::percent(50),
    })
    .await
    .unwrap();
    seconds(1).await;
    // They were assigned at 5 %: three failures are as much evidence as they were then.
    for _ in 0..3 {
        let canary = before.canary.as_ref().unwrap();
        canary
            .evidence
            .record(0, Outcome::Failed, Duration::from_millis(5));
    }
    let status = lab
        .until("degraded", |status| status.phase == Phase::Degraded)
        .await;
    assert!(status.aborted.unwrap().message.contains("(3/3)"));
}

#[tokio::test(start_paused = true)]
async fn under_stickiness_it_waits_for_users_and_says_so() {
    let lab = Lab::new(config("    sticky: {header: x-user-id}", ""));
    lab.deploy("v2", 9002).await.unwrap();
    let waits = |status: &ServiceStatus| status.message.contains("rollback e=1 (needs 100)");
    let status = lab.until("judged", waits).await;
    let said =
        "HOLD at 1%: inconclusive: no new users yet: each is one piece of evidence, once at each weight; ";
    assert!(status.message.contains(said), "{}", status.message);
}

#[tokio::test(start_paused = true)]
async fn a_plan_at_its_end_waits_for_the_judge_beside_it_and_says_for_what() {
    let plan = BESIDE.replace("{untilEvidence: {}}", "{duration: 1s}");
    let plan = plan.split(", {setWeight: 50}").next().unwrap_or_default();
    let lab = Lab::new(config(&format!("{plan}]"), &judge("")));
    lab.deploy("v2", 9002).await.unwrap();
    let at_its_end =
        |status: &ServiceStatus| status.step.as_ref().is_some_and(|step| step.index == step.count);
    let status = lab.until("at the end", at_its_end).await;
    assert_eq!(
        (status.phase, status.reason.as_deref(), status.set_weight),
        (Phase::Progressing, Some("WaitingForEvidence"), Weight::percent(5))
    );
    assert!(
        status.message.starts_with("waiting for evidence: HOLD at 5%: "),
        "{}",
        status.message
    );
}
