//! Getting a response out of a version: endpoints, attempts, repeats, and the rescue by stable.
//!
//! Attempts stay inside the assigned version, whose evidence they are. The one exception is the rescue: a canary that
//! cannot be reached at all costs no client an error, and is charged with the failure all the same.

use super::{
    body::{BodyError, BodyHandle, RequestBody},
    connection::Client,
    detached::detach,
    exchange::Exchange,
    head_size::size_to,
    headers, no_content,
    reply::Failure,
    routes::LiveSplit,
    service::is_idempotent,
    spare::Spare,
    table::{Entry, Limits},
    timer::LazyTimer,
    untouched::{Said, said},
    upgrade,
};
use crate::{
    config::Balance,
    metrics::{Attempt, Outcome, Retry},
    model::Role,
    telemetry::Causes,
    upstream::{ConnectError, Connections, Endpoint, Fault, Lease, Room, SendError, balance},
};
use http::{HeaderValue, Request, Response, StatusCode, Version, header, request::Parts};
use http_body::Body;
use hyper::body::Incoming;
use std::{
    fmt::Display,
    future::Future,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// How often one request is tried at most, over all endpoints and both versions.
const MOST_ATTEMPTS: usize = 6;
/// How many of those on the canary: the others are kept for stable to save the request.
const MOST_ON_CANARY: usize = 3;
/// How long a version is waited for to say 100, and one that said nothing the last time.
const PATIENCE: Duration = Duration::from_secs(1);
const LITTLE_PATIENCE: Duration = Duration::from_millis(20);
/// A kept connection that ends later than this after a request went out over it was not closed for being idle: the version has
/// worked on the request, and failed.
const LONGEST_RACE: Duration = Duration::from_secs(1);
/// A kept connection that has rested for less is not taken to have been closed for being idle: that needs a limit below 1 s. The
/// other side's clock runs from when it wrote the answer, ours from when that was passed on, which is later.
const SHORTEST_IDLE: Duration = Duration::from_millis(900);

/// What does not change between attempts.
#[derive(Clone, Copy)]
pub(super) struct Outbound<'a> {
    pub(super) client: &'a Rc<Client>,
    pub(super) entry: &'a Arc<Entry>,
    pub(super) split: &'a LiveSplit,
    pub(super) limits: &'a Limits,
    pub(super) role: Role,
    pub(super) started: Instant,
    pub(super) framing: headers::Framing,
    /// The protocols that the client asks to switch to.
    pub(super) upgrade: Option<&'a HeaderValue>,
    /// Whether the client waits for a word before it sends its body.
    pub(super) expects: bool,
}

/// A request's two heads. They stay where they are and are lent, for each hand-over by value would copy them twice.
pub(super) struct Heads {
    /// Until it has been sent.
    pub(super) request: Option<Parts>,
    /// With what follows it.
    pub(super) response: Option<Response<Incoming>>,
}

impl Heads {
    /// The response, which is there when the request was answered.
    pub(super) fn take_response(&mut self) -> Result<Response<Incoming>, (Failure, Outcome)> {
        self.response.take().ok_or((Failure::BUG, Outcome::Canceled))
    }
}

/// How an attempt failed, and what may be done about it.
enum Missed {
    /// Not a byte of the request reached the application: trying elsewhere is always safe. The head is back in its place.
    NeverReached(Failure),
    /// It may have had an effect; trying again is safe only for a request that may be repeated.
    Lost(Failure),
    /// Nothing more to try.
    Final(Failure, Outcome),
}

/// The version would say the same, and be judged by it.
const HEAD_TOO_LARGE: Missed = Missed::Final(Failure::HEAD_TOO_LARGE, Outcome::Ok);

/// How a connection ended on which a request got no answer.
#[derive(Clone, Copy)]
struct Ended {
    role: Role,
    /// It had served others before.
    reused: bool,
    /// Nobody else was on it, for the head is larger than usual and than any that the endpoint has answered.
    apart: bool,
    /// Nobody has said so yet.
    first: bool,
}

impl Ended {
    fn of(lease: &Lease<RequestBody>, said: Said, role: Role, apart: bool) -> Ended {
        let whole = matches!(said, Said::Nothing | Said::Thrown);
        Ended {
            role,
            reused: lease.reused,
            apart,
            first: !whole || lease.broke(Instant::now(), LONGEST_RACE),
        }
    }
}

/// Sends the request until something answers or nothing is left to try. When it was answered, the response is among the heads.
pub(super) async fn forward(
    to: &Outbound<'_>,
    heads: &mut Heads,
    body: Option<&BodyHandle>,
    exchange: &mut Exchange,
) -> Result<(), (Failure, Outcome)> {
    let mut role = to.role;
    let mut tried: Vec<u64> = Vec::new();
    // The head is kept for a repeat only when a repeat would be allowed: the copy is the price of closing the keep-alive race.
    let may_repeat = |parts: &&Parts| is_idempotent(&parts.method);
    let spare = heads.request.as_ref().filter(may_repeat).and_then(Spare::of);
    let again = || spare.as_ref().and_then(Spare::restore);
    let mut last = Failure::UNREACHABLE;
    // An answer that did not come in time may still have an effect; nobody is down, so nobody else takes over.
    let mut stays = false;
    let mut given_up = false;
    for attempt in 0..MOST_ATTEMPTS {
        if heads.request.is_none() {
            break;
        }
        given_up = role == Role::Canary
            && !stays
            && (given_up
                || tried.len() >= MOST_ON_CANARY
                || !tried.is_empty() && to.entry.live.cell.is_tripped());
        let connections = if given_up { None } else { to.pick(role, &tried) };
        let Some(connections) = connections else {
            // Every endpoint of this version has been tried, or enough of a canary.
            if role == Role::Stable || stays {
                break;
            }
            role = Role::Stable;
            tried.clear();
            if !exchange.rescue() {
                return Err((Failure::OVERLOAD, Outcome::Failed));
            }
            continue;
        };
        if !tried.is_empty() {
            exchange.retried(Retry::Sent);
        }
        let endpoint = connections.endpoint();
        exchange.reaches(endpoint);
        let fresh_wanted = attempt > 0;
        // One that may not go on ends now.
        heads.response = None;
        match to
            .attempt(
                &connections,
                heads,
                spare.as_ref(),
                body,
                exchange,
                fresh_wanted,
                role,
            )
            .await
        {
            Ok(()) => return Ok(()),
            Err(Missed::Final(failure, outcome)) => return Err((failure, outcome)),
            Err(Missed::NeverReached(failure)) => {
                last = failure;
                tried.push(endpoint.id);
            }
            Err(Missed::Lost(failure)) => {
                last = failure;
                tried.push(endpoint.id);
                stays |= failure == Failure::TIMED_OUT;
                if spare.is_none() || !body.is_none_or(BodyHandle::is_replayable) {
                    break;
                }
                let is_alone = to.split.with_endpoints(role, |endpoints| {
                    endpoints.iter().all(|endpoint| tried.contains(&endpoint.id))
                });
                if is_alone {
                    // Nobody of this version is left to ask, which costs no budget: stable takes over, or it ends.
                    heads.request = again();
                } else if to.client.worker.may_retry(to.entry, exchange.serving()) {
                    heads.request = again();
                } else {
                    exchange.retried(Retry::OverBudget);
                    if role == Role::Canary && !stays {
                        // No budget for more of the canary. Stable has room: without a canary it would have had this
                        // request too.
                        given_up = true;
                        heads.request = again();
                    }
                }
            }
        }
    }
    Err((last, Outcome::Failed))
}

impl Outbound<'_> {
    fn pick(&self, role: Role, tried: &[u64]) -> Option<Rc<Connections<RequestBody>>> {
        let worker = &self.client.worker;
        let now = worker.since_epoch(self.started);
        self.split.with_connections(role, &worker.pools, |all| {
            let dice = if all.len() > 1 { worker.dice64() } else { 0 };
            let picked = if all.len() > 1 && self.entry.service.balance == Balance::RoundRobin {
                self.split.in_turn(role, worker.index, |turn| {
                    balance::rotate(all, tried, now, dice, turn)
                })
            } else {
                balance::pick(all, tried, now, dice)
            };
            picked.map(Rc::clone)
        })
    }

    /// One attempt on one endpoint. A kept connection that turns out to be closed is replaced by a new one to the same
    /// endpoint, which is still the same attempt as far as the version is concerned.
    #[allow(
        clippy::too_many_arguments,
        reason = "what one attempt differs in; bundling it would only rename the list"
    )]
    async fn attempt(
        &self,
        connections: &Rc<Connections<RequestBody>>,
        heads: &mut Heads,
        spare: Option<&Spare>,
        body: Option<&BodyHandle>,
        exchange: &mut Exchange,
        mut late: bool,
        role: Role,
    ) -> Result<(), Missed> {
        let endpoint = connections.endpoint();
        let mut new = false;
        // Of interest only where others share the connection.
        let large = heads.request.as_ref().filter(|_| connections.are_shared());
        let size = large.map_or(0, |head| size_to(endpoint, head, body));
        let (limit, live) = (self.limits.connect, &self.entry.live);
        // A kept connection, perhaps another one, then a new one: the last cannot have been closed while idle.
        for round in 0..3 {
            let now = if late { Instant::now() } else { self.started };
            late = true;
            let mut apart = false;
            let leased = if self.upgrade.is_some() && connections.has_choice(live) {
                connections.lease_http1(limit, live).await
            } else {
                match connections.room_for(size, now) {
                    Room::Any if round < 2 && !new => {
                        connections.lease(now, limit, spare.is_none(), live).await
                    }
                    Room::Any => connections.lease_new(limit, live).await,
                    Room::Apart => {
                        apart = true;
                        connections.lease_apart(limit, live).await
                    }
                    Room::None => return Err(HEAD_TOO_LARGE),
                }
            };
            let mut lease = match leased {
                Ok(lease) => lease,
                Err(error) => return Err(self.unconnected(endpoint, &error, exchange, role)),
            };
            let reused = lease.reused;
            // Over HTTP/1.1 nobody shares.
            apart = apart && lease.is_http2();
            // The time that connecting took is not the version's to answer in.
            let begun = if reused { now } else { exchange.connected(now) };
            if !lease.carries(size, begun) {
                return Err(HEAD_TOO_LARGE);
            }
            // There is one whenever an attempt begins, and after each round that has another.
            let Some(head) = &mut heads.request else { break };
            let own = spare_of_one(head, spare, body, &lease);
            self.speak(head, body, &lease, endpoint);
            let Some(head) = heads.request.take() else { break };
            let sent = {
                let sent = body.map_or_else(RequestBody::none, BodyHandle::body);
                // Where it stays: the request comes back in it when it could not be sent.
                let sending = pin!(lease.send(Request::from_parts(head, sent), &mut heads.response));
                self.within_deadline(begun, body, sending).await
            };
            match sent {
                None => return Err(self.unanswered_in_time(endpoint, exchange)),
                Some(Ok(())) => {
                    let Some(response) = &mut heads.response else {
                        break;
                    };
                    self.may_go_on(response, lease.is_http2(), endpoint, exchange)?;
                    lease.answered();
                    if lease.is_http2()
                        && let Some(ending) = self.waits_for_end(response, begun, body, exchange)
                    {
                        let ended = ending.await;
                        self.ends_well(ended, endpoint, exchange)?;
                    }
                    self.answered(response, body, lease, exchange);
                    return Ok(());
                }
                Some(Err(SendError {
                    returned: Some(request),
                    ..
                })) if reused => {
                    // The kept connection was closed before a byte went out.
                    heads.request = Some(restore(*request));
                }
                Some(Err(SendError { returned, error })) => {
                    if let Some(fault) = body.and_then(BodyHandle::fault) {
                        exchange.attempted(Attempt::Canceled);
                        return Err(Missed::Final(of_body(fault), Outcome::Canceled));
                    }
                    let said = said(&error);
                    // The keep-alive race: the other side closed an idle connection while we wrote to it. Whether we learn of
                    // it by an end, a reset or a broken pipe is a matter of microseconds. Once: then a new connection tells.
                    let race = !new && said == Said::Nothing && was_not_for_it(&lease, &error, begun);
                    let again = match said {
                        // Once is enough for a head that may be the reason.
                        _ if apart || !body.is_none_or(BodyHandle::is_replayable) => None,
                        Said::Untouched | Said::Thrown => spare.or(own.as_ref()),
                        Said::Nothing if race => spare,
                        Said::Nothing | Said::Reset => None,
                    };
                    let ended = Ended::of(&lease, said, role, apart);
                    if let Some(again) = again.and_then(Spare::restore) {
                        heads.request = Some(again);
                        if round < 2 {
                            repeats(exchange, &lease, race);
                            new = race;
                            continue;
                        }
                        // Nobody was there who would do it: as good as unreachable.
                        let _ = self.unanswered(endpoint, false, &error, exchange, ended);
                        break;
                    }
                    let missed = self.unanswered(endpoint, returned.is_some(), &error, exchange, ended);
                    heads.request = returned.map(|request| restore(*request));
                    return Err(missed);
                }
            }
        }
        Err(Missed::NeverReached(Failure::UNREACHABLE))
    }

    /// Waits for a response head until the deadline, which begins when the request has been sent. HTTP/1.1 connections share
    /// one timer over all their requests.
    async fn within_deadline<T>(
        &self,
        begun: Instant,
        body: Option<&BodyHandle>,
        mut wait: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        let limit = self.limits.response_headers;
        let whole = self.limits.request.map(|whole| self.started + whole);
        let at_most = |due: Instant| whole.map_or(due, |whole| due.min(whole));
        let mut deadline = at_most(begun + limit);
        let mut passed = 0;
        let mut own = LazyTimer::default();
        let mut now = Some(begun);
        std::future::poll_fn(|cx: &mut Context<'_>| {
            if let Poll::Ready(value) = wait.as_mut().poll(cx) {
                return Poll::Ready(Some(value));
            }
            let now = now.take().unwrap_or_else(Instant::now);
            loop {
                let fired = if self.client.http2 {
                    own.poll(cx, now, deadline)
                } else {
                    self.client
                        .progress
                        .request_timer
                        .borrow_mut()
                        .poll(cx, now, deadline)
                };
                if fired.is_pending() {
                    return Poll::Pending;
                }
                let due = body.map_or(now, |body| at_most(body.answer_due(now, limit, &mut passed)));
                if due <= now {
                    return Poll::Ready(None);
                }
                deadline = due;
            }
        })
        .await
    }

    /// The head of the version's answer has come, and goes on.
    #[inline]
    fn answered(
        &self,
        response: &Response<Incoming>,
        body: Option<&BodyHandle>,
        mut lease: Lease<RequestBody>,
        exchange: &mut Exchange,
    ) {
        if let Some(body) = body {
            body.forget();
            if !body.is_sent() {
                // Whether the version reads what it did not wait for is not known. If it does not, it closes the connection
                // without a word, and with it what was sent over it next.
                lease.is_the_last();
            }
            if self.expects {
                lease.endpoint().note_expect(body.answered());
            }
        }
        exchange.attempted(Attempt::Answered);
        let service = &self.entry.service;
        let failed = service
            .failure
            .is_failure_head(response.status().as_u16(), response.headers());
        exchange.responded(response.status(), response.headers(), failed, service, lease);
    }

    /// The version had its time, and did not use it.
    fn unanswered_in_time(&self, endpoint: &Endpoint, exchange: &mut Exchange) -> Missed {
        exchange.attempted(Attempt::TimedOut);
        exchange.judge(Outcome::Failed);
        self.fail(endpoint, Fault::Unanswered, &"no response head in time");
        self.late()
    }

    /// Whoever sends what may not is left out.
    fn may_go_on(
        &self,
        response: &Response<Incoming>,
        http2: bool,
        endpoint: &Endpoint,
        exchange: &mut Exchange,
    ) -> Result<(), Missed> {
        if !self.is_invalid(response, http2) {
            return Ok(());
        }
        Err(self.left_out(endpoint, exchange, &"a response that may not be passed on"))
    }

    /// The end of an answer over HTTP/2 that has no content, unless its head is the end. Apart, as hardly any needs it.
    fn waits_for_end<'a>(
        &'a self,
        response: &'a mut Response<Incoming>,
        begun: Instant,
        body: Option<&'a BodyHandle>,
        exchange: &Exchange,
    ) -> Option<Pin<Box<dyn Future<Output = Option<bool>> + 'a>>> {
        if response.body().is_end_stream() || !no_content::has_none(exchange.method(), response.status()) {
            return None;
        }
        Some(Box::pin(async move {
            let ending = pin!(no_content::ends_empty(response.body_mut()));
            self.within_deadline(begun, body, ending).await
        }))
    }

    /// How such an answer may not end: never, or with content.
    fn ends_well(
        &self,
        ended: Option<bool>,
        endpoint: &Endpoint,
        exchange: &mut Exchange,
    ) -> Result<(), Missed> {
        match ended {
            None => Err(self.unanswered_in_time(endpoint, exchange)),
            Some(false) => Err(self.left_out(endpoint, exchange, &"content where a response has none")),
            Some(true) => Ok(()),
        }
    }

    /// No response head came in time. There is another try only when each has a limit of its own.
    fn late(&self) -> Missed {
        let spent = Instant::now().saturating_duration_since(self.started);
        let whole = self.limits.request;
        match self.limits.retry_until {
            Some(until) if spent < until && whole.is_none_or(|whole| spent < whole) => {
                Missed::Lost(Failure::TIMED_OUT)
            }
            Some(_) | None => Missed::Final(Failure::TIMED_OUT, Outcome::Failed),
        }
    }

    fn unconnected(
        &self,
        endpoint: &Endpoint,
        error: &ConnectError,
        exchange: &mut Exchange,
        role: Role,
    ) -> Missed {
        if let ConnectError::Full = error {
            return Missed::Final(Failure::OVERLOAD, Outcome::Canceled);
        }
        if let ConnectError::NoHttp1 = error {
            exchange.attempted(Attempt::Protocol);
            return Missed::Final(Failure::NO_UPGRADE, Outcome::Failed);
        }
        if !error.blames_endpoint() {
            exchange.attempted(Attempt::Local);
            if self.client.worker.cannot_connect.is_due() {
                tracing::warn!(endpoint = %endpoint.url, error = error as &dyn std::error::Error, "cannot open a connection");
            }
            return Missed::Final(Failure::EXHAUSTED, Outcome::Canceled);
        }
        exchange.attempted(Attempt::ConnectFailed);
        exchange.judge(Outcome::Failed);
        self.blame(endpoint, role, &Causes(error));
        Missed::NeverReached(Failure::UNREACHABLE)
    }

    fn unanswered(
        &self,
        endpoint: &Endpoint,
        returned: bool,
        error: &hyper::Error,
        exchange: &mut Exchange,
        ended: Ended,
    ) -> Missed {
        let Ended { role, reused, .. } = ended;
        if error.is_parse() {
            if !reused && speaks_no_http(error) {
                self.blame(endpoint, role, &Causes(error));
                return invalid(exchange);
            }
            return self.left_out(endpoint, exchange, &Causes(error));
        }
        exchange.judge(Outcome::Failed);
        exchange.attempted(Attempt::Reset);
        // One client's large head must not put an endpoint out, and a connection that ends is one failure for all on it.
        if ended.first && !ended.apart {
            self.blame(endpoint, role, &Causes(error));
        } else if ended.apart {
            let why = format_args!(
                "a request head larger than any it has answered: {}",
                Causes(error)
            );
            endpoint.tell_failure(&why, self.now());
        }
        if returned {
            Missed::NeverReached(Failure::UNREACHABLE)
        } else if ended.apart {
            Missed::Lost(Failure::HEAD_REFUSED)
        } else {
            Missed::Lost(Failure::RESET)
        }
    }

    /// What came is no answer that may go on. Whoever does nothing else is left out like one that is silent.
    fn left_out(&self, endpoint: &Endpoint, exchange: &mut Exchange, why: &dyn Display) -> Missed {
        self.fail(endpoint, Fault::Unanswered, why);
        invalid(exchange)
    }

    /// The process' monotonic time, read anew.
    fn now(&self) -> Duration {
        self.client.worker.since_epoch(Instant::now())
    }

    /// The endpoint failed: for its health, and for whoever reads the log. Returns when.
    fn fail(&self, endpoint: &Endpoint, fault: Fault, why: &dyn Display) -> Duration {
        let now = self.now();
        endpoint.failed(fault, now);
        endpoint.tell_failure(why, now);
        now
    }

    /// The endpoint failed; when that was the canary's last one standing, the service trips.
    fn blame(&self, endpoint: &Endpoint, role: Role, reason: &dyn Display) {
        let now = self.fail(endpoint, Fault::Hard, reason);
        if role == Role::Canary {
            self.entry.live.canary_failed(self.split, now, reason);
        }
    }
}

/// The request has been read by somebody, so nobody else may get it.
fn invalid(exchange: &mut Exchange) -> Missed {
    exchange.attempted(Attempt::Protocol);
    exchange.judge(Outcome::Failed);
    Missed::Final(Failure::INVALID, Outcome::Failed)
}

/// Whether a connection may have ended for another reason than the request that went out over it at `begun`.
fn was_not_for_it(lease: &Lease<RequestBody>, error: &hyper::Error, begun: Instant) -> bool {
    lease.reused && may_have_idled(error, begun) || lease.broke_over_another(Instant::now(), LONGEST_RACE)
}

/// Whether a kept connection may have ended for being idle, with a request that went out over it at `begun`.
fn may_have_idled(error: &hyper::Error, begun: Instant) -> bool {
    !error.is_parse() && begun.elapsed() < LONGEST_RACE
}

/// The request goes out once more, for its connection has just ended, for a reason of its own (`race`) or a word that nobody
/// has touched it. Such a reason is that there had been no request for some time, or another one: else the version
/// has failed.
fn repeats(exchange: &mut Exchange, lease: &Lease<RequestBody>, race: bool) {
    exchange.attempted(Attempt::Reset);
    if race
        && !lease.may_have_idled_out(SHORTEST_IDLE)
        && !lease.broke_over_another(Instant::now(), LONGEST_RACE)
    {
        exchange.judge(Outcome::Failed);
    }
}

/// Whether an answer did not even begin with `HTTP/1.`: an SSH banner, a TLS alert. Asked of new connections only: on one
/// that was kept it may be what an earlier answer left over. hyper has no question for this kind of error but its text.
fn speaks_no_http(error: &hyper::Error) -> bool {
    error.is_parse_version_h2() || error.to_string() == "invalid HTTP version parsed"
}

impl Outbound<'_> {
    /// An answer that must not go on: a switch that nobody asked for, an interim answer as a final one, a coding that we do
    /// not take off and the client would not know of.
    fn is_invalid(&self, response: &Response<Incoming>, http2: bool) -> bool {
        let (status, headers) = (response.status(), response.headers());
        if status.is_informational() {
            let asked = self.upgrade.filter(|_| !http2);
            return asked.and_then(|asked| upgrade::agreed(asked, response)).is_none();
        }
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        codings.next().is_some_and(|coding| {
            !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") || codings.next().is_some()
        })
    }

    /// Makes of the head what this connection speaks.
    fn speak(
        &self,
        head: &mut Parts,
        body: Option<&BodyHandle>,
        lease: &Lease<RequestBody>,
        endpoint: &Endpoint,
    ) {
        let http2 = lease.is_http2();
        let mut framing = self.framing;
        if let Some(protocols) = self.upgrade {
            headers::ask_upgrade(&mut head.headers, http2, protocols);
            framing.trailers = false;
        }
        if let Some(body) = body.filter(|_| self.expects) {
            expect(head, body, http2, endpoint);
        }
        let unknown_length = body.is_some_and(BodyHandle::is_unknown_length);
        headers::frame_for(&mut head.headers, framing, http2, unknown_length);
        if http2 {
            head.version = Version::HTTP_2;
            head.uri = headers::absolute_form(&head.uri, &head.headers, lease.is_secure());
            head.headers.remove(header::HOST);
            detach(&mut head.headers);
        } else {
            head.version = Version::HTTP_11;
            if head.uri.scheme().is_some() {
                head.uri = headers::origin_form(&head.uri);
            }
        }
    }
}

/// The client waits for a word before it sends its body, and so do we.
fn expect(head: &mut Parts, body: &BodyHandle, http2: bool, endpoint: &Endpoint) {
    if http2 {
        // There the head alone is a question already: the version answers or grants a window.
        head.headers.remove(header::EXPECT);
        return;
    }
    head.headers
        .insert(header::EXPECT, HeaderValue::from_static("100-continue"));
    let gate = body.hold(if endpoint.ignores_expect() {
        LITTLE_PATIENCE
    } else {
        PATIENCE
    });
    let mut asked = Request::new(());
    hyper::ext::on_informational(&mut asked, move |interim| {
        if interim.status() == StatusCode::CONTINUE {
            gate.open();
        }
    });
    head.extensions.extend(std::mem::take(asked.extensions_mut()));
}

/// A copy of a head that is sent once, for a version that can say that it has not touched the request: one that speaks
/// HTTP/2 (RFC 9113 section 8.7). Its body is remembered until it answers.
fn spare_of_one(
    head: &Parts,
    spare: Option<&Spare>,
    body: Option<&BodyHandle>,
    lease: &Lease<RequestBody>,
) -> Option<Spare> {
    if spare.is_some() || !lease.is_http2() {
        return None;
    }
    if let Some(body) = body {
        body.keep();
    }
    Spare::of(head)
}

/// The head of a request that came back unsent. Over HTTP/2 it had its host in the target alone.
fn restore(request: Request<RequestBody>) -> Parts {
    let mut head = request.into_parts().0;
    let authority = head.uri.authority().filter(|_| head.version == Version::HTTP_2);
    if let Some(host) = authority.and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        head.headers.insert(header::HOST, host);
    }
    head
}

fn of_body(fault: BodyError) -> Failure {
    match fault {
        BodyError::TooLarge => Failure::TOO_LARGE,
        BodyError::Slow => Failure::SLOW_BODY,
        BodyError::Malformed => Failure::MALFORMED_BODY,
        BodyError::Broken | BodyError::Unwanted | BodyError::Stalled | BodyError::Withdrawn => {
            Failure::BROKEN_BODY
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_came_back_unsent_names_its_host_again() {
        let sent = |request: http::request::Builder| request.body(RequestBody::none()).unwrap();
        let request = Request::post("http://shop.test:81/orders").version(Version::HTTP_2);
        let head = restore(sent(request));
        assert_eq!(head.headers.get(header::HOST).unwrap(), "shop.test:81");
        let again = headers::absolute_form(&head.uri, &head.headers, true);
        assert_eq!(again, "https://shop.test:81/orders");

        let request = Request::post("/orders").header(header::HOST, "shop.test");
        assert_eq!(
            restore(sent(request)).headers.get(header::HOST).unwrap(),
            "shop.test"
        );
    }
}
