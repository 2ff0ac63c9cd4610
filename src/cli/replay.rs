//! `serin replay`: every decision of a judge, made again from what the judge was fed.

use super::{
    args::{Format, ReplayArgs},
    exit::{Exit, Failure},
    out::Out,
    past::{Source, stretches},
    render::plain,
};
use crate::{
    analysis::replay::{Replayed, replay},
    control::{Recording, Recordings, StoredEvent},
    model::thousands,
};
use serde::Serialize;

/// What is said of a recording that is not whole.
const CUT: &str = "what came before is not kept: of a long recording the last two stretches of 2 MiB are";

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
    reproduced: bool,
    /// What differs, or why it cannot be made again.
    why: Option<String>,
}

/// `serin replay`.
pub(super) async fn run(args: &ReplayArgs, out: &mut Out) -> Result<Exit, Failure> {
    let source = Source::of(&args.past)?;
    let services = match &args.service {
        Some(service) => vec![service.clone()],
        None => source.services().await?,
    };
    let mut all = Vec::new();
    let mut troubles = 0;
    for service in &services {
        for rollout in source.wanted(service, args.rollout.as_deref()).await? {
            let recordings = source.recordings(service, &rollout).await?;
            let told = of_rollout(service, &recordings);
            troubles += told.troubles;
            if args.output != Format::Json {
                told.text.iter().for_each(|line| out.line(line));
            }
            all.extend(told.lines);
        }
    }
    let good = all.iter().filter(|line| line.reproduced).count();
    if args.output == Format::Json {
        out.line(serde_json::to_string_pretty(&all).unwrap_or_default());
    } else {
        out.line(format!("{good} of {} decisions of judges reproduced", all.len()));
    }
    let whole = good == all.len() && troubles == 0;
    Ok(if whole { Exit::Reached } else { Exit::Internal })
}

/// What there is to say of a rollout.
#[derive(Debug, Default)]
struct Told {
    text: Vec<String>,
    lines: Vec<Line>,
    /// Recordings that are not what they were, whatever the decisions are.
    troubles: usize,
}

fn of_rollout(service: &str, recordings: &Recordings) -> Told {
    let mut told = Told::default();
    let rollout = &recordings.rollout;
    let line = |metric: Option<&str>, at: String, decision: &str, why: Option<String>| Line {
        service: service.to_owned(),
        rollout: rollout.id.clone(),
        version: rollout.version.to_string(),
        metric: metric.map(str::to_owned),
        at,
        decision: decision.to_owned(),
        reproduced: why.is_none(),
        why,
    };
    let mut cut = false;
    for recording in &recordings.recordings {
        let replayed = replay(&stretches(recording));
        cut |= !replayed.from_the_start;
        told.text.push(headline(recording, &replayed));
        for again in &replayed.decisions {
            let (at, said) = (again.recorded.at.to_string(), &again.recorded.sentence);
            told.lines
                .push(line(Some(&recording.metric), at, said, again.difference()));
        }
        let from = told.lines.len() - replayed.decisions.len();
        let shown: Vec<String> = told.lines[from..].iter().flat_map(Line::text).collect();
        told.text.extend(shown);
        let troubles = troubles(recording, &replayed);
        told.troubles += troubles.len();
        told.text.extend(
            troubles
                .iter()
                .map(|trouble| format!("    BROKEN      {trouble}")),
        );
        if !replayed.from_the_start {
            told.text.push(format!("    {CUT}"));
        }
    }
    // What the history says was decided by a judge must be among them.
    let known: Vec<String> = told.lines.iter().map(|line| line.decision.clone()).collect();
    for event in &recordings.decisions {
        let Some(said) = by_judge(event) else { continue };
        if !known.iter().any(|sentence| said.contains(sentence.as_str())) {
            let why = if recordings.recordings.is_empty() {
                "nothing is recorded of this rollout".to_owned()
            } else if cut {
                format!("event {}: {CUT}", event.id)
            } else {
                format!("event {}: no recording comes to this decision", event.id)
            };
            let line = line(None, event.at.to_string(), said, Some(why));
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
        let how = if self.reproduced {
            "reproduced"
        } else {
            "BROKEN    "
        };
        let mut text = vec![plain(&format!("    {how}  {}  {}", self.at, self.decision))];
        text.extend(
            self.why
                .as_ref()
                .map(|why| plain(&format!("                {why}"))),
        );
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
    let broken = replayed.broken.as_ref().map(ToString::to_string);
    let differs = replayed.differs_after.map(|seconds| {
        format!(
            "what the judge knew is not what it comes to from {seconds:.1} s on: the store was changed, or another build of Serin \
             recorded it"
        )
    });
    missing.chain(gaps).chain(broken).chain(differs).collect()
}

/// What a stored decision says, if it was a judge's.
fn by_judge(event: &StoredEvent) -> Option<&str> {
    let said = event.detail["by"]["message"].as_str()?;
    let of_judge = ["ROLL BACK at weight ", "PROCEED from ", "PAUSE at weight "];
    of_judge.iter().any(|words| said.contains(words)).then_some(said)
}
