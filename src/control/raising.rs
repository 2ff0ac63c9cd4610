//! What raises a canary's exposure is stored first (`order`); meanwhile nobody waits for the disk but whoever asked for it.
//!
//! Of one service one such step is on its way at a time. What acts first does not wait for it: the step is given up, as if
//! nobody had asked for it. What a person asks for comes after it, also a lower weight, which must not give up what the
//! same person asked for a moment before; and so does what comes again by itself.

use super::{
    Accepted, Attempt, Caller, Command, Refusal, RefusalKind,
    engine::{Ask, By, Engine, Recorded, Step},
    handle::stopping,
    keeping::not_stored,
    store::{Begun, KeyRow, OnItsWay, StoreError, Stored, Wanted},
};
use crate::model::ServiceName;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
};
use tokio::sync::oneshot;

/// A step that comes into force once it is stored.
#[derive(Debug)]
pub(super) struct Raising {
    step: Step,
    key: Option<KeyRow>,
    wanted: Wanted,
    answer: mpsc::Receiver<Stored>,
    /// The person who asked for it, if it was one.
    asker: Option<Asker>,
    /// What was asked for meanwhile, and comes after it.
    waiting: VecDeque<Ask>,
}

/// Whoever waits for the answer to a command.
#[derive(Debug)]
pub(super) struct Asker {
    /// As it will be kept, but for what came of it.
    pub(super) attempt: Attempt,
    /// Whether a new rollout begins.
    pub(super) created: bool,
    pub(super) reply: oneshot::Sender<Result<Accepted, Refusal>>,
}

/// Waits for what is on its way, one after the other as the store takes them: a thread of the runtime's for as long as there is
/// something.
#[derive(Clone, Default)]
pub(super) struct Waiter(Arc<Mutex<Waits>>);

#[derive(Default)]
struct Waits {
    waiting: VecDeque<Box<dyn FnOnce() + Send>>,
    runs: bool,
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Waiter")
            .field(&self.waits().waiting.len())
            .finish()
    }
}

impl Waiter {
    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, wait: Box<dyn FnOnce() + Send>) {
        let mut waits = self.waits();
        waits.waiting.push_back(wait);
        if !waits.runs {
            waits.runs = true;
            let waiter = self.clone();
            let all = move || {
                while let Some(wait) = waiter.next() {
                    wait();
                }
            };
            drop(tokio::task::spawn_blocking(all));
        }
    }

    fn next(&self) -> Option<Box<dyn FnOnce() + Send>> {
        let mut waits = self.waits();
        let next = waits.waiting.pop_front();
        waits.runs = next.is_some();
        next
    }
}

impl Engine {
    /// Stores what comes into force afterwards. When that takes time, it comes into force later.
    pub(super) fn raise(
        &mut self,
        name: &ServiceName,
        step: Step,
        key: Option<KeyRow>,
    ) -> Result<Recorded, Refusal> {
        if self.has_unsaved(name) {
            return Err(not_stored(self.store_trouble().unwrap_or_default()));
        }
        self.store_evidence(name);
        // Those who follow the events hear of it from where it is stored, so that they get everything in the order of its numbers.
        let told = self.telling(name, &step.rows, None);
        match self
            .store
            .begin_append(name, &step.rows, &step.next, key.as_slice(), told)
        {
            Begun::Done(stored) => self.raised(name, step, key, stored).map(|()| Recorded::InForce),
            Begun::OnItsWay(coming) => {
                self.is_coming(name, step, key, coming);
                Ok(Recorded::OnItsWay)
            }
        }
    }

    fn is_coming(&mut self, name: &ServiceName, step: Step, key: Option<KeyRow>, coming: OnItsWay) {
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        let (reply, answer) = mpsc::channel();
        managed.raising = Some(Raising {
            step,
            key,
            wanted: coming.wanted(),
            answer,
            asker: None,
            waiting: VecDeque::new(),
        });
        let (inbox, service) = (self.inbox.clone(), name.clone());
        self.waiter.add(Box::new(move || {
            // Nobody listens to what has been given up; the engine is gone only when the process is stopping.
            let _ = reply.send(coming.wait());
            let _ = inbox.upgrade().map(|inbox| inbox.send(Ask::Stored(service)));
        }));
    }

    /// It has been stored, or not.
    fn raised(
        &mut self,
        name: &ServiceName,
        step: Step,
        key: Option<KeyRow>,
        stored: Stored,
    ) -> Result<(), Refusal> {
        stored.map_err(|error| not_stored(&self.store_failed(&error)))?;
        self.store_works();
        let now = self.now();
        if let Some(key) = key {
            self.keys.keep(name.clone(), step.at, key);
        }
        self.commit(name, step.next, now);
        self.tell(name, &step.rows, &[], step.was_aborted);
        Ok(())
    }

    /// Whether a step of the service is on its way.
    pub(super) fn is_raising(&self, name: &ServiceName) -> bool {
        self.managed
            .get(name)
            .is_some_and(|managed| managed.raising.is_some())
    }

    /// Who asked for the step that has just been brought on its way.
    pub(super) fn raise_is_for(&mut self, name: &ServiceName, asker: Asker) {
        let raising = self
            .managed
            .get_mut(name)
            .and_then(|managed| managed.raising.as_mut());
        if let Some(raising) = raising {
            raising.asker = Some(asker);
        }
    }

    /// Something has been stored, or not: it may be what is waited for, or what was given up before that.
    pub(super) fn stored(&mut self, name: &ServiceName) {
        let raising = self
            .managed
            .get(name)
            .and_then(|managed| managed.raising.as_ref());
        match raising.map(|raising| raising.answer.try_recv()) {
            Some(Ok(stored)) => self.end_raise(name, stored),
            Some(Err(mpsc::TryRecvError::Disconnected)) => self.end_raise(name, Err(nobody_waits())),
            Some(Err(mpsc::TryRecvError::Empty)) | None => {}
        }
    }

    fn end_raise(&mut self, name: &ServiceName, stored: Stored) {
        let raising = self
            .managed
            .get_mut(name)
            .and_then(|managed| managed.raising.take());
        let Some(raising) = raising else { return };
        let result = self.raised(name, raising.step, raising.key, stored);
        if result.is_err() && raising.asker.is_none() {
            self.come_again_later(name);
            self.publish_status(name);
        }
        self.put_off.extend(raising.waiting);
        if let Some(asker) = raising.asker {
            self.answer_asker(name, asker, result);
        }
    }

    /// What acts first comes now: the step does not come into force, unless it is stored already; then it does before this returns.
    pub(super) fn give_up_raise(&mut self, name: &ServiceName) {
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        let Some(raising) = managed.raising.take_if(|raising| raising.wanted.give_up()) else {
            self.settle_raise(name);
            return;
        };
        self.put_off.extend(raising.waiting);
        if let Some(asker) = raising.asker {
            let why = "something that cannot wait came before it was stored, so it was not done";
            self.answer_asker(name, asker, Err(overtaken(why)));
        }
    }

    /// Waits for the step that is on its way.
    pub(super) fn settle_raise(&mut self, name: &ServiceName) {
        let raising = self
            .managed
            .get(name)
            .and_then(|managed| managed.raising.as_ref());
        let stored = raising.map(|raising| raising.answer.recv());
        if let Some(stored) = stored {
            self.end_raise(name, stored.unwrap_or_else(|_| Err(nobody_waits())));
        }
    }

    /// Waits for all of them: a reload and a stop look at every service at once.
    pub(super) fn settle_raises(&mut self) {
        let names: Vec<ServiceName> = self.managed.keys().cloned().collect();
        for name in names {
            self.settle_raise(&name);
        }
    }

    fn answer_asker(&mut self, name: &ServiceName, asker: Asker, result: Result<(), Refusal>) {
        let Asker {
            mut attempt,
            created,
            reply,
        } = asker;
        let result = result.and_then(|()| self.accepted(name, created, false));
        attempt.refused = result.as_ref().err().map(|refusal| refusal.code.clone());
        attempt.after = self.standing(name.as_str());
        self.audit(&attempt);
        // The asker may have given up waiting; it is done all the same.
        let _ = reply.send(result);
    }

    /// Keeps a command back that has to wait for a step on its way, and what is asked in order to ask for one; gives back any other.
    pub(super) fn put_off(&mut self, ask: Ask) -> Option<Ask> {
        let first = match &ask {
            Ask::Command {
                service,
                command,
                caller,
                warm,
                ..
            } => self.waits_for(service, command, caller, *warm),
            Ask::UndoTarget { service, to, .. } => {
                let undo = Command::Undo { to: to.clone() };
                self.waits_for(service, &undo, &Caller::default(), true)
            }
            Ask::Configure { .. }
            | Ask::Attempted(_)
            | Ask::Measured { .. }
            | Ask::Probed { .. }
            | Ask::Stored(_)
            | Ask::TestNotification { .. }
            | Ask::Shutdown(_) => None,
        };
        let raising = first.and_then(|first| self.managed.get_mut(&first)?.raising.as_mut());
        match raising {
            Some(raising) => {
                raising.waiting.push_back(ask);
                None
            }
            None => Some(ask),
        }
    }

    /// What still waits when Serin stops is not done, and kept as an attempt.
    pub(super) fn refuse_put_off(&mut self) {
        while let Some(ask) = self.put_off.pop_front() {
            let Ask::Command {
                service,
                command,
                caller,
                reply,
                ..
            } = ask
            else {
                continue;
            };
            let refusal = stopping();
            let standing = self.standing(&service);
            self.audit(&Attempt {
                at: self.now(),
                service,
                verb: command.verb().to_owned(),
                caller,
                refused: Some(refusal.code.clone()),
                before: standing.clone(),
                after: standing,
            });
            // The asker may have given up waiting.
            let _ = reply.send(Err(refusal));
        }
    }

    /// The service, when a command waits for its step.
    fn waits_for(
        &mut self,
        service: &str,
        command: &Command,
        caller: &Caller,
        warm: bool,
    ) -> Option<ServiceName> {
        let name = ServiceName::new(service).ok()?;
        let waits = self.is_raising(&name)
            && !(command.is_towards_stable() && self.would_act_first(&name, command, caller, warm));
        waits.then_some(name)
    }

    fn would_act_first(
        &mut self,
        name: &ServiceName,
        command: &Command,
        caller: &Caller,
        warm: bool,
    ) -> bool {
        let decided = self.decide(name, command.clone(), caller, warm);
        let step = decided.and_then(|decision| {
            let by = By {
                caller: Some(caller.clone()),
                ..By::default()
            };
            self.prepare(name, decision.facts, &by)
        });
        step.is_ok_and(|step| step.is_some_and(|step| step.acts_first))
    }
}

/// The refusal of what something else came before.
pub(super) fn overtaken(why: &str) -> Refusal {
    Refusal::new(RefusalKind::Conflict, "overtaken", why)
        .hint("see how the service stands now, and ask again if it is still wanted")
}

fn nobody_waits() -> StoreError {
    StoreError::Io {
        path: std::path::PathBuf::new(),
        why: "Serin is stopping".to_owned(),
    }
}
