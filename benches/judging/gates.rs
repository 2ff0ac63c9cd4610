//! The gates that others put into such a place, modelled kindly: they see every request at once, without scrape or delay.

use serin::stats::{Counts, Ranked, mann_whitney};
use std::collections::VecDeque;

/// After how many minutes each gate said "roll back", with the canary's requests and failures until then.
pub(crate) const GATES: [&str; 4] = ["Argo fl=0", "Argo fl=3", "Flagger", "Kayenta"];

/// What a gate has cost when it decided.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) canary: u64,
    pub(crate) failed: u64,
}

/// All gates side by side, asked once a minute.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    minutes: VecDeque<Counts>,
    argo_failed: u32,
    flagger_failed: u32,
    /// One error ratio for every minute: the canary's and stable's.
    ratios: (Vec<f64>, Vec<f64>),
    total: Cost,
    pub(crate) decided: [Option<Cost>; 4],
}

impl Gates {
    /// A minute is over.
    pub(crate) fn minute(&mut self, minute: Counts) {
        self.total.canary += minute.canary;
        self.total.failed += minute.canary_bad;
        if self.minutes.len() == 5 {
            self.minutes.pop_front();
        }
        self.minutes.push_back(minute);
        // Argo: errors of the last five minutes below 1 %; without traffic the ratio is NaN, which is not below.
        let window = self
            .minutes
            .iter()
            .fold((0, 0), |sum, one| (sum.0 + one.canary_bad, sum.1 + one.canary));
        let below = ratio(window.0, window.1).is_some_and(|ratio| ratio < 0.01);
        self.argo_failed += u32::from(!below);
        // Flagger: success of the last minute at least 99 %; five failed checks roll back, no traffic is not a failure.
        let failed = ratio(minute.canary_bad, minute.canary).is_some_and(|ratio| ratio > 0.01);
        self.flagger_failed += u32::from(failed);
        self.ratios.0.extend(ratio(minute.canary_bad, minute.canary));
        self.ratios.1.extend(ratio(minute.stable_bad, minute.stable));
        let judged = self.ratios.1.len().is_multiple_of(10);
        let kayenta = || judged && mann_whitney(&self.ratios.0, &self.ratios.1, 0.98, 0.25) == Ranked::High;
        let says = [
            self.argo_failed > 0,
            self.argo_failed > 3,
            self.flagger_failed >= 5,
            self.decided[3].is_none() && kayenta(),
        ];
        for (decided, says) in self.decided.iter_mut().zip(says) {
            if says && decided.is_none() {
                *decided = Some(self.total);
            }
        }
    }

    pub(crate) fn all_decided(&self) -> bool {
        self.decided.iter().all(Option::is_some)
    }
}

#[expect(clippy::cast_precision_loss, reason = "requests of one minute")]
fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}
