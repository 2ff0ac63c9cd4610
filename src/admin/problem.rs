//! How a refusal is said over HTTP: RFC 9457 `application/problem+json`, with a `code` for programs and a `hint` for people.
//!
//! The one place where a refusal becomes a status code. The command line reads the same type back.

use crate::{
    control::{ReadError, Refusal, RefusalKind},
    rollout::Verb,
};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why something was not done, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: `code` tells problems apart.
    #[serde(rename = "type", default = "about_blank")]
    #[schema(example = "about:blank")]
    pub kind: String,
    /// What the status means.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, in one sentence.
    pub detail: String,
    /// A word for programs: `unauthorised`, `wrongState`, `unknownService`, …
    pub code: String,
    /// How to mend it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What can be done now, where the state refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub legal: Vec<Verb>,
    /// Each fault, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

fn about_blank() -> String {
    "about:blank".to_owned()
}

impl Problem {
    /// A problem without hint.
    pub fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Problem {
        Problem {
            kind: about_blank(),
            title: status.canonical_reason().unwrap_or("Problem").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            code: code.to_owned(),
            hint: None,
            legal: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Says how to mend it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }

    /// There is no such service.
    pub fn no_service(name: &str) -> Problem {
        Problem::new(
            StatusCode::NOT_FOUND,
            "unknownService",
            format!("there is no service `{name}`"),
        )
        .hint("`serin get` or GET /v1/services lists them; services are made in the configuration file")
    }

    /// Serin is going away.
    pub fn stopping() -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "Serin is stopping")
            .hint("try again when it has been started again")
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        let status = match refusal.kind {
            RefusalKind::Conflict => StatusCode::CONFLICT,
            RefusalKind::Precondition => StatusCode::PRECONDITION_FAILED,
            RefusalKind::NotFound => StatusCode::NOT_FOUND,
            RefusalKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            RefusalKind::Forbidden => StatusCode::FORBIDDEN,
            RefusalKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem {
            hint: refusal.hint,
            legal: refusal.legal,
            ..Problem::new(status, &refusal.code, refusal.message)
        }
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Problem {
        match error {
            ReadError::NoService(name) => Problem::no_service(&name),
            ReadError::NoRollout(..) => {
                Problem::new(StatusCode::NOT_FOUND, "unknownRollout", error.to_string())
                    .hint("GET /v1/services/{service}/history lists the rollouts that are kept")
            }
            ReadError::Store(_) | ReadError::File(_) => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "storeUnreadable",
                error.to_string(),
            )
            .hint("check the disk that holds `state.path`; traffic is not affected"),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"serin\""),
            );
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_refusal_has_its_own_status() {
        let status = |kind| Problem::from(Refusal::new(kind, "x", "y")).status;
        assert_eq!(status(RefusalKind::Conflict), 409);
        assert_eq!(status(RefusalKind::Precondition), 412);
        assert_eq!(status(RefusalKind::NotFound), 404);
        assert_eq!(status(RefusalKind::Invalid), 422);
        assert_eq!(status(RefusalKind::Forbidden), 403);
        assert_eq!(status(RefusalKind::Unavailable), 503);
    }

    #[test]
    fn a_refusal_keeps_its_hint_and_what_is_legal() {
        let refusal = Refusal::new(RefusalKind::Conflict, "wrongState", "nothing to promote")
            .hint("deploy first")
            .legal(vec![Verb::Deploy]);
        let json = serde_json::to_value(Problem::from(refusal)).unwrap();
        assert_eq!(json["hint"], "deploy first");
        assert_eq!(json["legal"][0], "deploy");
        assert_eq!(json["type"], "about:blank");
        assert_eq!(json["title"], "Conflict");
        assert!(json.get("problems").is_none());
    }
}
