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
use beanpole_store::{Record, Store};
use std::sync::Arc;
use std::time::Duration;

/// How long the link to a new host may take: its agent has answered over SSH already.
const LINK_WITHIN: Duration = Duration::from_secs(10);

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
        labels: body.labels,
        no_install: body.no_install,
        draining: false,
        removing: false,
        edge: None,
        agent: added.report.agent.clone(),
        taken: None,
        added_at: clock::now(),
    };
    let taken_from = added.taken_from;
    let record = app
        .blocking(move |app| {
            let again = known.is_some();
            let record = save(
                &app.store,
                &request_id,
                record,
                again,
                taken_from.as_deref(),
            )?;
            app.observations.change(|seen| {
                let now = app.time.now();
                seen.register_host(&record.id, now);
                seen.host_is_ours(&record.id);
                seen.host_report(&record.id, added.report, now);
            });
            app.links.start_host(app, &record.id, added.dialer);
            Ok(record)
        })
        .await?;
    // So that what is asked of the host next finds it connected. Where it takes longer, its state says so.
    if let Some(client) = app.links.client(&record.id) {
        client.connected(LINK_WITHIN).await;
    }
    let name = record.name.clone();
    let mut host = app.blocking(move |app| get(app, &name)).await?;
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

/// The record of a host after its repair. What it was told meanwhile holds: the repair took a while.
fn repaired(now: HostRecord, repair: HostRecord) -> HostRecord {
    HostRecord {
        draining: now.draining,
        removing: now.removing,
        edge: now.edge,
        added_at: now.added_at,
        // A repair that names no labels keeps those it has.
        labels: if repair.labels.is_empty() {
            now.labels
        } else {
            repair.labels
        },
        ..repair
    }
}

fn save(
    store: &Store,
    request_id: &RequestId,
    host: HostRecord,
    again: bool,
    taken_from: Option<&str>,
) -> Result<HostRecord, Problem> {
    let saved = store.update(|tx| {
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
        let host = if again {
            let Some(now) = tx.get::<HostRecord>(&host.key())? else {
                return Err(Problem::conflict(
                    "host-removed",
                    format!(
                        "The host `{}` was removed while it was repaired.",
                        host.name
                    ),
                )
                .hint("Its agent is installed again: add the host again, or leave it")
                .into());
            };
            repaired(now, host)
        } else {
            host
        };
        tx.put(&host)?;
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
        Ok(host)
    })?;
    Ok(saved)
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

#[cfg(test)]
mod tests {
    use super::super::local;
    use super::*;
    use beanpole_protocol::Timestamp;
    use std::collections::BTreeMap;

    fn host() -> HostRecord {
        HostRecord {
            name: HostName::new("web-1").expect("a name"),
            local: false,
            ..local::record(HostId::from_bits(1), Timestamp::EPOCH)
        }
    }

    /// What a repair that began before makes of it.
    fn repair(labels: &[&str]) -> HostRecord {
        HostRecord {
            fingerprint: Some("SHA256:after".to_owned()),
            labels: labels_of(labels),
            added_at: Timestamp::from_millis(9),
            ..host()
        }
    }

    fn labels_of(names: &[&str]) -> BTreeMap<String, String> {
        let one = |name: &&str| ((*name).to_owned(), "yes".to_owned());
        names.iter().map(one).collect()
    }

    fn save_repair(store: &Store, labels: &[&str]) -> Result<HostRecord, Problem> {
        let call = RequestId::from_bits(1);
        save(store, &call, repair(labels), true, None)
    }

    #[test]
    fn what_a_host_was_told_while_it_was_repaired_holds() {
        let store = Store::in_memory();
        let told = HostRecord {
            draining: true,
            labels: labels_of(&["ssd"]),
            ..host()
        };
        store.update(|tx| tx.put(&told)).expect("memory");
        let saved = save_repair(&store, &[]).expect("saved");
        assert_eq!(saved.fingerprint.as_deref(), Some("SHA256:after"));
        let expected = HostRecord {
            fingerprint: saved.fingerprint.clone(),
            ..told
        };
        assert_eq!(saved, expected);
        assert_eq!(store.get(&saved.key()).expect("memory"), Some(saved));

        let named = save_repair(&store, &["gpu"]).expect("saved");
        assert_eq!(named.labels, labels_of(&["gpu"]));
    }

    #[test]
    fn a_host_that_was_removed_while_it_was_repaired_stays_removed() {
        let store = Store::in_memory();
        let problem = save_repair(&store, &[]).expect_err("removed");
        assert_eq!(problem.code, "host-removed");
        assert!(store.list::<HostRecord>().expect("memory").is_empty());
    }
}
