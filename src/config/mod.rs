//! What the operator writes: load, check, compile, watch.
//!
//! `load` reads a file and what it includes, and gives either a [`Config`] or every problem found, each with its
//! place. Nothing after that looks at YAML again.

mod compiled;
mod secret;

pub use compiled::{
    Admin, BindAddress, Config, DeployRule, Ejection, FailureHeader, FailureRule, Force, HardFailure,
    HardFailureAction, Health, Limits, Listener, ListenerLimits, MissingKey, Mode, Ready, Retries, Service,
    StateStore, Sticky, StickyCookie, StickySource, Timeouts, TimeoutsSet, Tls, Token, TokenHash, TokenRole,
    VersionBlock,
};
pub use secret::Redacted;
