//! Who is the client of a connection that came through a load balancer? The PROXY protocol, versions 1 and 2.
//!
//! Pure, and takes bytes as they come: of any beginning of a header it says that more is needed, never something else than
//! of the whole. Names of fields and sizes are those of HAProxy's `proxy-protocol.txt`. Who may send such a header and how
//! long that may take is `arrival`'s.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest header. A line of version 1 has 107 bytes at most. Version 2 could announce 64 KiB; what is sent in fact are
/// addresses and a few TLVs, the largest of them a certificate. 16 KiB is what HAProxy itself takes.
pub const LONGEST: usize = 16 + V2_BLOCK;

const V1_LINE: usize = 107;
const V2_BLOCK: usize = 16 * 1024;
const V1: &[u8] = b"PROXY ";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The TLV with a checksum of the header.
const PP2_TYPE_CRC32C: u8 = 0x03;

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How many bytes it takes; what follows is the client's.
    pub length: usize,
    /// The client; none: the connection is the sender's own, or the client has no IP address.
    pub source: Option<IpAddr>,
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

impl Malformed {
    /// It ended before it was whole.
    pub const CUT_OFF: Malformed = Malformed("its PROXY header is cut off");
}

/// Reads the header that a connection begins with. `None`: it has not come whole.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    if begins(bytes, V2) {
        version2(bytes)
    } else if begins(bytes, V1) {
        version1(bytes)
    } else {
        Err(Malformed("it does not begin with a PROXY header"))
    }
}

/// Whether they agree as far as both go.
fn begins(bytes: &[u8], mark: &[u8]) -> bool {
    bytes.iter().zip(mark).all(|(byte, expected)| byte == expected)
}

/// `PROXY TCP4 192.0.2.1 192.0.2.9 56324 443`, ended by CR LF.
fn version1(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let line = bytes.get(..V1_LINE).unwrap_or(bytes);
    let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
        return if line.len() < V1_LINE {
            Ok(None)
        } else {
            Err(Malformed("its PROXY line does not end within 107 bytes"))
        };
    };
    let line = line[..end]
        .strip_suffix(b"\r")
        .ok_or(Malformed("its PROXY line ends with LF alone"))?;
    let mut words = line.split(|byte| *byte == b' ').skip(1);
    let source = match words.next().unwrap_or_default() {
        // Whatever follows is not looked at.
        b"UNKNOWN" => None,
        b"TCP4" => Some(addresses::<Ipv4Addr>(words)?.into()),
        b"TCP6" => Some(addresses::<Ipv6Addr>(words)?.into()),
        _ => {
            return Err(Malformed(
                "its PROXY line names a protocol other than TCP4, TCP6 and UNKNOWN",
            ));
        }
    };
    Ok(Some(Header {
        length: end + 1,
        source,
    }))
}

/// The first of two addresses and two ports.
fn addresses<'a, A: std::str::FromStr>(mut words: impl Iterator<Item = &'a [u8]>) -> Result<A, Malformed> {
    let malformed = Malformed("its PROXY line does not hold two addresses of its kind and two ports");
    let mut address = || -> Option<A> { std::str::from_utf8(words.next()?).ok()?.parse().ok() };
    let (source, destination) = (address(), address());
    let ports = [words.next(), words.next()];
    match (source, destination, words.next()) {
        (Some(source), Some(_), None) if ports.iter().all(|port| port.is_some_and(is_port)) => Ok(source),
        _ => Err(malformed),
    }
}

/// A decimal number up to 65535 without zeros before it.
fn is_port(word: &[u8]) -> bool {
    let number = std::str::from_utf8(word)
        .ok()
        .and_then(|text| text.parse::<u16>().ok());
    number.is_some() && word.iter().all(u8::is_ascii_digit) && (word.len() == 1 || word[0] != b'0')
}

/// A signature, command, family, length, then a block of addresses and TLVs.
fn version2(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some((head, rest)) = bytes.split_first_chunk::<16>() else {
        return Ok(None);
    };
    let [.., command, family, high, low] = *head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > V2_BLOCK {
        return Err(Malformed("its PROXY header has more than 16 KiB"));
    }
    let local = match command {
        0x20 => true,
        0x21 => false,
        _ => {
            return Err(Malformed(
                "its PROXY header has a version or command that does not exist",
            ));
        }
    };
    // What a connection of the sender's own says of families is not looked at.
    let size = if local { 0 } else { size_of_addresses(family)? };
    if length < size {
        return Err(Malformed("its PROXY header is too short for its addresses"));
    }
    let Some(block) = rest.get(..length) else {
        return Ok(None);
    };
    let mut source = None;
    if !local {
        check_tlvs(&bytes[..16 + length], 16 + size)?;
        source = match (size, block) {
            (12, [a, b, c, d, ..]) => Some(Ipv4Addr::new(*a, *b, *c, *d).into()),
            (36, block) => block.first_chunk::<16>().map(|ip| Ipv6Addr::from(*ip).into()),
            // Unspecified, or Unix sockets at the load balancer: no address that means anything here.
            _ => None,
        };
    }
    Ok(Some(Header {
        length: 16 + length,
        source,
    }))
}

/// Of both addresses, with their ports: TCP or UDP over IPv4 or IPv6, Unix sockets, or none.
fn size_of_addresses(family: u8) -> Result<usize, Malformed> {
    match (family >> 4, family & 15) {
        (0, 0..=2) => Ok(0),
        (1, 0..=2) => Ok(12),
        (2, 0..=2) => Ok(36),
        (3, 0..=2) => Ok(216),
        _ => Err(Malformed(
            "its PROXY header has a family or protocol that does not exist",
        )),
    }
}

/// What a sender adds must fill the rest of the header; its checksum must hold.
fn check_tlvs(header: &[u8], from: usize) -> Result<(), Malformed> {
    let cut_off = Malformed("its PROXY header has an addition (TLV) that is cut off");
    let mut at = from;
    let mut checked = false;
    while at < header.len() {
        let [kind, high, low] = *header[at..].first_chunk::<3>().ok_or(cut_off)?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let value = header.get(at + 3..at + 3 + length).ok_or(cut_off)?;
        if kind == PP2_TYPE_CRC32C {
            let expected = value.try_into().map(u32::from_be_bytes).ok();
            if checked || expected != Some(crc32c(header, at + 3)) {
                return Err(Malformed("its PROXY header has a checksum that does not hold"));
            }
            checked = true;
        }
        at += 3 + length;
    }
    Ok(())
}

/// CRC-32C of a header, of which four bytes count as zero: those of the checksum itself.
fn crc32c(header: &[u8], zero: usize) -> u32 {
    let bytes = header.iter().enumerate().map(|(at, byte)| {
        let counts = at < zero || at >= zero + 4;
        if counts { *byte } else { 0 }
    });
    !bytes.fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(bytes: &[u8]) -> Option<IpAddr> {
        let header = parse(bytes).unwrap().unwrap();
        assert_eq!(header.length, bytes.len());
        header.source
    }

    fn ip(text: &str) -> Option<IpAddr> {
        text.parse().ok()
    }

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [V2, &[command, family], &length, block].concat()
    }

    /// 192.0.2.1:4000 -> 192.0.2.9:443
    const INET: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 9, 0x0f, 0xa0, 1, 0xbb];

    fn inet6() -> Vec<u8> {
        let source: Ipv6Addr = "2001:db8::1".parse().unwrap();
        [&source.octets()[..], &[0; 16], &[1, 2, 3, 4]].concat()
    }

    #[test]
    fn version_1_names_its_client() {
        assert_eq!(
            whole(b"PROXY TCP4 192.0.2.1 192.0.2.9 56324 443\r\n"),
            ip("192.0.2.1")
        );
        assert_eq!(
            whole(b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 0\r\n"),
            ip("255.255.255.255")
        );
        assert_eq!(whole(b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n"), ip("2001:db8::1"));
        assert_eq!(
            whole(b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n"),
            ip("::ffff:192.0.2.1")
        );
        for unknown in [
            &b"PROXY UNKNOWN\r\n"[..],
            b"PROXY UNKNOWN ffff:f...f:ffff ffff 65535 65535\r\n",
            b"PROXY UNKNOWN \xff\0 \r\n",
        ] {
            assert_eq!(whole(unknown), None);
        }
    }

    #[test]
    fn what_follows_a_header_is_not_part_of_it() {
        let header = parse(b"PROXY TCP4 192.0.2.1 192.0.2.9 1 2\r\nPROXY TCP4 10.0.0.1\r\n").unwrap();
        assert_eq!(header.unwrap().length, 36);
        let bytes = [v2(0x21, 0x11, &INET), b"\r\n\r\n\0\r\nQUIT\n".to_vec()].concat();
        assert_eq!(parse(&bytes).unwrap().unwrap().length, 28);
    }

    #[test]
    fn version_1_has_one_way_to_be_written() {
        for bad in [
            "PROXY TCP4 192.0.2.1 192.0.2.9 56324 443\n",
            "PROXY TCP4 192.0.2.1 192.0.2.9 56324\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.9 56324 443 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.9 56324 443 \r\n",
            "PROXY TCP4  192.0.2.1 192.0.2.9 56324 443\r\n",
            "PROXY TCP4\t192.0.2.1 192.0.2.9 56324 443\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.9 56324 65536\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.9 56324 +443\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.9 56324 0443\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.9 56324 \r\n",
            "PROXY TCP4 192.0.2.01 192.0.2.9 56324 443\r\n",
            "PROXY TCP4 192.0.2 192.0.2.9 56324 443\r\n",
            "PROXY TCP4 192.0.2.1 ::1 56324 443\r\n",
            "PROXY TCP4 ::1 ::1 56324 443\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.9 56324 443\r\n",
            "PROXY TCP6 fe80::1%lo ::1 56324 443\r\n",
            "PROXY TCP6 [::1] ::1 56324 443\r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.9 56324 443\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY unknown\r\n",
            "PROXY \r\n",
            "PROXY\r\n",
            "proxy TCP4 192.0.2.1 192.0.2.9 56324 443\r\n",
            " PROXY TCP4 192.0.2.1 192.0.2.9 56324 443\r\n",
            "GET / HTTP/1.1\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "\x16\x03\x01",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_line_ends_within_107_bytes() {
        let line = |rest: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(rest)).into_bytes();
        assert_eq!(line(91).len(), 107);
        assert_eq!(whole(&line(91)), None);
        assert!(parse(&line(92)).is_err());
        assert_eq!(parse(&line(200)[..106]), Ok(None));
        assert!(parse(&line(200)[..107]).is_err());
    }

    #[test]
    fn version_2_names_its_client() {
        assert_eq!(whole(&v2(0x21, 0x11, &INET)), ip("192.0.2.1"));
        assert_eq!(whole(&v2(0x21, 0x12, &INET)), ip("192.0.2.1"));
        assert_eq!(whole(&v2(0x21, 0x21, &inet6())), ip("2001:db8::1"));
    }

    #[test]
    fn a_local_connection_and_one_without_ip_addresses_name_nobody() {
        // LOCAL says nothing, whatever stands in it.
        for block in [&[][..], &INET, &[4, 0xff, 0xff]] {
            for family in [0x00, 0x11, 0xff] {
                assert_eq!(whole(&v2(0x20, family, block)), None);
            }
        }
        assert_eq!(whole(&v2(0x21, 0x00, &[])), None);
        assert_eq!(whole(&v2(0x21, 0x31, &[b'/'; 216])), None);
    }

    #[test]
    fn a_version_2_that_does_not_exist_is_refused() {
        for (command, family) in [
            (0x22, 0x11),
            (0x2f, 0x11),
            (0x11, 0x11),
            (0x31, 0x11),
            (0x01, 0x11),
            (0x21, 0x41),
            (0x21, 0xf1),
            (0x21, 0x13),
            (0x21, 0x1f),
            (0x21, 0x03),
        ] {
            // Known from the first 16 bytes on.
            let bytes = v2(command, family, &INET);
            assert!(parse(&bytes[..16]).is_err(), "{command:x} {family:x}");
            assert_eq!(parse(&bytes[..15]), Ok(None));
        }
        assert!(parse(&v2(0x21, 0x11, &INET[..11])).is_err());
        assert!(parse(&v2(0x21, 0x21, &inet6()[..35])).is_err());
        assert!(parse(&v2(0x21, 0x31, &[b'/'; 215])).is_err());
        let mut wrong = v2(0x21, 0x11, &INET);
        wrong[4] = b'0';
        assert!(parse(&wrong).is_err());
    }

    #[test]
    fn additions_are_skipped_when_they_fill_their_header() {
        let with = |tlvs: &[u8]| parse(&v2(0x21, 0x11, &[&INET[..], tlvs].concat()));
        let good = [&[0xea, 0, 3][..], b"vpc", &[4, 0, 0], &[0x20, 0, 1, 9]].concat();
        assert_eq!(with(&good).unwrap().unwrap().source, ip("192.0.2.1"));
        for bad in [&[4][..], &[4, 0], &[4, 0, 1], &[4, 0xff, 0xff, 1], &[4, 0, 0, 4]] {
            assert!(with(bad).is_err(), "{bad:?}");
        }
        // Without addresses too.
        assert!(parse(&v2(0x21, 0x00, &[4, 0, 1])).is_err());
    }

    #[test]
    fn the_longest_block_is_16_kib() {
        let block = |length: usize| {
            let value = length - INET.len() - 3;
            let tlv = [&[4][..], &u16::try_from(value).unwrap().to_be_bytes()].concat();
            [&INET[..], &tlv, &vec![0; value]].concat()
        };
        let longest = v2(0x21, 0x11, &block(16 * 1024));
        assert_eq!(longest.len(), LONGEST);
        assert_eq!(whole(&longest), ip("192.0.2.1"));
        assert!(parse(&v2(0x21, 0x11, &block(16 * 1024 + 1))[..16]).is_err());
    }

    #[test]
    fn a_checksum_must_hold() {
        // The check value of CRC-32C.
        assert_eq!(crc32c(b"123456789", 9), 0xe306_9283);
        let with = |crc: &[u8], times: usize| {
            let tlv = [&[PP2_TYPE_CRC32C, 0, u8::try_from(crc.len()).unwrap()][..], crc].concat();
            v2(0x21, 0x11, &[&INET[..], &tlv.repeat(times)].concat())
        };
        let zero = with(&[0; 4], 1);
        let right = crc32c(&zero, zero.len() - 4).to_be_bytes();
        assert_eq!(whole(&with(&right, 1)), ip("192.0.2.1"));
        let mut changed = with(&right, 1);
        changed[16] = 10;
        for bad in [zero, changed, with(&right[..3], 1), with(&right, 2)] {
            assert!(parse(&bad).is_err());
        }
    }

    /// Headers that are nearly right.
    fn headers() -> impl Strategy<Value = Vec<u8>> {
        let line = "PROXY (TCP4|TCP6|UNKNOWN|X) ?[0-9a-f.:]{0,12} 192.0.2.[0-9]{1,3} [0-9]{1,6} ?[0-9]{0,5}\r?\n[a-z]{0,9}";
        let block = (
            0u8..=255,
            0u8..=255,
            any::<u16>(),
            prop::collection::vec(any::<u8>(), 0..60),
        );
        prop_oneof![
            line.prop_map(String::into_bytes),
            block.prop_map(|(command, family, length, rest)| {
                let (command, family) = (0x20 | command & 3, family & 0x33);
                [V2, &[command, family], &(length & 63).to_be_bytes(), &rest].concat()
            }),
            prop::collection::vec(any::<u8>(), 0..200),
        ]
    }

    proptest! {
        #[test]
        fn bytes_mean_the_same_in_whatever_pieces_they_come(bytes in headers()) {
            let all = parse(&bytes);
            let header = if let Ok(Some(header)) = all { header.length } else { bytes.len() };
            prop_assert!(header <= bytes.len().min(LONGEST));
            for end in 0..=bytes.len() {
                let part = parse(&bytes[..end]);
                match part {
                    Ok(None) => prop_assert!(all.is_err() || all == Ok(None) || end < header, "{}", end),
                    Ok(Some(found)) => prop_assert!(all == Ok(Some(found)) && end >= found.length, "{}", end),
                    Err(why) => prop_assert_eq!(all, Err(why)),
                }
            }
        }

        #[test]
        fn a_client_is_understood_as_it_was_sent(source: u32, port: u16, rest in prop::collection::vec(any::<u8>(), 0..20)) {
            let source = Ipv4Addr::from(source);
            let line = format!("PROXY TCP4 {source} 192.0.2.9 {port} {port}\r\n");
            let mut block = INET;
            block[..4].copy_from_slice(&source.octets());
            for header in [line.into_bytes(), v2(0x21, 0x11, &block)] {
                let bytes = [&header[..], &rest].concat();
                let expected = Header { length: header.len(), source: Some(source.into()) };
                prop_assert_eq!(parse(&bytes), Ok(Some(expected)));
            }
        }
    }
}
