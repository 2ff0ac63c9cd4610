//! When something happened, and the one way to ask what time it is.
//!
//! Decisions take a [`Timestamp`] as an argument; only `app` owns a real clock (`app::clock`).

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// A moment in milliseconds since the Unix epoch (UTC). Shown and stored as RFC 3339.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: u64) -> Timestamp {
        Timestamp(millis)
    }

    /// From whole seconds since the Unix epoch.
    pub const fn from_secs(secs: u64) -> Timestamp {
        Timestamp(secs * 1000)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to here; zero when `earlier` is later (clocks may jump).
    pub const fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// This moment moved forward, stopping at the end of time.
    #[must_use]
    pub fn plus(self, by: Duration) -> Timestamp {
        Timestamp(
            self.0
                .saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// This moment moved back, stopping at the epoch.
    #[must_use]
    pub fn minus(self, by: Duration) -> Timestamp {
        Timestamp(
            self.0
                .saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)),
        )
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Far beyond any real date the formatter would give up; show the number instead.
        match std::time::UNIX_EPOCH.checked_add(Duration::from_millis(self.0)) {
            Some(time) if self.0 < 253_402_300_800_000 => {
                write!(f, "{}", humantime::format_rfc3339_millis(time))
            }
            _ => write!(f, "{}ms", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = humantime::parse_rfc3339_weak(&text).map_err(serde::de::Error::custom)?;
        let since = time
            .duration_since(std::time::UNIX_EPOCH)
            .map_err(serde::de::Error::custom)?;
        Ok(Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// Tells the time to whoever must wait or stamp; passed in, so that tests own it.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The wall clock: for what people read and what is stored. It may jump.
    fn wall(&self) -> Timestamp;

    /// Time since some fixed moment of this process: for measuring. It never goes back.
    fn monotonic(&self) -> Duration;
}

/// A clock that moves only when told to.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall: AtomicU64,
    monotonic: AtomicU64,
}

impl ManualClock {
    /// A clock that stands at `wall`.
    pub fn at(wall: Timestamp) -> ManualClock {
        ManualClock {
            wall: AtomicU64::new(wall.as_millis()),
            monotonic: AtomicU64::new(0),
        }
    }

    /// Moves both times forward.
    pub fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.wall.fetch_add(millis, Ordering::SeqCst);
        self.monotonic.fetch_add(millis, Ordering::SeqCst);
    }

    /// Sets the wall clock alone, as an administrator or NTP would.
    pub fn jump_to(&self, wall: Timestamp) {
        self.wall.store(wall.as_millis(), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Timestamp {
        Timestamp(self.wall.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.monotonic.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_stored_as_rfc_3339_and_read_back() {
        let at = Timestamp::from_millis(1_795_478_400_123);
        let json = serde_json::to_string(&at).unwrap();
        assert_eq!(json, "\"2026-11-24T00:00:00.123Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), at);
    }

    #[test]
    fn a_clock_that_jumps_back_never_gives_a_negative_time() {
        let clock = ManualClock::at(Timestamp::from_secs(100));
        let before = clock.wall();
        clock.jump_to(Timestamp::from_secs(40));
        assert_eq!(clock.wall().since(before), Duration::ZERO);
        assert_eq!(clock.monotonic(), Duration::ZERO);
    }
}
