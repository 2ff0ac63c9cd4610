//! YAML as a tree in which everything knows its place.
//!
//! The tree stands between the parser and the types so that faults are reported with line and column, several at once,
//! also those found after reading. It is bounded: size, depth, and what aliases may multiply to. `decode` turns it into
//! the `…Config` types; comments and styles are not kept.

use super::problem::Problem;
use serde_saphyr::granit_parser::{Event, Marker, Options, Parser, ScalarStyle, Span};
use std::collections::HashMap;

/// A place in a file, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Pos {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Unique in its file.
    pub(super) id: usize,
    /// The value's first character.
    pub(super) pos: Pos,
    /// Where a fault of the whole value is reported: its key, if it has one.
    pub(super) report: Pos,
    /// `services[0].name`
    pub(super) path: String,
    pub(super) kind: Kind,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(super) struct Scalar {
    /// After `${ENV}` was expanded.
    pub(super) text: String,
    /// As it was written, where that differs.
    pub(super) written: Option<String>,
    /// What came from the environment: names and values.
    pub(super) variables: Vec<(String, String)>,
    /// Not quoted: may be a number, a truth value or nothing.
    pub(super) plain: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_pos: Pos,
    pub(super) value: Node,
}

/// How `${NAME}` is looked up.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A file of this size is not a configuration.
pub(super) const MAX_BYTES: usize = 4 << 20;
/// Far above any real configuration; aliases may not multiply beyond it.
const MAX_NODES: usize = 100_000;
const MAX_DEPTH: usize = 48;
/// In one mapping; keys are compared with each other.
const MAX_KEYS: usize = 2000;

impl Node {
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar(scalar) if scalar.is_null())
    }

    /// The value of a key, if this is a map that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        match &self.kind {
            Kind::Map(entries) => entries
                .iter()
                .find(|entry| entry.key == key)
                .map(|entry| &entry.value),
            Kind::Scalar(_) | Kind::List(_) => None,
        }
    }

    pub(super) fn items(&self) -> &[Node] {
        match &self.kind {
            Kind::List(items) => items,
            Kind::Scalar(_) | Kind::Map(_) => &[],
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar(scalar) => Some(&scalar.text),
            Kind::List(_) | Kind::Map(_) => None,
        }
    }

    /// Such as ``the text `abc` `` or `a list`.
    pub(super) fn describe(&self) -> String {
        match &self.kind {
            Kind::Scalar(scalar) if scalar.is_null() => "nothing".to_owned(),
            Kind::Scalar(scalar) => {
                let shown = scalar.written.as_deref().unwrap_or(&scalar.text);
                let short: String = shown.chars().take(60).collect();
                let more = if short.len() < shown.len() { "…" } else { "" };
                format!("`{}{more}`", short.escape_debug())
            }
            Kind::List(_) => "a list".to_owned(),
            Kind::Map(_) => "a mapping".to_owned(),
        }
    }

    fn set_paths(&mut self, path: String, report: Option<Pos>, next: &mut usize) {
        self.id = *next;
        *next += 1;
        match &mut self.kind {
            Kind::Scalar(_) => self.report = self.pos,
            Kind::List(items) => {
                self.report = report.unwrap_or(self.pos);
                for (index, item) in items.iter_mut().enumerate() {
                    item.set_paths(format!("{path}[{index}]"), None, next);
                }
            }
            Kind::Map(entries) => {
                self.report = report.unwrap_or(self.pos);
                for entry in entries {
                    let below = match path.as_str() {
                        "" => entry.key.clone(),
                        path => format!("{path}.{}", entry.key),
                    };
                    entry.value.set_paths(below, Some(entry.key_pos), next);
                }
            }
        }
        self.path = path;
    }

    /// Calls for this node and everything below it.
    pub(super) fn walk<'a>(&'a self, visit: &mut dyn FnMut(&'a Node)) {
        visit(self);
        match &self.kind {
            Kind::Scalar(_) => {}
            Kind::List(items) => items.iter().for_each(|item| item.walk(visit)),
            Kind::Map(entries) => entries.iter().for_each(|entry| entry.value.walk(visit)),
        }
    }

    /// From JSON (a deploy's steps), with paths but without places.
    pub(super) fn from_json(value: &serde_json::Value, path: &str) -> Result<Node, String> {
        fn build(value: &serde_json::Value, depth: usize, count: &mut usize) -> Result<Node, String> {
            *count += 1;
            if depth > MAX_DEPTH || *count > MAX_NODES {
                return Err("is too deep or too large".to_owned());
            }
            let plain = |text: String| {
                Kind::Scalar(Scalar {
                    text,
                    written: None,
                    variables: Vec::new(),
                    plain: true,
                })
            };
            let kind = match value {
                serde_json::Value::Null => plain("null".to_owned()),
                serde_json::Value::Bool(_) | serde_json::Value::Number(_) => plain(value.to_string()),
                serde_json::Value::String(text) => Kind::Scalar(Scalar {
                    text: text.clone(),
                    written: None,
                    variables: Vec::new(),
                    plain: false,
                }),
                serde_json::Value::Array(items) => {
                    let items = items.iter().map(|item| build(item, depth + 1, count));
                    Kind::List(items.collect::<Result<_, _>>()?)
                }
                serde_json::Value::Object(map) => {
                    let entries = map.iter().map(|(key, value)| {
                        Ok(Entry {
                            key: key.clone(),
                            key_pos: Pos::default(),
                            value: build(value, depth + 1, count)?,
                        })
                    });
                    Kind::Map(entries.collect::<Result<_, String>>()?)
                }
            };
            Ok(Node {
                id: 0,
                pos: Pos::default(),
                report: Pos::default(),
                path: String::new(),
                kind,
            })
        }
        let mut node = build(value, 0, &mut 0)?;
        node.set_paths(path.to_owned(), None, &mut 0);
        Ok(node)
    }
}

impl Scalar {
    pub(super) fn is_null(&self) -> bool {
        self.plain && matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }
}

fn pos_of(marker: &Marker) -> Pos {
    Pos {
        line: marker.line(),
        column: marker.col() + 1,
    }
}

/// The documents of a file, with `${ENV}` expanded. Faults that leave a usable tree are pushed to `problems`; a tree that
/// cannot be built is the error.
pub(super) fn parse(
    text: &str,
    file: &str,
    env: Env<'_>,
    problems: &mut Vec<Problem>,
) -> Result<Vec<Node>, Problem> {
    let mut builder = Builder {
        file,
        env,
        problems,
        anchors: HashMap::new(),
        open: Vec::new(),
        documents: Vec::new(),
        nodes: 0,
    };
    let mut options = Options::default();
    options.set_emit_comments(false);
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, span) = next.map_err(|error| {
            let pos = pos_of(error.marker());
            problem(
                file,
                pos,
                "",
                syntax_message(text, pos, &error.info()),
                syntax_hint(text, pos),
            )
        })?;
        builder.event(event, span)?;
    }
    let mut documents = builder.documents;
    for document in &mut documents {
        document.set_paths(String::new(), None, &mut 0);
    }
    Ok(documents)
}

fn syntax_message(_text: &str, _pos: Pos, info: &str) -> String {
    format!("this is not YAML: {info}")
}

fn syntax_hint(text: &str, pos: Pos) -> &'static str {
    let mut lines = text.lines().skip(pos.line.saturating_sub(2)).take(2);
    let tabs = lines.any(|line| line.trim_start_matches(' ').starts_with('\t'));
    if tabs {
        "indent with spaces, not tabs"
    } else {
        "close every quote and bracket, and put a space after each colon and dash"
    }
}

fn problem(file: &str, pos: Pos, key: &str, what: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem {
        file: file.to_owned(),
        line: pos.line,
        column: pos.column,
        key: key.to_owned(),
        what: what.into(),
        hint: hint.into(),
    }
}

/// Puts events together. Recursion-free: what is open is a stack.
struct Builder<'a> {
    file: &'a str,
    env: Env<'a>,
    problems: &'a mut Vec<Problem>,
    anchors: HashMap<usize, Node>,
    open: Vec<Open>,
    documents: Vec<Node>,
    nodes: usize,
}

struct Open {
    anchor: usize,
    node: Node,
    /// A key whose value has not come yet.
    key: Option<(String, Pos)>,
    /// A mapping whose next child is a key.
    wants_key: bool,
    merges: Vec<Node>,
}

impl Builder<'_> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the parser's enum is its own and may grow"
    )]
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Problem> {
        let pos = pos_of(&span.start);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.map(|tag| tag.to_string());
                let plain = matches!(style, ScalarStyle::Plain)
                    && tag.as_deref().is_none_or(|tag| !tag.ends_with("str"));
                self.check_tag(tag.as_deref(), pos);
                let scalar = self.scalar(&text, plain, pos);
                let node = self.node(pos, Kind::Scalar(scalar))?;
                if anchor > 0 {
                    self.anchors.insert(anchor, node.clone());
                }
                self.child(node)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.map(|tag| tag.to_string()).as_deref(), pos);
                self.start(anchor, pos, Kind::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.map(|tag| tag.to_string()).as_deref(), pos);
                self.start(anchor, pos, Kind::Map(Vec::new()))
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(done) = self.open.pop() else {
                    return Ok(());
                };
                let node = merged(done.node, done.merges);
                if done.anchor > 0 {
                    self.anchors.insert(done.anchor, node.clone());
                }
                self.child(node)
            }
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id) else {
                    return Err(problem(
                        self.file,
                        pos,
                        "",
                        "this alias stands inside its own anchor",
                        "write out what is meant",
                    ));
                };
                let mut count = 0;
                node.walk(&mut |_| count += 1);
                self.nodes += count;
                if self.nodes > MAX_NODES {
                    return Err(problem(
                        self.file,
                        pos,
                        "",
                        "aliases multiply beyond what Serin reads",
                        "write out what is meant",
                    ));
                }
                let node = node.clone();
                if self.open.len() + depth(&node) > MAX_DEPTH {
                    return Err(self.too_deep(pos));
                }
                self.child(node)
            }
            // Where streams and documents begin, names of anchors, comments: nothing to build.
            _ => Ok(()),
        }
    }

    fn too_deep(&self, pos: Pos) -> Problem {
        problem(
            self.file,
            pos,
            "",
            "this is nested too deeply",
            "no key of a configuration is",
        )
    }

    fn node(&mut self, pos: Pos, kind: Kind) -> Result<Node, Problem> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(problem(
                self.file,
                pos,
                "",
                "the file has more values than Serin reads",
                "split it with include",
            ));
        }
        Ok(Node {
            id: 0,
            pos,
            report: pos,
            path: String::new(),
            kind,
        })
    }

    fn start(&mut self, anchor: usize, pos: Pos, kind: Kind) -> Result<(), Problem> {
        if self.open.len() >= MAX_DEPTH {
            return Err(self.too_deep(pos));
        }
        let wants_key = matches!(kind, Kind::Map(_));
        let node = self.node(pos, kind)?;
        self.open.push(Open {
            anchor,
            node,
            key: None,
            wants_key,
            merges: Vec::new(),
        });
        Ok(())
    }

    /// A finished value: to what is open, or a document.
    fn child(&mut self, node: Node) -> Result<(), Problem> {
        let Some(open) = self.open.last_mut() else {
            self.documents.push(node);
            return Ok(());
        };
        match &mut open.node.kind {
            Kind::List(items) => items.push(node),
            Kind::Scalar(_) => {}
            Kind::Map(_) if open.wants_key => {
                let Kind::Scalar(scalar) = node.kind else {
                    let mend = "write it as `key: value`; text that begins with a bracket needs quotes";
                    return Err(problem(self.file, node.pos, "", "a key must be text", mend));
                };
                open.key = Some((scalar.written.unwrap_or(scalar.text), node.pos));
                open.wants_key = false;
            }
            Kind::Map(entries) => {
                open.wants_key = true;
                let Some((key, key_pos)) = open.key.take() else {
                    return Ok(());
                };
                if entries.len() >= MAX_KEYS {
                    let what = "a mapping has more keys than Serin reads";
                    return Err(problem(self.file, key_pos, &key, what, "split it"));
                }
                if key == "<<" {
                    open.merges.push(node);
                } else if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                    let what = format!(
                        "the key `{key}` stands here twice: first in line {}",
                        first.key_pos.line
                    );
                    self.problems
                        .push(problem(self.file, key_pos, &key, what, "remove one"));
                } else {
                    entries.push(Entry {
                        key,
                        key_pos,
                        value: node,
                    });
                }
            }
        }
        Ok(())
    }

    fn check_tag(&mut self, tag: Option<&str>, pos: Pos) {
        let core = |tag: &str| tag.contains("yaml.org") || tag.starts_with("!!") || tag == "!";
        if let Some(tag) = tag.filter(|tag| !core(tag)) {
            let what = format!("the tag `{tag}` means nothing here");
            self.problems.push(problem(self.file, pos, "", what, "remove it"));
        }
    }

    fn scalar(&mut self, text: &str, plain: bool, pos: Pos) -> Scalar {
        let is_key = self.open.last().is_some_and(|open| open.wants_key);
        if is_key || !text.contains("${") {
            return Scalar {
                text: text.to_owned(),
                written: None,
                variables: Vec::new(),
                plain,
            };
        }
        let (expanded, variables) = match expand(text, self.env) {
            Ok(expanded) => expanded,
            Err(what) => {
                self.problems.push(problem(
                    self.file,
                    pos,
                    "",
                    what,
                    "set it, or write $${ for a literal ${",
                ));
                (String::new(), Vec::new())
            }
        };
        Scalar {
            text: expanded,
            written: Some(text.to_owned()),
            variables,
            plain,
        }
    }
}

fn depth(node: &Node) -> usize {
    let below = match &node.kind {
        Kind::Scalar(_) => None,
        Kind::List(items) => items.iter().map(depth).max(),
        Kind::Map(entries) => entries.iter().map(|entry| depth(&entry.value)).max(),
    };
    1 + below.unwrap_or(0)
}

/// Adds what `<<` brings and the map does not have itself.
fn merged(mut node: Node, merges: Vec<Node>) -> Node {
    let mut sources = Vec::new();
    for merge in merges {
        match merge.kind {
            Kind::Map(entries) => sources.push(entries),
            Kind::List(items) => sources.extend(items.into_iter().filter_map(|item| match item.kind {
                Kind::Map(entries) => Some(entries),
                Kind::Scalar(_) | Kind::List(_) => None,
            })),
            Kind::Scalar(_) => {}
        }
    }
    if let Kind::Map(entries) = &mut node.kind {
        for entry in sources.into_iter().flatten() {
            if !entries.iter().any(|own| own.key == entry.key) {
                entries.push(entry);
            }
        }
    }
    node
}

/// Replaces `${NAME}`; `$${` stands for `${`. Also gives the names and values that it used.
fn expand(text: &str, env: Env<'_>) -> Result<(String, Vec<(String, String)>), String> {
    let mut out = String::with_capacity(text.len());
    let mut variables = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if let Some(before) = rest[..at].strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let after = &rest[at + 2..];
        let end = after.find('}').ok_or("`${` is not closed by `}`")?;
        let name = &after[..end];
        let valid = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !valid {
            return Err(format!("`${{{name}}}` does not name an environment variable"));
        }
        let value = env(name).ok_or_else(|| format!("the environment variable `{name}` is not set"))?;
        if out.len() + value.len() > MAX_BYTES {
            return Err(format!("the environment variable `{name}` is too long"));
        }
        out.push_str(&value);
        variables.push((name.to_owned(), value));
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    Ok((out, variables))
}

#[cfg(test)]
#[allow(clippy::format_push_string, reason = "short in tests")]
mod tests {
    use super::*;

    fn read(text: &str) -> (Result<Vec<Node>, Problem>, Vec<Problem>) {
        let env = |name: &str| (name == "PORT").then(|| "9001".to_owned());
        let mut problems = Vec::new();
        let nodes = parse(text, "f.yaml", &env, &mut problems);
        (nodes, problems)
    }

    fn one(text: &str) -> Node {
        let (nodes, problems) = read(text);
        assert_eq!(problems, []);
        nodes.unwrap().remove(0)
    }

    #[test]
    fn every_value_knows_its_path_and_place() {
        let root = one("a:\n  - b: 1\n    c: {d: x}\n");
        let mut seen = Vec::new();
        root.walk(&mut |node| {
            seen.push(format!(
                "{}@{}:{}",
                node.path, node.report.line, node.report.column
            ));
        });
        assert_eq!(
            seen,
            [
                "@1:1",
                "a@1:1",
                "a[0]@2:5",
                "a[0].b@2:8",
                "a[0].c@3:5",
                "a[0].c.d@3:12"
            ]
        );
    }

    #[test]
    fn environment_variables_are_expanded_in_values_only() {
        let root = one("${PORT}: 'http://x:${PORT}/$${PORT}'\n");
        let value = root.get("${PORT}").unwrap();
        assert_eq!(value.text(), Some("http://x:9001/${PORT}"));
        for (text, part) in [
            ("a: ${NOPE}", "`NOPE` is not set"),
            ("a: ${PORT", "not closed"),
            ("a: ${}", "does not name"),
            ("a: ${A-B}", "does not name"),
        ] {
            let (_, problems) = read(text);
            assert!(
                problems.len() == 1 && problems[0].what.contains(part),
                "{text}: {problems:?}"
            );
            assert_eq!((problems[0].line, problems[0].column), (1, 4));
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_reported_with_both_places() {
        let (_, problems) = read("a: 1\nb: 2\na: 3\nb: 4\n");
        let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), 2);
        assert!(
            shown[0].starts_with("f.yaml:3:1: a: the key `a` stands here twice: first in line 1"),
            "{shown:?}"
        );
    }

    #[test]
    fn anchors_and_merges_work_and_bombs_do_not() {
        let root = one("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: *x\n");
        let y = root.get("y").unwrap();
        assert_eq!(
            (y.get("a").unwrap().text(), y.get("b").unwrap().text()),
            (Some("1"), Some("3"))
        );
        assert_eq!(root.get("z").unwrap().get("a").unwrap().path, "z.a");
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for n in 1..12 {
            let previous = format!("*a{},", n - 1).repeat(10);
            bomb += &format!("a{n}: &a{n} [{}]\n", previous.trim_end_matches(','));
        }
        let error = read(&bomb).0.unwrap_err();
        assert!(error.what.contains("multiply"), "{error}");
        let mut tower = "a0: &a0 [x]\n".to_owned();
        for n in 1..200 {
            tower += &format!("a{n}: &a{n} [*a{}]\n", n - 1);
        }
        assert!(read(&tower).0.unwrap_err().what.contains("deeply"));
        assert!(read(&"[".repeat(100_000)).0.is_err());
        assert!(read("a: &a [*a]").0.is_err());
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        let error = read("a: 1\nb: [1, 2\nc: 3\n").0.unwrap_err();
        assert!(
            error.line >= 2 && error.what.starts_with("this is not YAML: "),
            "{error}"
        );
        let error = read("a:\n\tb: 1\n").0.unwrap_err();
        assert_eq!(error.hint, "indent with spaces, not tabs", "{error}");
    }
}
