//! Second attempts: what may be sent again, where, how often, and what is counted of it.

use crate::support::{
    HEAD, Serin,
    answers::{Payload, full},
    client::{Answer, Plan, ask, get, request},
    h2::{DATA, END_HEADERS, END_STREAM, GOAWAY, H2, HEADERS, PING, RST_STREAM, SETTINGS, block},
    now,
    raw::{Next, RawUpstream, ok},
    upstream::Upstream,
    wait_for,
};
use hyper::Request;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

const SOON: Duration = Duration::from_secs(30);
const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;

/// What becomes of a request as soon as its head has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// It is answered when it is whole.
    Answer,
    /// It is answered when the connection is left.
    Hold,
    /// Its stream ends with this error.
    Reset(u32),
    /// The connection is left: this request and all later ones are not looked at, the earlier ones are answered.
    Leave,
}

type Script = dyn Fn(usize) -> Act + Send + Sync;

/// A version that speaks HTTP/2 by hand and ends requests as a script says, which counts them from 0.
struct Version {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    script: Box<Script>,
    count: AtomicUsize,
    connections: AtomicUsize,
    /// The bodies of requests that were answered.
    answered: Mutex<Vec<Vec<u8>>>,
    ended: AtomicBool,
}

impl Version {
    fn start(script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Version {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            count: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            answered: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                serving.connections.fetch_add(1, Ordering::SeqCst);
                let (stream, serving) = (stream.unwrap(), Arc::clone(&serving));
                // Ends with Serin's end of the connection.
                std::thread::spawn(move || serve(stream, &serving));
            }
        });
        Version {
            address,
            shared,
            thread: Some(thread),
        }
    }

    fn url(&self) -> String {
        format!("h2c://{}", self.address)
    }

    /// Requests whose head came.
    fn requests(&self) -> usize {
        self.shared.count.load(Ordering::SeqCst)
    }

    fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    fn answered(&self) -> Vec<Vec<u8>> {
        self.shared.answered.lock().unwrap().clone()
    }
}

impl Drop for Version {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Default)]
struct Stream {
    body: Vec<u8>,
    whole: bool,
    held: bool,
}

fn serve(stream: TcpStream, shared: &Shared) {
    let mut connection = H2::accepted(stream);
    let mut streams: BTreeMap<u32, Stream> = BTreeMap::new();
    let mut left = false;
    let mut last = 0;
    while let Some(frame) = connection.read() {
        let ends = frame.flags & END_STREAM != 0;
        match frame.kind {
            SETTINGS if frame.flags & 1 == 0 => drop(connection.send(SETTINGS, 1, 0, &[])),
            PING if frame.flags & 1 == 0 => drop(connection.send(PING, 1, 0, &frame.payload)),
            HEADERS if left => {}
            HEADERS => match (shared.script)(shared.count.fetch_add(1, Ordering::SeqCst)) {
                act @ (Act::Answer | Act::Hold) => {
                    last = frame.stream;
                    let fresh = Stream {
                        whole: ends,
                        held: act == Act::Hold,
                        ..Stream::default()
                    };
                    streams.insert(frame.stream, fresh);
                }
                Act::Reset(error) => {
                    connection.send(RST_STREAM, 0, frame.stream, &error.to_be_bytes());
                }
                Act::Leave => {
                    left = true;
                    let payload = [last.to_be_bytes(), NO_ERROR.to_be_bytes()].concat();
                    connection.send(GOAWAY, 0, 0, &payload);
                    for stream in streams.values_mut() {
                        stream.held = false;
                    }
                }
            },
            DATA => {
                if let Some(stream) = streams.get_mut(&frame.stream) {
                    stream.body.extend(&frame.payload);
                    stream.whole = ends;
                }
            }
            _ => {}
        }
        let ready = streams.iter().filter(|(_, stream)| stream.whole && !stream.held);
        let ready: Vec<u32> = ready.map(|(id, _)| *id).collect();
        for id in ready {
            let body = streams.remove(&id).unwrap_or_default().body;
            shared.answered.lock().unwrap().push(body);
            let head = block(&[(":status", "200"), ("x-version", "v1")]);
            connection.send(HEADERS, END_HEADERS | END_STREAM, id, &head);
        }
        if left && streams.is_empty() {
            return;
        }
    }
}

fn one(url: &str) -> Serin {
    several(&[url.to_owned()], "")
}

fn several(urls: &[String], more: &str) -> Serin {
    Serin::start(&super::health::service(urls, more))
}

fn post(body: &'static str) -> Request<Payload> {
    let mut post = request("POST", "/orders");
    *post.body_mut() = full(body);
    post
}

fn outcomes(serin: &Serin, outcome: &str) -> f64 {
    serin.metric("serin_version_outcomes_total", &[("outcome", outcome)])
}

fn retries(serin: &Serin, outcome: &str) -> f64 {
    serin.metric("serin_upstream_retries_total", &[("outcome", outcome)])
}

#[test]
fn a_request_that_http2_refuses_untouched_is_sent_again_whatever_it_asks_for() {
    // The first, and then one after one that was answered.
    let version = Version::start(|n| match n {
        0 | 2 => Act::Reset(REFUSED_STREAM),
        _ => Act::Answer,
    });
    let serin = one(&version.url());
    for body in ["first order", "second order"] {
        assert_eq!(ask(serin.web, false, post(body)).unwrap().status, 200);
    }
    assert_eq!(
        version.answered(),
        [b"first order".to_vec(), b"second order".to_vec()]
    );
    assert_eq!(version.requests(), 4);
    assert!(outcomes(&serin, "failed") < 0.5, "nothing has failed");
}

#[test]
fn a_request_that_a_leaving_http2_server_does_not_look_at_goes_over_another_connection() {
    let version = Version::start(|n| match n {
        0 => Act::Hold,
        1 => Act::Leave,
        _ => Act::Answer,
    });
    let serin = one(&version.url());
    // One client's connection, so that one worker's upstream connection has both.
    let mut client = H2::connect(serin.web);
    let fields = |path| {
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "shop.test"),
            ("content-length", "2"),
        ]
    };
    for (stream, body) in [(1, b"ab"), (3, b"cd")] {
        client.head(stream, &fields("/orders"), false);
        client.send(DATA, END_STREAM, stream, body);
        wait_for("its arrival", SOON, || {
            (version.requests() > usize::from(stream > 1)).then_some(())
        });
    }
    // In the order in which they come.
    let mut open = BTreeSet::from([1, 3]);
    while !open.is_empty() {
        let frame = client.read().unwrap();
        if frame.kind == HEADERS {
            let answer = frame.payload;
            // `:status: 200` is the eighth entry of HPACK's static table.
            assert!(answer.contains(&0x88), "{answer:?}");
            open.remove(&frame.stream);
        }
    }
    let mut bodies = version.answered();
    bodies.sort();
    assert_eq!(bodies, [b"ab".to_vec(), b"cd".to_vec()]);
    assert_eq!(version.connections(), 2);
    assert!(outcomes(&serin, "failed") < 0.5 && (outcomes(&serin, "ok") - 2.0).abs() < 0.5);
}

#[test]
fn who_refuses_every_stream_is_asked_a_few_times_and_blamed() {
    let version = Version::start(|_| Act::Reset(REFUSED_STREAM));
    let serin = one(&version.url());
    for request in [get("/"), post("order")] {
        let before = version.requests();
        assert_eq!(ask(serin.web, false, request).unwrap().status, 502);
        let asked = version.requests() - before;
        assert!((2..=3).contains(&asked), "{asked}");
    }
    assert!((outcomes(&serin, "failed") - 2.0).abs() < 0.5);
    let other = Version::start(|_| Act::Answer);
    let serin = several(&[version.url(), other.url()], "");
    for _ in 0..20 {
        assert_eq!(ask(serin.web, false, post("order")).unwrap().status, 200);
    }
    assert_eq!(other.answered().len(), 20);
}

#[test]
fn a_stream_that_breaks_off_may_have_been_done_and_is_not_sent_to_the_same_again() {
    let bad = Version::start(|_| Act::Reset(INTERNAL_ERROR));
    let serin = one(&bad.url());
    // Whether the connection is new or was used before makes no difference: it was not closed.
    for n in 1..=3 {
        assert_eq!(ask(serin.web, false, post("order")).unwrap().status, 502);
        assert_eq!(bad.requests(), n);
    }
    for n in 4..=6 {
        assert_eq!(ask(serin.web, false, get("/")).unwrap().status, 502);
        assert_eq!(bad.requests(), n, "a GET has nowhere else to go");
    }
    let good = Version::start(|_| Act::Answer);
    let serin = several(&[bad.url(), good.url()], ", retries: {budget: 100%}");
    let before = bad.requests();
    let tally = Plan::new(serin.web, 1).total(20).start().finish();
    tally.assert_clean();
    let tried = bad.requests() - before;
    assert!(tried > 0, "it was drawn at least once");
    #[allow(clippy::cast_precision_loss, reason = "a handful of requests")]
    let tried = tried as f64;
    assert!((retries(&serin, "sent") - tried).abs() < 0.5);
}

/// Reads each request whole and closes its connection without a word.
fn closes() -> RawUpstream {
    RawUpstream::start(|seen, _| if seen.whole { Next::Close } else { Next::Body })
}

#[test]
fn the_budget_bounds_what_a_failing_version_gets_beside_what_it_is_due() {
    for (budget, share) in [("20%", 0.2), ("0%", 0.0)] {
        let (a, b) = (closes(), closes());
        let serin = several(
            &[a.url(), b.url()],
            &format!(", retries: {{budget: {budget}}}, ejection: {{failures: 100000}}"),
        );
        let begun = now();
        let tally = Plan::new(serin.web, 4).total(300).start().finish();
        let seconds = begun.elapsed().as_secs_f64();
        assert_eq!(tally.of(|_, status, _| status == 502), 300, "{:?}", tally.answers);
        let (sent, kept_back) = (retries(&serin, "sent"), retries(&serin, "over_budget"));
        // Ten a second in any case; each worker may begin with one second's part.
        let most = 300.0 * share + 10.0 * (seconds + 1.0) + 2.0;
        assert!(sent >= 300.0 * share && sent <= most, "{sent} of at most {most}");
        assert!(sent >= 5.0, "the floor: {sent}");
        assert!((sent + kept_back - 300.0).abs() < 0.5, "{sent} and {kept_back}");
        #[allow(clippy::cast_precision_loss, reason = "a few hundred requests")]
        let arrived = (a.count() + b.count()) as f64;
        assert!(
            (arrived - 300.0 - sent).abs() < 0.5,
            "{arrived}: each attempt is one request"
        );
    }
}

#[test]
fn a_version_that_works_on_a_request_and_breaks_off_has_failed_on_a_kept_connection_too() {
    let broken = AtomicBool::new(false);
    let version = RawUpstream::start(move |seen, stream| {
        if seen.target() == "/" || broken.swap(true, Ordering::SeqCst) {
            return ok(seen, stream);
        }
        // A worker that is killed over it: nothing else is sent, so this is a time to wait.
        stream
            .set_read_timeout(Some(Duration::from_millis(1500)))
            .unwrap();
        let _ = stream.read(&mut [0]);
        Next::Close
    });
    let serin = one(&version.url());
    let paths = |n| get(if n == 0 { "/" } else { "/work" });
    let tally = Plan::new(serin.web, 1).total(2).requests(paths).start().finish();
    assert_eq!(tally.total(), 2);
    // The first attempt's verdict, whoever has saved the client.
    assert!(
        (outcomes(&serin, "failed") - 1.0).abs() < 0.5,
        "{:?}",
        tally.answers
    );
}

#[test]
fn a_kept_connection_that_ends_at_once_was_idle_if_it_had_rested_and_has_failed_if_not() {
    // A version's limit of one second has run out when we have seen a little less of it.
    for (rest, failures) in [(Duration::ZERO, 1.0), (Duration::from_millis(950), 0.0)] {
        let broken = AtomicBool::new(false);
        let version = RawUpstream::start(move |seen, stream| {
            if seen.target() == "/" || broken.swap(true, Ordering::SeqCst) {
                return ok(seen, stream);
            }
            Next::Close
        });
        let serin = one(&version.url());
        let paths = |n| get(if n == 0 { "/" } else { "/work" });
        let plan = Plan::new(serin.web, 1).total(2).requests(paths).pause(rest);
        // The client is saved in any case, by the other attempt.
        plan.start().finish().assert_clean();
        assert_eq!(version.count(), 3);
        let failed = outcomes(&serin, "failed");
        assert!((failed - failures).abs() < 0.5, "{failed} after {rest:?}");
    }
}

#[test]
fn what_was_sent_and_must_not_be_done_twice_arrives_once() {
    let (a, b) = (closes(), closes());
    let serin = several(
        &[a.url(), b.url()],
        ", retries: {budget: 100%}, ejection: {failures: 100000}",
    );
    for method in ["POST", "PATCH", "PURGE"] {
        let before = a.count() + b.count();
        let plan = Plan::new(serin.web, 4).total(50);
        let tally = plan
            .requests(move |n| {
                let mut one = request(method, &format!("/{n}"));
                *one.body_mut() = full("order");
                one
            })
            .start()
            .finish();
        assert_eq!(tally.of(|_, status, _| status == 502), 50);
        assert_eq!(a.count() + b.count() - before, 50, "{method}");
    }
    assert!(retries(&serin, "sent") < 0.5);
}

#[test]
fn a_second_attempt_stays_in_its_version_and_a_rescue_is_counted_apart() {
    let stable = Upstream::start("v1");
    let (good, bad) = (Upstream::start("v2"), closes());
    let serin = Serin::start_with(&format!(
        "{HEAD}
services:
  - name: shop
    stable: {{version: v1, endpoints: [\"{}\"]}}
    canary: {{version: v2, endpoints: [\"{}\", \"{}\"]}}
    retries: {{budget: 100%}}
    strategy: {{canary: {{steps: [{{setWeight: 100}}, {{pause: {{}}}}]}}}}
",
        stable.url(),
        good.url(),
        bad.url()
    ));
    serin.wait_status("shop", "the pause", |status| status["phase"] == "Paused");
    let plan = || Plan::new(serin.web, 2).requests(|_| get("/"));
    let tally = plan().total(60).start().finish();
    tally.assert_clean();
    assert_eq!((tally.version("v2"), stable.requests()), (60, 0));
    let of = |name: &str, labels: &[(&str, &str)]| serin.metric(name, labels);
    let rescued = || of("serin_rescued_requests_total", &[("role", "canary")]);
    let sent = of(
        "serin_upstream_retries_total",
        &[("role", "canary"), ("outcome", "sent")],
    );
    assert!(sent > 0.5 && rescued() < 0.5);
    #[allow(clippy::cast_precision_loss, reason = "a handful of requests")]
    let arrived = bad.count() as f64;
    assert!((sent - arrived).abs() < 0.5);
    // The verdict is the first attempt's, whatever saved the client.
    let failed = || {
        of(
            "serin_version_outcomes_total",
            &[("role", "canary"), ("outcome", "failed")],
        )
    };
    assert!((failed() - arrived).abs() < 0.5);

    // Nobody of the canary is left: stable takes over, which is no retry.
    drop((good, bad));
    let tally = plan().total(20).start().finish();
    tally.assert_clean();
    assert_eq!(tally.version("v1"), 20);
    assert!(rescued() > 0.5);
    let of_stable = of("serin_upstream_retries_total", &[("role", "stable")]);
    assert!(of_stable < 0.5, "{of_stable}");
}

#[test]
fn an_attempt_has_its_own_limit_and_all_of_them_together_the_response_s() {
    // Both accept and never answer.
    let silent = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let urls = silent
        .each_ref()
        .map(|one| format!("http://{}", one.local_addr().unwrap()));
    let serin = several(
        &urls,
        ", retries: {perTry: 200ms, budget: 100%}, timeouts: {responseHeaders: 30s}",
    );
    let timed = |request| -> (Answer, Duration) {
        let begun = now();
        let answer = ask(serin.web, false, request).unwrap();
        (answer, begun.elapsed())
    };
    let (answer, took) = timed(get("/"));
    assert_eq!(answer.status, 504);
    assert!(
        took >= Duration::from_millis(400) && took < Duration::from_secs(20),
        "{took:?}"
    );
    let timed_out = |expected: f64| {
        let seen = serin.metric("serin_upstream_attempts_total", &[("outcome", "timed_out")]);
        assert!((seen - expected).abs() < 0.5, "{seen}");
    };
    timed_out(2.0);
    let (answer, took) = timed(post("order"));
    assert!(
        answer.status == 504 && took >= Duration::from_millis(200),
        "{took:?}"
    );
    timed_out(3.0);
}
