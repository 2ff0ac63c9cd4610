//! The life of one request, in its order: the spine of the data plane.
//!
//! accept -> route -> choose -> headers -> forward -> answer. Each step stands next door; this file only says what comes
//! after what, and what is answered when a step fails.

use super::{
    account::Account,
    body::{BodyHandle, MOST_KEPT, OutBody},
    choose,
    connection::Client,
    detached::detach,
    exchange::{Exchange, InService},
    filters,
    forward::{self, Heads, Outbound},
    headers, inbound,
    received::Received,
    reply::{self, Failure, Form},
    routes::{Found, LiveSplit, Routes},
    seen::Seen,
    table::{Entry, Limits},
    upgrade::{self, Ending, Tunnel},
    worker::WorkerState,
};
use crate::{
    metrics::{Outcome, Rejection},
    model::Role,
    route::RequestView,
    upstream::Target,
};
use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, Version, header, request::Parts};
use http_body::Body;
use hyper::body::Incoming;
use std::{convert::Infallible, rc::Rc};
use tokio::time::Instant;

/// Serves one request of a client's connection. Never fails: what goes wrong becomes an answer.
///
/// The head is taken into the future where it stays; an `async fn` would move it once more. Nothing else is done here: then
/// the future, which is large, is made in its place and not copied there.
#[inline]
pub(super) fn serve(
    client: Rc<Client>,
    parts: Parts,
    body: Incoming,
) -> impl Future<Output = Result<Response<OutBody>, Infallible>> {
    let (version, is_head) = (parts.version, parts.method == Method::HEAD);
    let mut heads = Heads {
        request: Some(parts),
        response: None,
    };
    async move {
        let in_service = InService::begin(&client.progress);
        let started = Instant::now();
        let parts = heads.request.as_ref();
        let seen = parts.map_or_else(Seen::default, |parts| Seen::scan(&parts.headers));
        let form = Form::of(&seen);
        client.progress.unread.set(!body.is_end_stream());
        let mut account = parts.and_then(|parts| Account::begin(&client, parts, started));
        let mut failed = None;
        let mut response = Response::new(OutBody::none());
        let handled = handle(
            &client,
            &mut heads,
            seen,
            body,
            started,
            &mut account,
            &mut response,
        );
        if let Err((failure, reason)) = handled.await {
            failed = Some(failure);
            if let Some(reason) = reason.or(failure.rejection()) {
                client.listener.metrics.reject(reason);
            }
            response = reply::render(failure, form);
            if (reason.is_some() || client.progress.unread.get()) && version != Version::HTTP_2 {
                // What was refused for its form may be followed by more of the same; a body that nobody reads is in the way.
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
        }
        if let Some(account) = account {
            let bytes = response.body().size_hint().exact().filter(|_| !is_head);
            account.answered(response.status(), bytes.unwrap_or(0), failed);
        }
        if client.worker.is_draining()
            && !client.http2
            && response.status() != StatusCode::SWITCHING_PROTOCOLS
        {
            // Said with an answer, nothing is lost: the client sends its next request elsewhere.
            response
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // Towards HTTP/1.0 hyper itself says what it can; told so, it would never keep such a connection.
        *response.version_mut() = if client.http2 {
            Version::HTTP_2
        } else {
            Version::HTTP_11
        };
        if is_head && client.http2 {
            response.body_mut().leave_out();
        }
        let stream = if client.http2 {
            client.progress.stream()
        } else {
            None
        };
        response.body_mut().hold(in_service, stream);
        Ok(response)
    }
}

/// What a version says goes into `answer`.
async fn handle(
    client: &Rc<Client>,
    heads: &mut Heads,
    seen: Seen,
    body: Incoming,
    started: Instant,
    account: &mut Option<Box<Account>>,
    answer: &mut Response<OutBody>,
) -> Result<(), (Failure, Option<Rejection>)> {
    let form = Form::of(&seen);
    let parts = heads.request.as_mut().ok_or((Failure::BUG, None))?;
    let accepted = inbound::few_enough(&parts.headers, client.listener.config.limits.headers)
        .and_then(|()| inbound::accept(parts, &seen))
        .map_err(|refusal| (refusal.into(), Some(refusal.reason)))?;
    // One request never sees two tables: this one is its own to the end.
    let routes = client.worker.routes();
    let found = find(&routes, client, parts, &seen, accepted).ok_or((Failure::NO_ROUTE, None))?;
    let entry = found.entry;
    if let Some(redirect) = elsewhere(client, entry, parts, &seen, accepted) {
        *answer = redirect.map_err(|failure| (failure, None))?;
        return Ok(());
    }
    let limits = &entry.per_listener[client.listener.index];
    if limits.body.is_some_and(|limit| body.size_hint().lower() > limit) {
        return Err((Failure::TOO_LARGE, None));
    }

    // The trip is read first: control publishes before it confirms, so whoever no longer sees the trip sees what came of it.
    let tripped = entry.live.cell.is_tripped();
    let split = found.split();
    let worker = &client.worker;
    let who = client.who(&parts.headers);
    let choice = choose::choose(&split, tripped, &entry.service, parts, who, client.secure, || {
        worker.dice128()
    });
    admit(worker, &split, choice.role).map_err(|failure| (failure, None))?;

    // Nothing of the inbound connection (its upgrade handle) goes further.
    parts.extensions.clear();
    let has_body = accepted.chunked || !body.is_end_stream();
    let upgrade = seen
        .asks_upgrade()
        .then(|| upgrade::asked(parts, has_body, &entry.service.upgrades))
        .flatten();
    // HTTP/1.0 knows no interim answers; without a body there is nothing to wait for.
    let expects = seen.expectations > 0 && has_body && parts.version == Version::HTTP_11;
    let method = parts.method.clone();
    let mut exchange = Exchange::begin(
        worker,
        method.clone(),
        started,
        Rc::clone(&split),
        &choice,
        account.take(),
    );
    let inbound_version = parts.version;
    let framing = headers::Framing {
        chunked: accepted.chunked,
        trailers: seen.te_trailers,
    };
    headers::to_version(
        &mut parts.headers,
        seen,
        inbound_version,
        accepted,
        &parts.uri,
        &client.peer,
        || worker.request_id(),
    );
    if inbound_version == Version::HTTP_10 {
        name_host(&mut parts.headers, split.target(choice.role));
    }
    let source = outbound_body(parts, body, accepted.chunked, limits);
    if let Some(filters) = &entry.filters {
        filters::to_version(filters, parts);
    }
    exchange.leaves(&mut parts.headers, source.as_ref());
    let outbound = Outbound {
        client,
        entry,
        split: &split,
        limits,
        role: choice.role,
        started,
        framing,
        upgrade: upgrade.as_ref(),
        expects,
    };
    let answered = forward::forward(&outbound, heads, source.as_ref(), &mut exchange).await;
    let asking = source.filter(|source| !source.has_ended());
    client.progress.unread.set(asking.is_some());
    let mut response = match answered.and_then(|()| heads.take_response()) {
        Ok(response) => response,
        Err((failure, outcome)) => {
            if let Some(asking) = &asking {
                exchange.abandons(asking);
            }
            exchange.fail(failure, outcome, form);
            return Err((failure, None));
        }
    };

    let switches = (upgrade.as_ref()).and_then(|asked| upgrade::agreed(asked, &response));
    head_to_client(&mut response, entry, inbound_version, &method, choice.cookie);
    if let Some(protocol) = switches {
        *answer = switch(client, limits, protocol, response, exchange, form).await?;
        return Ok(());
    }
    note_old(client, inbound_version, &response);
    let deadline = limits.request.map(|whole| started + whole);
    *answer = response.map(|body| OutBody::upstream(body, asking, exchange, limits, deadline));
    Ok(())
}

/// HTTP/1.0 knows no other end of an answer without a length than the connection's.
fn note_old(client: &Client, inbound: Version, response: &Response<Incoming>) {
    if inbound == Version::HTTP_10 {
        let endless = response.body().size_hint().exact().is_none();
        client.progress.until_close.set(endless);
    }
}

/// HTTP/1.0 knows no Host, and every later version asks for one: then it is the endpoint's own name.
fn name_host(headers: &mut http::HeaderMap, target: &Target) {
    if headers.contains_key(header::HOST) {
        return;
    }
    let host = target.version.endpoints().first().map(|one| one.url.authority());
    if let Some(host) = host.and_then(|host| HeaderValue::try_from(host).ok()) {
        headers.insert(header::HOST, host);
    }
}

/// Takes a seat at the version that a request was assigned to, if it may get one more.
fn admit(worker: &WorkerState, split: &LiveSplit, role: Role) -> Result<(), Failure> {
    let target = split.target(role);
    if split.with_endpoints(role, <[_]>::is_empty) && target.version.name == split.stable.version.name {
        return Err(Failure::NO_VERSION);
    }
    if !target.version.capacity().seats.enter(worker.index) {
        return Err(Failure::OVERLOAD);
    }
    Ok(())
}

/// Both sides have agreed to speak something else: the connection's task takes over when this answer has gone out.
async fn switch(
    client: &Rc<Client>,
    limits: &Limits,
    protocol: HeaderValue,
    mut response: Response<Incoming>,
    exchange: Exchange,
    form: Form,
) -> Result<Response<OutBody>, (Failure, Option<Rejection>)> {
    let Ok(upstream) = hyper::upgrade::on(&mut response).await else {
        exchange.fail(Failure::INVALID, Outcome::Failed, form);
        return Err((Failure::INVALID, None));
    };
    let websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
    let ending = Ending::new(exchange.withdrawal(limits.drain));
    client.progress.tunnel.replace(Some(Rc::clone(&ending)));
    client.tunnel.replace(Some(Tunnel {
        upstream,
        exchange,
        in_service: InService::begin(&client.progress),
        idle: limits.upgrade_idle,
        websocket,
        ending,
        dice: client.worker.dice64(),
    }));
    let mut answer = response.map(|_| OutBody::own(Bytes::new()));
    headers::switched(answer.headers_mut(), protocol);
    Ok(answer)
}

/// The answer of a route that sends clients elsewhere, if it is one; there may be no host to send them to.
fn elsewhere(
    client: &Client,
    entry: &Entry,
    parts: &Parts,
    seen: &Seen,
    accepted: inbound::Accepted,
) -> Option<Result<Response<OutBody>, Failure>> {
    let redirect = entry.filters.as_ref()?.redirect.as_ref()?;
    client.listener.metrics.reject(Rejection::Redirect);
    let scheme = headers::scheme(&parts.headers, &client.peer);
    Some(filters::redirect(redirect, parts, seen, accepted, scheme).ok_or(Failure::NO_ROUTE))
}

/// The response head as the client gets it.
fn head_to_client(
    response: &mut Response<Incoming>,
    entry: &Entry,
    inbound: Version,
    method: &Method,
    cookie: Option<HeaderValue>,
) {
    let status = response.status();
    if inbound == Version::HTTP_11 && response.version() == Version::HTTP_2 {
        headers::announce_grpc(response.headers_mut());
    }
    headers::to_client(response.headers_mut(), status, inbound);
    if let Some(filters) = &entry.filters {
        filters::to_client(filters, response.headers_mut());
    }
    if let Some(cookie) = cookie
        && !choose::is_shared_cacheable(method, status, response.headers())
    {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    if inbound == Version::HTTP_2 {
        detach(response.headers_mut());
    }
}

fn find<'a>(
    routes: &'a Routes,
    client: &Client,
    parts: &Parts,
    seen: &Seen,
    accepted: inbound::Accepted,
) -> Option<Found<'a>> {
    let view = RequestView {
        listener: client.listener.index,
        host: accepted.host(&parts.uri, seen),
        path: parts.uri.path(),
        query: parts.uri.query(),
        method: &parts.method,
        headers: &parts.headers,
    };
    routes.find(&view)
}

/// The body to send on, if there is one; remembered while it is small when the method may be repeated.
fn outbound_body(parts: &Parts, body: Incoming, chunked: bool, limits: &Limits) -> Option<BodyHandle> {
    if body.is_end_stream() && !chunked {
        return None;
    }
    let keep = is_idempotent(&parts.method) && body.size_hint().lower() <= MOST_KEPT;
    let body = Received::request(body, parts.version == Version::HTTP_2);
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
