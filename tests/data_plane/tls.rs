//! TLS with clients: certificates by name, protocols by ALPN, renewal while serving, refusals that count.

use crate::support::{
    Serin,
    authority::{Authority, Issued},
    binary,
    http::{Client, Server, Speaks, To},
    wait_for,
};
use std::{path::Path, time::Duration};

const LONG: Duration = Duration::from_secs(20);

fn configuration(tls: &str, port: u16) -> String {
    let at = format!("[\"http://127.0.0.1:{port}\"]");
    format!(
        "listeners: [{{name: web, address: \"127.0.0.1:0\", tls: {tls}}}]\n\
         admin: {{address: \"127.0.0.1:0\", tokens: [{{name: test, role: admin, secretFile: token}}]}}\n\
         services:\n  - name: shop\n    sticky: {{cookie: {{}}}}\n    \
         stable: {{version: v1, endpoints: {at}}}\n    canary: {{version: v2, endpoints: {at}}}\n    \
         strategy: {{canary: {{steps: [{{setWeight: 5}}, {{pause: {{}}}}]}}}}\n"
    )
}

/// Serin with these certificates beside its file.
fn start(tls: &str, port: u16, certificates: &[(&str, &Issued)]) -> Serin {
    let folder = tempfile::tempdir().unwrap();
    for (name, issued) in certificates {
        issued.write(folder.path(), name);
    }
    std::fs::write(folder.path().join("serin.yaml"), configuration(tls, port)).unwrap();
    std::fs::write(folder.path().join("token"), "secret-token\n").unwrap();
    Serin::run_in(folder, &[])
}

fn client(serin: &Serin, authority: &Authority, name: &str, http2: bool) -> Client {
    let protocols: &[&str] = if http2 { &["h2"] } else { &["http/1.1"] };
    Client {
        to: To::Tcp(serin.web),
        tls: Some((authority.client(protocols), name.to_owned())),
        http2,
        preamble: Vec::new(),
    }
}

/// The certificate that a client who asks for `name` is shown.
fn shown(serin: &Serin, name: &str) -> Vec<u8> {
    let mut config = Authority::new("nobody").client(&["http/1.1"]).as_ref().clone();
    config.dangerous().set_certificate_verifier(any::certificate());
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut stream = std::net::TcpStream::connect(serin.web).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).unwrap();
    }
    connection.peer_certificates().unwrap()[0].as_ref().to_vec()
}

fn der(issued: &Issued) -> Vec<u8> {
    use rustls_pki_types::pem::PemObject;
    rustls_pki_types::CertificateDer::from_pem_slice(issued.chain.as_bytes())
        .unwrap()
        .to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_gets_http2_or_http1_as_it_offers_and_the_version_learns_that_it_was_https() {
    let upstream = Server::start(Speaks::default());
    let authority = Authority::new("test");
    let serin = start(
        "{certificate: web.pem, key: web.key}",
        upstream.port(),
        &[("web", &authority.issue(&["shop.example"]))],
    );
    let (code, out, error) = serin.run("wait shop --until paused --timeout 20s");
    assert_eq!(code, 0, "{out}{error}");
    for http2 in [false, true] {
        let answer = client(&serin, &authority, "shop.example", http2)
            .get("/")
            .await
            .unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.version == http::Version::HTTP_2, http2);
        assert_eq!(answer.header("x-saw-x-forwarded-proto"), "https");
        assert!(answer.header("set-cookie").contains("Secure"), "{answer:?}");
    }
    // A client that offers both gets the better one.
    let both = authority.client(&["http/1.1", "h2"]);
    let name = rustls_pki_types::ServerName::try_from("shop.example").unwrap();
    let stream = tokio::net::TcpStream::connect(serin.web).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(both);
    let secured = connector.connect(name, stream).await.unwrap();
    assert_eq!(secured.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
}

#[test]
fn the_name_a_client_asks_for_chooses_the_certificate() {
    let upstream = Server::start(Speaks::default());
    let authority = Authority::new("test");
    let (first, second) = (authority.issue(&["a.example"]), authority.issue(&["*.b.example"]));
    let serin = start(
        "{certificates: [{certificate: a.pem, key: a.key}, {certificate: b.pem, key: b.key}]}",
        upstream.port(),
        &[("a", &first), ("b", &second)],
    );
    for (name, expected) in [
        ("a.example", &first),
        ("www.b.example", &second),
        ("else.example", &first),
        // An address is not sent as a name.
        ("127.0.0.1", &first),
    ] {
        assert!(shown(&serin, name) == der(expected), "{name}");
    }
}

#[test]
fn a_renewed_certificate_is_served_and_a_bad_one_never() {
    let upstream = Server::start(Speaks::default());
    let authority = Authority::new("test");
    let (old, new) = (authority.issue(&["a"]), authority.issue(&["a"]));
    let serin = start(
        "{certificate: web.pem, key: web.key}",
        upstream.port(),
        &[("web", &old)],
    );
    assert!(shown(&serin, "a") == der(&old));
    let success = || serin.metric("serin_tls_certificate_last_reload_success", &[("place", "web")]);
    let expiry = || {
        serin.metric(
            "serin_tls_certificate_expiry_timestamp_seconds",
            &[("certificate", "web.pem")],
        )
    };
    assert!(success() > 0.5 && expiry() > 3e9, "{} {}", success(), expiry());

    let folder = serin.folder.path().to_owned();
    let expired = authority.issue_between(&["a"], (2020, 2021));
    let half = Issued {
        chain: new.chain[..new.chain.len() / 2].to_owned(),
        ..new.clone()
    };
    let mismatched = Issued {
        key: new.key.clone(),
        chain: expired.chain.clone(),
    };
    for (bad, said) in [
        (&half, "is damaged or cut off"),
        (&expired, "expired at 2021-01-01"),
        (&mismatched, "does not belong to the first certificate"),
    ] {
        bad.write(&folder, "web");
        wait_for(said, LONG, || serin.log().contains(said).then_some(()));
        wait_for("the metric", LONG, || (success() < 0.5).then_some(()));
        assert!(shown(&serin, "a") == der(&old), "{said}");
        old.write(&folder, "web");
        wait_for("the old one again", LONG, || (success() > 0.5).then_some(()));
    }
    // The configuration itself was never at fault.
    assert!(serin.metric("serin_config_last_reload_success", &[]) > 0.5);

    new.write(&folder, "web");
    wait_for("the new one", LONG, || {
        (shown(&serin, "a") == der(&new)).then_some(())
    });

    // A mistake elsewhere in the file does not keep a certificate from being renewed.
    std::fs::write(folder.join("serin.yaml"), "listeners: nonsense").unwrap();
    old.write(&folder, "web");
    wait_for("the renewal", LONG, || {
        (shown(&serin, "a") == der(&old)).then_some(())
    });
}

#[test]
fn a_start_with_a_bad_certificate_says_which_file_and_what_to_do() {
    let authority = Authority::new("test");
    let issued = authority.issue(&["a"]);
    let folder = tempfile::tempdir().unwrap();
    let path: &Path = folder.path();
    std::fs::write(path.join("token"), "secret-token\n").unwrap();
    std::fs::write(
        path.join("serin.yaml"),
        configuration("{certificate: web.pem, key: web.key}", 1),
    )
    .unwrap();
    let said = |verb: &[&str]| {
        let output = std::process::Command::new(binary())
            .args(verb)
            .current_dir(path)
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    issued.write(path, "web");
    std::fs::write(path.join("web.key"), "").unwrap();
    for verb in [&["serve", "-c", "serin.yaml"][..], &["check", "serin.yaml"]] {
        let text = said(verb);
        assert!(
            text.contains("serin.yaml:1:")
                && text.contains("listeners[0].tls")
                && text.contains("web.key` holds no private key; it must be PEM"),
            "{text}"
        );
    }
}

#[test]
fn a_certificate_out_of_its_time_is_served_at_a_start_and_said_before_and_then() {
    let authority = Authority::new("test");
    let upstream = Server::start(Speaks::default());
    for (years, means) in [
        (
            (2020, 2021),
            "expired at 2021-01-01T00:00:00.000Z; whoever checks it refuses it",
        ),
        (
            (2090, 2095),
            "is not valid before 2090-01-01T00:00:00.000Z; whoever checks it refuses it until then",
        ),
    ] {
        let issued = authority.issue_between(&["a"], years);
        let tls = "{certificate: web.pem, key: web.key}";
        let serin = start(tls, upstream.port(), &[("web", &issued)]);
        assert!(shown(&serin, "a") == der(&issued));
        let said = format!("the certificate `web.pem` {means}");
        assert!(
            serin.log().contains(&format!("ERROR web: {said}")),
            "{}",
            serin.log()
        );
        let checked = serin.cli(&["check", "serin.yaml"]);
        let text = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
        assert!(
            checked.status.success() && text.contains(&format!("listeners[0].tls: {said}")),
            "{text}"
        );
    }
}

#[test]
fn a_failed_handshake_is_counted_and_a_port_check_is_not() {
    use std::io::{Read, Write};
    let upstream = Server::start(Speaks::default());
    let authority = Authority::new("test");
    let serin = start(
        "{certificate: web.pem, key: web.key, minVersion: 1.3}",
        upstream.port(),
        &[("web", &authority.issue(&["a"]))],
    );
    let refused = || {
        serin.metric(
            "serin_http_rejected_total",
            &[("listener", "web"), ("reason", "tls")],
        )
    };
    drop(std::net::TcpStream::connect(serin.web).unwrap());
    let mut plain = std::net::TcpStream::connect(serin.web).unwrap();
    plain.set_read_timeout(Some(LONG)).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let _ = plain.read_to_end(&mut Vec::new());
    wait_for("the count", LONG, || (refused() > 0.5).then_some(()));
    assert!((refused() - 1.0).abs() < 0.1, "{}", refused());
}

/// A verifier that takes any certificate: the tests here look at which one it was.
mod any {
    use rustls::{
        DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::ring,
    };
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
    use std::sync::Arc;

    #[derive(Debug)]
    struct Any;

    pub(super) fn certificate() -> Arc<dyn ServerCertVerifier> {
        Arc::new(Any)
    }

    impl ServerCertVerifier for Any {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            ring::default_provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
}
