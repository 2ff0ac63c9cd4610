//! Analyses: starts the runs that the saved state asks for, measures when it is time, tells the rollout how they end.
//!
//! The counting is `analysis::Run`'s. Our own counters are read on the spot; other providers are asked in a task of their
//! own, and a run that ended in the meantime ignores the answer.

use super::{
    AnalysisStatus,
    engine::{Ask, By, Engine, Recorded},
    ledger::{Fact, RunRecord},
    managed::Managed,
    providers::{Answer, External, Reply, serin},
    ranks::Ranks,
    report, samples,
    store::RunRow,
};
use crate::{
    analysis::{
        ArgValue, Args, Conditions, JudgeConfig, JudgeReport, MetricSpec, Outcome, Provider, Run, RunPhase,
        SerinQuery, Template,
    },
    model::{ServiceName, Timestamp, VersionName},
    rollout::{AnalysisKind, Event, RunId},
    upstream::Services,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc};
use tokio::task::JoinHandle;
use tracing::info;

/// An analysis that runs.
#[derive(Debug)]
pub(crate) struct ActiveRun {
    pub(super) id: RunId,
    pub(super) kind: AnalysisKind,
    pub(super) canary: VersionName,
    pub(super) rollout: String,
    pub(super) run: Run,
    args: Args,
    metrics: Vec<ActiveMetric>,
    /// Whether the rollout knows that every metric has decided something.
    evidence_told: bool,
}

#[derive(Debug)]
struct ActiveMetric {
    conditions: Conditions,
    source: Source,
    /// Where the next window begins.
    from: Option<serin::Reading>,
    task: Option<JoinHandle<()>>,
    /// What the judge said last.
    judged: Option<JudgeReport>,
    /// The rank test that it is.
    ranks: Option<Ranks>,
}

#[derive(Debug, Clone)]
enum Source {
    Serin(SerinQuery),
    External(External),
    /// Nobody is asked: `judging` speaks by itself.
    Judge,
    /// Sampled over a window: `ranks` sees to it.
    Ranks,
}

/// A run as it is kept: to be shown, and to be gone on with after a restart.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KeptRun {
    pub(super) shown: AnalysisStatus,
    pub(super) run: Run,
}

impl ActiveRun {
    pub(super) fn stop_tasks(&mut self) {
        for metric in &mut self.metrics {
            if let Some(task) = metric.task.take() {
                task.abort();
            }
        }
    }

    /// The metrics that are judges, while they are not complete: their places, names and parameters.
    pub(super) fn judges(&self) -> impl Iterator<Item = (usize, &str, &JudgeConfig)> {
        let open = !self.run.phase.is_completed();
        let metrics = self.run.specs.iter().zip(&self.run.metrics).enumerate();
        metrics.filter_map(move |(index, (spec, state))| match &spec.provider {
            Provider::Judge(config) if open && !state.phase.is_completed() => {
                Some((index, spec.name.as_str(), config))
            }
            Provider::Judge(_)
            | Provider::Serin(_)
            | Provider::Prometheus(_)
            | Provider::Web(_)
            | Provider::MannWhitney(_) => None,
        })
    }

    /// When a measurement or a sample of it is due.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let metrics = self.metrics.iter().zip(&self.run.metrics);
        let samples = metrics.filter_map(|(metric, state)| {
            let ranks = metric.ranks.as_ref().filter(|_| state.in_flight)?;
            ranks.next()
        });
        samples.chain(self.run.next_due()).min()
    }

    /// The rank test of a metric, while it takes samples.
    pub(super) fn ranks(&mut self, index: usize) -> Option<&mut Ranks> {
        let goes_on = self.run.metrics.get(index).is_some_and(|state| state.in_flight);
        let metric = self.metrics.get_mut(index).filter(|_| goes_on)?;
        metric.ranks.as_mut()
    }

    /// Whether somebody outside has not answered yet.
    pub(super) fn is_asking(&self, index: usize) -> bool {
        self.metrics
            .get(index)
            .is_some_and(|metric| metric.task.is_some())
    }

    pub(super) fn asks(&mut self, index: usize, task: JoinHandle<()>) {
        if let Some(metric) = self.metrics.get_mut(index) {
            metric.task = Some(task);
        }
    }

    /// Without the secrets among its arguments.
    pub(super) fn redacted(&self, text: &str) -> String {
        self.args.redact(text)
    }

    /// What the judge of a metric says.
    pub(super) fn judged(&self, index: usize) -> Option<&JudgeReport> {
        self.metrics.get(index)?.judged.as_ref()
    }

    pub(super) fn show_judge(&mut self, index: usize, report: JudgeReport) {
        if let Some(metric) = self.metrics.get_mut(index) {
            metric.judged = Some(report);
        }
    }

    /// What all judges say now.
    pub(super) fn show_judges(&mut self, shown: &BTreeMap<String, JudgeReport>) {
        let open: Vec<(usize, String)> = self
            .judges()
            .map(|(index, name, _)| (index, name.to_owned()))
            .collect();
        for (index, name) in open {
            if let Some(report) = shown.get(&name) {
                self.show_judge(index, report.clone());
            }
        }
    }

    /// A measurement has come about: counted, said, and taken into the run.
    #[allow(
        clippy::too_many_arguments,
        reason = "what a measurement is made of, and whom to tell"
    )]
    pub(super) fn finish(
        &mut self,
        service: &ServiceName,
        index: usize,
        outcome: Outcome,
        value: Option<String>,
        message: Option<String>,
        now: Timestamp,
        services: &Services,
    ) {
        let metric = self.run.specs[index].name.clone();
        info!(
            service = %service,
            run = %self.id,
            metric = %metric,
            outcome = outcome.as_str(),
            value = value.as_deref().unwrap_or(""),
            "`{service}`: `{metric}` measured {}{}",
            outcome.as_str(),
            message.as_deref().map_or(String::new(), |message| format!(": {message}"))
        );
        let labels = [service.as_str(), metric.as_str(), outcome.as_str()];
        services
            .metrics()
            .control
            .measurements
            .with_label_values(&labels)
            .inc();
        // An answer for a run that has ended changes nothing.
        let _ = self.run.finish(index, outcome, value, message, now);
    }
}

/// What the run is made of, its arguments filled in.
fn prepare(
    record: &RunRecord,
    templates: &[Template],
    service: &ServiceName,
    stable: Option<&VersionName>,
) -> Result<(Vec<MetricSpec>, Vec<ActiveMetric>, Args), String> {
    let stable = stable.map_or("", VersionName::as_str);
    let mut args = Args::built_in(service.as_str(), record.canary.as_str(), stable);
    for given in &record.analysis.args {
        let value = args.substitute(&given.value).map_err(|error| error.to_string())?;
        args.set(given.name.as_str(), ArgValue::plain(value));
    }
    let mut specs = Vec::new();
    for reference in &record.analysis.templates {
        let name = &reference.template_name;
        let template = templates
            .iter()
            .find(|template| template.name == *name)
            .ok_or_else(|| format!("there is no template `{name}`"))?;
        for arg in &template.args {
            if let Some(value) = &arg.value {
                args.set_default(arg.name.as_str(), ArgValue::plain(value.as_str()));
            } else if let Some(file) = &arg.secret_file {
                let secret = std::fs::read_to_string(file)
                    .map_err(|error| format!("argument `{}`: {file}: {error}", arg.name))?;
                args.set_default(arg.name.as_str(), ArgValue::secret(secret.trim()));
            } else if let Some(variable) = &arg.secret_env {
                let secret = std::env::var(variable).map_err(|_| {
                    format!(
                        "argument `{}`: the environment variable `{variable}` is not set",
                        arg.name
                    )
                })?;
                args.set_default(arg.name.as_str(), ArgValue::secret(secret.trim()));
            }
        }
        specs.extend(template.metrics.iter().cloned());
    }
    let mut metrics = Vec::with_capacity(specs.len());
    for spec in &mut specs {
        if spec.is_judge() && record.kind != AnalysisKind::Background {
            // Once is enough for a step; beside the steps it goes on to their end.
            spec.count = Some(1);
        }
        metrics.push(activate(spec, &args).map_err(|error| format!("metric `{}`: {error}", spec.name))?);
    }
    Ok((specs, metrics, args))
}

fn activate(spec: &mut MetricSpec, args: &Args) -> Result<ActiveMetric, String> {
    let fill = |text: &mut Option<String>| -> Result<(), String> {
        if let Some(condition) = text {
            *condition = args.substitute(condition).map_err(|error| error.to_string())?;
        }
        Ok(())
    };
    fill(&mut spec.success_condition)?;
    fill(&mut spec.failure_condition)?;
    let conditions = Conditions::compile(
        spec.success_condition.as_deref(),
        spec.failure_condition.as_deref(),
    )
    .map_err(|error| error.to_string())?;
    let mut ranks = None;
    let source = match &spec.provider {
        Provider::Serin(query) => Source::Serin(query.clone()),
        Provider::Prometheus(query) => Source::External(External::prometheus(query, args)?),
        Provider::Web(query) => Source::External(External::web(query, args)?),
        Provider::Judge(_) => Source::Judge,
        Provider::MannWhitney(test) => {
            ranks = Some(Ranks::prepare(test, args)?);
            Source::Ranks
        }
    };
    Ok(ActiveMetric {
        conditions,
        source,
        from: None,
        task: None,
        judged: None,
        ranks,
    })
}

impl Engine {
    /// Starts and stops runs until those that go on are those that should.
    pub(super) fn reconcile_runs(&mut self, name: &ServiceName, now: Timestamp) {
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        let stop: Vec<u64> = managed
            .runs
            .keys()
            .filter(|run| !managed.saved.runs.contains_key(run))
            .copied()
            .collect();
        let start: Vec<(u64, RunRecord)> = managed
            .saved
            .runs
            .iter()
            .filter(|(run, _)| !managed.runs.contains_key(run))
            .map(|(run, record)| (*run, record.clone()))
            .collect();
        for run in stop {
            let Some(managed) = self.managed.get_mut(name) else {
                return;
            };
            if let Some(mut active) = managed.runs.remove(&run) {
                active.stop_tasks();
                active.run.terminate(now);
                managed.remember_run(report::analysis(&active));
                self.keep_run(name, &active);
            }
        }
        for (run, record) in start {
            self.start_run(name, RunId(run), &record, now);
        }
    }

    fn start_run(&mut self, name: &ServiceName, id: RunId, record: &RunRecord, now: Timestamp) {
        let downtime = self.downtime;
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        // Without it the run begins anew, which is safe.
        let kept = managed.kept_runs.remove(&id.0);
        let stable = managed.saved.state.stable.clone();
        let rollout = managed
            .saved
            .rollout
            .as_ref()
            .map_or(String::new(), |rollout| rollout.id.clone());
        let prepared = prepare(record, &managed.saved.templates, name, stable.as_ref());
        let (run, metrics, args) = match prepared {
            Ok((specs, metrics, args)) => {
                let again = kept.filter(|kept| kept.shown.rollout == rollout && kept.run.specs == specs);
                let run = match again {
                    Some(mut kept) if !kept.run.phase.is_completed() => {
                        kept.run.restarted(now);
                        // Delays and durations count served time only.
                        kept.run.started = kept.run.started.plus(downtime);
                        kept.run
                    }
                    Some(_) | None => Run::start(specs, now),
                };
                (run, metrics, args)
            }
            Err(message) => (Run::invalid(message, now), Vec::new(), Args::default()),
        };
        let active = ActiveRun {
            id,
            kind: record.kind,
            canary: record.canary.clone(),
            rollout,
            run,
            args,
            metrics,
            evidence_told: false,
        };
        info!(service = %name, run = %id, "`{name}`: {} analysis run {id} of {} began", active.kind.title(), active.canary);
        self.keep_run(name, &active);
        if let Some(managed) = self.managed.get_mut(name) {
            managed.runs.insert(id.0, active);
        }
    }

    fn keep_run(&mut self, name: &ServiceName, active: &ActiveRun) {
        self.store_run(name, run_row(active));
    }

    fn store_run(&mut self, name: &ServiceName, row: Option<RunRow>) {
        let Some(row) = row else { return };
        if let Err(error) = self.store.save_run(name.as_str(), &row) {
            self.store_failed(&error);
        }
    }

    /// Measures what is due, and reports what has ended.
    pub(super) fn observe(&mut self, name: &ServiceName, now: Timestamp) {
        let Some(managed) = self.managed.get(name) else {
            return;
        };
        let runs: Vec<u64> = managed.runs.keys().copied().collect();
        for run in runs {
            self.measure_due(name, run, now);
            self.conclude(name, run, now);
        }
    }

    fn measure_due(&mut self, name: &ServiceName, id: u64, now: Timestamp) {
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        let Some(mut active) = managed.runs.remove(&id) else {
            return;
        };
        let mut measured = false;
        for index in 0..active.metrics.len() {
            if active.run.due(index).is_none_or(|due| due > now) || active.run.begin(index, now).is_err() {
                continue;
            }
            match active.metrics[index].source.clone() {
                Source::Serin(query) => {
                    let (from, to) = managed.window(&active, index, &query, now);
                    let reply = serin::measure(&query, &from, &to);
                    let metric = &mut active.metrics[index];
                    // A window without enough data goes on from where it began.
                    metric.from = Some(if reply.answer == Answer::TooFew { from } else { to });
                    judge(name, &mut active, index, Ok(reply), now, &self.services);
                    measured = true;
                }
                Source::Judge => {}
                Source::Ranks => {
                    let reading = samples::read(&managed.live.cell.load_full(), now);
                    if let Some(ranks) = active.ranks(index) {
                        ranks.begin(reading);
                    }
                }
                Source::External(external) => {
                    let Some(inbox) = self.inbox.upgrade() else {
                        continue;
                    };
                    let (service, outside) = (name.clone(), Arc::clone(&self.outside));
                    active.metrics[index].task = Some(tokio::spawn(async move {
                        let result = external.ask(outside).await;
                        // The engine is gone only when the process is stopping.
                        let _ = inbox.send(Ask::Measured {
                            service,
                            run: id,
                            metric: index,
                            result,
                        });
                    }));
                }
            }
        }
        let (sampled, ended) = self.sample_ranks(name, &mut active, now);
        if measured || ended {
            self.heard(name, active, now);
        } else {
            self.put_back(name, active);
            if sampled {
                self.publish_status(name);
            }
        }
    }

    fn put_back(&mut self, name: &ServiceName, active: ActiveRun) {
        if let Some(managed) = self.managed.get_mut(name) {
            managed.runs.insert(active.id.0, active);
        }
    }

    /// A run has learned something: first the rollout acts on it, then it is stored, for a disk may take its time. What ends a run
    /// and lets the rollout go on is shown when it is in force: after a crash it would not have been.
    pub(super) fn heard(&mut self, name: &ServiceName, active: ActiveRun, now: Timestamp) {
        let (id, row) = (active.id.0, run_row(&active));
        self.put_back(name, active);
        self.conclude(name, id, now);
        self.store_run(name, row);
        if !self.is_raising(name) {
            self.publish_status(name);
        }
    }

    /// An external provider has answered.
    pub(super) fn measured(
        &mut self,
        name: &ServiceName,
        id: u64,
        index: usize,
        result: Result<Reply, String>,
    ) {
        let now = self.now();
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        let Some(mut active) = managed.runs.remove(&id) else {
            return;
        };
        if let Some(metric) = active.metrics.get_mut(index) {
            metric.task = None;
            if metric.ranks.is_some() {
                if !self.ranks_answered(name, &mut active, index, result, now) {
                    // Nothing is decided yet, and samples begin anew after a restart: there is nothing to store.
                    self.put_back(name, active);
                    self.publish_status(name);
                    return;
                }
                self.heard(name, active, now);
                return;
            }
            judge(name, &mut active, index, result, now, &self.services);
        }
        self.heard(name, active, now);
    }

    /// Tells the rollout what it waits for.
    fn conclude(&mut self, name: &ServiceName, id: u64, now: Timestamp) {
        let Some(managed) = self.managed.get(name) else {
            return;
        };
        let Some(active) = managed.runs.get(&id) else {
            return;
        };
        // A verdict against the canary waits for nothing: a step that cannot be stored must not keep it from acting.
        let bad = match active.run.phase {
            RunPhase::Failed | RunPhase::Error => true,
            RunPhase::Successful | RunPhase::Running | RunPhase::Pending | RunPhase::Inconclusive => false,
        };
        if managed.quiet_until > now && !bad {
            return;
        }
        let run = active.id;
        if active.run.phase.is_completed() {
            let numbers = json!({"analysis": report::analysis(active), "evidence": managed.numbers()});
            let event = Event::AnalysisFinished {
                run,
                phase: active.run.phase,
                on_error: active.run.on_error(),
                message: active.run.message.clone().unwrap_or_default(),
            };
            let shown = report::analysis(active);
            let facts = vec![Fact::Moved { by: event }];
            let by = By {
                numbers: Some(numbers),
                ..By::default()
            };
            match self.record(name, facts, by) {
                // When it comes into force it is looked at which runs go on.
                Ok(Recorded::OnItsWay | Recorded::NotYet) => {}
                Ok(Recorded::InForce) => {
                    if let Some(managed) = self.managed.get_mut(name) {
                        managed.runs.remove(&id);
                        managed.remember_run(shown);
                    }
                    self.publish_status(name);
                }
                Err(_) => {
                    if let Some(managed) = self.managed.get_mut(name) {
                        managed.quiet_until = now.plus(std::time::Duration::from_secs(1));
                    }
                }
            }
        } else if active.kind == AnalysisKind::Background && !active.evidence_told && active.run.has_decided()
        {
            let told = self.happened(name, Event::EvidenceGathered { run }, None);
            let active = self
                .managed
                .get_mut(name)
                .and_then(|managed| managed.runs.get_mut(&id));
            if let Some(active) = active {
                active.evidence_told = told;
            }
        }
    }
}

/// A run as it is stored.
fn run_row(active: &ActiveRun) -> Option<RunRow> {
    let kept = KeptRun {
        shown: report::analysis(active),
        run: active.run.clone(),
    };
    Some(RunRow {
        run: active.id.0,
        rollout: active.rollout.clone(),
        started: active.run.started,
        json: serde_json::to_string(&kept).ok()?,
    })
}

impl Managed {
    /// From where to where a measurement of our own counters reaches.
    fn window(
        &self,
        active: &ActiveRun,
        index: usize,
        query: &SerinQuery,
        now: Timestamp,
    ) -> (serin::Reading, serin::Reading) {
        let split = self.live.cell.load_full();
        let to = samples::read(&split, now);
        let beginning = serin::Reading::beginning(split.generation, self.published);
        let from = match query.window {
            Some(window) => {
                let since = now.minus(window.as_duration());
                self.with_samples(|samples| samples.start_of(split.generation, since).cloned())
            }
            None => active.metrics[index]
                .from
                .clone()
                .filter(|from| from.generation == split.generation),
        };
        (from.unwrap_or(beginning), to)
    }
}

/// What an answer means, counted.
fn judge(
    name: &ServiceName,
    active: &mut ActiveRun,
    index: usize,
    result: Result<Reply, String>,
    now: Timestamp,
    services: &Services,
) {
    let conditions = &active.metrics[index].conditions;
    let (outcome, value, message) = match result {
        Err(why) => (Outcome::Error, None, Some(why)),
        Ok(Reply { answer, note }) => {
            let (outcome, why) = match &answer {
                Answer::TooFew => (Outcome::NoData, None),
                Answer::Number(number) => conditions.judge_number(*number),
                Answer::Vector(values) => conditions.judge_vector(values),
                Answer::Json(json) => conditions.judge_json(json),
            };
            let message = match (why, note) {
                (Some(why), Some(note)) => Some(format!("{why} ({note})")),
                (one, other) => one.or(other),
            };
            (outcome, answer.shown(), message)
        }
    };
    let redact = |text: Option<String>| text.map(|text| active.args.redact(&text));
    let (value, message) = (redact(value), redact(message));
    active.finish(name, index, outcome, value, message, now, services);
}
