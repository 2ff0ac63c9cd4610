//! The streams of a client's HTTP/2 connection, each on a task of its own: what goes wrong with one ends that one.
//!
//! A client that does not read a stream leaves its window closed. hyper waits for it, the other streams go on, and nobody else
//! would notice. So each stream says here when a piece of its answer waits to be taken, and the worker looks at all of them
//! once a second: no request needs a timer for it. A bug costs its stream, too: 500 before the answer has begun, a reset
//! after.

use super::{body::OutBody, exchange::InService, guard, io::Progress, reply};
use crate::metrics::{ControlMetrics, ListenerMetrics, Rejection};
use futures_util::FutureExt;
use http::{Response, Version};
use pin_project_lite::pin_project;
use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::Instant;

/// What a stream's task, its answer's body and the worker know together.
#[derive(Debug)]
pub(super) struct Stream {
    /// A piece of the answer waits for the client to take it.
    offered: Cell<bool>,
    /// The first look that found that piece.
    since: Cell<Option<Instant>>,
    /// How many bytes of the answer have been handed to the library.
    handed: Cell<u64>,
    /// How long it may wait.
    limit: Duration,
    progress: Rc<Progress>,
    stalled: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Where it is among its worker's streams.
    place: Cell<usize>,
}

impl Stream {
    /// A piece of the answer waits for room in the client's window.
    pub(super) fn offers(&self) {
        self.offered.set(true);
    }

    /// A piece of so many bytes is to be offered; whether all of it has room for certain.
    pub(super) fn has_room(&self, length: usize) -> bool {
        self.progress.windows.take(length, &self.handed)
    }

    /// It has been taken.
    pub(super) fn taken(&self) {
        self.offered.set(false);
        self.since.set(None);
    }

    fn look(&self, now: Instant) {
        if !self.offered.get() {
            return;
        }
        if self.progress.is_unsent() {
            // The whole connection waits for its client to read, which has its own limit: streams take turns on a slow one.
            self.since.set(None);
            return;
        }
        let since = self.since.get().unwrap_or(now);
        self.since.set(Some(since));
        if now.saturating_duration_since(since) >= self.limit {
            self.stalled.set(true);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }
}

/// All streams of one worker.
#[derive(Debug, Default)]
pub(super) struct Streams(RefCell<Vec<Rc<Stream>>>);

impl Streams {
    fn add(&self, limit: Duration, progress: &Rc<Progress>) -> Rc<Stream> {
        let mut all = self.0.borrow_mut();
        let stream = Rc::new(Stream {
            offered: Cell::new(false),
            since: Cell::new(None),
            handed: Cell::new(0),
            limit,
            progress: Rc::clone(progress),
            stalled: Cell::new(false),
            waker: RefCell::default(),
            place: Cell::new(all.len()),
        });
        all.push(Rc::clone(&stream));
        stream
    }

    fn remove(&self, stream: &Stream) {
        let mut all = self.0.borrow_mut();
        let place = stream.place.get();
        if place < all.len() {
            all.swap_remove(place);
        }
        if let Some(moved) = all.get(place) {
            moved.place.set(place);
        }
    }

    /// Ends the streams whose clients have taken nothing of what they were offered for too long.
    pub(super) fn look(&self, now: Instant) {
        for stream in &*self.0.borrow() {
            stream.look(now);
        }
    }
}

/// What the streams of one connection have in common.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) streams: Rc<Streams>,
    pub(super) progress: Rc<Progress>,
    pub(super) listener: Arc<ListenerMetrics>,
    pub(super) control: ControlMetrics,
    /// How long a piece of an answer may wait to be taken.
    pub(super) write_stall: Duration,
}

impl Scope {
    /// A request's answer, or 500 for one that was lost to a bug.
    pub(super) fn guard<F>(
        self: &Rc<Self>,
        serving: F,
    ) -> impl Future<Output = Result<Response<OutBody>, Infallible>> + use<F>
    where
        F: Future<Output = Result<Response<OutBody>, Infallible>>,
    {
        let this = Rc::clone(self);
        AssertUnwindSafe(serving).catch_unwind().map(move |served| {
            served.unwrap_or_else(|_| {
                guard::panicked(&this.control, "a request");
                Ok(this.apology())
            })
        })
    }

    fn apology(&self) -> Response<OutBody> {
        let mut response = reply::render(reply::Failure::BUG, reply::Form::Text);
        *response.version_mut() = Version::HTTP_2;
        let in_service = InService::begin(&self.progress);
        response.body_mut().hold(in_service, self.progress.stream());
        response
    }
}

/// Runs each stream of a connection on a task of its own.
#[derive(Clone)]
pub(super) struct StreamExecutor(pub(super) Rc<Scope>);

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, task: F) {
        let stream = self.0.streams.add(self.0.write_stall, &self.0.progress);
        let scope = Rc::clone(&self.0);
        scope.progress.stream_begins();
        tokio::task::spawn_local(Running {
            task,
            on: On { scope, stream },
        });
    }
}

pin_project! {
    /// A stream's task. Ended early, hyper's part of it is dropped and the library resets the stream with `CANCEL`.
    struct Running<F> {
        #[pin]
        task: F,
        on: On,
    }
}

struct On {
    scope: Rc<Scope>,
    stream: Rc<Stream>,
}

impl Drop for On {
    fn drop(&mut self) {
        self.scope.streams.remove(&self.stream);
    }
}

impl<F: Future<Output = ()>> Future for Running<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let On { scope, stream } = this.on;
        if stream.stalled.get() {
            scope.listener.reject(Rejection::Timeout);
            return Poll::Ready(());
        }
        scope.progress.enter(Some(Rc::clone(stream)));
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| this.task.poll(cx)));
        scope.progress.enter(None);
        let Ok(polled) = polled else {
            guard::panicked(&scope.control, "a stream");
            return Poll::Ready(());
        };
        if stream.offered.get() && polled.is_pending() {
            let mut waker = stream.waker.borrow_mut();
            match &mut *waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::LocalExecutor;
    use bytes::Bytes;
    use http::{Request, StatusCode};
    use http_body::{Body, Frame};
    use http_body_util::{BodyExt, Collected, Either, Empty};
    use hyper::{client::conn::http2 as client, server::conn::http2 as server, service::service_fn};
    use hyper_util::rt::TokioIo;

    /// A body with a bug in it.
    struct Broken;

    impl Body for Broken {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            panic!("a bug, made by this test");
        }
    }

    fn scope() -> Rc<Scope> {
        Rc::new(Scope {
            streams: Rc::default(),
            progress: Progress::new(true, 0),
            listener: Arc::new(ListenerMetrics::new("web")),
            control: ControlMetrics::register(&prometheus::Registry::new()).unwrap(),
            write_stall: Duration::from_secs(30),
        })
    }

    #[test]
    fn a_stream_is_stalled_when_a_piece_has_waited_and_each_piece_begins_anew() {
        let (streams, start) = (Streams::default(), Instant::now());
        let [idle, moves, stands] =
            [(); 3].map(|()| streams.add(Duration::from_secs(30), &Progress::new(true, 0)));
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..=30 {
            moves.taken();
            moves.offers();
            stands.offers();
            assert!(!stands.stalled.get());
            streams.look(at(second));
        }
        let stalled = [&idle, &moves, &stands].map(|one| one.stalled.get());
        assert_eq!(stalled, [false, false, true]);
    }

    #[test]
    fn a_stream_leaves_its_place_to_another_one() {
        let streams = Streams::default();
        let all = [(); 4].map(|()| streams.add(Duration::ZERO, &Progress::new(true, 0)));
        for gone in [1, 3, 0, 2] {
            streams.remove(&all[gone]);
            for (place, left) in streams.0.borrow().iter().enumerate() {
                assert_eq!(left.place.get(), place);
                assert!(!Rc::ptr_eq(left, &all[gone]));
            }
        }
        assert!(streams.0.borrow().is_empty());
    }

    #[tokio::test]
    async fn a_bug_in_one_request_costs_that_one_and_is_counted() {
        let local = tokio::task::LocalSet::new();
        local.run_until(bugs()).await;
    }

    async fn bugs() {
        let scope = scope();
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let guarding = Rc::clone(&scope);
        let serve = service_fn(move |request: Request<hyper::body::Incoming>| {
            let path = request.uri().path().to_owned();
            let served = guarding.guard(async move {
                tokio::task::yield_now().await;
                assert_ne!(path, "/head", "a bug, made by this test");
                Ok(Response::new(OutBody::own(Bytes::from(path))))
            });
            served.map(|served| {
                served.map(|response| {
                    let (head, body) = response.into_parts();
                    let broken = body.size_hint().exact() == Some(5);
                    let body = if broken {
                        Either::Left(Broken)
                    } else {
                        Either::Right(body)
                    };
                    Response::from_parts(head, body)
                })
            })
        });
        let executor = StreamExecutor(Rc::clone(&scope));
        let serving = server::Builder::new(executor).serve_connection(TokioIo::new(ours), serve);
        tokio::task::spawn_local(serving);
        let made = client::handshake(LocalExecutor, TokioIo::new(theirs)).await;
        let (sender, connection) = made.unwrap();
        tokio::task::spawn_local(connection);
        let panics = || scope.control.panics.with_label_values::<&str>(&[]).get();
        let ask = async |path: &str| {
            let asked = Request::get(format!("http://shop.test{path}"));
            let response = sender
                .clone()
                .send_request(asked.body(Empty::<Bytes>::new()).unwrap())
                .await
                .unwrap();
            let status = response.status();
            let body = response.into_body().collect().await.map(Collected::to_bytes);
            (status, body.ok())
        };
        let (status, body) = ask("/head").await;
        assert_eq!((status, panics()), (StatusCode::INTERNAL_SERVER_ERROR, 1));
        assert!(String::from_utf8_lossy(&body.unwrap()).contains("fault: proxy"));
        assert_eq!(ask("/body").await, (StatusCode::OK, None));
        assert_eq!(panics(), 2);
        let well = ask("/well/well").await;
        assert_eq!(well, (StatusCode::OK, Some(Bytes::from_static(b"/well/well"))));
        assert!(scope.progress.is_idle());
    }
}
