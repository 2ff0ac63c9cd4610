//! What things are called: services, versions, and the two roles a version can play.
//!
//! Names are checked once, where they enter, and are cheap to clone after that.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr, sync::Arc};

/// Which of the two versions of a service is meant.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The version that is trusted: it serves whatever the canary does not.
    Stable,
    /// The version on trial.
    Canary,
}

impl Role {
    /// Both roles, in index order.
    pub const ALL: [Role; 2] = [Role::Stable, Role::Canary];

    /// 0 for stable, 1 for canary: for tables with a slot per role.
    pub const fn index(self) -> usize {
        match self {
            Role::Stable => 0,
            Role::Canary => 1,
        }
    }

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Role {
        match self {
            Role::Stable => Role::Canary,
            Role::Canary => Role::Stable,
        }
    }

    /// `stable` or `canary`: the value of the metric label `role`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Stable => "stable",
            Role::Canary => "canary",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that cannot be used, and the rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a {kind} name: {rule}")]
pub struct BadName {
    kind: &'static str,
    name: String,
    rule: &'static str,
}

const SERVICE_RULE: &str =
    "use 1 to 63 of a-z, 0-9, `-`, `_` and `.`, starting and ending with a letter or digit";
const VERSION_RULE: &str = "use 1 to 128 of A-Z, a-z, 0-9 and `._+:@-`, starting with a letter or digit";

fn is_service(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(b))
}

fn is_version(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.len() <= 128
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"._+:@-".contains(b))
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:ident, $rule:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the name; the error says which characters are allowed.
            pub fn new(name: impl AsRef<str>) -> Result<Self, BadName> {
                let name = name.as_ref();
                if $check(name) {
                    Ok($name(Arc::from(name)))
                } else {
                    Err(BadName { kind: $kind, name: name.to_owned(), rule: $rule })
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;
            fn from_str(s: &str) -> Result<Self, BadName> {
                $name::new(s)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                $name::new(text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// The name of a service: what a route leads to and a rollout is about.
    ServiceName, "service", is_service, SERVICE_RULE
);
name!(
    /// The release name a user gave to a version: `v42`, a git sha, an image tag.
    VersionName, "version", is_version, VERSION_RULE
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_where_they_enter() {
        assert!(ServiceName::new("order-gateway").is_ok());
        for bad in ["", "-a", "A", "a b", "a/b", &"a".repeat(64)] {
            assert!(ServiceName::new(bad).is_err(), "{bad}");
        }
        assert!(VersionName::new("sha256:0aF").is_ok());
        for bad in ["", "../x", "v 1", ".v", "é"] {
            assert!(VersionName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_name_says_what_would_be_right() {
        let error = ServiceName::new("Order").unwrap_err().to_string();
        assert!(error.contains("`Order`") && error.contains("a-z"), "{error}");
    }
}
