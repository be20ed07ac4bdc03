//! Slow start: a target that begins to get requests comes to its share over some time, so that its caches are
//! filled and its code is warm before it has all of it.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A whole share. A power of two: credits come around without a remainder.
pub const WHOLE: u32 = 1 << 10;
/// What a target begins with, as in Envoy: a tenth.
const LEAST: u32 = WHOLE / 10;

/// What moments are counted from.
static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

/// How warm one target is.
#[derive(Default)]
pub struct Warmth {
    /// When it began to get requests, in milliseconds since [`BASE`]; 0 where it was warm before.
    since: AtomicU64,
    /// How long that takes, in milliseconds.
    takes_ms: AtomicU64,
    /// Whether it is in its turn, in parts of a whole share: it is as often as it earns a whole one.
    credit: AtomicU32,
    /// Whether its share was a part of one when it was last asked whether it grows.
    was_cold: AtomicBool,
}

impl Warmth {
    /// It begins to get requests.
    pub fn begin(&self, now: Instant) {
        // Not 0, which says that it is warm.
        self.since.store(millis(now).max(1), Relaxed);
    }

    /// How long it takes from now on.
    pub fn takes(&self, ms: u64) {
        self.takes_ms.store(ms, Relaxed);
    }

    /// Its share at that moment, in parts of [`WHOLE`].
    pub fn share(&self, now: Instant) -> u32 {
        let (since, takes) = (self.since.load(Relaxed), self.takes_ms.load(Relaxed));
        let passed = millis(now).saturating_sub(since);
        if since == 0 || passed >= takes {
            return WHOLE;
        }
        let part = u64::from(WHOLE) * passed / takes;
        u32::try_from(part).unwrap_or(WHOLE).clamp(LEAST, WHOLE)
    }

    /// Whether its share is another one than the last time that this was asked.
    pub fn grows(&self, now: Instant) -> bool {
        let is_cold = self.share(now) < WHOLE;
        self.was_cold.swap(is_cold, Relaxed) || is_cold
    }

    /// Whether it takes a turn now, which it does as often as `share` says, exactly.
    pub fn takes_turn(&self, share: u32) -> bool {
        let before = self.credit.fetch_add(share, Relaxed) % WHOLE;
        before + share >= WHOLE
    }
}

/// Never 0 for a moment after [`BASE`] has been asked for.
fn millis(at: Instant) -> u64 {
    let passed = at.saturating_duration_since(*BASE) + Duration::from_millis(1);
    u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_from_a_tenth_to_the_whole() {
        let warmth = Warmth::default();
        let start = *BASE + Duration::from_secs(1);
        warmth.takes(10_000);
        assert_eq!(warmth.share(start), WHOLE, "it was there before");
        warmth.begin(start);
        let at = |seconds| warmth.share(start + Duration::from_secs(seconds));
        assert_eq!(
            [at(0), at(5), at(10), at(60)],
            [LEAST, WHOLE / 2, WHOLE, WHOLE]
        );
        let grows = |seconds| warmth.grows(start + Duration::from_secs(seconds));
        assert_eq!([grows(9), grows(11), grows(12)], [true, true, false]);
        warmth.takes(0);
        assert_eq!(at(0), WHOLE);
    }

    #[test]
    fn turns_are_taken_as_often_as_a_share_says() {
        let warmth = Warmth::default();
        for (share, wanted) in [(WHOLE, 1_024), (WHOLE / 2, 512), (100, 100)] {
            let taken = (0..1_024).filter(|_| warmth.takes_turn(share)).count();
            assert_eq!(taken, wanted);
        }
    }
}
