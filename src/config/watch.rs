//! Notices that a configuration's files have changed.
//!
//! Directories are watched, not files: editors and Kubernetes replace files by renaming, and a watch on a file would
//! follow the old one. What changed is not asked: whoever listens loads again and compares.

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::mpsc;

/// Writes that follow each other within this time are one change.
pub const DEBOUNCE: Duration = Duration::from_millis(100);
/// However busy the directory is, a change is told after this time.
const LONGEST: Duration = Duration::from_secs(1);

/// A watch that could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("watch the directory `{directory}` for changes of the configuration")]
pub struct WatchError {
    directory: String,
    source: notify::Error,
}

/// Watches the directories of a configuration's files for as long as it lives.
#[derive(Debug)]
pub struct Watch {
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
    /// Names of the files themselves: what else lies in their directories (the store!) is nobody's business.
    names: Arc<Mutex<BTreeSet<OsString>>>,
    events: mpsc::Receiver<()>,
}

impl Watch {
    /// Starts watching the directories of these files ([`super::Loaded::to_watch`]).
    pub fn new(files: &[PathBuf]) -> Result<Watch, WatchError> {
        // One place: a change that is already waiting to be told needs no second one.
        let (sender, events) = mpsc::channel(1);
        let names: Arc<Mutex<BTreeSet<OsString>>> = Arc::default();
        let known = Arc::clone(&names);
        let handler = move |event: notify::Result<Event>| {
            let known = known.lock().unwrap_or_else(PoisonError::into_inner);
            if event.map_or(true, |event| is_change(&event, &known)) {
                // Full means that somebody will look anyway; closed means that nobody does.
                let _ = sender.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(handler).map_err(|source| WatchError {
            directory: String::new(),
            source,
        })?;
        let mut watch = Watch {
            watcher,
            watched: BTreeSet::new(),
            names,
            events,
        };
        watch.also(files)?;
        Ok(watch)
    }

    /// Watches more directories, after a reload that included other files. Old ones stay watched.
    pub fn also(&mut self, files: &[PathBuf]) -> Result<(), WatchError> {
        let names = files
            .iter()
            .filter_map(|file| file.file_name())
            .map(OsString::from);
        self.names
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(names);
        for directory in directories(files) {
            if self.watched.contains(&directory) {
                continue;
            }
            let watched = self.watcher.watch(&directory, RecursiveMode::NonRecursive);
            watched.map_err(|source| WatchError {
                directory: directory.display().to_string(),
                source,
            })?;
            self.watched.insert(directory);
        }
        Ok(())
    }

    /// Waits until something has changed and [`DEBOUNCE`] has passed without another change. `None`: the watch is dead.
    pub async fn changed(&mut self) -> Option<()> {
        self.events.recv().await?;
        let deadline = tokio::time::Instant::now() + LONGEST;
        loop {
            let quiet = tokio::time::timeout(DEBOUNCE, self.events.recv()).await;
            match quiet {
                Err(_) | Ok(None) => return Some(()),
                Ok(Some(())) if tokio::time::Instant::now() >= deadline => return Some(()),
                Ok(Some(())) => {}
            }
        }
    }
}

/// Whether a configuration may have changed. Reading is no change (loading reads), and neither is what happens to
/// files that are no part of it, such as the store's.
fn is_change(event: &Event, names: &BTreeSet<OsString>) -> bool {
    // Closing a file after writing is the one kind of access that changes it.
    let closed = EventKind::Access(notify::event::AccessKind::Close(notify::event::AccessMode::Write));
    let written = event.kind == closed || !event.kind.is_access();
    let ours = |path: &PathBuf| {
        let Some(name) = path.file_name() else { return true };
        let yaml = path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        // `..data` is what Kubernetes swaps.
        yaml || names.contains(name) || name.to_string_lossy().starts_with("..")
    };
    written && (event.paths.is_empty() || event.paths.iter().any(ours))
}

/// The directories of files and, where a file or its directory is a symlink, of what it leads to: Kubernetes swaps
/// `..data` in the directory itself, others swap the target.
fn directories(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let parent = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    };
    let mut found = BTreeSet::new();
    for file in files {
        found.insert(parent(file));
        if let Ok(real) = file.canonicalize() {
            let directory = parent(&real);
            if parent(file).canonicalize().ok().as_ref() != Some(&directory) {
                found.insert(directory);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    async fn told(watch: &mut Watch) -> bool {
        tokio::time::timeout(Duration::from_secs(10), watch.changed())
            .await
            .is_ok_and(|told| told.is_some())
    }

    /// Nothing waits to be told: what the set-up did is drained.
    async fn settle(watch: &mut Watch) {
        while tokio::time::timeout(DEBOUNCE * 3, watch.events.recv())
            .await
            .is_ok()
        {}
    }

    #[tokio::test]
    async fn a_write_a_rename_and_a_symlink_swap_are_each_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serin.yaml");
        fs::write(&path, "a").unwrap();
        let mut watch = Watch::new(std::slice::from_ref(&path)).unwrap();
        settle(&mut watch).await;

        for n in 0..20 {
            fs::write(&path, format!("{n}")).unwrap();
        }
        assert!(told(&mut watch).await, "a write");
        let quiet = tokio::time::timeout(DEBOUNCE * 3, watch.changed()).await;
        assert!(
            quiet.is_err(),
            "twenty writes are one change, and reading is none"
        );
        fs::read_to_string(&path).unwrap();
        assert!(
            tokio::time::timeout(DEBOUNCE * 3, watch.changed()).await.is_err(),
            "reading is none"
        );

        fs::write(folder.path().join("serin.db-wal"), "x").unwrap();
        assert!(
            tokio::time::timeout(DEBOUNCE * 3, watch.changed()).await.is_err(),
            "the store is no configuration"
        );

        let other = folder.path().join(".tmp");
        fs::write(&other, "b").unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(told(&mut watch).await, "a rename");
        fs::remove_file(&path).unwrap();
        assert!(told(&mut watch).await, "a removal");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_kubernetes_swap_of_the_data_directory_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for (version, text) in [("..v1", "1"), ("..v2", "2")] {
            fs::create_dir(root.join(version)).unwrap();
            fs::write(root.join(version).join("serin.yaml"), text).unwrap();
        }
        std::os::unix::fs::symlink("..v1", root.join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/serin.yaml", root.join("serin.yaml")).unwrap();
        let path = root.join("serin.yaml");
        let mut watch = Watch::new(std::slice::from_ref(&path)).unwrap();
        settle(&mut watch).await;
        std::os::unix::fs::symlink("..v2", root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        assert!(told(&mut watch).await);
        assert_eq!(fs::read_to_string(&path).unwrap(), "2");
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = Watch::new(&[PathBuf::from("/nonexistent-serin/x.yaml")]).unwrap_err();
        assert!(error.to_string().contains("/nonexistent-serin"));
    }
}
