//! What a route's filters do to a request on its way out and to a response on its way back.
//!
//! Everything was checked when the configuration was compiled; here is only what they mean (Gateway API, `HTTPRoute` filters).
//! The choice of a version and Serin's own fields are made before and not touched.

use super::{body::OutBody, inbound::Accepted, seen::Seen};
use crate::config::{Filters, HeaderEdits, PathEdit, Redirect};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, Uri, header, request::Parts, uri::PathAndQuery};

/// Changes the head that the version gets.
pub(super) fn to_version(filters: &Filters, parts: &mut Parts) {
    edit(&filters.request, &mut parts.headers);
    if let Some(hostname) = &filters.hostname {
        parts.headers.insert(header::HOST, hostname.clone());
    }
    if let Some(path) = &filters.path
        && let Some(uri) = rewritten(path, &parts.uri)
    {
        parts.uri = uri;
    }
}

/// Changes the head that the client gets.
pub(super) fn to_client(filters: &Filters, headers: &mut HeaderMap) {
    edit(&filters.response, headers);
}

fn edit(edits: &HeaderEdits, headers: &mut HeaderMap) {
    for (name, value) in &edits.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &edits.add {
        headers.append(name, value.clone());
    }
    for name in &edits.remove {
        headers.remove(name);
    }
}

/// `OPTIONS *` has no path to change.
fn edited(path: &PathEdit, uri: &Uri) -> String {
    if uri.path() == "*" {
        return "*".to_owned();
    }
    path.apply(uri.path())
}

fn rewritten(path: &PathEdit, uri: &Uri) -> Option<Uri> {
    let mut text = edited(path, uri);
    if let Some(query) = uri.query() {
        text.push('?');
        text.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    // Made of a path that was checked and one that was parsed.
    parts.path_and_query = Some(PathAndQuery::try_from(text).ok()?);
    Uri::from_parts(parts).ok()
}

/// Sends the client elsewhere; `scheme` is what it came by. None: there is no host to send it to.
pub(super) fn redirect(
    redirect: &Redirect,
    parts: &Parts,
    seen: &Seen,
    accepted: Accepted,
    scheme: &'static str,
) -> Option<Response<OutBody>> {
    let asked = accepted.authority(&parts.uri, seen);
    let asked_host = accepted.host(&parts.uri, seen);
    let host = redirect.hostname.as_deref().unwrap_or(asked_host);
    if host.is_empty() {
        return None;
    }
    let scheme = redirect.scheme.unwrap_or(scheme);
    let asked_port = || {
        asked
            .get(asked_host.len()..)?
            .strip_prefix(':')?
            .parse::<u16>()
            .ok()
    };
    let port = match (redirect.port, redirect.scheme) {
        (Some(port), _) => Some(port),
        // The scheme's own.
        (None, Some(_)) => None,
        (None, None) => asked_port(),
    };
    let port = port.filter(|port| !matches!((scheme, port), ("http", 80) | ("https", 443)));
    let path = redirect.path.as_ref().map(|path| edited(path, &parts.uri));
    let path = path.as_deref().unwrap_or(parts.uri.path());
    let port = port.map_or(String::new(), |port| format!(":{port}"));
    let mut location = format!("{scheme}://{host}{port}");
    location.push_str(path.strip_prefix('*').unwrap_or(path));
    if let Some(query) = parts.uri.query() {
        location.push('?');
        location.push_str(query);
    }
    let mut response = Response::new(OutBody::own(Bytes::new()));
    *response.status_mut() = redirect.status;
    response
        .headers_mut()
        .insert(header::LOCATION, HeaderValue::try_from(location).ok()?);
    Some(response)
}
