//! How much of a certificate's time is over, and what that asks for.

use beanpole_protocol::Timestamp;
use std::time::Duration;

/// A day.
pub const DAY: Duration = Duration::from_hours(24);

/// How long a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Since when.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
}

impl Lifetime {
    fn whole(&self) -> Duration {
        self.not_after.since(self.not_before)
    }

    /// When there is to be another: after two thirds of it, and by up to a twentieth sooner, so that what was
    /// made at one time is not renewed at one time. `seed` is the same for the same certificate.
    pub fn renew_at(&self, seed: &[u8]) -> Timestamp {
        let whole = self.whole();
        let jitter = jitter(whole, seed);
        self.not_before
            .after((whole * 2 / 3).saturating_sub(jitter))
    }

    /// How many days before its end a warning is due by `now`: that of 30 days, or of 7. One that lives for
    /// less is warned of later: one that is `renewed` by itself when renewal is overdue, any other after two
    /// thirds; and then at a twelfth.
    pub fn warning(&self, renewed: bool, now: Timestamp) -> Option<u64> {
        let whole = self.whole();
        let first = (30 * DAY).min(whole / if renewed { 6 } else { 3 });
        let second = (7 * DAY).min(whole / 12);
        let left = self.not_after.since(now);
        if left <= second {
            Some(7)
        } else if left <= first {
            Some(30)
        } else {
            None
        }
    }
}

/// Up to a twentieth of a time, by the bytes given.
fn jitter(of: Duration, seed: &[u8]) -> Duration {
    of / 20 * spread(seed) / 1_000
}

/// A time, shorter by up to a twentieth, so that what began at one time is not due at one time. `seed` is the same
/// for the same thing.
pub fn sooner(time: Duration, seed: &[u8]) -> Duration {
    time.saturating_sub(jitter(time, seed))
}

/// 0 to 999, by the bytes given (FNV-1a).
fn spread(seed: &[u8]) -> u32 {
    let hash = seed.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    hash % 1_000
}

/// How long to wait after an attempt that failed, counted from 1: minutes at first, a day in the end, and by up
/// to a fifth longer. Authorities allow few failures in an hour (Let's Encrypt: 5 for each hostname).
pub fn pause(attempts: u32, seed: &[u8]) -> Duration {
    const MINUTES: [u64; 7] = [5, 15, 60, 120, 240, 720, 1_440];
    let index = usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX);
    let pause = Duration::from_mins(MINUTES[index.min(MINUTES.len() - 1)]);
    pause + pause / 5 * spread(seed) / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days(days: u64) -> Lifetime {
        let not_before = Timestamp::from_millis(1_790_000_000_000);
        Lifetime {
            not_before,
            not_after: not_before.after(days as u32 * DAY),
        }
    }

    #[test]
    fn renewal_is_due_shortly_before_two_thirds() {
        for seed in ["a", "b", "c", "shop"] {
            let life = days(90);
            let at = life.renew_at(seed.as_bytes()).since(life.not_before);
            assert!(at <= 60 * DAY && at >= 55 * DAY, "{at:?}");
            assert_eq!(
                life.renew_at(seed.as_bytes()),
                life.renew_at(seed.as_bytes())
            );
        }
        assert_ne!(days(90).renew_at(b"a"), days(90).renew_at(b"b"));
    }

    #[test]
    fn warnings_come_at_thirty_and_seven_days_or_by_the_lifetime() {
        let year = days(365);
        let left = |life: Lifetime, left: Duration, renewed: bool| {
            let now = Timestamp::from_millis(life.not_after.as_millis() - left.as_millis() as u64);
            life.warning(renewed, now)
        };
        assert_eq!(left(year, 31 * DAY, false), None);
        assert_eq!(left(year, 30 * DAY, false), Some(30));
        assert_eq!(left(year, 7 * DAY, false), Some(7));
        // One of 90 days that is renewed by itself is late when a sixth is left.
        assert_eq!(left(days(90), 29 * DAY, true), None);
        assert_eq!(left(days(90), 15 * DAY, true), Some(30));
        assert_eq!(left(days(6), DAY, true), Some(30));
        assert_eq!(left(days(6), DAY / 2, true), Some(7));
    }

    #[test]
    fn pauses_grow_to_a_day() {
        assert!(pause(1, b"x") >= Duration::from_mins(5));
        assert!(pause(1, b"x") <= Duration::from_mins(6));
        assert!(pause(50, b"x") >= DAY);
        assert!(pause(50, b"x") <= DAY + DAY / 5);
    }
}
