//! A network of a test's own: its kernel settings and its firewall are nobody else's.

use std::process::{Command, Stdio};

/// Set in the copy of the test that has such a network.
const INSIDE: &str = "SERIN_TEST_NETWORK";

/// Runs `body` in a network namespace with nothing but a loopback interface. `test` is the calling test's whole name:
/// the test binary runs it once more, in there. Where namespaces are not allowed the test is skipped and says so;
/// with CI=true that is a failure.
pub fn in_a_network_of_its_own(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let unshare = |command: &[&str]| {
        let mut unshared = Command::new("unshare");
        // As root of a user namespace, so that an ordinary user may do it, too.
        unshared
            .args(["--map-root-user", "--net", "--kill-child", "--fork"])
            .args(command);
        unshared.stdin(Stdio::null());
        unshared
    };
    let possible = unshare(&["ip", "link", "set", "lo", "up"]).output();
    if !possible.as_ref().is_ok_and(|output| output.status.success()) {
        let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        assert!(!ci, "CI must be able to make a network namespace: {possible:?}");
        eprintln!("skipped: {test} needs a network namespace, which cannot be made here: {possible:?}");
        return;
    }
    let itself = std::env::current_exe().unwrap();
    let script = "ip link set lo up && exec \"$0\" \"$@\"";
    let output = unshare(&["sh", "-c", script, itself.to_str().unwrap()])
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "in a network of its own:\n{said}");
    assert!(
        said.contains("1 passed"),
        "`{test}` is not the name of this test:\n{said}"
    );
    eprint!("{said}");
}

/// Runs a command that changes the network around it.
pub fn configure(command: &[&str]) {
    let output = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; tests/run installs it"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}
