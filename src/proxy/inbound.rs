//! Is this request safe to route and to forward? The checklist that hyper leaves to us, in one place.
//!
//! hyper refuses broken syntax; it does not refuse requests that two readers may understand differently. Every line here
//! is a way in which a request has been smuggled or routed around somewhere; whatever is ambiguous is refused, nothing is
//! repaired. Sections are those of RFC 9110 and 9112.

use super::seen::Seen;
use crate::metrics::Rejection;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header, request::Parts};

/// Why a request is refused at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) reason: Rejection,
    pub(super) detail: &'static str,
}

const fn bad(reason: Rejection, detail: &'static str) -> Refusal {
    Refusal {
        status: StatusCode::BAD_REQUEST,
        reason,
        detail,
    }
}

/// What is known of a request that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Accepted {
    /// Where the host stands in the authority or Host field, without its port.
    host_end: usize,
    from_uri: bool,
    /// Whether a chunked body was announced.
    pub(super) chunked: bool,
}

impl Accepted {
    /// The host without its port, as it was written.
    pub(super) fn host<'a>(&self, uri: &'a Uri, seen: &'a Seen) -> &'a str {
        authority(self.from_uri, uri, seen)
            .get(..self.host_end)
            .unwrap_or_default()
    }

    /// Host and port as they were written.
    pub(super) fn authority<'a>(&self, uri: &'a Uri, seen: &'a Seen) -> &'a str {
        authority(self.from_uri, uri, seen)
    }

    /// Whether the target named the host (absolute form, HTTP/2) and the Host field must follow it.
    pub(super) const fn named_by_target(&self) -> bool {
        self.from_uri
    }
}

fn authority<'a>(from_uri: bool, uri: &'a Uri, seen: &'a Seen) -> &'a str {
    if from_uri {
        uri.authority()
            .map(http::uri::Authority::as_str)
            .unwrap_or_default()
    } else {
        seen.host
            .as_ref()
            .and_then(|host| host.to_str().ok())
            .unwrap_or_default()
    }
}

/// No more fields than the listener allows. hyper counts those of HTTP/1.1 only.
pub(super) fn few_enough(headers: &HeaderMap, most: u32) -> Result<(), Refusal> {
    if headers.len() <= usize::try_from(most).unwrap_or(usize::MAX) {
        return Ok(());
    }
    Err(Refusal {
        status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        reason: Rejection::HeaderLimit,
        detail: "more header fields than the limit",
    })
}

/// Checks a request head against the whole list.
pub(super) fn accept(parts: &Parts, seen: &Seen) -> Result<Accepted, Refusal> {
    method(&parts.method)?;
    target(parts)?;
    let chunked = framing(parts, seen)?;
    if seen.expectations > 0 {
        expectation(&parts.headers)?;
    }
    if parts.version == Version::HTTP_2 {
        whole_path(&parts.uri)?;
        values(&parts.headers)?;
    }
    let (from_uri, host_end) = host(parts, seen)?;
    Ok(Accepted {
        host_end,
        from_uri,
        chunked,
    })
}

/// CONNECT would make a tunnel past every rule; TRACE reflects credentials (9110 9.3.6, 9.3.8).
fn method(method: &Method) -> Result<(), Refusal> {
    if *method == Method::CONNECT || *method == Method::TRACE {
        return Err(Refusal {
            status: StatusCode::METHOD_NOT_ALLOWED,
            reason: Rejection::Method,
            detail: "CONNECT and TRACE are not served here",
        });
    }
    Ok(())
}

/// Origin form, absolute form with http(s), or `*` for OPTIONS; nothing else (9112 3.2).
fn target(parts: &Parts) -> Result<(), Refusal> {
    let wrong = |detail| Err(bad(Rejection::Target, detail));
    let path = parts.uri.path();
    if path == "*" {
        return if parts.method == Method::OPTIONS {
            Ok(())
        } else {
            wrong("`*` is a target for OPTIONS only")
        };
    }
    if !path.starts_with('/') {
        // OPTIONS in absolute form without a path is `*` in disguise; hyper gives it an empty path.
        return wrong("the target does not start with `/`");
    }
    match parts.uri.scheme_str() {
        None | Some("http" | "https") => {}
        Some(_) => return wrong("the target's scheme is neither http nor https"),
    }
    // Bytes that some readers cut at or decode differently. `http::Uri` has refused controls and spaces.
    if path.bytes().any(|b| matches!(b, b'\\' | b'#') || b >= 0x80) {
        return wrong("the path has a byte that must be percent-encoded");
    }
    match ambiguous(path.as_bytes()) {
        Some(detail) => wrong(detail),
        None => Ok(()),
    }
}

/// Whether some reader behind us may take the path for another one than the router did. What every reader leaves as it is
/// (`//`, `%2F` inside a segment, `;x=1`) passes and goes on byte for byte.
fn ambiguous(path: &[u8]) -> Option<&'static str> {
    // Nearly every path has neither an escape nor a segment that begins with a dot.
    let suspect = |pair: &[u8]| pair.first() == Some(&b'%') || pair == b"/.";
    if !path.windows(2).any(suspect) && path.last() != Some(&b'%') {
        return None;
    }
    let mut segment = Segment::default();
    let mut rest = path;
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match (first, after) {
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                _ => return Some("the path has a `%` that is no escape"),
            },
            (b'%', _) => return Some("the path has a `%` that is no escape"),
            (byte, after) => (*byte, after),
        };
        rest = after;
        match byte {
            0 | b'\r' | b'\n' => return Some("the path has an encoded NUL or line end"),
            // Encoded or not: some readers decode before they split.
            b'/' | b'\\' if segment.is_dots() => return Some("the path has a dot segment"),
            b'/' | b'\\' => segment = Segment::default(),
            _ => segment.take(byte),
        }
    }
    segment.is_dots().then_some("the path has a dot segment")
}

const fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// What is known of a path's segment: its dots, up to parameters that some readers cut off (`..;x=1`).
#[derive(Default)]
struct Segment {
    dots: usize,
    other: bool,
    parameters: bool,
}

impl Segment {
    const fn take(&mut self, byte: u8) {
        match byte {
            b';' => self.parameters = true,
            b'.' if !self.parameters => self.dots += 1,
            _ if !self.parameters => self.other = true,
            _ => {}
        }
    }

    const fn is_dots(&self) -> bool {
        !self.other && (self.dots == 1 || self.dots == 2)
    }
}

/// `:path` begins with a slash (9113 8.3.1); `http::Uri` takes `?a` for `/?a`.
fn whole_path(uri: &Uri) -> Result<(), Refusal> {
    if uri
        .path_and_query()
        .is_some_and(|path| path.as_str().starts_with('?'))
    {
        return Err(bad(Rejection::Target, "the target does not start with `/`"));
    }
    Ok(())
}

/// A value of HTTP/2 has no space around it (9113 8.2.1); what removes it on one way and keeps it on another compares
/// differently.
fn values(headers: &HeaderMap) -> Result<(), Refusal> {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let padded = |value: &HeaderValue| blank(value.as_bytes().first()) || blank(value.as_bytes().last());
    if headers.values().any(padded) {
        return Err(bad(
            Rejection::Malformed,
            "a field's value begins or ends with a space",
        ));
    }
    Ok(())
}

/// One framing, understood by everybody in the same way (9112 6.1 to 6.3).
fn framing(parts: &Parts, seen: &Seen) -> Result<bool, Refusal> {
    let wrong = |detail| Err(bad(Rejection::Framing, detail));
    if seen.codings == 0 {
        return if seen.lengths == 0 {
            Ok(false)
        } else {
            content_length(&parts.headers, seen).map(|()| false)
        };
    }
    if parts.version != Version::HTTP_11 {
        return wrong("Transfer-Encoding is a field of HTTP/1.1 only");
    }
    if seen.codings > 1 {
        return wrong("more than one Transfer-Encoding field");
    }
    let coding = parts
        .headers
        .get(header::TRANSFER_ENCODING)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    if !coding.eq_ignore_ascii_case(b"chunked") {
        let only_unknown = !coding
            .to_ascii_lowercase()
            .windows(7)
            .any(|part| part == b"chunked");
        return Err(Refusal {
            status: if only_unknown {
                StatusCode::NOT_IMPLEMENTED
            } else {
                StatusCode::BAD_REQUEST
            },
            reason: Rejection::Framing,
            detail: "Transfer-Encoding must be exactly `chunked`",
        });
    }
    if seen.lengths > 0 {
        return wrong("both Transfer-Encoding and Content-Length");
    }
    Ok(true)
}

fn content_length(headers: &HeaderMap, seen: &Seen) -> Result<(), Refusal> {
    let value = headers
        .get(header::CONTENT_LENGTH)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    if seen.lengths > 1 || value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad(
            Rejection::Framing,
            "Content-Length must be one decimal number",
        ));
    }
    Ok(())
}

/// Only 100-continue is an expectation that exists (9110 10.1.1).
fn expectation(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut lines = headers.get_all(header::EXPECT).iter();
    let Some(first) = lines.next() else { return Ok(()) };
    if lines.next().is_some() || !first.as_bytes().eq_ignore_ascii_case(b"100-continue") {
        return Err(Refusal {
            status: StatusCode::EXPECTATION_FAILED,
            reason: Rejection::Expectation,
            detail: "the only expectation that can be met is 100-continue",
        });
    }
    Ok(())
}

/// Exactly one host, well-formed, and the same wherever it is named (9112 3.2, 9113 8.3.1).
fn host(parts: &Parts, seen: &Seen) -> Result<(bool, usize), Refusal> {
    let wrong = |detail| Err(bad(Rejection::Host, detail));
    if seen.hosts > 1 {
        return wrong("more than one Host field");
    }
    let field = seen.host.as_ref();
    if let Some(target) = parts.uri.authority() {
        let host_end = well_formed(target.as_str())
            .ok_or(bad(Rejection::Host, "the target's authority is malformed"))?;
        return match (parts.version, field) {
            (Version::HTTP_2, Some(field))
                if !field.as_bytes().eq_ignore_ascii_case(target.as_str().as_bytes()) =>
            {
                wrong("Host and :authority name different hosts")
            }
            (Version::HTTP_11, None) => wrong("Host is missing"),
            // In HTTP/1.1 an absolute target overrules Host, which is replaced on the way out (9112 3.2.2).
            _ => Ok((true, host_end)),
        };
    }
    let Some(field) = field else {
        return match parts.version {
            // HTTP/1.0 has no Host; such a request can only match routes that name none.
            Version::HTTP_10 => Ok((false, 0)),
            Version::HTTP_2 => wrong("neither :authority nor Host"),
            _ => wrong("Host is missing"),
        };
    };
    let text = field
        .to_str()
        .map_err(|_| bad(Rejection::Host, "Host is malformed"))?;
    let host_end = well_formed(text).ok_or(bad(Rejection::Host, "Host is malformed"))?;
    Ok((false, host_end))
}

/// Where the host ends in `host[:port]`, if that is what it is: a name, an IPv4 address or an IPv6 address in brackets.
fn well_formed(authority: &str) -> Option<usize> {
    let (end, rest) = if let Some(v6) = authority.strip_prefix('[') {
        let close = v6.find(']')?;
        v6.get(..close)?.parse::<std::net::Ipv6Addr>().ok()?;
        (close + 2, v6.get(close + 1..)?)
    } else {
        let end = authority.find(':').unwrap_or(authority.len());
        (end, authority.get(end..)?)
    };
    let host = authority.get(..end)?;
    let host_holds = !host.is_empty() && host.len() <= 255 && (host.starts_with('[') || is_name(host));
    let port_holds = match rest.strip_prefix(':') {
        None => rest.is_empty(),
        // An empty port is allowed by the grammar and means the default one.
        Some(port) => {
            port.is_empty()
                || (port.bytes().all(|b| b.is_ascii_digit())
                    && port.parse::<u16>().is_ok_and(|port| port > 0))
        }
    };
    (host_holds && port_holds).then_some(end)
}

/// Labels with dots between them; the last may have one behind it.
fn is_name(host: &str) -> bool {
    let mut before = b'.';
    host.bytes().all(|byte| {
        let dots = byte == b'.' && before == b'.';
        before = byte;
        !dots && (byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn parts(method: &str, uri: &str, version: Version, fields: &[(&str, &str)]) -> Parts {
        let mut builder = Request::builder().method(method).uri(uri).version(version);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn refused(method: &str, uri: &str, fields: &[(&str, &str)]) -> Option<u16> {
        check(&parts(method, uri, Version::HTTP_11, fields))
            .err()
            .map(|refusal| refusal.status.as_u16())
    }

    fn check(parts: &Parts) -> Result<Accepted, Refusal> {
        accept(parts, &Seen::scan(&parts.headers))
    }

    const HOST: (&str, &str) = ("host", "shop.test");

    #[test]
    fn an_ordinary_request_passes_and_tells_its_host() {
        for (uri, host, expected) in [
            ("/a?b=c", "shop.test:8080", "shop.test"),
            ("/", "[::1]:80", "[::1]"),
            ("/", "SHOP.test", "SHOP.test"),
            ("http://shop.test/x", "shop.test", "shop.test"),
        ] {
            let parts = parts("GET", uri, Version::HTTP_11, &[("host", host)]);
            let accepted = check(&parts).unwrap();
            assert_eq!(accepted.host(&parts.uri, &Seen::scan(&parts.headers)), expected);
        }
    }

    #[test]
    fn exactly_one_well_formed_host_is_needed() {
        assert_eq!(refused("GET", "/", &[]), Some(400));
        assert_eq!(refused("GET", "/", &[HOST, HOST]), Some(400));
        for host in [
            "",
            "a b",
            "a/b",
            "user@shop.test",
            "a,b",
            "shop.test:99999",
            "shop.test:80x",
            "shop.test:0",
            "[::1",
            "[x]",
            "..",
            "a..b",
            "a\u{e9}",
        ] {
            assert_eq!(refused("GET", "/", &[("host", host)]), Some(400), "{host}");
        }
    }

    #[test]
    fn an_absolute_target_overrules_host() {
        assert_eq!(refused("GET", "http://shop.test/", &[]), Some(400));
        let parts = parts(
            "GET",
            "http://shop.test/",
            Version::HTTP_11,
            &[("host", "evil.test")],
        );
        assert_eq!(
            check(&parts)
                .unwrap()
                .host(&parts.uri, &Seen::scan(&parts.headers)),
            "shop.test"
        );
        assert_eq!(refused("GET", "ftp://shop.test/", &[HOST]), Some(400));
        assert_eq!(
            refused("GET", "http://u@shop.test/", &[("host", "u@shop.test")]),
            Some(400)
        );
    }

    #[test]
    fn transfer_encoding_is_exactly_chunked_and_stands_alone() {
        assert_eq!(
            refused("POST", "/", &[HOST, ("transfer-encoding", "chunked")]),
            None
        );
        assert_eq!(
            refused("POST", "/", &[HOST, ("transfer-encoding", "Chunked")]),
            None
        );
        for value in [
            ",chunked",
            "chunked, chunked",
            "gzip, chunked",
            "chunked;x=1",
            "xchunked",
        ] {
            assert_eq!(
                refused("POST", "/", &[HOST, ("transfer-encoding", value)]),
                Some(400),
                "{value}"
            );
        }
        assert_eq!(
            refused("POST", "/", &[HOST, ("transfer-encoding", "gzip")]),
            Some(501)
        );
        let twice = [
            HOST,
            ("transfer-encoding", "identity"),
            ("transfer-encoding", "chunked"),
        ];
        assert_eq!(refused("POST", "/", &twice), Some(400));
        let both = [HOST, ("transfer-encoding", "chunked"), ("content-length", "4")];
        assert_eq!(refused("POST", "/", &both), Some(400));
        let old = parts(
            "POST",
            "/",
            Version::HTTP_10,
            &[HOST, ("transfer-encoding", "chunked")],
        );
        assert_eq!(check(&old).unwrap_err().status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn content_length_is_one_decimal_number() {
        assert_eq!(refused("POST", "/", &[HOST, ("content-length", "5")]), None);
        for value in ["+5", "5, 5", "", "0x5", "99999999999999999999"] {
            assert_eq!(
                refused("POST", "/", &[HOST, ("content-length", value)]),
                Some(400),
                "{value}"
            );
        }
    }

    #[test]
    fn tunnels_reflections_and_unknown_expectations_are_refused() {
        assert_eq!(refused("CONNECT", "shop.test:443", &[HOST]), Some(405));
        assert_eq!(refused("TRACE", "/", &[HOST]), Some(405));
        assert_eq!(refused("GET", "*", &[HOST]), Some(400));
        assert_eq!(refused("OPTIONS", "*", &[HOST]), None);
        assert_eq!(refused("POST", "/", &[HOST, ("expect", "200-ok")]), Some(417));
        assert_eq!(refused("POST", "/", &[HOST, ("expect", "100-Continue")]), None);
    }

    #[test]
    fn a_path_that_two_readers_may_resolve_differently_is_refused() {
        for path in [
            "/public/../admin",
            "/public/..",
            "/.",
            "/./x",
            "/a/%2e%2E/b",
            "/a/.%2e",
            "/a%2f..%2fb",
            "/a%2F%2e%2e",
            "/a/..%5cb",
            "/a%5c..",
            "/a/..;/b",
            "/a/..;x=1/b",
            "/a/%2e;",
            "/a%00b",
            "/a%0d%0aX:%20y",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%2",
        ] {
            assert_eq!(refused("GET", path, &[HOST]), Some(400), "{path}");
        }
        for path in [
            "/",
            "/a//b",
            "//a",
            "/projects/group%2Fname",
            "/a%20b",
            "/%61dmin",
            "/.well-known/acme-challenge/x",
            "/a/...",
            "/a/..b",
            "/a/b..",
            "/a;x=1/b",
            "/a/;..",
            "/caf%C3%A9",
            "/a%5Cb",
            "/x?next=/../..%00",
        ] {
            assert_eq!(refused("GET", path, &[HOST]), None, "{path}");
        }
    }

    #[test]
    fn a_value_of_http2_has_no_space_around_it() {
        for value in [" a", "a ", "\ta", "a\t"] {
            let fields = [HOST, ("x-a", value)];
            assert!(check(&parts("GET", "http://shop.test/", Version::HTTP_2, &fields)).is_err());
            assert!(check(&parts("GET", "/", Version::HTTP_11, &fields)).is_ok());
        }
    }

    #[test]
    fn a_path_of_http2_is_whole() {
        assert!(check(&parts("GET", "http://shop.test?a", Version::HTTP_2, &[])).is_err());
        assert!(check(&parts("GET", "http://shop.test/?a", Version::HTTP_2, &[])).is_ok());
        // In HTTP/1.1 that is an absolute target like others (9112 3.2.2).
        assert!(check(&parts("GET", "http://shop.test?a", Version::HTTP_11, &[HOST])).is_ok());
    }

    #[test]
    fn http2_needs_an_authority_that_agrees_with_host() {
        let h2 =
            |uri: &str, fields: &[(&str, &str)]| check(&parts("GET", uri, Version::HTTP_2, fields)).is_ok();
        assert!(h2("http://shop.test/", &[]));
        assert!(h2("http://shop.test/", &[HOST]));
        assert!(!h2("http://shop.test/", &[("host", "evil.test")]));
        assert!(!h2("/", &[]));
    }
}
