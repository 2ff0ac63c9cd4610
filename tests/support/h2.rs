//! HTTP/2 by hand: frames as bytes, header blocks written plainly and read with all of HPACK (RFC 7541, RFC 9113).
//!
//! It shares no code with the library that Serin uses, and sends whatever it is told to, right or wrong.

use super::huffman::CODES;
use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const WITH_PRIORITY: u8 = 32;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of `RST_STREAM` or `GOAWAY`.
    pub fn error(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        let code = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(code.try_into().unwrap()))
    }
}

/// A frame as bytes; its length field says what the payload's is.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block of literal fields that no table remembers.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    literals(fields)
}

/// The same of any bytes.
pub fn literals<T: AsRef<[u8]>>(fields: &[(T, T)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            integer(&mut bytes, text.len());
            bytes.extend(text);
        }
    }
    bytes
}

fn integer(bytes: &mut Vec<u8>, mut n: usize) {
    if n < 127 {
        bytes.push(u8::try_from(n).unwrap());
        return;
    }
    bytes.push(127);
    n -= 127;
    while n >= 128 {
        bytes.push(u8::try_from(n % 128 + 128).unwrap());
        n /= 128;
    }
    bytes.push(u8::try_from(n).unwrap());
}

/// The pseudo-header fields of a request.
pub fn request(method: &'static str, path: &'static str) -> Vec<(&'static str, &'static str)> {
    vec![
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "shop.test"),
    ]
}

/// What came on a stream.
#[derive(Debug, Default, Clone)]
pub struct Response {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// The stream ended by `RST_STREAM` with this code.
    pub reset: Option<u32>,
}

/// How a connection was ended by the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// GOAWAY with this error.
    GoAway(u32),
    /// The stream was reset with this error; the connection goes on.
    Reset(u32),
    /// Closed without a word.
    Closed,
    /// Nothing happened: the connection answers PING.
    Alive,
    /// An answer with this status.
    Status(u16),
}

/// A client connection.
pub struct H2 {
    stream: TcpStream,
    buffer: Vec<u8>,
    decoder: Decoder,
}

impl H2 {
    /// Connects and says nothing.
    pub fn silent(to: SocketAddr) -> H2 {
        H2::over(TcpStream::connect(to).unwrap())
    }

    /// The server's side of an accepted connection: takes the preface and sends empty settings.
    pub fn accepted(stream: TcpStream) -> H2 {
        H2::accepted_with(stream, &[])
    }

    /// The same with these settings.
    pub fn accepted_with(stream: TcpStream, settings: &[u8]) -> H2 {
        let mut server = H2::over(stream);
        server.stream.read_exact(&mut [0; PREFACE.len()]).unwrap();
        server.send(SETTINGS, 0, 0, settings);
        server
    }

    fn over(stream: TcpStream) -> H2 {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_nodelay(true).unwrap();
        H2 {
            stream,
            buffer: Vec::new(),
            decoder: Decoder::default(),
        }
    }

    /// Connects, sends preface and empty settings.
    pub fn connect(to: SocketAddr) -> H2 {
        H2::begin(TcpStream::connect(to).unwrap())
    }

    /// Sends preface and empty settings on a connection that is there.
    pub fn begin(stream: TcpStream) -> H2 {
        let mut client = H2::over(stream);
        client.write(PREFACE);
        client.send(SETTINGS, 0, 0, &[]);
        client
    }

    /// Whether everything was taken.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.write(&frame(kind, flags, stream, payload))
    }

    /// Sends a whole request head.
    pub fn head(&mut self, stream: u32, fields: &[(&str, &str)], end: bool) -> bool {
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        self.send(HEADERS, flags, stream, &block(fields))
    }

    /// Sends a header block of any length, in as many frames as it takes.
    pub fn fields(&mut self, stream: u32, block: &[u8], end: bool) -> bool {
        let mut pieces = block.chunks(16 * 1024).peekable();
        let mut first = true;
        let mut taken = true;
        while let Some(piece) = pieces.next() {
            let flags = if pieces.peek().is_none() { END_HEADERS } else { 0 };
            taken &= if std::mem::take(&mut first) {
                self.send(HEADERS, flags | if end { END_STREAM } else { 0 }, stream, piece)
            } else {
                self.send(CONTINUATION, flags, stream, piece)
            };
        }
        taken
    }

    /// The next frame; none when the connection ends or stays silent for the read timeout.
    pub fn read(&mut self) -> Option<Frame> {
        while self.buffer.len() < 9 || self.buffer.len() < 9 + self.length() {
            let mut piece = [0; 16 * 1024];
            match self.stream.read(&mut piece) {
                Ok(n) if n > 0 => self.buffer.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return None,
            }
        }
        let length = self.length();
        let bytes: Vec<u8> = self.buffer.drain(..9 + length).collect();
        let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap()) & 0x7fff_ffff;
        Some(Frame {
            kind: bytes[3],
            flags: bytes[4],
            stream,
            payload: bytes[9..].to_vec(),
        })
    }

    fn length(&self) -> usize {
        usize::from(self.buffer[0]) << 16 | usize::from(self.buffer[1]) << 8 | usize::from(self.buffer[2])
    }

    /// Reads until the response on this stream has ended. Acknowledges settings and gives back the windows it uses.
    pub fn response(&mut self, stream: u32) -> Option<Response> {
        let mut response = Response::default();
        loop {
            let frame = self.read()?;
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => {
                    self.send(SETTINGS, ACK, 0, &[]);
                }
                PING if frame.flags & ACK == 0 => {
                    self.send(PING, ACK, 0, &frame.payload);
                }
                HEADERS if frame.stream == stream => {
                    let fields = self.decode(frame.payload.clone(), frame.flags);
                    let status = fields.iter().find(|(name, _)| name == ":status");
                    match status {
                        Some((_, status)) => {
                            response.status = status.parse().unwrap();
                            response.fields = fields;
                        }
                        None => response.trailers = fields,
                    }
                }
                // The table has to follow along.
                HEADERS => drop(self.decode(frame.payload.clone(), frame.flags)),
                DATA if frame.stream == stream => {
                    response.body.extend(&frame.payload);
                    if !frame.payload.is_empty() {
                        let used = u32::try_from(frame.payload.len()).unwrap().to_be_bytes();
                        self.send(WINDOW_UPDATE, 0, 0, &used);
                        if frame.flags & END_STREAM == 0 {
                            self.send(WINDOW_UPDATE, 0, stream, &used);
                        }
                    }
                }
                RST_STREAM if frame.stream == stream => {
                    response.reset = frame.error();
                    return Some(response);
                }
                GOAWAY if frame.error() != Some(0) => return None,
                _ => {}
            }
            let ends = frame.kind == DATA || frame.kind == HEADERS;
            if ends && frame.stream == stream && frame.flags & END_STREAM != 0 {
                return Some(response);
            }
        }
    }

    /// A header block that begins with this payload and these flags. The table has to follow along whatever it says.
    pub fn decode(&mut self, mut payload: Vec<u8>, mut flags: u8) -> Vec<(String, String)> {
        while flags & END_HEADERS == 0 {
            let more = self.read().unwrap();
            assert_eq!(more.kind, CONTINUATION);
            payload.extend(more.payload);
            flags |= more.flags;
        }
        self.decoder.block(&payload)
    }

    /// What became of the one request that was sent, right or wrong: its answer, or how its stream or the connection ended.
    pub fn outcome(&mut self) -> End {
        let mut status = None;
        while let Some(frame) = self.read() {
            let last = frame.flags & END_STREAM != 0 && (frame.kind == HEADERS || frame.kind == DATA);
            match frame.kind {
                GOAWAY if frame.error() != Some(0) => return End::GoAway(frame.error().unwrap()),
                RST_STREAM if frame.error() != Some(0) => return End::Reset(frame.error().unwrap()),
                HEADERS => {
                    let fields = self.decode(frame.payload.clone(), frame.flags);
                    let found = fields.iter().find(|(name, _)| name == ":status");
                    status = status.or(found.map(|(_, status)| status.parse().unwrap()));
                }
                SETTINGS if frame.flags & ACK == 0 => {
                    self.send(SETTINGS, ACK, 0, &[]);
                }
                _ => {}
            }
            if let Some(status) = status.filter(|_| last) {
                return End::Status(status);
            }
        }
        End::Closed
    }

    /// Whether the connection outlives all that was sent on it: sends a PING and reads until its answer or the end.
    pub fn answers(&mut self) -> bool {
        self.send(PING, 0, 0, b"anybody?");
        while let Some(frame) = self.read() {
            match frame.kind {
                GOAWAY if frame.error() != Some(0) => return false,
                HEADERS => drop(self.decode(frame.payload, frame.flags)),
                PING if frame.flags & ACK != 0 && frame.payload == b"anybody?" => return true,
                SETTINGS if frame.flags & ACK == 0 => {
                    self.send(SETTINGS, ACK, 0, &[]);
                }
                _ => {}
            }
        }
        false
    }

    /// What became of what was sent: sends a PING and reads until its answer or an end. An error on any stream counts.
    pub fn end(&mut self) -> End {
        self.send(PING, 0, 0, b"are you?");
        let mut seen = None;
        while let Some(frame) = self.read() {
            match frame.kind {
                GOAWAY if frame.error() != Some(0) => return End::GoAway(frame.error().unwrap()),
                // The library gives a stream back this way after an early answer.
                RST_STREAM if frame.error() != Some(0) => {
                    seen = Some(End::Reset(frame.error().unwrap()));
                }
                HEADERS => {
                    let fields = self.decode(frame.payload.clone(), frame.flags);
                    if let Some((_, status)) = fields.iter().find(|(name, _)| name == ":status") {
                        seen = seen.or(Some(End::Status(status.parse().unwrap())));
                    }
                }
                PING if frame.flags & ACK != 0 && frame.payload == b"are you?" => {
                    return seen.unwrap_or(End::Alive);
                }
                SETTINGS if frame.flags & ACK == 0 => {
                    self.send(SETTINGS, ACK, 0, &[]);
                }
                _ => {}
            }
        }
        seen.unwrap_or(End::Closed)
    }

    /// Waits until the other side closes, skipping what it still says.
    pub fn is_closed(&mut self) -> bool {
        let mut piece = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
    }
}

/// A header decoder with its dynamic table.
#[derive(Debug)]
pub struct Decoder {
    table: VecDeque<(String, String)>,
    size: usize,
    most: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder {
            table: VecDeque::new(),
            size: 0,
            most: 4096,
        }
    }
}

impl Decoder {
    /// Decodes a whole block; panics when it is malformed.
    pub fn block(&mut self, mut bytes: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while let Some(first) = bytes.first().copied() {
            if first & 0x80 != 0 {
                let index = number(&mut bytes, 7);
                fields.push(self.entry(index));
            } else if first & 0xe0 == 0x20 {
                self.most = number(&mut bytes, 5);
                self.evict();
            } else {
                let remembers = first & 0xc0 == 0x40;
                let index = number(&mut bytes, if remembers { 6 } else { 4 });
                let name = if index == 0 {
                    text(&mut bytes)
                } else {
                    self.entry(index).0
                };
                let field = (name, text(&mut bytes));
                if remembers {
                    self.size += field.0.len() + field.1.len() + 32;
                    self.table.push_front(field.clone());
                    self.evict();
                }
                fields.push(field);
            }
        }
        fields
    }

    fn entry(&self, index: usize) -> (String, String) {
        match STATIC.get(index - 1) {
            Some((name, value)) => ((*name).to_owned(), (*value).to_owned()),
            None => self.table[index - 1 - STATIC.len()].clone(),
        }
    }

    fn evict(&mut self) {
        while self.size > self.most {
            let Some((name, value)) = self.table.pop_back() else {
                return;
            };
            self.size -= name.len() + value.len() + 32;
        }
    }
}

fn number(bytes: &mut &[u8], bits: u32) -> usize {
    let most = (1usize << bits) - 1;
    let mut value = usize::from(bytes[0]) & most;
    *bytes = &bytes[1..];
    if value < most {
        return value;
    }
    let mut shift = 0;
    loop {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value += usize::from(byte & 127) << shift;
        shift += 7;
        if byte & 128 == 0 {
            return value;
        }
    }
}

fn text(bytes: &mut &[u8]) -> String {
    let coded = bytes[0] & 0x80 != 0;
    let length = number(bytes, 7);
    let (raw, rest) = bytes.split_at(length);
    *bytes = rest;
    let plain = if coded { huffman(raw) } else { raw.to_vec() };
    String::from_utf8_lossy(&plain).into_owned()
}

fn huffman(raw: &[u8]) -> Vec<u8> {
    let (mut plain, mut code, mut length) = (Vec::new(), 0u32, 0u8);
    for byte in raw {
        for bit in (0..8).rev() {
            (code, length) = (code << 1 | u32::from(byte >> bit & 1), length + 1);
            if let Some(found) = CODES.iter().position(|known| *known == (code, length)) {
                plain.push(u8::try_from(found).unwrap());
                (code, length) = (0, 0);
            }
        }
    }
    plain
}

/// RFC 7541, appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];
