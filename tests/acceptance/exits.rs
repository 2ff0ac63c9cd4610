//! The exit codes that pipelines branch on, each from a situation that it is for.

use crate::support::{Serin, binary, upstream::Upstream};
use std::process::Command;

const GATES: &str =
    "{setWeight: 5}, {pause: {}}, {setWeight: 25}, {pause: {}}, {setWeight: 50}, {pause: {duration: 10m}}";

pub(crate) fn shop(v1: &Upstream, steps: &str) -> String {
    format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}, deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}},
          strategy: {{canary: {{steps: [{steps}]}}}}}}]",
        v1.url()
    )
}

/// Runs a verb that must end with this code; what it said.
#[track_caller]
fn ends(serin: &Serin, code: i32, line: &str) -> String {
    let (exit, out, err) = serin.run(line);
    let said = out + &err;
    assert_eq!(exit, code, "serin {line}\n{said}");
    said
}

#[test]
fn each_exit_code_has_its_situation() {
    let (v1, v2, v3) = (
        Upstream::start("v1"),
        Upstream::start("v2"),
        Upstream::start("v3"),
    );
    let serin = Serin::start(&shop(&v1, GATES));
    let deploy = |version: &str, upstream: &Upstream| {
        format!("deploy shop --version {version} --endpoint {}", upstream.url())
    };

    // 0: the goal is reached, also when it was before.
    ends(
        &serin,
        0,
        &format!("{} --until paused --timeout 20s", deploy("v2", &v2)),
    );
    ends(&serin, 0, "wait shop --until step=1 --timeout 20s");
    ends(&serin, 0, "wait shop --until weight=5 --version v2 --timeout 20s");

    // 1: nobody there.
    let said = ends(&serin, 1, "get shop --server http://127.0.0.1:9");
    assert!(said.contains("127.0.0.1:9"), "{said}");

    // 2: it makes no sense.
    assert!(ends(&serin, 2, "wait shop --until happiness").contains("is not a goal"));
    assert!(ends(&serin, 2, "get shoop").contains("shoop"));
    ends(&serin, 2, "wait shop --until step=99 --timeout 20s");
    ends(&serin, 2, "wait shop --until released=v77 --timeout 20s");
    ends(&serin, 2, "set-weight shop 101");
    ends(&serin, 2, "deploy shop --version v9");
    ends(&serin, 2, "promote");

    // 5: somebody has to promote, and says so at once; or it is waited through. 4: time is up.
    assert!(ends(&serin, 5, "wait shop --until healthy --timeout 60s").contains("waits for somebody"));
    ends(
        &serin,
        4,
        "wait shop --until healthy --through-pauses --timeout 100ms",
    );
    ends(
        &serin,
        5,
        "promote shop --version v2 --until healthy --timeout 60s",
    );
    let said = ends(
        &serin,
        4,
        "promote shop --version v2 --until healthy --timeout 500ms",
    );
    assert!(said.contains("the rollout goes on"), "{said}");
    assert_eq!(serin.status("shop")["setWeight"].as_f64(), Some(50.0));

    // 6: it is not what the caller believes, and nothing is done.
    for refused in [
        "promote shop --version v7",
        "abort shop --version v1",
        "pause shop --version v7",
        "set-weight shop 1 --version v7",
        "retry shop",
    ] {
        ends(&serin, 6, refused);
    }
    let said = ends(&serin, 6, &format!("{} --on-conflict refuse", deploy("v3", &v3)));
    assert!(said.contains("the rollout of v2 is still going on"), "{said}");
    ends(&serin, 6, &format!("{} -o github", deploy("v3", &v3)));
    assert_eq!(serin.status("shop")["setWeight"].as_f64(), Some(50.0));

    // 8: another took its place while somebody waited. 3: it was aborted while somebody waited.
    let mut waiting = serin.begin("wait shop --until healthy --version v2 --through-pauses --timeout 60s");
    waiting.is_under_way();
    ends(&serin, 0, &deploy("v3", &v3));
    let (code, said) = waiting.end();
    assert!(
        code == 8 && said.contains("v3 took the place of v2"),
        "{code} {said}"
    );
    ends(&serin, 8, "wait shop --until healthy --version v2 --timeout 20s");
    let mut waiting = serin.begin("wait shop --until healthy --through-pauses --timeout 60s");
    waiting.is_under_way();
    ends(&serin, 0, "abort shop --version v3 --reason smells");
    let (code, said) = waiting.end();
    assert!(code == 3 && said.contains("v3 was rolled back"), "{code} {said}");
    assert!(said.contains("smells"), "{said}");
    ends(&serin, 3, "wait shop --until healthy --version v3 --timeout 20s");
    ends(&serin, 6, "abort shop --version v3");
    ends(&serin, 6, "promote shop");

    // An aborted version comes back by `retry` only.
    assert!(ends(&serin, 6, &deploy("v3", &v3)).contains("retry"));
    ends(&serin, 0, "retry shop --version v3 --until paused --timeout 20s");
    assert_eq!(serin.status("shop")["rollout"]["attempt"], 2);
    // Stable again: done at once.
    ends(
        &serin,
        0,
        &format!("{} --until healthy --timeout 20s", deploy("v1", &v1)),
    );
    assert_eq!(serin.status("shop")["phase"], "Healthy");

    // 7: no token over TCP, a wrong one, none that exists.
    let server = format!("http://{}", serin.admin);
    ends(&serin, 0, &format!("get shop --server {server}"));
    ends(&serin, 7, &format!("abort shop --server {server}"));
    std::fs::write(serin.file("wrong"), "not-the-token\n").unwrap();
    ends(
        &serin,
        7,
        &format!("get shop --server {server} --token-file wrong"),
    );
    ends(
        &serin,
        0,
        &format!("{} --server {server} --token-file token", deploy("v2", &v2)),
    );
}

#[test]
fn a_sequence_that_is_older_than_the_last_deploys_nothing() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start(&shop(&v1, GATES));
    let url = v2.url();
    ends(
        &serin,
        0,
        &format!("deploy shop --version v2 --endpoint {url} --sequence 8"),
    );
    let said = ends(
        &serin,
        6,
        &format!("deploy shop --version v0 --endpoint {url} --sequence 7"),
    );
    assert!(said.contains("sequence 7 is older than 8"), "{said}");
    assert_eq!(serin.status("shop")["canary"], "v2");
}

#[test]
fn a_gate_is_released_once_however_often_it_is_asked() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start(&shop(&v1, GATES));
    ends(
        &serin,
        0,
        &format!(
            "deploy shop --version v2 --endpoint {} --until paused --timeout 20s",
            v2.url()
        ),
    );
    let step = |serin: &Serin| serin.status("shop")["step"]["index"].as_u64().unwrap();

    // What the caller saw goes along: the second of two finds another step.
    let promote = r#"{"expect": {"version": "v2", "step": 1}}"#;
    let call = |body: &str| serin.api("POST", "/v1/services/shop/promote", "secret-token", body);
    assert_eq!(call(promote).0, 200);
    let (status, _, problem) = call(promote);
    assert_eq!(
        (status, &problem["code"]),
        (412, &"otherStep".into()),
        "{problem:#}"
    );
    assert_eq!(step(&serin), 3);
    let stale = "authorization: Bearer secret-token\r\nif-match: \"1\"\r\n";
    assert_eq!(
        serin.api_with("POST", "/v1/services/shop/promote", stale, "{}").0,
        412
    );
    let (status, _, problem) = serin.api("POST", "/v1/services/shop/retry", "secret-token", "{}");
    assert_eq!(status, 409, "{problem:#}");
    assert!(problem["legal"].to_string().contains("promote"), "{problem:#}");

    // The same key again is answered the same way, also after a restart, and releases nothing.
    ends(&serin, 0, "promote shop --idempotency-key gate-2");
    assert_eq!(step(&serin), 5);
    let serin = serin.crash_and_restart();
    let generation = serin.status("shop")["generation"].clone();
    ends(&serin, 0, "promote shop --idempotency-key gate-2");
    assert_eq!(
        (step(&serin), &serin.status("shop")["generation"]),
        (5, &generation)
    );
    let said = ends(&serin, 2, "abort shop --idempotency-key gate-2");
    assert!(said.contains("gate-2"), "{said}");
}

#[test]
fn a_pipeline_at_github_is_told_what_happened() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = Serin::start(&shop(&v1, GATES));
    let github = |line: &str| {
        let output = Command::new(binary())
            .args(line.split_whitespace())
            .args(["-o", "github"])
            .current_dir(serin.folder.path())
            .env("GITHUB_OUTPUT", serin.file("output"))
            .env("GITHUB_STEP_SUMMARY", serin.file("summary"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code().unwrap(), said)
    };
    let deploy = format!(
        "deploy shop --version v2 --endpoint {} --until paused --timeout 20s",
        v2.url()
    );
    let (code, said) = github(&deploy);
    assert_eq!(code, 0, "{said}");
    let read = |name: &str| std::fs::read_to_string(serin.file(name)).unwrap();
    let outputs = read("output");
    let id = serin.status("shop")["rollout"]["id"].as_str().unwrap().to_owned();
    for line in [
        "phase=Paused",
        "weight=5",
        "reason=CanaryPauseStep",
        &format!("rollout_id={id}"),
        "url=",
    ] {
        assert!(outputs.contains(line), "{line}: {outputs}");
    }
    assert!(read("summary").contains("| canary | v2 |"), "{}", read("summary"));
    assert!(!said.contains("::error"), "{said}");

    ends(&serin, 0, "abort shop");
    let (code, said) = github("wait shop --version v2 --until healthy --timeout 20s");
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("::error") && said.contains("rolled back"), "{said}");
    assert!(read("output").lines().last().unwrap().starts_with("url="));
    assert!(read("output").contains("phase=Degraded"));
}
