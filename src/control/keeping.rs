//! The engine and its store: what is stored at once, what is stored after it has come into force, what is tried again, and
//! the regular rest: signs of life, what judges know, forgetting.

use super::{
    Attempt, Refusal, RefusalKind,
    engine::Engine,
    judging,
    ledger::Saved,
    store::{Appended, KeyRow, Retention, Row, StoreError, Tried},
};
use crate::model::{ServiceName, Timestamp};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::oneshot;
use tracing::{error, info};

/// How often a sign of life is stored while a version is on trial.
const ALIVE: Duration = Duration::from_secs(2);
/// How often the past is swept.
const SWEEP: Duration = Duration::from_secs(3600);
/// How long the first retry of a failed write waits; doubles up to [`SLOWEST`].
const RETRY: Duration = Duration::from_millis(200);
const SLOWEST: Duration = Duration::from_secs(5);
/// Attempts that wait for the store at most; they are logged in any case.
const UNKEPT: usize = 1000;

/// How the store is doing, and when something was kept last.
#[derive(Debug)]
pub(super) struct Keeping {
    fails: Option<StoreFails>,
    /// Attempts that could not be kept yet.
    unkept: VecDeque<Attempt>,
    alive: Timestamp,
    swept: Option<Timestamp>,
    judges_saved: Timestamp,
}

/// The store has failed last time.
#[derive(Debug)]
struct StoreFails {
    why: String,
    wait: Duration,
    next: Timestamp,
}

impl Keeping {
    pub(super) fn new(now: Timestamp) -> Keeping {
        Keeping {
            fails: None,
            unkept: VecDeque::new(),
            alive: now,
            swept: None,
            judges_saved: now,
        }
    }
}

impl Engine {
    /// Stores what is in force already, without waiting, after what could not be stored before; what cannot even be brought on its way is kept.
    pub(super) fn append_later(
        &mut self,
        name: &ServiceName,
        rows: Vec<Row>,
        saved: &Saved,
        key: Option<KeyRow>,
    ) {
        if !self.has_unsaved(name) {
            self.store_evidence(name);
            let (tried, storing) = oneshot::channel();
            self.storing = Some(storing);
            let told = self.telling(name, &rows, Some(tried));
            match self.store.append_later(name, &rows, saved, key.as_slice(), told) {
                Ok(()) => return,
                Err(error) => drop(self.store_failed(&error)),
            }
        }
        if let Some(managed) = self.managed.get_mut(name) {
            managed.unsaved.extend(rows);
            managed.unsaved_keys.extend(key);
            self.publish_status(name);
        }
    }

    pub(super) fn has_unsaved(&self, name: &ServiceName) -> bool {
        self.managed
            .get(name)
            .is_some_and(|managed| !managed.unsaved.is_empty())
    }

    /// Tells those who follow the events as soon as facts are stored, and whoever waits when it has been tried once.
    pub(super) fn telling(
        &self,
        name: &ServiceName,
        rows: &[Row],
        waiting: Option<oneshot::Sender<()>>,
    ) -> Tried {
        let (shared, name, rows) = (Arc::clone(&self.shared), name.clone(), rows.to_vec());
        let waiting = Mutex::new(waiting);
        Box::new(move |stored| {
            shared.stored(&name, &rows, stored.unwrap_or_default());
            let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
            // The asker may have given up waiting.
            let _ = waiting.map(|waiting| waiting.send(()));
        })
    }

    /// Stores what comes into force afterwards, for several services, none of which has rows that could not be stored before: all or nothing.
    pub(super) fn append_all(&mut self, steps: &[Appended]) -> Result<Vec<Vec<u64>>, Refusal> {
        for step in steps {
            self.store_evidence(&step.service);
        }
        match self.store.append_all(steps) {
            Ok(ids) => {
                self.store_works();
                Ok(ids)
            }
            Err(error) => Err(not_stored(&self.store_failed(&error))),
        }
    }

    /// Counts and says once that the store fails; retried with growing patience.
    pub(super) fn store_failed(&mut self, error: &StoreError) -> String {
        let why = error.to_string();
        self.services
            .metrics()
            .control
            .store_errors
            .with_label_values::<&str>(&[])
            .inc();
        let now = self.now();
        let wait = self
            .keeping
            .fails
            .as_ref()
            .map_or(RETRY, |fails| (fails.wait * 2).min(SLOWEST));
        if self.keeping.fails.as_ref().is_none_or(|fails| fails.why != why) {
            error!(error = %why, "the state cannot be stored, Serin tries again by itself: {why}");
        }
        let before = self.keeping.fails.replace(StoreFails {
            why: why.clone(),
            wait,
            next: now.plus(wait),
        });
        self.shared.set_store_healthy(false);
        if before.is_none_or(|before| before.why != why) {
            self.publish_all();
        }
        why
    }

    pub(super) fn store_works(&mut self) {
        if self.keeping.fails.take().is_some() {
            info!("the state can be stored again");
            self.publish_all();
        }
        self.shared.set_store_healthy(true);
    }

    /// Every status shows whether the store works.
    fn publish_all(&self) {
        for name in self.managed.keys() {
            self.publish_status(name);
        }
    }

    /// Why the store fails, when it does.
    pub(super) fn store_trouble(&self) -> Option<&str> {
        self.keeping.fails.as_ref().map(|fails| fails.why.as_str())
    }

    /// Stores what was acted upon before it could be stored.
    pub(super) fn flush(&mut self, now: Timestamp) {
        if self.keeping.fails.is_none()
            && let Some(error) = self.store.trouble()
        {
            self.store_failed(&error);
        }
        let is_due = match &self.keeping.fails {
            Some(fails) => fails.next <= now,
            // Another service may have found the store working before.
            None => self.managed.values().any(|managed| !managed.unsaved.is_empty()),
        };
        if !is_due {
            return;
        }
        let names: Vec<ServiceName> = self.managed.keys().cloned().collect();
        for name in names {
            let Some(managed) = self.managed.get_mut(&name) else {
                continue;
            };
            if managed.unsaved.is_empty() {
                continue;
            }
            let rows = std::mem::take(&mut managed.unsaved);
            let keys = std::mem::take(&mut managed.unsaved_keys);
            let saved = managed.saved.clone();
            self.store_evidence(&name);
            let told = self.telling(&name, &rows, None);
            match self.store.append_later(&name, &rows, &saved, &keys, told) {
                Ok(()) => self.publish_status(&name),
                Err(error) => {
                    if let Some(managed) = self.managed.get_mut(&name) {
                        (managed.unsaved, managed.unsaved_keys) = (rows, keys);
                    }
                    self.store_failed(&error);
                    return;
                }
            }
        }
        if let Err(error) = self.store.settled(now) {
            self.store_failed(&error);
        } else {
            self.store_works();
            self.keep_attempts();
        }
    }

    /// Keeps an attempt, and writes it as one line.
    pub(super) fn audit(&mut self, attempt: &Attempt) {
        info!(
            service = %attempt.service,
            verb = %attempt.verb,
            actor = %attempt.caller.actor,
            role = %attempt.caller.role,
            source = %attempt.caller.source,
            reason = attempt.caller.reason.as_deref().unwrap_or(""),
            key = attempt.caller.idempotency_key.as_deref().unwrap_or(""),
            refused = attempt.refused.as_deref().unwrap_or(""),
            before = %attempt.before,
            after = %attempt.after,
            "{} {} `{}`{}",
            attempt.caller.actor,
            attempt.verb,
            attempt.service,
            attempt.refused.as_deref().map_or(String::new(), |code| format!(": refused, {code}"))
        );
        self.keeping.unkept.push_back(attempt.clone());
        self.keeping.unkept.truncate(UNKEPT);
        self.keep_attempts();
    }

    fn keep_attempts(&mut self) {
        while let Some(attempt) = self.keeping.unkept.front() {
            if let Err(error) = self.store.audit(attempt) {
                self.store_failed(&error);
                return;
            }
            self.keeping.unkept.pop_front();
        }
    }

    /// What judges know is stored with this turn or the next: something was decided by it.
    pub(super) fn save_judges_soon(&mut self) {
        self.keeping.judges_saved = Timestamp::default();
    }

    fn keep_alive(&mut self, now: Timestamp) {
        let rolling = self
            .managed
            .values()
            .any(|managed| managed.saved.state.rolling().is_some());
        if !rolling || now.since(self.keeping.alive) < ALIVE || self.keeping.fails.is_some() {
            return;
        }
        self.keeping.alive = now;
        if let Err(error) = self.store.alive(now) {
            self.store_failed(&error);
        }
    }

    fn sweep(&mut self, now: Timestamp) {
        self.keys.sweep(now);
        let retention = Retention {
            rollouts: self.config.state.keep_rollouts,
            events: self.config.state.keep_events,
            recordings: self.config.state.keep_recordings,
        };
        if let Err(error) = self.store.sweep(retention, now) {
            self.store_failed(&error);
        }
    }

    /// What a fact was decided from is on its way to the store before the fact: whoever reads of a decision can make it again.
    pub(super) fn store_evidence(&mut self, name: &ServiceName) {
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        if managed.judging.has_decided() {
            let (rows, parts) = managed.judges_to_store();
            // A disk that does not take it does not take the fact either, and that is told.
            let _ = self.store.save_judges(&rows, &parts);
        }
    }

    /// Everything regular that is due.
    pub(super) fn keep(&mut self, now: Timestamp) {
        if now.since(self.keeping.judges_saved) >= judging::SAVE {
            self.keeping.judges_saved = now;
            self.save_judges();
        }
        self.keep_alive(now);
        if self.keeping.swept.is_none_or(|swept| now.since(swept) >= SWEEP) {
            self.keeping.swept = Some(now);
            self.sweep(now);
        }
    }

    /// The last chance: no patience any more.
    pub(super) fn keep_all(&mut self) {
        let now = self.now();
        if let Some(fails) = &mut self.keeping.fails {
            fails.next = now;
        }
        self.flush(now);
        self.save_judges();
        if let Err(error) = self.store.settled(now) {
            self.store_failed(&error);
        }
    }
}

/// The refusal of what would have to be stored first.
pub(super) fn not_stored(why: &str) -> Refusal {
    Refusal::new(
        RefusalKind::Unavailable,
        "storeUnhealthy",
        format!("it cannot be stored, so it was not done: {why}"),
    )
    .hint("mend the store; abort and undo work meanwhile")
}
