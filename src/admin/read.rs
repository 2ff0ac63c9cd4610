//! Where services stand, and waiting until they stand elsewhere.

use super::{
    Admin, Problem, ServiceList,
    body::{Asked, Query, bad_request, capped, generation_of},
    goal::{Goal, Standing, Wait},
    openapi::{Problems, ServiceProblems},
};
use crate::{
    control::{
        AnalysisStatus, History, MetricsWindow, Recordings, ServiceJudges, ServiceStatus, StableUnits,
    },
    model::{Span, VersionName},
};
use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

/// The longest a poll is held; below what proxies in between cut off.
const LONGEST_POLL: Duration = Duration::from_secs(55);
/// How far a long poll has come: `reached`, `waiting`, `rolledBack`, `needsHuman`, `superseded`, `impossible`.
const GOAL: HeaderName = HeaderName::from_static("serin-goal");

/// Where all services stand that the caller may see.
#[utoipa::path(get, path = "/v1/services", tag = "services",
    responses((status = 200, description = "All services, by name", body = ServiceList), Problems))]
pub(super) async fn list(State(admin): State<Admin>, asked: Asked) -> Json<ServiceList> {
    let mut services = admin.parts.control.list();
    services.retain(|one| asked.identity.may_use(one.service.as_str()));
    Json(ServiceList { services })
}

/// How to wait.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Poll {
    /// Answer when this is so, or cannot become so: healthy, paused, step=N, weight=P, released=V.
    #[param(value_type = Option<String>, example = "healthy")]
    until: Option<Goal>,
    /// The version the goal is about. Absent: the one asked for last.
    #[param(inline)]
    version: Option<VersionName>,
    /// Answer after this long at the latest; 55s at most.
    #[param(inline, example = "55s")]
    timeout: Option<Span>,
    /// Go on waiting at pauses that only somebody can end.
    #[serde(default)]
    through_pauses: bool,
}

/// Where a service stands; with `until`, as soon as the goal is reached or out of reach, or `timeout` is over.
///
/// The `ETag` is the generation. The field `serin-goal` says how a wait ended.
#[utoipa::path(get, path = "/v1/services/{service}", tag = "services",
    params(("service" = String, Path, description = "Its name"), Poll,
        ("If-None-Match" = Option<String>, Header, description = "Answer 304 while this is the ETag (without `until`)")),
    responses(
        (status = 200, description = "Where it stands", body = ServiceStatus, headers(
            ("ETag" = String, description = "The generation"),
            ("serin-goal" = String, description = "reached, waiting, rolledBack, needsHuman, superseded or impossible"))),
        (status = 304, description = "Nothing has happened since"), ServiceProblems))]
pub(super) async fn status(
    State(admin): State<Admin>,
    Path(service): Path<String>,
    Query(poll): Query<Poll>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let current = || {
        let status = admin.parts.control.status(&service);
        status.ok_or_else(|| Problem::no_service(&service))
    };
    let Some(goal) = poll.until else {
        let status = current()?;
        let known = headers
            .get(header::IF_NONE_MATCH)
            .and_then(|etag| etag.to_str().ok());
        if known.and_then(generation_of) == Some(status.generation) {
            let same = [(header::ETAG, etag(status.generation))];
            return Ok((StatusCode::NOT_MODIFIED, same).into_response());
        }
        return Ok(with_etag(&status));
    };
    let wait = Wait {
        goal,
        version: poll.version,
        through_pauses: poll.through_pauses,
    };
    let patience = capped(poll.timeout, LONGEST_POLL, LONGEST_POLL);
    let deadline = tokio::time::Instant::now() + patience;
    let mut changes = admin
        .parts
        .control
        .watch(&service)
        .ok_or_else(|| Problem::no_service(&service))?;
    let (mut stopping, mut is_stopping) = (admin.stopping.clone(), false);
    loop {
        // Seen before it is read: a change in between wakes us again.
        changes.mark_unchanged();
        let status = current()?;
        let standing = wait.judge(&status);
        let ended = tokio::time::Instant::now() >= deadline || is_stopping;
        if standing != Standing::Waiting || ended {
            let mut response = with_etag(&status);
            let word = HeaderValue::from_static(standing.as_str());
            response.headers_mut().insert(GOAL, word);
            return Ok(response);
        }
        tokio::select! {
            seen = changes.changed() => if seen.is_err() {
                return Err(Problem::no_service(&service));
            },
            () = tokio::time::sleep_until(deadline) => {}
            () = super::stopped(&mut stopping) => is_stopping = true,
        }
    }
}

/// A status with its generation as `ETag`.
pub(super) fn with_etag(status: &ServiceStatus) -> Response {
    ([(header::ETAG, etag(status.generation))], Json(status)).into_response()
}

fn etag(generation: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{generation}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"0\""))
}

/// How far back.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WindowQuery {
    /// Absent: 5m.
    #[param(inline, example = "5m")]
    window: Option<Span>,
}

/// Requests, errors and duration per version over the last minutes, as an analysis sees them.
#[utoipa::path(get, path = "/v1/services/{service}/metrics", tag = "services",
    params(("service" = String, Path, description = "Its name"), WindowQuery),
    responses((status = 200, description = "Per version", body = MetricsWindow), ServiceProblems))]
pub(super) async fn metrics_window(
    State(admin): State<Admin>,
    Path(service): Path<String>,
    Query(query): Query<WindowQuery>,
) -> Result<Json<MetricsWindow>, Problem> {
    let window = query.window.unwrap_or(Span::secs(300));
    if window.is_zero() {
        return Err(bad_request(
            "invalidQuery",
            "the window is empty: ask for `window=5m`, say",
        ));
    }
    let read = admin.parts.control.metrics_window(&service, window);
    read.map(Json).ok_or_else(|| Problem::no_service(&service))
}

/// Analyses with every measurement that is kept.
#[derive(Debug, serde::Serialize, Deserialize, ToSchema)]
pub(super) struct Analyses {
    /// Those that run now first.
    pub(super) analyses: Vec<AnalysisStatus>,
}

/// The service's analyses with their measurements, those that run now first.
#[utoipa::path(get, path = "/v1/services/{service}/analysis", tag = "services",
    params(("service" = String, Path, description = "Its name")),
    responses((status = 200, description = "Analyses", body = Analyses), ServiceProblems))]
pub(super) async fn analysis(
    State(admin): State<Admin>,
    Path(service): Path<String>,
) -> Result<Json<Analyses>, Problem> {
    let analyses = admin.parts.control.analysis(&service).await?;
    Ok(Json(Analyses { analyses }))
}

/// How much of the past.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct HistoryQuery {
    /// At most so many events and attempts; absent: 100, 1000 at most.
    limit: Option<usize>,
}

/// Rollouts, every decision with the numbers it was made from, and who tried what; newest first.
#[utoipa::path(get, path = "/v1/services/{service}/history", tag = "services",
    params(("service" = String, Path, description = "Its name"), HistoryQuery),
    responses((status = 200, description = "The past", body = History), ServiceProblems))]
pub(super) async fn history(
    State(admin): State<Admin>,
    Path(service): Path<String>,
    Query(query): Query<HistoryQuery>,
) -> Result<Json<History>, Problem> {
    let limit = query.limit.unwrap_or(100).clamp(1, 1000);
    Ok(Json(admin.parts.control.history(&service, limit).await?))
}

/// Everything that the judges of a rollout were fed, tick by tick: what `serin replay` and `serin what-if` judge again.
#[utoipa::path(get, path = "/v1/services/{service}/rollouts/{rollout}/recordings", tag = "services",
    params(("service" = String, Path, description = "Its name"), ("rollout" = String, Path, description = "Its id")),
    responses((status = 200, description = "The recordings", body = Recordings), ServiceProblems))]
pub(super) async fn recordings(
    State(admin): State<Admin>,
    Path((service, rollout)): Path<(String, String)>,
) -> Result<Json<Recordings>, Problem> {
    Ok(Json(admin.parts.control.recordings(&service, &rollout).await?))
}

/// What stable has served since the split in force began, as the judge counts it: what `serin calibrate` reads every second.
#[utoipa::path(get, path = "/v1/services/{service}/stable", tag = "services",
    params(("service" = String, Path, description = "Its name")),
    responses((status = 200, description = "Counters", body = StableUnits), ServiceProblems))]
pub(super) async fn stable(
    State(admin): State<Admin>,
    Path(service): Path<String>,
) -> Result<Json<StableUnits>, Problem> {
    let units = admin.parts.control.stable_units(&service);
    units.map(Json).ok_or_else(|| Problem::no_service(&service))
}

/// The judges that a rollout of the service will have which is deployed now, with their parameters: what `serin calibrate` pretends
/// rollouts with.
#[utoipa::path(get, path = "/v1/services/{service}/judges", tag = "services",
    params(("service" = String, Path, description = "Its name")),
    responses((status = 200, description = "Its judges", body = ServiceJudges), ServiceProblems))]
pub(super) async fn judges(
    State(admin): State<Admin>,
    Path(service): Path<String>,
) -> Result<Json<ServiceJudges>, Problem> {
    let judges = admin.parts.control.judges(&service);
    judges.map(Json).ok_or_else(|| Problem::no_service(&service))
}
