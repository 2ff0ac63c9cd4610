//! Whether an attempt is made again, and when. Pure: time and chance are arguments.

use std::time::Duration;

/// How long the first wait is, at most.
const FIRST: Duration = Duration::from_millis(500);
/// No wait is longer.
const LONGEST: Duration = Duration::from_secs(60);
/// A message that is older is not tried again: what comes after it waits as long.
pub(super) const GIVE_UP: Duration = Duration::from_secs(600);

/// What an attempt has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The receiver has it.
    Delivered,
    /// It may get through another time; why it did not.
    Again(String),
    /// It would be answered alike another time; how it was.
    Never(String),
}

impl Verdict {
    /// Of an answer's status, or of why there was none.
    pub(super) fn of(answer: Result<u16, String>) -> Verdict {
        match answer {
            Ok(200..=299) => Verdict::Delivered,
            Ok(status @ (429 | 500..)) => Verdict::Again(format!("HTTP {status}")),
            Ok(status @ 300..=399) => {
                Verdict::Never(format!("HTTP {status}: a redirect, which is not followed"))
            }
            Ok(status) => Verdict::Never(format!("HTTP {status}")),
            Err(why) => Verdict::Again(why),
        }
    }
}

/// How long to wait after so many attempts; none: it is given up. The bound doubles with each attempt, and `chance` (0 to 1) says
/// how much of its upper half is waited, so that many senders do not come back at once.
pub(super) fn wait(attempts: u32, age: Duration, chance: f64) -> Option<Duration> {
    let bound = FIRST
        .saturating_mul(1 << attempts.saturating_sub(1).min(16))
        .min(LONGEST);
    let wait = bound.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0);
    (age + wait < GIVE_UP).then_some(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_get_through_is_tried_again_and_what_was_refused_is_not() {
        assert_eq!(Verdict::of(Ok(204)), Verdict::Delivered);
        for again in [Ok(429), Ok(500), Ok(503), Ok(599), Err("refused".to_owned())] {
            assert!(
                matches!(Verdict::of(again.clone()), Verdict::Again(_)),
                "{again:?}"
            );
        }
        for never in [301, 308, 400, 401, 404, 410, 422] {
            assert!(matches!(Verdict::of(Ok(never)), Verdict::Never(_)), "{never}");
        }
    }

    #[test]
    fn waits_double_up_to_a_minute_and_chance_takes_at_most_half() {
        let millis = |attempts, chance| wait(attempts, Duration::ZERO, chance).unwrap().as_millis();
        assert_eq!(
            [1, 2, 3, 4].map(|attempts| millis(attempts, 1.0)),
            [500, 1000, 2000, 4000]
        );
        assert_eq!(
            [1, 2, 3, 4].map(|attempts| millis(attempts, 0.0)),
            [250, 500, 1000, 2000]
        );
        assert_eq!((millis(8, 1.0), millis(u32::MAX, 0.0)), (60_000, 30_000));
    }

    #[test]
    fn a_message_is_given_up_before_it_is_ten_minutes_old() {
        let old = Duration::from_secs(599);
        assert_eq!(wait(1, old, 1.0), Some(Duration::from_millis(500)));
        assert_eq!(wait(2, old, 1.0), None);
        assert_eq!(wait(1, GIVE_UP * 2, 0.0), None);
        // However it falls out, there is an end.
        let mut age = Duration::ZERO;
        let attempts = (1..).take_while(|attempts| {
            let wait = wait(*attempts, age, 0.0);
            age += wait.unwrap_or_default();
            wait.is_some()
        });
        assert!((10..40).contains(&attempts.count()));
    }
}
