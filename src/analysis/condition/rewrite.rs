//! Reads a condition before the parser does: bounds its depth, refuses unknown names, and makes `x[i]` checked.
//!
//! The parser's syntax tree is private to its crate, so this works on the text, token by token. It is not a parser: what
//! it lets through wrongly, the parser refuses.

use super::AT;

/// Deeper conditions are refused; the parser is recursive and retries brackets.
const DEEPEST: usize = 12;

const WORDS: &[&str] = &[
    "true",
    "false",
    "nil",
    "and",
    "or",
    "not",
    "in",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "let",
    "if",
    "else",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Name(&'a str),
    Number(&'a str),
    Text(&'a str),
    Sign(&'a str),
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Token::Name(text) | Token::Number(text) | Token::Text(text) | Token::Sign(text) => text,
        }
    }
}

fn tokens(code: &str) -> Result<Vec<Token<'_>>, String> {
    let mut tokens = Vec::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            c if c.is_whitespace() => {
                rest = &rest[c.len_utf8()..];
                continue;
            }
            quote @ ('"' | '\'' | '`') => {
                text_length(rest, quote).ok_or("a text is not closed: add the quote at its end")?
            }
            c if c.is_ascii_digit() => number_length(rest),
            c if is_name(c) || c == '#' => {
                let tail = &rest[c.len_utf8()..];
                c.len_utf8() + tail.find(|c: char| !is_name(c)).unwrap_or(tail.len())
            }
            _ if ["??", "?.", "..", "&&", "||", "==", "!=", "<=", ">=", "**"]
                .iter()
                .any(|sign| rest.starts_with(sign)) =>
            {
                2
            }
            c if c.is_ascii_punctuation() => 1,
            c => return Err(format!("unexpected character `{c}`")),
        };
        let (text, after) = rest.split_at(length);
        tokens.push(match first {
            '"' | '\'' | '`' => Token::Text(text),
            c if c.is_ascii_digit() => Token::Number(text),
            c if is_name(c) || c == '#' => Token::Name(text),
            _ => Token::Sign(text),
        });
        rest = after;
    }
    Ok(tokens)
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$'
}

fn text_length(rest: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' && quote != '`' {
            escaped = true;
        } else if c == quote {
            return Some(at + c.len_utf8());
        }
    }
    None
}

/// `1`, `0.95`, `1e-3`, `0x1f`; stops before `..`.
fn number_length(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let exponent = matches!(bytes.get(at.wrapping_sub(1)), Some(b'e' | b'E')) && !rest.starts_with("0x");
        let continues = byte.is_ascii_alphanumeric()
            || byte == b'_'
            || (byte == b'.' && bytes.get(at + 1) != Some(&b'.') && !rest[..at].contains('.'))
            || (matches!(byte, b'+' | b'-') && exponent);
        if !continues {
            break;
        }
        at += 1;
    }
    at
}

/// The condition with checked indexing, or why it is refused.
pub(super) fn rewrite(code: &str, is_function: impl Fn(&str) -> bool) -> Result<String, String> {
    let tokens = tokens(code)?;
    check_depth(&tokens)?;
    check_names(&tokens, is_function)?;
    Ok(checked_indexing(&tokens))
}

fn check_depth(tokens: &[Token<'_>]) -> Result<(), String> {
    let (mut depth, mut branches) = (0usize, 0usize);
    for token in tokens {
        match token {
            Token::Sign("(" | "[" | "{") => depth += 1,
            Token::Sign(")" | "]" | "}") => depth = depth.saturating_sub(1),
            Token::Sign("?" | "??") | Token::Name("if") => branches += 1,
            Token::Sign(_) | Token::Name(_) | Token::Number(_) | Token::Text(_) => {}
        }
        if depth > DEEPEST || branches > DEEPEST {
            return Err(format!("nested deeper than {DEEPEST} levels"));
        }
    }
    Ok(())
}

/// Names are `result`, what `let` binds, and functions. Inside `{…}` an element's fields are names too.
fn check_names(tokens: &[Token<'_>], is_function: impl Fn(&str) -> bool) -> Result<(), String> {
    let mut bound = vec!["result"];
    let mut braces = 0usize;
    for (at, token) in tokens.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|at| tokens.get(at));
        let after = tokens.get(at + 1);
        match token {
            Token::Sign("{") => braces += 1,
            Token::Sign("}") => braces = braces.saturating_sub(1),
            Token::Name(name) if before == Some(&Token::Name("let")) => bound.push(name),
            Token::Name(name) if after == Some(&Token::Sign("(")) && !WORDS.contains(name) => {
                if matches!(before, Some(Token::Sign("." | "?."))) || !is_function(name) {
                    return Err(format!(
                        "unknown function `{name}`: besides those of the expression language there are isNaN, isInf, \
                         isNil, asInt, asFloat and default"
                    ));
                }
            }
            Token::Name(name)
                if braces == 0
                    && !WORDS.contains(name)
                    && !bound.contains(name)
                    && !name.starts_with('#')
                    && !matches!(before, Some(Token::Sign("." | "?."))) =>
            {
                return Err(format!(
                    "unknown name `{name}`: the measured value is called `result`"
                ));
            }
            Token::Name(_) | Token::Number(_) | Token::Text(_) | Token::Sign(_) => {}
        }
    }
    Ok(())
}

/// Turns `name.field[i][j]` into `__at(__at(name.field, i), j)`; slices and everything else stay.
fn checked_indexing(tokens: &[Token<'_>]) -> String {
    let mut out = String::new();
    let mut at = 0;
    while at < tokens.len() {
        let token = tokens[at];
        at += 1;
        let starts_chain = matches!(token, Token::Name(name) if !WORDS.contains(&name))
            && tokens.get(at) != Some(&Token::Sign("("));
        if !starts_chain {
            push(&mut out, token.text());
            continue;
        }
        let mut chain = token.text().to_owned();
        loop {
            match tokens.get(at..) {
                Some([Token::Sign("."), Token::Name(field), after @ ..])
                    if after.first() != Some(&Token::Sign("(")) =>
                {
                    chain = format!("{chain}.{field}");
                    at += 2;
                }
                Some([Token::Sign("["), inside @ ..]) => match index_length(inside) {
                    Some(length) => {
                        chain = format!("{AT}({chain},{})", checked_indexing(&inside[..length]));
                        at += length + 2;
                    }
                    None => break,
                },
                Some(_) | None => break,
            }
        }
        push(&mut out, &chain);
    }
    out
}

fn push(out: &mut String, text: &str) {
    if !out.is_empty() {
        out.push(' ');
    }
    out.push_str(text);
}

/// How many tokens stand before the closing bracket; `None` for a slice or without one.
fn index_length(inside: &[Token<'_>]) -> Option<usize> {
    let (mut depth, mut ternary) = (0usize, 0usize);
    for (at, token) in inside.iter().enumerate() {
        match token {
            Token::Sign("]") if depth == 0 => return (at > 0).then_some(at),
            Token::Sign("(" | "[" | "{") => depth += 1,
            Token::Sign(")" | "]" | "}") => depth = depth.checked_sub(1)?,
            Token::Sign("?") => ternary += 1,
            Token::Sign(":") if depth == 0 => ternary = ternary.checked_sub(1)?,
            Token::Sign(_) | Token::Name(_) | Token::Number(_) | Token::Text(_) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(code: &str) -> String {
        rewrite(code, |_| true).unwrap()
    }

    #[test]
    fn an_index_becomes_a_checked_one() {
        assert_eq!(rewritten("result[0] >= 0.95"), "__at(result,0) >= 0.95");
        assert_eq!(
            rewritten("result.a.b[len(result)-1][1]<1e-3"),
            "__at(__at(result.a.b,len ( result ) - 1),1) < 1e-3"
        );
        assert_eq!(
            rewritten("result[1:2] == ['[0]']"),
            "result [ 1 : 2 ] == [ '[0]' ]"
        );
        assert_eq!(rewritten("0 in 1..2"), "0 in 1 .. 2");
    }

    #[test]
    fn names_nobody_binds_are_refused() {
        for (code, what) in [
            ("reslut < 1", "`reslut`"),
            ("result < limit", "`limit`"),
            ("now() < 1", "`now`"),
        ] {
            let error = rewrite(code, |name| name == "len").unwrap_err();
            assert!(error.contains(what), "{error}");
        }
        assert!(rewrite("let x = result[0]; x < 1", |_| true).is_ok());
        assert!(rewrite("all(result, {# < 0.5})", |_| true).is_ok());
    }

    #[test]
    fn depth_is_bounded_and_open_texts_are_refused() {
        assert!(rewrite(&"(".repeat(100), |_| true).is_err());
        assert!(rewrite(&"result[".repeat(100), |_| true).is_err());
        assert!(rewrite("result == 'x", |_| true).is_err());
    }
}
