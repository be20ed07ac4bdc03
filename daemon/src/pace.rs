//! How soon the next of many messages may go out: some at once, so that nobody waits for what has
//! just happened; one per interval in the long run, so that nobody drowns in them.

use std::time::{Duration, Instant};

/// A bound on how often something happens.
#[derive(Clone, Debug)]
pub struct Pace {
    /// From one to the next in the long run.
    every: Duration,
    /// How many may come at once after a quiet time.
    at_once: u32,
    /// When the last one would have been due, had they come evenly.
    even: Option<Instant>,
}

impl Pace {
    /// One `every` so often, and up to `at_once` together after a quiet time.
    pub const fn new(every: Duration, at_once: u32) -> Self {
        Self {
            every,
            at_once,
            even: None,
        }
    }

    /// Takes the next one's place: it may happen then.
    pub fn next(&mut self, now: Instant) -> Instant {
        let even = self.even.map_or(now, |even| (even + self.every).max(now));
        self.even = Some(even);
        let ahead = self.every * self.at_once.saturating_sub(1);
        even.checked_sub(ahead).map_or(now, |at| at.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_millis(100);

    #[test]
    fn a_few_go_at_once_and_the_rest_one_after_the_other() {
        let start = Instant::now();
        let mut pace = Pace::new(EVERY, 3);
        let waits: Vec<Duration> = (0..5).map(|_| pace.next(start) - start).collect();
        assert_eq!(
            waits,
            [0, 0, 0, 100, 200].map(Duration::from_millis),
            "three at once"
        );
    }

    #[test]
    fn a_quiet_time_gives_the_right_to_some_at_once_again() {
        let start = Instant::now();
        let mut pace = Pace::new(EVERY, 3);
        for _ in 0..3 {
            pace.next(start);
        }
        let later = start + EVERY * 2;
        let waits: Vec<Duration> = (0..3).map(|_| pace.next(later) - later).collect();
        assert_eq!(waits, [0, 0, 100].map(Duration::from_millis));
    }
}
