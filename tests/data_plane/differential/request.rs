//! A request as somebody means it, before it is written in the words of a protocol.

use super::backends::Seen;
use rand::{RngExt, rngs::SmallRng, seq::IndexedRandom};

/// A request as somebody means it.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: &'static str,
    pub(super) target: String,
    pub(super) host: String,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// A GET that is easily told.
    pub(super) fn last() -> Request {
        Request {
            method: "GET",
            target: "/last".to_owned(),
            host: "shop.test".to_owned(),
            body: Vec::new(),
        }
    }

    /// What a back end makes of it.
    pub(super) fn seen(&self) -> Seen {
        Seen {
            method: self.method.to_owned(),
            target: self.target.clone(),
            host: self.host.clone(),
            body: self.body.clone(),
            malformed: None,
        }
    }

    /// Any request; bodies look like what they are not.
    pub(super) fn any(dice: &mut SmallRng) -> Request {
        let methods = [
            "GET", "GET", "HEAD", "POST", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE", "M-SEARCH",
        ];
        let paths = [
            "/",
            "/a",
            "/a/b?c=d&e",
            "//a//b/",
            "/a%20b%2Fc",
            "/a;x=1/b",
            "/?q=../..",
            "/.well-known/x",
            "/a...b",
            "/%C3%A9",
            "/a?b?c=/d//",
            "/a:b@c",
            "/*",
        ];
        let hosts = [
            "shop.test",
            "SHOP.test:8080",
            "[::1]:80",
            "a_b.shop.test.",
            "10.0.0.1",
        ];
        let bodies: [&[u8]; 8] = [
            b"",
            b"",
            b"hello",
            b"\r\n",
            b"0\r\n\r\n",
            b"GET /smuggled HTTP/1.1\r\nHost: evil.test\r\n\r\n",
            b"5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil.test\r\n\r\n",
            b"\0\xff\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ];
        let mut body = bodies.choose(dice).unwrap().to_vec();
        if dice.random_ratio(1, 16) {
            body = body.repeat(dice.random_range(100..900));
        }
        Request {
            method: methods.choose(dice).unwrap(),
            target: (*paths.choose(dice).unwrap()).to_owned(),
            host: (*hosts.choose(dice).unwrap()).to_owned(),
            body,
        }
    }
}
