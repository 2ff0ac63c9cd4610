//! How large the head of a request is, as HTTP/2 counts (RFC 9113 6.5.2): names, values, and 32 bytes for each field.

use super::body::BodyHandle;
use crate::{model::Scheme, upstream::Endpoint};
use http::{Method, header, request::Parts};

const FIELD: usize = 32;

/// The size that a head has when it is sent to an endpoint over HTTP/2.
pub(super) fn size_to(endpoint: &Endpoint, head: &Parts, body: Option<&BodyHandle>) -> u32 {
    let secure = endpoint.url.scheme() == Scheme::Https;
    // One with content of a known length says how long it is.
    let empty = body.is_none_or(|body| !body.is_unknown_length());
    list_size(head, secure, empty)
}

/// See [`size_to`]. What is not sent there is left out; what the library adds is not, as `Content-Length` to a request without
/// content whose method has a use for some.
fn list_size(head: &Parts, secure: bool, empty: bool) -> u32 {
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
    let without_content = [Method::GET, Method::HEAD, Method::DELETE, Method::CONNECT];
    let adds_length = empty
        && !without_content.contains(&head.method)
        && !head.headers.contains_key(header::CONTENT_LENGTH);
    let scheme = if secure { "https" } else { "http" };
    let added = [
        Some((":method", head.method.as_str().len())),
        Some((":scheme", scheme.len())),
        Some((":path", path_length(head))),
        (!head.headers.contains_key(header::HOST)).then_some((":authority", "localhost".len())),
        adds_length.then_some(("content-length", "0".len())),
    ];
    let added = added
        .into_iter()
        .flatten()
        .map(|(name, value)| name.len() + value + FIELD);
    let size = fields.sum::<usize>() + added.sum::<usize>();
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// A query without a path has `/` before it.
fn path_length(head: &Parts) -> usize {
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    path.len() + usize::from(!path.starts_with(['/', '*']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn sum(fields: &[(&str, &str)]) -> u32 {
        let sizes = fields.iter().map(|(name, value)| name.len() + value.len() + 32);
        u32::try_from(sizes.sum::<usize>()).unwrap()
    }

    fn head(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_head_is_as_large_as_http2_counts_it() {
        let request = Request::get("/orders?id=1")
            .header("host", "shop.test")
            .header("connection", "te")
            .header("te", "trailers")
            .header("cookie", "a=1");
        let fields = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/orders?id=1"),
            (":authority", "shop.test"),
            ("te", "trailers"),
            ("cookie", "a=1"),
        ];
        assert_eq!(list_size(&head(request), true, true), sum(&fields));
    }

    #[test]
    fn what_the_library_adds_is_counted() {
        let mut fields = vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/?id=1"),
            (":authority", "localhost"),
        ];
        let post = || Request::post("http://shop.test?id=1");
        assert_eq!(list_size(&head(post()), false, false), sum(&fields));
        fields.push(("content-length", "0"));
        assert_eq!(list_size(&head(post()), false, true), sum(&fields));
        let said = post().header("content-length", "7");
        assert_eq!(list_size(&head(said), false, true), sum(&fields), "once");
    }
}
