//! Answers that Serin gives itself, and whose fault they say it was.
//!
//! The one place where a failure becomes a status code and a text.

use super::body::OutBody;
use super::grpc;
use super::inbound::Refusal;
use super::seen::Seen;
use crate::metrics::Rejection;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Body;

/// Whose fault a failed request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The client sent something that cannot be served.
    Client,
    /// The version did not answer, or not properly.
    Upstream,
    /// Serin itself: its limits, its configuration, its bugs.
    Proxy,
}

impl Fault {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Fault::Client => "client",
            Fault::Upstream => "upstream",
            Fault::Proxy => "proxy",
        }
    }
}

/// A failed request, before it is rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) fault: Fault,
    /// What happened, in a word.
    pub(super) code: &'static str,
    pub(super) detail: &'static str,
    /// Seconds after which a client may try again.
    pub(super) retry_after: Option<u32>,
}

impl Failure {
    const fn new(status: StatusCode, fault: Fault, code: &'static str, detail: &'static str) -> Failure {
        Failure {
            status,
            fault,
            code,
            detail,
            retry_after: None,
        }
    }

    /// No endpoint could be reached.
    pub(super) const UNREACHABLE: Failure = Failure::new(
        StatusCode::BAD_GATEWAY,
        Fault::Upstream,
        "unreachable",
        "no endpoint of the service could be reached",
    );
    /// The connection broke before a response.
    pub(super) const RESET: Failure = Failure::new(
        StatusCode::BAD_GATEWAY,
        Fault::Upstream,
        "reset",
        "the service closed the connection before it answered; the request was not repeated because it may have had an effect",
    );
    /// The request's head is larger than the version says that it takes.
    pub(super) const HEAD_TOO_LARGE: Failure = Failure::new(
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Fault::Client,
        "header_limit",
        "the request's head is larger than the service takes",
    );
    /// The connection broke before a response to a request whose head is larger than any that was answered there.
    pub(super) const HEAD_REFUSED: Failure = Failure::new(
        StatusCode::BAD_GATEWAY,
        Fault::Upstream,
        "large_head",
        "the service ended the connection before it answered, perhaps because the request's head is larger than it takes",
    );
    /// What came back is not HTTP, or not what was asked for.
    pub(super) const INVALID: Failure = Failure::new(
        StatusCode::BAD_GATEWAY,
        Fault::Upstream,
        "invalid_answer",
        "the service's answer is not valid HTTP",
    );
    /// A switch to another protocol was asked for, and HTTP/2 has none.
    pub(super) const NO_UPGRADE: Failure = Failure::new(
        StatusCode::BAD_GATEWAY,
        Fault::Upstream,
        "no_upgrade",
        "the service speaks only HTTP/2, which cannot be switched to another protocol",
    );
    /// No response head in time.
    pub(super) const TIMED_OUT: Failure = Failure::new(
        StatusCode::GATEWAY_TIMEOUT,
        Fault::Upstream,
        "timeout",
        "the service did not answer in time",
    );
    /// The service has no version yet.
    pub(super) const NO_VERSION: Failure = Failure {
        retry_after: Some(1),
        ..Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Fault::Proxy,
            "no_version",
            "the service has no version to send requests to",
        )
    };
    /// More requests than the limit allows.
    pub(super) const OVERLOAD: Failure = Failure {
        retry_after: Some(1),
        ..Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Fault::Proxy,
            "overload",
            "more requests at once than the service's limit allows",
        )
    };
    /// Serin has a bug.
    pub(super) const BUG: Failure = Failure::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        Fault::Proxy,
        "bug",
        "the proxy failed at this request",
    );
    /// Our own machine is out of resources.
    pub(super) const EXHAUSTED: Failure = Failure {
        retry_after: Some(1),
        ..Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Fault::Proxy,
            "exhausted",
            "the proxy is out of connections",
        )
    };
    /// Nothing in the configuration matches.
    pub(super) const NO_ROUTE: Failure = Failure::new(
        StatusCode::NOT_FOUND,
        Fault::Client,
        "no_route",
        "no service is configured for this host and path",
    );
    /// The body is larger than allowed.
    pub(super) const TOO_LARGE: Failure = Failure::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        Fault::Client,
        "body_limit",
        "the request body is larger than the limit",
    );
    /// The client sent its body too slowly.
    pub(super) const SLOW_BODY: Failure = Failure::new(
        StatusCode::REQUEST_TIMEOUT,
        Fault::Client,
        "slow_body",
        "the request body did not arrive in time",
    );
    /// The client's body is against the rules.
    pub(super) const MALFORMED_BODY: Failure = Failure::new(
        StatusCode::BAD_REQUEST,
        Fault::Client,
        "malformed_body",
        "the request body is malformed",
    );
    /// The client's body broke off.
    pub(super) const BROKEN_BODY: Failure = Failure::new(
        StatusCode::BAD_REQUEST,
        Fault::Client,
        "broken_body",
        "the request body ended before its end",
    );

    /// Why it is counted under `serin_http_rejected_total`, and then nowhere else: Serin refused it, for its form or for want
    /// of a route, a version or room, however far it had come. What it had been assigned to has nothing to do with that.
    pub(super) fn rejection(self) -> Option<Rejection> {
        match self {
            f if f == Failure::NO_ROUTE => Some(Rejection::NoRoute),
            f if f == Failure::NO_VERSION => Some(Rejection::NoVersion),
            f if f == Failure::OVERLOAD || f == Failure::EXHAUSTED => Some(Rejection::Overload),
            f if f == Failure::TOO_LARGE => Some(Rejection::BodyLimit),
            f if f == Failure::HEAD_TOO_LARGE => Some(Rejection::HeaderLimit),
            f if f == Failure::MALFORMED_BODY => Some(Rejection::Malformed),
            f if f == Failure::BROKEN_BODY => Some(Rejection::Incomplete),
            f if f == Failure::SLOW_BODY => Some(Rejection::Timeout),
            _ => None,
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Failure::new(
            refusal.status,
            Fault::Client,
            refusal.reason.as_str(),
            refusal.detail,
        )
    }
}

/// How a failure is told to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As problem+json.
    Json,
    /// As plain text.
    Text,
    /// As gRPC's status: such a client looks at no other.
    Grpc,
}

impl Form {
    /// What the sender of a request understands.
    pub(super) const fn of(seen: &Seen) -> Form {
        if seen.grpc {
            Form::Grpc
        } else if seen.accepts_json {
            Form::Json
        } else {
            Form::Text
        }
    }
}

/// An answer without a message: its head is also its end.
fn render_grpc(failure: Failure) -> Response<OutBody> {
    let mut response = Response::new(OutBody::own(Bytes::new()));
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, grpc::CONTENT_TYPE);
    grpc::say(headers, grpc::of(failure.status), failure.detail);
    response
}

/// How many bytes a failure's body has.
pub(super) fn size(failure: Failure, form: Form) -> u64 {
    render(failure, form).body().size_hint().exact().unwrap_or(0)
}

/// Renders a failure in the form that its client understands.
pub(super) fn render(failure: Failure, form: Form) -> Response<OutBody> {
    let json = match form {
        Form::Grpc => return render_grpc(failure),
        Form::Json => true,
        Form::Text => false,
    };
    let title = failure.status.canonical_reason().unwrap_or("Error");
    let (content_type, body) = if json {
        let body = serde_json::json!({
            "type": "about:blank",
            "title": title,
            "status": failure.status.as_u16(),
            "detail": failure.detail,
            "fault": failure.fault.as_str(),
        });
        ("application/problem+json", body.to_string())
    } else {
        let (code, fault) = (failure.status.as_u16(), failure.fault.as_str());
        (
            "text/plain; charset=utf-8",
            format!("{code} {title}: {} (fault: {fault})\n", failure.detail),
        )
    };
    let mut response = Response::new(OutBody::own(Bytes::from(body)));
    *response.status_mut() = failure.status;
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = failure.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if failure.status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(
            header::ALLOW,
            HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH"),
        );
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn text(failure: Failure, form: Form) -> (String, String) {
        let response = render(failure, form);
        let kind = response.headers()[header::CONTENT_TYPE]
            .to_str()
            .unwrap()
            .to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn a_grpc_client_gets_a_grpc_status() {
        let response = render(Failure::TIMED_OUT, Form::Grpc);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "4");
    }

    #[tokio::test]
    async fn an_answer_says_whose_fault_it_was_in_either_form() {
        let (kind, body) = text(Failure::UNREACHABLE, Form::Json).await;
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (kind.as_str(), &json["fault"], &json["status"]),
            ("application/problem+json", &"upstream".into(), &502.into())
        );
        let (kind, body) = text(Failure::NO_ROUTE, Form::Text).await;
        assert_eq!(kind, "text/plain; charset=utf-8");
        assert!(
            body.starts_with("404 Not Found: ") && body.contains("fault: client"),
            "{body}"
        );
    }
}
