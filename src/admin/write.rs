//! The verbs: each reads what is asked, names who asks, and hands it to `control`.
//!
//! `control` decides, stores and audits; what it refuses becomes a [`Problem`]. Roles are checked by the gate, except
//! where the body asks for more than the path.

use super::{
    Admin, DeployRequest, EndpointsRequest, EndpointsVerb, Problem, PromoteRequest, UndoRequest, VerbRequest,
    WeightRequest,
    body::{Asked, Json},
    openapi::VerbProblems,
    read::with_etag,
    wire,
};
use crate::{
    config::TokenRole,
    control::{Command, Deploy, EndpointChange, Expect, ServiceStatus},
    model::VersionName,
};
use axum::{
    extract::{Path, State},
    response::Response,
};
use http::{HeaderName, HeaderValue, StatusCode};

/// On an answer that was given before under the same idempotency key.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

impl Admin {
    async fn run(
        &self,
        service: &str,
        command: Command,
        asked: &Asked,
        expect: Option<Expect>,
        reason: Option<String>,
    ) -> Result<Response, Problem> {
        let (expect, caller) = (asked.expect(expect)?, asked.caller(reason)?);
        let accepted = self
            .parts
            .control
            .command(service, command, expect, caller)
            .await?;
        let mut response = with_etag(&accepted.status);
        if accepted.created {
            *response.status_mut() = StatusCode::CREATED;
        }
        if accepted.repeated {
            response
                .headers_mut()
                .insert(REPLAYED, HeaderValue::from_static("true"));
        }
        Ok(response)
    }

    /// Refuses, and audits that, when a body asks for more than its path.
    async fn require(
        &self,
        service: &str,
        asked: &Asked,
        verb: &str,
        reason: Option<&String>,
    ) -> Result<(), Problem> {
        let Err(problem) = asked.identity.require(TokenRole::Admin, verb) else {
            return Ok(());
        };
        let caller = asked.caller(reason.cloned())?;
        self.audit_refused(Some(service), verb, caller, &problem).await;
        Err(problem)
    }
}

/// Brings in a version. The same version and plan again is the same rollout.
#[utoipa::path(post, path = "/v1/services/{service}/deploy", tag = "verbs", request_body = DeployRequest,
    params(("service" = String, Path, description = "Its name")),
    responses(
        (status = 201, description = "A rollout began", body = ServiceStatus),
        (status = 200, description = "That rollout was there already", body = ServiceStatus), VerbProblems))]
pub(super) async fn deploy(
    State(admin): State<Admin>,
    Path(service): Path<String>,
    asked: Asked,
    Json(body): Json<DeployRequest>,
) -> Result<Response, Problem> {
    let steps = body.steps.as_deref().map(wire::steps).transpose()?;
    let command = Command::Deploy(Deploy {
        version: body.version,
        endpoints: body.endpoints,
        steps,
        on_conflict: body.on_conflict.unwrap_or_default(),
        sequence: body.sequence,
        replace: body.replace,
    });
    admin
        .run(&service, command, &asked, body.expect, body.reason)
        .await
}

/// Changes where a version listens, at any time and without a new rollout.
#[utoipa::path(put, path = "/v1/services/{service}/versions/{version}/endpoints", tag = "verbs",
    request_body = EndpointsRequest,
    params(("service" = String, Path, description = "Its name"), ("version" = String, Path, description = "Which version")),
    responses((status = 200, description = "The new status", body = ServiceStatus), VerbProblems))]
pub(super) async fn endpoints(
    State(admin): State<Admin>,
    Path((service, version)): Path<(String, String)>,
    asked: Asked,
    Json(body): Json<EndpointsRequest>,
) -> Result<Response, Problem> {
    let version = VersionName::new(&version).map_err(|error| {
        Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalidVersion",
            error.to_string(),
        )
    })?;
    let change = match body.change {
        EndpointsVerb::Set => EndpointChange::Set(body.endpoints),
        EndpointsVerb::Add => EndpointChange::Add(body.endpoints),
        EndpointsVerb::Drain => EndpointChange::Drain(body.endpoints),
    };
    let command = Command::SetEndpoints { version, change };
    admin
        .run(&service, command, &asked, body.expect, body.reason)
        .await
}

/// Releases the current pause; `full` skips everything that is left, `skipAnalysis` passes a running analysis too.
#[utoipa::path(post, path = "/v1/services/{service}/promote", tag = "verbs", request_body = Option<PromoteRequest>,
    params(("service" = String, Path, description = "Its name")),
    responses((status = 200, description = "The new status", body = ServiceStatus), VerbProblems))]
pub(super) async fn promote(
    State(admin): State<Admin>,
    Path(service): Path<String>,
    asked: Asked,
    Json(body): Json<PromoteRequest>,
) -> Result<Response, Problem> {
    if body.full || body.skip_analysis {
        let verb = if body.full {
            "promote --full"
        } else {
            "promote --skip-analysis"
        };
        admin
            .require(&service, &asked, verb, body.reason.as_ref())
            .await?;
    }
    let command = Command::Promote {
        full: body.full,
        skip_analysis: body.skip_analysis,
    };
    admin
        .run(&service, command, &asked, body.expect, body.reason)
        .await
}

/// Gives stable all traffic back.
#[utoipa::path(post, path = "/v1/services/{service}/abort", tag = "verbs", request_body = Option<VerbRequest>,
    params(("service" = String, Path, description = "Its name")),
    responses((status = 200, description = "The new status", body = ServiceStatus), VerbProblems))]
pub(super) async fn abort(
    State(admin): State<Admin>,
    Path(service): Path<String>,
    asked: Asked,
    Json(body): Json<VerbRequest>,
) -> Result<Response, Problem> {
    admin
        .run(&service, Command::Abort, &asked, body.expect, body.reason)
        .await
}

/// Starts the version that was pulled back again, at the first step.
#[utoipa::path(post, path = "/v1/services/{service}/retry", tag = "verbs", request_body = Option<VerbRequest>,
    params(("service" = String, Path, description = "Its name")),
    responses((status = 200, description = "The new status", body = ServiceStatus), VerbProblems))]
pub(super) async fn retry(
    State(admin): State<Admin>,
    Path(service): Path<String>,
    asked: Asked,
    Json(body): Json<VerbRequest>,
) -> Result<Response, Problem> {
    admin
        .run(&service, Command::Retry, &asked, body.expect, body.reason)
        .await
}

/// Goes back to a former version while it is warm.
#[utoipa::path(post, path = "/v1/services/{service}/undo", tag = "verbs", request_body = Option<UndoRequest>,
    params(("service" = String, Path, description = "Its name")),
    responses((status = 200, description = "The new status", body = ServiceStatus), VerbProblems))]
pub(super) async fn undo(
    State(admin): State<Admin>,
    Path(service): Path<String>,
    asked: Asked,
    Json(body): Json<UndoRequest>,
) -> Result<Response, Problem> {
    let command = Command::Undo { to: body.to };
    admin
        .run(&service, command, &asked, body.expect, body.reason)
        .await
}

/// Stops the steps; traffic and analyses go on.
#[utoipa::path(post, path = "/v1/services/{service}/pause", tag = "verbs", request_body = Option<VerbRequest>,
    params(("service" = String, Path, description = "Its name")),
    responses((status = 200, description = "The new status", body = ServiceStatus), VerbProblems))]
pub(super) async fn pause(
    State(admin): State<Admin>,
    Path(service): Path<String>,
    asked: Asked,
    Json(body): Json<VerbRequest>,
) -> Result<Response, Problem> {
    admin
        .run(&service, Command::Pause, &asked, body.expect, body.reason)
        .await
}

/// Lets the steps go on.
#[utoipa::path(post, path = "/v1/services/{service}/resume", tag = "verbs", request_body = Option<VerbRequest>,
    params(("service" = String, Path, description = "Its name")),
    responses((status = 200, description = "The new status", body = ServiceStatus), VerbProblems))]
pub(super) async fn resume(
    State(admin): State<Admin>,
    Path(service): Path<String>,
    asked: Asked,
    Json(body): Json<VerbRequest>,
) -> Result<Response, Problem> {
    admin
        .run(&service, Command::Resume, &asked, body.expect, body.reason)
        .await
}

/// Gives the canary this share and pauses there; answers when every worker splits by it.
#[utoipa::path(put, path = "/v1/services/{service}/weight", tag = "verbs", request_body = WeightRequest,
    params(("service" = String, Path, description = "Its name")),
    responses((status = 200, description = "The new status", body = ServiceStatus), VerbProblems))]
pub(super) async fn weight(
    State(admin): State<Admin>,
    Path(service): Path<String>,
    asked: Asked,
    Json(body): Json<WeightRequest>,
) -> Result<Response, Problem> {
    let command = Command::SetWeight { weight: body.weight };
    admin
        .run(&service, command, &asked, body.expect, body.reason)
        .await
}
