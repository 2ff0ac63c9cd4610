//! The routes as workers see them: swapped whole, loaded once per request.

use crate::{
    config::{Config, Filters, Service, Timeouts},
    model::Span,
    route::{Router, Rule},
    upstream::{LiveService, Policy, Services},
};
use std::{sync::Arc, time::Duration};

/// One service as a request finds it: what the operator wrote, and what is live.
#[derive(Debug)]
pub struct Entry {
    /// The configuration.
    pub service: Arc<Service>,
    /// The live split.
    pub live: Arc<LiveService>,
    /// What holds for requests of each listener, by the listener's index.
    pub(super) per_listener: Box<[Limits]>,
    /// What is changed in requests and responses.
    pub(super) filters: Option<Arc<Filters>>,
}

/// What one listener and one service together allow a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) connect: Duration,
    pub(super) body_idle: Duration,
    /// For one attempt.
    pub(super) response_headers: Duration,
    /// With a limit for each attempt: until so long after its start a request may be tried again.
    pub(super) retry_until: Option<Duration>,
    pub(super) stream_idle: Duration,
    pub(super) upgrade_idle: Duration,
    /// How long what a withdrawn version serves may go on.
    pub(super) drain: Duration,
    pub(super) request: Option<Duration>,
    pub(super) body: Option<u64>,
}

/// All routes.
#[derive(Debug)]
pub struct Table {
    pub(super) router: Router<Arc<Entry>>,
}

impl Table {
    /// The routes of a configuration. Services without a live side yet get one.
    pub fn build(config: &Config, services: &Services) -> Table {
        let rules = config.services.iter().flat_map(|service| {
            let live = services.ensure(&service.name);
            live.set_hard_failure_attempts(service.hard_failure.attempts);
            live.set_policy(Policy::of(config, service));
            let per_listener = config.listeners.iter().map(|listener| {
                let timeouts: Timeouts = service.timeouts.over(&listener.timeouts);
                let per_try = service.retries.per_try.map(Span::as_duration);
                let response_headers = timeouts.response_headers.as_duration();
                Limits {
                    connect: timeouts.connect.as_duration(),
                    body_idle: timeouts.body_idle.as_duration(),
                    response_headers: per_try
                        .map_or(response_headers, |per_try| per_try.min(response_headers)),
                    retry_until: per_try.map(|_| response_headers),
                    stream_idle: timeouts.stream_idle.as_duration(),
                    upgrade_idle: timeouts.upgrade_idle.as_duration(),
                    drain: timeouts.drain.as_duration(),
                    request: timeouts.request.map(Span::as_duration),
                    body: service
                        .limits
                        .body
                        .or(listener.limits.body)
                        .map(crate::model::ByteSize::as_u64),
                }
            });
            let per_listener: Box<[Limits]> = per_listener.collect();
            let entry = |filters: Option<&Option<Arc<Filters>>>| {
                Arc::new(Entry {
                    service: Arc::clone(service),
                    live: Arc::clone(&live),
                    per_listener: per_listener.clone(),
                    filters: filters.cloned().flatten(),
                })
            };
            if service.filters.len() < 2 {
                return vec![Rule {
                    matches: service.matches.clone(),
                    target: entry(service.filters.first()),
                }];
            }
            // Each alternative may change something else.
            let each = service.matches.iter().zip(&service.filters);
            each.map(|(conditions, filters)| Rule {
                matches: vec![conditions.clone()],
                target: entry(Some(filters)),
            })
            .collect()
        });
        Table {
            router: Router::new(rules),
        }
    }
}
