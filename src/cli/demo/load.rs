//! A gentle, steady load over a few connections, and what came back.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpStream, sync::watch, task::JoinSet};

/// Connections that share the load.
const CLIENTS: u32 = 8;

/// What the clients saw.
#[derive(Debug, Default)]
struct Seen {
    answered: AtomicU64,
    errors: AtomicU64,
    broken: AtomicU64,
}

/// What the clients have seen so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    /// Responses.
    pub(super) answered: u64,
    /// Of those, 5xx.
    pub(super) errors: u64,
    /// Requests without a response.
    pub(super) broken: u64,
}

/// A running load.
pub(super) struct Load {
    seen: Arc<Seen>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

impl Load {
    /// Sends `rate` requests per second to `to`.
    pub(super) fn start(to: SocketAddr, rate: u32) -> Load {
        let seen = Arc::new(Seen::default());
        let (stop, stopping) = watch::channel(false);
        let mut clients = JoinSet::new();
        let every = Duration::from_secs(1) * CLIENTS / rate.max(1);
        for _ in 0..CLIENTS {
            clients.spawn(client(to, every, Arc::clone(&seen), stopping.clone()));
        }
        Load { seen, stop, clients }
    }

    pub(super) fn counts(&self) -> Counts {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Counts {
            answered: read(&self.seen.answered),
            errors: read(&self.seen.errors),
            broken: read(&self.seen.broken),
        }
    }

    pub(super) async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.clients.join_next().await.is_some() {}
    }
}

async fn client(to: SocketAddr, every: Duration, seen: Arc<Seen>, stopping: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut connection = None;
    while !*stopping.borrow() {
        ticks.tick().await;
        let result = match connection.take() {
            Some(sender) => request(to, sender).await,
            None => match connect(to).await {
                Some(sender) => request(to, sender).await,
                None => None,
            },
        };
        let Some((status, sender)) = result else {
            seen.broken.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        seen.answered.fetch_add(1, Ordering::Relaxed);
        if status.is_server_error() {
            seen.errors.fetch_add(1, Ordering::Relaxed);
        }
        connection = Some(sender);
    }
}

type Sender = SendRequest<Empty<Bytes>>;

async fn connect(to: SocketAddr) -> Option<Sender> {
    let stream = TcpStream::connect(to).await.ok()?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    Some(sender)
}

async fn request(to: SocketAddr, mut sender: Sender) -> Option<(http::StatusCode, Sender)> {
    sender.ready().await.ok()?;
    let request = Request::get("/")
        .header("host", to.to_string())
        .body(Empty::new())
        .ok()?;
    let response = sender.send_request(request).await.ok()?;
    let status = response.status();
    response.into_body().collect().await.ok()?;
    Some((status, sender))
}
