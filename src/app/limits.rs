//! How many files the process may have open, and so how many clients it can serve.

/// Descriptors kept back for the state file, the admin side, logs and upstream look-ups.
const RESERVE: u64 = 64;

/// Raises the soft limit to the hard one and returns how many client connections fit: each may need an upstream
/// connection of its own.
pub(super) fn most_connections() -> u64 {
    let wanted = 1 << 20;
    let limit = rlimit::increase_nofile_limit(wanted).unwrap_or(1024);
    (limit.saturating_sub(RESERVE) / 2).max(16)
}
