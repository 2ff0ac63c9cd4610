//! The absolute alarm in the engine: reads what both versions have answered, and records when `analysis::alarm` says that it
//! rings or does not any more.

use super::{engine::Engine, managed::Managed};
use crate::{
    analysis::{Alarm, AlarmRule, AlarmWatch},
    model::{ServiceName, Span, Timestamp},
    rollout::Event,
    upstream::Target,
};
use serde_json::json;
use std::{sync::Arc, time::Duration};

/// How far apart looks are.
const EVERY: Duration = Duration::from_millis(500);

/// What one role of one generation has answered, up to the last look.
#[derive(Debug)]
struct Tap {
    target: Arc<Target>,
    seen: (u64, u64),
    /// When it was in the split for the last time: requests may still end there.
    current: Timestamp,
}

/// The failures of one service as the alarm sees them.
#[derive(Debug, Default)]
pub(super) struct Failures {
    watch: AlarmWatch,
    rule: Option<AlarmRule>,
    taps: Vec<Tap>,
    looked: Option<Timestamp>,
}

impl Managed {
    /// What has been answered since the last look, and how much of it failed.
    fn answered(&mut self, now: Timestamp, keep: Span) -> (u64, u64) {
        let split = self.live.cell.load_full();
        let taps = &mut self.failures.taps;
        for target in [Some(&split.stable), split.canary.as_ref()].into_iter().flatten() {
            match taps.iter_mut().find(|tap| Arc::ptr_eq(&tap.target, target)) {
                Some(tap) => tap.current = now,
                None => taps.push(Tap {
                    target: Arc::clone(target),
                    seen: (0, 0),
                    current: now,
                }),
            }
        }
        let mut sum = (0, 0);
        for tap in taps.iter_mut() {
            let counts = tap.target.evidence.counts();
            let all = (counts.decided(), counts.failed);
            sum.0 += all.0.saturating_sub(tap.seen.0);
            sum.1 += all.1.saturating_sub(tap.seen.1);
            tap.seen = all;
        }
        taps.retain(|tap| now.since(tap.current) <= keep.as_duration());
        sum
    }
}

impl Engine {
    /// Looks at the failures of a service that has an alarm.
    pub(super) fn watch_alarm(&mut self, name: &ServiceName, now: Timestamp) {
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        let rings = managed.saved.state.alarm.as_ref().map(|alarm| alarm.since);
        let Some(rule) = managed.config.alarm else {
            managed.failures = Failures::default();
            if rings.is_some() && managed.quiet_until <= now {
                let message = "the service has no alarm any more".to_owned();
                self.happened(name, Event::AlarmCleared { message }, None);
            }
            return;
        };
        if managed.failures.rule != Some(rule) {
            managed.failures.watch = AlarmWatch::default();
            managed.failures.rule = Some(rule);
        }
        let looked = managed.failures.looked;
        if looked.is_some_and(|looked| now.since(looked) < EVERY) || managed.live.cell.load().generation == 0
        {
            return;
        }
        managed.failures.looked = Some(now);
        let mut answered = managed.answered(now, rule.over);
        if looked.is_none() {
            // Of what was answered before nobody knows when.
            answered = (0, 0);
        }
        let alarm = managed.failures.watch.look(&rule, now, rings, answered);
        let Some(alarm) = alarm.filter(|_| managed.quiet_until <= now) else {
            return;
        };
        let said = |requests: u64, failed: u64| {
            #[expect(
                clippy::cast_precision_loss,
                reason = "counts of one window are far below 2^52"
            )]
            let share = 100.0 * failed as f64 / requests.max(1) as f64;
            let (over, limit) = (rule.over, 100.0 * rule.errors);
            let message = format!(
                "{share:.1}% of the service's {requests} requests in the last {over} failed, of both versions together (the \
                 alarm rings above {limit}%)"
            );
            (message, json!({"requests": requests, "failed": failed}))
        };
        let (event, numbers) = match alarm {
            Alarm::Raised { requests, failed } => {
                let (message, numbers) = said(requests, failed);
                (Event::AlarmRaised { message }, numbers)
            }
            Alarm::Cleared { requests, failed } => {
                let (message, numbers) = said(requests, failed);
                (Event::AlarmCleared { message }, numbers)
            }
        };
        self.happened(name, event, Some(numbers));
    }
}
