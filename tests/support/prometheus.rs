//! A real Prometheus that scrapes a Serin.

use super::wait_for;
use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A running Prometheus with a folder of its own; ends when dropped.
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that reads both exposition paths at `target`, often.
    pub fn scraping(target: SocketAddr) -> Prometheus {
        let folder = tempfile::tempdir().unwrap();
        let configuration = format!(
            "global: {{scrape_interval: 250ms, scrape_timeout: 250ms}}
scrape_configs:
  - job_name: serin
    static_configs: [{{targets: [\"{target}\"]}}]
  - job_name: serin-compat
    honor_labels: true
    metrics_path: /metrics/compat
    static_configs: [{{targets: [\"{target}\"]}}]
"
        );
        std::fs::write(folder.path().join("prometheus.yml"), configuration).unwrap();
        let mut child = Command::new("prometheus")
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
            .args(["--web.listen-address=127.0.0.1:0", "--log.level=info"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("prometheus is installed by tests/run");
        let log = BufReader::new(child.stderr.take().unwrap());
        let (told, address) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if let Some((_, address)) = line.split_once("\"Listening on\" address=") {
                    let _ = told.send(address.trim().parse().unwrap());
                }
            }
        });
        let address = address.recv_timeout(Duration::from_secs(30));
        let prometheus = Prometheus {
            child,
            address: address.expect("Prometheus says where it listens"),
            _folder: folder,
        };
        wait_for("a first scrape", Duration::from_secs(30), || {
            let (status, body) = super::get(prometheus.address, "/api/v1/query?query=http_requests_total");
            (status == 200 && body.contains("version")).then_some(())
        });
        prometheus
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `promtool check metrics` says against an exposition; nothing when it is content.
pub fn promtool_complains(exposition: &str) -> Option<String> {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed by tests/run");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(exposition.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let quiet = output.status.success() && said.is_empty();
    (!quiet).then(|| String::from_utf8_lossy(&said).into_owned())
}
