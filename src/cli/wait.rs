//! Waiting for a goal: `wait`, and `--until` of every changing verb.
//!
//! The server holds each question for a while; here is only what to make of the answers, and patience when Serin itself is
//! being restarted in between.

use super::{
    client::{Ask, Client, NoAnswer, segment},
    exit::{Exit, Failure},
    explain::goes_on,
    out::Out,
    render,
};
use crate::{admin::Wait, control::ServiceStatus, rollout::Verb};
use std::time::Duration;
use tokio::time::Instant;

/// How long one question is held: also how late progress is shown.
const HELD: Duration = Duration::from_secs(2);
/// How long Serin may be away while somebody waits: a restart.
const AWAY: Duration = Duration::from_secs(60);

/// How a wait ended, and where the service stood then.
#[derive(Debug)]
pub(super) struct Ended {
    /// With which code.
    pub(super) exit: Exit,
    /// Where it stood.
    pub(super) status: ServiceStatus,
}

/// Waits until the goal is reached, out of reach, or time is up. Says on the way what changes.
pub(super) async fn wait(
    client: &Client,
    service: &str,
    wait: &Wait,
    limit: Option<Duration>,
    out: &mut Out,
) -> Result<Ended, Failure> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    let mut answered: Option<Instant> = None;
    let mut shown = String::new();
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let held = left.map_or(HELD, |left| left.min(HELD));
        let status: ServiceStatus = match client.ask(&question(service, wait, held)).await {
            Ok(status) => status,
            Err(NoAnswer::Broken(failure)) => {
                let gone = answered.is_none_or(|last| last.elapsed() > AWAY);
                if gone || left.is_some_and(|left| left.is_zero()) {
                    return Err(failure);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
            Err(refused @ NoAnswer::Refused(_)) => return Err(refused.into()),
        };
        answered = Some(Instant::now());
        let brief = render::brief(&status);
        if brief != shown {
            out.note(format!("{service}  {brief}"));
            shown = brief;
        }
        if let Some(exit) = Exit::of_standing(wait.judge(&status)) {
            return Ok(Ended { exit, status });
        }
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(Ended {
                exit: Exit::TimedOut,
                status,
            });
        }
    }
}

fn question(service: &str, wait: &Wait, held: Duration) -> Ask {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("until", &wait.goal.to_string());
    query.append_pair("timeout", &format!("{}ms", held.as_millis()));
    if let Some(version) = &wait.version {
        query.append_pair("version", version.as_str());
    }
    if wait.through_pauses {
        query.append_pair("throughPauses", "true");
    }
    Ask::get(format!("/v1/services/{}?{}", segment(service), query.finish())).held_for(held)
}

/// Why a wait ended as it did, in one sentence.
pub(super) fn why(ended: &Ended, wait: &Wait) -> String {
    let status = &ended.status;
    let service = &status.service;
    let wanted = wait.version.as_ref().or(status.desired.as_ref());
    let version = wanted.map_or("the version".to_owned(), ToString::to_string);
    let message = render::plain(&status.message);
    match ended.exit {
        Exit::Reached => format!("{service}: {} reached ({})", wait.goal, render::brief(status)),
        Exit::RolledBack => {
            let said = status
                .aborted
                .as_ref()
                .map(|aborted| render::plain(&aborted.message));
            let said = said.filter(|said| !said.is_empty()).unwrap_or(message);
            format!("{service}: {version} was rolled back: {said}")
        }
        Exit::TimedOut => format!(
            "{service}: time is up and {} is not reached; the rollout goes on ({})",
            wait.goal,
            render::brief(status)
        ),
        Exit::NeedsHuman => {
            let verbs = goes_on(status).map(Verb::as_str);
            let verbs = verbs.chain(["abort"]).collect::<Vec<_>>().join(" or ");
            format!("{service}: waits for somebody ({message}): {verbs} it; --through-pauses waits on")
        }
        Exit::Superseded => {
            let now = status
                .desired
                .as_ref()
                .map_or("another".to_owned(), ToString::to_string);
            format!("{service}: {now} took the place of {version}")
        }
        Exit::Usage => format!(
            "{service}: {} can never be reached: there is no such version or step",
            wait.goal
        ),
        Exit::Internal | Exit::Conflict | Exit::Unauthorised => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Standing;
    use crate::admin::fixtures::{degraded, healthy, name, paused, rolling};

    fn for_v2(goal: &str) -> Wait {
        Wait {
            goal: goal.parse().unwrap(),
            version: Some(name("v2")),
            through_pauses: false,
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "everything else ends the wait")]
    fn exit_now(wait: &Wait, status: &ServiceStatus) -> Exit {
        match wait.judge(status) {
            Standing::Waiting => Exit::TimedOut,
            other => Exit::of_standing(other).unwrap(),
        }
    }

    #[test]
    fn every_end_has_its_code_and_its_sentence() {
        let superseded = ServiceStatus {
            canary: Some(name("v3")),
            desired: Some(name("v3")),
            rollout: None,
            ..rolling()
        };
        for (goal, status, code, part) in [
            ("healthy", healthy(), 0, "reached"),
            ("step=9", rolling(), 2, "can never be reached"),
            ("healthy", degraded(), 3, "v2 was rolled back: RolloutAborted"),
            ("healthy", rolling(), 4, "goes on"),
            ("healthy", paused(None), 5, "waits for somebody"),
            ("healthy", superseded, 8, "v3 took the place of v2"),
        ] {
            let wait = for_v2(goal);
            let exit = exit_now(&wait, &status);
            assert_eq!(exit.code(), code, "{goal}");
            let said = why(&Ended { exit, status }, &wait);
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn a_question_says_everything_that_is_waited_for() {
        let asked = format!(
            "{:?}",
            question("shop", &for_v2("weight=1/3"), Duration::from_secs(2))
        );
        assert!(
            asked.contains("/v1/services/shop?until=weight%3D1%2F3&timeout=2000ms&version=v2"),
            "{asked}"
        );
    }
}
