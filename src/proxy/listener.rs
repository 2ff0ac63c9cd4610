//! Sockets that clients connect to: bound once per worker, accepted from without spinning.

use super::worker::{ListenerState, Stop, WorkerState};
use crate::config::BindAddress;
use socket2::{Domain, Protocol, Socket as Raw, Type};
use std::{io, net::SocketAddr, os::unix::fs::FileTypeExt, path::Path, rc::Rc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
};

/// Connections the kernel may hold for us.
const BACKLOG: i32 = 4096;

/// A listening socket of one worker.
#[derive(Debug)]
pub enum Socket {
    /// TCP; each worker has its own (`SO_REUSEPORT`).
    Tcp(std::net::TcpListener),
    /// A Unix socket; workers share one.
    Unix(std::os::unix::net::UnixListener),
}

/// Why an address cannot be listened at.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has it.
    #[error("cannot listen at {address}: another process does; stop it or choose another address")]
    InUse {
        /// The address.
        address: BindAddress,
    },
    /// Anything else.
    #[error("cannot listen at {address}")]
    Other {
        /// The address.
        address: BindAddress,
        /// What the system says.
        source: io::Error,
    },
}

/// Binds one socket per worker. An address with port 0 gets a free port, the same for all.
pub fn bind(address: &BindAddress, workers: usize) -> Result<Vec<Socket>, BindError> {
    let failed = |source: io::Error| {
        let address = address.clone();
        if source.kind() == io::ErrorKind::AddrInUse {
            BindError::InUse { address }
        } else {
            BindError::Other { address, source }
        }
    };
    match address {
        BindAddress::Tcp(tcp) => bind_tcp(*tcp, workers).map_err(failed),
        BindAddress::Unix(path) => bind_unix(path, workers).map_err(failed),
    }
}

/// Takes a socket that somebody else has opened; workers share it, as its queue is one.
pub fn adopt(socket: Socket, address: &BindAddress, workers: usize) -> Result<Vec<Socket>, BindError> {
    let shared = || -> io::Result<Vec<Socket>> {
        let mut sockets = Vec::with_capacity(workers);
        for _ in 1..workers {
            sockets.push(match &socket {
                Socket::Tcp(tcp) => Socket::Tcp(tcp.try_clone()?),
                Socket::Unix(unix) => Socket::Unix(unix.try_clone()?),
            });
        }
        match &socket {
            Socket::Tcp(tcp) => tcp.set_nonblocking(true)?,
            Socket::Unix(unix) => unix.set_nonblocking(true)?,
        }
        Ok(sockets)
    };
    let mut sockets = shared().map_err(|source| BindError::Other {
        address: address.clone(),
        source,
    })?;
    sockets.push(socket);
    Ok(sockets)
}

fn bind_tcp(address: SocketAddr, workers: usize) -> io::Result<Vec<Socket>> {
    // With SO_REUSEPORT a second Serin of the same user would silently take half of the connections: probe without it.
    if address.port() != 0 {
        drop(tcp(address, false)?);
    }
    let first = tcp(address, true)?;
    first.listen(BACKLOG)?;
    let bound = first.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = vec![Socket::Tcp(first.into())];
    for _ in 1..workers {
        let next = tcp(bound, true)?;
        next.listen(BACKLOG)?;
        sockets.push(Socket::Tcp(next.into()));
    }
    Ok(sockets)
}

fn tcp(address: SocketAddr, shared: bool) -> io::Result<Raw> {
    let socket = Raw::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn bind_unix(path: &Path, workers: usize) -> io::Result<Vec<Socket>> {
    if path
        .symlink_metadata()
        .is_ok_and(|meta| meta.file_type().is_socket())
    {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        // Nobody answers: left behind by a process that was killed.
        std::fs::remove_file(path)?;
    }
    let first = std::os::unix::net::UnixListener::bind(path)?;
    first.set_nonblocking(true)?;
    let mut sockets = Vec::with_capacity(workers);
    for _ in 1..workers {
        sockets.push(Socket::Unix(first.try_clone()?));
    }
    sockets.push(Socket::Unix(first));
    Ok(sockets)
}

impl Socket {
    /// Where it listens; none for a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }

    /// Accepts and serves clients until Serin stops; whoever the kernel has already let in by then is served as well.
    pub(super) async fn accept_all(
        self,
        worker: Rc<WorkerState>,
        listener: Rc<ListenerState>,
        mut stop: watch::Receiver<Stop>,
    ) -> io::Result<()> {
        let stopped = stop.wait_for(|stop| *stop != Stop::No);
        match self {
            Socket::Tcp(socket) => {
                let socket = TcpListener::from_std(socket)?;
                tokio::select! {
                    () = accept_tcp(&socket, &worker, &listener) => {}
                    _ = stopped => {}
                }
                let socket = socket.into_std()?;
                while let Ok((stream, peer)) = socket.accept() {
                    stream.set_nonblocking(true)?;
                    let stream = TcpStream::from_std(stream)?;
                    let _ = stream.set_nodelay(true);
                    worker.serve(&listener, stream, Some(peer.ip()));
                }
            }
            Socket::Unix(socket) => {
                let socket = UnixListener::from_std(socket)?;
                tokio::select! {
                    () = accept_unix(&socket, &worker, &listener) => {}
                    _ = stopped => {}
                }
                let socket = socket.into_std()?;
                while let Ok((stream, _)) = socket.accept() {
                    stream.set_nonblocking(true)?;
                    worker.serve(&listener, UnixStream::from_std(stream)?, None);
                }
            }
        }
        Ok(())
    }
}

async fn accept_tcp(socket: &TcpListener, worker: &Rc<WorkerState>, listener: &Rc<ListenerState>) {
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => {
                // Responses are written whole; waiting for more only delays them.
                let _ = stream.set_nodelay(true);
                keep_alive(&stream);
                worker.serve(listener, stream, Some(peer.ip()));
            }
            Err(error) => backed_off(listener, &error).await,
        }
    }
}

async fn accept_unix(socket: &UnixListener, worker: &Rc<WorkerState>, listener: &Rc<ListenerState>) {
    loop {
        match socket.accept().await {
            Ok((stream, _)) => worker.serve(listener, stream, None),
            Err(error) => backed_off(listener, &error).await,
        }
    }
}

/// Finds out about clients whose machine is gone.
fn keep_alive(stream: &tokio::net::TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let probes = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15));
    let _ = socket.set_tcp_keepalive(&probes);
    let _ = socket.set_tcp_user_timeout(Some(Duration::from_secs(90)));
}

/// An accept that fails for want of descriptors fails again at once: wait instead of spinning.
async fn backed_off(listener: &ListenerState, error: &io::Error) {
    match error.raw_os_error() {
        // EMFILE, ENFILE, ENOBUFS, ENOMEM
        Some(24 | 23 | 105 | 12) => {
            tracing::warn!(listener = %listener.config.name, %error, "cannot accept a connection; trying again in 50 ms");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The client was gone before we looked.
        _ => {
            tracing::debug!(listener = %listener.config.name, %error, "a connection ended before it was accepted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> BindAddress {
        BindAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    #[test]
    fn all_workers_listen_at_the_same_port() {
        let sockets = bind(&local(), 3).unwrap();
        let first = sockets[0].local_addr().unwrap();
        assert!(sockets.len() == 3 && sockets.iter().all(|socket| socket.local_addr() == Some(first)));
    }

    #[test]
    fn an_address_that_is_taken_is_not_shared_silently() {
        let sockets = bind(&local(), 2).unwrap();
        let taken = BindAddress::Tcp(sockets[0].local_addr().unwrap());
        let error = bind(&taken, 2).unwrap_err();
        assert!(
            matches!(error, BindError::InUse { .. }) && error.to_string().contains("another process"),
            "{error}"
        );
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let address = BindAddress::Unix(folder.path().join("s.sock"));
        drop(bind(&address, 1).unwrap());
        let live = bind(&address, 2).unwrap();
        assert_eq!(live.len(), 2);
        assert!(matches!(bind(&address, 1), Err(BindError::InUse { .. })));
    }
}
