//! The judge in numbers, and in the one sentence that people read.

use super::{Advice, ClientErrorsReport, Judge, Seen, Test, sight::divided};
use crate::model::thousands;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// With fewer canary requests at a step its own rates say too little about what is to come.
const ENOUGH: u64 = 20;

/// So many canary requests should have come of late before it means something that none has.
const EXPECTED: f64 = 3.0;
/// Less of late is nothing.
const NOTHING: f64 = 0.3;

/// What one piece of evidence is, in the words for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// A request.
    Request,
    /// A request, and of late none came but forced ones, which are none.
    Unforced,
    /// Under stickiness: a user, once at each weight.
    User,
}

/// Where the judge stands, in numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JudgeReport {
    /// What it would do now.
    pub advice: Advice,
    /// The same with its numbers, in one sentence.
    pub sentence: String,
    /// The canary's share, 0 to 1.
    pub weight: f64,
    /// The evidence of harm.
    pub harm: f64,
    /// What it must reach for a rollback: one over the risk of a false one.
    pub harm_needs: f64,
    /// What each test's evidence that all is well must reach before the weight is raised.
    pub fine_needs: f64,
    /// Errors first, then slowness at each quantile.
    pub tests: Vec<TestReport>,
    /// How much is missing before the weight is raised, if nothing changes; absent when it is not in sight.
    pub eta: Option<Eta>,
    /// Whether only gross slowness counts yet.
    pub warming_up: bool,
    /// Whether stable itself fails so much that nothing goes on.
    pub frozen: bool,
    /// How 4xx answers compare: another share than stable's calls for a person. Absent: they are not watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_errors: Option<ClientErrorsReport>,
}

/// One question that the judge asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TestReport {
    /// `errors`, `latency p50`, …
    pub name: String,
    /// The canary's requests.
    pub canary: u64,
    /// Of these, bad.
    pub canary_bad: u64,
    /// Stable's requests.
    pub stable: u64,
    /// Of these, bad.
    pub stable_bad: u64,
    /// The evidence of harm.
    pub harm: f64,
    /// The evidence that there is none beyond `margin`.
    pub fine: f64,
    /// How much more than stable is ruled out before the weight is raised, 0 to 1.
    pub margin: f64,
}

/// What is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Eta {
    /// So many more canary requests.
    pub canary_requests: u64,
    /// Which take so many seconds at the traffic of now; absent when there is none.
    pub seconds: Option<u64>,
}

impl Judge {
    /// Where it stands.
    pub fn report(&self) -> JudgeReport {
        self.report_of(Piece::Request)
    }

    /// Where it stands; what it waits for is said in these pieces. What it decided is always said as [`Judge::report`] does, for that
    /// is what is recorded.
    pub fn report_of(&self, piece: Piece) -> JudgeReport {
        let advice = self.advice();
        let eta = if advice == Advice::Hold { self.eta() } else { None };
        JudgeReport {
            advice,
            sentence: self.sentence(advice, eta, piece),
            weight: self.weight,
            harm: e(self.log_harm()),
            harm_needs: 1.0 / self.config.alpha,
            fine_needs: 1.0 / self.config.beta,
            tests: (0..=self.slow.len())
                .map(|index| self.test_report(index))
                .collect(),
            eta,
            warming_up: !self.is_warm(),
            frozen: self.is_frozen(),
            client_errors: self.client_errors(),
        }
    }

    fn test_report(&self, index: usize) -> TestReport {
        let test = self.test(index);
        TestReport {
            name: self.name(index),
            canary: test.seen.canary,
            canary_bad: test.seen.canary_bad,
            stable: test.seen.stable,
            stable_bad: test.seen.stable_bad,
            harm: e(test.harm.log_e()),
            fine: e(test.fine.log_e()),
            margin: self.margin(index),
        }
    }

    fn quantile(&self, index: usize) -> Option<f64> {
        self.config.lat_q.get(index.checked_sub(1)?).copied()
    }

    fn name(&self, index: usize) -> String {
        match self.quantile(index) {
            Some(q) => format!("latency p{}", general(100.0 * q, 6)),
            None => "errors".to_owned(),
        }
    }

    fn margin(&self, index: usize) -> f64 {
        match self.quantile(index) {
            Some(q) => self.config.latency_margin(q, self.next),
            None => self.config.error_margin(self.next),
        }
    }

    /// In the words of people, with the numbers that it rests on.
    fn sentence(&self, advice: Advice, eta: Option<Eta>, piece: Piece) -> String {
        let weight = general(100.0 * self.weight, 6);
        match advice {
            Advice::Rollback => self.says_rollback(&weight),
            Advice::Proceed => self.says_proceed(&weight),
            // A pause is not said here: what is waited for meanwhile is.
            Advice::Hold | Advice::Pause => self.says_hold(&weight, eta, piece),
        }
    }

    fn says_rollback(&self, weight: &str) -> String {
        let lead = self.lead();
        let seen = self.test(lead).seen;
        let what = match self.quantile(lead) {
            Some(q) => format!(
                "slower than stable's p{} (x{})",
                general(100.0 * q, 6),
                general(1.0 + self.config.lat_tol, 6)
            ),
            None => "failed".to_owned(),
        };
        format!(
            "ROLL BACK at weight {weight}%: canary {what} {} vs stable {}; canary got {}% of requests but {}% of the bad ones; \
             e-value {} >= {} (false-rollback risk <= {}% for the whole rollout)",
            rate(seen.canary_bad, seen.canary),
            rate(seen.stable_bad, seen.stable),
            percent(seen.canary, seen.canary + seen.stable, 1),
            percent(seen.canary_bad, seen.canary_bad + seen.stable_bad, 1),
            figure(e(self.log_harm())),
            general(1.0 / self.config.alpha, 6),
            general(100.0 * self.config.alpha, 6)
        )
    }

    fn says_proceed(&self, weight: &str) -> String {
        let (weakest, log) = self.weakest();
        let mut text = format!(
            "PROCEED from {weight}%: ruled out: errors above {} x stable + {:.2}pp",
            general(self.config.err_ok_rho, 6),
            100.0 * self.config.error_margin(self.next)
        );
        if !self.slow.is_empty() {
            let join = |of: &dyn Fn(f64) -> String| -> String {
                let all: Vec<String> = self.config.lat_q.iter().map(|q| of(*q)).collect();
                all.join("/")
            };
            // Writing to a string does not fail.
            let _ = write!(
                text,
                "; extra requests slower than stable's {} (x{}): {}",
                join(&|q| format!("p{}", general(100.0 * q, 6))),
                general(1.0 + self.config.lat_tol, 6),
                join(&|q| format!(
                    "{}pp",
                    general(100.0 * self.config.latency_margin(q, self.next), 3)
                ))
            );
        }
        let _ = write!(
            text,
            " (weakest: {}, e={} >= {})",
            self.name(weakest),
            figure(e(log)),
            general(1.0 / self.config.beta, 6)
        );
        text
    }

    fn says_hold(&self, weight: &str, eta: Option<Eta>, piece: Piece) -> String {
        let needs = general(1.0 / self.config.alpha, 6);
        let harm = format!("rollback e={} (needs {needs}", figure(e(self.log_harm())));
        let seen = self.test(self.lead()).seen;
        let harm = if self.log_harm() >= -self.config.alpha.ln() {
            format!(
                "{harm}, and {} bad canary requests: {})",
                self.config.min_canary_events, seen.canary_bad
            )
        } else {
            format!("{harm})")
        };
        if self.is_frozen() {
            let share = 100.0 * self.recent.stable_bad / self.recent.stable;
            return format!(
                "HOLD at {weight}%: stable itself is failing {share:.2}%; not proceeding; {harm}"
            );
        }
        let (weakest, log) = self.weakest();
        if log >= -self.config.beta.ln() {
            let left = (self.t_step + self.config.min_step_s - self.t).max(0.0);
            return format!(
                "HOLD at {weight}%: {harm}; proceed waits {left:.0} s more: a step takes at least {} s",
                self.config.min_step_s
            );
        }
        let waits = format!(
            "proceed waits for {} e={} (needs {})",
            self.name(weakest),
            figure(e(log)),
            general(1.0 / self.config.beta, 6)
        );
        if self.is_silent() {
            let silence = self.says_silence(piece);
            return format!("HOLD at {weight}%: inconclusive: {silence}; {harm}; {waits}");
        }
        let mut text = format!("HOLD at {weight}%: {harm}; {waits}");
        let (pieces, traffic) = match piece {
            Piece::Request | Piece::Unforced => ("requests", "the traffic of now"),
            Piece::User => ("users", "the new users of now"),
        };
        match eta {
            None => text.push_str(", which is not in sight at the rates of now"),
            Some(eta) => {
                let more = thousands(eta.canary_requests);
                let _ = write!(text, ", about {more} more canary {pieces}");
                if let Some(seconds) = eta.seconds {
                    let _ = write!(text, ", {} at {traffic}", time(seconds));
                }
            }
        }
        text
    }

    /// That there is no evidence, and for how long.
    fn says_silence(&self, piece: Piece) -> String {
        let (what, why) = match piece {
            Piece::Request => ("no canary traffic", ""),
            Piece::Unforced => ("no canary traffic that counts", ": only forced requests came"),
            Piece::User => (
                "no new users",
                ": each is one piece of evidence, once at each weight",
            ),
        };
        let lasts = match self.heard.map(|heard| self.t - heard) {
            None => String::new(),
            Some(seconds) if seconds < 1.0 => " yet".to_owned(),
            Some(seconds) => format!(" for {}", elapsed(seconds)),
        };
        format!("{what}{lasts}{why}")
    }

    fn weakest(&self) -> (usize, f64) {
        let (errors, quantiles) = self.log_fine();
        let mut weakest = (0, errors);
        for (index, log) in quantiles.into_iter().enumerate() {
            if log < weakest.1 {
                weakest = (index + 1, log);
            }
        }
        weakest
    }

    /// Whether the canary has had no request for a while, although its share of the traffic is not so small that this means nothing.
    fn is_silent(&self) -> bool {
        let all = self.recent.canary + self.recent.stable;
        self.recent.canary < NOTHING && (all < NOTHING || self.weight * all > EXPECTED)
    }

    /// Canary requests per second: its share now of all traffic of late, which knows more than its own few requests, some of which
    /// may be of another weight.
    fn pace(&self) -> Option<f64> {
        let all = self.recent.canary + self.recent.stable;
        (self.recent.seconds > 0.0 && !self.is_silent()).then(|| self.weight * all / self.recent.seconds)
    }

    /// How much is missing until every proceed test has passed, if everything goes on as it is.
    fn eta(&self) -> Option<Eta> {
        if self.is_frozen() {
            return None;
        }
        let rate = self.pace();
        let step_left = self.t_step + self.config.min_step_s - self.t;
        let first = self.t_first.unwrap_or(self.t);
        let warm_at = (first + self.config.warmup_s).max(self.t_step + self.config.step_warmup_s);
        let (mut requests, mut seconds) = (0.0f64, step_left.max(0.0));
        for index in 0..=self.slow.len() {
            let missing = self.missing(index)?;
            let waits = if index > 0 && missing > 0.0 {
                (warm_at - self.t).max(0.0)
            } else {
                0.0
            };
            let during = rate.map_or(0.0, |rate| waits * rate);
            requests = requests.max(missing + during);
            seconds = seconds.max(rate.map_or(0.0, |rate| waits + missing / rate));
        }
        Some(Eta {
            canary_requests: whole(requests),
            seconds: rate.map(|_| whole(seconds)),
        })
    }

    /// Canary requests that one proceed test still needs.
    fn missing(&self, index: usize) -> Option<f64> {
        let test = self.test(index);
        let shares = self.shares(test, index);
        let all = test.fine.needs(-self.config.beta.ln(), self.weight, shares)?;
        Some(all * (shares[0] + shares[1]))
    }

    /// How requests divide into canary bad, canary good, stable bad, stable good: as at this step so far, or as they will if the
    /// canary is like stable.
    #[expect(clippy::cast_precision_loss, reason = "a forecast")]
    fn shares(&self, test: &Test, index: usize) -> [f64; 4] {
        let here = test.here;
        if here.canary >= ENOUGH && here.stable > 0 {
            let all = (here.canary + here.stable) as f64;
            let good = |n: u64, bad: u64| n.saturating_sub(bad) as f64 / all;
            return [
                here.canary_bad as f64 / all,
                good(here.canary, here.canary_bad),
                here.stable_bad as f64 / all,
                good(here.stable, here.stable_bad),
            ];
        }
        let Seen {
            stable, stable_bad, ..
        } = test.seen;
        let bad = match self.quantile(index) {
            Some(q) if stable == 0 => 1.0 - q,
            Some(_) | None => stable_bad as f64 / stable.max(1) as f64,
        };
        divided(self.weight, bad, bad)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative, and a forecast beyond 2^63 means never"
)]
fn whole(number: f64) -> u64 {
    number.max(0.0).ceil() as u64
}

/// Evidence out of its logarithm, without leaving the range of numbers.
pub(super) fn e(log: f64) -> f64 {
    log.min(700.0).exp()
}

#[expect(clippy::cast_precision_loss, reason = "a share for people")]
pub(super) fn percent(part: u64, of: u64, decimals: usize) -> String {
    format!("{:.decimals$}", 100.0 * part as f64 / of.max(1) as f64)
}

/// `4.06% (33/812)`.
fn rate(bad: u64, of: u64) -> String {
    format!("{}% ({}/{})", percent(bad, of, 2), thousands(bad), thousands(of))
}

/// With at most so many digits, and none that says nothing: 5, 0.01, 33.3333.
pub(super) fn general(number: f64, digits: usize) -> String {
    let size = if number == 0.0 {
        0.0
    } else {
        number.abs().log10().floor()
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a number of digits"
    )]
    let decimals = (digits as f64 - 1.0 - size).clamp(0.0, 12.0) as usize;
    let text = format!("{number:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Evidence with three digits; what is beyond a million is only called large.
pub(super) fn figure(number: f64) -> String {
    if number >= 1e6 || number > 0.0 && number < 1e-3 {
        format!("{number:.1e}")
    } else {
        general(number, 3)
    }
}

/// What has passed, of which nothing is made up.
fn elapsed(seconds: f64) -> String {
    match seconds {
        ..120.0 => format!("{:.0} s", seconds.floor()),
        ..7200.0 => format!("{:.0} min", (seconds / 60.0).floor()),
        _ => format!("{:.0} h", (seconds / 3600.0).floor()),
    }
}

fn time(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h", seconds.div_ceil(3600)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        analysis::{Batch, JudgeConfig},
        stats::{BUCKETS, UnitCounts},
    };

    fn units(ended: u64, failed: u64) -> UnitCounts {
        let mut latency = vec![0; BUCKETS];
        latency[80] = ended;
        UnitCounts::of(failed, latency)
    }

    fn judge() -> Judge {
        let config = JudgeConfig {
            warmup_s: 0.0,
            step_warmup_s: 0.0,
            ..JudgeConfig::default()
        };
        let mut baseline = Judge::empty_baseline();
        baseline.update(1.0, &units(10_000, 0).latency[0]);
        Judge::new(config, 0.05, 0.25, baseline)
    }

    fn tick(judge: &mut Judge, canary: (u64, u64), stable: (u64, u64)) -> JudgeReport {
        let batch = Batch {
            weight: 0.05,
            canary: units(canary.0, canary.1),
            stable: units(stable.0, stable.1),
        };
        judge.tick(1.0, &[batch]);
        judge.report()
    }

    #[test]
    fn a_rollback_says_what_it_saw_and_how_sure_it_is() {
        let mut judge = judge();
        tick(&mut judge, (50, 0), (950, 2));
        let report = tick(&mut judge, (762, 33), (14_480, 29));
        assert_eq!(report.advice, Advice::Rollback);
        let expected = "ROLL BACK at weight 5%: canary failed 4.06% (33/812) vs stable 0.20% (31/15,430); canary got 5.0% of \
                        requests but 51.6% of the bad ones; e-value ";
        assert!(report.sentence.starts_with(expected), "{}", report.sentence);
        assert!(
            report
                .sentence
                .ends_with(" >= 100 (false-rollback risk <= 1% for the whole rollout)"),
            "{}",
            report.sentence
        );
    }

    #[test]
    fn a_hold_says_what_is_missing_and_that_forecast_comes_true() {
        let mut judge = judge();
        let report = tick(&mut judge, (50, 0), (950, 1));
        let Some(eta) = report.eta else {
            panic!("{report:#?}")
        };
        assert!(
            report.sentence.contains("HOLD at 5%: rollback e=") && report.sentence.contains("about "),
            "{}",
            report.sentence
        );
        let mut took = 0;
        while tick(&mut judge, (50, 0), (950, 1)).advice == Advice::Hold {
            took += 50;
            assert!(took < 100_000);
        }
        let (took, eta) = (f64::from(took), eta.canary_requests);
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let ratio = took / eta as f64;
        assert!((0.8..1.25).contains(&ratio), "{took} of {eta}");
        let said = judge.report().sentence;
        assert!(
            said.starts_with(
                "PROCEED from 5%: ruled out: errors above 1.25 x stable + 0.40pp; extra requests slower than stable's \
                 p50/p90/p99 (x1.1): 15pp/9pp/1.5pp (weakest: "
            ),
            "{said}"
        );
    }

    #[test]
    fn silence_is_said_and_is_no_evidence() {
        let mut judge = judge();
        let said = |judge: &Judge| {
            let report = judge.report();
            assert_eq!(report.advice, Advice::Hold);
            let rest = "; rollback e=1 (needs 100); proceed waits for errors e=1 (needs 20)";
            let said = report.sentence.strip_suffix(rest);
            let said =
                said.and_then(|said| said.strip_prefix("HOLD at 5%: inconclusive: no canary traffic "));
            said.unwrap_or_else(|| panic!("{}", report.sentence)).to_owned()
        };
        assert_eq!(said(&judge), "yet");
        for (seconds, lasts) in [
            (60, "for 60 s"),
            (120, "for 2 min"),
            (1000, "for 16 min"),
            (7300, "for 2 h"),
        ] {
            while judge.t < f64::from(seconds) {
                judge.tick(10.0, &[]);
            }
            assert_eq!(said(&judge), lasts);
        }
    }

    #[test]
    fn silence_but_for_forced_requests_is_called_that() {
        let mut judge = judge();
        for (seconds, lasts) in [(0, "yet"), (60, "for 60 s")] {
            while judge.t < f64::from(seconds) {
                judge.tick(10.0, &[]);
            }
            let said = judge.report_of(Piece::Unforced).sentence;
            let silent = format!(
                "HOLD at 5%: inconclusive: no canary traffic that counts {lasts}: only forced requests came; rollback e=1 (needs \
                 100); "
            );
            assert!(said.starts_with(&silent), "{said}");
        }
    }

    #[test]
    fn silence_lasts_since_the_canarys_last_request() {
        let mut judge = judge();
        for _ in 0..3 {
            tick(&mut judge, (50, 0), (950, 0));
        }
        for _ in 0..119 {
            tick(&mut judge, (0, 0), (1000, 0));
        }
        let silent = "HOLD at 5%: inconclusive: no canary traffic for 119 s; rollback e=";
        let said = judge.report().sentence;
        assert!(said.starts_with(silent), "{said}");
        let json = serde_json::to_string(&judge).unwrap();
        let again: Judge = serde_json::from_str(&json).unwrap();
        assert_eq!(again.report().sentence, said, "also after a restart");
        // As a Serin kept it that did not say for how long: what it recorded is replayed as it was.
        let mut old: Judge = serde_json::from_str(&json.replace("\"heard\"", "\"unknown\"")).unwrap();
        let silent = "HOLD at 5%: inconclusive: no canary traffic; rollback e=";
        assert!(old.report().sentence.starts_with(silent));
        tick(&mut old, (50, 0), (950, 0));
        assert!(!serde_json::to_string(&old).unwrap().contains("heard"));
    }

    #[test]
    fn the_forecast_is_of_the_weight_in_force_and_of_all_traffic() {
        let mut judge = judge();
        for _ in 0..30 {
            tick(&mut judge, (50, 0), (950, 0));
        }
        judge.enter(0.5, 1.0);
        let report = judge.report();
        let eta = report.eta.unwrap_or_else(|| panic!("{report:#?}"));
        let at_once = eta.canary_requests.div_ceil(500);
        assert!(
            eta.seconds.is_some_and(|seconds| seconds.abs_diff(at_once) <= 1),
            "{eta:?}"
        );
        // Two requests a second, of which the canary gets one in a minute.
        let mut rare = self::judge();
        rare.enter(0.01, 0.05);
        for second in 0..100 {
            tick(&mut rare, (u64::from(second % 50 == 0), 0), (2, 0));
        }
        let report = rare.report();
        let eta = report.eta.unwrap_or_else(|| panic!("{report:#?}"));
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let pace = eta
            .seconds
            .map(|seconds| eta.canary_requests as f64 / seconds as f64);
        assert!(
            pace.is_some_and(|pace| (0.018..0.023).contains(&pace)),
            "{report:#?}"
        );
        assert!(
            report.sentence.ends_with(" h at the traffic of now"),
            "{}",
            report.sentence
        );
        // So much traffic, and none of it reaches the canary.
        for _ in 0..100 {
            tick(&mut rare, (0, 0), (1000, 0));
        }
        let said = rare.report().sentence;
        assert!(
            said.starts_with("HOLD at 1%: inconclusive: no canary traffic for "),
            "{said}"
        );
    }

    #[test]
    fn users_are_called_users_and_when_all_are_known_it_says_so() {
        let mut judge = judge();
        tick(&mut judge, (50, 0), (950, 1));
        let said = judge.report_of(Piece::User).sentence;
        assert!(
            said.contains(" more canary users, ") && said.ends_with(" at the new users of now"),
            "{said}"
        );
        for _ in 0..100 {
            judge.tick(10.0, &[]);
        }
        let said = judge.report_of(Piece::User).sentence;
        assert!(
            said.starts_with(
                "HOLD at 5%: inconclusive: no new users for 16 min: each is one piece of evidence, once at each weight; rollback e="
            ),
            "{said}"
        );
    }

    #[test]
    fn a_stable_that_fails_itself_freezes_and_says_so() {
        let mut judge = judge();
        let report = tick(&mut judge, (5, 0), (95, 5));
        assert!(
            report.frozen && report.sentence.contains("stable itself is failing 5.26%"),
            "{report:#?}"
        );
    }

    #[test]
    fn numbers_are_short() {
        let said = [5.0, 0.01, 100.0 / 3.0, 0.0, 1.25].map(|number| general(number, 6));
        assert_eq!(said, ["5", "0.01", "33.3333", "0", "1.25"]);
        assert_eq!(
            [312.4, 29.83, 0.2345, 1.0, 2.5e9, 1e-5].map(figure),
            ["312", "29.8", "0.234", "1", "2.5e9", "1.0e-5"]
        );
        assert_eq!(
            [7, 15_430, 1_000_000].map(thousands),
            ["7", "15,430", "1,000,000"]
        );
    }
}
