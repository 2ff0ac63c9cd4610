//! The data-plane threads: started together, stopped together.

use super::{AppError, Passed, certificates::Certificates};
use crate::{
    admin,
    config::Config,
    proxy::{self, Inlet, Shared, Stop, WorkerParts},
};
use std::{net::SocketAddr, sync::Arc, thread::JoinHandle, time::Duration};
use tokio::sync::watch;

/// All workers of the process.
#[derive(Debug)]
pub(super) struct Workers {
    stop: watch::Sender<Stop>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
    /// Where each listener was bound, in the order of the configuration; none for a Unix socket.
    pub(super) addresses: Vec<(String, Option<SocketAddr>)>,
}

/// Sockets of all listeners, bound before anything else starts: the most likely thing to fail.
pub(super) struct Bound {
    per_worker: Vec<Vec<Inlet>>,
    addresses: Vec<(String, Option<SocketAddr>)>,
}

impl Bound {
    pub(super) fn bind(
        config: &Config,
        certificates: &Certificates,
        workers: usize,
        mut passed: Passed,
    ) -> Result<Bound, AppError> {
        let mut per_worker: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
        let mut addresses = Vec::new();
        for listener in &config.listeners {
            let listener = Arc::new(listener.clone());
            let sockets = match passed.take(&listener) {
                Some(socket) => proxy::adopt(socket, &listener.address, workers)?,
                None => proxy::bind(&listener.address, listener.socket_mode, workers)?,
            };
            addresses.push((
                listener.name.clone(),
                sockets.first().and_then(proxy::Socket::local_addr),
            ));
            for (worker, socket) in per_worker.iter_mut().zip(sockets) {
                worker.push(Inlet {
                    config: Arc::clone(&listener),
                    socket,
                    tls: certificates.of(&listener.name),
                });
            }
        }
        passed.say_unused();
        Ok(Bound {
            per_worker,
            addresses,
        })
    }

    /// The configuration that knows where it listens: no deploy leads there.
    pub(super) fn make_known(&self, config: Arc<Config>, admin: &admin::Listeners) -> Arc<Config> {
        config.listening_at(&self.addresses, admin.admin_address(), admin.telemetry_address())
    }
}

impl Workers {
    /// Starts one thread per set of sockets.
    pub(super) fn start(
        bound: Bound,
        shared: &Arc<Shared>,
        grace: Duration,
        seed: u64,
    ) -> Result<Workers, AppError> {
        let (stop, receiver) = watch::channel(Stop::No);
        let mut threads = Vec::new();
        for (index, inlets) in bound.per_worker.into_iter().enumerate() {
            let parts = WorkerParts {
                index,
                shared: Arc::clone(shared),
                inlets,
                // Different dice for each worker; the mixing is the generator's business.
                seed: seed.wrapping_add(u64::try_from(index).unwrap_or(0)),
                stop: receiver.clone(),
                grace,
            };
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || proxy::run(parts));
            threads.push(thread.map_err(AppError::Thread)?);
        }
        Ok(Workers {
            stop,
            threads,
            addresses: bound.addresses,
        })
    }

    /// Tells all workers; they answer by ending.
    pub(super) fn tell(&self, stop: Stop) {
        self.stop.send_replace(stop);
    }

    /// A way to tell them later.
    pub(super) fn stop_handle(&self) -> watch::Sender<Stop> {
        self.stop.clone()
    }

    /// Waits for all workers to end.
    pub(super) fn join(self) {
        for (index, thread) in self.threads.into_iter().enumerate() {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(worker = index, %error, "a worker could not run"),
                Err(_) => tracing::error!(worker = index, "a worker ended by a bug in Serin"),
            }
        }
    }
}
