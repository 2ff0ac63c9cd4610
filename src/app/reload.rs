//! Taking a new configuration: parse, check, swap; a bad one changes nothing and says why.

use super::observers::Observers;
use super::{Resources, certificates::Certificates, upstream_tls::Upstreams};
use crate::{
    admin::{Answer, ConfigCheck, Hosts, Operator, Tokens},
    config::{self, Config, Loaded, Problem},
    control::{Change, Control},
    metrics::Registry,
    proxy::{Shared, Table},
    upstream::Services,
};
use arc_swap::ArcSwap;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Mutex, watch};

/// Certificates are read again this often even when nobody tells of a change: a watch can be blind (network file systems),
/// and one that was not valid yet becomes so by itself.
const AGAIN: Duration = Duration::from_secs(600);

/// What a reload swaps.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    pub(super) control: Control,
    pub(super) services: Services,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Registry,
    pub(super) tokens: Tokens,
    pub(super) hosts: Hosts,
    pub(super) observers: Arc<Observers>,
    pub(super) certificates: Certificates,
    pub(super) upstreams: Upstreams,
    pub(super) resources: Resources,
}

/// Reloads one instance. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reload {
    file: Option<PathBuf>,
    current: Arc<ArcSwap<Config>>,
    parts: Parts,
    /// One reload at a time; the last one wins.
    turn: Arc<Mutex<()>>,
    /// What to watch.
    files: Arc<watch::Sender<Vec<PathBuf>>>,
}

/// What a reload did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// What changed in which service.
    pub changes: Vec<Change>,
    /// What changed besides.
    pub others: Vec<String>,
    /// What is legal and probably not meant.
    pub warnings: Vec<Problem>,
}

impl Reloaded {
    /// What changed, and where, in one line.
    pub fn words(&self) -> String {
        let services = self
            .changes
            .iter()
            .map(|change| format!("`{}`: {}", change.service, change.text));
        let words: Vec<String> = services.chain(self.others.iter().cloned()).collect();
        if words.is_empty() {
            "nothing is different".to_owned()
        } else {
            words.join("; ")
        }
    }
}

impl Reload {
    pub(super) fn new(file: Option<PathBuf>, config: Arc<Config>, parts: Parts) -> Reload {
        Reload {
            file,
            current: Arc::new(ArcSwap::new(config)),
            parts,
            turn: Arc::default(),
            files: Arc::new(watch::Sender::default()),
        }
    }

    /// Tells which files it is made from ([`Loaded::files`]), now and whenever a reload has read others, whoever asked for it.
    pub fn files(&self, now: Vec<PathBuf>) -> watch::Receiver<Vec<PathBuf>> {
        self.files.send_replace(now);
        self.files.subscribe()
    }

    /// What `admin.tokens` says; follows every reload.
    pub(super) fn tokens(&self) -> &Tokens {
        &self.parts.tokens
    }

    /// What `admin.hosts` says; follows every reload.
    pub(super) fn hosts(&self) -> &Hosts {
        &self.parts.hosts
    }

    /// Reads the file again and takes it, all or nothing. Certificates are looked at in any case: a mistake elsewhere in the
    /// file must not let them expire.
    pub async fn from_file(&self) -> Result<Reloaded, Vec<Problem>> {
        let result = self.read_and_take(config::load_noting).await;
        self.renew_certificates().await;
        result
    }

    /// Reads certificates again from time to time, until the process ends.
    pub(super) async fn keep_certificates_fresh(self) {
        let mut every = tokio::time::interval(AGAIN);
        every.tick().await;
        loop {
            every.tick().await;
            self.renew_certificates().await;
        }
    }

    async fn renew_certificates(&self) {
        let (parts, config) = (self.parts.clone(), self.current.load_full());
        let renew = move || {
            parts.certificates.renew(&config);
            parts.upstreams.renew(&config);
        };
        // Files may lie on a network. A panic has been logged.
        let _ = tokio::task::spawn_blocking(renew).await;
    }

    /// `load` notes the files that it reads.
    async fn read_and_take(
        &self,
        load: impl FnOnce(&Path, &mut Vec<PathBuf>) -> Result<Loaded, Vec<Problem>> + Send + 'static,
    ) -> Result<Reloaded, Vec<Problem>> {
        let Some(file) = &self.file else {
            let problem = Problem::of_file(
                "",
                "this instance was started without a file",
                "start it with `serve -c FILE`",
            );
            return Err(vec![problem]);
        };
        // Held while reading, too: of several that are asked for at once each would slow the others down, and the one that read
        // first might come last.
        let _turn = self.turn.lock().await;
        let path = file.clone();
        let read = move || {
            let mut files = Vec::new();
            (load(&path, &mut files), files)
        };
        let Ok((read, mut files)) = tokio::task::spawn_blocking(read).await else {
            return Err(self.refused(vec![Problem::of_file("", "reading was interrupted", "try again")]));
        };
        let result = match read {
            Ok(loaded) => self.take(loaded).await,
            Err(problems) => Err(self.refused(problems)),
        };
        // Told also when they are the same: a link among them may lead elsewhere.
        self.files.send_modify(|known| {
            if result.is_err() {
                // What is in force counts as well as what might be mended.
                files.append(known);
                files.sort();
                files.dedup();
            }
            *known = files;
        });
        result
    }

    /// Takes a configuration that was loaded, all or nothing; it must be the caller's turn.
    async fn take(&self, loaded: Loaded) -> Result<Reloaded, Vec<Problem>> {
        let Loaded { config, warnings, .. } = loaded;
        // Where it listens stays as it is.
        let config = config.listening_like(&self.current.load());
        let problems = self.problems(&config).await;
        if !problems.is_empty() {
            return Err(self.refused(problems));
        }
        let observers = match self.parts.observers.prepare(&config) {
            Ok(observers) => observers,
            Err(problem) => return Err(self.refused(vec![problem])),
        };
        let (parts, new) = (self.parts.clone(), Arc::clone(&config));
        let route = move || {
            let table = Table::build(&new, &parts.services);
            parts.shared.table.store(Arc::new(table));
        };
        match self.parts.control.apply_config(Arc::clone(&config), route).await {
            Ok(mut changes) => {
                let diff = config::diff(&self.current.load(), &config);
                for service in &diff.services_changed {
                    if let Some(text) = service.words() {
                        let name = service.name.clone();
                        tracing::info!(service = %name, "`{name}`: {text}");
                        changes.push(Change { service: name, text });
                    }
                }
                self.parts.tokens.replace(config.admin.tokens.clone());
                self.parts.hosts.replace(config.admin.hosts.clone());
                self.parts.services.names().set(config.dns.clone());
                self.parts.observers.replace(observers);
                let clients = self.parts.resources.clients(&config);
                self.parts.shared.descriptors.allow_clients(clients);
                self.current.store(config);
                self.parts
                    .metrics
                    .control
                    .reload_success
                    .with_label_values::<&str>(&[])
                    .set(1);
                Ok(Reloaded {
                    changes,
                    others: diff.words(),
                    warnings,
                })
            }
            Err(refused) => {
                let problem = |reason: &String| Problem::of_file(self.name(), reason.clone(), "");
                Err(self.refused(refused.reasons.iter().map(problem).collect()))
            }
        }
    }

    /// Why this configuration would not be taken.
    async fn problems(&self, config: &Arc<Config>) -> Vec<Problem> {
        let mut problems = config.not_yet().to_vec();
        problems.extend(needs_restart(&self.name(), &self.current.load(), config));
        let (parts, new) = (self.parts.clone(), Arc::clone(config));
        let unreadable = move || {
            let mut problems = parts.certificates.problems(&new);
            problems.extend(parts.upstreams.problems(&new));
            problems
        };
        let found = tokio::task::spawn_blocking(unreadable).await;
        problems.extend(found.unwrap_or_default());
        if problems.is_empty()
            && let Err(refused) = self.parts.control.check_config(Arc::clone(config)).await
        {
            problems.extend(
                refused
                    .reasons
                    .iter()
                    .map(|reason| Problem::of_file(self.name(), reason.clone(), "")),
            );
        }
        problems
    }

    fn name(&self) -> String {
        self.file
            .as_ref()
            .map(|file| file.display().to_string())
            .unwrap_or_default()
    }

    fn refused(&self, problems: Vec<Problem>) -> Vec<Problem> {
        self.parts
            .metrics
            .control
            .reload_success
            .with_label_values::<&str>(&[])
            .set(0);
        problems
    }
}

impl Operator for Reload {
    fn config(&self) -> serde_json::Value {
        self.current.load().redacted_json().clone()
    }

    fn check(&self, text: String) -> Answer<'_, ConfigCheck> {
        Box::pin(async move {
            let name = if self.file.is_some() {
                self.name()
            } else {
                "configuration".to_owned()
            };
            let base = self
                .file
                .as_ref()
                .and_then(|file| file.parent())
                .filter(|folder| !folder.as_os_str().is_empty())
                .unwrap_or(Path::new("."))
                .to_owned();
            let load =
                move || config::load_text(&text, &name, &base, &|variable| std::env::var(variable).ok());
            let loaded = match tokio::task::spawn_blocking(load).await {
                Ok(Ok(loaded)) => loaded,
                Ok(Err(problems)) => return refusal(&problems),
                Err(_) => return refusal(&[Problem::of_file("", "checking was interrupted", "try again")]),
            };
            let problems = self.problems(&loaded.config).await;
            ConfigCheck {
                ok: problems.is_empty(),
                problems: problems.iter().map(ToString::to_string).collect(),
                warnings: loaded.warnings.iter().map(ToString::to_string).collect(),
            }
        })
    }

    fn reload(&self) -> Answer<'_, Result<Vec<Change>, Vec<String>>> {
        Box::pin(async move {
            match self.from_file().await {
                Ok(reloaded) => Ok(reloaded.changes),
                Err(problems) => Err(problems.iter().map(ToString::to_string).collect()),
            }
        })
    }
}

fn refusal(problems: &[Problem]) -> ConfigCheck {
    ConfigCheck {
        ok: false,
        problems: problems.iter().map(ToString::to_string).collect(),
        warnings: Vec::new(),
    }
}

/// What a running process cannot change: its sockets and its state file.
fn needs_restart(file: &str, old: &Config, new: &Config) -> Vec<Problem> {
    let mut changed = Vec::new();
    let sockets = |config: &Config| -> Vec<(String, String)> {
        config
            .listeners
            .iter()
            .map(|listener| (listener.name.clone(), listener.address.to_string()))
            .collect()
    };
    // Other certificates are taken; whether and how TLS is spoken is not.
    let tls = |tls: Option<&config::Tls>| tls.map(|tls| tls.only_tls13);
    let kept = |config: &Config| -> Vec<String> {
        config
            .listeners
            .iter()
            .map(|l| {
                format!(
                    "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
                    l.socket_mode,
                    l.forwarded,
                    l.mode,
                    l.trusted_proxies,
                    l.proxy_protocol,
                    l.timeouts,
                    l.limits,
                    tls(l.tls.as_ref())
                )
            })
            .collect()
    };
    if sockets(old) != sockets(new) || kept(old) != kept(new) {
        changed.push("listeners");
    }
    if old.admin.address != new.admin.address
        || old.admin.socket != new.admin.socket
        || tls(old.admin.tls.as_ref()) != tls(new.admin.tls.as_ref())
    {
        changed.push("admin");
    }
    if old.telemetry != new.telemetry {
        changed.push("telemetry");
    }
    if old.state.path != new.state.path {
        changed.push("state.path");
    }
    let problem = |key: &str| {
        let mut problem = Problem::of_file(
            file,
            format!("`{key}` cannot change while Serin runs"),
            "undo that change, or restart Serin to apply it (rollouts continue where they stand)",
        );
        key.clone_into(&mut problem.key);
        problem
    };
    changed.into_iter().map(problem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{Options, Passed, Serin};
    use crate::control::StoreChoice;
    use std::num::NonZeroUsize;
    use tokio::sync::oneshot;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_two_reloads_at_a_time_the_one_that_reads_later_wins() {
        let folder = tempfile::tempdir().unwrap();
        let written = |connect: &str| {
            let text = format!(
                "listeners: [{{address: '127.0.0.1:0'}}]
admin: {{address: '127.0.0.1:0'}}
services: [{{name: shop, stable: {{version: v1, endpoints: ['http://127.0.0.1:9']}}, timeouts: {{connect: {connect}}}}}]
"
            );
            config::load_text(&text, "serin.yaml", folder.path(), &|_| None).unwrap()
        };
        let options = Options {
            workers: NonZeroUsize::new(1),
            store: Some(StoreChoice::Memory),
            file: Some(folder.path().join("serin.yaml")),
            passed: Passed::default(),
        };
        let serin = Serin::start(written("1s").config, options).await.unwrap();
        let (older, newer) = (written("2s"), written("3s"));
        let (reads, is_reading) = oneshot::channel();
        let (go_on, may_go_on) = oneshot::channel();
        let slow = move |_: &Path, _: &mut Vec<PathBuf>| {
            reads.send(()).unwrap();
            may_go_on.blocking_recv().unwrap();
            Ok(older)
        };
        let (one, other) = (serin.reloader().clone(), serin.reloader().clone());
        let first = tokio::spawn(async move { one.read_and_take(slow).await });
        is_reading.await.unwrap();
        let mut second = tokio::spawn(async move { other.read_and_take(|_, _| Ok(newer)).await });
        // It has every chance to overtake.
        let overtook = tokio::time::timeout(Duration::from_millis(500), &mut second).await;
        go_on.send(()).unwrap();
        first.await.unwrap().unwrap();
        match overtook {
            Ok(result) => result.unwrap().unwrap(),
            Err(_) => second.await.unwrap().unwrap(),
        };
        let in_force = serin.reloader().config();
        assert_eq!(in_force["services"][0]["timeouts"]["connect"], "3s");
        serin.stop(std::future::ready(())).await;
    }
}
