//! Many clients at once, most of whom want nothing now: what they cost, and that each is still served when it asks.

use crate::support::{
    Serin,
    authority::Authority,
    full_form, now,
    raw::{Next, RawClient, RawUpstream},
    say,
    upstream::Upstream,
    wait_for,
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::Arc,
    time::Duration,
};

const LONG: Duration = Duration::from_secs(120);
const KIB: u64 = 1 << 10;
const ASK: &str = "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n";

/// A client's end of a connection, encrypted or not.
type Stream = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

trait Both: Read + Write {
    fn socket(&self) -> &TcpStream;
}

impl Both for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Both for Stream {
    fn socket(&self) -> &TcpStream {
        self.get_ref()
    }
}

/// Serin with a listener that speaks TLS or does not, and whoever may connect to it.
struct Place {
    serin: Serin,
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Place {
    /// `connections`: to the version; the more of them are allowed, the fewer clients are.
    fn start(url: &str, tls: bool, timeouts: &str, connections: u64) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("test");
        authority.issue(&["shop.test"]).write(folder.path(), "web");
        let key = if tls {
            ", tls: {certificate: web.pem, key: web.key}"
        } else {
            ""
        };
        let configuration = format!(
            "listeners: [{{name: web, address: \"127.0.0.1:0\", timeouts: {{{timeouts}}}{key}}}]\n\
             admin: {{address: \"127.0.0.1:0\"}}\n\
             services: [{{name: shop, timeouts: {{connect: 60s}}, limits: {{requests: 10000, connections: {connections}}}, \
             stable: {{version: v1, endpoints: [\"{url}\"]}}}}]"
        );
        std::fs::write(folder.path().join("serin.yaml"), configuration).unwrap();
        Place {
            serin: Serin::run_in(folder, &[]),
            tls: tls.then(|| authority.client(&["http/1.1"])),
        }
    }

    fn connect(&self) -> Box<dyn Both> {
        let socket = TcpStream::connect(self.serin.web).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        let Some(config) = &self.tls else {
            return Box::new(socket);
        };
        let name = rustls_pki_types::ServerName::try_from("shop.test").unwrap();
        let connection = rustls::ClientConnection::new(Arc::clone(config), name).unwrap();
        Box::new(Stream::new(connection, socket))
    }

    /// As many connections that have been served once.
    fn connect_and_ask(&self, count: u64) -> Vec<Box<dyn Both>> {
        let one = |_| {
            let mut client = self.connect();
            ask(&mut client);
            client
        };
        (0..count).map(one).collect()
    }
}

fn read_until_v1(client: &mut Box<dyn Both>) -> String {
    let (mut text, mut piece) = (String::new(), [0; 4096]);
    while !text.ends_with("v1") {
        let read = client.read(&mut piece).unwrap();
        assert!(read > 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&piece[..read]).unwrap());
    }
    text
}

fn ask(client: &mut Box<dyn Both>) {
    client.write_all(ASK.as_bytes()).unwrap();
    let text = read_until_v1(client);
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
}

/// Everything until the other side closes.
fn rest(client: &mut Box<dyn Both>) -> String {
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    String::from_utf8(all).unwrap()
}

#[test]
fn ten_thousand_that_are_idle_take_at_most_thirty_kib_each_and_sixty_with_tls() {
    let upstream = Upstream::start("v1");
    for (tls, most) in [(false, 30 * KIB), (true, 60 * KIB)] {
        let place = Place::start(&upstream.url(), tls, "keepAlive: 10m", 100);
        drop(place.connect_and_ask(50));
        let open = || place.serin.metric("serin_client_connections", &[]);
        wait_for("their ends", LONG, || (open() < 0.5).then_some(()));
        let before = place.serin.resident();
        let count = full_form(300, 10_000).min((files() - 2_000) / 2);
        let mut idle = place.connect_and_ask(count);
        let each = place.serin.resident().saturating_sub(before) / count;
        say(&format!(
            "{count} idle connections (TLS: {tls}): {each} bytes each"
        ));
        assert!(each <= most, "{each} bytes each, TLS: {tls}");
        // They are all still there.
        idle.iter_mut().for_each(ask);
    }
}

/// How many files this process may have open, as many as the system allows.
fn files() -> u64 {
    rlimit::increase_nofile_limit(u64::MAX).unwrap()
}

#[test]
fn ten_thousand_idle_ones_and_ten_thousand_requests_in_flight_get_all_their_answers() {
    let upstream = Upstream::start("v1");
    let place = Place::start(
        &upstream.url(),
        false,
        "keepAlive: 10m, responseHeaders: 10m",
        10_000,
    );
    // Of the files that Serin may open half are for versions: both kinds of clients share the other half.
    let count = full_form(300, 10_000).min((files() - 2_000) / 4);
    let mut idle = place.connect_and_ask(count);
    let before = place.serin.resident();
    let mut busy: Vec<RawClient> = (0..count).map(|_| RawClient::connect(place.serin.web)).collect();
    for client in &mut busy {
        client.send("GET /gate HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    }
    wait_for("all of them in flight", LONG, || {
        (upstream.in_flight() == count).then_some(())
    });
    let each = place.serin.resident().saturating_sub(before) / count;
    say(&format!("{count} requests in flight (h1): {each} bytes each"));
    idle.iter_mut().for_each(ask);
    upstream.open_gate();
    for client in &mut busy {
        assert_eq!(client.answer("GET").unwrap().status, 200);
    }
}

#[test]
fn who_has_waited_for_long_is_served_and_closed_as_anybody_else() {
    let upstream = &Upstream::start("v1");
    std::thread::scope(|scope| {
        for tls in [false, true] {
            scope.spawn(move || who_has_waited_for_long(upstream, tls));
        }
    });
}

/// A client that is not run for a part of a second, as happens on a busy machine, is in time all the same: no more is done within
/// a limit than what takes a small part of it.
fn who_has_waited_for_long(upstream: &Upstream, tls: bool) {
    // Idle for as long as a head may take, they wait with as little as they can.
    let mut place = Place::start(&upstream.url(), tls, "requestHeaders: 1500ms, keepAlive: 6s", 100);
    let begun = now();
    let mut clients = place.connect_and_ask(6);
    let mut silent = clients.pop().unwrap();
    silent
        .socket()
        .set_read_timeout(Some(Duration::from_millis(1800)))
        .unwrap();
    let error = silent.read(&mut [0; 1]).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{error}"
    );
    silent.socket().set_read_timeout(Some(LONG)).unwrap();
    let [together, slowly, broken, leaving, again] = clients.as_mut_slice() else {
        panic!("five of them are left");
    };
    together.write_all(ASK.repeat(2).as_bytes()).unwrap();
    let mut text = read_until_v1(together);
    if text.matches("HTTP/1.1 200 ").count() < 2 {
        text += &read_until_v1(together);
    }
    assert_eq!(text.matches("HTTP/1.1 200 ").count(), 2, "{text}");
    for byte in ASK.as_bytes().chunks(1).take(7) {
        slowly.write_all(byte).unwrap();
    }
    slowly.write_all(&ASK.as_bytes()[7..]).unwrap();
    assert!(read_until_v1(slowly).starts_with("HTTP/1.1 200 "));
    broken.write_all(b"GET / HT").unwrap();
    let mut told = Vec::new();
    // Such an end is not announced.
    let _ = broken.read_to_end(&mut told);
    assert!(told.starts_with(b"HTTP/1.1 408 "), "{told:?}");
    leaving.socket().shutdown(Shutdown::Write).unwrap();
    let mut left = Vec::new();
    // Without a word of TLS that it was meant, it is an error to our end as well.
    let _ = leaving.read_to_end(&mut left);
    assert!(left.is_empty() && now() < begun + Duration::from_secs(100));
    ask(again);
    // The one that never asked has had its time; the end is announced.
    assert_eq!(rest(&mut silent), "");
    assert!(now() >= begun + Duration::from_secs(6));

    let mut last = place.connect_and_ask(2);
    place.serin.signal("TERM");
    wait_for("the stop", LONG, || {
        place.serin.log().contains("stopping").then_some(())
    });
    ask_last(&mut last[0]);
    assert_eq!(rest(&mut last[1]), "");
    assert_eq!(place.serin.wait_end(LONG), 0, "{}", place.serin.log());
}

#[test]
fn what_is_left_of_a_body_is_never_taken_for_the_next_request() {
    let upstream = RawUpstream::start(|seen, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nv1");
        if seen.method() == "GET" {
            return Next::Keep;
        }
        // It has answered before the body has come, and goes on reading.
        while matches!(stream.read(&mut [0; 64]), Ok(1..)) {}
        Next::Close
    });
    let place = Place::start(&upstream.url(), false, "keepAlive: 3s", 100);
    let mut client = place.connect();
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    let length = 10 + smuggled.len();
    let begin = format!("POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {length}\r\n\r\n0123456789");
    client.write_all(begin.as_bytes()).unwrap();
    assert!(read_until_v1(&mut client).starts_with("HTTP/1.1 200 "));
    // Others come in numbers: whoever waits shall wait with less, and is taken back from hyper. The second look at them tells for
    // how long they have waited. What still comes of the body is read for a second after the answer, and meant for the version.
    let answered = now();
    let mut crowd = Vec::new();
    while crowd.len() < 400 || now() < answered + Duration::from_millis(250) {
        crowd.extend(place.connect_and_ask(50));
    }
    let _ = client.write_all(smuggled.as_bytes());
    let mut told = Vec::new();
    let _ = client.read_to_end(&mut told);
    let told = String::from_utf8_lossy(&told);
    assert!(!told.contains("HTTP/1.1 200 "), "{told}");
    let seen = upstream.since(0);
    assert!(
        seen.iter().all(|one| !one.target().contains("smuggled")),
        "{seen:?}"
    );
}

/// A request that comes while Serin stops is answered, and told that it was the last. The log tells of a stop before the workers
/// know of it: until then one is answered as ever.
fn ask_last(client: &mut Box<dyn Both>) {
    let mut text = String::new();
    while !text.contains("connection: close") {
        client.write_all(ASK.as_bytes()).unwrap();
        text = read_until_v1(client);
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    }
    assert_eq!(rest(client), "");
}
