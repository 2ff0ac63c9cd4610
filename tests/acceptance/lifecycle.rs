//! What becomes of versions: their endpoints, their afterlife, the way back, and what they fail of together.

use crate::{
    exits::shop,
    support::{Serin, get, upstream::Upstream, wait_for},
};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    time::Duration,
};

fn state<'a>(status: &'a Value, version: &str) -> &'a str {
    let known = status["versions"].as_array().unwrap();
    let one = known.iter().find(|one| one["version"] == version);
    one.and_then(|one| one["state"].as_str()).unwrap_or("unknown")
}

#[track_caller]
fn does(serin: &Serin, line: &str) {
    let (code, out, err) = serin.run(line);
    assert_eq!(code, 0, "serin {line}\n{out}{err}");
}

#[test]
fn endpoints_change_at_any_time_without_a_rollout() {
    let (a, b, c) = (Upstream::start("a"), Upstream::start("b"), Upstream::start("c"));
    let serin = Serin::start(&shop(&a, "{setWeight: 50}, {pause: {}}"));
    let rollout = serin.status("shop")["rollout"]["id"].clone();
    does(&serin, &format!("endpoints shop --version v1 add {}", b.url()));
    wait_for("both to serve", Duration::from_secs(20), || {
        get(serin.web, "/");
        (a.requests() > 0 && b.requests() > 0).then_some(())
    });
    does(&serin, &format!("endpoints shop --version v1 drain {}", a.url()));
    let before = a.requests();
    for _ in 0..20 {
        assert_eq!(get(serin.web, "/"), (200, "b".to_owned()));
    }
    assert_eq!(a.requests(), before);
    // In the middle of a rollout too, of the canary.
    does(
        &serin,
        &format!(
            "deploy shop --version v2 --endpoint {} --until paused --timeout 20s",
            a.url()
        ),
    );
    let trial = serin.status("shop")["rollout"]["id"].clone();
    assert_ne!(trial, rollout);
    does(&serin, &format!("endpoints shop --version v2 set {}", c.url()));
    let seen: Vec<String> = (0..20).map(|_| get(serin.web, "/").1).collect();
    assert!(
        seen.iter().any(|by| by == "c") && !seen.iter().any(|by| by == "a"),
        "{seen:?}"
    );
    let status = serin.status("shop");
    assert_eq!(
        (&status["rollout"]["id"], &status["phase"]),
        (&trial, &"Paused".into())
    );
    // The last endpoint of stable stays, and what was changed survives a restart.
    let (code, _, err) = serin.run(&format!("endpoints shop --version v1 drain {}", b.url()));
    assert!(
        code == 6 && err.contains("add the new endpoints first"),
        "{code} {err}"
    );
    let (code, _, err) = serin.run("endpoints shop --version v1 add http://192.0.2.1:80");
    assert!(code == 7 && err.contains("allowedEndpoints"), "{code} {err}");
    let serin = serin.crash_and_restart();
    let seen: Vec<String> = (0..20).map(|_| get(serin.web, "/").1).collect();
    assert!(seen.iter().all(|by| by == "b" || by == "c"), "{seen:?}");
    assert!(
        serin.status("shop")["drift"].to_string().contains("v1"),
        "{:#}",
        serin.status("shop")
    );
}

#[test]
fn a_version_that_was_stable_is_warm_and_the_way_back_is_instant_only_then() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start(&shop(&v1, "{setWeight: 5}, {pause: {duration: 50ms}}"));
    does(
        &serin,
        &format!(
            "deploy shop --version v2 --endpoint {} --until healthy --timeout 20s",
            v2.url()
        ),
    );
    let status = serin.status("shop");
    assert_eq!((state(&status, "v1"), state(&status, "v2")), ("warm", "serving"));
    assert_eq!(get(serin.web, "/").1, "v2");
    // It is warm still after a restart.
    let serin = serin.crash_and_restart();
    does(&serin, "undo shop --to v1");
    assert_eq!(get(serin.web, "/"), (200, "v1".to_owned()));
    let status = serin.status("shop");
    assert_eq!(
        (&status["stable"], &status["phase"]),
        (&"v1".into(), &"Healthy".into())
    );

    does(
        &serin,
        &format!(
            "deploy shop --version v2 --endpoint {} --until healthy --timeout 20s",
            v2.url()
        ),
    );
    // A pool that does not answer any more is not warm, whatever the clock says.
    drop(v1);
    let (code, out, err) = serin.run("undo shop --to v1");
    assert_eq!(code, 6, "{out}{err}");
    assert_eq!(get(serin.web, "/"), (200, "v2".to_owned()));
    let (code, out, err) = serin.run("undo shop --to v9");
    assert_eq!(code, 6, "{out}{err}");
}

/// A copy that answers when it is told to.
struct Held {
    address: SocketAddr,
    asked: mpsc::Receiver<mpsc::Sender<()>>,
}

impl Held {
    fn start() -> Held {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, asked) = mpsc::channel();
        // Ends with the process: a test has its own.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let sender = sender.clone();
                std::thread::spawn(move || answer(stream, &sender));
            }
        });
        Held { address, asked }
    }
}

fn answer(mut stream: TcpStream, asked: &mpsc::Sender<mpsc::Sender<()>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
        let end = line == "\r\n";
        line.clear();
        if end {
            let (go, told) = mpsc::channel();
            if asked.send(go).is_err() || told.recv().is_err() {
                return;
            }
            if stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nheld")
                .is_err()
            {
                return;
            }
        }
    }
}

#[test]
fn a_version_is_releasable_when_its_last_request_is_answered() {
    let (v1, held) = (Upstream::start("v1"), Held::start());
    let serin = Serin::start(&shop(&v1, "{setWeight: 100}, {pause: {}}"));
    does(
        &serin,
        &format!(
            "deploy shop --version v2 --endpoint http://{} --until paused --timeout 20s",
            held.address
        ),
    );
    std::thread::scope(|scope| {
        let request = scope.spawn(|| get(serin.web, "/slow"));
        let go = held.asked.recv_timeout(Duration::from_secs(20)).unwrap();
        does(&serin, "abort shop");
        assert_eq!(get(serin.web, "/"), (200, "v1".to_owned()));
        let status = serin.wait_status("shop", "v2 to drain", |status| state(status, "v2") == "draining");
        let versions = status["versions"].as_array().unwrap();
        let v2 = versions.iter().find(|one| one["version"] == "v2").unwrap();
        assert_eq!(v2["inFlight"], 1, "{status:#}");
        let (code, out, err) = serin.run("wait shop --until released=v2 --timeout 300ms");
        assert_eq!(code, 4, "{out}{err}");
        let waiting = serin.begin("wait shop --until released=v2 --timeout 30s");
        go.send(()).unwrap();
        assert_eq!(request.join().unwrap(), (200, "held".to_owned()));
        let (code, said) = waiting.end();
        assert_eq!(code, 0, "{said}");
    });
    assert_eq!(state(&serin.status("shop"), "v2"), "releasable");
}

#[test]
fn a_canary_that_dies_is_rolled_back_and_one_that_dies_with_stable_waits_for_somebody() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start(&shop(&v1, "{setWeight: 50}, {pause: {}}"));
    let deploy = format!(
        "deploy shop --version v2 --endpoint {} --until paused --timeout 20s",
        v2.url()
    );
    does(&serin, &deploy);
    let at = v2.address;
    drop(v2);
    // Nobody notices: what the canary cannot take is served by stable.
    wait_for("the abort", Duration::from_secs(20), || {
        assert_eq!(get(serin.web, "/"), (200, "v1".to_owned()));
        (serin.status("shop")["phase"] == "Degraded").then_some(())
    });
    let status = serin.status("shop");
    assert_eq!(
        (&status["aborted"]["cause"], status["setWeight"].as_f64()),
        (&"hardFailure".into(), Some(0.0)),
        "{status:#}"
    );
    assert!(serin.metric("serin_rescued_requests_total", &[]) >= 1.0);
    assert!(
        (serin.metric("serin_rollout_aborts_total", &[("cause", "hard_failure")]) - 1.0).abs() < 0.1
            || (serin.metric("serin_rollout_aborts_total", &[("cause", "hardFailure")]) - 1.0).abs() < 0.1
    );

    // Now both: the database is gone, say. It is not the canary's fault.
    let v2 = Upstream::start_at("v2", at);
    does(&serin, "retry shop --until paused --timeout 20s");
    let stable_at = v1.address;
    drop((v1, v2));
    let status = wait_for("the shared fate", Duration::from_secs(30), || {
        let _ = get(serin.web, "/");
        let status = serin.status("shop");
        (status["reason"] == "SharedFate").then_some(status)
    });
    assert_eq!(
        (&status["phase"], status["setWeight"].as_f64()),
        (&"Paused".into(), Some(0.0)),
        "{status:#}"
    );
    let (code, _, _) = serin.run("wait shop --until healthy --timeout 20s");
    assert_eq!(code, 5);
    // Both are back; somebody lets it go on where it was.
    let (v1, v2) = (Upstream::start_at("v1", stable_at), Upstream::start_at("v2", at));
    does(&serin, "resume shop --until weight=50 --timeout 20s");
    wait_for("both to serve", Duration::from_secs(20), || {
        get(serin.web, "/");
        (v1.requests() > 0 && v2.requests() > 0).then_some(())
    });
}
