//! Strategies, their steps, and the metrics and judges that decide.

use super::*;

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
        (
            "steps: [{setWeight: 1}], holdback: {share: 1, duration: 10s}",
            2,
            1,
            10,
        ),
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
fn a_judge_that_would_never_see_both_versions_is_a_fault_of_the_plan() {
    let plan = |canary: &str| {
        faults(&format!(
            "{}{JUDGES}",
            with(&format!("strategy: {{canary: {{{canary}}}}}"))
        ))
    };
    let beside = "analysis: {templates: [{templateName: mine}]}";
    let step = "{analysis: {templates: [{templateName: mine}]}}";
    let waits = "{pause: {untilEvidence: {}}}";
    let hold = "holdback: {duration: 30m}";
    for (canary, at) in [
        (
            format!("steps: [{waits}, {{setWeight: 5}}, {{pause: {{}}}}]"),
            "steps[0]: ",
        ),
        (
            format!("steps: [{step}, {{setWeight: 5}}, {{pause: {{}}}}]"),
            "steps[0]: ",
        ),
        (
            format!("steps: [{{setWeight: 5}}, {waits}, {{setWeight: 0}}, {waits}]"),
            "steps[3]: ",
        ),
        (
            format!("steps: [{{setWeight: 5}}, {{pause: {{}}}}, {{setWeight: 100}}, {step}]"),
            "steps[3]: ",
        ),
        (
            format!("steps: [{{setWeight: 5}}, {waits}, {{setWeight: 100}}, {waits}]"),
            "steps[3]: ",
        ),
        (format!("{beside}, steps: [{{pause: {{}}}}]"), "canary: "),
        (
            format!("{beside}, steps: [{{setWeight: 100}}, {{pause: {{}}}}, {{setWeight: 50}}]"),
            "canary: ",
        ),
        (format!("{hold}, steps: [{{pause: {{}}}}]"), "canary: "),
        (hold.to_owned(), "canary: "),
    ] {
        let said = plan(&canary);
        assert!(
            said.contains(at) && said.contains("a judge compares both versions, and"),
            "{canary}\n{said}"
        );
    }
    for canary in [
        format!(
            "{beside}, steps: [{{pause: {{}}}}, {{setWeight: 5}}, {{pause: {{}}}}, {{setWeight: 0}}, {{pause: {{}}}}]"
        ),
        format!("{hold}, steps: [{{setWeight: 5}}, {waits}, {step}]"),
        format!("{hold}, auto: {{weights: [50]}}"),
        "steps: [{pause: {untilEvidence: {max: 10m}}}, {setWeight: 5}, {pause: {}}]".to_owned(),
    ] {
        assert_eq!(plan(&canary), "", "{canary}");
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
        (vec![step(&["mine"])], "steps[0]: a judge compares both versions"),
        (
            vec![serde_json::json!({"setWeight": 100})],
            "steps: a judge compares both versions",
        ),
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
fn a_json_path_that_cannot_be_followed_is_refused_where_it_stands() {
    let template = "analysisTemplates:\n- name: t\n  metrics:\n  - {name: m, successCondition: result, provider: {web: {url: 'http://127.0.0.1:9', jsonPath: '{$.a'}}}\n";
    let faults = faults(&format!("{MINIMAL}{template}"));
    assert!(
        faults.contains("provider.web.jsonPath: ") && faults.contains("the brace is not closed"),
        "{faults}"
    );
}
