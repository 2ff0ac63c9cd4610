//! Clients behind a load balancer that says who they are: by hand, and by HAProxy.

use crate::support::{
    Serin,
    authority::Authority,
    h2,
    http::{Client, Server, Speaks, To},
    raw::{RawClient, fields},
    wait_for,
};
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    time::Duration,
};

const LONG: Duration = Duration::from_secs(20);
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

/// A version 1 header that names this client.
fn v1(client: &str) -> Vec<u8> {
    let kind = if client.contains(':') { "TCP6" } else { "TCP4" };
    let to = if client.contains(':') {
        "::1"
    } else {
        "192.0.2.250"
    };
    format!("PROXY {kind} {client} {to} 56324 443\r\n").into_bytes()
}

/// The same of version 2, with two additions.
fn v2(client: &str) -> Vec<u8> {
    let (family, addresses) = match client.parse().unwrap() {
        IpAddr::V4(ip) => (0x11, [&ip.octets()[..], &[192, 0, 2, 250]].concat()),
        IpAddr::V6(ip) => (0x21, [&ip.octets()[..], &[0; 16]].concat()),
    };
    let block = [
        &addresses[..],
        &[0xdc, 4, 1, 0xbb],
        &[4, 0, 0],
        &[0xea, 0, 3],
        b"vpc",
    ]
    .concat();
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [&LOCAL[..12], &[0x21, family], &length, &block].concat()
}

/// Serin with listeners that want the header, in front of one service.
struct Edge {
    serin: Serin,
    authority: Authority,
    _upstream: Server,
}

impl Edge {
    fn start() -> Edge {
        Edge::start_with("", "")
    }

    /// With more keys at the listener `web` and at the top.
    fn start_with(web: &str, top: &str) -> Edge {
        let upstream = Server::start(Speaks::default());
        let authority = Authority::new("test");
        let folder = tempfile::tempdir().unwrap();
        authority.issue(&["shop.example"]).write(folder.path(), "web");
        let socket = folder.path().join("edge.sock");
        let at = format!("[\"http://127.0.0.1:{}\"]", upstream.port());
        let near = "proxyProtocol: {from: [127.0.0.1]}";
        let configuration = format!(
            "listeners:\n\
             - {{name: web, address: \"127.0.0.1:0\", {near}{web}}}\n\
             - {{name: tls, address: \"127.0.0.1:0\", {near}, tls: {{certificate: web.pem, key: web.key}}}}\n\
             - {{name: far, address: \"127.0.0.1:0\", proxyProtocol: {{from: [10.0.0.0/8]}}}}\n\
             - {{name: local, address: \"unix:{}\", proxyProtocol: {{}}}}\n\
             admin: {{address: \"127.0.0.1:0\", tokens: [{{name: test, role: admin, secretFile: token}}]}}\n{top}\
             services:\n- name: shop\n  stable: {{version: v1, endpoints: {at}}}\n  canary: {{version: v2, endpoints: {at}}}\n  \
             force: {{header: x-canary, from: [192.0.2.0/24]}}\n  \
             strategy: {{canary: {{steps: [{{setWeight: 0}}, {{pause: {{}}}}]}}}}\n",
            socket.display()
        );
        std::fs::write(folder.path().join("serin.yaml"), configuration).unwrap();
        std::fs::write(folder.path().join("token"), "secret-token\n").unwrap();
        let serin = Serin::run_in(folder, &[]);
        Edge {
            serin,
            authority,
            _upstream: upstream,
        }
    }

    fn client(&self, listener: &str, http2: bool, header: Vec<u8>) -> Client {
        let protocols: &[&str] = if http2 { &["h2"] } else { &["http/1.1"] };
        let secured = || (self.authority.client(protocols), "shop.example".to_owned());
        let to = if listener == "local" {
            To::Unix(self.serin.file("edge.sock"))
        } else {
            To::Tcp(self.serin.listener(listener))
        };
        Client {
            to,
            tls: (listener == "tls").then(secured),
            http2,
            preamble: header,
        }
    }

    /// Who the version is told asked.
    async fn told(&self, listener: &str, http2: bool, header: Vec<u8>) -> String {
        let client = self.client(listener, http2, header);
        let answer = client.get("/").await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.version == http::Version::HTTP_2, http2);
        answer.header("x-saw-x-forwarded-for").to_owned()
    }

    fn rejected(&self, listener: &str, reason: &str) -> f64 {
        self.serin.metric(
            "serin_http_rejected_total",
            &[("listener", listener), ("reason", reason)],
        )
    }

    fn waits_for_rejected(&self, listener: &str, reason: &str, count: u32) {
        wait_for("the count", LONG, || {
            (self.rejected(listener, reason) > f64::from(count) - 0.5).then_some(())
        });
        let counted = self.rejected(listener, reason);
        assert!((counted - f64::from(count)).abs() < 0.1, "{counted}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_told_the_client_in_the_header_whatever_the_client_speaks() {
    let edge = Edge::start();
    for listener in ["web", "tls", "local"] {
        for http2 in [false, true] {
            for client in ["192.0.2.1", "2001:db8::1"] {
                for header in [v1(client), v2(client)] {
                    assert_eq!(edge.told(listener, http2, header).await, client, "{listener}");
                }
            }
        }
    }
    assert_eq!(edge.told("web", false, v1("::ffff:192.0.2.9")).await, "192.0.2.9");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_the_load_balancers_own_and_without_addresses_keep_the_peers() {
    let edge = Edge::start();
    let unix = [&LOCAL[..12], &[0x21, 0x31, 0, 216], &[b'/'; 216]].concat();
    let unspecified = [&LOCAL[..12], &[0x21, 0, 0, 3, 4, 0, 0]].concat();
    for header in [LOCAL.to_vec(), b"PROXY UNKNOWN\r\n".to_vec(), unix, unspecified] {
        for listener in ["web", "tls", "local"] {
            assert_eq!(edge.told(listener, false, header.clone()).await, "127.0.0.1");
        }
    }
}

#[test]
fn what_comes_in_the_same_piece_as_the_header_is_the_clients() {
    let edge = Edge::start();
    let get = b"GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n";
    for header in [v1("192.0.2.1"), v2("192.0.2.1")] {
        let mut client = RawClient::connect(edge.serin.web);
        client.send([&header[..], get, get].concat());
        for _ in 0..2 {
            let answer = client.answer("GET").unwrap();
            assert_eq!(fields(&answer.head, "x-saw-x-forwarded-for"), ["192.0.2.1"]);
        }

        let mut client = RawClient::connect(edge.serin.web);
        for byte in [&header[..], get].concat() {
            client.send([byte]);
        }
        let answer = client.answer("GET").unwrap();
        assert_eq!(fields(&answer.head, "x-saw-x-forwarded-for"), ["192.0.2.1"]);

        let mut client = h2::H2::silent(edge.serin.web);
        client.write(&[&header, &h2::PREFACE[..9]].concat());
        client.write(&h2::PREFACE[9..]);
        client.send(h2::SETTINGS, 0, 0, &[]);
        client.head(1, &h2::request("GET", "/"), true);
        let told = client.response(1).unwrap().fields;
        assert!(
            told.contains(&("x-saw-x-forwarded-for".into(), "192.0.2.1".into())),
            "{told:?}"
        );

        let answer = in_one_piece(&edge, &header, get);
        assert_eq!(fields(&answer, "x-saw-x-forwarded-for"), ["192.0.2.1"]);
        assert_eq!(fields(&answer, "x-saw-x-forwarded-proto"), ["https"]);
    }
}

/// The header and the beginning of the handshake in one segment; the answer's head.
fn in_one_piece(edge: &Edge, header: &[u8], request: &[u8]) -> String {
    let name = rustls_pki_types::ServerName::try_from("shop.example").unwrap();
    let config = edge.authority.client(&["http/1.1"]);
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut first = header.to_vec();
    while connection.wants_write() {
        connection.write_tls(&mut first).unwrap();
    }
    let mut stream = TcpStream::connect(edge.serin.listener("tls")).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(&first).unwrap();
    let mut secured = rustls::Stream::new(&mut connection, &mut stream);
    secured.write_all(request).unwrap();
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut piece = [0; 4096];
        let length = secured.read(&mut piece).unwrap();
        assert!(length > 0);
        head.extend_from_slice(&piece[..length]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_in_the_header_decides_who_forces_whose_fields_are_believed_and_what_is_logged() {
    let edge = Edge::start_with(
        ", trustedProxies: [198.51.100.0/24]",
        "accessLog: {path: access.log}\n",
    );
    let serin = &edge.serin;
    serin.wait_status("shop", "the canary", |status| status["phase"] == "Paused");
    let ask = async |from: &str| {
        let mut request = crate::support::http::request("GET", "/", crate::support::http::whole(""));
        for (name, value) in [("x-canary", "always"), ("x-forwarded-for", "203.0.113.9")] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let answer = edge.client("web", false, v1(from)).send(request).await.unwrap();
        answer.header("x-saw-x-forwarded-for").to_owned()
    };
    // May force, is no proxy.
    assert_eq!(ask("192.0.2.1").await, "192.0.2.1");
    // A proxy before the load balancer, whose word on the client is believed; that one may not force.
    assert_eq!(ask("198.51.100.7").await, "203.0.113.9, 198.51.100.7");
    // The load balancer's own connections are neither.
    assert_eq!(ask("127.0.0.1").await, "127.0.0.1");
    let forced = serin.metric("serin_split_assignments_total", &[("reason", "force")]);
    assert!((forced - 1.0).abs() < 0.1, "{forced}");
    let lines = wait_for("the access log", LONG, || {
        let text = std::fs::read_to_string(serin.file("access.log")).unwrap_or_default();
        (text.lines().count() == 3).then_some(text)
    });
    let mut clients: Vec<String> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["client"].to_string())
        .collect();
    // Workers write their lines by turns.
    clients.sort();
    assert_eq!(clients, ["\"127.0.0.1\"", "\"192.0.2.1\"", "\"203.0.113.9\""]);
}

/// What comes back, to the end.
fn answer_to(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    // It may have been closed already.
    let _ = stream.write_all(bytes);
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    all
}

#[test]
fn somebody_who_may_not_say_who_the_client_is_gets_no_answer_and_is_counted() {
    let edge = Edge::start();
    let far = edge.serin.listener("far");
    let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let spoofed = [&v1("10.0.0.1"), get.as_bytes()].concat();
    for bytes in [
        &spoofed[..],
        &[&v2("10.0.0.1"), get.as_bytes()].concat(),
        get.as_bytes(),
    ] {
        assert_eq!(answer_to(far, bytes), b"");
    }
    edge.waits_for_rejected("far", "proxy_protocol", 3);
    let log = edge.serin.log();
    let said: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("`proxyProtocol`"))
        .collect();
    assert!(
        !said.is_empty()
            && said.len() <= 2
            && said[0].contains("from 127.0.0.1 was closed: it does not come from"),
        "once for each worker: {said:?}"
    );
}

#[test]
fn what_does_not_begin_with_the_header_gets_no_answer_and_is_counted() {
    let edge = Edge::start();
    let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let not_begun: [&[u8]; 5] = [
        request,
        h2::PREFACE,
        b"PROXY TCP4 192.0.2.1 192.0.2.9 56324 443\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2 3\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
    ];
    for bytes in not_begun {
        assert_eq!(answer_to(edge.serin.web, bytes), b"");
    }
    edge.waits_for_rejected("web", "proxy_protocol", 5);
    // The handshake without it, too.
    assert_eq!(
        answer_to(edge.serin.listener("tls"), b"\x16\x03\x01\x02\0\x01"),
        b""
    );
    edge.waits_for_rejected("tls", "proxy_protocol", 1);
    // Cut off is malformed; a look at the port is nothing.
    drop(TcpStream::connect(edge.serin.web).unwrap());
    let mut cut = TcpStream::connect(edge.serin.web).unwrap();
    cut.write_all(b"PROXY TCP4 192.0.2.1 ").unwrap();
    drop(cut);
    edge.waits_for_rejected("web", "proxy_protocol", 6);
    let log = edge.serin.log();
    assert!(log.contains("does not begin with a PROXY header"), "{log}");
}

#[test]
fn a_header_that_comes_too_slowly_and_a_client_that_is_silent_after_it_are_closed() {
    let edge = Edge::start_with(", timeouts: {firstByte: 300ms}", "");
    for begun in [&b""[..], b"PROXY TCP4 192.0.2.1", &LOCAL[..15], &v1("192.0.2.1")] {
        assert_eq!(answer_to(edge.serin.web, begun), b"", "{begun:?}");
    }
    edge.waits_for_rejected("web", "timeout", 4);
}

/// A process that ends with its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// HAProxy passes on what comes as it is, with a header before it; where it listens.
fn haproxy(edge: &Edge, listener: &str, send: &str) -> (Ended, SocketAddr) {
    let front = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = front.local_addr().unwrap();
    let file = edge.serin.file(&format!("{listener}.cfg"));
    let to = edge.serin.listener(listener);
    let text = format!(
        "defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 30s\n  timeout server 30s\n  timeout check 30s\n\
         listen front\n  bind fd@0\n  server serin {to} check inter 100 fall 1000 {send}\n"
    );
    std::fs::write(&file, text).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let child = Command::new("haproxy")
        .args(["-db", "-f"])
        .arg(&file)
        // Where Debian puts servers.
        .env("PATH", format!("{path}:/usr/sbin"))
        .stdin(Stdio::from(OwnedFd::from(front)))
        .spawn()
        .unwrap();
    (Ended(child), address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_in_front_tells_who_its_clients_are() {
    let edge = Edge::start();
    let own: IpAddr = Ipv4Addr::new(127, 9, 8, 7).into();
    for (listener, send) in [
        ("web", "send-proxy check-send-proxy"),
        ("web", "send-proxy-v2 check-send-proxy"),
        (
            "web",
            "send-proxy-v2 proxy-v2-options crc32c,unique-id check-send-proxy",
        ),
        ("tls", "send-proxy-v2 check-send-proxy"),
        ("tls", "send-proxy check-send-proxy"),
    ] {
        let (_haproxy, front) = haproxy(&edge, listener, send);
        for http2 in [false, true] {
            let client = Client {
                to: To::TcpFrom(own, front),
                ..edge.client(listener, http2, Vec::new())
            };
            let answer = client.get("/").await;
            let answer =
                answer.unwrap_or_else(|error| panic!("{send} to {listener}, http2 {http2}: {error}"));
            assert_eq!(answer.header("x-saw-x-forwarded-for"), "127.9.8.7", "{send}");
        }
    }
    // Neither its checks, which are connections of its own, nor its clients were refused.
    for listener in ["web", "tls"] {
        edge.waits_for_rejected(listener, "proxy_protocol", 0);
    }
}
