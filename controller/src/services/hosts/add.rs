//! Adding a host, or repairing one.

use super::labels::{check_labels, mend_soon};
use super::{all, get, same_place};
use crate::app::{App, Refused};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_fleet::bootstrap::{self, HostSetup, Progress, Standing};
use beanpole_fleet::chain;
use beanpole_fleet::ssh::{self, Credential, Target};
use beanpole_protocol::api::{AddHost, Host, Jump, SshAddress};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{HostId, HostName, RequestId};
use beanpole_store::model::{HostRecord, JumpRecord};
use std::sync::Arc;

/// Adds a host, or repairs it: installs the agent, pins its key, starts its link.
pub(crate) async fn add(app: &App, request_id: RequestId, body: AddHost) -> Result<Host, Problem> {
    let name = match &body.name {
        Some(name) => name.clone(),
        None => HostName::new(body.ssh.address.clone()).map_err(|error| {
            Problem::invalid("invalid-host-name", format!("{error}."))
                .hint("Give it a name of its own: --name NAME")
        })?,
    };
    let hosts = app.blocking(all).await?;
    let known = known_host(&hosts, &name, &body.ssh)?;
    check_labels(&body.labels)?;
    let jump = jump_target(body.jump.as_ref())?;
    let admin = Target {
        ssh: body.ssh.clone(),
        host_key: ssh::HostKey::pinned(body.host_key.clone()),
        credential: Credential::admin(&body.admin).map_err(|error| key_problem(&error))?,
        jump: jump.map(Arc::new),
    };
    let instance_address = resolve(
        body.instance_address
            .as_deref()
            .unwrap_or(&body.ssh.address),
    )
    .await?;
    let setup = HostSetup {
        take_over: body.take_over,
        ..HostSetup::new(
            admin,
            app.identity.clone(),
            app.controller_key.clone(),
            app.executables.clone(),
        )
    };
    let progress = |step| match step {
        Progress::Uploading { .. } => {
            tracing::debug!(host = %setup.admin.ssh, ?step, "setting up");
        }
        step => tracing::info!(host = %setup.admin.ssh, ?step, "setting up"),
    };
    let shown = body.host_key.clone();
    let admit = |standing: &Standing| {
        is_new_or_known(&hosts, known.as_ref(), &setup.admin.ssh, &shown, standing)
    };
    let added = bootstrap::add_host(&setup, &progress, &admit)
        .await
        .map_err(|error| error.problem())?;
    let record = HostRecord {
        id: known.as_ref().map_or_else(
            || HostId::from_bits(clock::random_bits()),
            |known| known.id.clone(),
        ),
        name,
        local: false,
        ssh: Some(body.ssh),
        jump: added.target.jump.as_ref().map(|jump| JumpRecord {
            ssh: jump.ssh.clone(),
            host_key: jump.host_key.algorithm.clone().unwrap_or_default(),
            fingerprint: jump.host_key.fingerprint.clone(),
        }),
        host_key: added.host_key.algorithm.clone(),
        fingerprint: Some(added.host_key.fingerprint.clone()),
        instance_address,
        // Repairing a host without naming labels keeps those it has.
        labels: match &known {
            Some(known) if body.labels.is_empty() => known.labels.clone(),
            _ => body.labels,
        },
        draining: known.as_ref().is_some_and(|known| known.draining),
        removing: false,
        agent: added.report.agent.clone(),
        taken: None,
        added_at: known
            .as_ref()
            .map_or_else(clock::now, |known| known.added_at),
    };
    let taken_from = added.taken_from;
    let (record, mut host) = app
        .blocking(move |app| {
            let again = known.is_some();
            save(app, &request_id, &record, again, taken_from.as_deref())?;
            app.observations.change(|seen| {
                let now = app.time.now();
                seen.register_host(&record.id, now);
                seen.host_is_ours(&record.id);
                seen.host_report(&record.id, added.report, now);
            });
            app.links.start_host(app, &record.id, added.dialer);
            let host = get(app, &record.name)?;
            Ok((record, host))
        })
        .await?;
    host.warnings.extend(added.notes);
    tracing::info!(host = %record.name, id = %record.id, "host added");
    app.wake();
    app.tell_news();
    Ok(host)
}

/// The host that is to be repaired, if it is one. One whose agent is known may have moved: it has to
/// prove that it is the same.
fn known_host(
    hosts: &[HostRecord],
    name: &HostName,
    ssh: &SshAddress,
) -> Result<Option<HostRecord>, Problem> {
    if let Some(host) = hosts.iter().find(|host| host.name == *name) {
        if same_place(host.ssh.as_ref(), ssh) || (host.agent.is_some() && !host.local) {
            return Ok(Some(host.clone()));
        }
        return Err(another_of_that_name(name));
    }
    match hosts.iter().find(|host| same_place(host.ssh.as_ref(), ssh)) {
        Some(host) => Err(Problem::conflict(
            "host-exists",
            format!("{ssh} is the host `{}` already.", host.name),
        )
        .hint(format!("Repair it under its name: --name {}", host.name))),
        None => Ok(None),
    }
}

fn another_of_that_name(name: &HostName) -> Problem {
    Problem::conflict(
        "host-exists",
        format!("There is another host `{name}` already."),
    )
    .hint("Choose another name: --name NAME")
}

/// Refuses a machine that is here under another name: two links to one agent would undo each
/// other's orders. It is known by its agent's id, or, where its agent is of before there were ids, by
/// our key there and its own.
fn is_new_or_known(
    hosts: &[HostRecord],
    known: Option<&HostRecord>,
    ssh: &SshAddress,
    shown: &str,
    standing: &Standing,
) -> Result<(), Problem> {
    if let Some(known) = known
        && !same_place(known.ssh.as_ref(), ssh)
        && (standing.agent.is_none() || standing.agent != known.agent)
    {
        return Err(another_of_that_name(&known.name));
    }
    let other = hosts
        .iter()
        .filter(|host| known.is_none_or(|known| known.id != host.id))
        .find(|host| match (&standing.agent, &host.agent) {
            (Some(agent), Some(theirs)) => agent == theirs,
            _ => standing.our_key == Some(true) && host.fingerprint.as_deref() == Some(shown),
        });
    let Some(other) = other else { return Ok(()) };
    let name = &other.name;
    let (at, hint) = match &other.ssh {
        None => (
            "this controller's own machine".to_owned(),
            "It needs no adding; see it: beanpole host show local".to_owned(),
        ),
        Some(at) => (
            at.to_string(),
            format!(
                "To reach it by this address from now on, add it under its name: --name {name}. Or remove that one first: beanpole host remove {name}"
            ),
        ),
    };
    Err(Problem::conflict(
        "host-exists",
        format!(
            "{ssh} is the host `{name}` already ({at}): its agent is the same. Nothing was changed."
        ),
    )
    .hint(hint))
}

fn save(
    app: &App,
    request_id: &RequestId,
    host: &HostRecord,
    again: bool,
    taken_from: Option<&str>,
) -> Result<(), Problem> {
    app.store.update(|tx| {
        let hosts: Vec<HostRecord> = tx.list()?;
        if hosts
            .iter()
            .any(|other| other.name == host.name && other.id != host.id)
        {
            return Err(Refused::from(Problem::conflict(
                "host-exists",
                format!("The host `{}` was added in the meantime.", host.name),
            )));
        }
        tx.put(host)?;
        mend_soon(tx)?;
        let (code, done) = if again {
            ("host-repaired", "repaired")
        } else {
            ("host-added", "added")
        };
        let message = match taken_from {
            None => format!("Host {} {done}.", host.name),
            Some(whose) => format!("Host {} {done}, taken over from {whose}.", host.name),
        };
        emit(
            tx,
            Draft::new(Severity::Info, code, message, clock::now())
                .request(request_id)
                .host(Some(&host.id)),
        )?;
        Ok(())
    })?;
    Ok(())
}

pub(super) fn jump_target(jump: Option<&Jump>) -> Result<Option<Target>, Problem> {
    let Some(jump) = jump else { return Ok(None) };
    Ok(Some(Target {
        ssh: jump.ssh.clone(),
        host_key: ssh::HostKey::pinned(jump.host_key.clone()),
        credential: Credential::admin(&jump.admin).map_err(|error| key_problem(&error))?,
        jump: None,
    }))
}

fn key_problem(error: &ssh::KeyError) -> Problem {
    Problem::new(
        422,
        "key-unusable",
        "The key cannot be used",
        format!("{}.", chain(error)),
    )
    .hint("Give another one: --identity FILE, or use an ssh-agent: --agent")
}

/// The IP address behind a name, IPv4 first.
async fn resolve(name: &str) -> Result<String, Problem> {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let wrong = |why: String| {
        Problem::new(
            422,
            "address-unknown",
            "The address cannot be resolved",
            format!("`{name}` cannot be resolved: {why}."),
        )
        .hint("Give the address at which the proxy reaches the host: --instance-address ADDRESS")
    };
    let found: Vec<_> = tokio::net::lookup_host((bare, 0))
        .await
        .map_err(|error| wrong(error.to_string()))?
        .map(|address| address.ip())
        .collect();
    found
        .iter()
        .find(|ip| ip.is_ipv4())
        .or(found.first())
        .map(ToString::to_string)
        .ok_or_else(|| wrong("it has no address".to_owned()))
}
