//! A service that takes every byte of HTTP/1.1 at its word and remembers it: what a strict reader behind Serin sees.
//!
//! It shares no code with Serin or hyper. What it cannot read in exactly one way it calls malformed.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// One request as it arrived.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Everything up to the empty line, without it.
    pub head: String,
    pub body: Vec<u8>,
    /// The trailer section of a chunked body, as it was written.
    pub trailers: String,
    /// Whether the whole body came.
    pub whole: bool,
    /// Why a strict reader refuses it.
    pub malformed: Option<String>,
    /// Which connection it came on, from 0.
    pub connection: usize,
    /// Its place on that connection, from 0.
    pub place: usize,
}

impl Seen {
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    /// The values of a field, in their order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        fields(&self.head, name)
    }

    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }
}

/// The values of a field in a head.
pub fn fields<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    head.split("\r\n")
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .filter(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect()
}

/// What a service does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Reads the body, then asks again.
    Body,
    /// Reads the next request.
    Keep,
    /// Closes the connection.
    Close,
}

type Respond = dyn Fn(&Seen, &mut TcpStream) -> Next + Send + Sync;

/// A running service. Ends, with all its connections, when it is dropped.
pub struct RawUpstream {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    open: Open,
    thread: Option<JoinHandle<()>>,
}

/// Answers everything with 200 and `ok`.
pub fn ok(seen: &Seen, stream: &mut TcpStream) -> Next {
    if !seen.whole {
        return Next::Body;
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    Next::Keep
}

impl RawUpstream {
    /// `respond` is asked when a head has come and, if it wants the body, again when that has.
    pub fn start(respond: impl Fn(&Seen, &mut TcpStream) -> Next + Send + Sync + 'static) -> RawUpstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (log, stop, open) = (Arc::default(), Arc::<AtomicBool>::default(), Open::default());
        let respond: Arc<Respond> = Arc::new(respond);
        let shared = (Arc::clone(&log), Arc::clone(&stop), Arc::clone(&open));
        let thread = std::thread::spawn(move || accept(&listener, &shared, &respond));
        RawUpstream {
            address,
            log,
            stop,
            open,
            thread: Some(thread),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests have been seen so far.
    pub fn count(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    /// Everything seen after the first `from`.
    pub fn since(&self, from: usize) -> Vec<Seen> {
        self.log.lock().unwrap().get(from..).unwrap_or_default().to_vec()
    }
}

impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        for stream in self.open.lock().unwrap().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Log = Arc<Mutex<Vec<Seen>>>;
/// Connections that are open, by their number.
type Open = Arc<Mutex<BTreeMap<usize, TcpStream>>>;
type Shared = (Log, Arc<AtomicBool>, Open);

fn accept(listener: &TcpListener, (log, stop, open): &Shared, respond: &Arc<Respond>) {
    for (connection, stream) in listener.incoming().enumerate() {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        // Out of descriptors, say: whatever the test sees from now on is not the proxy's doing.
        let accepted = stream.and_then(|stream| Ok((stream.try_clone()?, stream)));
        let (kept, stream) = accepted.expect("the test's own service can accept");
        open.lock().unwrap().insert(connection, kept);
        let (log, respond, open) = (Arc::clone(log), Arc::clone(respond), Arc::clone(open));
        std::thread::spawn(move || {
            let mut reader = Reader {
                stream,
                buffer: Vec::new(),
            };
            let mut place = 0;
            while serve(&mut reader, &log, &respond, (connection, place)) {
                place += 1;
            }
            let _ = reader.stream.shutdown(Shutdown::Both);
            // A descriptor kept for each connection that ever was ends a long test at `ulimit -n` of them.
            open.lock().unwrap().remove(&connection);
        });
    }
}

/// Serves one request; whether another may follow.
fn serve(
    reader: &mut Reader,
    log: &Log,
    respond: &Arc<Respond>,
    (connection, place): (usize, usize),
) -> bool {
    let Some(head) = reader.until(b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut seen = Seen {
        malformed: strict(&head).err(),
        head,
        connection,
        place,
        ..Seen::default()
    };
    let at = {
        let mut log = log.lock().unwrap();
        log.push(seen.clone());
        log.len() - 1
    };
    let mut next = respond(&seen, &mut reader.stream);
    if next == Next::Body {
        match body(reader, &seen.head) {
            Ok((body, trailers)) => (seen.body, seen.trailers, seen.whole) = (body, trailers, true),
            Err(why) => seen.malformed = seen.malformed.take().or(why),
        }
        log.lock().unwrap()[at] = seen.clone();
        if !seen.whole {
            return false;
        }
        next = respond(&seen, &mut reader.stream);
    }
    next == Next::Keep
}

/// Whether a head can be read in exactly one way.
fn strict(head: &str) -> Result<(), String> {
    if head.replace("\r\n", "").contains(['\r', '\n', '\0']) {
        return Err("a bare CR, LF or NUL in the head".to_owned());
    }
    let line = head.split("\r\n").next().unwrap_or_default();
    let parts: Vec<&str> = line.split(' ').collect();
    let [method, target, version] = parts[..] else {
        return Err(format!("request line `{line}`"));
    };
    let origin = target.starts_with('/') || (target == "*" && method == "OPTIONS");
    if method.is_empty() || version != "HTTP/1.1" || !origin || target.contains('#') {
        return Err(format!("request line `{line}`"));
    }
    for line in head.split("\r\n").skip(1) {
        let (name, value) = line.split_once(':').ok_or(format!("field `{line}`"))?;
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) || value.bytes().any(|b| b < 32 && b != b'\t') {
            return Err(format!("field `{line}`"));
        }
    }
    let (lengths, codings) = (fields(head, "content-length"), fields(head, "transfer-encoding"));
    let decimal = |v: &&str| v.bytes().all(|b| b.is_ascii_digit()) && !v.is_empty();
    if lengths.len() + codings.len() > 1 || !lengths.iter().all(decimal) {
        return Err(format!("framing {lengths:?} {codings:?}"));
    }
    if codings.iter().any(|coding| *coding != "chunked") || fields(head, "host").len() > 1 {
        return Err(format!("coding {codings:?} or host {:?}", fields(head, "host")));
    }
    Ok(())
}

/// A body and its trailers. `Err(None)`: it broke off.
fn body(reader: &mut Reader, head: &str) -> Result<(Vec<u8>, String), Option<String>> {
    if let Some(length) = fields(head, "content-length").first() {
        let length = length.parse().map_err(|_| Some("length".to_owned()))?;
        return Ok((reader.exactly(length).ok_or(None)?, String::new()));
    }
    if fields(head, "transfer-encoding").is_empty() {
        return Ok((Vec::new(), String::new()));
    }
    let mut whole = Vec::new();
    loop {
        let line = reader.until(b"\r\n").ok_or(None)?;
        let text = String::from_utf8_lossy(&line).into_owned();
        let size = usize::from_str_radix(&text, 16)
            .ok()
            .filter(|_| text.bytes().all(|b| b.is_ascii_hexdigit()))
            .ok_or(Some(format!("chunk size `{text}`")))?;
        if size == 0 {
            let mut trailers = String::new();
            loop {
                let line = reader.until(b"\r\n").ok_or(None)?;
                if line.is_empty() {
                    return Ok((whole, trailers));
                }
                trailers.push_str(&String::from_utf8_lossy(&line));
                trailers.push_str("\r\n");
            }
        }
        whole.extend(reader.exactly(size).ok_or(None)?);
        if reader.exactly(2).ok_or(None)? != b"\r\n" {
            return Err(Some("no CRLF after a chunk".to_owned()));
        }
    }
}

/// Bytes of a connection, read ahead.
pub struct Reader {
    pub stream: TcpStream,
    pub buffer: Vec<u8>,
}

impl Reader {
    fn more(&mut self) -> bool {
        let mut piece = [0; 16 * 1024];
        match self.stream.read(&mut piece) {
            Ok(n) if n > 0 => {
                self.buffer.extend_from_slice(&piece[..n]);
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// What stands before `mark`; the mark is taken too.
    pub fn until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(mark.len()).position(|w| w == mark) {
                let found = self.buffer[..at].to_vec();
                self.buffer.drain(..at + mark.len());
                return Some(found);
            }
            if !self.more() {
                return None;
            }
        }
    }

    pub fn exactly(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < n {
            if !self.more() {
                return None;
            }
        }
        Some(self.buffer.drain(..n).collect())
    }
}

/// One response as a client reads it.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    pub trailers: String,
    /// Whether the body ended as its framing says.
    pub whole: bool,
}

/// A client that sends what it is told and reads responses strictly.
pub struct RawClient {
    pub reader: Reader,
}

impl RawClient {
    pub fn connect(to: SocketAddr) -> RawClient {
        RawClient::over(TcpStream::connect(to).unwrap())
    }

    /// On a connection that is there.
    pub fn over(stream: TcpStream) -> RawClient {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_nodelay(true).unwrap();
        RawClient {
            reader: Reader {
                stream,
                buffer: Vec::new(),
            },
        }
    }

    /// Sends; an error is for the reader to find out about.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.reader.stream.write_all(bytes.as_ref()).is_ok()
    }

    pub fn end_sending(&self) {
        let _ = self.reader.stream.shutdown(Shutdown::Write);
    }

    /// The next response, interim ones included; none when the connection ends first.
    pub fn answer(&mut self, to: &str) -> Option<Answer> {
        self.answer_of(|_| to.to_owned())
    }

    /// The same, where the head tells to which method it is.
    pub fn answer_of(&mut self, method: impl FnOnce(&str) -> String) -> Option<Answer> {
        let head = self.reader.until(b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&head).into_owned();
        let to = method(&head);
        let status: u16 = head.split(' ').nth(1)?.parse().ok()?;
        let bodiless = status < 200 || status == 204 || status == 304 || to == "HEAD";
        let mut answer = Answer {
            status,
            whole: true,
            ..Answer::default()
        };
        let framed =
            !fields(&head, "content-length").is_empty() || head.to_ascii_lowercase().contains("chunked");
        if !bodiless && framed {
            match body(&mut self.reader, &head) {
                Ok((body, trailers)) => (answer.body, answer.trailers) = (body, trailers),
                Err(_) => {
                    answer.whole = false;
                    answer.body = std::mem::take(&mut self.reader.buffer);
                }
            }
        } else if !bodiless {
            while self.reader.more() {}
            answer.body = std::mem::take(&mut self.reader.buffer);
        }
        answer.head = head;
        Some(answer)
    }

    /// Whether the other side closes without another byte, within the read timeout.
    pub fn is_closed(&mut self) -> bool {
        if !self.reader.buffer.is_empty() {
            return false;
        }
        let mut byte = [0];
        match self.reader.stream.read(&mut byte) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
