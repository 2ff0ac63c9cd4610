//! One alternative of a rule: conditions that must all hold.

use super::fields::{cookie_value, query_value};
use http::{HeaderMap, HeaderName, Method};
use regex::Regex;

/// What routing looks at; borrowed from the request, so finding a route allocates nothing.
#[derive(Debug, Clone, Copy)]
pub struct RequestView<'a> {
    /// The index of the listener in `Config::listeners`.
    pub listener: usize,
    /// Already validated, without a port; compared without regard to case.
    pub host: &'a str,
    /// The path as it came, starting with `/`. It is compared in the spelling of [`plain_path`](super::plain_path), as are the
    /// rules.
    pub path: &'a str,
    /// What follows `?`.
    pub query: Option<&'a str>,
    /// The method.
    pub method: &'a Method,
    /// The header fields.
    pub headers: &'a HeaderMap,
}

/// Conditions that hold together; an absent one holds always.
#[derive(Debug, Clone, Default)]
pub struct RouteMatch {
    /// The index of the listener that must have accepted the request.
    pub listener: Option<usize>,
    /// The request's host.
    pub host: Option<HostMatch>,
    /// The request's path.
    pub path: Option<PathMatch>,
    /// The request's method.
    pub method: Option<Method>,
    /// Every one of these header fields, on any of its lines.
    pub headers: Vec<FieldMatch<HeaderName>>,
    /// Every one of these cookies.
    pub cookies: Vec<FieldMatch<String>>,
    /// Every one of these query parameters.
    pub query: Vec<FieldMatch<String>>,
}

/// A condition on a named value.
#[derive(Debug, Clone)]
pub struct FieldMatch<N> {
    /// Header, cookie or parameter name.
    pub name: N,
    /// What its value must be.
    pub value: ValueMatch,
}

/// A condition on one value.
#[derive(Debug, Clone)]
pub enum ValueMatch {
    /// Exactly this.
    Exact(String),
    /// Starts with this.
    Prefix(String),
    /// The whole value matches (linear time).
    Regex(Regex),
    /// Any value, also an empty one.
    Present,
}

/// A condition on the host, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostMatch {
    /// `orders.example.com`
    Exact(String),
    /// `*.example.com`, kept as `example.com`: one or more labels must precede it.
    Suffix(String),
}

/// A condition on the path, case-sensitive.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// Exactly this.
    Exact(String),
    /// These whole segments first: `/a` matches `/a` and `/a/b`, not `/ab`. A trailing `/` means nothing.
    Prefix(String),
    /// The whole path matches, in its plain spelling (linear time).
    Regex(Regex),
}

impl ValueMatch {
    /// Whether a value that is there fits.
    pub fn holds(&self, value: &str) -> bool {
        match self {
            ValueMatch::Exact(expected) => value == expected,
            ValueMatch::Prefix(prefix) => value.starts_with(prefix.as_str()),
            ValueMatch::Regex(regex) => regex.is_match(value),
            ValueMatch::Present => true,
        }
    }

    fn holds_bytes(&self, value: &[u8]) -> bool {
        match self {
            ValueMatch::Exact(expected) => value == expected.as_bytes(),
            ValueMatch::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
            ValueMatch::Regex(regex) => std::str::from_utf8(value).is_ok_and(|text| regex.is_match(text)),
            ValueMatch::Present => true,
        }
    }
}

impl RouteMatch {
    /// Every condition but host and path, which the router's index has already decided.
    pub(super) fn rest_holds(&self, request: &RequestView<'_>) -> bool {
        self.listener.is_none_or(|listener| listener == request.listener)
            && self.method.as_ref().is_none_or(|method| method == request.method)
            && self.headers.iter().all(|field| {
                let mut lines = request.headers.get_all(&field.name).iter();
                lines.any(|line| field.value.holds_bytes(line.as_bytes()))
            })
            && self.cookies.iter().all(|field| {
                cookie_value(request.headers, &field.name).is_some_and(|value| field.value.holds(value))
            })
            && self.query.iter().all(|field| {
                let value = request.query.and_then(|query| query_value(query, &field.name));
                value.is_some_and(|value| field.value.holds(&value))
            })
    }

    /// Whether it holds for every request.
    pub fn is_everything(&self) -> bool {
        let RouteMatch {
            listener,
            host,
            path,
            method,
            headers,
            cookies,
            query,
        } = self;
        let any_path = match path {
            None => true,
            Some(PathMatch::Prefix(prefix)) => prefix.trim_end_matches('/').is_empty(),
            Some(PathMatch::Exact(_) | PathMatch::Regex(_)) => false,
        };
        listener.is_none()
            && host.is_none()
            && any_path
            && method.is_none()
            && headers.is_empty()
            && cookies.is_empty()
            && query.is_empty()
    }
}
