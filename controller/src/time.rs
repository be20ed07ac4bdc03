//! The controller's time: the engine's, which does not jump while an operation is under way.

use beanpole_daemon::clock;
use beanpole_engine::{Pace, Reading};
use beanpole_protocol::Timestamp;
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

/// Both clocks of the machine, and what the engine makes of them.
pub(crate) struct Time {
    began: Instant,
    pace: Mutex<Pace>,
    /// Held by calls from reading the time until what they did with it is on disk.
    calls: RwLock<()>,
}

impl Time {
    /// Begins with what the engine makes of the first reading.
    pub(crate) fn start<E>(start: impl FnOnce(Reading) -> Result<Pace, E>) -> Result<Self, E> {
        let began = Instant::now();
        let pace = start(read(began))?;
        Ok(Self {
            began,
            pace: Mutex::new(pace),
            calls: RwLock::default(),
        })
    }

    /// The time now.
    pub(crate) fn now(&self) -> Timestamp {
        self.pace().now(self.began.elapsed())
    }

    /// What both clocks say.
    pub(crate) fn reading(&self) -> Reading {
        read(self.began)
    }

    /// What the time is counted from.
    pub(crate) fn pace(&self) -> Pace {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes by another one from now on.
    pub(crate) fn set(&self, pace: Pace) {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner) = pace;
    }

    /// While this is held, the machine's clock is not taken over.
    pub(crate) fn call(&self) -> RwLockReadGuard<'_, ()> {
        self.calls.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// While this is held, no call is under way.
    pub(crate) fn no_calls(&self) -> RwLockWriteGuard<'_, ()> {
        self.calls.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(began: Instant) -> Reading {
    Reading {
        wall: clock::now(),
        steady: began.elapsed(),
    }
}
