//! HTTP/1.1 and HTTP/2 without TLS on either side, with every kind of body, and what goes wrong on the way.

use crate::support::{
    HEAD, Serin,
    answers::{Payload, full, pieces},
    client::{Answer, Plan, ask, get as get_request, request},
    full_form, now, say,
    upstream::Upstream,
    wait_for,
};
use bytes::Bytes;
use hyper::{Request, body::Body};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(20);

fn in_front_of(url: &str, more: &str) -> Serin {
    Serin::start_with(&format!(
        "{HEAD}services: [{{name: shop, stable: {{version: v1, endpoints: [\"{url}\"]}}{more}}}]"
    ))
}

fn pattern(length: usize) -> Bytes {
    (0..length)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect::<Vec<u8>>()
        .into()
}

fn with_body(method: &str, path: &str, body: Payload) -> Request<Payload> {
    let mut request = request(method, path);
    *request.body_mut() = body;
    request
}

/// Pieces of unknown length together.
fn in_pieces(whole: &Bytes) -> Payload {
    let mut rest = whole.clone();
    let mut all = Vec::new();
    while !rest.is_empty() {
        all.push(rest.split_to(rest.len().min(10_000)));
    }
    pieces(all)
}

/// Every combination of protocols: one upstream of each kind, asked in both ways.
fn in_every_combination(check: impl Fn(SocketAddr, bool, &str)) {
    for upstream in [Upstream::start("v1"), Upstream::h2c("v1")] {
        let serin = in_front_of(&upstream.url(), "");
        for http2 in [false, true] {
            let client = if http2 { "HTTP/2" } else { "HTTP/1.1" };
            check(serin.web, http2, &format!("{client} to {}", upstream.url()));
        }
    }
}

#[test]
fn bodies_of_every_size_and_framing_pass_unchanged_both_ways() {
    in_every_combination(|to, http2, how| {
        for length in [0, 10, 1 << 20] {
            for method in ["POST", "PUT", "PATCH", "DELETE", "BREW"] {
                let body = pattern(length);
                let sent = if length == 0 {
                    Bytes::from("v1")
                } else {
                    body.clone()
                };
                let known = ask(to, http2, with_body(method, "/echo", full(body.clone()))).unwrap();
                assert!(
                    known.status == 200 && known.whole && known.body == sent,
                    "{how} {method} {length}"
                );
                if length < 1 << 20 || method == "POST" {
                    let unknown = ask(to, http2, with_body(method, "/echo", in_pieces(&body))).unwrap();
                    assert!(unknown.status == 200 && unknown.whole, "{how} {method} {length}");
                    assert!(unknown.body == sent, "{how} {method} {length} in pieces");
                }
            }
        }
        // A GET may have a body, of unknown length too.
        let body = pattern(3_000);
        for payload in [full(body.clone()), in_pieces(&body)] {
            let mut asked = with_body("GET", "/echo", payload);
            if !http2 && asked.body().size_hint().exact().is_none() {
                // This client would leave the body out.
                let chunked = "chunked".parse().unwrap();
                asked.headers_mut().insert("transfer-encoding", chunked);
            }
            let answer = ask(to, http2, asked).unwrap();
            assert!(answer.status == 200 && answer.body == body, "{how}");
        }
        for (path, length) in [
            ("/bytes/0", 0),
            ("/bytes/1048576", 1 << 20),
            ("/stream/1048576", 1 << 20),
        ] {
            let answer = ask(to, http2, get_request(path)).unwrap();
            assert!(answer.whole && answer.body.len() == length, "{how} {path}");
        }
    });
}

#[test]
fn answers_without_a_body_have_none_and_heads_keep_their_length() {
    in_every_combination(|to, http2, how| {
        let of = |method: &str, path: &str| -> Answer { ask(to, http2, request(method, path)).unwrap() };
        let head = of("HEAD", "/bytes/1234");
        assert!(head.status == 200 && head.whole && head.body.is_empty(), "{how}");
        assert_eq!(head.header("content-length"), "1234", "{how}");
        for status in [204, 304] {
            let answer = of("GET", &format!("/status/{status}"));
            assert!(
                answer.status == status && answer.whole && answer.body.is_empty(),
                "{how} {status}"
            );
        }
        assert!(
            !of("GET", "/status/204").headers.contains_key("content-length"),
            "{how}"
        );
        let missing = of("HEAD", "/status/404");
        assert!(
            missing.status == 404 && missing.body.is_empty() && missing.whole,
            "{how}"
        );
        // The connection is in step after all of that.
        let seen = Plan::new(to, 1).total(30).requests(|n| {
            let (method, path) = [
                ("HEAD", "/bytes/99"),
                ("GET", "/status/204"),
                ("GET", "/status/304"),
            ][usize::try_from(n % 3).unwrap()];
            request(method, path)
        });
        let seen = if http2 { seen.http2(1) } else { seen }.start().finish();
        seen.assert_clean();
        assert_eq!(
            (seen.total(), seen.connections),
            (30, 1),
            "{how}: {:?}",
            seen.answers
        );
    });
}

#[test]
fn our_own_answer_to_a_head_has_no_body_in_either_protocol() {
    let upstream = Upstream::start("v1");
    let serin = in_front_of(&upstream.url(), ", match: [{host: shop.test}]");
    for http2 in [false, true] {
        let answer = ask(serin.web, http2, request("HEAD", "/")).unwrap();
        assert!(
            answer.status == 404 && answer.whole && answer.body.is_empty(),
            "{answer:?}"
        );
    }
}

#[test]
fn an_answer_that_breaks_off_never_looks_whole() {
    in_every_combination(|to, http2, how| {
        let answer = ask(to, http2, get_request("/half")).unwrap();
        assert!(
            answer.status == 200 && !answer.whole,
            "{how}: half an answer passed for a whole one: {answer:?}"
        );
        assert_eq!(answer.text(), "half");
    });
}

/// The version closes a connection whose upload it has not read, without a word of warning: a POST that came over it then would
/// be lost and must not be sent again. So each has a connection of its own.
#[test]
fn an_early_answer_arrives_though_the_upload_was_not_read() {
    for body in [|| full(pattern(100_000)), || in_pieces(&pattern(100_000))] {
        for client in [false, true] {
            in_every_combination(|to, http2, how| {
                if http2 == client {
                    let answer = ask(to, http2, with_body("POST", "/early", body())).unwrap();
                    assert_eq!((answer.status, answer.text()), (200, "v1".to_owned()), "{how}");
                }
            });
        }
    }
}

#[test]
fn a_client_that_goes_away_frees_the_version_at_once() {
    for upstream in [Upstream::start("v1"), Upstream::h2c("v1")] {
        let serin = in_front_of(&upstream.url(), "");
        for http2 in [false, true] {
            let plan = Plan::new(serin.web, 4).requests(|_| get_request("/hang"));
            let clients = if http2 { plan.http2(3) } else { plan };
            let wanted = if http2 { 12 } else { 4 };
            let clients = clients.start();
            wait_for("all in flight", SOON, || {
                (upstream.in_flight() == wanted).then_some(())
            });
            clients.abandon();
            wait_for("none in flight", SOON, || {
                (upstream.in_flight() == 0).then_some(())
            });
        }
        // In the middle of an upload.
        let mut client = TcpStream::connect(serin.web).unwrap();
        client
            .write_all(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nhalf")
            .unwrap();
        wait_for("the upload to begin", SOON, || {
            (upstream.in_flight() == 1).then_some(())
        });
        drop(client);
        wait_for("its end", SOON, || (upstream.in_flight() == 0).then_some(()));
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn a_reader_that_does_not_read_costs_no_memory_and_gets_everything_later() {
    for upstream in [Upstream::start("v1"), Upstream::h2c("v1")] {
        let serin = in_front_of(&upstream.url(), "");
        ask(serin.web, false, get_request("/stream/1000000")).unwrap();
        let before = serin.resident();
        let mut clients: Vec<TcpStream> = (0..8)
            .map(|_| {
                let mut client = TcpStream::connect(serin.web).unwrap();
                client
                    .write_all(b"GET /stream/64000000 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                    .unwrap();
                client
            })
            .collect();
        let sent = || serin.metric("serin_http_response_first_byte_seconds_count", &[]);
        wait_for("all heads", SOON, || (sent() > 8.5).then_some(()));
        serin.standstill();
        let grown = serin.resident().saturating_sub(before);
        assert!(
            grown < 8 * MIB,
            "{grown} bytes more for eight stalled clients, {}",
            upstream.url()
        );
        let mut whole = Vec::new();
        clients[0]
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        clients[0].read_to_end(&mut whole).unwrap();
        assert!(whole.len() > 64_000_000, "{}", whole.len());
    }
}

#[test]
fn an_upload_that_the_version_does_not_take_costs_no_memory_and_arrives_later() {
    for upstream in [Upstream::start("v1"), Upstream::h2c("v1")] {
        let serin = in_front_of(&upstream.url(), "");
        ask(
            serin.web,
            false,
            with_body("POST", "/echo", full(pattern(1_000_000))),
        )
        .unwrap();
        let before = serin.resident();
        let to = serin.web;
        let uploads: Vec<_> = [false, true, false, true]
            .map(|http2| {
                let block = pattern(16_000);
                let body = pieces((0..2_000).map(|_| block.clone()).collect());
                std::thread::spawn(move || ask(to, http2, with_body("POST", "/stuck", body)))
            })
            .into_iter()
            .collect();
        wait_for("all in flight", SOON, || {
            (upstream.in_flight() == 4).then_some(())
        });
        let (mut last, mut still) = (0, 0);
        wait_for("the standstill", SOON, || {
            let now = serin.resident();
            still = if now <= last { still + 1 } else { 0 };
            last = now;
            (still > 100).then_some(())
        });
        let grown = serin.resident().saturating_sub(before);
        assert!(
            grown < 8 * MIB,
            "{grown} bytes more for four stalled uploads, {}",
            upstream.url()
        );
        upstream.open_gate();
        for upload in uploads {
            let answer = upload.join().unwrap().unwrap();
            assert_eq!((answer.status, answer.text()), (200, "32000000".to_owned()));
        }
    }
}

/// A version that closes each connection after it was idle for a time of its own, from 1 to 40 ms: whenever one is used
/// again, some of them close just then. It keeps nothing of what it has seen, so that a million requests are no matter.
fn hasty() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (number, stream) in (0u64..).zip(listener.incoming()) {
            let Ok(mut stream) = stream else { return };
            let idle = Duration::from_millis(1 + number * 7 % 40);
            std::thread::spawn(move || {
                // A request is on its way when somebody connects; only then it is idle.
                stream.set_read_timeout(Some(SOON)).unwrap();
                let mut head = [0; 4096];
                // A GET is one segment, and the next comes when this one is answered.
                while matches!(stream.read(&mut head), Ok(read) if head[..read].ends_with(b"\r\n\r\n")) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-version: v1\r\n\r\nok";
                    if stream.write_all(answer).is_err() {
                        return;
                    }
                    stream.set_read_timeout(Some(idle)).unwrap();
                }
            });
        }
    });
    address
}

#[test]
fn a_version_that_closes_idle_connections_as_they_are_reused_costs_no_get_an_error() {
    let serin = in_front_of(&format!("http://{}", hasty()), "");
    let begun = now();
    let clients = usize::try_from(full_form(16, 64)).unwrap();
    let (rounds, each) = (full_form(1, 20), full_form(1_000, 50_000));
    for _ in 0..rounds {
        let plan = Plan::new(serin.web, clients).total(each);
        let seen = plan.pause(Duration::from_millis(10)).start().finish();
        seen.assert_clean();
        assert_eq!(seen.total(), each);
    }
    let total = rounds * each;
    let resets = serin.count("serin_upstream_attempts_total", &[("outcome", "reset")]);
    say(&format!(
        "keep-alive race: {total} GETs in {:?}, 0 errors, {resets} upstream resets survived",
        begun.elapsed(),
    ));
    // Nobody closes what has rested for some milliseconds, unless something is wrong: a POST would have been lost.
    let failed = serin.count("serin_version_outcomes_total", &[("outcome", "failed")]);
    assert_eq!(failed, resets);
}

#[test]
fn a_version_that_recycles_its_connections_costs_nobody_an_error() {
    for upstream in [Upstream::start("v1"), Upstream::h2c("v1")] {
        upstream.recycle_after(10);
        let serin = in_front_of(&upstream.url(), "");
        let plan = Plan::new(serin.web, 8).total(2_000);
        let seen = plan
            .requests(|n| with_body(if n % 2 == 0 { "GET" } else { "POST" }, "/echo", full("an order")))
            .start()
            .finish();
        seen.assert_clean();
        assert_eq!(seen.total(), 2_000);
        assert!(upstream.connections() > 20, "{}", upstream.connections());
    }
}

/// What a client of HTTP/1.0 gets for these bytes, until the connection closes.
fn http10(to: SocketAddr, text: &str) -> String {
    let mut client = TcpStream::connect(to).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    client.write_all(text.as_bytes()).unwrap();
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    String::from_utf8(all).unwrap()
}

#[test]
fn clients_of_http_1_0_are_served_without_chunks_and_without_a_host() {
    for upstream in [Upstream::start("v1"), Upstream::h2c("v1")] {
        let serin = in_front_of(&upstream.url(), "");
        for host in ["", "Host: shop.test\r\n"] {
            let answer = http10(serin.web, &format!("GET /orders HTTP/1.0\r\n{host}\r\n"));
            assert!(
                answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("\r\n\r\nv1"),
                "{answer}"
            );
            let answer = http10(serin.web, &format!("GET /stream/50000 HTTP/1.0\r\n{host}\r\n"));
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(
                !head.contains("transfer-encoding") && body.len() == 50_000,
                "{head}"
            );
        }
        // Kept open only when asked for.
        let twice = "GET /orders HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /orders HTTP/1.0\r\n\r\n";
        let answers = http10(serin.web, twice);
        assert_eq!(answers.matches("HTTP/1.0 200 ").count(), 2, "{answers}");
        let head = http10(serin.web, "GET /head HTTP/1.0\r\n\r\n");
        assert!(head.contains("via: 1.0 serin"), "{head}");
    }
}
