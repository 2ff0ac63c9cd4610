//! The configuration: shown without secrets, checked, reloaded, and whom it names to be told tried. `app` owns it; here is only
//! the way in.

use super::{
    Admin, ConfigCheck, ConfigText, Problem, ReasonRequest, Reloaded,
    body::{Asked, Json},
    openapi::{Problems, VerbProblems},
};
use crate::control::{Change, Expect, NotificationTest};
use axum::extract::{Path, State};
use http::StatusCode;
use std::{fmt, future::Future, pin::Pin};

/// An answer that takes a while.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What `app` does with the configuration.
pub trait Operator: fmt::Debug + Send + Sync + 'static {
    /// The configuration in force, secrets redacted.
    fn config(&self) -> serde_json::Value;

    /// What taking this text as configuration would lead to; changes nothing.
    fn check(&self, text: String) -> Answer<'_, ConfigCheck>;

    /// Reads the file again and takes it, or says each reason why not.
    fn reload(&self) -> Answer<'_, Result<Vec<Change>, Vec<String>>>;
}

/// The configuration in force; secrets are redacted.
#[utoipa::path(get, path = "/v1/config", tag = "config",
    responses((status = 200, description = "As it was compiled", body = serde_json::Value), Problems))]
pub(super) async fn show(
    State(admin): State<Admin>,
    asked: Asked,
) -> Result<axum::Json<serde_json::Value>, Problem> {
    asked.identity.require_everywhere()?;
    Ok(axum::Json(admin.parts.operator.config()))
}

/// What a reload of this text would lead to. Changes nothing.
#[utoipa::path(post, path = "/v1/config/check", tag = "config", request_body = ConfigText,
    responses((status = 200, description = "Whether it would be taken", body = ConfigCheck), VerbProblems))]
pub(super) async fn check(
    State(admin): State<Admin>,
    asked: Asked,
    Json(body): Json<ConfigText>,
) -> Result<axum::Json<ConfigCheck>, Problem> {
    asked.identity.require_everywhere()?;
    let checked = admin.parts.operator.check(body.text).await;
    admin.store_attempt("", "check", asked.caller(None)?, None).await;
    Ok(axum::Json(checked))
}

/// Reads the configuration file again: all of it is taken, or nothing.
#[utoipa::path(post, path = "/v1/config/reload", tag = "config", request_body = Option<ReasonRequest>,
    responses((status = 200, description = "What changed", body = Reloaded), VerbProblems))]
pub(super) async fn reload(
    State(admin): State<Admin>,
    asked: Asked,
    Json(body): Json<ReasonRequest>,
) -> Result<axum::Json<Reloaded>, Problem> {
    asked.identity.require_everywhere()?;
    expects_nothing(&asked)?;
    let caller = asked.caller(body.reason)?;
    match admin.parts.operator.reload().await {
        Ok(changes) => {
            admin.store_attempt("", "reload", caller, None).await;
            Ok(axum::Json(Reloaded { changes }))
        }
        Err(problems) => {
            let refused = Problem {
                problems,
                ..Problem::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "configRefused",
                    "the configuration was not taken; the old one stays in force",
                )
            };
            let refused = refused.hint("mend what `problems` names and reload again");
            admin.audit_refused(None, "reload", caller, &refused).await;
            Err(refused)
        }
    }
}

/// Posts a test message to a receiver of notifications, once and at once, and says what it was answered.
#[utoipa::path(post, path = "/v1/notifications/{notification}/test", tag = "config", request_body = Option<ReasonRequest>,
    params(("notification" = String, Path, description = "Its name")),
    responses((status = 200, description = "What came of it", body = NotificationTest), VerbProblems))]
pub(super) async fn test_notification(
    State(admin): State<Admin>,
    Path(notification): Path<String>,
    asked: Asked,
    Json(body): Json<ReasonRequest>,
) -> Result<axum::Json<NotificationTest>, Problem> {
    const VERB: &str = "test-notification";
    asked.identity.require_everywhere()?;
    expects_nothing(&asked)?;
    let caller = asked.caller(body.reason)?;
    if let Some(tested) = admin.parts.control.test_notification(&notification).await {
        admin.store_attempt("", VERB, caller, None).await;
        return Ok(axum::Json(tested));
    }
    let refused = Problem::new(
        StatusCode::NOT_FOUND,
        "unknownNotification",
        format!("there is nobody called `{notification}` to be notified"),
    )
    .hint("GET /v1/config lists notifications; they are made in the configuration file");
    admin.audit_refused(None, VERB, caller, &refused).await;
    Err(refused)
}

/// Whoever writes `If-Match` must not believe that it was looked at.
fn expects_nothing(asked: &Asked) -> Result<(), Problem> {
    if asked.expect(None)? == Expect::default() {
        return Ok(());
    }
    let refused = Problem::new(
        StatusCode::PRECONDITION_FAILED,
        "noExpectation",
        "this concerns no one service: its state has no ETag",
    );
    Err(refused.hint("leave If-Match out"))
}
