//! One pass over a request's fields: everything the door and the header rules need to know, looked up once.
//!
//! A look-up costs a hash each; a request has a dozen fields and we ask about twenty.

use super::grpc;
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// What the fields of a request contain. Counts stop at 255.
#[derive(Debug, Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a field that is there or not"
)]
pub(super) struct Seen {
    pub(super) hosts: u8,
    pub(super) lengths: u8,
    pub(super) codings: u8,
    pub(super) expectations: u8,
    pub(super) cookies: u8,
    pub(super) connection: bool,
    /// Whether that may name other fields.
    pub(super) nominates: bool,
    pub(super) te: bool,
    pub(super) te_trailers: bool,
    pub(super) forwarded: bool,
    pub(super) forwarded_port: bool,
    pub(super) real_ip: bool,
    pub(super) via: bool,
    /// Some name may be one that only a CGI-style reader takes for one of ours; `headers` looks which.
    pub(super) lookalike: bool,
    /// Whether the client understands JSON: how it is told of a failure.
    pub(super) accepts_json: bool,
    /// Whether the request speaks gRPC: how it is told of a failure, too.
    pub(super) grpc: bool,
    /// The first Host field: asked for by the door, the routes and the forwarded fields.
    pub(super) host: Option<HeaderValue>,
    /// Hop-by-hop fields other than `Connection` and `TE`, by their place in [`HOP_BY_HOP`].
    pub(super) hop: [bool; 5],
}

/// Fields that concern one connection only (RFC 9110 7.6.1), and what proves who talks to a proxy.
pub(super) static HOP_BY_HOP: [HeaderName; 5] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
    header::PROXY_AUTHORIZATION,
];

impl Seen {
    /// Looks at every field once.
    pub(super) fn scan(headers: &HeaderMap) -> Seen {
        let mut seen = Seen::default();
        for (name, value) in headers {
            seen.note(name, value);
        }
        seen
    }

    /// Whether there is an `Upgrade` field.
    pub(super) const fn asks_upgrade(&self) -> bool {
        self.hop[2]
    }

    fn note(&mut self, name: &HeaderName, value: &HeaderValue) {
        let more = |count: &mut u8| *count = count.saturating_add(1);
        match name.as_str() {
            "host" => {
                more(&mut self.hosts);
                self.host.get_or_insert_with(|| value.clone());
            }
            "accept" => self.accepts_json |= names_json(value),
            "content-type" => self.grpc = grpc::is_grpc(value),
            "content-length" => more(&mut self.lengths),
            "transfer-encoding" => more(&mut self.codings),
            "expect" => more(&mut self.expectations),
            "cookie" => more(&mut self.cookies),
            "connection" => {
                self.connection = true;
                self.nominates |= nominates(value);
            }
            "te" => {
                self.te = true;
                self.te_trailers |= names_trailers(value);
            }
            "forwarded" => self.forwarded = true,
            "x-forwarded-port" => self.forwarded_port = true,
            "x-real-ip" => self.real_ip = true,
            "via" => self.via = true,
            "keep-alive" => self.hop[0] = true,
            "proxy-connection" => self.hop[1] = true,
            "upgrade" => self.hop[2] = true,
            "http2-settings" => self.hop[3] = true,
            "proxy-authorization" => self.hop[4] = true,
            other => self.lookalike |= may_look_alike(other),
        }
    }
}

/// Whether a name that is none of ours begins like one, or is a framing field's with an underscore: a few comparisons, for it is
/// asked of nearly every field.
fn may_look_alike(name: &str) -> bool {
    match name.as_bytes() {
        [b'x', b'-' | b'_', b'f' | b'r', rest @ ..] => rest.contains(&b'_') || name.as_bytes()[1] == b'_',
        [b'c', _, _, _, _, _, _, b'_', ..] | [b't', _, _, _, _, _, _, _, b'_', ..] => true,
        _ => false,
    }
}

/// Whether an `Accept` field names a kind of JSON.
fn names_json(value: &HeaderValue) -> bool {
    value
        .as_bytes()
        .windows(4)
        .any(|part| part.eq_ignore_ascii_case(b"json"))
}

/// Whether a list field has this member.
pub(super) fn has_token(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .any(|token| token.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
}

/// Whether a line of `Connection` may name other fields. Nearly none does; `Keep-Alive` is a hop-by-hop field and goes anyway.
pub(super) fn nominates(line: &HeaderValue) -> bool {
    let line = line.as_bytes();
    !line.eq_ignore_ascii_case(b"keep-alive") && !line.eq_ignore_ascii_case(b"close")
}

/// Whether a `TE` field says that trailers are understood.
fn names_trailers(value: &HeaderValue) -> bool {
    value
        .as_bytes()
        .split(|b| *b == b',')
        .any(|part| part.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}
