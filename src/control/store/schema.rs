//! The tables, and what makes a file one of ours.

/// "Seri": SQLite's `application_id`.
pub(super) const APPLICATION_ID: i64 = 0x5365_7269;

/// SQLite's `user_version`; raise it with every change of the tables and say in `sqlite` how to get there.
pub(super) const FORMAT: i64 = 3;

/// From format 1 to format 2: what the judges know.
pub(super) const JUDGES: &str = "
CREATE TABLE judges (
  service TEXT NOT NULL,
  metric TEXT NOT NULL,
  judge TEXT NOT NULL,
  PRIMARY KEY (service, metric)
) WITHOUT ROWID;
";

/// From format 2 to format 3: what the judges were fed.
pub(super) const RECORDED: &str = "
CREATE TABLE recorded (
  service TEXT NOT NULL,
  rollout TEXT NOT NULL,
  metric TEXT NOT NULL,
  began INTEGER NOT NULL,
  stretch INTEGER NOT NULL,
  part INTEGER NOT NULL,
  bytes BLOB NOT NULL,
  PRIMARY KEY (service, rollout, metric, began, stretch, part)
) WITHOUT ROWID;
";

/// Format 1.
pub(super) const TABLES: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE services (
  name TEXT PRIMARY KEY,
  saved TEXT NOT NULL,
  saved_event INTEGER NOT NULL,
  base TEXT NOT NULL,
  base_event INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  service TEXT NOT NULL,
  rollout TEXT,
  at INTEGER NOT NULL,
  fact TEXT NOT NULL,
  numbers TEXT NOT NULL,
  caller TEXT,
  phase TEXT NOT NULL,
  step INTEGER,
  weight TEXT NOT NULL,
  message TEXT NOT NULL
);
CREATE INDEX events_of ON events (service, id);
CREATE TABLE rollouts (
  service TEXT NOT NULL,
  id TEXT NOT NULL,
  started INTEGER NOT NULL,
  shown TEXT NOT NULL,
  PRIMARY KEY (service, id)
) WITHOUT ROWID;
CREATE TABLE attempts (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at INTEGER NOT NULL,
  service TEXT NOT NULL,
  attempt TEXT NOT NULL
);
CREATE INDEX attempts_of ON attempts (service, id);
CREATE TABLE keys (
  service TEXT NOT NULL,
  key TEXT NOT NULL,
  at INTEGER NOT NULL,
  asked TEXT NOT NULL,
  answer TEXT NOT NULL,
  PRIMARY KEY (service, key)
) WITHOUT ROWID;
CREATE TABLE runs (
  service TEXT NOT NULL,
  run INTEGER NOT NULL,
  rollout TEXT NOT NULL,
  started INTEGER NOT NULL,
  shown TEXT NOT NULL,
  PRIMARY KEY (service, run)
) WITHOUT ROWID;
";
