//! Numbers about numbers: histograms, proportions, sequential tests. Pure.

mod baseline;
mod draw;
mod eprocess;
mod latency;
mod mann_whitney;
mod proportion;
mod units;

pub use baseline::{Baseline, shift_for};
pub use draw::{below, drawn};
pub use eprocess::{Counts, EProcess, Side, log_sum_exp};
pub use latency::{BUCKETS, bucket, bucket_of, edge, quantile, quantile_bucket};
pub use mann_whitney::{Ranked, Shift, mann_whitney, normal_below, normal_quantile, shift};
pub use proportion::{Interval, binomial_tail, false_alarm, wilson};
pub use units::{MOST_CUTS, UnitCounts};
