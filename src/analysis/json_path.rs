//! Which part of a JSON answer is the result of a measurement. The configuration checks a path by it, the provider `web`
//! follows it.

use serde_json::Value;

/// A path into a JSON value: `{$.data.items[0].ok}`, also with `['name']`, `[-1]` and `[*]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonPath(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Key(String),
    Index(i64),
    All,
}

impl JsonPath {
    /// Reads a path; the braces and the `$` may be left out.
    pub fn parse(text: &str) -> Result<JsonPath, String> {
        let bad = |why: &str| {
            format!("jsonPath `{text}`: {why}; write for example {{$.data.ok}} or {{$.items[0]}}")
        };
        let inner = text.trim();
        let inner = match inner.strip_prefix('{') {
            Some(rest) => rest
                .strip_suffix('}')
                .ok_or_else(|| bad("the brace is not closed"))?,
            None => inner,
        };
        let mut rest = inner.trim().strip_prefix('$').unwrap_or(inner.trim());
        let mut parts = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('[') {
                let (inside, after) = after
                    .split_once(']')
                    .ok_or_else(|| bad("the bracket is not closed"))?;
                parts.push(Self::bracket(inside.trim()).ok_or_else(|| bad("what stands in brackets"))?);
                rest = after;
                continue;
            }
            let key = rest.strip_prefix('.').unwrap_or(rest);
            let end = key.find(['.', '[']).unwrap_or(key.len());
            let (key, after) = key.split_at(end);
            match key {
                "" => return Err(bad("a name is missing")),
                "*" => parts.push(Part::All),
                key => parts.push(Part::Key(key.to_owned())),
            }
            rest = after;
        }
        Ok(JsonPath(parts))
    }

    fn bracket(inside: &str) -> Option<Part> {
        if inside == "*" {
            return Some(Part::All);
        }
        for quote in ['\'', '"'] {
            if let Some(name) = inside.strip_prefix(quote) {
                return name.strip_suffix(quote).map(|name| Part::Key(name.to_owned()));
            }
        }
        inside.parse().ok().map(Part::Index)
    }

    /// The value the path leads to; a list when it has a `*`.
    pub fn find(&self, value: &Value) -> Result<Value, String> {
        let mut found = vec![value];
        let mut many = false;
        for part in &self.0 {
            many |= *part == Part::All;
            found = found.into_iter().flat_map(|value| part.step(value)).collect();
        }
        match (many, found.as_slice()) {
            (true, all) => Ok(Value::Array(all.iter().map(|value| (*value).clone()).collect())),
            (false, [one]) => Ok((*one).clone()),
            (false, _) => Err("the answer has nothing at jsonPath".to_owned()),
        }
    }
}

impl Part {
    fn step<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        match (self, value) {
            (Part::Key(key), Value::Object(map)) => map.get(key).into_iter().collect(),
            (Part::Index(index), Value::Array(list)) => {
                let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
                let index = if *index < 0 { index + length } else { *index };
                usize::try_from(index)
                    .ok()
                    .and_then(|index| list.get(index))
                    .into_iter()
                    .collect()
            }
            (Part::All, Value::Array(list)) => list.iter().collect(),
            (Part::All, Value::Object(map)) => map.values().collect(),
            (Part::Key(_) | Part::Index(_) | Part::All, _) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_path_finds_keys_and_indices() {
        let value =
            json!({"data": {"ok": true, "list": [1, 2, 3], "a.b": "x"}, "items": [{"n": 1}, {"n": 2}]});
        for (path, wanted) in [
            ("{$.data.ok}", json!(true)),
            ("$.data.list[0]", json!(1)),
            ("{$.data.list[-1]}", json!(3)),
            ("{$['data']['a.b']}", json!("x")),
            ("{$.items[*].n}", json!([1, 2])),
            ("{$}", value.clone()),
        ] {
            assert_eq!(JsonPath::parse(path).unwrap().find(&value), Ok(wanted), "{path}");
        }
        assert!(JsonPath::parse("{$.data.nope}").unwrap().find(&value).is_err());
        assert!(JsonPath::parse("{$.data").is_err() && JsonPath::parse("$.a[").is_err());
    }
}
