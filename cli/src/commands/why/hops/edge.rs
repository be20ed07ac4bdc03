//! The way to a load balancer.

use super::{Hop, Known, Name, State, at_port, listeners};
use crate::commands::why::outside::Attempt;
use crate::output::duration;
use beanpole_protocol::api::{ClosedListener, ExplainedBalancer, ExplainedNetwork, ListenerView};
use std::net::SocketAddr;

impl Known<'_> {
    pub(super) fn edge(&self) -> Hop {
        let Some(last) = self.seen.attempts.last() else {
            return Hop::skipped(Name::Edge, "there is no address to go to");
        };
        let mut tried = self.seen.attempts.iter().map(attempted);
        if last.error.is_some() {
            let first = tried.next().unwrap_or_default();
            let hop = Hop::failed(Name::Edge, first).all(tried);
            return self.edge_failed(hop, last.address);
        }
        let port = last.address.port();
        let mut lines: Vec<String> = tried.collect();
        lines.rotate_right(1);
        let mut hop = Hop {
            evidence: lines,
            ..Hop::ok(Name::Edge, "")
        };
        if self.why() == Some("too-many-connections") {
            hop.state = State::Failed;
            return hop
                .and("the load balancer has too many connections, and takes no more")
                .hint("See who keeps them open, or allow more: beanpole proxy --help");
        }
        let Some(told) = self.explained() else {
            return hop;
        };
        if let Some((network, listener)) = self.network() {
            return at_network_port(hop, network, listener, &told.balancers);
        }
        if let (Some(request), Some(traced)) = (&told.request, self.traced()) {
            let name = request.balancer.as_deref().unwrap_or_default();
            return hop.and(format!(
                "it is the load balancer `{name}`, with {}",
                newest(traced.generation.0, told.generation.0)
            ));
        }
        if self.is_unheard() && self.answer().is_some() {
            hop.state = State::Failed;
            let address = last.address;
            let what = match self.answer().and_then(|answer| answer.server.as_ref()) {
                _ if self.is_api() => {
                    format!("{address} is the controller's own API, and no load balancer")
                }
                _ if self.why().is_some() => {
                    format!("a load balancer of another controller answers at {address}")
                }
                Some(server) => format!("something else answers at {address}: {server}"),
                None => format!("something else answers at {address}"),
            };
            hop.evidence.insert(0, what);
            let hop = hop.and("none of the controller's load balancers had the request");
            return hop.hint(match listeners(&told.balancers) {
                none if none.is_empty() => "See the load balancers: beanpole edge list".to_owned(),
                all => format!("They listen on {all}: lead the name there, or try one out by --at"),
            });
        }
        let listening = at_port(port, &told.balancers);
        hop.and_if(listening.map(|line| format!("at that port {line}")))
    }

    /// What the controller knows of a load balancer that does not answer.
    fn edge_failed(&self, hop: Hop, address: SocketAddr) -> Hop {
        let Some(told) = self.explained() else {
            return hop.hint("Look whether the load balancer runs there: beanpole proxy --help");
        };
        let mut hop = hop;
        for one in &told.balancers {
            hop = hop.and(standing(one, told.generation.0));
        }
        if let Some((network, listener)) = self.network() {
            let name = &network.environment;
            return hop
                .all(listener.closed.iter().map(cannot_open))
                .hint(format!("See how its ports are: beanpole status {name}"));
        }
        if told.balancers.is_empty() {
            return hop
                .and("the controller has no load balancer")
                .hint("Start one: beanpole up");
        }
        if at_port(address.port(), &told.balancers).is_none()
            && told.balancers.iter().any(|one| one.connected)
        {
            return hop.hint(format!(
                "No load balancer listens on port {}: they listen on {}",
                address.port(),
                listeners(&told.balancers)
            ));
        }
        if told.balancers.iter().all(|one| !one.connected) {
            return hop.hint("Start the load balancer: beanpole up, or beanpole proxy");
        }
        hop.hint("Look for a firewall, or for a name that leads to another machine")
    }
}

/// Something takes connections at a port of a network environment: a load balancer, unless none could open it.
fn at_network_port(
    hop: Hop,
    network: &ExplainedNetwork,
    listener: &ListenerView,
    balancers: &[ExplainedBalancer],
) -> Hop {
    let name = &network.environment;
    let mut connected = balancers.iter().filter(|one| one.connected).peekable();
    let any = connected.peek().is_some();
    let closed = |one: &ExplainedBalancer| {
        let mut closed = listener.closed.iter();
        closed.any(|closed| closed.balancer == one.name)
    };
    let nowhere = any && connected.all(closed);
    let mut hop = hop.all(listener.closed.iter().map(cannot_open));
    if nowhere {
        hop.state = State::Failed;
        return hop
            .with_first(
                "another program takes connections at that port: no load balancer could open it",
            )
            .hint(format!("See who is in the way: beanpole status {name}"));
    }
    hop.and(format!(
        "load balancers listen on port {} for {name}",
        listener.port
    ))
}

fn cannot_open(closed: &ClosedListener) -> String {
    let ClosedListener { balancer, why } = closed;
    format!("the load balancer `{balancer}` cannot open the port: {why}")
}

fn attempted(attempt: &Attempt) -> String {
    let Attempt {
        address,
        took,
        error,
    } = attempt;
    match error {
        None => format!("connected to {address} in {}", duration(*took)),
        Some(why) => format!("{address}: {why}, after {}", duration(*took)),
    }
}

/// `table 12, the newest`, `table 11 where 12 is the newest`.
pub(super) fn newest(has: u64, newest: u64) -> String {
    if has >= newest {
        format!("routing table {has}, the newest")
    } else {
        format!("routing table {has}, where {newest} is the newest")
    }
}

fn standing(one: &ExplainedBalancer, generation: u64) -> String {
    let table = one.generation.map_or_else(String::new, |has| {
        format!(", with {}", newest(has.0, generation))
    });
    let seen = match (one.connected, one.last_seen) {
        (true, _) => format!("is connected to the controller{table}"),
        (false, Some(at)) => {
            format!("is not connected to the controller; it was last heard of at {at}")
        }
        (false, None) => "has not been heard of since the controller started".to_owned(),
    };
    format!("the load balancer `{}` {seen}", one.name)
}
