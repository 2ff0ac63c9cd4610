//! The split as clients see it: exact at every prefix, sticky, forced, and in which order.

use crate::support::{
    Serin,
    client::{Plan, get as get_request},
    get,
    pair::Pair,
    upstream::Upstream,
    wait_for,
};
use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// The weights of the promise, as an operator writes them, with their exact fractions.
const WEIGHTS: [(&str, i64, i64); 7] = [
    ("0.01", 1, 10_000),
    ("1", 1, 100),
    ("5", 1, 20),
    ("15", 3, 20),
    ("33.33", 3_333, 10_000),
    ("40", 2, 5),
    ("99.9", 999, 1_000),
];

impl Pair {
    /// Sets the weight through the API; when it has answered, every worker splits by it.
    fn weigh(&self, weight: &str) {
        let body = format!("{{\"weight\": \"{weight}\"}}");
        let (status, _, answer) = self
            .serin
            .api("PUT", "/v1/services/shop/weight", "secret-token", &body);
        assert_eq!(status, 200, "{answer}");
    }

    fn abort(&self) {
        let path = "/v1/services/shop/abort";
        let (status, _, answer) = self.serin.api("POST", path, "secret-token", "{}");
        assert_eq!(status, 200, "{answer}");
    }

    fn assigned(&self, role: &str, reason: &str) -> u64 {
        let labels = [("role", role), ("reason", reason)];
        whole(self.serin.metric("serin_split_assignments_total", &labels))
    }

    /// Requests that say something about the canary under the weight in force.
    fn evidence(&self) -> serde_json::Value {
        let status = self.serin.status("shop");
        let versions = status["versions"].as_array().unwrap();
        let canary = versions.iter().find(|version| version["version"] == "v2");
        canary.unwrap()["evidence"].clone()
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counters are whole numbers"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

/// Sends requests that differ in a header, many at once on one connection; who answered each, in order, and the cookie set.
fn pipelined(to: SocketAddr, requests: impl IntoIterator<Item = String>) -> Vec<(String, String)> {
    let mut stream = BufReader::new(TcpStream::connect(to).unwrap());
    stream
        .get_ref()
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let requests: Vec<String> = requests.into_iter().collect();
    let mut answers = Vec::with_capacity(requests.len());
    for batch in requests.chunks(50) {
        let text: String = batch.concat();
        stream.get_mut().write_all(text.as_bytes()).unwrap();
        for _ in batch {
            answers.push(answer(&mut stream));
        }
    }
    answers
}

fn answer(stream: &mut impl BufRead) -> (String, String) {
    let (mut version, mut cookie, mut length) = (String::new(), String::new(), 0);
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 200 "), "{line}");
    loop {
        line.clear();
        stream.read_line(&mut line).unwrap();
        match line.trim_end().split_once(": ") {
            None => break,
            Some(("x-version", value)) => value.clone_into(&mut version),
            Some(("set-cookie", value)) => value.clone_into(&mut cookie),
            Some(("content-length", value)) => length = value.parse().unwrap(),
            Some(_) => {}
        }
    }
    stream.read_exact(&mut vec![0; length]).unwrap();
    (version, cookie)
}

fn with(target: &str, header: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: shop.test\r\n{header}\r\n")
}

#[test]
fn without_a_canary_everything_is_served_by_stable() {
    let v1 = Upstream::start("v1");
    let serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        v1.url()
    ));
    for _ in 0..20 {
        assert_eq!(get(serin.web, "/"), (200, "v1".to_owned()));
    }
    assert_eq!(v1.requests(), 20);
}

#[test]
fn one_client_sees_less_than_one_request_too_many_or_too_few_at_every_prefix() {
    let pair = Pair::start("");
    for (weight, p, q) in WEIGHTS {
        pair.weigh(weight);
        let total = if weight == "0.01" { 10_001 } else { 1_001 };
        let mut canary = 0;
        let answers = pipelined(pair.serin.web, (0..total).map(|_| with("/", "")));
        for (n, (version, _)) in (1..).zip(&answers) {
            canary += i64::from(version == "v2");
            assert!(
                (canary * q - n * p).abs() < q,
                "{weight} %: {canary} of {n} requests on the canary"
            );
        }
    }
    assert!(pair.canary.requests() > 0 && pair.stable.requests() > 0);
}

#[test]
fn sixty_four_clients_together_see_the_same_bound() {
    let pair = Pair::start("");
    for (weight, p, q) in WEIGHTS {
        pair.weigh(weight);
        let before = (
            pair.assigned("canary", "weight"),
            pair.assigned("stable", "weight"),
        );
        let total = if weight == "0.01" { 10_001 } else { 1_001 };
        let clients = Plan::new(pair.serin.web, 64).total(total).start();
        // While they run, the bound is what the metrics say of the tickets drawn so far.
        while clients.total() < total {
            let error = pair.serin.metric("serin_split_error_requests", &[]);
            assert!(error.abs() < 1.0, "{weight} %: {error} off");
        }
        let seen = clients.finish();
        seen.assert_clean();
        assert_eq!(seen.total(), total);
        let canary = seen.version("v2");
        let (of_canary, of_all) = (i64::try_from(canary).unwrap(), i64::try_from(total).unwrap());
        assert!(
            (of_canary * q - of_all * p).abs() < q,
            "{weight} %: {canary} of {total}"
        );
        let after = (
            pair.assigned("canary", "weight"),
            pair.assigned("stable", "weight"),
        );
        assert_eq!((after.0 - before.0, after.1 - before.1), (canary, total - canary));
    }
}

#[test]
fn a_weight_is_set_from_the_command_line_and_a_new_weight_begins_anew() {
    let pair = Pair::start("");
    for weight in ["40", "1/3"] {
        let (code, out, error) = pair.serin.run(&format!(
            "set-weight shop {weight} --server http://{} --token-file token",
            pair.serin.admin
        ));
        assert_eq!(code, 0, "{out}{error}");
        let canary = pipelined(pair.serin.web, (0..300).map(|_| with("/", "")));
        let canary = canary.iter().filter(|(version, _)| version == "v2").count();
        assert_eq!(canary, if weight == "40" { 120 } else { 100 });
    }
}

/// Who is on the canary, of 400 users, as the weight rises, falls and the rollout is aborted.
fn moves_only_one_way(pair: &Pair, request: impl Fn(usize) -> String) {
    let on_canary = || -> BTreeSet<usize> {
        let answers = pipelined(pair.serin.web, (0..400).map(&request));
        let of_canary = answers.iter().enumerate();
        of_canary
            .filter(|(_, (version, _))| version == "v2")
            .map(|(user, _)| user)
            .collect()
    };
    let (mut before, mut sizes) = (BTreeSet::new(), Vec::new());
    for weight in ["1", "5", "25", "50", "99.9"] {
        pair.weigh(weight);
        let users = on_canary();
        assert!(before.is_subset(&users), "somebody left the canary at {weight} %");
        assert_eq!(users, on_canary(), "asked again, somebody moved at {weight} %");
        sizes.push(users.len());
        before = users;
    }
    // Five sigma of a fair hash around 100, 200 and 399.6 of 400.
    assert!((57..=143).contains(&sizes[2]), "{sizes:?}");
    assert!((150..=250).contains(&sizes[3]) && sizes[4] > 390, "{sizes:?}");
    pair.weigh("25");
    let fewer = on_canary();
    assert!(fewer.is_subset(&before) && fewer.len() == sizes[2]);
    pair.abort();
    assert!(on_canary().is_empty(), "an abort moves everybody back");
}

#[test]
fn users_told_by_a_header_only_ever_move_to_the_canary_and_all_back_at_an_abort() {
    let pair = Pair::start("sticky: {header: x-user-id}");
    moves_only_one_way(&pair, |user| with("/", &format!("x-user-id: user-{user}\r\n")));
    assert!(pair.assigned("canary", "sticky") > 0 && pair.assigned("canary", "weight") == 0);
}

#[test]
fn users_told_by_a_query_only_ever_move_to_the_canary_and_all_back_at_an_abort() {
    let pair = Pair::start("sticky: {query: user}");
    moves_only_one_way(&pair, |user| with(&format!("/cart?a=1&user=user-{user}"), ""));
}

#[test]
fn users_told_by_a_cookie_get_one_and_stay_where_it_puts_them() {
    let pair = Pair::start("sticky: {cookie: {maxAge: 24h}}");
    pair.weigh("25");
    let first = pipelined(pair.serin.web, (0..400).map(|_| with("/", "")));
    let mut cookies = Vec::new();
    for (_, cookie) in &first {
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert_eq!(attributes, "Max-Age=86400; Path=/; HttpOnly; SameSite=Lax");
        let (_, id) = pair.split_once('=').unwrap();
        assert!(
            id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()),
            "{cookie}"
        );
        cookies.push(pair.to_owned());
    }
    assert_eq!(cookies.iter().collect::<BTreeSet<_>>().len(), 400);
    let again = pipelined(
        pair.serin.web,
        cookies
            .iter()
            .map(|cookie| with("/", &format!("cookie: a=b; {cookie}\r\n"))),
    );
    // Somebody else's cookie of the same name, for a path of its own, comes first.
    let beside = pipelined(
        pair.serin.web,
        cookies
            .iter()
            .map(|cookie| with("/", &format!("cookie: serin-id=theirs; {cookie}\r\n"))),
    );
    for ((was, _), (is, set)) in first.iter().zip(&again).chain(first.iter().zip(&beside)) {
        assert!(was == is && set.is_empty(), "{was} became {is}; {set}");
    }
    moves_only_one_way(&pair, |user| with("/", &format!("cookie: {}\r\n", cookies[user])));
}

#[test]
fn a_client_without_a_key_is_split_by_weight_or_kept_on_stable_as_told() {
    let pair = Pair::start("sticky: {header: x-user-id, missing: stable}");
    pair.weigh("50");
    let answers = pipelined(pair.serin.web, (0..50).map(|_| with("/", "")));
    assert!(answers.iter().all(|(version, _)| version == "v1"));
    assert_eq!(pair.evidence()["requests"], 0, "{}", pair.evidence());
}

/// Behind a proxy on this machine that says who asks.
const BEHIND: &str = "
listeners: [{name: web, address: \"127.0.0.1:0\", trustedProxies: [127.0.0.0/8]}]
admin: {address: \"127.0.0.1:0\", tokens: [{name: test, role: admin, secretFile: token}]}
";

#[test]
fn a_version_is_forced_only_from_where_that_is_allowed() {
    let pair = Pair::start_with(BEHIND, "force: {header: x-canary, from: [10.0.0.0/8]}");
    pair.weigh("1");
    let ask = |value: &str, from: &str| {
        let fields = format!("x-canary: {value}\r\nx-forwarded-for: {from}\r\n");
        pipelined(pair.serin.web, [with("/", &fields)])[0].0.clone()
    };
    for _ in 0..20 {
        assert_eq!(ask("always", "10.1.2.3"), "v2");
        assert_eq!(
            ask("always", "203.0.113.9, 10.1.2.3"),
            "v2",
            "the nearest that is no proxy"
        );
        assert_eq!(ask("never", "10.1.2.3"), "v1");
    }
    assert_eq!(pair.assigned("canary", "force"), 40);
    assert_eq!(pair.assigned("stable", "force"), 20);
    let forced_elsewhere: Vec<String> = (0..50)
        .map(|_| ask("always", "192.168.1.1"))
        .chain((0..50).map(|_| ask("always", "10.1.2.3, 203.0.113.9")))
        .collect();
    let canary = forced_elsewhere.iter().filter(|version| *version == "v2").count();
    assert_eq!(canary, 1, "others are split as everybody: 1 % of 100");
    // What was forced says nothing about the version.
    assert_eq!(pair.evidence()["requests"], 1, "{}", pair.evidence());
}

#[test]
fn a_trip_goes_before_force_and_force_before_stickiness_and_stickiness_before_weight() {
    let pair = Pair::start("sticky: {header: x-user-id}\n    force: {header: x-canary}");
    pair.weigh("50");
    let user_on = |role: &str| {
        (0..100)
            .map(|user| format!("x-user-id: {user}\r\n"))
            .find(|header| pipelined(pair.serin.web, [with("/", header)])[0].0 == role)
            .unwrap()
    };
    let (on_stable, on_canary) = (user_on("v1"), user_on("v2"));
    let who = |header: &str| pipelined(pair.serin.web, [with("/", header)])[0].0.clone();
    for _ in 0..10 {
        assert_eq!(who(&format!("x-canary: always\r\n{on_stable}")), "v2");
        assert_eq!(who(&format!("x-canary: never\r\n{on_canary}")), "v1");
        assert_eq!((who(&on_stable), who(&on_canary)), ("v1".into(), "v2".into()));
    }
    assert_eq!(
        pair.assigned("canary", "weight") + pair.assigned("stable", "weight"),
        0
    );

    let Pair { canary, serin, .. } = pair;
    let forced = "x-canary: always\r\n";
    drop(canary);
    // Forced requests find out that it is gone, and are served by stable even while they do.
    for _ in 0..10 {
        assert_eq!(pipelined(serin.web, [with("/", forced)])[0].0, "v1");
    }
    wait_for("the abort", Duration::from_secs(10), || {
        (serin.status("shop")["phase"] == "Degraded").then_some(())
    });
    let aborts = serin.metric("serin_rollout_aborts_total", &[("cause", "hard_failure")]);
    assert!(aborts > 0.5, "{}", serin.status("shop"));
    assert_eq!(pipelined(serin.web, [with("/", forced)])[0].0, "v1");
    let clients = Plan::new(serin.web, 2).total(20).requests(|_| get_request("/"));
    assert_eq!(clients.start().finish().version("v1"), 20);
}
