//! A configuration as it may be shown: as it was written, `${ENV}` unexpanded, secrets out of sight.

use super::secret::REDACTED;
use super::yaml::{Kind, Node, Scalar};
use serde_json::{Map, Value};

/// All files together: the first one, with the services and templates of the others.
pub(super) fn show<'a>(mut files: impl Iterator<Item = &'a Node>) -> Value {
    let mut shown = match files.next() {
        Some(main) => value(main, ""),
        None => return Value::Null,
    };
    let notifications = shown.get_mut("notifications").and_then(Value::as_array_mut);
    for one in notifications.into_iter().flatten() {
        if let Some(url) = one.get_mut("url") {
            *url = Value::String(without_path(url.as_str().unwrap_or_default()));
        }
        hide_headers(one);
    }
    if let Some(otlp) = shown.pointer_mut("/tracing/otlp") {
        hide_headers(otlp);
    }
    for file in files {
        for key in ["services", "analysisTemplates"] {
            let items = file.get(key).map(Node::items).unwrap_or_default();
            if let (Some(map), false) = (shown.as_object_mut(), items.is_empty()) {
                let list = map.entry(key).or_insert_with(|| Value::Array(Vec::new()));
                if let Some(list) = list.as_array_mut() {
                    list.extend(items.iter().map(|item| value(item, "")));
                }
            }
        }
    }
    shown
}

/// Keys whose values are never shown.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let words = [
        "secret",
        "password",
        "passwd",
        "token",
        "authorization",
        "cookie",
        "api-key",
        "apikey",
        "credential",
    ];
    key != "secretfile" && words.iter().any(|word| key.contains(word))
}

fn value(node: &Node, key: &str) -> Value {
    match &node.kind {
        Kind::Scalar(scalar) if is_secret(key) && !scalar.is_null() => Value::String(REDACTED.to_owned()),
        Kind::Scalar(scalar) => shown_scalar(scalar),
        Kind::List(items) => Value::Array(items.iter().map(|item| value(item, key)).collect()),
        Kind::Map(entries) => {
            // Argo's lists of {key, value} and arguments of {name, value}: the name tells whether the value is secret.
            let named = entries
                .iter()
                .find(|entry| entry.key == "key" || entry.key == "name");
            let named = named.and_then(|entry| entry.value.text()).unwrap_or_default();
            let shown = entries.iter().map(|entry| {
                let key = if entry.key == "value" && is_secret(named) {
                    "secret"
                } else {
                    entry.key.as_str()
                };
                // `tokens` and `sticky.cookie` are structures, not secrets.
                let key = match entry.value.kind {
                    Kind::Scalar(_) => key,
                    Kind::List(_) | Kind::Map(_) => "",
                };
                (entry.key.clone(), value(&entry.value, key))
            });
            Value::Object(shown.collect::<Map<_, _>>())
        }
    }
}

fn shown_scalar(scalar: &Scalar) -> Value {
    if scalar.is_null() {
        return Value::Null;
    }
    let text = scalar.written.as_deref().unwrap_or(&scalar.text);
    if scalar.plain && scalar.written.is_none() {
        match text {
            "true" => return Value::Bool(true),
            "false" => return Value::Bool(false),
            text => {
                let number = serde_json::from_str::<Value>(text).ok().filter(Value::is_number);
                // Only where nothing is lost: 1.10 stays text.
                if let Some(number) = number.filter(|number| *text == *number.to_string()) {
                    return number;
                }
            }
        }
    }
    Value::String(without_user(text))
}

/// What is sent along to somebody is there to be let in by, whatever it is called: `x-honeycomb-team` is a key.
fn hide_headers(of: &mut Value) {
    let headers = of.get_mut("headers").and_then(Value::as_object_mut);
    for value in headers.into_iter().flat_map(Map::values_mut) {
        *value = Value::String(REDACTED.to_owned());
    }
}

/// Who can post to an address may need nothing else: only whose it is is shown.
fn without_path(text: &str) -> String {
    let begin = text.find("://").map_or(0, |at| at + 3);
    let end = text[begin..].find(['/', '?', '#']).map(|at| begin + at + 1);
    match end.filter(|end| *end < text.len()) {
        Some(end) => format!("{}{REDACTED}", &text[..end]),
        None => text.to_owned(),
    }
}

/// `http://user:password@host` loses what stands before the `@`.
fn without_user(text: &str) -> String {
    if let Some((scheme, rest)) = text.split_once("://") {
        let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        if let Some(at) = rest[..authority].rfind('@') {
            return format!("{scheme}://{REDACTED}{}", &rest[at..]);
        }
    }
    text.to_owned()
}
