//! Numbers about numbers: histograms, proportions. Pure.

mod latency;
mod proportion;

pub use latency::{BUCKETS, bucket, edge, quantile, quantile_bucket};
pub use proportion::{Interval, binomial_tail, false_alarm, wilson};
