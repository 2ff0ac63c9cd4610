//! Readings of a service's evidence over the last minutes: for windows that reach further back than one measurement.
//!
//! The cells count up within one generation of the split; a window over several generations is the sum of the pieces, and
//! a piece never reaches across a weight change.

use super::{EvidenceStatus, MetricsWindow, VersionWindow, providers::serin::Reading};
use crate::{
    metrics::EvidenceCounts,
    model::{Role, ServiceName, Span, Timestamp, VersionName},
    split::Split,
    upstream::Target,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

/// How far apart readings are.
const EVERY: Duration = Duration::from_secs(10);
/// How far back they reach.
const KEEP: Duration = Duration::from_secs(15 * 60);

/// One reading and whose it was.
#[derive(Debug, Clone)]
struct Sample {
    reading: Reading,
    stable: VersionName,
    canary: Option<VersionName>,
}

/// The readings of one service, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    ring: VecDeque<Sample>,
}

/// What the split in force shows at this moment.
pub(crate) fn read(split: &Split<Arc<Target>>, at: Timestamp) -> Reading {
    Reading {
        generation: split.generation,
        at,
        stable: split.stable.evidence.counts(),
        canary: split
            .canary
            .as_ref()
            .map(|canary| canary.evidence.counts())
            .unwrap_or_default(),
    }
}

/// Requests, errors and duration of some counts.
pub(crate) fn summary(counts: &EvidenceCounts) -> EvidenceStatus {
    let (requests, errors) = (counts.decided(), counts.failed);
    #[allow(clippy::cast_precision_loss, reason = "counts below 2^53")]
    let rate = (requests > 0).then(|| errors as f64 / requests as f64);
    EvidenceStatus {
        requests,
        errors,
        error_rate: rate,
        p50: counts.latency_quantile(0.5),
        p99: counts.latency_quantile(0.99),
    }
}

impl Samples {
    /// Takes a reading, unless the last one of this generation is too recent.
    pub(crate) fn take(&mut self, split: &Split<Arc<Target>>, at: Timestamp) {
        let recent = self.ring.back().is_some_and(|last| {
            last.reading.generation == split.generation && at.since(last.reading.at) < EVERY
        });
        if !recent {
            self.push(split, at);
        }
    }

    /// Takes a reading whatever the time: a generation ends or begins.
    pub(crate) fn push(&mut self, split: &Split<Arc<Target>>, at: Timestamp) {
        self.ring.push_back(Sample {
            reading: read(split, at),
            stable: split.stable.version.name.clone(),
            canary: split.canary.as_ref().map(|canary| canary.version.name.clone()),
        });
        while self
            .ring
            .front()
            .is_some_and(|first| at.since(first.reading.at) > KEEP)
        {
            self.ring.pop_front();
        }
    }

    /// Where a window that begins at `since` starts within a generation: the last reading before it, if there is one.
    pub(crate) fn start_of(&self, generation: u64, since: Timestamp) -> Option<&Reading> {
        let of = |sample: &&Sample| sample.reading.generation == generation && sample.reading.at <= since;
        self.ring.iter().rev().find(of).map(|sample| &sample.reading)
    }

    /// What came in over the last `window`, per version and role, up to what `split` shows now.
    pub(crate) fn window(
        &self,
        service: &ServiceName,
        split: &Split<Arc<Target>>,
        now: Timestamp,
        window: Span,
    ) -> MetricsWindow {
        let since = now.minus(window.as_duration());
        let last = Sample {
            reading: read(split, now),
            stable: split.stable.version.name.clone(),
            canary: split.canary.as_ref().map(|canary| canary.version.name.clone()),
        };
        let first = self
            .ring
            .iter()
            .rposition(|sample| sample.reading.at <= since)
            .unwrap_or(0);
        let chain: Vec<&Sample> = self.ring.iter().skip(first).chain([&last]).collect();
        let mut sums: BTreeMap<(Role, VersionName), EvidenceCounts> = BTreeMap::new();
        for pair in chain.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            // A generation that began in between has a reading of its own at zero.
            if from.reading.generation != to.reading.generation {
                continue;
            }
            let mut add = |role: Role, version: &VersionName, counts: EvidenceCounts| {
                let sum = sums.entry((role, version.clone())).or_default();
                *sum = sum.plus(&counts);
            };
            add(
                Role::Stable,
                &to.stable,
                to.reading.stable.since(&from.reading.stable),
            );
            if let Some(canary) = &to.canary {
                add(
                    Role::Canary,
                    canary,
                    to.reading.canary.since(&from.reading.canary),
                );
            }
        }
        let covered = chain
            .first()
            .map_or(Duration::ZERO, |first| now.since(first.reading.at));
        let seconds = covered.as_secs_f64().max(0.001);
        #[allow(clippy::cast_precision_loss, reason = "counts below 2^53")]
        let versions = sums.into_iter().map(|((role, version), counts)| VersionWindow {
            version,
            role,
            rate: (counts.decided() + counts.canceled) as f64 / seconds,
            evidence: summary(&counts),
        });
        MetricsWindow {
            service: service.clone(),
            window,
            covered: Span::from(covered),
            versions: versions.collect(),
        }
    }
}
