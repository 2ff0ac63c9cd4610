//! One address of a version, and what attempts on it have shown so far.

use crate::model::EndpointUrl;
use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

/// How long an endpoint is left out of the draw after its n-th failure in a row: n times this, at most ten times.
const SKIP: Duration = Duration::from_secs(1);

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What is known of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The last attempt reached it, or none was made yet.
    Good,
    /// That many attempts in a row did not get a response.
    Failing(u32),
}

/// One address of a version. Shared by all workers; written rarely.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub url: EndpointUrl,
    /// Unique in this process: workers key their connections by it.
    pub id: u64,
    failures: AtomicU32,
    /// Milliseconds of the monotonic clock until which it is left out of the draw.
    skip_until: AtomicU64,
    unready: AtomicBool,
}

fn millis(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}

impl Endpoint {
    /// An endpoint nothing is known about.
    pub fn new(url: EndpointUrl) -> Endpoint {
        Endpoint {
            url,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            failures: AtomicU32::new(0),
            skip_until: AtomicU64::new(0),
            unready: AtomicBool::new(false),
        }
    }

    /// A response came back.
    pub fn succeeded(&self) {
        // The common case reads one shared line and writes nothing.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.skip_until.store(0, Ordering::Relaxed);
        }
    }

    /// An attempt got no response by the endpoint's fault: refused, reset before a response, TLS. Local errors (descriptors,
    /// ports, our own cancel) never come here. Returns the failures in a row.
    pub fn failed(&self, now: Duration) -> u32 {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let skip = SKIP.saturating_mul(failures.min(10));
        self.skip_until
            .store(millis(now.saturating_add(skip)), Ordering::Relaxed);
        failures
    }

    /// What attempts have shown.
    pub fn health(&self) -> Health {
        match self.failures.load(Ordering::Relaxed) {
            0 => Health::Good,
            n => Health::Failing(n),
        }
    }

    /// Control's readiness probe says whether it may get requests.
    pub fn set_ready(&self, ready: bool) {
        self.unready.store(!ready, Ordering::Relaxed);
    }

    /// Whether the last readiness probe, if there was one, held.
    pub fn is_ready(&self) -> bool {
        !self.unready.load(Ordering::Relaxed)
    }

    /// Whether the draw should take it: ready, and not just failed.
    pub fn is_eligible(&self, now: Duration) -> bool {
        let until = self.skip_until.load(Ordering::Relaxed);
        (until == 0 || millis(now) >= until) && self.is_ready()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_just_failed_is_skipped_for_a_while_and_forgiven_by_a_response() {
        let endpoint = Endpoint::new("http://127.0.0.1:1".parse().unwrap());
        let at = Duration::from_secs;
        assert!(endpoint.is_eligible(at(0)));
        assert_eq!((endpoint.failed(at(10)), endpoint.failed(at(10))), (1, 2));
        assert_eq!(endpoint.health(), Health::Failing(2));
        assert!(!endpoint.is_eligible(at(11)) && endpoint.is_eligible(at(12)));
        endpoint.succeeded();
        assert_eq!(
            (endpoint.health(), endpoint.is_eligible(at(10))),
            (Health::Good, true)
        );
    }
}
