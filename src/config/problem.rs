//! What is wrong, where, and what would be right.

use std::{cmp::Ordering, fmt};

/// One fault (or warning) in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was named.
    pub file: String,
    /// From 1; 0 when the whole file is meant.
    pub line: usize,
    /// From 1; 0 when the whole file is meant.
    pub column: usize,
    /// Such as `services[0].strategy.canary.steps[2].analysis`; empty for the file itself.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What would be right; may be empty.
    pub hint: String,
}

impl Problem {
    /// A problem with a whole file.
    pub fn of_file(file: impl Into<String>, what: impl Into<String>, hint: impl Into<String>) -> Problem {
        Problem {
            file: file.into(),
            line: 0,
            column: 0,
            key: String::new(),
            what: what.into(),
            hint: hint.into(),
        }
    }

    /// In reading order.
    pub(super) fn reading_order(&self, other: &Problem) -> Ordering {
        let key = |p: &Problem| (p.file.clone(), p.line, p.column);
        key(self).cmp(&key(other))
    }
}

impl fmt::Display for Problem {
    /// `serin.yaml:12:7: services[0].strategy: what is wrong; what would be right`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            f.write_str(&self.file)?;
            if self.line > 0 {
                write!(f, ":{}:{}", self.line, self.column)?;
            }
            f.write_str(": ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", Visible(&self.key))?;
        }
        write!(f, "{}", Visible(&self.what))?;
        if !self.hint.is_empty() {
            write!(f, "; {}", Visible(&self.hint))?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

/// Text that quotes what somebody wrote, in one line and without what a terminal would obey.
struct Visible<'a>(&'a str);

impl fmt::Display for Visible<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.contains(char::is_control) {
            return f.write_str(self.0);
        }
        self.0.chars().try_for_each(|c| {
            if c.is_control() {
                write!(f, "{}", c.escape_default())
            } else {
                write!(f, "{c}")
            }
        })
    }
}

/// Of the known words, the one somebody most likely meant.
pub(super) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    let (distance, best) = known
        .into_iter()
        .map(|candidate| (distance(&word, &candidate.to_ascii_lowercase()), candidate))
        .min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + word.chars().count() / 4).then_some(best)
}

/// Edits (insert, delete, replace, swap neighbours) between two short words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let edit = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    edit.min(rows[i - 2][j - 2] + 1)
                } else {
                    edit
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_place_key_fault_and_mend() {
        let mut problem = Problem::of_file("serin.yaml", "has no end", "add count: 5");
        assert_eq!(problem.to_string(), "serin.yaml: has no end; add count: 5");
        (problem.line, problem.column, problem.key) = (12, 7, "services[0].x".to_owned());
        assert_eq!(
            problem.to_string(),
            "serin.yaml:12:7: services[0].x: has no end; add count: 5"
        );
    }

    #[test]
    fn a_problem_of_a_key_without_a_place_begins_with_the_key() {
        let mut problem = Problem::of_file("", "cannot write to `/x`", "name a file");
        problem.key = "accessLog.path".to_owned();
        assert_eq!(
            problem.to_string(),
            "accessLog.path: cannot write to `/x`; name a file"
        );
    }

    #[test]
    fn a_problem_is_one_line_that_no_terminal_obeys() {
        let problem = Problem::of_file("serin.yaml", "`a\n\u{1b}[2Jb` is not é", "write\tit");
        assert_eq!(
            problem.to_string(),
            r"serin.yaml: `a\n\u{1b}[2Jb` is not é; write\tit"
        );
    }

    #[test]
    fn a_slip_is_guessed_and_a_stranger_is_not() {
        let known = ["setWeight", "pause", "analysis", "endpoints"];
        for (word, expected) in [
            ("setweight", Some("setWeight")),
            ("pasue", Some("pause")),
            ("endpoint", Some("endpoints")),
            ("anaylsis", Some("analysis")),
            ("replicas", None),
            ("", None),
        ] {
            assert_eq!(did_you_mean(word, known), expected, "{word}");
        }
    }
}
