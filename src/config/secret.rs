//! Text that is never shown.

use super::problem::Problem;
use super::yaml::{Kind, Node, Scalar};
use serde::{Serialize, Serializer};
use std::fmt;

/// A secret: shown, logged and serialised as `[redacted]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Redacted(String);

/// What stands where a secret would.
pub(super) const REDACTED: &str = "[redacted]";

impl Redacted {
    /// Takes a secret out of sight.
    pub fn new(secret: impl Into<String>) -> Redacted {
        Redacted(secret.into())
    }

    /// The secret itself; for the one place that uses it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Redacted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

/// What came from the environment is said as it was written, `${NAME}`: it may be a secret, and faults are logged.
pub(super) fn hide_environment(root: &Node, problems: &mut [Problem]) {
    if problems.is_empty() {
        return;
    }
    let below = |key: &str, path: &str| {
        let rest = key.strip_prefix(path);
        rest.is_some_and(|rest| path.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
    };
    root.walk(&mut |node| {
        let Kind::Scalar(Scalar {
            text,
            written: Some(written),
            variables,
            ..
        }) = &node.kind
        else {
            return;
        };
        for problem in problems.iter_mut() {
            if below(&problem.key, &node.path) || below(&node.path, &problem.key) {
                for said in [&mut problem.what, &mut problem.hint] {
                    *said = with(said, text, written);
                    for (name, value) in variables {
                        // Faults also quote a part of what was written.
                        *said = with(said, value, &format!("${{{name}}}"));
                    }
                }
            }
        }
    });
}

/// A short value stands in any word: only where it is quoted it is meant.
fn with(said: &str, value: &str, written: &str) -> String {
    match value.len() {
        0 => said.to_owned(),
        1..6 => said.replace(&format!("`{value}`"), &format!("`{written}`")),
        _ => said.replace(value, written),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_shown_nowhere() {
        let secret = Redacted::new("hunter2");
        let shown = format!(
            "{secret} {secret:?} {:#?} {}",
            Some(&secret),
            serde_json::to_string(&secret).unwrap()
        );
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(secret.expose(), "hunter2");
    }
}
