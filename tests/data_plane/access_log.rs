//! The access log: who was served by what and why, whose fault it was, and that it never gets into the way.

use crate::support::{HEAD, Serin, client::Plan, exchange, get, say, upstream::Upstream, wait_for};
use serde_json::Value;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

fn lines(serin: &Serin, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(serin.file(file)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The log's lines as JSON, once there are this many.
fn objects(serin: &Serin, file: &str, count: usize) -> Vec<Value> {
    let lines = wait_for("lines of the access log", SOON, || {
        Some(lines(serin, file)).filter(|lines| lines.len() >= count)
    });
    let parse = |line: &String| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
    lines.iter().map(parse).collect()
}

fn shop(options: &str, versions: &str) -> String {
    format!("{HEAD}accessLog: {{{options}}}\nservices: [{{name: shop, {versions}}}]")
}

fn version(role: &str, name: &str, url: &str) -> String {
    format!("{role}: {{version: {name}, endpoints: [\"{url}\"]}}")
}

#[test]
fn a_line_says_who_asked_who_answered_why_and_how_long_it_took_but_no_secret() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let versions = format!(
        "{}, {}, force: {{header: x-canary}}, strategy: {{canary: {{steps: [{{setWeight: 0}}, {{pause: {{}}}}]}}}}",
        version("stable", "v1", &v1.url()),
        version("canary", "v2", &v2.url())
    );
    let serin = Serin::start_with(&shop("path: access.log, headers: [user-agent]", &versions));
    wait_for("the canary", SOON, || {
        (serin.status("shop")["phase"] == "Paused").then_some(())
    });
    let request = "POST /cart?token=geheim HTTP/1.1\r\nhost: shop.test\r\ncookie: session=geheim\r\nauthorization: geheim\r\n\
        user-agent: \"quoted\"\r\nx-canary: always\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00\r\n\
        content-length: 3\r\nconnection: close\r\n\r\nabc";
    assert_eq!(exchange(serin.web, request).0, 200);
    let line = &objects(&serin, "access.log", 1)[0];
    for (key, value) in [
        ("listener", "web"),
        ("client", "127.0.0.1"),
        ("method", "POST"),
        ("host", "shop.test"),
        ("path", "/cart"),
        ("protocol", "HTTP/1.1"),
        ("service", "shop"),
        ("role", "canary"),
        ("version", "v2"),
        ("reason", "force"),
        ("endpoint", v2.url().as_str()),
        ("traceId", "0af7651916cd43dd8448eb211c80319c"),
    ] {
        assert_eq!(line[key], value, "{key} in {line}");
    }
    assert_eq!((&line["status"], &line["attempts"]), (&200.into(), &1.into()));
    assert_eq!((&line["bytesIn"], &line["bytesOut"]), (&3.into(), &3.into()));
    assert_eq!(line["headers"]["user-agent"], "\"quoted\"");
    assert_eq!(line["requestId"].as_str().unwrap().len(), 32);
    assert!(line["firstByteSeconds"].as_f64().unwrap() <= line["totalSeconds"].as_f64().unwrap());
    assert!(line.get("fault").is_none() && line["rescued"] == false);
    assert!(!line.to_string().contains("geheim"), "{line}");
    assert!(line["time"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn whose_fault_it_was_is_said_also_of_requests_that_never_got_to_a_service() {
    let v1 = Upstream::start("v1");
    let gone = Upstream::start("v2");
    let dead = gone.url();
    drop(gone);
    let services = format!(
        "{HEAD}accessLog: {{path: access.log}}\nservices:\n- {{name: shop, match: [{{host: shop.test}}], {}, {}, \
         strategy: {{canary: {{steps: [{{setWeight: 5}}, {{pause: {{}}}}]}}}}}}\n- {{name: dead, match: [{{host: dead.test}}], {}}}\n",
        version("stable", "v1", &v1.url()),
        version("canary", "v2", &v1.url()),
        version("stable", "v9", &dead),
    );
    let serin = Serin::start_with(&services);
    let ask = |host: &str| {
        let text = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        exchange(serin.web, &text).0
    };
    v1.fail(1000);
    assert_eq!(ask("shop.test"), 500);
    v1.fail(0);
    assert_eq!(ask("nobody.test"), 404);
    assert_eq!(ask("a..b"), 400);
    assert_eq!(ask("dead.test"), 502);
    exchange(serin.web, "GET / HTTP/1.1\r\nbad header\r\n\r\n");
    let lines = objects(&serin, "access.log", 5);
    let found = |status: u16, fault: &str, flag: &str| {
        let one = |line: &&Value| line["status"] == status && line["fault"] == fault && line["flag"] == flag;
        lines
            .iter()
            .find(one)
            .unwrap_or_else(|| panic!("no {status} {fault} {flag} in {lines:#?}"))
    };
    assert_eq!(found(500, "upstream", "failed_response")["service"], "shop");
    let unrouted = found(404, "client", "no_route");
    assert!(unrouted.get("service").is_none() && unrouted["host"] == "nobody.test");
    found(400, "client", "host");
    let unreachable = found(502, "upstream", "unreachable");
    assert!(unreachable["attempts"].as_u64().unwrap() >= 1 && unreachable["endpoint"] == dead.as_str());
    for line in [unrouted, unreachable] {
        assert!(
            line["bytesOut"].as_u64().unwrap() > 20,
            "our own answers have a body, too: {line}"
        );
    }
    assert!(found(400, "client", "malformed").get("path").is_none());
}

#[test]
fn a_rescued_request_names_the_version_it_was_meant_for() {
    let v1 = Upstream::start("v1");
    let gone = Upstream::start("v2");
    let versions = format!(
        "{}, {}, force: {{header: x-canary}}, hardFailure: {{attempts: 1000}}, \
         strategy: {{canary: {{steps: [{{setWeight: 50}}, {{pause: {{}}}}]}}}}",
        version("stable", "v1", &v1.url()),
        version("canary", "v2", &gone.url())
    );
    let serin = Serin::start_with(&shop("path: access.log, format: clf", &versions));
    wait_for("the canary", SOON, || {
        (serin.status("shop")["phase"] == "Paused").then_some(())
    });
    drop(gone);
    let request = "GET / HTTP/1.1\r\nhost: a\r\nx-canary: always\r\nconnection: close\r\n\r\n";
    assert_eq!(exchange(serin.web, request).0, 200);
    let line = wait_for("a line", SOON, || lines(&serin, "access.log").pop());
    assert!(
        line.starts_with("127.0.0.1 - - [") && line.contains("] \"GET / HTTP/1.1\" 200 2 \"-\" \"-\" "),
        "{line}"
    );
    assert!(
        line.contains(" role=stable version=v1 reason=force ") && line.contains(" rescued=v2 "),
        "{line}"
    );
    assert!(line.contains(" fault=upstream flag=rescued "), "{line}");
}

#[test]
fn a_rotated_file_is_opened_anew_by_a_hangup_even_while_the_configuration_is_bad() {
    let v1 = Upstream::start("v1");
    let serin = Serin::start_with(&shop("path: access.log", &version("stable", "v1", &v1.url())));
    get(serin.web, "/before");
    objects(&serin, "access.log", 1);
    std::fs::rename(serin.file("access.log"), serin.file("access.log.1")).unwrap();
    std::fs::write(serin.file("serin.yaml"), "listeners: [").unwrap();
    serin.signal("HUP");
    wait_for("the new file", SOON, || {
        serin.file("access.log").exists().then_some(())
    });
    get(serin.web, "/after");
    assert_eq!(objects(&serin, "access.log", 1)[0]["path"], "/after");
    assert_eq!(lines(&serin, "access.log.1").len(), 1);
}

#[test]
fn a_full_disk_costs_lines_and_no_request() {
    let v1 = Upstream::start("v1");
    let serin = Serin::start_with(&shop("path: /dev/full", &version("stable", "v1", &v1.url())));
    for _ in 0..20 {
        assert_eq!(get(serin.web, "/").0, 200);
    }
    wait_for("the lost lines to be counted", SOON, || {
        (serin.metric("serin_access_log_dropped_total", &[]) >= 20.0).then_some(())
    });
    assert_eq!(serin.log().matches("cannot be written").count(), 1, "said once");
}

#[test]
fn a_disk_that_fills_up_under_load_costs_exactly_the_lines_that_do_not_fit_until_there_is_room() {
    let v1 = Upstream::start("v1");
    let serin = Serin::start_with(&shop("path: access.log", &version("stable", "v1", &v1.url())));
    let dropped = || serin.count("serin_access_log_dropped_total", &[]);
    // Before there is a line: however fast clients are, the file does not outgrow it.
    serin.limit("fsize=65536:");
    let clients = Plan::new(serin.web, 4).start();
    clients.wait_more(50);
    wait_for("lines to be dropped", SOON, || (dropped() > 50).then_some(()));
    let (before, lost) = (clients.total(), dropped());
    clients.wait_more(500);
    wait_for("more of them", SOON, || (dropped() > lost + 200).then_some(()));
    assert!(clients.total() > before);
    assert!(std::fs::metadata(serin.file("access.log")).unwrap().len() <= 65_536);
    serin.limit("fsize=unlimited:");
    let seen = {
        clients.wait_more(200);
        clients.stop()
    };
    seen.assert_clean();
    // Every request is either in the file or counted as lost; a line that was cut off is no line.
    let whole = || {
        let is_json = |line: &String| serde_json::from_str::<Value>(line).is_ok();
        lines(&serin, "access.log")
            .iter()
            .filter(|line| is_json(line))
            .count() as u64
    };
    wait_for("each request to be in the log or counted", SOON, || {
        (whole() + dropped() == seen.total()).then_some(())
    });
    say(&format!(
        "disk full while logging: {} requests, 0 errors, {} lines written and {} counted as dropped",
        seen.total(),
        whole(),
        dropped()
    ));
}

#[test]
fn a_reload_turns_the_log_on_and_off_and_a_path_that_cannot_be_opened_refuses_it() {
    let v1 = Upstream::start("v1");
    let stable = version("stable", "v1", &v1.url());
    let off = format!("{HEAD}services: [{{name: shop, {stable}}}]");
    let serin = Serin::start_with(&off);
    get(serin.web, "/unseen");
    std::fs::write(serin.file("serin.yaml"), shop("path: access.log", &stable)).unwrap();
    wait_for("the log", SOON, || {
        get(serin.web, "/seen");
        (!lines(&serin, "access.log").is_empty()).then_some(())
    });
    assert!(
        objects(&serin, "access.log", 1)
            .iter()
            .all(|line| line["path"] == "/seen")
    );
    std::fs::write(serin.file("serin.yaml"), shop("path: /proc/nowhere", &stable)).unwrap();
    wait_for("the refusal", SOON, || {
        serin
            .log()
            .contains("accessLog.path: cannot write to")
            .then_some(())
    });
    std::fs::write(serin.file("serin.yaml"), off).unwrap();
    wait_for("the reload", SOON, || {
        (serin.log().matches("configuration reloaded").count() >= 2).then_some(())
    });
    let before = lines(&serin, "access.log").len();
    for _ in 0..5 {
        get(serin.web, "/unseen");
    }
    serin.signal("TERM");
    wait_for("its end", SOON, || serin.log().contains("stopped").then_some(()));
    let after = lines(&serin, "access.log");
    assert!(after.iter().all(|line| !line.contains("unseen")) && after.len() >= before);
}

#[test]
fn a_sample_of_nothing_still_has_every_failure() {
    let v1 = Upstream::start("v1");
    let serin = Serin::start_with(&shop(
        "path: access.log, sample: 0",
        &version("stable", "v1", &v1.url()),
    ));
    for _ in 0..10 {
        get(serin.web, "/fine");
    }
    v1.fail(1000);
    get(serin.web, "/broken");
    let lines = objects(&serin, "access.log", 1);
    assert!(lines.len() == 1 && lines[0]["path"] == "/broken");
}
