//! The life of one client connection: which protocol it speaks, serving it, closing it.

use super::{
    account,
    arrival::Arrival,
    closing::{self, Resets},
    frames::Watched,
    gather::Together,
    guard::guarded,
    headers::Peer,
    io::{ClientIo, ConnectionTimeouts, Late, Progress},
    service,
    streams::{Scope, StreamExecutor},
    too_large::TooLarge,
    upgrade::Tunnel,
    who,
    worker::{ListenerState, WorkerState},
};
use crate::{metrics::Rejection, model::ByteSize};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    net::{IpAddr, Ipv4Addr},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// The first bytes of HTTP/2 with prior knowledge (RFC 9113 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The most that waits for a client to read or for a version to take it, in bytes.
const MOST_BUFFERED: usize = 64 * 1024;

/// The most of one HTTP/2 stream's response that waits to be written, in bytes.
const MOST_QUEUED: usize = 64 * 1024;

/// A client's connection as its requests see it.
pub(super) struct Client {
    pub(super) worker: Rc<WorkerState>,
    pub(super) listener: Rc<ListenerState>,
    pub(super) peer: Peer,
    pub(super) progress: Rc<Progress>,
    /// What this connection does when it no longer speaks HTTP.
    pub(super) tunnel: RefCell<Option<Tunnel>>,
    pub(super) http2: bool,
    /// Whether the client's side is encrypted.
    pub(super) secure: bool,
    ip: IpAddr,
    behind_proxy: bool,
}

impl Client {
    fn new(
        worker: Rc<WorkerState>,
        listener: Rc<ListenerState>,
        arrival: &Arrival,
        progress: Rc<Progress>,
        http2: bool,
    ) -> Client {
        // A Unix socket's peer is on this machine.
        let ip = arrival
            .ip
            .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |ip| ip.to_canonical());
        let behind_proxy = listener
            .config
            .trusted_proxies
            .iter()
            .any(|net| net.contains(&ip));
        let address = HeaderValue::from_str(&ip.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        let mut peer = Peer::new(address, listener.config.mode, behind_proxy, arrival.secure);
        if listener.config.forwarded {
            peer.say_forwarded(ip);
        }
        Client {
            worker,
            listener,
            peer,
            progress,
            tunnel: RefCell::default(),
            http2,
            secure: arrival.secure,
            ip,
            behind_proxy,
        }
    }

    /// Who asks: the peer, or behind a trusted proxy the nearest address in `X-Forwarded-For` that is not one.
    pub(super) fn who(&self, headers: &HeaderMap) -> IpAddr {
        if !self.behind_proxy {
            return self.ip;
        }
        who::asks(self.ip, &self.listener.config.trusted_proxies, headers)
    }

    /// The connection as hyper sees it. `prefix`: what was read to find out the protocol.
    fn io<S: Resets>(&self, stream: S, prefix: Bytes) -> ClientIo<S> {
        let timeouts = &self.listener.config.timeouts;
        let timeouts = ConnectionTimeouts {
            head: timeouts.request_headers.as_duration(),
            keep_alive: timeouts.keep_alive.as_duration(),
            write_stall: timeouts.write_stall.as_duration(),
        };
        ClientIo::new(stream, prefix, Rc::clone(&self.progress), timeouts, !self.http2)
    }
}

/// What a client speaks.
enum Spoken {
    Http1(Bytes),
    Http2(Bytes),
}

/// Reads as little as tells the protocols apart. `None`: the client went away or was too slow.
async fn detect<S: AsyncRead + Unpin>(
    stream: &mut S,
    listener: &ListenerState,
    read: BytesMut,
) -> Option<Spoken> {
    let first_byte = listener.config.timeouts.first_byte.as_duration();
    let mut buffer = read;
    if buffer.is_empty() {
        buffer.reserve(4096);
        match tokio::time::timeout(first_byte, stream.read_buf(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return None,
            Ok(Ok(_)) => {}
            Err(_) => {
                listener.metrics.reject(Rejection::Timeout);
                return None;
            }
        }
    }
    let rest = listener.config.timeouts.request_headers.as_duration();
    let whole = tokio::time::timeout(rest, async {
        while buffer.len() < PREFACE.len() && PREFACE.starts_with(&buffer) {
            if stream.read_buf(&mut buffer).await.ok()? == 0 {
                return None;
            }
        }
        Some(())
    });
    match whole.await {
        Ok(Some(())) => {}
        Ok(None) => return None,
        Err(_) => {
            listener.metrics.reject(Rejection::Timeout);
            return None;
        }
    }
    let http2 = buffer.starts_with(PREFACE);
    let prefix = buffer.freeze();
    Some(if http2 {
        Spoken::Http2(prefix)
    } else {
        Spoken::Http1(prefix)
    })
}

/// Serves a client until it leaves, is too slow, or Serin stops.
pub(super) async fn run<S>(
    worker: Rc<WorkerState>,
    listener: Rc<ListenerState>,
    mut stream: S,
    mut arrival: Arrival,
) where
    S: AsyncRead + AsyncWrite + Resets + Unpin + 'static,
{
    let read = std::mem::take(&mut arrival.read);
    let Some(spoken) = detect(&mut stream, &listener, read).await else {
        return;
    };
    let (prefix, http2) = match spoken {
        Spoken::Http1(prefix) => (prefix, false),
        Spoken::Http2(prefix) => (prefix, true),
    };
    let progress = Progress::new(http2, listener.index);
    let _open = worker.track(&progress);
    let client = Rc::new(Client::new(
        Rc::clone(&worker),
        Rc::clone(&listener),
        &arrival,
        Rc::clone(&progress),
        http2,
    ));
    // Both apart, for a task would have room for either.
    let ended = if http2 {
        match speak_http2(client, stream, prefix) {
            Some(serving) => Ended::idle(serving.await),
            None => return,
        }
    } else {
        Box::pin(speak_http1(client, stream, prefix)).await
    };
    if let Some(Err(error)) = &ended.served {
        closed(&worker, &listener, arrival.ip, &progress, error, &ended);
    }
}

/// None: a panic.
type Served = Option<Result<(), hyper::Error>>;

/// How a connection ended.
struct Ended {
    served: Served,
    /// No request was being served.
    idle: bool,
    too_large: Option<TooLarge>,
}

impl Ended {
    const fn idle(served: Served) -> Ended {
        Ended {
            served,
            idle: true,
            too_large: None,
        }
    }
}

/// Not `async`: such a future would keep room for all that it is made of beside what becomes of it. None: what has come
/// already is a reason to go no further.
fn speak_http2<S>(
    client: Rc<Client>,
    stream: S,
    prefix: Bytes,
) -> Option<Pin<Box<impl Future<Output = Served>>>>
where
    S: AsyncRead + AsyncWrite + Resets + Unpin + 'static,
{
    let (listener, progress) = (Rc::clone(&client.listener), Rc::clone(&client.progress));
    let stream = Watched::new(stream, &prefix, PREFACE.len(), listener, progress);
    if stream.is_cut() {
        return None;
    }
    let io = client.io(stream, prefix);
    let (worker, progress) = (Rc::clone(&client.worker), Rc::clone(&client.progress));
    let limits = &client.listener.config.limits;
    let resets = usize::try_from(limits.resets).unwrap_or(usize::MAX);
    let most = |size: ByteSize| u32::try_from(size.as_u64()).unwrap_or(u32::MAX);
    let scope = Rc::new(Scope {
        streams: Rc::clone(&worker.streams),
        progress: Rc::clone(&progress),
        listener: Arc::clone(&client.listener.metrics),
        control: worker.shared.metrics.control.clone(),
        write_stall: client.listener.config.timeouts.write_stall.as_duration(),
    });
    let mut builder = http2::Builder::new(StreamExecutor(Rc::clone(&scope)));
    builder
        .initial_stream_window_size(most(limits.stream_window))
        .initial_connection_window_size(most(limits.connection_window))
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(most(limits.header_bytes))
        // What waits for the connection of a client that reads slowly; hyper's own is 400 KiB for each stream.
        .max_send_buf_size(MOST_QUEUED)
        // Those that nobody has seen yet, and those that the client has made us reset. `frames` counts all others.
        .max_pending_accept_reset_streams(resets)
        .max_local_error_reset_streams(resets);
    let make = move |(parts, body)| service::serve(Rc::clone(&client), parts, body);
    let places = worker.shelf.places(&make);
    let serve = service_fn(move |request: Request<Incoming>| {
        let request = request.into_parts();
        scope.guard(places.make(|| make(request)))
    });
    let lent = Rc::clone(&worker.lent);
    let connection = Together::new(io, lent, |io| builder.serve_connection(io, serve));
    Some(Box::pin(async move {
        let serving = drained(&progress, connection, |c| {
            c.get_mut().connection.as_mut().graceful_shutdown();
        });
        guarded(&worker.shared.metrics.control, serving).await
    }))
}

async fn speak_http1<S>(client: Rc<Client>, stream: S, prefix: Bytes) -> Ended
where
    S: AsyncRead + AsyncWrite + Resets + Unpin + 'static,
{
    let mut io = client.io(stream, prefix);
    let (worker, progress) = (Rc::clone(&client.worker), Rc::clone(&client.progress));
    let limits = &client.listener.config.limits;
    let mut builder = http1::Builder::new();
    builder
        .half_close(false)
        // With it hyper keeps its answer to broken syntax to itself while unread bytes lie behind the break.
        .pipeline_flush(false)
        // Small answers cost a little more than written in one piece, large ones are not copied.
        .writev(true)
        .max_header_size(limits.header_bytes.as_usize())
        // A client that does not read holds this much, not hyper's 400 KiB; a head must fit in.
        .max_buf_size(MOST_BUFFERED.max(limits.header_bytes.as_usize() + 8 * 1024));
    // hyper's own limit is 100 as well, and costs less when it is not set.
    if limits.headers != 100 {
        builder.max_headers(usize::try_from(limits.headers).unwrap_or(100));
    }
    let switches = Rc::clone(&client);
    let make = move |(parts, body)| service::serve(Rc::clone(&client), parts, body);
    let places = worker.shelf.places(&make);
    let serve = service_fn(move |request: Request<Incoming>| {
        let request = request.into_parts();
        places.make(|| make(request))
    });
    loop {
        let (connection, watched) = (builder.serve_connection(io, serve.clone()), &progress);
        // Apart, for it is the most of what a connection takes, and idle ones do without.
        let serving = Box::pin(async move {
            let mut connection = connection;
            let served = drained(watched, &mut connection, |mut c| {
                Pin::new(&mut **c).graceful_shutdown();
            })
            .await;
            // What is left of the request goes with the connection.
            (served, watched.is_idle(), connection.into_parts())
        });
        let control = &worker.shared.metrics.control;
        let Some((served, idle, parts)) = guarded(control, serving).await else {
            return Ended::idle(None);
        };
        let http1::Parts {
            io: mut back,
            read_buf,
            ..
        } = parts;
        match progress.late.get() {
            Some(Late::KeepAlive) if closing::is_begun(&read_buf) => {
                progress.late.set(Some(Late::Begun));
            }
            Some(Late::Look) if !progress.unread.get() => {
                progress.late.set(None);
                io = back;
                if closing::is_begun(&read_buf) {
                    io.begun(read_buf);
                    continue;
                }
                // It is idle indeed, and has the rest of its time.
                drop((read_buf, served));
                if guarded(control, io.rest()).await == Some(true) {
                    continue;
                }
                let _ = guarded(control, io.close()).await;
                return Ended::idle(Some(Ok(())));
            }
            Some(
                Late::Look | Late::KeepAlive | Late::Begun | Late::Head | Late::Drained | Late::WriteStall,
            )
            | None => {}
        }
        let too_large = back.takes_refusal().then(|| {
            let limits = &switches.listener.config.limits;
            let fields = usize::try_from(limits.headers).unwrap_or(usize::MAX);
            TooLarge::of(&read_buf, limits.header_bytes.as_usize(), fields)
        });
        let tunnel = switches.tunnel.take();
        // Apart, as its state would be carried by every connection from its beginning.
        let left = Box::pin(after(
            TokioIo::new(back),
            read_buf,
            &served,
            (&progress, idle),
            tunnel,
            too_large,
        ));
        let _ = guarded(&worker.shared.metrics.control, left).await;
        return Ended {
            served: Some(served),
            idle,
            too_large,
        };
    }
}

/// What is left to do when hyper is done with an HTTP/1.1 connection, which was `idle` or not when it was.
async fn after<S>(
    io: S,
    unread: Bytes,
    served: &Result<(), hyper::Error>,
    (progress, idle): (&Progress, bool),
    tunnel: Option<Tunnel>,
    too_large: Option<TooLarge>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if let Some(tunnel) = tunnel {
        return tunnel.run(io, unread).await;
    }
    if let Some(too_large) = too_large {
        return closing::linger(io, Some(too_large.answer().as_bytes())).await;
    }
    if progress.until_close.get() && served.is_err() {
        // An answer that its end would complete has broken off: no goodbye, and no `close_notify`.
        return;
    }
    let silent = progress.late.get() == Some(Late::Begun);
    match served {
        // The beginning of a request that was never ended: hyper closes without a word. Never after a part of an answer.
        Err(error) if (error.is_incomplete_message() || silent) && idle && closing::is_begun(&unread) => {
            closing::linger(io, Some(closing::BROKEN_OFF)).await;
        }
        Err(error) if error.is_parse() => closing::linger(io, None).await,
        Ok(()) | Err(_) if progress.unread.get() => closing::linger(io, None).await,
        Ok(()) | Err(_) => {}
    }
}

/// Runs a connection; when Serin stops, it finishes what it serves and closes.
async fn drained<C>(
    progress: &Progress,
    connection: C,
    stop: impl Fn(Pin<&mut C>),
) -> Result<(), hyper::Error>
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let mut connection = pin!(connection);
    let mut told = false;
    poll_fn(|cx| {
        // First: a request that has been read is answered, which hyper does not know of before it is polled.
        let polled = connection.as_mut().poll(cx);
        if polled.is_ready() || told || !progress.is_draining(cx) {
            return polled;
        }
        told = true;
        stop(connection.as_mut());
        connection.as_mut().poll(cx)
    })
    .await
}

/// hyper answers broken syntax itself, past every service: it is counted here. A request that was being served is on record
/// already.
fn closed(
    worker: &WorkerState,
    listener: &ListenerState,
    ip: Option<IpAddr>,
    progress: &Progress,
    error: &hyper::Error,
    ended: &Ended,
) {
    let refused = if let Some(late) = progress.late.get() {
        // An idle connection that is closed is nothing to count.
        (!matches!(late, Late::KeepAlive | Late::Drained))
            .then_some((StatusCode::REQUEST_TIMEOUT, Rejection::Timeout))
    } else if let Some(what) = ended.too_large {
        Some((what.status(), what.reason()))
    } else if error.is_parse_too_large() {
        Some((
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Rejection::HeaderLimit,
        ))
    } else if error.is_parse() || (error.is_incomplete_message() && ended.idle) {
        Some((StatusCode::BAD_REQUEST, Rejection::Malformed))
    } else {
        None
    };
    if let Some((status, reason)) = refused {
        listener.metrics.reject(reason);
        account::refused(
            worker,
            listener,
            ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            status,
            reason,
        );
    }
    tracing::debug!(error = error as &dyn std::error::Error, listener = %listener.config.name, "connection closed");
}

/// Keeps a connection in its worker's list of open ones.
pub(super) struct Open {
    pub(super) worker: Rc<WorkerState>,
    pub(super) key: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.untrack(self.key);
    }
}
