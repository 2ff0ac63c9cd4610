//! The thread that writes the access log: nobody who serves requests ever waits for a disk or a pipe.
//!
//! Lines come in batches over a bounded queue. What does not fit, or cannot be written, is dropped and counted; that the log
//! cannot be written is said once, and once that it can again.

use crate::{config::LogPath, threads};
use prometheus::IntCounter;
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    time::Duration,
};

/// Batches that may wait: at most 4 MiB of lines.
const QUEUE: usize = 256;

/// Some lines, each ended by a newline.
#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    count: u64,
}

/// The way to the writer. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    lines: SyncSender<Lines>,
    reopen: Arc<AtomicBool>,
    dropped: IntCounter,
}

impl Queue {
    /// Hands lines over if there is room; never waits.
    pub(super) fn offer(&self, bytes: Vec<u8>, count: u64) {
        match self.lines.try_send(Lines { bytes, count }) {
            Ok(()) => {}
            Err(TrySendError::Full(lines) | TrySendError::Disconnected(lines)) => {
                self.dropped.inc_by(lines.count);
            }
        }
    }

    /// Opens the file anew before the next line: it has been renamed.
    pub(super) fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
        // Wakes the writer; when the queue is full it is awake.
        let _ = self.lines.try_send(Lines::default());
    }
}

/// The running thread. It ends when the last [`Queue`] is gone and everything is written.
#[derive(Debug)]
pub struct Writer(Receiver<()>);

impl Writer {
    /// Waits for the queue to be written, but not for a pipe that nobody reads.
    pub fn finished(self) {
        if self.0.recv_timeout(Duration::from_secs(2)) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the end of the access log was not written: whatever it goes to does not take it");
        }
    }
}

/// Opens the log and starts its thread.
pub(super) fn start(path: &LogPath, dropped: IntCounter) -> io::Result<(Queue, Writer)> {
    let output = Output::open(path)?;
    let (lines, queue) = mpsc::sync_channel(QUEUE);
    let (done, finished) = mpsc::channel::<()>();
    let reopen = Arc::new(AtomicBool::new(false));
    let mut thread = Thread {
        path: path.clone(),
        output,
        reopen: Arc::clone(&reopen),
        dropped: dropped.clone(),
        failing: false,
        torn: false,
    };
    std::thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || {
            threads::give_way();
            thread.run(&queue);
            // Whoever waits is told by its end.
            drop(done);
        })?;
    let queue = Queue {
        lines,
        reopen,
        dropped,
    };
    Ok((queue, Writer(finished)))
}

enum Output {
    Stdout(io::Stdout),
    File(File),
}

impl Output {
    fn open(path: &LogPath) -> io::Result<Output> {
        match path {
            LogPath::Stdout => Ok(Output::Stdout(io::stdout())),
            LogPath::File(path) => file(path).map(Output::File),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::File(file) => file.write(bytes),
            Output::Stdout(stdout) => {
                let mut stdout = stdout.lock();
                stdout.write_all(bytes)?;
                stdout.flush()?;
                Ok(bytes.len())
            }
        }
    }
}

fn file(path: &Path) -> io::Result<File> {
    if path.metadata().is_ok_and(|known| known.file_type().is_fifo()) {
        // Opening would wait for a reader.
        return Err(io::Error::other("it is a pipe; write stdout and pipe that"));
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
}

struct Thread {
    path: LogPath,
    output: Output,
    reopen: Arc<AtomicBool>,
    dropped: IntCounter,
    failing: bool,
    /// The last write stopped inside a line.
    torn: bool,
}

impl Thread {
    fn run(&mut self, queue: &Receiver<Lines>) {
        while let Ok(lines) = queue.recv() {
            if self.reopen.swap(false, Ordering::Relaxed) {
                self.open_again();
            }
            if lines.count == 0 {
                continue;
            }
            match self.write(&lines.bytes) {
                Ok(()) => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!("the access log can be written again");
                    }
                }
                Err((error, lost)) => {
                    self.dropped.inc_by(lost);
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::error!(%error, "the access log cannot be written; its lines are dropped and counted");
                    }
                }
            }
        }
    }

    fn open_again(&mut self) {
        match Output::open(&self.path) {
            Ok(output) => (self.output, self.torn) = (output, false),
            Err(error) => {
                tracing::error!(%error, "the access log cannot be opened again; lines go on to the file that is open");
            }
        }
    }

    /// The error comes with the number of lines that were lost.
    fn write(&mut self, bytes: &[u8]) -> Result<(), (io::Error, u64)> {
        let lost = |rest: &[u8]| {
            let lines = rest.split(|byte| *byte == b'\n').count() - 1;
            u64::try_from(lines).unwrap_or(u64::MAX)
        };
        if self.torn {
            self.output.write(b"\n").map_err(|error| (error, lost(bytes)))?;
            self.torn = false;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.output.write(rest) {
                Ok(0) => return Err((io::ErrorKind::WriteZero.into(), lost(rest))),
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let written = bytes.len() - rest.len();
                    self.torn = written > 0 && bytes.get(written - 1) != Some(&b'\n');
                    return Err((error, lost(rest)));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter() -> IntCounter {
        IntCounter::new("dropped", "help").unwrap()
    }

    #[test]
    fn a_renamed_file_is_opened_anew_and_no_line_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let (now, old) = (folder.path().join("log"), folder.path().join("log.1"));
        let dropped = counter();
        let (queue, writer) = start(&LogPath::File(now.clone()), dropped.clone()).unwrap();
        queue.offer(b"one\n".to_vec(), 1);
        std::fs::rename(&now, &old).unwrap();
        queue.offer(b"two\n".to_vec(), 1);
        queue.reopen();
        queue.offer(b"three\n".to_vec(), 1);
        drop(queue);
        writer.finished();
        let read = |path| std::fs::read_to_string(path).unwrap();
        assert_eq!(format!("{}{}", read(&old), read(&now)), "one\ntwo\nthree\n");
        assert!(read(&now).ends_with("three\n") && dropped.get() == 0);
    }

    #[test]
    fn a_full_disk_costs_lines_which_are_counted() {
        let dropped = counter();
        let (queue, writer) = start(&LogPath::File("/dev/full".into()), dropped.clone()).unwrap();
        queue.offer(b"one\ntwo\n".to_vec(), 2);
        drop(queue);
        writer.finished();
        assert_eq!(dropped.get(), 2);
    }

    #[test]
    fn a_full_queue_drops_at_once() {
        let (lines, _held) = mpsc::sync_channel(1);
        let queue = Queue {
            lines,
            reopen: Arc::default(),
            dropped: counter(),
        };
        queue.offer(b"a\n".to_vec(), 1);
        queue.offer(b"b\nc\n".to_vec(), 2);
        assert_eq!(queue.dropped.get(), 2);
    }
}
