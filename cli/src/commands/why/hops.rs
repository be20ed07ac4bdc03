//! From what was seen of a URL and what the controller says of it to the hops of its way, and the first that fails.
//! No network, no clock.

use super::outside::{Answer, Attempt, Found, Handshake, SPEAKS_TLS, Seen, Trusted, Url};
use crate::output::{duration, plural};
use beanpole_protocol::api::{
    CertificateStatus, Explained, ExplainedBalancer, ExplainedNetwork, ExplainedPool,
    ExplainedTarget,
};
use beanpole_protocol::proxy::TracedRequest;
use beanpole_protocol::{Digest, ReleaseNumber};
use serde::Serialize;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Instances that are told one by one.
const MOST_TARGETS: usize = 12;

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
    /// From host and path to an environment.
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
            (None, None) if self.is_unheard() => By::Other,
            (None, None) => By::Unknown,
        })
    }

    /// Whether the load balancer sends the client elsewhere itself.
    fn is_sent_on(&self) -> bool {
        let by_route = self.explained().is_some_and(|told| {
            let route = told.route.as_ref();
            route.is_some_and(|route| {
                route.redirect_to.is_some() || (route.only_https && !self.url.tls)
            })
        });
        match self.traced() {
            Some(traced) => traced.why.as_deref() == Some("redirect"),
            None => by_route && self.answer().is_some_and(|answer| answer.status == 308),
        }
    }

    /// Whether an application answered to the end.
    fn is_answered(&self) -> bool {
        self.by() == Some(By::App) && self.why().is_none()
    }

    /// The hops, in the order of the way.
    pub fn hops(&self) -> Vec<Hop> {
        vec![
            self.dns(),
            self.edge(),
            self.tls(),
            self.route(),
            self.pool(),
            self.target(),
            self.app(),
        ]
    }

    fn dns(&self) -> Hop {
        let host = &self.url.host;
        let (addresses, found) = match &self.seen.addresses {
            Ok(found) => found,
            Err(why) => {
                return Hop::failed(Name::Dns, format!("{host} does not resolve: {why}")).hint(
                    "Add a record for the name that leads to a load balancer, or go around the DNS: beanpole why URL --at ADDR",
                );
            }
        };
        let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let list = list.join(", ");
        let hop = match found {
            Found::Given => Hop::skipped(
                Name::Dns,
                format!("not asked: it goes to {list}, as --at says"),
            ),
            Found::Literal => Hop::skipped(Name::Dns, format!("{host} is an address")),
            Found::Localhost => Hop::ok(
                Name::Dns,
                format!("{host} is this machine, as are all names under localhost"),
            ),
            Found::Resolved(took) => Hop::ok(
                Name::Dns,
                format!("{host} resolves to {list} in {}", duration(*took)),
            ),
        };
        let local = addresses.iter().all(IpAddr::is_loopback);
        match self.explained() {
            Some(told) if *found != Found::Given && !local => {
                hop.and_if(leads_to(addresses, &told.balancers))
            }
            _ => hop,
        }
    }

    fn edge(&self) -> Hop {
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
        if let (Some(request), Some(traced)) = (&told.request, self.traced()) {
            let name = request.balancer.as_deref().unwrap_or_default();
            return hop.and(format!(
                "it is the load balancer `{name}`, with {}",
                newest(traced.generation.0, told.generation.0)
            ));
        }
        if self.is_unheard() && self.answer().is_some() {
            hop.state = State::Failed;
            let what = match self.answer().and_then(|answer| answer.server.as_ref()) {
                _ if self.why().is_some() => {
                    "a load balancer of another controller answers there".to_owned()
                }
                Some(server) => format!("something else answers there: {server}"),
                None => "something else answers there".to_owned(),
            };
            return hop
                .and(what)
                .and("none of the controller's load balancers had the request")
                .hint(
                    "See where they listen under `balancers` with --json, and lead the name there",
                );
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
        if told.balancers.is_empty() {
            return hop
                .and("the controller has no load balancer")
                .hint("Start one: beanpole up");
        }
        if at_port(address.port(), &told.balancers).is_none()
            && told.balancers.iter().any(|one| one.connected)
        {
            let all = told.balancers.iter().flat_map(|one| &one.listeners);
            let all: Vec<&str> = all.map(String::as_str).collect();
            return hop.hint(format!(
                "No load balancer listens on port {}: they listen on {}",
                address.port(),
                all.join(", ")
            ));
        }
        if told.balancers.iter().all(|one| !one.connected) {
            return hop.hint("Start the load balancer: beanpole up, or beanpole proxy");
        }
        hop.hint("Look for a firewall, or for a name that leads to another machine")
    }

    fn tls(&self) -> Hop {
        if !self.url.tls {
            return match self.is_for_tls() {
                Some(why) => Hop::failed(Name::Tls, why)
                    .hint(format!("Ask by HTTPS: beanpole why {}", self.by_tls())),
                None => Hop::skipped(Name::Tls, "plain HTTP"),
            };
        }
        let host = &self.url.host;
        let done = match &self.seen.tls {
            None => return Hop::skipped(Name::Tls, "there is no connection"),
            Some(Ok(done)) => done,
            Some(Err(why)) => {
                let hop = Hop::failed(Name::Tls, format!("no handshake: {why}"));
                return self.tls_failed(hop);
            }
        };
        let mut hop = Hop::ok(Name::Tls, shown(done));
        hop = hop.and_if(self.is_to_be_shown(done));
        if self.why() == Some("no-client-certificate") {
            hop.state = State::Failed;
            return hop
                .and(format!(
                    "{host} is for clients that show a certificate, and none was shown"
                ))
                .hint("See which authorities are asked for: beanpole cert list");
        }
        if let Some(wrong) = &done.wrong {
            hop.state = State::Failed;
            hop.evidence.insert(0, format!("the certificate {wrong}"));
            return hop.hint(format!(
                "Have one for {host}: beanpole cert request, or beanpole cert add"
            ));
        }
        match done.trusted {
            Trusted::Machine => hop.and("an authority that this machine knows vouches for it"),
            Trusted::Own => hop.and(
                "the controller's own authority vouches for it: clients have to know that one (beanpole ca show)",
            ),
            Trusted::Nobody => {
                hop.state = State::Failed;
                let line = "nobody whom clients know vouches for the certificate".to_owned();
                hop.evidence.insert(0, line);
                hop.hint("Get one by ACME (beanpole cert request), give one (beanpole cert add), or make an authority of your own: beanpole ca init")
            }
        }
    }

    /// The same URL by HTTPS, as it is typed.
    fn by_tls(&self) -> String {
        let gone_to = self.seen.attempts.last().map(|last| last.address);
        match (&self.seen.addresses, gone_to) {
            (Ok((_, Found::Given)), Some(address)) => {
                format!("{} --at {address}", self.url.with_tls(443).shown())
            }
            _ => self.url.with_tls(self.url.port).shown(),
        }
    }

    /// Why plain HTTP gets no answer where it went, if that is because TLS is spoken there.
    fn is_for_tls(&self) -> Option<String> {
        let failed = self.seen.answer.as_ref()?.as_ref().err()?;
        if failed == SPEAKS_TLS {
            return Some(SPEAKS_TLS.to_owned());
        }
        let port = self.seen.attempts.last()?.address.port();
        let listening = at_port(port, &self.explained()?.balancers)?;
        let by_tls = listening.contains("https://");
        by_tls.then(|| format!("{listening}: it takes HTTPS alone, and was asked by plain HTTP"))
    }

    /// The certificate that the controller wants shown, where another one is, or something is to be said of it.
    fn is_to_be_shown(&self, done: &Handshake) -> Option<String> {
        let told = self.explained()?;
        let Some(wanted) = &told.certificate else {
            return Some(if told.default_domain {
                "the controller has none for the name: it is the load balancer's own for the default domain".to_owned()
            } else {
                "the controller has none for the name".to_owned()
            });
        };
        let shown: Option<&Digest> = done.facts.as_ref().ok().map(|facts| &facts.fingerprint);
        let name = &wanted.name;
        if wanted.fingerprint.as_ref() != shown {
            let held = if wanted.in_force {
                ""
            } else {
                ", which load balancers do not have yet"
            };
            return Some(format!(
                "the controller wants `{name}` shown{held}, and it is another one"
            ));
        }
        let causes = wanted.causes.join(" ");
        Some(match wanted.status {
            CertificateStatus::Valid => format!("it is `{name}`, as it is to be"),
            status => format!("it is `{name}`, as it is to be: {status}. {causes}"),
        })
    }

    fn tls_failed(&self, hop: Hop) -> Hop {
        let host = &self.url.host;
        let Some(told) = self.explained() else {
            return hop.hint(format!(
                "A load balancer refuses names that it has no certificate for. To ask it without TLS: beanpole why http://{host}"
            ));
        };
        match &told.certificate {
            None if !told.default_domain => hop
                .and(format!("there is no certificate for {host}, and none is the default: load balancers refuse the name"))
                .hint("Get one by ACME (beanpole cert request), or give one: beanpole cert add"),
            None => hop.hint("Look at the log of the load balancer: beanpole proxy"),
            Some(wanted) => {
                let hop = hop.and(format!(
                    "the certificate `{}` is to be shown: {}. {}",
                    wanted.name,
                    wanted.status,
                    wanted.causes.join(" ")
                ));
                let hop = if wanted.terms.client_authorities.is_some() {
                    hop.and("its hostnames are for clients that show a certificate, and none was shown")
                } else {
                    hop
                };
                hop.hint(format!("Look at it: beanpole cert show {}", wanted.name))
            }
        }
    }

    fn route(&self) -> Hop {
        let (host, path) = (&self.url.host, &self.url.path);
        let told = match self.told {
            Ok(told) => told,
            Err(_) if self.why() == Some("unknown-host") => {
                return Hop::failed(
                    Name::Route,
                    format!("the load balancer knows no environment by the hostname {host}"),
                )
                .hint("See which there are: beanpole list");
            }
            Err(why) => return Hop::skipped(Name::Route, why),
        };
        let Some(route) = &told.route else {
            if let Some(network) = &told.network {
                return of_network(host, network);
            }
            let text = format!("no environment has the hostname {host} for the path {path}");
            let hop = Hop::failed(Name::Route, text);
            let near = (!told.near.is_empty()).then(|| told.near.join(", "));
            return hop
                .and_if(near.map(|near| format!("there is: {near}")))
                .hint("Give it to one: beanpole domain add");
        };
        let paths = match route.paths.as_slice() {
            [] => String::new(),
            paths => format!(" and the path {}", paths.join(" or ")),
        };
        let to = match &told.environment {
            Some(one) => format!("the environment {} of {}", one.name, one.application),
            None => "no environment".to_owned(),
        };
        let text = format!("the hostname {}{paths} leads to {to}", route.host);
        if self.why() == Some("unknown-host") {
            let traced = self.traced().map_or(0, |traced| traced.generation.0);
            return Hop::failed(Name::Route, "the load balancer does not know the hostname")
                .and(format!(
                    "by the newest table, {text}; the load balancer has {}",
                    newest(traced, told.generation.0)
                ))
                .hint("It follows as soon as it is connected: see why it is not in its log");
        }
        if let Some(to) = &route.redirect_to {
            let how = if route.only_https { ", over HTTPS" } else { "" };
            return Hop::ok(
                Name::Route,
                format!("{text}, and sends clients to {to}{how}"),
            );
        }
        if route.only_https && !self.url.tls {
            return Hop::ok(Name::Route, format!("{text}, and sends clients to HTTPS"));
        }
        let rule = route.rule.as_ref();
        let rule = rule.map(|rule| format!("its rule `{rule}` takes the request"));
        Hop::ok(Name::Route, text).and_if(rule)
    }

    /// Why what comes behind the route was not met, where that is so.
    fn not_met(&self, hop: Name) -> Option<Hop> {
        let told = match self.told {
            Ok(told) => told,
            Err(why) => return Some(Hop::skipped(hop, why)),
        };
        if told.route.is_none() {
            return Some(Hop::skipped(hop, "there is no route"));
        }
        self.is_sent_on()
            .then(|| Hop::skipped(hop, "the load balancer sends the client elsewhere"))
    }

    fn pool(&self) -> Hop {
        if self.told.is_err()
            && let Some(
                code @ ("too-many-requests" | "body-too-large" | "over-capacity" | "maintenance"),
            ) = self.why()
        {
            return Hop::failed(Name::Pool, format!("the load balancer refuses it: {code}"));
        }
        if let Some(hop) = self.not_met(Name::Pool) {
            return hop;
        }
        let Some(told) = self.explained() else {
            return Hop::skipped(Name::Pool, "unknown");
        };
        let Some(environment) = &told.environment else {
            return Hop::failed(Name::Pool, "the route has no pool of instances");
        };
        let name = &environment.name;
        let lines: Vec<String> = told.pools.iter().map(pooled).collect();
        let mut lines = lines.into_iter();
        let mut hop = Hop::ok(Name::Pool, lines.next().unwrap_or_default()).all(lines);
        hop = hop.all(told.pools.iter().flat_map(limits));
        hop = hop.and_if(
            environment
                .operation
                .as_ref()
                .map(|id| format!("{name} is {}, by the operation {id}", environment.status)),
        );
        if self.is_answered() || self.why() == Some("static-file") {
            return hop;
        }
        let refused = match self.why() {
            Some("too-many-requests") => Some((
                "more requests come than it takes (status 429)",
                format!("See its limits: beanpole config {name}"),
            )),
            Some("over-capacity") => Some((
                "more requests are in flight than it takes at a time (status 503)",
                format!("See MaxRequests and MaxRequestsPerInstance: beanpole config {name}"),
            )),
            Some("maintenance") => Some((
                "it is closed for maintenance (status 503)",
                format!("Open it again: beanpole maintenance off {name}"),
            )),
            _ => None,
        };
        if let Some((what, hint)) = refused {
            hop.state = State::Failed;
            hop.evidence.insert(0, what.to_owned());
            return hop.hint(hint);
        }
        if told.targets.is_empty() {
            hop.state = State::Failed;
            let why = match environment.release {
                None => format!("{name} has no release that is live, and no instances"),
                Some(release) => {
                    format!("{name} has no instances, though release {release} is live")
                }
            };
            hop.evidence.insert(0, why);
            return hop
                .all(environment.causes.clone())
                .hint(match environment.release {
                    None => format!("Deploy a version: beanpole deploy {name}"),
                    Some(_) => format!("See what becomes of it: beanpole status {name}"),
                });
        }
        hop
    }

    fn target(&self) -> Hop {
        if self.told.is_err() && self.why() == Some("no-healthy-instance") {
            return Hop::failed(
                Name::Target,
                "the load balancer has no instance that takes requests",
            )
            .hint("See how they are: beanpole health");
        }
        if let Some(hop) = self.not_met(Name::Target) {
            return hop;
        }
        if self.why() == Some("static-file") {
            return Hop::skipped(Name::Target, "a static file needs none");
        }
        let Some(told) = self.explained() else {
            return Hop::skipped(Name::Target, "unknown");
        };
        if told.targets.is_empty() {
            return Hop::skipped(Name::Target, "there are no instances");
        }
        let serving: u32 = told.pools.iter().map(|pool| pool.serving).sum();
        let taking: u32 = told.pools.iter().map(|pool| pool.taking).sum();
        let text = format!(
            "{taking} of {} {} requests",
            plural(u64::from(serving), "instance"),
            if serving == 1 { "takes" } else { "take" }
        );
        // What is odd comes first, and is not lost behind what is not.
        let mut targets: Vec<&ExplainedTarget> = told.targets.iter().collect();
        targets.sort_by_key(|target| target.taking && target.why.is_none());
        let more = targets.len().saturating_sub(MOST_TARGETS);
        let more = (more > 0).then(|| format!("and {more} more"));
        let lines = targets.iter().take(MOST_TARGETS).map(|one| targeted(one));
        let mut hop = Hop::ok(Name::Target, text).all(lines).and_if(more);
        let refused = self.why() == Some("no-healthy-instance");
        if self.is_answered() || (taking > 0 && !refused) {
            return hop;
        }
        hop.state = State::Failed;
        let any_connected = told.balancers.iter().any(|one| one.connected);
        if taking > 0 {
            hop.evidence.insert(
                0,
                "the load balancer found none that takes requests".to_owned(),
            );
        } else if !any_connected {
            let line = "no load balancer is connected that could say which instance takes requests";
            return Hop {
                state: State::Skipped,
                ..hop.with_first(line)
            };
        } else {
            hop.evidence[0] = format!(
                "none of {} takes requests",
                plural(told.targets.len() as u64, "instance")
            );
        }
        match &told.environment {
            Some(one) => {
                let name = &one.name;
                hop.hint(format!(
                    "See why: beanpole health {name}, beanpole logs {name}"
                ))
            }
            None => hop,
        }
    }

    fn app(&self) -> Hop {
        let answer = match &self.seen.answer {
            None => return Hop::skipped(Name::App, "nothing was asked"),
            Some(Err(_)) if self.is_for_tls().is_some() => {
                return Hop::skipped(Name::App, "nothing was asked of it");
            }
            Some(Err(why)) => {
                let hop = Hop::failed(Name::App, format!("no answer: {why}"));
                return self.with_logs(hop.and_if(self.traced().map(traced)));
            }
            Some(Ok(answer)) => answer,
        };
        let took = duration(answer.took);
        let status = answer.status;
        if self.is_sent_on() {
            return Hop::skipped(
                Name::App,
                format!("the load balancer answered {status} in {took}, and asked no instance"),
            );
        }
        match (self.why(), self.by()) {
            (Some(why @ ("no-answer" | "late-answer" | "broken-off")), _) => {
                let text = match why {
                    "no-answer" => "the instance broke the connection",
                    "late-answer" => "the instance did not answer in time",
                    _ => "the answer of the instance broke off",
                };
                let hop = Hop::failed(Name::App, text)
                    .and(format!(
                        "the load balancer answered {status} ({why}) in {took}"
                    ))
                    .and_if(self.traced().map(traced));
                self.with_logs(hop)
            }
            (Some("static-file"), _) => {
                let release = self.traced().and_then(|traced| traced.release);
                let whose = release.map_or(String::new(), |number| format!(" of release {number}"));
                Hop::ok(
                    Name::App,
                    format!(
                        "the load balancer answered {status} in {took} with a static file{whose}, and asked no instance"
                    ),
                )
            }
            (Some(why), _) => {
                let hop = Hop::skipped(
                    Name::App,
                    format!("the load balancer answered {status} ({why}) in {took} itself"),
                );
                if is_of_another_hop(why) {
                    return hop;
                }
                Hop {
                    state: State::Failed,
                    ..hop
                }
            }
            (None, Some(By::Other)) => Hop::skipped(
                Name::App,
                format!("what answers there answered {status} in {took}"),
            ),
            (None, by) => {
                let who = match by {
                    Some(By::App) => "the application",
                    _ => "the application, as it seems,",
                };
                let text = format!("{who} answered {status} in {took}");
                let hop = if status >= 500 {
                    Hop::failed(Name::App, text)
                } else {
                    Hop::ok(Name::App, text)
                };
                let hop = hop.and_if(self.traced().map(traced));
                if status >= 500 {
                    self.with_logs(hop)
                } else {
                    hop
                }
            }
        }
    }

    fn with_logs(&self, hop: Hop) -> Hop {
        match self.explained().and_then(|told| told.environment.as_ref()) {
            Some(one) => hop.hint(format!("See what it says: beanpole logs {}", one.name)),
            None => hop.hint("See what it says: beanpole logs"),
        }
    }
}

impl Hop {
    fn with_first(mut self, line: &str) -> Self {
        line.clone_into(&mut self.evidence[0]);
        self
    }
}

/// Whether another hop says why the load balancer answered itself.
fn is_of_another_hop(why: &str) -> bool {
    matches!(
        why,
        "unknown-host"
            | "no-healthy-instance"
            | "too-many-requests"
            | "over-capacity"
            | "maintenance"
            | "body-too-large"
            | "too-many-connections"
            | "no-client-certificate"
            | "redirect"
    )
}

/// The first hop that fails.
pub fn failing(hops: &[Hop]) -> Option<&Hop> {
    hops.iter().find(|hop| hop.state == State::Failed)
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
fn newest(has: u64, newest: u64) -> String {
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

/// What of a network environment is said to somebody who sends requests.
fn of_network(host: &str, network: &ExplainedNetwork) -> Hop {
    let name = &network.environment;
    let mut hop = Hop::failed(
        Name::Route,
        format!(
            "{host} is the network environment {name}, which takes connections and no requests"
        ),
    );
    for listener in &network.listeners {
        hop = hop.and(format!("it is met at {}", listener.address));
        for closed in &listener.closed {
            hop = hop.and(format!(
                "there, the load balancer {} is closed: {}",
                closed.balancer, closed.why
            ));
        }
    }
    hop.hint(format!("See how it is: beanpole status {name}"))
}

/// The address of a listener: `https://192.0.2.1:443`.
fn listener(text: &str) -> Option<SocketAddr> {
    text.split_once("://")?.1.parse().ok()
}

/// What of the addresses leads to a load balancer, as far as that can be told by them alone.
fn leads_to(addresses: &[IpAddr], balancers: &[ExplainedBalancer]) -> Option<String> {
    let listening = |one: &ExplainedBalancer| {
        let known = one.listeners.iter().filter_map(|text| listener(text));
        known.map(|known| known.ip()).collect::<Vec<IpAddr>>()
    };
    for one in balancers {
        let known = listening(one);
        if let Some(address) = addresses.iter().find(|address| known.contains(address)) {
            return Some(format!("{address} is the load balancer `{}`", one.name));
        }
    }
    // One that listens on every address does not say which those are.
    let any = balancers.iter().flat_map(listening);
    let mut any = any.filter(|address| address.is_unspecified());
    (any.next().is_none() && !balancers.is_empty()).then(|| {
        "no load balancer of the controller listens on any of these addresses: something in between, such as a NAT, may lead to one".to_owned()
    })
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

fn shown(done: &Handshake) -> String {
    let version = done.version;
    let took = duration(done.took);
    match &done.facts {
        Ok(facts) => format!(
            "TLS {version} in {took}; the certificate for {} by {}, valid until {}",
            facts.names.join(", "),
            facts.issuer,
            facts.not_after
        ),
        Err(why) => format!("TLS {version} in {took}; of the certificate: {why}"),
    }
}

fn releases(all: &[ReleaseNumber]) -> String {
    match all {
        [] => "no release".to_owned(),
        [one] => format!("release {one}"),
        all => {
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            format!("releases {}", all.join(", "))
        }
    }
}

fn pooled(pool: &ExplainedPool) -> String {
    let mut text = format!(
        "{} gets {} % of the requests: {} of {} {} them",
        releases(&pool.releases),
        pool.percent,
        pool.taking,
        plural(u64::from(pool.serving), "instance"),
        if pool.serving == 1 { "takes" } else { "take" }
    );
    for (count, what) in [
        (pool.ejected, "left out for a while"),
        (pool.draining, "draining"),
        (pool.probed, "checked and not let in yet"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    text
}

fn limits(pool: &ExplainedPool) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(hold) = pool.hold_ms {
        let hold = duration(Duration::from_millis(hold));
        lines.push(format!(
            "requests wait up to {hold} while no instance takes them"
        ));
    }
    if let Some(rate) = pool.per_second {
        lines.push(format!("at most {rate} requests a second"));
    }
    if let Some(rate) = pool.per_second_by_client {
        lines.push(format!("at most {rate} requests a second of one client"));
    }
    if let Some(bytes) = pool.body_bytes {
        lines.push(format!("bodies of at most {}", crate::output::bytes(bytes)));
    }
    lines
}

fn targeted(target: &ExplainedTarget) -> String {
    let host = match &target.host {
        Some(host) => format!("on {host}"),
        None => format!("at {}", target.address),
    };
    let mut text = format!(
        "{} {host}, release {}: {}",
        target.instance, target.release, target.health
    );
    if let Some(why) = &target.why {
        text.push_str(&format!("; {why}"));
    }
    if let Some(check) = &target.last_check {
        let said = check.said();
        if !target.why.as_ref().is_some_and(|why| why.contains(&said)) {
            text.push_str(&format!("; last check: {said}"));
        }
    }
    text
}

fn traced(traced: &TracedRequest) -> String {
    let took = Duration::from_micros(traced.duration_us);
    let took = if took < Duration::from_millis(10) {
        format!("{:.1} ms", took.as_secs_f64() * 1e3)
    } else {
        duration(took)
    };
    match (&traced.instance, traced.release) {
        (Some(instance), Some(release)) => {
            format!("it was {instance}, release {release}; the load balancer counts {took}")
        }
        _ => format!("the load balancer counts {took}"),
    }
}

#[cfg(test)]
mod tests;
