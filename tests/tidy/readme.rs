//! Does the README name everything there is: every key, verb, flag, path and metric?
//!
//! A reference that is almost complete is worse than none: what is missing in it does not seem to exist. Keys are read from
//! the types that the configuration is decoded into, verbs and flags from the built binary, the rest from the tables in
//! the sources.

use super::{Source, read, rust_sources};
use std::collections::BTreeSet;
use std::process::Command;

#[test]
fn every_key_of_the_configuration_stands_in_the_readme() {
    let keys: BTreeSet<String> = rust_sources(&["src"])
        .iter()
        .filter(|source| source.path.starts_with("src/config/"))
        .flat_map(decoded_keys)
        .collect();
    for known in ["listeners", "match", "maxAge", "successCondition"] {
        assert!(keys.contains(known), "the reader of keys is blind to `{known}`");
    }
    missing(&keys, &words_of_code(section("## Configuration")));
}

#[test]
fn every_verb_and_flag_stands_in_the_readme() {
    let overview = help(&[]);
    let listed = overview.lines().skip_while(|line| *line != "Commands:").skip(1);
    let verbs: BTreeSet<String> = listed
        .map_while(|line| line.strip_prefix("  "))
        .filter_map(|line| line.split(' ').next())
        .filter(|verb| !verb.is_empty() && *verb != "help")
        .map(str::to_owned)
        .collect();
    assert!(
        verbs.contains("deploy") && verbs.contains("version"),
        "the reader of verbs is blind: {overview}"
    );
    let flags: BTreeSet<String> = verbs.iter().flat_map(|verb| flags(&help(&[verb]))).collect();
    assert!(flags.contains("--until"), "the reader of flags is blind");
    let named = words_of_code(section("## Command line"));
    missing(&verbs, &named);
    missing(&flags, &named);
}

#[test]
fn every_path_of_the_rest_api_stands_in_the_readme() {
    let paths: BTreeSet<String> = literals(&read("src/admin/routes.rs").text, "/");
    assert!(paths.contains("/v1/services/{service}/deploy"));
    let reference = section("## REST");
    let named = |path: &String| reference.contains(&format!(" {path}`"));
    let unnamed: Vec<_> = paths.into_iter().filter(|path| !named(path)).collect();
    assert!(unnamed.is_empty(), "say in the README what these do: {unnamed:?}");
}

#[test]
fn every_metric_stands_in_the_readme() {
    let families = literals(&read("src/metrics/names.rs").text, "serin_");
    let families: BTreeSet<String> = families.into_iter().filter(|name| name.len() > 14).collect();
    assert!(families.contains("serin_http_requests_total"));
    missing(&families, &words_of_code(section("## Metrics")));
}

fn missing(wanted: &BTreeSet<String>, named: &BTreeSet<String>) {
    let missing: Vec<_> = wanted.difference(named).collect();
    assert!(
        missing.is_empty(),
        "say in the README's section what these do, as code: {missing:?}"
    );
}

/// A section of the README, up to the next one of the same rank.
fn section(title: &str) -> &'static str {
    let readme: &str = include_str!("../../README.md");
    let start = readme.find(&format!("\n{title}\n")).unwrap() + 1;
    let length = readme[start + 3..]
        .find("\n## ")
        .map_or(readme.len() - start, |next| next + 3);
    &readme[start..start + length]
}

/// The words in code spans and code blocks.
fn words_of_code(markdown: &str) -> BTreeSet<String> {
    let between = |text: &str| -> Vec<String> {
        let parts = text.split('`').skip(1).step_by(2);
        parts.map(str::to_owned).collect()
    };
    let blocks = markdown.split("```").collect::<Vec<_>>();
    let code = blocks.iter().enumerate().flat_map(|(index, text)| {
        if index % 2 == 1 {
            vec![(*text).to_owned()]
        } else {
            between(text)
        }
    });
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    code.flat_map(|text| {
        let words = text.split(|c: char| !is_word(c)).map(str::to_owned);
        words.collect::<Vec<_>>()
    })
    .collect()
}

/// String literals that begin so.
fn literals(source: &str, begin: &str) -> BTreeSet<String> {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap();
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split('"').skip(1).step_by(2))
        .filter(|literal| literal.starts_with(begin) && !literal.contains(' '))
        .map(str::to_owned)
        .collect()
}

/// The fields of every struct that derives `Deserialize`, as a file spells them.
fn decoded_keys(source: &Source) -> Vec<String> {
    let mut keys = Vec::new();
    let (mut derives, mut inside) = (false, false);
    let mut renamed = None;
    for line in source.text.lines() {
        let text = line.trim();
        if text.starts_with("#[derive(") {
            derives = text.contains("Deserialize");
        } else if derives && text.contains("struct ") && text.ends_with('{') {
            inside = true;
        } else if text == "}" {
            (derives, inside) = (false, false);
        } else if inside && text.starts_with("#[serde(") {
            renamed = text
                .split("rename = \"")
                .nth(1)
                .and_then(|rest| rest.split('"').next());
        } else if inside && !text.starts_with(['#', '/']) {
            let field = text.trim_start_matches("pub(super) ").split(": ").next().unwrap();
            if text.contains(": ")
                && field
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            {
                keys.push(renamed.take().map_or_else(|| camel_case(field), str::to_owned));
            }
        }
    }
    keys
}

fn camel_case(field: &str) -> String {
    let mut parts = field.split('_');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (first, rest) = part.split_at(part.len().min(1));
        name += &first.to_uppercase();
        name += rest;
    }
    name
}

fn help(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_serin"))
        .args(arguments)
        .arg("--help")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn flags(help: &str) -> Vec<String> {
    let words = help
        .lines()
        .filter(|line| line.trim_start().starts_with('-'))
        .flat_map(|line| line.split_whitespace().take(2));
    words
        .filter(|word| word.starts_with("--"))
        .map(|word| word.trim_end_matches(',').to_owned())
        .filter(|flag| flag != "--help")
        .collect()
}
