//! Words for humans: the verbs of the command line.
//!
//! `args` says what can be typed and `exit` how a command ends. `verbs` and `show` talk to a running Serin through
//! `client`; `replay` and `what_if` judge again what `past` brings, `calibrate` what stable serves now; `render`, `explain`
//! and `github` make text of what it answers, and nothing else.

pub mod args;
mod calibrate;
pub mod check;
mod client;
pub mod demo;
mod exit;
mod explain;
mod github;
mod out;
mod past;
pub mod rehearse;
mod render;
mod replay;
mod show;
mod tls;
mod verbs;
mod wait;
mod what_if;

pub use exit::{EXIT_CODES, Exit, Failure};
pub use out::Out;

use crate::{
    app::{self, AppError},
    model::Timestamp,
};
use args::{Cli, Command, RehearseArgs};
use clap::CommandFactory;
use std::{ffi::OsString, num::NonZeroUsize, time::UNIX_EPOCH};
use verbs::Plain;

/// Runs a command line to its end.
pub fn run(arguments: impl IntoIterator<Item = OsString>, out: &mut Out) -> u8 {
    let cli = match Cli::read(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let text = error.render().to_string();
            return if error.use_stderr() {
                out.note(text.trim_end());
                Exit::Usage.code()
            } else {
                out.print(text);
                Exit::Reached.code()
            };
        }
    };
    match dispatch(&cli.command, out) {
        Ok(code) => code,
        Err(failure) => {
            out.note(format!("error: {failure}"));
            if format_of(&cli.command) == args::Format::Github
                && let Some(line) = github::annotation(failure.exit, &failure.to_string())
            {
                out.line(line);
            }
            failure.exit.code()
        }
    }
}

fn dispatch(command: &Command, out: &mut Out) -> Result<u8, Failure> {
    match command {
        Command::Serve(args) => serve(args),
        Command::Demo(args) => demo(args, out),
        Command::Check(args) => {
            let code = check::run(&args.file, args.into(), out);
            Ok(u8::try_from(code).unwrap_or(Exit::Internal.code()))
        }
        Command::Rehearse(args) => rehearse_files(args, out),
        Command::Completion { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "serin", out);
            Ok(Exit::Reached.code())
        }
        Command::Version => {
            out.line(concat!("serin ", env!("CARGO_PKG_VERSION")));
            Ok(Exit::Reached.code())
        }
        Command::Deploy(_)
        | Command::Endpoints(_)
        | Command::Get(_)
        | Command::Wait(_)
        | Command::Promote(_)
        | Command::Abort(_)
        | Command::Retry(_)
        | Command::Undo(_)
        | Command::Pause(_)
        | Command::Resume(_)
        | Command::SetWeight(_)
        | Command::History(_)
        | Command::Events(_)
        | Command::Explain(_)
        | Command::Replay(_)
        | Command::WhatIf(_)
        | Command::Calibrate(_) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime =
                runtime.map_err(|error| Failure::new(Exit::Internal, format!("cannot start: {error}")))?;
            runtime.block_on(ask(command, out)).map(Exit::code)
        }
    }
}

/// The verbs that talk to a running Serin.
async fn ask(command: &Command, out: &mut Out) -> Result<Exit, Failure> {
    match command {
        Command::Deploy(args) => verbs::deploy(args, out).await,
        Command::Endpoints(args) => verbs::endpoints(args, out).await,
        Command::Get(args) => show::get(args, out).await,
        Command::Wait(args) => verbs::wait(args, out).await,
        Command::Promote(args) => verbs::promote(args, out).await,
        Command::Abort(args) => verbs::plain(Plain::Abort, args, out).await,
        Command::Retry(args) => verbs::plain(Plain::Retry, args, out).await,
        Command::Undo(args) => verbs::undo(args, out).await,
        Command::Pause(args) => verbs::plain(Plain::Pause, args, out).await,
        Command::Resume(args) => verbs::plain(Plain::Resume, args, out).await,
        Command::SetWeight(args) => verbs::set_weight(args, out).await,
        Command::History(args) => show::history(args, out).await,
        Command::Events(args) => show::events(args, out).await,
        Command::Explain(args) => show::explain_service(args, out).await,
        Command::Replay(args) => replay::run(args, out).await,
        Command::WhatIf(args) => what_if::run(args, out).await,
        Command::Calibrate(args) => calibrate::run(args, out).await,
        Command::Serve(_)
        | Command::Demo(_)
        | Command::Check(_)
        | Command::Rehearse(_)
        | Command::Completion { .. }
        | Command::Version => Ok(Exit::Reached),
    }
}

/// How the command answers, for errors that GitHub should show.
fn format_of(command: &Command) -> args::Format {
    match command {
        Command::Deploy(args) => args.changing.output,
        Command::Endpoints(args) => args.changing.output,
        Command::Get(args) => args.output,
        Command::Wait(args) => args.output,
        Command::Promote(args) => args.verb.changing.output,
        Command::Abort(args) | Command::Retry(args) | Command::Pause(args) | Command::Resume(args) => {
            args.changing.output
        }
        Command::Undo(args) => args.verb.changing.output,
        Command::SetWeight(args) => args.changing.output,
        Command::History(args) => args.output,
        Command::Events(args) => args.output,
        Command::Replay(args) => args.output,
        Command::WhatIf(args) => args.output,
        Command::Calibrate(args) => args.output,
        Command::Serve(_)
        | Command::Demo(_)
        | Command::Check(_)
        | Command::Explain(_)
        | Command::Rehearse(_)
        | Command::Completion { .. }
        | Command::Version => args::Format::Text,
    }
}

fn serve(args: &args::ServeArgs) -> Result<u8, Failure> {
    let workers = args
        .workers
        .and_then(|workers| NonZeroUsize::new(usize::from(workers)));
    let serving = app::ServeArgs {
        config: args.config.clone(),
        stateless: args.stateless,
        workers,
    };
    match app::serve(&serving) {
        Ok(()) => Ok(Exit::Reached.code()),
        Err(error) => {
            let exit = match error {
                AppError::Config(_) => Exit::Usage,
                AppError::Bind(_)
                | AppError::Admin(_)
                | AppError::TooFew(_)
                | AppError::Control(_)
                | AppError::Metrics(_)
                | AppError::Thread(_)
                | AppError::Process(_)
                | AppError::Log(_) => Exit::Internal,
            };
            Err(Failure::new(exit, client::reasons(&error)))
        }
    }
}

fn demo(args: &args::DemoArgs, out: &mut Out) -> Result<u8, Failure> {
    match demo::run(&demo::DemoArgs { hold: args.hold }, out) {
        Ok(true) => Ok(Exit::Reached.code()),
        Ok(false) => Ok(Exit::Internal.code()),
        Err(error) => Err(Failure::new(Exit::Internal, format!("{error:#}"))),
    }
}

fn rehearse_files(args: &RehearseArgs, out: &mut Out) -> Result<u8, Failure> {
    let planned = match &args.config {
        Some(file) => Some(
            rehearse::Planned::of(file, args.service.as_deref())
                .map_err(|error| Failure::new(Exit::Usage, error.to_string()))?,
        ),
        None => None,
    };
    rehearse::run(&args.files, planned.as_ref(), out)
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot write: {error}")))
}

/// The time as people read it.
fn now() -> Timestamp {
    #[allow(
        clippy::disallowed_methods,
        reason = "ages are shown to people who look at the same clock; nothing is decided by it"
    )]
    let since = std::time::SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
