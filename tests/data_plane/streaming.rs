//! Bodies that are not simply there: waited for, answered early, endless, followed by trailers.

use crate::support::{
    HEAD, Serin,
    h2::{H2, request},
    raw::{Next, RawClient, RawUpstream, Seen, fields, ok},
    wait_for,
};
use std::{
    io::Write,
    net::TcpStream,
    sync::{Arc, Mutex, mpsc},
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
