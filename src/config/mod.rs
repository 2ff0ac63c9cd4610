//! What the operator writes: load, check, compile, watch.
//!
//! `load` reads a file and what it includes, and gives either a [`Config`] or every problem found, each with its
//! place. Nothing after that looks at YAML again.

mod admin;
mod advice;
mod alarm;
mod argo;
mod blind;
mod compiled;
mod cx;
mod decode;
mod diff;
mod dns;
mod filters;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod health;
mod holdback;
mod judge;
mod judge_names;
mod listener;
mod load;
mod mann_whitney;
mod matching;
mod notifications;
mod observe;
mod own;
mod problem;
mod reach;
mod secret;
mod service;
mod shown;
mod steps;
mod strategy;
mod template;
#[cfg(test)]
mod tests;
mod tls;
mod units;
mod upstream_tls;
mod watch;
mod yaml;

pub use compiled::{
    Admin, Balance, BindAddress, Config, DeployRule, FailureHeader, FailureRule, Force, HardFailure,
    HardFailureAction, Limits, Listener, ListenerLimits, MissingKey, Mode, ProxyProtocol, Ready, Retries,
    Service, StateStore, Sticky, StickyCookie, StickySource, Timeouts, TimeoutsSet, Token, TokenHash,
    TokenRole, VersionBlock,
};
pub use diff::{Diff, ServiceDiff, diff};
pub use dns::Dns;
pub use filters::{Filters, HeaderEdits, PathEdit, Redirect};
pub use health::{Check, Ejection, Health, SuccessRate};
pub use judge::quantiles;
pub use load::{Loaded, load, load_noting, load_text, load_with};
pub use notifications::{Notification, NotificationFormat, SigningSecret};
pub use observe::{AccessLog, LogFormat, LogPath, Otlp};
pub use problem::Problem;
pub use reach::{Reach, forbidden};
pub use secret::Redacted;
pub use strategy::{BUILT_IN_GATE, built_in_gate, default_steps, ensure_judge};
#[cfg(test)]
pub(crate) use tls::tests as tls_fixtures;
pub use tls::{Certificate, CertificateFiles, Tls};
pub use units::share;
pub use upstream_tls::{CaFile, UpstreamTls, authorities};
pub use watch::{DEBOUNCE, Watch, WatchError};
