//! What `{{args.x}}` stands for, and which values must never be shown.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// An argument that a template declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArgSpec {
    /// What stands between `{{args.` and `}}`.
    pub name: String,
    /// The default. Absent: must be given where the template is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// A file whose trimmed content is the value; it is never shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<String>,
    /// An environment variable whose content is the value; it is never shown or stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_env: Option<String>,
}

/// The value of an argument; a secret one shows as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct ArgValue {
    text: String,
    secret: bool,
}

impl ArgValue {
    /// A value that may be shown.
    pub fn plain(text: impl Into<String>) -> ArgValue {
        ArgValue {
            text: text.into(),
            secret: false,
        }
    }

    /// A value that is redacted wherever it would be shown.
    pub fn secret(text: impl Into<String>) -> ArgValue {
        ArgValue {
            text: text.into(),
            secret: true,
        }
    }
}

impl fmt::Debug for ArgValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.secret { "***" } else { &self.text })
    }
}

/// An argument that cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadArgs {
    /// Nobody gave it and the template has no default.
    #[error(
        "argument `{name}` has no value: give it under `args`, or a default in the template (known: {known})"
    )]
    Missing {
        /// The argument.
        name: String,
        /// The names that have a value.
        known: String,
    },
    /// `{{` without `}}`.
    #[error("`{{{{` without `}}}}` after `{before}`: write {{{{args.NAME}}}}")]
    Unclosed {
        /// The text up to the opening braces.
        before: String,
    },
    /// Something other than `args.` between the braces.
    #[error("`{{{{{what}}}}}` is not an argument: write {{{{args.NAME}}}}")]
    NotAnArgument {
        /// What stands between the braces.
        what: String,
    },
    /// Two templates of one analysis give the argument different defaults.
    #[error("argument `{name}` has two defaults: `{one}` and `{two}`")]
    Conflict {
        /// The argument.
        name: String,
        /// The first default.
        one: String,
        /// The second default.
        two: String,
    },
}

/// The arguments of one analysis, resolved. Built in: `service`, `canary-version`, `stable-version`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args(BTreeMap<String, ArgValue>);

impl Args {
    /// The names every analysis has without declaring them.
    pub const BUILT_IN: [&'static str; 3] = ["service", "canary-version", "stable-version"];

    /// The built-in arguments.
    pub fn built_in(service: &str, canary: &str, stable: &str) -> Args {
        let mut args = Args::default();
        for (name, value) in Self::BUILT_IN.into_iter().zip([service, canary, stable]) {
            args.set(name, ArgValue::plain(value));
        }
        args
    }

    /// Gives an argument a value, over what it had.
    pub fn set(&mut self, name: impl Into<String>, value: ArgValue) {
        self.0.insert(name.into(), value);
    }

    /// Gives an argument a value unless it has one: for the defaults of templates.
    pub fn set_default(&mut self, name: impl Into<String>, value: ArgValue) {
        self.0.entry(name.into()).or_insert(value);
    }

    /// Whether the argument has a value.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// `text` with every `{{args.x}}` replaced.
    pub fn substitute(&self, text: &str) -> Result<String, BadArgs> {
        let mut rest = text;
        let mut out = String::with_capacity(text.len());
        while let Some(start) = rest.find("{{") {
            let (before, after) = rest.split_at(start);
            out.push_str(before);
            let end = after.find("}}").ok_or_else(|| BadArgs::Unclosed {
                before: before.to_owned(),
            })?;
            let what = after[2..end].trim();
            let name = what.strip_prefix("args.").ok_or_else(|| BadArgs::NotAnArgument {
                what: what.to_owned(),
            })?;
            let value = self.0.get(name).ok_or_else(|| self.missing(name))?;
            out.push_str(&value.text);
            rest = &after[end + 2..];
        }
        out.push_str(rest);
        Ok(out)
    }

    /// `text` with every secret value in it replaced by `***`: for whatever is shown, stored or logged.
    pub fn redact(&self, text: &str) -> String {
        let mut secrets: Vec<&str> = self
            .0
            .values()
            .filter(|value| value.secret && !value.text.is_empty())
            .map(|value| value.text.as_str())
            .collect();
        // Longest first: a secret that contains another must not leave its rest behind.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets
            .into_iter()
            .fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }

    fn missing(&self, name: &str) -> BadArgs {
        let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
        BadArgs::Missing {
            name: name.to_owned(),
            known: known.join(", "),
        }
    }

    /// Checks that the templates of one analysis agree about the defaults they give.
    pub fn agree<'a>(specs: impl IntoIterator<Item = &'a ArgSpec>) -> Result<(), BadArgs> {
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        for spec in specs {
            let Some(value) = spec.value.as_deref() else {
                continue;
            };
            if let Some(first) = seen.insert(&spec.name, value)
                && first != value
            {
                return Err(BadArgs::Conflict {
                    name: spec.name.clone(),
                    one: first.to_owned(),
                    two: value.to_owned(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_replaced_wherever_they_stand() {
        let mut args = Args::built_in("orders", "v42", "v41");
        args.set("limit", ArgValue::plain("0.01"));
        let text = args.substitute("{{args.canary-version}}<{{ args.limit }}{{args.service}}");
        assert_eq!(text.as_deref(), Ok("v42<0.01orders"));
    }

    #[test]
    fn an_argument_without_a_value_is_named_with_those_that_have_one() {
        let error = Args::built_in("s", "c", "t")
            .substitute("{{args.nope}}")
            .unwrap_err();
        assert!(error.to_string().contains("`nope`") && error.to_string().contains("canary-version"));
        assert!(Args::default().substitute("{{oops").is_err());
        assert!(Args::default().substitute("{{inputs.x}}").is_err());
    }

    #[test]
    fn secrets_are_substituted_but_never_shown() {
        let mut args = Args::default();
        args.set("token", ArgValue::secret("s3cr3t"));
        args.set("part", ArgValue::secret("s3"));
        let sent = args.substitute("Bearer {{args.token}}").unwrap();
        assert_eq!(sent, "Bearer s3cr3t");
        assert_eq!(args.redact(&sent), "Bearer ***");
        assert!(!format!("{args:?}").contains("s3"));
    }

    #[test]
    fn two_defaults_for_one_argument_are_a_conflict() {
        let arg = |value: &str| ArgSpec {
            name: "x".into(),
            value: Some(value.into()),
            secret_file: None,
            secret_env: None,
        };
        assert!(Args::agree(&[arg("1"), arg("1")]).is_ok());
        assert!(Args::agree(&[arg("1"), arg("2")]).is_err());
    }
}
