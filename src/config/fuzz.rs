//! What must hold for any text that somebody puts into a configuration file.
//!
//! `fuzz/` calls this with libFuzzer, the test below with the checked-in corpus (`model::replay`).

use super::{Config, Loaded, Problem, load_text, secret::REDACTED};
use std::path::Path;

const NAME: &str = "fuzzed.yaml";
/// What every environment variable holds.
const SECRET: &str = "from-the-environment-1";

fn load(text: &str) -> Result<Loaded, Vec<Problem>> {
    load_text(text, NAME, Path::new("no-such-folder"), &|_| {
        Some(SECRET.to_owned())
    })
}

/// The input is a configuration's text. Every fault is placed and has its mend, nothing of the environment is shown, and
/// what loads reads back the same from what is shown of it.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    match load(text) {
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason");
            for problem in &problems {
                is_fit_to_print(problem, text);
            }
        }
        Ok(loaded) => {
            let more = loaded.warnings.iter().chain(loaded.config.not_yet());
            for problem in more {
                is_placed(problem, text);
            }
            let _ = loaded.config.router();
            reads_back(&loaded.config);
        }
    }
}

fn is_fit_to_print(problem: &Problem, text: &str) {
    is_placed(problem, text);
    // Where one sentence says both, it has one of these words.
    let marks = [
        ": write ",
        ": use ",
        ": add ",
        ": give ",
        "expected ",
        "must be ",
        ": the ",
        ": besides ",
        "; ",
    ];
    let mend = !problem.hint.is_empty() || marks.iter().any(|mark| problem.what.contains(mark));
    assert!(mend, "says no mend: {problem}");
}

fn is_placed(problem: &Problem, text: &str) {
    let Problem {
        file,
        line,
        column,
        what,
        ..
    } = problem;
    assert!(!what.is_empty(), "{problem}");
    assert!(!problem.to_string().contains(SECRET), "tells a secret: {problem}");
    assert!(
        !problem.to_string().contains(char::is_control),
        "more than one line: {problem}"
    );
    if file != NAME || (*line, *column) == (0, 0) {
        assert!(problem.key.is_empty(), "a key without a place: {problem}");
        return;
    }
    // YAML ends a line at any of these.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines: Vec<&str> = text.split('\n').collect();
    // A file that ends too early is at fault behind its end.
    assert!(
        (1..=lines.len() + 1).contains(line),
        "{} lines: {problem}",
        lines.len()
    );
    let length = lines.get(line - 1).map_or(0, |line| line.chars().count());
    assert!((1..=length + 1).contains(column), "line of {length}: {problem}");
}

fn reads_back(config: &Config) {
    let shown = config.redacted_json().to_string();
    assert!(!shown.contains(SECRET), "tells a secret: {shown}");
    if shown.contains(REDACTED) || shown.contains("${") {
        return;
    }
    match load(&shown) {
        Ok(again) => {
            assert_eq!(again.config.redacted_json(), config.redacted_json());
            let (said, meant) = (meaning(&again.config), meaning(config));
            let same = said
                .bytes()
                .zip(meant.bytes())
                .take_while(|(a, b)| a == b)
                .count();
            let from = |text: &str| {
                text.chars()
                    .skip(same.saturating_sub(40))
                    .take(120)
                    .collect::<String>()
            };
            assert!(said == meant, "`{}` was `{}`\n{shown}", from(&said), from(&meant));
        }
        Err(problems) => {
            let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
            panic!("what is shown does not load: {said:?}\n{shown}");
        }
    }
}

/// Everything but the places in the file.
fn meaning(config: &Config) -> String {
    let config = Config {
        not_yet: Vec::new(),
        ..config.clone()
    };
    let place = regex::Regex::new("line: [0-9]+, column: [0-9]+").expect("a regular expression");
    place.replace_all(&format!("{config:?}"), "").into_owned()
}

#[cfg(test)]
mod tests {
    use crate::model::replay::replay;

    #[test]
    fn a_fault_has_its_place_and_mend_and_what_loads_reads_back_the_same() {
        replay("config", 1500, super::config);
    }
}
