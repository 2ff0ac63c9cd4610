//! Who of an admin or telemetry address' connections is served, and who makes way.
//!
//! There are few seats. A newcomer who finds none takes that of whoever has been without a request for the longest, so that
//! connections that do nothing cannot keep a scrape or a probe out; one that does not take its answer (`stall`) counts as one.
//! `listen` accepts; here is what comes after.

use super::{Admin, Peer, stall::Taken};
use axum::{Router, body::Body};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tower::ServiceExt;

/// Connections at once, at each address, however many files may be open.
const CONNECTIONS: usize = 256;
/// For a whole request head, and between two requests.
pub(super) const HEAD: Duration = Duration::from_secs(10);
/// What is in flight when stopping may take this long.
const DRAIN: Duration = Duration::from_secs(5);
/// After an accept that failed (too many open files, say).
const BREATHE: Duration = Duration::from_millis(100);
/// Instead of the moment since when a connection is idle: it is not, or it is on its way out.
const BUSY: u64 = u64::MAX;

/// The connections of one listener.
pub(super) struct Connections {
    tasks: JoinSet<()>,
    seats: Arc<Semaphore>,
    seated: Vec<Weak<Seated>>,
    turns: Arc<AtomicU64>,
    stopping: watch::Receiver<bool>,
}

/// One connection, as those who look for a seat see it.
pub(super) struct Seated {
    /// The turn at which it came, its last answer ended, or it had taken nothing of one for too long; otherwise [`BUSY`] from a
    /// request's head to the end of its answer.
    idle_since: AtomicU64,
    turns: Arc<AtomicU64>,
    make_way: Notify,
}

impl Seated {
    pub(super) fn new(turns: &Arc<AtomicU64>) -> Seated {
        Seated {
            idle_since: AtomicU64::new(turns.fetch_add(1, Ordering::Relaxed)),
            turns: Arc::clone(turns),
            make_way: Notify::new(),
        }
    }

    /// It has sent a request; idle again when what this gives is dropped.
    pub(super) fn answering(self: &Arc<Self>) -> Answering {
        self.idle_since.store(BUSY, Ordering::Relaxed);
        Answering(Arc::clone(self))
    }

    /// It does not take its answer, or waits for others' to be written: whoever comes may have its seat. The turn, if it was not
    /// idle anyway.
    pub(super) fn stalls(&self) -> Option<u64> {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        self.moves(BUSY, turn).then_some(turn)
    }

    /// It goes on after that turn.
    pub(super) fn goes_on(&self, turn: u64) {
        self.moves(turn, BUSY);
    }

    fn moves(&self, from: u64, to: u64) -> bool {
        self.idle_since
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

/// Goes with an answer until its body has ended or is given up.
pub(super) struct Answering(Arc<Seated>);

impl Drop for Answering {
    fn drop(&mut self) {
        let turn = self.0.turns.fetch_add(1, Ordering::Relaxed);
        self.0.idle_since.store(turn, Ordering::Relaxed);
    }
}

/// Asks whoever has been idle for the longest to leave; false when everybody is being answered.
pub(super) fn ask_the_longest_idle(seated: &[Weak<Seated>]) -> bool {
    let idle = seated.iter().filter_map(Weak::upgrade).filter_map(|seated| {
        let since = seated.idle_since.load(Ordering::Relaxed);
        (since != BUSY).then_some((since, seated))
    });
    let Some((since, longest)) = idle.min_by_key(|(since, _)| *since) else {
        return false;
    };
    // A request may have come in since: then it is answered, and the newcomer looks again.
    if longest.moves(since, BUSY) {
        longest.make_way.notify_one();
        return true;
    }
    ask_the_longest_idle(seated)
}

impl Connections {
    pub(super) fn new(admin: &Admin) -> Connections {
        Connections {
            tasks: JoinSet::new(),
            seats: Arc::new(Semaphore::new(admin.parts.connections.min(CONNECTIONS))),
            seated: Vec::new(),
            turns: Arc::default(),
            stopping: admin.stopping.clone(),
        }
    }

    /// The next connection; none when stopping.
    pub(super) async fn next<T, F>(&mut self, mut accept: impl FnMut() -> F) -> Option<T>
    where
        F: Future<Output = io::Result<T>>,
    {
        loop {
            while self.tasks.try_join_next().is_some() {}
            tokio::select! {
                biased;
                () = super::stopped(&mut self.stopping) => return None,
                accepted = accept() => match accepted {
                    Ok(accepted) => return Some(accepted),
                    Err(error) => {
                        tracing::warn!(%error, "the admin server cannot accept a connection");
                        tokio::time::sleep(BREATHE).await;
                    }
                },
            }
        }
    }

    /// Serves what `arriving` gives, if it gives anything: a handshake may fail, and nobody here could mend that.
    pub(super) fn serve<S>(
        &mut self,
        arriving: impl Future<Output = Option<S>> + Send + 'static,
        peer: Peer,
        router: Router,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.seated.retain(|seated| seated.strong_count() > 0);
        let free = Arc::clone(&self.seats).try_acquire_owned().ok();
        // When everybody is being answered it is closed at once: better than waiting without an end.
        if free.is_none() && !ask_the_longest_idle(&self.seated) {
            return;
        }
        let seated = Arc::new(Seated::new(&self.turns));
        self.seated.push(Arc::downgrade(&seated));
        let (seats, mut stopping) = (Arc::clone(&self.seats), self.stopping.clone());
        self.tasks.spawn(async move {
            let arriving = async {
                let seat = match free {
                    Some(seat) => seat,
                    // Somebody is leaving.
                    None => seats.acquire_owned().await.ok()?,
                };
                Some((seat, arriving.await?))
            };
            let arrived = tokio::select! {
                arrived = arriving => arrived,
                () = seated.make_way.notified() => None,
                () = super::stopped(&mut stopping) => None,
            };
            let Some((_seat, stream)) = arrived else { return };
            let (asking, stream) = (Arc::clone(&seated), Taken::new(stream, Arc::clone(&seated)));
            let service = service_fn(move |mut request: hyper::Request<Incoming>| {
                let answering = asking.answering();
                request.extensions_mut().insert(peer);
                request.extensions_mut().insert(Arc::clone(&asking));
                let answer = router.clone().oneshot(request.map(Body::new));
                async move {
                    let answer = answer.await?;
                    Ok::<_, std::convert::Infallible>(answer.map(|body| {
                        body.map_err(move |error| {
                            let _until_the_end = &answering;
                            error
                        })
                    }))
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_headers(100)
                .max_buf_size(64 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                // A client that broke off or was too slow: nothing that anybody could mend here.
                _ = connection.as_mut() => {}
                () = seated.make_way.notified() => {}
                () = super::stopped(&mut stopping) => {
                    connection.as_mut().graceful_shutdown();
                    let _ = timeout(DRAIN, connection).await;
                }
            }
        });
    }

    /// Waits for what is in flight, not without an end.
    pub(super) async fn drain(mut self) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        let _ = timeout(DRAIN, all).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(seated: &Seated) -> bool {
        use futures_util::FutureExt;
        seated.make_way.notified().now_or_never().is_some()
    }

    #[test]
    fn the_longest_idle_makes_way_and_whoever_is_being_answered_does_not() {
        let turns = Arc::default();
        let all: Vec<_> = (0..3).map(|_| Arc::new(Seated::new(&turns))).collect();
        let weak: Vec<_> = all.iter().map(Arc::downgrade).collect();
        let answering = all[0].answering();
        drop(all[1].answering());
        assert!(ask_the_longest_idle(&weak));
        assert_eq!([0, 1, 2].map(|n| leaves(&all[n])), [false, false, true]);
        assert!(ask_the_longest_idle(&weak));
        assert_eq!([0, 1, 2].map(|n| leaves(&all[n])), [false, true, false]);
        assert!(
            !ask_the_longest_idle(&weak),
            "one is being answered, two have left"
        );
        drop(answering);
        assert!(ask_the_longest_idle(&weak));
    }
}
