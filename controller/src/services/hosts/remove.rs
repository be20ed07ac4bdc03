//! Removing a host, with all that it got from Beanpole.

use super::{agent_problem, record_in};
use crate::app::{App, Refused, store_problem};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_fleet::{ClientError, chain};
use beanpole_protocol::api::HostRemoved;
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{HostName, RequestId};
use beanpole_store::model::{HostOrdersRecord, HostRecord, InstanceRecord};

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
    app.observations.change(|seen| seen.hosts.remove(&id));
    let removed = HostRemoved {
        name: name.clone(),
        uninstalled,
    };
    app.blocking(move |app| {
        app.store
            .update(|tx| {
                tx.delete::<HostRecord>(&HostRecord::key_of(&host.id))?;
                tx.delete::<HostOrdersRecord>(&HostOrdersRecord::key_of(&host.id))?;
                let message = format!("Host {name} removed.");
                emit(
                    tx,
                    Draft::new(Severity::Info, "host-removed", message, clock::now())
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
