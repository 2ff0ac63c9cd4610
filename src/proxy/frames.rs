//! What passes on an HTTP/2 connection of a client, frame by frame: no more of each than its header.
//!
//! The HTTP/2 library refuses malformed requests by itself, past every service: here its `RST_STREAM` and `GOAWAY` frames are
//! seen on their way out and counted, and its answer to a head that is too large, a lone `:status`.
//!
//! On the way in this knows whether something has begun that must be completed soon (a half frame, an open header block),
//! which an idle connection has not, and ends a connection whose client sends control frames faster than anybody needs them:
//! the library answers each, memory stays flat, and the work is ours (CVE-2019-9512, 9513, 9515). The same holds for streams
//! that are reset when a version has been asked already; the library limits only those that are reset before (CVE-2023-44487).

use super::{closing::Resets, io::Progress, worker::ListenerState};
use crate::{metrics::Rejection, upstream::setting};
use std::{
    collections::HashSet,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// Control frames that a client may send within [`WINDOW`].
const MOST_CONTROL: u32 = 1000;
const WINDOW: Duration = Duration::from_secs(1);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Streams on one connection whose answers are remembered to have begun.
const MOST_ANSWERING: usize = 4096;

/// The longest header block that can be a lone `:status`: its name's index, a length, three digits.
const STATUS: usize = 5;
/// What is looked at of SETTINGS: nine of them, where clients send up to seven.
const MOST_SETTINGS: usize = 9 * 6;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// A frame's header, and its error code where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) length: usize,
    /// The error of `RST_STREAM` and `GOAWAY`, how much a `WINDOW_UPDATE` adds.
    pub(super) error: u32,
    /// The window that SETTINGS give each stream.
    pub(super) window: Option<u32>,
    /// The last header block of a stream, with one field in it that can be a `:status`.
    pub(super) lone: bool,
}

/// Follows one direction.
#[derive(Debug)]
pub(super) struct Follower {
    /// The header, and of `RST_STREAM`, `GOAWAY` and `WINDOW_UPDATE` the bytes up to the number, of SETTINGS and of a short
    /// block of fields all of it.
    head: [u8; 9 + MOST_SETTINGS],
    have: usize,
    /// Bytes of a payload that are still to come.
    skip: usize,
}

impl Default for Follower {
    fn default() -> Self {
        Follower {
            head: [0; 9 + MOST_SETTINGS],
            have: 0,
            skip: 0,
        }
    }
}

impl Follower {
    /// Takes the next bytes and tells of each frame whose header is complete.
    pub(super) fn follow(&mut self, mut bytes: &[u8], mut on_frame: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(bytes.len());
                self.skip -= n;
                bytes = bytes.get(n..).unwrap_or_default();
                continue;
            }
            let n = (self.wanted() - self.have).min(bytes.len());
            let (taken, rest) = bytes.split_at(n);
            if let Some(free) = self.head.get_mut(self.have..self.have + n) {
                free.copy_from_slice(taken);
            }
            (self.have, bytes) = (self.have + n, rest);
            if self.have == self.wanted() {
                let [_, _, _, kind, flags, ..] = self.head;
                let number = |bytes: &[u8]| bytes.iter().fold(0, |code, byte| code << 8 | u32::from(*byte));
                let error = self.head.get(self.have - 4..self.have).unwrap_or_default();
                let block = self.head.get(9..self.have).unwrap_or_default();
                let length = self.length();
                on_frame(Frame {
                    kind,
                    flags,
                    stream: number(&self.head[5..9]) & 0x7fff_ffff,
                    length,
                    error: number(error),
                    window: (kind == SETTINGS).then(|| window(block, length)).flatten(),
                    lone: kind == HEADERS && is_lone_status(block),
                });
                self.skip = length.saturating_sub(self.have - 9);
                self.have = 0;
            }
        }
    }

    fn length(&self) -> usize {
        let [a, b, c, ..] = self.head;
        usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)
    }

    /// How many bytes of the frame being read must be looked at.
    fn wanted(&self) -> usize {
        if self.have < 9 {
            return 9;
        }
        match self.head[3] {
            RST_STREAM | WINDOW_UPDATE => 13,
            GOAWAY => 17,
            SETTINGS => 9 + self.length().min(MOST_SETTINGS),
            HEADERS if self.head[4] == END_STREAM | END_HEADERS && self.length() <= STATUS => {
                9 + self.length()
            }
            _ => 9,
        }
    }

    /// Whether a frame has begun and not ended.
    pub(super) const fn is_within(&self) -> bool {
        self.have > 0 || self.skip > 0
    }
}

/// The window that these settings give each stream, if they do. When they are more than is looked at, nothing is known of it.
fn window(settings: &[u8], length: usize) -> Option<u32> {
    if length > settings.len() {
        return Some(0);
    }
    setting(settings, INITIAL_WINDOW_SIZE)
}

/// Why a stream or connection was ended with this error code (RFC 9113 7), if that is a refusal.
fn refusal(code: u32) -> Option<Rejection> {
    match code {
        // NO_ERROR, INTERNAL_ERROR (a response that broke off) and CANCEL say nothing about the request.
        0 | 2 | 8 => None,
        7 => Some(Rejection::Overload),
        11 => Some(Rejection::Flood),
        _ => Some(Rejection::Malformed),
    }
}

/// Whether a whole header block (RFC 7541) is one field that can be a `:status` other than the seven of the static table: an
/// entry of the dynamic one, or a literal with that name.
fn is_lone_status(block: &[u8]) -> bool {
    match block {
        [entry] => *entry >= 0x80 + 62,
        [0x48 | 0x08 | 0x18, length, value @ ..] => usize::from(length & 0x7f) == value.len(),
        _ => false,
    }
}

/// Counts frames within [`WINDOW`] of the first.
#[derive(Debug, Default)]
struct Rate {
    count: u32,
    since: Option<Instant>,
}

impl Rate {
    /// Whether with `more` of them there are more than `most`.
    fn exceeds(&mut self, more: u32, most: u32) -> bool {
        if more == 0 {
            return false;
        }
        let now = Instant::now();
        let lasts = |since: Instant| now.saturating_duration_since(since) < WINDOW;
        if !self.since.is_some_and(lasts) {
            (self.count, self.since) = (0, Some(now));
        }
        self.count = self.count.saturating_add(more);
        self.count > most
    }
}

/// A client's HTTP/2 connection, watched.
pub(super) struct Watched<S> {
    inner: S,
    listener: Rc<ListenerState>,
    progress: Rc<Progress>,
    incoming: Follower,
    outgoing: Follower,
    /// A header block has begun and not ended.
    block: bool,
    /// Streams whose answers have begun and not ended.
    answering: HashSet<u32>,
    /// Streams that were reset while something waited to be written, which may have been the beginning of their answers.
    gone: HashSet<u32>,
    control: Rate,
    resets: Rate,
    /// The first frame has been SETTINGS, as it must be (9113 3.4).
    settled: bool,
    /// Why the connection is not read any further.
    cut: Option<Rejection>,
}

impl<S> Watched<S> {
    /// `prefix`: what was read to find out the protocol, the connection preface included.
    pub(super) fn new(
        inner: S,
        prefix: &[u8],
        preface: usize,
        listener: Rc<ListenerState>,
        progress: Rc<Progress>,
    ) -> Self {
        let mut watched = Watched {
            inner,
            listener,
            progress,
            incoming: Follower::default(),
            outgoing: Follower::default(),
            block: false,
            answering: HashSet::new(),
            gone: HashSet::new(),
            control: Rate::default(),
            resets: Rate::default(),
            settled: false,
            cut: None,
        };
        watched.received(prefix.get(preface..).unwrap_or_default());
        watched
    }

    /// Whether what has come already is a reason to go no further.
    pub(super) const fn is_cut(&self) -> bool {
        self.cut.is_some()
    }

    fn received(&mut self, bytes: &[u8]) {
        let (mut control, mut resets, mut block) = (0, 0, self.block);
        let (mut settled, mut cut) = (self.settled, self.cut);
        let (answering, gone) = (&mut self.answering, &mut self.gone);
        let unsent = self.progress.is_unsent();
        let windows = &self.progress.windows;
        self.incoming.follow(bytes, |frame| {
            if !settled {
                settled = true;
                // The library would take anything.
                cut = (frame.kind != SETTINGS).then_some(Rejection::Malformed);
            }
            match frame.kind {
                HEADERS | CONTINUATION => block = frame.flags & END_HEADERS == 0,
                RST_STREAM => {
                    resets += 1;
                    if !answering.remove(&frame.stream) && unsent && gone.len() < MOST_ANSWERING {
                        gone.insert(frame.stream);
                    }
                }
                // Those have limits of the library's, or come with the data that a client reads.
                WINDOW_UPDATE if frame.stream == 0 => windows.grants(frame.error),
                DATA | WINDOW_UPDATE => {}
                SETTINGS => {
                    control += 1;
                    if let Some(window) = frame.window {
                        windows.gives_each(window);
                    }
                }
                _ => control += 1,
            }
        });
        self.settled = settled;
        self.block = block;
        self.progress.answers_left(self.answering.len());
        self.progress.frames_arrived(block || self.incoming.is_within());
        let most = self.listener.config.limits.resets;
        if self.control.exceeds(control, MOST_CONTROL) || self.resets.exceeds(resets, most) {
            cut = cut.or(Some(Rejection::Flood));
        }
        if let (None, Some(reason)) = (self.cut, cut) {
            self.listener.metrics.reject(reason);
        }
        self.cut = cut;
    }

    fn sent(&mut self, bytes: &[u8]) {
        let (listener, answering, gone) = (&self.listener, &mut self.answering, &mut self.gone);
        let mut moved = false;
        let windows = &self.progress.windows;
        self.outgoing.follow(bytes, |frame| {
            let ends = frame.flags & END_STREAM != 0;
            if frame.kind == DATA {
                windows.written(frame.length);
            }
            moved |= frame.kind == DATA || frame.kind == HEADERS;
            let begun = match frame.kind {
                HEADERS if !ends && gone.remove(&frame.stream) => true,
                HEADERS if !ends => {
                    if answering.len() >= MOST_ANSWERING {
                        answering.clear();
                    }
                    !answering.insert(frame.stream)
                }
                HEADERS | RST_STREAM => answering.remove(&frame.stream),
                DATA if ends => answering.remove(&frame.stream),
                _ => true,
            };
            // Every answer of ours has a date as well; trailers come after a beginning.
            if frame.kind == HEADERS && frame.lone && !begun {
                listener.metrics.reject(Rejection::HeaderLimit);
            }
            if (frame.kind == RST_STREAM || frame.kind == GOAWAY)
                && let Some(reason) = refusal(frame.error)
            {
                listener.metrics.reject(reason);
            }
        });
        if moved {
            self.progress.answers_move(self.answering.len());
        } else {
            self.progress.answers_left(self.answering.len());
        }
    }
}

impl<S: Resets> Resets for Watched<S> {
    fn reset(&self) {
        self.inner.reset();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if polled.is_ready() {
            self.received(buf.filled().get(before..).unwrap_or_default());
            if let Some(reason) = self.cut {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, reason.as_str())));
            }
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = &polled {
            self.sent(buf.get(..*n).unwrap_or_default());
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(n)) = &polled {
            let mut left = *n;
            for buf in bufs {
                let here = left.min(buf.len());
                self.sent(buf.get(..here).unwrap_or_default());
                left -= here;
            }
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![
            0,
            0,
            u8::try_from(payload.len()).unwrap(),
            kind,
            flags,
            0,
            0,
            0,
            1,
        ];
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn frames_are_told_apart_however_the_bytes_are_cut() {
        let bytes = [
            frame(HEADERS, 0, b"block"),
            frame(RST_STREAM, 0, &[0, 0, 0, 1]),
            frame(GOAWAY, 0, &[0, 0, 0, 9, 0, 0, 0, 11, b'w', b'h', b'y']),
            frame(DATA, 1, b""),
        ]
        .concat();
        for size in 1..bytes.len() {
            let (mut follower, mut seen) = (Follower::default(), Vec::new());
            for piece in bytes.chunks(size) {
                follower.follow(piece, |frame| seen.push((frame.kind, frame.error)));
            }
            let kinds: Vec<u8> = seen.iter().map(|(kind, _)| *kind).collect();
            assert_eq!(kinds, [HEADERS, RST_STREAM, GOAWAY, DATA], "pieces of {size}");
            assert_eq!((seen[1].1, seen[2].1), (1, 11));
            assert!(!follower.is_within());
        }
    }

    #[test]
    fn what_settings_and_updates_say_of_windows_is_seen_however_the_bytes_are_cut() {
        let settings = [0, 3, 0, 0, 0, 100, 0, 4, 0, 0, 0, 10, 0, 4, 0, 0x60, 0, 0];
        let bytes = [
            frame(SETTINGS, 0, &settings),
            frame(WINDOW_UPDATE, 0, &[0, 0, 1, 0]),
            frame(SETTINGS, 0, &[0, 3, 0, 0, 0, 100]),
            // More than is looked at.
            frame(SETTINGS, 0, &[0; MOST_SETTINGS + 6]),
            frame(DATA, 0, b"abc"),
        ]
        .concat();
        for size in 1..bytes.len() {
            let (mut follower, mut seen) = (Follower::default(), Vec::new());
            for piece in bytes.chunks(size) {
                follower.follow(piece, |frame| seen.push((frame.length, frame.window)));
            }
            let expected = [
                (18, Some(0x60_0000)),
                (4, None),
                (6, None),
                (MOST_SETTINGS + 6, Some(0)),
                (3, None),
            ];
            assert_eq!(seen, expected, "pieces of {size}");
        }
    }

    #[test]
    fn a_lone_status_is_told_from_other_short_blocks() {
        let lone = |flags: u8, block: &[u8]| {
            let mut lone = Vec::new();
            for size in [1, 3, 99] {
                let mut follower = Follower::default();
                let bytes = [frame(HEADERS, flags, block), frame(DATA, 0, b"c")].concat();
                for piece in bytes.chunks(size) {
                    follower.follow(piece, |frame| {
                        lone.extend((frame.kind == HEADERS).then_some(frame.lone));
                    });
                }
            }
            assert_eq!(lone.len(), 3, "{block:x?}");
            lone.iter().all(|lone| *lone)
        };
        // Written out, Huffman-coded, remembered.
        for block in [&b"\x48\x03431"[..], b"\x08\x03431", b"\x48\x82\x64\x0f", b"\xbe"] {
            assert!(lone(5, block), "{block:x?}");
            assert!(!lone(4, block), "the stream goes on: {block:x?}");
        }
        // 200 and a date, both remembered; 200 alone is not refused; a longer value; nothing.
        for block in [&b"\x88\xbe"[..], b"\x88", b"\x48\x04431", b""] {
            assert!(!lone(5, block), "{block:x?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_exceeded_within_a_second_only() {
        let mut rate = Rate::default();
        assert!(!rate.exceeds(0, 0) && !rate.exceeds(3, 5) && !rate.exceeds(2, 5));
        assert!(rate.exceeds(1, 5));
        tokio::time::advance(WINDOW).await;
        assert!(!rate.exceeds(5, 5) && rate.exceeds(1, 5));
    }

    #[test]
    fn a_reset_frame_that_is_too_short_does_not_lead_astray() {
        let bytes = [frame(RST_STREAM, 0, b"ab"), frame(DATA, 0, b"c")].concat();
        let mut seen = 0;
        // Such a frame ends the connection; until then nothing may panic or loop.
        Follower::default().follow(&bytes, |_| seen += 1);
        assert!(seen >= 1);
    }
}
