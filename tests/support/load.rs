//! A gentle, steady load that counts what it is answered with, and ends with its handle.

use super::now;
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// However long a test hangs, the load does not outlive this.
const LONGEST: Duration = Duration::from_secs(120);
/// Connections, each kept alive.
const CLIENTS: u32 = 4;

/// What clients saw.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// By status and by the version that answered (empty: Serin itself).
    pub answers: BTreeMap<(u16, String), u64>,
    /// Requests without an answer, and why.
    pub broken: Vec<String>,
}

impl Seen {
    pub fn with(&self, status: u16, version: &str) -> u64 {
        self.answers
            .get(&(status, version.to_owned()))
            .copied()
            .unwrap_or_default()
    }

    pub fn of_version(&self, version: &str) -> u64 {
        let of_it = self.answers.iter().filter(|((_, by), _)| by == version);
        of_it.map(|(_, count)| count).sum()
    }

    pub fn total(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Answers that are not 200, and requests without one.
    pub fn errors(&self) -> u64 {
        let bad = self.answers.iter().filter(|((status, _), _)| *status != 200);
        bad.map(|(_, count)| count).sum::<u64>() + self.broken.len() as u64
    }
}

/// Running clients.
pub struct Load {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// About `rate` requests a second; fewer when the machine is busy.
    pub fn start(to: SocketAddr, rate: u32) -> Load {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let every = Duration::from_secs(1) * CLIENTS / rate;
        let client = |_| {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            std::thread::spawn(move || client(to, every, &stop, &seen))
        };
        let clients = (0..CLIENTS).map(client).collect();
        Load { stop, seen, clients }
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Ends it, with nothing left in flight.
    pub fn stop(mut self) -> Seen {
        self.end();
        self.seen()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients.drain(..) {
            client.join().unwrap();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn client(to: SocketAddr, every: Duration, stop: &AtomicBool, seen: &Mutex<Seen>) {
    let end = now() + LONGEST;
    let (mut next, mut connection) = (now(), None);
    while !stop.load(Ordering::SeqCst) && now() < end {
        match request(to, &mut connection) {
            Ok(answer) => *seen.lock().unwrap().answers.entry(answer).or_default() += 1,
            Err(error) => {
                connection = None;
                seen.lock().unwrap().broken.push(error.to_string());
            }
        }
        // What a busy machine made late is left out rather than sent in a burst.
        next = (next + every).max(now());
        while now() < next {
            std::thread::park_timeout(next - now());
        }
    }
}

fn request(to: SocketAddr, connection: &mut Option<BufReader<TcpStream>>) -> std::io::Result<(u16, String)> {
    let stream = match connection {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(to)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            connection.insert(BufReader::new(stream))
        }
    };
    stream
        .get_mut()
        .write_all(format!("GET /orders HTTP/1.1\r\nhost: {to}\r\n\r\n").as_bytes())?;
    let (mut status, mut version, mut length, mut closes) = (0, String::new(), 0, false);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(std::io::Error::other(format!("closed after status {status}")));
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        match line.split_once(": ") {
            None => status = line.split(' ').nth(1).unwrap_or("").parse().unwrap_or(0),
            Some(("x-version", value)) => value.clone_into(&mut version),
            Some(("content-length", value)) => length = value.parse().unwrap_or(0),
            Some(("connection", value)) => closes = value == "close",
            Some(_) => {}
        }
    }
    stream.read_exact(&mut vec![0; length])?;
    if closes {
        *connection = None;
    }
    Ok((status, version))
}
