//! A configuration that is changed under a running instance, in every way in which files change.

use crate::support::{HEAD, Serin, get, upstream::Upstream, wait_for};
use std::{io::Write, os::unix::fs::symlink, path::Path, time::Duration};

fn configuration(endpoint: &str) -> String {
    format!("{HEAD}services: [{{name: shop, stable: {{version: v1, endpoints: [\"{endpoint}\"]}}}}]\n")
}

/// Waits until requests are answered by this copy.
fn served_by(serin: &Serin, name: &str) {
    wait_for(&format!("`{name}` to serve"), Duration::from_secs(20), || {
        let (status, by) = get(serin.web, "/");
        assert_eq!(status, 200, "no request fails meanwhile");
        (by == name).then_some(())
    });
}

fn last_reload(serin: &Serin) -> f64 {
    serin.metric("serin_config_last_reload_success", &[])
}

#[test]
fn a_file_that_is_renamed_into_place_is_taken_and_endpoints_move_without_a_rollout() {
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    let serin = Serin::start_with(&configuration(&a.url()));
    served_by(&serin, "a");
    let rollout = serin.status("shop")["rollout"]["id"].clone();
    serin.rewrite(&configuration(&b.url()));
    served_by(&serin, "b");
    assert_eq!(serin.status("shop")["rollout"]["id"], rollout);
    assert!((last_reload(&serin) - 1.0).abs() < 0.1);
}

#[test]
fn a_file_that_changes_while_it_starts_is_taken_too() {
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    let folder = Serin::start_with(&configuration(&a.url())).stop();
    std::fs::remove_file(folder.path().join("serin.db")).unwrap();
    let serin = Serin::run_and(folder, &[], |folder| {
        // The configuration has been read by now, and nothing is served yet.
        wait_for("the state file", Duration::from_secs(20), || {
            folder.join("serin.db").exists().then_some(())
        });
        std::fs::write(folder.join("new"), configuration(&b.url())).unwrap();
        std::fs::rename(folder.join("new"), folder.join("serin.yaml")).unwrap();
    });
    served_by(&serin, "b");
}

#[test]
fn a_half_written_file_keeps_the_old_one_and_the_whole_one_is_taken() {
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    let serin = Serin::start_with(&configuration(&a.url()));
    let whole = configuration(&b.url());
    // Truncated and written in place, as a plain editor does; the writer is slow.
    let mut file = std::fs::File::create(serin.file("serin.yaml")).unwrap();
    file.write_all(&whole.as_bytes()[..whole.len() / 2]).unwrap();
    file.flush().unwrap();
    wait_for("the half to be refused", Duration::from_secs(20), || {
        (last_reload(&serin) < 0.5).then_some(())
    });
    served_by(&serin, "a");
    file.write_all(&whole.as_bytes()[whole.len() / 2..]).unwrap();
    drop(file);
    served_by(&serin, "b");
    wait_for("the reload to count", Duration::from_secs(20), || {
        (last_reload(&serin) > 0.5).then_some(())
    });
}

#[test]
fn a_swap_of_kubernetes_links_is_noticed() {
    let (a, b, c) = (Upstream::start("a"), Upstream::start("b"), Upstream::start("c"));
    let folder = tempfile::tempdir().unwrap();
    // As a ConfigMap is mounted: the file is a link through `..data`, which is swapped by a rename.
    let put = |root: &Path, name: &str, endpoint: &str| {
        std::fs::create_dir(root.join(name)).unwrap();
        std::fs::write(root.join(name).join("serin.yaml"), configuration(endpoint)).unwrap();
        std::fs::write(root.join(name).join("token"), "secret-token\n").unwrap();
        symlink(name, root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    put(folder.path(), "..1", &a.url());
    symlink("..data/serin.yaml", folder.path().join("serin.yaml")).unwrap();
    symlink("..data/token", folder.path().join("token")).unwrap();
    let serin = Serin::run_in(folder, &[]);
    served_by(&serin, "a");
    put(serin.folder.path(), "..2", &b.url());
    std::fs::remove_dir_all(serin.file("..1")).unwrap();
    served_by(&serin, "b");
    put(serin.folder.path(), "..3", &c.url());
    served_by(&serin, "c");
}

#[test]
fn only_its_own_files_are_read_again_and_the_log_says_of_which_service_what_changed() {
    let a = Upstream::start("a");
    let service = |name: &str, more: &str| {
        format!(
            "services: [{{name: {name}, match: [{{path: {{prefix: /{name}}}}}], stable: {{version: v1, endpoints: [\"{}\"]}}{more}}}]\n",
            a.url()
        )
    };
    let main = format!("{HEAD}include: [conf.d/*.yaml]\n{}", service("shop", ""));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("serin.yaml"), &main).unwrap();
    std::fs::write(folder.path().join("token"), "secret-token\n").unwrap();
    std::fs::create_dir(folder.path().join("conf.d")).unwrap();
    std::fs::write(folder.path().join("conf.d/team.yaml"), service("team", "")).unwrap();
    let serin = Serin::run_in(folder, &[]);
    let said = |line: &str| {
        wait_for(line, Duration::from_secs(20), || {
            serin.log().contains(line).then_some(())
        });
    };
    for other in [
        "other.yaml",
        "serin.yaml.orig",
        "conf.d/.team.yaml",
        "conf.d/team.yml",
    ] {
        std::fs::write(serin.file(other), "not: [ours\n").unwrap();
    }
    // Comes after those, so that whatever they would have done is done.
    std::fs::write(
        serin.file("conf.d/team.yaml"),
        service("team", ", timeouts: {connect: 2s}, sticky: {header: x}"),
    )
    .unwrap();
    said("configuration reloaded (its files changed): `team`: changed: sticky, timeouts");
    assert_eq!(
        serin.log().matches("configuration reloaded").count(),
        1,
        "{}",
        serin.log()
    );
    assert!(!serin.log().contains("not reloaded"), "{}", serin.log());

    // A file that is new and cannot be used is mended, and read again though it was never taken.
    std::fs::write(serin.file("extra.part"), "services: [{nam: extra}]\n").unwrap();
    serin.rewrite(&main.replace("[conf.d/*.yaml]", "[conf.d/*.yaml, extra.part]"));
    said("extra.part:1");
    std::fs::write(serin.file("extra.part"), service("extra", "")).unwrap();
    said("`include` changed");
    said("`extra`: added");
}

#[test]
fn a_hangup_reloads() {
    let a = Upstream::start("a");
    let serin = Serin::start_with(&configuration(&a.url()));
    serin.signal("HUP");
    wait_for("the reload", Duration::from_secs(20), || {
        serin
            .log()
            .contains("configuration reloaded (SIGHUP)")
            .then_some(())
    });
    served_by(&serin, "a");
}

#[test]
fn a_bad_file_keeps_the_old_one_and_says_why_everywhere() {
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    let good = configuration(&a.url());
    let serin = Serin::start_with(&good);
    let bad = configuration(&b.url()).replace("stable:", "stabel:");
    let line = bad.lines().position(|line| line.contains("stabel")).unwrap() + 1;
    serin.rewrite(&bad);
    wait_for("the refusal", Duration::from_secs(20), || {
        (last_reload(&serin) < 0.5).then_some(())
    });
    served_by(&serin, "a");
    wait_for("the log to say it", Duration::from_secs(20), || {
        let log = serin.log();
        (log.contains("the one in force stays") && log.contains(&format!("serin.yaml:{line}:"))).then_some(())
    });
    assert!(serin.log().contains("stabel"), "{}", serin.log());

    // The same is said to whoever asks for it, and to whoever asks beforehand.
    let (status, _, problem) = serin.api("POST", "/v1/config/reload", "secret-token", "");
    assert_eq!(status, 422, "{problem:#}");
    assert!(problem.to_string().contains("stabel"), "{problem:#}");
    // It concerns no one service: an expectation that nobody looks at is not taken.
    let reload = |headers: &str, body: &str| {
        let headers = format!("authorization: Bearer secret-token\r\n{headers}");
        let (status, _, problem) = serin.api_with("POST", "/v1/config/reload", &headers, body);
        (status, problem["code"].as_str().unwrap_or_default().to_owned())
    };
    let expects = "{\"expect\": {\"version\": \"v9\"}}";
    assert_eq!(reload("", expects), (422, "invalidBody".to_owned()));
    assert_eq!(
        reload("if-match: \"7\"\r\n", "{}"),
        (412, "noExpectation".to_owned())
    );
    assert_eq!(reload("if-match: *\r\n", "{\"reason\": \"why\"}").0, 422);
    let check = |text: &str| {
        let body = serde_json::json!({"text": text}).to_string();
        let (status, _, answer) = serin.api("POST", "/v1/config/check", "secret-token", &body);
        assert_eq!(status, 200, "{answer:#}");
        answer
    };
    let answer = check(&bad);
    assert_eq!(answer["ok"], false);
    assert!(
        answer["problems"][0]
            .as_str()
            .unwrap()
            .contains(&format!(":{line}:")),
        "{answer:#}"
    );
    assert_eq!(check(&good)["ok"], true, "{:#}", check(&good));

    // What needs a restart, and what a running rollout stands on, is refused too.
    let moved = good.replace("web, address: \"127.0.0.1:0\"", "web, address: \"127.0.0.1:1\"");
    assert!(
        check(&moved)["problems"]
            .to_string()
            .contains("cannot change while Serin runs")
    );
    serin.rewrite(&good);
    wait_for("the good file", Duration::from_secs(20), || {
        (last_reload(&serin) > 0.5).then_some(())
    });
}

#[test]
fn a_service_with_a_rollout_cannot_be_taken_out_and_a_reload_moves_no_weight() {
    let (a, b) = (Upstream::start("a"), Upstream::start("b"));
    let steps = |first: u32| {
        format!("{HEAD}services: [{{name: shop, stable: {{version: a, endpoints: [\"{}\"]}}, deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}},
          strategy: {{canary: {{steps: [{{setWeight: {first}}}, {{pause: {{}}}}]}}}}}}]\n", a.url())
    };
    let serin = Serin::start_with(&steps(10));
    let (code, out, err) = serin.run(&format!(
        "deploy shop --version b --endpoint {} --until paused --timeout 20s",
        b.url()
    ));
    assert_eq!(code, 0, "{out}{err}");
    serin.rewrite(&steps(40));
    wait_for("the reload", Duration::from_secs(20), || {
        serin.log().contains("configuration reloaded").then_some(())
    });
    let status = serin.status("shop");
    assert_eq!(
        (status["setWeight"].as_f64(), &status["step"]["index"]),
        (Some(10.0), &1.into())
    );
    // The next rollout runs on the new plan; a replaced one begins again on it.
    let (code, out, err) = serin.run(&format!(
        "deploy shop --version b --endpoint {} --replace --until weight=40 --timeout 20s",
        b.url()
    ));
    assert_eq!(code, 0, "{out}{err}");

    serin.rewrite(&format!(
        "{HEAD}services: [{{name: else, stable: {{version: a, endpoints: [\"{}\"]}}}}]\n",
        a.url()
    ));
    wait_for("the refusal", Duration::from_secs(20), || {
        (last_reload(&serin) < 0.5).then_some(())
    });
    assert!(serin.log().contains("shop"), "{}", serin.log());
    assert_eq!(serin.status("shop")["setWeight"].as_f64(), Some(40.0));
}
