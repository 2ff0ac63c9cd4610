//! What judges were fed can be judged again from the store, whatever has happened in between.

use super::{
    judging::{BESIDE, judge},
    *,
};
use crate::{
    analysis::{
        Advice,
        replay::{Replayed, Stretch, replay},
    },
    control::{Recording, Recordings},
    rollout::Phase,
};

/// The recordings of the rollout that is going on, or of the last one.
async fn recorded(lab: &Lab) -> Recordings {
    let history = lab.control.history("shop", 1).await.unwrap();
    let rollout = &history.rollouts[0].id;
    lab.control.recordings("shop", rollout).await.unwrap()
}

fn again(recording: &Recording) -> Replayed {
    let stretches: Vec<Stretch<'_>> = recording
        .stretches
        .iter()
        .map(|stretch| {
            assert_eq!(stretch.missing, None);
            Stretch {
                number: stretch.number,
                bytes: &stretch.data,
            }
        })
        .collect();
    replay(&stretches)
}

fn advices(replayed: &Replayed) -> Vec<Advice> {
    let decisions = replayed.decisions.iter();
    decisions.map(|again| again.replayed.advice).collect()
}

/// From 5 to 50 %, where the canary begins to fail.
async fn fails_at_50_percent(lab: &Lab) {
    while lab.status().set_weight != Weight::percent(50) {
        lab.traffic(1000, 0.0).await;
    }
    while lab.status().phase != Phase::Degraded {
        lab.traffic(1000, 0.1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_decision_of_a_rollout_is_made_again_from_the_store() {
    let lab = Lab::new(config(BESIDE, &judge("")));
    lab.serve(Role::Stable, 20_000, 3);
    seconds(2).await;
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    fails_at_50_percent(&lab).await;
    seconds(3).await;
    let recordings = recorded(&lab).await;
    let [recording] = recordings.recordings.as_slice() else {
        panic!("{:#?}", recordings.recordings.len())
    };
    let replayed = again(recording);
    assert!(replayed.is_same() && replayed.from_the_start, "{replayed:#?}");
    assert_eq!(advices(&replayed), [Advice::Proceed, Advice::Rollback]);
    // What the history says was decided is among them, word for word.
    let said: Vec<&str> = recordings
        .decisions
        .iter()
        .filter_map(|event| event.detail["by"]["message"].as_str())
        .collect();
    assert_eq!(said.len(), 2, "{said:#?}");
    for (said, again) in said.iter().zip(&replayed.decisions) {
        assert!(said.ends_with(&again.replayed.sentence), "{said}\n{again:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_recording_goes_on_over_a_kill_and_a_store_that_fails() {
    let config = config(BESIDE, &judge(""));
    let lab = Lab::new(config.clone());
    lab.deploy("v2", 9002).await.unwrap();
    lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
        .await;
    lab.traffic(1000, 0.0).await;
    lab.traffic(1000, 0.0).await;
    // Half a second of it is lost with the process, as the judge's own knowledge is.
    lab.serve(Role::Canary, 7, 0);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let lab = lab.kill_and_restart(config, Duration::from_secs(600)).await;
    lab.traffic(1000, 0.0).await;
    lab.store.fails.store(true, Ordering::SeqCst);
    for _ in 0..20 {
        lab.traffic(1000, 0.0).await;
    }
    lab.store.fails.store(false, Ordering::SeqCst);
    fails_at_50_percent(&lab).await;
    seconds(3).await;
    let recordings = recorded(&lab).await;
    assert_eq!(recordings.recordings.len(), 1);
    let replayed = again(&recordings.recordings[0]);
    assert!(replayed.is_same() && replayed.from_the_start, "{replayed:#?}");
    assert_eq!(advices(&replayed), [Advice::Proceed, Advice::Rollback]);
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_right_after_a_decision_leaves_what_it_was_made_from() {
    for (fact, advice) in [
        ("evidence_suffices", Advice::Proceed),
        ("client_errors", Advice::Pause),
        ("analysis_finished", Advice::Rollback),
    ] {
        let config = config(BESIDE, &judge(""));
        let lab = Lab::new(config.clone());
        lab.serve(Role::Stable, 20_000, 3);
        seconds(2).await;
        lab.deploy("v2", 9002).await.unwrap();
        lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
            .await;
        *lab.store.dies_after.lock().unwrap() = Some(fact);
        while !lab.store.fails.load(Ordering::SeqCst) {
            match advice {
                Advice::Pause => lab.refusing_canary(4).await,
                Advice::Rollback => lab.traffic(1000, 0.5).await,
                Advice::Proceed | Advice::Hold => lab.traffic(1000, 0.0).await,
            }
        }
        let lab = lab.kill_and_restart(config, Duration::from_secs(10)).await;
        let recordings = recorded(&lab).await;
        assert_eq!(recordings.decisions.last().unwrap().event, fact);
        let replayed = again(&recordings.recordings[0]);
        assert!(replayed.is_same(), "{fact}: {replayed:#?}");
        assert_eq!(advices(&replayed), [advice], "{fact}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_retry_has_its_recording_and_all_go_with_the_rollout() {
    let lab = Lab::new(config(BESIDE, &judge("")));
    for attempt in 1..=2 {
        if attempt == 1 {
            lab.deploy("v2", 9002).await.unwrap();
        } else {
            lab.command(Command::Retry).await.unwrap();
        }
        lab.until("at 5 %", |status| status.set_weight == Weight::percent(5))
            .await;
        while lab.status().phase != Phase::Degraded {
            lab.traffic(1000, 1.0).await;
        }
        seconds(3).await;
        let recordings = recorded(&lab).await;
        assert_eq!(recordings.recordings.len(), attempt);
        for recording in &recordings.recordings {
            let replayed = again(recording);
            assert!(replayed.is_same(), "{replayed:#?}");
            assert_eq!(advices(&replayed), [Advice::Rollback]);
        }
    }
    let rollout = recorded(&lab).await.rollout.id;
    let none = Retention {
        rollouts: 0,
        events: crate::model::Span::secs(3600),
        recordings: crate::model::ByteSize::kib(1024),
    };
    lab.store.inner.sweep(none, lab.clock.wall()).unwrap();
    assert!(lab.store.inner.recorded("shop", &rollout).unwrap().is_empty());
    let gone = lab.control.recordings("shop", &rollout).await.unwrap_err();
    assert!(gone.to_string().contains("is forgotten"), "{gone}");
}
