//! Where rollouts are remembered: one trait, an SQLite file behind it, or memory.
//!
//! Facts are appended together with the state they lead to, in one transaction that is on the disk when it returns.
//! Another store shared by several proxies can be a second implementation: nothing outside this folder knows SQL.

mod begun;
mod later;
mod lock;
mod patient;
mod recorded;
mod schema;
mod sqlite;
mod told;

pub(crate) use begun::{Begun, OnItsWay, Stored, Wanted};
pub(crate) use patient::Patient;
pub(crate) use sqlite::{KEY_LIFE, SqliteStore};
pub(crate) use told::Told;

use super::{
    Attempt, Caller, RolloutStatus, StoredEvent, Unrecorded,
    ledger::{Fact, Saved},
    notify::Telling,
};
use crate::{
    model::{ByteSize, ServiceName, Span, Timestamp, Weight},
    rollout::Phase,
};
use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

/// Why the store could not do it; says how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// Another process uses the file.
    #[error(
        "the state file {} is in use by process {holder}: stop that process, or give this one another `state.path`",
        path.display()
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// The other process' id.
        holder: String,
    },
    /// The file is something else.
    #[error(
        "{} is not a state file of Serin ({found}): give another `state.path`, or move that file away",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        found: String,
    },
    /// The file was written by a later version.
    #[error(
        "the state file {} has format {found}, this Serin knows up to {known}: run the newer Serin that wrote it, or give another `state.path`; \
         `--stateless` serves stable meanwhile",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The latest format known here.
        known: i64,
    },
    /// The file is damaged.
    #[error(
        "the state file {} is damaged ({why}): restore it from a copy, or move it away to start from the configuration file; `--stateless` serves stable meanwhile",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        why: String,
    },
    /// Reading or writing failed.
    #[error("the state file {}: {why}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
    /// What is stored cannot be understood: by a Serin that did not know it yet, or it is damaged.
    #[error(
        "what the state file {} knows of `{service}` cannot be read back ({why}): run the Serin that wrote it, or restore it from \
         a copy; `--stateless` serves stable meanwhile",
        path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// Whose.
        service: String,
        /// What went wrong.
        why: String,
    },
}

/// A fact on its way into the store.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) at: Timestamp,
    pub(crate) rollout: Option<String>,
    pub(crate) fact: Fact,
    /// What it was decided by.
    pub(crate) numbers: serde_json::Value,
    pub(crate) caller: Option<Caller>,
    pub(crate) phase: Phase,
    pub(crate) step: Option<usize>,
    pub(crate) weight: Weight,
    pub(crate) message: String,
    /// Who is notified of it hears this; not stored.
    pub(crate) telling: Option<Arc<Telling>>,
}

impl Row {
    /// It is stored under this number.
    pub(crate) fn stored_as(&self, id: u64) {
        if let Some(telling) = &self.telling {
            telling.number.send_replace(Some(id));
        }
    }

    /// As it is shown, once it has a number.
    pub(crate) fn shown(&self, id: u64, service: &ServiceName) -> StoredEvent {
        StoredEvent {
            id,
            at: self.at,
            service: service.clone(),
            rollout: self.rollout.clone(),
            event: self.fact.name().to_owned(),
            detail: self.fact.shown(),
            numbers: self.numbers.clone(),
            caller: self.caller.clone(),
            phase: self.phase,
            step: self.step,
            weight: self.weight,
            message: self.message.clone(),
        }
    }
}

/// One service as it was stored last.
#[derive(Debug, Clone)]
pub(crate) struct StoredService {
    pub(crate) name: ServiceName,
    /// The state kept beside the facts.
    pub(crate) saved: Saved,
    /// The state that folding the facts gives; absent when they could not be folded.
    pub(crate) replayed: Option<Saved>,
    /// The last sign of life.
    pub(crate) alive: Option<Timestamp>,
}

/// An analysis run as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RunRow {
    pub(crate) run: u64,
    pub(crate) rollout: String,
    pub(crate) started: Timestamp,
    /// The run and how it is shown.
    pub(crate) json: String,
}

/// What a judge of a service knows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JudgeRow {
    pub(crate) service: String,
    pub(crate) metric: String,
    pub(crate) json: String,
}

/// A piece of what a judge was fed (`recorder`).
#[derive(Debug)]
pub(crate) struct RecordPart {
    pub(crate) service: String,
    pub(crate) rollout: String,
    pub(crate) metric: String,
    /// When the judge began to sit.
    pub(crate) began: Timestamp,
    pub(crate) stretch: u64,
    pub(crate) part: u64,
    pub(crate) bytes: Vec<u8>,
    /// Set as soon as it is on the disk.
    pub(crate) written: AtomicBool,
}

/// A stretch of a recording as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StretchRow {
    pub(crate) metric: String,
    pub(crate) began: Timestamp,
    pub(crate) stretch: u64,
    /// Its parts, in their order.
    pub(crate) bytes: Vec<u8>,
    /// The first part that is not there although a later one is.
    pub(crate) missing: Option<u64>,
}

/// Facts of a service of which somebody may have to be notified still.
#[derive(Debug, Clone)]
pub(crate) struct Untold {
    /// The state before the first of them.
    pub(crate) before: Saved,
    /// In their order: as they are shown, and themselves.
    pub(crate) events: Vec<(StoredEvent, Fact)>,
}

/// The answer kept for an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyRow {
    /// The key.
    pub(crate) key: String,
    /// What was asked, so that the same key for something else is noticed.
    pub(crate) asked: String,
    /// The answer, as JSON.
    pub(crate) answer: String,
}

/// What is stored of one service among several.
#[derive(Debug, Clone)]
pub(crate) struct Appended {
    pub(crate) service: ServiceName,
    pub(crate) rows: Vec<Row>,
    /// The state that they lead to.
    pub(crate) saved: Saved,
}

/// Told of each try to store facts: their numbers, or why not. The first one to work is the last.
pub(crate) type Tried = Box<dyn Fn(Result<&[u64], &StoreError>) + Send>;

/// How much of the past is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retention {
    pub(crate) rollouts: u32,
    pub(crate) events: Span,
    /// When the store holds more bytes, recordings of older rollouts go; those of each service's last rollout stay.
    pub(crate) recordings: ByteSize,
}

/// Remembers. A call returns when it is safe on the disk, or has failed and changed nothing; those that say so may come about
/// a moment later.
pub(crate) trait Store: Send + Sync + fmt::Debug {
    /// Everything that is known, for a start.
    fn load(&self) -> Result<Vec<StoredService>, StoreError>;
    /// 128 random bits for sticky keys: made by `fresh` once, the same ever after.
    fn secret(&self, fresh: [u8; 16]) -> Result<[u8; 16], StoreError>;
    /// Appends facts, the state they lead to and the answers kept for the callers' keys. Returns the facts' numbers.
    fn append(
        &self,
        service: &ServiceName,
        rows: &[Row],
        saved: &Saved,
        keys: &[KeyRow],
    ) -> Result<Vec<u64>, StoreError>;
    /// [`Store::append`] without waiting, of what comes into force once it is stored. Only what is begun later comes after it.
    /// `tried` is told before whatever is stored after it, and not at all of what was given up in time.
    fn begin_append(
        &self,
        service: &ServiceName,
        rows: &[Row],
        saved: &Saved,
        keys: &[KeyRow],
        tried: Tried,
    ) -> Begun {
        let stored = self.append(service, rows, saved, keys);
        tried(stored.as_deref());
        Begun::Done(stored)
    }
    /// [`Store::append`] of what is in force already: comes about later, before everything that is appended after it. An error:
    /// it does not come about.
    fn append_later(
        &self,
        service: &ServiceName,
        rows: &[Row],
        saved: &Saved,
        keys: &[KeyRow],
        tried: Tried,
    ) -> Result<(), StoreError> {
        let ids = self.append(service, rows, saved, keys)?;
        tried(Ok(&ids));
        Ok(())
    }
    /// [`Store::append`] for several services, each named once: all of it or nothing. Returns each one's numbers.
    fn append_all(&self, steps: &[Appended]) -> Result<Vec<Vec<u64>>, StoreError>;
    /// Undoes an append whose caller has been told that it failed: its facts go, and the service is what it was before
    /// (nothing, when it was not known).
    fn take_back(
        &self,
        service: &ServiceName,
        ids: &[u64],
        before: Option<&Saved>,
        keys: &[KeyRow],
    ) -> Result<(), StoreError>;
    /// A sign of life: time from here to the next start counts as downtime. May come about later.
    fn alive(&self, at: Timestamp) -> Result<(), StoreError>;
    /// The same, once it and everything before it is on the disk.
    fn settled(&self, at: Timestamp) -> Result<(), StoreError> {
        self.alive(at)
    }
    /// What has become of that which came about later: why it fails, once for each failure.
    fn trouble(&self) -> Option<StoreError> {
        None
    }
    /// Facts after a number, oldest first.
    fn events(&self, service: Option<&str>, after: u64, limit: usize)
    -> Result<Vec<StoredEvent>, StoreError>;
    /// The last facts of a service, newest first.
    fn last_events(&self, service: &str, limit: usize) -> Result<Vec<StoredEvent>, StoreError>;
    /// All facts of a rollout, oldest first.
    fn rollout_events(&self, service: &str, rollout: &str) -> Result<Vec<StoredEvent>, StoreError>;
    /// The last rollouts of a service, newest first.
    fn rollouts(&self, service: &str) -> Result<Vec<RolloutStatus>, StoreError>;
    /// Keeps an attempt. May come about later.
    fn audit(&self, attempt: &Attempt) -> Result<(), StoreError>;
    /// The last attempts on a service, newest first.
    fn attempts(&self, service: &str, limit: usize) -> Result<Vec<Attempt>, StoreError>;
    /// What was answered to keys since `since`, for a start.
    fn keys(&self, since: Timestamp) -> Result<Vec<(ServiceName, Timestamp, KeyRow)>, StoreError>;
    /// Keeps how an analysis run stands. May come about later.
    fn save_run(&self, service: &str, row: &RunRow) -> Result<(), StoreError>;
    /// The last analysis runs of a service, newest first.
    fn runs(&self, service: &str, limit: usize) -> Result<Vec<RunRow>, StoreError>;
    /// Keeps what judges know and what they were fed: all of it or nothing, before everything that is asked for after it. May
    /// come about later, then together with what came after it. Each part says when it is kept.
    fn save_judges(&self, rows: &[JudgeRow], parts: &[Arc<RecordPart>]) -> Result<(), StoreError>;
    /// What the judges of a service knew.
    fn judges(&self, service: &str) -> Result<Vec<JudgeRow>, StoreError>;
    /// What the judges of a rollout were fed, by metric and time.
    fn recorded(&self, service: &str, rollout: &str) -> Result<Vec<StretchRow>, StoreError>;
    /// Why there may be nothing of what they were fed.
    fn unrecorded(&self, service: &str, rollout: &str) -> Result<Unrecorded, StoreError>;
    /// What every receiver of notifications has heard, and facts since `since` that one of them may not have.
    fn untold(&self, since: Timestamp) -> Result<(BTreeMap<String, Told>, Vec<Untold>), StoreError>;
    /// Whom notifications go to from now on. May come about later.
    fn hear(&self, receivers: &[String]) -> Result<(), StoreError>;
    /// A receiver need not be notified of this fact of a service again. May come about later.
    fn heard(&self, receiver: &str, service: &str, event: u64) -> Result<(), StoreError>;
    /// Forgets what is older than it must be. May come about later.
    fn sweep(&self, retention: Retention, now: Timestamp) -> Result<(), StoreError>;
}
