//! What is known of a service's traffic, and how numbers made from it are written.

use super::super::{args::CheckArgs, render::short};
use crate::model::Weight;
use std::time::Duration;

/// What is known of the traffic to a service.
#[derive(Debug, Clone, Copy, Default)]
pub struct Traffic {
    /// Requests per second, to both versions together.
    pub(super) rps: Option<f64>,
    /// The share that fails while all is well.
    pub(super) error_rate: Option<f64>,
}

impl From<&CheckArgs> for Traffic {
    fn from(args: &CheckArgs) -> Traffic {
        Traffic {
            rps: args.rps,
            error_rate: args.error_rate,
        }
    }
}

impl Traffic {
    /// How long so many of the canary's requests take.
    pub(super) fn takes(self, requests: f64, weight: Weight) -> Option<Duration> {
        let seconds = requests / (self.rps? * weight.as_ratio());
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// How many of the canary's requests come in this time.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and too many are as good as all"
    )]
    pub(super) fn within(self, time: Duration, weight: Weight) -> Option<u64> {
        Some((self.rps? * weight.as_ratio() * time.as_secs_f64()) as u64)
    }
}

/// A time for people; too short ones are only called that.
pub(super) fn brief(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        "< 1s".to_owned()
    } else {
        short(time)
    }
}

/// With at most three digits: 1%, 0.1%, 99.9%.
pub(super) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    let decimals = match percent {
        p if !(0.005..99.95).contains(&p) => 0,
        p if p >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{percent:.decimals$}");
    let text = if decimals > 0 {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}%")
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative, and a forecast beyond 2^63 means never"
)]
pub(super) fn whole(number: f64) -> u64 {
    number as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_short() {
        assert_eq!(
            [0.01, 0.001, 0.999_9, 0.999, 0.0, 0.604, 0.000_01].map(percent),
            ["1%", "0.1%", "100%", "99.9%", "0%", "60.4%", "0%"]
        );
    }
}
