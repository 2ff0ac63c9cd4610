//! What was answered to idempotency keys. It is read at the start and kept at hand: whether a command was done before must not
//! wait for a disk that takes its time, or no abort would come through.

use super::store::{KEY_LIFE, KeyRow};
use crate::model::{ServiceName, Timestamp};
use std::collections::BTreeMap;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Keys(BTreeMap<ServiceName, BTreeMap<String, (Timestamp, KeyRow)>>);

impl Keys {
    /// What was answered to a key, if that is not too long ago.
    pub(super) fn recall(&self, service: &ServiceName, key: &str, now: Timestamp) -> Option<&KeyRow> {
        let (at, row) = self.0.get(service)?.get(key)?;
        (now.since(*at) <= KEY_LIFE).then_some(row)
    }

    /// It was answered at that time.
    pub(super) fn keep(&mut self, service: ServiceName, at: Timestamp, row: KeyRow) {
        self.0
            .entry(service)
            .or_default()
            .insert(row.key.clone(), (at, row));
    }

    /// Forgets what is not honoured any more.
    pub(super) fn sweep(&mut self, now: Timestamp) {
        for keys in self.0.values_mut() {
            keys.retain(|_, (at, _)| now.since(*at) <= KEY_LIFE);
        }
        self.0.retain(|_, keys| !keys.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_services_and_is_forgotten_after_its_life() {
        let mut keys = Keys::default();
        let [shop, till] = ["shop", "till"].map(|name| ServiceName::new(name).unwrap());
        let row = KeyRow {
            key: "k".into(),
            asked: "promote".into(),
            answer: "true".into(),
        };
        let at = Timestamp::from_secs(1_000_000);
        keys.keep(shop.clone(), at, row.clone());
        assert_eq!(
            (keys.recall(&shop, "k", at), keys.recall(&till, "k", at)),
            (Some(&row), None)
        );
        let [last, late] =
            [0, 1].map(|seconds| at.plus(KEY_LIFE).plus(std::time::Duration::from_secs(seconds)));
        keys.sweep(last);
        assert_eq!(
            (keys.recall(&shop, "k", last), keys.recall(&shop, "k", late)),
            (Some(&row), None)
        );
        keys.sweep(late);
        assert!(keys.0.is_empty());
    }
}
