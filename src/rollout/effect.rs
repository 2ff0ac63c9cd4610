//! What the world must look like after a transition. Each effect is a whole statement and safe to repeat.

use super::{
    plan::AnalysisRef,
    state::{Route, RunId},
};
use crate::model::{VersionName, Weight};
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

/// Why an analysis runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
}
