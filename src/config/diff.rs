//! What a reload would change, for whoever decides whether it may.
//!
//! `control` refuses to lose a service or template in use (design section 8.1); this file only says what is lost.

use super::compiled::{Config, Service};
use crate::model::ServiceName;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What is different in a new configuration.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one part of a file that changed or did not"
)]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diff {
    /// Services that were not there.
    pub services_added: Vec<ServiceName>,
    /// Services that are gone.
    pub services_removed: Vec<ServiceName>,
    /// Services that are not as they were.
    pub services_changed: Vec<ServiceDiff>,
    /// Templates that are gone.
    pub templates_removed: Vec<String>,
    /// Templates that are new or not as they were; running rollouts keep theirs.
    pub templates_changed: Vec<String>,
    /// Addresses, modes, timeouts or limits of listeners.
    pub listeners: bool,
    /// The address, socket, tokens or TLS of the REST API.
    pub admin: bool,
    /// The telemetry address.
    pub telemetry: bool,
    /// The store's path or retention.
    pub state: bool,
    /// Who is told what.
    pub notifications: bool,
    /// Keys outside services and templates that are not written as they were.
    pub keys: Vec<String>,
}

/// What is different in one service.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one part of a service that changed or did not"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceDiff {
    /// The service.
    pub name: ServiceName,
    /// The block `stable`; compare with the store before acting.
    pub stable: bool,
    /// The block `canary`; compare with the store before acting.
    pub canary: bool,
    /// The strategy or its templates: for the next deploy.
    pub plan: bool,
    /// Anything else: takes effect at once.
    pub rest: bool,
    /// Keys of the service that are not written as they were.
    pub keys: Vec<String>,
}

impl ServiceDiff {
    /// What is different, for a log line. The blocks `stable` and `canary` act, and who acts says what was done.
    pub fn words(&self) -> Option<String> {
        let mut words: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        words.retain(|key| !["stable", "canary", "strategy"].contains(key));
        match (self.plan, self.keys.iter().any(|key| key == "strategy")) {
            (true, true) => words.push("strategy (for the next rollout)"),
            (true, false) => words.push("analysis templates of the strategy (for the next rollout)"),
            (false, true) => words.push("strategy, which means the same"),
            (false, false) => {}
        }
        if words.is_empty() && self.rest {
            words.push("a secret");
        }
        (!words.is_empty()).then(|| format!("changed: {}", words.join(", ")))
    }
}

impl Diff {
    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        *self == Diff::default()
    }

    /// What is different outside services, for a log line.
    pub fn words(&self) -> Vec<String> {
        let template = |name: &String, what: &str| format!("analysis template `{name}` {what}");
        let mut words: Vec<String> = self.keys.iter().map(|key| format!("`{key}` changed")).collect();
        if self.admin && !self.keys.iter().any(|key| key == "admin") {
            words.push("a token of `admin` changed".to_owned());
        }
        if self.notifications && !self.keys.iter().any(|key| key == "notifications") {
            words.push("a secret of `notifications` changed".to_owned());
        }
        words.extend(
            self.templates_changed
                .iter()
                .map(|name| template(name, "changed")),
        );
        words.extend(
            self.templates_removed
                .iter()
                .map(|name| template(name, "removed")),
        );
        words
    }

    /// What only a restart can bring about: addresses and files that are open.
    pub fn needs_restart(&self, old: &Config, new: &Config) -> Vec<&'static str> {
        let bound = |config: &Config| -> Vec<_> {
            config
                .listeners
                .iter()
                .map(|listener| (listener.name.clone(), listener.address.clone()))
                .collect()
        };
        let mut needs = Vec::new();
        if bound(old) != bound(new) {
            needs.push("listeners");
        }
        if old.admin.address != new.admin.address || old.admin.socket != new.admin.socket {
            needs.push("admin.address and admin.socket");
        }
        if self.telemetry {
            needs.push("telemetry.address");
        }
        if old.state.path != new.state.path {
            needs.push("state.path");
        }
        needs
    }
}

/// What `new` would change.
pub fn diff(old: &Config, new: &Config) -> Diff {
    let (were, are) = (by_name(old), by_name(new));
    let (old_written, new_written) = (written(old), written(new));
    let both = new.services.iter().filter_map(|new| {
        let name = new.name.as_str();
        let (was, is) = (old_written.get(name), new_written.get(name));
        let keys = differing(was.unwrap_or(&&Value::Null), is.unwrap_or(&&Value::Null));
        service(were.get(name)?, new, keys)
    });
    let lacking = |config: &Config, others: &BTreeMap<&str, &Service>| {
        let names = config.services.iter().map(|service| &service.name);
        let lacking = names.filter(|name| !others.contains_key(name.as_str()));
        lacking.cloned().collect::<Vec<ServiceName>>()
    };
    Diff {
        services_added: lacking(new, &were),
        services_removed: lacking(old, &are),
        services_changed: both.collect(),
        templates_removed: old
            .templates
            .keys()
            .filter(|name| !new.templates.contains_key(*name))
            .cloned()
            .collect(),
        templates_changed: new
            .templates
            .iter()
            .filter(|(name, template)| old.templates.get(*name) != Some(template))
            .map(|(name, _)| name.clone())
            .collect(),
        listeners: format!("{:?}", old.listeners) != format!("{:?}", new.listeners),
        admin: format!("{:?}", old.admin) != format!("{:?}", new.admin) || hashes(old) != hashes(new),
        telemetry: old.telemetry != new.telemetry,
        state: old.state != new.state,
        notifications: old.notifications != new.notifications,
        keys: keys(old, new),
    }
}

/// The keys of the whole file under which something is different, also where that is a secret.
fn keys(old: &Config, new: &Config) -> Vec<String> {
    let mut keys = differing(old.redacted_json(), new.redacted_json());
    keys.retain(|key| !["services", "analysisTemplates"].contains(&key.as_str()));
    let tracing = "tracing".to_owned();
    if old.tracing != new.tracing && !keys.contains(&tracing) {
        keys.push(tracing);
    }
    keys
}

fn by_name(config: &Config) -> BTreeMap<&str, &Service> {
    let services = config.services.iter();
    services
        .map(|service| (service.name.as_str(), service.as_ref()))
        .collect()
}

/// The keys of two maps under which not the same is written.
fn differing(old: &Value, new: &Value) -> Vec<String> {
    let keys = |map: &Value| -> BTreeSet<String> {
        map.as_object()
            .into_iter()
            .flat_map(|map| map.keys().cloned())
            .collect()
    };
    keys(old)
        .union(&keys(new))
        .filter(|key| old.get(key) != new.get(key))
        .cloned()
        .collect()
}

/// How services are written, by name.
fn written(config: &Config) -> BTreeMap<&str, &Value> {
    let services = config.redacted_json().get("services").and_then(Value::as_array);
    let services = services.into_iter().flatten();
    let named = services.filter_map(|service| Some((service.get("name")?.as_str()?, service)));
    named.collect()
}

/// Tokens show no hash, so a changed secret would look the same.
fn hashes(config: &Config) -> Vec<[u8; 32]> {
    config.admin.tokens.iter().map(|token| token.hash.0).collect()
}

fn service(old: &Service, new: &Service, keys: Vec<String>) -> Option<ServiceDiff> {
    // Patterns do not compare, their text does; secrets have no text.
    let rest = |service: &Service| {
        let Service {
            stable: _,
            canary: _,
            plan: _,
            templates: _,
            ..
        } = service;
        let mut rest = service.clone();
        (rest.stable, rest.canary) = (None, None);
        rest.plan = crate::rollout::Plan::canary(Vec::new());
        rest.templates.clear();
        let secret = service.sticky.as_ref().and_then(|sticky| sticky.secret.clone());
        (format!("{rest:?}"), secret)
    };
    let diff = ServiceDiff {
        name: new.name.clone(),
        stable: old.stable != new.stable,
        canary: old.canary != new.canary,
        plan: old.plan != new.plan || old.templates != new.templates,
        rest: rest(old) != rest(new),
        keys,
    };
    (diff.stable || diff.canary || diff.plan || diff.rest).then_some(diff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_text;
    use std::path::Path;

    const A: &str = "listeners: [{address: '127.0.0.1:8080'}]\nservices:\n- name: a\n  stable: {version: v1, endpoints: \
                     ['http://127.0.0.1:9001']}\n  sticky: {header: x, secret: one-one-one}\n";

    fn read(text: &str) -> std::sync::Arc<Config> {
        load_text(text, "f", Path::new("."), &|_| None).unwrap().config
    }

    #[test]
    fn the_same_file_changes_nothing() {
        assert!(diff(&read(A), &read(A)).is_empty());
    }

    #[test]
    fn each_kind_of_change_is_told_apart() {
        let changed = |from: &str, to: &str| diff(&read(A), &read(&A.replace(from, to)));
        let one = |diff: Diff| diff.services_changed.into_iter().next().unwrap();
        let d = one(changed("9001", "9002"));
        assert_eq!(d.words(), None, "who acts on it says so");
        assert_eq!((d.stable, d.canary, d.plan), (true, false, false));
        let d = one(changed("one-one-one", "two-two-two"));
        assert_eq!((d.stable, d.canary, d.plan, d.rest), (false, false, false, true));
        assert_eq!(d.words().unwrap(), "changed: a secret");
        let d = one(changed("header: x", "header: y"));
        assert_eq!(d.words().unwrap(), "changed: sticky");
        let d = one(changed("  sticky", "  strategy: {immediate: {}}\n  sticky"));
        assert_eq!((d.stable, d.plan, d.rest), (false, true, false));
        assert_eq!(d.words().unwrap(), "changed: strategy (for the next rollout)");
        let d = changed("name: a", "name: b");
        assert_eq!(
            (
                d.services_added.len(),
                d.services_removed.len(),
                d.services_changed.len()
            ),
            (1, 1, 0)
        );
        let d = changed("8080", "8081");
        assert!(d.listeners && d.services_changed.is_empty());
        assert_eq!(
            d.needs_restart(&read(A), &read(&A.replace("8080", "8081"))),
            ["listeners"]
        );
        let template =
            "analysisTemplates: [{name: t, metrics: [{name: m, provider: {serin: {metric: errorRate}}}]}]\n";
        let with = read(&format!("{A}{template}"));
        assert_eq!(diff(&with, &read(A)).templates_removed, ["t"]);
        let d = diff(&read(A), &with);
        assert_eq!(d.templates_changed, ["t"]);
        assert_eq!(d.words(), ["analysis template `t` changed"]);
        let d = diff(&read(A), &read(&format!("{A}dns: {{timeout: 1s}}\n")));
        assert_eq!(d.words(), ["`dns` changed"]);
        // Neither a key nor where an address leads is ever shown.
        let told = |path: &str| {
            read(&format!(
                "{A}notifications: [{{name: ops, url: 'https://hooks.test/{path}'}}]\n"
            ))
        };
        assert_eq!(diff(&read(A), &told("a")).words(), ["`notifications` changed"]);
        assert_eq!(
            diff(&told("a"), &told("b")).words(),
            ["a secret of `notifications` changed"]
        );
    }
}
