//! The life of one request, in its order: the spine of the data plane.
//!
//! accept -> route -> choose -> headers -> forward -> answer. Each step stands next door; this file only says what comes
//! after what, and what is answered when a step fails.

use super::{
    account::Account,
    body::{BodyHandle, MOST_KEPT, OutBody},
    choose,
    connection::Client,
    exchange::{Exchange, InService},
    forward::{self, Outbound},
    headers, inbound,
    reply::{self, Failure},
    seen::Seen,
    table::Entry,
};
use crate::{metrics::Rejection, route::RequestView};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use http_body::Body;
use hyper::body::Incoming;
use std::{convert::Infallible, rc::Rc, sync::Arc};
use tokio::time::Instant;

/// Serves one request of a client's connection. Never fails: what goes wrong becomes an answer.
pub(super) async fn serve(
    client: Rc<Client>,
    request: Request<Incoming>,
) -> Result<Response<OutBody>, Infallible> {
    let in_service = InService::begin(&client.progress);
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let version = parts.version;
    let seen = Seen::scan(&parts.headers);
    let json = seen.accepts_json;
    let mut account = Account::begin(&client, &parts, started);
    let mut failed = None;
    let mut response = match handle(&client, parts, seen, body, started, &mut account).await {
        Ok(response) => response,
        Err((failure, reason)) => {
            failed = Some(failure);
            if let Some(reason) = reason.or(failure.rejection()) {
                client.listener.metrics.reject(reason);
            }
            let mut response = reply::render(failure, json);
            if reason.is_some() && version != Version::HTTP_2 {
                // What was refused for its form may be followed by more of the same.
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    };
    if let Some(account) = account {
        let bytes = response.body().size_hint().exact().unwrap_or(0);
        account.answered(response.status(), bytes, failed);
    }
    *response.version_mut() = version;
    response.body_mut().hold(in_service, client.http2);
    Ok(response)
}

async fn handle(
    client: &Rc<Client>,
    mut parts: Parts,
    seen: Seen,
    body: Incoming,
    started: Instant,
    account: &mut Option<Box<Account>>,
) -> Result<Response<OutBody>, (Failure, Option<Rejection>)> {
    let accepted =
        inbound::accept(&parts, &seen).map_err(|refusal| (refusal.into(), Some(refusal.reason)))?;
    let entry = find(client, &parts, &seen, accepted).ok_or((Failure::NO_ROUTE, None))?;
    let limits = entry.per_listener[client.listener.index];
    if let Some(limit) = limits.body
        && body.size_hint().lower() > limit
    {
        return Err((Failure::TOO_LARGE, None));
    }

    // One request never sees two tables: this generation is its own to the end.
    let split = entry.live.cell.load_full();
    let tripped = entry.live.cell.is_tripped();
    let worker = &client.worker;
    let who = client.who(&parts.headers);
    let choice = choose::choose(
        &split,
        tripped,
        &entry.service,
        &parts,
        who,
        client.secure,
        || worker.dice128(),
    );
    let target = split.target(choice.role);
    if target.version.endpoints().is_empty() && target.version.name == split.stable.version.name {
        return Err((Failure::NO_VERSION, None));
    }
    if worker.is_over(
        target,
        entry
            .service
            .limits
            .requests
            .min(entry.service.limits.connections),
    ) {
        return Err((Failure::OVERLOAD, None));
    }

    // Nothing of the inbound connection (its upgrade handle) goes further.
    parts.extensions.clear();
    let method = parts.method.clone();
    let mut exchange = Exchange::begin(
        worker,
        method.clone(),
        started,
        Arc::clone(target),
        choice.reason,
        choice.evidence,
        account.take(),
    );
    let inbound_version = parts.version;
    let framing = headers::Framing {
        chunked: accepted.chunked,
        trailers: seen.te_trailers,
    };
    let request_id = || worker.request_id();
    headers::to_version(
        &mut parts.headers,
        seen,
        inbound_version,
        accepted,
        &parts.uri,
        &client.peer,
        request_id,
    );
    let source = outbound_body(&parts, body, accepted.chunked, &limits);
    exchange.leaves(&mut parts.headers, source.as_ref());
    let outbound = Outbound {
        client,
        entry: &entry,
        split: &split,
        limits: &limits,
        role: choice.role,
        started,
        framing,
    };
    let (mut response, exchange) = match forward::forward(outbound, parts, source.as_ref(), exchange).await {
        Ok(answered) => answered,
        Err((failure, outcome, exchange)) => {
            exchange.fail(failure, outcome);
            return Err((failure, None));
        }
    };

    let status = response.status();
    headers::to_client(response.headers_mut(), status, inbound_version);
    if let Some(cookie) = choice.cookie
        && !choose::is_shared_cacheable(&method, status, response.headers())
    {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    let deadline = limits.request.map(|whole| started + whole);
    Ok(response.map(|body| OutBody::upstream(body, exchange, limits.stream_idle, deadline)))
}

fn find(client: &Client, parts: &Parts, seen: &Seen, accepted: inbound::Accepted) -> Option<Arc<Entry>> {
    let table = client.worker.shared.table.load();
    let view = RequestView {
        listener: client.listener.index,
        host: accepted.host(&parts.uri, seen),
        path: parts.uri.path(),
        query: parts.uri.query(),
        method: &parts.method,
        headers: &parts.headers,
    };
    table.router.find(&view).cloned()
}

/// The body to send on, if there is one; remembered while it is small when the method may be repeated.
fn outbound_body(
    parts: &Parts,
    body: Incoming,
    chunked: bool,
    limits: &super::table::Limits,
) -> Option<BodyHandle> {
    if body.is_end_stream() && !chunked {
        return None;
    }
    let keep = is_idempotent(&parts.method) && body.size_hint().lower() <= MOST_KEPT;
    Some(BodyHandle::new(body, keep, limits.body, limits.body_idle))
}

/// Whether doing it twice is the same as doing it once (RFC 9110 9.2.2).
pub(super) fn is_idempotent(method: &Method) -> bool {
    [
        Method::GET,
        Method::HEAD,
        Method::PUT,
        Method::DELETE,
        Method::OPTIONS,
    ]
    .contains(method)
}

/// A response that a version must not send: we asked for no upgrade.
pub(super) fn is_unsolicited(status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || status.is_informational()
}
