//! Which `Host` a request may name: the guard against DNS rebinding.
//!
//! A web page can make a browser resolve the page's own name to 127.0.0.1 and talk to the admin address as that name.
//! A literal IP address cannot be rebound, `localhost` is nobody's to rebind, and the names of `admin.hosts` are the operator's
//! own; every other name is refused. Over TLS nothing is checked here: the browser has found out by the certificate that the
//! page's name is not ours.

use super::Problem;
use arc_swap::ArcSwap;
use http::{HeaderMap, StatusCode, Uri, header};
use std::{net::IpAddr, sync::Arc};

/// The names of `admin.hosts` in force, in lower case; replaced when the configuration has changed. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Hosts(Arc<ArcSwap<Vec<String>>>);

impl Hosts {
    /// These names.
    pub fn new(hosts: Vec<String>) -> Hosts {
        Hosts(Arc::new(ArcSwap::from_pointee(hosts)))
    }

    /// Takes other names from now on.
    pub fn replace(&self, hosts: Vec<String>) {
        self.0.store(Arc::new(hosts));
    }

    /// Refuses a request that does not name this address by IP, as `localhost` or by one of these names.
    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let mut named = headers.get_all(header::HOST).iter();
        let host = match (named.next(), named.next()) {
            (Some(host), None) => host.to_str().unwrap_or_default(),
            _ => "",
        };
        // An absolute request target names a host too.
        let target = uri.authority().map(http::uri::Authority::as_str);
        if self.is_own(host) && target.is_none_or(|target| self.is_own(target)) {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "foreignHost",
            format!("the admin address is not known as `{host}`"),
        )
        .hint(
            "add the name to `admin.hosts` in the configuration, name it by its IP address or as `localhost`, or serve it over \
             TLS (`admin.tls`)",
        ))
    }

    fn is_own(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => match rest.split_once(']') {
                Some((name, port)) if port.is_empty() || is_port(port.strip_prefix(':')) => name,
                _ => return false,
            },
            None => match host.rsplit_once(':') {
                Some((name, port)) if is_port(Some(port)) => name,
                Some(_) => return false,
                None => host,
            },
        };
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok()
            || self.0.load().iter().any(|own| own.eq_ignore_ascii_case(name))
    }
}

fn is_port(port: Option<&str>) -> bool {
    port.is_some_and(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        Hosts::new(vec!["serin.internal".to_owned()]).check(uri, headers)
    }

    fn allowed(hosts: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, host.parse().unwrap());
        }
        check(&Uri::from_static("/"), &headers).is_ok()
    }

    #[test]
    fn own_names_are_taken_and_foreign_ones_refused() {
        for own in [
            "127.0.0.1",
            "127.0.0.1:9900",
            "[::1]:9900",
            "[::1]",
            "localhost",
            "LocalHost:9900",
            "10.0.0.7:9900",
            "serin.internal",
            "Serin.Internal:9900",
        ] {
            assert!(allowed(&[own]), "{own}");
        }
        for foreign in [
            "evil.example",
            "evil.example:9900",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "localhost:",
            "localhost:x",
            "a@localhost",
            "a.serin.internal",
            "serin.internal.evil.example",
            "serin.internal:x",
            "[serin.internal]x",
            "[::1]evil",
            "::1:9900x",
        ] {
            assert!(!allowed(&[foreign]), "{foreign}");
        }
    }

    #[test]
    fn one_host_must_be_named_exactly_once() {
        assert!(!allowed(&[]));
        assert!(!allowed(&["localhost", "evil.example"]));
    }

    #[test]
    fn a_foreign_absolute_target_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "localhost".parse().unwrap());
        assert!(check(&Uri::from_static("http://evil.example/v1/services"), &headers).is_err());
        assert!(check(&Uri::from_static("http://localhost/v1/services"), &headers).is_ok());
    }
}
