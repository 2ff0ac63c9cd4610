//! Another share of 4xx answers than stable's: who is called, what goes on meanwhile, and what is remembered of it.

use super::{
    judging::{BESIDE, judge},
    *,
};
use crate::{
    metrics::Unit,
    rollout::{PauseReason, Phase},
};

impl Lab {
    /// So many requests are answered 4xx.
    pub(super) fn refuse(&self, role: Role, requests: u32) {
        let split = self.live().cell.load_full();
        let evidence = &split.target(role).evidence;
        for _ in 0..requests {
            let ticket = evidence.begin(0, Unit::Request, self.clock.monotonic());
            evidence.client_error(0, &ticket);
            evidence.end(0, ticket, Outcome::Ok, Duration::from_millis(5));
        }
    }

    /// A rollout at 5 %.
    async fn at_5(metric: &str) -> Lab {
        let lab = Lab::new(config(BESIDE, &judge(metric)));
        lab.deploy("v2", 9002).await.unwrap();
        lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
            .await;
        lab
    }

    /// A second in which stable answers so many of a thousand with 4xx, and a fifth of the canary's are.
    pub(super) async fn refusing_canary(&self, of_stable: u32) {
        let canary = 1000 - 950;
        self.refuse(Role::Stable, of_stable);
        self.serve(Role::Stable, 950 - of_stable, 0);
        self.refuse(Role::Canary, canary / 5);
        self.serve(Role::Canary, canary - canary / 5, 0);
        seconds(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_refuses_more_is_paused_and_goes_on_when_somebody_says_so() {
    let lab = Lab::at_5("").await;
    let mut took = 0;
    while lab.status().phase != Phase::Paused {
        took += 1;
        assert!(took < 10, "{:#?}", lab.status());
        lab.refusing_canary(4).await;
    }
    let status = lab.status();
    assert_eq!(
        (status.reason.as_deref(), lab.weight()),
        (Some("ClientErrors"), Weight::percent(5))
    );
    let said = "ClientErrors: PAUSE at weight 5%: 4xx: canary 20.00% of ";
    assert!(status.message.starts_with(said), "{}", status.message);
    let reason = || {
        let rollouts = &lab.services.metrics().control.rollouts;
        rollouts.view("shop").and_then(|view| view.pause_reason)
    };
    assert_eq!(reason(), Some(PauseReason::ClientErrors));
    let events = lab.control.events(Some("shop"), 0, 100).await.unwrap();
    let event = events
        .iter()
        .find(|event| event.event == "client_errors")
        .unwrap();
    let judged = &event.numbers["analysis"]["metrics"][0]["judge"]["clientErrors"];
    assert_eq!(
        (&judged["differs"], &event.message),
        (&true.into(), &status.message)
    );

    lab.command(Command::Resume).await.unwrap();
    // It does not get better, and somebody has decided to live with it.
    let mut took = 0;
    while lab.status().set_weight == Weight::percent(5) {
        took += 1;
        assert!(took < 300, "{:#?}", lab.status());
        lab.refusing_canary(4).await;
    }
    assert_eq!(
        (lab.status().phase, lab.weight(), reason()),
        (Phase::Progressing, Weight::percent(50), None)
    );
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_refuses_as_much_as_stable_goes_on() {
    let lab = Lab::at_5("").await;
    let mut took = 0;
    while lab.status().set_weight == Weight::percent(5) {
        took += 1;
        assert!(took < 300, "{:#?}", lab.status());
        assert_ne!(lab.status().phase, Phase::Paused, "{}", lab.status().message);
        lab.refusing_canary(190).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_only_observes_or_was_told_to_ignore_them_calls_nobody() {
    let ignores = judge("").replace("warmup: 1s", "warmup: 1s, clientErrors: {action: ignore}");
    // A plan that waits for evidence would get a judge with a say beside one that only observes.
    let timed = "    strategy:
      canary:
        analysis: {templates: [{templateName: judge}]}
        steps: [{setWeight: 5}, {pause: {duration: 1h}}]";
    for (template, sees) in [(judge("        dryRun: true"), Some(true)), (ignores, None)] {
        let lab = Lab::new(config(timed, &template));
        lab.deploy("v2", 9002).await.unwrap();
        lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
            .await;
        for _ in 0..10 {
            lab.refusing_canary(4).await;
        }
        let status = lab.status();
        assert_eq!(status.reason.as_deref(), Some("CanaryPauseStep"), "{status:#?}");
        let judged = status.analyses[0].metrics[0].judge.as_ref().unwrap();
        let seen = judged.client_errors.as_ref().map(|report| report.differs);
        assert_eq!(seen, sees);
    }
}

#[tokio::test(start_paused = true)]
async fn failures_pull_a_canary_back_out_of_its_pause() {
    let lab = Lab::at_5("").await;
    while lab.status().phase != Phase::Paused {
        lab.refusing_canary(4).await;
    }
    lab.traffic(1000, 0.5).await;
    let status = lab.status();
    assert_eq!(status.phase, Phase::Degraded);
    let said = status.aborted.unwrap().message;
    assert!(said.contains("ROLL BACK at weight 5%: canary failed "), "{said}");
}

#[tokio::test(start_paused = true)]
async fn after_a_kill_nobody_is_called_twice_and_what_was_seen_is_still_known() {
    let config = config(BESIDE, &judge(""));
    let lab = Lab::new(config.clone());
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    while lab.status().phase != Phase::Paused {
        lab.refusing_canary(4).await;
    }
    let before = lab.status().message;
    let lab = lab.kill_and_restart(config, Duration::from_secs(60)).await;
    seconds(1).await;
    assert_eq!(
        (lab.status().phase, lab.status().message),
        (Phase::Paused, before)
    );
    lab.command(Command::Resume).await.unwrap();
    for _ in 0..3 {
        lab.refusing_canary(4).await;
    }
    let status = lab.status();
    assert_eq!(status.phase, Phase::Progressing, "{}", status.message);
    let judged = status.analyses[0].metrics[0].judge.as_ref().unwrap();
    assert!(judged.client_errors.as_ref().unwrap().differs, "{judged:#?}");
}
