//! One address of a version, and what attempts on it have shown so far.
//!
//! Shared by all workers. A request that succeeds reads one word and writes nothing; whatever is special about an endpoint
//! (it just failed, it is out, it is new) is a flag, so that the usual one is told by a zero.

use super::{capacity::Capacity, rotation::Rotation};
use crate::{config::Limits, model::EndpointUrl};
use std::{
    net::SocketAddr,
    ops::Deref,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// How long an endpoint is left out of the draw after a failure, while others are there.
const SKIP: Duration = Duration::from_secs(1);
/// From one word in the log about an endpoint's failures to the next.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// The share of its traffic that an endpoint gets at once when it starts slowly.
const FIRST_SHARE: f64 = 0.1;

/// It failed a moment ago.
const SKIPPED: u32 = 1;
/// Its readiness probe has not held yet.
const UNREADY: u32 = 2;
/// Health checks or ejection have taken it out of rotation.
const OUT: u32 = 4;
/// Active checks find it bad; in a panic it may be in rotation all the same.
const BAD: u32 = 8;
/// It is ejected; in a panic it may be in rotation all the same.
const EJECTED: u32 = 16;
/// It is new or came back, and gets its share little by little.
const STARTING: u32 = 32;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What is known of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The last attempt reached it, or none was made yet.
    Good,
    /// That many attempts in a row did not get a response.
    Failing(u32),
}

/// How an attempt failed, as far as the endpoint's health goes. Local errors (descriptors, ports, our own cancel) are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Refused, reset before a response, TLS, no connection in time, an answer in no HTTP: counts for a hard failure.
    Hard,
    /// A connection, and no response in time, or one that breaks the rules of HTTP.
    Unanswered,
    /// A response that counts as a failure.
    BadResponse,
}

/// Failures in a row, by kind, in one word: zero is the usual case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Streak {
    hard: u32,
    unanswered: u16,
    bad: u16,
}

impl Streak {
    /// The upper half holds unanswered attempts without a connection, the lower one the two others.
    const fn from_word(word: u64) -> Streak {
        let [hard @ .., late0, late1, bad0, bad1] = word.to_be_bytes();
        Streak {
            hard: u32::from_be_bytes(hard),
            unanswered: u16::from_be_bytes([late0, late1]),
            bad: u16::from_be_bytes([bad0, bad1]),
        }
    }

    fn word(self) -> u64 {
        u64::from(self.hard) << 32 | u64::from(self.unanswered) << 16 | u64::from(self.bad)
    }

    fn and(self, fault: Fault) -> Streak {
        match fault {
            Fault::Hard => Streak {
                hard: self.hard.saturating_add(1),
                ..self
            },
            Fault::Unanswered => Streak {
                unanswered: self.unanswered.saturating_add(1),
                ..self
            },
            // It did answer.
            Fault::BadResponse => Streak {
                hard: 0,
                unanswered: 0,
                bad: self.bad.saturating_add(1),
            },
        }
    }

    /// Attempts in a row without a response.
    fn without_response(self) -> u32 {
        self.hard.saturating_add(self.unanswered.into())
    }
}

/// One address of a version. Shared by all workers; written rarely.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub url: EndpointUrl,
    /// The address it is reached at; none for a Unix socket. A name has as many endpoints as addresses.
    pub address: Option<SocketAddr>,
    /// Unique in this process: workers key their connections by it.
    pub id: u64,
    streak: AtomicU64,
    flags: AtomicU32,
    /// Milliseconds of the monotonic clock until which it is left out of the draw.
    skip_until: AtomicU64,
    /// Milliseconds of the monotonic clock at which its slow start began, and for how long it goes on.
    start: AtomicU64,
    start_for: AtomicU64,
    /// Requests and failures that the health machine has not read yet.
    served: AtomicU64,
    faults: AtomicU64,
    /// Milliseconds of the monotonic clock from which on the log is to be told of a failure.
    tell_from: AtomicU64,
    /// It answered a request that asked for 100 without ever saying 100, and took the body when that came unasked.
    ignores_expect: AtomicBool,
    /// Put into words once: a scrape shows thousands.
    label: OnceLock<String>,
    rotation: Weak<Rotation>,
    /// How many [`Keeper`]s there are.
    keepers: AtomicUsize,
    /// What its version may use.
    pub(super) capacity: Arc<Capacity>,
}

/// Keeps an endpoint for the connections that a worker has to it, which is no reason to have it.
#[derive(Debug)]
pub(super) struct Keeper(Arc<Endpoint>);

impl Keeper {
    pub(super) fn of(endpoint: &Arc<Endpoint>) -> Keeper {
        let kept = Arc::clone(endpoint);
        // After the reference that it counts, and in `drop` before that goes: there are never fewer references than keepers.
        kept.keepers.fetch_add(1, Ordering::SeqCst);
        Keeper(kept)
    }

    /// Whether it is in nobody's list any more and nobody is using it: whoever has it is a keeper.
    pub(super) fn is_left_alone(&self) -> bool {
        // In this order. While it is in a list no keeper goes, and one that comes in between brings a reference.
        let keepers = self.keepers.load(Ordering::SeqCst);
        Arc::strong_count(&self.0) <= keepers
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.keepers.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Deref for Keeper {
    type Target = Arc<Endpoint>;

    fn deref(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

fn millis(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}

impl Endpoint {
    /// An endpoint nothing is known about, in no rotation.
    pub fn new(url: EndpointUrl) -> Endpoint {
        let capacity = Capacity::new(&Limits::default(), 1, Arc::default());
        let address = url.ip().map(|ip| SocketAddr::new(ip, url.port()));
        Endpoint::of(url, address, Weak::new(), Arc::new(capacity))
    }

    /// An endpoint nothing is known about.
    pub(super) fn of(
        url: EndpointUrl,
        address: Option<SocketAddr>,
        rotation: Weak<Rotation>,
        capacity: Arc<Capacity>,
    ) -> Endpoint {
        Endpoint {
            url,
            address,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            streak: AtomicU64::new(0),
            flags: AtomicU32::new(0),
            ignores_expect: AtomicBool::new(false),
            label: OnceLock::new(),
            skip_until: AtomicU64::new(0),
            start: AtomicU64::new(0),
            start_for: AtomicU64::new(0),
            served: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            tell_from: AtomicU64::new(0),
            rotation,
            keepers: AtomicUsize::new(0),
            capacity,
        }
    }

    /// How it is called in metrics: where it listens, and at which address when that is a name.
    pub fn label(&self) -> &str {
        self.label.get_or_init(|| match (self.url.ip(), self.address) {
            (None, Some(address)) => format!("{} at {}", self.url, address.ip()),
            (Some(_), _) | (None, None) => self.url.to_string(),
        })
    }

    /// A good response came back.
    pub fn succeeded(&self) {
        // The common case reads one shared line and writes nothing.
        if self.streak.load(Ordering::Relaxed) != 0 {
            self.streak.store(0, Ordering::Relaxed);
            self.set(SKIPPED, false);
        }
    }

    /// A response has begun that is judged by how it ends.
    pub fn answered(&self) {
        let streak = Streak::from_word(self.streak.load(Ordering::Relaxed));
        if streak.without_response() != 0 {
            let answered = |word| {
                let bad = Streak::from_word(word).bad;
                Some(
                    Streak {
                        bad,
                        ..Streak::default()
                    }
                    .word(),
                )
            };
            let _ = self
                .streak
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, answered);
            self.set(SKIPPED, false);
        }
    }

    /// An attempt failed by the endpoint's fault. Returns the attempts in a row that got no response.
    pub fn failed(&self, fault: Fault, now: Duration) -> u32 {
        let update = |word| Some(Streak::from_word(word).and(fault).word());
        let before = self
            .streak
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
        let streak = Streak::from_word(before.unwrap_or_else(|word| word)).and(fault);
        self.faults.fetch_add(1, Ordering::Relaxed);
        match fault {
            Fault::Hard | Fault::Unanswered => {
                self.skip_until
                    .store(millis(now.saturating_add(SKIP)), Ordering::Relaxed);
                self.set(SKIPPED, true);
            }
            Fault::BadResponse => self.set(SKIPPED, false),
        }
        if let Some(rotation) = self.rotation.upgrade() {
            rotation.failing(self, streak.without_response(), streak.bad.into(), now);
        }
        streak.without_response()
    }

    /// Says in the log why an attempt failed, once a minute at most: whoever mends it needs the reason, and nobody the same one
    /// for each request.
    pub fn tell_failure(&self, why: &dyn std::fmt::Display, now: Duration) {
        if !self.is_to_tell(now) {
            return;
        }
        let (url, rotation) = (self.label(), self.rotation.upgrade());
        let pool = rotation.as_ref().map_or("", |rotation| rotation.name());
        tracing::warn!(pool, endpoint = %url, "a request to {url} of {pool} failed: {why}");
    }

    /// Whether this failure is one that the log is told of.
    fn is_to_tell(&self, now: Duration) -> bool {
        let from = self.tell_from.load(Ordering::Relaxed);
        let next = millis(now.saturating_add(TELL_AGAIN));
        let mine = |from| {
            let swapped = self
                .tell_from
                .compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed);
            swapped.is_ok()
        };
        millis(now) >= from && mine(from)
    }

    /// A worker has sent it so many requests since it last said so.
    pub(super) fn add_served(&self, requests: u64) {
        self.served.fetch_add(requests, Ordering::Relaxed);
    }

    /// Requests and failures since the last call.
    pub(super) fn take_counts(&self) -> (u64, u64) {
        (
            self.served.swap(0, Ordering::Relaxed),
            self.faults.swap(0, Ordering::Relaxed),
        )
    }

    /// What attempts have shown.
    pub fn health(&self) -> Health {
        match Streak::from_word(self.streak.load(Ordering::Relaxed)).hard {
            0 => Health::Good,
            n => Health::Failing(n),
        }
    }

    /// Whether requests are sent to it as a matter of course: ready, healthy, and its last attempt did not fail.
    pub fn is_healthy(&self) -> bool {
        let against = UNREADY | OUT | BAD | EJECTED;
        self.flags.load(Ordering::Relaxed) & against == 0 && self.health() == Health::Good
    }

    /// Whether active checks find it bad.
    pub fn is_bad(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & BAD != 0
    }

    /// Whether its failures have ejected it for a while.
    pub fn is_ejected(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & EJECTED != 0
    }

    /// Control's readiness probe says whether it may get requests.
    pub fn set_ready(&self, ready: bool) {
        self.set(UNREADY, !ready);
    }

    /// Whether the last readiness probe, if there was one, held.
    pub fn is_ready(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & UNREADY == 0
    }

    /// What the health machine has decided.
    pub(super) fn set_rotation(&self, change: super::health::Change) {
        use super::health::Reason;
        self.set(BAD, change.reason == Reason::Checks);
        self.set(EJECTED, change.reason == Reason::Ejected);
        self.set(OUT, !change.in_rotation);
    }

    /// It gets its share little by little from `now` on; absent: from the next [`Endpoint::tidy`] on.
    pub(super) fn start_slowly(&self, now: Option<Duration>, over: Duration) {
        self.start.store(now.map_or(u64::MAX, millis), Ordering::Relaxed);
        self.start_for.store(millis(over).max(1), Ordering::Relaxed);
        self.set(STARTING, true);
    }

    /// Whether it let the last request that expected a 100 wait for nothing.
    pub fn ignores_expect(&self) -> bool {
        self.ignores_expect.load(Ordering::Relaxed)
    }

    /// Remembers whether a request that expected a 100 waited for nothing.
    pub fn note_expect(&self, ignored: bool) {
        self.ignores_expect.store(ignored, Ordering::Relaxed);
    }

    /// Takes down flags whose time is over, so that the draw has less to look at.
    pub(super) fn tidy(&self, now: Duration, slow_start: Duration) {
        let flags = self.flags.load(Ordering::Relaxed);
        if flags & SKIPPED != 0 && millis(now) >= self.skip_until.load(Ordering::Relaxed) {
            self.set(SKIPPED, false);
        }
        if flags & STARTING == 0 {
            return;
        }
        let start = self.start.load(Ordering::Relaxed);
        if start == u64::MAX {
            self.start_slowly(Some(now), slow_start);
        } else if millis(now) >= start.saturating_add(self.start_for.load(Ordering::Relaxed)) {
            self.set(STARTING, false);
        }
    }

    fn set(&self, flag: u32, on: bool) {
        if on {
            self.flags.fetch_or(flag, Ordering::Relaxed);
        } else {
            self.flags.fetch_and(!flag, Ordering::Relaxed);
        }
    }

    /// Whether nothing is special about it: it may get its full share.
    pub fn is_plain(&self) -> bool {
        self.flags.load(Ordering::Relaxed) == 0
    }

    /// Whether the draw should take it: ready, in rotation, and not just failed.
    pub fn is_eligible(&self, now: Duration) -> bool {
        let flags = self.flags.load(Ordering::Relaxed);
        flags & (UNREADY | OUT) == 0
            && (flags & SKIPPED == 0 || millis(now) >= self.skip_until.load(Ordering::Relaxed))
    }

    /// The part of its share that it should get now: 1, or less while it starts.
    pub fn share(&self, now: Duration) -> f64 {
        if self.flags.load(Ordering::Relaxed) & STARTING == 0 {
            return 1.0;
        }
        let since = millis(now).saturating_sub(self.start.load(Ordering::Relaxed));
        let over = self.start_for.load(Ordering::Relaxed).max(1);
        #[allow(clippy::cast_precision_loss, reason = "a share")]
        let passed = since as f64 / over as f64;
        passed.clamp(FIRST_SHARE, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn of_failures_the_log_is_told_once_a_minute() {
        let endpoint = Endpoint::new("http://127.0.0.1:1".parse().unwrap());
        let told = [0, 1, 59, 60, 61, 119, 120].map(|second| endpoint.is_to_tell(at(second)));
        assert_eq!(told, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn an_endpoint_that_just_failed_is_skipped_for_a_while_and_forgiven_by_a_response() {
        let endpoint = Endpoint::new("http://127.0.0.1:1".parse().unwrap());
        assert!(endpoint.is_plain() && endpoint.is_eligible(at(0)));
        assert_eq!(endpoint.failed(Fault::Hard, at(10)), 1);
        assert_eq!(endpoint.failed(Fault::Hard, at(10)), 2);
        assert_eq!(endpoint.health(), Health::Failing(2));
        assert!(!endpoint.is_eligible(at(10)) && endpoint.is_eligible(at(11)));
        endpoint.succeeded();
        assert_eq!(
            (
                endpoint.health(),
                endpoint.is_eligible(at(10)),
                endpoint.is_plain()
            ),
            (Health::Good, true, true)
        );
    }

    #[test]
    fn only_what_reached_nobody_is_a_hard_failure() {
        let endpoint = Endpoint::new("http://127.0.0.1:1".parse().unwrap());
        assert_eq!(endpoint.failed(Fault::Unanswered, at(1)), 1);
        assert_eq!(endpoint.health(), Health::Good);
        assert_eq!(endpoint.failed(Fault::Hard, at(1)), 2);
        assert_eq!(
            endpoint.failed(Fault::BadResponse, at(1)),
            0,
            "any answer ends that streak"
        );
        assert!(endpoint.is_eligible(at(1)));
        assert_eq!(endpoint.take_counts(), (0, 3));
    }

    #[test]
    fn a_slow_start_grows_from_a_tenth_to_the_whole() {
        let endpoint = Endpoint::new("http://127.0.0.1:1".parse().unwrap());
        let near = |share: f64, expected: f64| assert!((share - expected).abs() < 1e-9, "{share}");
        near(endpoint.share(at(0)), 1.0);
        endpoint.start_slowly(Some(at(100)), at(30));
        near(endpoint.share(at(100)), 0.1);
        near(endpoint.share(at(115)), 0.5);
        near(endpoint.share(at(140)), 1.0);
        assert!(!endpoint.is_plain());
        endpoint.tidy(at(130), at(30));
        assert!(endpoint.is_plain());
    }
}
