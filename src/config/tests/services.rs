//! Services, their endpoints and their routes, and who is told of them.

use super::*;

#[test]
fn a_services_words_become_types() {
    let config = good(&with(
        "match:\n- host: '*.Example.com'\n  path: {prefix: /api}\n  method: POST\n  headers: {x-a: 1, x-b: {regex: \
         '[a-z]+'}}\n  cookies: {c: {present: true}}\n  query: {q: {prefix: z}}\n- path: {exact: /x}\nsticky: {cookie: \
         {maxAge: 1h}, missing: stable}\nforce: {header: X-Canary}\nfailure: {statuses: [429, 5xx, 440-441], \
         responseHeader: {name: x-bad, value: yes}, grpc: [unavailable, 13]}\nhealth: {interval: 2s}\nready: {http: \
         /ok}\ntimeouts: {request: 10s}\ndeploy: {allowedEndpoints: [10.0.0.0/8, '*.svc.local', 'unix:/run/app/*']}\n\
         rollbackWindow: {revisions: 3}",
    ));
    let service = &config.services[0];
    assert_eq!(service.matches.len(), 2);
    let sticky = service.sticky.as_ref().unwrap();
    let cookie = StickyCookie {
        name: "serin-id".to_owned(),
        max_age: Span::secs(3600),
    };
    assert_eq!(
        (&sticky.source, sticky.missing),
        (&StickySource::Cookie(cookie), MissingKey::Stable)
    );
    let force = service.force.as_ref().unwrap();
    assert!(force.allows("::ffff:10.1.1.1".parse().unwrap()) && !force.allows("8.8.8.8".parse().unwrap()));
    let failing: Vec<u16> = (0..1024)
        .filter(|status| service.failure.is_failure_status(*status))
        .collect();
    assert_eq!(failing.len(), 103);
    assert!(service.failure.is_failure_grpc(14) && service.failure.is_failure_grpc(13));
    assert!(!service.failure.is_failure_grpc(2) && !service.failure.is_failure_grpc(0));
    let mut headers = http::HeaderMap::new();
    assert!(!service.failure.is_failure_head(200, &headers));
    headers.insert("x-bad", http::HeaderValue::from_static("yes"));
    assert!(service.failure.is_failure_head(200, &headers));
    assert_eq!(
        service.health.as_ref().unwrap().check,
        Check::Http("/ok".to_owned())
    );
    let t = service.timeouts.over(&config.listeners[0].timeouts);
    assert_eq!((t.request, t.connect), (Some(Span::secs(10)), Span::secs(1)));
    let allows = |url: &str| service.deploy.allows(&url.parse().unwrap());
    assert!(allows("http://10.9.9.9") && allows("http://a.svc.local") && allows("unix:/run/app/1.sock"));
    assert!(!allows("http://11.0.0.1") && !allows("http://svc.local") && !allows("unix:/run/app/../x"));
    assert!(!allows("http://localhost"));
    assert_eq!(service.plan.rollback_window.unwrap().revisions, 3);
    assert_eq!(config.router().targets(), [0]);
}

#[test]
fn how_endpoints_are_looked_after_is_said_in_a_few_words() {
    let config = good(&format!(
        "dns: {{servers: [10.0.0.53, '127.0.0.1:5353', '[::1]:53', '::1'], refresh: 10s}}\n{}",
        with(
            "health: {grpc: '', rise: 1}\nejection: {badResponses: 5, panic: 0, successRate: {minimum: 50%}}\nslowStart: \
             30s\nready: {http: /ok}",
        )
    ));
    let servers: Vec<String> = config.dns.servers.iter().map(ToString::to_string).collect();
    assert_eq!(
        servers,
        ["10.0.0.53:53", "127.0.0.1:5353", "[::1]:53", "[::1]:53"]
    );
    assert_eq!(
        (config.dns.refresh, config.dns.timeout),
        (Span::secs(10), Span::secs(2))
    );
    let service = &config.services[0];
    assert_eq!(service.health.as_ref().unwrap().check, Check::Grpc(String::new()));
    assert_eq!(service.slow_start, Some(Span::secs(30)));
    assert_eq!(service.balance, Balance::LeastRequest);
    let in_turn = good(&with("balance: roundRobin"));
    assert_eq!(in_turn.services[0].balance, Balance::RoundRobin);
    let unknown = read(&with("balance: random")).unwrap_err();
    assert!(shown(&unknown).contains("roundRobin"), "{}", shown(&unknown));
    assert_eq!(
        (service.ejection.failures, service.ejection.bad_responses),
        (3, Some(5))
    );
    let rate = service.ejection.success_rate.unwrap();
    assert_eq!((rate.requests, rate.below_mean), (100, None));
    for (text, part) in [
        (
            "health: {http: /a, tcp: true}",
            "only one of http, tcp and grpc can be asked",
        ),
        ("health: {grpc: 'a b'}", "is not a gRPC service's name"),
        (
            "ejection: {successRate: {}}",
            "nothing says which rate is too low",
        ),
        (
            "ejection: {successRate: {minimum: 50%, window: 1s}}",
            "write for example 10s",
        ),
        ("ejection: {base: 0s}", "no time at all would eject nothing"),
    ] {
        let said = faults(&with(text));
        assert!(said.contains("services[0].") && said.contains(part), "{said}");
    }
    let said = faults(&format!(
        "dns: {{servers: [ns.example.com], timeout: 0s}}\n{}",
        with("")
    ));
    assert!(
        said.contains("is not a DNS server's address") && said.contains("dns.timeout"),
        "{said}"
    );
}

#[test]
fn who_is_told_is_read_with_its_defaults() {
    let config = good(&format!(
        "{MINIMAL}notifications:\n- {{name: ops, url: 'https://hooks.test/${{TOKEN}}'}}\n- {{name: chat, url: 'http://127.0.0.1:1', format: \
         slack, on: [on-rollout-step-completed], services: [app], timeout: 1m, secret: MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw, \
         headers: {{X-Team: a}}}}\n"
    ));
    let [ops, chat] = &config.notifications[..] else {
        panic!("{:?}", config.notifications)
    };
    assert_eq!(ops.url.expose(), "https://hooks.test/0123456789abcdef0123");
    assert_eq!(
        (ops.format, ops.timeout, &ops.secret, &ops.services),
        (NotificationFormat::Json, Span::secs(10), &None, &None)
    );
    assert_eq!(ops.on, crate::rollout::Trigger::TELLING);
    let app = crate::model::ServiceName::new("app").unwrap();
    let completed = crate::rollout::Trigger::OnRolloutStepCompleted;
    assert!(chat.wants(&app, completed) && !ops.wants(&app, completed));
    assert!(!chat.wants(&crate::model::ServiceName::new("other").unwrap(), completed));
    assert_eq!(
        (chat.headers[0].0.as_str(), chat.timeout),
        ("x-team", Span::secs(60))
    );
    let shown = format!("{} {config:?}", config.redacted_json());
    assert!(
        !shown.contains("0123456789abcdef0123") && !shown.contains("MfKQ"),
        "{shown}"
    );
    let hidden = good(&format!(
        "{MINIMAL}notifications: [{{name: ops, url: 'https://hooks.test/T0/geheim'}}]\n"
    ));
    assert_eq!(
        hidden.redacted_json()["notifications"][0]["url"],
        "https://hooks.test/[redacted]"
    );
}

#[test]
fn what_is_wrong_with_who_is_told_says_where_and_how_to_mend_it() {
    let faults = faults(&format!(
        "{MINIMAL}notifications:\n- {{name: ops, url: 'hooks.test', on: [on-rollout-abortet], timeout: 2m}}\n- {{name: ops, url: \
         'https://hooks.test', secret: short, on: [], headers: {{Webhook-Id: 1}}}}\n- {{nme: x, url: 'http://169.254.169.254/'}}\n"
    ));
    for part in [
        "serin.yaml:6:20: notifications[0].url: this is not an address to post to",
        "notifications[0].on[0]: `on-rollout-abortet`",
        "did you mean `on-rollout-aborted`?",
        "notifications[0].timeout: an attempt that takes 2m",
        "notifications[1].name: two notifications are called `ops`",
        "notifications[1].secret: this is not a key for signatures",
        "openssl rand -base64 32",
        "notifications[1].on: nothing would be told",
        "notifications[1].headers.webhook-id: `webhook-id` is written by Serin",
        "notifications[2].nme: unknown key",
    ] {
        assert!(faults.contains(part), "{part}\n{faults}");
    }
}

#[test]
fn a_pattern_in_another_spelling_than_paths_are_compared_in_is_warned_of() {
    let warned = |regex: &str| {
        let service = with(&format!("match: [{{path: {{regex: '{regex}'}}}}]"));
        shown(&read(&service).unwrap().warnings)
    };
    assert_eq!(warned("/a/[a-z]+%2F.*"), "");
    for (regex, plain) in [("/a%2fb", "/a%2Fb"), ("/caf\u{e9}", "/caf%C3%A9"), ("/%61", "/a")] {
        let said = warned(regex);
        assert!(
            said.contains("path.regex: ") && said.contains(&format!("write `{plain}`")),
            "{said}"
        );
    }
}

#[test]
fn filters_are_compiled_for_each_alternative_and_their_faults_named() {
    let config = good(&with(
        "match:\n- {path: {prefix: /a/}}\n- {path: {exact: /b}, filters: [{requestRedirect: {hostname: Other.test}}]}\n\
         filters: [{urlRewrite: {path: {replacePrefixMatch: /x/}}}]",
    ));
    let filters = &config.services[0].filters;
    let (matched, with_what) = ("/a".to_owned(), "/x".to_owned());
    assert_eq!(
        filters[0].as_ref().unwrap().path,
        Some(PathEdit::Prefix {
            matched,
            with: with_what
        })
    );
    let redirect = filters[1].as_ref().unwrap().redirect.as_ref().unwrap();
    assert_eq!(
        (redirect.hostname.as_deref(), redirect.status.as_u16()),
        (Some("other.test"), 302)
    );
    assert!(good(MINIMAL).services[0].filters.is_empty());
    for (filter, fault) in [
        ("{}", "a filter is exactly one thing"),
        ("{requestMirror: {}}", "requestMirror"),
        ("{requestHeaderModifier: {}}", "nothing is changed"),
        (
            "{requestHeaderModifier: {set: [{name: X-A, value: a}], add: [{name: x-a, value: b}]}}",
            "`x-a` is changed twice",
        ),
        (
            "{responseHeaderModifier: {add: [{name: a, value: a}, {name: A, value: b}]}}",
            "`a` is changed twice",
        ),
        (
            "{responseHeaderModifier: {set: [{name: a, value: a}], remove: [A]}}",
            "`a` is changed twice",
        ),
        (
            "{requestHeaderModifier: {set: [{name: Host, value: a}]}}",
            "use urlRewrite.hostname",
        ),
        (
            "{requestHeaderModifier: {remove: [X-Forwarded-For]}}",
            "Serin's own field",
        ),
        (
            "{responseHeaderModifier: {add: [{name: content-length, value: '1'}]}}",
            "Serin's own field",
        ),
        (
            "{type: URLRewrite, requestRedirect: {hostname: a}}",
            "is not `requestRedirect`",
        ),
        ("{urlRewrite: {path: {replaceFullPath: x}}}", "is not a path"),
        ("{urlRewrite: {hostname: 'a:80'}}", "is not a host name"),
        ("{requestRedirect: {}}", "where they are"),
        (
            "{requestRedirect: {hostname: a, statusCode: 200}}",
            "write 301, 302",
        ),
        ("{requestRedirect: {scheme: ftp}}", "write http or https"),
    ] {
        let faults = faults(&with(&format!("filters: [{filter}]")));
        assert!(faults.contains(fault), "{filter}: {faults}");
    }
    let regex =
        with("match: [{path: {regex: '/a.*'}}]\nfilters: [{urlRewrite: {path: {replacePrefixMatch: /x}}}]");
    assert!(faults(&regex).contains("matches no prefix"));
    let both = with("filters: [{urlRewrite: {hostname: a}}, {requestRedirect: {hostname: b}}]");
    assert!(faults(&both).contains("exclude each other"));
}
