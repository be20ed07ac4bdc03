//! Reading events: pages, and what comes next for those who follow.

use crate::app::{App, store_problem};
use beanpole_protocol::api::EnvironmentStatus;
use beanpole_protocol::event::Event;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{EnvironmentId, EnvironmentName, EventId, OperationId};
use beanpole_store::model::{EnvironmentRecord, EventIndexRecord, EventRecord, OperationRecord};

/// Which events are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Those of one environment.
    pub(crate) environment: Option<EnvironmentId>,
    /// Those of one operation; `environment` is its environment then.
    pub(crate) operation: Option<OperationId>,
}

/// Events and how far the look went: the next one goes on after `seen`.
pub(crate) struct Found {
    pub(crate) events: Vec<Event>,
    pub(crate) seen: EventId,
    /// Whether there may be more now.
    pub(crate) more: bool,
}

impl Filter {
    /// From names as users give them. An environment that is gone is found as long as its record
    /// is there.
    pub(crate) fn resolve(
        app: &App,
        environment: Option<&EnvironmentName>,
        operation: Option<OperationId>,
    ) -> Result<Self, Problem> {
        let mut filter = Self::default();
        if let Some(name) = environment {
            let all: Vec<EnvironmentRecord> = app.store.list().map_err(store_problem)?;
            let newest = all
                .into_iter()
                .filter(|environment| environment.name == *name)
                .max_by_key(|environment| {
                    let lives = environment.status != EnvironmentStatus::Terminated;
                    (lives, environment.created_at)
                });
            let found = newest.ok_or_else(|| {
                Problem::not_found("environment", name).hint("See which there are: beanpole list")
            })?;
            filter.environment = Some(found.id);
        }
        if let Some(id) = operation {
            let record: Option<OperationRecord> = app
                .store
                .get(&OperationRecord::key_of(&id))
                .map_err(store_problem)?;
            let record = record.ok_or_else(|| Problem::not_found("operation", &id))?;
            filter.environment = Some(record.environment);
            filter.operation = Some(id);
        }
        Ok(filter)
    }

    /// At most `limit` events after `after`, oldest first.
    pub(crate) fn after(&self, app: &App, after: EventId, limit: usize) -> Result<Found, Problem> {
        let mut found = self.look(app, after, limit)?;
        if let Some(operation) = &self.operation {
            found
                .events
                .retain(|event| event.operation.as_ref() == Some(operation));
        }
        Ok(found)
    }

    fn look(&self, app: &App, after: EventId, limit: usize) -> Result<Found, Problem> {
        let store = &app.store;
        let Some(environment) = &self.environment else {
            let key = EventRecord::key_of(after);
            let page: Vec<EventRecord> =
                store.page(b"", Some(&key), limit).map_err(store_problem)?;
            let events: Vec<Event> = page.into_iter().map(|record| record.0).collect();
            return Ok(Found {
                seen: events.last().map_or(after, |event| event.id),
                more: events.len() == limit,
                events,
            });
        };
        let key = EventIndexRecord::key_of(environment, after);
        let page: Vec<EventIndexRecord> = store
            .page(&EventIndexRecord::prefix(environment), Some(&key), limit)
            .map_err(store_problem)?;
        let mut events = Vec::with_capacity(page.len());
        for entry in &page {
            let record: Option<EventRecord> = store
                .get(&EventRecord::key_of(entry.event))
                .map_err(store_problem)?;
            // Trimmed in the meantime, when there is none.
            events.extend(record.map(|record| record.0));
        }
        Ok(Found {
            seen: page.last().map_or(after, |entry| entry.event),
            more: page.len() == limit,
            events,
        })
    }
}

/// The newest event of all.
pub(crate) fn newest(app: &App) -> Result<EventId, Problem> {
    let last: Vec<EventRecord> = app.store.page_back(b"", None, 1).map_err(store_problem)?;
    Ok(last.first().map_or(EventId(0), |record| record.0.id))
}
