//! Some of many, by chance. The draws are an argument: 64 uniform bits each.

/// So many of what `counts` holds by bucket, drawn without putting back; all of it where it holds no more.
pub fn drawn(counts: &[u64], take: u64, draw: &mut dyn FnMut() -> u64) -> Vec<u64> {
    let mut left = counts.to_vec();
    let mut taken = vec![0; left.len()];
    let all: u64 = left.iter().sum();
    let full: Vec<usize> = (0..left.len()).filter(|bucket| left[*bucket] > 0).collect();
    for gone in 0..take.min(all) {
        let mut at = below(draw(), all - gone);
        for bucket in &full {
            if at < left[*bucket] {
                left[*bucket] -= 1;
                taken[*bucket] += 1;
                break;
            }
            at -= left[*bucket];
        }
    }
    taken
}

/// A number from 0 to `end - 1` of 64 uniform bits; by multiplication, so that none is more likely than by `end` · 2^-64.
pub fn below(draw: u64, end: u64) -> u64 {
    let point = (u128::from(draw) * u128::from(end)) >> 64;
    u64::try_from(point).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    #[test]
    fn each_bucket_gives_its_share_and_never_more_than_it_holds() {
        let mut dice = SmallRng::seed_from_u64(1);
        let counts = [0, 900, 0, 90, 10];
        let mut sums = [0; 5];
        for _ in 0..1000 {
            let taken = drawn(&counts, 100, &mut || dice.next_u64());
            assert_eq!(taken.iter().sum::<u64>(), 100);
            for (sum, (taken, held)) in sums.iter_mut().zip(taken.iter().zip(&counts)) {
                assert!(taken <= held);
                *sum += taken;
            }
        }
        // Of 100,000 draws; the standard deviations are 90, 86 and 30.
        assert!(sums[0] == 0 && sums[1].abs_diff(90_000) < 500, "{sums:?}");
        assert!(
            sums[3].abs_diff(9_000) < 450 && sums[4].abs_diff(1_000) < 150,
            "{sums:?}"
        );
        assert_eq!(drawn(&counts, 5000, &mut || dice.next_u64()), counts);
    }
}
