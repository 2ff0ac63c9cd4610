//! The judge over real traffic: what it pulls back and after how many failures, what it promotes, and what it never does.

use crate::support::{HEAD, Serin, exchange, full_form, load::Load, now, say, upstream::Upstream, wait_for};
use rusqlite::Connection;
use serde_json::Value;
use std::time::Duration;

/// A service `shop` with this strategy, whatever is added to it, and the template `quick`: a judge that is content with little.
pub(crate) fn shop(v1: &Upstream, canary: &str, more: &str) -> String {
    format!(
        "{HEAD}services:
  - name: shop
    stable: {{version: v1, endpoints: [\"{}\"]}}
    deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}}
    strategy: {{canary: {{{canary}}}}}
{more}
analysisTemplates:
  - name: quick
    metrics:
      - name: no-worse
        judge: {{harmBudget: 5pp, warmup: 0s, stepWarmup: 0s, minStep: 300ms, latency: {{quantiles: []}}}}
",
        v1.url()
    )
}

const AT_5: &str = "auto: {weights: [5, 50]}";

fn deploy(v2: &Upstream, until: &str) -> String {
    format!(
        "deploy shop --version v2 --endpoint {} --until {until} --timeout 60s",
        v2.url()
    )
}

#[track_caller]
pub(crate) fn ends(serin: &Serin, code: i32, line: &str) -> String {
    let (exit, out, err) = serin.run(line);
    let said = out + &err;
    assert_eq!(exit, code, "serin {line}\n{said}");
    said
}

/// What the judge of the analysis that runs says.
fn judged(status: &Value) -> &Value {
    &status["analyses"][0]["metrics"][0]["judge"]
}

/// Waits until the store has so much at this place of what the judge knows.
pub(crate) fn wait_until_kept(serin: &Serin, place: &str, much: i64) {
    let state = Connection::open(serin.file("serin.db")).unwrap();
    wait_for(
        "what the judge knows in the store",
        Duration::from_secs(20),
        || {
            let kept: rusqlite::Result<i64> =
                state.query_row("SELECT judge ->> ?1 FROM judges", [place], |row| row.get(0));
            (kept == Ok(much)).then_some(())
        },
    );
}

/// Brings in one release after the other that fails so many of a thousand requests, each until it has been rolled back:
/// how many failures clients saw each time, and for how long.
fn rolled_back(serin: &Serin, v2: &Upstream, load: &Load, runs: u64) -> Vec<(u64, Duration)> {
    let failures = || load.seen().with(500, "v2");
    let run = |run: u64| {
        let (before, began) = (failures(), now());
        let line = deploy(v2, "healthy").replace("--version v2", &format!("--version v2-{run}"));
        let said = ends(serin, 3, &line);
        let took = began.elapsed();
        assert!(said.contains("ROLL BACK at weight 5%: canary failed "), "{said}");
        wait_for("every answer of the canary", Duration::from_secs(10), || {
            (load.seen().of_version("v2") == v2.requests()).then_some(())
        });
        let status = serin.status("shop");
        assert_eq!(
            (&status["phase"], &status["aborted"]["cause"]),
            (&"Degraded".into(), &"analysisFailed".into())
        );
        (failures() - before, took)
    };
    (0..runs).map(run).collect()
}

fn median<T: Copy + Ord>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values[values.len() / 2]
}

#[test]
fn a_canary_that_answers_500_is_gone_after_a_few_failed_requests() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    v2.fail(1000);
    // The judge with its defaults.
    let serin = Serin::start_with(&shop(&v1, AT_5, ""));
    let load = Load::start(serin.web, 1000);
    let runs = rolled_back(&serin, &v2, &load, full_form(3, 20));
    let history = ends(&serin, 0, "history shop");
    assert!(
        history.contains("canary failed 100.00% (") && history.contains("e-value"),
        "{history}"
    );
    let seen = load.stop();
    let failures: Vec<u64> = runs.iter().map(|(failed, _)| *failed).collect();
    say(&format!(
        "a dead canary at 5 % and 1,000 requests/s costs so many failures: {failures:?}"
    ));
    // Three are enough to be sure, and one of the four clients may have one more in flight or two.
    assert!(median(failures.iter().copied()) <= 5, "{failures:?}");
    assert!(
        failures.iter().all(|failed| (3..=10).contains(failed)),
        "{failures:?}"
    );
    assert_eq!(seen.errors(), failures.iter().sum::<u64>());
}

#[test]
fn a_canary_that_fails_five_of_a_hundred_is_pulled_back() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    v2.fail(50);
    let serin = Serin::start_with(&shop(&v1, AT_5, ""));
    let load = Load::start(serin.web, 1000);
    let runs = rolled_back(&serin, &v2, &load, full_form(1, 10));
    say(&format!(
        "a canary that fails 5 % at 5 % and 1,000 requests/s: failures, and time to the rollback: {runs:?}"
    ));
    // Every twentieth fails. Four failures are enough here, and a few come while the fourth is on its way.
    assert!(
        runs.iter().all(|(failed, _)| (3..=8).contains(failed)),
        "{runs:?}"
    );
    if runs.len() > 1 {
        assert!(
            median(runs.iter().map(|(_, took)| *took)) < Duration::from_secs(5),
            "{runs:?}"
        );
    }
}

#[test]
fn evidence_promotes_a_healthy_version_and_silence_never_does() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let strategy = "analysis: {templates: [{templateName: quick}]}, auto: {weights: [20, 50]}";
    let serin = Serin::start_with(&shop(&v1, strategy, ""));
    ends(&serin, 4, &deploy(&v2, "healthy").replace("60s", "2s"));
    let status = serin.wait_status("shop", "a judge", |status| judged(status).is_object());
    assert_eq!(
        (&status["phase"], &status["reason"], &status["setWeight"]),
        (&"Progressing".into(), &"WaitingForEvidence".into(), &20.into()),
        "{status:#}"
    );
    let says =
        |status: &Value, what: &str| status["message"].as_str().is_some_and(|said| said.contains(what));
    let message = "; rollback e=1 (needs 100); proceed waits for errors e=1 (needs 20)";
    assert!(says(&status, message), "{status:#}");
    let silence = "waiting for evidence: HOLD at 20%: inconclusive: no canary traffic for ";
    serin.wait_status("shop", "a silence that lasts", |status| says(status, silence));
    let explained = ends(&serin, 0, "explain shop");
    assert!(
        explained.contains("as soon as the evidence suffices, and never by silence")
            && explained.contains("HOLD at 20%: inconclusive: no canary traffic for "),
        "{explained}"
    );
    // Nobody goes on without evidence by accident.
    let refused = ends(&serin, 6, "promote shop");
    assert!(refused.contains("--skip-analysis"), "{refused}");

    let load = Load::start(serin.web, 500);
    ends(&serin, 0, "wait shop --until healthy --version v2 --timeout 60s");
    assert_eq!(load.stop().errors(), 0);
    let history = ends(&serin, 0, "history shop --limit 50");
    for said in [
        "evidence_suffices  -> Progressing step 3 weight 50%  ",
        "PROCEED from 20%: ruled out: errors above 1.25 x stable + 10.00pp (weakest: errors, e=",
        "PROCEED from 50%: ruled out: errors above 1.25 x stable + 5.00pp",
    ] {
        assert!(history.contains(said), "{said}\n{history}");
    }
}

#[test]
fn what_it_has_learned_outlives_a_kill() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    v2.fail(1000);
    let serin = Serin::start_with(&shop(&v1, AT_5, ""));
    ends(&serin, 0, &deploy(&v2, "weight=5"));
    let request = |serin: &Serin| crate::support::get(serin.web, "/").0 == 500;
    let mut failed = 0;
    for _ in 0..200 {
        failed += u64::from(request(&serin));
        if failed == 2 {
            break;
        }
    }
    assert_eq!(failed, 2);
    let knows = |status: &Value| judged(status)["tests"][0]["canaryBad"] == 2;
    serin.wait_status("shop", "two failures", knows);
    // It is shown at once, and stored when the disk has taken it.
    wait_until_kept(&serin, "$.judge.errors.seen.canary_bad", 2);
    let serin = serin.crash_then(|_| {});
    serin.wait_status("shop", "two failures again", knows);
    serin.wait_log("goes on with what it knew");
    wait_for("the third failure", Duration::from_secs(20), || {
        request(&serin).then_some(())
    });
    let status = serin.wait_status("shop", "the end", |status| status["phase"] == "Degraded");
    let said = status["aborted"]["message"].as_str().unwrap();
    assert!(said.contains("canary failed 100.00% (3/3)"), "{said}");
}

#[test]
fn a_user_with_bad_luck_is_one_piece_of_evidence() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start_with(&shop(
        &v1,
        "auto: {weights: [50]}",
        "    sticky: {header: x-user}\n",
    ));
    ends(&serin, 0, &deploy(&v2, "weight=50"));
    let ask = |user: usize, path: &str| {
        let text =
            format!("GET {path} HTTP/1.1\r\nhost: shop\r\nx-user: u{user}\r\nconnection: close\r\n\r\n");
        let (status, head, _) = exchange(serin.web, &text);
        (status, head.to_lowercase().contains("x-version: v2"))
    };
    let (users, others): (Vec<usize>, Vec<usize>) = (0..80).partition(|user| ask(*user, "/").1);
    assert!(users.len() > 20 && others.len() > 20, "{} of 80", users.len());
    // One user's requests all fail: more than enough for a rollback, were they not all his.
    for _ in 0..60 {
        assert_eq!(ask(users[0], "/status/500"), (500, true));
    }
    let knows = |status: &Value| judged(status)["tests"][0]["canaryBad"] == 1;
    let status = serin.wait_status("shop", "one user", knows);
    let (canary, stable) = (
        &judged(&status)["tests"][0]["canary"],
        &judged(&status)["tests"][0]["stable"],
    );
    assert_eq!(
        (canary, stable),
        (&users.len().into(), &others.len().into()),
        "{status:#}"
    );
    // Other users fail as well: those are others.
    for user in &users {
        let (status, canary) = ask(*user, "/status/500");
        assert!(status == 500 && canary || serin.status("shop")["phase"] == "Degraded");
    }
    serin.wait_status("shop", "the end", |status| status["phase"] == "Degraded");
}
