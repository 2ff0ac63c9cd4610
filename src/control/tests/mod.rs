//! The whole control plane in paused time: real engine, real store, pretended network and traffic.

mod alarm;
mod bake;
mod client_errors;
mod failure;
mod hang;
mod judging;
mod notify;
mod operate;
mod raising;
mod ranks;
mod recording;
mod rollout;
mod simulation;
mod slow;
mod store;
mod together;

use super::{
    Accepted, Caller, Command, Control, Deploy, Expect, OpenStore, Refusal, ServiceStatus, StartOptions,
    providers::{Fetched, Outside, Question},
    store::{
        Appended, Begun, JudgeRow, KeyRow, RecordPart, Retention, Row, RunRow, SqliteStore, Store,
        StoreError, StoredService, StretchRow, Told, Tried, Untold,
    },
};
use crate::{
    config::{Config, load_text},
    control::{Attempt, RolloutStatus, StoredEvent, Unrecorded, VersionState, ledger::Saved},
    metrics::{Outcome, Registry},
    model::{Clock, EndpointUrl, Role, ServiceName, Timestamp, VersionName, Weight},
    upstream::{Endpoint, LiveService, Services},
};
use futures_util::future::BoxFuture;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Tokio's paused time as a clock; the wall goes on over restarts.
#[derive(Debug)]
pub(super) struct PausedClock {
    began: Instant,
    /// Milliseconds by which somebody has set the wall clock.
    set: AtomicI64,
}

impl PausedClock {
    fn new() -> Arc<PausedClock> {
        Arc::new(PausedClock {
            began: Instant::now(),
            set: AtomicI64::new(0),
        })
    }
}

impl Clock for PausedClock {
    fn wall(&self) -> Timestamp {
        let set = self.set.load(Ordering::SeqCst);
        let by = Duration::from_millis(set.unsigned_abs());
        let wall = Timestamp::from_secs(1_800_000_000).plus(self.began.elapsed());
        if set < 0 { wall.minus(by) } else { wall.plus(by) }
    }

    fn monotonic(&self) -> Duration {
        self.began.elapsed()
    }
}

/// A status and a body, or why there are none.
type Answer = Result<(u16, Vec<u8>), String>;

/// A network on which everything is ready unless it is said to be down.
#[derive(Debug, Default)]
pub(super) struct Pretend {
    pub(super) down: Mutex<BTreeSet<String>>,
    pub(super) answers: Mutex<VecDeque<Answer>>,
    /// What every answer says of when to come again.
    pub(super) retry_after: Mutex<Option<String>>,
    /// Everything that was asked.
    pub(super) asked: Mutex<Vec<Question>>,
}

impl Outside for Pretend {
    fn probe(
        &self,
        _tls: Arc<crate::upstream::ClientTls>,
        endpoint: &Arc<Endpoint>,
        _path: Option<&str>,
        _timeout: Duration,
    ) -> BoxFuture<'static, Result<(), String>> {
        let down = self.down.lock().unwrap().contains(&endpoint.url.to_string());
        Box::pin(async move { if down { Err("refused".to_owned()) } else { Ok(()) } })
    }

    fn fetch(&self, question: Question) -> BoxFuture<'static, Result<Fetched, String>> {
        self.asked.lock().unwrap().push(question);
        let answer = self.answers.lock().unwrap().pop_front();
        let answer = answer.unwrap_or_else(|| Err("unreachable".to_owned()));
        let retry_after = self.retry_after.lock().unwrap().clone();
        let fetched = answer.map(|(status, body)| Fetched {
            status,
            body,
            retry_after,
        });
        Box::pin(async move { fetched })
    }
}

/// A store that fails when it is told to, or for good after some writes, as a full disk or a power cut would.
#[derive(Debug)]
pub(super) struct Faulty {
    pub(super) inner: Arc<dyn Store>,
    pub(super) fails: AtomicBool,
    /// Facts may be appended so many times; negative: for ever.
    pub(super) appends: AtomicI64,
    /// Once a fact of this name is stored nothing is stored any more.
    pub(super) dies_after: Mutex<Option<&'static str>>,
    /// For each run that was stored, its phase and the weight in force at that moment, of the services that are watched.
    pub(super) runs: Mutex<Vec<(String, Weight)>>,
    pub(super) watched: Mutex<Option<Services>>,
    slow: Mutex<Option<slow::Traffic>>,
}

impl Faulty {
    pub(super) fn new(inner: Arc<dyn Store>) -> Arc<Faulty> {
        Arc::new(Faulty {
            inner,
            fails: AtomicBool::new(false),
            appends: AtomicI64::new(-1),
            dies_after: Mutex::default(),
            runs: Mutex::default(),
            watched: Mutex::default(),
            slow: Mutex::default(),
        })
    }

    /// The engine stands still until the disk has answered; clients do not.
    fn keeps_waiting(&self) {
        if let Some(traffic) = self.slow.lock().unwrap().as_ref() {
            traffic.goes_on();
        }
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.fails.load(Ordering::SeqCst) || self.appends.load(Ordering::SeqCst) == 0 {
            return Err(StoreError::Io {
                path: PathBuf::from("serin.db"),
                why: "the disk is full".into(),
            });
        }
        Ok(())
    }

    fn count(&self) {
        let left = self.appends.load(Ordering::SeqCst);
        self.appends.store(left - i64::from(left > 0), Ordering::SeqCst);
    }

    fn die_after(&self, rows: &[Row]) {
        let last = *self.dies_after.lock().unwrap();
        if rows.iter().any(|row| Some(row.fact.name()) == last) {
            self.fails.store(true, Ordering::SeqCst);
        }
    }
}

impl Store for Faulty {
    fn load(&self) -> Result<Vec<StoredService>, StoreError> {
        self.inner.load()
    }
    fn secret(&self, fresh: [u8; 16]) -> Result<[u8; 16], StoreError> {
        self.inner.secret(fresh)
    }
    fn append(
        &self,
        service: &ServiceName,
        rows: &[Row],
        saved: &Saved,
        keys: &[KeyRow],
    ) -> Result<Vec<u64>, StoreError> {
        self.keeps_waiting();
        self.check()?;
        self.count();
        let stored = self.inner.append(service, rows, saved, keys);
        self.die_after(rows);
        stored
    }
    fn begin_append(
        &self,
        service: &ServiceName,
        rows: &[Row],
        saved: &Saved,
        keys: &[KeyRow],
        tried: Tried,
    ) -> Begun {
        if let Err(error) = self.check() {
            return Begun::Done(Err(error));
        }
        self.count();
        let begun = self.inner.begin_append(service, rows, saved, keys, tried);
        self.die_after(rows);
        begun
    }
    fn append_later(
        &self,
        service: &ServiceName,
        rows: &[Row],
        saved: &Saved,
        keys: &[KeyRow],
        tried: Tried,
    ) -> Result<(), StoreError> {
        self.check()?;
        self.count();
        let coming = self.inner.append_later(service, rows, saved, keys, tried);
        self.die_after(rows);
        coming
    }
    fn append_all(&self, steps: &[Appended]) -> Result<Vec<Vec<u64>>, StoreError> {
        self.keeps_waiting();
        self.check()?;
        self.count();
        self.inner.append_all(steps)
    }
    fn take_back(
        &self,
        service: &ServiceName,
        ids: &[u64],
        before: Option<&Saved>,
        keys: &[KeyRow],
    ) -> Result<(), StoreError> {
        self.inner.take_back(service, ids, before, keys)
    }
    fn alive(&self, at: Timestamp) -> Result<(), StoreError> {
        self.check()?;
        self.inner.alive(at)
    }
    fn settled(&self, at: Timestamp) -> Result<(), StoreError> {
        self.keeps_waiting();
        self.check()?;
        self.inner.settled(at)
    }
    fn trouble(&self) -> Option<StoreError> {
        self.inner.trouble()
    }
    fn events(
        &self,
        service: Option<&str>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        self.inner.events(service, after, limit)
    }
    fn last_events(&self, service: &str, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
        self.inner.last_events(service, limit)
    }
    fn rollout_events(&self, service: &str, rollout: &str) -> Result<Vec<StoredEvent>, StoreError> {
        self.inner.rollout_events(service, rollout)
    }
    fn rollouts(&self, service: &str) -> Result<Vec<RolloutStatus>, StoreError> {
        self.inner.rollouts(service)
    }
    fn audit(&self, attempt: &Attempt) -> Result<(), StoreError> {
        self.check()?;
        self.inner.audit(attempt)
    }
    fn attempts(&self, service: &str, limit: usize) -> Result<Vec<Attempt>, StoreError> {
        self.inner.attempts(service, limit)
    }
    fn keys(&self, since: Timestamp) -> Result<Vec<(ServiceName, Timestamp, KeyRow)>, StoreError> {
        self.inner.keys(since)
    }
    fn save_run(&self, service: &str, row: &RunRow) -> Result<(), StoreError> {
        self.check()?;
        if let Some(live) = self
            .watched
            .lock()
            .unwrap()
            .as_ref()
            .and_then(|all| all.get(service))
        {
            let kept: serde_json::Value = serde_json::from_str(&row.json).unwrap();
            let phase = kept["run"]["phase"].as_str().unwrap().to_owned();
            self.runs
                .lock()
                .unwrap()
                .push((phase, live.cell.load_full().weight));
        }
        self.inner.save_run(service, row)
    }
    fn runs(&self, service: &str, limit: usize) -> Result<Vec<RunRow>, StoreError> {
        self.inner.runs(service, limit)
    }
    fn save_judges(&self, rows: &[JudgeRow], parts: &[Arc<RecordPart>]) -> Result<(), StoreError> {
        self.check()?;
        self.inner.save_judges(rows, parts)
    }
    fn judges(&self, service: &str) -> Result<Vec<JudgeRow>, StoreError> {
        self.inner.judges(service)
    }
    fn recorded(&self, service: &str, rollout: &str) -> Result<Vec<StretchRow>, StoreError> {
        self.inner.recorded(service, rollout)
    }
    fn unrecorded(&self, service: &str, rollout: &str) -> Result<Unrecorded, StoreError> {
        self.inner.unrecorded(service, rollout)
    }
    fn untold(&self, since: Timestamp) -> Result<(BTreeMap<String, Told>, Vec<Untold>), StoreError> {
        self.inner.untold(since)
    }
    fn hear(&self, receivers: &[String]) -> Result<(), StoreError> {
        self.check()?;
        self.inner.hear(receivers)
    }
    fn heard(&self, receiver: &str, service: &str, event: u64) -> Result<(), StoreError> {
        self.check()?;
        self.inner.heard(receiver, service, event)
    }
    fn sweep(&self, retention: Retention, now: Timestamp) -> Result<(), StoreError> {
        self.check()?;
        self.inner.sweep(retention, now)
    }
}

/// A service `shop` with `v1` stable, and whatever the test adds under it (indented by four) and beside it.
pub(super) fn config(service: &str, beside: &str) -> Arc<Config> {
    let text = format!(
        "listeners: [{{name: web, address: \"127.0.0.1:8080\"}}]\n\
         services:\n  - name: shop\n    stable: {{version: v1, endpoints: [\"http://127.0.0.1:9001\"]}}\n{service}\n{beside}\n"
    );
    let loaded = load_text(&text, "test.yaml", Path::new("."), &|_| None);
    loaded
        .unwrap_or_else(|problems| panic!("{problems:#?}\n{text}"))
        .config
}

/// 5 % for a minute, an error-rate gate of two measurements, 50 % for a minute.
pub(super) const STEPS: &str = "    strategy:
      canary:
        steps:
          - setWeight: 5
          - pause: {duration: 60s}
          - analysis: {templates: [{templateName: errors}]}
          - setWeight: 50
          - pause: {duration: 60s}";
pub(super) const ERRORS: &str = "analysisTemplates:
  - name: errors
    metrics:
      - name: error-rate
        interval: 10s
        count: 2
        successCondition: result < 0.02
        provider: {serin: {metric: errorRate, minSamples: 20, noDataTimeout: 2m}}";

/// One Serin and the world around it.
pub(super) struct Lab {
    pub(super) control: Control,
    pub(super) services: Services,
    pub(super) outside: Arc<Pretend>,
    pub(super) store: Arc<Faulty>,
    pub(super) clock: Arc<PausedClock>,
}

impl Lab {
    pub(super) fn new(config: Arc<Config>) -> Lab {
        let inner = Arc::new(SqliteStore::in_memory().unwrap());
        let clock = PausedClock::new();
        Lab::begin(config, Faulty::new(inner), clock, Arc::default()).unwrap()
    }

    fn begin(
        config: Arc<Config>,
        store: Arc<Faulty>,
        clock: Arc<PausedClock>,
        outside: Arc<Pretend>,
    ) -> Result<Lab, super::StartError> {
        let services = Services::new(Registry::new(1).unwrap());
        let options = StartOptions {
            config,
            services: services.clone(),
            clock: clock.clone(),
            store: OpenStore {
                store: store.clone(),
                stateless: false,
            },
            seed: [7; 32],
        };
        let control = Control::start_with(options, outside.clone())?;
        Ok(Lab {
            control,
            services,
            outside,
            store,
            clock,
        })
    }

    /// The process is killed, and starts again after `down`; what was not stored is lost.
    pub(super) async fn kill_and_restart(self, config: Arc<Config>, down: Duration) -> Lab {
        let Lab {
            control,
            outside,
            store,
            clock,
            ..
        } = self;
        // Nothing that the dying engine does after this reaches the store.
        let fresh = Faulty::new(store.inner.clone());
        store.fails.store(true, Ordering::SeqCst);
        drop(control);
        tokio::time::sleep(down).await;
        Lab::begin(config, fresh, clock, outside).unwrap()
    }

    pub(super) fn live(&self) -> Arc<LiveService> {
        self.services.get("shop").unwrap()
    }

    pub(super) fn status(&self) -> ServiceStatus {
        self.control.status("shop").unwrap()
    }

    /// Somebody sets the wall clock.
    pub(super) fn set_wall(&self, seconds: i64) {
        self.clock.set.store(seconds * 1000, Ordering::SeqCst);
    }

    /// The share that is really published.
    pub(super) fn weight(&self) -> Weight {
        self.live().cell.load_full().weight
    }

    /// Requests that a role of the split in force served.
    pub(super) fn serve(&self, role: Role, ok: u32, failed: u32) {
        let split = self.live().cell.load_full();
        let evidence = &split.target(role).evidence;
        for _ in 0..ok {
            evidence.record(0, Outcome::Ok, Duration::from_millis(5));
        }
        for _ in 0..failed {
            evidence.record(0, Outcome::Failed, Duration::from_millis(5));
        }
    }

    pub(super) async fn command(&self, command: Command) -> Result<Accepted, Refusal> {
        self.control
            .command("shop", command, Expect::default(), caller())
            .await
    }

    pub(super) async fn deploy(&self, version: &str, port: u16) -> Result<Accepted, Refusal> {
        self.command(Command::Deploy(Deploy::of(v(version), vec![url(port)])))
            .await
    }

    /// Releases the version on trial, and brings in another one so that it is where `stands` says five seconds before the former
    /// stable version ceases to be warm.
    pub(super) async fn released_and_another(
        &self,
        version: &str,
        port: u16,
        stands: impl Fn(&ServiceStatus) -> bool,
    ) {
        let promote = Command::Promote {
            full: true,
            skip_analysis: true,
        };
        self.command(promote).await.unwrap();
        seconds(590).await;
        self.deploy(version, port).await.unwrap();
        self.until("another one", |status| {
            status.canary == Some(v(version)) && stands(status)
        })
        .await;
        let versions = self.status().versions;
        assert!(versions.iter().any(|one| one.state == VersionState::Warm));
    }

    /// Waits, at most twenty minutes of paused time, until it holds.
    pub(super) async fn until(&self, what: &str, holds: impl Fn(&ServiceStatus) -> bool) -> ServiceStatus {
        for _ in 0..12_000 {
            let status = self.status();
            if holds(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("never {what}: {:#?}", self.status());
    }
}

/// What is stored of every service is what comes of its facts.
fn assert_replayed(store: &dyn Store) {
    for service in store.load().unwrap() {
        assert_eq!(
            service.replayed.as_ref(),
            Some(&service.saved),
            "{}",
            service.name
        );
    }
}

pub(super) fn caller() -> Caller {
    Caller {
        actor: "ci".into(),
        role: "admin".into(),
        source: "test".into(),
        ..Caller::default()
    }
}

pub(super) fn v(name: &str) -> VersionName {
    VersionName::new(name).unwrap()
}

pub(super) fn url(port: u16) -> EndpointUrl {
    format!("http://127.0.0.1:{port}").parse().unwrap()
}

pub(super) async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}
