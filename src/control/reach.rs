//! Which endpoints a deploy may name. A CI token must not make Serin send the users' requests, and with them their
//! credentials, to wherever it likes: not into the cloud's metadata, not to Serin itself, nowhere the operator did not allow.

use super::{Refusal, RefusalKind, managed::Managed};
use crate::{
    config::{BindAddress, Config},
    model::{EndpointUrl, Scheme, VersionName},
};
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
};

impl Managed {
    /// Whether a deploy may name these endpoints; those already known are never refused.
    pub(super) fn allow(
        &self,
        config: &Config,
        version: &VersionName,
        endpoints: &[EndpointUrl],
    ) -> Result<(), Refusal> {
        let known = self
            .saved
            .version(version)
            .map(|version| version.endpoints.as_slice());
        for endpoint in endpoints {
            if known.is_some_and(|known| known.contains(endpoint)) {
                continue;
            }
            let forbidden = |message: String, hint: &str| {
                Err(Refusal::new(RefusalKind::Forbidden, "endpointNotAllowed", message).hint(hint))
            };
            if is_link_local(endpoint) {
                return forbidden(
                    format!("{endpoint} is a link-local address, where clouds keep their credentials"),
                    "name the address that the instance serves at",
                );
            }
            if let Some(what) = own(config, endpoint) {
                return forbidden(
                    format!("{endpoint} is Serin's own {what}: its requests would come back to it"),
                    "name the address that the instance serves at",
                );
            }
            if !self.config.deploy.allows(endpoint) {
                return forbidden(
                    format!("{endpoint} is not among the endpoints that a deploy may name"),
                    "add its network or host to deploy.allowedEndpoints of the service",
                );
            }
        }
        Ok(())
    }
}

fn is_link_local(endpoint: &EndpointUrl) -> bool {
    match endpoint.ip().map(|ip| ip.to_canonical()) {
        Some(IpAddr::V4(ip)) => ip.is_link_local(),
        Some(IpAddr::V6(ip)) => ip.is_unicast_link_local(),
        None => false,
    }
}

/// Which of our own addresses an endpoint is, if it is one.
fn own(config: &Config, endpoint: &EndpointUrl) -> Option<String> {
    let is_tcp = |address: &SocketAddr| leads_to(endpoint, address);
    let is_unix = |path: &Path| endpoint.scheme() == Scheme::Unix && Path::new(endpoint.host()) == path;
    if is_tcp(&config.admin.address) || is_unix(&config.admin.socket) {
        return Some("admin address".to_owned());
    }
    if config.telemetry.as_ref().is_some_and(is_tcp) {
        return Some("telemetry address".to_owned());
    }
    let listener = config.listeners.iter().find(|listener| match &listener.address {
        BindAddress::Tcp(address) => is_tcp(address),
        BindAddress::Unix(path) => is_unix(path),
    })?;
    Some(format!("listener `{}`", listener.name))
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
