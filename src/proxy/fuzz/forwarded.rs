//! Forwarded fields: who is believed, and what the version is told of the way.

use super::head::{self, Passed, REQUEST_ID, all};
use crate::{
    config::Mode,
    proxy::{headers::Peer, who},
};
use http::HeaderValue;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr};

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));

/// The input is a request head. A client at the edge says nothing about itself; a trusted one is appended to; who asks is
/// never an address that only an untrusted client has written.
pub fn forwarded(input: &[u8]) {
    for mode in [Mode::Edge, Mode::Sidecar] {
        for trusted_proxy in [false, true] {
            let Some(before) = head::read(input) else { return };
            let address = HeaderValue::from_static("10.0.0.7");
            let peer = Peer::new(address, mode, trusted_proxy, false);
            let Some(passed) = head::pass(before, &peer) else {
                return;
            };
            assert_eq!(peer.trusted, trusted_proxy || mode == Mode::Sidecar);
            if peer.trusted {
                appended(&passed);
            } else {
                overwritten(&passed);
            }
            let via = all(&passed.headers, "via");
            assert!(via.len() == 1 && via[0].ends_with(b" serin"), "{via:?}");
            assert_eq!(all(&passed.headers, "x-request-id").len(), 1);
        }
    }
    asks(input);
}

fn overwritten(passed: &Passed) {
    let is = |name: &str, value: &str| {
        assert_eq!(all(&passed.headers, name), [value.as_bytes()], "{name}");
    };
    is("x-forwarded-for", "10.0.0.7");
    is("x-forwarded-proto", "http");
    is("x-request-id", REQUEST_ID);
    if passed.authority.is_empty() {
        assert!(all(&passed.headers, "x-forwarded-host").is_empty());
    } else {
        is("x-forwarded-host", &passed.authority);
    }
    for name in ["forwarded", "x-real-ip", "x-forwarded-port"] {
        assert!(!passed.headers.contains_key(name), "{name}");
    }
}

fn appended(passed: &Passed) {
    let (before, after) = (&passed.before.headers, &passed.headers);
    let mut lines = all(before, "x-forwarded-for");
    lines.push(b"10.0.0.7");
    assert_eq!(all(after, "x-forwarded-for"), [lines.join(&b", "[..])]);
    for name in [
        "x-forwarded-proto",
        "x-forwarded-host",
        "forwarded",
        "x-real-ip",
        "x-forwarded-port",
    ] {
        let said = all(before, name);
        assert!(said.is_empty() || said == all(after, name), "{name}: {said:?}");
    }
    assert!(after.contains_key("x-forwarded-proto"));
    let (said, told) = (all(before, "x-request-id"), all(after, "x-request-id"));
    assert!(told == [REQUEST_ID.as_bytes()] || told == said, "{told:?}");
    assert!(told[0].len() <= 128 && told[0].iter().all(u8::is_ascii_graphic));
}

/// Behind the trusted peer, and once more behind ourselves.
fn asks(input: &[u8]) {
    let Some(before) = head::read(input) else { return };
    let trusted: [IpNet; 2] = ["10.0.0.0/8", "2001:db8::/32"].map(|net| net.parse().expect("a network"));
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|net| net.contains(ip));
    let said = who::asks(PEER, &trusted, &before.headers);
    assert!(said == PEER || !is_trusted(&said), "{said}");

    // Everything that stands before the nearest stranger is his own word.
    let mut known = before.headers.clone();
    let list = all(&before.headers, "x-forwarded-for").join(&b","[..]);
    known.remove("x-forwarded-for");
    for (client, expected) in [("203.0.113.9", "203.0.113.9"), ("10.9.9.9", "")] {
        let line = [&list[..], b"," as &[u8], client.as_bytes()].concat();
        let Ok(line) = HeaderValue::from_bytes(&line) else {
            return;
        };
        known.insert("x-forwarded-for", line);
        let found = who::asks(PEER, &trusted, &known);
        if expected.is_empty() {
            assert_eq!(found, said, "one trusted proxy more");
        } else {
            assert_eq!(found.to_string(), expected);
        }
    }

    // A second proxy that trusts us comes to the same answer, unless we could not read the list.
    let peer = Peer::new(HeaderValue::from_static("10.0.0.7"), Mode::Edge, true, false);
    if let Some(passed) = head::pass(before, &peer) {
        let next: IpAddr = Ipv4Addr::new(10, 0, 0, 8).into();
        let told = who::asks(next, &trusted, &passed.headers);
        assert!(told == said || said == PEER, "{said} here, {told} behind us");
    }
}
