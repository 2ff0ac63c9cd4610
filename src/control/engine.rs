//! The one task that owns all rollouts.
//!
//! It waits: for commands, trips, finished measurements and probes, the clock. Whatever happens becomes a fact; `record`
//! is the only way a fact comes into force (`together` takes those of many services at once). Whether it is stored or acted upon
//! first is said by `order`.

use super::{
    Attempt, Caller, Change, NotificationTest, Refusal, RefusalKind, ReloadRefused, StartError,
    command::{Accepted, Command, Expect},
    handle::Shared,
    judging,
    keeping::Keeping,
    keys::Keys,
    ledger::{Fact, Saved},
    managed::Managed,
    notify::Notifier,
    order,
    providers::{Outside, Reply},
    raising::Waiter,
    store::{KEY_LIFE, KeyRow, Row, Store, StoreError},
};
use crate::{
    config::Config,
    model::{Clock, ServiceName, Timestamp, VersionName},
    rollout::{Event, Refused, Stage},
    upstream::{Endpoint, Services, TripReport},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

/// The longest the engine sleeps.
const BEAT: Duration = Duration::from_secs(1);
/// The longest that the answer to what acts first waits for the disk.
const ANSWERED: Duration = Duration::from_secs(3);
/// How often series of versions that are gone are looked through.
const TIDY: Duration = Duration::from_secs(60);

/// Sends requests where a configuration says, at the moment at which the engine calls it.
pub(crate) struct Route(pub(crate) Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Route")
    }
}

/// What the engine can be told.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Do something to a service.
    Command {
        service: String,
        command: Command,
        expect: Expect,
        caller: Caller,
        /// For `undo`: whether the target has just answered its probes.
        warm: bool,
        reply: oneshot::Sender<Result<Accepted, Refusal>>,
    },
    /// Where an `undo` would lead, if that pool is warm: its endpoints and how to probe them.
    UndoTarget {
        service: String,
        to: Option<VersionName>,
        reply: oneshot::Sender<Option<UndoTarget>>,
    },
    /// Take a configuration, or, without a way to route by it, only say what would be wrong with it.
    Configure {
        config: Arc<Config>,
        route: Option<Route>,
        reply: oneshot::Sender<Result<Vec<Change>, ReloadRefused>>,
    },
    /// An attempt was refused before it came here.
    Attempted(Box<Attempt>),
    /// An external provider has answered.
    Measured {
        service: ServiceName,
        run: u64,
        metric: usize,
        result: Result<Reply, String>,
    },
    /// The endpoints of a version that waits have been probed.
    Probed {
        service: ServiceName,
        version: VersionName,
        results: Vec<(Arc<Endpoint>, Result<(), String>)>,
        /// Those that have no address to probe.
        unresolved: Vec<String>,
    },
    /// What raises a service's exposure is on the disk, or will not be.
    Stored(ServiceName),
    /// Post a test message; not answered when there is no such receiver.
    TestNotification {
        name: String,
        reply: oneshot::Sender<NotificationTest>,
    },
    /// Store the last sign of life and end.
    Shutdown(oneshot::Sender<()>),
}

/// A warm pool.
#[derive(Debug)]
pub(crate) struct UndoTarget {
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    pub(crate) path: Option<String>,
    pub(crate) min_healthy: usize,
}

/// Why a fact is recorded, for the history.
#[derive(Debug, Default)]
pub(super) struct By {
    pub(super) caller: Option<Caller>,
    pub(super) numbers: Option<serde_json::Value>,
    pub(super) key: Option<KeyRow>,
}

/// What facts of one service lead to, before it is in force.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) at: Timestamp,
    pub(super) rows: Vec<Row>,
    pub(super) next: Saved,
    pub(super) was_aborted: bool,
    /// It comes into force before it is stored (`order`).
    pub(super) acts_first: bool,
}

/// What has become of a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recorded {
    /// It is in force, or changes nothing.
    InForce,
    /// It comes into force as soon as it is stored (`raising`).
    OnItsWay,
    /// Nothing: another one is on its way, or has just come into force before it. What happens by itself comes again.
    NotYet,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(super) config: Arc<Config>,
    pub(super) services: Services,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) store: Arc<dyn Store>,
    pub(super) stateless: bool,
    pub(super) outside: Arc<dyn Outside>,
    pub(super) rng: StdRng,
    pub(super) secret: [u8; 16],
    pub(super) managed: BTreeMap<ServiceName, Managed>,
    /// Services of the store that the file does not name now: they come back with what they were.
    pub(super) resting: BTreeMap<ServiceName, Saved>,
    pub(super) shared: Arc<Shared>,
    pub(super) notifier: Notifier,
    pub(super) inbox: mpsc::WeakUnboundedSender<Ask>,
    /// Wall and monotonic clock at the start: between them time never jumps.
    epoch: (Timestamp, Duration),
    pub(super) keeping: Keeping,
    /// For how long nobody served before this start.
    pub(super) downtime: Duration,
    tidied: Option<Timestamp>,
    /// When services at rest were looked at last.
    looked: Timestamp,
    /// The last look of all judges, and the last one out of turn.
    judged: Timestamp,
    alarmed: Duration,
    /// Comes when what was just acted upon has been tried to be stored.
    pub(super) storing: Option<oneshot::Receiver<()>>,
    /// What was answered to whom.
    pub(super) keys: Keys,
    /// Waits for what comes into force when it is stored.
    pub(super) waiter: Waiter,
    /// What had to wait for that, and is answered in this turn.
    pub(super) put_off: VecDeque<Ask>,
}

/// What [`Engine::open`] needs.
pub(crate) struct Parts {
    pub(crate) config: Arc<Config>,
    pub(crate) services: Services,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) stateless: bool,
    pub(crate) outside: Arc<dyn Outside>,
    pub(crate) seed: [u8; 32],
    pub(crate) shared: Arc<Shared>,
    pub(crate) inbox: mpsc::WeakUnboundedSender<Ask>,
}

impl Engine {
    /// Restores every rollout and publishes its split.
    pub(crate) fn open(parts: Parts) -> Result<Engine, StartError> {
        let failed = |error: StoreError| StartError::Store(error.to_string());
        let mut rng = StdRng::from_seed(parts.seed);
        let mut fresh = [0; 16];
        rng.fill_bytes(&mut fresh);
        let secret = parts.store.secret(fresh).map_err(failed)?;
        let stored = parts.store.load().map_err(failed)?;
        let last = stored.iter().filter_map(|service| service.alive).max();
        // A wall clock that was set back over the restart must not make times go back.
        let wall = last.map_or(parts.clock.wall(), |last| last.max(parts.clock.wall()));
        let mut notifier = Notifier::new(
            Arc::clone(&parts.outside),
            Arc::clone(&parts.clock),
            parts.services.metrics().control.clone(),
            Arc::clone(&parts.store),
            secret,
            parts.seed,
        );
        notifier.configure(&parts.config);
        let mut keys = Keys::default();
        for (service, at, key) in parts.store.keys(wall.minus(KEY_LIFE)).map_err(failed)? {
            keys.keep(service, at, key);
        }
        let mut engine = Engine {
            notifier,
            epoch: (wall, parts.clock.monotonic()),
            config: Arc::clone(&parts.config),
            services: parts.services,
            clock: parts.clock,
            store: parts.store,
            stateless: parts.stateless,
            outside: parts.outside,
            rng,
            secret,
            managed: BTreeMap::new(),
            resting: BTreeMap::new(),
            shared: parts.shared,
            inbox: parts.inbox,
            keeping: Keeping::new(wall),
            downtime: last.map_or(Duration::ZERO, |last| wall.since(last)),
            tidied: None,
            looked: Timestamp::default(),
            judged: wall,
            alarmed: Duration::ZERO,
            storing: None,
            keys,
            waiter: Waiter::default(),
            put_off: VecDeque::new(),
        };
        for service in stored {
            let name = &service.name;
            let saved = if let Some(replayed) = service.replayed {
                if replayed != service.saved {
                    error!(service = %name, "the kept state of `{name}` differs from its events; the events count");
                }
                replayed
            } else {
                error!(service = %name, "the events of `{name}` cannot be replayed; the kept state counts");
                service.saved
            };
            engine.resting.insert(service.name, saved);
        }
        engine.tell_again();
        engine.notifier.are_heard(&parts.config);
        engine.begin(&parts.config).map_err(|refusal| {
            let why = refusal.message;
            StartError::Store(format!("{why}; `--stateless` serves stable meanwhile"))
        })?;
        Ok(engine)
    }

    /// The time: moves with the monotonic clock, so that no jump of the wall clock ends or stretches a pause.
    pub(super) fn now(&self) -> Timestamp {
        let (wall, monotonic) = self.epoch;
        wall.plus(self.clock.monotonic().saturating_sub(monotonic))
    }

    /// A random id, short enough to be read out.
    pub(super) fn fresh_id(&mut self) -> String {
        format!("{:012x}", self.rng.next_u64() >> 16)
    }

    /// Runs until it is told to stop or nobody is left who could tell it anything.
    pub(crate) async fn run(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Ask>,
        mut trips: mpsc::UnboundedReceiver<TripReport>,
    ) {
        loop {
            let sleep = tokio::time::sleep(self.until_next());
            let alarm = self.next_alarm();
            // Trips first: they are the reason why this order is not random.
            tokio::select! {
                biased;
                Some(trip) = trips.recv() => self.tripped(&trip),
                () = alarm => {
                    self.alarmed = self.clock.monotonic();
                    self.alarmed();
                    self.answer_put_off();
                    continue;
                }
                ask = inbox.recv() => match ask {
                    Some(Ask::Shutdown(reply)) => {
                        self.end();
                        self.notifier.finish().await;
                        // The asker may have given up waiting.
                        let _ = reply.send(());
                        return;
                    }
                    Some(ask) => self.answer(ask),
                    None => {
                        self.end();
                        return;
                    }
                },
                () = sleep => {}
            }
            // Before whatever is due: what was asked for before comes before it.
            self.answer_put_off();
            self.turn();
        }
    }

    /// A canary's request has failed, and the last one that was looked at at once is some time ago.
    fn next_alarm(&self) -> impl Future<Output = ()> + use<> {
        let failures = Arc::clone(self.services.failures());
        let passed = self.clock.monotonic().saturating_sub(self.alarmed);
        let wait = judging::SOONEST.saturating_sub(passed);
        async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            failures.notified().await;
        }
    }

    fn answer(&mut self, ask: Ask) {
        let Some(ask) = self.put_off(ask) else { return };
        match ask {
            Ask::Command {
                service,
                command,
                expect,
                caller,
                warm,
                reply,
            } => {
                self.storing = None;
                let Some((result, reply)) = self.command(&service, command, &expect, caller, warm, reply)
                else {
                    return;
                };
                let storing = self.storing.take();
                // The asker may have given up waiting; it is done all the same.
                let answer = move || drop(reply.send(result));
                match storing {
                    None => answer(),
                    // What is answered is stored if the disk takes it; only the asker waits.
                    Some(storing) => drop(tokio::spawn(async move {
                        let _ = tokio::time::timeout(ANSWERED, storing).await;
                        answer();
                    })),
                }
            }
            Ask::Stored(service) => self.stored(&service),
            Ask::UndoTarget { service, to, reply } => {
                let _ = reply.send(self.undo_target(&service, to.as_ref()));
            }
            Ask::Configure { config, route, reply } => {
                let result = match route {
                    None => self.refusals(&config).map(|()| Vec::new()),
                    Some(route) => self.configure(&config, route),
                };
                let _ = reply.send(result);
            }
            Ask::Attempted(mut attempt) => {
                let standing = self.standing(&attempt.service);
                (attempt.before, attempt.after) = (standing.clone(), standing);
                self.audit(&attempt);
            }
            Ask::Measured {
                service,
                run,
                metric,
                result,
            } => self.measured(&service, run, metric, result),
            Ask::Probed {
                service,
                version,
                results,
                unresolved,
            } => self.probed(&service, &version, results, &unresolved),
            Ask::TestNotification { name, reply } => self.notifier.test(&name, reply),
            Ask::Shutdown(_) => {}
        }
    }

    /// What waited for something that has been stored now, or given up.
    fn answer_put_off(&mut self) {
        while let Some(ask) = self.put_off.pop_front() {
            self.answer(ask);
        }
    }

    /// Everything that is due.
    pub(super) fn turn(&mut self) {
        let now = self.now();
        self.flush(now);
        // With a thousand services and one that is judged ten times a second, going through all would be most of the work.
        let everybody = now.since(self.looked) >= judging::AT_REST;
        if everybody {
            self.looked = now;
        }
        let looks = |(_, managed): &(&ServiceName, &Managed)| everybody || !managed.rests(now);
        let looked_at = self.managed.iter().filter(looks);
        let names: Vec<ServiceName> = looked_at.map(|(name, _)| name.clone()).collect();
        // All together, so that many services do not wake the engine one after the other.
        let judges = everybody || now.since(self.judged) >= judging::TICK;
        if judges {
            self.judged = now;
        }
        for name in &names {
            self.tick(name, now);
            if judges {
                self.judge_if_due(name, now);
            }
            self.observe(name, now);
            self.probe_if_waiting(name, now);
            self.watch_fate(name, now);
            self.afterlife(name, now);
            self.sample(name, now);
            self.watch_alarm(name, now);
            self.show_time(name, now);
            self.answer_put_off();
        }
        self.keep(now);
        if self.tidied.is_none_or(|tidied| now.since(tidied) >= TIDY) {
            self.tidied = Some(now);
            self.services.metrics().sweep(now);
        }
        self.answer_put_off();
    }

    fn tick(&mut self, name: &ServiceName, now: Timestamp) {
        let Some(managed) = self.managed.get(name) else {
            return;
        };
        let due = managed.saved.state.next_wakeup(&managed.saved.plan);
        if due.is_none_or(|due| due > now) || managed.quiet_until > now {
            return;
        }
        self.happened(name, Event::Tick, None);
    }

    /// Records an event that nobody asked for. When it cannot be stored it comes again by itself.
    pub(super) fn happened(
        &mut self,
        name: &ServiceName,
        event: Event,
        numbers: Option<serde_json::Value>,
    ) -> bool {
        let what = event.name();
        let by = By {
            numbers,
            ..By::default()
        };
        match self.record(name, vec![Fact::Moved { by: event }], by) {
            Ok(recorded) => recorded == Recorded::InForce,
            Err(refusal) => {
                self.come_again_later(name);
                if refusal.kind != RefusalKind::Unavailable {
                    warn!(service = %name, event = what, "`{what}` did not apply to `{name}`: {refusal}");
                }
                false
            }
        }
    }

    /// What comes by itself was refused: not at once again.
    pub(super) fn come_again_later(&mut self, name: &ServiceName) {
        let now = self.now();
        if let Some(managed) = self.managed.get_mut(name) {
            managed.quiet_until = now.plus(BEAT);
        }
    }

    /// The only way a fact comes into force, besides [`Engine::record_all`].
    pub(super) fn record(
        &mut self,
        name: &ServiceName,
        facts: Vec<Fact>,
        by: By,
    ) -> Result<Recorded, Refusal> {
        if self.is_raising(name) {
            let overtakes = !facts.iter().all(order::waits)
                && matches!(self.prepare(name, facts.clone(), &by), Ok(Some(step)) if step.acts_first);
            if !overtakes {
                return Ok(Recorded::NotYet);
            }
            let known = self.facts(name);
            self.give_up_raise(name);
            // It was decided for how things stood before the step that could not be given up any more.
            if self.facts(name) != known {
                return Ok(Recorded::NotYet);
            }
        }
        match self.prepare(name, facts, &by)? {
            Some(step) => self.bring_about(name, step, by.key),
            None => Ok(Recorded::InForce),
        }
    }

    /// How many facts of the service are in force.
    pub(super) fn facts(&self, name: &ServiceName) -> Option<u64> {
        self.managed.get(name).map(|managed| managed.saved.facts)
    }

    /// What facts lead to; nothing, when they change nothing.
    pub(super) fn prepare(
        &mut self,
        name: &ServiceName,
        facts: Vec<Fact>,
        by: &By,
    ) -> Result<Option<Step>, Refusal> {
        let now = self.now();
        let store_fails = self.store_trouble().is_some();
        let Some(managed) = self.managed.get_mut(name) else {
            return Err(no_service(name.as_str()));
        };
        let before = managed.saved.exposure();
        let was_aborted = matches!(managed.saved.state.stage, Stage::Aborted(_));
        let numbers = by.numbers.clone().unwrap_or_else(|| managed.numbers());
        let mut next = managed.saved.clone();
        let mut rows = Vec::with_capacity(facts.len());
        for fact in facts {
            let (after, effects) = next.apply(&fact, now).map_err(|refused| refusal(&refused))?;
            // An event that changes nothing but the count is not worth a line.
            let idle = Saved {
                facts: next.facts,
                ..after.clone()
            };
            let keeps = matches!(
                fact,
                Fact::Moved {
                    by: Event::Restarted { .. }
                }
            );
            if idle == next && !keeps {
                managed.quiet_until = now.plus(BEAT);
                continue;
            }
            let (index, _) = after.state.step(&after.plan);
            rows.push(Row {
                at: now,
                rollout: after.rollout.as_ref().map(|rollout| rollout.id.clone()),
                phase: after.state.phase(),
                step: after.state.rolling().map(|_| index),
                weight: after.state.weight(),
                message: after.state.message(&after.plan),
                numbers: numbers.clone(),
                caller: by.caller.clone(),
                telling: self.notifier.telling(name, effects),
                fact,
            });
            next = after;
        }
        if rows.is_empty() {
            return Ok(None);
        }
        // While the store is known to fail the steps stand still.
        let by_itself = by.caller.is_none() && !store_fails;
        let acts_first = order::acts_first(&rows, &before, &next.exposure(), by_itself);
        Ok(Some(Step {
            at: now,
            rows,
            next,
            was_aborted,
            acts_first,
        }))
    }

    /// Stores and acts, in the order that the step asks for.
    pub(super) fn bring_about(
        &mut self,
        name: &ServiceName,
        step: Step,
        key: Option<KeyRow>,
    ) -> Result<Recorded, Refusal> {
        if !step.acts_first {
            return self.raise(name, step, key);
        }
        let Step {
            at,
            rows,
            next,
            was_aborted,
            acts_first: _,
        } = step;
        let saved = next.clone();
        self.commit(name, next, at);
        if let Some(key) = &key {
            self.keys.keep(name.clone(), at, key.clone());
        }
        // Those who follow the events hear of it once it is stored and has a number.
        self.tell(name, &rows, &[], was_aborted);
        self.append_later(name, rows, &saved, key);
        Ok(Recorded::InForce)
    }

    /// The state is in force: the world follows.
    pub(super) fn commit(&mut self, name: &ServiceName, next: Saved, now: Timestamp) {
        if let Some(managed) = self.managed.get_mut(name) {
            managed.saved = next;
        }
        self.perform(name, now);
    }

    /// One log line per decision, the counters, the watchers, and who is notified. `ids`: none, where the store's thread tells
    /// those who follow the events (`telling`).
    pub(super) fn tell(&mut self, name: &ServiceName, rows: &[Row], ids: &[u64], was_aborted: bool) {
        for row in rows {
            info!(
                service = %name,
                rollout = row.rollout.as_deref().unwrap_or("-"),
                event = row.fact.name(),
                phase = %row.phase,
                step = row.step,
                weight = %row.weight,
                actor = row.caller.as_ref().map_or("serin", |caller| caller.actor.as_str()),
                "`{name}`: {} -> {} at {}{}{}",
                row.fact.name(),
                row.phase,
                row.weight,
                if row.message.is_empty() { "" } else { ": " },
                row.message
            );
        }
        self.shared.stored(name, rows, ids);
        let Some(managed) = self.managed.get(name) else {
            return;
        };
        if let Stage::Aborted(aborted) = &managed.saved.state.stage
            && !was_aborted
        {
            let rollouts = &self.services.metrics().control.rollouts;
            rollouts.count_abort(name.as_str(), aborted.cause);
        }
        self.publish_status(name);
        self.notify(name, rows);
    }

    fn until_next(&self) -> Duration {
        let now = self.now();
        let due = self
            .managed
            .values()
            .filter_map(|managed| managed.next_due(now))
            .map(|due| due.since(now))
            .min();
        let judging = self.managed.values().any(Managed::is_judging);
        let judged = judging.then(|| self.judged.plus(judging::TICK).since(now));
        let looks = self.looked.plus(judging::AT_REST).since(now);
        let due = due.into_iter().chain(judged).chain([looks]).min();
        due.unwrap_or(BEAT).clamp(Duration::from_millis(1), BEAT)
    }

    fn end(&mut self) {
        self.settle_raises();
        self.refuse_put_off();
        self.keep_all();
        for managed in self.managed.values_mut() {
            managed.stop_tasks();
        }
        self.shared.set_ready(false);
    }
}

/// A refused event, as it is answered.
pub(super) fn refusal(refused: &Refused) -> Refusal {
    Refusal {
        kind: RefusalKind::Conflict,
        code: "wrongState".to_owned(),
        message: refused.to_string(),
        hint: refused.hint.clone(),
        legal: refused.legal.clone(),
    }
}

/// There is no such service.
pub(super) fn no_service(name: &str) -> Refusal {
    Refusal::new(
        RefusalKind::NotFound,
        "noService",
        format!("there is no service `{name}`"),
    )
    .hint("get lists the services there are")
}
