//! Listeners and the admin address, and what is written down of those who come in.

use super::*;

#[test]
fn limits_of_clients_are_bounded_and_belong_to_listeners() {
    let at =
        |limits: &str| MINIMAL.replace("'127.0.0.1:8080'", &format!("'127.0.0.1:8080', limits: {limits}"));
    let limits = good(&at(
        "{headers: 10000, streams: 7, resets: 8, streamWindow: 16KiB, connectionWindow: 64MiB}",
    ))
    .listeners[0]
        .limits;
    assert_eq!((limits.streams, limits.resets), (7, 8));
    assert_eq!(
        (limits.stream_window.as_u64(), limits.connection_window.as_u64()),
        (16 << 10, 64 << 20)
    );
    for (bad, said) in [
        (
            "{streams: 0}",
            "listeners[0].limits.streams: 0 would refuse everything",
        ),
        (
            "{headers: 10001}",
            "listeners[0].limits.headers: 10001 is out of range; write between 1 and 10000",
        ),
        (
            "{streamWindow: 8KiB}",
            "8KiB is out of range; write between 16KiB and 16MiB",
        ),
        (
            "{connectionWindow: 65MiB}",
            "65MiB is out of range; write between 64KiB and 64MiB",
        ),
    ] {
        let all = faults(&at(bad));
        assert!(all.contains(said), "{all}");
    }
    let warnings = shown(&read(&with("limits: {resets: 3}")).unwrap().warnings);
    assert!(
        warnings.contains("limits.resets: has no effect here"),
        "{warnings}"
    );
}

#[test]
fn a_proxy_header_is_believed_from_named_networks_and_at_unix_sockets_from_everybody() {
    let at = |address: &str, header: &str| {
        MINIMAL.replace(
            "'127.0.0.1:8080'",
            &format!("'{address}', proxyProtocol: {header}"),
        )
    };
    let rule = |address: &str, header: &str| good(&at(address, header)).listeners[0].proxy_protocol.clone();
    let believes = |rule: Option<ProxyProtocol>, ip: &str| rule.unwrap().believes(ip.parse().ok());
    let tcp = || rule("127.0.0.1:80", "{from: [10.0.0.0/8, 2001:db8::7]}");
    assert!(
        believes(tcp(), "10.1.2.3") && believes(tcp(), "::ffff:10.1.2.3") && believes(tcp(), "2001:db8::7")
    );
    assert!(!believes(tcp(), "127.0.0.1") && !believes(tcp(), "2001:db8::8"));
    assert!(believes(rule("unix:/run/s", "{}"), "nobody with an address"));
    assert!(good(MINIMAL).listeners[0].proxy_protocol.is_none());

    for header in ["{}", "{from: []}"] {
        let said = faults(&at("127.0.0.1:80", header));
        assert!(
            said.contains(
                "listeners[0].proxyProtocol: without `from` whoever reaches the port could claim any address"
            ) && said.contains("proxyProtocol: {from: [10.0.0.0/8]}"),
            "{said}"
        );
    }
    assert!(faults(&at("127.0.0.1:80", "{from: [lb.example]}")).contains("`lb.example` is not a network"));
    let warned = |text: &str| shown(&read(text).unwrap().warnings);
    assert!(warned(&at("127.0.0.1:80", "{from: ['::/0']}")).contains("may claim any address"));
    assert!(warned(&at("unix:/run/s", "{from: [10.0.0.0/8]}")).contains("has no effect at a Unix socket"));
}

#[test]
fn the_mode_of_a_unix_socket_is_octal() {
    let at = |address: &str, mode: &str| {
        MINIMAL.replace("'127.0.0.1:8080'", &format!("'{address}', socketMode: {mode}"))
    };
    for mode in ["0660", "660", "'0660'"] {
        assert_eq!(
            good(&at("unix:/run/s", mode)).listeners[0].socket_mode,
            Some(0o660)
        );
    }
    assert_eq!(good(MINIMAL).listeners[0].socket_mode, None);
    for mode in ["66", "0o660", "0888", "1777", "rw", "00660"] {
        let said = faults(&at("unix:/run/s", mode));
        assert!(
            said.contains("is not a file mode (write for example 0660)")
                || said.contains("is not a file mode; write for example 0660"),
            "{mode}: {said}"
        );
    }
    assert!(faults(&at("127.0.0.1:80", "0660")).contains("only a Unix socket has permissions"));
}

#[test]
fn the_admin_address_off_loopback_needs_a_word() {
    let at = |rest: &str| format!("{MINIMAL}admin: {{address: '0.0.0.0:9900'{rest}}}\n");
    assert!(faults(&at("")).contains("admin.address: 0.0.0.0:9900 is not loopback"));
    assert!(good(&at(", insecure: true")).admin.insecure);
    assert!(
        faults(&format!("{MINIMAL}admin: {{address: '127.0.0.1:8080'}}\n"))
            .contains("is taken by the listener")
    );
}

#[test]
fn further_names_of_the_admin_address_are_whole_names() {
    let at = |hosts: &str| format!("{MINIMAL}admin: {{hosts: [{hosts}]}}\n");
    assert_eq!(
        good(&at("Serin.Internal, serin")).admin.hosts,
        ["serin.internal", "serin"]
    );
    for (bad, what) in [
        ("'serin.internal:9900'", "is not a host name"),
        ("'*.internal'", "is not a host name"),
        ("10.0.0.7", "is an address"),
    ] {
        let said = faults(&at(&format!("serin, {bad}")));
        assert!(said.contains("admin.hosts[1]") && said.contains(what), "{said}");
    }
}

#[test]
fn an_access_log_and_a_collector_are_off_until_written_and_their_faults_named() {
    let config = good(MINIMAL);
    assert!(config.access_log.is_none() && config.tracing.is_none());
    let text = format!(
        "{MINIMAL}accessLog: {{format: clf, path: a.log, sample: 10%, headers: [User-Agent]}}\n\
         tracing: {{otlp: {{endpoint: 'http://127.0.0.1:4318/', headers: {{api-key: '${{TOKEN}}'}}}}}}\n"
    );
    let config = good(&text);
    let log = config.access_log.as_ref().unwrap();
    assert_eq!((log.format, log.query), (LogFormat::Clf, false));
    assert_eq!(log.path, LogPath::File("config/a.log".into()));
    assert_eq!(
        (log.sample.as_percent(), log.headers[0].as_str()),
        (10.0, "user-agent")
    );
    let otlp = config.tracing.as_ref().unwrap();
    assert_eq!(otlp.endpoint, "http://127.0.0.1:4318/v1/traces");
    assert!(!config.redacted_json().to_string().contains("0123456789abcdef"));
    for (line, fault) in [
        ("accessLog: {format: xml}", "accessLog.format"),
        ("accessLog: {fields: []}", "accessLog.fields"),
        ("accessLog: {headers: ['a b']}", "accessLog.headers[0]"),
        ("tracing: {}", "otlp"),
        (
            "tracing: {otlp: {endpoint: 'localhost:4318'}}",
            "is not a collector's address",
        ),
    ] {
        let faults = faults(&format!("{MINIMAL}{line}\n"));
        assert!(faults.contains(fault), "{line}: {faults}");
    }
}
