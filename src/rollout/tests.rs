//! What each event means, one claim each. The case files (rehearsed in `cli::rehearse`) hold the given scenarios; the
//! rules that serving adds to them are here.

use super::*;
use crate::{
    analysis::{OnError, RunPhase},
    model::{Span, Timestamp, VersionName, Weight},
};

fn v(name: &str) -> VersionName {
    VersionName::new(name).unwrap()
}

fn deploy(version: &str) -> Event {
    Event::Deploy { version: v(version) }
}

const PROMOTE: Event = Event::Promote {
    full: false,
    skip_analysis: false,
};
const SKIP: Event = Event::Promote {
    full: false,
    skip_analysis: true,
};
const FULL: Event = Event::Promote {
    full: true,
    skip_analysis: false,
};

/// A service under test: events in, refusals out.
struct Service {
    state: State,
    plan: Plan,
    effects: Vec<Effect>,
}

impl Service {
    fn on(plan: Plan) -> Service {
        let mut service = Service {
            state: State::default(),
            plan,
            effects: Vec::new(),
        };
        service.at(0, &deploy("v1"));
        service
    }

    fn try_at(&mut self, seconds: u64, event: &Event) -> Result<(), Refused> {
        let (state, effects) = transition(&self.state, event, &self.plan, Timestamp::from_secs(seconds))?;
        self.state = state;
        self.effects = effects;
        Ok(())
    }

    fn at(&mut self, seconds: u64, event: &Event) {
        self.try_at(seconds, event).unwrap();
    }

    fn refused(&mut self, seconds: u64, event: &Event) -> Refused {
        let before = self.state.clone();
        let refused = self.try_at(seconds, event).unwrap_err();
        assert_eq!(self.state, before);
        refused
    }

    fn roll(plan: Plan) -> Service {
        let mut service = Service::on(plan);
        service.at(0, &deploy("v2"));
        service.at(0, &Event::EndpointsReady);
        service
    }

    fn verdict(&self, kind: AnalysisKind, phase: RunPhase, on_error: OnError) -> Event {
        let run = self
            .state
            .runs()
            .into_iter()
            .find(|(_, known)| *known == kind)
            .unwrap()
            .0;
        Event::AnalysisFinished {
            run,
            phase,
            on_error,
            message: "because".into(),
        }
    }

    fn shown(&self) -> (Phase, usize, Weight) {
        (
            self.state.phase(),
            self.state.step(&self.plan).0,
            self.state.weight(),
        )
    }
}

fn weight(percent: u32) -> Step {
    Step::SetWeight(Weight::percent(percent))
}

fn pause(seconds: u64) -> Step {
    Step::Pause(Pause {
        duration: Some(Span::secs(seconds)),
        until_evidence: None,
    })
}

fn forever() -> Step {
    Step::Pause(Pause::default())
}

fn analysis() -> Step {
    Step::Analysis(AnalysisRef::default())
}

fn watched(steps: Vec<Step>, require_evidence: bool) -> Plan {
    let mut plan = Plan::of(Strategy::Canary(Canary {
        steps,
        background: Some(Background::default()),
    }));
    plan.require_evidence = require_evidence;
    plan
}

#[test]
fn the_first_version_is_stable_at_once() {
    let service = Service::on(Plan::canary(vec![weight(5)]));
    assert_eq!(
        (service.state.phase(), service.state.stable),
        (Phase::Healthy, Some(v("v1")))
    );
}

#[test]
fn a_new_version_waits_for_endpoints_at_weight_zero() {
    let mut service = Service::on(Plan::canary(vec![weight(5), forever()]));
    service.at(0, &deploy("v2"));
    assert_eq!(service.shown(), (Phase::Progressing, 0, Weight::ZERO));
    assert_eq!(service.state.message(&service.plan), "waiting for endpoints");
    service.refused(1, &PROMOTE);
    service.refused(1, &FULL);
    service.at(2, &Event::EndpointsReady);
    assert_eq!(service.shown(), (Phase::Paused, 1, Weight::percent(5)));
}

#[test]
fn past_the_deadline_without_endpoints_it_aborts_but_not_while_somebody_paused_it() {
    let mut plan = Plan::canary(vec![weight(5)]);
    plan.progress_deadline = Some(Span::secs(600));
    let mut service = Service::on(plan);
    service.at(0, &deploy("v2"));
    assert_eq!(
        service.state.next_wakeup(&service.plan),
        Some(Timestamp::from_millis(600_001))
    );
    service.at(600, &Event::Tick);
    assert_eq!(service.state.phase(), Phase::Progressing);
    service.at(600, &Event::Pause);
    service.at(700, &Event::Tick);
    assert_eq!(service.state.phase(), Phase::Paused);
    service.at(700, &Event::Resume);
    service.at(1300, &Event::Tick);
    assert_eq!(
        service.state.phase(),
        Phase::Progressing,
        "it counts from the resume"
    );
    service.at(1301, &Event::Tick);
    assert_eq!(service.state.phase(), Phase::Degraded);
    assert!(
        service
            .state
            .message(&service.plan)
            .contains("ProgressDeadlineExceeded")
    );
}

#[test]
fn endpoints_lost_on_the_way_mean_weight_zero_and_the_pause_does_not_count_that_time() {
    let mut service = Service::roll(Plan::canary(vec![weight(5), pause(100), weight(50), forever()]));
    service.at(40, &Event::EndpointsLost);
    assert_eq!(service.state.weight(), Weight::ZERO);
    assert_eq!(service.effects.len(), 1);
    service.at(240, &Event::EndpointsReady);
    assert_eq!(service.shown(), (Phase::Paused, 1, Weight::percent(5)));
    service.at(300, &Event::Tick);
    assert_eq!(service.shown().1, 1, "40 s and 60 s are not more than 100 s");
    service.at(301, &Event::Tick);
    assert_eq!(service.shown(), (Phase::Paused, 3, Weight::percent(50)));
}

#[test]
fn time_that_serin_was_down_does_not_count() {
    let mut service = Service::roll(Plan::canary(vec![weight(5), pause(100), weight(50), forever()]));
    let downtime = Span::secs(1000);
    service.at(1010, &Event::Restarted { downtime });
    let split = Effect::SetWeight {
        canary: Some(v("v2")),
        weight: Weight::percent(5),
    };
    assert!(
        service.effects.contains(&split),
        "everything is brought about again"
    );
    assert_eq!(
        service.state.next_wakeup(&service.plan),
        Some(Timestamp::from_millis(1_100_001))
    );
    service.at(1100, &Event::Tick);
    assert_eq!(service.shown().1, 1);
    service.at(1101, &Event::Tick);
    assert_eq!(service.shown().1, 3);
}

#[test]
fn promote_while_an_analysis_runs_needs_to_be_told_so() {
    let mut service = Service::roll(Plan::canary(vec![weight(5), analysis(), weight(50), forever()]));
    let refused = service.refused(1, &PROMOTE);
    assert_eq!(refused.hint.as_deref(), Some("promote --skip-analysis"));
    assert!(refused.legal.contains(&Verb::Abort) && !refused.legal.contains(&Verb::Retry));
    service.at(1, &SKIP);
    assert_eq!(service.shown(), (Phase::Paused, 3, Weight::percent(50)));
    let stopped = |effect: &Effect| matches!(effect, Effect::StopAnalysis { .. });
    assert!(service.effects.iter().any(stopped));
}

#[test]
fn a_repeated_promote_is_not_a_licence_for_the_next_gate() {
    let mut service = Service::roll(Plan::canary(vec![
        weight(5),
        forever(),
        analysis(),
        weight(50),
        forever(),
    ]));
    service.at(1, &PROMOTE);
    service.refused(1, &PROMOTE);
    assert_eq!(service.shown(), (Phase::Progressing, 2, Weight::percent(5)));
}

#[test]
fn an_aborted_version_is_refused_until_retry() {
    let mut service = Service::roll(Plan::canary(vec![weight(5), forever()]));
    let reason = Some("bad feeling".to_owned());
    service.at(1, &Event::Abort { reason });
    assert_eq!(service.shown(), (Phase::Degraded, 0, Weight::ZERO));
    assert!(service.state.message(&service.plan).contains("bad feeling"));
    let refused = service.refused(2, &deploy("v2"));
    assert_eq!(
        (refused.hint.as_deref(), refused.legal.contains(&Verb::Retry)),
        (Some("retry"), true)
    );
    service.at(3, &Event::Retry);
    service.at(3, &Event::EndpointsReady);
    assert_eq!(service.shown(), (Phase::Paused, 1, Weight::percent(5)));
    assert_eq!(service.state.rolling().unwrap().attempt, 2);
}

#[test]
fn the_same_version_again_is_the_same_rollout() {
    let mut service = Service::roll(Plan::canary(vec![weight(5), forever()]));
    let before = service.state.clone();
    service.at(50, &deploy("v2"));
    assert_eq!((service.state, service.effects), (before, vec![]));
}

#[test]
fn a_new_version_supersedes_and_the_old_one_is_retired() {
    let mut service = Service::roll(watched(vec![weight(5), forever()], true));
    service.at(1, &deploy("v3"));
    assert_eq!(service.state.weight(), Weight::ZERO);
    let effects = &service.effects;
    let position = |wanted: fn(&Effect) -> bool| effects.iter().position(wanted).unwrap();
    let zero = position(|effect| matches!(effect, Effect::SetWeight { weight, .. } if weight.is_zero()));
    let retired = position(|effect| matches!(effect, Effect::Retire { version } if version.as_str() == "v2"));
    assert!(
        zero < retired
            && effects
                .iter()
                .any(|effect| matches!(effect, Effect::StopAnalysis { .. }))
    );
}

#[test]
fn nothing_reaches_everybody_on_no_evidence() {
    let mut service = Service::roll(watched(vec![weight(50), weight(100), forever()], true));
    assert_eq!(service.shown(), (Phase::Progressing, 1, Weight::percent(50)));
    service.refused(1, &PROMOTE);
    let (run, _) = service.state.runs()[0];
    service.at(2, &Event::EvidenceGathered { run });
    assert_eq!(service.shown(), (Phase::Paused, 2, Weight::FULL));
    service.at(3, &PROMOTE);
    assert_eq!(service.state.phase(), Phase::Healthy);
}

#[test]
fn finished_steps_wait_for_evidence_too_and_skip_analysis_overrides() {
    for late in [0, 9] {
        let mut plan = watched(vec![weight(50)], true);
        if let Strategy::Canary(canary) = &mut plan.strategy {
            canary.background = Some(Background {
                analysis: AnalysisRef::default(),
                starting_step: late,
            });
        }
        let mut service = Service::roll(plan);
        assert_eq!(service.shown(), (Phase::Progressing, 1, Weight::percent(50)));
        assert_eq!(service.state.runs().len(), 1, "starting step {late}");
        service.at(1, &SKIP);
        assert_eq!(service.state.stable, Some(v("v2")));
    }
}

#[test]
fn an_inconclusive_background_analysis_blocks_and_resume_measures_anew() {
    let mut service = Service::roll(watched(vec![weight(5), pause(10), weight(50), forever()], false));
    let verdict = service.verdict(AnalysisKind::Background, RunPhase::Inconclusive, OnError::Abort);
    service.at(1, &verdict);
    assert_eq!(
        service.state.pause_reason(),
        Some(PauseReason::InconclusiveAnalysisRun)
    );
    assert!(service.state.runs().is_empty());
    service.at(100, &Event::Tick);
    assert_eq!(service.shown().1, 1);
    service.at(100, &Event::Resume);
    assert_eq!((service.shown().1, service.state.runs().len()), (3, 1));
    service.refused(101, &verdict);
}

#[test]
fn an_external_outage_pauses_and_resume_measures_anew() {
    let mut service = Service::roll(Plan::canary(vec![weight(5), analysis(), weight(50), forever()]));
    let verdict = service.verdict(AnalysisKind::Inline, RunPhase::Error, OnError::Pause);
    service.at(1, &verdict);
    assert_eq!(service.shown(), (Phase::Paused, 1, Weight::percent(5)));
    assert_eq!(service.state.pause_reason(), Some(PauseReason::AnalysisRunError));
    service.at(2, &Event::Resume);
    let verdict = service.verdict(AnalysisKind::Inline, RunPhase::Successful, OnError::Abort);
    service.at(3, &verdict);
    assert_eq!(service.shown(), (Phase::Paused, 3, Weight::percent(50)));
}

#[test]
fn a_manual_pause_holds_a_verdict_until_resume_and_the_timer_runs_on() {
    let mut service = Service::roll(Plan::canary(vec![
        weight(5),
        analysis(),
        pause(60),
        weight(50),
        forever(),
    ]));
    service.at(1, &Event::Pause);
    let verdict = service.verdict(AnalysisKind::Inline, RunPhase::Successful, OnError::Abort);
    service.at(2, &verdict);
    assert_eq!(service.shown(), (Phase::Paused, 2, Weight::percent(5)));
    service.at(3, &Event::Resume);
    service.at(4, &Event::Pause);
    service.at(100, &Event::Tick);
    assert_eq!(service.shown().1, 2);
    assert_eq!(service.state.next_wakeup(&service.plan), None);
    service.at(100, &Event::Resume);
    assert_eq!(service.shown(), (Phase::Paused, 4, Weight::percent(50)));
}

#[test]
fn resume_does_not_release_a_pause_step() {
    let mut service = Service::roll(Plan::canary(vec![weight(5), forever()]));
    let refused = service.refused(1, &Event::Resume);
    assert_eq!(refused.hint.as_deref(), Some("promote"));
}

#[test]
fn a_weight_by_hand_pauses_the_rollout_there() {
    let mut service = Service::roll(Plan::canary(vec![weight(5), pause(10), weight(50), forever()]));
    let hand: Weight = "1/3".parse().unwrap();
    service.at(1, &Event::SetWeight { weight: hand });
    service.at(100, &Event::Tick);
    assert_eq!(service.shown(), (Phase::Paused, 1, hand));
    assert_eq!(service.state.pause_reason(), Some(PauseReason::Manual));
    service.at(101, &Event::Resume);
    assert_eq!(service.shown(), (Phase::Paused, 3, Weight::percent(50)));
    let mut green = Service::roll(Plan::of(Strategy::BlueGreen(BlueGreen {
        auto_promotion_enabled: false,
        ..BlueGreen::default()
    })));
    green.refused(1, &Event::SetWeight { weight: hand });
}

#[test]
fn a_hard_failure_overrides_every_pause() {
    let mut service = Service::roll(Plan::canary(vec![weight(5), forever()]));
    service.at(1, &Event::Pause);
    let failure = |action| Event::HardFailure {
        action,
        message: "3 of 3 refused".into(),
    };
    let mut paused = Service::roll(Plan::canary(vec![weight(5), forever()]));
    paused.at(1, &failure(OnError::Pause));
    assert_eq!(paused.shown(), (Phase::Paused, 1, Weight::ZERO));
    service.at(2, &failure(OnError::Abort));
    let Stage::Aborted(aborted) = &service.state.stage else {
        panic!("{:?}", service.state.stage);
    };
    assert_eq!(aborted.cause, AbortCause::HardFailure);
    service.at(3, &failure(OnError::Abort));
    assert_eq!(service.state.phase(), Phase::Degraded);
}

#[test]
fn shared_fate_blames_nobody_and_its_time_does_not_count() {
    let mut service = Service::roll(Plan::canary(vec![weight(5), pause(60), weight(50), forever()]));
    let message = "both refused".to_owned();
    service.at(30, &Event::SharedFate { message });
    assert_eq!(service.shown(), (Phase::Paused, 1, Weight::ZERO));
    assert_eq!(service.state.message(&service.plan), "SharedFate: both refused");
    service.at(500, &Event::Resume);
    assert_eq!(service.shown(), (Phase::Paused, 1, Weight::percent(5)));
    service.at(560, &Event::Tick);
    assert_eq!(service.shown().1, 1);
    service.at(561, &Event::Tick);
    assert_eq!(service.shown().1, 3);
}

#[test]
fn shared_fate_takes_an_abort_for_a_hard_failure_back_and_no_other() {
    let failure = Event::HardFailure {
        action: OnError::Abort,
        message: "3 of 3 refused".into(),
    };
    let fate = Event::SharedFate {
        message: "stable fails alike".into(),
    };
    for (end, phase) in [
        (failure, Phase::Paused),
        (Event::Abort { reason: None }, Phase::Degraded),
    ] {
        let mut service = Service::roll(Plan::canary(vec![weight(5), forever()]));
        service.at(1, &end);
        service.at(5, &fate);
        assert_eq!(service.shown(), (phase, 0, Weight::ZERO));
        assert_eq!(
            service.state.rolling().map(|rolling| rolling.attempt),
            (phase == Phase::Paused).then_some(1),
            "nobody has retried it"
        );
    }
}

#[test]
fn a_pause_without_endpoints_says_so() {
    let mut service = Service::roll(Plan::canary(vec![weight(5), pause(60), weight(50)]));
    service.at(10, &Event::EndpointsLost);
    let said = service.state.message(&service.plan);
    assert_eq!(said, "CanaryPauseStep: waiting for endpoints");
    service.at(20, &Event::EndpointsReady);
    assert_eq!(service.state.message(&service.plan), "CanaryPauseStep");
}

#[test]
fn the_deadline_does_not_count_a_shared_failure_nor_a_pause_by_hand() {
    let fate = Event::SharedFate {
        message: "the database is down".into(),
    };
    for hold in [fate, Event::Pause] {
        let mut plan = Plan::canary(vec![weight(5), forever()]);
        plan.progress_deadline = Some(Span::secs(600));
        let mut service = Service::roll(plan);
        service.at(10, &Event::EndpointsLost);
        service.at(20, &hold);
        service.at(5000, &Event::Tick);
        assert_eq!(service.state.phase(), Phase::Paused);
        service.at(6000, &Event::Resume);
        service.at(6500, &Event::Tick);
        assert_eq!(service.state.phase(), Phase::Paused, "500 of 600 seconds count");
        service.at(6601, &Event::Tick);
        assert_eq!(service.state.phase(), Phase::Degraded);
    }
}

#[test]
fn undo_of_a_finished_release_is_instant_while_warm_and_refused_when_not() {
    let mut service = Service::roll(Plan::canary(vec![weight(5)]));
    assert_eq!(service.state.stable, Some(v("v2")));
    let undo = |warm| Event::Undo { to: None, warm };
    let refused = service.refused(9, &undo(false));
    assert_eq!(refused.hint.as_deref(), Some("deploy"));
    let before = service.state.clone();
    service.at(9, &undo(true));
    assert_eq!(
        (service.state.stable.clone(), service.state.phase()),
        (Some(v("v1")), Phase::Healthy)
    );
    assert!(!service.state.exposes_more_than(&before), "going back acts first");
    service.at(10, &undo(true));
    assert_eq!(service.state.stable, Some(v("v2")), "and back again");
}

#[test]
fn raising_and_promoting_expose_more_and_aborting_does_not() {
    let mut service = Service::on(Plan::canary(vec![weight(5), forever()]));
    let steps = [
        (deploy("v2"), false),
        (Event::EndpointsReady, true),
        (Event::EndpointsLost, false),
        (Event::EndpointsReady, true),
        (Event::Abort { reason: None }, false),
        (Event::Retry, false),
        (Event::EndpointsReady, true),
        (PROMOTE, true),
    ];
    for (event, more) in steps {
        let before = service.state.clone();
        service.at(1, &event);
        assert_eq!(service.state.exposes_more_than(&before), more, "{}", event.name());
    }
}

#[test]
fn within_the_rollback_window_the_way_back_skips_the_steps_once_endpoints_are_ready() {
    let mut plan = Plan::canary(vec![weight(5), forever()]);
    plan.rollback_window = Some(RollbackWindow { revisions: 3 });
    let mut service = Service::on(plan);
    for version in ["v2", "v3", "v4", "v5"] {
        service.at(0, &deploy(version));
        service.at(0, &Event::EndpointsReady);
        service.at(0, &FULL);
    }
    service.at(1, &deploy("v2"));
    assert_eq!(
        service.state.stable,
        Some(v("v5")),
        "not before its endpoints are ready"
    );
    service.at(2, &Event::EndpointsReady);
    assert_eq!(
        (service.state.stable.clone(), service.state.phase()),
        (Some(v("v2")), Phase::Healthy)
    );

    service.at(3, &deploy("v5"));
    service.at(3, &Event::EndpointsReady);
    assert_eq!(
        service.state.phase(),
        Phase::Paused,
        "forward is never within the window"
    );
    service.at(3, &FULL);
    service.at(4, &deploy("v1"));
    service.at(4, &Event::EndpointsReady);
    assert_eq!(service.state.phase(), Phase::Paused, "three versions lie between");
}

#[test]
fn a_failed_analysis_after_the_switch_flips_back() {
    let mut service = Service::roll(Plan::of(Strategy::BlueGreen(BlueGreen {
        auto_promotion_after: Some(Span::secs(60)),
        post_promotion_analysis: Some(AnalysisRef::default()),
        ..BlueGreen::default()
    })));
    assert_eq!(service.state.pause_reason(), Some(PauseReason::BlueGreenPause));
    service.at(60, &Event::Tick);
    assert_eq!(service.state.active(), Some(&v("v1")));
    service.at(61, &Event::Tick);
    assert_eq!(
        (service.state.active(), service.state.stable.as_ref()),
        (Some(&v("v2")), Some(&v("v1")))
    );
    let verdict = service.verdict(AnalysisKind::PostPromotion, RunPhase::Failed, OnError::Abort);
    let mut good = Service {
        state: service.state.clone(),
        plan: service.plan.clone(),
        effects: Vec::new(),
    };
    service.at(70, &verdict);
    assert_eq!(
        (service.state.active(), service.state.phase()),
        (Some(&v("v1")), Phase::Degraded)
    );
    let verdict = good.verdict(AnalysisKind::PostPromotion, RunPhase::Successful, OnError::Abort);
    good.at(70, &verdict);
    assert_eq!(
        (good.state.stable.clone(), good.state.phase()),
        (Some(v("v2")), Phase::Healthy)
    );
}

#[test]
fn a_manual_pause_also_holds_the_blue_green_switch() {
    let mut service = Service::roll(Plan::of(Strategy::BlueGreen(BlueGreen {
        pre_promotion_analysis: Some(AnalysisRef::default()),
        post_promotion_analysis: Some(AnalysisRef::default()),
        ..BlueGreen::default()
    })));
    service.at(1, &Event::Pause);
    let verdict = service.verdict(AnalysisKind::PrePromotion, RunPhase::Successful, OnError::Abort);
    service.at(2, &verdict);
    assert_eq!(service.state.active(), Some(&v("v1")));
    service.at(3, &Event::Resume);
    assert_eq!(service.state.active(), Some(&v("v2")));
}

#[test]
fn header_routes_are_set_replaced_removed_and_gone_after_an_abort() {
    let route = |value: Option<&str>| {
        Step::SetHeaderRoute(HeaderRoute {
            name: "testers".into(),
            matches: value
                .map(|value| serde_json::json!({ "x-tester": value }))
                .into_iter()
                .collect(),
        })
    };
    let steps = vec![
        route(Some("a")),
        forever(),
        route(Some("b")),
        forever(),
        route(None),
        forever(),
    ];
    let mut service = Service::roll(Plan::canary(steps));
    assert_eq!(service.state.routes().len(), 1);
    service.at(1, &PROMOTE);
    assert_eq!(
        service.state.routes()[0].matches,
        [serde_json::json!({ "x-tester": "b" })]
    );
    let aborted = transition(
        &service.state,
        &Event::Abort { reason: None },
        &service.plan,
        Timestamp::from_secs(1),
    );
    assert!(aborted.unwrap().0.routes().is_empty());
    service.at(2, &PROMOTE);
    assert!(service.state.routes().is_empty());
}

#[test]
fn new_steps_start_over_and_the_running_analysis_is_stopped() {
    let mut service = Service::roll(Plan::canary(vec![weight(50), analysis(), forever()]));
    service.plan = Plan::canary(vec![weight(1), forever()]);
    service.at(1, &Event::SetSteps);
    assert_eq!(service.shown(), (Phase::Paused, 1, Weight::percent(1)));
    assert!(service.state.runs().is_empty());
}

#[test]
fn promote_full_skips_everything_and_takes_an_aborted_version_when_its_endpoints_are_ready() {
    let mut service = Service::roll(watched(vec![weight(5), analysis(), forever()], true));
    service.at(1, &Event::Abort { reason: None });
    service.refused(1, &PROMOTE);
    service.at(2, &FULL);
    assert_eq!(
        (service.state.weight(), service.state.stable.clone()),
        (Weight::ZERO, Some(v("v1")))
    );
    service.at(3, &Event::EndpointsReady);
    assert_eq!(service.state.stable, Some(v("v2")));
}

#[test]
fn an_immediate_strategy_waits_for_endpoints_only() {
    let mut service = Service::on(Plan::of(Strategy::Immediate));
    service.at(0, &deploy("v2"));
    assert_eq!(service.state.stable, Some(v("v1")));
    service.at(1, &Event::EndpointsReady);
    assert_eq!(
        (service.state.stable.clone(), service.state.phase()),
        (Some(v("v2")), Phase::Healthy)
    );
}

#[test]
fn the_invariants_hold_whatever_happens() {
    let mut all = simulation::Coverage::default();
    for seed in 0..2000 {
        let one = simulation::simulate(seed, 120).unwrap_or_else(|broken| panic!("{broken}"));
        all.applied += one.applied;
        all.refused += one.refused;
        all.promoted += one.promoted;
        all.aborted += one.aborted;
        all.torn += one.torn;
    }
    let enough = all.promoted > 1000 && all.aborted > 1000 && all.torn > 1000 && all.refused > 1000;
    assert!(enough, "the dice never got anywhere: {all:?}");
}

fn evidence(max: Option<u64>) -> Step {
    Step::Pause(Pause {
        duration: None,
        until_evidence: Some(UntilEvidence {
            max: max.map(Span::secs),
        }),
    })
}

/// 5 % and 50 %, each until the evidence suffices.
fn paced(max: Option<u64>) -> Service {
    let mut plan = Plan::canary(vec![weight(5), evidence(max), weight(50), evidence(max)]);
    plan.require_evidence = true;
    let Strategy::Canary(canary) = &mut plan.strategy else {
        unreachable!()
    };
    canary.background = Some(Background::default());
    Service::roll(plan)
}

fn suffices(step: usize) -> Event {
    Event::EvidenceSuffices {
        run: RunId(1),
        step,
        message: "PROCEED".into(),
    }
}

#[test]
fn evidence_moves_a_rollout_step_by_step_and_silence_never_does() {
    let mut service = paced(None);
    assert_eq!(service.shown(), (Phase::Progressing, 1, Weight::percent(5)));
    assert_eq!(service.state.next_wakeup(&service.plan), None);
    service.at(1_000_000, &Event::Tick);
    assert_eq!(service.shown().1, 1);
    assert!(
        service
            .state
            .message(&service.plan)
            .contains("waiting for evidence that more than 5% does no harm")
    );
    service.refused(1_000_000, &suffices(0));
    service.at(1_000_001, &suffices(1));
    assert_eq!(service.shown(), (Phase::Progressing, 3, Weight::percent(50)));
    service.refused(1_000_001, &suffices(1));
    service.at(1_000_002, &suffices(3));
    assert_eq!(
        (service.state.phase(), service.state.stable.as_ref()),
        (Phase::Healthy, Some(&v("v2")))
    );
}

#[test]
fn nobody_passes_a_wait_for_evidence_by_a_plain_promote() {
    let mut service = paced(None);
    let refused = service.refused(10, &PROMOTE);
    assert_eq!(refused.hint.as_deref(), Some("promote --skip-analysis"));
    service.at(10, &SKIP);
    assert_eq!(service.shown().2, Weight::percent(50));
}

#[test]
fn evidence_that_does_not_come_in_time_is_for_a_person_to_decide() {
    let mut service = paced(Some(60));
    service.at(60, &Event::Tick);
    assert_eq!(service.state.phase(), Phase::Progressing);
    service.at(61, &Event::Tick);
    assert_eq!(service.shown(), (Phase::Paused, 1, Weight::percent(5)));
    assert_eq!(service.state.pause_reason(), Some(PauseReason::NoEvidence));
    service.refused(62, &suffices(1));
    service.at(70, &Event::Resume);
    assert_eq!(service.state.phase(), Phase::Progressing, "it waits once more");
    service.at(131, &Event::Tick);
    assert_eq!(service.state.phase(), Phase::Paused);
    service.at(140, &PROMOTE);
    assert_eq!(service.shown(), (Phase::Progressing, 3, Weight::percent(50)));
}

#[test]
fn evidence_waits_while_somebody_has_paused_by_hand() {
    let mut service = paced(None);
    service.at(5, &Event::Pause);
    service.refused(6, &suffices(1));
    service.at(7, &Event::Resume);
    service.at(8, &suffices(1));
    assert_eq!(service.shown().2, Weight::percent(50));
}

#[test]
fn the_time_without_serin_or_without_endpoints_is_no_time_without_evidence() {
    let mut service = paced(Some(60));
    let downtime = Span::secs(500);
    service.at(530, &Event::Restarted { downtime });
    service.at(540, &Event::EndpointsLost);
    service.at(640, &Event::EndpointsReady);
    service.at(660, &Event::Tick);
    assert_eq!(service.state.phase(), Phase::Progressing);
    service.at(661, &Event::Tick);
    assert_eq!(service.state.phase(), Phase::Paused);
}

/// A bake of a minute with 2 % on stable, as the last step.
fn baked(mut steps: Vec<Step>) -> Plan {
    steps.push(Step::Bake(Bake {
        share: Weight::percent(2),
        duration: Span::secs(60),
    }));
    watched(steps, false)
}

#[test]
fn a_bake_keeps_its_share_on_stable_for_its_time_and_promotes_then() {
    let mut service = Service::roll(baked(vec![weight(5)]));
    assert_eq!(service.shown(), (Phase::Paused, 1, Weight::percent(98)));
    let why = "Bake: bakes with 2% on stable until 1970-01-01T00:01:00.000Z; a regression still rolls back";
    assert_eq!(service.state.message(&service.plan), why);
    let told = |effect: &Effect| {
        matches!(effect, Effect::Notify(Notice { trigger: Trigger::OnRolloutPaused, text })
            if *text == format!("v2 is paused at step 1/2: {why}"))
    };
    assert!(service.effects.iter().any(told), "{:#?}", service.effects);
    assert_eq!(
        service.state.next_wakeup(&service.plan),
        Some(Timestamp::from_millis(60_001))
    );
    service.at(60, &Event::Tick);
    assert_eq!(service.state.weight(), Weight::percent(98));
    service.at(61, &Event::Tick);
    assert_eq!(service.state.stable, Some(v("v2")));
}

#[test]
fn a_verdict_in_the_bake_rolls_back_as_anywhere_else() {
    let mut service = Service::roll(baked(vec![weight(5)]));
    let failed = service.verdict(AnalysisKind::Background, RunPhase::Failed, OnError::Abort);
    service.at(30, &failed);
    assert_eq!(service.shown(), (Phase::Degraded, 0, Weight::ZERO));
    assert_eq!(service.state.stable, Some(v("v1")));
}

#[test]
fn a_bake_does_not_count_time_that_nobody_served() {
    let mut service = Service::roll(baked(Vec::new()));
    let downtime = Span::secs(100);
    service.at(130, &Event::Restarted { downtime });
    service.at(140, &Event::Tick);
    assert_eq!(service.state.weight(), Weight::percent(98));
    service.at(150, &Event::EndpointsLost);
    assert_eq!(service.state.weight(), Weight::ZERO);
    service.at(250, &Event::EndpointsReady);
    // 40 s before the restart and the loss, 10 s in between: the rest is still to come.
    service.at(259, &Event::Tick);
    assert_eq!(service.state.weight(), Weight::percent(98));
    service.at(261, &Event::Tick);
    assert_eq!(service.state.stable, Some(v("v2")));
}

#[test]
fn a_promote_ends_the_bake_and_a_full_one_skips_it() {
    for verb in [PROMOTE, FULL] {
        let mut service = Service::roll(baked(Vec::new()));
        service.at(1, &verb);
        assert_eq!(service.state.stable, Some(v("v2")), "{verb:?}");
    }
    let mut service = Service::roll(baked(vec![forever()]));
    service.at(1, &FULL);
    assert_eq!(service.state.stable, Some(v("v2")));
}

#[test]
fn nearly_everything_waits_for_evidence_as_everything_does() {
    let mut plan = baked(vec![weight(5)]);
    plan.require_evidence = true;
    let mut service = Service::roll(plan);
    assert_eq!(service.shown(), (Phase::Progressing, 1, Weight::percent(5)));
    let run = service.state.runs()[0].0;
    service.at(1, &Event::EvidenceGathered { run });
    assert_eq!(service.shown(), (Phase::Paused, 1, Weight::percent(98)));
}

fn rings() -> Event {
    Event::AlarmRaised {
        message: "7% fail".into(),
    }
}

fn is_over() -> Event {
    Event::AlarmCleared {
        message: "1% fail".into(),
    }
}

#[test]
fn an_alarm_holds_a_trial_where_it_is_and_lets_it_go_on_when_it_is_over() {
    let mut service = Service::roll(Plan::canary(vec![weight(5), pause(60), weight(50), forever()]));
    service.at(10, &rings());
    assert_eq!(service.shown(), (Phase::Paused, 1, Weight::percent(5)));
    assert_eq!(service.state.message(&service.plan), "Alarm: 7% fail");
    assert!(service.effects.contains(&Effect::Notify(Notice {
        trigger: Trigger::OnAlarmRaised,
        text: "7% fail".into()
    })));
    service.at(100, &Event::Tick);
    assert_eq!(service.shown(), (Phase::Paused, 1, Weight::percent(5)));
    service.at(101, &is_over());
    assert_eq!(service.shown(), (Phase::Paused, 3, Weight::percent(50)));
}

#[test]
fn an_alarm_holds_what_begins_while_it_rings_but_no_way_that_somebody_has_opened() {
    let plan = || Plan::canary(vec![weight(5), pause(60)]);
    let ringing = || {
        let mut service = Service::on(plan());
        service.at(0, &rings());
        assert_eq!(service.state.message(&service.plan), "Alarm: 7% fail");
        service.at(1, &deploy("v2"));
        service.at(2, &Event::EndpointsReady);
        assert_eq!(service.shown(), (Phase::Paused, 0, Weight::ZERO));
        service
    };
    let mut resumed = ringing();
    resumed.at(3, &Event::Resume);
    assert_eq!(resumed.shown(), (Phase::Paused, 1, Weight::percent(5)));
    let mut full = ringing();
    full.at(3, &FULL);
    assert_eq!(full.state.stable, Some(v("v2")));
    let mut again = ringing();
    again.at(3, &Event::SetSteps);
    assert_eq!(again.shown(), (Phase::Paused, 0, Weight::ZERO));
}

#[test]
fn a_state_that_was_stored_before_there_were_alarms_is_read() {
    let state = Service::roll(Plan::canary(vec![weight(5), forever()])).state;
    let stored = serde_json::to_value(&state).unwrap();
    assert!(stored.get("alarm").is_none(), "{stored}");
    assert_eq!(serde_json::from_value::<State>(stored).unwrap(), state);
}

fn client_errors() -> Event {
    Event::ClientErrors {
        run: RunId(1),
        message: "4xx: canary 8.10% of 420, stable 0.40% of 7,980".into(),
    }
}

#[test]
fn another_share_of_4xx_answers_pauses_once_and_the_verdict_still_counts() {
    let mut service = paced(None);
    service.at(5, &client_errors());
    // The canary keeps its share.
    assert_eq!(service.shown(), (Phase::Paused, 1, Weight::percent(5)));
    assert_eq!(service.state.pause_reason(), Some(PauseReason::ClientErrors));
    assert_eq!(
        service.state.message(&service.plan),
        "ClientErrors: 4xx: canary 8.10% of 420, stable 0.40% of 7,980"
    );
    // Who is called is told why, with the numbers.
    let told = |effect: &Effect| {
        matches!(effect, Effect::Notify(Notice { trigger: Trigger::OnRolloutPaused, text })
            if text.ends_with("is paused at step 1/4: ClientErrors: 4xx: canary 8.10% of 420, stable 0.40% of 7,980"))
    };
    assert!(service.effects.iter().any(told), "{:#?}", service.effects);
    service.refused(6, &suffices(1));
    service.at(7, &Event::Resume);
    assert_eq!(service.shown(), (Phase::Progressing, 1, Weight::percent(5)));
    // Somebody has seen it: not again in this attempt.
    service.refused(8, &client_errors());
    service.at(9, &suffices(1));
    assert_eq!(service.shown(), (Phase::Progressing, 3, Weight::percent(50)));
    let failed = Event::AnalysisFinished {
        run: RunId(1),
        phase: RunPhase::Failed,
        on_error: OnError::Abort,
        message: String::new(),
    };
    service.at(10, &failed);
    assert_eq!(service.state.phase(), Phase::Degraded);
    service.refused(11, &client_errors());
    service.at(12, &Event::Retry);
    service.at(13, &Event::EndpointsReady);
    let run = service.state.runs()[0].0;
    service.refused(14, &client_errors());
    let again = Event::ClientErrors {
        run,
        message: String::new(),
    };
    service.at(15, &again);
    assert_eq!(
        service.state.phase(),
        Phase::Paused,
        "another attempt is looked at anew"
    );
}

#[test]
fn a_promote_lets_go_of_a_pause_for_4xx_and_skips_no_evidence() {
    let mut service = paced(None);
    service.at(5, &client_errors());
    service.at(6, &PROMOTE);
    assert_eq!(service.shown(), (Phase::Progressing, 1, Weight::percent(5)));
    service.refused(7, &PROMOTE);
}
