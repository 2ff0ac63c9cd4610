//! A client connection's bytes, with the deadlines that hyper leaves to us.
//!
//! What a connection waits for decides which deadline holds: its first byte, the rest of a head, the next request. While a
//! request is served none does here (its body and its response have their own). A client that does not read has the
//! write-stall deadline at any time. One timer serves them all.

use super::{closing::Resets, streams::Stream, timer::LazyTimer, upgrade::Ending, windows::Windows};
use bytes::Bytes;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// What a client connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// For a next request.
    Idle,
    /// For the rest of a request head.
    Head,
    /// For nothing from here: a request is being served.
    Busy,
}

/// How long a connection that is about to close is waited for while it begins nothing: a request may be on its way. Closing at once
/// would lose it.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// Which deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// An idle HTTP/1.1 connection has had the time that a head may take, or shall wait without hyper: has it begun a request?
    /// hyper may have read its beginning together with the request before, and does not say so.
    Look,
    /// No next request came.
    KeepAlive,
    /// One had begun, unseen from here, and went no further.
    Begun,
    /// The rest of a head did not come.
    Head,
    /// Serin stops, or the connection makes way, and nothing more came.
    Drained,
    /// The client does not read.
    WriteStall,
}

impl Late {
    const fn as_str(self) -> &'static str {
        match self {
            Late::Look => "look",
            Late::KeepAlive => "keep-alive",
            Late::Begun => "begun",
            Late::Head => "request head",
            Late::Drained => "drained",
            Late::WriteStall => "write stall",
        }
    }
}

/// Whether somebody has looked, since the last request, if the next one has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Nobody has.
    Due,
    /// It shall be done without delay.
    Asked,
    /// Nothing had begun: what comes is seen as it comes.
    Done,
}

/// The deadlines of one listener.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionTimeouts {
    pub(super) head: Duration,
    pub(super) keep_alive: Duration,
    pub(super) write_stall: Duration,
}

/// What a connection's I/O, its requests and its worker know together.
#[derive(Debug)]
pub(super) struct Progress {
    waiting: Cell<Waiting>,
    /// When the current wait began; set when the wait is first noticed, so that a fast request never reads the clock for it.
    since: Cell<Option<Instant>>,
    requests: Cell<u32>,
    /// HTTP/2: the stream whose task runs right now.
    stream: RefCell<Option<Rc<Stream>>>,
    /// HTTP/1.0: an answer is on its way whose end is the connection's.
    pub(super) until_close: Cell<bool>,
    /// The request's body had not come whole when its answer began.
    pub(super) unread: Cell<bool>,
    /// Since the connection switched to another protocol.
    pub(super) tunnel: RefCell<Option<Rc<Ending>>>,
    /// Which protocol it speaks.
    pub(super) http2: bool,
    /// Where it came in.
    pub(super) listener: usize,
    draining: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// The last deadline that has passed.
    pub(super) late: Cell<Option<Late>>,
    look: Cell<Look>,
    /// Since when the client has not read what waits to be written; none: nothing waits.
    unsent_since: Cell<Option<Instant>>,
    /// HTTP/2: answers that have begun, and whose ends have not been written.
    unfinished: Cell<usize>,
    /// HTTP/2: how much the client takes.
    pub(super) windows: Windows,
    /// The timer of the request being served (HTTP/1.1 serves one at a time, on the connection's own task).
    pub(super) request_timer: RefCell<LazyTimer>,
}

impl Progress {
    pub(super) fn new(http2: bool, listener: usize) -> Rc<Progress> {
        Rc::new(Progress {
            waiting: Cell::new(Waiting::Head),
            since: Cell::new(None),
            requests: Cell::new(0),
            http2,
            listener,
            stream: RefCell::default(),
            until_close: Cell::new(false),
            unread: Cell::new(false),
            tunnel: RefCell::default(),
            draining: Cell::new(false),
            waker: RefCell::default(),
            late: Cell::new(None),
            look: Cell::new(Look::Due),
            unsent_since: Cell::new(None),
            unfinished: Cell::new(0),
            windows: Windows::default(),
            request_timer: RefCell::default(),
        })
    }

    /// A request head has arrived whole.
    pub(super) fn request_begins(&self) {
        self.requests.set(self.requests.get() + 1);
        self.waiting.set(Waiting::Busy);
        self.since.set(None);
    }

    /// A response has ended, well or not.
    pub(super) fn request_ends(&self) {
        let left = self.requests.get().saturating_sub(1);
        self.requests.set(left);
        if left == 0 {
            self.waiting.set(Waiting::Idle);
            self.since.set(None);
            self.look.set(Look::Due);
        }
    }

    /// Whether something waits until the client reads.
    pub(super) fn is_unsent(&self) -> bool {
        self.unsent_since.get().is_some()
    }

    /// Whether no request is being served.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.get() == 0
    }

    /// Since when, as far as anybody noticed, it has waited for a next request; none while it is asked for anything, has not
    /// read the last answer, or is on its way out. hyper does not read between a response and the next request when it has read
    /// in vain during the response: the wait may be noticed here first.
    pub(super) fn idle_since(&self, now: Instant) -> Option<Instant> {
        let unread = self.is_unsent() || self.unfinished.get() > 0;
        if self.waiting.get() != Waiting::Idle || self.draining.get() || unread {
            return None;
        }
        let since = self.since.get().unwrap_or(now);
        self.since.set(Some(since));
        Some(since)
    }

    /// Tells the connection's task to finish what it serves and close.
    pub(super) fn drain(&self) {
        if self.draining.replace(true) {
            return;
        }
        if self.http2 {
            // From here on it has [`LINGER`].
            self.since.set(None);
        }
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Asks the task of an idle HTTP/1.1 connection to wait without hyper, whose buffers take 16 KiB.
    pub(super) fn rest(&self) {
        // What is left of a request's body must never be taken for the next request.
        if self.http2 || self.unread.get() || self.look.get() != Look::Due {
            return;
        }
        self.look.set(Look::Asked);
        // hyper reads whenever it is polled, and is told then.
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Whether the connection shall close after what it serves. Remembers whom to wake when that changes.
    pub(super) fn is_draining(&self, cx: &Context<'_>) -> bool {
        if !self.draining.get() {
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        self.draining.get()
    }

    /// HTTP/2: frames have arrived; `partial` when the last, or the header block it belongs to, is not whole. A connection
    /// without requests is idle even when its client sends PING, also when it is about to close, and has begun a request only
    /// with a part of one.
    pub(super) fn frames_arrived(&self, partial: bool) {
        let waiting = if partial { Waiting::Head } else { Waiting::Idle };
        if self.requests.get() == 0 && self.waiting.get() != waiting {
            self.waiting.set(waiting);
            self.since.set(None);
        }
    }

    /// HTTP/2: a piece of an answer has been written, and of so many the end has not been. Their requests may be over here: the
    /// library has what is left of an answer when the client's window is closed.
    pub(super) fn answers_move(&self, unfinished: usize) {
        self.unfinished.set(unfinished);
        if self.requests.get() == 0 {
            self.since.set(None);
        }
    }

    /// HTTP/2: of so many answers the end has not been written, as the client wants no more of others.
    pub(super) fn answers_left(&self, unfinished: usize) {
        self.unfinished.set(unfinished);
    }

    /// Has the connection's task look at how long the ends of its answers have waited. It would not by itself: it writes after
    /// it has read.
    pub(super) fn look_at_ends(&self) {
        if self.unfinished.get() > 0
            && self.requests.get() == 0
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    /// HTTP/2: a request has come, before anybody serves it.
    pub(super) fn stream_begins(&self) {
        if self.requests.get() == 0 && self.unfinished.get() == 0 && !self.is_unsent() {
            self.windows.settle();
        }
    }

    /// HTTP/2: this stream's task runs now; none: it no longer does.
    pub(super) fn enter(&self, stream: Option<Rc<Stream>>) {
        self.stream.replace(stream);
    }

    /// HTTP/2: the stream whose task this is called on.
    pub(super) fn stream(&self) -> Option<Rc<Stream>> {
        self.stream.borrow().clone()
    }

    fn bytes_arrived(&self) {
        if self.waiting.get() == Waiting::Idle {
            self.waiting.set(Waiting::Head);
            self.since.set(None);
        }
    }
}

/// A client connection as hyper sees it.
pub(super) struct ClientIo<S: Resets> {
    inner: TokioIo<S>,
    /// What was read to find out the protocol.
    prefix: Bytes,
    progress: Rc<Progress>,
    timeouts: ConnectionTimeouts,
    timer: LazyTimer,
    stall_timer: LazyTimer,
    /// HTTP/1.1 clients get a 408 when their head does not arrive in time.
    http1: bool,
    refusal: Refusal,
}

/// hyper's own answer to a head that is too large: what is too large is told by who reads what it left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    None,
    KeptBack,
    /// Somebody else answers.
    Taken,
}

/// How much of a request is read before hyper does: most heads whole.
const MOST_FIRST: usize = 2048;

const REQUEST_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

impl<S: Resets> Drop for ClientIo<S> {
    fn drop(&mut self) {
        if self.progress.until_close.get() {
            self.inner.inner().reset();
        }
    }
}

impl<S: Resets> ClientIo<S> {
    pub(super) fn new(
        stream: S,
        prefix: Bytes,
        progress: Rc<Progress>,
        timeouts: ConnectionTimeouts,
        http1: bool,
    ) -> Self {
        ClientIo {
            inner: TokioIo::new(stream),
            prefix,
            progress,
            timeouts,
            timer: LazyTimer::default(),
            stall_timer: LazyTimer::default(),
            http1,
            refusal: Refusal::None,
        }
    }

    /// Whether hyper has called a head too large, and the client waits for an answer: what is written from here on is it.
    pub(super) fn takes_refusal(&mut self) -> bool {
        let kept = self.refusal == Refusal::KeptBack;
        self.refusal = Refusal::Taken;
        kept
    }
}

impl<S: AsyncRead + AsyncWrite + Resets + Unpin> ClientIo<S> {
    fn arrived(&self) {
        // Of HTTP/2 the frames are known (`frames`), not only that bytes came.
        if self.http1 {
            self.progress.bytes_arrived();
        }
    }

    /// Nothing to read: may this wait go on?
    fn waits(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ConnectionTimeouts {
            head,
            keep_alive,
            write_stall,
        } = self.timeouts;
        let look = self.progress.look.get();
        // What is left of a request's body must never be taken for the next request.
        let may_look = self.http1 && !self.progress.unread.get();
        let (limit, late) = match self.progress.waiting.get() {
            Waiting::Busy => return Poll::Pending,
            // hyper would forget what it has not written; how long that may take is asked where it is.
            Waiting::Idle if self.progress.is_unsent() => return Poll::Pending,
            // The client has closed the window on the end of an answer. A stop waits for it as for any other.
            Waiting::Idle if self.progress.unfinished.get() > 0 => (write_stall, Late::WriteStall),
            // Who has begun something and does not go on holds nobody up.
            Waiting::Idle | Waiting::Head if self.progress.draining.get() => (LINGER, Late::Drained),
            Waiting::Idle if may_look && look == Look::Asked => (Duration::ZERO, Late::Look),
            Waiting::Idle if may_look && look == Look::Due && head < keep_alive => (head, Late::Look),
            Waiting::Idle => (keep_alive, Late::KeepAlive),
            Waiting::Head => (head, Late::Head),
        };
        let now = Instant::now();
        let since = self.progress.since.get().unwrap_or(now);
        self.progress.since.set(Some(since));
        if self.timer.poll(cx, now, since + limit).is_pending() {
            return Poll::Pending;
        }
        if late == Late::KeepAlive && !self.http1 {
            // GOAWAY first, so that no request is on its way into a closed connection; one more wait for its end.
            self.progress.drain();
            return self.waits(cx);
        }
        if late == Late::Look {
            self.progress.look.set(Look::Done);
        }
        if late == Late::Head && self.http1 {
            // Best effort: a client that still reads learns why; one that does not is closed all the same.
            let _ = Pin::new(&mut self.inner).poll_write(cx, REQUEST_TIMEOUT);
        }
        Poll::Ready(Err(self.late(late)))
    }

    /// Whether these bytes are hyper's own answer to a head that is too large.
    #[cold]
    fn keeps_back(&mut self, buf: &[u8]) -> bool {
        let is = |status: &[u8]| buf.get(9..12) == Some(status);
        let keeps = self.http1 && buf.starts_with(b"HTTP/1.") && (is(b"431") || is(b"414"));
        if keeps && self.refusal == Refusal::None {
            self.refusal = Refusal::KeptBack;
        }
        keeps && self.refusal == Refusal::KeptBack
    }

    /// Puts back what was read of a request that has begun with the wait: its time began there as well.
    pub(super) fn begun(&mut self, read: Bytes) {
        self.progress.waiting.set(Waiting::Head);
        self.prefix = read;
    }

    /// Waits without hyper for a next request, whose first bytes are read again by whoever reads next; `false`: none comes.
    /// One that is there in the moment when the connection shall close is served.
    pub(super) async fn rest(&mut self) -> bool {
        poll_fn(|cx| {
            let draining = self.progress.is_draining(cx);
            let mut first = [0; MOST_FIRST];
            let mut read = ReadBuf::new(&mut first);
            match Pin::new(self.inner.inner_mut()).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) => {
                    self.prefix = Bytes::copy_from_slice(read.filled());
                    Poll::Ready(!self.prefix.is_empty())
                }
                Poll::Ready(Err(_)) => Poll::Ready(false),
                Poll::Pending if draining => Poll::Ready(false),
                Poll::Pending => self.waits(cx).map(|_| false),
            }
        })
        .await
    }

    /// Closes our side.
    pub(super) async fn close(&mut self) {
        let _ = poll_fn(|cx| Pin::new(&mut *self).poll_shutdown(cx)).await;
    }

    fn late(&self, late: Late) -> io::Error {
        self.progress.late.set(Some(late));
        io::Error::new(io::ErrorKind::TimedOut, late.as_str())
    }

    /// In the middle of a head nobody but hyper has anything to say, once the answer before is written.
    fn is_within_head(&self) -> bool {
        self.progress.waiting.get() == Waiting::Head && !self.progress.is_unsent()
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.progress.unsent_since.set(None);
            return result;
        }
        let now = Instant::now();
        let since = self.progress.unsent_since.get().unwrap_or(now);
        self.progress.unsent_since.set(Some(since));
        if self
            .stall_timer
            .poll(cx, now, since + self.timeouts.write_stall)
            .is_pending()
        {
            return Poll::Pending;
        }
        Poll::Ready(Err(self.late(Late::WriteStall)))
    }
}

impl<S: AsyncRead + AsyncWrite + Resets + Unpin> Read for ClientIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let n = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(n));
            self.arrived();
            return Poll::Ready(Ok(()));
        }
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Pending => self.waits(cx),
            Poll::Ready(result) => {
                self.arrived();
                Poll::Ready(result)
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Resets + Unpin> Write for ClientIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_within_head() && self.keeps_back(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.written(cx, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        self.written(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.progress.late.get() == Some(Late::Look) || self.refusal == Refusal::KeptBack {
            // hyper takes it for the end, which it need not be, or has yet to be told to the client.
            return Poll::Ready(Ok(()));
        }
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
        if matches!(result, Poll::Ready(Ok(()))) {
            // A good end: everything has been written.
            self.progress.until_close.set(false);
        }
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_within_head()
            && let [whole] = bufs
            && self.keeps_back(whole)
        {
            return Poll::Ready(Ok(whole.len()));
        }
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.written(cx, result)
    }
}
