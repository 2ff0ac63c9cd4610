//! A raise that the disk takes its time to store: nobody waits for it but whoever asked for it and what comes after it.

use super::{
    hang::{Hanging, Hangs, PROMOTE},
    judging::judge,
    *,
};
use crate::{control::store::Patient, rollout::Phase};
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
        self.disk.hang(Hangs::Everything);
        let promotion = self.ask(service, PROMOTE);
        self.meanwhile(|| self.events(service).iter().any(|event| event == "promote"))
            .await;
        promotion
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

    /// The disk answers: what is stored of every service is what has come of its facts.
    async fn answers(&self) {
        self.disk.hang(Hangs::Nothing);
        self.lab.control.history("till", 1).await.unwrap();
        for service in self.disk.inner.load().unwrap() {
            assert_eq!(
                service.replayed.as_ref(),
                Some(&service.saved),
                "{}",
                service.name
            );
        }
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
