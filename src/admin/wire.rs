//! What requests say. Answers are `control`'s own types; the command line writes and reads both.
//!
//! Unknown fields are refused by name, because a misspelt `skipAnalysis` must not be a plain promote.

use super::Problem;
use crate::{
    control::{Change, Expect, OnConflict, ServiceStatus},
    model::{EndpointUrl, VersionName, Weight},
    rollout::Step,
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// All services.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceList {
    /// By name.
    pub services: Vec<ServiceStatus>,
}

/// `POST …/deploy`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeployRequest {
    /// The release's name.
    pub version: VersionName,
    /// Where it listens. Absent: a version whose endpoints are known.
    #[serde(default)]
    pub endpoints: Vec<EndpointUrl>,
    /// Steps of its own, spelled as in the configuration; they may name templates, never bring providers. Absent: the
    /// service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<Value>>,
    /// What happens to another rollout that is going on. Absent: it is superseded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_conflict: Option<OnConflict>,
    /// Counts up with a pipeline's releases: a lower one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Start again at step 0 with a new plan, even if this version is on trial. Absent: no.
    #[serde(default)]
    pub replace: bool,
    /// What the caller believes; nothing is done when it does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What `endpoints` does to the set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum EndpointsVerb {
    /// This is the whole set.
    #[default]
    Set,
    /// These too.
    Add,
    /// These no longer: they finish what they have.
    Drain,
}

/// `PUT …/versions/{v}/endpoints`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointsRequest {
    /// Which.
    pub endpoints: Vec<EndpointUrl>,
    /// How the set changes. Absent: these are the whole set.
    #[serde(default)]
    pub change: EndpointsVerb,
    /// What the caller believes; nothing is done when it does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `POST …/promote`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PromoteRequest {
    /// Skip everything that is left; takes the role `admin`.
    #[serde(default)]
    pub full: bool,
    /// Also pass a running analysis; takes the role `admin`.
    #[serde(default)]
    pub skip_analysis: bool,
    /// What the caller believes; nothing is done when it does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `POST …/abort`, `/retry`, `/pause`, `/resume`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VerbRequest {
    /// What the caller believes; nothing is done when it does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `POST /v1/config/reload` and others that concern no one service: there is nothing to expect of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReasonRequest {
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `POST …/undo`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UndoRequest {
    /// Which version. Absent: stable during a rollout, otherwise the one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<VersionName>,
    /// What the caller believes; nothing is done when it does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `PUT …/weight`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WeightRequest {
    /// The canary's share.
    pub weight: Weight,
    /// What the caller believes; nothing is done when it does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `POST /v1/config/check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigText {
    /// A whole configuration file; what it names is looked for beside the running one.
    pub text: String,
}

/// What a checked configuration is good for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigCheck {
    /// Whether a reload would take it.
    pub ok: bool,
    /// Each fault, with its place and mend.
    pub problems: Vec<String>,
    /// What would be taken but is likely not meant.
    pub warnings: Vec<String>,
}

/// What a reload changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reloaded {
    /// Service by service; empty: nothing that is acted on.
    pub changes: Vec<Change>,
}

/// Reads the steps of a deploy. What `rollout` would ignore is refused here: an inline provider above all.
pub(super) fn steps(given: &[Value]) -> Result<Vec<Step>, Problem> {
    let step = |(index, value): (usize, &Value)| {
        let bad = |why: String| {
            Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalidSteps",
                format!("steps[{index}]: {why}"),
            )
        };
        let Some((key, inner)) = value
            .as_object()
            .filter(|all| all.len() == 1)
            .and_then(|all| all.iter().next())
        else {
            return Err(bad("a step is an object with one key".to_owned())
                .hint("for example {\"setWeight\": 5} or {\"pause\": {\"duration\": \"5m\"}}"));
        };
        let allowed: &[&str] = match key.as_str() {
            "setWeight" => &[],
            "pause" => &["duration", "untilEvidence"],
            "analysis" => &["templates", "args"],
            "experiment" => &["duration", "templates", "args"],
            "setHeaderRoute" => &["name", "match"],
            "setMirrorRoute" => &["name", "percentage", "match"],
            other => {
                return Err(bad(format!("`{other}` is not a step"))
                    .hint("use setWeight, pause, analysis, experiment, setHeaderRoute or setMirrorRoute"));
            }
        };
        let stranger = inner
            .as_object()
            .and_then(|fields| fields.keys().find(|field| !allowed.contains(&field.as_str())));
        if let Some(stranger) = stranger {
            return Err(bad(format!("`{key}` has no field `{stranger}`")).hint(
                "a deploy's steps may name the configuration's analysisTemplates; metrics and providers stand there only",
            ));
        }
        serde_json::from_value(value.clone()).map_err(|error| bad(error.to_string()))
    };
    given.iter().enumerate().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn steps_are_spelled_as_in_the_configuration() {
        let read = steps(&[
            json!({"setWeight": 5}),
            json!({"pause": {"duration": "5m"}}),
            json!({"pause": {"untilEvidence": {"max": "30m"}}}),
            json!({"pause": {}}),
            json!({"analysis": {"templates": [{"templateName": "error-rate"}]}}),
        ])
        .unwrap();
        assert_eq!(read.len(), 5);
        assert_eq!(read[0], Step::SetWeight(Weight::percent(5)));
    }

    #[test]
    fn a_step_that_brings_a_provider_or_nobody_knows_is_refused_with_its_place() {
        for (bad, part) in [
            (json!({"analysis": {"metrics": []}}), "no field `metrics`"),
            (json!({"skipped": "x"}), "`skipped` is not a step"),
            (json!({"setWeight": 101}), "out of range"),
            (json!({"setWeight": 5, "pause": {}}), "one key"),
            (json!("pause"), "one key"),
            (json!({"pause": {"duration": "soon"}}), "soon"),
        ] {
            let problem = steps(&[json!({"setWeight": 1}), bad]).unwrap_err();
            assert!(problem.detail.starts_with("steps[1]: "), "{problem:?}");
            assert!(problem.detail.contains(part), "{problem:?}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error = serde_json::from_value::<PromoteRequest>(json!({"skipanalysis": true})).unwrap_err();
        assert!(
            error.to_string().contains("unknown field `skipanalysis`"),
            "{error}"
        );
        let expecting = json!({"expect": {"stp": 3}});
        let error = serde_json::from_value::<PromoteRequest>(expecting).unwrap_err();
        assert!(error.to_string().contains("unknown field `stp`"), "{error}");
    }
}
