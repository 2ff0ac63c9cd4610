//! Where endpoints may lead that are not the operator's own words: addresses that names resolve to, and what a deploy names.
//!
//! A name is allowed when it is deployed and leads somewhere only when it is resolved, to another place each time if whoever
//! runs its domain likes. So every answer is judged again (`upstream` does it), by what stands here.

use super::compiled::{Config, DeployRule, Service};
use super::own::Own;
use crate::model::EndpointUrl;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Metadata services outside the link-local networks: Azure, Alibaba Cloud, AWS and Google Cloud over IPv6.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x254)),
];

/// An address as a connection to it sees it: IPv4 within IPv6 is IPv4, also behind a translator (`64:ff9b::/96`).
fn plain(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6)
            if v6
                .octets()
                .starts_with(&[0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0]) =>
        {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        other @ (IpAddr::V4(_) | IpAddr::V6(_)) => other,
    }
}

/// Why neither a name nor a deploy may lead to this address, whatever is allowed.
pub fn forbidden(ip: IpAddr) -> Option<&'static str> {
    let ip = plain(ip);
    let (link_local, broadcast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.is_broadcast()),
        IpAddr::V6(ip) => (ip.is_unicast_link_local(), false),
    };
    if link_local {
        return Some("a link-local address, where clouds keep their credentials");
    }
    if METADATA.contains(&ip) {
        return Some("a cloud's metadata service");
    }
    (ip.is_unspecified() || ip.is_multicast() || broadcast).then_some("not the address of one machine")
}

/// Which addresses the names of a service's endpoints may have.
#[derive(Debug, Clone, Default)]
pub struct Reach(Arc<Rules>);

#[derive(Debug, Default)]
struct Rules {
    own: Own,
    deploy: DeployRule,
    /// Names that the file itself gives to versions.
    named: Vec<String>,
}

impl Reach {
    /// What a configuration says about one of its services.
    pub fn of(config: &Config, service: &Service) -> Reach {
        let blocks = service.stable.iter().chain(&service.canary);
        let hosts = blocks.flat_map(|block| &block.endpoints);
        Reach(Arc::new(Rules {
            own: Own::of(config),
            deploy: service.deploy.clone(),
            named: hosts.map(|endpoint| endpoint.host().to_owned()).collect(),
        }))
    }

    /// Why an endpoint's name may not lead to this address; none: it may.
    pub fn refusal(&self, endpoint: &EndpointUrl, ip: IpAddr) -> Option<String> {
        if let Some(why) = forbidden(ip) {
            return Some(why.to_owned());
        }
        if let Some(what) = self.0.own.at(ip, endpoint.port()) {
            return Some(format!("Serin's own {what}"));
        }
        let is_written = self.0.named.iter().any(|host| host == endpoint.host());
        let allowed = is_written || self.0.deploy.allows_at(endpoint.host(), plain(ip));
        (!allowed).then(|| "not among the networks of deploy.allowedEndpoints".to_owned())
    }
}

impl DeployRule {
    /// Whether a name that a deploy may use may lead to this address: where networks are listed beside the names, into one of
    /// them. Otherwise a name that is listed may lead anywhere, and one that only a pattern covers not to this machine.
    fn allows_at(&self, host: &str, ip: IpAddr) -> bool {
        let covers = |entry: &&String| entry.as_str() == host || is_below(host, entry);
        let mut covering = self.hosts.iter().filter(covers).peekable();
        // Brought in when the list was another one.
        if !self.listed || covering.peek().is_none() || self.networks.iter().any(|net| net.contains(&ip)) {
            return true;
        }
        self.networks.is_empty() && (!ip.is_loopback() || covering.any(|entry| entry == host))
    }
}

/// Whether `host` is a name under the pattern `*.example.com`.
pub(super) fn is_below(host: &str, pattern: &str) -> bool {
    let suffix = pattern.strip_prefix('*');
    suffix.is_some_and(|suffix| host.len() > suffix.len() && host.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn metadata_services_and_what_is_no_machine_are_forbidden_however_they_are_written() {
        for text in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "fe80::1",
            "fd00:ec2::254",
            "168.63.129.16",
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
        ] {
            assert!(forbidden(ip(text)).is_some(), "{text}");
        }
        for text in [
            "127.0.0.1",
            "::1",
            "10.0.0.1",
            "fd00::1",
            "64:ff9b::a00:1",
            "203.0.113.7",
        ] {
            assert_eq!(forbidden(ip(text)), None, "{text}");
        }
    }

    #[test]
    fn a_name_leads_into_the_networks_that_are_listed_beside_it() {
        let rule = |hosts: &[&str], networks: &[&str]| DeployRule {
            listed: true,
            networks: networks.iter().map(|net| net.parse().unwrap()).collect(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            sockets: Vec::new(),
        };
        for (hosts, networks, host, at, expected) in [
            (&["*.test"][..], &["10.0.0.0/8"][..], "a.test", "10.1.2.3", true),
            (&["*.test"], &["10.0.0.0/8"], "a.test", "192.168.0.1", false),
            (&["a.test"], &["10.0.0.0/8"], "a.test", "203.0.113.7", false),
            (&["a.test"], &["127.0.0.0/8"], "a.test", "127.0.0.2", true),
            // Names alone: the operator vouches for one that he wrote, and for a pattern except to this machine.
            (&["a.test"], &[], "a.test", "127.0.0.1", true),
            (&["*.test"], &[], "a.test", "10.1.2.3", true),
            (&["*.test"], &[], "a.test", "127.0.0.1", false),
            (&["*.test"], &[], "a.test", "::1", false),
            (&["*.test", "a.test"], &[], "a.test", "127.0.0.1", true),
            // No longer on the list: it stays where it is.
            (&["b.test"], &["10.0.0.0/8"], "a.test", "203.0.113.7", true),
        ] {
            let allowed = rule(hosts, networks).allows_at(host, ip(at));
            assert_eq!(allowed, expected, "{host} at {at} by {hosts:?} {networks:?}");
        }
    }
}
