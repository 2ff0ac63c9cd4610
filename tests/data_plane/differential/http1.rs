//! Clients of HTTP/1.1: pipelines written in every way that the grammar allows, then, mostly, damaged.

use super::{
    LIMIT,
    backends::Seen,
    request::Request,
    said::{Answer, Client, Said, connect},
};
use crate::support::{
    h2::PREFACE,
    now,
    raw::{RawClient, fields},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use std::{
    collections::BTreeMap,
    io::Read,
    net::{Ipv4Addr, SocketAddr},
};

/// One client's connection.
#[derive(Debug, Clone)]
pub(super) struct Case {
    name: String,
    bytes: Vec<u8>,
    /// Whether a request follows that nobody damages: read as one, it ends the connection.
    last: bool,
    /// Where the first byte differs from what was meant; none: nowhere.
    damage: Option<usize>,
    /// What was meant, and where each request ends.
    meant: Vec<(usize, Request)>,
    /// Where the bytes are cut into writes.
    cuts: Vec<usize>,
}

/// Asks for an answer and the end of the connection, if it is read as a request at all.
const LAST: &str = "GET /last HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";

impl Case {
    /// Bytes of which nothing is known.
    pub(super) fn raw(name: &str, bytes: &[u8]) -> Case {
        let case = Case::of(name, bytes);
        case.ready(&mut SmallRng::seed_from_u64(0))
    }

    fn of(name: &str, bytes: &[u8]) -> Case {
        Case {
            name: format!("fuzz/corpus/differential/{name}"),
            bytes: bytes.to_vec(),
            last: true,
            damage: Some(0),
            meant: Vec::new(),
            cuts: Vec::new(),
        }
    }

    /// Adds the last request, and cuts everything into writes.
    fn ready(mut self, dice: &mut SmallRng) -> Case {
        if self.last {
            self.bytes.extend(LAST.bytes());
            self.meant.push((self.bytes.len(), Request::last()));
        }
        for _ in 0..dice.random_range(0..4) {
            self.cuts.push(dice.random_range(0..=self.bytes.len()));
        }
        self.cuts.sort_unstable();
        self
    }

    /// The requests that end before the damage.
    fn undamaged(&self) -> impl Iterator<Item = &Request> {
        let until = self.damage.unwrap_or(usize::MAX);
        self.meant
            .iter()
            .filter(move |(end, _)| *end <= until)
            .map(|(_, request)| request)
    }

    /// The bytes, as they are written.
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.cuts.iter().copied());
        let ends = self.cuts.iter().copied().chain(std::iter::once(self.bytes.len()));
        starts.zip(ends).map(|(from, to)| &self.bytes[from..to])
    }
}

impl Client for Case {
    fn name(&self) -> &str {
        &self.name
    }

    fn shown(&self) -> String {
        format!("b\"{}\"", self.bytes.escape_ascii())
    }

    fn drive(&self, to: SocketAddr, from: Ipv4Addr, methods: &[String]) -> Said {
        let begun = now();
        let mut client = RawClient::over(connect(to, from));
        for piece in self.pieces() {
            if !client.send(piece) {
                break;
            }
        }
        let mut answers = Vec::new();
        if self.bytes.starts_with(PREFACE) {
            // That is another protocol's client, and answered in that.
            answers.push(Answer::Refused("frames".to_owned()));
            let ends = client.reader.stream.read_to_end(&mut Vec::new());
            assert!(ends.is_ok(), "{ends:?}");
        }
        while let Some(answer) = read(&mut client, methods.get(answers.len())) {
            let last = matches!(answer, Answer::Refused(_));
            answers.push(answer);
            if last {
                // Nothing comes after a refusal; to HEAD it has no body, whatever it says of its length.
                let mut rest = std::mem::take(&mut client.reader.buffer);
                let _ = client.reader.stream.read_to_end(&mut rest);
                assert!(rest.is_empty(), "after a refusal: {}", rest.escape_ascii());
                break;
            }
        }
        Said {
            answers,
            late: begun.elapsed() > LIMIT,
        }
    }

    fn may_arrive(&self, _place: usize) -> bool {
        false
    }

    /// What was sent before anything was damaged arrives as it was meant, and what is not damaged is served to its end.
    fn is_as_meant(&self, said: &Said, seen: &[Seen]) {
        let meant: Vec<Seen> = self.undamaged().map(Request::seen).collect();
        assert!(
            seen.len() >= meant.len(),
            "{} of {} well-formed requests: {said:?}",
            seen.len(),
            meant.len()
        );
        assert_eq!(seen[..meant.len()], meant, "not as it was meant");
        if self.damage.is_none() {
            assert_eq!(seen.len(), meant.len(), "more than was meant: {seen:?}");
            assert_eq!(
                said.answers.len(),
                meant.len(),
                "a well-formed case is refused: {said:?}"
            );
        }
    }
}

/// The next final answer; none: the connection has ended. `method`: what it answers, where that is known.
fn read(client: &mut RawClient, method: Option<&String>) -> Option<Answer> {
    loop {
        let method = |head: &str| {
            let told = fields(head, "x-method")
                .first()
                .map(|method| (*method).to_owned());
            told.or(method.cloned()).unwrap_or_default()
        };
        let Some(answer) = client.answer_of(method) else {
            let half = client.reader.buffer.escape_ascii().to_string();
            assert!(
                client.is_closed(),
                "the connection stays open, or half an answer: {half}"
            );
            return None;
        };
        if answer.status == 100 {
            continue;
        }
        let field = |name: &str| {
            fields(&answer.head, name)
                .first()
                .map(|value| (*value).to_owned())
        };
        let read = Answer::of(answer.status.to_string(), field);
        assert!(
            answer.whole || matches!(read, Answer::Refused(_)),
            "half an answer: {answer:?}"
        );
        return Some(read);
    }
}

/// The case of this number: one in four is left undamaged, one in eight is a damaged piece of the corpus.
pub(super) fn case(seed: u64, number: usize, corpus: &BTreeMap<String, Vec<u8>>) -> Case {
    let own = seed ^ u64::try_from(number).unwrap().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut dice = SmallRng::seed_from_u64(own);
    let mut case = if dice.random_ratio(1, 8) {
        let known: Vec<&Vec<u8>> = corpus.values().collect();
        Case::of("", known.choose(&mut dice).unwrap())
    } else {
        written(&mut dice)
    };
    case.name = format!("SERIN_SEED={seed}, case {number}");
    if case.damage.is_some() || dice.random_ratio(3, 4) {
        damage(&mut case, &mut dice);
    }
    case.ready(&mut dice)
}

/// One to four requests, and the last one.
fn written(dice: &mut SmallRng) -> Case {
    let (mut bytes, mut meant) = (Vec::new(), Vec::new());
    let mut goes_on = true;
    for _ in 0..dice.random_range(1..5) {
        let request = Request::any(dice);
        goes_on = write(&request, &mut bytes, dice);
        meant.push((bytes.len(), request));
        if !goes_on {
            break;
        }
    }
    Case {
        name: String::new(),
        bytes,
        last: goes_on,
        damage: None,
        meant,
        cuts: Vec::new(),
    }
}

/// Writes a request in one of the ways it may be written; whether another one may follow it.
fn write(request: &Request, bytes: &mut Vec<u8>, dice: &mut SmallRng) -> bool {
    let old = dice.random_ratio(1, 24);
    let chunked = !old && dice.random_ratio(1, 2);
    if dice.random_ratio(1, 16) {
        bytes.extend(b"\r\n");
    }
    let mut target = request.target.clone();
    let mut named = request.host.clone();
    if dice.random_ratio(1, 8) {
        target = format!("http://{}{target}", request.host);
        "evil.test".clone_into(&mut named);
    }
    let version = if old { "1.0" } else { "1.1" };
    bytes.extend(format!("{} {target} HTTP/{version}\r\n", request.method).bytes());
    let mut fields = vec![field("Host", &named, dice)];
    if chunked {
        let coding = ["chunked", "chunked", "Chunked", "CHUNKED"].choose(dice).unwrap();
        fields.push(field("Transfer-Encoding", coding, dice));
    } else if !request.body.is_empty() || dice.random_ratio(1, 2) {
        let zeros = if dice.random_ratio(1, 8) { "000" } else { "" };
        fields.push(field(
            "Content-Length",
            &format!("{zeros}{}", request.body.len()),
            dice,
        ));
    }
    let others = [
        "Connection: keep-alive",
        "Connection: X-A, Host, Content-Length, TE",
        "Keep-Alive: 5",
        "X-A: 1",
        "X-Content-Length: 5",
        "Content-Length-X: 7",
        "Accept: */*",
        "Cookie: a=1; b=2",
        "TE: trailers",
        "Upgrade: h2c",
        "X-Forwarded-For: 9.9.9.9",
        "Forwarded: for=9.9.9.9;host=evil.test",
        "Expect: 100-continue",
        "Proxy-Connection: close",
        "Trailer: X-T",
        "X-Empty:",
        "X-Tabs:\ta\tb\t",
    ];
    for _ in 0..dice.random_range(0..4) {
        let other = *others.choose(dice).unwrap();
        // Said twice, an expectation is another one.
        if !other.starts_with("Expect") || (!old && !fields.iter().any(|known| known == other)) {
            fields.push(other.to_owned());
        }
    }
    let first = dice.random_range(0..fields.len());
    fields.rotate_left(first);
    for line in &fields {
        bytes.extend(line.bytes());
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"\r\n");
    if chunked {
        chunks(&request.body, bytes, dice);
    } else {
        bytes.extend(&request.body);
    }
    !old
}

fn field(name: &str, value: &str, dice: &mut SmallRng) -> String {
    let name = match dice.random_range(0..3) {
        0 => name.to_lowercase(),
        1 => name.to_uppercase(),
        _ => name.to_owned(),
    };
    let space = ["", " ", "  ", "\t"];
    format!(
        "{name}:{}{value}{}",
        space.choose(dice).unwrap(),
        space.choose(dice).unwrap()
    )
}

fn chunks(body: &[u8], bytes: &mut Vec<u8>, dice: &mut SmallRng) {
    let mut rest = body;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(dice.random_range(1..=rest.len()));
        let zeros = if dice.random_ratio(1, 8) { "00" } else { "" };
        let extension = ["", "", "", ";a", ";a=b;c=\"d\""].choose(dice).unwrap();
        let size = if dice.random() {
            format!("{:x}", piece.len())
        } else {
            format!("{:X}", piece.len())
        };
        bytes.extend(format!("{zeros}{size}{extension}\r\n").bytes());
        bytes.extend(piece);
        bytes.extend(b"\r\n");
        rest = after;
    }
    let trailers = ["", "", "X-T: 1\r\n", "Content-Length: 5\r\nHost: evil.test\r\n"]
        .choose(dice)
        .unwrap();
    bytes.extend(format!("0\r\n{trailers}\r\n").bytes());
}

/// Pieces that have divided readers before.
const PIECES: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    "\t",
    "\u{b}",
    ":",
    ";",
    ",",
    "0",
    "-1",
    "+5",
    "0x5",
    "\r\n ",
    "\r\n\t",
    "\r\n\r\n",
    "\n\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "content-length: 6\r\n",
    "Content-Length : 5\r\n",
    "Content-Length:\r\n",
    "Content-Length: 5, 5\r\n",
    "Content-Length: 5\r\n\tx: y\r\n",
    "Content_Length: 5\r\n",
    "Content-Length\0: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding: identity\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding:\x0bchunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding: \"chunked\"\r\n",
    "Transfer-Encoding:\r\n chunked\r\n",
    "Transfer_Encoding: chunked\r\n",
    "TE: chunked\r\n",
    "Connection: close\r\n",
    "Connection: transfer-encoding\r\n",
    "Connection: upgrade\r\nUpgrade: websocket\r\n",
    "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "Host: evil.test\r\n",
    "Host: shop.test\r\n",
    "Host: evil.test@shop.test\r\n",
    "Expect: 100-continue\r\n",
    "Expect: 200-ok\r\n",
    "X-A: b\rc\r\n",
    "HTTP/1.0",
    "HTTP/1.1",
    "HTTP/1.2",
    "HTTP/2.0",
    "HTTP/0.9",
    "http/1.1",
    "GET ",
    "POST ",
    "HEAD ",
    "CONNECT ",
    "TRACE ",
    "get ",
    "GET  /x",
    "GET\t/x",
    "/../",
    "/%2e%2e/",
    "%00",
    "%0d%0a",
    "#x",
    "?",
    "http://evil.test/",
    "http://a@b/",
    "https://c:0/",
    "//",
    "\\",
    "*",
    "0\r\n\r\n",
    "5\r\nhello\r\n",
    "ffffffffffffffff\r\n",
    "10000000000000005\r\n",
    "5;x\n\r\n",
    "5 \r\n",
    "0_5\r\n",
    "GET /smuggled HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
    "\u{e9}",
    "\u{2028}",
];

/// Changes one to three places.
fn damage(case: &mut Case, dice: &mut SmallRng) {
    for _ in 0..dice.random_range(1..4) {
        let bytes = &mut case.bytes;
        if bytes.is_empty() {
            return;
        }
        let (from, to) = place(bytes, dice);
        let before = bytes.clone();
        match dice.random_range(0..10) {
            0 => bytes[from] ^= 1 << dice.random_range(0..8),
            1 => bytes[from] = dice.random(),
            2 => drop(bytes.drain(from..to)),
            3 => {
                let again = bytes[from..to].to_vec();
                bytes.splice(from..from, again);
            }
            4 => {
                let line = line_at(bytes, from);
                let moved: Vec<u8> = bytes[line.clone()].to_vec();
                let other = line_at(bytes, dice.random_range(0..bytes.len())).start;
                bytes.splice(other..other, moved);
            }
            5 => {
                let line = line_at(bytes, from);
                bytes.drain(line);
            }
            6 => {
                let piece = PIECES.choose(dice).unwrap();
                bytes.splice(from..to, piece.bytes());
            }
            7 => {
                let start = line_at(bytes, from).start;
                let piece = PIECES.choose(dice).unwrap();
                bytes.splice(start..start, piece.bytes());
            }
            8 => number(bytes, from, dice),
            _ => {
                let piece = PIECES.choose(dice).unwrap();
                bytes.splice(from..from, piece.bytes());
            }
        }
        let same = before
            .iter()
            .zip(bytes.iter())
            .take_while(|(a, b)| a == b)
            .count();
        if before != *bytes {
            case.damage = Some(case.damage.map_or(same, |first| first.min(same)));
        }
    }
}

fn place(bytes: &[u8], dice: &mut SmallRng) -> (usize, usize) {
    let from = dice.random_range(0..bytes.len());
    (from, (from + dice.random_range(0..12)).min(bytes.len()))
}

/// The line around a place, with its end.
fn line_at(bytes: &[u8], at: usize) -> std::ops::Range<usize> {
    let start = bytes[..at]
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |end| end + 1);
    let end = bytes[at..]
        .iter()
        .position(|b| *b == b'\n')
        .map_or(bytes.len(), |end| at + end + 1);
    start..end
}

/// Makes the next number a little larger or smaller.
fn number(bytes: &mut Vec<u8>, from: usize, dice: &mut SmallRng) {
    let Some(start) = bytes[from..]
        .iter()
        .position(u8::is_ascii_digit)
        .map(|at| from + at)
    else {
        return;
    };
    let length = bytes[start..]
        .iter()
        .take_while(|b| b.is_ascii_digit())
        .count()
        .min(9);
    let text = String::from_utf8_lossy(&bytes[start..start + length]).into_owned();
    let value: i64 = text.parse().unwrap_or(0);
    let other = value + dice.random_range(-3..60);
    bytes.splice(start..start + length, other.to_string().into_bytes());
}
