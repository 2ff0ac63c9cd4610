//! Copies of a service that say who they are, fail as told and otherwise behave as the request's path asks (`answers`).

use super::answers::{self, Shared};
use hyper::{
    Request,
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Notify, watch},
};

/// How long an unanswered upstream lives when a test hangs.
const LONGEST: Duration = Duration::from_secs(600);

/// A running copy. Ends, listener and connections, when it is dropped.
pub struct Upstream {
    pub address: SocketAddr,
    socket: Option<PathBuf>,
    http2: bool,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Upstream {
    /// Starts a copy that answers with `name` as header `x-version` and in its body.
    pub fn start(name: &'static str) -> Upstream {
        Upstream::start_at(name, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// The same at a known address.
    pub fn start_at(name: &'static str, address: SocketAddr) -> Upstream {
        Upstream::run(name, address, None, false)
    }

    /// A copy that listens at a Unix socket.
    pub fn unix(name: &'static str, path: &Path) -> Upstream {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Upstream::run(name, nowhere, Some(path.to_owned()), false)
    }

    /// The same, where HTTP/2 is spoken and nothing else.
    pub fn unix_h2c(name: &'static str, path: &Path) -> Upstream {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Upstream::run(name, nowhere, Some(path.to_owned()), true)
    }

    /// A copy that speaks HTTP/2 without TLS and nothing else.
    pub fn h2c(name: &'static str) -> Upstream {
        Upstream::run(name, SocketAddr::from(([127, 0, 0, 1], 0)), None, true)
    }

    fn run(name: &'static str, address: SocketAddr, socket: Option<PathBuf>, http2: bool) -> Upstream {
        let shared = Arc::new(Shared::new(name));
        let (stop, stopping) = watch::channel(false);
        let (told, address_of) = std::sync::mpsc::channel();
        let serving = Arc::clone(&shared);
        let path = socket.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = match path {
                    Some(path) => {
                        let listener = UnixListener::bind(path).unwrap();
                        told.send(address).unwrap();
                        Listener::Unix(listener)
                    }
                    None => {
                        let listener = TcpListener::bind(address).await.unwrap();
                        told.send(listener.local_addr().unwrap()).unwrap();
                        Listener::Tcp(listener)
                    }
                };
                let _ = tokio::time::timeout(LONGEST, accept(listener, http2, serving, stopping)).await;
            });
        });
        let address = address_of.recv().unwrap();
        Upstream {
            address,
            socket,
            http2,
            shared,
            stop,
            thread: Some(thread),
        }
    }

    pub fn url(&self) -> String {
        if let Some(path) = &self.socket {
            let scheme = if self.http2 { "unix+h2c" } else { "unix" };
            return format!("{scheme}:{}", path.display());
        }
        let scheme = if self.http2 { "h2c" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Requests that arrived, other than for `/healthz`.
    pub fn requests(&self) -> u64 {
        self.shared.seen.load(Ordering::SeqCst)
    }

    /// Requests that have arrived and are not answered whole.
    pub fn in_flight(&self) -> u64 {
        self.shared.in_flight.load(Ordering::SeqCst)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Of every thousand requests this many are answered with 500, evenly spread.
    pub fn fail(&self, per_thousand: u32) {
        self.shared.failing.store(per_thousand, Ordering::SeqCst);
    }

    /// Of every thousand answers this many have the header `x-app-error`, evenly spread, whatever their status.
    pub fn mark(&self, per_thousand: u32) {
        self.shared.marking.store(per_thousand, Ordering::SeqCst);
    }

    /// From now on nothing is answered.
    pub fn hang(&self) {
        self.shared.hanging.store(true, Ordering::SeqCst);
    }

    /// Of every thousand requests this many are answered with 404, evenly spread.
    pub fn refuse(&self, per_thousand: u32) {
        self.shared.refusing.store(per_thousand, Ordering::SeqCst);
    }

    /// Gracefully closes each connection after that many requests: `Connection: close`, or GOAWAY.
    pub fn recycle_after(&self, requests: u32) {
        self.shared.recycle.store(requests, Ordering::SeqCst);
    }

    /// Answers what waits at `/gate`, and from now on everything that comes there.
    pub fn open_gate(&self) {
        self.shared.gate.send_replace(u32::MAX);
    }

    /// Answers what waits at `/gate/1`, the next time what waits at `/gate/2`, and so on.
    pub fn open_gate_for_the_next(&self) {
        self.shared.gate.send_modify(|times| *times += 1);
    }

    /// Request heads seen at paths that begin with `/head`.
    pub fn heads(&self) -> Vec<String> {
        self.shared.heads.lock().unwrap().clone()
    }

    /// Ends it as SIGKILL would: every socket closed at once, whatever is in flight. Requests in flight at that moment.
    pub fn kill(mut self) -> u64 {
        self.end();
        self.in_flight()
    }

    fn end(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Listener {
    async fn accept(&self) -> std::io::Result<Box<dyn Stream>> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok(Box::new(stream))
            }
            Listener::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.end();
    }
}

async fn accept(listener: Listener, http2: bool, shared: Arc<Shared>, mut stopping: watch::Receiver<bool>) {
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted { Ok(stream) => stream, Err(_) => continue },
            _ = stopping.wait_for(|stop| *stop) => {
                shared.killed.store(true, Ordering::SeqCst);
                return;
            }
        };
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(&shared);
        // Tasks die with the runtime, so a dropped copy resets what it has in flight.
        tokio::spawn(async move {
            let served = Arc::new(AtomicU32::new(0));
            let (worn, most) = (Arc::new(Notify::new()), shared.recycle.load(Ordering::SeqCst));
            let told = Arc::clone(&worn);
            let service = service_fn(move |request: Request<Incoming>| {
                let last = most > 0 && served.fetch_add(1, Ordering::SeqCst) + 1 == most;
                if last {
                    told.notify_one();
                }
                answers::answer(Arc::clone(&shared), request, last && !http2)
            });
            let io = TokioIo::new(stream);
            if http2 {
                let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
                let mut serving = pin!(serving);
                tokio::select! {
                    _ = &mut serving => return,
                    () = worn.notified() => serving.as_mut().graceful_shutdown(),
                }
                let _ = serving.await;
            } else {
                let _ = http1::Builder::new().serve_connection(io, service).await;
            }
        });
    }
}
