//! Asking for a name's addresses: the hosts file, then the servers, as the system's configuration or the operator says.
//!
//! Our own small client, since the system's call gives no time to live, and a whole resolver library is forty crates for
//! what two kinds of record need.

use super::message::{self, Answer, Family};
use crate::config::Dns;
use rand::RngExt;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

/// Answers over UDP are smaller; we ask for no extensions.
const LARGEST_DATAGRAM: usize = 4096;
/// How long what stands in the hosts file is believed, in seconds.
const HOSTS_TTL: u32 = 5;

/// A name's addresses, and for how many seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// None of a kind that could not be asked for: what was known of it before still holds.
    pub(super) v4: Option<Vec<IpAddr>>,
    pub(super) v6: Option<Vec<IpAddr>>,
    pub(super) ttl: u32,
}

/// Who is asked, and how.
#[derive(Debug, Default)]
struct System {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
}

/// The addresses of `host`; the error is for people.
pub(super) async fn look_up(host: &str, dns: &Dns) -> Result<Found, String> {
    let system = if dns.servers.is_empty() {
        if let Some(found) = from_hosts(host).await {
            return Ok(found);
        }
        let text = tokio::fs::read_to_string("/etc/resolv.conf").await;
        resolv_conf(&text.map_err(|error| format!("read /etc/resolv.conf: {error}"))?)
    } else {
        System {
            servers: dns.servers.clone(),
            ..System::default()
        }
    };
    let mut trouble = None;
    for name in candidates(host, &system) {
        match both(&name, &system, dns.timeout.as_duration()).await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(error) => trouble = Some(error),
        }
    }
    Err(trouble.unwrap_or_else(|| "there is no such name, or it has no address".to_owned()))
}

/// The names to ask for, in turn: a name with few dots is first looked for in the search domains.
fn candidates(host: &str, system: &System) -> Vec<String> {
    if host.ends_with('.') {
        return vec![host.to_owned()];
    }
    let mut names: Vec<String> = system
        .search
        .iter()
        .map(|domain| format!("{host}.{domain}"))
        .collect();
    if host.matches('.').count() >= system.ndots {
        names.insert(0, host.to_owned());
    } else {
        names.push(host.to_owned());
    }
    names
}

/// Both kinds at once; none when the name has neither.
async fn both(name: &str, system: &System, timeout: Duration) -> Result<Option<Found>, String> {
    let reachable = has_ipv6().await;
    let six = async {
        if reachable {
            ask_all(name, Family::V6, system, timeout).await
        } else {
            Ok((Vec::new(), u32::MAX))
        }
    };
    let (four, mut six) = tokio::join!(ask_all(name, Family::V4, system, timeout), six);
    if !reachable && matches!(&four, Ok((none, _)) if none.is_empty()) {
        // Better one that leads nowhere from here, and says so, than none; and it may be this machine itself.
        six = ask_all(name, Family::V6, system, timeout).await;
    }
    match (four, six) {
        (Err(error), Err(_)) => Err(error),
        (Ok((four, a)), Ok((six, b))) if four.is_empty() && six.is_empty() => {
            let _ = (a, b);
            Ok(None)
        }
        (four, six) => {
            let ttl =
                |found: &Result<(Vec<IpAddr>, u32), String>| found.as_ref().map_or(u32::MAX, |found| found.1);
            let ttl = ttl(&four).min(ttl(&six));
            let (v4, v6) = (four.map(|found| found.0), six.map(|found| found.0));
            match (&v4, &v6) {
                // One kind failed and the other is empty: nothing can be said.
                (Err(error), Ok(none)) | (Ok(none), Err(error)) if none.is_empty() => Err(error.clone()),
                (_, _) => Ok(Some(Found {
                    v4: v4.ok(),
                    v6: v6.ok(),
                    ttl,
                })),
            }
        }
    }
}

/// Whether anything outside could be reached by IPv6: asks the routing table, sends nothing.
async fn has_ipv6() -> bool {
    match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await {
        Ok(socket) => socket
            .connect((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 53))
            .await
            .is_ok(),
        Err(_) => false,
    }
}

/// Asks each server in turn until one knows.
async fn ask_all(
    name: &str,
    family: Family,
    system: &System,
    timeout: Duration,
) -> Result<(Vec<IpAddr>, u32), String> {
    let mut trouble = "no DNS server is configured".to_owned();
    // Twice: datagrams get lost.
    for server in system.servers.iter().chain(&system.servers) {
        let asked = tokio::time::timeout(timeout, ask(name, family, *server)).await;
        match asked {
            Ok(Ok(Answer::Addresses(addresses, ttl))) => return Ok((addresses, ttl)),
            Ok(Ok(Answer::Empty | Answer::NoSuchName)) => return Ok((Vec::new(), u32::MAX)),
            Ok(Ok(Answer::Failed(code))) => trouble = format!("{server} answered with code {code}"),
            Ok(Ok(Answer::Truncated)) => trouble = format!("{server} cut its answer short"),
            Ok(Err(error)) => trouble = format!("ask {server}: {error}"),
            Err(_) => trouble = format!("{server} did not answer within {timeout:?}"),
        }
    }
    Err(trouble)
}

async fn ask(name: &str, family: Family, server: SocketAddr) -> io::Result<Answer> {
    let id: u16 = rand::rng().random();
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "this is not a name");
    let question = message::question(id, name, family).ok_or_else(invalid)?;
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    // A port of its own for each question, and connected: others cannot easily answer in the server's place.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&question).await?;
    let mut bytes = vec![0; LARGEST_DATAGRAM];
    loop {
        let length = socket.recv(&mut bytes).await?;
        match message::answer(&bytes[..length], &question, family) {
            Some(Answer::Truncated) => return ask_over_tcp(&question, family, server).await,
            Some(answer) => return Ok(answer),
            // Not for us; the time limit is the caller's.
            None => {}
        }
    }
}

async fn ask_over_tcp(question: &[u8], family: Family, server: SocketAddr) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).unwrap_or(u16::MAX);
    stream
        .write_all(&[&length.to_be_bytes(), question].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    message::answer(&bytes, question, family)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "what came back is not the answer"))
}

async fn from_hosts(host: &str) -> Option<Found> {
    let text = tokio::fs::read_to_string("/etc/hosts").await.unwrap_or_default();
    let mut addresses = hosts(&text, host);
    if addresses.is_empty() && host == "localhost" {
        addresses = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    if addresses.is_empty() {
        return None;
    }
    let (v4, v6) = addresses.into_iter().partition(IpAddr::is_ipv4);
    Some(Found {
        v4: Some(v4),
        v6: Some(v6),
        ttl: HOSTS_TTL,
    })
}

/// The addresses that a hosts file gives a name.
fn hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or(""));
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words
                .any(|word| word.eq_ignore_ascii_case(host))
                .then_some(address)
        })
        .collect()
}

/// Servers, search domains and `ndots` of a resolv.conf; what else it says does not concern us.
fn resolv_conf(text: &str) -> System {
    let mut system = System {
        ndots: 1,
        ..System::default()
    };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                system.servers.extend(address.map(|ip| SocketAddr::new(ip, 53)));
            }
            Some("search" | "domain") => {
                let domain = |word: &str| word.trim_end_matches('.').to_owned();
                system.search = words.map(domain).filter(|domain| !domain.is_empty()).collect();
            }
            Some("options") => {
                let ndots = words.find_map(|word| word.strip_prefix("ndots:"));
                system.ndots = ndots.and_then(|n| n.parse().ok()).unwrap_or(system.ndots);
            }
            Some(_) | None => {}
        }
    }
    if system.servers.is_empty() {
        system
            .servers
            .push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 53));
    }
    system
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolv_conf_is_read_as_the_system_reads_it() {
        let system = resolv_conf(
            "# made by hand\nnameserver 10.0.0.53\nnameserver ::1\nsearch shop.svc.cluster.local cluster.local.\noptions timeout:1 ndots:5\n",
        );
        assert_eq!(
            system.servers,
            ["10.0.0.53:53".parse().unwrap(), "[::1]:53".parse().unwrap()]
        );
        assert_eq!(
            candidates("app.shop", &system),
            [
                "app.shop.shop.svc.cluster.local",
                "app.shop.cluster.local",
                "app.shop"
            ]
        );
        assert_eq!(candidates("app.shop.", &system), ["app.shop."]);
        let plain = resolv_conf("search example.com");
        assert_eq!(
            candidates("app.shop", &plain),
            ["app.shop", "app.shop.example.com"]
        );
        assert_eq!(plain.servers, ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn a_hosts_file_names_addresses() {
        let text =
            "127.0.0.1 localhost\n10.1.2.3\tapp.Internal app # 10.9.9.9 app\n::1 localhost ip6-localhost\n";
        assert_eq!(hosts(text, "app"), ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            hosts(text, "app.internal."),
            ["10.1.2.3".parse::<IpAddr>().unwrap()]
        );
        assert_eq!(hosts(text, "localhost").len(), 2);
        assert!(hosts(text, "nobody").is_empty());
    }
}
