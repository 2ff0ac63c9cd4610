//! What the process may use of the system: how many files, and so how many clients; how much memory it keeps at hand.

/// Descriptors kept back for the state file, the admin side, logs and upstream look-ups.
const RESERVE: u64 = 64;

/// Raises the soft limit to the hard one and returns how many client connections fit: each may need an upstream
/// connection of its own.
pub(super) fn most_connections() -> u64 {
    let wanted = 1 << 20;
    let limit = rlimit::increase_nofile_limit(wanted).unwrap_or(1024);
    (limit.saturating_sub(RESERVE) / 2).max(16)
}

/// Lets each thread keep up to 2 MiB of freed memory.
///
/// glibc gives the end of a thread's heap back as soon as 128 KiB of it are free, and a busy worker asks for it again a moment
/// later: one system call and page fault for every few dozen requests. Freeing one larger block raises that limit to twice
/// the block's size (mallopt(3), dynamic mmap threshold). Other allocators take no notice.
pub(super) fn keep_memory_at_hand() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
}
