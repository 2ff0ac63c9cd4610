//! Opening one connection to an endpoint, and whose fault it is when that fails.

use super::{
    Endpoint, LiveService,
    capacity::Place,
    patient::Patient,
    settings::Announcing,
    shared::{Runs, Seats, Shared},
    tls,
};
use crate::model::Scheme;
use http_body::Body;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use std::{
    error::Error,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    time::Duration,
};
use tokio::net::{TcpStream, UnixStream};

/// What is read ahead of a client that does not read, in bytes; also the most that the head of an HTTP/1.1 response may have. The
/// less it is, the more calls a large body takes.
const MOST_READ: usize = 96 * 1024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Refused, unreachable, reset: nobody is there.
    #[error("connect")]
    Refused(#[source] io::Error),
    /// No answer in time.
    #[error("connect: no answer within {0:?}")]
    TimedOut(Duration),
    /// The name has no address.
    #[error("the name has no address")]
    Resolve,
    /// No TLS: a certificate that is not believed, ours refused, or somebody who speaks something else.
    #[error("TLS handshake")]
    Tls(#[source] io::Error),
    /// It speaks only HTTP/2, where HTTP/1.1 is needed.
    #[error("TLS handshake: no HTTP/1.1")]
    NoHttp1,
    /// The protocol's first exchange failed.
    #[error("handshake")]
    Handshake(#[source] hyper::Error),
    /// Our own machine is out of descriptors, ports or memory: says nothing about the endpoint.
    #[error("connect: this machine is out of resources")]
    Local(#[source] io::Error),
    /// All connections the version may have are in use, and the queue for one is full or did not move in time.
    #[error("wait for one of the version's connections")]
    Full,
}

impl ConnectError {
    /// Whether the endpoint, not our own machine, is to blame.
    pub const fn blames_endpoint(&self) -> bool {
        match self {
            ConnectError::Refused(_)
            | ConnectError::TimedOut(_)
            | ConnectError::Resolve
            | ConnectError::Tls(_)
            | ConnectError::Handshake(_) => true,
            ConnectError::Local(_) | ConnectError::Full | ConnectError::NoHttp1 => false,
        }
    }
}

/// Too many open files.
const EMFILE: i32 = 24;

/// Whether this machine, not the peer, is in the way of a connection: out of descriptors, memory or ports.
pub fn is_local(error: &io::Error) -> bool {
    // EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL: Linux numbers, which is where Serin runs.
    matches!(error.raw_os_error(), Some(EMFILE | 23 | 105 | 12 | 99))
}

/// Sorts an I/O error into ours and theirs.
fn classify(error: io::Error) -> ConnectError {
    if is_local(&error) {
        ConnectError::Local(error)
    } else {
        ConnectError::Refused(error)
    }
}

/// What has been opened.
#[derive(Debug)]
pub(super) enum Opened<B> {
    /// An HTTP/1.1 connection: one request at a time.
    Http1(http1::SendRequest<B>),
    /// An HTTP/2 connection: many at once.
    Http2(Shared<B>),
}

/// Runs connection tasks on the worker's own thread.
#[derive(Debug, Clone, Copy)]
pub struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}

/// Opens a connection and starts its task on this thread, which keeps its place until it ends. `only_http1`: an `https`
/// endpoint is offered nothing else.
pub(super) async fn connect<B>(
    endpoint: &Endpoint,
    mut place: Place,
    timeout: Duration,
    live: &LiveService,
    only_http1: bool,
) -> Result<Opened<B>, ConnectError>
where
    B: Body + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    if !place.take_descriptor(timeout).await {
        return Err(ConnectError::Local(io::Error::from_raw_os_error(EMFILE)));
    }
    // Apart: it is large, hardly any request opens a connection, and each would have room for it.
    let opening = Box::pin(open(endpoint, place, live, only_http1));
    match tokio::time::timeout(timeout, opening).await {
        Ok(Ok(Opened::Http2(shared))) => {
            shared.known(timeout).await;
            Ok(Opened::Http2(shared))
        }
        Ok(result) => result,
        Err(_) => Err(ConnectError::TimedOut(timeout)),
    }
}

async fn open<B>(
    endpoint: &Endpoint,
    place: Place,
    live: &LiveService,
    only_http1: bool,
) -> Result<Opened<B>, ConnectError>
where
    B: Body + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    match endpoint.url.scheme() {
        Scheme::Http => handshake1(tcp(endpoint).await?, place).await,
        Scheme::H2c => handshake2(tcp(endpoint).await?, place).await,
        Scheme::Unix => handshake1(socket(endpoint).await?, place).await,
        Scheme::UnixH2c => handshake2(socket(endpoint).await?, place).await,
        Scheme::Https => {
            let stream = tcp(endpoint).await?;
            match live.tls().connect(&endpoint.url, stream, only_http1).await {
                Ok((stream, true)) => handshake2(stream, place).await,
                Ok((stream, false)) => handshake1(stream, place).await,
                Err(error) if only_http1 && tls::is_other_protocol(&error) => Err(ConnectError::NoHttp1),
                Err(error) => Err(ConnectError::Tls(error)),
            }
        }
    }
}

/// TCP lets a connection wait when a server's queue is full; a Unix socket refuses it, and nobody is dead. So it is asked again
/// for as long as the caller waits.
pub(super) async fn unix(path: &str) -> io::Result<UnixStream> {
    let mut pause = Duration::from_millis(1);
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(32));
            }
            connected => return connected,
        }
    }
}

async fn socket(endpoint: &Endpoint) -> Result<UnixStream, ConnectError> {
    unix(endpoint.url.host()).await.map_err(classify)
}

async fn tcp(endpoint: &Endpoint) -> Result<TcpStream, ConnectError> {
    // Names are resolved beside the requests, never by one.
    let address = endpoint.address.ok_or(ConnectError::Resolve)?;
    let stream = TcpStream::connect(address).await.map_err(classify)?;
    // Requests are written whole; waiting for more to send only delays them.
    stream.set_nodelay(true).map_err(classify)?;
    notice_silence(&stream);
    Ok(stream)
}

/// Finds out about endpoints whose machine or network is gone while a response is awaited.
fn notice_silence(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let probes = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5));
    let _ = socket.set_tcp_keepalive(&probes);
    // Long enough for a version that lives and does not read an upload for a while: that counts as silence too.
    let _ = socket.set_tcp_user_timeout(Some(Duration::from_secs(30)));
}

async fn handshake1<B, S>(stream: S, place: Place) -> Result<Opened<B>, ConnectError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    B: Body + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (sender, connection) = http1::Builder::new()
        .writev(false)
        .max_buf_size(MOST_READ)
        .handshake(TokioIo::new(Patient::new(stream, place)))
        .await
        .map_err(ConnectError::Handshake)?;
    // The connection's errors reach whoever waits for a response on it.
    tokio::task::spawn_local(async move {
        let _ = connection.with_upgrades().await;
    });
    Ok(Opened::Http1(sender))
}

async fn handshake2<B, S>(stream: S, place: Place) -> Result<Opened<B>, ConnectError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
    B: Body + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let seats = Rc::new(Seats::default());
    let (sender, mut connection) = http2::Builder::new(Runs(Rc::clone(&seats)))
        // Until the other side has said how many it allows.
        .initial_max_send_streams(0)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_header_list_size(64 * 1024)
        .handshake(TokioIo::new(Announcing::new(stream, Rc::clone(&seats))))
        .await
        .map_err(ConnectError::Handshake)?;
    let said = Rc::clone(&seats);
    let mut place = Some(place);
    tokio::task::spawn_local(poll_fn(move |cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        said.asks(cx);
        said.allow(connection.current_max_send_streams());
        polled.map(|_| {
            said.end();
            place.take();
        })
    }));
    Ok(Opened::Http2(Shared::new(sender, seats)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_of_this_machine_is_never_the_endpoints() {
        // EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL.
        for number in [24, 23, 105, 12, 99] {
            assert!(!classify(io::Error::from_raw_os_error(number)).blames_endpoint());
        }
        // ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT.
        for number in [111, 113, 101, 110] {
            assert!(classify(io::Error::from_raw_os_error(number)).blames_endpoint());
        }
    }
}
