//! Whether a new release is worse than the one before it, by the requests of the same time.
//!
//! Both releases get their requests in one stream, in known shares. Were they equally good, each request
//! that goes wrong would be one of the new release's with the probability of its share, whatever the rate
//! of errors is, and whatever happens to both at once (a database that is away, a burst of bad input). The
//! evidence against that is a product of likelihood ratios, a test martingale: looked at as often as one
//! likes, it exceeds 1 / α with a probability of at most α (Ville's inequality; Ramdas et al., "Game-theoretic
//! statistics and safe anytime-valid inference", 2023). Slow answers are counted in the same way: those
//! above the 95th percentile of the release before.
//!
//! Evidence alone says that a difference is real, not that it matters: the guard acts when it is also larger
//! than the limits.

use beanpole_protocol::ReleaseNumber;
use beanpole_protocol::latency::Latencies;
use beanpole_protocol::options::GuardLimits;
use serde::{Deserialize, Serialize};

/// How many times as often a request of the new release goes wrong, in the alternatives that are held
/// against "equally often".
const RATIOS: [f64; 6] = [1.5, 2.0, 3.0, 6.0, 20.0, 100.0];
/// The natural logarithm of 1,500: evidence of this much comes up in less than one of 1,500 splits with
/// equally good releases; that the difference has to be beyond a limit too makes it rarer.
const PROOF: f64 = 7.313;
/// What speaks for the new release counts at most this much, as a natural logarithm, so that one that goes
/// bad after hours is found as soon as one that begins so.
const CREDIT: f64 = 5.0;
/// Logarithms are stored as whole numbers of this part.
const PARTS: f64 = 1e6;
/// Slices of the time looked back on when the size of a difference is told.
const RECENT: usize = 12;

/// What is known of one release's requests over some time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Requests that ended.
    pub requests: u64,
    /// Those answered with a status of 500 or above, or not, or not to the end.
    pub errors: u64,
    /// How long the answers took to begin.
    pub latency: Latencies,
}

impl Sample {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.latency.add(&other.latency);
    }

    fn error_rate(&self) -> f64 {
        self.errors as f64 / self.requests.max(1) as f64
    }
}

/// Both sides of a split over the same time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sides {
    /// The new release.
    pub new: Sample,
    /// The one before.
    pub old: Sample,
}

impl Sides {
    /// What was seen of both, to be read after the new release was named; nothing before the first
    /// request.
    pub fn told(&self) -> Option<String> {
        let Self { new, old } = self;
        (new.requests > 0).then(|| {
            format!(
                "so far {} of its {} requests failed and 95 % took at most {}; of the other's {} requests {} and {}",
                percent(new),
                new.requests,
                p95(new),
                old.requests,
                percent(old),
                p95(old),
            )
        })
    }
}

/// What a split has shown so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Over the whole split.
    pub total: Sides,
    /// The last slices, oldest first.
    recent: Vec<Sides>,
    errors: Bet,
    slow: Bet,
}

/// The logarithms of likelihood ratios, one for each of [`RATIOS`], in millionths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Bet(Vec<i64>);

impl Bet {
    /// Takes events of both sides, of which the new release's share of requests was `share`.
    fn take(&mut self, new: u64, old: u64, share: f64) {
        self.0.resize(RATIOS.len(), 0);
        for (value, ratio) in self.0.iter_mut().zip(RATIOS) {
            let new_then = ratio * share / (ratio * share + 1.0 - share);
            let gain = new as f64 * (new_then / share).ln()
                + old as f64 * ((1.0 - new_then) / (1.0 - share)).ln();
            let sum = (*value as f64 / PARTS + gain).clamp(-CREDIT, 100.0);
            *value = (sum * PARTS) as i64;
        }
    }

    /// The logarithm of their mean.
    fn value(&self) -> f64 {
        let all = self.0.iter().map(|value| (*value as f64 / PARTS).exp());
        (all.sum::<f64>() / RATIOS.len() as f64).ln()
    }

    fn is_proof(&self) -> bool {
        !self.0.is_empty() && self.value() >= PROOF
    }
}

/// In what a new release is worse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worse {
    /// What was seen.
    pub sides: Sides,
    /// The limit that it is beyond.
    pub limit: Limit,
}

/// A limit of the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Points of failed requests.
    Errors(u32),
    /// Per cent of the 95th percentile of latency.
    Latency(u32),
}

impl Worse {
    /// The numbers, in a sentence.
    pub fn sentence(&self, new: ReleaseNumber) -> String {
        let Sides { new: one, old } = &self.sides;
        match self.limit {
            Limit::Errors(points) => format!(
                "Release {new} is worse than the one before: {} of its {} requests failed ({}), and {} of the other's {} ({}) in the same time. GuardErrors allows {points} points more.",
                one.errors,
                one.requests,
                percent(one),
                old.errors,
                old.requests,
                percent(old),
            ),
            Limit::Latency(rise) => format!(
                "Release {new} is slower than the one before: 95 % of its {} requests were answered within {}, and of the other's {} within {} in the same time. GuardLatency allows {rise} % more.",
                one.requests,
                p95(one),
                old.requests,
                p95(old),
            ),
        }
    }
}

/// `1.9 %`.
fn percent(sample: &Sample) -> String {
    format!("{:.1} %", sample.error_rate() * 100.0)
}

/// `12.5 ms`; `no time` where nothing was answered.
fn p95(sample: &Sample) -> String {
    sample.latency.percentile_us(95).map_or_else(
        || "no time".to_owned(),
        |us| format!("{:.1} ms", us as f64 / 1_000.0),
    )
}

impl Evidence {
    /// Takes what both sides did in the time since the last call.
    pub fn take(&mut self, seen: Sides) {
        let (new, old) = (seen.new.requests as f64, seen.old.requests as f64);
        if new > 0.0 && old > 0.0 {
            let share = new / (new + old);
            self.errors.take(seen.new.errors, seen.old.errors, share);
            // The bound comes from what was seen before: the requests that it judges have no say in it.
            if let Some(bound) = self.total.old.latency.percentile_us(95) {
                let slow = |sample: &Sample| sample.latency.above(bound);
                self.slow.take(slow(&seen.new), slow(&seen.old), share);
            }
        }
        self.total.new.add(&seen.new);
        self.total.old.add(&seen.old);
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push(seen);
    }

    /// In what the new release is worse than the limits allow, if it is proven.
    pub fn worse(&self, limits: GuardLimits) -> Option<Worse> {
        let mut recent = Sides::default();
        for slice in &self.recent {
            recent.new.add(&slice.new);
            recent.old.add(&slice.old);
        }
        // One that goes bad late is beyond a limit lately, not over all.
        let of = |limit: Limit, is_beyond: &dyn Fn(&Sides) -> bool| {
            let sides = [&self.total, &recent];
            let beyond = sides.into_iter().find(|sides| is_beyond(sides))?;
            Some(Worse {
                sides: beyond.clone(),
                limit,
            })
        };
        let points = limits.errors_points;
        if self.errors.is_proof() {
            let more = f64::from(points) / 100.0;
            let found = of(Limit::Errors(points), &|sides| {
                sides.new.error_rate() - sides.old.error_rate() >= more
            });
            if found.is_some() {
                return found;
            }
        }
        let rise = limits.latency_percent;
        if rise > 0 && self.slow.is_proof() {
            return of(Limit::Latency(rise), &|sides| {
                let p95 = |sample: &Sample| sample.latency.percentile_us(95);
                let (Some(new), Some(old)) = (p95(&sides.new), p95(&sides.old)) else {
                    return false;
                };
                new.saturating_mul(100) >= old.saturating_mul(u64::from(rise) + 100)
            });
        }
        None
    }
}
