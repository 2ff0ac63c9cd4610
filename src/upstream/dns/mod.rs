//! The names of endpoints: looked up when their time to live is over, the last good answer kept for as long as it takes.
//!
//! One task on the control runtime asks; pools are told when an answer changes. Nothing here runs when a request needs a
//! connection: an endpoint has its address.

mod client;
mod message;

use super::{Services, Version};
use crate::{config::Dns, model::Clock};
use arc_swap::ArcSwap;
use client::Found;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{Notify, watch};

/// A name is not looked up more often than this, whatever its time to live.
const SHORTEST: Duration = Duration::from_secs(1);
/// From a failed look-up to the next.
const AGAIN: Duration = Duration::from_secs(2);

/// What is known of a name.
#[derive(Debug, Default)]
struct Name {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    /// When it is to be looked up; none: that is under way.
    next: Option<Duration>,
    /// The last look-up failed; what is known is older.
    stale: bool,
    asked: bool,
}

impl Name {
    fn addresses(&self) -> Vec<IpAddr> {
        self.v4.iter().chain(&self.v6).copied().collect()
    }

    /// A look-up ended; whether the addresses are others now.
    fn looked_up(&mut self, result: Result<Found, String>, now: Duration, refresh: Duration) -> bool {
        let before = self.addresses();
        self.asked = true;
        match result {
            Ok(found) => {
                let usable = |addresses: Vec<IpAddr>| addresses.into_iter().filter(is_usable).collect();
                // A kind that could not be asked for is as it was.
                self.v4 = found.v4.map_or(std::mem::take(&mut self.v4), usable);
                self.v6 = found.v6.map_or(std::mem::take(&mut self.v6), usable);
                let ttl = Duration::from_secs(found.ttl.into());
                (self.stale, self.next) = (false, Some(now + ttl.min(refresh).max(SHORTEST)));
            }
            Err(_) => (self.stale, self.next) = (true, Some(now + AGAIN.min(refresh))),
        }
        self.v4.sort_unstable();
        self.v6.sort_unstable();
        self.addresses() != before
    }
}

/// Whether an address may be an endpoint's. Link-local ones lead to a cloud's metadata service, the others nowhere: an
/// answer that names them is wrong or hostile.
fn is_usable(ip: &IpAddr) -> bool {
    let link_local = match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(link_local || ip.is_unspecified() || ip.is_multicast())
}

/// All names that endpoints have.
#[derive(Debug)]
pub struct Names {
    known: Mutex<BTreeMap<String, Name>>,
    dns: ArcSwap<Dns>,
    /// Somebody has new names.
    pub(super) wanted: Arc<Notify>,
    /// How many look-ups have ended.
    ended: watch::Sender<u64>,
}

impl Default for Names {
    fn default() -> Self {
        Names {
            known: Mutex::default(),
            dns: ArcSwap::default(),
            wanted: Arc::default(),
            ended: watch::Sender::new(0),
        }
    }
}

impl Names {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Name>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How names are resolved from now on.
    pub fn set(&self, dns: Dns) {
        self.dns.store(Arc::new(dns));
    }

    /// Each name, and whether its last look-up failed.
    pub fn stale(&self) -> Vec<(String, bool)> {
        let known = self.known();
        let asked = known.iter().filter(|(_, name)| name.asked);
        asked.map(|(host, name)| (host.clone(), name.stale)).collect()
    }
}

/// Keeps all names of `services` up to date until it is dropped.
pub async fn resolve(services: Services, clock: Arc<dyn Clock>) {
    let names = services.names();
    loop {
        // Before the look: what is wanted from here on wakes us again.
        let wanted = names.wanted.notified();
        let next = look(&services, &clock);
        let pause = next.map_or(Duration::from_secs(60), |next| {
            next.saturating_sub(clock.monotonic())
        });
        tokio::select! {
            () = wanted => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Waits until every name has been asked for once, for at most as long as one look-up may take.
pub async fn first_answers(services: &Services) {
    let names = services.names();
    let mut ended = names.ended.subscribe();
    let all = async {
        loop {
            let hosts = pools(services)
                .iter()
                .flat_map(|pool| pool.hosts())
                .collect::<BTreeSet<_>>();
            let open = {
                let known = names.known();
                hosts
                    .iter()
                    .any(|host| known.get(host).is_none_or(|name| !name.asked))
            };
            if !open || ended.changed().await.is_err() {
                return;
            }
        }
    };
    let limit = names.dns.load().timeout.as_duration();
    // Whoever has no answer by then is not ready, and says so.
    let _ = tokio::time::timeout(limit, all).await;
}

fn pools(services: &Services) -> Vec<Arc<Version>> {
    services
        .all()
        .iter()
        .flat_map(|service| service.versions())
        .collect()
}

/// Starts the look-ups that are due and tells new pools what is known; says when the next is due.
fn look(services: &Services, clock: &Arc<dyn Clock>) -> Option<Duration> {
    let names = services.names();
    let now = clock.monotonic();
    let pools = pools(services);
    let hosts: BTreeSet<String> = pools.iter().flat_map(|pool| pool.hosts()).collect();
    let mut known = names.known();
    known.retain(|host, _| hosts.contains(host));
    for host in hosts {
        let name = known.entry(host.clone()).or_insert_with(|| Name {
            next: Some(now),
            ..Name::default()
        });
        if name.next.is_some_and(|next| next <= now) {
            name.next = None;
            tokio::spawn(look_up(host, services.clone(), Arc::clone(clock)));
        }
    }
    for pool in &pools {
        for host in pool.hosts() {
            if let Some(name) = known.get(&host).filter(|name| name.asked) {
                pool.resolved(&host, &name.addresses());
            }
        }
    }
    known.values().filter_map(|name| name.next).min()
}

async fn look_up(host: String, services: Services, clock: Arc<dyn Clock>) {
    let names = services.names();
    let dns = names.dns.load_full();
    let result = client::look_up(&host, &dns).await;
    let why = result.as_ref().err().cloned();
    let (changed, was_stale, addresses) = {
        let mut known = names.known();
        // Nobody wants it any more.
        let Some(name) = known.get_mut(&host) else { return };
        let was_stale = name.stale;
        let changed = name.looked_up(result, clock.monotonic(), dns.refresh.as_duration());
        (changed, was_stale, name.addresses())
    };
    match why {
        Some(why) if !was_stale => {
            let kept = addresses.len();
            tracing::warn!(
                host,
                why,
                kept,
                "`{host}` cannot be resolved: {why}; {kept} known addresses stay in use"
            );
        }
        None if changed => tracing::info!(host, ?addresses, "`{host}` resolves to {addresses:?}"),
        Some(_) | None => {}
    }
    for pool in pools(&services) {
        pool.resolved(&host, &addresses);
    }
    names.ended.send_modify(|ended| *ended += 1);
    // The next look-up has a time now.
    names.wanted.notify_one();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(v4: Option<&[&str]>, v6: Option<&[&str]>, ttl: u32) -> Found {
        let read = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        Found {
            v4: v4.map(read),
            v6: v6.map(read),
            ttl,
        }
    }

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_name_is_asked_again_after_its_time_to_live_within_bounds() {
        let mut name = Name::default();
        for (ttl, next) in [(0, 101), (5, 105), (300, 130)] {
            name.looked_up(Ok(found(Some(&["10.0.0.1"]), Some(&[]), ttl)), at(100), at(30));
            assert_eq!(name.next, Some(at(next)));
        }
    }

    #[test]
    fn the_last_good_answer_is_kept_while_look_ups_fail() {
        let mut name = Name::default();
        assert!(name.looked_up(
            Ok(found(Some(&["10.0.0.1", "10.0.0.2"]), Some(&["::1"]), 5)),
            at(1),
            at(30)
        ));
        assert!(!name.looked_up(Err("no answer".to_owned()), at(6), at(30)));
        assert!(name.stale && name.addresses().len() == 3);
        assert!(
            name.looked_up(Ok(found(Some(&["10.0.0.1"]), None, 5)), at(8), at(30)),
            "one is gone, and the kind that could not be asked for stays"
        );
        assert!(!name.stale && name.addresses().len() == 2);
        assert!(!name.looked_up(Ok(found(Some(&["10.0.0.1"]), Some(&["::1"]), 5)), at(13), at(30)));
    }

    #[test]
    fn an_answer_cannot_lead_to_a_metadata_service() {
        let mut name = Name::default();
        let answer = Ok(found(
            Some(&["169.254.169.254", "10.0.0.1", "0.0.0.0"]),
            Some(&["fe80::1"]),
            5,
        ));
        name.looked_up(answer, at(1), at(30));
        assert_eq!(name.addresses(), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    }
}
