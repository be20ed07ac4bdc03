//! Hosts: probing, adding, draining, upgrading, removing.

use crate::app::{App, Refused, store_problem};
use crate::{ControllerConfig, ControllerError};
use beanpole_daemon::clock;
use beanpole_engine::{Draft, emit};
use beanpole_fleet::bootstrap::{self, HostSetup, Paths, Progress};
use beanpole_fleet::ssh::{self, Credential, Options, Target};
use beanpole_fleet::{ClientError, Dialer, chain};
use beanpole_protocol::api::{
    AcceptHostKey, AddHost, Host, HostKey, HostRemoved, HostStatus, Jump, ProbeHost, SshAddress,
    UpdateLabels,
};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{HostId, HostName, RequestId, Timestamp, options};
use beanpole_store::model::{
    EnvironmentRecord, HostOrdersRecord, HostRecord, InstanceRecord, JumpRecord,
};
use beanpole_store::{Store, StoreError, Tx};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The name of the controller's own machine.
const LOCAL: &str = "local";
/// A host not heard of for that long is Unreachable, in milliseconds.
const UNREACHABLE_AFTER_MS: u64 = 30_000;
/// A clock that differs by more gets a warning, in milliseconds.
const GREATEST_SKEW_MS: i64 = 2_000;
/// How long an upgraded agent may take to come back.
const UPGRADE_LIMIT: Duration = Duration::from_mins(2);

/// Registers this machine as the host `local`, once.
pub(crate) fn register_local(store: &Store) -> Result<(), StoreError> {
    store.update(|tx| {
        let hosts: Vec<HostRecord> = tx.list()?;
        if hosts.iter().any(|host| host.local) {
            return Ok(());
        }
        let now = clock::now();
        let host = HostRecord {
            id: HostId::from_bits(clock::random_bits()),
            name: HostName::new(LOCAL).expect("`local` is a host name"),
            local: true,
            ssh: None,
            jump: None,
            host_key: None,
            fingerprint: None,
            instance_address: "127.0.0.1".to_owned(),
            labels: Default::default(),
            draining: false,
            removing: false,
            added_at: now,
        };
        tx.put(&host)?;
        let draft = Draft::new(Severity::Info, "host-added", "Host local added.", now);
        emit(tx, draft.host(Some(&host.id)))?;
        Ok(())
    })
}

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
    }
    if let Some(socket) = &config.local_proxy {
        app.links.start_proxy(app, socket);
    }
    Ok(())
}

fn dialer(target: Target) -> Dialer {
    Dialer::ssh(target, Paths::default().socket().display().to_string())
}

/// The way to a host's agent, with the controller's own key.
fn target(app: &App, host: &HostRecord) -> Option<Target> {
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

fn bastion(app: &App, jump: &JumpRecord) -> Target {
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

fn no_host(name: &HostName) -> Problem {
    Problem::not_found("host", name).hint("See which there are: beanpole host list")
}

fn all(app: &App) -> Result<Vec<HostRecord>, Problem> {
    let mut hosts: Vec<HostRecord> = app.store.list().map_err(store_problem)?;
    hosts.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(hosts)
}

fn record(app: &App, name: &HostName) -> Result<HostRecord, Problem> {
    all(app)?
        .into_iter()
        .find(|host| host.name == *name)
        .ok_or_else(|| no_host(name))
}

fn record_in(tx: &Tx<'_>, name: &HostName) -> Result<HostRecord, Refused> {
    let hosts: Vec<HostRecord> = tx.list()?;
    let found = hosts.into_iter().find(|host| host.name == *name);
    found.ok_or_else(|| no_host(name).into())
}

/// All hosts, by name.
pub(crate) fn list(app: &App) -> Result<Vec<Host>, Problem> {
    let instances: Vec<InstanceRecord> = app.store.list().map_err(store_problem)?;
    let hosts = all(app)?;
    Ok(hosts
        .iter()
        .map(|host| view(app, host, &instances))
        .collect())
}

/// One host.
pub(crate) fn get(app: &App, name: &HostName) -> Result<Host, Problem> {
    let instances: Vec<InstanceRecord> = app.store.list().map_err(store_problem)?;
    Ok(view(app, &record(app, name)?, &instances))
}

fn view(app: &App, host: &HostRecord, instances: &[InstanceRecord]) -> Host {
    let observed = app.observations.snapshot();
    let seen = observed.hosts.get(&host.id);
    let state = app.links.state(&host.id);
    let report = seen.and_then(|seen| seen.report.as_ref());
    let connected = seen.is_some_and(|seen| seen.connected);
    let last_seen = seen.and_then(|seen| seen.last_seen);
    let quiet = last_seen
        .is_none_or(|at| clock::now().since(at) >= Duration::from_millis(UNREACHABLE_AFTER_MS));
    let status = if state.shown_key.is_some() {
        HostStatus::KeyChanged
    } else if report.is_none() && !quiet {
        HostStatus::Connecting
    } else if quiet {
        HostStatus::Unreachable
    } else if host.draining || host.removing {
        HostStatus::Draining
    } else {
        HostStatus::Ready
    };
    let mut warnings = Vec::new();
    if !connected {
        warnings.extend(state.trouble.clone());
    }
    if let Some(shown) = &state.shown_key {
        warnings.push(format!(
            "If you know why its key changed: beanpole host accept-key {} --host-key {shown}",
            host.name
        ));
    }
    if let Some(skew) = state
        .clock_skew_ms
        .filter(|skew| skew.abs() > GREATEST_SKEW_MS)
    {
        warnings.push(format!(
            "Its clock is {:.1} s {} the controller's.",
            skew.unsigned_abs() as f64 / 1000.0,
            if skew > 0 { "ahead of" } else { "behind" }
        ));
    }
    let agent_version = report.map(|report| report.agent_version.clone());
    if let Some(theirs) = &agent_version
        && *theirs != app.executables.version
    {
        warnings.push(format!(
            "Its agent has version {theirs}, the controller {}: beanpole host upgrade {}",
            app.executables.version, host.name
        ));
    }
    if let Some(refused) = &state.refused {
        warnings.push(format!("Its agent refused orders: {refused}"));
    }
    Host {
        id: host.id.clone(),
        name: host.name.clone(),
        address: host
            .ssh
            .as_ref()
            .map_or_else(|| LOCAL.to_owned(), ToString::to_string),
        host_key: host.fingerprint.clone(),
        status,
        warnings,
        last_seen: last_seen.filter(|_| report.is_some()),
        agent_version,
        clock_skew_ms: state.clock_skew_ms,
        facts: report.map(|report| report.facts.clone()),
        labels: host.labels.clone(),
        instances: instances.iter().filter(|i| i.host == host.id).count() as u32,
        added_at: host.added_at,
    }
}

/// Tells, by an event, that a host was lost (`Some(why)`) or is back. The disk is not waited for.
pub(crate) fn note_connection(app: &App, host: &HostId, lost: Option<String>) {
    let (app, host) = (app.clone(), host.clone());
    tokio::task::spawn_blocking(move || {
        let written = app.store.update(|tx| {
            let Some(record) = tx.get::<HostRecord>(&HostRecord::key_of(&host))? else {
                return Ok(());
            };
            let now = clock::now();
            let draft = match lost {
                Some(why) => Draft::new(
                    Severity::Warn,
                    "host-disconnected",
                    format!("The connection to host {} is lost: {why}", record.name),
                    now,
                ),
                None => Draft::new(
                    Severity::Info,
                    "host-connected",
                    format!("Host {} is connected again.", record.name),
                    now,
                ),
            };
            emit(tx, draft.host(Some(&host)))?;
            Ok::<_, StoreError>(())
        });
        match written {
            Ok(()) => app.tell_news(),
            Err(error) => {
                store_problem(error);
            }
        }
    });
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

fn jump_target(jump: Option<&Jump>) -> Result<Option<Target>, Problem> {
    let Some(jump) = jump else { return Ok(None) };
    Ok(Some(Target {
        ssh: jump.ssh.clone(),
        host_key: ssh::HostKey::pinned(jump.host_key.clone()),
        credential: Credential::admin(&jump.admin).map_err(|error| key_problem(&error))?,
        jump: None,
    }))
}

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

fn same_place(one: Option<&SshAddress>, other: &SshAddress) -> bool {
    one.is_some_and(|one| one.address == other.address && one.port == other.port)
}

/// Adds a host, or repairs it: installs the agent, pins its key, starts its link.
pub(crate) async fn add(app: &App, request_id: RequestId, body: AddHost) -> Result<Host, Problem> {
    let name = match &body.name {
        Some(name) => name.clone(),
        None => HostName::new(body.ssh.address.clone()).map_err(|error| {
            Problem::invalid("invalid-host-name", format!("{error}."))
                .hint("Give it a name of its own: --name NAME")
        })?,
    };
    let known = {
        let (name, ssh) = (name.clone(), body.ssh.clone());
        app.blocking(move |app| known_host(app, &name, &ssh))
            .await?
    };
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
    let setup = HostSetup::new(admin, app.controller_key.clone(), app.executables.clone());
    let progress = |step| match step {
        Progress::Uploading { .. } => {
            tracing::debug!(host = %setup.admin.ssh, ?step, "setting up");
        }
        step => tracing::info!(host = %setup.admin.ssh, ?step, "setting up"),
    };
    let added = bootstrap::add_host(&setup, &progress)
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
        draining: known.as_ref().is_some_and(|known| known.draining),
        removing: false,
        added_at: known
            .as_ref()
            .map_or_else(clock::now, |known| known.added_at),
    };
    let (record, mut host) = app
        .blocking(move |app| {
            let again = known.is_some();
            save(app, &request_id, &record, again)?;
            let now = clock::now();
            app.observations.change(|seen| {
                seen.register_host(&record.id, now);
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

/// The host that is to be repaired, if it is one.
fn known_host(app: &App, name: &HostName, ssh: &SshAddress) -> Result<Option<HostRecord>, Problem> {
    let hosts = all(app)?;
    if let Some(host) = hosts.iter().find(|host| host.name == *name) {
        if same_place(host.ssh.as_ref(), ssh) {
            return Ok(Some(host.clone()));
        }
        return Err(Problem::conflict(
            "host-exists",
            format!("There is another host `{name}` already."),
        )
        .hint("Choose another name: --name NAME"));
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

fn save(app: &App, request_id: &RequestId, host: &HostRecord, again: bool) -> Result<(), Problem> {
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
        let message = format!("Host {} {done}.", host.name);
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

/// Stops giving a host instances, and moves those that it has elsewhere; or the reverse.
pub(crate) fn set_draining(
    app: &App,
    request_id: &RequestId,
    name: &HostName,
    draining: bool,
) -> Result<Host, Problem> {
    app.store.update(|tx| {
        let mut host = record_in(tx, name)?;
        if host.draining == draining {
            return Ok::<_, Refused>(());
        }
        host.draining = draining;
        tx.put(&host)?;
        if !draining {
            mend_soon(tx)?;
        }
        let (code, message) = if draining {
            ("host-draining", format!("Host {name} is being drained."))
        } else {
            ("host-resumed", format!("Host {name} gets instances again."))
        };
        emit(
            tx,
            Draft::new(Severity::Info, code, message, clock::now())
                .request(request_id)
                .host(Some(&host.id)),
        )?;
        Ok(())
    })?;
    app.wake();
    app.tell_news();
    get(app, name)
}

/// Changes a host's labels. What is placed by them follows.
pub(crate) fn set_labels(
    app: &App,
    request_id: &RequestId,
    name: &HostName,
    body: &UpdateLabels,
) -> Result<Host, Problem> {
    check_labels(&body.set)?;
    app.store.update(|tx| {
        let mut host = record_in(tx, name)?;
        let before = host.labels.clone();
        for label in &body.remove {
            if host.labels.remove(label).is_none() {
                return Err(Refused::from(
                    Problem::not_found("label", label)
                        .hint(format!("See which it has: beanpole host show {name}")),
                ));
            }
        }
        host.labels.extend(body.set.clone());
        if host.labels == before {
            return Ok(());
        }
        tx.put(&host)?;
        mend_soon(tx)?;
        let labels: Vec<String> = host
            .labels
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let message = match labels.as_slice() {
            [] => format!("Host {name} has no labels any more."),
            labels => format!("Host {name} has the labels {}.", labels.join(" ")),
        };
        emit(
            tx,
            Draft::new(Severity::Info, "host-labelled", message, clock::now())
                .request(request_id)
                .host(Some(&host.id)),
        )?;
        Ok::<_, Refused>(())
    })?;
    app.wake();
    app.tell_news();
    get(app, name)
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Problem> {
    for (name, value) in labels {
        let label = format!("{name}={value}");
        if options::parse_label(&label).is_none_or(|(read, _)| read != *name) {
            return Err(
                Problem::invalid("label-invalid", format!("`{label}` is not a label."))
                    .hint("Write NAME=VALUE with letters, digits and . _ - / only: disk=ssd"),
            );
        }
    }
    Ok(())
}

/// There may be room now where there was none: environments that wait before they try again to mend
/// their instances wait no longer.
fn mend_soon(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    for mut environment in tx.list::<EnvironmentRecord>()? {
        if environment.mend_after.is_some() {
            environment.mend_after = None;
            environment.mend_failures = 0;
            tx.put(&environment)?;
        }
    }
    Ok(())
}

fn agent_problem(name: &HostName, error: &ClientError) -> Problem {
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

/// Whether a host has been heard of since the controller started.
pub(crate) fn heard_of(app: &App, local: bool) -> Result<Option<Timestamp>, Problem> {
    let hosts = all(app)?;
    let observed = app.observations.snapshot();
    Ok(hosts
        .iter()
        .filter(|host| host.local == local)
        .filter_map(|host| observed.hosts.get(&host.id))
        .filter(|seen| seen.connected && seen.report.is_some())
        .find_map(|seen| seen.last_seen))
}
