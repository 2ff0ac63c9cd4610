//! Authority, target and framing: what is let through means the same to every reader.

use super::head::{self, Passed, all};
use crate::{
    config::Mode,
    proxy::{headers, headers::Peer},
    route::{HostMatch, RequestView, RouteMatch, Router, Rule},
};
use http::{HeaderValue, Method, Request, Uri, Version, uri::Authority};

/// The input is a request head. Whatever the door accepts has one host, one framing and one path.
pub fn host(input: &[u8]) {
    let Some(before) = head::read(input) else { return };
    let peer = Peer::new(HeaderValue::from_static("192.0.2.7"), Mode::Edge, false, false);
    let Some(passed) = head::pass(before, &peer) else {
        return;
    };
    let nameless = passed.authority.is_empty() && passed.before.version == Version::HTTP_10;
    if !nameless {
        one_authority(&passed);
    }
    one_framing(&passed);
    one_path(&passed);
    again(&passed, &peer);
}

/// Host and port are what the `http` crate reads too, and what both protocols tell the version.
fn one_authority(passed: &Passed) {
    let Passed { authority, host, .. } = passed;
    let strange = |b: u8| !b.is_ascii_graphic() || b"@/\\?#,;\"<>{}|^`".contains(&b);
    assert!(!authority.bytes().any(strange), "authority `{authority}`");
    assert!(!host.is_empty() && host.len() <= 255, "host `{host}`");
    let port = authority.strip_prefix(host.as_str()).unwrap_or("x");
    let number = port.strip_prefix(':').map(str::parse::<u16>);
    let fine = ["", ":"].contains(&port) || number.is_some_and(|port| port.is_ok_and(|port| port > 0));
    assert!(fine, "port `{port}` of `{authority}`");

    let other: Authority = authority
        .parse()
        .expect("another reader takes it for an authority");
    assert_eq!(other.host(), host);
    let ours = port.strip_prefix(':').and_then(|port| port.parse().ok());
    assert_eq!(other.port_u16(), ours, "port of `{authority}`");

    assert_eq!(
        all(&passed.headers, "host"),
        [authority.as_bytes()],
        "what the version gets"
    );
    let absolute = headers::absolute_form(&passed.before.uri, &passed.headers, false);
    assert_eq!(
        absolute.authority().map(Authority::as_str),
        Some(authority.as_str())
    );
    assert_eq!(route(passed, host), route(passed, &host.to_ascii_uppercase()));
}

/// Which of three services a host leads to.
fn route(passed: &Passed, host: &str) -> Option<usize> {
    let to = |host: Option<HostMatch>, target| Rule {
        matches: vec![RouteMatch {
            host,
            ..RouteMatch::default()
        }],
        target,
    };
    let router = Router::new([
        to(Some(HostMatch::Exact("shop.test".to_owned())), 0),
        to(Some(HostMatch::Suffix("shop.test".to_owned())), 1),
        to(None, 2),
    ]);
    let found = router.find(&RequestView {
        listener: 0,
        host,
        path: passed.before.uri.path(),
        query: passed.before.uri.query(),
        method: &passed.before.method,
        headers: &passed.before.headers,
    });
    found.copied()
}

/// Exactly one way to find the body's end, and it is the one that came in.
fn one_framing(passed: &Passed) {
    let length = all(&passed.before.headers, "content-length");
    let mut headers = passed.headers.clone();
    let framing = headers::Framing {
        chunked: passed.accepted.chunked,
        trailers: false,
    };
    headers::frame_for(&mut headers, framing, false, framing.chunked);
    let codings = all(&headers, "transfer-encoding");
    let lengths = all(&headers, "content-length");
    if passed.accepted.chunked {
        assert!(codings == [&b"chunked"[..]] && lengths.is_empty());
    } else {
        assert!(codings.is_empty() && lengths.len() == length.len() && lengths.len() <= 1);
    }
    let number = |value: &[u8]| std::str::from_utf8(value).ok()?.parse::<u64>().ok();
    for (said, meant) in lengths.iter().zip(&length) {
        assert!(said.len() == 1 || said.first() != Some(&b'0'), "leading zeros");
        assert!(number(said).is_some() && number(said) == number(meant));
    }
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "http2-settings",
        "expect",
    ] {
        assert!(!headers.contains_key(name), "{name} goes on");
    }
    headers::frame_for(&mut headers, framing, true, framing.chunked);
    assert!(!headers.contains_key("transfer-encoding"));
}

/// The path that was routed goes on byte for byte, and no reader resolves it to another one.
fn one_path(passed: &Passed) {
    let uri = &passed.before.uri;
    let target = headers::origin_form(uri).to_string();
    let path = target.split('?').next().unwrap_or_default();
    if path == "*" {
        assert_eq!(passed.before.method, Method::OPTIONS);
        return;
    }
    assert_eq!(path, uri.path());
    assert!(
        path.starts_with('/')
            && path
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'#' && b != b'\\')
    );
    let mut decoded = Vec::new();
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        let digits = [rest.clone().next(), rest.clone().nth(1)];
        decoded.push(match (byte, digits) {
            (b'%', [Some(high), Some(low)]) => {
                rest.nth(1);
                let text = [high, low].map(char::from).iter().collect::<String>();
                u8::from_str_radix(&text, 16).expect("an escape has two digits")
            }
            (b'%', _) => panic!("half an escape"),
            (plain, _) => plain,
        });
    }
    assert!(
        !decoded.iter().any(|b| b"\0\r\n".contains(b)),
        "a line end in `{path}`"
    );
    for segment in decoded.split(|b| b"/\\".contains(b)) {
        let name = segment.split(|b| *b == b';').next().unwrap_or_default();
        assert!(name != b"." && name != b"..", "`{path}` has a dot segment");
    }
}

/// What the version gets would be accepted again and mean the same.
fn again(passed: &Passed, peer: &Peer) {
    let mut next = Request::new(());
    *next.method_mut() = passed.before.method.clone();
    *next.uri_mut() = headers::origin_form(&passed.before.uri);
    let (mut next, ()) = next.into_parts();
    next.headers = passed.headers.clone();
    let path = |uri: &Uri| uri.path_and_query().map(ToString::to_string);
    let (target, method) = (path(&passed.before.uri), passed.before.method.clone());
    let second = head::pass(next, peer).expect("what goes out would come in");
    assert_eq!((path(&second.before.uri), second.before.method), (target, method));
    if !passed.authority.is_empty() {
        assert_eq!(
            (&second.host, &second.authority),
            (&passed.host, &passed.authority)
        );
    }
}
