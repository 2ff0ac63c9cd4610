//! Which endpoint of a version gets a request: the less busy of two drawn at random.
//!
//! Pure: load, eligibility and the dice are arguments.

use std::time::Duration;

use super::Endpoint;
use std::sync::Arc;

/// Picks an endpoint that is not in `tried`. Endpoints that just failed are taken only when nothing else is left: sending
/// to one of them is better than sending nowhere.
pub fn pick<'a>(
    endpoints: &'a [Arc<Endpoint>],
    tried: &[u64],
    now: Duration,
    dice: u64,
    active: impl Fn(&Endpoint) -> u32,
) -> Option<&'a Arc<Endpoint>> {
    if let [only] = endpoints {
        return (!tried.contains(&only.id)).then_some(only);
    }
    if endpoints.len() > 1 && tried.is_empty() {
        let (a, b) = two(dice, endpoints.len());
        let (a, b) = (&endpoints[a], &endpoints[b]);
        match (a.is_eligible(now), b.is_eligible(now)) {
            (true, true) => return Some(if active(b) < active(a) { b } else { a }),
            (true, false) => return Some(a),
            (false, true) => return Some(b),
            (false, false) => {}
        }
    }
    // The rare case: look at all of them, from a random place on.
    let start = index(dice, endpoints.len().max(1));
    let around = endpoints[start.min(endpoints.len())..]
        .iter()
        .chain(&endpoints[..start.min(endpoints.len())]);
    around
        .filter(|e| !tried.contains(&e.id))
        .min_by_key(|e| (!e.is_eligible(now), active(e)))
}

/// A uniform index below `len` from the high half of 64 random bits.
fn index(dice: u64, len: usize) -> usize {
    let len = u64::try_from(len).unwrap_or(u64::MAX);
    usize::try_from(((dice >> 32) * len) >> 32).unwrap_or(0)
}

/// Two different indexes below `len` (at least 2).
fn two(dice: u64, len: usize) -> (usize, usize) {
    let a = index(dice, len);
    let b = index(dice << 32, len - 1);
    (a, if b >= a { b + 1 } else { b })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    fn endpoints(n: u16) -> Vec<Arc<Endpoint>> {
        (0..n)
            .map(|port| {
                Arc::new(Endpoint::new(
                    format!("http://127.0.0.1:{}", port + 1).parse().unwrap(),
                ))
            })
            .collect()
    }

    #[test]
    fn the_less_busy_of_two_is_taken_and_a_busy_one_starves() {
        let set = endpoints(3);
        let busy = set[0].id;
        let mut dice = SmallRng::seed_from_u64(1);
        for _ in 0..1000 {
            let picked = pick(&set, &[], Duration::ZERO, dice.random(), |e| {
                u32::from(e.id == busy) * 9
            })
            .unwrap();
            assert_ne!(picked.id, busy);
        }
    }

    #[test]
    fn idle_endpoints_share_evenly() {
        let set = endpoints(7);
        let mut dice = SmallRng::seed_from_u64(2);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            let picked = pick(&set, &[], Duration::ZERO, dice.random(), |_| 0).unwrap().id;
            counts[set.iter().position(|e| e.id == picked).unwrap()] += 1;
        }
        assert!(
            counts.iter().all(|count| (9_400..=10_600).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn an_endpoint_that_just_failed_is_taken_only_when_no_other_is_left() {
        let set = endpoints(4);
        set[1].failed(Duration::ZERO);
        let mut dice = SmallRng::seed_from_u64(3);
        for _ in 0..500 {
            assert_ne!(
                pick(&set, &[], Duration::ZERO, dice.random(), |_| 0).unwrap().id,
                set[1].id
            );
        }
        let tried: Vec<u64> = [0, 2, 3].map(|i: usize| set[i].id).to_vec();
        assert_eq!(
            pick(&set, &tried, Duration::ZERO, 5, |_| 0).unwrap().id,
            set[1].id
        );
        let all: Vec<u64> = set.iter().map(|e| e.id).collect();
        assert!(pick(&set, &all, Duration::ZERO, 5, |_| 0).is_none());
        assert!(pick(&[], &[], Duration::ZERO, 5, |_| 0).is_none());
    }
}
