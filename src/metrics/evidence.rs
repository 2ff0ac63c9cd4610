//! What one generation of the split has shown about one role: the only numbers an analysis is made of.
//!
//! Every generation has fresh cells, so a window never straddles a weight change: a request counts where and when it was
//! assigned. Forced requests do not come here.

use super::{Cell, Outcome};
use crossbeam_utils::CachePadded;
use std::time::Duration;

/// Buckets of the latency histogram; see [`Evidence::record`].
const LATENCY_BUCKETS: usize = 290;
const LOWEST: f64 = 1e-4;
const GROWTH_LN: f64 = 0.048_790_164_169_432_05; // ln 1.05

#[derive(Debug)]
struct EvidenceShard {
    outcomes: [Cell; 3],
    latency: Box<[Cell]>,
}

/// The evidence of one role in one generation.
#[derive(Debug)]
pub struct Evidence {
    shards: Box<[CachePadded<EvidenceShard>]>,
}

/// A merged reading; readings subtract to windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceCounts {
    /// Requests whose first attempt the version answered well.
    pub ok: u64,
    /// Requests whose first attempt failed by the version's fault.
    pub failed: u64,
    /// Requests whose client went away first; no evidence either way.
    pub canceled: u64,
    /// Answered or failed requests by duration: bucket i holds (1e-4·1.05^(i−1), 1e-4·1.05^i] seconds.
    pub latency: Vec<u64>,
}

impl Default for EvidenceCounts {
    fn default() -> Self {
        EvidenceCounts {
            ok: 0,
            failed: 0,
            canceled: 0,
            latency: vec![0; LATENCY_BUCKETS],
        }
    }
}

fn bucket(took: Duration) -> usize {
    let seconds = took.as_secs_f64();
    if seconds <= LOWEST {
        return 0;
    }
    let index = ((seconds / LOWEST).ln() / GROWTH_LN - 1e-9).ceil();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive and capped"
    )]
    let index = index.clamp(0.0, 289.0) as usize;
    index
}

impl Evidence {
    /// Zeroed cells for `workers` writers.
    pub fn new(workers: usize) -> Evidence {
        let shard = || {
            CachePadded::new(EvidenceShard {
                outcomes: Default::default(),
                latency: (0..LATENCY_BUCKETS).map(|_| Cell::default()).collect(),
            })
        };
        Evidence {
            shards: (0..workers.max(1)).map(|_| shard()).collect(),
        }
    }

    /// One request's verdict and how long it took: to the end of the response, or to its head for streams
    /// (`text/event-stream`, gRPC). Only worker `worker` calls this with its index.
    pub fn record(&self, worker: usize, outcome: Outcome, took: Duration) {
        let shard = &self.shards[worker % self.shards.len()];
        shard.outcomes[outcome as usize].inc();
        match outcome {
            Outcome::Ok | Outcome::Failed => shard.latency[bucket(took)].inc(),
            Outcome::Canceled => {}
        }
    }

    /// Merges all workers.
    pub fn counts(&self) -> EvidenceCounts {
        let mut counts = EvidenceCounts::default();
        for shard in &self.shards {
            counts.ok += shard.outcomes[Outcome::Ok as usize].get();
            counts.failed += shard.outcomes[Outcome::Failed as usize].get();
            counts.canceled += shard.outcomes[Outcome::Canceled as usize].get();
            for (sum, cell) in counts.latency.iter_mut().zip(&shard.latency) {
                *sum += cell.get();
            }
        }
        counts
    }
}

impl EvidenceCounts {
    /// Requests that say something about the version.
    pub fn decided(&self) -> u64 {
        self.ok + self.failed
    }

    /// What has come since an earlier reading of the same generation.
    #[must_use]
    pub fn since(&self, earlier: &EvidenceCounts) -> EvidenceCounts {
        EvidenceCounts {
            ok: self.ok.saturating_sub(earlier.ok),
            failed: self.failed.saturating_sub(earlier.failed),
            canceled: self.canceled.saturating_sub(earlier.canceled),
            latency: self
                .latency
                .iter()
                .zip(&earlier.latency)
                .map(|(now, then)| now.saturating_sub(*then))
                .collect(),
        }
    }

    /// Both readings together (for a window over several generations).
    #[must_use]
    pub fn plus(&self, other: &EvidenceCounts) -> EvidenceCounts {
        EvidenceCounts {
            ok: self.ok + other.ok,
            failed: self.failed + other.failed,
            canceled: self.canceled + other.canceled,
            latency: self
                .latency
                .iter()
                .zip(&other.latency)
                .map(|(a, b)| a + b)
                .collect(),
        }
    }

    /// The upper edge in seconds of the bucket that holds quantile `q` in (0, 1); none without data.
    pub fn latency_quantile(&self, q: f64) -> Option<f64> {
        let total: u64 = self.latency.iter().sum();
        if total == 0 {
            return None;
        }
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank"
        )]
        let rank = ((total as f64 * q).ceil() as u64).clamp(1, total);
        let mut below = 0;
        let index = self.latency.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        let index = i32::try_from(index).ok()?;
        Some(LOWEST * 1.05f64.powi(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_differences_and_canceled_requests_have_no_latency() {
        let evidence = Evidence::new(2);
        evidence.record(0, Outcome::Ok, Duration::from_millis(10));
        let before = evidence.counts();
        evidence.record(1, Outcome::Failed, Duration::from_millis(200));
        evidence.record(1, Outcome::Canceled, Duration::from_secs(9));
        let window = evidence.counts().since(&before);
        assert_eq!(
            (window.ok, window.failed, window.canceled, window.decided()),
            (0, 1, 1, 1)
        );
        assert_eq!(window.latency.iter().sum::<u64>(), 1);
        let p50 = window.latency_quantile(0.5).unwrap();
        assert!((0.19..=0.211).contains(&p50), "{p50}");
    }

    #[test]
    fn a_quantile_lies_within_five_percent() {
        let evidence = Evidence::new(1);
        for millis in 1..=1000 {
            evidence.record(0, Outcome::Ok, Duration::from_millis(millis));
        }
        for (q, want) in [(0.5, 0.5), (0.9, 0.9), (0.99, 0.99)] {
            let got = evidence.counts().latency_quantile(q).unwrap();
            assert!(got >= want * 0.999 && got <= want * 1.051, "{q}: {got}");
        }
    }
}
