//! The rank test at work: a sample of both versions each interval, and one verdict at the end of the window.
//!
//! While a test goes on its measurement is in flight; a restart begins it anew. Our own counters are compared on equally many
//! requests: of the version that had more, as many are drawn as the other had. A quantile of few requests, or a share of them,
//! scatters otherwise than one of many, and ranks would show that as a difference between versions that have none.

use super::{
    engine::{Ask, Engine},
    observe::ActiveRun,
    providers::{Answer, External, Outside, Reply, serin, shorten},
    samples,
};
use crate::{
    analysis::{Args, Compared, MannWhitney, Outcome, Provider, SerinMetric, SerinQuery},
    metrics::EvidenceCounts,
    model::{Role, ServiceName, Timestamp, Weight},
    stats::drawn,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use siphasher::sip::SipHasher13;
use std::{hash::Hasher, sync::Arc};

/// More requests of one version than this are not drawn for a sample.
const MOST_DRAWN: u64 = 20_000;

/// One test, and how far it has come.
#[derive(Debug)]
pub(super) struct Ranks {
    test: MannWhitney,
    /// The questions about the canary and about stable, where somebody else is asked.
    external: Option<(External, External)>,
    began: Option<Timestamp>,
    /// Where the next interval of our own counters begins.
    from: Option<serin::Reading>,
    /// How many samples were due so far.
    due: usize,
    /// The canary's and stable's.
    samples: Vec<(f64, f64)>,
    /// Samples that could not be taken, and why the last of them.
    missing: usize,
    last: Option<Missing>,
    /// Of these, by a fault of whom we ask.
    broken: usize,
}

/// Why there is no sample.
#[derive(Debug)]
struct Missing {
    why: String,
    /// Whoever was asked did not answer, or not with a number.
    broken: bool,
}

impl Missing {
    fn quiet(why: impl Into<String>) -> Missing {
        Missing {
            why: why.into(),
            broken: false,
        }
    }

    fn broken(why: impl Into<String>) -> Missing {
        Missing {
            why: why.into(),
            broken: true,
        }
    }
}

impl Ranks {
    pub(super) fn prepare(test: &MannWhitney, args: &Args) -> Result<Ranks, String> {
        let question = |provider: &Provider| match provider {
            Provider::Prometheus(query) => External::prometheus(query, args),
            Provider::Web(query) => External::web(query, args),
            Provider::Serin(_) | Provider::Judge(_) | Provider::MannWhitney(_) => {
                Err("a rank test asks prometheus or web".to_owned())
            }
        };
        let external = match &test.of {
            Compared::Own(_) => None,
            Compared::Asked { canary, stable } => Some((question(canary)?, question(stable)?)),
        };
        Ok(Ranks {
            test: test.clone(),
            external,
            began: None,
            from: None,
            due: 0,
            samples: Vec::new(),
            missing: 0,
            last: None,
            broken: 0,
        })
    }

    /// The window begins.
    pub(super) fn begin(&mut self, reading: serin::Reading) {
        self.began = Some(reading.at);
        self.from = Some(reading);
        self.due = 0;
        self.samples.clear();
        (self.missing, self.last, self.broken) = (0, None, 0);
    }

    /// When the next sample is due; none before the window and after its last one.
    pub(super) fn next(&self) -> Option<Timestamp> {
        let next = u32::try_from(self.due + 1).ok()?;
        let after = self.test.interval.as_duration().checked_mul(next)?;
        let began = self.began.filter(|_| self.due < self.test.planned())?;
        Some(began.plus(after))
    }

    /// Whether a sample is due; one that is too late by an interval and more is lost.
    fn is_due(&mut self, now: Timestamp) -> bool {
        let before = self.due;
        while self.next().is_some_and(|next| next <= now) {
            self.due += 1;
        }
        let lost = self.due.saturating_sub(before + 1);
        if lost > 0 {
            self.missing += lost;
            self.last = Some(Missing::quiet("Serin came too late for it"));
        }
        self.due > before
    }

    fn take(&mut self, sample: Result<(f64, f64), Missing>) {
        match sample {
            Ok(sample) => self.samples.push(sample),
            Err(missing) => {
                self.missing += 1;
                self.broken += usize::from(missing.broken);
                self.last = Some(missing);
            }
        }
    }

    fn is_over(&self) -> bool {
        self.began.is_some() && self.due >= self.test.planned()
    }

    fn missing(&self) -> String {
        match &self.last {
            Some(last) => format!("; {} could not be taken, the last: {}", self.missing, last.why),
            None => String::new(),
        }
    }

    /// How far it is, for people.
    fn progress(&self) -> String {
        format!(
            "{} of {} samples of both versions{}",
            self.samples.len(),
            self.test.planned(),
            self.missing()
        )
    }

    fn verdict(&self) -> (Outcome, Option<String>, String) {
        let verdict = self.test.verdict(&self.samples);
        // Silence of a version is no data; silence of whom we ask is an error.
        let outcome = if verdict.outcome == Outcome::NoData && self.broken > 0 {
            Outcome::Error
        } else {
            verdict.outcome
        };
        let said = format!("{}{}", verdict.said, self.missing());
        (outcome, verdict.shift.map(|shift| shift.to_string()), said)
    }
}

/// One sample of both versions, of what came between two readings of one generation.
fn sample(
    query: &SerinQuery,
    (from, to): (&serin::Reading, &serin::Reading),
    weight: Weight,
    draw: &mut dyn FnMut() -> u64,
) -> Result<(f64, f64), Missing> {
    let (canary, stable) = (to.canary.since(&from.canary), to.stable.since(&from.stable));
    for (counts, role) in [(&canary, Role::Canary), (&stable, Role::Stable)] {
        if counts.decided() < query.min_samples {
            let (had, least) = (counts.decided(), query.min_samples);
            let why = format!("{role} had {had} requests in its interval, and minRequests is {least}");
            return Err(Missing::quiet(why));
        }
    }
    let (from, mut to) = (serin::Reading::beginning(to.generation, from.at), to.clone());
    let share = weight.as_ratio();
    let (of_canary, of_stable) = if query.metric == SerinMetric::RequestRate {
        // As if all traffic were its own: the shares differ by intent.
        (to.canary, to.stable) = (canary, stable);
        (1.0 / share, 1.0 / (1.0 - share))
    } else {
        let each = canary.decided().min(stable.decided()).min(MOST_DRAWN);
        (to.canary, to.stable) = (some(&canary, each, draw), some(&stable, each, draw));
        (1.0, 1.0)
    };
    let value = |role| {
        let query = SerinQuery {
            role,
            ..query.clone()
        };
        let reply = serin::measure(&query, &from, &to);
        match reply.answer {
            Answer::Number(number) => Ok(number),
            Answer::Vector(_) | Answer::Json(_) | Answer::TooFew => {
                Err(Missing::quiet(reply.note.unwrap_or_default()))
            }
        }
    };
    Ok((of_canary * value(Role::Canary)?, of_stable * value(Role::Stable)?))
}

/// So many of the requests, drawn; outcomes and durations each by themselves, for a sample looks at one of the two.
fn some(counts: &EvidenceCounts, each: u64, draw: &mut dyn FnMut() -> u64) -> EvidenceCounts {
    let outcomes = drawn(&[counts.ok, counts.failed], each, draw);
    EvidenceCounts {
        ok: outcomes[0],
        failed: outcomes[1],
        canceled: 0,
        latency: drawn(&counts.latency, each, draw),
    }
}

/// Draws that are the same for the same sample of the same run.
fn dice(active: &ActiveRun, index: usize, number: usize) -> SmallRng {
    let mut hasher = SipHasher13::new_with_keys(active.id.0, index as u64);
    hasher.write(active.rollout.as_bytes());
    hasher.write_usize(number);
    SmallRng::seed_from_u64(hasher.finish())
}

/// Asks about both versions at the same time; the answer is the canary's number and stable's.
async fn ask((canary, stable): (External, External), outside: Arc<dyn Outside>) -> Result<Reply, String> {
    let (canary, stable) = tokio::join!(canary.ask(Arc::clone(&outside)), stable.ask(outside));
    let both = vec![
        number(canary?.answer).map_err(|why| format!("canary: {why}"))?,
        number(stable?.answer).map_err(|why| format!("stable: {why}"))?,
    ];
    Ok(Reply {
        answer: Answer::Vector(both),
        note: None,
    })
}

/// The one number of an answer; NaN where there is nothing to answer.
fn number(answer: Answer) -> Result<f64, String> {
    match answer {
        Answer::Number(number) => Ok(number),
        Answer::TooFew | Answer::Json(serde_json::Value::Null) => Ok(f64::NAN),
        Answer::Vector(values) if values.len() <= 1 => Ok(values.first().copied().unwrap_or(f64::NAN)),
        Answer::Vector(values) => Err(format!("{} series, and one number is compared", values.len())),
        Answer::Json(json) => {
            let text = json.as_str().and_then(|text| text.trim().parse().ok());
            let number = json.as_f64().or(text);
            number.ok_or_else(|| format!("`{}` is not a number", shorten(&json.to_string(), 40)))
        }
    }
}

fn both(reply: &Reply) -> Result<(f64, f64), Missing> {
    match &reply.answer {
        Answer::Vector(values) if values.len() == 2 && values.iter().all(|value| value.is_finite()) => {
            Ok((values[0], values[1]))
        }
        other @ (Answer::Number(_) | Answer::Vector(_) | Answer::Json(_) | Answer::TooFew) => {
            let answer = other.shown().unwrap_or_default();
            Err(Missing::quiet(format!("canary and stable answered {answer}")))
        }
    }
}

impl Engine {
    /// Takes the samples of a run that are due; whether there were any, and whether one of its tests has come to an end.
    pub(super) fn sample_ranks(
        &mut self,
        name: &ServiceName,
        active: &mut ActiveRun,
        now: Timestamp,
    ) -> (bool, bool) {
        let (mut sampled, mut ended) = (false, false);
        for index in 0..active.run.metrics.len() {
            let Some(ranks) = active.ranks(index) else {
                continue;
            };
            if !ranks.is_due(now) {
                continue;
            }
            let number = ranks.due;
            let Some(managed) = self.managed.get(name) else {
                break;
            };
            let split = managed.live.cell.load_full();
            let to = samples::read(&split, now);
            let beginning = serin::Reading::beginning(split.generation, managed.published);
            let mut dice = dice(active, index, number);
            let busy = active.is_asking(index);
            let Some(ranks) = active.ranks(index) else {
                continue;
            };
            match (ranks.test.of.clone(), ranks.external.clone()) {
                (Compared::Own(query), _) => {
                    // A piece never reaches across a weight change.
                    let from = ranks.from.replace(to.clone());
                    let from = from.filter(|from| from.generation == split.generation);
                    let from = from.unwrap_or(beginning);
                    ranks.take(sample(&query, (&from, &to), split.weight, &mut || {
                        dice.next_u64()
                    }));
                }
                (Compared::Asked { .. }, _) if busy => {
                    ranks.take(Err(Missing::broken("the question before it is not answered yet")));
                }
                (Compared::Asked { .. }, Some(both)) => {
                    let Some(inbox) = self.inbox.upgrade() else {
                        continue;
                    };
                    let (service, run, outside) = (name.clone(), active.id.0, Arc::clone(&self.outside));
                    active.asks(
                        index,
                        tokio::spawn(async move {
                            let result = ask(both, outside).await;
                            // The engine is gone only when the process is stopping.
                            let _ = inbox.send(Ask::Measured {
                                service,
                                run,
                                metric: index,
                                result,
                            });
                        }),
                    );
                }
                (Compared::Asked { .. }, None) => {}
            }
            sampled = true;
            ended |= self.conclude_ranks(name, active, index, now);
        }
        (sampled, ended)
    }

    /// Somebody outside has answered about both versions; whether the test has come to an end by it.
    pub(super) fn ranks_answered(
        &mut self,
        name: &ServiceName,
        active: &mut ActiveRun,
        index: usize,
        result: Result<Reply, String>,
        now: Timestamp,
    ) -> bool {
        if let Some(ranks) = active.ranks(index) {
            ranks.take(match result {
                Ok(reply) => both(&reply),
                Err(why) => Err(Missing::broken(why)),
            });
        }
        self.conclude_ranks(name, active, index, now)
    }

    fn conclude_ranks(
        &self,
        name: &ServiceName,
        active: &mut ActiveRun,
        index: usize,
        now: Timestamp,
    ) -> bool {
        let busy = active.is_asking(index);
        let Some(ranks) = active.ranks(index) else {
            return false;
        };
        if !ranks.is_over() || busy {
            let progress = ranks.progress();
            let progress = active.redacted(&progress);
            active.run.note(index, progress);
            return false;
        }
        let (outcome, value, said) = ranks.verdict();
        let said = active.redacted(&said);
        active.finish(name, index, outcome, value, Some(said), now, &self.services);
        true
    }
}
