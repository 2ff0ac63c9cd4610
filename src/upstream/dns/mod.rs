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
    /// Some pool may use nothing of the last answer.
    unusable: bool,
    /// What pools left out of the last answer, and why.
    refused: Vec<String>,
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
                // A kind that could not be asked for is as it was.
                self.v4 = found.v4.unwrap_or(std::mem::take(&mut self.v4));
                self.v6 = found.v6.unwrap_or(std::mem::take(&mut self.v6));
                let ttl = Duration::from_secs(found.ttl.into());
                (self.stale, self.next) = (false, Some(now + ttl.min(refresh).max(SHORTEST)));
            }
            Err(_) => (self.stale, self.next) = (true, Some(now + AGAIN.min(refresh))),
        }
        self.v4.sort_unstable();
        self.v6.sort_unstable();
        self.addresses() != before
    }

    /// Tells the pools what is known. What they may not use is said once.
    fn tell(&mut self, host: &str, pools: &[Arc<Version>]) {
        let addresses = self.addresses();
        let (mut unusable, mut refused) = (false, Vec::new());
        for pool in pools {
            let answered = pool.resolved(host, &addresses);
            unusable |= answered.unusable;
            refused.extend(answered.refused);
        }
        for what in refused.iter().filter(|what| !self.refused.contains(what)) {
            tracing::warn!(host, "{what}");
        }
        (self.unusable, self.refused) = (unusable, refused);
    }
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

    /// How names are resolved from now on. When that is another way than before, every name is asked for at once: whoever
    /// names other servers or a shorter `refresh` does not want what the old ones said to stay for as long as they said.
    pub fn set(&self, dns: Dns) {
        if **self.dns.load() == dns {
            return;
        }
        let mut known = self.known();
        // Under the lock, where a look-up that ends sees which way it went.
        self.dns.store(Arc::new(dns));
        for name in known.values_mut() {
            name.next = name.next.and(Some(Duration::ZERO));
        }
        drop(known);
        self.wanted.notify_one();
    }

    /// Each name, and whether its last look-up failed or led nowhere that may be used.
    pub fn stale(&self) -> Vec<(String, bool)> {
        let known = self.known();
        let asked = known.iter().filter(|(_, name)| name.asked);
        let stale = |name: &Name| name.stale || name.unusable;
        asked.map(|(host, name)| (host.clone(), stale(name))).collect()
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
    let mut users: BTreeMap<String, Vec<Arc<Version>>> = BTreeMap::new();
    for pool in pools(services) {
        for host in pool.hosts() {
            users.entry(host).or_default().push(Arc::clone(&pool));
        }
    }
    let mut known = names.known();
    known.retain(|host, _| users.contains_key(host));
    for (host, pools) in users {
        let name = known.entry(host.clone()).or_insert_with(|| Name {
            next: Some(now),
            ..Name::default()
        });
        if name.asked {
            name.tell(&host, &pools);
        }
        if name.next.is_some_and(|next| next <= now) {
            name.next = None;
            tokio::spawn(look_up(host, services.clone(), Arc::clone(clock)));
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
        if !Arc::ptr_eq(&dns, &names.dns.load()) {
            // It went the old way.
            name.next = Some(Duration::ZERO);
        }
        let users = pools(&services).into_iter();
        let users: Vec<Arc<Version>> = users.filter(|pool| pool.hosts().contains(&host)).collect();
        name.tell(&host, &users);
        (changed, was_stale, name.addresses())
    };
    match why {
        Some(why) if !was_stale => {
            let kept = addresses.len();
            let known = match kept {
                0 => "no address is known yet".to_owned(),
                _ => format!("known addresses stay in use: {addresses:?}"),
            };
            tracing::warn!(host, why, kept, "`{host}` cannot be resolved: {why}; {known}");
        }
        None if changed => tracing::info!(host, ?addresses, "`{host}` resolves to {addresses:?}"),
        Some(_) | None => {}
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
        let version = Arc::new(Version::new(
            "s".parse().unwrap(),
            "v".parse().unwrap(),
            &["http://app:80".parse().unwrap()],
        ));
        let at = || {
            version
                .endpoints()
                .iter()
                .map(|one| one.address.unwrap().ip())
                .collect::<Vec<_>>()
        };
        let good: IpAddr = "10.0.0.1".parse().unwrap();
        let mut name = Name::default();
        let mut tell = |v4: &[&str], v6: &[&str], unusable: bool| {
            name.looked_up(Ok(found(Some(v4), Some(v6), 5)), self::at(1), self::at(30));
            name.tell("app", std::slice::from_ref(&version));
            assert_eq!((at(), name.unusable), (vec![good], unusable), "{v4:?}");
        };
        tell(&["169.254.169.254", "10.0.0.1", "0.0.0.0"], &["fe80::1"], false);
        // Nothing that may be used: what was known before stays.
        tell(&["169.254.169.254"], &[], true);
        tell(&[], &["::ffff:169.254.169.254"], true);
        tell(&["10.0.0.1"], &[], false);
    }
}
