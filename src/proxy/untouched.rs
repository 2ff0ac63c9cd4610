//! What a version says of a request by the way in which it ends it (RFC 9113 section 8.7).
//!
//! HTTP/2 tells apart what HTTP/1.1 cannot: a request that nobody has looked at, because the server is leaving or has enough to
//! do, may be sent again whatever it asks for.

use std::error::Error;

/// What the end of a request without an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// It was not processed and will not be: refused, or beyond the last one that a GOAWAY names.
    Untouched,
    /// The same, and the connection was ended for what somebody had sent on it, perhaps this.
    Thrown,
    /// It was given up by whoever had it.
    Reset,
    /// The connection ended, or it is not HTTP/2's.
    Nothing,
}

pub(super) fn said(error: &hyper::Error) -> Said {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return of(error);
        }
        cause = error.source();
    }
    Said::Nothing
}

fn of(error: &h2::Error) -> Said {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    match (error.is_remote(), error.is_go_away() || refused) {
        // The library ends those streams by a GOAWAY that it does not name; the others end with the connection.
        (true, true) if refused || error.reason() == Some(h2::Reason::NO_ERROR) => Said::Untouched,
        (true, true) => Said::Thrown,
        (true, false) => Said::Reset,
        (false, _) => Said::Nothing,
    }
}
