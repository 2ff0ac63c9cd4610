//! Which threads come first when there are fewer cores than threads that have something to do.
//!
//! A client waits for a worker in microseconds. Who scrapes metrics, asks the admin API or looks at a rollout waits in
//! milliseconds, and may ask for as much as it likes. To the kernel all threads are alike: a worker that wakes up waits until
//! those who write a scrape have had their slices. So every thread that is no worker is made nicer (setpriority(2): on Linux
//! each thread has a value of its own, and those that it starts begin with it). A thread that starts others says so itself;
//! none is left out, for one that nobody thought of is one that workers wait for.
//!
//! Nicer is less, not nothing: the kernel divides by weight (sched(7)), so rollouts go on beside the busiest workers, and
//! a thread that holds a lock which a worker wants (an endpoint's health, the queue for a connection) lets go of it soon. Values
//! are compared within a control group and, with `sched_autogroup_enabled`, within a session: other processes notice nothing.

use rustix::{io, process};
use std::sync::{Once, OnceLock};

/// How much nicer. Of a core that a worker wants as well such a thread gets a tenth: the weights are 110 and 1024.
const NICER: i32 = 10;
/// The nicest that there is.
const MOST: i32 = 19;

/// The calling thread gives way to workers from now on, and so do threads that it starts. Where that is forbidden, all stay
/// equal, which is said once.
pub fn give_way() {
    static UNHEARD: Once = Once::new();
    // Elsewhere a whole process has one value.
    if cfg!(target_os = "linux")
        && let Err(error) = be_nicer()
    {
        UNHEARD.call_once(|| {
            tracing::warn!(%error, "workers do not come before other threads: setpriority is not allowed");
        });
    }
}

/// Absolute, so that it does not add up: a thread may have been started by one that is nicer already.
fn be_nicer() -> io::Result<()> {
    // What the process was started with, for whoever comes first was started by one that is not nicer yet.
    static USUAL: OnceLock<i32> = OnceLock::new();
    let own = process::getpriority_process(None)?;
    let wanted = (USUAL.get_or_init(|| own) + NICER).min(MOST);
    if own < wanted {
        process::setpriority_process(None, wanted)?;
    }
    Ok(())
}

/// Does `work` on a thread that gives way, for the threads that it starts.
pub fn giving_way<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let gives_way = || {
        give_way();
        work()
    };
    std::thread::scope(|scope| scope.spawn(gives_way).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
