//! Whole rollouts in virtual time: the real splitter draws every request, and the judge sees what came of it.
//!
//! What its proof promises is watched here: versions that are equal, however their errors come, are rolled back in at most
//! one of 1/alpha rollouts; worse ones soon; healthy ones are promoted soon. The unit tests run a few hundred rollouts;
//! `benches/judging` includes this file and runs as many as it is told to. A seed repeats a rollout exactly.

use crate::{
    analysis::{Advice, Batch, Judge, JudgeConfig},
    model::{Role, Weight},
    split::{Split, StickyHash, is_canary},
    stats::{BUCKETS, Counts, UnitCounts, bucket},
};

/// The generator called `SplitMix64`.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        let mut dice = Dice(seed);
        Dice(dice.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    #[expect(clippy::cast_precision_loss, reason = "53 bits are kept")]
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.unit() < p
    }

    /// A standard normal number (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (2.0 * std::f64::consts::PI * self.unit()).cos()
    }

    /// A response time in seconds: around 20 ms, and one of fifty ten times as slow.
    pub(crate) fn latency(&mut self) -> f64 {
        let tail = if self.chance(0.02) { 10.0 } else { 1.0 };
        0.02 * tail * (0.6 * self.normal()).exp()
    }
}

/// A new generation of the splitter.
fn generation(dice: &mut Dice, number: u64, weight: Weight) -> Split<()> {
    let sticky = StickyHash::new(&dice.next().to_be_bytes(), "simulated");
    Split::new(number, weight, (), Some(()), sticky, [dice.next(), dice.next()])
}

/// A judge at the first weight of a plan.
pub(crate) fn judge_of(config: JudgeConfig, weights: &[Weight]) -> Judge {
    let (weight, next) = step_of(weights, 0);
    Judge::new(config, weight, next, Judge::empty_baseline())
}

/// The plan goes on to this step.
pub(crate) fn enter(judge: &mut Judge, weights: &[Weight], step: usize) {
    let (weight, next) = step_of(weights, step);
    judge.enter(weight, next);
}

fn step_of(weights: &[Weight], step: usize) -> (f64, f64) {
    let at = |step: usize| weights.get(step).map_or(1.0, |weight| weight.as_ratio());
    (at(step), at(step + 1))
}

/// Tells the judge of failures only.
pub(crate) fn tell(judge: &mut Judge, dt: f64, counts: &Counts) -> Advice {
    let batch = Batch {
        weight: counts.w,
        canary: UnitCounts::of(counts.canary_bad, vec![counts.canary]),
        stable: UnitCounts::of(counts.stable_bad, vec![counts.stable]),
    };
    judge.tick(dt, &[batch])
}

/// How two equal versions fail.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Equal {
    /// Independently, at one rate.
    Rate(f64),
    /// At 0.1 %, and at 5 % for the middle fifth of every step.
    Incident,
    /// At a rate that swings between 0.02 and 0.38 %.
    Drift,
    /// Every n-th request that arrives.
    Periodic(u64),
    /// By client: 5 of 500 always fail; keys stick to their version and count once.
    Sticky,
    /// Not at all, but one request of ten thousand takes for ever; latencies are judged too.
    Latency,
}

/// A plan with steps of one length, whose versions are equal.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) weights: Vec<Weight>,
    /// How many ticks each step takes, and how long one is.
    pub(crate) ticks: u64,
    pub(crate) tick: f64,
    /// Requests in one tick.
    pub(crate) requests: u64,
}

/// One tick of it.
pub(crate) struct Seen {
    pub(crate) step: usize,
    pub(crate) counts: Counts,
}

/// Runs a plan whose steps take their time whatever the judge says. `watch` sees each tick, and ends the run by `false`.
pub(crate) fn held(
    seed: u64,
    plan: &Held,
    mut rate: impl FnMut(&mut Dice, Role, f64, u64) -> bool,
    mut watch: impl FnMut(&Seen) -> bool,
) {
    let mut dice = Dice::new(seed);
    let mut arrived = 0;
    for (step, weight) in plan.weights.iter().enumerate() {
        let split = generation(&mut dice, step as u64, *weight);
        for tick in 0..plan.ticks {
            let through = fraction(tick, plan.ticks);
            let mut counts = Counts {
                w: weight.as_ratio(),
                ..Counts::default()
            };
            for _ in 0..plan.requests {
                let role = split.draw().role;
                count(&mut counts, role, rate(&mut dice, role, through, arrived));
                arrived += 1;
            }
            if !watch(&Seen { step, counts }) {
                return;
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "ticks are few")]
fn fraction(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn count(counts: &mut Counts, role: Role, bad: bool) {
    match role {
        Role::Canary => {
            counts.canary += 1;
            counts.canary_bad += u64::from(bad);
        }
        Role::Stable => {
            counts.stable += 1;
            counts.stable_bad += u64::from(bad);
        }
    }
}

/// Tells the judge of 4xx answers only; whether it calls for a person.
fn pauses(judge: &mut Judge, dt: f64, counts: &Counts) -> bool {
    let units = |requests: u64, client_errors: u64| UnitCounts {
        client_errors,
        ..UnitCounts::of(0, vec![requests])
    };
    let batch = Batch {
        weight: counts.w,
        canary: units(counts.canary, counts.canary_bad),
        stable: units(counts.stable, counts.stable_bad),
    };
    judge.tick(dt, &[batch]);
    judge.pauses()
}

fn rolls_back(judge: &mut Judge, dt: f64, counts: &Counts) -> bool {
    tell(judge, dt, counts) == Advice::Rollback
}

/// Whether the judge pauses one of two versions that answer 4xx alike.
pub(crate) fn false_pause(seed: u64, plan: &Held, equal: Equal) -> bool {
    let config = JudgeConfig {
        lat_q: Vec::new(),
        ..JudgeConfig::default()
    };
    let mut judge = judge_of(config, &plan.weights);
    alarmed(seed, plan, equal, &mut judge, pauses)
}

/// Whether the judge rolls one of two equal versions back.
pub(crate) fn false_rollback(seed: u64, plan: &Held, equal: Equal) -> bool {
    let config = JudgeConfig {
        client_err_delta: None,
        lat_q: if matches!(equal, Equal::Latency) {
            JudgeConfig::default().lat_q
        } else {
            Vec::new()
        },
        warmup_s: 5.0 * plan.tick,
        step_warmup_s: plan.tick,
        ..JudgeConfig::default()
    };
    let mut judge = judge_of(config, &plan.weights);
    alarmed(seed, plan, equal, &mut judge, rolls_back)
}

/// Whether the judge, told in this way, raises the alarm over one of two equal versions.
fn alarmed(
    seed: u64,
    plan: &Held,
    equal: Equal,
    judge: &mut Judge,
    mut told: impl FnMut(&mut Judge, f64, &Counts) -> bool,
) -> bool {
    match equal {
        Equal::Sticky => by_client(seed, plan, judge, Unit::Client, told),
        Equal::Latency => slow(seed, plan, judge),
        Equal::Rate(_) | Equal::Incident | Equal::Drift | Equal::Periodic(_) => {
            let rate = |dice: &mut Dice, through: f64, number: u64| match equal {
                Equal::Rate(p) => dice.chance(p),
                Equal::Incident => dice.chance(if (0.4..0.6).contains(&through) {
                    0.05
                } else {
                    0.001
                }),
                Equal::Drift => dice.chance(0.002 + 0.0018 * (2.0 * std::f64::consts::PI * through).sin()),
                Equal::Periodic(period) => number.is_multiple_of(period),
                Equal::Sticky | Equal::Latency => false,
            };
            let (mut step, mut worse) = (0, false);
            held(
                seed,
                plan,
                |dice, _, through, number| rate(dice, through, number),
                |seen| {
                    if seen.step != step {
                        step = seen.step;
                        enter(judge, &plan.weights, step);
                    }
                    worse = told(judge, plan.tick, &seen.counts);
                    !worse
                },
            );
            worse
        }
    }
}

/// What is assigned, and what counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Each request by itself.
    Request,
    /// A client once and for all, and each of its failures counts: wrong, and here to show how wrong.
    Failures,
    /// A client once and for all, and its first failure counts.
    Client,
}

/// Five of 500 clients always fail, whichever version serves them.
pub(crate) fn sticky(seed: u64, plan: &Held, judge: &mut Judge, unit: Unit) -> bool {
    by_client(seed, plan, judge, unit, rolls_back)
}

fn by_client(
    seed: u64,
    plan: &Held,
    judge: &mut Judge,
    unit: Unit,
    mut told: impl FnMut(&mut Judge, f64, &Counts) -> bool,
) -> bool {
    let mut dice = Dice::new(seed);
    let hash = StickyHash::new(&dice.next().to_be_bytes(), "simulated");
    let mut failed = [false; 500];
    for (step, weight) in plan.weights.iter().enumerate() {
        if step > 0 {
            enter(judge, &plan.weights, step);
        }
        let split = generation(&mut dice, step as u64, *weight);
        for _ in 0..plan.ticks {
            let mut counts = Counts {
                w: weight.as_ratio(),
                ..Counts::default()
            };
            for _ in 0..plan.requests {
                let client = dice.next() % 500;
                let canary = is_canary(hash.bucket(&client.to_be_bytes()), *weight);
                let role = match unit {
                    Unit::Request => split.draw().role,
                    Unit::Failures | Unit::Client if canary => Role::Canary,
                    Unit::Failures | Unit::Client => Role::Stable,
                };
                let bad = client < 5 || dice.chance(0.001);
                let known = &mut failed[usize::try_from(client).unwrap_or(0)];
                count(&mut counts, role, bad && !(*known && unit == Unit::Client));
                *known |= bad;
            }
            if told(judge, plan.tick, &counts) {
                return true;
            }
        }
    }
    false
}

/// Both versions answer alike, sometimes slowly.
fn slow(seed: u64, plan: &Held, judge: &mut Judge) -> bool {
    let mut dice = Dice::new(seed);
    for (step, weight) in plan.weights.iter().enumerate() {
        if step > 0 {
            enter(judge, &plan.weights, step);
        }
        let split = generation(&mut dice, step as u64, *weight);
        for tick in 0..plan.ticks {
            // Both are three times as slow for the middle fifth of every step.
            let through = fraction(tick, plan.ticks);
            let common = if (0.4..0.6).contains(&through) { 3.0 } else { 1.0 };
            let mut window = Window::new(weight.as_ratio());
            for _ in 0..plan.requests {
                let stuck = if dice.chance(1e-4) { 1000.0 } else { 1.0 };
                let took = dice.latency() * common * stuck;
                window.add(split.draw().role, false, Some(took));
            }
            if window.judge(plan.tick, judge) == Advice::Rollback {
                return true;
            }
        }
    }
    false
}

/// What the judge is told at its next tick.
struct Window {
    counts: Counts,
    timed: bool,
    canary: [u64; BUCKETS],
    stable: [u64; BUCKETS],
}

impl Window {
    fn new(w: f64) -> Window {
        Window {
            counts: Counts {
                w,
                ..Counts::default()
            },
            timed: false,
            canary: [0; BUCKETS],
            stable: [0; BUCKETS],
        }
    }

    fn add(&mut self, role: Role, bad: bool, latency: Option<f64>) {
        count(&mut self.counts, role, bad);
        let Some(latency) = latency else { return };
        self.timed = true;
        match role {
            Role::Canary => self.canary[bucket(latency)] += 1,
            Role::Stable => self.stable[bucket(latency)] += 1,
        }
    }

    fn judge(&self, dt: f64, judge: &mut Judge) -> Advice {
        if !self.timed {
            return tell(judge, dt, &self.counts);
        }
        let batch = Batch {
            weight: self.counts.w,
            canary: UnitCounts::of(self.counts.canary_bad, self.canary.to_vec()),
            stable: UnitCounts::of(self.counts.stable_bad, self.stable.to_vec()),
        };
        judge.tick(dt, &[batch])
    }
}

/// From stable's response time, the one of a role after so many seconds.
pub(crate) type Slower = dyn Fn(Role, f64, f64, &mut Dice) -> f64 + Sync;

/// A rollout that the judge moves.
pub(crate) struct Trial<'a> {
    pub(crate) judge: JudgeConfig,
    pub(crate) weights: &'a [Weight],
    /// Requests per second; at least one for each tick.
    pub(crate) rps: u64,
    pub(crate) ticks_per_second: u64,
    /// How long it may take.
    pub(crate) seconds: u64,
    /// Whether the judge may move it on; otherwise only a rollback ends it.
    pub(crate) moves: bool,
    /// The error rate of a role after so many seconds.
    pub(crate) rate: &'a (dyn Fn(Role, f64) -> f64 + Sync),
    /// Absent: no latencies are judged.
    pub(crate) slower: Option<&'a Slower>,
}

/// How a rollout ended: `Hold` is "not at all".
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) advice: Advice,
    pub(crate) seconds: f64,
    /// Canary requests until then.
    pub(crate) canary: u64,
    /// Of these, failed.
    pub(crate) failed: u64,
}

/// Runs a rollout until the judge has decided. It is asked at every tick, and at once when a canary request fails.
#[expect(clippy::cast_precision_loss, reason = "seconds and requests of one rollout")]
pub(crate) fn trial(seed: u64, trial: &Trial<'_>) -> Ended {
    let mut dice = Dice::new(seed);
    let mut judge = judge_of(trial.judge.clone(), trial.weights);
    let dt = 1.0 / trial.ticks_per_second as f64;
    let per_tick = trial.rps / trial.ticks_per_second;
    let mut ended = Ended {
        advice: Advice::Hold,
        seconds: 0.0,
        canary: 0,
        failed: 0,
    };
    before(trial, &mut dice, &mut judge);
    let mut step = 0;
    let mut split = generation(&mut dice, 0, trial.weights[0]);
    for tick in 0..trial.seconds * trial.ticks_per_second {
        let now = tick as f64 * dt;
        let rates = [Role::Stable, Role::Canary].map(|role| (trial.rate)(role, now));
        let mut window = Window::new(split.weight.as_ratio());
        for request in 1..=per_tick {
            let role = split.draw().role;
            let bad = dice.chance(rates[usize::from(role == Role::Canary)]);
            let took = trial.slower.map(|slower| {
                let took = dice.latency();
                slower(role, took, now, &mut dice)
            });
            window.add(role, bad, took);
            ended.canary += u64::from(role == Role::Canary);
            if role == Role::Stable || !bad {
                continue;
            }
            ended.failed += 1;
            ended.advice = window.judge(0.0, &mut judge);
            window = Window::new(split.weight.as_ratio());
            if ended.advice == Advice::Rollback {
                ended.seconds = now + dt * request as f64 / per_tick as f64;
                return ended;
            }
        }
        ended.advice = window.judge(dt, &mut judge);
        ended.seconds = now + dt;
        match ended.advice {
            Advice::Rollback => return ended,
            Advice::Proceed if trial.moves && step + 1 == trial.weights.len() => return ended,
            Advice::Proceed if trial.moves => {
                step += 1;
                enter(&mut judge, trial.weights, step);
                split = generation(&mut dice, step as u64, trial.weights[step]);
            }
            Advice::Proceed | Advice::Hold | Advice::Pause => {}
        }
    }
    ended.advice = Advice::Hold;
    ended
}

/// A minute of stable traffic, from which the judge knows what slow is.
fn before(trial: &Trial<'_>, dice: &mut Dice, judge: &mut Judge) {
    if trial.slower.is_none() {
        return;
    }
    for _ in 0..60 {
        let mut window = Window::new(0.0);
        for _ in 0..trial.rps {
            window.add(Role::Stable, false, Some(dice.latency()));
        }
        window.judge(1.0, judge);
    }
}
