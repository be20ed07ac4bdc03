//! Network environments: the ports that their load balancer listens on, and what of an application one's settings
//! says nothing there.

use super::processes::LISTENER;
use super::{
    APPLICATION, ENVIRONMENT, OptionError, OptionSettings, PROCESS, PROXY, SPLIT,
    is_of_static_files, spec,
};
use crate::agent::INSTANCE_PORTS;
use crate::proxy::StreamMode;

/// The most listeners of an environment, as of an NLB.
const MOST_LISTENERS: usize = 50;
/// How long a connection may be silent, in seconds, as with an NLB.
pub(super) const NETWORK_IDLE_S: u64 = 350;

/// Options that say something of requests, or their answers.
const OF_REQUESTS: [(&str, &str); 19] = [
    (PROXY, "AnswerTimeout"),
    (PROXY, "ClientRateBurst"),
    (PROXY, "ClientRateLimit"),
    (PROXY, "Compression"),
    (PROXY, "CompressionMinSize"),
    (PROXY, "EjectAfterErrors"),
    (PROXY, "EjectErrorRate"),
    (PROXY, "HashBy"),
    (PROXY, "MaxBodySize"),
    (PROXY, "ProtocolVersion"),
    (PROXY, "RateBurst"),
    (PROXY, "RateLimit"),
    (PROXY, "ReplaceErrors"),
    (PROXY, "RequestTimeout"),
    (PROXY, "RetryFailed"),
    (PROXY, "StickyBy"),
    (SPLIT, "Sticky"),
    (SPLIT, "GuardLatency"),
    (PROCESS, "StickinessLBCookieDuration"),
];

/// A port on which a network environment takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// The port.
    pub port: u16,
    /// Whether TLS ends at the load balancer.
    pub terminates: bool,
    /// Whether it takes clients alone that ask for the environment's hostnames.
    pub by_name: bool,
}

impl Listener {
    /// What is done to the bytes.
    pub fn mode(self) -> StreamMode {
        if self.terminates {
            StreamMode::Terminate
        } else {
            StreamMode::Pass
        }
    }
}

fn of_port(port: u16) -> String {
    LISTENER.replace("PORT", &port.to_string())
}

impl OptionSettings {
    /// Whether connections are carried, and not requests.
    pub fn is_network(&self) -> bool {
        self.get(ENVIRONMENT, "LoadBalancerType") == Some("network")
    }

    /// Whether a process's health check has to ask for a path by HTTP.
    pub(super) fn asks_for_a_path(&self, namespace: &str) -> bool {
        let older = || {
            self.get(APPLICATION, "Application Healthcheck URL")
                .filter(|_| namespace == PROCESS)
        };
        let path = self.get(namespace, "HealthCheckPath").or_else(older);
        path.is_some_and(|path| !path.is_empty())
    }

    /// The listeners of a network environment that are on, by their ports.
    pub fn listeners(&self) -> Vec<Listener> {
        if !self.is_network() {
            return Vec::new();
        }
        let by_name = self.flag(PROXY, "RouteBySNI");
        let mut listeners: Vec<Listener> = self
            .ports()
            .filter(|(_, by_number, namespace)| {
                let asked = self.get(namespace, "ListenerEnabled").is_some();
                self.flag(namespace, "ListenerEnabled") && (asked || *by_number)
            })
            .map(|(port, _, namespace)| Listener {
                port,
                terminates: self.get(namespace, "Protocol") == Some("TLS"),
                by_name,
            })
            .collect();
        listeners.sort();
        listeners
    }

    /// Takes the listeners of `other` in place of its own.
    pub fn take_listeners_of(&mut self, other: &Self) {
        let own: Vec<String> = self.ports().map(|(_, _, name)| name.to_owned()).collect();
        self.0.retain(|namespace, _| !own.contains(namespace));
        for (_, _, namespace) in other.ports() {
            self.0
                .insert(namespace.to_owned(), other.0[namespace].clone());
        }
        match other.get(PROXY, "RouteBySNI") {
            Some(value) => self.set(PROXY, "RouteBySNI", value),
            None => {
                self.remove(PROXY, "RouteBySNI");
            }
        }
    }

    /// Checks what holds for network environments alone, or not for them.
    pub(super) fn validate_type(&self) -> Result<(), OptionError> {
        let refuse = |namespace: &str, name: &str, rule: String| {
            Err(OptionError::Type {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                rule,
            })
        };
        if !self.is_network() {
            let why = || {
                "connections to TCP ports are taken by network environments alone, and this one's load balancer \
                 takes requests. Create one with `--load-balancer network`"
                    .to_owned()
            };
            for (port, _, namespace) in self.ports() {
                let usual = match port {
                    80 => "HTTP",
                    443 => "HTTPS",
                    _ => "",
                };
                match self.get(namespace, "Protocol") {
                    Some(protocol @ ("HTTP" | "HTTPS"))
                        if !usual.is_empty() && protocol != usual =>
                    {
                        let rule = format!(
                            "the listener of port {port} is for {usual}, whatever ports the load balancers have for it"
                        );
                        return refuse(namespace, "Protocol", rule);
                    }
                    Some("TCP" | "TLS") => return refuse(namespace, "Protocol", why()),
                    _ => {}
                }
                if usual.is_empty() {
                    let rule = "listeners of requests are `default` (or 80) for plain HTTP and 443 for HTTPS, whatever \
                                ports the load balancers have for them"
                        .to_owned();
                    let options = self.0[namespace].keys();
                    let name = options
                        .into_iter()
                        .next()
                        .map_or("Protocol", String::as_str);
                    return refuse(namespace, name, rule);
                }
                if !self.flag(namespace, "ListenerEnabled") {
                    let rule = "load balancers take HTTP and HTTPS for all environments. To send clients to HTTPS: \
                                `beanpole domain add ENV DOMAIN --only-https`"
                        .to_owned();
                    return refuse(namespace, "ListenerEnabled", rule);
                }
            }
            if self.flag(PROXY, "RouteBySNI") {
                return refuse(PROXY, "RouteBySNI", why());
            }
            return Ok(());
        }
        for (namespace, name) in OF_REQUESTS {
            let usual = spec(namespace, name).map_or("", |spec| spec.default);
            if self.effective(namespace, name) != usual {
                let rule = "a network environment carries connections and knows nothing of what is in them: \
                            leave this out, or create an environment with `--load-balancer application`";
                return refuse(namespace, name, rule.to_owned());
            }
        }
        for (_, _, namespace) in self.ports() {
            if !self.effective(namespace, "Rules").is_empty() {
                let rule = "rules are about requests, and a network environment carries connections: leave it out"
                    .to_owned();
                return refuse(namespace, "Rules", rule);
            }
            if let Some("HTTP" | "HTTPS") = self.get(namespace, "Protocol") {
                let rule = "a network environment carries connections: `TCP`, or `TLS` to have TLS end there".to_owned();
                return refuse(namespace, "Protocol", rule);
            }
        }
        let mut namespaces = self.0.iter();
        if let Some((namespace, paths)) = namespaces.find(|(name, _)| is_of_static_files(name)) {
            let rule =
                "a network environment carries connections and serves no files: leave it out"
                    .to_owned();
            let path = paths.keys().next().map_or("/", String::as_str);
            return refuse(namespace, path, rule);
        }
        if self.effective(PROCESS, "Protocol") == "GRPC" {
            let rule = "a network environment checks by TCP or by HTTP".to_owned();
            return refuse(PROCESS, "Protocol", rule);
        }
        let listeners = self.listeners();
        if listeners.is_empty() {
            let rule = "a network environment needs a port to take connections on: `--listen 5432`, or `Protocol` of \
                        `aws:elbv2:listener:5432`"
                .to_owned();
            return refuse(ENVIRONMENT, "LoadBalancerType", rule);
        }
        if let Some(one) = listeners
            .iter()
            .find(|one| INSTANCE_PORTS.contains(&one.port))
        {
            let rule = format!(
                "ports {} to {} are those of instances: choose another one than {}",
                INSTANCE_PORTS.start(),
                INSTANCE_PORTS.end(),
                one.port
            );
            return refuse(&of_port(one.port), "Protocol", rule);
        }
        let twice = listeners.windows(2).find(|two| two[0].port == two[1].port);
        if let Some(two) = twice {
            let rule = format!(
                "the listeners `default` and {} are of one port",
                two[0].port
            );
            return refuse(
                &LISTENER.replace("PORT", "default"),
                "ListenerEnabled",
                rule,
            );
        }
        if listeners.len() > MOST_LISTENERS {
            let rule = format!("there are {MOST_LISTENERS} ports at most");
            return refuse(LISTENER, "Protocol", rule);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::LOADBALANCER;
    use crate::proxy::{Probe, Stickiness};

    fn network(all: &[(&str, &str, &str)]) -> OptionSettings {
        let mut settings = OptionSettings::default();
        settings.set(ENVIRONMENT, "LoadBalancerType", "network");
        for (namespace, name, value) in all {
            settings.set(namespace, name, *value);
        }
        settings
    }

    fn why(settings: &OptionSettings) -> String {
        settings.validate_whole().expect_err("refused").to_string()
    }

    const TCP: (&str, &str, &str) = ("aws:elbv2:listener:5432", "Protocol", "TCP");

    #[test]
    fn a_network_environment_listens_on_the_ports_that_are_named() {
        let settings = network(&[
            ("aws:elbv2:listener:8443", "Protocol", "TLS"),
            TCP,
            ("aws:elbv2:listener:6379", "ListenerEnabled", "false"),
            ("aws:elbv2:listener:default", "Protocol", "TCP"),
        ]);
        settings.validate_whole().expect("they are known");
        let listeners = settings.listeners();
        let told = listeners.iter().map(|one| (one.port, one.terminates));
        assert_eq!(told.collect::<Vec<_>>(), [(5432, false), (8443, true)]);
        let all = network(&[("aws:elbv2:listener:default", "ListenerEnabled", "true")]);
        assert_eq!(all.listeners()[0].port, 80);
    }

    #[test]
    fn one_without_a_port_is_refused_and_so_are_odd_ports() {
        assert!(why(&network(&[])).contains("needs a port"));
        for odd in ["0", "080", "65536", "x", "+80", "PORT", ""] {
            let namespace = format!("aws:elbv2:listener:{odd}");
            let settings = network(&[TCP, (&namespace, "Protocol", "TCP")]);
            let why = why(&settings);
            let told = why.contains("no option") || why.contains("a port from 1 to 65535");
            assert!(told, "{odd}: {why}");
        }
        let twice = [
            ("aws:elbv2:listener:default", "ListenerEnabled", "true"),
            ("aws:elbv2:listener:80", "Protocol", "TCP"),
        ];
        assert!(why(&network(&twice)).contains("one port"));
        let of_instances = network(&[("aws:elbv2:listener:20001", "Protocol", "TCP")]);
        assert!(why(&of_instances).contains("those of instances"));
    }

    #[test]
    fn what_is_of_requests_is_refused_where_there_are_none() {
        let settings = network(&[TCP, (PROXY, "Compression", "gzip")]);
        let told = why(&settings);
        assert!(
            told.contains("`Compression`") && told.contains("network"),
            "{told}"
        );
        network(&[TCP, (PROXY, "Compression", "none")])
            .validate_whole()
            .expect("what is so anyway may be said");
        let mut other = network(&[TCP]);
        other.set(ENVIRONMENT, "LoadBalancerType", "classic");
        assert!(why(&other).contains("--load-balancer network"));
    }

    #[test]
    fn defaults_are_those_of_connections() {
        let mut settings = network(&[TCP, (PROCESS, "StickinessEnabled", "true")]);
        assert_eq!(settings.health_check().probe, Probe::Tcp);
        assert_eq!(settings.pool_limits().idle_ms, 350_000);
        assert_eq!(settings.pool_rules().sticky, Some(Stickiness::Address));
        assert_eq!(settings.sticky(), None);
        settings.set(PROCESS, "HealthCheckPath", "/up");
        settings.set(LOADBALANCER, "IdleTimeout", "60");
        assert_eq!(settings.health_check().probe.to_string(), "GET /up");
        assert_eq!(settings.pool_limits().idle_ms, 60_000);
    }

    #[test]
    fn listeners_stay_with_their_environment() {
        let old = network(&[TCP]);
        let now = network(&[
            ("aws:elbv2:listener:5433", "Protocol", "TLS"),
            (PROXY, "RouteBySNI", "true"),
        ]);
        let back = old.with_capacity_of(&now);
        assert_eq!(back.listeners(), now.listeners());
        assert!(back.listeners()[0].by_name);
    }
}
