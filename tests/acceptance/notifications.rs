//! Who is told over HTTP what happens to a rollout: signed, with the numbers, and without holding anything up.

use crate::{
    judge::{ends, shop},
    support::{
        Serin,
        authority::Authority,
        http::Server,
        load::Load,
        recorder::{recorder, recorder_that},
        upstream::Upstream,
        wait_for,
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{atomic::Ordering, mpsc::Receiver},
    time::Duration,
};

const SOON: Duration = Duration::from_secs(30);
const KEY: &str = "c2VyaW4ncyBrZXkgZm9yIHRlc3RzLCAzMiBieXRlcyE=";
const STEPS: &str = "steps: [{setWeight: 5}, {pause: {}}]";

type Posts = Receiver<(String, String)>;

fn with(configuration: &str, at: SocketAddr, more: &str) -> String {
    format!("{configuration}notifications: [{{name: ops, url: \"http://{at}/hooks/geheim\"{more}}}]\n")
}

fn header<'h>(head: &'h str, name: &str) -> &'h str {
    let line = head.split(&format!("\r\n{name}: ")).nth(1);
    line.and_then(|rest| rest.split("\r\n").next())
        .unwrap_or_default()
}

fn next(posts: &Posts) -> (String, Value) {
    let (head, body) = posts.recv_timeout(SOON).expect("a notification");
    (head, serde_json::from_str(&body).unwrap())
}

fn ended(serin: &Serin, result: &str) -> u64 {
    serin.count(
        "serin_notifications_total",
        &[("notification", "ops"), ("result", result)],
    )
}

fn deploy(v2: &Upstream, until: &str) -> String {
    format!(
        "deploy shop --version v2 --endpoint {} --until {until} --timeout 60s",
        v2.url()
    )
}

#[test]
fn an_abort_by_the_judge_comes_signed_with_the_sentence_that_everybody_reads() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    v2.fail(1000);
    let (receiver, posts) = recorder("204 No Content");
    let secret = format!(", secret: whsec_{KEY}");
    let serin = Serin::start_with(&with(
        &shop(&v1, "auto: {weights: [5, 50]}", ""),
        receiver,
        &secret,
    ));
    let load = Load::start(serin.web, 500);
    ends(&serin, 3, &deploy(&v2, "healthy"));
    load.stop();
    let (head, body) = posts.recv_timeout(SOON).unwrap();
    let (id, at) = (header(&head, "webhook-id"), header(&head, "webhook-timestamp"));
    let signature = header(&head, "webhook-signature").strip_prefix("v1,").unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(KEY).unwrap());
    let signed = format!("{id}.{at}.{body}");
    hmac::verify(&key, signed.as_bytes(), &STANDARD.decode(signature).unwrap()).expect("the signature");
    assert!(
        head.starts_with("POST /hooks/geheim HTTP/1.1\r\n")
            && header(&head, "content-type") == "application/json",
        "{head}"
    );

    let body: Value = serde_json::from_str(&body).unwrap();
    let text = body["text"].as_str().unwrap();
    assert_eq!(
        (&body["type"], body["id"].as_str().unwrap()),
        (&"on-rollout-aborted".into(), id)
    );
    assert!(
        text.contains("ROLL BACK at weight 5%: canary failed 100.00% ("),
        "{text}"
    );
    let status = serin.status("shop");
    assert!(
        text.ends_with(status["aborted"]["message"].as_str().unwrap()),
        "{text}"
    );
    let history = serin
        .api("GET", "/v1/services/shop/history", "secret-token", "")
        .2;
    let events = history["events"].as_array().unwrap();
    let mut event = body["data"].clone();
    if event["id"].is_null() {
        // A disk that takes longer than a second is not waited for.
        let same = events.iter().find(|known| known["at"] == event["at"]);
        event["id"] = same.map_or(Value::Null, |known| known["id"].clone());
    }
    assert!(events.contains(&event), "{body:#}");
    wait_for("the answer", SOON, || {
        (ended(&serin, "delivered") == 1).then_some(())
    });
    assert!(posts.try_recv().is_err(), "it is told once");
    // The address may be as secret as the key.
    let shown = serin.api("GET", "/v1/config", "secret-token", "").2.to_string() + &serin.log();
    assert!(!shown.contains("geheim") && !shown.contains(KEY), "{shown}");
}

#[test]
fn a_receiver_that_fails_twice_has_the_event_once() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let (receiver, posts) = recorder_that(|number| {
        Some(if number < 2 {
            "500 Internal Server Error"
        } else {
            "200 OK"
        })
    });
    let serin = Serin::start_with(&with(&shop(&v1, STEPS, ""), receiver, ""));
    ends(&serin, 0, &deploy(&v2, "paused"));
    let tries = [next(&posts), next(&posts), next(&posts)];
    for (head, body) in &tries {
        assert_eq!((body, &body["type"]), (&tries[0].1, &"on-rollout-paused".into()));
        assert_eq!(header(head, "webhook-id"), header(&tries[0].0, "webhook-id"));
        assert_eq!(header(head, "webhook-signature"), "", "there is no key");
    }
    wait_for("the answer", SOON, || {
        (ended(&serin, "delivered") == 1).then_some(())
    });
    assert_eq!((ended(&serin, "failed"), ended(&serin, "dropped")), (0, 0));
    assert!(posts.try_recv().is_err());
    let log = serin.log();
    assert_eq!(log.matches("`ops` could not be told").count(), 1, "{log}");
}

#[test]
fn a_receiver_that_never_answers_holds_up_neither_a_rollout_nor_a_stop() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let (receiver, posts) = recorder_that(|_| None);
    let serin = Serin::start_with(&with(&shop(&v1, STEPS, ""), receiver, ", timeout: 60s"));
    ends(&serin, 0, &deploy(&v2, "paused"));
    next(&posts);
    ends(&serin, 0, "promote shop --until healthy --timeout 30s");
    ends(&serin, 0, "undo shop");
    assert_eq!(serin.status("shop")["stable"], "v1");
    assert_eq!(ended(&serin, "delivered") + ended(&serin, "failed"), 0);
    serin.stop();
    assert!(posts.try_recv().is_err(), "nothing overtakes what hangs");
}

#[test]
fn what_a_killed_serin_has_not_told_the_next_one_tells_by_the_same_id_and_once() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    // The first attempt is never answered: meanwhile it is killed.
    let (receiver, posts) = recorder_that(|number| (number > 0).then_some("204 No Content"));
    let serin = Serin::start_with(&with(&shop(&v1, STEPS, ""), receiver, ", timeout: 60s"));
    ends(&serin, 0, &deploy(&v2, "paused"));
    let (head, body) = next(&posts);
    let serin = serin.crash_and_restart();
    let (head_again, again) = next(&posts);
    assert_eq!(header(&head_again, "webhook-id"), header(&head, "webhook-id"));
    assert_eq!(
        (&again["type"], &again["text"]),
        (&"on-rollout-paused".into(), &body["text"])
    );
    wait_for("the answer", SOON, || {
        (ended(&serin, "delivered") == 1).then_some(())
    });
    // Whoever reads the history has what was to be stored before stored.
    ends(&serin, 0, "history shop");
    let serin = serin.crash_and_restart();
    ends(&serin, 0, "abort shop");
    assert_eq!(next(&posts).1["type"], "on-rollout-aborted");
}

#[test]
fn whether_somebody_can_be_told_is_tried_before_anything_happens() {
    let v1 = Upstream::start("v1");
    let (receiver, posts) = recorder_that(|number| Some(["200 OK", "403 Forbidden"][number]));
    let serin = Serin::start_with(&with(
        &shop(&v1, STEPS, ""),
        receiver,
        ", on: [on-rollout-aborted]",
    ));
    let tested = |name: &str| {
        let path = format!("/v1/notifications/{name}/test");
        let (status, _, answer) = serin.api("POST", &path, "secret-token", "");
        (status, answer)
    };
    assert_eq!(
        tested("ops"),
        (200, json!({"delivered": true, "message": "the receiver has it"}))
    );
    assert_eq!(
        tested("ops").1,
        json!({"delivered": false, "message": "HTTP 403"})
    );
    let (head, body) = next(&posts);
    assert_eq!(
        (&body["type"], body["id"].as_str()),
        (&"test".into(), Some(header(&head, "webhook-id")))
    );
    let (status, problem) = tested("nobody");
    assert_eq!((status, &problem["code"]), (404, &"unknownNotification".into()));
    assert_eq!(
        ended(&serin, "delivered") + ended(&serin, "failed"),
        0,
        "a test is no event"
    );
}

#[test]
fn a_receiver_is_believed_by_the_authority_that_is_named_and_followed_nowhere_else() {
    let v1 = Upstream::start("v1");
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let receiver = Server::tls_at(0, &ours, &["http/1.1"]);
    let (lured, posts) = recorder("200 OK");
    let redirect = format!("307 Temporary Redirect\r\nlocation: http://{lured}/");
    let redirect: &'static str = redirect.leak();
    let (moved, _asked) = recorder(redirect);
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, other.pem()).unwrap();
    let serin = Serin::start_with(&format!(
        "{}notifications:\n- {{name: ops, url: \"https://127.0.0.1:{}\", ca: \"{}\"}}\n- {{name: moved, url: \"http://{moved}\"}}\n",
        shop(&v1, STEPS, ""),
        receiver.port(),
        ca.display()
    ));
    let tested = |name: &str| {
        let path = format!("/v1/notifications/{name}/test");
        serin.api("POST", &path, "secret-token", "").2
    };
    let answer = tested("ops");
    assert!(
        answer["delivered"] == false && answer["message"].as_str().unwrap().contains("certificate"),
        "{answer}"
    );
    assert_eq!(receiver.seen.requests.load(Ordering::SeqCst), 0);
    std::fs::write(&ca, ours.pem()).unwrap();
    wait_for("a message that is taken", SOON, || {
        (tested("ops")["delivered"] == true).then_some(())
    });
    let answer = tested("moved");
    assert_eq!(answer["message"], "HTTP 307: a redirect, which is not followed");
    assert!(posts.try_recv().is_err(), "nobody is led elsewhere");
}

#[test]
fn a_reload_adds_a_receiver_and_removes_it() {
    let (v1, v2) = (Upstream::start("v1"), Upstream::start("v2"));
    let ((first, to_first), (second, to_second)) = (recorder("200 OK"), recorder("200 OK"));
    let plain = shop(&v1, STEPS, "");
    let serin = Serin::start_with(&plain);
    ends(&serin, 0, &deploy(&v2, "paused"));
    let series = |name: &str| serin.metrics().contains(&format!("{{notification=\"{name}\""));
    serin.rewrite(&with(&plain, first, ""));
    wait_for("the first receiver", SOON, || series("ops").then_some(()));
    ends(&serin, 0, "pause shop");
    assert_eq!(next(&to_first).1["data"]["event"], "pause");
    serin.rewrite(&with(&plain, second, "").replace("name: ops", "name: others"));
    wait_for("the second receiver alone", SOON, || {
        (series("others") && !series("ops")).then_some(())
    });
    ends(&serin, 0, "abort shop --reason enough");
    let (_, body) = next(&to_second);
    assert_eq!(body["text"], "shop: v2 was aborted: aborted by hand: enough");
    assert!(to_first.try_recv().is_err(), "it is told nothing more");
}

#[test]
fn an_alarm_calls_somebody() {
    let v1 = Upstream::start("v1");
    let (receiver, posts) = recorder("200 OK");
    let alarm = "    alarm: {errors: 5%, over: 5s, requests: 50}\n";
    let slack = ", format: slack, on: [on-alarm-raised]";
    let serin = Serin::start_with(&with(&shop(&v1, STEPS, alarm), receiver, slack));
    v1.fail(300);
    let load = Load::start(serin.web, 200);
    let (_, body) = next(&posts);
    let text = body["text"].as_str().unwrap();
    assert!(
        text.starts_with("shop: ") && text.contains("of both versions together (the alarm rings above 5%)"),
        "{text}"
    );
    load.stop();
}
