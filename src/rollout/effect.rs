//! What the world must look like after a transition. Each effect is a whole statement and safe to repeat.

use super::{
    event::Event,
    plan::{AnalysisRef, Plan, Strategy},
    state::{Route, RunId, Stage, State},
};
use crate::{
    analysis::RunPhase,
    model::{VersionName, Weight},
};
use serde::{Deserialize, Serialize};

/// One thing to bring about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "effect")]
pub enum Effect {
    /// Who is trusted from now on, and who was until now (warm from now on, to drain later).
    MakeStable {
        /// Who serves whatever the canary does not.
        version: VersionName,
        /// Who did.
        former: Option<VersionName>,
    },
    /// The split to publish. Without a canary everything goes to stable.
    SetWeight {
        /// The version on trial.
        canary: Option<VersionName>,
        /// Its share.
        weight: Weight,
    },
    /// Blue-green: which version the preview address reaches.
    SetPreview {
        /// The new version until it is stable, then the same.
        version: Option<VersionName>,
    },
    /// The managed routes, all of them; empty removes them.
    SetRoutes {
        /// In order of precedence.
        routes: Vec<Route>,
    },
    /// A version that was on trial and is neither canary nor stable any more: let it drain.
    Retire {
        /// Which.
        version: VersionName,
    },
    /// Measure. A run that is already going on is left alone.
    StartAnalysis {
        /// Its number.
        run: RunId,
        /// Why it runs.
        kind: AnalysisKind,
        /// The version on trial.
        canary: VersionName,
        /// What is measured.
        analysis: AnalysisRef,
    },
    /// Stop measuring; the run's verdict does not matter any more.
    StopAnalysis {
        /// Its number.
        run: RunId,
    },
    /// Tell watchers and webhooks.
    Notify(Notice),
}

impl Effect {
    /// What is to be told, if this is that.
    pub fn into_notice(self) -> Option<Notice> {
        match self {
            Effect::Notify(notice) => Some(notice),
            Effect::MakeStable { .. }
            | Effect::SetWeight { .. }
            | Effect::SetPreview { .. }
            | Effect::SetRoutes { .. }
            | Effect::Retire { .. }
            | Effect::StartAnalysis { .. }
            | Effect::StopAnalysis { .. } => None,
        }
    }
}

/// Why an analysis runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum AnalysisKind {
    /// It is the current step.
    Inline,
    /// It is the current step, with a time limit.
    Experiment,
    /// It watches over all steps.
    Background,
    /// It decides whether blue-green may switch.
    PrePromotion,
    /// It decides whether the switched version becomes stable.
    PostPromotion,
}

impl AnalysisKind {
    /// How the field calls it, in the messages users search for.
    pub const fn title(self) -> &'static str {
        match self {
            AnalysisKind::Inline => "Step-based",
            AnalysisKind::Experiment => "Experiment",
            AnalysisKind::Background => "Background",
            AnalysisKind::PrePromotion => "Blue/green pre-promotion",
            AnalysisKind::PostPromotion => "Blue/green post-promotion",
        }
    }
}

/// Something worth telling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// Which kind, by the names of Argo Rollouts.
    pub trigger: Trigger,
    /// One sentence.
    pub text: String,
}

/// Which kind of notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// A rollout began.
    OnRolloutUpdated,
    /// A step is done.
    OnRolloutStepCompleted,
    /// It waits for a time or for somebody.
    OnRolloutPaused,
    /// The new version is stable.
    OnRolloutCompleted,
    /// Everything is back on stable.
    OnRolloutAborted,
    /// An analysis began.
    OnAnalysisRunRunning,
    /// An analysis found the version on trial to be bad.
    OnAnalysisRunFailed,
    /// An analysis could not measure.
    OnAnalysisRunError,
    /// Too much of the service fails, whichever version answers.
    OnAlarmRaised,
    /// That is over.
    OnAlarmCleared,
}

impl Trigger {
    /// What somebody who says nothing wants to hear of: how a trial ends, and what calls for a person.
    pub const TELLING: [Trigger; 7] = [
        Trigger::OnRolloutPaused,
        Trigger::OnRolloutCompleted,
        Trigger::OnRolloutAborted,
        Trigger::OnAnalysisRunFailed,
        Trigger::OnAnalysisRunError,
        Trigger::OnAlarmRaised,
        Trigger::OnAlarmCleared,
    ];

    /// As it is written: `on-rollout-aborted`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Trigger::OnRolloutUpdated => "on-rollout-updated",
            Trigger::OnRolloutStepCompleted => "on-rollout-step-completed",
            Trigger::OnRolloutPaused => "on-rollout-paused",
            Trigger::OnRolloutCompleted => "on-rollout-completed",
            Trigger::OnRolloutAborted => "on-rollout-aborted",
            Trigger::OnAnalysisRunRunning => "on-analysis-run-running",
            Trigger::OnAnalysisRunFailed => "on-analysis-run-failed",
            Trigger::OnAnalysisRunError => "on-analysis-run-error",
            Trigger::OnAlarmRaised => "on-alarm-raised",
            Trigger::OnAlarmCleared => "on-alarm-cleared",
        }
    }
}

/// What changes in the world when `old` becomes `new`. What lowers the canary's exposure comes first, and a version is
/// stable before its trial ends: in no order of performing does a request meet a version that it should not.
pub(super) fn between(old: &State, new: &State, plan: &Plan, event: &Event) -> Vec<Effect> {
    let mut effects = Vec::new();
    if let Some(version) = new.stable.clone().filter(|_| new.stable != old.stable) {
        effects.push(Effect::MakeStable {
            version,
            former: old.stable.clone(),
        });
    }
    if (old.canary(), old.weight()) != (new.canary(), new.weight()) {
        effects.push(split(new));
    }
    let blue_green = matches!(plan.strategy, Strategy::BlueGreen(_));
    if blue_green && old.preview() != new.preview() {
        effects.push(Effect::SetPreview {
            version: new.preview().cloned(),
        });
    }
    if old.routes() != new.routes() {
        effects.push(Effect::SetRoutes {
            routes: new.routes().to_vec(),
        });
    }
    let (before, after) = (old.runs(), new.runs());
    let stopped = before.iter().filter(|run| !after.contains(run));
    effects.extend(stopped.map(|(run, _)| Effect::StopAnalysis { run: *run }));
    let left = old
        .canary()
        .filter(|version| new.canary() != Some(*version) && new.stable.as_ref() != Some(*version));
    effects.extend(left.map(|version| Effect::Retire {
        version: version.clone(),
    }));
    let started = after.iter().filter(|run| !before.contains(run));
    effects.extend(started.filter_map(|(run, kind)| start(new, plan, *run, *kind)));
    let notices = notices(old, new, plan, event);
    effects.extend(notices.into_iter().map(Effect::Notify));
    effects
}

/// Everything the world must look like: after a restart, when nothing is known to have been done.
pub(super) fn everything(state: &State, plan: &Plan) -> Vec<Effect> {
    let mut effects = Vec::new();
    effects.extend(state.stable.clone().map(|version| Effect::MakeStable {
        version,
        former: None,
    }));
    effects.push(split(state));
    if matches!(plan.strategy, Strategy::BlueGreen(_)) {
        effects.push(Effect::SetPreview {
            version: state.preview().cloned(),
        });
    }
    effects.push(Effect::SetRoutes {
        routes: state.routes().to_vec(),
    });
    effects.extend(
        state
            .runs()
            .into_iter()
            .filter_map(|(run, kind)| start(state, plan, run, kind)),
    );
    effects
}

fn split(state: &State) -> Effect {
    Effect::SetWeight {
        canary: state.canary().cloned(),
        weight: state.weight(),
    }
}

fn start(state: &State, plan: &Plan, run: RunId, kind: AnalysisKind) -> Option<Effect> {
    let rolling = state.rolling()?;
    let analysis = match (kind, &plan.strategy) {
        (AnalysisKind::Inline | AnalysisKind::Experiment, _) => {
            plan.steps().get(rolling.step)?.analysis()?.clone()
        }
        (AnalysisKind::Background, _) => plan.background()?.analysis.clone(),
        (AnalysisKind::PrePromotion, Strategy::BlueGreen(blue_green)) => {
            blue_green.pre_promotion_analysis.clone()?
        }
        (AnalysisKind::PostPromotion, Strategy::BlueGreen(blue_green)) => {
            blue_green.post_promotion_analysis.clone()?
        }
        (
            AnalysisKind::PrePromotion | AnalysisKind::PostPromotion,
            Strategy::Canary(_) | Strategy::Immediate,
        ) => {
            return None;
        }
    };
    Some(Effect::StartAnalysis {
        run,
        kind,
        canary: rolling.version.clone(),
        analysis,
    })
}

/// What is worth telling of a transition, the most telling first.
fn notices(old: &State, new: &State, plan: &Plan, event: &Event) -> Vec<Notice> {
    let mut notices = Vec::new();
    let mut say = |trigger, text| notices.push(Notice { trigger, text });
    match (&old.alarm, &new.alarm) {
        (None, Some(alarm)) => say(Trigger::OnAlarmRaised, alarm.message.clone()),
        (Some(_), None) => say(
            Trigger::OnAlarmCleared,
            "the alarm of the service is over".to_owned(),
        ),
        (Some(_), Some(_)) | (None, None) => {}
    }
    match (&old.stage, &new.stage) {
        (_, Stage::Empty) => {}
        (Stage::Aborted(before), Stage::Aborted(after)) if before == after => {}
        (_, Stage::Aborted(aborted)) => say(
            Trigger::OnRolloutAborted,
            format!("{} was aborted: {}", aborted.version, aborted.message),
        ),
        (Stage::Healthy, Stage::Healthy) if old.stable == new.stable => {}
        (_, Stage::Healthy) => {
            let stable = new.stable.as_ref().map_or("", VersionName::as_str);
            match &old.stage {
                // Nothing was tried and nothing came to an end.
                Stage::Empty => say(
                    Trigger::OnRolloutUpdated,
                    format!("{stable} is the first version, and stable at once"),
                ),
                Stage::Healthy | Stage::Rolling(_) | Stage::Aborted(_) => {
                    say(Trigger::OnRolloutCompleted, format!("{stable} is stable"));
                }
            }
        }
        (before, Stage::Rolling(after)) => {
            let goes_on = match before {
                Stage::Rolling(before)
                    if before.version == after.version && before.attempt == after.attempt =>
                {
                    Some(before)
                }
                Stage::Empty | Stage::Healthy | Stage::Rolling(_) | Stage::Aborted(_) => None,
            };
            let steps = plan.steps().len();
            let reason = new.pause_reason();
            if reason.is_some() && reason != old.pause_reason() {
                // The reason with its numbers, where it has some: whoever is called must not have to look them up.
                let why = new.message(plan);
                say(
                    Trigger::OnRolloutPaused,
                    format!(
                        "{} is paused at step {}/{steps}: {why}",
                        after.version, after.step
                    ),
                );
            }
            match goes_on {
                None => say(
                    Trigger::OnRolloutUpdated,
                    format!("{} is on trial, attempt {}", after.version, after.attempt),
                ),
                Some(before) if after.step > before.step => say(
                    Trigger::OnRolloutStepCompleted,
                    format!("{} has completed step {}/{steps}", after.version, before.step),
                ),
                Some(_) => {}
            }
        }
    }
    notices.extend(of_analyses(old, new, event));
    notices
}

/// The analysis that this event ended badly, and those that begin.
fn of_analyses(old: &State, new: &State, event: &Event) -> Vec<Notice> {
    let mut notices = Vec::new();
    let (before, after) = (old.runs(), new.runs());
    let version = |state: &State| {
        let rolling = state.rolling();
        rolling.map_or_else(String::new, |rolling| rolling.version.to_string())
    };
    if let Event::AnalysisFinished {
        run, phase, message, ..
    } = event
        && let Some((_, kind)) = before.iter().find(|(before, _)| before == run)
    {
        let (trigger, what) = match phase {
            RunPhase::Failed => (Some(Trigger::OnAnalysisRunFailed), "has failed"),
            RunPhase::Error => (Some(Trigger::OnAnalysisRunError), "could not measure"),
            RunPhase::Pending | RunPhase::Running | RunPhase::Successful | RunPhase::Inconclusive => {
                (None, "")
            }
        };
        notices.extend(trigger.map(|trigger| Notice {
            trigger,
            text: format!("{} analysis of {} {what}: {message}", kind.title(), version(old)),
        }));
    }
    let begun = after.iter().filter(|run| !before.contains(run));
    notices.extend(begun.map(|(_, kind)| Notice {
        trigger: Trigger::OnAnalysisRunRunning,
        text: format!("{} analysis of {} has begun", kind.title(), version(new)),
    }));
    notices
}
