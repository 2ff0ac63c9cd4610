//! A share that is held back after the last step: what a late regression leads to, and what a restart leaves of the bake.

use super::*;
use crate::{
    analysis::Advice,
    model::Span,
    rollout::{AbortCause, Pause, Phase, Step},
};

const HELD_BACK: &str = "    strategy: {canary: {auto: {weights: [50]}, holdback: {duration: 10m}}}";

impl Lab {
    /// Healthy traffic until the bake begins.
    async fn reach_the_bake(&self) -> ServiceStatus {
        self.deploy("v2", 9002).await.unwrap();
        for _ in 0..600 {
            if self.status().reason.as_deref() == Some("Bake") {
                return self.status();
            }
            self.traffic(1000, 0.0).await;
        }
        panic!("never in the bake: {:#?}", self.status());
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_regression_is_pulled_back_in_the_bake() {
    let lab = Lab::new(config(HELD_BACK, ""));
    let status = lab.reach_the_bake().await;
    assert_eq!(
        (status.phase, status.set_weight, lab.weight()),
        (Phase::Paused, Weight::percent(98), Weight::percent(98))
    );
    let until = status.paused.unwrap().until.unwrap();
    assert_eq!(
        status.message,
        format!("Bake: bakes with 2% on stable until {until}; a regression still rolls back")
    );
    assert_eq!(status.step.unwrap().text, "bake 10m with 2% on stable");
    for _ in 0..60 {
        lab.traffic(1000, 0.0).await;
    }
    assert_eq!(lab.status().stable, Some(v("v1")));
    let mut took = 0;
    while lab.status().phase != Phase::Degraded {
        took += 1;
        assert!(took < 60, "{:#?}", lab.status());
        lab.traffic(1000, 0.05).await;
    }
    assert_eq!(lab.weight(), Weight::ZERO);
    let aborted = lab.status().aborted.unwrap();
    assert_eq!(aborted.cause, AbortCause::AnalysisFailed);
    assert!(
        aborted.message.contains("ROLL BACK at weight 98%"),
        "{}",
        aborted.message
    );
}

#[tokio::test(start_paused = true)]
async fn a_restart_in_the_bake_goes_on_with_it_and_its_judge() {
    let lab = Lab::new(config(HELD_BACK, ""));
    let until = |status: &ServiceStatus| status.paused.as_ref().unwrap().until.unwrap();
    let before = until(&lab.reach_the_bake().await);
    seconds(120).await;
    let lab = lab
        .kill_and_restart(config(HELD_BACK, ""), Duration::from_secs(3600))
        .await;
    let status = lab.status();
    assert_eq!(
        (status.reason.as_deref(), lab.weight()),
        (Some("Bake"), Weight::percent(98))
    );
    // The hour in which nobody served does not count.
    let moved = until(&status).since(before);
    assert!(moved >= Duration::from_secs(3590), "{moved:?}");
    lab.traffic(1000, 0.0).await;
    seconds(2).await;
    let judge = lab.status().analyses[0].metrics[0].judge.clone().unwrap();
    assert_ne!(judge.advice, Advice::Rollback);
    // Silence is no reason against it: everything was ruled out before the bake.
    let healthy = lab
        .until("promoted", |status| status.stable == Some(v("v2")))
        .await;
    assert!(healthy.updated > until(&status), "{healthy:#?}");
    let events = lab.control.events(Some("shop"), 0, 100).await.unwrap();
    let baked = events
        .iter()
        .find(|event| event.message.starts_with("Bake: bakes with 2% on stable until "));
    assert_eq!(baked.map(|event| event.weight), Some(Weight::percent(98)));
}

#[tokio::test(start_paused = true)]
async fn the_steps_of_a_deploy_are_held_back_as_those_of_the_file() {
    let lab = Lab::new(config(HELD_BACK, ""));
    let mut deploy = Deploy::of(v("v2"), vec![url(9002)]);
    let pause = Step::Pause(Pause {
        duration: Some(Span::secs(60)),
        until_evidence: None,
    });
    let to = |percent| Step::SetWeight(Weight::percent(percent));
    deploy.steps = Some(vec![to(5), pause.clone(), to(100)]);
    lab.command(Command::Deploy(deploy.clone())).await.unwrap();
    let steps = lab.status().step.unwrap();
    assert_eq!(
        steps.all,
        ["setWeight 5%", "pause 1m", "bake 10m with 2% on stable"]
    );
    deploy.version = v("v3");
    deploy.steps = Some(vec![to(99), pause]);
    let refused = lab.command(Command::Deploy(deploy)).await.unwrap_err();
    assert!(
        refused
            .message
            .contains("this gives the canary 99%, and holdback keeps 2% on stable"),
        "{refused:?}"
    );
}
