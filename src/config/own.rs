//! Which endpoints are Serin itself: requests that are sent there come back, or reach the API.

use super::compiled::{BindAddress, Config};
use crate::model::{EndpointUrl, Scheme};
use std::{
    net::{SocketAddr, UdpSocket},
    path::Path,
};

impl Config {
    /// Which of our own addresses an endpoint is, if it is one.
    pub fn own_address(&self, endpoint: &EndpointUrl) -> Option<String> {
        let is_tcp = |address: &SocketAddr| leads_to(endpoint, address);
        let is_unix = |path: &Path| endpoint.scheme() == Scheme::Unix && Path::new(endpoint.host()) == path;
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
}
