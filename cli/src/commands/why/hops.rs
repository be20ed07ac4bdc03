//! From what was seen of a URL and what the controller says of it to the hops of its way, and the first that fails.
//! Each hop has a file of its own. No network, no clock.

mod app;
mod dns;
mod edge;
mod pool;
mod route;
mod target;
mod tls;

use super::outside::{Answer, CLOSED, RESET, Seen, Stands, Url};
use beanpole_protocol::api::{Explained, ExplainedBalancer, ExplainedNetwork, ListenerView};
use beanpole_protocol::proxy::{StreamMode, TracedRequest};
use serde::Serialize;
use std::net::{IpAddr, SocketAddr};

/// A part of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Name {
    /// From the name to an address.
    Dns,
    /// To a load balancer.
    Edge,
    /// TLS with it.
    Tls,
    /// From host and path, or from a port, to an environment.
    Route,
    /// Its release, and what it takes.
    Pool,
    /// The instances that could answer.
    Target,
    /// The application.
    App,
}

impl Name {
    /// As it is written.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Edge => "edge",
            Self::Tls => "tls",
            Self::Route => "route",
            Self::Pool => "pool",
            Self::Target => "target",
            Self::App => "app",
        }
    }

    /// The exit code of a command that found it failing.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Dns => 11,
            Self::Edge => 12,
            Self::Tls => 13,
            Self::Route => 14,
            Self::Pool => 15,
            Self::Target => 16,
            Self::App => 17,
        }
    }
}

/// How a hop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is passed.
    Ok,
    /// It is where the way ends.
    Failed,
    /// It was not met, or cannot be seen from here.
    Skipped,
}

/// A hop, and what shows how it is.
#[expect(clippy::struct_field_names, reason = "it is a word of the JSON")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// Which one.
    pub hop: Name,
    /// How it is.
    pub state: State,
    /// What shows it, a line each; the first says the most.
    pub evidence: Vec<String>,
    /// What to do, where it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Hop {
    fn new(hop: Name, state: State, first: impl Into<String>) -> Self {
        Self {
            hop,
            state,
            evidence: vec![first.into()],
            hint: None,
        }
    }

    fn ok(hop: Name, first: impl Into<String>) -> Self {
        Self::new(hop, State::Ok, first)
    }

    fn failed(hop: Name, first: impl Into<String>) -> Self {
        Self::new(hop, State::Failed, first)
    }

    fn skipped(hop: Name, first: impl Into<String>) -> Self {
        Self::new(hop, State::Skipped, first)
    }

    fn and(mut self, line: impl Into<String>) -> Self {
        self.evidence.push(line.into());
        self
    }

    fn and_if(self, line: Option<String>) -> Self {
        match line {
            Some(line) => self.and(line),
            None => self,
        }
    }

    fn all(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.evidence.extend(lines);
        self
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// All that is known of one URL.
pub struct Known<'a> {
    /// The URL.
    pub url: &'a Url,
    /// What was seen of it.
    pub seen: &'a Seen,
    /// What the controller says of it; else why it says nothing.
    pub told: Result<&'a Explained, &'a str>,
    /// The URL of the controller's API, where that is known.
    pub api: Option<&'a str>,
}

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// An application.
    App,
    /// A load balancer itself.
    LoadBalancer,
    /// That cannot be told without the controller.
    Unknown,
    /// Something that none of the controller's load balancers has to do with.
    Other,
}

impl<'a> Known<'a> {
    fn explained(&self) -> Option<&'a Explained> {
        self.told.ok()
    }

    /// The network environment that takes the connection, and its listener.
    fn network(&self) -> Option<(&'a ExplainedNetwork, &'a ListenerView)> {
        let network = self.explained()?.network.as_ref()?;
        Some((network, network.listener()?))
    }

    /// Whether TLS is between the client and the application.
    fn passes(&self) -> bool {
        let listener = self.network().map(|(_, listener)| listener);
        listener.is_some_and(|listener| listener.protocol == StreamMode::Pass)
    }

    /// What goes to instances.
    fn load(&self) -> &'static str {
        match self.network() {
            Some(_) => "connections",
            None => "requests",
        }
    }

    /// Whether it went to the controller's API, which is no load balancer.
    fn is_api(&self) -> bool {
        let api = self.api.and_then(|api| Url::read(api).ok());
        let gone_to = self.seen.attempts.last().map(|last| last.address);
        api.zip(gone_to).is_some_and(|(api, gone_to)| {
            let same = match api.host.parse::<IpAddr>() {
                Ok(ip) => ip == gone_to.ip(),
                Err(_) if api.host == "localhost" => gone_to.ip().is_loopback(),
                Err(_) => api.host == self.url.host,
            };
            same && api.port == gone_to.port()
        })
    }

    /// The port that it went to.
    fn port(&self) -> u16 {
        let gone_to = self.seen.attempts.last();
        gone_to.map_or(self.url.port, |last| last.address.port())
    }

    fn traced(&self) -> Option<&'a TracedRequest> {
        self.explained()?.request.as_ref()?.traced.as_ref()
    }

    fn answer(&self) -> Option<&'a Answer> {
        self.seen.answer.as_ref()?.as_ref().ok()
    }

    /// Why the load balancer answered itself, if it did.
    fn why(&self) -> Option<&'a str> {
        match self.traced() {
            Some(traced) => traced.why.as_deref(),
            None => self.answer()?.code.as_deref(),
        }
    }

    /// Whether load balancers could be asked about the request, and none of them had it.
    fn is_unheard(&self) -> bool {
        // They say nothing of requests within connections that they carry.
        if self.network().is_some() {
            return false;
        }
        let request = self.explained().and_then(|told| told.request.as_ref());
        let connected = self.explained().map_or(0, |told| {
            told.balancers.iter().filter(|one| one.connected).count()
        });
        request.is_some_and(|request| {
            request.traced.is_none() && connected > 0 && request.asked.len() >= connected
        })
    }

    /// Who answered, if anybody did.
    pub fn by(&self) -> Option<By> {
        self.answer()?;
        Some(match (self.why(), self.traced()) {
            (Some("broken-off"), _) => By::App,
            (Some(_), _) => By::LoadBalancer,
            (None, Some(_)) => By::App,
            (None, None) if self.network().is_some() => By::App,
            (None, None) if self.is_unheard() => By::Other,
            (None, None) => By::Unknown,
        })
    }

    /// Whether the load balancer sends the client elsewhere itself.
    fn is_sent_on(&self) -> bool {
        let by_route = self.explained().is_some_and(|told| {
            let route = told.route.as_ref();
            route.is_some_and(|route| {
                route.redirect_to.is_some() || (route.only_https && !self.url.scheme.is_tls())
            })
        });
        match self.traced() {
            Some(traced) => traced.why.as_deref() == Some("redirect"),
            None => by_route && self.answer().is_some_and(|answer| answer.status == 308),
        }
    }

    /// Whether an application answered to the end, or said something by itself.
    fn is_answered(&self) -> bool {
        let greeted = self.passes() && matches!(self.seen.tls, Some(Ok(_)));
        let speaks = matches!(self.seen.stands, Some(Stands::Speaks(..)));
        let answered = self.by() == Some(By::App) && self.why().is_none();
        answered || greeted || speaks
    }

    /// The hops, in the order of the way.
    pub fn hops(&self) -> Vec<Hop> {
        let (mut edge, mut tls) = (self.edge(), self.tls());
        let (route, pool, target) = (self.route(), self.pool(), self.target());
        if self.network().is_some()
            && [&pool, &target]
                .iter()
                .any(|hop| hop.state == State::Failed)
        {
            // Whether that comes before the connection stands, in the handshake or after it is a matter of moments.
            edge.is_cut_off(State::Ok);
            tls.is_cut_off(State::Skipped);
        }
        vec![self.dns(), edge, tls, route, pool, target, self.app()]
    }

    /// Why what comes behind the route was not met, where that is so.
    fn not_met(&self, hop: Name) -> Option<Hop> {
        let told = match self.told {
            Ok(told) => told,
            Err(why) => return Some(Hop::skipped(hop, why)),
        };
        if told.route.is_none() && self.network().is_none() {
            return Some(Hop::skipped(hop, "there is no route"));
        }
        self.is_sent_on()
            .then(|| Hop::skipped(hop, "the load balancer sends the client elsewhere"))
    }
}

impl Hop {
    /// It failed because the load balancer cuts off whom no instance can take: another hop says why.
    fn is_cut_off(&mut self, state: State) {
        let first = self.evidence.first();
        let is_cut = first.is_some_and(|line| line.contains(RESET) || line.contains(CLOSED));
        if self.state == State::Failed && is_cut {
            self.state = state;
            self.hint = None;
            self.evidence
                .push("load balancers cut off whom no instance can take".to_owned());
        }
    }

    fn with_first(mut self, line: &str) -> Self {
        line.clone_into(&mut self.evidence[0]);
        self
    }
}

/// The first hop that fails.
pub fn failing(hops: &[Hop]) -> Option<&Hop> {
    hops.iter().find(|hop| hop.state == State::Failed)
}

/// The address of a listener: `https://192.0.2.1:443`.
fn listener(text: &str) -> Option<SocketAddr> {
    text.split_once("://")?.1.parse().ok()
}

/// Where load balancers listen for requests, as a list; empty where none is known to.
fn listeners(balancers: &[ExplainedBalancer]) -> String {
    let all = balancers.iter().flat_map(|one| &one.listeners);
    let all: Vec<&str> = all.map(String::as_str).collect();
    all.join(", ")
}

/// A port on which HTTPS is taken.
fn port_of_https(balancers: &[ExplainedBalancer]) -> Option<u16> {
    let mut all = balancers.iter().flat_map(|one| &one.listeners);
    all.find_map(|text| text.starts_with("https://").then(|| listener(text))?)
        .map(|at| at.port())
}

/// Who listens on a port, as the end of a sentence.
fn at_port(port: u16, balancers: &[ExplainedBalancer]) -> Option<String> {
    balancers.iter().find_map(|one| {
        let mut listeners = one.listeners.iter();
        let found = listeners.find(|text| listener(text).is_some_and(|at| at.port() == port))?;
        Some(format!(
            "the load balancer `{}` listens ({found})",
            one.name
        ))
    })
}

#[cfg(test)]
mod tests;
