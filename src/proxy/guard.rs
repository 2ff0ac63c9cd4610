//! What a bug in Serin costs: what was being served, is counted and logged, and nothing else.

use crate::metrics::ControlMetrics;
use futures_util::FutureExt;
use std::{future::Future, panic::AssertUnwindSafe};

/// Runs it; none when it has panicked.
pub(super) async fn guarded<T>(control: &ControlMetrics, serving: impl Future<Output = T>) -> Option<T> {
    let result = AssertUnwindSafe(serving).catch_unwind().await;
    if result.is_err() {
        panicked(control, "a connection");
    }
    result.ok()
}

/// Counts a panic that has cost no more than `what`. The panic itself has said where it was.
pub(super) fn panicked(control: &ControlMetrics, what: &'static str) {
    control.panics.with_label_values::<&str>(&[]).inc();
    tracing::error!("{what} was lost to a bug in Serin");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_what_was_being_served_is_counted_and_goes_no_further() {
        let control = ControlMetrics::register(&prometheus::Registry::new()).unwrap();
        let panics = || control.panics.with_label_values::<&str>(&[]).get();
        assert_eq!(guarded(&control, async { "served" }).await, Some("served"));
        assert_eq!(panics(), 0);
        let connection = async {
            tokio::task::yield_now().await;
            panic!("a bug, made by this test");
        };
        assert_eq!(guarded::<()>(&control, connection).await, None);
        assert_eq!(panics(), 1);
    }
}
