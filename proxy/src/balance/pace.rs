//! How soon a target lately began to answer: a moving average that follows peaks at once and forgets with time
//! (Finagle's peak EWMA).

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// After how long without an answer an old one counts for a third: slow ones are asked again after a while.
const FORGETS: Duration = Duration::from_secs(10);

/// What moments are counted from.
static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The pace of one target. Two answers that end at the same moment may count as one.
#[derive(Default)]
pub struct Pace {
    /// Microseconds and, in the upper half, the milliseconds since [`BASE`] at which they were right. 0 for
    /// none yet.
    packed: AtomicU64,
}

impl Pace {
    /// Counts an answer that began at `at`, after `latency`. One that says that something went wrong makes
    /// nobody look quick.
    pub fn note(&self, at: Instant, latency: Duration, good: bool) {
        let now = millis(at);
        let mut micros = (u32::try_from(latency.as_micros()).unwrap_or(u32::MAX)).max(1);
        if let Some((before, age)) = self.get(now) {
            if !good {
                micros = micros.max(before);
            } else if micros < before {
                let kept = left(age);
                micros = (f64::from(micros) + f64::from(before - micros) * kept) as u32;
            }
        }
        let packed = (u64::from(now) << 32) | u64::from(micros.max(1));
        self.packed.store(packed, Relaxed);
    }

    /// How many microseconds an answer would take to begin; none where nothing is known.
    pub fn at(&self, now: Instant) -> Option<f64> {
        self.get(millis(now))
            .map(|(micros, age)| f64::from(micros) * left(age))
    }

    /// What was stored, and how many milliseconds before `now`.
    fn get(&self, now: u32) -> Option<(u32, u32)> {
        let packed = self.packed.load(Relaxed);
        let age = now.wrapping_sub((packed >> 32) as u32);
        // Answers of other threads may be a moment later.
        let age = if age > u32::MAX / 2 { 0 } else { age };
        (packed != 0).then_some((packed as u32, age))
    }
}

/// What is left of what was known after so many milliseconds.
fn left(age: u32) -> f64 {
    (-f64::from(age) / FORGETS.as_millis() as f64).exp()
}

/// They come around after seven weeks, in which no target is silent.
fn millis(at: Instant) -> u32 {
    at.saturating_duration_since(*BASE).as_millis() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_count_at_once_and_are_forgotten_slowly() {
        let pace = Pace::default();
        let start = Instant::now();
        let micros = |after_s| {
            let known = pace.at(start + Duration::from_secs(after_s));
            known.expect("something") as u64
        };
        assert_eq!(pace.at(start), None);
        pace.note(start, Duration::from_millis(5), true);
        assert_eq!(micros(0), 5_000);
        pace.note(start, Duration::from_millis(800), true);
        assert_eq!(micros(0), 800_000);
        pace.note(
            start + Duration::from_secs(10),
            Duration::from_millis(5),
            true,
        );
        assert!((290_000..300_000).contains(&micros(10)), "{}", micros(10));
        assert!((1_900..2_100).contains(&micros(60)), "{}", micros(60));
    }

    #[test]
    fn a_quick_error_is_not_quick() {
        let pace = Pace::default();
        let start = Instant::now();
        pace.note(start, Duration::from_millis(50), true);
        pace.note(start, Duration::from_millis(1), false);
        assert_eq!(pace.at(start).map(|micros| micros as u64), Some(50_000));
    }
}
