//! What judges decided over real traffic, decided again from the state file: by the same parameters and by others, and after
//! somebody has changed the file.

use crate::{
    judge::{ends, shop},
    support::{Serin, load::Load, say, upstream::Upstream, wait_for},
};
use rusqlite::Connection;
use serde_json::Value;
use std::time::Duration;

/// A state file like the one that Serin has open, changed as `sql` says.
fn changed_copy(serin: &Serin, name: &str, sql: &str) {
    let state = Connection::open(serin.file("serin.db")).unwrap();
    state
        .execute("VACUUM INTO ?1", [serin.file(name).to_str().unwrap()])
        .unwrap();
    let copy = Connection::open(serin.file(name)).unwrap();
    copy.execute_batch(sql).unwrap();
}

#[test]
fn past_decisions_are_made_again_and_a_changed_store_is_told_of() {
    let (v1, v2, v3) = (
        Upstream::start("v1"),
        Upstream::start("v2"),
        Upstream::start("v3"),
    );
    v3.fail(1000);
    let strategy = "analysis: {templates: [{templateName: quick}]}, auto: {weights: [20, 50]}";
    let serin = Serin::start_with(&shop(&v1, strategy, ""));
    assert_eq!(
        ends(&serin, 0, "replay shop"),
        "0 of 0 decisions of judges reproduced\n"
    );
    let load = Load::start(serin.web, 500);
    let deploy = |version: &str, upstream: &Upstream, code: i32| {
        let line = format!(
            "deploy shop --version {version} --endpoint {} --until healthy --timeout 60s",
            upstream.url()
        );
        ends(&serin, code, &line)
    };
    deploy("v2", &v2, 0);
    deploy("v3", &v3, 3);
    load.stop();

    // What was decided by is stored a moment after the decision.
    let said = wait_for("three decisions", Duration::from_secs(10), || {
        let (code, said, _) = serin.run("replay");
        (code == 0 && said.ends_with("3 of 3 decisions of judges reproduced\n")).then_some(said)
    });
    for decision in [
        "  PROCEED from 20%: ruled out: errors above ",
        "  PROCEED from 50%: ",
        "  ROLL BACK at weight 20%: canary failed ",
    ] {
        let line = said.lines().find(|line| line.contains(decision));
        assert!(
            line.is_some_and(|line| line.contains("    reproduced  ")),
            "{decision}\n{said}"
        );
    }
    // The file that Serin has open says the same, and a copy that may not be written.
    assert_eq!(ends(&serin, 0, "replay --store serin.db"), said);
    changed_copy(&serin, "copy.db", "PRAGMA journal_mode = DELETE");
    let json = ends(&serin, 0, "replay shop --store copy.db -o json");
    let json: Value = serde_json::from_str(&json).unwrap();
    let rollback = &json["decisions"][2];
    assert_eq!(
        (&rollback["version"], &rollback["outcome"], &rollback["metric"]),
        (&"v3".into(), &"reproduced".into(), &"no-worse".into())
    );
    let rollout = rollback["rollout"].as_str().unwrap();
    // As `get` shows it.
    let one = ends(&serin, 0, &format!("replay shop --rollout {}", &rollout[..8]));
    assert!(one.ends_with("1 of 1 decisions of judges reproduced\n"), "{one}");

    // The same failures are enough for whoever takes more risk, and not for whoever takes next to none.
    let rejudged = |alpha: &str| -> Value {
        let json = ends(&serin, 0, &format!("what-if shop --alpha {alpha} -o json"));
        serde_json::from_str::<Value>(&json).unwrap()["judges"][1].take()
    };
    let (bold, strict) = (rejudged("30%"), rejudged("1e-30%"));
    let (was, is) = (&bold["happened"][0], &bold["would"][0]);
    assert_eq!(
        (&was["advice"], &is["advice"]),
        (&"rollback".into(), &"rollback".into())
    );
    assert!(
        is["canaryRequests"].as_u64() <= was["canaryRequests"].as_u64(),
        "{bold:#}"
    );
    assert_eq!(
        (&strict["would"], &strict["end"]["advice"]),
        (&Value::Array(Vec::new()), &"hold".into()),
        "{strict:#}"
    );
    let text = ends(&serin, 0, "what-if shop --beta 0.0000001%");
    assert!(
        text.contains("HAPPENED") && text.contains("waited at ") && text.contains("20% was left before"),
        "{text}"
    );

    a_changed_store_is_told_of(&serin);
    what_was_given_up_is_not_broken(&serin);
    what_cannot_be_read_is_said(&serin);
}

fn a_changed_store_is_told_of(serin: &Serin) {
    for (name, sql, told) in [
        (
            "count.db",
            // The lowest bit somewhere in the middle of what the last judge was fed.
            "UPDATE recorded SET bytes = CAST(substr(bytes, 1, length(bytes) - 200) || x'01' ||
             substr(bytes, length(bytes) - 198) AS BLOB)
             WHERE part = 0 AND began = (SELECT max(began) FROM recorded)",
            "BROKEN",
        ),
        (
            "part.db",
            "DELETE FROM recorded WHERE part = 0",
            "part 0 of stretch 0 is not in the store",
        ),
        (
            "gone.db",
            "DELETE FROM recorded",
            "nothing is recorded of this rollout",
        ),
        (
            "word.db",
            "UPDATE events SET fact = replace(fact, 'PROCEED from 20%', 'PROCEED from 25%')",
            "no recording comes to this decision",
        ),
    ] {
        changed_copy(serin, name, sql);
        let said = ends(serin, 1, &format!("replay shop --store {name}"));
        assert!(
            said.contains("    BROKEN  ") && said.contains(told),
            "{name}\n{said}"
        );
    }
}

/// As `sweep` does where the file is full (there that is tested), for the first rollout.
fn what_was_given_up_is_not_broken(serin: &Serin) {
    changed_copy(
        serin,
        "full.db",
        "INSERT INTO meta SELECT 'given_up/shop/' || id, 1800000000000 FROM rollouts WHERE shown LIKE '%\"v2\"%';
         DELETE FROM recorded WHERE began < (SELECT max(began) FROM recorded)",
    );
    let said = ends(serin, 0, "replay shop --store full.db");
    assert!(
        said.contains("    not recorded  ")
            && said.contains(
                "given up at 2027-01-15T08:00:00.000Z: the state file held more than state.retention.recordings"
            )
            && said.ends_with("1 of 3 decisions of judges reproduced, 2 not recorded\n"),
        "{said}"
    );
    let said = ends(serin, 0, "what-if shop --alpha 2% --store full.db");
    assert!(
        said.contains("not recorded: 2 (its recordings were given up"),
        "{said}"
    );
}

fn what_cannot_be_read_is_said(serin: &Serin) {
    for (line, code, told) in [
        ("what-if shop", 2, "nothing is said to be otherwise"),
        ("replay nothing", 2, "there is no service `nothing`"),
        (
            "replay nothing --store serin.db",
            2,
            "there is no service `nothing`",
        ),
        ("replay shop --rollout 7x", 2, "`shop` has no rollout `7x`"),
        ("replay --store nowhere.db", 1, "nowhere.db: No such file"),
        ("replay --store serin.yaml", 1, "is not a state file of Serin"),
    ] {
        let said = ends(serin, code, line);
        assert!(said.contains(told), "{line}\n{said}");
    }
}

#[test]
fn stable_against_itself_is_calibrated_on_live_traffic_that_stays_where_it_is() {
    let v1 = Upstream::start("v1");
    v1.fail(20);
    v1.refuse(60);
    let serin = Serin::start_with(&shop(&v1, "auto: {weights: [5, 50]}", ""));
    let silent = ends(&serin, 1, "calibrate shop --for 1s");
    assert!(silent.contains("had no request in that time"), "{silent}");
    let load = Load::start(serin.web, 300);
    let calibrated = |more: &str| -> Value {
        let (code, out, err) = serin.run(&format!("calibrate shop --for 3s --runs 100 -o json {more}"));
        assert!(err.contains("no request goes elsewhere"), "{err}");
        let mut found: Value = serde_json::from_str(&out).unwrap();
        found["code"] = code.into();
        say(&format!(
            "stable against itself, `{more}`: {} of 100 rolled back",
            found["judges"]
        ));
        found
    };
    let rolled_back = |found: &Value| found["judges"][0]["rolledBack"].as_u64();
    let found = calibrated("");
    // The plan names no judge, and waits for evidence.
    assert_eq!(found["judges"][0]["metric"], "serin-judge", "{found:#}");
    assert_eq!((&found["code"], &found["version"]), (&0.into(), &"v1".into()));
    assert!(
        found["requests"].as_u64() > Some(100) && found["failed"].as_u64() > Some(0),
        "{found:#}"
    );
    assert!(
        rolled_back(&found) <= Some(5) && found["runs"] == 100,
        "{found:#}"
    );
    let paused = found["judges"][0]["paused"].as_u64();
    assert!(paused <= Some(5) && paused.is_some(), "{found:#}");
    // Whoever bets everything on nothing is told how often it goes wrong.
    let rash = calibrated("--alpha 99% --weight 40 --error-tolerance 0pp");
    assert!(rolled_back(&rash) > rolled_back(&found), "{rash:#}");
    let seen = load.stop();
    assert_eq!(seen.of_version("v1"), seen.total(), "nobody else served");
    let nobody = ends(&serin, 2, "calibrate nothing --for 1s");
    assert!(nobody.contains("nothing"), "{nobody}");
}

#[test]
fn a_service_is_calibrated_by_the_judges_that_its_next_rollout_will_have() {
    let v1 = Upstream::start("v1");
    let beside =
        "analysis: {templates: [{templateName: quick}, {templateName: rash}]}, auto: {weights: [5, 50]}";
    let rash = "  - name: rash
    metrics:
      - name: rash
        dryRun: true
        judge: {alpha: 10%, latency: {quantiles: [0.5]}, minStep: 3s}
";
    let serin = Serin::start_with(&format!("{}{rash}", shop(&v1, beside, "")));
    let _load = Load::start(serin.web, 100);
    let (status, _, judges) = serin.api("GET", "/v1/services/shop/judges", "secret-token", "");
    assert_eq!(status, 200, "{judges:#}");
    let parameters = |at: usize| {
        let judge = &judges["judges"][at];
        (
            judge["metric"].clone(),
            judge["dryRun"].clone(),
            judge["parameters"]["alpha"].clone(),
        )
    };
    assert_eq!(parameters(0), ("no-worse".into(), false.into(), 0.01.into()));
    assert_eq!(parameters(1), ("rash".into(), true.into(), 0.1.into()));
    let said = ends(&serin, 0, "calibrate shop --for 2s --runs 20");
    assert!(
        said.contains("judge no-worse\n  false alarms: ") && said.contains("promised at most 1%: kept"),
        "{said}"
    );
    assert!(
        said.contains("judge rash\n  false alarms: ") && said.contains("promised at most 10%: kept"),
        "{said}"
    );
    // What is given holds for each of them, for rollbacks and for pauses.
    let said = ends(
        &serin,
        0,
        "calibrate shop --for 1s --runs 20 --alpha 5% --quantiles none",
    );
    assert_eq!(said.matches("promised at most 5%: kept").count(), 4, "{said}");
    let refused = ends(&serin, 2, "calibrate shop --quantiles 1.5");
    assert!(refused.contains("between 0.01 and 0.9999"), "{refused}");
}
