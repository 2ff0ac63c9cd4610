//! What makes a canary worse than stable, besides a status: a header, a gRPC code, an answer that does not come.

use super::judge::{ends, shop};
use crate::support::{
    HEAD, Serin, exchange, get, load::Load, now, python::Servers, upstream::Upstream, wait_for,
};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

const AT_20: &str = "auto: {weights: [20, 50]}";

fn deploy(endpoint: &str, until: &str) -> String {
    format!("deploy shop --version v2 --endpoint {endpoint} --until {until} --timeout 60s")
}

/// Requests, and those of them that were bad, of canary and stable, as the first test of the judge has counted them.
fn counted(status: &Value) -> [u64; 4] {
    let test = &status["analyses"][0]["metrics"][0]["judge"]["tests"][0];
    ["canary", "canaryBad", "stable", "stableBad"].map(|key| test[key].as_u64().unwrap_or(0))
}

#[track_caller]
fn is_rolled_back(serin: &Serin, said: &str, what: &str) {
    assert!(
        said.contains(&format!("ROLL BACK at weight 20%: canary {what}")),
        "{said}"
    );
    let status = serin.status("shop");
    assert_eq!(
        (&status["phase"], &status["aborted"]["cause"]),
        (&"Degraded".into(), &"analysisFailed".into()),
        "{status:#}"
    );
}

const MARKED: &str = "    failure: {responseHeader: {name: x-app-error}}\n";

#[test]
fn a_canary_whose_200_carries_the_header_of_a_failure_is_pulled_back_and_clients_see_the_header() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    v2.mark(200);
    let serin = Serin::start_with(&shop(&v1, AT_20, MARKED));
    let load = Load::start(serin.web, 500);
    let said = ends(&serin, 3, &deploy(&v2.url(), "healthy"));
    is_rolled_back(&serin, &said, "failed ");
    assert_eq!(load.stop().errors(), 0, "every answer was 200");
    // Like any other header it goes on to the client.
    v1.mark(1000);
    let (status, head, _) = exchange(
        serin.web,
        "GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n",
    );
    assert!(
        status == 200 && head.contains("x-app-error: stock is gone"),
        "{head}"
    );
}

#[test]
fn the_header_counts_where_a_filter_keeps_it_from_clients_and_an_equal_share_of_stable_is_no_evidence() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    v1.mark(200);
    v2.mark(200);
    let hidden = format!("{MARKED}    filters: [{{responseHeaderModifier: {{remove: [x-app-error]}}}}]\n");
    let serin = Serin::start_with(&shop(&v1, AT_20, &hidden));
    let load = Load::start(serin.web, 500);
    ends(&serin, 0, &deploy(&v2.url(), "weight=20"));
    let status = serin.wait_status("shop", "failures of both", |status| {
        let [_, canary_bad, _, stable_bad] = counted(status);
        canary_bad >= 40 && stable_bad >= 160
    });
    assert_eq!(
        (&status["phase"], &status["setWeight"]),
        (&"Progressing".into(), &20.into()),
        "{status:#}"
    );
    let [canary, canary_bad, stable, stable_bad] = counted(&status);
    assert!(
        canary_bad * 4 < canary && stable_bad * 4 < stable,
        "a fifth of each: {status:#}"
    );
    // Now the canary's share grows, and it is another matter; no client ever sees the header.
    v2.mark(600);
    ends(&serin, 3, "wait shop --until healthy --version v2 --timeout 60s");
    is_rolled_back(
        &serin,
        &serin.status("shop")["aborted"]["message"].to_string(),
        "failed ",
    );
    v1.mark(1000);
    let (_, head, _) = exchange(
        serin.web,
        "GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n",
    );
    assert!(!head.contains("x-app-error"), "{head}");
    assert_eq!(load.stop().errors(), 0);
}

/// A service `shop` whose stable version speaks gRPC at this port.
pub(crate) fn grpc_shop(stable: u16, canary: &str) -> String {
    format!(
        "{HEAD}services:
  - name: shop
    stable: {{version: v1, endpoints: [\"h2c://127.0.0.1:{stable}\"]}}
    deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}}
    strategy: {{canary: {{{canary}}}}}
"
    )
}

#[test]
fn a_grpc_canary_that_fails_by_the_status_in_its_trailers_is_pulled_back() {
    let (_v1, stable, _) = Servers::start("serve");
    let (_v2, canary, _) = Servers::start("lame 200 UNAVAILABLE");
    let serin = Serin::start_with(&grpc_shop(stable, AT_20));
    let (calls, _, _) = Servers::start(&format!("call {}", serin.web.port()));
    let said = ends(
        &serin,
        3,
        &deploy(&format!("h2c://127.0.0.1:{canary}"), "healthy"),
    );
    is_rolled_back(&serin, &said, "failed ");
    let codes = calls.finish();
    assert!(codes.contains("OK ") && codes.contains("UNAVAILABLE "), "{codes}");
    assert_eq!(codes.lines().count(), 2, "{codes}");
    // HTTP says 200 each time.
    let all = serin.count("serin_http_requests_total", &[("serin_service", "shop")]);
    let fine = serin.count(
        "serin_http_requests_total",
        &[("serin_service", "shop"), ("status", "200")],
    );
    assert!(all == fine && all > 0, "{fine} of {all}");
}

#[test]
fn a_canary_that_hangs_is_pulled_back_by_requests_that_are_still_in_flight() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    v2.hang();
    // The judge with its defaults.
    let serin = Serin::start_with(&shop(&v1, AT_20, ""));
    // What is usual is known from stable.
    for _ in 0..200 {
        assert_eq!(get(serin.web, "/").0, 200);
    }
    ends(&serin, 0, &deploy(&v2.url(), "weight=20"));
    // Clients that wait, and others that come meanwhile.
    let mut waiting = Vec::new();
    let end = now() + Duration::from_secs(30);
    while serin.status("shop")["phase"] == "Progressing" && now() < end {
        for _ in 0..20 {
            let mut client = TcpStream::connect(serin.web).unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n").unwrap();
            client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            if client.read(&mut [0; 1]).is_err() {
                waiting.push(client);
            }
        }
    }
    let status = serin.status("shop");
    is_rolled_back(
        &serin,
        &status["aborted"]["message"].to_string(),
        "slower than stable's p",
    );
    wait_for("the requests that hang", Duration::from_secs(20), || {
        (v2.requests() > 0 && v2.in_flight() == v2.requests()).then_some(())
    });
    assert_eq!(
        serin.count(
            "serin_version_outcomes_total",
            &[("serin_service", "shop"), ("role", "canary")]
        ),
        0,
        "none of them has ended in any way"
    );
}
