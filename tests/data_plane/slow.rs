//! Slow versions, slow clients and slow operators: whoever has nothing to do with them does not notice.

use crate::support::{
    HEAD, Serin,
    client::{Plan, get as get_request},
    full_form, get, now,
    pair::Pair,
    raw::RawClient,
    say,
    tasks::{Task, on_core, two_cores},
    turns::{Fault, assert_p99},
    upstream::Upstream,
    wait_for,
};
use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

const SOON: Duration = Duration::from_secs(30);

/// How long requests take, one after the other over a connection each for `clients`, with a pause before each: sorted.
fn latencies(
    to: SocketAddr,
    clients: usize,
    each: usize,
    pause: Duration,
    fields: &'static str,
) -> Vec<Duration> {
    let one = move || {
        let mut client = RawClient::connect(to);
        let mut ask = move || {
            if !pause.is_zero() {
                std::thread::park_timeout(pause);
            }
            let begun = now();
            client.send(format!("GET / HTTP/1.1\r\nhost: shop\r\n{fields}\r\n"));
            assert_eq!(client.answer("GET").unwrap().status, 200);
            begun.elapsed()
        };
        // The first waits for its connection to be accepted; that is another question.
        ask();
        (0..each).map(|_| ask()).collect::<Vec<_>>()
    };
    let all: Vec<_> = (0..clients).map(|_| std::thread::spawn(one)).collect();
    let mut taken: Vec<Duration> = all.into_iter().flat_map(|one| one.join().unwrap()).collect();
    taken.sort();
    taken
}

/// The median and the 99th percentile.
fn quantiles(sorted: &[Duration]) -> (Duration, Duration) {
    (sorted[sorted.len() / 2], sorted[sorted.len() * 99 / 100])
}

/// Compares what is taken now with what was taken before, with room for a machine that does something else meanwhile.
/// What must not happen is that one waits for the other, and those wait for seconds.
fn assert_unaffected(what: &str, before: &[Duration], during: &[Duration]) {
    let ((median, p99), (median_now, p99_now)) = (quantiles(before), quantiles(during));
    say(&format!(
        "{what}: median {median:?} before, {median_now:?} during; p99 {p99:?} before, {p99_now:?} during ({} requests each)",
        during.len()
    ));
    assert!(
        median_now < 3 * median + Duration::from_millis(50),
        "{what}: the median was {median:?} and is {median_now:?}"
    );
}

/// A listener that closes streams on which nothing moves.
const IMPATIENT: &str = "
listeners: [{name: web, address: \"127.0.0.1:0\", timeouts: {streamIdle: 500ms}}]
admin: {address: \"127.0.0.1:0\"}
";
const FORCED: &str = "force: {header: x-canary}";

/// A request of the canary's that is answered byte by byte, each of them sooner than the idle time and all of them later.
fn drip(serin: &Serin, bytes: usize) -> RawClient {
    let mut client = RawClient::connect(serin.web);
    client.send(format!(
        "GET /drip/{bytes}/100 HTTP/1.1\r\nhost: shop\r\nx-canary: always\r\nconnection: close\r\n\r\n"
    ));
    client
}

#[test]
fn a_version_that_drips_goes_on_while_bytes_flow_shows_in_its_own_latency_and_slows_no_other_down() {
    let pair = Pair::start_with(IMPATIENT, FORCED);
    let (serin, canary) = (&pair.serin, &pair.canary);
    let stables = || latencies(serin.web, 4, 100, Duration::ZERO, "x-canary: never\r\n");
    stables();
    let before = stables();
    // Each takes three times the idle time.
    let slow: Vec<_> = (0..64).map(|_| drip(serin, 15)).collect();
    wait_for("all of them to drip", SOON, || {
        (canary.requests() == 64).then_some(())
    });
    let during = stables();
    for mut client in slow {
        let answer = client.answer("GET").unwrap();
        assert!(
            answer.status == 200 && answer.whole && answer.body.len() == 15,
            "{answer:?}"
        );
    }
    assert_unaffected("stable beside a canary that drips", &before, &during);
    let mean = |role: &str| {
        let of = |part: &str| {
            serin.metric(
                &format!("serin_http_request_duration_seconds_{part}"),
                &[("role", role)],
            )
        };
        wait_for("the durations", SOON, || {
            (of("count") >= 64.0).then(|| of("sum") / of("count"))
        })
    };
    let (fast, slow) = (mean("stable"), mean("canary"));
    assert!(
        slow > 1.0 && fast < slow / 2.0,
        "stable {fast} s, canary {slow} s"
    );
    if full_form(0, 1) == 1 {
        a_drip_leaves_the_p99_of_stable_where_it_is(&pair);
    }
}

/// What the table promises for fault 7: within 10 %.
fn a_drip_leaves_the_p99_of_stable_where_it_is(pair: &Pair) {
    let elsewhere = Pair::in_front(&pair.stable, &pair.canary, IMPATIENT, FORCED);
    let begin = |fault| {
        let serin = match fault {
            Fault::Nowhere => None,
            Fault::Elsewhere => Some(&elsewhere),
            Fault::Here => Some(&pair.serin),
        };
        wait_for("the last drips to be given up", SOON, || {
            let left = |serin: &Serin| serin.count("serin_http_requests_in_flight", &[]);
            (left(&elsewhere) + left(&pair.serin) == 0).then_some(())
        });
        let before = pair.canary.requests();
        let slow: Vec<_> = serin.map_or_else(Vec::new, |serin| (0..64).map(|_| drip(serin, 6_000)).collect());
        wait_for("all of them to drip", SOON, || {
            (pair.canary.requests() == before + slow.len() as u64).then_some(())
        });
        slow
    };
    let window = || {
        latencies(
            pair.serin.web,
            4,
            250,
            Duration::from_millis(2),
            "x-canary: never\r\n",
        )
    };
    assert_p99(
        "stable beside a canary that drips",
        40,
        1.10,
        Fault::Elsewhere,
        begin,
        window,
    );
}

#[test]
fn a_drip_is_cut_when_the_whole_request_has_a_limit_and_never_looks_whole() {
    let pair = Pair::start_with(IMPATIENT, &format!("{FORCED}\n    timeouts: {{request: 900ms}}"));
    let begun = now();
    let slow: Vec<_> = (0..16).map(|_| drip(&pair.serin, 600)).collect();
    for mut client in slow {
        let answer = client.answer("GET").unwrap();
        assert!(
            answer.status == 200 && !answer.whole && answer.body.len() < 600,
            "{answer:?}"
        );
    }
    assert!(begun.elapsed() >= Duration::from_millis(900));
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "sixty seconds would be all of it"
    );
}

fn open(serin: &Serin) -> u64 {
    serin.count("serin_client_connections", &[("listener", "web")])
}

#[test]
fn a_thousand_clients_that_never_finish_their_heads_cost_the_others_nothing_and_their_places_are_back_in_ten_seconds()
 {
    let v1 = Upstream::start("v1");
    let serin = Serin::start_with(&format!(
        "
listeners: [{{name: web, address: \"127.0.0.1:0\", timeouts: {{firstByte: 2s, requestHeaders: 2s}}}}]
admin: {{address: \"127.0.0.1:0\"}}
services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        v1.url()
    ));
    let rounds = full_form(1, 10);
    let clients = Plan::new(serin.web, 8).pause(Duration::from_millis(1)).start();
    let others = Plan::new(serin.web, 2)
        .pause(Duration::from_millis(1))
        .http2(4)
        .start();
    for round in 1..=rounds {
        let begun = now();
        let mut slow: Vec<TcpStream> = (0..1_000)
            .map(|_| TcpStream::connect(serin.web).unwrap())
            .collect();
        // A quarter says nothing at all; the others go on, byte by byte, which gains them nothing.
        let text = format!("GET /{} HTTP/1.1\r\nhost: a\r\n", "x".repeat(4_000));
        let mut at = 0;
        let closed = || serin.count("serin_http_rejected_total", &[("reason", "timeout")]);
        wait_for("a thousand to be closed", SOON, || {
            for stream in slow.iter_mut().skip(250) {
                let _ = stream.write_all(&text.as_bytes()[at..=at]);
            }
            at += 1;
            (closed() >= 1_000 * round).then_some(())
        });
        wait_for("their places to be free", SOON, || {
            (open(&serin) <= 10).then_some(())
        });
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(2), "{took:?}");
        assert!(took < Duration::from_secs(2 + 10), "{took:?}");
        say(&format!(
            "1,000 slow senders: places back {took:?} after the first (header timeout 2 s)"
        ));
        clients.wait_more(50);
        others.wait_more(50);
    }
    for clients in [clients, others] {
        let seen = clients.stop();
        seen.assert_clean();
        say(&format!(
            "beside slow senders: {} requests, 0 errors",
            seen.total()
        ));
    }
    assert_eq!(serin.count("serin_http_rejected_total", &[]), 1_000 * rounds);
}

/// Operators at one address: some ask for more than the kernel holds for them and read none of it, the others ask without a
/// break. Until it is dropped.
struct Operators {
    slow: Vec<TcpStream>,
    stop: Arc<AtomicBool>,
    got: Arc<AtomicU64>,
    hammering: Vec<JoinHandle<()>>,
}

impl Operators {
    fn start(to: SocketAddr) -> Operators {
        let scrape = format!("GET /metrics HTTP/1.1\r\nhost: {to}\r\n\r\n");
        let slow = (0..32).map(|_| {
            let mut stream = TcpStream::connect(to).unwrap();
            stream
                .set_write_timeout(Some(Duration::from_millis(200)))
                .unwrap();
            let _ = stream.write_all(scrape.repeat(500).as_bytes());
            stream
        });
        let slow = slow.collect();
        let (stop, got) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let paths = ["/v1/services", "/v1/services/shop", "/metrics", "/v1/config"];
        let hammering = paths.map(|path| {
            let (stop, got) = (Arc::clone(&stop), Arc::clone(&got));
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let (status, body) = get(to, path);
                    assert!(status == 200 && !body.is_empty(), "{path}: {status}");
                    got.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        let operators = Operators {
            slow,
            stop,
            got,
            hammering: hammering.into_iter().collect(),
        };
        wait_for("the operators to be at it", SOON, || {
            (operators.answered() > 20).then_some(())
        });
        operators
    }

    /// How often one of those who ask was answered.
    fn answered(&self) -> u64 {
        self.got.load(Ordering::SeqCst)
    }
}

impl Drop for Operators {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for one in self.hammering.drain(..) {
            let ended = one.join();
            assert!(ended.is_ok() || std::thread::panicking(), "an operator failed");
        }
        self.slow.clear();
    }
}

fn in_front_of(v1: &Upstream) -> Serin {
    Serin::start_with(&format!(
        "{HEAD}services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        v1.url()
    ))
}

#[test]
fn readers_of_metrics_who_do_not_read_and_an_api_without_a_pause_cost_no_client_an_error() {
    let v1 = Upstream::start("v1");
    let serin = in_front_of(&v1);
    let quick = || latencies(serin.web, 4, 150, Duration::ZERO, "");
    quick();
    let before = quick();
    let clients = Plan::new(serin.web, 4)
        .pause(Duration::from_millis(1))
        .requests(|_| get_request("/orders"))
        .start();
    let operators = Operators::start(serin.admin);
    let during = quick();
    clients.wait_more(100);
    say(&format!(
        "32 scrapes that nobody reads and {} calls of the API: {} requests, 0 errors",
        operators.answered(),
        clients.total() + during.len() as u64
    ));
    drop(operators);
    clients.stop().assert_clean();
    assert_unaffected("requests beside busy operators", &before, &during);
    assert_eq!(get(serin.admin, "/livez").0, 200);
    if full_form(0, 1) == 1 {
        operators_of_another_serin_cost_as_much(&v1);
        operators_on_another_core_cost_nothing();
    }
}

/// What the table promises for fault 26, 5 % more at most, where everybody shares the cores: beside operators of somebody else's.
fn operators_of_another_serin_cost_as_much(v1: &Upstream) {
    let (serin, elsewhere) = (in_front_of(v1), in_front_of(v1));
    let begin = |fault| match fault {
        Fault::Nowhere => None,
        Fault::Elsewhere => Some(Operators::start(elsewhere.admin)),
        Fault::Here => Some(Operators::start(serin.admin)),
    };
    let window = || latencies(serin.web, 4, 150, Duration::from_millis(2), "");
    assert_p99(
        "requests beside busy operators",
        30,
        1.05,
        Fault::Elsewhere,
        begin,
        window,
    );
}

/// The same where operators, and the threads that answer them, have a core of their own: against nobody asking anything. Nothing
/// that a worker waits for is in their hands.
fn operators_on_another_core_cost_nothing() {
    let Some([requests, operators]) = two_cores() else {
        return say("skipped: operators on a core of their own need two cores");
    };
    on_core(requests, || {
        let v1 = Upstream::start("v1");
        // With one worker, for there is one core.
        let serin = in_front_of(&v1);
        for task in Task::all_of(serin.pid()) {
            if !task.name.starts_with("worker-") {
                task.stay_on(operators);
            }
        }
        let begin =
            |fault| (fault == Fault::Here).then(|| on_core(operators, || Operators::start(serin.admin)));
        let window = || latencies(serin.web, 4, 250, Duration::from_millis(2), "");
        assert_p99(
            "requests beside busy operators on another core",
            60,
            1.05,
            Fault::Nowhere,
            begin,
            window,
        );
    });
}
