//! Who is told what, how often it is tried, and what never waits for it.

use super::{
    judging::{BESIDE, judge},
    *,
};
use crate::rollout::Phase;
use serde_json::Value;

const MANUAL: &str =
    "    strategy: {canary: {steps: [{setWeight: 5}, {pause: {}}, {setWeight: 50}, {pause: {}}]}}";

fn told_by(more: &str) -> String {
    format!("notifications: [{{name: ops, url: \"http://127.0.0.1:7000/hook\"{more}}}]")
}

impl Lab {
    /// What the next attempts are answered.
    fn answers(&self, statuses: &[u16]) {
        let mut answers = self.outside.answers.lock().unwrap();
        answers.extend(statuses.iter().map(|status| Ok((*status, Vec::new()))));
    }

    /// Every attempt so far: its headers and its body.
    fn posts(&self) -> Vec<(Vec<(String, String)>, Value)> {
        let asked = self.outside.asked.lock().unwrap();
        let post = |question: &Question| {
            let body = serde_json::from_str(&question.body).unwrap();
            (question.headers.clone(), body)
        };
        asked.iter().map(post).collect()
    }

    async fn until_posts(&self, count: usize) -> Vec<(Vec<(String, String)>, Value)> {
        self.until("told", |_| self.outside.asked.lock().unwrap().len() >= count)
            .await;
        self.posts()
    }

    fn ended(&self, result: &str) -> u64 {
        let counter = &self.services.metrics().control.notifications;
        counter.with_label_values(&["ops", result]).get()
    }

    async fn try_v2(&self) {
        self.deploy("v2", 9002).await.unwrap();
        self.until("at 5 %", |status| status.set_weight == Weight::percent(5))
            .await;
    }
}

fn header<'h>(headers: &'h [(String, String)], name: &str) -> &'h str {
    let one = headers.iter().find(|(known, _)| known == name);
    one.map_or("", |(_, value)| value)
}

#[tokio::test(start_paused = true)]
async fn an_abort_by_the_judge_is_told_once_with_its_numbers() {
    let secret = ", secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let beside = format!("{}{}", judge(""), told_by(secret));
    let lab = Lab::new(config(BESIDE, &beside));
    lab.answers(&[200, 200]);
    lab.deploy("v2", 9002).await.unwrap();
    for _ in 0..60 {
        lab.traffic(200, 0.5).await;
    }
    assert_eq!(lab.status().phase, Phase::Degraded);
    let posts = lab.until_posts(1).await;
    assert_eq!(posts.len(), 1, "{posts:#?}");
    let (headers, body) = &posts[0];
    assert_eq!(body["type"], "on-rollout-aborted");
    assert_eq!(
        body["triggers"],
        serde_json::json!(["on-rollout-aborted", "on-analysis-run-failed"])
    );
    let text = body["text"].as_str().unwrap();
    assert!(
        text.starts_with("shop: v2 was aborted: ")
            && text.contains("ROLL BACK at weight 5%: canary failed ")
            && text.matches("e-value").count() == 1,
        "{text}"
    );
    // The event is the one that everybody else sees.
    let events = lab.control.events(Some("shop"), 0, 100).await.unwrap();
    let last = events.iter().rfind(|event| event.event == "analysis_finished");
    assert_eq!(body["data"], serde_json::to_value(last.unwrap()).unwrap());
    assert_eq!(body["timestamp"], body["data"]["at"]);
    assert_eq!(header(headers, "webhook-id"), body["id"]);
    assert!(header(headers, "webhook-signature").starts_with("v1,"));
    assert_eq!((lab.ended("delivered"), lab.ended("failed")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_overtakes_a_message_that_is_tried_again_and_it_counts_once() {
    let lab = Lab::new(config(
        MANUAL,
        &told_by(", on: [on-rollout-paused, on-rollout-aborted]"),
    ));
    lab.answers(&[500, 429, 200, 200]);
    lab.try_v2().await;
    lab.command(Command::Abort).await.unwrap();
    let posts = lab.until_posts(4).await;
    let types: Vec<&str> = posts
        .iter()
        .map(|(_, body)| body["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        types,
        [
            "on-rollout-paused",
            "on-rollout-paused",
            "on-rollout-paused",
            "on-rollout-aborted"
        ]
    );
    let id = |index: usize| header(&posts[index].0, "webhook-id");
    assert!(id(0) == id(1) && id(1) == id(2) && id(2) != id(3));
    lab.until("both", |_| lab.ended("delivered") == 2).await;
    assert_eq!((lab.ended("failed"), lab.ended("dropped")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_asks_to_be_left_alone_is_and_by_a_date_too() {
    let lab = Lab::new(config(MANUAL, &told_by(", on: [on-rollout-paused]")));
    let says = |text: &str| *lab.outside.retry_after.lock().unwrap() = Some(text.to_owned());
    says("20");
    lab.answers(&[429]);
    lab.try_v2().await;
    lab.until_posts(1).await;
    // The wall clock of the tests began at 2027-01-15T08:00:00Z.
    says("Fri, 15 Jan 2027 08:00:50 GMT");
    lab.answers(&[503, 200]);
    seconds(15).await;
    assert_eq!(lab.posts().len(), 1);
    seconds(10).await;
    assert_eq!(lab.posts().len(), 2);
    seconds(20).await;
    assert_eq!(lab.posts().len(), 2);
    seconds(10).await;
    assert_eq!((lab.posts().len(), lab.ended("delivered")), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_refused_message_is_not_sent_again_and_an_unreachable_receiver_is_given_up() {
    let lab = Lab::new(config(MANUAL, &told_by("")));
    lab.answers(&[400]);
    lab.try_v2().await;
    lab.until("refused", |_| lab.ended("failed") == 1).await;
    seconds(900).await;
    assert_eq!(lab.posts().len(), 1);
    lab.command(Command::Abort).await.unwrap();
    seconds(900).await;
    assert_eq!(lab.ended("failed"), 2);
    let tried = lab.posts().len();
    assert!((10..40).contains(&tried), "{tried}");
    seconds(900).await;
    assert_eq!(lab.posts().len(), tried, "it is over");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_stored_is_told_at_once_and_not_again_later() {
    let lab = Lab::new(config(MANUAL, &told_by(", on: [on-rollout-aborted]")));
    lab.try_v2().await;
    lab.answers(&[200, 200]);
    lab.store.fails.store(true, Ordering::SeqCst);
    lab.command(Command::Abort).await.unwrap();
    let posts = lab.until_posts(1).await;
    assert_eq!(
        (&posts[0].1["data"]["id"], &posts[0].1["data"]["event"]),
        (&Value::Null, &"abort".into())
    );
    lab.store.fails.store(false, Ordering::SeqCst);
    lab.until("healthy store", |_| lab.control.is_store_healthy())
        .await;
    seconds(60).await;
    assert_eq!(lab.posts().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_is_told_of_what_is_as_it_is_written() {
    let beside = "notifications:
- {name: ops, url: \"http://127.0.0.1:7000/ops\", services: [other]}
- {name: all, url: \"http://127.0.0.1:7000/all\", format: slack, headers: {x-team: shop}, on: [on-rollout-updated,
   on-rollout-step-completed, on-rollout-paused, on-rollout-completed]}";
    let lab = Lab::new(config(MANUAL, beside));
    lab.answers(&[200; 20]);
    lab.try_v2().await;
    lab.command(Command::Promote {
        full: true,
        skip_analysis: true,
    })
    .await
    .unwrap();
    let posts = lab.until_posts(4).await;
    let texts: Vec<&str> = posts
        .iter()
        .map(|(_, body)| body["text"].as_str().unwrap())
        .collect();
    assert_eq!(
        texts,
        [
            "shop: v1 is the first version, and stable at once",
            "shop: v2 is on trial, attempt 1",
            "shop: v2 is paused at step 1/4: CanaryPauseStep",
            "shop: v2 is stable"
        ]
    );
    let (headers, body) = &posts[0];
    assert_eq!(body.as_object().unwrap().len(), 1, "Slack wants text: {body}");
    assert_eq!(header(headers, "x-team"), "shop");
    assert_eq!(header(headers, "webhook-signature"), "", "there is no key");
}

#[tokio::test(start_paused = true)]
async fn a_reload_mends_a_receiver_and_removes_it() {
    let lab = Lab::new(config(MANUAL, &told_by("")));
    lab.try_v2().await;
    lab.until_posts(3).await;
    // It is not reached; at another address it is.
    lab.answers(&[200]);
    let other = told_by("").replace("7000", "7001");
    lab.control
        .apply_config(config(MANUAL, &other), || ())
        .await
        .unwrap();
    lab.until("told", |_| lab.ended("delivered") == 1).await;
    let last = lab.outside.asked.lock().unwrap().last().cloned().unwrap();
    assert_eq!(last.url, "http://127.0.0.1:7001/hook");
    let tried = lab.posts().len();
    lab.control.apply_config(config(MANUAL, ""), || ()).await.unwrap();
    lab.command(Command::Abort).await.unwrap();
    seconds(60).await;
    assert_eq!(lab.posts().len(), tried);
    let text = lab.services.metrics().expose();
    assert!(
        !text.contains("serin_notifications_total{"),
        "its series go with it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_away_costs_what_does_not_fit_and_holds_nothing() {
    let lab = Lab::new(config(MANUAL, &told_by(", on: [on-rollout-paused]")));
    lab.try_v2().await;
    for _ in 0..300 {
        lab.command(Command::Pause).await.unwrap();
        lab.command(Command::Resume).await.unwrap();
    }
    // The pause of the step, and for each round that by hand and the step's again. One is with the task, and as many as fit wait.
    assert_eq!(lab.ended("dropped"), 601 - 257);
    lab.answers(&[200; 400]);
    lab.until("told", |_| lab.ended("delivered") + lab.ended("failed") == 257)
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_tells_what_is_left_and_waits_for_nobody() {
    let lab = Lab::new(config(MANUAL, &told_by("")));
    lab.try_v2().await;
    let tried = lab.until_posts(4).await.len();
    let before = Instant::now();
    lab.control.shutdown().await;
    assert_eq!(lab.posts().len(), tried + 1, "once more");
    assert_eq!(lab.ended("failed"), 1);
    assert!(before.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn an_alarm_is_told_when_it_rings_and_when_it_is_over() {
    let alarmed = "    alarm: {errors: 5%, over: 30s, requests: 50}";
    let lab = Lab::new(config(alarmed, &told_by("")));
    lab.answers(&[200, 200]);
    for failed in [0, 0, 50, 50, 50] {
        lab.serve(Role::Stable, 100 - failed, failed);
        seconds(1).await;
    }
    let rung = lab.until_posts(1).await;
    let (body, text) = (&rung[0].1, rung[0].1["text"].as_str().unwrap());
    assert_eq!(body["type"], "on-alarm-raised");
    assert!(
        text.starts_with("shop: ")
            && text.contains("% of the service's ")
            && text.contains("the alarm rings above 5%"),
        "{text}"
    );
    assert_eq!(body["data"]["event"], "alarm_raised");
    for _ in 0..60 {
        lab.serve(Role::Stable, 100, 0);
        seconds(1).await;
    }
    let posts = lab.until_posts(2).await;
    assert_eq!(posts[1].1["type"], "on-alarm-cleared");
}

#[tokio::test(start_paused = true)]
async fn what_was_not_told_before_a_crash_is_told_after_it_once_and_by_the_same_id() {
    let on = ", on: [on-rollout-paused, on-rollout-aborted]";
    let lab = Lab::new(config(MANUAL, &told_by(on)));
    lab.answers(&[200]);
    lab.try_v2().await;
    lab.until("told", |_| lab.ended("delivered") == 1).await;
    // From here on nobody answers.
    lab.command(Command::Abort).await.unwrap();
    let before = lab.until_posts(2).await;
    let audit = told_by(&format!(
        "{on}}}, {{name: audit, url: \"http://127.0.0.1:7001/hook\""
    ));
    let config = config(MANUAL, &audit);
    let lab = lab
        .kill_and_restart(config.clone(), Duration::from_secs(30))
        .await;
    let tried = lab.posts().len();
    lab.answers(&[200; 10]);
    let posts = lab.until_posts(tried + 1).await;
    lab.until("told", |_| lab.ended("delivered") == 1).await;
    let (told, again) = (&before[1], posts.last().unwrap());
    assert_eq!(again.1["type"], "on-rollout-aborted");
    let sent = |post: &(Vec<(String, String)>, Value)| header(&post.0, "webhook-id").to_owned();
    assert_eq!(sent(told), sent(again));
    assert_eq!(
        (&told.1["data"], &told.1["text"]),
        (&again.1["data"], &again.1["text"])
    );
    // What had been told is not, nor is who is new told of the past, nor is anybody after the next start.
    seconds(60).await;
    assert_eq!(lab.posts().len(), tried + 1);
    let lab = lab.kill_and_restart(config, Duration::from_secs(30)).await;
    seconds(60).await;
    assert_eq!(lab.posts().len(), tried + 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_after_a_crash_is_not_told_any_more() {
    let config = config(MANUAL, &told_by(", on: [on-rollout-aborted]"));
    let lab = Lab::new(config.clone());
    lab.try_v2().await;
    lab.command(Command::Abort).await.unwrap();
    lab.until_posts(1).await;
    let lab = lab.kill_and_restart(config, Duration::from_secs(601)).await;
    let tried = lab.posts().len();
    lab.answers(&[200; 10]);
    seconds(60).await;
    assert_eq!(lab.posts().len(), tried);
}
