//! Three readers of HTTP/1.1 behind Serin, and what each made of the bytes it got, by the client's address.
//!
//! nginx is real: it reads what Serin sends and passes it on to a recorder of its own.

use crate::support::{
    raw::{self, Next, RawUpstream},
    wait_for,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

/// A request that came whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) host: String,
    pub(super) body: Vec<u8>,
    pub(super) malformed: Option<String>,
}

impl Seen {
    pub(super) fn digest(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// What nginx will not have although others do, and says so: methods of other characters than its own, `*` as a target.
    pub(super) fn nginx_declines(&self) -> bool {
        let known = |b: u8| b.is_ascii_uppercase() || b == b'_' || b == b'-';
        !self.method.bytes().all(known) || self.target == "*"
    }
}

type Record = Arc<Mutex<HashMap<Ipv4Addr, Vec<Seen>>>>;

fn note(record: &Record, from: Option<&str>, seen: Seen) -> String {
    let digest = seen.digest();
    // Serin says who asked; a request without that is nobody's, and found at the end.
    let from = from
        .and_then(|from| from.parse().ok())
        .unwrap_or(Ipv4Addr::UNSPECIFIED);
    record.lock().unwrap().entry(from).or_default().push(seen);
    digest
}

/// All three.
pub(super) struct Backends {
    records: [Record; 3],
    strict: RawUpstream,
    hyper: Hyper,
    nginx: Nginx,
}

impl Backends {
    pub(super) fn start() -> Backends {
        let records: [Record; 3] = Default::default();
        Backends {
            strict: strict(&records[0]),
            hyper: Hyper::start(Arc::clone(&records[1])),
            nginx: Nginx::start(strict(&records[2])),
            records,
        }
    }

    pub(super) fn urls(&self) -> [String; 3] {
        [
            self.strict.url(),
            format!("http://{}", self.hyper.address),
            self.nginx.url(),
        ]
    }

    /// What each has seen of a client, once it is at least as much as was answered.
    pub(super) fn seen(&self, from: Ipv4Addr, answered: [usize; 3]) -> [Vec<Seen>; 3] {
        let mut answered = answered.into_iter();
        self.records.each_ref().map(|record| {
            let expected = answered.next().unwrap();
            wait_for("answered requests to have been seen", super::LONG, || {
                let mut record = record.lock().unwrap();
                let found = record.get(&from).map_or(0, Vec::len);
                (found >= expected).then(|| record.remove(&from).unwrap_or_default())
            })
        })
    }

    /// Requests that nobody has asked about.
    pub(super) fn left(&self) -> Vec<String> {
        let left = self
            .records
            .iter()
            .flat_map(|record| record.lock().unwrap().clone());
        left.map(|(from, seen)| format!("{from}: {seen:?}")).collect()
    }
}

/// Every byte at its word.
fn strict(record: &Record) -> RawUpstream {
    let record = Arc::clone(record);
    RawUpstream::start(move |seen: &raw::Seen, stream| {
        if !seen.whole && seen.malformed.is_none() {
            if seen.has("expect") {
                let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            return Next::Body;
        }
        let from = seen.all("x-forwarded-for").concat();
        let taken = Seen {
            method: seen.method().to_owned(),
            target: seen.target().to_owned(),
            host: seen.all("host").join("|"),
            body: seen.body.clone(),
            malformed: seen.malformed.clone(),
        };
        let method = taken.method.clone();
        let digest = note(&record, Some(&from), taken);
        let body = if method == "HEAD" { "" } else { "ok" };
        let head = format!(
            "HTTP/1.1 200 OK\r\nx-method: {method}\r\nx-digest: {digest}\r\ncontent-length: 2\r\n\r\n{body}"
        );
        let _ = stream.write_all(head.as_bytes());
        Next::Keep
    })
}

/// What Rust services are made of.
struct Hyper {
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Hyper {
    fn start(record: Record) -> Hyper {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (told, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                told.send(listener.local_addr().unwrap()).unwrap();
                let serving = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        let record = Arc::clone(&record);
                        let service = service_fn(move |request| answer(Arc::clone(&record), request));
                        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
                    }
                };
                tokio::select! { () = serving => {} _ = stopped => {} }
            });
        });
        Hyper {
            address: address.recv().unwrap(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

/// Answers a request that has come whole; of another one there is nothing to say.
async fn answer(
    record: Record,
    request: hyper::Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes().to_vec();
    let field = |name: &str| {
        let values = parts.headers.get_all(name).iter();
        values
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect::<Vec<_>>()
            .join("|")
    };
    let seen = Seen {
        method: parts.method.to_string(),
        target: parts.uri.to_string(),
        host: field("host"),
        body,
        malformed: None,
    };
    let digest = note(&record, Some(&field("x-forwarded-for")), seen);
    let answer = Response::builder()
        .header("x-method", parts.method.as_str())
        .header("x-digest", digest);
    Ok(answer.body(Full::from("ok")).unwrap())
}

impl Drop for Hyper {
    fn drop(&mut self) {
        let _: Option<Result<(), ()>> = self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// nginx, and the recorder behind it.
struct Nginx {
    folder: tempfile::TempDir,
    child: Child,
    _behind: RawUpstream,
}

impl Nginx {
    fn start(behind: RawUpstream) -> Nginx {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {at}/{name};\n"))
            .concat();
        let configuration = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log info;
            events {{ worker_connections 4096; }}
            http {{
              access_log off; {temporary}
              keepalive_timeout 1h; keepalive_requests 1000000000; client_max_body_size 0;
              ignore_invalid_headers off; underscores_in_headers on; merge_slashes off;
              upstream behind {{ server {}; keepalive 64; keepalive_requests 1000000000; }}
              server {{
                listen unix:{at}/socket;
                location / {{
                  proxy_pass http://behind; proxy_http_version 1.1;
                  proxy_set_header Host $http_host; proxy_set_header Connection \"\";
                }}
              }}
            }}",
            behind.address
        );
        std::fs::write(folder.path().join("nginx.conf"), configuration).unwrap();
        let program = if Path::new("/usr/sbin/nginx").exists() {
            "/usr/sbin/nginx"
        } else {
            "nginx"
        };
        let child = Command::new(program)
            .arg("-c")
            .arg(folder.path().join("nginx.conf"))
            .arg("-e")
            .arg(folder.path().join("error.log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx is installed (tests/run does)");
        let mut nginx = Nginx {
            folder,
            child,
            _behind: behind,
        };
        let socket = nginx.folder.path().join("socket");
        wait_for("nginx to listen", super::LONG, || {
            let ended = nginx.child.try_wait().unwrap();
            let log = || std::fs::read_to_string(nginx.folder.path().join("error.log")).unwrap_or_default();
            assert!(ended.is_none(), "nginx ended: {}", log());
            std::os::unix::net::UnixStream::connect(&socket).ok()
        });
        nginx
    }

    fn url(&self) -> String {
        format!("unix:{}/socket", self.folder.path().display())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
