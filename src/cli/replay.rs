//! `serin replay`: every decision of a judge, made again from what the judge was fed.

use super::{
    args::{Format, ReplayArgs},
    exit::{Exit, Failure},
    out::Out,
    past::{NOTHING, Source, by_judge, not_recorded, stretches},
    render::plain,
};
use crate::{
    analysis::replay::{Replayed, replay},
    control::{Recording, Recordings},
    model::{Timestamp, thousands},
};
use serde::Serialize;

/// What is said of a recording that is not whole.
const CUT: &str = "what came before is not kept: of a long recording the last two stretches of 2 MiB are";

/// What became of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Outcome {
    /// It was made again, to the last bit.
    Reproduced,
    /// It comes out otherwise, or what it was made from should be there and is not.
    Broken,
    /// What it was made from was never kept, or is not any more, and the store says so.
    NotRecorded,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Outcome::Reproduced => "reproduced",
            Outcome::Broken => "BROKEN",
            Outcome::NotRecorded => "not recorded",
        }
    }
}

/// One decision, as it is printed.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    service: String,
    rollout: String,
    version: String,
    metric: Option<String>,
    at: String,
    /// As people were told.
    decision: String,
    outcome: Outcome,
    /// What differs, or why it cannot be made again.
    why: Option<String>,
}

/// A recording that is not what it was, whatever its decisions are.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Trouble {
    service: String,
    rollout: String,
    metric: String,
    why: String,
}

/// Everything that was judged again.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct All {
    reproduced: usize,
    broken: usize,
    not_recorded: usize,
    decisions: Vec<Line>,
    troubles: Vec<Trouble>,
}

impl All {
    fn add(&mut self, told: Told) {
        for line in told.lines {
            match line.outcome {
                Outcome::Reproduced => self.reproduced += 1,
                Outcome::Broken => self.broken += 1,
                Outcome::NotRecorded => self.not_recorded += 1,
            }
            self.decisions.push(line);
        }
        self.troubles.extend(told.troubles);
    }

    /// The last line.
    fn text(&self) -> String {
        let (good, all) = (self.reproduced, self.decisions.len());
        let rest = match self.not_recorded {
            0 => String::new(),
            some => format!(", {some} not recorded"),
        };
        format!("{good} of {all} decisions of judges reproduced{rest}")
    }
}

/// `serin replay`.
pub(super) async fn run(args: &ReplayArgs, out: &mut Out) -> Result<Exit, Failure> {
    let source = Source::of(&args.past)?;
    let services = match &args.service {
        Some(service) => vec![service.clone()],
        None => source.services().await?,
    };
    let mut all = All::default();
    for service in &services {
        for rollout in source.wanted(service, args.rollout.as_deref()).await? {
            let recordings = source.recordings(service, &rollout).await?;
            let told = of_rollout(service, &recordings);
            if args.output != Format::Json {
                told.text.iter().for_each(|line| out.line(line));
            }
            all.add(told);
        }
    }
    if args.output == Format::Json {
        out.line(serde_json::to_string_pretty(&all).unwrap_or_default());
    } else {
        out.line(all.text());
    }
    let whole = all.broken == 0 && all.troubles.is_empty();
    Ok(if whole { Exit::Reached } else { Exit::Internal })
}

/// What there is to say of a rollout.
#[derive(Debug, Default)]
struct Told {
    text: Vec<String>,
    lines: Vec<Line>,
    troubles: Vec<Trouble>,
}

/// Until when the beginning of a recording is not kept: decisions that its judge made before then cannot be made again.
struct Cut {
    began: Timestamp,
    /// Its first decision that is kept.
    until: Option<Timestamp>,
}

impl Cut {
    fn covers(&self, at: Timestamp) -> bool {
        self.began <= at && self.until.is_none_or(|until| at < until)
    }
}

fn of_rollout(service: &str, recordings: &Recordings) -> Told {
    let mut told = Told::default();
    let rollout = &recordings.rollout;
    let line = |metric: Option<&str>, at: Timestamp, decision: &str, outcome, why: Option<String>| Line {
        service: service.to_owned(),
        rollout: rollout.id.clone(),
        version: rollout.version.to_string(),
        metric: metric.map(str::to_owned),
        at: at.to_string(),
        decision: decision.to_owned(),
        outcome,
        why,
    };
    let mut cuts = Vec::new();
    for recording in &recordings.recordings {
        let replayed = replay(&stretches(recording));
        told.text.push(headline(recording, &replayed));
        for again in &replayed.decisions {
            let (at, said, why) = (again.recorded.at, &again.recorded.sentence, again.difference());
            let outcome = if why.is_none() {
                Outcome::Reproduced
            } else {
                Outcome::Broken
            };
            let line = line(Some(&recording.metric), at, said, outcome, why);
            told.text.extend(line.text());
            told.lines.push(line);
        }
        for why in troubles(recording, &replayed) {
            let broken = Outcome::Broken.as_str();
            told.text.push(format!("    {broken:<12}  {why}"));
            told.troubles.push(Trouble {
                service: service.to_owned(),
                rollout: rollout.id.clone(),
                metric: recording.metric.clone(),
                why,
            });
        }
        if !replayed.from_the_start {
            told.text.push(format!("    {CUT}"));
            cuts.push(Cut {
                began: recording.began,
                until: replayed.decisions.first().map(|first| first.recorded.at),
            });
        }
    }
    // What the history says was decided by a judge must be among them.
    let known: Vec<String> = told.lines.iter().map(|line| line.decision.clone()).collect();
    for event in &recordings.decisions {
        let Some(said) = by_judge(event) else { continue };
        if !known.iter().any(|sentence| said.contains(sentence.as_str())) {
            let is_cut = cuts.iter().any(|cut| cut.covers(event.at));
            let accounted = not_recorded(recordings, event).or(is_cut.then(|| CUT.to_owned()));
            let (outcome, why) = if let Some(why) = accounted {
                (Outcome::NotRecorded, why)
            } else if recordings.recordings.is_empty() {
                (Outcome::Broken, NOTHING.to_owned())
            } else {
                (
                    Outcome::Broken,
                    format!("event {}: no recording comes to this decision", event.id),
                )
            };
            let line = line(None, event.at, said, outcome, Some(why));
            told.text.extend(line.text());
            told.lines.push(line);
        }
    }
    if !told.text.is_empty() {
        let head = format!(
            "{service}  rollout {}  {}  began {}",
            rollout.id, rollout.version, rollout.started
        );
        told.text.insert(0, plain(&head));
    }
    told
}

impl Line {
    fn text(&self) -> Vec<String> {
        let how = self.outcome.as_str();
        let mut text = vec![plain(&format!("    {how:<12}  {}  {}", self.at, self.decision))];
        text.extend(self.why.as_ref().map(|why| plain(&format!("{:18}{why}", ""))));
        text
    }
}

fn headline(recording: &Recording, replayed: &Replayed) -> String {
    let bytes: usize = recording.stretches.iter().map(|stretch| stretch.data.len()).sum();
    plain(&format!(
        "  {}  {:.0} s, {} ticks, {} bytes, recorded by Serin {} since {}",
        recording.metric,
        replayed.seconds,
        thousands(replayed.ticks),
        thousands(bytes as u64),
        if replayed.serin.is_empty() {
            "?"
        } else {
            &replayed.serin
        },
        recording.began
    ))
}

/// What is wrong with a recording beside its decisions.
fn troubles(recording: &Recording, replayed: &Replayed) -> Vec<String> {
    let missing = recording.stretches.iter().filter_map(|stretch| {
        let part = stretch.missing?;
        Some(format!(
            "part {part} of stretch {} is not in the store",
            stretch.number
        ))
    });
    let gaps = recording.stretches.windows(2).filter_map(|pair| {
        let next = pair[0].number + 1;
        (pair[1].number != next).then(|| format!("stretch {next} is not in the store"))
    });
    // The last two stretches are kept together.
    let alone = match recording.stretches.as_slice() {
        [only] if only.number > 0 => Some(format!("stretch {} is not in the store", only.number - 1)),
        _ => None,
    };
    let broken = replayed.broken.as_ref().map(ToString::to_string);
    let differs = replayed.differs_after.map(|seconds| {
        format!(
            "what the judge knew is not what it comes to from {seconds:.1} s on: the store was changed, or another build of Serin \
             recorded it"
        )
    });
    missing
        .chain(gaps)
        .chain(alone)
        .chain(broken)
        .chain(differs)
        .collect()
}
