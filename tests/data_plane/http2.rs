//! HTTP/2 frame by frame: the rules of RFC 9113 sections 4 to 8, and what breaks servers that only follow them.
//!
//! The protocol is the library's (`h2`). Where it does something else than the text asks for, the case says so: `Deviates`.
#![allow(
    clippy::too_many_lines,
    reason = "a table of rules is as long as the rules are many"
)]

use crate::support::{
    HEAD, Serin,
    h2::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, End, GOAWAY, H2, HEADERS, PADDED, PING, PREFACE,
        PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, WITH_PRIORITY, block, frame, request,
    },
    raw::{Next, RawUpstream, Seen, ok},
    wait_for,
};
use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc},
    time::Duration,
};

const LONG: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
/// A frame of a wrong length ends the connection as it should, with the library's own code instead of `FRAME_SIZE_ERROR`.
const WRONG_LENGTH: Must = Must::Deviates("PROTOCOL_ERROR for FRAME_SIZE_ERROR", End::GoAway(PROTOCOL_ERROR));
const REFUSED_STREAM: u32 = 7;
/// Which fields are in a block only the library knows, for it keeps the connection's compression state; it drops these and says
/// nothing of them. Nothing of them goes further:
/// [`nothing_of_a_pseudo_header_field_in_trailers_is_forwarded`].
const TRAILERS: Must = Must::Deviates(
    "the field is dropped where the request is malformed",
    End::Status(200),
);
const COMPRESSION_ERROR: u32 = 9;

fn start(upstream: &RawUpstream) -> Serin {
    Serin::start_with(&format!(
        "{HEAD}services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        upstream.url()
    ))
}

/// What must become of what a client has sent.
enum Must {
    /// The connection ends with one of these errors.
    Close(&'static [u32]),
    /// The stream ends with one of these errors, or the connection does: an endpoint may treat any stream error so (5.4.1).
    Reset(&'static [u32]),
    /// It is answered.
    Pass,
    /// Nothing ends and nothing is answered.
    Ignore,
    /// The library does something else than the text, and this is what.
    Deviates(&'static str, End),
}

type Send = Box<dyn Fn(&mut H2)>;

struct Rule {
    section: &'static str,
    name: &'static str,
    send: Send,
    must: Must,
}

fn rule(section: &'static str, name: &'static str, must: Must, send: impl Fn(&mut H2) + 'static) -> Rule {
    Rule {
        section,
        name,
        send: Box::new(send),
        must,
    }
}

fn get(client: &mut H2, stream: u32) {
    client.head(stream, &request("GET", "/"), true);
}

/// A request whose body is still to come.
fn post(client: &mut H2, stream: u32) {
    client.head(stream, &request("POST", "/"), false);
}

fn with(fields: &[(&'static str, &'static str)]) -> Vec<u8> {
    let mut all = request("GET", "/");
    all.extend(fields);
    block(&all)
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// Sections 4 and 5: frames and streams.
fn frames_and_streams() -> Vec<Rule> {
    vec![
        rule("4.1", "a frame of an unknown type", Must::Pass, |c| {
            c.send(0x42, 0xff, 0, b"what?");
            get(c, 1);
        }),
        rule("4.1", "unknown flags", Must::Pass, |c| {
            c.send(
                HEADERS,
                0xc0 | END_HEADERS | END_STREAM,
                1,
                &block(&request("GET", "/")),
            );
        }),
        rule("4.1", "the reserved bit of a stream's number", Must::Pass, |c| {
            c.send(
                HEADERS,
                END_HEADERS | END_STREAM,
                1 << 31 | 1,
                &block(&request("GET", "/")),
            );
        }),
        rule("4.2", "DATA of the largest size", Must::Pass, |c| {
            post(c, 1);
            c.send(DATA, END_STREAM, 1, &vec![0; 16_384]);
        }),
        rule(
            "4.2",
            "DATA beyond the largest size",
            Must::Close(&[FRAME_SIZE_ERROR]),
            |c| {
                post(c, 1);
                c.send(DATA, END_STREAM, 1, &vec![0; 16_385]);
            },
        ),
        rule(
            "4.2",
            "HEADERS beyond the largest size",
            Must::Close(&[FRAME_SIZE_ERROR]),
            |c| {
                c.send(HEADERS, END_HEADERS | END_STREAM, 1, &vec![0; 16_385]);
            },
        ),
        rule(
            "4.3",
            "a header block that cannot be decoded",
            Must::Close(&[COMPRESSION_ERROR, PROTOCOL_ERROR]),
            |c| {
                c.send(
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    1,
                    &[0xff, 0xff, 0xff, 0xff, 0xff],
                );
            },
        ),
        rule(
            "4.3",
            "PRIORITY inside a header block",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                c.send(HEADERS, END_STREAM, 1, &block(&request("GET", "/")));
                c.send(PRIORITY, 0, 1, &[0, 0, 0, 0, 16]);
            },
        ),
        rule(
            "4.3",
            "HEADERS of another stream inside a header block",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                c.send(HEADERS, END_STREAM, 1, &block(&request("GET", "/")));
                get(c, 3);
            },
        ),
        rule(
            "5.1",
            "DATA on an idle stream",
            Must::Close(&[PROTOCOL_ERROR, STREAM_CLOSED]),
            |c| {
                c.send(DATA, END_STREAM, 1, b"x");
            },
        ),
        rule(
            "5.1",
            "RST_STREAM on an idle stream",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                c.send(RST_STREAM, 0, 1, &[0, 0, 0, 8]);
            },
        ),
        rule(
            "5.1",
            "WINDOW_UPDATE on an idle stream",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                c.send(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]);
            },
        ),
        rule(
            "5.1",
            "CONTINUATION without HEADERS",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                c.send(CONTINUATION, END_HEADERS, 1, &block(&request("GET", "/")));
            },
        ),
        rule(
            "5.1",
            "DATA on a half-closed stream",
            Must::Reset(&[STREAM_CLOSED, PROTOCOL_ERROR]),
            |c| {
                c.head(1, &request("GET", "/slow"), true);
                c.send(DATA, END_STREAM, 1, b"x");
            },
        ),
        rule(
            "5.1",
            "HEADERS on a half-closed stream",
            Must::Reset(&[STREAM_CLOSED, PROTOCOL_ERROR]),
            |c| {
                c.head(1, &request("GET", "/slow"), true);
                c.head(1, &request("GET", "/"), true);
            },
        ),
        rule(
            "5.1",
            "DATA after RST_STREAM",
            Must::Reset(&[STREAM_CLOSED, PROTOCOL_ERROR]),
            |c| {
                post(c, 1);
                c.send(RST_STREAM, 0, 1, &[0, 0, 0, 8]);
                c.send(DATA, END_STREAM, 1, b"x");
            },
        ),
        rule(
            "5.1.1",
            "a stream of an even number",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| get(c, 2),
        ),
        rule(
            "5.1.1",
            "a stream of a lower number",
            Must::Close(&[PROTOCOL_ERROR, STREAM_CLOSED]),
            |c| {
                get(c, 5);
                get(c, 3);
            },
        ),
        rule(
            "5.1.2",
            "more streams than are allowed",
            Must::Reset(&[REFUSED_STREAM, PROTOCOL_ERROR]),
            |c| {
                for stream in 0..201 {
                    post(c, stream * 2 + 1);
                }
            },
        ),
        rule(
            "5.5",
            "a frame of an unknown type inside a header block",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                c.send(HEADERS, END_STREAM, 1, &block(&request("GET", "/")));
                c.send(0x42, 0, 1, b"");
            },
        ),
    ]
}

/// Section 6: each frame's own rules.
fn frame_definitions() -> Vec<Rule> {
    vec![
        rule("6.1", "DATA on stream 0", Must::Close(&[PROTOCOL_ERROR]), |c| {
            c.send(DATA, 0, 0, b"x");
        }),
        rule(
            "6.1",
            "DATA with more padding than payload",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                post(c, 1);
                c.send(DATA, END_STREAM | PADDED, 1, &[5, b'x', 0]);
            },
        ),
        rule("6.1", "DATA with padding", Must::Pass, |c| {
            post(c, 1);
            c.send(DATA, END_STREAM | PADDED, 1, &[2, b'x', 0, 0]);
        }),
        rule(
            "6.2",
            "HEADERS on stream 0",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| get(c, 0),
        ),
        rule(
            "6.2",
            "HEADERS with more padding than payload",
            Must::Close(&[PROTOCOL_ERROR, FRAME_SIZE_ERROR]),
            |c| {
                c.send(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, &[9, 0x82]);
            },
        ),
        rule("6.2", "HEADERS with padding and priority", Must::Pass, |c| {
            let payload = [&[3, 0, 0, 0, 0, 16][..], &block(&request("GET", "/")), &[0; 3]].concat();
            c.send(
                HEADERS,
                END_HEADERS | END_STREAM | PADDED | WITH_PRIORITY,
                1,
                &payload,
            );
        }),
        rule(
            "6.3",
            "PRIORITY on stream 0",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                c.send(PRIORITY, 0, 0, &[0, 0, 0, 1, 16]);
            },
        ),
        rule("6.3", "PRIORITY of a wrong length", WRONG_LENGTH, |c| {
            post(c, 1);
            c.send(PRIORITY, 0, 1, &[0, 0, 0, 0]);
        }),
        rule(
            "5.3.1 of 7540",
            "a stream that depends on itself by PRIORITY",
            Must::Reset(&[PROTOCOL_ERROR]),
            |c| {
                c.send(PRIORITY, 0, 3, &[0, 0, 0, 3, 16]);
            },
        ),
        rule(
            "5.3.1 of 7540",
            "a stream that depends on itself by HEADERS",
            Must::Reset(&[PROTOCOL_ERROR]),
            |c| {
                let payload = [&[0, 0, 0, 1, 16][..], &block(&request("GET", "/"))].concat();
                c.send(HEADERS, END_HEADERS | END_STREAM | WITH_PRIORITY, 1, &payload);
            },
        ),
        rule(
            "6.4",
            "RST_STREAM on stream 0",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                c.send(RST_STREAM, 0, 0, &[0, 0, 0, 8]);
            },
        ),
        rule("6.4", "RST_STREAM of a wrong length", WRONG_LENGTH, |c| {
            post(c, 1);
            c.send(RST_STREAM, 0, 1, &[0, 0, 8]);
        }),
        rule(
            "6.5",
            "SETTINGS on a stream",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                c.send(SETTINGS, 0, 1, &[]);
            },
        ),
        rule("6.5", "SETTINGS of a wrong length", WRONG_LENGTH, |c| {
            c.send(SETTINGS, 0, 0, &[0, 3, 0]);
        }),
        rule("6.5", "an acknowledgement with a payload", WRONG_LENGTH, |c| {
            c.send(SETTINGS, ACK, 0, &setting(3, 1));
        }),
        rule("6.5.2", "ENABLE_PUSH of 2", Must::Close(&[PROTOCOL_ERROR]), |c| {
            c.send(SETTINGS, 0, 0, &setting(2, 2));
        }),
        rule(
            "6.5.2",
            "INITIAL_WINDOW_SIZE of 2^31",
            Must::Deviates(
                "PROTOCOL_ERROR for FLOW_CONTROL_ERROR",
                End::GoAway(PROTOCOL_ERROR),
            ),
            |c| {
                c.send(SETTINGS, 0, 0, &setting(4, 1 << 31));
            },
        ),
        rule(
            "6.5.2",
            "MAX_FRAME_SIZE below 2^14",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                c.send(SETTINGS, 0, 0, &setting(5, 16_383));
            },
        ),
        rule(
            "6.5.2",
            "MAX_FRAME_SIZE above 2^24-1",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                c.send(SETTINGS, 0, 0, &setting(5, 1 << 24));
            },
        ),
        rule("6.5.2", "an unknown setting", Must::Pass, |c| {
            c.send(SETTINGS, 0, 0, &setting(0x1234, 1));
            get(c, 1);
        }),
        rule(
            "6.6",
            "PUSH_PROMISE from a client",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                post(c, 1);
                let payload = [&[0, 0, 0, 2][..], &block(&request("GET", "/"))].concat();
                c.send(PUSH_PROMISE, END_HEADERS, 1, &payload);
            },
        ),
        rule("6.7", "PING on a stream", Must::Close(&[PROTOCOL_ERROR]), |c| {
            c.send(PING, 0, 1, &[0; 8]);
        }),
        rule("6.7", "PING of a wrong length", WRONG_LENGTH, |c| {
            c.send(PING, 0, 0, &[0; 6]);
        }),
        rule(
            "6.7",
            "an acknowledgement that nobody waits for",
            Must::Ignore,
            |c| {
                c.send(PING, ACK, 0, b"no ping!");
            },
        ),
        rule("6.8", "GOAWAY on a stream", Must::Close(&[PROTOCOL_ERROR]), |c| {
            c.send(GOAWAY, 0, 1, &[0; 8]);
        }),
        rule(
            "6.9",
            "WINDOW_UPDATE of 0 on the connection",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                c.send(WINDOW_UPDATE, 0, 0, &[0; 4]);
            },
        ),
        rule(
            "6.9",
            "WINDOW_UPDATE of 0 on a stream",
            Must::Reset(&[PROTOCOL_ERROR]),
            |c| {
                post(c, 1);
                c.send(WINDOW_UPDATE, 0, 1, &[0; 4]);
            },
        ),
        rule("6.9", "WINDOW_UPDATE of a wrong length", WRONG_LENGTH, |c| {
            c.send(WINDOW_UPDATE, 0, 0, &[0, 0, 1]);
        }),
        rule(
            "6.9.1",
            "a window of the connection beyond 2^31-1",
            Must::Close(&[FLOW_CONTROL_ERROR]),
            |c| {
                for _ in 0..2 {
                    c.send(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes());
                }
            },
        ),
        rule(
            "6.9.1",
            "a window of a stream beyond 2^31-1",
            Must::Reset(&[FLOW_CONTROL_ERROR]),
            |c| {
                post(c, 1);
                for _ in 0..2 {
                    c.send(WINDOW_UPDATE, 0, 1, &0x7fff_ffff_u32.to_be_bytes());
                }
            },
        ),
        rule(
            "6.9.1",
            "more DATA than a window allows",
            Must::Reset(&[FLOW_CONTROL_ERROR]),
            |c| {
                c.head(1, &request("POST", "/unread"), false);
                // Both windows are a megabyte at most, and the sockets on the way to a service that does not read take some more.
                let piece = vec![0; 16_384];
                let _ = (0..1024).take_while(|_| c.send(DATA, 0, 1, &piece)).count();
            },
        ),
        rule(
            "6.9.2",
            "a window that a setting makes too large",
            Must::Close(&[FLOW_CONTROL_ERROR]),
            |c| {
                post(c, 1);
                c.send(WINDOW_UPDATE, 0, 1, &0x7fff_0000_u32.to_be_bytes());
                c.send(SETTINGS, 0, 0, &setting(4, 0x7fff_ffff));
            },
        ),
        rule("6.10", "a header block in pieces", Must::Pass, |c| {
            let block = block(&request("GET", "/"));
            let pieces: Vec<&[u8]> = block.chunks(block.len() / 3).collect();
            c.send(HEADERS, END_STREAM, 1, pieces[0]);
            for piece in &pieces[1..] {
                c.send(CONTINUATION, 0, 1, piece);
            }
            c.send(CONTINUATION, END_HEADERS, 1, &[]);
        }),
        rule(
            "6.10",
            "CONTINUATION on another stream",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                c.send(HEADERS, END_STREAM, 1, &block(&request("GET", "/")));
                c.send(CONTINUATION, END_HEADERS, 3, &[]);
            },
        ),
        rule(
            "6.10",
            "CONTINUATION after the end of a block",
            Must::Close(&[PROTOCOL_ERROR]),
            |c| {
                post(c, 1);
                c.send(CONTINUATION, END_HEADERS, 1, &block(&[("x", "y")]));
            },
        ),
    ]
}

/// Section 8: what a request is. Malformed ones are stream errors (8.1.1).
fn requests() -> Vec<Rule> {
    const BAD: Must = Must::Reset(&[PROTOCOL_ERROR]);
    let bad = |section, name, fields: Vec<(&'static str, &'static str)>| {
        rule(section, name, BAD, move |c: &mut H2| {
            c.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        })
    };
    let more = |section, name, field| {
        rule(section, name, BAD, move |c: &mut H2| {
            c.send(HEADERS, END_HEADERS | END_STREAM, 1, &with(&[field]));
        })
    };
    let without = |name: &str| -> Vec<(&'static str, &'static str)> {
        request("GET", "/")
            .into_iter()
            .filter(|(field, _)| *field != name)
            .collect()
    };
    let twice = |field: (&'static str, &'static str)| {
        let mut all = request("GET", "/");
        all.insert(0, field);
        all
    };
    vec![
        more("8.2.1", "a name in upper case", ("X-Upper", "1")),
        more("8.2.1", "a name with a space", ("x y", "1")),
        more("8.2.1", "a value with a line end", ("x", "a\r\nb: c")),
        more("8.2.1", "a value with NUL", ("x", "a\0b")),
        more("8.2.2", "Connection", ("connection", "keep-alive")),
        more("8.2.2", "Keep-Alive", ("keep-alive", "5")),
        more("8.2.2", "Proxy-Connection", ("proxy-connection", "close")),
        more("8.2.2", "Transfer-Encoding", ("transfer-encoding", "chunked")),
        more("8.2.2", "Upgrade", ("upgrade", "websocket")),
        more("8.2.2", "TE other than trailers", ("te", "gzip")),
        rule("8.2.2", "TE: trailers", Must::Pass, |c| {
            c.send(HEADERS, END_HEADERS | END_STREAM, 1, &with(&[("te", "trailers")]));
        }),
        more("8.3", "an unknown pseudo-header field", (":what", "1")),
        more("8.3", "a pseudo-header field of responses", (":status", "200")),
        bad("8.3", "a pseudo-header field after others", {
            let mut all = without(":path");
            all.extend([("x", "1"), (":path", "/")]);
            all
        }),
        bad("8.3.1", "no :method", without(":method")),
        bad("8.3.1", "no :scheme", without(":scheme")),
        bad("8.3.1", "no :path", without(":path")),
        bad("8.3.1", "an empty :path", {
            let mut all = without(":path");
            all.push((":path", ""));
            all
        }),
        bad("8.3.1", ":method twice", twice((":method", "GET"))),
        bad("8.3.1", ":scheme twice", twice((":scheme", "http"))),
        bad("8.3.1", ":path twice", twice((":path", "/"))),
        bad("8.3.1", ":authority twice", twice((":authority", "shop.test"))),
        rule(
            "8.1",
            "a body without END_STREAM and then trailers with it",
            Must::Pass,
            |c| {
                post(c, 1);
                c.send(DATA, 0, 1, b"x");
                c.head(1, &[("x-sum", "1")], true);
            },
        ),
        rule("8.1", "a pseudo-header field in trailers", TRAILERS, |c| {
            post(c, 1);
            c.head(1, &[(":path", "/admin"), ("x-sum", "1")], true);
        }),
        rule("8.1", "an unknown pseudo-header field in trailers", BAD, |c| {
            post(c, 1);
            c.head(1, &[(":what", "1"), ("x-sum", "1")], true);
        }),
        rule(
            "8.1",
            "a pseudo-header field after others in trailers",
            BAD,
            |c| {
                post(c, 1);
                c.head(1, &[("x-sum", "1"), (":path", "/admin")], true);
            },
        ),
        rule(
            "8.1",
            "a second HEADERS that does not end the stream",
            Must::Reset(&[PROTOCOL_ERROR]),
            |c| {
                post(c, 1);
                c.head(1, &[("x-sum", "1")], false);
            },
        ),
        rule(
            "8.1.1",
            "a body shorter than its length",
            Must::Reset(&[PROTOCOL_ERROR]),
            |c| {
                let mut all = request("POST", "/");
                all.push(("content-length", "5"));
                c.head(1, &all, false);
                c.send(DATA, END_STREAM, 1, b"x");
            },
        ),
        rule(
            "8.1.1",
            "a body longer than its length",
            Must::Reset(&[PROTOCOL_ERROR]),
            |c| {
                let mut all = request("POST", "/");
                all.push(("content-length", "1"));
                c.head(1, &all, false);
                c.send(DATA, END_STREAM, 1, b"xyz");
            },
        ),
        rule("8.5", "CONNECT", Must::Reset(&[PROTOCOL_ERROR]), |c| {
            c.head(
                1,
                &[(":method", "CONNECT"), (":authority", "shop.test:443")],
                true,
            );
        }),
    ]
}

fn holds(rule: &Rule, end: End) -> bool {
    match (&rule.must, end) {
        (Must::Close(codes) | Must::Reset(codes), End::GoAway(code))
        | (Must::Reset(codes), End::Reset(code)) => codes.contains(&code),
        // Our own refusals are answers: 405 for CONNECT, 400 for what is ambiguous.
        (Must::Reset(_), End::Status(status)) => (400..500).contains(&status),
        (Must::Pass, End::Status(status)) => status == 200,
        (Must::Deviates(_, deviation), end) => *deviation == end,
        // A close without a word is an end, too, when the client had to be cut off.
        (Must::Close(_), End::Closed) | (Must::Ignore, End::Alive) => true,
        (Must::Close(_) | Must::Reset(_) | Must::Pass | Must::Ignore, _) => false,
    }
}

/// A service that answers, but not `/slow`, and reads, but not `/unread`: what a rule sends has not been answered before it has all
/// come, however long it takes the client. The second is for `/unread` to wait for.
fn slow_and_unread() -> (RawUpstream, mpsc::Sender<()>) {
    let (ends, end) = mpsc::channel();
    let end = Mutex::new(end);
    let upstream = RawUpstream::start(move |seen, stream| match seen.target() {
        "/slow" => {
            while matches!(stream.read(&mut [0; 64]), Ok(1..)) {}
            Next::Close
        }
        "/unread" => {
            let _ = end.lock().unwrap().recv();
            Next::Close
        }
        _ => ok(seen, stream),
    });
    (upstream, ends)
}

#[test]
fn every_rule_of_sections_4_to_8_holds_on_the_wire() {
    // `_unread` goes before the service does, so that nobody waits for it.
    let (upstream, _unread) = slow_and_unread();
    let serin = start(&upstream);
    let mut broken = Vec::new();
    for rule in frames_and_streams()
        .iter()
        .chain(&frame_definitions())
        .chain(&requests())
    {
        let mut client = H2::connect(serin.web);
        (rule.send)(&mut client);
        let end = match rule.must {
            Must::Pass | Must::Reset(_) | Must::Deviates(_, End::Status(_)) => client.outcome(),
            Must::Close(_) | Must::Ignore | Must::Deviates(..) => client.end(),
        };
        if !holds(rule, end) {
            let known = match rule.must {
                Must::Deviates(how, _) => how,
                Must::Close(_) | Must::Reset(_) | Must::Pass | Must::Ignore => "",
            };
            broken.push(format!("{} {}: {end:?} {known}", rule.section, rule.name));
        }
    }
    assert!(
        broken.is_empty(),
        "{} do not hold:\n{}",
        broken.len(),
        broken.join("\n")
    );
    assert!(upstream.since(0).iter().all(|seen| seen.malformed.is_none()));
    assert!(serin.metric("serin_panics_total", &[]) < 0.5);
}

#[test]
fn a_preface_is_needed_whole() {
    let upstream = RawUpstream::start(ok);
    let serin = start(&upstream);
    // Broken in its second half: no HTTP/2 and no HTTP/1.1 either.
    let mut client = H2::silent(serin.web);
    client.write(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n");
    assert!(client.is_closed());
    // Another frame than SETTINGS first (3.4).
    let mut client = H2::silent(serin.web);
    client.write(PREFACE);
    get(&mut client, 1);
    assert_eq!(client.outcome(), End::Closed);
    assert_eq!(upstream.count(), 0);
    wait_for("both to be counted", LONG, || {
        (serin.metric("serin_http_rejected_total", &[("reason", "malformed")]) > 1.5).then_some(())
    });
}

/// Sends this until it has been sent `times` or the other side has had enough; whether that was so.
fn flood(client: &mut H2, times: u32, unit: impl Fn(u32) -> Vec<u8>) -> bool {
    for batch in 0..times / 100 {
        let bytes: Vec<u8> = (batch * 100..batch * 100 + 100).flat_map(&unit).collect();
        if !client.write(&bytes) {
            return true;
        }
    }
    !matches!(client.end(), End::Alive | End::Status(_))
}

#[test]
fn a_request_that_turns_out_malformed_at_its_end_never_arrives_whole() {
    let upstream = RawUpstream::start(ok);
    let serin = start(&upstream);
    let announced = || {
        let mut fields = request("POST", "/");
        fields.push(("content-length", "5"));
        fields
    };
    for (name, ending) in [
        ("more data", frame(DATA, END_STREAM, 1, b"more")),
        ("a reset", frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])),
        (
            "malformed trailers",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("X-T", "1")])),
        ),
    ] {
        let from = upstream.count();
        let mut client = H2::connect(serin.web);
        client.head(1, &announced(), false);
        client.send(DATA, 0, 1, b"hello");
        // It is on its way when the rest comes.
        wait_for("the head to arrive", LONG, || {
            (upstream.count() > from).then_some(())
        });
        client.write(&ending);
        assert_ne!(client.end(), End::Status(200), "{name}");
        get(&mut client, 3);
        let answered = client.response(3).map(|response| response.status);
        assert!(answered.is_none_or(|status| status == 200), "{name}");
        let seen = upstream.since(from);
        assert!(!seen[0].whole, "{name}: {seen:?}");
    }
    // Announced, sent, and ended by a frame of its own, or by trailers.
    for ending in [
        frame(DATA, END_STREAM, 1, b""),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("x-t", "1")])),
    ] {
        let mut client = H2::connect(serin.web);
        client.head(1, &announced(), false);
        client.send(DATA, 0, 1, b"hel");
        client.send(DATA, 0, 1, b"lo");
        client.send(DATA, 0, 1, b"");
        client.write(&ending);
        assert_eq!(client.response(1).unwrap().status, 200);
        let seen = upstream.since(0);
        assert_eq!(seen.last().unwrap().body, b"hello");
    }
}

#[test]
fn nothing_of_a_pseudo_header_field_in_trailers_is_forwarded() {
    let upstream = RawUpstream::start(ok);
    let serin = start(&upstream);
    let mut client = H2::connect(serin.web);
    for (stream, field) in (1..).step_by(2).zip([
        (":path", "/admin"),
        (":method", "DELETE"),
        (":authority", "evil.test"),
        (":scheme", "https"),
        (":status", "500"),
    ]) {
        let from = upstream.count();
        let mut fields = request("POST", "/");
        fields.extend([("te", "trailers"), ("trailer", "x-sum")]);
        client.head(stream, &fields, false);
        client.send(DATA, 0, stream, b"hello");
        client.head(stream, &[field, ("x-sum", "1")], true);
        assert_eq!(client.response(stream).unwrap().status, 200, "{field:?}");
        let seen = &upstream.since(from)[0];
        assert_eq!((seen.method(), seen.target()), ("POST", "/"), "{field:?}");
        assert_eq!((seen.body.as_slice(), seen.whole), (&b"hello"[..], true));
        assert_eq!(seen.trailers.to_ascii_lowercase(), "x-sum: 1\r\n", "{field:?}");
        assert!(!seen.head.contains(field.1), "{}", seen.head);
    }
}

#[test]
fn floods_end_the_connection_and_cost_no_memory() {
    let upstream = RawUpstream::start(ok);
    let serin = start(&upstream);
    let mut warm = H2::connect(serin.web);
    get(&mut warm, 1);
    assert_eq!(warm.response(1).unwrap().status, 200);
    let before = serin.resident();
    let head = block(&request("GET", "/"));
    let opened = move |n: u32| frame(HEADERS, END_HEADERS, n * 2 + 1, &head);
    let reset = opened.clone();
    let mut ended = Vec::new();
    let mut run = |name, first: &[u8], unit: Box<dyn Fn(u32) -> Vec<u8>>| {
        let mut client = H2::connect(serin.web);
        client.write(first);
        if !flood(&mut client, 20_000, unit) {
            ended.push(name);
        }
    };
    // CVE-2023-44487: opened and reset at once.
    run(
        "rapid reset",
        &[],
        Box::new(move |n| [reset(n), frame(RST_STREAM, 0, n * 2 + 1, &[0, 0, 0, 8])].concat()),
    );
    // CVE-2025-8671: opened, and then a mistake for which the server resets.
    let made = opened.clone();
    run(
        "made you reset",
        &[],
        Box::new(move |n| [made(n), frame(WINDOW_UPDATE, 0, n * 2 + 1, &[0; 4])].concat()),
    );
    // CVE-2024-27316: a header block without an end.
    run(
        "continuation",
        &frame(HEADERS, 0, 1, &block(&request("GET", "/"))),
        Box::new(|_| frame(CONTINUATION, 0, 1, &block(&[("x-more", "of the same")]))),
    );
    run(
        "empty continuation",
        &frame(HEADERS, 0, 1, &block(&request("GET", "/"))),
        Box::new(|_| frame(CONTINUATION, 0, 1, &[])),
    );
    // CVE-2019-9518, 9512, 9515, 9513.
    run("empty data", &opened(0), Box::new(|_| frame(DATA, 0, 1, &[])));
    run("ping", &[], Box::new(|_| frame(PING, 0, 0, &[0; 8])));
    run("settings", &[], Box::new(|_| frame(SETTINGS, 0, 0, &[])));
    run(
        "priority",
        &[],
        Box::new(|n| frame(PRIORITY, 0, n * 2 + 1, &[0, 0, 0, 0, 1])),
    );
    run("unknown frames", &[], Box::new(|_| frame(0x42, 0, 0, &[])));
    assert!(ended.is_empty(), "went on as if nothing were: {ended:?}");
    assert!(serin.resident().saturating_sub(before) < 8 * MIB);
    assert!(serin.metric("serin_http_rejected_total", &[("reason", "flood")]) > 3.5);
    get(&mut warm, 3);
    assert_eq!(warm.response(3).unwrap().status, 200, "the others are served");
}

#[test]
fn a_header_list_that_is_too_large_is_refused_and_counted() {
    let upstream = RawUpstream::start(ok);
    let serin = start(&upstream);
    let mut client = H2::connect(serin.web);
    let large = "x".repeat(10_000);
    let names: Vec<String> = (0..8).map(|n| format!("x-{n}")).collect();
    let more: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), large.as_str())).collect();
    let bytes = [block(&request("GET", "/")), block(&more)].concat();
    let pieces: Vec<&[u8]> = bytes.chunks(16_000).collect();
    client.send(HEADERS, END_STREAM, 1, pieces[0]);
    for (n, piece) in pieces.iter().enumerate().skip(1) {
        let last = n + 1 == pieces.len();
        client.send(CONTINUATION, if last { END_HEADERS } else { 0 }, 1, piece);
    }
    let end = client.outcome();
    assert!(
        matches!(end, End::Status(431) | End::GoAway(_) | End::Reset(_)),
        "{end:?}"
    );
    assert_eq!(upstream.count(), 0);
}

#[test]
fn a_draining_server_says_goaway_and_answers_what_it_has() {
    let upstream = RawUpstream::start(|seen, stream| {
        if seen.target() == "/wait" && !seen.whole {
            return Next::Body;
        }
        ok(seen, stream)
    });
    let mut serin = start(&upstream);
    let mut client = H2::connect(serin.web);
    let mut all = request("POST", "/wait");
    all.push(("content-length", "5"));
    client.head(1, &all, false);
    wait_for("the request to arrive", LONG, || {
        (upstream.count() > 0).then_some(())
    });
    serin.signal("TERM");
    let said = std::iter::from_fn(|| client.read())
        .find(|frame| frame.kind == GOAWAY)
        .unwrap();
    assert_eq!(said.error(), Some(0));
    client.send(DATA, END_STREAM, 1, b"hello");
    let response = client.response(1).unwrap();
    assert_eq!((response.status, response.body.as_slice()), (200, &b"ok"[..]));
    assert_eq!(serin.wait_end(LONG), 0);
}

/// One listener with these limits.
fn limited(limits: &str, url: &str) -> Serin {
    Serin::start_with(&format!(
        "
listeners: [{{name: web, address: \"127.0.0.1:0\", limits: {limits}}}]
admin: {{address: \"127.0.0.1:0\"}}
services: [{{name: shop, timeouts: {{connect: 1m}}, stable: {{version: v1, endpoints: [\"{url}\"]}}}}]"
    ))
}

/// Never answers what comes to `/wait`.
fn waits(seen: &Seen, stream: &mut TcpStream) -> Next {
    if seen.target() == "/wait" {
        let _ = stream.read(&mut [0]);
        return Next::Close;
    }
    ok(seen, stream)
}

#[test]
fn streams_at_once_are_limited_and_the_next_one_is_refused_and_counted() {
    let upstream = RawUpstream::start(waits);
    let serin = limited("{streams: 3}", &upstream.url());
    let mut client = H2::connect(serin.web);
    let settings = client.read().unwrap();
    let announced = settings.payload.chunks(6).map(|one| (one[1], one[5]));
    assert!(
        announced.into_iter().any(|(id, value)| (id, value) == (3, 3)),
        "{settings:?}"
    );
    for stream in [1, 3, 5] {
        client.head(stream, &request("GET", "/wait"), true);
    }
    wait_for("all three to be in flight", LONG, || {
        (upstream.count() == 3).then_some(())
    });
    client.head(7, &request("GET", "/"), true);
    assert_eq!(client.outcome(), End::Reset(REFUSED_STREAM));
    wait_for("the count", LONG, || {
        (serin.count("serin_http_rejected_total", &[("reason", "overload")]) == 1).then_some(())
    });
    // One that ends makes room.
    client.send(RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    get(&mut client, 9);
    assert_eq!(client.response(9).unwrap().status, 200);
    assert_eq!(upstream.count(), 4);
}

#[test]
fn a_client_that_resets_more_streams_than_it_may_is_cut_off_however_far_they_had_come() {
    let upstream = RawUpstream::start(waits);
    let serin = limited("{resets: 5}", &upstream.url());
    let mut clients = [H2::connect(serin.web), H2::connect(serin.web)];
    for (client, resets) in clients.iter_mut().zip([5, 6]) {
        for n in 0..resets {
            let (stream, known) = (n * 2 + 1, upstream.count());
            client.head(stream, &request("GET", "/wait"), true);
            // The version has it already: no limit of the library's counts this.
            wait_for("the request", LONG, || (upstream.count() > known).then_some(()));
            client.send(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
        }
    }
    let [within, beyond] = &mut clients;
    assert!(beyond.is_closed());
    wait_for("the count", LONG, || {
        (serin.count("serin_http_rejected_total", &[("reason", "flood")]) == 1).then_some(())
    });
    get(within, 99);
    assert_eq!(within.response(99).unwrap().status, 200);
    wait_for("every version to be told", LONG, || {
        (serin.count("serin_http_requests_in_flight", &[]) == 0).then_some(())
    });
    let canceled = serin.count("serin_version_outcomes_total", &[("outcome", "canceled")]);
    assert_eq!(canceled, 11);
}

#[test]
fn what_a_client_may_send_ahead_is_as_much_as_its_windows_say() {
    // Nobody shakes hands there, so that nobody takes the body.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", silent.local_addr().unwrap());
    let serin = limited("{streamWindow: 32KiB, connectionWindow: 128KiB}", &url);
    let mut client = H2::connect(serin.web);
    let settings = client.read().unwrap();
    client.send(SETTINGS, ACK, 0, &[]);
    let window = settings.payload.chunks(6).find(|one| one[1] == 4).unwrap();
    assert_eq!(window[2..], (32u32 << 10).to_be_bytes());
    let is_refused = |end| {
        matches!(
            end,
            End::Reset(FLOW_CONTROL_ERROR) | End::GoAway(FLOW_CONTROL_ERROR)
        )
    };
    let fill = |client: &mut H2, stream| {
        post(client, stream);
        for _ in 0..2 {
            client.send(DATA, 0, stream, &vec![0; 16_384]);
        }
    };
    // As much as a stream may have, on as many streams as the connection has room for, and a byte more.
    for stream in [1, 3, 5, 7] {
        assert_eq!(client.end(), End::Alive, "before {stream}");
        fill(&mut client, stream);
    }
    assert_eq!(client.end(), End::Alive);
    post(&mut client, 9);
    client.send(DATA, 0, 9, &[0]);
    let end = client.end();
    assert!(is_refused(end), "{end:?}");

    let mut client = H2::connect(serin.web);
    // A setting holds once it is acknowledged, which this does.
    assert_eq!(client.end(), End::Alive);
    fill(&mut client, 1);
    client.send(DATA, 0, 1, &[0]);
    let end = client.outcome();
    assert!(is_refused(end), "{end:?}");
}
