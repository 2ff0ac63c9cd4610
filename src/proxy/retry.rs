//! How many requests may be sent a second time: a share of all, and a few in any case.
//!
//! Without a bound every client's request would become several just when a version can bear it least. Pure: time and counts
//! are arguments.

use std::time::Duration;

/// Retries a second that are allowed in any case, over all workers.
const FLOOR: f64 = 10.0;
/// Saved up at most, over all workers.
const MOST_SAVED: f64 = 100.0;

/// What a budget goes by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    /// Retries as a share of requests.
    pub(super) share: f64,
    /// Among how many workers the floor is divided.
    pub(super) workers: usize,
}

impl Rule {
    fn part(self, of: f64) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "a number of threads")]
        let workers = self.workers.max(1) as f64;
        of / workers
    }
}

/// One worker's budget for one version.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    tokens: f64,
    requests: u64,
    at: Duration,
}

impl Budget {
    /// Begins with what the floor gives in a second, and with what the requests so far have earned: an endpoint that dies after
    /// a quiet hour takes many requests at once with it.
    pub(super) fn new(now: Duration, requests: u64, rule: Rule) -> Budget {
        let mut budget = Budget {
            // One in any case: with more workers than the floor has retries each may still begin with one.
            tokens: rule.part(FLOOR).max(1.0),
            requests: 0,
            at: now,
        };
        budget.earn(now, requests, rule);
        budget
    }

    fn earn(&mut self, now: Duration, requests: u64, rule: Rule) {
        #[allow(clippy::cast_precision_loss, reason = "a rate")]
        let fresh = requests.saturating_sub(self.requests) as f64;
        let elapsed = now.saturating_sub(self.at).as_secs_f64();
        let earned = fresh * rule.share + elapsed * rule.part(FLOOR);
        self.tokens = (self.tokens + earned).min(rule.part(MOST_SAVED).max(1.0));
        (self.requests, self.at) = (requests, now);
    }

    /// Whether one more retry is within the budget; takes it when it is. `requests`: all that this worker has sent so far.
    pub(super) fn spend(&mut self, now: Duration, requests: u64, rule: Rule) -> bool {
        self.earn(now, requests, rule);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule {
        share: 0.2,
        workers: 1,
    };

    #[test]
    fn a_version_that_fails_everything_gets_a_fifth_more_requests_and_ten_a_second() {
        let mut budget = Budget::new(Duration::ZERO, 0, RULE);
        // 1000 requests a second for 60 s, each wants a retry.
        let allowed = (1..=60_000u64)
            .filter(|request| budget.spend(Duration::from_millis(*request), *request, RULE))
            .count();
        assert!((12_600..=12_620).contains(&allowed), "{allowed}");
    }

    #[test]
    fn what_was_served_well_is_saved_for_the_moment_an_endpoint_dies() {
        let mut budget = Budget::new(Duration::ZERO, 400, RULE);
        let allowed = (0..200).filter(|_| budget.spend(Duration::ZERO, 400, RULE));
        assert_eq!(allowed.count(), 90);
    }

    #[test]
    fn few_requests_may_always_be_tried_again() {
        let mut budget = Budget::new(Duration::ZERO, 0, RULE);
        let allowed = (1..=20u64).filter(|n| budget.spend(Duration::from_millis(200 * n), *n, RULE));
        assert_eq!(allowed.count(), 20);
    }

    #[test]
    fn the_floor_is_divided_among_workers_and_savings_are_bounded() {
        let rule = Rule { workers: 4, ..RULE };
        let mut budgets = [Budget::new(Duration::ZERO, 0, rule); 4];
        let hour = Duration::from_secs(3600);
        let allowed = (0..400).filter(|n| budgets[n % 4].spend(hour, 0, rule)).count();
        assert_eq!(allowed, 100);
    }
}
