//! How many requests may be sent once more: a share of those that came within a window, so that a failure of all
//! targets is not multiplied by attempts to get around it.
//!
//! Requests are counted anyway, where they end. Their count is looked at by the second, and no request pays for it.

use crate::target::lock;
use crate::traffic::Counters;
use beanpole_protocol::proxy::Retries;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// How long the window is, in seconds.
const WINDOW_S: u64 = 10;

/// The budget of an environment, through all its tables.
pub struct Budget {
    base: Instant,
    requests: Arc<Counters>,
    window: Mutex<Window>,
    retries: AtomicU64,
    denied: AtomicU64,
}

#[derive(Default)]
struct Window {
    /// Of each second that something was looked at: which one, how many requests had come by then, and how
    /// many were sent again in it.
    seconds: VecDeque<Second>,
}

struct Second {
    at: u64,
    requests: u64,
    retries: u64,
}

impl Budget {
    /// Of an environment with these counts.
    pub fn new(requests: Arc<Counters>) -> Self {
        Self {
            base: Instant::now(),
            requests,
            window: Mutex::default(),
            retries: AtomicU64::new(0),
            denied: AtomicU64::new(0),
        }
    }

    /// Takes how many requests have come by now: once a second or more often, whether anything is sent again or
    /// not.
    pub fn keep_time(&self, now: Instant) {
        self.look(now, &mut lock(&self.window));
    }

    /// Whether one more request may be sent again; it counts as sent.
    pub fn spend(&self, rules: Retries, now: Instant) -> bool {
        let mut window = lock(&self.window);
        let requests = self.look(now, &mut window);
        let before = window.seconds.front().map_or(0, |second| second.requests);
        let of_window = requests.saturating_sub(before);
        let may =
            of_window * u64::from(rules.percent) / 100 + u64::from(rules.per_second) * WINDOW_S;
        let spent: u64 = window.seconds.iter().map(|second| second.retries).sum();
        let allowed = spent < may;
        if allowed && let Some(second) = window.seconds.back_mut() {
            second.retries += 1;
        }
        let counted = if allowed { &self.retries } else { &self.denied };
        counted.fetch_add(1, Relaxed);
        allowed
    }

    /// How many requests were sent again, and how many were not for want of budget.
    pub fn counts(&self) -> (u64, u64) {
        (self.retries.load(Relaxed), self.denied.load(Relaxed))
    }

    fn look(&self, now: Instant, window: &mut Window) -> u64 {
        let at = now.saturating_duration_since(self.base).as_secs();
        let requests = self.requests.requests();
        if window.seconds.back().is_none_or(|last| last.at < at) {
            window.seconds.push_back(Second {
                at,
                requests,
                retries: 0,
            });
        }
        while window
            .seconds
            .front()
            .is_some_and(|first| first.at + WINDOW_S <= at)
        {
            window.seconds.pop_front();
        }
        requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn rules(percent: u8, per_second: u32) -> Retries {
        Retries {
            percent,
            per_second,
            failed: false,
        }
    }

    fn spent(budget: &Budget, rules: Retries, now: Instant) -> usize {
        (0..1_000).filter(|_| budget.spend(rules, now)).count()
    }

    #[test]
    fn a_share_of_what_came_within_the_window_is_sent_again_and_no_more() {
        let counters = Arc::new(Counters::default());
        let budget = Budget::new(counters.clone());
        let start = budget.base;
        budget.keep_time(start);
        for _ in 0..500 {
            counters.record(Some(200), false, None);
        }
        let soon = start + Duration::from_secs(3);
        assert_eq!(spent(&budget, rules(20, 0), soon), 100);
        assert_eq!(spent(&budget, rules(20, 0), soon), 0);
        assert_eq!(budget.counts(), (100, 1_900));
        // The window has left these behind, and nothing new has come.
        let later = start + Duration::from_secs(20);
        assert_eq!(spent(&budget, rules(20, 0), later), 0);
        for _ in 0..50 {
            counters.record(Some(200), false, None);
        }
        assert_eq!(spent(&budget, rules(20, 0), later), 10);
    }

    #[test]
    fn few_requests_have_a_small_number_to_themselves() {
        let budget = Budget::new(Arc::new(Counters::default()));
        let now = budget.base;
        assert_eq!(spent(&budget, rules(20, 3), now), 30);
        assert_eq!(
            spent(&budget, rules(20, 3), now + Duration::from_secs(9)),
            0
        );
        assert_eq!(
            spent(&budget, rules(20, 3), now + Duration::from_secs(11)),
            30
        );
        assert_eq!(
            spent(&budget, rules(0, 0), now + Duration::from_secs(30)),
            0
        );
    }
}
