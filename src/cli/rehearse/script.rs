//! A user's own plan, rehearsed: the `events` of a scenario file on a configured service.

use super::{BadScenario, Printer, bad, player::Player, rollout};
use crate::{config, model::VersionName, rollout::Plan};
use serde_json::Value;
use std::path::Path;

/// What a scenario with `events` runs on.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// The service's plan.
    pub plan: Plan,
    /// Its stable version.
    pub stable: VersionName,
}

impl Planned {
    /// The plan of a configured service. Without a name the configuration must have exactly one service.
    pub fn of(file: &Path, service: Option<&str>) -> Result<Planned, BadScenario> {
        let loaded = config::load(file).or_else(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            bad(lines.join("\n"))
        })?;
        let services = &loaded.config.services;
        let names: Vec<&str> = services.iter().map(|service| service.name.as_str()).collect();
        let service = match (service, &services[..]) {
            (Some(name), _) => loaded.config.service(name),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        let Some(service) = service else {
            return bad(format_args!(
                "{}: name one of its services with --service: {}",
                file.display(),
                names.join(", ")
            ));
        };
        let stable = match &service.stable {
            Some(block) => block.version.clone(),
            None => VersionName::new("stable").or_else(bad)?,
        };
        Ok(Planned {
            plan: service.plan.clone(),
            stable,
        })
    }
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
