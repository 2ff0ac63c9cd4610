//! WebSocket and other upgrades: only what is allowed, both ways, to their end.

use crate::support::{
    HEAD, Serin,
    authority::Authority,
    client::{ask, get},
    http::{Server, Speaks},
    raw::{Answer, Next, RawClient, RawUpstream, Seen, fields},
    wait_for,
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const LONG: Duration = Duration::from_secs(20);
const ASK: &str = "GET /ws HTTP/1.1\r\nHost: shop.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: h2c, websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Switches to whatever is asked for, and then says everything back.
fn echo(seen: &Seen, stream: &mut TcpStream) -> Next {
    let Some(protocol) = seen.all("upgrade").first().copied() else {
        return crate::support::raw::ok(seen, stream);
    };
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: {protocol}\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\nX-Theirs: gone\r\n\r\n"
    );
    let _ = stream.write_all(head.as_bytes());
    let mut piece = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut piece) {
        if stream.write_all(&piece[..n]).is_err() {
            break;
        }
    }
    Next::Close
}

fn start(v1: &RawUpstream, more: &str) -> Serin {
    Serin::start_with(&format!(
        "{HEAD}
services:
  - name: shop
    stable: {{version: v1, endpoints: [\"{}\"]}}
{more}",
        v1.url()
    ))
}

/// A client that has switched.
fn switched(serin: &Serin, more: &str) -> RawClient {
    let mut client = RawClient::connect(serin.web);
    client.send(format!("{ASK}{more}\r\n"));
    let answer = client.answer("GET").unwrap();
    assert_eq!(answer.status, 101, "{answer:?}");
    assert_eq!(fields(&answer.head, "upgrade"), ["websocket"]);
    assert_eq!(fields(&answer.head, "connection"), ["upgrade"]);
    assert_eq!(fields(&answer.head, "sec-websocket-accept"), ["x"]);
    client
}

/// Asks for `/switch`: the answer.
fn switch(to: SocketAddr) -> (RawClient, Answer) {
    let mut client = RawClient::connect(to);
    client.send(ASK.replace("/ws", "/switch") + "\r\n");
    let answer = client.answer("GET").unwrap();
    (client, answer)
}

#[test]
fn a_switch_is_an_answer_like_others_for_filters_and_the_sticky_cookie() {
    let (v1, v2) = (RawUpstream::start(echo), RawUpstream::start(echo));
    let serin = start(
        &v1,
        &format!(
            "    canary: {{version: v2, endpoints: [\"{}\"]}}
    sticky: {{cookie: {{}}}}
    filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{add: [{{name: x-ours, value: here}}], remove: [x-theirs]}}}}]
    strategy: {{canary: {{steps: [{{setWeight: 50}}, {{pause: {{}}}}]}}}}",
            v2.url()
        ),
    );
    wait_for("the pause", LONG, || {
        (serin.status("shop")["phase"] == "Paused").then_some(())
    });
    let mut client = RawClient::connect(serin.web);
    client.send(format!("{ASK}\r\n"));
    let answer = client.answer("GET").unwrap();
    assert_eq!(
        (answer.status, fields(&answer.head, "x-ours")),
        (101, vec!["here"])
    );
    assert!(fields(&answer.head, "x-theirs").is_empty());
    assert!(answer.head.contains("serin-id="), "{}", answer.head);
    says_back(&mut client);
}

/// An unmasked text frame; the service behind says it back as it is.
fn says_back(client: &mut RawClient) {
    let frame = b"\x81\x05hello";
    client.send(frame);
    assert_eq!(client.reader.exactly(7).unwrap(), frame);
}

/// The close frame of a server that goes away, and then the end.
fn is_told_to_go(client: &mut RawClient) {
    assert_eq!(client.reader.exactly(4).unwrap(), [0x88, 2, 3, 0xe9]);
    assert!(client.is_closed());
}

fn in_flight(serin: &Serin) -> f64 {
    serin.metric("serin_http_requests_in_flight", &[])
}

#[test]
fn a_websocket_passes_counts_while_it_lasts_and_is_recorded_when_it_ends() {
    let upstream = RawUpstream::start(echo);
    let serin = start(&upstream, "");
    let mut client = switched(&serin, "");
    let seen = &upstream.since(0)[0];
    assert_eq!(seen.all("upgrade"), ["websocket"], "h2c never goes on");
    assert_eq!(seen.all("connection"), ["upgrade"]);
    assert_eq!(seen.all("sec-websocket-key"), ["dGhlIHNhbXBsZSBub25jZQ=="]);
    assert!(in_flight(&serin) > 0.5);
    says_back(&mut client);
    // Much more than any buffer, both ways at once.
    let mut writer = client.reader.stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        for piece in 0..64u8 {
            writer.write_all(&vec![piece; 64 * 1024]).unwrap();
        }
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let back = client.reader.exactly(64 * 64 * 1024).unwrap();
    assert!(
        back.chunks(64 * 1024)
            .enumerate()
            .all(|(piece, chunk)| chunk.iter().all(|b| usize::from(*b) == piece))
    );
    writing.join().unwrap();
    assert!(client.is_closed());
    wait_for("the record", LONG, || {
        (serin.metric("serin_http_requests_total", &[("status", "101")]) > 0.5).then_some(())
    });
    assert!(in_flight(&serin) < 0.5);
    assert!(serin.metric("serin_version_outcomes_total", &[("outcome", "ok")]) > 0.5);
}

#[test]
fn what_the_client_sends_with_its_request_is_not_lost() {
    let upstream = RawUpstream::start(echo);
    let serin = start(&upstream, "");
    let mut client = RawClient::connect(serin.web);
    client.send(format!("{ASK}\r\n\u{1}\u{5}hello"));
    assert_eq!(client.answer("GET").unwrap().status, 101);
    assert_eq!(client.reader.exactly(7).unwrap(), b"\x01\x05hello");
}

#[test]
fn a_websocket_is_asked_for_with_get_and_nothing_else() {
    let upstream = RawUpstream::start(echo);
    let serin = start(&upstream, "    upgrades: [websocket, tcp]");
    for (method, protocols, status) in [
        ("POST", "websocket", 200),
        ("OPTIONS", "WebSocket", 200),
        ("POST", "websocket, tcp", 101),
        ("GET", "websocket", 101),
    ] {
        let mut client = RawClient::connect(serin.web);
        client.send(
            ASK.replacen("GET", method, 1)
                .replace("h2c, websocket", protocols)
                + "\r\n",
        );
        assert_eq!(
            client.answer(method).unwrap().status,
            status,
            "{method} {protocols}"
        );
    }
    let seen = upstream.since(0);
    let asked: Vec<_> = seen.iter().map(|one| one.all("upgrade")).collect();
    assert_eq!(asked, [vec![], vec![], vec!["tcp"], vec!["websocket"]]);
}

#[test]
fn what_is_not_allowed_goes_on_as_plain_http() {
    let upstream = RawUpstream::start(echo);
    let serin = start(&upstream, "    upgrades: [tcp, spdy/3.1]");
    let ask = |upgrade: &str, more: &str| {
        let mut client = RawClient::connect(serin.web);
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n{more}\r\n"
        ));
        client.answer("POST").unwrap().status
    };
    assert_eq!(ask("websocket", ""), 200);
    assert_eq!(ask("h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"), 200);
    assert_eq!(ask("tcp", "Content-Length: 0\r\n"), 101);
    assert_eq!(ask("SPDY/3.1", ""), 101);
    for seen in upstream.since(0).iter().take(2) {
        assert!(
            !seen.has("upgrade") && !seen.has("connection") && !seen.has("http2-settings"),
            "{seen:?}"
        );
    }
}

#[test]
fn a_silent_tunnel_is_closed_with_a_word() {
    let upstream = RawUpstream::start(echo);
    let serin = start(&upstream, "    timeouts: {upgradeIdle: 1s}");
    let mut client = switched(&serin, "");
    says_back(&mut client);
    is_told_to_go(&mut client);
}

#[test]
fn a_stop_waits_for_tunnels_and_then_tells_them() {
    let upstream = RawUpstream::start(echo);
    let configuration = format!(
        "{HEAD}services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        upstream.url()
    );
    let listener = "address: \"127.0.0.1:0\"}]";
    let short = "address: \"127.0.0.1:0\", timeouts: {drain: 3s}}]";
    let mut serin = Serin::start_with(&configuration.replacen(listener, short, 1));
    let mut client = switched(&serin, "");
    serin.signal("TERM");
    wait_for("the stop to begin", LONG, || {
        serin.log().contains("stopping").then_some(())
    });
    says_back(&mut client);
    is_told_to_go(&mut client);
    assert_eq!(serin.wait_end(LONG), 0);
}

#[test]
fn an_abort_ends_the_canarys_tunnels_and_a_promotion_does_not() {
    let (v1, v2) = (RawUpstream::start(echo), RawUpstream::start(echo));
    let serin = start(
        &v1,
        &format!(
            "    canary: {{version: v2, endpoints: [\"{}\"]}}
    force: {{header: x-canary}}
    timeouts: {{drain: 1s}}
    strategy: {{canary: {{steps: [{{setWeight: 50}}, {{pause: {{}}}}]}}}}",
            v2.url()
        ),
    );
    wait_for("the pause", LONG, || {
        (serin.status("shop")["phase"] == "Paused").then_some(())
    });
    let mut on_canary = switched(&serin, "X-Canary: always\r\n");
    let mut on_stable = switched(&serin, "X-Canary: never\r\n");
    assert_eq!((v1.count(), v2.count()), (1, 1));
    let (code, out, error) = serin.run("abort shop");
    assert_eq!(code, 0, "{out}{error}");
    is_told_to_go(&mut on_canary);
    says_back(&mut on_stable);

    let (code, out, error) = serin.run("retry shop");
    assert_eq!(code, 0, "{out}{error}");
    wait_for("the pause", LONG, || {
        (serin.status("shop")["phase"] == "Paused").then_some(())
    });
    let mut on_canary = switched(&serin, "X-Canary: always\r\n");
    let (code, out, error) = serin.run("promote shop --full --until healthy");
    assert_eq!(code, 0, "{out}{error}");
    says_back(&mut on_canary);
    says_back(&mut on_stable);
}

#[test]
fn a_version_that_prefers_http2_is_asked_by_http1_to_switch() {
    let authority = Authority::new("test");
    let issued = authority.issue(&["127.0.0.1"]);
    let start = |protocols: &[&str], alpn: &str| {
        let upstream = Server::start(Speaks {
            tls: Some(Authority::server(&issued, protocols, None)),
            ..Speaks::default()
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        std::fs::write(folder.path().join("token"), "secret-token\n").unwrap();
        let services = format!(
            "{HEAD}services: [{{name: shop, upstreamTls: {{ca: ca.pem, alpn: {alpn}}}, stable: {{version: v1, \
             endpoints: [\"https://127.0.0.1:{}\"]}}}}]",
            upstream.port()
        );
        std::fs::write(folder.path().join("serin.yaml"), services).unwrap();
        (upstream, Serin::run_in(folder, &[]))
    };
    let spoken = |serin: &Serin| {
        let answer = ask(serin.web, false, get("/")).unwrap();
        (answer.status, answer.header("x-saw-version").to_owned())
    };
    let by_http2 = (200, "HTTP/2.0".to_owned());

    let (_upstream, serin) = start(&["h2", "http/1.1"], "[h2, http/1.1]");
    for _ in 0..3 {
        let (mut client, answer) = switch(serin.web);
        assert_eq!(answer.status, 101, "{answer:?}");
        says_back(&mut client);
        assert_eq!(spoken(&serin), by_http2);
    }

    // It cannot: that is said, and costs the endpoint nothing.
    let (_upstream, serin) = start(&["h2"], "[h2, http/1.1]");
    for _ in 0..5 {
        let (_, answer) = switch(serin.web);
        let text = String::from_utf8_lossy(&answer.body);
        assert!(answer.status == 502 && text.contains("only HTTP/2"), "{text}");
        assert_eq!(spoken(&serin), by_http2);
    }
    let attempts = |outcome| serin.count("serin_upstream_attempts_total", &[("outcome", outcome)]);
    assert_eq!((attempts("protocol_error"), attempts("connect_failed")), (5, 0));

    // Its operator wants nothing but HTTP/2: the request goes on as it is, without the wish.
    let (_upstream, serin) = start(&["h2", "http/1.1"], "[h2]");
    assert_eq!(switch(serin.web).1.status, 200);
}
