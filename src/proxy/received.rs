//! A message's body as it is received: it ends when it has ended, and with an error when it was cut short.
//!
//! A request over HTTP/2 may send all that it announced and then break the rules: more data, a reset, malformed trailers. Over
//! HTTP/1.1 its last announced byte ends it, so that byte waits here until the stream has ended (RFC 9113 8.1.1: no
//! malformed request is forwarded).

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
    /// A request's: see the module.
    holds: bool,
    /// In a box: hardly any body has one, and a response's would be as long again.
    held: Option<Box<Frame<Bytes>>>,
    /// The trailers behind what was held.
    trailers: Option<Box<Frame<Bytes>>>,
}

impl Received {
    /// `http2`: what its sender speaks.
    pub(super) const fn new(incoming: Incoming, http2: bool) -> Received {
        Received {
            incoming,
            http2,
            holds: false,
            held: None,
            trailers: None,
        }
    }

    /// The same of a request.
    pub(super) fn request(incoming: Incoming, http2: bool) -> Received {
        Received {
            holds: http2,
            ..Received::new(incoming, http2)
        }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.holds {
            return self.poll_next(cx);
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(*trailers)));
        }
        loop {
            match ready!(self.poll_next(cx)) {
                Some(Ok(frame)) if frame.is_data() && self.is_fulfilled() => {
                    // Nothing but empty pieces can follow the first one that is held.
                    self.held.get_or_insert_with(|| Box::new(frame));
                }
                Some(Err(error)) => {
                    self.held = None;
                    return Poll::Ready(Some(Err(error)));
                }
                last => {
                    let Some(held) = self.held.take() else {
                        return Poll::Ready(last);
                    };
                    self.trailers = last.and_then(Result::ok).map(Box::new);
                    return Poll::Ready(Some(Ok(*held)));
                }
            }
        }
    }

    /// Whether all that was announced has come, and the stream goes on.
    fn is_fulfilled(&self) -> bool {
        self.incoming.size_hint().exact() == Some(0) && !self.incoming.is_end_stream()
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
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
        self.held.is_none() && self.trailers.is_none() && self.incoming.is_end_stream()
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
