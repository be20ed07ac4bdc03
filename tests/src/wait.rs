//! Waiting: for a condition, with a bound, never for a time.

use std::time::{Duration, Instant};

/// Polls until `condition` gives a value.
///
/// # Panics
/// When it has not within `bound`; says `what` was awaited.
#[track_caller]
pub fn until<T>(what: &str, bound: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + bound;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            Instant::now() < end,
            "waited {} s in vain: {what}",
            bound.as_secs()
        );
        pause(Duration::from_millis(20));
    }
}

/// [`until`] for a yes or no.
#[track_caller]
pub fn until_true(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    until(what, bound, || condition().then_some(()));
}

/// The pause between two looks.
pub fn pause(length: Duration) {
    let end = Instant::now() + length;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        if left.is_zero() {
            break;
        }
        std::thread::park_timeout(left);
    }
}

/// Seconds, shorter to write.
pub const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
