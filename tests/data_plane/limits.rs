//! What a version may use up, exactly, over all workers.

use crate::support::{
    HEAD, Serin,
    client::{Clients, Plan, ask, get},
    h2::{self, H2},
    now,
    raw::{Next, RawClient, RawUpstream},
    upstream::Upstream,
    wait_for,
};
use std::{
    io::Write,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);

fn serin(upstream: &Upstream, more: &str) -> Serin {
    Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}, {more}}}]",
        upstream.url()
    ))
}

/// One client that waits at the gate, and ends when it has its answer.
fn waiter(serin: &Serin) -> Clients {
    Plan::new(serin.web, 1)
        .total(1)
        .requests(|_| get("/gate"))
        .start()
}

fn in_flight(upstream: &Upstream, count: u64) {
    wait_for(&format!("{count} requests in flight"), SOON, || {
        (upstream.in_flight() == count).then_some(())
    });
}

#[test]
fn as_many_requests_are_in_flight_as_allowed_and_not_one_more() {
    let upstream = Upstream::start("v1");
    let serin = serin(&upstream, "limits: {requests: 10}");
    // Many connections, so that both workers have some; one after the other, so that nobody meets somebody at the last seat.
    let mut clients: Vec<RawClient> = Vec::new();
    for taken in 1..=10 {
        let mut client = RawClient::connect(serin.web);
        client.send("GET /gate HTTP/1.1\r\nhost: shop\r\n\r\n");
        clients.push(client);
        in_flight(&upstream, taken);
    }
    for _ in 0..20 {
        let refused = ask(serin.web, false, get("/")).unwrap();
        assert_eq!((refused.status, refused.header("retry-after")), (503, "1"));
    }
    assert_eq!(upstream.in_flight(), 10);
    upstream.open_gate();
    for client in &mut clients {
        assert_eq!(client.answer("GET").unwrap().status, 200);
    }
    in_flight(&upstream, 0);
    assert_eq!(ask(serin.web, false, get("/")).unwrap().status, 200);
    let rejected = serin.metric("serin_http_rejected_total", &[("reason", "overload")]);
    assert!((rejected - 20.0).abs() < 0.5, "{rejected}");
}

#[test]
fn requests_wait_for_one_of_the_allowed_connections_and_all_are_served() {
    let upstream = Upstream::start("v1");
    let serin = serin(
        &upstream,
        "limits: {connections: 3, pending: 100}, timeouts: {connect: 20s}",
    );
    let clients = Plan::new(serin.web, 12)
        .total(12)
        .requests(|_| get("/gate"))
        .start();
    in_flight(&upstream, 3);
    assert_eq!(upstream.connections(), 3);
    upstream.open_gate();
    let tally = clients.finish();
    tally.assert_clean();
    assert_eq!(tally.total(), 12);
    // Both workers go on sharing the three, under a load that keeps them busy.
    let tally = Plan::new(serin.web, 20).total(2000).start().finish();
    tally.assert_clean();
}

#[test]
fn who_finds_the_queue_full_is_refused_at_once_and_told_to_come_again() {
    let upstream = Upstream::start("v1");
    let serin = serin(
        &upstream,
        "limits: {connections: 1, pending: 2}, timeouts: {connect: 30s}",
    );
    let first = waiter(&serin);
    in_flight(&upstream, 1);
    let queued = [waiter(&serin), waiter(&serin)];
    let refused = wait_for("the queue to be full", SOON, || {
        let all = serin.metric("serin_http_requests_in_flight", &[]);
        ((all - 3.0).abs() < 0.5).then(|| ask(serin.web, false, get("/")).unwrap())
    });
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"));
    upstream.open_gate();
    first.finish().assert_clean();
    for one in queued {
        one.finish().assert_clean();
    }
}

#[test]
fn who_waits_in_vain_is_told_so_when_the_time_to_connect_is_over() {
    let upstream = Upstream::start("v1");
    let serin = serin(
        &upstream,
        "limits: {connections: 1, pending: 5}, timeouts: {connect: 300ms}",
    );
    let first = waiter(&serin);
    in_flight(&upstream, 1);
    let late = ask(serin.web, false, get("/")).unwrap();
    assert_eq!((late.status, late.header("retry-after")), (503, "1"));
    upstream.open_gate();
    first.finish().assert_clean();
    assert_eq!(ask(serin.web, false, get("/")).unwrap().status, 200);
}

#[test]
fn an_idle_connection_of_another_worker_makes_room_for_who_waits() {
    for upstream in [Upstream::start("v1"), Upstream::h2c("v1")] {
        let serin = serin(
            &upstream,
            "limits: {connections: 1, pending: 50}, timeouts: {connect: 20s}",
        );
        // Connections land on either worker; whoever has the only upstream connection has to let it go.
        for _ in 0..30 {
            assert_eq!(ask(serin.web, false, get("/")).unwrap().status, 200);
        }
        assert!(
            upstream.connections() > 1,
            "it moved from one worker to the other"
        );
    }
}

#[test]
fn whoever_is_alone_is_served_though_nobody_may_wait() {
    let upstream = Upstream::start("v1");
    let serin = serin(&upstream, "limits: {connections: 1, pending: 0}");
    for _ in 0..30 {
        assert_eq!(ask(serin.web, false, get("/")).unwrap().status, 200);
    }
    assert!(upstream.connections() > 1, "it moved as well");
}

#[test]
fn a_lowered_limit_closes_the_idle_connections_that_are_too_many() {
    let upstream = Upstream::start("v1");
    let configuration = |connections| {
        format!(
            "{HEAD}services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}, limits: {{connections: {connections}, pending: 0}}}}]",
            upstream.url()
        )
    };
    let serin = Serin::start_with(&configuration(2));
    let refused = || serin.metric("serin_http_rejected_total", &[("reason", "overload")]);
    // The same workers each time, and so the connections that they have kept; one turn after the other, so that none is idle
    // for long.
    let mut clients = [RawClient::connect(serin.web), RawClient::connect(serin.web)];
    let mut turn = 0;
    let mut are_two_allowed = || {
        turn += 1;
        let request = format!("GET /gate/{turn} HTTP/1.1\r\nhost: shop\r\n\r\n");
        let [first, second] = &mut clients;
        let before = refused();
        first.send(&request);
        in_flight(&upstream, 1);
        second.send(&request);
        let allowed = wait_for("the second request's fate", SOON, || {
            let allowed = upstream.in_flight() == 2;
            (allowed || refused() > before).then_some(allowed)
        });
        upstream.open_gate_for_the_next();
        assert_eq!(first.answer("GET").unwrap().status, 200);
        assert_eq!(
            second.answer("GET").unwrap().status,
            if allowed { 200 } else { 503 }
        );
        allowed
    };
    assert!(are_two_allowed());
    serin.rewrite(&configuration(1));
    wait_for("the limit to hold", SOON, || (!are_two_allowed()).then_some(()));
}

#[test]
fn one_http2_connection_is_opened_however_many_requests_come_at_once() {
    let upstream = Upstream::h2c("v1");
    let serin = serin(&upstream, "limits: {connections: 2}");
    let tally = Plan::new(serin.web, 40).total(400).start().finish();
    tally.assert_clean();
    assert!(
        upstream.connections() <= 2,
        "one for each worker: {}",
        upstream.connections()
    );
}

/// Requests that Serin has in its hands.
fn taken(serin: &Serin, count: f64) {
    wait_for(&format!("{count} requests in Serin's hands"), SOON, || {
        let all = serin.metric("serin_http_requests_in_flight", &[]);
        ((all - count).abs() < 0.5).then_some(())
    });
}

fn refused(serin: &Serin) -> bool {
    let answer = ask(serin.web, false, get("/")).unwrap();
    let rejected = (answer.status, answer.header("retry-after")) == (503, "1");
    assert!(rejected || answer.status == 200, "{}", answer.status);
    rejected
}

#[test]
fn a_client_that_goes_away_gives_its_seat_and_its_turn_in_the_queue_back() {
    let upstream = Upstream::start("v1");
    let one = serin(&upstream, "limits: {requests: 2}");
    let wait_at_gate = |serin: &Serin| {
        let mut client = RawClient::connect(serin.web);
        client.send("GET /gate HTTP/1.1\r\nhost: shop\r\n\r\n");
        client
    };
    let clients = [wait_at_gate(&one), wait_at_gate(&one)];
    in_flight(&upstream, 2);
    assert!(refused(&one));
    drop(clients);
    wait_for("the seats", SOON, || (!refused(&one)).then_some(()));
    in_flight(&upstream, 0);

    let other = serin(
        &upstream,
        "limits: {connections: 1, pending: 2}, timeouts: {connect: 60s}",
    );
    let first = wait_at_gate(&other);
    in_flight(&upstream, 1);
    let queued = [wait_at_gate(&other), wait_at_gate(&other)];
    taken(&other, 3.0);
    assert!(refused(&other));
    let [gone, stays] = queued;
    drop(gone);
    taken(&other, 2.0);
    let mut late = wait_at_gate(&other);
    taken(&other, 3.0);
    assert!(refused(&other), "full again, and not one more");
    upstream.open_gate();
    for mut client in [first, stays] {
        assert_eq!(client.answer("GET").unwrap().status, 200);
    }
    assert_eq!(late.answer("GET").unwrap().status, 200);
    taken(&other, 0.0);
    assert!(!refused(&other));
}

#[test]
fn who_waits_longer_is_served_first() {
    // Answers one at a time, when it is told to.
    let allowed = Arc::new((Mutex::new(0), Condvar::new()));
    let waits = Arc::clone(&allowed);
    let upstream = RawUpstream::start(move |seen, stream| {
        if !seen.whole {
            return Next::Body;
        }
        let (count, changed) = &*waits;
        let mut count = changed
            .wait_while(count.lock().unwrap(), |count| *count == 0)
            .unwrap();
        *count -= 1;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        Next::Keep
    });
    let serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}, limits: {{connections: 1, pending: 20}}, timeouts: {{connect: 60s}}}}]",
        upstream.url()
    ));
    // One connection's requests belong to one worker.
    let mut client = H2::connect(serin.web);
    let paths = ["/0", "/1", "/2", "/3", "/4", "/5", "/6", "/7", "/8", "/9"];
    for (number, path) in (0u8..).zip(paths) {
        client.head(u32::from(number) * 2 + 1, &h2::request("GET", path), true);
        taken(&serin, f64::from(number) + 1.0);
    }
    *allowed.0.lock().unwrap() = paths.len();
    allowed.1.notify_all();
    for stream in 0..10 {
        // The last answers may be read together with the first.
        if upstream.count() < 10 {
            client.response(stream * 2 + 1).unwrap();
        }
    }
    wait_for("all of them", SOON, || (upstream.count() == 10).then_some(()));
    let order: Vec<String> = upstream
        .since(0)
        .iter()
        .map(|one| one.target().to_owned())
        .collect();
    assert_eq!(order, paths);
}

#[test]
fn each_version_has_limits_of_its_own() {
    let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start_with(&format!(
        "{HEAD}services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}, canary: {{version: v2, endpoints: [\"{}\"]}},
           limits: {{requests: 2}}, force: {{header: x-canary}},
           strategy: {{canary: {{steps: [{{setWeight: 0}}, {{pause: {{}}}}]}}}}}}]",
        stable.url(),
        canary.url()
    ));
    serin.wait_status("shop", "the pause", |status| status["phase"] == "Paused");
    let forced = |path: &str| {
        let mut get = get(path);
        get.headers_mut().insert("x-canary", "always".parse().unwrap());
        get
    };
    let held = Plan::new(serin.web, 2)
        .total(2)
        .requests(move |_| forced("/gate"))
        .start();
    in_flight(&canary, 2);
    let answer = ask(serin.web, false, forced("/")).unwrap();
    assert_eq!((answer.status, answer.header("retry-after")), (503, "1"));
    assert_eq!(
        stable.requests(),
        0,
        "what is too much for the canary is not stable's"
    );
    Plan::new(serin.web, 2).total(50).start().finish().assert_clean();
    // Being full says nothing about whether it is well.
    assert_eq!(serin.status("shop")["phase"], "Paused");
    canary.open_gate();
    held.finish().assert_clean();
}

#[test]
fn a_connection_carries_as_many_requests_as_it_may_and_is_replaced_without_an_error() {
    for upstream in [Upstream::start("v1"), Upstream::h2c("v1")] {
        let serin = serin(&upstream, "limits: {requestsPerConnection: 5}");
        let one_by_one = Plan::new(serin.web, 1).total(50).start().finish();
        one_by_one.assert_clean();
        assert!(upstream.connections() >= 10, "{}", upstream.connections());
        let together = Plan::new(serin.web, 8).total(400).start().finish();
        together.assert_clean();
        assert!(upstream.connections() >= 90, "{}", upstream.connections());
        // Each of them carries its share.
        assert!(upstream.connections() < 225, "{}", upstream.connections());
    }
}

/// Answers come in batches, and clients ask again a moment later: whoever closes connections in between opens them again.
#[test]
fn as_many_connections_are_kept_as_were_in_use_at_once() {
    const GROUPS: u64 = 12;
    // No more than the queue of a listening socket holds.
    const GROUP: u64 = 100;
    let upstream = Upstream::start("v1");
    let serin = serin(&upstream, "limits: {requests: 10000, connections: 10000}");
    let all = GROUPS * GROUP;
    let began = now();
    for turn in 1..=2 {
        let group = |number: u64| {
            let clients = Plan::new(serin.web, 100)
                .total(GROUP)
                .requests(move |_| get(&format!("/gate/{turn}")))
                .start();
            let expected = (turn - 1) * all + (number + 1) * GROUP;
            wait_for("everybody to wait", LONG, || {
                (upstream.requests() >= expected).then_some(())
            });
            clients
        };
        let clients: Vec<Clients> = (0..GROUPS).map(group).collect();
        upstream.open_gate_for_the_next();
        for group in clients {
            group.finish().assert_clean();
        }
    }
    let opened = upstream.connections();
    // A few may be asked for while their last answer is not quite over.
    let most = all * 21 / 20;
    // They are kept for four seconds.
    let is_slow = began.elapsed() > Duration::from_secs(4);
    assert!(
        is_slow || opened <= most,
        "{opened} connections for {all} clients"
    );
}
