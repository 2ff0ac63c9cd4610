//! Cookies: routing, stickiness and the version behind must see the same one.

use super::head::all;
use crate::{proxy::headers, route::cookie_value};
use http::{HeaderMap, HeaderValue};

/// The input is a cookie's name, then one line for each `Cookie` field. What is found is the first well-formed value, and
/// the same when HTTP/2's crumbs have been joined for HTTP/1.1.
pub fn cookies(input: &[u8]) {
    let mut lines = input.split(|b| *b == b'\n');
    let Some(Ok(name)) = lines.next().map(std::str::from_utf8) else {
        return;
    };
    // Configuration allows tokens only.
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return;
    }
    let mut headers = HeaderMap::new();
    for line in lines {
        let Ok(value) = HeaderValue::from_bytes(line) else {
            return;
        };
        headers.append("cookie", value);
    }
    let found = cookie_value(&headers, name).map(str::to_owned);
    let mut pairs = Vec::new();
    for line in all(&headers, "cookie") {
        pairs.extend(line.split(|b| *b == b';'));
    }
    assert_eq!(found.as_deref(), pairs.iter().find_map(|pair| meant(pair, name)));
    if let Some(value) = &found {
        assert!(value.bytes().all(octet), "{value}");
    }

    let mut joined = headers.clone();
    headers::join_cookies(&mut joined);
    assert_eq!(all(&joined, "cookie").len(), 1);
    assert_eq!(cookie_value(&joined, name), found.as_deref(), "joined");

    // Nobody overrides a value by adding another one behind it.
    headers.append("cookie", HeaderValue::from_static("x=1; sid=added"));
    if found.is_some() {
        assert_eq!(cookie_value(&headers, name), found.as_deref(), "overridden");
    }
}

/// The grammar of RFC 6265 4.1.1, read slowly.
fn meant<'a>(pair: &'a [u8], name: &str) -> Option<&'a str> {
    let text = std::str::from_utf8(pair).ok()?.trim_matches([' ', '\t']);
    let (key, value) = text.split_once('=')?;
    let quoted = value.len() > 1 && value.starts_with('"') && value.ends_with('"');
    let inner = if quoted { &value[1..value.len() - 1] } else { value };
    (key == name && inner.bytes().all(octet)).then_some(inner)
}

fn octet(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\",;\\".contains(&byte)
}
