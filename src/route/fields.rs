//! What a request says about itself: a cookie, a query parameter, the force header.
//!
//! Each reader takes the first well-formed value, so that nobody can override an earlier one by appending.

use crate::model::Role;
use http::{HeaderMap, HeaderName, header};
use std::borrow::Cow;

/// The first well-formed value of a cookie, without surrounding quotes. Names compare exactly.
///
/// A value that RFC 6265 does not allow (spaces, commas, control characters, an unpaired quote) is passed over.
pub fn cookie_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    cookie_values(headers, name).next()
}

/// Every well-formed value of a cookie, in order: a browser sends as many of one name as there are paths and domains that have
/// set it.
pub fn cookie_values<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b';'))
        .filter_map(|pair| {
            let value = trimmed(pair).strip_prefix(name.as_bytes())?;
            value.strip_prefix(b"=")
        })
        .filter_map(well_formed_cookie)
}

/// Without the spaces around it. What other cookies of the line are made of is nobody's business here.
fn trimmed(mut pair: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = pair {
        pair = rest;
    }
    pair
}

fn well_formed_cookie(value: &[u8]) -> Option<&str> {
    let inner = match value.strip_prefix(b"\"") {
        Some(rest) => rest.strip_suffix(b"\"")?,
        None => value,
    };
    let octet = |b: &u8| matches!(b, 0x21 | 0x23..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e);
    let text = std::str::from_utf8(inner).ok()?;
    inner.iter().all(octet).then_some(text)
}

/// The first value of a query parameter, percent-decoded (allocates only when something had to be decoded).
pub fn query_value<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value)
}

/// The role a tester asks for: `always` is the canary, `never` is stable, anything else asks for nothing.
///
/// Whether the asker may do so is the caller's question (`config::Force::allows`). Two contradicting lines ask for
/// nothing.
pub fn force_value(headers: &HeaderMap, name: &HeaderName) -> Option<Role> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?;
    if lines.any(|other| other != first) {
        return None;
    }
    match first.as_bytes() {
        value if value.eq_ignore_ascii_case(b"always") => Some(Role::Canary),
        value if value.eq_ignore_ascii_case(b"never") => Some(Role::Stable),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_stranger_in_the_line_hides_no_cookie() {
        let mut map = HeaderMap::new();
        let line = "name=Jos\u{e9}; sid=7; sid=8";
        map.append(header::COOKIE, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        assert_eq!(cookie_value(&map, "sid"), Some("7"));
        assert_eq!(cookie_value(&map, "name"), None);
    }

    fn cookies(lines: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for line in lines {
            map.append(header::COOKIE, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        map
    }

    #[test]
    fn the_first_well_formed_cookie_wins() {
        for (lines, expected) in [
            (&["a=1; sid=x; sid=y"][..], Some("x")),
            (&["sid=a b; sid=y"], Some("y")),
            (&["sid=\"q\""], Some("q")),
            (&["sid=\"q"], None),
            (&["a=1", "sid=z"], Some("z")),
            (&["SID=x"], None),
            (&["xsid=1"], None),
            (&["sid"], None),
            (&["sid="], Some("")),
            (&[";;; sid=v ;"], Some("v")),
            (&["sid=a=b"], Some("a=b")),
            (&[], None),
        ] {
            assert_eq!(cookie_value(&cookies(lines), "sid"), expected, "{lines:?}");
        }
    }

    #[test]
    fn the_first_query_parameter_wins_and_is_decoded() {
        assert_eq!(query_value("user=a%20b&user=c", "user").as_deref(), Some("a b"));
        assert_eq!(query_value("x=1&us%65r=2", "user").as_deref(), Some("2"));
        assert_eq!(query_value("user", "user").as_deref(), Some(""));
        assert_eq!(query_value("users=1", "user"), None);
        assert!(matches!(query_value("user=7", "user"), Some(Cow::Borrowed("7"))));
    }

    #[test]
    fn force_knows_two_words_and_ignores_contradictions() {
        let name = HeaderName::from_static("x-canary");
        let mut map = HeaderMap::new();
        assert_eq!(force_value(&map, &name), None);
        map.append(&name, HeaderValue::from_static("Always"));
        assert_eq!(force_value(&map, &name), Some(Role::Canary));
        map.append(&name, HeaderValue::from_static("never"));
        assert_eq!(force_value(&map, &name), None);
        map.insert(&name, HeaderValue::from_static("never"));
        assert_eq!(force_value(&map, &name), Some(Role::Stable));
        map.insert(&name, HeaderValue::from_static("1"));
        assert_eq!(force_value(&map, &name), None);
    }
}
