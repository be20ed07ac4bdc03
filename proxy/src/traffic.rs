//! Counts of requests and their latency: cheap enough for every request, without locks.

use beanpole_protocol::latency::{BUCKETS, Latencies, bucket, permille_bucket, upper_bound};
use beanpole_protocol::proxy::{ReleaseTraffic, Traffic};
use beanpole_protocol::{EnvironmentId, ReleaseNumber};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Slices of the last minute, and how long each lasts.
const SLICES: usize = 12;
const SLICE: Duration = Duration::from_secs(5);

/// Counts of one target or one environment.
pub struct Counters {
    requests: AtomicU64,
    by_class: [AtomicU64; 5],
    failed: AtomicU64,
    errors: AtomicU64,
    held: AtomicU64,
    limited: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    latency: Latency,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            requests: AtomicU64::new(0),
            by_class: Default::default(),
            failed: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            held: AtomicU64::new(0),
            limited: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            latency: Latency::new(),
        }
    }
}

impl Counters {
    /// Counts one request: the status that was sent, whether no app answered it, and where one did,
    /// when its answer began and how long that took.
    pub fn record(&self, status: Option<u16>, failed: bool, answered: Option<(Instant, Duration)>) {
        self.requests.fetch_add(1, Relaxed);
        if let Some(class) = status
            .map(|status| usize::from(status / 100))
            .filter(|class| (1..=5).contains(class))
        {
            self.by_class[class - 1].fetch_add(1, Relaxed);
        }
        if failed {
            self.failed.fetch_add(1, Relaxed);
        }
        if failed || status.is_some_and(|status| status >= 500) {
            self.errors.fetch_add(1, Relaxed);
        }
        if let Some((at, latency)) = answered {
            self.latency.record(at, latency);
        }
    }

    /// Counts bytes that were carried, from the client and to it.
    pub fn carried(&self, from: u64, to: u64) {
        self.bytes_in.fetch_add(from, Relaxed);
        self.bytes_out.fetch_add(to, Relaxed);
    }

    /// One that was counted as well came to nothing after all.
    pub fn broke_off(&self) {
        self.failed.fetch_add(1, Relaxed);
        self.errors.fetch_add(1, Relaxed);
    }

    /// How many requests there were.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Counts a request that waits for an instance.
    pub fn held(&self) {
        self.held.fetch_add(1, Relaxed);
    }

    /// Counts a request that comes too soon after others.
    pub fn limited(&self) {
        self.limited.fetch_add(1, Relaxed);
    }

    /// What was counted up to now.
    pub fn snapshot(&self) -> Traffic {
        let [p50_us, p90_us, p99_us, p999_us] = self.latency.quantiles(Instant::now());
        Traffic {
            requests: self.requests.load(Relaxed),
            by_class: std::array::from_fn(|class| self.by_class[class].load(Relaxed)),
            failed: self.failed.load(Relaxed),
            errors: self.errors.load(Relaxed),
            p50_us,
            p90_us,
            p99_us,
            p999_us,
            held: self.held.load(Relaxed),
            limited: self.limited.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            ..Traffic::default()
        }
    }
}

/// Counts of all targets of one release.
pub struct ReleaseCounters {
    requests: AtomicU64,
    errors: AtomicU64,
    latency: Box<[AtomicU64; BUCKETS]>,
}

impl Default for ReleaseCounters {
    fn default() -> Self {
        Self {
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            latency: Box::new(std::array::from_fn(|_| AtomicU64::new(0))),
        }
    }
}

impl ReleaseCounters {
    /// Counts one request: whether it went wrong, and how long its answer took to begin, if it did.
    pub fn record(&self, error: bool, latency: Option<Duration>) {
        self.requests.fetch_add(1, Relaxed);
        if error {
            self.errors.fetch_add(1, Relaxed);
        }
        if let Some(latency) = latency {
            let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            self.latency[bucket(us)].fetch_add(1, Relaxed);
        }
    }

    /// One that was counted as well came to nothing after all.
    pub fn broke_off(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    /// What was counted up to now.
    pub fn snapshot(&self, environment: &EnvironmentId, release: ReleaseNumber) -> ReleaseTraffic {
        let counts = self.latency.iter().enumerate().filter_map(|(at, count)| {
            let count = count.load(Relaxed);
            (count > 0).then_some((u16::try_from(at).ok()?, count))
        });
        ReleaseTraffic {
            environment: environment.clone(),
            release,
            requests: self.requests.load(Relaxed),
            errors: self.errors.load(Relaxed),
            latency: Latencies(counts.collect()),
        }
    }
}

/// A histogram over the last minute, as a ring of slices. A slice that begins anew is emptied by
/// whoever comes first; a count that races with that may be lost.
struct Latency {
    base: Instant,
    slices: Box<[Slice; SLICES]>,
}

struct Slice {
    /// Which slice since `base` this holds, counted from 1; 0 = never used.
    epoch: AtomicU64,
    counts: [AtomicU32; BUCKETS],
}

impl Latency {
    fn new() -> Self {
        Self {
            base: Instant::now(),
            slices: Box::new(std::array::from_fn(|_| Slice {
                epoch: AtomicU64::new(0),
                counts: std::array::from_fn(|_| AtomicU32::new(0)),
            })),
        }
    }

    fn epoch(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.base).as_secs() / SLICE.as_secs() + 1
    }

    fn record(&self, now: Instant, latency: Duration) {
        let epoch = self.epoch(now);
        let slice = &self.slices[(epoch as usize) % SLICES];
        let held = slice.epoch.load(Relaxed);
        // An answer that began long ago belongs to a slice that is over.
        if epoch < held {
            return;
        }
        if held != epoch
            && slice
                .epoch
                .compare_exchange(held, epoch, Relaxed, Relaxed)
                .is_ok()
        {
            for count in &slice.counts {
                count.store(0, Relaxed);
            }
        }
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        slice.counts[bucket(us)].fetch_add(1, Relaxed);
    }

    /// The median, the 90th, 99th and 99.9th percentile in microseconds; zero if nothing was recorded.
    fn quantiles(&self, now: Instant) -> [u64; 4] {
        let epoch = self.epoch(now);
        let mut sums = [0u64; BUCKETS];
        for slice in self.slices.iter() {
            let held = slice.epoch.load(Relaxed);
            if held == 0 || held + (SLICES as u64) <= epoch {
                continue;
            }
            for (sum, count) in sums.iter_mut().zip(&slice.counts) {
                *sum += u64::from(count.load(Relaxed));
            }
        }
        [500, 900, 990, 999].map(|permille| quantile(&sums, permille))
    }
}

fn quantile(sums: &[u64; BUCKETS], permille: u64) -> u64 {
    let counts = sums.iter().copied().enumerate();
    permille_bucket(counts, permille).map_or(0, upper_bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_last_minute() {
        let latency = Latency::new();
        let start = latency.base;
        for _ in 0..99 {
            latency.record(start, Duration::from_micros(100));
        }
        for _ in 0..2 {
            latency.record(start, Duration::from_millis(50));
        }
        let [p50, p90, p99, p999] = latency.quantiles(start + Duration::from_secs(30));
        assert!((100..=113).contains(&p50), "{p50}");
        assert_eq!(p90, p50);
        assert_eq!(p999, p99);
        assert!((50_000..=56_250).contains(&p99), "{p99}");
        assert_eq!(latency.quantiles(start + Duration::from_secs(70)), [0; 4]);
    }
}
