//! Reloads, weight changes and the end: nothing that a client asks for is lost.

use crate::support::{
    HEAD, Serin,
    answers::Payload,
    client::{Clients, Plan, ask, get as get_request, request},
    full_form, get, say,
    upstream::Upstream,
    wait_for,
};
use http::Request;
use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(20);

fn configuration(stable: &Upstream, canary: &Upstream, header_limit: u32) -> String {
    format!(
        "{HEAD}
services:
  - name: shop
    stable: {{version: v1, endpoints: [\"{}\"]}}
    canary: {{version: v2, endpoints: [\"{}\"]}}
    strategy: {{canary: {{steps: [{{setWeight: 1}}, {{pause: {{}}}}]}}}}
    failure: {{statuses: [\"5xx\", \"{header_limit}\"]}}
",
        stable.url(),
        canary.url()
    )
}

/// A request on a connection of its own.
fn anew(_: u64) -> Request<Payload> {
    let mut request = get_request("/orders");
    let close = "close".parse().unwrap();
    request.headers_mut().insert("connection", close);
    request
}

/// Clients of every kind: kept connections, a new one for each request, and HTTP/2.
fn everybody(to: SocketAddr) -> Vec<Clients> {
    let mixed = |n: u64| {
        let method = ["GET", "GET", "POST"][usize::try_from(n % 3).unwrap()];
        request(method, "/orders")
    };
    let pause = Duration::from_millis(2);
    vec![
        Plan::new(to, 8)
            .ends_when_refused()
            .requests(mixed)
            .pause(pause)
            .start(),
        Plan::new(to, 2)
            .ends_when_refused()
            .requests(anew)
            .pause(pause)
            .start(),
        Plan::new(to, 2)
            .ends_when_refused()
            .requests(mixed)
            .pause(pause)
            .http2(8)
            .start(),
    ]
}

#[test]
fn a_hundred_reloads_and_weight_changes_cost_no_client_an_error() {
    let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start_with(&configuration(&stable, &canary, 400));
    serin.wait_status("shop", "the first step", |status| status["phase"] == "Paused");
    let clients = everybody(serin.web);
    let changes = u32::try_from(full_form(100, 1_000)).unwrap();
    for n in 0..changes {
        if n % 2 == 0 {
            serin.rewrite(&configuration(&stable, &canary, 400 + n / 2 % 50));
            let (status, _, answer) = serin.api("POST", "/v1/config/reload", "secret-token", "");
            assert_eq!(status, 200, "{answer}");
        } else {
            let body = format!("{{\"weight\": {}}}", [5, 40, 99, 1][(n / 2 % 4) as usize]);
            let (status, _, answer) = serin.api("PUT", "/v1/services/shop/weight", "secret-token", &body);
            assert_eq!(status, 200, "{answer}");
        }
        let error = serin.metric("serin_split_error_requests", &[]);
        assert!(error.abs() < 1.0, "{error}");
    }
    for clients in clients {
        clients.wait_more(20);
        let seen = clients.stop();
        seen.assert_clean();
        assert!(
            seen.version("v1") > 0 && seen.version("v2") > 0,
            "{:?}",
            seen.answers
        );
        assert_eq!(seen.version("v1") + seen.version("v2"), seen.total());
        say(&format!(
            "{changes} reloads and weight changes: {} requests, 0 errors",
            seen.total()
        ));
    }
}

#[test]
fn a_file_that_cannot_be_used_changes_nothing_and_is_told_of() {
    let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start_with(&configuration(&stable, &canary, 400));
    let clients = Plan::new(serin.web, 4).start();
    let good = || serin.metric("serin_config_last_reload_success", &[]);
    assert!(good() > 0.5);
    let whole = configuration(&stable, &canary, 404);
    for broken in [
        &whole[..whole.len() / 2],
        "",
        "services: 7",
        "services: [{name: shop, stabel: {}}]",
    ] {
        serin.rewrite(broken);
        wait_for("the refusal", SOON, || (good() < 0.5).then_some(()));
        clients.wait_more(20);
        serin.rewrite(&whole);
        wait_for("the new file", SOON, || (good() > 0.5).then_some(()));
    }
    clients.stop().assert_clean();
}

#[test]
fn services_that_come_go_and_are_renamed_are_served_throughout() {
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    let named = |services: &[(&str, &str, &Upstream)]| {
        let one = |(name, host, at): &(&str, &str, &Upstream)| {
            let url = at.url();
            format!("- {{name: {name}, match: [{host}], stable: {{version: v1, endpoints: [\"{url}\"]}}}}\n")
        };
        format!(
            "{HEAD}services:\n{}",
            services.iter().map(one).collect::<String>()
        )
    };
    let (any, other) = ("{path: {prefix: /}}", "{host: other.test}");
    let files = [
        named(&[("shop", any, &a)]),
        named(&[("shop", any, &a), ("other", other, &b)]),
        named(&[("shop", any, &a), ("renamed", other, &b)]),
        named(&[("market", any, &a)]),
    ];
    let serin = Serin::start_with(&files[0]);
    let others = |n: u64| {
        let mut asked = request(["GET", "POST"][usize::from(n % 2 == 1)], "/orders");
        asked.headers_mut().insert("host", "other.test".parse().unwrap());
        asked
    };
    let clients = [
        Plan::new(serin.web, 4).start(),
        Plan::new(serin.web, 4).requests(others).start(),
    ];
    for file in (1..=usize::try_from(full_form(40, 1_000)).unwrap()).map(|n| &files[n % 4]) {
        serin.rewrite(file);
        let (status, _, answer) = serin.api("POST", "/v1/config/reload", "secret-token", "");
        assert_eq!(status, 200, "{answer}");
    }
    let [anybody, others] = clients.map(Clients::stop);
    for seen in [&anybody, &others] {
        seen.assert_clean();
        assert_eq!(seen.of(|_, status, _| status != 200), 0, "{:?}", seen.answers);
    }
    assert!(
        others.version("a") > 0 && others.version("b") > 0,
        "{:?}",
        others.answers
    );
    assert_eq!(anybody.version("b"), 0);
}

#[test]
fn of_a_hundred_files_a_second_half_of_them_cut_off_the_last_one_holds_and_no_client_notices() {
    let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start_with(&configuration(&stable, &canary, 400));
    let clients = everybody(serin.web);
    let path = serin.file("serin.yaml");
    let good = || serin.metric("serin_config_last_reload_success", &[]) > 0.5;
    for n in 0..u32::try_from(full_form(100, 3_000)).unwrap() {
        let text = configuration(&stable, &canary, 400 + n % 50);
        // Written in place, so that the half of it is there to be read, too.
        let end = if n % 2 == 0 { text.len() } else { text.len() / 2 };
        std::fs::write(&path, &text[..end]).unwrap();
        std::thread::park_timeout(Duration::from_millis(10));
    }
    wait_for("the half of a file to be refused", SOON, || {
        (!good()).then_some(())
    });
    // Nothing at all is no configuration either.
    std::fs::remove_file(&path).unwrap();
    for clients in &clients {
        clients.wait_more(20);
    }
    let gone = get(serin.web, "/").0;
    assert_eq!((gone, good()), (200, false));
    let last = Upstream::start("last");
    let text = format!(
        "{}  - {{name: other, match: [{{host: other.test}}], stable: {{version: v1, endpoints: [\"{}\"]}}}}\n",
        configuration(&stable, &canary, 400),
        last.url()
    );
    // The first service matches everything but what another one names.
    std::fs::write(&path, text).unwrap();
    wait_for("the last file to hold", SOON, || {
        let mut asked = get_request("/");
        asked.headers_mut().insert("host", "other.test".parse().unwrap());
        let answer = ask(serin.web, false, asked).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        (answer.version() == "last" && good()).then_some(())
    });
    for clients in clients {
        clients.wait_more(20);
        clients.stop().assert_clean();
    }
}

/// Stops Serin that many times under these clients, none of whom may notice: how many requests were answered.
fn stopped_gracefully(stops: u64, start: impl Fn(SocketAddr) -> Vec<Clients>) -> u64 {
    let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
    let mut answered = 0;
    for _ in 0..stops {
        let mut serin = Serin::start_with(&configuration(&stable, &canary, 400));
        let clients = start(serin.web);
        for clients in &clients {
            clients.wait_more(100);
        }
        serin.signal("TERM");
        assert_eq!(serin.wait_end(SOON), 0, "{}", serin.log());
        for clients in clients {
            let seen = clients.finish();
            seen.assert_clean();
            assert!(seen.total() >= 100);
            assert_eq!(seen.of(|_, status, _| status == 200), seen.total());
            answered += seen.total();
        }
    }
    answered
}

#[test]
fn a_graceful_stop_under_load_loses_nothing_whatever_clients_speak() {
    let stops = full_form(1, 20);
    let answered = stopped_gracefully(stops, everybody);
    say(&format!(
        "{stops} graceful stops under load: {answered} requests, 0 errors"
    ));
}

#[test]
fn whoever_was_let_in_before_a_graceful_stop_is_answered_and_nobody_is_reset() {
    let stops = full_form(5, 30);
    let answered = stopped_gracefully(stops, |to| {
        let plan = Plan::new(to, 16).ends_when_refused().requests(anew);
        vec![plan.start()]
    });
    say(&format!(
        "{stops} graceful stops beside clients that connect anew: {answered} requests, 0 errors"
    ));
}

#[test]
fn readiness_ends_first_then_new_connections_then_what_is_in_flight() {
    let v1 = Upstream::start("v1");
    let mut serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        v1.url()
    ));
    assert_eq!(get(serin.admin, "/readyz").0, 200);
    let web = serin.web;
    let waiting: Vec<_> = [false, true]
        .map(|http2| std::thread::spawn(move || ask(web, http2, get_request("/gate"))))
        .into_iter()
        .collect();
    wait_for("both in flight", SOON, || (v1.in_flight() == 2).then_some(()));
    serin.signal("TERM");
    wait_for("readiness to end", SOON, || {
        (get(serin.admin, "/readyz").0 == 503).then_some(())
    });
    assert_eq!(get(serin.admin, "/livez").0, 200, "alive until the end");
    wait_for("new connections to be refused", SOON, || {
        TcpStream::connect(web).err()
    });
    assert_eq!(v1.in_flight(), 2);
    v1.open_gate();
    for waiting in waiting {
        let answer = waiting.join().unwrap().unwrap();
        assert_eq!((answer.status, answer.text()), (200, "v1".to_owned()));
    }
    assert_eq!(serin.wait_end(SOON), 0);
}

#[test]
fn a_second_signal_does_not_wait_for_what_is_in_flight() {
    let v1 = Upstream::start("v1");
    let mut serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        v1.url()
    ));
    let web = serin.web;
    let waiting = std::thread::spawn(move || ask(web, false, get_request("/hang")));
    wait_for("one in flight", SOON, || (v1.in_flight() == 1).then_some(()));
    serin.signal("TERM");
    wait_for("readiness to end", SOON, || {
        (get(serin.admin, "/readyz").0 == 503).then_some(())
    });
    serin.signal("INT");
    serin.wait_end(SOON);
    assert!(waiting.join().unwrap().is_err());
}

#[test]
fn what_does_not_finish_within_the_time_to_drain_is_cut_off() {
    let v1 = Upstream::start("v1");
    let mut serin = Serin::start_with(&format!(
        "
listeners: [{{name: web, address: \"127.0.0.1:0\", timeouts: {{drain: 300ms}}}}]
admin: {{address: \"127.0.0.1:0\"}}
services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        v1.url()
    ));
    let web = serin.web;
    let waiting = std::thread::spawn(move || ask(web, false, get_request("/hang")));
    wait_for("one in flight", SOON, || (v1.in_flight() == 1).then_some(()));
    serin.signal("TERM");
    assert_eq!(serin.wait_end(SOON), 0);
    assert!(waiting.join().unwrap().is_err());
    assert!(
        serin.log().contains("before everything in flight had finished"),
        "{}",
        serin.log()
    );
}
