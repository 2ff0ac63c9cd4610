//! A state file that cannot be used stops the start, says how to mend it, and is left as it is.

use crate::support::{HEAD, Serin, get, refused_start, upstream::Upstream};
use rusqlite::Connection;
use std::path::Path;

fn service(upstream: &Upstream) -> String {
    format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}, deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}},
          strategy: {{canary: {{steps: [{{setWeight: 20}}, {{pause: {{}}}}]}}}}}}]",
        upstream.url()
    )
}

/// A folder with a configuration, and no instance.
fn folder(upstream: &Upstream) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("serin.yaml"),
        format!("{HEAD}{}", service(upstream)),
    )
    .unwrap();
    std::fs::write(folder.path().join("token"), "secret-token\n").unwrap();
    folder
}

/// The start is refused with these words, and the state file is as before.
fn refuses(folder: &Path, words: &[&str]) {
    let file = folder.join("serin.db");
    let before = std::fs::read(&file).unwrap();
    let (code, said) = refused_start(folder, &[]);
    assert_eq!(code, 1, "{said}");
    for word in words.iter().chain(&["serin.db"]) {
        assert!(said.contains(word), "`{word}`: {said}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), before, "the file was touched");
    assert!(!folder.join("serin.db-wal").exists() && !folder.join("serin.db-shm").exists());
}

#[test]
fn a_second_process_on_one_store_names_the_first_and_ends() {
    let v1 = Upstream::start("v1");
    let serin = Serin::start(&service(&v1));
    let (code, said) = refused_start(serin.folder.path(), &[]);
    assert_eq!(code, 1, "{said}");
    let holder = format!("in use by process {}", serin.pid());
    assert!(said.contains(&holder), "{holder}: {said}");
    // The first notices nothing: traffic, socket and store still work.
    assert_eq!(get(serin.web, "/"), (200, "v1".to_owned()));
    let v2 = Upstream::start("v2");
    let (code, out, err) = serin.run(&format!(
        "deploy shop --version v2 --endpoint {} --until paused --timeout 20s",
        v2.url()
    ));
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn a_text_file_in_the_place_of_the_store_is_refused() {
    let v1 = Upstream::start("v1");
    let folder = folder(&v1);
    std::fs::write(folder.path().join("serin.db"), "notes: buy milk\n".repeat(100)).unwrap();
    refuses(
        folder.path(),
        &["is not a state file of Serin", "not an SQLite database"],
    );
}

#[test]
fn a_database_of_another_program_is_refused() {
    let v1 = Upstream::start("v1");
    let folder = folder(&v1);
    let other = Connection::open(folder.path().join("serin.db")).unwrap();
    other
        .execute_batch("PRAGMA application_id = 42; CREATE TABLE cookies (host TEXT, value TEXT)")
        .unwrap();
    drop(other);
    refuses(
        folder.path(),
        &["is not a state file of Serin", "another program", "0x2a"],
    );
}

#[test]
fn a_store_of_a_newer_serin_is_refused() {
    let v1 = Upstream::start("v1");
    let folder = stopped_cleanly(&v1);
    let newer = Connection::open(folder.path().join("serin.db")).unwrap();
    newer
        .execute_batch("PRAGMA journal_mode = DELETE; PRAGMA user_version = 999")
        .unwrap();
    drop(newer);
    refuses(folder.path(), &["format 999", "newer Serin"]);
}

#[test]
fn a_damaged_store_is_refused_and_stateless_serves_stable_meanwhile() {
    let v1 = Upstream::start("v1");
    let folder = stopped_cleanly(&v1);
    let file = folder.path().join("serin.db");
    Connection::open(&file)
        .unwrap()
        .execute_batch("PRAGMA journal_mode = DELETE")
        .unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    // Every page but the first, which says what the file is.
    for byte in &mut bytes[4096..] {
        *byte ^= 0x5a;
    }
    std::fs::write(&file, &bytes).unwrap();
    refuses(
        folder.path(),
        &["is damaged", "restore it from a copy", "--stateless"],
    );

    let serin = Serin::run_in(folder, &["--stateless"]);
    assert_eq!(get(serin.web, "/"), (200, "v1".to_owned()));
    let (code, out, err) = serin.run("deploy shop --version v2 --endpoint http://127.0.0.1:9");
    assert!(
        code == 1 && format!("{out}{err}").contains("stateless"),
        "{code} {out}{err}"
    );
    assert_eq!(std::fs::read(&file).unwrap(), bytes, "the file was touched");
}

#[test]
fn a_store_that_another_program_locks_raises_nothing_and_lets_abort_through() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start(&service(&v1));
    let (code, out, err) = serin.run(&format!(
        "deploy shop --version v2 --endpoint {} --until paused --timeout 20s",
        v2.url()
    ));
    assert_eq!(code, 0, "{out}{err}");
    let other = Connection::open(serin.file("serin.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (code, out, err) = serin.run("promote shop");
    assert!(
        code == 1 && err.contains("another program holds it locked"),
        "{code} {out}{err}"
    );
    assert_eq!(serin.status("shop")["setWeight"].as_f64(), Some(20.0));
    let (code, out, err) = serin.run("abort shop");
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(get(serin.web, "/"), (200, "v1".to_owned()));
    other.execute_batch("ROLLBACK").unwrap();
    serin.wait_status("shop", "the store to work again", |status| {
        status["warnings"].as_array().is_some_and(Vec::is_empty)
    });
    let serin = serin.crash_and_restart();
    assert_eq!(serin.status("shop")["phase"], "Degraded");
}

/// What a run with a deploy leaves behind.
fn stopped_cleanly(v1: &Upstream) -> tempfile::TempDir {
    let v2 = Upstream::start("v2");
    let serin = Serin::start(&service(v1));
    let (code, out, err) = serin.run(&format!(
        "deploy shop --version v2 --endpoint {} --until paused --timeout 20s",
        v2.url()
    ));
    assert_eq!(code, 0, "{out}{err}");
    serin.stop()
}
