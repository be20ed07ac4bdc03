//! What callers may ask for. Each service checks the call, writes the operation with its first event
//! in one transaction and answers with it; the next turn carries it on.

pub(crate) mod content;
mod deploy;
mod domains;
mod environments;
mod layers;
mod operation;
mod problems;
mod queue;
mod rollback;
mod rules;
mod settings;
mod swap;

use crate::read::{Reader, find_environment};
use crate::{Call, Engine, Fault};
use beanpole_protocol::api::{self, EnvironmentStatus, Tier};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{ApplicationName, EnvironmentName, VersionLabel};
use beanpole_store::model::{ApplicationRecord, EnvironmentRecord, OperationRecord, VersionRecord};

pub use content::{Closing, OwnPage};
pub use deploy::Target;
pub use environments::write_application;
pub(crate) use operation::NewOperation;
pub(crate) use problems::no_release;

impl Engine {
    fn answer(
        &self,
        operation: Result<OperationRecord, Fault>,
        call: &Call<'_>,
    ) -> Result<api::Operation, Problem> {
        let operation = operation.map_err(Problem::from)?;
        self.operation(&operation.id, call.observed, call.now)
    }
}

/// The environment, or a problem that says there is none.
pub(crate) fn existing(
    reader: &impl Reader,
    name: &EnvironmentName,
) -> Result<EnvironmentRecord, Fault> {
    find_environment(reader, name)?.ok_or_else(|| {
        Problem::not_found("environment", name)
            .hint("`beanpole list` shows the environments there are.")
            .into()
    })
}

/// Refuses an environment that gets no requests from outside, or is on its way out.
fn gets_requests(environment: &EnvironmentRecord) -> Result<(), Problem> {
    let name = &environment.name;
    if environment.tier == Tier::Worker {
        let text = format!("`{name}` is a worker: it gets no requests from outside.");
        return Err(Problem::conflict("no-hostname", text));
    }
    if environment.status == EnvironmentStatus::Terminating {
        let text = format!("`{name}` is being taken down.");
        return Err(Problem::conflict("not-ready", text));
    }
    Ok(())
}

/// The environment, when no operation runs on it or is about to.
fn idle(reader: &impl Reader, name: &EnvironmentName) -> Result<EnvironmentRecord, Fault> {
    let environment = existing(reader, name)?;
    free(reader, &environment, false)?;
    Ok(environment)
}

/// Refuses an environment on which an operation runs, or is about to. `may_queue`: what is asked for
/// could wait for that.
fn free(
    reader: &impl Reader,
    environment: &EnvironmentRecord,
    may_queue: bool,
) -> Result<(), Fault> {
    let name = &environment.name;
    let (id, is) = match (&environment.operation, &environment.next) {
        (Some(id), _) => (id, "is under way"),
        (None, Some(id)) => (id, "begins just now"),
        (None, None) => return Ok(()),
    };
    let kind = reader
        .one::<OperationRecord>(&OperationRecord::key_of(id))?
        .map_or_else(|| "operation".to_owned(), |op| op.kind.to_string());
    let hint = if may_queue {
        format!(
            "Wait for it to end, have this begin then with `--queue`, or give the other up: \
             `beanpole abort {name}`."
        )
    } else {
        format!("Wait for it to end, or give it up with `beanpole abort {name}`.")
    };
    Err(Problem::conflict(
        "operation-in-progress",
        format!("Another operation ({kind}, {id}) {is} on `{name}`."),
    )
    .hint(hint)
    .into())
}

fn application(reader: &impl Reader, name: &ApplicationName) -> Result<(), Fault> {
    let found: Option<ApplicationRecord> = reader.one(&ApplicationRecord::key_of(name))?;
    found.map(|_| ()).ok_or_else(|| {
        Problem::not_found("application", name)
            .hint(format!("Create it: beanpole app create {name}"))
            .into()
    })
}

fn version(
    reader: &impl Reader,
    application: &ApplicationName,
    label: &VersionLabel,
) -> Result<VersionRecord, Fault> {
    reader
        .one(&VersionRecord::key_of(application, label))?
        .ok_or_else(|| {
            Problem::not_found("version", label)
                .hint(format!(
                    "Application `{application}` has no version of that label; `beanpole deploy --from DIR --label {label}` makes one."
                ))
                .into()
        })
}
