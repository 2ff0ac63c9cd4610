//! Notices that a configuration's files have changed.
//!
//! Directories are watched, not files: editors and Kubernetes replace files by renaming, and a watch on a file would
//! follow the old one. Of what happens there only that counts which a configuration is made of: its files, whatever
//! `include` would name, and every link on the way to one of them (`..data` is what Kubernetes swaps). What changed is not
//! asked: whoever listens loads again and compares.

use super::load::is_named;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher, event::ModifyKind};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    known: Arc<Mutex<Known>>,
    events: mpsc::Receiver<()>,
    /// Something has changed that has not been told yet: whoever waited for it may have been called away.
    due: bool,
}

/// What the thread that hears of events shares with whoever waits for them.
#[derive(Debug, Default)]
struct Known {
    /// What counts: what else lies in the directories (the store!) is nobody's business.
    files: BTreeSet<PathBuf>,
    /// The directories that are watched, each with the device and inode it was when the watch began. One that has been
    /// removed or moved away is watched no more, whatever has its name now.
    watched: BTreeMap<PathBuf, (u64, u64)>,
}

impl Known {
    /// Whether the configuration may have changed by this.
    fn hears_of(&mut self, event: &Event) -> bool {
        if matches!(
            event.kind,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
        ) {
            for path in &event.paths {
                self.watched.remove(path);
            }
        }
        is_change(event, &self.files)
    }
}

impl Watch {
    /// Starts watching the directories of these files ([`super::Loaded::to_watch`]).
    pub fn new(files: &[PathBuf]) -> Result<Watch, WatchError> {
        // One place: a change that is already waiting to be told needs no second one.
        let (sender, events) = mpsc::channel(1);
        let known: Arc<Mutex<Known>> = Arc::default();
        let hearer = Arc::clone(&known);
        let handler = move |event: notify::Result<Event>| {
            let mut known = hearer.lock().unwrap_or_else(PoisonError::into_inner);
            if event.map_or(true, |event| known.hears_of(&event)) {
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
            known,
            events,
            due: false,
        };
        watch.follow(files)?;
        // The caller has not read them yet, or reads them again.
        watch.due = false;
        Ok(watch)
    }

    /// Watches these files from now on, and no others: after a reload that has read others. Directories stay watched. One
    /// that cannot be watched is told when all others are; where it is not there, the nearest one above it is watched instead,
    /// so that its coming is noticed. What happened in a directory before its watch began is not known: a new one is a change.
    pub fn follow(&mut self, files: &[PathBuf]) -> Result<(), WatchError> {
        let files: BTreeSet<PathBuf> = files.iter().flat_map(|file| way(file)).collect();
        let directories: BTreeSet<PathBuf> = files
            .iter()
            .filter_map(|file| file.parent().map(Path::to_owned))
            .collect();
        self.known().files = files;
        let mut result = Ok(());
        for directory in directories {
            if let Err(source) = self.watch_or_above(&directory) {
                let directory = directory.display().to_string();
                result = Err(WatchError { directory, source });
            }
        }
        result
    }

    /// Watches this directory, or until it is there the nearest one above it.
    fn watch_or_above(&mut self, directory: &Path) -> notify::Result<()> {
        let error = match self.watch(directory) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        for above in directory.ancestors().skip(1) {
            if self.watch(above).is_ok() {
                // It may have come between the two.
                return self.watch(directory).or(Err(error));
            }
        }
        Err(error)
    }

    /// Watches one directory. Each time, though it be watched already: under its name may be another one by now.
    fn watch(&mut self, directory: &Path) -> notify::Result<()> {
        let is = std::fs::metadata(directory).map_err(notify::Error::io)?;
        let is = (is.dev(), is.ino());
        // Before the watch begins, and not locked while it does: an event of its end must find it.
        let before = self.known().watched.insert(directory.to_owned(), is);
        let result = self.watcher.watch(directory, RecursiveMode::NonRecursive);
        if result.is_err() {
            self.known().watched.remove(directory);
        } else if before != Some(is) {
            self.due = true;
        }
        result
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something has changed and [`DEBOUNCE`] has passed without another change. `None`: the watch is dead. Who
    /// stops waiting loses nothing: the next one is told.
    pub async fn changed(&mut self) -> Option<()> {
        if !self.due {
            self.events.recv().await?;
            self.due = true;
        }
        let deadline = tokio::time::Instant::now() + LONGEST;
        loop {
            let quiet = tokio::time::timeout(DEBOUNCE, self.events.recv()).await;
            match quiet {
                Ok(Some(())) if tokio::time::Instant::now() < deadline => {}
                Err(_) | Ok(None | Some(())) => {
                    self.due = false;
                    return Some(());
                }
            }
        }
    }
}

/// Whether a configuration may have changed. Reading is no change (loading reads), and neither is what happens to
/// files that are no part of it, such as the store's.
fn is_change(event: &Event, files: &BTreeSet<PathBuf>) -> bool {
    // Closing a file after writing is the one kind of access that changes it.
    let closed = EventKind::Access(notify::event::AccessKind::Close(notify::event::AccessMode::Write));
    let written = event.kind == closed || !event.kind.is_access();
    written && (event.paths.is_empty() || event.paths.iter().any(|path| counts(path, files)))
}

/// Whether a path is one of these, matches a pattern among them, or is a directory on the way to one.
fn counts(path: &Path, files: &BTreeSet<PathBuf>) -> bool {
    let matches = |file: &PathBuf| {
        let (Some(pattern), Some(name)) = (file.file_name(), path.file_name()) else {
            return false;
        };
        let (pattern, name) = (pattern.as_encoded_bytes(), name.as_encoded_bytes());
        file.parent() == path.parent() && is_named(pattern, name) || file.starts_with(path)
    };
    files.contains(path) || files.iter().any(matches)
}

/// A file's place, and that of every link on the way to what is read in the end: who swaps one of them changes the file.
/// The directory of each is spelled in one way only, as the kernel knows one watch for it.
fn way(file: &Path) -> Vec<PathBuf> {
    // As many as the kernel follows.
    let mut links = 40;
    let whole = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let parts = |path: &Path| -> VecDeque<PathBuf> {
        path.components()
            .map(|part| PathBuf::from(part.as_os_str()))
            .collect()
    };
    let (mut found, mut at, mut left) = (Vec::new(), PathBuf::new(), parts(&whole));
    while let Some(part) = left.pop_front() {
        if part == Path::new("..") {
            at.pop();
            continue;
        }
        let place = at.join(part);
        match std::fs::read_link(&place) {
            Ok(target) if links > 0 => {
                links -= 1;
                found.push(place);
                let mut target = parts(&target);
                target.append(&mut left);
                left = target;
            }
            Ok(_) | Err(_) => at = place,
        }
    }
    found.push(at);
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
    async fn a_change_is_told_though_whoever_waited_for_it_was_called_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serin.yaml");
        fs::write(&path, "a").unwrap();
        let mut watch = Watch::new(std::slice::from_ref(&path)).unwrap();
        settle(&mut watch).await;
        fs::write(&path, "b").unwrap();
        while !watch.due {
            let called_away = tokio::time::timeout(DEBOUNCE / 10, watch.changed()).await;
            assert!(called_away.is_err(), "told before it was quiet");
        }
        assert!(told(&mut watch).await);
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

        for other in ["serin.db-wal", "other.yaml", "..else", ".serin.yaml.swp"] {
            fs::write(folder.path().join(other), "x").unwrap();
            assert!(
                tokio::time::timeout(DEBOUNCE * 3, watch.changed()).await.is_err(),
                "{other} is no part of it"
            );
        }

        let other = folder.path().join(".tmp");
        fs::write(&other, "b").unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(told(&mut watch).await, "a rename");
        fs::remove_file(&path).unwrap();
        assert!(told(&mut watch).await, "a removal");
    }

    #[tokio::test]
    async fn what_a_pattern_would_name_is_told_and_what_is_followed_no_more_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (file, teams) = (folder.path().join("serin.yaml"), folder.path().join("conf.d"));
        fs::create_dir(&teams).unwrap();
        fs::write(&file, "a").unwrap();
        let mut watch = Watch::new(&[file.clone(), teams.join("*.yaml")]).unwrap();
        settle(&mut watch).await;
        for other in ["a.yml", ".a.yaml"] {
            fs::write(teams.join(other), "x").unwrap();
        }
        let quiet = tokio::time::timeout(DEBOUNCE * 3, watch.changed()).await;
        assert!(quiet.is_err(), "neither is included");
        fs::write(teams.join("a.yaml"), "x").unwrap();
        assert!(told(&mut watch).await, "a new file");
        watch
            .follow(&[file, folder.path().join("conf.d/../else")])
            .unwrap();
        settle(&mut watch).await;
        fs::write(teams.join("a.yaml"), "x").unwrap();
        let quiet = tokio::time::timeout(DEBOUNCE * 3, watch.changed()).await;
        assert!(quiet.is_err(), "nothing is included any more");
        fs::write(folder.path().join("else"), "x").unwrap();
        assert!(told(&mut watch).await, "however its directory is spelled");
    }

    #[tokio::test]
    async fn a_swap_of_a_link_anywhere_on_the_way_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for release in ["1", "2"] {
            fs::create_dir_all(root.join("releases").join(release)).unwrap();
            fs::write(root.join("releases").join(release).join("serin.yaml"), release).unwrap();
        }
        fs::create_dir(root.join("etc")).unwrap();
        std::os::unix::fs::symlink("releases/1", root.join("current")).unwrap();
        std::os::unix::fs::symlink(root.join("current/serin.yaml"), root.join("etc/serin.yaml")).unwrap();
        let path = root.join("etc/serin.yaml");
        let mut watch = Watch::new(std::slice::from_ref(&path)).unwrap();
        settle(&mut watch).await;
        std::os::unix::fs::symlink("releases/2", root.join("next")).unwrap();
        fs::rename(root.join("next"), root.join("current")).unwrap();
        assert!(told(&mut watch).await);
        assert_eq!(fs::read_to_string(&path).unwrap(), "2");
    }

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

    /// The configuration `root/serin.yaml` with a directory beside it and one elsewhere, whose parent holds nothing of it.
    fn with_directories() -> (tempfile::TempDir, [PathBuf; 3]) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for directory in ["etc/conf.d", "run/secrets"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        let files = [
            root.join("etc/serin.yaml"),
            root.join("etc/conf.d/*.yaml"),
            root.join("run/secrets/token"),
        ];
        fs::write(&files[0], "a").unwrap();
        (folder, files)
    }

    #[tokio::test]
    async fn a_directory_that_is_replaced_under_its_name_is_a_change_and_is_watched_again() {
        let (folder, files) = with_directories();
        let root = folder.path();
        let mut watch = Watch::new(&files).unwrap();
        settle(&mut watch).await;
        for (directory, file) in [("etc/conf.d", "a.yaml"), ("run/secrets", "token")] {
            let directory = root.join(directory);
            // Removed, and moved away: under the name is another one.
            for moved in [false, true] {
                if moved {
                    fs::rename(&directory, root.join("old")).unwrap();
                } else {
                    fs::remove_dir_all(&directory).unwrap();
                }
                fs::create_dir(&directory).unwrap();
                assert!(told(&mut watch).await, "{} has gone", directory.display());
                settle(&mut watch).await;
                fs::write(directory.join(file), "before the watch").unwrap();
                watch.follow(&files).unwrap();
                assert!(told(&mut watch).await, "another {}", directory.display());
                settle(&mut watch).await;
                watch.follow(&files).unwrap();
                assert!(!watch.due, "once is enough");
                fs::write(directory.join(file), "an edit").unwrap();
                assert!(told(&mut watch).await, "an edit in {}", directory.display());
                settle(&mut watch).await;
            }
            fs::remove_dir_all(root.join("old")).unwrap();
        }
    }

    #[tokio::test]
    async fn a_directory_that_comes_later_is_a_change() {
        let (folder, files) = with_directories();
        let run = folder.path().join("run");
        let mut watch = Watch::new(&files).unwrap();
        fs::remove_dir_all(&run).unwrap();
        assert!(told(&mut watch).await);
        let error = watch.follow(&files).unwrap_err();
        assert!(error.to_string().contains("run/secrets"), "{error}");
        assert!(told(&mut watch).await, "what is watched instead is new");
        settle(&mut watch).await;
        fs::create_dir_all(run.join("secrets")).unwrap();
        assert!(told(&mut watch).await);
        watch.follow(&files).unwrap();
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = Watch::new(&[PathBuf::from("/nonexistent-serin/x.yaml")]).unwrap_err();
        assert!(error.to_string().contains("/nonexistent-serin"));
    }
}
