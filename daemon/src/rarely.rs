//! Warnings about what may happen thousands of times a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// From one warning to the next.
const EVERY: Duration = Duration::from_mins(1);

/// Counts something, to be told once a minute at most.
#[derive(Debug)]
pub struct Rarely(Mutex<(Option<Instant>, u64)>);

impl Rarely {
    /// Nothing has happened yet.
    pub const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    /// It happened: if it is to be told now, how often it has since it was told last.
    pub fn again(&self) -> Option<u64> {
        self.again_at(Instant::now())
    }

    fn again_at(&self, now: Instant) -> Option<u64> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (told, count) = &mut *held;
        *count += 1;
        if told.is_some_and(|told| now.saturating_duration_since(told) < EVERY) {
            return None;
        }
        *told = Some(now);
        Some(std::mem::take(count))
    }
}

impl Default for Rarely {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_and_the_others_are_counted() {
        let rarely = Rarely::new();
        let start = Instant::now();
        assert_eq!(rarely.again_at(start), Some(1));
        for _ in 0..3 {
            assert_eq!(rarely.again_at(start), None);
        }
        assert_eq!(rarely.again_at(start + EVERY), Some(4));
    }
}
