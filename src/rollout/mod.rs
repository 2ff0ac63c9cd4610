//! Plan, state, event, effect and the one transition function. Pure.
//!
//! A rollout is a [`State`] that [`transition`] moves by one [`Event`] at a time, along the [`Plan`] it was deployed with.
//! The clock, the store and the proxy are somebody else's: `control::engine` stores an event, calls [`transition`] and
//! performs the [`Effect`]s, each of which is safe to repeat. `cli::rehearse` runs the same machine in virtual time.

mod effect;
mod event;
mod plan;
mod refused;
mod state;
mod status;
mod steps;
mod transition;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use effect::{AnalysisKind, Effect, Notice, Trigger};
pub use event::Event;
pub use plan::{
    AnalysisRef, Background, Bake, BlueGreen, Canary, Experiment, HeaderRoute, MirrorRoute, Pause, Plan,
    RollbackWindow, Step, StepArg, Strategy, TemplateRef, UntilEvidence,
};
pub use refused::{Refused, Verb};
pub use state::{
    AbortCause, Aborted, At, BackgroundRun, Former, Hold, Pool, Ringing, Rolling, Route, RouteKind, RunId,
    Stage, State,
};
pub use status::{PauseReason, Phase};
pub use transition::{Moved, transition};
