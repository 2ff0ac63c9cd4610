//! What comes before HTTP on a client's connection: the TLS handshake.
//!
//! A connection without it never comes here. `connection` takes over with the first byte of HTTP.

use super::{
    connection,
    worker::{ListenerState, WorkerState},
};
use crate::metrics::Rejection;
use bytes::BytesMut;
use std::{io, net::IpAddr, rc::Rc};
use tokio::io::{AsyncRead, AsyncWrite};
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

/// Shakes hands, then serves.
pub(super) async fn over_tls<S>(
    worker: Rc<WorkerState>,
    listener: Rc<ListenerState>,
    stream: S,
    ip: Option<IpAddr>,
    acceptor: TlsAcceptor,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    // To the client's first byte there is the same time again: `firstByte` bounds what a silent client can hold.
    let limit = listener.config.timeouts.first_byte.as_duration();
    let stream = match tokio::time::timeout(limit, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
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
