//! Several load balancers that change over together: each makes the next table ready, and none puts it in force
//! before all that are connected have it, or have had time enough. What lies between the first and the last is
//! then what a call takes, not what a table does.

use beanpole_protocol::Generation;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long the slowest one is waited for: the others have work to do as well.
const LIMIT: Duration = Duration::from_secs(1);

/// Load balancers that are connected, by name, with the newest table that each has made ready, or refused.
#[derive(Clone, Debug, Default)]
pub struct Changeover(Arc<watch::Sender<BTreeMap<String, Generation>>>);

/// One of them, as long as it is connected.
pub(crate) struct Member {
    name: String,
    all: Changeover,
}

impl Changeover {
    /// One more that is connected.
    pub(crate) fn join(&self, name: &str) -> Member {
        self.0.send_modify(|all| {
            all.insert(name.to_owned(), Generation::default());
        });
        Member {
            name: name.to_owned(),
            all: self.clone(),
        }
    }
}

impl Member {
    /// Whether there is nobody to change over with.
    pub(crate) fn is_alone(&self) -> bool {
        self.all.0.borrow().len() < 2
    }

    /// It has that table ready, or never will.
    pub(crate) fn is_ready(&self, generation: Generation) {
        self.all.0.send_modify(|all| {
            all.insert(self.name.clone(), generation);
        });
    }

    /// Waits until all have that table ready, or their time is up.
    pub(crate) async fn together(&self, generation: Generation) {
        let mut news = self.all.0.subscribe();
        let all_ready = news.wait_for(|all| all.values().all(|ready| *ready >= generation));
        if tokio::time::timeout(LIMIT, all_ready).await.is_err() {
            let late = self.all.0.borrow();
            let late = late.iter().filter(|(_, ready)| **ready < generation);
            let late: Vec<&String> = late.map(|(name, _)| name).collect();
            tracing::warn!(%generation, ?late, "load balancers change over without those that are late");
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.all.0.send_modify(|all| {
            all.remove(&self.name);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nobody_changes_over_before_all_are_ready_or_gone() {
        let all = Changeover::default();
        let (one, other, third) = (all.join("one"), all.join("other"), all.join("third"));
        assert!(!one.is_alone());
        one.is_ready(Generation(2));
        let begun = tokio::time::Instant::now();
        let waits = tokio::spawn(async move {
            one.together(Generation(2)).await;
            one
        });
        tokio::task::yield_now().await;
        other.is_ready(Generation(3));
        assert!(!waits.is_finished());
        drop(third);
        let one = waits.await.expect("no panic");
        assert!(begun.elapsed() < LIMIT);
        drop(other);
        assert!(one.is_alone());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_late_is_not_waited_for_longer_than_the_limit() {
        let all = Changeover::default();
        let (one, _late) = (all.join("one"), all.join("late"));
        one.is_ready(Generation(2));
        let begun = tokio::time::Instant::now();
        one.together(Generation(2)).await;
        assert_eq!(begun.elapsed(), LIMIT);
    }
}
