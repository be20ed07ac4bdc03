//! Host keys: asking for one, accepting a changed one.

use super::add::jump_target;
use super::reach::{bastion, dialer, target};
use super::{all, get, record, record_in, same_place};
use crate::app::{App, Refused};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_fleet::bootstrap;
use beanpole_fleet::chain;
use beanpole_fleet::ssh::{self, Options};
use beanpole_protocol::api::{AcceptHostKey, Host, HostKey, ProbeHost};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{HostName, RequestId};

/// Asks a host for its key, without trusting it.
pub(crate) async fn probe(app: &App, body: ProbeHost) -> Result<HostKey, Problem> {
    let jump = jump_target(body.jump.as_ref())?;
    let shown = ssh::probe(&body.ssh, jump.as_ref(), &Options::default())
        .await
        .map_err(|error| bootstrap::ssh_problem(&error, format!("{}.", chain(&error))))?;
    let hosts = app.blocking(all).await?;
    let known_as = hosts
        .into_iter()
        .find(|host| same_place(host.ssh.as_ref(), &body.ssh))
        .map(|host| host.name);
    Ok(HostKey {
        algorithm: shown.algorithm.unwrap_or_default(),
        fingerprint: shown.fingerprint,
        known_as,
    })
}

/// Pins another key, if the host really shows it.
pub(crate) async fn accept_key(
    app: &App,
    request_id: RequestId,
    name: HostName,
    body: AcceptHostKey,
) -> Result<Host, Problem> {
    let wanted = name.clone();
    let host = app.blocking(move |app| record(app, &wanted)).await?;
    let Some(address) = host.ssh.clone() else {
        return Err(Problem::conflict(
            "host-is-local",
            "The controller's own machine has no host key.",
        ));
    };
    let jump = host.jump.as_ref().map(|jump| bastion(app, jump));
    let shown = ssh::probe(&address, jump.as_ref(), &Options::default())
        .await
        .map_err(|error| bootstrap::ssh_problem(&error, format!("{}.", chain(&error))))?;
    if shown.fingerprint != body.host_key {
        return Err(Problem::conflict(
            "host-key-differs",
            format!(
                "The host `{name}` shows the key {}, not {}. The pinned key stays {}.",
                shown.fingerprint,
                body.host_key,
                host.fingerprint.as_deref().unwrap_or("unknown")
            ),
        )
        .hint("Compare with the fingerprint that the host itself tells: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"));
    }
    app.blocking(move |app| {
        let host = app.store.update(|tx| {
            let mut host = record_in(tx, &name)?;
            host.host_key.clone_from(&shown.algorithm);
            host.fingerprint = Some(shown.fingerprint.clone());
            tx.put(&host)?;
            let message = format!("The key {} of host {name} is accepted.", shown.fingerprint);
            emit(
                tx,
                Draft::new(Severity::Warn, "host-key-accepted", message, clock::now())
                    .request(&request_id)
                    .host(Some(&host.id)),
            )?;
            Ok::<_, Refused>(host)
        })?;
        if let Some(target) = target(app, &host) {
            app.links.start_host(app, &host.id, dialer(target));
        }
        app.wake();
        app.tell_news();
        get(app, &name)
    })
    .await
}
