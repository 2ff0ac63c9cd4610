//! Request heads that are larger than an HTTP/2 version takes: whoever sends one pays for it, and nobody else.

use crate::support::{
    HEAD, Serin,
    h2::{
        ACK, END_HEADERS, END_STREAM, GOAWAY, H2, HEADERS, PING, RST_STREAM, Response, SETTINGS, block,
        request,
    },
    now, wait_for,
};
use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(30);
const ENHANCE_YOUR_CALM: u32 = 11;

/// What becomes of a head that is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Its stream is reset.
    Reset,
    /// The connection is ended with an error that names this request as the last one that was looked at.
    Throw,
    /// The same, and nothing of it was looked at.
    ThrowUntouched,
    /// The connection is closed without a word.
    Close,
}

/// A version that speaks HTTP/2 by hand and takes heads up to a size.
#[derive(Clone, Copy)]
struct Picky {
    announced: Option<u32>,
    most: usize,
    act: Act,
}

/// The connection that a request came on, its path, and whether its head was too large. Each connection begins with one line.
type Log = Arc<Mutex<Vec<(usize, String, bool)>>>;

fn start(picky: Picky) -> (SocketAddr, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (at, log) = (listener.local_addr().unwrap(), Log::default());
    let shared = Arc::clone(&log);
    std::thread::spawn(move || {
        for (connection, stream) in listener.incoming().enumerate() {
            let (stream, log) = (stream.unwrap(), Arc::clone(&shared));
            log.lock()
                .unwrap()
                .push((connection, "accepted".to_owned(), false));
            // Ends with Serin's end of the connection.
            std::thread::spawn(move || serve(stream, connection, picky, &log));
        }
    });
    (at, log)
}

fn serve(stream: TcpStream, connection: usize, picky: Picky, log: &Log) {
    let setting = |most: u32| [&6u16.to_be_bytes()[..], &most.to_be_bytes()].concat();
    let mut version = H2::accepted_with(stream, &picky.announced.map(setting).unwrap_or_default());
    let (mut held, mut last) = (Vec::new(), 0u32);
    while let Some(frame) = version.read() {
        match frame.kind {
            SETTINGS if frame.flags & ACK == 0 => drop(version.send(SETTINGS, ACK, 0, &[])),
            PING if frame.flags & ACK == 0 => drop(version.send(PING, ACK, 0, &frame.payload)),
            HEADERS => {
                let fields = version.decode(frame.payload, frame.flags);
                let size: usize = fields
                    .iter()
                    .map(|(name, value)| name.len() + value.len() + 32)
                    .sum();
                let path = fields.iter().find(|(name, _)| name == ":path").unwrap().1.clone();
                let too_large = size > picky.most;
                log.lock().unwrap().push((connection, path.clone(), too_large));
                let thrown = |last: u32| [last.to_be_bytes(), ENHANCE_YOUR_CALM.to_be_bytes()].concat();
                match picky.act {
                    _ if !too_large => {}
                    Act::Reset => {
                        version.send(RST_STREAM, 0, frame.stream, &ENHANCE_YOUR_CALM.to_be_bytes());
                        continue;
                    }
                    Act::Throw => drop(version.send(GOAWAY, 0, 0, &thrown(frame.stream))),
                    Act::ThrowUntouched => drop(version.send(GOAWAY, 0, 0, &thrown(last))),
                    Act::Close => {}
                }
                if too_large {
                    return;
                }
                last = frame.stream;
                held.push(frame.stream);
                // Held for ever on the first connection, and until somebody says so.
                if path == "/wait" || path == "/first" && connection == 0 {
                    continue;
                }
                let ready = if path == "/release" {
                    std::mem::take(&mut held)
                } else {
                    held.pop().into_iter().collect()
                };
                for stream in ready {
                    let size = size.to_string();
                    let answer = block(&[(":status", "200"), ("x-size", &size)]);
                    version.send(HEADERS, END_HEADERS | END_STREAM, stream, &answer);
                }
            }
            _ => {}
        }
    }
}

fn in_front_of(at: SocketAddr) -> Serin {
    Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"h2c://{at}\"]}}}}]"
    ))
}

/// Asks with a cookie of this size; what came of it.
fn ask(client: &mut H2, stream: u32, method: &'static str, path: &'static str, cookie: usize) -> Response {
    send(client, stream, method, path, cookie);
    client.response(stream).expect("the client's connection goes on")
}

fn send(client: &mut H2, stream: u32, method: &'static str, path: &'static str, cookie: usize) {
    let cookie = format!("a={}", "x".repeat(cookie));
    let mut fields = request(method, path);
    fields.push(("cookie", &cookie));
    client.head(stream, &fields, true);
}

fn wait_arrival(log: &Log, path: &str) {
    wait_for(path, SOON, || {
        log.lock()
            .unwrap()
            .iter()
            .any(|(_, seen, _)| seen == path)
            .then_some(())
    });
}

fn too_large(log: &Log) -> Vec<usize> {
    let log = log.lock().unwrap();
    log.iter()
        .filter(|(.., large)| *large)
        .map(|(connection, ..)| *connection)
        .collect()
}

#[test]
fn a_head_beyond_what_a_version_says_that_it_takes_is_refused_before_it_is_sent() {
    // Below and above what goes on a connection of its own.
    for most in [4096, 12_000] {
        let (at, log) = start(Picky {
            announced: Some(most),
            most: usize::try_from(most).unwrap(),
            act: Act::Throw,
        });
        let serin = in_front_of(at);
        let mut client = H2::connect(serin.web);
        send(&mut client, 1, "POST", "/wait", 10);
        wait_arrival(&log, "/wait");
        for (stream, method) in [(3, "GET"), (5, "POST")] {
            assert_eq!(ask(&mut client, stream, method, "/large", 13_000).status, 431);
        }
        assert_eq!(ask(&mut client, 7, "GET", "/fits", 3000).status, 200);
        send(&mut client, 9, "GET", "/release", 10);
        assert_eq!(client.response(1).unwrap().status, 200);
        assert!(too_large(&log).is_empty());
        let log = log.lock().unwrap();
        assert!(
            log.iter().all(|(connection, ..)| *connection == 0),
            "{most}: none is opened for what is refused: {log:?}"
        );
        let refused = serin.count("serin_http_rejected_total", &[("reason", "header_limit")]);
        let failed = serin.count("serin_version_outcomes_total", &[("outcome", "failed")]);
        assert_eq!((refused, failed), (2, 0));
    }
}

#[test]
fn what_is_counted_is_what_is_sent() {
    let (at, log) = start(Picky {
        announced: Some(4096),
        most: 4096,
        act: Act::Reset,
    });
    let serin = in_front_of(at);
    let mut client = H2::connect(serin.web);
    let mut streams = (1..).step_by(2);
    // To some the library adds a field.
    for method in ["GET", "POST", "DELETE"] {
        let mut asked = |cookie| {
            let response = ask(&mut client, streams.next().unwrap(), method, "/", cookie);
            let size = response.fields.iter().find(|(name, _)| name == "x-size");
            (
                response.status,
                size.map(|(_, size)| size.parse::<usize>().unwrap()),
            )
        };
        let (_, size) = asked(3000);
        let fits = 3000 + 4096 - size.unwrap();
        assert_eq!(asked(fits), (200, Some(4096)), "{method}");
        assert_eq!(asked(fits + 1), (431, None), "{method}");
    }
    assert!(too_large(&log).is_empty());
}

#[test]
fn a_head_that_makes_a_version_end_the_connection_costs_others_a_repeat_once_and_from_then_on_nothing() {
    for act in [Act::Throw, Act::ThrowUntouched, Act::Close] {
        let (at, log) = start(Picky {
            announced: Some(16_384),
            most: 10_000,
            act,
        });
        let serin = in_front_of(at);
        let mut client = H2::connect(serin.web);
        // A response to the first request has the connection kept, and known as one that others share.
        assert_eq!(ask(&mut client, 1, "GET", "/", 10).status, 200);
        send(&mut client, 3, "GET", "/first", 10);
        wait_arrival(&log, "/first");
        if act == Act::Throw {
            // However long the other has been worked on.
            let begun = now();
            wait_for("the time", SOON, || {
                (begun.elapsed() > Duration::from_millis(1200)).then_some(())
            });
        }
        // Nobody knows yet that it is too large, whatever the version says.
        send(&mut client, 5, "GET", "/large", 12_000);
        let (mut first, mut large) = (None, None);
        while first.is_none() || large.is_none() {
            let frame = client.read().expect("the client's connection goes on");
            if frame.kind == HEADERS {
                let fields = client.decode(frame.payload, frame.flags);
                let status = Some(fields[0].1.clone());
                match frame.stream {
                    3 => first = status,
                    5 => large = status,
                    _ => {}
                }
            } else if frame.kind == RST_STREAM {
                panic!("{act:?}: stream {} is reset", frame.stream);
            }
        }
        assert_eq!(
            (first.as_deref(), large.as_deref()),
            (Some("200"), Some("502")),
            "{act:?}"
        );
        let sent = too_large(&log);
        assert_eq!(
            sent.len(),
            2,
            "{act:?}: on the shared connection, and once more by itself: {sent:?}"
        );
        assert_eq!(sent[0], 0);

        // What must not be sent twice is safe from now on.
        send(&mut client, 7, "POST", "/wait", 10);
        wait_arrival(&log, "/wait");
        for stream in [9, 11, 13] {
            assert_eq!(
                ask(&mut client, stream, "GET", "/large", 12_000).status,
                502,
                "{act:?}"
            );
        }
        assert_eq!(ask(&mut client, 15, "POST", "/large", 13_000).status, 502);
        send(&mut client, 17, "GET", "/release", 10);
        assert_eq!(client.response(7).unwrap().status, 200, "{act:?}");
        assert_eq!(too_large(&log).len(), 2 + 4, "{act:?}: once each");
    }
}

#[test]
fn a_head_larger_than_any_that_was_answered_goes_by_itself_until_one_is() {
    let (at, log) = start(Picky {
        announced: None,
        most: 12_000,
        act: Act::Close,
    });
    let serin = in_front_of(at);
    let mut client = H2::connect(serin.web);
    send(&mut client, 1, "POST", "/wait", 10);
    wait_arrival(&log, "/wait");
    let connections = || {
        log.lock()
            .unwrap()
            .iter()
            .map(|(connection, ..)| *connection)
            .max()
    };
    assert_eq!(ask(&mut client, 3, "POST", "/large", 13_000).status, 502);
    assert_eq!(ask(&mut client, 5, "POST", "/larger", 11_000).status, 200);
    assert_eq!(connections(), Some(2), "each had its own");
    // That is known to be safe.
    for stream in [7, 9] {
        assert_eq!(ask(&mut client, stream, "POST", "/again", 10_900).status, 200);
    }
    assert_eq!(connections(), Some(2));
    send(&mut client, 11, "GET", "/release", 10);
    assert_eq!(client.response(1).unwrap().status, 200);
}

#[test]
fn a_head_whose_stream_is_reset_costs_no_other_request() {
    let (at, log) = start(Picky {
        announced: None,
        most: 2000,
        act: Act::Reset,
    });
    let serin = in_front_of(at);
    let mut client = H2::connect(serin.web);
    send(&mut client, 1, "POST", "/wait", 10);
    wait_arrival(&log, "/wait");
    for stream in [3, 5, 7] {
        assert_eq!(ask(&mut client, stream, "GET", "/large", 3000).status, 502);
    }
    assert_eq!(too_large(&log), [0, 0, 0], "once each");
    send(&mut client, 9, "GET", "/release", 10);
    assert_eq!(client.response(1).unwrap().status, 200);
}

/// Serin with a canary that announces nothing, takes heads of at most so many bytes and does this with others; and what came to
/// the canary.
fn on_trial(most: usize, act: Act) -> (Serin, Log) {
    let announced = None;
    let (stable, _) = start(Picky {
        announced,
        most: usize::MAX,
        act: Act::Close,
    });
    let (canary, log) = start(Picky { announced, most, act });
    let serin = Serin::start_with(&format!(
        "{HEAD}
services:
  - name: shop
    stable: {{version: v1, endpoints: [\"h2c://{stable}\"]}}
    canary: {{version: v2, endpoints: [\"h2c://{canary}\"]}}
    force: {{header: x-canary}}
    strategy: {{canary: {{steps: [{{setWeight: 5}}, {{pause: {{}}}}]}}}}
"
    ));
    serin.wait_status("shop", "the pause", |status| status["phase"] == "Paused");
    (serin, log)
}

/// A request of the canary's, with a cookie of so many bytes.
fn force(client: &mut H2, stream: u32, path: &'static str, cookie: usize) -> u16 {
    let cookie = format!("a={}", "x".repeat(cookie));
    let mut fields = request("POST", path);
    fields.extend([("cookie", cookie.as_str()), ("x-canary", "always")]);
    client.head(stream, &fields, true);
    client.response(stream).unwrap().status
}

#[test]
fn one_clients_large_heads_pull_no_canary_back() {
    let (serin, log) = on_trial(9000, Act::Throw);
    let mut client = H2::connect(serin.web);
    let mut forced = |stream, path, cookie| force(&mut client, stream, path, cookie);
    for stream in (1..20).step_by(2) {
        assert_eq!(
            forced(stream, "/large", 10_000 + usize::try_from(stream).unwrap()),
            502
        );
    }
    assert_eq!(forced(21, "/", 10), 200);
    assert_eq!(too_large(&log).len(), 10);
    assert_eq!(
        log.lock().unwrap().last().unwrap().1,
        "/",
        "the canary is asked as before"
    );
    assert_eq!(serin.count("serin_rollout_aborts_total", &[]), 0);
}

#[test]
fn a_canary_that_ends_every_connection_is_pulled_back_although_no_head_is_small() {
    let (serin, log) = on_trial(0, Act::Close);
    let mut client = H2::connect(serin.web);
    let statuses = [1, 3, 5, 7].map(|stream| force(&mut client, stream, "/", 1500));
    assert_eq!(statuses, [502, 502, 502, 200], "the fourth finds stable alone");
    assert_eq!(too_large(&log).len(), 3);
    serin.wait_log("every endpoint of the canary v2 failed");
}
