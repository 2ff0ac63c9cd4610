//! How large the head of a request may be on an HTTP/2 connection that others share.
//!
//! A server may end the whole connection for one head that is too large, and with it everybody's requests. It need not say
//! beforehand how much it takes (RFC 9113 6.5.2, 10.5.1). So a head that is larger than any that it has answered goes on a
//! connection of its own, and costs at most itself.

use std::cell::Cell;

/// What every server takes unless somebody has set it to less, in bytes as `SETTINGS_MAX_HEADER_LIST_SIZE` counts them.
const USUAL: u32 = 8 * 1024;
/// What is never asked about: a server that takes less serves nobody.
const LEAST: u32 = 1024;

/// What one worker knows of one endpoint.
#[derive(Debug)]
pub(super) struct Heads {
    /// What it says that it takes.
    announced: Cell<Option<u32>>,
    /// The largest that is known to be safe.
    safe: Cell<u32>,
}

impl Default for Heads {
    fn default() -> Self {
        Heads {
            announced: Cell::new(None),
            safe: Cell::new(USUAL),
        }
    }
}

impl Heads {
    /// A new connection begins with this limit, or without one.
    pub(super) fn announced(&self, limit: Option<u32>) {
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

    /// One of this size was answered, well or not.
    pub(super) fn answered(&self, size: u32) {
        self.safe.set(self.safe.get().max(size));
    }

    /// A connection ended before the answers to all its requests; this was the largest head on it. It may have been the
    /// reason, and the smaller ones were not.
    pub(super) fn broke(&self, largest: u32) {
        let below = largest.saturating_sub(1).max(LEAST);
        self.safe.set(self.safe.get().min(below));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_kept_apart_until_one_as_large_has_been_answered() {
        let heads = Heads::default();
        assert!(!heads.is_risky(USUAL) && heads.is_risky(USUAL + 1));
        heads.answered(20_000);
        assert!(!heads.is_risky(20_000) && heads.is_risky(20_001) && !heads.is_refused(20_001));
    }

    #[test]
    fn the_largest_head_of_a_connection_that_broke_is_kept_apart_from_then_on() {
        let heads = Heads::default();
        heads.broke(3000);
        assert!(!heads.is_risky(2999) && heads.is_risky(3000));
        // Whoever is told of it later knows no more.
        heads.broke(3000);
        assert!(!heads.is_risky(2999));
        heads.broke(200);
        assert!(!heads.is_risky(LEAST) && heads.is_risky(LEAST + 1));
        heads.answered(3000);
        assert!(!heads.is_risky(3000), "it was not the reason");
    }

    #[test]
    fn what_a_server_says_that_it_takes_is_believed_until_it_breaks() {
        let heads = Heads::default();
        heads.announced(Some(16_384));
        assert!(!heads.is_risky(16_384) && !heads.is_refused(16_384) && heads.is_refused(16_385));
        heads.broke(10_000);
        heads.announced(Some(16_384));
        assert!(heads.is_risky(10_000), "the next connection says nothing new");
        heads.announced(None);
        assert!(!heads.is_refused(1 << 20));
    }
}
