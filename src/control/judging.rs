//! The sequential judge at work: fed from the workers' counters every tenth of a second, and at once when a request of the
//! canary has failed; what it finds out moves the runs that asked for it.
//!
//! A judge belongs to a metric and a trial, not to a run, so that its risk holds for the whole rollout whatever steps refer
//! to it. Requests count in the generation of the split that assigned them, so a tick after a weight change has two parts.
//! What the judge knows is stored every second and gone on with after a restart.

use super::{
    engine::Engine,
    managed::{Managed, TrialId},
    recorder::{Place, Recorder, Whose, unwritten},
    report,
    store::{JudgeRow, RecordPart},
};
use crate::{
    analysis::{Advice, Batch, Judge, JudgeConfig, JudgeReport, Outcome, Piece},
    metrics::AssignReason,
    model::{ServiceName, Timestamp, Weight},
    rollout::{AnalysisKind, Event, RunId},
    split::Split,
    stats::{Baseline, UnitCounts},
    upstream::Target,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tracing::{info, warn};

/// How often the counters are read while somebody judges.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// How often they are read for the latency of stable alone, and how often a service at rest is looked at.
pub(super) const AT_REST: Duration = Duration::from_secs(1);
/// How often what the judges know is stored and shown.
pub(super) const SAVE: Duration = Duration::from_secs(1);
/// From one failed request that is looked at at once to the next: a flood of them must not keep the engine from all else.
pub(super) const SOONEST: Duration = Duration::from_millis(2);
/// A generation that has ended is read for at least this long, and at most so long while it has requests in flight.
const LINGER: Duration = Duration::from_secs(10);
const GIVE_UP: Duration = Duration::from_secs(600);
/// Sticky keys that have failed, and as many that were answered 4xx, that a restart remembers; each one beyond may be counted once more.
const KEYS_KEPT: usize = 4000;

/// What the judges of a service say, for everybody who asks; by metric.
pub(crate) type Shown = Arc<Mutex<BTreeMap<String, JudgeReport>>>;

/// The judges of one service, and what they are fed from.
#[derive(Debug)]
pub(super) struct Judging {
    /// Stable's latencies, also while nobody judges.
    baseline: Baseline,
    /// The generations of the split that may still bring verdicts; the one in force is the last.
    feeds: Vec<Feed>,
    seats: BTreeMap<String, Seat>,
    /// Whose thresholds tell which requests in flight are slow.
    leader: Option<String>,
    trial: Option<TrialId>,
    /// As they were stored, until their trial goes on.
    kept: Vec<KeptJudge>,
    ticked: Option<Timestamp>,
    /// What the judges were fed, as far as it is not stored yet.
    parts: Vec<Arc<RecordPart>>,
    /// What had come to the canary when something that counts was last among it.
    came: Came,
    pub(super) shown: Shown,
}

/// How many requests have come to a canary.
#[derive(Debug, Clone, Copy, Default)]
struct Came {
    counted: u64,
    forced: u64,
}

/// One generation of the split.
#[derive(Debug)]
struct Feed {
    generation: u64,
    weight: Weight,
    stable: Arc<Target>,
    canary: Option<Arc<Target>>,
    /// The last reading of both.
    read: (UnitCounts, UnitCounts),
    ended: Option<Timestamp>,
}

/// A judge and the metric that it sits for.
#[derive(Debug)]
struct Seat {
    judge: Judge,
    /// Whether it has been recorded that the evidence of this step suffices.
    proceeded: bool,
    /// Everything that the judge is fed.
    recorder: Recorder,
}

/// A judge as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptJudge {
    metric: String,
    trial: TrialId,
    proceeded: bool,
    judge: Judge,
    failed_keys: Vec<u64>,
    /// Absent: by a Serin that did not watch 4xx answers.
    #[serde(default)]
    client_error_keys: Vec<u64>,
    /// Where its recording goes on; absent: by a Serin that kept none.
    #[serde(default)]
    recorded: Option<Place>,
}

impl Came {
    fn to(canary: &Target) -> Came {
        let of = |reason| canary.metrics.assigned(reason);
        Came {
            counted: of(AssignReason::Weight) + of(AssignReason::Sticky),
            forced: of(AssignReason::Force),
        }
    }
}

impl Feed {
    fn of(split: &Split<Arc<Target>>) -> Feed {
        Feed {
            generation: split.generation,
            weight: split.weight,
            stable: Arc::clone(&split.stable),
            canary: split.canary.clone(),
            read: (UnitCounts::default(), UnitCounts::default()),
            ended: None,
        }
    }

    /// What has come since the last reading.
    fn read(&mut self) -> Batch {
        let next = |target: &Target, last: &mut UnitCounts| {
            let now = target.evidence.units(last);
            let news = now.since(last);
            *last = now;
            news
        };
        Batch {
            weight: self.weight.as_ratio(),
            stable: next(&self.stable, &mut self.read.0),
            canary: match &self.canary {
                Some(canary) => next(canary, &mut self.read.1),
                None => UnitCounts::default(),
            },
        }
    }

    /// From the next reading on, what has been in flight for longer is slow.
    fn cut(&self, now: Duration, slow_after: &[Option<(f64, f64)>]) {
        let before = |of: &dyn Fn(&(f64, f64)) -> f64| -> Vec<Option<Duration>> {
            let one =
                |after: &Option<(f64, f64)>| now.checked_sub(Duration::from_secs_f64(of(after.as_ref()?)));
            slow_after.iter().map(one).collect()
        };
        self.stable.evidence.cut(&before(&|(stable, _)| *stable));
        if let Some(canary) = &self.canary {
            canary.evidence.cut(&before(&|(_, canary)| *canary));
        }
    }

    fn may_bring_more(&self, now: Timestamp) -> bool {
        self.ended.is_none_or(|ended| {
            let passed = now.since(ended);
            let in_flight = self.read.0.in_flight + self.read.1.in_flight > 0;
            passed < LINGER || in_flight && passed < GIVE_UP
        })
    }
}

impl Seat {
    fn new(judge: Judge, now: Timestamp) -> Seat {
        Seat {
            recorder: Recorder::begin(&judge, now),
            judge,
            proceeded: false,
        }
    }

    fn take_in(&mut self, dt: Duration, batches: &[Batch]) {
        self.recorder.tick(&self.judge, dt, batches);
        self.judge.tick(dt.as_secs_f64(), batches);
    }

    fn enter(&mut self, weight: f64, next: f64) {
        self.judge.enter(weight, next);
        self.recorder.entered(&self.judge);
        self.proceeded = false;
    }
}

impl Default for Judging {
    fn default() -> Judging {
        Judging {
            baseline: Judge::empty_baseline(),
            feeds: Vec::new(),
            seats: BTreeMap::new(),
            leader: None,
            trial: None,
            kept: Vec::new(),
            ticked: None,
            parts: Vec::new(),
            came: Came::default(),
            shown: Shown::default(),
        }
    }
}

impl Judging {
    /// What was stored before a restart. What cannot be read begins anew, with its risk.
    pub(super) fn restore(&mut self, name: &ServiceName, rows: &[JudgeRow]) {
        for row in rows {
            match serde_json::from_str(&row.json) {
                Ok(kept) => self.kept.push(kept),
                Err(error) => {
                    warn!(service = %name, metric = %row.metric, %error, "`{name}`: what the judge `{}` knew cannot be read back: it begins anew", row.metric);
                }
            }
        }
    }

    /// Everything there is to store.
    fn rows(&self, name: &ServiceName, [failed, client_errors]: &[Vec<u64>; 2]) -> Vec<JudgeRow> {
        let Some(trial) = &self.trial else {
            return Vec::new();
        };
        let row = |(metric, seat): (&String, &Seat)| {
            let kept = KeptJudge {
                metric: metric.clone(),
                trial: trial.clone(),
                proceeded: seat.proceeded,
                judge: seat.judge.clone(),
                failed_keys: failed.clone(),
                client_error_keys: client_errors.clone(),
                recorded: Some(seat.recorder.place()),
            };
            Some(JudgeRow {
                service: name.to_string(),
                metric: metric.clone(),
                json: serde_json::to_string(&kept).ok()?,
            })
        };
        self.seats.iter().filter_map(row).collect()
    }

    /// What has been recorded since the last time, ready to be stored.
    fn cut_parts(&mut self, name: &ServiceName) {
        let Some(trial) = &self.trial else { return };
        for (metric, seat) in &mut self.seats {
            let whose = Whose {
                service: name,
                trial,
                metric,
            };
            seat.recorder.cut(whose, &seat.judge, &mut self.parts);
        }
    }

    /// The generation in force is the last one that is read.
    pub(super) fn follow(&mut self, split: &Split<Arc<Target>>, now: Timestamp) {
        if split.generation == 0 || self.feeds.last().map(|last| last.generation) == Some(split.generation) {
            return;
        }
        for feed in &mut self.feeds {
            feed.ended.get_or_insert(now);
        }
        self.feeds.push(Feed::of(split));
    }

    /// One tick of everybody.
    fn tick(&mut self, dt: Duration, now: Timestamp, monotonic: Duration) {
        let batches: Vec<Batch> = self.feeds.iter_mut().map(Feed::read).collect();
        let mut stable = vec![0; crate::stats::BUCKETS];
        for batch in &batches {
            batch.stable.add_latency_to(&mut stable);
        }
        let leader = self.leader.clone();
        let by_end = || -> Vec<Batch> { batches.iter().map(Batch::by_their_end).collect() };
        for (metric, seat) in &mut self.seats {
            if Some(metric) == leader.as_ref() {
                seat.take_in(dt, &batches);
                let slow_after = seat.judge.slow_after();
                self.feeds
                    .iter()
                    .for_each(|feed| feed.cut(monotonic, &slow_after));
            } else {
                seat.take_in(dt, &by_end());
            }
        }
        self.baseline.update(dt.as_secs_f64(), &stable);
        self.feeds.retain(|feed| feed.may_bring_more(now));
    }

    /// The judge that sits for a metric, and what it was fed.
    pub(super) fn seat(&mut self, metric: &str) -> Option<(&Judge, &mut Recorder)> {
        let seat = self.seats.get_mut(metric)?;
        Some((&seat.judge, &mut seat.recorder))
    }

    /// Whether there is a decision of which the store may not know what it was made from.
    pub(super) fn has_decided(&self) -> bool {
        self.seats.values().any(|seat| seat.recorder.has_decided())
    }

    /// Whether a request of a canary has failed since this was asked last.
    fn take_alarm(&self) -> bool {
        let canaries = self.feeds.iter().filter_map(|feed| feed.canary.as_ref());
        // All of them are asked, for each is set back.
        canaries.filter(|canary| canary.evidence.take_alarm()).count() > 0
    }

    fn show(&mut self) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.retain(|metric, _| self.seats.contains_key(metric));
        let last = self.feeds.last();
        let came = last
            .and_then(|feed| feed.canary.as_ref())
            .map_or_else(Came::default, |canary| Came::to(canary));
        // Where nothing is shown yet a trial begins: what was forced before is not of it.
        if shown.is_empty() || came.counted != self.came.counted {
            self.came = came;
        }
        let piece = if last.is_some_and(|feed| feed.stable.evidence.is_keyed()) {
            Piece::User
        } else if came.forced > self.came.forced {
            Piece::Unforced
        } else {
            Piece::Request
        };
        for (metric, seat) in &self.seats {
            shown.insert(metric.clone(), seat.judge.report_of(piece));
        }
    }
}

impl Managed {
    /// Whether somebody judges here, or should.
    pub(super) fn is_judging(&self) -> bool {
        !self.judging.seats.is_empty() || self.runs.values().any(|active| active.judges().next().is_some())
    }

    /// Reads what has come since the last time, and asks every judge.
    fn tick_judges(&mut self, now: Timestamp, monotonic: Duration) {
        let split = self.live.cell.load_full();
        self.judging.take_alarm();
        self.seat_judges(&split, now);
        let dt = self
            .judging
            .ticked
            .map_or(Duration::ZERO, |ticked| now.since(ticked));
        self.judging.ticked = Some(now);
        self.judging.tick(dt, now, monotonic);
    }

    /// A seat for each metric that is a judge of a run; a new weight is a new step.
    fn seat_judges(&mut self, split: &Split<Arc<Target>>, now: Timestamp) {
        let trial = self.trial();
        if self.judging.trial.as_ref() != Some(&trial) {
            self.judging.cut_parts(&self.name);
            self.judging.seats.clear();
            (self.judging.leader, self.judging.trial) = (None, Some(trial.clone()));
            self.judging.show();
        }
        let weight = split.weight.as_ratio();
        if split.canary.is_none() || !(weight > 0.0 && weight < 1.0) {
            return;
        }
        let next = self.next_weight(split.weight);
        for seat in self.judging.seats.values_mut() {
            let (current, _) = seat.judge.step();
            if current.total_cmp(&weight).is_ne() {
                seat.enter(weight, next);
            }
        }
        let judges = self.runs.values().flat_map(super::observe::ActiveRun::judges);
        let wanted: Vec<(String, JudgeConfig)> = judges
            .map(|(_, metric, config)| (metric.to_owned(), config.clone()))
            .collect();
        for (metric, config) in wanted {
            let same = |seat: &Seat| *seat.judge.config() == config;
            if self.judging.seats.get(&metric).is_some_and(same) {
                continue;
            }
            // Of a judge that gives way to one with other parameters, too, what it was fed is kept.
            self.judging.cut_parts(&self.name);
            let seat = self.restored(&metric, &config, &trial, (weight, next), now);
            let fresh = || Judge::new(config, weight, next, self.judging.baseline.clone());
            let seat = seat.unwrap_or_else(|| Seat::new(fresh(), now));
            self.judging.leader.get_or_insert_with(|| metric.clone());
            self.judging.seats.insert(metric, seat);
            self.judging.show();
        }
    }

    /// The judge as it was stored, if it is the same trial that goes on.
    fn restored(
        &mut self,
        metric: &str,
        config: &JudgeConfig,
        trial: &TrialId,
        (weight, next): (f64, f64),
        now: Timestamp,
    ) -> Option<Seat> {
        let is_it = |kept: &KeptJudge| {
            kept.metric == metric && kept.trial == *trial && *kept.judge.config() == *config
        };
        let at = self.judging.kept.iter().position(is_it)?;
        let kept = self.judging.kept.swap_remove(at);
        let known = self.known_keys();
        for (keys, kept) in [
            (&known.failed, &kept.failed_keys),
            (&known.client_errors, &kept.client_error_keys),
        ] {
            for key in kept {
                keys.insert(*key);
            }
        }
        let recorder = kept.recorded.map(Recorder::resume);
        let mut seat = Seat {
            recorder: recorder.unwrap_or_else(|| Recorder::begin(&kept.judge, now)),
            judge: kept.judge,
            proceeded: kept.proceeded,
        };
        if seat.judge.step().0.total_cmp(&weight).is_ne() {
            seat.enter(weight, next);
        }
        let name = &self.name;
        info!(service = %name, metric, "`{name}`: the judge `{metric}` goes on with what it knew");
        Some(seat)
    }

    /// What its judges know, and what they were fed as far as that is not in the store.
    pub(super) fn judges_to_store(&mut self) -> (Vec<JudgeRow>, Vec<Arc<RecordPart>>) {
        unwritten(&mut self.judging.parts);
        self.judging.cut_parts(&self.name);
        let parts = self.judging.parts.clone();
        if !self.is_judging() {
            return (Vec::new(), parts);
        }
        let known = self.known_keys.as_ref().filter(|_| self.config.sticky.is_some());
        let keys = known.map_or_else(Default::default, |(_, known)| {
            [&known.failed, &known.client_errors].map(|keys| {
                let mut taken = keys.taken();
                taken.truncate(KEYS_KEPT);
                taken
            })
        });
        (self.judging.rows(&self.name, &keys), parts)
    }

    /// The canary's share after this one, by the plan.
    fn next_weight(&self, now: Weight) -> f64 {
        let step = self.saved.state.rolling().map_or(0, |rolling| rolling.step);
        self.saved.plan.next_weight(step, now).as_ratio()
    }
}

impl Engine {
    /// The regular look at the counters of a service.
    pub(super) fn judge_if_due(&mut self, name: &ServiceName, now: Timestamp) {
        let Some(managed) = self.managed.get(name) else {
            return;
        };
        let waits = if managed.is_judging() {
            Duration::ZERO
        } else {
            AT_REST
        };
        let ticked = managed.judging.ticked;
        if ticked.is_none_or(|ticked| now.since(ticked) >= waits) {
            self.judge(name, now);
        }
    }

    /// A request of some canary has failed: those who judge it look at once.
    pub(super) fn alarmed(&mut self) {
        let now = self.now();
        let alarmed = |managed: &Managed| managed.is_judging() && managed.judging.take_alarm();
        let names: Vec<ServiceName> = self
            .managed
            .values()
            .filter(|managed| alarmed(managed))
            .map(|managed| managed.name.clone())
            .collect();
        for name in &names {
            self.judge(name, now);
        }
    }

    fn judge(&mut self, name: &ServiceName, now: Timestamp) {
        let monotonic = self.clock.monotonic();
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        managed.tick_judges(now, monotonic);
        self.heed_client_errors(name, now);
        let Some(managed) = self.managed.get(name) else {
            return;
        };
        let runs: Vec<u64> = managed.runs.keys().copied().collect();
        for run in runs {
            self.hear(name, run, now);
        }
    }

    /// What the judges say means something to a run.
    fn hear(&mut self, name: &ServiceName, id: u64, now: Timestamp) {
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        let Some(mut active) = managed.runs.remove(&id) else {
            return;
        };
        let beside = active.kind == AnalysisKind::Background;
        let judges: Vec<(usize, String)> = active
            .judges()
            .map(|(index, metric, _)| (index, metric.to_owned()))
            .collect();
        let mut news = Vec::new();
        // Every judge with a say must be content, and there must be one.
        let (mut suffices, mut sentence, mut speaker) = (true, None, None);
        for (index, metric) in judges {
            let Some(seat) = managed.judging.seats.get_mut(&metric) else {
                suffices = false;
                continue;
            };
            let (advice, with_say) = (seat.judge.advice(), !active.run.specs[index].dry_run);
            let outcome = match advice {
                Advice::Rollback => Some(Outcome::Failed),
                Advice::Proceed if !(beside && seat.proceeded) => Some(Outcome::Successful),
                Advice::Proceed | Advice::Hold | Advice::Pause => None,
            };
            seat.proceeded |= advice == Advice::Proceed;
            if with_say && advice == Advice::Proceed {
                sentence.get_or_insert_with(|| seat.judge.report().sentence);
                speaker.get_or_insert_with(|| metric.clone());
            }
            suffices &= !with_say || advice == Advice::Proceed;
            if let Some(outcome) = outcome.filter(|_| !active.run.metrics[index].phase.is_completed()) {
                let report = seat.judge.report();
                seat.recorder.decided(&seat.judge, now);
                news.push((index, outcome, report.sentence.clone()));
                active.show_judge(index, report);
            }
        }
        let told = !news.is_empty();
        for (index, outcome, said) in news {
            active.finish(name, index, outcome, None, Some(said), now, &self.services);
        }
        let run = active.id;
        if told {
            managed.judging.show();
            self.heard(name, active, now);
        } else {
            managed.runs.insert(id, active);
        }
        let waiting = self.step_that_waits(name, now).filter(|_| beside && suffices);
        let mut gone_on = false;
        if let (Some(step), Some(message), Some(metric)) = (waiting, sentence, speaker) {
            let managed = self.managed.get_mut(name);
            if let Some(seat) = managed.and_then(|managed| managed.judging.seats.get_mut(&metric)) {
                seat.recorder.decided(&seat.judge, now);
            }
            gone_on = self.let_go_on(name, run, step, message);
        }
        if told || gone_on {
            self.save_judges_soon();
        }
    }

    /// The step that waits for evidence, if there is one.
    fn step_that_waits(&self, name: &ServiceName, now: Timestamp) -> Option<usize> {
        let managed = self.managed.get(name)?;
        let rolling = managed.saved.state.rolling()?;
        let waits = rolling.waits_for_evidence() && managed.quiet_until <= now && managed.raising.is_none();
        waits.then_some(rolling.step)
    }

    /// The step that waits for evidence has it; whether that could be recorded.
    fn let_go_on(&mut self, name: &ServiceName, run: RunId, step: usize, message: String) -> bool {
        let Some(managed) = self.managed.get(name) else {
            return false;
        };
        let analysis = managed.runs.get(&run.0).map(report::analysis);
        let numbers = json!({"analysis": analysis, "evidence": managed.numbers()});
        let event = Event::EvidenceSuffices { run, step, message };
        self.happened(name, event, Some(numbers))
    }

    /// Stores what every judge knows and was fed, and shows it.
    pub(super) fn save_judges(&mut self) {
        let (mut rows, mut parts) = (Vec::new(), Vec::new());
        for managed in self.managed.values_mut() {
            if managed.is_judging() {
                managed.judging.show();
                let shown = Arc::clone(&managed.judging.shown);
                let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
                for active in managed.runs.values_mut() {
                    active.show_judges(&shown);
                }
            }
            let (of_one, fed) = managed.judges_to_store();
            rows.extend(of_one);
            parts.extend(fed);
        }
        // A store that fails is tried by its own patience.
        if rows.is_empty() && parts.is_empty() || self.store_trouble().is_some() {
            return;
        }
        if let Err(error) = self.store.save_judges(&rows, &parts) {
            self.store_failed(&error);
        }
    }
}
