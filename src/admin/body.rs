//! What a request says beside its path, read with bounds: a JSON body, the query, `If-Match`, `Idempotency-Key`.
//!
//! Everything that can be wrong with it becomes a [`Problem`] here, so that handlers see values only.

use super::{Identity, Problem};
use crate::{
    control::{Caller, Expect},
    model::Span,
};
use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request},
};
use http::{HeaderMap, StatusCode, header, request::Parts as Head};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use std::time::Duration;

/// The largest body.
const LIMIT: usize = 1024 * 1024;
/// How long a body may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest reason and key that are stored.
const LONGEST_WORD: usize = 1024;

/// A JSON body; an empty one, and `null`, is `{}`.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (head, body) = request.into_parts();
        let read = tokio::time::timeout(PATIENCE, Limited::new(body, LIMIT).collect()).await;
        let bytes: Bytes = match read {
            Err(_) => {
                return Err(Problem::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "bodyTimeout",
                    "the request's body did not arrive within 10s",
                ));
            }
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return Err(Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "bodyTooLarge",
                    "the request's body is larger than 1 MiB",
                ));
            }
            Ok(Err(error)) => {
                return Err(bad_request(
                    "bodyUnreadable",
                    format!("the body broke off: {error}"),
                ));
            }
            Ok(Ok(all)) => all.to_bytes(),
        };
        if bytes.is_empty() || bytes.trim_ascii() == b"null" {
            return parse(b"{}").map(Json);
        }
        if !is_json(&head.headers) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "notJson",
                "the body is not declared as JSON",
            )
            .hint("send `Content-Type: application/json`"));
        }
        parse(&bytes).map(Json)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    kind.and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // A list would be read as the fields in their order, which nobody means.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalidBody",
            "the body is a list; it must be an object",
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalidBody",
            format!("the body does not say what is needed: {error}"),
        )
        .hint("GET /openapi.json describes every body"),
        serde_json::error::Category::Io
        | serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof => {
            bad_request("malformedJson", format!("the body is not JSON: {error}"))
        }
    })
}

/// The query, unknown keys refused.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(head: &mut Head, _: &S) -> Result<Self, Problem> {
        axum::extract::Query::try_from_uri(&head.uri)
            .map(|axum::extract::Query(read)| Query(read))
            .map_err(|error| {
                bad_request(
                    "invalidQuery",
                    format!("the query cannot be read: {}", error.body_text()),
                )
            })
    }
}

/// Who asks, what they expect by header, and under which key.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) identity: Identity,
    if_match: Option<u64>,
    key: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Problem;

    async fn from_request_parts(head: &mut Head, _: &S) -> Result<Self, Problem> {
        let identity = head.extensions.get::<Identity>().cloned();
        let Some(identity) = identity else {
            return Err(Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "noIdentity",
                "the request came past the gate",
            ));
        };
        Ok(Asked {
            identity,
            if_match: if_match(&head.headers)?,
            key: idempotency_key(&head.headers)?,
        })
    }
}

impl Asked {
    /// For the audit.
    pub(super) fn caller(&self, reason: Option<String>) -> Result<Caller, Problem> {
        if reason.as_ref().is_some_and(|reason| reason.len() > LONGEST_WORD) {
            return Err(bad_request(
                "reasonTooLong",
                format!("the reason is longer than {LONGEST_WORD} bytes"),
            ));
        }
        Ok(Caller {
            actor: self.identity.actor.clone(),
            role: super::auth::role_name(self.identity.role).to_owned(),
            source: self.identity.source.clone(),
            reason,
            idempotency_key: self.key.clone(),
        })
    }

    /// What must hold: the body's word and `If-Match` together.
    pub(super) fn expect(&self, said: Option<Expect>) -> Result<Expect, Problem> {
        let mut expect = said.unwrap_or_default();
        match (expect.generation, self.if_match) {
            (Some(said), Some(matched)) if said != matched => Err(bad_request(
                "expectationsDiffer",
                format!("If-Match says generation {matched} and expect says {said}"),
            )),
            (_, matched) => {
                expect.generation = expect.generation.or(matched);
                Ok(expect)
            }
        }
    }
}

/// The generation of `If-Match: "17"`; `*` matches anything.
fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    generation_of(text).map(Some).ok_or_else(|| {
        bad_request("invalidIfMatch", format!("`{text}` is not an ETag of this API"))
            .hint("send the ETag of GET /v1/services/{service}, for example `If-Match: \"17\"`")
    })
}

/// The generation in an `ETag`.
pub(super) fn generation_of(etag: &str) -> Option<u64> {
    let etag = etag.strip_prefix("W/").unwrap_or(etag);
    etag.strip_prefix('"')?.strip_suffix('"')?.parse().ok()
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim_matches('"');
    if text.is_empty() || text.len() > 255 {
        return Err(bad_request(
            "invalidIdempotencyKey",
            "an Idempotency-Key is 1 to 255 visible ASCII characters",
        ));
    }
    Ok(Some(text.to_owned()))
}

/// A length of time in a query, capped.
pub(super) fn capped(asked: Option<Span>, absent: Duration, most: Duration) -> Duration {
    asked.map_or(absent, Span::as_duration).min(most)
}

pub(super) fn bad_request(code: &str, detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, code, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    async fn read(kind: Option<&str>, body: Body) -> Result<super::super::VerbRequest, Problem> {
        let mut request = http::Request::builder().method("POST").uri("/");
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let Json(read) = Json::from_request(request.body(body).unwrap(), &()).await?;
        Ok(read)
    }

    #[tokio::test]
    async fn a_body_is_json_or_nothing() {
        let json = Some("application/json; charset=utf-8");
        assert_eq!(read(None, Body::empty()).await.unwrap().reason, None);
        assert_eq!(
            read(json, r#"{"reason":"x"}"#.into())
                .await
                .unwrap()
                .reason
                .as_deref(),
            Some("x")
        );
        for (kind, body, code) in [
            (None, r#"{"reason":"x"}"#, "notJson"),
            (Some("text/plain"), "{}", "notJson"),
            (json, "{", "malformedJson"),
            (json, r#"{"why":"x"}"#, "invalidBody"),
            (json, r#"{"reason":7}"#, "invalidBody"),
            (json, "[]", "invalidBody"),
        ] {
            assert_eq!(read(kind, body.into()).await.unwrap_err().code, code, "{body}");
        }
    }

    #[tokio::test]
    async fn a_body_above_a_mebibyte_is_refused() {
        let large = "x".repeat(LIMIT + 1);
        let problem = read(Some("application/json"), large.into()).await.unwrap_err();
        assert_eq!((problem.status, problem.code.as_str()), (413, "bodyTooLarge"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_comes_is_given_up() {
        let silent = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let problem = read(Some("application/json"), silent).await.unwrap_err();
        assert_eq!(problem.status, 408);
    }

    #[test]
    fn an_etag_is_a_generation() {
        assert_eq!(generation_of("\"17\""), Some(17));
        assert_eq!(generation_of("W/\"17\""), Some(17));
        assert_eq!(generation_of("17"), None);
        assert_eq!(generation_of("\"x\""), None);
    }
}
