//! A disk that does not answer: what it may hold up, and what becomes of a write that was given up.

use super::*;
use crate::{control::store::Patient, rollout::Phase};
use std::sync::Condvar;

/// What a disk does not answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hangs {
    Nothing,
    Everything,
    /// All but events.
    Records,
}

/// A store that hangs while it is told so; what was asked of it comes about all the same.
#[derive(Debug)]
pub(super) struct Hanging {
    pub(super) inner: SqliteStore,
    hangs: Mutex<Hangs>,
    woken: Condvar,
}

impl Hanging {
    pub(super) fn new() -> Arc<Hanging> {
        Arc::new(Hanging {
            inner: SqliteStore::in_memory().unwrap(),
            hangs: Mutex::new(Hangs::Nothing),
            woken: Condvar::new(),
        })
    }

    pub(super) fn hang(&self, hangs: Hangs) {
        *self.hangs.lock().unwrap() = hangs;
        self.woken.notify_all();
    }

    /// The disk answers when it likes.
    fn wait(&self) {
        let hangs = self.hangs.lock().unwrap();
        let held = |hangs: &mut Hangs| *hangs != Hangs::Nothing;
        drop(self.woken.wait_while(hangs, held).unwrap());
    }

    fn wait_for_event(&self) {
        let hangs = self.hangs.lock().unwrap();
        let held = |hangs: &mut Hangs| *hangs == Hangs::Everything;
        drop(self.woken.wait_while(hangs, held).unwrap());
    }
}

impl Store for Hanging {
    fn load(&self) -> Result<Vec<StoredService>, StoreError> {
        self.inner.load()
    }
    fn secret(&self, fresh: [u8; 16]) -> Result<[u8; 16], StoreError> {
        self.inner.secret(fresh)
    }
    fn append(
        &self,
        service: &ServiceName,
        rows: &[Row],
        saved: &Saved,
        keys: &[KeyRow],
    ) -> Result<Vec<u64>, StoreError> {
        let done = self.inner.append(service, rows, saved, keys);
        self.wait_for_event();
        done
    }
    fn append_all(&self, steps: &[Appended]) -> Result<Vec<Vec<u64>>, StoreError> {
        let done = self.inner.append_all(steps);
        self.wait_for_event();
        done
    }
    fn take_back(
        &self,
        service: &ServiceName,
        ids: &[u64],
        before: Option<&Saved>,
        keys: &[KeyRow],
    ) -> Result<(), StoreError> {
        self.inner.take_back(service, ids, before, keys)
    }
    fn alive(&self, at: Timestamp) -> Result<(), StoreError> {
        self.wait();
        self.inner.alive(at)
    }
    fn events(
        &self,
        service: Option<&str>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        self.inner.events(service, after, limit)
    }
    fn last_events(&self, service: &str, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
        self.inner.last_events(service, limit)
    }
    fn rollout_events(&self, service: &str, rollout: &str) -> Result<Vec<StoredEvent>, StoreError> {
        self.inner.rollout_events(service, rollout)
    }
    fn rollouts(&self, service: &str) -> Result<Vec<RolloutStatus>, StoreError> {
        self.inner.rollouts(service)
    }
    fn audit(&self, attempt: &Attempt) -> Result<(), StoreError> {
        self.wait();
        self.inner.audit(attempt)
    }
    fn attempts(&self, service: &str, limit: usize) -> Result<Vec<Attempt>, StoreError> {
        self.inner.attempts(service, limit)
    }
    fn keys(&self, since: Timestamp) -> Result<Vec<(ServiceName, Timestamp, KeyRow)>, StoreError> {
        self.inner.keys(since)
    }
    fn save_run(&self, service: &str, row: &RunRow) -> Result<(), StoreError> {
        self.wait();
        self.inner.save_run(service, row)
    }
    fn runs(&self, service: &str, limit: usize) -> Result<Vec<RunRow>, StoreError> {
        self.inner.runs(service, limit)
    }
    fn save_judges(&self, rows: &[JudgeRow], parts: &[Arc<RecordPart>]) -> Result<(), StoreError> {
        self.wait();
        self.inner.save_judges(rows, parts)
    }
    fn judges(&self, service: &str) -> Result<Vec<JudgeRow>, StoreError> {
        self.inner.judges(service)
    }
    fn recorded(&self, service: &str, rollout: &str) -> Result<Vec<StretchRow>, StoreError> {
        self.inner.recorded(service, rollout)
    }
    fn unrecorded(&self, service: &str, rollout: &str) -> Result<Unrecorded, StoreError> {
        self.inner.unrecorded(service, rollout)
    }
    fn untold(&self, since: Timestamp) -> Result<(BTreeMap<String, Told>, Vec<Untold>), StoreError> {
        self.inner.untold(since)
    }
    fn hear(&self, receivers: &[String]) -> Result<(), StoreError> {
        self.inner.hear(receivers)
    }
    fn heard(&self, receiver: &str, service: &str, event: u64) -> Result<(), StoreError> {
        self.inner.heard(receiver, service, event)
    }
    fn sweep(&self, retention: Retention, now: Timestamp) -> Result<(), StoreError> {
        self.inner.sweep(retention, now)
    }
}

pub(super) const AT_5: &str =
    "    strategy: {canary: {steps: [{setWeight: 5}, {pause: {}}, {setWeight: 50}, {pause: {}}]}}";

/// Serin on a disk that is given up after a tenth of a second.
async fn paused_at_5() -> (Lab, Arc<Hanging>) {
    paused_at_5_with(Duration::from_millis(100)).await
}

async fn paused_at_5_with(patience: Duration) -> (Lab, Arc<Hanging>) {
    let disk = Hanging::new();
    let patient = Patient::with(disk.clone(), "serin.db".into(), patience).unwrap();
    let lab = Lab::begin(
        config(AT_5, ""),
        Faulty::new(Arc::new(patient)),
        PausedClock::new(),
        Arc::default(),
    )
    .unwrap();
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("paused", |status| status.phase == Phase::Paused).await;
    (lab, disk)
}

pub(super) const PROMOTE: Command = Command::Promote {
    full: false,
    skip_analysis: false,
};

#[tokio::test(start_paused = true)]
async fn an_abort_does_not_wait_for_a_disk_that_hangs_and_is_stored_when_it_answers() {
    let (lab, disk) = paused_at_5().await;
    disk.hang(Hangs::Everything);
    lab.command(Command::Abort).await.unwrap();
    assert_eq!(lab.weight(), Weight::ZERO);
    lab.until("told of", |_| !lab.control.is_store_healthy()).await;
    let refusal = lab.command(Command::Retry).await.unwrap_err();
    assert!(refusal.message.contains("the disk does not answer"), "{refusal}");
    disk.hang(Hangs::Nothing);
    lab.until("healthy store", |_| lab.control.is_store_healthy())
        .await;
    let aborts = disk.inner.events(Some("shop"), 0, 100).unwrap();
    let aborts = aborts.iter().filter(|event| event.event == "abort").count();
    assert_eq!(aborts, 1);
    let loaded = disk.inner.load().unwrap();
    assert_eq!(loaded[0].replayed.as_ref(), Some(&loaded[0].saved));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_facts_that_raise_nothing_and_all_are_kept_in_their_order() {
    // Whoever waited for the disk would wait so long, and the store would be known to hang.
    let (lab, disk) = paused_at_5_with(Duration::from_secs(60)).await;
    lab.released_and_another("v3", 9003, |status| status.phase == Phase::Paused)
        .await;
    let mut events = lab.control.subscribe();
    disk.hang(Hangs::Everything);
    // The former stable version is not kept warm any longer.
    seconds(15).await;
    lab.command(Command::Abort).await.unwrap();
    seconds(3).await;
    assert_eq!(lab.weight(), Weight::ZERO);
    assert!(lab.control.is_store_healthy());
    assert!(events.try_recv().is_err(), "nothing is stored yet");
    disk.hang(Hangs::Nothing);
    let mut told = Vec::new();
    for event in lab.control.history("shop", 4).await.unwrap().events.iter().rev() {
        told.push((event.event.clone(), event.detail["version"].clone()));
        assert_eq!(*event, *events.try_recv().unwrap());
    }
    let fact = |name: &str, version: &str| (name.to_owned(), version.into());
    let abort = ("abort".to_owned(), serde_json::Value::Null);
    let [draining, releasable] = [fact("draining", "v1"), fact("releasable", "v1")];
    assert_eq!(told, [draining, releasable, abort, fact("releasable", "v3")]);
    let loaded = disk.inner.load().unwrap();
    assert_eq!(loaded[0].replayed.as_ref(), Some(&loaded[0].saved));
}

#[tokio::test(start_paused = true)]
async fn a_raise_that_was_given_up_does_not_come_about_later() {
    let (lab, disk) = paused_at_5().await;
    let before = disk.inner.load().unwrap();
    disk.hang(Hangs::Everything);
    let refusal = lab.command(PROMOTE).await.unwrap_err();
    assert_eq!(
        (refusal.code.as_str(), lab.weight()),
        ("storeUnhealthy", Weight::percent(5))
    );
    disk.hang(Hangs::Nothing);
    lab.until("healthy store", |_| lab.control.is_store_healthy())
        .await;
    let after = disk.inner.load().unwrap();
    assert_eq!(
        (&after[0].saved, &after[0].replayed),
        (&before[0].saved, &before[0].replayed)
    );
    lab.command(PROMOTE).await.unwrap();
    assert_eq!(lab.weight(), Weight::percent(50));
}

#[tokio::test(start_paused = true)]
async fn services_of_a_reload_that_was_given_up_do_not_come_about_later() {
    let (lab, disk) = paused_at_5().await;
    let more = |name: &str| {
        let stable = "{version: v1, endpoints: [\"http://127.0.0.1:9001\"]}";
        format!("\n  - name: {name}\n    match: [{{host: {name}.test}}]\n    stable: {stable}")
    };
    let with_more = config(&[AT_5, &more("till"), &more("desk")].concat(), "");
    disk.hang(Hangs::Everything);
    let changes = lab.control.apply_config(with_more.clone(), || ()).await.unwrap();
    let failed = changes
        .iter()
        .filter(|change| change.text.contains("does not answer"));
    assert_eq!(failed.count(), 2, "{changes:?}");
    disk.hang(Hangs::Nothing);
    lab.until("healthy store", |_| lab.control.is_store_healthy())
        .await;
    assert_eq!(disk.inner.load().unwrap().len(), 1);
    lab.control.apply_config(with_more, || ()).await.unwrap();
    let loaded = disk.inner.load().unwrap();
    assert_eq!(loaded.len(), 3);
    assert!(
        loaded
            .iter()
            .all(|service| service.replayed.as_ref() == Some(&service.saved))
    );
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_record_that_no_decision_depends_on_and_it_is_kept_all_the_same() {
    // Whoever waited for the disk would wait so long, and this would fail.
    let (lab, disk) = paused_at_5_with(Duration::from_secs(60)).await;
    disk.hang(Hangs::Records);
    lab.command(PROMOTE).await.unwrap();
    assert_eq!(lab.weight(), Weight::percent(50));
    // The engine goes on, and still believes in the disk.
    lab.command(Command::Resume).await.unwrap_err();
    assert!(lab.control.is_store_healthy());
    let verbs =
        |attempts: Vec<Attempt>| -> Vec<String> { attempts.into_iter().map(|one| one.verb).collect() };
    assert_eq!(verbs(disk.inner.attempts("shop", 10).unwrap()), ["deploy"]);
    disk.hang(Hangs::Nothing);
    let kept = lab.control.history("shop", 10).await.unwrap().attempts;
    assert_eq!(verbs(kept), ["resume", "promote", "deploy"]);
}

#[tokio::test(start_paused = true)]
async fn records_that_hang_are_told_of_and_kept_when_the_disk_answers() {
    let (lab, disk) = paused_at_5().await;
    disk.hang(Hangs::Records);
    lab.command(PROMOTE).await.unwrap();
    lab.until("told of", |_| !lab.control.is_store_healthy()).await;
    disk.hang(Hangs::Nothing);
    lab.until("healthy store", |_| lab.control.is_store_healthy())
        .await;
    let kept = disk.inner.attempts("shop", 10).unwrap();
    assert_eq!(kept[0].verb, "promote", "{kept:?}");
}

#[tokio::test(start_paused = true)]
async fn a_command_with_a_key_waits_for_no_record_and_is_done_once() {
    // Whoever waited for the disk would wait so long, and this would fail.
    let (lab, disk) = paused_at_5_with(Duration::from_secs(60)).await;
    disk.hang(Hangs::Records);
    let keyed = async |command: Command| {
        let caller = Caller {
            idempotency_key: Some("once".into()),
            ..caller()
        };
        lab.control
            .command("shop", command, Expect::default(), caller)
            .await
    };
    assert!(!keyed(Command::Abort).await.unwrap().repeated);
    assert_eq!(lab.weight(), Weight::ZERO);
    assert!(keyed(Command::Abort).await.unwrap().repeated);
    assert_eq!(
        keyed(Command::Retry).await.unwrap_err().code,
        "idempotencyKeyReused"
    );
    assert!(lab.control.is_store_healthy());
    disk.hang(Hangs::Nothing);
    lab.control.history("shop", 1).await.unwrap();
    let kept = disk.inner.keys(Timestamp::default()).unwrap();
    assert_eq!((kept.len(), kept[0].2.key.as_str()), (1, "once"));
}

fn judge_row(json: &str) -> JudgeRow {
    JudgeRow {
        service: "shop".to_owned(),
        metric: "errors".to_owned(),
        json: json.to_owned(),
    }
}

#[test]
fn what_judges_know_is_stored_at_a_stop_though_an_older_keeping_is_still_going_on() {
    let disk = Hanging::new();
    let patient = Patient::with(disk.clone(), "serin.db".into(), Duration::from_secs(60)).unwrap();
    disk.hang(Hangs::Records);
    for known in ["1", "2", "3"] {
        patient.save_judges(&[judge_row(known)], &[]).unwrap();
    }
    disk.hang(Hangs::Nothing);
    patient.settled(Timestamp::from_secs(1)).unwrap();
    let kept = disk.inner.judges("shop").unwrap();
    assert_eq!(kept, [judge_row("3")]);
}

#[test]
fn a_disk_that_is_known_to_hang_is_not_waited_for_again() {
    let disk = Hanging::new();
    let patience = Duration::from_millis(100);
    let patient = Patient::with(disk.clone(), "serin.db".into(), patience).unwrap();
    disk.hang(Hangs::Records);
    patient.save_judges(&[judge_row("1")], &[]).unwrap();
    let hung = loop {
        if let Some(trouble) = patient.trouble() {
            break trouble;
        }
        std::thread::yield_now();
    };
    // A call that waited would be given up, and from then on everything would fail until it came back.
    assert_eq!(patient.settled(Timestamp::from_secs(1)), Err(hung));
    disk.hang(Hangs::Nothing);
    patient.judges("shop").unwrap();
    patient.settled(Timestamp::from_secs(1)).unwrap();
    assert_eq!(disk.inner.judges("shop").unwrap().len(), 1);
}
