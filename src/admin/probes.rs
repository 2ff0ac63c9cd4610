//! What an orchestrator asks: alive, ready, started. And the metrics, which a scraper asks at the same address.

use super::{Admin, connections::Seated};
use crate::metrics::Registry;
use axum::{
    Extension,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

#[derive(Debug, Default)]
struct Flags {
    configured: AtomicBool,
    draining: AtomicBool,
}

/// What the probes say; `app` sets it. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Probes(Arc<Flags>);

impl Probes {
    /// The first configuration is in force and every listener accepts.
    pub fn set_started(&self) {
        self.0.configured.store(true, Ordering::Release);
    }

    /// No new traffic, please: we are about to stop.
    pub fn set_draining(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Whether the first configuration is in force.
    pub fn is_started(&self) -> bool {
        self.0.configured.load(Ordering::Acquire)
    }

    /// Whether we are about to stop.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }
}

fn verdict(bad: Option<&'static str>) -> Response {
    let (status, text) = bad.map_or((StatusCode::OK, "ok"), |why| {
        (StatusCode::SERVICE_UNAVAILABLE, why)
    });
    let plain = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, plain, format!("{text}\n")).into_response()
}

/// The process answers.
#[utoipa::path(get, path = "/livez", tag = "probes", responses((status = 200, description = "Alive", body = String)))]
pub(super) async fn livez() -> Response {
    verdict(None)
}

/// It can take traffic: configured, rollouts restored, the state can be stored, some version has an address, not draining.
#[utoipa::path(get, path = "/readyz", tag = "probes", responses(
    (status = 200, description = "Ready", body = String),
    (status = 503, description = "Not yet, or not any more; the body says why", body = String)))]
pub(super) async fn readyz(State(admin): State<Admin>) -> Response {
    let probes = &admin.parts.probes;
    verdict(if probes.is_draining() {
        Some("draining")
    } else if !probes.is_started() {
        Some("no configuration is in force yet")
    } else if !admin.parts.control.is_ready() {
        Some("the state of rollouts cannot be stored")
    } else if admin.parts.control.leads_nowhere() {
        Some("no version has an address: their names cannot be resolved")
    } else {
        None
    })
}

/// The first configuration is in force.
#[utoipa::path(get, path = "/startupz", tag = "probes", responses(
    (status = 200, description = "Started", body = String),
    (status = 503, description = "Not yet", body = String)))]
pub(super) async fn startupz(State(admin): State<Admin>) -> Response {
    let started = admin.parts.probes.is_started();
    verdict((!started).then_some("no configuration is in force yet"))
}

/// The connection that asks; none where requests come without one, as in tests.
type Seat = Option<Extension<Arc<Seated>>>;

/// With many services this takes tens of milliseconds: on a thread of its own, so that rollouts do not wait for a scrape. One
/// after the other, however many are asked for: each would wake a thread or start one, and several of them would share the
/// cores with each worker.
async fn off_the_loop(
    admin: &Admin,
    seated: Seat,
    expose: impl FnOnce(&Registry) -> String + Send + 'static,
) -> Response {
    let turn = match Arc::clone(&admin.scrapes).try_lock_owned() {
        Ok(turn) => turn,
        Err(_) => {
            // Others' scrapes are no reason to keep a probe out: who waits for them has its seat only until somebody needs it.
            let waits = seated.and_then(|Extension(seated)| seated.stalls().map(|since| (seated, since)));
            let turn = Arc::clone(&admin.scrapes).lock_owned().await;
            if let Some((seated, since)) = waits {
                seated.goes_on(since);
            }
            turn
        }
    };
    let metrics = admin.parts.metrics.clone();
    let expose = move || {
        // Until it is done, though nobody may be waiting for it any more.
        let _turn = turn;
        expose(&metrics)
    };
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    match tokio::task::spawn_blocking(expose).await {
        Ok(text) => (kind, text).into_response(),
        // A panic, which has been logged.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Everything that is counted, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "metrics",
    responses((status = 200, description = "Prometheus text format", body = String)))]
pub(super) async fn metrics(State(admin): State<Admin>, seated: Seat) -> Response {
    off_the_loop(&admin, seated, Registry::expose).await
}

/// `http_requests_total{job,version,status}`, for queries that were written before Serin.
#[utoipa::path(get, path = "/metrics/compat", tag = "metrics",
    responses((status = 200, description = "Prometheus text format", body = String)))]
pub(super) async fn metrics_compat(State(admin): State<Admin>, seated: Seat) -> Response {
    off_the_loop(&admin, seated, Registry::expose_compat).await
}
