//! Endpoints that swallow what is sent to them, and a machine without ports: how long it takes, whose fault it is, and
//! that nothing of it is left in the pool.

use super::health::{Blackhole, SOON, healthy, service};
use crate::support::{
    Serin,
    answers::full,
    client::{Plan, ask, get, request},
    network::{configure, in_a_network_of_its_own},
    now,
    pair::Pair,
    raw::{self, Next, RawUpstream},
    say,
    upstream::Upstream,
    wait_for,
};
use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

fn attempts(serin: &Serin, outcome: &str) -> u64 {
    serin.count("serin_upstream_attempts_total", &[("outcome", outcome)])
}

#[test]
fn an_endpoint_that_drops_the_first_packet_adds_at_most_the_connect_timeout() {
    let (alive, hole) = (Upstream::start("alive"), Blackhole::new());
    let connect = Duration::from_secs(1);
    let serin = Serin::start(&service(
        &[format!("http://{}", hole.address), alive.url()],
        ", timeouts: {connect: 1s}",
    ));
    let mut slowest = Duration::ZERO;
    for n in 0..60 {
        let mut asked = request(["GET", "POST"][n % 2], "/orders");
        *asked.body_mut() = full(["", "an order"][n % 2]);
        let begun = now();
        assert_eq!(ask(serin.web, n % 4 < 2, asked).unwrap().status, 200);
        slowest = slowest.max(begun.elapsed());
    }
    let met = attempts(&serin, "connect_failed");
    assert!((1..30).contains(&met), "{met}: it is met, and then left out");
    assert!(
        slowest >= connect && slowest < 2 * connect,
        "{slowest:?}: one timeout, not two"
    );
    say(&format!(
        "half-open endpoint: slowest of 60 requests {slowest:?} with a connect timeout of 1 s, 0 errors"
    ));
}

#[test]
fn who_is_silent_on_a_kept_connection_is_answered_for_with_504_and_its_connection_is_never_used_again() {
    let speak = Arc::new(AtomicBool::new(false));
    let spoken = Arc::clone(&speak);
    let upstream = RawUpstream::start(move |seen, stream| {
        if seen.target() != "/silent" {
            return raw::ok(seen, stream);
        }
        // What it says in the end is meant for nobody any more.
        wait_for("the test to go on", SOON, || {
            spoken.load(Ordering::SeqCst).then_some(())
        });
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate");
        Next::Keep
    });
    let serin = Serin::start_with(&format!(
        "
listeners: [{{name: web, address: \"127.0.0.1:0\", timeouts: {{responseHeaders: 400ms}}}}]
admin: {{address: \"127.0.0.1:0\"}}
{}",
        service(&[upstream.url()], "")
    ));
    for http2 in [false, true] {
        for method in ["GET", "POST"] {
            speak.store(false, Ordering::SeqCst);
            assert_eq!(ask(serin.web, http2, get("/")).unwrap().status, 200);
            let begun = now();
            let answer = ask(serin.web, http2, request(method, "/silent")).unwrap();
            assert_eq!(answer.status, 504, "{}", answer.text());
            assert!(begun.elapsed() >= Duration::from_millis(400));
            speak.store(true, Ordering::SeqCst);
            let silent = upstream.since(0).last().unwrap().connection;
            let before = upstream.count();
            // Enough for either worker.
            for _ in 0..8 {
                let answer = ask(serin.web, http2, get("/")).unwrap();
                assert_eq!((answer.status, answer.text()), (200, "ok".to_owned()));
            }
            let after = upstream.since(before);
            assert!(after.iter().all(|seen| seen.connection != silent), "{after:?}");
        }
    }
    assert_eq!(attempts(&serin, "timed_out"), 4, "each request was sent once");
}

#[test]
fn a_firewall_that_begins_to_drop_costs_each_open_connection_one_504_and_nobody_else_an_error() {
    let test = "unreachable::a_firewall_that_begins_to_drop_costs_each_open_connection_one_504_and_nobody_else_an_error";
    in_a_network_of_its_own(test, || {
        let (good, cut) = (Upstream::start("good"), Upstream::start("cut"));
        let serin = Serin::start_with(&format!(
            "
listeners: [{{name: web, address: \"127.0.0.1:0\", timeouts: {{responseHeaders: 500ms}}}}]
admin: {{address: \"127.0.0.1:0\"}}
{}",
            service(
                &[good.url(), cut.url()],
                ", timeouts: {connect: 300ms}, ejection: {failures: 100000}"
            )
        ));
        let clients = Plan::new(serin.web, 8)
            .pause(Duration::from_millis(2))
            .requests(|n| request(["GET", "POST"][usize::from(n % 2 == 1)], "/"))
            .start();
        wait_for("requests at both", SOON, || {
            (good.requests() > 100 && cut.requests() > 100).then_some(())
        });
        configure(&["nft", "add table inet fault"]);
        configure(&[
            "nft",
            "add chain inet fault input { type filter hook input priority 0 ; }",
        ]);
        let port = cut.address.port();
        configure(&["nft", &format!("add rule inet fault input tcp dport {port} drop")]);
        let open = cut.connections();
        wait_for("the cut to be met", SOON, || {
            (attempts(&serin, "timed_out") + attempts(&serin, "connect_failed") > 0).then_some(())
        });
        clients.wait_more(400);
        wait_for("the cut to be met by a new connection", SOON, || {
            (attempts(&serin, "connect_failed") > 0).then_some(())
        });
        configure(&["nft", "delete table inet fault"]);
        let before = cut.requests();
        wait_for("requests at the one that is back", SOON, || {
            (cut.requests() > before + 50).then_some(())
        });
        assert!(healthy(&serin, &cut.url()) > 0.5);
        let seen = clients.stop();
        assert!(seen.broken.is_empty(), "{:?}", seen.broken.first());
        assert!(
            seen.failed.iter().all(|failed| failed.status == 504),
            "{:?}",
            seen.failed.first()
        );
        assert!(
            seen.failed.len() as u64 <= open,
            "{} answers of 504, but only {open} connections were open",
            seen.failed.len()
        );
        say(&format!(
            "packets dropped by a firewall: {} answers of 504 for {open} open connections, of {} requests",
            seen.failed.len(),
            seen.total()
        ));
    });
}

#[test]
fn a_machine_without_a_free_port_is_not_the_versions_fault() {
    in_a_network_of_its_own(
        "unreachable::a_machine_without_a_free_port_is_not_the_versions_fault",
        || {
            let pair = Pair::start("force: {header: x-canary}");
            let (canary, serin) = (&pair.canary, &pair.serin);
            // Ports are counted for each destination apart, so clients of one connection have what they need.
            configure(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=20000 20003"]);
            let clients = Plan::new(serin.web, 1)
                .http2(12)
                .total(12)
                .requests(|_| {
                    let mut asked = get("/gate");
                    asked.headers_mut().insert("x-canary", "always".parse().unwrap());
                    asked
                })
                .start();
            wait_for("all ports in use, and the others told", SOON, || {
                (canary.in_flight() == 4 && clients.total() == 8).then_some(())
            });
            assert_eq!(attempts(serin, "local_error"), 8);
            assert_eq!(attempts(serin, "connect_failed"), 0);
            assert!(healthy(serin, &canary.url()) > 0.5);
            let failed = [("outcome", "failed")];
            assert_eq!(serin.count("serin_version_outcomes_total", &failed), 0);
            let status = serin.status("shop");
            assert_eq!(
                status["phase"], "Paused",
                "eight in a row would have been a hard failure: {status}"
            );
            canary.open_gate();
            let seen = clients.finish();
            assert_eq!(
                (seen.of(|_, status, by| status == 200 && by == "v2"), seen.total()),
                (4, 12)
            );
            assert_eq!(
                seen.of(|_, status, by| status == 503 && by.is_empty()),
                8,
                "{:?}",
                seen.answers
            );
        },
    );
}
