//! Keeps what each judge is fed, so that its decisions can be made again from the store.
//!
//! A recording is written by the tick into memory and leaves it in parts, each in the same transaction as the judge's own row:
//! whatever a crash leaves, the two belong together. Parts gather in stretches; when one is full the next begins with the judge
//! as it is, and the store lets go of the one before the last. So a judge that sits for days costs no more than two stretches,
//! and its last decisions can be replayed all the same.

use super::{managed::TrialId, store::RecordPart};
use crate::{
    analysis::{
        Batch, Judge,
        record::{self, Decided},
    },
    model::{ServiceName, Timestamp},
};
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// How many bytes a stretch holds before the next one begins: about an hour of a thousand requests a second.
const STRETCH: u64 = 2 * 1024 * 1024;

/// Where a recording goes on; kept with the judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// When the judge began to sit: tells its recordings from others of the rollout.
    began: Timestamp,
    stretch: u64,
    /// The number of the next part.
    part: u64,
    /// So many bytes are in the stretch.
    bytes: u64,
}

/// Whose recording it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whose<'a> {
    pub(super) service: &'a ServiceName,
    pub(super) trial: &'a TrialId,
    pub(super) metric: &'a str,
}

/// The recording of one judge.
#[derive(Debug)]
pub(super) struct Recorder {
    place: Place,
    open: Vec<u8>,
    /// Nothing has come since the last decision: another one is the same.
    decided: bool,
    /// A decision is among what has not been taken yet.
    has_decided: bool,
}

impl Recorder {
    /// From here on.
    pub(super) fn begin(judge: &Judge, now: Timestamp) -> Recorder {
        let mut recorder = Recorder {
            place: Place {
                began: now,
                stretch: 0,
                part: 0,
                bytes: 0,
            },
            open: Vec::new(),
            decided: false,
            has_decided: false,
        };
        recorder.begin_stretch(judge);
        recorder
    }

    /// Where it was stored last.
    pub(super) fn resume(place: Place) -> Recorder {
        Recorder {
            place,
            open: Vec::new(),
            decided: false,
            has_decided: false,
        }
    }

    /// Where it goes on once all parts are stored.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    fn begin_stretch(&mut self, judge: &Judge) {
        record::write::begin(&mut self.open, judge, env!("CARGO_PKG_VERSION"));
    }

    /// The judge is about to be fed with this.
    pub(super) fn tick(&mut self, judge: &Judge, dt: Duration, batches: &[Batch]) {
        self.decided = false;
        record::write::tick(&mut self.open, dt, batches, judge.step().0);
    }

    /// The judge is at another weight now.
    pub(super) fn entered(&mut self, judge: &Judge) {
        self.decided = false;
        let (weight, next) = judge.step();
        record::write::enter(&mut self.open, weight, next);
    }

    /// Something is decided by what the judge knows now.
    pub(super) fn decided(&mut self, judge: &Judge, now: Timestamp) {
        if !self.decided {
            record::write::decided(&mut self.open, &Decided::of(judge, now));
            (self.decided, self.has_decided) = (true, true);
        }
    }

    /// A person is called for what the judge knows now of 4xx answers.
    pub(super) fn paused(&mut self, judge: &Judge, now: Timestamp) {
        record::write::decided(&mut self.open, &Decided::of_pause(judge, now));
        self.has_decided = true;
    }

    /// Whether a decision has been recorded since the last time that parts were taken.
    pub(super) fn has_decided(&self) -> bool {
        self.has_decided
    }

    /// Takes what has come since the last time into `parts`.
    pub(super) fn cut(&mut self, whose: Whose<'_>, judge: &Judge, parts: &mut Vec<Arc<RecordPart>>) {
        if self.open.is_empty() {
            return;
        }
        record::write::check(&mut self.open, 0, judge);
        self.take(whose, parts);
        if self.place.bytes >= STRETCH {
            (self.place.stretch, self.place.part, self.place.bytes) = (self.place.stretch + 1, 0, 0);
            let (began, stretch) = (self.place.began, self.place.stretch);
            // What the store would let go of at once, when it could not be written for long.
            parts.retain(|part| {
                part.metric != whose.metric || part.began != began || part.stretch + 1 >= stretch
            });
            self.begin_stretch(judge);
            record::write::check(&mut self.open, 0, judge);
            self.take(whose, parts);
        }
    }

    fn take(&mut self, whose: Whose<'_>, parts: &mut Vec<Arc<RecordPart>>) {
        let bytes = std::mem::take(&mut self.open);
        self.has_decided = false;
        let long = bytes.len() as u64;
        parts.push(Arc::new(RecordPart {
            service: whose.service.to_string(),
            rollout: whose.trial.rollout().to_owned(),
            metric: whose.metric.to_owned(),
            began: self.place.began,
            stretch: self.place.stretch,
            part: self.place.part,
            bytes,
            written: false.into(),
        }));
        (self.place.part, self.place.bytes) = (self.place.part + 1, self.place.bytes + long);
    }
}

/// Those that are not in the store yet.
pub(super) fn unwritten(parts: &mut Vec<Arc<RecordPart>>) {
    parts.retain(|part| !part.written.load(Ordering::Acquire));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        analysis::{
            JudgeConfig,
            replay::{Stretch, replay},
        },
        stats::{BUCKETS, UnitCounts},
    };

    #[test]
    fn a_long_recording_begins_again_where_it_is_full() {
        let service = ServiceName::new("shop").unwrap();
        let trial = TrialId::default();
        let whose = Whose {
            service: &service,
            trial: &trial,
            metric: "no-worse",
        };
        let mut judge = Judge::new(JudgeConfig::default(), 0.05, 0.5, Judge::empty_baseline());
        let mut recorder = Recorder::begin(&judge, Timestamp::from_secs(1));
        let dt = Duration::from_millis(100);
        // Every bucket of it holds something: full after some thousand ticks.
        let batch = Batch {
            weight: 0.05,
            canary: UnitCounts::default(),
            stable: UnitCounts::of(0, vec![1_000_000; BUCKETS]),
        };
        let mut parts = Vec::new();
        for _ in 0..5 {
            for _ in 0..700 {
                recorder.tick(&judge, dt, std::slice::from_ref(&batch));
                judge.tick(dt.as_secs_f64(), std::slice::from_ref(&batch));
            }
            recorder.cut(whose, &judge, &mut parts);
        }
        let bytes: usize = parts.iter().map(|part| part.bytes.len()).sum();
        assert!((1_400_000..5_000_000).contains(&bytes), "{bytes}");
        let stretch = recorder.place().stretch;
        assert!(stretch > 0, "{:?}", recorder.place());
        let last: Vec<u8> = parts
            .iter()
            .filter(|part| part.stretch == stretch)
            .flat_map(|part| part.bytes.clone())
            .collect();
        let last = replay(&[Stretch {
            number: stretch,
            bytes: &last,
        }]);
        assert!(last.is_same() && !last.from_the_start, "{last:?}");
        assert_eq!(
            recorder.place().part,
            parts.iter().filter(|part| part.stretch == stretch).count() as u64
        );
        assert!(parts.iter().all(|part| part.stretch + 1 >= stretch));
    }
}
