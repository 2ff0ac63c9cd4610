//! What comes before HTTP on a client's connection: a load balancer's word on who the client is, the TLS handshake.
//!
//! A connection without either never comes here. `connection` takes over with the first byte of HTTP.

use super::{
    closing::Resets,
    connection,
    proxy_protocol::{self, Malformed},
    worker::{ListenerState, WorkerState},
};
use crate::metrics::Rejection;
use bytes::{Buf, BytesMut};
use std::{
    fmt, io,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;

/// What is known of a connection when HTTP begins on it.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    /// Who is at the other end; none: somebody on this machine.
    pub(super) ip: Option<IpAddr>,
    /// Whether it is encrypted.
    pub(super) secure: bool,
    /// What has been read of it already.
    pub(super) read: BytesMut,
}

impl Arrival {
    /// A connection that begins with HTTP.
    pub(super) fn plain(ip: Option<IpAddr>) -> Arrival {
        Arrival {
            ip,
            ..Arrival::default()
        }
    }
}

/// Reads the PROXY header of a peer who may send one, then serves the client whom it names.
pub(super) async fn announced<S>(
    worker: Rc<WorkerState>,
    listener: Rc<ListenerState>,
    mut stream: S,
    peer: Option<IpAddr>,
) where
    S: AsyncRead + AsyncWrite + Resets + Unpin + 'static,
{
    let limit = listener.config.timeouts.first_byte.as_duration();
    let mut read = BytesMut::new();
    let source = match tokio::time::timeout(limit, client_of(&mut stream, &mut read)).await {
        Ok(Some(Ok(source))) => source,
        Ok(Some(Err(malformed))) => return refuse(&listener, peer, &malformed),
        Ok(None) => return,
        Err(_) => return listener.metrics.reject(Rejection::Timeout),
    };
    let ip = source.or(peer);
    match listener.tls.clone() {
        None => {
            let arrival = Arrival {
                ip,
                secure: false,
                read,
            };
            connection::run(worker, listener, stream, arrival).await;
        }
        Some(acceptor) => secured(worker, listener, Replayed { read, stream }, ip, acceptor).await,
    }
}

/// Who the client is, if the header says so; what was read after the header stays in `read`. `None`: the peer went away, as
/// load balancers do that look whether a port answers.
async fn client_of<S: AsyncRead + Unpin>(
    stream: &mut S,
    read: &mut BytesMut,
) -> Option<Result<Option<IpAddr>, Malformed>> {
    loop {
        read.reserve(1024);
        if stream.read_buf(read).await.ok()? == 0 {
            return (!read.is_empty()).then_some(Err(Malformed::CUT_OFF));
        }
        match proxy_protocol::parse(read) {
            Ok(None) => {}
            Ok(Some(header)) => {
                read.advance(header.length);
                return Some(Ok(header.source));
            }
            Err(malformed) => return Some(Err(malformed)),
        }
    }
}

/// Counts a connection that is not begun as `proxyProtocol` demands. It gets no answer: what it speaks is not known.
pub(super) fn refuse(listener: &ListenerState, peer: Option<IpAddr>, why: &dyn fmt::Display) {
    listener.metrics.reject(Rejection::ProxyProtocol);
    let name = &listener.config.name;
    if !listener.complained.replace(true) {
        let peer = peer.map_or("this machine".to_owned(), |ip| ip.to_canonical().to_string());
        tracing::warn!(
            listener = %name,
            "`proxyProtocol` of `{name}`: a connection from {peer} was closed: {why}. More of them are only counted, as \
             serin_http_rejected_total{{reason=\"proxy_protocol\"}}"
        );
    }
}

/// Shakes hands, then serves.
pub(super) async fn over_tls<S>(
    worker: Rc<WorkerState>,
    listener: Rc<ListenerState>,
    stream: S,
    ip: Option<IpAddr>,
    acceptor: TlsAcceptor,
) where
    S: AsyncRead + AsyncWrite + Resets + Unpin + 'static,
{
    let read = BytesMut::new();
    secured(worker, listener, Replayed { read, stream }, ip, acceptor).await;
}

async fn secured<S>(
    worker: Rc<WorkerState>,
    listener: Rc<ListenerState>,
    stream: Replayed<S>,
    ip: Option<IpAddr>,
    acceptor: TlsAcceptor,
) where
    S: AsyncRead + AsyncWrite + Resets + Unpin + 'static,
{
    // To the client's first byte there is the same time again: `firstByte` bounds what a silent client can hold.
    let limit = listener.config.timeouts.first_byte.as_duration();
    // Both apart: a task would keep room for the handshake, and for the session wherever it is handed on.
    let stream = match Box::pin(tokio::time::timeout(limit, acceptor.accept(stream))).await {
        Ok(Ok(stream)) => Box::new(stream),
        Ok(Err(error)) => {
            // Load balancers look whether a port answers by connecting and leaving: nothing to count.
            if error.kind() != io::ErrorKind::UnexpectedEof {
                listener.metrics.reject(Rejection::Tls);
            }
            tracing::debug!(listener = %listener.config.name, client = ?ip, %error, "no TLS handshake");
            return;
        }
        Err(_) => {
            listener.metrics.reject(Rejection::Timeout);
            return;
        }
    };
    let arrival = Arrival {
        ip,
        secure: true,
        read: BytesMut::new(),
    };
    connection::run(worker, listener, stream, arrival).await;
}

/// A stream of which something has been read already. Every TLS connection is one, also those of which nothing has: one
/// type, and so one copy of all that serves it.
struct Replayed<S> {
    read: BytesMut,
    stream: S,
}

impl<S: Resets> Resets for Replayed<S> {
    fn reset(&self) {
        self.stream.reset();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replayed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let length = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read.split_to(length));
        if self.read.is_empty() {
            // It holds its memory as long as the connection lives.
            self.read = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replayed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
