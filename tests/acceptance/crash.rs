//! `kill -9` at any moment of a rollout, and a start on what is left.

use crate::support::{Serin, exchange, get, upstream::Upstream, wait_for};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use std::{path::Path, time::Duration};

/// Short steps, so that kills fall between, into and beside writes; the last one waits for somebody.
fn steps() -> String {
    let step = |weight: u32| format!("{{setWeight: {weight}}}, {{pause: {{duration: 30ms}}}}, ");
    (1..=20).map(|n| step(2 * n)).collect::<String>() + "{pause: {}}"
}

/// One stored event.
#[derive(Debug, Clone)]
struct Stored {
    id: i64,
    rollout: Option<String>,
    event: String,
    step: Option<i64>,
    weight: f64,
}

/// What is in the state file of a process that is not there any more, or beside one that is.
fn stored(folder: &Path) -> Vec<Stored> {
    let file = folder.join("serin.db");
    let store = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    store.busy_timeout(Duration::from_secs(10)).unwrap();
    let mut rows = store
        .prepare("SELECT id, rollout, fact, step, weight FROM events WHERE service = 'shop' ORDER BY id")
        .unwrap();
    let read = rows.query_map([], |row| {
        let json = |index| {
            row.get::<_, String>(index)
                .map(|text| serde_json::from_str::<Value>(&text).unwrap())
        };
        let fact = json(2)?;
        let by = fact["by"]["event"].as_str().or(fact["fact"].as_str());
        Ok(Stored {
            id: row.get(0)?,
            rollout: row.get(1)?,
            event: by.unwrap_or_default().to_owned(),
            step: row.get(3)?,
            weight: json(4)?.as_f64().unwrap(),
        })
    });
    read.unwrap().map(Result::unwrap).collect()
}

/// Numbers that look random and are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u32 {
        // Knuth's MMIX generator; its high bits are good enough for choosing moments.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % limit).unwrap()
    }
}

#[test]
fn a_rollout_that_is_killed_at_any_moment_continues_where_it_was_stored() {
    let seed = std::env::var("SERIN_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut dice = Dice(seed);
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let mut serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}, deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}},
          strategy: {{canary: {{steps: [{}]}}}}}}]",
        v1.url(),
        steps()
    ));
    let (code, out, err) = serin.run(&format!("deploy shop --version v2 --endpoint {}", v2.url()));
    assert_eq!(code, 0, "seed {seed}: {out}{err}");
    let rollout = serin.status("shop")["rollout"]["id"].clone();

    let mut lives = 0;
    loop {
        lives += 1;
        assert!(lives < 120, "seed {seed}: the rollout does not come forward");
        // Some lives are a few requests long, some see several steps.
        let requests = 1 + dice.below(160);
        let canary: u32 = (0..requests)
            .map(|_| u32::from(get(serin.web, "/").1 == "v2"))
            .sum();
        let mut left = Vec::new();
        serin = serin.crash_then(|folder| left = stored(folder));
        let (most, generations) = exposure_of_life(&left);
        // The split is exact to one request in each generation of a weight.
        let bound = most / 100.0 * f64::from(requests) + f64::from(generations);
        assert!(
            f64::from(canary) <= bound,
            "seed {seed}, life {lives}: {canary} of {requests} at {most} %"
        );
        let status = serin.status("shop");
        assert_eq!(status["rollout"]["id"], rollout, "seed {seed}, life {lives}");
        assert_eq!(
            (&status["stable"], &status["canary"]),
            (&"v1".into(), &"v2".into())
        );
        if status["step"]["index"] == 40 {
            break;
        }
    }

    let all = stored(serin.folder.path());
    let starts = all
        .iter()
        .position(|row| row.rollout.as_deref() == rollout.as_str())
        .unwrap();
    for pair in all[starts..].windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        let at = format!("seed {seed}: {before:?} then {after:?}");
        assert_eq!(after.rollout.as_deref(), rollout.as_str(), "{at}");
        assert!(
            after.id > before.id && after.step >= before.step && after.weight >= before.weight,
            "{at}"
        );
        if after.event == "restarted" {
            assert_eq!((after.step, after.weight), (before.step, before.weight), "{at}");
        }
    }
    let restarts = all.iter().filter(|row| row.event == "restarted").count();
    assert_eq!(restarts, lives, "seed {seed}");

    // At rest, and once more killed, the share is exact again.
    serin = serin.crash_and_restart();
    let canary = (0..100).filter(|_| get(serin.web, "/").1 == "v2").count();
    assert!(
        (39..=41).contains(&canary),
        "seed {seed}: {canary} of 100 at 40 %"
    );
    let (code, out, err) = serin.run("promote shop --until healthy --timeout 20s");
    assert_eq!(code, 0, "seed {seed}: {out}{err}");
    assert_eq!(serin.status("shop")["rollout"]["id"], rollout);
}

/// The highest weight that was stored in the life that has just ended, and how many weights there were.
fn exposure_of_life(all: &[Stored]) -> (f64, u32) {
    let start = all.iter().rposition(|row| row.event == "restarted").unwrap_or(0);
    let rows = &all[start..];
    let most = rows.iter().map(|row| row.weight).fold(0.0, f64::max);
    (most, u32::try_from(rows.len()).unwrap())
}

#[test]
fn what_was_answered_is_stored_when_it_is_killed_right_after() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let mut serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}, deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}},
          strategy: {{canary: {{steps: [{{setWeight: 10}}, {{pause: {{}}}}, {{setWeight: 50}}, {{pause: {{}}}}]}}}}}}]",
        v1.url(),
    ));
    let deploy = format!(
        "deploy shop --version v2 --endpoint {} --until paused --timeout 20s",
        v2.url()
    );
    for (verb, phase, weight) in [
        (deploy.as_str(), "Paused", 10.0),
        ("promote shop --until weight=50 --timeout 20s", "Paused", 50.0),
        ("set-weight shop 33", "Paused", 33.0),
        ("abort shop --reason enough", "Degraded", 0.0),
        ("retry shop --until paused --timeout 20s", "Paused", 10.0),
        ("undo shop", "Healthy", 0.0),
    ] {
        let (code, out, err) = serin.run(verb);
        assert_eq!(code, 0, "{verb}: {out}{err}");
        serin = serin.crash_and_restart();
        let status = wait_for("it to stand where it stood", Duration::from_secs(10), || {
            let status = serin.status("shop");
            (status["phase"] == phase).then_some(status)
        });
        assert_eq!(status["setWeight"].as_f64(), Some(weight), "{verb}: {status:#}");
        assert_eq!(status["stable"], "v1");
    }
}

#[test]
fn users_stay_where_they_were_over_a_crash() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}, deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}},
          sticky: {{header: x-user-id, missing: weight}}, strategy: {{canary: {{steps: [{{setWeight: 30}}, {{pause: {{}}}}]}}}}}}]",
        v1.url(),
    ));
    let (code, out, err) = serin.run(&format!(
        "deploy shop --version v2 --endpoint {} --until paused --timeout 20s",
        v2.url()
    ));
    assert_eq!(code, 0, "{out}{err}");
    let users = |serin: &Serin| -> Vec<String> {
        let ask = |user: u32| {
            let host = serin.web;
            let request =
                format!("GET / HTTP/1.1\r\nhost: {host}\r\nx-user-id: {user}\r\nconnection: close\r\n\r\n");
            exchange(host, &request).2
        };
        (0..100).map(ask).collect()
    };
    let before = users(&serin);
    assert!(before.iter().any(|by| by == "v2") && before.iter().any(|by| by == "v1"));
    let serin = serin.crash_and_restart();
    assert_eq!(users(&serin), before);
}
