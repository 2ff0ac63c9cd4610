//! Bodies that are not simply there: waited for, answered early, endless, followed by trailers.

use crate::support::{
    HEAD, Serin,
    client::{ask, get},
    h2::{DATA, H2, HEADERS, RST_STREAM, request},
    http::{Server, Speaks},
    now,
    raw::{Next, RawClient, RawUpstream, Seen, fields, ok},
    wait_for,
};
use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, atomic::Ordering, mpsc},
    time::Duration,
};

const LONG: Duration = Duration::from_secs(20);

fn start(upstream: &RawUpstream, more: &str) -> Serin {
    Serin::start_with(&format!(
        "{HEAD}
services:
  - name: shop
    stable: {{version: v1, endpoints: [\"{}\"]}}
{more}",
        upstream.url()
    ))
}

fn say(stream: &mut TcpStream, text: &str) {
    let _ = stream.write_all(text.as_bytes());
}

const WAITS: &str =
    "POST /a HTTP/1.1\r\nHost: shop.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";

#[test]
fn a_client_that_waits_for_100_waits_for_the_version() {
    let upstream = RawUpstream::start(|seen, stream| {
        if !seen.whole {
            say(stream, "HTTP/1.1 100 Continue\r\n\r\n");
        }
        ok(seen, stream)
    });
    let serin = start(&upstream, "");
    let mut client = RawClient::connect(serin.web);
    client.send(WAITS);
    assert_eq!(client.answer("POST").unwrap().status, 100);
    client.send("hello");
    assert_eq!(client.answer("POST").unwrap().status, 200);
    let seen = upstream.since(0);
    assert!(
        seen[0].all("expect") == ["100-continue"] && seen[0].body == b"hello",
        "{seen:?}"
    );
    // The connection is as good as before.
    client.send("GET /b HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    assert_eq!(client.answer("GET").unwrap().status, 200);
}

#[test]
fn a_final_answer_instead_of_100_is_passed_on_and_no_body_is_asked_for() {
    let upstream = RawUpstream::start(|seen: &Seen, stream: &mut TcpStream| {
        if seen.method() == "GET" {
            return ok(seen, stream);
        }
        say(stream, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno");
        Next::Body
    });
    let serin = start(&upstream, "");
    let mut client = RawClient::connect(serin.web);
    client.send(WAITS);
    let answer = client.answer("POST").unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (401, &b"no"[..]));
    // Either this connection is closed, or what follows is read as a new request; never as that body.
    client.send("GET /b HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    assert!(client.answer("GET").is_none_or(|answer| answer.status == 200));
    let mut next = RawClient::connect(serin.web);
    next.send("GET /c HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    assert_eq!(next.answer("GET").unwrap().status, 200);
    assert!(upstream.since(0).iter().all(|seen| seen.body.is_empty()));
}

#[test]
fn a_version_that_never_says_100_still_gets_the_body() {
    let upstream = RawUpstream::start(ok);
    let serin = start(&upstream, "");
    let mut client = RawClient::connect(serin.web);
    client.send(WAITS);
    assert_eq!(client.answer("POST").unwrap().status, 100);
    client.send("hello");
    assert_eq!(client.answer("POST").unwrap().status, 200);
    assert_eq!(upstream.since(0)[0].body, b"hello");
}

#[test]
fn a_version_that_never_says_100_is_waited_for_once() {
    let upstream = RawUpstream::start(ok);
    let serin = start(&upstream, "");
    let mut client = RawClient::connect(serin.web);
    let begun = now();
    for _ in 0..11 {
        client.send(WAITS);
        assert_eq!(client.answer("POST").unwrap().status, 100);
        client.send("hello");
        assert_eq!(client.answer("POST").unwrap().status, 200);
    }
    // The first one waits a second.
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    let seen = upstream.since(0);
    assert!(
        seen.iter()
            .all(|one| one.body == b"hello" && one.all("expect") == ["100-continue"])
    );
}

#[test]
fn trailers_pass_both_ways_when_they_are_announced() {
    let upstream = RawUpstream::start(|seen, stream| {
        if !seen.whole {
            return Next::Body;
        }
        say(
            stream,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
        );
        Next::Keep
    });
    let serin = start(&upstream, "");
    let mut client = RawClient::connect(serin.web);
    let head = "POST /a HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\nTrailer: x-mine\r\n";
    let body = "5\r\nhello\r\n0\r\nx-mine: 1\r\nhost: evil.test\r\n\r\n";
    client.send(format!("{head}TE: trailers\r\nConnection: TE\r\n\r\n{body}"));
    assert_eq!(client.answer("POST").unwrap().trailers, "x-sum: 7\r\n");
    assert_eq!(upstream.since(0)[0].trailers, "x-mine: 1\r\n");
    // A client that has not said that it understands them gets none.
    client.send(format!("{head}\r\n{body}"));
    let answer = client.answer("POST").unwrap();
    assert_eq!(
        (answer.trailers.as_str(), answer.body.as_slice()),
        ("", &b"ok"[..])
    );
    let mut h2 = H2::connect(serin.web);
    h2.head(1, &request("GET", "/a"), true);
    assert_eq!(
        h2.response(1).unwrap().trailers,
        [("x-sum".to_owned(), "7".to_owned())]
    );
}

#[test]
fn an_event_arrives_before_the_next_one_is_there() {
    let (told, arrived) = mpsc::channel::<()>();
    let arrived = Mutex::new(arrived);
    let upstream = RawUpstream::start(move |_, stream| {
        say(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
        );
        let _ = arrived.lock().unwrap().recv_timeout(LONG);
        say(stream, "9\r\ndata: 2\n\n\r\n0\r\n\r\n");
        Next::Keep
    });
    let serin = start(&upstream, "");
    let mut client = RawClient::connect(serin.web);
    client.send("GET /events HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    client.reader.until(b"data: 1\n\n").unwrap();
    told.send(()).unwrap();
    client.reader.until(b"data: 2\n\n").unwrap();
    client.reader.until(b"0\r\n\r\n").unwrap();
}

/// Sends a large body and reads the answer only when all of it is sent or cannot be.
fn upload(serin: &Serin, length: usize) -> (RawClient, u16) {
    let mut client = RawClient::connect(serin.web);
    client.send(format!(
        "PUT /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {length}\r\n\r\n"
    ));
    let piece = vec![b'x'; 16 * 1024];
    for _ in 0..length / piece.len() {
        if !client.send(&piece) {
            break;
        }
    }
    let status = client.answer("PUT").map_or(0, |answer| answer.status);
    (client, status)
}

#[test]
fn our_own_refusal_reaches_a_client_that_is_still_sending() {
    let upstream = RawUpstream::start(ok);
    let serin = start(&upstream, "    limits: {body: 1KiB}");
    // As much as a client sends before it looks, twice what fits into the sockets' buffers on the way would be lost.
    let (mut client, status) = upload(&serin, 64 * 1024);
    assert_eq!(status, 413);
    assert!(client.is_closed());
    assert_eq!(upstream.count(), 0);
    assert!(serin.metric("serin_http_rejected_total", &[("reason", "body_limit")]) > 0.5);
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending_and_its_upload_ends() {
    // It answers and reads on, for ever if it must.
    let upstream = RawUpstream::start(|seen, stream| {
        if seen.method() != "PUT" {
            return ok(seen, stream);
        }
        if !seen.whole {
            say(stream, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
        }
        Next::Body
    });
    let serin = start(&upstream, "");
    let (_client, status) = upload(&serin, 32 * 1024 * 1024);
    assert_eq!(status, 403);
    wait_for("the upload to be cut off", LONG, || {
        (serin.metric("serin_http_requests_in_flight", &[]) < 0.5).then_some(())
    });
    // A small rest is read, and the connection goes on.
    let mut client = RawClient::connect(serin.web);
    client.send("PUT /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 10\r\n\r\nhello");
    assert_eq!(client.answer("PUT").unwrap().status, 403);
    client.send("worldGET /b HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    assert!(client.answer("GET").is_none_or(|answer| answer.status == 200));
}

#[test]
fn a_connection_whose_upload_was_answered_early_carries_nothing_else() {
    // It answers without a look at the body, and closes a moment later with all of that unread.
    let upstream = RawUpstream::start(|seen, stream| {
        if seen.target() != "/early" {
            return ok(seen, stream);
        }
        say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        std::thread::park_timeout(Duration::from_secs(1));
        Next::Close
    });
    let serin = start(&upstream, "");
    for head in [
        "Content-Length: 10\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let mut client = RawClient::connect(serin.web);
        client.send(format!("POST /early HTTP/1.1\r\nHost: shop.test\r\n{head}"));
        assert_eq!(client.answer("POST").unwrap().status, 200);
        client.send(if head.starts_with('T') {
            "0\r\n\r\n"
        } else {
            "world"
        });
        // The client's connection goes on when the upload has ended.
        client.send("GET /a HTTP/1.1\r\nHost: shop.test\r\n\r\n");
        assert_eq!(client.answer("GET").unwrap().status, 200);
        // One that must not be sent twice.
        client.send("POST /b HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 1\r\n\r\nx");
        assert_eq!(client.answer("POST").unwrap().status, 200);
    }
    let of_early = |seen: &Seen| seen.target() == "/early";
    let seen = upstream.since(0);
    let alone = seen.iter().filter(|seen| of_early(seen)).all(|early| {
        let same = |other: &&Seen| other.connection == early.connection;
        seen.iter().filter(same).all(|other| other.place <= early.place)
    });
    assert!(alone, "{seen:?}");
}

#[test]
fn an_answer_in_two_codings_or_one_that_nobody_takes_off_is_refused() {
    let fields_of = Arc::new(Mutex::new(String::new()));
    let said = Arc::clone(&fields_of);
    let upstream = RawUpstream::start(move |_, stream| {
        let fields = said.lock().unwrap().clone();
        say(
            stream,
            &format!("HTTP/1.1 200 OK\r\n{fields}\r\n2\r\nok\r\n0\r\n\r\n"),
        );
        Next::Close
    });
    let serin = start(&upstream, "");
    let status = |text: &str| {
        text.clone_into(&mut fields_of.lock().unwrap());
        let mut client = RawClient::connect(serin.web);
        client.send("GET /a HTTP/1.1\r\nHost: shop.test\r\n\r\n");
        let answer = client.answer("GET").unwrap();
        assert!(
            fields(&answer.head, "content-length").len() + fields(&answer.head, "transfer-encoding").len()
                <= 1
        );
        (answer.status, answer.body)
    };
    assert_eq!(status("Transfer-Encoding: chunked\r\n"), (200, b"ok".to_vec()));
    assert_eq!(status("Transfer-Encoding: gzip, chunked\r\n").0, 502);
    assert_eq!(
        status("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n").0,
        502
    );
    // The coding overrules the length (9112 6.3), which does not go on.
    assert_eq!(
        status("Transfer-Encoding: chunked\r\nContent-Length: 7\r\n"),
        (200, b"ok".to_vec())
    );
}

#[test]
fn a_body_that_turns_out_to_be_bad_is_refused_once_and_is_nobodys_failure() {
    let upstream = RawUpstream::start(|seen, stream| if seen.whole { ok(seen, stream) } else { Next::Body });
    let serin = start(
        &upstream,
        "    limits: {body: 1000}\n    timeouts: {bodyIdle: 300ms}",
    );
    let head = "POST /a HTTP/1.1\r\nHost: shop.test\r\n";
    let count = |name: &str, labels: &[(&str, &str)]| serin.count(name, labels);
    for ((status, reason, rest), n) in [
        (
            400,
            "malformed",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
        ),
        (413, "body_limit", "Content-Length: 1001\r\n\r\nhello"),
        (
            413,
            "body_limit",
            &format!("Transfer-Encoding: chunked\r\n\r\n3e9\r\n{}", "x".repeat(1001)),
        ),
        (408, "timeout", "Content-Length: 10\r\n\r\nhello"),
        (400, "incomplete", "Content-Length: 10\r\n\r\nhello"),
    ]
    .into_iter()
    .zip(0..)
    {
        let mut client = RawClient::connect(serin.web);
        client.send(format!("{head}{rest}"));
        if reason == "incomplete" {
            client.end_sending();
        }
        let answer = client.answer("POST").unwrap();
        assert_eq!(answer.status, status, "{reason}: {answer:?}");
        assert!(client.is_closed());
        // Each answer is counted once.
        let all = wait_for(reason, LONG, || {
            let all = count("serin_http_rejected_total", &[]);
            (count("serin_http_requests_in_flight", &[]) == 0 && all > n).then_some(all)
        });
        assert_eq!(all, n + 1, "{reason}");
        assert!(
            count("serin_http_rejected_total", &[("reason", reason)]) > 0,
            "{reason}"
        );
    }
    assert_eq!(count("serin_http_requests_total", &[]), 0);
    // And so is each assignment.
    let canceled = count("serin_version_outcomes_total", &[("outcome", "canceled")]);
    assert_eq!(canceled, count("serin_split_assignments_total", &[]));
    assert_eq!(canceled, count("serin_version_outcomes_total", &[]));
}

/// A version that says back what it hears while it hears it.
fn mirror(http2: bool) -> (Server, Serin) {
    let upstream = Server::start(Speaks {
        http2,
        ..Speaks::default()
    });
    let at = format!(
        "{}://127.0.0.1:{}",
        if http2 { "h2c" } else { "http" },
        upstream.port()
    );
    let serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{at}\"]}}}}]"
    ));
    (upstream, serin)
}

#[test]
fn a_client_whose_body_goes_bad_while_it_is_answered_is_no_failure_of_the_version() {
    for http2 in [false, true] {
        let (_upstream, serin) = mirror(http2);
        let mut client = RawClient::connect(serin.web);
        client.send(
            "POST /mirror HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        );
        assert!(
            client
                .reader
                .until(b"\r\n\r\n")
                .unwrap()
                .starts_with(b"HTTP/1.1 200 ")
        );
        assert_eq!(client.reader.until(b"hello\r\n").unwrap(), b"5\r\n");
        client.send("zz\r\n");
        assert!(client.is_closed(), "not a byte after the part that came");
        wait_for("the verdict", LONG, || {
            let canceled = serin.metric("serin_version_outcomes_total", &[("outcome", "canceled")]);
            (canceled > 0.5).then_some(())
        });
        assert!(serin.metric("serin_version_outcomes_total", &[("outcome", "failed")]) < 0.5);
    }
}

#[test]
fn an_upload_that_is_given_up_never_looks_whole() {
    for http2 in [false, true] {
        let (upstream, serin) = mirror(http2);
        // Each of these says that it is over, none that it has ended: NO_ERROR, CANCEL, INTERNAL_ERROR.
        for (code, n) in [0u8, 8, 2].into_iter().zip(0usize..) {
            let mut client = H2::connect(serin.web);
            client.head(1, &request("POST", "/echo"), false);
            client.send(DATA, 0, 1, b"half");
            let begun = || {
                upstream
                    .seen
                    .asked("")
                    .get(n)
                    .is_some_and(|asked| asked.body == b"half")
            };
            wait_for("the upload to begin", LONG, || begun().then_some(()));
            client.send(RST_STREAM, 0, 1, &[0, 0, 0, code]);
            wait_for("the version to see it break off", LONG, || {
                assert!(!upstream.seen.asked("")[n].whole, "error {code}, HTTP/2 {http2}");
                (upstream.seen.canceled.load(Ordering::SeqCst) > u64::try_from(n).unwrap()).then_some(())
            });
        }
    }
}

#[test]
fn an_answer_that_is_given_up_never_looks_whole() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        for code in [0u8, 8, 2, 0, 8, 2] {
            let mut version = H2::accepted(listener.accept().unwrap().0);
            let asked = std::iter::from_fn(|| version.read()).find(|frame| frame.kind == HEADERS);
            let stream = asked.unwrap().stream;
            version.head(stream, &[(":status", "200")], false);
            version.send(DATA, 0, stream, b"half");
            version.send(RST_STREAM, 0, stream, &[0, 0, 0, code]);
        }
    });
    let serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"h2c://{at}\"]}}}}]"
    ));
    for http2 in [false, true] {
        for _ in 0..3 {
            // The end may come before the head has gone out.
            let answer = ask(serin.web, http2, get("/"));
            let whole = answer.as_ref().is_ok_and(|answer| answer.whole);
            assert!(!whole, "HTTP/2 {http2}: {answer:?}");
        }
    }
    serving.join().unwrap();
    wait_for("the verdicts", LONG, || {
        (serin.metric("serin_version_outcomes_total", &[("outcome", "failed")]) > 5.5).then_some(())
    });
}
