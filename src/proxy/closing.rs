//! How an HTTP/1.1 connection ends after hyper is done with it.
//!
//! A server that closes while the client still sends makes the client's system throw away the answer that is on its way.
//! So the answer is sent, our side is closed, and what still comes is read for a moment (RFC 9112 9.6).

use bytes::Bytes;
use std::time::Duration;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::server::TlsStream;

/// How much is read and thrown away, and for how long.
const MOST: usize = 64 * 1024;
const LONGEST: Duration = Duration::from_secs(1);

/// An answer that hyper does not give: the connection ended, or stayed silent, within a request.
pub(super) const BROKEN_OFF: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Whether these bytes, which hyper has read and not understood as a request, are the beginning of one.
pub(super) fn is_begun(unread: &Bytes) -> bool {
    unread.iter().any(|byte| !matches!(byte, b'\r' | b'\n'))
}

/// A client's connection that can end in a way which nobody takes for the end of an answer.
pub(super) trait Resets {
    /// It is closed by a reset when it is dropped.
    fn reset(&self);
}

impl<S: Resets> Resets for Box<S> {
    fn reset(&self) {
        S::reset(self);
    }
}

impl Resets for TcpStream {
    fn reset(&self) {
        // What cannot be done to a socket that is gone is not needed either.
        let _ = self.set_zero_linger();
    }
}

impl Resets for UnixStream {
    /// A Unix socket knows no reset.
    fn reset(&self) {}
}

impl<S: Resets> Resets for TlsStream<S> {
    fn reset(&self) {
        self.get_ref().0.reset();
    }
}

/// Sends a last answer, if there is one, closes our side and lets the client read.
pub(super) async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, last: Option<&[u8]>) {
    let lingering = async {
        if let Some(last) = last {
            stream.write_all(last).await?;
        }
        stream.shutdown().await?;
        let (mut buffer, mut read) = (vec![0; 4096], 0);
        while read < MOST {
            match stream.read(&mut buffer).await? {
                0 => break,
                n => read += n,
            }
        }
        Ok::<(), std::io::Error>(())
    };
    let _ = tokio::time::timeout(LONGEST, lingering).await;
}
