//! A recording judged again: by the same parameters, which must come to the same decisions to the last bit, or by others.
//!
//! Pure, as the judge is. `serin replay`, `serin what-if` and `serin calibrate` print what comes out.

use super::{
    Advice, Batch, Judge, JudgeConfig,
    record::{BadRecord, Begin, Decided, Reader, Recorded, fingerprint},
};
use serde::Serialize;

/// One stretch of a recording; a judge that knows much is recorded in several, each of which begins with the judge as it was.
#[derive(Debug, Clone, Copy)]
pub struct Stretch<'a> {
    /// Counted from 0; a missing one has not been kept.
    pub number: u64,
    /// As it was recorded.
    pub bytes: &'a [u8],
}

/// What came of a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    /// The version of Serin that recorded; empty when nothing could be read.
    pub serin: String,
    /// Each decision, and what it is now.
    pub decisions: Vec<Again>,
    /// What the judge knows differs from what it knew then after so many seconds of the recording.
    pub differs_after: Option<f64>,
    /// Where it cannot be read on.
    pub broken: Option<BadRecord>,
    /// Seconds that were replayed.
    pub seconds: f64,
    /// Ticks that were replayed.
    pub ticks: u64,
    /// Whether it is there from the judge's first request on.
    pub from_the_start: bool,
    /// The number of the last stretch, and the judge at its end: the next one begins with the same.
    last: Option<(u64, Judge)>,
}

/// A decision, and what it is when it is made again.
#[derive(Debug, Clone, PartialEq)]
pub struct Again {
    /// As it was recorded.
    pub recorded: Decided,
    /// From the recorded ticks.
    pub replayed: Decided,
}

impl Again {
    /// In what it differs, in words.
    pub fn difference(&self) -> Option<String> {
        let (then, now) = (&self.recorded, &self.replayed);
        if then == now {
            return None;
        }
        if then.advice != now.advice {
            return Some(format!(
                "recorded {}, replayed {}: {}",
                then.advice.as_str(),
                now.advice.as_str(),
                now.sentence
            ));
        }
        if then.sentence != now.sentence {
            return Some(format!("replayed it says: {}", now.sentence));
        }
        Some(format!(
            "the same sentence, but the logarithm of the evidence of harm was {:?} and is {:?}, or another one differs as little: \
             another build or another machine's mathematics",
            then.evidence.log_harm(),
            now.evidence.log_harm()
        ))
    }
}

impl Replayed {
    /// Whether all of it came out again.
    pub fn is_same(&self) -> bool {
        self.broken.is_none()
            && self.differs_after.is_none()
            && self
                .decisions
                .iter()
                .all(|again| again.recorded == again.replayed)
    }
}

/// Judges a recording again.
pub fn replay(stretches: &[Stretch<'_>]) -> Replayed {
    let mut replayed = Replayed {
        serin: String::new(),
        decisions: Vec::new(),
        differs_after: None,
        broken: None,
        seconds: 0.0,
        ticks: 0,
        from_the_start: stretches.first().is_some_and(|first| first.number == 0),
        last: None,
    };
    for stretch in stretches {
        if let Err(broken) = replayed.go_on(stretch) {
            replayed.broken = Some(broken);
            break;
        }
    }
    replayed
}

impl Replayed {
    fn go_on(&mut self, stretch: &Stretch<'_>) -> Result<(), BadRecord> {
        let mut reader = Reader::new(stretch.bytes);
        let (serin, mut judge) = begun(&mut reader)?;
        let follows = self
            .last
            .as_ref()
            .is_some_and(|(number, _)| number + 1 == stretch.number);
        if follows && self.last.as_ref().is_some_and(|(_, last)| *last != judge) {
            self.differs_after.get_or_insert(self.seconds);
        }
        self.serin = serin;
        for one in reader {
            match one? {
                Recorded::Begin(_) => return Err(no_beginning("it begins twice")),
                Recorded::Tick { dt, batches } => {
                    judge.tick(dt.as_secs_f64(), &batches);
                    (self.seconds, self.ticks) = (self.seconds + dt.as_secs_f64(), self.ticks + 1);
                }
                Recorded::Enter { weight, next } => judge.enter(weight, next),
                Recorded::Decided(recorded) => {
                    let replayed = recorded.again(&judge);
                    self.decisions.push(Again { recorded, replayed });
                }
                Recorded::Check {
                    fingerprint: then,
                    of,
                } => {
                    if then != fingerprint(&judge, stretch.bytes.get(of).unwrap_or_default()) {
                        self.differs_after.get_or_insert(self.seconds);
                    }
                }
            }
        }
        self.last = Some((stretch.number, judge));
        Ok(())
    }
}

/// What every stretch begins with.
fn begun(reader: &mut Reader<'_>) -> Result<(String, Judge), BadRecord> {
    match reader.next().transpose()? {
        Some(Recorded::Begin(begin)) => {
            let Begin { serin, judge } = *begin;
            Ok((serin, judge))
        }
        Some(
            Recorded::Tick { .. } | Recorded::Enter { .. } | Recorded::Decided(_) | Recorded::Check { .. },
        )
        | None => Err(no_beginning("it does not begin with a judge")),
    }
}

fn no_beginning(why: &str) -> BadRecord {
    BadRecord {
        at: 0,
        why: why.to_owned(),
    }
}

/// A moment at which a judge with other parameters says something.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// What.
    pub advice: Advice,
    /// At which share of the canary.
    pub weight: f64,
    /// After so many seconds of the recording.
    pub seconds: f64,
    /// After so many requests of the canary.
    pub canary_requests: u64,
    /// In the judge's words.
    pub sentence: String,
}

/// What a recording would have come to.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejudged {
    /// What was decided at the time: what it was, and when.
    pub happened: Vec<Moment>,
    /// The first word of each step that is no hold, and the first pause; nothing follows a rollback.
    pub would: Vec<Moment>,
    /// Shares that were left before the evidence would have sufficed.
    pub left_early: Vec<f64>,
    /// Where the recording, or the judging, ends.
    pub end: Moment,
}

/// Judges a recording by parameters that `change` makes of its own. Traffic stays what it was: a judge that had let the canary go
/// on earlier would have seen more of it.
pub fn rejudge(
    stretches: &[Stretch<'_>],
    change: impl Fn(JudgeConfig) -> JudgeConfig,
) -> Result<Rejudged, BadRecord> {
    let mut judge: Option<Judge> = None;
    let (mut seconds, mut canary) = (0.0, 0);
    let (mut happened, mut would, mut left_early) = (Vec::new(), Vec::new(), Vec::new());
    let (mut said_here, mut paused) = (false, false);
    for stretch in stretches {
        let mut reader = Reader::new(stretch.bytes);
        let (_, recorded) = begun(&mut reader)?;
        let (weight, next) = recorded.step();
        // Later stretches go on with what the other judge knows.
        let judge = judge.get_or_insert_with(|| {
            let config = change(recorded.config().clone());
            Judge::new(config, weight, next, recorded.baseline().clone())
        });
        for one in reader {
            match one? {
                Recorded::Begin(_) => return Err(no_beginning("it begins twice")),
                Recorded::Check { .. } => {}
                Recorded::Tick { dt, batches } => {
                    // What was slow in flight was so by the thresholds of then.
                    let batches: Vec<Batch> = batches.iter().map(Batch::by_their_end).collect();
                    canary += batches.iter().map(|batch| batch.canary.ended()).sum::<u64>();
                    seconds += dt.as_secs_f64();
                    let done = would
                        .last()
                        .is_some_and(|last: &Moment| last.advice == Advice::Rollback);
                    if done {
                        continue;
                    }
                    let advice = judge.tick(dt.as_secs_f64(), &batches);
                    if advice == Advice::Rollback || advice == Advice::Proceed && !said_here {
                        would.push(moment(judge, seconds, canary));
                        said_here = true;
                    }
                    // Once in a rollout: then somebody has seen it.
                    if !paused
                        && advice != Advice::Rollback
                        && judge.pauses()
                        && let Some(report) = judge.client_errors()
                    {
                        paused = true;
                        would.push(Moment {
                            advice: Advice::Pause,
                            sentence: report.sentence,
                            ..moment(judge, seconds, canary)
                        });
                    }
                }
                Recorded::Enter { weight, next } => {
                    if !said_here {
                        left_early.push(judge.step().0);
                    }
                    said_here = false;
                    judge.enter(weight, next);
                }
                Recorded::Decided(decided) => happened.push(Moment {
                    advice: decided.advice,
                    weight: judge.step().0,
                    seconds,
                    canary_requests: canary,
                    sentence: decided.sentence,
                }),
            }
        }
    }
    let Some(judge) = judge else {
        return Err(BadRecord {
            at: 0,
            why: "nothing is recorded".to_owned(),
        });
    };
    let end = match would.last() {
        Some(last) if last.advice == Advice::Rollback => last.clone(),
        Some(_) | None => moment(&judge, seconds, canary),
    };
    Ok(Rejudged {
        happened,
        would,
        left_early,
        end,
    })
}

fn moment(judge: &Judge, seconds: f64, canary: u64) -> Moment {
    let report = judge.report();
    Moment {
        advice: report.advice,
        weight: judge.step().0,
        seconds,
        canary_requests: canary,
        sentence: report.sentence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        analysis::judge::record::Evidence,
        analysis::judge::record::write,
        model::Timestamp,
        stats::{BUCKETS, UnitCounts},
    };
    use std::time::Duration;

    fn units(ended: u64, failed: u64, bucket: usize) -> UnitCounts {
        let mut latency = vec![0; BUCKETS];
        latency[bucket] = ended;
        latency[bucket + 9] = ended / 7;
        UnitCounts::of(failed, latency)
    }

    /// A canary that is healthy at 5 % and fails a tenth at 50 %, in two stretches; and what the judge knew in the end.
    fn recording() -> (Vec<Vec<u8>>, Judge) {
        let config = JudgeConfig {
            warmup_s: 1.0,
            ..JudgeConfig::default()
        };
        let mut judge = Judge::new(config, 0.05, 0.5, Judge::empty_baseline());
        let mut out = vec![Vec::new()];
        write::begin(&mut out[0], &judge, "0.0.1");
        let mut proceeded = false;
        for tick in 0..2000u64 {
            let dt = Duration::from_millis(97 + tick % 7);
            let (weight, _) = judge.step();
            let failing = u64::from(weight > 0.4);
            let batch = Batch {
                weight,
                canary: units(5 + tick % 3, failing, 80),
                stable: units(95, u64::from(tick % 50 == 0), 80),
            };
            let open = out.last_mut().unwrap();
            write::tick(open, dt, std::slice::from_ref(&batch), weight);
            let advice = judge.tick(dt.as_secs_f64(), &[batch]);
            if advice != Advice::Hold && !(advice == Advice::Proceed && proceeded) {
                let at = Timestamp::from_millis(1_795_000_000_000 + tick * 100);
                write::decided(open, &Decided::of(&judge, at));
            }
            match advice {
                Advice::Rollback => break,
                Advice::Proceed if !proceeded => {
                    proceeded = true;
                    judge.enter(0.5, 1.0);
                    write::enter(open, 0.5, 1.0);
                    write::check(open, 0, &judge);
                    // A stretch may end anywhere.
                    let mut next = Vec::new();
                    write::begin(&mut next, &judge, "0.0.1");
                    out.push(next);
                }
                Advice::Proceed | Advice::Hold | Advice::Pause => {}
            }
        }
        write::check(out.last_mut().unwrap(), 0, &judge);
        (out, judge)
    }

    fn stretches(bytes: &[Vec<u8>]) -> Vec<Stretch<'_>> {
        let numbered = (0..).zip(bytes);
        numbered
            .map(|(number, bytes)| Stretch { number, bytes })
            .collect()
    }

    #[test]
    fn each_decision_comes_out_again_to_the_last_bit() {
        let (bytes, judge) = recording();
        let replayed = replay(&stretches(&bytes));
        assert!(replayed.is_same() && replayed.from_the_start, "{replayed:#?}");
        let said: Vec<Advice> = replayed
            .decisions
            .iter()
            .map(|again| again.replayed.advice)
            .collect();
        assert_eq!(said, [Advice::Proceed, Advice::Rollback]);
        assert_eq!(replayed.decisions[1].replayed.evidence, Evidence::of(&judge));
        assert_eq!(replayed.serin, "0.0.1");
        // The last stretch alone is enough for what was decided in it.
        let last = replay(&stretches(&bytes)[1..]);
        assert!(last.is_same() && !last.from_the_start, "{last:#?}");
        assert_eq!(last.decisions, replayed.decisions[1..]);
    }

    #[test]
    fn one_request_more_or_less_is_told() {
        let (bytes, _) = recording();
        let from = bytes[1].len() - 900;
        let (mut told, mut tried) = (0, 0);
        for at in (from..bytes[1].len()).step_by(29) {
            let mut tampered = bytes.clone();
            tampered[1][at] ^= 1;
            tried += 1;
            told += usize::from(!replay(&stretches(&tampered)[1..]).is_same());
        }
        assert_eq!(told, tried);
    }

    #[test]
    fn other_parameters_decide_otherwise_on_the_same_traffic() {
        let (bytes, _) = recording();
        let same = rejudge(&stretches(&bytes), |config| config).unwrap();
        let when = |moments: &[Moment]| -> Vec<(Advice, u64)> {
            moments
                .iter()
                .map(|moment| (moment.advice, moment.canary_requests))
                .collect()
        };
        assert_eq!(when(&same.happened), when(&same.would), "{same:#?}");
        assert!(same.left_early.is_empty());
        let strict = rejudge(&stretches(&bytes), |config| JudgeConfig {
            alpha: 1e-30,
            beta: 1e-12,
            ..config
        })
        .unwrap();
        assert_eq!((strict.would.len(), strict.left_early), (0, vec![0.05]));
        assert_eq!(strict.end.advice, Advice::Hold);
        assert!(strict.end.sentence.starts_with("HOLD at 50%"), "{:?}", strict.end);
        let quick = rejudge(&stretches(&bytes), |config| JudgeConfig { alpha: 0.2, ..config }).unwrap();
        assert!(
            quick.end.advice == Advice::Rollback && quick.end.canary_requests < same.end.canary_requests,
            "{quick:#?}\n{same:#?}"
        );
    }

    /// A canary that answers a tenth with 4xx where stable answers a hundredth so, fed to this judge.
    fn with_client_errors(config: JudgeConfig) -> Vec<u8> {
        let mut judge = Judge::new(config, 0.05, 0.5, Judge::empty_baseline());
        let mut out = Vec::new();
        write::begin(&mut out, &judge, "0.0.1");
        let mut paused = false;
        for tick in 0..200u64 {
            let dt = Duration::from_millis(100);
            let of = |ended, client_errors| UnitCounts {
                client_errors,
                ..units(ended, 0, 80)
            };
            let batch = Batch {
                weight: 0.05,
                canary: of(5, u64::from(tick % 2 == 0)),
                stable: of(95, 1),
            };
            write::tick(&mut out, dt, std::slice::from_ref(&batch), 0.05);
            judge.tick(dt.as_secs_f64(), &[batch]);
            if judge.pauses() && !std::mem::replace(&mut paused, true) {
                let at = Timestamp::from_millis(1_795_000_000_000 + tick);
                write::decided(&mut out, &Decided::of_pause(&judge, at));
            }
        }
        write::check(&mut out, 0, &judge);
        out
    }

    #[test]
    fn a_pause_comes_out_again_and_others_would_have_paused_too() {
        let bytes = [with_client_errors(JudgeConfig::default())];
        let replayed = replay(&stretches(&bytes));
        assert!(replayed.is_same(), "{replayed:#?}");
        let [again] = replayed.decisions.as_slice() else {
            panic!("{replayed:#?}")
        };
        assert_eq!(again.replayed.advice, Advice::Pause);
        assert!(
            again
                .replayed
                .sentence
                .starts_with("PAUSE at weight 5%: 4xx: canary ")
        );
        let same = rejudge(&stretches(&bytes), |config| config).unwrap();
        assert_eq!(same.happened, same.would);
        // A recording of a judge that did not watch them has them all the same.
        let blind = |config| JudgeConfig {
            client_err_delta: None,
            ..config
        };
        let bytes = [with_client_errors(blind(JudgeConfig::default()))];
        assert!(
            rejudge(&stretches(&bytes), |config| config)
                .unwrap()
                .would
                .is_empty()
        );
        let watched = rejudge(&stretches(&bytes), |_| JudgeConfig::default()).unwrap();
        assert_eq!(watched.would, same.would);
    }

    #[test]
    fn a_judge_in_the_middle_of_a_stretch_is_no_new_beginning() {
        let (bytes, judge) = recording();
        // Between two entries of the last stretch, where it replaces the judge by one that knows the end already.
        let mut other = Vec::new();
        write::begin(&mut other, &judge, "0.0.1");
        let mut first = Vec::new();
        write::begin(
            &mut first,
            &Judge::new(judge.config().clone(), 0.5, 1.0, Judge::empty_baseline()),
            "0.0.1",
        );
        let mut two = first.clone();
        two.extend(&other);
        let mut whole = bytes[0].clone();
        whole.extend(&bytes[1]);
        for recorded in [two, whole] {
            let stretch = [Stretch {
                number: 0,
                bytes: &recorded,
            }];
            let replayed = replay(&stretch);
            assert!(!replayed.is_same(), "{replayed:#?}");
            let said = replayed.broken.unwrap().to_string();
            assert!(said.contains("another judge begins in the middle"), "{said}");
            assert!(rejudge(&stretch, |config| config).is_err());
        }
    }

    #[test]
    fn what_is_no_recording_is_said_to_be_none() {
        let broken = |bytes: &[u8]| {
            replay(&[Stretch { number: 0, bytes }])
                .broken
                .unwrap()
                .to_string()
        };
        assert_eq!(
            broken(&[]),
            "the recording is damaged at byte 0: it does not begin with a judge"
        );
        assert!(broken(&[9]).contains("something of kind 9"));
        assert!(!replay(&[]).from_the_start);
    }
}
