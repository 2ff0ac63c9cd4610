//! A user's own plan, rehearsed: the `events` of a scenario file on a configured service.

use super::{BadScenario, Printer, bad, player::Player, rollout};
use crate::{model::VersionName, rollout::Plan};
use serde_json::Value;

/// What a scenario with `events` runs on.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// The service's plan.
    pub plan: Plan,
    /// Its stable version.
    pub stable: VersionName,
}

/// Replays the events; whether everything they expect came out.
pub(super) fn replay(
    events: &Value,
    planned: &Planned,
    printer: &mut Printer<'_>,
) -> Result<bool, BadScenario> {
    let Value::Array(events) = events else {
        return bad("`events` must be a list such as [{t: 0, do: deploy, version: v2}]");
    };
    let mut player = Player::new(planned.plan.clone(), &planned.stable);
    let mut held = true;
    for (index, item) in events.iter().enumerate() {
        let at = |error| bad(format_args!("events[{index}]: {error}"));
        held &= rollout::step(&mut player, item, printer).or_else(at)?;
    }
    Ok(held)
}
