//! Which metric specs are refused, and what to write instead.

use super::{condition::Conditions, spec::MetricSpec};
use std::collections::BTreeSet;

/// Where an analysis is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// As a step: it must end by itself.
    Inline,
    /// Beside the steps: it may go on for ever.
    Background,
    /// Before or after a blue-green switch: it must end by itself.
    BlueGreen,
}

/// A metric spec that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("metric `{metric}`: {reason}")]
pub struct BadMetric {
    /// Its name.
    pub metric: String,
    /// The key that is to blame, as written in the file.
    pub key: &'static str,
    /// The rule, and the mend.
    pub reason: String,
}

/// Checks one metric for use in `context`; all that is wrong with it.
pub fn validate(spec: &MetricSpec, context: Context) -> Vec<BadMetric> {
    let mut bad = Vec::new();
    let mut refuse = |key: &'static str, reason: String| {
        bad.push(BadMetric {
            metric: spec.name.clone(),
            key,
            reason,
        });
    };
    check_limits(spec, &mut refuse);
    check_count(spec, context, &mut refuse);
    let conditions = Conditions::compile(
        spec.success_condition.as_deref(),
        spec.failure_condition.as_deref(),
    );
    if let Err(error) = conditions {
        refuse(error.key, error.to_string());
    }
    bad
}

fn check_limits(spec: &MetricSpec, refuse: &mut impl FnMut(&'static str, String)) {
    let limits = [
        ("consecutiveSuccessLimit", spec.consecutive_success_limit, 0),
        ("inconclusiveLimit", spec.inconclusive_limit, 0),
        ("consecutiveErrorLimit", spec.consecutive_error_limit, 0),
        ("count", spec.count.unwrap_or(0), 0),
        ("failureLimit", spec.failure_limit, -1),
    ];
    for (key, value, least) in limits {
        if value < least {
            refuse(key, format!("{key} must be >= {least}, and is {value}"));
        }
    }
    if spec.failure_limit == -1 && spec.consecutive_success_limit == 0 {
        refuse(
            "failureLimit",
            "failureLimit -1 and consecutiveSuccessLimit 0 cannot both be off: nothing would ever decide; set one of \
             them"
                .to_owned(),
        );
    }
}

fn check_count(spec: &MetricSpec, context: Context, refuse: &mut impl FnMut(&'static str, String)) {
    let count = i64::from(spec.count.unwrap_or(0));
    if count > 1 && spec.interval.is_none() {
        refuse(
            "interval",
            format!("interval is required when count > 1 (count is {count}): add for example interval: 1m"),
        );
    }
    if spec.interval.is_some_and(crate::model::Span::is_zero) {
        refuse("interval", "interval must be longer than 0s".to_owned());
    }
    if spec.duration.is_some() {
        if spec.count.is_some() {
            refuse(
                "duration",
                "count and duration exclude each other: keep one of them".to_owned(),
            );
        }
        if spec.interval.is_none() {
            refuse(
                "interval",
                "interval is required with duration: add for example interval: 1m".to_owned(),
            );
        }
    }
    if count > 0 {
        let least = i64::from(spec.failure_limit.max(0)) + i64::from(spec.consecutive_success_limit.max(0));
        if count < least {
            refuse(
                "count",
                format!(
                    "count must be >= failureLimit + consecutiveSuccessLimit, and {count} < {least}: the limits could \
                     never be reached"
                ),
            );
        }
        if count < i64::from(spec.inconclusive_limit) {
            refuse(
                "count",
                format!(
                    "count must be >= inconclusiveLimit, and {count} < {}",
                    spec.inconclusive_limit
                ),
            );
        }
    }
    if context != Context::Background && !spec.is_bounded() {
        refuse(
            "interval",
            "an interval without count never ends, and this analysis must end by itself: add count: 5 or duration: 5m"
                .to_owned(),
        );
    }
}

/// Checks the metrics of one analysis together; all that is wrong with them.
pub fn validate_all<'a>(
    specs: impl IntoIterator<Item = &'a MetricSpec>,
    context: Context,
) -> Result<(), Vec<BadMetric>> {
    let mut bad = Vec::new();
    let mut names = BTreeSet::new();
    for spec in specs {
        bad.extend(validate(spec, context));
        if !names.insert(spec.name.as_str()) {
            bad.push(BadMetric {
                metric: spec.name.clone(),
                key: "name",
                reason: "metric names must be unique within an analysis, and two have this one: rename one"
                    .to_owned(),
            });
        }
    }
    if names.is_empty() {
        bad.push(BadMetric {
            metric: String::new(),
            key: "metrics",
            reason: "an analysis needs at least one metric".to_owned(),
        });
    }
    if bad.is_empty() { Ok(()) } else { Err(bad) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        analysis::{Provider, SerinMetric, SerinQuery},
        model::Span,
    };

    fn refused(context: Context, change: impl FnOnce(&mut MetricSpec)) -> String {
        let mut spec = MetricSpec::named("m", Provider::Serin(SerinQuery::of(SerinMetric::ErrorRate)));
        spec.interval = Some(Span::secs(60));
        spec.count = Some(5);
        change(&mut spec);
        let bad = validate(&spec, context);
        bad.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_metric_within_the_rules_is_accepted() {
        assert_eq!(refused(Context::Inline, |_| {}), "");
        assert_eq!(refused(Context::Background, |spec| spec.count = None), "");
        let by_duration = |spec: &mut MetricSpec| {
            spec.count = None;
            spec.duration = Some(Span::secs(300));
        };
        assert_eq!(refused(Context::Inline, by_duration), "");
        let off = |spec: &mut MetricSpec| {
            spec.failure_limit = -1;
            spec.consecutive_success_limit = 3;
        };
        assert_eq!(refused(Context::Inline, off), "");
        let once = |spec: &mut MetricSpec| {
            spec.count = None;
            spec.interval = None;
        };
        assert_eq!(refused(Context::BlueGreen, once), "");
    }

    #[test]
    fn every_rule_names_the_mend() {
        type Change = fn(&mut MetricSpec);
        let rules: [(Change, &str); 10] = [
            (|spec| spec.count = None, "add count: 5 or duration: 5m"),
            (|spec| spec.interval = None, "interval is required"),
            (|spec| spec.failure_limit = 6, "count must be >= failureLimit"),
            (
                |spec| spec.inconclusive_limit = 6,
                "count must be >= inconclusiveLimit",
            ),
            (|spec| spec.failure_limit = -2, "failureLimit must be >= -1"),
            (
                |spec| spec.inconclusive_limit = -1,
                "inconclusiveLimit must be >= 0",
            ),
            (
                |spec| spec.consecutive_error_limit = -1,
                "consecutiveErrorLimit must be >= 0",
            ),
            (|spec| spec.failure_limit = -1, "cannot both be off"),
            (|spec| spec.duration = Some(Span::secs(60)), "exclude each other"),
            (
                |spec| spec.success_condition = Some("result <".into()),
                "successCondition",
            ),
        ];
        for (change, part) in rules {
            let text = refused(Context::Inline, change);
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn names_are_unique_within_an_analysis() {
        let spec = MetricSpec::named("m", Provider::Serin(SerinQuery::of(SerinMetric::ErrorRate)));
        assert!(validate_all([&spec], Context::Inline).is_ok());
        assert!(validate_all([&spec, &spec], Context::Inline).is_err());
        assert!(validate_all([], Context::Inline).is_err());
    }
}
