//! Load balancers: those on hosts, which agents run as ordered, and those on this machine. A host's is part of its
//! record, and goes to the host with its orders; the way to it leads through the agent.

use super::hosts::{agent_problem, all, record, record_in};
use crate::app::{App, Refused, store_problem};
use crate::links::is_local_proxy;
use beanpole_daemon::clock;
use beanpole_engine::{Draft, Observed, ProxyObserved, emit, with_lingering};
use beanpole_fleet::ClientError;
use beanpole_protocol::Network;
use beanpole_protocol::agent::{INSTANCE_PORTS, InstancePhase};
use beanpole_protocol::api::{Edge, EdgeRemoved, EdgeStatus, EnvironmentStatus, PutEdge};
use beanpole_protocol::edge::{ALL_OF_THEM, EdgeOrders, EdgeReport};
use beanpole_protocol::event::Severity;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{Generation, HostId, HostName, RequestId};
use beanpole_store::Tx;
use beanpole_store::model::{EnvironmentRecord, HostRecord};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Most addresses of one load balancer, and most networks that it trusts.
const MOST_ADDRESSES: usize = 16;
const MOST_NETWORKS: usize = 64;
/// How long a host may take to end its load balancer, which gives requests 30 s to end.
const GONE_LIMIT: Duration = Duration::from_secs(45);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(100);
/// One that is not reached and ended within that time counts as failing.
const LATELY: Duration = Duration::from_mins(1);
/// Lines of its log that tell why it does not come up.
const LAST_WORDS: usize = 4;
/// A load balancer not heard of for that long is not waited for while others are, in milliseconds; as the engine
/// has it.
const UNREACHABLE_AFTER_MS: u64 = 30_000;

/// All of them, by name.
pub(crate) fn list(app: &App) -> Result<Vec<Edge>, Problem> {
    let hosts = all(app)?;
    let observed = app.observations.snapshot();
    let newest = newest_table(app)?;
    let of_hosts = hosts
        .iter()
        .filter(|host| host.edge.is_some())
        .map(|host| on_host(app, host, &observed, newest));
    let here = observed
        .proxies
        .iter()
        .filter(|(name, _)| is_local_proxy(name))
        .map(|(name, seen)| here(app, name, seen, &observed, newest));
    Ok(of_hosts.chain(here).collect())
}

/// The one of a host.
pub(crate) fn get(app: &App, name: &HostName) -> Result<Edge, Problem> {
    let host = record(app, name)?;
    if host.edge.is_none() {
        return Err(no_edge(name));
    }
    let observed = app.observations.snapshot();
    Ok(on_host(app, &host, &observed, newest_table(app)?))
}

fn no_edge(name: &HostName) -> Problem {
    let problem = Problem::not_found("load balancer", name);
    if is_local_proxy(name.as_str()) {
        return problem.hint(
            "It runs on the controller's machine, not on a host. To have its new executable take over there: beanpole proxy reload",
        );
    }
    problem.hint(format!(
        "See which there are: beanpole edge list\nGive the host one: beanpole edge add {name}"
    ))
}

/// Of the controller's own load balancer there is no log by this way, but a file where `beanpole up` runs it.
fn no_log(app: &App, name: &HostName, access: bool) -> Problem {
    let problem = no_edge(name);
    if !is_local_proxy(name.as_str()) {
        return problem;
    }
    let file = app.data.join(if access {
        "logs/access.log"
    } else {
        "logs/proxy.log"
    });
    if file.is_file() {
        return problem.hint(format!(
            "It runs on the controller's machine, not on a host. Read its file there: tail -n 100 {}",
            file.display()
        ));
    }
    problem.hint(
        "It runs on the controller's machine, not on a host: its log is where `beanpole proxy` was started, and its requests are in the file of its --access-log",
    )
}

fn newest_table(app: &App) -> Result<Generation, Problem> {
    let table = app.engine.routing_table();
    table
        .map(|table| table.generation)
        .map_err(|_| Problem::internal("The routing table could not be read."))
}

/// Gives a host a load balancer, or changes the one that it has.
pub(crate) async fn put(
    app: &App,
    request_id: RequestId,
    name: HostName,
    body: PutEdge,
) -> Result<Edge, Problem> {
    let wanted = checked(&name, body)?;
    let host = name.clone();
    let id = app
        .blocking(move |app| write(app, &request_id, &host, wanted))
        .await?;
    let now = app.time.now();
    app.observations
        .change(|seen| seen.register_proxy(name.as_str(), now));
    app.links.set_edge(app, &id, Some(name.as_str())).await;
    told(app);
    app.blocking(move |app| get(app, &name)).await
}

fn told(app: &App) {
    app.wake();
    app.tell_news();
}

/// What was asked for, if it can be.
fn checked(name: &HostName, mut body: PutEdge) -> Result<PutEdge, Problem> {
    if body.http.is_empty() && body.https.is_empty() {
        body.http = vec![(Ipv4Addr::UNSPECIFIED, 80).into()];
        body.https = vec![(Ipv4Addr::UNSPECIFIED, 443).into()];
    }
    let all: Vec<SocketAddr> = body.http.iter().chain(&body.https).copied().collect();
    let wrong = |detail: String, hint: &str| {
        Err(Problem::invalid("edge-invalid", detail).hint(hint.to_owned()))
    };
    if all.len() > MOST_ADDRESSES {
        let detail = format!(
            "{} addresses are given, and a load balancer has at most {MOST_ADDRESSES}.",
            all.len()
        );
        return wrong(detail, "0.0.0.0 stands for all IPv4 addresses of a host.");
    }
    if all.iter().collect::<BTreeSet<_>>().len() < all.len() {
        return wrong(
            "An address is given twice.".to_owned(),
            "One port serves either HTTP or HTTPS.",
        );
    }
    for address in &all {
        if address.port() == 0 {
            return wrong(
                format!("{address} has no port."),
                "Name the port that clients come to: 0.0.0.0:80",
            );
        }
        if INSTANCE_PORTS.contains(&address.port()) {
            return wrong(
                format!(
                    "Port {} is one of those that instances get ({} to {}).",
                    address.port(),
                    INSTANCE_PORTS.start(),
                    INSTANCE_PORTS.end()
                ),
                "Choose one beside them: 0.0.0.0:80",
            );
        }
    }
    if body.trust.len() > MOST_NETWORKS {
        let detail = format!("At most {MOST_NETWORKS} networks can be trusted.");
        return wrong(detail, "Name a greater one that holds several: 10.0.0.0/8");
    }
    if let Some(odd) = body
        .trust
        .iter()
        .find(|one| one.parse::<Network>().is_err())
    {
        return wrong(
            format!("`{}` is no network.", beanpole_protocol::ids::shown(odd)),
            "Write an address, or one with the number of its leading bits: 10.0.0.0/8",
        );
    }
    if let Some(log) = &body.access_log
        && (log.sample > ALL_OF_THEM || !(1..=1 << 20).contains(&log.max_mib))
    {
        return wrong(
            "The access log cannot be kept so.".to_owned(),
            "`sample` goes from 0 to 1000 (of a thousand requests), `max_mib` from 1 to 1048576.",
        );
    }
    if body.public_https_port == Some(0) {
        return wrong(
            format!("The load balancer of {name} cannot be reached at port 0."),
            "Name the port by which clients reach HTTPS, or leave it out.",
        );
    }
    Ok(body)
}

fn write(
    app: &App,
    request_id: &RequestId,
    name: &HostName,
    wanted: PutEdge,
) -> Result<HostId, Problem> {
    let id = app.store.update(|tx| {
        let mut host = record_in(tx, name)?;
        may_have_one(&host)?;
        all_can_be_reached(tx)?;
        no_port_is_an_environments(tx, &wanted)?;
        let edge = EdgeOrders {
            http: wanted.http.clone(),
            https: wanted.https.clone(),
            trust: wanted.trust.clone(),
            public_https_port: wanted.public_https_port,
            proxy_protocol: wanted.proxy_protocol,
            access_log: wanted.access_log,
            new_traces: wanted.new_traces,
            domain: String::new(),
            restart: host.edge.as_ref().map_or(0, |edge| edge.restart),
        };
        if host.edge.as_ref() == Some(&edge) {
            return Ok(host.id);
        }
        let (code, what) = match host.edge.replace(edge) {
            None => ("edge-added", "gets a load balancer"),
            Some(_) => ("edge-changed", "gets its load balancer anew"),
        };
        tx.put(&host)?;
        let listens = |scheme: &str, all: &[SocketAddr]| -> Vec<String> {
            all.iter().map(|one| format!("{scheme}://{one}")).collect()
        };
        let mut listens_at = listens("http", &wanted.http);
        listens_at.extend(listens("https", &wanted.https));
        let message = format!("Host {name} {what}: {}.", listens_at.join(", "));
        let draft = Draft::new(Severity::Info, code, message, clock::now());
        emit(tx, draft.request(request_id).host(Some(&host.id)))?;
        Ok::<_, Refused>(host.id)
    })?;
    Ok(id)
}

/// Refuses hosts that cannot have a load balancer of this kind.
fn may_have_one(host: &HostRecord) -> Result<(), Problem> {
    let name = &host.name;
    if host.local {
        return Err(Problem::conflict(
            "host-is-local",
            "The controller's own machine has its load balancer from `beanpole up`.",
        )
        .hint("Start another there: beanpole up --local-proxy SOCKET"));
    }
    if is_local_proxy(name.as_str()) {
        return Err(Problem::conflict(
            "edge-name-taken",
            format!("`{name}` is what a load balancer on the controller's machine is called."),
        )
        .hint("Remove the host and add it by another name: beanpole host add --name NAME"));
    }
    if host.removing {
        return Err(Problem::conflict(
            "host-being-removed",
            format!("The host `{name}` is being removed."),
        ));
    }
    if host.taken.is_some() {
        return Err(Problem::conflict(
            "host-taken-over",
            format!("The host `{name}` belongs to another controller."),
        )
        .hint(format!("See what to do: beanpole host show {name}")));
    }
    Ok(())
}

/// Refuses ports on which a network environment takes connections.
fn no_port_is_an_environments(tx: &Tx<'_>, wanted: &PutEdge) -> Result<(), Refused> {
    let environments: Vec<EnvironmentRecord> = tx.list()?;
    let environments = environments
        .iter()
        .filter(|one| one.status != EnvironmentStatus::Terminated);
    for environment in environments {
        for listener in environment.settings.listeners() {
            let is_at = |at: &SocketAddr| at.port() == listener.port;
            let shares = listener.by_name && !wanted.http.iter().any(is_at);
            if !shares && wanted.http.iter().chain(&wanted.https).any(is_at) {
                let (port, name) = (listener.port, &environment.name);
                return Err(Refused::from(
                    Problem::conflict(
                        "port-taken",
                        format!("Port {port} belongs to the network environment `{name}`."),
                    )
                    .hint("Have the load balancer listen on another port, or the environment."),
                ));
            }
        }
    }
    Ok(())
}

/// Refuses while there are instances that no load balancer on another machine would reach.
fn all_can_be_reached(tx: &Tx<'_>) -> Result<(), Refused> {
    let hosts: Vec<HostRecord> = tx.list()?;
    let instances = with_lingering(tx)?;
    for host in hosts
        .iter()
        .filter(|host| host.is_reached_from_itself_alone())
    {
        let held = instances
            .iter()
            .filter(|one| one.host == host.id && one.mode.is_some())
            .count();
        if held > 0 {
            let name = &host.name;
            return Err(Refused::from(
                Problem::conflict(
                    "instances-not-reachable",
                    format!(
                        "{held} of the instances are on {name} at {}, where no load balancer on another machine reaches them.",
                        host.instance_address
                    ),
                )
                .hint(format!(
                    "Move them elsewhere: beanpole host drain {name}\nOr name an address of this machine: beanpole up --instance-address 192.168.1.10"
                )),
            ));
        }
    }
    Ok(())
}

/// Has the executable that a host has now take over its load balancer.
pub(crate) fn restart(app: &App, request_id: &RequestId, name: &HostName) -> Result<Edge, Problem> {
    app.store.update(|tx| {
        let mut host = record_in(tx, name)?;
        let edge = host.edge.as_mut().ok_or_else(|| no_edge(name))?;
        edge.restart += 1;
        tx.put(&host)?;
        let message = format!(
            "The load balancer of host {name} is reloaded by the executable that is there now."
        );
        let draft = Draft::new(Severity::Info, "edge-restarted", message, clock::now());
        emit(tx, draft.request(request_id).host(Some(&host.id)))?;
        Ok::<_, Refused>(())
    })?;
    told(app);
    get(app, name)
}

/// Takes a host's load balancer away, with its table, its certificates and their keys. Where the host is connected,
/// its word that nothing is left is waited for.
pub(crate) async fn remove(
    app: &App,
    request_id: RequestId,
    name: HostName,
) -> Result<EdgeRemoved, Problem> {
    let host = name.clone();
    let id = app
        .blocking(move |app| unwrite(app, &request_id, &host))
        .await?;
    told(app);
    // Until then it may have requests under way, and is waited for like every other.
    let connected = app
        .links
        .client(&id)
        .is_some_and(|client| client.is_connected());
    let gone = connected && gone_within(app, &id, GONE_LIMIT).await;
    // Somebody may have wanted one again meanwhile.
    let host = name.clone();
    let again = app.blocking(move |app| Ok(record(app, &host)?.edge.is_some()));
    if !again.await? {
        app.links.set_edge(app, &id, None).await;
        forget(app, name.as_str());
    }
    Ok(EdgeRemoved {
        name: name.to_string(),
        gone,
    })
}

fn unwrite(app: &App, request_id: &RequestId, name: &HostName) -> Result<HostId, Problem> {
    let id = app.store.update(|tx| {
        let mut host = record_in(tx, name)?;
        if host.edge.take().is_none() {
            return Err(Refused::from(no_edge(name)));
        }
        tx.put(&host)?;
        let message = format!("The load balancer of host {name} is removed.");
        let draft = Draft::new(Severity::Info, "edge-removed", message, clock::now());
        emit(tx, draft.request(request_id).host(Some(&host.id)))?;
        Ok(host.id)
    })?;
    Ok(id)
}

async fn gone_within(app: &App, id: &HostId, limit: Duration) -> bool {
    let gone = async {
        loop {
            let host = id.clone();
            let done = app.blocking(move |app| Ok(is_gone(app, &host))).await;
            if done.is_ok_and(|done| done) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(limit, gone).await.is_ok()
}

/// Whether the host holds orders without a load balancer, and has none.
fn is_gone(app: &App, id: &HostId) -> bool {
    let Ok(orders) = app.engine.host_orders(id) else {
        return false;
    };
    let observed = app.observations.snapshot();
    let report = observed.hosts.get(id).and_then(|seen| seen.report.as_ref());
    report.is_some_and(|report| {
        orders.edge.is_none() && report.edge.is_none() && report.generation >= orders.generation
    })
}

/// Nobody waits for it any more, nor for what it holds.
pub(crate) fn forget(app: &App, name: &str) {
    app.observations.change(|seen| seen.forget_proxy(name));
    app.certificates.note(name, None);
    app.wake();
}

/// The last lines of its log, or of its access log.
pub(crate) async fn log(
    app: &App,
    name: HostName,
    tail: u64,
    access: bool,
) -> Result<String, Problem> {
    let host = name.clone();
    let host = app
        .blocking(move |app| {
            let found = record(app, &host)?;
            found
                .edge
                .is_some()
                .then_some(found)
                .ok_or_else(|| no_log(app, &host, access))
        })
        .await?;
    let client = app.links.client(&host.id);
    let client = client.ok_or_else(|| agent_problem(&name, &ClientError::NotConnected))?;
    let log = client.edge_log(tail, access).await;
    log.map_err(|error| agent_problem(&name, &error))
}

/// Tells, by an event, that the load balancer of a host was lost (`Some(why)`) or is back. The disk is not waited
/// for.
pub(crate) fn note_connection(app: &App, name: &str, lost: Option<String>) {
    if is_local_proxy(name) {
        return;
    }
    let (app, name) = (app.clone(), name.to_owned());
    tokio::task::spawn_blocking(move || {
        let written = app.store.update(|tx| {
            let hosts: Vec<HostRecord> = tx.list()?;
            let mut hosts = hosts.into_iter();
            let Some(host) =
                hosts.find(|host| host.name.as_str() == name && host.edge.is_some())
            else {
                return Ok(());
            };
            let draft = match lost {
                Some(why) => Draft::new(
                    Severity::Warn,
                    "edge-disconnected",
                    format!("The load balancer of host {name} cannot be reached: {why}. Where it runs, it serves by its last table."),
                    clock::now(),
                ),
                None => Draft::new(
                    Severity::Info,
                    "edge-connected",
                    format!("The load balancer of host {name} is connected."),
                    clock::now(),
                ),
            };
            emit(tx, draft.host(Some(&host.id)))?;
            Ok::<_, beanpole_store::StoreError>(())
        });
        match written {
            Ok(()) => app.tell_news(),
            Err(error) => {
                store_problem(error);
            }
        }
    });
}

/// What is to be said of the load balancer of a host among the host's own warnings.
pub(crate) fn warnings(app: &App, host: &HostRecord, observed: &Observed) -> Vec<String> {
    if host.edge.is_none() {
        return Vec::new();
    }
    let Ok(newest) = newest_table(app) else {
        return Vec::new();
    };
    let edge = on_host(app, host, observed, newest);
    let causes = edge.causes.into_iter();
    causes
        .map(|cause| format!("Its load balancer: {cause}"))
        .collect()
}

fn here(
    app: &App,
    name: &str,
    seen: &ProxyObserved,
    observed: &Observed,
    newest: Generation,
) -> Edge {
    let report = seen.report.as_ref();
    let status = match report {
        Some(report) if seen.connected => by_table(report.generation, newest),
        None if seen.last_seen.is_none() => EdgeStatus::Starting,
        _ => EdgeStatus::Unreachable,
    };
    let counts = counts(app, name, observed);
    Edge {
        name: name.to_owned(),
        local: true,
        status,
        causes: left_out(counts).into_iter().collect(),
        wanted: None,
        settled: true,
        listeners: report.map(|one| one.listeners.clone()).unwrap_or_default(),
        version: report.map(|one| one.version.clone()),
        generation: report.map(|one| one.generation),
        counts,
        pid: None,
        restarts: 0,
        last_seen: seen.last_seen,
    }
}

fn by_table(held: Generation, newest: Generation) -> EdgeStatus {
    if held >= newest {
        EdgeStatus::Serving
    } else {
        EdgeStatus::Behind
    }
}

fn counts(app: &App, name: &str, observed: &Observed) -> bool {
    let left_out = observed.left_out(app.time.now(), UNREACHABLE_AFTER_MS);
    !left_out.iter().any(|other| other == name)
}

fn left_out(counts: bool) -> Option<String> {
    (!counts).then(|| {
        "Nothing was heard of it for long: deployments, swaps and certificates do not wait for it."
            .to_owned()
    })
}

fn on_host(app: &App, host: &HostRecord, observed: &Observed, newest: Generation) -> Edge {
    let name = host.name.as_str();
    let proxy = observed.proxies.get(name);
    let report = proxy.and_then(|seen| seen.report.as_ref());
    let agent = observed.hosts.get(&host.id);
    let host_connected = agent.is_some_and(|seen| seen.connected);
    let agent_report = agent.and_then(|seen| seen.report.as_ref());
    let said = agent_report.and_then(|report| report.edge.as_ref());
    let connected = proxy.is_some_and(|seen| seen.connected);
    let now = agent_report.map(|report| report.now);
    let settled = said
        .and_then(|said| said.orders.as_ref())
        .zip(host.edge.as_ref())
        .is_some_and(|(held, wanted)| {
            let wanted = EdgeOrders {
                domain: held.domain.clone(),
                ..wanted.clone()
            };
            *held == wanted
        });
    let goes_on = said.and_then(|said| match &said.phase {
        InstancePhase::Failed(failure) if connected => Some(failure.message.clone()),
        _ => None,
    });
    let fails = said.is_some_and(|said| {
        // Between two attempts it runs for a moment.
        let ended = said.last_exit.as_ref().map(|exit| exit.at);
        let lately = now
            .zip(ended)
            .is_some_and(|(now, at)| now.since(at) < LATELY);
        // What ended may have been wanted otherwise.
        (lately && settled)
            || matches!(
                said.phase,
                InstancePhase::Restarting | InstancePhase::Failed(_)
            )
    });
    let status = match report {
        Some(report) if connected => by_table(report.generation, newest),
        _ if host_connected && fails => EdgeStatus::Failing,
        _ if host_connected => EdgeStatus::Starting,
        _ => EdgeStatus::Unreachable,
    };
    let mut causes = Vec::new();
    if status == EdgeStatus::Failing {
        causes.extend(said.map(why_failing));
    }
    if let Some(why) = goes_on {
        let mut letters = why.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        causes.push(format!(
            "{}{}. It is tried again.",
            first.map(String::from).unwrap_or_default(),
            letters.as_str()
        ));
    }
    let is_told = |ordered: Generation| agent_report.is_some_and(|one| one.generation >= ordered);
    if status == EdgeStatus::Starting
        && said.is_none()
        && let Ok(orders) = app.engine.host_orders(&host.id)
        && orders.edge.is_some()
        && is_told(orders.generation)
    {
        causes.push(format!(
            "The agent of {name} is of a version that knows no load balancers: beanpole host upgrade {name}"
        ));
    }
    if status == EdgeStatus::Unreachable {
        let why = app.links.state(&host.id).trouble;
        let why = why.map_or_else(String::new, |why| {
            format!(" ({})", why.trim_end_matches('.'))
        });
        causes.push(format!(
            "Its host is not connected{why}. Where it runs, it serves by its last table."
        ));
    }
    let counts = counts(app, name, observed);
    causes.extend(left_out(counts));
    let version = report.filter(|_| connected).map(|one| one.version.clone());
    if let Some(theirs) = &version
        && *theirs != app.executables.version
    {
        causes.push(format!(
            "It has version {theirs}, the controller {}: beanpole host upgrade {name}, then beanpole edge restart {name}",
            app.executables.version
        ));
    }
    Edge {
        name: name.to_owned(),
        local: false,
        status,
        causes,
        wanted: host.edge.as_ref().map(|edge| PutEdge {
            http: edge.http.clone(),
            https: edge.https.clone(),
            trust: edge.trust.clone(),
            public_https_port: edge.public_https_port,
            proxy_protocol: edge.proxy_protocol,
            access_log: edge.access_log,
            new_traces: edge.new_traces,
        }),
        settled,
        listeners: report
            .filter(|_| connected)
            .map(|one| one.listeners.clone())
            .unwrap_or_default(),
        version,
        generation: report.map(|one| one.generation),
        counts,
        pid: said.and_then(|said| said.pid),
        restarts: said.map_or(0, |said| said.restarts),
        last_seen: proxy.and_then(|seen| seen.last_seen),
    }
}

/// Why it does not come up, by its own last words where it has some.
fn why_failing(said: &EdgeReport) -> String {
    if let InstancePhase::Failed(failure) = &said.phase {
        return failure.message.clone();
    }
    let spare = said.log.len().saturating_sub(LAST_WORDS);
    let words = said.log[spare..].join("; ");
    let exit = said.last_exit.as_ref();
    let how = match exit.map(|exit| (exit.code, exit.signal)) {
        Some((Some(code), _)) => format!("exited with {code}"),
        Some((_, Some(signal))) => format!("was ended by signal {signal}"),
        _ => "ended".to_owned(),
    };
    if words.is_empty() {
        return format!("It {how}, and is started again.");
    }
    format!("It {how}, and is started again: {words}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(http: &[&str], trust: &[&str]) -> Result<PutEdge, Problem> {
        let name = HostName::new("web-1").expect("a name");
        let body = PutEdge {
            http: http
                .iter()
                .map(|one| one.parse().expect("an address"))
                .collect(),
            trust: trust.iter().map(|one| (*one).to_owned()).collect(),
            ..PutEdge::default()
        };
        checked(&name, body)
    }

    #[test]
    fn what_a_load_balancer_cannot_listen_on_is_refused_with_a_way_out() {
        for (http, trust, said) in [
            (&["0.0.0.0:0"][..], &[][..], "no port"),
            (&["0.0.0.0:80", "0.0.0.0:80"], &[], "twice"),
            (&["0.0.0.0:20001"], &[], "instances get"),
            (&["0.0.0.0:80"], &["10.0.0.0/33"], "no network"),
            (&["0.0.0.0:80"], &["proxy.example.com"], "no network"),
        ] {
            let problem = ask(http, trust).expect_err(said);
            assert!(problem.detail.contains(said), "{problem}");
            assert!(problem.hint.is_some(), "{problem}");
        }
        let usual = ask(&[], &["10.0.0.0/8", "::1"]).expect("the usual ports");
        assert_eq!(usual.http[0].port(), 80);
        assert_eq!(usual.https[0].port(), 443);
    }

    #[test]
    fn one_that_cannot_listen_says_so_itself() {
        let said = EdgeReport {
            orders: None,
            phase: InstancePhase::Restarting,
            since: beanpole_protocol::Timestamp::EPOCH,
            pid: None,
            restarts: 3,
            last_exit: Some(beanpole_protocol::agent::ExitReport {
                code: Some(1),
                signal: None,
                oom: false,
                at: beanpole_protocol::Timestamp::EPOCH,
            }),
            log: [
                "caused by: cannot listen on 0.0.0.0:80",
                "caused by: Address in use",
            ]
            .map(str::to_owned)
            .to_vec(),
        };
        assert_eq!(
            why_failing(&said),
            "It exited with 1, and is started again: caused by: cannot listen on 0.0.0.0:80; caused by: Address in use"
        );
    }
}
