//! The PROXY protocol: in whatever pieces a header comes, it means one thing, and that is the client it names.

use crate::proxy::proxy_protocol::{Header, LONGEST, parse};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The input is what a connection begins with.
pub fn proxy_protocol(input: &[u8]) {
    let all = parse(input);
    let whole = match all {
        Ok(Some(header)) => header.length,
        Ok(None) | Err(_) => input.len(),
    };
    assert!(whole <= input.len(), "longer than what there is");
    // Every cut of the beginning, and of what is long a few.
    for end in (0..input.len()).filter(|end| *end < 300 || end % 97 == 0) {
        match parse(&input[..end]) {
            Ok(None) => assert!(
                all.is_err() || all == Ok(None) || end < whole,
                "undecided at {end}"
            ),
            Ok(Some(found)) => assert!(all == Ok(Some(found)) && end >= whole, "another header at {end}"),
            Err(why) => assert_eq!(all, Err(why), "refused at {end}"),
        }
    }
    assert!(all != Ok(None) || input.len() < LONGEST, "nothing decides");
    if let Ok(Some(header)) = all {
        let (head, rest) = input.split_at(header.length);
        assert_eq!(parse(head), all, "what follows matters: {}", rest.escape_ascii());
        assert_eq!(header.source, named(head), "another client");
        written_again(header);
    }
}

/// The client of a header that is known to be whole, read in another way.
fn named(head: &[u8]) -> Option<IpAddr> {
    if let Some(line) = std::str::from_utf8(head)
        .ok()
        .and_then(|text| text.strip_prefix("PROXY TCP"))
    {
        let mut words = line.split(' ');
        let kind = words.next();
        let ip: IpAddr = words.next()?.parse().expect("an address");
        assert_eq!(kind, Some(if ip.is_ipv4() { "4" } else { "6" }));
        assert!(line.ends_with("\r\n") && line.split(' ').count() == 5);
        return Some(ip);
    }
    if head.starts_with(b"PROXY") {
        assert!(head.starts_with(b"PROXY UNKNOWN") && head.ends_with(b"\r\n"));
        return None;
    }
    let length = usize::from(head[14]) * 256 + usize::from(head[15]);
    assert!(head.starts_with(b"\r\n\r\n\0\r\nQUIT\n") && length + 16 == head.len());
    match (head[12], head[13] >> 4) {
        (0x21, 1) => Some(Ipv4Addr::new(head[16], head[17], head[18], head[19]).into()),
        (0x21, 2) => {
            let mut octets = [0; 16];
            octets.copy_from_slice(&head[16..32]);
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

/// The same client in the other version's words.
fn written_again(header: Header) {
    let Some(source) = header.source else { return };
    let kind = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let line = format!("PROXY {kind} {source} {source} 1 65535\r\n");
    let again = parse(line.as_bytes()).expect("a header").expect("a whole header");
    assert_eq!((again.source, again.length), (Some(source), line.len()));
}
