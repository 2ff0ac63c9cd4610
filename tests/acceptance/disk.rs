//! A disk that takes nothing more: said clearly, no more exposure than was stored last, and stable is always reachable.

use crate::support::{Serin, get, refused_start_by, upstream::Upstream};
use std::process::{Command, Stdio};

/// Makes every write of a process to a file fail, or none. Needs no rights, unlike a small disk of one's own.
fn limit_files(pid: u32, limit: &str) {
    let done = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--fsize={limit}:")])
        .stdin(Stdio::null())
        .status()
        .expect("prlimit is installed by tests/run");
    assert!(done.success());
}

fn service(v1: &Upstream) -> String {
    format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}, deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}},
          strategy: {{canary: {{steps: [{{setWeight: 10}}, {{pause: {{}}}}, {{setWeight: 50}}, {{pause: {{}}}}]}}}}}}]",
        v1.url()
    )
}

fn canary_of_100(serin: &Serin) -> usize {
    (0..100)
        .filter(|_| get(serin.web, "/") == (200, "v2".to_owned()))
        .count()
}

#[test]
fn a_full_disk_raises_nothing_lets_abort_through_and_is_recovered_from() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start(&service(&v1));
    let (code, out, err) = serin.run(&format!(
        "deploy shop --version v2 --endpoint {} --until paused --timeout 20s",
        v2.url()
    ));
    assert_eq!(code, 0, "{out}{err}");

    limit_files(serin.pid(), "0");
    for verb in [
        "promote shop",
        "promote shop --full",
        "set-weight shop 20",
        "resume shop",
    ] {
        let (code, out, err) = serin.run(verb);
        let said = out + &err;
        assert_ne!(code, 0, "{verb}: {said}");
        if verb != "resume shop" {
            assert!(
                code == 1 && said.contains("cannot be stored, so it was not done"),
                "{verb}: {code} {said}"
            );
            assert!(
                said.contains("serin.db") && said.contains("abort and undo work meanwhile"),
                "{verb}: {said}"
            );
        }
    }
    let status = serin.status("shop");
    assert_eq!(
        (&status["phase"], status["setWeight"].as_f64()),
        (&"Paused".into(), Some(10.0))
    );
    assert!(status["warnings"].to_string().contains("stor"), "{status:#}");
    assert!((9..=11).contains(&canary_of_100(&serin)));
    assert!(serin.metric("serin_store_errors_total", &[]) >= 1.0);
    assert!(
        serin.log().contains("the state cannot be stored"),
        "{}",
        serin.log()
    );

    let (code, out, err) = serin.run("abort shop --reason full");
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(serin.status("shop")["phase"], "Degraded");
    assert_eq!(canary_of_100(&serin), 0);

    limit_files(serin.pid(), "unlimited");
    serin.wait_status("shop", "the store to work again", |status| {
        status["warnings"].as_array().is_some_and(Vec::is_empty)
    });
    let serin = serin.crash_and_restart();
    let status = serin.status("shop");
    assert_eq!(
        (&status["phase"], &status["rolledBackFrom"]),
        (&"Degraded".into(), &"v2".into())
    );
    let (code, out, err) = serin.run("retry shop --until paused --timeout 20s");
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn killed_while_an_abort_could_not_be_stored_it_exposes_what_was_stored_last_and_no_more() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start(&service(&v1));
    let deploy = format!(
        "deploy shop --version v2 --endpoint {} --until paused --timeout 20s",
        v2.url()
    );
    assert_eq!(serin.run(&deploy).0, 0);
    limit_files(serin.pid(), "0");
    assert_eq!(serin.run("promote shop").0, 1);
    assert_eq!(serin.run("abort shop").0, 0);
    let serin = serin.crash_and_restart();
    let status = serin.status("shop");
    assert_eq!(status["setWeight"].as_f64(), Some(10.0), "{status:#}");
    assert!((9..=11).contains(&canary_of_100(&serin)));
}

#[test]
fn a_start_on_a_full_disk_says_so_and_is_mended_by_room() {
    let v1 = Upstream::start("v1");
    let folder = Serin::start(&service(&v1)).stop();
    let (code, said) = refused_start_by(&["prlimit", "--fsize=0:"], folder.path(), &[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("serin.db"), "{said}");
    assert!(said.contains("make room"), "{said}");
    let serin = Serin::run_in(folder, &[]);
    assert_eq!(serin.status("shop")["stable"], "v1");
}
