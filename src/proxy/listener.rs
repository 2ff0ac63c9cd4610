//! Sockets that clients connect to: bound once per worker, accepted from without spinning.

use super::{
    admission::{self, Refused},
    worker::{ListenerState, Stop, WorkerState},
};
use crate::config::BindAddress;
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket as Raw, Type};
use std::{
    fs::{self, Permissions},
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
};

/// Connections the kernel may hold for us.
const BACKLOG: i32 = 4096;
/// How long handshakes that have begun may take to come to their end when no further ones begin: a round trip.
const LAST_HANDSHAKES: Duration = Duration::from_millis(20);

/// A listening socket of one worker.
#[derive(Debug)]
pub enum Socket {
    /// TCP; each worker has its own (`SO_REUSEPORT`).
    Tcp {
        /// Nobody else listens at it: when it is closed, its queue is gone.
        ours: bool,
        /// The socket.
        listener: std::net::TcpListener,
    },
    /// A Unix socket; workers share one.
    Unix {
        /// Its file; none: somebody else's who has opened it for us. Stands first, so that it goes first.
        file: Option<Arc<SocketFile>>,
        /// The socket.
        listener: std::os::unix::net::UnixListener,
    },
}

/// The file of a Unix socket, which goes when nobody listens any more.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<SocketFile> {
        let made = fs::symlink_metadata(path)?;
        Ok(SocketFile {
            path: path.to_owned(),
            device: made.dev(),
            inode: made.ino(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have put another one there since. While ours is open its inode is nobody else's.
        let ours = |there: fs::Metadata| (there.dev(), there.ino()) == (self.device, self.inode);
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
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
    /// Something that is no socket lies there.
    #[error(
        "cannot listen at {address}: a file that is not a socket is there; remove it or choose another address"
    )]
    NotASocket {
        /// The address.
        address: BindAddress,
    },
    /// The socket's file cannot be made.
    #[error(
        "cannot listen at {address}; its directory must exist, and this user must be able to write into it"
    )]
    File {
        /// The address.
        address: BindAddress,
        /// What the system says.
        source: io::Error,
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

/// Binds one socket per worker. An address with port 0 gets a free port, the same for all. A Unix socket gets these
/// permissions; none: what the umask leaves.
pub fn bind(address: &BindAddress, mode: Option<u32>, workers: usize) -> Result<Vec<Socket>, BindError> {
    let failed = |source: io::Error| {
        let is_unix = matches!(address, BindAddress::Unix(_));
        let address = address.clone();
        if source.kind() == io::ErrorKind::AddrInUse {
            BindError::InUse { address }
        } else if source.kind() == io::ErrorKind::AlreadyExists {
            BindError::NotASocket { address }
        } else if is_unix {
            BindError::File { address, source }
        } else {
            BindError::Other { address, source }
        }
    };
    match address {
        BindAddress::Tcp(tcp) => bind_tcp(*tcp, workers).map_err(failed),
        BindAddress::Unix(path) => bind_unix(path, mode, workers).map_err(failed),
    }
}

/// Takes a socket that somebody else has opened; workers share it, as its queue is one.
pub fn adopt(socket: Socket, address: &BindAddress, workers: usize) -> Result<Vec<Socket>, BindError> {
    let shared = || -> io::Result<Vec<Socket>> {
        let mut sockets = Vec::with_capacity(workers);
        for _ in 1..workers {
            sockets.push(match &socket {
                Socket::Tcp { ours, listener } => Socket::Tcp {
                    ours: *ours,
                    listener: listener.try_clone()?,
                },
                Socket::Unix { file, listener } => Socket::Unix {
                    file: file.clone(),
                    listener: listener.try_clone()?,
                },
            });
        }
        match &socket {
            Socket::Tcp { listener, .. } => listener.set_nonblocking(true)?,
            Socket::Unix { listener, .. } => listener.set_nonblocking(true)?,
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
    let ours = |socket: Raw| Socket::Tcp {
        ours: true,
        listener: socket.into(),
    };
    let mut sockets = vec![ours(first)];
    for _ in 1..workers {
        let next = tcp(bound, true)?;
        next.listen(BACKLOG)?;
        sockets.push(ours(next));
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

fn bind_unix(path: &Path, mode: Option<u32>, workers: usize) -> io::Result<Vec<Socket>> {
    clear_the_way(path)?;
    let socket = Raw::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = Arc::new(SocketFile::at(path)?);
    if let Some(mode) = mode {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    // Only from here on can anybody connect.
    socket.listen(BACKLOG)?;
    let first = std::os::unix::net::UnixListener::from(socket);
    let mut sockets = Vec::with_capacity(workers);
    for _ in 1..workers {
        sockets.push(Socket::Unix {
            file: Some(Arc::clone(&file)),
            listener: first.try_clone()?,
        });
    }
    sockets.push(Socket::Unix {
        file: Some(file),
        listener: first,
    });
    Ok(sockets)
}

/// Removes a socket at which nobody listens: left behind by a process that was killed.
fn clear_the_way(path: &Path) -> io::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !there.file_type().is_socket() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // Without waiting: of a process that accepts nothing the queue may be full.
    let probe = Raw::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        Ok(()) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

impl Socket {
    /// Where it listens; none for a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Socket::Tcp { listener, .. } => listener.local_addr().ok(),
            Socket::Unix { .. } => None,
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
            Socket::Tcp {
                ours,
                listener: socket,
            } => {
                let socket = TcpListener::from_std(socket)?;
                tokio::select! {
                    () = accept_tcp(&socket, &worker, &listener) => {}
                    _ = stopped => {}
                }
                let socket = socket.into_std()?;
                let let_in = || -> io::Result<()> {
                    while let Some((stream, peer)) = next_in_queue(|| socket.accept()) {
                        stream.set_nonblocking(true)?;
                        let Some(place) = worker.last_place(&listener) else {
                            continue;
                        };
                        let stream = TcpStream::from_std(stream)?;
                        let _ = stream.set_nodelay(true);
                        worker.serve(&listener, place, stream, Some(peer.ip()));
                    }
                    Ok(())
                };
                // Somebody else's queue outlives us, and is for whoever comes next.
                if ours {
                    if let Err(error) = begin_no_handshake(&socket) {
                        tracing::debug!(%error, "who connects at the very end may be reset");
                    }
                    let_in()?;
                    tokio::time::sleep(LAST_HANDSHAKES).await;
                }
                let_in()?;
            }
            Socket::Unix {
                file,
                listener: socket,
            } => {
                let socket = UnixListener::from_std(socket)?;
                tokio::select! {
                    () = accept_unix(&socket, &worker, &listener) => {}
                    _ = stopped => {}
                }
                // Before the socket closes: a successor may already wait for the path.
                drop(file);
                let socket = socket.into_std()?;
                while let Some((stream, _)) = next_in_queue(|| socket.accept()) {
                    stream.set_nonblocking(true)?;
                    if let Some(place) = worker.last_place(&listener) {
                        worker.serve(&listener, place, UnixStream::from_std(stream)?, None);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Who has waited longest in a queue; none: it is empty. One that has gone away again while it waited is passed over.
fn next_in_queue<T>(mut accept: impl FnMut() -> io::Result<T>) -> Option<T> {
    loop {
        match accept() {
            Ok(next) => return Some(next),
            Err(error) if is_passed_over(error.kind()) => {}
            Err(_) => return None,
        }
    }
}

fn is_passed_over(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}

/// From here on a listening socket leaves the first packet of a handshake unanswered, as if it had been lost; handshakes that
/// have begun go on. A socket that closes resets whoever is in its queue, and between the last look into the queue and the end
/// somebody can always come in: who is not let in at all asks again after a second, and is told that nobody listens.
///
/// Connections that come out of the queue have the filter as well, where it finds nothing: SYN begins connections only.
fn begin_no_handshake(socket: &std::net::TcpListener) -> io::Result<()> {
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    socket2::SockRef::from(socket).attach_filter(&[
        // Load the byte of the header (RFC 9293, section 3.1) with the flags; without SYN jump over the next.
        SockFilter::new(0x30, 0, 0, FLAGS),
        SockFilter::new(0x45, 0, 1, SYN),
        // Let nothing of it pass, or everything.
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ])
}

async fn accept_tcp(socket: &TcpListener, worker: &Rc<WorkerState>, listener: &Rc<ListenerState>) {
    let mut refused = Refused::default();
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => {
                let Some(place) = worker.place(listener).await else {
                    if let Ok(stream) = stream.into_std() {
                        admission::refuse(&stream, listener);
                    }
                    refused.one_more().await;
                    continue;
                };
                // Responses are written whole; waiting for more only delays them.
                let _ = stream.set_nodelay(true);
                keep_alive(&stream);
                worker.serve(listener, place, stream, Some(peer.ip()));
            }
            Err(error) => backed_off(worker, listener, &error).await,
        }
    }
}

async fn accept_unix(socket: &UnixListener, worker: &Rc<WorkerState>, listener: &Rc<ListenerState>) {
    let mut refused = Refused::default();
    loop {
        match socket.accept().await {
            Ok((stream, _)) => {
                let Some(place) = worker.place(listener).await else {
                    if let Ok(stream) = stream.into_std() {
                        admission::refuse(&stream, listener);
                    }
                    refused.one_more().await;
                    continue;
                };
                worker.serve(listener, place, stream, None);
            }
            Err(error) => backed_off(worker, listener, &error).await,
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
async fn backed_off(worker: &WorkerState, listener: &ListenerState, error: &io::Error) {
    let listener = &listener.config.name;
    if crate::upstream::is_local(error) {
        if worker.cannot_accept.is_due() {
            tracing::warn!(%listener, %error, "cannot accept connections; trying again every 50 ms");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    } else {
        // The client was gone before we looked.
        tracing::debug!(%listener, %error, "a connection ended before it was accepted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn local() -> BindAddress {
        BindAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    #[test]
    fn all_workers_listen_at_the_same_port() {
        let sockets = bind(&local(), None, 3).unwrap();
        let first = sockets[0].local_addr().unwrap();
        assert!(sockets.len() == 3 && sockets.iter().all(|socket| socket.local_addr() == Some(first)));
    }

    #[test]
    fn an_address_that_is_taken_is_not_shared_silently() {
        let sockets = bind(&local(), None, 2).unwrap();
        let taken = BindAddress::Tcp(sockets[0].local_addr().unwrap());
        let error = bind(&taken, None, 2).unwrap_err();
        assert!(
            matches!(error, BindError::InUse { .. }) && error.to_string().contains("another process"),
            "{error}"
        );
    }

    #[test]
    fn who_was_let_in_is_served_when_nobody_else_is_let_in_any_more() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let connect = || std::net::TcpStream::connect_timeout(&at, Duration::from_millis(100));
        let mut before = connect().unwrap();
        begin_no_handshake(&listener).unwrap();
        assert_eq!(connect().unwrap_err().kind(), io::ErrorKind::TimedOut);

        let (mut accepted, _) = next_in_queue(|| listener.accept()).unwrap();
        assert!(next_in_queue(|| listener.accept()).is_none());
        accepted.write_all(b"hello").unwrap();
        drop((accepted, listener));
        let mut read = String::new();
        before.read_to_string(&mut read).unwrap();
        assert_eq!(read, "hello");
    }

    #[test]
    fn who_went_away_in_the_queue_hides_nobody_behind() {
        use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
        let mut queue = [
            Err(ConnectionAborted),
            Err(Interrupted),
            Ok(1),
            Err(WouldBlock),
            Ok(2),
        ]
        .into_iter();
        let mut next = || next_in_queue(|| queue.next().unwrap().map_err(io::Error::from));
        assert_eq!((next(), next()), (Some(1), None));
    }

    fn unix(folder: &tempfile::TempDir) -> (BindAddress, PathBuf) {
        let path = folder.path().join("s.sock");
        (BindAddress::Unix(path.clone()), path)
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (address, path) = unix(&folder);
        // Its file stays when a plain listener is dropped.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let live = bind(&address, None, 2).unwrap();
        assert_eq!(live.len(), 2);
        assert!(matches!(bind(&address, None, 1), Err(BindError::InUse { .. })));
        // With its queue full, too, and at once.
        drop(live);
        let busy = Raw::new(Domain::UNIX, Type::STREAM, None).unwrap();
        busy.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        busy.listen(0).unwrap();
        let _waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(matches!(bind(&address, None, 1), Err(BindError::InUse { .. })));
    }

    #[test]
    fn the_file_goes_with_the_last_who_listens_unless_it_is_another_ones() {
        let folder = tempfile::tempdir().unwrap();
        let (address, path) = unix(&folder);
        let mut sockets = bind(&address, None, 2).unwrap();
        drop(sockets.pop());
        assert!(path.exists());
        drop(sockets);
        assert!(!path.exists());

        let first = bind(&address, None, 1).unwrap();
        fs::remove_file(&path).unwrap();
        let second = bind(&address, None, 1).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_has_the_permissions_that_were_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let (address, path) = unix(&folder);
        for mode in [0o600, 0o666] {
            let _sockets = bind(&address, Some(mode), 1).unwrap();
            let made = fs::symlink_metadata(&path).unwrap();
            assert_eq!(made.permissions().mode() & 0o777, mode);
        }
    }

    #[test]
    fn what_is_no_socket_is_left_alone_and_each_trouble_says_its_mend() {
        let folder = tempfile::tempdir().unwrap();
        let (address, path) = unix(&folder);
        fs::write(&path, "precious").unwrap();
        let error = bind(&address, None, 1).unwrap_err();
        assert!(
            error.to_string().contains("not a socket is there; remove it"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let nowhere = BindAddress::Unix(folder.path().join("missing/s.sock"));
        let error = bind(&nowhere, None, 1).unwrap_err();
        assert!(error.to_string().contains("directory must exist"), "{error}");
    }
}
