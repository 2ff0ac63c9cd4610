//! Between a route and its handler: `Host`, token, role, service. What is refused here is audited here; what comes
//! through is audited by `control`, which knows before and after.

use super::{Admin, Identity, Peer, Problem, auth, routes::Access};
use crate::{
    config::TokenRole,
    control::{Attempt, Caller},
    model::Timestamp,
};
use axum::{
    extract::{RawPathParams, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use std::sync::atomic::{AtomicU64, Ordering};

/// Refused attempts that are stored and written in one second: nobody who has no token may fill the disk.
const STORED_PER_SECOND: u64 = 10;

/// What stands before one route.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    pub(super) admin: Admin,
    pub(super) access: Access,
    /// Whether the request must name us as we are called; a scraper may call the telemetry address what it likes.
    pub(super) checks_host: bool,
}

/// Lets a request through to its handler with an [`Identity`], or answers it.
pub(super) async fn pass(
    State(gate): State<Gate>,
    params: RawPathParams,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    let service = params.iter().find(|(name, _)| *name == "service");
    let service = service.map(|(_, value)| value.to_owned());
    match admit(&gate, peer, &request, service.as_deref()) {
        Ok(identity) => {
            request.extensions_mut().insert(identity);
            next.run(request).await
        }
        Err((identity, problem)) => {
            if let Access::Write { verb, .. } = gate.access {
                let key = request.headers().get("idempotency-key");
                let caller = Caller {
                    actor: identity.as_ref().map_or("unknown", |who| &who.actor).to_owned(),
                    role: identity
                        .as_ref()
                        .map_or("", |who| auth::role_name(who.role))
                        .to_owned(),
                    source: peer.map_or_else(String::new, auth::source_of),
                    reason: None,
                    idempotency_key: key.and_then(|key| key.to_str().ok()).map(str::to_owned),
                };
                gate.admin
                    .audit_refused(service.as_deref(), verb, caller, &problem)
                    .await;
            }
            problem.into_response()
        }
    }
}

type Turned = (Option<Box<Identity>>, Problem);

fn admit(
    gate: &Gate,
    peer: Option<Peer>,
    request: &Request,
    service: Option<&str>,
) -> Result<Identity, Turned> {
    let nobody = |problem| (None, problem);
    let Some(peer) = peer else {
        return Err(nobody(Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "noPeer",
            "the request came from nowhere",
        )));
    };
    if gate.checks_host && matches!(peer, Peer::Tcp(_)) {
        let hosts = &gate.admin.parts.hosts;
        hosts.check(request.uri(), request.headers()).map_err(nobody)?;
    }
    if gate.access == Access::Open {
        return Ok(Identity {
            actor: "anonymous".to_owned(),
            role: TokenRole::Viewer,
            services: None,
            source: auth::source_of(peer),
            anonymous: true,
        });
    }
    let identity = Identity::of(peer, request.headers(), &gate.admin.parts.tokens).map_err(nobody)?;
    let checked = match gate.access {
        Access::Open => Ok(()),
        Access::Read => identity.require(TokenRole::Viewer, "read"),
        Access::Write { role, verb } => identity.require(role, verb),
    };
    let checked = checked.and_then(|()| service.map_or(Ok(()), |service| identity.require_service(service)));
    match checked {
        Ok(()) => Ok(identity),
        Err(problem) => Err((Some(Box::new(identity)), problem)),
    }
}

/// Counts what was stored this second.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    /// The second in the upper bits, how many in the lower 16.
    seen: AtomicU64,
}

impl Recorder {
    fn may_store(&self, now: Timestamp) -> bool {
        let second = now.as_millis() / 1000;
        let next = |seen: u64| {
            let count = if seen >> 16 == second { seen & 0xffff } else { 0 };
            (count < STORED_PER_SECOND).then_some(second << 16 | (count + 1))
        };
        self.seen
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, next)
            .is_ok()
    }
}

impl Admin {
    /// An attempt that never came to `control`, which stores it and writes its line.
    pub(super) async fn audit_refused(
        &self,
        service: Option<&str>,
        verb: &str,
        caller: Caller,
        problem: &Problem,
    ) {
        let service = service.unwrap_or_default();
        self.store_attempt(service, verb, caller, Some(problem.code.clone()))
            .await;
    }

    /// Stores an attempt that `control` does not see: refused at the door, or about the configuration.
    pub(super) async fn store_attempt(
        &self,
        service: &str,
        verb: &str,
        caller: Caller,
        refused: Option<String>,
    ) {
        let at = self.parts.clock.wall();
        if refused.is_some() && !self.recorded.may_store(at) {
            tracing::debug!(verb, source = %caller.source, "`{verb}` was refused, one of too many to store");
            return;
        }
        let attempt = Attempt {
            at,
            service: service.chars().take(64).collect(),
            verb: verb.to_owned(),
            caller,
            refused,
            before: String::new(),
            after: String::new(),
        };
        self.parts.control.record_attempt(attempt).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_attempts_are_stored_ten_a_second_at_most() {
        let recorder = Recorder::default();
        let stored = |at| {
            (0..100)
                .filter(|_| recorder.may_store(Timestamp::from_secs(at)))
                .count()
        };
        assert_eq!(stored(1_700_000_000), 10);
        assert_eq!(stored(1_700_000_001), 10);
    }
}
