//! Many services at once: a start and a reload store what they bring with one write, all of it or nothing.

use super::*;
use std::fmt::Write;

const SERVICES: usize = 20;

/// Services with a stable version, and a canary that stays at 5 %.
fn many(count: usize, canary: bool) -> Arc<Config> {
    let mut text = "listeners: [{name: web, address: \"127.0.0.1:8080\"}]\nservices:\n".to_owned();
    for number in 0..count {
        let canary = if canary {
            "    canary: {version: v2, endpoints: [\"http://127.0.0.1:9002\"]}\n"
        } else {
            ""
        };
        write!(
            text,
            "  - name: shop{number}\n    match: [{{host: shop{number}.test}}]\n    stable: {{version: v1, endpoints: \
             [\"http://127.0.0.1:9001\"]}}\n{canary}    strategy: {{canary: {{steps: [{{setWeight: 5}}, {{pause: {{}}}}]}}}}\n"
        )
        .unwrap();
    }
    let loaded = load_text(&text, "test.yaml", Path::new("."), &|_| None);
    loaded
        .unwrap_or_else(|problems| panic!("{problems:#?}\n{text}"))
        .config
}

fn begin(config: Arc<Config>, inner: &Arc<SqliteStore>, writes: i64) -> (Lab, Arc<Faulty>) {
    let store = Faulty::new(inner.clone());
    store.appends.store(writes, Ordering::SeqCst);
    let lab = Lab::begin(config, store.clone(), PausedClock::new(), Arc::default());
    (lab.unwrap(), store)
}

fn writes_left(store: &Faulty) -> i64 {
    store.appends.load(Ordering::SeqCst)
}

fn stable(lab: &Lab) -> usize {
    let all = lab.control.list();
    all.iter().filter(|status| status.stable == Some(v("v1"))).count()
}

#[tokio::test(start_paused = true)]
async fn a_start_with_many_services_is_one_write_and_so_is_the_next_with_their_rollouts() {
    let inner = Arc::new(SqliteStore::in_memory().unwrap());
    let (lab, store) = begin(many(SERVICES, true), &inner, 2);
    assert_eq!((writes_left(&store), stable(&lab)), (1, SERVICES));
    drop(lab);
    // What is on trial is told that nobody served meanwhile.
    let (lab, store) = begin(many(SERVICES, true), &inner, 2);
    assert_eq!((writes_left(&store), stable(&lab)), (1, SERVICES));
    for service in inner.load().unwrap() {
        let events = inner.last_events(service.name.as_str(), 10).unwrap();
        let events: Vec<&str> = events.iter().map(|event| event.event.as_str()).collect();
        assert_eq!(events[0], "restarted", "{events:?}");
    }
    assert_replayed(&*inner);
}

#[tokio::test(start_paused = true)]
async fn a_reload_brings_all_new_services_with_one_write_or_says_of_each_that_it_was_not_done() {
    let inner = Arc::new(SqliteStore::in_memory().unwrap());
    let (lab, store) = begin(many(1, false), &inner, 1);
    // None is left: the disk is full.
    let changes = lab
        .control
        .apply_config(many(SERVICES, false), || ())
        .await
        .unwrap();
    let failed = changes
        .iter()
        .filter(|change| change.text.contains("not done"))
        .count();
    assert_eq!((failed, stable(&lab)), (SERVICES - 1, 1), "{changes:?}");
    assert_eq!(inner.load().unwrap().len(), 1);

    store.appends.store(2, Ordering::SeqCst);
    while !lab.control.is_store_healthy() {
        seconds(1).await;
    }
    lab.control
        .apply_config(many(SERVICES, false), || ())
        .await
        .unwrap();
    assert_eq!((writes_left(&store), stable(&lab)), (1, SERVICES));
    assert_replayed(&*inner);
}
