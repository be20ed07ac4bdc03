//! Hosts: probing, adding, draining, upgrading, removing. A room for each; here is what they share.

mod add;
mod drain;
mod key;
mod labels;
mod local;
mod reach;
mod remove;
mod upgrade;
mod view;

pub(crate) use add::add;
pub(crate) use drain::set_draining;
pub(crate) use key::{accept_key, probe};
pub(crate) use labels::set_labels;
pub(crate) use local::{heard_of, register_local};
pub(crate) use reach::{note_connection, note_orders, note_whose, start_links};
pub(crate) use remove::{Removals, end_removals, remove};
pub(crate) use upgrade::upgrade;

use crate::app::{App, Refused, store_problem};
use beanpole_engine::with_lingering;
use beanpole_fleet::{ClientError, chain};
use beanpole_protocol::HostName;
use beanpole_protocol::api::{Host, SshAddress};
use beanpole_protocol::problem::Problem;
use beanpole_store::Tx;
use beanpole_store::model::HostRecord;
use view::view;

/// All hosts, by name.
pub(crate) fn list(app: &App) -> Result<Vec<Host>, Problem> {
    let instances = with_lingering(&app.store).map_err(store_problem)?;
    let hosts = all(app)?;
    Ok(hosts
        .iter()
        .map(|host| view(app, host, &instances))
        .collect())
}

/// One host.
pub(crate) fn get(app: &App, name: &HostName) -> Result<Host, Problem> {
    let instances = with_lingering(&app.store).map_err(store_problem)?;
    Ok(view(app, &record(app, name)?, &instances))
}

pub(super) fn all(app: &App) -> Result<Vec<HostRecord>, Problem> {
    let mut hosts: Vec<HostRecord> = app.store.list().map_err(store_problem)?;
    hosts.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(hosts)
}

pub(super) fn record(app: &App, name: &HostName) -> Result<HostRecord, Problem> {
    all(app)?
        .into_iter()
        .find(|host| host.name == *name)
        .ok_or_else(|| no_host(name))
}

pub(super) fn record_in(tx: &Tx<'_>, name: &HostName) -> Result<HostRecord, Refused> {
    let hosts: Vec<HostRecord> = tx.list()?;
    let found = hosts.into_iter().find(|host| host.name == *name);
    found.ok_or_else(|| no_host(name).into())
}

fn no_host(name: &HostName) -> Problem {
    Problem::not_found("host", name).hint("See which there are: beanpole host list")
}

fn same_place(one: Option<&SshAddress>, other: &SshAddress) -> bool {
    one.is_some_and(|one| one.address == other.address && one.port == other.port)
}

pub(super) fn agent_problem(name: &HostName, error: &ClientError) -> Problem {
    if let ClientError::NotConnected = error {
        return Problem::new(
            503,
            "host-not-connected",
            "The host is not connected",
            format!("There is no connection to the host `{name}` now."),
        )
        .hint(format!("See why: beanpole host show {name}"));
    }
    Problem::new(
        502,
        "agent-failed",
        "The agent did not do it",
        format!(
            "The agent of the host `{name}` did not do it: {}.",
            chain(error)
        ),
    )
}
