//! Endpoints that stop working: clients do not notice, and what is sent where follows.

use super::ejection::ejections;
use crate::support::{
    Serin,
    answers::full,
    client::{Plan, ask, get, request},
    now,
    raw::RawClient,
    upstream::Upstream,
    wait_for,
};
use hyper::{Method, Request};
use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

pub(super) const SOON: Duration = Duration::from_secs(30);

pub(super) fn service(urls: &[String], more: &str) -> String {
    let urls: Vec<String> = urls.iter().map(|url| format!("\"{url}\"")).collect();
    format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [{}]}}{more}}}]",
        urls.join(", ")
    )
}

/// Whether an endpoint is said to be healthy.
pub(super) fn healthy(serin: &Serin, url: &str) -> f64 {
    serin.metric("serin_upstream_endpoint_healthy", &[("endpoint", url)])
}

pub(super) fn wait_health(serin: &Serin, url: &str, expected: f64) {
    wait_for(&format!("{url} to be {expected}"), SOON, || {
        ((healthy(serin, url) - expected).abs() < 0.5).then_some(())
    });
}

/// GETs and POSTs in turn.
fn mixed(n: u64) -> Request<crate::support::answers::Payload> {
    let mut asked = request(if n.is_multiple_of(2) { "GET" } else { "POST" }, "/");
    if asked.method() == Method::POST {
        *asked.body_mut() = full("something");
    }
    asked
}

/// An address that nobody listens at.
fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A listener whose queue is full: whoever connects gets no answer at all, as behind a firewall that drops.
pub(super) struct Blackhole {
    pub(super) address: SocketAddr,
    _listener: socket2::Socket,
    _queued: Vec<TcpStream>,
}

impl Blackhole {
    pub(super) fn new() -> Blackhole {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            queued.push(stream);
            assert!(queued.len() < 64, "the queue does not fill");
        }
        Blackhole {
            address,
            _listener: socket,
            _queued: queued,
        }
    }
}

#[test]
fn an_endpoint_whose_checks_fail_gets_no_requests_until_they_hold_again() {
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    let serin = Serin::start(&service(
        &[a.url(), b.url()],
        ", health: {http: /alive, interval: 100ms, rise: 2, fall: 2}",
    ));
    // It fails its checks and nothing else knows: no request has been sent yet.
    b.fail(1000);
    wait_health(&serin, &b.url(), 0.0);
    assert!(healthy(&serin, &a.url()) > 0.5);
    let tally = Plan::new(serin.web, 4).total(100).start().finish();
    tally.assert_clean();
    assert_eq!(tally.version("a"), 100);
    assert!(serin.log().contains("fails its health checks"));
    b.fail(0);
    wait_health(&serin, &b.url(), 1.0);
    let tally = Plan::new(serin.web, 4).total(100).start().finish();
    tally.assert_clean();
    assert!(tally.version("b") > 20, "{:?}", tally.answers);
}

#[test]
fn a_canary_whose_checks_all_fail_is_rolled_back_before_any_client_meets_it() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}, canary: {{version: v2, endpoints: [\"{}\"]}},
           health: {{http: /alive, interval: 100ms, fall: 3}}, ready: {{http: /healthz}},
           strategy: {{canary: {{steps: [{{setWeight: 5}}, {{pause: {{}}}}]}}}}}}]",
        v1.url(),
        v2.url()
    ));
    wait_for("the pause", SOON, || {
        (serin.status("shop")["phase"] == "Paused").then_some(())
    });
    v2.fail(1000);
    let status = wait_for("the abort", SOON, || {
        let status = serin.status("shop");
        (status["phase"] == "Degraded").then_some(status)
    });
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("no endpoint is healthy"),
        "{status}"
    );
    let tally = Plan::new(serin.web, 2).total(100).start().finish();
    tally.assert_clean();
    assert_eq!(tally.version("v1"), 100);
}

#[test]
fn one_of_two_that_is_gone_costs_no_client_an_error_and_is_back_when_it_answers() {
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    let (url, address) = (b.url(), b.address);
    let serin = Serin::start(&service(
        &[a.url(), b.url()],
        ", ejection: {failures: 3, base: 1s}",
    ));
    Plan::new(serin.web, 8)
        .total(200)
        .requests(mixed)
        .start()
        .finish()
        .assert_clean();
    // Its idle connections are closed and its port is: fault 1, and 5.
    b.kill();
    let clients = Plan::new(serin.web, 8).requests(mixed).start();
    clients.wait_more(500);
    wait_health(&serin, &url, 0.0);
    // Out of rotation it is with its first failure, ejected with its third.
    wait_for("the ejection, for nothing but failures", SOON, || {
        let (times, alone) = ejections(&serin, "failures");
        (times >= 1 && alone).then_some(())
    });
    let b = Upstream::start_at("b", address);
    wait_health(&serin, &url, 1.0);
    wait_for("requests at the endpoint that is back", SOON, || {
        (b.requests() > 50).then_some(())
    });
    clients.stop().assert_clean();
    let refused = serin.metric("serin_upstream_attempts_total", &[("outcome", "connect_failed")]);
    assert!(refused >= 1.0);
}

#[test]
fn of_requests_in_flight_at_a_kill_those_that_may_be_repeated_are_answered() {
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    a.open_gate();
    let serin = Serin::start(&service(&[a.url(), b.url()], ""));
    let clients = |method: &'static str, connections: usize| {
        Plan::new(serin.web, connections)
            .total(4000)
            .requests(move |_| request(method, "/gate"))
            .start()
    };
    let (reads, writes) = (clients("GET", 4), clients("POST", 20));
    // A few wait at b's gate, which nobody will open; not more reads than may be repeated at once.
    wait_for("requests in flight at b", SOON, || {
        (b.in_flight() >= 8).then_some(())
    });
    let lost = b.kill();
    let (reads, writes) = (reads.finish(), writes.finish());
    reads.assert_clean();
    assert!(
        writes.broken.is_empty() && writes.failed.len() as u64 <= lost,
        "{writes:?}"
    );
    assert!(writes.failed.iter().all(|failed| failed.status == 502));
}

#[test]
fn when_every_endpoint_refuses_clients_are_told_at_once() {
    let serin = Serin::start(&service(&[closed(), closed()], ""));
    let begun = now();
    let answer = ask(serin.web, false, get("/")).unwrap();
    assert_eq!(answer.status, 502);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_service_that_has_no_version_yet_says_so_and_serves_the_first_one_at_once() {
    let v1 = Upstream::start("v1");
    let serin = Serin::start("services: [{name: shop, deploy: {allowedEndpoints: [127.0.0.0/8]}}]");
    let answer = ask(serin.web, false, get("/")).unwrap();
    assert_eq!((answer.status, answer.header("retry-after")), (503, "1"));
    let rejected = serin.metric("serin_http_rejected_total", &[("reason", "no_version")]);
    assert!((rejected - 1.0).abs() < 0.5, "{rejected}");
    let deploy = format!(
        "deploy shop --version v1 --endpoint {} --until healthy --timeout 20s",
        v1.url()
    );
    let (code, _, said) = serin.run(&deploy);
    assert_eq!(code, 0, "{said}");
    let answer = ask(serin.web, false, get("/")).unwrap();
    assert_eq!((answer.status, answer.version()), (200, "v1".to_owned()));
}

#[test]
fn an_endpoint_that_drops_connections_delays_by_the_connect_timeout_and_costs_no_error() {
    let (alive, hole) = (Upstream::start("alive"), Blackhole::new());
    let serin = Serin::start(&service(
        &[alive.url(), format!("http://{}", hole.address)],
        ", timeouts: {connect: 200ms}",
    ));
    let tally = Plan::new(serin.web, 4)
        .total(200)
        .requests(mixed)
        .start()
        .finish();
    tally.assert_clean();
    assert_eq!(tally.version("alive"), 200);
    let failed = serin.metric("serin_upstream_attempts_total", &[("outcome", "connect_failed")]);
    assert!(
        (1.0..100.0).contains(&failed),
        "{failed}: it is skipped after it failed"
    );
}

#[test]
fn an_attempt_that_takes_too_long_is_repeated_elsewhere_only_if_it_may_be() {
    let (alive, silent) = (
        Upstream::start("alive"),
        TcpListener::bind("127.0.0.1:0").unwrap(),
    );
    let serin = Serin::start(&service(
        &[alive.url(), format!("http://{}", silent.local_addr().unwrap())],
        // Never ejected and hardly skipped: each request may meet the silent one.
        ", retries: {perTry: 250ms, budget: 100%}, ejection: {failures: 1000}",
    ));
    let reads = Plan::new(serin.web, 4)
        .total(40)
        .pause(Duration::from_millis(100))
        .start()
        .finish();
    reads.assert_clean();
    let sent = || serin.metric("serin_upstream_retries_total", &[("outcome", "sent")]);
    let repeated = sent();
    assert!(repeated >= 1.0);
    let timed_out = || serin.metric("serin_upstream_attempts_total", &[("outcome", "timed_out")]);
    let before = timed_out();
    let writes = Plan::new(serin.web, 4)
        .total(40)
        .pause(Duration::from_millis(100))
        .requests(|_| request("POST", "/"))
        .start()
        .finish();
    assert!(
        writes.failed.iter().all(|failed| failed.status == 504),
        "{writes:?}"
    );
    #[allow(clippy::cast_precision_loss, reason = "a handful of requests")]
    let failed = writes.failed.len() as f64;
    assert!((timed_out() - before - failed).abs() < 0.5 && (sent() - repeated).abs() < 0.5);
}

#[test]
fn an_endpoint_that_answers_badly_is_ejected_when_that_is_asked_for() {
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    let serin = Serin::start(&service(
        &[a.url(), b.url()],
        ", ejection: {badResponses: 5, base: 60s}",
    ));
    b.fail(1000);
    let tally = Plan::new(serin.web, 2).total(200).start().finish();
    assert!(healthy(&serin, &b.url()) < 0.5);
    let failed = tally.of(|_, status, _| status == 500);
    assert!((5..=8).contains(&failed), "{failed}");
    // The rest of it is well: one of two may be out, not both.
    a.fail(1000);
    Plan::new(serin.web, 2).total(50).start().finish();
    assert!(healthy(&serin, &a.url()) > 0.5);
}

#[test]
fn in_turn_each_endpoint_gets_exactly_its_part_and_one_that_is_gone_leaves_its_own_to_the_others() {
    let mut copies = Vec::from(["a", "b", "c"].map(Upstream::start));
    let urls: Vec<String> = copies.iter().map(Upstream::url).collect();
    let serin = Serin::start(&service(&urls, ", balance: roundRobin"));
    // One connection stays on one worker.
    let mut client = RawClient::connect(serin.web);
    let mut asks = |count: usize| {
        for _ in 0..count {
            client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n");
            assert_eq!(client.answer("GET").unwrap().status, 200);
        }
    };
    asks(30);
    let counts: Vec<u64> = copies.iter().map(Upstream::requests).collect();
    assert_eq!(counts, [10, 10, 10]);
    drop(copies.pop());
    asks(40);
    let counts: Vec<u64> = copies.iter().map(Upstream::requests).collect();
    assert_eq!(counts.iter().sum::<u64>(), 60);
    assert!(counts.iter().all(|count| (26..=34).contains(count)), "{counts:?}");
}
