//! What a rollout is going to do: the strategy and its steps, as they were at the deploy.

use crate::model::{Span, Weight};
use serde::{Deserialize, Serialize};

/// Everything [`super::transition`] needs to know about what the operator asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// How a new version is brought in.
    pub strategy: Strategy,
    /// Going back to one of the last versions skips steps and analyses. Absent: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_window: Option<RollbackWindow>,
    /// How long the new version may be without enough healthy endpoints. Absent: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_deadline: Option<Span>,
    /// A rollout does not reach 100 % while a declared background metric has decided nothing.
    #[serde(default)]
    pub require_evidence: bool,
}

impl Plan {
    /// A canary with these steps and nothing else.
    pub fn canary(steps: Vec<Step>) -> Plan {
        Plan::of(Strategy::Canary(Canary {
            steps,
            background: None,
        }))
    }

    /// A strategy without window, deadline and evidence rule.
    pub fn of(strategy: Strategy) -> Plan {
        Plan {
            strategy,
            rollback_window: None,
            progress_deadline: None,
            require_evidence: false,
        }
    }

    /// The canary's steps; none for the other strategies.
    pub fn steps(&self) -> &[Step] {
        match &self.strategy {
            Strategy::Canary(canary) => &canary.steps,
            Strategy::BlueGreen(_) | Strategy::Immediate => &[],
        }
    }

    /// What is held back for a time before the version becomes stable, if anything.
    pub fn bake(&self) -> Option<Bake> {
        self.steps().iter().find_map(|step| match step {
            Step::Bake(bake) => Some(*bake),
            Step::SetWeight(_)
            | Step::Pause(_)
            | Step::Analysis(_)
            | Step::Experiment(_)
            | Step::SetHeaderRoute(_)
            | Step::SetMirrorRoute(_)
            | Step::Skipped(_) => None,
        })
    }

    /// The canary's share after `now`, which was in force at `step`: the next larger one, or everything.
    pub fn next_weight(&self, step: usize, now: Weight) -> Weight {
        let mut later = self.steps().iter().skip(step).filter_map(Step::weight);
        later.find(|weight| *weight > now).unwrap_or(Weight::FULL)
    }

    /// Every step with its place and the share that the canary has there.
    pub fn weighed_steps(&self) -> impl Iterator<Item = (usize, &Step, Weight)> {
        let mut weight = Weight::ZERO;
        self.steps().iter().enumerate().map(move |(index, step)| {
            weight = step.weight().unwrap_or(weight);
            (index, step, weight)
        })
    }

    /// The background analysis and the step it starts at.
    pub fn background(&self) -> Option<&Background> {
        match &self.strategy {
            Strategy::Canary(canary) => canary.background.as_ref(),
            Strategy::BlueGreen(_) | Strategy::Immediate => None,
        }
    }
}

/// How a new version is brought in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Strategy {
    /// Step by step, a growing share of the traffic.
    Canary(Canary),
    /// All at once, after a look at it beside the old version.
    BlueGreen(BlueGreen),
    /// All at once, as soon as its endpoints are ready.
    Immediate,
}

/// A canary's steps and what watches over them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Canary {
    /// In order; finishing them promotes.
    pub steps: Vec<Step>,
    /// Runs beside the steps until the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<Background>,
}

/// The background analysis.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Background {
    /// What is measured.
    #[serde(flatten)]
    pub analysis: AnalysisRef,
    /// The index of the step it starts with. Absent: 0.
    #[serde(default)]
    pub starting_step: usize,
}

/// The templates an analysis is made of, and their arguments.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnalysisRef {
    /// Merged into one run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<TemplateRef>,
    /// Over the templates' defaults.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<StepArg>,
}

/// `templateName: error-rate-check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TemplateRef {
    /// The template's name.
    pub template_name: String,
}

/// An argument given where a template is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StepArg {
    /// What stands between `{{args.` and `}}`.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// One step of a canary, spelled as in Argo Rollouts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// Give the canary this share. Done at once.
    SetWeight(Weight),
    /// Wait: for a time, or until somebody promotes.
    Pause(Pause),
    /// Measure, and wait for the verdict.
    Analysis(AnalysisRef),
    /// Run an analysis for a time, or until it ends.
    Experiment(Experiment),
    /// Send matching requests to the canary whatever the weight; without `match` the route is removed.
    SetHeaderRoute(HeaderRoute),
    /// Copy matching requests to the canary; without `match` the route is removed.
    SetMirrorRoute(MirrorRoute),
    /// A step that only moves pods in Kubernetes (named here): done at once.
    Skipped(String),
    /// Give the canary all but a small share, and wait: what breaks late is still seen beside a control group. The last step of
    /// a plan with `holdback`.
    Bake(Bake),
}

impl Step {
    /// Whether it is over when the judge beside the steps has learned enough.
    pub fn waits_for_evidence(&self) -> bool {
        matches!(self, Step::Pause(pause) if pause.until_evidence.is_some())
    }

    /// The share that it gives the canary, if it does.
    pub fn weight(&self) -> Option<Weight> {
        match self {
            Step::SetWeight(weight) => Some(*weight),
            Step::Bake(bake) => Some(bake.share.complement()),
            Step::Pause(_)
            | Step::Analysis(_)
            | Step::Experiment(_)
            | Step::SetHeaderRoute(_)
            | Step::SetMirrorRoute(_)
            | Step::Skipped(_) => None,
        }
    }

    /// The analysis that it runs, if it does.
    pub fn analysis(&self) -> Option<&AnalysisRef> {
        match self {
            Step::Analysis(analysis) => Some(analysis),
            Step::Experiment(experiment) => Some(&experiment.analysis),
            Step::SetWeight(_)
            | Step::Pause(_)
            | Step::Bake(_)
            | Step::SetHeaderRoute(_)
            | Step::SetMirrorRoute(_)
            | Step::Skipped(_) => None,
        }
    }
}

/// A small share stays on stable for a time before everything goes to the new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bake {
    /// What stable keeps: above nothing, below everything.
    pub share: Weight,
    /// Over strictly after this long.
    pub duration: Span,
}

/// How long a pause step waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pause {
    /// Over strictly after this long. Absent: until somebody promotes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Span>,
    /// Over as soon as the judge beside the steps has ruled out the harm that the next weight could do, and never by silence.
    /// Instead of `duration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_evidence: Option<UntilEvidence>,
}

impl Pause {
    /// Whether it waits for a person from its beginning.
    pub const fn is_manual(&self) -> bool {
        self.duration.is_none() && self.until_evidence.is_none()
    }
}

/// A pause that the evidence ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UntilEvidence {
    /// Strictly after this long a person must decide. Absent: it goes on waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Span>,
}

/// An experiment step: an analysis with a time limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Experiment {
    /// It has succeeded when nothing failed for this long. Absent: when the analysis ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Span>,
    /// What is measured meanwhile.
    #[serde(flatten)]
    pub analysis: AnalysisRef,
}

/// A header route. Entries of `match` are alternatives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderRoute {
    /// Setting a route again replaces it.
    pub name: String,
    /// Which requests. Empty: the route is removed.
    #[serde(default, rename = "match", skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<serde_json::Value>,
}

/// A mirror route. Entries of `match` are alternatives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorRoute {
    /// Setting a route again replaces it.
    pub name: String,
    /// How many of the matching requests are copied. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentage: Option<Weight>,
    /// Which requests. Empty: the route is removed.
    #[serde(default, rename = "match", skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<serde_json::Value>,
}

/// Going back within the last versions is immediate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RollbackWindow {
    /// With strictly fewer versions than this between the target and stable, steps and analyses are skipped.
    pub revisions: u32,
}

/// A blue-green switch and its gates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlueGreen {
    /// Switch without being told to. Absent: yes.
    #[serde(default = "yes")]
    pub auto_promotion_enabled: bool,
    /// Switch by itself strictly after this long; has no meaning when `autoPromotionEnabled` is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_promotion_after: Option<Span>,
    /// Before the pause and the switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_promotion_analysis: Option<AnalysisRef>,
    /// After the switch; stable does not change until it succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_promotion_analysis: Option<AnalysisRef>,
    /// How long the old version stays warm: going back within it is instant. Absent: 30s.
    #[serde(default = "thirty_seconds")]
    pub scale_down_delay: Span,
    /// How many old versions stay warm. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_down_delay_revision_limit: Option<u32>,
}

const fn yes() -> bool {
    true
}
const fn thirty_seconds() -> Span {
    Span::secs(30)
}

impl Default for BlueGreen {
    fn default() -> BlueGreen {
        BlueGreen {
            auto_promotion_enabled: true,
            auto_promotion_after: None,
            pre_promotion_analysis: None,
            post_promotion_analysis: None,
            scale_down_delay: thirty_seconds(),
            scale_down_delay_revision_limit: None,
        }
    }
}
