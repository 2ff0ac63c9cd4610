//! Which endpoints of a version are in rotation.
//!
//! Pure: time and dice are arguments, so that any run can be replayed from its events. Active checks and failures of real
//! requests come in as events; what goes out is who is in rotation and who is healthy. `rotation` puts that where workers
//! see it, `active` makes the checks.
//!
//! An endpoint is out while checks find it bad (`health`) or while it is ejected (`ejection`). Ejection has a ceiling, since
//! it goes by the failures of the version's own requests; a check does not. When too few are left, health itself is not
//! believed and all are used (panic).

use crate::config::{Ejection, Health, SuccessRate};
use std::{collections::BTreeMap, time::Duration};

/// What the machine goes by.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Active checks; none: requests alone tell.
    pub health: Option<Health>,
    /// What failures of requests lead to.
    pub ejection: Ejection,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// These are the endpoints now.
    Members(&'a [u64]),
    /// An active check ended.
    Checked {
        /// Of this endpoint.
        id: u64,
        /// Whether it held; none: it could not be made, which says nothing.
        good: Option<bool>,
        /// Spreads the next one.
        dice: u64,
    },
    /// So many requests in a row failed that ejection is due.
    Failing {
        /// At this endpoint.
        id: u64,
    },
    /// What workers have sent since the last such event.
    Served {
        /// To this endpoint.
        id: u64,
        /// How much of it there was.
        requests: u64,
        /// How much of it failed.
        failures: u64,
    },
    /// Time has passed.
    Tick,
}

/// Why an endpoint is where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nothing speaks against it.
    Healthy,
    /// Active checks find it bad.
    Checks,
    /// Its requests failed.
    Ejected,
}

/// What is true of an endpoint from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The endpoint.
    pub id: u64,
    /// Whether requests are to be sent there.
    pub in_rotation: bool,
    /// Whether it is healthy; in a panic it may be in rotation without.
    pub reason: Reason,
    /// Whether the reason is another one than before; otherwise a panic has begun or ended.
    pub turned: bool,
}

/// The state of one version's endpoints.
#[derive(Debug, Default)]
pub struct Machine {
    members: BTreeMap<u64, Member>,
    window_since: Duration,
    panicking: bool,
    /// How often one of them was ejected.
    ejections: u64,
}

#[derive(Debug, Default)]
struct Member {
    /// Active checks find it bad.
    bad: bool,
    /// Checks in a row that disagree with `bad`.
    streak: u32,
    /// When the next check is due; none: one is under way, or none was planned yet.
    next: Option<Duration>,
    /// When the one that is under way has been given out.
    given: Option<Duration>,
    planned: bool,
    ejected_until: Option<Duration>,
    /// How often it was ejected lately: each time for longer.
    ejections: u32,
    back_since: Duration,
    requests: u64,
    failures: u64,
    told: Option<(bool, Reason)>,
}

impl Member {
    fn reason(&self) -> Reason {
        match (self.bad, self.ejected_until) {
            (true, _) => Reason::Checks,
            (false, Some(_)) => Reason::Ejected,
            (false, None) => Reason::Healthy,
        }
    }
}

/// `interval`, spread by a tenth either way.
fn spread(interval: Duration, dice: u64) -> Duration {
    // 0..=255 becomes 0.9..=1.1.
    let share = u32::from(dice.to_le_bytes()[7]);
    interval * (2295 + 2 * share) / 2550
}

impl Machine {
    /// Whether so few endpoints are healthy that all are used.
    pub fn is_panicking(&self) -> bool {
        self.panicking
    }

    /// How often an endpoint was ejected since the beginning, whoever it was.
    pub fn ejections(&self) -> u64 {
        self.ejections
    }

    /// Moves by one event; says what is different for whom.
    pub fn apply(&mut self, event: &Event<'_>, now: Duration, rules: &Rules) -> Vec<Change> {
        match *event {
            Event::Members(ids) => {
                self.members.retain(|id, _| ids.contains(id));
                for id in ids {
                    self.members.entry(*id).or_insert_with(|| Member {
                        back_since: now,
                        ..Member::default()
                    });
                }
            }
            Event::Checked { id, good, dice } => {
                if let (Some(member), Some(health)) = (self.members.get_mut(&id), &rules.health) {
                    member.next = Some(now + spread(health.interval.as_duration(), dice));
                    member.given = None;
                    if let Some(good) = good {
                        member.checked(good, health);
                    }
                }
            }
            Event::Failing { id } => self.eject(id, now, &rules.ejection),
            Event::Served {
                id,
                requests,
                failures,
            } => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.requests += requests;
                    member.failures += failures;
                }
            }
            Event::Tick => self.tick(now, rules),
        }
        self.settle(now, &rules.ejection)
    }

    /// Endpoints whose check is due. Each is given out once; the next is planned when its [`Event::Checked`] comes.
    pub fn due(&mut self, now: Duration, rules: &Rules, mut dice: impl FnMut() -> u64) -> Vec<u64> {
        let Some(health) = &rules.health else {
            return Vec::new();
        };
        let mut due = Vec::new();
        for (id, member) in &mut self.members {
            if !member.planned {
                // The first checks of many endpoints are spread as well.
                member.planned = true;
                let interval = health.interval.as_duration();
                member.next = Some(now + spread(interval, dice()).saturating_sub(interval * 9 / 10));
            }
            if member.next.is_some_and(|next| next <= now) {
                (member.next, member.given) = (None, Some(now));
                due.push(*id);
            }
        }
        due
    }

    /// When to look again: a check is due, may have ended long enough ago for the next, or an ejection ends.
    pub fn next(&self, now: Duration, rules: &Rules) -> Option<Duration> {
        let interval = rules.health.as_ref().map(|health| health.interval.as_duration());
        let follows = |given: Option<Duration>| Some(given? + interval? * 9 / 10).filter(|then| *then > now);
        self.members
            .values()
            .flat_map(|member| [member.next, follows(member.given), member.ejected_until])
            .flatten()
            .min()
    }

    fn tick(&mut self, now: Duration, rules: &Rules) {
        for member in self.members.values_mut() {
            if rules.health.is_none() {
                (member.bad, member.streak, member.planned) = (false, 0, false);
                (member.next, member.given) = (None, None);
            }
            if member.ejected_until.is_some_and(|until| until <= now) {
                (member.ejected_until, member.back_since) = (None, now);
            }
        }
        match rules.ejection.success_rate {
            Some(rate) if now.saturating_sub(self.window_since) >= rate.window.as_duration() => {
                self.judge_window(now, rate, &rules.ejection);
            }
            Some(_) => {}
            None => self.clear_window(now),
        }
    }

    fn clear_window(&mut self, now: Duration) {
        self.window_since = now;
        for member in self.members.values_mut() {
            (member.requests, member.failures) = (0, 0);
        }
    }

    fn judge_window(&mut self, now: Duration, rate: SuccessRate, ejection: &Ejection) {
        #[allow(clippy::cast_precision_loss, reason = "a share of requests")]
        let success = |member: &Member| {
            // Failures are known at once, requests once a second: there may be more of the former.
            let all = member.requests.max(member.failures);
            (all >= rate.requests && all > 0).then(|| 1.0 - member.failures as f64 / all as f64)
        };
        let rates: Vec<(u64, f64)> = self
            .members
            .iter()
            .filter_map(|(id, member)| Some((*id, success(member)?)))
            .collect();
        #[allow(clippy::cast_precision_loss, reason = "a handful of endpoints")]
        let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / rates.len().max(1) as f64;
        let low = |own: f64| {
            rate.minimum.is_some_and(|minimum| own < minimum.as_ratio())
                || rate.below_mean.is_some_and(|by| own < mean - by.as_ratio())
        };
        let mut worst: Vec<&(u64, f64)> = rates.iter().filter(|(_, own)| low(*own)).collect();
        // The ceiling may not let all of them out: the worst first.
        worst.sort_by(|a, b| a.1.total_cmp(&b.1));
        let worst: Vec<u64> = worst.into_iter().map(|(id, _)| *id).collect();
        for id in worst {
            self.eject(id, now, ejection);
        }
        self.clear_window(now);
    }

    /// How many may be ejected at once.
    fn ceiling(&self, ejection: &Ejection) -> usize {
        let members = self.members.len();
        if members < 2 || ejection.max.is_zero() {
            return 0;
        }
        let share = members * usize::try_from(ejection.max.p()).unwrap_or(0)
            / usize::try_from(ejection.max.q()).unwrap_or(1).max(1);
        share.max(1)
    }

    fn ejected(&self) -> usize {
        self.members
            .values()
            .filter(|member| member.ejected_until.is_some())
            .count()
    }

    fn eject(&mut self, id: u64, now: Duration, ejection: &Ejection) {
        if self.ejected() >= self.ceiling(ejection) {
            return;
        }
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if member.ejected_until.is_some() {
            return;
        }
        let base = ejection.base.as_duration();
        // What has held for as long as the longest ejection lasts starts over.
        if now.saturating_sub(member.back_since) > base * 10 {
            member.ejections = 0;
        }
        let times = 1u32 << member.ejections.min(4);
        member.ejections += 1;
        member.ejected_until = Some(now + base * times.min(10));
        self.ejections += 1;
    }

    /// Holds the ceiling, decides about panic, and says what is different.
    fn settle(&mut self, now: Duration, ejection: &Ejection) -> Vec<Change> {
        let too_many = self.ejected().saturating_sub(self.ceiling(ejection));
        if too_many > 0 {
            // Endpoints have left, or the rule has changed: those that would be back first are.
            let mut out: Vec<(Duration, u64)> = self
                .members
                .iter()
                .filter_map(|(id, member)| Some((member.ejected_until?, *id)))
                .collect();
            out.sort_unstable();
            for (_, id) in out.into_iter().take(too_many) {
                if let Some(member) = self.members.get_mut(&id) {
                    (member.ejected_until, member.back_since) = (None, now);
                }
            }
        }
        let healthy = self
            .members
            .values()
            .filter(|member| member.reason() == Reason::Healthy)
            .count();
        #[allow(clippy::cast_precision_loss, reason = "a handful of endpoints")]
        let share = healthy as f64 / self.members.len().max(1) as f64;
        self.panicking = !self.members.is_empty() && share < ejection.panic.as_ratio();
        let panicking = self.panicking;
        let mut changes = Vec::new();
        for (id, member) in &mut self.members {
            let reason = member.reason();
            let in_rotation = panicking || reason == Reason::Healthy;
            let before = member.told.replace((in_rotation, reason));
            if before != Some((in_rotation, reason)) {
                changes.push(Change {
                    id: *id,
                    in_rotation,
                    reason,
                    turned: before.is_none_or(|(_, before)| before != reason),
                });
            }
        }
        changes
    }
}

impl Member {
    fn checked(&mut self, good: bool, health: &Health) {
        if good != self.bad {
            self.streak = 0;
            return;
        }
        self.streak += 1;
        let needed = if self.bad { health.rise } else { health.fall };
        if self.streak >= needed {
            (self.bad, self.streak) = (!self.bad, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Span, Weight};
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn checked() -> Rules {
        Rules {
            health: Some(Health::default()),
            ejection: Ejection::default(),
        }
    }

    /// What a watcher who only reads the changes believes.
    #[derive(Default)]
    struct Board(BTreeMap<u64, Change>);

    impl Board {
        fn note(&mut self, changes: Vec<Change>) {
            for change in changes {
                self.0.insert(change.id, change);
            }
        }
        fn out(&self) -> Vec<u64> {
            self.0.values().filter(|c| !c.in_rotation).map(|c| c.id).collect()
        }
    }

    fn with(ids: &[u64], rules: &Rules) -> (Machine, Board) {
        let (mut machine, mut board) = (Machine::default(), Board::default());
        board.note(machine.apply(&Event::Members(ids), at(0), rules));
        (machine, board)
    }

    fn check(machine: &mut Machine, board: &mut Board, id: u64, good: bool, now: Duration) {
        let event = Event::Checked {
            id,
            good: Some(good),
            dice: 0,
        };
        board.note(machine.apply(&event, now, &checked()));
    }

    #[test]
    fn checks_take_an_endpoint_out_after_fall_bad_ones_and_back_after_rise_good_ones() {
        let (mut machine, mut board) = with(&[1, 2], &checked());
        check(&mut machine, &mut board, 1, false, at(1));
        check(&mut machine, &mut board, 1, false, at(2));
        check(&mut machine, &mut board, 1, true, at(3));
        check(&mut machine, &mut board, 1, false, at(4));
        check(&mut machine, &mut board, 1, false, at(5));
        assert!(board.out().is_empty(), "a good one in between starts over");
        check(&mut machine, &mut board, 1, false, at(6));
        assert_eq!(board.out(), [1]);
        check(&mut machine, &mut board, 1, true, at(7));
        assert_eq!(board.out(), [1]);
        check(&mut machine, &mut board, 1, true, at(8));
        assert!(board.out().is_empty() && board.0[&1].turned);
    }

    #[test]
    fn a_check_that_could_not_be_made_says_nothing_and_is_made_again() {
        let (mut machine, mut board) = with(&[1, 2], &checked());
        assert_eq!(machine.due(at(1), &checked(), || 0).len(), 2);
        check(&mut machine, &mut board, 1, false, at(1));
        for secs in 2..9 {
            let event = Event::Checked {
                id: 1,
                good: None,
                dice: 0,
            };
            board.note(machine.apply(&event, at(secs), &checked()));
        }
        check(&mut machine, &mut board, 1, false, at(9));
        assert!(board.out().is_empty());
        check(&mut machine, &mut board, 1, false, at(10));
        assert_eq!(board.out(), [1], "nor does it end a streak");
        assert!(machine.next(at(10), &checked()).is_some());
    }

    #[test]
    fn when_too_few_are_healthy_all_are_used_and_said_to_be_unhealthy() {
        let (mut machine, mut board) = with(&[1, 2, 3, 4], &checked());
        for id in 1..=3 {
            for _ in 0..3 {
                check(&mut machine, &mut board, id, false, at(1));
            }
        }
        assert!(
            machine.is_panicking() && board.out().is_empty(),
            "25 % is below 30 %"
        );
        assert_eq!(board.0.values().filter(|c| c.reason == Reason::Checks).count(), 3);
        check(&mut machine, &mut board, 1, true, at(2));
        check(&mut machine, &mut board, 1, true, at(3));
        assert_eq!(board.out(), [2, 3], "half is enough to believe health again");
    }

    #[test]
    fn ejection_lasts_twice_as_long_each_time_up_to_ten_times_and_starts_over_after_a_good_while() {
        let rules = Rules::default();
        let (mut machine, mut board) = with(&[1, 2], &rules);
        let mut now = at(100);
        for expected in [5, 10, 20, 40, 50, 50] {
            board.note(machine.apply(&Event::Failing { id: 1 }, now, &rules));
            assert_eq!(board.out(), [1]);
            board.note(machine.apply(&Event::Tick, (now + at(expected)).saturating_sub(MS), &rules));
            assert_eq!(board.out(), [1]);
            now += at(expected);
            board.note(machine.apply(&Event::Tick, now, &rules));
            assert!(board.out().is_empty());
        }
        now += at(51);
        machine.apply(&Event::Failing { id: 1 }, now, &rules);
        assert_eq!(machine.next(now, &rules), Some(now + at(5)));
    }

    #[test]
    fn no_more_than_the_ceiling_is_ejected_and_never_the_only_one() {
        let rules = Rules::default();
        let (mut machine, mut board) = with(&[1, 2, 3, 4, 5], &rules);
        for id in 1..=5 {
            board.note(machine.apply(&Event::Failing { id }, at(1), &rules));
        }
        assert_eq!(board.out(), [1, 2]);
        board.note(machine.apply(&Event::Members(&[1, 2, 3]), at(2), &rules));
        board.0.retain(|id, _| *id <= 3);
        assert_eq!(board.out().len(), 1, "the ceiling moves with the endpoints");
        let (mut machine, mut board) = with(&[7], &rules);
        board.note(machine.apply(&Event::Failing { id: 7 }, at(1), &rules));
        assert!(board.out().is_empty());
    }

    fn by_rate(minimum: Option<u32>, below_mean: Option<u32>) -> Rules {
        Rules {
            health: None,
            ejection: Ejection {
                success_rate: Some(SuccessRate {
                    window: Span::secs(10),
                    requests: 100,
                    minimum: minimum.map(Weight::percent),
                    below_mean: below_mean.map(Weight::percent),
                }),
                ..Ejection::default()
            },
        }
    }

    fn served(machine: &mut Machine, counts: &[(u64, u64, u64)], rules: &Rules) -> Vec<u64> {
        let mut board = Board::default();
        for &(id, requests, failures) in counts {
            let event = Event::Served {
                id,
                requests,
                failures,
            };
            board.note(machine.apply(&event, at(5), rules));
        }
        board.note(machine.apply(&Event::Tick, at(10), rules));
        board.out()
    }

    #[test]
    fn an_endpoint_whose_requests_fail_too_often_is_ejected_by_the_rate_of_a_window() {
        let rules = by_rate(Some(50), None);
        let (mut machine, _) = with(&[1, 2, 3], &rules);
        let counts = [(1, 100, 51), (2, 100, 50), (3, 99, 99)];
        assert_eq!(
            served(&mut machine, &counts, &rules),
            [1],
            "99 requests say nothing"
        );
        let rules = by_rate(None, Some(30));
        let (mut machine, _) = with(&[1, 2, 3], &rules);
        let counts = [(1, 200, 120), (2, 200, 0), (3, 200, 4)];
        assert_eq!(served(&mut machine, &counts, &rules), [1]);
        let (mut machine, _) = with(&[1, 2, 3], &rules);
        let counts = [(1, 200, 120), (2, 200, 110), (3, 200, 115)];
        assert_eq!(
            served(&mut machine, &counts, &rules),
            [0; 0],
            "all alike: that is the version, not an endpoint"
        );
    }

    #[test]
    fn each_endpoint_is_checked_once_an_interval_spread_by_a_tenth() {
        let rules = checked();
        let (mut machine, _) = with(&[1], &rules);
        let mut dice = 0x9E37_79B9_7F4A_7C15u64;
        let mut roll = || {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            dice
        };
        let (mut now, mut before, mut gaps) = (at(0), None, Vec::new());
        while gaps.len() < 200 {
            now += 10 * MS;
            for id in machine.due(now, &rules, &mut roll) {
                if let Some(before) = before.replace(now) {
                    gaps.push(now.saturating_sub(before));
                }
                assert!(machine.due(now, &rules, &mut roll).is_empty(), "it is under way");
                let event = Event::Checked {
                    id,
                    good: Some(true),
                    dice: roll(),
                };
                machine.apply(&event, now, &rules);
            }
        }
        assert!(
            gaps.iter().all(|gap| (4500..=5520).contains(&gap.as_millis())),
            "{gaps:?}"
        );
        assert!(gaps.iter().max() > gaps.iter().min());
    }

    #[test]
    fn whoever_looks_when_he_is_told_to_keeps_a_short_interval() {
        let mut rules = checked();
        if let Some(health) = &mut rules.health {
            health.interval = Span::millis(100);
        }
        let (mut machine, _) = with(&[1], &rules);
        let (mut now, mut checks, mut ends) = (at(0), 0, None);
        while now < at(10) {
            for _ in machine.due(now, &rules, || 0) {
                (checks, ends) = (checks + 1, Some(now + 3 * MS));
            }
            // Somebody else says that a check has ended, while the one who looks sleeps.
            let next = machine
                .next(now, &rules)
                .unwrap_or(now + at(1))
                .max(now + 10 * MS);
            if let Some(end) = ends.take_if(|end| *end <= next) {
                let event = Event::Checked {
                    id: 1,
                    good: Some(true),
                    dice: 0,
                };
                machine.apply(&event, end, &rules);
            }
            now = next;
        }
        assert!((95..=112).contains(&checks), "{checks}");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Members(Vec<u64>),
        Checked(u64, Option<bool>, u64),
        Failing(u64),
        Served(u64, u64, u64),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => prop::collection::btree_set(0u64..8, 0..8).prop_map(|set| Step::Members(set.into_iter().collect())),
            4 => (0u64..8, any::<Option<bool>>(), any::<u64>()).prop_map(|(id, good, dice)| Step::Checked(id, good, dice)),
            4 => (0u64..8).prop_map(Step::Failing),
            2 => (0u64..8, 0u64..500, 0u64..500).prop_map(|(id, n, bad)| Step::Served(id, n, bad)),
            4 => (0u64..20_000).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Whatever happens: the ceiling holds, panic means all, changes tell the whole story, nobody is out for ever.
        #[test]
        fn the_rules_hold_whatever_happens(
            steps in prop::collection::vec(step(), 1..200),
            max in 0u32..=100,
            panic in 0u32..=100,
            active in any::<bool>(),
        ) {
            let mut rules = by_rate(Some(50), Some(30));
            rules.ejection.max = Weight::percent(max);
            rules.ejection.panic = Weight::percent(panic);
            rules.health = active.then(Health::default);
            let (mut machine, mut board) = (Machine::default(), Board::default());
            let (mut now, mut members) = (at(0), Vec::new());
            for step in steps {
                let changes = match step {
                    Step::Members(ids) => {
                        members.clone_from(&ids);
                        board.0.retain(|id, _| ids.contains(id));
                        machine.apply(&Event::Members(&ids), now, &rules)
                    }
                    Step::Checked(id, good, dice) => machine.apply(&Event::Checked { id, good, dice }, now, &rules),
                    Step::Failing(id) => machine.apply(&Event::Failing { id }, now, &rules),
                    Step::Served(id, requests, failures) => {
                        machine.apply(&Event::Served { id, requests, failures }, now, &rules)
                    }
                    Step::Wait(ms) => {
                        now += Duration::from_millis(ms);
                        machine.apply(&Event::Tick, now, &rules)
                    }
                };
                board.note(changes);
                prop_assert_eq!(board.0.keys().copied().collect::<Vec<_>>(), members.clone());
                let ejected = board.0.values().filter(|c| c.reason == Reason::Ejected).count();
                prop_assert!(ejected <= machine.ceiling(&rules.ejection));
                if machine.is_panicking() {
                    prop_assert!(board.out().is_empty());
                } else {
                    let unhealthy = board.0.values().filter(|c| c.reason != Reason::Healthy).count();
                    prop_assert_eq!(board.out().len(), unhealthy);
                }
                prop_assert!(active || board.0.values().all(|c| c.reason != Reason::Checks));
            }
            // Left alone, every ejection ends within ten times its base; the first look may still judge a window.
            for wait in [50, 100] {
                board.note(machine.apply(&Event::Tick, now + at(wait), &rules));
            }
            prop_assert!(board.0.values().all(|c| c.reason != Reason::Ejected));
        }
    }
}
