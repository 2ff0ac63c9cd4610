//! The same bytes through Serin to three back ends that read HTTP in their own ways: a strict reader, hyper and nginx.
//!
//! Whatever a client sends, each back end must see the same requests with the same bodies, no more of them than were answered,
//! and of what is well-formed exactly what was meant. A client's address is its case's number, so that Serin itself says
//! to which case a request belongs, however late it comes. `generate` makes the bytes, `backends` reads them.
//!
//! `SERIN_SEED` chooses other cases, `SERIN_FULL` runs many more; `benches/fuzz` takes seed after seed.

mod backends;
mod http1;
mod http2;
mod request;
mod said;

use crate::support::{Serin, count, full_form, now, say};
use backends::{Backends, Seen};
use said::{Answer, Client, Said};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    panic::AssertUnwindSafe,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Serin's time limits here are all one second: what took this long may have met one.
const LIMIT: Duration = Duration::from_millis(900);
const LONG: Duration = Duration::from_secs(20);
/// Back ends and Serin are started anew after so many cases: what they remember is bounded.
const ROUND: usize = 3000;
const CLIENTS: usize = 8;

/// Serin with a listener for each back end.
struct Rig {
    serin: Serin,
    backends: Backends,
    to: [SocketAddr; 3],
    /// How the cases ended.
    tally: Mutex<BTreeMap<String, u64>>,
}

impl Rig {
    fn start() -> Rig {
        let backends = Backends::start();
        let names = ["web", "hyper", "nginx"];
        // What a client does not send in time is as good as never sent; it sends everything at once.
        let limits = "timeouts: {requestHeaders: 1s, bodyIdle: 1s, keepAlive: 1s}";
        let listeners = names.map(|name| format!("- {{name: {name}, address: \"127.0.0.1:0\", {limits}}}\n"));
        let services = names.iter().zip(backends.urls()).map(|(name, url)| {
            format!(
                "- {{name: {name}, match: [{{listener: {name}}}], stable: {{version: v1, endpoints: [\"{url}\"]}}}}\n"
            )
        });
        let serin = Serin::start_with(&format!(
            "listeners:\n{}admin: {{address: \"127.0.0.1:0\"}}\nservices:\n{}",
            listeners.concat(),
            services.collect::<String>()
        ));
        let log = serin.log();
        let to = names.map(|name| {
            let mark = format!("listener `{name}` at http://");
            let at = log.find(&mark).unwrap() + mark.len();
            log[at..].split_whitespace().next().unwrap().parse().unwrap()
        });
        Rig {
            serin,
            backends,
            to,
            tally: Mutex::default(),
        }
    }

    /// One case, whose number is its client's address. A client that was held up for longer than the time limits gets another
    /// chance: what is asked is whether the back ends agree.
    fn holds(&self, number: usize, case: &dyn Client) {
        for chance in 1.. {
            let from = address(number, chance);
            let said = self.ask(case, from);
            let late = said.iter().any(|said| said.late);
            let check = || self.check(case, from, &said);
            match std::panic::catch_unwind(AssertUnwindSafe(check)) {
                Ok(()) => return,
                Err(_) if late && chance < 3 => {}
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    }

    fn ask(&self, case: &dyn Client, from: Ipv4Addr) -> [Said; 3] {
        let strict = case.drive(self.to[0], from, &[]);
        let hyper = case.drive(self.to[1], from, &[]);
        let nginx = case.drive(self.to[2], from, &strict.methods());
        [strict, hyper, nginx]
    }

    fn check(&self, case: &dyn Client, from: Ipv4Addr, said: &[Said; 3]) {
        let [strict, hyper, nginx] = said;
        let seen = self
            .backends
            .seen(from, said.each_ref().map(|said| said.taken().len()));
        for one in seen.iter().flatten() {
            assert_eq!(
                one.malformed, None,
                "forwarded what can be read in two ways: {one:?}"
            );
        }
        let seen = [0, 1, 2].map(|which| answered(case, &said[which], &seen[which]));
        assert_eq!(
            strict.answers, hyper.answers,
            "hyper sees something else: {:?} and {:?}",
            seen[0], seen[1]
        );
        // What is declined before its body was asked for (`Expect`) ends the connection: the rest is never read.
        let cut = matches!(nginx.answers.last(), Some(Answer::Declined(_)))
            && nginx.answers.len() < strict.answers.len();
        assert!(
            cut || strict.answers.len() == nginx.answers.len(),
            "nginx sees more or less: {:?} and {:?}",
            seen[0],
            seen[2]
        );
        let mut taken = seen[0].iter();
        for (answer, of_nginx) in strict.answers.iter().zip(&nginx.answers) {
            let declines = match answer {
                Answer::Taken { .. } => taken.next().is_some_and(Seen::nginx_declines),
                Answer::Declined(_) | Answer::Refused(_) => false,
            };
            assert!(
                answer == of_nginx || (declines && matches!(of_nginx, Answer::Declined(_))),
                "nginx sees something else: {answer:?} and {of_nginx:?}: {:?} and {:?}",
                seen[0],
                seen[2]
            );
        }
        case.is_as_meant(strict, &seen[0]);
        self.tally(said);
    }

    fn tally(&self, [strict, _, nginx]: &[Said; 3]) {
        let mut tally = self.tally.lock().unwrap();
        let mut one = |what: &str| *tally.entry(what.to_owned()).or_default() += 1;
        for answer in &strict.answers {
            match answer {
                Answer::Taken { .. } => one("taken"),
                Answer::Refused(why) => one(&format!("refused with {why}")),
                Answer::Declined(_) => {}
            }
        }
        nginx
            .answers
            .iter()
            .filter(|answer| matches!(answer, Answer::Declined(_)))
            .for_each(|_| one("declined by nginx"));
    }

    /// That nothing came late, and everything was counted.
    fn ends(&self) {
        assert_eq!(
            self.backends.left(),
            Vec::<String>::new(),
            "requests that came after their answers"
        );
        let metrics = self.serin.metrics();
        let tally = self.tally.lock().unwrap();
        say(&format!("differential: {tally:?}"));
        let refused: u64 = tally
            .iter()
            .filter(|(end, _)| end.starts_with("refused"))
            .map(|(_, n)| n)
            .sum();
        assert!(
            count(&metrics, "serin_http_rejected_total", &[]) >= 3 * refused,
            "refusals that are not counted"
        );
        assert_eq!(count(&metrics, "serin_panics_total", &[]), 0);
    }
}

/// Of what was seen that which was answered; nothing else may have been.
fn answered(case: &dyn Client, said: &Said, seen: &[Seen]) -> Vec<Seen> {
    let mut rest = seen.iter().peekable();
    let mut answered = Vec::new();
    for (place, answer) in said.answers.iter().enumerate() {
        match answer {
            Answer::Taken { digest, .. } => {
                let next = rest.next().filter(|next| next.digest() == *digest);
                assert!(
                    next.is_some(),
                    "another request than was answered: {seen:?}, {said:?}"
                );
                answered.extend(next.cloned());
            }
            Answer::Refused(_) if case.may_arrive(place) => {
                let later = said.answers[place..].iter().find_map(Answer::digest);
                rest.next_if(|next| next.body.is_empty() && Some(next.digest().as_str()) != later);
            }
            Answer::Refused(_) | Answer::Declined(_) => {}
        }
    }
    assert_eq!(
        rest.next(),
        None,
        "one request more than was answered: {seen:?}, {said:?}"
    );
    answered
}

/// 127.0.0.1 is everybody else's.
fn address(number: usize, chance: u8) -> Ipv4Addr {
    let [.., high, middle, low] = number.to_be_bytes();
    assert!(number < 1 << 22);
    Ipv4Addr::new(127, 64 * chance + high, middle, low)
}

/// Runs the cases on a few clients at once; the first that does not hold is told with what it sends.
fn run<C: Client>(rig: &Rig, cases: impl Fn(usize) -> Option<C> + Sync) {
    let next = AtomicUsize::new(0);
    let one = || {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(case) = cases(number) else { return false };
        let holds = || rig.holds(number, &case);
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(holds)) {
            next.store(usize::MAX / 2, Ordering::Relaxed);
            let why = panic.downcast_ref::<String>().map_or("no words", String::as_str);
            panic!(
                "{} does not hold: {why}\nwhat was sent: {}",
                case.name(),
                case.shown()
            );
        }
        true
    };
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| while one() {});
        }
    });
    rig.ends();
}

fn seed() -> u64 {
    std::env::var("SERIN_SEED").map_or(1, |seed| seed.parse().unwrap())
}

/// That many cases in rounds, each of them with a Serin of its own; `make` is given a case's number.
fn rounds<C: Client>(name: &str, total: u64, make: impl Fn(usize) -> C + Sync) {
    let total = usize::try_from(total).unwrap();
    let begun = now();
    for from in (0..total).step_by(ROUND) {
        run(&Rig::start(), |number| {
            let number = from + number;
            (number < total.min(from + ROUND)).then(|| make(number))
        });
    }
    say(&format!(
        "differential, {name}, SERIN_SEED={}: {total} cases in {:?}",
        seed(),
        begun.elapsed()
    ));
}

/// The corpus beside the fuzz targets: what was found once, and what is known to divide readers.
fn corpus() -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/differential");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| {
        let entry = entry.unwrap();
        (
            entry.file_name().into_string().unwrap(),
            std::fs::read(entry.path()).unwrap(),
        )
    });
    files.collect()
}

#[test]
fn every_back_end_sees_the_same_requests_and_none_that_was_not_answered() {
    let (seed, corpus) = (seed(), corpus());
    assert!(corpus.len() > 20);
    let known: Vec<http1::Case> = corpus
        .iter()
        .map(|(name, bytes)| http1::Case::raw(name, bytes))
        .collect();
    rounds("HTTP/1.1", full_form(600, 60_000), |number| {
        match known.get(number) {
            Some(case) => case.clone(),
            None => http1::case(seed, number, &corpus),
        }
    });
}

#[test]
fn what_comes_by_http2_is_the_same_for_every_back_end_too() {
    let seed = seed();
    rounds("HTTP/2", full_form(400, 40_000), |number| {
        http2::case(seed, number)
    });
}
