//! Random commands, traffic, trips, store faults and kills against what must always hold; a failing seed is printed.

use super::*;
use crate::control::EndpointChange;
use crate::upstream::Fault;
use rand::{RngExt, SeedableRng, rngs::StdRng};

const STRATEGY: &str = "    strategy:
      canary:
        analysis: {templates: [{templateName: errors}]}
        steps: [{setWeight: 5}, {pause: {duration: 20s}}, {analysis: {templates: [{templateName: errors2}]}}, {setWeight: 40}, {pause: {}}]";
const TEMPLATES: &str = "analysisTemplates:
  - name: errors
    metrics:
      - {name: a, interval: 5s, successCondition: result < 0.05, provider: {serin: {metric: errorRate, noDataTimeout: 30s}}}
  - name: errors2
    metrics:
      - {name: b, interval: 5s, count: 2, successCondition: result < 0.05, provider: {serin: {metric: errorRate, noDataTimeout: 30s}}}";

async fn act(lab: &Lab, rng: &mut StdRng) {
    let command = match rng.random_range(0..17u32) {
        0 | 1 => {
            let version = format!("v{}", rng.random_range(1..6u32));
            Command::Deploy(Deploy::of(v(&version), vec![url(rng.random_range(9001..9006))]))
        }
        2 | 3 => Command::Promote {
            full: rng.random_range(0..4u32) == 0,
            skip_analysis: rng.random_range(0..2u32) == 0,
        },
        4 => Command::Abort,
        5 => Command::Retry,
        6 => Command::Undo { to: None },
        7 => Command::Pause,
        8 => Command::Resume,
        9 => Command::SetWeight {
            weight: Weight::percent(rng.random_range(0..101)),
        },
        10 => Command::SetEndpoints {
            version: v(&format!("v{}", rng.random_range(1..6u32))),
            change: EndpointChange::Set(vec![url(rng.random_range(9001..9006))]),
        },
        11 => {
            let fails = lab.store.fails.load(Ordering::SeqCst);
            lab.store.fails.store(!fails, Ordering::SeqCst);
            return;
        }
        13 => {
            lab.set_wall(rng.random_range(-5000..5000));
            return;
        }
        12 => {
            let (live, split) = (lab.live(), lab.live().cell.load_full());
            if let Some(canary) = &split.canary {
                for endpoint in canary.version.endpoints().iter() {
                    for _ in 0..3 {
                        endpoint.failed(Fault::Hard, Duration::ZERO);
                    }
                }
                live.canary_failed(&split, Duration::ZERO, &"refused");
            }
            return;
        }
        _ => {
            lab.serve(
                Role::Canary,
                40,
                if rng.random_range(0..5u32) == 0 { 20 } else { 0 },
            );
            return;
        }
    };
    // A refusal is as good an answer as any.
    let _ = lab.command(command).await;
}

/// What must hold whatever has happened.
fn check(lab: &Lab, seed: u64, turn: usize) {
    let (status, split) = (lab.status(), lab.live().cell.load_full());
    let at = format!("seed {seed}, turn {turn}: {status:#?}");
    assert_eq!(Some(&split.stable.version.name), status.stable.as_ref(), "{at}");
    assert!(split.weight.is_zero() || split.canary.is_some(), "{at}");
    assert!(split.weight <= status.set_weight, "{at}");
    let canary = split.canary.as_ref().map(|canary| canary.version.name.clone());
    assert!(canary.is_none() || canary == status.canary, "{at}");
    let stored = lab.store.inner.last_events("shop", 1).unwrap();
    let (stored_weight, stored_message) = (stored[0].weight, &stored[0].message);
    assert!(
        split.weight <= stored_weight,
        "stored {stored_weight} ({stored_message}), {at}"
    );
    let loaded = lab.store.inner.load().unwrap();
    assert_eq!(
        loaded[0].replayed.as_ref(),
        Some(&loaded[0].saved),
        "replay, {at}"
    );
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_exposure_is_never_more_than_was_stored() {
    let seeds = std::env::var("SERIN_SEEDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(12u64);
    for seed in 0..seeds {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut lab = Lab::new(config(STRATEGY, TEMPLATES));
        for turn in 0..60 {
            act(&lab, &mut rng).await;
            let wait = rng.random_range(0..8_000u64);
            tokio::time::sleep(Duration::from_millis(wait)).await;
            check(&lab, seed, turn);
            if rng.random_range(0..12u32) == 0 {
                let down = Duration::from_secs(rng.random_range(0..100));
                lab = lab.kill_and_restart(config(STRATEGY, TEMPLATES), down).await;
                check(&lab, seed, turn);
            }
        }
    }
}
