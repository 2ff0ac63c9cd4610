//! The one function that moves a rollout. Total: no clock, no dice, no I/O, no panic.

use super::{effect::Effect, event::Event, plan::Plan, refused::Refused, state::State};
use crate::model::Timestamp;

/// The new state, and what the world must look like because of it.
pub type Moved = (State, Vec<Effect>);

/// Moves a rollout by one event. `now` must not include time that does not count (see [`Event::Restarted`]).
pub fn transition(state: &State, event: &Event, plan: &Plan, now: Timestamp) -> Result<Moved, Refused> {
    let _ = (now, event);
    Err(Refused {
        event: event.name().to_owned(),
        reason: "the machine is being built".to_owned(),
        hint: None,
        legal: state.legal_verbs(plan),
    })
}
