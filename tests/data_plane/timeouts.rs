//! How long each kind of waiting may last, how much a client may use up, and what it is told then.

use crate::support::{
    Serin,
    answers::{drip, full, pieces},
    client::{Answer, ask, get as get_request, request},
    now,
    raw::RawClient,
    upstream::Upstream,
    wait_for,
};
use bytes::Bytes;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(20);

/// One service with these keys at its listener and at itself.
fn start(url: &str, listener: &str, service: &str) -> Serin {
    Serin::start_with(&format!(
        "
listeners: [{{name: web, address: \"127.0.0.1:0\"{listener}}}]
admin: {{address: \"127.0.0.1:0\"}}
services: [{{name: shop, stable: {{version: v1, endpoints: [\"{url}\"]}}{service}}}]"
    ))
}

fn rejected(serin: &Serin, reason: &str) -> f64 {
    serin.metric("serin_http_rejected_total", &[("reason", reason)])
}

fn outcome(serin: &Serin, outcome: &str) -> f64 {
    serin.metric("serin_version_outcomes_total", &[("outcome", outcome)])
}

/// Everything until the other side closes, and when that was.
fn until_closed(client: &mut TcpStream) -> (String, Instant) {
    client.set_read_timeout(Some(SOON)).unwrap();
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match client.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => all.extend_from_slice(&piece[..n]),
            Err(error) => {
                assert_eq!(
                    error.kind(),
                    std::io::ErrorKind::ConnectionReset,
                    "not closed in time"
                );
                break;
            }
        }
    }
    (String::from_utf8_lossy(&all).into_owned(), now())
}

fn connect(serin: &Serin, first: &str) -> TcpStream {
    let mut client = TcpStream::connect(serin.web).unwrap();
    client.write_all(first.as_bytes()).unwrap();
    client
}

#[test]
fn a_client_that_is_slow_with_its_first_byte_or_its_head_is_closed_and_counted() {
    let v1 = Upstream::start("v1");
    let limits = ", timeouts: {firstByte: 200ms, requestHeaders: 300ms, keepAlive: 400ms}";
    let serin = start(&v1.url(), limits, "");
    let (silent, begun) = (&mut connect(&serin, ""), now());
    let (text, at) = until_closed(silent);
    assert!(
        text.is_empty() && at >= begun + Duration::from_millis(200),
        "{text}"
    );
    wait_for("the count", SOON, || {
        (rejected(&serin, "timeout") > 0.5).then_some(())
    });

    let begun = now();
    for half in ["G", "GET / HTTP/1.1\r\nhost: a\r\n", "PRI * HTTP/2.0\r\n"] {
        let (text, at) = until_closed(&mut connect(&serin, half));
        assert!(at >= begun + Duration::from_millis(300), "{half}");
        assert!(
            half.starts_with("PRI") || text.is_empty() || text.starts_with("HTTP/1.1 408 "),
            "{text}"
        );
    }
    // A second request that only begins.
    let whole = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut second = connect(&serin, whole);
    second.read_exact(&mut [0; 1]).unwrap();
    second.write_all(b"GET / HT").unwrap();
    let (text, _) = until_closed(&mut second);
    assert!(
        text.starts_with("TTP/1.1 200 ") && text.contains("HTTP/1.1 408 "),
        "{text}"
    );
    wait_for("the count", SOON, || {
        (rejected(&serin, "timeout") > 4.5).then_some(())
    });

    // Kept alive for its time and closed without a word, which is nothing to count.
    let begun = now();
    let (text, at) = until_closed(&mut connect(&serin, whole));
    assert!(
        text.ends_with("v1") && at >= begun + Duration::from_millis(400),
        "{text}"
    );
    // Not only when another timer of the connection wakes it: the next one is ten seconds away.
    assert!(at < begun + Duration::from_secs(8), "{:?}", at - begun);
    assert!(rejected(&serin, "timeout") < 5.5);
}

#[test]
fn a_head_that_begins_within_the_bytes_of_the_request_before_has_no_more_time_than_any_other() {
    let v1 = Upstream::start("v1");
    let limits = ", timeouts: {requestHeaders: 300ms, keepAlive: 2s}";
    let serin = start(&v1.url(), limits, "");
    let begun = now();
    let whole = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let (text, at) = until_closed(&mut connect(&serin, &format!("{whole}GET / HT")));
    assert!(
        text.starts_with("HTTP/1.1 200 ") && text.contains("HTTP/1.1 408 "),
        "{text}"
    );
    assert_eq!(text.matches("HTTP/1.1 ").count(), 2, "{text}");
    assert!(at >= begun + Duration::from_millis(300) && at < begun + Duration::from_secs(2));
    wait_for("the count", SOON, || {
        (rejected(&serin, "timeout") > 0.5).then_some(())
    });

    // One that has begun nothing keeps its time, and can still be used.
    let (begun, mut idle) = (now(), connect(&serin, whole));
    idle.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let mut text = Vec::new();
    assert!(idle.read_to_end(&mut text).is_err(), "closed too early");
    idle.write_all(whole.as_bytes()).unwrap();
    let (rest, at) = until_closed(&mut idle);
    assert!(
        rest.ends_with("v1") && at >= begun + Duration::from_millis(2_700),
        "{rest}"
    );
    assert_eq!(rest.matches("HTTP/1.1 ").count(), 1, "{rest}");
    assert!(rejected(&serin, "timeout") < 1.5);
}

#[test]
fn a_version_that_is_slow_is_at_fault_and_a_slow_client_is_not() {
    let v1 = Upstream::start("v1");
    let limits = ", timeouts: {bodyIdle: 300ms, responseHeaders: 400ms, streamIdle: 400ms}";
    let serin = start(&v1.url(), limits, "");
    for (n, http2) in [(1.0, false), (2.0, true)] {
        let answer = ask(serin.web, http2, get_request("/hang")).unwrap();
        assert_eq!(answer.status, 504);
        assert!(answer.text().contains("fault: upstream"), "{}", answer.text());
        assert!((outcome(&serin, "failed") - n).abs() < 0.5);
    }
    // A response that stops in the middle is broken off, and the version's failure.
    for (n, http2) in [(3.0, false), (4.0, true)] {
        let answer = ask(serin.web, http2, get_request("/drip/5/60000")).unwrap();
        assert!(answer.status == 200 && !answer.whole, "{answer:?}");
        wait_for("the verdict", SOON, || {
            ((outcome(&serin, "failed") - n).abs() < 0.5).then_some(())
        });
    }
    // One that drips goes on for as long as it drips.
    let answer = ask(serin.web, false, get_request("/drip/12/100")).unwrap();
    assert!(answer.whole && answer.body.len() == 12, "{answer:?}");

    let head = "POST /orders HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nthree";
    let (text, _) = until_closed(&mut connect(&serin, head));
    assert!(
        text.starts_with("HTTP/1.1 408 ") && text.contains("fault: client"),
        "{text}"
    );
    wait_for("the verdict", SOON, || {
        (outcome(&serin, "canceled") > 0.5).then_some(())
    });
    assert!(outcome(&serin, "failed") < 4.5);
}

#[test]
fn the_time_to_answer_begins_when_the_request_has_been_sent() {
    let upstreams = [Upstream::start("v1"), Upstream::h2c("v1")];
    for upstream in &upstreams {
        let serin = start(
            &upstream.url(),
            ", timeouts: {responseHeaders: 400ms, bodyIdle: 10s}",
            "",
        );
        for http2 in [false, true] {
            // An upload of a second and more, to a version that answers at once when it has it.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let entered = runtime.enter();
            let body = drip(12, Duration::from_millis(100), || Bytes::from_static(b"order"));
            drop(entered);
            let mut upload = request("POST", "/echo");
            *upload.body_mut() = body;
            let answer = ask(serin.web, http2, upload).unwrap();
            assert_eq!((answer.status, answer.body.len()), (200, 60), "{}", answer.text());
            // And once it is there, the version has that time and no more.
            let mut order = request("POST", "/hang");
            *order.body_mut() = full("an order");
            assert_eq!(ask(serin.web, http2, order).unwrap().status, 504);
        }
    }
}

#[test]
fn a_whole_request_may_be_limited_before_and_after_its_head() {
    let v1 = Upstream::start("v1");
    let serin = start(&v1.url(), "", ", timeouts: {request: 500ms}");
    for http2 in [false, true] {
        assert_eq!(ask(serin.web, http2, get_request("/hang")).unwrap().status, 504);
        let answer = ask(serin.web, http2, get_request("/drip/1000/50")).unwrap();
        assert!(answer.status == 200 && !answer.whole);
        assert_eq!(ask(serin.web, http2, get_request("/")).unwrap().status, 200);
    }
}

/// An address that nobody accepts at and whose queue is full: the kernel answers nothing.
fn black_hole() -> (socket2::Socket, Vec<TcpStream>, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut queue = Vec::new();
    while let Ok(one) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        queue.push(one);
    }
    (socket, queue, address)
}

#[test]
fn a_connection_that_is_not_made_in_time_is_tried_elsewhere_and_then_told_of() {
    let (_hole, _queue, address) = black_hole();
    let hole = format!("http://{address}");
    let serin = start(&hole, "", ", timeouts: {connect: 200ms}");
    let begun = now();
    let answer = ask(serin.web, false, get_request("/")).unwrap();
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.text().contains("fault: upstream") && now() >= begun + Duration::from_millis(200));
    let attempts = serin.metric("serin_upstream_attempts_total", &[("outcome", "connect_failed")]);
    assert!(attempts > 0.5, "{attempts}");

    let v1 = Upstream::start("v1");
    let serin = start(
        &format!("{hole}\", \"{}", v1.url()),
        "",
        ", timeouts: {connect: 200ms}",
    );
    for _ in 0..20 {
        assert_eq!(ask(serin.web, false, request("POST", "/")).unwrap().status, 200);
    }
}

#[test]
fn a_client_that_reads_nothing_is_closed_after_the_write_stall() {
    let v1 = Upstream::start("v1");
    let serin = start(&v1.url(), ", timeouts: {writeStall: 400ms}", "");
    let client = connect(&serin, "GET /stream/64000000 HTTP/1.1\r\nhost: a\r\n\r\n");
    let gone = || serin.metric("serin_http_requests_total", &[("status", "499")]);
    wait_for("it to be closed", SOON, || (gone() > 0.5).then_some(()));
    assert!(outcome(&serin, "failed") < 0.5);
    drop(client);
}

#[test]
fn bodies_and_heads_beyond_the_limits_are_refused_in_both_protocols() {
    let v1 = Upstream::start("v1");
    let serin = start(
        &v1.url(),
        ", limits: {headers: 20, headerBytes: 4KiB}",
        ", limits: {body: 1KiB}",
    );
    for http2 in [false, true] {
        let of = |body| {
            let mut order = request("PUT", "/echo");
            *order.body_mut() = body;
            ask(serin.web, http2, order).unwrap().status
        };
        assert_eq!((of(full(vec![1; 1024])), of(full(vec![1; 1025]))), (200, 413));
        let piece = Bytes::from(vec![1; 512]);
        assert_eq!(of(pieces(vec![piece.clone(); 2])), 200);
        assert_eq!(of(pieces(vec![piece.clone(); 3])), 413);

        let with = |count: usize, size: usize| {
            let mut asked = get_request("/");
            for n in 0..count {
                let name: hyper::header::HeaderName = format!("x-{n}").parse().unwrap();
                asked
                    .headers_mut()
                    .insert(name, "y".repeat(size).parse().unwrap());
            }
            ask(serin.web, http2, asked).map(|answer| answer.status)
        };
        assert_eq!(with(10, 10), Ok(200));
        assert_eq!(with(3, 2_000), Ok(431), "bytes, HTTP/2: {http2}");
        assert_eq!(with(40, 1), Ok(431), "fields, HTTP/2: {http2}");
    }
    assert!(v1.requests() <= 8, "{}", v1.requests());
}

#[test]
fn more_requests_at_once_than_allowed_are_told_to_come_back() {
    let v1 = Upstream::start("v1");
    let serin = start(&v1.url(), "", ", limits: {requests: 4}");
    let web = serin.web;
    let waiting: Vec<_> = (0..4)
        .map(|_| std::thread::spawn(move || ask(web, false, get_request("/gate"))))
        .collect();
    wait_for("four in flight", SOON, || (v1.in_flight() == 4).then_some(()));
    let refused: Answer = ask(web, false, get_request("/")).unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"));
    assert!(refused.text().contains("fault: proxy"), "{}", refused.text());
    assert!(rejected(&serin, "overload") > 0.5);
    v1.open_gate();
    for waiting in waiting {
        assert_eq!(waiting.join().unwrap().unwrap().status, 200);
    }
    assert_eq!(ask(web, false, get_request("/")).unwrap().status, 200);
}

#[test]
fn an_answer_of_our_own_is_json_for_those_who_take_it_and_text_for_others() {
    let v1 = Upstream::start("v1");
    let serin = start(&v1.url(), "", ", match: [{host: shop.test}]");
    for http2 in [false, true] {
        for (accept, json) in [
            ("application/json", true),
            ("application/problem+json", true),
            ("text/html, */*", false),
        ] {
            let mut asked = get_request("/");
            asked.headers_mut().insert("accept", accept.parse().unwrap());
            let answer = ask(serin.web, http2, asked).unwrap();
            assert_eq!((answer.status, answer.header("cache-control")), (404, "no-store"));
            if json {
                assert_eq!(answer.header("content-type"), "application/problem+json");
                let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
                assert_eq!(
                    (&problem["status"], &problem["fault"]),
                    (&404.into(), &"client".into())
                );
            } else {
                assert!(answer.header("content-type").starts_with("text/plain"));
                assert!(answer.text().contains("fault: client"), "{}", answer.text());
            }
        }
    }
}

#[test]
fn what_is_too_large_about_a_head_is_said_and_counted_by_its_own_status() {
    let v1 = Upstream::start("v1");
    let serin = start(&v1.url(), ", limits: {headers: 20, headerBytes: 4KiB}", "");
    let long = |n: usize| "a".repeat(n);
    let of = |reason: &str| serin.count("serin_http_rejected_total", &[("reason", reason)]);
    for (head, status, reason) in [
        (
            format!("GET /{} HTTP/1.1\r\nhost: a", long(5_000)),
            414,
            "header_limit",
        ),
        (
            format!("GET /{} HTTP/1.1\r\nhost: a", long(70_000)),
            414,
            "header_limit",
        ),
        // Too long to be read to its end.
        (
            format!("GET /{} HTTP/1.1\r\nhost: a", long(300_000)),
            414,
            "header_limit",
        ),
        (
            format!("GET /{} HTTP/1.1\r\nhost: a\r\nx: {}", long(2_000), long(3_000)),
            431,
            "header_limit",
        ),
        (
            format!("GET / HTTP/1.1\r\nhost: a{}", "\r\nx: 1".repeat(30)),
            431,
            "header_limit",
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551614".to_owned(),
            400,
            "framing",
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551615".to_owned(),
            400,
            "framing",
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551616".to_owned(),
            400,
            "malformed",
        ),
    ] {
        for first in ["", "GET / HTTP/1.1\r\nhost: a\r\n\r\n"] {
            let before = of(reason);
            let mut client = RawClient::connect(serin.web);
            if !first.is_empty() {
                client.send(first);
                assert_eq!(client.answer("GET").unwrap().status, 200);
            }
            client.send(format!("{head}\r\n\r\n"));
            let answer = client.answer("GET").unwrap();
            let begin = &head[..30.min(head.len())];
            assert!(answer.status == status && answer.whole, "{begin}: {answer:?}");
            assert!(client.is_closed(), "{begin}");
            drop(client);
            wait_for("it to be counted", SOON, || {
                (of(reason) == before + 1).then_some(())
            });
        }
    }
    assert_eq!(serin.count("serin_http_rejected_total", &[]), 16);
}
