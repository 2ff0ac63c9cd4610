//! TLS on the way in: which certificate a client is shown.
//!
//! The certificates in force stand in one cell that handshakes read and a renewal replaces; connections that are open keep
//! what they were opened with. Which files they come from, and what happens to one that cannot be used, is `app`'s
//! business; the handshake itself is next door in `arrival`.

use crate::config::{Certificate, Tls};
use arc_swap::ArcSwap;
use rustls::{
    ServerConfig, SignatureScheme,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use std::{collections::HashMap, sync::Arc};
use tokio_rustls::TlsAcceptor;

/// What the data plane speaks inside TLS, the better one first.
pub const HTTP: &[&[u8]] = &[b"h2", b"http/1.1"];

/// The certificates in force at one address.
#[derive(Debug, Default)]
pub struct Certificates {
    set: ArcSwap<Set>,
}

#[derive(Debug, Default)]
struct Set {
    /// In the order of the configuration: the first is for whoever asks for no name that is known.
    all: Vec<Arc<CertifiedKey>>,
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
}

impl Certificates {
    /// Puts these in force, in this order, in place of those before.
    pub fn replace(&self, certificates: &[Certificate]) {
        let mut set = Set::default();
        for certificate in certificates {
            set.all.push(Arc::clone(&certificate.certified));
            for name in &certificate.names {
                let named = set.by_name.entry(name.clone()).or_default();
                named.push(Arc::clone(&certificate.certified));
            }
        }
        self.set.store(Arc::new(set));
    }

    /// The certificate for a client that asks for `name` and can check signatures of these `schemes`.
    fn find(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let set = self.set.load();
        let named = name.and_then(|name| set.named(&name.to_ascii_lowercase()));
        let usable = |one: &&Arc<CertifiedKey>| one.key.choose_scheme(schemes).is_some();
        named
            .unwrap_or_default()
            .iter()
            .chain(&set.all)
            .find(usable)
            .or(set.all.first())
            .cloned()
    }
}

impl Set {
    /// An exact name before a wildcard, which stands for one label (RFC 9525 6.3).
    fn named(&self, name: &str) -> Option<&[Arc<CertifiedKey>]> {
        let wildcard = || {
            let (_, parent) = name.split_once('.')?;
            self.by_name.get(&format!("*.{parent}"))
        };
        self.by_name.get(name).or_else(wildcard).map(Vec::as_slice)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name(), hello.signature_schemes())
    }
}

/// How TLS is spoken with clients: TLS 1.2 and 1.3 with ring's suites (forward secrecy and authenticated encryption only),
/// resumption by tickets that need no memory here and whose keys rotate, never early data: it could be replayed.
pub fn acceptor(
    tls: &Tls,
    certificates: &Arc<Certificates>,
    protocols: &[&[u8]],
) -> Result<TlsAcceptor, rustls::Error> {
    let versions: &[_] = if tls.only_tls13 {
        &[&TLS13]
    } else {
        &[&TLS13, &TLS12]
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(certificates) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.ticketer = ring::Ticketer::new()?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tls_fixtures::write;

    #[test]
    fn the_exact_name_beats_the_wildcard_and_the_first_serves_everybody_else() {
        let folder = tempfile::tempdir().unwrap();
        let read =
            |file: &str, names: &[&str]| write(folder.path(), file, names, (2020, 2040)).read().unwrap();
        let (first, wildcard, exact) = (
            read("1", &["first.example"]),
            read("2", &["*.shop.example"]),
            read("3", &["www.shop.example"]),
        );
        let certificates = Certificates::default();
        certificates.replace(&[first.clone(), wildcard.clone(), exact.clone()]);
        let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256];
        for (name, expected) in [
            (Some("first.example"), &first),
            (Some("WWW.shop.example"), &exact),
            (Some("api.shop.example"), &wildcard),
            (Some("a.b.shop.example"), &first),
            (Some("shop.example"), &first),
            (Some("nobody"), &first),
            (None, &first),
        ] {
            let found = certificates.find(name, &schemes).unwrap();
            assert!(Arc::ptr_eq(&found, &expected.certified), "{name:?}");
        }
    }

    #[test]
    fn without_a_certificate_no_handshake_succeeds() {
        assert!(
            Certificates::default()
                .find(Some("a"), &[SignatureScheme::ED25519])
                .is_none()
        );
    }
}
