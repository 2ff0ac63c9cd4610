//! A control group of a test's own, whose memory is limited.

use std::path::{Path, PathBuf};

/// Goes with its handle, once everything in it has ended.
pub struct Group {
    path: PathBuf,
    /// The first version of control groups.
    first: bool,
}

impl Group {
    /// One inside the test's own group, for so many bytes. None where groups cannot be made, which is said.
    pub fn limited_to(bytes: u64) -> Option<Group> {
        let name = format!("serin-test-{}", std::process::id());
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let of = |line: &str| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
            let first = controllers == "memory";
            let mount = Path::new(if first {
                "/sys/fs/cgroup/memory"
            } else {
                "/sys/fs/cgroup"
            });
            (first || controllers.is_empty())
                .then(|| (first, mount.join(path).join(&name), mount.join(&name)))
        };
        for (first, inside, beside) in own.lines().filter_map(of) {
            for path in [inside, beside] {
                let group = Group { path, first };
                if group.make(bytes).is_ok() {
                    return Some(group);
                }
            }
        }
        eprintln!("skipped: a control group with limited memory cannot be made here");
        None
    }

    fn make(&self, bytes: u64) -> std::io::Result<()> {
        std::fs::create_dir(&self.path)?;
        let file = if self.first {
            "memory.limit_in_bytes"
        } else {
            "memory.max"
        };
        std::fs::write(self.path.join(file), bytes.to_string())
    }

    /// A program that starts another one in the group.
    pub fn starter(&self) -> [String; 3] {
        let join = format!(
            "echo $$ > '{}/cgroup.procs' && exec \"$0\" \"$@\"",
            self.path.display()
        );
        ["sh".to_owned(), "-c".to_owned(), join]
    }

    /// The most memory that was in use at once, in bytes, and how many processes were killed for it.
    pub fn most_and_killed(&self) -> (u64, u64) {
        let read = |file: &str| std::fs::read_to_string(self.path.join(file)).unwrap();
        let (peak, events) = if self.first {
            ("memory.max_usage_in_bytes", "memory.oom_control")
        } else {
            ("memory.peak", "memory.events")
        };
        let killed = read(events);
        let killed = killed.lines().find_map(|line| line.strip_prefix("oom_kill "));
        (
            read(peak).trim().parse().unwrap(),
            killed.unwrap().parse().unwrap(),
        )
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.path);
    }
}
