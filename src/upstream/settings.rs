//! What an HTTP/2 server says first: its SETTINGS, of which the library keeps to itself how large a head may be.

use super::shared::Seats;
use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const HEADER: usize = 9;
const SETTINGS: u8 = 4;
const MAX_HEADER_LIST_SIZE: u16 = 6;
/// The longest frame that may come before anything has been agreed on (RFC 9113 4.2).
const LONGEST: usize = 16 * 1024;

/// A connection whose first frame is read along.
#[derive(Debug)]
pub(super) struct Announcing<S> {
    inner: S,
    seats: Rc<Seats>,
    /// What has come of the first frame; none: it has come whole.
    first: Option<Vec<u8>>,
}

impl<S> Announcing<S> {
    pub(super) const fn new(inner: S, seats: Rc<Seats>) -> Announcing<S> {
        Announcing {
            inner,
            seats,
            first: Some(Vec::new()),
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        let Some(first) = &mut self.first else { return };
        let room = (HEADER + LONGEST).saturating_sub(first.len()).min(bytes.len());
        first.extend_from_slice(bytes.get(..room).unwrap_or_default());
        if let Some(first) = whole(first) {
            self.seats.limit_heads(setting(first, MAX_HEADER_LIST_SIZE));
            self.first = None;
        }
    }
}

/// The settings that these bytes begin with, when they have come whole.
fn whole(bytes: &[u8]) -> Option<&[u8]> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let [a, b, c, kind, ..] = *header;
    let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
    if kind != SETTINGS || length > LONGEST {
        // The library ends such a connection.
        return Some(&[]);
    }
    rest.get(..length)
}

/// The value of a setting in the payload of SETTINGS (RFC 9113 6.5.1), the last one when it is there more than once; none: they
/// do not say.
pub fn setting(settings: &[u8], wanted: u16) -> Option<u32> {
    let value = |setting: &[u8]| match setting {
        [id0, id1, value @ ..] if u16::from_be_bytes([*id0, *id1]) == wanted => {
            value.try_into().ok().map(u32::from_be_bytes)
        }
        _ => None,
    };
    settings.chunks_exact(6).rev().find_map(value)
}

impl<S: AsyncRead + Unpin> AsyncRead for Announcing<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if self.first.is_some() {
            self.read(buf.filled().get(before..).unwrap_or_default());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Announcing<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
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
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(settings: &[u8]) -> Option<u32> {
        setting(settings, MAX_HEADER_LIST_SIZE)
    }

    #[test]
    fn a_limit_is_found_when_the_whole_frame_has_come() {
        // MAX_CONCURRENT_STREAMS 100, MAX_HEADER_LIST_SIZE 16,384.
        let frame = [
            0, 0, 12, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100, 0, 6, 0, 0, 0x40, 0,
        ];
        for end in 0..frame.len() {
            assert_eq!(whole(&frame[..end]), None, "{end} bytes");
        }
        let more = [&frame[..], b"and what follows"].concat();
        assert_eq!(whole(&more).and_then(limit), Some(16_384));
        assert_eq!(whole(&more).and_then(|all| setting(all, 4)), None);
    }

    #[test]
    fn who_announces_nothing_or_speaks_nonsense_has_no_limit() {
        for nothing in [
            &[0, 0, 0, 4, 0, 0, 0, 0, 0][..],
            b"HTTP/1.1 400 Bad Request",
            &[0xff, 0xff, 0xff, 4, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(whole(nothing).map(limit), Some(None));
        }
    }
}
