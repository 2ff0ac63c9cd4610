//! The readiness gate: a new version gets its first request only when enough of its endpoints are ready.

use super::{
    engine::{Ask, Engine},
    managed::Managed,
    ready,
};
use crate::{
    model::{ServiceName, Timestamp, VersionName},
    rollout::Event,
    upstream::Endpoint,
};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};

/// From the end of one probe to the next.
const AGAIN: Duration = Duration::from_secs(1);

impl Engine {
    /// Probes what waits to be ready, if it is time.
    pub(super) fn probe_if_waiting(&mut self, name: &ServiceName, now: Timestamp) {
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        if managed.waiting_version().is_none() {
            managed.gate.last = None;
        }
        if managed.gate.in_flight || managed.gate.next > now {
            return;
        }
        let (Some((version, endpoints)), Some(inbox)) = (managed.unready(), self.inbox.upgrade()) else {
            return;
        };
        let unresolved = managed.pools.get(&version).map(|pool| pool.unresolved());
        let unresolved = unresolved.unwrap_or_default().into_iter().map(|(_, why)| why);
        let unresolved = unresolved.collect();
        managed.gate.in_flight = true;
        let path = managed.config.ready.http.clone();
        let tls = self.services.ensure(name).tls();
        let outside = Arc::clone(&self.outside);
        let service = name.clone();
        tokio::spawn(async move {
            let probes = endpoints.into_iter().map(|endpoint| {
                let probe = outside.probe(Arc::clone(&tls), &endpoint, path.as_deref(), ready::PROBE);
                async move { (endpoint, probe.await) }
            });
            let results = join_all(probes).await;
            // The engine is gone only when the process is stopping.
            let _ = inbox.send(Ask::Probed {
                service,
                version,
                results,
                unresolved,
            });
        });
    }

    /// The probes have come back.
    pub(super) fn probed(
        &mut self,
        name: &ServiceName,
        version: &VersionName,
        results: Vec<(Arc<Endpoint>, Result<(), String>)>,
        unresolved: &[String],
    ) {
        let now = self.now();
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        managed.gate.in_flight = false;
        managed.gate.next = now.plus(AGAIN);
        let mut ready = 0;
        let mut trouble = unresolved.first().cloned();
        for (endpoint, result) in results {
            endpoint.set_ready(result.is_ok());
            match result {
                Ok(()) => {
                    // Failures of an earlier trial say nothing about a process that answers now.
                    endpoint.succeeded();
                    ready += 1;
                }
                Err(why) => trouble = trouble.or(Some(why)),
            }
        }
        match managed.waiting_version() {
            Some(waiting) if waiting == version => {}
            // Another version waits by now: it is probed at once.
            Some(_) => {
                managed.gate.next = now;
                return;
            }
            None => return,
        }
        let needed = usize::try_from(managed.config.ready.min_healthy.max(1)).unwrap_or(usize::MAX);
        let said = trouble.map_or(String::new(), |why| format!(": {why}"));
        let said = format!("{ready} of {needed} endpoints are ready{said}");
        let changed = managed.gate.last.as_deref() != Some(said.as_str());
        managed.gate.last = Some(said);
        if ready >= needed {
            self.happened(name, Event::EndpointsReady, None);
        } else if changed {
            self.publish_status(name);
        }
    }
}

impl Managed {
    /// What is to be probed: all of a version that waits, otherwise those endpoints of a serving version that were not
    /// ready when enough others were.
    fn unready(&self) -> Option<(VersionName, Vec<Arc<Endpoint>>)> {
        if let Some(waiting) = self.waiting_version() {
            let endpoints = self.pools.get(waiting)?.endpoints();
            return Some((waiting.clone(), endpoints.to_vec()));
        }
        let state = &self.saved.state;
        [state.canary(), state.stable.as_ref()]
            .into_iter()
            .flatten()
            .find_map(|version| {
                let endpoints = self.pools.get(version)?.endpoints();
                let late = endpoints.iter().filter(|endpoint| !endpoint.is_ready());
                let late: Vec<Arc<Endpoint>> = late.cloned().collect();
                (!late.is_empty()).then(|| (version.clone(), late))
            })
    }
}
