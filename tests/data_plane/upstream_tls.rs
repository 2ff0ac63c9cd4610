//! TLS with versions: whom Serin believes, what it shows, which protocol is spoken, and what a failure costs.

use crate::support::{
    Serin,
    authority::Authority,
    client::{self, Plan},
    http::{Client, Server, Speaks},
    raw::RawClient,
    upstream::Upstream,
    wait_for,
};
use std::{
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

const LONG: Duration = Duration::from_secs(20);

/// A server at 127.0.0.1 that speaks TLS and these protocols.
fn server(authority: &Authority, protocols: &[&str], clients: Option<&Authority>) -> Server {
    server_at(0, authority, protocols, clients)
}

fn server_at(port: u16, authority: &Authority, protocols: &[&str], clients: Option<&Authority>) -> Server {
    let issued = authority.issue(&["127.0.0.1", "orders.internal"]);
    Server::start(Speaks {
        tls: Some(Authority::server(&issued, protocols, clients)),
        port,
        ..Speaks::default()
    })
}

fn start(services: &str, write: impl FnOnce(&std::path::Path)) -> Serin {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let text = format!("{}{services}\n", crate::support::HEAD);
    std::fs::write(folder.path().join("serin.yaml"), text).unwrap();
    std::fs::write(folder.path().join("token"), "secret-token\n").unwrap();
    Serin::run_in(folder, &[])
}

fn service(port: u16, tls: &str) -> String {
    format!(
        "services: [{{name: shop, upstreamTls: {tls}, stable: {{version: v1, endpoints: [\"https://127.0.0.1:{port}\"]}}}}]"
    )
}

async fn get(serin: &Serin) -> crate::support::http::Answer {
    Client::plain(serin.web, false).get("/").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoint_gets_http2_or_http1_as_it_offers_and_as_the_operator_allows() {
    let authority = Authority::new("test");
    for (offers, alpn, expected) in [
        (&["h2", "http/1.1"][..], "[h2, http/1.1]", "HTTP/2.0"),
        (&["h2", "http/1.1"], "[http/1.1]", "HTTP/1.1"),
        (&["http/1.1"], "[h2, http/1.1]", "HTTP/1.1"),
        (&[], "[h2, http/1.1]", "HTTP/1.1"),
    ] {
        let upstream = server(&authority, offers, None);
        let tls = format!("{{ca: ca.pem, alpn: {alpn}}}");
        let serin = start(&service(upstream.port(), &tls), |folder| {
            std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
        });
        let answer = get(&serin).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("x-saw-version")),
            (200, expected)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_is_the_operators_and_the_certificate_is_shown_to_whoever_asks() {
    let (authority, people) = (Authority::new("servers"), Authority::new("people"));
    let upstream = server(&authority, &["http/1.1"], Some(&people));
    let tls = "{ca: ca.pem, serverName: orders.internal, certificate: me.pem, key: me.key}";
    let serin = start(&service(upstream.port(), tls), |folder| {
        std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
        people.issue(&["serin"]).write(folder, "me");
    });
    assert_eq!(get(&serin).await.status, 200);
    assert_eq!(
        upstream.seen.names.lock().unwrap().last().unwrap(),
        "orders.internal"
    );
    let expiry = serin.metric(
        "serin_tls_certificate_expiry_timestamp_seconds",
        &[("place", "upstreamTls of shop"), ("certificate", "me.pem")],
    );
    assert!(expiry > 3e9, "{expiry}");

    // Somebody else's certificate is refused by the server. Connections that are open keep theirs, so these end first.
    Authority::new("strangers")
        .issue(&["serin"])
        .write(serin.folder.path(), "me");
    wait_for("the renewal", LONG, || {
        (serin.log().matches("is in force").count() == 2).then_some(())
    });
    let port = upstream.port();
    drop(upstream);
    let upstream = server_at(port, &authority, &["http/1.1"], Some(&people));
    wait_for("a refusal", LONG, || {
        let _ = crate::support::get(serin.web, "/");
        (upstream.seen.connections.load(Ordering::SeqCst) > 0).then_some(())
    });
    assert_eq!(crate::support::get(serin.web, "/").0, 502);
    assert_eq!(upstream.seen.requests.load(Ordering::SeqCst), 0);
}

#[test]
fn an_authority_that_nobody_trusts_is_502_and_a_failed_attempt() {
    let authority = Authority::new("test");
    let upstream = server(&authority, &["http/1.1"], None);
    for tls in [
        "{ca: ca.pem}",
        "{}",
        "{ca: right.pem, serverName: another.example}",
    ] {
        let serin = start(&service(upstream.port(), tls), |folder| {
            std::fs::write(folder.join("ca.pem"), Authority::new("another").pem()).unwrap();
            std::fs::write(folder.join("right.pem"), authority.pem()).unwrap();
        });
        assert_eq!(crate::support::get(serin.web, "/").0, 502, "{tls}");
        let failed = serin.metric("serin_upstream_attempts_total", &[("outcome", "connect_failed")]);
        assert!(failed > 0.5, "{tls}: {failed}");
    }
    assert_eq!(
        upstream.seen.requests.load(Ordering::SeqCst),
        0,
        "not a byte for a stranger"
    );
    let careless = start(&service(upstream.port(), "{insecureSkipVerify: true}"), |_| {});
    assert_eq!(crate::support::get(careless.web, "/").0, 200);
}

#[test]
fn a_canary_whose_certificate_is_not_believed_any_more_trips_and_costs_no_client_an_error() {
    let (authority, another) = (Authority::new("test"), Authority::new("another"));
    let (stable, canary) = (Upstream::start("v1"), server(&authority, &["http/1.1"], None));
    let services = format!(
        "services:\n  - name: shop\n    upstreamTls: {{ca: ca.pem}}\n    \
         stable: {{version: v1, endpoints: [\"{}\"]}}\n    \
         canary: {{version: v2, endpoints: [\"https://127.0.0.1:{}\"]}}\n    \
         strategy: {{canary: {{steps: [{{setWeight: 50}}, {{pause: {{}}}}]}}}}\n",
        stable.url(),
        canary.port()
    );
    let serin = start(&services, |folder| {
        std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    });
    let (code, out, error) = serin.run("wait shop --until paused --timeout 20s");
    assert_eq!(code, 0, "{out}{error}");
    assert_eq!(crate::support::get(serin.web, "/").0, 200);

    let port = canary.port();
    drop(canary);
    let canary = server_at(port, &another, &["http/1.1"], None);
    wait_for("the roll back", LONG, || {
        assert_eq!(crate::support::get(serin.web, "/").0, 200);
        (serin.status("shop")["phase"] == "Degraded").then_some(())
    });
    assert!(serin.log().contains("TLS handshake"), "the cause is named");
    assert_eq!(canary.seen.requests.load(Ordering::SeqCst), 0);
}

#[test]
fn readiness_is_asked_over_the_same_tls() {
    let authority = Authority::new("test");
    let upstream = server(&authority, &["h2", "http/1.1"], None);
    let serin = start(&service(upstream.port(), "{ca: ca.pem}"), |folder| {
        std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    });
    let deploy = |version: &str, port: u16| {
        let line = format!("deploy shop --version {version} --endpoint https://127.0.0.1:{port}");
        let (code, out, error) = serin.run(&line);
        assert_eq!(code, 0, "{out}{error}");
    };
    let stranger = server(&Authority::new("another"), &[], None);
    deploy("v2", stranger.port());
    wait_for("the reason", LONG, || {
        let status = serin.status("shop").to_string();
        status.contains("TLS with https://").then_some(())
    });
    let friend = server(&authority, &["h2"], None);
    deploy("v3", friend.port());
    let (code, out, error) = serin.run("wait shop --until step=1 --timeout 20s");
    assert_eq!(code, 0, "{out}{error}");
}

#[test]
fn first_requests_at_once_share_the_connection_that_is_being_opened_if_it_can_be_shared() {
    let authority = Authority::new("test");
    for (protocols, least, most) in [(&["h2", "http/1.1"][..], 1, 2), (&["http/1.1"], 40, 40)] {
        let upstream = server(&authority, protocols, None);
        let serin = start(&service(upstream.port(), "{ca: ca.pem}"), |folder| {
            std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
        });
        // As many connections as clients where each needs its own: their answers have no end.
        let clients = Plan::new(serin.web, 40)
            .requests(|_| client::get("/hang"))
            .start();
        wait_for("all to be served", LONG, || {
            (upstream.seen.requests.load(Ordering::SeqCst) == 40).then_some(())
        });
        let opened = upstream.seen.connections.load(Ordering::SeqCst);
        assert!((least..=most).contains(&opened), "{protocols:?}: {opened}");
        clients.abandon();
    }
}

/// Takes connections for a server: the first one and never lets it hear of it.
fn deaf_to_the_first(server: u16) -> (TcpListener, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (accepting, count) = (listener.try_clone().unwrap(), Arc::new(AtomicU64::new(0)));
    let counting = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((client, _)) = accepting.accept() {
            if counting.fetch_add(1, Ordering::SeqCst) == 0 {
                held.push(client);
                continue;
            }
            let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server, client),
            ] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    (listener, count)
}

#[test]
fn who_waits_for_a_connection_does_not_wait_for_the_client_that_had_it_opened() {
    let authority = Authority::new("test");
    let upstream = server(&authority, &["h2"], None);
    let (front, accepted) = deaf_to_the_first(upstream.port());
    let port = front.local_addr().unwrap().port();
    let tls = "{ca: ca.pem}, timeouts: {connect: 5m}";
    let serin = start(&service(port, tls), |folder| {
        std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    });
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\n\r\n");
    let mut first = RawClient::connect(serin.web);
    first.send(get("/first"));
    wait_for("the first to be opened", LONG, || {
        (accepted.load(Ordering::SeqCst) == 1).then_some(())
    });
    // Half of these land on the worker that has the first one.
    let mut others: Vec<RawClient> = (0..8).map(|_| RawClient::connect(serin.web)).collect();
    for other in &mut others {
        other.send(get("/other"));
    }
    wait_for("all to be on their way", LONG, || {
        (serin.count("serin_split_assignments_total", &[]) == 9).then_some(())
    });
    drop(first);
    for mut other in others {
        assert_eq!(other.answer("GET").unwrap().status, 200);
    }
    assert!(accepted.load(Ordering::SeqCst) <= 3);
}
