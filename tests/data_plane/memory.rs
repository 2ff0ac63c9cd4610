//! What bodies and connections cost in memory: not more when they are longer, little when nothing happens.

use crate::support::{
    HEAD, Serin, full_form,
    h2::{self, H2},
    http::{Client, pieces, request, whole},
    raw::RawClient,
    say,
    upstream::Upstream,
    wait_for,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use std::{net::TcpStream, time::Duration};

const LONG: Duration = Duration::from_secs(120);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn in_front_of(url: &str) -> Serin {
    Serin::start_with(&format!(
        "{HEAD}services: [{{name: shop, stable: {{version: v1, endpoints: [\"{url}\"]}}}}]"
    ))
}

/// Reads an answer to its end, and keeps nothing of it; how long it was.
async fn length(client: &Client, path: &str) -> u64 {
    let mut connection = client.connect().await.unwrap();
    let mut body = connection
        .open(request("GET", path, whole("")))
        .await
        .unwrap()
        .into_body();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap_or_default();
        read += u64::try_from(data.len()).unwrap();
    }
    read
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_costs_no_more_memory_than_a_small_one_either_way() {
    const PIECE: usize = 64 * 1024;
    let size = full_form(64 * MIB, 1024 * MIB);
    let count = usize::try_from(size).unwrap() / PIECE;
    for upstream in [Upstream::start("v1"), Upstream::h2c("v1")] {
        let serin = in_front_of(&upstream.url());
        let both = [false, true].map(|http2| Client::plain(serin.web, http2));
        let exchange = async |client: &Client, size: u64, count: usize| {
            assert_eq!(length(client, &format!("/stream/{size}")).await, size);
            let piece = Bytes::from(vec![b'x'; PIECE]);
            let body = pieces(vec![piece; count], None);
            let answer = client.send(request("POST", "/status/200", body)).await.unwrap();
            assert_eq!(answer.status, 200);
        };
        for client in &both {
            exchange(client, MIB, 16).await;
        }
        serin.forget_peak();
        let before = serin.resident();
        for client in &both {
            exchange(client, size, count).await;
        }
        let more = serin.memory("VmHWM:").saturating_sub(before);
        say(&format!(
            "bodies of {} MiB up and down, h1 and h2, to {}: {} KiB more at the most",
            size / MIB,
            upstream.url(),
            more / KIB
        ));
        assert!(more < 16 * MIB, "{more} bytes more, {}", upstream.url());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_less_than_256_kib_over_http1_and_for_each_stream_of_http2() {
    let kinds = [
        ("HTTP/1.1", false, 32, 1),
        ("HTTP/2", true, 32, 1),
        ("HTTP/2, streams of one connection", true, 1, 32),
    ];
    for http2_to_version in [false, true] {
        for (kind, http2, connections, streams) in kinds {
            let upstream = if http2_to_version {
                Upstream::h2c("v1")
            } else {
                Upstream::start("v1")
            };
            let serin = in_front_of(&upstream.url());
            let client = Client::plain(serin.web, http2);
            // Whatever grows with the first requests has grown.
            assert_eq!(length(&client, &format!("/stream/{MIB}")).await, MIB);
            let before = serin.resident();
            let mut held = Vec::new();
            for _ in 0..connections {
                let mut connection = client.connect().await.unwrap();
                let mut answers = Vec::new();
                for _ in 0..streams {
                    let asked = request("GET", &format!("/stream/{}", 64 * MIB), whole(""));
                    answers.push(connection.open(asked).await.unwrap());
                }
                held.push((connection, answers));
            }
            serin.standstill();
            let each = serin.resident().saturating_sub(before) / (connections * streams);
            say(&format!(
                "stalled: {kind} to {}: {} KiB each",
                upstream.url(),
                each / KIB
            ));
            assert!(
                each < 256 * KIB,
                "{each} bytes each, {kind} to {}",
                upstream.url()
            );
        }
    }
}

#[test]
fn a_client_that_waits_with_an_open_connection_costs_little() {
    let upstream = Upstream::start("v1");
    let serin = in_front_of(&upstream.url());
    // Whatever grows with the first requests has grown.
    let ask = |client: &mut RawClient| {
        client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n");
        assert_eq!(client.answer("GET").unwrap().status, 200);
    };
    let open = |count: u64| -> Vec<TcpStream> {
        (0..count)
            .map(|_| {
                let stream = TcpStream::connect(serin.web).unwrap();
                ask(&mut RawClient::over(stream.try_clone().unwrap()));
                stream
            })
            .collect()
    };
    drop(open(50));
    wait_for("their ends", LONG, || {
        (serin.metric("serin_client_connections", &[]) < 0.5).then_some(())
    });
    let before = serin.resident();
    let count = full_form(1_000, 10_000);
    rlimit::increase_nofile_limit(3 * count).unwrap();
    let idle = open(count);
    let each = serin.resident().saturating_sub(before) / count;
    say(&format!("{count} idle connections (h1): {each} bytes each"));
    assert!(each < 30 * KIB, "{each} bytes each");
    // They are all still there.
    for stream in &idle {
        ask(&mut RawClient::over(stream.try_clone().unwrap()));
    }
}

#[test]
fn a_client_that_waits_with_an_open_connection_costs_little_over_http2_as_well() {
    let upstream = Upstream::start("v1");
    let serin = in_front_of(&upstream.url());
    let ask = |client: &mut H2, stream: u32| {
        client.head(stream, &h2::request("GET", "/"), true);
        assert_eq!(client.response(stream).unwrap().status, 200);
    };
    let open = |count: u64| -> Vec<H2> {
        let one = |_| {
            let mut client = H2::connect(serin.web);
            ask(&mut client, 1);
            client
        };
        (0..count).map(one).collect()
    };
    // Whatever grows with the first requests has grown.
    drop(open(50));
    wait_for("their ends", LONG, || {
        (serin.metric("serin_client_connections", &[]) < 0.5).then_some(())
    });
    let before = serin.resident();
    let count = full_form(1_000, 5_000);
    rlimit::increase_nofile_limit(3 * count).unwrap();
    let mut idle = open(count);
    let each = serin.resident().saturating_sub(before) / count;
    say(&format!("{count} idle connections (h2): {each} bytes each"));
    assert!(each < 25 * KIB, "{each} bytes each");
    // They are all still there.
    for client in &mut idle {
        ask(client, 3);
    }
}
