//! Whether an attempt is made again, and when. Pure: time and chance are arguments.

use crate::{control::providers::Fetched, model::Timestamp};
use std::time::{Duration, SystemTime};

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
    /// Of an answer, or of why there was none.
    pub(super) fn of(answer: Result<&Fetched, &String>) -> Verdict {
        match answer.map(|answer| answer.status) {
            Ok(200..=299) => Verdict::Delivered,
            Ok(status @ (429 | 500..)) => Verdict::Again(format!("HTTP {status}")),
            Ok(status @ 300..=399) => {
                Verdict::Never(format!("HTTP {status}: a redirect, which is not followed"))
            }
            Ok(status) => Verdict::Never(format!("HTTP {status}")),
            Err(why) => Verdict::Again(why.clone()),
        }
    }
}

/// How long a receiver that has too much to do asks to be left alone (RFC 9110, 10.2.3): seconds, or until a date. What cannot be
/// read asks for nothing.
pub(super) fn asked_for(answer: &Fetched, now: Timestamp) -> Duration {
    let asked = answer.retry_after.as_deref().map(str::trim);
    let asked = asked.filter(|_| matches!(answer.status, 429 | 503));
    let seconds = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // More seconds than can be written are for ever.
        is_number.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
    };
    let until = |text: &str| {
        let date = httpdate::parse_http_date(text).ok()?;
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(now.as_millis());
        date.duration_since(now).ok()
    };
    asked
        .and_then(|text| seconds(text).or_else(|| until(text)))
        .unwrap_or_default()
}

/// How long to wait after so many attempts; none: it is given up. The bound doubles with each attempt, and `chance` (0 to 1) says
/// how much of its upper half is waited, so that many senders do not come back at once. It is no less than the receiver has
/// `asked_for`, as long as that is no longer than any wait.
pub(super) fn wait(attempts: u32, age: Duration, chance: f64, asked_for: Duration) -> Option<Duration> {
    let bound = FIRST
        .saturating_mul(1 << attempts.saturating_sub(1).min(16))
        .min(LONGEST);
    let wait = bound
        .mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
        .max(asked_for.min(LONGEST));
    (age + wait < GIVE_UP).then_some(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_get_through_is_tried_again_and_what_was_refused_is_not() {
        let of = |status| Verdict::of(Ok(&answer(status, "")));
        assert_eq!(of(204), Verdict::Delivered);
        for again in [429, 500, 503, 599] {
            assert!(matches!(of(again), Verdict::Again(_)), "{again}");
        }
        let refused = "refused".to_owned();
        assert_eq!(Verdict::of(Err(&refused)), Verdict::Again(refused.clone()));
        for never in [301, 308, 400, 401, 404, 410, 422] {
            assert!(matches!(of(never), Verdict::Never(_)), "{never}");
        }
    }

    fn answer(status: u16, retry_after: &str) -> Fetched {
        Fetched {
            status,
            body: Vec::new(),
            retry_after: Some(retry_after.to_owned()),
        }
    }

    #[test]
    fn a_receiver_may_ask_to_be_left_alone_for_as_long_as_any_wait() {
        let now = Timestamp::from_secs(784_111_777);
        let asked = |status, text| asked_for(&answer(status, text), now).as_secs();
        assert_eq!((asked(429, "7"), asked(503, " 7 "), asked(500, "7")), (7, 7, 0));
        // RFC 9110's own date, twenty seconds on, and before now.
        let dates = ["Sun, 06 Nov 1994 08:49:57 GMT", "Sun, 06 Nov 1994 08:49:17 GMT"];
        assert_eq!(dates.map(|date| asked(503, date)), [20, 0]);
        for nothing in ["", "-7", "+7", "7.5", "soon", "Sun, 06 Nov"] {
            assert_eq!(asked(503, nothing), 0, "{nothing}");
        }
        assert_eq!(asked(429, "99999999999999999999999"), u64::MAX);
        let waits = |attempts, seconds| {
            let asked = Duration::from_secs(seconds);
            wait(attempts, Duration::ZERO, 1.0, asked).unwrap().as_millis()
        };
        assert_eq!(
            [0, 7, 60, 3600].map(|asked| waits(1, asked)),
            [500, 7000, 60_000, 60_000]
        );
        assert_eq!(waits(6, 7), 16_000, "its own wait is longer");
        let old = Duration::from_secs(590);
        assert_eq!(wait(1, old, 1.0, Duration::from_secs(30)), None);
    }

    #[test]
    fn waits_double_up_to_a_minute_and_chance_takes_at_most_half() {
        let millis = |attempts, chance| {
            let wait = wait(attempts, Duration::ZERO, chance, Duration::ZERO);
            wait.unwrap().as_millis()
        };
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
        let none = Duration::ZERO;
        assert_eq!(wait(1, old, 1.0, none), Some(Duration::from_millis(500)));
        assert_eq!(wait(2, old, 1.0, none), None);
        assert_eq!(wait(1, GIVE_UP * 2, 0.0, none), None);
        // However it falls out, there is an end.
        let mut age = Duration::ZERO;
        let attempts = (1..).take_while(|attempts| {
            let wait = wait(*attempts, age, 0.0, none);
            age += wait.unwrap_or_default();
            wait.is_some()
        });
        assert!((10..40).contains(&attempts.count()));
    }
}
