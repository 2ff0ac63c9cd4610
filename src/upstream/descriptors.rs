//! How many connections to versions the process may have open, over all workers and services.
//!
//! Descriptors are shared with clients and the admin side, which keep theirs apart: whoever finds none left here waits for one
//! for as long as connecting may take, and until then workers close what they keep idle. A request over a kept connection
//! touches nothing here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Who waits asks again this often for idle connections to be closed: one that is in use now may be idle a moment later.
const AGAIN: Duration = Duration::from_millis(50);

/// The descriptors for connections to versions.
#[derive(Debug)]
pub struct Descriptors {
    free: Arc<Semaphore>,
    waiting: AtomicU32,
    /// Tells workers that somebody waits.
    crowded: Arc<Notify>,
}

/// One of them, while its connection is open.
#[derive(Debug)]
pub struct Descriptor {
    _permit: OwnedSemaphorePermit,
}

/// Counts down when the wait ends, however it ends.
struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Descriptors {
    /// That many.
    pub fn new(count: usize, crowded: Arc<Notify>) -> Descriptors {
        Descriptors {
            free: Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS))),
            waiting: AtomicU32::new(0),
            crowded,
        }
    }

    /// One of them; none when all are in use and stay so for as long as `limit`.
    pub async fn take(&self, limit: Duration) -> Option<Descriptor> {
        let permit = match Arc::clone(&self.free).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.wait(limit).await?,
        };
        Some(Descriptor { _permit: permit })
    }

    #[cold]
    async fn wait(&self, limit: Duration) -> Option<OwnedSemaphorePermit> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let _waiting = Waiting(&self.waiting);
        let mut turn = std::pin::pin!(Arc::clone(&self.free).acquire_owned());
        let asking = async {
            loop {
                self.crowded.notify_waiters();
                if let Ok(permit) = timeout(AGAIN, turn.as_mut()).await {
                    // The semaphore is never closed.
                    return permit.ok();
                }
            }
        };
        timeout(limit, asking).await.ok().flatten()
    }

    /// Whether somebody waits for one: then no connection should be kept idle.
    pub fn are_scarce(&self) -> bool {
        self.waiting.load(Ordering::Acquire) != 0
    }
}

impl Default for Descriptors {
    /// As many as anybody asks for.
    fn default() -> Descriptors {
        Descriptors::new(Semaphore::MAX_PERMITS, Arc::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn who_finds_none_waits_for_one_and_says_so() {
        let crowded = Arc::new(Notify::new());
        let descriptors = Arc::new(Descriptors::new(1, Arc::clone(&crowded)));
        let held = descriptors.take(LONG).await.unwrap();
        assert!(!descriptors.are_scarce());
        let waiting = tokio::spawn({
            let descriptors = Arc::clone(&descriptors);
            async move { descriptors.take(LONG).await.is_some() }
        });
        crowded.notified().await;
        assert!(descriptors.are_scarce());
        drop(held);
        assert!(waiting.await.unwrap());
        assert!(!descriptors.are_scarce());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_in_vain_gets_none() {
        let descriptors = Descriptors::new(0, Arc::default());
        assert!(descriptors.take(Duration::from_millis(300)).await.is_none());
        assert!(!descriptors.are_scarce());
    }
}
