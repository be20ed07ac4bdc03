//! The guard of a split, over many simulated ones: it stops what is worse, soon, and nothing else.
//!
//! `BEANPOLE_GUARD_RUNS=COUNT` looks for false stops in that many splits, 1,000 unless told otherwise.

use beanpole_planner::guard::{Evidence, Limit, Sample, Sides};
use beanpole_protocol::latency::bucket;
use beanpole_protocol::options::GuardLimits;

const LIMITS: GuardLimits = GuardLimits {
    errors_points: 1,
    latency_percent: 50,
};
/// Splits that nothing is wrong with.
fn runs() -> u64 {
    let asked = std::env::var("BEANPOLE_GUARD_RUNS");
    asked.map_or(1_000, |count| count.parse().expect("a number"))
}

/// Seconds between two looks.
const LOOK_S: u32 = 5;

/// Xorshift: plain, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Exponential, with a mean of 20 ms.
    fn latency_us(&mut self, times: f64) -> u64 {
        (-(1.0 - self.unit()).ln() * 20_000.0 * times) as u64
    }
}

/// What one side of a split is like.
#[derive(Clone, Copy)]
struct Side {
    errors: f64,
    slower: f64,
}

const fn failing(errors: f64) -> Side {
    Side {
        errors,
        slower: 1.0,
    }
}

fn sample(requests: u64, side: Side, random: &mut Random) -> Sample {
    let mut sample = Sample {
        requests,
        ..Sample::default()
    };
    for _ in 0..requests {
        sample.errors += u64::from(random.unit() < side.errors);
        let at = bucket(random.latency_us(side.slower)) as u16;
        *sample.latency.0.entry(at).or_default() += 1;
    }
    sample
}

/// When the guard stops a split of `per_second` requests, of which the new release gets `share`; in
/// seconds, within `seconds`.
fn stopped_after(
    seed: u64,
    per_second: u32,
    share: f64,
    (new, old): (Side, Side),
    seconds: u32,
) -> Option<(u32, Limit)> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut evidence = Evidence::default();
    let all = f64::from(per_second * LOOK_S);
    for look in 1..=seconds / LOOK_S {
        evidence.take(Sides {
            new: sample((all * share) as u64, new, &mut random),
            old: sample((all * (1.0 - share)) as u64, old, &mut random),
        });
        if let Some(worse) = evidence.worse(LIMITS) {
            return Some((look * LOOK_S, worse.limit));
        }
    }
    None
}

/// How many of `runs` splits are stopped.
fn stopped(runs: u64, per_second: u32, share: f64, sides: (Side, Side), seconds: u32) -> usize {
    (1..=runs)
        .filter(|seed| stopped_after(*seed, per_second, share, sides, seconds).is_some())
        .count()
}

#[test]
fn two_points_of_errors_at_a_hundred_requests_a_second_end_a_split_within_a_minute() {
    for (share, before) in [(0.1, 0.0), (0.1, 0.001), (0.25, 0.005), (0.5, 0.01)] {
        let sides = (failing(before + 0.02), failing(before));
        let found = stopped(200, 100, share, sides, 60);
        let mut after: Vec<u32> = (1..=200)
            .filter_map(|seed| stopped_after(seed, 100, share, sides, 300))
            .map(|(after, _)| after)
            .collect();
        after.sort_unstable();
        println!(
            "share {share}, {before} before: {found} of 200 within 60 s, half within {} s",
            after[after.len() / 2]
        );
        // The rest have too few that fail by then to tell.
        assert!(
            found >= 180,
            "share {share}, {before} before: {found} of 200"
        );
    }
}

#[test]
fn a_release_as_good_as_the_one_before_goes_through() {
    let (runs, mut false_stops) = (runs(), 0);
    for (share, errors) in [
        (0.1, 0.0),
        (0.1, 0.001),
        (0.1, 0.02),
        (0.5, 0.01),
        (0.01, 0.3),
    ] {
        let sides = (failing(errors), failing(errors));
        let found = stopped(runs / 5, 100, share, sides, 300);
        println!(
            "share {share}, {errors} on both sides: {found} stopped of {}",
            runs / 5
        );
        false_stops += found;
    }
    let bound = usize::try_from(runs / 1_000).expect("small");
    assert!(
        false_stops < bound,
        "{false_stops} of {runs} splits of five minutes"
    );
}

#[test]
fn what_is_worse_by_less_than_the_limit_goes_through() {
    let sides = (failing(0.013), failing(0.01));
    assert!(stopped(50, 1_000, 0.5, sides, 300) <= 1);
}

#[test]
fn a_release_that_takes_twice_as_long_is_stopped_for_that() {
    let slow = Side {
        errors: 0.0,
        slower: 2.0,
    };
    for seed in 1..=50 {
        let (after, limit) = stopped_after(seed, 100, 0.1, (slow, failing(0.0)), 60)
            .expect("stopped within a minute");
        assert_eq!(limit, Limit::Latency(50), "after {after} s");
    }
}

#[test]
fn one_that_goes_bad_after_an_hour_is_found_as_soon() {
    let mut random = Random(7);
    let mut evidence = Evidence::default();
    let mut look = |evidence: &mut Evidence, errors: f64| {
        evidence.take(Sides {
            new: sample(50, failing(errors), &mut random),
            old: sample(450, failing(0.002), &mut random),
        });
        evidence.worse(LIMITS).is_some()
    };
    for _ in 0..720 {
        assert!(!look(&mut evidence, 0.002));
    }
    let found = (1..=24).find(|_| look(&mut evidence, 0.05));
    assert!(found.is_some_and(|looks| looks * LOOK_S <= 90), "{found:?}");
}

#[test]
fn what_happens_to_both_at_once_stops_nothing() {
    for seed in 1..=100 {
        let mut random = Random(seed);
        let mut evidence = Evidence::default();
        for minute in 0..5 {
            let errors = if minute == 2 { 0.8 } else { 0.0 };
            for _ in 0..12 {
                evidence.take(Sides {
                    new: sample(50, failing(errors), &mut random),
                    old: sample(450, failing(errors), &mut random),
                });
                assert_eq!(evidence.worse(LIMITS), None, "seed {seed}");
            }
        }
    }
}
