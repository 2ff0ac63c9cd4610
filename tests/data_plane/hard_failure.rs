//! Every endpoint of the canary dies at once, or only some, or stable dies as well: what clients see of it.

use crate::support::{
    HEAD, Serin,
    answers::full,
    client::{Clients, Plan, Tally, ask, get as get_request, request},
    full_form, now,
    raw::{Next, RawUpstream},
    say,
    upstream::Upstream,
    wait_for,
};
use std::{
    io::Write,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(20);
const TRIPPED: &str = "every endpoint of the canary v2 failed";

fn start(stable: &[&Upstream], canary: &[&Upstream], weight: &str, more: &str) -> Serin {
    let urls = |of: &[&Upstream]| {
        let quoted: Vec<String> = of.iter().map(|one| format!("\"{}\"", one.url())).collect();
        quoted.join(", ")
    };
    start_at(&urls(stable), &urls(canary), weight, more)
}

fn start_at(stable: &str, canary: &str, weight: &str, more: &str) -> Serin {
    let serin = Serin::start_with(&format!(
        "{HEAD}
services:
  - name: shop
    stable: {{version: v1, endpoints: [{stable}]}}
    canary: {{version: v2, endpoints: [{canary}]}}
    strategy: {{canary: {{steps: [{{setWeight: {weight}}}, {{pause: {{}}}}]}}}}
    force: {{header: x-canary}}
    {more}
"
    ));
    serin.wait_status("shop", "the first step", |status| status["phase"] == "Paused");
    serin
}

/// Half GETs, half POSTs with a body that takes a moment to be answered.
fn load(serin: &Serin, connections: usize, http2: bool) -> Clients {
    let plan = Plan::new(serin.web, connections).requests(|n| {
        let mut request = request(if n % 2 == 0 { "GET" } else { "POST" }, "/wait/1");
        if n % 2 == 1 {
            *request.body_mut() = full("an order");
        }
        request
    });
    if http2 {
        plan.http2(4).start()
    } else {
        plan.start()
    }
}

/// Waits until the canary is given up; when that was seen.
fn tripped(serin: &Serin) -> Instant {
    wait_for("the trip", SOON, || serin.log().contains(TRIPPED).then(now))
}

/// What may be repeated has never failed; the others only if they were on their way when the canary was killed, and none
/// late.
fn assert_within_bounds(seen: &Tally, killed: Instant, trip: Instant) {
    let broken = seen.broken.first();
    assert!(broken.is_none(), "{broken:?}");
    for failed in &seen.failed {
        assert!(failed.method == "POST", "{failed:?} could have been repeated");
        // On a busy machine Serin runs some milliseconds after the kernel has closed the canary's sockets, and hears of a request
        // and of that at once.
        assert!(
            failed.sent <= killed + Duration::from_millis(20),
            "{failed:?} was sent after the kill at {killed:?}"
        );
        assert!(
            failed.at <= trip + Duration::from_millis(100),
            "{failed:?} after the trip"
        );
    }
}

fn aborted_for_it(serin: &Serin) {
    let status = serin.wait_status("shop", "the abort", |status| status["phase"] == "Degraded");
    assert!(
        status["message"].as_str().unwrap().contains("HardFailure"),
        "{status}"
    );
    assert_eq!(status["setWeight"], 0);
    let aborts = serin.metric("serin_rollout_aborts_total", &[("cause", "hard_failure")]);
    assert!(aborts > 0.5 && aborts < 1.5, "{aborts}");
}

#[test]
fn the_only_canary_killed_at_five_percent_under_load_costs_at_most_what_it_had_in_flight() {
    for http2 in [false, true] {
        for _ in 0..full_form(1, 20) {
            let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
            let serin = start(&[&stable], &[&canary], "5", "");
            let clients = load(&serin, 24, http2);
            clients.wait_more(400);
            let in_flight = canary.kill();
            let killed = now();
            let trip = tripped(&serin);
            clients.wait_more(400);
            let seen = clients.stop();
            assert_within_bounds(&seen, killed, trip);
            aborted_for_it(&serin);
            assert!(seen.version("v2") > 0);
            say(&format!(
                "canary killed at 5 % with {in_flight} in its hands: {} errors of {} requests (HTTP/2: {http2})",
                seen.errors(),
                seen.total()
            ));
        }
    }
}

#[test]
fn whatever_was_in_flight_is_repeated_on_stable_or_answered_once_with_502() {
    let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
    stable.open_gate();
    let serin = start(&[&stable], &[&canary], "5", "");
    let web = serin.web;
    let waiting: Vec<_> = (0..60)
        .map(|n| {
            let mut request = request(if n % 2 == 0 { "GET" } else { "POST" }, "/gate");
            request
                .headers_mut()
                .insert("x-canary", "always".parse().unwrap());
            std::thread::spawn(move || ask(web, n % 4 < 2, request))
        })
        .collect();
    wait_for("all in flight", SOON, || (canary.in_flight() == 60).then_some(()));
    assert_eq!(canary.kill(), 60);
    for (n, waiting) in waiting.into_iter().enumerate() {
        let answer = waiting.join().unwrap().unwrap();
        if n % 2 == 0 {
            assert_eq!(
                (answer.status, answer.version()),
                (200, "v1".to_owned()),
                "{}",
                answer.text()
            );
        } else {
            assert_eq!(answer.status, 502);
            assert!(answer.text().contains("fault: upstream"), "{}", answer.text());
        }
    }
    aborted_for_it(&serin);
}

#[test]
fn one_dead_endpoint_of_several_is_no_bad_release() {
    let stable = Upstream::start("v1");
    let (one, two, three) = (
        Upstream::start("v2"),
        Upstream::start("v2"),
        Upstream::start("v2"),
    );
    let serin = start(&[&stable], &[&one, &two, &three], "40", "");
    let clients = load(&serin, 16, false);
    clients.wait_more(200);
    one.kill();
    let killed = now();
    clients.wait_more(600);
    let seen = clients.stop();
    assert_within_bounds(&seen, killed, now());
    assert_eq!(
        serin.status("shop")["phase"],
        "Paused",
        "{}",
        serin.status("shop")
    );
    assert!(!serin.log().contains(TRIPPED));
    let healthy = |url: &str| serin.metric("serin_upstream_endpoint_healthy", &[("endpoint", url)]);
    assert!(healthy(&two.url()) > 0.5 && healthy(&three.url()) > 0.5);
}

#[test]
fn a_canary_of_many_endpoints_that_all_die_costs_nobody_an_error() {
    let stable = Upstream::start("v1");
    let canaries: Vec<Upstream> = (0..8).map(|_| Upstream::start("v2")).collect();
    let all: Vec<&Upstream> = canaries.iter().collect();
    let serin = start(&[&stable], &all, "40", "");
    let clients = Plan::new(serin.web, 8).start();
    clients.wait_more(200);
    drop(canaries);
    tripped(&serin);
    clients.wait_more(100);
    clients.stop().assert_clean();
    aborted_for_it(&serin);
}

#[test]
fn a_stable_that_dies_alike_is_nobodys_fault_and_waits_for_a_human() {
    let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
    let (stable_at, canary_at) = (stable.address, canary.address);
    let serin = start(&[&stable], &[&canary], "50", "");
    let clients = load(&serin, 4, false);
    clients.wait_more(50);
    drop((stable, canary));
    let status = serin.wait_status("shop", "the shared fate", |status| {
        status["phase"] == "Paused" && status["message"].to_string().contains("SharedFate")
    });
    assert_eq!(status["setWeight"], 0, "{status}");
    drop(clients);

    // Both come back: stable serves again at once, and a human lets the rollout go on.
    let (stable, _canary) = (
        Upstream::start_at("v1", stable_at),
        Upstream::start_at("v2", canary_at),
    );
    wait_for("stable to serve again", SOON, || {
        (ask(serin.web, false, get_request("/")).unwrap().status == 200).then_some(())
    });
    let (status, _, answer) = serin.api("POST", "/v1/services/shop/resume", "secret-token", "{}");
    assert_eq!(status, 200, "{answer}");
    serin.wait_status("shop", "the step again", |status| {
        status["phase"] == "Paused" && status["setWeight"] == 50
    });
    let clients = Plan::new(serin.web, 1).total(20).start().finish();
    clients.assert_clean();
    assert_eq!(clients.version("v2"), 10, "{:?}", clients.answers);
    assert!(stable.requests() > 0);
}

#[test]
fn a_canary_that_comes_back_is_taken_up_again_by_retry() {
    let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
    let address = canary.address;
    let serin = start(&[&stable], &[&canary], "50", "");
    drop(canary);
    Plan::new(serin.web, 2).total(40).start().finish().assert_clean();
    aborted_for_it(&serin);
    let _canary = Upstream::start_at("v2", address);
    let (status, _, answer) = serin.api("POST", "/v1/services/shop/retry", "secret-token", "{}");
    assert_eq!(status, 200, "{answer}");
    serin.wait_status("shop", "the step again", |status| {
        status["phase"] == "Paused" && status["setWeight"] == 50
    });
    let seen = Plan::new(serin.web, 1).total(20).start().finish();
    seen.assert_clean();
    assert_eq!(seen.version("v2"), 10, "{:?}", seen.answers);
}

#[test]
fn a_service_may_pause_instead_of_abort() {
    let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = start(
        &[&stable],
        &[&canary],
        "50",
        "hardFailure: {attempts: 3, action: pause}",
    );
    drop(canary);
    Plan::new(serin.web, 2).total(40).start().finish().assert_clean();
    let status = serin.wait_status("shop", "the pause", |status| {
        status["phase"] == "Paused" && status["message"].to_string().contains("HardFailure")
    });
    assert!(
        status["phase"] == "Paused" && status["setWeight"] == 0,
        "{status}"
    );
}

/// A version behind something that answers every request with these bytes.
fn answers_only(bytes: &'static [u8]) {
    let stable = Upstream::start("v1");
    let canary = RawUpstream::start(move |_, stream| {
        let _ = stream.write_all(bytes);
        Next::Close
    });
    let urls = (stable.url(), canary.url());
    let serin = start_at(&format!("\"{}\"", urls.0), &format!("\"{}\"", urls.1), "50", "");
    let seen = Plan::new(serin.web, 1).total(40).start().finish();
    aborted_for_it(&serin);
    assert_eq!(seen.errors(), 3, "as many as `attempts`: {:?}", seen.answers);
}

#[test]
fn a_canary_that_speaks_no_http_is_dead() {
    answers_only(b"SSH-2.0-OpenSSH_9.9\r\n");
    // A TLS server's alert to a request in plain text.
    answers_only(&[0x15, 3, 3, 0, 2, 2, 70]);
}

#[test]
fn a_canary_that_speaks_http_badly_is_judged_and_not_dead() {
    let stable = Upstream::start("v1");
    let canary = RawUpstream::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nno field\r\n\r\n");
        Next::Close
    });
    let urls = (stable.url(), canary.url());
    let serin = start_at(&format!("\"{}\"", urls.0), &format!("\"{}\"", urls.1), "50", "");
    let seen = Plan::new(serin.web, 1).total(40).start().finish();
    assert!(seen.errors() > 3, "{:?}", seen.answers);
    assert_eq!(serin.status("shop")["phase"], "Paused");
    assert!(!serin.log().contains(TRIPPED));
}
