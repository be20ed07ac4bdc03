//! Where requests go: the routing table of the records.

use crate::derive::Records;
use crate::network;
use beanpole_planner::Stage;
use beanpole_protocol::api::{OperationKind, Tier};
use beanpole_protocol::content::{Maintenance, PoolContent};
use beanpole_protocol::options::ListenerRule;
use beanpole_protocol::proxy::{
    HealthCheck, Hold, Redirect, Route, RouteRule, RoutingTable, Target, TargetMode, TargetPool,
    WeightedPool,
};
use beanpole_protocol::router::is_like;
use beanpole_protocol::statics::StaticFiles;
use beanpole_protocol::{EnvironmentId, ReleaseNumber};
use beanpole_store::model::{ContentRecord, DomainRecord, EnvironmentRecord, OperationRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

impl Records {
    /// The check that an operation on an environment tries now, and on what.
    fn tried_check(&self, environment: &EnvironmentId) -> Option<(ReleaseNumber, HealthCheck)> {
        let mut operations = self.operations.iter();
        let operation = operations.find(|operation| operation.environment == *environment)?;
        let (plan, progress) = operation.under_way();
        match plan.stages.get(progress.stage)? {
            Stage::TryCheck { check } if progress.failed.is_none() => {
                Some((plan.release?, check.clone()))
            }
            _ => None,
        }
    }

    /// How requests wait while no instance of an environment can take them: as long as an operation is on its way
    /// from something that ran, or the environment sleeps, falls asleep or wakes.
    fn hold(&self, environment: &EnvironmentRecord, targets: &[Target]) -> Option<Hold> {
        let settings = &environment.settings;
        if environment.live.is_some()
            && settings.sleeps_after_ms().is_some()
            && targets
                .iter()
                .all(|target| target.mode != TargetMode::Serve)
        {
            return Some(settings.wakes());
        }
        let comes_back = |operation: &OperationRecord| {
            operation.environment == environment.id
                && operation.from.is_some()
                && operation.kind != OperationKind::Terminate
        };
        let comes_back = self.operations.iter().any(comes_back);
        comes_back.then(|| environment.settings.hold()).flatten()
    }

    /// The static files of an environment's releases: of those in service the newest first, then of those on their
    /// way, which load balancers are to have by the time.
    fn static_files(&self, environment: &EnvironmentRecord) -> Vec<StaticFiles> {
        let instances = self.all().filter(|one| one.environment == environment.id);
        let modes = instances.filter_map(|one| Some((one.release, one.target_mode()?)));
        let (coming, serving): (Vec<_>, Vec<_>) =
            modes.partition(|(_, mode)| *mode == TargetMode::Probe);
        let serving = serving.into_iter().map(|(release, _)| release);
        let serving: BTreeSet<ReleaseNumber> = serving.chain(environment.live).collect();
        let operations = self.operations.iter();
        let planned = operations
            .filter(|operation| operation.environment == environment.id)
            .filter_map(|operation| operation.under_way().0.release);
        let coming: BTreeSet<ReleaseNumber> = coming
            .into_iter()
            .map(|(release, _)| release)
            .chain(planned)
            .collect();
        let mut files: Vec<StaticFiles> = Vec::new();
        let all = serving.iter().rev().map(|release| (release, false));
        for (number, coming) in all.chain(coming.iter().rev().map(|release| (release, true))) {
            let Some(release) = self.releases.get(&(environment.id.clone(), *number)) else {
                continue;
            };
            let paths = release.static_files();
            if paths.is_empty() {
                continue;
            }
            let made = StaticFiles::new(*number, release.created_at, release.bundle.clone(), paths);
            if files.iter().all(|known| known.set != made.set) {
                files.push(StaticFiles { coming, ..made });
            }
        }
        files
    }

    pub(crate) fn table(&self, domain: &str) -> RoutingTable {
        let mut table = RoutingTable::default();
        let mut streams = network::Streams::default();
        for environment in self.environments.values() {
            let (Tier::Web, Some(cname)) = (environment.tier, &environment.cname) else {
                continue;
            };
            let targets = self.targets(environment);
            let hold = self.hold(environment, &targets);
            let sides = Side::all(environment, targets);
            let static_files = self.static_files(environment);
            for side in &sides {
                for (process, targets) in &side.targets {
                    // As in Elastic Beanstalk, where the proxy of an instance is in front of that one alone.
                    let static_files = match process.as_str() {
                        "" => own_first(&static_files, targets),
                        _ => Vec::new(),
                    };
                    table.pools.push(TargetPool {
                        name: side.pool(process),
                        environment: environment.id.clone(),
                        environment_name: environment.name.clone(),
                        application: environment.application.clone(),
                        algorithm: environment.settings.algorithm(),
                        hold,
                        rules: environment.settings.pool_rules_of(process),
                        limits: environment.settings.pool_limits(),
                        content: PoolContent {
                            static_files,
                            ..content(environment)
                        },
                        targets: targets.clone(),
                    });
                }
            }
            if environment.settings.is_network() {
                let hosts = network::hosts(environment, domain);
                streams.add(environment, &hosts, |process| pools(&sides, process));
                continue;
            }
            let wanted = environment.settings.request_rules();
            let whole = Route {
                host: format!("{cname}.{domain}").to_lowercase(),
                sticky: (sides.len() > 1)
                    .then(|| environment.settings.sticky())
                    .flatten(),
                pools: pools(&sides, &wanted.process),
                ..Route::default()
            };
            let mut routes = routes(whole, &environment.domains);
            for route in &mut routes {
                route.rules = rules(&route.host, &wanted.rules, &sides);
            }
            table.routes.extend(routes);
        }
        table.streams = streams.all();
        table
    }

    /// The processes of an environment's instances that take requests.
    fn targets(&self, environment: &EnvironmentRecord) -> Vec<Target> {
        let tried = self.tried_check(&environment.id);
        let mut targets = Vec::new();
        for instance in self.all().filter(|one| one.environment == environment.id) {
            let host = self.hosts.get(&instance.host);
            let address = host.and_then(|host| host.instance_address.parse::<IpAddr>().ok());
            let (Some(address), Some(mode)) = (address, instance.target_mode()) else {
                continue;
            };
            let tried = tried
                .as_ref()
                .filter(|(live, _)| instance.release == *live && mode == TargetMode::Serve);
            let settings = self.settings_of(environment, instance);
            let further = instance.ports.iter();
            let further = further.map(|(process, port)| (process.as_str(), *port));
            for (process, port) in std::iter::once(("", instance.port)).chain(further) {
                targets.push(Target {
                    instance: instance.id.clone(),
                    process: process.to_owned(),
                    incarnation: instance.incarnation,
                    release: instance.release,
                    address: SocketAddr::new(address, port),
                    mode,
                    check: settings.health_check_of(process),
                    tried: tried
                        .filter(|_| process.is_empty())
                        .map(|(_, check)| check.clone()),
                    upstream: settings.upstream(),
                });
            }
        }
        targets
    }
}

/// A share of an environment's requests, and who gets it.
struct Side {
    name: String,
    /// The release whose side it is, where there are two.
    release: Option<ReleaseNumber>,
    weight: u32,
    /// By process; that of the default one is empty.
    targets: BTreeMap<String, Vec<Target>>,
}

impl Side {
    /// All instances, or those of the release before and of the new one.
    fn all(environment: &EnvironmentRecord, targets: Vec<Target>) -> Vec<Self> {
        let wanted = environment.settings.processes();
        let mut processes: BTreeSet<String> = wanted.into_iter().map(str::to_owned).collect();
        processes.insert(String::new());
        processes.extend(targets.iter().map(|target| target.process.clone()));
        let side = |release, weight, targets: Vec<Target>| {
            let nobody = processes.iter().map(|name| (name.clone(), Vec::new()));
            let mut by_process: BTreeMap<String, Vec<Target>> = nobody.collect();
            for target in targets {
                let of = by_process.entry(target.process.clone());
                of.or_default().push(target);
            }
            Self {
                name: environment.name.to_string(),
                release,
                weight,
                targets: by_process,
            }
        };
        match environment.split {
            None => vec![side(None, 1, targets)],
            Some(split) => {
                let is_new = |target: &Target| target.release == split.release;
                let (new, old) = targets.into_iter().partition(is_new);
                let percent = u32::from(split.percent.min(100));
                vec![
                    side(None, 100 - percent, old),
                    side(Some(split.release), percent, new),
                ]
            }
        }
    }

    /// The name of a process's pool: `shop`, `shop/api`, `shop@7`, `shop/api@7`.
    fn pool(&self, process: &str) -> String {
        let mut name = self.name.clone();
        if !process.is_empty() {
            name = format!("{name}/{process}");
        }
        match self.release {
            Some(release) => format!("{name}@{release}"),
            None => name,
        }
    }

    /// Whether what is for a process still goes to the default one: its rules are in force before the first instance
    /// that has it serves. Until then the others answer as before.
    fn still_without(&self, process: &str) -> bool {
        let serves = |process: &str| {
            let targets = self.targets.get(process).into_iter().flatten();
            targets
                .map(|target| target.mode)
                .any(|mode| mode == TargetMode::Serve)
        };
        !serves(process) && serves("")
    }
}

/// Where requests for a process go.
fn pools(sides: &[Side], process: &str) -> Vec<WeightedPool> {
    let pools = sides.iter().map(|side| {
        let process = if side.still_without(process) {
            ""
        } else {
            process
        };
        WeightedPool {
            pool: side.pool(process),
            weight: side.weight,
        }
    });
    pools.collect()
}

/// The rules that hold for a host, or for some of those that a pattern stands for.
fn rules(host: &str, wanted: &[ListenerRule], sides: &[Side]) -> Vec<RouteRule> {
    let of_host = wanted.iter().filter_map(|rule| {
        let hosts = if host.starts_with('*') {
            rule.hosts.clone()
        } else if rule.hosts.is_empty() || rule.hosts.iter().any(|one| is_like(host, one)) {
            Vec::new()
        } else {
            return None;
        };
        Some(RouteRule {
            name: rule.name.clone(),
            hosts,
            paths: rule.paths.clone(),
            https: rule.https,
            pools: pools(sides, &rule.process),
        })
    });
    of_host.collect()
}

/// Static files with those first that the release of these targets has.
fn own_first(files: &[StaticFiles], targets: &[Target]) -> Vec<StaticFiles> {
    let mut files = files.to_vec();
    files.sort_by_key(|one| targets.iter().all(|target| target.release != one.release));
    files
}

/// What is done to an environment's answers, and given in place of them.
fn content(environment: &EnvironmentRecord) -> PoolContent {
    let ContentRecord { maintenance, pages } = &environment.content;
    let pages = pages.iter();
    PoolContent {
        maintenance: maintenance.as_ref().map(|closed| Maintenance {
            page: closed.page.clone(),
            allow: closed.allow.clone(),
            retry_after_s: closed.retry_after_s,
        }),
        pages: pages
            .map(|(page, used)| (page.clone(), used.digest.clone()))
            .collect(),
        ..environment.settings.pool_content()
    }
}

/// The routes of an environment: `whole`, of the hostname below the default domain, and its other domains, one of
/// which may be of that hostname as well.
fn routes(whole: Route, domains: &[DomainRecord]) -> Vec<Route> {
    let others = domains.iter().map(|DomainRecord { domain, .. }| Route {
        host: domain.name.host().to_owned(),
        paths: domain.name.patterns(),
        redirect: domain.redirect_to.as_ref().map(|host| Redirect {
            host: host.to_string(),
            https: domain.only_https,
        }),
        only_https: domain.only_https,
        ..whole.clone()
    });
    let mut routes: Vec<Route> = others.collect();
    let mut known = routes.iter();
    if !known.any(|route| route.host == whole.host && route.paths.is_empty()) {
        routes.insert(0, whole);
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::tests::{environment, host, instance, release};
    use crate::{Engine, EngineConfig, Observed};
    use beanpole_protocol::options::OptionSettings;
    use beanpole_protocol::proxy::Probe;
    use beanpole_protocol::{Cname, Domain, DomainName, HostId, Timestamp};
    use beanpole_store::Store;
    use beanpole_store::model::{InstanceRecord, SplitRecord};

    const API: &str = "aws:elasticbeanstalk:environment:process:api";
    const LISTENER: &str = "aws:elbv2:listener:default";
    const PATHS: &str = "aws:elbv2:listenerrule:paths";
    const HOSTS: &str = "aws:elbv2:listenerrule:hosts";

    fn settings() -> OptionSettings {
        let mut settings = OptionSettings::default();
        for (namespace, name, value) in [
            (API, "HealthCheckPath", "/api/up"),
            (LISTENER, "Rules", "paths,hosts"),
            (PATHS, "PathPatterns", "/api/*"),
            (PATHS, "Process", "api"),
            (HOSTS, "HostHeaders", "api.example.org"),
            (HOSTS, "Process", "api"),
            (HOSTS, "Priority", "2"),
        ] {
            settings.set(namespace, name, value);
        }
        settings.validate_whole().expect("they are known");
        settings
    }

    fn web() -> EnvironmentRecord {
        let domain = |name: &str| DomainRecord {
            domain: Domain {
                name: DomainName::new(name).expect("a domain"),
                redirect_to: None,
                only_https: false,
            },
            since: Timestamp::EPOCH,
        };
        EnvironmentRecord {
            tier: Tier::Web,
            cname: Some(Cname::new("shop").expect("a name")),
            domains: vec![domain("api.example.org"), domain("*.example.net")],
            settings: settings(),
            brought: OptionSettings::default(),
            ..environment()
        }
    }

    /// An instance of a release, with a port for `api` where its release has that.
    fn of_release(number: u64, api: bool) -> InstanceRecord {
        let port = u16::try_from(20_000 + number).expect("small");
        InstanceRecord {
            release: ReleaseNumber(number),
            port,
            ports: api
                .then(|| ("api".to_owned(), port + 100))
                .into_iter()
                .collect(),
            ..instance(u128::from(number))
        }
    }

    fn table(environment: &EnvironmentRecord, instances: &[InstanceRecord]) -> RoutingTable {
        let store = Store::in_memory();
        let put = store.update(|tx| {
            tx.put(&host(&HostId::from_bits(1)))?;
            for one in instances {
                let mut release = release(environment);
                release.number = one.release;
                if !one.ports.is_empty() {
                    release.settings = settings();
                }
                tx.put(&release)?;
                tx.put(one)?;
            }
            tx.put(environment)
        });
        put.expect("memory");
        let engine = Engine::new(store, EngineConfig::default());
        let now = Timestamp::from_millis(1);
        let turn = engine.turn(&Observed::default(), now, &mut || 1);
        turn.expect("a turn");
        engine.routing_table().expect("a table")
    }

    fn leads(table: &RoutingTable, host: &str, at: &str, path: &str) -> Vec<(String, u32)> {
        let route = table.routes.iter().find(|route| route.host == host);
        let route = route.expect("a route");
        let rule = route.rule(at, path, false);
        let pools = rule.map_or(&route.pools, |rule| &rule.pools).iter();
        pools.map(|one| (one.pool.clone(), one.weight)).collect()
    }

    #[test]
    fn each_process_has_a_pool_and_rules_lead_there_by_path_and_host() {
        let table = table(&web(), &[of_release(1, true)]);
        let pools: Vec<_> = table.pools.iter().map(|pool| pool.name.as_str()).collect();
        assert_eq!(pools, ["shop-prod", "shop-prod/api"]);
        let target = &table.pools[1].targets[0];
        assert_eq!(
            (target.process.as_str(), target.address.port()),
            ("api", 20_101)
        );
        assert!(matches!(&target.check.probe, Probe::Http { path, .. } if path == "/api/up"));
        let one = |pool: &str| vec![(pool.to_owned(), 1)];
        for (host, at, path, pool) in [
            ("shop.localhost", "shop.localhost", "/", "shop-prod"),
            (
                "shop.localhost",
                "shop.localhost",
                "/api/x",
                "shop-prod/api",
            ),
            ("api.example.org", "api.example.org", "/", "shop-prod/api"),
            ("*.example.net", "a.example.net", "/", "shop-prod"),
            ("*.example.net", "a.example.net", "/api/", "shop-prod/api"),
        ] {
            assert_eq!(leads(&table, host, at, path), one(pool), "{at}{path}");
        }
    }

    #[test]
    fn until_an_instance_with_the_process_serves_the_others_answer_as_before() {
        let mut coming = of_release(2, true);
        coming.mode = Some(TargetMode::Probe);
        let before = table(&web(), &[of_release(1, false), coming.clone()]);
        let api = |table: &RoutingTable| leads(table, "shop.localhost", "shop.localhost", "/api/");
        assert_eq!(api(&before), [("shop-prod".to_owned(), 1)]);
        coming.mode = Some(TargetMode::Serve);
        let after = table(&web(), &[of_release(1, false), coming]);
        assert_eq!(api(&after), [("shop-prod/api".to_owned(), 1)]);
        assert_eq!(after.pools[1].targets.len(), 1);
    }

    #[test]
    fn every_process_is_split_with_the_same_shares() {
        let environment = EnvironmentRecord {
            split: Some(SplitRecord {
                release: ReleaseNumber(2),
                percent: 10,
            }),
            ..web()
        };
        let api = |table: &RoutingTable| leads(table, "shop.localhost", "shop.localhost", "/api/");
        let all = table(&environment, &[of_release(1, true), of_release(2, true)]);
        let shares = |old: &str| [(old.to_owned(), 90), ("shop-prod/api@2".to_owned(), 10)];
        assert_eq!(api(&all), shares("shop-prod/api"));
        let new = table(&environment, &[of_release(1, false), of_release(2, true)]);
        assert_eq!(api(&new), shares("shop-prod"));
    }
}
