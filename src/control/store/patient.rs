//! A store that answers in time. A disk may hang for minutes (a network volume, a controller that resets); the engine must
//! not hang with it, because an abort would wait for the disk.
//!
//! The engine's calls run on a thread of their own and are given up after a while, or when nobody wants them any more (`begun`).
//! What was given up and came about all the same is taken back before anything else is stored, so that "it failed and changed
//! nothing" is true. What no decision depends on, and facts that are in force already, are not waited for at all (`later`): a
//! judge must not look away while a slow disk keeps a record. What is waited for is stored after all of them, or not at all.
//! Reads for people go past this: they wait on threads that may.

use super::{
    Appended, JudgeRow, KeyRow, RecordPart, Retention, Row, RunRow, Store, StoreError, StoredService,
    StretchRow, Told, Tried, Untold,
    begun::{Begun, OnItsWay, Stage, Wanted},
    later::{Later, Write},
};
use crate::{
    control::{Attempt, RolloutStatus, StoredEvent, Unrecorded, ledger::Saved},
    model::{ServiceName, Timestamp},
    threads,
};
use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

/// How long the engine waits for the disk: above what SQLite itself waits for a lock, below what a person calls stuck.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two attempts to take back what was given up.
const AGAIN: Duration = Duration::from_millis(200);

type Job = Box<dyn FnOnce() + Send>;

/// See the module.
pub(crate) struct Patient {
    inner: Arc<dyn Store>,
    /// Named in errors.
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
    patience: Duration,
    /// Calls that were given up and have not come back.
    stuck: Arc<AtomicUsize>,
    later: Later,
    /// What of the judges waits for its turn.
    judges: Arc<Mutex<Judges>>,
    /// What is stored for each service, or will be before whatever is asked for next: what taking back goes back to.
    stored: Arc<Mutex<BTreeMap<ServiceName, Saved>>>,
}

/// What judges know and were fed, as far as it waits.
#[derive(Default)]
struct Judges {
    rows: Vec<JudgeRow>,
    parts: Vec<Arc<RecordPart>>,
}

impl Judges {
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.parts.is_empty()
    }

    /// Of each judge the newer is kept, of what it was fed everything.
    fn add(&mut self, newer: Judges) {
        let replaced = |row: &JudgeRow| {
            let same = |new: &JudgeRow| (&new.service, &new.metric) == (&row.service, &row.metric);
            newer.rows.iter().any(same)
        };
        self.rows.retain(|row| !replaced(row));
        self.rows.extend(newer.rows);
        for part in newer.parts {
            if !self.parts.iter().any(|known| Arc::ptr_eq(known, &part)) {
                self.parts.push(part);
            }
        }
    }
}

fn lock(judges: &Mutex<Judges>) -> std::sync::MutexGuard<'_, Judges> {
    judges.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Patient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patient")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl Patient {
    /// Waits three seconds for each call.
    pub(crate) fn new(inner: Arc<dyn Store>, path: PathBuf) -> Result<Patient, StoreError> {
        Patient::with(inner, path, PATIENCE)
    }

    pub(crate) fn with(
        inner: Arc<dyn Store>,
        path: PathBuf,
        patience: Duration,
    ) -> Result<Patient, StoreError> {
        let (jobs, queue) = mpsc::channel::<Job>();
        // The thread owns no store, only what a job brings: the file is released with the last handle.
        let thread = thread::Builder::new().name("store".to_owned());
        let spawned = thread.spawn(move || {
            threads::give_way();
            for job in queue {
                job();
            }
        });
        spawned.map_err(|error| StoreError::Io {
            path: path.clone(),
            why: format!("its thread cannot be started: {error}"),
        })?;
        Ok(Patient {
            inner,
            path,
            jobs,
            patience,
            stuck: Arc::default(),
            later: Later::default(),
            judges: Arc::default(),
            stored: Arc::default(),
        })
    }

    fn hangs(&self) -> StoreError {
        StoreError::Io {
            path: self.path.clone(),
            why: "the disk does not answer; Serin goes on as soon as it does".to_owned(),
        }
    }

    /// Runs `job` on the store's thread. When its time is up the call has failed, and `take_back` undoes what it may
    /// still do.
    fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
        take_back: impl Fn(&dyn Store, &T) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.begin(job, take_back, |_| ())?.wait()
    }

    /// [`Patient::ask`] without waiting. `tell` hears what has come of it on the store's thread, in the order in which everything
    /// is stored, unless it was given up before.
    fn begin<T: Send + 'static>(
        &self,
        job: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
        take_back: impl Fn(&dyn Store, &T) -> Result<(), StoreError> + Send + 'static,
        tell: impl FnOnce(&Result<T, StoreError>) + Send + 'static,
    ) -> Result<Asked<T>, StoreError> {
        if self.stuck.load(Ordering::Acquire) > 0 {
            return Err(self.hangs());
        }
        let (reply, answer) = mpsc::sync_channel(1);
        let wanted = Wanted::default();
        let (inner, stuck, asked) = (Arc::clone(&self.inner), Arc::clone(&self.stuck), wanted.clone());
        let job: Job = Box::new(move || {
            let is_wanted = *asked.stage() == Stage::Wanted;
            let result = is_wanted.then(|| job(inner.as_ref()));
            let mut stage = asked.stage();
            if let Some(result) = result {
                if *stage == Stage::Wanted {
                    *stage = Stage::Over;
                    // Before the answer: whoever has it may close the file and open it again at once.
                    drop(inner);
                    tell(&result);
                    // Under the lock, so that nobody gives up a call whose answer is on its way.
                    let _ = reply.send(result);
                    return;
                }
                // Whoever gives it up now as well must not wait for the disk.
                drop(stage);
                while let Ok(done) = &result
                    && take_back(inner.as_ref(), done).is_err()
                {
                    thread::sleep(AGAIN);
                }
                stage = asked.stage();
            }
            if *stage == Stage::Stuck {
                stuck.fetch_sub(1, Ordering::AcqRel);
            }
            *stage = Stage::Over;
        });
        if self.jobs.send(job).is_err() {
            return Err(self.hangs());
        }
        Ok(Asked {
            answer,
            wanted,
            stuck: Arc::clone(&self.stuck),
            patience: self.patience,
            hangs: self.hangs(),
        })
    }

    /// For calls that do no harm when they come about late.
    fn ask_idempotent<T: Send + 'static>(
        &self,
        job: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask(job, |_, _| Ok(()))
    }

    /// For what nobody waits for.
    fn later(&self, write: Write) -> Result<(), StoreError> {
        if !self.later.comes() {
            return Err(self.hangs());
        }
        let (inner, later) = (Arc::clone(&self.inner), self.later.clone());
        let job = Box::new(move || later.write(inner.as_ref(), write));
        self.jobs.send(job).map_err(|_| self.hangs())
    }

    /// Waits until what was asked for before is stored, or the disk hangs: whoever has written something reads it.
    fn settle(&self) {
        let _ = self.ask_idempotent(|_| Ok(()));
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServiceName, Saved>> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that the store's thread has.
struct Asked<T> {
    answer: mpsc::Receiver<Result<T, StoreError>>,
    wanted: Wanted,
    stuck: Arc<AtomicUsize>,
    patience: Duration,
    /// What is said when it takes too long.
    hangs: StoreError,
}

impl<T> Asked<T> {
    /// Until it has been answered, for as long as there is patience: none where the disk is known to hang.
    fn wait(self) -> Result<T, StoreError> {
        let is_stuck = self.stuck.load(Ordering::Acquire) > 0;
        let patience = if is_stuck { Duration::ZERO } else { self.patience };
        if let Ok(result) = self.answer.recv_timeout(patience) {
            return result;
        }
        let mut stage = self.wanted.stage();
        if let Ok(result) = self.answer.try_recv() {
            return result;
        }
        match *stage {
            Stage::Wanted | Stage::GivenUp => {
                *stage = Stage::Stuck;
                self.stuck.fetch_add(1, Ordering::AcqRel);
            }
            Stage::Stuck | Stage::Over => {}
        }
        Err(self.hangs)
    }
}

impl Store for Patient {
    fn load(&self) -> Result<Vec<StoredService>, StoreError> {
        let services = self.inner.load()?;
        let mut known = self.known();
        for service in &services {
            known.insert(service.name.clone(), service.saved.clone());
        }
        drop(known);
        Ok(services)
    }

    fn secret(&self, fresh: [u8; 16]) -> Result<[u8; 16], StoreError> {
        self.inner.secret(fresh)
    }

    fn append(
        &self,
        service: &ServiceName,
        rows: &[Row],
        saved: &Saved,
        keys: &[KeyRow],
    ) -> Result<Vec<u64>, StoreError> {
        match self.begin_append(service, rows, saved, keys, Box::new(|_| ())) {
            Begun::Done(stored) => stored,
            Begun::OnItsWay(coming) => coming.wait(),
        }
    }

    fn begin_append(
        &self,
        service: &ServiceName,
        rows: &[Row],
        saved: &Saved,
        keys: &[KeyRow],
        tried: Tried,
    ) -> Begun {
        let before = self.known().get(service).cloned();
        let (name, rows, next, keys) = (service.clone(), rows.to_vec(), saved.clone(), keys.to_vec());
        let (whose, used) = (name.clone(), keys.clone());
        let (later, stored) = (self.later.clone(), Arc::clone(&self.stored));
        let (of, known) = (name.clone(), next.clone());
        let asked = self.begin(
            move |store| {
                later.catch_up(store)?;
                store.append(&name, &rows, &next, &keys)
            },
            move |store, ids: &Vec<u64>| store.take_back(&whose, ids, before.as_ref(), &used),
            move |stored| tried(stored.as_deref()),
        );
        let asked = match asked {
            Ok(asked) => asked,
            Err(error) => return Begun::Done(Err(error)),
        };
        let wanted = asked.wanted.clone();
        let wait = Box::new(move || {
            let ids = asked.wait()?;
            let mut stored = stored.lock().unwrap_or_else(PoisonError::into_inner);
            stored.insert(of, known);
            Ok(ids)
        });
        Begun::OnItsWay(OnItsWay { wait, wanted })
    }

    fn append_later(
        &self,
        service: &ServiceName,
        rows: &[Row],
        saved: &Saved,
        keys: &[KeyRow],
        tried: Tried,
    ) -> Result<(), StoreError> {
        let (name, rows, next, keys) = (service.clone(), rows.to_vec(), saved.clone(), keys.to_vec());
        self.later(Box::new(move |store| {
            let stored = store.append(&name, &rows, &next, &keys);
            tried(stored.as_deref());
            stored.map(drop)
        }))?;
        self.known().insert(service.clone(), saved.clone());
        Ok(())
    }

    fn append_all(&self, steps: &[Appended]) -> Result<Vec<Vec<u64>>, StoreError> {
        let known = self.known();
        let before: Vec<(ServiceName, Option<Saved>)> = steps
            .iter()
            .map(|step| (step.service.clone(), known.get(&step.service).cloned()))
            .collect();
        drop(known);
        let (next, later) = (steps.to_vec(), self.later.clone());
        let ids = self.ask(
            move |store| {
                later.catch_up(store)?;
                store.append_all(&next)
            },
            move |store, all: &Vec<Vec<u64>>| {
                let mut each = before.iter().zip(all);
                each.try_for_each(|((whose, before), ids)| store.take_back(whose, ids, before.as_ref(), &[]))
            },
        )?;
        let stored = steps
            .iter()
            .map(|step| (step.service.clone(), step.saved.clone()));
        self.known().extend(stored);
        Ok(ids)
    }

    fn take_back(
        &self,
        service: &ServiceName,
        ids: &[u64],
        before: Option<&Saved>,
        keys: &[KeyRow],
    ) -> Result<(), StoreError> {
        self.inner.take_back(service, ids, before, keys)
    }

    fn alive(&self, at: Timestamp) -> Result<(), StoreError> {
        self.later(Box::new(move |store| store.alive(at)))
    }

    fn settled(&self, at: Timestamp) -> Result<(), StoreError> {
        if self.later.hangs(self.patience) {
            return Err(self.hangs());
        }
        let later = self.later.clone();
        self.ask_idempotent(move |store| {
            later.catch_up(store)?;
            store.settled(at)
        })
    }

    fn trouble(&self) -> Option<StoreError> {
        let hangs = || self.later.hangs(self.patience).then(|| self.hangs());
        self.later.trouble().or_else(hangs)
    }

    fn events(
        &self,
        service: Option<&str>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        self.settle();
        self.inner.events(service, after, limit)
    }

    fn last_events(&self, service: &str, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
        self.settle();
        self.inner.last_events(service, limit)
    }

    fn rollout_events(&self, service: &str, rollout: &str) -> Result<Vec<StoredEvent>, StoreError> {
        self.settle();
        self.inner.rollout_events(service, rollout)
    }

    fn rollouts(&self, service: &str) -> Result<Vec<RolloutStatus>, StoreError> {
        self.settle();
        self.inner.rollouts(service)
    }

    fn audit(&self, attempt: &Attempt) -> Result<(), StoreError> {
        let attempt = attempt.clone();
        self.later(Box::new(move |store| store.audit(&attempt)))
    }

    fn attempts(&self, service: &str, limit: usize) -> Result<Vec<Attempt>, StoreError> {
        self.settle();
        self.inner.attempts(service, limit)
    }

    fn keys(&self, since: Timestamp) -> Result<Vec<(ServiceName, Timestamp, KeyRow)>, StoreError> {
        self.inner.keys(since)
    }

    fn save_run(&self, service: &str, row: &RunRow) -> Result<(), StoreError> {
        let (service, row) = (service.to_owned(), row.clone());
        self.later(Box::new(move |store| store.save_run(&service, &row)))
    }

    fn runs(&self, service: &str, limit: usize) -> Result<Vec<RunRow>, StoreError> {
        let service = service.to_owned();
        self.ask_idempotent(move |store| store.runs(&service, limit))
    }

    /// Without waiting. What has not had its turn when the next comes is stored with it.
    fn save_judges(&self, rows: &[JudgeRow], parts: &[Arc<RecordPart>]) -> Result<(), StoreError> {
        let news = Judges {
            rows: rows.to_vec(),
            parts: parts.to_vec(),
        };
        let mut waiting = lock(&self.judges);
        let is_on_its_way = !waiting.is_empty();
        waiting.add(news);
        drop(waiting);
        if is_on_its_way {
            return Ok(());
        }
        let judges = Arc::clone(&self.judges);
        let sent = self.later(Box::new(move |store| {
            let mut now = std::mem::take(&mut *lock(&judges));
            let kept = store.save_judges(&now.rows, &now.parts);
            if kept.is_err() {
                let mut waiting = lock(&judges);
                now.add(std::mem::take(&mut *waiting));
                *waiting = now;
            }
            kept
        }));
        if sent.is_err() {
            // Nobody comes for it; whoever asks next brings all of it again.
            *lock(&self.judges) = Judges::default();
        }
        sent
    }

    fn judges(&self, service: &str) -> Result<Vec<JudgeRow>, StoreError> {
        let service = service.to_owned();
        self.ask_idempotent(move |store| store.judges(&service))
    }

    fn recorded(&self, service: &str, rollout: &str) -> Result<Vec<StretchRow>, StoreError> {
        self.settle();
        self.inner.recorded(service, rollout)
    }

    fn unrecorded(&self, service: &str, rollout: &str) -> Result<Unrecorded, StoreError> {
        self.settle();
        self.inner.unrecorded(service, rollout)
    }

    /// At a start, as what is known is.
    fn untold(&self, since: Timestamp) -> Result<(BTreeMap<String, Told>, Vec<Untold>), StoreError> {
        self.inner.untold(since)
    }

    fn hear(&self, receivers: &[String]) -> Result<(), StoreError> {
        let receivers = receivers.to_vec();
        self.later(Box::new(move |store| store.hear(&receivers)))
    }

    fn heard(&self, receiver: &str, service: &str, event: u64) -> Result<(), StoreError> {
        let (receiver, service) = (receiver.to_owned(), service.to_owned());
        self.later(Box::new(move |store| store.heard(&receiver, &service, event)))
    }

    fn sweep(&self, retention: Retention, now: Timestamp) -> Result<(), StoreError> {
        self.later(Box::new(move |store| store.sweep(retention, now)))
    }
}
