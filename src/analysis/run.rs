//! How measurements add up: counters to a metric's phase, metrics to the run's.
//!
//! Pure: whoever measures calls [`Run::begin`] and [`Run::finish`] and waits until [`Run::next_due`]. The rule numbers in
//! comments (A1 to A9, T1 to T5, P1 to P7) are those of Argo Rollouts' behaviour as the case files restate it.

use super::{
    outcome::{Measurement, Outcome, RunPhase},
    spec::{MetricSpec, OnError, OnNoData, Provider},
};
use crate::model::{Span, Timestamp};
use serde::{Deserialize, Serialize};
use std::{cmp::Reverse, time::Duration};

/// After an Error the next attempt comes this much later, whatever the interval (T3).
const AFTER_ERROR: Duration = Duration::from_secs(10);
/// How often a window without enough requests is looked at again, where the interval is longer.
const NO_DATA_POLL: Duration = Duration::from_secs(5);
/// How many measurements are kept for people; counters keep all (T5).
const KEPT: usize = 10;

/// One analysis run: a pure state machine over its metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// When it began.
    pub started: Timestamp,
    /// When it came to an end; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// Where it stands.
    pub phase: RunPhase,
    /// Why, where it is not simply Successful or Running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Somebody told it to stop before it was done.
    #[serde(default)]
    pub stopped: bool,
    /// What is measured.
    pub specs: Vec<MetricSpec>,
    /// How far that has come, in the same order.
    pub metrics: Vec<MetricState>,
}

/// How far one metric has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricState {
    /// Where it stands.
    pub phase: RunPhase,
    /// Finished measurements that were not errors.
    pub count: u32,
    /// Of these, successful.
    pub successful: u32,
    /// Of these, failed.
    pub failed: u32,
    /// Of these, inconclusive.
    pub inconclusive: u32,
    /// Measurements that went wrong.
    pub error: u32,
    /// Errors since the last measurement that was none.
    pub consecutive_error: u32,
    /// Successes since the last measurement that was none.
    pub consecutive_success: u32,
    /// Since when there has been too little data to say anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_since: Option<Timestamp>,
    /// A measurement is in flight: the last of `measurements`.
    #[serde(default)]
    pub in_flight: bool,
    /// The last ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measurements: Vec<Measurement>,
}

/// A measurement that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// The run has no such metric.
    #[error("there is no metric `{0}` in this run")]
    Unknown(String),
    /// The metric or the whole run had come to an end.
    #[error("metric `{0}` is already complete")]
    Completed(String),
    /// One measurement of a metric at a time.
    #[error("metric `{0}` already has a measurement in flight")]
    InFlight(String),
}

impl Run {
    /// A run that begins now. The specs are taken as checked by [`super::validate_all`].
    pub fn start(specs: Vec<MetricSpec>, now: Timestamp) -> Run {
        let metrics = specs.iter().map(|_| MetricState::default()).collect();
        let mut run = Run {
            started: now,
            finished: None,
            phase: RunPhase::Running,
            message: None,
            stopped: false,
            specs,
            metrics,
        };
        run.assess(now);
        run
    }

    /// A run that cannot begin, because of its arguments or specs: Error, hence an abort (P7).
    pub fn invalid(message: String, now: Timestamp) -> Run {
        Run {
            started: now,
            finished: Some(now),
            phase: RunPhase::Error,
            message: Some(message),
            stopped: false,
            specs: Vec::new(),
            metrics: Vec::new(),
        }
    }

    /// When the next measurement of any metric is to begin; `None` when none is to.
    pub fn next_due(&self) -> Option<Timestamp> {
        (0..self.metrics.len()).filter_map(|index| self.due(index)).min()
    }

    /// When metric `index` is to be measured next; `None` when it is complete or being measured.
    pub fn due(&self, index: usize) -> Option<Timestamp> {
        let (spec, state) = (self.specs.get(index)?, self.metrics.get(index)?);
        // The judge is not asked: it speaks when it knows enough.
        if self.phase.is_completed() || state.phase.is_completed() || state.in_flight || spec.is_judge() {
            return None;
        }
        let interval = spec.interval.map_or(Duration::ZERO, Span::as_duration);
        let Some(last) = state.measurements.last() else {
            let delay = spec.initial_delay.map_or(Duration::ZERO, Span::as_duration);
            return Some(self.started.plus(delay));
        };
        let wait = match last.outcome {
            Some(Outcome::Error) => AFTER_ERROR,
            Some(Outcome::NoData) if interval.is_zero() => NO_DATA_POLL,
            Some(Outcome::NoData) => interval.min(NO_DATA_POLL),
            Some(Outcome::Successful | Outcome::Failed | Outcome::Inconclusive) | None => interval,
        };
        Some(last.finished.unwrap_or(last.started).plus(wait))
    }

    /// A measurement of metric `index` begins and is in flight from now on.
    pub fn begin(&mut self, index: usize, now: Timestamp) -> Result<(), Ignored> {
        self.open(index)?;
        let state = &mut self.metrics[index];
        if state.in_flight {
            return Err(Ignored::InFlight(self.specs[index].name.clone()));
        }
        // A window that had too little data goes on: the same measurement, from its own beginning.
        match state.measurements.last_mut() {
            Some(last) if last.outcome == Some(Outcome::NoData) && state.waiting_since.is_some() => {
                last.outcome = None;
                last.finished = None;
            }
            Some(_) | None => state.measurements.push(Measurement {
                started: now,
                finished: None,
                outcome: None,
                value: None,
                message: None,
            }),
        }
        let surplus = state.measurements.len().saturating_sub(KEPT);
        state.measurements.drain(..surplus);
        state.in_flight = true;
        self.assess(now);
        Ok(())
    }

    /// The measurement of metric `index` has ended (and began now, if it had not). `value` is what people see.
    pub fn finish(
        &mut self,
        index: usize,
        outcome: Outcome,
        value: Option<String>,
        message: Option<String>,
        now: Timestamp,
    ) -> Result<(), Ignored> {
        self.open(index)?;
        if !self.metrics[index].in_flight {
            self.begin(index, now)?;
        }
        let outcome = self.resolve_no_data(index, outcome, now);
        let state = &mut self.metrics[index];
        state.in_flight = false;
        if let Some(last) = state.measurements.last_mut() {
            last.finished = Some(now);
            last.outcome = Some(outcome);
            last.value = value;
            last.message = message;
        }
        state.count_in(outcome);
        self.assess(now);
        Ok(())
    }

    /// What is said of the measurement of metric `index` while it is in flight.
    pub fn note(&mut self, index: usize, message: String) {
        let state = self.metrics.get_mut(index).filter(|state| state.in_flight);
        if let Some(last) = state.and_then(|state| state.measurements.last_mut()) {
            last.message = Some(message);
        }
    }

    /// The run is told to stop: measurements in flight end as Inconclusive, the phase is the worst so far (P4).
    pub fn terminate(&mut self, now: Timestamp) {
        if !self.phase.is_completed() {
            self.stopped = true;
            self.assess(now);
        }
    }

    /// Serin was down: what was in flight is measured again, and windows begin anew.
    pub fn restarted(&mut self, now: Timestamp) {
        for state in &mut self.metrics {
            if state.in_flight || state.waiting_since.is_some() {
                state.measurements.pop();
            }
            state.in_flight = false;
            state.waiting_since = None;
        }
        self.assess(now);
    }

    /// Whether every metric with a say has made a real decision (Successful or Failed, not merely "no data").
    pub fn has_decided(&self) -> bool {
        let mut say = self.with_a_say().peekable();
        say.peek().is_some() && say.all(|(_, state)| state.successful + state.failed > 0)
    }

    /// What an Error of this run does to the rollout: `abort` as soon as one metric that caused it says so.
    pub fn on_error(&self) -> OnError {
        let mut causes = self
            .with_a_say()
            .filter(|(_, state)| state.phase == RunPhase::Error)
            .peekable();
        if causes.peek().is_some() && causes.all(|(spec, _)| spec.on_error() == OnError::Pause) {
            OnError::Pause
        } else {
            OnError::Abort
        }
    }

    fn with_a_say(&self) -> impl Iterator<Item = (&MetricSpec, &MetricState)> {
        self.specs
            .iter()
            .zip(&self.metrics)
            .filter(|(spec, _)| !spec.dry_run)
    }

    /// Refuses measurements of what is complete or unknown (A9).
    fn open(&self, index: usize) -> Result<(), Ignored> {
        let (Some(spec), Some(state)) = (self.specs.get(index), self.metrics.get(index)) else {
            return Err(Ignored::Unknown(format!("#{index}")));
        };
        if self.phase.is_completed() || state.phase.is_completed() {
            return Err(Ignored::Completed(spec.name.clone()));
        }
        Ok(())
    }

    /// "No data" stays that until the wait is over; then the operator has said what it means.
    fn resolve_no_data(&mut self, index: usize, outcome: Outcome, now: Timestamp) -> Outcome {
        let (spec, state) = (&self.specs[index], &mut self.metrics[index]);
        if outcome != Outcome::NoData {
            state.waiting_since = None;
            return outcome;
        }
        let timeout = match &spec.provider {
            Provider::Serin(query) => query.no_data_timeout.as_duration(),
            Provider::Prometheus(_) | Provider::Web(_) | Provider::Judge(_) | Provider::MannWhitney(_) => {
                Duration::ZERO
            }
        };
        let began = state.measurements.last().map_or(now, |last| last.started);
        let since = *state.waiting_since.get_or_insert(began);
        if now.since(since) < timeout {
            return Outcome::NoData;
        }
        state.waiting_since = None;
        match spec.on_no_data {
            OnNoData::Inconclusive => Outcome::Inconclusive,
            OnNoData::Pass => Outcome::Successful,
            OnNoData::Fail => Outcome::Failed,
        }
    }

    /// Brings all phases up to date with the counters.
    fn assess(&mut self, now: Timestamp) {
        if self.phase.is_completed() {
            return;
        }
        self.assess_metrics(now);
        let decided = |(_, state): &(&MetricSpec, &MetricState)| {
            state.phase.is_completed() && state.phase != RunPhase::Successful
        };
        // P2: told to stop, or a metric with a say has ended badly.
        let terminating = self.stopped || self.with_a_say().any(|pair| decided(&pair));
        if terminating {
            self.end_measurements(now);
        }
        let complete = self.metrics.iter().all(|state| state.phase.is_completed());
        if !terminating && !complete {
            self.phase = RunPhase::Running;
            return;
        }
        // P3 and P4: the worst; the first metric that reached it gives the message. Nothing measured is Successful.
        let measured = self
            .with_a_say()
            .filter(|(_, state)| !state.measurements.is_empty());
        let worst = measured.max_by_key(|(_, state)| (state.phase, Reverse(state.count == 0)));
        let (phase, message) = match worst {
            Some((spec, state)) => (state.phase, state.complaint(spec)),
            None => (RunPhase::Successful, None),
        };
        self.phase = phase;
        self.message = message.or_else(|| self.stopped.then(|| "stopped before it was complete".to_owned()));
        self.finished = Some(now);
    }

    fn assess_metrics(&mut self, now: Timestamp) {
        for (spec, state) in self.specs.iter().zip(&mut self.metrics) {
            if !state.phase.is_completed() {
                state.phase = state.assess(spec, self.started, now);
            }
        }
    }

    /// No new measurements; those in flight are stopped, and idle metrics within their limits have succeeded.
    fn end_measurements(&mut self, now: Timestamp) {
        for (spec, state) in self.specs.iter().zip(&mut self.metrics) {
            if state.phase.is_completed() {
                continue;
            }
            if state.measurements.is_empty() {
                if spec.is_judge() {
                    state.phase = RunPhase::Inconclusive;
                }
                continue;
            }
            if state.in_flight {
                state.in_flight = false;
                if let Some(last) = state.measurements.last_mut() {
                    last.finished = Some(now);
                    last.outcome = Some(Outcome::Inconclusive);
                    last.message = Some("stopped in flight".to_owned());
                }
                state.count_in(Outcome::Inconclusive);
            }
            state.phase = match state.assess(spec, self.started, now) {
                RunPhase::Running | RunPhase::Pending => RunPhase::Successful,
                phase @ (RunPhase::Successful
                | RunPhase::Inconclusive
                | RunPhase::Error
                | RunPhase::Failed) => phase,
            };
        }
    }
}

/// Whether `count` of something is beyond a limit; a negative limit is none.
fn exceeds(count: u32, limit: i32) -> bool {
    u32::try_from(limit).is_ok_and(|limit| count > limit)
}

impl MetricState {
    /// A1 and A3.
    fn count_in(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::NoData => return,
            Outcome::Error => {
                self.error += 1;
                self.consecutive_error += 1;
                self.consecutive_success = 0;
                return;
            }
            Outcome::Successful => self.successful += 1,
            Outcome::Failed => self.failed += 1,
            Outcome::Inconclusive => self.inconclusive += 1,
        }
        self.count += 1;
        self.consecutive_error = 0;
        if outcome == Outcome::Successful {
            self.consecutive_success += 1;
        } else {
            self.consecutive_success = 0;
        }
    }

    /// A2 to A9, for a metric that is not complete yet.
    fn assess(&self, spec: &MetricSpec, started: Timestamp, now: Timestamp) -> RunPhase {
        if self.measurements.is_empty() {
            return if spec.is_judge() {
                RunPhase::Running
            } else {
                RunPhase::Pending
            };
        }
        if self.in_flight {
            return RunPhase::Running;
        }
        // A6: of several, the last in the order Failed, Inconclusive, Error.
        if exceeds(self.consecutive_error, spec.consecutive_error_limit) {
            return RunPhase::Error;
        }
        if exceeds(self.inconclusive, spec.inconclusive_limit) {
            return RunPhase::Inconclusive;
        }
        if exceeds(self.failed, spec.failure_limit) {
            return RunPhase::Failed;
        }
        let wanted = u32::try_from(spec.consecutive_success_limit).unwrap_or(0);
        if wanted > 0 && self.consecutive_success >= wanted {
            return RunPhase::Successful;
        }
        let last_is_final = self
            .measurements
            .last()
            .is_some_and(|last| !matches!(last.outcome, Some(Outcome::Error | Outcome::NoData) | None));
        let over = spec.duration.is_some_and(|duration| {
            let delay = spec.initial_delay.map_or(Duration::ZERO, Span::as_duration);
            last_is_final && now.since(started.plus(delay)) >= duration.as_duration()
        });
        let counted = match spec.duration {
            Some(_) if spec.count.is_none() => false,
            Some(_) | None => spec.effective_count().is_some_and(|count| self.count >= count),
        };
        match (over || counted, wanted > 0, spec.failure_limit >= 0) {
            (false, _, _) => RunPhase::Running,
            (true, true, true) => RunPhase::Inconclusive,
            (true, true, false) => RunPhase::Failed,
            (true, false, _) => RunPhase::Successful,
        }
    }

    /// P6: why it ended badly, in the words that users search for.
    fn complaint(&self, spec: &MetricSpec) -> Option<String> {
        let why = match self.phase {
            RunPhase::Failed if exceeds(self.failed, spec.failure_limit) => {
                format!("failed ({}) > failureLimit ({})", self.failed, spec.failure_limit)
            }
            RunPhase::Inconclusive if exceeds(self.inconclusive, spec.inconclusive_limit) => format!(
                "inconclusive ({}) > inconclusiveLimit ({})",
                self.inconclusive, spec.inconclusive_limit
            ),
            RunPhase::Error => format!(
                "consecutiveErrors ({}) > consecutiveErrorLimit ({})",
                self.consecutive_error, spec.consecutive_error_limit
            ),
            RunPhase::Failed | RunPhase::Inconclusive => format!(
                "consecutiveSuccesses ({}) < consecutiveSuccessLimit ({})",
                self.consecutive_success, spec.consecutive_success_limit
            ),
            RunPhase::Successful | RunPhase::Running | RunPhase::Pending => return None,
        };
        let said = self.measurements.last().and_then(|last| last.message.as_deref());
        let said = said.map_or(String::new(), |said| format!(": {said}"));
        Some(format!(
            "Metric \"{}\" assessed {} due to {why}{said}",
            spec.name, self.phase
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::{PrometheusQuery, SerinMetric, SerinQuery};

    fn metric(change: impl FnOnce(&mut MetricSpec)) -> MetricSpec {
        let mut spec = MetricSpec::named("m", Provider::Serin(SerinQuery::of(SerinMetric::ErrorRate)));
        change(&mut spec);
        spec
    }

    const fn at(seconds: u64) -> Timestamp {
        Timestamp::from_secs(seconds)
    }

    fn finish(run: &mut Run, outcome: Outcome, seconds: u64) {
        run.finish(0, outcome, None, None, at(seconds)).unwrap();
    }

    #[test]
    fn the_first_measurement_waits_for_the_initial_delay_and_the_next_for_the_interval() {
        let spec = metric(|spec| {
            spec.initial_delay = Some(Span::secs(20));
            spec.interval = Some(Span::secs(60));
        });
        let mut run = Run::start(vec![spec], at(100));
        assert_eq!(run.next_due(), Some(at(120)));
        run.begin(0, at(120)).unwrap();
        assert_eq!(run.next_due(), None);
        assert_eq!(run.begin(0, at(121)), Err(Ignored::InFlight("m".into())));
        finish(&mut run, Outcome::Successful, 127);
        assert_eq!(run.next_due(), Some(at(187)));
        finish(&mut run, Outcome::Error, 190);
        assert_eq!(
            run.next_due(),
            Some(at(200)),
            "after an error ten seconds, whatever the interval"
        );
    }

    #[test]
    fn the_phase_says_why_in_the_words_users_search_for() {
        let mut run = Run::start(
            vec![metric(|spec| {
                spec.interval = Some(Span::secs(60));
                spec.failure_limit = 2;
            })],
            at(0),
        );
        for second in 1..=2 {
            finish(&mut run, Outcome::Failed, second);
            assert_eq!(run.phase, RunPhase::Running);
        }
        run.finish(
            0,
            Outcome::Failed,
            Some("0.07".into()),
            Some("it said".into()),
            at(3),
        )
        .unwrap();
        let message = "Metric \"m\" assessed Failed due to failed (3) > failureLimit (2): it said";
        assert_eq!(
            (run.phase, run.message.as_deref()),
            (RunPhase::Failed, Some(message))
        );
        assert_eq!(run.finished, Some(at(3)));
    }

    #[test]
    fn consecutive_successes_end_a_metric_or_its_count_does() {
        let spec = |limit| {
            metric(|spec| {
                spec.interval = Some(Span::secs(1));
                spec.count = Some(3);
                spec.failure_limit = limit;
                spec.consecutive_success_limit = 2;
            })
        };
        for (limit, outcome) in [(1, RunPhase::Inconclusive), (-1, RunPhase::Failed)] {
            let mut run = Run::start(vec![spec(limit)], at(0));
            finish(&mut run, Outcome::Successful, 1);
            finish(&mut run, Outcome::Failed, 2);
            finish(&mut run, Outcome::Successful, 3);
            assert_eq!(run.phase, outcome, "failureLimit {limit}");
        }
        let mut run = Run::start(vec![spec(1)], at(0));
        finish(&mut run, Outcome::Successful, 1);
        finish(&mut run, Outcome::Successful, 2);
        assert_eq!(run.phase, RunPhase::Successful);
    }

    #[test]
    fn a_duration_ends_with_the_first_real_measurement_at_or_after_it() {
        let spec = metric(|spec| {
            spec.interval = Some(Span::secs(60));
            spec.duration = Some(Span::secs(120));
        });
        let mut run = Run::start(vec![spec], at(0));
        finish(&mut run, Outcome::Successful, 0);
        finish(&mut run, Outcome::Successful, 60);
        finish(&mut run, Outcome::Error, 120);
        assert_eq!(run.phase, RunPhase::Running);
        finish(&mut run, Outcome::Successful, 130);
        assert_eq!(run.phase, RunPhase::Successful);
    }

    #[test]
    fn no_data_grows_the_window_and_then_is_inconclusive() {
        let spec = |on_no_data| {
            metric(|spec| {
                spec.interval = Some(Span::secs(60));
                spec.on_no_data = on_no_data;
            })
        };
        for (on_no_data, outcome) in [
            (OnNoData::Inconclusive, RunPhase::Inconclusive),
            (OnNoData::Fail, RunPhase::Failed),
            (OnNoData::Pass, RunPhase::Running),
        ] {
            let mut run = Run::start(vec![spec(on_no_data)], at(0));
            run.begin(0, at(0)).unwrap();
            finish(&mut run, Outcome::NoData, 1);
            assert_eq!((run.metrics[0].count, run.next_due()), (0, Some(at(6))));
            run.begin(0, at(6)).unwrap();
            assert_eq!(
                run.metrics[0].measurements[0].started,
                at(0),
                "the window goes on"
            );
            finish(&mut run, Outcome::NoData, 599);
            assert!(!run.has_decided());
            finish(&mut run, Outcome::NoData, 600);
            assert_eq!(run.phase, outcome);
            assert_eq!(run.metrics[0].measurements.len(), 1);
        }
    }

    #[test]
    fn data_after_silence_counts_as_usual() {
        let mut run = Run::start(vec![metric(|spec| spec.interval = Some(Span::secs(60)))], at(0));
        finish(&mut run, Outcome::NoData, 1);
        finish(&mut run, Outcome::Successful, 700);
        assert_eq!((run.metrics[0].count, run.metrics[0].waiting_since), (1, None));
        assert!(run.has_decided());
        assert_eq!(run.next_due(), Some(at(760)));
    }

    #[test]
    fn after_a_restart_what_was_in_flight_is_measured_again() {
        let mut run = Run::start(vec![metric(|spec| spec.interval = Some(Span::secs(60)))], at(0));
        run.begin(0, at(0)).unwrap();
        run.restarted(at(500));
        assert_eq!((run.next_due(), run.metrics[0].count), (Some(at(0)), 0));
        run.begin(0, at(500)).unwrap();
        assert_eq!(run.metrics[0].measurements[0].started, at(500));
    }

    #[test]
    fn a_run_without_metrics_that_decide_gives_no_evidence() {
        let dry = metric(|spec| spec.dry_run = true);
        let mut run = Run::start(vec![dry], at(0));
        finish(&mut run, Outcome::Failed, 1);
        assert_eq!((run.phase, run.has_decided()), (RunPhase::Successful, false));
    }

    #[test]
    fn ten_measurements_are_kept_and_all_are_counted() {
        let mut run = Run::start(vec![metric(|spec| spec.interval = Some(Span::secs(1)))], at(0));
        for second in 0..25 {
            finish(&mut run, Outcome::Successful, second);
        }
        assert_eq!(
            (run.metrics[0].measurements.len(), run.metrics[0].count),
            (10, 25)
        );
    }

    #[test]
    fn an_error_pauses_only_when_every_metric_to_blame_says_so() {
        let prometheus = |name: &str| {
            let mut spec = metric(|spec| spec.consecutive_error_limit = 0);
            spec.name = name.to_owned();
            spec.provider = Provider::Prometheus(PrometheusQuery {
                address: "http://p".into(),
                query: "up".into(),
                timeout: None,
                headers: std::collections::BTreeMap::new(),
                ca: None,
                insecure: false,
            });
            spec
        };
        let mut run = Run::start(
            vec![prometheus("a"), metric(|spec| spec.name = "own".into())],
            at(0),
        );
        finish(&mut run, Outcome::Error, 1);
        assert_eq!((run.phase, run.on_error()), (RunPhase::Error, OnError::Pause));
        let own = metric(|spec| spec.consecutive_error_limit = 0);
        let mut run = Run::start(vec![own, prometheus("a")], at(0));
        finish(&mut run, Outcome::Error, 1);
        assert_eq!(run.on_error(), OnError::Abort);
    }

    #[test]
    fn a_judge_runs_until_it_knows_enough_and_beside_the_steps_to_their_end() {
        let judge = |count| {
            let mut spec = MetricSpec::named("j", Provider::Judge(crate::analysis::JudgeConfig::default()));
            spec.count = count;
            spec
        };
        let mut step = Run::start(vec![judge(Some(1))], at(0));
        assert_eq!(
            (step.phase, step.metrics[0].phase),
            (RunPhase::Running, RunPhase::Running)
        );
        assert_eq!(step.next_due(), None);
        finish(&mut step, Outcome::Successful, 9);
        assert_eq!(step.phase, RunPhase::Successful);

        let mut beside = Run::start(vec![judge(None)], at(0));
        assert!(!beside.has_decided());
        finish(&mut beside, Outcome::Successful, 9);
        assert!(beside.has_decided() && beside.phase == RunPhase::Running);
        beside.terminate(at(20));
        assert_eq!(beside.phase, RunPhase::Successful);

        let mut bad = Run::start(vec![judge(None)], at(0));
        bad.finish(0, Outcome::Failed, None, Some("ROLL BACK".into()), at(3))
            .unwrap();
        let message = "Metric \"j\" assessed Failed due to failed (1) > failureLimit (0): ROLL BACK";
        assert_eq!(
            (bad.phase, bad.message.as_deref()),
            (RunPhase::Failed, Some(message))
        );

        let mut stopped = Run::start(vec![judge(None)], at(0));
        stopped.terminate(at(1));
        assert_eq!(
            (stopped.phase, stopped.metrics[0].phase),
            (RunPhase::Successful, RunPhase::Inconclusive)
        );
    }

    #[test]
    fn a_stored_run_reads_back_the_same() {
        let mut run = Run::start(vec![metric(|spec| spec.interval = Some(Span::secs(1)))], at(0));
        finish(&mut run, Outcome::Failed, 5);
        let stored = serde_json::to_string(&run).unwrap();
        assert_eq!(serde_json::from_str::<Run>(&stored).unwrap(), run);
    }
}
