//! Unix sockets both ways: listeners and endpoints, and which of them a deploy may name.

use super::health::wait_health;
use crate::support::{
    HEAD, Serin,
    authority::Authority,
    client::{Plan, ask, get as get_request},
    http::{Client, Server, Speaks, To},
    python::Servers,
    refused_start,
    upstream::Upstream,
    wait_for,
};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::{PermissionsExt, symlink},
        net::{UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

const SOON: Duration = Duration::from_secs(20);

/// A folder with a configuration whose listener `web` is beside one at `shop.sock`.
fn folder(shop: &str, services: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("shop.sock");
    let configuration = format!(
        "listeners:\n- {{name: web, address: \"127.0.0.1:0\"}}\n- {{name: shop, address: \"unix:{}\"{shop}}}\n\
         admin: {{address: \"127.0.0.1:0\", tokens: [{{name: test, role: admin, secretFile: token}}]}}\n{services}",
        socket.display()
    );
    fs::write(folder.path().join("serin.yaml"), configuration).unwrap();
    fs::write(folder.path().join("token"), "secret-token\n").unwrap();
    folder
}

fn one_version(url: &str) -> String {
    format!("services: [{{name: shop, stable: {{version: v1, endpoints: [\"{url}\"]}}}}]")
}

fn at(serin: &Serin) -> Client {
    Client {
        to: To::Unix(serin.file("shop.sock")),
        tls: None,
        http2: false,
        preamble: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_at_a_unix_socket_are_served_like_others_and_count_as_this_machine() {
    let upstream = Server::start(Speaks::default());
    let url = format!("http://127.0.0.1:{}", upstream.port());
    let authority = Authority::new("test");
    for (keys, secure, told) in [
        (", socketMode: 0660", false, "127.0.0.1"),
        (", trustedProxies: [127.0.0.1]", false, "203.0.113.9, 127.0.0.1"),
        (", tls: {certificate: web.pem, key: web.key}", true, "127.0.0.1"),
    ] {
        let folder = folder(keys, &one_version(&url));
        authority.issue(&["shop.example"]).write(folder.path(), "web");
        let serin = Serin::run_in(folder, &[]);
        let file = serin.file("shop.sock");
        assert!(
            serin
                .log()
                .contains(&format!("listener `shop` at unix:{}", file.display()))
        );
        for http2 in [false, true] {
            let protocols: &[&str] = if http2 { &["h2"] } else { &["http/1.1"] };
            let secured = || (authority.client(protocols), "shop.example".to_owned());
            let client = Client {
                http2,
                tls: secure.then(secured),
                ..at(&serin)
            };
            let mut request = crate::support::http::request("GET", "/", crate::support::http::whole(""));
            let claim = "203.0.113.9".parse().unwrap();
            request.headers_mut().insert("x-forwarded-for", claim);
            let answer = client.send(request).await.unwrap();
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("x-saw-x-forwarded-for"), told, "{keys}");
            let scheme = if secure { "https" } else { "http" };
            assert_eq!(answer.header("x-saw-x-forwarded-proto"), scheme);
        }
        if keys.contains("0660") {
            let mode = fs::symlink_metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o660);
        }
        let folder = serin.stop();
        assert!(
            !folder.path().join("shop.sock").exists(),
            "it goes with its process"
        );
    }
}

#[test]
fn a_stopping_socket_takes_nobody_new_and_finishes_what_it_has() {
    let v1 = Upstream::start("v1");
    let mut serin = Serin::run_in(folder("", &one_version(&v1.url())), &[]);
    let mut client = UnixStream::connect(serin.file("shop.sock")).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    client
        .write_all(b"GET /gate HTTP/1.1\r\nhost: a\r\n\r\n")
        .unwrap();
    wait_for("the request", SOON, || (v1.in_flight() == 1).then_some(()));
    serin.signal("TERM");
    wait_for("the file to go", SOON, || {
        (!serin.file("shop.sock").exists()).then_some(())
    });
    v1.open_gate();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"),
        "{answer}"
    );
    assert_eq!(serin.wait_end(SOON), 0);
}

fn ok_at(socket: &Path) -> bool {
    let mut client = UnixStream::connect(socket).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer.starts_with("HTTP/1.1 200")
}

#[test]
fn a_socket_of_a_dead_process_is_replaced_and_one_that_is_served_or_no_socket_is_not() {
    let v1 = Upstream::start("v1");
    let serin = Serin::run_in(folder("", &one_version(&v1.url())), &[]);
    let socket = serin.file("shop.sock");
    // SIGKILL leaves the file.
    let serin = serin.crash_then(|folder| assert!(folder.join("shop.sock").exists()));
    assert!(ok_at(&socket));

    // Another instance with a state of its own.
    let other = folder("", &one_version(&v1.url()));
    let file = other.path().join("serin.yaml");
    let at = |path: &Path| {
        let text = fs::read_to_string(&file).unwrap();
        let old = text
            .split("unix:")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .to_owned();
        fs::write(&file, text.replace(&old, &path.display().to_string())).unwrap();
        let (code, said) = refused_start(other.path(), &[]);
        assert_eq!(code, 1, "{said}");
        said
    };
    let said = at(&socket);
    let expected = format!(
        "cannot listen at unix:{}: another process does; stop it or choose another address",
        socket.display()
    );
    assert!(said.contains(&expected), "{said}");
    assert!(ok_at(&socket), "the first one serves on");

    let precious = other.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    let said = at(&precious);
    assert!(
        said.contains("a file that is not a socket is there; remove it"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");

    let said = at(&other.path().join("missing/shop.sock"));
    assert!(
        said.contains("its directory must exist") && said.contains("No such file"),
        "{said}"
    );
    serin.stop();
}

#[test]
fn connections_to_a_unix_endpoint_are_kept_and_what_fails_there_goes_to_another() {
    let sockets = tempfile::tempdir().unwrap();
    let start = |name: &str| Upstream::unix("v1", &sockets.path().join(name));
    let (one, two) = (start("1.sock"), start("2.sock"));
    let urls = format!("\"{}\", \"{}\"", one.url(), two.url());
    let serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [{urls}]}}}}]"
    ));
    let load = |total: u64| Plan::new(serin.web, 2).total(total).start().finish();
    assert_eq!(load(200).version("v1"), 200);
    let opened = one.connections() + two.connections();
    assert!(
        opened <= 8,
        "{opened} connections for 200 requests of two clients"
    );
    // Answers that never came, from a socket that is gone with its connections.
    let label = one.url();
    drop(one);
    let seen = load(200);
    assert_eq!(seen.version("v1"), 200, "{:?} {:?}", seen.failed, seen.broken);
    let failed = serin.metric("serin_upstream_attempts_total", &[("outcome", "connect_failed")]);
    assert!(failed > 0.5, "{failed}");
    assert!(label.starts_with("unix:/"));
}

/// Serin with a canary at a socket that may not be there yet.
fn with_canary(stable: &str, canary: &Path, more: &str) -> Serin {
    Serin::start(&format!(
        "services:\n- name: shop\n  stable: {{version: v1, endpoints: [\"{stable}\"]}}\n  \
         canary: {{version: v2, endpoints: [\"unix:{}\"]}}\n  \
         strategy: {{canary: {{steps: [{{setWeight: 50}}, {{pause: {{}}}}]}}}}\n  {more}\n",
        canary.display()
    ))
}

#[test]
fn a_canary_whose_socket_is_missing_gets_nothing_and_one_whose_socket_goes_is_pulled_back_without_an_error() {
    let sockets = tempfile::tempdir().unwrap();
    let socket = sockets.path().join("canary.sock");
    let v1 = Upstream::start("v1");
    let serin = with_canary(&v1.url(), &socket, "ready: {http: /healthz}");
    assert_eq!(
        Plan::new(serin.web, 2).total(20).start().finish().version("v1"),
        20
    );
    assert_eq!(serin.status("shop")["phase"], "Progressing");

    let v2 = Upstream::unix("v2", &socket);
    serin.wait_status("shop", "the first step", |status| status["phase"] == "Paused");
    let clients = Plan::new(serin.web, 2).start();
    wait_for("the canary to serve", SOON, || (v2.requests() > 20).then_some(()));
    drop(v2);
    fs::remove_file(&socket).unwrap();
    serin.wait_status("shop", "the abort", |status| status["phase"] == "Degraded");
    let seen = clients.stop();
    assert!(
        seen.failed.is_empty() && seen.broken.is_empty(),
        "{:?} {:?}",
        seen.failed,
        seen.broken
    );
    let aborts = serin.metric("serin_rollout_aborts_total", &[("cause", "hard_failure")]);
    assert!(aborts > 0.5);
}

#[test]
fn health_checks_go_over_the_socket_too() {
    let sockets = tempfile::tempdir().unwrap();
    let paths = ["1.sock", "2.sock"].map(|name| sockets.path().join(name));
    let start = |path: &Path| Upstream::unix("v1", path);
    let (one, _two) = (start(&paths[0]), start(&paths[1]));
    let [first, second] = paths.each_ref().map(|path| format!("unix:{}", path.display()));
    let serin = Serin::start(&format!(
        "services: [{{name: shop, health: {{http: /healthz, interval: 100ms, fall: 2, rise: 1}}, \
         stable: {{version: v1, endpoints: [\"{first}\", \"{second}\"]}}}}]"
    ));
    let waits_for = |wanted: f64| {
        wait_for("the health of the first", SOON, || {
            let is = serin.metric("serin_upstream_endpoint_healthy", &[("endpoint", &first)]);
            ((is - wanted).abs() < 0.1).then_some(())
        });
    };
    waits_for(1.0);
    drop(one);
    waits_for(0.0);
    assert_eq!(
        Plan::new(serin.web, 2).total(20).start().finish().version("v1"),
        20
    );
    fs::remove_file(&paths[0]).unwrap();
    let _one = start(&paths[0]);
    waits_for(1.0);
}

#[test]
fn http2_is_spoken_over_a_socket_that_says_so_checks_included() {
    let sockets = tempfile::tempdir().unwrap();
    let one = Upstream::unix_h2c("v1", &sockets.path().join("1.sock"));
    let serin = Serin::start(&format!(
        "services: [{{name: shop, health: {{http: /healthz, interval: 100ms}}, \
         stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        one.url()
    ));
    let at_endpoint = [("endpoint", one.url())];
    let label = [(at_endpoint[0].0, at_endpoint[0].1.as_str())];
    wait_for("its health", SOON, || {
        (serin.metric("serin_upstream_endpoint_healthy", &label) > 0.5).then_some(())
    });
    let tally = Plan::new(serin.web, 8).total(400).start().finish();
    assert_eq!(tally.version("v1"), 400, "{:?} {:?}", tally.failed, tally.broken);
    let opened = one.connections();
    assert!(
        opened < 60,
        "{opened} connections, most of them checks, for 400 requests"
    );
}

#[test]
fn a_grpc_server_at_a_socket_is_checked_and_called() {
    let sockets = tempfile::tempdir().unwrap();
    let url = format!("unix+h2c:{}", sockets.path().join("grpc.sock").display());
    let (mut servers, ..) = Servers::start(&format!("health unix:{}/grpc.sock", sockets.path().display()));
    servers.tell("shop.Orders SERVING");
    let serin = Serin::start(&format!(
        "services: [{{name: shop, health: {{grpc: shop.Orders, interval: 100ms, timeout: 20s, rise: 2, fall: 2}}, \
         stable: {{version: v1, endpoints: [\"{url}\"]}}}}]"
    ));
    let calls = Servers::start(&format!("call {}", serin.web.port())).0;
    for (status, expected) in [("NOT_SERVING", 0.0), ("SERVING", 1.0)] {
        servers.tell(&format!("shop.Orders {status}"));
        wait_health(&serin, &url, expected);
    }
    wait_for("calls", SOON, || {
        let ok = serin.count("serin_version_outcomes_total", &[("outcome", "ok")]);
        (ok > 20).then_some(())
    });
    let said = calls.finish();
    assert!(said.starts_with("OK ") && said.lines().count() == 1, "{said}");
}

#[test]
fn a_server_that_is_slow_to_accept_is_waited_for_like_one_at_a_port() {
    let sockets = tempfile::tempdir().unwrap();
    let path = sockets.path().join("slow.sock");
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let listener = UnixListener::from(socket);
    let serin = Serin::start(&format!(
        "services: [{{name: shop, timeouts: {{connect: 10s}}, stable: {{version: v1, endpoints: [\"unix:{}\"]}}}}]",
        path.display()
    ));
    // The queue is full: whoever connects now is refused by the kernel.
    let first = UnixStream::connect(&path).unwrap();
    let web = serin.web;
    let client = std::thread::spawn(move || ask(web, false, get_request("/")).unwrap());
    wait_for("the request to wait", SOON, || {
        (serin.metric("serin_http_requests_in_flight", &[]) > 0.5).then_some(())
    });
    let accepted = listener.accept().unwrap().0;
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut [0; 16]).unwrap();
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-version: v1\r\n\r\n")
        .unwrap();
    assert_eq!(client.join().unwrap().status, 200);
    let failed = serin.metric("serin_version_outcomes_total", &[("outcome", "failed")]);
    assert!(failed < 0.5, "{failed}");
    drop((first, accepted));
}

#[test]
fn a_deploy_reaches_only_the_sockets_that_the_operator_allowed_and_never_serins_own() {
    let v1 = Upstream::start("v1");
    let apps = tempfile::tempdir().unwrap();
    let inside = |name: &str| apps.path().join(name);
    let mine = inside("app-1.sock");
    let v2 = Upstream::unix("v2", &mine);
    let secret = inside("secret.sock");
    let _listening = UnixListener::bind(&secret).unwrap();
    let deploy = |serin: &Serin, path: &Path| {
        let body = format!(r#"{{"version": "v2", "endpoints": ["unix:{}"]}}"#, path.display());
        let (status, _, answer) = serin.api("POST", "/v1/services/shop/deploy", "secret-token", &body);
        (status, answer["code"].to_string())
    };
    let refused = (403, "\"endpointNotAllowed\"".to_owned());
    let service = |rule: &str| {
        format!(
            "services: [{{name: shop, deploy: {{allowedEndpoints: [{rule}]}}, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
            v1.url()
        )
    };

    // A service that names no sockets, and one that allows all of this machine's ports.
    let serin = Serin::start(&one_version(&v1.url()));
    assert_eq!(deploy(&serin, &mine), refused);
    let serin = Serin::start(&service("127.0.0.0/8, localhost"));
    assert_eq!(deploy(&serin, &mine), refused);

    let serin = Serin::start(&service(&format!("\"unix:{}/app-*\"", apps.path().display())));
    let up = inside("app-1/../secret.sock");
    for path in [&secret, &up, Path::new("/run/docker.sock")] {
        assert_eq!(deploy(&serin, path), refused, "{}", path.display());
    }
    assert_eq!(deploy(&serin, &mine).0, 201);
    serin.wait_status("shop", "v2", |status| {
        status["phase"] == "Progressing" || status["phase"] == "Healthy"
    });
    drop(v2);

    // Everything beside the configuration: but not the socket that gives full rights, under none of its names.
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("serin.yaml"),
        format!(
            "{HEAD}{}",
            service(&format!("\"unix:{}/*\"", folder.path().display()))
        ),
    )
    .unwrap();
    fs::write(folder.path().join("token"), "secret-token\n").unwrap();
    let serin = Serin::run_in(folder, &[]);
    let own = serin.file("serin.sock");
    assert!(own.exists());
    symlink(&own, serin.file("app.sock")).unwrap();
    for name in ["serin.sock", "./serin.sock", "app.sock"] {
        assert_eq!(deploy(&serin, &serin.file(name)), refused, "{name}");
    }
}
