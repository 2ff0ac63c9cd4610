//! The only real clock in the program.

use crate::model::{Clock, Timestamp};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// The system's clocks. `monotonic` counts from [`SystemClock::epoch`], which the data plane shares.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    /// The zero of the monotonic time.
    pub epoch: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    pub fn start() -> SystemClock {
        SystemClock {
            epoch: Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    #[allow(
        clippy::disallowed_methods,
        reason = "the one place where the wall clock is read"
    )]
    fn wall(&self) -> Timestamp {
        // A clock before 1970 is wrong anyway; zero is as good as any wrong time.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.epoch.elapsed()
    }
}
