//! State files that earlier Serins have written are opened, shown, judged again and gone on with; one of a later Serin is refused
//! and left as it is.
//!
//! `tests/cases/stores` holds a file of each kind, written by the Serin of that time: v2 was promoted over v1, v3 pulled back, and
//! v4 stood at 20 % when the process was killed.

use crate::{
    judge::{ends, shop},
    support::{Serin, load::Load, refused_start, upstream::Upstream},
};
use rusqlite::Connection;
use serde_json::Value;
use std::path::Path;

const STRATEGY: &str = "analysis: {templates: [{templateName: quick}]}, auto: {weights: [20, 50]}";

/// The versions of the file, at their ports of now.
struct Versions([Upstream; 4]);

impl Versions {
    fn start() -> Versions {
        Versions(["v1", "v2", "v3", "v4"].map(Upstream::start))
    }

    /// A folder with that state file, where the versions are what listens now.
    fn folder(&self, file: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/stores");
        let state = folder.path().join("serin.db");
        std::fs::copy(stored.join(file), &state).unwrap();
        let state = Connection::open(state).unwrap();
        for (port, version) in (19001..).zip(&self.0) {
            let (then, now) = (format!("http://127.0.0.1:{port}"), version.url());
            for (table, column) in [("events", "fact"), ("services", "saved"), ("services", "base")] {
                let sql = format!("UPDATE {table} SET {column} = replace({column}, ?1, ?2)");
                state.execute(&sql, [&then, &now]).unwrap();
            }
        }
        std::fs::write(folder.path().join("serin.yaml"), shop(&self.0[0], STRATEGY, "")).unwrap();
        std::fs::write(folder.path().join("token"), "secret-token\n").unwrap();
        folder
    }
}

/// Everything that is in the file is there, and the rollout goes on to its end.
fn goes_on(file: &str) -> Serin {
    let versions = Versions::start();
    let serin = Serin::run_in(versions.folder(file), &[]);
    let status = serin.status("shop");
    assert_eq!(
        (&status["phase"], &status["reason"], &status["setWeight"]),
        (&"Progressing".into(), &"WaitingForEvidence".into(), &20.into()),
        "{status:#}"
    );
    assert_eq!(
        (&status["stable"], &status["canary"]),
        (&"v2".into(), &"v4".into())
    );
    let judged = |status: &serde_json::Value| {
        let test = &status["analyses"][0]["metrics"][0]["judge"]["tests"][0];
        test["stable"].as_u64() == Some(8) && test["canary"].as_u64() == Some(2)
    };
    serin.wait_status("shop", "what the judge knew", judged);
    let history = ends(&serin, 0, "history shop --limit 50");
    for said in [
        "PROCEED from 20%: ruled out: ",
        "PROCEED from 50%: ruled out: ",
        "ROLL BACK at weight 20%: canary failed ",
        "  endpoints_ready  -> Progressing step 1 weight 20%",
    ] {
        assert!(history.contains(said), "{said}\n{history}");
    }
    let load = Load::start(serin.web, 500);
    ends(&serin, 0, "wait shop --until healthy --version v4 --timeout 60s");
    let seen = load.stop();
    assert!(seen.errors() == 0 && seen.of_version("v4") > 0 && seen.of_version("v2") > 0);
    serin
}

#[test]
fn a_state_file_from_before_judges_were_recorded_is_gone_on_with() {
    let serin = goes_on("format-2.sqlite");
    // Of what was not kept nothing can be made again, and that is said; what came after can. Nothing is broken.
    let said = ends(&serin, 0, "replay");
    let why = "an earlier Serin decided it, which did not record judges";
    assert!(
        !said.contains("BROKEN")
            && said.matches("    not recorded  ").count() == 3
            && said.matches(why).count() == 3
            && said.ends_with("2 of 5 decisions of judges reproduced, 3 not recorded\n"),
        "{said}"
    );
    let json: Value = serde_json::from_str(&ends(&serin, 0, "replay -o json")).unwrap();
    assert_eq!(
        (&json["reproduced"], &json["broken"], &json["notRecorded"]),
        (&2.into(), &0.into(), &3.into()),
        "{json:#}"
    );
    assert_eq!(json["decisions"][0]["outcome"], "notRecorded");

    let said = ends(&serin, 0, "what-if shop --alpha 2%");
    let of = |version: &str, decisions: u32| {
        format!("  {version}: decisions of judges that are not recorded: {decisions} ({why})\n")
    };
    assert!(
        said.contains("HAPPENED") && said.contains(&of("v2", 2)) && said.contains(&of("v3", 1)),
        "{said}"
    );
    let json: Value = serde_json::from_str(&ends(&serin, 0, "what-if shop --alpha 2% -o json")).unwrap();
    assert_eq!(json["judges"][0]["version"], "v4");
    assert_eq!(json["notRecorded"][0]["decisions"], 2);

    // What is recorded and then taken away is broken all the same.
    let state = Connection::open(serin.file("serin.db")).unwrap();
    let copy = serin.file("gone.db");
    state.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    let gone = Connection::open(copy).unwrap();
    gone.execute("DELETE FROM recorded", []).unwrap();
    for line in [
        "replay shop --store gone.db",
        "what-if shop --alpha 2% --store gone.db",
    ] {
        let said = ends(&serin, 1, line);
        assert!(said.contains("the store does not say why"), "{line}\n{said}");
    }
}

#[test]
fn decisions_that_earlier_serins_made_are_reproduced_and_their_rollouts_go_on() {
    for file in ["format-3-without-client-errors.sqlite", "format-3.sqlite"] {
        let serin = goes_on(file);
        let said = ends(&serin, 0, "replay");
        assert!(
            said.ends_with("5 of 5 decisions of judges reproduced\n"),
            "{file}: {said}"
        );
    }
}

#[test]
fn what_a_later_serin_has_written_is_refused_and_left_as_it_is() {
    let versions = Versions::start();
    for (change, words) in [
        ("PRAGMA user_version = 4", ["format 4", "run the newer Serin"]),
        // Something happens that this Serin has no word for.
        (
            r#"UPDATE events SET fact = '{"fact":"moved","by":{"event":"teleported"}}' WHERE id = 9"#,
            ["teleported", "run the Serin that wrote it"],
        ),
        (
            "UPDATE services SET saved = json_set(saved, '$.state.stage', 'Teleported')",
            ["Teleported", "run the Serin that wrote it"],
        ),
    ] {
        let folder = versions.folder("format-3.sqlite");
        let file = folder.path().join("serin.db");
        Connection::open(&file).unwrap().execute_batch(change).unwrap();
        let rows = || -> Vec<String> {
            let state = Connection::open(&file).unwrap();
            let sql = "SELECT id || fact || message FROM events UNION ALL SELECT name || saved || base FROM services";
            let mut rows = state.prepare(sql).unwrap();
            let rows = rows.query_map([], |row| row.get(0)).unwrap();
            rows.map(Result::unwrap).collect()
        };
        let before = rows();
        let (code, said) = refused_start(folder.path(), &[]);
        assert_eq!(code, 1, "{said}");
        for word in words.iter().chain(&["--stateless", "serin.db"]) {
            assert!(said.contains(word), "`{word}`: {said}");
        }
        assert_eq!(rows(), before, "{change}");
    }
}
