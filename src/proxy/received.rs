//! A message's body as it is received: it ends when it has ended, and with an error when it was cut short.

use super::body::BodyError;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    error::Error,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// See the module.
#[derive(Debug)]
pub(super) struct Received {
    incoming: Incoming,
    http2: bool,
}

impl Received {
    /// `http2`: what its sender speaks.
    pub(super) const fn new(incoming: Incoming, http2: bool) -> Received {
        Received { incoming, http2 }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
            Some(Ok(frame)) => Some(Ok(frame)),
            // A stream that is reset with `NO_ERROR` looks to hyper like one that has ended: nobody may take a part for the
            // whole.
            None if self.http2 && !self.incoming.is_end_stream() => Some(Err(BodyError::Broken)),
            None => None,
            Some(Err(error)) if is_malformed(&error) => Some(Err(BodyError::Malformed)),
            Some(Err(_)) => Some(Err(BodyError::Broken)),
        })
    }

    /// Whether nothing more comes, as far as can be known beforehand.
    pub(super) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Whether a body is against the rules, as against one that ends too early.
fn is_malformed(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| {
        matches!(
            cause.kind(),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData
        )
    })
}
