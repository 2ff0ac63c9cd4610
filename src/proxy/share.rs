//! A share of requests, decided by 64 random bits: for sampling, where exactness is not needed.

use crate::model::Weight;

/// A share between nothing and everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share(Option<u64>);

impl Share {
    /// The share that a weight names.
    pub(super) fn of(weight: Weight) -> Share {
        let whole = u128::from(weight.p()) << 64;
        let points = whole / u128::from(weight.q().max(1));
        // The highest point that is taken; none when not even zero is.
        Share(
            points
                .checked_sub(1)
                .map(|last| u64::try_from(last).unwrap_or(u64::MAX)),
        )
    }

    /// Whether it takes the request with these dice.
    pub(super) fn takes(self, dice: u64) -> bool {
        self.0.is_some_and(|last| dice <= last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_half_and_everything() {
        let [none, half, all] = [0, 50, 100].map(|percent| Share::of(Weight::percent(percent)));
        assert!(!none.takes(0) && !none.takes(u64::MAX));
        assert!(half.takes(0) && half.takes(u64::MAX / 2) && !half.takes(u64::MAX / 2 + 1));
        assert!(all.takes(0) && all.takes(u64::MAX));
    }
}
