//! How large the head of a request may be on an HTTP/2 connection that others share.
//!
//! A server may end the whole connection for one head that is too large, and with it everybody's requests. It need not say
//! beforehand how much it takes (RFC 9113 6.5.2, 10.5.1). So a head that is larger than any that it has answered goes on a
//! connection of its own, and costs at most itself.

use std::{cell::Cell, time::Duration};
use tokio::time::Instant;

/// What every server takes unless somebody has set it to less, in bytes as `SETTINGS_MAX_HEADER_LIST_SIZE` counts them. A head
/// that is no larger is never taken for the reason why a connection ended: else no version that ends all of them would be seen
/// to be broken.
const USUAL: u32 = 8 * 1024;
/// How long what an endpoint says that it takes is believed before a connection is opened to hear it again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// What one worker knows of one endpoint.
#[derive(Debug)]
pub(super) struct HeadSizes {
    /// What it says that it takes.
    announced: Cell<Option<u32>>,
    /// When it said so last, or was asked to.
    asked: Cell<Option<Instant>>,
    /// The largest that is known to be safe, at least what is usual.
    safe: Cell<u32>,
}

impl Default for HeadSizes {
    fn default() -> Self {
        HeadSizes {
            announced: Cell::new(None),
            asked: Cell::new(None),
            safe: Cell::new(USUAL),
        }
    }
}

impl HeadSizes {
    /// A new connection begins with this limit, or without one.
    pub(super) fn announced(&self, limit: Option<u32>, now: Instant) {
        self.asked.set(Some(now));
        if self.announced.replace(limit) != limit
            && let Some(limit) = limit
        {
            self.safe.set(self.safe.get().max(limit));
        }
    }

    /// Whether nobody shall share a connection with a head of this size.
    pub(super) fn is_risky(&self, size: u32) -> bool {
        size > self.safe.get()
    }

    /// Whether it is known to be refused.
    pub(super) fn is_refused(&self, size: u32) -> bool {
        self.announced.get().is_some_and(|limit| size > limit)
    }

    /// Whether it is refused without a connection. When the limit has not been heard for [`ASK_AGAIN`] one goes on to a
    /// connection, which may tell of another.
    pub(super) fn refuses(&self, size: u32, now: Instant) -> bool {
        if !self.is_refused(size) {
            return false;
        }
        let heard = |asked| now.saturating_duration_since(asked) < ASK_AGAIN;
        let refuses = self.asked.get().is_some_and(heard);
        if !refuses {
            self.asked.set(Some(now));
        }
        refuses
    }

    /// One of this size was answered, well or not.
    pub(super) fn answered(&self, size: u32) {
        self.safe.set(self.safe.get().max(size));
    }

    /// A connection ended before the answers to all its requests, perhaps for a head of this size ([`Carried::suspect`]).
    pub(super) fn broke(&self, size: u32) {
        let below = size.saturating_sub(1).max(USUAL);
        self.safe.set(self.safe.get().min(below));
    }
}

/// The heads that one connection has carried.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// The largest that has been sent.
    largest: Cell<u32>,
    /// When the last of that size was.
    at: Cell<Option<Instant>>,
    /// The largest that was answered.
    answered: Cell<u32>,
    /// When the last of any size was sent.
    last: Cell<Option<Instant>>,
    /// The longest time without one, as long as nothing has been answered since: all that goes out after it may meet a
    /// connection that was just closed for it.
    rested: Cell<Duration>,
}

impl Carried {
    /// One of this size goes out; how long the connection had rested before it, or before others that wait for an answer, too.
    pub(super) fn sent(&self, size: u32, now: Instant) -> Duration {
        let last = self.last.replace(Some(now));
        if size >= self.largest.get() {
            self.largest.set(size);
            self.at.set(Some(now));
        }
        let rest = last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let longest = rest.max(self.rested.get());
        self.rested.set(longest);
        longest
    }

    /// One of this size was answered, well or not.
    pub(super) fn answered(&self, size: u32) {
        self.answered.set(self.answered.get().max(size));
        self.rested.set(Duration::ZERO);
    }

    /// The size of the head that may be why the connection has just ended: larger than usual and than any that was answered on
    /// it, and sent within the last `limit`.
    pub(super) fn suspect(&self, now: Instant, limit: Duration) -> Option<u32> {
        let within = |at| now.saturating_duration_since(at) < limit;
        let size = self.largest.get();
        (size > USUAL.max(self.answered.get()) && self.at.get().is_some_and(within)).then_some(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_kept_apart_until_one_as_large_has_been_answered() {
        let heads = HeadSizes::default();
        assert!(!heads.is_risky(USUAL) && heads.is_risky(USUAL + 1));
        heads.answered(20_000);
        assert!(!heads.is_risky(20_000) && heads.is_risky(20_001) && !heads.is_refused(20_001));
    }

    #[test]
    fn a_head_larger_than_usual_that_a_connection_may_have_ended_for_is_kept_apart_from_then_on() {
        let heads = HeadSizes::default();
        heads.answered(30_000);
        heads.broke(20_000);
        assert!(!heads.is_risky(19_999) && heads.is_risky(20_000));
        // Whoever is told of it later knows no more.
        heads.broke(20_000);
        assert!(!heads.is_risky(19_999));
        heads.answered(20_000);
        assert!(!heads.is_risky(20_000), "it was not the reason");
        heads.broke(1500);
        assert!(!heads.is_risky(USUAL) && heads.is_risky(USUAL + 1));
    }

    #[test]
    fn what_a_server_says_that_it_takes_is_believed_until_it_breaks() {
        let (heads, now) = (HeadSizes::default(), Instant::now());
        heads.announced(Some(16_384), now);
        assert!(!heads.is_risky(16_384) && !heads.is_refused(16_384) && heads.is_refused(16_385));
        heads.broke(10_000);
        heads.announced(Some(16_384), now);
        assert!(heads.is_risky(10_000), "the next connection says nothing new");
        heads.announced(None, now);
        assert!(!heads.is_refused(1 << 20));
    }

    #[test]
    fn a_rest_is_over_for_all_that_go_out_after_it_when_one_of_them_is_answered() {
        let (carried, now) = (Carried::default(), Instant::now());
        let after = |millis| now + Duration::from_millis(millis);
        carried.sent(500, now);
        carried.answered(500);
        let rest = Duration::from_secs(5);
        assert_eq!(carried.sent(500, after(5000)), rest);
        assert_eq!(carried.sent(500, after(5001)), rest, "the same moment");
        carried.answered(500);
        assert_eq!(carried.sent(500, after(5002)), Duration::from_millis(1));
    }

    #[test]
    fn a_head_known_to_be_refused_opens_one_connection_a_minute_to_hear_of_another_limit() {
        let (heads, now) = (HeadSizes::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(!heads.refuses(20_000, now), "nothing has been said");
        heads.announced(Some(16_384), now);
        assert!(heads.refuses(20_000, after(59)) && !heads.refuses(16_384, after(59)));
        assert!(!heads.refuses(20_000, after(60)));
        assert!(heads.refuses(20_000, after(61)), "one asks already");
        heads.announced(Some(16_384), after(62));
        assert!(heads.refuses(20_000, after(121)) && !heads.refuses(20_000, after(122)));
        heads.announced(Some(20_000), after(123));
        assert!(!heads.refuses(20_000, after(123)));
    }

    #[test]
    fn a_connection_ends_for_no_head_but_a_large_one_that_was_just_sent_and_not_answered_on_it() {
        let (now, limit) = (Instant::now(), Duration::from_secs(1));
        let after = |millis| now + Duration::from_millis(millis);
        let carried = Carried::default();
        assert_eq!(carried.suspect(now, limit), None);
        assert_eq!(carried.sent(USUAL, now), Duration::ZERO);
        assert_eq!(carried.suspect(now, limit), None, "every server takes it");
        carried.sent(20_000, now);
        let rested = carried.sent(500, after(900));
        assert_eq!(rested, Duration::from_millis(900), "whatever the size");
        assert_eq!(carried.suspect(after(999), limit), Some(20_000));
        assert_eq!(
            carried.suspect(after(1000), limit),
            None,
            "it would have ended before"
        );
        carried.answered(20_000);
        carried.sent(20_000, after(2000));
        assert_eq!(carried.suspect(after(2000), limit), None, "it takes as much");
        carried.sent(20_001, after(2000));
        carried.answered(500);
        assert_eq!(carried.suspect(after(2001), limit), Some(20_001));
    }
}
