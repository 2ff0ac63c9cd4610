//! gRPC and WebSocket with clients and servers that others have written (`tests/clients.py`).

use crate::support::{HEAD, Serin, wait_for};
use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The Python servers; they end with their input.
pub(super) struct Servers(Child);

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Servers {
    /// Starts what `clients.py` calls `mode`; its two ports.
    pub(super) fn start(mode: &str) -> (Servers, u16, u16) {
        let mut child = python(&[mode])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut said)
            .unwrap();
        let (one, two) = said.trim().split_once(' ').unwrap();
        (Servers(child), one.parse().unwrap(), two.parse().unwrap())
    }

    /// A line of their input.
    pub(super) fn tell(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
}

fn python(arguments: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/venv/bin/python");
    assert!(
        python.exists(),
        "run tests/venv first: {} is missing",
        python.display()
    );
    let mut command = Command::new(python);
    command.arg(root.join("tests/clients.py")).args(arguments);
    command
}

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
