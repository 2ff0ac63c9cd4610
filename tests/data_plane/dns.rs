//! Endpoints with names: every address is used, changes are followed, a failing or lying server does no harm.

use crate::support::{
    HEAD, Serin,
    client::{Plan, ask, get},
    dns::{NameServer, Says, alias, answer, at, copies},
    get as get_page, now,
    upstream::Upstream,
    wait_for,
};
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(30);

fn serin(server: &NameServer, port: u16) -> Serin {
    serin_asking(&format!("\"{}\"", server.address), port)
}

fn serin_asking(servers: &str, port: u16) -> Serin {
    Serin::start_with(&format!(
        "{HEAD}dns: {{servers: [{servers}], timeout: 500ms, refresh: 1s}}\nservices: [{{name: shop, stable: {{version: v1, endpoints: [\"http://app.test:{port}\"]}}}}]"
    ))
}

fn stale(serin: &Serin) -> bool {
    serin.metric("serin_upstream_dns_stale", &[("host", "app.test")]) > 0.5
}

fn wait_stale(serin: &Serin, expected: bool) {
    wait_for(&format!("stale to be {expected}"), SOON, || {
        (stale(serin) == expected).then_some(())
    });
}

#[test]
fn every_address_of_a_name_gets_its_share_and_a_change_is_followed_without_an_error() {
    let (port, [a, b, c], ips) = copies(["a", "b", "c"]);
    let server = NameServer::start(Says::addresses(&ips[..2]));
    let serin = serin(&server, port);
    let tally = Plan::new(serin.web, 4).total(400).start().finish();
    tally.assert_clean();
    // On a busy machine one of them may stand still for a while, and the other rightly gets more.
    assert!(
        tally.version("a") > 10 && tally.version("b") > 10,
        "{:?}",
        tally.answers
    );
    let clients = Plan::new(serin.web, 4).start();
    clients.wait_more(100);
    server.say(Says::addresses(&ips[1..]));
    wait_for("the new address to be used", SOON, || {
        (c.requests() > 50).then_some(())
    });
    // The old one has answered what it had; nothing comes to it any more.
    let before = a.requests();
    clients.wait_more(200);
    assert_eq!(a.requests(), before);
    assert!(b.requests() > 100);
    drop(a);
    clients.wait_more(200);
    clients.stop().assert_clean();
}

#[test]
fn a_name_server_that_fails_leaves_the_last_good_addresses_in_use() {
    let (port, [a], ips) = copies(["a"]);
    let rubbish = |question: &[u8]| vec![question[..12].to_vec(), b"no message at all".to_vec()];
    let troubles = [
        Says::Code(3),
        Says::Code(2),
        Says::Code(5),
        Says::Records(Vec::new()),
        // An alias that leads nowhere.
        Says::Records(vec![alias("www", 1)]),
        Says::Nothing,
        Says::script(rubbish),
    ];
    // A time to live is whole seconds: each trouble waits for its own beside the others, not after them.
    std::thread::scope(|all| {
        for trouble in troubles {
            let says = || Says::addresses(&ips);
            all.spawn(move || {
                let server = NameServer::start(says());
                let serin = serin(&server, port);
                assert!(!stale(&serin));
                let clients = Plan::new(serin.web, 1).pause(Duration::from_millis(2)).start();
                server.say(trouble);
                wait_stale(&serin, true);
                clients.wait_more(50);
                server.say(says());
                wait_stale(&serin, false);
                clients.stop().assert_clean();
                assert!(serin.log().contains("known addresses stay in use"));
            });
        }
    });
    assert!(a.requests() > 0);
}

#[test]
fn a_version_whose_name_has_no_address_is_not_ready_and_serves_as_soon_as_it_has_one() {
    let (port, [a], ips) = copies(["a"]);
    let server = NameServer::start(Says::Code(3));
    let serin = serin(&server, port);
    let answer = ask(serin.web, false, get("/")).unwrap();
    assert_eq!((answer.status, answer.header("retry-after")), (503, "1"));
    assert!(stale(&serin));
    let endpoint = &serin.status("shop")["versions"][0]["endpoints"][0];
    assert_eq!(
        (endpoint["ready"].as_bool(), endpoint["healthy"].as_bool()),
        (Some(false), Some(false))
    );
    let (status, why) = get_page(serin.admin, "/readyz");
    assert!(
        status == 503 && why.contains("no version has an address"),
        "{status} {why}"
    );
    server.say(Says::addresses(&ips));
    wait_for("an answer", SOON, || {
        (ask(serin.web, false, get("/")).unwrap().status == 200).then_some(())
    });
    assert!(a.requests() > 0);
    assert_eq!(get_page(serin.admin, "/readyz").0, 200);
    // Once ready, a name server in trouble changes nothing.
    server.say(Says::Nothing);
    wait_stale(&serin, true);
    assert_eq!(get_page(serin.admin, "/readyz").0, 200);
}

#[test]
fn an_answer_too_long_for_a_datagram_is_taken_over_tcp_however_long_it_is() {
    let upstream = Upstream::start_at("a", SocketAddr::from(([0, 0, 0, 0], 0)));
    let many: Vec<Ipv4Addr> = (0u8..12)
        .flat_map(|high| (0u8..250).map(move |low| Ipv4Addr::new(127, 1, high, low + 1)))
        .collect();
    let records = |ips: &[Ipv4Addr]| Says::OverTcp(ips.iter().map(|ip| at(*ip, 1)).collect());
    let server = NameServer::start(records(&many));
    let serin = serin(&server, upstream.address.port());
    assert!(server.asked_over_tcp() >= 1 && !stale(&serin));
    let known = || {
        serin.status("shop")["versions"][0]["endpoints"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(known(), 3000);
    Plan::new(serin.web, 4).total(200).start().finish().assert_clean();
    assert!(upstream.connections() > 50, "spread over many");
    server.say(records(&many[..5]));
    wait_for("the shorter answer", SOON, || (known() == 5).then_some(()));
    // Over TCP the connection ends unanswered: what was known stays.
    server.say(Says::script(|question| {
        let mut cut = answer(question, 0, &[]);
        cut[2] |= 0x02;
        vec![cut]
    }));
    wait_stale(&serin, true);
    Plan::new(serin.web, 4).total(100).start().finish().assert_clean();
}

#[test]
fn aliases_are_followed_and_bound_the_time_for_which_an_answer_is_believed() {
    let (port, [a, b], ips) = copies(["a", "b"]);
    let chain = |ip: Ipv4Addr| {
        let links = [("www", 300), ("eu", 1), ("rack7", 300)].map(|(label, ttl)| alias(label, ttl));
        Says::Records(links.into_iter().chain([at(ip, 300)]).collect())
    };
    let server = NameServer::start(chain(ips[0]));
    let serin = serin(&server, port);
    Plan::new(serin.web, 1).total(10).start().finish().assert_clean();
    assert_eq!(a.requests(), 10);
    server.say(chain(ips[1]));
    wait_for("the other one to be used", SOON, || {
        assert_eq!(ask(serin.web, false, get("/")).unwrap().status, 200);
        (b.requests() > 0).then_some(())
    });
}

#[test]
fn ipv6_addresses_are_used_beside_ipv4_ones_and_alone() {
    let six = Upstream::start_at("six", SocketAddr::from((Ipv6Addr::LOCALHOST, 0)));
    let port = six.address.port();
    let four = Upstream::start_at("four", SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let loopback = at(Ipv6Addr::LOCALHOST, 1);
    let server = NameServer::start(Says::Records(vec![loopback.clone()]));
    let serin = serin(&server, port);
    Plan::new(serin.web, 1).total(10).start().finish().assert_clean();
    assert_eq!(six.requests(), 10);
    server.say(Says::Records(vec![loopback, at(Ipv4Addr::LOCALHOST, 1)]));
    // A machine without a way into IPv6 has no use for both: then the IPv4 one is used alone.
    wait_for("the other kind", SOON, || {
        assert_eq!(ask(serin.web, false, get("/")).unwrap().status, 200);
        (four.requests() > 0).then_some(())
    });
}

#[test]
fn a_time_to_live_of_nothing_is_asked_for_once_a_second() {
    let (port, [a, b], ips) = copies(["a", "b"]);
    let server = NameServer::start(Says::Records(vec![at(ips[0], 0)]));
    let serin = serin(&server, port);
    let (begun, before) = (now(), server.asked());
    wait_for("three more questions", SOON, || {
        (server.asked() >= before + 3).then_some(())
    });
    let most = begun.elapsed().as_secs() + 2;
    assert!(
        server.asked() - before <= most,
        "{} in {most} s",
        server.asked() - before
    );
    server.say(Says::Records(vec![at(ips[1], 0)]));
    let clients = Plan::new(serin.web, 2).start();
    wait_for("the change", SOON, || (b.requests() > 20).then_some(()));
    clients.stop().assert_clean();
    let _ = a;
}

#[test]
fn other_servers_and_a_shorter_refresh_are_asked_at_once_after_a_reload() {
    let (port, [_a, b], ips) = copies(["a", "b"]);
    let hours = |ip| Says::Records(vec![at(ip, 7200)]);
    let (old, new) = (NameServer::start(hours(ips[0])), NameServer::start(hours(ips[1])));
    let configuration = |server: &NameServer| {
        format!(
            "{HEAD}dns: {{servers: [\"{}\"], refresh: 2h}}\nservices: [{{name: shop, stable: {{version: v1, endpoints: [\"http://app.test:{port}\"]}}}}]",
            server.address
        )
    };
    let serin = Serin::start_with(&configuration(&old));
    assert_eq!(get_page(serin.web, "/").0, 200);
    assert_eq!(b.requests(), 0);
    serin.rewrite(&configuration(&new));
    wait_for("what the new server says", SOON, || {
        get_page(serin.web, "/");
        (b.requests() > 0).then_some(())
    });
    // The same servers with other words around them are asked no more often.
    let asked = new.asked();
    serin.rewrite(&format!("# nothing else\n{}", configuration(&new)));
    serin.wait_log("nothing is different");
    assert_eq!(new.asked(), asked);
}

#[test]
fn who_answers_something_else_is_not_believed() {
    let (port, [honest, liar], ips) = copies(["honest", "liar"]);
    let (truth, lie) = (at(ips[0], 1), at(ips[1], 1));
    let server = NameServer::start(Says::script(move |question| {
        let edited = |at: usize, with: u8| {
            let mut asked = question.to_vec();
            asked[at] ^= with;
            asked
        };
        let lies = [
            // Another id, another name, another kind, another class.
            edited(1, 1),
            edited(14, 1),
            edited(question.len() - 3, 0xff),
            edited(question.len() - 1, 2),
        ];
        let mut replies: Vec<Vec<u8>> = lies
            .iter()
            .map(|asked| answer(asked, 0, std::slice::from_ref(&lie)))
            .collect();
        // A question instead of an answer, and an answer to no question.
        let mut query = answer(question, 0, std::slice::from_ref(&lie));
        query[2] &= 0x7f;
        let mut none = answer(question, 0, std::slice::from_ref(&lie));
        none[5] = 0;
        // Names that lead to themselves, and a record that ends beyond the message.
        let mut circle = answer(question, 0, &[]);
        circle[7] = 1;
        circle.extend([0xc0, u8::try_from(question.len()).unwrap()]);
        let mut long = answer(question, 0, std::slice::from_ref(&lie));
        let end = long.len() - 6;
        long[end..end + 2].copy_from_slice(&[0xff, 0xff]);
        replies.extend([query, none, circle, long]);
        replies.push(answer(question, 0, std::slice::from_ref(&truth)));
        replies
    }));
    let serin = serin(&server, port);
    let go_on = || {
        let asked = server.asked();
        wait_for("two more look-ups", SOON, || {
            (server.asked() >= asked + 2).then_some(())
        });
        Plan::new(serin.web, 2).total(20).start().finish().assert_clean();
    };
    go_on();
    // The right message from another port comes from somebody else.
    server.say(Says::Forged {
        lie: vec![at(ips[1], 1)],
        truth: vec![at(ips[0], 1)],
    });
    go_on();
    assert_eq!((liar.requests(), stale(&serin)), (0, false));
    assert_eq!(honest.requests(), 40);
}

#[test]
fn when_the_first_server_is_gone_or_silent_the_second_is_asked() {
    let (port, [a], ips) = copies(["a"]);
    let (silent, server) = (
        NameServer::start(Says::Nothing),
        NameServer::start(Says::addresses(&ips)),
    );
    let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let serin = serin_asking(
        &format!("\"{gone}\", \"{}\", \"{}\"", silent.address, server.address),
        port,
    );
    wait_for("an answer", SOON, || {
        (ask(serin.web, false, get("/")).unwrap().status == 200).then_some(())
    });
    assert!(!stale(&serin) && silent.asked() > 0 && a.requests() > 0);
}
