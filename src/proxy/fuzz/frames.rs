//! Following HTTP/2 frames: however the bytes are cut, the same frames are seen, and they are those that are there.

use crate::proxy::frames::{Follower, Frame};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
/// The end of a stream and of its fields.
const LAST: u8 = 5;

/// The input is a connection's bytes behind the preface.
pub fn frames(input: &[u8]) {
    let all = followed(input.chunks(usize::MAX));
    // One by one, and in pieces of lengths that the input itself chooses.
    assert_eq!(followed(input.chunks(1)), all);
    let length = 1 + input.first().map_or(0, |byte| usize::from(*byte) % 40);
    assert_eq!(followed(input.chunks(length)), all, "in pieces of {length}");

    let (seen, _) = all;
    let there = there(input);
    // Behind a frame of a wrong length nothing is promised: the library ends the connection there.
    assert_eq!(seen.get(..there.len()), Some(&there[..]));
}

fn followed<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<(u8, u8, u32)>, bool) {
    let (mut follower, mut seen) = (Follower::default(), Vec::new());
    let note = |frame: Frame| {
        let error = if [RST_STREAM, GOAWAY].contains(&frame.kind) {
            frame.error
        } else {
            0
        };
        (frame.kind, frame.flags, error)
    };
    for piece in pieces {
        follower.follow(piece, |frame| seen.push(note(frame)));
    }
    (seen, follower.is_within())
}

/// The frames up to the first that is cut off before what is looked at has come, or whose length is none that its kind may have.
fn there(mut bytes: &[u8]) -> Vec<(u8, u8, u32)> {
    let mut found = Vec::new();
    while let [a, b, c, kind, flags, _, _, _, _, rest @ ..] = bytes {
        let length = usize::from(*a) * 65536 + usize::from(*b) * 256 + usize::from(*c);
        let code = match *kind {
            RST_STREAM if length == 4 => rest.get(..4),
            GOAWAY if length >= 8 => rest.get(4..8),
            WINDOW_UPDATE if length == 4 => rest.get(..4).map(|_| &[0; 4][..]),
            RST_STREAM | GOAWAY | WINDOW_UPDATE => None,
            SETTINGS if rest.len() < length.min(54) => None,
            // So short that all of it is looked at.
            HEADERS if *flags == LAST && length <= 5 && rest.len() < length => None,
            _ => Some(&[0; 4][..]),
        };
        let Some(code) = code else { break };
        let error = code.iter().fold(0, |code, byte| code * 256 + u32::from(*byte));
        found.push((*kind, *flags, error));
        bytes = rest.get(length..).unwrap_or_default();
    }
    found
}
