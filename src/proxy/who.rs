//! Who asks, when proxies that we trust stand in between.
//!
//! Pure. `force` and the access log go by it, so it must never say an address that an untrusted client could choose.

use http::HeaderMap;
use ipnet::IpNet;
use std::net::IpAddr;

/// Behind a trusted peer: the nearest address in `X-Forwarded-For` that is not a trusted proxy, or the peer itself where
/// the list says nothing that can be read.
pub(super) fn asks(peer: IpAddr, trusted: &[IpNet], headers: &HeaderMap) -> IpAddr {
    // From the end: each proxy appends whom it saw. What stands before an entry that cannot be read is not believed.
    let lines: Vec<&[u8]> = headers
        .get_all("x-forwarded-for")
        .iter()
        .map(http::HeaderValue::as_bytes)
        .collect();
    for entry in lines.iter().rev().flat_map(|line| line.rsplit(|b| *b == b',')) {
        match address(entry) {
            Some(ip) if trusted.iter().any(|net| net.contains(&ip)) => {}
            Some(ip) => return ip,
            None => return peer,
        }
    }
    peer
}

fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    let ip: IpAddr = text.trim_matches([' ', '\t']).parse().ok()?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn said(lines: &[&[u8]]) -> String {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", HeaderValue::from_bytes(line).unwrap());
        }
        asks("10.0.0.1".parse().unwrap(), &trusted, &headers).to_string()
    }

    #[test]
    fn the_nearest_address_that_is_no_trusted_proxy_asks() {
        assert_eq!(said(&[]), "10.0.0.1");
        assert_eq!(said(&[b"203.0.113.9"]), "203.0.113.9");
        assert_eq!(said(&[b"192.0.2.1, 203.0.113.9, 10.0.0.7"]), "203.0.113.9");
        assert_eq!(
            said(&[b"192.0.2.1", b"::ffff:203.0.113.9 ,10.0.0.7"]),
            "203.0.113.9"
        );
        assert_eq!(said(&[b"10.0.0.8, 10.0.0.7"]), "10.0.0.1");
    }

    #[test]
    fn nothing_is_believed_that_stands_before_what_cannot_be_read() {
        for line in [
            &b"192.0.2.1, unknown"[..],
            b"192.0.2.1, ",
            b"192.0.2.1, 203.0.113.9:80",
        ] {
            assert_eq!(said(&[line]), "10.0.0.1", "{}", line.escape_ascii());
        }
        // The client's own line, then one that it spoiled and the proxy appended the client's address to.
        assert_eq!(said(&[b"192.0.2.1", b"\xff, 203.0.113.9"]), "203.0.113.9");
        assert_eq!(said(&[b"192.0.2.1", b"\xff"]), "10.0.0.1");
    }
}
