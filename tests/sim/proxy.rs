//! A fake proxy: checks its targets, counts, confirms tables, as the real one does.

use crate::host::{Behaviour, FakeHost};
use crate::rng::Rng;
use beanpole_protocol::latency::{Latencies, bucket};
use beanpole_protocol::proxy::{
    CheckResult, EnvironmentTraffic, Probe, ProxyReport, ReleaseTraffic, RoutingTable, Target,
    TargetMode, TargetReport, Traffic, TriedCheck,
};
use beanpole_protocol::{EnvironmentId, Incarnation, InstanceId, ReleaseNumber, Timestamp};
use std::collections::BTreeMap;

pub struct FakeProxy {
    pub name: String,
    pub up: bool,
    pub link: bool,
    pub table: RoutingTable,
    /// Requests that were given to an instance whose process was not there.
    pub refused: u64,
    /// An instance that was asked for what only another release has, if there was one.
    pub astray: Option<String>,
    pub run: u64,
    sequence: u64,
    seen: BTreeMap<(InstanceId, String, Incarnation), Seen>,
    traffic: BTreeMap<EnvironmentId, Traffic>,
    /// Requests that wait, by pool.
    waiting: BTreeMap<String, u32>,
    /// Requests and errors by release.
    releases: BTreeMap<(EnvironmentId, ReleaseNumber), (u64, u64)>,
}

/// What no application has. It is in force only where nothing was well that could have said so, and counts as
/// good then: somebody has to come out of it.
pub const NOWHERE: &str = "/nowhere";
/// Requests that an environment gets in one step.
const REQUESTS_A_STEP: u64 = 25;

#[derive(Default)]
pub struct Seen {
    pub healthy: bool,
    pub good: u32,
    bad: u32,
    bad_since: u64,
    last: Option<CheckResult>,
    tried: Option<TriedCheck>,
    next: u64,
    in_flight: u32,
    /// Connections that stay open for long.
    long: u32,
}

impl FakeProxy {
    pub fn new(name: String) -> Self {
        Self {
            name,
            up: true,
            link: true,
            table: RoutingTable::default(),
            refused: 0,
            astray: None,
            run: 1,
            sequence: 0,
            seen: BTreeMap::new(),
            traffic: BTreeMap::new(),
            waiting: BTreeMap::new(),
            releases: BTreeMap::new(),
        }
    }

    pub fn put_table(&mut self, table: RoutingTable) -> Result<bool, String> {
        if table.generation < self.table.generation {
            return Ok(false);
        }
        if table.generation == self.table.generation {
            return if table == self.table {
                Ok(false)
            } else {
                Err(format!("a table reuses generation {}", table.generation))
            };
        }
        self.table = table;
        let targets: Vec<_> = self
            .table
            .pools
            .iter()
            .flat_map(|pool| &pool.targets)
            .map(key_of)
            .collect();
        self.seen.retain(|key, _| targets.contains(key));
        Ok(true)
    }

    /// It ends and is started again: the table is on disk, what it saw is not.
    pub fn restart(&mut self) {
        self.run += 1;
        self.sequence = 0;
        self.seen.clear();
        self.traffic.clear();
        self.waiting.clear();
        self.releases.clear();
        self.up = true;
    }

    pub fn mode(&self, id: &InstanceId, incarnation: Incarnation) -> Option<TargetMode> {
        self.table
            .pools
            .iter()
            .flat_map(|pool| &pool.targets)
            .find(|target| target.instance == *id && target.incarnation == incarnation)
            .map(|target| target.mode)
    }

    /// Checks what is due and answers some requests, if somebody asks; true when something changed.
    pub fn step(&mut self, now: u64, hosts: &[FakeHost], rng: &mut Rng, asked: bool) -> bool {
        if !self.up {
            return false;
        }
        let mut changed = false;
        for pool in &self.table.pools {
            // Its share of the requests, in per cent.
            let weighted = self.table.routes.iter().flat_map(|route| {
                let rules = route.rules.iter().flat_map(|rule| &rule.pools);
                route.pools.iter().chain(rules)
            });
            let weight = weighted
                .filter(|of| of.pool == pool.name)
                .map(|of| of.weight);
            let share = match weight.max().unwrap_or(0) {
                1 => 100,
                weight => u64::from(weight),
            };
            let serving = pool.targets.iter().filter(|t| t.mode == TargetMode::Serve);
            let serving = serving.count().max(1) as u64;
            let mut served = false;
            let traffic = self.traffic.entry(pool.environment.clone()).or_default();
            for target in &pool.targets {
                let seen = self.seen.entry(key_of(target)).or_default();
                let host = hosts.iter().position(|host| {
                    crate::address_of(&host.id) == target.address.ip().to_string()
                });
                let answer = host.and_then(|host| hosts[host].answers(target.address.port(), now));
                if now >= seen.next {
                    seen.next = now + target.check.interval_ms;
                    let good = answer.as_ref().is_some_and(|answer| answer.good);
                    if let (Some(answer), Probe::Http { path, .. }) = (&answer, &target.check.probe)
                        && answer.instance == &target.instance
                        && answer.incarnation == target.incarnation
                        && !["/", NOWHERE].contains(&path.as_str())
                        && path[1..] != *answer.version
                    {
                        self.astray = Some(format!(
                            "{} runs {} and is asked for {path}",
                            target.instance, answer.version
                        ));
                    }
                    if good {
                        seen.good += 1;
                        seen.bad = 0;
                        seen.healthy |= seen.good >= target.check.healthy_threshold;
                    } else {
                        if seen.bad == 0 {
                            seen.bad_since = now;
                        }
                        seen.bad += 1;
                        seen.good = 0;
                        seen.healthy &= seen.bad < target.check.unhealthy_threshold;
                    }
                    seen.last = Some(CheckResult {
                        at: Timestamp::from_millis(now),
                        asked: target.check.probe.to_string(),
                        good,
                        connected: answer.is_some(),
                        answer: match (&answer, good) {
                            (None, _) => "connection refused".to_owned(),
                            (_, true) => "200 in 3 ms".to_owned(),
                            _ => "500 in 2 ms".to_owned(),
                        },
                    });
                    changed = true;
                }
                if seen.tried.as_ref().map(|tried| &tried.check) != target.tried.as_ref() {
                    seen.tried = target.tried.clone().map(TriedCheck::new);
                    changed = true;
                }
                if let Some(tried) = &mut seen.tried
                    && tried.passes().is_none()
                {
                    let there = |path: &str, version: &str| path == "/" || path[1..] == *version;
                    let good = answer.as_ref().is_some_and(|answer| {
                        let Probe::Http { path, .. } = &tried.check.probe else {
                            return true;
                        };
                        answer.good && there(path, answer.version)
                    });
                    tried.note(CheckResult {
                        at: Timestamp::from_millis(now),
                        asked: tried.check.probe.to_string(),
                        good,
                        connected: answer.is_some(),
                        answer: if good { "200 in 3 ms" } else { "404 in 2 ms" }.to_owned(),
                    });
                    changed = true;
                }
                let runs = answer.as_ref().is_some_and(|answer| {
                    answer.instance == &target.instance && answer.incarnation == target.incarnation
                });
                if !runs {
                    changed |= seen.long > 0;
                    seen.long = 0;
                } else if seen.long > 0 && rng.chance(4) {
                    changed = true;
                    seen.long -= 1;
                }
                match target.mode {
                    TargetMode::Serve if seen.healthy && asked => {
                        served = true;
                        traffic.requests += 1;
                        let key = (pool.environment.clone(), target.release);
                        let counts = self.releases.entry(key).or_default();
                        let requests = rng.range(0, REQUESTS_A_STEP * share / 50 / serving + 1);
                        counts.0 += requests;
                        let worse = answer.as_ref().is_some_and(|answer| {
                            Behaviour::of(answer.version) == Behaviour::Worse
                        });
                        counts.1 +=
                            (0..requests).filter(|_| worse && rng.chance(200)).count() as u64;
                        seen.in_flight = rng.range(0, 3) as u32;
                        if runs && seen.long < 3 && rng.chance(10) {
                            seen.long += 1;
                        }
                        if answer.is_none() {
                            traffic.failed += 1;
                            self.refused += 1;
                        }
                    }
                    // Some requests take longer than the time to finish them.
                    _ if seen.in_flight > 0 && rng.chance(200) => {
                        seen.in_flight -= 1;
                        changed = true;
                    }
                    _ => {}
                }
            }
            let waits = u32::from(!served && asked && pool.hold.is_some());
            changed |= self.waiting.insert(pool.name.clone(), waits) != Some(waits);
            if !served && asked && waits == 0 && !pool.targets.is_empty() {
                traffic.requests += 1;
                traffic.failed += 1;
            }
        }
        changed
    }

    fn waiting_for(&self, environment: &EnvironmentId) -> u32 {
        let pools = self.table.pools.iter();
        let pools = pools.filter(|pool| pool.environment == *environment);
        pools.filter_map(|pool| self.waiting.get(&pool.name)).sum()
    }

    pub fn report(&mut self, now: Timestamp) -> ProxyReport {
        self.sequence += 1;
        ProxyReport {
            sequence: self.sequence,
            run: format!("run-{}", self.run),
            version: "0".to_owned(),
            generation: self.table.generation,
            now,
            targets: self
                .table
                .pools
                .iter()
                .flat_map(|pool| &pool.targets)
                .map(|target| {
                    let seen = self.seen.get(&key_of(target));
                    TargetReport {
                        process: target.process.clone(),
                        processes: Vec::new(),
                        instance: target.instance.clone(),
                        incarnation: target.incarnation,
                        mode: target.mode,
                        healthy: seen.is_some_and(|seen| seen.healthy),
                        good_checks: seen.map_or(0, |seen| seen.good),
                        good_for_ms: 0,
                        bad_checks: seen.map_or(0, |seen| seen.bad),
                        bad_for_ms: seen.map_or(0, |seen| now.as_millis() - seen.bad_since),
                        last_check: seen.and_then(|seen| seen.last.clone()),
                        in_flight: seen.map_or(0, |seen| seen.in_flight + seen.long),
                        traffic: Traffic::default(),
                        tried: seen.and_then(|seen| seen.tried.clone()),
                        ejected: None,
                    }
                })
                .collect(),
            environments: self
                .traffic
                .iter()
                .map(|(environment, traffic)| EnvironmentTraffic {
                    environment: environment.clone(),
                    traffic: Traffic {
                        waiting: self.waiting_for(environment),
                        ..*traffic
                    },
                })
                .collect(),
            releases: self
                .releases
                .iter()
                .map(
                    |((environment, release), (requests, errors))| ReleaseTraffic {
                        environment: environment.clone(),
                        release: *release,
                        requests: *requests,
                        errors: *errors,
                        latency: Latencies([(bucket(3_000) as u16, *requests)].into()),
                    },
                )
                .collect(),
            listeners: Vec::new(),
            streams: Vec::new(),
        }
    }
}

fn key_of(target: &Target) -> (InstanceId, String, Incarnation) {
    let process = target.process.clone();
    (target.instance.clone(), process, target.incarnation)
}
