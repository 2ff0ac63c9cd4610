//! Active checks over everything that an endpoint may speak, and how often and how patiently they are made.

use super::health::{SOON, service, wait_health};
use crate::support::{
    Serin,
    authority::Authority,
    http::{Server, Speaks},
    now,
    python::Servers,
    raw::{Next, RawUpstream},
    upstream::Upstream,
    wait_for,
};
use std::{
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

fn one(url: &str, health: &str) -> Serin {
    Serin::start(&service(&[url.to_owned()], &format!(", health: {health}")))
}

#[test]
fn a_grpc_server_is_in_rotation_while_it_says_that_it_serves() {
    let (mut servers, with_health, without) = Servers::start("health");
    servers.tell("shop.Orders SERVING");
    let url = |port: u16| format!("h2c://127.0.0.1:{port}");
    // It has time to answer: where a check is late, that would be the reason.
    let patient = "interval: 100ms, timeout: 20s, rise: 2, fall: 2";
    let serin = one(&url(with_health), &format!("{{grpc: shop.Orders, {patient}}}"));
    for (status, expected) in [("NOT_SERVING", 0.0), ("SERVING", 1.0), ("SERVICE_UNKNOWN", 0.0)] {
        servers.tell(&format!("shop.Orders {status}"));
        wait_health(&serin, &url(with_health), expected);
    }
    serin.wait_log("fails its health checks: gRPC health of `shop.Orders`: NOT_SERVING");
    // A name that it does not know is NOT_FOUND (5); a server without the protocol says UNIMPLEMENTED (12).
    for (port, name, code) in [(with_health, "other", "5"), (without, "shop.Orders", "12")] {
        let serin = one(&url(port), &format!("{{grpc: {name}, {patient}}}"));
        wait_health(&serin, &url(port), 0.0);
        serin.wait_log(&format!("fails its health checks: gRPC health: status {code}"));
    }
}

#[test]
fn a_check_of_the_connection_alone_holds_while_somebody_accepts() {
    let upstream = Upstream::start("a");
    let (url, address) = (upstream.url(), upstream.address);
    let serin = one(&url, "{tcp: true, interval: 100ms, rise: 2, fall: 2}");
    // It answers everything badly, which is not what is asked.
    upstream.fail(1000);
    let before = upstream.connections();
    wait_for("several checks", SOON, || {
        (upstream.connections() > before + 5).then_some(())
    });
    assert!(serin.metric("serin_upstream_endpoint_healthy", &[]) > 0.5);
    assert_eq!(upstream.requests(), 0);
    drop(upstream);
    wait_health(&serin, &url, 0.0);
    let _again = Upstream::start_at("a", address);
    wait_health(&serin, &url, 1.0);
}

/// Answers `/alive` by a script, one letter for each check: `+` good, `-` bad; good when it is over.
fn scripted(script: &'static str) -> (RawUpstream, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let upstream = RawUpstream::start(move |seen, stream| {
        if !seen.whole {
            return Next::Body;
        }
        assert_eq!(seen.target(), "/alive");
        let good = script.as_bytes().get(counted.load(Ordering::SeqCst)) != Some(&b'-');
        let status = if good { "204 No Content" } else { "503 Not Now" };
        let _ = write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n\r\n");
        counted.fetch_add(1, Ordering::SeqCst);
        Next::Close
    });
    (upstream, asked)
}

#[test]
fn it_takes_so_many_bad_checks_in_a_row_to_go_and_so_many_good_ones_to_come_back() {
    for (script, rise, fall, out, back) in [
        // Two in a row are not three; then three are; one good one is not two.
        ("+--+--+---+-++--+", 2, 3, 1, 1),
        ("-+-+-+", 1, 1, 3, 3),
        ("---+++---+++", 3, 2, 2, 2),
    ] {
        let (upstream, asked) = scripted(script);
        let health = format!("{{http: /alive, interval: 100ms, rise: {rise}, fall: {fall}}}");
        let serin = one(&upstream.url(), &health);
        wait_for("the end of the script", SOON, || {
            (asked.load(Ordering::SeqCst) > script.len() + rise).then_some(())
        });
        let seen = |what: &str| serin.log().matches(what).count();
        let turned = (seen("fails its health checks"), seen("is back in rotation"));
        assert_eq!(turned, (out, back), "{script}");
    }
}

#[test]
fn an_endpoint_is_asked_once_an_interval_and_many_are_not_asked_at_once() {
    let many: Vec<_> = (0..8).map(|_| scripted("")).collect();
    let urls: Vec<String> = many.iter().map(|(upstream, _)| upstream.url()).collect();
    let serin = Serin::start(&service(&urls, ", health: {http: /alive, interval: 200ms}"));
    let asked = |of: &AtomicUsize| of.load(Ordering::SeqCst);
    let begun = now();
    wait_for("twenty checks of each", SOON, || {
        many.iter().all(|(_, count)| asked(count) >= 20).then_some(())
    });
    drop(serin);
    let took = usize::try_from(begun.elapsed().as_millis()).unwrap();
    // An interval is never shorter than nine tenths of what was asked for; the first check need not wait for one, and
    // Serin had begun before.
    for (_, count) in &many {
        assert!(asked(count) <= took / 180 + 8, "{} in {took} ms", asked(count));
    }
    // Nor is it much longer, however quickly the checks are answered.
    assert!(took < 20_000, "{took} ms");
}

fn with_ca(services: &str, authority: &Authority) -> Serin {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("{}{services}\n", crate::support::HEAD);
    std::fs::write(folder.path().join("serin.yaml"), text).unwrap();
    std::fs::write(folder.path().join("token"), "secret-token\n").unwrap();
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    Serin::run_in(folder, &[])
}

#[test]
fn a_check_over_tls_wants_the_certificate_that_requests_want() {
    let (authority, stranger) = (Authority::new("ours"), Authority::new("somebody else"));
    for (protocols, check) in [
        (&["http/1.1"][..], "http: /alive"),
        (&["h2"], "http: /alive"),
        (&["http/1.1"], "tcp: true"),
    ] {
        let server = Server::tls_at(0, &authority, protocols);
        let (port, url) = (server.port(), format!("https://127.0.0.1:{}", server.port()));
        let services = service(
            std::slice::from_ref(&url),
            &format!(", upstreamTls: {{ca: ca.pem}}, health: {{{check}, interval: 100ms, rise: 2, fall: 2}}"),
        );
        let serin = with_ca(&services, &authority);
        wait_for("several handshakes", SOON, || {
            (server.seen.names.lock().unwrap().len() > 3).then_some(())
        });
        wait_health(&serin, &url, 1.0);
        assert!(!serin.log().contains("fails its health checks"));
        drop(server);
        wait_health(&serin, &url, 0.0);
        let server = Server::tls_at(port, &stranger, protocols);
        let before = server.seen.connections.load(Ordering::SeqCst);
        wait_for("several checks of a stranger", SOON, || {
            (server.seen.connections.load(Ordering::SeqCst) > before + 4).then_some(())
        });
        assert!(serin.metric("serin_upstream_endpoint_healthy", &[]) < 0.5);
        drop(server);
        let _server = Server::tls_at(port, &authority, protocols);
        wait_health(&serin, &url, 1.0);
    }
}

fn at_socket(path: &Path) -> Server {
    let _ = std::fs::remove_file(path);
    Server::start(Speaks {
        unix: Some(path.to_owned()),
        ..Speaks::default()
    })
}

#[test]
fn a_check_reaches_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    let url = format!("unix:{}", path.display());
    for check in ["http: /alive", "tcp: true"] {
        let server = at_socket(&path);
        let serin = one(&url, &format!("{{{check}, interval: 100ms, rise: 2, fall: 2}}"));
        wait_for("several checks", SOON, || {
            (server.seen.connections.load(Ordering::SeqCst) > 3).then_some(())
        });
        wait_health(&serin, &url, 1.0);
        drop(server);
        wait_health(&serin, &url, 0.0);
        let _server = at_socket(&path);
        wait_health(&serin, &url, 1.0);
    }
}
