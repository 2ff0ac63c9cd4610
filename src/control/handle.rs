//! Everybody else's handle to the engine: cheap to clone, safe to share.
//!
//! Commands go through the engine's one inbox and are answered when they are done; reads come from what the engine last
//! published and from the store, and never wait for it.

use super::{
    Accepted, AnalysisStatus, Attempt, Caller, Command, Expect, History, MetricsWindow, NotificationTest,
    Recordings, Refusal, RefusalKind, ServiceJudge, ServiceJudges, ServiceStatus, StableUnits, StoredEvent,
    engine::{Ask, Engine, Parts, Route, UndoTarget},
    judging::Shown,
    managed::Managed,
    observe::KeptRun,
    providers::{Network, Outside},
    ready, recordings, report,
    samples::Samples,
    store::{Patient, Row, SqliteStore, Store, StoreError},
};
use crate::{
    analysis::Provider,
    config::{Config, Service},
    model::{Clock, ServiceName, Span, Timestamp, VersionName},
    upstream::Services,
};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// Events that a subscriber may lag behind before it has to read them from the store.
const BACKLOG: usize = 1024;

/// What [`Control::start`] needs.
#[derive(Debug)]
pub struct StartOptions {
    /// What the operator wrote.
    pub config: Arc<Config>,
    /// What both planes share; made by `app`.
    pub services: Services,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where rollouts are remembered.
    pub store: OpenStore,
    /// Where random keys and ids begin; taken from the system's generator outside tests.
    pub seed: [u8; 32],
}

/// Where rollouts are remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChoice {
    /// In this file.
    File(PathBuf),
    /// Nowhere: stable is served as the file says, and nothing can be deployed.
    Stateless,
    /// Nowhere but in memory: for the demo and for tests; a restart forgets everything.
    Memory,
}

impl StoreChoice {
    /// Opens it. Apart from [`Control::start`], because the file's lock is what tells two instances apart: whoever starts
    /// twice should hear of the other process, not of its ports.
    pub fn open(&self) -> Result<OpenStore, StartError> {
        let failed = |error: StoreError| StartError::Store(error.to_string());
        let store: Arc<dyn Store> = match self {
            StoreChoice::File(path) => {
                let file = Arc::new(SqliteStore::open(path).map_err(failed)?);
                Arc::new(Patient::new(file, path.clone()).map_err(failed)?)
            }
            StoreChoice::Stateless | StoreChoice::Memory => {
                Arc::new(SqliteStore::in_memory().map_err(failed)?)
            }
        };
        Ok(OpenStore {
            store,
            stateless: *self == StoreChoice::Stateless,
        })
    }
}

/// A store that is ours until it is dropped.
#[derive(Debug)]
pub struct OpenStore {
    pub(super) store: Arc<dyn Store>,
    pub(super) stateless: bool,
}

/// Why control cannot start; says how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state file cannot be used.
    #[error("{0}")]
    Store(String),
    /// Somebody has taken the trips: control was started before.
    #[error("control was started before with these services")]
    Twice,
}

/// Why the past cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such service.
    #[error("there is no service `{0}`")]
    NoService(String),
    /// There is no such rollout of that service.
    #[error("`{0}` has no rollout `{1}`, or more than one that begins so, or it is forgotten")]
    NoRollout(String, String),
    /// The state file cannot be read.
    #[error("the state file cannot be read: {0}")]
    Store(String),
    /// A state file that was named cannot be read.
    #[error("{0}")]
    File(String),
}

/// What a new configuration changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Where.
    pub service: ServiceName,
    /// What, in one sentence.
    pub text: String,
}

/// Why a new configuration was not taken; nothing of it is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("the configuration was not taken: {}", reasons.join("; "))]
#[serde(rename_all = "camelCase")]
pub struct ReloadRefused {
    /// Each fault, with its mend.
    pub reasons: Vec<String>,
}

/// The control plane. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Control {
    services: Services,
    clock: Arc<dyn Clock>,
    epoch: (Timestamp, std::time::Duration),
    store: Arc<dyn Store>,
    outside: Arc<dyn Outside>,
    shared: Arc<Shared>,
    inbox: mpsc::UnboundedSender<Ask>,
}

/// What the engine publishes and handles read.
#[derive(Debug)]
pub(crate) struct Shared {
    board: RwLock<BTreeMap<ServiceName, Entry>>,
    events: broadcast::Sender<Arc<StoredEvent>>,
    ready: AtomicBool,
    store_healthy: AtomicBool,
}

#[derive(Debug)]
struct Entry {
    status: watch::Sender<Arc<ServiceStatus>>,
    samples: Arc<Mutex<Samples>>,
    judged: Shown,
    /// What its next rollout is made of.
    config: Arc<Service>,
}

impl Entry {
    fn read(&self) -> (Arc<ServiceStatus>, Shown) {
        (Arc::clone(&self.status.borrow()), Arc::clone(&self.judged))
    }
}

impl Shared {
    fn new() -> Shared {
        Shared {
            board: RwLock::default(),
            events: broadcast::channel(BACKLOG).0,
            ready: AtomicBool::new(false),
            store_healthy: AtomicBool::new(true),
        }
    }

    pub(super) fn publish(&self, name: &ServiceName, status: ServiceStatus, managed: &Managed) {
        let status = Arc::new(status);
        let mut board = self.board.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = board.get_mut(name) {
            entry.config = Arc::clone(&managed.config);
            entry.status.send_replace(status);
        } else {
            let entry = Entry {
                status: watch::channel(status).0,
                samples: Arc::clone(&managed.samples),
                judged: Arc::clone(&managed.judging.shown),
                config: Arc::clone(&managed.config),
            };
            board.insert(name.clone(), entry);
        }
    }

    pub(super) fn forget(&self, name: &ServiceName) {
        self.board
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
    }

    /// Tells those who follow the events that facts are stored under these numbers.
    pub(super) fn stored(&self, service: &ServiceName, rows: &[Row], ids: &[u64]) {
        for (row, id) in rows.iter().zip(ids) {
            row.stored_as(*id);
            // Nobody may be listening.
            let _ = self.events.send(Arc::new(row.shown(*id, service)));
        }
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    pub(super) fn set_store_healthy(&self, healthy: bool) {
        self.store_healthy.store(healthy, Ordering::Release);
    }

    fn read<T>(&self, service: &str, of: impl FnOnce(&Entry) -> T) -> Option<T> {
        let board = self.board.read().unwrap_or_else(PoisonError::into_inner);
        board.get(service).map(of)
    }
}

impl Control {
    /// Restores every rollout and starts the engine on the current runtime. When it returns, every service's split is
    /// published.
    #[allow(clippy::unused_async, reason = "it spawns: only a runtime may call it")]
    pub async fn start(options: StartOptions) -> Result<Control, StartError> {
        Control::start_with(options, Arc::new(Network::default()))
    }

    /// [`Control::start`] with the network given: what tests use.
    pub(crate) fn start_with(
        options: StartOptions,
        outside: Arc<dyn Outside>,
    ) -> Result<Control, StartError> {
        let OpenStore { store, stateless } = options.store;
        let trips = options.services.take_trips().ok_or(StartError::Twice)?;
        let shared = Arc::new(Shared::new());
        let (sender, inbox) = mpsc::unbounded_channel();
        let engine = Engine::open(Parts {
            config: options.config,
            services: options.services.clone(),
            clock: Arc::clone(&options.clock),
            store: Arc::clone(&store),
            stateless,
            outside: Arc::clone(&outside),
            seed: options.seed,
            shared: Arc::clone(&shared),
            inbox: sender.downgrade(),
        })?;
        let epoch = (engine.now(), options.clock.monotonic());
        tokio::spawn(engine.run(inbox, trips));
        Ok(Control {
            services: options.services,
            clock: options.clock,
            epoch,
            store,
            outside,
            shared,
            inbox: sender,
        })
    }

    fn now(&self) -> Timestamp {
        let (wall, monotonic) = self.epoch;
        wall.plus(self.clock.monotonic().saturating_sub(monotonic))
    }

    /// Tells the engine something and waits for its answer; none when it has ended.
    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(make(reply)).ok()?;
        answer.await.ok()
    }

    /// Does something to a service. Answers when it is done and stored, and every worker splits by it.
    pub async fn command(
        &self,
        service: &str,
        command: Command,
        expect: Expect,
        caller: Caller,
    ) -> Result<Accepted, Refusal> {
        let warm = match &command {
            Command::Undo { to } => self.is_warm(service, to.clone()).await,
            Command::Deploy(_)
            | Command::SetEndpoints { .. }
            | Command::Promote { .. }
            | Command::Abort
            | Command::Retry
            | Command::Pause
            | Command::Resume
            | Command::SetWeight { .. } => false,
        };
        let service = service.to_owned();
        let answer = self
            .ask(|reply| Ask::Command {
                service,
                command,
                expect,
                caller,
                warm,
                reply,
            })
            .await;
        answer.unwrap_or_else(|| Err(stopping()))
    }

    /// Whether the version that an `undo` leads to is warm and answers its probes at this moment.
    async fn is_warm(&self, service: &str, to: Option<VersionName>) -> bool {
        let Some(tls) = self.services.get(service).map(|live| live.tls()) else {
            return false;
        };
        let service = service.to_owned();
        let target = self.ask(|reply| Ask::UndoTarget { service, to, reply }).await;
        let Some(Some(UndoTarget {
            endpoints,
            path,
            min_healthy,
        })) = target
        else {
            return false;
        };
        let probes = endpoints.iter().map(|endpoint| {
            self.outside
                .probe(Arc::clone(&tls), endpoint, path.as_deref(), ready::PROBE)
        });
        let ready = join_all(probes)
            .await
            .iter()
            .filter(|result| result.is_ok())
            .count();
        ready >= min_healthy
    }

    /// Where a service stands, with the numbers of the moment.
    pub fn status(&self, service: &str) -> Option<ServiceStatus> {
        let read = self.shared.read(service, Entry::read)?;
        Some(self.refreshed(&read))
    }

    fn refreshed(&self, (status, judged): &(Arc<ServiceStatus>, Shown)) -> ServiceStatus {
        let mut status = ServiceStatus::clone(status);
        if let Some(live) = self.services.get(status.service.as_str()) {
            report::refresh(&mut status, &live, self.services.metrics(), judged);
        }
        status
    }

    /// Where all services stand, by name.
    pub fn list(&self) -> Vec<ServiceStatus> {
        let board = self.shared.board.read().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<_> = board.values().map(Entry::read).collect();
        drop(board);
        all.iter().map(|read| self.refreshed(read)).collect()
    }

    /// Follows one service: the receiver holds the latest status and wakes with every change of it. The numbers of the
    /// moment (evidence, in flight) are those of the change; ask [`Control::status`] for fresh ones.
    pub fn watch(&self, service: &str) -> Option<watch::Receiver<Arc<ServiceStatus>>> {
        self.shared.read(service, |entry| entry.status.subscribe())
    }

    /// Follows everything that is stored from now on. A receiver that lags reads what it missed by [`Control::events`].
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<StoredEvent>> {
        self.shared.events.subscribe()
    }

    /// Reads from the store on a thread that may wait for the disk.
    async fn read<T: Send + 'static>(
        &self,
        of: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let store = Arc::clone(&self.store);
        let read = tokio::task::spawn_blocking(move || of(store.as_ref())).await;
        match read {
            Ok(result) => result.map_err(|error| ReadError::Store(error.to_string())),
            Err(error) => Err(ReadError::Store(error.to_string())),
        }
    }

    /// Stored events after `after`, oldest first, at most `limit`; of one service or of all.
    pub async fn events(
        &self,
        service: Option<&str>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, ReadError> {
        let service = service.map(str::to_owned);
        self.read(move |store| store.events(service.as_deref(), after, limit))
            .await
    }

    /// The past of a service, newest first, at most `limit` events and attempts.
    pub async fn history(&self, service: &str, limit: usize) -> Result<History, ReadError> {
        if self.status(service).is_none() {
            return Err(ReadError::NoService(service.to_owned()));
        }
        let service = service.to_owned();
        self.read(move |store| {
            Ok(History {
                rollouts: store.rollouts(&service)?,
                events: store.last_events(&service, limit)?,
                attempts: store.attempts(&service, limit)?,
            })
        })
        .await
    }

    /// What stable has served since the split in force began; none when there is no such service, or no split yet.
    pub fn stable_units(&self, service: &str) -> Option<StableUnits> {
        let split = self.services.get(service)?.cell.load_full();
        (split.generation > 0).then(|| StableUnits::of(&split))
    }

    /// The judges that a rollout of a service will have which is deployed now; none when there is no such service.
    pub fn judges(&self, service: &str) -> Option<ServiceJudges> {
        let config = self.shared.read(service, |entry| Arc::clone(&entry.config))?;
        let metrics = config.templates.iter().flat_map(|template| &template.metrics);
        let mut judges: Vec<ServiceJudge> = Vec::new();
        for metric in metrics {
            let Provider::Judge(parameters) = &metric.provider else {
                continue;
            };
            let judge = ServiceJudge {
                metric: metric.name.clone(),
                dry_run: metric.dry_run,
                parameters: parameters.clone(),
            };
            // Several templates may share one.
            if !judges.contains(&judge) {
                judges.push(judge);
            }
        }
        Some(ServiceJudges { judges })
    }

    /// Everything that the judges of a rollout were fed, and what came of it.
    pub async fn recordings(&self, service: &str, rollout: &str) -> Result<Recordings, ReadError> {
        if self.status(service).is_none() {
            return Err(ReadError::NoService(service.to_owned()));
        }
        let (name, id) = (service.to_owned(), rollout.to_owned());
        let found = self.read(move |store| recordings::of(store, &name, &id)).await?;
        found.ok_or_else(|| ReadError::NoRollout(service.to_owned(), rollout.to_owned()))
    }

    /// Analyses of a service, newest first, with their measurements: those of this rollout and of earlier ones.
    pub async fn analysis(&self, service: &str) -> Result<Vec<AnalysisStatus>, ReadError> {
        let Some(status) = self.status(service) else {
            return Err(ReadError::NoService(service.to_owned()));
        };
        let name = service.to_owned();
        let rows = self.read(move |store| store.runs(&name, 50)).await?;
        let mut all = status.analyses;
        for row in rows {
            let Ok(kept) = serde_json::from_str::<KeptRun>(&row.json) else {
                continue;
            };
            if !all.iter().any(|known| known.run == kept.shown.run) {
                all.push(kept.shown);
            }
        }
        Ok(all)
    }

    /// Requests, errors and duration per version over the last `window`, as the analyses see them.
    pub fn metrics_window(&self, service: &str, window: Span) -> Option<MetricsWindow> {
        let samples = self.shared.read(service, |entry| Arc::clone(&entry.samples))?;
        let live = self.services.get(service)?;
        let split = live.cell.load_full();
        let samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
        Some(samples.window(&live.name, &split, self.now(), window))
    }

    /// Stores an attempt that was refused before it came here (no token, wrong role).
    #[allow(
        clippy::unused_async,
        reason = "a store shared over a network will make it wait"
    )]
    pub async fn record_attempt(&self, attempt: Attempt) {
        // The engine is gone only when the process is stopping.
        let _ = self.inbox.send(Ask::Attempted(Box::new(attempt)));
    }

    /// Posts a test message to a receiver of notifications and says what came of it; none when there is no such receiver.
    pub async fn test_notification(&self, name: &str) -> Option<NotificationTest> {
        let name = name.to_owned();
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Ask::TestNotification { name, reply }).ok()?;
        answer.await.ok()
    }

    /// What taking this configuration would be refused for; changes nothing.
    pub async fn check_config(&self, config: Arc<Config>) -> Result<(), ReloadRefused> {
        self.configure(config, None).await.map(drop)
    }

    /// Takes a new configuration: all of it or nothing. `route` sends requests where it says; it is called when the
    /// versions of every service that comes are in place, before those of a service that goes are let go, and not at all
    /// when something speaks against the configuration.
    pub async fn apply_config(
        &self,
        config: Arc<Config>,
        route: impl FnOnce() + Send + 'static,
    ) -> Result<Vec<Change>, ReloadRefused> {
        self.configure(config, Some(Route(Box::new(route)))).await
    }

    async fn configure(
        &self,
        config: Arc<Config>,
        route: Option<Route>,
    ) -> Result<Vec<Change>, ReloadRefused> {
        let answer = self.ask(|reply| Ask::Configure { config, route, reply }).await;
        answer.unwrap_or_else(|| {
            Err(ReloadRefused {
                reasons: vec![stopping().message],
            })
        })
    }

    /// Whether every rollout was restored: part of `/readyz`.
    pub fn is_ready(&self) -> bool {
        self.shared.ready.load(Ordering::Acquire)
    }

    /// Whether there are versions and none of them has an address: their names have not been resolved yet.
    pub fn leads_nowhere(&self) -> bool {
        let all = self.services.all();
        let mut stable = all
            .iter()
            .map(|service| service.cell.load_full())
            .filter(|split| split.generation > 0)
            .map(|split| split.stable.version.endpoints().is_empty())
            .peekable();
        stable.peek().is_some() && stable.all(|nowhere| nowhere)
    }

    /// Whether the last write to the store worked. While it does not, nothing is promoted and no weight is raised.
    pub fn is_store_healthy(&self) -> bool {
        self.shared.store_healthy.load(Ordering::Acquire)
    }

    /// Stores the last sign of life and ends the engine. The state file is released with the last handle.
    pub async fn shutdown(&self) {
        // None: it had ended before.
        let _ = self.ask(Ask::Shutdown).await;
    }
}

pub(super) fn stopping() -> Refusal {
    Refusal::new(RefusalKind::Unavailable, "stopping", "Serin is stopping")
}
