//! Where an instance of a version listens: `http://host:port`, `h2c://…`, `https://…`, `unix:/path` or `unix+h2c:/path`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

/// What is spoken on an endpoint's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// HTTP/1.1 in clear text.
    Http,
    /// HTTP/2 in clear text, by prior knowledge.
    H2c,
    /// HTTP over TLS.
    Https,
    /// HTTP/1.1 over a Unix socket.
    Unix,
    /// HTTP/2 over a Unix socket, by prior knowledge.
    UnixH2c,
}

impl Scheme {
    /// Whether it is a Unix socket: the host is its path, and there is no port.
    pub const fn is_unix(self) -> bool {
        matches!(self, Scheme::Unix | Scheme::UnixH2c)
    }

    /// Whether HTTP/2 is spoken without being asked for first.
    pub const fn is_h2c(self) -> bool {
        matches!(self, Scheme::H2c | Scheme::UnixH2c)
    }
}

/// A checked endpoint address. `http://a` and `http://a:80/` are the same endpoint.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EndpointUrl {
    scheme: Scheme,
    /// Host name or address without brackets; the path for a Unix socket.
    host: Arc<str>,
    port: u16,
}

/// An endpoint address that cannot be used, and how one is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{url}` is not an endpoint: {why}; write http://HOST:PORT, h2c://HOST:PORT, https://HOST:PORT, unix:/PATH or unix+h2c:/PATH"
)]
pub struct BadEndpoint {
    url: String,
    why: &'static str,
}

impl EndpointUrl {
    /// What is spoken there.
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host name or IP address (IPv6 without brackets); the path for a Unix socket.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port; 0 for a Unix socket.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The address, when the host is one and needs no resolving.
    pub fn ip(&self) -> Option<IpAddr> {
        if self.scheme.is_unix() {
            None
        } else {
            self.host.parse().ok()
        }
    }

    /// `host:port` as a Host field names it (IPv6 in brackets); `localhost` for a Unix socket.
    pub fn authority(&self) -> String {
        match self.scheme {
            Scheme::Unix | Scheme::UnixH2c => "localhost".to_owned(),
            Scheme::Http | Scheme::H2c | Scheme::Https => {
                if self.host.contains(':') {
                    format!("[{}]:{}", self.host, self.port)
                } else {
                    format!("{}:{}", self.host, self.port)
                }
            }
        }
    }
}

impl FromStr for EndpointUrl {
    type Err = BadEndpoint;

    fn from_str(url: &str) -> Result<Self, BadEndpoint> {
        let bad = |why| BadEndpoint {
            url: url.to_owned(),
            why,
        };
        let unix = |(prefix, scheme)| Some((url.strip_prefix(prefix)?, scheme));
        if let Some((path, scheme)) = [("unix:", Scheme::Unix), ("unix+h2c:", Scheme::UnixH2c)]
            .into_iter()
            .find_map(unix)
        {
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.starts_with('/') || path.len() > 107 || path.contains('\0') {
                return Err(bad("a Unix socket needs an absolute path of at most 107 bytes"));
            }
            return Ok(EndpointUrl {
                scheme,
                host: Arc::from(path),
                port: 0,
            });
        }
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| bad("the scheme is missing"))?;
        let (scheme, default_port) = match scheme {
            "http" => (Scheme::Http, 80),
            "h2c" => (Scheme::H2c, 80),
            "https" => (Scheme::Https, 443),
            _ => return Err(bad("the scheme is not known")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(bad("it has a path; Serin forwards the path of each request"));
        }
        if authority.contains('@') {
            // What stands before the `@` is nobody's to read in a log.
            let host = authority.rsplit('@').next().unwrap_or_default();
            return Err(BadEndpoint {
                url: format!("…@{host}"),
                why: "it carries a user name",
            });
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, after) = v6
                    .split_once(']')
                    .ok_or_else(|| bad("the bracket is not closed"))?;
                host.parse::<std::net::Ipv6Addr>()
                    .map_err(|_| bad("what stands in brackets is not an IPv6 address"))?;
                match after.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None if after.is_empty() => (host, None),
                    None => return Err(bad("something follows the bracket")),
                }
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let named = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if host.is_empty() || (!host.contains(':') && !host.bytes().all(named)) || host.len() > 253 {
            return Err(bad("the host is not a name or an address"));
        }
        if is_numeric(host) && host.parse::<IpAddr>().is_err() {
            return Err(bad(
                "the host is a number, and no IPv4 address of four decimal parts",
            ));
        }
        let port = match port {
            None => default_port,
            Some(port) => match port.parse::<u16>() {
                Ok(port) if port > 0 && !port_has_sign(authority) => port,
                _ => return Err(bad("the port is not between 1 and 65535")),
            },
        };
        Ok(EndpointUrl {
            scheme,
            host: Arc::from(host.to_ascii_lowercase()),
            port,
        })
    }
}

/// Whether some would read the host as an IPv4 address (`127.1`, `0x7f.1`, `2130706433`): its last part is a number. Nobody
/// shall have to guess where such a thing leads.
fn is_numeric(host: &str) -> bool {
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or("");
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    let is_hex = hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    is_hex || !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit())
}

/// `u16::from_str` accepts `+80`; an endpoint does not.
fn port_has_sign(authority: &str) -> bool {
    authority.contains(":+")
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            Scheme::Unix => write!(f, "unix:{}", self.host),
            Scheme::UnixH2c => write!(f, "unix+h2c:{}", self.host),
            Scheme::Http => write!(f, "http://{}", self.authority()),
            Scheme::H2c => write!(f, "h2c://{}", self.authority()),
            Scheme::Https => write!(f, "https://{}", self.authority()),
        }
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for EndpointUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EndpointUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_shows_with_its_port() {
        for (text, shown) in [
            ("http://127.0.0.1:9001", "http://127.0.0.1:9001"),
            ("http://Orders.Example/", "http://orders.example:80"),
            ("https://a", "https://a:443"),
            ("h2c://[::1]:50051", "h2c://[::1]:50051"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
            ("unix+h2c:///run/app.sock", "unix+h2c:/run/app.sock"),
        ] {
            let url: EndpointUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(url.to_string().parse::<EndpointUrl>().unwrap(), url);
        }
    }

    #[test]
    fn what_is_not_an_endpoint_is_refused_with_the_reason() {
        for (text, part) in [
            ("127.0.0.1:9001", "scheme is missing"),
            ("ftp://a", "not known"),
            ("http://a/b", "path"),
            ("http://u@a", "user"),
            ("http://", "host"),
            ("http://a:0", "port"),
            ("http://a:+80", "port"),
            ("http://a:99999", "port"),
            ("http://[::1", "bracket"),
            ("http://a b", "host"),
            ("http://127.1", "number"),
            ("http://2130706433:80", "number"),
            ("http://0x7f000001", "number"),
            ("http://0177.0.0.1", "number"),
            ("http://127.0.0.0x1", "number"),
            ("http://10.0.0.256", "number"),
            ("http://169.254.169.254.", "number"),
            ("unix:relative", "absolute"),
            ("unix+h2c:relative", "absolute"),
            ("unix+https:/run/app.sock", "scheme"),
        ] {
            let error = text.parse::<EndpointUrl>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
