//! Talking to a running Serin: over its local socket, or over HTTP(S) with a token.
//!
//! One connection for each request: a command makes a handful of them, and a long poll or an event stream has its own.
//! What goes wrong is said once, with the mend.

use super::{
    args::Target,
    exit::{Exit, Failure},
    tls::Tls,
};
use crate::{admin::Problem, config};
use bytes::Bytes;
use http::{HeaderName, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// The largest answer.
const LARGEST: usize = 32 * 1024 * 1024;
/// To reach Serin.
const CONNECT: Duration = Duration::from_secs(10);
/// For an answer, beyond what was asked to wait.
const ANSWER: Duration = Duration::from_secs(30);
/// How often a command is sent again when its answer was lost.
const ATTEMPTS: u32 = 3;

/// Where Serin is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Server {
    /// Its socket.
    Socket(PathBuf),
    /// Its address, without a slash at the end.
    Url(String),
}

/// A Serin to talk to.
#[derive(Debug, Clone)]
pub(super) struct Client {
    server: Server,
    token: Option<String>,
    /// For `https://`.
    tls: Option<Tls>,
}

/// What did not come back as an answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// Serin answered: no.
    Refused(Box<Problem>),
    /// There was nobody, or the line broke. Asking again may help.
    Broken(Failure),
}

impl From<NoAnswer> for Failure {
    fn from(error: NoAnswer) -> Failure {
        match error {
            NoAnswer::Refused(problem) => (*problem).into(),
            NoAnswer::Broken(failure) => failure,
        }
    }
}

/// One question.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    method: Method,
    path: String,
    body: Option<Bytes>,
    headers: Vec<(HeaderName, String)>,
    patience: Duration,
}

impl Ask {
    /// A read.
    pub(super) fn get(path: impl Into<String>) -> Ask {
        Ask {
            method: Method::GET,
            path: path.into(),
            body: None,
            headers: Vec::new(),
            patience: ANSWER,
        }
    }

    /// A verb with what it says.
    pub(super) fn send<T: Serialize>(
        method: Method,
        path: impl Into<String>,
        body: &T,
    ) -> Result<Ask, Failure> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Failure::new(Exit::Internal, format!("cannot write the request: {error}")))?;
        Ok(Ask {
            method,
            body: Some(body.into()),
            ..Ask::get(path)
        })
    }

    /// With this field.
    #[must_use]
    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Ask {
        self.headers.push((HeaderName::from_static(name), value.into()));
        self
    }

    /// Of which the answer may take this much longer.
    #[must_use]
    pub(super) fn held_for(mut self, long: Duration) -> Ask {
        self.patience = ANSWER + long;
        self
    }
}

impl Client {
    /// The Serin that flags and environment name.
    pub(super) fn of(target: &Target) -> Result<Client, Failure> {
        let token = match &target.token_file {
            Some(file) => Some(read_token(file)?),
            None => None,
        };
        let server = server(target, env::var_os("SERIN_SOCKET").map(PathBuf::from))?;
        let is_https = matches!(&server, Server::Url(url) if url.starts_with("https:"));
        // The variable may be set for another Serin; the flag is meant for this one.
        let named = env::var_os("SERIN_CA_FILE")
            .is_none_or(|set| target.ca_file.as_ref().is_none_or(|file| **file != *set));
        if let (false, true, Some(file)) = (is_https, named, &target.ca_file) {
            let (what, mend) = match &server {
                Server::Url(url) => (
                    format!(
                        "--ca-file {} is of no use: {url} is not HTTPS, and nobody shows a certificate there",
                        file.display()
                    ),
                    "write --server https://… if `admin.tls` is set there, or leave --ca-file out".to_owned(),
                ),
                Server::Socket(path) => (
                    format!(
                        "--ca-file {} is of no use: Serin is asked at its local socket {}",
                        file.display(),
                        path.display()
                    ),
                    "add --server https://…, or leave --ca-file out".to_owned(),
                ),
            };
            return Err(Failure::new(Exit::Usage, what).hint(mend));
        }
        let tls = is_https
            .then(|| Tls::new(target.ca_file.as_deref()))
            .transpose()?;
        Ok(Client { server, token, tls })
    }

    /// Where a person can look at it, for links.
    pub(super) fn url(&self) -> String {
        match &self.server {
            Server::Url(url) => url.clone(),
            Server::Socket(path) => format!("unix:{}", path.display()),
        }
    }

    /// Asks and reads the answer.
    pub(super) async fn ask<T: DeserializeOwned>(&self, ask: &Ask) -> Result<T, NoAnswer> {
        let whole = async {
            let response = self.open(ask).await?;
            let body = Limited::new(response.into_body(), LARGEST).collect().await;
            body.map(http_body_util::Collected::to_bytes)
                .map_err(|error| NoAnswer::Broken(self.broke(&error.to_string())))
        };
        let bytes = timeout(ask.patience, whole)
            .await
            .map_err(|_| NoAnswer::Broken(self.broke("no answer in time")))??;
        serde_json::from_slice(&bytes).map_err(|error| {
            NoAnswer::Broken(
                Failure::new(
                    Exit::Internal,
                    format!(
                        "{} answered what this version does not understand: {error}",
                        self.url()
                    ),
                )
                .hint("use a `serin` of the same version as the server (`serin version`)"),
            )
        })
    }

    /// Sends a command; again when its answer was lost, which is safe because of its idempotency key.
    pub(super) async fn command<T: DeserializeOwned>(&self, ask: &Ask) -> Result<T, Failure> {
        let mut attempt = 1;
        loop {
            match self.ask(ask).await {
                Err(NoAnswer::Broken(_)) if attempt < ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                other => return other.map_err(Failure::from),
            }
        }
    }

    /// Asks and hands out the answer while it is still coming.
    pub(super) async fn open(&self, ask: &Ask) -> Result<Response<Incoming>, NoAnswer> {
        let response = self.exchange(ask).await.map_err(NoAnswer::Broken)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        let bytes = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => Err(NoAnswer::Refused(Box::new(problem))),
            Err(_) => Err(NoAnswer::Broken(
                Failure::new(
                    Exit::Internal,
                    format!("{} answered {status}, not as Serin does", self.url()),
                )
                .hint("check the address: it must be `admin.address`, not a listener"),
            )),
        }
    }

    async fn exchange(&self, ask: &Ask) -> Result<Response<Incoming>, Failure> {
        let (uri, host) = self.place(&ask.path)?;
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, host)
            .header(header::USER_AGENT, concat!("serin/", env!("CARGO_PKG_VERSION")));
        if ask.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(ask.body.clone().unwrap_or_default()))
            .map_err(|error| Failure::new(Exit::Usage, format!("this cannot be sent: {error}")))?;
        match &self.server {
            Server::Socket(path) => {
                let stream = timeout(CONNECT, UnixStream::connect(path)).await;
                let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                self.send(
                    TokioIo::new(stream.map_err(|error| no_socket(path, &error))?),
                    request,
                )
                .await
            }
            Server::Url(url) => {
                let stream = self.reach(&uri).await?;
                let Some(tls) = &self.tls else {
                    return self.send(TokioIo::new(stream), request).await;
                };
                let secured = timeout(CONNECT, tls.secure(stream, url, uri.host().unwrap_or_default())).await;
                let secured = secured.unwrap_or_else(|_| Err(self.unreachable("no TLS within 10s")))?;
                self.send(TokioIo::new(secured), request).await
            }
        }
    }

    /// A connection to the address that `uri` names.
    async fn reach(&self, uri: &Uri) -> Result<TcpStream, Failure> {
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri
            .port_u16()
            .unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let stream = timeout(CONNECT, TcpStream::connect((host, port))).await;
        let stream = stream.unwrap_or_else(|_| Err(io::Error::other("no connection within 10s")));
        stream.map_err(|error| self.unreachable(&error.to_string()))
    }

    async fn send<S>(&self, stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure>
    where
        S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let broke = |error: hyper::Error| match &self.server {
            // What a TLS server answers to HTTP is a TLS alert.
            Server::Url(url) if error.is_parse() && self.tls.is_none() => Failure::new(
                Exit::Internal,
                format!("what answers at {url} does not speak plain HTTP"),
            )
            .hint(format!(
                "write --server {} if `admin.tls` is set there",
                url.replacen("http:", "https:", 1)
            )),
            Server::Url(_) | Server::Socket(_) => self.broke(&reasons(&error)),
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
            .await
            .map_err(broke)?;
        // Ends with the answer; what goes wrong on the way is what the answer says.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(broke)
    }

    /// The whole address of a path, and the `Host` to name.
    fn place(&self, path: &str) -> Result<(Uri, String), Failure> {
        let (base, host) = match &self.server {
            Server::Socket(_) => ("http://localhost", Some("localhost".to_owned())),
            Server::Url(url) => (url.as_str(), None),
        };
        let bad = || {
            Failure::new(Exit::Usage, format!("`{base}` is not an address of Serin"))
                .hint("write it as http://127.0.0.1:9900 (--server or SERIN_SERVER)")
        };
        let uri: Uri = format!("{base}{path}").parse().map_err(|_| bad())?;
        let named = uri.authority().map(|authority| authority.as_str().to_owned());
        let host = host.or(named).ok_or_else(bad)?;
        Ok((uri, host))
    }

    fn unreachable(&self, why: &str) -> Failure {
        Failure::new(
            Exit::Internal,
            format!("cannot reach Serin at {}: {why}", self.url()),
        )
        .hint("is `serin serve` running there? --server or SERIN_SERVER names another address")
    }

    fn broke(&self, why: &str) -> Failure {
        Failure::new(
            Exit::Internal,
            format!("the connection to {} broke: {why}", self.url()),
        )
        .hint("the rollout goes on whatever happens here; `serin get` shows where it stands")
    }
}

/// An error and what it came from, in one line.
pub(super) fn reasons(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = inner.source();
    }
    text
}

fn read_token(file: &Path) -> Result<String, Failure> {
    let text = fs::read_to_string(file).map_err(|error| {
        Failure::new(
            Exit::Usage,
            format!("cannot read the token file {}: {error}", file.display()),
        )
        .hint("--token-file and SERIN_TOKEN_FILE name a file that holds the token and nothing else")
    })?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::new(
            Exit::Usage,
            format!("the token file {} does not hold a token", file.display()),
        )
        .hint("it holds the token on one line and nothing else"));
    }
    Ok(token.to_owned())
}

/// `--server`, else the socket of `-c FILE`, else `SERIN_SOCKET`, else `./serin.sock`.
fn server(target: &Target, socket: Option<PathBuf>) -> Result<Server, Failure> {
    if let Some(url) = &target.server {
        let url = url.trim_end_matches('/');
        if let Some(path) = url.strip_prefix("unix:") {
            return Ok(Server::Socket(PathBuf::from(path)));
        }
        let url = if url.contains("://") {
            url.to_owned()
        } else {
            format!("http://{url}")
        };
        let scheme = url.split_once("://").map(|(scheme, _)| scheme);
        if !matches!(scheme, Some("http" | "https")) {
            return Err(
                Failure::new(Exit::Usage, format!("`{url}` is not an address of Serin"))
                    .hint("write it as http://127.0.0.1:9900 or unix:/run/serin.sock"),
            );
        }
        return Ok(Server::Url(url));
    }
    if let Some(file) = &target.config {
        let loaded = config::load(file).map_err(|problems| {
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Failure::new(
                Exit::Usage,
                format!(
                    "cannot find the socket in {}:\n{}",
                    file.display(),
                    all.join("\n")
                ),
            )
            .hint("mend the file (`serin check` says the same), or name the socket by SERIN_SOCKET")
        })?;
        return Ok(Server::Socket(loaded.config.admin.socket.clone()));
    }
    Ok(Server::Socket(
        socket.unwrap_or_else(|| PathBuf::from("serin.sock")),
    ))
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the other kinds have no advice of their own"
)]
fn no_socket(path: &Path, error: &io::Error) -> Failure {
    let place = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => Failure::new(Exit::Internal, format!("there is no socket {place}")).hint(
            "is `serin serve` running? Name its configuration with -c FILE, its socket with SERIN_SOCKET, or its address with --server",
        ),
        io::ErrorKind::PermissionDenied => {
            Failure::new(Exit::Unauthorised, format!("this user may not use the socket {place}")).hint(
                "run this as the user that Serin runs as, or use --server URL with --token-file FILE",
            )
        }
        io::ErrorKind::ConnectionRefused => {
            Failure::new(Exit::Internal, format!("nobody answers at the socket {place}"))
                .hint("Serin has ended without removing it: start `serin serve` again")
        }
        _ => Failure::new(Exit::Internal, format!("cannot use the socket {place}: {error}"))
            .hint("--server URL goes another way"),
    }
}

/// Writes a path segment so that it stays one.
pub(super) fn segment(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(server: Option<&str>) -> Target {
        Target {
            server: server.map(str::to_owned),
            ..Target::default()
        }
    }

    #[test]
    fn an_address_is_taken_as_people_write_it() {
        for (said, meant) in [
            (
                "http://127.0.0.1:9900/",
                Server::Url("http://127.0.0.1:9900".to_owned()),
            ),
            ("127.0.0.1:9900", Server::Url("http://127.0.0.1:9900".to_owned())),
            (
                "https://serin.example/x",
                Server::Url("https://serin.example/x".to_owned()),
            ),
            ("unix:/run/serin.sock", Server::Socket("/run/serin.sock".into())),
        ] {
            assert_eq!(server(&target(Some(said)), None).unwrap(), meant);
        }
        assert_eq!(
            server(&target(Some("ftp://x")), None).unwrap_err().exit,
            Exit::Usage
        );
    }

    #[test]
    fn without_an_address_the_local_socket_is_used() {
        assert_eq!(
            server(&target(None), None).unwrap(),
            Server::Socket("serin.sock".into())
        );
        assert_eq!(
            server(&target(None), Some("/x".into())).unwrap(),
            Server::Socket("/x".into())
        );
    }

    #[test]
    fn each_trouble_with_the_socket_has_its_own_words_and_mend() {
        let said = |kind| no_socket(Path::new("s"), &io::Error::from(kind));
        assert!(
            said(io::ErrorKind::NotFound)
                .message
                .contains("there is no socket")
        );
        assert!(
            said(io::ErrorKind::ConnectionRefused)
                .message
                .contains("nobody answers")
        );
        assert_eq!(said(io::ErrorKind::PermissionDenied).exit, Exit::Unauthorised);
        assert!(said(io::ErrorKind::NotFound).hint.is_some());
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_the_address_and_the_mend() {
        // Bound and dropped: nobody listens there.
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let client = Client {
            server: Server::Url(format!("http://{free}")),
            token: None,
            tls: None,
        };
        let failure: Failure = match client.ask::<serde_json::Value>(&Ask::get("/")).await {
            Err(error) => error.into(),
            Ok(_) => panic!("somebody answered"),
        };
        assert_eq!(failure.exit, Exit::Internal);
        assert!(failure.message.contains(&free.to_string()), "{failure}");
        assert!(failure.message.to_lowercase().contains("refused"), "{failure}");
        assert!(failure.to_string().contains("serin serve"), "{failure}");
    }

    #[test]
    fn a_token_file_holds_a_token_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t");
        fs::write(&file, "abc\n").unwrap();
        assert_eq!(read_token(&file).unwrap(), "abc");
        for bad in ["", "\n", "a b", "a\nb"] {
            fs::write(&file, bad).unwrap();
            assert_eq!(read_token(&file).unwrap_err().exit, Exit::Usage);
        }
        assert!(
            read_token(&folder.path().join("none"))
                .unwrap_err()
                .hint
                .is_some()
        );
    }

    #[test]
    fn a_name_stays_one_segment() {
        assert_eq!(segment("a/../b"), "a%2F%2E%2E%2Fb");
    }
}
