//! Where a deploy may lead: not to Serin itself, not to a cloud's metadata, nowhere that is not allowed; neither as it is
//! written nor through a name that leads there by and by.

use crate::support::{
    HEAD, Serin,
    client::{Plan, ask, get},
    dns::{NameServer, Says, at, copies},
    upstream::Upstream,
    wait_for,
};
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(30);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

fn service(stable: &Upstream, allowed: &str) -> String {
    format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}, deploy: {{allowedEndpoints: [{allowed}]}},
           ready: {{progressDeadline: 1h}}, strategy: {{canary: {{steps: [{{setWeight: 50}}, {{pause: {{}}}}]}}}}}}]",
        stable.url()
    )
}

fn deploy(serin: &Serin, version: &str, url: &str) -> (u16, String) {
    let body = format!("{{\"version\": \"{version}\", \"endpoints\": [\"{url}\"]}}");
    let (status, _, answer) = serin.api("POST", "/v1/services/shop/deploy", "secret-token", &body);
    (status, answer.to_string())
}

#[test]
fn what_a_deploy_writes_must_be_allowed_however_it_is_written() {
    let v1 = Upstream::start("v1");
    let everything = "\"0.0.0.0/0\", \"::/0\", \"*.test\", \"localhost\", \"unix:/*\"";
    let serin = Serin::start_with(&format!("{HEAD}{}", service(&v1, everything)));
    let socket = serin.file("serin.sock");
    let link = serin.file("link.sock");
    std::os::unix::fs::symlink(&socket, &link).unwrap();
    let deep = serin.file("x/../serin.sock");
    std::fs::create_dir(serin.file("x")).unwrap();
    let forbidden = [
        "http://169.254.169.254".to_owned(),
        "http://[::ffff:169.254.169.254]".to_owned(),
        "http://[::ffff:a9fe:a9fe]".to_owned(),
        "http://[64:ff9b::a9fe:a9fe]".to_owned(),
        "http://[fe80::1]".to_owned(),
        "http://[fd00:ec2::254]".to_owned(),
        "http://168.63.129.16".to_owned(),
        "http://0.0.0.0:6379".to_owned(),
        "http://[::]:6379".to_owned(),
        "http://[::ffff:0.0.0.0]:6379".to_owned(),
        "http://224.0.0.1".to_owned(),
        "http://255.255.255.255".to_owned(),
        format!("unix:{}", socket.display()),
        format!("unix://{}", socket.display()),
        format!("unix:/.{}", socket.display()),
        format!("unix:{}", link.display()),
        format!("unix:{}", deep.display()),
    ];
    for url in forbidden {
        let (status, answer) = deploy(&serin, "v2", &url);
        assert!(
            status == 403 && answer.contains("endpointNotAllowed"),
            "{url}: {status} {answer}"
        );
    }
    for (url, why) in [
        ("http://2852039166", "number"),
        ("http://0xa9fea9fe", "number"),
        ("http://0251.0376.0251.0376", "number"),
        ("http://169.254.43518", "number"),
        ("http://127.1:80", "number"),
        ("http://user@app.test", "user"),
        ("http://app.test@169.254.169.254", "user"),
        ("http://app.test:80@169.254.169.254:80", "user"),
        ("http://169.254.169.254#.app.test", "path"),
        ("http://169.254.169.254?.app.test", "path"),
        ("http://169.254.169.254\\\\.app.test", "host"),
        ("http://app.test:0", "port"),
        ("http://app.test:65536", "port"),
        ("http://app.test:-1", "port"),
        ("http://[fe80::1%25eth0]", "bracket"),
        ("gopher://127.0.0.1", "scheme"),
        ("file:///etc/passwd", "scheme"),
    ] {
        let (status, answer) = deploy(&serin, "v2", url);
        assert!(status == 422 && answer.contains(why), "{url}: {status} {answer}");
    }
    assert_eq!(serin.status("shop")["phase"], "Healthy");
}

/// A configuration whose own ports are known.
fn fixed() -> (SocketAddr, SocketAddr) {
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    (free(), free())
}

fn with_names(server: &NameServer, own: (SocketAddr, SocketAddr), services: &str) -> Serin {
    Serin::start_with(&format!(
        "listeners: [{{name: web, address: \"{}\"}}]
admin: {{address: \"{}\", tokens: [{{name: test, role: admin, secretFile: token}}]}}
dns: {{servers: [\"{}\"], timeout: 500ms, refresh: 1s}}
{services}",
        own.0, own.1, server.address
    ))
}

fn stale(serin: &Serin) -> bool {
    serin.metric("serin_upstream_dns_stale", &[]) > 0.5
}

#[test]
fn a_name_that_leads_elsewhere_after_it_was_allowed_is_not_followed() {
    let v1 = Upstream::start("v1");
    let (port, [good, secret], ips) = copies(["v2", "secret"]);
    let metadata = "app.test` resolves to 169.254.169.254, which endpoints of shop/v2 may not have: a link-local address";
    let elsewhere = "resolves to 127.0.0.3, which endpoints of shop/v2 may not have: not among the networks";
    // What its name says at first and why that is refused; then, when it serves, where else the name leads, all of it or
    // beside where it may, and whether that leaves it with what is known.
    let cases = [
        (
            Says::addresses(&[METADATA]),
            metadata,
            Says::addresses(&ips[1..]),
            true,
        ),
        (
            Says::Records(vec![at(METADATA.to_ipv6_mapped(), 1)]),
            "::ffff:169.254.169.254, which endpoints",
            Says::addresses(&ips),
            false,
        ),
        (
            Says::Records(vec![at(Ipv4Addr::UNSPECIFIED, 1)]),
            "resolves to 0.0.0.0",
            Says::addresses(&[METADATA]),
            true,
        ),
        (
            Says::addresses(&ips[1..]),
            elsewhere,
            Says::Records(vec![at(Ipv6Addr::LOCALHOST, 1)]),
            true,
        ),
    ];
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    // A time to live is whole seconds: each case waits for its own beside the others, not after them.
    std::thread::scope(|all| {
        for (first, why, later, is_stale) in cases {
            let (v1, right) = (&v1, Says::addresses(&ips[..1]));
            all.spawn(move || {
                let server = NameServer::start(first);
                let services = service(v1, "\"127.0.0.2/32\", \"*.test\"");
                let serin = with_names(&server, (anywhere, anywhere), &services);
                let (status, answer) = deploy(&serin, "v2", &format!("http://app.test:{port}"));
                assert_eq!(status, 201, "{answer}");
                let status =
                    serin.wait_status("shop", why, |status| status["message"].to_string().contains(why));
                assert_eq!(status["phase"], "Progressing", "{status}");
                assert!(stale(&serin));
                server.say(right.clone());
                serin.wait_status("shop", "the pause", |status| status["phase"] == "Paused");
                assert!(!stale(&serin));
                let clients = Plan::new(serin.web, 2).pause(Duration::from_millis(2)).start();
                server.say(later);
                let asked = server.asked();
                wait_for("two look-ups", SOON, || {
                    (server.asked() >= asked + 2).then_some(())
                });
                wait_for("what is visible", SOON, || {
                    (stale(&serin) == is_stale).then_some(())
                });
                let before = clients.tally().version("v2");
                clients.wait_more(100);
                assert!(clients.tally().version("v2") > before + 20);
                server.say(right);
                wait_for("the good address", SOON, || (!stale(&serin)).then_some(()));
                clients.stop().assert_clean();
                assert!(serin.log().contains(why));
            });
        }
    });
    assert!(good.requests() > 0);
    assert_eq!((secret.requests(), secret.connections()), (0, 0));
}

#[test]
fn ports_that_the_system_chose_are_serins_own_too() {
    let v1 = Upstream::start("v1");
    let server = NameServer::start(Says::addresses(&[Ipv4Addr::new(127, 0, 0, 5)]));
    let text = |more: &str| {
        format!(
            "listeners: [{{name: web, address: \"127.0.0.1:0\"}}, {{name: wide, address: \"0.0.0.0:0\"}}]
admin: {{address: \"127.0.0.1:0\", tokens: [{{name: test, role: admin, secretFile: token}}]}}
telemetry: {{address: \"0.0.0.0:0\"}}
dns: {{servers: [\"{}\"], timeout: 500ms, refresh: 1s}}
{}{more}",
            server.address,
            service(&v1, "\"127.0.0.0/8\", \"localhost\", \"*.test\"")
        )
    };
    let serin = Serin::start_with(&text(""));
    let log = serin.log();
    let telemetry = log
        .lines()
        .find_map(|line| line.split_once("metrics and probes at http://0.0.0.0:"));
    let digits = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>();
    let telemetry = telemetry.map(|(_, rest)| digits(rest)).unwrap();
    let wide = serin.listener("wide").port();
    let own = [
        (format!("127.0.0.1:{}", serin.web.port()), "listener `web`"),
        (format!("localhost:{}", serin.web.port()), "listener `web`"),
        (format!("127.0.0.1:{wide}"), "listener `wide`"),
        (format!("127.0.0.2:{wide}"), "listener `wide`"),
        (format!("127.0.0.2:{telemetry}"), "telemetry address"),
        (format!("127.0.0.1:{}", serin.admin.port()), "admin address"),
    ];
    let refused = || {
        for (address, what) in &own {
            let (status, answer) = deploy(&serin, "v2", &format!("http://{address}"));
            assert!(
                status == 403 && answer.contains(&format!("Serin's own {what}")),
                "{address}: {status} {answer}"
            );
        }
    };
    refused();
    // What a reload brings knows no more than the file says.
    serin.rewrite(&text("\n# another"));
    let (status, _, answer) = serin.api("POST", "/v1/config/reload", "secret-token", "{}");
    assert_eq!(status, 200, "{answer}");
    refused();
    let (status, answer) = deploy(&serin, "v2", &format!("http://app.test:{wide}"));
    assert_eq!(status, 201, "{answer}");
    let why = "Serin's own listener `wide`";
    serin.wait_status("shop", why, |status| status["message"].to_string().contains(why));
}

#[test]
fn no_name_leads_to_serin_itself_nor_one_under_a_pattern_to_this_machine() {
    let v1 = Upstream::start("v1");
    let own = fixed();
    let server = NameServer::start(Says::addresses(&[Ipv4Addr::LOCALHOST]));
    let serin = with_names(
        &server,
        own,
        &service(&v1, "\"*.test\", \"named.test\", \"localhost\""),
    );
    let waits = |version: &str, url: &str, why: &str| {
        let (status, answer) = deploy(&serin, version, url);
        assert_eq!(status, 201, "{answer}");
        serin.wait_status("shop", why, |status| status["message"].to_string().contains(why));
    };
    waits(
        "v2",
        &format!("http://named.test:{}", own.0.port()),
        "Serin's own listener `web`",
    );
    waits(
        "v3",
        &format!("http://named.test:{}", own.1.port()),
        "Serin's own admin address",
    );
    let elsewhere = Upstream::start("v4");
    waits(
        "v4",
        &format!("http://app.test:{}", elsewhere.address.port()),
        "not among the networks of deploy.allowedEndpoints",
    );
    assert_eq!(elsewhere.connections(), 0);
    // Written without a pattern it is the operator's word.
    let (status, answer) = deploy(
        &serin,
        "v5",
        &format!("http://named.test:{}", elsewhere.address.port()),
    );
    assert_eq!(status, 201, "{answer}");
    serin.wait_status("shop", "the pause", |status| status["phase"] == "Paused");
    for host in ["localhost", "LOCALHOST", "127.0.0.1"] {
        let (status, answer) = deploy(&serin, "v6", &format!("http://{host}:{}", own.1.port()));
        assert!(
            status == 403 && answer.contains("admin address"),
            "{host}: {status} {answer}"
        );
    }
    assert_eq!(ask(serin.web, false, get("/")).unwrap().status, 200);
}
