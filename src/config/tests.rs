//! Configurations as people write them: what they mean, and what is said of their faults.
#![allow(clippy::format_collect, clippy::format_push_string, reason = "short in tests")]

use super::*;
use crate::analysis::{AlarmRule, JudgeConfig, MetricSpec, Provider};
use crate::model::{ByteSize, Role, Span, Weight};
use crate::rollout::{Step, Strategy, UntilEvidence};
use std::{path::Path, sync::Arc};

fn env(name: &str) -> Option<String> {
    match name {
        "TOKEN" => Some("0123456789abcdef0123".to_owned()),
        "PORT" => Some("8080".to_owned()),
        _ => None,
    }
}

fn read(text: &str) -> Result<Loaded, Vec<Problem>> {
    load_text(text, "serin.yaml", Path::new("config"), &env)
}

fn good(text: &str) -> Arc<Config> {
    match read(text) {
        Ok(loaded) => loaded.config,
        Err(problems) => panic!("{}", shown(&problems)),
    }
}

fn shown(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

/// The faults of a text, one a line.
fn faults(text: &str) -> String {
    match read(text) {
        Ok(_) => String::new(),
        Err(problems) => shown(&problems),
    }
}

const MINIMAL: &str = "listeners: [{address: '127.0.0.1:8080'}]\nservices:\n- name: app\n  stable: {version: v1, endpoints: ['http://127.0.0.1:9001']}\n";

/// The minimal configuration with more keys at its service.
fn with(service: &str) -> String {
    let indented: String = service.lines().map(|line| format!("  {line}\n")).collect();
    format!("{MINIMAL}{indented}")
}

#[test]
fn every_default_is_what_the_design_says() {
    let config = good(MINIMAL);
    let listener = &config.listeners[0];
    assert_eq!(
        (listener.name.as_str(), listener.mode),
        ("127.0.0.1:8080", Mode::Edge)
    );
    assert!(listener.trusted_proxies.is_empty());
    let t = listener.timeouts;
    assert_eq!(
        [
            t.connect,
            t.first_byte,
            t.request_headers,
            t.body_idle,
            t.response_headers,
            t.stream_idle
        ],
        [1, 10, 10, 30, 60, 300].map(Span::secs)
    );
    assert_eq!(
        [t.upgrade_idle, t.write_stall, t.keep_alive, t.drain],
        [3600, 30, 60, 30].map(Span::secs)
    );
    assert_eq!(t.request, None);
    assert_eq!(
        (listener.limits.headers, listener.limits.header_bytes.as_u64()),
        (100, 65_536)
    );
    assert_eq!((listener.limits.streams, listener.limits.resets), (200, 200));
    assert_eq!(
        (
            listener.limits.stream_window.as_u64(),
            listener.limits.connection_window.as_u64()
        ),
        (256 << 10, 1 << 20)
    );
    assert_eq!((listener.limits.body, listener.limits.connections), (None, None));
    assert_eq!(config.admin.address.to_string(), "127.0.0.1:9900");
    assert_eq!(config.admin.socket, Path::new("config/serin.sock"));
    assert!(config.admin.tokens.is_empty() && !config.admin.insecure);
    assert_eq!(config.telemetry, None);
    assert_eq!(config.state.path, Path::new("config/serin.db"));
    assert_eq!(
        (
            config.state.keep_rollouts,
            config.state.keep_events,
            config.state.keep_recordings
        ),
        (100, Span::secs(90 * 86_400), ByteSize::bytes(1 << 30))
    );
    let service = &config.services[0];
    assert!(service.matches.is_empty() && service.canary.is_none());
    assert!(service.sticky.is_none() && service.force.is_none() && service.health.is_none());
    assert_eq!(service.failure, FailureRule::default());
    assert_eq!(service.ready, Ready::default());
    assert_eq!(
        service.hard_failure,
        HardFailure {
            attempts: 3,
            action: HardFailureAction::Abort
        }
    );
    assert_eq!(
        (
            service.limits.requests,
            service.limits.pending,
            service.limits.connections,
            service.limits.requests_per_connection
        ),
        (1024, 1024, 1024, None)
    );
    assert_eq!(
        (service.retries.budget, service.retries.per_try),
        (Weight::percent(20), None)
    );
    assert_eq!(service.timeouts, TimeoutsSet::default());
    assert!(service.deploy.allows(&"http://127.0.0.1:7".parse().unwrap()));
    assert!(!service.deploy.allows(&"http://127.0.0.2:7".parse().unwrap()));
    assert!(config.not_yet().is_empty());
}

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
fn a_service_without_a_strategy_goes_at_the_pace_of_the_evidence() {
    let config = good(MINIMAL);
    let service = &config.services[0];
    let weights: Vec<String> = service
        .plan
        .steps()
        .iter()
        .map(|step| match step {
            Step::SetWeight(weight) => weight.to_string(),
            Step::Pause(pause) if pause.until_evidence == Some(UntilEvidence { max: None }) => {
                "evidence".to_owned()
            }
            other @ (Step::Pause(_)
            | Step::Bake(_)
            | Step::Analysis(_)
            | Step::Experiment(_)
            | Step::SetHeaderRoute(_)
            | Step::SetMirrorRoute(_)
            | Step::Skipped(_)) => format!("{other:?}"),
        })
        .collect();
    assert_eq!(
        weights,
        [
            "1%", "evidence", "5%", "evidence", "25%", "evidence", "50%", "evidence"
        ]
    );
    let background = service.plan.background().unwrap();
    assert_eq!(background.analysis.templates[0].template_name, BUILT_IN_GATE);
    assert_eq!(service.templates.len(), 1);
    let gate = &service.templates[0];
    assert!(gate.has_judge());
    assert_eq!(
        crate::analysis::validate_all(&gate.metrics, crate::analysis::Context::Inline),
        Ok(())
    );
    let written = good(&with("strategy: {canary: {auto: {}}}"));
    assert_eq!(written.services[0].plan, service.plan);
    assert!(service.plan.require_evidence);
    assert_eq!(service.plan.progress_deadline, Some(Span::secs(600)));
}

#[test]
fn every_sample_loads_without_a_warning() {
    for name in [
        "edge.yaml",
        "minimal.yaml",
        "order-gateway.yaml",
        "prometheus.yaml",
        "container.yaml",
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
        match load_with(&path, &|_| None) {
            Ok(loaded) => {
                assert_eq!(shown(&loaded.warnings), "", "{name}");
                assert!(loaded.config.not_yet().is_empty(), "{name}");
                assert_eq!(loaded.files[0], path);
            }
            Err(problems) => panic!("{}", shown(&problems)),
        }
    }
}

#[test]
fn the_scrape_sample_is_yaml_with_honoured_labels() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/prometheus-scrape.yml");
    let text = std::fs::read_to_string(path).unwrap();
    let mut problems = Vec::new();
    let root = yaml::parse(&text, "scrape", &env, &mut problems)
        .unwrap()
        .remove(0);
    assert!(problems.is_empty());
    let jobs = root.get("scrape_configs").unwrap().items();
    assert_eq!(jobs.len(), 2);
    assert_eq!(
        jobs[1].get("honor_labels").and_then(yaml::Node::text),
        Some("true")
    );
}

const INLINE: &str = "strategy:
  canary:
    steps:
    - setWeight: 5
    - analysis: {templates: [{templateName: check}]}
";

fn with_template(metric: &str) -> String {
    let metric: String = metric.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "{}analysisTemplates:\n- name: check\n  metrics:\n    - name: m\n{metric}",
        with(INLINE)
    )
}

#[test]
fn an_inline_metric_without_an_end_is_refused_at_its_line_with_the_fix() {
    let text = with_template(
        "interval: 1m\nsuccessCondition: result < 0.01\nprovider: {serin: {metric: errorRate}}",
    );
    let faults = faults(&text);
    assert_eq!(
        faults,
        "serin.yaml:14:17: analysisTemplates[0].metrics[0].interval: has an interval but no end, and is used in an \
         analysis that must end by itself; add count: 5 or duration: 5m\n"
    );
    let fixed = text.replace("interval: 1m", "interval: 1m\n      duration: 5m");
    assert_eq!(super::tests::faults(&fixed), "");
    let background = text.replace(
        "- analysis: {templates: [{templateName: check}]}",
        "- setWeight: 10\n      analysis: {templates: [{templateName: check}]}",
    );
    assert_eq!(super::tests::faults(&background), "");
}

#[test]
fn an_argo_manifest_is_told_what_to_move_and_what_would_be_refused() {
    let text = "# a\napiVersion: argoproj.io/v1alpha1\nkind: Rollout\nmetadata: {name: x}\nspec:\n  replicas: 3\n  \
                strategy:\n    canary:\n      steps:\n      - setWeight: 5\n      - analysis: {templates: \
                [{templateName: check}]}\n      - plugin: {name: p}\n---\napiVersion: argoproj.io/v1alpha1\nkind: \
                AnalysisTemplate\nmetadata: {name: check}\nspec:\n  metrics:\n  - name: m\n    interval: 1m\n    \
                successCondition: result[0] < 0.01\n    provider: {prometheus: {address: 'http://p:9090', query: up}}\n";
    let faults = faults(text);
    let lines: Vec<&str> = faults.lines().collect();
    assert!(
        lines[0].starts_with("serin.yaml:2:1: this is an Argo Rollouts manifest"),
        "{faults}"
    );
    assert!(
        lines[1].starts_with("serin.yaml:12:9: spec.strategy.canary.steps[2].plugin: step plugins"),
        "{faults}"
    );
    assert!(
        lines[2].starts_with("serin.yaml:20:15: spec.metrics[0].interval: has an interval"),
        "{faults}"
    );
    assert_eq!(lines.len(), 3, "{faults}");
}

#[test]
fn a_files_faults_are_reported_together_each_with_its_place() {
    let text = "listeners:
- address: localhost:8080
- adress: 0.0.0.0:81
services:
- name: Bad Name
- name: app
  stable: {version: v1, endpoints: [nonsense, 'http://a']}
  sticky: {header: 'bad header'}
  strategy:
    canary:
      steps:
      - setWeight: 500
      - setwieght: 5
      - analysis: {templates: [{templateName: nope}]}
telemetry: {address: 1}
";
    let faults = faults(text);
    for expected in [
        "serin.yaml:2:12: listeners[0].address: `localhost:8080` is not an address to listen at; write 127.0.0.1:8080",
        "serin.yaml:3:3: listeners[1].adress: unknown key; did you mean `address`?",
        "serin.yaml:3:3: listeners[1]: `address` is missing; add address: …",
        "serin.yaml:5:9: services[0].name: `Bad Name` is not a service name",
        "serin.yaml:7:37: services[1].stable.endpoints[0]: `nonsense` is not an endpoint",
        "serin.yaml:8:20: services[1].sticky.header: `bad header` is not a header name",
        "serin.yaml:12:20: services[1].strategy.canary.steps[0].setWeight: weight 500 is out of range",
        "serin.yaml:13:9: services[1].strategy.canary.steps[1].setwieght: unknown key; did you mean `setWeight`?",
        "serin.yaml:14:47: services[1].strategy.canary.steps[2].analysis.templates[0].templateName: there is no template",
        "serin.yaml:15:22: telemetry.address: this is not an address to listen at; write",
    ] {
        assert!(faults.contains(expected), "{expected}\nis not in\n{faults}");
    }
    assert_eq!(faults.lines().count(), 10, "{faults}");
}

#[test]
fn what_follows_from_a_fault_is_not_reported_as_another() {
    let faults = faults(&with(
        "canary: {version: v1 x, endpoints: ['http://a']}\nready: {minHealthy: many}",
    ));
    assert_eq!(faults.lines().count(), 2, "{faults}");
    let text = MINIMAL.replace("http://127.0.0.1:9001", "127.0.0.1:9001");
    let faults = super::tests::faults(&text);
    assert_eq!(faults.lines().count(), 1, "{faults}");
    assert!(faults.contains("the scheme is missing"), "{faults}");
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "a table: each line is a fault and its message"
)]
fn faults_name_what_would_be_right() {
    for (key, expected) in [
        ("sticky: {}", "exactly one of header, cookie and query"),
        (
            "sticky: {header: a, query: b}",
            "exactly one of header, cookie and query",
        ),
        ("sticky: {cookie: {maxAge: 0}}", "maxAge: a cookie of no age"),
        (
            "sticky: {header: x, secretFile: nope.txt}",
            "cannot read the secret file `config/nope.txt`",
        ),
        (
            "force: {header: x, from: [10.0.0.0/33]}",
            "`10.0.0.0/33` is not a network",
        ),
        ("failure: {statuses: [6xx]}", "write 5xx, 429 or 500-599"),
        ("failure: {grpc: [NOPE]}", "write a name such as UNAVAILABLE"),
        ("ready: {http: healthz}", "write for example /healthz"),
        ("ready: {minHealthy: 0}", "write at least 1"),
        (
            "hardFailure: {action: explode}",
            "services[0].hardFailure.action: `explode` is not known here; write abort or pause",
        ),
        ("deploy: {allowedEndpoints: ['1.2.3']}", "does not name endpoints"),
        ("timeouts: {connect: 0}", "no time at all"),
        ("timeouts: {request: never}", "is not a length of time"),
        ("timeouts: {conect: 1s}", "did you mean `connect`?"),
        ("limits: {requests: 0}", "0 would refuse everything"),
        ("strategy: {}", "exactly one of canary, blueGreen and immediate"),
        (
            "strategy: {canary: {}, immediate: {}}",
            "exactly one of canary, blueGreen and immediate",
        ),
        ("strategy: {canary: {steps: [{}]}}", "steps[0]: the step is empty"),
        (
            "strategy: {canary: {steps: [{pause: }]}}",
            "steps[0]: the step is empty",
        ),
        (
            "strategy: {canary: {steps: [{setWeight: 5, pause: {}}]}}",
            "a step does one thing",
        ),
        ("strategy: {canary: {steps: [{setWeight: -1}]}}", "out of range"),
        (
            "strategy: {canary: {steps: [{pause: {duration: soon}}]}}",
            "is not a length of time",
        ),
        (
            "strategy: {canary: {steps: [{analysis: {}}]}}",
            "names no template",
        ),
        (
            "strategy: {canary: {trafficRouting: {maxTrafficWeight: 1000}}}",
            "weights are percentages here",
        ),
        (
            "strategy: {canary: {analysis: {templates: [], startingStep: 3}}}",
            "step 3 is not there",
        ),
        (
            "match: [{listener: web}]",
            "there is no listener `web`; there are: 127.0.0.1:8080",
        ),
        ("match: [{host: 'http://x'}]", "write the host alone"),
        ("match: [{host: 'x:80'}]", "without a port"),
        ("match: [{host: 'a.*.b'}]", "a wildcard stands for whole labels"),
        ("match: [{path: {}}]", "exactly one of exact, prefix and regex"),
        ("match: [{path: {prefix: api}}]", "`api` is not a path"),
        ("match: [{path: {regex: '('}}]", "is not a regular expression"),
        (
            "match: [{path: {regex: 'a)(?:b'}}]",
            "is not a regular expression",
        ),
        (
            "match: [{path: {regex: '(?:a{1000}){1000}'}}]",
            "too large when compiled",
        ),
        (
            "match: [{path: /api}]",
            "expected a mapping with some of the keys exact, prefix, regex, found `/api`",
        ),
        ("match: [{method: get}]", "write GET"),
        ("match: [{headers: {host: a}}]", "write host: …"),
        (
            "match: [{headers: {x: {present: false}}}]",
            "absence cannot be asked for",
        ),
        ("match: {host: a}", "expected a list, found a mapping"),
        (
            "canary: {version: v1, endpoints: ['http://a']}",
            "canary and stable are both `v1`",
        ),
        (
            "canary: {version: v2, endpoints: []}",
            "needs at least one endpoint",
        ),
        (
            "canary: {version: v2, endpoints: ['http://a', 'http://a:80/']}",
            "stands here twice",
        ),
        (
            "progressDeadlineSeconds: 600",
            "write ready: {progressDeadline: 10m}",
        ),
        ("name: app", "the key `name` stands here twice: first in line 3"),
    ] {
        let faults = faults(&with(key));
        assert!(faults.contains(expected), "{key}\n{faults}");
    }
}

#[test]
fn faults_in_templates_name_what_would_be_right() {
    let serin = "provider: {serin: {metric: errorRate}}";
    for (metric, expected) in [
        (
            "count: 2\nprovider: {serin: {metric: errorRate}}",
            "metrics[0].interval: interval is required when count > 1",
        ),
        (
            "successCondition: result <\nprovider: {serin: {metric: errorRate}}",
            "metrics[0].successCondition: ",
        ),
        (
            "successCondition: reslt < 1\nprovider: {serin: {metric: errorRate}}",
            "metrics[0].successCondition: ",
        ),
        (
            "provider: {serin: {metric: errorrate}}",
            "did you mean `errorRate`?",
        ),
        (
            "provider: {serin: {metric: errorRate, quantile: 0.5}}",
            "only latency has quantiles",
        ),
        (
            "provider: {datadog: {query: x}}",
            "this provider is not built in; use serin",
        ),
        ("provider: {}", "the provider is missing"),
        ("count: 1", "the metric has no provider"),
        (
            "provider: {prometheus: {address: 'p:9090', query: up}}",
            "`p:9090` is not an address",
        ),
        (
            "provider: {web: {url: 'http://a', method: DELETE}}",
            "GET, POST or PUT",
        ),
        (
            "provider: {prometheus: {address: 'http://p', query: '{{args.nope}}'}}",
            "argument `nope` has no value",
        ),
    ] {
        let faults = faults(&with_template(metric));
        assert!(faults.contains(expected), "{metric}\n{faults}");
    }
    let two = format!("{}    - name: m\n      {serin}\n", with_template(serin));
    assert!(faults(&two).contains("two metrics of this template are called `m`"));
    let secret = with_template(serin).replace(
        "- name: check\n",
        "- name: check\n  args:\n  - name: t\n    valueFrom: {secretKeyRef: {name: a, key: b}}\n",
    );
    let refused = faults(&secret);
    assert!(
        refused.contains("analysisTemplates[0].args[0].valueFrom: Serin reads no Kubernetes"),
        "{refused}"
    );
    assert!(refused.contains("secretFile"), "{refused}");
}

#[test]
fn files_that_are_no_configuration_say_so_and_do_not_panic() {
    for (text, expected) in [
        ("", "the configuration is empty"),
        ("# nothing\n", "the configuration is empty"),
        ("null", "the configuration is empty"),
        ("hello", "expected a mapping with some of the keys listeners"),
        ("- a\n", "expected a mapping"),
        ("a: b: c", "this is not YAML"),
        ("services: [", "this is not YAML"),
        ("{}", "there is no listener"),
        (
            "listeners: []\n---\nservices: []\n",
            "serin.yaml:3:1: a second YAML document starts here",
        ),
        ("!!python/object:os.system ls", "serin.yaml:1:"),
        ("listeners: *nope", "this is not YAML"),
        ("? [a]\n: b", "a key must be text"),
    ] {
        let faults = faults(text);
        assert!(faults.contains(expected), "{text:?}\n{faults}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.yaml");
    let fault = |path: &Path| shown(&load_with(path, &env).unwrap_err());
    assert!(
        fault(&path).contains("cannot read the configuration: "),
        "{}",
        fault(&path)
    );
    assert!(fault(folder.path()).contains("it is a directory"));
    std::fs::write(&path, b"a: 1\nb: \xff\n").unwrap();
    assert!(
        fault(&path).contains("it is not UTF-8 (line 2)"),
        "{}",
        fault(&path)
    );
    std::fs::write(&path, format!("\u{feff}{MINIMAL}")).unwrap();
    assert!(load_with(&path, &env).is_ok());
}

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
fn keys_that_only_move_pods_are_accepted_with_a_warning() {
    let text = with(
        "replicas: 3\nstrategy:\n  canary:\n    maxSurge: 25%\n    trafficRouting: {istio: {}}\n    steps:\n    - \
         setCanaryScale: {weight: 5}\n    - setWeight: 5\n    - pause: {}",
    );
    let loaded = read(&text).map_err(|problems| shown(&problems)).unwrap();
    let warnings = shown(&loaded.warnings);
    for key in [
        "services[0].replicas",
        "canary.maxSurge",
        "canary.trafficRouting",
        "steps[0].setCanaryScale",
    ] {
        assert!(warnings.contains(key), "{key}\n{warnings}");
    }
    assert_eq!(loaded.config.services[0].plan.steps().len(), 3);
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

#[test]
fn what_serve_cannot_do_yet_is_understood_and_named() {
    let text = with(
        "canary: {version: v2, endpoints: ['http://a']}\nstrategy:\n  blueGreen: {autoPromotionEnabled: false, \
         activeService: x}",
    );
    let loaded = read(&text).map_err(|problems| shown(&problems)).unwrap();
    assert!(
        matches!(&loaded.config.services[0].plan.strategy, Strategy::BlueGreen(plan) if !plan.auto_promotion_enabled)
    );
    let not_yet = shown(loaded.config.not_yet());
    assert!(not_yet.contains("services[0].strategy.blueGreen"), "{not_yet}");
}

#[test]
fn a_judge_is_what_is_written_and_otherwise_the_default() {
    let text = with_template(
        "judge: {alpha: 0.5%, errors: {tolerate: 0.1pp}, latency: {quantiles: [0.9, 0.5], tolerate: 20%}, harmBudget: 0.2pp, \
         beta: 2%, warmup: 1m, stepWarmup: 0s, minStep: 3s, freeze: 5%, clientErrors: {tolerate: 2pp}}",
    );
    let config = good(&text);
    let judge = |metric: &MetricSpec| match &metric.provider {
        Provider::Judge(judge) => judge.clone(),
        other @ (Provider::Serin(_)
        | Provider::Prometheus(_)
        | Provider::Web(_)
        | Provider::MannWhitney(_)) => panic!("{other:?}"),
    };
    let written = judge(&config.templates["check"].metrics[0]);
    assert_eq!(
        written,
        JudgeConfig {
            alpha: 0.005,
            beta: 0.02,
            err_delta: 0.001,
            lat_tol: 0.2,
            lat_q: vec![0.5, 0.9],
            harm_budget: 0.002,
            freeze_stable_err: 0.05,
            client_err_delta: Some(0.02),
            warmup_s: 60.0,
            step_warmup_s: 0.0,
            min_step_s: 3.0,
            ..JudgeConfig::default()
        }
    );
    let config = good(&with_template("judge: {}"));
    assert_eq!(
        judge(&config.templates["check"].metrics[0]),
        JudgeConfig::default()
    );
    let config = good(&with_template("judge: {clientErrors: {action: ignore}}"));
    let ignores = judge(&config.templates["check"].metrics[0]);
    assert_eq!(ignores.client_err_delta, None);
    for (metric, expected) in [
        (
            "judge: {clientErrors: {action: abort}}",
            "judge.clientErrors.action: `abort` is not known here; write pause or ignore",
        ),
        (
            "judge: {clientErrors: {tolerate: 80%}}",
            "judge.clientErrors.tolerate: 80% is too much or too little",
        ),
        (
            "judge: {alpha: 0.01}",
            "`0.01` is not a share: write for example 1%",
        ),
        (
            "judge: {alpha: 0%}",
            "judge.alpha: 0% is too much or too little; write a share between 0.0001% and 20%",
        ),
        (
            "judge: {latency: {quantiles: [1.5]}}",
            "judge.latency.quantiles: at most 4",
        ),
        (
            "judge: {}\ninterval: 1m",
            "metrics[0].interval: a judge looks at every request",
        ),
        (
            "judge: {}\nsuccessCondition: result < 1",
            "has no interval, count, limit or condition",
        ),
    ] {
        let said = faults(&with_template(metric));
        assert!(said.contains(expected), "{metric}\n{said}");
    }
}

#[test]
fn a_plan_that_waits_for_evidence_has_a_judge() {
    let steps = "strategy:\n  canary:\n    steps: [{setWeight: 5}, {pause: {untilEvidence: {max: 30m}}}]\n";
    let named = |config: &Config| {
        let background = config.services[0].plan.background().unwrap();
        let names = background.analysis.templates.iter();
        names.map(|one| one.template_name.clone()).collect::<Vec<_>>()
    };
    let config = good(&with(steps));
    assert_eq!(named(&config), [BUILT_IN_GATE]);
    assert_eq!(config.services[0].templates.len(), 1);

    let judge = "analysisTemplates:\n- name: mine\n  metrics: [{name: m, judge: {}}]\n- name: observes\n  metrics: [{name: o, dryRun: true, judge: {}}]\n";
    let beside = |template: &str, start: usize| {
        let analysis =
            format!("    analysis: {{templates: [{{templateName: {template}}}], startingStep: {start}}}\n");
        format!("{}{judge}", with(&format!("{steps}{analysis}")))
    };
    assert_eq!(named(&good(&beside("mine", 1))), ["mine"]);
    assert_eq!(named(&good(&beside("observes", 0))), ["observes", BUILT_IN_GATE]);

    let late = beside("mine", 2).replace("{max: 30m}}}]", "{max: 30m}}}, {setWeight: 50}, {pause: {}}]");
    assert!(faults(&late).contains("step 1 waits for evidence that nobody gathers before step 2"));
    for (strategy, expected) in [
        (
            "{canary: {auto: {}, steps: [{setWeight: 5}]}}",
            "auto and steps exclude each other",
        ),
        ("{canary: {auto: {weights: [5, 1]}}}", "the weights must ascend"),
        (
            "{canary: {steps: [{pause: {duration: 1m, untilEvidence: {}}}]}}",
            "duration and untilEvidence exclude each other",
        ),
    ] {
        let said = faults(&with(&format!("strategy: {strategy}")));
        assert!(said.contains(expected), "{strategy}\n{said}");
    }
    let auto = good(&with("strategy: {canary: {auto: {weights: [5, 50], max: 1h}}}"));
    assert_eq!(auto.services[0].plan.steps().len(), 4);
}

#[test]
fn an_alarm_has_its_defaults_and_bounds() {
    let rule = |text: &str| good(&with(&format!("alarm: {text}"))).services[0].alarm;
    let expected = |errors, over, requests| {
        Some(AlarmRule {
            errors,
            over: Span::secs(over),
            requests,
        })
    };
    assert_eq!(rule("{errors: 5%}"), expected(0.05, 30, 50));
    assert_eq!(
        rule("{errors: 0.5%, over: 2m, requests: 1000}"),
        expected(0.005, 120, 1000)
    );
    assert_eq!(good(&with("")).services[0].alarm, None);
    for (text, expected) in [
        ("{}", "errors"),
        ("{errors: 100%}", "the share must lie between 0% and 100%"),
        ("{errors: 5%, over: 1s}", "1s is not between 5s and 1h"),
        ("{errors: 5%, requests: 0}", "no request at all cannot fail"),
    ] {
        let said = faults(&with(&format!("alarm: {text}")));
        assert!(said.contains(expected), "{text}\n{said}");
    }
}

#[test]
fn what_is_held_back_is_the_last_step_and_has_a_judge() {
    let steps_of = |canary: &str| {
        let config = good(&with(&format!("strategy: {{canary: {{{canary}}}}}")));
        let plan = &config.services[0].plan;
        let background = plan.background().unwrap();
        assert_eq!(
            (
                background.analysis.templates[0].template_name.as_str(),
                background.starting_step
            ),
            (BUILT_IN_GATE, 0)
        );
        (
            plan.steps().len(),
            plan.bake().unwrap(),
            plan.steps().last().cloned().unwrap(),
        )
    };
    for (canary, steps, share, seconds) in [
        ("auto: {}, holdback: {duration: 30m}", 9, 2, 1800),
        (
            "steps: [{setWeight: 5}, {pause: {duration: 1m}}, {setWeight: 100}], holdback: {share: 5%, duration: 1h}",
            3,
            5,
            3600,
        ),
        ("holdback: {share: 1, duration: 10s}", 1, 1, 10),
    ] {
        let (count, bake, last) = steps_of(canary);
        assert_eq!((count, last), (steps, Step::Bake(bake)), "{canary}");
        assert_eq!(
            (bake.share, bake.duration),
            (Weight::percent(share), Span::secs(seconds)),
            "{canary}"
        );
    }
    for (canary, expected) in [
        ("holdback: {}", "duration"),
        (
            "holdback: {share: 0, duration: 1m}",
            "0% leaves nothing to compare with",
        ),
        ("holdback: {duration: 0s}", "no time at all sees nothing"),
        (
            "steps: [{setWeight: 5}, {setWeight: 99}, {pause: {}}], holdback: {duration: 1m}",
            "steps[1]: this gives the canary 99%, and holdback keeps 2% on stable",
        ),
    ] {
        let said = faults(&with(&format!("strategy: {{canary: {{{canary}}}}}")));
        assert!(said.contains(expected), "{canary}\n{said}");
    }
}

/// Two templates with a judge of one name, and one whose judge is called like the built-in one.
const JUDGES: &str = "analysisTemplates:
- name: mine
  metrics: [{name: m, judge: {}}]
- name: same
  metrics: [{name: m, judge: {alpha: 1%}}]
- name: loose
  metrics: [{name: m, judge: {alpha: 5%}}]
- name: foreign
  metrics: [{name: serin-judge, dryRun: true, judge: {alpha: 5%}}]
";

#[test]
fn judges_of_one_name_in_one_plan_are_alike() {
    let plan = |beside: &str, steps: &str| {
        let beside = format!("    analysis: {{templates: [{{templateName: {beside}}}]}}\n");
        let steps = format!("    steps: [{{setWeight: 5}}, {steps}]\n");
        format!(
            "{}{JUDGES}",
            with(&format!("strategy:\n  canary:\n{beside}{steps}"))
        )
    };
    let step = |template: &str| format!("{{analysis: {{templates: [{{templateName: {template}}}]}}}}");
    let two = |one: &str, other: &str| format!("{}, {{setWeight: 50}}, {}", step(one), step(other));
    let waits = "{pause: {untilEvidence: {}}}";
    assert_eq!(faults(&plan("mine", &two("same", "mine"))), "");
    for (text, at, named) in [
        (
            plan("mine", &step("loose")),
            "canary.steps[1].analysis",
            ["`mine` (beside the steps)", "`loose`"],
        ),
        (
            plan("foreign", &two("mine", "loose")),
            "canary.steps[3].analysis",
            ["`mine` (steps[1])", "`loose`"],
        ),
        (
            plan("foreign", waits),
            "canary.analysis",
            ["`foreign` (beside the steps)", "`serin-judge`"],
        ),
    ] {
        let said = faults(&text);
        let right =
            said.contains(&format!("strategy.{at}: ")) && named.iter().all(|name| said.contains(name));
        assert!(right && said.contains("rename one metric"), "{said}");
    }
}

#[test]
fn a_deploys_steps_are_held_to_what_the_file_is_held_to() {
    let beside = "strategy:\n  canary:\n    analysis: {templates: [{templateName: mine}], startingStep: 2}\n    steps: [{setWeight: \
                  5}, {pause: {}}, {setWeight: 50}, {pause: {}}]\n";
    let config = good(&format!("{}{JUDGES}", with(beside)));
    let service = &config.services[0];
    let step = |templates: &[&str]| {
        let names = templates
            .iter()
            .map(|name| serde_json::json!({"templateName": name}));
        serde_json::json!({"analysis": {"templates": names.collect::<Vec<_>>()}})
    };
    for (steps, expected) in [
        (
            vec![step(&["loose"])],
            "steps[0].analysis: the metric `m` is one judge in the template `mine`",
        ),
        (vec![step(&["mine", "loose"])], "both have a metric `m`"),
        (vec![step(&["mine", "mine"])], "named twice"),
        (vec![step(&[])], "names no template"),
    ] {
        let steps = serde_json::Value::Array(steps);
        let said = shown(&config.plan_with_steps(service, &steps).unwrap_err());
        assert!(said.contains(expected), "{steps}\n{said}");
    }
    // Who gathers the evidence is there as soon as somebody waits for it.
    let waits = serde_json::json!([{"setWeight": 5}, {"pause": {"untilEvidence": {"max": "1h"}}}, {"setWeight": 50}, step(&["same"])]);
    let (plan, _) = config.plan_with_steps(service, &waits).unwrap();
    assert_eq!(plan.background().unwrap().starting_step, 1);
}

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
fn a_deploys_steps_use_the_same_words() {
    let text = with_template("provider: {serin: {metric: errorRate, role: stable}}");
    let config = good(&text);
    let service = &config.services[0];
    let steps = serde_json::json!([{"setWeight": "1/3"}, {"pause": {"duration": "1m"}}, {"analysis": {"templates": [{"templateName": "check"}]}}]);
    let (plan, templates) = config.plan_with_steps(service, &steps).unwrap();
    assert_eq!(plan.steps().len(), 3);
    assert_eq!(plan.steps()[0], Step::SetWeight("1/3".parse().unwrap()));
    assert_eq!(templates[0].name, "check");
    assert!(
        matches!(&templates[0].metrics[0].provider, crate::analysis::Provider::Serin(q) if q.role == Role::Stable)
    );
    for (steps, expected) in [
        (serde_json::json!([]), "there is no step"),
        (serde_json::json!({}), "expected a list"),
        (
            serde_json::json!([{"setWeight": 101}, {"pauze": {}}]),
            "did you mean `pause`?",
        ),
        (
            serde_json::json!([{"setWeight": 101}]),
            "steps[0].setWeight: weight 101 is out of range",
        ),
        (
            serde_json::json!([{"analysis": {"templates": [{"templateName": "chek"}]}}]),
            "did you mean `check`?",
        ),
        (serde_json::json!([{"analysis": {"metrics": []}}]), "unknown key"),
    ] {
        let faults = shown(&config.plan_with_steps(service, &steps).unwrap_err());
        assert!(faults.contains(expected), "{steps}\n{faults}");
    }
}

#[test]
fn the_steps_and_metrics_of_a_seed_rollout_paste_unchanged() {
    let argo = "        - setWeight: 5
        - pause: { duration: 5m }
        - analysis:
            templates:
              - templateName: error-rate-check
        - setWeight: 100
";
    let metrics = "  metrics:
    - name: error-rate
      interval: 1m
      successCondition: result[0] < 0.01
      provider:
        prometheus:
          address: http://prometheus.monitoring:9090
          query: |
            sum(rate(http_requests_total{job=\"order-gateway\",status=~\"5..\"}[5m]))
            /
            sum(rate(http_requests_total{job=\"order-gateway\"}[5m]))
";
    let text = format!(
        "{}{argo}analysisTemplates:\n- name: error-rate-check\n{metrics}",
        with("strategy:\n  canary:\n    steps:")
    );
    let refused = faults(&text);
    let line = 1 + text.lines().position(|line| line.contains("interval")).unwrap();
    assert!(
        refused.starts_with(&format!(
            "serin.yaml:{line}:17: analysisTemplates[0].metrics[0].interval: has"
        )),
        "{refused}"
    );
    assert_eq!(refused.lines().count(), 1, "{refused}");
    let fixed = text.replace("interval: 1m", "interval: 1m\n      count: 5");
    let loaded = read(&fixed).map_err(|problems| shown(&problems)).unwrap();
    assert!(shown(&loaded.warnings).contains("does not select the canary"));
    let crate::analysis::Provider::Prometheus(query) =
        &loaded.config.services[0].templates[0].metrics[0].provider
    else {
        panic!("not prometheus")
    };
    assert!(query.query.contains("[5m]))\n/\nsum("), "{}", query.query);
}

#[test]
fn a_file_of_nothing_but_faults_is_answered_soon_and_bounded() {
    let many: String = (0..15_000)
        .map(|n| format!("- {{nmae: {n}, x{n}: 1}}\n"))
        .collect();
    let problems = read(&format!("services:\n{many}")).unwrap_err();
    assert!((100..500).contains(&problems.len()), "{}", problems.len());
    let keys: String = (0..15_000).map(|n| format!("k{n}: 1\n")).collect();
    assert!(faults(&keys).contains("more keys than Serin reads"));
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

const SAMPLES: [&str; 6] = [
    include_str!("../../config/edge.yaml"),
    include_str!("../../config/kayenta.yaml"),
    include_str!("../../config/minimal.yaml"),
    include_str!("../../config/order-gateway.yaml"),
    include_str!("../../config/prometheus.yaml"),
    include_str!("../../config/prometheus-scrape.yml"),
];

const PIECES: [&str; 24] = [
    "\t",
    "\n",
    "  ",
    "- ",
    ": ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "<<: *a",
    "${",
    "${PORT}",
    "$${X}",
    "!!x ",
    "---\n",
    "'",
    "\"",
    "|\n",
    "99999999999999999999",
    "-1",
    "null",
    "\u{feff}é",
];

/// Nothing is promised but an answer whose every problem can be shown and lies in the file.
fn answered(text: &str) {
    // YAML's line may end with a carriage return alone.
    let lines = text.split(['\n', '\r']).count();
    match read(text) {
        Ok(loaded) => {
            let _ = (loaded.config.redacted_json().to_string(), loaded.config.router());
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "{text}");
            for problem in problems {
                assert!(
                    problem.line <= lines + 1 && !problem.what.is_empty(),
                    "{problem}\n{text}"
                );
            }
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]

    #[test]
    fn any_mutation_of_a_sample_is_answered(
        sample in 0..SAMPLES.len(),
        edits in proptest::collection::vec((0usize..10_000, 0usize..40, 0..PIECES.len()), 1..6),
    ) {
        let mut text = SAMPLES[sample].to_owned();
        for (at, remove, piece) in edits {
            let boundary = |mut at: usize, text: &str| {
                at = at.min(text.len());
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                at
            };
            let start = boundary(at % (text.len() + 1), &text);
            let end = boundary(start + remove, &text).max(start);
            text.replace_range(start..end, PIECES[piece]);
        }
        answered(&text);
    }

    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}", bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        answered(&text);
        answered(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_sequence_of_pieces_is_answered(pieces in proptest::collection::vec(0..PIECES.len(), 0..60)) {
        answered(&pieces.into_iter().map(|piece| PIECES[piece]).collect::<String>());
    }

    #[test]
    fn any_json_is_answered_as_steps(weight in proptest::num::f64::ANY, name in "\\PC{0,20}") {
        let config = good(MINIMAL);
        let steps = serde_json::json!([{"setWeight": weight}, {name.clone(): [name]}]);
        let _ = config.plan_with_steps(&config.services[0], &steps);
    }
}

#[test]
fn a_service_that_never_gets_a_request_is_named() {
    let text = format!("{MINIMAL}- name: second\n  stable: {{version: v1, endpoints: ['http://a']}}\n");
    let warnings = shown(&read(&text).unwrap().warnings);
    assert!(
        warnings
            .contains("serin.yaml:5:9: services[1].name: never gets a request: `app` takes every request"),
        "{warnings}"
    );
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

#[test]
fn a_json_path_that_cannot_be_followed_is_refused_where_it_stands() {
    let template = "analysisTemplates:\n- name: t\n  metrics:\n  - {name: m, successCondition: result, provider: {web: {url: 'http://127.0.0.1:9', jsonPath: '{$.a'}}}\n";
    let faults = faults(&format!("{MINIMAL}{template}"));
    assert!(
        faults.contains("provider.web.jsonPath: ") && faults.contains("the brace is not closed"),
        "{faults}"
    );
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
