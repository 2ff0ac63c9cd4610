//! A name server that says what it is told to, over UDP and TCP at one port, and remembers what it was asked.

use super::upstream::Upstream;
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;

/// One record of an answer; its name is the question's.
#[derive(Debug, Clone)]
pub struct Record {
    kind: u16,
    ttl: u32,
    data: Vec<u8>,
}

/// An address, for so many seconds.
pub fn at(ip: impl Into<IpAddr>, ttl: u32) -> Record {
    let (kind, data) = match ip.into() {
        IpAddr::V4(ip) => (A, ip.octets().to_vec()),
        IpAddr::V6(ip) => (AAAA, ip.octets().to_vec()),
    };
    Record { kind, ttl, data }
}

/// An alias: `label` under the question's name.
pub fn alias(label: &str, ttl: u32) -> Record {
    let mut data = vec![u8::try_from(label.len()).unwrap()];
    data.extend(label.bytes());
    data.extend([0xc0, 12]);
    Record {
        kind: CNAME,
        ttl,
        data,
    }
}

type Script = dyn Fn(&[u8]) -> Vec<Vec<u8>> + Send + Sync;

/// How it answers.
#[derive(Clone)]
pub enum Says {
    /// The aliases among these, and the addresses of the kind that was asked for. None: the name has no such address.
    Records(Vec<Record>),
    /// Over UDP that it is too long for that, over TCP these.
    OverTcp(Vec<Record>),
    /// No records and this code: 2 for trouble, 3 for no such name.
    Code(u8),
    /// Nothing.
    Nothing,
    /// Somebody else at another port is quicker.
    Forged { lie: Vec<Record>, truth: Vec<Record> },
    /// Over UDP these messages, each in a datagram of its own.
    Script(Arc<Script>),
}

impl Says {
    /// These addresses, for a second.
    pub fn addresses(ips: &[Ipv4Addr]) -> Says {
        Says::Records(ips.iter().map(|ip| at(*ip, 1)).collect())
    }

    pub fn script(of: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Says {
        Says::Script(Arc::new(of))
    }
}

/// An answer to `question` with this code and these records.
pub fn answer(question: &[u8], code: u8, records: &[Record]) -> Vec<u8> {
    let kind = kind_of(question);
    let records: Vec<&Record> = records
        .iter()
        .filter(|record| record.kind == kind || record.kind == CNAME)
        .collect();
    let mut bytes = question.to_vec();
    bytes[2..4].copy_from_slice(&[0x81, 0x80 | code]);
    bytes[6..8].copy_from_slice(&u16::try_from(records.len()).unwrap().to_be_bytes());
    for record in records {
        bytes.extend([0xc0, 12]);
        bytes.extend(record.kind.to_be_bytes());
        bytes.extend([0, 1]);
        bytes.extend(record.ttl.to_be_bytes());
        bytes.extend(u16::try_from(record.data.len()).unwrap().to_be_bytes());
        bytes.extend(&record.data);
    }
    bytes
}

fn kind_of(question: &[u8]) -> u16 {
    let [.., high, low, _, _] = question else { return 0 };
    u16::from_be_bytes([*high, *low])
}

struct Shared {
    says: Mutex<Says>,
    ended: AtomicBool,
    /// Questions for A records.
    asked: Mutex<u64>,
    over_tcp: Mutex<u64>,
}

/// See the module. Ends when it is dropped.
pub struct NameServer {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl NameServer {
    pub fn start(says: Says) -> NameServer {
        let (tcp, udp) = (0..50)
            .find_map(|_| {
                let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
                let udp = UdpSocket::bind(tcp.local_addr().unwrap()).ok()?;
                Some((tcp, udp))
            })
            .expect("a port that is free for both");
        udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let address = tcp.local_addr().unwrap();
        let shared = Arc::new(Shared {
            says: Mutex::new(says),
            ended: AtomicBool::new(false),
            asked: Mutex::default(),
            over_tcp: Mutex::default(),
        });
        let (one, other) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            std::thread::spawn(move || over_udp(&udp, &one)),
            std::thread::spawn(move || over_tcp(&tcp, &other)),
        ];
        NameServer {
            address,
            shared,
            threads,
        }
    }

    pub fn say(&self, says: Says) {
        *self.shared.says.lock().unwrap() = says;
    }

    /// How often IPv4 addresses were asked for over UDP.
    pub fn asked(&self) -> u64 {
        *self.shared.asked.lock().unwrap()
    }

    /// How many questions came over TCP.
    pub fn asked_over_tcp(&self) -> u64 {
        *self.shared.over_tcp.lock().unwrap()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Whoever waits for a connection gets one.
        let _ = TcpStream::connect(self.address);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn over_udp(socket: &UdpSocket, shared: &Shared) {
    let mut bytes = [0; 512];
    while !shared.ended.load(Ordering::SeqCst) {
        let Ok((length, from)) = socket.recv_from(&mut bytes) else {
            continue;
        };
        let question = &bytes[..length];
        *shared.asked.lock().unwrap() += u64::from(kind_of(question) == A);
        let says = shared.says.lock().unwrap().clone();
        let replies = match says {
            Says::Records(records) => vec![answer(question, 0, &records)],
            Says::OverTcp(_) => {
                let mut cut = answer(question, 0, &[]);
                cut[2] |= 0x02;
                vec![cut]
            }
            Says::Code(code) => vec![answer(question, code, &[])],
            Says::Nothing => Vec::new(),
            Says::Forged { lie, truth } => {
                let elsewhere = UdpSocket::bind("127.0.0.1:0").unwrap();
                let _ = elsewhere.send_to(&answer(question, 0, &lie), from);
                vec![answer(question, 0, &truth)]
            }
            Says::Script(script) => script(question),
        };
        for reply in replies {
            let _ = socket.send_to(&reply, from);
        }
    }
}

fn over_tcp(listener: &TcpListener, shared: &Shared) {
    for stream in listener.incoming() {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let says = shared.says.lock().unwrap().clone();
        let (Ok(mut stream), Says::OverTcp(records)) = (stream, says) else {
            continue;
        };
        *shared.over_tcp.lock().unwrap() += 1;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut length = [0; 2];
        if stream.read_exact(&mut length).is_err() {
            continue;
        }
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut question).is_err() {
            continue;
        }
        let reply = answer(&question, 0, &records);
        let length = u16::try_from(reply.len()).unwrap().to_be_bytes();
        // In pieces, as the network may deliver it.
        for piece in [&length[..1], &length[1..], &reply[..20], &reply[20..]] {
            let _ = stream.write_all(piece);
            let _ = stream.flush();
        }
    }
}

/// Copies of a service at one port of different loopback addresses.
pub fn copies<const N: usize>(names: [&'static str; N]) -> (u16, [Upstream; N], Vec<Ipv4Addr>) {
    'again: for _ in 0..50 {
        let first = TcpListener::bind("127.0.0.2:0").unwrap();
        let port = first.local_addr().unwrap().port();
        drop(first);
        let addresses: Vec<Ipv4Addr> = (2u8..).take(N).map(|n| Ipv4Addr::new(127, 0, 0, n)).collect();
        for address in &addresses {
            if TcpListener::bind((*address, port)).is_err() {
                continue 'again;
            }
        }
        let mut next = addresses.iter();
        let upstreams =
            names.map(|name| Upstream::start_at(name, SocketAddr::from((*next.next().unwrap(), port))));
        return (port, upstreams, addresses);
    }
    panic!("no port is free at all addresses");
}
