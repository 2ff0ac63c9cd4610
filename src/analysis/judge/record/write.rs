//! Writes recordings: the other side of [`super::Reader`].

use super::{
    Advice, Batch, Begin, CLIENT_ERRORS, Decided, Duration, Evidence, Judge, UnitCounts, fingerprint, tag,
};

/// The judge from here on. Nothing is written of one that JSON cannot hold: then the recording cannot be read, and says so.
pub fn begin(out: &mut Vec<u8>, judge: &Judge, serin: &str) {
    let begin = Begin {
        serin: serin.to_owned(),
        judge: judge.clone(),
    };
    out.push(tag::BEGIN);
    text(out, &serde_json::to_string(&begin).unwrap_or_default());
}

/// What came in `dt`, to a judge at `step`.
pub fn tick(out: &mut Vec<u8>, dt: Duration, batches: &[Batch], step: f64) {
    out.push(tag::TICK);
    varint(out, u64::try_from(dt.as_millis()).unwrap_or(u64::MAX));
    let full = || {
        batches
            .iter()
            .filter(|batch| !(batch.canary.is_empty() && batch.stable.is_empty()))
    };
    varint(out, full().count() as u64);
    for batch in full() {
        let at_step = batch.weight.to_bits() == step.to_bits();
        out.push(u8::from(at_step));
        if !at_step {
            bits(out, batch.weight.to_bits());
        }
        units(out, &batch.canary);
        units(out, &batch.stable);
    }
}

/// Another weight has been set.
pub fn enter(out: &mut Vec<u8>, weight: f64, next: f64) {
    out.push(tag::ENTER);
    bits(out, weight.to_bits());
    bits(out, next.to_bits());
}

/// Something was decided.
pub fn decided(out: &mut Vec<u8>, decided: &Decided) {
    out.push(tag::DECIDED);
    varint(out, decided.at.as_millis());
    out.push(match decided.advice {
        Advice::Rollback => 0,
        Advice::Proceed => 1,
        Advice::Hold => 2,
        Advice::Pause => 3,
    });
    evidence(out, &decided.evidence);
    text(out, &decided.sentence);
}

/// What the judge knows; `since` is where the last check ended.
pub fn check(out: &mut Vec<u8>, since: usize, judge: &Judge) {
    let now = fingerprint(judge, out.get(since..).unwrap_or_default());
    out.push(tag::CHECK);
    bits(out, now);
}

fn evidence(out: &mut Vec<u8>, evidence: &Evidence) {
    bits(out, evidence.harm);
    varint(out, evidence.fine.len() as u64);
    for fine in &evidence.fine {
        bits(out, *fine);
    }
    // Only a pause has it.
    if let Some(client_errors) = evidence.client_errors {
        bits(out, client_errors);
    }
}

fn bits(out: &mut Vec<u8>, bits: u64) {
    out.extend_from_slice(&bits.to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Seven bits a byte, the lowest first; the highest bit says that there is more.
fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

/// First which fields hold something: failed, overdue, each list of durations, 4xx answers.
fn units(out: &mut Vec<u8>, units: &UnitCounts) {
    let UnitCounts {
        failed,
        latency,
        overdue,
        // The judge does not look at it.
        in_flight: _,
        client_errors,
    } = units;
    let some = |list: &[u64]| list.iter().any(|count| *count > 0);
    let mut holds = u8::from(*failed > 0) | u8::from(some(overdue)) << 1;
    for (level, counts) in latency.iter().enumerate() {
        holds |= u8::from(some(counts)) << (level + 2);
    }
    holds |= u8::from(*client_errors > 0) << CLIENT_ERRORS;
    out.push(holds);
    if *failed > 0 {
        varint(out, *failed);
    }
    if some(overdue) {
        for count in overdue {
            varint(out, *count);
        }
    }
    for counts in latency.iter().filter(|counts| some(counts)) {
        let full = || counts.iter().enumerate().filter(|(_, count)| **count > 0);
        varint(out, full().count() as u64);
        let mut last = 0;
        for (bucket, count) in full() {
            varint(out, (bucket - last) as u64);
            varint(out, *count);
            last = bucket;
        }
    }
    if *client_errors > 0 {
        varint(out, *client_errors);
    }
}
