//! Which endpoint of a version gets a request: the less busy of two drawn at random, or each in turn.
//!
//! Pure: load, eligibility, the dice and whose turn it is are arguments.

use std::time::Duration;

use super::Endpoint;

/// Something that leads to one of the endpoints that are chosen from.
pub trait Candidate {
    /// The endpoint.
    fn endpoint(&self) -> &Endpoint;
    /// Requests that it has right now.
    fn active(&self) -> u32;
}

/// Picks an endpoint that is not in `tried`. Endpoints that just failed are taken only when nothing else is left: sending
/// to one of them is better than sending nowhere.
pub fn pick<'a, C: Candidate>(all: &'a [C], tried: &[u64], now: Duration, dice: u64) -> Option<&'a C> {
    if let [only] = all {
        return (!tried.contains(&only.endpoint().id)).then_some(only);
    }
    if all.len() > 1 && tried.is_empty() {
        let (a, b) = two(dice, all.len());
        let (a, b) = (&all[a], &all[b]);
        let less_busy = || if b.active() < a.active() { b } else { a };
        let (first, second) = (a.endpoint(), b.endpoint());
        if first.is_plain() && second.is_plain() {
            return Some(less_busy());
        }
        match (first.is_eligible(now), second.is_eligible(now)) {
            (true, true) => {
                let (mine, other) = (first.share(now), second.share(now));
                return Some(if passes(dice, mine / other) {
                    if passes(dice, other / mine) {
                        less_busy()
                    } else {
                        a
                    }
                } else {
                    b
                });
            }
            (true, false) => return Some(a),
            (false, true) => return Some(b),
            (false, false) => {}
        }
    }
    // The rare case: look at all of them, from a random place on.
    let (before, from) = all.split_at(index(dice, all.len()));
    let around = from.iter().chain(before);
    around
        .filter(|one| !tried.contains(&one.endpoint().id))
        .min_by_key(|one| (!one.endpoint().is_eligible(now), one.active()))
}

/// The next in turn of those that are not in `tried`, each of them once in a round. `turn` moves on. One that starts slowly
/// lets some of its turns pass to the next; those that just failed have none while others are left.
pub fn rotate<'a, C: Candidate>(
    all: &'a [C],
    tried: &[u64],
    now: Duration,
    mut dice: u64,
    turn: &mut u64,
) -> Option<&'a C> {
    let left = || all.iter().filter(|one| !tried.contains(&one.endpoint().id));
    let are_eligible = left().any(|one| one.endpoint().is_eligible(now));
    let round = || left().filter(|one| !are_eligible || one.endpoint().is_eligible(now));
    let most = round().map(|one| one.endpoint().share(now)).fold(0.0, f64::max);
    let count = round().count();
    let mut in_turn = || {
        let place = *turn % u64::try_from(count.max(1)).unwrap_or(u64::MAX);
        *turn = turn.wrapping_add(1);
        round().nth(usize::try_from(place).unwrap_or_default())
    };
    // Health may change between two looks at it: then any that is left.
    for _ in 1..count {
        let next = in_turn().or_else(|| left().next())?;
        if passes(dice, next.endpoint().share(now) / most) {
            return Some(next);
        }
        dice = dice.rotate_left(17) ^ 0x9E37_79B9_7F4A_7C15;
    }
    in_turn().or_else(|| left().next())
}

/// A uniform index below `len` from the high half of 64 random bits.
fn index(dice: u64, len: usize) -> usize {
    let len = u64::try_from(len).unwrap_or(u64::MAX);
    usize::try_from(((dice >> 32) * len) >> 32).unwrap_or(0)
}

/// Whether one of two that starts slowly may be compared at all this time: `share` of the time, always from 1 on.
fn passes(dice: u64, share: f64) -> bool {
    // Other bits than those that chose the two.
    let bits = u32::try_from(dice.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40).unwrap_or(0);
    share >= 1.0 || f64::from(bits) < share * f64::from(1u32 << 24)
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
    use crate::upstream::Fault;
    use rand::{RngExt, SeedableRng, rngs::SmallRng};
    use std::ops::Deref;

    struct One {
        endpoint: Endpoint,
        active: u32,
    }

    impl Candidate for One {
        fn endpoint(&self) -> &Endpoint {
            &self.endpoint
        }

        fn active(&self) -> u32 {
            self.active
        }
    }

    impl Deref for One {
        type Target = Endpoint;

        fn deref(&self) -> &Endpoint {
            &self.endpoint
        }
    }

    fn endpoints(n: u16) -> Vec<One> {
        let one = |port| One {
            endpoint: Endpoint::new(format!("http://127.0.0.1:{port}").parse().unwrap()),
            active: 0,
        };
        (1..=n).map(one).collect()
    }

    #[test]
    fn the_less_busy_of_two_is_taken_and_a_busy_one_starves() {
        let mut set = endpoints(3);
        let busy = set[0].id;
        set[0].active = 9;
        let mut dice = SmallRng::seed_from_u64(1);
        for _ in 0..1000 {
            let picked = pick(&set, &[], Duration::ZERO, dice.random()).unwrap();
            assert_ne!(picked.id, busy);
        }
    }

    #[test]
    fn idle_endpoints_share_evenly() {
        let set = endpoints(7);
        let mut dice = SmallRng::seed_from_u64(2);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            let picked = pick(&set, &[], Duration::ZERO, dice.random()).unwrap().id;
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
        set[1].failed(Fault::Hard, Duration::ZERO);
        let mut dice = SmallRng::seed_from_u64(3);
        for _ in 0..500 {
            assert_ne!(
                pick(&set, &[], Duration::ZERO, dice.random()).unwrap().id,
                set[1].id
            );
        }
        let tried: Vec<u64> = [0, 2, 3].map(|i: usize| set[i].id).to_vec();
        assert_eq!(pick(&set, &tried, Duration::ZERO, 5).unwrap().id, set[1].id);
        let all: Vec<u64> = set.iter().map(|e| e.id).collect();
        assert!(pick(&set, &all, Duration::ZERO, 5).is_none());
        assert!(pick::<One>(&[], &[], Duration::ZERO, 5).is_none());
    }

    #[test]
    fn an_endpoint_that_starts_slowly_gets_its_part_and_never_nothing() {
        let set = endpoints(4);
        set[2].start_slowly(Some(Duration::ZERO), Duration::from_secs(30));
        let mut dice = SmallRng::seed_from_u64(4);
        for (second, expected) in [(0, 0.1), (15, 0.5), (30, 1.0)] {
            let now = Duration::from_secs(second);
            let mut got = 0.0;
            for _ in 0..40_000 {
                let picked = pick(&set, &[], now, dice.random()).unwrap();
                got += f64::from(u8::from(picked.id == set[2].id));
            }
            // Of two that are equally busy the first drawn is taken: a full share is a quarter.
            let share = got / 10_000.0;
            assert!(
                (share - expected).abs() < 0.04,
                "{share} instead of {expected} at {second} s"
            );
        }
    }

    /// Where `count` requests go in turn, by the endpoint's place in the set.
    fn in_turn(set: &[One], now: Duration, turn: &mut u64, count: usize) -> Vec<usize> {
        let mut dice = SmallRng::seed_from_u64(6);
        let next = |_| rotate(set, &[], now, dice.random(), turn).unwrap().id;
        let picked: Vec<u64> = (0..count).map(next).collect();
        let place = |id: &u64| set.iter().position(|e| e.id == *id).unwrap();
        picked.iter().map(place).collect()
    }

    #[test]
    fn in_turn_each_of_those_that_are_ready_gets_exactly_one_request_in_a_round() {
        let set = endpoints(4);
        let mut turn = 2;
        assert_eq!(in_turn(&set, Duration::ZERO, &mut turn, 6), [2, 3, 0, 1, 2, 3]);
        // One that just failed leaves its turns to all others alike, and has them back after a while.
        set[1].failed(Fault::Hard, Duration::ZERO);
        let mut turn = 0;
        assert_eq!(in_turn(&set, Duration::ZERO, &mut turn, 6), [0, 2, 3, 0, 2, 3]);
        assert_eq!(in_turn(&set, Duration::from_secs(9), &mut 0, 4), [0, 1, 2, 3]);
        // A retry goes to another; the failed one is taken when it alone is left.
        let ids: Vec<u64> = set.iter().map(|e| e.id).collect();
        let again = |tried: &[u64]| rotate(&set, tried, Duration::ZERO, 5, &mut 0).map(|e| e.id);
        assert_eq!(again(&ids[..1]), Some(ids[2]));
        assert_eq!(again(&[ids[0], ids[2], ids[3]]), Some(ids[1]));
        assert_eq!(again(&ids), None);
        assert!(rotate::<One>(&[], &[], Duration::ZERO, 5, &mut 0).is_none());
        // A count that has come to its end begins again.
        let mut last = u64::MAX;
        assert_eq!(in_turn(&set, Duration::from_secs(9), &mut last, 3), [3, 0, 1]);
    }

    #[test]
    fn in_turn_too_an_endpoint_that_starts_slowly_gets_its_part() {
        let set = endpoints(4);
        set[2].start_slowly(Some(Duration::ZERO), Duration::from_secs(30));
        for (second, least, most) in [(0, 0.06, 0.14), (15, 0.45, 0.55), (30, 1.0, 1.0)] {
            let picked = in_turn(&set, Duration::from_secs(second), &mut 0, 8_000);
            let got = picked.iter().filter(|place| **place == 2).count();
            // Against the one whose turn no other's passes to.
            let full = picked.iter().filter(|place| **place == 1).count();
            #[allow(clippy::cast_precision_loss, reason = "a few thousand")]
            let share = got as f64 / full as f64;
            assert!((least..=most).contains(&share), "{share} at {second} s");
        }
        for one in &set {
            one.start_slowly(Some(Duration::ZERO), Duration::from_secs(30));
        }
        assert_eq!(
            in_turn(&set, Duration::ZERO, &mut 0, 4),
            [0, 1, 2, 3],
            "all alike"
        );
    }

    #[test]
    fn endpoints_that_all_start_slowly_share_evenly() {
        let set = endpoints(2);
        for one in &set {
            one.start_slowly(Some(Duration::ZERO), Duration::from_secs(30));
        }
        let mut dice = SmallRng::seed_from_u64(5);
        let first = (0..10_000)
            .filter(|_| pick(&set, &[], Duration::ZERO, dice.random()).unwrap().id == set[0].id)
            .count();
        assert!((4_700..=5_300).contains(&first), "{first}");
    }
}
