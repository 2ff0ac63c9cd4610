//! Endpoints that do worse than their neighbours: who is left out, for how long, how many at most, and how they come back.

use super::health::{SOON, healthy, service, wait_health};
use crate::support::{
    Serin,
    answers::Payload,
    client::{Plan, request},
    python::Servers,
    raw::{Next, RawUpstream},
    upstream::Upstream,
    wait_for,
};
use hyper::Request;
use std::io::Write;

/// How many of these endpoints are said to be healthy.
fn count_healthy(serin: &Serin, of: &[Upstream]) -> usize {
    of.iter().filter(|one| healthy(serin, &one.url()) > 0.5).count()
}

fn copies() -> Vec<Upstream> {
    ["a", "b", "c", "d"].map(Upstream::start).into()
}

/// How often an endpoint was ejected for this reason, and whether no other reason is counted.
pub(super) fn ejections(serin: &Serin, reason: &str) -> (u64, bool) {
    let count = |labels: &[(&str, &str)]| serin.count("serin_upstream_ejections_total", labels);
    let of_reason = count(&[("role", "stable"), ("version", "v1"), ("reason", reason)]);
    (of_reason, of_reason == count(&[]))
}

fn serin(of: &[Upstream], more: &str) -> Serin {
    let urls: Vec<String> = of.iter().map(Upstream::url).collect();
    Serin::start(&service(&urls, more))
}

#[test]
fn an_endpoint_that_fails_half_of_its_requests_is_ejected_by_its_rate_and_returns_when_its_time_is_over() {
    let all = copies();
    let serin = serin(
        &all,
        ", ejection: {successRate: {window: 2s, requests: 20, minimum: 80%}, base: 2s}",
    );
    let clients = Plan::new(serin.web, 4).start();
    all[3].fail(500);
    assert_eq!(ejections(&serin, "success_rate"), (0, true));
    wait_health(&serin, &all[3].url(), 0.0);
    assert_eq!(count_healthy(&serin, &all), 3);
    assert_eq!(ejections(&serin, "success_rate"), (1, true));
    assert!(
        serin
            .log()
            .contains("is ejected for a while: too few of its requests succeed")
    );
    let (before, others) = (all[3].requests(), all[0].requests());
    all[3].fail(0);
    clients.wait_more(100);
    // What was under way when it was ejected may still have come.
    assert!(all[3].requests() <= before + 4);
    assert!(all[0].requests() > others);
    wait_health(&serin, &all[3].url(), 1.0);
    let back = all[3].requests();
    wait_for("requests at the endpoint that is back", SOON, || {
        (all[3].requests() > back + 50).then_some(())
    });
    let tally = clients.stop();
    assert!(tally.broken.is_empty());
    assert_eq!(
        tally.failed.len() as u64,
        tally.of(|_, status, by| status == 500 && by == "d")
    );
    assert!(
        healthy(&serin, &all[3].url()) > 0.5,
        "well, and not ejected again"
    );
}

#[test]
fn of_two_that_fail_the_worse_one_is_ejected_when_only_one_may_be() {
    let all = copies();
    let serin = serin(
        &all,
        ", ejection: {successRate: {window: 2s, requests: 20, minimum: 80%}, base: 60s, max: 25%}",
    );
    all[1].fail(400);
    all[2].fail(900);
    let clients = Plan::new(serin.web, 4).start();
    wait_health(&serin, &all[2].url(), 0.0);
    // Two more windows in which the other one is found as bad as before.
    let (failed, window) = (all[1].requests(), crate::support::now());
    wait_for("two more windows", SOON, || {
        assert_eq!(count_healthy(&serin, &all), 3);
        (window.elapsed().as_secs() >= 5).then_some(())
    });
    assert!(all[1].requests() > failed + 100, "it goes on serving");
    drop(clients);
}

#[test]
fn one_that_does_worse_than_the_mean_is_ejected_and_a_bad_release_is_not() {
    let all = copies();
    let serin = serin(
        &all,
        ", ejection: {successRate: {window: 2s, requests: 20, belowMean: 25%}, base: 60s}",
    );
    // All alike: that is the version's own doing, and leaving any out would help nobody.
    for one in &all {
        one.fail(500);
    }
    let clients = Plan::new(serin.web, 4).start();
    let begun = crate::support::now();
    wait_for("two windows", SOON, || {
        assert_eq!(count_healthy(&serin, &all), 4);
        (begun.elapsed().as_secs() >= 5).then_some(())
    });
    for one in &all[..3] {
        one.fail(0);
    }
    wait_health(&serin, &all[3].url(), 0.0);
    assert_eq!(count_healthy(&serin, &all), 3);
    drop(clients);
}

#[test]
fn an_endpoint_that_breaks_off_its_answers_is_ejected_by_its_rate_as_well() {
    let whole = Upstream::start("whole");
    let broken = RawUpstream::start(|seen, stream| {
        if !seen.whole {
            return Next::Body;
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        Next::Close
    });
    let serin = Serin::start(&service(
        &[whole.url(), broken.url()],
        ", ejection: {successRate: {window: 2s, requests: 10, minimum: 50%}, base: 60s}",
    ));
    let clients = Plan::new(serin.web, 2).start();
    wait_health(&serin, &broken.url(), 0.0);
    drop(clients);
}

#[test]
fn an_endpoint_that_speaks_no_http_is_left_out_and_the_others_serve() {
    let good = Upstream::start("good");
    let other = RawUpstream::start(|seen, stream| {
        if !seen.whole {
            return Next::Body;
        }
        // What a server for HTTP/2 alone says to HTTP/1.1.
        let _ = stream.write_all(b"\0\0\0\x04\0\0\0\0\0");
        Next::Close
    });
    let serin = Serin::start(&service(&[good.url(), other.url()], ", ejection: {base: 60s}"));
    let clients = Plan::new(serin.web, 1).start();
    wait_health(&serin, &other.url(), 0.0);
    clients.wait_more(50);
    let tally = clients.stop();
    // The first such answer has it left out as if it had refused; when it is tried again it may give one or two more.
    let given = other.count();
    assert!((1..=3).contains(&given), "{given}");
    assert!(
        tally.failed.iter().all(|failed| failed.status == 502) && tally.failed.len() == given,
        "{tally:?}"
    );
}

/// A gRPC call of the echo server: its message is of no interest.
fn call(method: &'static str) -> impl Fn(u64) -> Request<Payload> + Send + Sync {
    move |_| {
        let mut call = request("POST", &format!("/echo.Echo/{method}"));
        *call.body_mut() = crate::support::answers::full(&b"\0\0\0\0\0"[..]);
        call.headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        call.headers_mut().insert("te", "trailers".parse().unwrap());
        call
    }
}

#[test]
fn calls_that_fail_by_the_code_in_their_trailers_eject_their_endpoint() {
    let ((_a, one, _), (_b, other, _)) = (Servers::start("serve"), Servers::start("serve"));
    let urls = [one, other].map(|port| format!("h2c://127.0.0.1:{port}"));
    let serin = Serin::start(&service(
        &urls,
        ", ejection: {badResponses: 5, base: 60s, max: 50%}",
    ));
    let good = Plan::new(serin.web, 2).http2(1).total(50);
    good.requests(call("Unary")).start().finish().assert_clean();
    let both = || urls.iter().map(|url| healthy(&serin, url)).sum::<f64>();
    assert!(both() > 1.5);
    // HTTP says 200 each time.
    let bad = Plan::new(serin.web, 2).http2(1).total(50);
    bad.requests(call("Fail")).start().finish().assert_clean();
    assert!(both() < 1.5, "{}", serin.log());
    assert_eq!(
        ejections(&serin, "bad_responses"),
        (1, true),
        "one of two is the most"
    );
}

/// The share of the named endpoint in so many requests, one after the other.
fn share(serin: &Serin, name: &str, requests: u64) -> u64 {
    let tally = Plan::new(serin.web, 1).total(requests).start().finish();
    tally.assert_clean();
    tally.version(name) * 100 / requests
}

#[test]
fn an_endpoint_that_is_back_or_new_gets_its_share_little_by_little() {
    let (a, b, c) = (Upstream::start("a"), Upstream::start("b"), Upstream::start("c"));
    let serin = Serin::start(&service(
        &[a.url(), b.url()],
        ", slowStart: 5s, health: {http: /alive, interval: 100ms, rise: 1, fall: 2}, deploy: {allowedEndpoints: [127.0.0.0/8]}",
    ));
    assert!((40..=60).contains(&share(&serin, "b", 200)), "both begin at once");
    b.fail(1000);
    wait_health(&serin, &b.url(), 0.0);
    b.fail(0);
    wait_health(&serin, &b.url(), 1.0);
    let first = share(&serin, "b", 100);
    assert!(first < 35, "{first} % at once");
    let grown = || (share(&serin, "b", 200) >= 40).then_some(());
    wait_for("the whole share", SOON, grown);

    let add = format!("endpoints shop --version v1 add {}", c.url());
    let (code, _, said) = serin.run(&add);
    assert_eq!(code, 0, "{said}");
    let first = share(&serin, "c", 100);
    assert!(first < 25, "{first} % at once");
    let grown = || (share(&serin, "c", 200) >= 25).then_some(());
    wait_for("the whole share", SOON, grown);
}

#[test]
fn when_too_few_are_healthy_all_are_used_and_the_log_says_when_that_begins_and_ends() {
    let all = copies();
    let serin = serin(
        &all,
        ", ejection: {panic: 50%}, health: {http: /alive, interval: 100ms, rise: 2, fall: 2}",
    );
    let out = |of: &[Upstream]| {
        for one in of {
            wait_health(&serin, &one.url(), 0.0);
        }
    };
    all[0].fail(1000);
    all[1].fail(1000);
    out(&all[..2]);
    // Two of four are no panic.
    Plan::new(serin.web, 2).total(100).start().finish().assert_clean();
    all[2].fail(1000);
    out(&all[..3]);
    let tally = Plan::new(serin.web, 2).total(200).start().finish();
    for name in ["a", "b", "c", "d"] {
        assert!(tally.version(name) > 20, "{name}: {:?}", tally.answers);
    }
    assert_eq!(count_healthy(&serin, &all), 1, "used, and not said to be healthy");
    assert!(
        serin
            .log()
            .contains("too few endpoints of shop/v1 are healthy: all are used")
    );
    all[2].fail(0);
    wait_health(&serin, &all[2].url(), 1.0);
    Plan::new(serin.web, 2).total(100).start().finish().assert_clean();
    assert!(
        serin
            .log()
            .contains("enough endpoints of shop/v1 are healthy: only they are used")
    );
}
