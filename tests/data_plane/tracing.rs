//! Trace context and spans: passed on untouched without a collector, continued and told with one.

use crate::support::{
    HEAD, Serin, authority::Authority, exchange, http::Server, recorder::recorder, wait_for,
};
use serde_json::Value;
use std::{
    net::{SocketAddr, TcpListener},
    sync::{atomic::Ordering, mpsc::Receiver},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(20);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn serin(upstream: SocketAddr, tracing: &str) -> Serin {
    Serin::start_with(&format!(
        "{HEAD}{tracing}services: [{{name: shop, stable: {{version: v1, endpoints: [\"http://{upstream}\"]}}}}]"
    ))
}

fn ask(serin: &Serin, more: &str) -> u16 {
    let request = format!("GET /a?key=geheim HTTP/1.1\r\nhost: shop.test\r\n{more}connection: close\r\n\r\n");
    exchange(serin.web, &request).0
}

/// All spans received so far and until there are `count`.
fn spans(exports: &Receiver<(String, String)>, count: usize) -> Vec<Value> {
    let mut found = Vec::new();
    wait_for("spans", SOON, || {
        while let Ok((head, body)) = exports.try_recv() {
            assert!(head.starts_with("POST /v1/traces HTTP/1.1"), "{head}");
            let export: Value = serde_json::from_str(&body).unwrap();
            let list = &export["resourceSpans"][0]["scopeSpans"][0]["spans"];
            found.extend(list.as_array().unwrap().iter().cloned());
        }
        (found.len() >= count).then_some(())
    });
    found
}

fn attribute<'v>(span: &'v Value, key: &str) -> &'v Value {
    let all = span["attributes"].as_array().unwrap();
    let one = all.iter().find(|one| one["key"] == key);
    one.map_or(&Value::Null, |one| {
        one["value"].as_object().unwrap().values().next().unwrap()
    })
}

#[test]
fn without_a_collector_the_context_passes_as_it_came() {
    let (upstream, requests) = recorder("200 OK");
    let serin = serin(upstream, "");
    for parent in [format!("00-{TRACE}-b7ad6b7169203331-01"), "anything".to_owned()] {
        ask(&serin, &format!("traceparent: {parent}\r\ntracestate: a=1\r\n"));
        let (head, _) = requests.recv().unwrap();
        assert!(
            head.contains(&format!("traceparent: {parent}\r\ntracestate: a=1\r\n")),
            "{head}"
        );
    }
    ask(&serin, "");
    assert!(!requests.recv().unwrap().0.contains("traceparent"));
}

#[test]
fn a_span_names_service_role_and_version_and_is_the_parent_of_what_the_version_does() {
    let (upstream, requests) = recorder("503 Service Unavailable");
    let (collector, exports) = recorder("200 OK");
    let serin = serin(
        upstream,
        &format!("tracing: {{otlp: {{endpoint: \"http://{collector}\"}}}}\n"),
    );
    assert_eq!(
        ask(
            &serin,
            &format!("traceparent: 00-{TRACE}-b7ad6b7169203331-03\r\ntracestate: a=1\r\n")
        ),
        503
    );
    let (head, _) = requests.recv().unwrap();
    let span = spans(&exports, 1).remove(0);
    let id = span["spanId"].as_str().unwrap();
    assert!(
        head.contains(&format!("traceparent: 00-{TRACE}-{id}-03\r\n"))
            && head.contains("tracestate: a=1\r\n"),
        "{head}"
    );
    assert_eq!(
        (&span["traceId"], &span["parentSpanId"], &span["flags"]),
        (&TRACE.into(), &"b7ad6b7169203331".into(), &3.into())
    );
    for (key, value) in [
        ("serin.service", "shop"),
        ("serin.role", "stable"),
        ("serin.version", "v1"),
        ("url.path", "/a"),
    ] {
        assert_eq!(attribute(&span, key), value, "{span}");
    }
    assert_eq!(attribute(&span, "http.response.status_code"), "503");
    assert!(
        span["status"]["code"] == 2 && !span.to_string().contains("geheim"),
        "{span}"
    );
    let time = |key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
    assert!(
        time("endTimeUnixNano") >= time("startTimeUnixNano")
            && time("startTimeUnixNano") > 1_500_000_000_000_000_000
    );
}

#[test]
fn a_parent_that_is_not_sampled_is_followed_and_a_malformed_one_replaced() {
    let (upstream, requests) = recorder("200 OK");
    let (collector, exports) = recorder("200 OK");
    let serin = serin(
        upstream,
        &format!("tracing: {{otlp: {{endpoint: \"http://{collector}\"}}}}\n"),
    );
    ask(
        &serin,
        &format!("traceparent: 00-{TRACE}-b7ad6b7169203331-00\r\n"),
    );
    let (head, _) = requests.recv().unwrap();
    assert!(
        head.contains(&format!("traceparent: 00-{TRACE}-")) && head.contains("-00\r\n"),
        "{head}"
    );
    ask(&serin, "traceparent: 00-nonsense\r\ntracestate: a=1\r\n");
    let (head, _) = requests.recv().unwrap();
    assert!(
        !head.contains("nonsense") && !head.contains("tracestate") && head.contains("traceparent: 00-"),
        "{head}"
    );
    let told = spans(&exports, 1);
    assert!(
        told.len() == 1 && told[0].get("parentSpanId").is_none(),
        "only the new trace is told: {told:?}"
    );
    let (trace, span) = (
        told[0]["traceId"].as_str().unwrap(),
        told[0]["spanId"].as_str().unwrap(),
    );
    assert!(
        told[0]["flags"] == 3 && head.contains(&format!("traceparent: 00-{trace}-{span}-03\r\n")),
        "sampled, and its id is random: {head}"
    );
}

#[test]
fn a_collector_that_is_away_costs_spans_and_no_request() {
    let (upstream, _requests) = recorder("200 OK");
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let serin = serin(
        upstream,
        &format!("tracing: {{otlp: {{endpoint: \"http://{gone}\"}}}}\n"),
    );
    for _ in 0..10 {
        assert_eq!(ask(&serin, ""), 200);
    }
    wait_for("the lost spans to be counted", SOON, || {
        (serin.metric("serin_trace_spans_dropped_total", &[]) >= 10.0).then_some(())
    });
    serin.wait_log("does not take spans, they are dropped: client error (Connect): tcp connect error: Connection refused");
}

#[test]
fn a_collector_whose_authority_is_its_own_gets_spans_by_the_ca_that_is_named() {
    let (upstream, _requests) = recorder("200 OK");
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let collector = Server::tls_at(0, &ours, &["http/1.1"]);
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, other.pem()).unwrap();
    let serin = serin(
        upstream,
        &format!(
            "tracing: {{otlp: {{endpoint: \"https://127.0.0.1:{}\", ca: \"{}\"}}}}\n",
            collector.port(),
            ca.display()
        ),
    );
    ask(&serin, "");
    // One that was believed would be used again.
    wait_for("a second try at a connection", SOON, || {
        (collector.seen.connections.load(Ordering::SeqCst) >= 2).then_some(())
    });
    assert_eq!(collector.seen.requests.load(Ordering::SeqCst), 0);
    // Another authority in the same file is another collector.
    std::fs::write(&ca, ours.pem()).unwrap();
    wait_for("a span that is taken", SOON, || {
        ask(&serin, "");
        (collector.seen.requests.load(Ordering::SeqCst) > 0).then_some(())
    });
}
