//! The access log: a line for each request that ended, also for one that never got to a service.
//!
//! A worker writes lines into a buffer of its own and hands the buffer over when it is full, or a moment after its first line.
//! `line` says how a line looks, `writer` is the thread that writes.

mod line;
mod writer;

pub(super) use line::{Asked, Line, Served};
pub use writer::Writer;

use super::share::Share;
use crate::{
    config,
    model::{Clock, Timestamp},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use prometheus::IntCounter;
use std::{cell::RefCell, io, sync::Arc, time::Duration};
use tokio::sync::Notify;
use writer::Queue;

/// A buffer is handed over when it has this many bytes.
const FULL: usize = 16 * 1024;
/// How long a line may wait for others.
const LINGER: Duration = Duration::from_millis(50);

/// An open access log.
#[derive(Debug)]
pub struct AccessLog {
    config: config::AccessLog,
    sample: Share,
    clock: Arc<dyn Clock>,
    queue: Queue,
}

impl AccessLog {
    /// Opens the log and starts the thread that writes it.
    pub fn open(
        config: &config::AccessLog,
        clock: Arc<dyn Clock>,
        dropped: IntCounter,
    ) -> io::Result<(AccessLog, Writer)> {
        let (queue, writer) = writer::start(&config.path, dropped)?;
        let log = AccessLog {
            config: config.clone(),
            sample: Share::of(config.sample),
            clock,
            queue,
        };
        Ok((log, writer))
    }

    /// Opens its file anew: it has been renamed.
    pub fn reopen(&self) {
        self.queue.reopen();
    }

    /// The request fields that are logged.
    pub(super) fn fields(&self, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
        let named = |name: &HeaderName| headers.get(name).map(|value| (name.clone(), value.clone()));
        self.config.headers.iter().filter_map(named).collect()
    }

    /// Whether a request that went well is logged.
    pub(super) fn takes(&self, dice: u64) -> bool {
        self.sample.takes(dice)
    }

    /// The time of a line.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.wall()
    }
}

/// One worker's lines on their way to the writer.
#[derive(Debug, Default)]
pub(super) struct Lines {
    batch: RefCell<Batch>,
    waiting: Notify,
}

#[derive(Debug, Default)]
struct Batch {
    log: Option<Arc<AccessLog>>,
    bytes: Vec<u8>,
    count: u64,
}

impl Lines {
    /// Adds a line.
    pub(super) fn add(&self, log: &Arc<AccessLog>, line: &Line<'_>) {
        let mut batch = self.batch.borrow_mut();
        if !batch.log.as_ref().is_some_and(|known| Arc::ptr_eq(known, log)) {
            batch.flush();
            batch.log = Some(Arc::clone(log));
        }
        if batch.bytes.is_empty() {
            batch.bytes.reserve(FULL + 1024);
            self.waiting.notify_one();
        }
        line.write(&log.config, &mut batch.bytes);
        batch.count += 1;
        if batch.bytes.len() >= FULL {
            batch.flush();
        }
    }

    /// Hands lines over a moment after the first of them came; for ever.
    pub(super) async fn hand_over(&self) {
        loop {
            self.waiting.notified().await;
            tokio::time::sleep(LINGER).await;
            self.batch.borrow_mut().flush();
        }
    }
}

impl Batch {
    fn flush(&mut self) {
        // The log is let go with its lines: one that was replaced shall end.
        if let Some(log) = self.log.take()
            && self.count > 0
        {
            log.queue
                .offer(std::mem::take(&mut self.bytes), std::mem::take(&mut self.count));
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.flush();
    }
}
