//! TLS with Serin's REST API: whom the command line believes, and what each failure means.

use super::exit::{Exit, Failure};
use crate::model::Timestamp;
use rustls::{CertificateError, ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How Serin's certificate is looked at. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    /// Whose signature is believed; none: whom this system trusts.
    ca_file: Option<PathBuf>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("ca_file", &self.ca_file)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Believes the authorities in a file, or those of this system.
    pub(super) fn new(ca_file: Option<&Path>) -> Result<Tls, Failure> {
        let roots = match ca_file {
            Some(file) => authorities(file)?,
            None => system()?,
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::new(Exit::Internal, format!("cannot speak TLS: {error}")))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls {
            connector: TlsConnector::from(Arc::new(config)),
            ca_file: ca_file.map(Path::to_owned),
        })
    }

    /// Shakes hands with the Serin at `url`, whose host is `host`.
    pub(super) async fn secure(
        &self,
        stream: TcpStream,
        url: &str,
        host: &str,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let failed = |(why, mend): (String, String)| {
            Failure::new(Exit::Internal, format!("no TLS with Serin at {url}: {why}")).hint(mend)
        };
        let server = ServerName::try_from(name.to_owned())
            .map_err(|_| failed((format!("`{name}` is no host name"), "check --server".to_owned())))?;
        let stream = self.connector.connect(server, stream).await;
        stream.map_err(|error| failed(self.meaning(&error, url, name)))
    }

    /// What is wrong, and the mend.
    fn meaning(&self, error: &io::Error, url: &str, name: &str) -> (String, String) {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        match inner {
            Some(rustls::Error::InvalidCertificate(certificate)) => self.distrust(certificate, name),
            Some(rustls::Error::InvalidMessage(_)) => (
                "what answers there does not speak TLS".to_owned(),
                format!(
                    "write --server {} if `admin.tls` is not set there",
                    url.replacen("https:", "http:", 1)
                ),
            ),
            Some(_) | None => (
                error.to_string(),
                "is that the `admin.address` of a Serin with `admin.tls`?".to_owned(),
            ),
        }
    }

    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "the other kinds have no advice of their own"
    )]
    fn distrust(&self, error: &CertificateError, name: &str) -> (String, String) {
        let at = |time: &UnixTime| Timestamp::from_secs(time.as_secs());
        match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => (
                "its certificate is not signed by an authority that is trusted here".to_owned(),
                match &self.ca_file {
                    Some(file) => format!("{} does not hold the authority that signed it", file.display()),
                    None => "name the file with its authority: --ca-file FILE, or SERIN_CA_FILE".to_owned(),
                },
            ),
            CertificateError::ExpiredContext { not_after, .. } => (
                format!("its certificate expired at {}", at(not_after)),
                "renew it there: Serin takes new files by itself".to_owned(),
            ),
            CertificateError::NotValidYetContext { not_before, .. } => (
                format!("its certificate is not valid before {}", at(not_before)),
                "is the clock of this machine right?".to_owned(),
            ),
            CertificateError::NotValidForNameContext { presented, .. } => (
                format!("its certificate is for {}, not for {name}", listed(presented)),
                format!("use a name in --server that it is for, or give that Serin one for {name}"),
            ),
            other if other.to_string().contains("CaUsedAsEndEntity") => (
                "its certificate is that of an authority, which no server may show".to_owned(),
                "make it without CA:TRUE (openssl req -x509 -addext basicConstraints=critical,CA:FALSE), or sign one with it"
                    .to_owned(),
            ),
            other => (
                format!("its certificate cannot be used: {other}"),
                "give that Serin another one".to_owned(),
            ),
        }
    }
}

/// Names as they stand in a certificate: `DnsName("a.example")`, `IpAddress(127.0.0.1)`.
fn listed(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inside = name.split_once('(').map_or(name.as_str(), |(_, rest)| rest);
        inside.trim_end_matches(')').trim_matches('"').to_owned()
    };
    match presented {
        [] => "no name at all".to_owned(),
        some => some.iter().map(bare).collect::<Vec<_>>().join(", "),
    }
}

fn authorities(file: &Path) -> Result<RootCertStore, Failure> {
    let place = file.display();
    let bad = |what: String| {
        Failure::new(Exit::Usage, what).hint(
            "--ca-file and SERIN_CA_FILE name a file of PEM certificates (-----BEGIN CERTIFICATE-----): of whoever signed Serin's",
        )
    };
    let text = fs::read(file).map_err(|error| bad(format!("cannot read the CA file {place}: {error}")))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(|_| bad(format!("the CA file {place} is damaged or cut off")))?;
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(all);
    if added == 0 {
        return Err(bad(format!("the CA file {place} holds no certificate")));
    }
    Ok(roots)
}

fn system() -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 {
        return Err(Failure::new(
            Exit::Internal,
            "this system trusts no certificate authority at all",
        )
        .hint("install ca-certificates, or name the file with Serin's: --ca-file FILE, or SERIN_CA_FILE"));
    }
    Ok(roots)
}
