//! What a version is told about who asked: forwarded fields, the request's id, `Via`.

use crate::support::{
    Serin,
    client::{ask, get as get_request},
    upstream::Upstream,
};

/// What a client claims; the version's view of it, by field.
fn told(listener: &str, http2: bool, to_http2: bool, fields: &[(&str, &str)]) -> Vec<(String, String)> {
    let v1 = if to_http2 {
        Upstream::h2c("v1")
    } else {
        Upstream::start("v1")
    };
    let serin = Serin::start_with(&format!(
        "
listeners: [{{name: web, address: \"127.0.0.1:0\"{listener}}}]
admin: {{address: \"127.0.0.1:0\"}}
services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        v1.url()
    ));
    let mut asked = get_request("/head/orders?a=1");
    for (name, value) in fields {
        let name: hyper::header::HeaderName = name.parse().unwrap();
        asked.headers_mut().append(name, value.parse().unwrap());
    }
    let answer = ask(serin.web, http2, asked).unwrap();
    let text = answer.text().replace(&serin.web.to_string(), "SERIN");
    let mut lines = text.lines();
    let first = lines.next().unwrap();
    let target = if to_http2 {
        "http://SERIN/head/orders?a=1 HTTP/2.0"
    } else {
        "/head/orders?a=1 HTTP/1.1"
    };
    assert_eq!(first, format!("GET {target}"));
    let split = lines.filter_map(|line| line.split_once(": "));
    split
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn all<'a>(told: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    let of = told.iter().filter(|(known, _)| known == name);
    of.map(|(_, value)| value.as_str()).collect()
}

const CLAIMS: [(&str, &str); 6] = [
    ("x-forwarded-for", "203.0.113.9"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "elsewhere.test"),
    ("forwarded", "for=203.0.113.9"),
    ("x-request-id", "mine"),
    ("via", "1.1 other"),
];

#[test]
fn at_the_edge_a_client_says_nothing_about_itself_that_a_version_would_believe() {
    for (http2, to_http2) in [(false, false), (false, true), (true, false), (true, true)] {
        let told = told("", http2, to_http2, &CLAIMS);
        assert_eq!(all(&told, "x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(all(&told, "x-forwarded-proto"), ["http"]);
        assert_eq!(all(&told, "x-forwarded-host"), ["SERIN"]);
        assert!(all(&told, "forwarded").is_empty());
        let id = all(&told, "x-request-id");
        assert!(id.len() == 1 && id[0].len() == 32 && id[0] != "mine", "{id:?}");
        let via = if http2 {
            "1.1 other, 2.0 serin"
        } else {
            "1.1 other, 1.1 serin"
        };
        assert_eq!(all(&told, "via"), [via]);
    }
}

#[test]
fn a_sidecar_and_an_edge_behind_a_trusted_proxy_believe_and_append() {
    for listener in [", mode: sidecar", ", trustedProxies: [127.0.0.0/8]"] {
        for http2 in [false, true] {
            let told = told(listener, http2, false, &CLAIMS);
            assert_eq!(
                all(&told, "x-forwarded-for"),
                ["203.0.113.9, 127.0.0.1"],
                "{listener}"
            );
            assert_eq!(all(&told, "x-forwarded-proto"), ["https"]);
            assert_eq!(all(&told, "x-forwarded-host"), ["elsewhere.test"]);
            assert_eq!(all(&told, "x-request-id"), ["mine"]);
        }
    }
    let told = told(", trustedProxies: [10.0.0.0/8]", false, false, &CLAIMS);
    assert_eq!(
        all(&told, "x-forwarded-for"),
        ["127.0.0.1"],
        "a proxy that is not trusted"
    );
}

#[test]
fn what_concerns_one_connection_only_stays_there() {
    for to_http2 in [false, true] {
        let told = told(
            "",
            false,
            to_http2,
            &[
                ("connection", "keep-alive, x-mine, x-forwarded-for"),
                ("x-mine", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("te", "trailers, gzip"),
                ("x-kept", "1"),
            ],
        );
        for gone in ["connection", "x-mine", "keep-alive", "proxy-connection"] {
            let left = all(&told, gone);
            assert!(
                left.is_empty() || (gone == "connection" && left == ["te"]),
                "{gone}: {left:?}"
            );
        }
        assert_eq!(all(&told, "te"), ["trailers"]);
        assert_eq!(all(&told, "x-kept"), ["1"]);
        assert_eq!(
            all(&told, "x-forwarded-for"),
            ["127.0.0.1"],
            "naming ours does nothing"
        );
    }
}

#[test]
fn whoever_wants_it_is_told_by_forwarded_as_well() {
    let lies = [("forwarded", "for=9.9.9.9;host=evil.test")];
    let at_the_edge = told(", forwarded: true", false, false, &lies);
    assert_eq!(
        all(&at_the_edge, "forwarded"),
        ["for=127.0.0.1;proto=http;host=\"SERIN\""]
    );
    let as_a_sidecar = told(", forwarded: true, mode: sidecar", true, false, &lies);
    assert_eq!(
        all(&as_a_sidecar, "forwarded"),
        ["for=9.9.9.9;host=evil.test, for=127.0.0.1;proto=http;host=\"SERIN\""]
    );
    assert!(all(&told("", false, false, &lies), "forwarded").is_empty());
}
