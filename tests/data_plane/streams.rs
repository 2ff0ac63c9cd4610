//! The streams of one HTTP/2 connection: what one client does to one of them is nothing to the others.

use crate::support::{
    HEAD, Serin,
    h2::{ACK, DATA, GOAWAY, H2, HEADERS, PADDED, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, request},
    http::{Server, Speaks},
    now,
    raw::RawClient,
    upstream::Upstream,
    wait_for,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

const LONG: Duration = Duration::from_secs(20);
const CANCEL: u32 = 8;

/// One service behind a listener with these timeouts.
fn start(upstream: &Upstream, timeouts: &str) -> Serin {
    Serin::start_with(&format!(
        "
listeners: [{{name: web, address: \"127.0.0.1:0\", timeouts: {timeouts}}}]
admin: {{address: \"127.0.0.1:0\"}}
services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        upstream.url()
    ))
}

fn timed_out(serin: &Serin) -> u64 {
    serin.count("serin_http_rejected_total", &[("reason", "timeout")])
}

#[test]
fn a_stream_that_its_client_never_reads_is_reset_after_the_write_stall_and_the_others_go_on() {
    for upstream in [Upstream::start("v1"), Upstream::h2c("v1")] {
        let serin = start(&upstream, "{writeStall: 1s}");
        let mut client = H2::connect(serin.web);
        // Room on the connection, so that the one that is not read is in nobody's way.
        client.send(WINDOW_UPDATE, 0, 0, &(1u32 << 24).to_be_bytes());
        client.head(1, &request("GET", "/stream/64000000"), true);
        client.head(3, &request("GET", "/drip/60/50"), true);
        let (mut stalled, mut moving) = (0, 0);
        let code = loop {
            let frame = client.read().expect("the connection goes on");
            match (frame.kind, frame.stream) {
                (DATA, 1) => stalled += frame.payload.len(),
                (DATA, 3) => moving += frame.payload.len(),
                (HEADERS, _) => drop(client.decode(frame.payload, frame.flags)),
                (RST_STREAM, 1) => break frame.error(),
                _ => {}
            }
        };
        assert_eq!((code, stalled), (Some(CANCEL), 65_535), "{}", upstream.url());
        let rest = client.response(3).unwrap();
        assert_eq!((rest.reset, moving + rest.body.len()), (None, 60));
        client.head(5, &request("GET", "/"), true);
        assert_eq!(client.response(5).unwrap().status, 200);
        assert_eq!(timed_out(&serin), 1);
        let answers = |status| serin.count("serin_http_requests_total", &[("status", status)]);
        assert_eq!((answers("499"), answers("200")), (1, 2));
        assert_eq!(serin.count("serin_http_requests_in_flight", &[]), 0);
        let failed = serin.count("serin_version_outcomes_total", &[("outcome", "failed")]);
        assert_eq!(failed, 0, "no fault of the version");
    }
}

#[test]
fn an_upload_that_stops_ends_by_itself_and_the_others_go_on() {
    let upstream = Upstream::start("v1");
    let serin = start(&upstream, "{bodyIdle: 1s}");
    let mut client = H2::connect(serin.web);
    for stream in [1, 3] {
        client.head(stream, &request("POST", "/echo"), false);
    }
    client.send(DATA, 0, 1, b"never");
    let (begun, mut streams) = (now(), (5..).step_by(2));
    // The second upload goes on for longer than a pause may be, and other requests come and go.
    while begun.elapsed() < Duration::from_millis(1500) {
        client.send(DATA, 0, 3, b"x");
        let stream = streams.next().unwrap();
        client.head(stream, &request("GET", "/wait/50"), true);
        // What else comes before its answer is of no interest here.
        assert_eq!(client.response(stream).unwrap().status, 200);
    }
    wait_for("the count", LONG, || (timed_out(&serin) == 1).then_some(()));
    client.send(DATA, 1, 3, b"x");
    let whole = client.response(3).unwrap();
    assert_eq!((whole.status, whole.reset), (200, None));
    assert_eq!(timed_out(&serin), 1);
}

#[test]
fn empty_pieces_are_no_progress_of_an_upload() {
    let upstream = Upstream::start("v1");
    let serin = start(&upstream, "{bodyIdle: 1s}");
    // One byte of padding, and nothing else.
    for (flags, nothing) in [(0, &[][..]), (PADDED, &[1, 0][..])] {
        let mut client = H2::connect(serin.web);
        client.head(1, &request("POST", "/echo"), false);
        client.send(DATA, 0, 1, b"a beginning");
        let begun = now();
        let mut other = (3..).step_by(2);
        let status = loop {
            client.send(DATA, flags, 1, nothing);
            client.head(other.next().unwrap(), &request("GET", "/wait/50"), true);
            let answer = std::iter::from_fn(|| client.read()).find(|frame| frame.kind == HEADERS);
            let answer = answer.expect("the connection goes on");
            let fields = client.decode(answer.payload, answer.flags);
            if answer.stream == 1 {
                break fields[0].1.clone();
            }
            assert!(begun.elapsed() < LONG, "it goes on for ever");
        };
        assert_eq!(status, "408");
    }
}

#[test]
fn empty_pieces_are_no_progress_of_an_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut version = H2::accepted(listener.accept().unwrap().0);
        while let Some(frame) = version.read() {
            if frame.kind == HEADERS {
                version.head(1, &[(":status", "200")], false);
                version.send(DATA, 0, 1, b"a beginning");
                break;
            }
        }
        while version.send(DATA, 0, 1, &[]) && version.send(DATA, PADDED, 1, &[0]) {
            std::thread::park_timeout(Duration::from_millis(50));
        }
    });
    let serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"h2c://{at}\"]}}, timeouts: {{streamIdle: 1s}}}}]"
    ));
    let mut client = RawClient::connect(serin.web);
    client.send("GET / HTTP/1.1\r\nhost: shop\r\n\r\n");
    let answer = client.answer("GET").unwrap();
    assert!(answer.status == 200 && !answer.whole, "{answer:?}");
}

/// A version that speaks HTTP/2 and takes that many requests at once on a connection.
fn narrow(streams: u32) -> Server {
    Server::start(Speaks {
        http2: true,
        streams: Some(streams),
        ..Speaks::default()
    })
}

fn in_front_of(version: &Server, limits: &str) -> Serin {
    Serin::start_with(&format!(
        "{HEAD}services:
  - name: shop
    stable: {{version: v1, endpoints: [\"h2c://127.0.0.1:{}\"]}}
    timeouts: {{connect: 1m}}
    limits: {limits}",
        version.port()
    ))
}

/// Asks for answers without an end on these streams, and waits until each has begun.
fn begin(client: &mut H2, streams: impl Iterator<Item = u32>) {
    let mut waiting = BTreeSet::new();
    for stream in streams {
        client.head(stream, &request("GET", "/hang"), true);
        waiting.insert(stream);
    }
    while !waiting.is_empty() {
        let frame = client
            .read()
            .unwrap_or_else(|| panic!("{waiting:?} wait behind others"));
        match frame.kind {
            DATA => drop(waiting.remove(&frame.stream)),
            HEADERS => drop(client.decode(frame.payload, frame.flags)),
            _ => {}
        }
    }
}

#[test]
fn requests_beyond_what_a_version_takes_on_one_connection_get_further_ones() {
    let version = narrow(2);
    let serin = in_front_of(&version, "{}");
    // One client, so that one worker has them all, and all at once: the first must not take more than it can carry.
    let mut client = H2::connect(serin.web);
    begin(&mut client, (1..21).step_by(2));
    assert_eq!(version.seen.connections.load(Ordering::SeqCst), 5);
    // Those that come free are used again.
    for stream in (1..21).step_by(2) {
        client.send(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
    }
    wait_for("their ends", LONG, || {
        (version.seen.canceled.load(Ordering::SeqCst) == 10).then_some(())
    });
    begin(&mut client, (21..41).step_by(2));
    assert_eq!(version.seen.connections.load(Ordering::SeqCst), 5);
}

#[test]
fn requests_beyond_what_all_connections_may_carry_wait_for_one_that_ends() {
    let version = narrow(2);
    let serin = in_front_of(&version, "{connections: 2}");
    let mut client = H2::connect(serin.web);
    begin(&mut client, (1..9).step_by(2));
    for (ends, next, then) in [(1, 9, 11), (3, 13, 15)] {
        client.head(next, &request("GET", "/"), true);
        wait_for("it to wait", LONG, || {
            (serin.count("serin_http_requests_in_flight", &[]) == 5).then_some(())
        });
        client.send(RST_STREAM, 0, ends, &CANCEL.to_be_bytes());
        assert_eq!(client.response(next).unwrap().status, 200);
        // It has left its seat to the next one again.
        begin(&mut client, std::iter::once(then));
    }
    assert_eq!(version.seen.connections.load(Ordering::SeqCst), 2);
}

/// A client that takes ten bytes of an answer of a thousand and closes its window: the library has the rest, and Serin is done
/// with the request.
fn takes_a_beginning(serin: &Serin) -> H2 {
    let mut client = H2::connect(serin.web);
    client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 10]);
    client.head(1, &request("GET", "/bytes/1000"), true);
    let beginning = loop {
        let frame = client.read().expect("an answer");
        match frame.kind {
            DATA => break frame.payload,
            HEADERS => drop(client.decode(frame.payload, frame.flags)),
            _ => {}
        }
    };
    assert_eq!(beginning.len(), 10);
    wait_for("the request's end", LONG, || {
        (serin.count("serin_http_requests_in_flight", &[]) == 0).then_some(())
    });
    client
}

fn stays_open_for(time: Duration, client: &mut H2) {
    let begun = now();
    wait_for("the time", LONG, || (begun.elapsed() >= time).then_some(()));
    client.send(PING, 0, 0, &[7; 8]);
    let answered = std::iter::from_fn(|| client.read()).any(|frame| frame.kind == PING && frame.flags == 1);
    assert!(answered, "it was closed");
}

#[test]
fn frames_that_mean_nothing_leave_no_word_in_the_log_however_many_they_are() {
    let upstream = Upstream::start("v1");
    let serin = start(&upstream, "{}");
    let mut client = H2::connect(serin.web);
    let before = serin.log();
    for _ in 0..100 {
        client.send(PING, ACK, 0, b"no ping!");
    }
    client.head(1, &request("GET", "/"), true);
    assert_eq!(client.response(1).unwrap().body, b"v1");
    assert_eq!(serin.log(), before);
}

#[test]
fn a_stop_waits_for_the_end_of_an_answer_whose_client_has_closed_its_window() {
    let upstream = Upstream::start("v1");
    let mut serin = start(&upstream, "{drain: 1m}");
    let mut client = takes_a_beginning(&serin);
    serin.signal("TERM");
    let goodbye = std::iter::from_fn(|| client.read()).find(|frame| frame.kind == GOAWAY);
    assert_eq!(goodbye.unwrap().error(), Some(0));
    // Silent connections are closed after a second.
    stays_open_for(Duration::from_secs(2), &mut client);
    client.send(WINDOW_UPDATE, 0, 1, &1_000u32.to_be_bytes());
    let rest = client.response(1).unwrap();
    assert_eq!((rest.body.len(), rest.reset), (990, None));
    assert_eq!(serin.wait_end(LONG), 0);
}

/// Asks for this in a stream whose window is never opened again, and for a drip beside it; the answer is given up, and the drip
/// goes on.
fn is_given_up(serin: &Serin, path: &'static str, window: u32) {
    let mut client = H2::connect(serin.web);
    let setting = [&[0, 4][..], &window.to_be_bytes()].concat();
    client.send(SETTINGS, 0, 0, &setting);
    // Room on the connection, and for the other stream alone.
    client.send(WINDOW_UPDATE, 0, 0, &(1u32 << 24).to_be_bytes());
    client.head(1, &request("GET", path), true);
    client.head(3, &request("GET", "/drip/60/50"), true);
    client.send(WINDOW_UPDATE, 0, 3, &(1u32 << 16).to_be_bytes());
    let (mut taken, mut moving) = (0, 0);
    let code = loop {
        let frame = client.read().expect("the connection goes on");
        match (frame.kind, frame.stream) {
            (DATA, 1) => taken += frame.payload.len(),
            (DATA, 3) => moving += frame.payload.len(),
            (HEADERS, _) => drop(client.decode(frame.payload, frame.flags)),
            (RST_STREAM, 1) => break frame.error(),
            _ => {}
        }
        assert!(
            moving < 60,
            "{path}: held as long as the connection serves others"
        );
    };
    assert_eq!(
        (code, taken),
        (Some(CANCEL), usize::try_from(window).unwrap()),
        "{path}"
    );
    let rest = client.response(3).unwrap();
    assert_eq!((rest.reset, moving + rest.body.len()), (None, 60), "{path}");
}

#[test]
fn the_end_of_an_answer_that_its_client_never_takes_is_given_up_after_the_write_stall_and_the_others_go_on() {
    for upstream in [Upstream::start("v1"), Upstream::h2c("v1")] {
        let serin = start(&upstream, "{writeStall: 1s, keepAlive: 1h}");
        // With a length and without, in a window that is as large as ever and in a small one.
        let answers = [
            ("/bytes/100000", 65_535),
            ("/stream/100000", 65_535),
            ("/bytes/1000", 10),
            ("/stream/1000", 10),
        ];
        std::thread::scope(|scope| {
            for (path, window) in answers {
                let serin = &serin;
                scope.spawn(move || is_given_up(serin, path, window));
            }
        });
        assert_eq!(timed_out(&serin), 4, "{}", upstream.url());
        let failed = serin.count("serin_version_outcomes_total", &[("outcome", "failed")]);
        assert_eq!(failed, 0, "no fault of the version");
    }
}

#[test]
fn an_answer_whose_client_takes_it_in_small_steps_arrives_whole() {
    let upstream = Upstream::start("v1");
    let serin = start(&upstream, "{writeStall: 30s}");
    for path in ["/bytes/100000", "/stream/100000"] {
        let mut client = H2::connect(serin.web);
        client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0x04, 0]);
        client.head(1, &request("GET", path), true);
        let whole = client.response(1).unwrap();
        assert_eq!(
            (whole.status, whole.body.len(), whole.reset),
            (200, 100_000, None)
        );
    }
    assert_eq!(timed_out(&serin), 0);
}

#[test]
fn a_connection_whose_answers_have_ended_or_were_given_up_lasts_for_its_keep_alive() {
    let upstream = Upstream::start("v1");
    let serin = start(&upstream, "{writeStall: 500ms, keepAlive: 1h}");
    let mut client = takes_a_beginning(&serin);
    client.send(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
    client.head(3, &request("GET", "/stream/10"), true);
    assert_eq!(client.response(3).unwrap().body.len(), 10);
    stays_open_for(Duration::from_secs(1), &mut client);
    assert_eq!(timed_out(&serin), 0);
}

/// What a version that speaks HTTP/2 may be sent before it says more.
const WINDOW: usize = 65_535;

/// A version that reads and never opens its window again; once it is full, `full` is done. Where it listens, and how much it
/// has got.
fn closed_window(full: impl Fn(&mut H2) + Send + 'static) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let got = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&got);
    std::thread::spawn(move || {
        let mut version = H2::accepted(listener.accept().unwrap().0);
        while let Some(frame) = version.read() {
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => drop(version.send(SETTINGS, ACK, 0, &[])),
                PING if frame.flags & ACK == 0 => drop(version.send(PING, ACK, 0, &frame.payload)),
                DATA => {
                    let all = counts.fetch_add(frame.payload.len(), Ordering::SeqCst) + frame.payload.len();
                    if all == WINDOW {
                        full(&mut version);
                    }
                }
                _ => {}
            }
        }
    });
    (at, got)
}

/// A service before each of these.
fn before(versions: &[SocketAddr]) -> Serin {
    let service = |(number, at): (usize, &SocketAddr)| {
        format!(
            "{{name: s{number}, match: [{{path: {{exact: /{number}}}}}], stable: {{version: v1, endpoints: [\"h2c://{at}\"]}},
               timeouts: {{bodyIdle: 2s, responseHeaders: 1s}}}}"
        )
    };
    let services: Vec<String> = versions.iter().enumerate().map(service).collect();
    Serin::start_with(&format!("{HEAD}services: [{}]", services.join(", ")))
}

#[test]
fn an_upload_that_pauses_while_the_version_s_window_is_full_is_not_waited_for_for_ever() {
    // Which of two that share a window finds it closed is a matter of chance, so it is tried with several.
    let paths = ["/0", "/1", "/2", "/3", "/4", "/5", "/6", "/7"];
    let (versions, got): (Vec<SocketAddr>, Vec<Arc<AtomicUsize>>) =
        paths.map(|_| closed_window(|_| {})).into_iter().unzip();
    let serin = before(&versions);
    let clients = paths.iter().zip(&got).map(|(path, got)| {
        let arrive = |all: usize| {
            wait_for(&format!("{all} bytes to arrive"), LONG, || {
                (got.load(Ordering::SeqCst) >= all).then_some(())
            });
        };
        let mut client = H2::connect(serin.web);
        client.send(SETTINGS, ACK, 0, &[]);
        client.head(1, &request("POST", path), false);
        client.send(DATA, 0, 1, &[1; 100]);
        arrive(100);
        client.head(3, &request("POST", path), false);
        let pieces = [16_000, 16_000, 16_000, 16_000, WINDOW - 64_100];
        client.write(&pieces.map(|piece| frame(DATA, 0, 3, &vec![3; piece])).concat());
        arrive(WINDOW);
        client
    });
    let clients: Vec<H2> = clients.collect();
    // Whose fault that is depends on who was seen to wait last.
    let both = |mut client: H2| {
        let mut statuses = BTreeMap::new();
        while statuses.len() < 2 {
            let Some(frame) = client.read() else {
                panic!("not both are answered: {statuses:?}");
            };
            if frame.kind == HEADERS {
                let fields = client.decode(frame.payload, frame.flags);
                statuses.insert(frame.stream, fields[0].1.clone());
            }
        }
        assert!(
            statuses.values().all(|status| status == "504" || status == "408"),
            "{statuses:?}"
        );
    };
    clients.into_iter().for_each(both);
    assert_eq!(serin.count("serin_panics_total", &[]), 0);
}

#[test]
fn a_client_whose_upload_the_version_has_answered_and_does_not_take_is_let_go() {
    let (at, _) = closed_window(|version| {
        version.head(1, &[(":status", "413")], true);
    });
    let serin = before(&[at]);
    let mut client = RawClient::connect(serin.web);
    client.send("POST /0 HTTP/1.1\r\nhost: shop\r\ncontent-length: 1000000\r\n\r\n");
    client.send("x".repeat(500_000));
    assert_eq!(client.answer("POST").unwrap().status, 413);
    // It waits for what nobody does: its upload is to go on.
    wait_for("its place", LONG, || {
        (serin.count("serin_client_connections", &[]) == 0).then_some(())
    });
}
