//! The small service that the demo releases: it says who it is, and a bad version fails a share of its requests.

use anyhow::Context;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle};

/// A running copy of the service; ends when dropped.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) name: &'static str,
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Sample {
    /// Starts a copy that fails `failing` of its requests, 0 to 1.
    pub(super) async fn start(name: &'static str, failing: f64) -> anyhow::Result<Sample> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .context("listen for the demo's service")?;
        let address = listener.local_addr()?;
        // The same failures in every demo.
        let dice = Arc::new(Mutex::new(SmallRng::seed_from_u64(5)));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let dice = Arc::clone(&dice);
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let (lucky, wait) = roll(&dice, failing);
                        answer(name, request, lucky, wait)
                    });
                    // The proxy closes idle connections; that is no error worth telling.
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Sample {
            name,
            address,
            accepting,
        })
    }

    /// Where it listens.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn roll(dice: &Mutex<SmallRng>, failing: f64) -> (bool, Duration) {
    let mut dice = dice.lock().unwrap_or_else(PoisonError::into_inner);
    (
        !dice.random_bool(failing),
        Duration::from_micros(dice.random_range(500..4000)),
    )
}

async fn answer(
    name: &'static str,
    request: Request<Incoming>,
    lucky: bool,
    wait: Duration,
) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    let mut response = Response::new(Full::default());
    if request.uri().path() == "/healthz" {
        return Ok(response);
    }
    tokio::time::sleep(wait).await;
    if lucky {
        *response.body_mut() = Full::from(format!("hello from {name}\n"));
    } else {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        *response.body_mut() = Full::from(format!("{name} is broken\n"));
    }
    Ok(response)
}
