//! `dns`: how the names of endpoints are resolved.

use super::cx::Cx;
use super::decode::Located;
use crate::model::Span;
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};

/// How names are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Who is asked; none: the system's hosts file and the servers of its resolv.conf.
    pub servers: Vec<SocketAddr>,
    /// How long one server may take; 2s.
    pub timeout: Span,
    /// A name is looked up again when its time to live is over, and after this at the latest; 30s.
    pub refresh: Span,
}

impl Default for Dns {
    fn default() -> Self {
        Dns {
            servers: Vec::new(),
            timeout: Span::secs(2),
            refresh: Span::secs(30),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct DnsConfig {
    /// `10.0.0.53` or `10.0.0.53:5353`. Absent: the system's hosts file and resolv.conf.
    #[serde(default)]
    servers: Vec<Located<String>>,
    /// Absent: 2s.
    timeout: Option<Span>,
    /// Absent: 30s.
    refresh: Option<Span>,
}

impl DnsConfig {
    pub(super) fn compile(&self, cx: &mut Cx) -> Dns {
        let default = Dns::default();
        let mut servers = Vec::new();
        for Located { path, value: text } in &self.servers {
            let bare = text.trim_start_matches('[').trim_end_matches(']');
            let server = text.parse().ok();
            let server = server.or_else(|| bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53)));
            match server {
                Some(server) => servers.push(server),
                None => cx.error(
                    path,
                    format!("`{text}` is not a DNS server's address"),
                    "write for example 10.0.0.53 or 10.0.0.53:5353",
                ),
            }
        }
        for (key, value) in [("timeout", self.timeout), ("refresh", self.refresh)] {
            if value.is_some_and(Span::is_zero) {
                let path = format!("dns.{key}");
                cx.error(
                    &path,
                    "no time at all would resolve nothing",
                    "write for example 2s",
                );
            }
        }
        Dns {
            servers,
            timeout: self.timeout.unwrap_or(default.timeout),
            refresh: self.refresh.unwrap_or(default.refresh),
        }
    }
}
