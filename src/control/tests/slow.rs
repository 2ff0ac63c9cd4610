//! A disk that takes its time: the engine waits for it where it reads and where it stores for many services at once, and for nothing
//! else (what raises: `raising`).

use super::*;
use crate::rollout::Phase;

/// Clients whom a dead canary answers while the engine waits for the disk.
#[derive(Debug)]
pub(super) struct Traffic {
    pub(super) services: Services,
    /// So many requests come to the canary while the disk does one thing.
    pub(super) requests: u32,
}

impl Traffic {
    pub(super) fn goes_on(&self) {
        let split = self.services.get("shop").unwrap().cell.load_full();
        if split.weight.is_zero() {
            return;
        }
        for _ in 0..self.requests {
            let evidence = &split.target(Role::Canary).evidence;
            evidence.record(0, Outcome::Failed, Duration::from_millis(5));
        }
    }
}

/// So many of the canary's requests have failed in all.
fn failed(lab: &Lab, dead: &Arc<crate::upstream::Target>) -> u64 {
    let now = lab.live().cell.load_full();
    assert!(now.weight.is_zero() && now.canary.is_none(), "it is gone");
    dead.evidence.counts().failed
}

#[tokio::test(start_paused = true)]
async fn a_dead_canary_costs_three_failures_whatever_is_stored_meanwhile() {
    let till = "  - name: till\n    match: [{host: till.test}]\n    stable: {version: v1, endpoints: [\"http://127.0.0.1:9101\"]}";
    let lab = Lab::new(config(till, ""));
    let is_at_1 = |status: &ServiceStatus| status.set_weight == Weight::percent(1);
    let at_the_till = async |command: Command| {
        let done = lab.control.command("till", command, Expect::default(), caller());
        done.await.unwrap()
    };
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 1 %", is_at_1).await;
    at_the_till(Command::Deploy(Deploy::of(v("v2"), vec![url(9102)]))).await;
    lab.released_and_another("v3", 9003, is_at_1).await;
    let dead = lab.live().cell.load_full().canary.clone().unwrap();
    // 400 ms for each, and 50 requests a second come to the canary.
    let traffic = Traffic {
        services: lab.services.clone(),
        requests: 20,
    };
    *lab.store.slow.lock().unwrap() = Some(traffic);

    lab.serve(Role::Stable, 99, 0);
    lab.serve(Role::Canary, 0, 1);
    seconds(15).await;
    let last = lab.store.inner.last_events("shop", 1).unwrap();
    assert_eq!(last[0].event, "releasable", "the version before the last goes");
    // A canary of somebody else is pulled back meanwhile.
    at_the_till(Command::Abort).await;
    for _ in 0..2 {
        lab.serve(Role::Stable, 99, 0);
        lab.serve(Role::Canary, 0, 1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(lab.status().phase, Phase::Degraded);
    assert_eq!(failed(&lab, &dead), 3);
}
