//! What a fault costs those who have nothing to do with it: windows with and without it, taken in turns.
//!
//! Clients, versions and Serin share one small machine, so a fault's own work takes processor time from everybody, whoever
//! does it. What is promised is that *Serin* lets nobody wait for it. Hence three kinds of windows: nothing happens; the
//! same fault happens to another Serin beside the one that is measured, which loads the machine alike; it happens to the
//! one that is measured. The bound is on the last against the second; or against the first, for a fault whose own work is
//! done on a core where nobody is measured.
//!
//! A p99 of one window is mostly noise, and no bound of a few percent can be read off a few of them. Each round therefore
//! gives one ratio, and their median is what is compared. How far such a median goes astray by itself is measured in the
//! same rounds: each has two windows of what it is compared with, one before and one after, whose true ratio is 1. The end of the
//! 99 % interval of *that* median is the noise floor, and it widens the bound: what passes has kept the promise as far as
//! this machine can tell, and how far that is stands in the figure.

use super::say;
use std::time::Duration;

/// Where the fault happens during a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Nowhere,
    Elsewhere,
    Here,
}

/// Takes `rounds` rounds of windows; fails when the p99 with the fault is more than `promised` times what it is while the
/// fault is where `against` says. `begin` lets the fault happen until what it gives is dropped; `window` gives latencies,
/// sorted.
pub fn assert_p99<F>(
    what: &str,
    rounds: u64,
    promised: f64,
    against: Fault,
    begin: impl Fn(Fault) -> F,
    window: impl Fn() -> Vec<Duration>,
) {
    let called = match against {
        Fault::Nowhere => "what it is without",
        Fault::Elsewhere => "the same fault beside it",
        Fault::Here => panic!("a fault is not compared with itself"),
    };
    let p99 = |fault| {
        let _happens = begin(fault);
        let sorted = window();
        sorted[sorted.len() * 99 / 100].as_secs_f64()
    };
    let (mut ratios, mut same, mut quiet, mut plain) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let nothing = p99(Fault::Nowhere);
        // What drifts over a round cancels out: the one that counts is in the middle.
        let (before, here, after) = (p99(against), p99(Fault::Here), p99(against));
        ratios.push(here / (before * after).sqrt());
        same.push(after / before);
        quiet.push(here / nothing);
        plain.push(here);
    }
    let (_, ratio, high) = median(&mut ratios);
    let (_, own, floor) = median(&mut same);
    let floor = floor.max(1.0);
    let bound = promised * floor;
    let decided = if floor > promised {
        "; this machine is too busy to tell as little as that: repeat it on a quiet one"
    } else {
        ""
    };
    say(&format!(
        "{what}: p99 {:?}; {ratio:.3} (up to {high:.3} with 99 % confidence) of {called}, promised \
         {promised}, bound {bound:.3} (same against same: {own:.3}, up to {floor:.3}); {:.3} of a quiet machine; {rounds} \
         rounds{decided}",
        Duration::from_secs_f64(median(&mut plain).1),
        median(&mut quiet).1,
    ));
    assert!(
        ratio <= bound,
        "{what}: the p99 is {ratio:.3} of {called}, and {bound:.3} is the bound"
    );
}

/// The median and the ends of its 99 % interval, by ranks: whatever the values' distribution is.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a few hundred values"
)]
fn median(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let (count, last) = (values.len(), values.len() - 1);
    // Half the values lie below the median, give or take 2.576 standard deviations of a fair coin's heads.
    let away = (2.576 * (count as f64).sqrt() / 2.0).ceil() as usize;
    let half = count / 2;
    (
        values[half.saturating_sub(away)],
        values[half],
        values[(half + away).min(last)],
    )
}
