//! What a version may use up, exactly, over all workers.

use crate::support::{
    Serin,
    client::{Clients, Plan, ask, get},
    raw::RawClient,
    upstream::Upstream,
    wait_for,
};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

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
    let upstream = Upstream::start("v1");
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
