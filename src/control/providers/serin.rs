//! Our own counters: what the split in force has shown since the previous measurement, never across a weight change.

use super::{Answer, Reply};
use crate::{
    analysis::{SerinMetric, SerinQuery},
    metrics::EvidenceCounts,
    model::{Role, Span, Timestamp},
};

/// Both roles' counts at one moment of one generation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reading {
    pub(crate) generation: u64,
    pub(crate) at: Timestamp,
    pub(crate) stable: EvidenceCounts,
    pub(crate) canary: EvidenceCounts,
}

impl Reading {
    /// Where a generation begins: nothing counted yet.
    pub(crate) fn beginning(generation: u64, at: Timestamp) -> Reading {
        Reading {
            generation,
            at,
            stable: EvidenceCounts::default(),
            canary: EvidenceCounts::default(),
        }
    }

    fn role(&self, role: Role) -> &EvidenceCounts {
        match role {
            Role::Stable => &self.stable,
            Role::Canary => &self.canary,
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts below 2^53")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// The measurement over what came between two readings of the same generation.
pub(crate) fn measure(query: &SerinQuery, from: &Reading, to: &Reading) -> Reply {
    let role = query.role;
    let counts = to.role(role).since(from.role(role));
    let took = to.at.since(from.at);
    let span = Span::millis(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    let decided = counts.decided();
    let note = format!("{} of {decided} {role} requests failed in {span}", counts.failed);
    let too_few = |decided: u64| decided < query.min_samples.max(1);
    let few = |note: String| Reply {
        answer: Answer::TooFew,
        note: Some(format!(
            "{note}; at least {} are needed",
            query.min_samples.max(1)
        )),
    };
    if too_few(decided) {
        return few(note);
    }
    let (value, note) = match query.metric {
        SerinMetric::ErrorRate => (ratio(counts.failed, decided), note),
        SerinMetric::SuccessRate => (ratio(counts.ok, decided), note),
        SerinMetric::RequestRate => {
            // Less than a millisecond is no window; without this the rate would be infinite.
            let seconds = took.as_secs_f64().max(0.001);
            #[allow(clippy::cast_precision_loss, reason = "counts below 2^53")]
            let requests = (decided + counts.canceled) as f64;
            (requests / seconds, note)
        }
        SerinMetric::Latency => {
            let quantile = query.quantile.unwrap_or(0.99);
            match counts.latency_quantile(quantile) {
                Some(seconds) => (
                    seconds,
                    format!("quantile {quantile} of {decided} {role} requests in {span}"),
                ),
                None => return few(note),
            }
        }
        SerinMetric::ErrorRateDifference => {
            let canary = to.canary.since(&from.canary);
            let stable = to.stable.since(&from.stable);
            let note = format!(
                "canary {} of {} failed, stable {} of {}, in {span}",
                canary.failed,
                canary.decided(),
                stable.failed,
                stable.decided()
            );
            if too_few(canary.decided()) || too_few(stable.decided()) {
                return few(note);
            }
            let rate = |counts: &EvidenceCounts| ratio(counts.failed, counts.decided());
            (rate(&canary) - rate(&stable), note)
        }
    };
    Reply {
        answer: Answer::Number(value),
        note: Some(note),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(ok: u64, failed: u64) -> EvidenceCounts {
        let mut counts = EvidenceCounts {
            ok,
            failed,
            ..EvidenceCounts::default()
        };
        counts.latency[100] = ok + failed;
        counts
    }

    fn reading(at: u64, stable: EvidenceCounts, canary: EvidenceCounts) -> Reading {
        Reading {
            generation: 1,
            at: Timestamp::from_secs(at),
            stable,
            canary,
        }
    }

    #[test]
    fn a_measurement_is_made_of_what_came_since_the_last_one() {
        let query = SerinQuery::of(SerinMetric::ErrorRate);
        let from = reading(0, counts(0, 0), counts(100, 50));
        let to = reading(60, counts(0, 0), counts(195, 55));
        let reply = measure(&query, &from, &to);
        assert_eq!(reply.answer, Answer::Number(0.05));
        assert_eq!(
            reply.note.as_deref(),
            Some("5 of 100 canary requests failed in 1m")
        );
    }

    #[test]
    fn too_few_requests_say_nothing_even_without_a_minimum() {
        let mut query = SerinQuery::of(SerinMetric::ErrorRate);
        let from = reading(0, counts(0, 0), counts(0, 0));
        let to = reading(60, counts(0, 0), counts(19, 0));
        assert_eq!(measure(&query, &from, &to).answer, Answer::TooFew);
        query.min_samples = 0;
        assert_eq!(measure(&query, &from, &to).answer, Answer::Number(0.0));
        assert_eq!(measure(&query, &from, &from).answer, Answer::TooFew);
    }

    #[test]
    fn the_difference_needs_enough_of_both_sides() {
        let query = SerinQuery::of(SerinMetric::ErrorRateDifference);
        let from = reading(0, counts(0, 0), counts(0, 0));
        let both = reading(60, counts(99, 1), counts(95, 5));
        let Answer::Number(difference) = measure(&query, &from, &both).answer else {
            panic!("no number")
        };
        assert!((difference - 0.04).abs() < 1e-12, "{difference}");
        let one = reading(60, counts(1, 0), counts(95, 5));
        assert_eq!(measure(&query, &from, &one).answer, Answer::TooFew);
    }

    #[test]
    fn the_rate_counts_every_request_of_the_window() {
        let query = SerinQuery::of(SerinMetric::RequestRate);
        let from = reading(0, counts(0, 0), counts(0, 0));
        let to = reading(10, counts(0, 0), counts(45, 5));
        assert_eq!(measure(&query, &from, &to).answer, Answer::Number(5.0));
    }
}
