//! Field values that no longer hold on to the buffer they were read into.
//!
//! A value is a slice of what was read from a socket, 8 KiB or more at once. HTTP/2 remembers values for as long as a connection
//! lasts, in the table that compresses its heads (RFC 7541 section 2.3.2; here 4 KiB of names and values, so some sixty of
//! them), and each could keep a whole buffer alive. So they are copied, all of a head into one block.

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue};

/// Copies every value of a head that goes out over HTTP/2.
pub(super) fn detach(headers: &mut HeaderMap) {
    let length = headers.values().map(HeaderValue::len).sum();
    let mut block = BytesMut::with_capacity(length);
    for value in headers.values_mut() {
        block.extend_from_slice(value.as_bytes());
        // What was a value is one again.
        if let Ok(mut own) = HeaderValue::from_maybe_shared(block.split().freeze()) {
            own.set_sensitive(value.is_sensitive());
            *value = own;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::header;

    #[test]
    fn values_are_the_same_and_let_go_of_what_was_read() {
        let read = Bytes::from(vec![b'x'; 8192]);
        let mut headers = HeaderMap::new();
        headers.append(
            header::ETAG,
            HeaderValue::from_maybe_shared(read.slice(..10)).unwrap(),
        );
        headers.append(
            header::SET_COOKIE,
            HeaderValue::from_maybe_shared(read.slice(..3)).unwrap(),
        );
        let mut secret = HeaderValue::from_static("a=1");
        secret.set_sensitive(true);
        headers.append(header::SET_COOKIE, secret);
        headers.append(header::VARY, HeaderValue::from_static(""));
        headers.append(header::SERVER, HeaderValue::from_bytes(b"\xe4 server").unwrap());
        let before = headers.clone();
        detach(&mut headers);
        assert_eq!(headers, before);
        let sensitive: Vec<bool> = headers.values().map(HeaderValue::is_sensitive).collect();
        let expected: Vec<bool> = before.values().map(HeaderValue::is_sensitive).collect();
        assert_eq!(sensitive, expected);
        drop(before);
        assert!(read.is_unique(), "nobody holds the buffer");
    }
}
