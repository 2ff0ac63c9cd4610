//! One request's record, from its assignment to its end: written exactly once, however it ends.
//!
//! The verdict is the first attempt's and is charged to the assigned version; what the client saw is counted for the
//! version that answered. A rescue makes the two differ.

use super::{
    account::{Account, Flag},
    body::{BodyHandle, RequestBody},
    choose::Choice,
    grpc,
    io::Progress,
    reply::{self, Failure, Fault, Form},
    routes::LiveSplit,
    withdrawn::Withdrawal,
    worker::WorkerState,
};
use crate::{
    config::Service,
    metrics::{AssignReason, Attempt, Outcome, Retry, Ticket},
    model::Role,
    upstream::{self, Endpoint, Lease, Target},
};
use http::{HeaderMap, Method, StatusCode, header};
use std::{fmt, rc::Rc, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Marks a connection busy for as long as it exists.
#[derive(Debug)]
pub(super) struct InService(Rc<Progress>);

impl InService {
    pub(super) fn begin(progress: &Rc<Progress>) -> InService {
        progress.request_begins();
        InService(Rc::clone(progress))
    }
}

impl Drop for InService {
    fn drop(&mut self) {
        self.0.request_ends();
    }
}

/// How a response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Whole.
    Complete,
    /// By the version's fault, after its head.
    Broken,
    /// The client went away.
    ClientGone,
    /// Cut off by us, for its version has been withdrawn.
    Withdrawn,
}

/// The client went away before the end (a convention of nginx that dashboards know).
fn client_closed() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST)
}

/// Whether an answer says that the client did something wrong. Upstreams that log 499 for a client that went away do not send it.
fn is_client_error(status: StatusCode) -> bool {
    status.is_client_error() && status != client_closed()
}

/// What a gRPC call has told of its end.
#[derive(Debug)]
struct Grpc {
    /// What counts as a failure.
    service: Arc<Service>,
    code: Option<u32>,
}

impl Grpc {
    /// How a call ended whose response did.
    fn ended(&self) -> u32 {
        // A whole answer without a code is not gRPC's; clients take it for UNKNOWN.
        self.code.unwrap_or(grpc::UNKNOWN)
    }

    fn is_failure(&self) -> bool {
        self.service.failure.is_failure_grpc(self.ended())
    }
}

/// One request's record.
pub(super) struct Exchange {
    worker: Rc<WorkerState>,
    method: Method,
    started: Instant,
    /// Spent on opening connections.
    connecting: Duration,
    /// The generation in which it was assigned.
    split: Rc<LiveSplit>,
    assigned: Role,
    /// By the client, who is no judge of versions.
    forced: bool,
    served: Role,
    /// Its place in the evidence, when it is any.
    evidence: Option<Ticket>,
    verdict: Option<Outcome>,
    status: Option<StatusCode>,
    /// When the head came, for a response that is judged by it.
    stream_head: Option<Instant>,
    lease: Option<Lease<RequestBody>>,
    /// The endpoint that answered knows already that this counts against it.
    blamed: bool,
    grpc: Option<Grpc>,
    recorded: bool,
    /// Only while somebody observes.
    account: Option<Box<Account>>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("version", &self.assigned().version.name)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Exchange {
    /// A request was assigned to a version of `split` by `choice`, and has taken a seat there.
    pub(super) fn begin(
        worker: &Rc<WorkerState>,
        method: Method,
        started: Instant,
        split: Rc<LiveSplit>,
        choice: &Choice,
        mut account: Option<Box<Account>>,
    ) -> Exchange {
        let target = split.target(choice.role);
        let shard = target.metrics.shard(worker.index);
        shard.assign(choice.reason);
        shard.enter();
        let evidence = choice.unit.map(|unit| {
            let since_epoch = worker.since_epoch(started);
            target.evidence.begin(worker.index, unit, since_epoch)
        });
        if let Some(account) = &mut account {
            account.assigned(target, choice.reason);
        }
        Exchange {
            worker: Rc::clone(worker),
            method,
            started,
            connecting: Duration::ZERO,
            split,
            assigned: choice.role,
            forced: matches!(choice.reason, AssignReason::Force),
            served: choice.role,
            evidence,
            verdict: None,
            status: None,
            stream_head: None,
            lease: None,
            blamed: false,
            grpc: None,
            recorded: false,
            account,
        }
    }

    /// The request is about to leave with these fields.
    pub(super) fn leaves(&mut self, headers: &mut HeaderMap, body: Option<&BodyHandle>) {
        if let Some(account) = &mut self.account {
            account.leaves(headers, body);
        }
    }

    /// An attempt on an endpoint begins.
    pub(super) fn reaches(&mut self, endpoint: &Arc<Endpoint>) {
        if let Some(account) = &mut self.account {
            account.reaches(endpoint);
        }
    }

    /// Its way to an endpoint had to be opened first, which began at `since` and has just been done; returns when. Versions
    /// are compared without that time: the canary's few requests find an open connection more rarely than stable's many,
    /// whatever it answers.
    pub(super) fn connected(&mut self, since: Instant) -> Instant {
        let now = Instant::now();
        self.connecting += now.saturating_duration_since(since);
        now
    }

    /// How long it has taken, as far as versions are compared by it.
    fn compared(&self, took: Duration) -> Duration {
        took.saturating_sub(self.connecting)
    }

    /// A piece of the response's body passes.
    pub(super) fn sends(&mut self, bytes: usize) {
        if let Some(account) = &mut self.account {
            account.sends(u64::try_from(bytes).unwrap_or(0));
        }
    }

    /// Whether what it is served by may be withdrawn before the end.
    pub(super) fn may_be_withdrawn(&self) -> bool {
        self.served == Role::Canary
    }

    /// See [`LiveSplit::withdrawal`].
    pub(super) fn withdrawal(&self, drain: Duration) -> Option<Withdrawal> {
        self.split.withdrawal(self.served, drain)
    }

    /// The answer ends before the client has sent all of this.
    pub(super) fn abandons(&self, body: &BodyHandle) {
        self.worker.leftovers.add(body, Instant::now());
    }

    /// Whether the client has been told that this is a gRPC call's answer.
    pub(super) fn is_grpc(&self) -> bool {
        self.grpc.is_some()
    }

    /// What is asked for.
    pub(super) const fn method(&self) -> &Method {
        &self.method
    }

    /// Whether the version answers by HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.lease.as_ref().is_some_and(Lease::is_http2)
    }

    /// The version that serves it now.
    pub(super) fn serving(&self) -> &Arc<Target> {
        self.split.target(self.served)
    }

    fn assigned(&self) -> &Arc<Target> {
        self.split.target(self.assigned)
    }

    /// An attempt on the serving version ended.
    pub(super) fn attempted(&self, attempt: Attempt) {
        self.serving().metrics.shard(self.worker.index).attempt(attempt);
    }

    /// It is tried again at another endpoint of the serving version, or would be if the budget allowed it.
    pub(super) fn retried(&self, retry: Retry) {
        self.serving().metrics.shard(self.worker.index).retry(retry);
    }

    /// The first attempt's verdict; later ones change nothing.
    pub(super) fn judge(&mut self, outcome: Outcome) {
        self.verdict.get_or_insert(outcome);
    }

    /// Stable takes over a request that never had an effect on the canary; false when it has no seat left.
    pub(super) fn rescue(&mut self) -> bool {
        self.judge(Outcome::Failed);
        let worker = self.worker.index;
        let stable = &self.split.stable;
        if !stable.version.capacity().seats.enter(worker) {
            return false;
        }
        self.serving().version.capacity().seats.leave(worker);
        self.serving().metrics.shard(worker).leave();
        self.assigned().metrics.shard(worker).rescue();
        self.served = Role::Stable;
        stable.metrics.shard(worker).enter();
        if let Some(account) = &mut self.account {
            account.rescued_by(stable);
        }
        true
    }

    /// A response head came. `failed`: the head alone says that the version failed.
    pub(super) fn responded(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        failed: bool,
        service: &Arc<Service>,
        lease: Lease<RequestBody>,
    ) {
        let now = Instant::now();
        let after = now.saturating_duration_since(self.started);
        self.serving().metrics.shard(self.worker.index).first_byte(after);
        if let Some(account) = &mut self.account {
            account.responded(after, failed);
        }
        if failed {
            self.judge(Outcome::Failed);
        }
        self.status = Some(status);
        let (endpoint, stream) = (lease.endpoint(), stream(status, headers));
        match (failed, &stream) {
            (true, _) => {
                self.blamed = true;
                endpoint.failed(upstream::Fault::BadResponse, self.worker.since_epoch(now));
            }
            (false, Some(Stream::Grpc)) => endpoint.answered(),
            (false, Some(Stream::Endless) | None) => endpoint.succeeded(),
        }
        self.lease = Some(lease);
        let Some(stream) = stream else { return };
        self.stream_head = Some(now);
        let compared = self.compared(after);
        if let Some(ticket) = &mut self.evidence {
            let assigned = self.split.target(self.assigned);
            assigned.evidence.answered(self.worker.index, ticket, compared);
        }
        match stream {
            Stream::Endless => {}
            Stream::Grpc => {
                // An answer without a message says in its head how the call went.
                self.grpc = Some(Grpc {
                    service: Arc::clone(service),
                    code: grpc::code(headers),
                });
            }
        }
    }

    /// The fields after the body came.
    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(grpc) = &mut self.grpc {
            grpc.code = grpc::code(trailers).or(grpc.code);
        }
    }

    /// The version's response ends. What comes after that changes nothing.
    pub(super) fn end(&mut self, end: End) {
        let now = Instant::now();
        if let Some(lease) = self.lease.take() {
            self.tell(lease.endpoint(), end, now);
            if end == End::Complete {
                lease.give_back(now);
            }
        }
        self.record(end, None, now);
    }

    /// What the end of a response says about its endpoint beyond what the head did.
    fn tell(&self, endpoint: &Endpoint, end: End, now: Instant) {
        let failed = match end {
            End::Complete => match &self.grpc {
                Some(grpc) => grpc.is_failure(),
                None => return,
            },
            End::Broken => true,
            End::ClientGone | End::Withdrawn => return,
        };
        if self.blamed {
            return;
        }
        if failed {
            endpoint.failed(upstream::Fault::BadResponse, self.worker.since_epoch(now));
        } else {
            endpoint.succeeded();
        }
    }

    /// Serin answers itself with `failure`, because of `outcome`, in this form.
    pub(super) fn fail(mut self, failure: Failure, outcome: Outcome, form: Form) {
        self.judge(outcome);
        self.status = Some(failure.status);
        if let Some(account) = &mut self.account
            && self.method != Method::HEAD
        {
            account.sends(reply::size(failure, form));
        }
        if form == Form::Grpc {
            self.status = Some(StatusCode::OK);
            if failure.rejection().is_none() {
                let shard = self.serving().metrics.shard(self.worker.index);
                shard.answered_grpc(grpc::of(failure.status));
            }
        }
        self.record(End::Complete, Some(failure), Instant::now());
    }

    fn record(&mut self, end: End, failure: Option<Failure>, now: Instant) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        let worker = self.worker.index;
        let took = now.saturating_duration_since(self.started);
        let mut refused = false;
        if let Some(grpc) = self.grpc.take() {
            let code = match end {
                End::Complete => grpc.ended(),
                End::Broken | End::Withdrawn => grpc::UNAVAILABLE,
                End::ClientGone => grpc::CANCELLED,
            };
            self.serving().metrics.shard(worker).answered_grpc(code);
            if end == End::Complete && grpc.is_failure() {
                self.judge(Outcome::Failed);
            }
            refused = grpc::is_client_error(code);
        }
        let outcome = self.verdict.unwrap_or(match end {
            End::Complete => Outcome::Ok,
            End::Broken => Outcome::Failed,
            // A stream is judged at its head; whoever listens to one leaves when he likes.
            End::ClientGone | End::Withdrawn if self.stream_head.is_some() => Outcome::Ok,
            End::ClientGone | End::Withdrawn => Outcome::Canceled,
        });
        let ticket = self.evidence.take();
        let assigned = self.assigned();
        if !self.forced {
            assigned.metrics.shard(worker).judge(outcome);
        }
        if let Some(ticket) = ticket {
            // A failure is none of these, whatever its status is; nor is a status of ours, which is never the version's success.
            if outcome == Outcome::Ok && (refused || self.status.is_some_and(is_client_error)) {
                assigned.evidence.client_error(worker, &ticket);
            }
            assigned
                .evidence
                .end(worker, ticket, outcome, self.compared(took));
        }
        let status = match (end, self.status) {
            (End::ClientGone, _) | (_, None) => client_closed(),
            (End::Complete | End::Broken | End::Withdrawn, Some(status)) => status,
        };
        let served = self.serving();
        let shard = served.metrics.shard(worker);
        // What is counted as rejected is no answer of this version.
        if failure.is_none_or(|failure| failure.rejection().is_none()) {
            shard.answered(&self.method, status, took);
        }
        shard.leave();
        served.version.capacity().seats.leave(worker);
        if let Some(account) = self.account.take() {
            let flag = flag(end, failure, outcome, &account);
            account.end(status, took, flag);
        }
    }
}

/// Whose fault it is that a request did not go well.
fn flag(end: End, failure: Option<Failure>, outcome: Outcome, account: &Account) -> Option<Flag> {
    match end {
        End::ClientGone => Some((Fault::Client, "gone")),
        End::Broken => Some((Fault::Upstream, "broke_off")),
        End::Withdrawn => Some((Fault::Proxy, "withdrawn")),
        End::Complete => match (failure, outcome) {
            (Some(failure), _) => Some((failure.fault, failure.code)),
            // The client saw nothing of it; the version it was assigned to failed all the same.
            (None, Outcome::Failed) if account.is_rescued() => Some((Fault::Upstream, "rescued")),
            (None, Outcome::Failed) if !account.failed_head => Some((Fault::Upstream, "retried")),
            (None, Outcome::Failed) => Some((Fault::Upstream, "failed_response")),
            (None, Outcome::Ok | Outcome::Canceled) => None,
        },
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.recorded {
            return;
        }
        if std::thread::panicking() {
            // A bug of ours says nothing about the version.
            self.judge(Outcome::Canceled);
            self.status = Some(Failure::BUG.status);
            self.record(End::Complete, Some(Failure::BUG), Instant::now());
        } else {
            // Dropped with the connection before there was a response.
            self.record(End::ClientGone, None, Instant::now());
        }
    }
}

/// Responses without a natural end: judged when they begin.
enum Stream {
    Endless,
    /// Judged by the code at its end, too.
    Grpc,
}

fn stream(status: StatusCode, headers: &HeaderMap) -> Option<Stream> {
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Some(Stream::Endless);
    }
    let kind = headers.get(header::CONTENT_TYPE)?;
    if kind.as_bytes().starts_with(b"text/event-stream") {
        return Some(Stream::Endless);
    }
    grpc::is_grpc(kind).then_some(Stream::Grpc)
}
