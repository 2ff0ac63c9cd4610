//! What a scrape reads: all versions' shards merged, listeners, and the sources that others register.

use super::{
    ControlMetrics, ListenerMetrics, Rejection, VersionKey, VersionMetrics, VersionSnapshot,
    lines::{Lines, Source},
    names::{self, Family},
    text::Text,
    versions,
};
use crate::model::{Role, ServiceName, Timestamp, VersionName};
use prometheus::proto::MetricFamily;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

/// How long the series of a version that is gone are still shown.
const KEEP_GONE: Duration = Duration::from_secs(15 * 60);

#[derive(Debug)]
struct Entry {
    metrics: Arc<VersionMetrics>,
    gone: Option<Timestamp>,
}

/// What other floors add to a scrape.
#[derive(Clone, Default)]
struct Sources(Arc<Mutex<Vec<Box<dyn Source>>>>);

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sources").field(&lock(&self.0).len()).finish()
    }
}

/// A family of the exposition.
enum Part<'a> {
    Versions(&'static Family, versions::Write),
    Source(&'a Lines),
    Library(&'a MetricFamily),
}

/// All metrics of the process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    workers: usize,
    versions: Arc<Mutex<BTreeMap<VersionKey, Entry>>>,
    listeners: Arc<Mutex<Vec<Arc<ListenerMetrics>>>>,
    prometheus: prometheus::Registry,
    sources: Sources,
    /// The control plane's families.
    pub control: ControlMetrics,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while holding it cannot leave a map half-written that matters to counting.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// An empty registry for `workers` data-plane threads, with the process' own metrics.
    pub fn new(workers: usize) -> Result<Registry, prometheus::Error> {
        let prometheus = prometheus::Registry::new();
        prometheus.register(Box::new(
            prometheus::process_collector::ProcessCollector::for_self(),
        ))?;
        let control = ControlMetrics::register(&prometheus)?;
        Ok(Registry {
            workers,
            versions: Arc::default(),
            listeners: Arc::default(),
            prometheus,
            sources: Sources::default(),
            control,
        })
    }

    /// How many workers have a shard.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// The cells of a version in a role: the same ones for as long as they are shown.
    pub fn version(&self, service: &ServiceName, role: Role, version: &VersionName) -> Arc<VersionMetrics> {
        let key = VersionKey {
            service: service.clone(),
            role,
            version: version.clone(),
        };
        let mut versions = lock(&self.versions);
        let entry = versions.entry(key.clone()).or_insert_with(|| Entry {
            metrics: Arc::new(VersionMetrics::new(key, self.workers)),
            gone: None,
        });
        entry.gone = None;
        Arc::clone(&entry.metrics)
    }

    /// Marks a version's series in one role as gone at `now`; they are shown for another 15 minutes.
    pub fn retire(&self, service: &ServiceName, role: Role, version: &VersionName, now: Timestamp) {
        let key = VersionKey {
            service: service.clone(),
            role,
            version: version.clone(),
        };
        if let Some(entry) = lock(&self.versions).get_mut(&key) {
            entry.gone.get_or_insert(now);
        }
    }

    /// Drops what has been gone for long enough.
    pub fn sweep(&self, now: Timestamp) {
        lock(&self.versions).retain(|_, entry| entry.gone.is_none_or(|gone| now.since(gone) < KEEP_GONE));
    }

    /// Requests a version serves right now, in either role.
    pub fn in_flight(&self, service: &ServiceName, version: &VersionName) -> u64 {
        let versions = lock(&self.versions);
        let of = |role| {
            let key = VersionKey {
                service: service.clone(),
                role,
                version: version.clone(),
            };
            versions.get(&key).map_or(0, |entry| entry.metrics.in_flight())
        };
        of(Role::Stable).wrapping_add(of(Role::Canary))
    }

    /// The counters of a listener, by name: the same ones across reloads.
    pub fn listener(&self, name: &str) -> Arc<ListenerMetrics> {
        let mut listeners = lock(&self.listeners);
        if let Some(known) = listeners.iter().find(|known| known.name == name) {
            return Arc::clone(known);
        }
        let fresh = Arc::new(ListenerMetrics::new(name));
        listeners.push(Arc::clone(&fresh));
        fresh
    }

    /// Adds what has its say in every later scrape.
    pub fn register(&self, source: Box<dyn Source>) {
        lock(&self.sources.0).push(source);
    }

    /// Whatever is counted or measured besides versions and what the library holds.
    fn read_sources(&self) -> Vec<Lines> {
        let listeners = lock(&self.listeners);
        let mut lines = vec![rejected(&listeners), connections(&listeners)];
        drop(listeners);
        lines.extend(self.control.rollouts.read());
        for source in lock(&self.sources.0).iter() {
            lines.extend(source.read());
        }
        lines
    }

    /// The exposition of `/metrics`, families by name.
    pub fn expose(&self) -> String {
        let shown: Vec<Arc<VersionMetrics>> = lock(&self.versions)
            .values()
            .map(|entry| Arc::clone(&entry.metrics))
            .collect();
        // One reading for all families, so that they agree with each other.
        let read: Vec<(String, VersionSnapshot)> = shown
            .iter()
            .map(|metrics| (versions::labels(&metrics.key), metrics.snapshot()))
            .collect();
        let (sources, library) = (self.read_sources(), self.prometheus.gather());
        let mut parts: BTreeMap<&str, Part<'_>> = BTreeMap::new();
        parts.extend(versions::FAMILIES.map(|(family, write)| (family.name, Part::Versions(family, write))));
        parts.extend(
            sources
                .iter()
                .map(|lines| (lines.family.name, Part::Source(lines))),
        );
        parts.extend(
            library
                .iter()
                .map(|family| (family.name(), Part::Library(family))),
        );
        let mut text = Text::of_about(read.len() * versions::BYTES);
        for part in parts.into_values() {
            match part {
                Part::Versions(family, write) => text.table(family, &read, write),
                Part::Source(lines) => text.lines(lines),
                Part::Library(family) => text.family(family),
            }
        }
        text.finish()
    }

    /// The exposition of `/metrics/compat`: `http_requests_total{job,version,status}` for queries written before Serin.
    pub fn expose_compat(&self) -> String {
        let versions: Vec<Arc<VersionMetrics>> = lock(&self.versions)
            .values()
            .map(|entry| Arc::clone(&entry.metrics))
            .collect();
        let mut sums: BTreeMap<(String, String, u16), u64> = BTreeMap::new();
        for metrics in &versions {
            let (job, version) = (metrics.key.service.to_string(), metrics.key.version.to_string());
            // At 0 from the first scrape, or `rate()` would miss the first success and the first error.
            for status in [200, 500] {
                sums.entry((job.clone(), version.clone(), status)).or_default();
            }
            for (_, status, count) in metrics.snapshot().requests {
                *sums.entry((job.clone(), version.clone(), status)).or_default() += count;
            }
        }
        let mut lines = Lines::of(&names::COMPATIBLE);
        for ((job, version, status), count) in sums {
            lines.count(&[&job, &version, &status.to_string()], count);
        }
        let mut text = Text::default();
        text.lines(&lines);
        text.finish()
    }
}

fn connections(listeners: &[Arc<ListenerMetrics>]) -> Lines {
    let mut lines = Lines::of(&names::CLIENT_CONNECTIONS);
    for listener in listeners {
        lines.count(&[&listener.name], listener.connections.load(Ordering::Relaxed));
    }
    lines
}

fn rejected(listeners: &[Arc<ListenerMetrics>]) -> Lines {
    let mut lines = Lines::of(&names::REJECTED);
    for listener in listeners {
        for reason in Rejection::ALL {
            lines.count(&[&listener.name, reason.as_str()], listener.rejected(*reason));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, StatusCode};

    fn service() -> ServiceName {
        ServiceName::new("shop").unwrap()
    }

    fn version(name: &str) -> VersionName {
        VersionName::new(name).unwrap()
    }

    #[test]
    fn every_live_version_is_there_at_zero_from_the_first_scrape() {
        let registry = Registry::new(2).unwrap();
        registry.version(&service(), Role::Canary, &version("v2"));
        let text = registry.expose();
        for line in [
            r#"serin_http_requests_by_class_total{class="5xx",role="canary",serin_service="shop",version="v2"} 0"#,
            r#"serin_version_outcomes_total{outcome="failed",role="canary",serin_service="shop",version="v2"} 0"#,
        ] {
            // The text encoder keeps the order in which labels were given.
            let sorted = |l: &str| {
                let mut parts: Vec<String> = l.split(['{', '}', ',']).map(str::to_owned).collect();
                parts.sort();
                parts
            };
            assert!(text.lines().any(|l| sorted(l) == sorted(line)), "{line}\n{text}");
        }
    }

    #[test]
    fn a_version_that_is_gone_is_shown_for_fifteen_minutes_and_no_longer() {
        let registry = Registry::new(1).unwrap();
        registry.version(&service(), Role::Stable, &version("v1"));
        let now = Timestamp::from_secs(1000);
        registry.retire(&service(), Role::Stable, &version("v1"), now);
        registry.sweep(now.plus(Duration::from_secs(14 * 60)));
        assert!(registry.expose().contains("version=\"v1\""));
        registry.sweep(now.plus(Duration::from_secs(15 * 60)));
        assert!(!registry.expose().contains("version=\"v1\""));
    }

    #[test]
    fn the_compatible_family_sums_over_roles_and_methods() {
        let registry = Registry::new(1).unwrap();
        for role in Role::ALL {
            let metrics = registry.version(&service(), role, &version("v1"));
            metrics
                .shard(0)
                .answered(&Method::GET, StatusCode::OK, Duration::ZERO);
            metrics
                .shard(0)
                .answered(&Method::POST, StatusCode::OK, Duration::ZERO);
        }
        let text = registry.expose_compat();
        assert!(
            text.contains(r#"http_requests_total{job="shop",version="v1",status="200"} 4"#),
            "{text}"
        );
    }
}
