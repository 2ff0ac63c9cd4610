//! Endpoints with names: every address is used, changes are followed, a failing server does no harm.

use crate::support::{
    HEAD, Serin,
    client::{Plan, ask, get},
    upstream::Upstream,
    wait_for,
};
use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(30);

/// How a name server answers.
#[derive(Debug, Clone)]
enum Says {
    /// These addresses, for a second.
    Addresses(Vec<Ipv4Addr>),
    /// There is no such name.
    NoSuchName,
    /// It knows the name and has no address for it.
    Empty,
    /// Nothing.
    Nothing,
}

/// A name server that knows one answer to all questions. Ends when it is dropped.
struct NameServer {
    address: SocketAddr,
    says: Arc<Mutex<Option<Says>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl NameServer {
    fn start(says: Says) -> NameServer {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let address = socket.local_addr().unwrap();
        let says = Arc::new(Mutex::new(Some(says)));
        let told = Arc::clone(&says);
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 512];
            loop {
                let received = socket.recv_from(&mut bytes);
                let Some(says) = told.lock().unwrap().clone() else {
                    return;
                };
                if let Ok((length, from)) = received
                    && let Some(reply) = reply(&bytes[..length], &says)
                {
                    let _ = socket.send_to(&reply, from);
                }
            }
        });
        NameServer {
            address,
            says,
            thread: Some(thread),
        }
    }

    fn say(&self, says: Says) {
        *self.says.lock().unwrap() = Some(says);
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        *self.says.lock().unwrap() = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The question with an answer behind it.
fn reply(question: &[u8], says: &Says) -> Option<Vec<u8>> {
    let mut bytes = question.to_vec();
    let is_a = question[question.len() - 4..question.len() - 2] == [0, 1];
    let (code, addresses) = match says {
        Says::Addresses(addresses) if is_a => (0, addresses.clone()),
        Says::Addresses(_) | Says::Empty => (0, Vec::new()),
        Says::NoSuchName => (3, Vec::new()),
        Says::Nothing => return None,
    };
    bytes[2..4].copy_from_slice(&[0x81, 0x80 | code]);
    bytes[7] = u8::try_from(addresses.len()).unwrap();
    for address in addresses {
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        bytes.extend(address.octets());
    }
    Some(bytes)
}

/// Copies of a service at one port of different loopback addresses.
fn copies<const N: usize>(names: [&'static str; N]) -> (u16, [Upstream; N], Vec<Ipv4Addr>) {
    'again: for _ in 0..50 {
        let first = std::net::TcpListener::bind("127.0.0.2:0").unwrap();
        let port = first.local_addr().unwrap().port();
        drop(first);
        let addresses: Vec<Ipv4Addr> = (2u8..).take(N).map(|n| Ipv4Addr::new(127, 0, 0, n)).collect();
        for address in &addresses {
            if std::net::TcpListener::bind((*address, port)).is_err() {
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

fn serin(server: &NameServer, port: u16) -> Serin {
    Serin::start_with(&format!(
        "{HEAD}dns: {{servers: [\"{}\"], timeout: 500ms}}\nservices: [{{name: shop, stable: {{version: v1, endpoints: [\"http://app.test:{port}\"]}}}}]",
        server.address
    ))
}

fn stale(serin: &Serin) -> bool {
    serin.metric("serin_upstream_dns_stale", &[("host", "app.test")]) > 0.5
}

#[test]
fn every_address_of_a_name_gets_its_share_and_a_change_is_followed_without_an_error() {
    let (port, [a, b, c], ips) = copies(["a", "b", "c"]);
    let server = NameServer::start(Says::Addresses(vec![ips[0], ips[1]]));
    let serin = serin(&server, port);
    let tally = Plan::new(serin.web, 4).total(400).start().finish();
    tally.assert_clean();
    assert!(
        tally.version("a") > 100 && tally.version("b") > 100,
        "{:?}",
        tally.answers
    );
    let clients = Plan::new(serin.web, 4).start();
    clients.wait_more(100);
    server.say(Says::Addresses(vec![ips[1], ips[2]]));
    wait_for("the new address to be used", SOON, || {
        (c.requests() > 50).then_some(())
    });
    // The old one has answered what it had; nothing comes to it any more.
    let before = a.requests();
    clients.wait_more(200);
    assert_eq!(a.requests(), before);
    assert!(b.requests() > 100);
    drop(a);
    clients.wait_more(200);
    clients.stop().assert_clean();
}

#[test]
fn a_name_server_that_fails_leaves_the_last_good_addresses_in_use() {
    let (port, [a], ips) = copies(["a"]);
    let server = NameServer::start(Says::Addresses(ips));
    let serin = serin(&server, port);
    assert!(!stale(&serin));
    let clients = Plan::new(serin.web, 2).start();
    for trouble in [Says::NoSuchName, Says::Empty, Says::Nothing] {
        server.say(trouble);
        wait_for("the name to be stale", SOON, || stale(&serin).then_some(()));
        clients.wait_more(50);
        server.say(Says::Addresses(vec![Ipv4Addr::new(127, 0, 0, 2)]));
        wait_for("the name to be resolved again", SOON, || {
            (!stale(&serin)).then_some(())
        });
    }
    clients.stop().assert_clean();
    assert!(serin.log().contains("known addresses stay in use") && a.requests() > 0);
}

#[test]
fn a_version_whose_name_has_no_address_is_not_ready_and_serves_as_soon_as_it_has_one() {
    let (port, [a], ips) = copies(["a"]);
    let server = NameServer::start(Says::NoSuchName);
    let serin = serin(&server, port);
    let answer = ask(serin.web, false, get("/")).unwrap();
    assert_eq!((answer.status, answer.header("retry-after")), (503, "1"));
    assert!(stale(&serin));
    let endpoint = &serin.status("shop")["versions"][0]["endpoints"][0];
    assert_eq!(
        (endpoint["ready"].as_bool(), endpoint["healthy"].as_bool()),
        (Some(false), Some(false))
    );
    server.say(Says::Addresses(ips));
    wait_for("an answer", SOON, || {
        (ask(serin.web, false, get("/")).unwrap().status == 200).then_some(())
    });
    assert!(a.requests() > 0);
}
