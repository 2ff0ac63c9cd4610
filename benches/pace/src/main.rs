//! How long are answers in coming at a fixed rate, counted from when each request was due?
//!
//! An open loop: request n is due at n / RATE, whatever became of those before it. One that has to wait for a free
//! connection, or for this process, has waited all the same, so an upstream that stands still is charged with every
//! request that would have been sent meanwhile (what is called correction for coordinated omission). One thread, one
//! timer; connections take turns. `benches/compare` runs it and reads the line of JSON that it prints.

#![allow(clippy::disallowed_methods, reason = "a load generator lives by the clock")]

mod answer;

use answer::Answer;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::collections::VecDeque;
use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: serin-pace ADDRESS PATH RATE SECONDS CONNECTIONS";
/// Not counted at the beginning: connections are new, and so is what the proxy keeps for them.
const WARM: Duration = Duration::from_millis(500);
const GRACE: Duration = Duration::from_secs(5);
/// What the timer is called among events; connections go by their number.
const TIMER: u64 = u64::MAX;

type Failed = Box<dyn Error>;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match Load::read(&arguments).and_then(|load| load.run()) {
        Ok(seen) => {
            println!("{}", seen.json());
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("serin-pace: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// What is asked of whom, and how often.
struct Load {
    address: String,
    request: Vec<u8>,
    /// From one request to the next.
    interval: Duration,
    seconds: u32,
    connections: usize,
    /// How long the last answers may take, once nothing more is due.
    grace: Duration,
}

impl Load {
    fn read(arguments: &[String]) -> Result<Self, Failed> {
        let [address, path, rate, seconds, connections] = arguments else {
            return Err(USAGE.into());
        };
        let rate: f64 = rate.parse()?;
        let load = Self {
            address: address.clone(),
            request: format!("GET {path} HTTP/1.1\r\nHost: bench.test\r\n\r\n").into_bytes(),
            interval: Duration::try_from_secs_f64(1.0 / rate)?,
            seconds: seconds.parse()?,
            connections: connections.parse()?,
            grace: GRACE,
        };
        if load.interval.is_zero() || load.seconds == 0 || load.connections == 0 {
            return Err(USAGE.into());
        }
        Ok(load)
    }

    fn run(&self) -> Result<Seen, Failed> {
        let mut connections = (0..self.connections)
            .map(|_| Connection::open(&self.address))
            .collect::<Result<Vec<_>, _>>()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (number, one) in connections.iter().enumerate() {
            epoll::add(
                &epoll,
                &one.stream,
                EventData::new_u64(number as u64),
                EventFlags::IN,
            )?;
        }

        let (schedule, timer) = Schedule::start(self.interval)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        let end = WARM + Duration::from_secs(u64::from(self.seconds));
        let (first, last) = (schedule.due(WARM), schedule.due(end));
        let mut seen = Seen::new(self.seconds, usize::try_from(last - first)?);
        let mut free: VecDeque<usize> = (0..self.connections).collect();
        let (mut sent, mut answered) = (0, 0);
        let mut events = Vec::with_capacity(self.connections + 1);
        while answered < last {
            let now = schedule.begin.elapsed();
            if now > end + self.grace {
                seen.failures += last - answered;
                break;
            }
            let due = schedule.due(now).min(last);
            while sent < due {
                let Some(number) = free.pop_front() else { break };
                connections[number].ask(&self.request, sent)?;
                sent += 1;
            }
            events.clear();
            epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None)?;
            for event in &events {
                let number = event.data.u64();
                if number == TIMER {
                    // It expires again when it has been read.
                    rustix::io::read(&timer, &mut [0; 8])?;
                    continue;
                }
                let number = usize::try_from(number)?;
                let one = &mut connections[number];
                let Some(status) = one.read()? else { continue };
                answered += 1;
                free.push_back(number);
                if one.request >= first {
                    seen.record(status, schedule.since_due(one.request));
                }
            }
        }
        Ok(seen)
    }
}

/// When each request is due.
struct Schedule {
    begin: Instant,
    interval: Duration,
}

impl Schedule {
    /// Begins now, with a timer that expires whenever another request is due. The timer is set after the beginning: one that was
    /// set before would expire just before each request is due, and the request be sent an interval late, or with an answer.
    fn start(interval: Duration) -> Result<(Self, OwnedFd), Failed> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let every = Timespec {
            tv_sec: i64::try_from(interval.as_secs())?,
            tv_nsec: interval.subsec_nanos().into(),
        };
        let ticks = Itimerspec {
            it_interval: every,
            it_value: every,
        };
        let begin = Instant::now();
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &ticks)?;
        Ok((Self { begin, interval }, timer))
    }

    /// How many requests are due so long after the beginning.
    fn due(&self, after: Duration) -> u64 {
        u64::try_from(after.as_nanos() / self.interval.as_nanos()).unwrap_or(u64::MAX)
    }

    fn since_due(&self, request: u64) -> Duration {
        let due = self.interval.as_nanos() * (u128::from(request) + 1);
        let since = self.begin.elapsed().as_nanos().saturating_sub(due);
        Duration::from_nanos(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

/// One that carries a request at a time.
struct Connection {
    stream: TcpStream,
    answer: Answer,
    /// The number of the request that it carries.
    request: u64,
}

impl Connection {
    fn open(address: &str) -> Result<Self, Failed> {
        let stream = TcpStream::connect(address).map_err(|error| format!("connect to {address}: {error}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            answer: Answer::default(),
            request: 0,
        })
    }

    fn ask(&mut self, request: &[u8], number: u64) -> Result<(), Failed> {
        self.answer = Answer::default();
        self.request = number;
        // It fits into an empty send buffer.
        Ok(self.stream.write_all(request)?)
    }

    /// The status, when the answer is whole.
    fn read(&mut self) -> Result<Option<u16>, Failed> {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err("the connection was closed".into()),
            Ok(length) => Ok(self.answer.feed(&buffer[..length])?),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// What was seen of the requests that count.
struct Seen {
    seconds: u32,
    /// In microseconds.
    took: Vec<f64>,
    failures: u64,
}

impl Seen {
    fn new(seconds: u32, requests: usize) -> Self {
        Self {
            seconds,
            took: Vec::with_capacity(requests),
            failures: 0,
        }
    }

    fn record(&mut self, status: u16, took: Duration) {
        if status == 200 {
            self.took.push(took.as_secs_f64() * 1e6);
        } else {
            self.failures += 1;
        }
    }

    fn json(mut self) -> String {
        self.took.sort_by(f64::total_cmp);
        format!(
            r#"{{"requests": {}, "seconds": {}, "failures": {}, "p50_us": {:.1}, "p99_us": {:.1}, "most_us": {:.1}}}"#,
            self.took.len(),
            self.seconds,
            self.failures,
            self.quantile(50),
            self.quantile(99),
            self.quantile(100),
        )
    }

    /// Of times in order.
    fn quantile(&self, percent: usize) -> f64 {
        let at = (self.took.len() * percent / 100).min(self.took.len().saturating_sub(1));
        self.took.get(at).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// Answers what one connection asks, and stands still for a while before the answer with this number.
    fn upstream(requests: usize, still_before: usize, still: Duration) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 1024];
            for number in 0..requests {
                let _ = stream.read(&mut buffer).unwrap();
                if number == still_before {
                    thread::sleep(still);
                }
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .unwrap();
            }
        });
        address
    }

    #[test]
    fn what_was_due_while_the_upstream_stood_still_has_waited() {
        let address = upstream(300, 200, Duration::from_millis(400));
        let arguments = [&address, "/", "200", "1", "1"].map(ToString::to_string);
        let mut load = Load::read(&arguments).unwrap();
        load.grace = Duration::from_secs(60); // the machine may be busy
        let seen = load.run().unwrap();
        assert_eq!((seen.took.len(), seen.failures), (200, 0));
        // One request saw 400 ms; those that were due behind it waited for what was left of them.
        let waited = seen.took.iter().filter(|took| **took > 100_000.0).count();
        assert!(waited >= 50, "{waited} of 200 requests waited for 100 ms");
    }

    #[test]
    fn a_request_is_due_at_each_interval() {
        let schedule = Schedule {
            begin: Instant::now(),
            interval: Duration::from_millis(2),
        };
        assert_eq!(
            [0, 1, 2, 5, 1000].map(|ms| schedule.due(Duration::from_millis(ms))),
            [0, 0, 1, 2, 500]
        );
    }

    #[test]
    fn whenever_the_timer_expires_another_request_is_due() {
        let (schedule, timer) = Schedule::start(Duration::from_micros(500)).unwrap();
        let mut expired = 0;
        while expired < 200 {
            let mut ticks = [0; 8];
            match rustix::io::read(&timer, &mut ticks) {
                Ok(_) => expired += u64::from_ne_bytes(ticks),
                // Asked without a pause, it is read as soon as it expires.
                Err(error) => assert_eq!(error, rustix::io::Errno::AGAIN),
            }
            let due = schedule.due(schedule.begin.elapsed());
            assert!(
                due >= expired,
                "{due} are due when the timer expires for the {expired}th time"
            );
        }
    }

    #[test]
    fn a_load_that_makes_no_sense_is_refused() {
        for arguments in [
            ["a", "/", "0", "1", "1"],
            ["a", "/", "10", "0", "1"],
            ["a", "/", "10", "1", "0"],
        ] {
            assert!(
                Load::read(&arguments.map(ToString::to_string)).is_err(),
                "{arguments:?}"
            );
        }
    }
}
