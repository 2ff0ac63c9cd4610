//! Filters of a route: fields, path prefixes, hosts and redirects, with the Gateway API's meaning.

use crate::support::{
    HEAD, Serin,
    client::{ask as ask_client, get},
    exchange,
    raw::{RawClient, RawUpstream, fields, ok},
    upstream::Upstream,
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(20);

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
    let head = heads.recv_timeout(SOON).unwrap().to_ascii_lowercase();
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
    assert!(
        heads
            .recv_timeout(SOON)
            .unwrap()
            .starts_with("GET /new?x=1 HTTP/1.1\r\n")
    );
    let (_, answer) = ask(&serin, "/plain/a", "x-debug: 1\r\n");
    let head = heads.recv_timeout(SOON).unwrap();
    assert!(
        head.starts_with("GET /plain/a ") && head.contains("x-debug: 1") && answer.contains("x-internal"),
        "{head}"
    );
}

#[test]
fn another_spelling_of_a_path_finds_the_same_rule_and_goes_on_as_it_was_written() {
    let (guarded, open) = (recorder(), recorder());
    let serin = Serin::start_with(&format!(
        "{HEAD}services:
- name: guarded
  stable: {{version: v1, endpoints: [\"http://{}\"]}}
  match:
  - path: {{prefix: /admin}}
  - path: {{exact: /caf\u{e9}}}
  - path: {{regex: '/report/[a-z]+'}}
  - path: {{prefix: /old}}
    filters: [{{urlRewrite: {{path: {{replacePrefixMatch: /new}}}}}}]
- name: open
  stable: {{version: v1, endpoints: [\"http://{}\"]}}
",
        guarded.0, open.0
    ));
    for (asked, by, got) in [
        ("/admin/a", &guarded, "/admin/a"),
        ("/%61dmin/%2e.%41", &guarded, "/%61dmin/%2e.%41"),
        ("/caf%c3%A9", &guarded, "/caf%c3%A9"),
        ("/report/%62", &guarded, "/report/%62"),
        ("/%6Fld/a%20b", &guarded, "/new/a%20b"),
        ("/old/%61", &guarded, "/new/%61"),
        ("/admin%2fa", &open, "/admin%2fa"),
        ("/%41dmin", &open, "/%41dmin"),
    ] {
        assert_eq!(ask(&serin, asked, "").0, 200, "{asked}");
        let head =
            by.1.recv_timeout(SOON)
                .unwrap_or_else(|_| panic!("{asked} went elsewhere"));
        assert!(
            head.starts_with(&format!("GET {got} HTTP/1.1\r\n")),
            "{asked}: {head}"
        );
    }
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
    crate::support::wait_for("the canary", SOON, || {
        (serin.status("shop")["phase"] == "Paused").then_some(())
    });
    ask(&serin, "/", "x-canary: always\r\n");
    let head = canary.recv_timeout(SOON).unwrap();
    assert!(!head.contains("x-canary"), "{head}");
    ask(&serin, "/", "");
    stable.recv_timeout(SOON).unwrap();
}

/// A configuration with one service for each row, chosen by `x-row`: prefix and filter.
fn table<'a>(head: &str, upstream: SocketAddr, rows: impl Iterator<Item = (&'a str, String)>) -> Serin {
    let service = |(n, (prefix, filter)): (usize, (&str, String))| {
        format!(
            "- name: s{n}\n  stable: {{version: v1, endpoints: [\"http://{upstream}\"]}}\n  match:\n\
             \x20 - path: {{prefix: {prefix}}}\n    headers: {{x-row: \"{n}\"}}\n    filters: [{{{filter}}}]\n"
        )
    };
    let services: String = rows.enumerate().map(service).collect();
    Serin::start_with(&format!("{head}services:\n{services}"))
}

/// Prefix, replacement, path, what the version gets. The first eleven are the Gateway API's own.
const PATHS: [(&str, &str, &str, &str); 15] = [
    ("/foo", "/xyz", "/foo/bar", "/xyz/bar"),
    ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
    ("/foo/", "/xyz", "/foo/bar", "/xyz/bar"),
    ("/foo/", "/xyz/", "/foo/bar", "/xyz/bar"),
    ("/foo", "/xyz", "/foo", "/xyz"),
    ("/foo", "/xyz", "/foo/", "/xyz/"),
    ("/foo", "", "/foo/bar", "/bar"),
    ("/foo", "", "/foo/", "/"),
    ("/foo", "", "/foo", "/"),
    ("/foo", "/", "/foo/", "/"),
    ("/foo", "/", "/foo", "/"),
    // What is encoded stays so, and only the prefix is touched.
    ("/foo", "/xyz", "/foo/foo/%2f?x=/foo", "/xyz/foo/%2f?x=/foo"),
    ("/foo", "/a/b", "/foo?", "/a/b?"),
    ("/foo/bar", "/x", "/foo/bar", "/x"),
    ("/", "/v2", "/a", "/v2/a"),
];

#[test]
fn a_path_is_replaced_as_the_gateway_api_has_it_down_to_the_slashes() {
    let (upstream, heads) = recorder();
    let rewrite = |with: &str| {
        format!("urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: \"{with}\"}}}}")
    };
    let rows = PATHS.iter().map(|(prefix, with, ..)| (*prefix, rewrite(with)));
    let serin = table(HEAD, upstream, rows);
    for (n, (prefix, with, path, expected)) in PATHS.iter().enumerate() {
        ask(&serin, path, &format!("x-row: {n}\r\n"));
        let head = heads.recv_timeout(SOON).unwrap();
        let line = head.lines().next().unwrap();
        assert_eq!(
            line,
            format!("GET {expected} HTTP/1.1"),
            "{path} by {prefix} -> {with}"
        );
    }
}

/// Filter, what follows the prefix `/r`, Host, more fields, status, Location.
const REDIRECTS: [(&str, &str, &str, &str, u16, &str); 23] = [
    (
        "scheme: https",
        "/a?b=c",
        "shop.test",
        "",
        302,
        "https://shop.test/r/a?b=c",
    ),
    (
        "scheme: https",
        "/",
        "shop.test:8080",
        "",
        302,
        "https://shop.test/r/",
    ),
    (
        "scheme: http, port: 8080",
        "/",
        "shop.test",
        "",
        302,
        "http://shop.test:8080/r/",
    ),
    (
        "scheme: https, port: 443",
        "/",
        "shop.test",
        "",
        302,
        "https://shop.test/r/",
    ),
    (
        "scheme: http, port: 80",
        "/",
        "shop.test:81",
        "",
        302,
        "http://shop.test/r/",
    ),
    (
        "scheme: http, port: 443",
        "/",
        "shop.test",
        "",
        302,
        "http://shop.test:443/r/",
    ),
    (
        "hostname: new.test",
        "/",
        "shop.test",
        "",
        302,
        "http://new.test/r/",
    ),
    (
        "hostname: new.test",
        "/",
        "shop.test:8080",
        "",
        302,
        "http://new.test:8080/r/",
    ),
    (
        "port: 8443",
        "/",
        "shop.test:8080",
        "",
        302,
        "http://shop.test:8443/r/",
    ),
    ("port: 80", "/", "shop.test:8080", "", 302, "http://shop.test/r/"),
    ("port: 81", "/", "[::1]:8080", "", 302, "http://[::1]:81/r/"),
    (
        "statusCode: 301, hostname: a.test",
        "/",
        "shop.test",
        "",
        301,
        "http://a.test/r/",
    ),
    (
        "statusCode: 303, hostname: a.test",
        "/",
        "shop.test",
        "",
        303,
        "http://a.test/r/",
    ),
    (
        "statusCode: 307, hostname: a.test",
        "/",
        "shop.test",
        "",
        307,
        "http://a.test/r/",
    ),
    (
        "statusCode: 308, hostname: a.test",
        "/",
        "shop.test",
        "",
        308,
        "http://a.test/r/",
    ),
    (
        "path: {replaceFullPath: /x/y}",
        "/a/b?q",
        "shop.test",
        "",
        302,
        "http://shop.test/x/y?q",
    ),
    (
        "path: {replacePrefixMatch: /x/}",
        "/a/b",
        "shop.test",
        "",
        302,
        "http://shop.test/x/a/b",
    ),
    (
        "path: {replacePrefixMatch: /}",
        "",
        "shop.test",
        "",
        302,
        "http://shop.test/",
    ),
    (
        "path: {replacePrefixMatch: \"\"}",
        "/a%3fb",
        "shop.test",
        "",
        302,
        "http://shop.test/a%3fb",
    ),
    // How it came is what a proxy in front says, when that is believed.
    (
        "hostname: a.test",
        "/",
        "shop.test",
        "x-forwarded-proto: https\r\n",
        302,
        "https://a.test/r/",
    ),
    (
        "hostname: a.test",
        "/",
        "shop.test",
        "x-forwarded-proto: HTTPS, http\r\n",
        302,
        "https://a.test/r/",
    ),
    (
        "hostname: a.test",
        "/",
        "shop.test",
        "x-forwarded-proto: gopher\r\n",
        302,
        "http://a.test/r/",
    ),
    (
        "scheme: http",
        "/",
        "shop.test",
        "x-forwarded-proto: https\r\n",
        302,
        "http://shop.test/r/",
    ),
];

#[test]
fn a_redirect_takes_from_the_request_what_it_does_not_name() {
    let (upstream, heads) = recorder();
    for trusted in [true, false] {
        let proxies = if trusted {
            "trustedProxies: [127.0.0.0/8], "
        } else {
            ""
        };
        let head = HEAD.replace("name: web, ", &format!("name: web, {proxies}"));
        let rows = REDIRECTS
            .iter()
            .map(|row| ("/r", format!("requestRedirect: {{{}}}", row.0)));
        let serin = table(&head, upstream, rows);
        for (n, (filter, path, host, more, status, location)) in REDIRECTS.iter().enumerate() {
            // Who is not trusted says nothing about how he came.
            let believed = trusted || more.is_empty() || filter.contains("scheme");
            let location = if believed {
                (*location).to_owned()
            } else {
                location.replace("https://", "http://")
            };
            // An absolute target names the host, whatever the field says.
            for (target, field) in [
                (format!("/r{path}"), *host),
                (format!("http://{host}/r{path}"), "other.test"),
            ] {
                let (got, head, body) = exchange(
                    serin.web,
                    &format!(
                        "GET {target} HTTP/1.1\r\nhost: {field}\r\nx-row: {n}\r\n{more}connection: close\r\n\r\n"
                    ),
                );
                let sent_to = fields(&head, "location");
                assert_eq!(
                    (got, sent_to),
                    (*status, vec![location.as_str()]),
                    "{filter}: {head}"
                );
                assert!(body.is_empty());
            }
        }
    }
    assert!(heads.try_recv().is_err(), "no version was asked");
}

#[test]
fn fields_are_changed_by_name_in_whatever_case_and_number_they_come() {
    let edits = "set: [{name: X-Set, value: new}, {name: x-empty, value: \"\"}], add: [{name: x-Add, value: \"b,c\"}], remove: [X-GONE, x-absent]";
    let (upstream, heads) = recorder();
    let serin = serin(
        upstream,
        &format!(
            "  filters: [{{requestHeaderModifier: {{{edits}}}}}, {{responseHeaderModifier: {{{edits}}}}}]\n"
        ),
    );
    let (_, answer) = ask(
        &serin,
        "/",
        "x-SET: one\r\nx-set: two\r\nX-ADD: a\r\nx-gone: 1\r\nX-Gone: 2\r\nx-stays: s\r\nx-empty: no\r\n",
    );
    let head = heads.recv_timeout(SOON).unwrap();
    assert_eq!(fields(&head, "x-set"), ["new"]);
    assert_eq!(fields(&head, "x-add"), ["a", "b,c"]);
    assert_eq!(fields(&head, "x-empty"), [""]);
    assert_eq!(fields(&head, "x-stays"), ["s"]);
    assert!(fields(&head, "x-gone").is_empty() && fields(&head, "x-absent").is_empty());
    assert_eq!(fields(&answer, "x-set"), ["new"]);
    assert_eq!(fields(&answer, "x-add"), ["b,c"]);
    assert_eq!(fields(&answer, "x-kept"), ["yes"]);
}

#[test]
fn a_rewritten_host_is_what_every_protocol_calls_it() {
    let (plain, frames) = (Upstream::start("v1"), Upstream::h2c("v1"));
    let more = "x-forwarded-host: liar.test\r\n";
    for upstream in [&plain, &frames] {
        let serin = Serin::start(&format!(
            "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}, filters: [{{urlRewrite: {{hostname: Inner.Test}}}}]}}]",
            upstream.url()
        ));
        // By Host, by an absolute target, by :authority.
        let lines = format!("host: shop.test:8080\r\n{more}connection: close\r\n\r\n");
        exchange(serin.web, &format!("GET /head HTTP/1.1\r\n{lines}"));
        exchange(
            serin.web,
            &format!("GET http://shop.test:8080/head HTTP/1.1\r\n{lines}"),
        );
        assert_eq!(ask_client(serin.web, true, get("/head")).unwrap().status, 200);
        let heads = upstream.heads();
        assert_eq!(heads.len(), 3);
        for (head, asked) in heads
            .iter()
            .zip(["shop.test:8080", "shop.test:8080", &serin.web.to_string()])
        {
            let lines: Vec<&str> = head.lines().collect();
            let named = lines.contains(&"host: inner.test") || lines[0].contains(" http://inner.test/head ");
            assert!(named && !head.contains("liar"), "{head}");
            assert!(
                lines.contains(&format!("x-forwarded-host: {asked}").as_str()),
                "{head}"
            );
            let others = lines
                .iter()
                .filter(|line| line.starts_with("host: ") && **line != "host: inner.test");
            assert_eq!(others.count(), 0, "{head}");
        }
    }
}

#[test]
fn an_answer_that_switches_protocols_is_changed_as_well() {
    let upstream = RawUpstream::start(|seen, stream| {
        if !seen.has("upgrade") {
            return ok(seen, stream);
        }
        let head = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nx-internal: 1\r\n\r\n";
        let _ = stream.write_all(head.as_bytes());
        crate::support::raw::Next::Close
    });
    let serin = serin(
        upstream.address,
        "  filters: [{responseHeaderModifier: {set: [{name: x-served, value: serin}], remove: [x-internal]}}]\n",
    );
    let mut client = RawClient::connect(serin.web);
    client.send("GET / HTTP/1.1\r\nhost: shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    let answer = client.answer("GET").unwrap();
    assert_eq!(answer.status, 101);
    assert_eq!(fields(&answer.head, "x-served"), ["serin"]);
    assert!(
        fields(&answer.head, "x-internal").is_empty() && fields(&answer.head, "upgrade") == ["websocket"]
    );
}
