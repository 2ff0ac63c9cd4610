//! Who may do what over TCP, and how an attempt is remembered.

use crate::support::{Serin, get, upstream::Upstream};
use serde_json::Value;

const HEAD: &str = "
listeners: [{name: web, address: \"127.0.0.1:0\"}]
admin:
  address: 127.0.0.1:0
  tokens:
    - {name: eve, role: viewer, secretFile: viewer}
    - {name: ci, role: deployer, secretFile: deployer}
    - {name: ann, role: approver, secretFile: approver}
    - {name: root, role: admin, secretFile: admin}
    - {name: other, role: admin, services: [other], secretFile: limited}
services:
";

fn serin(v1: &Upstream) -> Serin {
    let service = |name: &str, host: &str| {
        format!(
            "  - name: {name}
    match: [{{host: {host}}}]
    stable: {{version: v1, endpoints: [\"{}\"]}}
    deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}}
    strategy: {{canary: {{steps: [{{setWeight: 5}}, {{pause: {{}}}}, {{setWeight: 50}}, {{pause: {{}}}}]}}}}
",
            v1.url()
        )
    };
    let folder = tempfile::tempdir().unwrap();
    for token in ["viewer", "deployer", "approver", "admin", "limited"] {
        std::fs::write(folder.path().join(token), format!("secret-of-{token}\n")).unwrap();
    }
    let text = format!(
        "{HEAD}{}{}",
        service("shop", "shop.test"),
        service("other", "other.test")
    );
    std::fs::write(folder.path().join("serin.yaml"), text).unwrap();
    Serin::run_in(folder, &[])
}

/// What a verb would change.
fn standing(status: &Value) -> [Value; 5] {
    ["phase", "stable", "canary", "step", "setWeight"].map(|part| status[part].clone())
}

#[test]
fn a_role_may_what_it_is_for_and_no_more() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = serin(&v1);
    let deploy = format!(r#"{{"version": "v2", "endpoints": ["{}"]}}"#, v2.url());
    // The verb, who may use it, and what it needs to hold before; each refused try must change nothing.
    let table: [(&str, &str, &str, usize); 12] = [
        ("POST", "deploy", &deploy, 1),
        ("POST", "promote", "{}", 2),
        ("POST", "pause", "{}", 1),
        ("POST", "resume", "{}", 2),
        ("PUT", "weight", r#"{"weight": 7}"#, 3),
        ("POST", "abort", "{}", 1),
        ("POST", "retry", "{}", 1),
        ("POST", "promote", r#"{"skipAnalysis": true}"#, 3),
        (
            "PUT",
            "versions/v2/endpoints",
            &format!(r#"{{"endpoints": ["{}"]}}"#, v2.url()),
            1,
        ),
        ("POST", "undo", "{}", 2),
        ("POST", "deploy", &deploy.replace("v2", "v3"), 1),
        ("POST", "promote", r#"{"full": true}"#, 3),
    ];
    let roles = ["viewer", "deployer", "approver", "admin"];
    for (method, verb, body, lowest) in table {
        let path = format!("/v1/services/shop/{verb}");
        // Nothing moves by itself between a refused try and the look at what it did.
        let settled = serin.wait_status("shop", "endpoints to be ready", |status| {
            status["message"] != "waiting for endpoints"
        });
        let before = standing(&settled);
        for (rank, role) in roles.iter().enumerate().take(lowest) {
            let (status, _, problem) = serin.api(method, &path, &format!("secret-of-{role}"), body);
            assert_eq!(status, 403, "{role} ({rank}) {verb} {body}: {problem:#}");
            assert!(
                problem["hint"].is_string() && problem["code"].is_string(),
                "{problem:#}"
            );
        }
        assert_eq!(serin.api_with(method, &path, "", body).0, 401, "{verb}");
        assert_eq!(
            serin.api(method, &path, "secret-of-limited", body).0,
            403,
            "{verb}"
        );
        assert_eq!(standing(&serin.status("shop")), before, "{verb} {body}");
        let role = roles[lowest];
        let (status, _, answer) = serin.api(method, &path, &format!("secret-of-{role}"), body);
        assert!(
            (200..300).contains(&status),
            "{role} {verb} {body}: {status} {answer:#}"
        );
    }
    assert_eq!(
        serin.api("POST", "/v1/config/reload", "secret-of-approver", "").0,
        403
    );
    assert_eq!(
        serin.api("POST", "/v1/config/reload", "secret-of-admin", "").0,
        200
    );

    // Every attempt is remembered, the refused ones too, and written as a line.
    let (_, _, history) = serin.api(
        "GET",
        "/v1/services/shop/history?limit=500",
        "secret-of-viewer",
        "",
    );
    let attempts = history["attempts"].as_array().unwrap();
    let of = |actor: &str, refused: bool| {
        let by =
            |attempt: &&Value| attempt["caller"]["actor"] == actor && attempt["refused"].is_null() != refused;
        attempts.iter().filter(by).count()
    };
    // Of refused ones at most ten a second are kept, so that nobody can fill the disk by knocking.
    assert!(of("eve", true) >= 3 && of("eve", false) == 0, "{attempts:#?}");
    assert_eq!((of("root", true), of("root", false)), (0, 3));
    assert_eq!(of("ci", false) + of("ann", false), 9);
    assert!(
        serin.log().contains("eve") && serin.log().contains("ann"),
        "{}",
        serin.log()
    );
}

#[test]
fn a_token_for_one_service_sees_and_moves_only_that() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let serin = serin(&v1);
    let deploy = format!(r#"{{"version": "v2", "endpoints": ["{}"]}}"#, v2.url());
    assert_eq!(
        serin
            .api("POST", "/v1/services/other/deploy", "secret-of-limited", &deploy)
            .0,
        201
    );
    assert_eq!(
        serin
            .api("POST", "/v1/services/shop/deploy", "secret-of-limited", &deploy)
            .0,
        403
    );
    assert_eq!(
        serin.api("GET", "/v1/services/shop", "secret-of-limited", "").0,
        403
    );
    let (_, _, list) = serin.api("GET", "/v1/services", "secret-of-limited", "");
    let names: Vec<&str> = list["services"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["service"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["other"]);
}

#[test]
fn a_secret_that_is_rotated_is_taken_and_the_old_one_refused() {
    let v1 = Upstream::start("v1");
    let serin = serin(&v1);
    let reload = |token: &str| serin.api("POST", "/v1/services/shop/pause", token, "{}").0;
    assert_eq!(reload("secret-of-admin"), 409);
    std::fs::write(serin.file("admin.new"), "a-fresh-secret\n").unwrap();
    std::fs::rename(serin.file("admin.new"), serin.file("admin")).unwrap();
    crate::support::wait_for("the new secret", std::time::Duration::from_secs(20), || {
        (reload("a-fresh-secret") == 409).then_some(())
    });
    assert_eq!(reload("secret-of-admin"), 401);
}

#[test]
fn a_foreign_host_is_refused_and_secrets_are_shown_nowhere() {
    let v1 = Upstream::start("v1");
    let serin = serin(&v1);
    let (status, head, said) = crate::support::exchange(
        serin.admin,
        "GET /v1/services HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
    );
    assert_eq!(status, 421, "{head}");
    assert!(said.contains("`admin.hosts`"), "{said}");
    for path in [
        "/v1/config",
        "/v1/services",
        "/metrics",
        "/v1/services/shop/history",
    ] {
        let (_, body) = get(serin.admin, path);
        assert!(!body.contains("secret-of-"), "{path}: {body}");
    }
    assert!(!serin.log().contains("secret-of-"));
}

#[test]
fn the_names_of_the_configuration_are_taken_as_its_own_and_follow_a_reload() {
    let v1 = Upstream::start("v1");
    let with = |hosts: &str| {
        format!(
            "listeners: [{{name: web, address: \"127.0.0.1:0\"}}]\nadmin: {{address: \"127.0.0.1:0\", hosts: [{hosts}]}}\n\
             services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]\n",
            v1.url()
        )
    };
    let serin = Serin::start_with(&with("serin.internal"));
    let called = |host: &str| {
        let request = format!("GET /v1/services HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        crate::support::exchange(serin.admin, &request).0
    };
    assert_eq!(
        (called("serin.internal"), called("SERIN.internal:9900")),
        (200, 200)
    );
    assert_eq!((called("a.serin.internal"), called("ops.internal")), (421, 421));
    serin.rewrite(&with("ops.internal"));
    crate::support::wait_for("the new name", std::time::Duration::from_secs(20), || {
        (called("ops.internal") == 200).then_some(())
    });
    assert_eq!(called("serin.internal"), 421);
    crate::support::wait_for(
        "the line of the reload",
        std::time::Duration::from_secs(20),
        || serin.log().contains("`admin` changed").then_some(()),
    );
}
