//! Where the REST API is served, and how long a client may take.
//!
//! Binding is apart from serving so that `app` can say what went wrong before anything starts, and which port it got.
//! Off loopback the API is not served in plain HTTP unless somebody wrote `insecure: true`.

use super::{
    Admin, Peer,
    connections::{Connections, HEAD},
};
use crate::config;
use axum::Router;
use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    net::{TcpListener, UnixListener},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

/// A peer that acknowledges nothing for this long is gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// Why an address cannot be served; says how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Plain HTTP beyond this machine.
    #[error(
        "admin.address {0} can be reached from other machines, and tokens would cross the network in plain text: use \
         127.0.0.1, add `admin.tls`, or set `admin.insecure: true` where the network is trusted"
    )]
    Insecure(SocketAddr),
    /// The address is taken or not ours.
    #[error(
        "cannot listen on {what} {address}: is another Serin running? Choose another address in the configuration"
    )]
    Tcp {
        /// The key.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A living process answers there.
    #[error("admin.socket {} is in use by a running Serin: stop it, or set another `admin.socket`", .0.display())]
    SocketInUse(PathBuf),
    /// Something else lies there.
    #[error("admin.socket {} exists and is not a socket: remove it, or set another `admin.socket`", .0.display())]
    NotASocket(PathBuf),
    /// The directory is missing or not writable, or the path is too long.
    #[error(
        "cannot make admin.socket {}: its directory must exist and be writable, and the path be shorter than 100 bytes",
        path.display()
    )]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A bound Unix socket; its file goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    owner: u32,
}

impl Socket {
    /// Makes the socket with mode 0600. One that nobody answers at any more is replaced.
    pub fn bind(path: &Path) -> Result<Socket, BindError> {
        let failed = |source| BindError::Socket {
            path: path.to_owned(),
            source,
        };
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(BindError::NotASocket(path.to_owned()));
            }
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => return Err(BindError::SocketInUse(path.to_owned())),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(failed)?;
                }
                // Another user's, dead or alive.
                Err(error) => return Err(failed(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Whoever connects before this line has another user id and is turned away when accepted.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let made = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Socket {
            listener,
            path: path.to_owned(),
            inode: made.ino(),
            owner: made.uid(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another process may have replaced it since.
        if fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What the REST API is served on; any part may be absent.
#[derive(Default)]
pub struct Listeners {
    /// `admin.address`.
    pub tcp: Option<TcpListener>,
    /// How `admin.address` speaks TLS; none: it does not.
    pub tls: Option<TlsAcceptor>,
    /// `admin.socket`.
    pub socket: Option<Socket>,
    /// `telemetry.address`.
    pub telemetry: Option<TcpListener>,
}

impl Listeners {
    /// Binds everything that the configuration names, or nothing.
    pub async fn bind(
        admin: &config::Admin,
        tls: Option<TlsAcceptor>,
        telemetry: Option<SocketAddr>,
    ) -> Result<Listeners, BindError> {
        if !admin.address.ip().to_canonical().is_loopback() && tls.is_none() && !admin.insecure {
            return Err(BindError::Insecure(admin.address));
        }
        let tcp = tcp("admin.address", admin.address).await?;
        let telemetry = match telemetry {
            Some(address) => Some(self::tcp("telemetry.address", address).await?),
            None => None,
        };
        Ok(Listeners {
            tcp: Some(tcp),
            tls,
            socket: Some(Socket::bind(&admin.socket)?),
            telemetry,
        })
    }

    /// The admin address in fact, when port 0 was asked for.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// The telemetry address in fact.
    pub fn telemetry_address(&self) -> Option<SocketAddr> {
        self.telemetry
            .as_ref()
            .and_then(|listener| listener.local_addr().ok())
    }
}

async fn tcp(what: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError::Tcp {
        what,
        address,
        source,
    })
}

/// Serves every listener until `admin.stopping`.
pub(super) async fn serve(admin: &Admin, listeners: Listeners) {
    let router = if listeners.tls.is_some() {
        admin.router_over_tls()
    } else {
        admin.router()
    };
    tokio::join!(
        over_tcp(admin.clone(), listeners.tcp, listeners.tls, router),
        over_tcp(admin.clone(), listeners.telemetry, None, admin.telemetry_router()),
        over_socket(admin.clone(), listeners.socket),
    );
}

async fn over_tcp(admin: Admin, listener: Option<TcpListener>, tls: Option<TlsAcceptor>, router: Router) {
    if let Some(listener) = listener {
        accept_tcp(admin, listener, tls, router).await;
    }
}

async fn over_socket(admin: Admin, socket: Option<Socket>) {
    if let Some(socket) = socket {
        accept_socket(admin, socket).await;
    }
}

async fn accept_tcp(admin: Admin, listener: TcpListener, tls: Option<TlsAcceptor>, router: Router) {
    let mut connections = Connections::new(&admin);
    while let Some(accepted) = connections.next(|| listener.accept()).await {
        let (stream, address) = accepted;
        let socket = socket2::SockRef::from(&stream);
        // Both are about a peer that has gone silent; without them it is merely found out later.
        let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let _ = stream.set_nodelay(true);
        let (peer, router) = (Peer::Tcp(address), router.clone());
        match tls.clone() {
            None => connections.serve(std::future::ready(Some(stream)), peer, router),
            Some(acceptor) => connections.serve(
                async move { timeout(HEAD, acceptor.accept(stream)).await.ok()?.ok() },
                peer,
                router,
            ),
        }
    }
    connections.drain().await;
}

async fn accept_socket(admin: Admin, socket: Socket) {
    let router = admin.router();
    let mut connections = Connections::new(&admin);
    while let Some(accepted) = connections.next(|| socket.listener.accept()).await {
        let (stream, _) = accepted;
        let Ok(uid) = stream.peer_cred().map(|who| who.uid()) else {
            continue;
        };
        if uid == socket.owner || uid == 0 {
            connections.serve(
                std::future::ready(Some(stream)),
                Peer::Socket { uid },
                router.clone(),
            );
        }
    }
    connections.drain().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admin_at(address: &str, socket: PathBuf) -> config::Admin {
        config::Admin {
            address: address.parse().unwrap(),
            socket,
            tokens: Vec::new(),
            hosts: Vec::new(),
            insecure: false,
            tls: None,
        }
    }

    #[tokio::test]
    async fn off_loopback_needs_to_be_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut admin = admin_at("0.0.0.0:0", folder.path().join("s"));
        let refused = Listeners::bind(&admin, None, None).await.err().unwrap();
        assert!(refused.to_string().contains("insecure: true"), "{refused}");
        admin.insecure = true;
        assert!(Listeners::bind(&admin, None, None).await.is_ok());
    }

    #[tokio::test]
    async fn a_socket_is_private_and_goes_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serin.sock");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Socket::bind(&path), Err(BindError::SocketInUse(_))));
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serin.sock");
        // Its file stays when a plain listener is dropped.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let again = Socket::bind(&path).unwrap();
        drop(again);
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Socket::bind(&path), Err(BindError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn port_zero_is_reported_as_the_port_it_became() {
        let folder = tempfile::tempdir().unwrap();
        let admin = admin_at("127.0.0.1:0", folder.path().join("s"));
        let telemetry = "127.0.0.1:0".parse().unwrap();
        let bound = Listeners::bind(&admin, None, Some(telemetry)).await.unwrap();
        assert_ne!(bound.admin_address().unwrap().port(), 0);
        assert_ne!(bound.telemetry_address().unwrap().port(), 0);
        let same = admin_at(
            &bound.admin_address().unwrap().to_string(),
            folder.path().join("t"),
        );
        assert!(matches!(
            Listeners::bind(&same, None, None).await,
            Err(BindError::Tcp { .. })
        ));
    }
}
