//! How long answers took, as counts by bucket: small to send, exact to add and to subtract.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Buckets for each doubling: a bucket's bounds lie at most 1/8 apart.
pub const STEPS: usize = 8;
/// Doublings covered, from 1 µs to 2^27 µs (134 s); anything longer falls into the last bucket.
const DOUBLINGS: usize = 27;
/// How many buckets there are.
pub const BUCKETS: usize = STEPS * DOUBLINGS;

/// The bucket of a latency in microseconds, from 0 to [`BUCKETS`] - 1.
pub fn bucket(us: u64) -> usize {
    let us = us.max(1);
    let doubling = us.ilog2() as usize;
    let step = if doubling >= 3 {
        (us >> (doubling - 3)) as usize & 7
    } else {
        ((us << (3 - doubling)) as usize) & 7
    };
    (doubling * STEPS + step).min(BUCKETS - 1)
}

/// The largest latency that falls into a bucket, in microseconds.
pub fn upper_bound(bucket: usize) -> u64 {
    let (doubling, step) = (bucket / STEPS, (bucket % STEPS) as u64);
    if doubling >= 3 {
        ((8 + step + 1) << (doubling - 3)) - 1
    } else {
        (8 + step) >> (3 - doubling)
    }
}

/// The bucket that holds the `percent`th percentile of `counts`, indexed by bucket; none where nothing
/// was counted.
pub fn percentile_bucket(
    counts: impl Iterator<Item = (usize, u64)> + Clone,
    percent: u64,
) -> Option<usize> {
    permille_bucket(counts, percent.saturating_mul(10))
}

/// As [`percentile_bucket`], by thousandths.
pub fn permille_bucket(
    counts: impl Iterator<Item = (usize, u64)> + Clone,
    permille: u64,
) -> Option<usize> {
    let total: u64 = counts.clone().map(|(_, count)| count).sum();
    let wanted = total.saturating_mul(permille).div_ceil(1_000);
    let mut seen = 0;
    for (bucket, count) in counts {
        seen += count;
        if seen >= wanted && count > 0 {
            return Some(bucket);
        }
    }
    None
}

/// Counted latencies: bucket to count, buckets without any left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Latencies(pub BTreeMap<u16, u64>);

impl Latencies {
    /// How many were counted.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Adds others to these.
    pub fn add(&mut self, others: &Self) {
        for (bucket, count) in &others.0 {
            *self.0.entry(*bucket).or_default() += count;
        }
    }

    /// What was counted after `earlier` was: a bucket that has less than there counts as unchanged.
    pub fn since(&self, earlier: &Self) -> Self {
        let grown = self.0.iter().filter_map(|(bucket, count)| {
            let before = earlier.0.get(bucket).copied().unwrap_or(0);
            let more = count.saturating_sub(before);
            (more > 0).then_some((*bucket, more))
        });
        Self(grown.collect())
    }

    /// The `percent`th percentile in microseconds, at most an eighth too high; none where nothing was
    /// counted.
    pub fn percentile_us(&self, percent: u64) -> Option<u64> {
        let counts = self.0.iter().map(|(at, count)| (usize::from(*at), *count));
        percentile_bucket(counts, percent).map(upper_bound)
    }

    /// How many took longer than `us`, by bucket: those in the bucket of `us` itself did not.
    pub fn above(&self, us: u64) -> u64 {
        let from = u16::try_from(bucket(us)).unwrap_or(u16::MAX);
        self.0
            .range((std::ops::Bound::Excluded(from), std::ops::Bound::Unbounded))
            .map(|(_, count)| count)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(all: &[u64]) -> Latencies {
        let mut latencies = Latencies::default();
        for us in all {
            *latencies.0.entry(bucket(*us) as u16).or_default() += 1;
        }
        latencies
    }

    #[test]
    fn a_bucket_holds_what_falls_into_it_within_an_eighth() {
        for us in [1, 2, 3, 5, 9, 17, 100, 999, 12_345, 1_000_000, 60_000_000] {
            let bound = upper_bound(bucket(us));
            assert!(bound >= us && bound <= us + us / 8 + 1, "{us} -> {bound}");
        }
    }

    #[test]
    fn percentiles_of_what_was_counted_in_between() {
        let before = of(&[100, 100, 5_000]);
        let mut after = before.clone();
        after.add(&of(&[200; 95]));
        after.add(&of(&[90_000; 5]));
        let between = after.since(&before);
        assert_eq!(between.total(), 100);
        assert_eq!(between.percentile_us(95), Some(upper_bound(bucket(200))));
        assert_eq!(between.percentile_us(96), Some(upper_bound(bucket(90_000))));
        assert_eq!(between.above(200), 5);
        assert_eq!(Latencies::default().percentile_us(50), None);
    }
}
