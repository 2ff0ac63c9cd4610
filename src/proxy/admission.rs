//! Which clients are let in: as many as there are places for, at their listener and in the whole process.
//!
//! When all are taken, connections that have been idle for longest make way. When none is idle the newcomer is told to come
//! again, which costs little and keeps no descriptor.

use super::{
    io::Progress,
    worker::{ListenerState, WorkerState},
};
use crate::metrics::Rejection;
use std::{
    io::{Read, Write},
    rc::Rc,
    sync::atomic::Ordering,
    time::Duration,
};
use tokio::time::Instant;

/// Connections that make way at once, and for how long nobody looks for more when there were none.
const AT_ONCE: usize = 16;
const EVERY: Duration = Duration::from_millis(10);
/// After as many refusals accepting pauses: being full shall cost less than being busy.
const BREATH: Duration = Duration::from_millis(40);

/// What a newcomer is told when there is no place.
const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// A client connection's place among those allowed.
pub(super) struct Place {
    worker: Rc<WorkerState>,
    listener: Rc<ListenerState>,
}

impl Place {
    /// Takes one, if there is one.
    fn take(worker: &Rc<WorkerState>, listener: &Rc<ListenerState>) -> Option<Place> {
        let here = listener.metrics.connections.fetch_add(1, Ordering::Relaxed);
        worker.connections.set(worker.connections.get() + 1);
        let place = Place {
            worker: Rc::clone(worker),
            listener: Rc::clone(listener),
        };
        let most_here = listener.config.limits.connections.map_or(u64::MAX, u64::from);
        let fits = worker.shared.descriptors.enter();
        (fits && here < most_here).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let worker = &self.worker;
        worker.connections.set(worker.connections.get().saturating_sub(1));
        worker.shared.descriptors.leave();
        self.listener.metrics.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl WorkerState {
    /// A place for one more client; none when all are taken by clients that are being served.
    pub(super) async fn place(self: &Rc<Self>, listener: &Rc<ListenerState>) -> Option<Place> {
        let place = Place::take(self, listener);
        if place.is_some() {
            return place;
        }
        let now = Instant::now();
        let versions = self.pools.make_room(&self.shared.descriptors, now);
        let clients = self.make_way(listener, now);
        if versions || clients {
            // They leave as soon as their tasks run.
            tokio::task::yield_now().await;
            let place = Place::take(self, listener);
            if place.is_some() {
                return place;
            }
        }
        listener.metrics.reject(Rejection::Connections);
        None
    }

    /// A place for a client that the kernel let in before Serin stopped: nobody makes way any more.
    pub(super) fn last_place(self: &Rc<Self>, listener: &Rc<ListenerState>) -> Option<Place> {
        let place = Place::take(self, listener);
        if place.is_none() {
            listener.metrics.reject(Rejection::Connections);
        }
        place
    }

    /// Closes the connections of this worker that have been idle for longest; whether there are any.
    fn make_way(&self, listener: &ListenerState, now: Instant) -> bool {
        if now.saturating_duration_since(self.all_busy.get()) < EVERY {
            return false;
        }
        // A listener that is full by itself gains nothing from places elsewhere.
        let most_here = listener.config.limits.connections.map_or(u64::MAX, u64::from);
        let only_here = listener.metrics.connections.load(Ordering::Relaxed) >= most_here;
        let open = self.open.borrow();
        // What became idle within the last second may not have been noticed yet: of those the oldest connections go.
        let mut idle: Vec<((Instant, u64), Rc<Progress>)> = open
            .iter()
            .filter(|(_, progress)| !only_here || progress.listener == listener.index)
            .filter_map(|(key, progress)| Some(((progress.idle_since(now)?, *key), Rc::clone(progress))))
            .collect();
        drop(open);
        if idle.len() > AT_ONCE {
            idle.select_nth_unstable_by_key(AT_ONCE, |(order, _)| *order);
            idle.truncate(AT_ONCE);
        }
        for (_, progress) in &idle {
            progress.drain();
        }
        if idle.is_empty() {
            self.all_busy.set(now);
        }
        !idle.is_empty()
    }
}

/// How many newcomers were refused without a break.
#[derive(Debug, Default)]
pub(super) struct Refused(usize);

impl Refused {
    /// Counts one, and now and then pauses.
    pub(super) async fn one_more(&mut self) {
        self.0 += 1;
        if self.0.is_multiple_of(AT_ONCE) {
            tokio::time::sleep(BREATH).await;
        }
    }
}

/// Says that there is no place, to whoever asks in HTTP/1.1, and closes. Neither reading nor writing may wait: what has not
/// come by now is not waited for.
pub(super) fn refuse(stream: impl Read + Write, listener: &ListenerState) {
    let mut stream = stream;
    let mut asked = [0; 4096];
    // What lies unread at the end would take the answer away.
    let begun = stream.read(&mut asked).unwrap_or(0);
    let http2 = asked[..begun].starts_with(b"PRI ");
    if listener.tls.is_none() && !http2 {
        let _ = stream.write(BUSY);
    }
}
