//! Events: written in the same transaction as what they tell of, with strictly rising times per
//! environment.

use crate::pace::behind;
use beanpole_protocol::api::EnvironmentStatus;
use beanpole_protocol::event::{Event, Severity};
use beanpole_protocol::{
    ApplicationName, EventId, HostId, InstanceId, OperationId, ReleaseNumber, RequestId, Timestamp,
};
use beanpole_store::model::{
    EnvironmentRecord, EventIndexRecord, EventRecord, OperationRecord, OtherEventRecord,
    RestoredRecord,
};
use beanpole_store::{EVENTS, Record as _, Store, StoreError, Tx};
use std::time::Duration;

/// An event to be written.
#[derive(Clone, Debug)]
pub struct Draft {
    event: Event,
}

impl Draft {
    /// An event that concerns nothing in particular.
    pub fn new(severity: Severity, code: &str, message: impl Into<String>, now: Timestamp) -> Self {
        Self {
            event: Event {
                id: EventId(0),
                at: now,
                severity,
                code: code.to_owned(),
                message: message.into(),
                request_id: None,
                operation: None,
                application: None,
                environment: None,
                environment_name: None,
                instance: None,
                host: None,
                details: Vec::new(),
            },
        }
    }

    /// The call that led to it.
    pub fn request(mut self, id: &RequestId) -> Self {
        self.event.request_id = Some(id.clone());
        self
    }

    /// The operation it belongs to, and the call that started that.
    pub fn operation(mut self, operation: &OperationRecord) -> Self {
        self.event.operation = Some(operation.id.clone());
        self.event.request_id = Some(operation.request_id.clone());
        self
    }

    /// The operation it belongs to, by id.
    pub fn operation_id(mut self, id: &OperationId) -> Self {
        self.event.operation = Some(id.clone());
        self
    }

    /// The application it concerns.
    pub fn application(mut self, name: &ApplicationName) -> Self {
        self.event.application = Some(name.clone());
        self
    }

    /// The instance it concerns.
    pub fn instance(mut self, id: Option<&InstanceId>) -> Self {
        self.event.instance = id.cloned();
        self
    }

    /// The host it concerns.
    pub fn host(mut self, id: Option<&HostId>) -> Self {
        self.event.host = id.cloned();
        self
    }

    /// More, one line each.
    pub fn details(mut self, lines: Vec<String>) -> Self {
        self.event.details = lines;
        self
    }
}

/// Events that concern no environment, kept in all. Fewer than of one environment: each new one reads
/// their list.
const OTHER_EVENTS_KEPT: usize = 2_000;

/// Writes an event that concerns no environment, and forgets the oldest of these beyond a bound.
pub fn emit(tx: &mut Tx<'_>, draft: Draft) -> Result<EventId, StoreError> {
    let mut event = draft.event;
    event.at = event.at.after(behind(tx)?);
    event.id = EventId(tx.counter(EVENTS)?);
    let id = event.id;
    tx.put(&EventRecord(event))?;
    tx.put(&OtherEventRecord { event: id })?;
    let others = tx.list::<OtherEventRecord>()?;
    let surplus = others.len().saturating_sub(OTHER_EVENTS_KEPT);
    for old in &others[..surplus] {
        tx.delete::<EventRecord>(&EventRecord::key_of(old.event))?;
        tx.delete::<OtherEventRecord>(&old.key())?;
    }
    Ok(id)
}

/// Writes an event of an environment; the caller stores the record, whose newest event it is then.
pub(crate) fn emit_for(
    tx: &mut Tx<'_>,
    environment: &mut EnvironmentRecord,
    draft: Draft,
) -> Result<EventId, StoreError> {
    let mut event = draft.event;
    event.at = event
        .at
        .after(behind(tx)?)
        .max(environment.last_event_at.after(Duration::from_millis(1)));
    environment.last_event_at = event.at;
    event.application = Some(environment.application.clone());
    event.environment = Some(environment.id.clone());
    event.environment_name = Some(environment.name.clone());
    event.id = EventId(tx.counter(EVENTS)?);
    let id = event.id;
    tx.put(&EventIndexRecord {
        environment: environment.id.clone(),
        event: id,
    })?;
    tx.put(&EventRecord(event))?;
    Ok(id)
}

/// How far the numbers of releases leap after a restore, and by one more for each second since the
/// backup: faster than anybody deploys, so that another restore of the same backup leaps farther.
const RELEASES_LEAP: u64 = 1_000;

/// After a restore, tells everybody who follows events, of whatever environment: what happened after
/// the backup is not in these records, and the numbers of events have leapt.
pub fn tell_restore(store: &Store, now: Timestamp) -> Result<(), StoreError> {
    store.update(|tx| {
        let Some(restored) = tx.get::<RestoredRecord>(&RestoredRecord::the_key())? else {
            return Ok(());
        };
        let text = format!(
            "The controller's records were brought back from a backup of {}. What was done after that \
             is not known any more: instances that were changed since return to the recorded release \
             one after the other, and what was added since is removed.",
            restored.backup_of
        );
        let draft = Draft::new(Severity::Warn, "records-restored", text, now);
        emit(tx, draft.clone())?;
        for mut environment in tx.list::<EnvironmentRecord>()? {
            // Hosts may hold releases that were made after the backup. Their numbers are not given again.
            let since = now.since(environment.last_event_at).as_secs();
            let last = environment.last_release.0;
            environment.last_release = ReleaseNumber(last + RELEASES_LEAP + since);
            // Nobody waits for news of one that is gone.
            if environment.status != EnvironmentStatus::Terminated {
                emit_for(tx, &mut environment, draft.clone())?;
            }
            tx.put(&environment)?;
        }
        tx.delete::<RestoredRecord>(&restored.key())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_restores_of_one_backup_give_no_release_number_twice() {
        let restored_at = |seconds: u64| {
            let store = Store::in_memory();
            let mut environment = crate::derive::tests::environment();
            environment.last_event_at = Timestamp::from_millis(1_000);
            environment.last_release = ReleaseNumber(5);
            let backup_of = String::new();
            store
                .update(|tx| {
                    tx.put(&environment)?;
                    tx.put(&RestoredRecord { backup_of })
                })
                .expect("memory");
            tell_restore(&store, Timestamp::from_millis(seconds * 1_000)).expect("memory");
            let all: Vec<EnvironmentRecord> = store.list().expect("memory");
            all[0].last_release.0
        };
        assert_eq!(restored_at(11), 1_015);
        // Thirty releases in half a minute would be many.
        assert_eq!(restored_at(41), 1_045);
    }

    #[test]
    fn events_of_no_environment_are_bounded_and_the_newest_stay() {
        let store = Store::in_memory();
        for _ in 0..3 {
            store
                .update(|tx| {
                    for _ in 0..OTHER_EVENTS_KEPT / 2 {
                        let now = Timestamp::EPOCH;
                        emit(
                            tx,
                            Draft::new(Severity::Info, "bundles-freed", "Freed.", now),
                        )?;
                    }
                    Ok::<_, StoreError>(())
                })
                .expect("update");
        }
        let events: Vec<EventRecord> = store.list().expect("list");
        assert_eq!(events.len(), OTHER_EVENTS_KEPT);
        let newest = OTHER_EVENTS_KEPT as u64 / 2 * 3;
        assert_eq!(events.last().map(|event| event.0.id), Some(EventId(newest)));
        let index: Vec<OtherEventRecord> = store.list().expect("list");
        assert_eq!(index.len(), OTHER_EVENTS_KEPT);
    }
}
