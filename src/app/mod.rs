//! The composition root: builds everything in floor order, reloads it, stops it in reverse.
//!
//! Only here do real clocks, real randomness, threads and signals come from. [`Serin`] is one running instance, which the
//! demo and tests also start; [`serve`] is the command line's way to run one until a signal ends it.

mod certificates;
mod clock;
mod limits;
mod memory;
mod observers;
mod reload;
mod serve;
mod systemd;
mod upstream_tls;
mod workers;

pub(crate) use certificates::doubtful as doubtful_certificates;
pub use clock::SystemClock;
pub use reload::{Reload, Reloaded};
pub use serve::{ServeArgs, serve};
pub use systemd::Passed;

use crate::{
    admin,
    config::{Config, Problem},
    control::{Control, StartError, StartOptions, StoreChoice},
    metrics::Registry,
    model::Clock,
    proxy::{self, Shared, Stop, Table},
    upstream::{self, Descriptors, Services, ServicesSource},
};
use arc_swap::ArcSwap;
use certificates::Certificates;
pub use limits::{Resources, Scarce, TooFew};
use rand::Rng;
use std::{
    net::SocketAddr,
    num::NonZeroUsize,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle};
use upstream_tls::Upstreams;
use workers::{Bound, Workers};

/// Why an instance cannot start. Says where, what, and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The configuration cannot be used.
    #[error("the configuration cannot be used:\n{}", list(.0))]
    Config(Vec<Problem>),
    /// A listener cannot be bound.
    #[error(transparent)]
    Bind(#[from] proxy::BindError),
    /// The admin side cannot be served.
    #[error(transparent)]
    Admin(#[from] admin::BindError),
    /// Too few files may be open.
    #[error(transparent)]
    TooFew(#[from] TooFew),
    /// Control cannot start.
    #[error(transparent)]
    Control(#[from] StartError),
    /// Metrics cannot be registered: a bug.
    #[error("register metrics")]
    Metrics(#[from] prometheus::Error),
    /// The system gives us no thread.
    #[error("start a thread")]
    Thread(#[source] std::io::Error),
    /// Signals or logs cannot be set up.
    #[error("set up the process")]
    Process(#[source] std::io::Error),
    /// Logging was asked for in an impossible way.
    #[error(transparent)]
    Log(#[from] crate::telemetry::LogError),
}

fn list(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|problem| format!("  {problem}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// How an instance is started.
#[derive(Debug)]
pub struct Options {
    /// Data-plane threads; absent: one per core.
    pub workers: Option<NonZeroUsize>,
    /// Where rollouts are remembered; absent: where the configuration says.
    pub store: Option<StoreChoice>,
    /// The file behind the configuration, for reloads; absent: there is none.
    pub file: Option<PathBuf>,
    /// Listening sockets that somebody has opened for it.
    pub passed: Passed,
}

impl Options {
    fn worker_count(&self) -> usize {
        let cores = || std::thread::available_parallelism().ok();
        self.workers.or_else(cores).map_or(1, NonZeroUsize::get)
    }
}

/// Where a running instance can be reached.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Listener names with their TCP addresses; none for a Unix socket.
    pub listeners: Vec<(String, Option<SocketAddr>)>,
    /// REST, dashboard, metrics.
    pub admin: SocketAddr,
    /// The read-only address, if there is one.
    pub telemetry: Option<SocketAddr>,
    /// The local socket.
    pub socket: PathBuf,
}

/// One running instance.
#[derive(Debug)]
pub struct Serin {
    control: Control,
    metrics: Registry,
    probes: admin::Probes,
    admin: JoinHandle<()>,
    /// Health checks and names.
    beside: [JoinHandle<()>; 2],
    stop_admin: watch::Sender<bool>,
    workers: Workers,
    reload: Reload,
    observers: Arc<observers::Observers>,
    shared: Arc<Shared>,
    grace: Duration,
    addresses: Addresses,
    resources: Resources,
}

impl Serin {
    /// Builds everything in floor order. Whatever is most likely to fail (the state file, addresses) comes first; when it
    /// returns, requests are being served.
    pub async fn start(config: Arc<Config>, options: Options) -> Result<Serin, AppError> {
        if !config.not_yet().is_empty() {
            return Err(AppError::Config(config.not_yet().to_vec()));
        }
        let count = options.worker_count();
        let clock = SystemClock::start();
        let metrics = Registry::new(count)?;
        let certificates =
            Certificates::start(&config, &metrics, Arc::new(clock)).map_err(AppError::Config)?;
        let stored = || StoreChoice::File(config.state.path.clone());
        // Before the addresses: of two instances of one file, the second should hear of the first, not of its ports.
        let store = options.store.unwrap_or_else(stored).open()?;
        let bound = Bound::bind(&config, &certificates, count, options.passed)?;
        let listeners =
            admin::Listeners::bind(&config.admin, certificates.of_admin(), config.telemetry).await?;
        let config = bound.make_known(config, &listeners);
        let (services, resources) = no_services_yet(&config, &metrics)?;
        let upstreams =
            Upstreams::start(&config, &services, &metrics, Arc::new(clock)).map_err(AppError::Config)?;

        let mut seed = [0u8; 32];
        rand::rng().fill_bytes(&mut seed);
        let control = Control::start(StartOptions {
            config: Arc::clone(&config),
            services: services.clone(),
            clock: Arc::new(clock) as Arc<dyn Clock>,
            store,
            seed,
        })
        .await?;

        let beside = look_after(&services, clock).await;

        let shared = Arc::new(Shared {
            table: Arc::new(ArcSwap::from_pointee(Table::build(&config, &services))),
            metrics: metrics.clone(),
            epoch: clock.epoch,
            descriptors: Arc::clone(services.descriptors()),
            observers: proxy::Observers::default(),
            beats: (0..count).map(|_| AtomicU64::new(0)).collect(),
        });
        let observers = observers::Observers::new(Arc::clone(&shared), metrics.clone(), clock);
        let prepared = observers
            .prepare(&config)
            .map_err(|problem| AppError::Config(vec![problem]))?;
        observers.replace(prepared);
        let observers = Arc::new(observers);
        limits::keep_memory_at_hand();
        let grace = longest_drain(&config);
        let workers = Workers::start(bound, &shared, grace, rand::rng().next_u64())?;

        let probes = admin::Probes::default();
        let parts = reload::Parts {
            control: control.clone(),
            services,
            shared: Arc::clone(&shared),
            metrics: metrics.clone(),
            tokens: admin::Tokens::new(config.admin.tokens.clone()),
            hosts: admin::Hosts::new(config.admin.hosts.clone()),
            observers: Arc::clone(&observers),
            certificates,
            upstreams,
            resources,
        };
        let reload = Reload::new(options.file, Arc::clone(&config), parts);
        let addresses = Addresses {
            listeners: workers.addresses.clone(),
            admin: listeners.admin_address().unwrap_or(config.admin.address),
            telemetry: listeners.telemetry_address(),
            socket: config.admin.socket.clone(),
        };
        let (stop_admin, stopping) = watch::channel(false);
        let parts = admin::Parts {
            control: control.clone(),
            metrics: metrics.clone(),
            probes: probes.clone(),
            tokens: reload.tokens().clone(),
            hosts: reload.hosts().clone(),
            operator: Arc::new(reload.clone()),
            clock: Arc::new(clock),
            connections: resources.admin(),
        };
        let served = admin::Admin::new(parts, stopping);
        let admin = tokio::spawn(async move { served.serve(listeners).await });
        sweep_metrics(metrics.clone(), clock);
        tokio::spawn(reload.clone().keep_certificates_fresh());
        probes.set_started();
        Ok(Serin {
            control,
            metrics,
            probes,
            admin,
            beside,
            stop_admin,
            workers,
            reload,
            observers,
            shared,
            grace,
            addresses,
            resources,
        })
    }

    /// Where it can be reached.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// What the process may use, and who of it.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// The control plane.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The metrics.
    pub fn metrics(&self) -> &Registry {
        &self.metrics
    }

    /// The way to take a new configuration.
    pub fn reloader(&self) -> &Reload {
        &self.reload
    }

    /// Tells systemd that no worker is stuck, if it wants to know.
    fn watchdog(&self) -> systemd::Watchdog {
        systemd::Watchdog::start(Arc::clone(&self.shared))
    }

    /// Opens log files anew: they have been renamed.
    pub fn reopen_logs(&self) {
        self.observers.reopen();
    }

    /// Not ready for new traffic from here on; what comes is still served.
    pub fn announce_stop(&self) {
        self.probes.set_draining();
    }

    /// Accepts nothing new, lets what is in flight finish for as long as `drain` says, then ends everything. A `now` that
    /// resolves cuts the waiting short.
    pub async fn stop(self, now: impl Future<Output = ()>) {
        self.probes.set_draining();
        self.workers.tell(Stop::Drain);
        let workers = self.workers;
        let hurry = {
            let grace = tokio::time::sleep(self.grace + Duration::from_secs(1));
            async move {
                tokio::select! {
                    () = grace => {}
                    () = now => {}
                }
            }
        };
        let stop = workers.stop_handle();
        let joined = tokio::task::spawn_blocking(move || workers.join());
        tokio::pin!(joined);
        tokio::select! {
            _ = &mut joined => {}
            () = hurry => {
                stop.send_replace(Stop::Now);
                let _ = joined.await;
            }
        }
        self.observers.stop().await;
        self.beside.iter().for_each(JoinHandle::abort);
        self.control.shutdown().await;
        self.stop_admin.send_replace(true);
        // It bounds its own end; a panic in it has been logged.
        let _ = self.admin.await;
    }
}

/// Where services will be, with what all of them share.
fn no_services_yet(config: &Config, metrics: &Registry) -> Result<(Services, Resources), AppError> {
    // The store and the sockets are open by now.
    let resources = Resources::divide(limits::open(), metrics.workers())?;
    let descriptors = Descriptors::new(usize::try_from(resources.versions()).unwrap_or(usize::MAX));
    descriptors.allow_clients(resources.clients(config));
    let services = Services::new(metrics.clone()).among(descriptors);
    services.names().set(config.dns.clone());
    metrics.register(Box::new(ServicesSource::new(services.clone())));
    Ok((services, resources))
}

/// Starts what looks after endpoints beside the workers, and waits until every name has been asked for: the first request
/// finds an answer where there is one.
async fn look_after(services: &Services, clock: SystemClock) -> [JoinHandle<()>; 2] {
    let seed = rand::rng().next_u64();
    let health = upstream::look_after(services.clone(), Arc::new(clock), seed);
    let names = upstream::resolve(services.clone(), Arc::new(clock));
    let beside = [tokio::spawn(health), tokio::spawn(names)];
    upstream::first_answers(services).await;
    beside
}

/// What the most patient listener allows what is in flight.
fn longest_drain(config: &Config) -> Duration {
    let drains = config.listeners.iter();
    drains
        .map(|listener| listener.timeouts.drain.as_duration())
        .max()
        .unwrap_or_default()
}

/// Drops the series of versions that are long gone.
fn sweep_metrics(metrics: Registry, clock: SystemClock) {
    tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_secs(60));
        loop {
            every.tick().await;
            metrics.sweep(clock.wall());
        }
    });
}
