//! From a path to a [`Config`], or to everything that is wrong with it.
//!
//! Order: read, parse, decode, then compile all files together. A later stage runs on what the earlier ones could
//! understand, so that one reading reports a file's faults together.

use super::compiled::Config;
use super::cx::{Cx, read_bounded};
use super::decode::{Findings, Located, decode};
use super::problem::Problem;
use super::secret::hide_environment;
use super::service::{self, ServiceConfig};
use super::strategy::{self, StrategyConfig, Templates, Uses};
use super::template::{self, TemplateConfig};
use super::yaml::{self, Entry, Env, Kind, MAX_BYTES, Node};
use super::{admin, advice, argo, dns, listener, notifications, observe, shown};
use crate::analysis::{Context, Template};
use crate::model::ServiceName;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A configuration that can be served.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it means.
    pub config: Arc<Config>,
    /// What is legal and probably not meant.
    pub warnings: Vec<Problem>,
    /// What [`super::Watch`] has to watch: the configuration, what it includes, the patterns that may name more, secrets,
    /// certificates.
    pub files: Vec<PathBuf>,
}

/// The main file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileConfig {
    /// At least one.
    #[serde(default)]
    listeners: Vec<Located<listener::ListenerConfig>>,
    /// Absent: 127.0.0.1:9900 and serin.sock, no tokens.
    admin: Option<admin::AdminConfig>,
    /// Absent: `/metrics` and the probes only at `admin.address`.
    telemetry: Option<admin::TelemetryConfig>,
    /// Absent: serin.db beside this file.
    state: Option<admin::StateConfig>,
    /// Absent: no access log.
    access_log: Option<observe::AccessLogConfig>,
    /// Absent: `traceparent` is passed on, nothing is traced.
    tracing: Option<observe::TracingConfig>,
    /// Absent: nobody is told, but whoever follows events.
    #[serde(default)]
    notifications: Vec<Located<notifications::NotificationConfig>>,
    /// Absent: as the system resolves names.
    dns: Option<dns::DnsConfig>,
    /// At least one, here or in an included file.
    #[serde(default)]
    services: Vec<Located<ServiceConfig>>,
    /// Absent: only the built-in judge.
    #[serde(default)]
    analysis_templates: Vec<Located<TemplateConfig>>,
    /// Files, `*` and `?` in their names allowed. Absent: none.
    #[serde(default)]
    include: Vec<Located<String>>,
}

/// A file that `include` names.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IncludedConfig {
    #[serde(default)]
    services: Vec<Located<ServiceConfig>>,
    #[serde(default)]
    analysis_templates: Vec<Located<TemplateConfig>>,
}

/// One file on its way.
struct File {
    cx: Cx,
    root: Node,
    services: Vec<Located<ServiceConfig>>,
    templates: Vec<Located<TemplateConfig>>,
}

/// More files than this are an accident.
const MAX_FILES: usize = 1000;

/// Loads a file and what it includes; `${ENV}` is the process's environment.
pub fn load(path: &Path) -> Result<Loaded, Vec<Problem>> {
    load_with(path, &|name| std::env::var(name).ok())
}

/// [`load`] with another environment.
pub fn load_with(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Vec<Problem>> {
    load_files(path, env, &mut Vec::new())
}

/// [`load`] that tells which files there are ([`Loaded::files`]) also when they cannot be used: who mends one of them wants
/// them read again.
pub fn load_noting(path: &Path, files: &mut Vec<PathBuf>) -> Result<Loaded, Vec<Problem>> {
    load_files(path, &|name| std::env::var(name).ok(), files)
}

fn load_files(path: &Path, env: Env<'_>, files: &mut Vec<PathBuf>) -> Result<Loaded, Vec<Problem>> {
    let name = path.display().to_string();
    files.push(path.to_owned());
    let text = read(path, &name).map_err(|problem| vec![problem])?;
    load_all(&text, &name, &directory(path), env, files)
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}

fn read(path: &Path, name: &str) -> Result<String, Problem> {
    read_bounded(path, MAX_BYTES as u64).map_err(|error| {
        let hint = if error.kind() == std::io::ErrorKind::NotFound {
            "name an existing file, or start from config/minimal.yaml"
        } else {
            ""
        };
        Problem::of_file(name, format!("cannot read the configuration: {error}"), hint)
    })
}

/// Loads a text as if it were a file of this name in the directory `base`.
pub fn load_text(
    text: &str,
    name: &str,
    base: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Vec<Problem>> {
    load_all(text, name, base, env, &mut Vec::new())
}

fn load_all(
    text: &str,
    name: &str,
    base: &Path,
    env: Env<'_>,
    watched: &mut Vec<PathBuf>,
) -> Result<Loaded, Vec<Problem>> {
    if text.len() > MAX_BYTES {
        return Err(vec![Problem::of_file(
            name,
            "the configuration has more than 4 MiB",
            "split it with include",
        )]);
    }
    let (mut findings, root) = one_document(text, name, base, env)?;
    let main: FileConfig = decode(&root, name, &mut findings).unwrap_or_default();
    let cx = Cx::new(name, base, &root, findings.problems, findings.warnings);
    let mut files = vec![File {
        cx,
        root,
        services: main.services,
        templates: main.analysis_templates,
    }];
    let mut read_files = Vec::new();
    include(&main.include, &mut files, &mut read_files, env);

    let templates = compile_templates(&mut files);
    let names: Vec<ServiceName> = files
        .iter()
        .flat_map(|file| file.services.iter().map(|service| service.value.name.clone()))
        .collect();
    let cx = &mut files[0].cx;
    let listeners = listener::compile(&main.listeners, cx);
    if main.listeners.is_empty() {
        cx.error(
            "listeners",
            "there is no listener",
            "add listeners: [{address: \"127.0.0.1:8080\"}]",
        );
    }
    let admin = admin::compile(main.admin.as_ref(), &names, cx);
    let telemetry = admin::telemetry(main.telemetry.as_ref(), cx);
    let state = admin::state(main.state.as_ref(), cx);
    let access_log = main
        .access_log
        .as_ref()
        .map(|config| observe::access_log(config, cx));
    let tracing = main.tracing.as_ref().map(|config| observe::tracing(config, cx));
    let notifications = notifications::compile(&main.notifications, &names, cx);
    let dns = main
        .dns
        .as_ref()
        .map(|config| config.compile(cx))
        .unwrap_or_default();
    if names.is_empty() {
        cx.error(
            "services",
            "there is no service",
            "add services: [{name: …, stable: {version: …, endpoints: […]}}]",
        );
    }
    check_addresses(&listeners, admin.address, telemetry, cx);

    let listener_names: Vec<&str> = listeners.iter().map(|listener| listener.name.as_str()).collect();
    let mut not_yet = Vec::new();
    let services = compile_services(&mut files, &listener_names, &templates, &mut not_yet);
    let mut shared: BTreeMap<String, Arc<Template>> = templates
        .all
        .iter()
        .map(|(name, compiled)| (name.clone(), Arc::new(compiled.template.clone())))
        .collect();
    shared.insert(
        strategy::BUILT_IN_GATE.to_owned(),
        Arc::new(strategy::built_in_gate()),
    );
    let config = Config {
        listeners,
        admin,
        telemetry,
        state,
        access_log,
        tracing,
        notifications: notifications.into_iter().map(Arc::new).collect(),
        dns,
        services: services.into_iter().map(Arc::new).collect(),
        templates: shared,
        bound: Vec::new(),
        shown: shown::show(files.iter().map(|file| &file.root)),
        not_yet,
    };
    let by_name: BTreeMap<&ServiceName, &Arc<super::Service>> = config
        .services
        .iter()
        .map(|service| (&service.name, service))
        .collect();
    for file in &mut files {
        for located in &file.services {
            if let Some(service) = by_name.get(&located.value.name) {
                advice::advise(&config, service, &located.path, &mut file.cx);
            }
        }
    }
    watched.append(&mut read_files);
    watched.extend(main.include.iter().map(|pattern| base.join(&pattern.value)));
    finish(config, files, watched)
}

/// The one document of a file. A whole Argo manifest is taken apart instead.
fn one_document(text: &str, name: &str, base: &Path, env: Env<'_>) -> Result<(Findings, Node), Vec<Problem>> {
    let mut findings = Findings::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = match yaml::parse(text, name, env, &mut findings.problems) {
        Ok(documents) => documents,
        Err(problem) => {
            findings.problems.push(problem);
            return Err(findings.problems);
        }
    };
    if documents
        .iter()
        .any(|document| document.get("apiVersion").is_some() && document.get("kind").is_some())
    {
        return Err(manifest(&documents, name, base, findings.problems));
    }
    if let Some(second) = documents.get(1) {
        let mut problem = Problem::of_file(
            name,
            "a second YAML document starts here",
            "put it into a file of its own and include that",
        );
        (problem.line, problem.column) = (second.pos.line, second.pos.column);
        findings.problems.push(problem);
    }
    documents.truncate(1);
    match documents.pop() {
        Some(root) if !root.is_null() => Ok((findings, root)),
        Some(_) | None => Err(vec![Problem::of_file(
            name,
            "the configuration is empty",
            "start from config/minimal.yaml: it needs listeners and services",
        )]),
    }
}

/// What to do with a manifest, and what in it would be refused after the move.
fn manifest(documents: &[Node], name: &str, base: &Path, found: Vec<Problem>) -> Vec<Problem> {
    let mut problems = found;
    let mut first = Problem::of_file(name, argo::MANIFEST, argo::MANIFEST_HINT);
    if let Some(document) = documents.first() {
        (first.line, first.column) = (document.pos.line, document.pos.column);
    }
    problems.push(first);
    let kind = |document: &Node| {
        document
            .get("kind")
            .and_then(Node::text)
            .unwrap_or_default()
            .to_owned()
    };
    let mut all = Templates::new();
    let mut contexts = Vec::new();
    for document in documents {
        if !matches!(
            kind(document).as_str(),
            "AnalysisTemplate" | "ClusterAnalysisTemplate"
        ) {
            continue;
        }
        let Some(spec) = named_spec(document) else {
            continue;
        };
        let mut findings = Findings::default();
        let config: Option<TemplateConfig> = decode(&spec, name, &mut findings);
        let mut cx = Cx::new(name, base, document, findings.problems, Vec::new());
        if let Some(value) = config {
            let located = Located {
                path: "spec".to_owned(),
                value,
            };
            let compiled = template::compile(&located, &mut cx);
            contexts.push((compiled.template.name.clone(), cx));
            all.insert(compiled.template.name.clone(), compiled);
        } else {
            problems.append(&mut cx.problems);
        }
    }
    for document in documents.iter().filter(|document| kind(document) == "Rollout") {
        let Some(spec) = document.get("spec").and_then(|spec| spec.get("strategy")) else {
            continue;
        };
        let mut findings = Findings::default();
        let config: Option<StrategyConfig> = decode(spec, name, &mut findings);
        let mut cx = Cx::new(name, base, document, findings.problems, Vec::new());
        let mut uses = Uses::default();
        let around = strategy::Around {
            rollback_window: None,
            progress_deadline: crate::model::Span::secs(600),
        };
        if let Some(config) = &config {
            strategy::compile(Some(config), "spec.strategy", around, &all, &mut uses, &mut cx);
        }
        problems.append(&mut cx.problems);
        for (template, cx) in contexts
            .iter_mut()
            .filter(|(template, _)| uses.bounded.contains(template))
        {
            if let Some(compiled) = all.get(template) {
                template::check_metrics(
                    &compiled.template,
                    &compiled.metric_paths,
                    Context::Inline,
                    true,
                    cx,
                );
            }
        }
    }
    problems.extend(contexts.into_iter().flat_map(|(_, cx)| cx.problems));
    for document in documents {
        hide_environment(document, &mut problems);
    }
    problems.sort_by(Problem::reading_order);
    problems.dedup();
    problems
}

/// `spec` with `metadata.name` as its name.
fn named_spec(document: &Node) -> Option<Node> {
    let mut spec = document.get("spec")?.clone();
    let name = document.get("metadata")?.get("name")?.clone();
    if let Kind::Map(entries) = &mut spec.kind {
        entries.push(Entry {
            key: "name".to_owned(),
            key_pos: name.pos,
            value: name,
        });
    }
    Some(spec)
}

/// Reads the files that `include` names, in the order of their names.
fn include(patterns: &[Located<String>], files: &mut Vec<File>, read_files: &mut Vec<PathBuf>, env: Env<'_>) {
    for Located {
        path: key,
        value: pattern,
    } in patterns
    {
        let main = &mut files[0].cx;
        let paths = match matching_files(&main.base, pattern) {
            Ok(paths) => paths,
            Err(what) => {
                main.error(
                    key,
                    what,
                    "name a file or a pattern such as conf.d/*.yaml, relative to this file",
                );
                continue;
            }
        };
        for path in paths {
            if read_files.contains(&path) {
                continue;
            }
            if read_files.len() >= MAX_FILES {
                files[0].cx.error(
                    key,
                    format!("more than {MAX_FILES} files are included"),
                    "join some",
                );
                return;
            }
            let name = path.display().to_string();
            read_files.push(path.clone());
            let text = match read(&path, &name) {
                Ok(text) => text,
                Err(problem) => {
                    files[0].cx.problems.push(problem);
                    continue;
                }
            };
            let base = directory(&path);
            match one_document(&text, &name, &base, env) {
                Err(mut problems) => files[0].cx.problems.append(&mut problems),
                Ok((mut findings, root)) => {
                    let config: IncludedConfig = decode(&root, &name, &mut findings).unwrap_or_default();
                    files.push(File {
                        cx: Cx::new(&name, &base, &root, findings.problems, findings.warnings),
                        root,
                        services: config.services,
                        templates: config.analysis_templates,
                    });
                }
            }
        }
    }
}

/// The files a pattern names; `*` and `?` only in the last part.
fn matching_files(base: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let path = base.join(pattern);
    let Some(last) = path.file_name().and_then(|last| last.to_str()) else {
        return Err(format!("`{pattern}` names no file"));
    };
    let folder = directory(&path);
    if folder.to_string_lossy().contains(['*', '?']) {
        return Err(format!("`{pattern}` has a wildcard in a directory"));
    }
    if !last.contains(['*', '?']) {
        return Ok(vec![path]);
    }
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) => {
            return Err(format!(
                "cannot read the directory `{}`: {error}",
                folder.display()
            ));
        }
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| {
            let name = entry.file_name();
            is_named(last.as_bytes(), name.as_encoded_bytes())
        })
        .map(|entry| folder.join(entry.file_name()))
        .collect();
    found.sort();
    Ok(found)
}

/// Whether a pattern names a file. Hidden ones only by name.
pub(super) fn is_named(pattern: &[u8], name: &[u8]) -> bool {
    pattern == name || !name.starts_with(b".") && wildcard(pattern, name)
}

/// `*` is any text, `?` any byte. Linear but for one step back to the last `*`.
fn wildcard(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[t] => {
                p += 1;
                t += 1;
            }
            Some(_) | None => match star {
                Some((star_p, star_t)) => {
                    star = Some((star_p, star_t + 1));
                    p = star_p + 1;
                    t = star_t + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Every template and the file it is from.
struct AllTemplates {
    all: Templates,
    file_of: BTreeMap<String, usize>,
    /// One of them could not be read: an unknown name may be its.
    faulty: bool,
}

fn compile_templates(files: &mut [File]) -> AllTemplates {
    let mut templates = AllTemplates {
        all: Templates::new(),
        file_of: BTreeMap::new(),
        faulty: files.iter().any(|file| file.cx.is_faulty("analysisTemplates")),
    };
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    for (index, file) in files.iter_mut().enumerate() {
        for config in &file.templates {
            let name = config.value.name.clone();
            let key = format!("{}.name", config.path);
            let compiled = template::compile(config, &mut file.cx);
            if name == strategy::BUILT_IN_GATE {
                file.cx.error(
                    &key,
                    format!("`{name}` is the name of the built-in judge"),
                    "choose another",
                );
            } else if let Some(place) = places.get(&name) {
                file.cx.error(
                    &key,
                    format!("there is a template `{name}` already, at {place}"),
                    "rename one",
                );
            } else {
                places.insert(name.clone(), file.cx.place(&key));
                templates.file_of.insert(name.clone(), index);
                templates.all.insert(name, compiled);
            }
        }
    }
    templates
}

fn compile_services(
    files: &mut [File],
    listeners: &[&str],
    templates: &AllTemplates,
    not_yet: &mut Vec<Problem>,
) -> Vec<super::Service> {
    let mut services: Vec<super::Service> = Vec::new();
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    let mut all = Uses::default();
    for file in files.iter_mut() {
        let mut uses = Uses {
            some_unreadable: templates.faulty,
            ..Uses::default()
        };
        for config in &file.services {
            let name = config.value.name.to_string();
            let key = format!("{}.name", config.path);
            if let Some(place) = places.get(&name) {
                file.cx.error(
                    &key,
                    format!("there is a service `{name}` already, at {place}"),
                    "rename one",
                );
                continue;
            }
            places.insert(name, file.cx.place(&key));
            let compiled = service::compile(config, listeners, &templates.all, &mut uses, &mut file.cx);
            match services.iter().find(|other| takes_everything(other)) {
                Some(other) if takes_everything(&compiled) => {
                    let what = format!("never gets a request: `{}` takes every request", other.name);
                    file.cx.warn(&key, what, "give one of them a match");
                }
                Some(_) | None => {}
            }
            services.push(compiled);
        }
        for (path, what) in uses.not_yet.drain(..) {
            not_yet.push(file.cx.not_yet(&path, &what));
        }
        all.templates.append(&mut uses.templates);
        all.bounded.append(&mut uses.bounded);
    }
    for (name, compiled) in &templates.all {
        let Some(file) = templates
            .file_of
            .get(name)
            .and_then(|index| files.get_mut(*index))
        else {
            continue;
        };
        if all.bounded.contains(name) {
            template::check_metrics(
                &compiled.template,
                &compiled.metric_paths,
                Context::Inline,
                true,
                &mut file.cx,
            );
        }
        if all.templates.contains(name) {
            advice::advise_template(compiled, &mut file.cx);
        } else {
            file.cx.warn(
                &compiled.path,
                format!("no strategy uses the template `{name}`"),
                "",
            );
        }
    }
    services
}

fn takes_everything(service: &super::Service) -> bool {
    service.matches.is_empty()
        || service
            .matches
            .iter()
            .any(crate::route::RouteMatch::is_everything)
}

fn check_addresses(
    listeners: &[super::Listener],
    admin: std::net::SocketAddr,
    telemetry: Option<std::net::SocketAddr>,
    cx: &mut Cx,
) {
    let mut taken = vec![("admin.address", admin)];
    taken.extend(telemetry.map(|address| ("telemetry.address", address)));
    let clash = |a: std::net::SocketAddr, b: std::net::SocketAddr| {
        a.port() == b.port()
            && a.port() != 0
            && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
    };
    for (index, (key, address)) in taken.iter().enumerate() {
        for listener in listeners {
            if matches!(listener.address, super::BindAddress::Tcp(other) if clash(*address, other)) {
                let what = format!("{address} is taken by the listener `{}`", listener.name);
                cx.error(key, what, "choose another port");
            }
        }
        for (other_key, other) in &taken[..index] {
            if clash(*address, *other) {
                cx.error(
                    key,
                    format!("{address} is taken by {other_key}"),
                    "choose another port",
                );
            }
        }
    }
}

fn finish(config: Config, files: Vec<File>, watched: &mut Vec<PathBuf>) -> Result<Loaded, Vec<Problem>> {
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    for mut file in files {
        hide_environment(&file.root, &mut file.cx.problems);
        hide_environment(&file.root, &mut file.cx.warnings);
        problems.append(&mut file.cx.problems);
        warnings.append(&mut file.cx.warnings);
        watched.append(&mut file.cx.read);
    }
    if problems.is_empty() {
        warnings.sort_by(Problem::reading_order);
        return Ok(Loaded {
            config: Arc::new(config),
            warnings,
            files: watched.clone(),
        });
    }
    problems.sort_by(Problem::reading_order);
    problems.dedup();
    Err(problems)
}
