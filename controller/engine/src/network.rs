//! Network environments: the ports that each has, who else wants them, and how it goes with them.

use crate::events::{Draft, emit_for};
use crate::read::Reader;
use crate::turn::Turn;
use crate::{Engine, EngineError, Fault, Observed, ProxyObserved};
use beanpole_protocol::api::{self, Colour, EnvironmentStatus, ListenerView};
use beanpole_protocol::event::Severity;
use beanpole_protocol::options::{Listener, OptionSettings};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::proxy::{Stream, StreamMode, WeightedPool};
use beanpole_protocol::{EnvironmentName, Timestamp};
use beanpole_store::StoreError;
use beanpole_store::model::{ClosedPort, EnvironmentRecord, HostRecord, OperationRecord};
use std::collections::BTreeSet;

/// The streams of all environments: what one of them has, no other gets.
#[derive(Default)]
pub(crate) struct Streams {
    all: Vec<Stream>,
    taken: BTreeSet<(u16, Option<String>)>,
}

impl Streams {
    /// Adds those of an environment that answers to `hosts`; `pools` are those of a process.
    pub(crate) fn add(
        &mut self,
        environment: &EnvironmentRecord,
        hosts: &[String],
        pools: impl Fn(&str) -> Vec<WeightedPool>,
    ) {
        for listener in environment.settings.listeners() {
            let names = if listener.by_name { hosts } else { &[] };
            let names = names.iter().cloned().map(Some);
            let names = names.chain((!listener.by_name).then_some(None));
            // Calls see to it that nobody else has them: this is for what slipped through, and a table that makes
            // sense.
            let own: Vec<_> = names
                .filter(|name| self.taken.insert((listener.port, name.clone())))
                .collect();
            if !own.is_empty() {
                self.all.push(Stream {
                    port: listener.port,
                    hosts: own.into_iter().flatten().collect(),
                    mode: listener.mode(),
                    pools: pools(&environment.settings.process_at(listener.port)),
                });
            }
        }
    }

    pub(crate) fn all(self) -> Vec<Stream> {
        self.all
    }
}

/// The hostnames of an environment, as clients of TLS ask for them.
pub(crate) fn hosts(environment: &EnvironmentRecord, default: &str) -> Vec<String> {
    let cname = environment.cname.iter();
    let cname = cname.map(|cname| format!("{cname}.{default}").to_lowercase());
    let domains = environment.domains.iter();
    let domains = domains.map(|record| record.domain.name.host().to_owned());
    cname.chain(domains).collect()
}

/// Refuses ports that an environment cannot have: of another one, or of a load balancer itself.
pub(crate) fn check_ports(
    reader: &impl Reader,
    observed: &Observed,
    name: &EnvironmentName,
    settings: &OptionSettings,
    api_port: Option<u16>,
) -> Result<(), Fault> {
    let wanted = settings.listeners();
    if wanted.is_empty() {
        return Ok(());
    }
    // Also of load balancers elsewhere: who has the controller's port here gets what is sent to it, tokens included.
    if let Some(port) = api_port.filter(|port| wanted.iter().any(|one| one.port == *port)) {
        return Err(Problem::conflict(
            "port-taken",
            format!("Port {port} is that of the controller's API."),
        )
        .hint("Choose another port.")
        .into());
    }
    for (own, https, whose) in own_ports(reader, observed)? {
        let same = wanted.iter().find(|wanted| wanted.port == own);
        if let Some(wanted) = same
            && !(https && wanted.by_name)
        {
            return Err(is_own_port(wanted.port, https, &whose).into());
        }
    }
    for other in reader.all::<EnvironmentRecord>()? {
        if other.name == *name || other.status == EnvironmentStatus::Terminated {
            continue;
        }
        for has in held(reader, &other)? {
            let clashes =
                |wanted: &&Listener| wanted.port == has.port && !wanted.by_name && !has.by_name;
            if let Some(wanted) = wanted.iter().find(clashes) {
                return Err(is_taken(wanted.port, &other.name).into());
            }
        }
    }
    Ok(())
}

/// The listeners that an environment has, or goes back to if what is under way fails.
fn held(reader: &impl Reader, environment: &EnvironmentRecord) -> Result<Vec<Listener>, Fault> {
    let mut all = environment.settings.listeners();
    if let Some(id) = &environment.operation
        && let Some(operation) = reader.one::<OperationRecord>(&OperationRecord::key_of(id))?
        && let Some(before) = &operation.settings_before
    {
        all.extend(before.listeners());
    }
    Ok(all)
}

/// Ports on which load balancers listen themselves, whether for HTTPS, and whose they are.
fn own_ports(reader: &impl Reader, observed: &Observed) -> Result<Vec<(u16, bool, String)>, Fault> {
    let mut all = Vec::new();
    for (name, seen) in &observed.proxies {
        for text in seen.report.iter().flat_map(|report| &report.listeners) {
            let port = text
                .rsplit_once(':')
                .and_then(|(_, port)| port.parse().ok());
            if let Some(port) = port {
                all.push((port, text.starts_with("https"), name.clone()));
            }
        }
    }
    for host in reader.all::<HostRecord>()? {
        let Some(edge) = &host.edge else { continue };
        let http = edge.http.iter().map(|at| (at.port(), false));
        let https = edge.https.iter().map(|at| (at.port(), true));
        let own = http.chain(https);
        all.extend(own.map(|(port, https)| (port, https, host.name.to_string())));
    }
    Ok(all)
}

fn is_own_port(port: u16, https: bool, whose: &str) -> Problem {
    let (protocol, hint) = if https {
        let hint = "Share it by the hostnames that clients of TLS ask for (RouteBySNI=true, by `create --option` or `config --set`), or choose \
                    another port.";
        ("HTTPS", hint)
    } else {
        ("HTTP", "Choose another port.")
    };
    Problem::conflict(
        "port-taken",
        format!("The load balancer {whose} listens on port {port} itself, for {protocol}."),
    )
    .hint(hint)
}

fn is_taken(port: u16, other: &EnvironmentName) -> Problem {
    Problem::conflict(
        "port-taken",
        format!("Port {port} belongs to environment `{other}`."),
    )
    .hint(
        "Choose another port, or have both share it: one of them by the hostnames that its clients ask for by TLS \
         (RouteBySNI=true, by `create --option` or `config --set`).",
    )
}

/// Refuses what is said of requests where there are only connections.
pub(crate) fn takes_requests(environment: &EnvironmentRecord, what: &str) -> Result<(), Problem> {
    if !environment.settings.is_network() {
        return Ok(());
    }
    let name = &environment.name;
    Err(Problem::conflict(
        "network-environment",
        format!(
            "`{name}` is a network environment, which knows nothing of requests: it has no {what}."
        ),
    )
    .hint("Applications in network environments see to such things themselves."))
}

/// Whether a domain says nothing of requests, so that a network environment can have it, too.
pub(crate) fn is_plain(domain: &beanpole_protocol::Domain) -> bool {
    domain.redirect_to.is_none() && !domain.only_https && domain.name.path().is_empty()
}

/// Refuses domains that say something of requests.
pub(crate) fn takes_domain(
    environment: &EnvironmentRecord,
    domain: &beanpole_protocol::Domain,
) -> Result<(), Problem> {
    if is_plain(domain) {
        return Ok(());
    }
    takes_requests(environment, "redirects and no paths")
}

fn ports_of(environment: &EnvironmentRecord) -> Vec<u16> {
    let listeners = environment.settings.listeners().into_iter();
    listeners.map(|one| one.port).collect()
}

/// Why a port is closed at a load balancer, of those that an environment has: which one, where, and why.
fn closed<'o>(
    environment: &EnvironmentRecord,
    observed: &'o Observed,
) -> Vec<(u16, &'o str, &'o str)> {
    let ports = ports_of(environment);
    let mut all = Vec::new();
    for (name, seen) in observed.proxies.iter().filter(|(_, seen)| seen.connected) {
        for stream in seen.report.iter().flat_map(|report| &report.streams) {
            if let Some(why) = &stream.failed
                && ports.contains(&stream.port)
            {
                all.push((stream.port, name.as_str(), why.as_str()));
            }
        }
    }
    all
}

/// The ports of an environment, and how it goes with them.
pub(crate) fn view_listeners(
    environment: &EnvironmentRecord,
    observed: &Observed,
    default: &str,
) -> Vec<ListenerView> {
    let closed = closed(environment, observed);
    let host = hosts(environment, default).into_iter().next();
    let host = host.unwrap_or_else(|| default.to_owned());
    let listeners = environment.settings.listeners().into_iter();
    listeners
        .map(|listener| {
            let scheme = match listener.mode() {
                StreamMode::Terminate => "tls",
                StreamMode::Pass if listener.by_name => "tls",
                StreamMode::Pass => "tcp",
            };
            let of_port = closed.iter().filter(|(port, _, _)| *port == listener.port);
            ListenerView {
                port: listener.port,
                protocol: listener.mode(),
                by_name: listener.by_name,
                address: format!("{scheme}://{host}:{}", listener.port),
                closed: of_port
                    .map(|(_, balancer, why)| api::ClosedListener {
                        balancer: (*balancer).to_owned(),
                        why: (*why).to_owned(),
                    })
                    .collect(),
            }
        })
        .collect()
}

/// What closed ports come to: why the environment is not Green.
pub(crate) fn worsen(colour: &mut Colour, causes: &mut Vec<String>, listeners: &[ListenerView]) {
    for listener in listeners {
        for closed in &listener.closed {
            causes.push(format!(
                "Port {} of the load balancer {} is closed: {}.",
                listener.port, closed.balancer, closed.why
            ));
            if *colour == Colour::Green {
                *colour = Colour::Yellow;
            }
        }
    }
}

impl Engine {
    /// The hostnames for which load balancers end TLS, and who has them: all of those that requests come to, and those of
    /// network environments with a listener where TLS ends. Where TLS passes, its certificate is the application's.
    pub fn tls_hosts(&self) -> Result<Vec<(String, EnvironmentName)>, StoreError> {
        let mut all = Vec::new();
        for environment in self.store.list::<EnvironmentRecord>()? {
            let listeners = environment.settings.listeners();
            let passes = environment.settings.is_network()
                && !listeners.iter().any(|listener| listener.terminates);
            // One without a name of its own has no place in the table.
            if environment.cname.is_none()
                || environment.status == EnvironmentStatus::Terminated
                || passes
            {
                continue;
            }
            let hosts = hosts(&environment, &self.config.domain);
            all.extend(
                hosts
                    .into_iter()
                    .map(|host| (host, environment.name.clone())),
            );
        }
        Ok(all)
    }

    /// Tells of ports that cannot be opened, and of those that can again.
    pub(crate) fn watch_ports(
        &self,
        environment: &EnvironmentRecord,
        observed: &Observed,
        now: Timestamp,
        turn: &mut Turn,
    ) -> Result<(), EngineError> {
        let now_closed = closed_now(environment, observed);
        if now_closed == environment.closed_ports {
            return Ok(());
        }
        self.store.update(|tx| {
            let key = EnvironmentRecord::key_of(&environment.id);
            let Some(mut record) = tx.get::<EnvironmentRecord>(&key)? else {
                return Ok(());
            };
            let now_closed = closed_now(&record, observed);
            let before = std::mem::replace(&mut record.closed_ports, now_closed.clone());
            let reasons = closed(&record, observed);
            for port in now_closed.iter().filter(|port| !before.contains(port)) {
                let mut reasons = reasons.iter();
                let why =
                    reasons.find(|(number, at, _)| *number == port.port && *at == port.balancer);
                let why = why.map_or("", |(_, _, why)| why);
                let text = format!(
                    "Port {} of the load balancer {} cannot be opened: {why}. It is tried again.",
                    port.port, port.balancer
                );
                emit_for(
                    tx,
                    &mut record,
                    Draft::new(Severity::Error, "port-closed", text, now),
                )?;
            }
            for port in before.iter().filter(|port| !now_closed.contains(port)) {
                let text = format!(
                    "Port {} of the load balancer {} is no longer in trouble.",
                    port.port, port.balancer
                );
                emit_for(
                    tx,
                    &mut record,
                    Draft::new(Severity::Info, "port-open", text, now),
                )?;
            }
            tx.put(&record)?;
            self.trim_events(tx, &record)?;
            Ok::<_, EngineError>(())
        })?;
        turn.events = true;
        turn.wake(now);
        Ok(())
    }
}

/// The ports that are closed now. What was known of a load balancer that is not heard of stays as it is.
fn closed_now(environment: &EnvironmentRecord, observed: &Observed) -> Vec<ClosedPort> {
    let mut all: BTreeSet<ClosedPort> = closed(environment, observed)
        .into_iter()
        .map(|(port, balancer, _)| ClosedPort {
            port,
            balancer: balancer.to_owned(),
        })
        .collect();
    let ports = ports_of(environment);
    let unheard = |known: &&ClosedPort| {
        let seen = observed.proxies.get(&known.balancer);
        // One that has just begun to serve has not tried yet.
        let says = |seen: &ProxyObserved| {
            let report = seen.report.as_ref().filter(|_| seen.connected);
            report.is_some_and(|report| report.streams.iter().any(|one| one.port == known.port))
        };
        ports.contains(&known.port) && seen.is_some_and(|seen| !says(seen))
    };
    all.extend(environment.closed_ports.iter().filter(unheard).cloned());
    all.into_iter().collect()
}

#[cfg(test)]
mod tests;
