//! What the control plane counts. Rare events, so ordinary labelled collectors serve.

use super::{
    RolloutMetrics,
    names::{self, Family},
};
use prometheus::{
    IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, core::Collector, proto::MetricFamily,
};

/// Handles to the control plane's families. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlMetrics {
    /// Where each service's rollout stands, and its aborts.
    pub rollouts: RolloutMetrics,
    /// `serin_analysis_measurements_total`
    pub measurements: IntCounterVec,
    /// `serin_config_last_reload_success`, no labels
    pub reload_success: IntGaugeVec,
    /// `serin_tls_certificate_expiry_timestamp_seconds`
    pub certificate_expiry: IntGaugeVec,
    /// `serin_tls_certificate_last_reload_success`
    pub certificate_reload_success: IntGaugeVec,
    /// `serin_store_errors_total`, no labels
    pub store_errors: IntCounterVec,
    /// `serin_panics_total`, no labels
    pub panics: IntCounterVec,
    /// `serin_access_log_dropped_total`
    pub access_log_dropped: IntCounter,
    /// `serin_trace_spans_dropped_total`
    pub spans_dropped: IntCounter,
    /// `serin_notifications_total`
    pub notifications: IntCounterVec,
}

fn opts(family: &Family) -> Opts {
    Opts::new(family.name, family.help)
}

impl ControlMetrics {
    /// Makes the families and registers them.
    pub fn register(registry: &Registry) -> Result<ControlMetrics, prometheus::Error> {
        let gauge = |family: Family| IntGaugeVec::new(opts(&family), family.labels);
        let counter = |family: Family| IntCounterVec::new(opts(&family), family.labels);
        let metrics = ControlMetrics {
            rollouts: RolloutMetrics::default(),
            measurements: counter(names::MEASUREMENTS)?,
            reload_success: gauge(names::RELOAD_SUCCESS)?,
            certificate_expiry: gauge(names::CERTIFICATE_EXPIRY)?,
            certificate_reload_success: gauge(names::CERTIFICATE_RELOAD_SUCCESS)?,
            store_errors: counter(names::STORE_ERRORS)?,
            panics: counter(names::PANICS)?,
            access_log_dropped: IntCounter::with_opts(opts(&names::ACCESS_LOG_DROPPED))?,
            spans_dropped: IntCounter::with_opts(opts(&names::SPANS_DROPPED))?,
            notifications: counter(names::NOTIFICATIONS)?,
        };
        let build = gauge(names::BUILD_INFO)?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build))?;
        registry.register(Box::new(metrics.measurements.clone()))?;
        registry.register(Box::new(metrics.reload_success.clone()))?;
        registry.register(Box::new(metrics.certificate_expiry.clone()))?;
        registry.register(Box::new(metrics.certificate_reload_success.clone()))?;
        registry.register(Box::new(metrics.store_errors.clone()))?;
        registry.register(Box::new(metrics.panics.clone()))?;
        registry.register(Box::new(metrics.access_log_dropped.clone()))?;
        registry.register(Box::new(metrics.spans_dropped.clone()))?;
        registry.register(Box::new(metrics.notifications.clone()))?;
        for single in [&metrics.store_errors, &metrics.panics] {
            single.with_label_values::<&str>(&[]).inc_by(0);
        }
        metrics.reload_success.with_label_values::<&str>(&[]).set(1);
        Ok(metrics)
    }

    /// A service is served no more: its series go.
    pub fn forget_service(&self, service: &str) {
        self.rollouts.forget(service);
        // Which metrics a service had only the series themselves say.
        let families = self.measurements.collect();
        for metric in families.iter().flat_map(MetricFamily::get_metric) {
            let of = |name: &str| {
                let pair = metric.get_label().iter().find(|pair| pair.name() == name);
                pair.map_or("", |pair| pair.value())
            };
            if of("serin_service") == service {
                let values = [service, of("metric"), of("outcome")];
                let _ = self.measurements.remove_label_values(&values);
            }
        }
    }

    /// Shows a certificate: when the one in force expires, and whether it is the one in its file.
    pub fn show_certificate(&self, place: &str, certificate: &str, expires_at: i64, fresh: bool) {
        let labels = &[place, certificate];
        self.certificate_expiry.with_label_values(labels).set(expires_at);
        self.certificate_reload_success
            .with_label_values(labels)
            .set(i64::from(fresh));
    }

    /// A certificate is served no more.
    pub fn forget_certificate(&self, place: &str, certificate: &str) {
        // What was never shown need not be forgotten.
        let _ = self.certificate_expiry.remove_label_values(&[place, certificate]);
        let _ = self
            .certificate_reload_success
            .remove_label_values(&[place, certificate]);
    }
}
