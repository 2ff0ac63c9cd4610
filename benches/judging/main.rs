//! The judge by simulation, as Markdown: `benches/judge [--quick] [--seed N] [TABLE…]`.
//!
//! The tables are those of the judge's design: what rolls a healthy release back (T0, T1, T7), how many requests it takes
//! to find a bad one (T2, T4), how long a good one takes (T5, T6). Each shows the design's own figure beside the measured.

use serin::{analysis, model, split, stats};
use std::io::{self, Write};

mod gates;
mod runs;
#[path = "../../src/analysis/simulation.rs"]
mod simulation;
mod tables;

/// How much is run, and from which seed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    quick: bool,
    seed: u64,
}

impl Size {
    /// So many runs, or so many when it has to be quick.
    pub(crate) fn runs(self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

fn main() -> io::Result<()> {
    let mut size = Size {
        quick: false,
        seed: 1,
    };
    let mut wanted = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // What `cargo bench` itself adds.
            "--bench" => {}
            "--quick" => size.quick = true,
            "--seed" => {
                let number = arguments.next().and_then(|number| number.parse().ok());
                size.seed = number.ok_or_else(|| io::Error::other("--seed needs a number"))?;
            }
            table if tables::ALL.iter().any(|(name, _)| *name == table) => wanted.push(argument),
            other => {
                let names: Vec<&str> = tables::ALL.iter().map(|(name, _)| *name).collect();
                let known = names.join(" ");
                return Err(io::Error::other(format!(
                    "`{other}`: write --quick, --seed N or tables ({known})"
                )));
            }
        }
    }
    let out = &mut io::stdout().lock();
    writeln!(
        out,
        "`benches/judge{}`, seeds from {}: each run is repeated exactly by its seed.",
        if size.quick { " --quick" } else { "" },
        size.seed
    )?;
    for (name, table) in tables::ALL {
        if wanted.is_empty() || wanted.iter().any(|one| one == name) {
            writeln!(out)?;
            table(size, out)?;
        }
    }
    Ok(())
}
