//! The absolute alarm of a service: damage that both versions share, which no comparison between them can see.
//!
//! Pure: the time and whether it rings are arguments. `control::alarm` reads the counters and records what is decided here.

use crate::model::{Span, Timestamp};
use std::{collections::VecDeque, time::Duration};

/// When a service's failures are an alarm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AlarmRule {
    /// It rings above this share of failed requests, in (0, 1].
    pub errors: f64,
    /// Over the last so much time.
    pub over: Span,
    /// Of at least so many requests.
    pub requests: u64,
}

/// What a look at the last time has decided, with its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// It rings from now on.
    Raised {
        /// Requests of both versions in the window.
        requests: u64,
        /// Those that failed.
        failed: u64,
    },
    /// It does not ring any more.
    Cleared {
        /// Requests of both versions in the window.
        requests: u64,
        /// Those that failed.
        failed: u64,
    },
}

/// The last time of one service.
#[derive(Debug, Default)]
pub struct AlarmWatch {
    /// When the first look was.
    began: Option<Timestamp>,
    /// What came between one look and the next: when, requests, failures.
    recent: VecDeque<(Timestamp, u64, u64)>,
}

impl AlarmWatch {
    /// Takes in what came since the last look. `rings` is since when the alarm rings, if it does: as long as it is the same,
    /// the same is decided again, so a decision that could not be recorded is not lost.
    ///
    /// It clears at half the share, counted over at least `rule.requests` (those that did not come count as good: a service
    /// that nobody asks damages nobody), and not before it has rung, and been watched, for a whole window.
    pub fn look(
        &mut self,
        rule: &AlarmRule,
        now: Timestamp,
        rings: Option<Timestamp>,
        (requests, failed): (u64, u64),
    ) -> Option<Alarm> {
        let window = rule.over.as_duration();
        let began = *self.began.get_or_insert(now);
        self.recent.push_back((now, requests, failed));
        while self
            .recent
            .front()
            .is_some_and(|(at, ..)| now.since(*at) >= window)
        {
            self.recent.pop_front();
        }
        let sum = |sum: (u64, u64), part: &(Timestamp, u64, u64)| (sum.0 + part.1, sum.1 + part.2);
        let (requests, failed) = self.recent.iter().fold((0, 0), sum);
        let Some(since) = rings else {
            let rings = requests >= rule.requests.max(1) && share(failed, requests) > rule.errors;
            return rings.then_some(Alarm::Raised { requests, failed });
        };
        let whole = now.since(since).min(now.since(began)) >= window.max(Duration::from_millis(1));
        let good = share(failed, requests.max(rule.requests).max(1)) <= rule.errors / 2.0;
        (whole && good).then_some(Alarm::Cleared { requests, failed })
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of one window are far below 2^52"
)]
fn share(failed: u64, requests: u64) -> f64 {
    failed as f64 / requests as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULE: AlarmRule = AlarmRule {
        errors: 0.05,
        over: Span::secs(30),
        requests: 50,
    };

    /// What is decided when each second brings these: second, and what.
    fn decided(seconds: impl IntoIterator<Item = (u64, u64)>) -> Vec<(u64, Alarm)> {
        let (mut watch, mut rings, mut decided) = (AlarmWatch::default(), None, Vec::new());
        for (second, counts) in (1..).zip(seconds) {
            let now = Timestamp::from_secs(second);
            let Some(alarm) = watch.look(&RULE, now, rings, counts) else {
                continue;
            };
            rings = match alarm {
                Alarm::Raised { .. } => Some(now),
                Alarm::Cleared { .. } => None,
            };
            decided.push((second, alarm));
        }
        decided
    }

    fn repeat(seconds: usize, requests: u64, failed: u64) -> impl Iterator<Item = (u64, u64)> {
        std::iter::repeat_n((requests, failed), seconds)
    }

    #[test]
    fn it_rings_once_when_too_much_fails_and_stops_once_when_it_is_over() {
        let told = decided(
            repeat(60, 100, 0)
                .chain(repeat(60, 100, 20))
                .chain(repeat(120, 100, 0)),
        );
        let [
            (rung, Alarm::Raised { requests, failed }),
            (over, Alarm::Cleared { .. }),
        ] = told[..]
        else {
            panic!("{told:?}");
        };
        // 8 of the last 30 seconds are the first of which 20 % are more than 5 %.
        assert_eq!((rung, requests, failed), (68, 3000, 160));
        // 3 of the last 30 are the first of which they are no more than half of that.
        assert_eq!(over, 147);
    }

    #[test]
    fn few_requests_are_no_alarm_and_between_the_two_bounds_it_goes_on_ringing() {
        assert_eq!(decided(repeat(300, 1, 1)), []);
        let told = decided(repeat(40, 100, 20).chain(repeat(600, 100, 4)));
        assert!(matches!(told[..], [(1, Alarm::Raised { .. })]), "{told:?}");
    }

    #[test]
    fn a_service_that_nobody_asks_any_more_does_not_ring_for_ever() {
        let told = decided(repeat(10, 100, 100).chain(repeat(60, 0, 0)));
        assert!(
            matches!(
                told[..],
                [
                    (1, Alarm::Raised { .. }),
                    (
                        40,
                        Alarm::Cleared {
                            requests: 0,
                            failed: 0
                        }
                    )
                ]
            ),
            "{told:?}"
        );
    }

    #[test]
    fn after_a_restart_a_whole_window_is_watched_before_it_clears() {
        let (mut watch, rings) = (AlarmWatch::default(), Some(Timestamp::from_secs(1)));
        let mut look = |second| watch.look(&RULE, Timestamp::from_secs(second), rings, (100, 0));
        for second in 1000..1030 {
            assert_eq!(look(second), None, "{second}");
        }
        assert!(matches!(look(1030), Some(Alarm::Cleared { .. })));
    }

    proptest! {
        #[test]
        fn whatever_comes_it_rings_for_a_reason_and_never_in_a_storm(
            seconds in proptest::collection::vec((0_u64..200, 0.0_f64..=1.0, proptest::bool::ANY), 1..400)
        ) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "small")]
            let seconds: Vec<(u64, u64)> = seconds
                .into_iter()
                .map(|(requests, share, good)| (requests, if good { 0 } else { (requests as f64 * share) as u64 }))
                .collect();
            let told = decided(seconds.iter().copied());
            let in_window = |second: u64| {
                let to = usize::try_from(second).unwrap();
                let last = &seconds[to.saturating_sub(30)..to];
                last.iter().fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1))
            };
            for (place, (second, alarm)) in told.iter().enumerate() {
                let (requests, failed) = in_window(*second);
                match alarm {
                    Alarm::Raised { .. } => {
                        prop_assert_eq!(place % 2, 0);
                        prop_assert!(requests >= 50 && failed * 20 > requests);
                    }
                    Alarm::Cleared { .. } => {
                        prop_assert_eq!(place % 2, 1);
                        prop_assert!(failed * 40 <= requests.max(50));
                        prop_assert!(second - told[place - 1].0 >= 30);
                    }
                }
            }
            // And it does ring: at no second is the rule broken while it is silent.
            for second in 1..=seconds.len() as u64 {
                let rings = told.iter().filter(|(at, _)| *at <= second).count() % 2 == 1;
                let (requests, failed) = in_window(second);
                prop_assert!(rings || requests < 50 || failed * 20 <= requests);
            }
        }
    }
}
