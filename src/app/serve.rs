//! `serin serve`: one instance from a file, until a signal ends it.

use super::{AppError, Options, Reload, Resources, Scarce, Serin, systemd};
use crate::{
    config::{self, Config, Loaded, Problem},
    control::StoreChoice,
    telemetry, threads,
};
use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the system sends when a write meets the limit of a file's size.
const SIGXFSZ: i32 = 25;

/// What `serve` is told.
#[derive(Debug, Clone)]
pub struct ServeArgs {
    /// The configuration.
    pub config: PathBuf,
    /// Serve stable only and remember nothing.
    pub stateless: bool,
    /// Data-plane threads; absent: one per core.
    pub workers: Option<NonZeroUsize>,
}

/// Runs an instance until SIGTERM or SIGINT has drained it; a second one ends it at once. SIGHUP reloads.
pub fn serve(args: &ServeArgs) -> Result<(), AppError> {
    telemetry::init()?;
    // Before there are threads.
    let passed = systemd::Passed::from_env();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .on_thread_start(threads::give_way)
        .enable_all()
        .build()
        .map_err(AppError::Process)?;
    runtime.block_on(run(args, passed))
}

async fn run(args: &ServeArgs, passed: systemd::Passed) -> Result<(), AppError> {
    // Registered first: a signal during start must not be lost.
    let listen = |kind| signal(kind).map_err(AppError::Process);
    let (mut term, mut int, mut hup) = (
        listen(SignalKind::terminate())?,
        listen(SignalKind::interrupt())?,
        listen(SignalKind::hangup())?,
    );
    // Unheard it ends the process. A file that may not grow is a full disk: an error of that one write.
    let _file_size = listen(SignalKind::from_raw(SIGXFSZ))?;

    let (loaded, mut watch) = read_and_watch(&args.config)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let options = Options {
        workers: args.workers,
        store: args.stateless.then_some(StoreChoice::Stateless),
        file: Some(args.config.clone()),
        passed,
    };
    let serin = Serin::start(Arc::clone(&loaded.config), options).await?;
    // Only now: workers are as this thread was.
    threads::give_way();
    announce(&serin, &loaded.config);
    systemd::ready();
    let watchdog = serin.watchdog();
    let mut files = serin.reloader().files(loaded.files.clone());

    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hup.recv() => {
                // Also when the file is bad: rotating logs must not depend on it.
                serin.reopen_logs();
                reload(serin.reloader(), "SIGHUP").await;
            }
            () = changed(&mut watch) => reload(serin.reloader(), "its files changed").await,
            Ok(()) = files.changed() => follow(watch.as_mut(), &files.borrow_and_update()),
        }
    }
    tracing::info!(
        "stopping: accepting nothing new, finishing what is in flight; a second signal ends it at once"
    );
    watchdog.stopping();
    serin.stop(second(&mut term, &mut int)).await;
    tracing::info!("stopped");
    Ok(())
}

/// Reads the configuration, and watches its files from before it was read: what is changed during the start is noticed.
fn read_and_watch(file: &Path) -> Result<(Loaded, Option<config::Watch>), AppError> {
    let read = || config::load(file).map_err(AppError::Config);
    // Which files there are is known only when they are read.
    let files = read()?.files;
    let unwatched = |error: &(dyn std::error::Error + 'static)| {
        tracing::warn!(error, "changes of the file are not noticed; reload with SIGHUP");
    };
    let mut watch = threads::giving_way(|| config::Watch::new(&files))
        .inspect_err(|error| unwatched(error))
        .ok();
    let loaded = read()?;
    if let Some(watch) = &mut watch
        && let Err(error) = watch.follow(&loaded.files)
    {
        unwatched(&error);
    }
    Ok((loaded, watch))
}

fn announce(serin: &Serin, config: &Config) {
    let addresses = serin.addresses();
    let scheme = |tls: bool| if tls { "https" } else { "http" };
    for ((name, address), listener) in addresses.listeners.iter().zip(&config.listeners) {
        let scheme = scheme(listener.tls.is_some());
        match address {
            Some(address) => {
                tracing::info!(listener = %name, %address, "listener `{name}` at {scheme}://{address}");
            }
            None => {
                let address = &listener.address;
                tracing::info!(listener = %name, %address, "listener `{name}` at {address}");
            }
        }
    }
    let (admin, socket) = (addresses.admin, addresses.socket.display());
    tracing::info!(%admin, "admin at {}://{admin} and {socket}", scheme(config.admin.tls.is_some()));
    if let Some(telemetry) = addresses.telemetry {
        tracing::info!(%telemetry, "metrics and probes at http://{telemetry}");
    }
    say_limits(serin.resources(), config);
    tracing::info!("ready");
}

/// How many clients there may be, and what stands in the way of more.
fn say_limits(resources: &Resources, config: &Config) {
    let (clients, versions, scarce) = (
        resources.clients(config),
        resources.needed_for_versions(config),
        resources.scarce(config),
    );
    match scarce {
        Scarce::Files(limit) => tracing::info!(
            "up to {clients} client connections: {scarce}, of which {versions} are for versions and {} for everything else",
            limit.saturating_sub(clients + versions)
        ),
        Scarce::Memory(_) => tracing::info!("up to {clients} client connections: {scarce}"),
    }
    for listener in &config.listeners {
        let wanted = listener.limits.connections.map_or(0, u64::from);
        if wanted > clients {
            tracing::warn!(
                listener = %listener.name,
                "listener `{}`: limits.connections {wanted} cannot be reached where {scarce}: {}",
                listener.name,
                scarce.mend()
            );
        }
    }
}

/// Waits for a change of the files; for ever when nothing can be watched.
async fn changed(watch: &mut Option<config::Watch>) {
    match watch {
        Some(one) => {
            if one.changed().await.is_none() {
                *watch = None;
            }
        }
        None => std::future::pending().await,
    }
}

fn follow(watch: Option<&mut config::Watch>, files: &[PathBuf]) {
    if let Some(watch) = watch
        && let Err(error) = watch.follow(files)
    {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "not every file is watched; reload with SIGHUP"
        );
    }
}

async fn reload(reload: &Reload, why: &str) {
    systemd::reloading();
    take(reload, why).await;
    systemd::ready();
}

async fn take(reload: &Reload, why: &str) {
    match reload.from_file().await {
        Ok(reloaded) => {
            for warning in &reloaded.warnings {
                tracing::warn!("{warning}");
            }
            tracing::info!("configuration reloaded ({why}): {}", reloaded.words());
        }
        Err(problems) => report(&problems, why),
    }
}

fn report(problems: &[Problem], why: &str) {
    tracing::error!("configuration not reloaded ({why}); the one in force stays:");
    for problem in problems {
        tracing::error!("{problem}");
    }
}

/// Resolves with the next signal.
async fn second(term: &mut Signal, int: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
