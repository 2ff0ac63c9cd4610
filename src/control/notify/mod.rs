//! Tells people outside, by HTTP, what happens to rollouts.
//!
//! The engine only offers: each receiver has a queue that never makes it wait, and a task of its own that posts one message after
//! the other (`deliver`). What a message says is `message`, how it is signed `sign`, when it is tried again `retry`.

mod deliver;
mod message;
mod retry;
mod sign;

use super::{
    NotificationTest, StoredEvent,
    engine::Engine,
    providers::Outside,
    report,
    store::{Row, Store, Untold},
};
use crate::{
    config::{Config, Notification},
    metrics::ControlMetrics,
    model::{Clock, ServiceName, Timestamp},
    rollout::{Effect, Notice},
};
use deliver::{Delivery, Queued};
use message::Message;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use retry::Verdict;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tracing::warn;

/// Messages that may wait for one receiver; a few KiB each.
const QUEUE: usize = 256;
/// How long a stop waits for what is still to be told.
const AT_STOP: Duration = Duration::from_secs(2);

/// How a message ended, as the metric calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The receiver has it.
    Delivered,
    /// The receiver refused it, or could not be reached for too long.
    Failed,
    /// It was never posted: too many waited.
    Dropped,
}

impl Outcome {
    const ALL: [Outcome; 3] = [Outcome::Delivered, Outcome::Failed, Outcome::Dropped];

    const fn as_str(self) -> &'static str {
        match self {
            Outcome::Delivered => "delivered",
            Outcome::Failed => "failed",
            Outcome::Dropped => "dropped",
        }
    }
}

/// What of one fact is worth telling to somebody there is.
#[derive(Debug)]
pub(crate) struct Telling {
    /// The most telling first.
    notices: Vec<Notice>,
    /// Its number, once it is stored: what lowers a canary's exposure is told at once and stored after.
    pub(super) number: watch::Sender<Option<u64>>,
}

/// A fact, with everything that a message says of it.
#[derive(Debug)]
struct News<'a> {
    service: &'a ServiceName,
    telling: &'a Telling,
    /// The event as everybody else sees it, but for its number.
    event: StoredEvent,
    /// What the judge says, or said last in this rollout, when there is one.
    judged: Option<&'a str>,
    /// It is the service's so-manieth fact.
    count: u64,
}

impl Engine {
    /// Tells everybody outside what facts came to.
    pub(super) fn notify(&mut self, name: &ServiceName, rows: &[Row]) {
        if rows.iter().all(|row| row.telling.is_none()) {
            return;
        }
        let Some(managed) = self.managed.get(name) else {
            return;
        };
        let judged = report::judged(&self.status_of(managed));
        let since = self.clock.monotonic();
        // The last of them is the last of all.
        let counts = (0..=managed.saved.facts).rev();
        let counts: Vec<u64> = counts.take(rows.len()).collect();
        for (row, count) in rows.iter().zip(counts.into_iter().rev()) {
            let Some(telling) = &row.telling else { continue };
            let news = News {
                service: name,
                telling,
                event: row.shown(0, name),
                judged: judged.as_deref(),
                count,
            };
            self.notifier.tell(&news, since, |_| true);
        }
    }

    /// Tells what was stored before this start and may not have been told: the process was killed, or stopped while somebody could
    /// not be reached. What is older than any message that is tried again is not told any more.
    pub(super) fn tell_again(&mut self) {
        let now = self.now();
        let (told, untold) = match self.store.untold(now.minus(retry::GIVE_UP)) {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "what was not notified before the start cannot be read: {error}");
                return;
            }
        };
        let mut all: Vec<(StoredEvent, Vec<Notice>, u64)> = Vec::new();
        for Untold { before, events } in untold {
            let mut saved = before;
            for (event, fact) in events {
                let Ok((next, effects)) = saved.apply(&fact, event.at) else {
                    break;
                };
                saved = next;
                all.push((event, notices(effects), saved.facts));
            }
        }
        all.sort_by_key(|(event, _, _)| event.id);
        for (event, notices, count) in all {
            let (service, id) = (event.service.clone(), event.id);
            let telling = Telling {
                notices,
                number: watch::Sender::new(Some(id)),
            };
            // By the clock that goes on from here: no older than the process.
            let since = self.clock.monotonic().saturating_sub(now.since(event.at));
            let news = News {
                service: &service,
                telling: &telling,
                event,
                judged: None,
                count,
            };
            let waits = |receiver: &str| {
                let told = told.get(receiver);
                told.is_some_and(|told| !told.knows(service.as_str(), id))
            };
            self.notifier.tell(&news, since, waits);
        }
    }
}

fn notices(effects: Vec<Effect>) -> Vec<Notice> {
    effects.into_iter().filter_map(Effect::into_notice).collect()
}

/// Everybody who is told.
#[derive(Debug)]
pub(super) struct Notifier {
    receivers: BTreeMap<String, Receiver>,
    outside: Arc<dyn Outside>,
    clock: Arc<dyn Clock>,
    metrics: ControlMetrics,
    store: Arc<dyn Store>,
    /// Of the store: ids that others cannot know and that stay what they are over a restart.
    secret: [u8; 16],
    rng: StdRng,
}

/// One of them.
#[derive(Debug)]
struct Receiver {
    queue: mpsc::Sender<Queued>,
    /// What is written of it now; gone, when it is removed.
    config: watch::Sender<Arc<Notification>>,
    task: JoinHandle<()>,
    /// Whether it has been said that too many messages wait.
    full: bool,
}

impl Notifier {
    /// Nobody yet. The ids of tests and the chance in waiting follow from `seed` and tell nothing of what else does.
    pub(super) fn new(
        outside: Arc<dyn Outside>,
        clock: Arc<dyn Clock>,
        metrics: ControlMetrics,
        store: Arc<dyn Store>,
        secret: [u8; 16],
        seed: [u8; 32],
    ) -> Notifier {
        Notifier {
            store,
            secret,
            receivers: BTreeMap::new(),
            outside,
            clock,
            metrics,
            rng: StdRng::from_seed(
                Sha256::new_with_prefix(seed)
                    .chain_update("notify")
                    .finalize()
                    .into(),
            ),
        }
    }

    /// It is kept from which event on those whom a configuration names are told, also after a restart.
    pub(super) fn are_heard(&self, config: &Config) {
        let names = config.notifications.iter().map(|one| one.name.clone());
        let names: Vec<String> = names.collect();
        if let Err(error) = self.store.hear(&names) {
            warn!(%error, "who is notified cannot be kept: after a crash nobody is told again: {error}");
        }
    }

    /// Tells those whom a configuration names from now on. Those that stay keep what waits for them, also when their address is
    /// another one; what waits for others is dropped. Must be called inside a runtime when there is anybody.
    pub(super) fn configure(&mut self, config: &Config) {
        let named = |name: &String| config.notifications.iter().any(|one| one.name == *name);
        let gone: Vec<String> = self
            .receivers
            .keys()
            .filter(|name| !named(name))
            .cloned()
            .collect();
        for name in gone {
            let removed = self.receivers.remove(&name);
            let waiting = removed.map_or(0, |receiver| QUEUE - receiver.queue.capacity());
            if waiting > 0 {
                warn!(notification = %name, "`{name}` is removed and was not told of {waiting} events");
            }
            for outcome in Outcome::ALL {
                // What was never shown need not be forgotten.
                let labels = [name.as_str(), outcome.as_str()];
                let _ = self.metrics.notifications.remove_label_values(&labels);
            }
        }
        for notification in &config.notifications {
            match self.receivers.get(&notification.name) {
                Some(known) if *known.config.borrow() == *notification => {}
                Some(known) => {
                    known.config.send_replace(Arc::clone(notification));
                }
                None => self.add(notification),
            }
        }
    }

    fn add(&mut self, notification: &Arc<Notification>) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let (config, watched) = watch::channel(Arc::clone(notification));
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let delivery = Delivery {
            name: notification.name.clone(),
            config: watched,
            outside: Arc::clone(&self.outside),
            clock: Arc::clone(&self.clock),
            store: Arc::clone(&self.store),
            metrics: self.metrics.clone(),
            rng: StdRng::from_seed(seed),
        };
        for outcome in Outcome::ALL {
            count(&self.metrics, &notification.name, outcome, 0);
        }
        let receiver = Receiver {
            queue,
            config,
            task: tokio::spawn(delivery.run(waiting)),
            full: false,
        };
        self.receivers.insert(notification.name.clone(), receiver);
    }

    /// What is to be told of a fact with these effects; nothing, when nobody wants to hear of it.
    pub(super) fn telling(&self, service: &ServiceName, effects: Vec<Effect>) -> Option<Arc<Telling>> {
        let notices = notices(effects);
        let wanted = self.receivers.values().any(|receiver| {
            let config = receiver.config.borrow();
            notices.iter().any(|notice| config.wants(service, notice.trigger))
        });
        let number = watch::Sender::new(None);
        wanted.then(|| Arc::new(Telling { notices, number }))
    }

    /// Offers news that are there `since` then to everybody who wants them and `waits` for them; waits for nobody. Each hears of
    /// one event once.
    fn tell(&mut self, news: &News<'_>, since: Duration, waits: impl Fn(&str) -> bool) {
        let id = self.id_of(news.service, news.count, news.event.at);
        for (name, receiver) in &mut self.receivers {
            if !waits(name) {
                continue;
            }
            let message = {
                let config = receiver.config.borrow();
                let wanted = news.telling.notices.iter();
                let wanted = wanted.filter(|notice| config.wants(news.service, notice.trigger));
                Message::of(&id, news, wanted)
            };
            let Some(message) = message else { continue };
            let queued = Queued {
                message,
                service: news.service.clone(),
                number: news.telling.number.subscribe(),
                since,
            };
            if receiver.queue.try_send(queued).is_ok() {
                receiver.full = false;
                continue;
            }
            count(&self.metrics, name, Outcome::Dropped, 1);
            // Said once, not for each message.
            if !std::mem::replace(&mut receiver.full, true) {
                warn!(notification = %name, "`{name}` is {QUEUE} notifications behind: those that come now are dropped");
            }
        }
    }

    /// Posts one message to somebody, past his queue and once, and replies with what came of it. Without such a receiver there is
    /// no reply.
    pub(super) fn test(&mut self, name: &str, reply: oneshot::Sender<NotificationTest>) {
        let id = self.fresh_id();
        let Some(receiver) = self.receivers.get(name) else {
            return;
        };
        let now = self.clock.wall();
        let message = Message::test(&id, name, now);
        let asking = self
            .outside
            .fetch(deliver::question(&receiver.config.borrow(), &message, now));
        tokio::spawn(async move {
            let (delivered, message) = match Verdict::of(asking.await.as_ref()) {
                Verdict::Delivered => (true, "the receiver has it".to_owned()),
                Verdict::Again(why) | Verdict::Never(why) => (false, why),
            };
            // The asker may have given up waiting.
            let _ = reply.send(NotificationTest { delivered, message });
        });
    }

    /// The id of a service's so-manieth fact: the same when it is told again after a restart.
    fn id_of(&self, service: &ServiceName, count: u64, at: Timestamp) -> String {
        let hash = Sha256::new_with_prefix(self.secret)
            .chain_update("notification")
            .chain_update(count.to_be_bytes())
            .chain_update(at.as_millis().to_be_bytes())
            .chain_update(service.as_str())
            .finalize();
        let half = hash.iter().take(16);
        format!(
            "msg_{:032x}",
            half.fold(0, |id, byte| id << 8 | u128::from(*byte))
        )
    }

    fn fresh_id(&mut self) -> String {
        format!("msg_{:032x}", self.rng.random::<u128>())
    }

    /// Waits, for a moment, until everybody has been told; what is to be tried again is tried once more and no longer waited for.
    pub(super) async fn finish(&mut self) {
        let receivers = std::mem::take(&mut self.receivers);
        let mut tasks = Vec::new();
        let mut configs = Vec::new();
        for (name, receiver) in receivers {
            // Without its queue a task ends when it has told what is in it. It may be waiting to try again: it is woken.
            drop(receiver.queue);
            receiver.config.send_modify(|_| {});
            configs.push(receiver.config);
            tasks.push((name, receiver.task));
        }
        let until = tokio::time::Instant::now() + AT_STOP;
        for (name, mut task) in tasks {
            if tokio::time::timeout_at(until, &mut task).await.is_err() {
                task.abort();
                warn!(notification = %name, "`{name}` could not be told everything before the stop");
            }
        }
    }
}

fn count(metrics: &ControlMetrics, name: &str, outcome: Outcome, by: u64) {
    let labels = [name, outcome.as_str()];
    metrics.notifications.with_label_values(&labels).inc_by(by);
}
