//! The REST API over TLS: as a client of HTTP, with the command line, through a renewal, and what each mistake is told.

use crate::support::{
    Serin,
    authority::{Authority, Issued},
    binary,
    http::{Client, To, request, whole},
    upstream::Upstream,
    wait_for,
};
use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(20);

/// Serin with this certificate at its admin address, metrics beside it, and these keys' files in its folder.
fn serin(v1: &Upstream, issued: &Issued) -> Serin {
    let folder = tempfile::tempdir().unwrap();
    issued.write(folder.path(), "admin");
    std::fs::write(
        folder.path().join("serin.yaml"),
        format!(
            "listeners: [{{name: web, address: \"127.0.0.1:0\"}}]\n\
             admin: {{address: \"127.0.0.1:0\", tls: {{certificate: admin.pem, key: admin.key}}, \
             tokens: [{{name: ci, role: approver, secretFile: token}}]}}\n\
             telemetry: {{address: \"127.0.0.1:0\"}}\n\
             services:\n- name: shop\n  stable: {{version: v1, endpoints: [\"{}\"]}}\n  \
             deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}}\n  \
             strategy: {{canary: {{steps: [{{setWeight: 5}}, {{pause: {{}}}}]}}}}\n",
            v1.url()
        ),
    )
    .unwrap();
    std::fs::write(folder.path().join("token"), "secret-of-the-pipeline\n").unwrap();
    Serin::run_in(folder, &[])
}

fn port(serin: &Serin) -> u16 {
    serin.admin.port()
}

/// A verb with a clean environment and what the test says of servers and trust.
fn cli(serin: &Serin, arguments: &str, environment: &[(&str, &str)]) -> (i32, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(binary())
        .args(arguments.split_whitespace())
        .current_dir(serin.folder.path())
        // What this machine trusts shall not matter: nobody.
        .env("SSL_CERT_FILE", serin.file("nobody.pem"))
        .env_remove("SSL_CERT_DIR")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let said = [stdout, stderr].concat();
    (
        status.code().unwrap_or(-1),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

fn trust(folder: &Path, file: &str, authority: &Authority) {
    std::fs::write(folder.join(file), authority.pem()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_api_is_served_over_tls_under_the_names_of_its_certificate() {
    let v1 = Upstream::start("v1");
    let authority = Authority::new("test");
    let serin = serin(&v1, &authority.issue(&["shop.example", "127.0.0.1"]));
    let client = Client {
        to: To::Tcp(serin.admin),
        tls: Some((authority.client(&["h2", "http/1.1"]), "shop.example".to_owned())),
        http2: false,
        preamble: Vec::new(),
    };
    // `Host` is shop.example, which without TLS would be a foreign one.
    let answer = client.get("/v1/services/shop").await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), answer.version),
        (200, http::Version::HTTP_11)
    );
    let post = |token: Option<&str>| {
        let mut post = request("POST", "/v1/services/shop/promote", whole("{}"));
        let head = post.headers_mut();
        head.insert("content-type", "application/json".parse().unwrap());
        if let Some(token) = token {
            let bearer = format!("Bearer {token}");
            head.insert("authorization", bearer.parse().unwrap());
        }
        client.send(post)
    };
    assert_eq!(post(None).await.unwrap().status, 401);
    assert_eq!(post(Some("something-else-altogether")).await.unwrap().status, 401);
    // Nothing is on trial: known, and a conflict.
    assert_eq!(post(Some("secret-of-the-pipeline")).await.unwrap().status, 409);
    // Somebody who believes another authority does not get as far.
    let stranger = Client {
        tls: Some((
            Authority::new("else").client(&["http/1.1"]),
            "shop.example".to_owned(),
        )),
        ..client.clone()
    };
    assert!(stranger.get("/v1/services").await.is_err());
}

#[test]
fn a_pipeline_deploys_over_https_with_an_authority_of_its_own_or_one_of_the_system() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let authority = Authority::new("test");
    let serin = serin(&v1, &authority.issue(&["localhost", "127.0.0.1"]));
    trust(serin.folder.path(), "ca.pem", &authority);
    trust(serin.folder.path(), "nobody.pem", &Authority::new("nobody"));
    let url = format!("https://127.0.0.1:{}", port(&serin));
    let line = format!(
        "deploy shop --version v2 --endpoint {} --until paused --timeout 20s --token-file token --server {url} --ca-file ca.pem",
        v2.url()
    );
    let (code, said) = cli(&serin, &line, &[]);
    assert_eq!(code, 0, "{said}");
    let by_environment = [
        ("SERIN_SERVER", url.as_str()),
        ("SERIN_CA_FILE", "ca.pem"),
        ("SERIN_TOKEN_FILE", "token"),
    ];
    let (code, said) = cli(
        &serin,
        "promote shop --until healthy --timeout 20s",
        &by_environment,
    );
    assert_eq!(code, 0, "{said}");
    // What the system trusts, and a name that is looked up.
    let system = serin.file("ca.pem").display().to_string();
    let line = format!("get shop --server https://localhost:{}/", port(&serin));
    let (code, said) = cli(&serin, &line, &[("SSL_CERT_FILE", &system)]);
    assert!(code == 0 && said.contains("v2"), "{said}");
    // The socket needs none of it, and is not disturbed by it.
    let (code, said) = cli(&serin, "get shop", &[("SERIN_CA_FILE", "missing.pem")]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_renewed_certificate_of_the_api_is_served_without_a_restart() {
    let v1 = Upstream::start("v1");
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let serin = serin(&v1, &old.issue(&["127.0.0.1"]));
    trust(serin.folder.path(), "old.pem", &old);
    trust(serin.folder.path(), "new.pem", &new);
    let get = |ca: &str| {
        let server = format!("https://127.0.0.1:{}", port(&serin));
        cli(&serin, &format!("get --server {server} --ca-file {ca}"), &[]).0
    };
    assert_eq!((get("old.pem"), get("new.pem")), (0, 1));
    // A half-written one is not taken.
    let fresh = new.issue(&["127.0.0.1"]);
    let folder = serin.folder.path();
    std::fs::write(folder.join("admin.pem"), &fresh.chain[..200]).unwrap();
    wait_for("the refusal", SOON, || {
        let log = serin.log();
        log.contains("admin.pem` is damaged or cut off").then_some(())
    });
    assert_eq!(get("old.pem"), 0);
    fresh.write(folder, "admin");
    wait_for("the new certificate", SOON, || {
        (get("new.pem") == 0).then_some(())
    });
    assert_eq!(get("old.pem"), 1);
}

/// A mistake: its exit code, what is said and how to mend it, on one line each.
fn assert_told((code, said): (i32, String), expected: i32, what: &str, mend: &str) {
    assert_eq!(code, expected, "{said}");
    assert!(
        said.contains(what) && said.contains(mend),
        "wanted `{what}` and `{mend}`:\n{said}"
    );
    assert!(said.lines().count() <= 2, "{said}");
}

#[test]
fn each_mistake_with_certificates_is_told_once_with_its_mend() {
    let v1 = Upstream::start("v1");
    let authority = Authority::new("test");
    let with = |issued: Issued| serin(&v1, &issued);
    let good = with(authority.issue(&["127.0.0.1"]));
    let folder = good.folder.path();
    trust(folder, "ca.pem", &authority);
    trust(folder, "other.pem", &Authority::new("other"));
    trust(folder, "nobody.pem", &Authority::new("nobody"));
    let get = |serin: &Serin, ca: &str| {
        let server = format!("https://127.0.0.1:{}", port(serin));
        cli(&good, &format!("get shop --server {server} {ca}"), &[])
    };
    let stranger = "not signed by an authority that is trusted here";
    assert_told(get(&good, ""), 1, stranger, "--ca-file FILE, or SERIN_CA_FILE");
    let other = "other.pem does not hold the authority that signed it";
    assert_told(get(&good, "--ca-file other.pem"), 1, stranger, other);
    for (issued, what, mend) in [
        (
            authority.issue_between(&["127.0.0.1"], (2020, 2021)),
            "its certificate expired at 2021-01-01T00:00:00",
            "renew it there",
        ),
        (
            authority.issue_between(&["127.0.0.1"], (2070, 2071)),
            "its certificate is not valid before 2070-01-01T00:00:00",
            "clock",
        ),
        (
            authority.issue(&["serin.example", "10.9.8.7"]),
            "its certificate is for serin.example, 10.9.8.7, not for 127.0.0.1",
            "use a name in --server",
        ),
        (authority.own(), "that of an authority", "CA:FALSE"),
    ] {
        assert_told(get(&with(issued), "--ca-file ca.pem"), 1, what, mend);
    }
    std::fs::write(folder.join("text.pem"), "no certificate").unwrap();
    let cut: String = authority.pem().chars().take(120).collect();
    std::fs::write(folder.join("cut.pem"), cut).unwrap();
    for (file, what) in [
        ("missing.pem", "cannot read the CA file missing.pem: No such file"),
        ("text.pem", "the CA file text.pem holds no certificate"),
        ("cut.pem", "the CA file cut.pem is damaged or cut off"),
    ] {
        let said = get(&good, &format!("--ca-file {file}"));
        assert_told(said, 2, what, "PEM certificates");
    }
}

#[test]
fn http_to_a_tls_port_and_tls_to_an_http_port_are_told_apart_from_other_troubles() {
    let v1 = Upstream::start("v1");
    let authority = Authority::new("test");
    let secure = serin(&v1, &authority.issue(&["127.0.0.1"]));
    trust(secure.folder.path(), "ca.pem", &authority);
    let plain = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        v1.url()
    ));
    let get = |server: &str| {
        let trusted = [("SERIN_CA_FILE", "ca.pem")];
        cli(&secure, &format!("get shop --server {server}"), &trusted)
    };
    let at = |serin: &Serin| format!("127.0.0.1:{}", port(serin));
    let (http, https) = (
        format!("http://{}", at(&secure)),
        format!("https://{}", at(&plain)),
    );
    let mend = format!("--server https://{}", at(&secure));
    assert_told(get(&http), 1, "does not speak plain HTTP", &mend);
    // Without a scheme it is HTTP.
    assert_told(get(&at(&secure)), 1, "does not speak plain HTTP", &mend);
    let mend = format!("--server http://{}", at(&plain));
    assert_told(get(&https), 1, "does not speak TLS", &mend);
    // An authority that is named for a Serin that shows no certificate is a mistake of whoever names it.
    for (server, what) in [
        (format!("--server {http}"), "is not HTTPS"),
        (String::new(), "at its local socket"),
    ] {
        let said = cli(&plain, &format!("get shop --ca-file ca.pem {server}"), &[]);
        assert_told(said, 2, what, "leave --ca-file out");
    }
}
