//! Does the tree keep the rules that the compiler does not know?
//!
//! Reads the sources and checks the floors that `src/lib.rs` draws: imports go down only, siblings never import each
//! other, and the pure floors name no clock, socket, file, task or dice. Beside that: every file opens with a header,
//! nothing unfinished is left in, an allowed lint says why, and no file names a path of somebody's machine.
//!
//! Sources are read as Rust tokens, so comments, strings and line breaks cannot fool a check. Every check is also
//! shown to catch what it is there for. There are no limits on length.

#![allow(
    clippy::wildcard_enum_match_arm,
    clippy::unwrap_used,
    reason = "a test that cannot read the tree has to fail"
)]

#[path = "tidy/readme.rs"]
mod readme;

use proc_macro2::{Delimiter, Group, Spacing, Span, TokenStream, TokenTree};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Who may import whom: a module sees the modules on smaller floors, and itself.
const FLOORS: &[(&str, u8)] = &[
    ("cli", 9),
    ("app", 8),
    ("admin", 7),
    ("proxy", 6),
    ("control", 6),
    ("upstream", 5),
    ("config", 4),
    ("metrics", 4),
    ("telemetry", 4),
    ("threads", 4),
    ("rollout", 3),
    ("analysis", 2),
    ("split", 1),
    ("route", 1),
    ("stats", 1),
    ("model", 0),
];

/// Every floor up to this one is pure.
const HIGHEST_PURE_FLOOR: u8 = 3;

/// Files on higher floors that are as pure: they decide, and others do.
const PURE_FILES: &[&str] = &[
    "src/upstream/health.rs",
    "src/upstream/balance.rs",
    "src/upstream/dns/message.rs",
    "src/proxy/proxy_protocol.rs",
    "src/proxy/retry.rs",
];

/// Roots of the machine a file was written on; nothing that is shipped may name them.
const MACHINE_ROOTS: &[&str] = &[concat!("/", "tmp/"), concat!("/", "work/"), concat!("/", "root/")];

// ---- The rules, held to the tree ------------------------------------------------------------------------------------

#[test]
fn imports_go_down_only_and_siblings_never_import_each_other() {
    let sources = rust_sources(&["src"]);
    none(sources.iter().flat_map(floors));
    // The reader of imports has to find the ones that are known to be there, or the line above says nothing.
    let seen: BTreeSet<_> = sources
        .iter()
        .flat_map(|source| imports(source).1)
        .map(|i| i.module)
        .collect();
    for module in ["model", "split", "metrics", "upstream"] {
        assert!(
            seen.contains(module),
            "no import of `{module}` was found: the reader is blind, saw {seen:?}"
        );
    }
}

#[test]
fn every_module_has_a_floor() {
    let root = read("src/lib.rs");
    let declared: BTreeSet<_> = declared_modules(&root).into_iter().collect();
    let listed: BTreeSet<_> = FLOORS.iter().map(|(module, _)| (*module).to_owned()).collect();
    assert_eq!(
        declared, listed,
        "src/lib.rs declares the left, the table FLOORS in tests/tidy.rs lists the right"
    );
}

#[test]
fn pure_floors_name_no_clock_socket_file_task_or_dice() {
    let sources = rust_sources(&["src"]);
    let for_tests = test_only_modules(&sources);
    none(sources.iter().flat_map(|source| purity(source, &for_tests)));
}

#[test]
fn every_file_opens_with_a_header() {
    none(
        rust_sources(&["src", "tests", "benches"])
            .iter()
            .filter_map(header),
    );
}

#[test]
fn nothing_unfinished_is_left_in() {
    none(
        rust_sources(&["src", "tests", "benches"])
            .iter()
            .flat_map(unfinished),
    );
}

#[test]
fn every_allowed_lint_says_why() {
    none(
        rust_sources(&["src", "tests", "benches"])
            .iter()
            .flat_map(unexplained_allow),
    );
}

#[test]
fn unsafe_code_is_forbidden_for_the_whole_package() {
    none(unsafe_forbidden(&read("Cargo.toml")));
}

#[test]
fn no_file_names_a_path_of_somebodys_machine() {
    let files = shipped_files();
    assert!(
        files.iter().any(|file| file.path == "Cargo.toml"),
        "the list of files is blind"
    );
    none(files.iter().flat_map(machine_paths));
}

// ---- The checks: a source in, what is wrong with it out ---------------------------------------------------------------

/// A file: its path relative to the package, with `/`, and what is in it.
struct Source {
    path: String,
    text: String,
}

/// A mention of another module of this package.
struct Import {
    module: String,
    line: usize,
}

/// A path as code spells it, groups of a `use` spread out: `a::{b, c::d}` is `a::b` and `a::c::d`.
struct NamedPath {
    segments: Vec<String>,
    /// Whether `::` stands before it, as in `<T as Clock>::now`.
    after_colons: bool,
    line: usize,
    /// The modules around it: those of the file and the inline ones.
    scope: Vec<String>,
}

fn floors(source: &Source) -> Vec<String> {
    let (mut wrong, found) = imports(source);
    let Some(own) = module_path(&source.path) else {
        return wrong;
    };
    let Some(top) = own.first() else { return wrong };
    let Some(own_floor) = floor(top) else {
        wrong.push(format!(
            "{}: module `{top}` has no floor in tests/tidy.rs",
            source.path
        ));
        return wrong;
    };
    for Import { module, line } in found.into_iter().filter(|import| import.module != *top) {
        let at = format!("{}:{line}", source.path);
        match floor(&module) {
            None => wrong.push(format!("{at}: `{module}` has no floor in tests/tidy.rs")),
            Some(other) if other > own_floor => wrong.push(format!(
                "{at}: `{top}` (floor {own_floor}) imports `{module}` (floor {other}); imports go down only"
            )),
            Some(other) if other == own_floor => wrong.push(format!(
                "{at}: `{top}` imports `{module}` beside it on floor {own_floor}; move what both need down"
            )),
            Some(_) => {}
        }
    }
    wrong
}

/// What a source names of the package's own modules, and what hides such names from the check.
fn imports(source: &Source) -> (Vec<String>, Vec<Import>) {
    let (mut hidden, mut found) = (Vec::new(), Vec::new());
    // The binary and the map stand above the floors: main.rs names the library from outside, lib.rs declares it.
    let Some(own) = module_path(&source.path).filter(|own| !own.is_empty()) else {
        return (hidden, found);
    };
    for path in named_paths(&lex(source), &own) {
        let at = format!("{}:{}", source.path, path.line);
        let names: Vec<&str> = path.segments.iter().map(String::as_str).collect();
        let ups = names.iter().take_while(|name| **name == "super").count();
        let from_root = match names.first() {
            Some(&"crate") => &names[1..],
            Some(&"super") if ups >= path.scope.len() => &names[ups..],
            _ => continue,
        };
        match from_root {
            [] => hidden.push(format!(
                "{at}: names the root of the package; name the module that is meant"
            )),
            ["*", ..] => hidden.push(format!("{at}: imports everything; name what is meant")),
            [module, ..] => found.push(Import {
                module: (*module).to_owned(),
                line: path.line,
            }),
        }
    }
    (hidden, found)
}

fn purity(source: &Source, for_tests: &BTreeSet<Vec<String>>) -> Vec<String> {
    let Some(own) = module_path(&source.path) else {
        return Vec::new();
    };
    let pure = own
        .first()
        .and_then(|top| floor(top))
        .is_some_and(|floor| floor <= HIGHEST_PURE_FLOOR)
        || PURE_FILES.contains(&source.path.as_str());
    let only_tests = (1..=own.len()).any(|length| for_tests.contains(&own[..length]));
    if !pure || only_tests {
        return Vec::new();
    }
    let code = without_tests(lex(source));
    named_paths(&code, &own)
        .iter()
        .filter_map(|path| {
            let what = impure(path)?;
            let spelled = path.segments.join("::");
            Some(format!(
                "{}:{}: `{spelled}` in pure code: {what}",
                source.path, path.line
            ))
        })
        .collect()
}

/// Why a pure floor may not name this path, if so.
fn impure(path: &NamedPath) -> Option<&'static str> {
    let names: Vec<&str> = path.segments.iter().map(String::as_str).collect();
    let pair = |first, second| names.windows(2).any(|two| two == [first, second]);
    match names.as_slice() {
        [head, ..] if head.starts_with("tokio") => Some("tasks and timers belong to floor 5 and above"),
        [head, ..] if head.starts_with("hyper") => Some("connections belong to floor 5 and above"),
        ["std", "net", item, ..] if item.starts_with("Tcp") || item.starts_with("Udp") => {
            Some("sockets belong to floor 5 and above")
        }
        ["std", "fs", ..] => Some("files belong to floor 4 and above"),
        ["rand", "rng" | "random" | "thread_rng", ..] => Some("the draw is an argument"),
        [.., "now"] if names.len() > 1 || path.after_colons => Some("the time is an argument"),
        _ if pair("thread", "spawn") => Some("threads belong to floor 6 and above"),
        _ => None,
    }
}

fn header(source: &Source) -> Option<String> {
    let opens = source
        .text
        .lines()
        .next()
        .is_some_and(|line| line.starts_with("//! ") && line.len() > 5);
    (!opens).then(|| {
        format!(
            "{}:1: opens without a `//!` header that says why the file exists",
            source.path
        )
    })
}

fn unfinished(source: &Source) -> Vec<String> {
    let tokens = flat(lex(source));
    tokens
        .windows(2)
        .filter_map(|two| match two {
            // `!` and not the beginning of `!=`.
            [TokenTree::Ident(name), TokenTree::Punct(mark)] if mark.as_char() == '!' => {
                (mark.spacing() == Spacing::Alone).then_some(name)
            }
            _ => None,
        })
        .filter(|name| ["todo", "unimplemented", "dbg"].iter().any(|word| *name == word))
        .map(|name| format!("{}:{}: `{name}!` is left in", source.path, line(name.span())))
        .collect()
}

fn unexplained_allow(source: &Source) -> Vec<String> {
    let tokens = flat(lex(source));
    let attributes = tokens.windows(3).filter_map(|three| match three {
        [TokenTree::Punct(hash), TokenTree::Group(body), _] if hash.as_char() == '#' => Some(body),
        [
            TokenTree::Punct(hash),
            TokenTree::Punct(inner),
            TokenTree::Group(body),
        ] if hash.as_char() == '#' && inner.as_char() == '!' => Some(body),
        _ => None,
    });
    attributes
        .filter(|body| body.delimiter() == Delimiter::Bracket)
        .flat_map(|body| {
            let inside = flat(body.stream());
            let calls = inside.windows(2).filter_map(|two| match two {
                [TokenTree::Ident(name), TokenTree::Group(arguments)] => {
                    Some((name.clone(), arguments.clone()))
                }
                _ => None,
            });
            calls.collect::<Vec<_>>()
        })
        .filter(|(name, arguments)| (name == "allow" || name == "expect") && !gives_reason(arguments))
        .map(|(name, _)| {
            format!(
                "{}:{}: `{name}` without a `reason = \"…\"`",
                source.path,
                line(name.span())
            )
        })
        .collect()
}

fn gives_reason(arguments: &Group) -> bool {
    let tokens: Vec<_> = arguments.stream().into_iter().collect();
    tokens.windows(2).any(|two| {
        matches!(two, [TokenTree::Ident(name), TokenTree::Punct(mark)] if name == "reason" && mark.as_char() == '=')
    })
}

fn unsafe_forbidden(manifest: &Source) -> Option<String> {
    let lints = manifest
        .text
        .split("\n[")
        .find_map(|section| section.strip_prefix("lints.rust]"));
    let forbidden = lints.unwrap_or_default().lines().any(|line| {
        line.split_once('=').is_some_and(|(key, level)| {
            key.trim() == "unsafe_code" && level.trim().trim_matches('"').starts_with("forbid")
        })
    });
    (!forbidden).then(|| {
        format!(
            "{}: [lints.rust] has to say unsafe_code = \"forbid\"",
            manifest.path
        )
    })
}

fn machine_paths(source: &Source) -> Vec<String> {
    let names_root = |line: &str| {
        MACHINE_ROOTS.iter().find(|root| {
            line.match_indices(**root).any(|(at, _)| {
                // `/x/` in the middle of a longer path or a URL is not a root.
                let before = line[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || "_-.}".contains(c))
            })
        })
    };
    let lines = source.text.lines().enumerate();
    lines
        .filter_map(|(index, text)| {
            let root = names_root(text)?;
            Some(format!(
                "{}:{}: names `{root}`, a path of one machine",
                source.path,
                index + 1
            ))
        })
        .collect()
}

// ---- Reading Rust ------------------------------------------------------------------------------------------------------

fn floor(module: &str) -> Option<u8> {
    FLOORS
        .iter()
        .find(|(name, _)| *name == module)
        .map(|(_, floor)| *floor)
}

/// `src/a/b.rs` and `src/a/b/mod.rs` are both `[a, b]`; `src/lib.rs` is the root, `[]`; the binary has none.
fn module_path(path: &str) -> Option<Vec<String>> {
    let inside = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    match inside {
        "main" => None,
        "lib" => Some(Vec::new()),
        _ => Some(
            inside
                .trim_end_matches("/mod")
                .split('/')
                .map(str::to_owned)
                .collect(),
        ),
    }
}

fn lex(source: &Source) -> TokenStream {
    source
        .text
        .parse()
        .unwrap_or_else(|wrong| panic!("{}: cannot be read as Rust: {wrong}", source.path))
}

fn line(span: Span) -> usize {
    span.start().line
}

/// All tokens in order, each group followed by what is inside it.
fn flat(stream: TokenStream) -> Vec<TokenTree> {
    let mut out = Vec::new();
    for token in stream {
        let inside = match &token {
            TokenTree::Group(group) => Some(group.stream()),
            _ => None,
        };
        out.push(token);
        out.extend(inside.into_iter().flat_map(flat));
    }
    out
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':')
}

fn group(token: Option<&TokenTree>, delimiter: Delimiter) -> Option<&Group> {
    match token {
        Some(TokenTree::Group(group)) if group.delimiter() == delimiter => Some(group),
        _ => None,
    }
}

/// Every path in a stream, in `use` items, types, expressions and macro bodies alike.
fn named_paths(stream: &TokenStream, scope: &[String]) -> Vec<NamedPath> {
    let tokens: Vec<TokenTree> = stream.clone().into_iter().collect();
    let mut out = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Ident(word) if word == "mod" => {
                let inline = group(tokens.get(at + 2), Delimiter::Brace);
                if let (Some(TokenTree::Ident(name)), Some(body)) = (tokens.get(at + 1), inline) {
                    let inner = [scope, &[name.to_string()]].concat();
                    out.extend(named_paths(&body.stream(), &inner));
                    at += 3;
                } else {
                    at += 1;
                }
            }
            TokenTree::Ident(_) => {
                let after_colons = at >= 2 && is_colons(&tokens, at - 2);
                at = one_path(
                    &tokens,
                    at,
                    &Spelling {
                        before: &[],
                        after_colons,
                        scope,
                    },
                    &mut out,
                );
            }
            TokenTree::Group(body) => {
                out.extend(named_paths(&body.stream(), scope));
                at += 1;
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => at += 1,
        }
    }
    out
}

/// What is already known of a path when the rest of it is read.
struct Spelling<'a> {
    before: &'a [String],
    after_colons: bool,
    scope: &'a [String],
}

/// Reads the path that starts at a name, spreads a `{…}` at its end, and says where the code goes on.
fn one_path(tokens: &[TokenTree], start: usize, known: &Spelling<'_>, out: &mut Vec<NamedPath>) -> usize {
    let mut segments = known.before.to_vec();
    let mut at = start;
    let first_line = line(tokens[start].span());
    while let Some(TokenTree::Ident(name)) = tokens.get(at) {
        segments.push(name.to_string().trim_start_matches("r#").to_owned());
        at += 1;
        if !is_colons(tokens, at) {
            break;
        }
        if let Some(body) = group(tokens.get(at + 2), Delimiter::Brace) {
            spread(
                &body.stream(),
                &Spelling {
                    before: &segments,
                    ..*known
                },
                out,
            );
            return at + 3;
        }
        if is_punct(tokens.get(at + 2), '*') {
            segments.push("*".to_owned());
            at += 3;
            break;
        }
        if !matches!(tokens.get(at + 2), Some(TokenTree::Ident(_))) {
            break;
        }
        at += 2;
    }
    let bare_crate = segments == ["crate"] && !is_name(tokens.get(at), "as");
    // `pub(crate)` names nothing; `self` at the end of a group is the group's own path.
    if segments.last().is_some_and(|last| last == "self") {
        segments.pop();
    }
    if !bare_crate && !segments.is_empty() && segments != ["super"] {
        let (after_colons, scope) = (known.after_colons, known.scope.to_vec());
        out.push(NamedPath {
            segments,
            after_colons,
            line: first_line,
            scope,
        });
    }
    at
}

fn is_name(token: Option<&TokenTree>, wanted: &str) -> bool {
    matches!(token, Some(TokenTree::Ident(name)) if name == wanted)
}

/// The alternatives of `prefix::{…}`.
fn spread(body: &TokenStream, known: &Spelling<'_>, out: &mut Vec<NamedPath>) {
    let tokens: Vec<TokenTree> = body.clone().into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if matches!(tokens[at], TokenTree::Ident(_)) {
            at = one_path(&tokens, at, known, out);
            if is_name(tokens.get(at), "as") {
                at += 2;
            }
        } else if let Some(inner) = group(tokens.get(at), Delimiter::Brace) {
            spread(&inner.stream(), known, out);
            at += 1;
        } else {
            if is_punct(tokens.get(at), '*') {
                let segments = [known.before, &["*".to_owned()]].concat();
                let (after_colons, scope) = (known.after_colons, known.scope.to_vec());
                out.push(NamedPath {
                    segments,
                    after_colons,
                    line: line(tokens[at].span()),
                    scope,
                });
            }
            at += 1;
        }
    }
}

/// Whether the tokens at `at` are `#[cfg(test)]` or `#[cfg(all(test, …))]`.
fn is_test_attribute(tokens: &[TokenTree], at: usize) -> bool {
    let Some(body) = group(tokens.get(at + 1), Delimiter::Bracket).filter(|_| is_punct(tokens.get(at), '#'))
    else {
        return false;
    };
    let spelled: String = body.stream().to_string().split_whitespace().collect();
    spelled == "cfg(test)" || spelled.starts_with("cfg(all(test,")
}

/// Where the item ends that begins at `at`, attributes included.
fn end_of_item(tokens: &[TokenTree], mut at: usize) -> usize {
    while at < tokens.len() {
        let ends = is_punct(tokens.get(at), ';') || group(tokens.get(at), Delimiter::Brace).is_some();
        at += 1;
        if ends {
            break;
        }
    }
    at
}

/// The code that is also there when no tests are built.
fn without_tests(stream: TokenStream) -> TokenStream {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut out = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if is_test_attribute(&tokens, at) {
            at = end_of_item(&tokens, at);
            continue;
        }
        out.push(match &tokens[at] {
            TokenTree::Group(group) => {
                let mut kept = Group::new(group.delimiter(), without_tests(group.stream()));
                kept.set_span(group.span());
                TokenTree::Group(kept)
            }
            other => other.clone(),
        });
        at += 1;
    }
    out.into_iter().collect()
}

/// The modules that are whole files and built for tests only: `#[cfg(test)] mod tests;`.
fn test_only_modules(sources: &[Source]) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for source in sources {
        let Some(own) = module_path(&source.path) else {
            continue;
        };
        let tokens: Vec<TokenTree> = lex(source).into_iter().collect();
        for at in (0..tokens.len()).filter(|at| is_test_attribute(&tokens, *at)) {
            let item = &tokens[at..end_of_item(&tokens, at)];
            if let [
                ..,
                TokenTree::Ident(word),
                TokenTree::Ident(name),
                TokenTree::Punct(_),
            ] = item
                && word == "mod"
            {
                found.insert([own.as_slice(), &[name.to_string()]].concat());
            }
        }
    }
    found
}

fn declared_modules(root: &Source) -> Vec<String> {
    let tokens: Vec<TokenTree> = lex(root).into_iter().collect();
    let names = tokens.windows(2).filter_map(|two| match two {
        [TokenTree::Ident(word), TokenTree::Ident(name)] if word == "mod" => Some(name.to_string()),
        _ => None,
    });
    names.collect()
}

// ---- Reading the tree --------------------------------------------------------------------------------------------------

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> Source {
    let text =
        fs::read_to_string(package().join(path)).unwrap_or_else(|wrong| panic!("read {path}: {wrong}"));
    Source {
        path: path.to_owned(),
        text,
    }
}

fn rust_sources(folders: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    for folder in folders {
        walk(folder, &mut paths);
    }
    let is_rust = |path: &&String| {
        Path::new(path.as_str())
            .extension()
            .is_some_and(|kind| kind == "rs")
    };
    let sources: Vec<_> = paths.iter().filter(is_rust).map(|path| read(path)).collect();
    assert!(
        sources.len() > 50,
        "only {} files under {folders:?}: the walk is blind",
        sources.len()
    );
    sources
}

fn walk(folder: &str, paths: &mut Vec<String>) {
    let mut entries: Vec<_> = fs::read_dir(package().join(folder))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().into_string().unwrap();
        let path = if folder.is_empty() {
            name
        } else {
            format!("{folder}/{name}")
        };
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && path != "target" && path != ".git" {
            walk(&path, paths);
        } else if kind.is_file() {
            paths.push(path);
        }
    }
}

/// The files under version control, or all of them where the sources came without it.
fn shipped_files() -> Vec<Source> {
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(package())
        .output();
    let mut paths: Vec<String> = match listed {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout)
            .unwrap()
            .split_terminator('\0')
            .map(str::to_owned)
            .collect(),
        Ok(_) | Err(_) => Vec::new(),
    };
    if paths.is_empty() {
        walk("", &mut paths);
    }
    let texts = paths.into_iter().filter_map(|path| {
        let text = String::from_utf8(fs::read(package().join(&path)).ok()?).ok()?;
        Some(Source { path, text })
    });
    texts.collect()
}

fn none(wrong: impl IntoIterator<Item = String>) {
    let wrong: Vec<String> = wrong.into_iter().collect();
    assert!(wrong.is_empty(), "{} found:\n{}", wrong.len(), wrong.join("\n"));
}

// ---- Each check catches what it is there for ---------------------------------------------------------------------------

fn source(path: &str, text: &str) -> Source {
    Source {
        path: path.to_owned(),
        text: text.to_owned(),
    }
}

/// Exactly these lines are found, each naming the word beside it.
fn assert_found(wrong: &[String], expected: &[(usize, &str)]) {
    assert_eq!(
        wrong.len(),
        expected.len(),
        "found {wrong:#?}, expected {expected:?}"
    );
    for (line, word) in expected {
        let there = wrong
            .iter()
            .any(|text| text.contains(&format!(":{line}: ")) && text.contains(word));
        assert!(there, "line {line} with {word:?} is missing in {wrong:#?}");
    }
}

#[test]
fn an_import_upwards_or_sideways_is_caught_however_it_is_spelled() {
    let text = "//! Header.
use crate::{
    model::Weight,
    proxy::{Table, self as data_plane},
};
use crate::control as engine;
fn f() -> super::super::app::Built { crate::metrics::get::<crate::cli::Verb>() }
mod inner { use super::super::super::admin::Api; use super::super::pool::Pool; }
macro_rules! m { () => { $crate::proxy::run() } }
";
    let expected = [
        (4, "`proxy`"),
        (4, "`proxy`"),
        (6, "`control`"),
        (7, "`app`"),
        (7, "`cli`"),
        (8, "`admin`"),
    ];
    let with_macro = [expected.as_slice(), &[(9, "`proxy`")]].concat();
    assert_found(&floors(&source("src/upstream/pool/mod.rs", text)), &with_macro);
    assert_found(
        &floors(&source("src/proxy/worker.rs", "use crate::control::Engine;")),
        &[(1, "beside it")],
    );
    assert_found(
        &floors(&source("src/model/mod.rs", "use super::split::Split;")),
        &[(1, "`split`")],
    );
}

#[test]
fn what_hides_an_import_is_caught() {
    let text = "use crate::*;\nuse crate as all;\nuse crate::{self as me};\nuse super::super::*;";
    let found = floors(&source("src/proxy/worker.rs", text));
    assert_found(
        &found,
        &[
            (1, "everything"),
            (2, "the root"),
            (3, "the root"),
            (4, "everything"),
        ],
    );
    assert_found(
        &floors(&source("src/proxy/a.rs", "use crate::{r#control::X};")),
        &[(1, "`control`")],
    );
}

#[test]
fn a_module_without_a_floor_is_caught() {
    assert_eq!(floors(&source("src/util/mod.rs", "")).len(), 1);
    assert_found(
        &floors(&source("src/cli/mod.rs", "use crate::util::join;")),
        &[(1, "no floor")],
    );
    assert_eq!(
        declared_modules(&source("src/lib.rs", "pub mod a;\nmod b;")),
        ["a", "b"]
    );
}

#[test]
fn imports_downwards_comments_strings_and_visibilities_are_no_violation() {
    let text = "//! See crate::cli.
use crate::{model::{self, Weight}, upstream::Pool};
use super::{table::Table, worker};
pub(crate) const TEXT: &str = \"use crate::cli::Verb\"; // crate::app
pub(in crate::proxy) fn f(crate_: u8, x: super::A) {}
";
    assert_found(&floors(&source("src/proxy/service.rs", text)), &[]);
}

#[test]
fn impure_words_are_caught_on_pure_floors_only() {
    let text = "use tokio::time;
use std::{fs::File, net::{IpAddr, TcpStream}, thread};
use rand::{Rng, rng};
fn f(clock: &dyn Clock) { clock.now(); std::time::Instant::now(); <C as Clock>::now(); thread::spawn(g); }
fn g() -> Vec<hyper::Request<hyper_util::X>> { log!(\"{}\", tokio::x()) }
";
    let expected = [
        (1, "tokio"),
        (2, "std::fs"),
        (2, "TcpStream"),
        (3, "rand::rng"),
        (4, "Instant::now"),
        (4, "`now`"),
        (4, "thread::spawn"),
        (5, "hyper::"),
        (5, "hyper_util"),
        (5, "tokio::x"),
    ];
    for module in ["model", "split", "route", "stats", "analysis", "rollout"] {
        assert_found(
            &purity(&source(&format!("src/{module}/x.rs"), text), &BTreeSet::new()),
            &expected,
        );
    }
    assert_found(&purity(&source("src/proxy/x.rs", text), &BTreeSet::new()), &[]);
}

#[test]
fn tests_of_a_pure_floor_may_be_impure_and_what_follows_them_may_not() {
    let text = "#[cfg(test)]
#[allow(dead_code, reason = \"x\")]
mod tests { fn f() { std::time::Instant::now(); } }
#[cfg(test)]
mod later;
fn g() { tokio::spawn(x); }
#[cfg(any(test, feature))]
fn h() { std::fs::read(x); }
";
    let file = source("src/split/mod.rs", text);
    let for_tests = test_only_modules(std::slice::from_ref(&file));
    assert_found(
        &purity(&file, &for_tests),
        &[(6, "tokio::spawn"), (8, "std::fs::read")],
    );
    assert_found(
        &purity(&source("src/split/later.rs", "use tokio::x;"), &for_tests),
        &[],
    );
    assert_found(
        &purity(&source("src/split/latest.rs", "use tokio::x;"), &for_tests),
        &[(1, "tokio")],
    );
}

#[test]
fn a_missing_header_is_caught() {
    for text in ["", "use x;", "// A comment.", "\n//! Too late.", "//!"] {
        assert!(header(&source("src/x.rs", text)).is_some(), "{text:?}");
    }
    assert!(header(&source("src/x.rs", "//! Why.\n")).is_none());
}

#[test]
fn unfinished_code_is_caught_and_talk_of_it_is_not() {
    let text = "// todo!()
fn f() { todo!() }
fn g() { if dbg != 3 { dbg!(x); } }
const WHY: &str = \"no todo!() here\";
fn h() { unimplemented!(\"later\") }
";
    let found = unfinished(&source("src/x.rs", text));
    assert_found(&found, &[(2, "todo"), (3, "dbg"), (5, "unimplemented")]);
}

#[test]
fn an_allow_without_a_reason_is_caught() {
    let text = "#![allow(clippy::x)]
#[allow(a, reason = \"because\")] fn f() { #[expect(b)] let x = 1; }
#[cfg_attr(test, allow(c))] fn allow() { expect(\"x\") }
";
    let found = unexplained_allow(&source("src/x.rs", text));
    assert_found(&found, &[(1, "allow"), (2, "expect"), (3, "allow")]);
}

#[test]
fn unsafe_code_that_is_not_forbidden_is_caught() {
    let manifest = |text: &str| unsafe_forbidden(&source("Cargo.toml", text));
    assert!(manifest("[package]\nname = \"x\"\n").is_some());
    assert!(manifest("[package]\n\n[lints.rust]\nunsafe_code = \"deny\"\n").is_some());
    assert!(manifest("[package]\n\n[lints.rust]\n# unsafe_code = \"forbid\"\n").is_some());
    assert!(manifest("[package]\n\n[lints.clippy]\nunsafe_code = \"forbid\"\n").is_some());
    assert!(manifest("[package]\n\n[lints.rust]\nunsafe_code = \"forbid\"\n").is_none());
}

#[test]
fn a_path_of_one_machine_is_caught_and_a_part_of_a_longer_path_is_not() {
    for root in MACHINE_ROOTS {
        for text in [
            format!("{root}x"),
            format!("see \"{root}x\""),
            format!("file://{root}x"),
            format!("({root})"),
        ] {
            assert_found(&machine_paths(&source("README.md", &text)), &[(1, root)]);
        }
        let longer = format!("http://example.com{root}x and ${{HOME}}{root} and a{root}");
        assert_found(&machine_paths(&source("README.md", &longer)), &[]);
    }
}
