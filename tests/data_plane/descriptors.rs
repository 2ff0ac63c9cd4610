//! Fewer files than clients: the cap, who makes way, what is kept for versions and operators, and what is nobody's failure.

use crate::support::{
    HEAD, Serin,
    client::{Plan, ask, get as get_request},
    get, now,
    raw::RawClient,
    refused_start_by, say,
    upstream::Upstream,
    wait_for,
};
use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

const SOON: Duration = Duration::from_secs(30);
const FEW: &[&str] = &["prlimit", "--nofile=256"];

fn shop(stable: &Upstream, more: &str) -> String {
    format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}{more}}}]",
        stable.url()
    )
}

/// What the log promises at the start.
fn promised(serin: &Serin) -> usize {
    let log = serin.log();
    let line = log
        .lines()
        .find(|line| line.contains(" client connections: "))
        .unwrap_or_else(|| panic!("nothing promised: {log}"));
    let (_, rest) = line.split_once("up to ").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

fn rejected(serin: &Serin) -> f64 {
    serin.metric("serin_http_rejected_total", &[("reason", "connections")])
}

fn failed(serin: &Serin) -> f64 {
    serin.metric("serin_version_outcomes_total", &[("outcome", "failed")])
}

fn in_flight(upstream: &Upstream, count: u64) {
    wait_for(&format!("{count} requests in flight"), SOON, || {
        (upstream.in_flight() == count).then_some(())
    });
}

/// A connection that has sent this.
fn sent(to: SocketAddr, request: &str) -> RawClient {
    let mut client = RawClient::connect(to);
    client.send(format!("GET {request} HTTP/1.1\r\nhost: shop\r\n\r\n"));
    client
}

/// Connections that are kept after a request each.
fn idle(serin: &Serin, count: usize) -> Vec<RawClient> {
    (0..count)
        .map(|_| {
            let mut client = sent(serin.web, "/");
            assert_eq!(client.answer("GET").unwrap().status, 200);
            client
        })
        .collect()
}

#[test]
fn beyond_the_cap_clients_are_told_to_come_again_and_operators_are_served_as_ever() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let canary = format!(
        ", canary: {{version: v2, endpoints: [\"{}\"]}}, health: {{http: /healthz, interval: 100ms, fall: 2}},
         strategy: {{canary: {{steps: [{{setWeight: 40}}, {{pause: {{}}}}]}}}}",
        v2.url()
    );
    let serin = Serin::start_by(FEW, &format!("{HEAD}{}", shop(&v1, &canary)));
    serin.wait_status("shop", "the first step", |status| status["phase"] == "Paused");
    let cap = promised(&serin);
    assert!((64..128).contains(&cap), "{cap} of 256");
    let mut held: Vec<RawClient> = (0..cap).map(|_| sent(serin.web, "/gate")).collect();
    let all = u64::try_from(cap).unwrap();
    wait_for("every client to be served", SOON, || {
        (v1.in_flight() + v2.in_flight() == all).then_some(())
    });
    let open = serin.metric("serin_client_connections", &[("listener", "web")]);
    assert!(
        (open - f64::from(u32::try_from(cap).unwrap())).abs() < 0.5,
        "{open}"
    );

    // Others knock without a break.
    let stop = Arc::new(AtomicBool::new(false));
    let knocking: Vec<_> = (0..4)
        .map(|_| {
            let (stop, to) = (Arc::clone(&stop), serin.web);
            std::thread::spawn(move || {
                let mut told = 0u32;
                while !stop.load(Ordering::SeqCst) {
                    let answer = sent(to, "/").answer("GET");
                    let answer = answer.filter(|answer| answer.status != 0);
                    assert!(
                        answer.as_ref().is_none_or(|answer| answer.status == 503),
                        "{answer:?}"
                    );
                    told += u32::from(answer.is_some());
                }
                told
            })
        })
        .collect();
    let (used, begun) = (serin.cpu(), now());
    let before = rejected(&serin);
    wait_for("refusals", SOON, || {
        (rejected(&serin) - before > 400.0).then_some(())
    });
    let share = serin.cpu().saturating_sub(used).as_secs_f64() / begun.elapsed().as_secs_f64();
    say(&format!(
        "{:.1} % CPU while 4 clients knock at a full listener",
        100.0 * share
    ));
    assert!(share < 0.5, "{share}");

    // Meanwhile an operator sees and does everything.
    assert_eq!(get(serin.admin, "/livez").0, 200);
    let (code, out, err) = serin.run("get shop");
    assert!(code == 0 && out.contains("v2"), "{out}{err}");
    let healthy = |url: &str| serin.metric("serin_upstream_endpoint_healthy", &[("endpoint", url)]);
    assert!(healthy(&v1.url()) > 0.5 && healthy(&v2.url()) > 0.5);
    let (code, out, err) = serin.run("abort shop");
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(serin.status("shop")["setWeight"], 0);

    stop.store(true, Ordering::SeqCst);
    let told: u32 = knocking.into_iter().map(|one| one.join().unwrap()).sum();
    assert!(told > 200, "{told} were told");
    v1.open_gate();
    v2.open_gate();
    let begun = now();
    for client in &mut held {
        assert_eq!(client.answer("GET").unwrap().status, 200);
    }
    wait_for("a newcomer to be served", SOON, || {
        let answer = ask(serin.web, false, get_request("/"));
        answer.is_ok_and(|answer| answer.status == 200).then_some(())
    });
    say(&format!("served again after {:?}", begun.elapsed()));
    assert!(failed(&serin) < 0.5);
}

#[test]
fn a_kept_connection_that_nobody_uses_makes_way_for_a_client_who_asks() {
    let v1 = Upstream::start("v1");
    let serin = Serin::start_by(FEW, &format!("{HEAD}{}", shop(&v1, "")));
    let cap = promised(&serin);
    let mut kept = idle(&serin, cap);
    // Whichever worker a newcomer comes to has idle connections.
    let newcomers = idle(&serin, 30);
    assert!(rejected(&serin) < 0.5);
    for client in &kept {
        client.reader.stream.set_nonblocking(true).unwrap();
    }
    wait_for("as many to be closed", SOON, || {
        let gone = kept
            .iter_mut()
            .map(RawClient::is_closed)
            .filter(|gone| *gone)
            .count();
        (gone >= 30).then_some(())
    });
    drop(newcomers);
}

#[test]
fn a_listener_has_a_limit_of_its_own_and_takes_nothing_from_another() {
    let v1 = Upstream::start("v1");
    let serin = Serin::start_with(&format!(
        "listeners:
  - {{name: web, address: \"127.0.0.1:0\", limits: {{connections: 3}}}}
  - {{name: wide, address: \"127.0.0.1:0\"}}
admin: {{address: \"127.0.0.1:0\"}}
{}",
        shop(&v1, "")
    ));
    let log = serin.log();
    let wide = log
        .lines()
        .find_map(|line| line.split_once("listener `wide` at http://"));
    let wide: SocketAddr = wide.unwrap().1.split(' ').next().unwrap().parse().unwrap();
    let elsewhere: Vec<_> = (0..5).map(|_| sent(wide, "/gate")).collect();
    in_flight(&v1, 5);
    let here: Vec<_> = (0..3).map(|_| sent(serin.web, "/gate")).collect();
    in_flight(&v1, 8);
    let mut fourth = sent(serin.web, "/");
    let told = fourth.answer("GET").unwrap();
    assert_eq!(told.status, 503);
    assert!(told.head.contains("retry-after: 1"), "{}", told.head);
    let mut sixth = sent(wide, "/");
    assert_eq!(sixth.answer("GET").unwrap().status, 200);
    v1.open_gate();
    drop((elsewhere, here));
}

#[test]
fn streams_of_a_few_clients_leave_descriptors_for_operators_and_are_no_failure_of_the_version() {
    let v1 = Upstream::start("v1");
    let more = ", timeouts: {connect: 300ms}";
    let serin = Serin::start_by(FEW, &format!("{HEAD}{}", shop(&v1, more)));
    // Each request needs a connection of its own, and there are more than files.
    let clients = Plan::new(serin.web, 4)
        .http2(100)
        .total(400)
        .requests(|_| get_request("/gate"))
        .start();
    wait_for("those without a connection to be told", SOON, || {
        (clients.total() >= 200).then_some(())
    });
    assert!(serin.run("get shop").0 == 0 && get(serin.admin, "/metrics").0 == 200);
    let served = v1.in_flight();
    v1.open_gate();
    let seen = clients.finish();
    assert!(seen.broken.is_empty(), "{:?}", seen.broken.first());
    assert!(seen.failed.iter().all(|failed| failed.status == 503));
    assert!(
        served >= 64 && seen.version("v1") >= served,
        "{served}: {:?}",
        seen.answers
    );
    assert!(failed(&serin) < 0.5);
    let local = serin.metric("serin_upstream_attempts_total", &[("outcome", "local_error")]);
    assert!(local >= 100.0, "{local}");
    assert_eq!(ask(serin.web, false, get_request("/")).unwrap().status, 200);
}

#[test]
fn versions_use_what_clients_leave_until_clients_come() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let v1 = Upstream::start("v1");
    let more = ", limits: {connections: 4000, requests: 4000}, timeouts: {connect: 10s}";
    let serin = Serin::start_by(
        &["prlimit", "--nofile=2048"],
        &format!("{HEAD}{}", shop(&v1, more)),
    );
    let cap = promised(&serin);
    // More requests than there are files for versions alone, from a few clients.
    let streams = u64::try_from(cap).unwrap() + 50;
    let clients = Plan::new(serin.web, 16)
        .http2(100)
        .total(streams)
        .requests(|_| get_request("/gate"))
        .start();
    in_flight(&v1, streams);
    v1.open_gate();
    clients.finish().assert_clean();
    // The connections are idle now, and make way as clients come, of whom each one is served.
    drop(idle(&serin, cap));
    assert!(rejected(&serin) < 0.5 && failed(&serin) < 0.5);
    assert!(serin.run("get shop").0 == 0 && get(serin.admin, "/metrics").0 == 200);
}

#[test]
fn connections_kept_to_one_version_make_way_for_those_to_another() {
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    let serin = Serin::start_by(
        FEW,
        &format!(
            "{HEAD}
services:
  - {{name: one, match: [{{path: {{prefix: /gate}}}}], stable: {{version: v1, endpoints: [\"{}\"]}}}}
  - {{name: two, match: [{{path: {{prefix: /wait}}}}], stable: {{version: v1, endpoints: [\"{}\"]}}}}",
            one.url(),
            two.url()
        ),
    );
    let clients = u64::try_from(promised(&serin)).unwrap();
    let connections = usize::try_from(clients).unwrap();
    let first = Plan::new(serin.web, connections)
        .total(clients)
        .requests(|_| get_request("/gate"))
        .start();
    in_flight(&one, clients);
    one.open_gate();
    first.finish().assert_clean();
    // As many connections to `one` are idle now as there may be to both.
    let second = Plan::new(serin.web, connections)
        .total(clients * 4)
        .requests(|_| get_request("/wait/50"))
        .start();
    second.finish().assert_clean();
}

#[test]
fn without_a_single_file_left_nothing_spins_and_nobody_is_blamed() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let canary = format!(
        ", canary: {{version: v2, endpoints: [\"{}\"]}}, health: {{http: /healthz, interval: 100ms, fall: 2}},
         strategy: {{canary: {{steps: [{{setWeight: 40}}, {{pause: {{}}}}]}}}}, hardFailure: {{attempts: 1}}",
        v2.url()
    );
    let serin = Serin::start(&shop(&v1, &canary));
    serin.wait_status("shop", "the first step", |status| status["phase"] == "Paused");
    let mut clients: Vec<RawClient> = (0..20).map(|_| RawClient::connect(serin.web)).collect();
    wait_for("twenty clients", SOON, || {
        let open = serin.metric("serin_client_connections", &[]);
        ((open - 20.0).abs() < 0.5).then_some(())
    });
    // Whatever is opened from here on fails, as when other processes have taken all that the system has.
    serin.limit("nofile=8:");
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nhost: shop\r\n\r\n");
        let answer = client.answer("GET").unwrap();
        assert_eq!(answer.status, 503);
        assert!(String::from_utf8_lossy(&answer.body).contains("fault: proxy"));
    }
    let waiting: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(serin.web).unwrap()).collect();
    let (used, begun) = (serin.cpu(), now());
    wait_for("a second to pass", SOON, || {
        (begun.elapsed() > Duration::from_secs(1)).then_some(())
    });
    let share = serin.cpu().saturating_sub(used).as_secs_f64() / begun.elapsed().as_secs_f64();
    say(&format!("{:.1} % CPU while nothing can be opened", 100.0 * share));
    assert!(share < 0.2, "{share}");
    let complaints = serin.log().matches("cannot accept connections").count();
    assert!((1..=8).contains(&complaints), "{}", serin.log());

    serin.limit("nofile=1024:");
    drop(waiting);
    let begun = now();
    assert_eq!(ask(serin.web, false, get_request("/")).unwrap().status, 200);
    say(&format!("served again after {:?}", begun.elapsed()));
    let status = serin.status("shop");
    assert!(
        status["phase"] == "Paused" && status["setWeight"] == 40,
        "{status}"
    );
    assert!(failed(&serin) < 0.5);
    let healthy = |url: &str| serin.metric("serin_upstream_endpoint_healthy", &[("endpoint", url)]);
    assert!(healthy(&v1.url()) > 0.5 && healthy(&v2.url()) > 0.5);
    let local = serin.metric("serin_upstream_attempts_total", &[("outcome", "local_error")]);
    assert!((local - 20.0).abs() < 0.5, "{local}");
}

#[test]
fn with_too_few_files_it_does_not_start_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let v1 = Upstream::start("v1");
    std::fs::write(
        folder.path().join("serin.yaml"),
        format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]\nadmin: {{address: \"127.0.0.1:0\"}}\n{}",
            shop(&v1, "")
        ),
    )
    .unwrap();
    let (code, said) = refused_start_by(&["prlimit", "--nofile=48"], folder.path(), &[]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("only 48 files may be open") && said.contains("LimitNOFILE="),
        "{said}"
    );
}

#[test]
fn connections_to_the_operators_address_that_do_nothing_make_way_for_scrapes_and_probes() {
    let v1 = Upstream::start("v1");
    let serin = Serin::start_with(&format!("{HEAD}{}", shop(&v1, "")));
    // More than there are seats: silent ones, ones in the middle of a head, and ones that were answered before.
    let mut waiting: Vec<RawClient> = (0..300)
        .map(|n| {
            let mut client = RawClient::connect(serin.admin);
            match n % 3 {
                0 => assert!(client.send("GET /readyz HTTP/1.1\r\nhost:")),
                1 => {
                    client.send(format!("GET /livez HTTP/1.1\r\nhost: {}\r\n\r\n", serin.admin));
                    assert_eq!(client.answer("GET").unwrap().status, 200);
                }
                _ => {}
            }
            client
        })
        .collect();
    served_within_a_second(&serin, "idle connections");
    assert!(waiting[0].is_closed(), "the longest idle has made way");
}

/// Whoever scrapes or probes while the seats are taken is answered within a second; the middle one of many, since a busy
/// machine may let any one wait.
fn served_within_a_second(serin: &Serin, among: &str) {
    let ask = |n: usize| {
        let (path, begun) = (["/readyz", "/metrics", "/livez"][n % 3], now());
        assert_eq!(get(serin.admin, path).0, 200, "{path} among {among}");
        begun.elapsed()
    };
    let mut taken: Vec<Duration> = (0..9).map(ask).collect();
    taken.sort();
    say(&format!(
        "an answer among {among}: {:?}, at most {:?}",
        taken[4], taken[8]
    ));
    assert!(taken[4] < Duration::from_secs(1), "{taken:?} among {among}");
}

#[test]
fn operators_who_do_not_take_their_answers_make_way_for_scrapes_and_probes() {
    let v1 = Upstream::start("v1");
    let serin = Serin::start_with(&format!("{HEAD}{}", shop(&v1, "")));
    // More than there are seats; each asks for more than the kernel holds for so small a window, and takes none of it.
    let scrapes = format!("GET /metrics HTTP/1.1\r\nhost: {}\r\n\r\n", serin.admin).repeat(20);
    let _slow: Vec<TcpStream> = (0..300)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            socket.connect(&serin.admin.into()).unwrap();
            let mut slow = TcpStream::from(socket);
            slow.write_all(scrapes.as_bytes()).unwrap();
            slow
        })
        .collect();
    served_within_a_second(&serin, "clients that do not read");
}
