//! From host and path, or from a port, to an environment.

use super::edge::newest;
use super::{Hop, Known, Name, at_port};
use crate::commands::why::outside::Url;
use beanpole_protocol::EnvironmentName;
use beanpole_protocol::api::{
    Explained, ExplainedEnvironment, ExplainedNetwork, ListenerView, Scheme,
};
use beanpole_protocol::proxy::StreamMode;

impl Known<'_> {
    pub(super) fn route(&self) -> Hop {
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
        if let Some((network, listener)) = self.network() {
            return by_port(network, listener, told.environment.as_ref());
        }
        let Some(route) = &told.route else {
            if told.no_such_name {
                return self.of_no_name(told);
            }
            if let Some(network) = &told.network {
                return of_network(self.url, network);
            }
            if !self.url.scheme.asks() {
                return self.of_no_port(told);
            }
            let text = format!("no environment has the hostname {host} for the path {path}");
            let hop = Hop::failed(Name::Route, text);
            let near = (!told.near.is_empty()).then(|| told.near.join(", "));
            return hop
                .and_if(near.map(|near| format!("there is: {near}")))
                .hint(self.give_it(told));
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
        if route.only_https && !self.url.scheme.is_tls() {
            return Hop::ok(Name::Route, format!("{text}, and sends clients to HTTPS"));
        }
        let rule = route.rule.as_ref();
        let rule = rule.map(|rule| format!("its rule `{rule}` takes the request"));
        Hop::ok(Name::Route, text).and_if(rule)
    }
}

/// The environment that takes connections to a port, and what is done to them.
fn by_port(
    network: &ExplainedNetwork,
    listener: &ListenerView,
    environment: Option<&ExplainedEnvironment>,
) -> Hop {
    let name = &network.environment;
    let port = listener.port;
    let of = environment.map_or_else(String::new, |one| format!(" of {}", one.application));
    let who = if listener.by_name {
        "clients of TLS that ask for its hostnames"
    } else {
        "connections"
    };
    let how = match listener.protocol {
        StreamMode::Terminate => "TLS ends at the load balancer",
        StreamMode::Pass if listener.by_name => "TLS passes to the application",
        StreamMode::Pass => "bytes pass as they are",
    };
    let text = format!("port {port} takes {who} for the network environment {name}{of}: {how}");
    Hop::ok(Name::Route, text)
}

impl Known<'_> {
    /// The port is shared by names, and this client has none of them.
    fn of_no_name(&self, told: &Explained) -> Hop {
        let (host, port) = (&self.url.host, self.port());
        let text = if self.url.scheme.is_tls() {
            format!("port {port} is shared by names, and no environment has {host} there")
        } else {
            format!(
                "port {port} is shared by the names that clients of TLS ask for, and TLS was not spoken"
            )
        };
        let near = (!told.near.is_empty()).then(|| told.near.join(", "));
        Hop::failed(Name::Route, text)
            .and_if(near.map(|near| format!("there is: {near}")))
            .hint(match told.near.iter().find(|name| !name.contains('*')) {
                Some(name) => format!("Ask for one of its names: beanpole why tls://{name}:{port}"),
                None => self.give_it(told),
            })
    }

    /// What gives the host to an environment.
    pub(super) fn give_it(&self, told: &Explained) -> String {
        let host = &self.url.host;
        if !told.default_domain {
            return format!(
                "Give it to an environment: beanpole domain add ENVIRONMENT {host}; see which there are: beanpole list"
            );
        }
        // What is below the default domain belongs to the environment of that name.
        let label = host.split_once('.').map(|(label, below)| {
            let name = EnvironmentName::new(label).ok();
            name.filter(|_| below != "localhost" || host.matches('.').count() == 1)
        });
        match label.flatten() {
            Some(name) => format!(
                "See which environments there are: beanpole list; or create this one: beanpole create {name}"
            ),
            None => {
                "See which environments there are, and where they are met: beanpole list".to_owned()
            }
        }
    }

    /// No network environment has the port, nor the host.
    fn of_no_port(&self, told: &Explained) -> Hop {
        let port = self.port();
        let text = format!("no network environment takes connections at port {port}");
        let hop = Hop::failed(Name::Route, text);
        let Some(listening) = at_port(port, &told.balancers) else {
            return hop.hint(format!(
                "Have one listen there: beanpole create NAME --load-balancer network --listen {port}"
            ));
        };
        let scheme = if listening.contains("https://") {
            Scheme::Https
        } else {
            Scheme::Http
        };
        let url = self.url.by(scheme, self.url.port).shown();
        hop.and(format!("{listening}, for requests"))
            .hint(format!("Send one: beanpole why {url}"))
    }
}

/// What is said of a network environment that was met by its host alone, at a port that is not its own.
fn of_network(url: &Url, network: &ExplainedNetwork) -> Hop {
    let name = &network.environment;
    let (host, port) = (&url.host, url.port);
    let what = if url.scheme.asks() {
        "which takes connections and no requests".to_owned()
    } else {
        format!("which takes no connections at port {port}")
    };
    let mut hop = Hop::failed(
        Name::Route,
        format!("{host} is the network environment {name}, {what}"),
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
    hop.hint(match network.listeners.first() {
        Some(listener) => format!("Look there: beanpole why {}", listener.address),
        None => format!("See how it is: beanpole status {name}"),
    })
}
