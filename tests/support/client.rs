//! Clients that count: many connections over HTTP/1.1 or cleartext HTTP/2, or one request for its answer.
//!
//! They behave as good clients do: `Connection: close` and GOAWAY make them connect anew, and a request that is known
//! never to have been sent is sent again. Everything else that goes wrong is counted against the proxy.

use super::{
    answers::{Payload, full},
    now,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Method, Request, Response, Version,
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    error::Error,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpStream,
    sync::{Mutex as Turn, watch},
    time::error::Elapsed,
};

/// However long a test hangs, clients do not outlive this.
const LONGEST: Duration = Duration::from_secs(240);
/// No answer for this long is an error.
const PATIENCE: Duration = Duration::from_secs(30);

type Make = Arc<dyn Fn(u64) -> Request<Payload> + Send + Sync>;

/// What clients do.
#[derive(Clone)]
pub struct Plan {
    to: SocketAddr,
    http2: bool,
    connections: usize,
    streams: usize,
    total: u64,
    pause: Duration,
    ends_when_refused: bool,
    make: Make,
}

impl Plan {
    /// GETs over `connections` connections, one after the other on each, until stopped.
    pub fn new(to: SocketAddr, connections: usize) -> Plan {
        Plan {
            to,
            http2: false,
            connections,
            streams: 1,
            total: u64::MAX,
            pause: Duration::ZERO,
            ends_when_refused: false,
            make: Arc::new(|_| get("/")),
        }
    }

    /// Over HTTP/2, that many requests at once on each connection.
    pub fn http2(mut self, streams: usize) -> Plan {
        (self.http2, self.streams) = (true, streams);
        self
    }

    /// Ends by itself after that many.
    pub fn total(mut self, total: u64) -> Plan {
        self.total = total;
        self
    }

    /// After each answer, before the next request.
    pub fn pause(mut self, pause: Duration) -> Plan {
        self.pause = pause;
        self
    }

    /// A refused connection is not an error: the proxy has left, and so does the client.
    pub fn ends_when_refused(mut self) -> Plan {
        self.ends_when_refused = true;
        self
    }

    /// The n-th request.
    pub fn requests(mut self, make: impl Fn(u64) -> Request<Payload> + Send + Sync + 'static) -> Plan {
        self.make = Arc::new(make);
        self
    }

    pub fn start(self) -> Clients {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let (stop, stopping) = watch::channel(false);
        let (leave, mut leaving) = watch::channel(false);
        let counting = Arc::clone(&tally);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let local = tokio::task::LocalSet::new();
            let all = local.run_until(run(self, counting, stopping));
            runtime.block_on(async {
                tokio::select! {
                    _ = tokio::time::timeout(LONGEST, all) => {}
                    _ = leaving.wait_for(|leave| *leave) => {}
                }
            });
        });
        Clients {
            tally,
            stop,
            leave,
            thread: Some(thread),
        }
    }
}

/// A request with no body.
pub fn request(method: &str, path: &str) -> Request<Payload> {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    Request::builder()
        .method(method)
        .uri(path)
        .body(full(""))
        .unwrap()
}

pub fn get(path: &str) -> Request<Payload> {
    request("GET", path)
}

/// A request without an answer.
#[derive(Debug, Clone)]
pub struct Broken {
    pub method: String,
    pub at: Instant,
    pub why: String,
}

/// A request that was answered with 500 or above.
#[derive(Debug, Clone)]
pub struct Failed {
    pub method: String,
    pub status: u16,
    pub sent: Instant,
    pub at: Instant,
}

/// What clients saw.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    /// By method, status and the version that answered (empty: Serin itself).
    pub answers: BTreeMap<(String, u16, String), u64>,
    pub broken: Vec<Broken>,
    /// Answers of 500 and above.
    pub failed: Vec<Failed>,
    /// Connections opened.
    pub connections: u64,
}

impl Tally {
    fn count(
        &mut self,
        method: String,
        sent: Instant,
        answered: Result<Result<(u16, String), Lost>, Elapsed>,
    ) {
        let at = now();
        let why = match answered {
            Ok(Ok((status, version))) => {
                if status >= 500 {
                    self.failed.push(Failed {
                        method: method.clone(),
                        status,
                        sent,
                        at,
                    });
                }
                *self.answers.entry((method, status, version)).or_default() += 1;
                return;
            }
            Ok(Err(lost)) => format!("{lost:?}"),
            Err(_) => "no answer in time".to_owned(),
        };
        self.broken.push(Broken { method, at, why });
    }

    pub fn total(&self) -> u64 {
        self.answers.values().sum()
    }

    pub fn of(&self, holds: impl Fn(&str, u16, &str) -> bool) -> u64 {
        let of = self.answers.iter();
        of.filter(|((method, status, version), _)| holds(method, *status, version))
            .map(|(_, count)| count)
            .sum()
    }

    pub fn version(&self, version: &str) -> u64 {
        self.of(|_, _, by| by == version)
    }

    /// Answers of 500 and above, and requests without one.
    pub fn errors(&self) -> usize {
        self.failed.len() + self.broken.len()
    }

    /// Fails the test if anything was not answered well.
    pub fn assert_clean(&self) {
        assert!(
            self.errors() == 0,
            "{} broken, {} failed of {}; first: {:?} {:?}; answers {:?}",
            self.broken.len(),
            self.failed.len(),
            self.total(),
            self.broken.first(),
            self.failed.first(),
            self.answers
        );
    }
}

/// Running clients.
pub struct Clients {
    tally: Arc<Mutex<Tally>>,
    stop: watch::Sender<bool>,
    leave: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Clients {
    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap().clone()
    }

    pub fn total(&self) -> u64 {
        self.tally.lock().unwrap().total()
    }

    /// Waits until that many more requests have been answered.
    pub fn wait_more(&self, requests: u64) {
        let until = self.total() + requests;
        super::wait_for("more answers", Duration::from_secs(60), || {
            (self.total() >= until).then_some(())
        });
    }

    /// Ends them, with nothing left in flight.
    pub fn stop(mut self) -> Tally {
        self.stop.send_replace(true);
        self.join();
        self.tally()
    }

    /// Ends them at once, whatever is in flight.
    pub fn abandon(mut self) {
        self.leave.send_replace(true);
        self.join();
    }

    /// Waits until they have ended by themselves.
    pub fn finish(mut self) -> Tally {
        self.join();
        self.tally()
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.leave.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn run(plan: Plan, tally: Arc<Mutex<Tally>>, stopping: watch::Receiver<bool>) {
    let next = Arc::new(AtomicU64::new(0));
    let mut clients = Vec::new();
    for _ in 0..plan.connections {
        let connection = Rc::new(Connection::new(plan.to, plan.http2, Arc::clone(&tally)));
        for _ in 0..plan.streams {
            let one = client(
                plan.clone(),
                Rc::clone(&connection),
                Arc::clone(&next),
                Arc::clone(&tally),
                stopping.clone(),
            );
            clients.push(tokio::task::spawn_local(one));
        }
    }
    for client in clients {
        let _ = client.await;
    }
}

async fn client(
    plan: Plan,
    connection: Rc<Connection>,
    next: Arc<AtomicU64>,
    tally: Arc<Mutex<Tally>>,
    mut stopping: watch::Receiver<bool>,
) {
    while !*stopping.borrow() {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= plan.total {
            return;
        }
        let mut request = (plan.make)(number);
        finish_head(&mut request, plan.to, plan.http2);
        let method = request.method().to_string();
        let sent = now();
        let answered = tokio::time::timeout(PATIENCE, connection.exchange(request)).await;
        if let Ok(Err(Lost::Refused)) = answered
            && plan.ends_when_refused
        {
            return;
        }
        tally.lock().unwrap().count(method, sent, answered);
        if !plan.pause.is_zero() {
            let _ = tokio::time::timeout(plan.pause, stopping.wait_for(|stop| *stop)).await;
        }
    }
}

/// What every request needs and tests need not write.
fn finish_head(request: &mut Request<Payload>, to: SocketAddr, http2: bool) {
    if http2 {
        let path = request.uri().path_and_query().cloned();
        let uri = hyper::Uri::builder().scheme("http").authority(to.to_string());
        *request.uri_mut() = uri.path_and_query(path.unwrap()).build().unwrap();
        *request.version_mut() = Version::HTTP_2;
    } else if !request.headers().contains_key("host") {
        let host = to.to_string().parse().unwrap();
        request.headers_mut().insert("host", host);
    }
}

#[derive(Debug)]
enum Lost {
    /// Nobody listens any more.
    Refused,
    /// What went wrong.
    Error(#[allow(dead_code, reason = "printed")] String),
}

enum Sender {
    Http1(http1::SendRequest<Payload>),
    Http2(http2::SendRequest<Payload>),
}

/// One client's connection, opened when it is needed.
struct Connection {
    to: SocketAddr,
    http2: bool,
    sender: RefCell<Option<Sender>>,
    opening: Turn<()>,
    tally: Arc<Mutex<Tally>>,
}

impl Connection {
    fn new(to: SocketAddr, http2: bool, tally: Arc<Mutex<Tally>>) -> Connection {
        Connection {
            to,
            http2,
            sender: RefCell::default(),
            opening: Turn::new(()),
            tally,
        }
    }

    /// A usable sender: the kept one unless it is closed, otherwise a new connection's.
    async fn sender(&self) -> Result<Sender, Lost> {
        let _turn = self.opening.lock().await;
        let kept = self.sender.borrow_mut().take();
        match kept {
            Some(Sender::Http1(mut sender)) => {
                let usable = sender.ready().await.is_ok();
                if usable {
                    return Ok(Sender::Http1(sender));
                }
            }
            Some(Sender::Http2(mut sender)) => {
                let usable = sender.ready().await.is_ok();
                if usable {
                    self.sender.replace(Some(Sender::Http2(sender.clone())));
                    return Ok(Sender::Http2(sender));
                }
            }
            None => {}
        }
        let stream = TcpStream::connect(self.to).await.map_err(|error| {
            if error.kind() == std::io::ErrorKind::ConnectionRefused {
                Lost::Refused
            } else {
                Lost::Error(format!("connect: {error}"))
            }
        })?;
        let _ = stream.set_nodelay(true);
        self.tally.lock().unwrap().connections += 1;
        open(stream, self.http2, &self.sender).await
    }

    async fn exchange(&self, mut request: Request<Payload>) -> Result<(u16, String), Lost> {
        // A request that was never sent goes out again; a server that closes every time is an error all the same.
        for _ in 0..20 {
            match self.sender().await? {
                Sender::Http1(mut sender) => match sender.try_send_request(request).await {
                    Ok(response) => {
                        let seen = read(response).await?;
                        self.sender.replace(Some(Sender::Http1(sender)));
                        return Ok(seen);
                    }
                    Err(mut error) => match error.take_message() {
                        Some(unsent) => request = unsent,
                        None => return Err(Lost::Error(chain(error.error()))),
                    },
                },
                Sender::Http2(mut sender) => {
                    let again = copy(&request);
                    match sender.try_send_request(request).await {
                        Ok(response) => return read(response).await,
                        Err(mut error) => {
                            let why = chain(error.error());
                            let unsent = error.take_message();
                            request = match (unsent, again) {
                                (Some(unsent), _) => unsent,
                                // GOAWAY names the last stream that was processed, REFUSED_STREAM says that this one was not.
                                (None, Some(again))
                                    if why.contains("not a result of an error")
                                        || why.contains("refused") =>
                                {
                                    again
                                }
                                (None, _) => return Err(Lost::Error(why)),
                            };
                            self.sender.replace(None);
                        }
                    }
                }
            }
        }
        Err(Lost::Error(
            "closed before the request was sent, 20 times".to_owned(),
        ))
    }
}

async fn open(stream: TcpStream, http2: bool, kept: &RefCell<Option<Sender>>) -> Result<Sender, Lost> {
    let failed = |error: hyper::Error| Lost::Error(format!("handshake: {}", chain(&error)));
    let io = TokioIo::new(stream);
    if http2 {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .handshake(io)
            .await
            .map_err(failed)?;
        tokio::task::spawn(connection);
        kept.replace(Some(Sender::Http2(sender.clone())));
        Ok(Sender::Http2(sender))
    } else {
        let (sender, connection) = http1::handshake(io).await.map_err(failed)?;
        tokio::task::spawn(connection);
        Ok(Sender::Http1(sender))
    }
}

async fn read(response: Response<Incoming>) -> Result<(u16, String), Lost> {
    let (status, version) = (response.status().as_u16(), version_of(response.headers()));
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame.map_err(|error| Lost::Error(format!("body after {status}: {}", chain(&error))))?;
    }
    Ok((status, version))
}

fn version_of(headers: &HeaderMap) -> String {
    let value = headers.get("x-version").and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

/// A request without a body can be made again.
fn copy(request: &Request<Payload>) -> Option<Request<Payload>> {
    use hyper::body::Body;
    if !request.body().is_end_stream() {
        return None;
    }
    let mut again = Request::new(full(""));
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    *again.version_mut() = request.version();
    Some(again)
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// One whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Whether the body came to its proper end.
    pub whole: bool,
}

impl Answer {
    pub fn version(&self) -> String {
        version_of(&self.headers)
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One request over a connection of its own.
pub fn ask(to: SocketAddr, http2: bool, mut request: Request<Payload>) -> Result<Answer, String> {
    finish_head(&mut request, to, http2);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let asked = async {
        let stream = TcpStream::connect(to).await.map_err(|error| error.to_string())?;
        let _ = stream.set_nodelay(true);
        let kept = RefCell::default();
        let sender = open(stream, http2, &kept)
            .await
            .map_err(|lost| format!("{lost:?}"))?;
        let response = match sender {
            Sender::Http1(mut sender) => sender.send_request(request).await,
            Sender::Http2(mut sender) => sender.send_request(request).await,
        };
        let response = response.map_err(|error| chain(&error))?;
        let (parts, mut body) = response.into_parts();
        let (mut bytes, mut whole) = (Vec::new(), true);
        while let Some(frame) = body.frame().await {
            match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(data)) => bytes.extend_from_slice(&data),
                Ok(Err(_)) => {}
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: bytes.into(),
            whole,
        })
    };
    runtime.block_on(async {
        let asked = tokio::time::timeout(PATIENCE, asked).await;
        asked.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    })
}
