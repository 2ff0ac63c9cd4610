//! `holdback`: before a version is promoted a small share stays on stable for a bake time, as the control group of what breaks
//! late.
//!
//! Compiled into the plan's last step, so that the rollout machine, `promote`, a restart and every display know one thing more
//! and no second kind of promotion.

use super::cx::Cx;
use crate::model::{Span, Weight};
use crate::rollout::{Bake, Step};
use serde::Deserialize;

/// What stable keeps where nobody says it.
const SHARE: u32 = 2;

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct HoldbackConfig {
    /// What stable keeps. Absent: 2.
    share: Option<Weight>,
    /// The bake time.
    duration: Span,
}

impl HoldbackConfig {
    /// The step that it means.
    pub(super) fn compile(self, path: &str, cx: &mut Cx) -> Option<Bake> {
        let share = self.share.unwrap_or(Weight::percent(SHARE));
        if share.is_zero() || share.is_full() {
            cx.error(
                &format!("{path}.share"),
                format!("{share} leaves nothing to compare with"),
                "write between 1 and 5; absent is 2",
            );
            return None;
        }
        if self.duration.is_zero() {
            cx.error(
                &format!("{path}.duration"),
                "no time at all sees nothing",
                "write for example 30m, or remove holdback",
            );
            return None;
        }
        Some(Bake {
            share,
            duration: self.duration,
        })
    }
}

/// Rewrites the end of the steps: instead of going to everything they go to everything but the share, and bake. The index and
/// weight of a step before that which leaves stable less than the share is the error.
pub(super) fn hold_back(steps: &mut Vec<Step>, bake: Bake) -> Result<(), (usize, Weight)> {
    let most = bake.share.complement();
    let is_beyond = |step: &Step| step.weight().filter(|weight| *weight > most);
    while let Some(Step::SetWeight(weight)) = steps.last()
        && *weight >= most
    {
        steps.pop();
    }
    let beyond = steps.iter().enumerate();
    let mut beyond = beyond.filter_map(|(index, step)| Some((index, is_beyond(step)?)));
    match beyond.next() {
        Some(beyond) => Err(beyond),
        None => {
            steps.push(Step::Bake(bake));
            Ok(())
        }
    }
}

/// As [`hold_back`], and the fault is told at the steps' path.
pub(super) fn apply(steps: &mut Vec<Step>, bake: Option<Bake>, path: &str, cx: &mut Cx) {
    let Some(bake) = bake else { return };
    if let Err((index, weight)) = hold_back(steps, bake) {
        cx.error(
            &format!("{path}[{index}]"),
            format!(
                "this gives the canary {weight}, and holdback keeps {} on stable until the bake time is over",
                bake.share
            ),
            "remove the step (everything comes by itself after the bake time), or remove holdback",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::Pause;

    fn bake(percent: u32) -> Bake {
        Bake {
            share: Weight::percent(percent),
            duration: Span::secs(60),
        }
    }

    fn to(percent: u32) -> Step {
        Step::SetWeight(Weight::percent(percent))
    }

    #[test]
    fn the_bake_takes_the_place_of_the_last_steps_to_everything() {
        let pause = || Step::Pause(Pause::default());
        for (before, after) in [
            (vec![], vec![]),
            (vec![to(5), pause()], vec![to(5), pause()]),
            (vec![to(5), pause(), to(99), to(100)], vec![to(5), pause()]),
            (vec![to(5), to(90)], vec![to(5), to(90)]),
        ] {
            let mut steps = before;
            hold_back(&mut steps, bake(2)).unwrap();
            let expected: Vec<Step> = after.into_iter().chain([Step::Bake(bake(2))]).collect();
            assert_eq!(steps, expected);
        }
    }

    #[test]
    fn a_step_that_takes_the_share_away_before_is_an_error() {
        let mut steps = vec![to(5), to(100), Step::Pause(Pause::default())];
        assert_eq!(hold_back(&mut steps, bake(2)), Err((1, Weight::FULL)));
    }
}
