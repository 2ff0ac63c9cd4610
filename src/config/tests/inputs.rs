//! What a text is put together from: other files, the environment, secrets, certificates.

use super::*;

#[test]
fn files_that_are_included_count_as_one_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let main = folder.path().join("serin.yaml");
    let team = folder.path().join("conf.d");
    std::fs::create_dir(&team).unwrap();
    std::fs::write(&main, format!("{MINIMAL}include: [conf.d/*.yaml]\n")).unwrap();
    std::fs::write(team.join(".hidden.yaml"), "nonsense").unwrap();
    std::fs::write(team.join("b.yml"), "nonsense").unwrap();
    std::fs::write(team.join("secret"), "s3cr3t-s3cr3t\n").unwrap();
    let b = "services:\n- name: b\n  sticky: {header: x, secretFile: secret}\n  strategy: {canary: {steps: [{setWeight: \
             1}, {analysis: {templates: [{templateName: t}]}}]}}\n";
    std::fs::write(team.join("b.yaml"), b).unwrap();
    let t = "analysisTemplates:\n- name: t\n  metrics: [{name: m, provider: {serin: {metric: errorRate}}}]\n";
    std::fs::write(team.join("t.yaml"), t).unwrap();
    let loaded = load_with(&main, &env)
        .map_err(|problems| shown(&problems))
        .unwrap();
    let names: Vec<&str> = loaded
        .config
        .services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    assert_eq!(names, ["app", "b"]);
    let sticky = loaded.config.services[1].sticky.as_ref().unwrap();
    assert_eq!(
        sticky.secret.as_ref().map(Redacted::expose),
        Some("s3cr3t-s3cr3t")
    );
    assert_eq!(
        loaded.files,
        [
            main.clone(),
            team.join("b.yaml"),
            team.join("t.yaml"),
            team.join("*.yaml"),
            team.join("secret")
        ]
    );
    assert_eq!(loaded.config.redacted_json()["services"][1]["name"], "b");

    std::fs::write(team.join("c.yaml"), "services: [{name: b}]\nlisteners: []\n").unwrap();
    let faults = shown(&load_with(&main, &env).unwrap_err());
    let both = format!(
        "there is a service `b` already, at {}:2",
        team.join("b.yaml").display()
    );
    assert!(faults.contains(&both), "{faults}");
    assert!(faults.contains("c.yaml:2:1: listeners: unknown key"), "{faults}");
    std::fs::write(&main, format!("{MINIMAL}include: [nope.yaml]\n")).unwrap();
    assert!(shown(&load_with(&main, &env).unwrap_err()).contains("nope.yaml: cannot read"));
}

#[test]
fn secrets_come_in_and_never_go_out() {
    let text = format!(
        "{MINIMAL}admin:\n  tokens:\n  - {{name: ci, role: deployer, services: [app], secret: '${{TOKEN}}'}}\n  - {{name: \
         literal, role: admin, secret: abcdefghijklmnopqrstuvwxyz}}\n"
    )
    .replace("  stable", "  sticky: {header: x, secret: sticky-secret-literal}\n  stable");
    let config = good(&text);
    assert_eq!(config.admin.tokens[0].role, TokenRole::Deployer);
    assert_eq!(config.admin.tokens[0].hash, admin::hash("0123456789abcdef0123"));
    let everything = format!("{config:?} {}", config.redacted_json());
    for secret in ["0123456789abcdef", "abcdefghijklmnop", "sticky-secret"] {
        assert!(!everything.contains(secret), "{everything}");
    }
    assert!(everything.contains("[redacted]"));
    let shown = with_template(
        "provider: {web: {url: 'http://user:pw@h/x', headers: {Authorization: 'Bearer abc'}, body: '${TOKEN}'}}",
    );
    let shown = good(&shown).redacted_json().to_string();
    assert!(
        !shown.contains("pw@") && !shown.contains("abc") && shown.contains("${TOKEN}"),
        "{shown}"
    );
}

#[test]
fn what_is_sent_along_to_a_collector_or_a_receiver_is_not_shown_whatever_it_is_called() {
    let text = |key: &str| {
        format!(
            "{MINIMAL}tracing: {{otlp: {{endpoint: 'http://c:4318', headers: {{x-honeycomb-team: {key}}}}}}}\n\
             notifications: [{{name: n, url: 'https://h/x', headers: {{x-team: {key}}}}}]\n"
        )
    };
    let (old, new) = (good(&text("abc123")), good(&text("def456")));
    let shown = old.redacted_json().to_string();
    assert!(
        shown.contains("x-honeycomb-team") && shown.contains("x-team") && !shown.contains("abc123"),
        "{shown}"
    );
    assert_eq!(diff(&old, &new).keys, ["tracing"]);
}

#[test]
fn an_argument_from_the_environment_is_a_secret() {
    let text = |value: &str, header: &str| {
        with_template(&format!(
            "provider: {{web: {{url: 'http://h/canary', headers: {{Authorization: '{header}'}}}}}}"
        ))
        .replace(
            "- name: check\n",
            &format!("- name: check\n  args:\n  - {{name: t, value: '{value}'}}\n"),
        )
    };
    let loaded = read(&text("${TOKEN}", "Bearer {{args.t}}"))
        .map_err(|problems| shown(&problems))
        .unwrap();
    assert_eq!(shown(&loaded.warnings), "");
    let arg = &loaded.config.templates["check"].args[0];
    assert_eq!(
        (arg.value.as_deref(), arg.secret_env.as_deref()),
        (None, Some("TOKEN"))
    );
    assert!(!format!("{:?}", loaded.config).contains("0123456789abcdef"));
    for (value, header) in [
        ("x", "Bearer ${TOKEN}"),
        ("x-${TOKEN}", "{{args.t}}"),
        ("${TOKEN}${PORT}", "{{args.t}}"),
    ] {
        let warnings = shown(&read(&text(value, header)).unwrap().warnings);
        assert!(
            warnings.contains("is stored with each rollout"),
            "{value} {header}\n{warnings}"
        );
    }
    let literal = read(&text("$${x}", "{{args.t}}")).unwrap();
    assert_eq!(
        literal.config.templates["check"].args[0].value.as_deref(),
        Some("${x}")
    );
    assert!(literal.warnings.is_empty());
}

#[test]
fn an_unset_variable_is_named_at_its_place() {
    let faults = faults(&MINIMAL.replace("127.0.0.1:8080", "127.0.0.1:${NOPE}"));
    assert!(
        faults.contains("serin.yaml:1:23: the environment variable `NOPE` is not set"),
        "{faults}"
    );
    assert_eq!(faults.lines().count(), 2, "{faults}");
    assert_eq!(
        good(&MINIMAL.replace("127.0.0.1:8080", "127.0.0.1:${PORT}")).listeners[0]
            .address
            .to_string(),
        "127.0.0.1:8080"
    );
}

#[test]
fn the_authorities_of_those_who_are_asked_over_tls_are_read_at_once_and_watched() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("serin.yaml");
    let provider = |provider: &str| {
        format!(
            "{MINIMAL}analysisTemplates: [{{name: t, metrics: [{{name: m, successCondition: 'true', provider: {{{provider}}}}}]}}]\n"
        )
    };
    let said = |text: &str| {
        std::fs::write(&file, text).unwrap();
        shown(&load_with(&file, &|_| None).unwrap_err())
    };
    for (key, text) in [
        ("web.ca", provider("web: {url: 'https://a.test', ca: no.pem}")),
        (
            "prometheus.ca",
            provider("prometheus: {address: 'https://a.test', query: up, ca: no.pem}"),
        ),
        (
            "tracing.otlp.ca",
            format!("{MINIMAL}tracing: {{otlp: {{endpoint: 'https://a.test', ca: no.pem}}}}\n"),
        ),
    ] {
        let missing = said(&text);
        assert!(missing.contains(key) && missing.contains("no.pem"), "{missing}");
        let plain = said(&text.replace("https:", "http:"));
        assert!(plain.contains("a ca that is not asked"), "{plain}");
        let mut files = Vec::new();
        let _ = super::load_noting(&file, &mut files);
        assert!(files.iter().any(|file| file.ends_with("no.pem")), "{files:?}");
    }
    let both = said(&provider(
        "web: {url: 'https://a.test', ca: no.pem, insecure: true}",
    ));
    assert!(both.contains("remove one of ca and insecure"), "{both}");
}

#[test]
fn tls_names_one_certificate_or_several_and_their_files_are_watched() {
    let at = |tls: &str| MINIMAL.replace("'127.0.0.1:8080'", &format!("'127.0.0.1:8080', tls: {tls}"));
    let text = at(
        "{certificate: a.pem, key: a.key, certificates: [{certificate: b.pem, key: b.key}], minVersion: 1.3}",
    );
    let loaded = read(&text).map_err(|problems| shown(&problems)).unwrap();
    let tls = loaded.config.listeners[0].tls.as_ref().unwrap();
    let written: Vec<&str> = tls
        .certificates
        .iter()
        .map(super::CertificateFiles::written)
        .collect();
    assert_eq!((written, tls.only_tls13), (vec!["a.pem", "b.pem"], true));
    for file in ["a.pem", "a.key", "b.pem", "b.key"] {
        assert!(loaded.files.iter().any(|known| known.ends_with(file)), "{file}");
    }
    for (tls, part) in [
        ("{certificate: a.pem}", "a certificate without its key; add key"),
        ("{key: a.key}", "a key without its certificate"),
        ("{}", "TLS needs a certificate"),
        (
            "{certificates: [{certificate: a, key: b}, {certificate: a, key: b}]}",
            "stands here twice",
        ),
        ("{certificate: a, key: b, minVersion: 1.1}", "minVersion"),
    ] {
        let said = faults(&at(tls));
        assert!(said.contains("listeners[0].tls") && said.contains(part), "{said}");
    }
}

#[test]
fn upstream_tls_says_whom_to_believe_and_what_to_show() {
    let absent = good(MINIMAL);
    assert_eq!(absent.services[0].upstream_tls, super::UpstreamTls::default());
    let text = with(
        "upstreamTls: {ca: ca.pem, serverName: orders.internal, certificate: me.pem, key: me.key, alpn: [http/1.1]}",
    );
    let loaded = read(&text).map_err(|problems| shown(&problems)).unwrap();
    let tls = &loaded.config.services[0].upstream_tls;
    assert!(tls.verify && tls.ca.is_some() && tls.server_name.is_some());
    assert_eq!(
        (tls.identity.as_ref().unwrap().written(), &tls.alpn[..]),
        ("me.pem", &["http/1.1"][..])
    );
    for file in ["ca.pem", "me.pem", "me.key"] {
        assert!(loaded.files.iter().any(|known| known.ends_with(file)), "{file}");
    }
    for (tls, part) in [
        ("{certificate: a}", "a certificate without its key"),
        ("{key: a}", "a key without its certificate"),
        ("{serverName: 'a b'}", "serverName: `a b` is not a host name"),
        ("{alpn: []}", "no protocol at all"),
        ("{alpn: [h2, h2]}", "stands here twice"),
        ("{alpn: [h3]}", "alpn[0]"),
        ("{ca: a, insecureSkipVerify: true}", "a ca that is not asked"),
    ] {
        let said = faults(&with(&format!("upstreamTls: {tls}")));
        assert!(
            said.contains("services[0].upstreamTls") && said.contains(part),
            "{said}"
        );
    }
    let careless = read(&with("upstreamTls: {insecureSkipVerify: true}")).unwrap();
    assert!(shown(&careless.warnings).contains("anybody on the way"));
}
