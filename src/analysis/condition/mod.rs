//! Whether a measured value is good: conditions in Argo's expression language.
//!
//! The crate `expr-lang` computes; what it does otherwise than the original is mended here (see `rewrite`).

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the expression language's values are not ours to list"
)]

mod rewrite;

use super::outcome::Outcome;
use expr::{Context, Environment, Program, Value};
use std::sync::LazyLock;

/// The two conditions of a metric, compiled.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    success: Option<Program>,
    failure: Option<Program>,
}

/// A condition that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} `{condition}`: {reason}")]
pub struct BadCondition {
    /// `successCondition` or `failureCondition`.
    pub key: &'static str,
    /// What was written.
    pub condition: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Longer conditions are refused: nobody reads them, and the parser's depth is bounded by it.
const LONGEST: usize = 2000;

impl Conditions {
    /// Compiles both; syntax errors and unknown names are found here, not at the first measurement.
    pub fn compile(success: Option<&str>, failure: Option<&str>) -> Result<Conditions, BadCondition> {
        let one = |key: &'static str, condition: Option<&str>| match condition.map(str::trim) {
            None | Some("") => Ok(None),
            Some(condition) => compile(condition).map(Some).map_err(|reason| BadCondition {
                key,
                condition: condition.to_owned(),
                reason,
            }),
        };
        Ok(Conditions {
            success: one("successCondition", success)?,
            failure: one("failureCondition", failure)?,
        })
    }

    /// What `value` means, and the reason where it is an Error.
    pub fn judge(&self, value: &Value) -> (Outcome, Option<String>) {
        let one =
            |program: &Option<Program>| program.as_ref().map(|program| holds(program, value)).transpose();
        let verdict = one(&self.success).and_then(|success| Ok((success, one(&self.failure)?)));
        match verdict {
            Err(reason) => (Outcome::Error, Some(reason)),
            Ok((_, Some(true)) | (Some(false), None)) => (Outcome::Failed, None),
            Ok((None | Some(true), None | Some(false))) => (Outcome::Successful, None),
            Ok((Some(false), Some(false))) => (Outcome::Inconclusive, None),
        }
    }

    /// [`Conditions::judge`] for a JSON answer.
    pub fn judge_json(&self, value: &serde_json::Value) -> (Outcome, Option<String>) {
        self.judge(&from_json(value))
    }

    /// [`Conditions::judge`] for one number.
    pub fn judge_number(&self, value: f64) -> (Outcome, Option<String>) {
        self.judge(&Value::Float(value))
    }

    /// [`Conditions::judge`] for a result vector.
    pub fn judge_vector(&self, values: &[f64]) -> (Outcome, Option<String>) {
        self.judge(&Value::Array(values.iter().copied().map(Value::Float).collect()))
    }
}

fn compile(condition: &str) -> Result<Program, String> {
    if condition.len() > LONGEST {
        return Err(format!(
            "longer than {LONGEST} characters; let the query do more of it"
        ));
    }
    let rewritten = rewrite::rewrite(condition, |function| ENVIRONMENT_NAMES.contains(&function))?;
    expr::compile(&rewritten).map_err(|error| in_one_line(&error.to_string(), &rewritten))
}

/// What the parser says, without its picture of the place and its list of everything that may stand there.
fn in_one_line(error: &str, condition: &str) -> String {
    let place = error.trim_start().strip_prefix("--> ").and_then(|place| {
        let (line, column) = place.lines().next()?.split_once(':')?;
        let (line, column): (usize, usize) = (line.parse().ok()?, column.trim().parse().ok()?);
        let line = condition.lines().nth(line.checked_sub(1)?).unwrap_or_default();
        Some(
            line.chars()
                .skip(column.checked_sub(1)?)
                .take(40)
                .collect::<String>(),
        )
    });
    match place.as_deref().map(str::trim) {
        Some("") => "ends too early; write for example result < 0.01".to_owned(),
        Some(rest) => format!("cannot be read from `{rest}` on; write for example result < 0.01"),
        None => error.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

fn holds(program: &Program, result: &Value) -> Result<bool, String> {
    let mut context = Context::default();
    context.insert("result", result.clone());
    match ENVIRONMENT.run(program, &context) {
        Ok(Value::Bool(holds)) => Ok(holds),
        Ok(other) => Err(format!("expected bool, but got {other}")),
        Err(error) => Err(error.to_string()),
    }
}

/// JSON as the expression language sees it.
fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(whole) => Value::Integer(whole),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::String(text.clone()),
        serde_json::Value::Array(items) => Value::Array(items.iter().map(from_json).collect()),
        serde_json::Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), from_json(value)))
            .collect(),
    }
}

/// Every function a condition may call: those of the language that are pure, and Argo's own.
const ENVIRONMENT_NAMES: &[&str] = &[
    "all",
    "none",
    "any",
    "one",
    "filter",
    "map",
    "find",
    "findIndex",
    "findLast",
    "findLastIndex",
    "count",
    "sum",
    "mean",
    "median",
    "min",
    "max",
    "abs",
    "ceil",
    "floor",
    "round",
    "int",
    "float",
    "string",
    "len",
    "first",
    "last",
    "take",
    "reverse",
    "uniq",
    "concat",
    "flatten",
    "sort",
    "sortBy",
    "groupBy",
    "reduce",
    "keys",
    "values",
    "toPairs",
    "fromPairs",
    "type",
    "get",
    "trim",
    "trimPrefix",
    "trimSuffix",
    "upper",
    "lower",
    "split",
    "splitAfter",
    "replace",
    "repeat",
    "indexOf",
    "lastIndexOf",
    "hasPrefix",
    "hasSuffix",
    "join",
    "toJSON",
    "fromJSON",
    "toBase64",
    "fromBase64",
    "bitand",
    "bitor",
    "bitxor",
    "bitnand",
    "bitnot",
    "bitshl",
    "bitshr",
    "bitushr",
    "isNaN",
    "isInf",
    "isNil",
    "asInt",
    "asFloat",
    "default",
];

/// The name that out-of-range-checked indexing is rewritten to.
const AT: &str = "__at";

fn one(name: &str, args: &[Value]) -> expr::Result<Value> {
    match args {
        [value] => Ok(value.clone()),
        _ => expr::bail!("{name}() takes exactly one argument"),
    }
}

fn number(name: &str, args: &[Value]) -> expr::Result<f64> {
    match one(name, args)? {
        Value::Float(value) => Ok(value),
        #[expect(
            clippy::cast_precision_loss,
            reason = "a measured value; only NaN and infinity matter here"
        )]
        Value::Integer(value) => Ok(value as f64),
        other => expr::bail!("{name}() takes a number, not {other}"),
    }
}

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.add_function("isNaN", |call| {
        Ok(Value::Bool(number("isNaN", &call.args)?.is_nan()))
    });
    environment.add_function("isInf", |call| {
        Ok(Value::Bool(number("isInf", &call.args)?.is_infinite()))
    });
    environment.add_function("isNil", |call| {
        Ok(Value::Bool(one("isNil", &call.args)? == Value::Nil))
    });
    environment.add_function("default", |call| match &call.args[..] {
        [Value::Nil, instead] => Ok(instead.clone()),
        [value, _] => Ok(value.clone()),
        _ => expr::bail!("default() takes a value and what stands in for a missing one"),
    });
    environment.add_function("asFloat", |call| match one("asFloat", &call.args)? {
        Value::String(text) => match text.trim().parse() {
            Ok(value) => Ok(Value::Float(value)),
            Err(_) => expr::bail!("asFloat(): `{text}` is not a number"),
        },
        other => Ok(Value::Float(number("asFloat", &[other])?)),
    });
    environment.add_function("asInt", |call| match one("asInt", &call.args)? {
        Value::String(text) => match text.trim().parse() {
            Ok(value) => Ok(Value::Integer(value)),
            Err(_) => expr::bail!("asInt(): `{text}` is not a whole number"),
        },
        Value::Integer(value) => Ok(Value::Integer(value)),
        Value::Float(value) if value.is_finite() => {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "truncation is what asInt is for; it saturates"
            )]
            let whole = value as i64;
            Ok(Value::Integer(whole))
        }
        other => expr::bail!("asInt() takes a number or text, not {other}"),
    });
    environment.add_function(AT, |call| match &call.args[..] {
        [list @ (Value::Array(_) | Value::Bytes(_)), Value::Integer(index)] => at(list, *index),
        [Value::Map(map), Value::String(key)] => Ok(map.get(key).cloned().unwrap_or(Value::Nil)),
        [value, index] => expr::bail!("cannot take [{index}] of {value}"),
        _ => expr::bail!("an index takes one value"),
    });
    environment
});

/// In the original an index out of range is an error; the crate would answer nil, and `default` would hide it.
fn at(list: &Value, index: i64) -> expr::Result<Value> {
    let Value::Array(items) = list else {
        expr::bail!("cannot take [{index}] of bytes");
    };
    let found = if index < 0 {
        usize::try_from(index.unsigned_abs())
            .ok()
            .and_then(|back| items.len().checked_sub(back))
    } else {
        usize::try_from(index).ok()
    };
    match found.and_then(|index| items.get(index)) {
        Some(value) => Ok(value.clone()),
        None => expr::bail!("index out of range: {index} (array length is {})", items.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judge(success: &str, failure: &str, value: &serde_json::Value) -> Outcome {
        Conditions::compile(Some(success), Some(failure))
            .unwrap()
            .judge_json(value)
            .0
    }

    #[test]
    fn the_two_conditions_combine_as_in_argo() {
        let value = json!([0.93]);
        for (success, failure, outcome) in [
            ("", "", Outcome::Successful),
            ("result[0] > 0.9", "", Outcome::Successful),
            ("result[0] > 0.95", "", Outcome::Failed),
            ("", "result[0] > 0.9", Outcome::Failed),
            ("", "result[0] > 0.95", Outcome::Successful),
            ("result[0] > 0.9", "result[0] > 0.9", Outcome::Failed),
            ("result[0] > 0.95", "result[0] < 0.9", Outcome::Inconclusive),
        ] {
            assert_eq!(judge(success, failure, &value), outcome, "{success} / {failure}");
        }
    }

    #[test]
    fn what_cannot_be_computed_is_an_error_whichever_condition_it_is() {
        for (condition, value) in [
            ("result[0] < 1", json!([])),
            ("default(result[0], 0) < 1", json!([])),
            ("isNil(result[1])", json!([1])),
            ("result < 0.05", json!(null)),
            ("result", json!(0.5)),
            ("result[0]", json!([0.5])),
            ("result < 0.05", json!("text")),
            ("result && true", json!(1)),
            ("result.a.b < 1", json!({"a": null})),
            ("len(result) == 0", json!(null)),
            ("asFloat(result) < 1", json!("abc")),
            ("asInt(result) < 1", json!(null)),
        ] {
            assert_eq!(
                judge(condition, "", &value),
                Outcome::Error,
                "{condition} on {value}"
            );
            assert_eq!(
                judge("", condition, &value),
                Outcome::Error,
                "{condition} on {value}"
            );
        }
    }

    #[test]
    fn numbers_mix_and_functions_convert() {
        for (condition, value) in [
            ("result[0] == 1", json!([1.0])),
            ("result > 0.5", json!(1)),
            ("asFloat(result) < 0.5", json!("0.25")),
            ("asInt(result) == 3", json!(3.9)),
            ("asInt(result) == 3", json!("3")),
            ("default(result, 0) == 0", json!(null)),
            ("result == nil", json!(null)),
            ("isNil(result)", json!(null)),
            ("result[-1] == 3", json!([1, 2, 3])),
            ("all(result, {# < 0.5})", json!([0.1, 0.2])),
            (
                "result.data.ok and result.data.rate < 0.1",
                json!({"data": {"ok": true, "rate": 0.05}}),
            ),
            ("result['a-b'] == 1", json!({"a-b": 1})),
            ("len(result) == 0 || result[0] < 0.01", json!([])),
            ("result in ['ok', 'fine']", json!("ok")),
        ] {
            assert_eq!(
                judge(condition, "", &value),
                Outcome::Successful,
                "{condition} on {value}"
            );
        }
    }

    #[test]
    fn nan_compares_to_nothing_and_can_be_asked_for() {
        let nan = |success, failure| {
            Conditions::compile(success, failure)
                .unwrap()
                .judge_vector(&[f64::NAN])
                .0
        };
        assert_eq!(nan(Some("result[0] >= 0.95"), None), Outcome::Failed);
        assert_eq!(nan(None, Some("result[0] > 0.05")), Outcome::Successful);
        assert_eq!(
            nan(Some("result[0] > 0.5"), Some("result[0] <= 0.5")),
            Outcome::Inconclusive
        );
        assert_eq!(nan(Some("isNaN(result[0])"), None), Outcome::Successful);
        assert_eq!(nan(Some("isInf(result[0])"), None), Outcome::Failed);
    }

    #[test]
    fn a_condition_that_cannot_work_is_refused_when_it_is_configured() {
        for condition in [
            "result[0] <",
            "result[0] ~ 1",
            "reslut < 1",
            "now() > 1",
            "result <> 1",
            "(result",
        ] {
            let error = Conditions::compile(Some(condition), None).unwrap_err();
            assert!(
                error.key == "successCondition" && error.to_string().contains(condition),
                "{error}"
            );
        }
        assert!(Conditions::compile(Some(&"1 + ".repeat(1000)), None).is_err());
    }

    #[test]
    fn no_text_makes_the_compiler_panic() {
        let pieces = [
            "result", "[", "]", "(", ")", "{", "}", "0", ".", "..", "?", ":", "#", "'", "-", "not ", "é",
            "|", "1e",
        ];
        for seed in 0..20_000u64 {
            let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut text = String::new();
            for _ in 0..=seed % 9 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                text.push_str(pieces[usize::try_from(state >> 33).unwrap() % pieces.len()]);
            }
            if let Ok(conditions) = Conditions::compile(Some(&text), None) {
                let _ = conditions.judge_vector(&[0.5, f64::NAN]);
            }
        }
    }
}
