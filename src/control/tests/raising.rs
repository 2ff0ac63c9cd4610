//! A raise that the disk takes its time to store: nobody waits for it but whoever asked for it and what comes after it.

use super::{
    hang::{Hanging, Hangs, PROMOTE},
    judging::judge,
    *,
};
use crate::{
    control::{RefusalKind, store::Patient},
    rollout::Phase,
    upstream::Fault,
};
use futures_util::FutureExt;
use serde_json::json;
use std::pin::pin;
use tokio::task::JoinHandle;

/// By hand, and judged meanwhile.
const WATCHED: &str = "    strategy:
      canary:
        analysis: {templates: [{templateName: judge}]}
        steps: [{setWeight: 5}, {pause: {}}, {setWeight: 50}, {pause: {}}]";
const TILL: &str = "  - name: till
    match: [{host: till.test}]
    stable: {version: v1, endpoints: [\"http://127.0.0.1:9101\"]}
    strategy: {canary: {steps: [{setWeight: 5}, {pause: {}}, {setWeight: 50}, {pause: {}}]}}";

/// Somebody's command, answered when it is.
type Asked = JoinHandle<Result<Accepted, Refusal>>;

/// Two services that have come to 5 %, on a disk that is never given up.
struct Slow {
    lab: Lab,
    disk: Arc<Hanging>,
}

impl Slow {
    async fn start() -> Slow {
        let disk = Hanging::new();
        // Whoever waited for the disk would wait so long, and everything would stand still.
        let patient = Patient::with(disk.clone(), "serin.db".into(), Duration::from_secs(60)).unwrap();
        let config = config(&format!("{WATCHED}\n{TILL}"), &judge(""));
        let store = Faulty::new(Arc::new(patient));
        let lab = Lab::begin(config, store, PausedClock::new(), Arc::default()).unwrap();
        let slow = Slow { lab, disk };
        for (service, port) in [("shop", 9002), ("till", 9102)] {
            let deploy = Command::Deploy(Deploy::of(v("v2"), vec![url(port)]));
            slow.ask(service, deploy).await.unwrap().unwrap();
        }
        slow.lab
            .until("at 5 %", |_| {
                ["shop", "till"].map(|service| slow.weight(service)) == [Weight::percent(5); 2]
            })
            .await;
        slow
    }

    fn ask(&self, service: &'static str, command: Command) -> Asked {
        let control = self.lab.control.clone();
        tokio::spawn(async move {
            control
                .command(service, command, Expect::default(), caller())
                .await
        })
    }

    fn weight(&self, service: &str) -> Weight {
        self.lab.services.get(service).unwrap().cell.load_full().weight
    }

    /// The disk answers, and nobody looks at that before the next event has been told.
    fn answers_unheard(&self) -> String {
        let mut live = self.lab.control.subscribe();
        self.disk.hang(Hangs::Nothing);
        let told = std::thread::spawn(move || live.blocking_recv());
        told.join().unwrap().unwrap().event.clone()
    }

    /// What the disk has, whether it has said so or not.
    fn events(&self, service: &str) -> Vec<String> {
        let events = self.disk.inner.events(Some(service), 0, 100).unwrap();
        events.into_iter().map(|event| event.event).collect()
    }

    /// A promotion has come to the disk, which does not answer.
    async fn promotion_hangs(&self, service: &'static str) -> Asked {
        self.hangs(service, PROMOTE).await
    }

    /// A command has come to the disk, which does not answer.
    async fn hangs(&self, service: &'static str, command: Command) -> Asked {
        // Nothing else is in front of it.
        self.lab.control.history(service, 1).await.unwrap();
        let before = self.events(service).len();
        self.disk.hang(Hangs::Everything);
        let asked = self.ask(service, command);
        self.meanwhile(|| self.events(service).len() > before).await;
        asked
    }

    /// Time goes on, which it does not by itself while a thread waits for the disk, until it holds.
    async fn meanwhile(&self, holds: impl Fn() -> bool) {
        let mut left = 100_000;
        while !holds() {
            left -= 1;
            assert!(left > 0, "never: {:#?}", self.lab.status());
            tokio::time::advance(Duration::from_millis(5)).await;
            tokio::task::yield_now().await;
        }
    }

    /// The canary of `shop` fails until it is pulled back.
    async fn shop_is_pulled_back(&self) {
        let traffic = || {
            let bad = !self.weight("shop").is_zero();
            if bad {
                self.lab.serve(Role::Stable, 19, 0);
                self.lab.serve(Role::Canary, 0, 1);
            }
            !bad
        };
        self.meanwhile(traffic).await;
        assert_eq!(self.lab.status().phase, Phase::Degraded);
    }

    /// Somebody asks for a pause, and waits.
    fn pause_waits<'a>(&'a self, service: &'a str) -> BoxFuture<'a, Result<Accepted, Refusal>> {
        let command = self
            .lab
            .control
            .command(service, Command::Pause, Expect::default(), caller());
        let mut pause = command.boxed();
        assert!(pause.as_mut().now_or_never().is_none());
        pause
    }

    /// The disk answers: what is stored of every service is what has come of its facts.
    async fn answers(&self) {
        self.disk.hang(Hangs::Nothing);
        self.lab.control.history("till", 1).await.unwrap();
        assert_replayed(&self.disk.inner);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_elses_rollback_waits_for_a_raise_that_is_being_stored() {
    let slow = Slow::start().await;
    let promotion = slow.promotion_hangs("till").await;
    slow.shop_is_pulled_back().await;
    assert!(!promotion.is_finished());
    assert_eq!(slow.weight("till"), Weight::percent(5), "not before it is stored");
    assert!(!slow.events("shop").contains(&"analysis_finished".to_owned()));
    slow.answers().await;
    promotion.await.unwrap().unwrap();
    assert_eq!(slow.weight("till"), Weight::percent(50));
    assert_eq!(slow.events("shop").last().unwrap(), "analysis_finished");
}

#[tokio::test(start_paused = true)]
async fn the_judge_looks_on_while_a_raise_is_being_stored_and_its_rollback_overtakes_it() {
    let slow = Slow::start().await;
    let promotion = slow.promotion_hangs("shop").await;
    slow.shop_is_pulled_back().await;
    let refusal = promotion.await.unwrap().unwrap_err();
    assert_eq!(refusal.code, "overtaken");
    slow.answers().await;
    assert_eq!(slow.weight("shop"), Weight::ZERO);
    let events = slow.events("shop");
    assert!(!events.contains(&"promote".to_owned()), "{events:?}");
    assert_eq!(events.last().unwrap(), "analysis_finished");
    let attempts = slow.lab.control.history("shop", 10).await.unwrap().attempts;
    assert_eq!(
        (attempts[0].verb.as_str(), attempts[0].refused.as_deref()),
        ("promote", Some("overtaken"))
    );
}

#[tokio::test(start_paused = true)]
async fn an_abort_overtakes_the_raise_that_is_being_stored_and_what_waited_comes_after_it() {
    let slow = Slow::start().await;
    let promotion = slow.promotion_hangs("till").await;
    // Of the promotions one after the other the second releases the second pause: it comes after the first, or after nothing.
    let second = slow.ask("till", PROMOTE);
    slow.meanwhile(|| true).await;
    assert!(!second.is_finished());
    let abort = slow.ask("till", Command::Abort);
    slow.meanwhile(|| slow.weight("till").is_zero()).await;
    assert_eq!(promotion.await.unwrap().unwrap_err().code, "overtaken");
    assert_eq!(second.await.unwrap().unwrap_err().code, "wrongState");
    slow.answers().await;
    abort.await.unwrap().unwrap();
    let events = slow.events("till");
    assert!(!events.contains(&"promote".to_owned()), "{events:?}");
    assert!(events.contains(&"abort".to_owned()), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_person_asks_for_comes_after_the_raise_that_is_being_stored() {
    let slow = Slow::start().await;
    let promotion = slow.promotion_hangs("till").await;
    let pause = slow.ask("till", Command::Pause);
    let stop = slow.ask(
        "till",
        Command::SetWeight {
            weight: Weight::percent(20),
        },
    );
    slow.meanwhile(|| true).await;
    assert!(!pause.is_finished() && !stop.is_finished());
    slow.answers().await;
    promotion.await.unwrap().unwrap();
    pause.await.unwrap().unwrap();
    stop.await.unwrap().unwrap();
    assert_eq!(slow.weight("till"), Weight::percent(20));
    // A lower weight acts before it is stored.
    slow.answers().await;
    let events = slow.events("till");
    let [.., first, second, third] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!([first, second, third], ["promote", "pause", "set-weight"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_the_raise_that_is_being_stored() {
    let slow = Slow::start().await;
    let promotion = slow.promotion_hangs("till").await;
    let control = slow.lab.control.clone();
    let stop = tokio::spawn(async move { control.shutdown().await });
    let disk = slow.disk.clone();
    // The engine's own thread waits now.
    std::thread::spawn(move || disk.hang(Hangs::Nothing));
    stop.await.unwrap();
    promotion.await.unwrap().unwrap();
    assert_eq!(slow.events("till").last().unwrap(), "promote");
    assert_eq!(slow.weight("till"), Weight::percent(50));
}

#[tokio::test(start_paused = true)]
async fn who_follows_the_events_gets_a_raise_before_what_is_stored_after_it() {
    let slow = Slow::start().await;
    let promotion = slow.promotion_hangs("till").await;
    let mut live = slow.lab.control.subscribe();
    let abort = slow.ask("shop", Command::Abort);
    slow.meanwhile(|| slow.weight("shop").is_zero()).await;
    // The engine has not heard of the promotion yet when the abort is stored.
    assert_eq!(slow.answers_unheard(), "promote");
    promotion.await.unwrap().unwrap();
    abort.await.unwrap().unwrap();
    slow.answers().await;
    let mut ids = Vec::new();
    while let Ok(event) = live.try_recv() {
        ids.push(event.id);
    }
    assert!(ids.len() >= 2 && ids.is_sorted(), "{ids:?}");
}

impl Slow {
    /// Another version takes the place of one that has no requests, and the disk does not answer.
    async fn v3_hangs(&self) -> Asked {
        let zero = Command::SetWeight { weight: Weight::ZERO };
        self.ask("till", zero).await.unwrap().unwrap();
        let deploy = Command::Deploy(Deploy::of(v("v3"), vec![url(9103)]));
        self.hangs("till", deploy).await
    }
}

#[tokio::test(start_paused = true)]
async fn an_abort_of_one_version_does_not_abort_another_that_was_stored_a_moment_ago() {
    let slow = Slow::start().await;
    let deploy = slow.v3_hangs().await;
    let expect = Expect {
        version: Some(v("v2")),
        ..Expect::default()
    };
    let mut abort = pin!(slow.lab.control.command("till", Command::Abort, expect, caller()));
    // It is asked for, and the engine hears of it before it hears that the disk has answered.
    assert!(abort.as_mut().now_or_never().is_none());
    assert_eq!(slow.answers_unheard(), "deploy");
    let refusal = abort.await.unwrap_err();
    assert_eq!(
        (refusal.kind, refusal.code.as_str()),
        (RefusalKind::Precondition, "otherVersion"),
        "{refusal}"
    );
    deploy.await.unwrap().unwrap();
    let status = slow.lab.control.status("till").unwrap();
    assert_eq!((status.canary, status.aborted), (Some(v("v3")), None));
    slow.answers().await;
}

#[tokio::test(start_paused = true)]
async fn an_abort_of_whatever_it_is_aborts_what_was_stored_a_moment_ago() {
    let slow = Slow::start().await;
    let deploy = slow.v3_hangs().await;
    let mut abort = pin!(
        slow.lab
            .control
            .command("till", Command::Abort, Expect::default(), caller())
    );
    assert!(abort.as_mut().now_or_never().is_none());
    assert_eq!(slow.answers_unheard(), "deploy");
    let status = abort.await.unwrap().status;
    assert_eq!(status.aborted.unwrap().version, v("v3"));
    deploy.await.unwrap().unwrap();
    slow.answers().await;
}

#[tokio::test(start_paused = true)]
async fn a_version_that_fails_does_not_take_down_another_that_was_stored_a_moment_ago() {
    let slow = Slow::start().await;
    let live = slow.lab.services.get("till").unwrap();
    let split = live.cell.load_full();
    let deploy = slow.v3_hangs().await;
    for endpoint in split.target(Role::Canary).version.endpoints().iter() {
        for _ in 0..3 {
            endpoint.failed(Fault::Hard, Duration::ZERO);
        }
    }
    // The engine hears of it before it hears that the disk has answered.
    assert!(live.canary_failed(&split, Duration::ZERO, &"connection refused"));
    assert_eq!(slow.answers_unheard(), "deploy");
    deploy.await.unwrap().unwrap();
    slow.meanwhile(|| slow.weight("till") == Weight::percent(5)).await;
    let status = slow.lab.control.status("till").unwrap();
    assert_eq!((status.canary, status.aborted), (Some(v("v3")), None));
    assert!(!live.cell.is_tripped());
    slow.answers().await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_comes_before_the_next_step_that_is_due_when_the_disk_answers() {
    let slow = Slow::start().await;
    let mut deploy = Deploy::of(v("v3"), vec![url(9103)]);
    let steps = json!([
        {"setWeight": 5}, {"pause": {}}, {"setWeight": 20}, {"pause": {"duration": "1s"}}, {"setWeight": 50}, {"pause": {}}
    ]);
    deploy.steps = Some(serde_json::from_value(steps).unwrap());
    slow.ask("till", Command::Deploy(deploy)).await.unwrap().unwrap();
    let at_5 = || slow.lab.control.status("till").unwrap().set_weight == Weight::percent(5);
    slow.meanwhile(at_5).await;
    let promotion = slow.promotion_hangs("till").await;
    let pause = slow.pause_waits("till");
    tokio::time::advance(Duration::from_secs(2)).await;
    slow.disk.hang(Hangs::Nothing);
    promotion.await.unwrap().unwrap();
    pause.await.unwrap();
    seconds(10).await;
    slow.answers().await;
    assert_eq!(
        slow.weight("till"),
        Weight::percent(20),
        "{:?}",
        slow.events("till")
    );
    let events = slow.events("till");
    let after = events.iter().skip_while(|event| *event != "promote").nth(1);
    assert_eq!(after.map(String::as_str), Some("pause"), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn what_still_waits_at_a_stop_is_refused_and_kept_as_an_attempt() {
    let slow = Slow::start().await;
    let promotion = slow.promotion_hangs("till").await;
    let pause = slow.pause_waits("till");
    let control = slow.lab.control.clone();
    // Both are asked for before the engine hears that the disk has answered.
    let mut stop = pin!(control.shutdown());
    assert!(stop.as_mut().now_or_never().is_none());
    let disk = slow.disk.clone();
    // The engine's own thread waits now.
    std::thread::spawn(move || disk.hang(Hangs::Nothing));
    stop.await;
    promotion.await.unwrap().unwrap();
    assert_eq!(pause.await.unwrap_err().code, "stopping");
    let attempts = slow.disk.inner.attempts("till", 10).unwrap();
    let kept = attempts
        .iter()
        .find(|attempt| attempt.verb == "pause")
        .expect("kept");
    assert_eq!(kept.refused.as_deref(), Some("stopping"));
    assert_eq!(kept.before, "Paused step 3/4 at 50%");
}

#[tokio::test(start_paused = true)]
async fn an_undo_does_not_lead_to_a_version_that_nobody_has_probed() {
    let slow = Slow::start().await;
    let release = || Command::Promote {
        full: true,
        skip_analysis: true,
    };
    slow.ask("till", release()).await.unwrap().unwrap();
    let deploy = Command::Deploy(Deploy::of(v("v3"), vec![url(9103)]));
    slow.ask("till", deploy).await.unwrap().unwrap();
    slow.meanwhile(|| slow.weight("till") == Weight::percent(5)).await;
    let release = slow.hangs("till", release()).await;
    let undo = Command::Undo { to: None };
    let mut undo = pin!(
        slow.lab
            .control
            .command("till", undo, Expect::default(), caller())
    );
    // It probes v1; when it is asked for, v3 has taken the place of v2, and it would lead to v2.
    assert!(undo.as_mut().now_or_never().is_none());
    slow.meanwhile(|| true).await;
    tokio::task::yield_now().await;
    assert!(undo.as_mut().now_or_never().is_none());
    slow.answers_unheard();
    assert_eq!(undo.await.unwrap_err().code, "overtaken");
    release.await.unwrap().unwrap();
    let again = Command::Undo { to: None };
    slow.ask("till", again).await.unwrap().unwrap();
    let status = slow.lab.control.status("till").unwrap();
    assert_eq!(status.stable, Some(v("v2")));
    slow.answers().await;
}
