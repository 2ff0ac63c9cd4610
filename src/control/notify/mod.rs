//! Tells people outside, by HTTP, what happens to rollouts.
//!
//! The engine only offers: each receiver has a queue that never makes it wait, and a task of its own that posts one message after
//! the other (`deliver`). What a message says is `message`, how it is signed `sign`, when it is tried again `retry`.

mod deliver;
mod message;
mod retry;
mod sign;

use super::{NotificationTest, StoredEvent, engine::Engine, providers::Outside, report, store::Row};
use crate::{
    config::{Config, Notification},
    metrics::ControlMetrics,
    model::{Clock, ServiceName},
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
}

impl Engine {
    /// Tells everybody outside what facts came to.
    pub(super) fn notify(&mut self, name: &ServiceName, rows: &[Row]) {
        if rows.iter().all(|row| row.telling.is_none()) {
            return;
        }
        let status = self.managed.get(name).map(|managed| self.status_of(managed));
        let judged = status.as_ref().and_then(report::judged);
        for row in rows {
            let Some(telling) = &row.telling else { continue };
            self.notifier.tell(&News {
                service: name,
                telling,
                event: row.shown(0, name),
                judged: judged.as_deref(),
            });
        }
    }
}

/// Everybody who is told.
#[derive(Debug)]
pub(super) struct Notifier {
    receivers: BTreeMap<String, Receiver>,
    outside: Arc<dyn Outside>,
    clock: Arc<dyn Clock>,
    metrics: ControlMetrics,
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
    /// Nobody yet. Ids and the chance in waiting follow from `seed` and tell nothing of what else does.
    pub(super) fn new(
        outside: Arc<dyn Outside>,
        clock: Arc<dyn Clock>,
        metrics: ControlMetrics,
        seed: [u8; 32],
    ) -> Notifier {
        Notifier {
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
        let notices: Vec<Notice> = effects.into_iter().filter_map(Effect::into_notice).collect();
        let wanted = self.receivers.values().any(|receiver| {
            let config = receiver.config.borrow();
            notices.iter().any(|notice| config.wants(service, notice.trigger))
        });
        let number = watch::Sender::new(None);
        wanted.then(|| Arc::new(Telling { notices, number }))
    }

    /// Offers news to everybody who wants them; waits for nobody. Each hears of one event once.
    fn tell(&mut self, news: &News<'_>) {
        let id = self.fresh_id();
        let now = self.clock.monotonic();
        for (name, receiver) in &mut self.receivers {
            let message = {
                let config = receiver.config.borrow();
                let wanted = news.telling.notices.iter();
                let wanted = wanted.filter(|notice| config.wants(news.service, notice.trigger));
                Message::of(&id, news, wanted)
            };
            let Some(message) = message else { continue };
            let queued = Queued {
                message,
                number: news.telling.number.subscribe(),
                since: now,
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
