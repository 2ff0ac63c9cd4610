//! What is said of a text's faults: where, what, and how to mend it.

use super::*;

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
fn what_a_judge_does_not_have_is_refused_for_that_alone() {
    let test = "mannWhitney: {metric: latency, interval: 1m}";
    for (kind, why) in [
        ("judge: {}", "a judge looks at every request"),
        (test, "a rank test is made once"),
    ] {
        for key in [
            "count: 3",
            "count: -1",
            "interval: 0s",
            "interval: 1m",
            "duration: 5m",
            "failureLimit: -2",
            "consecutiveErrorLimit: -1",
            "inconclusiveLimit: 7",
            "successCondition: result <",
        ] {
            let used = with_template(&format!("{kind}\n{key}"));
            let faults = faults(&used);
            assert!(
                faults.contains(why) && faults.lines().count() == 1,
                "{kind} {key}\n{faults}"
            );
        }
    }
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
fn an_answer_of_success_that_counts_as_failure_is_warned_of() {
    let said = |statuses: &str| {
        let text = with(&format!("failure: {{statuses: [{statuses}]}}"));
        shown(&read(&text).unwrap().warnings)
    };
    for success in ["200", "204", "2xx", "100-599", "299-300", "100-200"] {
        let warnings = said(&format!("5xx, {success}"));
        let expected = format!(
            "services[0].failure.statuses[1]: `{success}` makes failures of answers that say success (2xx); write what says \
             failure, such as 5xx, 429 or 500-599"
        );
        assert!(
            warnings.contains(&expected) && warnings.lines().count() == 1,
            "{warnings}"
        );
    }
    // A redirect may well be to a page of excuses.
    assert_eq!(said("5xx, 429, 300-399, 302, 101, 199"), "");
}

#[test]
fn a_list_of_failures_without_those_of_the_server_is_warned_of() {
    let said = |statuses: &str| {
        let text = with(&format!("failure: {{statuses: [{statuses}]}}"));
        shown(&read(&text).unwrap().warnings)
    };
    let warning = said("429");
    assert!(
        warning.contains(
            "services[0].failure.statuses: no answer of 5xx counts as failure: the list replaces the default; add 5xx to it"
        ),
        "{warning}"
    );
    assert_eq!(said("503, 429"), "");
    assert_eq!(said(""), "", "whoever empties it means it");
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
fn a_service_that_never_gets_a_request_is_named() {
    let text = format!("{MINIMAL}- name: second\n  stable: {{version: v1, endpoints: ['http://a']}}\n");
    let warnings = shown(&read(&text).unwrap().warnings);
    assert!(
        warnings
            .contains("serin.yaml:5:9: services[1].name: never gets a request: `app` takes every request"),
        "{warnings}"
    );
}
