//! The requests of `tests/cases/bad_input.json` that are written in HTTP/1.1, asked in HTTP/2: what is refused in one form
//! must not come in by the other.
//!
//! One rule translates them all ([`translate`]): the request line and Host become pseudo-header fields, every other field is
//! sent as it was written, the body becomes DATA, and a chunked body that can be read its trailers too. What has no form in
//! HTTP/2 is told by [`Inexpressible`]; everything else must end as the case says. Fields that concern one connection must
//! end the stream whatever the case says of HTTP/1.1 (RFC 9113 8.2.2).

use super::bad_input::{
    Case, Outcome, Refusals, ask, assigned, cases, is_forwarded_as_said, respond, start, tight,
};
use crate::support::{
    Serin,
    h2::{DATA, END_STREAM, End, H2, literals},
    raw::RawUpstream,
    wait_for,
};
use std::{collections::BTreeMap, time::Duration};

const LONG: Duration = Duration::from_secs(20);

/// What a request's head may have when nothing is configured, in bytes.
const HEADER_BYTES: usize = 64 * 1024;

/// Why a case cannot be said in HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Inexpressible {
    /// It is written in HTTP/2 already.
    Already,
    /// Other line ends, or none: HTTP/2 has no lines.
    Lines,
    /// Another version than HTTP/1.1, or none: HTTP/2 names no version.
    Version,
    /// What is left of a line without a colon would be another field, not this one.
    NoField,
    /// A size or an end of a chunk that is wrong: HTTP/2 has no chunks.
    Chunks,
    /// Bytes behind the request, which are a next one on a connection that serves one after the other.
    Pipelined,
    /// An absolute target without Host: in HTTP/2 `:authority` needs no Host beside it.
    Absolute,
    /// It is about time, not about form.
    Time,
}

type Field = (Vec<u8>, Vec<u8>);

/// A request in HTTP/2.
#[derive(Debug, Default)]
struct Translated {
    fields: Vec<Field>,
    body: Vec<u8>,
    trailers: Vec<Field>,
    /// Whether the client says that this was all.
    ends: bool,
}

impl Translated {
    /// Whether it has a field that HTTP/2 does not know: malformed, whatever it says.
    fn concerns_a_connection(&self) -> bool {
        let names = [
            &b"connection"[..],
            b"keep-alive",
            b"proxy-connection",
            b"transfer-encoding",
            b"upgrade",
        ];
        let is =
            |(name, value): &Field| names.contains(&&name[..]) || (name == b"te" && value != b"trailers");
        self.fields.iter().any(is)
    }
}

fn split_once<'a>(bytes: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(mark.len()).position(|part| part == mark)?;
    Some((&bytes[..at], &bytes[at + mark.len()..]))
}

/// A line as a field: names are written small, and the space around a value is none of it.
fn field(line: &[u8]) -> Option<Field> {
    let (name, value) = split_once(line, b":")?;
    Some((name.to_ascii_lowercase(), value.trim_ascii().to_vec()))
}

/// The case in HTTP/2, in each way there is: the host as `:authority`, and as Host.
fn translate(case: &Case) -> Result<Vec<Translated>, Inexpressible> {
    if case.h2 {
        return Err(Inexpressible::Already);
    }
    if case.class == "slow client" {
        return Err(Inexpressible::Time);
    }
    let (head, rest) = split_once(&case.bytes, b"\r\n\r\n").ok_or(Inexpressible::Lines)?;
    let (line, lines) = split_once(head, b"\r\n").unwrap_or((head, b""));
    // What stands between the first and the last space is the target, whatever it is.
    let (method, target) = split_once(line, b" ").ok_or(Inexpressible::Version)?;
    let target = target.strip_suffix(b"HTTP/1.1").ok_or(Inexpressible::Version)?;
    let target = target.strip_suffix(b" ").unwrap_or_default();
    let mut fields = Vec::new();
    let mut lines = lines;
    while !lines.is_empty() {
        let (line, more) = split_once(lines, b"\r\n").unwrap_or((lines, b""));
        fields.push(field(line).ok_or(Inexpressible::NoField)?);
        lines = more;
    }
    let mut body = Translated::default();
    let lengths = fields.iter().any(|(name, _)| name == b"content-length");
    let codings = |(name, _): &&Field| name == b"transfer-encoding";
    let coding: Vec<Field> = fields.iter().filter(codings).cloned().collect();
    match &coding[..] {
        [(_, coding)] if coding.eq_ignore_ascii_case(b"chunked") && !lengths => {
            fields.retain(|(name, _)| name != b"transfer-encoding");
            unchunk(rest, &mut body)?;
        }
        [] if !lengths && !rest.is_empty() => return Err(Inexpressible::Pipelined),
        _ => {
            body.body = [rest, case.later].concat();
            body.ends = !case.goes_on;
        }
    }
    let (hosts, others): (Vec<Field>, Vec<Field>) = fields.into_iter().partition(|(name, _)| name == b"host");
    let mut ways = Vec::new();
    for pseudo in pseudo_fields(method, target, &hosts)? {
        let by_authority = pseudo.iter().any(|(name, _)| name == b":authority");
        // As many fields as in HTTP/1.1, for their number may be what the case is about.
        let instead = (b"x-instead-of-host".to_vec(), b"1".to_vec());
        let host = match &hosts[..] {
            [_] if by_authority && target.starts_with(b"/") => vec![instead],
            hosts => hosts.to_vec(),
        };
        ways.push(Translated {
            fields: [pseudo, host, others.clone()].concat(),
            body: body.body.clone(),
            trailers: body.trailers.clone(),
            ends: body.ends,
        });
    }
    Ok(ways)
}

/// The ways to say where a request goes (9113 8.3.1, 8.5).
fn pseudo_fields(method: &[u8], target: &[u8], hosts: &[Field]) -> Result<Vec<Vec<Field>>, Inexpressible> {
    let said = |fields: &[(&str, &[u8])]| -> Vec<Field> {
        let method = (b":method".to_vec(), method.to_vec());
        let others = fields
            .iter()
            .map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()));
        std::iter::once(method).chain(others).collect()
    };
    if method == b"CONNECT" {
        return Ok(vec![said(&[(":authority", target)])]);
    }
    if let Some(rest) = target.strip_prefix(b"http://") {
        let at = rest.iter().position(|b| *b == b'/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        if hosts.is_empty() {
            return Err(Inexpressible::Absolute);
        }
        return Ok(vec![said(&[
            (":scheme", b"http"),
            (":authority", authority),
            (":path", path),
        ])]);
    }
    let by_host = said(&[(":scheme", b"http"), (":path", target)]);
    Ok(match hosts {
        [(_, host)] => {
            let by_authority = said(&[(":scheme", b"http"), (":authority", host), (":path", target)]);
            vec![by_authority, by_host]
        }
        _ => vec![by_host],
    })
}

/// What a chunked body says: its bytes, its trailers, and whether it has come to its end.
fn unchunk(mut bytes: &[u8], into: &mut Translated) -> Result<(), Inexpressible> {
    while let Some((size, rest)) = split_once(bytes, b"\r\n") {
        let digits = std::str::from_utf8(size)
            .ok()
            .filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
        let size = digits.and_then(|text| usize::from_str_radix(text, 16).ok());
        let size = size.ok_or(Inexpressible::Chunks)?;
        if size == 0 {
            // The last chunk's line end stands for the first of an empty trailer section, too.
            let (trailers, behind) = split_once(&bytes[1..], b"\r\n\r\n").ok_or(Inexpressible::Chunks)?;
            let lines = String::from_utf8_lossy(trailers).into_owned();
            for line in lines.split("\r\n").filter(|line| !line.is_empty()) {
                into.trailers
                    .push(field(line.as_bytes()).ok_or(Inexpressible::NoField)?);
            }
            into.ends = true;
            return if behind.is_empty() {
                Ok(())
            } else {
                Err(Inexpressible::Pipelined)
            };
        }
        let Some((data, rest)) = rest.split_at_checked(size) else {
            into.body.extend(rest);
            return Ok(());
        };
        into.body.extend(data);
        bytes = rest.strip_prefix(b"\r\n").ok_or(Inexpressible::Chunks)?;
    }
    Err(Inexpressible::Chunks)
}

fn drive(case: &Case, request: &Translated, serin: &Serin) -> Outcome {
    let mut client = H2::connect(serin.web);
    let more = !request.body.is_empty() || !request.trailers.is_empty() || !request.ends;
    client.fields(1, &literals(&request.fields), !more);
    if more {
        let last = request.ends && request.trailers.is_empty();
        client.send(DATA, if last { END_STREAM } else { 0 }, 1, &request.body);
    }
    if !request.trailers.is_empty() {
        client.fields(1, &literals(&request.trailers), true);
    }
    match client.outcome() {
        End::Status(status) if status < 400 || case.answered_so => Outcome::Forwarded(status),
        End::Status(status) => Outcome::Refused(status),
        end @ (End::GoAway(_) | End::Reset(_) | End::Closed | End::Alive) => Outcome::Error(end),
    }
}

/// A status, or an end of the stream or the connection as one who sent something malformed, or too much.
fn is_refusal(outcome: &Outcome) -> bool {
    const PROTOCOL_ERROR: u32 = 1;
    const ENHANCE_YOUR_CALM: u32 = 11;
    match outcome {
        Outcome::Refused(status) => (400..500).contains(status) || *status == 501,
        Outcome::Error(End::Reset(code)) => *code == PROTOCOL_ERROR,
        Outcome::Error(End::GoAway(code)) => [PROTOCOL_ERROR, ENHANCE_YOUR_CALM].contains(code),
        Outcome::Error(End::Closed | End::Alive | End::Status(_))
        | Outcome::Forwarded(_)
        | Outcome::Closed => false,
    }
}

fn check(case: &Case, request: &Translated, serin: &Serin, upstream: &RawUpstream) {
    let before = (Refusals::of(serin), assigned(serin), upstream.count());
    let outcome = drive(case, request, serin);
    let name = &case.name;
    if is_refusal(&outcome) {
        let may = case.allows("reject") || case.allows("close") || request.concerns_a_connection();
        assert!(may, "{name}: {outcome:?}, allowed {:?}", case.allowed);
        // The library answers a block beyond `limits.headerBytes` itself.
        let too_large = literals(&request.fields).len() >= HEADER_BYTES;
        assert!(
            !too_large || outcome == Outcome::Refused(431),
            "{name}: {outcome:?}"
        );
        before.0.must_have_grown(serin, case, &outcome);
    } else {
        let may = matches!(outcome, Outcome::Forwarded(_)) && case.allows("forward");
        assert!(
            may && !request.concerns_a_connection(),
            "{name}: {outcome:?}, allowed {:?}",
            case.allowed
        );
    }
    let answered = matches!(outcome, Outcome::Forwarded(_));
    let seen = wait_for("the request to be seen", LONG, || {
        let seen = upstream.since(before.2);
        (!answered || seen.iter().any(|one| one.whole) || (case.answered_so && !seen.is_empty()))
            .then_some(seen)
    });
    for one in &seen {
        assert_eq!(one.malformed, None, "{name}: {one:?}");
        assert!(
            !one.head.contains("evil.test") && !one.target().contains("smuggled"),
            "{name}: {one:?}"
        );
        assert!(
            answered || !one.whole,
            "{name}: refused and yet forwarded whole: {one:?}"
        );
    }
    if answered {
        assert_eq!(seen.len(), 1, "{name}: {seen:?}");
        is_forwarded_as_said(case, &seen[0], "127.0.0.1");
    }
    assert_eq!(ask(serin), 200, "{name}: the next client");
    // The next client's is counted too.
    let count = assigned(serin) - before.1 - 1.0;
    #[allow(clippy::cast_precision_loss, reason = "a handful")]
    let forwarded = seen.len() as f64;
    assert!(
        (count - forwarded).abs() < 0.5 || (!answered && (count - 1.0).abs() < 0.5),
        "{name}: {count} assigned, {forwarded} forwarded"
    );
}

#[test]
fn what_is_refused_in_http1_does_not_come_in_by_http2() {
    let upstream = RawUpstream::start(respond);
    let (serin, short) = (start(&upstream, ""), tight(&upstream));
    let (mut left_out, mut asked, mut broken) = (BTreeMap::<_, Vec<String>>::new(), 0, Vec::new());
    for case in cases() {
        let ways = match translate(&case) {
            Ok(ways) => ways,
            Err(why) => {
                left_out.entry(why).or_default().push(case.name.clone());
                continue;
            }
        };
        asked += 1;
        for (way, request) in ways.iter().enumerate() {
            let serin = if case.needs_short_limits() { &short } else { &serin };
            let run = || check(&case, request, serin, &upstream);
            // All of them are told, not the first alone.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                broken.push(format!("{} ({way})", case.name));
            }
        }
    }
    assert!(broken.is_empty(), "{} do not hold: {broken:?}", broken.len());
    let numbers: Vec<_> = left_out.iter().map(|(why, names)| (*why, names.len())).collect();
    let expected = [
        (Inexpressible::Already, 34),
        (Inexpressible::Lines, 4),
        (Inexpressible::Version, 6),
        (Inexpressible::NoField, 2),
        (Inexpressible::Chunks, 7),
        (Inexpressible::Pipelined, 2),
        (Inexpressible::Absolute, 1),
        (Inexpressible::Time, 2),
    ];
    assert_eq!((asked, &numbers[..]), (85, &expected[..]), "{left_out:#?}");
    for serin in [&serin, &short] {
        assert!(serin.metric("serin_panics_total", &[]) < 0.5);
    }
}
