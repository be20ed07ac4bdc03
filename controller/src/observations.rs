//! What hosts and proxies last said, in memory: written by the links, read by everybody.

use beanpole_engine::Observed;
use std::sync::{Arc, Mutex, PoisonError};

/// The latest reports. A snapshot is cheap and never changes under its reader.
#[derive(Debug, Default)]
pub(crate) struct Observations {
    current: Mutex<Arc<Observed>>,
}

impl Observations {
    /// What is known now.
    pub(crate) fn snapshot(&self) -> Arc<Observed> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes something new in. Readers of earlier snapshots keep theirs.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Observed) -> T) -> T {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut current))
    }
}
