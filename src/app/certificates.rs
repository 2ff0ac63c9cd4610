//! The certificates in force, and their renewal while Serin runs.
//!
//! At the start a certificate that cannot be read is a fault of the configuration. Later its files may change at any time,
//! one after the other: what is cut off, does not fit its key, has expired or is not valid yet is not taken; the
//! certificate before it stays, and the log and a metric say so. Nothing here is near a request: handshakes read a cell.

use crate::{
    config::{Certificate, CertificateFiles, Config, Problem, Tls},
    metrics::Registry,
    model::{Clock, Timestamp},
    proxy::tls,
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio_rustls::TlsAcceptor;

/// From here on an operator should know that a certificate has not been renewed.
const SOON: Duration = Duration::from_secs(7 * 86_400);
/// The REST API's place, where listeners have their names.
const ADMIN: &str = "admin.address";

/// Every certificate that is served with. Cheap to clone.
#[derive(Clone)]
pub(super) struct Certificates {
    places: Arc<BTreeMap<String, Place>>,
    metrics: Registry,
    clock: Arc<dyn Clock>,
}

/// A listener, or the REST API.
struct Place {
    acceptor: TlsAcceptor,
    cell: Arc<tls::Certificates>,
    in_force: Mutex<Vec<InForce>>,
}

/// A certificate and the files it comes from.
pub(super) struct InForce {
    pub(super) files: CertificateFiles,
    pub(super) certificate: Certificate,
    /// Why what the files hold now is not what is in force; said once.
    refused: Option<Problem>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.places.keys()).finish()
    }
}

impl Certificates {
    /// Reads every certificate of a configuration, or says what is wrong with each. One that has expired is served all the
    /// same, and loudly: a restart must not turn a warning in a browser into an outage.
    pub(super) fn start(
        config: &Config,
        metrics: &Registry,
        clock: Arc<dyn Clock>,
    ) -> Result<Certificates, Vec<Problem>> {
        let mut places = BTreeMap::new();
        let mut problems = Vec::new();
        for (name, tls, protocols) in served(config) {
            let mut in_force = Vec::new();
            for files in &tls.certificates {
                match files.read() {
                    Ok(certificate) => in_force.push(InForce {
                        files: files.clone(),
                        certificate,
                        refused: None,
                    }),
                    Err(problem) => problems.push(problem),
                }
            }
            let cell = Arc::new(tls::Certificates::default());
            match tls::acceptor(tls, &cell, protocols) {
                Ok(acceptor) => {
                    let in_force = Mutex::new(in_force);
                    let place = Place {
                        acceptor,
                        cell,
                        in_force,
                    };
                    places.insert(name.to_owned(), place);
                }
                Err(error) => problems.push(Problem::of_file("", format!("TLS of `{name}`: {error}"), "")),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let certificates = Certificates {
            places: Arc::new(places),
            metrics: metrics.clone(),
            clock,
        };
        let now = certificates.clock.wall();
        for (name, place) in certificates.places.iter() {
            let in_force = place.in_force.lock().unwrap_or_else(PoisonError::into_inner);
            for one in in_force.iter() {
                remind(name, one, now);
            }
            certificates.publish(name, place, &in_force);
        }
        Ok(certificates)
    }

    /// How a listener speaks TLS.
    pub(super) fn of(&self, listener: &str) -> Option<TlsAcceptor> {
        self.places.get(listener).map(|place| place.acceptor.clone())
    }

    /// How the REST API speaks TLS.
    pub(super) fn of_admin(&self) -> Option<TlsAcceptor> {
        self.of(ADMIN)
    }

    /// What is wrong with certificates that a new configuration names and that have no predecessor to stay in force.
    pub(super) fn problems(&self, config: &Config) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (name, tls, _) in served(config) {
            let Some(place) = self.places.get(name) else {
                continue;
            };
            let in_force = place.in_force.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = tls
                .certificates
                .iter()
                .filter(|files| !in_force.iter().any(|one| one.files == **files));
            problems.extend(fresh.filter_map(|files| files.read().err()));
        }
        problems
    }

    /// Reads the files of a configuration again and takes what is good. Blocks for as long as the files take.
    pub(super) fn renew(&self, config: &Config) {
        for (name, tls, _) in served(config) {
            if let Some(place) = self.places.get(name) {
                self.renew_place(name, place, tls);
            }
        }
    }

    fn renew_place(&self, name: &str, place: &Place, tls: &Tls) {
        let now = self.clock.wall();
        let mut in_force = place.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before: Vec<InForce> = in_force.drain(..).collect();
        for files in &tls.certificates {
            let old = before
                .iter()
                .position(|one| one.files == *files)
                .map(|index| before.swap_remove(index));
            in_force.extend(renewed(name, files, old, now));
        }
        if in_force.is_empty() {
            // Every file was new and went bad after it had been checked: anything is better than nothing.
            *in_force = before;
        } else {
            for gone in &before {
                self.metrics
                    .control
                    .forget_certificate(name, gone.files.written());
            }
        }
        self.publish(name, place, &in_force);
    }

    /// Puts certificates in force and shows them.
    fn publish(&self, name: &str, place: &Place, in_force: &[InForce]) {
        let all: Vec<Certificate> = in_force.iter().map(|one| one.certificate.clone()).collect();
        place.cell.replace(&all);
        for one in in_force {
            show(&self.metrics, name, one);
        }
    }
}

/// Shows when a certificate expires, and whether it is the one in its file.
pub(super) fn show(metrics: &Registry, place: &str, one: &InForce) {
    let expiry = i64::try_from(one.certificate.not_after.as_millis() / 1000).unwrap_or(i64::MAX);
    let fresh = one.refused.is_none();
    metrics
        .control
        .show_certificate(place, one.files.written(), expiry, fresh);
}

/// Where TLS is served, and what is spoken inside it.
fn served(config: &Config) -> impl Iterator<Item = (&str, &Tls, &'static [&'static [u8]])> {
    let listeners = config.listeners.iter().filter_map(|listener| {
        let tls = listener.tls.as_ref()?;
        Some((listener.name.as_str(), tls, tls::HTTP))
    });
    let admin = config.admin.tls.as_ref().map(|tls| (ADMIN, tls, &tls::HTTP[1..]));
    listeners.chain(admin)
}

/// What is in force after looking at the files again.
pub(super) fn renewed(
    name: &str,
    files: &CertificateFiles,
    old: Option<InForce>,
    now: Timestamp,
) -> Option<InForce> {
    let found = files.read().and_then(|fresh| usable(files, fresh, now));
    match (found, old) {
        (Ok(fresh), Some(old)) if fresh.certified.cert == old.certificate.certified.cert => Some(InForce {
            files: files.clone(),
            refused: None,
            ..old
        }),
        (Ok(fresh), _) => {
            let taken = InForce {
                files: files.clone(),
                certificate: fresh,
                refused: None,
            };
            tracing::info!(
                place = name,
                certificate = files.written(),
                not_after = %taken.certificate.not_after,
                "the certificate `{}` of `{name}` is in force; it expires at {}",
                files.written(),
                taken.certificate.not_after
            );
            remind(name, &taken, now);
            Some(taken)
        }
        (Err(problem), Some(old)) => {
            if old.refused.as_ref() != Some(&problem) {
                tracing::error!(
                    place = name,
                    certificate = files.written(),
                    "a certificate was not renewed, the one before stays in force until {}: {problem}",
                    old.certificate.not_after
                );
            }
            Some(InForce {
                refused: Some(problem),
                ..old
            })
        }
        (Err(problem), None) => {
            tracing::error!(place = name, certificate = files.written(), "{problem}");
            None
        }
    }
}

/// A certificate that holds now.
fn usable(files: &CertificateFiles, fresh: Certificate, now: Timestamp) -> Result<Certificate, Problem> {
    let file = files.certificate.display();
    match Validity::of(&fresh, now) {
        Validity::Over => {
            let what = format!("the certificate `{file}` expired at {}", fresh.not_after);
            Err(files.problem(what, "write one that holds"))
        }
        Validity::Ahead => {
            let what = format!(
                "the certificate `{file}` is not valid before {}",
                fresh.not_before
            );
            Err(files.problem(what, "it is taken by itself within ten minutes of that"))
        }
        Validity::Ending | Validity::Good => Ok(fresh),
    }
}

/// How a certificate stands in time.
enum Validity {
    Ahead,
    Good,
    /// For [`SOON`] at most.
    Ending,
    Over,
}

impl Validity {
    fn of(certificate: &Certificate, now: Timestamp) -> Validity {
        if certificate.not_after <= now {
            Validity::Over
        } else if certificate.not_before > now {
            Validity::Ahead
        } else if certificate.not_after <= now.plus(SOON) {
            Validity::Ending
        } else {
            Validity::Good
        }
    }
}

/// What is doubtful about the times of the certificates that a configuration names; what cannot be read is somebody else's.
pub(crate) fn doubtful(config: &Config, now: Timestamp) -> Vec<Problem> {
    let served = served(config).flat_map(|(_, tls, _)| &tls.certificates);
    let shown = config.services.iter();
    let shown = shown.filter_map(|service| service.upstream_tls.identity.as_ref());
    let doubt = |files: &CertificateFiles| {
        let certificate = files.read().ok()?;
        let (what, hint) = in_time(&certificate, files.written(), now)?;
        Some(files.problem(what, hint))
    };
    served.chain(shown).filter_map(doubt).collect()
}

/// What an operator should not find out from clients, and what it means; nothing for a good one.
fn in_time(certificate: &Certificate, written: &str, now: Timestamp) -> Option<(String, &'static str)> {
    let (from, until) = (certificate.not_before, certificate.not_after);
    match Validity::of(certificate, now) {
        Validity::Over => Some((
            format!("the certificate `{written}` expired at {until}"),
            "whoever checks it refuses it",
        )),
        Validity::Ahead => Some((
            format!("the certificate `{written}` is not valid before {from}"),
            "whoever checks it refuses it until then",
        )),
        Validity::Ending => Some((
            format!("the certificate `{written}` expires at {until}"),
            "renew it",
        )),
        Validity::Good => None,
    }
}

/// Says so when a certificate is not, no longer or not for long one that others take.
fn remind(name: &str, one: &InForce, now: Timestamp) {
    let written = one.files.written();
    let Some((what, hint)) = in_time(&one.certificate, written, now) else {
        return;
    };
    match Validity::of(&one.certificate, now) {
        Validity::Over | Validity::Ahead => {
            tracing::error!(place = name, certificate = written, "{name}: {what}; {hint}");
        }
        Validity::Ending | Validity::Good => {
            tracing::warn!(place = name, certificate = written, "{name}: {what}; {hint}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, model::ManualClock};
    use std::fs;

    const YEAR_2026: Timestamp = Timestamp::from_secs(1_780_000_000);

    fn started(folder: &std::path::Path) -> (Certificates, Arc<Config>) {
        let text = "listeners: [{name: web, address: '127.0.0.1:0', tls: {certificate: a.pem, key: a.key}}]\n\
                    services: [{name: s, stable: {version: v, endpoints: ['http://a']}}]";
        let config = config::load_text(text, "serin.yaml", folder, &|_| None)
            .unwrap()
            .config;
        let metrics = Registry::new(1).unwrap();
        let clock = Arc::new(ManualClock::at(YEAR_2026));
        let certificates = Certificates::start(&config, &metrics, clock).unwrap();
        (certificates, config)
    }

    /// Year of expiry and whether the files are in force.
    fn state(certificates: &Certificates) -> (String, bool) {
        let in_force = certificates.places["web"].in_force.lock().unwrap();
        let one = &in_force[0];
        let year = one.certificate.not_after.to_string()[..4].to_owned();
        (year, one.refused.is_none())
    }

    #[test]
    fn a_renewal_is_taken_and_a_bad_one_keeps_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        config::tls_fixtures::write(path, "a", &["a"], (2020, 2030));
        let (certificates, config) = started(path);
        assert_eq!(state(&certificates), ("2030".to_owned(), true));

        config::tls_fixtures::write(path, "a", &["a"], (2020, 2031));
        certificates.renew(&config);
        assert_eq!(state(&certificates), ("2031".to_owned(), true));

        for years in [(2020, 2025), (2028, 2035)] {
            config::tls_fixtures::write(path, "a", &["a"], years);
            certificates.renew(&config);
            assert_eq!(state(&certificates), ("2031".to_owned(), false), "{years:?}");
        }
        fs::write(path.join("a.pem"), "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
        certificates.renew(&config);
        assert_eq!(state(&certificates), ("2031".to_owned(), false));

        config::tls_fixtures::write(path, "a", &["a"], (2020, 2032));
        certificates.renew(&config);
        assert_eq!(state(&certificates), ("2032".to_owned(), true));
    }

    #[test]
    fn a_new_file_that_is_bad_is_a_fault_and_a_known_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        config::tls_fixtures::write(folder.path(), "a", &["a"], (2020, 2030));
        let (certificates, config) = started(folder.path());
        fs::write(folder.path().join("a.key"), "").unwrap();
        assert_eq!(certificates.problems(&config), []);
        let more = "listeners: [{name: web, address: '127.0.0.1:0', tls: {certificates: [{certificate: b.pem, key: \
                    b.key}]}}]\nservices: [{name: s, stable: {version: v, endpoints: ['http://a']}}]";
        let more = config::load_text(more, "serin.yaml", folder.path(), &|_| None).unwrap();
        let problems = certificates.problems(&more.config);
        assert!(
            problems.len() == 1
                && problems[0]
                    .to_string()
                    .contains("listeners[0].tls.certificates[0]"),
            "{problems:?}"
        );
    }
}
