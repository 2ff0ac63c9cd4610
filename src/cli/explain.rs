//! `serin explain`: why a service stands where it stands, and what would move it.

use super::render;
use crate::{
    analysis::RunPhase,
    control::{ServiceStatus, VersionState},
    model::Timestamp,
    rollout::{Phase, Verb},
};

/// In sentences, each with what it rests on.
pub(super) fn explain(status: &ServiceStatus, now: Timestamp) -> String {
    let mut lines = vec![render::headline(status, now), String::new()];
    let service = &status.service;
    match status.phase {
        Phase::Healthy => healthy(status, &mut lines),
        Phase::Degraded => degraded(status, &mut lines),
        Phase::Paused => paused(status, now, &mut lines),
        Phase::Progressing => progressing(status, &mut lines),
    }
    for run in status
        .analyses
        .iter()
        .filter(|run| run.phase == RunPhase::Running)
    {
        lines.push(format!("Analysis #{} is running:", run.run));
        lines.extend(
            run.metrics
                .iter()
                .map(|metric| format!("  {}", render::metric_line(metric))),
        );
    }
    let ended = status.analyses.iter().filter(|run| run.phase.is_completed());
    let here = ended.filter(|run| {
        status
            .rollout
            .as_ref()
            .is_some_and(|rollout| rollout.id == run.rollout)
    });
    let observed = here.flat_map(|run| &run.metrics).filter(|metric| {
        metric.dry_run
            && matches!(
                metric.phase,
                RunPhase::Failed | RunPhase::Error | RunPhase::Inconclusive
            )
    });
    lines.extend(
        observed.map(|metric| format!("It was observed, without a say: {}", render::metric_line(metric))),
    );
    for drift in &status.drift {
        lines.push(format!("The file says something else: {drift}."));
    }
    for warning in &status.warnings {
        lines.push(format!("Needs attention: {warning}."));
    }
    let legal: Vec<String> = status
        .legal
        .iter()
        .map(|verb| match verb.as_str().split_once(' ') {
            Some((verb, flag)) => format!("serin {verb} {service} {flag}"),
            None => format!("serin {} {service}", verb.as_str()),
        })
        .collect();
    if !legal.is_empty() {
        lines.push(String::new());
        lines.push(format!("Possible now: {}", legal.join(" · ")));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn healthy(status: &ServiceStatus, lines: &mut Vec<String>) {
    if let Some(stable) = &status.stable {
        lines.push(format!(
            "{stable} serves everything and nothing else was asked for."
        ));
    }
    lines.push("It moves when somebody deploys another version.".to_owned());
    let old = status.versions.iter().filter(|version| version.role.is_none());
    for version in old {
        let name = &version.version;
        lines.push(match version.state {
            VersionState::Warm => format!(
                "{name} is warm: `serin undo {}` goes back at once.",
                status.service
            ),
            VersionState::Draining => format!("{name} finishes {} requests.", version.in_flight),
            VersionState::Releasable => {
                format!("{name} has nothing in flight: its processes may be stopped.")
            }
            VersionState::Gone | VersionState::Serving => continue,
        });
    }
}

fn degraded(status: &ServiceStatus, lines: &mut Vec<String>) {
    if let Some(aborted) = &status.aborted {
        let (version, at) = (&aborted.version, aborted.at);
        lines.push(format!(
            "{version} was pulled back at {at}: {}.",
            render::plain(&aborted.message)
        ));
    }
    if let Some(stable) = &status.stable {
        lines.push(format!(
            "{stable} serves everything; users are safe, but what was asked for is not there."
        ));
    }
    let service = &status.service;
    lines.push(format!(
        "It moves when somebody deploys a mended version, or tries the same again (`serin retry {service}`), or lets it \
         be (`serin undo {service}`)."
    ));
}

fn paused(status: &ServiceStatus, now: Timestamp, lines: &mut Vec<String>) {
    let reason = status.reason.as_deref().unwrap_or("paused");
    lines.push(match reason {
        "CanaryPauseStep" => "The plan pauses here.".to_owned(),
        "Alarm" => "More of the service fails than its alarm allows, whichever version answers: that is no evidence against the \
                    canary, but nothing goes on before it is over."
            .to_owned(),
        "Bake" => format!(
            "{} serves nearly everything, a small share stays on stable as a control group: a regression now still rolls \
             back.",
            status.canary.as_ref().map_or("The new version", |canary| canary.as_str())
        ),
        "NoEvidence" => {
            "The judge has not learned enough in the time that the plan gives it: somebody must decide."
                .to_owned()
        }
        "BlueGreenPause" => "The new version is ready and waits for the switch.".to_owned(),
        "SharedFate" => {
            "Stable failed just as the canary did: whatever is wrong, it is not this release alone."
                .to_owned()
        }
        "HardFailure" => "Every endpoint of the canary failed at once; it gets no traffic.".to_owned(),
        "InconclusiveAnalysisRun" | "InconclusiveExperiment" => {
            "An analysis ended without a verdict: somebody must decide.".to_owned()
        }
        "ClientErrors" => {
            "The canary answers 4xx to another share of its requests than stable, which is for somebody to judge: a client error is no \
             failure of the version. Once it goes on it is not paused for that again."
                .to_owned()
        }
        "AnalysisRunError" => "An analysis could not measure: somebody must decide.".to_owned(),
        other => format!("It is {other}."),
    });
    match status.paused.as_ref().and_then(|paused| paused.until) {
        Some(until) => lines.push(format!(
            "It goes on by itself in {}.",
            render::short(until.since(now))
        )),
        None => {
            let verbs = goes_on(status).map(|verb| format!("`serin {verb} {}`", status.service));
            let verbs = verbs.collect::<Vec<_>>().join(" or ");
            let when = if reason == "Alarm" {
                "by itself when the alarm is over, or when"
            } else {
                "when"
            };
            lines.push(format!("It goes on {when} somebody says so: {verbs}."));
        }
    }
    next_step(status, lines);
}

/// The verbs that would let it go on now.
pub(super) fn goes_on(status: &ServiceStatus) -> impl Iterator<Item = Verb> + '_ {
    let verbs = [Verb::Promote, Verb::Resume];
    verbs.into_iter().filter(|verb| status.legal.contains(verb))
}

fn progressing(status: &ServiceStatus, lines: &mut Vec<String>) {
    let Some(canary) = &status.canary else {
        lines.push("No version has been deployed. It moves with the first `serin deploy`.".to_owned());
        return;
    };
    let version = status.versions.iter().find(|version| version.version == *canary);
    let down: Vec<&str> = version
        .iter()
        .flat_map(|version| &version.endpoints)
        .filter(|endpoint| !(endpoint.ready && endpoint.healthy))
        .map(|endpoint| endpoint.url.as_str())
        .collect();
    if status.message.contains("waiting for endpoints") {
        lines.push(format!(
            "{canary} gets no traffic until enough of its endpoints are ready."
        ));
    }
    if status.reason.as_deref() == Some("WaitingForEvidence") {
        let service = &status.service;
        lines.push(format!(
            "It goes on by itself as soon as the evidence suffices, and never by silence; `serin promote {service} \
             --skip-analysis` goes on without."
        ));
    }
    if !down.is_empty() {
        lines.push(format!("Not ready: {}.", down.join(", ")));
    }
    if let Some(step) = &status.step {
        lines.push(if step.index < step.count {
            format!("It is at step {} of {}: {}.", step.index, step.count, step.text)
        } else {
            format!("All {} steps are done.", step.count)
        });
    }
    next_step(status, lines);
}

fn next_step(status: &ServiceStatus, lines: &mut Vec<String>) {
    let Some(step) = &status.step else { return };
    let next = step.all.get(step.index + 1);
    lines.push(match next {
        Some(next) => format!("Next: {next}."),
        None if step.index < step.count => "After this step the version becomes stable.".to_owned(),
        None => "Next: the version becomes stable.".to_owned(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fixtures::{degraded, healthy, paused, rolling};

    fn said(status: &ServiceStatus) -> String {
        explain(status, status.updated)
    }

    #[test]
    fn each_phase_says_what_would_move_it() {
        assert!(said(&healthy()).contains("when somebody deploys"));
        assert!(said(&degraded()).contains("serin retry shop"));
        assert!(said(&paused(None)).contains("serin promote shop"));
        let rolling = said(&rolling());
        assert!(
            rolling.contains("step 1 of 4: pause 5m") && rolling.contains("Next: setWeight 50%"),
            "{rolling}"
        );
    }

    #[test]
    fn a_pause_of_the_plan_is_promoted_and_a_pause_by_hand_resumed_too() {
        let mut status = paused(None);
        status.legal = vec![Verb::Promote, Verb::Abort];
        assert!(
            said(&status).contains("says so: `serin promote shop`.\n"),
            "{}",
            said(&status)
        );
        status.legal.push(Verb::Resume);
        assert!(said(&status).contains("says so: `serin promote shop` or `serin resume shop`.\n"));
    }

    #[test]
    fn a_plan_at_its_end_that_waits_for_evidence_says_what_ends_the_wait() {
        let mut status = rolling();
        status.reason = Some("WaitingForEvidence".to_owned());
        if let Some(step) = &mut status.step {
            (step.index, step.text) = (4, String::new());
        }
        let said = said(&status);
        assert!(
            said.contains("as soon as the evidence suffices")
                && said.contains("`serin promote shop --skip-analysis`"),
            "{said}"
        );
        assert!(
            said.contains("All 4 steps are done.\nNext: the version becomes stable.\n"),
            "{said}"
        );
    }

    #[test]
    fn what_only_observed_and_found_harm_is_said_when_it_has_ended() {
        let mut status = rolling();
        let analyses = serde_json::json!([{
            "run": 1, "kind": "background", "rollout": "7c1e", "version": "v2", "phase": "Failed", "reason": null,
            "message": "", "started": "2026-01-02T10:00:00Z", "ended": "2026-01-02T10:01:00Z",
            "metrics": [{"name": "watching", "phase": "Failed", "message": "ROLL BACK at weight 5%", "dryRun": true,
                "successCondition": null, "failureCondition": null, "count": 1, "successful": 0, "failed": 1,
                "inconclusive": 0, "errors": 0, "measurements": []}]
        }]);
        status.analyses = serde_json::from_value(analyses).unwrap();
        let heard = said(&status);
        assert!(
            heard.contains("It was observed, without a say: watching  Failed"),
            "{heard}"
        );
        // That was another rollout.
        status.analyses[0].rollout = "0ld".to_owned();
        assert!(!said(&status).contains("observed"));
    }

    #[test]
    fn endpoints_that_are_not_ready_are_named() {
        let mut status = rolling();
        status.message = "waiting for endpoints".to_owned();
        status.versions[1].endpoints[0].ready = false;
        let said = said(&status);
        assert!(
            said.contains("no traffic until") && said.contains("http://127.0.0.1:9002"),
            "{said}"
        );
    }

    #[test]
    fn only_what_is_possible_is_offered() {
        let last = said(&rolling());
        let offered = last
            .lines()
            .find(|line| line.starts_with("Possible now"))
            .unwrap();
        assert_eq!(
            offered,
            "Possible now: serin deploy shop · serin promote shop · serin abort shop"
        );
    }
}
