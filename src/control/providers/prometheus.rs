//! A Prometheus server: one instant query.
//!
//! A vector becomes a list of numbers (labels are lost), a scalar one number; NaN and infinities stay what they are, and
//! what they mean is the condition's business.

use super::{Answer, Question, Reply, TIMEOUT, headers, shorten};
use crate::analysis::{Args, BadArgs, PrometheusQuery};
use serde::Deserialize;

/// The request, its arguments filled in.
pub(crate) fn question(query: &PrometheusQuery, args: &Args) -> Result<Question, BadArgs> {
    let promql = args.substitute(&query.query)?;
    let address = args.substitute(&query.address)?;
    let encoded: String = form_urlencoded::byte_serialize(promql.trim().as_bytes()).collect();
    Ok(Question {
        method: http::Method::GET,
        url: format!("{}/api/v1/query?query={encoded}", address.trim_end_matches('/')),
        headers: headers(&query.headers, args)?,
        body: String::new(),
        timeout: query.timeout.unwrap_or(TIMEOUT).as_duration(),
        ca: query.ca.clone(),
        insecure: query.insecure,
    })
}

#[derive(Deserialize)]
struct Envelope {
    status: String,
    #[serde(default)]
    data: Option<Data>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", tag = "resultType", content = "result")]
enum Data {
    Vector(Vec<Series>),
    Scalar((f64, String)),
    String(serde::de::IgnoredAny),
    Matrix(Vec<Range>),
}

#[derive(Deserialize)]
struct Series {
    value: (f64, String),
}

#[derive(Deserialize)]
struct Range {
    values: Vec<(f64, String)>,
}

fn float(text: &str) -> Result<f64, String> {
    // Prometheus writes NaN, +Inf and -Inf; Rust reads all three.
    text.parse()
        .map_err(|_| format!("`{}` is not a number", shorten(text, 40)))
}

/// What the answer says.
pub(crate) fn parse(status: u16, body: &[u8]) -> Result<Reply, String> {
    let envelope: Envelope = serde_json::from_slice(body).map_err(|error| {
        let start = shorten(&String::from_utf8_lossy(body), 120);
        if (200..300).contains(&status) {
            format!("not an answer of Prometheus ({error}): {start}")
        } else {
            format!("HTTP {status}: {start}")
        }
    })?;
    if envelope.status != "success" {
        let why = envelope.error.unwrap_or_else(|| "no reason given".to_owned());
        return Err(format!(
            "Prometheus refused the query (HTTP {status}): {}",
            shorten(&why, 300)
        ));
    }
    let answer = match envelope.data {
        Some(Data::Vector(series)) => Answer::Vector(
            series
                .iter()
                .map(|one| float(&one.value.1))
                .collect::<Result<_, _>>()?,
        ),
        Some(Data::Scalar((_, value))) => Answer::Number(float(&value)?),
        Some(Data::Matrix(ranges)) => Answer::Vector(
            ranges
                .iter()
                .flat_map(|range| &range.values)
                .map(|value| float(&value.1))
                .collect::<Result<_, _>>()?,
        ),
        Some(Data::String(_)) => return Err("the query gives a string; it must give numbers".to_owned()),
        None => return Err("the answer holds no data".to_owned()),
    };
    let note = (!envelope.warnings.is_empty()).then(|| {
        format!(
            "Prometheus warns: {}",
            shorten(&envelope.warnings.join("; "), 300)
        )
    });
    Ok(Reply { answer, note })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_a_list_and_a_scalar_a_number() {
        let vector = br#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"a":"b"},"value":[1700000000.1,"0.25"]},{"metric":{},"value":[1,"NaN"]}]}}"#;
        let Answer::Vector(values) = parse(200, vector).unwrap().answer else {
            panic!("not a vector")
        };
        assert!((values[0] - 0.25).abs() < 1e-12 && values[1].is_nan());
        let scalar = br#"{"status":"success","data":{"resultType":"scalar","result":[1,"+Inf"]}}"#;
        assert_eq!(parse(200, scalar).unwrap().answer, Answer::Number(f64::INFINITY));
    }

    #[test]
    fn a_refused_query_and_a_strange_answer_are_errors_that_say_why() {
        let refused = br#"{"status":"error","errorType":"bad_data","error":"parse error: unexpected end"}"#;
        assert!(parse(400, refused).unwrap_err().contains("unexpected end"));
        assert!(
            parse(502, b"<html>Bad Gateway")
                .unwrap_err()
                .starts_with("HTTP 502")
        );
        assert!(parse(200, b"hello").unwrap_err().contains("not an answer"));
    }

    #[test]
    fn warnings_are_passed_on() {
        let body =
            br#"{"status":"success","warnings":["partial"],"data":{"resultType":"vector","result":[]}}"#;
        let reply = parse(200, body).unwrap();
        assert_eq!(reply.answer, Answer::Vector(Vec::new()));
        assert!(reply.note.unwrap().contains("partial"));
    }

    #[test]
    fn the_query_is_encoded_with_its_arguments() {
        let query: PrometheusQuery = serde_json::from_value(serde_json::json!({
            "address": "http://prom:9090/",
            "query": "sum(rate(x{version=\"{{args.canary-version}}\"}[5m]))",
            "headers": {"Authorization": "Bearer {{args.service}}"},
        }))
        .unwrap();
        let question = question(&query, &Args::built_in("shop", "v2", "v1")).unwrap();
        assert_eq!(
            question.url,
            "http://prom:9090/api/v1/query?query=sum%28rate%28x%7Bversion%3D%22v2%22%7D%5B5m%5D%29%29"
        );
        assert_eq!(question.headers[0].1, "Bearer shop");
        assert_eq!(format!("{question:?}"), "GET http://prom:9090/api/v1/query");
    }
}
