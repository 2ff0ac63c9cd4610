//! The access log and the tracer as the configuration wants them: opened before anything is swapped, ended when replaced.

use super::SystemClock;
use crate::{
    config::{Config, LogPath, Problem},
    metrics::Registry,
    proxy::{AccessLog, Set, Shared, Tracer, Writer},
    telemetry::otlp::{self, Collector, Exporter},
};
use http::HeaderValue;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What observes the requests of one instance.
#[derive(Debug)]
pub(super) struct Observers {
    shared: Arc<Shared>,
    metrics: Registry,
    clock: SystemClock,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    config: Option<Arc<Config>>,
    set: Set,
    writer: Option<Writer>,
    exporter: Option<Exporter>,
}

/// Observers that are ready to take their place.
#[derive(Debug)]
pub(super) struct Prepared {
    config: Arc<Config>,
    log: Wanted<(Arc<AccessLog>, Writer)>,
    tracer: Wanted<(Arc<Tracer>, Exporter)>,
}

/// What a new configuration wants of one observer.
#[derive(Debug)]
enum Wanted<T> {
    /// The one there is.
    Same,
    /// Another one, or none.
    Other(Option<T>),
}

impl Observers {
    pub(super) fn new(shared: Arc<Shared>, metrics: Registry, clock: SystemClock) -> Observers {
        Observers {
            shared,
            metrics,
            clock,
            now: Mutex::default(),
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        // Nothing in there can be left half-done by a panic.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens whatever a configuration changes. Must be called inside the control runtime.
    pub(super) fn prepare(&self, config: &Arc<Config>) -> Result<Prepared, Problem> {
        let before = self.now().config.clone();
        let mut prepared = Prepared {
            config: Arc::clone(config),
            log: Wanted::Same,
            tracer: Wanted::Same,
        };
        if before
            .as_ref()
            .is_none_or(|before| before.access_log != config.access_log)
        {
            prepared.log = Wanted::Other(self.open_log(config)?);
        }
        if before
            .as_ref()
            .is_none_or(|before| before.tracing != config.tracing)
        {
            prepared.tracer = Wanted::Other(self.start_tracer(config)?);
        }
        Ok(prepared)
    }

    fn open_log(&self, config: &Config) -> Result<Option<(Arc<AccessLog>, Writer)>, Problem> {
        let Some(wanted) = &config.access_log else {
            return Ok(None);
        };
        let dropped = self.metrics.control.access_log_dropped.clone();
        let opened = AccessLog::open(wanted, Arc::new(self.clock), dropped).map_err(|error| {
            let path = match &wanted.path {
                LogPath::Stdout => "stdout".to_owned(),
                LogPath::File(path) => path.display().to_string(),
            };
            let hint = "name a file in a directory that Serin may write to, or stdout";
            of_key(
                "accessLog.path",
                format!("cannot write to `{path}`: {error}"),
                hint,
            )
        })?;
        Ok(Some((Arc::new(opened.0), opened.1)))
    }

    fn start_tracer(&self, config: &Config) -> Result<Option<(Arc<Tracer>, Exporter)>, Problem> {
        let Some(wanted) = &config.tracing else {
            return Ok(None);
        };
        let header = |(name, value): &(http::HeaderName, crate::config::Redacted)| {
            let mut value = HeaderValue::from_str(value.expose()).ok()?;
            value.set_sensitive(true);
            Some((name.clone(), value))
        };
        let collector = Collector {
            endpoint: wanted.endpoint.clone(),
            roots: wanted.ca.as_ref().map(|ca| Arc::clone(&ca.0)),
            headers: wanted.headers.iter().filter_map(header).collect(),
            service_name: wanted.service_name.clone(),
        };
        let dropped = self.metrics.control.spans_dropped.clone();
        let (spans, exporter) = otlp::start(collector, dropped).map_err(|error| {
            let what = format!("the system's certificates cannot be read: {error}");
            of_key("tracing.otlp", what, "install ca-certificates")
        })?;
        let tracer = Tracer::new(wanted, spans, Arc::new(self.clock));
        Ok(Some((Arc::new(tracer), exporter)))
    }

    /// Puts prepared observers in place. Requests in flight still tell the old ones, which end after them.
    pub(super) fn replace(&self, prepared: Prepared) {
        let mut now = self.now();
        if let Wanted::Other(log) = prepared.log {
            (now.set.log, now.writer) = log.unzip();
        }
        if let Wanted::Other(tracer) = prepared.tracer {
            (now.set.tracer, now.exporter) = tracer.unzip();
        }
        now.config = Some(prepared.config);
        self.shared.observers.replace(now.set.clone());
    }

    /// Opens the access log's file anew.
    pub(super) fn reopen(&self) {
        if let Some(log) = &self.now().set.log {
            log.reopen();
        }
    }

    /// Waits for what has been told to be written and sent; for seconds at most.
    pub(super) async fn stop(&self) {
        let Now {
            set,
            writer,
            exporter,
            ..
        } = std::mem::take(&mut *self.now());
        self.shared.observers.replace(Set::default());
        drop(set);
        if let Some(exporter) = exporter {
            exporter.finished().await;
        }
        if let Some(writer) = writer {
            // It bounds its own waiting.
            let _ = tokio::task::spawn_blocking(move || writer.finished()).await;
        }
    }
}

fn of_key(key: &str, what: String, hint: &str) -> Problem {
    let mut problem = Problem::of_file("", what, hint);
    key.clone_into(&mut problem.key);
    problem
}
