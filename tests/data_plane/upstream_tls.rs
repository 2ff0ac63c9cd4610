//! TLS with versions: whom Serin believes, what it shows, which protocol is spoken, and what a failure costs.

use crate::support::{
    Serin,
    authority::Authority,
    client::{self, Plan},
    http::{Client, Server, Speaks},
    now,
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
async fn the_log_says_once_why_an_endpoint_is_not_believed_and_why_nobody_is_there() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let upstream = server(&theirs, &["http/1.1"], None);
    let serin = start(&service(upstream.port(), "{ca: ca.pem}"), |folder| {
        std::fs::write(folder.join("ca.pem"), ours.pem()).unwrap();
    });
    for _ in 0..20 {
        assert_eq!(get(&serin).await.status, 502);
    }
    let said = format!(
        "a request to https://127.0.0.1:{} of shop/v1 failed: TLS handshake: invalid peer certificate: UnknownIssuer",
        upstream.port()
    );
    serin.wait_log(&said);
    assert_eq!(serin.log().matches("a request to ").count(), 1, "{}", serin.log());
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

/// Takes connections for a server, lets it hear of them when `lets` says so of their number, and counts them.
fn in_front_of(server: u16, lets: impl Fn(u64) -> bool + Send + 'static) -> (TcpListener, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (accepting, count) = (listener.try_clone().unwrap(), Arc::new(AtomicU64::new(0)));
    let counting = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((client, _)) = accepting.accept() {
            if !lets(counting.fetch_add(1, Ordering::SeqCst)) {
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
fn versions_are_compared_without_the_time_that_opening_a_connection_takes() {
    const OPENS: Duration = Duration::from_millis(400);
    let (authority, v1) = (Authority::new("test"), Upstream::start("v1"));
    let upstream = server(&authority, &["http/1.1"], None);
    let (front, _) = in_front_of(upstream.port(), |_| {
        let begun = now();
        wait_for("a slow handshake", LONG, || {
            (begun.elapsed() >= OPENS).then_some(())
        });
        true
    });
    let v2 = format!("https://{}", front.local_addr().unwrap());
    let service = format!(
        "services:
  - name: shop
    upstreamTls: {{ca: ca.pem}}
    stable: {{version: v1, endpoints: [\"{}\"]}}
    deploy: {{allowedEndpoints: [\"127.0.0.0/8\"]}}
    strategy:
      canary:
        analysis: {{templates: [{{templateName: quick}}]}}
        steps: [{{setWeight: 50}}, {{pause: {{}}}}]
analysisTemplates:
  - name: quick
    metrics:
      - name: slowest
        interval: 200ms
        successCondition: result < 100
        provider: {{serin: {{metric: latency, quantile: 0.99, minSamples: 2}}}}",
        v1.url()
    );
    let serin = start(&service, |folder| {
        std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    });
    let (code, out, err) = serin.run(&format!("deploy shop --version v2 --endpoint {v2}"));
    assert_eq!(code, 0, "{out}{err}");
    serin.wait_status("shop", "traffic", |status| status["phase"] == "Paused");
    let begun = now();
    let mut client = RawClient::connect(serin.web);
    for _ in 0..4 {
        client.send("GET / HTTP/1.1\r\nhost: shop.test\r\n\r\n");
        assert_eq!(client.answer("GET").unwrap().status, 200);
    }
    assert!(begun.elapsed() >= OPENS, "none was slow");
    let took = wait_for("a measurement", LONG, || {
        let metric = &serin.status("shop")["analyses"][0]["metrics"][0];
        let measured = metric["measurements"].as_array()?;
        let good = measured.iter().find(|one| one["outcome"] == "Successful")?;
        good["value"].as_str()?.parse::<f64>().ok()
    });
    assert!(took < OPENS.as_secs_f64() / 2.0, "{took} s");
}

#[test]
fn who_waits_for_a_connection_does_not_wait_for_the_client_that_had_it_opened() {
    let authority = Authority::new("test");
    let upstream = server(&authority, &["h2"], None);
    let (front, accepted) = in_front_of(upstream.port(), |number| number > 0);
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
