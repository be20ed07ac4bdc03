//! Giving a host the controller's executable.

use super::{agent_problem, get, record};
use crate::app::{App, store_problem};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_fleet::{ClientError, chain};
use beanpole_protocol::api::Host;
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{HostName, RequestId};
use std::time::Duration;

/// How long an upgraded agent may take to come back.
const UPGRADE_LIMIT: Duration = Duration::from_mins(2);

/// Gives a host the controller's executable. Apps run on.
pub(crate) async fn upgrade(
    app: &App,
    request_id: RequestId,
    name: HostName,
) -> Result<Host, Problem> {
    let wanted = name.clone();
    let host = app.blocking(move |app| record(app, &wanted)).await?;
    if host.local {
        return Err(Problem::conflict(
            "host-is-local",
            "The agent on the controller's own machine is of the same executable.",
        )
        .hint("Install the new executable and start `beanpole up` again."));
    }
    let client = app
        .links
        .client(&host.id)
        .ok_or_else(|| agent_problem(&name, &ClientError::NotConnected))?;
    let report = client
        .report()
        .await
        .map_err(|error| agent_problem(&name, &error))?;
    let executable = app
        .executables
        .find("Linux", &report.facts.arch)
        .await
        .map_err(|error| {
            Problem::new(
                422,
                "no-executable",
                "There is nothing to install on such a machine",
                format!("{}.", chain(&error)),
            )
            .hint(error.hint())
        })?;
    if report.agent_digest.as_ref() != Some(&executable.digest) {
        client
            .upgrade(&executable, UPGRADE_LIMIT, &|_, _| {})
            .await
            .map_err(|error| agent_problem(&name, &error))?;
    }
    app.blocking(move |app| {
        let message = format!("Host {name} has the agent {}.", executable.version);
        let draft = Draft::new(Severity::Info, "host-upgraded", message, clock::now())
            .request(&request_id)
            .host(Some(&host.id));
        app.store
            .update(|tx| emit(tx, draft))
            .map_err(store_problem)?;
        app.tell_news();
        get(app, &name)
    })
    .await
}
