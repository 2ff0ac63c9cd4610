//! The rank test in the engine: when it takes its samples, of what, and what its one answer does to a rollout.

use super::*;
use crate::{
    analysis::RunPhase,
    rollout::{AbortCause, Phase},
};

/// Half the traffic, a test over twenty seconds, and then nothing more.
fn tested(test: &str) -> Arc<Config> {
    let strategy = "    strategy: {canary: {steps: [{setWeight: 50}, {analysis: {templates: [{templateName: ranks}]}}, {pause: {}}]}}";
    let template = format!(
        "analysisTemplates: [{{name: ranks, metrics: [{{name: ranks, mannWhitney: {{interval: 1s, window: 20s, {test}}}}}]}}]"
    );
    config(strategy, &template)
}

impl Lab {
    /// One interval: twenty of a hundred requests of the canary fail where `bad`, and two of stable's.
    async fn interval(&self, second: u32, bad: bool) {
        self.serve(Role::Stable, 98 + second % 2, 2 - second % 2);
        self.serve(Role::Canary, 80 + second % 3, if bad { 20 } else { second % 3 });
        seconds(1).await;
    }

    async fn analysing(&self) {
        self.deploy("v2", 9002).await.unwrap();
        self.until("analysing", |status| !status.analyses.is_empty())
            .await;
        // From here on each second of traffic lies within one interval.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_worse_canary_is_pulled_back_at_the_windows_end_and_not_before() {
    let lab = Lab::new(tested("metric: errorRate"));
    lab.analysing().await;
    for second in 0..19 {
        lab.interval(second, true).await;
    }
    let status = lab.status();
    assert_eq!(status.phase, Phase::Progressing, "{status:#?}");
    let metric = &status.analyses[0].metrics[0];
    assert!(
        metric.message.starts_with("19 of 20 samples of both versions"),
        "{metric:#?}"
    );
    lab.interval(19, true).await;
    let status = lab
        .until("rolled back", |status| status.phase == Phase::Degraded)
        .await;
    let aborted = status.aborted.unwrap();
    assert_eq!(aborted.cause, AbortCause::AnalysisFailed);
    let said = "Metric \"ranks\" assessed Failed due to failed (1) > failureLimit (0): canary is higher than stable: medians ";
    assert!(
        aborted.message.contains(said) && aborted.message.contains("% of 20 samples of each, shifted by +"),
        "{}",
        aborted.message
    );
}

#[tokio::test(start_paused = true)]
async fn a_canary_like_stable_goes_on_and_a_better_one_only_where_decrease_does_not_count() {
    for (direction, bad_stable, wanted) in [
        ("either", false, RunPhase::Successful),
        ("either", true, RunPhase::Failed),
        ("increase", true, RunPhase::Successful),
    ] {
        let lab = Lab::new(tested(&format!("metric: errorRate, direction: {direction}")));
        lab.analysing().await;
        for second in 0..21 {
            if bad_stable {
                lab.serve(Role::Stable, 0, 30);
            }
            lab.interval(second, false).await;
        }
        let status = lab
            .until("judged", |status| status.analyses[0].phase.is_completed())
            .await;
        assert_eq!(
            status.analyses[0].phase, wanted,
            "{direction} {bad_stable}: {status:#?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn versions_with_unequal_traffic_are_compared_on_equally_many_requests() {
    // One failure in fifty: of ten requests most intervals show none, of a thousand every one does.
    let lab = Lab::new(tested("metric: errorRate, confidence: 0.8"));
    lab.analysing().await;
    for second in 0..21 {
        lab.serve(Role::Stable, 980, 20);
        lab.serve(
            Role::Canary,
            10 - u32::from(second % 5 == 0),
            u32::from(second % 5 == 0),
        );
        seconds(1).await;
    }
    let status = lab
        .until("judged", |status| status.analyses[0].phase.is_completed())
        .await;
    assert_eq!(status.analyses[0].phase, RunPhase::Successful, "{status:#?}");
}

#[tokio::test(start_paused = true)]
async fn requests_are_compared_as_if_each_version_had_all_of_them() {
    let strategy = "    strategy: {canary: {steps: [{setWeight: 20}, {analysis: {templates: [{templateName: ranks}]}}, {pause: {}}]}}";
    let template = "analysisTemplates: [{name: ranks, metrics: [{name: ranks, mannWhitney: {interval: 1s, window: 20s, metric: requestRate}}]}]";
    for (canary, wanted) in [(20, RunPhase::Successful), (12, RunPhase::Failed)] {
        let lab = Lab::new(config(strategy, template));
        lab.analysing().await;
        for second in 0..21 {
            lab.serve(Role::Stable, 80 + second % 3, 0);
            lab.serve(Role::Canary, canary + second % 2, 0);
            seconds(1).await;
        }
        let status = lab
            .until("judged", |status| status.analyses[0].phase.is_completed())
            .await;
        assert_eq!(status.analyses[0].phase, wanted, "{status:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_inconclusive_and_of_a_critical_metric_a_failure() {
    for (more, phase) in [
        ("", RunPhase::Inconclusive),
        (", critical: true", RunPhase::Failed),
    ] {
        let lab = Lab::new(tested(&format!("metric: latency{more}")));
        lab.analysing().await;
        for second in 0..9 {
            lab.interval(second, false).await;
        }
        let status = lab
            .until("judged", |status| status.analyses[0].phase.is_completed())
            .await;
        let run = &status.analyses[0];
        assert_eq!(run.phase, phase, "{run:#?}");
        let said = "9 samples of both versions in 20s, and at least 10 are needed; 11 could not be taken, the last: canary had 0 requests";
        assert!(run.message.contains(said), "{}", run.message);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_begins_the_window_anew() {
    let test = tested("metric: errorRate");
    let lab = Lab::new(Arc::clone(&test));
    lab.analysing().await;
    for second in 0..15 {
        lab.interval(second, true).await;
    }
    let lab = lab.kill_and_restart(test, Duration::from_secs(3)).await;
    for second in 0..15 {
        lab.interval(second, true).await;
    }
    assert_eq!(lab.status().phase, Phase::Progressing, "{:#?}", lab.status());
    for second in 15..21 {
        lab.interval(second, true).await;
    }
    lab.until("rolled back", |status| status.phase == Phase::Degraded)
        .await;
}

/// The samples come from a server that is asked about both.
const ASKED: &str = "canary: {prometheus: {address: 'http://p', query: 'q{v=\"{{args.canary-version}}\"}'}}, \
                     stable: {prometheus: {address: 'http://p', query: 'q{v=\"{{args.stable-version}}\"}'}}";

fn vector(values: &[u32]) -> (u16, Vec<u8>) {
    let series: Vec<String> = values
        .iter()
        .map(|value| format!(r#"{{"metric": {{}}, "value": [1, "{value}"]}}"#))
        .collect();
    let series = series.join(",");
    let answer =
        format!(r#"{{"status": "success", "data": {{"resultType": "vector", "result": [{series}]}}}}"#);
    (200, answer.into_bytes())
}

#[tokio::test(start_paused = true)]
async fn whoever_is_asked_is_asked_about_both_versions_each_interval() {
    for (factor, wanted) in [(1, RunPhase::Successful), (2, RunPhase::Failed)] {
        let lab = Lab::new(tested(ASKED));
        for second in 0..20 {
            let mut answers = lab.outside.answers.lock().unwrap();
            answers.push_back(Ok(vector(&[factor * (100 + second % 7)])));
            answers.push_back(Ok(vector(&[100 + (second + 3) % 7])));
        }
        lab.analysing().await;
        let status = lab
            .until("judged", |status| status.analyses[0].phase.is_completed())
            .await;
        assert_eq!(status.analyses[0].phase, wanted, "{status:#?}");
        assert!(lab.outside.answers.lock().unwrap().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_whom_it_asks_pauses_and_silence_is_no_data() {
    for (answer, phase, said) in [
        (
            None,
            RunPhase::Error,
            "0 samples of both versions in 20s, and at least 10 are needed; 20 could not be taken, the last: unreachable",
        ),
        (
            Some(vector(&[])),
            RunPhase::Inconclusive,
            "canary and stable answered [NaN, NaN]",
        ),
        (
            Some(vector(&[1, 2])),
            RunPhase::Error,
            "canary: 2 series, and one number is compared",
        ),
    ] {
        let lab = Lab::new(tested(ASKED));
        lab.outside
            .answers
            .lock()
            .unwrap()
            .extend(answer.iter().cycle().take(40).cloned().map(Ok));
        lab.analysing().await;
        let status = lab
            .until("judged", |status| status.analyses[0].phase.is_completed())
            .await;
        let run = &status.analyses[0];
        assert_eq!(run.phase, phase, "{run:#?}");
        assert!(run.message.contains(said), "{}", run.message);
        assert_eq!(status.phase, Phase::Paused, "{status:#?}");
    }
}
