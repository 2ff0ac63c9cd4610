//! Which sticky keys have been seen, and which have failed or been answered 4xx: for versions that users are kept on, where a user
//! is one piece of evidence however many requests he sends.
//!
//! A bit per key, by its hash. Two keys may share a bit: then the later one is left out altogether, in its failures as in
//! its successes, whichever version it is on. With 2^18 bits that is one of four hundred after 650 failed keys, and one of four
//! once 75,000 keys have been seen at one weight; the evidence grows more slowly and stays true.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

const BITS: u64 = 1 << 18;

/// A set of keys. Shared by all workers: a key that is there already costs one load.
#[derive(Debug)]
pub struct KeySet(Box<[AtomicU64]>);

impl Default for KeySet {
    fn default() -> KeySet {
        KeySet((0..BITS / 64).map(|_| AtomicU64::new(0)).collect())
    }
}

/// The word and the bit of a hash. The high bits have chosen the version; these are independent of them.
const fn place(hash: u64) -> (usize, u64) {
    let bit = hash % BITS;
    ((bit / 64) as usize, 1 << (bit % 64))
}

impl KeySet {
    /// Whether a key is there.
    pub fn contains(&self, hash: u64) -> bool {
        let (word, bit) = place(hash);
        self.0[word].load(Ordering::Relaxed) & bit != 0
    }

    /// Puts a key there; whether it is new.
    pub fn insert(&self, hash: u64) -> bool {
        let (word, bit) = place(hash);
        // Only what is new pays for a locked instruction.
        let new = self.0[word].load(Ordering::Relaxed) & bit == 0;
        new && self.0[word].fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// The places that are taken, for keeping.
    pub fn taken(&self) -> Vec<u64> {
        let words = self.0.iter().map(|word| word.load(Ordering::Relaxed));
        let places = words.zip((0..).step_by(64)).flat_map(|(word, first)| {
            (0..64u64)
                .filter(move |bit| word & (1 << bit) != 0)
                .map(move |bit| first + bit)
        });
        places.collect()
    }

    /// How many places are taken.
    pub fn len(&self) -> u64 {
        let ones = |word: &AtomicU64| u64::from(word.load(Ordering::Relaxed).count_ones());
        self.0.iter().map(ones).sum()
    }

    /// Whether no key has ever come.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What is known of keys since the rollout began.
#[derive(Debug, Default)]
pub struct KnownKeys {
    /// Those that have failed.
    pub failed: KeySet,
    /// Those that have been answered 4xx.
    pub client_errors: KeySet,
}

/// The keys of one weight, and what is known of them since the rollout began.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    seen: Arc<KeySet>,
    known: Arc<KnownKeys>,
}

impl Keys {
    /// A weight begins: every key is new, but for those that have failed before.
    pub fn new(known: Arc<KnownKeys>) -> Keys {
        Keys {
            seen: Arc::default(),
            known,
        }
    }

    /// A key's request begins; whether the key counts by it.
    pub(super) fn begins(&self, hash: u64) -> bool {
        self.seen.insert(hash) && !self.known.failed.contains(hash)
    }

    /// A key's request failed; whether it is the first of the rollout.
    pub(super) fn fails(&self, hash: u64) -> bool {
        self.known.failed.insert(hash)
    }

    /// A key's request was answered 4xx; whether it is the first of the rollout.
    pub(super) fn client_error(&self, hash: u64) -> bool {
        self.known.client_errors.insert(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_counts_once_per_weight_and_fails_once_per_rollout() {
        let known = Arc::new(KnownKeys::default());
        let first = Keys::new(Arc::clone(&known));
        assert!(first.begins(7) && !first.begins(7));
        assert!(first.fails(7) && !first.fails(7));
        assert!(first.client_error(9) && !first.client_error(9));
        let second = Keys::new(known);
        assert!(second.begins(8), "another key is new at every weight");
        assert!(!second.begins(7), "it has failed before");
        assert!(second.begins(9), "what was answered 4xx before may still fail");
        assert!(!second.client_error(9) && second.fails(9));
    }

    #[test]
    fn what_is_kept_reads_back_the_same() {
        let set = KeySet::default();
        for hash in [0, 63, 64, BITS - 1, 12_345] {
            assert!(set.insert(hash));
        }
        let again = KeySet::default();
        set.taken().into_iter().for_each(|place| {
            again.insert(place);
        });
        assert_eq!((again.taken(), again.len()), (set.taken(), 5));
    }
}
