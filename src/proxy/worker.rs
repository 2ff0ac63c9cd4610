//! One data-plane thread: its own runtime, listener sockets and upstream connections.
//!
//! Nothing is shared between workers on the request path but the table, the splits and their tickets.

use super::{
    access_log::Lines,
    admission::Place,
    apart::Shelf,
    arrival::{self, Arrival},
    body::RequestBody,
    closing::Resets,
    connection::{self, Open},
    gather::Lent,
    io::{LINGER, Progress},
    leftovers::Leftovers,
    listener::Socket,
    observers::Observers,
    retry::{self, Budget},
    routes::{Following, Routes},
    streams::Streams,
    table::{Entry, Table},
};
use crate::{
    config::Listener,
    metrics::{ListenerMetrics, Registry, VersionKey},
    upstream::{Descriptors, Pools, Target},
};
use arc_swap::ArcSwap;
use futures_util::FutureExt;
use http::HeaderValue;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    io,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_rustls::TlsAcceptor;

/// How the data plane is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Go on.
    No,
    /// Accept nothing new, finish what is in flight, then return.
    Drain,
    /// Return now.
    Now,
}

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The routes in force.
    pub table: Arc<ArcSwap<Table>>,
    /// Where requests are counted.
    pub metrics: Registry,
    /// The zero of every monotonic time in the process.
    pub epoch: Instant,
    /// The files that clients and connections to versions may have open.
    pub descriptors: Arc<Descriptors>,
    /// Who wants to be told about requests.
    pub observers: Observers,
    /// Each worker counts its own up every second; one that stands still is stuck.
    pub beats: Box<[AtomicU64]>,
}

/// A listener as one worker serves it.
pub(super) struct ListenerState {
    pub(super) index: usize,
    pub(super) config: Arc<Listener>,
    pub(super) metrics: Arc<ListenerMetrics>,
    pub(super) tls: Option<TlsAcceptor>,
    /// Whether a connection without the PROXY header it needs has been told of, once.
    pub(super) complained: Cell<bool>,
}

/// Something the log is told once a second, however often it happens: when this machine is out of something, the log would be
/// the next to suffer.
#[derive(Debug, Default)]
pub(super) struct Complaint(Cell<Option<Instant>>);

impl Complaint {
    pub(super) fn is_due(&self) -> bool {
        let now = Instant::now();
        let recent = |last: Instant| now.saturating_duration_since(last) < Duration::from_secs(1);
        let due = !self.0.get().is_some_and(recent);
        if due {
            self.0.set(Some(now));
        }
        due
    }
}

/// One worker's own state.
pub(super) struct WorkerState {
    pub(super) index: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) pools: Pools<RequestBody>,
    following: RefCell<Following>,
    dice: RefCell<SmallRng>,
    pub(super) open: RefCell<HashMap<u64, Rc<Progress>>>,
    next_key: Cell<u64>,
    /// What the next key was when so many were open that idle ones were told to rest.
    crowd: Cell<u64>,
    /// Client connections of this worker, those included whose protocol is not known yet.
    pub(super) connections: Cell<u32>,
    /// How long an idle client connection lasts, by listener.
    keep_alive: Box<[Duration]>,
    /// When none was last found that could make way for another.
    pub(super) all_busy: Cell<Instant>,
    /// No descriptor for a client; none for a connection to a version.
    pub(super) cannot_accept: Complaint,
    pub(super) cannot_connect: Complaint,
    draining: Cell<bool>,
    budgets: RefCell<HashMap<VersionKey, Budget>>,
    /// Its part of the access log.
    pub(super) lines: Lines,
    /// The streams of its HTTP/2 clients.
    pub(super) streams: Rc<Streams>,
    /// What clients are still sending though they have been answered.
    pub(super) leftovers: Leftovers,
    /// Where the futures of its requests are.
    pub(super) shelf: Shelf,
    /// What its HTTP/2 connections gather their writes in.
    pub(super) lent: Lent,
}

/// After this time an idle HTTP/1.1 connection waits without hyper's buffers; in a crowd, when so many more have come, earlier.
const REST: Duration = Duration::from_secs(2);
const REST_IN_A_CROWD: Duration = Duration::from_millis(50);
const MOST_AWAKE: u64 = 64;

/// How long before the end of a drain tunnels are closed.
const TO_CLOSE: Duration = Duration::from_millis(1500);

impl WorkerState {
    /// The routes in force; a request asks once and keeps them to its end.
    pub(super) fn routes(&self) -> Rc<Routes> {
        Rc::clone(self.following.borrow_mut().latest())
    }

    /// The time from the process' epoch to `at`.
    pub(super) fn since_epoch(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.shared.epoch)
    }

    pub(super) fn dice64(&self) -> u64 {
        self.dice.borrow_mut().next_u64()
    }

    pub(super) fn dice128(&self) -> u128 {
        u128::from(self.dice64()) << 64 | u128::from(self.dice64())
    }

    /// A fresh `X-Request-Id`: 128 random bits in hexadecimal.
    pub(super) fn request_id(&self) -> HeaderValue {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0u8; 32];
        for half in text.chunks_exact_mut(16) {
            let bits = self.dice64().to_be_bytes();
            for (pair, byte) in half.chunks_exact_mut(2).zip(bits) {
                pair[0] = HEX[usize::from(byte >> 4)];
                pair[1] = HEX[usize::from(byte & 15)];
            }
        }
        HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("0"))
    }

    /// Whether one more retry is within the budget; takes it when it is.
    pub(super) fn may_retry(&self, entry: &Entry, target: &Target) -> bool {
        let now = self.since_epoch(Instant::now());
        let requests = target.metrics.shard(self.index).assigned_total();
        let rule = retry::Rule {
            share: entry.service.retries.budget.as_ratio(),
            workers: self.shared.metrics.workers(),
        };
        let mut budgets = self.budgets.borrow_mut();
        if let Some(budget) = budgets.get_mut(&target.metrics.key) {
            return budget.spend(now, requests, rule);
        }
        // What has been served until the first retry has earned its share.
        let mut budget = Budget::new(now, 0, rule);
        let allowed = budget.spend(now, requests, rule);
        budgets.insert(target.metrics.key.clone(), budget);
        allowed
    }

    /// Adds a connection to the open ones; it leaves when the handle is dropped.
    pub(super) fn track(self: &Rc<Self>, progress: &Rc<Progress>) -> Open {
        let key = self.next_key.get();
        self.next_key.set(key + 1);
        self.open.borrow_mut().insert(key, Rc::clone(progress));
        self.rest_in_a_crowd();
        Open {
            worker: Rc::clone(self),
            key,
        }
    }

    pub(super) fn untrack(&self, key: u64) {
        self.open.borrow_mut().remove(&key);
    }

    /// Tells connections to close: HTTP/2 ones at once, for GOAWAY loses nothing; HTTP/1.1 ones when patience is over.
    fn drain(&self, patient: bool) {
        let open: Vec<Rc<Progress>> = self.open.borrow().values().cloned().collect();
        for progress in open {
            if !patient || progress.http2 {
                progress.drain();
            }
        }
    }

    /// When many connections come at once, those before them make room for their buffers early.
    fn rest_in_a_crowd(&self) {
        let (open, opened) = (self.open.borrow(), self.next_key.get());
        // A part of them each time: the cost of looking at all is spread over as many as pay for it.
        let enough = MOST_AWAKE.max(u64::try_from(open.len() / 16).unwrap_or(u64::MAX));
        if opened - self.crowd.get() < enough {
            return;
        }
        self.crowd.set(opened);
        let now = Instant::now();
        for progress in open.values() {
            let since = progress.idle_since(now);
            if since.is_some_and(|since| now.saturating_duration_since(since) >= REST_IN_A_CROWD) {
                progress.rest();
            }
        }
    }

    /// Tells connections to close that have waited for a next request for too long, and those to rest that have for a while.
    fn close_idle(&self, now: Instant) {
        for progress in self.open.borrow().values() {
            let limit = self
                .keep_alive
                .get(progress.listener)
                .copied()
                .unwrap_or(Duration::MAX);
            let Some(since) = progress.idle_since(now) else {
                progress.look_at_ends();
                continue;
            };
            let waited = now.saturating_duration_since(since);
            if waited >= limit {
                progress.drain();
            } else if waited >= REST {
                progress.rest();
            }
        }
    }

    /// Asks every tunnel whether it must end.
    fn look_at_tunnels(&self, now: Instant) {
        for progress in self.open.borrow().values() {
            if let Some(tunnel) = &*progress.tunnel.borrow() {
                tunnel.look(now);
            }
        }
    }

    fn end_tunnels(&self) {
        for progress in self.open.borrow().values() {
            if let Some(tunnel) = &*progress.tunnel.borrow() {
                tunnel.end();
            }
        }
    }

    /// Whether each answer shall be its connection's last.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    fn busy(&self) -> usize {
        self.open
            .borrow()
            .values()
            .filter(|progress| !progress.is_idle())
            .count()
    }
}

/// Where one worker lets clients in.
pub struct Inlet {
    /// What the operator wrote.
    pub config: Arc<Listener>,
    /// Where they come from.
    pub socket: Socket,
    /// How they are talked to; none: without TLS.
    pub tls: Option<TlsAcceptor>,
}

/// What one worker is made of.
pub struct WorkerParts {
    /// From 0; also its shard in every metric.
    pub index: usize,
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// Its own sockets, in the order of the configuration's listeners.
    pub inlets: Vec<Inlet>,
    /// Seeds its dice.
    pub seed: u64,
    /// When to stop.
    pub stop: watch::Receiver<Stop>,
    /// How long what is in flight may take once it drains.
    pub grace: Duration,
}

/// Runs a worker on the current thread until it is told to stop and has drained.
pub fn run(parts: WorkerParts) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(work(parts))
}

async fn work(parts: WorkerParts) -> io::Result<()> {
    let WorkerParts {
        index,
        shared,
        inlets,
        seed,
        mut stop,
        grace,
    } = parts;
    let following = RefCell::new(Following::new(&shared.table));
    let epoch = shared.epoch;
    let keep_alive = inlets
        .iter()
        .map(|inlet| inlet.config.timeouts.keep_alive.as_duration())
        .collect();
    let worker = Rc::new(WorkerState {
        index,
        shared,
        following,
        pools: Pools::default(),
        dice: RefCell::new(SmallRng::seed_from_u64(seed)),
        open: RefCell::default(),
        next_key: Cell::new(0),
        crowd: Cell::new(0),
        connections: Cell::new(0),
        keep_alive,
        all_busy: Cell::new(epoch),
        cannot_accept: Complaint::default(),
        cannot_connect: Complaint::default(),
        draining: Cell::new(false),
        budgets: RefCell::default(),
        lines: Lines::default(),
        streams: Rc::default(),
        leftovers: Leftovers::default(),
        shelf: Shelf::default(),
        lent: Lent::default(),
    });
    let mut accepting = Vec::new();
    for (position, inlet) in inlets.into_iter().enumerate() {
        let Inlet { config, socket, tls } = inlet;
        let metrics = worker.shared.metrics.listener(&config.name);
        let listener = Rc::new(ListenerState {
            index: position,
            config,
            metrics,
            tls,
            complained: Cell::new(false),
        });
        accepting.push(tokio::task::spawn_local(socket.accept_all(
            Rc::clone(&worker),
            listener,
            stop.clone(),
        )));
    }
    let sweeper = tokio::task::spawn_local(sweep(Rc::clone(&worker)));
    let logging = tokio::task::spawn_local(hand_over_lines(Rc::clone(&worker)));
    let told = stop
        .wait_for(|stop| *stop != Stop::No)
        .await
        .map_or(Stop::Now, |stop| *stop);
    if told == Stop::Drain {
        worker.draining.set(true);
        for task in accepting {
            // It ends by itself; an error has nobody to be told to any more.
            let _ = task.await;
        }
        drain(&worker, &mut stop, grace).await;
    }
    sweeper.abort();
    logging.abort();
    worker.pools.clear();
    Ok(())
}

/// Lets what is in flight finish, for at most `grace`.
async fn drain(worker: &Rc<WorkerState>, stop: &mut watch::Receiver<Stop>, grace: Duration) {
    let deadline = tokio::time::sleep(grace);
    // A tunnel has no natural end: those that are left are told a little earlier, while there is time to say goodbye.
    let last_call = async {
        tokio::time::sleep(grace.saturating_sub(TO_CLOSE.min(grace / 4))).await;
        worker.end_tunnels();
        std::future::pending::<()>().await;
    };
    // A next request on an open HTTP/1.1 connection is answered and told that it was the last.
    let patience = Instant::now() + LINGER.min(grace / 2);
    let finished = async {
        // Connections whose protocol was still being found out join late; a look every 10 ms catches them.
        let mut look = tokio::time::interval(Duration::from_millis(10));
        loop {
            let patient = look.tick().await < patience;
            worker.drain(patient);
            if worker.open.borrow().is_empty() && (worker.connections.get() == 0 || !patient) {
                return;
            }
        }
    };
    tokio::select! {
        () = finished => {}
        () = last_call => {}
        () = deadline => {
            tracing::warn!(worker = worker.index, busy = worker.busy(), "stopped before everything in flight had finished");
        }
        _ = stop.wait_for(|stop| *stop == Stop::Now) => {}
    }
}

/// Once a second, closes connections that have been idle for too long; at once, those whose place somebody waits for.
async fn sweep(worker: Rc<WorkerState>) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    let descriptors = &worker.shared.descriptors;
    let make_room = || {
        worker.pools.make_room(descriptors, Instant::now());
    };
    let mut calls = pin!(at_each_call(descriptors.wanted(), make_room));
    loop {
        tokio::select! {
            now = every.tick() => {
                worker.following.borrow_mut().refresh();
                worker.pools.sweep(now);
                worker.pools.make_room(descriptors, now);
                if let Some(beat) = worker.shared.beats.get(worker.index) {
                    beat.fetch_add(1, Ordering::Relaxed);
                }
                worker.streams.look(now);
                worker.leftovers.look(now);
                worker.look_at_tunnels(now);
                worker.close_idle(now);
            }
            () = &mut calls => {}
        }
    }
}

/// Acts at each call, for ever. A call that comes while somebody acts, or does something else in between, is not lost: it may be
/// of one whom they have not seen.
async fn at_each_call(calls: &Notify, mut act: impl FnMut()) {
    let mut next = pin!(calls.notified());
    loop {
        next.as_mut().await;
        next.set(calls.notified());
        act();
    }
}

async fn hand_over_lines(worker: Rc<WorkerState>) {
    worker.lines.hand_over().await;
}

impl WorkerState {
    /// Serves one client that has a place on its own task.
    pub(super) fn serve<S>(
        self: &Rc<Self>,
        listener: &Rc<ListenerState>,
        place: Place,
        stream: S,
        ip: Option<std::net::IpAddr>,
    ) where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Resets + Unpin + 'static,
    {
        if let Some(rule) = &listener.config.proxy_protocol
            && !rule.believes(ip)
        {
            return arrival::refuse(listener, ip, &"it does not come from a network in `from`");
        }
        let (worker, listener) = (Rc::clone(self), Rc::clone(listener));
        // Tasks of different size: who does without TLS does not carry its state.
        match (listener.config.proxy_protocol.is_some(), listener.tls.clone()) {
            (true, _) => spawn(place, arrival::announced(worker, listener, stream, ip)),
            (false, None) => spawn(
                place,
                connection::run(worker, listener, stream, Arrival::plain(ip)),
            ),
            (false, Some(acceptor)) => {
                spawn(place, arrival::over_tls(worker, listener, stream, ip, acceptor));
            }
        }
    }
}

/// Serves a client on a task of its own, which gives the place back in the end. An `async` block would have room for the
/// future that it was given and once more for the one that it waits for.
fn spawn(place: Place, serving: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(serving.map(move |()| drop(place)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_is_not_lost_that_comes_while_somebody_acts_on_the_one_before() {
        let (calls, acted) = (Notify::new(), Cell::new(0));
        let mut acting = pin!(at_each_call(&calls, || {
            acted.set(acted.get() + 1);
            if acted.get() == 1 {
                calls.notify_waiters();
            }
        }));
        assert!((&mut acting).now_or_never().is_none() && acted.get() == 0);
        calls.notify_waiters();
        assert!((&mut acting).now_or_never().is_none());
        assert_eq!(acted.get(), 2);
    }
}
