//! What one generation of the split has shown about one role: the only numbers an analysis is made of.
//!
//! Every generation has fresh cells, so a window never straddles a weight change: a request counts where and when it was
//! assigned. Forced requests do not come here. There are two readings of the same cells: [`Evidence::counts`] is every
//! request, [`Evidence::units`] is what the judge counts: each request, or under stickiness each key once; and slow is also
//! what is still in flight and has been for too long.
//!
//! A good request costs one relaxed store, and two more that keep its age while a version is on trial.

use super::{
    Cell, Outcome,
    flight::{Flight, Slot, slot_of},
    keys::Keys,
    part_of,
};
use crate::stats::{BUCKETS, MOST_CUTS, UnitCounts, bucket_of, quantile};
use crossbeam_utils::CachePadded;
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// What counts as one piece of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// The request.
    Request,
    /// The sticky key with this hash: its first request at this weight, and its first failure and 4xx answer in the rollout.
    Key(u64),
}

/// A request that has begun and must end here.
#[derive(Debug)]
#[must_use = "the request would stay in flight for ever"]
pub struct Ticket {
    began: Slot,
    key: Option<u64>,
    /// Whether it is a unit, and not one more request of a key that has been counted.
    counts: bool,
    /// Whether its age is kept.
    aging: bool,
    /// Whether its time has been recorded already: a stream whose head has come.
    timed: bool,
}

#[derive(Debug)]
struct Histogram([Cell; BUCKETS]);

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram(std::array::from_fn(|_| Cell::default()))
    }
}

impl Histogram {
    fn add_to(&self, sums: &mut [u64]) {
        for (sum, cell) in sums.iter_mut().zip(&self.0) {
            *sum += cell.get();
        }
    }
}

/// Requests that ended after they had been slow in flight.
#[derive(Debug, Default)]
struct Late {
    latency: Histogram,
    canceled: Cell,
}

#[derive(Debug, Default)]
struct EvidenceShard {
    latency: Histogram,
    failed: Cell,
    canceled: Cell,
    /// Failures that are a unit's first.
    failed_units: Cell,
    /// 4xx answers that are a unit's first.
    client_errors: Cell,
    flight: Flight,
    /// By how many cuts had passed.
    late: OnceLock<Box<[Late; MOST_CUTS]>>,
    /// Requests of keys that have been counted.
    others: OnceLock<Box<Histogram>>,
}

/// The evidence of one role in one generation.
#[derive(Debug)]
pub struct Evidence {
    shards: Box<[CachePadded<EvidenceShard>]>,
    /// Requests in flight that began before these have been counted as slow; never later than the one before it.
    cuts: [AtomicU64; MOST_CUTS],
    trial: Option<Trial>,
    alarmed: AtomicBool,
}

/// What a version on trial, and stable beside it, need more.
#[derive(Debug, Clone, Default)]
pub struct Trial {
    /// Under stickiness: the keys.
    pub keys: Option<Keys>,
    /// Who is told at once of a failure.
    pub alarm: Option<Arc<Notify>>,
}

/// A merged reading of all requests; readings subtract to windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceCounts {
    /// Requests whose first attempt the version answered well.
    pub ok: u64,
    /// Requests whose first attempt failed by the version's fault.
    pub failed: u64,
    /// Requests whose client went away first; no evidence either way.
    pub canceled: u64,
    /// Answered or failed requests by duration: bucket i holds (1e-4·1.05^(i−1), 1e-4·1.05^i] seconds.
    pub latency: Vec<u64>,
}

impl Default for EvidenceCounts {
    fn default() -> Self {
        EvidenceCounts {
            ok: 0,
            failed: 0,
            canceled: 0,
            latency: vec![0; BUCKETS],
        }
    }
}

impl Evidence {
    /// Zeroed cells for `workers` writers, of a version beside which none is on trial.
    pub fn new(workers: usize) -> Evidence {
        Evidence {
            shards: (0..workers.max(1)).map(|_| CachePadded::default()).collect(),
            cuts: Default::default(),
            trial: None,
            alarmed: AtomicBool::new(false),
        }
    }

    /// The same during a trial.
    pub fn on_trial(workers: usize, trial: Trial) -> Evidence {
        Evidence {
            trial: Some(trial),
            ..Evidence::new(workers)
        }
    }

    /// Whether keys are told apart here.
    pub fn is_keyed(&self) -> bool {
        self.keys().is_some()
    }

    fn keys(&self) -> Option<&Keys> {
        self.trial.as_ref()?.keys.as_ref()
    }

    fn shard(&self, worker: usize) -> &EvidenceShard {
        let shard: &CachePadded<EvidenceShard> = part_of(&self.shards, worker);
        shard
    }

    /// A request that was assigned here begins, `since_epoch` after the process did. Only worker `worker` calls this with
    /// its index.
    pub fn begin(&self, worker: usize, unit: Unit, since_epoch: Duration) -> Ticket {
        let (mut counts, mut key) = (true, None);
        if let Unit::Key(hash) = unit
            && let Some(keys) = self.keys()
        {
            (counts, key) = (keys.begins(hash), Some(hash));
        }
        let mut ticket = Ticket {
            began: 0,
            key,
            counts,
            aging: counts && self.trial.is_some(),
            timed: false,
        };
        if ticket.aging {
            ticket.began = slot_of(since_epoch);
            self.shard(worker).flight.enter(ticket.began);
        }
        ticket
    }

    /// A response came that is judged by its head (`text/event-stream`, gRPC, an upgrade), `took` after its request: what may
    /// still follow is a failure.
    pub fn answered(&self, worker: usize, ticket: &mut Ticket, took: Duration) {
        if !std::mem::replace(&mut ticket.timed, true) {
            self.time(self.shard(worker), ticket, took);
        }
    }

    /// The version answered 4xx, or with a gRPC code that is the client's fault, and that is no failure; the request's end is
    /// still to come.
    pub fn client_error(&self, worker: usize, ticket: &Ticket) {
        let first = match (ticket.key, self.keys()) {
            (Some(hash), Some(keys)) => keys.client_error(hash),
            (_, _) => true,
        };
        if first {
            self.shard(worker).client_errors.inc();
        }
    }

    /// The request's verdict, and how long it took to the end of its response.
    pub fn end(&self, worker: usize, mut ticket: Ticket, outcome: Outcome, took: Duration) {
        let shard = self.shard(worker);
        match outcome {
            Outcome::Ok => self.answered(worker, &mut ticket, took),
            Outcome::Failed => {
                self.answered(worker, &mut ticket, took);
                self.fail(shard, &ticket);
            }
            Outcome::Canceled if ticket.timed => {}
            Outcome::Canceled => {
                shard.canceled.inc();
                if ticket.aging {
                    shard.flight.leave(ticket.began);
                    // It was slow when it was counted as slow, whatever its client did then.
                    if let Some(late) = self.late(shard, &ticket) {
                        late.canceled.inc_after_all_before();
                    }
                }
            }
        }
    }

    /// A request that began and ended in the same moment: what tests and benches write.
    pub fn record(&self, worker: usize, outcome: Outcome, took: Duration) {
        let ticket = Ticket {
            began: 0,
            key: None,
            counts: true,
            aging: false,
            timed: false,
        };
        self.end(worker, ticket, outcome, took);
    }

    fn time(&self, shard: &EvidenceShard, ticket: &Ticket, took: Duration) {
        let bucket = bucket_of(took);
        if ticket.aging {
            shard.flight.leave(ticket.began);
            if let Some(late) = self.late(shard, ticket) {
                late.latency.0[bucket].inc_after_all_before();
                return;
            }
        } else if !ticket.counts {
            shard.others.get_or_init(Box::default).0[bucket].inc();
            return;
        }
        shard.latency.0[bucket].inc();
    }

    /// Where a request is counted that was in flight when a cut passed its beginning.
    fn late<'a>(&self, shard: &'a EvidenceShard, ticket: &Ticket) -> Option<&'a Late> {
        let passed = |cut: &&AtomicU64| ticket.began < cut.load(Ordering::Acquire);
        let level = self.cuts.iter().take_while(passed).count().checked_sub(1)?;
        Some(&shard.late.get_or_init(Box::default)[level])
    }

    fn fail(&self, shard: &EvidenceShard, ticket: &Ticket) {
        shard.failed.inc_after_all_before();
        let first = match (ticket.key, self.keys()) {
            (Some(hash), Some(keys)) => keys.fails(hash),
            (_, _) => true,
        };
        if first {
            shard.failed_units.inc_after_all_before();
            // Only the first since the judge has looked wakes it.
            if let Some(alarm) = self.trial.as_ref().and_then(|trial| trial.alarm.as_ref())
                && !self.alarmed.swap(true, Ordering::AcqRel)
            {
                alarm.notify_one();
            }
        }
    }

    /// Whether a unit has failed since this was asked last.
    pub fn take_alarm(&self) -> bool {
        self.alarmed.load(Ordering::Relaxed) && self.alarmed.swap(false, Ordering::AcqRel)
    }

    /// From now on units in flight that began before these moments since the process' epoch are slow: one for each
    /// threshold, ascending thresholds, so descending moments. A cut never goes back.
    ///
    /// The reading that counts by it comes some milliseconds later, so that every worker has seen it: a request that ends
    /// meanwhile is then counted by one side only, without a fence on its way.
    pub fn cut(&self, before: &[Option<Duration>]) {
        let mut last = u64::MAX;
        for (cut, before) in self.cuts.iter().zip(before) {
            let Some(before) = before else { return };
            last = last.min(slot_of(*before));
            let next = cut.load(Ordering::Relaxed).max(last);
            cut.store(next, Ordering::Release);
            last = next;
        }
    }

    /// Merges all workers: every request.
    pub fn counts(&self) -> EvidenceCounts {
        let mut counts = EvidenceCounts::default();
        for shard in &self.shards {
            counts.failed += shard.failed.get_with_all_before();
            counts.canceled += shard.canceled.get();
            shard.latency.add_to(&mut counts.latency);
            for late in shard.late.get().iter().flat_map(|late| late.iter()) {
                late.latency.add_to(&mut counts.latency);
            }
            if let Some(others) = shard.others.get() {
                others.add_to(&mut counts.latency);
            }
        }
        counts.ok = counts.latency.iter().sum::<u64>().saturating_sub(counts.failed);
        counts
    }

    /// Merges all workers: the units. `earlier` is the reading before this one of the same generation.
    pub fn units(&self, earlier: &UnitCounts) -> UnitCounts {
        let mut counts = UnitCounts::default();
        // The last one is for everything in flight.
        let mut cuts = [Slot::MAX; MOST_CUTS + 1];
        for (cut, now) in cuts.iter_mut().zip(&self.cuts) {
            *cut = now.load(Ordering::Acquire);
        }
        let mut overdue = [0; MOST_CUTS];
        let mut still = true;
        counts.latency[0] = vec![0; BUCKETS];
        for shard in &self.shards {
            counts.failed += shard.failed_units.get_with_all_before();
            counts.client_errors += shard.client_errors.get();
            // Late ends before what is in flight: a request on its way from there to here is missed, never counted twice.
            if let Some(late) = shard.late.get() {
                for (level, late) in late.iter().enumerate() {
                    let sums = &mut counts.latency[level + 1];
                    sums.resize(BUCKETS, 0);
                    let mut ended = late.canceled.get_with_all_before();
                    for (sum, cell) in sums.iter_mut().zip(&late.latency.0) {
                        let count = cell.get_with_all_before();
                        (*sum, ended) = (*sum + count, ended + count);
                    }
                    overdue[..=level].iter_mut().for_each(|overdue| *overdue += ended);
                }
            }
            // Only where a trial is on is the age of requests kept.
            if self.trial.is_some() {
                match shard.flight.since_before(&cuts) {
                    Some(found) => {
                        for (overdue, found) in overdue.iter_mut().zip(found) {
                            *overdue += found;
                        }
                        counts.in_flight += found[MOST_CUTS];
                    }
                    None => still = false,
                }
            }
            shard.latency.add_to(&mut counts.latency[0]);
        }
        // What was counted once stays counted: a reading in the middle of a move may miss one.
        counts.overdue = earlier.overdue;
        if still {
            for (kept, overdue) in counts.overdue.iter_mut().zip(overdue) {
                *kept = overdue.max(*kept);
            }
        }
        counts
    }
}

impl EvidenceCounts {
    /// Requests that say something about the version.
    pub fn decided(&self) -> u64 {
        self.ok + self.failed
    }

    /// What has come since an earlier reading of the same generation.
    #[must_use]
    pub fn since(&self, earlier: &EvidenceCounts) -> EvidenceCounts {
        EvidenceCounts {
            ok: self.ok.saturating_sub(earlier.ok),
            failed: self.failed.saturating_sub(earlier.failed),
            canceled: self.canceled.saturating_sub(earlier.canceled),
            latency: self
                .latency
                .iter()
                .zip(&earlier.latency)
                .map(|(now, then)| now.saturating_sub(*then))
                .collect(),
        }
    }

    /// Both readings together (for a window over several generations).
    #[must_use]
    pub fn plus(&self, other: &EvidenceCounts) -> EvidenceCounts {
        EvidenceCounts {
            ok: self.ok + other.ok,
            failed: self.failed + other.failed,
            canceled: self.canceled + other.canceled,
            latency: self
                .latency
                .iter()
                .zip(&other.latency)
                .map(|(a, b)| a + b)
                .collect(),
        }
    }

    /// The upper edge in seconds of the bucket that holds quantile `q` in (0, 1); none without data.
    pub fn latency_quantile(&self, q: f64) -> Option<f64> {
        quantile(&self.latency, q)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const MS: Duration = Duration::from_millis(5);

    #[test]
    fn windows_are_differences_and_canceled_requests_have_no_latency() {
        let evidence = Evidence::new(2);
        evidence.record(0, Outcome::Ok, Duration::from_millis(10));
        let before = evidence.counts();
        evidence.record(1, Outcome::Failed, Duration::from_millis(200));
        evidence.record(1, Outcome::Canceled, secs(9));
        let window = evidence.counts().since(&before);
        assert_eq!(
            (window.ok, window.failed, window.canceled, window.decided()),
            (0, 1, 1, 1)
        );
        assert_eq!(window.latency.iter().sum::<u64>(), 1);
        let p50 = window.latency_quantile(0.5).unwrap();
        assert!((0.19..=0.211).contains(&p50), "{p50}");
    }

    #[test]
    fn a_quantile_lies_within_five_percent() {
        let evidence = Evidence::new(1);
        for millis in 1..=1000 {
            evidence.record(0, Outcome::Ok, Duration::from_millis(millis));
        }
        for (q, want) in [(0.5, 0.5), (0.9, 0.9), (0.99, 0.99)] {
            let got = evidence.counts().latency_quantile(q).unwrap();
            assert!(got >= want * 0.999 && got <= want * 1.051, "{q}: {got}");
        }
    }

    #[test]
    fn a_request_that_hangs_is_slow_once_at_its_cut_and_never_again() {
        let evidence = Evidence::on_trial(2, Trial::default());
        let hangs = evidence.begin(0, Unit::Request, secs(10));
        let leaves = evidence.begin(1, Unit::Request, secs(10));
        let quick = evidence.begin(1, Unit::Request, secs(10));
        evidence.end(1, quick, Outcome::Ok, MS);
        let none = UnitCounts::default();
        let first = evidence.units(&none);
        assert_eq!((first.overdue, first.ended(), first.in_flight), ([0; 4], 1, 2));
        evidence.cut(&[Some(secs(11)), None]);
        let second = evidence.units(&first);
        assert_eq!(second.since(&first).overdue, [2, 0, 0, 0]);
        evidence.cut(&[Some(secs(12)), Some(secs(11))]);
        evidence.end(1, leaves, Outcome::Canceled, secs(2));
        evidence.end(0, hangs, Outcome::Failed, secs(3));
        let third = evidence.units(&second);
        let tick = third.since(&second);
        // Two thresholds had passed when both ended; the first had counted them before.
        assert_eq!(tick.overdue, [0, 2, 0, 0]);
        assert_eq!((tick.latency[2].iter().sum::<u64>(), tick.failed), (1, 1));
        assert_eq!((tick.latency[0].iter().sum::<u64>(), third.in_flight), (0, 0));
        let all = evidence.counts();
        assert_eq!((all.ok, all.failed, all.canceled), (1, 1, 1));
    }

    #[test]
    fn a_cut_never_goes_back() {
        let evidence = Evidence::on_trial(1, Trial::default());
        let ticket = evidence.begin(0, Unit::Request, secs(10));
        evidence.cut(&[Some(secs(11))]);
        evidence.cut(&[Some(secs(5)), Some(secs(20))]);
        let seen = evidence.units(&UnitCounts::default());
        assert_eq!(
            seen.overdue,
            [1, 1, 0, 0],
            "the second is not later than the first"
        );
        evidence.end(0, ticket, Outcome::Ok, secs(1));
        assert_eq!(evidence.units(&seen).since(&seen).overdue, [0; 4]);
    }

    #[test]
    fn a_key_is_one_unit_however_often_it_comes_and_fails_once() {
        let trial = Trial {
            keys: Some(Keys::default()),
            alarm: None,
        };
        let evidence = Evidence::on_trial(1, trial);
        for (key, outcome) in [
            (1, Outcome::Ok),
            (1, Outcome::Failed),
            (1, Outcome::Failed),
            (2, Outcome::Failed),
            (2, Outcome::Ok),
            (3, Outcome::Ok),
        ] {
            let ticket = evidence.begin(0, Unit::Key(key), secs(1));
            evidence.end(0, ticket, outcome, MS);
        }
        let ticket = evidence.begin(0, Unit::Request, secs(1));
        evidence.end(0, ticket, Outcome::Ok, MS);
        let units = evidence.units(&UnitCounts::default());
        assert_eq!((units.ended(), units.failed), (4, 2));
        let all = evidence.counts();
        assert_eq!((all.decided(), all.failed), (7, 3));
    }

    #[test]
    fn a_4xx_answer_is_counted_beside_the_end_and_once_for_each_key() {
        let answered = |evidence: &Evidence, unit: Unit| {
            let ticket = evidence.begin(0, unit, secs(1));
            evidence.client_error(0, &ticket);
            evidence.end(0, ticket, Outcome::Ok, MS);
        };
        let by_request = Evidence::on_trial(2, Trial::default());
        let by_key = Evidence::on_trial(
            2,
            Trial {
                keys: Some(Keys::default()),
                alarm: None,
            },
        );
        for evidence in [&by_request, &by_key] {
            for key in [1, 1, 2, 1] {
                answered(evidence, Unit::Key(key));
            }
            evidence.record(1, Outcome::Failed, MS);
        }
        let units = |evidence: &Evidence| {
            let units = evidence.units(&UnitCounts::default());
            assert!(evidence.units(&units).since(&units).is_empty());
            (units.ended(), units.client_errors, units.failed)
        };
        assert_eq!((units(&by_request), units(&by_key)), ((5, 4, 1), (3, 2, 1)));
        let all = by_request.counts();
        assert_eq!((all.ok, all.failed), (4, 1), "a 4xx answer is no failure");
    }

    #[test]
    fn a_stream_counts_at_its_head_and_may_fail_later() {
        let evidence = Evidence::on_trial(1, Trial::default());
        let mut ticket = evidence.begin(0, Unit::Request, secs(1));
        evidence.answered(0, &mut ticket, MS);
        let open = evidence.units(&UnitCounts::default());
        assert_eq!((open.ended(), open.failed, open.in_flight), (1, 0, 0));
        evidence.end(0, ticket, Outcome::Failed, secs(60));
        let broken = evidence.units(&open).since(&open);
        assert_eq!((broken.ended(), broken.failed), (0, 1));
    }

    #[tokio::test]
    async fn a_failure_wakes_the_judge_once_until_it_has_looked() {
        let alarm = Arc::new(Notify::new());
        let trial = Trial {
            keys: None,
            alarm: Some(Arc::clone(&alarm)),
        };
        let evidence = Evidence::on_trial(1, trial);
        evidence.record(0, Outcome::Ok, MS);
        assert!(!evidence.take_alarm());
        for _ in 0..3 {
            evidence.record(0, Outcome::Failed, MS);
        }
        alarm.notified().await;
        assert!(evidence.take_alarm() && !evidence.take_alarm());
    }
}
