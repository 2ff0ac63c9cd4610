//! `serin calibrate`: how often a service's judges would roll back a canary that is stable itself, on the traffic of now.

use super::{
    args::CalibrateArgs,
    args::Format,
    client::{Ask, Client, segment},
    exit::{Exit, Failure},
    out::Out,
    render::{plain, short},
};
use crate::{
    analysis::{
        JudgeConfig,
        against_itself::{Course, against_itself},
    },
    control::{ServiceJudges, StableUnits},
    model::{Weight, thousands},
    stats::{Interval, UnitCounts, wilson},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde::Serialize;
use std::time::Duration;
use tokio::time::Instant;

/// How often stable's counters are read: a tick of the pretended rollouts.
const TICK: Duration = Duration::from_secs(1);
/// For 95 %.
const Z: f64 = 1.96;
/// The next weight of the pretended plan is so many times this one.
const STEP: u32 = 5;

/// What came out.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    service: String,
    version: String,
    seconds: f64,
    requests: u64,
    failed: u64,
    weight: Weight,
    runs: u64,
    seed: u64,
    judges: Vec<Judged>,
}

/// What came out for one judge.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Judged {
    /// The metric that it sits for; absent: the service has none, and this is one with the defaults.
    metric: Option<String>,
    /// What the judge promises to stay below.
    alpha: f64,
    rolled_back: u64,
    /// 95 % of the intervals made like this hold the true rate.
    rate_low: f64,
    rate_high: f64,
    /// Would have been paused for 4xx answers; absent: it does not watch them.
    paused: Option<u64>,
    passed: u64,
    /// Of those that passed.
    median_seconds_to_pass: Option<f64>,
    /// Evidence of harm at its height: the median and the 99th percentile of all runs.
    harm_median: f64,
    harm_p99: f64,
}

impl Judged {
    /// Only what chance does not explain is a broken promise.
    fn keeps_its_promise(&self) -> bool {
        self.rate_low <= self.alpha
    }

    /// The same of pauses for 4xx answers, which have a risk of their own.
    fn pauses_seldom(&self, runs: u64) -> bool {
        self.paused
            .is_none_or(|paused| wilson(paused, runs, Z).low <= self.alpha)
    }
}

/// `serin calibrate`.
pub(super) async fn run(args: &CalibrateArgs, out: &mut Out) -> Result<Exit, Failure> {
    let client = Client::of(&args.target)?;
    let judges = judges_of(&client, &args.service).await?;
    out.note(format!(
        "reading the counters of stable for {}; nothing is sent, and no request goes elsewhere",
        short(args.long.as_duration())
    ));
    let (version, ticks) = watch(&client, args).await?;
    let sum = |of: fn(&UnitCounts) -> u64| ticks.iter().map(|(_, counts)| of(counts)).sum::<u64>();
    let (requests, failed) = (sum(UnitCounts::ended), sum(|counts| counts.failed));
    if requests == 0 {
        let failure = Failure::new(
            Exit::Internal,
            format!("stable of `{}` had no request in that time", args.service),
        );
        return Err(failure.hint("calibrate while there is traffic"));
    }
    let judges = judges.into_iter().map(|(metric, config)| {
        let config = args.otherwise.change(config);
        judged(metric, &config, &courses(args, &config, &ticks))
    });
    let found = Found {
        service: args.service.clone(),
        version,
        seconds: ticks.iter().map(|(dt, _)| dt.as_secs_f64()).sum(),
        requests,
        failed,
        weight: args.weight,
        runs: args.runs,
        seed: args.seed,
        judges: judges.collect(),
    };
    if args.output == Format::Json {
        out.line(serde_json::to_string_pretty(&found).unwrap_or_default());
    } else {
        out.print(text(&found));
    }
    let keeps = |judge: &Judged| judge.keeps_its_promise() && judge.pauses_seldom(args.runs);
    let kept = found.judges.iter().all(keeps);
    Ok(if kept { Exit::Reached } else { Exit::Internal })
}

/// The judges that a rollout of the service would have now, by metric; where there is none, one with the defaults.
async fn judges_of(client: &Client, service: &str) -> Result<Vec<(Option<String>, JudgeConfig)>, Failure> {
    let path = format!("/v1/services/{}/judges", segment(service));
    let ServiceJudges { judges } = client.ask(&Ask::get(&path)).await?;
    if judges.is_empty() {
        return Ok(vec![(None, JudgeConfig::default())]);
    }
    let named = judges
        .into_iter()
        .map(|judge| (Some(judge.metric), judge.parameters));
    Ok(named.collect())
}

/// Stable's version, and what it has served in each tick.
async fn watch(
    client: &Client,
    args: &CalibrateArgs,
) -> Result<(String, Vec<(Duration, UnitCounts)>), Failure> {
    let path = format!("/v1/services/{}/stable", segment(&args.service));
    let read = async || -> Result<StableUnits, Failure> { Ok(client.ask(&Ask::get(&path)).await?) };
    let mut last = read().await?;
    let (began, mut ticked) = (Instant::now(), Instant::now());
    let mut ticks = Vec::new();
    while began.elapsed() < args.long.as_duration() {
        let left = args.long.as_duration().saturating_sub(began.elapsed());
        tokio::time::sleep(TICK.min(left)).await;
        let next = read().await?;
        let now = Instant::now();
        // Counters begin anew with each generation of the split.
        let news = if next.generation == last.generation {
            next.units().since(&last.units())
        } else {
            next.units()
        };
        ticks.push((now - ticked, news));
        (last, ticked) = (next, now);
    }
    Ok((last.version.to_string(), ticks))
}

fn courses(args: &CalibrateArgs, config: &JudgeConfig, ticks: &[(Duration, UnitCounts)]) -> Vec<Course> {
    let mut dice = SmallRng::seed_from_u64(args.seed);
    let one = |_| {
        against_itself(
            config.clone(),
            (args.weight, next(args.weight)),
            ticks,
            &mut || dice.next_u64(),
        )
    };
    (0..args.runs).map(one).collect()
}

/// The weight after this one, as in the plan that a service has without a strategy.
fn next(weight: Weight) -> Weight {
    let (p, q) = (weight.p(), weight.q());
    match p.checked_mul(STEP).filter(|more| *more < q) {
        Some(more) => Weight::fraction(more.into(), q.into()).unwrap_or(Weight::percent(100)),
        None => Weight::percent(100),
    }
}

fn judged(metric: Option<String>, config: &JudgeConfig, courses: &[Course]) -> Judged {
    let count = |of: fn(&Course) -> bool| courses.iter().filter(|course| of(course)).count() as u64;
    let (runs, rolled_back) = (courses.len() as u64, count(|course| course.rolled_back));
    let Interval { low, high } = wilson(rolled_back, runs, Z);
    let mut harms: Vec<f64> = courses
        .iter()
        .map(|course| course.log_harm.min(700.0).exp())
        .collect();
    harms.sort_by(f64::total_cmp);
    let mut passes: Vec<Duration> = courses.iter().filter_map(|course| course.passed).collect();
    passes.sort_unstable();
    Judged {
        metric,
        alpha: config.alpha,
        rolled_back,
        rate_low: low,
        rate_high: high,
        paused: config.client_err_delta.map(|_| count(|course| course.paused)),
        passed: passes.len() as u64,
        median_seconds_to_pass: passes.get(passes.len() / 2).map(Duration::as_secs_f64),
        harm_median: harms.get(harms.len() / 2).copied().unwrap_or(1.0),
        harm_p99: harms.get(harms.len() * 99 / 100).copied().unwrap_or(1.0),
    }
}

fn share(part: u64, of: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "shares for people")]
    let share = 100.0 * part as f64 / of.max(1) as f64;
    share
}

fn text(found: &Found) -> String {
    let mut text = format!(
        "{} {}: {} requests in {}, of which {:.3}% failed\n\
         {} pretended rollouts of stable against itself at {} (seed {})\n",
        found.service,
        plain(&found.version),
        thousands(found.requests),
        short(Duration::from_secs_f64(found.seconds)),
        share(found.failed, found.requests),
        thousands(found.runs),
        found.weight,
        found.seed,
    );
    for judge in &found.judges {
        text.push_str(&one(judge, found.runs));
    }
    text
}

fn one(judge: &Judged, runs: u64) -> String {
    let passed = match judge.median_seconds_to_pass {
        Some(median) => format!(
            "{} of {} would have gone on to the next weight, half of them within {}",
            thousands(judge.passed),
            thousands(runs),
            short(Duration::from_secs_f64(median))
        ),
        None => "none would have gone on to the next weight in that time".to_owned(),
    };
    let word = |kept: bool| {
        if kept {
            "kept"
        } else {
            "BROKEN: more than chance explains"
        }
    };
    let kept = word(judge.keeps_its_promise());
    let of_4xx = judge.paused.map_or(String::new(), |paused| {
        format!(
            "  false pauses for 4xx: {} of {}, {:.2}%; promised at most {}%: {}\n",
            thousands(paused),
            thousands(runs),
            share(paused, runs),
            100.0 * judge.alpha,
            word(judge.pauses_seldom(runs))
        )
    });
    let name = match &judge.metric {
        Some(metric) => format!("judge {}", plain(metric)),
        None => "no judge of its own: the default one".to_owned(),
    };
    format!(
        "{name}\n\
         \x20 false alarms: {} of {}, {:.2}% (95% sure: from {:.2}% to {:.2}%); promised at most {}%: {kept}\n\
         {of_4xx}\
         \x20 {passed}\n\
         \x20 evidence of harm at its height: median {:.2}, 99 of 100 below {:.2}; a rollback needs {:.0}\n",
        thousands(judge.rolled_back),
        thousands(runs),
        share(judge.rolled_back, runs),
        100.0 * judge.rate_low,
        100.0 * judge.rate_high,
        100.0 * judge.alpha,
        judge.harm_median,
        judge.harm_p99,
        1.0 / judge.alpha
    )
}
