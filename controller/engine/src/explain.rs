//! Where a request leads: the newest routing table, joined with what load balancers report of it.

use crate::{Engine, Fault, Observed, network};
use beanpole_protocol::api::{
    self, Explained, ExplainedBalancer, ExplainedEnvironment, ExplainedNetwork, ExplainedPool,
    ExplainedRoute, ExplainedTarget, InstanceHealth, Scheme,
};
use beanpole_protocol::options::nearest;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::proxy::{
    Rate, Route, RouteRule, RoutingTable, Stream, Target, TargetMode, TargetPool, TargetReport,
    WeightedPool,
};
use beanpole_protocol::router::{Router, normal_host};
use beanpole_protocol::{ReleaseNumber, Timestamp};
use beanpole_store::StoreError;
use beanpole_store::model::EnvironmentRecord;
use std::collections::BTreeSet;

/// The most hostnames that are named as those that may have been meant.
const MOST_NEAR: usize = 5;

/// What is asked where it leads.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// How its client speaks.
    pub scheme: Scheme,
    /// The host that it asks for.
    pub host: &'a str,
    /// The port that it goes to.
    pub port: u16,
    /// The path, without the query.
    pub path: &'a str,
}

impl Engine {
    /// Where requests, or connections, lead. What certificates and single requests have to do with it is not told here.
    pub fn explain(
        &self,
        asked: Asked<'_>,
        observed: &Observed,
        now: Timestamp,
    ) -> Result<Explained, Problem> {
        let table = self.routing_table().map_err(Fault::from)?;
        let host = normal_host(asked.host).into_owned();
        let default = self.config.domain.to_lowercase();
        let mut explained = Explained {
            generation: table.generation,
            balancers: balancers(observed),
            default_domain: host == default || host.ends_with(&format!(".{default}")),
            path: asked.path.to_owned(),
            ..Explained::default()
        };
        let asked = Asked {
            host: &host,
            ..asked
        };
        match stream_of(&table, asked, observed) {
            ByPort::Taken(stream) => {
                self.explain_pools(&table, &stream.pools, observed, now, &mut explained)?;
                if let Some(environment) = &explained.environment {
                    let named = |one: &EnvironmentRecord| one.name == environment.name;
                    let found = self.network_of(named, observed).map_err(Fault::from)?;
                    explained.network = found.map(|network| ExplainedNetwork {
                        port: Some(asked.port),
                        ..network
                    });
                }
            }
            ByPort::ByName(names) => {
                explained.near = names;
                explained.no_such_name = true;
            }
            ByPort::Open => match route_of(&table, &host, asked.path)
                .filter(|_| asked.scheme.asks())
            {
                None => {
                    explained.near = near(&table, &host);
                    let domain = &self.config.domain;
                    let has = |one: &EnvironmentRecord| network::hosts(one, domain).contains(&host);
                    explained.network = self.network_of(has, observed).map_err(Fault::from)?;
                }
                Some(route) => {
                    let rule = route.rule(&host, asked.path, asked.scheme.is_tls());
                    explained.route = Some(explain_route(route, rule));
                    let pools = rule.map_or(&route.pools, |rule| &rule.pools);
                    self.explain_pools(&table, pools, observed, now, &mut explained)?;
                }
            },
        }
        explained.host = host;
        Ok(explained)
    }

    /// The network environment that `is` meant.
    fn network_of(
        &self,
        is: impl Fn(&EnvironmentRecord) -> bool,
        observed: &Observed,
    ) -> Result<Option<ExplainedNetwork>, StoreError> {
        let environments = self.store.list::<EnvironmentRecord>()?;
        let found = environments.into_iter().find(|one| {
            one.settings.is_network() && one.status != api::EnvironmentStatus::Terminated && is(one)
        });
        Ok(found.map(|one| ExplainedNetwork {
            listeners: network::view_listeners(&one, observed, &self.config.domain),
            environment: one.name,
            port: None,
        }))
    }

    /// The pools that something leads to, all of one environment.
    fn explain_pools(
        &self,
        table: &RoutingTable,
        leads: &[WeightedPool],
        observed: &Observed,
        now: Timestamp,
        explained: &mut Explained,
    ) -> Result<(), Problem> {
        let all: u32 = leads.iter().map(|pool| pool.weight).sum();
        let pools: Vec<(&TargetPool, u32)> = leads
            .iter()
            .filter_map(|weighted| {
                let pool = table.pools.iter().find(|pool| pool.name == weighted.pool)?;
                Some((pool, weighted.weight * 100 / all.max(1)))
            })
            .collect();
        let Some((first, _)) = pools.first() else {
            return Ok(());
        };
        let view = self.environment(&first.environment_name, observed, now)?;
        for (pool, percent) in pools {
            let targets: Vec<ExplainedTarget> = pool
                .targets
                .iter()
                .map(|target| explain_target(pool, target, &view, observed))
                .collect();
            explained
                .pools
                .push(explain_pool(pool, percent, &targets, observed));
            explained.targets.extend(targets);
        }
        explained.environment = Some(ExplainedEnvironment {
            name: view.name,
            application: view.application,
            status: view.status,
            health: view.health,
            causes: view.causes,
            release: view.release,
            version: view.version,
            operation: view.operation.map(|operation| operation.id),
        });
        Ok(())
    }
}

/// Where a port leads by itself.
enum ByPort<'t> {
    /// A network environment takes the connection.
    Taken(&'t Stream),
    /// It is shared by the names that clients of TLS ask for, and nobody has this one.
    ByName(Vec<String>),
    /// It is no port of network environments, or one where requests are taken as well.
    Open,
}

/// As a load balancer with this table looks for it: by the name that a client of TLS asks for, then whoever takes what is left.
fn stream_of<'t>(table: &'t RoutingTable, asked: Asked<'_>, observed: &Observed) -> ByPort<'t> {
    let of_port: Vec<&Stream> = table
        .streams
        .iter()
        .filter(|stream| stream.port == asked.port)
        .collect();
    if of_port.is_empty() {
        return ByPort::Open;
    }
    let mut names = Router::default();
    for (number, stream) in of_port.iter().enumerate() {
        for host in &stream.hosts {
            names.insert(&normal_host(host), &[], 0, &number);
        }
    }
    names.sort();
    let by_name = names
        .find(asked.host, "/")
        .filter(|_| asked.scheme.is_tls())
        .map(|number| of_port[*number]);
    let rest = || {
        of_port
            .iter()
            .copied()
            .find(|stream| stream.hosts.is_empty())
    };
    if let Some(stream) = by_name.or_else(rest) {
        return ByPort::Taken(stream);
    }
    // On the port of HTTPS, what has another name is a request.
    let mut reports = observed
        .proxies
        .values()
        .filter_map(|seen| seen.report.as_ref());
    let ending = format!(":{}", asked.port);
    if reports.any(|report| report.listeners.iter().any(|own| own.ends_with(&ending))) {
        return ByPort::Open;
    }
    let hosts = of_port.iter().flat_map(|stream| &stream.hosts);
    ByPort::ByName(hosts.take(MOST_NEAR).cloned().collect())
}

fn explain_route(route: &Route, rule: Option<&RouteRule>) -> ExplainedRoute {
    ExplainedRoute {
        host: route.host.clone(),
        paths: route.paths.clone(),
        redirect_to: route.redirect.as_ref().map(|to| to.host.clone()),
        only_https: route.only_https,
        rule: rule
            .map(|rule| rule.name.clone())
            .filter(|name| !name.is_empty()),
    }
}

fn balancers(observed: &Observed) -> Vec<ExplainedBalancer> {
    let proxies = observed.proxies.iter();
    proxies
        .map(|(name, seen)| {
            let report = seen.report.as_ref();
            ExplainedBalancer {
                name: name.clone(),
                connected: seen.connected,
                last_seen: seen.last_seen,
                version: report.map(|report| report.version.clone()),
                generation: report.map(|report| report.generation),
                listeners: report.map_or_else(Vec::new, |report| report.listeners.clone()),
            }
        })
        .collect()
}

/// The route that a load balancer with this table takes.
fn route_of<'t>(table: &'t RoutingTable, host: &str, path: &str) -> Option<&'t Route> {
    let mut router = Router::default();
    for (number, route) in table.routes.iter().enumerate() {
        router.insert(
            &normal_host(&route.host),
            &route.paths,
            route.priority,
            &number,
        );
    }
    router.sort();
    table.routes.get(*router.find(host, path)?)
}

/// What may have been meant: other paths of the same host, then the name that is most like it, then names that
/// begin alike.
fn near(table: &RoutingTable, host: &str) -> Vec<String> {
    let label = |host: &str| host.split('.').next().unwrap_or_default().to_owned();
    let like = nearest(host, table.routes.iter().map(|route| route.host.as_str()));
    let mut found: Vec<String> = Vec::new();
    let paths = table.routes.iter().filter(|route| route.host == host);
    let others = paths.flat_map(|route| route.paths.iter().map(|path| format!("{host}{path}")));
    let alike = table.routes.iter().map(|route| route.host.as_str());
    let alike = alike.filter(|one| label(one) == label(host) && !one.starts_with('*'));
    for name in others.chain(like.into_iter().chain(alike).map(str::to_owned)) {
        if found.len() < MOST_NEAR && name != host && !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// What load balancers that are connected report of a target, by their names.
fn reported<'o>(
    target: &Target,
    observed: &'o Observed,
) -> impl Iterator<Item = &'o TargetReport> + use<'o> {
    let (instance, incarnation) = (target.instance.clone(), target.incarnation);
    let process = target.process.clone();
    let connected = observed.proxies.values().filter(|seen| seen.connected);
    let reports = connected.filter_map(|seen| seen.report.as_ref());
    reports
        .flat_map(|report| &report.targets)
        .filter(move |seen| seen.instance == instance && seen.incarnation == incarnation)
        .filter_map(move |seen| seen.of_process(&process))
}

fn explain_target(
    pool: &TargetPool,
    target: &Target,
    view: &api::Environment,
    observed: &Observed,
) -> ExplainedTarget {
    let mut instances = view.instances.iter();
    let instance = instances.find(|one| one.id == target.instance);
    let mut lingering = view.lingering.iter();
    let lingering = lingering.find(|one| one.id == target.instance);
    let health = match (instance, lingering) {
        (Some(instance), _) => instance.health,
        (None, Some(_)) => InstanceHealth::Draining,
        (None, None) => InstanceHealth::Unknown,
    };
    let taking = takes(target, observed);
    let reason = instance.and_then(|instance| instance.reason.clone());
    let nobody = reported(target, observed).next().is_none();
    ExplainedTarget {
        instance: target.instance.clone(),
        host: instance
            .map(|one| one.host.clone())
            .or_else(|| lingering.map(|one| one.host.clone())),
        address: target.address.to_string(),
        pool: pool.name.clone(),
        release: target.release,
        mode: target.mode,
        taking,
        why: match target.mode {
            TargetMode::Drain => Some("it finishes what it has, and gets nothing new".to_owned()),
            _ if reason.is_some() => reason,
            TargetMode::Probe => {
                Some("it is checked, and gets no requests before it is let in".to_owned())
            }
            TargetMode::Serve if nobody => {
                Some("no load balancer that is connected has reported on it".to_owned())
            }
            TargetMode::Serve => None,
        },
        health,
        last_check: reported(target, observed)
            .filter_map(|seen| seen.last_check.clone())
            .max_by_key(|check| check.at)
            .or_else(|| instance.and_then(|instance| instance.last_check.clone())),
        in_flight: reported(target, observed).map(|seen| seen.in_flight).sum(),
    }
}

/// Whether some load balancer gives it requests.
fn takes(target: &Target, observed: &Observed) -> bool {
    target.mode == TargetMode::Serve
        && reported(target, observed).any(|seen| seen.healthy && seen.ejected.is_none())
}

fn explain_pool(
    pool: &TargetPool,
    percent: u32,
    targets: &[ExplainedTarget],
    observed: &Observed,
) -> ExplainedPool {
    let counted = |is: &dyn Fn(&Target) -> bool| {
        let count = pool.targets.iter().filter(|target| is(target)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    };
    let in_mode = |mode| counted(&|target| target.mode == mode);
    let ejected = |target: &Target| {
        let mut seen = reported(target, observed);
        target.mode == TargetMode::Serve && seen.any(|seen| seen.ejected.is_some())
    };
    let rate = |rate: Rate| (rate.per_second > 0).then_some(rate.per_second);
    let releases: BTreeSet<ReleaseNumber> = targets.iter().map(|target| target.release).collect();
    ExplainedPool {
        name: pool.name.clone(),
        percent,
        releases: releases.into_iter().collect(),
        serving: in_mode(TargetMode::Serve),
        taking: counted(&|target| takes(target, observed)),
        ejected: counted(&ejected),
        draining: in_mode(TargetMode::Drain),
        probed: in_mode(TargetMode::Probe),
        hold_ms: pool.hold.map(|hold| hold.for_ms),
        idle_ms: pool.limits.idle_ms,
        body_bytes: (pool.limits.body_bytes > 0).then_some(pool.limits.body_bytes),
        per_second: rate(pool.limits.rates.all),
        per_second_by_client: rate(pool.limits.rates.by_client),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EngineConfig;
    use crate::derive::tests::{environment, host, instance, release};
    use beanpole_protocol::options::{ENVIRONMENT, PROXY};
    use beanpole_protocol::proxy::{CheckResult, Ejection, ProxyReport, Traffic};
    use beanpole_protocol::{Cname, Domain, DomainName, HostId, Hostname, Incarnation, InstanceId};
    use beanpole_store::Store;
    use beanpole_store::model::{DomainRecord, EnvironmentRecord};

    const NOW: Timestamp = Timestamp::from_millis(10_000);

    fn domain(name: &str, to: Option<&str>) -> DomainRecord {
        DomainRecord {
            domain: Domain {
                name: DomainName::new(name).expect("a domain"),
                redirect_to: to.map(|to| Hostname::new(to).expect("a hostname")),
                only_https: false,
            },
            since: NOW,
        }
    }

    fn http<'a>(host: &'a str, path: &'a str) -> Asked<'a> {
        Asked {
            scheme: Scheme::Http,
            host,
            port: 80,
            path,
        }
    }

    /// An environment with two instances and some domains, and its table.
    fn engine() -> Engine {
        with(|_| {})
    }

    fn with(change: impl FnOnce(&mut EnvironmentRecord)) -> Engine {
        let store = Store::in_memory();
        let mut environment = EnvironmentRecord {
            cname: Some(Cname::new("shop").expect("a name")),
            tier: api::Tier::Web,
            domains: vec![
                domain("www.example.org", None),
                domain("example.org/api", None),
                domain("old.example.org", Some("www.example.org")),
            ],
            ..environment()
        };
        change(&mut environment);
        store
            .update(|tx| {
                tx.put(&host(&HostId::from_bits(1)))?;
                tx.put(&release(&environment))?;
                tx.put(&instance(1))?;
                tx.put(&instance(2))?;
                tx.put(&environment)
            })
            .expect("memory");
        let engine = Engine::new(store, EngineConfig::default());
        let turn = engine.turn(&Observed::default(), NOW, &mut || 1);
        turn.expect("a turn");
        engine
    }

    fn seen(number: u128, healthy: bool, ejected: bool) -> TargetReport {
        TargetReport {
            process: String::new(),
            processes: Vec::new(),
            instance: InstanceId::from_bits(number),
            incarnation: Incarnation(1),
            mode: TargetMode::Serve,
            healthy,
            good_checks: 0,
            good_for_ms: 0,
            bad_checks: u32::from(!healthy),
            bad_for_ms: 0,
            last_check: Some(CheckResult {
                at: NOW,
                asked: "GET /".to_owned(),
                good: healthy,
                connected: true,
                answer: "500 in 3 ms".to_owned(),
            }),
            in_flight: 2,
            traffic: Traffic::default(),
            tried: None,
            ejected: ejected.then(|| Ejection {
                why: "5 requests in a row failed".to_owned(),
                lasts_ms: 30_000,
                left_ms: 10_000,
                times: 1,
            }),
        }
    }

    fn observed(targets: Vec<TargetReport>) -> Observed {
        let mut observed = Observed::default();
        let report = ProxyReport {
            sequence: 1,
            run: "r".to_owned(),
            version: "1".to_owned(),
            generation: beanpole_protocol::Generation(1),
            now: NOW,
            targets,
            environments: Vec::new(),
            releases: Vec::new(),
            listeners: vec!["http://0.0.0.0:80".to_owned()],
            streams: Vec::new(),
        };
        observed.proxy_report("local", report, NOW);
        observed
    }

    #[test]
    fn a_request_is_followed_to_the_instances_that_would_take_it() {
        let engine = engine();
        let seen = observed(vec![seen(1, true, false), seen(2, true, true)]);
        let explained = engine.explain(http("WWW.example.org.", "/cart"), &seen, NOW);
        let explained = explained.expect("explained");
        assert_eq!(explained.host, "www.example.org");
        assert_eq!(explained.balancers[0].listeners, ["http://0.0.0.0:80"]);
        let route = explained.route.expect("a route");
        assert_eq!(
            (route.host.as_str(), route.redirect_to),
            ("www.example.org", None)
        );
        let pool = &explained.pools[0];
        let counts = (pool.percent, pool.serving, pool.taking, pool.ejected);
        assert_eq!(counts, (100, 2, 1, 1));
        let taking: Vec<bool> = explained.targets.iter().map(|one| one.taking).collect();
        assert_eq!(taking, [true, false]);
        assert_eq!(explained.targets[0].in_flight, 2);
        let check = explained.targets[0].last_check.as_ref();
        assert_eq!(check.expect("a check").answer, "500 in 3 ms");
    }

    #[test]
    fn what_a_load_balancer_that_is_gone_said_counts_for_nothing() {
        let engine = engine();
        let mut seen = observed(vec![seen(1, true, false)]);
        seen.proxy_connected("local", false);
        let explained = engine.explain(http("shop.localhost", "/"), &seen, NOW);
        let explained = explained.expect("explained");
        assert!(!explained.balancers[0].connected);
        assert!(explained.default_domain);
        assert_eq!(explained.pools[0].taking, 0);
        assert!(explained.targets[0].why.is_some(), "{explained:?}");
    }

    #[test]
    fn hosts_and_paths_that_lead_nowhere_get_the_nearest_ones() {
        let engine = engine();
        let near = |host: &str, path: &str| {
            let explained = engine.explain(http(host, path), &Observed::default(), NOW);
            let explained = explained.expect("explained");
            assert_eq!(explained.route, None, "{host}{path}");
            explained.near
        };
        assert_eq!(near("ww.example.org", "/")[0], "www.example.org");
        assert_eq!(near("shop.example.com", "/"), ["shop.localhost"]);
        assert_eq!(
            near("example.org", "/else")[..2],
            ["example.org/api", "example.org/api/*"]
        );
        assert!(near("nothing-like-it.test", "/").is_empty());
    }

    #[test]
    fn a_redirect_says_where_to() {
        let explained = engine().explain(http("old.example.org", "/"), &Observed::default(), NOW);
        let route = explained.expect("explained").route.expect("a route");
        assert_eq!(route.redirect_to.as_deref(), Some("www.example.org"));
    }

    /// The same as a network environment at 5432, by name or for whoever comes.
    fn network(by_name: bool) -> Engine {
        with(|environment| {
            environment.domains.truncate(1);
            let settings = &mut environment.settings;
            settings.set(ENVIRONMENT, "LoadBalancerType", "network");
            settings.set("aws:elbv2:listener:5432", "Protocol", "TCP");
            if by_name {
                settings.set(PROXY, "RouteBySNI", "true");
            }
        })
    }

    fn at(scheme: Scheme, host: &str, port: u16) -> Asked<'_> {
        Asked {
            scheme,
            host,
            port,
            path: "/",
        }
    }

    #[test]
    fn a_port_leads_to_its_network_environment_and_its_instances() {
        let engine = network(false);
        let seen = observed(vec![seen(1, true, false), seen(2, false, false)]);
        for (scheme, host) in [
            (Scheme::Tcp, "127.0.0.1"),
            (Scheme::Http, "127.0.0.1"),
            (Scheme::Tls, "elsewhere.test"),
        ] {
            let explained = engine.explain(at(scheme, host, 5432), &seen, NOW);
            let explained = explained.expect("explained");
            let network = explained.network.expect("a port of a network environment");
            assert_eq!(
                network.listener().expect("it").address,
                "tcp://shop.localhost:5432"
            );
            assert_eq!(
                explained.environment.expect("one").name,
                network.environment
            );
            let pool = &explained.pools[0];
            assert_eq!((pool.percent, pool.serving, pool.taking), (100, 2, 1));
            assert_eq!(explained.targets.len(), 2);
            assert_eq!(explained.route, None);
        }
        let other = engine.explain(at(Scheme::Tcp, "shop.localhost", 5433), &seen, NOW);
        let network = other.expect("explained").network.expect("by its host");
        assert_eq!(network.port, None, "no listener is there");
    }

    #[test]
    fn a_port_that_is_shared_by_name_takes_clients_of_tls_with_these_names() {
        let engine = network(true);
        let nobody = Observed::default();
        let explain = |scheme, host| {
            let explained = engine.explain(at(scheme, host, 5432), &nobody, NOW);
            explained.expect("explained")
        };
        let taken = explain(Scheme::Tls, "www.example.org");
        assert!(taken.network.is_some_and(|one| one.port == Some(5432)));
        for (scheme, host) in [
            (Scheme::Tls, "elsewhere.test"),
            (Scheme::Tcp, "www.example.org"),
        ] {
            let refused = explain(scheme, host);
            assert!(refused.no_such_name && refused.network.is_none());
            assert_eq!(refused.near, ["shop.localhost", "www.example.org"]);
        }
        let mut https = observed(Vec::new());
        let proxy = https.proxies.get_mut("local").expect("it");
        let report = proxy.report.as_mut().expect("one");
        report.listeners = vec!["https://0.0.0.0:5432".to_owned()];
        let request = engine.explain(at(Scheme::Https, "elsewhere.test", 5432), &https, NOW);
        assert!(!request.expect("explained").no_such_name);
    }
}
