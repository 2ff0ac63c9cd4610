//! What gRPC says in HTTP's fields: whether a message is its, how a call went, how we say that it went wrong.
//!
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md> and `http-grpc-status-mapping.md` next to it.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

pub(super) const STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(super) const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub(super) const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

pub(super) const CANCELLED: u32 = 1;
pub(super) const UNKNOWN: u32 = 2;
pub(super) const UNAVAILABLE: u32 = 14;

/// Whether a content type is gRPC's. gRPC-Web has trailers of its own, inside the body.
pub(super) fn is_grpc(content_type: &HeaderValue) -> bool {
    let rest = content_type.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The code in a head or in trailers. One that is no number says as little as none.
pub(super) fn code(fields: &HeaderMap) -> Option<u32> {
    fields.get(STATUS)?.to_str().ok()?.parse().ok()
}

/// Whether a call ended by the client's fault, as an answer 4xx does: `INVALID_ARGUMENT`, `NOT_FOUND`, `ALREADY_EXISTS`,
/// `PERMISSION_DENIED`, `FAILED_PRECONDITION`, `OUT_OF_RANGE`, `UNAUTHENTICATED`. `CANCELLED` is a client that went away;
/// `RESOURCE_EXHAUSTED` and `ABORTED` say nothing about whose fault it is.
pub(super) const fn is_client_error(code: u32) -> bool {
    matches!(code, 3 | 5 | 6 | 7 | 9 | 11 | 16)
}

/// Sets how a call went. `message` is printable ASCII without `%`: nothing to encode.
pub(super) fn say(fields: &mut HeaderMap, code: u32, message: &'static str) {
    fields.insert(STATUS, HeaderValue::from(code));
    fields.insert(MESSAGE, HeaderValue::from_static(message));
}

/// The code for an answer that we give with this status.
pub(super) fn of(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 | 405 | 417 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        408 | 504 => 4,
        413 | 431 => 8,
        429 | 502 | 503 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_told_from_what_only_begins_like_it() {
        let is = |text: &'static str| is_grpc(&HeaderValue::from_static(text));
        assert!(is("application/grpc") && is("application/grpc+proto") && is("application/grpc; x=1"));
        assert!(!is("application/grpc-web") && !is("application/json"));
    }

    #[test]
    fn our_answers_have_the_code_that_tells_a_client_what_to_do() {
        let of = |status: u16| of(StatusCode::from_u16(status).unwrap());
        assert_eq!((of(502), of(503), of(504), of(404), of(413)), (14, 14, 4, 12, 8));
    }
}
