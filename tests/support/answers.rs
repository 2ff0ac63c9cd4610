//! What an upstream answers: the request's path says how it behaves.
//!
//! `/status/N` · `/bytes/N` with a length · `/stream/N` without · `/wait/MS` before the head · `/drip/N/MS` between bytes
//! · `/gate` when it is opened, `/gate/n` when it is opened for the n-th time too · `/stuck` as that, and the body is not read before · `/hang` never · `/early` without reading the body · `/half` breaks off after its head ·
//! `/reset` closes unanswered · `/head` keeps and returns the head it got · anything else: the body it got, or its name.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, Version,
    body::{Body, Frame, Incoming},
};
use std::{
    fmt::Write,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

pub type Payload = UnsyncBoxBody<Bytes, io::Error>;

/// What all connections of one copy share.
pub struct Shared {
    name: &'static str,
    pub seen: AtomicU64,
    pub in_flight: AtomicU64,
    pub connections: AtomicU64,
    pub failing: AtomicU32,
    pub refusing: AtomicU32,
    /// Of every thousand answers this many have the header `x-app-error`.
    pub marking: AtomicU32,
    /// Nothing is answered.
    pub hanging: AtomicBool,
    /// How often it has been opened for some; the most: for everybody.
    pub gate: watch::Sender<u32>,
    pub heads: Mutex<Vec<String>>,
    pub killed: AtomicBool,
    /// Requests after which a connection is gracefully closed; 0: never.
    pub recycle: AtomicU32,
}

impl Shared {
    pub fn new(name: &'static str) -> Shared {
        Shared {
            name,
            seen: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            failing: AtomicU32::new(0),
            refusing: AtomicU32::new(0),
            marking: AtomicU32::new(0),
            hanging: AtomicBool::new(false),
            gate: watch::channel(0).0,
            heads: Mutex::default(),
            killed: AtomicBool::new(false),
            recycle: AtomicU32::new(0),
        }
    }
}

/// A body of known length.
pub fn full(bytes: impl Into<Bytes>) -> Payload {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body of unknown length, in pieces that come when asked for.
pub fn pieces(pieces: Vec<Bytes>) -> Payload {
    let frames = pieces.into_iter().map(|piece| Ok(Frame::data(piece)));
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

/// A body whose pieces come one by one, `every` apart.
pub fn drip(pieces: usize, every: Duration, mut piece: impl FnMut() -> Bytes + Send + 'static) -> Payload {
    let start = tokio::time::Instant::now() + every;
    let ticks = tokio::time::interval_at(start, every);
    let frames = futures_util::stream::unfold((ticks, pieces), move |(mut ticks, left)| {
        let next = piece();
        async move {
            if left == 0 {
                return None;
            }
            ticks.tick().await;
            Some((Ok(Frame::data(next)), (ticks, left - 1)))
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

/// A request that has arrived; gone when its answer is, or with the copy.
struct Arrived(Arc<Shared>);

impl Drop for Arrived {
    fn drop(&mut self) {
        // When the copy was killed the number stays what it was.
        if !self.0.killed.load(Ordering::SeqCst) {
            self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Answers one request. An error closes the connection.
pub async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    last: bool,
) -> io::Result<Response<Payload>> {
    let path = request.uri().path().to_owned();
    if path == "/healthz" {
        return Ok(Response::new(full("")));
    }
    let number = shared.seen.fetch_add(1, Ordering::SeqCst) + 1;
    shared.in_flight.fetch_add(1, Ordering::SeqCst);
    let arrived = Arrived(Arc::clone(&shared));
    let bare = request.method() == Method::HEAD && request.version() == Version::HTTP_2;
    let is_one_of = |per_thousand: &AtomicU32| {
        let rate = u64::from(per_thousand.load(Ordering::SeqCst));
        number * rate / 1000 != (number - 1) * rate / 1000
    };
    let (fails, marked) = (is_one_of(&shared.failing), is_one_of(&shared.marking));
    let refuses = is_one_of(&shared.refusing);
    if shared.hanging.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
    let result = behave(&shared, &path, request).await;
    drop(arrived);
    let (status, body) = result?;
    let status = match (fails, refuses) {
        (true, _) => 500,
        (false, true) => 404,
        (false, false) => status,
    };
    let mut response = Response::builder()
        .status(status)
        .header("x-version", shared.name);
    if marked {
        response = response.header("x-app-error", "stock is gone");
    }
    if last {
        response = response.header("connection", "close");
    }
    if bare {
        // hyper leaves out a body that a HEAD must not have in HTTP/1.1 only.
        let length = body.size_hint().exact().unwrap_or_default();
        response = response.header("content-length", length);
        return Ok(response.body(full("")).unwrap());
    }
    Ok(response.body(body).unwrap())
}

async fn behave(shared: &Arc<Shared>, path: &str, request: Request<Incoming>) -> io::Result<(u16, Payload)> {
    let mut parts = path.split('/').skip(1);
    let what = parts.next().unwrap_or_default();
    let mut number = || parts.next().and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
    let millis = |n: u32| Duration::from_millis(u64::from(n));
    Ok(match what {
        "status" => {
            let status = u16::try_from(number()).unwrap_or(200);
            drained(request).await?;
            let empty = status == 204 || status == 304;
            (status, full(if empty { "" } else { shared.name }))
        }
        "bytes" => (200, full(vec![b'x'; number() as usize])),
        "stream" => {
            let mut left = number() as usize;
            let block = Bytes::from(vec![b'x'; 16 * 1024]);
            let mut all = Vec::new();
            while left > 0 {
                let size = left.min(block.len());
                all.push(block.slice(..size));
                left -= size;
            }
            (200, pieces(all))
        }
        "wait" => {
            drained(request).await?;
            let mut tick = tokio::time::interval(millis(number().max(1)));
            tick.tick().await;
            tick.tick().await;
            (200, full(shared.name))
        }
        "drip" => {
            let (count, every) = (number() as usize, millis(number().max(1)));
            (200, drip(count, every, || Bytes::from_static(b"x")))
        }
        "gate" => {
            drained(request).await?;
            let turn = Some(number()).filter(|turn| *turn > 0).unwrap_or(u32::MAX);
            let mut gate = shared.gate.subscribe();
            let _ = gate.wait_for(|open| *open >= turn).await;
            (200, full(shared.name))
        }
        "stuck" => {
            let mut gate = shared.gate.subscribe();
            let _ = gate.wait_for(|open| *open == u32::MAX).await;
            let mut body = request.into_body();
            let mut length = 0;
            while let Some(frame) = body.frame().await {
                length += frame.map_err(io::Error::other)?.data_ref().map_or(0, Bytes::len);
            }
            (200, full(length.to_string()))
        }
        "hang" => {
            drained(request).await?;
            std::future::pending::<()>().await;
            (200, full(""))
        }
        "early" => (200, full(shared.name)),
        "half" => {
            // The end comes late enough for the beginning to have been sent.
            let begin = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"half")))]);
            let end = futures_util::stream::once(async {
                let mut tick = tokio::time::interval(Duration::from_millis(50));
                tick.tick().await;
                tick.tick().await;
                Err(io::Error::other("half is all there is"))
            });
            let body = futures_util::StreamExt::chain(begin, end);
            (200, StreamBody::new(body).boxed_unsync())
        }
        "reset" => return Err(io::Error::other("no answer")),
        "head" => {
            let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
            for (name, value) in request.headers() {
                let value = String::from_utf8_lossy(value.as_bytes());
                let _ = writeln!(text, "{name}: {value}");
            }
            shared.heads.lock().unwrap().push(text.clone());
            (200, full(text))
        }
        _ => {
            let body = drained(request).await?;
            (
                200,
                full(if body.is_empty() {
                    Bytes::from_static(shared.name.as_bytes())
                } else {
                    body
                }),
            )
        }
    })
}

async fn drained(request: Request<Incoming>) -> io::Result<Bytes> {
    let body = request.into_body().collect().await.map_err(io::Error::other)?;
    Ok(body.to_bytes())
}
