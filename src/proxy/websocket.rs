//! Where WebSocket frames begin and end (RFC 6455 5.2), so that a close frame can be put between two of them.
//!
//! Nothing is checked here: what the two sides say to each other is theirs.

/// Follows the frames of one direction.
#[derive(Debug, Default)]
pub(super) struct Edge {
    /// The bytes of a frame's head read so far; its first two say how long it is.
    head: [u8; 14],
    have: usize,
    payload: u64,
}

impl Edge {
    pub(super) fn follow(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload > 0 {
                let here = usize::try_from(self.payload)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                self.payload -= u64::try_from(here).unwrap_or(0);
                bytes = bytes.get(here..).unwrap_or_default();
                continue;
            }
            if let Some(free) = self.head.get_mut(self.have) {
                *free = *first;
            }
            (self.have, bytes) = (self.have + 1, rest);
            if self.have >= 2 && self.have == self.length() {
                self.payload = self.announced();
                self.have = 0;
            }
        }
    }

    pub(super) const fn is_between_frames(&self) -> bool {
        self.have == 0 && self.payload == 0
    }

    /// How long the head is.
    const fn length(&self) -> usize {
        let extended = match self.head[1] & 127 {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.head[1] & 128 == 0 { 0 } else { 4 };
        2 + extended + mask
    }

    fn announced(&self) -> u64 {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
        match self.head[1] & 127 {
            126 => number(&self.head[2..4]),
            127 => number(&self.head[2..10]),
            length => u64::from(length),
        }
    }
}

/// A close frame with status 1001, "going away"; a client's is masked with four of these bits.
pub(super) fn going_away(mask: Option<u64>) -> Vec<u8> {
    let status = 1001u16.to_be_bytes();
    let Some(mask) = mask else {
        return [&[0x88, 2], &status[..]].concat();
    };
    let [a, b, c, d, ..] = mask.to_be_bytes();
    vec![0x88, 0x82, a, b, c, d, status[0] ^ a, status[1] ^ b]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 128 } else { 0 };
        let mut bytes = vec![0x82];
        match u16::try_from(length) {
            Ok(short @ 0..126) => bytes.push(mask | u8::try_from(short).unwrap()),
            Ok(short) => {
                bytes.push(mask + 126);
                bytes.extend(short.to_be_bytes());
            }
            Err(_) => {
                bytes.push(mask + 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(vec![7; length + if masked { 4 } else { 0 }]);
        bytes
    }

    #[test]
    fn the_space_between_frames_is_found_however_the_bytes_are_cut() {
        for masked in [false, true] {
            for length in [0, 1, 125, 126, 65_535, 65_536] {
                let bytes = frame(length, masked);
                for size in [1, 3, 7, bytes.len()] {
                    let (mut edge, mut done) = (Edge::default(), 0);
                    for piece in bytes.chunks(size) {
                        assert_eq!(edge.is_between_frames(), done == 0, "{length} after {done}");
                        edge.follow(piece);
                        done += piece.len();
                    }
                    assert!(edge.is_between_frames(), "{length} in pieces of {size}");
                }
            }
        }
    }

    #[test]
    fn a_close_frame_says_1001_and_a_clients_is_masked() {
        assert_eq!(going_away(None), [0x88, 2, 3, 0xe9]);
        let masked = going_away(Some(0x0102_0304_0000_0000));
        assert_eq!(masked, [0x88, 0x82, 1, 2, 3, 4, 3 ^ 1, 0xe9 ^ 2]);
    }
}
