//! What every end-to-end test needs: a running Serin of its own, services to put it in front of, a client that counts.
//!
//! Everything listens on free loopback ports in a folder of its own and ends with the value that started it, also when a
//! test panics. Nothing sleeps: waiting is for a condition, bounded, and says what it waited for.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "each test binary uses its own part of this, and a helper that fails shall fail the test"
)]

pub mod answers;
pub mod authority;
pub mod client;
pub mod dns;
pub mod group;
pub mod h2;
pub mod http;
mod huffman;
pub mod load;
pub mod network;
pub mod pair;
pub mod prometheus;
pub mod python;
pub mod raw;
pub mod recorder;
pub mod tasks;
pub mod turns;
pub mod upstream;

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

/// One instance of the built binary.
pub struct Serin {
    pub folder: tempfile::TempDir,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    pub web: SocketAddr,
    pub admin: SocketAddr,
}

/// What stands before the services in every test's configuration: free ports, a token for TCP.
pub const HEAD: &str = "
listeners: [{name: web, address: \"127.0.0.1:0\"}]
admin: {address: \"127.0.0.1:0\", tokens: [{name: test, role: admin, secretFile: token}]}
";

/// The binary that is tested: the one just built, or another one that `SERIN_BIN` names, as it is shipped for example.
pub fn binary() -> &'static str {
    static BINARY: LazyLock<String> = LazyLock::new(|| {
        std::env::var("SERIN_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_serin").to_owned())
    });
    &BINARY
}

#[allow(clippy::disallowed_methods, reason = "bounds a wait in a test")]
pub fn now() -> Instant {
    Instant::now()
}

/// How much of something: the short form of `tests/run`, or the full one of `benches/faults`.
pub fn full_form(short: u64, full: u64) -> u64 {
    if std::env::var_os("SERIN_FULL").is_some() {
        full
    } else {
        short
    }
}

/// A figure for whoever runs the full form.
pub fn say(figure: &str) {
    eprintln!("figure: {figure}");
}

/// Polls until `holds` gives a value; panics with `what` after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut holds: impl FnMut() -> Option<T>) -> T {
    let end = now() + limit;
    loop {
        if let Some(value) = holds() {
            return value;
        }
        assert!(now() < end, "waited {limit:?} for: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

impl Serin {
    /// Starts with [`HEAD`] and these services.
    pub fn start(services: &str) -> Serin {
        Serin::start_with(&format!("{HEAD}{services}"))
    }

    /// Starts with this configuration.
    pub fn start_with(configuration: &str) -> Serin {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("serin.yaml"), configuration).unwrap();
        std::fs::write(folder.path().join("token"), "secret-token\n").unwrap();
        Serin::run_in(folder, &[])
    }

    /// Starts with this configuration through a program that prepares its way: `prlimit …`.
    pub fn start_by(starter: &[&str], configuration: &str) -> Serin {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("serin.yaml"), configuration).unwrap();
        std::fs::write(folder.path().join("token"), "secret-token\n").unwrap();
        Serin::run_by(starter, folder, &[], |_| {})
    }

    /// Starts in a folder that has a configuration.
    pub fn run_in(folder: tempfile::TempDir, arguments: &[&str]) -> Serin {
        Serin::run_and(folder, arguments, |_| {})
    }

    /// The same, and does something to the folder while it starts.
    pub fn run_and(folder: tempfile::TempDir, arguments: &[&str], meanwhile: impl FnOnce(&Path)) -> Serin {
        Serin::run_by(&[], folder, arguments, meanwhile)
    }

    fn run_by(
        starter: &[&str],
        folder: tempfile::TempDir,
        arguments: &[&str],
        meanwhile: impl FnOnce(&Path),
    ) -> Serin {
        let (child, log) = spawn_by(starter, folder.path(), arguments);
        meanwhile(folder.path());
        let mut serin = Serin {
            folder,
            child,
            log,
            web: unset(),
            admin: unset(),
        };
        serin.find_addresses();
        serin
    }

    fn find_addresses(&mut self) {
        let child = &mut self.child;
        let log = &self.log;
        wait_for("`ready` in the log", Duration::from_secs(20), || {
            let lines = log.lock().unwrap();
            if lines
                .iter()
                .any(|line| line.ends_with(" ready") || line.contains(" ready "))
            {
                return Some(());
            }
            if let Some(status) = child.try_wait().unwrap() {
                panic!("serve ended with {status}:\n{}", lines.join("\n"));
            }
            None
        });
        (self.web, self.admin) = (self.listener("web"), self.address("admin at "));
    }

    /// Where a listener is.
    pub fn listener(&self, name: &str) -> SocketAddr {
        self.address(&format!("listener `{name}` at "))
    }

    fn address(&self, mark: &str) -> SocketAddr {
        let lines = self.log.lock().unwrap();
        let line = lines.iter().find(|line| line.contains(mark)).unwrap();
        let rest = &line[line.find("://").unwrap() + 3..];
        rest.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Kills it without warning and starts it again on the same files.
    pub fn crash_and_restart(self) -> Serin {
        self.crash_then(|_| {})
    }

    /// Kills it without warning, does something to its folder, and starts it again.
    pub fn crash_then(self, meanwhile: impl FnOnce(&Path)) -> Serin {
        let mut this = self;
        this.child.kill().unwrap();
        this.child.wait().unwrap();
        meanwhile(this.folder.path());
        // Listening ports are chosen anew.
        let (child, log) = spawn(this.folder.path(), &[]);
        (this.child, this.log) = (child, log);
        this.find_addresses();
        this
    }

    /// Stops it as an operator does, and gives its folder back.
    pub fn stop(mut self) -> tempfile::TempDir {
        self.signal("TERM");
        assert_eq!(self.wait_end(Duration::from_secs(30)), 0, "{}", self.log());
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }

    /// Sends a signal by its name: TERM, HUP, INT.
    pub fn signal(&self, name: &str) {
        let done = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.child.id().to_string())
            .status()
            .unwrap();
        assert!(done.success());
    }

    /// Waits for the process to end by itself; its exit code.
    pub fn wait_end(&mut self, limit: Duration) -> i32 {
        let child = &mut self.child;
        wait_for("the process to end", limit, || child.try_wait().unwrap())
            .code()
            .unwrap_or(-1)
    }

    /// Runs a verb of the command line against it.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        Command::new(binary())
            .args(arguments)
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    /// Runs a verb; its exit code, standard output and standard error.
    pub fn run(&self, line: &str) -> (i32, String, String) {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = self.cli(&arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code().unwrap_or(-1),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    /// Begins a verb that will take a while.
    pub fn begin(&self, line: &str) -> Verb {
        let child = Command::new(binary())
            .args(line.split_whitespace())
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Verb(Some(child))
    }

    /// The status of a service as the API gives it.
    pub fn status(&self, service: &str) -> serde_json::Value {
        let (status, body) = get(self.admin, &format!("/v1/services/{service}"));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Puts another configuration in the place of the one it serves, at once as an editor or `mv` does.
    pub fn rewrite(&self, configuration: &str) {
        std::fs::write(self.file("serin.yaml.new"), configuration).unwrap();
        std::fs::rename(self.file("serin.yaml.new"), self.file("serin.yaml")).unwrap();
    }

    /// A call of the REST API over TCP with the content of a token file: status, head, body.
    pub fn api(&self, method: &str, path: &str, token: &str, body: &str) -> (u16, String, serde_json::Value) {
        self.api_with(method, path, &format!("authorization: Bearer {token}\r\n"), body)
    }

    /// The same with these header lines.
    pub fn api_with(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> (u16, String, serde_json::Value) {
        let length = body.len();
        let (status, head, text) = exchange(
            self.admin,
            &format!(
                "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{headers}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}",
                self.admin
            ),
        );
        let value = serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
        (status, head, value)
    }

    /// Waits until the status of a service is as wanted; the status.
    pub fn wait_status(
        &self,
        service: &str,
        what: &str,
        holds: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let mut last = serde_json::Value::Null;
        wait_for(what, Duration::from_secs(30), || {
            last = self.status(service);
            holds(&last).then(|| last.clone())
        })
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Waits for these words: a line that has been written is read a moment later.
    #[track_caller]
    pub fn wait_log(&self, words: &str) {
        wait_for(&format!("`{words}` in the log"), Duration::from_secs(20), || {
            self.log().contains(words).then_some(())
        });
    }

    /// The value of the metric line that starts with all of these parts; 0 when there is none.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        metric(&self.metrics(), name, labels)
    }

    /// One scrape.
    pub fn metrics(&self) -> String {
        get(self.admin, "/metrics").1
    }

    /// The same of a counter.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        count(&self.metrics(), name, labels)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What `/proc` says of its memory, in bytes: `VmRSS` is what it has now, `VmHWM` the most it has had.
    pub fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    /// The memory it has now, in bytes.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// From here on `VmHWM` is the most that it has had since.
    pub fn forget_peak(&self) {
        // proc(5): 5 resets the peak, and nothing else.
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").unwrap();
    }

    /// Waits until its memory has not grown for a while: nothing moves any more.
    pub fn standstill(&self) {
        let (mut last, mut still) = (0, 0);
        wait_for("the standstill", Duration::from_secs(60), || {
            let now = self.resident();
            still = if now <= last { still + 1 } else { 0 };
            last = now;
            (still > 100).then_some(())
        });
    }

    /// The processor time it has used so far.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11..13]
            .iter()
            .map(|ticks| ticks.parse::<u64>().unwrap())
            .sum();
        // USER_HZ is 100 wherever Linux runs.
        Duration::from_millis(10 * ticks)
    }

    /// Files it has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    /// Changes one of its limits while it runs: `nofile=256:`.
    pub fn limit(&self, limit: &str) {
        let done = Command::new("prlimit")
            .args(["--pid", &self.pid().to_string(), &format!("--{limit}")])
            .stdin(Stdio::null())
            .status()
            .expect("prlimit is installed by tests/run");
        assert!(done.success());
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// [`Serin::metric`] of what has been scraped.
pub fn metric(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let matches = |line: &&str| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels
                .iter()
                .all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
    };
    text.lines()
        .filter(matches)
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

/// [`Serin::count`] of what has been scraped.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count is a whole number and not negative"
)]
pub fn count(text: &str, name: &str, labels: &[(&str, &str)]) -> u64 {
    metric(text, name, labels).round() as u64
}

impl Drop for Serin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of serin ---\n{}\n---", self.log());
        }
    }
}

/// Starts it in a folder where it must not start: its exit code and what it said.
pub fn refused_start(folder: &Path, arguments: &[&str]) -> (i32, String) {
    refused_start_by(&[], folder, arguments)
}

/// The same through a program that prepares its way: `prlimit …`.
pub fn refused_start_by(starter: &[&str], folder: &Path, arguments: &[&str]) -> (i32, String) {
    let (child, log) = spawn_by(starter, folder, arguments);
    let mut serin = Bounded(child);
    let status = wait_for("the start to be refused", Duration::from_secs(20), || {
        serin.0.try_wait().unwrap()
    });
    // The pipe's reader may be a moment behind; it lets go of the lines when it has read them all.
    let said = wait_for("the whole of its log", Duration::from_secs(20), || {
        (Arc::strong_count(&log) == 1).then(|| log.lock().unwrap().join("\n"))
    });
    (status.code().unwrap_or(-1), said)
}

/// A verb that runs; killed if nobody waits for it.
pub struct Verb(Option<Child>);

impl Verb {
    /// Its exit code and what it said.
    pub fn end(mut self) -> (i32, String) {
        let mut child = self.0.take().unwrap();
        wait_for("the verb to end", Duration::from_secs(60), || {
            child.try_wait().unwrap()
        });
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    /// Waits until it has said something: it is waiting for its goal.
    pub fn is_under_way(&mut self) {
        use std::io::Read;
        let said = self.0.as_mut().unwrap().stderr.as_mut().unwrap();
        said.read_exact(&mut [0]).unwrap();
    }
}

impl Drop for Verb {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A process that does not outlive its test.
struct Bounded(Child);

impl Drop for Bounded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn unset() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn spawn(folder: &Path, arguments: &[&str]) -> (Child, Arc<Mutex<Vec<String>>>) {
    spawn_by(&[], folder, arguments)
}

fn spawn_by(starter: &[&str], folder: &Path, arguments: &[&str]) -> (Child, Arc<Mutex<Vec<String>>>) {
    let line = [starter, &[binary()]].concat();
    let mut child = Command::new(line[0])
        .args(&line[1..])
        .args(["serve", "-c", "serin.yaml", "--workers", "2"])
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let (lines, stderr) = (Arc::clone(&log), child.stderr.take().unwrap());
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            lines.lock().unwrap().push(line);
        }
    });
    (child, log)
}

/// A GET over a connection of its own: status and body.
pub fn get(to: SocketAddr, path: &str) -> (u16, String) {
    let (status, _, body) = exchange(
        to,
        &format!("GET {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n"),
    );
    (status, body)
}

/// Sends raw bytes and reads to the end: status, head, body (chunks joined).
pub fn exchange(to: SocketAddr, request: &str) -> (u16, String, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (
        status,
        head.to_owned(),
        if chunked { dechunk(body) } else { body.to_owned() },
    )
}

fn dechunk(body: &str) -> String {
    let (mut whole, mut rest) = (String::new(), body);
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || after.len() < size {
            break;
        }
        whole.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
    }
    whole
}
