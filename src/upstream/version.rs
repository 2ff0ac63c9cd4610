//! A version as both planes see it: its endpoints, and what is recorded when it serves in a role.

use super::{
    Endpoint, Health,
    rotation::{Policy, Rotation},
};
use crate::{
    metrics::{Evidence, VersionMetrics},
    model::{EndpointUrl, ServiceName, VersionName},
};
use arc_swap::{ArcSwap, Guard};
use std::sync::Arc;

/// The pool of one version. Endpoints change at any time; connections to those that stay are kept.
#[derive(Debug)]
pub struct Version {
    /// The service it belongs to.
    pub service: ServiceName,
    /// Its name.
    pub name: VersionName,
    rotation: Arc<Rotation>,
}

impl Version {
    /// A version with these endpoints, by itself: its policy is the default and stays so.
    pub fn new(service: ServiceName, name: VersionName, endpoints: &[EndpointUrl]) -> Version {
        Version::with(service, name, endpoints, Arc::default())
    }

    /// A version with these endpoints under its service's policy.
    pub(super) fn with(
        service: ServiceName,
        name: VersionName,
        endpoints: &[EndpointUrl],
        policy: Arc<ArcSwap<Policy>>,
    ) -> Version {
        let rotation = Rotation::new(format!("{service}/{name}"), policy);
        let version = Version {
            service,
            name,
            rotation: Arc::new(rotation),
        };
        version.set_endpoints(endpoints);
        version
    }

    /// Replaces the whole set. An endpoint whose address stays keeps what is known about it and its connections. Control is
    /// the only writer.
    pub fn set_endpoints(&self, urls: &[EndpointUrl]) {
        let old = self.endpoints();
        let mut set: Vec<Arc<Endpoint>> = Vec::with_capacity(urls.len());
        for url in urls {
            if set.iter().any(|known| known.url == *url) {
                continue;
            }
            let kept = old.iter().find(|known| known.url == *url);
            let rotation = || Arc::downgrade(&self.rotation);
            set.push(kept.map_or_else(|| Arc::new(Endpoint::of(url.clone(), rotation())), Arc::clone));
        }
        self.rotation.publish(set);
    }

    /// The endpoints.
    pub fn endpoints(&self) -> Guard<Arc<Vec<Arc<Endpoint>>>> {
        self.rotation.members.load()
    }

    pub(super) fn rotation(&self) -> &Arc<Rotation> {
        &self.rotation
    }

    /// Whether none of its endpoints can be expected to answer: each has failed at least `attempts` times in a row, or is bad
    /// by its health checks. Endpoints that were never ready are not in rotation and do not count. False for an empty pool.
    pub fn is_down(&self, attempts: u32) -> bool {
        let endpoints = self.endpoints();
        let failing = |endpoint: &Endpoint| match endpoint.health() {
            Health::Failing(n) => n >= attempts.max(1),
            Health::Good => false,
        };
        let down = |endpoint: &Endpoint| endpoint.is_bad() || failing(endpoint);
        endpoints.iter().any(|endpoint| down(endpoint))
            && endpoints
                .iter()
                .all(|endpoint| down(endpoint) || !endpoint.is_ready())
    }
}

/// A version in a role during one generation: what a split leads to.
#[derive(Debug)]
pub struct Target {
    /// Where to send.
    pub version: Arc<Version>,
    /// Counted over the version's whole time in the role.
    pub metrics: Arc<VersionMetrics>,
    /// Counted in this generation only.
    pub evidence: Arc<Evidence>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Fault;
    use std::time::Duration;

    fn urls(ports: &[u16]) -> Vec<EndpointUrl> {
        ports
            .iter()
            .map(|port| format!("http://127.0.0.1:{port}").parse().unwrap())
            .collect()
    }

    #[test]
    fn an_endpoint_that_stays_keeps_its_identity() {
        let version = Version::new(
            ServiceName::new("s").unwrap(),
            VersionName::new("v").unwrap(),
            &urls(&[1, 2, 2]),
        );
        let before: Vec<u64> = version.endpoints().iter().map(|e| e.id).collect();
        assert_eq!(before.len(), 2, "an address listed twice is one endpoint");
        version.set_endpoints(&urls(&[2, 3]));
        let after: Vec<u64> = version.endpoints().iter().map(|e| e.id).collect();
        assert!(after[0] == before[1] && !before.contains(&after[1]));
    }

    #[test]
    fn a_version_is_down_only_when_every_endpoint_is() {
        let version = Version::new(
            ServiceName::new("s").unwrap(),
            VersionName::new("v").unwrap(),
            &urls(&[1, 2]),
        );
        for _ in 0..3 {
            version.endpoints()[0].failed(Fault::Hard, Duration::ZERO);
        }
        assert!(!version.is_down(3));
        for _ in 0..3 {
            version.endpoints()[1].failed(Fault::Hard, Duration::ZERO);
        }
        assert!(version.is_down(3) && !version.is_down(4));
        version.set_endpoints(&[]);
        assert!(!version.is_down(3));
    }
}
