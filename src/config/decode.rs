//! From the tree to the `…Config` types, reporting every fault and not only the first.
//!
//! Serde stops at the first error. Here an error is noted, the value at fault is left out, and decoding starts again, so
//! that one reading finds them all. Unknown keys are reported with a guess and left out too. [`Located`] keeps a value's
//! path, for faults that `compile` finds later.

use super::argo;
use super::problem::{Problem, did_you_mean};
use super::yaml::{Entry, Kind, Node, Pos, Scalar};
use serde::de::{self, Deserialize, DeserializeSeed, IntoDeserializer, Visitor};
use std::{cell::RefCell, collections::HashSet, fmt};

/// A value and its path in the file (`services[0]`).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Located<T> {
    pub(super) path: String,
    pub(super) value: T,
}

const LOCATED: &str = "serin::Located";

/// After this many faults in one file the rest is not looked for.
const MAX_FAULTS: usize = 100;

/// What decoding finds besides the value.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

/// Decodes what can be decoded; `None` when nothing can.
pub(super) fn decode<'de, T: Deserialize<'de>>(
    root: &'de Node,
    file: &str,
    findings: &mut Findings,
) -> Option<T> {
    let cx = Context {
        file,
        pruned: RefCell::default(),
        reported: RefCell::default(),
        findings: RefCell::new(std::mem::take(findings)),
    };
    let mut value = None;
    for _ in 0..MAX_FAULTS {
        match T::deserialize(De { node: root, cx: &cx }) {
            Ok(decoded) => {
                value = Some(decoded);
                break;
            }
            Err(error) => {
                let at = error.0.at.unwrap_or_else(|| At::of(root));
                if !error.0.silent {
                    let problem = cx.problem(&at, error.0.what, error.0.hint);
                    cx.findings.borrow_mut().problems.push(problem);
                }
                cx.pruned.borrow_mut().insert(at.id);
                if at.id == root.id {
                    break;
                }
            }
        }
    }
    *findings = cx.findings.into_inner();
    value
}

struct Context<'a> {
    file: &'a str,
    /// Values at fault, left out from now on.
    pruned: RefCell<HashSet<usize>>,
    /// Unknown keys already spoken of.
    reported: RefCell<HashSet<usize>>,
    findings: RefCell<Findings>,
}

struct At {
    id: usize,
    pos: Pos,
    path: String,
}

impl At {
    fn of(node: &Node) -> At {
        At {
            id: node.id,
            pos: node.report,
            path: node.path.clone(),
        }
    }
}

impl Context<'_> {
    fn problem(&self, at: &At, what: String, hint: String) -> Problem {
        Problem {
            file: self.file.to_owned(),
            line: at.pos.line,
            column: at.pos.column,
            key: at.path.clone(),
            what,
            hint,
        }
    }

    fn is_pruned(&self, node: &Node) -> bool {
        self.pruned.borrow().contains(&node.id)
    }

    fn unknown_key(&self, owner: &str, entry: &Entry, known: &'static [&'static str]) {
        let full = self.reported.borrow().len() >= MAX_FAULTS;
        if full || !self.reported.borrow_mut().insert(entry.value.id) {
            return;
        }
        let at = At {
            id: entry.value.id,
            pos: entry.key_pos,
            path: entry.value.path.clone(),
        };
        let mut findings = self.findings.borrow_mut();
        match argo::foreign_key(owner, &entry.key) {
            Some(argo::Foreign::Ignored(why)) => {
                let warning = self.problem(&at, why.to_owned(), String::new());
                findings.warnings.push(warning);
            }
            Some(argo::Foreign::Refused(what, hint)) => {
                let problem = self.problem(&at, what.to_owned(), hint.to_owned());
                findings.problems.push(problem);
            }
            None => {
                let hint = match did_you_mean(&entry.key, known.iter().copied()) {
                    Some(guess) => format!("did you mean `{guess}`?"),
                    None => format!("known here: {}", known.join(", ")),
                };
                let problem = self.problem(&at, "unknown key".to_owned(), hint);
                findings.problems.push(problem);
            }
        }
    }
}

/// Boxed: results are passed by the thousand, errors are rare.
#[derive(Debug)]
struct Fault(Box<FaultParts>);

struct FaultParts {
    what: String,
    hint: String,
    missing: Option<&'static str>,
    /// A consequence of something already reported.
    silent: bool,
    at: Option<At>,
}

impl fmt::Debug for FaultParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Fault {
    fn new(what: impl fmt::Display, hint: impl Into<String>) -> Fault {
        Fault(Box::new(FaultParts {
            what: what.to_string(),
            hint: hint.into(),
            missing: None,
            silent: false,
            at: None,
        }))
    }

    /// The innermost value keeps the blame.
    fn at(mut self, node: &Node, cx: &Context<'_>) -> Fault {
        if self.0.at.is_none() {
            self.0.at = Some(At::of(node));
            if let Some(missing) = self.0.missing {
                self.0.silent = node.get(missing).is_some_and(|value| cx.is_pruned(value));
            }
        }
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(msg: T) -> Self {
        // Our units say `X is not …: write …`; that is fault and mend in one, and stays so.
        Fault::new(msg, "")
    }

    fn missing_field(field: &'static str) -> Self {
        let mut fault = Fault::new(format_args!("`{field}` is missing"), format!("add {field}: …"));
        fault.0.missing = Some(field);
        fault
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let hint = match did_you_mean(variant, expected.iter().copied()) {
            Some(guess) => format!("did you mean `{guess}`?"),
            None => format!("write {}", expected.join(" or ")),
        };
        Fault::new(format_args!("`{variant}` is not known here"), hint)
    }

    fn invalid_length(len: usize, exp: &dyn de::Expected) -> Self {
        Fault::new(format_args!("expected {exp}, found {len} entries"), "")
    }
}

#[derive(Clone, Copy)]
struct De<'de, 'c> {
    node: &'de Node,
    cx: &'c Context<'c>,
}

impl<'de> De<'de, '_> {
    fn mismatch(&self, expected: &str) -> Fault {
        Fault::new(
            format_args!("expected {expected}, found {}", self.node.describe()),
            "",
        )
        .at(self.node, self.cx)
    }

    fn scalar(&self, expected: &str) -> Result<&'de Scalar, Fault> {
        match &self.node.kind {
            Kind::Scalar(scalar) if !scalar.is_null() => Ok(scalar),
            Kind::Scalar(_) | Kind::List(_) | Kind::Map(_) => Err(self.mismatch(expected)),
        }
    }

    fn number<T: std::str::FromStr>(&self, expected: &str) -> Result<T, Fault> {
        let scalar = self.scalar(expected)?;
        scalar.text.trim().parse().map_err(|_| self.mismatch(expected))
    }

    fn blame<T>(&self, result: Result<T, Fault>) -> Result<T, Fault> {
        result.map_err(|fault| fault.at(self.node, self.cx))
    }

    fn list<V: Visitor<'de>>(self, items: &'de [Node], visitor: V) -> Result<V::Value, Fault> {
        self.blame(visitor.visit_seq(Items {
            items: items.iter(),
            cx: self.cx,
        }))
    }

    fn map<V: Visitor<'de>>(
        self,
        entries: &'de [Entry],
        known: Option<Known>,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.blame(visitor.visit_map(Entries {
            rest: entries.iter(),
            known,
            value: None,
            cx: self.cx,
        }))
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty, $expected:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            let number: $type = self.number($expected)?;
            self.blame(visitor.$visit(number))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for De<'de, '_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.kind {
            Kind::List(items) => self.list(items, visitor),
            Kind::Map(entries) => self.map(entries, None, visitor),
            Kind::Scalar(scalar) if scalar.is_null() => self.blame(visitor.visit_unit()),
            Kind::Scalar(scalar) if !scalar.plain => self.blame(visitor.visit_borrowed_str(&scalar.text)),
            Kind::Scalar(scalar) => {
                let text = scalar.text.as_str();
                let digits = text.trim_start_matches(['-', '+', '.']);
                let numeric = digits.starts_with(|c: char| c.is_ascii_digit());
                self.blame(match text {
                    "true" | "True" | "TRUE" => visitor.visit_bool(true),
                    "false" | "False" | "FALSE" => visitor.visit_bool(false),
                    text if numeric => {
                        match (text.parse::<u64>(), text.parse::<i64>(), text.parse::<f64>()) {
                            (Ok(number), _, _) => visitor.visit_u64(number),
                            (_, Ok(number), _) => visitor.visit_i64(number),
                            (_, _, Ok(number)) if number.is_finite() => visitor.visit_f64(number),
                            (_, _, _) => visitor.visit_borrowed_str(text),
                        }
                    }
                    text => visitor.visit_borrowed_str(text),
                })
            }
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.scalar("true or false")?.text.as_str() {
            "true" | "True" | "TRUE" => self.blame(visitor.visit_bool(true)),
            "false" | "False" | "FALSE" => self.blame(visitor.visit_bool(false)),
            _ => Err(self.mismatch("true or false")),
        }
    }

    numbers! {
        deserialize_i8 visit_i8 i8, "a whole number";
        deserialize_i16 visit_i16 i16, "a whole number";
        deserialize_i32 visit_i32 i32, "a whole number";
        deserialize_i64 visit_i64 i64, "a whole number";
        deserialize_u8 visit_u8 u8, "a whole number from 0 to 255";
        deserialize_u16 visit_u16 u16, "a whole number from 0 to 65535";
        deserialize_u32 visit_u32 u32, "a whole number of at least 0";
        deserialize_u64 visit_u64 u64, "a whole number of at least 0";
        deserialize_f32 visit_f32 f32, "a number";
        deserialize_f64 visit_f64 f64, "a number";
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    /// Text is taken as it stands: `version: 1.10` is `1.10`, not 1.1.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let scalar = self.scalar("text")?;
        self.blame(visitor.visit_borrowed_str(&scalar.text))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if self.node.is_null() {
            self.blame(visitor.visit_none())
        } else {
            self.blame(visitor.visit_some(self))
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.blame(visitor.visit_unit())
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.blame(visitor.visit_unit())
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        if name == LOCATED {
            self.blame(visitor.visit_seq(PathThenValue {
                de: self,
                told: false,
            }))
        } else {
            self.blame(visitor.visit_newtype_struct(self))
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.kind {
            Kind::List(items) => self.list(items, visitor),
            Kind::Scalar(_) | Kind::Map(_) => Err(self.mismatch("a list")),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.kind {
            Kind::Map(entries) => self.map(entries, None, visitor),
            Kind::Scalar(_) | Kind::List(_) => Err(self.mismatch("a mapping")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.node.kind {
            Kind::Map(entries) => self.map(entries, Some(Known { name, fields }), visitor),
            Kind::Scalar(_) | Kind::List(_) => {
                Err(self.mismatch(&format!("a mapping with some of the keys {}", fields.join(", "))))
            }
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let expected = variants.join(" or ");
        let scalar = self.scalar(&expected)?;
        self.blame(visitor.visit_enum(scalar.text.as_str().into_deserializer()))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }
}

struct Items<'de, 'c> {
    items: std::slice::Iter<'de, Node>,
    cx: &'c Context<'c>,
}

impl<'de> de::SeqAccess<'de> for Items<'de, '_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let cx = self.cx;
        let Some(node) = self.items.find(|node| !cx.is_pruned(node)) else {
            return Ok(None);
        };
        let de = De { node, cx };
        de.blame(seed.deserialize(de)).map(Some)
    }
}

#[derive(Clone, Copy)]
struct Known {
    name: &'static str,
    fields: &'static [&'static str],
}

struct Entries<'de, 'c> {
    rest: std::slice::Iter<'de, Entry>,
    known: Option<Known>,
    value: Option<&'de Node>,
    cx: &'c Context<'c>,
}

impl<'de> de::MapAccess<'de> for Entries<'de, '_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        for entry in self.rest.by_ref() {
            if let Some(known) = self.known
                && !known.fields.contains(&entry.key.as_str())
            {
                self.cx.unknown_key(known.name, entry, known.fields);
                continue;
            }
            if self.cx.is_pruned(&entry.value) {
                continue;
            }
            self.value = Some(&entry.value);
            let key = de::value::BorrowedStrDeserializer::new(&entry.key);
            return seed
                .deserialize(key)
                .map(Some)
                .map_err(|fault: Fault| fault.at(&entry.value, self.cx));
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let Some(node) = self.value.take() else {
            return Err(Fault::new("a value was asked for before its key", ""));
        };
        let de = De { node, cx: self.cx };
        de.blame(seed.deserialize(de))
    }
}

struct PathThenValue<'de, 'c> {
    de: De<'de, 'c>,
    told: bool,
}

impl<'de> de::SeqAccess<'de> for PathThenValue<'de, '_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        if self.told {
            seed.deserialize(self.de).map(Some)
        } else {
            self.told = true;
            let path = de::value::BorrowedStrDeserializer::new(&self.de.node.path);
            seed.deserialize(path).map(Some)
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Located<T> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Pair<T> {
            type Value = Located<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value of a configuration")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut pair: A) -> Result<Self::Value, A::Error> {
                let none = |what| <A::Error as de::Error>::custom(what);
                Ok(Located {
                    path: pair.next_element()?.ok_or_else(|| none("no path"))?,
                    value: pair.next_element()?.ok_or_else(|| none("no value"))?,
                })
            }
        }
        deserializer.deserialize_newtype_struct(LOCATED, Pair(std::marker::PhantomData))
    }
}
