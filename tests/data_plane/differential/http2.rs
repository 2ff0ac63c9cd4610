//! Clients of HTTP/2: requests one after another on a connection, with the fields that a downgrade to HTTP/1.1 trips over.

use super::{
    LIMIT,
    backends::Seen,
    request::Request,
    said::{Answer, Client, Said, connect},
};
use crate::support::{
    h2::{DATA, END_HEADERS, END_STREAM, H2, HEADERS, frame, literals},
    now,
};
use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use std::net::{Ipv4Addr, SocketAddr};

type Field = (Vec<u8>, Vec<u8>);

/// One client's connection.
pub(super) struct Case {
    name: String,
    streams: Vec<Stream>,
}

/// What is sent on one stream.
struct Stream {
    head: Vec<Field>,
    body: Vec<Vec<u8>>,
    trailers: Vec<Field>,
    /// What is meant; none: it was damaged.
    meant: Option<Request>,
}

impl Client for Case {
    fn name(&self) -> &str {
        &self.name
    }

    fn shown(&self) -> String {
        let field = |(name, value): &Field| format!("{}: {}\n", name.escape_ascii(), value.escape_ascii());
        let stream = |stream: &Stream| {
            let fields = |fields: &[Field]| fields.iter().map(field).collect::<String>();
            let body = stream.body.concat().escape_ascii().to_string();
            format!("\n{}\n{body}\n{}", fields(&stream.head), fields(&stream.trailers))
        };
        self.streams.iter().map(stream).collect()
    }

    fn drive(&self, to: SocketAddr, from: Ipv4Addr, _methods: &[String]) -> Said {
        let begun = now();
        let mut client = H2::begin(connect(to, from));
        let mut answers = Vec::new();
        for (id, stream) in (1..).step_by(2).zip(&self.streams) {
            stream.send(id, &mut client);
            let Some(response) = client.response(id) else {
                answers.push(Answer::Refused("the end of the connection".to_owned()));
                break;
            };
            // What follows a head that cannot be read belongs to no stream and ends the connection: whether the reset
            // still gets out before is chance, and what happened is the end.
            if response.reset.is_some_and(|code| code != 0) && !client.answers() {
                answers.push(Answer::Refused("the end of the connection".to_owned()));
                break;
            }
            let field = |name: &str| {
                let found = response.fields.iter().find(|(known, _)| known == name);
                found.map(|(_, value)| value.clone())
            };
            answers.push(match (response.status, response.reset) {
                // Given back after its answer (RFC 9113 8.1).
                (status, None | Some(0)) => Answer::of(status.to_string(), field),
                (0, Some(code)) => Answer::Refused(format!("reset {code}")),
                (status, Some(code)) => panic!("an answer of {status} is reset with {code}"),
            });
        }
        Said {
            answers,
            late: begun.elapsed() > LIMIT,
        }
    }

    fn may_arrive(&self, place: usize) -> bool {
        let empty = |(name, value): &Field| name == b"content-length" && value.iter().all(|b| *b == b'0');
        self.streams[place].head.iter().any(empty)
    }

    /// Each stream by itself: a broken neighbour changes nothing, unless it ends the connection.
    fn is_as_meant(&self, said: &Said, seen: &[Seen]) {
        let mut seen = seen.iter();
        for (stream, answer) in self.streams.iter().zip(&said.answers) {
            let seen = match answer {
                Answer::Taken { .. } => seen.next(),
                Answer::Declined(_) | Answer::Refused(_) => None,
            };
            if let Some(meant) = &stream.meant {
                assert_eq!(seen, Some(&meant.seen()), "not as it was meant: {answer:?}");
            }
        }
        if self.streams.iter().all(|stream| stream.meant.is_some()) {
            assert_eq!(said.answers.len(), self.streams.len());
        }
    }
}

impl Stream {
    /// In one write: where the frames arrive one by one, it is chance whether a request announced as empty has been answered
    /// before what breaks the rules is seen.
    fn send(&self, id: u32, client: &mut H2) {
        let bare = self.body.is_empty() && self.trailers.is_empty();
        let end = |last: bool| if last { END_STREAM } else { 0 };
        let mut bytes = frame(HEADERS, END_HEADERS | end(bare), id, &literals(&self.head));
        for (place, piece) in self.body.iter().enumerate() {
            let last = place + 1 == self.body.len() && self.trailers.is_empty();
            bytes.extend(frame(DATA, end(last), id, piece));
        }
        if !self.trailers.is_empty() {
            let flags = END_HEADERS | END_STREAM;
            bytes.extend(frame(HEADERS, flags, id, &literals(&self.trailers)));
        }
        client.write(&bytes);
    }
}

/// The case of this number: one to four requests, about half of them damaged.
pub(super) fn case(seed: u64, number: usize) -> Case {
    let own = seed ^ u64::try_from(number).unwrap().wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mut dice = SmallRng::seed_from_u64(own);
    let streams = (0..dice.random_range(1..5)).map(|_| {
        let mut stream = written(Request::any(&mut dice), &mut dice);
        if dice.random() {
            damage(&mut stream, &mut dice);
        }
        stream
    });
    Case {
        streams: streams.collect(),
        name: format!("SERIN_SEED={seed}, case {number}"),
    }
}

fn field(name: &str, value: &str) -> Field {
    (name.into(), value.into())
}

/// A request in one of the ways it may be written.
fn written(request: Request, dice: &mut SmallRng) -> Stream {
    let mut head = vec![
        field(":method", request.method),
        field(":scheme", ["http", "https"].choose(dice).unwrap()),
        field(":path", &request.target),
        field(":authority", &request.host),
    ];
    head.rotate_left(dice.random_range(0..4));
    let mut trailers = Vec::new();
    if dice.random_ratio(1, 8) {
        head.push(field("host", &request.host));
    }
    if dice.random() && !(request.body.is_empty() && dice.random()) {
        head.push(field("content-length", &request.body.len().to_string()));
    }
    let others = [
        ("cookie", "a=1"),
        ("cookie", "b=2; c=3"),
        ("te", "trailers"),
        ("accept", "*/*"),
        ("x-forwarded-for", "9.9.9.9"),
        ("forwarded", "host=evil.test"),
        ("x-empty", ""),
        ("x-inner", "a\tb  c"),
        ("priority", "u=1"),
        ("x-content-length", "5"),
    ];
    for _ in 0..dice.random_range(0..4) {
        let (name, value) = others.choose(dice).unwrap();
        head.push(field(name, value));
    }
    let mut body = Vec::new();
    let mut rest = &request.body[..];
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(dice.random_range(1..=rest.len().min(16 * 1024)));
        body.push(piece.to_vec());
        rest = after;
    }
    if dice.random_ratio(1, 8) {
        body.push(Vec::new());
    }
    if dice.random_ratio(1, 8) {
        trailers.push(field("x-t", "1"));
    }
    Stream {
        head,
        body,
        trailers,
        meant: Some(request),
    }
}

const NAMES: &[&str] = &[
    ":method",
    ":path",
    ":scheme",
    ":authority",
    ":protocol",
    ":status",
    ":x",
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "upgrade",
    "http2-settings",
    "te",
    "expect",
    "trailer",
    "cookie",
    "Host",
    "Content-Length",
    "x-a\r\nhost",
    "x-a: b\r\nx-c",
    "x a",
    "",
    "x-a:",
    " x-a",
    "x\0",
    "content_length",
    "x-forwarded-for",
];

const VALUES: &[&str] = &[
    "",
    " ",
    "0",
    "5",
    "5, 5",
    "+5",
    "005",
    "-1",
    "18446744073709551621",
    "chunked",
    "identity",
    "gzip, chunked",
    "trailers",
    "gzip",
    "close",
    "x-a",
    "content-length",
    "host",
    "h2c",
    "websocket",
    "100-continue",
    "200-ok",
    "evil.test",
    "shop.test",
    "a@shop.test",
    "shop.test:0",
    "shop.test/x",
    "shop.test\r\nx-a: b",
    "a\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    "a\nb",
    "a\rb",
    "a\0b",
    " a",
    "a\t",
    "/",
    "*",
    "",
    "a",
    "/a b",
    "/a HTTP/1.1\r\nHost: evil.test\r\n\r\nGET /smuggled",
    "//evil.test/",
    "/../x",
    "/%2e%2e/",
    "/a#b",
    "/a?b#c",
    "/%00",
    "/\\",
    "http://evil.test/",
    "GET",
    "HEAD",
    "POST",
    "CONNECT",
    "TRACE",
    "get",
    "G ET",
    "GET /smuggled HTTP/1.1\r\nx:",
    "http",
    "https",
    "ftp",
    "HTTP",
    "\u{e9}",
];

/// Changes one or two things.
fn damage(stream: &mut Stream, dice: &mut SmallRng) {
    stream.meant = None;
    for _ in 0..dice.random_range(1..3) {
        let fields = if dice.random_ratio(1, 10) {
            &mut stream.trailers
        } else {
            &mut stream.head
        };
        let made = field(NAMES.choose(dice).unwrap(), VALUES.choose(dice).unwrap());
        let at = dice.random_range(0..=fields.len());
        let known = at.min(fields.len().saturating_sub(1));
        match dice.random_range(0..9) {
            0 | 1 => fields.insert(at, made),
            2 => fields.push(made),
            3 if !fields.is_empty() => drop(fields.remove(known)),
            4 if !fields.is_empty() => {
                let again = fields[known].clone();
                fields.insert(at, again);
            }
            5 if !fields.is_empty() => fields[known].0 = made.0,
            6 if !fields.is_empty() => {
                let text = &mut fields[known].1;
                let place = dice.random_range(0..=text.len());
                text.splice(place..place, made.1);
            }
            7 => stream.body.push(b"more than was said".to_vec()),
            8 => drop(stream.body.pop()),
            _ => fields
                .iter_mut()
                .take(1)
                .for_each(|first| first.1.clone_from(&made.1)),
        }
    }
}
