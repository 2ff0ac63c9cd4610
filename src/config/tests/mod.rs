//! Configurations as people write them: what they mean, and what is said of their faults.
#![allow(clippy::format_collect, clippy::format_push_string, reason = "short in tests")]

mod addresses;
mod any;
mod faults;
mod inputs;
mod plans;
mod services;

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
