//! What a message says: one sentence with the numbers, and the event it is about.

use super::News;
use crate::{
    config::NotificationFormat,
    control::providers::shorten,
    model::Timestamp,
    rollout::{Notice, Trigger},
};
use serde_json::{Value, json};

/// The longest sentence: Slack cuts longer ones.
const LONGEST: usize = 3000;

/// One event, as one receiver hears of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Message {
    /// The same for everybody and every attempt: who hears of it twice can tell.
    pub(super) id: String,
    /// What it is about, the most telling first; none: it is a test.
    pub(super) triggers: Vec<Trigger>,
    /// What happened, in one sentence.
    pub(super) text: String,
    at: Timestamp,
    /// The event as the API gives it, but for its number.
    event: Value,
}

impl Message {
    /// Nothing, when none of what happened is wanted.
    pub(super) fn of<'n>(
        id: &str,
        news: &News<'_>,
        wanted: impl Iterator<Item = &'n Notice>,
    ) -> Option<Message> {
        let wanted: Vec<&Notice> = wanted.collect();
        let first = wanted.first()?;
        let mut text = format!("{}: {}", news.service, first.text);
        // An abort by the judge has its numbers already.
        let judged = news.judged.filter(|_| is_of_trial(first.trigger));
        if let Some(judged) = judged.filter(|judged| !text.contains(judged)) {
            text = format!("{text}; {judged}");
        }
        Some(Message {
            id: id.to_owned(),
            triggers: wanted.iter().map(|notice| notice.trigger).collect(),
            text: shorten(&text, LONGEST),
            at: news.event.at,
            event: shown(news),
        })
    }

    /// Nothing has happened: whoever is called `name` shows whether he can be told.
    pub(super) fn test(id: &str, name: &str, at: Timestamp) -> Message {
        Message {
            id: id.to_owned(),
            triggers: Vec::new(),
            text: format!("a test: this is how `{name}` hears of Serin"),
            at,
            event: json!({}),
        }
    }

    /// It is stored under this number; none: it could not be stored yet.
    pub(super) fn set_number(&mut self, number: Option<u64>) {
        self.event["id"] = json!(number);
    }

    /// The body.
    pub(super) fn body(&self, format: NotificationFormat) -> String {
        let value = match format {
            NotificationFormat::Json => json!({
                "type": self.triggers.first().map_or("test", |trigger| trigger.as_str()),
                "timestamp": self.at,
                "id": self.id,
                "triggers": self.triggers,
                "text": self.text,
                "data": self.event,
            }),
            NotificationFormat::Slack => json!({"text": escaped(&self.text)}),
        };
        value.to_string()
    }
}

/// Whether it is about a trial that has come so far that a judge may have said something.
fn is_of_trial(trigger: Trigger) -> bool {
    match trigger {
        Trigger::OnRolloutStepCompleted
        | Trigger::OnRolloutPaused
        | Trigger::OnRolloutCompleted
        | Trigger::OnRolloutAborted
        | Trigger::OnAnalysisRunFailed
        | Trigger::OnAnalysisRunError => true,
        Trigger::OnRolloutUpdated
        | Trigger::OnAnalysisRunRunning
        | Trigger::OnAlarmRaised
        | Trigger::OnAlarmCleared => false,
    }
}

/// The event, without the plan of a deploy: it is long, and says nothing of what happened.
fn shown(news: &News<'_>) -> Value {
    let mut event = serde_json::to_value(&news.event).unwrap_or_default();
    if let Some(detail) = event.get_mut("detail").and_then(Value::as_object_mut) {
        detail.shift_remove("plan");
    }
    event
}

/// Slack's three characters with a meaning of their own.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
