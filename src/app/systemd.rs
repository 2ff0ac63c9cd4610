//! What Serin and systemd tell each other: ready, reloading, stopping, still alive; and the sockets that systemd has opened.
//!
//! Everything here does nothing when nobody asked for it by its environment variable. Sockets that are passed stay open while
//! Serin restarts, so that clients wait in their queue instead of being refused.

use crate::{
    config::{BindAddress, Listener},
    proxy::{Shared, Socket},
};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{task::JoinHandle, time::Instant};

/// So many sockets a unit may pass: more than anybody has, and soon looked at.
const MOST_PASSED: usize = 1024;

/// A worker that has not looked up for so long is stuck; they do every second.
const STUCK: Duration = Duration::from_secs(5);

/// Listening sockets that were passed to this process, with the names that their unit gives them.
#[derive(Debug, Default)]
pub struct Passed(Vec<(String, Socket)>);

impl Passed {
    /// Takes what `LISTEN_FDS` announces. To be called once, before there are threads: it clears the variables.
    pub(super) fn from_env() -> Passed {
        let announced = std::env::var("LISTEN_FDS").unwrap_or_default();
        if is_beyond(&announced) {
            tracing::warn!(
                "LISTEN_FDS={announced} announces more sockets than the {MOST_PASSED} that a unit may pass; none is taken"
            );
            return Passed::default();
        }
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut all = ListenFd::from_env();
        let mut passed = Vec::new();
        for index in 0..all.len() {
            let name = names.next().unwrap_or_default().to_owned();
            let tcp = all.take_tcp_listener(index).ok().flatten();
            let tcp = tcp.map(|listener| Socket::Tcp {
                ours: false,
                listener,
            });
            let mut unix = || all.take_unix_listener(index).ok().flatten();
            let socket = tcp.or_else(|| {
                let listener = unix()?;
                Some(Socket::Unix { file: None, listener })
            });
            match socket {
                Some(socket) => passed.push((name, socket)),
                None => tracing::warn!(
                    "the passed descriptor `{name}` is no listening stream socket; it is left alone"
                ),
            }
        }
        Passed(passed)
    }

    /// The socket of a listener: the one of its name, or the one at its address.
    pub(super) fn take(&mut self, listener: &Listener) -> Option<Socket> {
        let named = self.0.iter().position(|(name, _)| *name == listener.name);
        let here = |socket: &Socket| match (socket, &listener.address) {
            (Socket::Tcp { listener: tcp, .. }, BindAddress::Tcp(address)) => {
                tcp.local_addr().is_ok_and(|at| at == *address)
            }
            (Socket::Unix { listener, .. }, BindAddress::Unix(path)) => listener
                .local_addr()
                .is_ok_and(|at| at.as_pathname() == Some(path)),
            (Socket::Tcp { .. }, BindAddress::Unix(_)) | (Socket::Unix { .. }, BindAddress::Tcp(_)) => false,
        };
        let found = named.or_else(|| self.0.iter().position(|(_, socket)| here(socket)))?;
        let (name, socket) = self.0.swap_remove(found);
        if is_elsewhere(&socket, &listener.address) {
            let written = &listener.address;
            tracing::warn!(
                listener = name,
                "listener `{name}` is served at the socket that was passed for it, and not at {written} as the configuration says"
            );
        }
        Some(socket)
    }

    /// Says which sockets no listener wanted; they are closed.
    pub(super) fn say_unused(self) {
        for (name, socket) in self.0 {
            let at = socket
                .local_addr()
                .map_or("a Unix socket".to_owned(), |at| at.to_string());
            tracing::warn!("the passed socket `{name}` at {at} belongs to no listener; it is closed");
        }
    }
}

/// Whether `LISTEN_FDS` announces more than can be looked at. What is no number at all announces nothing.
fn is_beyond(announced: &str) -> bool {
    let is_number = !announced.is_empty() && announced.bytes().all(|byte| byte.is_ascii_digit());
    is_number && announced.parse().map_or(true, |count: usize| count > MOST_PASSED)
}

/// Whether a socket takes connections at another address than the written one. All addresses of a machine are one, of whichever
/// kind, and port 0 is any.
fn is_elsewhere(socket: &Socket, written: &BindAddress) -> bool {
    match (socket, written) {
        (Socket::Tcp { listener: tcp, .. }, BindAddress::Tcp(written)) => tcp.local_addr().is_ok_and(|at| {
            let same_ip =
                at.ip() == written.ip() || at.ip().is_unspecified() && written.ip().is_unspecified();
            !same_ip || written.port() != 0 && at.port() != written.port()
        }),
        (Socket::Unix { listener, .. }, BindAddress::Unix(path)) => listener
            .local_addr()
            .is_ok_and(|at| at.as_pathname() != Some(path)),
        (Socket::Tcp { .. }, BindAddress::Unix(_)) | (Socket::Unix { .. }, BindAddress::Tcp(_)) => true,
    }
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

/// Serving.
pub(super) fn ready() {
    say(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// Reading the configuration again; [`ready`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => say(&[NotifyState::Reloading, now]),
        Err(_) => say(&[NotifyState::Reloading]),
    }
}

/// Tells systemd, as often as it asked, that no worker is stuck.
#[derive(Debug)]
pub(super) struct Watchdog {
    stopping: Arc<AtomicBool>,
    task: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(super) fn start(shared: Arc<Shared>) -> Watchdog {
        let stopping = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&stopping);
        let task = sd_notify::watchdog_enabled().map(|period| {
            tokio::spawn(async move {
                let mut every = tokio::time::interval((period / 2).max(Duration::from_millis(10)));
                let mut beats: Vec<(u64, Instant)> = Vec::new();
                loop {
                    let now = every.tick().await;
                    beats.resize(shared.beats.len(), (0, now));
                    for ((known, at), beat) in beats.iter_mut().zip(&shared.beats) {
                        let beat = beat.load(Ordering::Relaxed);
                        if beat != *known {
                            (*known, *at) = (beat, now);
                        }
                    }
                    let alive = beats
                        .iter()
                        .all(|(_, at)| now.saturating_duration_since(*at) < STUCK);
                    // Workers that drain end one by one.
                    if alive || ending.load(Ordering::Relaxed) {
                        say(&[NotifyState::Watchdog]);
                    }
                }
            })
        });
        Watchdog { stopping, task }
    }

    /// Stopping: what is in flight is finished first.
    pub(super) fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        say(&[
            NotifyState::Stopping,
            NotifyState::Status("finishing what is in flight"),
        ]);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
