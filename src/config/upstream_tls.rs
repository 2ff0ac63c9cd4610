//! `upstreamTls` of a service: how `https://` endpoints are talked to, whichever version they belong to.
//!
//! As with the certificates next door in `tls`, compiling notes where files are; reading them is apart.

use super::cx::Cx;
use super::decode::Located;
use super::problem::Problem;
use super::tls::{CertificateFiles, read_certificates};
use rustls::RootCertStore;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UpstreamTlsConfig {
    /// PEM: who may have signed the endpoints' certificates. Absent: the authorities that this system trusts.
    ca: Option<String>,
    /// The name that the endpoints' certificates are for, and that is asked for (SNI). Absent: the endpoint's host.
    server_name: Option<String>,
    /// PEM, the leaf first: shown to endpoints that ask for one. Absent: none.
    certificate: Option<String>,
    /// PEM: the certificate's.
    key: Option<String>,
    /// Of h2 and http/1.1 those that are offered, the better one first. Absent: both.
    alpn: Option<Vec<Located<AlpnConfig>>>,
    /// Absent: false. True: anybody may answer in the endpoint's place.
    #[serde(default)]
    insecure_skip_verify: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum AlpnConfig {
    #[serde(rename = "h2")]
    Http2,
    #[serde(rename = "http/1.1")]
    Http1,
}

/// How a service's `https://` endpoints are talked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Who may have signed their certificates; none: whom this system trusts.
    pub ca: Option<CaFile>,
    /// The name that is asked for and checked; none: the endpoint's host.
    pub server_name: Option<ServerName<'static>>,
    /// What is shown to those who ask for a certificate.
    pub identity: Option<CertificateFiles>,
    /// What is offered, the preferred one first; at least one.
    pub alpn: Vec<&'static str>,
    /// Certificates are checked.
    pub verify: bool,
}

impl Default for UpstreamTls {
    fn default() -> Self {
        UpstreamTls {
            ca: None,
            server_name: None,
            identity: None,
            alpn: vec!["h2", "http/1.1"],
            verify: true,
        }
    }
}

impl UpstreamTls {
    /// What is wrong with the files it names.
    pub fn unreadable(&self) -> Vec<Problem> {
        let ca = self.ca.as_ref().and_then(|ca| ca.read().err());
        let identity = self.identity.as_ref().and_then(|files| files.read().err());
        ca.into_iter().chain(identity).collect()
    }
}

/// A file of authorities.
#[derive(Debug, Clone)]
pub struct CaFile {
    /// In PEM.
    pub path: PathBuf,
    place: Problem,
}

impl PartialEq for CaFile {
    /// The same file, wherever the configuration names it.
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for CaFile {}

impl CaFile {
    /// Reads every authority; at least one.
    pub fn read(&self) -> Result<Arc<RootCertStore>, Problem> {
        let problem = |what: String, hint: &str| Problem {
            what,
            hint: hint.to_owned(),
            ..self.place.clone()
        };
        let roots = authorities(&self.path).map_err(|(what, hint)| problem(what, hint))?;
        Ok(Arc::new(roots))
    }
}

/// Every authority of a PEM file; at least one. The error is what is wrong, and the mend.
pub fn authorities(file: &Path) -> Result<RootCertStore, (String, &'static str)> {
    let mut roots = RootCertStore::empty();
    for authority in read_certificates(file)? {
        roots.add(authority).map_err(|error| {
            (
                format!("a certificate in `{}` is no authority: {error}", file.display()),
                "name the file with the certificate of whoever signs the other side's",
            )
        })?;
    }
    Ok(roots)
}

/// `ca` of somebody who is asked at `url`. Read at once, so that a fault in it is told before somebody is asked.
pub(super) fn ca_of(
    file: Option<&str>,
    (url, insecure): (&str, bool),
    path: &str,
    cx: &mut Cx,
) -> Option<CaFile> {
    let path = format!("{path}.ca");
    let (file, place) = (cx.resolve(file?), cx.here(&path));
    let unasked = "a ca that is not asked";
    if insecure {
        cx.error(&path, unasked, "remove one of ca and insecure");
    } else if url.starts_with("http://") {
        cx.error(&path, unasked, "write https:// in the address, or remove ca");
    }
    cx.read.push(file.clone());
    let ca = CaFile { path: file, place };
    if let Err(problem) = ca.read() {
        cx.error(&path, problem.what, problem.hint);
    }
    Some(ca)
}

pub(super) fn compile(config: Option<&UpstreamTlsConfig>, path: &str, cx: &mut Cx) -> UpstreamTls {
    let Some(config) = config else {
        return UpstreamTls::default();
    };
    let identity = match (&config.certificate, &config.key) {
        (Some(certificate), Some(key)) => Some(CertificateFiles::at(path, certificate, key, cx)),
        (Some(_), None) => {
            cx.error(path, "a certificate without its key", "add key: client.key");
            None
        }
        (None, Some(_)) => {
            cx.error(
                path,
                "a key without its certificate",
                "add certificate: client.pem",
            );
            None
        }
        (None, None) => None,
    };
    let ca = config.ca.as_ref().map(|file| {
        let file = cx.resolve(file);
        cx.read.push(file.clone());
        CaFile {
            path: file,
            place: cx.here(&format!("{path}.ca")),
        }
    });
    let verify_path = format!("{path}.insecureSkipVerify");
    if config.insecure_skip_verify && ca.is_some() {
        cx.error(
            &verify_path,
            "a ca that is not asked",
            "remove one of ca and insecureSkipVerify",
        );
    } else if config.insecure_skip_verify {
        cx.warn(
            &verify_path,
            "anybody on the way can read and change what these endpoints are sent",
            "name their authority with ca",
        );
    }
    UpstreamTls {
        ca,
        server_name: config
            .server_name
            .as_ref()
            .and_then(|name| server_name(name, &format!("{path}.serverName"), cx)),
        identity,
        alpn: alpn(config.alpn.as_deref(), path, cx),
        verify: !config.insecure_skip_verify,
    }
}

fn server_name(name: &str, path: &str, cx: &mut Cx) -> Option<ServerName<'static>> {
    match ServerName::try_from(name.to_owned()) {
        Ok(name) => Some(name),
        Err(_) => {
            cx.error(
                path,
                format!("`{name}` is not a host name"),
                "write for example orders.internal",
            );
            None
        }
    }
}

fn alpn(list: Option<&[Located<AlpnConfig>]>, path: &str, cx: &mut Cx) -> Vec<&'static str> {
    let Some(list) = list else {
        return UpstreamTls::default().alpn;
    };
    let mut offered = Vec::new();
    for Located { path, value } in list {
        let name = match value {
            AlpnConfig::Http2 => "h2",
            AlpnConfig::Http1 => "http/1.1",
        };
        if offered.contains(&name) {
            cx.error(path, format!("{name} stands here twice"), "remove one");
        }
        offered.push(name);
    }
    if list.is_empty() {
        cx.error(
            &format!("{path}.alpn"),
            "no protocol at all",
            "write [h2, http/1.1], or one of them",
        );
    }
    offered
}
