//! A request head kept for a repeat, packed into one block of bytes.
//!
//! Hardly any is ever needed, so it has to be cheap to make and to drop: a copy of the field map would count the references
//! of every name and value up and down, and take four allocations instead of one.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, request::Parts};

/// What most heads fit in, in bytes: one step below the size from which the allocator works harder.
const USUAL: usize = 1000;
/// Marks a value that must not go into compression tables, in its length.
const SENSITIVE: u32 = 1 << 31;

/// See the module.
#[derive(Debug)]
pub(super) struct Spare {
    method: Method,
    uri: Uri,
    /// For each field the two lengths, four bytes each, then name and value.
    fields: Vec<u8>,
    count: usize,
}

impl Spare {
    /// A copy of a head. None when a field is too long to be copied, which no listener lets in.
    pub(super) fn of(head: &Parts) -> Option<Spare> {
        let mut fields = Vec::with_capacity(USUAL);
        for (name, value) in &head.headers {
            let (name, text) = (name.as_str(), value.as_bytes());
            let length = u32::try_from(text.len())
                .ok()
                .filter(|length| length & SENSITIVE == 0)?;
            let mark = if value.is_sensitive() { SENSITIVE } else { 0 };
            let lengths = u64::from(u32::try_from(name.len()).ok()?) << 32 | u64::from(length | mark);
            fields.extend_from_slice(&lengths.to_be_bytes());
            fields.extend_from_slice(name.as_bytes());
            fields.extend_from_slice(text);
        }
        Some(Spare {
            method: head.method.clone(),
            uri: head.uri.clone(),
            fields,
            count: head.headers.len(),
        })
    }

    /// The head again. None only if what was copied is no head.
    pub(super) fn restore(&self) -> Option<Parts> {
        let mut headers = HeaderMap::with_capacity(self.count);
        let mut rest = self.fields.as_slice();
        while !rest.is_empty() {
            let (name, value);
            (name, value, rest) = field(rest)?;
            headers.append(name, value);
        }
        let (mut head, ()) = http::Request::new(()).into_parts();
        (head.method, head.uri, head.headers) = (self.method.clone(), self.uri.clone(), headers);
        Some(head)
    }
}

fn field(packed: &[u8]) -> Option<(HeaderName, HeaderValue, &[u8])> {
    let (name_length, rest) = packed.split_first_chunk()?;
    let (value_length, rest) = rest.split_first_chunk()?;
    let marked = u32::from_be_bytes(*value_length);
    let (name, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*name_length)).ok()?)?;
    let (value, rest) = rest.split_at_checked(usize::try_from(marked & !SENSITIVE).ok()?)?;
    let mut value = HeaderValue::from_bytes(value).ok()?;
    value.set_sensitive(marked & SENSITIVE != 0);
    Some((HeaderName::from_bytes(name).ok()?, value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn a_restored_head_is_the_one_that_was_kept() {
        let mut secret = HeaderValue::from_static("Bearer x");
        secret.set_sensitive(true);
        let request = Request::put("http://shop.test:81/a?b=c")
            .header("host", "shop.test:81")
            .header("x-empty", "")
            .header("set-cookie", "a=1")
            .header("accept", &b"\x80\xff tab\there"[..])
            .header("set-cookie", "b=2")
            .header("authorization", secret)
            .header("x-long", "v".repeat(5000))
            .body(())
            .unwrap();
        let (head, ()) = request.into_parts();
        let again = Spare::of(&head).unwrap().restore().unwrap();
        assert_eq!((&again.method, &again.uri), (&head.method, &head.uri));
        let sorted = |headers: &HeaderMap| {
            let mut all: Vec<_> = headers
                .iter()
                .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec(), value.is_sensitive()))
                .collect();
            // The order among different names says nothing; that of one name's lines does.
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        assert_eq!(sorted(&again.headers), sorted(&head.headers));
    }

    #[test]
    fn what_is_no_head_is_refused_instead_of_read_past_its_end() {
        let (mut head, ()) = Request::get("/").header("a", "b").body(()).unwrap().into_parts();
        head.headers.insert("c", HeaderValue::from_static("d"));
        let whole = Spare::of(&head).unwrap();
        for length in 1..whole.fields.len() {
            let cut = Spare {
                method: Method::GET,
                uri: Uri::from_static("/"),
                fields: whole.fields[..length].to_vec(),
                count: 2,
            };
            // At the border between two fields it is a shorter head.
            assert_eq!(cut.restore().is_some(), length == 10, "{length}");
        }
    }
}
