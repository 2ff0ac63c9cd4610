//! Any HTTP endpoint that answers JSON, and the part of the answer that counts.

use super::{Answer, Question, Reply, TIMEOUT, headers, shorten};
use crate::analysis::{Args, JsonPath, WebQuery};
use serde_json::Value;

/// The request, its arguments filled in.
pub(crate) fn question(query: &WebQuery, args: &Args) -> Result<Question, String> {
    let bad = |error: crate::analysis::BadArgs| error.to_string();
    let method = query.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
    let method = match method.as_str() {
        "GET" => http::Method::GET,
        "POST" => http::Method::POST,
        "PUT" => http::Method::PUT,
        _ => return Err(format!("method `{method}` cannot be used: GET, POST or PUT")),
    };
    let body = query
        .body
        .as_deref()
        .map(|body| args.substitute(body))
        .transpose();
    let mut headers = headers(&query.headers, args).map_err(bad)?;
    let named = headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
    let body = body.map_err(bad)?.unwrap_or_default();
    if !body.is_empty() && !named {
        headers.push(("content-type".to_owned(), "application/json".to_owned()));
    }
    Ok(Question {
        method,
        url: args.substitute(&query.url).map_err(bad)?,
        headers,
        body,
        timeout: query.timeout.unwrap_or(TIMEOUT).as_duration(),
        ca: query.ca.clone(),
        insecure: query.insecure,
    })
}

/// What the answer says. Without a path a body that is not JSON is a string.
pub(crate) fn parse(status: u16, body: &[u8], path: Option<&JsonPath>) -> Result<Reply, String> {
    let text = String::from_utf8_lossy(body);
    if !(200..300).contains(&status) {
        return Err(format!("HTTP {status}: {}", shorten(text.trim(), 120)));
    }
    let value = match (serde_json::from_slice::<Value>(body), path) {
        (Ok(value), Some(path)) => path.find(&value)?,
        (Ok(value), None) => value,
        (Err(_), None) => Value::String(text.into_owned()),
        (Err(error), Some(_)) => return Err(format!("the answer is not JSON: {error}")),
    };
    Ok(Reply {
        answer: Answer::Json(value),
        note: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_http_error_is_an_error_and_text_is_a_string() {
        assert!(parse(503, b"down", None).unwrap_err().contains("503"));
        assert_eq!(
            parse(200, b"fine", None).unwrap().answer,
            Answer::Json(json!("fine"))
        );
        let path = JsonPath::parse("{$.ok}").unwrap();
        assert!(parse(200, b"fine", Some(&path)).is_err());
    }
}
