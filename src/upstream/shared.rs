//! An HTTP/2 connection that many requests share, as many at once as the other side lets be on it.
//!
//! A request beyond that would wait inside the library behind others, while a further connection could carry it: so each takes a
//! seat first, and whoever finds none opens another connection or waits for a seat.

use super::{connect::LocalExecutor, heads::Carried};
use hyper::client::conn::http2;
use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    rc::Rc,
    task::{Context, Waker},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// The seats of one connection.
#[derive(Debug, Default)]
pub(super) struct Seats {
    /// How many there are; 0: the other side has not said yet.
    most: Cell<usize>,
    taken: Cell<usize>,
    /// How many have been taken since it was opened.
    served: Cell<u32>,
    said: Notify,
    /// The task that asks the library how many there are.
    asks: RefCell<Option<Waker>>,
    /// The first look that found nobody on it.
    empty_since: Cell<Option<Instant>>,
    /// The largest head that the other side takes, as far as it says so.
    most_head: Cell<Option<u32>>,
    /// The heads that have been sent on it.
    carried: Carried,
    /// It has ended before an answer, and somebody knows.
    broken: Cell<bool>,
}

impl Seats {
    /// What the other side allows now, or nothing as long as it has said nothing.
    pub(super) fn allow(&self, most: usize) {
        if self.most.replace(most) == 0 && most > 0 {
            self.said.notify_one();
        }
    }

    /// Whoever reads the connection has read, and as long as nothing has been said that may be it.
    fn moved(&self) {
        if self.most.get() == 0
            && let Some(asks) = self.asks.take()
        {
            asks.wake();
        }
    }

    /// The task that calls [`Self::allow`] is this one.
    pub(super) fn asks(&self, cx: &Context<'_>) {
        if self.most.get() == 0 {
            self.asks.replace(Some(cx.waker().clone()));
        }
    }

    /// The other side has said how large a head may be, or that it has no limit to tell of.
    pub(super) fn limit_heads(&self, most: Option<u32>) {
        self.most_head.set(most);
    }

    /// The connection has ended; nobody needs to wait for what it says.
    pub(super) fn end(&self) {
        self.said.notify_one();
    }
}

/// Runs a connection's tasks on the worker's own thread. The library reads on one of them, and only another one can ask it what
/// it has read.
#[derive(Debug, Clone)]
pub(super) struct Runs(pub(super) Rc<Seats>);

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Runs {
    fn execute(&self, task: F) {
        if self.0.most.get() > 0 {
            return hyper::rt::Executor::execute(&LocalExecutor, task);
        }
        let (mut task, seats) = (Box::pin(task), Rc::clone(&self.0));
        tokio::task::spawn_local(poll_fn(move |cx| {
            let polled = task.as_mut().poll(cx);
            seats.moved();
            polled
        }));
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shared<B> {
    sender: http2::SendRequest<B>,
    seats: Rc<Seats>,
}

/// A connection on which one request has a seat.
#[derive(Debug)]
pub(super) struct Seated<B> {
    pub(super) sender: http2::SendRequest<B>,
    seat: Rc<Seats>,
}

impl<B> Shared<B> {
    pub(super) const fn new(sender: http2::SendRequest<B>, seats: Rc<Seats>) -> Shared<B> {
        Shared { sender, seats }
    }

    /// Takes a seat, if one is free.
    pub(super) fn seat(&self) -> Option<Seated<B>> {
        // One that allows none, or has said nothing, is given one request: it may change its mind.
        let free = !self.is_closed() && self.seats.taken.get() < self.seats.most.get().max(1);
        free.then(|| self.first_seat())
    }

    /// The seat of whoever has opened it, whether it allows one or not.
    pub(super) fn first_seat(&self) -> Seated<B> {
        self.seats.taken.set(self.seats.taken.get() + 1);
        self.seats.served.set(self.seats.served.get().saturating_add(1));
        self.seats.empty_since.set(None);
        Seated {
            sender: self.sender.clone(),
            seat: Rc::clone(&self.seats),
        }
    }

    /// Waits until it is known how many seats there are, for at most `limit`. One may wait.
    pub(super) async fn known(&self, limit: Duration) {
        if self.seats.most.get() == 0 {
            // Whoever says nothing is asked all the same: it may be busy.
            let _ = tokio::time::timeout(limit, self.seats.said.notified()).await;
        }
    }

    /// How large a head the other side says that it takes.
    pub(super) fn most_head(&self) -> Option<u32> {
        self.seats.most_head.get()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether it carries the last of this many requests, or has.
    pub(super) fn is_used_up(&self, most_served: u32) -> bool {
        self.seats.served.get() >= most_served
    }

    pub(super) fn is_empty(&self) -> bool {
        self.seats.taken.get() == 0
    }

    /// Since when nobody has been on it, as far as earlier looks have seen.
    pub(super) fn empty_since(&self, now: Instant) -> Option<Instant> {
        let seats = &self.seats;
        let since = self.is_empty().then(|| seats.empty_since.get().unwrap_or(now));
        seats.empty_since.set(since);
        since
    }

    /// Whether nobody has been on it for `limit`, as far as earlier looks have seen.
    pub(super) fn is_idle(&self, now: Instant, limit: Duration) -> bool {
        let since = self.empty_since(now);
        since.is_some_and(|since| now.saturating_duration_since(since) >= limit)
    }
}

impl<B> Seated<B> {
    /// The heads that have been sent on the connection.
    pub(super) fn carried(&self) -> &Carried {
        &self.seat.carried
    }

    /// It has ended before an answer. Whether nobody has said so yet.
    pub(super) fn broke(&self) -> bool {
        !self.seat.broken.replace(true)
    }
}

impl<B> Drop for Seated<B> {
    fn drop(&mut self) {
        let taken = &self.seat.taken;
        taken.set(taken.get().saturating_sub(1));
    }
}
