//! What happens when a version stops answering.

use super::*;
use crate::rollout::{AbortCause, Phase};
use crate::upstream::Fault;

const MANUAL: &str = "    strategy: {canary: {steps: [{setWeight: 5}, {pause: {}}]}}";

fn kill(lab: &Lab, role: Role) {
    let (live, split) = (lab.live(), lab.live().cell.load_full());
    for endpoint in split.target(role).version.endpoints().iter() {
        for _ in 0..3 {
            endpoint.failed(Fault::Hard, Duration::ZERO);
        }
    }
    if role == Role::Canary {
        assert!(live.canary_failed(&split, Duration::ZERO, &"connection refused"));
    }
}

async fn at_5(service: &str) -> Lab {
    let lab = Lab::new(config(&format!("{service}\n{MANUAL}"), ""));
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    lab
}

#[tokio::test(start_paused = true)]
async fn a_trip_aborts_the_rollout_and_is_confirmed_after_the_weight_is_zero() {
    let lab = at_5("").await;
    kill(&lab, Role::Canary);
    let status = lab
        .until("degraded", |status| status.phase == Phase::Degraded)
        .await;
    assert_eq!(status.aborted.unwrap().cause, AbortCause::HardFailure);
    assert!(lab.live().cell.load_full().canary.is_none() && !lab.live().cell.is_tripped());
}

#[tokio::test(start_paused = true)]
async fn a_trip_acts_while_the_store_fails_and_is_stored_later() {
    let lab = at_5("").await;
    lab.store.fails.store(true, Ordering::SeqCst);
    kill(&lab, Role::Canary);
    let status = lab
        .until("degraded", |status| status.phase == Phase::Degraded)
        .await;
    assert!(!status.warnings.is_empty() && !lab.control.is_store_healthy());
    assert_eq!(lab.weight(), Weight::ZERO);
    let refusal = lab.command(Command::Retry).await.unwrap_err();
    assert_eq!(refusal.code, "storeUnhealthy");
    lab.store.fails.store(false, Ordering::SeqCst);
    lab.until("healthy store", |_| lab.control.is_store_healthy())
        .await;
    let last = lab.control.history("shop", 1).await.unwrap().events;
    assert_eq!(last[0].phase, Phase::Degraded);
    lab.command(Command::Retry).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shared_failure_pauses_and_blames_nobody() {
    for stable_first in [true, false] {
        let lab = at_5("").await;
        if stable_first {
            kill(&lab, Role::Stable);
        }
        kill(&lab, Role::Canary);
        if !stable_first {
            lab.until("degraded", |status| status.phase == Phase::Degraded)
                .await;
            seconds(5).await;
            kill(&lab, Role::Stable);
        }
        let status = lab
            .until("shared", |status| status.reason.as_deref() == Some("SharedFate"))
            .await;
        assert_eq!((status.phase, lab.weight()), (Phase::Paused, Weight::ZERO));
        assert_eq!(status.rollout.unwrap().attempt, 1, "nobody has retried it");
        assert!(!lab.live().cell.is_tripped());
    }
}

#[tokio::test(start_paused = true)]
async fn stable_failing_much_later_is_another_story() {
    let lab = at_5("").await;
    kill(&lab, Role::Canary);
    lab.until("degraded", |status| status.phase == Phase::Degraded)
        .await;
    seconds(11).await;
    kill(&lab, Role::Stable);
    seconds(5).await;
    assert_eq!(lab.status().phase, Phase::Degraded);
}

#[tokio::test(start_paused = true)]
async fn the_operator_may_choose_to_pause_instead() {
    let lab = at_5("    hardFailure: {attempts: 3, action: pause}").await;
    kill(&lab, Role::Canary);
    let status = lab
        .until("paused", |status| status.reason.as_deref() == Some("HardFailure"))
        .await;
    assert_eq!((status.canary, lab.weight()), (Some(v("v2")), Weight::ZERO));
    lab.command(Command::Resume).await.unwrap();
    assert_eq!(lab.weight(), Weight::percent(5));
}
