//! Damage that both versions share: who is told, what it holds, and that it blames nobody.

use super::*;
use crate::rollout::Phase;

const ALARMED: &str = "    alarm: {errors: 5%, over: 30s, requests: 50}
    strategy: {canary: {steps: [{setWeight: 5}, {pause: {duration: 60s}}, {setWeight: 50}, {pause: {}}]}}";

impl Lab {
    /// So many seconds of traffic, of which both versions fail this much.
    async fn both_fail(&self, for_seconds: usize, failed: u32) {
        for _ in 0..for_seconds {
            self.serve(Role::Stable, 100 - failed, failed);
            if self.status().canary.is_some() && !self.weight().is_zero() {
                self.serve(Role::Canary, 10 - failed / 10, failed / 10);
            }
            seconds(1).await;
        }
    }

    /// Every event of this name.
    async fn told(&self, what: &str) -> Vec<StoredEvent> {
        let events = self.control.events(Some("shop"), 0, 500).await.unwrap();
        events.into_iter().filter(|event| event.event == what).collect()
    }

    fn rings(&self) -> bool {
        let rollouts = &self.services.metrics().control.rollouts;
        rollouts.view("shop").is_some_and(|view| view.alarm)
    }
}

#[tokio::test(start_paused = true)]
async fn damage_that_both_versions_share_rings_once_holds_the_rollout_and_aborts_nothing() {
    let lab = Lab::new(config(ALARMED, ""));
    lab.both_fail(5, 0).await;
    assert!(!lab.rings());
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    lab.both_fail(120, 20).await;
    let status = lab.status();
    assert_eq!(
        (status.phase, status.reason.as_deref(), status.set_weight),
        (Phase::Paused, Some("Alarm"), Weight::percent(5)),
        "the pause of a minute is over and nothing goes on: {status:#?}"
    );
    let rung = lab.told("alarm_raised").await;
    assert_eq!((rung.len(), lab.rings()), (1, true), "{rung:#?}");
    assert!(
        rung[0]
            .message
            .contains("of both versions together (the alarm rings above 5%)")
            && rung[0].numbers["failed"].as_u64() > Some(0),
        "{rung:#?}"
    );
    let alarm = status.alarm.unwrap();
    assert!(
        status.warnings[0].starts_with(&format!("the alarm rings since {}: ", alarm.since)),
        "{:?}",
        status.warnings
    );
    // Over: the pause has had its time, and the rollout goes on by itself.
    lab.both_fail(60, 0).await;
    let status = lab.status();
    assert_eq!(
        (status.set_weight, status.alarm, status.aborted),
        (Weight::percent(50), None, None)
    );
    assert_eq!((lab.told("alarm_cleared").await.len(), lab.rings()), (1, false));
    assert_eq!(lab.told("alarm_raised").await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_alarm_without_a_rollout_holds_the_next_one_and_outlives_a_restart() {
    let lab = Lab::new(config(ALARMED, ""));
    lab.both_fail(20, 50).await;
    let status = lab.status();
    assert_eq!(status.phase, Phase::Healthy);
    assert!(
        status.message.starts_with("Alarm: 50.0% of the service's "),
        "{status:#?}"
    );
    let lab = lab
        .kill_and_restart(config(ALARMED, ""), Duration::from_secs(60))
        .await;
    lab.deploy("v2", 9002).await.unwrap();
    lab.both_fail(20, 50).await;
    let status = lab.status();
    assert_eq!(
        (status.reason.as_deref(), lab.weight(), lab.rings()),
        (Some("Alarm"), Weight::ZERO, true)
    );
    assert_eq!(
        lab.told("alarm_raised").await.len(),
        1,
        "it has not been told again"
    );
    // Somebody who knows better lets it go on, and it is not held again for the same alarm.
    lab.command(Command::Resume).await.unwrap();
    lab.both_fail(5, 50).await;
    assert_eq!(lab.weight(), Weight::percent(5));
    // Without the alarm in the file nothing rings.
    let quiet = config(&ALARMED[ALARMED.find("    strategy").unwrap()..], "");
    lab.control.apply_config(quiet, || ()).await.unwrap();
    lab.until("quiet", |status| status.alarm.is_none()).await;
    assert!(!lab.rings());
}
