//! What can be typed. Only shapes are checked here; each command checks what it means.

use super::exit::EXIT_CODES;
use crate::{
    admin::{EndpointsVerb, Goal},
    config,
    control::OnConflict,
    model::{EndpointUrl, Span, VersionName, Weight},
};
use clap::{Args, Parser, Subcommand, ValueEnum, error::ErrorKind};
use std::{ffi::OsString, path::PathBuf};

/// A reverse proxy that splits traffic between a stable and a canary version exactly, measures both, and promotes or rolls
/// back by itself.
#[derive(Debug, Parser)]
#[command(name = "serin", version, after_help = first_steps(), arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// What was typed, or what is wrong with it.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
        let typed: Vec<OsString> = arguments.into_iter().collect();
        Cli::try_parse_from(&typed).map_err(|error| {
            let meant = (error.kind() == ErrorKind::UnknownArgument).then(|| below_zero(typed));
            let better = meant.flatten().and_then(|meant| Cli::try_parse_from(meant).err());
            better.unwrap_or(error)
        })
    }
}

/// The line in which what looks like a number below 0 (`-1%`, `-5s`) is a value: no option is called like that, and whoever reads the
/// value says what would be right. `None`: there is no such number.
fn below_zero(typed: Vec<OsString>) -> Option<Vec<OsString>> {
    let is_below = |text: &str| {
        let rest = text.strip_prefix('-').unwrap_or_default();
        rest.starts_with(|first: char| first.is_ascii_digit() || first == '.')
    };
    let (mut meant, mut alone, mut found) = (Vec::<OsString>::new(), Vec::new(), false);
    for argument in typed {
        let text = argument.to_str().unwrap_or_default();
        if text == "--" {
            return None;
        }
        let below = is_below(text);
        found |= below;
        let option = |last: &&mut OsString| {
            let last = last.to_str().unwrap_or_default();
            last.starts_with("--") && !last.contains('=')
        };
        match meant.last_mut().filter(option) {
            Some(option) if below => {
                option.push("=");
                option.push(argument);
            }
            Some(_) | None if below => alone.push(argument),
            Some(_) | None => meant.push(argument),
        }
    }
    if !alone.is_empty() {
        meant.push("--".into());
        meant.extend(alone);
    }
    found.then_some(meant)
}

/// What somebody who types `serin` for the first time needs.
fn first_steps() -> String {
    format!("{FIRST_STEPS}\n\n{EXIT_CODES}")
}

const FIRST_STEPS: &str = "To begin:
  serin demo                                                     see all of it, in half a minute
  serin check config/minimal.yaml                                is a configuration right, and what would it do?
  serin serve -c config/minimal.yaml                             proxy at 127.0.0.1:8080
  serin deploy app --version v2 --endpoint http://127.0.0.1:9002 --until healthy";

/// What `serve --help` adds.
const SERVING: &str = "Signals:
  TERM, INT  accept nothing new, finish what is in flight, end; a second one ends at once
  HUP        read the configuration again (a changed file is noticed by itself), open the access log again

Environment:
  SERIN_LOG         what is logged to standard error: error, warn, info (default), debug, or serin=debug
  SERIN_LOG_FORMAT  text (default) or json

Exit codes:
  0  stopped by a signal, after what was in flight
  1  could not start, or something went wrong inside: the message says what, and how to mend it
  2  usage, or the configuration cannot be used";

/// What `check --help` adds.
const CHECKING: &str = "Exit codes:
  0  it can be used, perhaps with warnings
  2  it has faults: each is shown with its place and its mend

Faults and warnings go to standard error, what the file comes to goes to standard output.";

/// What `demo --help` adds.
const SHOWING: &str = "Exit codes:
  0  the healthy canary was promoted and the bad one rolled back
  1  something came out otherwise, or could not start";

/// What `rehearse --help` adds.
const REHEARSING: &str = "Exit codes:
  0  every expectation holds
  1  some do not: the lines that say BROKEN
  2  usage, or a file cannot be understood";

/// What `replay --help` adds.
const REPLAYING: &str = "A judge's decisions follow from what it was fed: each tick's counts and durations, and each weight. All of it is kept
in the state file, up to two stretches of 2 MiB for each judge (some hours of a busy service): of a longer one the
beginning is let go of, and this command says so. It is forgotten with its rollout (`state.retention.rollouts`).

Exit codes:
  0  every decision is reproduced to the last bit
  1  some are not (BROKEN: each with what differs), or Serin could not be reached, or the file not be read
  2  usage, or no such service or rollout
  7  unauthorised: no token, or one that does not allow it";

/// What `what-if --help` adds.
const SUPPOSING: &str = "Traffic stays what it was: a judge that is content earlier would have seen more canary requests than were recorded, and
one that takes longer than the rollout did is said to be still waiting. Every request counts when it ends (a judge that sits counts a slow one while it is in flight).

Exit codes:
  0  said
  1  Serin could not be reached, or a recording or the file not be read
  2  usage, or no such service or rollout
  7  unauthorised: no token, or one that does not allow it";

/// What `calibrate --help` adds.
const CALIBRATING: &str = "Reads the counters of stable once a second, without any effect on traffic: every request goes where it goes anyway. Then
pretends that many rollouts on what was read. In each, every tick's requests are divided by the exact split into those of a
pretended canary and the others (which of them, is drawn), and each judge decides that a rollout of the service would have now,
by its parameters but for what is given here; where there is none, one with the defaults.
As there is nothing to find, each rollback is a false alarm. The order of the requests within a second is not known and is drawn
too; failures and durations are divided each by itself. The next weight is five times --weight.

Exit codes:
  0  said; the judge keeps its promise, as far as chance allows to say
  1  it does not: even the lower end of the interval is above its alpha; or there was no request, or Serin could not be reached
  2  usage, or no such service
  7  unauthorised: no token, or one that does not allow it";

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve: proxy, measure, decide
    #[command(after_help = SERVING)]
    Serve(ServeArgs),
    /// Check a configuration, warn of what is likely not meant, show the plan's timeline and what its gates can see
    #[command(after_help = CHECKING)]
    Check(CheckArgs),
    /// Watch a healthy canary being promoted and a bad one being rolled back, on this machine
    #[command(after_help = SHOWING)]
    Demo(DemoArgs),
    /// Bring in a version
    #[command(after_help = EXIT_CODES)]
    Deploy(DeployArgs),
    /// Change where a version listens; no new rollout
    #[command(after_help = EXIT_CODES)]
    Endpoints(EndpointsArgs),
    /// Show where services stand
    #[command(after_help = EXIT_CODES)]
    Get(GetArgs),
    /// Wait until a service has come to a goal
    #[command(after_help = EXIT_CODES)]
    Wait(WaitArgs),
    /// Release the current pause
    #[command(after_help = EXIT_CODES)]
    Promote(PromoteArgs),
    /// Give stable all traffic back
    #[command(after_help = EXIT_CODES)]
    Abort(VerbArgs),
    /// Start the version that was pulled back again
    #[command(after_help = EXIT_CODES)]
    Retry(VerbArgs),
    /// Go back to a former version while it is warm
    #[command(after_help = EXIT_CODES)]
    Undo(UndoArgs),
    /// Stop the steps; traffic and analyses go on
    #[command(after_help = EXIT_CODES)]
    Pause(VerbArgs),
    /// Let the steps go on
    #[command(after_help = EXIT_CODES)]
    Resume(VerbArgs),
    /// Give the canary a share by hand, and pause there
    #[command(after_help = EXIT_CODES)]
    SetWeight(SetWeightArgs),
    /// Show rollouts, decisions and attempts, newest first
    #[command(after_help = EXIT_CODES)]
    History(HistoryArgs),
    /// Follow what happens
    #[command(after_help = EXIT_CODES)]
    Events(EventsArgs),
    /// Say why a service stands where it stands, and what would move it
    #[command(after_help = EXIT_CODES)]
    Explain(OneArgs),
    /// Run plans and analyses of scenario files in virtual time
    #[command(after_help = REHEARSING)]
    Rehearse(RehearseArgs),
    /// Make every decision of a judge again from what the judge was fed
    #[command(after_help = REPLAYING)]
    Replay(ReplayArgs),
    /// Judge past rollouts by other parameters
    #[command(after_help = SUPPOSING)]
    WhatIf(WhatIfArgs),
    /// Split stable against itself on the traffic of now: how often would the judge cry wolf?
    #[command(after_help = CALIBRATING)]
    Calibrate(CalibrateArgs),
    /// Print a completion script for a shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
}

/// `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// The configuration
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Requests per second to each service: shows how long its gates take
    #[arg(long, value_name = "N", value_parser = rate)]
    pub rps: Option<f64>,
    /// The share of requests that fails while all is well [default: 0.1%; for a threshold, half of what it forbids]
    #[arg(long, value_name = "SHARE", value_parser = failing)]
    pub error_rate: Option<f64>,
}

/// Requests per second.
fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok();
    rate.filter(|rate| (1e-6..=1e9).contains(rate))
        .ok_or_else(|| "write a number of requests per second, such as 0.5 or 1000".to_owned())
}

/// A share of requests that fails, as a fraction of one.
fn failing(text: &str) -> Result<f64, String> {
    let share = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>().ok();
    share
        .filter(|share| (0.0..=50.0).contains(share))
        .map(|share| share / 100.0)
        .ok_or_else(|| "write a percentage from 0 to 50, such as 0.1%".to_owned())
}

/// A number that counts.
fn whole(text: &str) -> Result<u64, String> {
    let number = text.parse();
    number.map_err(|_| format!("write a whole number from 0 to {}", u64::MAX))
}

/// `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The configuration
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Serve stable only and remember nothing: for when the state file cannot be opened
    #[arg(long)]
    pub stateless: bool,
    /// Data-plane threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
}

/// `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Keep everything running afterwards, and print addresses and a token
    #[arg(long)]
    pub hold: bool,
}

/// Which Serin.
#[derive(Debug, Clone, Default, Args)]
pub struct Target {
    /// Where Serin's REST API is [default: the local socket]
    #[arg(long, value_name = "URL", env = "SERIN_SERVER", help_heading = "Connection")]
    pub server: Option<String>,
    /// A file that holds the token for --server
    #[arg(
        long,
        value_name = "FILE",
        env = "SERIN_TOKEN_FILE",
        help_heading = "Connection"
    )]
    pub token_file: Option<PathBuf>,
    /// PEM certificates of whoever signed that of an https:// server [default: whom this system trusts]
    #[arg(long, value_name = "FILE", env = "SERIN_CA_FILE", help_heading = "Connection")]
    pub ca_file: Option<PathBuf>,
    /// Use the socket of the Serin that serves this configuration [otherwise: `SERIN_SOCKET`, or `./serin.sock`]
    #[arg(short, long, value_name = "FILE", help_heading = "Connection")]
    pub config: Option<PathBuf>,
}

/// How answers are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// The REST API's answer.
    Json,
    /// For GitHub Actions: outputs, a step summary and annotations.
    Github,
}

/// What every changing verb takes.
#[derive(Debug, Clone, Default, Args)]
pub struct Changing {
    /// Then wait until: healthy (the version is stable), paused, step=N (counted from 0), weight=P (percent, or more), or
    /// released=V (nothing is in flight to V: its processes may be stopped)
    #[arg(long, value_name = "GOAL")]
    pub until: Option<Goal>,
    /// Wait this long at most, then exit 4 [default: as long as it takes]
    #[arg(long, value_name = "TIME", requires = "until")]
    pub timeout: Option<Span>,
    /// Go on waiting at pauses that only somebody can end, instead of exit 5
    #[arg(long, requires = "until")]
    pub through_pauses: bool,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Within 24 hours the same key does nothing and gets the same answer [default: a new one]
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Which Serin.
    #[command(flatten)]
    pub target: Target,
}

/// A service, and what every changing verb takes.
#[derive(Debug, Clone, Args)]
pub struct VerbArgs {
    /// The service
    #[arg(value_name = "SVC")]
    pub service: String,
    /// Refuse (exit 6) unless this is the version on trial
    #[arg(long = "version", value_name = "V")]
    pub version: Option<VersionName>,
    /// What every changing verb takes.
    #[command(flatten)]
    pub changing: Changing,
}

/// `deploy`.
#[derive(Debug, Clone, Args)]
pub struct DeployArgs {
    /// The service
    #[arg(value_name = "SVC")]
    pub service: String,
    /// The release's name: a tag, a git sha
    #[arg(long = "version", value_name = "V")]
    pub version: VersionName,
    /// Where it listens; may be repeated [default: the endpoints known for this version]
    #[arg(long = "endpoint", value_name = "URL")]
    pub endpoints: Vec<EndpointUrl>,
    /// What happens to another rollout that is going on [default: supersede; with -o github: refuse]
    #[arg(long, value_enum, value_name = "HOW")]
    pub on_conflict: Option<Conflicting>,
    /// Counts up with a pipeline's releases: a lower one is refused
    #[arg(long, value_name = "N", value_parser = whole)]
    pub sequence: Option<u64>,
    /// Start again at step 0 with the plan as it is now, even if this version is on trial
    #[arg(long)]
    pub replace: bool,
    /// What every changing verb takes.
    #[command(flatten)]
    pub changing: Changing,
}

/// `--on-conflict`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Conflicting {
    /// It ends; this one takes its place.
    Supersede,
    /// It goes on; this one is refused.
    Refuse,
}

impl From<Conflicting> for OnConflict {
    fn from(said: Conflicting) -> OnConflict {
        match said {
            Conflicting::Supersede => OnConflict::Supersede,
            Conflicting::Refuse => OnConflict::Refuse,
        }
    }
}

/// `endpoints`.
#[derive(Debug, Clone, Args)]
pub struct EndpointsArgs {
    /// The service
    #[arg(value_name = "SVC")]
    pub service: String,
    /// Which version listens there
    #[arg(long = "version", value_name = "V")]
    pub version: VersionName,
    /// How the set changes
    #[arg(value_enum)]
    pub change: HowToChange,
    /// Which addresses
    #[arg(value_name = "URL", required = true)]
    pub endpoints: Vec<EndpointUrl>,
    /// What every changing verb takes.
    #[command(flatten)]
    pub changing: Changing,
}

/// `set`, `add` or `drain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HowToChange {
    /// These are the whole set.
    Set,
    /// These too.
    Add,
    /// These no longer: they finish what they have.
    Drain,
}

impl From<HowToChange> for EndpointsVerb {
    fn from(said: HowToChange) -> EndpointsVerb {
        match said {
            HowToChange::Set => EndpointsVerb::Set,
            HowToChange::Add => EndpointsVerb::Add,
            HowToChange::Drain => EndpointsVerb::Drain,
        }
    }
}

/// `promote`.
#[derive(Debug, Clone, Args)]
pub struct PromoteArgs {
    /// Skip everything that is left
    #[arg(long)]
    pub full: bool,
    /// Also pass a running analysis
    #[arg(long)]
    pub skip_analysis: bool,
    /// The verb.
    #[command(flatten)]
    pub verb: VerbArgs,
}

/// `undo`.
#[derive(Debug, Clone, Args)]
pub struct UndoArgs {
    /// To which version [default: stable during a rollout, otherwise the one before it]
    #[arg(long, value_name = "V")]
    pub to: Option<VersionName>,
    /// The verb.
    #[command(flatten)]
    pub verb: VerbArgs,
}

/// `set-weight`.
#[derive(Debug, Clone, Args)]
pub struct SetWeightArgs {
    /// The service
    #[arg(value_name = "SVC")]
    pub service: String,
    /// The canary's share: a percentage (5, 0.01), or an exact fraction of the whole (1/3)
    #[arg(value_name = "P")]
    pub weight: Weight,
    /// Refuse (exit 6) unless this is the version on trial
    #[arg(long = "version", value_name = "V")]
    pub version: Option<VersionName>,
    /// What every changing verb takes.
    #[command(flatten)]
    pub changing: Changing,
}

/// `get`.
#[derive(Debug, Clone, Args)]
pub struct GetArgs {
    /// The service [default: all, one line each]
    #[arg(value_name = "SVC")]
    pub service: Option<String>,
    /// Show it again with every change
    #[arg(short, long)]
    pub watch: bool,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Which Serin.
    #[command(flatten)]
    pub target: Target,
}

/// `wait`.
#[derive(Debug, Clone, Args)]
pub struct WaitArgs {
    /// The service
    #[arg(value_name = "SVC")]
    pub service: String,
    /// healthy (the version is stable), paused, step=N (counted from 0), weight=P (percent, or more), or released=V (nothing
    /// is in flight to V: its processes may be stopped)
    #[arg(long, value_name = "GOAL")]
    pub until: Goal,
    /// The version that is waited for [default: the one asked for last]
    #[arg(long = "version", value_name = "V")]
    pub version: Option<VersionName>,
    /// Wait this long at most, then exit 4 [default: as long as it takes]
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Span>,
    /// Go on waiting at pauses that only somebody can end, instead of exit 5
    #[arg(long)]
    pub through_pauses: bool,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Which Serin.
    #[command(flatten)]
    pub target: Target,
}

/// `history`.
#[derive(Debug, Clone, Args)]
pub struct HistoryArgs {
    /// The service
    #[arg(value_name = "SVC")]
    pub service: String,
    /// At most so many events and attempts
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: u16,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Which Serin.
    #[command(flatten)]
    pub target: Target,
}

/// `events`.
#[derive(Debug, Clone, Args)]
pub struct EventsArgs {
    /// Only this service's [default: all]
    #[arg(value_name = "SVC")]
    pub service: Option<String>,
    /// Those after this number first [default: from now on]
    #[arg(long, value_name = "ID", value_parser = whole)]
    pub after: Option<u64>,
    /// How events are written: a line for people, or JSON
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Which Serin.
    #[command(flatten)]
    pub target: Target,
}

/// `explain`.
#[derive(Debug, Clone, Args)]
pub struct OneArgs {
    /// The service
    #[arg(value_name = "SVC")]
    pub service: String,
    /// Which Serin.
    #[command(flatten)]
    pub target: Target,
}

/// `rehearse`.
#[derive(Debug, Clone, Args)]
pub struct RehearseArgs {
    /// Scenario files (JSON or YAML): cases, or `events` for a plan of --config
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Run the events on a plan of this configuration
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Whose plan [default: the only one]
    #[arg(long, value_name = "SVC", requires = "config")]
    pub service: Option<String>,
}

/// Where what was recorded is read.
#[derive(Debug, Clone, Default, Args)]
pub struct Past {
    /// Read this state file (a copy, or that of a Serin that runs) instead of asking a Serin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["server", "config"])]
    pub store: Option<PathBuf>,
    /// Which Serin.
    #[command(flatten)]
    pub target: Target,
}

/// `replay`.
#[derive(Debug, Clone, Args)]
pub struct ReplayArgs {
    /// The service [default: all]
    #[arg(value_name = "SVC")]
    pub service: Option<String>,
    /// Only this rollout; the beginning of its id is enough [default: all that are kept]
    #[arg(long, value_name = "ID", requires = "service")]
    pub rollout: Option<String>,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Where.
    #[command(flatten)]
    pub past: Past,
}

/// `what-if`.
#[derive(Debug, Clone, Args)]
pub struct WhatIfArgs {
    /// The service
    #[arg(value_name = "SVC")]
    pub service: String,
    /// Only this rollout; the beginning of its id is enough [default: all that are kept]
    #[arg(long, value_name = "ID")]
    pub rollout: Option<String>,
    /// What would be otherwise.
    #[command(flatten)]
    pub otherwise: Otherwise,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Where.
    #[command(flatten)]
    pub past: Past,
}

/// `calibrate`.
#[derive(Debug, Clone, Args)]
pub struct CalibrateArgs {
    /// The service
    #[arg(value_name = "SVC")]
    pub service: String,
    /// For how long stable's traffic is read
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = some_time)]
    pub long: Span,
    /// The pretended canary's share
    #[arg(long, value_name = "P", default_value = "5", value_parser = inner_weight)]
    pub weight: Weight,
    /// How many rollouts are pretended
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = runs)]
    pub runs: u64,
    /// Where the draws begin: the same number draws the same
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole)]
    pub seed: u64,
    /// What would be otherwise.
    #[command(flatten)]
    pub otherwise: Otherwise,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// Which Serin.
    #[command(flatten)]
    pub target: Target,
}

/// How many are pretended.
fn runs(text: &str) -> Result<u64, String> {
    let runs = text.parse().ok().filter(|runs| (1..=1_000_000).contains(runs));
    runs.ok_or_else(|| "write a whole number from 1 to 1000000, such as 1000".to_owned())
}

/// At least a second.
fn some_time(text: &str) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|error| format!("{error}"))?;
    if span.as_millis() < 1000 {
        return Err("write a second or more, such as 10m".to_owned());
    }
    Ok(span)
}

/// A share at which there are two sides to compare.
fn inner_weight(text: &str) -> Result<Weight, String> {
    let weight: Weight = text.parse().map_err(|error| format!("{error}"))?;
    if weight.is_zero() || weight.is_full() {
        return Err("write a percentage above 0 and below 100, such as 5".to_owned());
    }
    Ok(weight)
}

/// Parameters of a judge that are given; the others stay as they were.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct Otherwise {
    /// The risk of a false rollback over the whole rollout, such as 0.1%
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub alpha: Option<f64>,
    /// The risk of leaving a step although the harm is at least the margin, such as 5%
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub beta: Option<f64>,
    /// How much slower than stable is tolerated (`latency.tolerate`), such as 20%
    #[arg(long, value_name = "SHARE", value_parser = tolerance)]
    pub tolerance: Option<f64>,
    /// How many more requests may fail than of stable (`errors.tolerate`), such as 0.05pp
    #[arg(long, value_name = "SHARE", value_parser = tolerance)]
    pub error_tolerance: Option<f64>,
    /// By how much shares of 4xx answers may differ before somebody must look (`clientErrors.tolerate`), such as 0.1pp; also where they
    /// were not watched
    #[arg(long, value_name = "SHARE", value_parser = tolerance)]
    pub client_error_tolerance: Option<f64>,
    /// Extra failed requests that the next weight may cost (`harmBudget`), such as 0.1pp
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub harm_budget: Option<f64>,
    /// For so long after the first canary request only gross slowness counts, such as 30s
    #[arg(long, value_name = "TIME")]
    pub warmup: Option<Span>,
    /// The same after each weight (`stepWarmup`), such as 5s
    #[arg(long, value_name = "TIME")]
    pub step_warmup: Option<Span>,
    /// A step takes at least this long (`minStep`), such as 10s
    #[arg(long, value_name = "TIME")]
    pub min_step: Option<Span>,
    /// Which quantiles of the latency are compared (`latency.quantiles`), such as 0.5,0.9, or none
    #[arg(long, value_name = "LIST", value_parser = quantiles)]
    pub quantiles: Option<Quantiles>,
    /// The weight is not raised while stable itself fails more than this (`freeze`), such as 2%
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub freeze: Option<f64>,
}

/// Quantiles of the latency, ascending.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantiles(pub Vec<f64>);

fn quantiles(text: &str) -> Result<Quantiles, String> {
    if text == "none" {
        return Ok(Quantiles(Vec::new()));
    }
    let numbers: Result<Vec<f64>, _> = text.split(',').map(|number| number.trim().parse()).collect();
    let numbers = numbers.map_err(|_| "write numbers, such as 0.5,0.9,0.99, or none".to_owned())?;
    config::quantiles(&numbers).map(Quantiles)
}

/// A probability, as a fraction of one; neither nothing nor everything.
fn share(text: &str) -> Result<f64, String> {
    config::share(text)
        .filter(|share| *share > 0.0 && *share < 1.0)
        .ok_or_else(|| "write a percentage above 0 and below 100, such as 0.1%".to_owned())
}

/// What is tolerated, as a fraction of one.
fn tolerance(text: &str) -> Result<f64, String> {
    config::share(text)
        .filter(|share| (0.0..=10.0).contains(share))
        .ok_or_else(|| "write a percentage from 0 to 1000, such as 20% or 0.05pp".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::read(line.split_whitespace().map(OsString::from)).map(|cli| cli.command)
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn verbs_that_do_not_exist_yet_are_not_shown() {
        let help = Cli::command().render_long_help().to_string();
        assert!(!help.contains("\n  import"));
        assert!(parse("serin import").is_err());
        for verb in [
            "serve",
            "check",
            "demo",
            "deploy",
            "endpoints",
            "get",
            "wait",
            "promote",
            "abort",
            "retry",
            "undo",
            "pause",
            "resume",
            "set-weight",
            "history",
            "events",
            "explain",
            "rehearse",
            "replay",
            "what-if",
            "calibrate",
            "completion",
            "version",
        ] {
            assert!(help.contains(&format!("\n  {verb}")), "{verb}: {help}");
        }
    }

    #[test]
    fn every_command_explains_the_exit_codes_that_it_can_end_with() {
        let command = Cli::command();
        for verb in command
            .get_subcommands()
            .filter(|verb| !["version", "completion"].contains(&verb.get_name()))
        {
            let help = verb.clone().render_help().to_string();
            let local = ["serve", "check", "demo", "rehearse"].contains(&verb.get_name());
            let again = ["replay", "what-if", "calibrate"].contains(&verb.get_name());
            let last = if local || again {
                "Exit codes:\n  0  "
            } else {
                "8  superseded"
            };
            assert!(help.contains(last), "{}", verb.get_name());
        }
        let overview = Cli::command().render_help().to_string();
        assert!(
            overview.contains("8  superseded") && overview.contains("serin demo"),
            "{overview}"
        );
    }

    #[test]
    fn lines_of_the_manual_are_understood() {
        for line in [
            "serin serve -c serin.yaml",
            "serin check serin.yaml --rps 1000 --error-rate 0.5%",
            "serin deploy shop --version 4f2c1a --endpoint http://10.0.0.7:8080 --endpoint h2c://10.0.0.8:8080 \
             --until paused --timeout 20m -o github",
            "serin endpoints shop --version v2 add http://127.0.0.1:9002 unix:/run/b.sock",
            "serin get",
            "serin get shop --watch",
            "serin wait shop --until released=v41 --timeout 90s --through-pauses",
            "serin promote shop --version v2 --full --until healthy",
            "serin abort shop --version v2 --reason bad",
            "serin undo shop --to v1",
            "serin set-weight shop 1/3",
            "serin set-weight shop 0.01 --version v2",
            "serin history shop --limit 5 -o json",
            "serin events --after 17",
            "serin explain shop --server http://127.0.0.1:9900 --token-file t",
            "serin rehearse a.json b.json",
            "serin rehearse a.json --config serin.yaml --service shop",
            "serin replay",
            "serin replay shop --rollout 7c1e --store serin.db -o json",
            "serin what-if shop --alpha 0.1% --tolerance 20% --beta 5% --harm-budget 0.1pp --error-tolerance 0pp --warmup 1m",
            "serin calibrate shop --for 10m --weight 1/3 --runs 500 --seed 7 --alpha 5%",
            "serin completion bash",
            "serin version",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn a_number_below_zero_is_answered_by_whoever_reads_it() {
        let numbers = ["N", "P", "SHARE", "TIME", "LIST"];
        let mut found = 0;
        for verb in Cli::command().get_subcommands() {
            for option in verb.get_arguments() {
                let name = option.get_value_names().and_then(<[_]>::first);
                let long = option.get_long().unwrap_or_default();
                if name.is_none_or(|name| !numbers.contains(&&**name)) && long != "after" || long.is_empty() {
                    continue;
                }
                found += 1;
                let value = if name.is_some_and(|name| ["N", "ID"].contains(&&**name)) {
                    "-1"
                } else {
                    "-1%"
                };
                let line = format!("serin {} --{long} {value}", verb.get_name());
                let error = parse(&line).unwrap_err();
                let text = error.to_string();
                assert_eq!(error.kind(), ErrorKind::ValueValidation, "{line}: {text}");
                let mend = ["write ", "is not in 1..=", "must be between 0 and 100"]
                    .iter()
                    .any(|mend| text.contains(mend));
                let lead = format!("invalid value '{value}' for '--{long} <");
                assert!(text.contains(&lead) && mend, "{line}: {text}");
            }
        }
        assert!(found > 40, "{found}");
    }

    #[test]
    fn a_weight_below_zero_is_told_what_is_right_and_options_stay_what_they_are() {
        let said = |line: &str| parse(line).unwrap_err().to_string();
        for weight in ["-1", "-1%", "-.5", "-1/3"] {
            for line in [
                format!("serin set-weight shop {weight}"),
                format!("serin set-weight shop {weight} --version v2 -o json"),
            ] {
                let text = said(&line);
                assert!(
                    text.contains(&format!("invalid value '{weight}' for '<P>': ")),
                    "{text}"
                );
            }
        }
        for (line, expected) in [
            ("serin set-weight shop --reson 5", "--reason"),
            (
                "serin what-if shop --alpha --store x",
                "a value is required for '--alpha <SHARE>'",
            ),
            ("serin get -1", "unexpected argument '-1'"),
            ("serin get shop --watch -1", "unexpected value '-1' for '--watch'"),
            ("serin deploy shop --version -1", "`-1` is not a version name"),
        ] {
            let text = said(line);
            assert!(text.contains(expected), "{text}");
        }
        assert!(parse("serin set-weight shop -ojson 5").is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for line in [
            "serin check serin.yaml --rps 0",
            "serin check serin.yaml --error-rate 51%",
            "serin deploy shop",
            "serin wait shop",
            "serin wait shop --until done",
            "serin promote shop --timeout 5m",
            "serin set-weight shop 101",
            "serin endpoints shop --version v2 replace http://127.0.0.1:1",
            "serin endpoints shop --version v2 set",
            "serin deploy shop --version v2 --endpoint ftp://x",
            "serin rehearse a.json --service shop",
            "serin replay --rollout 7c1e",
            "serin replay shop --store serin.db --server http://127.0.0.1:9900",
            "serin calibrate shop --weight 0",
            "serin calibrate shop --for 10ms",
            "serin what-if shop --alpha 0.1",
            "serin what-if shop --beta 0%",
            "serin abort shop --timeout soon --until healthy",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
