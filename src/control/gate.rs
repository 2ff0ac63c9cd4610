//! The readiness gate: a new version gets its first request only when enough of its endpoints are ready.

use super::{
    engine::{Ask, Engine},
    ready,
};
use crate::{
    model::{EndpointUrl, ServiceName, Timestamp, VersionName},
    rollout::Event,
};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};

/// From the end of one probe to the next.
const AGAIN: Duration = Duration::from_secs(1);

impl Engine {
    /// Probes the version that waits, if it is time.
    pub(super) fn probe_if_waiting(&mut self, name: &ServiceName, now: Timestamp) {
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        let Some(version) = managed.waiting_version().cloned() else {
            managed.gate.last = None;
            return;
        };
        if managed.gate.in_flight || managed.gate.next > now {
            return;
        }
        let Some(inbox) = self.inbox.upgrade() else { return };
        let endpoints = managed
            .saved
            .version(&version)
            .map(|version| version.endpoints.clone())
            .unwrap_or_default();
        managed.gate.in_flight = true;
        let path = managed.config.ready.http.clone();
        let outside = Arc::clone(&self.outside);
        let service = name.clone();
        tokio::spawn(async move {
            let probes = endpoints.into_iter().map(|endpoint| {
                let probe = outside.probe(&endpoint, path.as_deref(), ready::PROBE);
                async move { (endpoint, probe.await) }
            });
            let results = join_all(probes).await;
            // The engine is gone only when the process is stopping.
            let _ = inbox.send(Ask::Probed {
                service,
                version,
                results,
            });
        });
    }

    /// The probes have come back.
    pub(super) fn probed(
        &mut self,
        name: &ServiceName,
        version: &VersionName,
        results: Vec<(EndpointUrl, Result<(), String>)>,
    ) {
        let now = self.now();
        let Some(managed) = self.managed.get_mut(name) else {
            return;
        };
        managed.gate.in_flight = false;
        managed.gate.next = now.plus(AGAIN);
        if managed.waiting_version() != Some(version) {
            // Another version waits by now: it is probed at once.
            managed.gate.next = now;
            return;
        }
        let pool = managed.pool(version);
        let mut ready = 0;
        let mut trouble = None;
        for (url, result) in results {
            let endpoints = pool.endpoints();
            let Some(endpoint) = endpoints.iter().find(|endpoint| endpoint.url == url) else {
                continue;
            };
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
