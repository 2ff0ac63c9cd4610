//! Every metric family Serin has: one table, so that names, labels and help are said once.

use prometheus::proto::MetricType;

/// A metric family.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// The name, in base units.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricType,
    /// Labels, in the order in which values are given.
    pub labels: &'static [&'static str],
}

const VERSION: &[&str] = &["serin_service", "role", "version"];

macro_rules! families {
    ($($id:ident = $kind:ident $name:literal $labels:expr, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $id: Family = Family { name: $name, help: $help, kind: MetricType::$kind, labels: $labels };
        )*
        /// All of them.
        pub const ALL: &[Family] = &[$($id,)*];
    };
}

families! {
    REQUESTS = COUNTER "serin_http_requests_total" &["serin_service", "role", "version", "method", "status"],
        "Responses as the client saw them, by the role that answered, at the response's end; 499: the client went away.";
    REQUESTS_BY_CLASS = COUNTER "serin_http_requests_by_class_total" &["serin_service", "role", "version", "class"],
        "The same by status class, at 0 from the first scrape.";
    OUTCOMES = COUNTER "serin_version_outcomes_total" &["serin_service", "role", "version", "outcome"],
        "The verdict of each request's first attempt, charged to the version it was assigned to; forced requests are not among them.";
    DURATION = HISTOGRAM "serin_http_request_duration_seconds" VERSION,
        "From request head received to response body sent, by the role that answered.";
    FIRST_BYTE = HISTOGRAM "serin_http_response_first_byte_seconds" VERSION,
        "From request head received to response head, by the role that answered.";
    IN_FLIGHT = GAUGE "serin_http_requests_in_flight" VERSION,
        "Requests being served right now.";
    REJECTED = COUNTER "serin_http_rejected_total" &["listener", "reason"],
        "Requests that Serin refused: for their form, or for want of a route, a version or room. Counted here and nowhere else.";
    CLIENT_CONNECTIONS = GAUGE "serin_client_connections" &["listener"],
        "Client connections open right now.";
    ASSIGNMENTS = COUNTER "serin_split_assignments_total" &["serin_service", "role", "version", "reason"],
        "Requests by the role they were assigned to and why; once per request.";
    WEIGHT = GAUGE "serin_split_weight_ratio" VERSION,
        "The share of requests each version is meant to get, 0 to 1.";
    SPLIT_ERROR = GAUGE "serin_split_error_requests" &["serin_service"],
        "Canary tickets minus N times the weight in this generation: always inside (-1, 1).";
    RESCUED = COUNTER "serin_rescued_requests_total" VERSION,
        "Requests assigned to this version that never reached it and were served by stable.";
    GRPC_RESPONSES = COUNTER "serin_grpc_responses_total" &["serin_service", "role", "version", "code"],
        "gRPC calls by the code that the client saw, 0 to 16, for versions that have served any.";
    ATTEMPTS = COUNTER "serin_upstream_attempts_total" &["serin_service", "role", "version", "outcome"],
        "Attempts on endpoints and how they ended.";
    RETRIES = COUNTER "serin_upstream_retries_total" &["serin_service", "role", "version", "outcome"],
        "Requests tried again at another endpoint of the same version, and those the budget did not allow.";
    ENDPOINT_HEALTHY = GAUGE "serin_upstream_endpoint_healthy" &["serin_service", "role", "version", "endpoint"],
        "1 while requests are sent to the endpoint, 0 while it is skipped. At most 200 endpoints per pool; `_overflow`: all others.";
    EJECTIONS = COUNTER "serin_upstream_ejections_total" &["serin_service", "role", "version", "reason"],
        "Endpoints taken out of rotation for a while because of their requests, by the key of `ejection` that was met.";
    DNS_STALE = GAUGE "serin_upstream_dns_stale" &["host"],
        "1 while an endpoint's name cannot be resolved and its last known addresses, if any, are used.";
    PHASE = GAUGE "serin_rollout_phase" &["serin_service", "phase"],
        "1 for the phase the service is in, 0 for the others.";
    STEP = GAUGE "serin_rollout_step" &["serin_service"],
        "Index of the step now executing, from 0; the number of steps when finished.";
    PAUSE_REASON = GAUGE "serin_rollout_pause_reason" &["serin_service", "reason"],
        "1 for the reason why the rollout is paused, 0 for the others.";
    PAUSED_SECONDS = GAUGE "serin_rollout_paused_seconds" &["serin_service"],
        "For how long the rollout has been paused; 0 when it is not.";
    ALARM = GAUGE "serin_service_alarm" &["serin_service"],
        "1 while more of the service's requests fail than its alarm allows, whichever version answers; 0 otherwise.";
    ABORTS = COUNTER "serin_rollout_aborts_total" &["serin_service", "cause"],
        "Rollouts aborted, by cause.";
    MEASUREMENTS = COUNTER "serin_analysis_measurements_total" &["serin_service", "metric", "outcome"],
        "Measurements taken by analyses, by outcome.";
    RELOAD_SUCCESS = GAUGE "serin_config_last_reload_success" &[],
        "1 when the configuration in the file is the one in force, 0 when the last reload was refused.";
    CERTIFICATE_EXPIRY = GAUGE "serin_tls_certificate_expiry_timestamp_seconds" &["place", "certificate"],
        "When the certificate in force expires, in seconds since 1970.";
    CERTIFICATE_RELOAD_SUCCESS = GAUGE "serin_tls_certificate_last_reload_success" &["place", "certificate"],
        "1 when the certificate in the file is the one in force, 0 when it could not be taken and the one before stays.";
    STORE_ERRORS = COUNTER "serin_store_errors_total" &[],
        "Failed writes to the state file.";
    PANICS = COUNTER "serin_panics_total" &[],
        "Requests or tasks lost to a bug; each is also logged.";
    ACCESS_LOG_DROPPED = COUNTER "serin_access_log_dropped_total" &[],
        "Lines of the access log that were not written: the queue was full, or the file could not be written.";
    SPANS_DROPPED = COUNTER "serin_trace_spans_dropped_total" &[],
        "Spans that were not delivered: the queue was full, or the collector did not take them.";
    NOTIFICATIONS = COUNTER "serin_notifications_total" &["notification", "result"],
        "Notifications by receiver and how they ended: delivered, failed (refused or given up), or dropped (too many waited).";
    BUILD_INFO = GAUGE "serin_build_info" &["version"],
        "Always 1; the label says which Serin this is.";
}

/// The family of `/metrics/compat`, which is not one of `/metrics`.
pub const COMPATIBLE: Family = Family {
    name: "http_requests_total",
    help: "Responses per service (as job), version and status, for existing queries.",
    kind: MetricType::COUNTER,
    labels: &["job", "version", "status"],
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_prefixed_and_end_as_prometheus_expects() {
        let mut seen = HashSet::new();
        for family in ALL {
            assert!(
                family.name.starts_with("serin_") && seen.insert(family.name),
                "{}",
                family.name
            );
            let counter = family.kind == MetricType::COUNTER;
            assert_eq!(family.name.ends_with("_total"), counter, "{}", family.name);
        }
    }
}
