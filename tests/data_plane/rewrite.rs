//! Filters of a route: fields, path prefixes, hosts and redirects, with the Gateway API's meaning.

use crate::support::{HEAD, Serin, exchange};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::mpsc::{Receiver, channel},
};

/// A version that shows the head it got, and answers with a field of its own.
fn recorder() -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                head.push(byte[0]);
            }
            let answer = "HTTP/1.1 200 OK\r\nx-internal: secret\r\nx-kept: yes\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
            let _ = stream.write_all(answer.as_bytes());
            // The test is over when nobody listens.
            if tell.send(String::from_utf8_lossy(&head).into_owned()).is_err() {
                return;
            }
        }
    });
    (address, told)
}

fn serin(upstream: SocketAddr, rules: &str) -> Serin {
    Serin::start_with(&format!(
        "{HEAD}services:\n- name: shop\n  stable: {{version: v1, endpoints: [\"http://{upstream}\"]}}\n{rules}"
    ))
}

fn ask(serin: &Serin, target: &str, more: &str) -> (u16, String) {
    let request = format!("GET {target} HTTP/1.1\r\nhost: shop.test:8080\r\n{more}connection: close\r\n\r\n");
    let (status, head, _) = exchange(serin.web, &request);
    (status, head.to_ascii_lowercase())
}

#[test]
fn fields_are_set_added_and_removed_both_ways_and_the_prefix_and_host_are_replaced() {
    let (upstream, heads) = recorder();
    let serin = serin(
        upstream,
        "  match:
  - path: {prefix: /shop}
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: X-Env, value: prod}]
        add: [{name: x-tag, value: b}]
        remove: [x-debug]
    - responseHeaderModifier: {set: [{name: x-served, value: serin}], remove: [x-internal]}
    - urlRewrite: {hostname: inner.test, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}
  - path: {exact: /old}
    filters: [{urlRewrite: {path: {replaceFullPath: /new}}}]
  - path: {prefix: /plain}
",
    );
    let (status, answer) = ask(
        &serin,
        "/shop/cart?q=1&r=/shop",
        "x-env: dev\r\nx-env: dev\r\nx-tag: a\r\nx-debug: 1\r\n",
    );
    let head = heads.recv().unwrap().to_ascii_lowercase();
    assert_eq!(status, 200);
    assert!(
        head.starts_with("get /v2/cart?q=1&r=/shop http/1.1\r\n"),
        "{head}"
    );
    assert!(
        head.contains("host: inner.test\r\n") && head.contains("x-forwarded-host: shop.test:8080\r\n"),
        "{head}"
    );
    assert!(
        head.matches("x-env: ").count() == 1 && head.contains("x-env: prod\r\n"),
        "{head}"
    );
    assert!(
        head.contains("x-tag: a\r\n") && head.contains("x-tag: b\r\n") && !head.contains("x-debug"),
        "{head}"
    );
    assert!(
        answer.contains("x-served: serin")
            && answer.contains("x-kept: yes")
            && !answer.contains("x-internal"),
        "{answer}"
    );

    ask(&serin, "/old?x=1", "");
    assert!(heads.recv().unwrap().starts_with("GET /new?x=1 HTTP/1.1\r\n"));
    let (_, answer) = ask(&serin, "/plain/a", "x-debug: 1\r\n");
    let head = heads.recv().unwrap();
    assert!(
        head.starts_with("GET /plain/a ") && head.contains("x-debug: 1") && answer.contains("x-internal"),
        "{head}"
    );
}

#[test]
fn a_redirect_reaches_no_version_and_changes_only_what_it_names() {
    let (upstream, heads) = recorder();
    let serin = serin(
        upstream,
        "  match:
  - host: shop.test
    path: {prefix: /secure}
    filters: [{requestRedirect: {scheme: https, statusCode: 301}}]
  - path: {prefix: /moved}
    filters: [{requestRedirect: {hostname: new.test, port: 8443, path: {replacePrefixMatch: /}}}]
  - path: {prefix: /here}
    filters: [{requestRedirect: {path: {replaceFullPath: /there}, statusCode: 308}}]
",
    );
    for (target, status, location) in [
        ("/secure/a?b=c", 301, "https://shop.test/secure/a?b=c"),
        ("/moved/a/b", 302, "http://new.test:8443/a/b"),
        ("/moved", 302, "http://new.test:8443/"),
        ("/here?q", 308, "http://shop.test:8080/there?q"),
    ] {
        let (got, head) = ask(&serin, target, "");
        assert!(
            got == status && head.contains(&format!("location: {location}\r\n")),
            "{target}: {head}"
        );
    }
    assert!(heads.try_recv().is_err(), "no version was asked");
    assert!(serin.metric("serin_http_rejected_total", &[("reason", "redirect")]) >= 4.0);
}

#[test]
fn a_rewritten_service_is_still_forced_and_stuck_by_what_the_client_sent() {
    let ((one, stable), (two, canary)) = (recorder(), recorder());
    let serin = serin(
        one,
        &format!(
            "  canary: {{version: v2, endpoints: [\"http://{two}\"]}}
  force: {{header: x-canary}}
  filters: [{{requestHeaderModifier: {{remove: [x-canary]}}}}]
  strategy: {{canary: {{steps: [{{setWeight: 0}}, {{pause: {{}}}}]}}}}
"
        ),
    );
    crate::support::wait_for("the canary", std::time::Duration::from_secs(20), || {
        (serin.status("shop")["phase"] == "Paused").then_some(())
    });
    ask(&serin, "/", "x-canary: always\r\n");
    let head = canary.recv().unwrap();
    assert!(!head.contains("x-canary"), "{head}");
    ask(&serin, "/", "");
    stable.recv().unwrap();
}
