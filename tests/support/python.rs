//! Servers and clients that others have written, in Python (`tests/clients.py`).

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

/// The Python servers; they end with their input.
pub struct Servers(Child, BufReader<ChildStdout>);

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Servers {
    /// Starts what `clients.py` calls `mode`, with its argument if it has one; its two ports.
    pub fn start(mode: &str) -> (Servers, u16, u16) {
        let mut child = python(&mode.split(' ').collect::<Vec<_>>())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut said, mut out) = (String::new(), BufReader::new(child.stdout.take().unwrap()));
        out.read_line(&mut said).unwrap();
        let (one, two) = said.trim().split_once(' ').unwrap();
        (Servers(child, out), one.parse().unwrap(), two.parse().unwrap())
    }

    /// Ends their input; what they say before they end.
    pub fn finish(mut self) -> String {
        let mut said = String::new();
        drop(self.0.stdin.take());
        self.1.read_to_string(&mut said).unwrap();
        said
    }

    /// A line of their input, of which they say that it is done.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
        let mut said = String::new();
        self.1.read_line(&mut said).unwrap();
        assert_eq!(said, "done\n");
    }
}

/// What `clients.py` does when it is called so.
pub fn python(arguments: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/venv/bin/python");
    assert!(
        python.exists(),
        "run tests/venv first: {} is missing",
        python.display()
    );
    let mut command = Command::new(python);
    command.arg(root.join("tests/clients.py")).args(arguments);
    command
}
