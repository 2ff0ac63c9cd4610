//! A client and a server that speak HTTP/1.1 or HTTP/2, over TCP, TLS or a Unix socket, with trailers.
//!
//! The server does what the path says, so that one copy serves every case of a test.

use super::authority::Authority;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, ServerConfig};
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{mpsc, watch},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// However slow the machine is, an answer takes less.
const PATIENCE: Duration = Duration::from_secs(30);

/// A body that is whole, with its length.
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body of unknown length: pieces, then trailers.
pub fn pieces(pieces: Vec<Bytes>, trailers: Option<HeaderMap>) -> Body {
    let frames = pieces
        .into_iter()
        .map(Frame::data)
        .chain(trailers.map(Frame::trailers));
    StreamBody::new(futures_util::stream::iter(frames.map(Ok))).boxed_unsync()
}

/// A body that comes as it is sent, and never ends while the sender lives.
pub fn open_ended() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, receiver) = mpsc::channel(4);
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((Ok(Frame::data(piece)), receiver))
    });
    (sender, StreamBody::new(frames).boxed_unsync())
}

/// Bytes that say where they are, so that a piece that is lost or doubled shows.
pub fn pattern(len: usize) -> Bytes {
    (0u8..251).cycle().take(len).collect::<Vec<u8>>().into()
}

/// Where a connection leads.
#[derive(Debug, Clone)]
pub enum To {
    Tcp(SocketAddr),
    /// The first address is the client's own.
    TcpFrom(std::net::IpAddr, SocketAddr),
    Unix(PathBuf),
}

/// How one client talks.
#[derive(Clone)]
pub struct Client {
    pub to: To,
    /// What it trusts and offers, and the name it asks for.
    pub tls: Option<(Arc<ClientConfig>, String)>,
    pub http2: bool,
    /// Bytes sent before anything else.
    pub preamble: Vec<u8>,
}

/// An answer, to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap_or("?"))
    }
}

/// One open connection.
pub enum Connection {
    Http1(hyper::client::conn::http1::SendRequest<Body>),
    Http2(hyper::client::conn::http2::SendRequest<Body>),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Client {
    pub fn plain(to: SocketAddr, http2: bool) -> Client {
        Client {
            to: To::Tcp(to),
            tls: None,
            http2,
            preamble: Vec::new(),
        }
    }

    async fn stream(&self) -> std::io::Result<Box<dyn Stream>> {
        use tokio::io::AsyncWriteExt;
        let mut stream: Box<dyn Stream> = match &self.to {
            To::Tcp(address) => Box::new(TcpStream::connect(address).await?),
            To::TcpFrom(own, address) => {
                let socket = tokio::net::TcpSocket::new_v4()?;
                socket.bind((*own, 0).into())?;
                Box::new(socket.connect(*address).await?)
            }
            To::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        stream.write_all(&self.preamble).await?;
        let Some((config, name)) = &self.tls else {
            return Ok(stream);
        };
        let name = rustls_pki_types::ServerName::try_from(name.clone()).unwrap();
        let secured = TlsConnector::from(Arc::clone(config))
            .connect(name, stream)
            .await?;
        Ok(Box::new(secured))
    }

    pub async fn connect(&self) -> Result<Connection, String> {
        let stream = self.stream().await.map_err(|error| error.to_string())?;
        let io = TokioIo::new(stream);
        if self.http2 {
            let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
            let (sender, connection) = made.map_err(|error| error.to_string())?;
            tokio::spawn(connection);
            Ok(Connection::Http2(sender))
        } else {
            let made = hyper::client::conn::http1::handshake(io).await;
            let (sender, connection) = made.map_err(|error| error.to_string())?;
            tokio::spawn(connection);
            Ok(Connection::Http1(sender))
        }
    }

    /// One request on a connection of its own, to the end of the answer.
    pub async fn send(&self, request: Request<Body>) -> Result<Answer, String> {
        self.connect().await?.send(request).await
    }

    pub async fn get(&self, path: &str) -> Result<Answer, String> {
        self.send(request("GET", path, whole(""))).await
    }
}

/// A request as this module's servers understand it.
pub fn request(method: &str, path: &str, body: Body) -> Request<Body> {
    request_to("shop.example", method, path, body)
}

/// The same to another host.
pub fn request_to(host: &str, method: &str, path: &str, body: Body) -> Request<Body> {
    let request = Request::builder()
        .method(method)
        .uri(format!("http://{host}{path}"))
        .header("te", "trailers");
    request.body(body).unwrap()
}

impl Connection {
    /// Sends, and gives the head with the body still to come.
    pub async fn open(&mut self, mut request: Request<Body>) -> Result<Response<Incoming>, String> {
        let sent = match self {
            Connection::Http1(sender) => {
                let host = request.uri().authority().unwrap().as_str().parse().unwrap();
                request.headers_mut().insert("host", host);
                if request.headers().contains_key("te") {
                    request.headers_mut().insert("connection", "te".parse().unwrap());
                }
                *request.uri_mut() = request.uri().path_and_query().unwrap().as_str().parse().unwrap();
                tokio::time::timeout(PATIENCE, sender.send_request(request)).await
            }
            Connection::Http2(sender) => tokio::time::timeout(PATIENCE, sender.send_request(request)).await,
        };
        sent.map_err(|_| "no answer in time".to_owned())?
            .map_err(|error| error.to_string())
    }

    pub async fn send(&mut self, request: Request<Body>) -> Result<Answer, String> {
        let (head, body) = self.open(request).await?.into_parts();
        let collected = tokio::time::timeout(PATIENCE, body.collect()).await;
        let collected = collected
            .map_err(|_| "the answer has no end".to_owned())?
            .map_err(|error| error.to_string())?;
        Ok(Answer {
            status: head.status,
            version: head.version,
            headers: head.headers,
            trailers: collected.trailers().cloned().unwrap_or_default(),
            body: collected.to_bytes(),
        })
    }
}

/// What a server has seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub connections: AtomicU64,
    pub requests: AtomicU64,
    /// Requests whose client went away before they or their answers had ended.
    pub canceled: AtomicU64,
    /// Every request, in the order in which they came.
    pub log: Mutex<Vec<Asked>>,
    /// Names that clients asked for in their handshakes.
    pub names: Mutex<Vec<String>>,
}

/// One request as it came.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// What its client calls it: its field `x-case`.
    pub case: String,
    /// As much of its body as was read.
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
    /// Whether it was read to its end.
    pub whole: bool,
}

impl Seen {
    /// Begins an entry of the log; its place there.
    fn note(&self, head: &http::request::Parts) -> usize {
        let case = head
            .headers
            .get("x-case")
            .map_or("", |case| case.to_str().unwrap());
        let mut log = self.log.lock().unwrap();
        log.push(Asked {
            case: case.to_owned(),
            ..Asked::default()
        });
        log.len() - 1
    }

    /// The requests with this `x-case`.
    pub fn asked(&self, case: &str) -> Vec<Asked> {
        let log = self.log.lock().unwrap();
        log.iter().filter(|asked| asked.case == case).cloned().collect()
    }
}

/// A running server. Ends, listener and connections, when it is dropped.
pub struct Server {
    pub address: Option<SocketAddr>,
    pub seen: Arc<Seen>,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What a server speaks; with TLS, ALPN decides between them.
#[derive(Clone, Default)]
pub struct Speaks {
    pub tls: Option<Arc<ServerConfig>>,
    pub http2: bool,
    /// 0: a free one.
    pub port: u16,
    /// Listens at a Unix socket.
    pub unix: Option<PathBuf>,
    /// Over HTTP/2, the most requests at once on a connection.
    pub streams: Option<u32>,
}

impl Server {
    /// One at this port of 127.0.0.1 (0: any) that speaks these protocols over TLS, with a certificate of this authority.
    pub fn tls_at(port: u16, authority: &Authority, protocols: &[&str]) -> Server {
        Server::start(Speaks {
            tls: Some(Authority::server(
                &authority.issue(&["127.0.0.1"]),
                protocols,
                None,
            )),
            port,
            ..Speaks::default()
        })
    }

    pub fn start(speaks: Speaks) -> Server {
        let seen = Arc::new(Seen::default());
        let (stop, stopping) = watch::channel(false);
        let (told, address_of) = std::sync::mpsc::channel();
        let known = Arc::clone(&seen);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let mut stopping = stopping;
                tokio::select! {
                    () = accept(speaks, known, &told) => {}
                    _ = stopping.wait_for(|stop| *stop) => {}
                }
            });
        });
        Server {
            address: address_of.recv().unwrap(),
            seen,
            stop,
            thread: Some(thread),
        }
    }

    pub fn port(&self) -> u16 {
        self.address.unwrap().port()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(speaks: Speaks, seen: Arc<Seen>, told: &std::sync::mpsc::Sender<Option<SocketAddr>>) {
    if let Some(path) = &speaks.unix {
        let listener = UnixListener::bind(path).unwrap();
        told.send(None).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, speaks.clone(), Arc::clone(&seen)));
        }
        return;
    }
    let listener = TcpListener::bind(("127.0.0.1", speaks.port)).await.unwrap();
    told.send(Some(listener.local_addr().unwrap())).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        tokio::spawn(serve(stream, speaks.clone(), Arc::clone(&seen)));
    }
}

async fn serve<S>(stream: S, speaks: Speaks, seen: Arc<Seen>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    seen.connections.fetch_add(1, Ordering::SeqCst);
    let Some(config) = speaks.tls else {
        return speak(stream, (speaks.http2, speaks.streams), seen).await;
    };
    let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else {
        return;
    };
    let handshake = stream.get_ref().1;
    let name = handshake.server_name().unwrap_or("").to_owned();
    let http2 = handshake.alpn_protocol() == Some(b"h2");
    seen.names.lock().unwrap().push(name);
    speak(stream, (http2, speaks.streams), seen).await;
}

async fn speak<S>(stream: S, (http2, streams): (bool, Option<u32>), seen: Arc<Seen>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(request, Arc::clone(&seen)));
    let io = TokioIo::new(stream);
    let _ = if http2 {
        http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(streams)
            .serve_connection(io, service)
            .await
    } else {
        http1::Builder::new()
            .serve_connection(io, service)
            .with_upgrades()
            .await
    };
}

/// Counts a request as given up unless its answer was taken to the end.
struct Watched(Arc<Seen>, bool);

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.1 {
            self.0.canceled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A request's body, noted as it is read. Dropped before its end, its client has gone away.
struct Noted {
    incoming: Incoming,
    seen: Arc<Seen>,
    /// Its place in the log.
    place: usize,
}

impl Noted {
    fn note(&self, note: impl FnOnce(&mut Asked)) {
        note(&mut self.seen.log.lock().unwrap()[self.place]);
    }
}

impl http_body::Body for Noted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let polled = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        match &polled {
            None => self.note(|asked| asked.whole = true),
            Some(Ok(frame)) => self.note(|asked| {
                asked
                    .body
                    .extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                asked.trailers = asked.trailers.take().or(frame.trailers_ref().cloned());
                asked.whole = asked.trailers.is_some();
            }),
            Some(Err(_)) => {}
        }
        Poll::Ready(polled.map(|frame| frame.map_err(io::Error::other)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        let ended = self.incoming.is_end_stream();
        self.note(|asked| asked.whole |= ended);
        if !self.seen.log.lock().unwrap()[self.place].whole {
            self.seen.canceled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Nothing after a first piece, or pieces without a pause.
fn endless(seen: Arc<Seen>, first: Option<Bytes>) -> Body {
    let (sender, body) = open_ended();
    let watched = Watched(seen, false);
    tokio::spawn(async move {
        let _watched = watched;
        if let Some(first) = first {
            let _ = sender.send(first).await;
            return sender.closed().await;
        }
        let piece = pattern(16 * 1024);
        while sender.send(piece.clone()).await.is_ok() {}
    });
    body
}

/// `/echo`: the body back, with a length. `/mirror`: piece by piece as it comes, with its trailers. `/switch`: says
/// back whatever comes, in the protocol that is asked for. `/size/N`: N bytes with a length. `/chunked/N`: without. `/trailers`: with
/// trailers. `/early`: 403 before the body has come. `/hang`: a head, one piece, and no end. `/flood`: pieces without end or pause. Every answer says how it was
/// asked, and is of the type `x-answer-type`.
async fn answer(mut request: Request<Incoming>, seen: Arc<Seen>) -> Result<Response<Body>, Infallible> {
    seen.requests.fetch_add(1, Ordering::SeqCst);
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let place = seen.note(&head);
    let path = head.uri.path().to_owned();
    let number = path
        .rsplit('/')
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let mut response = Response::builder();
    for name in ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "host"] {
        if let Some(value) = head.headers.get(name) {
            response = response.header(format!("x-saw-{name}"), value);
        }
    }
    if let Some(authority) = head.uri.authority() {
        response = response.header("x-saw-authority", authority.as_str());
    }
    response = response
        .header("x-saw-version", format!("{:?}", head.version))
        .header("cache-control", "private");
    if let Some(kind) = head.headers.get("x-answer-type") {
        response = response.header("content-type", kind);
    }
    let trailers = || HeaderMap::from_iter([("x-checksum".parse().unwrap(), "42".parse().unwrap())]);
    let kind = path.split('/').nth(1).unwrap_or("");
    let body = match kind {
        "switch" if head.headers.contains_key("upgrade") => {
            tokio::spawn(async move {
                let (mut reads, mut writes) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                let _ = tokio::io::copy(&mut reads, &mut writes).await;
            });
            response = response.status(101).header("connection", "upgrade");
            response = response.header("upgrade", &head.headers["upgrade"]);
            whole("")
        }
        "mirror" => {
            if let Some(names) = head.headers.get("trailer") {
                response = response.header("trailer", names);
            }
            let incoming = body;
            Noted {
                incoming,
                seen,
                place,
            }
            .boxed_unsync()
        }
        "echo" => {
            let incoming = body;
            let Ok(collected) = Noted {
                incoming,
                seen,
                place,
            }
            .collect()
            .await
            else {
                return Ok(response.status(400).body(whole("")).unwrap());
            };
            let found = collected.trailers().cloned();
            response = response.header("x-saw-trailers", found.is_some().to_string());
            whole(collected.to_bytes())
        }
        "size" => whole(pattern(number)),
        "chunked" => {
            let all = pattern(number);
            pieces(all.chunks(1000).map(|piece| all.slice_ref(piece)).collect(), None)
        }
        "trailers" => {
            response = response.header("trailer", "x-checksum");
            pieces(
                vec![Bytes::from_static(b"with "), Bytes::from_static(b"trailers")],
                Some(trailers()),
            )
        }
        "early" => {
            response = response.status(403);
            whole("no")
        }
        "flood" => endless(seen, None),
        "hang" => endless(seen, Some(Bytes::from_static(b"first"))),
        _ => whole("ok"),
    };
    Ok(response.body(body).unwrap())
}
