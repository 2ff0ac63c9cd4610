//! Seeded simulation: random plans, random events, a clock that jumps and a store that loses its tail.
//!
//! After every event the invariants are swept, the effects are performed on a toy world that must agree with the state,
//! and the state must survive being stored. The unit tests run a few thousand seeds; `benches/simulate.rs` includes this
//! file and runs as many as it is told to. A seed is all that is needed to see a failure again.

use crate::{
    analysis::{OnError, RunPhase},
    model::{Span, Timestamp, VersionName, Weight},
    rollout::{
        AnalysisRef, At, Background, Bake, BlueGreen, Canary, Effect, Event, HeaderRoute, Hold, Pause, Phase,
        Plan, Pool, RollbackWindow, Route, RunId, Stage, State, Step, Strategy, UntilEvidence, Verb,
        transition,
    },
};
use std::collections::BTreeSet;

/// What the simulation has been through: a run that never gets anywhere tests nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    /// Events that were applied.
    pub(crate) applied: u64,
    /// Events that were refused.
    pub(crate) refused: u64,
    /// Versions that became stable at the end of a trial.
    pub(crate) promoted: u64,
    /// Trials that were aborted.
    pub(crate) aborted: u64,
    /// Crashes that lost events.
    pub(crate) torn: u64,
}

/// Runs one seed for so many events; the error says what does not hold, and after which event.
pub(crate) fn simulate(seed: u64, events: usize) -> Result<Coverage, String> {
    let mut simulation = Simulation::new(seed);
    for number in 0..events {
        let step = if simulation.dice.one_in(40) {
            simulation.crash()
        } else {
            let event = simulation.random_event();
            simulation.apply(&event)
        };
        step.map_err(|broken| format!("seed {seed}, event {number}: {broken}"))?;
    }
    Ok(simulation.coverage)
}

/// The generator called `SplitMix64`.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    fn among<T: Clone>(&mut self, choices: &[T]) -> Option<T> {
        let count = u64::try_from(choices.len()).unwrap_or(0);
        let at = usize::try_from(self.below(count)).unwrap_or(0);
        choices.get(at).cloned()
    }

    fn weight(&mut self) -> Weight {
        Weight::percent(u32::try_from(self.below(101)).unwrap_or(0))
    }

    fn maybe_span(&mut self, longest: u64) -> Option<Span> {
        let seconds = self.below(longest);
        self.one_in(2).then_some(Span::secs(seconds))
    }
}

/// What has been performed of the effects so far.
#[derive(Debug, Clone, Default, PartialEq)]
struct World {
    stable: Option<VersionName>,
    canary: Option<VersionName>,
    weight: Option<Weight>,
    routes: Vec<Route>,
    runs: BTreeSet<RunId>,
}

impl World {
    fn perform(&mut self, effect: &Effect) {
        match effect {
            Effect::MakeStable { version, .. } => self.stable = Some(version.clone()),
            Effect::SetWeight { canary, weight } => {
                self.canary.clone_from(canary);
                self.weight = Some(*weight);
            }
            Effect::SetRoutes { routes } => self.routes.clone_from(routes),
            Effect::StartAnalysis { run, .. } => {
                self.runs.insert(*run);
            }
            Effect::StopAnalysis { run } => {
                self.runs.remove(run);
            }
            Effect::SetPreview { .. } | Effect::Retire { .. } | Effect::Notify(_) => {}
        }
    }
}

/// One stored line: what happened, when, and the plan it was applied with.
struct Line {
    event: Event,
    now: Timestamp,
    plan: Plan,
    state: String,
}

struct Simulation {
    dice: Dice,
    plan: Plan,
    state: State,
    world: World,
    now: Timestamp,
    journal: Vec<Line>,
    /// Whether this attempt's background analysis has decided, or somebody chose to go on without.
    evidence: bool,
    /// The share that a hand gave, until a step gives another.
    hand: Option<Weight>,
    coverage: Coverage,
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let mut dice = Dice(seed);
        let plan = random_plan(&mut dice);
        Simulation {
            dice,
            plan,
            state: State::default(),
            world: World::default(),
            now: Timestamp::from_secs(1_000_000),
            journal: Vec::new(),
            evidence: false,
            hand: None,
            coverage: Coverage::default(),
        }
    }

    fn random_event(&mut self) -> Event {
        let forward = self.dice.below(200_000);
        self.now = Timestamp::from_millis(self.now.as_millis() + forward);
        if self.dice.one_in(20) {
            let back = self.dice.below(500_000);
            self.now = Timestamp::from_millis(self.now.as_millis().saturating_sub(back));
        }
        let dice = &mut self.dice;
        let message = "as the dice fell".to_owned();
        let action = dice
            .among(&[OnError::Abort, OnError::Pause])
            .unwrap_or(OnError::Abort);
        let mut runs: Vec<RunId> = self.state.runs().into_iter().map(|(run, _)| run).collect();
        runs.extend(dice.one_in(5).then_some(RunId(1)));
        let run = dice.among(&runs).unwrap_or(RunId(0));
        match dice.below(35) {
            0..=3 => Event::Deploy {
                version: random_version(dice),
            },
            4 => {
                if dice.one_in(2) {
                    self.plan = random_plan(dice);
                }
                Event::SetSteps
            }
            5..=9 => Event::EndpointsReady,
            10 => Event::EndpointsLost,
            11..=14 => Event::Tick,
            15..=17 => Event::AnalysisFinished {
                run,
                phase: dice
                    .among(&[
                        RunPhase::Successful,
                        RunPhase::Successful,
                        RunPhase::Successful,
                        RunPhase::Failed,
                        RunPhase::Error,
                        RunPhase::Inconclusive,
                        RunPhase::Running,
                    ])
                    .unwrap_or(RunPhase::Failed),
                on_error: action,
                message,
            },
            18 => Event::EvidenceGathered { run },
            30 | 31 => Event::EvidenceSuffices {
                run,
                step: self.state.rolling().map_or(0, |rolling| rolling.step),
                message,
            },
            34 => Event::ClientErrors { run, message },
            19..=21 => Event::Promote {
                full: dice.one_in(6),
                skip_analysis: dice.one_in(3),
            },
            22 => Event::Abort { reason: None },
            23 => Event::Retry,
            24 => Event::Undo {
                to: dice.one_in(2).then(|| random_version(dice)),
                warm: !dice.one_in(3),
            },
            25 => Event::Pause,
            26 | 27 => Event::Resume,
            28 => Event::SetWeight {
                weight: dice.weight(),
            },
            32 => Event::AlarmRaised { message },
            33 => Event::AlarmCleared { message },
            _ if dice.one_in(2) => Event::SharedFate { message },
            _ => Event::HardFailure { action, message },
        }
    }

    fn apply(&mut self, event: &Event) -> Result<(), String> {
        let old = self.state.clone();
        let legal = old.legal_verbs(&self.plan);
        let (new, effects) = match transition(&old, event, &self.plan, self.now) {
            Ok(moved) => moved,
            Err(refused) => {
                self.coverage.refused += 1;
                return hold(refused.legal == legal, || {
                    "a refusal lists other verbs than the state".to_owned()
                });
            }
        };
        self.coverage.applied += 1;
        let broken = |what: &str| format!("{what}\n  event {event:?}\n  before {old:?}\n  after {new:?}");
        if let Some(verb) = verb(event) {
            hold(legal.contains(&verb), || {
                broken("a verb was accepted that is not listed as legal")
            })?;
        }
        for effect in effects.iter().chain(&effects) {
            self.world.perform(effect);
        }
        self.remember(&old, event, &new);
        self.check(&old, event, &new).map_err(|what| broken(&what))?;
        let stored = serde_json::to_string(&new).map_err(|error| error.to_string())?;
        let read: State = serde_json::from_str(&stored).map_err(|error| broken(&error.to_string()))?;
        hold(read == new, || broken("the state does not survive being stored"))?;
        let line = serde_json::to_string(event).map_err(|error| error.to_string())?;
        let read: Event = serde_json::from_str(&line).map_err(|error| broken(&error.to_string()))?;
        hold(read == *event, || {
            broken("the event does not survive being stored")
        })?;
        self.journal.push(Line {
            event: read,
            now: self.now,
            plan: self.plan.clone(),
            state: stored,
        });
        self.state = new;
        Ok(())
    }

    /// What the machine cannot know but must have gone by.
    fn remember(&mut self, old: &State, event: &Event, new: &State) {
        let attempt = |state: &State| {
            state
                .rolling()
                .map(|rolling| (rolling.version.clone(), rolling.attempt))
        };
        if attempt(old) != attempt(new) || matches!(event, Event::SetSteps) {
            let promoted = old.canary().is_some() && old.canary() == new.stable.as_ref();
            self.coverage.promoted += u64::from(promoted);
            let aborted = matches!(new.stage, Stage::Aborted(_)) && !matches!(old.stage, Stage::Aborted(_));
            self.coverage.aborted += u64::from(aborted);
            if !promoted {
                self.evidence = false;
            }
            self.hand = None;
        }
        match event {
            Event::EvidenceGathered { .. }
            | Event::EvidenceSuffices { .. }
            | Event::AnalysisFinished {
                phase: RunPhase::Successful,
                ..
            }
            | Event::Promote { full: true, .. }
            | Event::Promote {
                skip_analysis: true, ..
            } => self.evidence = true,
            Event::SetWeight { weight } => self.hand = Some(*weight),
            Event::Deploy { .. }
            | Event::SetSteps
            | Event::EndpointsReady
            | Event::EndpointsLost
            | Event::Tick
            | Event::Restarted { .. }
            | Event::AnalysisFinished { .. }
            | Event::Promote { .. }
            | Event::Abort { .. }
            | Event::Retry
            | Event::Undo { .. }
            | Event::Pause
            | Event::Resume
            | Event::ClientErrors { .. }
            | Event::HardFailure { .. }
            | Event::SharedFate { .. }
            | Event::AlarmRaised { .. }
            | Event::AlarmCleared { .. } => {}
        }
    }

    fn check(&self, old: &State, event: &Event, new: &State) -> Result<(), String> {
        let says = |holds: bool, what: &str| hold(holds, || what.to_owned());
        self.check_world(new)?;
        let Stage::Rolling(rolling) = &new.stage else {
            says(new.weight().is_zero(), "without a trial the canary has traffic")?;
            says(
                new.runs().is_empty() && new.routes().is_empty(),
                "without a trial something still runs",
            )?;
            return self.check_stable(old, event, new);
        };
        says(
            new.stable.as_ref() != Some(&rolling.version),
            "stable is on trial",
        )?;
        says(new.stable.is_some(), "a trial without a stable version")?;
        let by_hand = matches!(event, Event::SetWeight { .. });
        let held = |state: &State| {
            let holds = state.rolling().map(|rolling| rolling.holds.iter());
            holds.is_some_and(|mut holds| holds.any(|hold| matches!(hold, Hold::Alarm { .. })))
        };
        let was_at = old
            .rolling()
            .filter(|old| old.version == rolling.version && old.attempt == rolling.attempt);
        says(
            !(held(old) && held(new)) || by_hand || was_at.is_none_or(|old| rolling.weight <= old.weight),
            "the share was raised while the alarm holds it",
        )?;
        says(
            !held(new) || new.alarm.is_some(),
            "held by an alarm that does not ring",
        )?;
        let waiting = rolling.pool != Pool::Ready;
        says(
            !waiting || new.weight().is_zero(),
            "a pool without endpoints has traffic",
        )?;
        let planned = self.plan.steps().iter().take(rolling.step);
        let planned = planned.rev().find_map(Step::weight);
        let planned = match rolling.at {
            At::Bake { .. } => self.plan.steps().get(rolling.step).and_then(Step::weight),
            At::Enter
            | At::FastTrack
            | At::Pause { .. }
            | At::UntilEvidence { .. }
            | At::NoEvidence
            | At::Analysis { .. }
            | At::Undecided { .. }
            | At::Evidence
            | At::BeforeSwitch
            | At::Switch { .. } => planned,
        };
        let weight = new.weight();
        let green = matches!(self.plan.strategy, Strategy::BlueGreen(_)) && weight.is_full();
        let allowed = weight.is_zero() || planned == Some(weight) || self.hand == Some(weight) || green;
        says(allowed, "the weight is none that a step or a hand has given")?;
        let unproven = self.requires_evidence() && !self.evidence && self.hand != Some(weight);
        says(
            !(weight.is_full() && unproven),
            "everybody meets the canary on no evidence",
        )?;
        self.check_wakeup(new)?;
        self.check_stable(old, event, new)
    }

    fn check_world(&self, new: &State) -> Result<(), String> {
        let runs: BTreeSet<RunId> = new.runs().into_iter().map(|(run, _)| run).collect();
        let world = World {
            stable: new.stable.clone(),
            canary: new.canary().cloned(),
            weight: self.world.weight.map(|_| new.weight()),
            routes: new.routes().to_vec(),
            runs,
        };
        hold(self.world == world, || {
            format!("the effects left the world at {:?}", self.world)
        })
    }

    fn check_stable(&self, old: &State, event: &Event, new: &State) -> Result<(), String> {
        if old.stable == new.stable {
            return Ok(());
        }
        let first = old.stable.is_none() && matches!(event, Event::Deploy { .. });
        let undone = matches!(event, Event::Undo { .. });
        let promoted = old.canary().is_some() && old.canary() == new.stable.as_ref();
        let fast = old.rolling().is_some_and(|rolling| rolling.at == At::FastTrack);
        hold(first || undone || promoted, || {
            "stable changed without a promotion".to_owned()
        })?;
        let full = matches!(event, Event::Promote { full: true, .. });
        let unproven = promoted && !fast && !full && self.requires_evidence() && !self.evidence;
        hold(!unproven, || "promoted on no evidence".to_owned())?;
        hold(new.phase() == Phase::Healthy, || {
            "a new stable version and not Healthy".to_owned()
        })
    }

    /// A tick at the time it was asked for must do something: otherwise the engine would spin.
    fn check_wakeup(&self, new: &State) -> Result<(), String> {
        let Some(wakeup) = new.next_wakeup(&self.plan) else {
            return Ok(());
        };
        match transition(new, &Event::Tick, &self.plan, wakeup) {
            Ok((after, _)) => hold(after != *new, || {
                format!("nothing happens at {wakeup:?}, the next wake-up")
            }),
            Err(refused) => Err(format!("a tick is refused: {refused}")),
        }
    }

    fn requires_evidence(&self) -> bool {
        self.plan.require_evidence && self.plan.background().is_some()
    }

    /// Serin dies; the last lines may not have reached the disk. What is there must replay to the same state.
    fn crash(&mut self) -> Result<(), String> {
        let lost = usize::try_from(self.dice.below(4))
            .unwrap_or(0)
            .min(self.journal.len());
        self.journal.truncate(self.journal.len() - lost);
        self.coverage.torn += u64::from(lost > 0);
        let mut replayed = State::default();
        for line in &self.journal {
            let (state, _) = transition(&replayed, &line.event, &line.plan, line.now)
                .map_err(|refused| format!("a stored event is refused on replay: {refused}"))?;
            replayed = state;
            let stored = serde_json::to_string(&replayed).map_err(|error| error.to_string())?;
            hold(stored == line.state, || {
                format!("replay differs after {:?}", line.event)
            })?;
        }
        self.state = replayed;
        if let Some(line) = self.journal.last() {
            self.plan = line.plan.clone();
        }
        self.world = World::default();
        // What was gathered may be among what was lost: from here on the machine's own word counts.
        self.evidence = true;
        self.hand = Some(
            self.state
                .rolling()
                .map_or(Weight::ZERO, |rolling| rolling.weight),
        );
        let downtime = Span::secs(self.dice.below(5000));
        self.now = self.now.plus(downtime.as_duration());
        self.apply(&Event::Restarted { downtime })
    }
}

fn hold(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// The verb behind an event, where acceptance and the list of legal verbs must agree.
fn verb(event: &Event) -> Option<Verb> {
    match event {
        Event::Promote { full: false, .. } => Some(Verb::Promote),
        Event::Promote { full: true, .. } => Some(Verb::PromoteFull),
        Event::Abort { .. } => Some(Verb::Abort),
        Event::Retry => Some(Verb::Retry),
        Event::Pause => Some(Verb::Pause),
        Event::Resume => Some(Verb::Resume),
        Event::SetWeight { .. } => Some(Verb::SetWeight),
        Event::Deploy { .. }
        | Event::Undo { .. }
        | Event::SetSteps
        | Event::EndpointsReady
        | Event::EndpointsLost
        | Event::Tick
        | Event::Restarted { .. }
        | Event::AnalysisFinished { .. }
        | Event::EvidenceGathered { .. }
        | Event::EvidenceSuffices { .. }
        | Event::ClientErrors { .. }
        | Event::HardFailure { .. }
        | Event::SharedFate { .. }
        | Event::AlarmRaised { .. }
        | Event::AlarmCleared { .. } => None,
    }
}

fn random_version(dice: &mut Dice) -> VersionName {
    let names = ["v1", "v2", "v3", "v4", "v5", "v6"];
    let mut names: Vec<VersionName> = names
        .iter()
        .filter_map(|name| VersionName::new(name).ok())
        .collect();
    let last = names.len() - 1;
    let at = usize::try_from(dice.below(6)).unwrap_or(0).min(last);
    names.swap_remove(at)
}

fn random_plan(dice: &mut Dice) -> Plan {
    let analysis = |dice: &mut Dice| dice.one_in(2).then(AnalysisRef::default);
    let strategy = match dice.below(8) {
        0 => Strategy::Immediate,
        1 | 2 => Strategy::BlueGreen(BlueGreen {
            auto_promotion_enabled: dice.one_in(2),
            auto_promotion_after: dice.maybe_span(300),
            pre_promotion_analysis: analysis(dice),
            post_promotion_analysis: analysis(dice),
            scale_down_delay: Span::secs(dice.below(600)),
            scale_down_delay_revision_limit: None,
        }),
        _ => Strategy::Canary(Canary {
            steps: (0..dice.below(8)).map(|_| random_step(dice)).collect(),
            background: dice.one_in(2).then(|| Background {
                analysis: AnalysisRef::default(),
                starting_step: usize::try_from(dice.below(5)).unwrap_or(0),
            }),
        }),
    };
    Plan {
        strategy,
        rollback_window: dice.one_in(3).then_some(RollbackWindow { revisions: 2 }),
        progress_deadline: dice.maybe_span(900),
        require_evidence: dice.one_in(2),
    }
}

fn random_step(dice: &mut Dice) -> Step {
    match dice.below(11) {
        0..=2 => Step::SetWeight(dice.weight()),
        3 | 4 => Step::Pause(Pause {
            duration: dice.maybe_span(300),
            until_evidence: None,
        }),
        8 | 9 => Step::Pause(Pause {
            duration: None,
            until_evidence: Some(UntilEvidence {
                max: dice.maybe_span(300),
            }),
        }),
        7 => Step::Bake(Bake {
            share: dice.weight().complement(),
            duration: Span::secs(dice.below(300)),
        }),
        5 => Step::Analysis(AnalysisRef::default()),
        6 => Step::SetHeaderRoute(HeaderRoute {
            name: "testers".to_owned(),
            matches: (0..dice.below(2))
                .map(|n| serde_json::json!({ "n": n }))
                .collect(),
        }),
        _ => Step::SetWeight(Weight::FULL),
    }
}
