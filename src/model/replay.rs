//! Replays the checked-in inputs of a fuzz target and as many mutations of them, on any compiler.
//!
//! `fuzz/` drives the same functions with libFuzzer, which learns what is worth keeping; here nothing is learnt, but every
//! test run holds what it found once. A failure prints the seed and the input: put that into `fuzz/corpus/TARGET`.

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::{fs, panic::AssertUnwindSafe, path::Path};

/// Inputs grow no longer than this.
const MOST: usize = 4096;

/// Holds `target` to its promises: every file of its corpus, then `mutations` of them.
pub(crate) fn replay(name: &str, mutations: u32, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let corpus = files(&folder.join("corpus").join(name));
    assert!(corpus.len() > 5, "fuzz/corpus/{name} has next to nothing");
    for (file, input) in &corpus {
        run(target, input, &format!("fuzz/corpus/{name}/{file}"));
    }
    let dictionary = fs::read_to_string(folder.join("dictionaries").join(format!("{name}.dict"))).unwrap();
    let words: Vec<Vec<u8>> = dictionary.lines().filter_map(word).collect();
    assert!(!words.is_empty(), "fuzz/dictionaries/{name}.dict has no words");
    let seed = std::env::var("SERIN_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut dice = SmallRng::seed_from_u64(seed);
    for turn in 0..mutations {
        let input = mutated(&corpus, &words, &mut dice);
        run(target, &input, &format!("SERIN_SEED={seed}, mutation {turn}"));
    }
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect();
    // The order of a directory is nobody's: a seed must mean the same everywhere.
    found.sort();
    found
}

/// A line of a libFuzzer dictionary: `"text\x0d\x0a"`.
fn word(line: &str) -> Option<Vec<u8>> {
    let inside = line.trim().strip_prefix('"')?.strip_suffix('"')?;
    let (mut bytes, mut rest) = (Vec::new(), inside.bytes());
    while let Some(byte) = rest.next() {
        let escaped = if byte == b'\\' { rest.next()? } else { 0 };
        bytes.push(match (byte, escaped) {
            (b'\\', b'x') => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            (b'\\', other) => other,
            (plain, _) => plain,
        });
    }
    Some(bytes)
}

fn mutated(corpus: &[(String, Vec<u8>)], words: &[Vec<u8>], dice: &mut SmallRng) -> Vec<u8> {
    let pick = |dice: &mut SmallRng| &corpus[dice.random_range(0..corpus.len())].1;
    let mut input = pick(dice).clone();
    for _ in 0..dice.random_range(1..6) {
        let from = dice.random_range(0..=input.len());
        let to = (from + dice.random_range(0..16)).min(input.len());
        match dice.random_range(0..8) {
            0 if from < input.len() => input[from] ^= 1 << dice.random_range(0..8),
            1 if from < input.len() => input[from] = dice.random(),
            2 => drop(input.drain(from..to)),
            3 => input.insert(from, dice.random()),
            4 => {
                let again = input[from..to].to_vec();
                input.splice(from..from, again);
            }
            5 => {
                let other = pick(dice);
                let start = dice.random_range(0..=other.len());
                let end = (start + dice.random_range(0..64)).min(other.len());
                input.splice(from..to, other[start..end].iter().copied());
            }
            _ => {
                let word = &words[dice.random_range(0..words.len())];
                input.splice(from..to, word.iter().copied());
            }
        }
    }
    input.truncate(MOST);
    input
}

fn run(target: fn(&[u8]), input: &[u8], what: &str) {
    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| target(input))) {
        let why = panic.downcast_ref::<String>().map_or("no words", String::as_str);
        panic!(
            "{what} does not hold: {why}\nthe input: b\"{}\"",
            input.escape_ascii()
        );
    }
}
