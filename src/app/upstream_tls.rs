//! What services show to `https://` endpoints and whom they believe, and the renewal of those files while Serin runs.
//!
//! The same rule as for the certificates next door: what cannot be read at the start is a fault; later it leaves what is in
//! force as it is, and is said once.

use super::certificates::{self, InForce};
use crate::{
    config::{Config, Problem, UpstreamTls},
    metrics::Registry,
    model::{Clock, ServiceName, Timestamp},
    upstream::{ClientTls, Services},
};
use rustls::RootCertStore;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Every service's. Cheap to clone.
#[derive(Clone)]
pub(super) struct Upstreams {
    services: Services,
    metrics: Registry,
    clock: Arc<dyn Clock>,
    in_force: Arc<Mutex<BTreeMap<ServiceName, Trust>>>,
}

/// What one service's files held when they were last good.
struct Trust {
    settings: UpstreamTls,
    roots: Option<Arc<RootCertStore>>,
    /// Why the authorities in the file are not those in force; said once.
    refused: Option<Problem>,
    identity: Option<InForce>,
}

impl fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upstreams")
    }
}

/// How logs and metrics call the place where a service's client certificate is used.
fn place(service: &ServiceName) -> String {
    format!("upstreamTls of {service}")
}

impl Upstreams {
    /// Reads what every service names, or says what is wrong with each.
    pub(super) fn start(
        config: &Config,
        services: &Services,
        metrics: &Registry,
        clock: Arc<dyn Clock>,
    ) -> Result<Upstreams, Vec<Problem>> {
        let upstreams = Upstreams {
            services: services.clone(),
            metrics: metrics.clone(),
            clock,
            in_force: Arc::default(),
        };
        let problems = upstreams.problems(config);
        if !problems.is_empty() {
            return Err(problems);
        }
        upstreams.renew(config);
        Ok(upstreams)
    }

    /// What is wrong with files that a new configuration names and that have no predecessor to stay in force.
    pub(super) fn problems(&self, config: &Config) -> Vec<Problem> {
        let in_force = self.lock();
        let mut problems = Vec::new();
        for service in &config.services {
            let known = in_force.get(&service.name);
            if known.is_none_or(|known| known.settings != service.upstream_tls) {
                problems.extend(service.upstream_tls.unreadable());
            }
        }
        problems
    }

    /// Reads the files again and takes what is good. Blocks for as long as the files take.
    pub(super) fn renew(&self, config: &Config) {
        let now = self.clock.wall();
        let mut in_force = self.lock();
        let mut before = std::mem::take(&mut *in_force);
        for service in &config.services {
            let name = &service.name;
            let old = before.remove(name);
            let same = old
                .as_ref()
                .is_some_and(|old| old.settings == service.upstream_tls);
            let shown = old.as_ref().map(Trust::shown);
            let mut new = renewed(name, &service.upstream_tls, old.filter(|_| same), now);
            if !same || shown != Some(new.shown()) {
                self.services.ensure(name).set_tls(new.client());
            }
            self.show(name, &mut new);
            in_force.insert(name.clone(), new);
        }
        for (name, gone) in before {
            self.forget(&name, &gone);
        }
    }

    fn show(&self, name: &ServiceName, trust: &mut Trust) {
        if let Some(identity) = &trust.identity {
            certificates::show(&self.metrics, &place(name), identity);
        }
    }

    fn forget(&self, name: &ServiceName, trust: &Trust) {
        if let Some(identity) = &trust.identity {
            let written = identity.files.written();
            self.metrics.control.forget_certificate(&place(name), written);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Trust>> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes that endpoints and their certificates meet.
type Shown = (
    Option<Vec<rustls_pki_types::TrustAnchor<'static>>>,
    Option<Vec<u8>>,
);

impl Trust {
    fn shown(&self) -> Shown {
        let leaf = |one: &InForce| one.certificate.certified.cert.first().map(|leaf| leaf.to_vec());
        (
            self.roots.as_ref().map(|roots| roots.roots.clone()),
            self.identity.as_ref().and_then(leaf),
        )
    }

    fn client(&self) -> Arc<ClientTls> {
        let identity = self
            .identity
            .as_ref()
            .map(|one| Arc::clone(&one.certificate.certified));
        Arc::new(ClientTls::new(
            self.settings.clone(),
            self.roots.clone(),
            identity,
        ))
    }
}

fn renewed(name: &ServiceName, settings: &UpstreamTls, old: Option<Trust>, now: Timestamp) -> Trust {
    let (old_roots, old_refused, old_identity) = match old {
        Some(old) => (old.roots, old.refused, old.identity),
        None => (None, None, None),
    };
    let (roots, refused) = match settings.ca.as_ref().map(crate::config::CaFile::read) {
        None => (None, None),
        Some(Ok(roots)) => (Some(roots), None),
        Some(Err(problem)) => {
            if old_refused.as_ref() != Some(&problem) {
                tracing::error!(service = %name, "authorities were not renewed, those before stay in force: {problem}");
            }
            // Never the system's in place of what was named: nobody, when nobody is known.
            (
                old_roots.or_else(|| Some(Arc::new(RootCertStore::empty()))),
                Some(problem),
            )
        }
    };
    let identity = settings
        .identity
        .as_ref()
        .and_then(|files| certificates::renewed(&place(name), files, old_identity, now));
    Trust {
        settings: settings.clone(),
        roots,
        refused,
        identity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, model::ManualClock};
    use std::fs;

    #[test]
    fn files_that_change_are_taken_when_good_and_sessions_survive_when_nothing_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        config::tls_fixtures::write(path, "ca", &["ca"], (2020, 2040));
        config::tls_fixtures::write(path, "me", &["me"], (2020, 2040));
        let text = "listeners: [{address: '127.0.0.1:0'}]\nservices: [{name: s, stable: {version: v, endpoints: \
                    ['https://a']}, upstreamTls: {ca: ca.pem, certificate: me.pem, key: me.key}}]";
        let config = config::load_text(text, "serin.yaml", path, &|_| None)
            .unwrap()
            .config;
        let metrics = Registry::new(1).unwrap();
        let services = Services::new(metrics.clone());
        let clock = Arc::new(ManualClock::at(Timestamp::from_secs(1_780_000_000)));
        let upstreams = Upstreams::start(&config, &services, &metrics, clock).unwrap();
        let live = services.get("s").unwrap();
        let first = live.tls();

        upstreams.renew(&config);
        assert!(Arc::ptr_eq(&first, &live.tls()), "nothing changed");
        for file in ["ca.pem", "me.key"] {
            let whole = fs::read_to_string(path.join(file)).unwrap();
            fs::write(path.join(file), &whole[..whole.len() / 2]).unwrap();
            upstreams.renew(&config);
            assert!(Arc::ptr_eq(&first, &live.tls()), "{file} cut off");
            fs::write(path.join(file), whole).unwrap();
        }
        config::tls_fixtures::write(path, "me", &["me"], (2020, 2040));
        upstreams.renew(&config);
        assert!(!Arc::ptr_eq(&first, &live.tls()), "another certificate");
        assert_eq!(upstreams.problems(&config), []);
    }
}
