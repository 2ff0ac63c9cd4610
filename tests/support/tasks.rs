//! Threads of a process: what they are called, how nice they are, and on which core they run.

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use std::path::Path;

/// One thread, as proc(5) describes it in `stat`.
#[derive(Debug)]
pub struct Task {
    pub id: i32,
    pub name: String,
    pub nice: i32,
}

impl Task {
    /// The calling thread.
    pub fn own() -> Task {
        Task::read(Path::new("/proc/thread-self")).unwrap()
    }

    /// Every thread of a process, but those that end meanwhile.
    pub fn all_of(process: u32) -> Vec<Task> {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let read = |task: std::io::Result<std::fs::DirEntry>| Task::read(&task.unwrap().path()).ok();
        tasks.filter_map(read).collect()
    }

    fn read(task: &Path) -> std::io::Result<Task> {
        let stat = std::fs::read_to_string(task.join("stat"))?;
        let (before, after) = stat.rsplit_once(") ").unwrap();
        let (id, name) = before.split_once(" (").unwrap();
        Ok(Task {
            id: id.parse().unwrap(),
            name: name.to_owned(),
            // The third field is the first one after the name.
            nice: after.split(' ').nth(19 - 3).unwrap().parse().unwrap(),
        })
    }

    /// Lets it run on this core alone, and what it starts from now on.
    pub fn stay_on(&self, core: usize) {
        let mut only = CpuSet::new();
        only.set(core);
        sched_setaffinity(Pid::from_raw(self.id), &only).unwrap();
    }
}

/// Two cores that this process may use, if there are.
pub fn two_cores() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(None).unwrap();
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    Some([cores.next()?, cores.next()?])
}

/// Does `work` on one core; threads and processes that it starts stay there.
pub fn on_core<T>(core: usize, work: impl FnOnce() -> T) -> T {
    struct Restores(CpuSet);
    impl Drop for Restores {
        fn drop(&mut self) {
            sched_setaffinity(None, &self.0).unwrap();
        }
    }
    let _restores = Restores(sched_getaffinity(None).unwrap());
    Task::own().stay_on(core);
    work()
}
