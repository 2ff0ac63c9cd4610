//! What somebody waits for, and whether a status has reached it.
//!
//! Pure: the long poll of `services` and the command line's `--until` ask the same function, so they cannot disagree.

use crate::{
    control::{ServiceStatus, VersionState},
    model::{VersionName, Weight},
    rollout::Phase,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

/// What somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// The version is stable.
    Healthy,
    /// The rollout stands at a pause.
    Paused,
    /// The rollout has come to this step (counted from 0) or further.
    Step(usize),
    /// The canary has this share or more.
    Weight(Weight),
    /// Nothing is in flight to this version any more: its processes may be stopped.
    Released(VersionName),
}

/// A goal that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a goal: write healthy, paused, step=N, weight=P or released=VERSION")]
pub struct BadGoal(String);

impl FromStr for Goal {
    type Err = BadGoal;

    fn from_str(text: &str) -> Result<Goal, BadGoal> {
        let bad = || BadGoal(text.to_owned());
        match text.split_once('=') {
            None if text == "healthy" => Ok(Goal::Healthy),
            None if text == "paused" => Ok(Goal::Paused),
            Some(("step", step)) => step.parse().map(Goal::Step).map_err(|_| bad()),
            Some(("weight", weight)) => weight.parse().map(Goal::Weight).map_err(|_| bad()),
            Some(("released", version)) => VersionName::new(version).map(Goal::Released).map_err(|_| bad()),
            None | Some(_) => Err(bad()),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::Healthy => f.write_str("healthy"),
            Goal::Paused => f.write_str("paused"),
            Goal::Step(step) => write!(f, "step={step}"),
            Goal::Weight(weight) => write!(f, "weight={weight}"),
            Goal::Released(version) => write!(f, "released={version}"),
        }
    }
}

impl Serialize for Goal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Goal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Goal, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// How far a service is from a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Standing {
    /// There, or already past it.
    Reached,
    /// On the way.
    Waiting,
    /// The version was rolled back or aborted.
    RolledBack,
    /// It waits for somebody, and would for ever.
    NeedsHuman,
    /// Another version has taken its place.
    Superseded,
    /// It can never be reached: there is no such version or step.
    Impossible,
}

impl Standing {
    /// The value of the answer's field `serin-goal`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Standing::Reached => "reached",
            Standing::Waiting => "waiting",
            Standing::RolledBack => "rolledBack",
            Standing::NeedsHuman => "needsHuman",
            Standing::Superseded => "superseded",
            Standing::Impossible => "impossible",
        }
    }
}

/// A goal, for which version, and whether pauses that wait for somebody are waited through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// What is waited for.
    pub goal: Goal,
    /// The version it is about. Absent: whichever was asked for last.
    pub version: Option<VersionName>,
    /// Keep waiting at pauses without an end.
    pub through_pauses: bool,
}

/// The alarm ends by itself as well.
fn is_held_by_alarm(status: &ServiceStatus) -> bool {
    status.phase == Phase::Paused && status.reason.as_deref() == Some("Alarm")
}

impl Wait {
    /// How far this status is from the goal.
    pub fn judge(&self, status: &ServiceStatus) -> Standing {
        if let Goal::Released(version) = &self.goal {
            return self.judge_released(status, version);
        }
        let Some(version) = self.version.as_ref().or(status.desired.as_ref()) else {
            return Standing::Waiting;
        };
        if status.canary.as_ref() == Some(version) {
            return self.judge_trial(status);
        }
        if status.stable.as_ref() == Some(version) && status.canary.is_none() {
            // A version that was asked for and is not stable was pulled back; asking for stable's own name is done.
            let pulled_back = self.version.is_none() && status.phase == Phase::Degraded;
            return if pulled_back {
                Standing::RolledBack
            } else {
                Standing::Reached
            };
        }
        if status.stable.as_ref() == Some(version) {
            // It was promoted and the next one is on trial already.
            return Standing::Reached;
        }
        if status.rolled_back_from.as_ref() == Some(version)
            || status
                .aborted
                .as_ref()
                .is_some_and(|aborted| aborted.version == *version)
        {
            return Standing::RolledBack;
        }
        let ours = |rollout: &crate::control::RolloutStatus| rollout.version == *version;
        match (&status.rollout, &status.canary) {
            // Undone, or ended in another way that leaves stable alone.
            (Some(rollout), None) if ours(rollout) && rollout.ended.is_some() => Standing::RolledBack,
            (Some(rollout), _) if ours(rollout) => Standing::Waiting,
            (None, None) if status.stable.is_none() => Standing::Waiting,
            (Some(_) | None, _) => Standing::Superseded,
        }
    }

    /// The version is on trial.
    fn judge_trial(&self, status: &ServiceStatus) -> Standing {
        let reached = match &self.goal {
            Goal::Healthy | Goal::Released(_) => false,
            // What the alarm holds stands at no gate of its plan: a `promote` after this would pass one unseen.
            Goal::Paused => status.phase == Phase::Paused && !is_held_by_alarm(status),
            Goal::Step(wanted) => match &status.step {
                Some(step) if *wanted > step.count => return Standing::Impossible,
                Some(step) => step.index >= *wanted,
                None => false,
            },
            Goal::Weight(wanted) => status.set_weight >= *wanted,
        };
        if reached {
            Standing::Reached
        } else {
            self.unless_stuck(status)
        }
    }

    fn unless_stuck(&self, status: &ServiceStatus) -> Standing {
        let paused = status.paused.as_ref();
        let endless = paused.is_none_or(|paused| paused.until.is_none()) && !is_held_by_alarm(status);
        if status.phase == Phase::Paused && endless && !self.through_pauses {
            Standing::NeedsHuman
        } else {
            Standing::Waiting
        }
    }

    fn judge_released(&self, status: &ServiceStatus, version: &VersionName) -> Standing {
        let Some(known) = status.versions.iter().find(|known| known.version == *version) else {
            return Standing::Impossible;
        };
        match known.state {
            VersionState::Releasable | VersionState::Gone => Standing::Reached,
            VersionState::Warm | VersionState::Draining => Standing::Waiting,
            // The newcomer was pulled back: the old version goes on serving.
            VersionState::Serving if status.phase == Phase::Degraded => Standing::RolledBack,
            VersionState::Serving => self.unless_stuck(status),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::{ServiceName, Timestamp};

    /// A service on its way: v1 stable, v2 at 5 % in step 1 of 4.
    pub(crate) fn rolling() -> ServiceStatus {
        let status = serde_json::json!({
            "service": "shop", "phase": "Progressing", "reason": null, "message": "waiting for all steps to complete",
            "stable": "v1", "canary": "v2", "desired": "v2", "rolledBackFrom": null,
            "rollout": {"id": "7c1e", "version": "v2", "attempt": 1, "started": "2026-01-02T10:00:00Z", "ended": null,
                "actor": "ci", "sequence": null, "strategy": "canary"},
            "step": {"index": 1, "count": 4, "text": "pause 5m",
                "all": ["setWeight 5%", "pause 5m", "setWeight 50%", "pause"]},
            "setWeight": 5,
            "observed": {"requests": 24091, "canary": 1204, "share": 0.04998, "error": -0.55},
            "paused": null, "aborted": null,
            "versions": [
                {"version": "v1", "role": "stable", "state": "serving", "since": "2026-01-02T09:00:00Z", "until": null,
                 "inFlight": 3, "endpoints": [{"url": "http://127.0.0.1:9001", "ready": true, "failures": 0, "healthy": true}],
                 "evidence": {"requests": 22887, "errors": 94, "errorRate": 0.0041, "p50": 0.012, "p99": 0.088}},
                {"version": "v2", "role": "canary", "state": "serving", "since": "2026-01-02T10:00:00Z", "until": null,
                 "inFlight": 1, "endpoints": [{"url": "http://127.0.0.1:9002", "ready": true, "failures": 0, "healthy": true}],
                 "evidence": {"requests": 1204, "errors": 4, "errorRate": 0.0033, "p50": 0.012, "p99": 0.091}}],
            "analyses": [], "legal": ["deploy", "promote", "abort"], "drift": [], "warnings": [], "generation": 17,
            "updated": "2026-01-02T10:05:00Z"
        });
        serde_json::from_value(status).unwrap()
    }

    /// The same, paused at step 1; until then, or until somebody says so.
    pub(crate) fn paused(until: Option<Timestamp>) -> ServiceStatus {
        ServiceStatus {
            phase: Phase::Paused,
            reason: Some("CanaryPauseStep".to_owned()),
            message: "CanaryPauseStep".to_owned(),
            paused: Some(crate::control::PausedStatus {
                since: "2026-01-02T10:00:00Z".parse_as(),
                until,
                reason: "CanaryPauseStep".to_owned(),
            }),
            ..rolling()
        }
    }

    /// The same, promoted.
    pub(crate) fn healthy() -> ServiceStatus {
        ServiceStatus {
            phase: Phase::Healthy,
            stable: Some(name("v2")),
            canary: None,
            message: String::new(),
            set_weight: Weight::ZERO,
            ..rolling()
        }
    }

    /// The same, pulled back.
    pub(crate) fn degraded() -> ServiceStatus {
        ServiceStatus {
            phase: Phase::Degraded,
            canary: None,
            rolled_back_from: Some(name("v2")),
            set_weight: Weight::ZERO,
            message: "RolloutAborted: metric \"error-rate\" failed".to_owned(),
            ..rolling()
        }
    }

    trait ParseAs {
        fn parse_as(&self) -> Timestamp;
    }
    impl ParseAs for str {
        fn parse_as(&self) -> Timestamp {
            serde_json::from_value(serde_json::Value::from(self)).unwrap()
        }
    }

    pub(crate) fn name(version: &str) -> VersionName {
        VersionName::new(version).unwrap()
    }

    fn judge(goal: &str, version: Option<&str>, status: &ServiceStatus) -> Standing {
        Wait {
            goal: goal.parse().unwrap(),
            version: version.map(name),
            through_pauses: false,
        }
        .judge(status)
    }

    #[test]
    fn a_goal_reads_back_as_it_is_shown() {
        for text in [
            "healthy",
            "paused",
            "step=3",
            "weight=25%",
            "weight=1/3",
            "released=v41",
        ] {
            assert_eq!(text.parse::<Goal>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "Healthy",
            "step=",
            "step=x",
            "weight=101",
            "released=",
            "released=a b",
            "done=1",
        ] {
            assert!(bad.parse::<Goal>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_the_alarm_holds_stands_at_no_gate_and_waits_for_nobody() {
        let by_hand = paused(None);
        assert_eq!(judge("healthy", Some("v2"), &by_hand), Standing::NeedsHuman);
        assert_eq!(judge("paused", Some("v2"), &by_hand), Standing::Reached);
        let held = ServiceStatus {
            reason: Some("Alarm".to_owned()),
            ..by_hand
        };
        assert_eq!(judge("healthy", Some("v2"), &held), Standing::Waiting);
        assert_eq!(judge("paused", Some("v2"), &held), Standing::Waiting);
    }

    #[test]
    fn healthy_is_reached_by_the_version_and_not_by_a_rollback() {
        assert_eq!(judge("healthy", Some("v2"), &rolling()), Standing::Waiting);
        assert_eq!(judge("healthy", Some("v2"), &healthy()), Standing::Reached);
        assert_eq!(judge("healthy", None, &healthy()), Standing::Reached);
        assert_eq!(judge("healthy", Some("v2"), &degraded()), Standing::RolledBack);
        assert_eq!(judge("healthy", None, &degraded()), Standing::RolledBack);
    }

    #[test]
    fn an_endless_pause_needs_somebody_and_a_timed_one_does_not() {
        let later = Timestamp::from_secs(4_000_000_000);
        assert_eq!(judge("healthy", Some("v2"), &paused(None)), Standing::NeedsHuman);
        assert_eq!(
            judge("healthy", Some("v2"), &paused(Some(later))),
            Standing::Waiting
        );
        assert_eq!(judge("paused", Some("v2"), &paused(None)), Standing::Reached);
        let patient = Wait {
            goal: Goal::Healthy,
            version: None,
            through_pauses: true,
        };
        assert_eq!(patient.judge(&paused(None)), Standing::Waiting);
    }

    #[test]
    fn steps_and_weights_are_reached_when_passed() {
        assert_eq!(judge("step=1", None, &rolling()), Standing::Reached);
        assert_eq!(judge("step=2", None, &rolling()), Standing::Waiting);
        assert_eq!(judge("step=9", None, &rolling()), Standing::Impossible);
        assert_eq!(judge("weight=5", None, &rolling()), Standing::Reached);
        assert_eq!(judge("weight=5.01", None, &rolling()), Standing::Waiting);
        for past in ["step=2", "weight=50", "paused"] {
            assert_eq!(judge(past, Some("v2"), &healthy()), Standing::Reached, "{past}");
        }
    }

    #[test]
    fn another_version_in_its_place_is_superseded() {
        let other = ServiceStatus {
            canary: Some(name("v3")),
            desired: Some(name("v3")),
            rollout: rolling().rollout.map(|rollout| crate::control::RolloutStatus {
                version: name("v3"),
                ..rollout
            }),
            ..rolling()
        };
        assert_eq!(judge("healthy", Some("v2"), &other), Standing::Superseded);
        let undone = ServiceStatus {
            phase: Phase::Healthy,
            canary: None,
            rollout: rolling().rollout.map(|rollout| crate::control::RolloutStatus {
                ended: Some(Timestamp::from_secs(2_000_000_000)),
                ..rollout
            }),
            desired: Some(name("v1")),
            ..rolling()
        };
        assert_eq!(judge("healthy", Some("v2"), &undone), Standing::RolledBack);
    }

    #[test]
    fn released_waits_until_nothing_is_in_flight() {
        let with = |state| {
            let mut status = healthy();
            status.service = ServiceName::new("shop").unwrap();
            status.versions[0].state = state;
            judge("released=v1", None, &status)
        };
        assert_eq!(with(VersionState::Warm), Standing::Waiting);
        assert_eq!(with(VersionState::Draining), Standing::Waiting);
        assert_eq!(with(VersionState::Releasable), Standing::Reached);
        assert_eq!(with(VersionState::Gone), Standing::Reached);
        assert_eq!(judge("released=v1", None, &degraded()), Standing::RolledBack);
        assert_eq!(judge("released=v9", None, &healthy()), Standing::Impossible);
    }
}
