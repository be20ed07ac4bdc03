//! The way to each host's agent, and what is told when it is lost.

use super::labels::mend_soon;
use crate::app::{App, store_problem};
use crate::links::local_proxy;
use crate::{ControllerConfig, ControllerError};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_fleet::Dialer;
use beanpole_fleet::bootstrap::Paths;
use beanpole_fleet::ssh::{self, Target};
use beanpole_protocol::HostId;
use beanpole_protocol::api::SshAddress;
use beanpole_protocol::event::Severity;
use beanpole_store::model::{HostRecord, JumpRecord};
use beanpole_store::{StoreError, Tx};
use std::sync::Arc;

/// Starts the links to every host and to the proxy on this machine.
pub(crate) async fn start_links(
    app: &App,
    config: &ControllerConfig,
) -> Result<(), ControllerError> {
    let store = app.store.clone();
    let hosts: Vec<HostRecord> = tokio::task::spawn_blocking(move || store.list())
        .await
        .map_err(|error| ControllerError::Engine(error.to_string()))??;
    for host in &hosts {
        let dialer = match (&config.local_agent, host.local) {
            (Some(socket), true) => Some(Dialer::local(socket)),
            (None, true) => None,
            (_, false) => target(app, host).map(dialer),
        };
        match dialer {
            Some(dialer) => app.links.start_host(app, &host.id, dialer),
            None => tracing::warn!(host = %host.name, "there is no way to this host"),
        }
        let edge = host.edge.as_ref().map(|_| host.name.as_str());
        app.links.set_edge(app, &host.id, edge).await;
    }
    for (number, socket) in config.local_proxies.iter().enumerate() {
        let name = local_proxy(number);
        app.links.start_proxy(app, &name, Dialer::local(socket));
    }
    Ok(())
}

pub(super) fn dialer(target: Target) -> Dialer {
    Dialer::ssh(target, Paths::default().socket().display().to_string())
}

/// The way to a host's agent, with the controller's own key.
pub(super) fn target(app: &App, host: &HostRecord) -> Option<Target> {
    Some(Target {
        ssh: SshAddress {
            user: Paths::default().user,
            ..host.ssh.clone()?
        },
        host_key: pinned(host.host_key.as_deref(), host.fingerprint.as_deref()?),
        credential: app.controller_key.credential(),
        jump: host.jump.as_ref().map(|jump| Arc::new(bastion(app, jump))),
    })
}

pub(super) fn bastion(app: &App, jump: &JumpRecord) -> Target {
    Target {
        ssh: jump.ssh.clone(),
        host_key: pinned(Some(&jump.host_key), &jump.fingerprint),
        credential: app.controller_key.credential(),
        jump: None,
    }
}

fn pinned(algorithm: Option<&str>, fingerprint: &str) -> ssh::HostKey {
    ssh::HostKey {
        algorithm: algorithm
            .filter(|algorithm| !algorithm.is_empty())
            .map(str::to_owned),
        fingerprint: fingerprint.to_owned(),
    }
}

/// Writes down which agent a host has, and, with an event, that it belongs to another controller
/// or to this one again. The disk is not waited for.
pub(crate) fn note_whose(app: &App, host: &HostId) {
    let (app, host) = (app.clone(), host.clone());
    tokio::task::spawn_blocking(move || {
        let written = app.store.update(|tx| {
            // What it says by now: of two such writes the one that was begun first may come last.
            let Some((agent, taken)) = app.links.whose(&host) else {
                return Ok(());
            };
            let Some(before) = tx.get::<HostRecord>(&HostRecord::key_of(&host))? else {
                return Ok(());
            };
            let mut record = before.clone();
            if taken.is_none() && agent.is_some() {
                record.agent = agent;
            }
            record.taken = taken;
            if record == before {
                return Ok(());
            }
            tx.put(&record)?;
            let name = &record.name;
            let now = clock::now();
            let draft = match (&before.taken, &record.taken) {
                (None, Some(owner)) => Draft::new(
                    Severity::Error,
                    "host-taken-over",
                    format!("Host {name} belongs to the controller {} now. What it held for this one is lost.", owner.controller),
                    now,
                ),
                (Some(_), None) => Draft::new(
                    Severity::Info,
                    "host-ours-again",
                    format!("Host {name} belongs to this controller again."),
                    now,
                ),
                _ => return Ok(()),
            };
            emit(tx, draft.host(Some(&host)))?;
            Ok::<_, StoreError>(())
        });
        match written {
            Ok(()) => app.tell_news(),
            Err(error) => {
                app.links.forget_whose(&host);
                store_problem(error);
            }
        }
    });
}

/// Tells, by an event, that a host cannot take its orders (`Some(why)`), or does again. The disk is not
/// waited for.
pub(crate) fn note_orders(app: &App, host: &HostId, trouble: Option<String>) {
    tell(app, host, move |_, record| {
        Ok(match trouble {
            Some(why) => Draft::new(
                Severity::Warn,
                "host-cannot-take-orders",
                format!("Host {} cannot take orders: {why}", record.name),
                clock::now(),
            ),
            None => Draft::new(
                Severity::Info,
                "host-takes-orders",
                format!("Host {} takes orders again.", record.name),
                clock::now(),
            ),
        })
    });
}

/// Tells, by an event, that a host was lost (`Some(why)`) or is back: then what waits for it is mended. The disk
/// is not waited for.
pub(crate) fn note_connection(app: &App, host: &HostId, lost: Option<String>) {
    tell(app, host, move |tx, record| {
        Ok(match lost {
            Some(why) => Draft::new(
                Severity::Warn,
                "host-disconnected",
                format!("The connection to host {} is lost: {why}", record.name),
                clock::now(),
            ),
            None => {
                mend_soon(tx)?;
                Draft::new(
                    Severity::Info,
                    "host-connected",
                    format!("Host {} is connected again.", record.name),
                    clock::now(),
                )
            }
        })
    });
}

/// Writes an event about a host that is there still, and what goes with it.
fn tell(
    app: &App,
    host: &HostId,
    event: impl FnOnce(&mut Tx<'_>, &HostRecord) -> Result<Draft, StoreError> + Send + 'static,
) {
    let (app, host) = (app.clone(), host.clone());
    tokio::task::spawn_blocking(move || {
        let written = app.store.update(|tx| {
            if let Some(record) = tx.get::<HostRecord>(&HostRecord::key_of(&host))? {
                let draft = event(tx, &record)?;
                emit(tx, draft.host(Some(&host)))?;
            }
            Ok::<_, StoreError>(())
        });
        match written {
            Ok(()) => {
                app.wake();
                app.tell_news();
            }
            Err(error) => {
                store_problem(error);
            }
        }
    });
}
