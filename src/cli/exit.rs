//! How a command ends: the nine exit codes that pipelines branch on, and what is said to people meanwhile.

use crate::admin::{Problem, Standing};
use std::{fmt, process::ExitCode};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done, or the goal was reached.
    Reached,
    /// 1: Serin could not be reached, or something went wrong inside.
    Internal,
    /// 2: what was asked makes no sense.
    Usage,
    /// 3: the version was rolled back or aborted.
    RolledBack,
    /// 4: time is up; the rollout goes on.
    TimedOut,
    /// 5: the rollout waits for somebody.
    NeedsHuman,
    /// 6: another version or state than expected.
    Conflict,
    /// 7: no token, or one that does not allow it.
    Unauthorised,
    /// 8: another version took its place.
    Superseded,
}

/// What `--help` says of them.
pub const EXIT_CODES: &str = "Exit codes:
  0  done: the goal was reached
  1  Serin could not be reached, or something went wrong inside
  2  usage or validation: what was asked makes no sense
  3  the version was rolled back or aborted
  4  timed out: the rollout is still going
  5  the goal needs a human: the rollout waits for somebody (at once, unless --through-pauses)
  6  conflict: another version or state than expected; nothing was changed
  7  unauthorised: no token, or one that does not allow it
  8  superseded: another version took its place";

impl Exit {
    /// All of them.
    pub const ALL: [Exit; 9] = [
        Exit::Reached,
        Exit::Internal,
        Exit::Usage,
        Exit::RolledBack,
        Exit::TimedOut,
        Exit::NeedsHuman,
        Exit::Conflict,
        Exit::Unauthorised,
        Exit::Superseded,
    ];

    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// How a problem that Serin answered with ends a command.
    pub fn of_problem(problem: &Problem) -> Exit {
        match problem.status {
            401 | 403 => Exit::Unauthorised,
            409 | 412 => Exit::Conflict,
            400 | 404 | 405 | 413 | 415 | 422 => Exit::Usage,
            // 408, 421, 5xx and what nobody foresaw.
            _ => Exit::Internal,
        }
    }

    /// How a wait that has come here ends; none: it goes on.
    pub const fn of_standing(standing: Standing) -> Option<Exit> {
        match standing {
            Standing::Waiting => None,
            Standing::Reached => Some(Exit::Reached),
            Standing::RolledBack => Some(Exit::RolledBack),
            Standing::NeedsHuman => Some(Exit::NeedsHuman),
            Standing::Superseded => Some(Exit::Superseded),
            Standing::Impossible => Some(Exit::Usage),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// A command that did not come to its end: with which code, why, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// Where and what.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without hint.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure {
            exit,
            message: message.into(),
            hint: None,
        }
    }

    /// Says how to mend it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Failure {
        let mut message = problem.detail.clone();
        for one in &problem.problems {
            message.push_str("\n  ");
            message.push_str(one);
        }
        if !problem.legal.is_empty() {
            let legal: Vec<&str> = problem.legal.iter().map(|verb| verb.as_str()).collect();
            message.push_str("\n  possible now: ");
            message.push_str(&legal.join(", "));
        }
        Failure {
            exit: Exit::of_problem(&problem),
            message,
            hint: problem.hint,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    #[test]
    fn codes_are_zero_to_eight_and_each_is_explained() {
        for (number, exit) in Exit::ALL.iter().enumerate() {
            assert_eq!(usize::from(exit.code()), number);
            assert!(EXIT_CODES.contains(&format!("\n  {number}  ")), "{number}");
        }
    }

    #[test]
    fn a_problem_ends_with_the_code_of_its_kind() {
        for (status, exit) in [
            (400, Exit::Usage),
            (401, Exit::Unauthorised),
            (403, Exit::Unauthorised),
            (404, Exit::Usage),
            (409, Exit::Conflict),
            (412, Exit::Conflict),
            (413, Exit::Usage),
            (421, Exit::Internal),
            (422, Exit::Usage),
            (500, Exit::Internal),
            (503, Exit::Internal),
        ] {
            let problem = Problem::new(StatusCode::from_u16(status).unwrap(), "x", "y");
            assert_eq!(Exit::of_problem(&problem), exit, "{status}");
        }
    }

    #[test]
    fn a_standing_ends_a_wait_or_lets_it_go_on() {
        assert_eq!(Exit::of_standing(Standing::Waiting), None);
        for (standing, code) in [
            (Standing::Reached, 0),
            (Standing::Impossible, 2),
            (Standing::RolledBack, 3),
            (Standing::NeedsHuman, 5),
            (Standing::Superseded, 8),
        ] {
            assert_eq!(Exit::of_standing(standing).map(Exit::code), Some(code));
        }
    }

    #[test]
    fn a_refusal_is_shown_with_what_is_possible_and_the_hint() {
        let problem = Problem {
            legal: vec![crate::rollout::Verb::Deploy, crate::rollout::Verb::Retry],
            ..Problem::new(StatusCode::CONFLICT, "wrongState", "nothing to promote")
        };
        let shown = Failure::from(problem.hint("deploy first")).to_string();
        assert_eq!(
            shown,
            "nothing to promote\n  possible now: deploy, retry\n  hint: deploy first"
        );
    }
}
