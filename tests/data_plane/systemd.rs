//! Serin as systemd sees it: what it says of itself, and sockets that outlive it.

use crate::support::{
    authority::Authority,
    binary,
    client::{Plan, ask, get as get_request},
    dns::{NameServer, Says},
    full_form, get, say,
    upstream::Upstream,
    wait_for,
};
use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixStream},
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(30);

/// A folder with a configuration, and the socket that systemd would listen at.
struct Unit {
    folder: tempfile::TempDir,
    told: UnixDatagram,
}

/// A running Serin; ends with its value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(
            Command::new("kill")
                .args([&format!("-{name}"), &pid])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Unit {
    fn new(web: SocketAddr, upstream: &Upstream) -> Unit {
        let folder = tempfile::tempdir().unwrap();
        let configuration = format!(
            "listeners: [{{name: web, address: \"{web}\"}}]\nadmin: {{address: \"127.0.0.1:0\"}}\n\
             services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]\n",
            upstream.url()
        );
        std::fs::write(folder.path().join("serin.yaml"), configuration).unwrap();
        let told = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        told.set_read_timeout(Some(SOON)).unwrap();
        Unit { folder, told }
    }

    /// Starts Serin with these variables; a socket becomes descriptor 3, as systemd passes it.
    fn start(&self, variables: &[(&str, &str)], socket: Option<&TcpListener>) -> Running {
        let pass = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"";
        let mut command = Command::new("sh");
        let stdin = match socket {
            Some(socket) => {
                command.args(["-c", pass]);
                Stdio::from(OwnedFd::from(socket.try_clone().unwrap()))
            }
            None => {
                command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]);
                Stdio::null()
            }
        };
        command
            .arg(binary())
            .args(["serve", "-c", "serin.yaml", "--workers", "2"])
            .current_dir(self.folder.path())
            .env("NOTIFY_SOCKET", self.folder.path().join("notify"))
            .envs(variables.iter().copied())
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::from(self.log()));
        Running(command.spawn().unwrap())
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// What it says to people; all runs one after the other.
    fn log(&self) -> std::fs::File {
        let mut options = std::fs::File::options();
        let path = self.folder.path().join("log");
        options.create(true).append(true).open(path).unwrap()
    }

    /// Reads messages until one has this line.
    fn hears(&self, line: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let length = self
                .told
                .recv(&mut buffer)
                .unwrap_or_else(|_| panic!("`{line}` was not said"));
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if message.lines().any(|said| said == line) {
                return message;
            }
        }
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn systemd_is_told_of_readiness_reloads_life_and_the_end() {
    let v1 = Upstream::start("v1");
    let web = free();
    let unit = Unit::new(web, &v1);
    let mut serin = unit.start(&[("WATCHDOG_USEC", "200000")], None);
    unit.hears("READY=1");
    assert_eq!(get(web, "/").0, 200, "ready means that requests are served");
    unit.hears("WATCHDOG=1");
    serin.signal("HUP");
    assert!(unit.hears("RELOADING=1").contains("MONOTONIC_USEC="));
    unit.hears("READY=1");
    serin.signal("TERM");
    unit.hears("STOPPING=1");
    let code = wait_for("its end", SOON, || serin.0.try_wait().unwrap());
    assert!(code.success());
}

#[test]
fn a_passed_socket_keeps_its_queue_while_serin_is_killed_and_started_again() {
    let v1 = Upstream::start("v1");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let web = socket.local_addr().unwrap();
    let unit = Unit::new(web, &v1);
    let variables = [("LISTEN_FDNAMES", "web")];
    let first = unit.start(&variables, Some(&socket));
    unit.hears("READY=1");
    assert_eq!(get(web, "/").0, 200);
    assert!(!unit.said().contains("socket that was passed"), "{}", unit.said());
    drop(first);
    // Nobody serves: the kernel takes the connection for whoever comes next.
    let mut waiting = TcpStream::connect(web).unwrap();
    waiting.set_read_timeout(Some(SOON)).unwrap();
    waiting
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .unwrap();
    // Found by its address this time.
    let _second = unit.start(&[], Some(&socket));
    unit.hears("READY=1");
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[test]
fn more_passed_sockets_than_there_can_be_are_not_looked_for() {
    let v1 = Upstream::start("v1");
    let web = free();
    let unit = Unit::new(web, &v1);
    let _serin = unit.start(&[("LISTEN_FDS", "999999999")], None);
    unit.hears("READY=1");
    assert_eq!(get(web, "/").0, 200, "its own listener is there");
    let said = unit.said();
    assert!(
        said.contains("LISTEN_FDS=999999999 announces more sockets"),
        "{said}"
    );
}

#[test]
fn a_socket_of_a_listeners_name_at_another_address_is_served_and_said() {
    let v1 = Upstream::start("v1");
    let (socket, written) = (TcpListener::bind("127.0.0.1:0").unwrap(), free());
    let unit = Unit::new(written, &v1);
    let _serin = unit.start(&[("LISTEN_FDNAMES", "web")], Some(&socket));
    unit.hears("READY=1");
    assert_eq!(get(socket.local_addr().unwrap(), "/").0, 200);
    let said = format!("`web` is served at the socket that was passed for it, and not at {written}");
    assert!(unit.said().contains(&said), "{}", unit.said());
}

#[test]
fn a_kill_and_a_start_under_load_cost_at_most_what_was_in_flight_and_the_queue_none() {
    const CLIENTS: usize = 16;
    let v1 = Upstream::start("v1");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let web = socket.local_addr().unwrap();
    let unit = Unit::new(web, &v1);
    let mut running = unit.start(&[], Some(&socket));
    unit.hears("READY=1");
    let (kills, kept) = (full_form(3, 50), Plan::new(web, CLIENTS).start());
    // These have nothing in flight but what is in the queue: a connection for each request.
    let mut queued = 0;
    for _ in 0..kills {
        kept.wait_more(100);
        drop(running);
        let waiting: Vec<_> = (0..CLIENTS)
            .map(|_| std::thread::spawn(move || ask(web, false, get_request("/"))))
            .collect();
        running = unit.start(&[], Some(&socket));
        unit.hears("READY=1");
        for waiting in waiting {
            assert_eq!(waiting.join().unwrap().map(|answer| answer.status), Ok(200));
            queued += 1;
        }
    }
    kept.wait_more(100);
    let seen = kept.stop();
    let most = CLIENTS * usize::try_from(kills).unwrap();
    assert!(seen.failed.is_empty(), "{:?}", seen.failed.first());
    assert!(
        seen.errors() <= most,
        "{} of at most {most}: {:?}",
        seen.errors(),
        seen.broken
    );
    say(&format!(
        "{kills} kills under load: {} lost of {most} that may have been in flight, none of {queued} in the queue, {} requests",
        seen.errors(),
        seen.total()
    ));
}

fn read_unit(name: &str) -> String {
    std::fs::read_to_string(format!("{}/config/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The units as systemd reads them, with the built binary as the program.
fn units() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["serin.service", "serin.socket"] {
        let text = read_unit(name).replace("/usr/local/bin/serin", binary());
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn analyze(arguments: &[&str], folder: &Path) -> (bool, String) {
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("systemd-analyze is in the package systemd");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units_and_little_that_they_expose() {
    let folder = units();
    let (good, said) = analyze(
        &["verify", "--man=no", "./serin.service", "./serin.socket"],
        folder.path(),
    );
    // It speaks of the machine's other units as well.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("serin.")).collect();
    assert!(good && ours.is_empty(), "{said}");
    // 2.0 of 10; Debian's own nginx.service is rated 9.6.
    let bounded = ["security", "--offline=true", "--threshold=20", "./serin.service"];
    let (good, said) = analyze(&bounded, folder.path());
    assert!(good, "{said}");
    let start = read_unit("serin.service");
    let start = start
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/serin "));
    let verb = start.unwrap().split(' ').next().unwrap();
    let help = Command::new(binary()).args([verb, "--help"]).output().unwrap();
    assert!(help.status.success(), "`serin {verb}` is no verb");
}

/// The system calls of a group, as systemd expands it.
fn calls_of(group: &str, all: &mut BTreeSet<String>) {
    let (good, said) = analyze(&["syscall-filter", group], Path::new("/"));
    assert!(good, "{said}");
    for line in said.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if line.starts_with('@') && line != group {
            calls_of(line, all);
        } else if !line.starts_with('@') {
            all.insert(line.to_owned());
        }
    }
}

/// What the unit's `SystemCallFilter` lines allow, one after the other.
fn allowed_calls() -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    let unit = read_unit("serin.service");
    for filter in unit
        .lines()
        .filter_map(|line| line.strip_prefix("SystemCallFilter="))
    {
        let (names, denies) = match filter.strip_prefix('~') {
            Some(names) => (names, true),
            None => (filter, false),
        };
        let mut calls = BTreeSet::new();
        for name in names.split_whitespace() {
            if name.starts_with('@') {
                calls_of(name, &mut calls);
            } else {
                calls.insert(name.to_owned());
            }
        }
        if denies {
            allowed.retain(|call| !calls.contains(call));
        } else {
            allowed.extend(calls);
        }
    }
    allowed
}

/// Everything that Serin does, so that everything is traced: TLS, HTTP/2, names, sockets, logs, checks, a deploy, a reload.
fn everything(folder: &Path, web: SocketAddr, upstream: &Upstream, names: &NameServer) -> String {
    Authority::new("test").issue(&["localhost"]).write(folder, "web");
    format!(
        "listeners:
- {{name: web, address: \"{web}\"}}
- {{name: tls, address: \"127.0.0.1:0\", tls: {{certificate: web.pem, key: web.key}}}}
- {{name: local, address: \"unix:{}\"}}
admin: {{address: \"127.0.0.1:0\"}}
accessLog: {{path: access.log}}
dns: {{servers: [\"{}\"], refresh: 1s}}
services:
- name: shop
  stable: {{version: v1, endpoints: [\"http://app.test:{}\"]}}
  health: {{http: /alive, interval: 100ms}}
  deploy: {{allowedEndpoints: [127.0.0.0/8]}}
",
        folder.join("web.sock").display(),
        names.address,
        upstream.address.port()
    )
}

#[test]
fn what_serin_asks_of_the_kernel_is_within_what_its_unit_allows() {
    let (upstream, web) = (Upstream::start("v1"), free());
    let names = NameServer::start(Says::addresses(&[Ipv4Addr::LOCALHOST]));
    let unit = Unit::new(web, &upstream);
    let folder = unit.folder.path();
    std::fs::write(
        folder.join("serin.yaml"),
        everything(folder, web, &upstream, &names),
    )
    .unwrap();
    // Not beside the configuration: that folder is watched, and to read of each new line would be another one.
    let elsewhere = tempfile::tempdir().unwrap();
    let trace = elsewhere.path().join("trace");
    let tracer = Command::new("strace")
        .args(["-f", "-qq", "-s", "8", "-o"])
        .arg(&trace)
        .arg(binary())
        .args(["serve", "-c", "serin.yaml", "--workers", "2"])
        .current_dir(folder)
        .env("NOTIFY_SOCKET", folder.join("notify"))
        .env("WATCHDOG_USEC", "2000000")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("strace is in the package strace");
    let mut tracer = Running(tracer);
    unit.hears("READY=1");
    for http2 in [false, true] {
        assert_eq!(ask(web, http2, get_request("/")).unwrap().status, 200);
    }
    let mut local = UnixStream::connect(folder.join("web.sock")).unwrap();
    local
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    local.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let deploy = Command::new(binary())
        .args(["deploy", "shop", "--version", "v2", "--endpoint", &upstream.url()])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        deploy.status.success(),
        "{}",
        String::from_utf8_lossy(&deploy.stderr)
    );
    // The tracer's only child.
    let pid = tracer.0.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let signal = |name: &str| {
        let sent = Command::new("kill")
            .args([name, children.trim()])
            .status()
            .unwrap();
        assert!(sent.success());
    };
    signal("-HUP");
    unit.hears("RELOADING=1");
    unit.hears("READY=1");
    unit.hears("WATCHDOG=1");
    signal("-TERM");
    wait_for("its end", SOON, || tracer.0.try_wait().unwrap());

    let trace = std::fs::read_to_string(trace).unwrap();
    let calls: BTreeSet<&str> = trace
        .lines()
        .filter_map(|line| {
            let (_, call) = line.split_once(' ')?;
            let (name, _) = call.trim_start().split_once('(')?;
            name.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_')
                .then_some(name)
        })
        .collect();
    assert!(calls.contains("accept4") && calls.len() > 40, "{calls:?}");
    let allowed = allowed_calls();
    // SQLite gives the files that it makes to the owner of its database, but only when it is root, which a test may be.
    let more: Vec<&&str> = calls
        .iter()
        .filter(|call| !allowed.contains(**call) && **call != "fchown")
        .collect();
    assert!(more.is_empty(), "not allowed by SystemCallFilter: {more:?}");
    let families: BTreeSet<&str> = trace
        .lines()
        .filter_map(|line| line.split_once("socket(")?.1.split(',').next())
        .collect();
    let unit = read_unit("serin.service");
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("RestrictAddressFamilies="));
    let open: Vec<&str> = line.unwrap().split(' ').collect();
    assert!(
        families.iter().all(|family| open.contains(family)),
        "{families:?}"
    );
    // MemoryDenyWriteExecute.
    let both = trace.lines().find(|line| line.contains("PROT_WRITE|PROT_EXEC"));
    assert_eq!(both, None);
}

#[test]
fn the_first_connection_starts_serin_with_all_its_sockets() {
    let (upstream, web, other) = (Upstream::start("v1"), free(), free());
    let unit = Unit::new(web, &upstream);
    let folder = unit.folder.path();
    let local = folder.join("local.sock");
    // The first is found by its name, whatever its address says, the others by their addresses.
    let configuration = format!(
        "listeners:
- {{name: web, address: \"127.0.0.1:1\"}}
- {{name: second, address: \"{other}\"}}
- {{name: local, address: \"unix:{}\"}}
admin: {{address: \"127.0.0.1:0\"}}
services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]\n",
        local.display(),
        upstream.url()
    );
    std::fs::write(folder.join("serin.yaml"), configuration).unwrap();
    let started = Command::new("systemd-socket-activate")
        .args(["-l", &web.to_string(), "-l", &other.to_string()])
        .args(["-l", local.to_str().unwrap(), "--fdname=web:x:y"])
        .args([
            "-E",
            &format!("NOTIFY_SOCKET={}", folder.join("notify").display()),
        ])
        .args([binary(), "serve", "-c", "serin.yaml", "--workers", "2"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("systemd-socket-activate is in the package systemd");
    let mut serin = Running(started);
    let mut said = BufReader::new(serin.0.stderr.take().unwrap());
    for _ in 0..3 {
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.contains("Listening on"), "{line}");
    }
    // Whoever comes first waits in the queue for as long as it takes to start.
    let first = get(web, "/");
    assert_eq!(first.0, 200);
    std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    unit.hears("READY=1");
    assert_eq!(get(other, "/").0, 200);
    let mut stream = UnixStream::connect(&local).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    // It has taken the place of who started it.
    serin.signal("TERM");
    unit.hears("STOPPING=1");
    let code = wait_for("its end", SOON, || serin.0.try_wait().unwrap());
    assert!(code.success());
}
