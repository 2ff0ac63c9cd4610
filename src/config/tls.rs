//! Certificates: where they lie, and what is in the files.
//!
//! Compiling a configuration notes only where the files are. Reading them is apart ([`CertificateFiles::read`]), because a
//! bad certificate means different things: at the start it is a fault like any other, while Serin runs it is a renewal that
//! went wrong, and the certificate in force stays. Whether one has expired is the caller's question: it has a clock.

use super::cx::{Cx, read_bounded};
use super::decode::Located;
use super::problem::Problem;
use crate::model::Timestamp;
use rustls::{crypto::ring, sign::CertifiedKey};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use serde::Deserialize;
use std::{path::PathBuf, sync::Arc, time::Duration};
use x509_cert::{
    der::Decode,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// `tls` of a listener or of `admin`: one certificate and its key, or several.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TlsConfig {
    /// PEM, the leaf first.
    certificate: Option<String>,
    /// PEM, not encrypted.
    key: Option<String>,
    /// Chosen by the name that a client asks for (SNI); the first is for those who ask for none or for another.
    #[serde(default)]
    certificates: Vec<Located<PairConfig>>,
    /// Absent: 1.2.
    min_version: Option<MinVersionConfig>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PairConfig {
    /// PEM, the leaf first.
    certificate: String,
    /// PEM, not encrypted.
    key: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
enum MinVersionConfig {
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

/// How TLS is served somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// At least one; the first serves clients that ask for no name, or for one that none is for.
    pub certificates: Vec<CertificateFiles>,
    /// TLS 1.2 is refused; otherwise it and 1.3 are spoken.
    pub only_tls13: bool,
}

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// The chain, the leaf first, in PEM.
    pub certificate: PathBuf,
    /// The private key, in PEM.
    pub key: PathBuf,
    /// The certificate as it was written: its name in logs and metrics.
    written: String,
    /// Where the configuration names them.
    place: Problem,
}

impl PartialEq for CertificateFiles {
    /// The same files, wherever the configuration names them.
    fn eq(&self, other: &Self) -> bool {
        self.certificate == other.certificate && self.key == other.key
    }
}

impl Eq for CertificateFiles {}

/// A certificate that was read, with the key that belongs to it.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// What a handshake needs.
    pub certified: Arc<CertifiedKey>,
    /// The DNS names it is for, in lower case; `*.example.com` among them.
    pub names: Vec<String>,
    /// From when on it holds.
    pub not_before: Timestamp,
    /// Until when it holds.
    pub not_after: Timestamp,
}

/// Larger files are no certificates; one with every authority of a system has some 250 KiB.
const MAX_PEM: u64 = 4 << 20;

impl TlsConfig {
    pub(super) fn compile(&self, path: &str, cx: &mut Cx) -> Tls {
        let single = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some(CertificateFiles::at(path, certificate, key, cx)),
            (Some(_), None) => {
                cx.error(path, "a certificate without its key", "add key: key.pem");
                None
            }
            (None, Some(_)) => {
                cx.error(path, "a key without its certificate", "add certificate: cert.pem");
                None
            }
            (None, None) => {
                if self.certificates.is_empty() {
                    let hint = "write tls: {certificate: cert.pem, key: key.pem}";
                    cx.error(path, "TLS needs a certificate", hint);
                }
                None
            }
        };
        let mut certificates: Vec<CertificateFiles> = single.into_iter().collect();
        for Located { path, value: pair } in &self.certificates {
            let files = CertificateFiles::at(path, &pair.certificate, &pair.key, cx);
            if certificates.contains(&files) {
                cx.error(path, "this certificate stands here twice", "remove one");
            }
            certificates.push(files);
        }
        Tls {
            certificates,
            only_tls13: matches!(self.min_version, Some(MinVersionConfig::Tls13)),
        }
    }
}

impl CertificateFiles {
    /// Notes the files and has them watched.
    pub(super) fn at(path: &str, certificate: &str, key: &str, cx: &mut Cx) -> CertificateFiles {
        let files = CertificateFiles {
            certificate: cx.resolve(certificate),
            key: cx.resolve(key),
            written: certificate.to_owned(),
            place: cx.here(path),
        };
        cx.read.extend([files.certificate.clone(), files.key.clone()]);
        files
    }

    /// How the operator calls the certificate.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// What is wrong with the files, at their place in the configuration.
    pub fn problem(&self, what: impl Into<String>, hint: impl Into<String>) -> Problem {
        Problem {
            what: what.into(),
            hint: hint.into(),
            ..self.place.clone()
        }
    }

    /// Reads both files and finds out whether they belong together.
    pub fn read(&self) -> Result<Certificate, Problem> {
        let (chain_file, key_file) = (self.certificate.display(), self.key.display());
        let chain = read_certificates(&self.certificate).map_err(|(what, hint)| self.problem(what, hint))?;
        let key = self.read_key()?;
        let leaf = chain
            .first()
            .map(|leaf| leaf.as_ref().to_vec())
            .unwrap_or_default();
        let (names, not_before, not_after) = describe(&leaf).map_err(|error| {
            self.problem(
                format!("the first certificate in `{chain_file}` cannot be understood: {error}"),
                "it must be an X.509 certificate",
            )
        })?;
        match CertifiedKey::from_der(chain, key, &ring::default_provider()) {
            Ok(certified) => Ok(Certificate {
                certified: Arc::new(certified),
                names,
                not_before,
                not_after,
            }),
            Err(rustls::Error::InconsistentKeys(_)) => Err(self.problem(
                format!("the key in `{key_file}` does not belong to the first certificate in `{chain_file}`"),
                "name the key it was issued for, and let the leaf stand first in the chain",
            )),
            Err(error) => Err(self.problem(
                format!("the key in `{key_file}` cannot be used: {error}"),
                "use an RSA key of 2048 to 8192 bits, ECDSA P-256 or P-384, or Ed25519",
            )),
        }
    }

    fn read_key(&self) -> Result<PrivateKeyDer<'static>, Problem> {
        let file = self.key.display();
        let text = read_bounded(&self.key, MAX_PEM).map_err(|error| {
            self.problem(
                format!("cannot read the key `{file}`: {error}"),
                "relative paths start at the configuration's directory",
            )
        })?;
        PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| {
            let (what, hint) = if text.contains("BEGIN ENCRYPTED PRIVATE KEY") {
                (
                    "is encrypted",
                    "write it without a passphrase: openssl pkey -in KEY -out PLAIN",
                )
            } else if matches!(error, pem::Error::NoItemsFound) {
                (
                    "holds no private key",
                    "it must be PEM (-----BEGIN PRIVATE KEY-----)",
                )
            } else {
                ("is damaged or cut off", "write it again, whole")
            };
            self.problem(format!("the key `{file}` {what}"), hint)
        })
    }
}

/// Every certificate of a PEM file, in its order; at least one. The error is what is wrong, and the mend.
pub(super) fn read_certificates(
    file: &std::path::Path,
) -> Result<Vec<CertificateDer<'static>>, (String, &'static str)> {
    let shown = file.display();
    let text = read_bounded(file, MAX_PEM).map_err(|error| {
        (
            format!("cannot read the certificate `{shown}`: {error}"),
            "relative paths start at the configuration's directory",
        )
    })?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err((
            format!("`{shown}` holds no certificate"),
            "it must be PEM (-----BEGIN CERTIFICATE-----)",
        )),
        Ok(chain) => Ok(chain),
        Err(_) => Err((
            format!("the certificate `{shown}` is damaged or cut off"),
            "write it again, whole",
        )),
    }
}

type Described = (Vec<String>, Timestamp, Timestamp);

/// The names a certificate is for, and from when until when it holds.
fn describe(leaf: &[u8]) -> Result<Described, x509_cert::der::Error> {
    let parsed = x509_cert::Certificate::from_der(leaf)?;
    let body = parsed.tbs_certificate;
    let mut names = Vec::new();
    if let Some((_, SubjectAltName(list))) = body.get::<SubjectAltName>()? {
        for name in list {
            if let GeneralName::DnsName(name) = name {
                names.push(name.as_str().to_ascii_lowercase());
            }
        }
    }
    let at = |since: Duration| Timestamp::from_secs(since.as_secs());
    Ok((
        names,
        at(body.validity.not_before.to_unix_duration()),
        at(body.validity.not_after.to_unix_duration()),
    ))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::{fs, path::Path};

    /// Files at `folder`/`name`.pem and .key, for these names, from and until these years.
    pub(crate) fn write(
        folder: &Path,
        name: &str,
        for_names: &[&str],
        years: (i32, i32),
    ) -> CertificateFiles {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = for_names.iter().map(|name| (*name).to_owned()).collect();
        let mut asked = rcgen::CertificateParams::new(names).unwrap();
        asked.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        asked.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let certificate = asked.self_signed(&key).unwrap();
        let files = files(folder, name);
        fs::write(&files.certificate, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    fn files(folder: &Path, name: &str) -> CertificateFiles {
        CertificateFiles {
            certificate: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
            written: format!("{name}.pem"),
            place: Problem::of_file("serin.yaml", "", ""),
        }
    }

    #[test]
    fn names_and_validity_are_read_from_the_leaf() {
        let folder = tempfile::tempdir().unwrap();
        let files = write(
            folder.path(),
            "a",
            &["Shop.example", "*.shop.example"],
            (2020, 2030),
        );
        let read = files.read().unwrap();
        assert_eq!(read.names, ["shop.example", "*.shop.example"]);
        assert_eq!(read.not_before.to_string(), "2020-01-01T00:00:00.000Z");
        assert_eq!(read.not_after.to_string(), "2030-01-01T00:00:00.000Z");
    }

    #[test]
    fn each_bad_file_is_named_with_what_is_wrong_and_the_mend() {
        let folder = tempfile::tempdir().unwrap();
        let good = write(folder.path(), "a", &["a"], (2020, 2030));
        let other = write(folder.path(), "b", &["b"], (2020, 2030));
        let (chain, key) = (
            fs::read_to_string(&good.certificate).unwrap(),
            fs::read_to_string(&good.key).unwrap(),
        );
        let bad = files(folder.path(), "bad");
        let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let other_key = fs::read_to_string(&other.key).unwrap();
        for (chain, key, part) in [
            ("", key.as_str(), "bad.pem` holds no certificate"),
            (&chain[..chain.len() / 2], &key, "bad.pem` is damaged or cut off"),
            (&key, &key, "bad.pem` holds no certificate"),
            (&chain, "", "bad.key` holds no private key"),
            (&chain, &key[..key.len() / 2], "bad.key` is damaged or cut off"),
            (
                &chain,
                &encrypted,
                "bad.key` is encrypted; write it without a passphrase",
            ),
            (
                &chain,
                &other_key,
                "bad.key` does not belong to the first certificate",
            ),
        ] {
            fs::write(&bad.certificate, chain).unwrap();
            fs::write(&bad.key, key).unwrap();
            let said = bad.read().unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
        fs::remove_file(&bad.key).unwrap();
        assert!(
            bad.read()
                .unwrap_err()
                .to_string()
                .contains("cannot read the key")
        );
    }
}
