//! What the process may use of the system: how many files and how much memory, and so how many clients; how much memory it
//! keeps at hand.
//!
//! Descriptors are divided once, at the start: some are kept for what an operator and Serin itself need (the admin side,
//! health checks, names, files), some for connections to versions, the rest is for clients. Whoever finds none left in their
//! part waits or is refused there; of the clients' part versions are lent what is not in use ([`crate::upstream::Descriptors`]).
//! Where a control group limits the memory there are no more clients than fit into it when each holds as much as it can.

use super::memory;
use crate::config::Config;

/// More files than this are not asked for, whatever is allowed.
const MOST_FILES: u64 = 1 << 20;
/// Resources that a worker's runtime needs.
const PER_WORKER: u64 = 4;
/// With fewer for clients than this there is nothing to serve.
const FEWEST: u64 = 8;

/// Too few files may be open.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "only {limit} files may be open, and Serin needs at least {needed}: raise the limit (`ulimit -n`, or LimitNOFILE= of its \
     systemd unit), or start fewer workers (--workers)"
)]
pub struct TooFew {
    limit: u64,
    needed: u64,
}

/// What limits the number of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scarce {
    /// So many files may be open.
    Files(u64),
    /// The control group allows so many bytes of memory.
    Memory(u64),
}

impl std::fmt::Display for Scarce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Scarce::Files(limit) => write!(f, "{limit} files may be open"),
            Scarce::Memory(limit) => write!(f, "the control group allows {} MiB of memory", limit >> 20),
        }
    }
}

impl Scarce {
    /// How there would be more.
    pub fn mend(self) -> &'static str {
        match self {
            Scarce::Files(_) => "raise `ulimit -n` or LimitNOFILE=",
            Scarce::Memory(_) => "raise the memory limit of the container, or MemoryMax=",
        }
    }
}

/// What the process may use, and who of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// What the system allows the process.
    pub limit: u64,
    /// For the admin side, health checks, names and files, beside what is open anyway.
    pub spare: u64,
    /// What clients and versions share.
    shared: u64,
    /// How many bytes of memory the process may have, if that is limited.
    pub memory: Option<u64>,
}

impl Resources {
    /// Raises the soft limit to the hard one and divides it, when `open` are in use.
    pub(super) fn divide(open: u64, workers: usize) -> Result<Resources, TooFew> {
        let limit = rlimit::increase_nofile_limit(MOST_FILES).unwrap_or(1024);
        let divided = Resources::of(limit, open, workers)?;
        Ok(Resources {
            memory: memory::limit(),
            ..divided
        })
    }

    /// As [`Resources::divide`], before anything is open: about what it will say.
    pub fn estimate(config: &Config, workers: usize) -> Result<Resources, TooFew> {
        let listeners = u64::try_from(config.listeners.len() * workers).unwrap_or(u64::MAX);
        Resources::divide(24 + listeners, workers)
    }

    fn of(limit: u64, open: u64, workers: usize) -> Result<Resources, TooFew> {
        let spare = (limit / 8).clamp(24, 1024);
        let workers = u64::try_from(workers).unwrap_or(u64::MAX);
        let taken = open
            .saturating_add(workers.saturating_mul(PER_WORKER))
            .saturating_add(spare);
        let shared = limit.saturating_sub(taken);
        if shared < 2 * FEWEST {
            let needed = taken.saturating_add(2 * FEWEST);
            return Err(TooFew { limit, needed });
        }
        Ok(Resources {
            limit,
            spare,
            shared,
            memory: None,
        })
    }

    /// Connections at each address of the admin side, at the most: health checks and files have their part of the spare ones.
    pub(super) fn admin(&self) -> usize {
        usize::try_from(self.spare / 4).unwrap_or(usize::MAX)
    }

    /// Connections to versions, at the most. Each client may need one of its own, so they get as many as clients when that is
    /// little.
    pub fn versions(&self) -> u64 {
        self.shared.div_ceil(2)
    }

    /// How many of [`Resources::versions`] the services of a configuration can need.
    pub fn needed_for_versions(&self, config: &Config) -> u64 {
        let services = config.services.iter();
        // A canary beside stable.
        let wanted: u64 = services
            .map(|service| 2 * u64::from(service.limits.connections))
            .sum();
        wanted.min(self.versions())
    }

    /// Client connections, at the most: what services cannot use for versions is theirs, as far as the memory goes.
    pub fn clients(&self, config: &Config) -> u64 {
        let by_files = self.clients_by_files(config);
        self.memory
            .map_or(by_files, |limit| by_files.min(memory::clients(limit)))
    }

    fn clients_by_files(&self, config: &Config) -> u64 {
        self.shared - self.needed_for_versions(config)
    }

    /// What there would have to be more of for more clients.
    pub fn scarce(&self, config: &Config) -> Scarce {
        match self.memory {
            Some(limit) if memory::clients(limit) < self.clients_by_files(config) => Scarce::Memory(limit),
            Some(_) | None => Scarce::Files(self.limit),
        }
    }
}

/// How many descriptors are in use.
pub(super) fn open() -> u64 {
    let listed = std::fs::read_dir("/proc/self/fd").map(Iterator::count);
    // Without /proc: what a small configuration has open at this point.
    listed.map_or(24, |count| u64::try_from(count).unwrap_or(u64::MAX))
}

/// Lets each thread keep up to 2 MiB of freed memory.
///
/// glibc gives the end of a thread's heap back as soon as 128 KiB of it are free, and a busy worker asks for it again a moment
/// later: one system call and page fault for every few dozen requests. Freeing one larger block raises that limit to twice
/// the block's size (mallopt(3), dynamic mmap threshold). Other allocators take no notice.
pub(super) fn keep_memory_at_hand() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn config(connections: &str) -> Config {
        let services = format!("services: [{{name: shop, limits: {{connections: {connections}}}}}]");
        let text = format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{services}");
        let loaded = config::load_text(&text, "test.yaml", std::path::Path::new("."), &|_| None);
        Config::clone(&loaded.unwrap().config)
    }

    #[test]
    fn a_small_limit_is_halved_between_clients_and_versions() {
        let divided = Resources::of(256, 24, 2).unwrap();
        assert_eq!(divided.spare, 32);
        assert_eq!((divided.clients(&config("1024")), divided.versions()), (96, 96));
    }

    #[test]
    fn what_versions_may_not_use_is_for_clients() {
        let divided = Resources::of(1 << 20, 24, 2).unwrap();
        assert_eq!(divided.clients(&config("1000")), (1 << 20) - 24 - 8 - 1024 - 2000);
    }

    #[test]
    fn where_memory_is_limited_there_are_no_more_clients_than_fit_into_it() {
        let config = config("1000");
        let many = Resources::of(1 << 20, 24, 2).unwrap();
        let small = Resources {
            memory: Some(128 << 20),
            ..many
        };
        assert_eq!(
            (small.clients(&config), small.scarce(&config)),
            (256, Scarce::Memory(128 << 20))
        );
        let large = Resources {
            memory: Some(1 << 50),
            ..many
        };
        assert_eq!(large.clients(&config), many.clients(&config));
        assert_eq!(large.scarce(&config), Scarce::Files(1 << 20));
    }

    #[test]
    fn too_small_a_limit_is_told_with_what_is_needed() {
        let error = Resources::of(64, 24, 2).unwrap_err();
        assert_eq!(error.needed, 72);
        assert!(Resources::of(72, 24, 2).is_ok());
        assert!(Resources::of(10, 24, usize::MAX).is_err());
    }
}
