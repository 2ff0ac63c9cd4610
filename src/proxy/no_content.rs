//! Answers that have no content by their nature, and versions that send some all the same.
//!
//! HTTP/1.1 cannot: such an answer ends with its head (RFC 9112 6.3). Over HTTP/2 it ends where its sender says, and what comes
//! before is extraneous: a malformed message, of which nothing may go on to a client (RFC 9113 8.1.1). So its end is waited
//! for, which for nearly all of them is their head.

use http::{Method, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use std::{
    future::poll_fn,
    pin::Pin,
    task::{Poll, ready},
};

/// Whether an answer to such a request has no content (RFC 9110 6.4.1).
pub(super) fn has_none(asked: &Method, status: StatusCode) -> bool {
    *asked == Method::HEAD || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// Reads to the end of a message; whether that came before any content.
pub(super) async fn ends_empty(body: &mut Incoming) -> bool {
    poll_fn(|cx| {
        loop {
            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if frame.data_ref().is_some_and(|data| !data.is_empty()) {
                        return Poll::Ready(false);
                    }
                }
                // A stream that is reset with `NO_ERROR` looks like one that ended, and has not.
                None => return Poll::Ready(body.is_end_stream()),
                Some(Err(_)) => return Poll::Ready(false),
            }
        }
    })
    .await
}
