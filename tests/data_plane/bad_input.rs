//! Requests that have broken proxies: each case of `tests/cases/bad_input.json`, as bytes, at the built binary.
//!
//! Behind it stands a strict reader that remembers every byte. A case holds when the client gets what the case allows, the
//! reader has seen nothing that can be read in two ways and nothing smuggled, the refusal is counted, the request is
//! counted once, memory stays where it was and the next client is served.

use crate::support::{
    HEAD, Serin,
    h2::{End, H2},
    raw::{Next, RawClient, RawUpstream, Seen, ok},
    wait_for,
};
use std::{collections::BTreeMap, io::Write, net::TcpStream, time::Duration};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const LONG: Duration = Duration::from_secs(20);

/// One request case.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) class: String,
    pub(super) h2: bool,
    pub(super) bytes: Vec<u8>,
    /// What the client sends when it has been told to go on.
    pub(super) later: &'static [u8],
    /// The body never ends: neither by its length nor by the client's word.
    pub(super) goes_on: bool,
    /// The upstream's own answer is an error.
    pub(super) answered_so: bool,
    pub(super) allowed: Vec<String>,
}

impl Case {
    pub(super) fn allows(&self, outcome: &str) -> bool {
        self.allowed.iter().any(|allowed| allowed.starts_with(outcome))
    }

    /// Whether it is about a deadline or a size that is met sooner under [`TIGHT`].
    pub(super) fn needs_short_limits(&self) -> bool {
        [
            "idle_keepalive_closed",
            "body_over_limit_chunked",
            "h2_slow_window",
            "chunk_trailer_then_junk",
        ]
        .contains(&self.name.as_str())
    }
}

pub(super) fn file() -> serde_json::Value {
    serde_json::from_str(include_str!("../cases/bad_input.json")).unwrap()
}

pub(super) fn cases() -> Vec<Case> {
    let file = file();
    let one = |case: &serde_json::Value| {
        let text = |key: &str| case[key].as_str().unwrap_or_default();
        let also = case["also_acceptable"].as_array().cloned().unwrap_or_default();
        let allowed = std::iter::once(&case["expected"]).chain(&also);
        Case {
            name: text("name").to_owned(),
            class: text("class").to_owned(),
            later: if text("name") == "expect_client_waits" {
                b"hello"
            } else {
                b""
            },
            goes_on: text("name") == "early_response_then_pipelined",
            answered_so: text("name") == "early_response_then_pipelined",
            h2: text("protocol") == "h2c",
            bytes: match (text("raw_hex"), text("raw_python")) {
                ("", "") => unescape(text("raw")),
                ("", python) => evaluate(python),
                (hex, _) => unhex(hex),
            },
            allowed: allowed.map(|text| text.as_str().unwrap().to_owned()).collect(),
        }
    };
    file["cases"].as_array().unwrap().iter().map(one).collect()
}

fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// The inside of a Python bytes literal.
pub(super) fn unescape(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.chars());
    while let Some(c) = rest.next() {
        if c != '\\' {
            bytes.extend(c.to_string().bytes());
            continue;
        }
        bytes.push(match rest.next().unwrap() {
            'r' => b'\r',
            'n' => b'\n',
            't' => b'\t',
            'x' => u8::from_str_radix(&rest.by_ref().take(2).collect::<String>(), 16).unwrap(),
            other => u8::try_from(other).unwrap(),
        });
    }
    bytes
}

/// `'text'+'text'*COUNT+…`: all that the file's expressions use.
fn evaluate(python: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, part) in python.split('\'').enumerate() {
        if index % 2 == 1 {
            bytes.push(unescape(part));
        } else if let Some(count) = part.strip_prefix('*') {
            let count = count.trim_end_matches('+').parse().unwrap();
            let last = bytes.pop().unwrap();
            bytes.push(last.repeat(count));
        }
    }
    bytes.concat()
}

pub(super) fn respond(seen: &Seen, stream: &mut TcpStream) -> Next {
    match seen.target() {
        "/413" => {
            let _ = stream.write_all(
                b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
            Next::Close
        }
        "/100MB" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
            let piece = vec![b'x'; 62_500];
            for _ in 0..1600 {
                if stream.write_all(&piece).is_err() {
                    break;
                }
            }
            Next::Close
        }
        _ => ok(seen, stream),
    }
}

pub(super) fn start(upstream: &RawUpstream, more: &str) -> Serin {
    Serin::start_with(&format!(
        "{HEAD}
services:
  - name: shop
    match: [{{host: shop.test}}, {{host: \"[::1]\"}}]
    stable: {{version: v1, endpoints: [\"{}\"]}}
{more}",
        upstream.url()
    ))
}

/// Short deadlines and a small body limit, for the cases that are about those.
const TIGHT: &str = "
    limits: {body: 500}
    timeouts: {writeStall: 1s, responseHeaders: 1s}";

pub(super) fn tight(upstream: &RawUpstream) -> Serin {
    let mut configuration = format!(
        "{HEAD}
services:
  - name: shop
    match: [{{host: shop.test}}]
    stable: {{version: v1, endpoints: [\"{}\"]}}
{TIGHT}",
        upstream.url()
    );
    let listener = "name: web, address: \"127.0.0.1:0\"";
    let short = format!("{listener}, timeouts: {{writeStall: 1s, keepAlive: 1s, requestHeaders: 1s}}");
    configuration = configuration.replace(listener, &short);
    Serin::start_with(&configuration)
}

/// How many requests have been refused for each reason.
pub(super) struct Refusals(BTreeMap<String, u64>);

impl Refusals {
    pub(super) fn of(serin: &Serin) -> Refusals {
        let text = serin.metrics();
        let lines = text
            .lines()
            .filter(|line| line.starts_with("serin_http_rejected_total{"));
        let one = |line: &str| {
            let (_, reason) = line.split_once("reason=\"").unwrap();
            let (reason, _) = reason.split_once('"').unwrap();
            (
                reason.to_owned(),
                line.rsplit(' ').next().unwrap().parse().unwrap(),
            )
        };
        Refusals(lines.map(one).collect())
    }

    /// What has been counted since.
    fn grown(&self, serin: &Serin) -> Vec<(String, u64)> {
        let now = Refusals::of(serin).0;
        let before = |reason: &str| self.0.get(reason).copied().unwrap_or_default();
        let grown = now.into_iter().map(|(reason, count)| {
            let more = count - before(&reason);
            (reason, more)
        });
        grown.filter(|(_, more)| *more > 0).collect()
    }

    /// The refusal of this case has been counted, once, for a reason that fits.
    pub(super) fn must_have_grown(&self, serin: &Serin, case: &Case, outcome: &Outcome) {
        let name = &case.name;
        let grown = wait_for(&format!("{name} to be counted as rejected"), LONG, || {
            Some(self.grown(serin)).filter(|grown| !grown.is_empty())
        });
        let fitting = reasons(&case.class, outcome);
        // Where the library ends a stream, its request may be seen to break off at the same time.
        let ended = matches!(outcome, Outcome::Error(_));
        let fits = |reason: &str| fitting.contains(&reason) || (ended && reason == "incomplete");
        assert!(
            grown.iter().all(|(reason, _)| fits(reason)),
            "{name}: {outcome:?} counted as {grown:?}, not as {fitting:?}"
        );
        // In HTTP/2 the library may end the stream for what the door refuses at the same time.
        let count: u64 = grown.iter().map(|(_, more)| more).sum();
        let over_http2 = matches!(outcome, Outcome::Error(_));
        assert!(
            count == 1 || (over_http2 && count == grown.len() as u64),
            "{name}: {grown:?}"
        );
    }
}

pub(super) fn assigned(serin: &Serin) -> f64 {
    serin.metric("serin_split_assignments_total", &[])
}

/// The label `reason` that a refusal may have: told by its status, and where that is 400 by what the case is about.
fn reasons(class: &str, outcome: &Outcome) -> &'static [&'static str] {
    // The libraries refuse broken syntax before the door sees it, and know one reason.
    let bad: &[&str] = match class {
        "host confusion" => &["host", "malformed"],
        "request line" | "path normalisation" => &["target", "malformed"],
        "incomplete" => &["incomplete", "malformed"],
        class if class.starts_with("smuggling") => &["framing", "malformed"],
        _ => &["malformed"],
    };
    match outcome {
        Outcome::Refused(405) => &["method"],
        Outcome::Refused(408) => &["timeout"],
        Outcome::Refused(413) => &["body_limit"],
        Outcome::Refused(414 | 431) => &["header_limit"],
        Outcome::Refused(417) => &["expectation"],
        Outcome::Refused(501) => &["framing"],
        Outcome::Error(End::GoAway(11)) => &["flood"],
        Outcome::Closed if class == "slow client" => &["timeout"],
        Outcome::Refused(_) | Outcome::Error(_) | Outcome::Closed => bad,
        Outcome::Forwarded(_) => &[],
    }
}

/// What a client saw of a case.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A refusal, and the end of the connection.
    Refused(u16),
    /// An answer of the upstream.
    Forwarded(u16),
    /// The connection was closed without an answer.
    Closed,
    /// HTTP/2: the stream or the connection was ended with this error.
    Error(End),
}

fn drive(case: &Case, to: std::net::SocketAddr) -> Outcome {
    if case.h2 && case.name != "h2_preface_corrupt" {
        return drive_h2(case, to);
    }
    let mut client = RawClient::connect(to);
    client.send(&case.bytes);
    match case.name.as_str() {
        "cl_short_body_then_eof" | "reqline_cr_only_endings" => client.end_sending(),
        "expect_client_waits" => {
            let interim = client.answer("POST").unwrap();
            assert_eq!(interim.status, 100, "{interim:?}");
            client.send(case.later);
        }
        _ => {}
    }
    let method = String::from_utf8_lossy(case.bytes.split(|b| *b == b' ').next().unwrap()).into_owned();
    let mut answer = client.answer(&method);
    while answer.as_ref().is_some_and(|answer| answer.status == 100) {
        assert_ne!(case.name, "expect_http10", "an interim answer to HTTP/1.0");
        answer = client.answer(&method);
    }
    let Some(answer) = answer else {
        return Outcome::Closed;
    };
    assert!(answer.whole, "{}: {answer:?}", case.name);
    match case.name.as_str() {
        "pipelined_then_garbage" | "chunk_trailer_then_junk" => {
            // A complete answer, then the refusal of what follows.
            assert_eq!(answer.status, 200, "{}", case.name);
            let refusal = client.answer("GET").unwrap();
            assert_eq!(refusal.status, 400, "{}", case.name);
            assert!(client.is_closed());
            return Outcome::Forwarded(200);
        }
        "lf_cr_lf_terminator" => assert_eq!(client.answer("GET").unwrap().status, 404),
        "idle_keepalive_closed" => assert!(client.is_closed()),
        _ => {}
    }
    if answer.status < 400 || case.answered_so {
        return Outcome::Forwarded(answer.status);
    }
    assert!(
        client.is_closed(),
        "{}: the connection goes on after {}",
        case.name,
        answer.status
    );
    Outcome::Refused(answer.status)
}

fn drive_h2(case: &Case, to: std::net::SocketAddr) -> Outcome {
    let mut client = H2::silent(to);
    client.write(&case.bytes);
    match case.name.as_str() {
        "h2_made_you_reset_window0" => {
            // The last two frames again, on the next stream each time.
            let unit = &case.bytes[case.bytes.len() - 13 - (9 + 0x3c)..];
            for stream in (3u32..10_001).step_by(2) {
                let mut again = unit.to_vec();
                let second = again.len() - 13 + 5;
                again[5..9].copy_from_slice(&stream.to_be_bytes());
                again[second..second + 4].copy_from_slice(&stream.to_be_bytes());
                if !client.write(&again) {
                    break;
                }
            }
        }
        "h2_empty_data_flood" => {
            let unit = &case.bytes[case.bytes.len() - 9..];
            for _ in 0..2000 {
                if !client.write(&unit.repeat(100)) {
                    break;
                }
            }
        }
        "h2_slow_window" => {
            return if client.is_closed() {
                Outcome::Closed
            } else {
                Outcome::Forwarded(200)
            };
        }
        _ => {}
    }
    match client.outcome() {
        End::Status(status) if status < 400 => Outcome::Forwarded(status),
        End::Status(status) => Outcome::Refused(status),
        end @ (End::GoAway(_) | End::Reset(_) | End::Closed | End::Alive) => Outcome::Error(end),
    }
}

fn is_allowed(case: &Case, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Refused(501) => case.allows("reject 501"),
        Outcome::Refused(status) => (400..500).contains(status) && case.allows("reject 4xx"),
        Outcome::Forwarded(_) => case.allows("forward"),
        Outcome::Closed => case.allows("close") || (case.h2 && case.allows("GOAWAY")),
        Outcome::Error(End::Reset(1)) => case.allows("RST_STREAM(PROTOCOL_ERROR)"),
        Outcome::Error(End::GoAway(_)) => case.allows("GOAWAY"),
        Outcome::Error(End::Closed) => case.allows("GOAWAY(ENHANCE_YOUR_CALM) and close"),
        Outcome::Error(End::Reset(_) | End::Alive | End::Status(_)) => false,
    }
}

/// What the strict reader must have seen of a request that may be forwarded in another form.
pub(super) fn is_forwarded_as_said(case: &Case, seen: &Seen, peer: &str) {
    let body = String::from_utf8_lossy(&seen.body);
    let fine = match case.name.as_str() {
        "cl_two_equal" | "cl_leading_zeros" => seen.all("content-length") == ["5"] && body == "hello",
        "te_mixed_case_ok" | "expect_client_waits" => body == "hello",
        "chunk_1byte_chunks_10k" => body.len() == 10_000,
        "chunk_trailer_cl" => {
            let trailers = seen.trailers.to_ascii_lowercase();
            let dropped = ["content-length", "transfer-encoding", "host", "x-forwarded-for"];
            body == "hello"
                && !dropped.iter().any(|name| trailers.contains(name))
                && seen.all("host") == ["shop.test"]
        }
        "host_absolute_form" => seen.target() == "/a" && seen.all("host") == ["shop.test"],
        "hop_connection_xff" => {
            seen.all("x-forwarded-for") == [peer]
                && ["x-forwarded-proto", "x-forwarded-host", "via", "x-request-id"]
                    .iter()
                    .all(|name| seen.has(name))
        }
        "hop_connection_cl" => seen.body.len() == 43,
        "hop_te_trailers_kept" => seen.all("te") == ["trailers"],
        "spoof_forwarded_untrusted" => {
            seen.all("x-forwarded-for") == [peer]
                && seen.all("x-forwarded-host") == ["shop.test"]
                && seen.all("x-forwarded-proto") == ["http"]
                && !seen.has("forwarded")
                && !seen.has("x-real-ip")
        }
        "upgrade_h2c" => !seen.has("upgrade") && !seen.has("http2-settings") && !seen.has("connection"),
        "websocket_http10" => !seen.has("upgrade"),
        "expect_get_no_body" => !seen.has("expect"),
        "hop_connection_host" | "h2_no_authority_with_host" => seen.all("host") == ["shop.test"],
        "h2_value_leading_trailing_ws" => seen.all("x-a") == ["a"],
        _ => true,
    };
    assert!(fine, "{}: forwarded as {seen:?}", case.name);
}

fn check(case: &Case, serin: &Serin, upstream: &RawUpstream) {
    let before = (
        Refusals::of(serin),
        assigned(serin),
        serin.resident(),
        upstream.count(),
    );
    let outcome = drive(case, serin.web);
    assert!(
        is_allowed(case, &outcome),
        "{}: {outcome:?}, allowed {:?}",
        case.name,
        case.allowed
    );

    let answered = matches!(outcome, Outcome::Forwarded(_));
    let seen = wait_for("the request to be seen", LONG, || {
        let seen = upstream.since(before.3);
        (!answered || seen.iter().any(|one| one.whole) || case.name.contains("413") || !seen.is_empty())
            .then_some(seen)
    });
    for one in &seen {
        assert_eq!(one.malformed, None, "{}: {one:?}", case.name);
        assert!(
            !one.head.contains("evil.test") && !one.target().contains("smuggled"),
            "{}: {one:?}",
            case.name
        );
        assert!(
            answered || !one.whole,
            "{}: refused and yet forwarded whole: {one:?}",
            case.name
        );
    }
    if answered {
        assert_eq!(seen.len(), 1, "{}: {seen:?}", case.name);
        is_forwarded_as_said(case, &seen[0], "127.0.0.1");
    } else {
        before.0.must_have_grown(serin, case, &outcome);
    }
    let count = assigned(serin) - before.1;
    #[allow(clippy::cast_precision_loss, reason = "a handful")]
    let forwarded = seen.len() as f64;
    // A body that breaks off at once may end the request before its head has been written.
    assert!(
        (count - forwarded).abs() < 0.5 || (!answered && (count - 1.0).abs() < 0.5),
        "{}: {count} assigned, {forwarded} forwarded",
        case.name
    );
    let grown = serin.resident().saturating_sub(before.2);
    assert!(grown < 4 * MIB, "{}: {grown} bytes of memory more", case.name);
    assert_eq!(ask(serin), 200, "{}: the next client", case.name);
}

/// An ordinary client's request.
pub(super) fn ask(serin: &Serin) -> u16 {
    let mut client = RawClient::connect(serin.web);
    client.send("GET /next HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    client.answer("GET").map_or(0, |answer| answer.status)
}

#[test]
fn no_bad_request_gets_through_and_each_is_answered_as_it_must_be() {
    let upstream = RawUpstream::start(respond);
    let (serin, short) = (start(&upstream, ""), tight(&upstream));
    // Memory that every first request of a kind takes once.
    for serin in [&serin, &short] {
        for _ in 0..50 {
            assert_eq!(ask(serin), 200);
        }
    }
    let cases = cases();
    assert_eq!(cases.len(), 143);
    let mut broken = Vec::new();
    for case in &cases {
        let run = || match case.name.as_str() {
            "slow_reader" => slow_reader(case, &short),
            _ if case.needs_short_limits() => check(case, &short, &upstream),
            _ => check(case, &serin, &upstream),
        };
        // All of them are told, not the first alone.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
            broken.push(&case.name);
        }
    }
    assert!(
        broken.is_empty(),
        "{} cases do not hold: {broken:?}",
        broken.len()
    );
    for serin in [&serin, &short] {
        assert!(serin.metric("serin_panics_total", &[]) < 0.5);
    }
}

/// A client that asks for a lot and reads nothing: little is held for it, and not for long.
fn slow_reader(case: &Case, serin: &Serin) {
    let before = serin.resident();
    let mut client = RawClient::connect(serin.web);
    client.send(&case.bytes);
    wait_for("the request to begin", LONG, || {
        (serin.metric("serin_http_requests_in_flight", &[]) > 0.0).then_some(())
    });
    wait_for("the stalled client to be given up", LONG, || {
        assert!(serin.resident().saturating_sub(before) < 4 * MIB);
        (serin.metric("serin_http_requests_in_flight", &[]) < 0.5).then_some(())
    });
}
