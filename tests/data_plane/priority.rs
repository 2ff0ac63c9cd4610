//! Workers come first: every other thread of Serin's is nicer than they are, whoever has started it, and few are busy at once.

use crate::support::{HEAD, Serin, get, tasks::Task, upstream::Upstream};
use std::collections::BTreeMap;

/// How nice the threads of these names are: the lowest and the highest value of each.
fn niceness(serin: &Serin) -> BTreeMap<String, (i32, i32)> {
    let mut all = BTreeMap::new();
    for Task { name, nice, .. } in Task::all_of(serin.pid()) {
        let (low, high) = all.entry(name).or_insert((nice, nice));
        (*low, *high) = ((*low).min(nice), (*high).max(nice));
    }
    all
}

/// A Serin that has done everything that starts threads: it logs, stores, watches its file, and has read it again.
fn start_by(starter: &[&str]) -> Serin {
    let v1 = Upstream::start("v1");
    let serin = Serin::start_by(
        starter,
        &format!(
            "{HEAD}accessLog: {{path: access.log}}
services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
            v1.url()
        ),
    );
    assert_eq!(get(serin.web, "/").0, 200);
    serin.signal("HUP");
    serin.wait_log("configuration reloaded");
    assert_eq!(get(serin.admin, "/metrics").0, 200);
    serin
}

#[test]
fn workers_come_before_every_other_thread() {
    let all = niceness(&start_by(&[]));
    let of_workers = all["worker-0"];
    let own = Task::own().nice;
    assert_eq!(of_workers, (own, own), "as whoever starts it");
    for name in ["control", "store", "access-log"] {
        assert!(all.contains_key(name), "{name}: {all:?}");
    }
    for (name, (low, high)) in all {
        if !name.starts_with("worker-") {
            let wanted = (own + 10).min(19);
            assert_eq!((low, high), (wanted, wanted), "{name}");
        }
    }
}

#[test]
fn who_was_made_nice_by_its_operator_stays_so_and_its_workers_come_first_all_the_same() {
    let all = niceness(&start_by(&["nice", "-n", "15"]));
    let own = Task::own().nice;
    let workers = (own + 15).min(19);
    assert_eq!(all["worker-0"], (workers, workers));
    assert_eq!(all["control"], (19, 19), "there is nothing above: {all:?}");
}

#[test]
fn who_scrapes_waits_for_who_scraped_before_so_that_few_threads_are_busy_with_it() {
    let v1 = Upstream::start("v1");
    let serin = Serin::start(&format!(
        "services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        v1.url()
    ));
    let threads = || Task::all_of(serin.pid()).len();
    let (admin, before) = (serin.admin, threads());
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(move || (0..30).for_each(|_| assert_eq!(get(admin, "/metrics").0, 200)));
        }
    });
    // Those that have been started stay for seconds. One writes; others may have been woken for what it had done meanwhile.
    let more = threads() - before;
    assert!(more < 32, "{more} more threads for 64 scrapes at once");
}
