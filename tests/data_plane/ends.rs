//! How connections end: an answer that breaks off never by an end that could be its own, a stop without waiting for the silent.

use crate::support::{
    HEAD, Serin,
    authority::Authority,
    h2::{H2, HEADERS, PING, block, request},
    now,
    raw::{Next, RawUpstream, Seen, ok},
    upstream::Upstream,
    wait_for,
};
use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::Duration,
};

const LONG: Duration = Duration::from_secs(20);

fn service(url: &str) -> String {
    format!("services: [{{name: shop, stable: {{version: v1, endpoints: [\"{url}\"]}}}}]")
}

/// An answer without a length that breaks off, or at `/whole` does not.
fn breaks_off(seen: &Seen, stream: &mut TcpStream) -> Next {
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    if seen.target() == "/whole" {
        let _ = stream.write_all(b"0\r\n\r\n");
        return Next::Keep;
    }
    Next::Close
}

/// Asks as HTTP/1.0 does and reads to the end: what came, and which end it was.
fn asked(mut stream: impl Read + Write, path: &str) -> (String, std::io::Result<usize>) {
    let head = format!("GET {path} HTTP/1.0\r\nHost: shop.example\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all);
    (String::from_utf8_lossy(&all).into_owned(), end)
}

fn connect(serin: &Serin) -> TcpStream {
    let stream = TcpStream::connect(serin.web).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

#[test]
fn an_answer_that_the_connections_end_completes_breaks_off_by_a_reset() {
    let upstream = RawUpstream::start(breaks_off);
    let serin = Serin::start_with(&format!("{HEAD}{}", service(&upstream.url())));
    let (text, end) = asked(connect(&serin), "/whole");
    assert!(
        end.is_ok() && text.ends_with("\r\n\r\nhello") && !text.contains("content-length"),
        "{text}, {end:?}"
    );
    let (text, end) = asked(connect(&serin), "/half");
    let error = end.expect_err(&text);
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{text}, {error}");
}

#[test]
fn over_tls_it_breaks_off_without_a_goodbye() {
    let upstream = RawUpstream::start(breaks_off);
    let authority = Authority::new("test");
    let folder = tempfile::tempdir().unwrap();
    authority.issue(&["shop.example"]).write(folder.path(), "web");
    let listener =
        "listeners: [{name: web, address: \"127.0.0.1:0\", tls: {certificate: web.pem, key: web.key}}]";
    let configuration = format!(
        "{listener}\nadmin: {{address: \"127.0.0.1:0\"}}\n{}",
        service(&upstream.url())
    );
    std::fs::write(folder.path().join("serin.yaml"), configuration).unwrap();
    let serin = Serin::run_in(folder, &[]);
    let open = || {
        let name = rustls_pki_types::ServerName::try_from("shop.example").unwrap();
        let tls = rustls::ClientConnection::new(authority.client(&["http/1.1"]), name).unwrap();
        rustls::StreamOwned::new(tls, connect(&serin))
    };
    let (text, end) = asked(open(), "/whole");
    assert!(end.is_ok() && text.ends_with("hello"), "{text}, {end:?}");
    let (text, end) = asked(open(), "/half");
    let error = end.expect_err(&text);
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{text}, {error}");
}

#[test]
fn it_breaks_off_by_a_reset_when_serin_does_not_wait_for_its_end_any_more() {
    let v1 = Upstream::start("v1");
    let mut serin = Serin::start_with(&format!(
        "
listeners: [{{name: web, address: \"127.0.0.1:0\", timeouts: {{drain: 300ms}}}}]
admin: {{address: \"127.0.0.1:0\"}}
{}",
        service(&v1.url())
    ));
    let stream = connect(&serin);
    let reading = std::thread::spawn(move || asked(stream, "/drip/1000000/20"));
    wait_for("it to be in flight", LONG, || {
        (serin.count("serin_http_requests_in_flight", &[]) == 1).then_some(())
    });
    serin.signal("TERM");
    serin.wait_end(LONG);
    let (text, end) = reading.join().unwrap();
    let error = end.expect_err(&text);
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{text}, {error}");
}

#[test]
fn clients_that_say_nothing_do_not_hold_up_a_stop() {
    let upstream = RawUpstream::start(ok);
    let mut serin = Serin::start_with(&format!(
        "
listeners:
  - name: web
    address: \"127.0.0.1:0\"
    timeouts: {{firstByte: 1m, requestHeaders: 1m, keepAlive: 1m, drain: 1m}}
admin: {{address: \"127.0.0.1:0\"}}
{}",
        service(&upstream.url())
    ));
    let mut open = Vec::new();
    for begun in [
        "",
        "GET / HT",
        "GET / HTTP/1.1\r\nHost: shop.test\r\n",
        "PRI * HTTP/2.0\r\n",
    ] {
        let mut stream = connect(&serin);
        stream.write_all(begun.as_bytes()).unwrap();
        open.push(stream);
    }
    // After an answer, too.
    let mut again = connect(&serin);
    again
        .write_all(b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        .unwrap();
    again.read_exact(&mut [0; 12]).unwrap();
    again.write_all(b"GET / HT").unwrap();
    // HTTP/2: settled and silent, and with an open header block. Neither answers the ping that a goodbye begins with.
    let mut http2 = [H2::connect(serin.web), H2::connect(serin.web)];
    http2[1].send(HEADERS, 1, 1, &block(&request("GET", "/")));
    wait_for("all of them", LONG, || {
        (serin.count("serin_client_connections", &[]) == 7).then_some(())
    });
    let stopped = now();
    serin.signal("TERM");
    assert_eq!(serin.wait_end(Duration::from_secs(50)), 0);
    let took = stopped.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?} of a drain of 60 s");
    assert!(!serin.log().contains("before everything in flight had finished"));
}

#[test]
fn a_client_that_only_pings_is_closed_when_its_time_is_over_and_does_not_hold_up_a_stop() {
    let upstream = Upstream::start("v1");
    let mut serin = Serin::start_with(&format!(
        "
listeners:
  - name: web
    address: \"127.0.0.1:0\"
    timeouts: {{keepAlive: 2s, drain: 1m}}
  - name: patient
    address: \"127.0.0.1:0\"
    timeouts: {{keepAlive: 1h, drain: 1m}}
admin: {{address: \"127.0.0.1:0\"}}
{}",
        service(&upstream.url())
    ));
    // Neither answers the ping that a goodbye begins with, nor reads it.
    let pinging = |to| {
        let mut client = H2::connect(to);
        std::thread::spawn(move || {
            while client.send(PING, 0, 0, &[7; 8]) {
                std::thread::sleep(Duration::from_millis(100));
            }
        })
    };
    let first = pinging(serin.web);
    wait_for("the end of the first", LONG, || first.is_finished().then_some(()));
    let other = pinging(serin.listener("patient"));
    wait_for("the other one", LONG, || {
        (serin.count("serin_client_connections", &[("listener", "patient")]) == 1).then_some(())
    });
    let stopped = now();
    serin.signal("TERM");
    assert_eq!(serin.wait_end(Duration::from_secs(50)), 0);
    let took = stopped.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?} of a drain of 60 s");
    other.join().unwrap();
}
