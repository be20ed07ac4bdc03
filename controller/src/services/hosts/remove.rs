//! Removing a host, with all that it got from Beanpole.

use super::{agent_problem, record};
use crate::app::{App, Refused, store_problem};
use crate::services::edges;
use beanpole_daemon::clock;
use beanpole_engine::{Draft, HostObserved, emit, with_lingering};
use beanpole_fleet::{ClientError, chain};
use beanpole_protocol::agent::InstancePhase;
use beanpole_protocol::api::HostRemoved;
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{HostId, HostName, InstanceId, RequestId};
use beanpole_store::model::{EnvironmentRecord, HostOrdersRecord, HostRecord, LingererRecord};
use beanpole_store::{Store, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Which hosts are being removed, by how many calls each. The mark in a host's record is for the engine;
/// this says whether anybody is still at it.
#[derive(Debug, Default)]
pub(crate) struct Removals(Mutex<BTreeMap<HostId, u32>>);

/// One call's part in the removal of a host.
struct Removal<'a> {
    all: &'a Removals,
    host: HostId,
}

impl Removals {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<HostId, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a host is being removed.
    pub(super) fn under_way(&self, host: &HostId) -> bool {
        self.counts().contains_key(host)
    }

    fn begin(&self, host: &HostId) -> Removal<'_> {
        *self.counts().entry(host.clone()).or_default() += 1;
        Removal {
            all: self,
            host: host.clone(),
        }
    }
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        let mut counts = self.all.counts();
        if let Some(count) = counts.get_mut(&self.host) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.host);
            }
        }
    }
}

/// Takes back the marks of removals that ended with the process before this one.
pub(crate) fn end_removals(store: &Store) -> Result<(), StoreError> {
    store.update(|tx| {
        for mut host in tx.list::<HostRecord>()? {
            if !host.removing {
                continue;
            }
            host.removing = false;
            tx.put(&host)?;
            let message = format!(
                "Host {name} was not removed: the controller stopped meanwhile. To remove it: \
                 beanpole host remove {name}\nWhere its agent had begun, nothing of it may be left there to \
                 answer; then add --force, which forgets the host.",
                name = host.name
            );
            let draft = Draft::new(Severity::Warn, "host-not-removed", message, clock::now());
            emit(tx, draft.host(Some(&host.id)))?;
        }
        Ok(())
    })
}

/// Removes a host and all that it got from Beanpole. With `force` also one that has instances or
/// cannot be asked: then it is only forgotten.
pub(crate) async fn remove(
    app: &App,
    request_id: RequestId,
    name: HostName,
    force: bool,
) -> Result<HostRemoved, Problem> {
    let wanted = name.clone();
    let host = app.blocking(move |app| record(app, &wanted)).await?;
    let removal = app.removals.begin(&host.id);
    let id = host.id.clone();
    let removed = remove_begun(app, request_id, host, force).await;
    drop(removal);
    if removed.is_err() && !app.removals.under_way(&id) {
        // Where this fails, `host resume` takes the mark back.
        let _ = app.blocking(move |app| unmark_removing(app, &id)).await;
    }
    removed
}

async fn remove_begun(
    app: &App,
    request_id: RequestId,
    host: HostRecord,
    force: bool,
) -> Result<HostRemoved, Problem> {
    let name = host.name.clone();
    let id = host.id.clone();
    app.blocking(move |app| mark_removing(app, &id, force))
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
            return Err(agent_problem(&name, &error).hint(format!(
                "Try again when it is reachable, or forget it and leave everything on it: beanpole host remove {name} --force"
            )));
        }
    };
    app.links.forget_host(&host.id).await;
    let id = host.id.clone();
    if host.edge.is_some() {
        edges::forget(app, name.as_str());
    }
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
    // The engine may have made out orders for it until then.
    app.links.forget_host(&id).await;
    app.observations.change(|seen| seen.hosts.remove(&id));
    Ok(removed)
}

/// What runs on there, as far as is known: what shall run, and what its agent said last.
fn left_on(
    app: &App,
    host: &HostId,
    seen: Option<HostObserved>,
) -> Result<Vec<InstanceId>, Problem> {
    let instances = with_lingering(&app.store).map_err(store_problem)?;
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

fn mark_removing(app: &App, id: &HostId, force: bool) -> Result<(), Problem> {
    app.store.update(|tx| {
        let Some(mut host) = tx.get::<HostRecord>(&HostRecord::key_of(id))? else {
            return Err(Refused::from(Problem::conflict(
                "host-removed",
                "The host was removed in the meantime.",
            )));
        };
        let name = &host.name;
        if host.local {
            return Err(Refused::from(
                Problem::conflict(
                    "host-is-local",
                    "The controller's own machine cannot be removed.",
                )
                .hint("Keep instances off it: beanpole host drain local"),
            ));
        }
        let instances = with_lingering(tx)?;
        let held = instances.iter().filter(|i| i.host == host.id).count();
        if held > 0 && !force {
            let lingering: Vec<LingererRecord> = tx.list()?;
            let mut lingering = lingering
                .into_iter()
                .filter(|one| one.instance.host == host.id);
            let hint = match lingering.next() {
                None => format!("Move them elsewhere first: beanpole host drain {name}"),
                Some(one) => {
                    let key = EnvironmentRecord::key_of(&one.instance.environment);
                    let of: Option<EnvironmentRecord> = tx.get(&key)?;
                    let of = of.map_or_else(|| "ENV".to_owned(), |of| of.name.to_string());
                    let id = &one.instance.id;
                    format!(
                        "Move them elsewhere first: beanpole host drain {name}\n{id} only lingers \
                         until its connections close; to end that now: beanpole cut {of}"
                    )
                }
            };
            let text = format!("The host `{name}` holds {held} instances.");
            return Err(Problem::conflict("host-in-use", text).hint(hint).into());
        }
        host.removing = true;
        tx.put(&host)?;
        Ok(())
    })?;
    app.wake();
    Ok(())
}

fn unmark_removing(app: &App, id: &HostId) -> Result<(), Problem> {
    app.store.update(|tx| {
        let host: Option<HostRecord> = tx.get(&HostRecord::key_of(id))?;
        if let Some(mut host) = host.filter(|host| host.removing) {
            host.removing = false;
            tx.put(&host)?;
        }
        Ok::<_, Refused>(())
    })?;
    app.wake();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::local;
    use super::*;
    use beanpole_store::Record;

    #[test]
    fn a_removal_ends_with_the_process() {
        let store = Store::in_memory();
        let host = HostRecord {
            removing: true,
            ..local::record(HostId::from_bits(1), clock::now())
        };
        store.update(|tx| tx.put(&host)).expect("memory");
        end_removals(&store).expect("memory");
        let after: HostRecord = store.get(&host.key()).expect("memory").expect("there");
        assert!(!after.removing);
        let told = store.commits();
        end_removals(&store).expect("memory");
        assert_eq!(store.commits(), told, "once");
    }

    #[test]
    fn a_host_is_being_removed_until_the_last_call_is_over() {
        let removals = Removals::default();
        let host = HostId::from_bits(1);
        let first = removals.begin(&host);
        let second = removals.begin(&host);
        drop(first);
        assert!(removals.under_way(&host));
        drop(second);
        assert!(!removals.under_way(&host));
    }
}
