//! A connection to a version that answers before it has read everything.
//!
//! Such a version closes, our next write fails, and its answer may already lie in our receive buffer. hyper gives up at the
//! failed write; here the write is taken as done instead, so that reading goes on and finds the answer, or the end.

use super::capacity::Place;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose failed writes are told by reading.
#[derive(Debug)]
pub(super) struct Patient<S> {
    inner: S,
    broken: bool,
    /// Kept until the stream is closed, whatever is spoken on it by then.
    _place: Place,
}

impl<S> Patient<S> {
    pub(super) const fn new(inner: S, place: Place) -> Patient<S> {
        Patient {
            inner,
            broken: false,
            _place: place,
        }
    }

    /// Whether the other side stopped listening, as against trouble of our own.
    fn is_refusal(error: &io::Error) -> bool {
        matches!(
            error.kind(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
        )
    }

    fn forgiven<T>(&mut self, polled: Poll<io::Result<T>>, done: T) -> Poll<io::Result<T>> {
        match &polled {
            Poll::Ready(Err(error)) if Self::is_refusal(error) => {
                self.broken = true;
                Poll::Ready(Ok(done))
            }
            Poll::Ready(_) | Poll::Pending => polled,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Ready(Ok(buf.len()));
        }
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.forgiven(polled, buf.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.forgiven(polled, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.forgiven(polled, ())
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let whole = bufs.iter().map(|buf| buf.len()).sum();
        if self.broken {
            return Poll::Ready(Ok(whole));
        }
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.forgiven(polled, whole)
    }
}
