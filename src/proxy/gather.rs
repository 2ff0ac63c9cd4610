//! What an HTTP/2 connection writes in one turn, gathered into one write.
//!
//! The library writes and flushes each DATA frame by itself, so that a client's eight answers cost eight system calls (and
//! under TLS eight records). Here small pieces wait until the connection's task has done all that there was to do
//! ([`Together`]); large ones go straight through. A client that does not take what is written is waited for as before:
//! nothing more is taken in, and its stall is seen below, where it writes.

use hyper::rt::{Read, ReadBufCursor, Write};
use std::{
    cell::{Cell, RefCell},
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

/// The most that waits for the end of a turn, in bytes: what one TLS record takes (RFC 8446 5.1).
const MOST: usize = 16 * 1024;

/// The most pieces that are handed on at once beside what waits.
const MOST_PIECES: usize = 8;

/// A worker's buffer, lent to the connection whose turn it is. One that cannot write yet keeps it, and the next one gets
/// another.
pub(super) type Lent = Rc<Cell<Vec<u8>>>;

/// The connection as the library sees it. See the module.
pub(super) struct Gathered<W>(Rc<RefCell<Gathering<W>>>);

struct Gathering<W> {
    inner: W,
    /// What has been taken in is `buffer[written..]`.
    buffer: Vec<u8>,
    written: usize,
    /// The last flush has been promised only.
    unflushed: bool,
    /// The client takes no more right now.
    blocked: bool,
    /// Why what had been taken in cannot be written: whoever asks next is told.
    failed: Option<io::Error>,
    lent: Lent,
}

impl<W> Gathering<W> {
    fn check(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }
}

impl<W: Write + Unpin> Gathering<W> {
    fn waiting(&self) -> &[u8] {
        self.buffer.get(self.written..).unwrap_or_default()
    }

    fn take_in<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) {
        if self.buffer.capacity() == 0 {
            self.buffer = self.lent.take();
            self.buffer.reserve(MOST);
        }
        pieces.for_each(|piece| self.buffer.extend_from_slice(piece));
        self.unflushed = true;
    }

    /// So many bytes have gone, of what waits and then of `pieces`: how many of the latter.
    fn gone(&mut self, count: usize) -> usize {
        let waiting = self.buffer.len() - self.written;
        if count < waiting {
            self.written += count;
            return 0;
        }
        self.written = 0;
        self.buffer.clear();
        if self.buffer.capacity() > 0 {
            self.lent.set(std::mem::take(&mut self.buffer));
        }
        count - waiting
    }

    /// Writes what waits, and then as much of `pieces` as the client takes at once. Ready with 0 only if `pieces` are empty.
    fn write(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let wanted = pieces.iter().any(|piece| !piece.is_empty());
        loop {
            let polled = if self.waiting().is_empty() {
                if !wanted {
                    self.blocked = false;
                    return Poll::Ready(Ok(0));
                }
                Pin::new(&mut self.inner).poll_write_vectored(cx, pieces)
            } else {
                let waiting = self.buffer.get(self.written..).unwrap_or_default();
                let mut all = [IoSlice::new(&[]); MOST_PIECES + 1];
                let mut count = 0;
                for (place, piece) in all
                    .iter_mut()
                    .zip([waiting].into_iter().chain(pieces.iter().map(|piece| &**piece)))
                {
                    *place = IoSlice::new(piece);
                    count += 1;
                }
                Pin::new(&mut self.inner).poll_write_vectored(cx, all.get(..count).unwrap_or_default())
            };
            let Poll::Ready(count) = polled else {
                self.blocked = true;
                return Poll::Pending;
            };
            let count = count?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            let of_pieces = self.gone(count);
            if of_pieces > 0 {
                self.blocked = false;
                return Poll::Ready(Ok(of_pieces));
            }
        }
    }

    /// Writes all that waits, and has it sent.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write(cx, &[]))?;
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.blocked = flushed.is_pending();
        self.unflushed = self.blocked;
        flushed
    }

    /// The end of a turn. `false`: the connection is broken and has to be told.
    fn settle(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.unflushed || self.failed.is_some() {
            return true;
        }
        match self.flush(cx) {
            Poll::Ready(Err(error)) => {
                self.failed = Some(error);
                self.unflushed = false;
                false
            }
            Poll::Ready(Ok(())) | Poll::Pending => true,
        }
    }
}

impl<W: Read + Unpin> Read for Gathered<W> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        gathering.check()?;
        Pin::new(&mut gathering.inner).poll_read(cx, buf)
    }
}

impl<W: Write + Unpin> Write for Gathered<W> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut gathering = self.0.borrow_mut();
        gathering.check()?;
        let length: usize = bufs.iter().map(|buf| buf.len()).sum();
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        if gathering.blocked || gathering.waiting().len() + length > MOST {
            return gathering.write(cx, bufs);
        }
        gathering.take_in(bufs.iter().map(|buf| &**buf));
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        gathering.check()?;
        if gathering.unflushed && !gathering.blocked {
            return Poll::Ready(Ok(()));
        }
        gathering.flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        gathering.check()?;
        ready!(gathering.flush(cx))?;
        Pin::new(&mut gathering.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

/// A connection whose writes go out together at the end of each turn of its task.
pub(super) struct Together<C, W> {
    pub(super) connection: Pin<Box<C>>,
    io: Gathered<W>,
}

impl<C, W> Together<C, W> {
    /// `serve` makes the connection of its input and output.
    pub(super) fn new(inner: W, lent: Lent, serve: impl FnOnce(Gathered<W>) -> C) -> Together<C, W> {
        let gathering = Rc::new(RefCell::new(Gathering {
            inner,
            buffer: Vec::new(),
            written: 0,
            unflushed: false,
            blocked: false,
            failed: None,
            lent,
        }));
        Together {
            connection: Box::pin(serve(Gathered(Rc::clone(&gathering)))),
            io: Gathered(gathering),
        }
    }
}

impl<C: Future, W: Write + Unpin> Future for Together<C, W> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let polled = self.connection.as_mut().poll(cx);
        let whole = self.io.0.borrow_mut().settle(cx);
        if whole || polled.is_ready() {
            return polled;
        }
        self.connection.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::SmallRng};
    use std::task::Waker;

    /// A peer that says how much it takes of the next write: nothing more than there is room for; none when that is 0.
    #[derive(Default)]
    struct Peer {
        room: usize,
        got: Vec<u8>,
        writes: usize,
        flushes: usize,
        closed: bool,
        broken: bool,
    }

    type Shared = Rc<RefCell<Peer>>;

    struct ToPeer(Shared);

    impl Read for ToPeer {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl Write for ToPeer {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(buf)])
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let mut peer = self.0.borrow_mut();
            if peer.broken {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
            let count = all.len().min(peer.room);
            if count == 0 {
                return Poll::Pending;
            }
            peer.room -= count;
            peer.writes += 1;
            peer.got.extend_from_slice(&all[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0.borrow_mut().flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0.borrow_mut().closed = true;
            Poll::Ready(Ok(()))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }
    }

    /// A connection that does in each turn what it is told.
    type Turn = Box<dyn FnMut(&mut Gathered<ToPeer>, &mut Context<'_>) -> Poll<io::Result<()>>>;

    struct Connection {
        io: Gathered<ToPeer>,
        turn: Rc<RefCell<Turn>>,
    }

    impl Future for Connection {
        type Output = io::Result<()>;

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let turn = Rc::clone(&self.turn);
            (turn.borrow_mut())(&mut self.io, cx)
        }
    }

    struct Bench {
        peer: Shared,
        turn: Rc<RefCell<Turn>>,
        together: Together<Connection, ToPeer>,
    }

    impl Bench {
        fn new(room: usize) -> Bench {
            let peer = Shared::default();
            peer.borrow_mut().room = room;
            let turn: Rc<RefCell<Turn>> = Rc::new(RefCell::new(Box::new(|_, _| Poll::Pending)));
            let together = Together::new(ToPeer(Rc::clone(&peer)), Lent::default(), |io| Connection {
                io,
                turn: Rc::clone(&turn),
            });
            Bench { peer, turn, together }
        }

        fn turn(
            &mut self,
            does: impl FnMut(&mut Gathered<ToPeer>, &mut Context<'_>) -> Poll<io::Result<()>> + 'static,
        ) -> Poll<io::Result<()>> {
            *self.turn.borrow_mut() = Box::new(does);
            Pin::new(&mut self.together).poll(&mut Context::from_waker(Waker::noop()))
        }
    }

    /// Writes as the library does: a piece, and a flush after it.
    fn write(io: &mut Gathered<ToPeer>, cx: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut *io).poll_write_vectored(cx, &[IoSlice::new(piece)]))?;
        ready!(Pin::new(io).poll_flush(cx))?;
        Poll::Ready(Ok(written))
    }

    #[test]
    fn what_is_written_in_one_turn_is_one_write() {
        let mut bench = Bench::new(usize::MAX);
        let seen = Rc::clone(&bench.peer);
        let polled = bench.turn(move |io, cx| {
            for piece in [b"one".as_slice(), b"two", b"three"] {
                assert!(matches!(write(io, cx, piece), Poll::Ready(Ok(n)) if n == piece.len()));
            }
            assert_eq!(seen.borrow().writes, 0, "it waits for the end of the turn");
            Poll::Pending
        });
        assert!(polled.is_pending());
        let peer = bench.peer.borrow();
        assert_eq!(
            (&*peer.got, peer.writes, peer.flushes),
            (b"onetwothree".as_slice(), 1, 1)
        );
    }

    #[test]
    fn a_large_piece_goes_through_with_what_waits_before_it() {
        let mut bench = Bench::new(usize::MAX);
        let seen = Rc::clone(&bench.peer);
        let _ = bench.turn(move |io, cx| {
            assert!(matches!(write(io, cx, b"head"), Poll::Ready(Ok(4))));
            assert!(matches!(write(io, cx, &[7; MOST]), Poll::Ready(Ok(MOST))));
            assert_eq!((seen.borrow().writes, seen.borrow().got.len()), (1, MOST + 4));
            Poll::Pending
        });
        let peer = bench.peer.borrow();
        assert_eq!((peer.writes, peer.flushes), (1, 1), "and is flushed once");
    }

    #[test]
    fn a_peer_that_does_not_read_is_given_no_more_than_one_buffer() {
        let mut bench = Bench::new(5);
        let _ = bench.turn(|io, cx| {
            assert!(matches!(write(io, cx, b"0123456789"), Poll::Ready(Ok(10))));
            Poll::Pending
        });
        assert_eq!(bench.peer.borrow().got, b"01234");
        let _ = bench.turn(|io, cx| {
            assert!(write(io, cx, b"abc").is_pending(), "blocked: nothing is taken in");
            assert!(Pin::new(io).poll_flush(cx).is_pending());
            Poll::Pending
        });
        bench.peer.borrow_mut().room = usize::MAX;
        let _ = bench.turn(|_, _| Poll::Pending);
        assert_eq!(
            bench.peer.borrow().got,
            b"0123456789",
            "the task itself goes on with it"
        );
        let _ = bench.turn(|io, cx| write(io, cx, b"abc").map(|written| written.map(|_| ())));
        assert_eq!(bench.peer.borrow().got, b"0123456789abc");
    }

    #[test]
    fn nothing_is_lost_when_the_connection_ends() {
        let mut bench = Bench::new(usize::MAX);
        let closed = bench.turn(|io, cx| {
            assert!(matches!(write(io, cx, b"goodbye"), Poll::Ready(Ok(7))));
            Pin::new(io).poll_shutdown(cx)
        });
        assert!(matches!(closed, Poll::Ready(Ok(()))));
        assert_eq!(bench.peer.borrow().got, b"goodbye");
        assert!(bench.peer.borrow().closed);
    }

    #[test]
    fn a_connection_that_broke_after_its_turn_is_told_at_once() {
        let mut bench = Bench::new(usize::MAX);
        bench.peer.borrow_mut().broken = true;
        let ended = bench.turn(|io, cx| {
            ready!(write(io, cx, b"lost"))?;
            Poll::Pending
        });
        assert!(matches!(ended, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe));
    }

    #[test]
    fn whatever_the_peer_takes_and_when_the_bytes_are_the_same() {
        for seed in 0..60 {
            let mut dice = SmallRng::seed_from_u64(seed);
            let mut bench = Bench::new(0);
            let sent: Rc<[u8]> = (0..100_000_u32)
                .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
                .collect();
            let at = Rc::new(Cell::new(0));
            for _ in 0..100_000 {
                if bench.peer.borrow().got.len() == sent.len() {
                    break;
                }
                bench.peer.borrow_mut().room = dice.random_range(0..9_000);
                let (sent, at, mut chosen) = (
                    sent.clone(),
                    Rc::clone(&at),
                    SmallRng::seed_from_u64(dice.random()),
                );
                let _ = bench.turn(move |io, cx| {
                    for _ in 0..chosen.random_range(0..6) {
                        let most = if chosen.random_bool(0.3) { 40_000 } else { 700 };
                        let piece =
                            &sent[at.get()..(at.get() + chosen.random_range(0..most)).min(sent.len())];
                        let (head, tail) = piece.split_at(piece.len().min(9));
                        match Pin::new(&mut *io)
                            .poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(tail)])
                        {
                            Poll::Ready(written) => at.set(at.get() + written.unwrap()),
                            Poll::Pending => break,
                        }
                        if chosen.random_bool(0.5) && Pin::new(&mut *io).poll_flush(cx).is_pending() {
                            break;
                        }
                    }
                    Poll::Pending
                });
            }
            assert!(
                *bench.peer.borrow().got == *sent,
                "seed {seed}: {} bytes",
                bench.peer.borrow().got.len()
            );
        }
    }
}
