//! What judges were fed, for whoever judges again: from a running Serin or from a state file.

use super::{
    RolloutStatus, StoredEvent,
    handle::ReadError,
    store::{SqliteStore, Store, StoreError},
};
use crate::{
    model::{Timestamp, VersionName},
    split::Split,
    stats::{BUCKETS, UnitCounts},
    upstream::Target,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{path::Path, sync::Arc};

/// Everything that the judges of one rollout were fed, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Recordings {
    /// The rollout.
    pub rollout: RolloutStatus,
    /// One for each judge, by metric and time.
    pub recordings: Vec<Recording>,
    /// The rollout's decisions by an analysis, oldest first: `evidence_suffices`, `client_errors` and `analysis_finished`.
    pub decisions: Vec<StoredEvent>,
    /// Why there may be no recording of a decision.
    #[serde(default)]
    pub unrecorded: Unrecorded,
}

/// Why a store holds nothing that a judge was fed although it sat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Unrecorded {
    /// Events up to this number were stored by a Serin that did not record judges; 0: there are none.
    pub before_recording: u64,
    /// When the store let go of the rollout's recordings, because it held more than `state.retention.recordings`.
    pub given_up: Option<Timestamp>,
}

/// What one judge was fed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Recording {
    /// The metric that it sat for.
    pub metric: String,
    /// Since when.
    pub began: Timestamp,
    /// In their order. Of a long recording the last two are kept: the first one here is then not number 0.
    pub stretches: Vec<StretchBytes>,
}

/// A piece of a recording that can be replayed by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StretchBytes {
    /// Counted from 0.
    pub number: u64,
    /// As `serin replay` reads it, in Base64.
    #[serde(serialize_with = "to_base64", deserialize_with = "of_base64")]
    #[schema(value_type = String)]
    pub data: Vec<u8>,
    /// The first part that is not there although a later one is: the store has been tampered with or damaged.
    pub missing: Option<u64>,
}

#[allow(clippy::ptr_arg, reason = "serde gives the field's own type")]
fn to_base64<S: Serializer>(bytes: &Vec<u8>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
}

fn of_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    BASE64_STANDARD.decode(text).map_err(D::Error::custom)
}

/// What stable has served since the split in force began; readings of one generation subtract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StableUnits {
    /// Who is stable.
    pub version: VersionName,
    /// Of the split: with another one counters begin anew.
    pub generation: u64,
    /// Failed units of evidence: requests, or sticky keys.
    pub failed: u64,
    /// Units that were answered 4xx where that is no failure.
    #[serde(default)]
    pub client_errors: u64,
    /// Those that ended by duration: pairs of a bucket of the judge's histogram and a count, ascending, without empty ones.
    pub latency: Vec<[u64; 2]>,
}

impl StableUnits {
    pub(super) fn of(split: &Split<Arc<Target>>) -> StableUnits {
        let units = split.stable.evidence.units(&UnitCounts::default());
        let full = (0..).zip(units.durations()).filter(|(_, count)| *count > 0);
        StableUnits {
            version: split.stable.version.name.clone(),
            generation: split.generation,
            failed: units.failed,
            client_errors: units.client_errors,
            latency: full.map(|(bucket, count)| [bucket, count]).collect(),
        }
    }

    /// As the judge counts.
    pub fn units(&self) -> UnitCounts {
        let mut sums = vec![0; BUCKETS];
        for [bucket, count] in &self.latency {
            let place = usize::try_from(*bucket)
                .ok()
                .and_then(|bucket| sums.get_mut(bucket));
            if let Some(place) = place {
                *place += count;
            }
        }
        UnitCounts {
            client_errors: self.client_errors,
            ..UnitCounts::of(self.failed, sums)
        }
    }
}

/// The rollout of this id, or the only one whose id begins so: people are shown the beginning.
fn named(mut rollouts: Vec<RolloutStatus>, id: &str) -> Option<RolloutStatus> {
    if rollouts.iter().any(|one| one.id == id) {
        rollouts.retain(|one| one.id == id);
    } else {
        rollouts.retain(|one| one.id.starts_with(id));
    }
    rollouts.pop().filter(|_| rollouts.is_empty())
}

/// The recordings of a rollout; none when there is no such rollout.
pub(super) fn of(store: &dyn Store, service: &str, rollout: &str) -> Result<Option<Recordings>, StoreError> {
    let Some(known) = named(store.rollouts(service)?, rollout) else {
        return Ok(None);
    };
    let rollout = &known.id;
    // Before what they were made from, which is stored before them.
    let mut decisions = store.rollout_events(service, rollout)?;
    let by_analysis = ["evidence_suffices", "client_errors", "analysis_finished"];
    decisions.retain(|event| by_analysis.contains(&event.event.as_str()));
    let mut recordings: Vec<Recording> = Vec::new();
    for row in store.recorded(service, rollout)? {
        let stretch = StretchBytes {
            number: row.stretch,
            data: row.bytes,
            missing: row.missing,
        };
        let same = |last: &&mut Recording| last.metric == row.metric && last.began == row.began;
        if let Some(last) = recordings.last_mut().filter(same) {
            last.stretches.push(stretch);
        } else {
            recordings.push(Recording {
                metric: row.metric,
                began: row.began,
                stretches: vec![stretch],
            });
        }
    }
    Ok(Some(Recordings {
        recordings,
        decisions,
        // After them: what is given up meanwhile is there or explained.
        unrecorded: store.unrecorded(service, &known.id)?,
        rollout: known,
    }))
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "where an error is mapped it is at hand by value"
)]
fn unreadable(error: StoreError) -> ReadError {
    ReadError::File(error.to_string())
}

/// A state file that is only read: a copy, or that of a Serin that runs.
#[derive(Debug)]
pub struct StateFile(SqliteStore);

impl StateFile {
    /// Opens it.
    pub fn open(path: &Path) -> Result<StateFile, ReadError> {
        SqliteStore::read_only(path).map(StateFile).map_err(unreadable)
    }

    /// The names of the services that it knows.
    pub fn services(&self) -> Result<Vec<String>, ReadError> {
        self.0.services().map_err(unreadable)
    }

    /// The rollouts of a service, newest first.
    pub fn rollouts(&self, service: &str) -> Result<Vec<RolloutStatus>, ReadError> {
        self.0.rollouts(service).map_err(unreadable)
    }

    /// What the judges of a rollout were fed.
    pub fn recordings(&self, service: &str, rollout: &str) -> Result<Recordings, ReadError> {
        of(&self.0, service, rollout)
            .map_err(unreadable)?
            .ok_or_else(|| ReadError::NoRollout(service.to_owned(), rollout.to_owned()))
    }
}
