//! What a version on trial does when nothing holds it: its steps, or its blue-green gates, one after the other.

use super::{
    effect::AnalysisKind,
    plan::{BlueGreen, Plan, Step, Strategy},
    state::{At, BackgroundRun, Hold, Pool, Rolling, Route, RouteKind, RunId, State},
    transition::{No, no, stale},
};
use crate::model::{Timestamp, Weight};
use std::time::Duration;

/// A version on trial, taken out of its state while an event is applied.
pub(super) struct Trial<'a> {
    pub(super) state: State,
    pub(super) rolling: Rolling,
    pub(super) plan: &'a Plan,
    pub(super) now: Timestamp,
}

/// What came of going on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Something has to happen first.
    Waiting,
    /// The version becomes stable.
    Promoted,
}

/// Whether the current gate was the last.
enum Gate {
    Open,
    Waiting,
    Last,
}

impl Trial<'_> {
    /// Goes through the steps until one has to wait.
    pub(super) fn advance(&mut self) -> Verdict {
        loop {
            if !self.rolling.is_free() {
                return Verdict::Waiting;
            }
            let gate = match self.rolling.at {
                At::FastTrack => Gate::Last,
                At::Enter => self.enter(),
                At::BeforeSwitch => self.before_switch(),
                At::Evidence if self.lacks_evidence() => Gate::Waiting,
                At::Evidence => {
                    self.rolling.at = At::Enter;
                    Gate::Open
                }
                At::Pause { .. } | At::Bake { .. } | At::Switch { .. } | At::Analysis { .. }
                    if self.is_over() =>
                {
                    self.pass()
                }
                At::UntilEvidence { .. } if self.is_over() => {
                    self.rolling.at = At::NoEvidence;
                    Gate::Waiting
                }
                At::Pause { .. }
                | At::Bake { .. }
                | At::UntilEvidence { .. }
                | At::NoEvidence
                | At::Switch { .. }
                | At::Analysis { .. }
                | At::Undecided { .. } => Gate::Waiting,
            };
            match gate {
                Gate::Open => {}
                Gate::Waiting => return Verdict::Waiting,
                Gate::Last => return Verdict::Promoted,
            }
        }
    }

    fn enter(&mut self) -> Gate {
        match &self.plan.strategy {
            Strategy::Immediate => Gate::Last,
            Strategy::Canary(canary) => {
                self.start_background(false);
                match canary.steps.get(self.rolling.step) {
                    Some(step) => self.enter_step(step),
                    None if self.lacks_evidence() => self.wait_for_evidence(),
                    None => Gate::Last,
                }
            }
            Strategy::BlueGreen(blue_green) if blue_green.pre_promotion_analysis.is_some() => {
                self.analyse(AnalysisKind::PrePromotion)
            }
            Strategy::BlueGreen(_) => self.before_switch(),
        }
    }

    fn enter_step(&mut self, step: &Step) -> Gate {
        match step {
            Step::SetWeight(weight) if weight.is_full() && self.lacks_evidence() => {
                return self.wait_for_evidence();
            }
            Step::SetWeight(weight) => self.rolling.weight = *weight,
            Step::Pause(pause) if pause.until_evidence.is_some() => {
                self.rolling.at = At::UntilEvidence { since: self.now };
                return Gate::Open;
            }
            Step::Pause(_) => {
                self.rolling.at = At::Pause { since: self.now };
                return Gate::Open;
            }
            // The step to nearly everything is as far-reaching as the one to everything.
            Step::Bake(_) if self.lacks_evidence() => return self.wait_for_evidence(),
            Step::Bake(bake) => {
                self.rolling.weight = bake.share.complement();
                self.rolling.at = At::Bake { since: self.now };
                return Gate::Open;
            }
            Step::Analysis(_) => return self.analyse(AnalysisKind::Inline),
            Step::Experiment(_) => return self.analyse(AnalysisKind::Experiment),
            Step::SetHeaderRoute(route) => self.set_route(&route.name, RouteKind::Header, &route.matches),
            Step::SetMirrorRoute(route) => {
                let share = RouteKind::Mirror(route.percentage.unwrap_or(Weight::FULL));
                self.set_route(&route.name, share, &route.matches);
            }
            Step::Skipped(_) => {}
        }
        self.rolling.step += 1;
        Gate::Open
    }

    /// A route is replaced where it stands; without conditions it goes.
    fn set_route(&mut self, name: &str, kind: RouteKind, matches: &[serde_json::Value]) {
        let routes = &mut self.rolling.routes;
        let route = Route {
            name: name.to_owned(),
            kind,
            matches: matches.to_vec(),
        };
        match routes.iter().position(|known| known.name == name) {
            Some(at) if matches.is_empty() => drop(routes.remove(at)),
            Some(at) => routes[at] = route,
            None if matches.is_empty() => {}
            None => routes.push(route),
        }
    }

    fn analyse(&mut self, kind: AnalysisKind) -> Gate {
        self.rolling.at = At::Analysis {
            run: self.next_run(),
            kind,
            since: self.now,
        };
        Gate::Waiting
    }

    fn next_run(&mut self) -> RunId {
        self.state.next_run += 1;
        RunId(self.state.next_run)
    }

    /// Beside the steps, from its starting step on; `anyway` when nothing goes on without it.
    fn start_background(&mut self, anyway: bool) {
        let Some(background) = self.plan.background() else {
            return;
        };
        let due = anyway || self.rolling.step >= background.starting_step;
        if due
            && self.rolling.background == BackgroundRun::Off
            && self.rolling.step <= self.plan.steps().len()
        {
            self.rolling.background = BackgroundRun::Running {
                run: self.next_run(),
                decided: false,
            };
        }
    }

    /// Nothing reaches 100 % while a declared background metric has decided nothing.
    fn lacks_evidence(&self) -> bool {
        let decided = match self.rolling.background {
            BackgroundRun::Passed => true,
            BackgroundRun::Running { decided, .. } => decided,
            BackgroundRun::Off | BackgroundRun::Undecided => false,
        };
        self.plan.require_evidence && self.plan.background().is_some() && !decided
    }

    fn wait_for_evidence(&mut self) -> Gate {
        self.start_background(true);
        self.rolling.at = At::Evidence;
        Gate::Waiting
    }

    /// The pause before the switch, where there is one.
    fn before_switch(&mut self) -> Gate {
        let Strategy::BlueGreen(blue_green) = &self.plan.strategy else {
            return Gate::Last;
        };
        let waits = blue_green
            .auto_promotion_after
            .is_some_and(|after| !after.is_zero());
        if !blue_green.auto_promotion_enabled || waits {
            self.rolling.at = At::Switch { since: self.now };
            return Gate::Waiting;
        }
        self.switch(blue_green)
    }

    /// Production goes to the new version; stable stays what it is until the analysis after it has passed.
    fn switch(&mut self, blue_green: &BlueGreen) -> Gate {
        if blue_green.post_promotion_analysis.is_none() {
            return Gate::Last;
        }
        self.rolling.weight = Weight::FULL;
        self.analyse(AnalysisKind::PostPromotion)
    }

    /// Whether the current wait has ended by itself: strictly after its time.
    fn is_over(&self) -> bool {
        self.rolling
            .waits_until(self.plan)
            .is_some_and(|end| self.now > end)
    }

    /// What the current step waited for has come.
    fn pass(&mut self) -> Gate {
        let kind = match &self.rolling.at {
            At::Analysis { kind, .. } | At::Undecided { kind, .. } => Some(*kind),
            At::Pause { .. }
            | At::Bake { .. }
            | At::UntilEvidence { .. }
            | At::NoEvidence
            | At::Switch { .. }
            | At::Enter
            | At::FastTrack
            | At::Evidence
            | At::BeforeSwitch => None,
        };
        match (&self.plan.strategy, kind) {
            // Neither switched nor promoted here: a manual pause may still hold it.
            (Strategy::BlueGreen(_), Some(AnalysisKind::PostPromotion)) => {
                self.rolling.at = At::FastTrack;
                Gate::Open
            }
            (Strategy::BlueGreen(_), Some(_)) => {
                self.rolling.at = At::BeforeSwitch;
                Gate::Open
            }
            (Strategy::BlueGreen(blue_green), None) => self.switch(blue_green),
            (Strategy::Canary(_) | Strategy::Immediate, _) => {
                self.rolling.step += 1;
                self.rolling.at = At::Enter;
                Gate::Open
            }
        }
    }

    /// Passes the current wait and goes on.
    fn pass_and_go(mut self) -> State {
        match self.pass() {
            Gate::Open | Gate::Waiting => {}
            Gate::Last => self.rolling.at = At::FastTrack,
        }
        self.run_on()
    }

    /// The judge has said that the next weight does no harm.
    pub(super) fn evidence(mut self, run: RunId, step: usize) -> Result<State, No> {
        let BackgroundRun::Running { run: this, decided } = &mut self.rolling.background else {
            return stale(run);
        };
        if *this != run {
            return stale(run);
        }
        if self.rolling.step != step || !matches!(self.rolling.at, At::UntilEvidence { .. }) {
            return no(format!("step {step} does not wait for evidence"), None);
        }
        *decided = true;
        if !self.rolling.is_free() {
            return no("something else keeps it at this step", None);
        }
        Ok(self.pass_and_go())
    }

    /// The judge of this run has found another share of 4xx answers than stable's.
    pub(super) fn client_errors(mut self, run: RunId, message: &str) -> Result<State, No> {
        let of_step = matches!(self.rolling.at, At::Analysis { run: this, .. } if this == run);
        let beside =
            matches!(self.rolling.background, BackgroundRun::Running { run: this, .. } if this == run);
        if !(of_step || beside) {
            return stale(run);
        }
        if std::mem::replace(&mut self.rolling.client_errors_told, true) {
            return no("somebody was called for its 4xx answers before", None);
        }
        self.hold(Hold::ClientErrors {
            message: message.to_owned(),
        });
        Ok(self.stay())
    }

    /// An analysis has ended well.
    pub(super) fn passed(&mut self, kind: AnalysisKind) {
        if kind == AnalysisKind::Background {
            self.rolling.background = BackgroundRun::Passed;
            return;
        }
        match self.pass() {
            Gate::Open | Gate::Waiting => {}
            Gate::Last => self.rolling.at = At::FastTrack,
        }
    }

    /// An analysis has ended without a verdict: a human must decide.
    pub(super) fn undecided(&mut self, kind: AnalysisKind, error: bool, message: String) {
        if kind == AnalysisKind::Background {
            self.rolling.background = BackgroundRun::Undecided;
            self.hold(Hold::Background { error, message });
        } else {
            self.rolling.at = At::Undecided { kind, error, message };
        }
    }

    /// While the service's alarm rings a trial goes no further; a way back that skips the steps is not held.
    pub(super) fn heed_alarm(&mut self) {
        if let Some(alarm) = self
            .state
            .alarm
            .as_ref()
            .filter(|_| self.rolling.at != At::FastTrack)
        {
            let message = alarm.message.clone();
            self.hold(Hold::Alarm { message });
        }
    }

    /// The alarm rings no more: what it has held goes on.
    pub(super) fn alarm_cleared(mut self) -> State {
        let is_alarm = |hold: &Hold| matches!(hold, Hold::Alarm { .. });
        if !self.rolling.holds.iter().any(is_alarm) {
            return self.stay();
        }
        self.rolling.holds.retain(|hold| !is_alarm(hold));
        self.run_on()
    }

    /// Adds a hold, or replaces the one of its kind.
    pub(super) fn hold(&mut self, hold: Hold) {
        let kind = std::mem::discriminant(&hold);
        self.rolling
            .holds
            .retain(|known| std::mem::discriminant(known) != kind);
        self.rolling.holds.push(hold);
    }

    /// Lets go of everything that holds the steps.
    fn release(&mut self) {
        let holds = std::mem::take(&mut self.rolling.holds);
        let at_zero = holds.iter().any(|hold| match hold {
            Hold::SharedFate { .. } | Hold::HardFailure { .. } => true,
            Hold::Manual | Hold::Background { .. } | Hold::ClientErrors { .. } | Hold::Alarm { .. } => false,
        });
        // A pause counts only time at its own weight; while it was zero it did not begin.
        if at_zero && let Some(since) = self.rolling.timer() {
            *since = self.now;
        }
        // Neither does the deadline count a time in which somebody held it.
        if let Pool::Waiting { since } = &mut self.rolling.pool {
            *since = self.now;
        }
        // An undecided background analysis is made anew: nothing goes on unwatched.
        if self.rolling.background == BackgroundRun::Undecided {
            self.rolling.background = BackgroundRun::Off;
            self.start_background(true);
        }
    }

    pub(super) fn promote(mut self, full: bool, skip_analysis: bool) -> Result<State, No> {
        if self.rolling.pool != Pool::Ready {
            return no("the canary has not enough healthy endpoints", Some("abort"));
        }
        let held = !self.rolling.holds.is_empty();
        match &self.rolling.at {
            At::Analysis { .. } | At::Evidence | At::UntilEvidence { .. }
                if !full && !held && !skip_analysis =>
            {
                let what = match self.rolling.at {
                    At::Evidence | At::UntilEvidence { .. } => "it waits for evidence",
                    At::Analysis { .. }
                    | At::Enter
                    | At::FastTrack
                    | At::Pause { .. }
                    | At::Bake { .. }
                    | At::NoEvidence
                    | At::Undecided { .. }
                    | At::BeforeSwitch
                    | At::Switch { .. } => "an analysis is running",
                };
                return no(
                    format!("{what}; --skip-analysis goes on without it"),
                    Some("promote --skip-analysis"),
                );
            }
            At::Enter
            | At::FastTrack
            | At::Pause { .. }
            | At::Bake { .. }
            | At::UntilEvidence { .. }
            | At::NoEvidence
            | At::Analysis { .. }
            | At::Undecided { .. }
            | At::Evidence
            | At::BeforeSwitch
            | At::Switch { .. } => {}
        }
        self.release();
        if full {
            self.rolling.at = At::FastTrack;
            return Ok(self.run_on());
        }
        match &self.rolling.at {
            At::Pause { .. }
            | At::Bake { .. }
            | At::Switch { .. }
            | At::Undecided { .. }
            | At::NoEvidence => Ok(self.pass_and_go()),
            At::Analysis { .. } | At::UntilEvidence { .. } if !held => Ok(self.pass_and_go()),
            At::Evidence if !held => {
                if let BackgroundRun::Running { decided, .. } = &mut self.rolling.background {
                    *decided = true;
                }
                Ok(self.run_on())
            }
            At::Analysis { .. }
            | At::UntilEvidence { .. }
            | At::Evidence
            | At::Enter
            | At::FastTrack
            | At::BeforeSwitch => Ok(self.run_on()),
        }
    }

    pub(super) fn resume(mut self) -> Result<State, No> {
        if !self.rolling.holds.is_empty() {
            self.release();
            return Ok(self.run_on());
        }
        match self.rolling.at {
            At::Undecided { kind, .. } => {
                self.analyse(kind);
                Ok(self.stay())
            }
            At::NoEvidence => {
                self.rolling.at = At::UntilEvidence { since: self.now };
                Ok(self.stay())
            }
            At::Pause { .. } | At::Bake { .. } | At::Switch { .. } => no(
                "nobody has paused it by hand; this pause is a step",
                Some("promote"),
            ),
            At::Enter
            | At::FastTrack
            | At::BeforeSwitch
            | At::Analysis { .. }
            | At::UntilEvidence { .. }
            | At::Evidence => no("it is not paused", None),
        }
    }

    /// The same version from step 0, on the plan as it is now.
    pub(super) fn start_over(mut self) -> State {
        self.rolling.step = 0;
        self.rolling.at = At::Enter;
        self.rolling.weight = Weight::ZERO;
        self.rolling.holds.clear();
        self.heed_alarm();
        self.rolling.background = BackgroundRun::Off;
        self.rolling.routes.clear();
        self.rolling.client_errors_told = false;
        self.rolling.since = self.now;
        self.run_on()
    }

    pub(super) fn endpoints_ready(&mut self) {
        if let Pool::Waiting { since } = self.rolling.pool {
            self.rolling.pool = Pool::Ready;
            // Time at weight zero does not count.
            self.rolling.move_timer(self.now.since(since));
        }
    }

    pub(super) fn is_past_deadline(&self) -> bool {
        match (self.rolling.pool, self.plan.progress_deadline) {
            (Pool::Waiting { since }, Some(deadline)) => {
                self.rolling.deadline_runs() && self.now.since(since) > deadline.as_duration()
            }
            (Pool::Waiting { .. } | Pool::Ready, _) => false,
        }
    }

    /// Moves every timer over time that does not count.
    pub(super) fn shift(&mut self, by: Duration) {
        self.rolling.move_timer(by);
        if let Pool::Waiting { since } = &mut self.rolling.pool {
            *since = since.plus(by);
        }
    }
}

impl Rolling {
    fn timer(&mut self) -> Option<&mut Timestamp> {
        match &mut self.at {
            At::Pause { since }
            | At::Bake { since }
            | At::UntilEvidence { since }
            | At::Switch { since }
            | At::Analysis { since, .. } => Some(since),
            At::Enter
            | At::FastTrack
            | At::BeforeSwitch
            | At::Undecided { .. }
            | At::NoEvidence
            | At::Evidence => None,
        }
    }

    fn move_timer(&mut self, by: Duration) {
        if let Some(since) = self.timer() {
            *since = since.plus(by);
        }
    }
}
