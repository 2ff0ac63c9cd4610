//! Is this ticket the canary's? The exact split, by dependent rounding.
//!
//! The state before ticket N is N itself and one bit B; the canary count after N tickets is floor(N·w) + B. Two
//! properties hold for **every** N and are what the judge's proof rests on: |canary − N·w| < 1, and ticket N goes to the
//! canary with probability exactly w whatever is known about the future. A round robin has the first and not the
//! second; a coin has the second and not the first.

use crate::model::{Role, Weight};

/// The state of the split: how many tickets were drawn, and whether the canary is one ahead of floor(N·w).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ticket {
    /// Tickets drawn so far; below 2^63.
    pub number: u64,
    /// The bit B.
    pub ahead: bool,
}

impl Ticket {
    /// Both fields in one word, so that one compare-and-swap advances them together.
    pub const fn pack(self) -> u64 {
        self.number << 1 | self.ahead as u64
    }

    /// The reverse of [`Ticket::pack`].
    pub const fn unpack(word: u64) -> Ticket {
        Ticket {
            number: word >> 1,
            ahead: word & 1 == 1,
        }
    }

    /// How many of the tickets so far went to the canary: floor(N·w) + B.
    pub fn canary_count(self, weight: Weight) -> u64 {
        let floor = u128::from(self.number) * u128::from(weight.p()) / u128::from(weight.q());
        u64::try_from(floor)
            .unwrap_or(u64::MAX)
            .saturating_add(u64::from(self.ahead))
    }

    /// canary count − N·w: always inside (−1, 1).
    pub fn error(self, weight: Weight) -> f64 {
        f64::from(u8::from(self.ahead)) - f64::from(remainder(self.number, weight)) / f64::from(weight.q())
    }
}

/// N·p mod q: the numerator of frac(N·w). Both factors are below 2^32, so the product fits.
fn remainder(number: u64, weight: Weight) -> u32 {
    let q = u64::from(weight.q());
    // Below q, which is a u32.
    u32::try_from(number % q * u64::from(weight.p()) % q).unwrap_or(0)
}

/// True with probability `numerator / denominator`, decided by 64 uniform bits.
///
/// Widening multiply, not `%`: the bias is below denominator · 2^-64.
fn chance(draw: u64, numerator: u32, denominator: u32) -> bool {
    (u128::from(draw) * u128::from(denominator)) >> 64 < u128::from(numerator)
}

/// Decides ticket `state.number` with 64 uniform bits that depend on nothing but that number and a secret.
///
/// With f = frac(N·w): if f + w < 1 the ticket is the canary's with probability w/(1−f) when B = 0, never when B = 1;
/// otherwise always when B = 0, and with probability (f+w−1)/f when B = 1.
pub fn pick(state: Ticket, weight: Weight, draw: u64) -> (Role, Ticket) {
    let (p, q) = (weight.p(), weight.q());
    let r = remainder(state.number, weight);
    // q <= 10^9, so r + p < 2^31 and nothing here overflows.
    let (canary, ahead) = match (r + p < q, state.ahead) {
        (true, true) => (false, true),
        (true, false) => {
            let canary = chance(draw, p, q - r);
            (canary, canary)
        }
        (false, false) => (true, false),
        (false, true) => {
            let canary = chance(draw, r + p - q, r.max(1));
            (canary, canary)
        }
    };
    let role = if canary { Role::Canary } else { Role::Stable };
    (
        role,
        Ticket {
            number: state.number + 1,
            ahead,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;
    use std::hash::Hasher;

    fn draw(key: u64, number: u64) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(key, !key);
        hasher.write_u64(number);
        hasher.finish()
    }

    fn weight(text: &str) -> Weight {
        text.parse().unwrap()
    }

    #[test]
    fn every_prefix_is_within_one_of_the_weight() {
        for text in [
            "0.01", "1", "5", "15", "33.33", "40", "99.9", "1/3", "66.67", "0", "100",
        ] {
            let w = weight(text);
            let (mut state, mut canary) = (Ticket::default(), 0u64);
            for n in 1..=200_000u64 {
                let (role, next) = pick(state, w, draw(7, state.number));
                canary += u64::from(role == Role::Canary);
                state = next;
                let bound =
                    (i128::from(canary) * i128::from(w.q()) - i128::from(n) * i128::from(w.p())).abs();
                assert!(bound < i128::from(w.q()), "{text} after {n}: {canary}");
                assert_eq!(state.canary_count(w), canary);
            }
        }
    }

    #[test]
    fn weight_zero_and_full_never_waver() {
        for number in 0..10_000 {
            let state = Ticket { number, ahead: false };
            assert_eq!(pick(state, Weight::ZERO, draw(1, number)).0, Role::Stable);
            assert_eq!(pick(state, Weight::FULL, draw(1, number)).0, Role::Canary);
        }
    }

    /// The share of canary tickets among those with number ≡ phase (mod period), over many keys.
    fn share(w: Weight, period: u64, phase: u64, keys: u64, tickets: u64) -> (u64, u64) {
        let (mut canary, mut all) = (0, 0);
        for key in 0..keys {
            let mut state = Ticket::default();
            for n in 0..tickets {
                let (role, next) = pick(state, w, draw(key, n));
                if n % period == phase {
                    all += 1;
                    canary += u64::from(role == Role::Canary);
                }
                state = next;
            }
        }
        (canary, all)
    }

    #[test]
    fn no_periodic_client_lines_up_with_the_split() {
        for text in ["15", "30", "40", "45", "60", "66.67"] {
            let w = weight(text);
            for period in [2, 3, 5, 10, 20] {
                for phase in 0..period {
                    let (canary, all) = share(w, period, phase, 400, 120);
                    // Tickets of one key are negatively dependent, so the binomial deviation is an upper bound; 5 sigma
                    // over 240 comparisons.
                    #[allow(clippy::cast_precision_loss, reason = "small counts")]
                    let (got, n) = (canary as f64 / all as f64, all as f64);
                    let sigma = (w.as_ratio() * (1.0 - w.as_ratio()) / n).sqrt();
                    assert!(
                        (got - w.as_ratio()).abs() < 5.0 * sigma,
                        "{text} period {period} phase {phase}: {got}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_single_ticket_has_probability_w() {
        for text in ["15", "30", "40", "45", "60", "66.67", "5"] {
            let w = weight(text);
            for ticket in [0, 1, 2, 5, 6, 19, 20, 21] {
                let (canary, all) = share(w, u64::MAX, ticket, 40_000, ticket + 1);
                #[allow(clippy::cast_precision_loss, reason = "small counts")]
                let (got, n) = (canary as f64 / all as f64, all as f64);
                let sigma = (w.as_ratio() * (1.0 - w.as_ratio()) / n).sqrt();
                assert!(
                    (got - w.as_ratio()).abs() < 5.0 * sigma,
                    "{text} ticket {ticket}: {got}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn any_weight_keeps_the_bound(p in 0u64..=1_000_000, extra in 0u64..1_000_000, key: u64, start in 0u64..1 << 40) {
            let q = (p + extra).max(1);
            let w = Weight::fraction(p.min(q), q).unwrap();
            let mut state = Ticket { number: start, ahead: false };
            for _ in 0..500 {
                let before = state.canary_count(w);
                let (role, next) = pick(state, w, draw(key, state.number));
                prop_assert_eq!(next.canary_count(w), before + u64::from(role == Role::Canary));
                prop_assert!(next.error(w).abs() < 1.0);
                state = next;
            }
        }

        #[test]
        fn packing_loses_nothing(number in 0u64..1 << 63, ahead: bool) {
            let ticket = Ticket { number, ahead };
            prop_assert_eq!(Ticket::unpack(ticket.pack()), ticket);
        }
    }
}
