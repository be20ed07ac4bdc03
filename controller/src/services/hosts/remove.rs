//! Removing a host, with all that it got from Beanpole.

use super::{agent_problem, record_in};
use crate::app::{App, Refused, store_problem};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, HostObserved, emit};
use beanpole_fleet::{ClientError, chain};
use beanpole_protocol::agent::InstancePhase;
use beanpole_protocol::api::HostRemoved;
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{HostId, HostName, InstanceId, RequestId};
use beanpole_store::model::{HostOrdersRecord, HostRecord, InstanceRecord};
use std::collections::BTreeSet;

/// Removes a host and all that it got from Beanpole. With `force` also one that has instances or
/// cannot be asked: then it is only forgotten.
pub(crate) async fn remove(
    app: &App,
    request_id: RequestId,
    name: HostName,
    force: bool,
) -> Result<HostRemoved, Problem> {
    let wanted = name.clone();
    let host = app
        .blocking(move |app| mark_removing(app, &wanted, force))
        .await?;
    let uninstalled = match app.links.client(&host.id) {
        None => Err(ClientError::NotConnected),
        Some(client) => client.uninstall().await,
    };
    let uninstalled = match uninstalled {
        Ok(uninstalled) => Some(uninstalled),
        Err(error) if force => {
            tracing::warn!(host = %name, error = chain(&error), "the host is forgotten without having been asked");
            None
        }
        Err(error) => {
            let undone = name.clone();
            app.blocking(move |app| unmark_removing(app, &undone))
                .await?;
            return Err(agent_problem(&name, &error).hint(format!(
                "Try again when it is reachable, or forget it and leave everything on it: beanpole host remove {name} --force"
            )));
        }
    };
    app.links.forget_host(&host.id).await;
    let id = host.id.clone();
    let seen = app.observations.change(|seen| seen.hosts.remove(&id));
    let left = match uninstalled {
        Some(_) => Vec::new(),
        None => {
            let id = host.id.clone();
            app.blocking(move |app| left_on(app, &id, seen)).await?
        }
    };
    let removed = HostRemoved {
        name: name.clone(),
        uninstalled,
        left: left.clone(),
    };
    app.blocking(move |app| {
        app.store
            .update(|tx| {
                tx.delete::<HostRecord>(&HostRecord::key_of(&host.id))?;
                tx.delete::<HostOrdersRecord>(&HostOrdersRecord::key_of(&host.id))?;
                let (severity, message) = if left.is_empty() {
                    (Severity::Info, format!("Host {name} removed."))
                } else {
                    let ids: Vec<&str> = left.iter().map(|id| id.as_str()).collect();
                    let text = format!(
                        "Host {name} was forgotten without having been asked. What runs there goes on, \
                         and nobody ends it any more: {}.",
                        ids.join(", ")
                    );
                    (Severity::Warn, text)
                };
                emit(
                    tx,
                    Draft::new(severity, "host-removed", message, clock::now())
                        .request(&request_id)
                        .host(Some(&host.id)),
                )?;
                Ok(())
            })
            .map_err(store_problem)?;
        app.wake();
        app.tell_news();
        Ok(())
    })
    .await?;
    Ok(removed)
}

/// What runs on there, as far as is known: what shall run, and what its agent said last.
fn left_on(
    app: &App,
    host: &HostId,
    seen: Option<HostObserved>,
) -> Result<Vec<InstanceId>, Problem> {
    let instances: Vec<InstanceRecord> = app.store.list().map_err(store_problem)?;
    let wanted = instances
        .into_iter()
        .filter(|instance| instance.host == *host && instance.run)
        .map(|instance| instance.id);
    let said = seen
        .and_then(|seen| seen.report)
        .into_iter()
        .flat_map(|report| report.instances)
        .filter(|seen| seen.phase != InstancePhase::Stopped)
        .map(|seen| seen.id);
    let left: BTreeSet<InstanceId> = wanted.chain(said).collect();
    Ok(left.into_iter().collect())
}

fn mark_removing(app: &App, name: &HostName, force: bool) -> Result<HostRecord, Problem> {
    let host = app.store.update(|tx| {
        let mut host = record_in(tx, name)?;
        if host.local {
            return Err(Refused::from(
                Problem::conflict(
                    "host-is-local",
                    "The controller's own machine cannot be removed.",
                )
                .hint("Keep instances off it: beanpole host drain local"),
            ));
        }
        let instances: Vec<InstanceRecord> = tx.list()?;
        let held = instances.iter().filter(|i| i.host == host.id).count();
        if held > 0 && !force {
            return Err(Problem::conflict(
                "host-in-use",
                format!("The host `{name}` holds {held} instances."),
            )
            .hint(format!(
                "Move them elsewhere first: beanpole host drain {name}"
            ))
            .into());
        }
        host.removing = true;
        tx.put(&host)?;
        Ok(host)
    })?;
    app.wake();
    Ok(host)
}

fn unmark_removing(app: &App, name: &HostName) -> Result<(), Problem> {
    app.store.update(|tx| {
        let mut host = record_in(tx, name)?;
        host.removing = false;
        tx.put(&host)?;
        Ok::<_, Refused>(())
    })?;
    Ok(())
}
