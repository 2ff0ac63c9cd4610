//! What watchers are told: events that survive a restart, and questions that are held until they are answered.

use crate::support::{Serin, upstream::Upstream};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// A follower of `/v1/events`.
struct Follower(BufReader<TcpStream>);

impl Follower {
    fn start(admin: SocketAddr, last: Option<u64>) -> Follower {
        let mut stream = TcpStream::connect(admin).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let last = last.map_or(String::new(), |id| format!("last-event-id: {id}\r\n"));
        write!(
            stream,
            "GET /v1/events HTTP/1.1\r\nhost: {admin}\r\naccept: text/event-stream\r\n{last}\r\n"
        )
        .unwrap();
        let mut follower = Follower(BufReader::new(stream));
        let head = follower.line();
        assert!(head.contains("200"), "{head}");
        // The greeting says that it follows from here on.
        while !follower.line().starts_with("retry:") {}
        follower
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "the stream ended");
        line.trim_end().to_owned()
    }

    /// The next event: its number and what it says.
    fn next(&mut self) -> (u64, Value) {
        let (mut id, mut data) = (None, None);
        loop {
            let line = self.line();
            if let Some(text) = line.strip_prefix("id:") {
                id = Some(text.trim().parse().unwrap());
            } else if let Some(text) = line.strip_prefix("data:") {
                data = Some(serde_json::from_str(text.trim()).unwrap());
            }
            if let (Some(id), Some(data)) = (id, &data) {
                return (id, Clone::clone(data));
            }
        }
    }

    fn until(&mut self, holds: impl Fn(&Value) -> bool) -> Vec<(u64, Value)> {
        let mut seen = Vec::new();
        loop {
            seen.push(self.next());
            if holds(&seen.last().unwrap().1) {
                return seen;
            }
        }
    }
}

const STEPS: &str = "{setWeight: 5}, {pause: {}}, {setWeight: 50}, {pause: {}}";

#[test]
fn events_go_on_after_a_restart_where_a_follower_was_cut_off() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start(&crate::exits::shop(&v1, STEPS));
    let mut follower = Follower::start(serin.admin, None);
    let (code, out, err) = serin.run(&format!("deploy shop --version v2 --endpoint {}", v2.url()));
    assert_eq!(code, 0, "{out}{err}");
    let seen = follower.until(|event| event["phase"] == "Paused");
    assert_eq!(seen[0].1["event"], "deploy", "{seen:#?}");
    assert_eq!(seen.last().unwrap().1["weight"].as_f64(), Some(5.0));
    let cut_off = seen[0].0;

    // What happened while it was away comes first, each event once and in order.
    let serin = serin.crash_and_restart();
    let (code, out, err) = serin.run("promote shop");
    assert_eq!(code, 0, "{out}{err}");
    let mut follower = Follower::start(serin.admin, Some(cut_off));
    let missed = follower.until(|event| event["weight"].as_f64() == Some(50.0));
    let numbers: Vec<u64> = missed.iter().map(|(id, _)| *id).collect();
    let (_, _, history) = serin.api("GET", "/v1/services/shop/history?limit=500", "secret-token", "");
    let mut stored: Vec<u64> = history["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|event| event["id"].as_u64())
        .collect();
    stored.retain(|id| *id > cut_off && *id <= *numbers.last().unwrap());
    stored.sort_unstable();
    assert_eq!(numbers, stored, "{missed:#?}");
    assert!(
        missed.iter().any(|(_, event)| event["event"] == "restarted"),
        "{missed:#?}"
    );
    // And it goes on live.
    let (code, out, err) = serin.run("abort shop");
    assert_eq!(code, 0, "{out}{err}");
    follower.until(|event| event["phase"] == "Degraded");
}

#[test]
fn a_question_with_a_goal_is_held_until_it_is_reached() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start(&crate::exits::shop(&v1, STEPS));
    let question = "/v1/services/shop?until=weight=50&version=v2&throughPauses=true&timeout=30s";
    let (code, out, err) = serin.run(&format!(
        "deploy shop --version v2 --endpoint {} --until paused --timeout 20s",
        v2.url()
    ));
    assert_eq!(code, 0, "{out}{err}");
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| serin.api("GET", question, "secret-token", ""));
        let (code, out, err) = serin.run("promote shop");
        assert_eq!(code, 0, "{out}{err}");
        let (status, head, body) = asked.join().unwrap();
        assert_eq!(
            (status, body["setWeight"].as_f64()),
            (200, Some(50.0)),
            "{body:#}"
        );
        assert!(
            head.to_ascii_lowercase().contains("serin-goal: reached"),
            "{head}"
        );
    });
    let (_, head, _) = serin.api(
        "GET",
        "/v1/services/shop?until=healthy&timeout=0s",
        "secret-token",
        "",
    );
    assert!(
        head.to_ascii_lowercase().contains("serin-goal: needshuman"),
        "{head}"
    );
    let (_, head, _) = serin.api(
        "GET",
        "/v1/services/shop?until=healthy&throughPauses=true&timeout=100ms",
        "secret-token",
        "",
    );
    assert!(
        head.to_ascii_lowercase().contains("serin-goal: waiting"),
        "{head}"
    );
}
