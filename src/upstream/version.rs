//! A version as both planes see it: its endpoints, and what is recorded when it serves in a role.

use super::{
    Endpoint, Health,
    capacity::Capacity,
    rotation::{Common, Rotation},
};
use crate::{
    metrics::{Evidence, VersionMetrics},
    model::{EndpointUrl, Scheme, ServiceName, VersionName},
};
use arc_swap::{ArcSwap, Cache, Guard};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// One reader's copy of a version's endpoints, looked up only when they have changed.
pub(super) type FollowedEndpoints = Cache<Arc<ArcSwap<Vec<Arc<Endpoint>>>>, Arc<Vec<Arc<Endpoint>>>>;

/// The pool of one version. Endpoints change at any time; connections to those that stay are kept.
#[derive(Debug)]
pub struct Version {
    /// The service it belongs to.
    pub service: ServiceName,
    /// Its name.
    pub name: VersionName,
    rotation: Arc<Rotation>,
    wanted: Mutex<Wanted>,
    /// Wakes who looks names up.
    names: Arc<Notify>,
}

/// What the endpoints are made from.
#[derive(Debug, Default)]
struct Wanted {
    urls: Vec<EndpointUrl>,
    /// What their names resolve to, as far as it may be used.
    addresses: BTreeMap<String, Vec<IpAddr>>,
    /// Why nothing that a name resolves to may be used.
    refused: BTreeMap<String, String>,
}

/// What an answer was to a version.
#[derive(Debug, Default)]
pub(super) struct Answered {
    /// It had addresses, and none that may be used.
    pub(super) unusable: bool,
    /// What was left out and why, for people.
    pub(super) refused: Vec<String>,
}

impl Wanted {
    fn addresses_of(&self, host: &str) -> &[IpAddr] {
        self.addresses.get(host).map_or(&[], Vec::as_slice)
    }
}

/// The name in an endpoint's address, if it has to be resolved.
fn host(url: &EndpointUrl) -> Option<&str> {
    (!url.scheme().is_unix() && url.ip().is_none()).then(|| url.host())
}

impl Version {
    /// A version with these endpoints, by itself: its policy is the default and stays so.
    pub fn new(service: ServiceName, name: VersionName, endpoints: &[EndpointUrl]) -> Version {
        Version::with(service, name, endpoints, &Common::default())
    }

    /// A version with these endpoints under its service's policy.
    pub(super) fn with(
        service: ServiceName,
        name: VersionName,
        endpoints: &[EndpointUrl],
        common: &Common,
    ) -> Version {
        let rotation = Rotation::new(format!("{service}/{name}"), common);
        let version = Version {
            service,
            name,
            rotation: Arc::new(rotation),
            wanted: Mutex::default(),
            names: Arc::clone(&common.names),
        };
        version.set_endpoints(endpoints);
        version
    }

    /// Replaces the whole set. An endpoint whose address stays keeps what is known about it and its connections. Endpoints
    /// with a name follow when it is resolved; until one of the new ones has an address, the old ones stay.
    pub fn set_endpoints(&self, urls: &[EndpointUrl]) {
        let mut wanted = self.wanted();
        wanted.urls = urls.to_vec();
        let hosts: Vec<&str> = urls.iter().filter_map(host).collect();
        wanted
            .addresses
            .retain(|known, _| hosts.contains(&known.as_str()));
        wanted.refused.retain(|known, _| hosts.contains(&known.as_str()));
        self.rebuild(&wanted);
        if !hosts.is_empty() {
            self.names.notify_one();
        }
    }

    /// What a name resolves to now. Addresses that its endpoints may not have are left out; when that leaves none, those
    /// known before stay in use. Says what was left out.
    pub(super) fn resolved(&self, name: &str, addresses: &[IpAddr]) -> Answered {
        let mut wanted = self.wanted();
        let urls = wanted
            .urls
            .iter()
            .filter(|url| host(url).is_some_and(|host| host == name));
        let urls: Vec<&EndpointUrl> = urls.collect();
        if urls.is_empty() || addresses.is_empty() {
            return Answered::default();
        }
        let policy = self.rotation.policy();
        let mut usable = Vec::with_capacity(addresses.len());
        let mut refused = Vec::new();
        for ip in addresses {
            // Endpoints of one name differ in their ports: an address is good for all of them or for none.
            match urls.iter().find_map(|url| policy.reach.refusal(url, *ip)) {
                None => usable.push(*ip),
                Some(why) => refused.push(format!(
                    "`{name}` resolves to {ip}, which endpoints of {}/{} may not have: {why}",
                    self.service, self.name
                )),
            }
        }
        let answered = Answered {
            unusable: usable.is_empty(),
            refused,
        };
        if answered.unusable {
            let why = answered.refused.first().cloned().unwrap_or_default();
            wanted.refused.insert(name.to_owned(), why);
            return answered;
        }
        wanted.refused.remove(name);
        if wanted.addresses_of(name) != usable {
            wanted.addresses.insert(name.to_owned(), usable);
            self.rebuild(&wanted);
        }
        answered
    }

    /// What was published last, names as they are.
    pub fn urls(&self) -> Vec<EndpointUrl> {
        self.wanted().urls.clone()
    }

    /// Endpoints whose name has no address yet, and why.
    pub fn unresolved(&self) -> Vec<(EndpointUrl, String)> {
        let wanted = self.wanted();
        let open = |url: &EndpointUrl| {
            let host = host(url).filter(|host| wanted.addresses_of(host).is_empty())?;
            let none = || format!("`{host}` has no address yet");
            Some((
                url.clone(),
                wanted.refused.get(host).cloned().unwrap_or_else(none),
            ))
        };
        wanted.urls.iter().filter_map(open).collect()
    }

    /// The names of its endpoints.
    pub(super) fn hosts(&self) -> BTreeSet<String> {
        let wanted = self.wanted();
        wanted.urls.iter().filter_map(host).map(str::to_owned).collect()
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes one endpoint for each address; called under the lock of what is wanted.
    fn rebuild(&self, wanted: &Wanted) {
        let old = self.endpoints();
        let mut set: Vec<Arc<Endpoint>> = Vec::with_capacity(wanted.urls.len());
        let mut add = |url: &EndpointUrl, address: Option<SocketAddr>| {
            let same = |known: &&Arc<Endpoint>| known.url == *url && known.address == address;
            if set.iter().any(|known| same(&known)) {
                return;
            }
            let fresh = || {
                let (rotation, capacity) = (Arc::downgrade(&self.rotation), Arc::clone(self.capacity()));
                Arc::new(Endpoint::of(url.clone(), address, rotation, capacity))
            };
            set.push(old.iter().find(same).map_or_else(fresh, Arc::clone));
        };
        for url in &wanted.urls {
            match (url.scheme(), url.ip()) {
                (Scheme::Unix | Scheme::UnixH2c, _) => add(url, None),
                (Scheme::Http | Scheme::H2c | Scheme::Https, Some(ip)) => {
                    add(url, Some(SocketAddr::new(ip, url.port())));
                }
                (Scheme::Http | Scheme::H2c | Scheme::Https, None) => {
                    for ip in wanted.addresses_of(url.host()) {
                        add(url, Some(SocketAddr::new(*ip, url.port())));
                    }
                }
            }
        }
        if !set.is_empty() || wanted.urls.is_empty() {
            self.rotation.publish(set);
        }
    }

    /// The endpoints.
    pub fn endpoints(&self) -> Guard<Arc<Vec<Arc<Endpoint>>>> {
        self.rotation.members.load()
    }

    /// For a reader that asks often: it touches nothing shared as long as the endpoints stay.
    pub(super) fn follow_endpoints(&self) -> FollowedEndpoints {
        Cache::new(Arc::clone(&self.rotation.members))
    }

    /// How much of it may be used at once.
    pub fn capacity(&self) -> &Arc<Capacity> {
        &self.rotation.capacity
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

    fn addresses(version: &Version) -> Vec<String> {
        let endpoints = version.endpoints();
        endpoints
            .iter()
            .map(|one| one.address.unwrap().to_string())
            .collect()
    }

    #[test]
    fn every_address_of_a_name_is_an_endpoint_and_those_that_stay_keep_theirs() {
        let named: Vec<EndpointUrl> = vec!["http://app:80".parse().unwrap()];
        let version = Version::new(
            ServiceName::new("s").unwrap(),
            VersionName::new("v").unwrap(),
            &named,
        );
        assert!(version.endpoints().is_empty());
        assert_eq!(version.unresolved()[0].0, named[0]);
        let ips = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<_>>();
        version.resolved("other", &ips(&["10.0.0.9"]));
        version.resolved("app", &ips(&["10.0.0.1", "10.0.0.2"]));
        assert_eq!(addresses(&version), ["10.0.0.1:80", "10.0.0.2:80"]);
        let second = version.endpoints()[1].id;
        version.resolved("app", &ips(&["10.0.0.2", "10.0.0.3"]));
        assert_eq!(addresses(&version), ["10.0.0.2:80", "10.0.0.3:80"]);
        assert_eq!(version.endpoints()[0].id, second);
    }

    #[test]
    fn endpoints_stay_until_one_of_those_that_replace_them_has_an_address() {
        let version = Version::new(
            ServiceName::new("s").unwrap(),
            VersionName::new("v").unwrap(),
            &urls(&[1]),
        );
        version.set_endpoints(&["http://app:80".parse().unwrap()]);
        assert_eq!(addresses(&version), ["127.0.0.1:1"]);
        version.resolved("app", &["10.0.0.1".parse().unwrap()]);
        assert_eq!(addresses(&version), ["10.0.0.1:80"]);
        version.set_endpoints(&[]);
        assert!(version.endpoints().is_empty());
    }
}
