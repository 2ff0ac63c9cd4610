//! What requests write about one version in one role, and what a scrape reads of it.
//!
//! Handles are resolved when a generation is published; a request only adds. `status` and `method` are the only labels a
//! request chooses, both from closed sets.

use super::{Cell, HistogramCells, HistogramSnapshot, part_of};
use crate::model::{Role, ServiceName, VersionName};
use crossbeam_utils::CachePadded;
use http::{Method, StatusCode};
use std::{sync::OnceLock, time::Duration};

/// Whose numbers these are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VersionKey {
    /// The service.
    pub service: ServiceName,
    /// What the version was at the time.
    pub role: Role,
    /// The version.
    pub version: VersionName,
}

/// The verdict of a request's first attempt, charged to the assigned version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The version answered, and not with what counts as a failure.
    Ok,
    /// The version failed: by its answer, by the connection, by time.
    Failed,
    /// The client went away first; says nothing about the version.
    Canceled,
}

impl Outcome {
    /// All outcomes, in index order.
    pub const ALL: [Outcome; 3] = [Outcome::Ok, Outcome::Failed, Outcome::Canceled];

    /// The label value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Failed => "failed",
            Outcome::Canceled => "canceled",
        }
    }
}

/// Why a request was assigned where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssignReason {
    /// A ticket of the exact split.
    Weight,
    /// Its sticky key.
    Sticky,
    /// A forced version.
    Force,
}

impl AssignReason {
    /// All reasons, in index order.
    pub const ALL: [AssignReason; 3] = [AssignReason::Weight, AssignReason::Sticky, AssignReason::Force];

    /// The label value.
    pub const fn as_str(self) -> &'static str {
        match self {
            AssignReason::Weight => "weight",
            AssignReason::Sticky => "sticky",
            AssignReason::Force => "force",
        }
    }
}

/// How one attempt to reach an endpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// A response head came back.
    Answered,
    /// No connection: refused, unreachable, timed out, TLS.
    ConnectFailed,
    /// The connection broke before a response.
    Reset,
    /// No response in time.
    TimedOut,
    /// What came back was not HTTP.
    Protocol,
    /// The client went away.
    Canceled,
    /// Our own fault: descriptors, ports.
    Local,
}

impl Attempt {
    /// All endings, in index order.
    pub const ALL: [Attempt; 7] = [
        Attempt::Answered,
        Attempt::ConnectFailed,
        Attempt::Reset,
        Attempt::TimedOut,
        Attempt::Protocol,
        Attempt::Canceled,
        Attempt::Local,
    ];

    /// The label value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Attempt::Answered => "answered",
            Attempt::ConnectFailed => "connect_failed",
            Attempt::Reset => "reset",
            Attempt::TimedOut => "timed_out",
            Attempt::Protocol => "protocol_error",
            Attempt::Canceled => "canceled",
            Attempt::Local => "local_error",
        }
    }
}

/// What became of a wish to try a request again at another endpoint of its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It was sent again.
    Sent,
    /// The budget did not allow it.
    OverBudget,
}

impl Retry {
    /// Both, in index order.
    pub const ALL: [Retry; 2] = [Retry::Sent, Retry::OverBudget];

    /// The label value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Retry::Sent => "sent",
            Retry::OverBudget => "over_budget",
        }
    }
}

/// The nine standard methods; anything else is `_OTHER`.
const METHODS: [&str; 10] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "_OTHER",
];

fn method_index(method: &Method) -> usize {
    METHODS
        .iter()
        .position(|known| *known == method.as_str())
        .unwrap_or(METHODS.len() - 1)
}

/// Statuses 100 to 599, one cell each; allocated for a method when it is first seen.
type StatusRow = Box<[Cell; 500]>;

/// One worker's cells for one version in one role.
#[derive(Debug, Default)]
pub struct Shard {
    requests: [OnceLock<StatusRow>; 10],
    outcomes: [Cell; 3],
    assigned: [Cell; 3],
    attempts: [Cell; 7],
    retries: [Cell; 2],
    rescued: Cell,
    grpc: [Cell; 17],
    in_flight: Cell,
    duration: HistogramCells,
    first_byte: HistogramCells,
}

impl Shard {
    /// A request was assigned here.
    pub fn assign(&self, reason: AssignReason) {
        self.assigned[reason as usize].inc();
    }

    /// Requests this worker has assigned here so far.
    pub fn assigned_total(&self) -> u64 {
        self.assigned.iter().map(Cell::get).sum()
    }

    /// Requests this worker has in flight here.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.get()
    }

    /// A request starts to be served by this version.
    pub fn enter(&self) {
        self.in_flight.inc();
    }

    /// A request is no longer served by this version (the reverse of [`Shard::enter`]).
    pub fn leave(&self) {
        self.in_flight.dec();
    }

    /// The verdict of the first attempt of a request assigned here.
    pub fn judge(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].inc();
    }

    /// One attempt on an endpoint of this version ended.
    pub fn attempt(&self, attempt: Attempt) {
        self.attempts[attempt as usize].inc();
    }

    /// A request is tried again at another endpoint of this version, or would be.
    pub fn retry(&self, retry: Retry) {
        self.retries[retry as usize].inc();
    }

    /// A request assigned here was saved by the stable version.
    pub fn rescue(&self) {
        self.rescued.inc();
    }

    /// The response this version answered with began after `took`.
    pub fn first_byte(&self, took: Duration) {
        self.first_byte.observe(took);
    }

    /// A gRPC call that this version served ended with `code`; a code that nobody knows is `UNKNOWN`.
    pub fn answered_grpc(&self, code: u32) {
        let known = usize::try_from(code).ok().and_then(|code| self.grpc.get(code));
        known.unwrap_or(&self.grpc[2]).inc();
    }

    /// The client has seen a response by this version end.
    pub fn answered(&self, method: &Method, status: StatusCode, took: Duration) {
        let row = self.requests[method_index(method)]
            .get_or_init(|| Box::new(std::array::from_fn(|_| Cell::default())));
        let index = usize::from(status.as_u16().clamp(100, 599)) - 100;
        row[index].inc();
        self.duration.observe(took);
    }
}

/// Everything counted about one version in one role, over all workers.
#[derive(Debug)]
pub struct VersionMetrics {
    /// Whose numbers these are.
    pub key: VersionKey,
    shards: Box<[CachePadded<Shard>]>,
}

/// A merged reading.
#[derive(Debug, Clone, Default)]
pub struct VersionSnapshot {
    /// (method, status, responses), only what was seen.
    pub requests: Vec<(&'static str, u16, u64)>,
    /// By [`Outcome`] index.
    pub outcomes: [u64; 3],
    /// By [`AssignReason`] index.
    pub assigned: [u64; 3],
    /// By [`Attempt`] index.
    pub attempts: [u64; 7],
    /// By [`Retry`] index.
    pub retries: [u64; 2],
    /// Requests assigned here and saved by stable.
    pub rescued: u64,
    /// gRPC calls by their code; all 0 for a version that has never served one.
    pub grpc: [u64; 17],
    /// Requests being served right now.
    pub in_flight: u64,
    /// Head received to body sent.
    pub duration: HistogramSnapshot,
    /// Head received to response head.
    pub first_byte: HistogramSnapshot,
}

impl VersionMetrics {
    /// Zeroed cells for `workers` writers.
    pub fn new(key: VersionKey, workers: usize) -> VersionMetrics {
        VersionMetrics {
            key,
            shards: (0..workers.max(1)).map(|_| CachePadded::default()).collect(),
        }
    }

    /// The cells of one worker, which alone writes them.
    pub fn shard(&self, worker: usize) -> &Shard {
        let shard: &CachePadded<Shard> = part_of(&self.shards, worker);
        shard
    }

    /// Requests assigned here for this reason, over all workers.
    pub fn assigned(&self, reason: AssignReason) -> u64 {
        let one = |shard: &CachePadded<Shard>| shard.assigned[reason as usize].get();
        self.shards.iter().map(one).sum()
    }

    /// Requests being served right now, over all workers.
    pub fn in_flight(&self) -> u64 {
        // A worker's gauge may be read between another's writes; the sum is never negative in the end.
        self.shards
            .iter()
            .fold(0u64, |sum, shard| sum.wrapping_add(shard.in_flight.get()))
    }

    /// Merges all workers.
    pub fn snapshot(&self) -> VersionSnapshot {
        let mut merged = VersionSnapshot {
            in_flight: self.in_flight(),
            ..VersionSnapshot::default()
        };
        // Most versions see one or two methods.
        let mut table: [Option<Box<[u64; 500]>>; METHODS.len()] = Default::default();
        for shard in &self.shards {
            for (row, cells) in table.iter_mut().zip(&shard.requests) {
                if let Some(cells) = cells.get() {
                    let row = row.get_or_insert_with(|| Box::new([0; 500]));
                    for (sum, cell) in row.iter_mut().zip(cells.iter()) {
                        *sum += cell.get();
                    }
                }
            }
            let add = |sums: &mut [u64], cells: &[Cell]| {
                for (sum, cell) in sums.iter_mut().zip(cells) {
                    *sum += cell.get();
                }
            };
            add(&mut merged.outcomes, &shard.outcomes);
            add(&mut merged.assigned, &shard.assigned);
            add(&mut merged.attempts, &shard.attempts);
            add(&mut merged.grpc, &shard.grpc);
            add(&mut merged.retries, &shard.retries);
            merged.rescued += shard.rescued.get();
            shard.duration.add_to(&mut merged.duration);
            shard.first_byte.add_to(&mut merged.first_byte);
        }
        for (method, row) in METHODS.iter().zip(&table) {
            for (status, count) in (100u16..).zip(row.iter().flat_map(|row| row.iter())) {
                if *count > 0 {
                    merged.requests.push((method, status, *count));
                }
            }
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(workers: usize) -> VersionMetrics {
        VersionMetrics::new(
            VersionKey {
                service: ServiceName::new("s").unwrap(),
                role: Role::Canary,
                version: VersionName::new("v1").unwrap(),
            },
            workers,
        )
    }

    #[test]
    fn shards_merge_to_what_all_workers_wrote() {
        let metrics = metrics(3);
        std::thread::scope(|scope| {
            for worker in 0..3 {
                let shard = metrics.shard(worker);
                scope.spawn(move || {
                    for _ in 0..1000 {
                        shard.assign(AssignReason::Weight);
                        shard.enter();
                        shard.judge(Outcome::Failed);
                        shard.answered(&Method::GET, StatusCode::BAD_GATEWAY, Duration::from_millis(2));
                        shard.leave();
                    }
                });
            }
        });
        let snapshot = metrics.snapshot();
        assert_eq!(snapshot.requests, vec![("GET", 502, 3000)]);
        assert_eq!(
            (snapshot.assigned[0], snapshot.outcomes[1], snapshot.in_flight),
            (3000, 3000, 0)
        );
        assert_eq!(snapshot.duration.count(), 3000);
    }

    #[test]
    fn a_method_nobody_knows_is_other_and_an_odd_status_is_clamped() {
        let metrics = metrics(1);
        let method = Method::from_bytes(b"BREW").unwrap();
        metrics
            .shard(0)
            .answered(&method, StatusCode::from_u16(999).unwrap(), Duration::ZERO);
        assert_eq!(metrics.snapshot().requests, vec![("_OTHER", 599, 1)]);
    }
}
