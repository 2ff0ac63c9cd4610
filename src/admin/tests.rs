//! The routes as clients see them, over a real control plane in memory.

use super::{Admin, Answer, ConfigCheck, Operator, Parts, Peer, Probes, Tokens, hash_of, routes};
use crate::{
    config::{Token, TokenRole, load_text},
    control::{Change, Control, StartOptions, StoreChoice},
    metrics::Registry,
    model::{Clock, ManualClock, ServiceName, Timestamp},
    upstream::Services,
};
use axum::body::Body;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::watch;
use tower::ServiceExt;

#[derive(Debug)]
struct NoFile;

impl Operator for NoFile {
    fn config(&self) -> Value {
        json!({"admin": {}})
    }
    fn check(&self, text: String) -> Answer<'_, ConfigCheck> {
        Box::pin(async move {
            ConfigCheck {
                ok: text == "good",
                ..ConfigCheck::default()
            }
        })
    }
    fn reload(&self) -> Answer<'_, Result<Vec<Change>, Vec<String>>> {
        Box::pin(async { Err(vec!["serin.yaml:3:1: unknown key".to_owned()]) })
    }
}

struct Bench {
    admin: Admin,
    stop: watch::Sender<bool>,
    /// Where v2 listens: enough for the readiness probe.
    endpoint: std::net::TcpListener,
}

/// Everybody's token is `secret-of-NAME`.
fn tokens() -> Vec<Token> {
    let token = |name: &str, role, only: Option<&str>| Token {
        name: name.to_owned(),
        role,
        services: only.map(|one| vec![ServiceName::new(one).unwrap()]),
        hash: hash_of(&format!("secret-of-{name}")),
    };
    vec![
        token("viewer", TokenRole::Viewer, None),
        token("deployer", TokenRole::Deployer, None),
        token("approver", TokenRole::Approver, None),
        token("admin", TokenRole::Admin, None),
        token("till", TokenRole::Admin, Some("till")),
    ]
}

async fn bench() -> Bench {
    let text = "listeners: [{name: web, address: \"127.0.0.1:8080\"}]\nservices:\n  - name: shop\n    stable: {version: v1, \
                endpoints: [\"http://127.0.0.1:9001\"]}\n    deploy: {allowedEndpoints: [\"127.0.0.0/8\"]}\n    strategy: {canary: \
                {steps: [{setWeight: 5}, {pause: {}}, {setWeight: 50}, {pause: {}}]}}\n";
    let config = load_text(text, "test.yaml", Path::new("."), &|_| None)
        .unwrap()
        .config;
    let metrics = Registry::new(1).unwrap();
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(Timestamp::from_secs(1_700_000_000)));
    let control = Control::start(StartOptions {
        config,
        services: Services::new(metrics.clone()),
        clock: Arc::clone(&clock),
        store: StoreChoice::Memory.open().unwrap(),
        seed: [7; 32],
    })
    .await
    .unwrap();
    let (stop, stopping) = watch::channel(false);
    let parts = Parts {
        control,
        metrics,
        probes: Probes::default(),
        tokens: Tokens::new(tokens()),
        hosts: super::Hosts::default(),
        operator: Arc::new(NoFile),
        clock,
        connections: 16,
    };
    Bench {
        admin: Admin::new(parts, stopping),
        stop,
        endpoint: std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
    }
}

fn request(method: &Method, path: &str, body: &str) -> Request<Body> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "127.0.0.1:9900");
    if !body.is_empty() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    request.body(Body::from(body.to_owned())).unwrap()
}

impl Bench {
    async fn send(&self, from: Peer, mut request: Request<Body>) -> Response<Body> {
        request.extensions_mut().insert(from);
        self.admin.router().oneshot(request).await.unwrap()
    }

    /// From loopback, with the token of `who` (empty: none).
    async fn over_tcp(&self, who: &str, mut request: Request<Body>) -> Response<Body> {
        if !who.is_empty() {
            let value = format!("Bearer secret-of-{who}").parse().unwrap();
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        self.send(Peer::Tcp("127.0.0.1:50000".parse().unwrap()), request)
            .await
    }

    async fn post(&self, who: &str, path: &str, body: Value) -> (StatusCode, Value) {
        read(
            self.over_tcp(who, request(&Method::POST, path, &body.to_string()))
                .await,
        )
        .await
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        read(self.over_tcp("", request(&Method::GET, path, "")).await).await
    }

    /// Brings v2 to the pause at 5 %.
    async fn deploy(&self) {
        let endpoint = format!("http://{}", self.endpoint.local_addr().unwrap());
        let body = json!({"version": "v2", "endpoints": [endpoint]});
        let (status, said) = self.post("deployer", "/v1/services/shop/deploy", body).await;
        assert_eq!(status, 201, "{said}");
        let (_, said) = self
            .get("/v1/services/shop?until=paused&version=v2&timeout=20s")
            .await;
        assert_eq!(said["phase"], "Paused", "{said}");
    }
}

async fn read(response: Response<Body>) -> (StatusCode, Value) {
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&bytes);
    (
        status,
        serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(text)),
    )
}

#[tokio::test]
async fn each_role_may_do_what_the_table_says_and_no_more() {
    let bench = bench().await;
    let roles = [
        ("", None),
        ("viewer", Some(TokenRole::Viewer)),
        ("deployer", Some(TokenRole::Deployer)),
        ("approver", Some(TokenRole::Approver)),
        ("admin", Some(TokenRole::Admin)),
    ];
    for route in routes::table() {
        let path = route.path.replace("{service}", "shop").replace("{version}", "v1");
        if path == "/v1/events" {
            continue;
        }
        for (who, role) in roles {
            // A body that every handler refuses after the gate has let it through.
            let body = if route.method == Method::GET {
                ""
            } else {
                "{\"nonsense\":1}"
            };
            let answer = bench
                .over_tcp(who, request(&route.method, &path, body))
                .await
                .status();
            let allowed = match route.access {
                routes::Access::Open | routes::Access::Read => true,
                routes::Access::Write { role: needed, .. } => role.is_some_and(|role| role >= needed),
            };
            let turned = answer == StatusCode::UNAUTHORIZED || answer == StatusCode::FORBIDDEN;
            assert_eq!(!turned, allowed, "{who:?} {} {path}: {answer}", route.method);
            if !allowed {
                let expected = if role.is_none() { 401 } else { 403 };
                assert_eq!(answer, expected, "{who:?} {path}");
            }
        }
    }
}

#[tokio::test]
async fn a_body_that_asks_for_more_than_its_path_takes_a_higher_role() {
    let bench = bench().await;
    for more in [json!({"full": true}), json!({"skipAnalysis": true})] {
        let (status, said) = bench
            .post("approver", "/v1/services/shop/promote", more.clone())
            .await;
        assert_eq!((status.as_u16(), &said["code"]), (403, &json!("roleTooLow")));
        let (status, _) = bench.post("admin", "/v1/services/shop/promote", more).await;
        assert_eq!(status, 409);
    }
}

#[tokio::test]
async fn a_limited_token_sees_and_changes_its_services_only() {
    let bench = bench().await;
    let (status, said) = bench.post("till", "/v1/services/shop/abort", json!({})).await;
    assert_eq!((status.as_u16(), &said["code"]), (403, &json!("otherService")));
    let list = bench
        .over_tcp("till", request(&Method::GET, "/v1/services", ""))
        .await;
    assert_eq!(read(list).await.1, json!({"services": []}));
    assert_eq!(bench.post("till", "/v1/config/reload", json!({})).await.0, 403);
}

#[tokio::test]
async fn a_foreign_host_is_refused_on_every_route_and_the_socket_does_not_care() {
    let bench = bench().await;
    for route in routes::table() {
        let path = route.path.replace("{service}", "shop").replace("{version}", "v1");
        let mut foreign = request(&route.method, &path, "");
        foreign
            .headers_mut()
            .insert(header::HOST, "evil.example".parse().unwrap());
        assert_eq!(bench.over_tcp("admin", foreign).await.status(), 421, "{path}");
    }
    let mut named = request(&Method::POST, "/v1/services/shop/abort", "");
    named
        .headers_mut()
        .insert(header::HOST, "whatever".parse().unwrap());
    assert_eq!(bench.send(Peer::Socket { uid: 0 }, named).await.status(), 409);
}

#[tokio::test]
async fn a_refused_verb_says_what_is_legal_and_is_found_in_the_history() {
    let bench = bench().await;
    let response = bench
        .over_tcp(
            "approver",
            request(&Method::POST, "/v1/services/shop/promote", ""),
        )
        .await;
    assert_eq!(
        response.headers()[header::CONTENT_TYPE],
        "application/problem+json"
    );
    let (status, said) = read(response).await;
    assert_eq!((status.as_u16(), &said["status"]), (409, &json!(409)));
    assert!(
        said["legal"].as_array().unwrap().contains(&json!("deploy")),
        "{said}"
    );
    assert!(said["hint"].is_string(), "{said}");
    bench.post("viewer", "/v1/services/shop/abort", json!({})).await;
    // A command that is answered has passed the inbox behind the attempt above.
    bench.post("admin", "/v1/services/shop/pause", json!({})).await;
    let (_, history) = bench.get("/v1/services/shop/history").await;
    let attempts = history["attempts"].as_array().unwrap();
    let by = |actor: &str| {
        attempts
            .iter()
            .find(|one| one["caller"]["actor"] == actor)
            .cloned()
            .unwrap()
    };
    assert_eq!(by("viewer")["refused"], "roleTooLow");
    assert_eq!(by("approver")["verb"], "promote");
}

#[tokio::test]
async fn unknown_services_paths_and_methods_are_problems() {
    let bench = bench().await;
    for (path, status, code) in [
        ("/v1/services/nope", 404, "unknownService"),
        ("/v1/services/nope?until=healthy", 404, "unknownService"),
        ("/v1/services/nope/history", 404, "unknownService"),
        ("/v1/services/nope/metrics", 404, "unknownService"),
        ("/v2", 404, "unknownPath"),
        ("/v1/services/shop/deploy", 405, "methodNotAllowed"),
        ("/v1/services/shop?until=done", 400, "invalidQuery"),
        ("/v1/services/shop?untl=healthy", 400, "invalidQuery"),
    ] {
        let (answered, said) = bench.get(path).await;
        assert_eq!(
            (answered.as_u16(), said["code"].as_str()),
            (status, Some(code)),
            "{path}: {said}"
        );
    }
}

#[tokio::test]
async fn a_deploy_is_created_once_and_repeated_under_its_key() {
    let bench = bench().await;
    bench.deploy().await;
    let endpoint = format!("http://{}", bench.endpoint.local_addr().unwrap());
    let again = json!({"version": "v2", "endpoints": [endpoint]});
    let (status, _) = bench.post("deployer", "/v1/services/shop/deploy", again).await;
    assert_eq!(status, 200);
    let promote = || {
        let mut promote = request(&Method::POST, "/v1/services/shop/promote", "{}");
        promote
            .headers_mut()
            .insert("idempotency-key", "k1".parse().unwrap());
        promote
    };
    let first = bench.over_tcp("approver", promote()).await;
    assert_eq!(first.status(), 200);
    assert!(!first.headers().contains_key("idempotency-replayed"));
    // Without the key this would release the next pause too.
    let second = bench.over_tcp("approver", promote()).await;
    assert_eq!(second.headers()["idempotency-replayed"], "true");
    let (_, said) = bench.get("/v1/services/shop").await;
    assert_eq!(said["step"]["index"], 3, "{said}");
}

#[tokio::test]
async fn what_is_expected_must_hold() {
    let bench = bench().await;
    bench.deploy().await;
    let path = "/v1/services/shop/promote";
    for wrong in [
        json!({"version": "v9"}),
        json!({"step": 3}),
        json!({"generation": 1}),
    ] {
        let (status, said) = bench.post("approver", path, json!({"expect": wrong})).await;
        assert_eq!(status, 412, "{said}");
    }
    let status = bench
        .over_tcp("", request(&Method::GET, "/v1/services/shop", ""))
        .await;
    let etag = status.headers()[header::ETAG].clone();
    let with = |etag: &http::HeaderValue| {
        let mut promote = request(
            &Method::POST,
            path,
            "{\"expect\": {\"version\": \"v2\", \"step\": 1}}",
        );
        promote.headers_mut().insert(header::IF_MATCH, etag.clone());
        promote
    };
    let stale = "\"0\"".parse().unwrap();
    assert_eq!(bench.over_tcp("approver", with(&stale)).await.status(), 412);
    let mut known = request(&Method::GET, "/v1/services/shop", "");
    known.headers_mut().insert(header::IF_NONE_MATCH, etag.clone());
    assert_eq!(bench.over_tcp("", known).await.status(), 304);
    assert_eq!(bench.over_tcp("approver", with(&etag)).await.status(), 200);
}

#[tokio::test]
async fn a_long_poll_is_answered_by_the_change_and_by_stopping() {
    let bench = bench().await;
    bench.deploy().await;
    let poll = |goal: &str| {
        let path = format!("/v1/services/shop?until={goal}&throughPauses=true&timeout=50s");
        bench.over_tcp("", request(&Method::GET, &path, ""))
    };
    let promote = bench.post("approver", "/v1/services/shop/promote", json!({}));
    let bounded = tokio::time::timeout(Duration::from_secs(20), async {
        tokio::join!(poll("step=3"), promote)
    });
    let (answer, _) = bounded.await.unwrap();
    assert_eq!(answer.headers()["serin-goal"], "reached");
    let stop = async { bench.stop.send_replace(true) };
    let (answer, _) = tokio::time::timeout(Duration::from_secs(20), async {
        tokio::join!(poll("healthy"), stop)
    })
    .await
    .unwrap();
    assert_eq!(answer.headers()["serin-goal"], "waiting");
}

/// Reads events until `count` have come; their ids.
async fn ids(body: &mut Body, count: usize) -> Vec<u64> {
    let mut text = String::new();
    let read = async {
        loop {
            let ids: Vec<u64> = text
                .lines()
                .filter_map(|line| line.strip_prefix("id: ")?.parse().ok())
                .collect();
            if ids.len() >= count {
                return ids;
            }
            let frame = body.frame().await.unwrap().unwrap();
            text.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap_or_default()));
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.unwrap()
}

#[tokio::test]
async fn events_go_on_where_a_client_was_cut_off() {
    let bench = bench().await;
    bench.deploy().await;
    let from_start = bench
        .over_tcp("", request(&Method::GET, "/v1/events?after=0", ""))
        .await;
    assert_eq!(from_start.headers()[header::CONTENT_TYPE], "text/event-stream");
    let all = ids(&mut from_start.into_body(), 3).await;
    assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
    let mut resumed = request(&Method::GET, "/v1/events", "");
    let cut_off = all[0].to_string().parse().unwrap();
    resumed.headers_mut().insert("last-event-id", cut_off);
    let mut rest = bench.over_tcp("", resumed).await.into_body();
    assert_eq!(ids(&mut rest, 2).await, all[1..3]);
    // And then live.
    bench
        .post("approver", "/v1/services/shop/promote", json!({}))
        .await;
    let live = ids(&mut rest, 1).await;
    assert!(live[0] > all[1], "{live:?}");
}

#[tokio::test]
async fn followers_are_bounded() {
    let bench = bench().await;
    let mut open = Vec::new();
    for _ in 0..super::FOLLOWERS {
        let one = bench.over_tcp("", request(&Method::GET, "/v1/events", "")).await;
        assert_eq!(one.status(), 200);
        open.push(one);
    }
    assert_eq!(bench.get("/v1/events").await.0, 503);
    open.pop();
    assert_eq!(
        bench
            .over_tcp("", request(&Method::GET, "/v1/events", ""))
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn readiness_follows_start_and_drain() {
    let bench = bench().await;
    assert_eq!(bench.get("/livez").await.0, 200);
    assert_eq!(bench.get("/readyz").await.0, 503);
    assert_eq!(bench.get("/startupz").await.0, 503);
    bench.admin.parts.probes.set_started();
    assert_eq!(bench.get("/readyz").await.0, 200);
    bench.admin.parts.probes.set_draining();
    let (status, why) = bench.get("/readyz").await;
    assert_eq!((status.as_u16(), why), (503, json!("draining\n")));
    assert_eq!(bench.get("/livez").await.0, 200);
}

#[tokio::test]
async fn the_telemetry_address_tells_and_does_nothing_else() {
    let bench = bench().await;
    for route in routes::table() {
        let path = route.path.replace("{service}", "shop").replace("{version}", "v1");
        let mut asked = request(&route.method, &path, "");
        asked
            .headers_mut()
            .insert(header::HOST, "serin.monitoring.svc".parse().unwrap());
        asked
            .extensions_mut()
            .insert(Peer::Tcp("10.0.0.9:1".parse().unwrap()));
        let answer = bench
            .admin
            .telemetry_router()
            .oneshot(asked)
            .await
            .unwrap()
            .status();
        assert_eq!(
            answer == StatusCode::NOT_FOUND,
            !route.telemetry,
            "{path}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_refused_reload_lists_every_fault() {
    let bench = bench().await;
    let (status, said) = bench.post("admin", "/v1/config/reload", json!({})).await;
    assert_eq!((status.as_u16(), &said["code"]), (422, &json!("configRefused")));
    assert_eq!(said["problems"], json!(["serin.yaml:3:1: unknown key"]));
    let (_, said) = bench
        .post("admin", "/v1/config/check", json!({"text": "good"}))
        .await;
    assert_eq!(said["ok"], true);
}

#[tokio::test]
async fn off_loopback_reads_take_a_token() {
    let bench = bench().await;
    let far = Peer::Tcp("10.0.0.9:1".parse().unwrap());
    for path in ["/v1/services", "/", "/v1/config"] {
        assert_eq!(
            bench.send(far, request(&Method::GET, path, "")).await.status(),
            401,
            "{path}"
        );
    }
    assert_eq!(
        bench
            .send(far, request(&Method::GET, "/readyz", ""))
            .await
            .status(),
        503
    );
}
