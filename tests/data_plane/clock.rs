//! The wall clock jumps by hours: only what people read knows of it.

use crate::support::{
    Serin,
    client::{Plan, ask, get as get_request},
    exchange, now,
    upstream::Upstream,
    wait_for,
};
use std::{path::Path, process::Command, time::Duration};

const SOON: Duration = Duration::from_secs(30);

/// The library that makes up the wall clock of a program.
fn library() -> String {
    let output = Command::new("faketime")
        .args(["-f", "+0", "sh", "-c", "echo $LD_PRELOAD"])
        .output()
        .expect("faketime is installed by tests/run");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The hour of the newest line of the access log, which is the wall clock's as Serin sees it, in hours since midnight.
fn hour(serin: &Serin) -> u32 {
    assert_eq!(
        exchange(
            serin.web,
            "GET /clock HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        )
        .0,
        200
    );
    let text = std::fs::read_to_string(serin.file("access.log")).unwrap_or_default();
    let line = text.lines().last().unwrap_or("{\"time\":\"....-..-..T00\"}");
    let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
    let time = line["time"].as_str().unwrap_or("....-..-..T00");
    time[11..13].parse().unwrap()
}

/// Sets the clock, and waits until Serin has seen it.
fn jump(serin: &Serin, clock: &Path, hours: i32) {
    let from = hour(serin);
    let file = clock.with_extension("new");
    std::fs::write(&file, format!("{:+}", hours * 3_600)).unwrap();
    std::fs::rename(&file, clock).unwrap();
    wait_for("the clock to have jumped", SOON, || {
        (hour(serin) != from).then_some(())
    });
}

#[test]
fn a_wall_clock_that_jumps_an_hour_either_way_costs_no_error_and_moves_no_timer_and_no_rollout() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    std::fs::write(&clock, "+0").unwrap();
    let (preload, file) = (
        format!("LD_PRELOAD={}", library()),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
    );
    let begun = now();
    let serin = Serin::start_by(
        &[
            "env",
            &preload,
            &file,
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
        ],
        &format!(
            "
listeners: [{{name: web, address: \"127.0.0.1:0\", timeouts: {{responseHeaders: 700ms}}}}]
admin: {{address: \"127.0.0.1:0\"}}
accessLog: {{path: access.log}}
services:
  - name: shop
    stable: {{version: v1, endpoints: [\"{}\"]}}
    canary: {{version: v2, endpoints: [\"{}\"]}}
    health: {{http: /alive, interval: 100ms, rise: 2, fall: 2}}
    strategy: {{canary: {{steps: [{{setWeight: 50}}, {{pause: {{duration: 3s}}}}, {{setWeight: 60}},
      {{pause: {{duration: 1s}}}}, {{setWeight: 70}}, {{pause: {{}}}}]}}}}
",
            v1.url(),
            v2.url()
        ),
    );
    let weight = |percent: f64| {
        serin.wait_status("shop", &format!("a weight of {percent}"), |status| {
            status["setWeight"].as_f64() == Some(percent)
        });
        now()
    };
    weight(50.0);
    let clients = Plan::new(serin.web, 4).pause(Duration::from_millis(2)).start();
    clients.wait_more(50);
    jump(&serin, &clock, 1);
    let timer = || {
        let begun = now();
        assert_eq!(ask(serin.web, false, get_request("/hang")).unwrap().status, 504);
        assert!(begun.elapsed() >= Duration::from_millis(700));
    };
    timer();
    // The pause of three seconds lasts three seconds, although an hour has passed for whoever looks at a clock on the wall.
    let sixty = weight(60.0);
    assert!(sixty - begun >= Duration::from_secs(3), "{:?}", sixty - begun);
    jump(&serin, &clock, -1);
    timer();
    // And the one of a second does not last two hours.
    let seventy = weight(70.0);
    // Health is still asked for, ten times a second.
    v2.fail(1000);
    wait_for("the checks to fail", SOON, || {
        let labels = [("endpoint", &*v2.url())];
        (serin.metric("serin_upstream_endpoint_healthy", &labels) < 0.5).then_some(())
    });
    clients.wait_more(50);
    let seen = clients.stop();
    assert!(
        seen.broken.is_empty() && seen.of(|_, status, _| status >= 501) == 0,
        "{:?}",
        seen.answers
    );
    // What the canary itself answered with 500, once it was told to, is passed on.
    assert_eq!(
        seen.of(|_, status, by| status == 500 && by != "v2"),
        0,
        "{:?}",
        seen.answers
    );
    crate::support::say(&format!(
        "clock +1 h and -2 h: {} requests, 0 errors of Serin's; the pause of 1 s took {:?} to be over",
        seen.total(),
        seventy - sixty
    ));
}
