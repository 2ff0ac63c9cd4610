//! Little memory: how many clients there may be then, and that nobody who stalls gets the process killed.

use crate::support::{HEAD, Serin, get, group::Group, raw::RawClient, say, upstream::Upstream, wait_for};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

#[test]
fn where_memory_is_limited_stalled_clients_are_no_more_than_it_is_enough_for_and_nobody_is_killed() {
    let Some(group) = Group::limited_to(128 * MIB) else {
        return;
    };
    let v1 = Upstream::start("v1");
    let services = format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}, timeouts: {{connect: 60s}}}}]",
        v1.url()
    );
    let starter = group.starter();
    let starter: Vec<&str> = starter.iter().map(String::as_str).collect();
    let serin = Serin::start_by(&starter, &format!("{HEAD}{services}"));
    let most = 256;
    assert!(
        serin.log().contains(&format!(
            "up to {most} client connections: the control group allows 128 MiB of memory"
        )),
        "{}",
        serin.log()
    );
    // Each asks for more than everybody together may hold, and reads nothing.
    let mut stalled: Vec<RawClient> = (0..most)
        .map(|_| {
            let mut client = RawClient::connect(serin.web);
            client.send(format!(
                "GET /stream/{} HTTP/1.1\r\nhost: shop\r\n\r\n",
                256 * MIB
            ));
            client
        })
        .collect();
    let in_flight = || serin.count("serin_http_requests_in_flight", &[]);
    wait_for("all of them to be served", SOON, || {
        (in_flight() == most).then_some(())
    });
    serin.standstill();
    wait_for("newcomers to be told", SOON, || {
        let mut newcomer = RawClient::connect(serin.web);
        newcomer.send("GET / HTTP/1.1\r\nhost: shop\r\n\r\n");
        let answer = newcomer.answer("GET").filter(|answer| answer.status != 0);
        assert!(
            answer.as_ref().is_none_or(|answer| answer.status == 503),
            "{answer:?}"
        );
        (serin.metric("serin_http_rejected_total", &[("reason", "connections")]) > 9.5).then_some(())
    });
    assert_eq!(get(serin.admin, "/livez").0, 200);
    let (peak, killed) = group.most_and_killed();
    say(&format!(
        "{most} stalled clients in a group of 128 MiB: {} MiB at the most",
        peak / MIB
    ));
    assert_eq!(killed, 0);
    stalled.clear();
    wait_for("room for the next ones", SOON, || {
        (get(serin.web, "/").0 == 200).then_some(())
    });
    serin.stop();
    assert_eq!(group.most_and_killed().1, 0);
}
