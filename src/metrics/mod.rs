//! What is counted: every family, per-version recording, snapshots, exposition.
//!
//! Recording is per worker: each worker owns a shard of plain cells it alone writes, so a request pays an addition and no
//! more. Readers (a scrape, an analysis) merge the shards. Which of the three does a thing belong to? `names` says what
//! exists, `version` and `evidence` are what requests write, `registry` is what scrapes read.

mod cell;
mod control;
mod evidence;
mod flight;
mod histogram;
mod keys;
mod lines;
mod listener;
pub mod names;
mod registry;
mod rollouts;
mod text;
mod version;
mod versions;

pub use cell::{Cell, part_of};
pub use control::ControlMetrics;
pub use evidence::{Evidence, EvidenceCounts, Ticket, Trial, Unit};
pub use histogram::{BUCKETS, HistogramCells, HistogramSnapshot};
pub use keys::{KeySet, Keys, KnownKeys};
pub use lines::{Lines, Source};
pub use listener::{ListenerMetrics, Rejection};
pub use registry::Registry;
pub use rollouts::{RolloutMetrics, RolloutView};
pub use version::{
    AssignReason, Attempt, Outcome, Retry, Shard, VersionKey, VersionMetrics, VersionSnapshot,
};
