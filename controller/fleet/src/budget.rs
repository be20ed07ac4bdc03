//! The bandwidth that all pushes share.

use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// The biggest piece of a body. Big pieces matter most for speed over SSH: 1 MiB took half of the
/// time of small ones.
const BIGGEST_FRAME: u64 = 1024 * 1024;
/// The smallest piece under a tight budget.
const SMALLEST_FRAME: u64 = 16 * 1024;

/// A token bucket without a bucket: it remembers when the bytes granted so far will have been sent
/// at the agreed rate. Whoever asks next waits until then.
pub(crate) struct Budget {
    /// Bytes per second; none for no limit.
    rate: Option<u64>,
    booked_until: Mutex<Option<Instant>>,
}

impl Budget {
    pub(crate) fn new(rate: Option<u64>) -> Self {
        Self {
            rate: rate.filter(|rate| *rate > 0),
            booked_until: Mutex::new(None),
        }
    }

    /// How many bytes to send in one go, so that a tight budget is shared in small portions.
    pub(crate) fn frame(&self) -> usize {
        match self.rate {
            None => BIGGEST_FRAME as usize,
            Some(rate) => (rate / 16).clamp(SMALLEST_FRAME, BIGGEST_FRAME) as usize,
        }
    }

    /// Waits until `bytes` may be sent.
    pub(crate) async fn take(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let start = {
            let now = Instant::now();
            let mut booked = self
                .booked_until
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let start = booked.map_or(now, |until| until.max(now));
            *booked = Some(start + Duration::from_secs_f64(bytes as f64 / rate as f64));
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_share_a_budget_get_its_rate_together() {
        let budget = Budget::new(Some(1_000_000));
        let start = Instant::now();
        let one = async {
            for _ in 0..10 {
                budget.take(100_000).await;
            }
        };
        let other = async {
            for _ in 0..10 {
                budget.take(100_000).await;
            }
        };
        tokio::join!(one, other);
        let took = start.elapsed();
        assert!(
            took >= Duration::from_millis(1_900) && took <= Duration::from_secs(2),
            "{took:?}"
        );
    }

    #[tokio::test]
    async fn without_a_limit_nobody_waits() {
        let budget = Budget::new(None);
        budget.take(usize::MAX).await;
        assert_eq!(budget.frame(), 1024 * 1024);
    }
}
