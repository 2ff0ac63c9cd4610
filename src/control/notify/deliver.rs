//! One receiver's task: posts what is queued, one message after the other, each until it is through or given up.

use super::{
    Outcome, count,
    message::Message,
    retry::{self, Verdict},
    sign,
};
use crate::{
    config::Notification,
    control::{
        providers::{Outside, Question},
        store::Store,
    },
    metrics::ControlMetrics,
    model::{Clock, ServiceName, Timestamp},
};
use rand::{RngExt, rngs::StdRng};
use std::{sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

/// A message that waits for its turn.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) message: Message,
    /// Whose event it is about.
    pub(super) service: ServiceName,
    /// Of the event, once it is stored.
    pub(super) number: watch::Receiver<Option<u64>>,
    /// Since when, by the monotonic clock.
    pub(super) since: Duration,
}

/// How long an event's number is waited for: a disk that hangs keeps nobody from being told.
const NUMBERED: Duration = Duration::from_secs(1);

/// What the task has.
pub(super) struct Delivery {
    pub(super) name: String,
    pub(super) config: watch::Receiver<Arc<Notification>>,
    pub(super) outside: Arc<dyn Outside>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) store: Arc<dyn Store>,
    pub(super) metrics: ControlMetrics,
    pub(super) rng: StdRng,
}

/// The receiver is in the configuration no more.
struct Removed;

impl Delivery {
    /// Ends when its queue has ended and is empty, or when the receiver is removed.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Queued>) {
        while let Some(mut queued) = queue.recv().await {
            let number = tokio::time::timeout(NUMBERED, queued.number.wait_for(Option::is_some)).await;
            let number = number.ok().and_then(Result::ok).and_then(|number| *number);
            queued.message.set_number(number);
            if let Err(Removed) = self.deliver(&queued, &queue).await {
                return;
            }
        }
    }

    /// Tries until it is through, refused or given up.
    async fn deliver(&mut self, queued: &Queued, queue: &mpsc::Receiver<Queued>) -> Result<(), Removed> {
        let (message, mut attempts) = (&queued.message, 0);
        loop {
            let question = self.question(message);
            if self.is_removed() {
                return Err(Removed);
            }
            let answer = self.outside.fetch(question).await;
            attempts += 1;
            if self.is_removed() {
                return Err(Removed);
            }
            let asked_for = answer.as_ref().map_or(Duration::ZERO, |answer| {
                retry::asked_for(answer, self.clock.wall())
            });
            let why = match Verdict::of(answer.as_ref()) {
                Verdict::Delivered => {
                    self.is_over(queued);
                    count(&self.metrics, &self.name, Outcome::Delivered, 1);
                    debug!(notification = %self.name, id = message.id, attempts, "`{}` has been told", self.name);
                    return Ok(());
                }
                Verdict::Never(why) => {
                    self.failed(message, attempts, &format!("refused, {why}"));
                    self.is_over(queued);
                    return Ok(());
                }
                Verdict::Again(why) => why,
            };
            let age = self.clock.monotonic().saturating_sub(queued.since);
            let chance = self.rng.random::<f64>();
            let wait = retry::wait(attempts, age, chance, asked_for).filter(|_| !queue.is_closed());
            let Some(wait) = wait else {
                self.failed(message, attempts, &format!("given up, {why}"));
                // After a stop it is told again.
                if !queue.is_closed() {
                    self.is_over(queued);
                }
                return Ok(());
            };
            if attempts == 1 {
                warn!(notification = %self.name, id = message.id, "`{}` could not be told, it is tried again: {why}", self.name);
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // With another address or key it may get through at once; and at a stop there is no other time.
                _ = self.config.changed() => {}
            }
        }
    }

    /// It need not be told again after a restart. An event that is not stored would not be.
    fn is_over(&self, queued: &Queued) {
        let Some(number) = *queued.number.borrow() else {
            return;
        };
        if let Err(error) = self.store.heard(&self.name, queued.service.as_str(), number) {
            debug!(notification = %self.name, %error, "`{}` may be told again after a restart: {error}", self.name);
        }
    }

    /// Its series are gone as well: nothing is counted any more.
    fn is_removed(&self) -> bool {
        self.config.has_changed().is_err()
    }

    /// The request of one attempt, as the receiver is configured now.
    fn question(&mut self, message: &Message) -> Question {
        let config = Arc::clone(&self.config.borrow_and_update());
        question(&config, message, self.clock.wall())
    }

    fn failed(&self, message: &Message, attempts: u32, why: &str) {
        count(&self.metrics, &self.name, Outcome::Failed, 1);
        let name = &self.name;
        warn!(
            notification = %name,
            id = message.id,
            attempts,
            "`{name}` was not told of \"{}\" ({why})",
            message.text
        );
    }
}

/// The request of one attempt.
pub(super) fn question(config: &Notification, message: &Message, now: Timestamp) -> Question {
    let body = message.body(config.format);
    let at = now.as_millis() / 1000;
    let mut headers = sign::headers(config.secret.as_ref(), &message.id, at, &body);
    headers.push(("content-type".to_owned(), "application/json".to_owned()));
    let own = config.headers.iter();
    headers.extend(own.map(|(name, value)| (name.to_string(), value.expose().to_owned())));
    Question {
        method: http::Method::POST,
        url: config.url.expose().to_owned(),
        headers,
        body,
        timeout: config.timeout.as_duration(),
        ca: config.ca.clone(),
        insecure: false,
    }
}
