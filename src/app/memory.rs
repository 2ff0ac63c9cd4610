//! How much memory the process may have: what its control group and those around it allow, and how many clients that is for.

/// What Serin takes for itself: code, threads, the store, metrics, what workers keep at hand.
const ITSELF: u64 = 64 << 20;
/// What one client can make Serin hold by not reading its answer, or by sending faster than a version reads.
const EACH: u64 = 256 << 10;
/// However little there is.
const FEWEST: u64 = 8;
/// Beyond this it is no limit: version 1 says so with a very large number.
const UNLIMITED: u64 = 1 << 60;

/// The memory limit in bytes; none that is known, or none at all.
pub(super) fn limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_of(&groups, |path| std::fs::read_to_string(path).ok())
}

/// How many clients fit into that much memory, if each of them holds as much as it can.
pub(super) fn clients(limit: u64) -> u64 {
    (limit.saturating_sub(ITSELF) / EACH).max(FEWEST)
}

/// The least limit of the groups that `/proc/self/cgroup` lists (cgroups(7)), and of every group around them.
fn limit_of(groups: &str, read: impl Fn(&str) -> Option<String>) -> Option<u64> {
    let of_line = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (mounts, file): (&[&str], &str) = if controllers.is_empty() {
            (&["/sys/fs/cgroup", "/sys/fs/cgroup/unified"], "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (&["/sys/fs/cgroup/memory"], "memory.limit_in_bytes")
        } else {
            return None;
        };
        // In a container the path may be one of the host's: the root that is seen there has the limit.
        let mut around = vec![path.trim_end_matches('/')];
        while let Some((outer, _)) = around.last().and_then(|path| path.rsplit_once('/')) {
            around.push(outer);
        }
        let all = mounts
            .iter()
            .flat_map(|mount| around.iter().map(move |path| format!("{mount}{path}/{file}")));
        all.filter_map(|path| read(&path)?.trim().parse::<u64>().ok())
            .min()
    };
    groups
        .lines()
        .filter_map(of_line)
        .min()
        .filter(|limit| *limit < UNLIMITED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn limit_with(groups: &str, files: &[(&str, &str)]) -> Option<u64> {
        let files: BTreeMap<&str, &str> = files.iter().copied().collect();
        limit_of(groups, |path| files.get(path).map(|text| (*text).to_owned()))
    }

    #[test]
    fn the_narrowest_group_around_the_process_counts() {
        let files = [
            ("/sys/fs/cgroup/system.slice/memory.max", "268435456\n"),
            ("/sys/fs/cgroup/system.slice/serin.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/other/memory.max", "1000\n"),
        ];
        assert_eq!(
            limit_with("0::/system.slice/serin.service\n", &files),
            Some(256 << 20)
        );
    }

    #[test]
    fn a_container_sees_its_limit_at_the_root_whatever_path_the_host_has_for_it() {
        let files = [("/sys/fs/cgroup/memory.max", "134217728\n")];
        for path in ["/", "/docker/0123abcd", "/../../kubepods/pod1"] {
            assert_eq!(
                limit_with(&format!("0::{path}\n"), &files),
                Some(128 << 20),
                "{path}"
            );
        }
    }

    #[test]
    fn version_1_is_read_too_and_its_very_large_number_is_no_limit() {
        let groups = "5:cpu,cpuacct:/x\n4:memory:/a/b\n0::/\n";
        let of_a = "/sys/fs/cgroup/memory/a/memory.limit_in_bytes";
        assert_eq!(limit_with(groups, &[(of_a, "104857600\n")]), Some(100 << 20));
        assert_eq!(limit_with(groups, &[(of_a, "9223372036854771712\n")]), None);
    }

    #[test]
    fn without_groups_or_in_words_nobody_knows_there_is_no_limit() {
        assert_eq!(limit_with("", &[]), None);
        assert_eq!(
            limit_with("nonsense\n0:\n\n", &[("/sys/fs/cgroup/memory.max", "1")]),
            None
        );
        assert_eq!(
            limit_with("0::/\n", &[("/sys/fs/cgroup/memory.max", "plenty\n")]),
            None
        );
    }

    #[test]
    fn a_client_is_reckoned_with_what_it_can_hold() {
        assert_eq!(clients(128 << 20), 256);
        assert_eq!(clients(1 << 30), 3840);
        assert_eq!(clients(1 << 20), FEWEST);
    }
}
