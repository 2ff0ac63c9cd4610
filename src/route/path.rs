//! The one spelling of a path in which rules and requests are compared.
//!
//! `/%61dmin` and `/admin` are the same resource to whoever serves it (RFC 3986 6.2.2.2): a rule for the one must not be passed
//! by asking for the other. What a version gets stays as the client wrote it.

use std::{borrow::Cow, fmt::Write};

/// Escapes of unreserved characters become these characters, the others get upper-case digits, and what is not ASCII is
/// escaped. An escaped `/` stays one: to some readers it is none. Allocates only when something is different.
pub fn plain_path(path: &str) -> Cow<'_, str> {
    if !path.as_bytes().contains(&b'%') && path.is_ascii() {
        return Cow::Borrowed(path);
    }
    let mut plain = String::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = match after {
            [high, low, ..] if *first == b'%' => digit(*high).zip(digit(*low)),
            _ => None,
        };
        let byte = match escaped {
            Some((high, low)) => high << 4 | low,
            None => *first,
        };
        rest = if escaped.is_some() { &after[2..] } else { after };
        let is_plain = match escaped {
            Some(_) => byte.is_ascii_alphanumeric() || b"-._~".contains(&byte),
            None => byte.is_ascii(),
        };
        if is_plain {
            plain.push(char::from(byte));
        } else {
            // Writing to text cannot fail.
            let _ = write!(plain, "%{byte:02X}");
        }
    }
    Cow::Owned(plain)
}

fn digit(digit: u8) -> Option<u8> {
    u8::try_from(char::from(digit).to_digit(16)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_path_has_one_plain_one() {
        for (written, plain) in [
            ("/admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/%61%64%6D%69%6e", "/admin"),
            ("/%7Euser/a%2Eb", "/~user/a.b"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%253Fb", "/a%253Fb"),
            ("/caf\u{e9}", "/caf%C3%A9"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/100%", "/100%"),
            ("/%zz%4", "/%zz%4"),
        ] {
            assert_eq!(plain_path(written), plain, "{written}");
            assert_eq!(plain_path(plain), plain, "twice");
        }
        assert!(matches!(plain_path("/orders/17"), Cow::Borrowed(_)));
    }
}
