//! What judges were fed, in the state file: parts in their order, of which a long recording keeps the last two stretches.

use super::{
    RecordPart, StretchRow,
    sqlite::{millis, moment, number},
};
use crate::{control::Unrecorded, model::Timestamp};
use rusqlite::{Connection, OptionalExtension, params};

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Writes one part, in a transaction of the caller. What is there beyond it is of a past that a crash has undone.
pub(super) fn write(connection: &Connection, part: &RecordPart) -> rusqlite::Result<()> {
    let began = millis(part.began);
    let (stretch, place) = (signed(part.stretch), signed(part.part));
    let of = params![part.service, part.rollout, part.metric, began, stretch, place];
    connection
        .prepare_cached(
            "DELETE FROM recorded WHERE service = ?1 AND rollout = ?2 AND metric = ?3 AND began = ?4
             AND (stretch < ?5 - 1 OR (stretch, part) > (?5, ?6))",
        )?
        .execute(of)?;
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO recorded (service, rollout, metric, began, stretch, part, bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            part.service,
            part.rollout,
            part.metric,
            began,
            stretch,
            place,
            part.bytes
        ])
        .map(drop)
}

/// Every stretch of a rollout.
pub(super) fn read(
    connection: &Connection,
    service: &str,
    rollout: &str,
) -> rusqlite::Result<Vec<StretchRow>> {
    let mut statement = connection.prepare_cached(
        "SELECT metric, began, stretch, part, bytes FROM recorded WHERE service = ?1 AND rollout = ?2
         ORDER BY metric, began, stretch, part",
    )?;
    let mut rows = statement.query(params![service, rollout])?;
    let mut stretches: Vec<StretchRow> = Vec::new();
    let mut next = 0;
    while let Some(row) = rows.next()? {
        let metric: String = row.get(0)?;
        let began = moment(row.get(1)?);
        let (stretch, part) = (number(row.get(2)?), number(row.get(3)?));
        let same = |last: &&mut StretchRow| {
            (last.metric.as_str(), last.began, last.stretch) == (metric.as_str(), began, stretch)
        };
        if let Some(last) = stretches.last_mut().filter(same) {
            if part != next {
                last.missing.get_or_insert(next);
            }
            last.bytes.extend(row.get::<_, Vec<u8>>(4)?);
        } else {
            stretches.push(StretchRow {
                metric,
                began,
                stretch,
                bytes: row.get(4)?,
                missing: (part > 0).then_some(0),
            });
        }
        next = part + 1;
    }
    Ok(stretches)
}

fn forget(connection: &Connection, service: &str, rollout: &str) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM recorded WHERE service = ?1 AND rollout = ?2")?
        .execute(params![service, rollout])
        .map(drop)
}

/// Under which key of `meta` it stands since when a rollout's recordings are given up.
fn given_up(service: &str, rollout: &str) -> String {
    format!("given_up/{service}/{rollout}")
}

/// Everything that is in the file by now was decided before judges were recorded.
pub(super) fn begin(connection: &Connection) -> rusqlite::Result<()> {
    let sql =
        "INSERT OR IGNORE INTO meta (key, value) SELECT 'recorded_after', coalesce(max(id), 0) FROM events";
    connection.execute(sql, []).map(drop)
}

/// Why decisions of a rollout may have no recording.
pub(super) fn unrecorded(
    connection: &Connection,
    service: &str,
    rollout: &str,
) -> rusqlite::Result<Unrecorded> {
    let mut kept = connection.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    let mut read = |key: &str| kept.query_row(params![key], |row| row.get(0)).optional();
    Ok(Unrecorded {
        before_recording: read("recorded_after")?.map_or(0, number),
        given_up: read(&given_up(service, rollout))?.map(moment),
    })
}

/// Forgets all but the last `keep` rollouts of each service, and their recordings.
pub(super) fn sweep_rollouts(connection: &Connection, keep: u32) -> rusqlite::Result<()> {
    let mut old = connection.prepare(
        "DELETE FROM rollouts WHERE (SELECT count(*) FROM rollouts AS newer WHERE newer.service = rollouts.service
         AND newer.started > rollouts.started) >= ?1 RETURNING service, id",
    )?;
    let old = old.query_map(params![keep], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
    })?;
    let old: Vec<(String, String)> = old.collect::<rusqlite::Result<_>>()?;
    for (service, rollout) in old {
        forget(connection, &service, &rollout)?;
        let key = given_up(&service, &rollout);
        connection.execute("DELETE FROM meta WHERE key = ?1", params![key])?;
    }
    Ok(())
}

/// Forgets recordings, of the rollouts that began first, until the file holds no more than `most` bytes. The last rollout of
/// each service keeps its own, and of the others it is kept that there were some.
pub(super) fn sweep_to(connection: &Connection, most: u64, now: Timestamp) -> rusqlite::Result<()> {
    let pragma = |what: &str| {
        connection
            .pragma_query_value(None, what, |row| row.get(0))
            .map(number)
    };
    let page = pragma("page_size")?;
    let mut oldest = connection.prepare(
        "SELECT service, id FROM rollouts WHERE
         EXISTS (SELECT 1 FROM rollouts AS newer WHERE newer.service = rollouts.service AND newer.started > rollouts.started)
         AND EXISTS (SELECT 1 FROM recorded WHERE recorded.service = rollouts.service AND recorded.rollout = rollouts.id)
         ORDER BY started",
    )?;
    let mut oldest = oldest.query([])?;
    while (pragma("page_count")? - pragma("freelist_count")?) * page > most {
        let Some(row) = oldest.next()? else { break };
        let (service, rollout) = (row.get::<_, String>(0)?, row.get::<_, String>(1)?);
        forget(connection, &service, &rollout)?;
        connection.execute(
            "INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)",
            params![given_up(&service, &rollout), millis(now)],
        )?;
    }
    Ok(())
}
