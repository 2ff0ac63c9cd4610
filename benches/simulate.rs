//! The rollout machine's simulation by the ten thousand: `cargo bench --bench simulate -- [SEEDS] [EVENTS] [FIRST]`.
//!
//! The unit tests run the same code for a few thousand seeds. A failure prints its seed; `-- 1 EVENTS SEED` repeats it.

use serin::{analysis, model, rollout};
use std::io::Write;

#[path = "../src/rollout/simulation.rs"]
mod simulation;

fn main() -> std::io::Result<()> {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse::<u64>().ok());
    let seeds = numbers.next().unwrap_or(50_000);
    let events = usize::try_from(numbers.next().unwrap_or(200)).unwrap_or(200);
    let first = numbers.next().unwrap_or(0);
    let mut out = std::io::stdout().lock();
    let mut all = simulation::Coverage::default();
    for seed in first..first.saturating_add(seeds) {
        match simulation::simulate(seed, events) {
            Ok(one) => {
                all.applied += one.applied;
                all.refused += one.refused;
                all.promoted += one.promoted;
                all.aborted += one.aborted;
                all.torn += one.torn;
            }
            Err(broken) => {
                writeln!(out, "BROKEN {broken}")?;
                return Err(std::io::Error::other("an invariant does not hold"));
            }
        }
    }
    writeln!(
        out,
        "{seeds} seeds from {first}, {events} events each: every invariant held\n{all:?}"
    )
}
