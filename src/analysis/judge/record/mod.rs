//! What a judge was fed, in few bytes: everything that it takes to come to the same decisions again, to the last bit.
//!
//! A recording begins with a judge as it was and goes on with what happened to it: ticks, weights, decisions, and now and then
//! a fingerprint of what it knows. Numbers are varints, and histograms keep the buckets that hold something. A judge depends on the
//! time of each tick, so ticks without a request are kept too (three bytes each); requests of a tick without any are not.

pub mod write;

use super::{Advice, Batch, Judge};
use crate::{
    model::Timestamp,
    stats::{BUCKETS, MOST_CUTS, UnitCounts},
};
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use std::{hash::Hasher, ops::Range, time::Duration};

/// More generations of the split in one tick than there can be.
const MOST_BATCHES: u64 = 10_000;

/// The bit that says that there are 4xx answers: what a Serin before them never set.
const CLIENT_ERRORS: usize = MOST_CUTS + 3;

mod tag {
    pub(super) const BEGIN: u8 = 0;
    pub(super) const TICK: u8 = 1;
    pub(super) const ENTER: u8 = 2;
    pub(super) const DECIDED: u8 = 3;
    pub(super) const CHECK: u8 = 4;
}

/// One thing that a recording holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Recorded {
    /// The judge from here on.
    Begin(Box<Begin>),
    /// What came in so much time.
    Tick {
        /// Since the tick before, in whole milliseconds.
        dt: Duration,
        /// By generation of the split, without those that brought nothing.
        batches: Vec<Batch>,
    },
    /// Another weight has been set.
    Enter {
        /// The canary's share, 0 to 1.
        weight: f64,
        /// The share after it.
        next: f64,
    },
    /// Something was decided by what the judge knew here.
    Decided(Decided),
    /// The [`fingerprint`] of the judge here and of the bytes since the last check.
    Check {
        /// As it was written.
        fingerprint: u64,
        /// From where to where those bytes are.
        of: Range<usize>,
    },
}

/// A judge, and who fed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begin {
    /// The version of Serin that recorded.
    pub serin: String,
    /// As it was.
    pub judge: Judge,
}

/// A decision and the numbers behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// When.
    pub at: Timestamp,
    /// What.
    pub advice: Advice,
    /// By which evidence.
    pub evidence: Evidence,
    /// As people were told.
    pub sentence: String,
}

/// Evidence to the last bit: the logarithms as IEEE 754 writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Of harm.
    harm: u64,
    /// That there is none: errors, then each quantile.
    fine: Vec<u64>,
    /// That shares of 4xx answers differ, of a pause for them.
    client_errors: Option<u64>,
}

/// A recording that cannot be read; says where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the recording is damaged at byte {at}: {why}")]
pub struct BadRecord {
    /// From the beginning of what was read.
    pub at: usize,
    /// What is wrong there.
    pub why: String,
}

impl Evidence {
    /// What a judge knows now.
    pub fn of(judge: &Judge) -> Evidence {
        let (errors, quantiles) = judge.log_fine();
        Evidence {
            harm: judge.log_harm().to_bits(),
            fine: std::iter::once(errors)
                .chain(quantiles)
                .map(f64::to_bits)
                .collect(),
            client_errors: None,
        }
    }

    /// The logarithm of the evidence of harm.
    pub fn log_harm(&self) -> f64 {
        f64::from_bits(self.harm)
    }
}

impl Decided {
    /// What a judge says now.
    pub fn of(judge: &Judge, at: Timestamp) -> Decided {
        let report = judge.report();
        Decided {
            at,
            advice: report.advice,
            evidence: Evidence::of(judge),
            sentence: report.sentence,
        }
    }

    /// What a judge says now of 4xx answers, if they call for a person; otherwise what it says.
    pub fn of_pause(judge: &Judge, at: Timestamp) -> Decided {
        let said = judge.client_errors().filter(|report| report.differs);
        let otherwise = Decided::of(judge, at);
        let Some(report) = said else {
            return otherwise;
        };
        Decided {
            advice: Advice::Pause,
            evidence: Evidence {
                client_errors: judge.log_client_errors().map(f64::to_bits),
                ..otherwise.evidence
            },
            sentence: report.sentence,
            ..otherwise
        }
    }

    /// What a judge says now to the question that this was an answer to.
    #[must_use]
    pub fn again(&self, judge: &Judge) -> Decided {
        match self.advice {
            Advice::Pause => Decided::of_pause(judge, self.at),
            Advice::Rollback | Advice::Proceed | Advice::Hold => Decided::of(judge, self.at),
        }
    }
}

/// Of everything that a judge knows, and of what was written about it: whatever differs has another one. It has no key: it tells of
/// damage and of a clumsy change; of a clever one the replay itself does, for decisions are in the history too.
pub fn fingerprint(judge: &Judge, written: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(written);
    hasher.write(serde_json::to_string(judge).unwrap_or_default().as_bytes());
    hasher.finish()
}

/// Reads a recording from its beginning.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The weight of the step that the judge is at.
    step: f64,
    /// Where the last check ended.
    checked: usize,
    ended: bool,
}

impl<'a> Reader<'a> {
    /// The whole of it.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader {
            bytes,
            at: 0,
            step: f64::NAN,
            checked: 0,
            ended: false,
        }
    }

    fn bad<T>(&self, why: impl Into<String>) -> Result<T, BadRecord> {
        Err(BadRecord {
            at: self.at,
            why: why.into(),
        })
    }

    fn take(&mut self, many: usize) -> Result<&'a [u8], BadRecord> {
        let end = self.at.checked_add(many);
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(taken) => {
                self.at += many;
                Ok(taken)
            }
            None => self.bad("it ends in the middle of something"),
        }
    }

    fn byte(&mut self) -> Result<u8, BadRecord> {
        Ok(self.take(1)?[0])
    }

    fn varint(&mut self) -> Result<u64, BadRecord> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                return self.bad("a number that is too large");
            }
            number |= part << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        self.bad("a number without an end")
    }

    fn at_most(&mut self, most: u64, what: &str) -> Result<usize, BadRecord> {
        let number = self.varint()?;
        match usize::try_from(number).ok().filter(|_| number <= most) {
            Some(number) => Ok(number),
            None => self.bad(format!("{number} {what}, where {most} is the most")),
        }
    }

    fn bits(&mut self) -> Result<u64, BadRecord> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn text(&mut self) -> Result<&'a str, BadRecord> {
        let long = self.at_most(self.bytes.len() as u64, "bytes of text")?;
        let text = self.take(long)?;
        std::str::from_utf8(text).or_else(|_| self.bad("text that is no UTF-8"))
    }

    fn evidence(&mut self) -> Result<Evidence, BadRecord> {
        let harm = self.bits()?;
        let tests = self.at_most(MOST_CUTS as u64 + 1, "tests")?;
        let fine: Result<Vec<u64>, BadRecord> = (0..tests).map(|_| self.bits()).collect();
        Ok(Evidence {
            harm,
            fine: fine?,
            client_errors: None,
        })
    }

    fn decided(&mut self) -> Result<Decided, BadRecord> {
        let at = Timestamp::from_millis(self.varint()?);
        let advice = match self.byte()? {
            0 => Advice::Rollback,
            1 => Advice::Proceed,
            2 => Advice::Hold,
            3 => Advice::Pause,
            other => return self.bad(format!("a decision of kind {other}")),
        };
        let mut evidence = self.evidence()?;
        if advice == Advice::Pause {
            evidence.client_errors = Some(self.bits()?);
        }
        Ok(Decided {
            at,
            advice,
            evidence,
            sentence: self.text()?.to_owned(),
        })
    }

    fn units(&mut self) -> Result<UnitCounts, BadRecord> {
        let holds = self.byte()?;
        let mut units = UnitCounts::default();
        if holds & 1 > 0 {
            units.failed = self.varint()?;
        }
        if holds & 2 > 0 {
            for count in &mut units.overdue {
                *count = self.varint()?;
            }
        }
        for (level, counts) in units.latency.iter_mut().enumerate() {
            if holds >> (level + 2) & 1 == 0 {
                continue;
            }
            counts.resize(BUCKETS, 0);
            let mut bucket = 0;
            for _ in 0..self.at_most(BUCKETS as u64, "buckets")? {
                bucket += self.at_most(BUCKETS as u64, "as the distance of buckets")?;
                let count = self.varint()?;
                match counts.get_mut(bucket) {
                    Some(place) => *place = count,
                    None => return self.bad(format!("bucket {bucket} of {BUCKETS}")),
                }
            }
        }
        if holds >> CLIENT_ERRORS & 1 > 0 {
            units.client_errors = self.varint()?;
        }
        Ok(units)
    }

    fn batch(&mut self) -> Result<Batch, BadRecord> {
        let weight = match self.byte()? {
            1 => self.step,
            0 => f64::from_bits(self.bits()?),
            other => return self.bad(format!("a batch of kind {other}")),
        };
        Ok(Batch {
            weight,
            canary: self.units()?,
            stable: self.units()?,
        })
    }

    fn one(&mut self) -> Result<Recorded, BadRecord> {
        Ok(match self.byte()? {
            tag::BEGIN if self.at > 1 => {
                return self.bad("another judge begins in the middle, and each stretch has one");
            }
            tag::BEGIN => {
                let begin: Result<Begin, _> = serde_json::from_str(self.text()?);
                let begin = begin.or_else(|error| {
                    self.bad(format!(
                        "a judge that this version of Serin does not know ({error})"
                    ))
                })?;
                self.step = begin.judge.step().0;
                Recorded::Begin(Box::new(begin))
            }
            tag::TICK => {
                let dt = Duration::from_millis(self.varint()?);
                let many = self.at_most(MOST_BATCHES, "generations in a tick")?;
                let batches: Result<Vec<Batch>, BadRecord> = (0..many).map(|_| self.batch()).collect();
                Recorded::Tick {
                    dt,
                    batches: batches?,
                }
            }
            tag::ENTER => {
                let (weight, next) = (f64::from_bits(self.bits()?), f64::from_bits(self.bits()?));
                self.step = weight;
                Recorded::Enter { weight, next }
            }
            tag::DECIDED => Recorded::Decided(self.decided()?),
            tag::CHECK => {
                let of = self.checked..self.at - 1;
                let fingerprint = self.bits()?;
                self.checked = self.at;
                Recorded::Check { fingerprint, of }
            }
            other => {
                return self.bad(format!(
                    "something of kind {other}, which this Serin does not know"
                ));
            }
        })
    }
}

impl Iterator for Reader<'_> {
    type Item = Result<Recorded, BadRecord>;

    fn next(&mut self) -> Option<Result<Recorded, BadRecord>> {
        if self.ended || self.at >= self.bytes.len() {
            return None;
        }
        let one = self.one();
        self.ended = one.is_err();
        Some(one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::JudgeConfig;

    fn units(failed: u64, buckets: &[(usize, u64)]) -> UnitCounts {
        let mut latency = vec![0; BUCKETS];
        for (bucket, count) in buckets {
            latency[*bucket] = *count;
        }
        UnitCounts::of(failed, latency)
    }

    fn recording() -> (Vec<u8>, Vec<Recorded>) {
        let judge = Judge::new(JudgeConfig::default(), 0.05, 0.5, Judge::empty_baseline());
        let mut late = units(2, &[(0, 1), (289, 300)]);
        late.latency[3] = vec![0; BUCKETS];
        late.latency[3][17] = 1;
        late.overdue = [9, 3, 1, 0];
        late.client_errors = 300;
        let batches = vec![
            Batch {
                weight: 0.05,
                canary: late,
                stable: units(0, &[(80, 95_000), (81, 1)]),
            },
            Batch {
                weight: 1.0 / 3.0,
                canary: UnitCounts::default(),
                stable: UnitCounts {
                    client_errors: 1,
                    ..UnitCounts::default()
                },
            },
        ];
        let decided = Decided::of(&judge, Timestamp::from_millis(1_795_000_000_123));
        let paused = Decided {
            advice: Advice::Pause,
            evidence: Evidence {
                client_errors: Some(5.0f64.to_bits()),
                ..decided.evidence.clone()
            },
            ..decided.clone()
        };
        let mut out = Vec::new();
        write::begin(&mut out, &judge, "1.2.3");
        write::tick(&mut out, Duration::from_millis(100), &batches, 0.05);
        write::tick(&mut out, Duration::from_secs(70), &[], 0.05);
        write::decided(&mut out, &decided);
        write::decided(&mut out, &paused);
        write::enter(&mut out, 0.5, 1.0);
        let long = out.len();
        write::check(&mut out, 0, &judge);
        let expected = vec![
            Recorded::Begin(Box::new(Begin {
                serin: "1.2.3".into(),
                judge: judge.clone(),
            })),
            Recorded::Tick {
                dt: Duration::from_millis(100),
                batches,
            },
            Recorded::Tick {
                dt: Duration::from_secs(70),
                batches: Vec::new(),
            },
            Recorded::Decided(decided),
            Recorded::Decided(paused),
            Recorded::Enter {
                weight: 0.5,
                next: 1.0,
            },
            Recorded::Check {
                fingerprint: fingerprint(&judge, &out[..long]),
                of: 0..long,
            },
        ];
        (out, expected)
    }

    /// As the judge sees it: an absent list of durations is an empty one.
    fn seen(recorded: &Recorded) -> String {
        let mut recorded = recorded.clone();
        if let Recorded::Tick { batches, .. } = &mut recorded {
            for units in batches
                .iter_mut()
                .flat_map(|batch| [&mut batch.canary, &mut batch.stable])
            {
                units.latency.iter_mut().for_each(|list| list.resize(BUCKETS, 0));
            }
        }
        format!("{recorded:?}")
    }

    #[test]
    fn what_was_written_is_read() {
        let (bytes, expected) = recording();
        let read: Result<Vec<Recorded>, BadRecord> = Reader::new(&bytes).collect();
        let read: Vec<String> = read.unwrap().iter().map(seen).collect();
        assert_eq!(read, expected.iter().map(seen).collect::<Vec<_>>());
    }

    #[test]
    fn no_damage_makes_it_panic_or_go_on_for_ever() {
        let (bytes, expected) = recording();
        for cut in (0..bytes.len()).step_by(5) {
            assert!(Reader::new(&bytes[..cut]).count() <= expected.len());
        }
        for at in (0..bytes.len()).filter(|at| at % 7 == 0 || at + 300 > bytes.len()) {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                // Whatever it is now, it has an end.
                assert!(Reader::new(&damaged).count() <= bytes.len());
            }
        }
    }

    #[test]
    fn a_quiet_tick_takes_three_bytes_and_a_busy_one_some_dozen() {
        let mut out = Vec::new();
        write::tick(&mut out, Duration::from_millis(100), &[], 0.05);
        assert_eq!(out.len(), 3);
        let batch = Batch {
            weight: 0.05,
            canary: units(0, &[(80, 3), (82, 1), (90, 1)]),
            stable: units(0, &(60..90).map(|bucket| (bucket, 3)).collect::<Vec<_>>()),
        };
        out.clear();
        write::tick(&mut out, Duration::from_millis(100), &[batch], 0.05);
        assert!(out.len() < 80, "{}", out.len());
    }
}
