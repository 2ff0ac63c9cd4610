//! gRPC and WebSocket with clients and servers that others have written (`tests/clients.py`).

use crate::support::{
    HEAD, Serin,
    python::{Servers, python},
    wait_for,
};
use std::{net::TcpListener, time::Duration};

#[test]
fn grpc_and_websocket_clients_notice_nothing() {
    let (_servers, grpc, websocket) = Servers::start("serve");
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let serin = Serin::start_with(&format!(
        "{HEAD}
services:
  - name: echo
    match: [{{path: {{prefix: /echo.Echo}}}}]
    stable: {{version: v1, endpoints: [\"h2c://127.0.0.1:{grpc}\"]}}
  - name: dead
    match: [{{path: {{prefix: /dead.Dead}}}}]
    stable: {{version: v1, endpoints: [\"h2c://{dead}\"]}}
  - name: talk
    match: [{{path: {{exact: /ws}}}}]
    stable: {{version: v1, endpoints: [\"http://127.0.0.1:{websocket}\"]}}
"
    ));
    let driven = python(&["drive", &serin.web.port().to_string()])
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        driven.status.success(),
        "{}{}",
        text(&driven.stdout),
        text(&driven.stderr)
    );

    let calls = |service: &str, code: &str| {
        serin.metric(
            "serin_grpc_responses_total",
            &[("serin_service", service), ("code", code)],
        )
    };
    let outcomes = |service: &str, outcome: &str| {
        serin.metric(
            "serin_version_outcomes_total",
            &[("serin_service", service), ("outcome", outcome)],
        )
    };
    wait_for("everything to be recorded", Duration::from_secs(20), || {
        (serin.metric("serin_http_requests_in_flight", &[]) < 0.5).then_some(())
    });
    assert!(calls("echo", "0") > 254.5);
    // 13: INTERNAL, by the version; HTTP said 200, and the verdict is a failure all the same. 1: CANCELLED.
    assert!((calls("echo", "13") - 1.0).abs() < 0.5 && (outcomes("echo", "failed") - 1.0).abs() < 0.5);
    assert!(calls("echo", "1") > 0.5);
    // 14: UNAVAILABLE, said by Serin.
    assert!(calls("dead", "14") > 0.5 && outcomes("dead", "failed") > 0.5);
    let switched = serin.metric(
        "serin_http_requests_total",
        &[("serin_service", "talk"), ("status", "101")],
    );
    assert!((switched - 6.0).abs() < 0.5, "{switched}");
    assert!(serin.metric("serin_panics_total", &[]) < 0.5);
}
