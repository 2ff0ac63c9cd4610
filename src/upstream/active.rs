//! Looks after all pools: makes the checks that are due, lets ejections end, and trips a service whose canary has no
//! healthy endpoint left.
//!
//! One task on the control runtime, never on a worker; the decisions are `health`'s.

use super::{Endpoint, LiveService, Services, check::check, rotation::Rotation};
use crate::model::Clock;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// The longest pause between two looks: rates are counted and new pools noticed at least so often.
const LONGEST: Duration = Duration::from_millis(500);
/// The shortest: what is due sooner waits that long.
const SHORTEST: Duration = Duration::from_millis(10);

/// Looks after all pools of `services` until it is dropped.
pub async fn look_after(services: Services, clock: Arc<dyn Clock>, seed: u64) {
    let dice = Arc::new(Mutex::new(SmallRng::seed_from_u64(seed)));
    loop {
        let now = clock.monotonic();
        let mut next = now + LONGEST;
        for service in services.all() {
            for version in service.versions() {
                let rotation = version.rotation();
                let (due, then) = rotation.tick(now, || roll(&dice));
                next = next.min(then.unwrap_or(next));
                for endpoint in due {
                    ask(&service, rotation, endpoint, &clock, &dice);
                }
            }
            trip_if_down(&service, now);
        }
        let pause = next.saturating_sub(clock.monotonic()).clamp(SHORTEST, LONGEST);
        tokio::time::sleep(pause).await;
    }
}

fn roll(dice: &Mutex<SmallRng>) -> u64 {
    dice.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
}

/// Makes one check beside the loop.
fn ask(
    service: &LiveService,
    rotation: &Arc<Rotation>,
    endpoint: Arc<Endpoint>,
    clock: &Arc<dyn Clock>,
    dice: &Arc<Mutex<SmallRng>>,
) {
    let (policy, tls) = (rotation.policy(), service.tls());
    let (rotation, clock, dice) = (Arc::clone(rotation), Arc::clone(clock), Arc::clone(dice));
    tokio::spawn(async move {
        // Health checks can have been taken away since they were due.
        let Some(health) = &policy.rules.health else {
            return;
        };
        let said = check(
            &endpoint.url,
            endpoint.address,
            &tls,
            &health.check,
            health.timeout.as_duration(),
        )
        .await;
        if let Err(why) = &said {
            tracing::debug!(endpoint = %endpoint.url, %why, "a health check failed");
        }
        rotation.checked(endpoint.id, &said, roll(&dice), clock.monotonic());
    });
}

/// Requests notice a canary that refuses them; one whose checks all fail is noticed here.
fn trip_if_down(service: &LiveService, now: Duration) {
    let split = service.cell.load_full();
    if !service.cell.is_tripped() {
        service.canary_failed(&split, now, &"no endpoint is healthy");
    }
}
