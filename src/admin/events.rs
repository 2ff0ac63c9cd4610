//! Everything that happens, as server-sent events: from now on, or from where a client was cut off.
//!
//! Bounded: so many followers, and each is fed as fast as it reads. One that lags behind the live channel is fed from the
//! store until it has caught up, so nothing is skipped and nothing is kept for it.

use super::{
    Admin, Identity, Problem,
    body::{Asked, Query, bad_request},
    openapi::Problems,
};
use crate::control::{ReadError, StoredEvent};
use axum::{
    extract::State,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures_util::{Stream, stream};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, broadcast, watch};
use utoipa::IntoParams;

/// How many stored events are read at once.
const PAGE: usize = 256;
/// How often a silent stream says that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How soon a client that was cut off should come back.
const COME_BACK: Duration = Duration::from_secs(2);

/// What to follow.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct FollowQuery {
    /// Only this service's. Absent: all that the caller may see.
    service: Option<String>,
    /// Those after this id first, as `Last-Event-ID` says it. Absent: from now on.
    after: Option<u64>,
}

/// Follows what happens, as server-sent events; `data` is one stored event, `id` counts up over all services.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(FollowQuery, ("Last-Event-ID" = Option<u64>, Header, description = "Go on after this event")),
    responses((status = 200, description = "A stream that does not end", body = StoredEvent,
        content_type = "text/event-stream"), Problems))]
pub(super) async fn follow(
    State(admin): State<Admin>,
    Query(query): Query<FollowQuery>,
    headers: HeaderMap,
    asked: Asked,
) -> Result<Response, Problem> {
    if let Some(service) = &query.service {
        asked.identity.require_service(service)?;
        if admin.parts.control.status(service).is_none() {
            return Err(Problem::no_service(service));
        }
    }
    let last = match headers.get("last-event-id") {
        None => query.after,
        Some(given) => {
            let id = given.to_str().ok().and_then(|id| id.trim().parse().ok());
            Some(id.ok_or_else(|| {
                bad_request(
                    "invalidLastEventId",
                    "Last-Event-ID is the id of an event: a number",
                )
            })?)
        }
    };
    let Ok(seat) = Arc::clone(&admin.followers).try_acquire_owned() else {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "tooManyFollowers",
            "as many clients follow events as may",
        )
        .hint("end one of them, or poll GET /v1/services/{service} instead"));
    };
    let follower = Follower {
        // Before the store is read: what is stored meanwhile comes twice and is skipped, never missed.
        live: admin.parts.control.subscribe(),
        stopping: admin.stopping.clone(),
        identity: asked.identity,
        service: query.service,
        behind: last.is_some(),
        last,
        pending: VecDeque::new(),
        admin,
        _seat: seat,
    };
    let hello =
        stream::once(async { Ok::<_, Infallible>(Event::default().retry(COME_BACK).comment("serin")) });
    let events = futures_util::StreamExt::chain(hello, follower.into_stream());
    let alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(events).keep_alive(alive).into_response())
}

struct Follower {
    admin: Admin,
    identity: Identity,
    service: Option<String>,
    /// The last event that was looked at.
    last: Option<u64>,
    /// Whether the store may have events after it.
    behind: bool,
    pending: VecDeque<Arc<StoredEvent>>,
    live: broadcast::Receiver<Arc<StoredEvent>>,
    stopping: watch::Receiver<bool>,
    _seat: OwnedSemaphorePermit,
}

impl Follower {
    fn into_stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, async |mut follower| {
            let event = follower.next().await?;
            Some((Ok(as_sse(&event)), follower))
        })
    }

    /// The next event for this client; none when Serin stops or the store cannot be read.
    async fn next(&mut self) -> Option<Arc<StoredEvent>> {
        loop {
            while let Some(event) = self.pending.pop_front() {
                if self.last.is_some_and(|last| event.id <= last) {
                    continue;
                }
                self.last = Some(event.id);
                if self.wants(&event) {
                    return Some(event);
                }
            }
            if self.behind {
                if let Err(error) = self.catch_up().await {
                    // The client comes back and asks for the same again.
                    tracing::warn!(%error, "a follower of events was let go");
                    return None;
                }
                continue;
            }
            tokio::select! {
                event = self.live.recv() => match event {
                    Ok(event) => self.pending.push_back(event),
                    // Without a last event there is no place in the store to go on from: nothing was shown yet.
                    Err(broadcast::error::RecvError::Lagged(_)) => self.behind = self.last.is_some(),
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
                () = super::stopped(&mut self.stopping) => return None,
            }
        }
    }

    async fn catch_up(&mut self) -> Result<(), ReadError> {
        let after = self.last.unwrap_or(0);
        let page = self
            .admin
            .parts
            .control
            .events(self.service.as_deref(), after, PAGE)
            .await?;
        self.behind = page.len() >= PAGE;
        self.pending.extend(page.into_iter().map(Arc::new));
        Ok(())
    }

    fn wants(&self, event: &StoredEvent) -> bool {
        let asked = self
            .service
            .as_ref()
            .is_none_or(|service| service == event.service.as_str());
        asked && self.identity.may_use(event.service.as_str())
    }
}

fn as_sse(event: &StoredEvent) -> Event {
    let data = serde_json::to_string(event).unwrap_or_default();
    Event::default()
        .id(event.id.to_string())
        .event(&event.event)
        .data(data)
}
