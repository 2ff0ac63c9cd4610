//! Logs: what Serin says about itself, and in which form.
//!
//! Lines go to standard error. `SERIN_LOG` filters them (`info` when absent, for example `serin=debug`), `SERIN_LOG_FORMAT`
//! is `text` or `json`. Nothing is written per request at `info`, and nothing that a peer could repeat at will. `otlp` next door
//! sends spans to a collector.

pub mod otlp;

use std::{error::Error, fmt, io::IsTerminal};
use tracing_subscriber::{EnvFilter, filter::ParseError, fmt::format::FmtSpan};

/// An error with what it came from, on one line: most say only what was attempted.
#[derive(Debug)]
pub struct Causes<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What libraries may say unless `SERIN_LOG` names them. `h2` warns of single frames, thousands of which cost a client nothing; what
/// comes of them is counted and said by Serin.
const LIBRARIES: &str = "h2=error";

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `SERIN_LOG` is not a filter.
    #[error("SERIN_LOG={value} is not a filter: write for example `info` or `serin=debug`")]
    Filter {
        /// What it says.
        value: String,
        /// Why not.
        source: ParseError,
    },
    /// `SERIN_LOG_FORMAT` is neither `text` nor `json`.
    #[error("SERIN_LOG_FORMAT={0} is neither `text` nor `json`")]
    Format(String),
}

/// Sets up logging once for the process; a second call changes nothing.
pub fn init() -> Result<(), LogError> {
    let format = match std::env::var("SERIN_LOG_FORMAT").as_deref() {
        Ok("json") => LogFormat::Json,
        Ok("text" | "") | Err(_) => LogFormat::Text,
        Ok(other) => return Err(LogError::Format(other.to_owned())),
    };
    let value = std::env::var("SERIN_LOG")
        .ok()
        .filter(|value| !value.is_empty())
        .unwrap_or_else(|| "info".to_owned());
    let filter = filter(&value).map_err(|source| LogError::Filter { value, source })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE)
        .with_target(false);
    // Already set: by a test, or by a second server in the same process.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}

/// What an operator asks for goes before what holds for libraries: of two directives for one target the later counts.
fn filter(value: &str) -> Result<EnvFilter, ParseError> {
    let libraries = if value == "off" { "off" } else { LIBRARIES };
    EnvFilter::try_new(format!("{libraries},{value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_heard_when_they_are_named() {
        for (value, expected) in [
            ("info", "h2=error,info"),
            ("off", "off"),
            ("debug,h2=trace", "h2=trace,debug"),
            ("serin=debug", "serin=debug,h2=error"),
        ] {
            assert_eq!(filter(value).unwrap().to_string(), expected);
        }
        assert!(filter("serin=loud").is_err());
    }
}
