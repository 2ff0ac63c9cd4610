//! What happens to header fields between the client and the version, both ways.
//!
//! On the way in: one pass finds what must go (hop-by-hop fields and whatever `Connection` names) and what must be known;
//! only then are our own fields added, so that nothing a client nominates can remove them. RFC 9110 section 7.6.

use super::{
    grpc,
    inbound::Accepted,
    seen::{HOP_BY_HOP, Seen, nominates},
};
use crate::config::Mode;
use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header, uri::PathAndQuery};
use std::net::IpAddr;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Fields that `Connection` may name without effect, besides [`VOUCHED_FOR`]: they frame or route the message, or say who asks
/// (9110 7.6.1 lets a recipient refuse to treat end-to-end fields as connection options; removing these would be an attack).
const PROTECTED: &[&str] = &[
    "host",
    "content-type",
    "cookie",
    "authorization",
    "forwarded",
    "via",
    "traceparent",
    "tracestate",
    "set-cookie",
];

/// Fields that must not arrive after the body: they would frame, route or authenticate what has already been handled.
static FORBIDDEN_TRAILERS: [HeaderName; 27] = [
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::HOST,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::CONTENT_RANGE,
    header::TRAILER,
    header::TE,
    header::CONNECTION,
    header::UPGRADE,
    header::AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
    header::CACHE_CONTROL,
    header::EXPECT,
    header::MAX_FORWARDS,
    header::PRAGMA,
    header::RANGE,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::WWW_AUTHENTICATE,
    header::FORWARDED,
    X_FORWARDED_FOR,
    X_FORWARDED_PROTO,
    X_FORWARDED_HOST,
    KEEP_ALIVE,
    PROXY_CONNECTION,
];

/// What is the same for every request of a connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// The peer's address as a field value.
    pub(super) address: HeaderValue,
    /// Whether the peer's forwarded fields are believed and appended to.
    pub(super) trusted: bool,
    /// `http` or `https`.
    pub(super) proto: HeaderValue,
    /// What `Forwarded` says of it (RFC 7239 4), without the host; none: it is not said.
    element: Option<String>,
}

impl Peer {
    /// A listener in sidecar mode appends for everybody, one at the edge only for its trusted proxies.
    pub(super) fn new(address: HeaderValue, mode: Mode, trusted_proxy: bool, secure: bool) -> Peer {
        Peer {
            address,
            trusted: trusted_proxy || mode == Mode::Sidecar,
            proto: HeaderValue::from_static(if secure { "https" } else { "http" }),
            element: None,
        }
    }

    /// Has `Forwarded` say it, too: IPv6 in brackets and quotes (RFC 7239 6).
    pub(super) fn say_forwarded(&mut self, ip: IpAddr) {
        let proto = if self.proto == "https" { "https" } else { "http" };
        self.element = Some(match ip {
            IpAddr::V4(ip) => format!("for={ip};proto={proto}"),
            IpAddr::V6(ip) => format!("for=\"[{ip}]\";proto={proto}"),
        });
    }

    /// Its element of `Forwarded`, with the host that was asked for, if it is said.
    fn forwarded(&self, host: Option<&HeaderValue>) -> Option<HeaderValue> {
        let element = self.element.as_deref()?;
        // A host that was accepted has nothing in it that would end the quotes.
        let host = host.and_then(|host| host.to_str().ok());
        let text = host.map(|host| format!("{element};host=\"{host}\""));
        HeaderValue::from_str(text.as_deref().unwrap_or(element)).ok()
    }
}

/// `http` or `https`: how the client came, as a peer that is believed tells it, otherwise as it came to us.
pub(super) fn scheme(headers: &HeaderMap, peer: &Peer) -> &'static str {
    let told = headers.get(X_FORWARDED_PROTO).filter(|_| peer.trusted);
    // The first of a list is the client's own.
    let told = told.and_then(|value| value.as_bytes().split(|b| *b == b',').next());
    let is = |scheme: &[u8], what: &str| scheme.trim_ascii().eq_ignore_ascii_case(what.as_bytes());
    match told.unwrap_or(peer.proto.as_bytes()) {
        scheme if is(scheme, "https") => "https",
        scheme if is(scheme, "http") => "http",
        _ if peer.proto == "https" => "https",
        _ => "http",
    }
}

/// Removes `Connection`, and what it names if it `nominates` anything.
fn remove_connection(headers: &mut HeaderMap, nominates: bool) {
    if nominates {
        remove_nominated(headers);
    }
    headers.remove(header::CONNECTION);
}

/// Removes what `Connection` names, except what it must not touch.
#[cold]
fn remove_nominated(headers: &mut HeaderMap) {
    let lines: Vec<HeaderValue> = headers.get_all(header::CONNECTION).iter().cloned().collect();
    for line in &lines {
        for name in line.as_bytes().split(|b| *b == b',') {
            let name = name.trim_ascii();
            let Ok(name) = HeaderName::from_bytes(name) else {
                continue;
            };
            if !PROTECTED.contains(&name.as_str()) && !VOUCHED_FOR.contains(&name.as_str()) {
                headers.remove(&name);
            }
        }
    }
}

/// What we say ourselves, or vouch for, in fields whose names have a dash.
const VOUCHED_FOR: &[&str] = &[
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-real-ip",
    "x-request-id",
    "content-length",
    "transfer-encoding",
];

/// Removes `X_Forwarded_For` and the like: CGI, WSGI and their kin hand fields on with underscores for dashes, and could not
/// tell it from ours (RFC 3875 4.1.18). Whoever sent it: a trusted proxy has no use for that spelling.
#[cold]
fn remove_lookalikes(headers: &mut HeaderMap) {
    let looks_alike = |name: &&HeaderName| {
        let name = name.as_str();
        name.contains('_') && VOUCHED_FOR.contains(&name.replace('_', "-").as_str())
    };
    let found: Vec<HeaderName> = headers.keys().filter(looks_alike).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// Turns the client's fields into those the version gets. `request_id` is used unless a trusted peer has sent one.
pub(super) fn to_version(
    headers: &mut HeaderMap,
    mut seen: Seen,
    inbound: Version,
    accepted: Accepted,
    uri: &http::Uri,
    peer: &Peer,
    request_id: impl FnOnce() -> HeaderValue,
) {
    if seen.connection {
        remove_connection(headers, seen.nominates);
    }
    for (present, name) in seen.hop.iter().zip(&HOP_BY_HOP) {
        if *present {
            headers.remove(name);
        }
    }
    if seen.lookalike {
        remove_lookalikes(headers);
    }
    if seen.expectations > 0 {
        headers.remove(header::EXPECT);
    }
    if seen.lengths > 0 {
        plain_length(headers);
    }
    if seen.te {
        headers.remove(header::TE);
        if seen.te_trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    if inbound == Version::HTTP_2 && seen.cookies > 1 {
        join_cookies(headers);
    }
    let host = if accepted.named_by_target() {
        let named = HeaderValue::from_str(accepted.authority(uri, &seen)).ok();
        if let Some(named) = &named {
            headers.insert(header::HOST, named.clone());
        }
        named
    } else {
        seen.host.take()
    };
    if host.is_none() {
        // HTTP/1.0 may leave it out, what we speak may not.
        headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    }
    forwarded(headers, peer, host, &seen);
    if !(peer.trusted && has_plain_id(headers)) {
        headers.insert(X_REQUEST_ID, request_id());
    }
    via(headers, inbound, seen.via);
}

/// One `Content-Length` without leading zeros, which some read as octal.
fn plain_length(headers: &mut HeaderMap) {
    let value = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    if let Some(length) = value
        && length.len() > 1
        && length.starts_with('0')
        && let Ok(number) = length.parse::<u64>()
    {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(number));
    }
}

/// An id worth believing: one, short and printable.
fn has_plain_id(headers: &HeaderMap) -> bool {
    let plain = |value: &HeaderValue| {
        !value.is_empty() && value.len() <= 128 && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    let mut ids = headers.get_all(&X_REQUEST_ID).iter();
    ids.next().is_some_and(plain) && ids.next().is_none()
}

/// HTTP/2 may split a cookie into crumbs; HTTP/1.1 must not (9113 8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let mut joined = BytesMut::new();
    for crumb in headers.get_all(header::COOKIE) {
        if !joined.is_empty() {
            joined.put_slice(b"; ");
        }
        joined.put_slice(crumb.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_maybe_shared(joined.freeze()) {
        headers.insert(header::COOKIE, value);
    }
}

fn forwarded(headers: &mut HeaderMap, peer: &Peer, host: Option<HeaderValue>, seen: &Seen) {
    let element = peer.forwarded(host.as_ref());
    if peer.trusted {
        if let Some(element) = element {
            append_list(headers, &header::FORWARDED, &element);
        }
        append_list(headers, &X_FORWARDED_FOR, &peer.address);
        if !headers.contains_key(X_FORWARDED_PROTO) {
            headers.insert(X_FORWARDED_PROTO, peer.proto.clone());
        }
        if let Some(host) = host
            && !headers.contains_key(X_FORWARDED_HOST)
        {
            headers.insert(X_FORWARDED_HOST, host);
        }
        return;
    }
    // What an untrusted client says about itself is worth nothing, and worse when somebody behind us believes it.
    if let Some(element) = element {
        headers.insert(header::FORWARDED, element);
    } else if seen.forwarded {
        headers.remove(header::FORWARDED);
    }
    headers.insert(X_FORWARDED_FOR, peer.address.clone());
    headers.insert(X_FORWARDED_PROTO, peer.proto.clone());
    match host {
        Some(host) => headers.insert(X_FORWARDED_HOST, host),
        None => headers.remove(X_FORWARDED_HOST),
    };
    if seen.forwarded_port {
        headers.remove(X_FORWARDED_PORT);
    }
    if seen.real_ip {
        headers.remove(X_REAL_IP);
    }
}

/// Appends to a comma-separated field, several lines becoming one in their order.
fn append_list(headers: &mut HeaderMap, name: &HeaderName, value: &HeaderValue) {
    if !headers.contains_key(name) {
        headers.insert(name, value.clone());
        return;
    }
    let mut list = BytesMut::new();
    for line in headers.get_all(name) {
        list.put_slice(line.as_bytes());
        list.put_slice(b", ");
    }
    list.put_slice(value.as_bytes());
    if let Ok(value) = HeaderValue::from_maybe_shared(list.freeze()) {
        headers.insert(name, value);
    }
}

fn via(headers: &mut HeaderMap, inbound: Version, passed_others: bool) {
    let ours = HeaderValue::from_static(match inbound {
        Version::HTTP_2 => "2.0 serin",
        Version::HTTP_10 => "1.0 serin",
        _ => "1.1 serin",
    });
    if passed_others {
        append_list(headers, &header::VIA, &ours);
    } else {
        headers.insert(header::VIA, ours);
    }
}

/// What a request's fields say about its framing, known since they were scanned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Framing {
    /// `Transfer-Encoding: chunked` came with it.
    pub(super) chunked: bool,
    /// `TE: trailers` goes on with it.
    pub(super) trailers: bool,
}

/// Sets what depends on the version's protocol: the framing field and the target's form.
pub(super) fn frame_for(headers: &mut HeaderMap, framing: Framing, http2: bool, unknown_length: bool) {
    if http2 || !unknown_length {
        if framing.chunked {
            headers.remove(header::TRANSFER_ENCODING);
        }
    } else {
        // hyper would drop an unknown-length body of a GET or HEAD unless told explicitly.
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if !http2 && framing.trailers {
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
}

/// Asks an HTTP/1.1 version for another protocol. What was asked for on another attempt is forgotten.
pub(super) fn ask_upgrade(headers: &mut HeaderMap, http2: bool, protocols: &HeaderValue) {
    if http2 {
        headers.remove(header::UPGRADE);
        headers.remove(header::CONNECTION);
    } else {
        headers.remove(header::TE);
        headers.insert(header::UPGRADE, protocols.clone());
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// What a 101 says to the client.
pub(super) fn switched(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::UPGRADE, protocol);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
}

/// Names the trailers of a gRPC answer that came by HTTP/2: over HTTP/1.1 only those that are announced are sent.
pub(super) fn announce_grpc(headers: &mut HeaderMap) {
    if !headers.contains_key(header::TRAILER) && headers.get(header::CONTENT_TYPE).is_some_and(grpc::is_grpc)
    {
        let names = HeaderValue::from_static("grpc-status, grpc-message, grpc-status-details-bin");
        headers.insert(header::TRAILER, names);
    }
}

/// The target for an HTTP/1.1 version: the path alone, or `*`.
pub(super) fn origin_form(uri: &http::Uri) -> http::Uri {
    if uri.scheme().is_none() {
        return uri.clone();
    }
    http::Uri::from(path_of(uri))
}

/// What an absolute target names behind its authority. Of `http://host#fragment` the `http` crate keeps nothing at all, and
/// would write a request line without a target; of `http://host?query` it keeps no path (RFC 9112 3.2.1, 9113 8.3.1).
fn path_of(uri: &http::Uri) -> PathAndQuery {
    match uri.path_and_query() {
        Some(path) if path.as_str().starts_with('?') => {
            PathAndQuery::try_from(format!("/{}", path.as_str())).unwrap_or_else(|_| path.clone())
        }
        Some(path) if path.as_str() != "/" => path.clone(),
        Some(_) | None => PathAndQuery::from_static("/"),
    }
}

/// The target for an HTTP/2 version: scheme, authority and path (9113 8.3.1).
pub(super) fn absolute_form(uri: &http::Uri, headers: &HeaderMap, secure: bool) -> http::Uri {
    let host = headers
        .get(header::HOST)
        .map_or(&b"localhost"[..], HeaderValue::as_bytes);
    let built = http::Uri::builder()
        .scheme(if secure { "https" } else { "http" })
        .authority(host)
        .path_and_query(path_of(uri))
        .build();
    // Host was checked at the door; were it not an authority, the version would refuse the request.
    built.unwrap_or_else(|_| uri.clone())
}

/// Removes from a response what concerns only the connection to the version.
pub(super) fn to_client(headers: &mut HeaderMap, status: StatusCode, inbound: Version) {
    let (mut connection, mut nominated, mut framed, mut other) = (false, false, false, false);
    let (mut lengths, mut plain) = (0, true);
    for (name, value) in &*headers {
        match name.as_str().len() {
            2 | 7 | 16 | 18 => other = true,
            14 if *name == header::CONTENT_LENGTH => {
                lengths += 1;
                plain &= is_plain_number(value);
            }
            10 if *name == header::CONNECTION => {
                connection = true;
                nominated |= nominates(value);
            }
            10 if *name == KEEP_ALIVE => other = true,
            17 if *name == header::TRANSFER_ENCODING => framed = true,
            _ => {}
        }
    }
    if connection {
        remove_connection(headers, nominated);
    }
    if other {
        for name in [&header::TE, &header::UPGRADE, &KEEP_ALIVE, &PROXY_CONNECTION] {
            headers.remove(name);
        }
        if inbound != Version::HTTP_11 {
            headers.remove(header::TRAILER);
        }
    }
    if framed {
        headers.remove(header::TRANSFER_ENCODING);
        headers.remove(header::CONTENT_LENGTH);
    }
    if status == StatusCode::NO_CONTENT || status.is_informational() {
        headers.remove(header::CONTENT_LENGTH);
    }
    if lengths > 1 || !plain {
        agree_on_length(headers);
    }
}

fn is_plain_number(value: &HeaderValue) -> bool {
    let digits = value.as_bytes();
    matches!(digits.len(), 1..=19)
        && digits.iter().all(u8::is_ascii_digit)
        && (digits[0] != b'0' || digits.len() == 1)
}

/// Makes one decimal of a `Content-Length` that is written in another way, if that is possible: as it came nobody may pass it
/// on (RFC 9110 section 8.6). Otherwise it goes; of answers that have a body hyper has refused such ones, what is left are
/// those to HEAD, and 304.
#[cold]
fn agree_on_length(headers: &mut HeaderMap) {
    let mut agreed: Option<u64> = None;
    let lines = headers.get_all(header::CONTENT_LENGTH).iter();
    let contradicts = lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .any(|part| {
            let digits = part.trim_ascii();
            let number = std::str::from_utf8(digits)
                .ok()
                .and_then(|text| text.parse().ok());
            let number = number.filter(|_| digits.iter().all(u8::is_ascii_digit));
            number.is_none_or(|number| *agreed.get_or_insert(number) != number)
        });
    match agreed.filter(|_| !contradicts) {
        Some(length) => headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length)),
        None => headers.remove(header::CONTENT_LENGTH),
    };
}

/// Drops trailer fields that must not arrive after the body.
pub(super) fn clean_trailers(trailers: &mut HeaderMap) {
    for name in &FORBIDDEN_TRAILERS {
        trailers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::inbound;
    use http::Request;

    fn peer(mode: Mode) -> Peer {
        Peer::new(HeaderValue::from_static("192.0.2.7"), mode, false, false)
    }

    fn sent(mode: Mode, version: Version, uri: &str, fields: &[(&str, &str)]) -> HeaderMap {
        let mut builder = Request::builder().uri(uri).version(version);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        let mut parts = builder.body(()).unwrap().into_parts().0;
        let seen = Seen::scan(&parts.headers);
        let accepted = inbound::accept(&parts, &seen).unwrap();
        let id = || HeaderValue::from_static("id-1");
        to_version(
            &mut parts.headers,
            seen,
            version,
            accepted,
            &parts.uri,
            &peer(mode),
            id,
        );
        parts.headers
    }

    fn all(headers: &HeaderMap, name: &str) -> Vec<String> {
        headers
            .get_all(name)
            .iter()
            .map(|v| v.to_str().unwrap().to_owned())
            .collect()
    }

    const HOST: (&str, &str) = ("host", "shop.test");

    #[test]
    fn the_edge_overwrites_what_a_client_says_about_itself() {
        let headers = sent(
            Mode::Edge,
            Version::HTTP_11,
            "/",
            &[
                HOST,
                ("x-forwarded-for", "9.9.9.9"),
                ("x-forwarded-proto", "https"),
                ("forwarded", "for=9.9.9.9"),
                ("x-real-ip", "9.9.9.9"),
                ("x-request-id", "mine"),
            ],
        );
        assert_eq!(all(&headers, "x-forwarded-for"), ["192.0.2.7"]);
        assert_eq!(all(&headers, "x-forwarded-proto"), ["http"]);
        assert_eq!(all(&headers, "x-forwarded-host"), ["shop.test"]);
        assert_eq!(all(&headers, "x-request-id"), ["id-1"]);
        assert_eq!(all(&headers, "via"), ["1.1 serin"]);
        assert!(!headers.contains_key("forwarded") && !headers.contains_key("x-real-ip"));
    }

    #[test]
    fn a_sidecar_appends_and_believes() {
        let headers = sent(
            Mode::Sidecar,
            Version::HTTP_11,
            "/",
            &[
                HOST,
                ("x-forwarded-for", "9.9.9.9"),
                ("x-forwarded-for", "8.8.8.8"),
                ("x-forwarded-proto", "https"),
                ("x-request-id", "mine"),
                ("via", "1.1 other"),
            ],
        );
        assert_eq!(all(&headers, "x-forwarded-for"), ["9.9.9.9, 8.8.8.8, 192.0.2.7"]);
        assert_eq!(all(&headers, "x-forwarded-proto"), ["https"]);
        assert_eq!(all(&headers, "x-request-id"), ["mine"]);
        assert_eq!(all(&headers, "via"), ["1.1 other, 1.1 serin"]);
    }

    #[test]
    fn an_element_of_forwarded_quotes_what_is_no_token() {
        let said = |ip: &str, host: Option<&'static str>| {
            let mut peer = peer(Mode::Edge);
            peer.say_forwarded(ip.parse().unwrap());
            let host = host.map(HeaderValue::from_static);
            peer.forwarded(host.as_ref())
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(
            said("192.0.2.7", Some("shop.test:8080")),
            "for=192.0.2.7;proto=http;host=\"shop.test:8080\""
        );
        assert_eq!(said("2001:db8::7", None), "for=\"[2001:db8::7]\";proto=http");
    }

    #[test]
    fn hop_by_hop_fields_go_and_nominating_ours_does_nothing() {
        let headers = sent(
            Mode::Edge,
            Version::HTTP_11,
            "/",
            &[
                HOST,
                ("connection", "close, X-Forwarded-For, x-mine"),
                ("connection", "Host, content-length"),
                ("x-mine", "1"),
                ("keep-alive", "5"),
                ("proxy-connection", "keep-alive"),
                ("upgrade", "h2c"),
                ("http2-settings", "AA"),
                ("te", "gzip, Trailers"),
                ("content-length", "0"),
                ("expect", "100-continue"),
                ("proxy-authorization", "x"),
            ],
        );
        for gone in [
            "connection",
            "x-mine",
            "keep-alive",
            "proxy-connection",
            "upgrade",
            "http2-settings",
            "expect",
            "proxy-authorization",
        ] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
        assert_eq!(all(&headers, "host"), ["shop.test"]);
        assert_eq!(all(&headers, "content-length"), ["0"]);
        assert_eq!(all(&headers, "x-forwarded-for"), ["192.0.2.7"]);
        assert_eq!(all(&headers, "te"), ["trailers"]);
    }

    #[test]
    fn what_a_cgi_reader_would_take_for_ours_goes_and_nothing_else() {
        for mode in [Mode::Edge, Mode::Sidecar] {
            let gone = [
                "X_Forwarded_For",
                "x-forwarded_for",
                "x_forwarded-for",
                "x_forwarded_proto",
                "x-forwarded_host",
                "x_forwarded_port",
                "x_real-ip",
                "x-real_ip",
                "x_request_id",
                "content_length",
                "transfer_encoding",
            ];
            let kept = [
                "x_forwarded",
                "x_rate",
                "x_user_id",
                "content_type",
                "tenant_of",
                "a_b",
            ];
            let mut fields = vec![HOST];
            fields.extend(gone.iter().chain(&kept).map(|name| (*name, "9.9.9.9")));
            let headers = sent(mode, Version::HTTP_11, "/", &fields);
            for name in gone {
                assert!(!headers.contains_key(name), "{name}");
            }
            for name in kept {
                assert!(headers.contains_key(name), "{name}");
            }
            assert_eq!(all(&headers, "x-forwarded-for"), ["192.0.2.7"]);
            assert_eq!(all(&headers, "x-request-id"), ["id-1"]);
        }
    }

    #[test]
    fn an_absolute_target_replaces_host() {
        let headers = sent(
            Mode::Edge,
            Version::HTTP_11,
            "http://shop.test/a",
            &[("host", "evil.test")],
        );
        assert_eq!(all(&headers, "host"), ["shop.test"]);
        assert_eq!(all(&headers, "x-forwarded-host"), ["shop.test"]);
    }

    #[test]
    fn a_target_is_never_empty() {
        let target = |uri: &str| origin_form(&uri.parse().unwrap()).to_string();
        assert_eq!(target("http://shop.test"), "/");
        assert_eq!(target("http://shop.test#x"), "/");
        assert_eq!(target("http://shop.test?a#x"), "/?a");
        assert_eq!(target("http://shop.test/a?b"), "/a?b");
        let named = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("shop.test"))]);
        let path = |uri: &str| {
            let target = absolute_form(&uri.parse().unwrap(), &named, false);
            target.path_and_query().unwrap().as_str().to_owned()
        };
        assert_eq!(path("http://shop.test"), "/");
        assert_eq!(path("http://shop.test?a#x"), "/?a");
        assert_eq!(path("http://shop.test/a?b"), "/a?b");
    }

    #[test]
    fn of_two_request_ids_neither_is_believed() {
        let fields = [HOST, ("x-request-id", "one"), ("x-request-id", "two")];
        let headers = sent(Mode::Sidecar, Version::HTTP_11, "/", &fields);
        assert_eq!(all(&headers, "x-request-id"), ["id-1"]);
    }

    #[test]
    fn cookie_crumbs_of_http2_become_one_line() {
        let headers = sent(
            Mode::Edge,
            Version::HTTP_2,
            "http://shop.test/",
            &[("cookie", "a=1"), ("cookie", "b=2")],
        );
        assert_eq!(all(&headers, "cookie"), ["a=1; b=2"]);
        assert_eq!(all(&headers, "host"), ["shop.test"]);
    }

    #[test]
    fn an_unknown_length_is_always_framed_explicitly_in_http1() {
        let mut headers = HeaderMap::new();
        let framing = Framing {
            chunked: true,
            trailers: false,
        };
        frame_for(&mut headers, framing, false, true);
        assert_eq!(all(&headers, "transfer-encoding"), ["chunked"]);
        frame_for(&mut headers, framing, true, true);
        assert!(headers.is_empty());
    }

    #[test]
    fn a_response_loses_its_connection_fields_and_contradicting_lengths() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "9"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("x-kept", "1"),
            ("upgrade", "h2"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        to_client(&mut headers, StatusCode::OK, Version::HTTP_11);
        assert_eq!(
            headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(),
            ["x-kept"]
        );
        headers.insert("content-length", HeaderValue::from_static("5"));
        to_client(&mut headers, StatusCode::NO_CONTENT, Version::HTTP_11);
        assert!(!headers.contains_key("content-length"));
    }

    #[test]
    fn a_response_has_one_plain_length_or_none() {
        for (came, goes) in [
            (&["5"][..], Some("5")),
            (&["0"], Some("0")),
            (&["5", "5"], Some("5")),
            (&["5, 5"], Some("5")),
            (&["005"], Some("5")),
            (&["5", "6"], None),
            (&["5,6"], None),
            (&["5,"], None),
            (&["+5"], None),
            (&["-5"], None),
            (&["five"], None),
            (&[""], None),
            (&["99999999999999999999999"], None),
        ] {
            let mut headers = HeaderMap::new();
            for line in came {
                headers.append("content-length", HeaderValue::from_static(line));
            }
            to_client(&mut headers, StatusCode::NOT_MODIFIED, Version::HTTP_11);
            let left: Vec<_> = headers.get_all("content-length").iter().collect();
            assert_eq!(left, Vec::from_iter(goes), "{came:?}");
        }
    }
}
