//! Copies of a service that say who they are and fail as told.

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};
use tokio::{net::TcpListener, sync::watch};

/// A running copy. Ends, listener and connections, when it is dropped.
pub struct Upstream {
    pub address: SocketAddr,
    pub seen: Arc<AtomicU64>,
    /// Of every thousand requests this many are answered with 500, evenly spread.
    pub failing: Arc<AtomicU32>,
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
        let (seen, failing) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU32::new(0)));
        let (stop, stopping) = watch::channel(false);
        let (told, address_of) = std::sync::mpsc::channel();
        let (count, rate) = (Arc::clone(&seen), Arc::clone(&failing));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind(address).await.unwrap();
                told.send(listener.local_addr().unwrap()).unwrap();
                accept(name, listener, count, rate, stopping).await;
            });
        });
        let address = address_of.recv().unwrap();
        Upstream {
            address,
            seen,
            failing,
            stop,
            thread: Some(thread),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> u64 {
        self.seen.load(Ordering::SeqCst)
    }

    pub fn fail(&self, per_thousand: u32) {
        self.failing.store(per_thousand, Ordering::SeqCst);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(
    name: &'static str,
    listener: TcpListener,
    seen: Arc<AtomicU64>,
    failing: Arc<AtomicU32>,
    mut stopping: watch::Receiver<bool>,
) {
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted { Ok((stream, _)) => stream, Err(_) => continue },
            _ = stopping.wait_for(|stop| *stop) => return,
        };
        let (seen, failing) = (Arc::clone(&seen), Arc::clone(&failing));
        // Tasks die with the runtime, so a dropped copy resets what it has in flight.
        tokio::spawn(async move {
            let service =
                service_fn(move |request| answer(name, request, Arc::clone(&seen), Arc::clone(&failing)));
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    name: &'static str,
    request: Request<Incoming>,
    seen: Arc<AtomicU64>,
    failing: Arc<AtomicU32>,
) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    if request.uri().path() == "/healthz" {
        return Ok(Response::new(Full::default()));
    }
    let number = seen.fetch_add(1, Ordering::SeqCst) + 1;
    let rate = u64::from(failing.load(Ordering::SeqCst));
    let fails = number * rate / 1000 != (number - 1) * rate / 1000;
    let body = request
        .into_body()
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let response = Response::builder()
        .status(if fails { 500 } else { 200 })
        .header("x-version", name);
    let text = if body.is_empty() {
        bytes::Bytes::from_static(name.as_bytes())
    } else {
        body
    };
    Ok(response.body(Full::new(text)).unwrap())
}
