//! A test that may be looked at after every request: evidence that multiplies like a bettor's capital.
//!
//! Against "the canary is not worse than tolerated" every bet loses on average, so the capital passes 1/a with a
//! probability of at most a, however often one looks and whenever one stops. It needs one thing only, which the proxy owns:
//! each request went to the canary with probability `w`, fixed before it arrived.

use serde::{Deserialize, Serialize};

/// Bettor `j` always stakes this fraction of the largest stake that cannot ruin it.
const STAKES: [f64; 9] = [0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95];
/// Capital staked from the first request; the rest is held back for restarts.
const START: f64 = 0.5;
/// After so many canary requests the reserve starts to be released.
const RELEASE: f64 = 100.0;

/// What the evidence is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// Against `p_canary <= rho·p_stable + delta`: evidence of harm.
    Rollback,
    /// Against `p_canary >= rho·p_stable + delta`: evidence that there is none.
    Proceed,
}

/// Counts of requests that were assigned at weight `w` and got their verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// The canary's share when they were assigned.
    pub w: f64,
    /// The canary's requests.
    pub canary: u64,
    /// Bad ones. One more than there are requests takes back a good one that was counted before: it has failed after all.
    pub canary_bad: u64,
    /// Stable's requests.
    pub stable: u64,
    /// Bad ones, likewise.
    pub stable_bad: u64,
}

/// A mixture of nine bets with a reserve for restarts. Starts at one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EProcess {
    side: Side,
    rho: f64,
    delta: f64,
    /// Logarithm of each bettor's capital; absent is nothing yet.
    capital: [Option<f64>; 9],
    /// Handed to the bettors before the next tick.
    pending: f64,
    /// Held back for restarts.
    reserve: f64,
    /// Canary requests seen.
    clock: f64,
    #[serde(skip)]
    factors: Memo,
}

/// What one request of each kind multiplies each bettor's capital by (logarithm), at the weight that was bet at last. It follows
/// from the rest and takes logarithms by the dozen, so it is kept, and is no part of what is known.
#[derive(Debug, Clone, Default)]
struct Memo(Option<(f64, [[f64; 4]; 9])>);

impl PartialEq for Memo {
    fn eq(&self, _: &Memo) -> bool {
        true
    }
}

/// The logarithm of a sum of exponentials, without leaving the range of numbers.
pub fn log_sum_exp(logs: impl IntoIterator<Item = f64> + Clone) -> f64 {
    let most = logs.clone().into_iter().fold(f64::NEG_INFINITY, f64::max);
    if most == f64::NEG_INFINITY {
        return most;
    }
    most + logs.into_iter().map(|log| (log - most).exp()).sum::<f64>().ln()
}

/// By how much each bettor's capital grows (logarithm) on so many of each kind: canary bad, canary good, stable bad, stable good.
fn growths(factors: &[[f64; 4]; 9], seen: [f64; 4]) -> [f64; 9] {
    factors.map(|of_one| of_one.iter().zip(seen).map(|(factor, n)| n * factor).sum())
}

impl EProcess {
    /// A test of the given hypothesis, before the first request.
    pub fn new(side: Side, rho: f64, delta: f64) -> EProcess {
        EProcess {
            side,
            rho,
            delta,
            capital: [None; 9],
            pending: START,
            reserve: 1.0 - START,
            clock: 0.0,
            factors: Memo::default(),
        }
    }

    /// The weight has changed: half of the reserve backs a fresh start.
    pub fn new_step(&mut self) {
        let half = 0.5 * self.reserve;
        self.reserve -= half;
        self.pending += half;
    }

    /// Bets on the requests of one tick; the logarithm of the evidence afterwards.
    #[expect(clippy::cast_precision_loss, reason = "counts of one tick are far below 2^53")]
    pub fn tick(&mut self, counts: &Counts) -> f64 {
        let Counts {
            w,
            canary,
            canary_bad,
            stable,
            stable_bad,
        } = *counts;
        if !(w > 0.0 && w < 1.0) || canary + stable + canary_bad + stable_bad == 0 {
            return self.log_e();
        }
        let seen = [
            canary_bad as f64,
            canary as f64 - canary_bad as f64,
            stable_bad as f64,
            stable as f64 - stable_bad as f64,
        ];
        let handed = if self.pending > 0.0 {
            (self.pending / 9.0).ln()
        } else {
            f64::NEG_INFINITY
        };
        let factors = match self.factors.0 {
            Some((at, factors)) if at.to_bits() == w.to_bits() => factors,
            Some(_) | None => self.factors(w),
        };
        self.factors = Memo(Some((w, factors)));
        let growths = growths(&factors, seen);
        for (capital, growth) in self.capital.iter_mut().zip(growths) {
            let before = log_sum_exp([capital.unwrap_or(f64::NEG_INFINITY), handed]);
            *capital = Some(before + growth).filter(|log| *log > f64::NEG_INFINITY);
        }
        // The reserve falls like (1 + clock/RELEASE)^(-1/2), and what is released bets from the next tick on.
        let clock = self.clock + canary as f64;
        let left = self.reserve * ((1.0 + self.clock / RELEASE) / (1.0 + clock / RELEASE)).sqrt();
        (self.pending, self.reserve, self.clock) = (self.reserve - left, left, clock);
        self.log_e()
    }

    fn factors(&self, w: f64) -> [[f64; 4]; 9] {
        let gains = self.gains(w);
        // The stake at which the worst outcome ruins the bettor.
        let most = 1.0 / gains.iter().fold(f64::NEG_INFINITY, |most, gain| most.max(-gain));
        STAKES.map(|stake| gains.map(|gain| (stake * most * gain).ln_1p()))
    }

    /// How many more requests until the evidence reaches `log`, when they divide into these shares: canary bad, canary good,
    /// stable bad, stable good. `None` when it never will.
    pub fn needs(&self, log: f64, w: f64, shares: [f64; 4]) -> Option<f64> {
        if self.log_e() >= log {
            return Some(0.0);
        }
        if !(w > 0.0 && w < 1.0) {
            return None;
        }
        let growths = growths(&self.factors(w), shares);
        let handed = (self.pending / 9.0).ln();
        let reached = |requests: f64| {
            let bettors = self.capital.iter().zip(growths).map(|(capital, growth)| {
                log_sum_exp([capital.unwrap_or(f64::NEG_INFINITY), handed]) + requests * growth
            });
            log_sum_exp(std::iter::once(self.reserve.ln()).chain(bettors)) >= log
        };
        let (mut few, mut enough) = (0.0, 1.0);
        while !reached(enough) {
            if enough > 1e12 {
                return None;
            }
            (few, enough) = (enough, enough * 2.0);
        }
        while enough - few > 1.0 {
            let middle = f64::midpoint(few, enough);
            if reached(middle) {
                enough = middle;
            } else {
                few = middle;
            }
        }
        Some(enough)
    }

    /// What a bet of one wins or loses on: canary bad, canary good, stable bad, stable good.
    fn gains(&self, w: f64) -> [f64; 4] {
        let gains = [
            (1.0 - self.delta) / w,
            -self.delta / w,
            -self.rho / (1.0 - w),
            0.0,
        ];
        match self.side {
            Side::Rollback => gains,
            Side::Proceed => gains.map(|gain| -gain),
        }
    }

    /// The logarithm of the evidence: zero is none, `-ln(a)` refutes the hypothesis at level `a`.
    pub fn log_e(&self) -> f64 {
        let cash = (self.reserve + self.pending).ln();
        let bettors = self
            .capital
            .iter()
            .map(|capital| capital.unwrap_or(f64::NEG_INFINITY));
        log_sum_exp(std::iter::once(cash).chain(bettors))
    }

    /// Each bettor's capital (logarithm), the reserve, and what is pending: for comparing with the reference.
    pub fn parts(&self) -> ([Option<f64>; 9], f64, f64) {
        (self.capital, self.reserve, self.pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(w: f64, canary: u64, canary_bad: u64, stable: u64, stable_bad: u64) -> Counts {
        Counts {
            w,
            canary,
            canary_bad,
            stable,
            stable_bad,
        }
    }

    #[test]
    fn errors_of_the_canary_alone_are_evidence() {
        let mut test = EProcess::new(Side::Rollback, 1.0, 0.0005);
        let logs: Vec<f64> = (0..4).map(|_| test.tick(&counts(0.05, 1, 1, 19, 0))).collect();
        for (found, expected) in logs
            .iter()
            .zip([1.450_020_267, 3.909_776_818, 6.645_195_001, 9.455_226_637])
        {
            assert!((found - expected).abs() < 1e-8, "{logs:?}");
        }
    }

    #[test]
    fn without_traffic_or_choice_nothing_is_learned() {
        let mut test = EProcess::new(Side::Rollback, 1.0, 0.0005);
        for nothing in [
            counts(0.05, 0, 0, 0, 0),
            counts(0.0, 0, 0, 9, 9),
            counts(1.0, 9, 9, 0, 0),
        ] {
            assert!(test.tick(&nothing).abs() < 1e-12);
        }
    }

    #[test]
    fn what_fails_after_all_counts_as_if_it_had_failed_at_once() {
        let mut at_once = EProcess::new(Side::Rollback, 1.0, 0.0005);
        let mut later = at_once.clone();
        at_once.tick(&counts(0.05, 10, 2, 190, 1));
        later.tick(&counts(0.05, 10, 1, 190, 0));
        later.tick(&counts(0.05, 0, 1, 0, 1));
        // But for what the reserve has handed out in between.
        let difference = at_once.log_e() - later.log_e();
        assert!(difference.abs() < 0.1, "{difference}");
    }

    #[test]
    fn a_stored_test_goes_on_where_it_was() {
        let mut test = EProcess::new(Side::Proceed, 1.25, 0.02);
        test.tick(&counts(0.05, 40, 0, 760, 1));
        let stored = serde_json::to_string(&test).unwrap();
        let mut read: EProcess = serde_json::from_str(&stored).unwrap();
        assert_eq!(read, test, "to the last bit");
        let next = counts(0.05, 41, 1, 759, 0);
        read.tick(&next);
        test.tick(&next);
        assert_eq!(read, test);
        let fresh = EProcess::new(Side::Rollback, 1.0, 0.0);
        let stored = serde_json::to_string(&fresh).unwrap();
        assert_eq!(serde_json::from_str::<EProcess>(&stored).unwrap(), fresh);
    }
}
