//! Text that is never shown.

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
