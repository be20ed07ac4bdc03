//! Targets that pass their checks and fail requests: passive detection, from the answers that clients get.

use super::Rank;
use crate::target::{TargetState, lock};
use beanpole_protocol::proxy::{Ejection, Outliers};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

/// The longest time without requests, unless one alone is set to be longer.
const LONGEST: Duration = Duration::from_mins(5);
/// Fewer requests within a window say nothing of a rate.
const LEAST_REQUESTS: u64 = 20;

/// What windows are counted from.
static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

/// How one target answers.
#[derive(Default)]
pub struct Conduct {
    /// Requests in a row that got no answer from it.
    failures: AtomicU32,
    /// Requests in a row that went wrong.
    errors: AtomicU32,
    window: AtomicU64,
    /// Whether it is out of turn now.
    is_out: AtomicBool,
    /// How often it was put out.
    ejections: AtomicU64,
    last: Mutex<Option<Out>>,
}

/// The last time that a target was put out.
struct Out {
    why: String,
    /// How many times one soon after the other.
    times: u32,
    lasts: Duration,
    until: Instant,
}

impl Conduct {
    /// Whether it is put out.
    pub fn is_out(&self) -> bool {
        self.is_out.load(Relaxed)
    }

    /// Counts how a request ended; why that was one too many, if it was.
    pub fn note(&self, rules: &Outliers, end: End, now: Instant) -> Option<String> {
        if end == End::Good {
            for row in [&self.failures, &self.errors] {
                if row.load(Relaxed) > 0 {
                    row.store(0, Relaxed);
                }
            }
        }
        let rate = self.rate(rules, end, now);
        let in_a_row = |row: &AtomicU32, counts: bool, most: u32| {
            let count = if counts {
                row.fetch_add(1, Relaxed) + 1
            } else {
                0
            };
            (most > 0 && count >= most).then_some(count)
        };
        let failures = in_a_row(&self.failures, end == End::Failure, rules.failures);
        let errors = in_a_row(&self.errors, end != End::Good, rules.errors);
        if end == End::Error {
            self.failures.store(0, Relaxed);
        }
        if let Some(count) = failures {
            return Some(format!("{count} requests in a row got no answer from it"));
        }
        if let Some(count) = errors {
            return Some(format!("{count} requests in a row failed"));
        }
        rate.map(|(errors, requests)| {
            let window = rules.window_s;
            format!("{errors} of {requests} requests within {window} s failed")
        })
    }

    /// Errors and requests of this window, where they are too many.
    fn rate(&self, rules: &Outliers, end: End, now: Instant) -> Option<(u64, u64)> {
        if rules.error_percent == 0 {
            return None;
        }
        let seconds = now.saturating_duration_since(*BASE).as_secs();
        let number = seconds / u64::from(rules.window_s.max(1));
        let error = end != End::Good;
        let counted = |window| Some(Window::of(window, number).plus(error).packed());
        let before = self.window.fetch_update(Relaxed, Relaxed, counted);
        let window = Window::of(before.unwrap_or_default(), number).plus(error);
        let too_many = window.requests >= LEAST_REQUESTS
            && window.errors * 100 >= window.requests * u64::from(rules.error_percent);
        (error && too_many).then_some((window.errors, window.requests))
    }

    /// It gets nothing for a while, which is longer the sooner it comes after the last one.
    pub fn put_out(&self, why: String, rules: &Outliers, now: Instant) {
        let base = Duration::from_secs(u64::from(rules.lasts_s.max(1)));
        let mut last = lock(&self.last);
        let times = last.as_ref().map_or(0, |last| {
            // Each such time that it was back for makes up for one.
            let back = now.saturating_duration_since(last.until);
            let made_up = back.as_secs() / base.as_secs();
            last.times
                .saturating_sub(u32::try_from(made_up).unwrap_or(u32::MAX))
        });
        let times = times.saturating_add(1);
        let lasts = base.saturating_mul(times).min(LONGEST.max(base));
        *last = Some(Out {
            why,
            times,
            lasts,
            until: now + lasts,
        });
        self.ejections.fetch_add(1, Relaxed);
        self.is_out.store(true, Relaxed);
    }

    /// It goes on with what another process told of it.
    pub fn resume(&self, told: &Ejection, now: Instant) {
        *lock(&self.last) = Some(Out {
            why: told.why.clone(),
            times: told.times,
            lasts: Duration::from_millis(told.lasts_ms),
            until: now + Duration::from_millis(told.left_ms).min(LONGEST),
        });
        self.is_out.store(true, Relaxed);
    }

    /// Whether its time without requests has just come to its end.
    pub fn comes_back(&self, now: Instant) -> bool {
        if !self.is_out() {
            return false;
        }
        let last = lock(&self.last);
        let over = last.as_ref().is_none_or(|last| last.until <= now);
        if over {
            self.forget();
            self.is_out.store(false, Relaxed);
        }
        over
    }

    /// What went wrong is forgotten.
    fn forget(&self) {
        self.failures.store(0, Relaxed);
        self.errors.store(0, Relaxed);
        self.window.store(0, Relaxed);
    }

    /// How often it was put out.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Relaxed)
    }

    /// What is told of it.
    pub fn report(&self, now: Instant) -> Option<Ejection> {
        if !self.is_out() {
            return None;
        }
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        lock(&self.last).as_ref().map(|last| Ejection {
            why: last.why.clone(),
            lasts_ms: ms(last.lasts),
            left_ms: ms(last.until.saturating_duration_since(now)),
            times: last.times,
        })
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Answered, and not with an error of the server.
    Good,
    /// Answered with a status of 500 or above.
    Error,
    /// Not answered in time, or to the end; or by somebody between who said so: 502, 503, 504.
    Failure,
}

impl End {
    /// Of a request that was answered with this status, and whether the answer is the app's and whole.
    pub fn of(status: Option<u16>, failed: bool) -> Self {
        match status {
            _ if failed => Self::Failure,
            Some(502..=504) => Self::Failure,
            Some(500..) => Self::Error,
            _ => Self::Good,
        }
    }
}

/// Counts of one window, in one number: 16 bits of which one it is, 24 of requests, 24 of errors.
struct Window {
    number: u64,
    requests: u64,
    errors: u64,
}

impl Window {
    const MOST: u64 = (1 << 24) - 1;

    /// What `packed` counts of the window with that number.
    fn of(packed: u64, number: u64) -> Self {
        let number = number & 0xffff;
        if packed >> 48 == number {
            Self {
                number,
                requests: (packed >> 24) & Self::MOST,
                errors: packed & Self::MOST,
            }
        } else {
            Self {
                number,
                requests: 0,
                errors: 0,
            }
        }
    }

    fn plus(mut self, error: bool) -> Self {
        if self.requests < Self::MOST {
            self.requests += 1;
            self.errors += u64::from(error);
        }
        self
    }

    fn packed(&self) -> u64 {
        (self.number << 48) | (self.requests << 24) | self.errors
    }
}

/// Puts `target` out, unless too many of `serving` are, or no other is well.
pub fn put_out(
    target: &TargetState,
    serving: &[Arc<TargetState>],
    rules: &Outliers,
    why: String,
    now: Instant,
) -> bool {
    let is_it = |one: &&Arc<TargetState>| std::ptr::eq(one.as_ref(), target);
    let out = serving.iter().filter(|one| one.conduct.is_out()).count();
    let most = (serving.len() * usize::from(rules.most_percent) / 100).max(1);
    let mut others = serving.iter().filter(|one| !is_it(one));
    let may = !target.conduct.is_out()
        && serving.iter().any(|one| is_it(&one))
        && out < most
        && others.any(|one| one.rank() < Rank::Out);
    if may {
        target.conduct.put_out(why, rules, now);
    } else {
        target.conduct.forget();
    }
    may
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Outliers {
        Outliers {
            failures: 3,
            errors: 5,
            error_percent: 50,
            window_s: 3_600,
            lasts_s: 30,
            most_percent: 10,
        }
    }

    fn verdict(ends: &[(End, u32)]) -> Option<String> {
        let conduct = Conduct::default();
        let now = *BASE + Duration::from_mins(1);
        let all = ends.iter();
        let mut all = all.flat_map(|(end, count)| (0..*count).map(|_| *end));
        all.find_map(|end| conduct.note(&rules(), end, now))
    }

    #[test]
    fn what_goes_wrong_in_a_row_or_too_often_is_one_too_many() {
        use End::{Error, Failure, Good};
        let no_answer = "3 requests in a row got no answer from it";
        assert_eq!(verdict(&[(Failure, 3)]).as_deref(), Some(no_answer));
        assert_eq!(verdict(&[(Failure, 2), (Good, 1), (Failure, 2)]), None);
        assert_eq!(verdict(&[(Failure, 2), (Error, 1), (Failure, 1)]), None);
        let failed = "5 requests in a row failed";
        let mixed = [(Error, 2), (Failure, 2), (Error, 1)];
        assert_eq!(verdict(&mixed).as_deref(), Some(failed));
        assert_eq!(verdict(&[(Good, 30), (Error, 4)]), None);
        let often: Vec<_> = (0..20).flat_map(|_| [(Good, 1), (Error, 1)]).collect();
        let rate = "10 of 20 requests within 3600 s failed";
        assert_eq!(verdict(&often).as_deref(), Some(rate));
    }

    #[test]
    fn statuses_say_who_failed() {
        assert_eq!(End::of(Some(404), false), End::Good);
        assert_eq!(End::of(Some(101), false), End::Good);
        assert_eq!(End::of(Some(500), false), End::Error);
        assert_eq!(End::of(Some(503), false), End::Failure);
        assert_eq!(End::of(Some(200), true), End::Failure, "it broke off");
    }

    #[test]
    fn each_time_soon_after_the_last_is_longer_up_to_a_bound() {
        let conduct = Conduct::default();
        let mut now = *BASE + Duration::from_mins(1);
        let lasts = |now| {
            conduct.put_out("as asked".to_owned(), &rules(), now);
            let told = conduct.report(now).expect("it is out");
            Duration::from_millis(told.lasts_ms)
        };
        for wanted in [30, 60, 90] {
            let time = lasts(now);
            assert_eq!(time, Duration::from_secs(wanted));
            assert!(!conduct.comes_back(now + time / 2));
            now += time;
            assert!(conduct.comes_back(now) && !conduct.is_out());
        }
        // Two of three are made up for.
        let later = now + Duration::from_secs(65);
        assert_eq!(lasts(later), Duration::from_mins(1));
        for _ in 0..20 {
            now += LONGEST;
            lasts(now);
        }
        assert!(lasts(now) <= LONGEST);
    }
}
