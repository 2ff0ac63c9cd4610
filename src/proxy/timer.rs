//! One timer for many deadlines.
//!
//! A deadline moves with every request, a timer-wheel entry should not. The timer is armed once and re-armed only when it
//! fires or when a deadline earlier than the armed one appears; in between, moving the deadline costs nothing.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::time::{Instant, Sleep};

/// A re-usable timer. All polls must come from the same task.
#[derive(Debug, Default)]
pub(super) struct LazyTimer {
    sleep: Option<Pin<Box<Sleep>>>,
    armed_until: Option<Instant>,
}

impl LazyTimer {
    /// Ready when `deadline` has passed. `now` is the caller's reading of the clock, so that it is read once.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, now: Instant, deadline: Instant) -> Poll<()> {
        if now >= deadline {
            return Poll::Ready(());
        }
        if self
            .armed_until
            .is_some_and(|until| until <= deadline && until > now)
        {
            return Poll::Pending;
        }
        let sleep = match &mut self.sleep {
            Some(sleep) => {
                sleep.as_mut().reset(deadline);
                sleep
            }
            None => self.sleep.insert(Box::pin(tokio::time::sleep_until(deadline))),
        };
        self.armed_until = Some(deadline);
        sleep.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::poll_fn, time::Duration};

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_moved_away_does_not_fire_early() {
        let start = Instant::now();
        let mut timer = LazyTimer::default();
        let mut deadline = start + Duration::from_secs(1);
        let mut polls = 0;
        poll_fn(|cx| {
            polls += 1;
            if polls == 2 {
                deadline = start + Duration::from_secs(5);
            }
            timer.poll(cx, Instant::now(), deadline)
        })
        .await;
        assert_eq!(start.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_deadline_fires_first() {
        let start = Instant::now();
        let mut timer = LazyTimer::default();
        poll_fn(|cx| {
            assert!(
                timer
                    .poll(cx, Instant::now(), start + Duration::from_secs(60))
                    .is_pending()
            );
            timer.poll(cx, Instant::now(), start + Duration::from_secs(2))
        })
        .await;
        assert_eq!(start.elapsed().as_secs(), 2);
    }
}
