//! One worker's connections to endpoints: kept, handed out last in first out, given back.
//!
//! `!Send` on purpose: no lock and no wake-up across threads. HTTP/1.1 connections serve one request at a time and are
//! reused newest first, so that the oldest fall idle; an HTTP/2 connection is shared by as many requests of the worker as the
//! other side allows, and the first of several is used first.

mod members;
mod room;

pub use members::Members;

use super::{
    Endpoint, LiveService,
    capacity::{Place, Turn},
    connect::{ConnectError, Opened, connect},
    endpoint::Keeper,
    heads::HeadSizes,
    shared::{Seated, Shared},
};
use crate::model::Scheme;
use futures_util::future::Either;
use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, client::conn::http1};
use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    error::Error,
    hash::{BuildHasherDefault, Hasher},
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// How long an idle connection is kept: below the five seconds at which many servers close theirs. How many are kept has no
/// limit but that of all connections to a version: answers come in batches, and a connection closed now is opened again a
/// moment later.
const KEEP_IDLE: Duration = Duration::from_secs(4);
/// A connection idle for longer than this is asked whether the other side has closed it before it is used.
const PROBE_AFTER: Duration = Duration::from_millis(50);
/// How long a connection may take to become ready again after its response has ended.
const SETTLE: Duration = Duration::from_secs(1);

/// Of so many connections that come free here while requests of other workers wait as well, one goes to them.
const SHARED_TURN: u32 = 8;

/// Endpoint ids are already unique numbers.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }
    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }
}

type ById<B> = HashMap<u64, Rc<Connections<B>>, BuildHasherDefault<IdHasher>>;

/// All connections of one worker.
pub struct Pools<B> {
    by_id: RefCell<ById<B>>,
    /// The same, to walk over a few at a time.
    all: RefCell<Vec<Rc<Connections<B>>>>,
    /// Where the walk goes on.
    hand: Cell<usize>,
    /// How often versions had wanted room when it was last made.
    heard: Cell<u64>,
    /// When the last walk found too few idle connections.
    too_few: Cell<Option<Instant>>,
}

impl<B> Default for Pools<B> {
    fn default() -> Self {
        Pools {
            by_id: RefCell::default(),
            all: RefCell::default(),
            hand: Cell::default(),
            heard: Cell::default(),
            too_few: Cell::default(),
        }
    }
}

/// One worker's connections to one endpoint.
pub struct Connections<B> {
    endpoint: Keeper,
    idle: RefCell<Vec<Idle<B>>>,
    shared: RefCell<Vec<Shared<B>>>,
    active: Cell<u32>,
    /// Requests sent since the endpoint was last told.
    sent: Cell<u64>,
    /// A connection is being opened that may turn out to speak HTTP/2; who waits for it.
    opening: RefCell<Option<Vec<Joining<B>>>>,
    /// The last connection spoke HTTP/1.1, or nothing else can be.
    http1: Cell<bool>,
    heads: HeadSizes,
    /// Requests of this worker that wait for a connection to this endpoint, longest first.
    waiting: RefCell<VecDeque<Waiter<B>>>,
    handed: Cell<u32>,
    /// The longest rest after which a kept connection was answered on.
    survived: Cell<Duration>,
}

/// Tells a request that waits for a connection another one opens: here is a seat on it, or there is nothing to share.
/// Dropped: there is no seat left, or the other one has gone away.
type Joining<B> = oneshot::Sender<Option<Seated<B>>>;

/// Something a request can be sent on.
enum Sender<B> {
    Http1(Kept<B>),
    Http2(Seated<B>),
}

/// An HTTP/1.1 connection, and how many requests it has served.
struct Kept<B> {
    sender: http1::SendRequest<B>,
    served: u32,
}

/// What became of a free seat.
#[derive(PartialEq, Eq)]
enum Seating {
    Taken,
    NoSeat,
    NobodyWaits,
}

/// Gives a connection to a request that waits for one, as long as it has not gone away.
struct Waiter<B> {
    turn: Weak<Turn>,
    sender: oneshot::Sender<Sender<B>>,
}

/// A request that waits for a connection. What it was given and has not seen when it goes away is for the next one.
struct Waiting<'a, B>(&'a Connections<B>, oneshot::Receiver<Sender<B>>);

impl<B> Waiting<'_, B> {
    /// Waits no more; what has come until now.
    fn end(&mut self) -> Option<Sender<B>> {
        self.1.close();
        self.1.try_recv().ok()
    }
}

impl<B> Drop for Waiting<'_, B> {
    fn drop(&mut self) {
        self.0.forget_gone();
        let Some(sender) = self.end() else { return };
        if let Some(Sender::Http2(seated)) = self.0.hand_over(sender) {
            drop(seated);
            self.0.seat_is_free();
        }
    }
}

/// Where a request may go, for the size of its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// On any connection.
    Any,
    /// On one that nobody else is on ([`Connections::lease_apart`]).
    Apart,
    /// On none: the endpoint has said that it takes no head of this size.
    None,
}

/// What a request waited for.
enum Freed<B> {
    /// A connection that another request is done with.
    Connection(Sender<B>),
    /// The right to open one.
    Place(Place),
}

struct Idle<B> {
    kept: Kept<B>,
    since: Instant,
}

/// The right to send one request; gives the connection back when the response has ended.
pub struct Lease<B: 'static> {
    connections: Rc<Connections<B>>,
    sender: Option<Sender<B>>,
    /// Whether the connection has served a request before.
    pub reused: bool,
    /// How long nothing at all had been sent on the connection, if it has served one. Over HTTP/2 since the last request began.
    rested: Duration,
    /// How large the head is that it carries, where others share the connection.
    head: u32,
}

/// A request that got no response.
#[derive(Debug)]
pub struct SendError<B> {
    /// The request, when not a byte of it was written.
    pub returned: Option<Box<Request<B>>>,
    /// Why.
    pub error: hyper::Error,
}

/// The connection that others wait for as well; lets them go when its request goes away.
struct Opening<'a, B>(&'a RefCell<Option<Vec<Joining<B>>>>);

impl<'a, B> Opening<'a, B> {
    /// None when another one is being opened: it will be enough.
    fn begin(opening: &'a RefCell<Option<Vec<Joining<B>>>>) -> Option<Self> {
        let mut begun = opening.borrow_mut();
        if begun.is_some() {
            return None;
        }
        *begun = Some(Vec::new());
        Some(Opening(opening))
    }

    /// Tells all who wait, or as many as there are seats for.
    fn ends(self, shared: bool, seat: impl Fn() -> Option<Seated<B>>) {
        for waiting in self.0.take().into_iter().flatten() {
            let seat = if shared { seat() } else { None };
            if shared && seat.is_none() {
                return;
            }
            let _ = waiting.send(seat);
        }
    }
}

impl<B> Drop for Opening<'_, B> {
    fn drop(&mut self) {
        self.0.take();
    }
}

impl<B> Pools<B>
where
    B: Body + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// The worker's connections to an endpoint.
    pub fn of(&self, endpoint: &Arc<Endpoint>) -> Rc<Connections<B>> {
        if let Some(known) = self.by_id.borrow().get(&endpoint.id) {
            return Rc::clone(known);
        }
        let fresh = Rc::new(Connections {
            endpoint: Keeper::of(endpoint),
            idle: RefCell::default(),
            shared: RefCell::default(),
            active: Cell::new(0),
            sent: Cell::new(0),
            opening: RefCell::default(),
            http1: Cell::new(matches!(endpoint.url.scheme(), Scheme::Http | Scheme::Unix)),
            heads: HeadSizes::default(),
            waiting: RefCell::default(),
            handed: Cell::new(0),
            survived: Cell::default(),
        });
        self.by_id.borrow_mut().insert(endpoint.id, Rc::clone(&fresh));
        self.all.borrow_mut().push(Rc::clone(&fresh));
        fresh
    }

    /// Closes what has been idle for too long, tells endpoints what they were sent, and forgets those that nobody publishes any
    /// more. Called once a second.
    pub fn sweep(&self, now: Instant) {
        let mut by_id = self.by_id.borrow_mut();
        by_id.retain(|_, connections| {
            let sent = connections.sent.take();
            if sent > 0 {
                connections.endpoint.add_served(sent);
            }
            connections.idle.borrow_mut().retain(|idle| {
                !idle.kept.sender.is_closed() && now.saturating_duration_since(idle.since) < KEEP_IDLE
            });
            // One of several is kept as long as the other side likes.
            let mut others = 0;
            let most_served = connections.endpoint.capacity.most_served();
            connections.shared.borrow_mut().retain(|shared| {
                let idle = shared.is_idle(now, KEEP_IDLE);
                let stays = !(shared.is_closed() || shared.is_used_up(most_served) || idle && others > 0);
                others += u32::from(stays);
                stays
            });
            !(connections.endpoint.is_left_alone() && connections.active.get() == 0)
        });
        let mut all = self.all.borrow_mut();
        if all.len() != by_id.len() {
            all.retain(|connections| by_id.contains_key(&connections.endpoint.id));
        }
        drop((by_id, all));
        self.make_places(now);
    }

    /// Closes all idle connections.
    pub fn clear(&self) {
        for connections in self.all.borrow().iter() {
            connections.idle.borrow_mut().clear();
            connections.close_empty();
        }
    }
}

impl<B> Connections<B> {
    /// The endpoint at the other end.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// A seat on an HTTP/2 connection, if one is free.
    fn seat(&self) -> Option<Seated<B>> {
        let mut all = self.shared.borrow_mut();
        let (place, seat) = all
            .iter()
            .enumerate()
            .find_map(|(place, shared)| Some((place, shared.seat()?)))?;
        let most_served = self.endpoint.capacity.most_served();
        if all
            .get(place)
            .is_some_and(|shared| shared.is_used_up(most_served))
        {
            // It closes when those who are on it are done.
            all.remove(place);
        }
        Some(seat)
    }

    /// Closes HTTP/2 connections that nobody is on.
    fn close_empty(&self) {
        self.shared.borrow_mut().retain(|shared| !shared.is_empty());
    }

    /// A seat on an HTTP/2 connection has come free: for whoever waits longest for one here, or else, when others wait for a
    /// place, an empty connection makes way.
    fn seat_is_free(&self) {
        if self.endpoint.capacity.is_crowded() && self.seat_next() == Seating::NobodyWaits {
            self.close_empty();
        }
    }

    /// Gives a seat on an HTTP/2 connection to whoever has waited longest for a connection here.
    fn seat_next(&self) -> Seating {
        if self.waiting.borrow().is_empty() {
            return Seating::NobodyWaits;
        }
        let Some(seat) = self.seat() else {
            return Seating::NoSeat;
        };
        match self.hand_over(Sender::Http2(seat)) {
            None => Seating::Taken,
            Some(_) => Seating::NobodyWaits,
        }
    }

    /// Forgets who has gone from the front of the queue. Otherwise only a connection that comes free would have them forgotten,
    /// which never does where each one carries a single request.
    fn forget_gone(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while waiting
            .front()
            .is_some_and(|first| first.turn.strong_count() == 0)
        {
            waiting.pop_front();
        }
    }

    /// Gives a connection to whoever has waited longest for one here, who then waits no more; gives it back when nobody does.
    fn hand_over(&self, mut sender: Sender<B>) -> Option<Sender<B>> {
        loop {
            let Some(next) = self.waiting.borrow_mut().pop_front() else {
                return Some(sender);
            };
            // That one has gone away, or is about to open a connection of its own.
            if !next.turn.upgrade().is_some_and(|turn| turn.leave()) {
                continue;
            }
            match next.sender.send(sender) {
                Ok(()) => return None,
                Err(back) => sender = back,
            }
        }
    }
}

impl<B> Connections<B>
where
    B: Body + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// A connection that is ready: a kept one, or a new one within `timeout`. When the version may have no more connections, a
    /// request waits for one for as long. `once`: the request must not be sent twice, so a kept connection is asked in any
    /// case whether it still lives.
    pub async fn lease(
        self: &Rc<Self>,
        now: Instant,
        timeout: Duration,
        once: bool,
        live: &LiveService,
    ) -> Result<Lease<B>, ConnectError> {
        if let Some((sender, rested)) = self.kept(now, once).await {
            let mut lease = self.lent(sender, true);
            lease.rested = rested;
            return Ok(lease);
        }
        self.lease_new(timeout, live).await
    }

    /// A new connection within `timeout`, whatever is kept; one that another request is done with only when there are no more.
    pub async fn lease_new(
        self: &Rc<Self>,
        timeout: Duration,
        live: &LiveService,
    ) -> Result<Lease<B>, ConnectError> {
        let opening = if self.http1.get() {
            None
        } else {
            match self.join(timeout).await {
                Ok(seat) => return Ok(self.lent(Sender::Http2(seat), false)),
                Err(opening) => opening,
            }
        };
        let (place, opening) = match self.endpoint.capacity.place() {
            Some(place) => (place, opening),
            None => {
                // Whoever else needs one waits in the same queue.
                drop(opening);
                match self.wait(timeout).await? {
                    Freed::Connection(sender) => return Ok(self.lent(sender, true)),
                    Freed::Place(place) => (place, None),
                }
            }
        };
        let opened = match connect(&self.endpoint, place, timeout, live, false).await {
            Ok(Opened::Http1(sender)) => Ok(Sender::Http1(Kept { sender, served: 0 })),
            Ok(Opened::Http2(shared)) => Ok(self.share(shared)),
            Err(error) => Err(error),
        };
        let shared = matches!(opened, Ok(Sender::Http2(_)));
        if opened.is_ok() {
            self.http1.set(!shared);
        }
        if let Some(opening) = opening {
            opening.ends(shared, || self.seat());
        }
        match opened {
            Ok(sender) => Ok(self.lent(sender, false)),
            Err(error) => {
                // An attempt all the same: the endpoint's rate of success is made of both.
                self.sent.set(self.sent.get() + 1);
                Err(error)
            }
        }
    }

    /// Adds an HTTP/2 connection that has just been opened; a seat on it.
    fn share(&self, shared: Shared<B>) -> Sender<B> {
        self.heads.announced(shared.most_head(), Instant::now());
        let own = shared.first_seat();
        if !shared.is_used_up(self.endpoint.capacity.most_served()) {
            self.shared.borrow_mut().push(shared);
        }
        // Those who wait for a place may share it, too.
        while self.seat_next() == Seating::Taken {}
        Sender::Http2(own)
    }

    /// Whether the endpoint may prefer HTTP/2 and can be asked for HTTP/1.1 all the same.
    pub fn has_choice(&self, live: &LiveService) -> bool {
        self.endpoint.url.scheme() == Scheme::Https && !self.http1.get() && live.tls().allows_http1()
    }

    /// A new connection that speaks HTTP/1.1 to an endpoint that has the choice: only such a one can be switched to another
    /// protocol.
    pub async fn lease_http1(
        self: &Rc<Self>,
        timeout: Duration,
        live: &LiveService,
    ) -> Result<Lease<B>, ConnectError> {
        self.open(timeout, live, true).await
    }

    /// A new connection that nobody else gets.
    pub async fn lease_apart(
        self: &Rc<Self>,
        timeout: Duration,
        live: &LiveService,
    ) -> Result<Lease<B>, ConnectError> {
        self.open(timeout, live, false).await
    }

    async fn open(
        self: &Rc<Self>,
        timeout: Duration,
        live: &LiveService,
        only_http1: bool,
    ) -> Result<Lease<B>, ConnectError> {
        let capacity = &self.endpoint.capacity;
        let place = match capacity.place() {
            Some(place) => place,
            None => {
                let turn = capacity.queue().ok_or(ConnectError::Full)?;
                let place = tokio::time::timeout(timeout, turn.place()).await;
                place.map_err(|_| ConnectError::Full)?
            }
        };
        let opened = connect(&self.endpoint, place, timeout, live, only_http1).await?;
        if !only_http1 {
            self.http1.set(matches!(opened, Opened::Http1(_)));
        }
        match opened {
            Opened::Http1(sender) => Ok(self.lent(Sender::Http1(Kept { sender, served: 0 }), false)),
            // It was offered nothing but HTTP/1.1.
            Opened::Http2(_) if only_http1 => Err(ConnectError::NoHttp1),
            Opened::Http2(shared) => {
                self.heads.announced(shared.most_head(), Instant::now());
                Ok(self.lent(Sender::Http2(shared.first_seat()), false))
            }
        }
    }

    /// Whether requests may share a connection here, so that the size of a head matters.
    pub fn are_shared(&self) -> bool {
        !self.http1.get()
    }

    /// Where a request whose head has this size, counted as HTTP/2 does, may go.
    pub fn room_for(&self, head: u32, now: Instant) -> Room {
        if !self.are_shared() {
            Room::Any
        } else if self.heads.refuses(head, now) {
            Room::None
        } else if self.heads.is_risky(head) {
            Room::Apart
        } else {
            Room::Any
        }
    }

    /// A seat on the HTTP/2 connection that another request is opening. Otherwise one has to be opened here: for others as well
    /// when nobody else does, and alone when that one has failed or speaks HTTP/1.1, for then each needs its own.
    async fn join(&self, timeout: Duration) -> Result<Seated<B>, Option<Opening<'_, B>>> {
        loop {
            if let Some(opening) = Opening::begin(&self.opening) {
                return Err(Some(opening));
            }
            let (sender, receiver) = oneshot::channel();
            if let Some(waiting) = &mut *self.opening.borrow_mut() {
                waiting.push(sender);
            }
            match tokio::time::timeout(timeout, receiver).await {
                Ok(Ok(Some(seat))) => return Ok(seat),
                Ok(Ok(None)) | Err(_) => return Err(None),
                // Its request went away or found another one, or there were more who waited than seats.
                Ok(Err(_)) => {
                    if let Some(seat) = self.seat() {
                        return Ok(seat);
                    }
                }
            }
        }
    }

    /// Waits until a connection comes free: one of this worker's to this endpoint, or a place to open one.
    async fn wait(self: &Rc<Self>, timeout: Duration) -> Result<Freed<B>, ConnectError> {
        let (sender, receiver) = oneshot::channel();
        // Goes after the turn, which would count as somebody who waits.
        let mut waiting = Waiting(self, receiver);
        let turn = Rc::new(self.endpoint.capacity.queue().ok_or(ConnectError::Full)?);
        self.waiting.borrow_mut().push_back(Waiter {
            turn: Rc::downgrade(&turn),
            sender,
        });
        // Only one of them comes: who is given a connection has left the queue for a place.
        tokio::select! {
            biased;
            Ok(sender) = &mut waiting.1 => Ok(Freed::Connection(sender)),
            place = turn.place() => Ok(Freed::Place(place)),
            () = tokio::time::sleep(timeout) => Err(ConnectError::Full),
        }
    }

    /// A kept connection that still lives, and how long it has rested as far as that is known already.
    async fn kept(&self, now: Instant, once: bool) -> Option<(Sender<B>, Duration)> {
        if let Some(seat) = self.seat() {
            return Some((Sender::Http2(seat), Duration::ZERO));
        }
        loop {
            let newest = self.idle.borrow_mut().pop()?;
            let age = now.saturating_duration_since(newest.since);
            if once || age > PROBE_AFTER {
                // The other side may have closed it while we did not look. Yielding once lets the runtime ask the kernel
                // and the connection's own task see the answer before we write.
                tokio::task::yield_now().await;
            }
            let sender = &newest.kept.sender;
            if age < KEEP_IDLE && sender.is_ready() && !sender.is_closed() {
                return Some((Sender::Http1(newest.kept), age));
            }
        }
    }

    fn lent(self: &Rc<Self>, sender: Sender<B>, reused: bool) -> Lease<B> {
        self.active.set(self.active.get() + 1);
        self.sent.set(self.sent.get() + 1);
        Lease {
            connections: Rc::clone(self),
            sender: Some(sender),
            reused,
            rested: Duration::ZERO,
            head: 0,
        }
    }

    fn keep(self: &Rc<Self>, mut kept: Kept<B>, now: Instant) {
        kept.served = kept.served.saturating_add(1);
        if kept.sender.is_closed() || kept.served >= self.endpoint.capacity.most_served() {
            return;
        }
        if kept.sender.is_ready() {
            self.free(kept, now);
            return;
        }
        // The response is over and the connection's task has not noticed yet, or the request is still being sent.
        let this = Rc::clone(self);
        tokio::task::spawn_local(async move {
            if let Ok(Ok(())) = tokio::time::timeout(SETTLE, kept.sender.ready()).await {
                this.free(kept, Instant::now());
            }
        });
    }

    /// A connection is ready for another request: somebody who waits gets it, else it is kept.
    fn free(&self, kept: Kept<B>, now: Instant) {
        if self.endpoint.capacity.is_crowded() {
            self.pass_on(kept);
        } else {
            self.idle.borrow_mut().push(Idle { kept, since: now });
        }
    }

    /// Gives a connection to whoever waits. Requests of other workers and for other endpoints can only use its place: they
    /// get their turn by closing it, always when nobody waits here, now and then when somebody does.
    #[cold]
    fn pass_on(&self, kept: Kept<B>) {
        let handed = self.handed.get() + 1;
        let here = self.waiting.borrow().len();
        let elsewhere = usize::try_from(self.endpoint.capacity.waiting()).is_ok_and(|all| all > here);
        let goes = elsewhere && handed.is_multiple_of(SHARED_TURN);
        if goes || self.hand_over(Sender::Http1(kept)).is_none() {
            self.handed.set(handed);
        }
    }
}

impl<B> Lease<B>
where
    B: Body + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// The endpoint at the other end.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.connections.endpoint
    }

    /// Whether HTTP/2 is spoken on it.
    pub const fn is_http2(&self) -> bool {
        matches!(self.sender, Some(Sender::Http2(_)))
    }

    /// Whether a request whose head has this size may go out on it; then it does.
    pub fn carries(&mut self, head: u32, now: Instant) -> bool {
        let Some(Sender::Http2(seated)) = &self.sender else {
            return true;
        };
        if self.connections.heads.is_refused(head) {
            return false;
        }
        self.head = head;
        self.rested = seated.carried().sent(head, now);
        true
    }

    /// Whether the connection, which has just ended, may have done so for having had nothing to do before this request: for at
    /// least `shortest`, and not for clearly less than another one has survived.
    pub fn may_have_idled_out(&self, shortest: Duration) -> bool {
        let survived = self.connections.survived.get();
        self.reused && self.rested >= shortest && survived <= self.rested + self.rested / 10
    }

    /// Whether the connection, which has ended just `now`, may have done so for a larger head than its own, sent within the
    /// last `limit`.
    pub fn broke_over_another(&self, now: Instant, limit: Duration) -> bool {
        let Some(Sender::Http2(seated)) = &self.sender else {
            return false;
        };
        let suspect = seated.carried().suspect(now, limit);
        suspect.is_some_and(|size| size > self.head)
    }

    /// Its request was answered.
    pub fn answered(&self) {
        let survived = &self.connections.survived;
        survived.set(survived.get().max(self.rested));
        if let Some(Sender::Http2(seated)) = &self.sender {
            seated.carried().answered(self.head);
            self.connections.heads.answered(self.head);
        }
    }

    /// Its connection is closed when the response has ended, unless others share it.
    pub const fn is_the_last(&mut self) {
        if let Some(Sender::Http1(kept)) = &mut self.sender {
            kept.served = u32::MAX;
        }
    }

    /// The connection ended before the answer, just `now`, perhaps for a head that was sent within the last `limit`. Whether
    /// nobody has said so yet: it is one failure, however many were on it.
    pub fn broke(&self, now: Instant, limit: Duration) -> bool {
        let Some(Sender::Http2(seated)) = &self.sender else {
            return true;
        };
        let first = seated.broke();
        if first && let Some(size) = seated.carried().suspect(now, limit) {
            self.connections.heads.broke(size);
        }
        first
    }

    /// Whether TLS is spoken on it.
    pub fn is_secure(&self) -> bool {
        self.connections.endpoint.url.scheme() == Scheme::Https
    }

    /// Sends the request; what it returns waits for the response, and puts it into its place.
    pub fn send<'a>(
        &mut self,
        request: Request<B>,
        place: &'a mut Option<Response<Incoming>>,
    ) -> impl Future<Output = Result<(), SendError<B>>> + use<'a, B> {
        let answer = match &mut self.sender {
            Some(Sender::Http1(kept)) => Either::Left(kept.sender.try_send_request(request)),
            Some(Sender::Http2(seated)) => Either::Right(seated.sender.try_send_request(request)),
            // The sender leaves only with the lease.
            None => unreachable!("a lease has its sender until it is given back"),
        };
        async move {
            match answer.await {
                Ok(response) => {
                    *place = Some(response);
                    Ok(())
                }
                Err(mut error) => Err(SendError {
                    returned: error.take_message().map(Box::new),
                    error: error.into_error(),
                }),
            }
        }
    }

    /// The response has ended well, just `now`: the connection may serve again. Dropping the lease instead closes it.
    pub fn give_back(mut self, now: Instant) {
        match self.sender.take() {
            Some(Sender::Http1(kept)) => self.connections.keep(kept, now),
            other => self.sender = other,
        }
    }
}

impl<B: 'static> Drop for Lease<B> {
    fn drop(&mut self) {
        let active = &self.connections.active;
        active.set(active.get().saturating_sub(1));
        if let Some(Sender::Http2(seated)) = self.sender.take() {
            drop(seated);
            self.connections.seat_is_free();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            capacity::Capacity,
            shared::{Runs, Seats},
        },
        *,
    };
    use crate::{config::Limits, metrics::Registry, model::ServiceName, upstream::Services};
    use bytes::Bytes;
    use futures_util::FutureExt;
    use http_body_util::Empty;
    use hyper::client::conn::http2;
    use hyper_util::rt::TokioIo;
    use std::sync::Weak;
    use tokio::task::LocalSet;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_request_has_no_room_of_its_own_for_opening_a_connection() {
        let test = async {
            let (connections, _seat, _held) = crowded().await;
            let service = ServiceName::new("s").unwrap();
            let live = Services::new(Registry::new(1).unwrap()).ensure(&service);
            let leasing = connections.lease(Instant::now(), LONG, false, &live);
            // It was 8 KiB. Each request's would be as large, and those at once shall share the processor's nearest cache.
            assert!(size_of_val(&leasing) < 1024, "{} bytes", size_of_val(&leasing));
        };
        LocalSet::new().run_until(test).await;
    }

    /// Connections to a version that may have one, with one seat, which is taken; it lasts for as long as the rest is held.
    async fn crowded() -> (
        Rc<Connections<Empty<Bytes>>>,
        Seated<Empty<Bytes>>,
        (Place, tokio::io::DuplexStream),
    ) {
        let limits = Limits {
            connections: 1,
            ..Limits::default()
        };
        let capacity = Arc::new(Capacity::new(&limits, 1, Arc::default()));
        let url = "h2c://127.0.0.1:9".parse().unwrap();
        let endpoint = Endpoint::of(url, None, Weak::new(), Arc::clone(&capacity));
        let connections = Pools::default().of(&Arc::new(endpoint));
        let place = capacity.place().unwrap();
        let (shared, other) = shared().await;
        connections.shared.borrow_mut().push(shared);
        let seat = connections.seat().unwrap();
        (connections, seat, (place, other))
    }

    /// A connection with one seat, whose other side says nothing more.
    async fn shared() -> (Shared<Empty<Bytes>>, tokio::io::DuplexStream) {
        let (io, other) = tokio::io::duplex(1 << 16);
        let seats = Rc::<Seats>::default();
        seats.allow(1);
        let runs = Runs(Rc::clone(&seats));
        let (sender, connection) = http2::handshake(runs, TokioIo::new(io)).await.unwrap();
        tokio::task::spawn_local(connection);
        (Shared::new(sender, seats), other)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_was_used_between_two_looks_has_rested_since_then() {
        let test = async {
            let (shared, _other) = shared().await;
            let now = Instant::now();
            let later = now + LONG;
            assert_eq!(
                (shared.empty_since(now), shared.empty_since(later)),
                (Some(now), Some(now))
            );
            let seat = shared.seat();
            assert!(seat.is_some() && shared.empty_since(later).is_none());
            drop(seat);
            drop(shared.seat());
            assert_eq!(shared.empty_since(later), Some(later));
            drop(shared.seat());
            assert_eq!(shared.empty_since(later + LONG), Some(later + LONG));
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_seat_given_to_a_request_that_went_away_is_for_the_next_one() {
        let test = async {
            let (connections, first, _held) = crowded().await;
            let mut leaves = Box::pin(connections.wait(LONG));
            let mut stays = Box::pin(connections.wait(LONG));
            assert!((&mut leaves).now_or_never().is_none() && (&mut stays).now_or_never().is_none());
            drop(first);
            connections.seat_is_free();
            assert!(
                connections.seat().is_none(),
                "it is on its way to who waits longest"
            );
            drop(leaves);
            let given = (&mut stays).now_or_never();
            assert!(matches!(given, Some(Ok(Freed::Connection(Sender::Http2(_))))));
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_seat_that_nobody_is_left_for_is_free() {
        let test = async {
            let (connections, first, _held) = crowded().await;
            let mut leaves = Box::pin(connections.wait(LONG));
            assert!((&mut leaves).now_or_never().is_none());
            drop(first);
            connections.seat_is_free();
            drop(leaves);
            assert!(
                connections.seat().is_some(),
                "the connection stays for those who come"
            );
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_been_given_a_connection_waits_no_more_whether_it_has_seen_it_or_not() {
        let test = async {
            let (connections, first, _held) = crowded().await;
            let mut waits = Box::pin(connections.wait(LONG));
            assert!((&mut waits).now_or_never().is_none());
            assert_eq!(connections.endpoint.capacity.waiting(), 1);
            drop(first);
            connections.seat_is_free();
            assert!(!connections.endpoint.capacity.is_crowded());
            let given = (&mut waits).now_or_never();
            assert!(matches!(given, Some(Ok(Freed::Connection(Sender::Http2(_))))));
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_been_given_a_place_is_not_given_a_connection_as_well() {
        let test = async {
            let (connections, first, (place, _other)) = crowded().await;
            let mut opens = Box::pin(connections.wait(LONG));
            let mut stays = Box::pin(connections.wait(LONG));
            assert!((&mut opens).now_or_never().is_none() && (&mut stays).now_or_never().is_none());
            drop(place);
            drop(first);
            connections.seat_is_free();
            let given = (&mut stays).now_or_never();
            assert!(matches!(given, Some(Ok(Freed::Connection(Sender::Http2(_))))));
            let given = (&mut opens).now_or_never();
            assert!(matches!(given, Some(Ok(Freed::Place(_)))));
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_no_more_is_forgotten_though_no_connection_ever_comes_free() {
        let test = async {
            let (connections, _seat, (place, _other)) = crowded().await;
            let mut all: Vec<_> = (0..4).map(|_| Box::pin(connections.wait(LONG))).collect();
            assert!(all.iter_mut().all(|wait| wait.now_or_never().is_none()));
            drop(place);
            let given = (&mut all[0]).now_or_never();
            assert!(matches!(given, Some(Ok(Freed::Place(_)))));
            assert_eq!(connections.waiting.borrow().len(), 3);
            drop(all.remove(2));
            drop(given);
            let given = (&mut all[1]).now_or_never();
            assert!(matches!(given, Some(Ok(Freed::Place(_)))));
            assert_eq!(connections.waiting.borrow().len(), 1);
            let late = all.pop().unwrap().await;
            assert!(matches!(late, Err(ConnectError::Full)), "the place is in use");
            assert!(connections.waiting.borrow().is_empty());
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_has_not_idled_out_where_others_survive_a_longer_rest() {
        let test = async {
            let (connections, seat, _held) = crowded().await;
            let mut lease = connections.lent(Sender::Http2(seat), true);
            let rest = |lease: &mut Lease<_>, millis| {
                lease.rested = Duration::from_millis(millis);
                lease.may_have_idled_out(Duration::from_secs(1))
            };
            assert!(!rest(&mut lease, 999), "too short for any limit");
            assert!(rest(&mut lease, 1000) && rest(&mut lease, 3000));
            lease.answered();
            assert!(!rest(&mut lease, 1000) && !rest(&mut lease, 2700));
            assert!(rest(&mut lease, 2800), "as good as the same");
            lease.answered();
            assert!(!rest(&mut lease, 2700), "the longest one counts");
            lease.reused = false;
            assert!(!rest(&mut lease, 3500));
        };
        LocalSet::new().run_until(test).await;
    }
}
