//! `alarm`: how much of a service may fail, whichever version answers.

use super::cx::Cx;
use super::units::Share;
use crate::analysis::AlarmRule;
use crate::model::Span;
use serde::Deserialize;
use std::time::Duration;

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct AlarmConfig {
    /// It rings above this share of failed requests.
    errors: Share,
    /// Over the last so much time. Absent: 30s.
    over: Option<Span>,
    /// Of at least so many requests. Absent: 50.
    requests: Option<u64>,
}

impl AlarmConfig {
    pub(super) fn compile(self, path: &str, cx: &mut Cx) -> AlarmRule {
        let rule = AlarmRule {
            errors: self.errors.0,
            over: self.over.unwrap_or(Span::secs(30)),
            requests: self.requests.unwrap_or(50),
        };
        if !(rule.errors > 0.0 && rule.errors < 1.0) {
            cx.error(
                &format!("{path}.errors"),
                "the share must lie between 0% and 100%",
                "write what the service never reaches while all is well, for example 5%",
            );
        }
        let (least, most) = (Duration::from_secs(5), Duration::from_secs(3600));
        if !(least..=most).contains(&rule.over.as_duration()) {
            cx.error(
                &format!("{path}.over"),
                format!("{} is not between 5s and 1h", rule.over),
                "write for example 30s",
            );
        }
        if rule.requests == 0 {
            cx.error(
                &format!("{path}.requests"),
                "no request at all cannot fail",
                "write 1 or more; absent is 50",
            );
        }
        rule
    }
}
