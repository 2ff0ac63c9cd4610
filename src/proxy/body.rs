//! Bodies on their way through, both ways, with back-pressure: a piece is taken from one side only when the other asks.
//!
//! A request body remembers its first 64 KiB when the request may be repeated. A response body carries the exchange it
//! ends: however it ends, by its last piece, by an error or by being dropped, the exchange is recorded once.

use super::{
    exchange::{End, Exchange, InService},
    grpc,
    headers::clean_trailers,
    received::Received,
    streams::Stream,
    table::Limits,
    timer::LazyTimer,
    withdrawn::{LOOK, Withdrawal},
};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    cell::RefCell,
    pin::Pin,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::time::Instant;

/// How much of a body is remembered so that the request can be repeated.
pub(super) const MOST_KEPT: u64 = 64 * 1024;
/// How much of a request body is still read after its answer is over, and for how long.
const MOST_REST: u64 = 64 * 1024;
pub(super) const LONGEST_REST: Duration = Duration::from_secs(1);

/// Of so many pieces of a response one is worth a look at the clock, as a version that never pauses is withdrawn like others.
const LOOK_EVERY: u8 = 8;

/// Why a body broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyError {
    /// The client's body exceeds the limit.
    #[error("the request body is larger than the limit")]
    TooLarge,
    /// The client sent nothing for too long.
    #[error("the request body stalled")]
    Slow,
    /// The body is malformed.
    #[error("the body is malformed")]
    Malformed,
    /// The body ended early.
    #[error("the body broke off")]
    Broken,
    /// The version has answered and the rest is not worth waiting for.
    #[error("the request body is not wanted any more")]
    Unwanted,
    /// The version has been withdrawn, and its time is over.
    #[error("the version that answers has been withdrawn")]
    Withdrawn,
    /// The version sent nothing for too long, or the whole request took too long.
    #[error("the response body stalled")]
    Stalled,
}

/// A request body as the upstream connection reads it: a cursor over what was kept and what still comes.
#[derive(Debug, Default)]
pub(super) struct RequestBody {
    source: Option<Rc<RefCell<Source>>>,
    position: usize,
    passed: u64,
}

/// The client's body, read at most once.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one thing that has happened to a body"
)]
pub(super) struct Source {
    /// None: nobody wants the rest of it.
    incoming: Option<Received>,
    exact: Option<u64>,
    kept: Vec<Bytes>,
    kept_bytes: u64,
    keeping: bool,
    /// What was kept is being read again.
    repeated: bool,
    ended: bool,
    /// When its last byte was handed on.
    sent: Option<Instant>,
    read: u64,
    limit: Option<u64>,
    idle: Duration,
    timer: LazyTimer,
    waiting_since: Option<Instant>,
    fault: Option<BodyError>,
    /// Closed until the version has asked for the body (`Expect: 100-continue`).
    gate: Option<Arc<Gate>>,
    /// For how long at most.
    patience: Duration,
    /// It was opened because that time was over.
    unasked: bool,
    /// The version has answered without it.
    answered: bool,
    /// The answer is over: how much and how long may still come.
    rest: Option<(u64, Instant)>,
    waker: Option<Waker>,
}

/// What holds a body back until the version says 100, and no longer than its patience: a version that never says it
/// still gets the body.
#[derive(Debug, Default)]
pub(super) struct Gate {
    open: AtomicBool,
    waker: AtomicWaker,
}

impl Gate {
    /// The version wants the body.
    pub(super) fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// The handle by which the request's own task asks about a body that a connection task reads.
#[derive(Debug, Clone)]
pub(super) struct BodyHandle(Rc<RefCell<Source>>);

/// A handle of a body that others keep or let go.
#[derive(Debug)]
pub(super) struct WeakBody(Weak<RefCell<Source>>);

impl WeakBody {
    /// The handle, if anybody still has the body.
    pub(super) fn upgrade(&self) -> Option<BodyHandle> {
        self.0.upgrade().map(BodyHandle)
    }
}

impl BodyHandle {
    pub(super) fn new(incoming: Received, keep: bool, limit: Option<u64>, idle: Duration) -> BodyHandle {
        let exact = incoming.size_hint().exact();
        BodyHandle(Rc::new(RefCell::new(Source {
            incoming: Some(incoming),
            exact,
            kept: Vec::new(),
            kept_bytes: 0,
            keeping: keep && exact.is_none_or(|exact| exact <= MOST_KEPT),
            repeated: false,
            ended: false,
            sent: None,
            read: 0,
            limit,
            idle,
            timer: LazyTimer::default(),
            waiting_since: None,
            fault: None,
            gate: None,
            patience: Duration::ZERO,
            unasked: false,
            answered: false,
            rest: None,
            waker: None,
        })))
    }

    /// Holds the body back for at most `patience`; what is returned lets it go earlier.
    pub(super) fn hold(&self, patience: Duration) -> Arc<Gate> {
        let mut source = self.0.borrow_mut();
        source.patience = patience;
        Arc::clone(source.gate.get_or_insert_default())
    }

    /// The version's answer begins; a body that it has not asked for stays with the client. Whether it was sent one unasked.
    pub(super) fn answered(&self) -> bool {
        let mut source = self.0.borrow_mut();
        source.answered = source
            .gate
            .as_ref()
            .is_some_and(|gate| !gate.open.load(Ordering::Acquire));
        source.unasked
    }

    /// The answer is over. What the client is still sending is read for a moment, then cut off.
    pub(super) fn abandon(&self, now: Instant) {
        let mut source = self.0.borrow_mut();
        if source.ended || source.rest.is_some() {
            return;
        }
        source.rest = Some((source.read.saturating_add(MOST_REST), now + LONGEST_REST));
        let waker = source.waker.take();
        drop(source);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether all of it has come.
    pub(super) fn has_ended(&self) -> bool {
        self.0.borrow().has_ended()
    }

    /// Whether all of it has been handed on.
    pub(super) fn is_sent(&self) -> bool {
        self.0.borrow().sent.is_some()
    }

    /// One that does not keep the body.
    pub(super) fn downgrade(&self) -> WeakBody {
        WeakBody(Rc::downgrade(&self.0))
    }

    /// Lets go of what the client is still sending, whoever else has a handle.
    pub(super) fn cut(&self) {
        let mut source = self.0.borrow_mut();
        if !source.ended {
            source.fault.get_or_insert(BodyError::Unwanted);
            (source.incoming, source.kept) = (None, Vec::new());
        }
    }

    /// A body that begins at the beginning: for the first attempt, and for a repeated one.
    pub(super) fn body(&self) -> RequestBody {
        let mut source = self.0.borrow_mut();
        // Another task will poll from now on; a timer wakes only the task that armed it.
        source.timer = LazyTimer::default();
        source.repeated = !source.kept.is_empty();
        drop(source);
        RequestBody {
            source: Some(Rc::clone(&self.0)),
            position: 0,
            passed: 0,
        }
    }

    /// Remembers it from here on, if nothing of it has been read and it may be small.
    pub(super) fn keep(&self) {
        let mut source = self.0.borrow_mut();
        source.keeping |= source.read == 0 && source.exact.is_none_or(|exact| exact <= MOST_KEPT);
    }

    /// The request has been answered: what was remembered for another attempt is let go.
    pub(super) fn forget(&self) {
        let mut source = self.0.borrow_mut();
        source.keeping = false;
        // Whoever reads what was kept, and not what comes, may still be reading.
        if !source.repeated {
            source.kept = Vec::new();
        }
    }

    /// Whether everything read so far is still at hand.
    pub(super) fn is_replayable(&self) -> bool {
        let source = self.0.borrow();
        source.fault.is_none() && (source.keeping || source.read == 0)
    }

    /// What was wrong with the client's body, if that is why the attempt failed.
    pub(super) fn fault(&self) -> Option<BodyError> {
        self.0.borrow().fault
    }

    /// How many bytes the client has sent.
    pub(super) fn received(&self) -> u64 {
        self.0.borrow().read
    }

    /// Until when a response head may be waited for at `now`, when `limit` is allowed since the request was sent. `passed` is
    /// how much had been read at the last look.
    pub(super) fn answer_due(&self, now: Instant, limit: Duration, passed: &mut u64) -> Instant {
        let source = self.0.borrow();
        let moved = std::mem::replace(passed, source.read) != source.read;
        let patience = source.idle.max(source.patience);
        let pauses = source.waiting_since.map(|since| since + patience);
        due(now, limit, source.sent, moved, pauses)
    }

    /// Whether the length is not known beforehand.
    pub(super) fn is_unknown_length(&self) -> bool {
        self.0.borrow().exact.is_none()
    }
}

/// When a response head is due that may take `limit` from when the request was `sent`. `moved`: something has been read since the
/// last look; `pauses`: until when the client may, if it does.
fn due(
    now: Instant,
    limit: Duration,
    sent: Option<Instant>,
    moved: bool,
    pauses: Option<Instant>,
) -> Instant {
    match (sent, pauses) {
        (Some(sent), _) => sent + limit,
        // The client is still sending: the version owes nothing yet.
        (None, _) if moved => now + limit,
        // That has a limit of its own, which is looked at as long as the version takes more. Beyond it the version does not: its
        // window is closed, perhaps by other requests.
        (None, Some(until)) => until + limit,
        // The version does not take what it is sent.
        (None, None) => now,
    }
}

impl RequestBody {
    /// No body at all.
    pub(super) fn none() -> RequestBody {
        RequestBody::default()
    }
}

impl Source {
    fn has_ended(&self) -> bool {
        self.ended || self.incoming.as_ref().is_none_or(Received::is_end_stream)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(fault) = self.fault {
            return Poll::Ready(Some(Err(fault)));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        if self.gate.is_some() {
            ready!(self.poll_gate(cx));
            if let Some(fault) = self.fault {
                return Poll::Ready(Some(Err(fault)));
            }
        }
        let Some(incoming) = &mut self.incoming else {
            return self.fail(BodyError::Unwanted);
        };
        match incoming.poll_frame(cx) {
            Poll::Pending => {
                let now = Instant::now();
                let since = *self.waiting_since.get_or_insert(now);
                let (mut until, mut fault) = (since + self.idle, BodyError::Slow);
                match self.rest {
                    Some((_, last)) if last < until => (until, fault) = (last, BodyError::Unwanted),
                    Some(_) => {}
                    None => self.wakes(cx),
                }
                ready!(self.timer.poll(cx, now, until));
                self.fail(fault)
            }
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(fault))) => self.fail(fault),
            Poll::Ready(Some(Ok(frame))) => {
                self.waiting_since = None;
                self.take(frame)
            }
        }
    }

    /// Remembers whom to tell when the answer is over.
    fn wakes(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }

    fn poll_gate(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.answered {
            if self.rest.is_some() {
                self.fault = Some(BodyError::Unwanted);
                self.gate = None;
                return Poll::Ready(());
            }
            self.wakes(cx);
            return Poll::Pending;
        }
        let Some(gate) = &self.gate else {
            return Poll::Ready(());
        };
        gate.waker.register(cx.waker());
        if !gate.open.load(Ordering::Acquire) {
            let now = Instant::now();
            let since = *self.waiting_since.get_or_insert(now);
            ready!(self.timer.poll(cx, now, since + self.patience));
            self.unasked = true;
        }
        gate.open.store(true, Ordering::Release);
        (self.gate, self.waiting_since, self.timer) = (None, None, LazyTimer::default());
        Poll::Ready(())
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                // Trailers end the body and are not kept: such a request is not repeated.
                self.keeping = false;
                self.end();
                let trailers = frame.into_trailers().ok().map(|mut trailers| {
                    clean_trailers(&mut trailers);
                    Ok(Frame::trailers(trailers))
                });
                return Poll::Ready(trailers);
            }
        };
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        self.read = self.read.saturating_add(length);
        if self.exact == Some(self.read) {
            // Whoever knows the length does not ask for the end.
            self.sent.get_or_insert_with(Instant::now);
        }
        if self.limit.is_some_and(|limit| self.read > limit) {
            return self.fail(BodyError::TooLarge);
        }
        if self.rest.is_some_and(|(most, _)| self.read > most) {
            return self.fail(BodyError::Unwanted);
        }
        if self.keeping {
            self.kept_bytes += length;
            if self.kept_bytes <= MOST_KEPT {
                self.kept.push(data.clone());
            } else {
                self.keeping = false;
                self.kept = Vec::new();
            }
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn end(&mut self) {
        self.ended = true;
        self.sent.get_or_insert_with(Instant::now);
    }

    fn fail(&mut self, fault: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.fault = Some(fault);
        Poll::Ready(Some(Err(fault)))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(source) = self.source.clone() else {
            return Poll::Ready(None);
        };
        let mut source = source.borrow_mut();
        if let Some(kept) = source.kept.get(self.position) {
            self.position += 1;
            self.passed += u64::try_from(kept.len()).unwrap_or(0);
            return Poll::Ready(Some(Ok(Frame::data(kept.clone()))));
        }
        let polled = ready!(source.poll(cx));
        if let Some(Ok(frame)) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.passed += u64::try_from(data.len()).unwrap_or(0);
            self.position = source.kept.len();
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.source.as_ref().is_none_or(|source| {
            let source = source.borrow();
            source.fault.is_none() && self.position >= source.kept.len() && source.has_ended()
        })
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            None => SizeHint::with_exact(0),
            Some(source) => match source.borrow().exact {
                Some(exact) => SizeHint::with_exact(exact.saturating_sub(self.passed)),
                None => SizeHint::default(),
            },
        }
    }
}

/// A response body as the client's connection reads it.
#[derive(Debug)]
pub(super) struct OutBody {
    kind: Kind,
    /// Until the body is gone the connection is busy.
    in_service: Option<InService>,
    /// HTTP/2: who is told when a piece waits to be taken.
    stream: Option<Rc<Stream>>,
    /// The last byte of a piece that may not fit (`windows`).
    last_byte: Option<Bytes>,
}

#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly every body is the large one; a box would be an allocation for each"
)]
enum Kind {
    Own(Option<Bytes>),
    /// In a box: an answer goes from hand to hand until hyper has it.
    Upstream(Box<Upstream>),
}

#[derive(Debug)]
struct Upstream {
    incoming: Received,
    /// The request's body, when the answer came before its end.
    asking: Option<BodyHandle>,
    exchange: Option<Exchange>,
    idle: Duration,
    deadline: Option<Instant>,
    waiting_since: Option<Instant>,
    timer: LazyTimer,
    /// How long a withdrawn version may go on.
    drain: Duration,
    /// When it is looked again whether it has been.
    look: Option<Instant>,
    /// Only of a canary's response that has been waited for once for as long as that.
    withdrawal: Option<Box<Withdrawal>>,
    /// Its last word was ours.
    cut: bool,
    /// Pieces that have passed, of [`LOOK_EVERY`].
    pieces: u8,
}

impl OutBody {
    /// A body of our own.
    pub(super) fn own(bytes: Bytes) -> OutBody {
        OutBody {
            kind: Kind::Own(Some(bytes)),
            ..OutBody::none()
        }
    }

    /// Nothing.
    pub(super) const fn none() -> OutBody {
        OutBody {
            kind: Kind::Own(None),
            in_service: None,
            stream: None,
            last_byte: None,
        }
    }

    /// The answer to a HEAD: a body of our own is not sent. hyper sees to that in HTTP/1.1 only.
    pub(super) fn leave_out(&mut self) {
        match &mut self.kind {
            Kind::Own(bytes) => *bytes = None,
            Kind::Upstream(_) => {}
        }
    }

    /// A version's body; its end is the exchange's.
    pub(super) fn upstream(
        incoming: Incoming,
        asking: Option<BodyHandle>,
        exchange: Exchange,
        limits: &Limits,
        deadline: Option<Instant>,
    ) -> OutBody {
        let upstream = Upstream {
            incoming: Received::new(incoming, exchange.is_http2()),
            asking,
            exchange: Some(exchange),
            idle: limits.stream_idle,
            deadline,
            waiting_since: None,
            timer: LazyTimer::default(),
            drain: limits.drain,
            look: None,
            withdrawal: None,
            cut: false,
            pieces: 0,
        };
        OutBody {
            kind: Kind::Upstream(Box::new(upstream)),
            in_service: None,
            stream: None,
            last_byte: None,
        }
    }

    /// Keeps the connection busy until this body is gone. `stream`: an HTTP/2 client can stop it from being asked for more by
    /// a closed window, so that nobody else would notice.
    pub(super) fn hold(&mut self, in_service: InService, stream: Option<Rc<Stream>>) {
        (self.in_service, self.stream) = (Some(in_service), stream);
    }

    /// Lets the last byte of a piece follow by itself, if the piece may be the last.
    fn parts(&mut self, piece: &mut Bytes) {
        let ended = self.is_end_stream();
        if piece.len() < 2 || !(ended || self.size_hint().exact().is_none()) {
            return;
        }
        self.last_byte = Some(piece.split_off(piece.len() - 1));
        if let Kind::Upstream(upstream) = &mut self.kind
            && ended
        {
            // The version is done, however long the client takes for the rest.
            upstream.end(End::Complete);
        }
    }

    fn poll_kind(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.kind {
            Kind::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Upstream(upstream) => upstream.poll(cx, self.stream.is_some()),
        }
    }
}

/// An exchange that is over when this goes: if that is by a panic, it is recorded as one.
struct Over<'a>(&'a mut Option<Exchange>);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        *self.0 = None;
    }
}

impl Upstream {
    fn end(&mut self, end: End) {
        let over = Over(&mut self.exchange);
        if let Some(exchange) = &mut *over.0 {
            if let Some(asking) = self.asking.take() {
                exchange.abandons(&asking);
            }
            exchange.end(end);
        }
    }

    /// Whether a piece that is here is not passed on, for its version was withdrawn long enough ago.
    fn comes_too_late(&mut self) -> bool {
        self.pieces = (self.pieces + 1) % LOOK_EVERY;
        let may = |exchange: &Exchange| exchange.may_be_withdrawn();
        self.pieces == 0 && self.exchange.as_ref().is_some_and(may) && self.is_withdrawn(Instant::now())
    }

    /// The canary that answers was withdrawn long enough ago. Looked at once a second.
    fn is_withdrawn(&mut self, now: Instant) -> bool {
        let Some(exchange) = self
            .exchange
            .as_ref()
            .filter(|exchange| exchange.may_be_withdrawn())
        else {
            return false;
        };
        let look = *self.look.get_or_insert(now + LOOK);
        if now < look {
            return false;
        }
        self.look = Some(now + LOOK);
        if self.withdrawal.is_none() {
            self.withdrawal = exchange.withdrawal(self.drain).map(Box::new);
        }
        self.withdrawal
            .as_ref()
            .is_some_and(|withdrawal| withdrawal.is_over(now))
    }

    /// The end of a response whose version has been withdrawn: never one that could be taken for the whole. A gRPC client
    /// is told that it may try again (14, UNAVAILABLE) where there is room for it.
    fn withdraw(&mut self, http2: bool) -> Result<Frame<Bytes>, BodyError> {
        let grpc = http2 && self.exchange.as_ref().is_some_and(Exchange::is_grpc);
        self.end(End::Withdrawn);
        if grpc {
            self.cut = true;
            let mut trailers = HeaderMap::new();
            let why = "the version that answered has been withdrawn";
            grpc::say(&mut trailers, grpc::UNAVAILABLE, why);
            return Ok(Frame::trailers(trailers));
        }
        Err(BodyError::Withdrawn)
    }

    /// `http2`: how the client is answered.
    fn poll(&mut self, cx: &mut Context<'_>, http2: bool) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.cut {
            return Poll::Ready(None);
        }
        match self.incoming.poll_frame(cx) {
            Poll::Pending => {
                let now = Instant::now();
                if self.is_withdrawn(now) {
                    return Poll::Ready(Some(self.withdraw(http2)));
                }
                let since = *self.waiting_since.get_or_insert(now);
                let idle = since + self.idle;
                let until = self.deadline.map_or(idle, |deadline| deadline.min(idle));
                // Not yet, for that time is not over; but somebody has to look.
                let until = self.look.map_or(until, |look| look.min(until));
                ready!(self.timer.poll(cx, now, until));
                self.end(End::Broken);
                Poll::Ready(Some(Err(BodyError::Stalled)))
            }
            Poll::Ready(None) => {
                self.end(End::Complete);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                // The client's body may be the reason why the version could not go on.
                let asking = self.asking.as_ref();
                let by_client = asking.is_some_and(|asking| asking.fault().is_some());
                self.end(if by_client { End::ClientGone } else { End::Broken });
                // An error, never a clean end: the client must not take half an answer for a whole one.
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.waiting_since = None;
                Poll::Ready(Some(Ok(match frame.into_trailers() {
                    Ok(mut trailers) => {
                        if let Some(exchange) = &mut self.exchange {
                            exchange.trailers(&trailers);
                        }
                        clean_trailers(&mut trailers);
                        // Whoever has them asks for nothing more.
                        self.end(End::Complete);
                        Frame::trailers(trailers)
                    }
                    Err(frame) => {
                        if self.comes_too_late() {
                            return Poll::Ready(Some(self.withdraw(http2)));
                        }
                        if let (Some(exchange), Some(data)) = (&mut self.exchange, frame.data_ref()) {
                            exchange.sends(data.len());
                        }
                        frame
                    }
                })))
            }
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        // hyper drops a body without a last poll when it knows that nothing more comes.
        let end = if self.incoming.is_end_stream() {
            End::Complete
        } else {
            End::ClientGone
        };
        self.end(end);
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(stream) = &this.stream {
            stream.taken();
        }
        if let (Some(last), Some(stream)) = (this.last_byte.take(), &this.stream) {
            stream.offers();
            return Poll::Ready(Some(Ok(Frame::data(last))));
        }
        let mut polled = this.poll_kind(cx);
        if let Some(stream) = &this.stream
            && let Poll::Ready(Some(Ok(frame))) = &mut polled
        {
            stream.offers();
            if let Some(data) = frame.data_mut()
                && !stream.has_room(data.len())
            {
                this.parts(data);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        if self.last_byte.is_some() {
            return false;
        }
        match &self.kind {
            Kind::Own(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Kind::Upstream(upstream) => upstream.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        if self.last_byte.is_some() {
            // Asked for by nobody once the body is being read.
            return SizeHint::default();
        }
        match &self.kind {
            Kind::Own(bytes) => SizeHint::with_exact(
                bytes
                    .as_ref()
                    .map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            ),
            Kind::Upstream(upstream) => upstream.incoming.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_owes_an_answer_once_it_takes_no_more_however_long_its_client_pauses() {
        let (now, limit) = (Instant::now(), Duration::from_secs(60));
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(due(after(5), limit, Some(now), false, None), after(60));
        assert_eq!(due(after(5), limit, None, true, Some(after(30))), after(65));
        assert_eq!(due(after(5), limit, None, false, None), after(5));
        // However often it is asked, and nobody asks the client any more.
        for later in [5, 60, 89, 200] {
            assert_eq!(due(after(later), limit, None, false, Some(after(30))), after(90));
        }
    }
}
