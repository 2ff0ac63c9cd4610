//! What is remembered of one request for those who want to be told: gathered on its way, told once at its end.
//!
//! It exists only while somebody observes. `exchange` gathers and ends it; what never gets to a version is told by `service`,
//! and what is not even a request by `connection`.

use super::{
    access_log::{AccessLog, Asked, Line, Served},
    body::BodyHandle,
    connection::Client,
    reply::{Failure, Fault},
    trace::{Place, TraceParent, Tracer},
    worker::{ListenerState, WorkerState},
};
use crate::{
    metrics::{AssignReason, Rejection},
    telemetry::otlp::{Attribute, Span},
    upstream::{Endpoint, Target},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header, request::Parts};
use std::{fmt, net::IpAddr, rc::Rc, sync::Arc, time::Duration};
use tokio::time::Instant;

/// One request's account.
pub(super) struct Account {
    worker: Rc<WorkerState>,
    listener: Rc<ListenerState>,
    log: Option<Arc<AccessLog>>,
    tracing: Option<(Arc<Tracer>, Place)>,
    /// The caller's trace, when Serin does not trace.
    passing: Option<TraceParent>,
    client: IpAddr,
    started: Instant,
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    protocol: Version,
    fields: Vec<(HeaderName, HeaderValue)>,
    request_id: Option<HeaderValue>,
    body: Option<BodyHandle>,
    assigned: Option<(Arc<Target>, AssignReason)>,
    served: Option<Arc<Target>>,
    endpoint: Option<Arc<Endpoint>>,
    attempts: u32,
    first_byte: Option<Duration>,
    /// Whether the head said that the version failed.
    pub(super) failed_head: bool,
    sent: u64,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("method", &self.method)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

/// Whose fault it is that a request did not go well, and what happened, in a word.
pub(super) type Flag = (Fault, &'static str);

impl Account {
    /// Begins an account if anybody wants one.
    pub(super) fn begin(client: &Client, parts: &Parts, started: Instant) -> Option<Box<Account>> {
        let observers = client.worker.shared.observers.get()?;
        let worker = &client.worker;
        let tracing = observers.tracer.as_ref().map(|tracer| {
            let place = Place::take(tracer, &parts.headers, || worker.dice64());
            (Arc::clone(tracer), place)
        });
        let passing = match &tracing {
            Some(_) => None,
            None => TraceParent::read(&parts.headers),
        };
        Some(Box::new(Account {
            worker: Rc::clone(worker),
            listener: Rc::clone(&client.listener),
            fields: observers
                .log
                .as_ref()
                .map(|log| log.fields(&parts.headers))
                .unwrap_or_default(),
            log: observers.log.clone(),
            tracing,
            passing,
            client: client.who(&parts.headers),
            started,
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            host: parts.headers.get(header::HOST).cloned(),
            protocol: parts.version,
            request_id: None,
            body: None,
            assigned: None,
            served: None,
            endpoint: None,
            attempts: 0,
            first_byte: None,
            failed_head: false,
            sent: 0,
        }))
    }

    /// A version was chosen.
    pub(super) fn assigned(&mut self, target: &Arc<Target>, reason: AssignReason) {
        self.assigned = Some((Arc::clone(target), reason));
        self.served = Some(Arc::clone(target));
    }

    /// The fields are as the version gets them; a trace goes on from here.
    pub(super) fn leaves(&mut self, headers: &mut HeaderMap, body: Option<&BodyHandle>) {
        if let Some((_, place)) = &self.tracing {
            place.stamp(headers);
        }
        self.request_id = headers.get("x-request-id").cloned();
        self.body = body.cloned();
    }

    /// An attempt on an endpoint begins.
    pub(super) fn reaches(&mut self, endpoint: &Arc<Endpoint>) {
        self.attempts += 1;
        self.endpoint = Some(Arc::clone(endpoint));
    }

    /// Stable serves it instead.
    pub(super) fn rescued_by(&mut self, stable: &Arc<Target>) {
        self.served = Some(Arc::clone(stable));
    }

    /// The response head came.
    pub(super) fn responded(&mut self, after: Duration, failed: bool) {
        self.first_byte = Some(after);
        self.failed_head = failed;
    }

    /// A piece of the response's body passes.
    pub(super) fn sends(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// Whether stable served it instead of the version it was assigned to.
    pub(super) fn is_rescued(&self) -> bool {
        match (&self.assigned, &self.served) {
            (Some((assigned, _)), Some(served)) => !Arc::ptr_eq(assigned, served),
            (_, _) => false,
        }
    }

    /// Serin answers itself, before a version was chosen.
    pub(super) fn answered(mut self: Box<Self>, status: StatusCode, bytes: u64, failure: Option<Failure>) {
        let total = Instant::now().saturating_duration_since(self.started);
        (self.sent, self.first_byte) = (bytes, Some(total));
        self.end(
            status,
            total,
            failure.map(|failure| (failure.fault, failure.code)),
        );
    }

    /// Tells everybody, once.
    pub(super) fn end(self: Box<Self>, status: StatusCode, total: Duration, flag: Option<Flag>) {
        if let Some(log) = &self.log
            && (flag.is_some() || status.is_server_error() || log.takes(self.worker.dice64()))
        {
            let line = self.line(log, status, total, flag);
            self.worker.lines.add(log, &line);
        }
        if let Some((tracer, place)) = &self.tracing
            && place.own.is_sampled()
        {
            tracer
                .spans
                .offer(self.span(place, tracer.now_nanos(), status, total, flag));
        }
    }

    fn line<'a>(
        &'a self,
        log: &AccessLog,
        status: StatusCode,
        total: Duration,
        flag: Option<Flag>,
    ) -> Line<'a> {
        let trace = self.tracing.as_ref().map(|(_, place)| place.own);
        Line {
            // A line carries the time at which its request came, as in every other access log.
            time: log.now().minus(total),
            listener: &self.listener.config.name,
            client: self.client,
            asked: Some(Asked {
                method: &self.method,
                host: self.host().as_bytes(),
                path: self.uri.path(),
                query: self.uri.query(),
                protocol: self.protocol,
                fields: &self.fields,
            }),
            status: status.as_u16(),
            served: self.served(),
            bytes_in: self.body.as_ref().map_or(0, BodyHandle::received),
            bytes_out: self.sent,
            first_byte: self.first_byte,
            total: Some(total),
            request_id: self.request_id.as_ref(),
            trace: trace.or(self.passing).map(|parent| parent.trace),
            fault: flag.map(|(fault, flag)| (fault.as_str(), flag)),
        }
    }

    fn host(&self) -> &str {
        let field = || self.host.as_ref().and_then(|host| host.to_str().ok());
        let target = self.uri.authority().map(http::uri::Authority::as_str);
        target.or_else(field).unwrap_or_default()
    }

    fn served(&self) -> Option<Served<'_>> {
        let ((assigned, reason), served) = (self.assigned.as_ref()?, self.served.as_ref()?);
        Some(Served {
            service: &served.version.service,
            role: served.metrics.key.role,
            version: &served.version.name,
            reason: reason.as_str(),
            endpoint: self.endpoint.as_ref().map(|endpoint| &endpoint.url),
            attempts: self.attempts,
            rescued_from: self.is_rescued().then_some(&assigned.version.name),
        })
    }

    fn span(&self, place: &Place, now: u64, status: StatusCode, total: Duration, flag: Option<Flag>) -> Span {
        let took = u64::try_from(total.as_nanos()).unwrap_or(u64::MAX);
        let text = |text: &str| Attribute::Text(text.to_owned());
        let mut attributes = vec![
            ("http.request.method", text(self.method.as_str())),
            ("url.path", text(self.uri.path())),
            ("url.scheme", text(self.uri.scheme_str().unwrap_or("http"))),
            ("server.address", text(self.host())),
            ("client.address", Attribute::Text(self.client.to_string())),
            (
                "http.response.status_code",
                Attribute::Number(u64::from(status.as_u16())),
            ),
            ("serin.listener", text(&self.listener.config.name)),
        ];
        let mut name = self.method.as_str().to_owned();
        if let Some(served) = self.served() {
            name = format!("{name} {}", served.service);
            attributes.extend([
                ("serin.service", Attribute::Text(served.service.to_string())),
                ("serin.role", text(served.role.as_str())),
                ("serin.version", Attribute::Text(served.version.to_string())),
                ("serin.reason", text(served.reason)),
                ("serin.attempts", Attribute::Number(u64::from(served.attempts))),
                ("serin.rescued", Attribute::Flag(served.rescued_from.is_some())),
            ]);
            attributes.extend(
                served
                    .endpoint
                    .map(|url| ("serin.endpoint", Attribute::Text(url.to_string()))),
            );
        }
        if let Some((fault, flag)) = flag {
            attributes.push(("error.type", text(flag)));
            attributes.push(("serin.fault", text(fault.as_str())));
        }
        // A client's mistakes are no errors of a server's span (OpenTelemetry, HTTP spans).
        let failed = status.is_server_error() || flag.is_some_and(|(fault, _)| fault != Fault::Client);
        Span {
            trace_id: place.own.trace,
            span_id: place.own.span,
            parent: place.parent,
            flags: place.own.flags,
            trace_state: place.state.clone(),
            name,
            start: now.saturating_sub(took),
            end: now,
            attributes,
            error: failed.then(|| flag.map_or("server error", |(_, flag)| flag)),
        }
    }
}

/// Tells of bytes that were no request: hyper has answered them itself, or they took too long.
pub(super) fn refused(
    worker: &WorkerState,
    listener: &ListenerState,
    client: IpAddr,
    status: StatusCode,
    reason: Rejection,
) {
    let Some(observers) = worker.shared.observers.get() else {
        return;
    };
    let Some(log) = &observers.log else { return };
    let line = Line {
        time: log.now(),
        listener: &listener.config.name,
        client,
        asked: None,
        status: status.as_u16(),
        served: None,
        bytes_in: 0,
        bytes_out: 0,
        first_byte: None,
        total: None,
        request_id: None,
        trace: None,
        fault: Some((Fault::Client.as_str(), reason.as_str())),
    };
    worker.lines.add(log, &line);
}
