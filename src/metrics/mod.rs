//! What is counted: every family, per-version recording, snapshots, exposition.
