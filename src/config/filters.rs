//! `filters`: what is changed in a request and its response, with the meaning of the Gateway API's `HTTPRoute` filters.
//!
//! They stand at a service, or at one entry of its `match`, whose own list then takes the service's place. Fields that frame,
//! route or vouch for a message are Serin's and cannot be named.

use super::cx::Cx;
use super::decode::Located;
use super::matching::MatchConfig;
use crate::route::{PathMatch, RouteMatch, plain_path};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use std::sync::Arc;

/// What one route changes. Compiled once; a route without filters has none of this.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters {
    /// Changes of the request's fields.
    pub request: HeaderEdits,
    /// Changes of the response's fields.
    pub response: HeaderEdits,
    /// The Host that the version gets; none: the client's.
    pub hostname: Option<HeaderValue>,
    /// The path that the version gets; none: the client's.
    pub path: Option<PathEdit>,
    /// Answered instead of any version.
    pub redirect: Option<Redirect>,
}

/// Changes of header fields; each is named once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Replaced, or added.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Added to what there is.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Removed.
    pub remove: Vec<HeaderName>,
}

/// A change of the path; the query stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathEdit {
    /// The whole path becomes this.
    Full(String),
    /// The matched prefix becomes this; both without a trailing `/`.
    Prefix {
        /// What the route matched.
        matched: String,
        /// What takes its place.
        with: String,
    },
}

impl PathEdit {
    /// The path in place of this one: `/foo/bar` with prefix `/foo` becoming `/xyz` is `/xyz/bar`.
    pub fn apply(&self, path: &str) -> String {
        match self {
            PathEdit::Full(whole) => whole.clone(),
            PathEdit::Prefix { matched, with } => {
                let plain = plain_path(path);
                // Another spelling of the prefix has matched as well; then the rest is of the plain one.
                let rest = path
                    .strip_prefix(matched.as_str())
                    .or_else(|| plain.strip_prefix(&*plain_path(matched)))
                    .unwrap_or(path);
                if with.is_empty() && !rest.starts_with('/') {
                    return format!("/{rest}");
                }
                format!("{with}{rest}")
            }
        }
    }
}

/// An answer that sends the client elsewhere. What is absent stays as the client asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<&'static str>,
    /// A host without a port.
    pub hostname: Option<String>,
    /// The port; with a scheme and no port it is the scheme's own.
    pub port: Option<u16>,
    /// The path.
    pub path: Option<PathEdit>,
    /// 302 unless something else was written.
    pub status: StatusCode,
}

/// One filter, as in an `HTTPRoute`: exactly one of the four.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FilterConfig {
    /// As the Gateway API writes it; the key says the same.
    #[serde(rename = "type")]
    kind: Option<String>,
    request_header_modifier: Option<ModifierConfig>,
    response_header_modifier: Option<ModifierConfig>,
    url_rewrite: Option<RewriteConfig>,
    request_redirect: Option<RedirectConfig>,
}

#[derive(Debug, Deserialize)]
struct ModifierConfig {
    /// Absent: none.
    #[serde(default)]
    set: Vec<Located<FieldConfig>>,
    /// Absent: none.
    #[serde(default)]
    add: Vec<Located<FieldConfig>>,
    /// Absent: none.
    #[serde(default)]
    remove: Vec<Located<String>>,
}

#[derive(Debug, Deserialize)]
struct FieldConfig {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize)]
struct RewriteConfig {
    /// Absent: the client's.
    hostname: Option<String>,
    /// Absent: the client's.
    path: Option<PathEditConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PathEditConfig {
    /// As the Gateway API writes it; the key says the same.
    #[serde(rename = "type")]
    kind: Option<String>,
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RedirectConfig {
    /// `http` or `https`. Absent: the client's.
    scheme: Option<String>,
    /// Absent: the client's.
    hostname: Option<String>,
    /// Absent: the client's, or with `scheme` that scheme's own.
    port: Option<u16>,
    /// Absent: the client's.
    path: Option<PathEditConfig>,
    /// Absent: 302.
    status_code: Option<u16>,
}

/// Request fields that are Serin's own.
const PROTECTED_REQUEST: &[&str] = &[
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "expect",
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-request-id",
    "traceparent",
    "tracestate",
];

/// Response fields that are Serin's own.
const PROTECTED_RESPONSE: &[&str] = &[
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];

/// The filters of each alternative, or of the whole service when it has none; nothing at all when nobody filters.
pub(super) fn compile(
    service: &[Located<FilterConfig>],
    entries: &[Located<MatchConfig>],
    matches: &[RouteMatch],
    cx: &mut Cx,
) -> Vec<Option<Arc<Filters>>> {
    if service.is_empty() && entries.iter().all(|entry| entry.value.filters.is_empty()) {
        return Vec::new();
    }
    if entries.is_empty() {
        return vec![list(service, Some(""), cx)];
    }
    let each = entries.iter().zip(matches).map(|(entry, conditions)| {
        let prefix = match &conditions.path {
            None => Some(""),
            Some(PathMatch::Prefix(prefix)) => Some(prefix.trim_end_matches('/')),
            Some(PathMatch::Exact(_) | PathMatch::Regex(_)) => None,
        };
        if entry.value.filters.is_empty() {
            list(service, prefix, cx)
        } else {
            list(&entry.value.filters, prefix, cx)
        }
    });
    each.collect()
}

/// One list. `prefix` is what `replacePrefixMatch` replaces; none: the route matches no prefix.
fn list(configs: &[Located<FilterConfig>], prefix: Option<&str>, cx: &mut Cx) -> Option<Arc<Filters>> {
    let mut filters = Filters::default();
    let mut seen: Vec<&str> = Vec::new();
    for Located { path, value } in configs {
        let kinds = [
            ("requestHeaderModifier", value.request_header_modifier.is_some()),
            ("responseHeaderModifier", value.response_header_modifier.is_some()),
            ("urlRewrite", value.url_rewrite.is_some()),
            ("requestRedirect", value.request_redirect.is_some()),
        ];
        let mut written = kinds.iter().filter(|(_, written)| *written).map(|(key, _)| *key);
        let (Some(key), None) = (written.next(), written.next()) else {
            let hint =
                "write one of requestHeaderModifier, responseHeaderModifier, urlRewrite, requestRedirect";
            cx.error(path, "a filter is exactly one thing", hint);
            continue;
        };
        if let Some(kind) = &value.kind
            && !kind.eq_ignore_ascii_case(key)
        {
            cx.error(
                &format!("{path}.type"),
                format!("`{kind}` is not `{key}`"),
                "remove type: the key says it",
            );
        }
        if seen.contains(&key) {
            cx.error(path, format!("there is a second {key}"), "write one list");
        }
        if key == "urlRewrite" && seen.contains(&"requestRedirect")
            || key == "requestRedirect" && seen.contains(&"urlRewrite")
        {
            cx.error(
                path,
                "urlRewrite and requestRedirect exclude each other",
                "keep one of them",
            );
        }
        seen.push(key);
        let at = format!("{path}.{key}");
        if let Some(config) = &value.request_header_modifier {
            filters.request = modifier(config, &at, PROTECTED_REQUEST, cx);
        }
        if let Some(config) = &value.response_header_modifier {
            filters.response = modifier(config, &at, PROTECTED_RESPONSE, cx);
        }
        if let Some(config) = &value.url_rewrite {
            let name = config.hostname.as_deref();
            let name = name.and_then(|name| hostname(name, &format!("{at}.hostname"), cx));
            filters.hostname = name.and_then(|name| HeaderValue::try_from(name).ok());
            let edit = config.path.as_ref();
            filters.path = edit.and_then(|edit| path_edit(edit, &format!("{at}.path"), prefix, cx));
        }
        if let Some(config) = &value.request_redirect {
            filters.redirect = Some(redirect(config, &at, prefix, cx));
        }
    }
    (!seen.is_empty()).then(|| Arc::new(filters))
}

fn modifier(config: &ModifierConfig, path: &str, protected: &[&str], cx: &mut Cx) -> HeaderEdits {
    let name = |text: &str, path: &str, cx: &mut Cx| {
        let name = super::service::header_name(text, path, cx)?;
        if protected.contains(&name.as_str()) {
            let hint = match name.as_str() {
                "host" => "use urlRewrite.hostname",
                _ => "remove it",
            };
            cx.error(
                path,
                format!("`{name}` is Serin's own field and cannot be changed"),
                hint,
            );
            return None;
        }
        Some(name)
    };
    let fields = |list: &[Located<FieldConfig>], cx: &mut Cx| {
        let mut compiled = Vec::new();
        for Located { path, value: field } in list {
            let value = HeaderValue::from_str(&field.value).ok();
            if value.is_none() {
                cx.error(
                    &format!("{path}.value"),
                    "this is not a header's value",
                    "write one line of visible characters",
                );
            }
            compiled.extend(name(&field.name, &format!("{path}.name"), cx).zip(value));
        }
        compiled
    };
    let (set, add) = (fields(&config.set, cx), fields(&config.add, cx));
    let removed = |located: &Located<String>, cx: &mut Cx| name(&located.value, &located.path, cx);
    let remove: Vec<HeaderName> = config.remove.iter().filter_map(|one| removed(one, cx)).collect();
    if set.is_empty() && add.is_empty() && remove.is_empty() {
        cx.error(path, "nothing is changed", "write set, add or remove");
    }
    // The Gateway API allows one action for each name: what several would come to depends on their order.
    let mut named: Vec<&HeaderName> = Vec::new();
    let changed = set.iter().chain(&add).map(|(name, _)| name).chain(&remove);
    for name in changed {
        if named.contains(&name) {
            cx.error(
                path,
                format!("`{name}` is changed twice"),
                "keep one; several values are one, with commas between them",
            );
        }
        named.push(name);
    }
    HeaderEdits { set, add, remove }
}

fn hostname(text: &str, path: &str, cx: &mut Cx) -> Option<String> {
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let holds = text.len() <= 253 && text.split('.').all(label);
    if !holds {
        cx.error(
            path,
            format!("`{text}` is not a host name"),
            "write a name without scheme, port or path",
        );
    }
    holds.then(|| text.to_ascii_lowercase())
}

fn path_edit(config: &PathEditConfig, path: &str, prefix: Option<&str>, cx: &mut Cx) -> Option<PathEdit> {
    let (key, text) = match (&config.replace_full_path, &config.replace_prefix_match) {
        (Some(text), None) => ("replaceFullPath", text),
        (None, Some(text)) => ("replacePrefixMatch", text),
        (_, _) => {
            cx.error(
                path,
                "exactly one of replaceFullPath and replacePrefixMatch is needed",
                "write one of them",
            );
            return None;
        }
    };
    let at = format!("{path}.{key}");
    if let Some(kind) = &config.kind
        && !kind.eq_ignore_ascii_case(key)
    {
        cx.error(
            &format!("{path}.type"),
            format!("`{kind}` is not `{key}`"),
            "remove type: the key says it",
        );
    }
    let empty = key == "replacePrefixMatch" && text.is_empty();
    if !empty
        && (!text.starts_with('/') || text.contains('?') || text.parse::<http::uri::PathAndQuery>().is_err())
    {
        cx.error(
            &at,
            format!("`{text}` is not a path"),
            "it starts with / and has no query",
        );
        return None;
    }
    if key == "replaceFullPath" {
        return Some(PathEdit::Full(text.clone()));
    }
    let Some(prefix) = prefix else {
        cx.error(
            &at,
            "the route matches no prefix",
            "match path: {prefix: …}, or use replaceFullPath",
        );
        return None;
    };
    Some(PathEdit::Prefix {
        matched: prefix.to_owned(),
        with: text.trim_end_matches('/').to_owned(),
    })
}

fn redirect(config: &RedirectConfig, path: &str, prefix: Option<&str>, cx: &mut Cx) -> Redirect {
    let scheme = match config.scheme.as_deref() {
        None => None,
        Some("http") => Some("http"),
        Some("https") => Some("https"),
        Some(other) => {
            cx.error(
                &format!("{path}.scheme"),
                format!("`{other}` is not a scheme"),
                "write http or https",
            );
            None
        }
    };
    if config.port == Some(0) {
        cx.error(
            &format!("{path}.port"),
            "0 is not a port",
            "leave it out, or write 1 to 65535",
        );
    }
    let code = config.status_code.unwrap_or(302);
    if ![301, 302, 303, 307, 308].contains(&code) {
        let what = format!("{code} is not a redirect's status");
        cx.error(
            &format!("{path}.statusCode"),
            what,
            "write 301, 302, 303, 307 or 308",
        );
    }
    let same = config.scheme.is_none()
        && config.hostname.is_none()
        && config.port.is_none()
        && config.path.is_none();
    if same {
        cx.error(
            path,
            "it would send clients to where they are",
            "write scheme, hostname, port or path",
        );
    }
    Redirect {
        scheme,
        hostname: config
            .hostname
            .as_deref()
            .and_then(|name| hostname(name, &format!("{path}.hostname"), cx)),
        port: config.port,
        path: config
            .path
            .as_ref()
            .and_then(|edit| path_edit(edit, &format!("{path}.path"), prefix, cx)),
        status: StatusCode::from_u16(code).unwrap_or(StatusCode::FOUND),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_replaced_as_the_gateway_api_says() {
        let edit = |matched: &str, with: &str, path: &str| {
            let edit = PathEdit::Prefix {
                matched: matched.to_owned(),
                with: with.to_owned(),
            };
            edit.apply(path)
        };
        // The table of HTTPPathModifier.replacePrefixMatch; trailing slashes are cut when it compiles.
        for (path, with, expected) in [
            ("/foo/bar", "/xyz", "/xyz/bar"),
            ("/foo", "/xyz", "/xyz"),
            ("/foo/", "/xyz", "/xyz/"),
            ("/foo/bar", "", "/bar"),
            ("/foo", "", "/"),
            ("/foo/", "", "/"),
        ] {
            assert_eq!(edit("/foo", with, path), expected, "{path} with {with}");
        }
        assert_eq!(edit("", "/v2", "/a"), "/v2/a");
    }
}
