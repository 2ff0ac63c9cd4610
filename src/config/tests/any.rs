//! Any text is answered, and never by a panic.

use super::*;

const SAMPLES: [&str; 6] = [
    include_str!("../../../config/edge.yaml"),
    include_str!("../../../config/kayenta.yaml"),
    include_str!("../../../config/minimal.yaml"),
    include_str!("../../../config/order-gateway.yaml"),
    include_str!("../../../config/prometheus.yaml"),
    include_str!("../../../config/prometheus-scrape.yml"),
];

const PIECES: [&str; 24] = [
    "\t",
    "\n",
    "  ",
    "- ",
    ": ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "<<: *a",
    "${",
    "${PORT}",
    "$${X}",
    "!!x ",
    "---\n",
    "'",
    "\"",
    "|\n",
    "99999999999999999999",
    "-1",
    "null",
    "\u{feff}é",
];

/// Nothing is promised but an answer whose every problem can be shown and lies in the file.
fn answered(text: &str) {
    // YAML's line may end with a carriage return alone.
    let lines = text.split(['\n', '\r']).count();
    match read(text) {
        Ok(loaded) => {
            let _ = (loaded.config.redacted_json().to_string(), loaded.config.router());
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "{text}");
            for problem in problems {
                assert!(
                    problem.line <= lines + 1 && !problem.what.is_empty(),
                    "{problem}\n{text}"
                );
            }
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]

    #[test]
    fn any_mutation_of_a_sample_is_answered(
        sample in 0..SAMPLES.len(),
        edits in proptest::collection::vec((0usize..10_000, 0usize..40, 0..PIECES.len()), 1..6),
    ) {
        let mut text = SAMPLES[sample].to_owned();
        for (at, remove, piece) in edits {
            let boundary = |mut at: usize, text: &str| {
                at = at.min(text.len());
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                at
            };
            let start = boundary(at % (text.len() + 1), &text);
            let end = boundary(start + remove, &text).max(start);
            text.replace_range(start..end, PIECES[piece]);
        }
        answered(&text);
    }

    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}", bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        answered(&text);
        answered(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_sequence_of_pieces_is_answered(pieces in proptest::collection::vec(0..PIECES.len(), 0..60)) {
        answered(&pieces.into_iter().map(|piece| PIECES[piece]).collect::<String>());
    }

    #[test]
    fn any_json_is_answered_as_steps(weight in proptest::num::f64::ANY, name in "\\PC{0,20}") {
        let config = good(MINIMAL);
        let steps = serde_json::json!([{"setWeight": weight}, {name.clone(): [name]}]);
        let _ = config.plan_with_steps(&config.services[0], &steps);
    }
}
