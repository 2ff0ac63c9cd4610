//! What the steps of a request cost, one by one and together: `cargo bench --bench micro --profile dist`.
//!
//! The steps are the pure ones that every request takes: find the route, pick the version, record the outcome. The
//! whole request goes through a complete instance (one worker, control plane beside it, 5 % to a canary) over loopback,
//! one at a time on a kept-alive connection, so most of it is the kernel's and the thread's waking. For figures that
//! compare Serin with others see benches/compare; for one that hardly moves, benches/instructions.

use divan::{Bencher, black_box};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use serin::{
    analysis::{Batch, Judge, JudgeConfig},
    app, config,
    control::StoreChoice,
    metrics::{AssignReason, Attempt, Evidence, Outcome, Trial, Unit, VersionKey, VersionMetrics},
    model::{Role, ServiceName, VersionName, Weight},
    route::{FieldMatch, HostMatch, PathMatch, RequestView, RouteMatch, Router, Rule, ValueMatch},
    split::{Split, StickyHash, is_canary},
    stats::UnitCounts,
};
use std::{
    cell::Cell,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    num::NonZeroUsize,
    path::Path,
    time::Duration,
};

fn main() {
    divan::main();
}

/// The exact split: one ticket.
#[divan::bench(args = [1, 5, 50])]
fn pick(bencher: Bencher<'_, '_>, percent: u32) {
    let split = split(percent);
    bencher.bench_local(|| split.draw());
}

/// The same ticket, drawn by two threads at once.
#[divan::bench(threads = [2])]
fn pick_contended(bencher: Bencher<'_, '_>) {
    let split = split(5);
    bencher.bench(|| split.draw());
}

fn split(percent: u32) -> Split<()> {
    let sticky = StickyHash::new(b"secret", "rollout");
    Split::new(1, Weight::percent(percent), (), Some(()), sticky, [1, 2])
}

/// A sticky key of a usual length to its version.
#[divan::bench]
fn sticky(bencher: Bencher<'_, '_>) {
    let hash = StickyHash::new(b"secret", "rollout");
    let weight = Weight::percent(5);
    bencher.bench_local(|| {
        is_canary(
            hash.bucket(black_box(b"7d7a1c9e-5f1b-4d0c-9f37-2f6a0f0d9b11")),
            weight,
        )
    });
}

/// Everything one answered request writes into its worker's cells.
#[divan::bench]
fn record(bencher: Bencher<'_, '_>) {
    let key = VersionKey {
        service: ServiceName::new("bench").expect("a name"),
        role: Role::Stable,
        version: VersionName::new("v1").expect("a name"),
    };
    let (metrics, evidence) = (
        VersionMetrics::new(key, 1),
        Evidence::on_trial(1, Trial::default()),
    );
    let shard = metrics.shard(0);
    bencher.bench_local(|| {
        let took = black_box(Duration::from_micros(1_700));
        shard.assign(AssignReason::Weight);
        shard.enter();
        shard.attempt(Attempt::Answered);
        shard.first_byte(took);
        shard.judge(Outcome::Ok);
        let ticket = evidence.begin(0, Unit::Request, took);
        evidence.end(0, ticket, Outcome::Ok, took);
        shard.answered(&Method::GET, StatusCode::OK, took);
        shard.leave();
    });
}

/// One look of the judge at one service: reading both versions' cells of this many workers, two generations after a weight
/// change, all eight tests, and the thresholds for what is in flight.
#[divan::bench(args = [1, 8, 64])]
fn judge_tick(bencher: Bencher<'_, '_>, workers: usize) {
    let mut dice = SmallRng::seed_from_u64(7);
    let evidence = || Evidence::on_trial(workers, Trial::default());
    let generations: Vec<[Evidence; 2]> = (0..2).map(|_| [evidence(), evidence()]).collect();
    let mut last: Vec<[UnitCounts; 2]> = vec![<[UnitCounts; 2]>::default(); 2];
    let mut judge = Judge::new(JudgeConfig::default(), 0.05, 0.25, Judge::empty_baseline());
    let now = Cell::new(Duration::from_secs(60));
    bencher
        .with_inputs(|| {
            // Between two looks 100 requests come, as at 1,000 a second.
            for request in 0..100 {
                let role = usize::from(request % 20 != 0);
                let worker = request % workers;
                let outcome = if dice.next_u64().is_multiple_of(1000) {
                    Outcome::Failed
                } else {
                    Outcome::Ok
                };
                let took = Duration::from_micros(1000 + dice.next_u64() % 50_000);
                let cells = &generations[1][role];
                let ticket = cells.begin(worker, Unit::Request, now.get());
                cells.end(worker, ticket, outcome, took);
            }
        })
        .bench_local_values(|()| {
            now.set(now.get() + Duration::from_millis(100));
            let mut batches = Vec::new();
            for ([canary, stable], [canary_last, stable_last]) in generations.iter().zip(&mut last) {
                let read = |cells: &Evidence, last: &mut UnitCounts| {
                    let read = cells.units(last);
                    let news = read.since(last);
                    *last = read;
                    news
                };
                batches.push(Batch {
                    weight: 0.05,
                    canary: read(canary, canary_last),
                    stable: read(stable, stable_last),
                });
            }
            let advice = judge.tick(0.1, &batches);
            let slow_after = judge.slow_after();
            let cuts: Vec<Option<Duration>> = slow_after
                .iter()
                .map(|after| now.get().checked_sub(Duration::from_secs_f64(after.as_ref()?.0)))
                .collect();
            generations.iter().flatten().for_each(|cells| cells.cut(&cuts));
            advice
        });
}

/// A scrape's work for one version: merging this many workers.
#[divan::bench(args = [1, 8, 64])]
fn merge(bencher: Bencher<'_, '_>, workers: usize) {
    let key = VersionKey {
        service: ServiceName::new("bench").expect("a name"),
        role: Role::Stable,
        version: VersionName::new("v1").expect("a name"),
    };
    let metrics = VersionMetrics::new(key, workers);
    for worker in 0..workers {
        let took = Duration::from_millis(2);
        metrics.shard(worker).answered(&Method::GET, StatusCode::OK, took);
    }
    bencher.bench_local(|| metrics.snapshot());
}

/// The route among this many hosts, each with a prefix and a header condition.
#[divan::bench(args = [1, 10, 1_000])]
fn route(bencher: Bencher<'_, '_>, services: usize) {
    let router = Router::new((0..services).map(|number| Rule {
        matches: vec![RouteMatch {
            host: Some(HostMatch::Exact(format!("service-{number}.example.com"))),
            path: Some(PathMatch::Prefix("/api/v1".to_owned())),
            headers: vec![FieldMatch {
                name: header::ACCEPT,
                value: ValueMatch::Exact("*/*".to_owned()),
            }],
            ..RouteMatch::default()
        }],
        target: number,
    }));
    let host = format!("service-{}.example.com", services / 2);
    let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static("*/*"))]);
    let view = RequestView {
        listener: 0,
        host: &host,
        path: "/api/v1/orders/4711",
        query: None,
        method: &Method::GET,
        headers: &headers,
    };
    assert_eq!(router.find(&view), Some(&(services / 2)));
    bencher.bench_local(|| router.find(black_box(&view)));
}

/// One request through a complete instance and back, by the size of the answer.
#[divan::bench(args = [0, 1 << 10, 64 << 10, 1 << 20])]
fn whole_request(bencher: Bencher<'_, '_>, bytes: usize) {
    let (stable, canary) = (upstream(bytes), upstream(bytes));
    let proxy = instance(stable, canary);
    let mut client = TcpStream::connect(proxy).expect("connect to the proxy");
    client.set_nodelay(true).expect("TCP_NODELAY");
    let length = Cell::new(0);
    let mut answer = vec![0; bytes + 4096];
    bencher.bench_local(|| {
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: bench.test\r\n\r\n")
            .expect("ask");
        // Every answer is as long as the first: its head ends, and the body has the length that we know.
        let mut received = 0;
        loop {
            received += match client.read(&mut answer[received..]).expect("an answer") {
                0 => panic!("closed after {received} bytes"),
                some => some,
            };
            if length.get() == 0
                && let Some(head) = answer[..received].windows(4).position(|end| end == b"\r\n\r\n")
            {
                assert!(
                    answer.starts_with(b"HTTP/1.1 200 "),
                    "{}",
                    String::from_utf8_lossy(&answer[..received])
                );
                length.set(head + 4 + bytes);
            }
            if length.get() > 0 && received >= length.get() {
                break;
            }
        }
    });
}

/// A service that answers every request head with the same bytes. Its threads end with the process.
fn upstream(bytes: usize) -> SocketAddr {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\ndate: Mon, 06 Jan 2025 10:00:00 GMT\r\ncontent-length: {bytes}\r\n\r\n")
            .into_bytes();
    answer.resize(answer.len() + bytes, b'x');
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let answer = answer.clone();
            std::thread::spawn(move || answer_all(stream, &answer));
        }
    });
    address
}

fn answer_all(mut stream: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut received = [0; 4096];
    let mut end = 0;
    loop {
        match stream.read(&mut received[end..])? {
            0 => return Ok(()),
            some => end += some,
        }
        if received[..end].ends_with(b"\r\n\r\n") {
            end = 0;
            stream.write_all(answer)?;
        }
    }
}

/// A running Serin that sends 5 % to the canary; where it listens. It ends with the process.
fn instance(stable: SocketAddr, canary: SocketAddr) -> SocketAddr {
    let (told, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let folder = tempfile::tempdir().expect("a folder for the socket");
        let text = format!(
            "
listeners: [{{address: \"127.0.0.1:0\"}}]
admin: {{address: \"127.0.0.1:0\"}}
services:
  - name: bench
    stable: {{version: v1, endpoints: [\"http://{stable}\"]}}
    canary: {{version: v2, endpoints: [\"http://{canary}\"]}}
    strategy: {{canary: {{steps: [{{setWeight: 5}}, {{pause: {{}}}}]}}}}
"
        );
        let runtime = tokio::runtime::Runtime::new().expect("a runtime for control");
        runtime.block_on(run(&text, folder.path(), &told));
    });
    address.recv().expect("the proxy starts")
}

async fn run(text: &str, folder: &Path, told: &std::sync::mpsc::Sender<SocketAddr>) {
    let loaded = config::load_text(text, "bench.yaml", folder, &|_| None).expect("a sound configuration");
    let options = app::Options {
        workers: NonZeroUsize::new(1),
        store: Some(StoreChoice::Memory),
        file: None,
        passed: app::Passed::default(),
    };
    let serin = app::Serin::start(loaded.config, options).await.expect("start");
    let mut looks = tokio::time::interval(Duration::from_millis(10));
    while !serin
        .metrics()
        .expose()
        .lines()
        .any(|line| line.starts_with("serin_split_weight_ratio") && line.ends_with(" 0.05"))
    {
        looks.tick().await;
    }
    let web = serin.addresses().listeners[0].1.expect("a TCP listener");
    told.send(web).expect("somebody waits");
    std::future::pending::<()>().await;
}
