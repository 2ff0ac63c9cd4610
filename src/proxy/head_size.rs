//! How large the head of a request is, as HTTP/2 counts (RFC 9113 6.5.2): names, values, and 32 bytes for each field.

use http::{header, request::Parts};

const FIELD: usize = 32;

/// The size that a head has over HTTP/2. What is not sent there is left out.
pub(super) fn list_size(head: &Parts) -> u32 {
    let left_out = [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::EXPECT,
    ];
    let fields = head.headers.iter().map(|(name, value)| {
        // Becomes `:authority`.
        let name = if *name == header::HOST {
            ":authority"
        } else if left_out.contains(name) {
            return 0;
        } else {
            name.as_str()
        };
        name.len() + value.len() + FIELD
    });
    let path = head.uri.path_and_query().map_or(1, |path| path.as_str().len());
    let pseudo = [
        (":method", head.method.as_str().len()),
        (":scheme", "https".len()),
        (":path", path),
    ];
    let pseudo = pseudo.map(|(name, value)| name.len() + value + FIELD);
    let size = fields.sum::<usize>() + pseudo.iter().sum::<usize>();
    u32::try_from(size).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn a_head_is_as_large_as_http2_counts_it() {
        let request = Request::get("/orders?id=1")
            .header("host", "shop.test")
            .header("connection", "te")
            .header("te", "trailers")
            .header("cookie", "a=1")
            .body(());
        let (head, ()) = request.unwrap().into_parts();
        let fields = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/orders?id=1"),
            (":authority", "shop.test"),
            ("te", "trailers"),
            ("cookie", "a=1"),
        ];
        let expected: usize = fields
            .iter()
            .map(|(name, value)| name.len() + value.len() + 32)
            .sum();
        assert_eq!(usize::try_from(list_size(&head)).unwrap(), expected);
    }
}
