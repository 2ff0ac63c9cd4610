//! `judge`: a metric that is the sequential judge.

use super::cx::Cx;
use super::units::Share;
use crate::analysis;
use crate::model::Span;
use crate::stats::MOST_CUTS;

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct JudgeConfig {
    /// The risk of a false rollback over the whole rollout. Absent: 1%.
    alpha: Option<Share>,
    /// The risk of raising the weight of a canary that does more harm than `harmBudget`. Absent: 5%.
    beta: Option<Share>,
    /// Absent: the default written at each.
    errors: Option<JudgeErrors>,
    /// Absent: the defaults written at each.
    latency: Option<JudgeLatency>,
    /// Extra failed requests per request that the next weight may cost. Absent: 0.1pp.
    harm_budget: Option<Share>,
    /// For so long after its first request only a canary three times as slow is slow. Absent: 30s.
    warmup: Option<Span>,
    /// The same after each weight. Absent: 5s.
    step_warmup: Option<Span>,
    /// A step takes at least this long. Absent: 10s.
    min_step: Option<Span>,
    /// While stable itself fails more than this, the weight is not raised. Absent: 2%.
    freeze: Option<Share>,
    /// Absent: the defaults written at each.
    client_errors: Option<JudgeClientErrors>,
}

#[derive(Debug, serde::Deserialize)]
struct JudgeErrors {
    /// A higher error rate by this is no reason to roll back. Absent: 0.05pp.
    tolerate: Option<Share>,
}

#[derive(Debug, serde::Deserialize)]
struct JudgeLatency {
    /// Which quantiles of stable's latency are compared; an empty list for none. Absent: 0.5, 0.9, 0.99.
    quantiles: Option<Vec<f64>>,
    /// How much slower is no reason to roll back. Absent: 10%.
    tolerate: Option<Share>,
}

/// The quantiles that a judge compares as it needs them: ascending, each once; or why it cannot.
pub fn quantiles(written: &[f64]) -> Result<Vec<f64>, String> {
    let mut quantiles = written.to_vec();
    quantiles.sort_by(f64::total_cmp);
    quantiles.dedup();
    let right = |q: &f64| (0.01..=0.9999).contains(q);
    if !quantiles.iter().all(right) || quantiles.len() > MOST_CUTS {
        return Err(format!(
            "at most {MOST_CUTS} quantiles between 0.01 and 0.9999 are compared"
        ));
    }
    Ok(quantiles)
}

#[derive(Debug, serde::Deserialize)]
struct JudgeClientErrors {
    /// What another share of 4xx answers (or gRPC codes that are the client's fault) than stable's does: `pause`, `ignore`.
    /// Absent: pause.
    action: Option<ClientErrorsAction>,
    /// A difference by this is no reason to pause. Absent: 0.1pp.
    tolerate: Option<Share>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum ClientErrorsAction {
    Pause,
    Ignore,
}

/// Compiles its parameters; `path` is where they stand.
pub(super) fn compile(config: &JudgeConfig, path: &str, cx: &mut Cx) -> analysis::JudgeConfig {
    let default = analysis::JudgeConfig::default();
    let mut share = |share: Option<Share>, key: &str, within: std::ops::RangeInclusive<f64>, default: f64| {
        let Some(Share(share)) = share else {
            return default;
        };
        if !within.contains(&share) {
            // Without what binary fractions add to a decimal one.
            let percent = |share: f64| (share * 1e10).round() / 1e8;
            let (from, to) = (percent(*within.start()), percent(*within.end()));
            cx.error(
                &format!("{path}.{key}"),
                format!("{}% is too much or too little", percent(share)),
                format!("write a share between {from}% and {to}%"),
            );
        }
        share
    };
    let alpha = share(config.alpha, "alpha", 1e-6..=0.2, default.alpha);
    let beta = share(config.beta, "beta", 1e-6..=0.5, default.beta);
    let errors = config.errors.as_ref().and_then(|errors| errors.tolerate);
    let err_delta = share(errors, "errors.tolerate", 0.0..=0.5, default.err_delta);
    let slower = config.latency.as_ref().and_then(|latency| latency.tolerate);
    let lat_tol = share(slower, "latency.tolerate", 0.0..=9.0, default.lat_tol);
    let harm_budget = share(config.harm_budget, "harmBudget", 1e-5..=0.5, default.harm_budget);
    let freeze_stable_err = share(config.freeze, "freeze", 0.0..=1.0, default.freeze_stable_err);
    let written = config.client_errors.as_ref();
    let tolerate = written.and_then(|written| written.tolerate);
    let usual = default.client_err_delta.unwrap_or_default();
    let client_err_delta = share(tolerate, "clientErrors.tolerate", 0.0..=0.5, usual);
    let watches = written.and_then(|written| written.action) != Some(ClientErrorsAction::Ignore);
    let written = config
        .latency
        .as_ref()
        .and_then(|latency| latency.quantiles.as_ref());
    let mut lat_q = written.cloned().unwrap_or(default.lat_q.clone());
    match quantiles(&lat_q) {
        Ok(sound) => lat_q = sound,
        Err(why) => cx.error(
            &format!("{path}.latency.quantiles"),
            why,
            "write for example [0.5, 0.9, 0.99]",
        ),
    }
    let seconds =
        |span: Option<Span>, default: f64| span.map_or(default, |span| span.as_duration().as_secs_f64());
    analysis::JudgeConfig {
        alpha,
        beta,
        err_delta,
        lat_tol,
        lat_q,
        harm_budget,
        freeze_stable_err,
        client_err_delta: watches.then_some(client_err_delta),
        warmup_s: seconds(config.warmup, default.warmup_s),
        step_warmup_s: seconds(config.step_warmup, default.step_warmup_s),
        min_step_s: seconds(config.min_step, default.min_step_s),
        ..default
    }
}
