//! Answers without an end, and the canary that gives them is withdrawn or promoted.

use crate::support::{
    HEAD, Serin,
    http::{Client, Server, Speaks, request, whole},
    now, wait_for,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::{sync::atomic::Ordering, time::Duration};

const LONG: Duration = Duration::from_secs(20);

/// How a client hears what has no end.
#[derive(Debug, Clone, Copy)]
struct Listens {
    http2: bool,
    kind: &'static str,
}

const ALL: [Listens; 5] = [
    Listens {
        http2: false,
        kind: "text/event-stream",
    },
    Listens {
        http2: false,
        kind: "application/octet-stream",
    },
    Listens {
        http2: true,
        kind: "text/event-stream",
    },
    Listens {
        http2: true,
        kind: "application/octet-stream",
    },
    Listens {
        http2: true,
        kind: "application/grpc",
    },
];

fn start(v1: &Server, v2: &Server) -> Serin {
    let serin = Serin::start_with(&format!(
        "{HEAD}services:
  - name: shop
    stable: {{version: v1, endpoints: [\"http://127.0.0.1:{}\"]}}
    canary: {{version: v2, endpoints: [\"http://127.0.0.1:{}\"]}}
    force: {{header: x-canary}}
    timeouts: {{drain: 1s}}
    strategy: {{canary: {{steps: [{{setWeight: 50}}, {{pause: {{}}}}]}}}}",
        v1.port(),
        v2.port()
    ));
    serin.wait_status("shop", "the pause", |status| status["phase"] == "Paused");
    serin
}

/// An answer that has begun.
async fn begun(serin: &Serin, how: Listens, canary: &'static str) -> Incoming {
    let mut body = opened(serin, how, canary, "/hang").await;
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, Bytes::from_static(b"first"));
    body
}

async fn opened(serin: &Serin, how: Listens, canary: &'static str, path: &str) -> Incoming {
    let mut asked = request("GET", path, whole(""));
    asked.headers_mut().insert("x-canary", canary.parse().unwrap());
    asked
        .headers_mut()
        .insert("x-answer-type", how.kind.parse().unwrap());
    let mut connection = Client::plain(serin.web, how.http2).connect().await.unwrap();
    let body = connection.open(asked).await.unwrap().into_body();
    // The connection lives as long as its sender or its streams do.
    std::mem::forget(connection);
    body
}

fn run(serin: &Serin, line: &str) {
    let (code, out, error) = serin.run(line);
    assert_eq!(code, 0, "{line}: {out}{error}");
}

/// Whether nothing comes and nothing has ended.
async fn goes_on(body: &mut Incoming) -> bool {
    tokio::time::timeout(Duration::from_millis(20), body.frame())
        .await
        .is_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_aborted_canary_still_answers_is_cut_off_after_the_drain_and_never_ends_cleanly() {
    let (v1, v2) = (Server::start(Speaks::default()), Server::start(Speaks::default()));
    let serin = start(&v1, &v2);
    let (mut on_stable, mut on_canary) = (Vec::new(), Vec::new());
    for how in ALL {
        on_stable.push(begun(&serin, how, "never").await);
        on_canary.push(begun(&serin, how, "always").await);
    }
    run(&serin, "abort shop");
    for body in &mut on_canary {
        assert!(goes_on(body).await, "it has the drain");
    }
    for (body, how) in on_canary.iter_mut().zip(ALL) {
        let last = tokio::time::timeout(LONG, body.frame()).await;
        let last = last
            .unwrap_or_else(|_| panic!("{how:?} goes on"))
            .expect("a clean end");
        if how.kind == "application/grpc" {
            let trailers = last.unwrap().into_trailers().unwrap();
            assert_eq!(trailers["grpc-status"], "14");
        } else {
            last.expect_err("an end that is none");
        }
    }
    wait_for("the version to hear of it", LONG, || {
        (v2.seen.canceled.load(Ordering::SeqCst) == 5).then_some(())
    });
    for body in &mut on_stable {
        assert!(goes_on(body).await);
    }
    assert_eq!(v1.seen.canceled.load(Ordering::SeqCst), 0);
}

/// Reads a little at a time, so that there is always more than is asked for, until it breaks off.
async fn read_to_its_break(mut body: Incoming) {
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    loop {
        pace.tick().await;
        match body.frame().await {
            Some(Ok(frame)) => assert!(frame.is_data(), "{frame:?}"),
            Some(Err(_)) => return,
            None => panic!("a clean end"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_aborted_canary_answers_without_a_pause_is_cut_off_as_well() {
    let (v1, v2) = (Server::start(Speaks::default()), Server::start(Speaks::default()));
    let serin = start(&v1, &v2);
    let mut reading = Vec::new();
    for http2 in [false, true] {
        let kind = "application/octet-stream";
        let how = Listens { http2, kind };
        reading.push(tokio::spawn(read_to_its_break(
            opened(&serin, how, "always", "/flood").await,
        )));
    }
    run(&serin, "abort shop");
    for one in reading {
        tokio::time::timeout(LONG, one)
            .await
            .expect("it goes on")
            .unwrap();
    }
    wait_for("the version to hear of it", LONG, || {
        (v2.seen.canceled.load(Ordering::SeqCst) == 2).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_promoted_canary_answers_goes_on() {
    let (v1, v2) = (Server::start(Speaks::default()), Server::start(Speaks::default()));
    let serin = start(&v1, &v2);
    let mut on_canary = Vec::new();
    for how in ALL {
        on_canary.push(begun(&serin, how, "always").await);
    }
    run(&serin, "promote shop --full --until healthy");
    let begun = now();
    wait_for("longer than the drain and two looks", LONG, || {
        (begun.elapsed() >= Duration::from_millis(3200)).then_some(())
    });
    for body in &mut on_canary {
        assert!(goes_on(body).await);
    }
}
