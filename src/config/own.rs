//! Which endpoints are Serin itself: requests that are sent there come back, or reach the API.

use super::compiled::{BindAddress, Config};
use crate::model::{EndpointUrl, Scheme};
use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::MetadataExt,
    path::Path,
};

impl Config {
    /// Which of our own addresses an endpoint is, if it is one.
    pub fn own_address(&self, endpoint: &EndpointUrl) -> Option<String> {
        let is_tcp = |address: &SocketAddr| leads_to(endpoint, address);
        let is_unix =
            |path: &Path| endpoint.scheme() == Scheme::Unix && same_file(Path::new(endpoint.host()), path);
        if is_tcp(&self.admin.address) || is_unix(&self.admin.socket) {
            return Some("admin address".to_owned());
        }
        if self.telemetry.as_ref().is_some_and(is_tcp) {
            return Some("telemetry address".to_owned());
        }
        let listener = self.listeners.iter().find(|listener| match &listener.address {
            BindAddress::Tcp(address) => is_tcp(address),
            BindAddress::Unix(path) => is_unix(path),
        })?;
        Some(format!("listener `{}`", listener.name))
    }
}

/// Whether a connection to the endpoint would arrive at a socket that is bound to `address`.
fn leads_to(endpoint: &EndpointUrl, address: &SocketAddr) -> bool {
    if endpoint.scheme() == Scheme::Unix || endpoint.port() != address.port() {
        return false;
    }
    let bound = address.ip().to_canonical();
    let ip = match endpoint.ip() {
        Some(ip) => ip.to_canonical(),
        None if endpoint.host().eq_ignore_ascii_case("localhost") => {
            return bound.is_loopback() || bound.is_unspecified();
        }
        None => return false,
    };
    if ip.is_unspecified() {
        return bound.is_loopback() || bound.is_unspecified();
    }
    // A socket on every address is met at each address of this machine: those that a socket can be bound to.
    ip == bound || bound.is_unspecified() && (ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok())
}

/// Whether two paths lead to one file, also where one is relative or goes by a link. What is no file yet is its path.
fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    match (identity(one), identity(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => std::path::absolute(one).ok() == std::path::absolute(other).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leads(endpoint: &str, address: &str) -> bool {
        leads_to(&endpoint.parse().unwrap(), &address.parse().unwrap())
    }

    #[test]
    fn an_endpoint_is_our_own_however_it_is_written() {
        for endpoint in [
            "http://127.0.0.1:9900",
            "h2c://localhost:9900",
            "http://[::ffff:127.0.0.1]:9900",
            "http://0.0.0.0:9900",
        ] {
            assert!(leads(endpoint, "127.0.0.1:9900"), "{endpoint}");
            assert!(leads(endpoint, "0.0.0.0:9900"), "{endpoint}");
        }
        assert!(!leads("http://127.0.0.1:9901", "127.0.0.1:9900"));
        assert!(!leads("http://10.9.8.7:9900", "127.0.0.1:9900"));
        assert!(
            !leads("http://192.0.2.7:8080", "0.0.0.0:8080"),
            "another machine may use the same port"
        );
        assert!(!leads("http://orders.internal:9900", "127.0.0.1:9900"));
    }

    #[test]
    fn a_socket_is_our_own_by_whatever_path() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let ours = at("serin.sock");
        // Nothing is there yet.
        assert!(same_file(&at("./serin.sock"), &ours) && !same_file(&at("other.sock"), &ours));
        fs::write(&ours, "").unwrap();
        std::os::unix::fs::symlink(&ours, at("link")).unwrap();
        fs::hard_link(&ours, at("hard")).unwrap();
        fs::create_dir(at("down")).unwrap();
        for path in ["link", "hard", "down/../serin.sock", "serin.sock"] {
            assert!(same_file(&at(path), &ours), "{path}");
        }
        assert!(!same_file(&at("down"), &ours) && !same_file(&at("other.sock"), &ours));
    }
}
