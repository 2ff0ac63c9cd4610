//! Serin as systemd sees it: what it says of itself, and sockets that outlive it.

use crate::support::{get, upstream::Upstream, wait_for};
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
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
                command.args(["-c", "exec \"$0\" \"$@\""]);
                Stdio::null()
            }
        };
        command
            .arg(env!("CARGO_BIN_EXE_serin"))
            .args(["serve", "-c", "serin.yaml", "--workers", "2"])
            .current_dir(self.folder.path())
            .env("NOTIFY_SOCKET", self.folder.path().join("notify"))
            .envs(variables.iter().copied())
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Running(command.spawn().unwrap())
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
fn the_units_start_what_there_is_and_are_hardened() {
    let read = |name: &str| {
        std::fs::read_to_string(format!("{}/config/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    let (service, socket) = (read("serin.service"), read("serin.socket"));
    for text in [&service, &socket] {
        let mut sections = BTreeSet::new();
        for line in text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                Some(section) => assert!(sections.insert(section.to_owned()), "{section} twice"),
                None => {
                    let (key, value) = line
                        .split_once('=')
                        .unwrap_or_else(|| panic!("not a setting: {line}"));
                    assert!(
                        key.bytes().all(|b| b.is_ascii_alphanumeric()) && !value.trim().is_empty(),
                        "{line}"
                    );
                }
            }
        }
        assert!(sections.contains("Unit") && sections.contains("Install"));
    }
    for setting in [
        "Type=notify",
        "WatchdogSec=",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "DynamicUser=yes",
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
        "MemoryDenyWriteExecute=yes",
        "SystemCallFilter=@system-service",
    ] {
        assert!(service.lines().any(|line| line.starts_with(setting)), "{setting}");
    }
    assert!(socket.contains("\nListenStream=") && socket.contains("\nFileDescriptorName=web\n"));
    let start = service
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/serin "))
        .unwrap();
    let verb = start.split(' ').next().unwrap();
    let help = Command::new(env!("CARGO_BIN_EXE_serin"))
        .args([verb, "--help"])
        .output()
        .unwrap();
    assert!(help.status.success(), "`serin {verb}` is no verb");
}
