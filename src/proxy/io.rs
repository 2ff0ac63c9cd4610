//! A client connection's bytes, with the deadlines that hyper leaves to us.
//!
//! What a connection waits for decides which deadline holds: its first byte, the rest of a head, the next request. While a
//! request is served none does here (its body and its response have their own). A client that does not read has the
//! write-stall deadline at any time. One timer serves them all.

use super::timer::LazyTimer;
use bytes::Bytes;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
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
    draining: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Why the connection was closed by a deadline, for its log line.
    pub(super) timed_out: Cell<Option<&'static str>>,
    /// The timer of the request being served (HTTP/1.1 serves one at a time, on the connection's own task).
    pub(super) request_timer: RefCell<LazyTimer>,
}

impl Progress {
    pub(super) fn new() -> Rc<Progress> {
        Rc::new(Progress {
            waiting: Cell::new(Waiting::Head),
            since: Cell::new(None),
            requests: Cell::new(0),
            draining: Cell::new(false),
            waker: RefCell::default(),
            timed_out: Cell::new(None),
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
        }
    }

    /// Whether no request is being served.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.get() == 0
    }

    /// Tells the connection's task to finish what it serves and close.
    pub(super) fn drain(&self) {
        self.draining.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
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

    fn bytes_arrived(&self) {
        if self.waiting.get() == Waiting::Idle {
            self.waiting.set(Waiting::Head);
            self.since.set(None);
        }
    }
}

/// A client connection as hyper sees it.
pub(super) struct ClientIo<S> {
    inner: TokioIo<S>,
    /// What was read to find out the protocol.
    prefix: Bytes,
    progress: Rc<Progress>,
    timeouts: ConnectionTimeouts,
    timer: LazyTimer,
    stalled_since: Option<Instant>,
    stall_timer: LazyTimer,
    /// HTTP/1.1 clients get a 408 when their head does not arrive in time.
    says_timeout: bool,
}

const REQUEST_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

impl<S> ClientIo<S> {
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
            stalled_since: None,
            stall_timer: LazyTimer::default(),
            says_timeout: http1,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> ClientIo<S> {
    /// Nothing to read: may this wait go on?
    fn waits(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (limit, what) = match self.progress.waiting.get() {
            Waiting::Busy => return Poll::Pending,
            Waiting::Idle => (self.timeouts.keep_alive, "keep-alive"),
            Waiting::Head => (self.timeouts.head, "request head"),
        };
        let now = Instant::now();
        let since = self.progress.since.get().unwrap_or(now);
        self.progress.since.set(Some(since));
        if self.timer.poll(cx, now, since + limit).is_pending() {
            return Poll::Pending;
        }
        self.progress.timed_out.set(Some(what));
        if self.progress.waiting.get() == Waiting::Head && self.says_timeout {
            // Best effort: a client that still reads learns why; one that does not is closed all the same.
            let _ = Pin::new(&mut self.inner).poll_write(cx, REQUEST_TIMEOUT);
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, what)))
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stalled_since = None;
            return result;
        }
        let now = Instant::now();
        let since = *self.stalled_since.get_or_insert(now);
        if self
            .stall_timer
            .poll(cx, now, since + self.timeouts.write_stall)
            .is_pending()
        {
            return Poll::Pending;
        }
        self.progress.timed_out.set(Some("write stall"));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "write stall")))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Read for ClientIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let n = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(n));
            self.progress.bytes_arrived();
            return Poll::Ready(Ok(()));
        }
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Pending => self.waits(cx),
            Poll::Ready(result) => {
                self.progress.bytes_arrived();
                Poll::Ready(result)
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Write for ClientIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.written(cx, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        self.written(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
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
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.written(cx, result)
    }
}
