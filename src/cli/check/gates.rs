//! What each gate of a plan can see, and what it cannot: requests and time until a stated fault is noticed, and the chance that a
//! healthy release is rolled back.

use super::{
    super::render,
    places::{Gate, gates},
    traffic::{Traffic, brief, percent, whole},
};
use crate::analysis::{
    Compared, Fault, JudgeConfig, MannWhitney, MetricSpec, Provider, SerinMetric, SerinQuery, Threshold,
};
use crate::config::Service;
use crate::model::{Span, Weight, thousands};
use crate::rollout::{Pause, Plan, Step, UntilEvidence};
use std::{fmt::Write, time::Duration};

/// The share of stable's requests that fails where nobody says it.
const USUAL: f64 = 0.001;
/// Shares of 4xx answers, of a release that refuses what stable takes and of stable.
const REFUSES: Fault = Fault::ClientErrors {
    canary: 0.05,
    stable: 0.005,
};
/// A release in which this much fails must be noticed, unless a threshold allows more.
const BAD: f64 = 0.05;
/// A rank test that is wrong more often than this in one plan is warned of: it was written for one question.
const RISKY: f64 = 0.025;

/// What a plan's gates can see.
#[derive(Debug, Default)]
pub(super) struct Sight {
    /// For people; lines.
    pub(super) text: String,
    /// Gates that cannot work.
    pub(super) warnings: Vec<String>,
}

impl Sight {
    pub(super) fn of(service: &Service, traffic: Traffic) -> Sight {
        let mut sight = Sight::default();
        let gates = gates(service);
        let mut judges = Vec::new();
        for gate in &gates {
            match &gate.metric.provider {
                Provider::Judge(judge) => {
                    sight.judge(gate, judge, traffic);
                    if service.sticky.is_some() {
                        sight.users(gate, judge, traffic);
                    }
                    let first = gate.weights.first().map(|(weight, _)| *weight);
                    judges.extend(first.filter(|_| !gate.metric.dry_run).map(|first| (judge, first)));
                }
                Provider::Serin(query) => {
                    sight.threshold(gate, traffic);
                    sight.starved(gate, query, traffic);
                }
                Provider::Prometheus(_) | Provider::Web(_) => sight.threshold(gate, traffic),
                Provider::MannWhitney(test) => sight.ranks(gate, test, traffic),
            }
        }
        sight.overdue(&service.plan, &judges, traffic);
        sight
    }

    fn judge(&mut self, gate: &Gate<'_>, judge: &JudgeConfig, traffic: Traffic) {
        let stable = traffic.error_rate.unwrap_or(USUAL);
        self.title(
            gate,
            &format!(
                "rolls back at most {} of healthy releases; of its own requests one with a fault needs about this many, where \
                 {} of stable's fail:",
                percent(judge.alpha),
                percent(stable)
            ),
        );
        let mut faults = vec![
            ("all fail".to_owned(), Fault::Failing(1.0)),
            (format!("{} fail", percent(BAD)), Fault::Failing(BAD)),
            (
                format!("{} fail", percent(stable + 0.01)),
                Fault::Failing(stable + 0.01),
            ),
        ];
        faults.extend(slow(judge));
        if judge.client_err_delta.is_some() {
            faults.push(("5% get 4xx, of stable's 0.5% (pauses)".to_owned(), REFUSES));
        }
        let mut rows = vec![row("weight", faults.iter().map(|(name, _)| name.clone()))];
        rows[0].push("a healthy one goes on".to_owned());
        for (place, (weight, next)) in gate.weights.iter().enumerate() {
            let warm = warm_up(judge, place == 0);
            let cell = |requests: Option<f64>, least: Duration| match requests {
                None => "never".to_owned(),
                Some(requests) => {
                    let takes = traffic.takes(requests, *weight);
                    let takes = takes.map(|takes| format!(", {}", brief(takes + least)));
                    format!("{}{}", thousands(whole(requests)), takes.unwrap_or_default())
                }
            };
            let found = faults.iter().map(|(_, fault)| {
                let requests = judge.finds(weight.as_ratio(), stable, *fault);
                let of_latency = matches!(fault, Fault::Slow { .. });
                cell(requests, if of_latency { warm } else { Duration::ZERO })
            });
            let mut line = row(&weight.to_string(), found);
            let goes_on = judge.lets_go_on(weight.as_ratio(), next.as_ratio(), stable);
            line.push(cell(goes_on, warm));
            rows.push(line);
        }
        self.rows(&rows);
        if stable > judge.freeze_stable_err && !gate.metric.dry_run {
            self.warnings.push(format!(
                "`{}` never lets a version go on: where {} of stable's requests fail, more than freeze {}, the weight is not \
                 raised; raise freeze, or mend stable first",
                gate.metric.name,
                percent(stable),
                percent(judge.freeze_stable_err)
            ));
        }
    }

    /// Where stickiness assigns, users are what is counted, and there are only so many.
    fn users(&mut self, gate: &Gate<'_>, judge: &JudgeConfig, traffic: Traffic) {
        let stable = traffic.error_rate.unwrap_or(USUAL);
        let all = gate.weights.iter().filter_map(|(weight, next)| {
            let canary = judge.lets_go_on(weight.as_ratio(), next.as_ratio(), stable)?;
            Some(canary / weight.as_ratio())
        });
        let most = all.fold(0.0, f64::max);
        let never = if most > 0.0 {
            format!(
                "; a service with fewer than about {} users never shows enough for every weight, and somebody must promote it",
                thousands(whole(most))
            )
        } else {
            String::new()
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            self.text,
            "    users are sticky: a request is here a user's first one at a weight, and --rps is new users per second{never}"
        );
    }

    fn threshold(&mut self, gate: &Gate<'_>, traffic: Traffic) {
        let metric = gate.metric;
        let interval = metric.interval.map_or(Duration::ZERO, Span::as_duration);
        let Some(known) = Threshold::of(metric, None) else {
            self.title(gate, unforeseen(metric));
            return;
        };
        self.title(
            gate,
            &format!(
                "fails when more than {} of {} measurements {} `{}`; the chance of that:",
                known.forgiven,
                known.count,
                if known.key == "successCondition" {
                    "miss"
                } else {
                    "meet"
                },
                metric
                    .success_condition
                    .as_ref()
                    .or(metric.failure_condition.as_ref())
                    .map_or("", |condition| condition.as_str()),
            ),
        );
        let healthy = traffic.error_rate.unwrap_or(known.healthy);
        let bad = BAD.max(4.0 * known.healthy);
        let rates = [healthy, healthy + 0.01, bad];
        let names = ["healthy", "worse", "bad"];
        let names = names
            .iter()
            .zip(rates)
            .map(|(name, rate)| format!("{name}: {} fail", percent(rate)));
        let mut head = row("weight", ["requests each".to_owned()].into_iter().chain(names));
        head.extend(traffic.rps.map(|_| "time".to_owned()));
        let mut rows = vec![head];
        let mut missed: Option<(Weight, f64)> = None;
        for (weight, _) in &gate.weights {
            let Some(here) = Threshold::of(metric, traffic.within(interval, *weight)) else {
                continue;
            };
            let assumed = if here.certain { "" } else { " (assumed)" };
            let requests = format!("{}{assumed}", thousands(here.requests));
            let chances = rates.map(|rate| percent(here.fails(rate)));
            let mut line = row(&weight.to_string(), [requests].into_iter().chain(chances));
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let each = traffic.takes(here.requests as f64, *weight);
            line.extend(each.map(|each| brief(each.max(interval).saturating_mul(here.count))));
            rows.push(line);
            let seen = here.fails(bad);
            if seen < 0.5 && missed.is_none_or(|(_, least)| seen < least) {
                missed = Some((*weight, seen));
            }
        }
        self.rows(&rows);
        if let Some((weight, seen)) = missed.filter(|_| !metric.dry_run) {
            self.warnings.push(format!(
                "`{}` cannot see enough: at {weight} it lets a release of which {} fail pass in {} of all cases; raise \
                 minSamples or count, or lower failureLimit",
                metric.name,
                percent(bad),
                percent(1.0 - seen)
            ));
        }
    }

    /// A rank test: once for each analysis, and each time it may be wrong.
    fn ranks(&mut self, gate: &Gate<'_>, test: &MannWhitney, traffic: Traffic) {
        let times = gate.asked.len();
        let together = 1.0 - (1.0 - test.risk()).powi(i32::try_from(times).unwrap_or(i32::MAX));
        let risk = if times > 1 {
            format!(
                "{} each of {times} times, together {}",
                percent(test.risk()),
                percent(together)
            )
        } else {
            percent(test.risk())
        };
        self.title(
            gate,
            &format!(
                "decides once, after {} with {} samples of both versions; a release equal to stable fails it by chance in {risk} \
                 of all cases at most",
                test.window,
                test.planned()
            ),
        );
        if gate.metric.dry_run {
            return;
        }
        if together > RISKY {
            self.warnings.push(format!(
                "`{}` is asked {times} times in this plan and may be wrong each time, together in {} of all healthy releases; ask \
                 it once, raise its confidence, or use judge, whose risk holds however often it is asked",
                gate.metric.name,
                percent(together)
            ));
        }
        let Compared::Own(query) = &test.of else { return };
        let interval = test.interval.as_duration();
        let starved = gate.asked.iter().find_map(|weight| {
            let rarer = weight.as_ratio().min(1.0 - weight.as_ratio());
            let comes = traffic.rps? * rarer * interval.as_secs_f64();
            (whole(comes) < query.min_samples).then_some((weight, comes))
        });
        if let Some((weight, comes)) = starved {
            self.warnings.push(format!(
                "`{}` cannot work: at {} requests/s and {weight} one version has about {comes:.1} requests in an interval of {}, \
                 and a sample needs {} (minRequests); lengthen interval and window, or raise the weight",
                gate.metric.name,
                traffic.rps.unwrap_or_default(),
                test.interval,
                query.min_samples
            ));
        }
    }

    /// A measurement that waits for more requests than come.
    fn starved(&mut self, gate: &Gate<'_>, query: &SerinQuery, traffic: Traffic) {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let samples = query.min_samples as f64;
        let (patience, rps) = (query.no_data_timeout, traffic.rps.unwrap_or_default());
        let late = gate.weights.iter().find_map(|(weight, _)| {
            let takes = traffic.takes(samples, *weight)?;
            (takes > patience.as_duration()).then_some((weight, takes))
        });
        if let Some((weight, takes)) = late {
            self.warnings.push(format!(
                "`{}` cannot work: at {rps} requests/s and {weight} its {} canary requests take {}, and after \
                 noDataTimeout {patience} it is inconclusive; lower minSamples, or raise noDataTimeout or the weight",
                gate.metric.name,
                thousands(query.min_samples),
                brief(takes)
            ));
        }
    }

    /// Pauses that end before the evidence suffices.
    fn overdue(&mut self, plan: &Plan, judges: &[(&JudgeConfig, Weight)], traffic: Traffic) {
        let stable = traffic.error_rate.unwrap_or(USUAL);
        for (index, step, weight) in plan.weighed_steps() {
            let Step::Pause(Pause {
                until_evidence: Some(UntilEvidence { max: Some(max) }),
                ..
            }) = step
            else {
                continue;
            };
            let next = plan.next_weight(index, weight);
            let slowest = judges.iter().filter_map(|(judge, first)| {
                let requests = judge.lets_go_on(weight.as_ratio(), next.as_ratio(), stable)?;
                // Without a word on traffic its time is all that is known.
                let takes = traffic.takes(requests, weight).unwrap_or_default();
                let least = Duration::try_from_secs_f64(judge.min_step_s).unwrap_or_default();
                Some(least.max(takes.saturating_add(warm_up(judge, *first == weight))))
            });
            let at = match traffic.rps {
                Some(rps) => format!("at {rps} requests/s"),
                None => "however many requests come,".to_owned(),
            };
            if let Some(takes) = slowest.max().filter(|takes| *takes > max.as_duration()) {
                self.warnings.push(format!(
                    "steps[{index}] waits too briefly: {at} a healthy release has shown enough for more than \
                     {weight} after {}, and after {max} somebody must decide; raise max, the weight before it or \
                     harmBudget, or shorten the judge's warmup",
                    brief(takes)
                ));
            }
        }
    }

    fn title(&mut self, gate: &Gate<'_>, what: &str) {
        let dry = if gate.metric.dry_run {
            " (dryRun: without a say)"
        } else {
            ""
        };
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "  gate {}{dry} {what}", gate.metric.name);
    }

    fn rows(&mut self, rows: &[Vec<String>]) {
        for line in render::table(rows).lines() {
            let _ = writeln!(self.text, "  {line}");
        }
    }
}

/// Slowness is weighed once the versions are warm, and only then can it be ruled out.
fn warm_up(judge: &JudgeConfig, at_its_first_weight: bool) -> Duration {
    let seconds = match (judge.lat_q.is_empty(), at_its_first_weight) {
        (true, _) => 0.0,
        (false, true) => judge.warmup_s.max(judge.step_warmup_s),
        (false, false) => judge.step_warmup_s,
    };
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// What can be said of a gate whose condition is no bound on a share of failures.
fn unforeseen(metric: &MetricSpec) -> &'static str {
    match &metric.provider {
        Provider::Serin(query) => match query.metric {
            SerinMetric::Latency => {
                "decides by the canary's latency alone: slowness that stable shares fails it too, and how often chance does \
                 depends on how latencies scatter"
            }
            SerinMetric::RequestRate => "decides by the canary's traffic: it sees no fault in the answers",
            SerinMetric::ErrorRate | SerinMetric::SuccessRate | SerinMetric::ErrorRateDifference => {
                "has no single bound below 20% on failures: what it sees cannot be told beforehand"
            }
        },
        Provider::Prometheus(_) | Provider::Web(_) | Provider::Judge(_) | Provider::MannWhitney(_) => {
            "decides by what it is answered: what that sees, and how often it is wrong, cannot be told beforehand"
        }
    }
}

/// Faults in latency: of the body of the distribution, and of its tail.
fn slow(judge: &JudgeConfig) -> Vec<(String, Fault)> {
    let name = |share: f64, q: f64| format!("{} beyond p{}", percent(share), 100.0 * q);
    let places = judge.lat_q.iter().enumerate();
    let body = places.clone().find(|(_, q)| **q <= 0.5).map(|(quantile, q)| {
        let share = (1.0 - q + 0.2).min(1.0);
        (name(share, *q), Fault::Slow { quantile, share })
    });
    let tail = places.rev().find(|(_, q)| **q > 0.5).map(|(quantile, q)| {
        let share = (5.0 * (1.0 - q)).min(1.0);
        (name(share, *q), Fault::Slow { quantile, share })
    });
    body.into_iter().chain(tail).collect()
}

fn row(first: &str, rest: impl Iterator<Item = String>) -> Vec<String> {
    std::iter::once(first.to_owned()).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use std::path::Path;

    const SERVICE: &str = "listeners: [{address: '127.0.0.1:8080'}]
services:
- name: app
  stable: {version: v1, endpoints: ['http://127.0.0.1:9001']}
";

    fn sight(rest: &str, traffic: Traffic) -> Sight {
        let text = format!("{SERVICE}{rest}");
        let loaded = config::load_text(&text, "f", Path::new("."), &|_| None);
        let loaded = loaded.unwrap_or_else(|problems| panic!("{problems:#?}"));
        Sight::of(&loaded.config.services[0], traffic)
    }

    fn at(rps: f64) -> Traffic {
        Traffic {
            rps: Some(rps),
            error_rate: None,
        }
    }

    fn with_metric(metric: &str) -> String {
        format!(
            "  strategy: {{canary: {{steps: [{{setWeight: 5}}, {{analysis: {{templates: [{{templateName: t}}]}}}}]}}}}
analysisTemplates:
- name: t
  metrics:
  - {metric}
"
        )
    }

    #[test]
    fn the_judges_table_has_every_weight_and_stated_fault() {
        let told = sight("", at(1000.0));
        assert!(told.warnings.is_empty(), "{:?}", told.warnings);
        let lines: Vec<&str> = told.text.lines().collect();
        assert!(
            lines[0].contains("gate serin-judge rolls back at most 1% of healthy releases"),
            "{}",
            told.text
        );
        assert!(
            lines[1].contains("5% fail") && lines[1].contains("5% beyond p99"),
            "{}",
            told.text
        );
        let firsts: Vec<&str> = lines[2..]
            .iter()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert_eq!(firsts, ["1%", "5%", "25%", "50%"], "{}", told.text);
        assert!(lines[3].contains("3, < 1s"), "{}", told.text);
    }

    #[test]
    fn a_stable_that_fails_more_than_the_freeze_is_warned_of_and_nothing_goes_on() {
        let failing = |rate: f64| {
            let traffic = Traffic {
                error_rate: Some(rate),
                ..at(1000.0)
            };
            sight("", traffic)
        };
        assert!(failing(0.019).warnings.is_empty());
        let told = failing(0.03);
        assert!(
            told.warnings.len() == 1
                && told.warnings[0]
                    .starts_with("`serin-judge` never lets a version go on: where 3% of stable's requests fail, more than freeze 2%"),
            "{:?}",
            told.warnings
        );
        let rows = told.text.lines().skip(2);
        assert!(
            rows.into_iter().all(|row| row.trim_end().ends_with("never")),
            "{}",
            told.text
        );
    }

    #[test]
    fn where_users_are_sticky_the_table_says_what_it_counts() {
        assert!(!sight("", at(10.0)).text.contains("sticky"));
        let sticky = sight("  sticky: {header: x-user-id}\n", at(10.0));
        assert!(
            sticky.text.contains("--rps is new users per second"),
            "{}",
            sticky.text
        );
        // At 1 % the 902 canary users of the table are one of a hundred.
        assert!(
            sticky.text.contains("fewer than about 90,200 users"),
            "{}",
            sticky.text
        );
        let failing = Traffic {
            error_rate: Some(0.03),
            ..at(10.0)
        };
        let never = sight("  sticky: {header: x-user-id}\n", failing);
        assert!(!never.text.contains("users never shows"), "{}", never.text);
    }

    #[test]
    fn a_pause_that_ends_before_the_evidence_suffices_is_warned_of() {
        let plan = "  strategy: {canary: {auto: {max: 30m}}}\n";
        assert!(sight(plan, at(1000.0)).warnings.is_empty());
        let warnings = sight(plan, at(1.0)).warnings;
        assert!(
            warnings[0].starts_with("steps[1] waits too briefly: at 1 requests/s a healthy release")
                && warnings[0].contains("after 30m somebody must decide"),
            "{warnings:?}"
        );
        // Without traffic nothing is known of time.
        assert!(sight(plan, Traffic::default()).warnings.is_empty());
    }

    #[test]
    fn a_pause_that_ends_before_the_judge_looks_at_latency_is_warned_of() {
        let plan = |max: &str, judge: &str| {
            format!(
                "  strategy:
    canary:
      analysis: {{templates: [{{templateName: t}}]}}
      steps:
      - setWeight: 5
      - pause: {{untilEvidence: {{max: {max}}}}}
      - setWeight: 50
      - pause: {{untilEvidence: {{max: {max}}}}}
analysisTemplates:
- name: t
  metrics: [{{name: m, judge: {{{judge}}}}}]
"
            )
        };
        let warned = |max: &str, judge: &str, traffic: Traffic| -> Vec<String> {
            let warnings = sight(&plan(max, judge), traffic).warnings;
            let places = warnings
                .iter()
                .map(|said| said.split(" waits").next().unwrap_or_default().to_owned());
            places.collect()
        };
        let fast = at(1e9);
        // 30 s before latency counts at the first weight, 5 s at a later one, and a step takes 10 s at least.
        assert_eq!(warned("40s", "", fast), [""; 0]);
        assert_eq!(warned("20s", "", fast), ["steps[1]"]);
        assert_eq!(warned("8s", "", fast), ["steps[1]", "steps[3]"]);
        assert_eq!(warned("20s", "stepWarmup: 25s", fast), ["steps[1]", "steps[3]"]);
        assert_eq!(warned("20s", "latency: {quantiles: []}", fast), [""; 0]);
        assert_eq!(
            warned("8s", "latency: {quantiles: []}", fast),
            ["steps[1]", "steps[3]"]
        );
        // That much is known without traffic.
        assert_eq!(warned("20s", "", Traffic::default()), ["steps[1]"]);
        let said = &sight(&plan("20s", ""), at(1000.0)).warnings[0];
        let after = said
            .split("after ")
            .nth(1)
            .and_then(|rest| rest.split([',', ';']).next());
        assert!(
            after.is_some_and(|after| after != "30s"),
            "the requests come on top: {said}"
        );
    }

    #[test]
    fn a_threshold_shows_its_chances_and_says_when_it_cannot_see() {
        let metric = |rest: &str| {
            with_metric(&format!(
                "{{name: m, interval: 1m, {rest}, successCondition: result < 0.01, provider: {{serin: {{metric: errorRate}}}}}}"
            ))
        };
        let good = sight(&metric("count: 5"), at(1000.0));
        assert!(good.warnings.is_empty(), "{:?}", good.warnings);
        assert!(good.text.contains("5%       3,000"), "{}", good.text);
        assert!(
            good.text.contains("bad: 5% fail") && good.text.contains("100%"),
            "{}",
            good.text
        );
        let lax = sight(&metric("count: 5, failureLimit: 4"), Traffic::default());
        assert!(
            lax.warnings[0]
                .starts_with("`m` cannot see enough: at 5% it lets a release of which 5% fail pass in")
        );
        let only_shown = sight(
            &metric("count: 5, failureLimit: 4, dryRun: true"),
            Traffic::default(),
        );
        assert!(only_shown.warnings.is_empty() && only_shown.text.contains("without a say"));
    }

    #[test]
    fn a_measurement_that_waits_for_more_than_comes_is_warned_of() {
        let metric = with_metric(
            "{name: m, successCondition: result < 0.05, provider: {serin: {metric: errorRate, minSamples: 200, \
             noDataTimeout: 1m}}}",
        );
        assert!(sight(&metric, at(1000.0)).warnings.is_empty());
        let warnings = sight(&metric, at(10.0)).warnings;
        assert!(
            warnings
                .iter()
                .any(|said| said.contains("its 200 canary requests take 6m40s, and after noDataTimeout 1m")),
            "{warnings:?}"
        );
    }

    #[test]
    fn a_gate_that_cannot_be_foreseen_says_so() {
        let latency = "{name: m, successCondition: result < 0.5, provider: {serin: {metric: latency}}}";
        let told = sight(&with_metric(latency), at(10.0));
        assert!(
            told.text.contains("slowness that stable shares fails it too"),
            "{}",
            told.text
        );
        let query = "{name: m, successCondition: 'result[0] < 3', provider: {prometheus: {address: 'http://p', query: \
                     'x{role=\"canary\"}'}}}";
        assert!(
            sight(&with_metric(query), at(10.0))
                .text
                .contains("cannot be told beforehand")
        );
    }

    #[test]
    fn a_rank_test_says_its_risk_and_is_warned_of_where_it_is_asked_again_or_starved() {
        let test = "{name: m, mannWhitney: {metric: latency, minRequests: 20}}";
        let once = sight(&with_metric(test), at(50.0));
        assert!(
            once.text
                .contains("gate m decides once, after 10m with 60 samples of both versions")
                && once.text.contains("by chance in 2% of all cases"),
            "{}",
            once.text
        );
        assert!(once.warnings.is_empty(), "{:?}", once.warnings);
        let starved = sight(&with_metric(test), at(10.0)).warnings;
        assert!(
            starved.len() == 1
                && starved[0].contains("at 10 requests/s and 5% one version has about 5.0 requests"),
            "{starved:?}"
        );
        let step = "{analysis: {templates: [{templateName: t}]}}";
        let again = with_metric(test).replace(step, &format!("{step}, {{setWeight: 50}}, {step}"));
        let again = sight(&again, Traffic::default());
        assert!(
            again.text.contains("2% each of 2 times, together 3.96%"),
            "{}",
            again.text
        );
        assert!(
            again.warnings.len() == 1 && again.warnings[0].contains("`m` is asked 2 times in this plan"),
            "{:?}",
            again.warnings
        );
        let beside = with_metric(test).replace(
            &format!("steps: [{{setWeight: 5}}, {step}]"),
            "analysis: {templates: [{templateName: t}]}, steps: [{setWeight: 5}, {pause: {}}, {setWeight: 50}, {pause: {}}]",
        );
        let beside = sight(&beside, Traffic::default());
        assert!(
            beside.text.contains("in 2% of all cases") && beside.warnings.is_empty(),
            "{beside:?}"
        );
    }
}
