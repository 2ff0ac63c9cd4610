//! What is too large about a head that hyper calls too large.
//!
//! hyper answers 431 to all of it: fields beyond the limit, a target that alone is, and a `Content-Length` that it cannot
//! count to. `io` keeps that answer back, and `connection` gives the one that is told here from what hyper left unread. Only
//! when hyper has refused a head; no other request comes here.

use crate::metrics::Rejection;
use http::StatusCode;

/// The longest target that `http::Uri` takes, in bytes.
const LONGEST_TARGET: usize = 65_534;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TooLarge {
    /// The target alone is beyond what a head may have.
    Target,
    /// All fields together, or their number.
    Fields,
    /// `Content-Length`: hyper has taken the head off its buffer before it looked.
    Length,
}

impl TooLarge {
    /// `unread`: what hyper has read and not taken. `most` and `fields`: the bytes and the fields that a head may have.
    pub(super) fn of(unread: &[u8], most: usize, fields: usize) -> TooLarge {
        // Empty lines before a request are skipped (RFC 9112 2.2).
        let begin = unread.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
        let head = begin.and_then(|at| unread.get(at..)).unwrap_or_default();
        let mut lines = head.split_inclusive(|byte| *byte == b'\n');
        let first = lines.next().unwrap_or_default();
        let target = first.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        // hyper gives up as soon as the limit is reached: what it has read may end within the target.
        let is_cut = !first.ends_with(b"\n") && first.len() >= most;
        if target.len() > most.min(LONGEST_TARGET) || is_cut {
            return TooLarge::Target;
        }
        let lines = lines.take_while(|line| !matches!(line, [b'\n'] | [b'\r', b'\n']));
        let (size, count) = lines.fold((first.len(), 0), |(size, count), line| {
            (size + line.len(), count + 1)
        });
        // The empty line belongs to the head.
        if size + 2 > most || count > fields {
            TooLarge::Fields
        } else {
            TooLarge::Length
        }
    }

    pub(super) const fn status(self) -> StatusCode {
        match self {
            TooLarge::Target => StatusCode::URI_TOO_LONG,
            TooLarge::Fields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            TooLarge::Length => StatusCode::BAD_REQUEST,
        }
    }

    pub(super) const fn reason(self) -> Rejection {
        match self {
            TooLarge::Target | TooLarge::Fields => Rejection::HeaderLimit,
            TooLarge::Length => Rejection::Framing,
        }
    }

    /// The whole answer.
    pub(super) fn answer(self) -> String {
        format!(
            "HTTP/1.1 {}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            self.status()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_head_tells_what_was_too_large() {
        let told = |unread: &str| TooLarge::of(unread.as_bytes(), 100, 3);
        let long = "a".repeat(101);
        for (unread, expected) in [
            (
                format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n"),
                TooLarge::Target,
            ),
            (format!("\r\nGET /{long}"), TooLarge::Target),
            (
                format!("GET / HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"),
                TooLarge::Fields,
            ),
            (format!("GET / HTTP/1.1\nhost: a\nx: {long}"), TooLarge::Fields),
            (
                "GET / HTTP/1.1\r\na: 1\r\nb: 1\r\nc: 1\r\nd: 1\r\n\r\n".to_owned(),
                TooLarge::Fields,
            ),
            (format!("GET /{}", "a".repeat(95)), TooLarge::Target),
            // The head is gone; what follows is a body, or the next request, or nothing.
            (String::new(), TooLarge::Length),
            ("hello".to_owned(), TooLarge::Length),
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), TooLarge::Length),
        ] {
            assert_eq!(told(&unread), expected, "{unread}");
        }
        // Exactly as long as it may be, and one byte more.
        let head = |more: usize| format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(77 + more));
        assert_eq!((head(0).len(), told(&head(0))), (100, TooLarge::Length));
        assert_eq!(told(&head(1)), TooLarge::Fields);
        let target = "a".repeat(LONGEST_TARGET);
        let unread = format!("GET /{target} HTTP/1.1\r\n\r\n");
        assert_eq!(TooLarge::of(unread.as_bytes(), 1 << 20, 3), TooLarge::Target);
    }
}
