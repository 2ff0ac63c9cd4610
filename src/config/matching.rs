//! `match`: which requests are a service's.

use super::cx::Cx;
use super::decode::Located;
use super::filters::FilterConfig;
use super::problem::did_you_mean;
use crate::route::{FieldMatch, HostMatch, PathMatch, RouteMatch, ValueMatch, plain_path};
use http::{HeaderName, Method};
use regex::{Regex, RegexBuilder};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::{collections::BTreeMap, fmt};

const REGEX_MEND: &str = "write one of linear time: no look-around, no back-references";
const HEADER_NAME_MEND: &str = "use letters, digits and `-`";

/// One alternative: conditions that hold together. An absent one holds always.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MatchConfig {
    /// A listener's name.
    listener: Option<String>,
    /// `orders.example.com` or `*.example.com`, without a port.
    host: Option<String>,
    /// Exactly one of exact, prefix, regex.
    path: Option<PathConfig>,
    /// Such as GET.
    method: Option<String>,
    /// `x-team: blue`, or `x-team: {exact | prefix | regex: …}`, or `x-team: {present: true}`.
    #[serde(default)]
    headers: BTreeMap<String, ValueConfig>,
    /// As `headers`.
    #[serde(default)]
    cookies: BTreeMap<String, ValueConfig>,
    /// As `headers`.
    #[serde(default)]
    query: BTreeMap<String, ValueConfig>,
    /// What is changed in these requests. Absent: what the service says.
    #[serde(default)]
    pub(super) filters: Vec<Located<FilterConfig>>,
}

#[derive(Debug, serde::Deserialize)]
struct PathConfig {
    /// The whole path.
    exact: Option<String>,
    /// Whole segments: `/a` is `/a` and `/a/b`, not `/ab`.
    prefix: Option<String>,
    /// Matches the whole path.
    regex: Option<String>,
}

/// A condition on a value; text alone means exact.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ValueKinds {
    exact: Option<String>,
    prefix: Option<String>,
    /// Matches the whole value.
    regex: Option<String>,
    present: Option<bool>,
}

#[derive(Debug)]
struct ValueConfig(ValueKinds);

impl<'de> Deserialize<'de> for ValueConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        fn exact(text: String) -> ValueConfig {
            ValueConfig(ValueKinds {
                exact: Some(text),
                ..ValueKinds::default()
            })
        }
        impl<'de> Visitor<'de> for Either {
            type Value = ValueConfig;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, or one of {exact: …}, {prefix: …}, {regex: …}, {present: true}")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ValueConfig, E> {
                Ok(exact(text.to_owned()))
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<ValueConfig, E> {
                Ok(exact(value.to_string()))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<ValueConfig, E> {
                Ok(exact(value.to_string()))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<ValueConfig, E> {
                Ok(exact(value.to_string()))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<ValueConfig, E> {
                Ok(exact(value.to_string()))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<ValueConfig, A::Error> {
                ValueKinds::deserialize(de::value::MapAccessDeserializer::new(map)).map(ValueConfig)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

const MAX_REGEX: usize = 1024;

/// A pattern for a whole value; matching is linear in its length.
fn whole(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > MAX_REGEX {
        return Err(format!("the pattern is longer than {MAX_REGEX} bytes"));
    }
    // On its own first, so that an unbalanced `)` cannot escape the group.
    let checked = RegexBuilder::new(pattern).size_limit(1 << 20).build();
    checked
        .and_then(|_| {
            RegexBuilder::new(&format!("^(?:{pattern})$"))
                .size_limit(1 << 20)
                .build()
        })
        .map_err(|error| {
            if matches!(error, regex::Error::CompiledTooBig(_)) {
                return "the pattern is too large when compiled".to_owned();
            }
            let text = error.to_string();
            let last = text.lines().last().unwrap_or("cannot be read");
            format!(
                "`{pattern}` is not a regular expression: {}",
                last.trim_start_matches("error: ")
            )
        })
}

fn value(config: &ValueConfig, path: &str, cx: &mut Cx) -> Option<ValueMatch> {
    let ValueKinds {
        exact,
        prefix,
        regex,
        present,
    } = &config.0;
    let hint = "write one of {exact: …}, {prefix: …}, {regex: …}, {present: true}";
    match (exact, prefix, regex, present) {
        (Some(text), None, None, None) => Some(ValueMatch::Exact(text.clone())),
        (None, Some(text), None, None) => Some(ValueMatch::Prefix(text.clone())),
        (None, None, None, Some(true)) => Some(ValueMatch::Present),
        (None, None, Some(pattern), None) => match whole(pattern) {
            Ok(regex) => Some(ValueMatch::Regex(regex)),
            Err(what) => {
                cx.error(&format!("{path}.regex"), what, REGEX_MEND);
                None
            }
        },
        (None, None, None, Some(false)) => {
            cx.error(
                path,
                "absence cannot be asked for",
                "turn it round: give the other service the condition",
            );
            None
        }
        (_, _, _, _) => {
            cx.error(path, "exactly one condition is needed", hint);
            None
        }
    }
}

fn host(text: &str) -> Result<HostMatch, &'static str> {
    let (name, wildcard) = match text.strip_prefix("*.") {
        Some(name) => (name, true),
        None => (text, false),
    };
    if text.contains("://") || text.contains('/') {
        return Err("write the host alone, without scheme or path");
    }
    if name.contains('*') {
        return Err("a wildcard stands for whole labels in front: *.example.com");
    }
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_v6 = |name: &str| name.parse::<std::net::Ipv6Addr>().is_ok();
    if !wildcard && is_v6(bare.unwrap_or(name)) {
        let bare = bare.unwrap_or(name);
        return Ok(HostMatch::Exact(format!("[{bare}]").to_ascii_lowercase()));
    }
    if name.contains(':') {
        return Err("write the host without a port: a listener has the port");
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > 253 || !name.split('.').all(label) {
        return Err("write a host name such as orders.example.com or *.example.com");
    }
    let name = name.to_ascii_lowercase();
    Ok(if wildcard {
        HostMatch::Suffix(name)
    } else {
        HostMatch::Exact(name)
    })
}

fn path_match(config: &PathConfig, path: &str, cx: &mut Cx) -> Option<PathMatch> {
    let (key, text) = match (&config.exact, &config.prefix, &config.regex) {
        (Some(text), None, None) => ("exact", text),
        (None, Some(text), None) => ("prefix", text),
        (None, None, Some(pattern)) => {
            let plain = plain_path(pattern);
            if plain != pattern.as_str() {
                cx.warn(
                    &format!("{path}.regex"),
                    "paths are compared in one spelling, which this may never match",
                    format!("write `{plain}`"),
                );
            }
            return match whole(pattern) {
                Ok(regex) => Some(PathMatch::Regex(regex)),
                Err(what) => {
                    cx.error(&format!("{path}.regex"), what, REGEX_MEND);
                    None
                }
            };
        }
        (_, _, _) => {
            cx.error(
                path,
                "exactly one of exact, prefix and regex is needed",
                "write for example {prefix: /api}",
            );
            return None;
        }
    };
    if !text.starts_with('/')
        || text.contains(['?', '#'])
        || text.bytes().any(|b| b.is_ascii_control() || b == b' ')
    {
        let what = format!("`{text}` is not a path");
        cx.error(
            &format!("{path}.{key}"),
            what,
            "it starts with / and has no query",
        );
        return None;
    }
    Some(if key == "exact" {
        PathMatch::Exact(text.clone())
    } else {
        PathMatch::Prefix(text.clone())
    })
}

/// Every alternative that can be understood.
pub(super) fn compile(configs: &[Located<MatchConfig>], listeners: &[&str], cx: &mut Cx) -> Vec<RouteMatch> {
    configs
        .iter()
        .map(|config| alternative(&config.value, &config.path, listeners, cx))
        .collect()
}

fn alternative(config: &MatchConfig, path: &str, listeners: &[&str], cx: &mut Cx) -> RouteMatch {
    let mut compiled = RouteMatch::default();
    if let Some(name) = &config.listener {
        compiled.listener = listeners.iter().position(|listener| listener == name);
        if compiled.listener.is_none() {
            let hint = match did_you_mean(name, listeners.iter().copied()) {
                Some(guess) => format!("did you mean `{guess}`?"),
                None => format!("there are: {}", listeners.join(", ")),
            };
            cx.error(
                &format!("{path}.listener"),
                format!("there is no listener `{name}`"),
                hint,
            );
        }
    }
    if let Some(text) = &config.host {
        match host(text) {
            Ok(host) => compiled.host = Some(host),
            Err(hint) => cx.error(
                &format!("{path}.host"),
                format!("`{text}` is not a host to match"),
                hint,
            ),
        }
    }
    if let Some(config) = &config.path {
        compiled.path = path_match(config, &format!("{path}.path"), cx);
    }
    if let Some(text) = &config.method {
        match Method::from_bytes(text.as_bytes()) {
            Ok(method) if text.bytes().all(|b| !b.is_ascii_lowercase()) => compiled.method = Some(method),
            Ok(_) | Err(_) => {
                let hint = format!("write {}", text.to_ascii_uppercase());
                cx.error(
                    &format!("{path}.method"),
                    format!("`{text}` is not a method"),
                    hint,
                );
            }
        }
    }
    for (name, config) in &config.headers {
        let path = format!("{path}.headers.{name}");
        let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
            cx.error(&path, format!("`{name}` is not a header name"), HEADER_NAME_MEND);
            continue;
        };
        let hint = match header.as_str() {
            "host" => "write host: …",
            "cookie" => "write cookies: {…}",
            _ => "",
        };
        if !hint.is_empty() {
            cx.error(&path, format!("`{header}` is not matched as a header"), hint);
        }
        compiled
            .headers
            .extend(value(config, &path, cx).map(|value| FieldMatch { name: header, value }));
    }
    for (key, configs) in [("cookies", &config.cookies), ("query", &config.query)] {
        for (name, config) in configs {
            let path = format!("{path}.{key}.{name}");
            let field = value(config, &path, cx).map(|value| FieldMatch {
                name: name.clone(),
                value,
            });
            if key == "cookies" {
                compiled.cookies.extend(field);
            } else {
                compiled.query.extend(field);
            }
        }
    }
    compiled
}
