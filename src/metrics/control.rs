//! What the control plane counts. Rare events, so ordinary labelled collectors serve.

use super::names::{self, Family};
use crate::rollout::{AbortCause, PauseReason, Phase};
use prometheus::{
    GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, core::Collector, proto::MetricFamily,
};

/// Handles to the control plane's families. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlMetrics {
    /// `serin_rollout_phase`
    pub phase: IntGaugeVec,
    /// `serin_rollout_step`
    pub step: IntGaugeVec,
    /// `serin_rollout_pause_reason`
    pub pause_reason: IntGaugeVec,
    /// `serin_rollout_paused_seconds`
    pub paused_seconds: GaugeVec,
    /// `serin_service_alarm`
    pub alarm: IntGaugeVec,
    /// `serin_rollout_aborts_total`
    pub aborts: IntCounterVec,
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
            phase: gauge(names::PHASE)?,
            step: gauge(names::STEP)?,
            pause_reason: gauge(names::PAUSE_REASON)?,
            paused_seconds: GaugeVec::new(opts(&names::PAUSED_SECONDS), names::PAUSED_SECONDS.labels)?,
            alarm: gauge(names::ALARM)?,
            aborts: counter(names::ABORTS)?,
            measurements: counter(names::MEASUREMENTS)?,
            reload_success: gauge(names::RELOAD_SUCCESS)?,
            certificate_expiry: gauge(names::CERTIFICATE_EXPIRY)?,
            certificate_reload_success: gauge(names::CERTIFICATE_RELOAD_SUCCESS)?,
            store_errors: counter(names::STORE_ERRORS)?,
            panics: counter(names::PANICS)?,
            access_log_dropped: IntCounter::with_opts(opts(&names::ACCESS_LOG_DROPPED))?,
            spans_dropped: IntCounter::with_opts(opts(&names::SPANS_DROPPED))?,
        };
        let build = gauge(names::BUILD_INFO)?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build))?;
        registry.register(Box::new(metrics.phase.clone()))?;
        registry.register(Box::new(metrics.step.clone()))?;
        registry.register(Box::new(metrics.pause_reason.clone()))?;
        registry.register(Box::new(metrics.paused_seconds.clone()))?;
        registry.register(Box::new(metrics.alarm.clone()))?;
        registry.register(Box::new(metrics.aborts.clone()))?;
        registry.register(Box::new(metrics.measurements.clone()))?;
        registry.register(Box::new(metrics.reload_success.clone()))?;
        registry.register(Box::new(metrics.certificate_expiry.clone()))?;
        registry.register(Box::new(metrics.certificate_reload_success.clone()))?;
        registry.register(Box::new(metrics.store_errors.clone()))?;
        registry.register(Box::new(metrics.panics.clone()))?;
        registry.register(Box::new(metrics.access_log_dropped.clone()))?;
        registry.register(Box::new(metrics.spans_dropped.clone()))?;
        for single in [&metrics.store_errors, &metrics.panics] {
            single.with_label_values::<&str>(&[]).inc_by(0);
        }
        metrics.reload_success.with_label_values::<&str>(&[]).set(1);
        Ok(metrics)
    }

    /// A service is served no more: its series go.
    pub fn forget_service(&self, service: &str) {
        // What was never shown need not be forgotten.
        let _ = self.step.remove_label_values(&[service]);
        let _ = self.paused_seconds.remove_label_values(&[service]);
        let _ = self.alarm.remove_label_values(&[service]);
        for phase in Phase::ALL {
            let _ = self.phase.remove_label_values(&[service, phase.as_str()]);
        }
        for reason in PauseReason::ALL {
            let _ = self.pause_reason.remove_label_values(&[service, reason.label()]);
        }
        for cause in AbortCause::ALL {
            let _ = self.aborts.remove_label_values(&[service, cause.as_str()]);
        }
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
