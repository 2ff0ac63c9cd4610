//! What a scrape shows of each version in a role: which families, and the lines of each.
//!
//! Written from the readings themselves: the library's own types would take a dozen allocations for each line.

use super::{
    AssignReason, Attempt, Outcome, Retry, VersionKey, VersionSnapshot,
    names::{self, Family},
    text::{Rows, add_label},
};

/// Writes one version's lines of a family.
pub(super) type Write = fn(&mut Rows<'_>, &VersionSnapshot);

/// Every family that has lines for each version.
pub(super) const FAMILIES: [(&Family, Write); 11] = [
    (&names::REQUESTS, |rows, seen| {
        for (method, status, count) in &seen.requests {
            rows.count(&[method, &status.to_string()], *count);
        }
    }),
    (&names::REQUESTS_BY_CLASS, |rows, seen| {
        for (class, name) in (1..).zip(["1xx", "2xx", "3xx", "4xx", "5xx"]) {
            let of_class = seen
                .requests
                .iter()
                .filter(|(_, status, _)| status / 100 == class);
            rows.count(&[name], of_class.map(|(_, _, count)| count).sum());
        }
    }),
    (&names::OUTCOMES, |rows, seen| {
        each(rows, Outcome::ALL.map(Outcome::as_str), seen.outcomes);
    }),
    (&names::ASSIGNMENTS, |rows, seen| {
        each(rows, AssignReason::ALL.map(AssignReason::as_str), seen.assigned);
    }),
    (&names::GRPC_RESPONSES, |rows, seen| {
        // Of a version that has never served a call they would only be in the way.
        if seen.grpc.iter().any(|count| *count > 0) {
            for (code, count) in seen.grpc.iter().enumerate() {
                rows.count(&[&code.to_string()], *count);
            }
        }
    }),
    (&names::ATTEMPTS, |rows, seen| {
        each(rows, Attempt::ALL.map(Attempt::as_str), seen.attempts);
    }),
    (&names::RETRIES, |rows, seen| {
        each(rows, Retry::ALL.map(Retry::as_str), seen.retries);
    }),
    (&names::DURATION, |rows, seen| rows.histogram(&seen.duration)),
    (&names::FIRST_BYTE, |rows, seen| rows.histogram(&seen.first_byte)),
    (&names::RESCUED, |rows, seen| {
        rows.count(&[], seen.rescued);
    }),
    (&names::IN_FLIGHT, |rows, seen| {
        rows.count(&[], seen.in_flight);
    }),
];

/// About how long all of them are for one version.
pub(super) const BYTES: usize = 9000;

/// The labels that all of them begin with.
pub(super) fn labels(key: &VersionKey) -> String {
    let mut labels = String::new();
    let values = [key.service.as_str(), key.role.as_str(), key.version.as_str()];
    for (name, value) in names::RESCUED.labels.iter().zip(values) {
        add_label(&mut labels, name, value);
    }
    labels
}

fn each<const N: usize>(rows: &mut Rows<'_>, names: [&str; N], counts: [u64; N]) {
    for (name, count) in names.iter().zip(counts) {
        rows.count(&[name], count);
    }
}
