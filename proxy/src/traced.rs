//! What became of the last few requests whose ids ask to be remembered (`protocol::proxy::TRACED`), for whoever
//! sent one to find out why it was answered as it was. All others cost a look at the beginning of their ids.

use crate::access_log::Entry;
use beanpole_daemon::clock;
use beanpole_protocol::proxy::{TRACED, TracedRequest};
use beanpole_protocol::{Generation, InstanceId, ReleaseNumber};
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How many are remembered.
const REMEMBERED: usize = 64;

/// Whether a request with this id is remembered.
pub fn is_traced(id: &[u8]) -> bool {
    id.starts_with(TRACED.as_bytes())
}

/// The last few.
#[derive(Default)]
pub struct Traced {
    last: Mutex<VecDeque<(String, TracedRequest)>>,
    news: Notify,
}

impl Traced {
    /// Remembers a request that is over.
    pub fn note(&self, entry: &Entry<'_>, generation: Generation) {
        let id = String::from_utf8_lossy(entry.request_id).into_owned();
        let traced = TracedRequest {
            at: clock::now(),
            generation,
            status: entry.status,
            why: entry.why.map(str::to_owned),
            environment: entry.environment.map(str::to_owned),
            instance: entry.instance.and_then(|text| InstanceId::new(text).ok()),
            release: entry.release.map(ReleaseNumber),
            duration_us: u64::try_from(entry.duration.as_micros()).unwrap_or(u64::MAX),
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.retain(|(known, _)| *known != id);
        if last.len() >= REMEMBERED {
            last.pop_front();
        }
        last.push_back((id, traced));
        drop(last);
        self.news.notify_waiters();
    }

    fn find(&self, id: &str) -> Option<TracedRequest> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let found = last.iter().find(|(known, _)| known == id);
        found.map(|(_, traced)| traced.clone())
    }

    /// What became of a request. A client may have its answer before the request is over in here: it is waited
    /// for at most `patience`.
    pub async fn ask(&self, id: &str, patience: Duration) -> Option<TracedRequest> {
        let end = tokio::time::Instant::now() + patience;
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            if let Some(traced) = self.find(id) {
                return Some(traced);
            }
            if tokio::time::timeout_at(end, news).await.is_err() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str) -> Entry<'_> {
        Entry {
            request_id: id.as_bytes(),
            status: Some(503),
            why: Some("no-healthy-instance"),
            environment: Some("prod"),
            ..Entry::default()
        }
    }

    #[tokio::test]
    async fn the_last_few_are_remembered_and_one_under_way_is_waited_for() {
        let traced = Traced::default();
        let asked = traced.ask("why-0", Duration::from_secs(10));
        let noted = async { traced.note(&entry("why-0"), Generation(3)) };
        let (found, ()) = tokio::join!(asked, noted);
        let found = found.expect("it is over");
        assert_eq!(found.why.as_deref(), Some("no-healthy-instance"));
        assert_eq!(found.generation, Generation(3));
        for number in 1..=REMEMBERED {
            traced.note(&entry(&format!("why-{number}")), Generation(3));
        }
        assert_eq!(traced.ask("why-0", Duration::ZERO).await, None);
        assert!(traced.ask("why-1", Duration::ZERO).await.is_some());
        assert!(is_traced(b"why-1") && !is_traced(b"whoever"));
    }
}
