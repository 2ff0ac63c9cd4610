//! What is counted is what clients saw, to the last request.

use crate::support::{
    HEAD, Serin,
    answers::full,
    client::{Plan, Tally, ask, get as get_request, request},
    get,
    prometheus::promtool_complains,
    upstream::Upstream,
    wait_for,
};
use std::{collections::BTreeMap, io::Write, net::TcpStream, time::Duration};

const SOON: Duration = Duration::from_secs(20);

fn start(stable: &Upstream, canary: &Upstream, more: &str) -> Serin {
    let serin = Serin::start_with(&format!(
        "{HEAD}
services:
  - name: shop
    match: [{{path: {{prefix: /}}, headers: {{x-lost: {{exact: here}}}}}}]
    stable: {{version: v1, endpoints: [\"{}\"]}}
    canary: {{version: v2, endpoints: [\"{}\"]}}
    strategy: {{canary: {{steps: [{{setWeight: 40}}, {{pause: {{}}}}]}}}}
    {more}
",
        stable.url(),
        canary.url()
    ));
    serin.wait_status("shop", "the first step", |status| status["phase"] == "Paused");
    serin
}

/// One line of the exposition.
struct Line {
    labels: BTreeMap<String, String>,
    value: u64,
}

/// All lines of a family.
fn family(serin: &Serin, path: &str, name: &str) -> Vec<Line> {
    let (_, text) = get(serin.admin, path);
    let of = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix('{')?;
        let (labels, value) = rest.rsplit_once("} ")?;
        let labels = labels.split("\",").map(|pair| {
            let (label, value) = pair.split_once("=\"").unwrap();
            (label.to_owned(), value.trim_end_matches('"').to_owned())
        });
        Some(Line {
            labels: labels.collect(),
            value: value.parse().unwrap_or_default(),
        })
    });
    of.collect()
}

fn sum(lines: &[Line], labels: &[(&str, &str)]) -> u64 {
    let matching = lines
        .iter()
        .filter(|line| labels.iter().all(|(label, value)| line.labels[*label] == **value));
    matching.map(|line| line.value).sum()
}

#[test]
fn every_class_of_every_role_is_there_at_zero_before_the_first_request_and_promtool_is_content() {
    let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = start(&stable, &canary, "");
    let classes = family(&serin, "/metrics", "serin_http_requests_by_class_total");
    let outcomes = family(&serin, "/metrics", "serin_version_outcomes_total");
    for (role, version) in [("stable", "v1"), ("canary", "v2")] {
        for class in ["1xx", "2xx", "3xx", "4xx", "5xx"] {
            let one = classes.iter().filter(|line| {
                line.labels["role"] == role
                    && line.labels["version"] == version
                    && line.labels["class"] == class
                    && line.value == 0
            });
            assert_eq!(one.count(), 1, "{role} {version} {class}");
        }
        let of_role = outcomes.iter().filter(|line| line.labels["role"] == role);
        assert_eq!(of_role.count(), 3);
    }
    ask(serin.web, false, lost(get_request("/"), false)).unwrap();
    for path in ["/metrics", "/metrics/compat"] {
        let (status, text) = get(serin.admin, path);
        assert_eq!(status, 200);
        assert_eq!(promtool_complains(&text), None, "{path}");
    }
}

/// Requests find no route unless they say that they are not lost.
fn lost(
    mut request: hyper::Request<crate::support::answers::Payload>,
    lost: bool,
) -> hyper::Request<crate::support::answers::Payload> {
    if !lost {
        request.headers_mut().insert("x-lost", "here".parse().unwrap());
    }
    request
}

/// Methods, statuses, own answers: the n-th request of a load that repeats after 20.
fn mixed(n: u64) -> hyper::Request<crate::support::answers::Payload> {
    let (method, path) = match n % 20 {
        0..=5 => ("GET", "/orders"),
        6 | 7 => ("GET", "/status/404"),
        8 => ("GET", "/status/500"),
        9 => ("GET", "/status/503"),
        10 => ("POST", "/orders"),
        11 => ("PUT", "/status/201"),
        12 => ("DELETE", "/status/204"),
        13 => ("HEAD", "/orders"),
        14 => ("OPTIONS", "/orders"),
        15 => ("PATCH", "/orders"),
        16 => ("BREW", "/orders"),
        17 => ("GET", "/status/304"),
        18 => ("GET", "/bytes/100000"),
        _ => ("GET", "/nowhere"),
    };
    let mut request = request(method, path);
    if method == "POST" {
        *request.body_mut() = full("an order");
    }
    lost(request, n % 20 == 19)
}

/// The families that speak of requests agree with each other and with what clients saw.
fn assert_agree(serin: &Serin, seen: &Tally) {
    let requests = family(serin, "/metrics", "serin_http_requests_total");
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];
    let mut expected: BTreeMap<(String, String, String), u64> = BTreeMap::new();
    for ((method, status, version), count) in &seen.answers {
        let method = if known.contains(&method.as_str()) {
            method
        } else {
            "_OTHER"
        };
        if !version.is_empty() {
            let key = (version.clone(), method.to_owned(), status.to_string());
            *expected.entry(key).or_default() += count;
        }
    }
    let counted: BTreeMap<_, _> = requests
        .iter()
        .map(|line| {
            let label = |name: &str| line.labels[name].clone();
            ((label("version"), label("method"), label("status")), line.value)
        })
        .collect();
    assert_eq!(counted, expected);
    let classes = family(serin, "/metrics", "serin_http_requests_by_class_total");
    for class in 2..=5u16 {
        let clients = seen.of(|_, status, version| status / 100 == class && !version.is_empty());
        assert_eq!(sum(&classes, &[("class", &format!("{class}xx"))]), clients);
    }
    let compat = family(serin, "/metrics/compat", "http_requests_total");
    for version in ["v1", "v2"] {
        for status in [200, 404, 500, 503] {
            let labels = [
                ("version", version),
                ("status", &*status.to_string()),
                ("job", "shop"),
            ];
            let clients = seen.of(|_, seen, by| seen == status && by == version);
            assert_eq!(sum(&compat, &labels), clients, "{labels:?}");
        }
    }
}

#[test]
fn after_a_mixed_load_over_both_protocols_every_family_agrees_with_what_clients_saw() {
    let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = start(&stable, &canary, "");
    let mut seen = Tally::default();
    let loads = [
        Plan::new(serin.web, 8).total(1_000).requests(mixed).start(),
        Plan::new(serin.web, 2)
            .total(1_000)
            .requests(mixed)
            .http2(6)
            .start(),
    ];
    for load in loads {
        let one = load.finish();
        assert!(one.broken.is_empty(), "{:?}", one.broken.first());
        assert_eq!(one.total(), 1_000);
        for (key, count) in one.answers {
            *seen.answers.entry(key).or_default() += count;
        }
    }
    // The last responses are recorded when their bodies end, a moment after the client has them.
    let in_flight = || serin.metric("serin_http_requests_in_flight", &[]);
    wait_for("nothing in flight", SOON, || (in_flight() < 0.5).then_some(()));
    assert_agree(&serin, &seen);

    let all = |name: &str| family(&serin, "/metrics", name);
    let served = seen.of(|_, _, version| !version.is_empty());
    assert_eq!(served, 1_900);
    assert_eq!(
        sum(&all("serin_split_assignments_total"), &[("reason", "weight")]),
        served
    );
    assert_eq!(
        sum(&all("serin_http_request_duration_seconds_count"), &[]),
        served
    );
    assert_eq!(
        sum(&all("serin_http_response_first_byte_seconds_count"), &[]),
        served
    );
    let outcomes = all("serin_version_outcomes_total");
    for (role, version) in [("stable", "v1"), ("canary", "v2")] {
        let failed = seen.of(|_, status, by| status >= 500 && by == version);
        let fine = seen.of(|_, status, by| status < 500 && by == version);
        assert_eq!(sum(&outcomes, &[("role", role), ("outcome", "failed")]), failed);
        assert_eq!(sum(&outcomes, &[("role", role), ("outcome", "ok")]), fine);
    }
    let rejected = all("serin_http_rejected_total");
    assert_eq!(sum(&rejected, &[("reason", "no_route")]), 100);
    assert_eq!(sum(&rejected, &[]), 100);
    // The split saw every request that was routed, and no other.
    let on_canary = i64::try_from(seen.version("v2")).unwrap();
    assert!((on_canary * 5 - 1_900 * 2).abs() < 5, "{on_canary}");
}

#[test]
fn a_client_that_goes_away_is_a_499_and_no_verdict_on_the_version() {
    let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = start(&stable, &canary, "");
    for path in ["/hang", "/drip/1000/50"] {
        let mut clients = Vec::new();
        for _ in 0..10 {
            let mut client = TcpStream::connect(serin.web).unwrap();
            let text = format!("GET {path} HTTP/1.1\r\nhost: shop.test\r\nx-lost: here\r\n\r\n");
            client.write_all(text.as_bytes()).unwrap();
            clients.push(client);
        }
        let in_flight = || stable.in_flight() + canary.in_flight();
        if path == "/hang" {
            wait_for("all in flight", SOON, || (in_flight() == 10).then_some(()));
        } else {
            let begun = || serin.metric("serin_http_response_first_byte_seconds_count", &[]);
            wait_for("ten heads", SOON, || (begun() > 9.5).then_some(()));
        }
        drop(clients);
    }
    let gone = || serin.metric("serin_http_requests_total", &[("status", "499")]);
    wait_for("twenty times 499", SOON, || (gone() > 19.5).then_some(()));
    let outcomes = family(&serin, "/metrics", "serin_version_outcomes_total");
    assert_eq!(sum(&outcomes, &[("outcome", "canceled")]), 20);
    assert_eq!(sum(&outcomes, &[]), 20);
    assert!(serin.metric("serin_http_requests_in_flight", &[]) < 0.5);
    wait_for("the versions to be told", SOON, || {
        (stable.in_flight() + canary.in_flight() == 0).then_some(())
    });
}

#[test]
fn what_a_client_forces_is_no_verdict_on_a_version() {
    let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = start(&stable, &canary, "force: {header: x-canary}");
    for (force, path) in [
        ("always", "/status/500"),
        ("never", "/status/500"),
        ("always", "/"),
    ] {
        let mut forced = lost(get_request(path), false);
        forced.headers_mut().insert("x-canary", force.parse().unwrap());
        ask(serin.web, false, forced).unwrap();
    }
    let all = |name: &str| family(&serin, "/metrics", name);
    let seen = || sum(&all("serin_http_requests_total"), &[]);
    wait_for("three answers", SOON, || (seen() == 3).then_some(()));
    assert_eq!(
        sum(&all("serin_split_assignments_total"), &[("reason", "force")]),
        3
    );
    assert_eq!(sum(&all("serin_version_outcomes_total"), &[]), 0);
    ask(serin.web, false, lost(get_request("/status/500"), false)).unwrap();
    wait_for("the verdict on one that was assigned", SOON, || {
        (sum(&all("serin_version_outcomes_total"), &[("outcome", "failed")]) == 1).then_some(())
    });
}

#[test]
fn a_rescued_request_is_stables_answer_and_the_canarys_failure() {
    let (stable, canary) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = start(&stable, &canary, "hardFailure: {attempts: 100000, action: abort}");
    drop(canary);
    let plan = Plan::new(serin.web, 4)
        .total(200)
        .requests(|_| lost(request("POST", "/"), false));
    let seen = plan.start().finish();
    seen.assert_clean();
    assert_eq!(seen.version("v1"), 200);
    let all = |name: &str| family(&serin, "/metrics", name);
    let assigned = sum(&all("serin_split_assignments_total"), &[("role", "canary")]);
    assert_eq!(assigned, 80);
    assert_eq!(
        sum(&all("serin_rescued_requests_total"), &[("role", "canary")]),
        assigned
    );
    let outcomes = all("serin_version_outcomes_total");
    assert_eq!(
        sum(&outcomes, &[("role", "canary"), ("outcome", "failed")]),
        assigned
    );
    assert_eq!(sum(&outcomes, &[("role", "stable"), ("outcome", "ok")]), 120);
    let requests = all("serin_http_requests_total");
    assert_eq!(sum(&requests, &[("role", "stable"), ("status", "200")]), 200);
    assert_eq!(sum(&requests, &[("role", "canary")]), 0);
    let refused = sum(
        &all("serin_upstream_attempts_total"),
        &[("outcome", "connect_failed")],
    );
    assert_eq!(refused, assigned);
}
