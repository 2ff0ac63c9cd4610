//! What a scrape reads from the live tables: weights, the split's error, the endpoints' health.

use super::{LiveService, Services, Target, rotation::Ejected};
use crate::{
    metrics::{counter, desc, family, gauge, names},
    model::{Role, Weight},
};
use prometheus::{
    core::{Collector, Desc},
    proto::{Metric, MetricFamily},
};
use std::sync::Arc;

/// Endpoints shown per pool.
const MOST_ENDPOINTS: usize = 200;

/// Reads all live services at scrape time.
#[derive(Debug)]
pub struct ServicesCollector {
    services: Services,
    descs: Vec<Desc>,
}

impl ServicesCollector {
    /// A collector over `services`.
    pub fn new(services: Services) -> Result<ServicesCollector, prometheus::Error> {
        let descs = [
            names::WEIGHT,
            names::SPLIT_ERROR,
            names::ENDPOINT_HEALTHY,
            names::EJECTIONS,
            names::DNS_STALE,
        ];
        Ok(ServicesCollector {
            services,
            descs: descs.iter().map(desc).collect::<Result<_, _>>()?,
        })
    }
}

impl Collector for ServicesCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut found = Found::default();
        for service in self.services.all() {
            found.read(&service);
        }
        let names_of = self.services.names().stale();
        let stale = names_of.iter().map(|(host, stale)| {
            gauge(
                names::DNS_STALE.labels,
                &[host.as_str()],
                f64::from(u8::from(*stale)),
            )
        });
        [
            (&names::DNS_STALE, stale.collect()),
            (&names::WEIGHT, found.weights),
            (&names::SPLIT_ERROR, found.errors),
            (&names::ENDPOINT_HEALTHY, found.endpoints),
            (&names::EJECTIONS, found.ejections),
        ]
        .into_iter()
        .filter(|(_, metrics)| !metrics.is_empty())
        .map(|(of, metrics)| {
            let mut family = family(of);
            family.set_metric(metrics);
            family
        })
        .collect()
    }
}

fn healthy(key: [&str; 3], endpoint: &str, healthy: bool) -> Metric {
    let labels = [key[0], key[1], key[2], endpoint];
    let value = f64::from(u8::from(healthy));
    gauge(names::ENDPOINT_HEALTHY.labels, &labels, value)
}

/// What one scrape finds.
#[derive(Debug, Default)]
struct Found {
    weights: Vec<Metric>,
    errors: Vec<Metric>,
    endpoints: Vec<Metric>,
    ejections: Vec<Metric>,
}

impl Found {
    fn read(&mut self, service: &LiveService) {
        let split = service.cell.load_full();
        if split.stable.version.endpoints().is_empty() && split.canary.is_none() {
            return;
        }
        let canary_weight = if split.canary.is_some() && !service.cell.is_tripped() {
            split.weight
        } else {
            Weight::ZERO
        };
        self.read_version(service, Role::Stable, &split.stable, canary_weight.complement());
        if let Some(canary) = &split.canary {
            self.read_version(service, Role::Canary, canary, canary_weight);
        }
        self.errors.push(gauge(
            names::SPLIT_ERROR.labels,
            &[service.name.as_str()],
            split.ticket().error(split.weight),
        ));
    }

    fn read_version(&mut self, service: &LiveService, role: Role, target: &Arc<Target>, weight: Weight) {
        let key = [service.name.as_str(), role.as_str(), target.version.name.as_str()];
        self.weights
            .push(gauge(names::WEIGHT.labels, &key, weight.as_ratio()));
        let pool = target.version.endpoints();
        for endpoint in pool.iter().take(MOST_ENDPOINTS) {
            let url = endpoint.label();
            self.endpoints.push(healthy(key, &url, endpoint.is_healthy()));
        }
        let mut rest = pool.iter().skip(MOST_ENDPOINTS);
        if let Some(first) = rest.next() {
            let all = first.is_healthy() && rest.all(|endpoint| endpoint.is_healthy());
            self.endpoints.push(healthy(key, "_overflow", all));
        }
        // At 0 from the first scrape on, so that `rate()` sees the first.
        for reason in Ejected::ALL {
            let labels = [key[0], key[1], key[2], reason.as_str()];
            let count = target.version.rotation().ejections(reason);
            self.ejections
                .push(counter(names::EJECTIONS.labels, &labels, count));
        }
    }
}
