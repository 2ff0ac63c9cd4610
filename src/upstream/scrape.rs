//! What a scrape reads from the live tables: weights, the split's error, the endpoints' health.

use super::{LiveService, Services, Target, rotation::Ejected};
use crate::{
    metrics::{Lines, Source, names},
    model::{Role, Weight},
};
use std::sync::Arc;

/// Endpoints shown per pool.
const MOST_ENDPOINTS: usize = 200;

/// Reads all live services at scrape time.
#[derive(Debug)]
pub struct ServicesSource(Services);

impl ServicesSource {
    /// What is to be seen of `services`.
    pub fn new(services: Services) -> ServicesSource {
        ServicesSource(services)
    }
}

impl Source for ServicesSource {
    fn read(&self) -> Vec<Lines> {
        let mut found = Found {
            weights: Lines::of(&names::WEIGHT),
            errors: Lines::of(&names::SPLIT_ERROR),
            endpoints: Lines::of(&names::ENDPOINT_HEALTHY),
            ejections: Lines::of(&names::EJECTIONS),
        };
        for service in self.0.all() {
            found.read(&service);
        }
        let mut stale = Lines::of(&names::DNS_STALE);
        for (host, is_stale) in self.0.names().stale() {
            stale.count(&[host.as_str()], u64::from(is_stale));
        }
        vec![
            found.weights,
            found.errors,
            found.endpoints,
            found.ejections,
            stale,
        ]
    }
}

/// What one scrape finds.
struct Found {
    weights: Lines,
    errors: Lines,
    endpoints: Lines,
    ejections: Lines,
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
        let error = split.ticket().error(split.weight);
        self.errors.row(&[service.name.as_str()], error);
    }

    fn read_version(&mut self, service: &LiveService, role: Role, target: &Arc<Target>, weight: Weight) {
        let key = [service.name.as_str(), role.as_str(), target.version.name.as_str()];
        let of = |last| [key[0], key[1], key[2], last];
        self.weights.row(&key, weight.as_ratio());
        let pool = target.version.endpoints();
        let (named, rest) = pool.split_at(pool.len().min(MOST_ENDPOINTS));
        for endpoint in named {
            let healthy = u64::from(endpoint.is_healthy());
            self.endpoints.count(&of(endpoint.label()), healthy);
        }
        if !rest.is_empty() {
            let healthy = u64::from(rest.iter().all(|endpoint| endpoint.is_healthy()));
            self.endpoints.count(&of("_overflow"), healthy);
        }
        // At 0 from the first scrape on, so that `rate()` sees the first.
        for reason in Ejected::ALL {
            let count = target.version.rotation().ejections(reason);
            self.ejections.count(&of(reason.as_str()), count);
        }
    }
}
