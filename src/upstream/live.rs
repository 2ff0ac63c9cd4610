//! The services as they are right now: the three shared objects of both planes, by name.
//!
//! Control publishes splits and endpoints; workers read them and may trip a service. A trip travels to control over one
//! channel, so that nothing has to poll for it.

use super::{
    ClientTls, Descriptors, Target, Version,
    dns::Names,
    rotation::{Common, Policy},
};
use crate::{
    metrics::{Evidence, Registry, Trial, VersionKey, VersionMetrics},
    model::{EndpointUrl, Role, ServiceName, VersionName, Weight},
    split::{Split, SplitCell, StickyHash, Trip},
};
use arc_swap::ArcSwap;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, mpsc};

/// A hard failure, as the worker that saw it reports it.
#[derive(Debug, Clone)]
pub struct TripReport {
    /// The service.
    pub service: ServiceName,
    /// The canary that is down.
    pub version: VersionName,
    /// The generation in which it was seen.
    pub generation: u64,
    /// The monotonic clock at the trip.
    pub at: Duration,
    /// What the last attempt met, for people.
    pub reason: String,
}

/// One service as both planes see it.
#[derive(Debug)]
pub struct LiveService {
    /// Its name.
    pub name: ServiceName,
    /// Who serves how much.
    pub cell: SplitCell<Arc<Target>>,
    attempts: AtomicU32,
    trips: mpsc::UnboundedSender<TripReport>,
    common: Common,
    /// All pools that exist, also those that do not serve: they are looked after as well.
    versions: Mutex<Vec<Weak<Version>>>,
    tls: ArcSwap<ClientTls>,
}

impl LiveService {
    /// A pool for a version of this service.
    pub fn version(&self, name: &VersionName, endpoints: &[EndpointUrl]) -> Arc<Version> {
        let version = Version::with(self.name.clone(), name.clone(), endpoints, &self.common);
        let version = Arc::new(version);
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.retain(|known| known.strong_count() > 0);
        versions.push(Arc::downgrade(&version));
        drop(versions);
        // Only now can its names be found.
        self.common.names.notify_one();
        version
    }

    /// All pools that exist.
    pub(super) fn versions(&self) -> Vec<Arc<Version>> {
        let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.iter().filter_map(Weak::upgrade).collect()
    }

    /// What the operator asks for all its versions from now on.
    pub fn set_policy(&self, policy: Policy) {
        let limits = policy.limits;
        self.common.policy.store(Arc::new(policy));
        for version in self.versions() {
            version.capacity().set(&limits);
        }
    }

    /// How its `https://` endpoints are talked to from now on.
    pub fn set_tls(&self, tls: Arc<ClientTls>) {
        self.tls.store(tls);
    }

    /// How its `https://` endpoints are talked to.
    pub fn tls(&self) -> Arc<ClientTls> {
        self.tls.load_full()
    }

    /// How many consecutive failures on every endpoint make a hard failure; at least 1.
    pub fn set_hard_failure_attempts(&self, attempts: u32) {
        self.attempts.store(attempts.max(1), Ordering::Relaxed);
    }

    /// See [`LiveService::set_hard_failure_attempts`].
    pub fn hard_failure_attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Something has failed hard on the canary. When that leaves no endpoint of the canary standing, the cell trips:
    /// from the next request on everything goes to stable. Control is told once.
    pub fn canary_failed(
        &self,
        split: &Split<Arc<Target>>,
        now: Duration,
        reason: &dyn std::fmt::Display,
    ) -> bool {
        let Some(canary) = &split.canary else { return false };
        if !canary.version.is_down(self.hard_failure_attempts()) {
            return false;
        }
        // A request of an earlier generation must not trip a canary that has come since.
        let live = self.cell.load();
        if !live
            .canary
            .as_ref()
            .is_some_and(|live| Arc::ptr_eq(&live.version, &canary.version))
        {
            return false;
        }
        if self.cell.trip() == Trip::Now {
            // The receiver is gone only when the process is stopping.
            let _ = self.trips.send(TripReport {
                service: self.name.clone(),
                version: canary.version.name.clone(),
                generation: split.generation,
                at: now,
                reason: reason.to_string(),
            });
        }
        true
    }
}

/// All services. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Services {
    live: Arc<RwLock<BTreeMap<ServiceName, Arc<LiveService>>>>,
    metrics: Registry,
    trips: mpsc::UnboundedSender<TripReport>,
    receiver: Arc<Mutex<Option<mpsc::UnboundedReceiver<TripReport>>>>,
    failures: Arc<Notify>,
    descriptors: Arc<Descriptors>,
    names: Arc<Names>,
}

impl Services {
    /// No service yet.
    pub fn new(metrics: Registry) -> Services {
        let (trips, receiver) = mpsc::unbounded_channel();
        Services {
            live: Arc::default(),
            metrics,
            trips,
            receiver: Arc::new(Mutex::new(Some(receiver))),
            failures: Arc::default(),
            descriptors: Arc::default(),
            names: Arc::default(),
        }
    }

    /// Connections to all versions together are among these; for services that are still to come.
    #[must_use]
    pub fn among(self, descriptors: Descriptors) -> Services {
        Services {
            descriptors: Arc::new(descriptors),
            ..self
        }
    }

    /// The names of all endpoints.
    pub fn names(&self) -> &Arc<Names> {
        &self.names
    }

    /// What connections to versions and clients share.
    pub fn descriptors(&self) -> &Arc<Descriptors> {
        &self.descriptors
    }

    /// Where trips arrive; taken once, by control.
    pub fn take_trips(&self) -> Option<mpsc::UnboundedReceiver<TripReport>> {
        self.receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// The metrics targets record into.
    pub fn metrics(&self) -> &Registry {
        &self.metrics
    }

    /// The service, if there is one of that name.
    pub fn get(&self, name: &str) -> Option<Arc<LiveService>> {
        self.live
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    /// All services, by name.
    pub fn all(&self) -> Vec<Arc<LiveService>> {
        self.live
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// The service of that name; made, with no version behind it, when it is new.
    pub fn ensure(&self, name: &ServiceName) -> Arc<LiveService> {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(live.entry(name.clone()).or_insert_with(|| {
            let nobody = self.absent(name);
            let split = Split::new(0, Weight::ZERO, nobody, None, StickyHash::new(b"", ""), [0, 0]);
            Arc::new(LiveService {
                name: name.clone(),
                cell: SplitCell::new(split),
                attempts: AtomicU32::new(3),
                trips: self.trips.clone(),
                common: Common {
                    policy: Arc::default(),
                    workers: self.metrics.workers(),
                    descriptors: Arc::clone(&self.descriptors),
                    names: Arc::clone(&self.names.wanted),
                },
                versions: Mutex::default(),
                tls: ArcSwap::default(),
            })
        }))
    }

    /// Forgets a service; requests that hold it finish.
    pub fn remove(&self, name: &str) {
        self.live
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
    }

    /// A version in a role, with fresh evidence: what a new generation's split leads to. `trial`: there is a canary in it.
    pub fn target(&self, version: &Arc<Version>, role: Role, trial: Option<Trial>) -> Arc<Target> {
        let workers = self.metrics.workers();
        Arc::new(Target {
            version: Arc::clone(version),
            metrics: self.metrics.version(&version.service, role, &version.name),
            evidence: Arc::new(match trial {
                Some(trial) => Evidence::on_trial(workers, trial),
                None => Evidence::new(workers),
            }),
        })
    }

    /// Who is woken when a request of a version on trial has failed.
    pub fn failures(&self) -> &Arc<Notify> {
        &self.failures
    }

    /// What stands for stable before the first version: no endpoints, and no series in a scrape.
    fn absent(&self, service: &ServiceName) -> Arc<Target> {
        // A constant that satisfies the rule for names.
        let name = VersionName::new("none").unwrap_or_else(|_| unreachable!("`none` is a version name"));
        let key = VersionKey {
            service: service.clone(),
            role: Role::Stable,
            version: name.clone(),
        };
        let workers = self.metrics.workers();
        Arc::new(Target {
            version: Arc::new(Version::new(service.clone(), name, &[])),
            metrics: Arc::new(VersionMetrics::new(key, workers)),
            evidence: Arc::new(Evidence::new(workers)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Fault;

    #[test]
    fn the_canary_trips_once_when_its_last_endpoint_fails() {
        let services = Services::new(Registry::new(1).unwrap());
        let mut trips = services.take_trips().unwrap();
        let name = ServiceName::new("shop").unwrap();
        let live = services.ensure(&name);
        live.set_hard_failure_attempts(2);
        let version = |v: &str, port: u16| {
            let url = format!("http://127.0.0.1:{port}").parse().unwrap();
            Arc::new(Version::new(name.clone(), VersionName::new(v).unwrap(), &[url]))
        };
        let (v1, v2) = (version("v1", 1), version("v2", 2));
        let (stable, canary) = (
            services.target(&v1, Role::Stable, Some(Trial::default())),
            services.target(&v2, Role::Canary, Some(Trial::default())),
        );
        live.cell.publish(Split::new(
            1,
            Weight::percent(5),
            stable,
            Some(canary),
            StickyHash::new(b"", ""),
            [0, 0],
        ));
        let split = live.cell.load_full();
        for expected in [false, true, true] {
            v2.endpoints()[0].failed(Fault::Hard, Duration::ZERO);
            assert_eq!(
                live.canary_failed(&split, Duration::ZERO, &"connection refused"),
                expected
            );
        }
        assert!(live.cell.is_tripped());
        let report = trips.try_recv().unwrap();
        assert_eq!((report.version.as_str(), report.generation), ("v2", 1));
        assert!(trips.try_recv().is_err(), "control is told once");
    }
}
