//! Every pair of protocols a client and a version may speak, with every kind of exchange: one Serin, four kinds of clients,
//! four kinds of versions.

use crate::support::{
    Serin,
    authority::Authority,
    count,
    http::{
        Asked, Body, Client, Connection, Server, Speaks, To, open_ended, pattern, pieces, request_to, whole,
    },
    wait_for,
};
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use std::{future::Future, sync::atomic::Ordering, time::Duration};

const LONG: Duration = Duration::from_secs(30);
const LARGE: usize = 2 << 20;

/// A kind of version: its service's name, which is also the host that clients ask for.
struct Version {
    name: &'static str,
    server: Server,
    speaks: &'static str,
}

impl Version {
    fn url(&self) -> String {
        let scheme = match self.name {
            "h1" => "http",
            "h2c" => "h2c",
            _ => "https",
        };
        format!("{scheme}://127.0.0.1:{}", self.server.port())
    }
}

fn versions(authority: &Authority) -> Vec<Version> {
    let issued = authority.issue(&["127.0.0.1"]);
    let version = |name, tls: Option<&[&str]>, http2| Version {
        name,
        server: Server::start(Speaks {
            tls: tls.map(|protocols| Authority::server(&issued, protocols, None)),
            http2,
            ..Speaks::default()
        }),
        speaks: if http2 { "HTTP/2.0" } else { "HTTP/1.1" },
    };
    vec![
        version("h1", None, false),
        version("h1-tls", Some(&["http/1.1"]), false),
        version("h2c", None, true),
        version("h2-tls", Some(&["h2", "http/1.1"]), true),
    ]
}

fn start(authority: &Authority, versions: &[Version]) -> Serin {
    let folder = tempfile::tempdir().unwrap();
    authority.issue(&["front.test"]).write(folder.path(), "front");
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    std::fs::write(folder.path().join("token"), "secret-token\n").unwrap();
    let services: Vec<String> = versions
        .iter()
        .map(|version| {
            format!(
                "  - {{name: {0}, match: [{{host: {0}}}], upstreamTls: {{ca: ca.pem}}, stable: {{version: v1, endpoints: [\"{1}\"]}}}}",
                version.name,
                version.url()
            )
        })
        .collect();
    let text = format!(
        "listeners:\n  - {{name: web, address: \"127.0.0.1:0\"}}\n  \
         - {{name: secure, address: \"127.0.0.1:0\", tls: {{certificate: front.pem, key: front.key}}}}\n\
         admin: {{address: \"127.0.0.1:0\", tokens: [{{name: test, role: admin, secretFile: token}}]}}\n\
         services:\n{}\n",
        services.join("\n")
    );
    std::fs::write(folder.path().join("serin.yaml"), text).unwrap();
    Serin::run_in(folder, &[])
}

fn clients(serin: &Serin, authority: &Authority) -> Vec<(&'static str, Client)> {
    let secure = serin.listener("secure");
    let tls = |protocol: &str, http2| Client {
        to: To::Tcp(secure),
        tls: Some((authority.client(&[protocol]), "front.test".to_owned())),
        http2,
        preamble: Vec::new(),
    };
    vec![
        ("h1", Client::plain(serin.web, false)),
        ("h1-tls", tls("http/1.1", false)),
        ("h2c", Client::plain(serin.web, true)),
        ("h2-tls", tls("h2", true)),
    ]
}

/// One whole exchange.
struct Exchange {
    name: &'static str,
    method: &'static str,
    path: &'static str,
    /// What is sent, and how.
    sends: Bytes,
    known: bool,
    trailers: bool,
    status: u16,
    gets: Bytes,
}

fn exchanges() -> Vec<Exchange> {
    let all = |name, method, path, sends: Bytes, known, gets: Bytes| Exchange {
        name,
        method,
        path,
        sends,
        known,
        trailers: false,
        status: 200,
        gets,
    };
    // What is still read after the answer is 64 KiB, and this client makes no sense of a connection closed before.
    let early = |name, known| Exchange {
        status: 403,
        ..all(
            name,
            "POST",
            "/early",
            pattern(50_000),
            known,
            Bytes::from_static(b"no"),
        )
    };
    let same = |name, path, length, known| all(name, "POST", path, pattern(length), known, pattern(length));
    vec![
        all("empty", "GET", "/size/0", Bytes::new(), true, Bytes::new()),
        same("empty both ways", "/echo", 0, true),
        same("small", "/echo", 100, true),
        same("large", "/echo", LARGE, true),
        all(
            "large answer",
            "GET",
            "/size/2097152",
            Bytes::new(),
            true,
            pattern(LARGE),
        ),
        all(
            "large answer of unknown length",
            "GET",
            "/chunked/300000",
            Bytes::new(),
            true,
            pattern(300_000),
        ),
        same("small of unknown length", "/mirror", 100, false),
        same("large of unknown length", "/mirror", LARGE, false),
        same("unknown length in, known out", "/echo", 70_000, false),
        same("known length in, unknown out", "/mirror", 70_000, true),
        Exchange {
            trailers: true,
            ..same("trailers both ways", "/mirror", 50_000, false)
        },
        Exchange {
            trailers: true,
            ..same("trailers and nothing before them", "/mirror", 0, false)
        },
        early("early answer", false),
        early("early answer to a known length", true),
    ]
}

fn sum() -> HeaderMap {
    HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())])
}

fn asks(host: &str, case: &str, method: &str, path: &str, body: Body) -> Request<Body> {
    let mut request = request_to(host, method, path, body);
    request.headers_mut().insert("x-case", case.parse().unwrap());
    request
}

impl Exchange {
    fn request(&self, host: &str, case: &str) -> Request<Body> {
        let body = if self.known {
            whole(self.sends.clone())
        } else {
            let cut = self.sends.chunks(10_000).map(|piece| self.sends.slice_ref(piece));
            pieces(cut.collect(), self.trailers.then(sum))
        };
        let mut request = asks(host, case, self.method, self.path, body);
        if self.trailers {
            request.headers_mut().insert("trailer", "x-sum".parse().unwrap());
        }
        request
    }

    /// Runs it on this connection; what does not hold. `known`: how often it has been run before.
    async fn run(&self, case: &str, known: usize, on: &mut Connection, version: &Version) -> Vec<String> {
        let answer = match on.send(self.request(version.name, case)).await {
            Ok(answer) => answer,
            Err(error) => return vec![error],
        };
        let mut broken = Vec::new();
        let mut holds = |what: &str, holds: bool| {
            if !holds {
                broken.push(format!("{what}: {} {:?}", answer.status, answer.headers));
            }
        };
        holds("status", answer.status == self.status);
        holds("body", answer.body == self.gets);
        holds("protocol", answer.header("x-saw-version") == version.speaks);
        holds(
            "trailers back",
            answer.trailers == if self.trailers { sum() } else { HeaderMap::new() },
        );
        match &version.server.seen.asked(case)[known..] {
            [asked] => {
                let read = self.path.starts_with("/echo") || self.path.starts_with("/mirror");
                holds("body there", !read || (asked.whole && asked.body == self.sends));
                holds("trailers there", asked.trailers == self.trailers.then(sum));
            }
            more => holds(&format!("seen {} times", more.len()), false),
        }
        broken
    }
}

async fn until<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let mut look = tokio::time::interval(Duration::from_millis(2));
    let found = async {
        loop {
            look.tick().await;
            if let Some(found) = holds() {
                return found;
            }
        }
    };
    let found = tokio::time::timeout(LONG, found).await;
    found.unwrap_or_else(|_| panic!("waited in vain for: {what}"))
}

/// Runs `exchange` until `stop` is over, and drops it.
async fn cut_off<T>(exchange: impl Future<Output = T>, stop: impl Future<Output = ()>) {
    tokio::select! {
        _ = exchange => panic!("it ended by itself"),
        () = stop => {}
    }
}

/// What happens on a connection.
enum Kind<'a> {
    Whole(&'a Exchange),
    /// The client leaves while it sends.
    Sending,
    /// The client leaves while it reads.
    Reading,
}

impl Kind<'_> {
    fn name(&self) -> &'static str {
        match self {
            Kind::Whole(exchange) => exchange.name,
            Kind::Sending => "leaving an upload",
            Kind::Reading => "leaving an answer",
        }
    }
}

/// Begins an upload and goes away in its middle. The upload would end when what is returned is dropped.
async fn leaves_while_sending(
    case: &str,
    on: &mut Connection,
    version: &Version,
) -> tokio::sync::mpsc::Sender<Bytes> {
    let (sender, body) = open_ended();
    sender.send(pattern(5_000)).await.unwrap();
    let sending = on.open(asks(version.name, case, "POST", "/echo", body));
    let arrived = |asked: &Asked| asked.body.len() == 5_000;
    cut_off(
        sending,
        until(case, || {
            version.server.seen.asked(case).iter().any(arrived).then_some(())
        }),
    )
    .await;
    sender
}

/// Reads the beginning of an answer and goes away.
async fn leaves_while_reading(case: &str, on: &mut Connection, version: &Version) {
    let request = asks(version.name, case, "GET", "/hang", whole(""));
    let mut answer = on.open(request).await.unwrap();
    let first = answer.frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "first", "{case}");
}

/// Requests by outcome: `ok`, `failed`, `canceled`, and those that their client left.
fn counted(serin: &Serin, service: &str) -> [u64; 4] {
    let text = serin.metrics();
    let count = |name, label, value| count(&text, name, &[("serin_service", service), (label, value)]);
    let outcome = |outcome| count("serin_version_outcomes_total", "outcome", outcome);
    let left = count("serin_http_requests_total", "status", "499");
    [outcome("ok"), outcome("failed"), outcome("canceled"), left]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_pair_of_protocols_carries_every_kind_of_exchange() {
    let authority = Authority::new("test");
    let versions = versions(&authority);
    let serin = start(&authority, &versions);
    let exchanges = exchanges();
    let (mut broken, mut incomplete) = (Vec::new(), 0);
    for (name, client) in clients(&serin, &authority) {
        for version in &versions {
            let pair = format!("{name} to {}", version.name);
            // Over HTTP/2 everything on one connection, which each exchange must leave as it was.
            let mut connection = client.connect().await.unwrap();
            let mut expected = counted(&serin, version.name);
            let seen = &version.server.seen;
            let whole = exchanges.iter().map(Kind::Whole);
            for kind in whole.chain([Kind::Sending, Kind::Reading, Kind::Whole(&exchanges[2])]) {
                let case = format!("{pair}, {}", kind.name());
                let (known, left) = (seen.asked(&case).len(), seen.canceled.load(Ordering::SeqCst));
                let (mut upload, mut leaves) = (None, true);
                match kind {
                    Kind::Whole(exchange) => {
                        let found = exchange.run(&case, known, &mut connection, version).await;
                        broken.extend(found.iter().map(|what| format!("{case}: {what}")));
                        (expected[0], leaves) = (expected[0] + 1, false);
                    }
                    Kind::Sending => {
                        upload = Some(leaves_while_sending(&case, &mut connection, version).await);
                        // Over HTTP/1.1 it cannot be told from a client that is wrong about its body's length.
                        incomplete += u64::from(!client.http2);
                        expected[3] += u64::from(client.http2);
                    }
                    Kind::Reading => {
                        leaves_while_reading(&case, &mut connection, version).await;
                        expected[3] += 1;
                    }
                }
                if !client.http2 {
                    connection = client.connect().await.unwrap();
                }
                if leaves {
                    expected[2] += 1;
                    until(&format!("{case}: the version to learn of it"), || {
                        (seen.canceled.load(Ordering::SeqCst) == left + 1).then_some(())
                    })
                    .await;
                    assert_eq!(seen.asked(&case).len(), 1, "{case}");
                }
                drop(upload);
            }
            let requests = |counts: [u64; 4]| counts[..3].iter().sum::<u64>();
            let found = wait_for(&format!("{pair}: all to be counted"), LONG, || {
                let now = counted(&serin, version.name);
                (requests(now) >= requests(expected)).then_some(now)
            });
            if found != expected {
                broken.push(format!("{pair}: counted {found:?}, not {expected:?}"));
            }
        }
    }
    assert!(broken.is_empty(), "{} do not hold:\n{broken:#?}", broken.len());
    assert!(serin.metric("serin_http_requests_in_flight", &[]) < 0.5);
    let rejected = |labels: &[_]| serin.count("serin_http_rejected_total", labels);
    assert_eq!(
        (rejected(&[("reason", "incomplete")]), rejected(&[])),
        (incomplete, incomplete)
    );
    assert!(serin.metric("serin_panics_total", &[]) < 0.5);
}
