//! The streams of one HTTP/2 connection: what one client does to one of them is nothing to the others.

use crate::support::{
    Serin,
    h2::{DATA, H2, HEADERS, RST_STREAM, WINDOW_UPDATE, request},
    now,
    upstream::Upstream,
    wait_for,
};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);
const CANCEL: u32 = 8;

/// One service behind a listener with these timeouts.
fn start(upstream: &Upstream, timeouts: &str) -> Serin {
    Serin::start_with(&format!(
        "
listeners: [{{name: web, address: \"127.0.0.1:0\", timeouts: {timeouts}}}]
admin: {{address: \"127.0.0.1:0\"}}
services: [{{name: shop, stable: {{version: v1, endpoints: [\"{}\"]}}}}]",
        upstream.url()
    ))
}

fn timed_out(serin: &Serin) -> u64 {
    serin.count("serin_http_rejected_total", &[("reason", "timeout")])
}

#[test]
fn a_stream_that_its_client_never_reads_is_reset_after_the_write_stall_and_the_others_go_on() {
    for upstream in [Upstream::start("v1"), Upstream::h2c("v1")] {
        let serin = start(&upstream, "{writeStall: 1s}");
        let mut client = H2::connect(serin.web);
        // Room on the connection, so that the one that is not read is in nobody's way.
        client.send(WINDOW_UPDATE, 0, 0, &(1u32 << 24).to_be_bytes());
        client.head(1, &request("GET", "/stream/64000000"), true);
        client.head(3, &request("GET", "/drip/60/50"), true);
        let (mut stalled, mut moving) = (0, 0);
        let code = loop {
            let frame = client.read().expect("the connection goes on");
            match (frame.kind, frame.stream) {
                (DATA, 1) => stalled += frame.payload.len(),
                (DATA, 3) => moving += frame.payload.len(),
                (HEADERS, _) => drop(client.decode(frame.payload, frame.flags)),
                (RST_STREAM, 1) => break frame.error(),
                _ => {}
            }
        };
        assert_eq!((code, stalled), (Some(CANCEL), 65_535), "{}", upstream.url());
        let rest = client.response(3).unwrap();
        assert_eq!((rest.reset, moving + rest.body.len()), (None, 60));
        client.head(5, &request("GET", "/"), true);
        assert_eq!(client.response(5).unwrap().status, 200);
        assert_eq!(timed_out(&serin), 1);
        let answers = |status| serin.count("serin_http_requests_total", &[("status", status)]);
        assert_eq!((answers("499"), answers("200")), (1, 2));
        assert_eq!(serin.count("serin_http_requests_in_flight", &[]), 0);
        let failed = serin.count("serin_version_outcomes_total", &[("outcome", "failed")]);
        assert_eq!(failed, 0, "no fault of the version");
    }
}

#[test]
fn an_upload_that_stops_ends_by_itself_and_the_others_go_on() {
    let upstream = Upstream::start("v1");
    let serin = start(&upstream, "{bodyIdle: 1s}");
    let mut client = H2::connect(serin.web);
    for stream in [1, 3] {
        client.head(stream, &request("POST", "/echo"), false);
    }
    client.send(DATA, 0, 1, b"never");
    let (begun, mut streams) = (now(), (5..).step_by(2));
    // The second upload goes on for longer than a pause may be, and other requests come and go.
    while begun.elapsed() < Duration::from_millis(1500) {
        client.send(DATA, 0, 3, b"x");
        let stream = streams.next().unwrap();
        client.head(stream, &request("GET", "/wait/50"), true);
        // What else comes before its answer is of no interest here.
        assert_eq!(client.response(stream).unwrap().status, 200);
    }
    wait_for("the count", LONG, || (timed_out(&serin) == 1).then_some(()));
    client.send(DATA, 1, 3, b"x");
    let whole = client.response(3).unwrap();
    assert_eq!((whole.status, whole.reset), (200, None));
    assert_eq!(timed_out(&serin), 1);
}
