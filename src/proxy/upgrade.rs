//! Connections that stop speaking HTTP: WebSocket and what else a service is configured for.
//!
//! A token goes through only when the client asks for it, the service allows it and the version switches to exactly that
//! (RFC 9110 7.8); before the 101 is seen nothing of what the client sends is passed on as anything but HTTP
//! (CVE-2026-2833). After it this is a pair of pipes with little buffers and one idle limit, in flight and on record until it
//! ends. It outlives a promotion; a canary that is withdrawn takes its tunnels along after `drain`, with a WebSocket close
//! frame where one fits (design section 8.9).

use super::{
    exchange::{End, Exchange, InService},
    seen::has_token,
    websocket::{Edge, going_away},
    withdrawn::Withdrawal,
};
use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, Version, header, request::Parts};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::{cell::Cell, io, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Notify,
    time::Instant,
};

/// What one direction holds at most.
const BUFFER: usize = 16 * 1024;
/// How long a connection may take to close once both sides have been told.
const CLOSING: Duration = Duration::from_secs(1);

/// The protocols a request asks for and may have, as the version is asked for them; none: it goes on as plain HTTP.
pub(super) fn asked(parts: &Parts, has_body: bool, allowed: &[Box<str>]) -> Option<HeaderValue> {
    // HTTP/1.0 knows no upgrade, HTTP/2 forbids it; a body would have to be told from the tunnel.
    if parts.version != Version::HTTP_11
        || has_body
        || !has_token(&parts.headers, &header::CONNECTION, "upgrade")
    {
        return None;
    }
    let mut tokens = String::new();
    for line in parts.headers.get_all(header::UPGRADE) {
        for token in line.to_str().ok()?.split(',').map(str::trim) {
            // A WebSocket's handshake is a GET (RFC 6455 4.2.1); a version that switches for anything else would be answering
            // what it took for a plain request.
            let fits = parts.method == Method::GET || !token.eq_ignore_ascii_case("websocket");
            if fits && allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(token)) {
                if !tokens.is_empty() {
                    tokens.push_str(", ");
                }
                tokens.push_str(token);
            }
        }
    }
    HeaderValue::try_from(tokens)
        .ok()
        .filter(|tokens| !tokens.is_empty())
}

/// The protocol an answer switches to, if it does and it is one that was asked for.
pub(super) fn agreed<B>(asked: &HeaderValue, answer: &Response<B>) -> Option<HeaderValue> {
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return None;
    }
    let answer = answer.headers();
    let mut lines = answer.get_all(header::UPGRADE).iter();
    let (protocol, None) = (lines.next()?, lines.next()) else {
        return None;
    };
    let known = asked
        .as_bytes()
        .split(|b| *b == b',')
        .any(|token| token.trim_ascii().eq_ignore_ascii_case(protocol.as_bytes()));
    (known && has_token(answer, &header::CONNECTION, "upgrade")).then(|| protocol.clone())
}

/// What a worker knows of a tunnel, to end it.
#[derive(Debug)]
pub(super) struct Ending {
    withdrawal: Option<Withdrawal>,
    now: Notify,
}

impl Ending {
    /// `withdrawal`: of the version, when it is one that may be withdrawn.
    pub(super) fn new(withdrawal: Option<Withdrawal>) -> Rc<Ending> {
        Rc::new(Ending {
            withdrawal,
            now: Notify::new(),
        })
    }

    /// Ends the tunnel.
    pub(super) fn end(&self) {
        self.now.notify_one();
    }

    /// Ends the tunnel if its version has been withdrawn for long enough. Called once a second.
    pub(super) fn look(&self, now: Instant) {
        if self
            .withdrawal
            .as_ref()
            .is_some_and(|withdrawal| withdrawal.is_over(now))
        {
            self.end();
        }
    }
}

/// Both sides have switched: what is needed to pass bytes between them.
pub(super) struct Tunnel {
    pub(super) upstream: Upgraded,
    pub(super) exchange: Exchange,
    pub(super) in_service: InService,
    pub(super) idle: Duration,
    pub(super) websocket: bool,
    pub(super) ending: Rc<Ending>,
    /// For the mask of a close frame.
    pub(super) dice: u64,
}

/// Why a tunnel ended.
enum Ended {
    /// Both sides are done.
    Quietly,
    /// The client's side broke.
    Client,
    /// The version's side broke.
    Upstream,
    /// Silence.
    Idle,
    /// We end it.
    Told,
}

impl Tunnel {
    /// Passes bytes until both sides are done. `early`: what the client has sent after its request.
    pub(super) async fn run<C: AsyncRead + AsyncWrite + Unpin>(self, client: C, early: Bytes) {
        let Tunnel {
            upstream,
            mut exchange,
            in_service,
            idle,
            websocket,
            ending,
            dice,
        } = self;
        let (client_reads, client_writes) = tokio::io::split(client);
        let (upstream_reads, upstream_writes) = tokio::io::split(TokioIo::new(upstream));
        let moved = Cell::new(Instant::now());
        let mut up = Way::new(client_reads, upstream_writes, websocket);
        let mut down = Way::new(upstream_reads, client_writes, websocket);
        let ended = {
            let first = async {
                if !early.is_empty() {
                    up.send(&early, &moved).await.map_err(|_| Ended::Upstream)?;
                }
                up.pass(&moved)
                    .await
                    .map_err(|reads| if reads { Ended::Client } else { Ended::Upstream })
            };
            let second = async {
                down.pass(&moved)
                    .await
                    .map_err(|reads| if reads { Ended::Upstream } else { Ended::Client })
            };
            tokio::select! {
                both = async { tokio::try_join!(first, second) } => both.map_or_else(|ended| ended, |_| Ended::Quietly),
                () = silence(&moved, idle) => Ended::Idle,
                () = ending.now.notified() => Ended::Told,
            }
        };
        if matches!(ended, Ended::Told | Ended::Idle) {
            let (to_client, to_upstream) = (going_away(None), going_away(Some(dice)));
            let closing = async {
                tokio::join!(down.close(&to_client), up.close(&to_upstream));
                // What is still on its way is read, or the close frame would be lost to a reset.
                up.skip().await;
            };
            let _ = tokio::time::timeout(CLOSING, closing).await;
        }
        exchange.sends(down.bytes);
        exchange.end(match ended {
            Ended::Quietly | Ended::Idle | Ended::Told => End::Complete,
            Ended::Client => End::ClientGone,
            Ended::Upstream => End::Broken,
        });
        drop(in_service);
    }
}

/// Returns when nothing has moved for `idle`.
async fn silence(moved: &Cell<Instant>, idle: Duration) {
    loop {
        let until = moved.get() + idle;
        if Instant::now() >= until {
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}

/// One direction.
struct Way<R, W> {
    from: R,
    to: W,
    /// Where WebSocket frames begin and end.
    edge: Option<Edge>,
    /// A write is under way: what has been sent ends somewhere inside it.
    writing: bool,
    bytes: usize,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Way<R, W> {
    fn new(from: R, to: W, websocket: bool) -> Self {
        Way {
            from,
            to,
            edge: websocket.then(Edge::default),
            writing: false,
            bytes: 0,
        }
    }

    /// Passes everything, then the end. The error says whether reading failed.
    async fn pass(&mut self, moved: &Cell<Instant>) -> Result<(), bool> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = self.from.read(&mut buffer).await.map_err(|_| true)?;
            if n == 0 {
                return self.to.shutdown().await.map_err(|_| false);
            }
            let piece = buffer.get(..n).unwrap_or_default();
            self.send(piece, moved).await.map_err(|_| false)?;
        }
    }

    async fn send(&mut self, piece: &[u8], moved: &Cell<Instant>) -> io::Result<()> {
        self.writing = true;
        self.to.write_all(piece).await?;
        self.to.flush().await?;
        self.writing = false;
        if let Some(edge) = &mut self.edge {
            edge.follow(piece);
        }
        self.bytes += piece.len();
        moved.set(Instant::now());
        Ok(())
    }

    /// Says why, where that cannot be taken for a part of something else, and ends this direction.
    async fn close(&mut self, frame: &[u8]) {
        if !self.writing && self.edge.as_ref().is_some_and(Edge::is_between_frames) {
            let _ = self.to.write_all(frame).await;
        }
        let _ = self.to.shutdown().await;
    }

    /// Reads to the end without passing anything on.
    async fn skip(&mut self) {
        let mut buffer = vec![0; 1024];
        while self.from.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn request(version: Version, fields: &[(&str, &str)]) -> Parts {
        let mut builder = Request::builder().uri("/").version(version);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn passes(fields: &[(&str, &str)]) -> Option<String> {
        let allowed: Vec<Box<str>> = vec!["websocket".into(), "tcp".into()];
        let parts = request(Version::HTTP_11, fields);
        asked(&parts, false, &allowed).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn only_allowed_tokens_that_connection_names_are_asked_for() {
        let connection = ("connection", "keep-alive, Upgrade");
        assert_eq!(
            passes(&[connection, ("upgrade", "WebSocket")]).unwrap(),
            "WebSocket"
        );
        assert_eq!(
            passes(&[connection, ("upgrade", "h2c, websocket, x")]).unwrap(),
            "websocket"
        );
        assert_eq!(
            passes(&[connection, ("upgrade", "tcp"), ("upgrade", "websocket")]).unwrap(),
            "tcp, websocket"
        );
        assert_eq!(passes(&[connection, ("upgrade", "h2c")]), None);
        assert_eq!(passes(&[("upgrade", "websocket")]), None);
        assert_eq!(
            passes(&[("connection", "upgrader"), ("upgrade", "websocket")]),
            None
        );
        let allowed: Vec<Box<str>> = vec!["websocket".into()];
        let fields = [connection, ("upgrade", "websocket")];
        assert!(asked(&request(Version::HTTP_11, &fields), true, &allowed).is_none());
        assert!(asked(&request(Version::HTTP_10, &fields), false, &allowed).is_none());
    }

    #[test]
    fn a_switch_is_taken_only_to_what_was_asked_for() {
        let asked = HeaderValue::from_static("websocket, tcp");
        let answer = |fields: &[(&'static str, &'static str)]| {
            let mut answer = Response::builder().status(101);
            for (name, value) in fields {
                answer = answer.header(*name, *value);
            }
            agreed(&asked, &answer.body(()).unwrap()).is_some()
        };
        let connection = ("connection", "Upgrade");
        assert!(answer(&[connection, ("upgrade", "WebSocket")]));
        assert!(answer(&[connection, ("upgrade", "tcp")]));
        assert!(!answer(&[connection, ("upgrade", "foo")]));
        assert!(!answer(&[
            connection,
            ("upgrade", "websocket"),
            ("upgrade", "tcp")
        ]));
        assert!(!answer(&[connection]) && !answer(&[("upgrade", "websocket")]));
    }
}
