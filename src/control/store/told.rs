//! Who has been notified of which facts: for each receiver the fact at which it began, and for each service the last one that it
//! needs not be told of again.

use super::sqlite::number;
use rusqlite::{Connection, params};
use std::collections::{BTreeMap, BTreeSet};

/// What one receiver has heard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Nobody wants to tell it of facts up to this number.
    began: u64,
    /// By service.
    last: BTreeMap<String, u64>,
}

impl Told {
    /// Whether a fact has been told or need not be.
    pub(crate) fn knows(&self, service: &str, event: u64) -> bool {
        event <= self.began || self.last.get(service).is_some_and(|last| event <= *last)
    }

    /// Up to here nothing is missing.
    pub(super) fn began(&self) -> u64 {
        self.began
    }
}

/// The key of `meta`: names may hold anything.
fn key(names: &[&str]) -> String {
    format!("told/{}", serde_json::json!(names))
}

/// What every receiver has heard.
pub(super) fn read(connection: &Connection) -> rusqlite::Result<BTreeMap<String, Told>> {
    let mut rows = connection.prepare("SELECT key, value FROM meta WHERE key LIKE 'told/%' ORDER BY key")?;
    let mut rows = rows.query([])?;
    let mut all: BTreeMap<String, Told> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let (key, event): (String, i64) = (row.get(0)?, row.get(1)?);
        let names = key.strip_prefix("told/").map(serde_json::from_str::<Vec<String>>);
        let Some(Ok(names)) = names else { continue };
        match names.as_slice() {
            [receiver] => all.entry(receiver.clone()).or_default().began = number(event),
            [receiver, service] => {
                let told = all.entry(receiver.clone()).or_default();
                told.last.insert(service.clone(), number(event));
            }
            _ => {}
        }
    }
    Ok(all)
}

/// From now on these are told, those that are new of what comes; what others have heard is forgotten.
pub(super) fn hear(connection: &Connection, receivers: &[String]) -> rusqlite::Result<()> {
    let known = read(connection)?;
    let named: BTreeSet<&String> = receivers.iter().collect();
    for (receiver, told) in known.iter().filter(|(receiver, _)| !named.contains(receiver)) {
        let services = told.last.keys().map(|service| key(&[receiver, service]));
        for key in services.chain([key(&[receiver])]) {
            connection.execute("DELETE FROM meta WHERE key = ?1", params![key])?;
        }
    }
    for receiver in receivers.iter().filter(|receiver| !known.contains_key(*receiver)) {
        connection.execute(
            "INSERT OR REPLACE INTO meta (key, value) SELECT ?1, coalesce(max(id), 0) FROM events",
            params![key(&[receiver])],
        )?;
    }
    Ok(())
}

/// A receiver need not hear of this fact again, nor of those of the service before it.
pub(super) fn heard(
    connection: &Connection,
    receiver: &str,
    service: &str,
    event: u64,
) -> rusqlite::Result<()> {
    // Who has been removed meanwhile stays so.
    connection
        .prepare_cached(
            "INSERT INTO meta (key, value) SELECT ?1, ?2 WHERE EXISTS (SELECT 1 FROM meta WHERE key = ?3)
             ON CONFLICT (key) DO UPDATE SET value = max(value, ?2)",
        )?
        .execute(params![
            key(&[receiver, service]),
            i64::try_from(event).unwrap_or(i64::MAX),
            key(&[receiver])
        ])
        .map(drop)
}
