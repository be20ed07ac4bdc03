//! Events: written in the same transaction as what they tell of, with strictly rising times per
//! environment.

use beanpole_protocol::event::{Event, Severity};
use beanpole_protocol::{
    ApplicationName, EventId, HostId, InstanceId, OperationId, RequestId, Timestamp,
};
use beanpole_store::model::{EnvironmentRecord, EventIndexRecord, EventRecord, OperationRecord};
use beanpole_store::{StoreError, Tx};
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

/// Writes an event that concerns no environment.
pub fn emit(tx: &mut Tx<'_>, draft: Draft) -> Result<EventId, StoreError> {
    let mut event = draft.event;
    event.id = EventId(tx.counter("events")?);
    let id = event.id;
    tx.put(&EventRecord(event))?;
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
        .max(environment.last_event_at.after(Duration::from_millis(1)));
    environment.last_event_at = event.at;
    event.application = Some(environment.application.clone());
    event.environment = Some(environment.id.clone());
    event.environment_name = Some(environment.name.clone());
    event.id = EventId(tx.counter("events")?);
    let id = event.id;
    tx.put(&EventIndexRecord {
        environment: environment.id.clone(),
        event: id,
    })?;
    tx.put(&EventRecord(event))?;
    Ok(id)
}
