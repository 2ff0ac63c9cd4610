//! Many runs on all cores, each by a seed of its own, so that the number of cores changes nothing; and how they are shown.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

/// Runs `one` for each of `runs` seeds; results are in the order of the seeds.
pub(crate) fn all<T: Send>(seed: u64, runs: usize, one: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(runs));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(runs) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= runs {
                        return;
                    }
                    let result = one(seed.wrapping_add(index as u64));
                    if let Ok(mut done) = done.lock() {
                        done.push((index, result));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The share of runs for which something holds, as a percentage.
pub(crate) fn share(hits: usize, runs: usize) -> String {
    format!("{:.1}%", 100.0 * float(hits) / float(runs.max(1)))
}

/// A quantile of numbers of which some are missing, which counts as beyond all others.
pub(crate) fn quantile(numbers: &[Option<f64>], q: f64) -> Option<f64> {
    let mut known: Vec<f64> = numbers.iter().copied().flatten().collect();
    known.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into the runs"
    )]
    let index = (q * float(numbers.len().saturating_sub(1))).round() as usize;
    known.get(index).copied()
}

#[expect(clippy::cast_precision_loss, reason = "runs are few")]
pub(crate) fn float(count: usize) -> f64 {
    count as f64
}

/// A whole number with separators, or a dash.
pub(crate) fn whole(number: Option<f64>) -> String {
    let Some(number) = number else {
        return "-".to_owned();
    };
    let digits = format!("{number:.0}");
    let mut shown = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// Seconds as people write them.
pub(crate) fn time(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds >= 600.0 => format!("{:.0} min", seconds / 60.0),
        Some(seconds) if seconds >= 10.0 => format!("{seconds:.0} s"),
        Some(seconds) => format!("{seconds:.1} s"),
    }
}
