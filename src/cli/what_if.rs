//! `serin what-if`: past rollouts, judged by other parameters on the traffic that they had.

use super::{
    args::{Format, Otherwise, Quantiles, WhatIfArgs},
    exit::{Exit, Failure},
    out::Out,
    past::{NOTHING, Source, by_judge, not_recorded, stretches},
    render::{plain, short, table},
};
use crate::{
    analysis::{
        Advice, JudgeConfig,
        replay::{Moment, Rejudged, rejudge},
    },
    control::{Recordings, RolloutStatus},
    model::{Span, thousands},
};
use serde::Serialize;
use std::{fmt::Write as _, time::Duration};

impl Otherwise {
    /// These parameters, but for those that are given.
    pub(super) fn change(&self, mut config: JudgeConfig) -> JudgeConfig {
        let set = |place: &mut f64, given: Option<f64>| *place = given.unwrap_or(*place);
        set(&mut config.alpha, self.alpha);
        set(&mut config.beta, self.beta);
        set(&mut config.lat_tol, self.tolerance);
        set(&mut config.err_delta, self.error_tolerance);
        set(&mut config.harm_budget, self.harm_budget);
        set(&mut config.freeze_stable_err, self.freeze);
        let seconds = |span: Option<Span>| span.map(|span| span.as_duration().as_secs_f64());
        set(&mut config.warmup_s, seconds(self.warmup));
        set(&mut config.step_warmup_s, seconds(self.step_warmup));
        set(&mut config.min_step_s, seconds(self.min_step));
        if let Some(Quantiles(quantiles)) = &self.quantiles {
            config.lat_q.clone_from(quantiles);
        }
        config.client_err_delta = self.client_error_tolerance.or(config.client_err_delta);
        config
    }
}

/// One judge of one rollout.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    rollout: String,
    version: String,
    metric: String,
    happened: Vec<Moment>,
    would: Vec<Moment>,
    /// Shares that were left before the evidence would have sufficed, 0 to 1.
    left_early: Vec<f64>,
    /// Where it ends.
    end: Moment,
    /// Whether it is recorded from the judge's first request on.
    from_the_start: bool,
}

/// Decisions of judges for the same reason, of which nothing is recorded.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NotRecorded {
    rollout: String,
    version: String,
    decisions: usize,
    why: String,
}

/// Everything that was judged otherwise, and what could not be.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct All {
    judges: Vec<Row>,
    not_recorded: Vec<NotRecorded>,
}

/// `serin what-if`.
pub(super) async fn run(args: &WhatIfArgs, out: &mut Out) -> Result<Exit, Failure> {
    if args.otherwise == Otherwise::default() {
        let failure = Failure::new(Exit::Usage, "nothing is said to be otherwise");
        return Err(failure.hint("give what would be, such as --alpha 0.1%; see serin what-if --help"));
    }
    let source = Source::of(&args.past)?;
    let mut all = All::default();
    let mut unreadable = 0;
    for rollout in source.wanted(&args.service, args.rollout.as_deref()).await? {
        let recordings = source.recordings(&args.service, &rollout).await?;
        for recording in &recordings.recordings {
            let stretches = stretches(recording);
            match rejudge(&stretches, |config| args.otherwise.change(config)) {
                Ok(rejudged) => {
                    let whole = stretches.first().is_some_and(|first| first.number == 0);
                    all.judges
                        .push(row(&recordings.rollout, &recording.metric, rejudged, whole));
                }
                Err(error) => {
                    unreadable += 1;
                    out.note(plain(&format!(
                        "rollout {rollout}, `{}`: {error}",
                        recording.metric
                    )));
                }
            }
        }
        for missing in missing(&recordings) {
            unreadable += usize::from(missing.why == NOTHING);
            all.not_recorded.push(missing);
        }
    }
    if args.output == Format::Json {
        out.line(serde_json::to_string_pretty(&all).unwrap_or_default());
    } else {
        if all.judges.is_empty() {
            out.line(format!("no rollout of `{}` has a recorded judge", args.service));
        } else {
            out.print(text(&all.judges));
        }
        for missing in &all.not_recorded {
            out.line(plain(&format!(
                "{}  {}: decisions of judges that are not recorded: {} ({})",
                missing.rollout, missing.version, missing.decisions, missing.why
            )));
        }
    }
    Ok(if unreadable == 0 {
        Exit::Reached
    } else {
        Exit::Internal
    })
}

/// The decisions of a rollout that nothing is recorded of, by why that is so.
fn missing(recordings: &Recordings) -> Vec<NotRecorded> {
    let mut missing: Vec<NotRecorded> = Vec::new();
    let is_empty = recordings.recordings.is_empty();
    for event in &recordings.decisions {
        let gone = || is_empty.then(|| NOTHING.to_owned());
        let Some(why) = by_judge(event).and_then(|_| not_recorded(recordings, event).or_else(gone)) else {
            continue;
        };
        if let Some(same) = missing.iter_mut().find(|known| known.why == why) {
            same.decisions += 1;
        } else {
            missing.push(NotRecorded {
                rollout: recordings.rollout.id.clone(),
                version: recordings.rollout.version.to_string(),
                decisions: 1,
                why,
            });
        }
    }
    missing
}

fn row(rollout: &RolloutStatus, metric: &str, rejudged: Rejudged, whole: bool) -> Row {
    Row {
        rollout: rollout.id.clone(),
        version: rollout.version.to_string(),
        metric: metric.to_owned(),
        happened: rejudged.happened,
        would: rejudged.would,
        left_early: rejudged.left_early,
        end: rejudged.end,
        from_the_start: whole,
    }
}

/// The table, and below it what each judge would have said last.
fn text(rows: &[Row]) -> String {
    let head = ["ROLLOUT", "VERSION", "JUDGE", "HAPPENED", "WOULD HAVE"].map(str::to_owned);
    let mut cells = vec![head.to_vec()];
    for row in rows {
        let would = if row.would.iter().any(|said| said.advice == Advice::Rollback) {
            told(&row.would)
        } else {
            let waits = format!("waited at {}%", percent(row.end.weight));
            let mut said = row.would.iter().rev();
            let still = said
                .find(|said| said.advice != Advice::Pause)
                .is_none_or(|last| last.weight.total_cmp(&row.end.weight).is_ne());
            match (row.would.is_empty(), still) {
                (true, _) => waits,
                (false, true) => format!("{}, {waits}", told(&row.would)),
                (false, false) => told(&row.would),
            }
        };
        cells.push(vec![
            row.rollout.clone(),
            plain(&row.version),
            plain(&row.metric),
            told(&row.happened),
            would,
        ]);
    }
    let mut text = table(&cells);
    text.push('\n');
    for row in rows {
        let last = row.would.last().unwrap_or(&row.end);
        let last = if last.advice == Advice::Rollback {
            last
        } else {
            &row.end
        };
        text.push_str(&plain(&format!(
            "{}  after {}, {} canary requests: {}",
            row.rollout,
            short(Duration::from_secs_f64(last.seconds)),
            thousands(last.canary_requests),
            last.sentence
        )));
        text.push('\n');
        for paused in row.would.iter().filter(|said| said.advice == Advice::Pause) {
            let _ = writeln!(text, "{}  {}", row.rollout, plain(&paused.sentence));
        }
        for weight in &row.left_early {
            let _ = writeln!(
                text,
                "{}  {}% was left before the evidence would have sufficed",
                row.rollout,
                percent(*weight)
            );
        }
        if !row.from_the_start {
            let _ = writeln!(
                text,
                "{}  its beginning is not kept: judged from what is",
                row.rollout
            );
        }
    }
    text
}

/// `5% passed after 40s (210), rolled back at 50% after 61s (1,020)`.
fn told(said: &[Moment]) -> String {
    if said.is_empty() {
        return "decided nothing".to_owned();
    }
    let one = |said: &Moment| {
        let (weight, after) = (percent(said.weight), short(Duration::from_secs_f64(said.seconds)));
        let requests = thousands(said.canary_requests);
        match said.advice {
            Advice::Rollback => format!("rolled back at {weight}% after {after} ({requests})"),
            Advice::Proceed => format!("passed {weight}% after {after} ({requests})"),
            Advice::Hold => format!("held at {weight}% after {after} ({requests})"),
            Advice::Pause => format!("paused for 4xx at {weight}% after {after} ({requests})"),
        }
    };
    said.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// A share as people write it.
fn percent(share: f64) -> String {
    let text = format!("{:.4}", 100.0 * share);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser;

    #[test]
    fn what_is_given_is_otherwise_and_everything_else_stays() {
        let given = |line: &str| {
            let typed = Cli::try_parse_from(line.split(' ')).unwrap().command;
            let Command::WhatIf(args) = typed else {
                panic!("{typed:?}")
            };
            args.otherwise.change(JudgeConfig::default())
        };
        assert_eq!(given("serin what-if shop"), JudgeConfig::default());
        let wanted = JudgeConfig {
            alpha: 0.002,
            lat_q: vec![0.5, 0.9],
            step_warmup_s: 0.0,
            min_step_s: 3.0,
            freeze_stable_err: 0.05,
            ..JudgeConfig::default()
        };
        let line =
            "serin what-if shop --alpha 0.2% --quantiles 0.9,0.5 --step-warmup 0s --min-step 3s --freeze 5%";
        assert_eq!(given(line), wanted);
        assert!(given("serin what-if shop --quantiles none").lat_q.is_empty());
        for wrong in ["1.5", "half", "0.1,0.2,0.3,0.4,0.5"] {
            let line = format!("serin what-if shop --quantiles {wrong}");
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{wrong}");
        }
    }
}
