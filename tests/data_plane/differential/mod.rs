//! The same bytes through Serin to three back ends that read HTTP in their own ways: a strict reader, hyper and nginx.
//!
//! Whatever a client sends, each back end must see the same requests with the same bodies, no more of them than were answered,
//! and of what is well-formed exactly what was meant. A client's address is its case's number, so that Serin itself says
//! to which case a request belongs, however late it comes. `generate` makes the bytes, `backends` reads them.
//!
//! `SERIN_SEED` chooses other cases, `SERIN_FULL` runs many more (`benches/fuzz`).

mod backends;
mod generate;

use crate::support::{
    Serin, count, full_form, now,
    raw::{RawClient, fields},
    say,
};
use backends::{Backends, Seen};
use generate::{Case, Request};
use std::{
    collections::BTreeMap,
    io::Read,
    net::{Ipv4Addr, SocketAddr, TcpStream},
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

/// What Serin said to a client, from its first answer to the end of the connection.
#[derive(Debug)]
struct Said {
    /// Answers that came from the back end.
    forwarded: Vec<Answer>,
    /// The answer of Serin itself that ended the connection.
    refused: Option<u16>,
    /// Some time limit may have ended it.
    late: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// To a request that the back end has taken: its method, and what it made of it.
    Taken { method: String, digest: String },
    /// nginx would not have it.
    Declined(u16),
}

/// Sends a case's bytes and a last request, and reads everything that comes back. `methods`: of the requests that will be
/// answered, where that is known.
fn drive(case: &Case, to: SocketAddr, from: Ipv4Addr, methods: &[String]) -> Said {
    let begun = now();
    let mut client = RawClient::over(connect(to, from));
    for piece in case.pieces() {
        if !client.send(piece) {
            break;
        }
    }
    let mut said = Said {
        forwarded: Vec::new(),
        refused: None,
        late: false,
    };
    loop {
        let place = said.forwarded.len();
        let method = |head: &str| {
            let told = fields(head, "x-method")
                .first()
                .map(|method| (*method).to_owned());
            told.or(methods.get(place).cloned()).unwrap_or_default()
        };
        let Some(answer) = client.answer_of(method) else {
            let half = client.reader.buffer.escape_ascii().to_string();
            assert!(
                client.is_closed(),
                "the connection stays open, or half an answer: {half}"
            );
            said.late = begun.elapsed() > LIMIT;
            return said;
        };
        match (answer.status, fields(&answer.head, "x-digest").first()) {
            (100, _) => {}
            (200, Some(digest)) => {
                assert!(answer.whole, "half an answer: {answer:?}");
                said.forwarded.push(Answer::Taken {
                    method: fields(&answer.head, "x-method").concat(),
                    digest: (*digest).to_owned(),
                });
            }
            (status, _)
                if fields(&answer.head, "server")
                    .iter()
                    .any(|name| name.starts_with("nginx")) =>
            {
                said.forwarded.push(Answer::Declined(status));
            }
            (status, _) => {
                // Nothing comes after a refusal; to HEAD it has no body, whatever it says of its length.
                let mut rest = client.reader.buffer.split_off(0);
                let _ = client.reader.stream.read_to_end(&mut rest);
                assert!(rest.is_empty(), "after a refusal: {}", rest.escape_ascii());
                said.refused = Some(status);
                said.late = begun.elapsed() > LIMIT;
                return said;
            }
        }
    }
}

fn connect(to: SocketAddr, from: Ipv4Addr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

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
    fn holds(&self, number: usize, case: &Case) {
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

    fn ask(&self, case: &Case, from: Ipv4Addr) -> [Said; 3] {
        let strict = drive(case, self.to[0], from, &[]);
        let methods: Vec<String> = strict
            .forwarded
            .iter()
            .map(|answer| answer.method().to_owned())
            .collect();
        let hyper = drive(case, self.to[1], from, &[]);
        let nginx = drive(case, self.to[2], from, &methods);
        [strict, hyper, nginx]
    }

    fn check(&self, case: &Case, from: Ipv4Addr, [strict, hyper, nginx]: &[Said; 3]) {
        let seen = self
            .backends
            .seen(from, [strict, hyper, nginx].map(|said| said.taken().len()));
        for one in seen.iter().flatten() {
            assert_eq!(
                one.malformed, None,
                "forwarded what cannot be read in one way: {one:?}"
            );
        }
        let whole = |said: &Said| (said.forwarded.clone(), said.refused);
        assert_eq!(
            whole(strict),
            whole(hyper),
            "hyper sees something else: {:?} and {:?}",
            seen[0],
            seen[1]
        );
        assert_eq!(strict.refused, nginx.refused, "another end with nginx");
        assert_eq!(
            strict.forwarded.len(),
            nginx.forwarded.len(),
            "more or fewer with nginx: {seen:?}"
        );
        for (place, (answer, of_nginx)) in strict.forwarded.iter().zip(&nginx.forwarded).enumerate() {
            let policy = || seen[0].get(place).is_some_and(Seen::nginx_declines);
            assert!(
                answer == of_nginx || (matches!(of_nginx, Answer::Declined(_)) && policy()),
                "nginx sees something else: {answer:?} and {of_nginx:?}: {:?}",
                seen[0].get(place)
            );
        }
        for (said, seen) in [strict, hyper, nginx].into_iter().zip(&seen) {
            let digests: Vec<String> = seen.iter().map(Seen::digest).collect();
            assert_eq!(
                said.taken(),
                digests,
                "one request more or less than was answered: {seen:?}"
            );
        }
        is_as_meant(case, strict, &seen[0]);
        self.tally(strict, nginx);
    }

    fn tally(&self, strict: &Said, nginx: &Said) {
        let declined = |answer: &&Answer| matches!(answer, Answer::Declined(_));
        let declined = nginx.forwarded.iter().filter(declined).count();
        let end = strict.refused.map_or("served to the end".to_owned(), |status| {
            format!("refused with {status}")
        });
        let mut tally = self.tally.lock().unwrap();
        for (what, n) in [
            (end.as_str(), 1),
            ("requests", strict.forwarded.len()),
            ("declined by nginx", declined),
        ] {
            *tally.entry(what.to_owned()).or_default() += u64::try_from(n).unwrap();
        }
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

impl Answer {
    fn method(&self) -> &str {
        match self {
            Answer::Taken { method, .. } => method,
            Answer::Declined(_) => "",
        }
    }
}

impl Said {
    fn taken(&self) -> Vec<String> {
        let digest = |answer: &Answer| match answer {
            Answer::Taken { digest, .. } => Some(digest.clone()),
            Answer::Declined(_) => None,
        };
        self.forwarded.iter().filter_map(digest).collect()
    }
}

/// What was sent before anything was damaged arrives as it was meant, and a case without damage is served to its end.
fn is_as_meant(case: &Case, said: &Said, seen: &[Seen]) {
    let meant: Vec<&Request> = case.undamaged().collect();
    assert!(
        seen.len() >= meant.len(),
        "{} of {} well-formed requests: {said:?}",
        seen.len(),
        meant.len()
    );
    for (request, seen) in meant.iter().zip(seen) {
        assert_eq!(request.seen(), *seen, "not as it was meant");
    }
    if case.damage.is_none() {
        assert_eq!(said.refused, None, "a well-formed case is refused");
        assert_eq!(seen.len(), meant.len(), "more than was meant: {seen:?}");
    }
}

/// 127.0.0.1 is everybody else's.
fn address(number: usize, chance: u8) -> Ipv4Addr {
    let [.., high, middle, low] = number.to_be_bytes();
    assert!(number < 1 << 22);
    Ipv4Addr::new(127, 64 * chance + high, middle, low)
}

/// Runs the cases on a few clients at once; the first that does not hold is told with its bytes.
fn run(rig: &Rig, cases: impl Fn(usize) -> Option<Case> + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while let Some((number, case)) = {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    cases(number).map(|case| (number, case))
                } {
                    let whole = || rig.holds(number, &case);
                    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(whole)) {
                        next.store(usize::MAX / 2, Ordering::Relaxed);
                        let why = panic.downcast_ref::<String>().map_or("no words", String::as_str);
                        panic!(
                            "{} does not hold: {why}\nthe bytes: b\"{}\"",
                            case.name,
                            case.bytes.escape_ascii()
                        );
                    }
                }
            });
        }
    });
    rig.ends();
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
    let seed: u64 = std::env::var("SERIN_SEED").map_or(1, |seed| seed.parse().unwrap());
    let corpus = corpus();
    assert!(corpus.len() > 20);
    let mut cases: Vec<Case> = corpus
        .iter()
        .map(|(name, bytes)| Case::raw(name, bytes))
        .collect();
    let total = usize::try_from(full_form(600, 60_000)).unwrap();
    let (begun, mut from) = (now(), 0);
    while from < total {
        let rig = Rig::start();
        let known = std::mem::take(&mut cases);
        run(&rig, |number| match known.get(number) {
            Some(case) => Some(case.clone()),
            None => {
                let number = from + number - known.len();
                (number < total.min(from + ROUND)).then(|| generate::case(seed, number, &corpus))
            }
        });
        from += ROUND;
    }
    say(&format!(
        "differential, SERIN_SEED={seed}: {total} cases and {} of the corpus in {:?}",
        corpus.len(),
        begun.elapsed()
    ));
}
