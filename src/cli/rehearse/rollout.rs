//! Rollout cases: a strategy, a timeline of events, and what is to be seen after each.

use super::{
    BadScenario, Printer, bad, check_keys, millis,
    player::{Player, steps_of},
    text,
};
use crate::{
    model::{Span, VersionName},
    rollout::{AnalysisRef, Background, BlueGreen, Canary, Plan, RollbackWindow, Strategy},
};
use serde_json::{Map, Value};

const CASE: [&str; 10] = [
    "id",
    "name",
    "strategy",
    "initial_stable",
    "spec",
    "timeline",
    "note",
    "proxy_rule",
    "about",
    "source",
];

/// Accepted because rollouts have them, and without a meaning here: they move pods, or name things in Kubernetes.
const PODS: [&str; 22] = [
    "managedRoutes",
    "dynamicStableScale",
    "maxSurge",
    "maxUnavailable",
    "minPodsPerReplicaSet",
    "trafficRouting",
    "canaryService",
    "stableService",
    "activeService",
    "previewService",
    "previewReplicaCount",
    "antiAffinity",
    "abortScaleDownDelaySeconds",
    "revisionHistoryLimit",
    "canaryMetadata",
    "stableMetadata",
    "activeMetadata",
    "previewMetadata",
    "pingPong",
    "minReadySeconds",
    "analysisRunMetadata",
    "restartAt",
];

const SPEC: [&str; 18] = [
    "steps",
    "background",
    "analysis",
    "rollbackWindow",
    "progressDeadlineSeconds",
    "progressDeadlineAbort",
    "requireEvidence",
    "autoPromotionEnabled",
    "autoPromotionSeconds",
    "prePromotionAnalysis",
    "postPromotionAnalysis",
    "scaleDownDelaySeconds",
    "scaleDownDelayRevisionLimit",
    "maxTrafficWeight",
    "note",
    "immediate",
    "paused",
    "replicas",
];

/// Replays one case; whether everything it expects came out.
pub(super) fn replay(
    case: &Map<String, Value>,
    strategy: &str,
    printer: &mut Printer<'_>,
) -> Result<bool, BadScenario> {
    check_keys(case, "case", &CASE)?;
    let (id, name) = (text(case, "id").unwrap_or("?"), text(case, "name").unwrap_or(""));
    let strategy = text(case, "strategy").unwrap_or(strategy);
    let nothing = Map::new();
    let spec = match case.get("spec") {
        None | Some(Value::Null) => &nothing,
        Some(Value::Object(spec)) => spec,
        Some(_) => return bad("`spec` must be an object"),
    };
    let stable = VersionName::new(text(case, "initial_stable").unwrap_or("v1")).or_else(bad)?;
    let mut player = Player::new(plan(strategy, spec)?, &stable);
    let Some(Value::Array(timeline)) = case.get("timeline") else {
        return bad("`timeline` must be a list of {event, expect}");
    };
    let mut held = true;
    for (index, item) in timeline.iter().enumerate() {
        let at = |error| bad(format_args!("timeline[{index}]: {error}"));
        held &= step(&mut player, item, printer).or_else(at)?;
    }
    printer.line(format_args!(
        "{} {id} {name}",
        if held { "holds " } else { "BROKEN" }
    ));
    Ok(held)
}

/// `{event: {…}, expect: {…}}`, either of which may be absent, or an event that carries its own `expect`.
pub(super) fn step(
    player: &mut Player,
    item: &Value,
    printer: &mut Printer<'_>,
) -> Result<bool, BadScenario> {
    let Value::Object(item) = item else {
        return bad("must be an object");
    };
    let part = |key: &str| match item.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(part)) => Ok(Some(part)),
        Some(_) => bad(format_args!("`{key}` must be an object")),
    };
    let event = if item.contains_key("do") {
        Some(item)
    } else {
        check_keys(item, "item", &["event", "expect", "note"])?;
        part("event")?
    };
    player.perform(event, part("expect")?, printer)
}

fn plan(strategy: &str, spec: &Map<String, Value>) -> Result<Plan, BadScenario> {
    check_keys(spec, "spec", &[&SPEC[..], &PODS].concat())?;
    let mut plan = Plan::of(match strategy {
        "canary" => Strategy::Canary(canary(spec)?),
        "blueGreen" | "bluegreen" => Strategy::BlueGreen(blue_green(spec)?),
        "immediate" => Strategy::Immediate,
        other => {
            return bad(format_args!(
                "unknown strategy `{other}` (allowed: canary, blueGreen, immediate)"
            ));
        }
    });
    plan.require_evidence = truth(spec, "requireEvidence", false)?;
    plan.progress_deadline = span(spec, "progressDeadlineSeconds")?;
    plan.rollback_window = match spec.get("rollbackWindow") {
        None | Some(Value::Null) => None,
        Some(Value::Number(revisions)) => Some(RollbackWindow {
            revisions: revisions
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(0),
        }),
        Some(window) => Some(serde_json::from_value(window.clone()).or_else(bad)?),
    };
    Ok(plan)
}

fn canary(spec: &Map<String, Value>) -> Result<Canary, BadScenario> {
    let mut steps = spec
        .get("steps")
        .cloned()
        .unwrap_or_else(|| Value::Array(Vec::new()));
    if let Some(whole) = spec.get("maxTrafficWeight").and_then(Value::as_u64) {
        out_of(whole, &mut steps);
    }
    let steps = steps_of(&steps)?;
    let background = match spec.get("background").or_else(|| spec.get("analysis")) {
        None | Some(Value::Null | Value::Bool(false)) => None,
        Some(Value::Bool(true)) => Some(Background::default()),
        Some(Value::Object(background)) => Some(Background {
            analysis: AnalysisRef::default(),
            starting_step: match background.get("startingStep") {
                None | Some(Value::Null) => 0,
                Some(step) => match step.as_u64().and_then(|step| usize::try_from(step).ok()) {
                    Some(step) => step,
                    None => return bad("`startingStep` must be the index of a step"),
                },
            },
        }),
        Some(_) => return bad("`background` must be an object"),
    };
    Ok(Canary { steps, background })
}

/// Weights are parts of `maxTrafficWeight`, where that is given, instead of 100.
fn out_of(whole: u64, steps: &mut Value) {
    for step in steps.as_array_mut().into_iter().flatten() {
        if let Some(weight) = step.get_mut("setWeight")
            && let Some(parts) = weight.as_u64()
        {
            *weight = format!("{parts}/{whole}").into();
        }
    }
}

fn blue_green(spec: &Map<String, Value>) -> Result<BlueGreen, BadScenario> {
    let analysis = |key: &str| match spec.get(key) {
        None | Some(Value::Null | Value::Bool(false)) => None,
        Some(_) => Some(AnalysisRef::default()),
    };
    let absent = BlueGreen::default();
    Ok(BlueGreen {
        auto_promotion_enabled: truth(spec, "autoPromotionEnabled", absent.auto_promotion_enabled)?,
        auto_promotion_after: span(spec, "autoPromotionSeconds")?,
        pre_promotion_analysis: analysis("prePromotionAnalysis"),
        post_promotion_analysis: analysis("postPromotionAnalysis"),
        scale_down_delay: span(spec, "scaleDownDelaySeconds")?.unwrap_or(absent.scale_down_delay),
        scale_down_delay_revision_limit: spec
            .get("scaleDownDelayRevisionLimit")
            .and_then(Value::as_u64)
            .and_then(|limit| u32::try_from(limit).ok()),
    })
}

fn truth(spec: &Map<String, Value>, key: &str, absent: bool) -> Result<bool, BadScenario> {
    match spec.get(key) {
        None | Some(Value::Null) => Ok(absent),
        Some(Value::Bool(truth)) => Ok(*truth),
        Some(_) => bad(format_args!("`{key}` must be true or false")),
    }
}

fn span(spec: &Map<String, Value>, key: &str) -> Result<Option<Span>, BadScenario> {
    match spec.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => Ok(Some(Span::millis(millis(value, key)?))),
    }
}
