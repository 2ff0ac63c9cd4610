//! A request head as an input: `METHOD TARGET VERSION`, then one `name: value` a line.

use crate::proxy::{headers, headers::Peer, inbound, inbound::Accepted, seen::Seen};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, request::Parts};

/// The head, if hyper would hand such a request over.
pub(super) fn read(input: &[u8]) -> Option<Parts> {
    let mut lines = input.split(|b| *b == b'\n');
    let mut first = lines.next()?.split(|b| *b == b' ');
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(first.next()?).ok()?;
    *request.uri_mut() = Uri::try_from(first.next()?).ok()?;
    let version = match first.next()? {
        b"HTTP/1.0" => Version::HTTP_10,
        b"HTTP/1.1" => Version::HTTP_11,
        b"HTTP/2.0" => Version::HTTP_2,
        _ => return None,
    };
    *request.version_mut() = version;
    let headers = request.headers_mut();
    for line in lines.filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|b| *b == b':')?;
        let (name, value) = (line.get(..colon)?, line.get(colon + 1..)?);
        let value = match version {
            Version::HTTP_2 => value.strip_prefix(b" ").unwrap_or(value),
            _ => value.trim_ascii(),
        };
        headers.append(
            HeaderName::from_bytes(name).ok()?,
            HeaderValue::from_bytes(value).ok()?,
        );
    }
    Some(request.into_parts().0)
}

/// What becomes of a head at the door, and what the version gets.
pub(super) struct Passed {
    pub(super) before: Parts,
    pub(super) accepted: Accepted,
    pub(super) authority: String,
    pub(super) host: String,
    pub(super) headers: HeaderMap,
}

pub(super) const REQUEST_ID: &str = "an-id-of-ours";

/// Lets a head through the door and the header rules; none: it is refused.
pub(super) fn pass(before: Parts, peer: &Peer) -> Option<Passed> {
    let seen = Seen::scan(&before.headers);
    let accepted = inbound::accept(&before, &seen).ok()?;
    let authority = accepted.authority(&before.uri, &seen).to_owned();
    let host = accepted.host(&before.uri, &seen).to_owned();
    let mut headers = before.headers.clone();
    let id = || HeaderValue::from_static(REQUEST_ID);
    headers::to_version(
        &mut headers,
        seen,
        before.version,
        accepted,
        &before.uri,
        peer,
        id,
    );
    Some(Passed {
        before,
        accepted,
        authority,
        host,
        headers,
    })
}

/// All values of a field, as bytes.
pub(super) fn all<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a [u8]> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes).collect()
}
