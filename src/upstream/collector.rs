//! What a scrape reads from the live tables: weights, the split's error, the endpoints' health.

use super::{LiveService, Services, Target};
use crate::{
    metrics::{desc, family, gauge, names},
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
        let descs = [names::WEIGHT, names::SPLIT_ERROR, names::ENDPOINT_HEALTHY];
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
        let (mut weights, mut errors, mut endpoints) = (Vec::new(), Vec::new(), Vec::new());
        for service in self.services.all() {
            read(&service, &mut weights, &mut errors, &mut endpoints);
        }
        [
            (&names::WEIGHT, weights),
            (&names::SPLIT_ERROR, errors),
            (&names::ENDPOINT_HEALTHY, endpoints),
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

fn read(
    service: &LiveService,
    weights: &mut Vec<Metric>,
    errors: &mut Vec<Metric>,
    endpoints: &mut Vec<Metric>,
) {
    let split = service.cell.load_full();
    if split.stable.version.endpoints().is_empty() && split.canary.is_none() {
        return;
    }
    let canary_weight = if split.canary.is_some() && !service.cell.is_tripped() {
        split.weight
    } else {
        Weight::ZERO
    };
    let mut one = |role: Role, target: &Arc<Target>, weight: Weight| {
        let key = [service.name.as_str(), role.as_str(), target.version.name.as_str()];
        weights.push(gauge(names::WEIGHT.labels, &key, weight.as_ratio()));
        for endpoint in target.version.endpoints().iter().take(MOST_ENDPOINTS) {
            let url = endpoint.url.to_string();
            let healthy = match endpoint.health() {
                super::Health::Good => endpoint.is_ready(),
                super::Health::Failing(_) => false,
            };
            let labels = [key[0], key[1], key[2], &url];
            endpoints.push(gauge(
                names::ENDPOINT_HEALTHY.labels,
                &labels,
                f64::from(u8::from(healthy)),
            ));
        }
    };
    one(Role::Stable, &split.stable, canary_weight.complement());
    if let Some(canary) = &split.canary {
        one(Role::Canary, canary, canary_weight);
    }
    errors.push(gauge(
        names::SPLIT_ERROR.labels,
        &[service.name.as_str()],
        split.ticket().error(split.weight),
    ));
}
