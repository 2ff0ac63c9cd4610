//! Answers that have broken proxies: each upstream's case of `tests/cases/bad_input.json`, as bytes, at the built binary.
//!
//! A case holds when the client gets what was meant for it or a 5xx, nothing that a connection brought too much or too little of
//! reaches the next request, and memory stays where it was. `bad_input` has the requests.

use super::bad_input::{LONG, MIB, ask, file, start, unescape};
use crate::support::{
    Serin,
    h2::{ACK, DATA, END_STREAM, H2, HEADERS, PING, SETTINGS, request},
    raw::{Answer, Next, RawClient, RawUpstream, Seen, fields, ok},
    wait_for,
};
use std::{
    io::Write,
    net::{TcpListener, TcpStream},
};

/// What the upstream of the answers' cases does next: its raw answer, and whether it then closes.
type Script = std::sync::Arc<std::sync::Mutex<(String, Vec<u8>)>>;

fn play(script: &Script, seen: &Seen, stream: &mut TcpStream) -> Next {
    let (name, raw) = script.lock().unwrap().clone();
    if seen.target() == "/next" {
        return ok(seen, stream);
    }
    match name.as_str() {
        "up_cut_before_status" if seen.place == 0 => return ok(seen, stream),
        // The others answer as soon as they have the head.
        "up_cut_before_status" if !seen.whole => return Next::Body,
        "up_1xx_flood" => while stream.write_all(&raw).is_ok() {},
        "up_headers_1mb" => {
            let line = format!("X-Endless: {}\r\n", "a".repeat(1000));
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
            while stream.write_all(line.as_bytes()).is_ok() {}
        }
        _ => {
            let _ = stream.write_all(&raw);
        }
    }
    let keeps = [
        "up_204_with_body",
        "up_304_cl",
        "up_http10_keepalive",
        "up_extra_bytes",
    ];
    if keeps.contains(&name.as_str()) {
        Next::Keep
    } else {
        Next::Close
    }
}

#[test]
fn no_bad_answer_reaches_a_client_or_the_next_one() {
    let script = Script::default();
    let played = script.clone();
    let upstream = RawUpstream::start(move |seen, stream| play(&played, seen, stream));
    let serin = start(&upstream, "    timeouts: {responseHeaders: 1s}");
    let file = file();
    let cases = file["upstream_cases"].as_array().unwrap();
    assert_eq!(cases.len(), 19);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        *script.lock().unwrap() = (name.to_owned(), unescape(case["raw"].as_str().unwrap()));
        // So that every case meets a connection that has served before.
        assert_eq!(ask(&serin), 200, "{name}");
        let before = (serin.resident(), upstream.count());
        answer_case(name, &serin, &upstream);
        assert!(serin.resident().saturating_sub(before.0) < 4 * MIB, "{name}");
        let used = upstream.since(before.1).last().unwrap().connection;
        let from = upstream.count();
        assert_eq!(ask(&serin), 200, "{name}: the next request");
        let next = upstream.since(from)[0].connection;
        let pooled = ["up_304_cl", "up_http10_keepalive"].contains(&name);
        assert!(pooled || next != used, "{name}: the connection was used again");
    }
    assert!(serin.metric("serin_panics_total", &[]) < 0.5);
}

/// A version that answers over HTTP/2 as the path says: its status, what it sends behind the head, and whether it then ends.
fn sends_content() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("h2c://{}", listener.local_addr().unwrap());
    let serve = |mut version: H2| {
        while let Some(frame) = version.read() {
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => drop(version.send(SETTINGS, ACK, 0, &[])),
                PING if frame.flags & ACK == 0 => drop(version.send(PING, ACK, 0, &frame.payload)),
                HEADERS => {
                    let stream = frame.stream;
                    let fields = version.decode(frame.payload, frame.flags);
                    let path = &fields.iter().find(|(name, _)| name == ":path").unwrap().1;
                    let (status, then) = path[1..].split_once('/').unwrap();
                    version.head(stream, &[(":status", status)], then == "head");
                    match then {
                        "content" => drop(version.send(DATA, END_STREAM, stream, b"more")),
                        "pieces" => drop(version.send(DATA, 0, stream, b"m")),
                        "end" => drop(version.send(DATA, END_STREAM, stream, &[])),
                        "trailers" => drop(version.head(stream, &[("x-after", "1")], true)),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // Ends with Serin's end of the connection.
            std::thread::spawn(move || serve(H2::accepted(stream.unwrap())));
        }
    });
    url
}

#[test]
fn content_where_an_answer_has_none_reaches_no_client_whatever_it_speaks() {
    let serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}, timeouts: {{responseHeaders: 2s}}}}]",
        sends_content()
    ));
    for (method, path, expected) in [
        ("GET", "/204/content", 502),
        ("GET", "/304/content", 502),
        ("HEAD", "/200/content", 502),
        ("GET", "/204/pieces", 502),
        ("GET", "/304/silence", 504),
        ("GET", "/204/end", 204),
        ("GET", "/304/end", 304),
        ("HEAD", "/200/end", 200),
        ("HEAD", "/200/trailers", 200),
        ("GET", "/204/head", 204),
        ("GET", "/200/content", 200),
    ] {
        let mut client = RawClient::connect(serin.web);
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n"));
        let over1 = client.answer(method).unwrap();
        let mut client = H2::connect(serin.web);
        client.head(1, &request(method, path), true);
        let over2 = client.response(1).unwrap();
        let both = ((over1.status, over1.whole), (over2.status, over2.reset.is_none()));
        assert_eq!(both, ((expected, true), (expected, true)), "{method} {path}");
        let has_content = expected >= 500 && method != "HEAD" || path == "/200/content" && method == "GET";
        let bodies = (!over1.body.is_empty(), !over2.body.is_empty());
        assert_eq!(bodies, (has_content, has_content), "{method} {path}");
    }
    let gone = serin.count("serin_http_requests_total", &[("status", "499")]);
    assert_eq!(gone, 0, "no client went away");
}

fn get_over(serin: &Serin, more: &str) -> (RawClient, Answer) {
    let mut client = RawClient::connect(serin.web);
    client.send(format!("GET /up HTTP/1.1\r\nHost: shop.test\r\n{more}\r\n"));
    let answer = client.answer("GET").unwrap();
    (client, answer)
}

#[expect(clippy::too_many_lines, reason = "one arm for each case")]
fn answer_case(name: &str, serin: &Serin, upstream: &RawUpstream) {
    let protocol_errors = || serin.metric("serin_upstream_attempts_total", &[("outcome", "protocol_error")]);
    let before = protocol_errors();
    let refused = |more: &str| {
        let (_, answer) = get_over(serin, more);
        assert_eq!(answer.status, 502, "{name}: {answer:?}");
        assert!(protocol_errors() > before, "{name}: counted as a protocol error");
    };
    let passed = || {
        let (_, answer) = get_over(serin, "");
        assert!(
            answer.whole && answer.head.starts_with("HTTP/1.1 "),
            "{name}: {answer:?}"
        );
        answer
    };
    match name {
        "up_cl_invalid"
        | "up_101_unasked"
        | "up_obs_fold"
        | "up_space_before_colon"
        | "up_headers_1mb"
        | "up_status_099" => refused(""),
        "up_101_wrong_protocol" => refused("Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        "up_204_with_body" => {
            let answer = passed();
            assert!(
                answer.status == 204 && fields(&answer.head, "content-length").is_empty(),
                "{answer:?}"
            );
        }
        "up_304_cl" => assert_eq!(passed().status, 304),
        "up_extra_bytes" | "up_status_200_no_reason" => assert_eq!(passed().body, b"ok"),
        "up_close_delimited" => {
            let answer = passed();
            assert!(fields(&answer.head, "transfer-encoding") == ["chunked"] && answer.body == b"hello");
        }
        "up_http10_keepalive" => {
            let answer = passed();
            assert!(answer.body == b"ok" && !fields(&answer.head, "connection").contains(&"keep-alive"));
        }
        "up_set_cookie_many" => {
            // Ours is set only while there are two versions to choose from.
            let url = upstream.url();
            let serin = start(
                upstream,
                &format!(
                    "    sticky: {{cookie: {{maxAge: 1h}}}}\n    canary: {{version: v2, endpoints: [\"{url}\"]}}"
                ),
            );
            let cookies = wait_for("the canary to be there", LONG, || {
                let (_, answer) = get_over(&serin, "");
                answer.head.contains("serin-id").then_some(answer)
            });
            let cookies = fields(&cookies.head, "set-cookie");
            assert!(
                cookies.len() == 3 && cookies[..2] == ["a=1", "b=2"],
                "{cookies:?}"
            );
        }
        "up_cut_mid_cl" => {
            let (mut client, answer) = get_over(serin, "");
            assert!(answer.status == 200 && !answer.whole && client.is_closed());
            let mut h2 = H2::connect(serin.web);
            h2.head(1, &request("GET", "/up"), true);
            assert_eq!(
                h2.response(1).unwrap().reset,
                Some(2),
                "INTERNAL_ERROR, never a clean end"
            );
        }
        "up_cut_before_status" => {
            // One client throughout: each worker has connections of its own. Closed instead of answered on a connection that
            // has served before, and asked again on a new one.
            let mut client = RawClient::connect(serin.web);
            let mut said = |method: &str, rest: &str| {
                client.send(format!("{method} {rest}"));
                client.answer(method).unwrap()
            };
            assert_eq!(
                said("GET", "/next HTTP/1.1\r\nHost: shop.test\r\n\r\n").status,
                200
            );
            assert_eq!(said("GET", "/up HTTP/1.1\r\nHost: shop.test\r\n\r\n").body, b"ok");
            assert_eq!(
                upstream
                    .since(0)
                    .iter()
                    .rev()
                    .take_while(|seen| seen.target() == "/up")
                    .count(),
                2
            );
            let post = "/up HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 1\r\n\r\nx";
            assert_eq!(said("POST", post).status, 502);
        }
        "up_1xx_flood" => assert_eq!(get_over(serin, "").1.status, 504),
        "up_early_413" => {
            let mut client = RawClient::connect(serin.web);
            client.send("POST /up HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 8000000\r\n\r\n");
            let piece = vec![b'x'; 16 * 1024];
            for _ in 0..488 {
                if !client.send(&piece) {
                    break;
                }
            }
            assert_eq!(client.answer("POST").unwrap().status, 413);
        }
        "up_trailers" => {
            let (_, answer) = get_over(serin, "TE: trailers\r\nConnection: TE\r\n");
            assert!(
                answer.body == b"ok" && answer.trailers.contains("grpc-status: 13"),
                "{answer:?}"
            );
            let mut h2 = H2::connect(serin.web);
            h2.head(1, &request("GET", "/up"), true);
            let response = h2.response(1).unwrap();
            assert!(
                response
                    .trailers
                    .contains(&("grpc-status".to_owned(), "13".to_owned())),
                "{response:?}"
            );
        }
        unknown => panic!("{unknown}: a case that this test does not know"),
    }
}
