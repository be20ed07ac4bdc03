//! How long is waited for either side of a request.

use futures::ready;
use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// How many timers each thread keeps for the next request over HTTP/2.
const SPARE: usize = 64;

thread_local! {
    /// Timers that nobody uses now. Some may still run, and wake nobody.
    static TIMERS: RefCell<Vec<Pin<Box<Sleep>>>> = const { RefCell::new(Vec::new()) };
}

/// A time that is renewed as things go on: its timer is moved when it has run out, and not before. Setting one costs
/// more than a look at the clock.
#[derive(Default)]
pub struct Patience {
    timer: Option<Pin<Box<Sleep>>>,
    until: Option<tokio::time::Instant>,
    /// When it is over in any case.
    pub end: Option<Instant>,
}

impl Patience {
    /// It is over `limit` after `from`.
    pub fn renew(&mut self, from: Instant, limit: Duration) {
        let until = from + limit;
        self.until = Some(self.end.map_or(until, |end| until.min(end)).into());
    }

    /// Ready when it is over.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(until) = self.until else {
            return Poll::Pending;
        };
        let timer = self.timer.get_or_insert_with(|| {
            let spare = TIMERS.with_borrow_mut(Vec::pop);
            spare.unwrap_or_else(|| Box::pin(tokio::time::sleep_until(until)))
        });
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if tokio::time::Instant::now() >= until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        let Some(timer) = self.timer.take() else {
            return;
        };
        // A thread that ends has none left.
        let _ = TIMERS.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE {
                spare.push(timer);
            }
        });
    }
}
