//! Which side of the split a key is on, for as long as the weight does not cross it.
//!
//! A key's bucket is a keyed hash of (secret, rollout, key) and the key is on the canary iff its bucket lies below the
//! weight: raising the weight only moves keys to the canary, lowering it moves the last ones back, and nothing is
//! stored per key. The rollout's id is hashed in so that other users go first next time.

use crate::model::Weight;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

/// The keyed hash of one rollout.
#[derive(Clone, Copy)]
pub struct StickyHash {
    k0: u64,
    k1: u64,
}

impl std::fmt::Debug for StickyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StickyHash(secret)")
    }
}

impl StickyHash {
    /// Mixes the store's (or the operator's) secret with the rollout's id.
    pub fn new(secret: &[u8], rollout: &str) -> StickyHash {
        let mut hasher = SipHasher13::new();
        hasher.write_usize(secret.len());
        hasher.write(secret);
        hasher.write(rollout.as_bytes());
        let mixed = hasher.finish128();
        StickyHash {
            k0: mixed.h1,
            k1: mixed.h2,
        }
    }

    /// The key's bucket, uniform over all 64-bit numbers.
    pub fn bucket(&self, key: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.k0, self.k1);
        hasher.write(key);
        hasher.finish128().h1
    }
}

/// Whether a bucket lies below the weight: bucket / 2^64 < p / q, exactly.
pub fn is_canary(bucket: u64, weight: Weight) -> bool {
    (u128::from(bucket) * u128::from(weight.q())) >> 64 < u128::from(weight.p())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raising_the_weight_only_moves_keys_to_the_canary() {
        let hash = StickyHash::new(b"secret", "r1");
        let weights: Vec<Weight> = [
            "0", "0.01", "1", "5", "25", "33.33", "1/3", "50", "66.67", "99.9", "100",
        ]
        .map(|t| t.parse().unwrap())
        .to_vec();
        let mut counts = vec![0u32; weights.len()];
        for user in 0..100_000 {
            let bucket = hash.bucket(format!("user-{user}").as_bytes());
            let mut was = false;
            for (i, w) in weights.iter().enumerate() {
                let is = is_canary(bucket, *w);
                assert!(is || !was, "user-{user} left the canary at {w}");
                counts[i] += u32::from(is);
                was = is;
            }
            assert!(was, "everybody is on the canary at 100%");
        }
        for (count, w) in counts.iter().zip(&weights) {
            let sigma = (100_000.0 * w.as_ratio() * (1.0 - w.as_ratio())).sqrt();
            assert!(
                (f64::from(*count) - 100_000.0 * w.as_ratio()).abs() <= 5.0 * sigma,
                "{w}: {count}"
            );
        }
    }

    #[test]
    fn another_rollout_has_other_guinea_pigs() {
        let (a, b) = (StickyHash::new(b"s", "r1"), StickyHash::new(b"s", "r2"));
        let w = Weight::percent(10);
        let both = (0..10_000u32)
            .filter(|u| is_canary(a.bucket(&u.to_be_bytes()), w) && is_canary(b.bucket(&u.to_be_bytes()), w))
            .count();
        assert!(
            (50..160).contains(&both),
            "{both} of 10,000 are early twice; 100 expected by chance"
        );
    }
}
