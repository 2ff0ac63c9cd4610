//! Which addresses are Serin itself: requests that are sent there come back, or reach the API.

use super::compiled::{BindAddress, Config};
use crate::model::{EndpointUrl, Scheme};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
};

/// Where Serin listens, and what for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Own(Vec<(String, BindAddress)>);

/// What the admin address is called.
const ADMIN: &str = "admin address";
/// What the telemetry address is called.
const TELEMETRY: &str = "telemetry address";

/// What a listener is called.
fn of_listener(name: &str) -> String {
    format!("listener `{name}`")
}

impl Own {
    pub(super) fn of(config: &Config) -> Own {
        let (admin, telemetry) = (&config.admin, config.telemetry);
        let mut own = vec![
            (ADMIN.to_owned(), BindAddress::Tcp(admin.address)),
            (ADMIN.to_owned(), BindAddress::Unix(admin.socket.clone())),
        ];
        own.extend(telemetry.map(|address| (TELEMETRY.to_owned(), BindAddress::Tcp(address))));
        let listeners = config.listeners.iter();
        own.extend(listeners.map(|one| (of_listener(&one.name), one.address.clone())));
        let bound = config.bound.iter();
        own.extend(bound.map(|(what, address)| (what.clone(), BindAddress::Tcp(*address))));
        Own(own)
    }

    /// What listens at an address, if that is us.
    pub(super) fn at(&self, ip: IpAddr, port: u16) -> Option<&str> {
        self.find(|bound| match bound {
            BindAddress::Tcp(bound) => leads_to(ip, port, bound),
            BindAddress::Unix(_) => false,
        })
    }

    fn at_socket(&self, path: &Path) -> Option<&str> {
        self.find(|bound| match bound {
            BindAddress::Tcp(_) => false,
            BindAddress::Unix(bound) => same_file(path, bound),
        })
    }

    fn find(&self, is: impl Fn(&BindAddress) -> bool) -> Option<&str> {
        let (what, _) = self.0.iter().find(|(_, bound)| is(bound))?;
        Some(what)
    }
}

impl Config {
    /// The same, listening at these addresses: ports that were left to the system are known only when they are bound, and
    /// what a service manager passes may be bound elsewhere than is written.
    #[must_use]
    pub fn listening_at(
        self: Arc<Config>,
        listeners: &[(String, Option<SocketAddr>)],
        admin: Option<SocketAddr>,
        telemetry: Option<SocketAddr>,
    ) -> Arc<Config> {
        let listeners = listeners
            .iter()
            .filter_map(|(name, address)| Some((of_listener(name), (*address)?)));
        let admin = admin.map(|address| (ADMIN.to_owned(), address));
        let telemetry = telemetry.map(|address| (TELEMETRY.to_owned(), address));
        self.bound_at(admin.into_iter().chain(telemetry).chain(listeners).collect())
    }

    /// The same, listening where another one does.
    #[must_use]
    pub fn listening_like(self: Arc<Config>, other: &Config) -> Arc<Config> {
        self.bound_at(other.bound.clone())
    }

    fn bound_at(self: Arc<Config>, bound: Vec<(String, SocketAddr)>) -> Arc<Config> {
        let config = Arc::unwrap_or_clone(self);
        Arc::new(Config { bound, ..config })
    }

    /// Which of our own addresses an endpoint is, as far as its address is written; names are judged when they are resolved.
    pub fn own_address(&self, endpoint: &EndpointUrl) -> Option<String> {
        let own = Own::of(self);
        let what = match (endpoint.scheme(), endpoint.ip()) {
            (Scheme::Unix | Scheme::UnixH2c, _) => own.at_socket(Path::new(endpoint.host())),
            (Scheme::Http | Scheme::H2c | Scheme::Https, Some(ip)) => own.at(ip, endpoint.port()),
            (Scheme::Http | Scheme::H2c | Scheme::Https, None) => {
                let is_local = endpoint
                    .host()
                    .trim_end_matches('.')
                    .eq_ignore_ascii_case("localhost");
                is_local
                    .then(|| own.at(Ipv4Addr::LOCALHOST.into(), endpoint.port()))
                    .flatten()
            }
        };
        what.map(str::to_owned)
    }
}

/// Whether a connection to `ip` and `port` would arrive at a socket that is bound to `address`.
fn leads_to(ip: IpAddr, port: u16, address: &SocketAddr) -> bool {
    if port != address.port() {
        return false;
    }
    let (ip, bound) = (ip.to_canonical(), address.ip().to_canonical());
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

    fn leads(ip: &str, port: u16, address: &str) -> bool {
        leads_to(ip.parse().unwrap(), port, &address.parse().unwrap())
    }

    #[test]
    fn an_address_is_our_own_however_it_is_written() {
        for ip in ["127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0", "::"] {
            assert!(leads(ip, 9900, "127.0.0.1:9900"), "{ip}");
            assert!(leads(ip, 9900, "0.0.0.0:9900"), "{ip}");
        }
        // All of that network is this machine.
        for ip in ["127.0.0.2", "127.255.0.1", "::ffff:127.0.0.2"] {
            assert!(
                leads(ip, 9900, "0.0.0.0:9900") && leads(ip, 9900, "[::]:9900"),
                "{ip}"
            );
            assert!(!leads(ip, 9900, "127.0.0.1:9900"), "{ip}");
        }
        assert!(!leads("127.0.0.1", 9901, "127.0.0.1:9900"));
        assert!(!leads("10.9.8.7", 9900, "127.0.0.1:9900"));
        assert!(
            !leads("192.0.2.7", 8080, "0.0.0.0:8080"),
            "another machine may use the same port"
        );
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
