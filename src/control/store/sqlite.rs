//! The state file: SQLite in WAL mode with `synchronous=FULL`, so that what was answered is on the disk.
//!
//! All of it behind one connection and one mutex: writes are rare (decisions, not requests) and reads are small.

use super::{
    Appended, JudgeRow, KeyRow, RecordPart, Retention, Row, RunRow, Store, StoreError, StoredService,
    StretchRow, Untold,
    lock::{self, Lock},
    recorded, schema,
    told::{self, Told},
};
use crate::{
    control::{
        Attempt, RolloutStatus, StoredEvent, Unrecorded,
        ledger::{Fact, Saved},
    },
    model::{ServiceName, Timestamp},
};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

/// How long a key is honoured.
pub(crate) const KEY_LIFE: Duration = Duration::from_secs(24 * 3600);

/// See the module.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    path: PathBuf,
    connection: Mutex<Connection>,
    _lock: Option<Lock>,
}

pub(super) fn millis(at: Timestamp) -> i64 {
    i64::try_from(at.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn moment(millis: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(millis).unwrap_or(0))
}

pub(super) fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn limited(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn json<T: Serialize>(value: &T) -> Result<String, String> {
    serde_json::to_string(value).map_err(|error| error.to_string())
}

/// Without a place for the index of its `-wal` SQLite reads a file as if there were none, and what is in there is the latest.
fn refuse_unread(path: &Path) -> Result<(), StoreError> {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    if std::fs::metadata(&wal).is_ok_and(|wal| wal.len() > 0) {
        let wal = Path::new(&wal).display();
        return Err(StoreError::Io {
            path: path.to_owned(),
            why: format!(
                "what was written last is in {wal}, which cannot be read where nothing may be written: copy both to a folder \
                 that may be written"
            ),
        });
    }
    Ok(())
}

impl SqliteStore {
    /// Opens or makes the file, and takes its lock.
    pub(crate) fn open(path: &Path) -> Result<SqliteStore, StoreError> {
        let lock = lock::take(path)?;
        make_private(path)?;
        let connection = Connection::open(path).map_err(|error| explain(path, &error))?;
        let store = SqliteStore {
            path: path.to_owned(),
            connection: Mutex::new(connection),
            _lock: Some(lock),
        };
        store.prepare()?;
        Ok(store)
    }

    /// Opens a file that may be another process', or a copy, to read it; makes and changes nothing.
    pub(crate) fn read_only(path: &Path) -> Result<SqliteStore, StoreError> {
        use rusqlite::OpenFlags;
        let failed = |error: rusqlite::Error| explain(path, &error);
        let open = |name: &std::ffi::OsStr, more: OpenFlags| {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
            let connection = Connection::open_with_flags(name, flags)?;
            connection.busy_timeout(Duration::from_secs(2))?;
            let read = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
            let (id, format) = (read("PRAGMA application_id")?, read("PRAGMA user_version")?);
            Ok((connection, id, format))
        };
        std::fs::File::open(path).map_err(|error| StoreError::Io {
            path: path.to_owned(),
            why: error.to_string(),
        })?;
        let opened = open(path.as_os_str(), OpenFlags::empty());
        let (connection, id, format) = match opened {
            // Where the directory may not be written, SQLite reads only what nobody else writes meanwhile.
            Err(rusqlite::Error::SqliteFailure(error, _)) if error.code == ErrorCode::CannotOpen => {
                refuse_unread(path)?;
                let encoded = percent_encoding::percent_encode(
                    path.as_os_str().as_encoded_bytes(),
                    percent_encoding::NON_ALPHANUMERIC,
                );
                let uri = format!("file:{encoded}?immutable=1");
                open(uri.as_ref(), OpenFlags::SQLITE_OPEN_URI).map_err(failed)?
            }
            opened => opened.map_err(failed)?,
        };
        if id != schema::APPLICATION_ID {
            return Err(StoreError::Foreign {
                path: path.to_owned(),
                found: format!("an SQLite database of another program, application id {id:#x}"),
            });
        }
        if format > schema::FORMAT {
            return Err(StoreError::Newer {
                path: path.to_owned(),
                found: format,
                known: schema::FORMAT,
            });
        }
        if format < schema::FORMAT {
            return Err(StoreError::Io {
                path: path.to_owned(),
                why: format!(
                    "it has format {format}, from before judges were recorded: `serin serve` brings it to format {}",
                    schema::FORMAT
                ),
            });
        }
        Ok(SqliteStore {
            path: path.to_owned(),
            connection: Mutex::new(connection),
            _lock: None,
        })
    }

    /// The names of all services.
    pub(crate) fn services(&self) -> Result<Vec<String>, StoreError> {
        let connection = self.connection();
        let failed = |error: rusqlite::Error| self.failed(&error);
        let mut statement = connection
            .prepare("SELECT name FROM services ORDER BY name")
            .map_err(failed)?;
        let names = statement.query_map([], |row| row.get(0)).map_err(failed)?;
        names.map(|name| name.map_err(failed)).collect()
    }

    /// A store that lives as long as the process: for the demo and for tests.
    pub(crate) fn in_memory() -> Result<SqliteStore, StoreError> {
        let path = PathBuf::from(":memory:");
        let connection = Connection::open_in_memory().map_err(|error| explain(&path, &error))?;
        let store = SqliteStore {
            path,
            connection: Mutex::new(connection),
            _lock: None,
        };
        store.prepare()?;
        Ok(store)
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic in between leaves a transaction that SQLite has rolled back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: &rusqlite::Error) -> StoreError {
        explain(&self.path, error)
    }

    /// Is it ours, whole, and of a format we know? Makes the tables in an empty file.
    fn prepare(&self) -> Result<(), StoreError> {
        let connection = self.connection();
        let read = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        let sql = |error: rusqlite::Error| self.failed(&error);
        connection.busy_timeout(Duration::from_secs(2)).map_err(sql)?;
        let id = read("PRAGMA application_id").map_err(sql)?;
        let tables = read("SELECT count(*) FROM sqlite_master").map_err(sql)?;
        let format = read("PRAGMA user_version").map_err(sql)?;
        if tables > 0 && id != schema::APPLICATION_ID {
            return Err(StoreError::Foreign {
                path: self.path.clone(),
                found: format!("an SQLite database of another program, application id {id:#x}"),
            });
        }
        if tables > 0 && format > schema::FORMAT {
            return Err(StoreError::Newer {
                path: self.path.clone(),
                found: format,
                known: schema::FORMAT,
            });
        }
        self.check(&connection)?;
        connection
            .query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0))
            .map_err(sql)?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(sql)?;
        if tables > 0 && format == schema::FORMAT {
            return Ok(());
        }
        let transaction = connection.unchecked_transaction().map_err(sql)?;
        if tables == 0 {
            transaction.execute_batch(schema::TABLES).map_err(sql)?;
            transaction
                .pragma_update(None, "application_id", schema::APPLICATION_ID)
                .map_err(sql)?;
        }
        if tables == 0 || format < 2 {
            transaction.execute_batch(schema::JUDGES).map_err(sql)?;
        }
        transaction.execute_batch(schema::RECORDED).map_err(sql)?;
        recorded::begin(&transaction).map_err(sql)?;
        transaction
            .pragma_update(None, "user_version", schema::FORMAT)
            .map_err(sql)?;
        transaction.commit().map_err(sql)
    }

    /// Whether what decisions depend on is whole. Recordings are not looked at: they may be a thousand times as long, and a
    /// start must not wait for them.
    fn check(&self, connection: &Connection) -> Result<(), StoreError> {
        let sql = |error: rusqlite::Error| self.failed(&error);
        let mut tables = connection
            .prepare("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT IN ('recorded', 'sqlite_sequence')")
            .map_err(sql)?;
        let tables = tables.query_map([], |row| row.get::<_, String>(0)).map_err(sql)?;
        for table in tables {
            let table = table.map_err(sql)?;
            let found: String = connection
                .query_row("SELECT * FROM pragma_quick_check(?1)", params![table], |row| {
                    row.get(0)
                })
                .map_err(sql)?;
            if found != "ok" {
                return Err(StoreError::Damaged {
                    path: self.path.clone(),
                    why: found,
                });
            }
        }
        Ok(())
    }

    fn content<'a>(&'a self, service: &'a str) -> impl Fn(String) -> StoreError + 'a {
        move |why| StoreError::Content {
            path: self.path.clone(),
            service: service.to_owned(),
            why,
        }
    }

    /// JSON texts of a query, read back.
    fn texts<T: DeserializeOwned>(
        &self,
        sql: &str,
        service: &str,
        limit: usize,
    ) -> Result<Vec<T>, StoreError> {
        let connection = self.connection();
        let failed = |error: rusqlite::Error| self.failed(&error);
        let mut statement = connection.prepare_cached(sql).map_err(failed)?;
        let rows = statement
            .query_map(params![service, limited(limit)], |row| row.get::<_, String>(0))
            .map_err(failed)?;
        rows.map(|text| {
            let text = text.map_err(failed)?;
            serde_json::from_str(&text).map_err(|error| self.content(service)(error.to_string()))
        })
        .collect()
    }

    /// Facts of a service after `after` up to `upto`, with their times, oldest first.
    fn facts(
        &self,
        connection: &Connection,
        service: &str,
        after: i64,
        upto: i64,
    ) -> Result<Vec<(Fact, Timestamp)>, StoreError> {
        let failed = |error: rusqlite::Error| self.failed(&error);
        let mut statement = connection
            .prepare_cached(
                "SELECT fact, at FROM events WHERE service = ?1 AND id > ?2 AND id <= ?3 ORDER BY id",
            )
            .map_err(failed)?;
        let rows = statement
            .query_map(params![service, after, upto], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
            })
            .map_err(failed)?;
        rows.map(|row| {
            let (fact, at) = row.map_err(failed)?;
            let fact =
                serde_json::from_str(&fact).map_err(|error| self.content(service)(error.to_string()))?;
            Ok((fact, moment(at)))
        })
        .collect()
    }

    fn shown_events(&self, sql: &str, params: impl rusqlite::Params) -> Result<Vec<StoredEvent>, StoreError> {
        let connection = self.connection();
        let failed = |error: rusqlite::Error| self.failed(&error);
        let mut statement = connection.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query(params).map_err(failed)?;
        let mut events = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            let service: String = row.get(1).map_err(failed)?;
            let event = read_event(row, &service).map_err(self.content(&service))?;
            events.push(event);
        }
        Ok(events)
    }

    /// What [`Store::append`] does, within a transaction of the caller's.
    fn append_in(
        &self,
        transaction: &Connection,
        service: &ServiceName,
        rows: &[Row],
        saved: &Saved,
        keys: &[KeyRow],
    ) -> Result<Vec<u64>, StoreError> {
        let name = service.as_str();
        let failed = |error: rusqlite::Error| self.failed(&error);
        let content = self.content(name);
        let mut ids = Vec::with_capacity(rows.len());
        for row in rows {
            let caller = row.caller.as_ref().map(json).transpose().map_err(&content)?;
            transaction
                .prepare_cached(
                    "INSERT INTO events (service, rollout, at, fact, numbers, caller, phase, step, weight, message)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                )
                .map_err(failed)?
                .execute(params![
                    name,
                    row.rollout,
                    millis(row.at),
                    json(&row.fact).map_err(&content)?,
                    json(&row.numbers).map_err(&content)?,
                    caller,
                    json(&row.phase).map_err(&content)?,
                    row.step.and_then(|step| i64::try_from(step).ok()),
                    json(&row.weight).map_err(&content)?,
                    row.message,
                ])
                .map_err(failed)?;
            ids.push(transaction.last_insert_rowid());
        }
        let last = ids.last().copied().unwrap_or(0);
        let empty = json(&Saved::default()).map_err(&content)?;
        transaction
            .prepare_cached(
                "INSERT INTO services (name, saved, saved_event, base, base_event) VALUES (?1, ?2, ?3, ?4, 0)
                 ON CONFLICT (name) DO UPDATE SET saved = ?2, saved_event = max(saved_event, ?3)",
            )
            .map_err(failed)?
            .execute(params![name, json(saved).map_err(&content)?, last, empty])
            .map_err(failed)?;
        if let Some(rollout) = &saved.rollout {
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO rollouts (service, id, started, shown) VALUES (?1, ?2, ?3, ?4)",
                )
                .map_err(failed)?
                .execute(params![
                    name,
                    rollout.id,
                    millis(rollout.started),
                    json(rollout).map_err(&content)?
                ])
                .map_err(failed)?;
        }
        if let Some(at) = rows.last().map(|row| millis(row.at)) {
            // A stored fact is a sign of life: what comes before it is never taken for downtime.
            transaction
                .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('alive', ?1)")
                .map_err(failed)?
                .execute(params![at])
                .map_err(failed)?;
            for row in keys {
                transaction
                    .execute(
                        "INSERT OR REPLACE INTO keys (service, key, at, asked, answer) VALUES (?1, ?2, ?3, ?4, ?5)",
                        params![name, row.key, at, row.asked, row.answer],
                    )
                    .map_err(failed)?;
            }
        }
        Ok(ids.into_iter().map(number).collect())
    }
}

const EVENT_COLUMNS: &str = "id, service, rollout, at, fact, numbers, caller, phase, step, weight, message";

fn read_event(row: &rusqlite::Row<'_>, service: &str) -> Result<StoredEvent, String> {
    fn get<T: rusqlite::types::FromSql>(row: &rusqlite::Row<'_>, index: usize) -> Result<T, String> {
        row.get(index).map_err(|error| error.to_string())
    }
    fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }
    let fact: Fact = parse(&get::<String>(row, 4)?)?;
    let caller: Option<String> = get(row, 6)?;
    Ok(StoredEvent {
        id: number(get(row, 0)?),
        at: moment(get(row, 3)?),
        service: ServiceName::new(service).map_err(|error| error.to_string())?,
        rollout: get(row, 2)?,
        event: fact.name().to_owned(),
        detail: fact.shown(),
        numbers: parse(&get::<String>(row, 5)?)?,
        caller: caller.as_deref().map(parse).transpose()?,
        phase: parse(&get::<String>(row, 7)?)?,
        step: get::<Option<i64>>(row, 8)?.and_then(|step| usize::try_from(step).ok()),
        weight: parse(&get::<String>(row, 9)?)?,
        message: get(row, 10)?,
    })
}

/// The file is readable by its owner only: plans may hold what a template sends to a provider.
fn make_private(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::OpenOptionsExt;
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    made.map(drop).map_err(|error| StoreError::Io {
        path: path.to_owned(),
        why: format!("{error}; the directory must exist and be writable"),
    })
}

/// What an error of SQLite means to the operator.
fn explain(path: &Path, error: &rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => StoreError::Foreign {
            path,
            found: "not an SQLite database".to_owned(),
        },
        Some(ErrorCode::DatabaseCorrupt) => StoreError::Damaged {
            path,
            why: error.to_string(),
        },
        Some(ErrorCode::DiskFull) => StoreError::Io {
            path,
            why: "the disk is full: make room".to_owned(),
        },
        Some(ErrorCode::SystemIoFailure) => StoreError::Io {
            path,
            why: format!(
                "{error}: make room, or lift what limits the file (quota, file size), or mend the disk"
            ),
        },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Io {
            path,
            why: "another program holds it locked: close that program".to_owned(),
        },
        _ => StoreError::Io {
            path,
            why: error.to_string(),
        },
    }
}

impl Store for SqliteStore {
    fn load(&self) -> Result<Vec<StoredService>, StoreError> {
        let connection = self.connection();
        let failed = |error: rusqlite::Error| self.failed(&error);
        let alive: Option<i64> = connection
            .query_row("SELECT value FROM meta WHERE key = 'alive'", [], |row| row.get(0))
            .optional()
            .map_err(failed)?;
        let mut statement = connection
            .prepare("SELECT name, saved, saved_event, base, base_event FROM services ORDER BY name")
            .map_err(failed)?;
        let rows = statement
            .query_map([], |row| {
                let texts: (String, String, String) = (row.get(0)?, row.get(1)?, row.get(3)?);
                let ids: (i64, i64) = (row.get(2)?, row.get(4)?);
                Ok((texts, ids))
            })
            .map_err(failed)?;
        let mut services = Vec::new();
        for row in rows {
            let ((name, saved, base), (saved_event, base_event)) = row.map_err(failed)?;
            let parse = |text: &str| {
                serde_json::from_str::<Saved>(text).map_err(|error| self.content(&name)(error.to_string()))
            };
            let facts = self.facts(&connection, &name, base_event, saved_event)?;
            services.push(StoredService {
                name: ServiceName::new(&name).map_err(|error| self.content(&name)(error.to_string()))?,
                saved: parse(&saved)?,
                replayed: fold(parse(&base)?, &facts),
                alive: alive.map(moment),
            });
        }
        Ok(services)
    }

    fn secret(&self, fresh: [u8; 16]) -> Result<[u8; 16], StoreError> {
        let connection = self.connection();
        connection
            .execute(
                "INSERT OR IGNORE INTO meta (key, value) VALUES ('secret', ?1)",
                params![fresh.as_slice()],
            )
            .map_err(|error| self.failed(&error))?;
        let secret: Vec<u8> = connection
            .query_row("SELECT value FROM meta WHERE key = 'secret'", [], |row| {
                row.get(0)
            })
            .map_err(|error| self.failed(&error))?;
        secret.try_into().map_err(|_| StoreError::Damaged {
            path: self.path.clone(),
            why: "the sticky secret is not 16 bytes long".to_owned(),
        })
    }

    fn append(
        &self,
        service: &ServiceName,
        rows: &[Row],
        saved: &Saved,
        keys: &[KeyRow],
    ) -> Result<Vec<u64>, StoreError> {
        let connection = self.connection();
        let failed = |error: rusqlite::Error| self.failed(&error);
        let transaction = connection.unchecked_transaction().map_err(failed)?;
        let ids = self.append_in(&transaction, service, rows, saved, keys)?;
        transaction.commit().map_err(failed)?;
        Ok(ids)
    }

    fn append_all(&self, steps: &[Appended]) -> Result<Vec<Vec<u64>>, StoreError> {
        let connection = self.connection();
        let failed = |error: rusqlite::Error| self.failed(&error);
        let transaction = connection.unchecked_transaction().map_err(failed)?;
        let append =
            |step: &Appended| self.append_in(&transaction, &step.service, &step.rows, &step.saved, &[]);
        let ids = steps.iter().map(append).collect::<Result<_, _>>()?;
        transaction.commit().map_err(failed)?;
        Ok(ids)
    }

    fn take_back(
        &self,
        service: &ServiceName,
        ids: &[u64],
        before: Option<&Saved>,
        keys: &[KeyRow],
    ) -> Result<(), StoreError> {
        let name = service.as_str();
        let connection = self.connection();
        let failed = |error: rusqlite::Error| self.failed(&error);
        let content = self.content(name);
        let transaction = connection.unchecked_transaction().map_err(failed)?;
        let execute = |sql: &str, params: &[&dyn rusqlite::ToSql]| -> Result<(), StoreError> {
            transaction.execute(sql, params).map(drop).map_err(failed)
        };
        for id in ids {
            let id = i64::try_from(*id).unwrap_or(i64::MAX);
            execute("DELETE FROM events WHERE id = ?1 AND service = ?2", &[&id, &name])?;
        }
        for row in keys {
            execute(
                "DELETE FROM keys WHERE service = ?1 AND key = ?2",
                &[&name, &row.key],
            )?;
        }
        if let Some(before) = before {
            execute(
                "UPDATE services SET saved = ?2, saved_event =
                 coalesce((SELECT max(id) FROM events WHERE service = ?1), base_event) WHERE name = ?1",
                &[&name, &json(before).map_err(&content)?],
            )?;
        } else {
            execute("DELETE FROM services WHERE name = ?1", &[&name])?;
        }
        let last = before.and_then(|before| before.rollout.as_ref());
        let started = last.map_or(-1, |last| millis(last.started));
        execute(
            "DELETE FROM rollouts WHERE service = ?1 AND started > ?2",
            &[&name, &started],
        )?;
        if let Some(last) = last {
            let shown = json(last).map_err(&content)?;
            execute(
                "UPDATE rollouts SET shown = ?3 WHERE service = ?1 AND id = ?2",
                &[&name, &last.id, &shown],
            )?;
        }
        transaction.commit().map_err(failed)
    }

    fn alive(&self, at: Timestamp) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('alive', ?1)")
            .and_then(|mut statement| statement.execute(params![millis(at)]))
            .map(drop)
            .map_err(|error| self.failed(&error))
    }

    fn events(
        &self,
        service: Option<&str>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        match service {
            Some(service) => self.shown_events(
                &format!(
                    "SELECT {EVENT_COLUMNS} FROM events WHERE service = ?1 AND id > ?2 ORDER BY id LIMIT ?3"
                ),
                params![service, after, limited(limit)],
            ),
            None => self.shown_events(
                &format!("SELECT {EVENT_COLUMNS} FROM events WHERE id > ?1 ORDER BY id LIMIT ?2"),
                params![after, limited(limit)],
            ),
        }
    }

    fn last_events(&self, service: &str, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
        self.shown_events(
            &format!("SELECT {EVENT_COLUMNS} FROM events WHERE service = ?1 ORDER BY id DESC LIMIT ?2"),
            params![service, limited(limit)],
        )
    }

    fn rollout_events(&self, service: &str, rollout: &str) -> Result<Vec<StoredEvent>, StoreError> {
        self.shown_events(
            &format!("SELECT {EVENT_COLUMNS} FROM events WHERE service = ?1 AND rollout = ?2 ORDER BY id"),
            params![service, rollout],
        )
    }

    fn rollouts(&self, service: &str) -> Result<Vec<RolloutStatus>, StoreError> {
        let sql = "SELECT shown FROM rollouts WHERE service = ?1 ORDER BY started DESC, id DESC LIMIT ?2";
        let mut rollouts: Vec<RolloutStatus> = self.texts(sql, service, usize::MAX)?;
        // A rollout that was superseded ended when the next began.
        for newer in 1..rollouts.len() {
            let began = rollouts[newer - 1].started;
            rollouts[newer].ended.get_or_insert(began);
        }
        Ok(rollouts)
    }

    fn audit(&self, attempt: &Attempt) -> Result<(), StoreError> {
        let text = json(attempt).map_err(self.content(&attempt.service))?;
        self.connection()
            .prepare_cached("INSERT INTO attempts (at, service, attempt) VALUES (?1, ?2, ?3)")
            .and_then(|mut statement| statement.execute(params![millis(attempt.at), attempt.service, text]))
            .map(drop)
            .map_err(|error| self.failed(&error))
    }

    fn attempts(&self, service: &str, limit: usize) -> Result<Vec<Attempt>, StoreError> {
        let sql = "SELECT attempt FROM attempts WHERE service = ?1 ORDER BY id DESC LIMIT ?2";
        self.texts(sql, service, limit)
    }

    fn keys(&self, since: Timestamp) -> Result<Vec<(ServiceName, Timestamp, KeyRow)>, StoreError> {
        let connection = self.connection();
        let failed = |error: rusqlite::Error| self.failed(&error);
        let mut statement = connection
            .prepare("SELECT service, at, key, asked, answer FROM keys WHERE at >= ?1")
            .map_err(failed)?;
        let mut rows = statement.query(params![millis(since)]).map_err(failed)?;
        let mut keys = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            let service: String = row.get(0).map_err(failed)?;
            let name =
                ServiceName::new(&service).map_err(|error| self.content(&service)(error.to_string()))?;
            let key = KeyRow {
                key: row.get(2).map_err(failed)?,
                asked: row.get(3).map_err(failed)?,
                answer: row.get(4).map_err(failed)?,
            };
            keys.push((name, moment(row.get(1).map_err(failed)?), key));
        }
        Ok(keys)
    }

    fn save_run(&self, service: &str, row: &RunRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT OR REPLACE INTO runs (service, run, rollout, started, shown) VALUES (?1, ?2, ?3, ?4, ?5)",
            )
            .and_then(|mut statement| {
                let run = i64::try_from(row.run).unwrap_or(i64::MAX);
                statement.execute(params![service, run, row.rollout, millis(row.started), row.json])
            })
            .map(drop)
            .map_err(|error| self.failed(&error))
    }

    fn runs(&self, service: &str, limit: usize) -> Result<Vec<RunRow>, StoreError> {
        let connection = self.connection();
        let failed = |error: rusqlite::Error| self.failed(&error);
        let mut statement = connection
            .prepare_cached(
                "SELECT run, rollout, started, shown FROM runs WHERE service = ?1 ORDER BY run DESC LIMIT ?2",
            )
            .map_err(failed)?;
        let rows = statement
            .query_map(params![service, limited(limit)], |row| {
                Ok(RunRow {
                    run: number(row.get(0)?),
                    rollout: row.get(1)?,
                    started: moment(row.get(2)?),
                    json: row.get(3)?,
                })
            })
            .map_err(failed)?;
        rows.map(|row| row.map_err(failed)).collect()
    }

    fn save_judges(&self, rows: &[JudgeRow], parts: &[Arc<RecordPart>]) -> Result<(), StoreError> {
        let connection = self.connection();
        let failed = |error: rusqlite::Error| self.failed(&error);
        let transaction = connection.unchecked_transaction().map_err(failed)?;
        for row in rows {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO judges (service, metric, judge) VALUES (?1, ?2, ?3)")
                .map_err(failed)?
                .execute(params![row.service, row.metric, row.json])
                .map_err(failed)?;
        }
        for part in parts {
            recorded::write(&transaction, part).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        for part in parts {
            part.written.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn judges(&self, service: &str) -> Result<Vec<JudgeRow>, StoreError> {
        let connection = self.connection();
        let failed = |error: rusqlite::Error| self.failed(&error);
        let mut statement = connection
            .prepare_cached("SELECT metric, judge FROM judges WHERE service = ?1")
            .map_err(failed)?;
        let rows = statement
            .query_map(params![service], |row| {
                Ok(JudgeRow {
                    service: service.to_owned(),
                    metric: row.get(0)?,
                    json: row.get(1)?,
                })
            })
            .map_err(failed)?;
        rows.map(|row| row.map_err(failed)).collect()
    }

    fn recorded(&self, service: &str, rollout: &str) -> Result<Vec<StretchRow>, StoreError> {
        recorded::read(&self.connection(), service, rollout).map_err(|error| self.failed(&error))
    }

    fn unrecorded(&self, service: &str, rollout: &str) -> Result<Unrecorded, StoreError> {
        recorded::unrecorded(&self.connection(), service, rollout).map_err(|error| self.failed(&error))
    }

    fn untold(&self, since: Timestamp) -> Result<(BTreeMap<String, Told>, Vec<Untold>), StoreError> {
        let connection = self.connection();
        let failed = |error: rusqlite::Error| self.failed(&error);
        let told = told::read(&connection).map_err(failed)?;
        let Some(began) = told.values().map(Told::began).min() else {
            return Ok((told, Vec::new()));
        };
        let mut recent = connection
            .prepare(
                "SELECT service, min(events.id), base, base_event FROM events JOIN services ON name = service
                 WHERE at >= ?1 AND events.id > ?2 AND events.id > base_event GROUP BY service",
            )
            .map_err(failed)?;
        let mut recent = recent
            .query(params![millis(since), i64::try_from(began).unwrap_or(i64::MAX)])
            .map_err(failed)?;
        let mut all = Vec::new();
        while let Some(row) = recent.next().map_err(failed)? {
            let (service, first): (String, i64) = (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
            let (base, base_event): (String, i64) =
                (row.get(2).map_err(failed)?, row.get(3).map_err(failed)?);
            let base =
                serde_json::from_str(&base).map_err(|error| self.content(&service)(error.to_string()))?;
            // What cannot be folded is told of at the start.
            let Some(before) = fold(base, &self.facts(&connection, &service, base_event, first - 1)?) else {
                continue;
            };
            let facts = self.facts(&connection, &service, first - 1, i64::MAX)?;
            let sql =
                format!("SELECT {EVENT_COLUMNS} FROM events WHERE service = ?1 AND id >= ?2 ORDER BY id");
            let mut shown = connection.prepare_cached(&sql).map_err(failed)?;
            let shown = shown
                .query_map(params![service, first], |row| Ok(read_event(row, &service)))
                .map_err(failed)?;
            let shown: Vec<StoredEvent> = shown
                .map(|event| event.map_err(failed)?.map_err(self.content(&service)))
                .collect::<Result<_, _>>()?;
            let facts = facts.into_iter().map(|(fact, _)| fact);
            let events = shown.into_iter().zip(facts).collect();
            all.push(Untold { before, events });
        }
        Ok((told, all))
    }

    fn hear(&self, receivers: &[String]) -> Result<(), StoreError> {
        let connection = self.connection();
        let failed = |error: rusqlite::Error| self.failed(&error);
        let transaction = connection.unchecked_transaction().map_err(failed)?;
        told::hear(&transaction, receivers).map_err(failed)?;
        transaction.commit().map_err(failed)
    }

    fn heard(&self, receiver: &str, service: &str, event: u64) -> Result<(), StoreError> {
        told::heard(&self.connection(), receiver, service, event).map_err(|error| self.failed(&error))
    }

    fn sweep(&self, retention: Retention, now: Timestamp) -> Result<(), StoreError> {
        let connection = self.connection();
        let failed = |error: rusqlite::Error| self.failed(&error);
        let transaction = connection.unchecked_transaction().map_err(failed)?;
        let horizon = millis(now.minus(retention.events.as_duration()));
        self.move_bases(&transaction, horizon)?;
        transaction
            .execute("DELETE FROM attempts WHERE at < ?1", params![horizon])
            .map_err(failed)?;
        transaction
            .execute(
                "DELETE FROM keys WHERE at < ?1",
                params![millis(now.minus(KEY_LIFE))],
            )
            .map_err(failed)?;
        recorded::sweep_rollouts(&transaction, retention.rollouts).map_err(failed)?;
        transaction
            .execute(
                "DELETE FROM runs WHERE NOT EXISTS (SELECT 1 FROM rollouts WHERE rollouts.service = runs.service
                 AND rollouts.id = runs.rollout)",
                [],
            )
            .map_err(failed)?;
        recorded::sweep_to(&transaction, retention.recordings.as_u64(), now).map_err(failed)?;
        transaction.commit().map_err(failed)
    }
}

impl SqliteStore {
    /// Folds facts that are about to be forgotten into each service's base, so that what is left still replays.
    fn move_bases(&self, connection: &Connection, horizon: i64) -> Result<(), StoreError> {
        let failed = |error: rusqlite::Error| self.failed(&error);
        let mut statement = connection
            .prepare("SELECT name, base, base_event FROM services")
            .map_err(failed)?;
        let services = statement
            .query_map([], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, i64>(2)?,
                ))
            })
            .map_err(failed)?
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        for (name, base, base_event) in services {
            let upto: Option<i64> = connection
                .query_row(
                    "SELECT max(id) FROM events WHERE service = ?1 AND at < ?2",
                    params![name, horizon],
                    |row| row.get(0),
                )
                .map_err(failed)?;
            let Some(upto) = upto else { continue };
            let base: Saved =
                serde_json::from_str(&base).map_err(|error| self.content(&name)(error.to_string()))?;
            let facts = self.facts(connection, &name, base_event, upto)?;
            // Facts that do not fold are kept: a start will say so.
            let Some(moved) = fold(base, &facts) else { continue };
            let moved = json(&moved).map_err(self.content(&name))?;
            connection
                .execute(
                    "UPDATE services SET base = ?2, base_event = ?3 WHERE name = ?1",
                    params![name, moved, upto],
                )
                .map_err(failed)?;
            connection
                .execute(
                    "DELETE FROM events WHERE service = ?1 AND id <= ?2",
                    params![name, upto],
                )
                .map_err(failed)?;
        }
        Ok(())
    }
}

/// The state that facts lead to; none when one of them is refused.
fn fold(base: Saved, facts: &[(Fact, Timestamp)]) -> Option<Saved> {
    facts.iter().try_fold(base, |saved, (fact, at)| {
        saved.apply(fact, *at).ok().map(|(next, _)| next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("serin.db");
        (directory, path)
    }

    #[test]
    fn a_second_process_is_told_who_holds_the_file() {
        let (_directory, path) = file();
        let first = SqliteStore::open(&path).unwrap();
        let error = SqliteStore::open(&path).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(first);
        SqliteStore::open(&path).unwrap();
    }

    #[test]
    fn a_foreign_newer_or_damaged_file_is_refused_with_the_mend() {
        let (_directory, path) = file();
        std::fs::write(&path, vec![b'x'; 4096]).unwrap();
        let error = SqliteStore::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("not a state file") && error.contains("state.path"),
            "{error}"
        );
        std::fs::remove_file(&path).unwrap();

        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE t (x)").unwrap();
        drop(other);
        let error = SqliteStore::open(&path).unwrap_err().to_string();
        assert!(error.contains("another program"), "{error}");
        std::fs::remove_file(&path).unwrap();

        drop(SqliteStore::open(&path).unwrap());
        let ours = Connection::open(&path).unwrap();
        ours.pragma_update(None, "user_version", 99).unwrap();
        drop(ours);
        let error = SqliteStore::open(&path).unwrap_err().to_string();
        assert!(error.contains("format 99"), "{error}");
    }

    #[test]
    fn files_of_earlier_formats_get_what_they_lack_and_are_not_read_before() {
        for (format, lacks) in [
            (1, "DROP TABLE recorded; DROP TABLE judges"),
            (2, "DROP TABLE recorded"),
        ] {
            let (_directory, path) = file();
            drop(SqliteStore::open(&path).unwrap());
            let earlier = Connection::open(&path).unwrap();
            earlier.execute_batch(lacks).unwrap();
            earlier.pragma_update(None, "user_version", format).unwrap();
            drop(earlier);
            let error = SqliteStore::read_only(&path).unwrap_err().to_string();
            assert!(
                error.contains(&format!("format {format}, from before judges were recorded")),
                "{error}"
            );
            let store = SqliteStore::open(&path).unwrap();
            assert!(store.judges("shop").unwrap().is_empty());
            assert!(store.recorded("shop", "1").unwrap().is_empty());
            // While it is in use, and when nobody may write beside it.
            assert!(
                SqliteStore::read_only(&path)
                    .unwrap()
                    .services()
                    .unwrap()
                    .is_empty()
            );
        }
    }

    #[test]
    fn where_nothing_may_be_written_a_file_is_not_read_without_what_is_beside_it() {
        let (directory, path) = file();
        let store = SqliteStore::open(&path).unwrap();
        let beside = |name: &Path, end: &str| PathBuf::from(format!("{}{end}", name.display()));
        let copy = directory.path().join("copy.db");
        for end in ["", "-wal"] {
            std::fs::copy(beside(&path, end), beside(&copy, end)).unwrap();
        }
        // Neither opened nor made by anybody, as in a folder that may not be written.
        std::os::unix::fs::symlink("nowhere", beside(&copy, "-shm")).unwrap();
        let error = SqliteStore::read_only(&copy).unwrap_err().to_string();
        assert!(
            error.contains("copy.db-wal") && error.contains("copy both"),
            "{error}"
        );
        // Closing brings all of it into the file itself.
        drop(store);
        std::fs::copy(&path, &copy).unwrap();
        std::fs::write(beside(&copy, "-wal"), "").unwrap();
        assert!(
            SqliteStore::read_only(&copy)
                .unwrap()
                .services()
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn parts_beyond_the_one_that_is_written_are_of_a_past_that_a_crash_has_undone() {
        let store = SqliteStore::in_memory().unwrap();
        let write = |stretch: u64, number: u64, bytes: &[u8]| {
            let part = part("1", (stretch, number), bytes.to_vec());
            store.save_judges(&[], &[Arc::clone(&part)]).unwrap();
            assert!(part.written.load(Ordering::Acquire));
        };
        let read = || -> Vec<(u64, Vec<u8>)> {
            let stretches = store.recorded("shop", "1").unwrap().into_iter();
            stretches
                .map(|stretch| (stretch.stretch, stretch.bytes))
                .collect()
        };
        write(0, 0, b"a");
        write(0, 1, b"b");
        write(0, 2, b"c");
        write(0, 1, b"B");
        assert_eq!(read(), [(0, b"aB".to_vec())]);
        write(1, 0, b"d");
        write(2, 0, b"e");
        assert_eq!(read(), [(1, b"d".to_vec()), (2, b"e".to_vec())], "the last two");
    }

    fn part(rollout: &str, (stretch, number): (u64, u64), bytes: Vec<u8>) -> Arc<RecordPart> {
        Arc::new(RecordPart {
            service: "shop".into(),
            rollout: rollout.into(),
            metric: "no-worse".into(),
            began: Timestamp::from_secs(1),
            stretch,
            part: number,
            bytes,
            written: false.into(),
        })
    }

    #[test]
    fn recordings_of_older_rollouts_go_when_the_file_is_full_and_the_last_one_stays() {
        let store = SqliteStore::in_memory().unwrap();
        for (started, rollout) in (1..).zip(["first", "second", "third"]) {
            let connection = store.connection();
            let row = params![rollout, started];
            let insert = "INSERT INTO rollouts (service, id, started, shown) VALUES ('shop', ?1, ?2, '{}')";
            connection.execute(insert, row).unwrap();
            drop(connection);
            let parts: Vec<_> = (0..100)
                .map(|number| part(rollout, (0, number), vec![7; 4000]))
                .collect();
            store.save_judges(&[], &parts).unwrap();
        }
        let left = |most: u64| -> Vec<usize> {
            let retention = Retention {
                rollouts: 10,
                events: crate::model::Span::secs(60),
                recordings: crate::model::ByteSize::kib(most),
            };
            store.sweep(retention, Timestamp::from_secs(100)).unwrap();
            let of = |rollout| store.recorded("shop", rollout).unwrap().len();
            ["first", "second", "third"].map(of).to_vec()
        };
        assert_eq!(left(4096), [1, 1, 1]);
        assert_eq!(left(1200), [0, 1, 1]);
        assert_eq!(left(1), [0, 0, 1]);
        assert_eq!(store.recorded("shop", "third").unwrap()[0].bytes.len(), 400_000);
        // It is known that they were there, for as long as the rollout is.
        let given_up = || {
            let of = |rollout| store.unrecorded("shop", rollout).unwrap().given_up;
            ["first", "second", "third"].map(of)
        };
        let at = Some(Timestamp::from_secs(100));
        assert_eq!(given_up(), [at, at, None]);
        let none = Retention {
            rollouts: 1,
            events: crate::model::Span::secs(60),
            recordings: crate::model::ByteSize::kib(1),
        };
        store.sweep(none, Timestamp::from_secs(200)).unwrap();
        assert_eq!(given_up(), [None, None, None]);
    }

    #[test]
    fn damage_to_a_recording_does_not_keep_serin_from_starting_and_any_other_does() {
        for (table, starts) in [("recorded", true), ("attempts", false)] {
            let (_directory, path) = file();
            let store = SqliteStore::open(&path).unwrap();
            let text = "MARKED".repeat(500);
            let parts: Vec<_> = (0..50)
                .map(|number| part("1", (0, number), text.as_bytes().to_vec()))
                .collect();
            if table == "recorded" {
                store.save_judges(&[], &parts).unwrap();
            } else {
                for _ in 0..50 {
                    let insert = "INSERT INTO attempts (at, service, attempt) VALUES (1, 'shop', ?1)";
                    store.connection().execute(insert, params![text]).unwrap();
                }
            }
            drop(store);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = bytes.windows(6).position(|six| six == b"MARKED").unwrap();
            let page = at / 4096 * 4096;
            bytes[page..page + 16].fill(0xff);
            std::fs::write(&path, bytes).unwrap();
            match SqliteStore::open(&path) {
                Ok(_) => assert!(starts, "{table}"),
                Err(error) => {
                    assert!(!starts, "{table}: {error}");
                    assert!(error.to_string().contains("is damaged"), "{error}");
                }
            }
        }
    }

    #[test]
    fn the_secret_is_made_once() {
        let store = SqliteStore::in_memory().unwrap();
        assert_eq!(store.secret([1; 16]).unwrap(), [1; 16]);
        assert_eq!(store.secret([2; 16]).unwrap(), [1; 16]);
    }

    #[test]
    fn a_key_is_forgotten_after_its_life() {
        let store = SqliteStore::in_memory().unwrap();
        let key = KeyRow {
            key: "k".into(),
            asked: "promote".into(),
            answer: "{}".into(),
        };
        let at = Timestamp::from_secs(1_000_000);
        let (service, saved) = (ServiceName::new("shop").unwrap(), Saved::default());
        let row = Row {
            at,
            rollout: None,
            fact: Fact::Block {
                block: crate::control::ledger::Block::default(),
            },
            numbers: serde_json::Value::Null,
            caller: None,
            phase: crate::rollout::Phase::Healthy,
            step: None,
            weight: crate::model::Weight::ZERO,
            message: String::new(),
            telling: None,
        };
        store
            .append(&service, &[row], &saved, std::slice::from_ref(&key))
            .unwrap();
        assert_eq!(store.keys(at).unwrap(), [(service, at, key)]);
        let retention = Retention {
            rollouts: 100,
            events: crate::model::Span::secs(90 * 86_400),
            recordings: crate::model::ByteSize::kib(1024),
        };
        store
            .sweep(retention, at.plus(KEY_LIFE + Duration::from_secs(1)))
            .unwrap();
        assert_eq!(store.keys(at).unwrap(), []);
    }

    #[test]
    fn the_file_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let (_directory, path) = file();
        let _store = SqliteStore::open(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
}
