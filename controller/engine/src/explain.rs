//! Where a request leads: the newest routing table, joined with what load balancers report of it.

use crate::{Engine, Fault, Observed, network};
use beanpole_protocol::api::{
    self, Explained, ExplainedBalancer, ExplainedEnvironment, ExplainedNetwork, ExplainedPool,
    ExplainedRoute, ExplainedTarget, InstanceHealth,
};
use beanpole_protocol::options::nearest;
use beanpole_protocol::problem::Problem;
use beanpole_protocol::proxy::{
    Rate, Route, RouteRule, RoutingTable, Target, TargetMode, TargetPool, TargetReport,
};
use beanpole_protocol::router::{Router, normal_host};
use beanpole_protocol::{ReleaseNumber, Timestamp};
use beanpole_store::StoreError;
use beanpole_store::model::EnvironmentRecord;
use std::collections::BTreeSet;

/// The most hostnames that are named as those that may have been meant.
const MOST_NEAR: usize = 5;

impl Engine {
    /// Where requests for `path` of `host` lead, over TLS or not. What certificates and single requests have to do with it is not
    /// told here.
    pub fn explain(
        &self,
        host: &str,
        path: &str,
        https: bool,
        observed: &Observed,
        now: Timestamp,
    ) -> Result<Explained, Problem> {
        let table = self.routing_table().map_err(Fault::from)?;
        let host = normal_host(host).into_owned();
        let default = self.config.domain.to_lowercase();
        let mut explained = Explained {
            generation: table.generation,
            balancers: balancers(observed),
            default_domain: host == default || host.ends_with(&format!(".{default}")),
            path: path.to_owned(),
            ..Explained::default()
        };
        match route_of(&table, &host, path) {
            None => {
                explained.near = near(&table, &host);
                explained.network = self.network_of(&host, observed).map_err(Fault::from)?;
            }
            Some(route) => {
                let rule = route.rule(&host, path, https);
                self.explain_route(&table, (route, rule), observed, now, &mut explained)?;
            }
        }
        explained.host = host;
        Ok(explained)
    }

    /// The network environment that has a hostname.
    fn network_of(
        &self,
        host: &str,
        observed: &Observed,
    ) -> Result<Option<ExplainedNetwork>, StoreError> {
        let environments = self.store.list::<EnvironmentRecord>()?;
        let domain = &self.config.domain;
        let found = environments.into_iter().find(|one| {
            one.settings.is_network()
                && one.status != api::EnvironmentStatus::Terminated
                && network::hosts(one, domain).iter().any(|own| own == host)
        });
        Ok(found.map(|one| ExplainedNetwork {
            listeners: network::view_listeners(&one, observed, domain),
            environment: one.name,
        }))
    }

    fn explain_route(
        &self,
        table: &RoutingTable,
        (route, rule): (&Route, Option<&RouteRule>),
        observed: &Observed,
        now: Timestamp,
        explained: &mut Explained,
    ) -> Result<(), Problem> {
        explained.route = Some(ExplainedRoute {
            host: route.host.clone(),
            paths: route.paths.clone(),
            redirect_to: route.redirect.as_ref().map(|to| to.host.clone()),
            only_https: route.only_https,
            rule: rule
                .map(|rule| rule.name.clone())
                .filter(|name| !name.is_empty()),
        });
        let leads = rule.map_or(&route.pools, |rule| &rule.pools);
        let all: u32 = leads.iter().map(|pool| pool.weight).sum();
        let pools: Vec<(&TargetPool, u32)> = leads
            .iter()
            .filter_map(|weighted| {
                let pool = table.pools.iter().find(|pool| pool.name == weighted.pool)?;
                Some((pool, weighted.weight * 100 / all.max(1)))
            })
            .collect();
        // All pools of a route are of one environment.
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

    /// An environment with two instances and some domains, and its table.
    fn engine() -> Engine {
        let store = Store::in_memory();
        let environment = EnvironmentRecord {
            cname: Some(Cname::new("shop").expect("a name")),
            tier: api::Tier::Web,
            domains: vec![
                domain("www.example.org", None),
                domain("example.org/api", None),
                domain("old.example.org", Some("www.example.org")),
            ],
            ..environment()
        };
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
        let explained = engine.explain("WWW.example.org.", "/cart", false, &seen, NOW);
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
        let explained = engine.explain("shop.localhost", "/", false, &seen, NOW);
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
            let explained = engine.explain(host, path, false, &Observed::default(), NOW);
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
        let explained = engine().explain("old.example.org", "/", false, &Observed::default(), NOW);
        let route = explained.expect("explained").route.expect("a route");
        assert_eq!(route.redirect_to.as_deref(), Some("www.example.org"));
    }
}
