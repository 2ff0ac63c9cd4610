//! What comes into force before it is stored. Pure.
//!
//! Whatever raises the canary's exposure or promotes, and what a person asked for, is stored first: after a power cut the world
//! is no further than the store. What lowers the exposure acts first, and so does what happens by itself and leaves it as it is;
//! nobody waits for their being stored: while the disk takes its time the judges look on, also where something is to be raised
//! (`raising`).

use super::{
    ledger::{Exposure, Fact},
    store::Row,
};
use crate::{analysis::RunPhase, rollout::Event};

/// Whether facts that lead from `before` to `after` act first; `by_itself`: nobody asked for them, and the store works.
pub(super) fn acts_first(rows: &[Row], before: &Exposure, after: &Exposure, by_itself: bool) -> bool {
    let all = |of: fn(&Fact) -> bool| rows.iter().all(|row| of(&row.fact));
    let within = after.is_within(before);
    let lowers = within && after.weight < before.weight;
    let is_back = within || rows.iter().any(|row| is_undo(&row.fact));
    lowers || all(is_towards_stable) && is_back || by_itself && within && all(comes_by_itself)
}

/// What waits for a step that is being stored and comes again by itself: it does not speak against the step.
pub(super) fn waits(fact: &Fact) -> bool {
    comes_by_itself(fact) && !is_towards_stable(fact) && !speaks_against(fact)
}

/// What is found out about the canary, and is nothing good.
fn speaks_against(fact: &Fact) -> bool {
    let Fact::Moved { by } = fact else { return false };
    matches!(by, Event::ClientErrors { .. })
        || matches!(by, Event::AnalysisFinished { phase, .. } if *phase != RunPhase::Successful)
}

/// What only ever takes traffic away from a canary.
fn is_towards_stable(fact: &Fact) -> bool {
    match fact {
        Fact::Moved { by } => matches!(
            by,
            Event::Abort { .. }
                | Event::Undo { .. }
                | Event::HardFailure { .. }
                | Event::SharedFate { .. }
                | Event::AlarmRaised { .. }
                | Event::EndpointsLost
        ),
        Fact::Deploy(_)
        | Fact::Replace(_)
        | Fact::Endpoints { .. }
        | Fact::Block { .. }
        | Fact::Afterlife { .. } => false,
    }
}

/// What nobody asks for.
fn comes_by_itself(fact: &Fact) -> bool {
    match fact {
        Fact::Afterlife { .. } => true,
        Fact::Moved { by } => match by {
            Event::Tick
            | Event::EndpointsReady
            | Event::EndpointsLost
            | Event::AnalysisFinished { .. }
            | Event::EvidenceGathered { .. }
            | Event::EvidenceSuffices { .. }
            | Event::ClientErrors { .. }
            | Event::HardFailure { .. }
            | Event::SharedFate { .. }
            | Event::AlarmRaised { .. }
            | Event::AlarmCleared { .. } => true,
            // A start stores those of all services together.
            Event::Restarted { .. }
            | Event::Deploy { .. }
            | Event::SetSteps
            | Event::Promote { .. }
            | Event::Abort { .. }
            | Event::Retry
            | Event::Undo { .. }
            | Event::Pause
            | Event::Resume
            | Event::SetWeight { .. } => false,
        },
        Fact::Deploy(_) | Fact::Replace(_) | Fact::Endpoints { .. } | Fact::Block { .. } => false,
    }
}

fn is_undo(fact: &Fact) -> bool {
    matches!(
        fact,
        Fact::Moved {
            by: Event::Undo { .. }
        }
    )
}
