//! DNS messages as far as addresses need them: one question out, its addresses and their time to live in.
//!
//! Pure. Everything that comes in is somebody else's bytes: what does not fit is an error, never a panic. Names in answers
//! are skipped, not read: a recursive server has already followed aliases, and the addresses it adds are the answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The kinds of address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

impl Family {
    const fn code(self) -> u16 {
        match self {
            Family::V4 => 1,
            Family::V6 => 28,
        }
    }
}

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// These addresses, for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// The name is known and has no such address.
    Empty,
    /// There is no such name.
    NoSuchName,
    /// It is too long for this transport: ask over TCP.
    Truncated,
    /// The server cannot or will not say (its response code).
    Failed(u8),
}

const CLASS_IN: u16 = 1;
/// Recursion desired.
const FLAGS: u16 = 0x0100;
const HEADER: usize = 12;

/// A question for the addresses of `name`; none when that is not a name that can be asked for.
pub(super) fn question(id: u16, name: &str, family: Family) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(HEADER + name.len() + 6);
    for field in [id, FLAGS, 1, 0, 0, 0] {
        message.extend(field.to_be_bytes());
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || name.len() > 253 {
        return None;
    }
    for label in name.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..=63).contains(length))?;
        message.push(length);
        message.extend(label.to_ascii_lowercase().bytes());
    }
    message.push(0);
    message.extend(family.code().to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    Some(message)
}

/// Reads the answer to `question`; none when these bytes are not one.
pub(super) fn answer(bytes: &[u8], question: &[u8], family: Family) -> Option<Answer> {
    let asked = question.get(HEADER..)?;
    let mut reader = Reader { bytes, at: 0 };
    let (id, flags) = (reader.u16()?, reader.u16()?);
    let (questions, answers) = (reader.u16()?, reader.u16()?);
    reader.skip(4)?;
    let is_ours =
        bytes.get(..2) == question.get(..2) && flags & 0x8000 != 0 && id.to_be_bytes() == bytes[..2];
    let echoed = reader.take(asked.len())?;
    if !is_ours || questions != 1 || !echoed.eq_ignore_ascii_case(asked) {
        return None;
    }
    match u8::try_from(flags & 0x000f).ok()? {
        0 => {}
        3 => return Some(Answer::NoSuchName),
        code => return Some(Answer::Failed(code)),
    }
    if flags & 0x0200 != 0 {
        return Some(Answer::Truncated);
    }
    let (mut addresses, mut lowest) = (Vec::new(), u32::MAX);
    for _ in 0..answers {
        reader.skip_name()?;
        let (kind, class) = (reader.u16()?, reader.u16()?);
        let ttl = reader.u32()?;
        let length = usize::from(reader.u16()?);
        let data = reader.take(length)?;
        // An alias bounds the time to live like an address does.
        lowest = lowest.min(ttl);
        if class != CLASS_IN || kind != family.code() {
            continue;
        }
        let address = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?)),
        };
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Some(if addresses.is_empty() {
        Answer::Empty
    } else {
        Answer::Addresses(addresses, lowest)
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn skip(&mut self, length: usize) -> Option<()> {
        self.take(length).map(|_| ())
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn skip_name(&mut self) -> Option<()> {
        loop {
            match self.take(1)?.first().copied()? {
                0 => return Some(()),
                // A pointer ends a name.
                pointer if pointer & 0xc0 == 0xc0 => return self.skip(1),
                label if label & 0xc0 == 0 => self.skip(usize::from(label))?,
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An answer with these records: (name as a pointer, kind, ttl, data).
    fn reply(question: &[u8], flags: u16, records: &[(u16, u32, &[u8])]) -> Vec<u8> {
        let mut bytes = question.to_vec();
        bytes[2..4].copy_from_slice(&flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&u16::try_from(records.len()).unwrap().to_be_bytes());
        for (kind, ttl, data) in records {
            bytes.extend([0xc0, 12]);
            bytes.extend(kind.to_be_bytes());
            bytes.extend(1u16.to_be_bytes());
            bytes.extend(ttl.to_be_bytes());
            bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend(*data);
        }
        bytes
    }

    #[test]
    fn addresses_come_with_the_shortest_time_to_live_of_their_answer() {
        let asked = question(7, "app.Example.com.", Family::V4).unwrap();
        let alias = b"\x03www\xc0\x0c";
        let records: [(u16, u32, &[u8]); 3] =
            [(5, 9, alias), (1, 300, &[10, 0, 0, 1]), (1, 60, &[10, 0, 0, 2])];
        let said = answer(&reply(&asked, 0x8180, &records), &asked, Family::V4);
        let expected = vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        assert_eq!(said, Some(Answer::Addresses(expected, 9)));
    }

    #[test]
    fn no_address_no_name_and_trouble_are_told_apart() {
        let asked = question(7, "app", Family::V6).unwrap();
        let said = |flags| answer(&reply(&asked, flags, &[]), &asked, Family::V6);
        assert_eq!(said(0x8180), Some(Answer::Empty));
        assert_eq!(said(0x8183), Some(Answer::NoSuchName));
        assert_eq!(said(0x8182), Some(Answer::Failed(2)));
        assert_eq!(said(0x8380), Some(Answer::Truncated));
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let asked = question(7, "app", Family::V4).unwrap();
        for other in [
            question(8, "app", Family::V4),
            question(7, "apq", Family::V4),
            question(7, "app", Family::V6),
        ] {
            let bytes = reply(&other.unwrap(), 0x8180, &[(1, 1, &[10, 0, 0, 1])]);
            assert_eq!(answer(&bytes, &asked, Family::V4), None);
        }
        assert_eq!(answer(&reply(&asked, 0x0100, &[]), &asked, Family::V4), None);
    }

    #[test]
    fn what_is_not_a_name_is_not_asked() {
        let long = "a".repeat(64);
        for name in ["", ".", "a..b", long.as_str()] {
            assert_eq!(question(1, name, Family::V4), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_can_do_harm(tail: Vec<u8>, flags: u16, count: u8) {
            let asked = question(7, "app.example", Family::V4).unwrap();
            let mut bytes = reply(&asked, flags | 0x8000, &[]);
            bytes[7] = count;
            bytes.extend(&tail);
            let _ = answer(&bytes, &asked, Family::V4);
            let _ = answer(&tail, &asked, Family::V4);
        }

        /// One byte of a good answer is another one, or its end is missing: no address comes out of nothing, and names that
        /// point to themselves or beyond the message are no work.
        #[test]
        fn a_damaged_answer_says_nothing_new(at: prop::sample::Index, with in 1u8.., cut: prop::sample::Index) {
            let asked = question(7, "app.example", Family::V4).unwrap();
            let alias = b"\x03www\xc0\x0c";
            let records: [(u16, u32, &[u8]); 3] = [(5, 9, alias), (1, 300, &[10, 0, 0, 1]), (1, 60, &[10, 0, 0, 2])];
            let good = reply(&asked, 0x8180, &records);
            let mut damaged = good.clone();
            damaged[at.index(good.len())] ^= with;
            if let Some(Answer::Addresses(found, _)) = answer(&damaged, &asked, Family::V4) {
                prop_assert!(found.len() <= 2);
                // What else is different lies in the one byte.
                let intact = found.iter().filter(|ip| ["10.0.0.1", "10.0.0.2"].contains(&ip.to_string().as_str()));
                prop_assert!(intact.count() + 1 >= found.len());
            }
            let end = cut.index(good.len());
            let said = answer(&good[..end], &asked, Family::V4);
            prop_assert!(said.is_none(), "{said:?}");
        }
    }
}
