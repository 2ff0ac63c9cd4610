//! A connection whose client does not take its answer: after a while it makes way for newcomers as if it were idle.
//!
//! How long an answer takes is Serin's business, and events have no end; who is served that way keeps its seat. What is
//! looked at here is only whether the client takes what it is sent.

use super::connections::Seated;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// A client that has taken nothing for this long while there was something to take may be asked to leave.
const PATIENCE: Duration = Duration::from_secs(1);

/// A stream that tells its seat when nothing is taken.
pub(super) struct Taken<S> {
    stream: S,
    seated: Arc<Seated>,
    /// Since a write has had to wait.
    waits: Option<Waits>,
}

struct Waits {
    over: Pin<Box<Sleep>>,
    /// The turn at which the seat was told, if it was.
    told: Option<u64>,
}

impl<S> Taken<S> {
    pub(super) fn new(stream: S, seated: Arc<Seated>) -> Taken<S> {
        Taken {
            stream,
            seated,
            waits: None,
        }
    }

    /// A write has gone on, or has to wait.
    fn note(&mut self, waits: bool, cx: &mut Context<'_>) {
        if !waits {
            if let Some(turn) = self.waits.take().and_then(|waits| waits.told) {
                self.seated.goes_on(turn);
            }
            return;
        }
        let waits = self.waits.get_or_insert_with(|| Waits {
            over: Box::pin(tokio::time::sleep(PATIENCE)),
            told: None,
        });
        if waits.told.is_none() && waits.over.as_mut().poll(cx).is_ready() {
            waits.told = self.seated.stalls();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taken<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taken<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(polled.is_pending(), cx);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note(polled.is_pending(), cx);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::connections::ask_the_longest_idle;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_for_a_while_makes_way_and_who_goes_on_taking_does_not() {
        let seated = Arc::new(Seated::new(&Arc::default()));
        let seats = [Arc::downgrade(&seated)];
        let _answering = seated.answering();
        let (mut client, server) = tokio::io::duplex(16);
        let mut server = Taken::new(server, seated);
        let writing = tokio::spawn(async move { server.write_all(&[7; 64]).await });
        tokio::time::sleep(PATIENCE / 2).await;
        assert!(!ask_the_longest_idle(&seats), "it may be on its way");
        // It takes a part, late but in time, and its second begins anew.
        client.read_exact(&mut [0; 16]).await.unwrap();
        tokio::time::sleep(PATIENCE * 3 / 4).await;
        assert!(!ask_the_longest_idle(&seats), "it goes on taking");
        // It stops for longer than that, and goes on before anybody came.
        tokio::time::sleep(PATIENCE).await;
        client.read_exact(&mut [0; 16]).await.unwrap();
        tokio::time::sleep(PATIENCE / 2).await;
        assert!(!ask_the_longest_idle(&seats), "that is forgotten");
        tokio::time::sleep(PATIENCE).await;
        assert!(ask_the_longest_idle(&seats), "it takes nothing");
        client.read_exact(&mut [0; 32]).await.unwrap();
        writing.await.unwrap().unwrap();
    }
}
