//! The fake world: time, links, faults and users.

mod story;

use crate::checks::{self, Checks};
use crate::host::{Behaviour, Command, FakeHost, READY};
use crate::proxy::{FakeProxy, NOWHERE};
use crate::rng::Rng;
use beanpole_engine::{Call, Engine, EngineConfig, Observed, Pace, Reading};
use beanpole_protocol::agent::{HostOrders, HostReport};
use beanpole_protocol::api::{self, EnvironmentStatus, Tier};
use beanpole_protocol::options::{self, BatchSize, DeploymentPolicy, OptionSettings};
use beanpole_protocol::proxy::{ProxyReport, RoutingTable};
use beanpole_protocol::{
    ApplicationName, EnvironmentName, HostId, HostName, OperationId, RequestId, Timestamp,
    VersionLabel,
};
use beanpole_store::model::{
    ApplicationRecord, ContainerCommands, EnvironmentRecord, EventRecord, HostOrdersRecord,
    HostRecord, OperationRecord, VersionRecord,
};
use beanpole_store::{Store, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// From one look at the world to the next, in milliseconds.
const TICK_MS: u64 = 250;
/// How long things go wrong.
const FAULTS_MS: u64 = 300_000;
/// How long it may take to come to rest afterwards.
const REST_MS: u64 = 3 * 3_600_000;
/// When it begins.
const START_MS: u64 = 1_790_000_000_000;
/// How far the controller's clock may fall back in all, in milliseconds.
const MOST_BEHIND_MS: u64 = 100 * 3_600_000;

/// What came of a seed.
#[derive(Default)]
pub struct Outcome {
    pub outcomes: BTreeMap<String, u32>,
    /// Instances that lingered.
    pub lingered: u32,
    /// Times that an environment grew while its requests were split.
    pub grew: u32,
    /// Times that others stood in for what a split had lost.
    pub stood_in: u32,
    pub turns: u64,
    pub converged_after_ms: u64,
    pub broken: Option<String>,
    pub stuck: Option<String>,
}

enum Message {
    Orders(usize, HostOrders),
    Table(usize, RoutingTable),
    HostReport(usize, Box<HostReport>),
    ProxyReport(usize, ProxyReport),
}

pub struct World {
    rng: Rng,
    pub now: u64,
    /// How far the controller's clock is ahead, in milliseconds. It begins ahead, to be able to fall
    /// back.
    ahead: u64,
    /// The engine's time.
    pace: Pace,
    pub store: Store,
    engine: Engine,
    config: EngineConfig,
    pub observed: Observed,
    pub hosts: Vec<FakeHost>,
    pub proxies: Vec<FakeProxy>,
    messages: BTreeMap<(u64, u64), Message>,
    sent: u64,
    faulty: bool,
    wake_at: u64,
    woken: bool,
    versions: u64,
    names: Vec<EnvironmentName>,
    turns: u64,
    checks: Checks,
    verbose: bool,
    /// Journal entries that were told.
    told: BTreeSet<(OperationId, u64)>,
}

/// What the controller's clocks say: the steady one is the world's.
fn reading(now: u64, ahead: u64) -> Reading {
    Reading {
        wall: Timestamp::from_millis(now + ahead),
        steady: Duration::from_millis(now),
    }
}

/// In every third world lost hosts are given up soon, so that splits outlast them.
fn config(seed: u64) -> EngineConfig {
    let default = EngineConfig::default();
    EngineConfig {
        replace_after_ms: if seed.is_multiple_of(3) {
            45_000
        } else {
            default.replace_after_ms
        },
        ..default
    }
}

pub fn run(seed: u64) -> Outcome {
    let mut world = World::new(seed);
    let mut outcome = Outcome::default();
    if let Err(what) = world.live(&mut outcome) {
        outcome.broken = Some(what);
    }
    for operation in world.store.list::<OperationRecord>().expect("memory") {
        let word = format!("{} {}", operation.kind, operation.status);
        *outcome.outcomes.entry(word).or_default() += 1;
    }
    let events = world.store.list::<EventRecord>().expect("memory");
    let count = |is_it: &dyn Fn(&EventRecord) -> bool| {
        let found = events.iter().filter(|one| is_it(one));
        u32::try_from(found.count()).unwrap_or(u32::MAX)
    };
    outcome.lingered = count(&|one| one.0.code == "instance-lingers");
    outcome.grew = count(&|one| one.0.code == "environment-grows");
    outcome.stood_in = count(&|one| one.0.message.contains("stands in for"));
    outcome.turns = world.turns;
    outcome
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let store = Store::in_memory();
        let config = config(seed);
        let engine = Engine::new(store.clone(), config.clone());
        let hosts: Vec<FakeHost> = (0..rng.range(2, 6))
            .map(|n| {
                let mut host = FakeHost::new(HostId::from_bits(rng.bits()), format!("host-{n}"));
                host.ahead = *rng.pick(&[0, 1_500, 1_000_000]);
                host
            })
            .collect();
        let proxies = (0..rng.range(1, 3))
            .map(|n| FakeProxy::new(format!("proxy-{n}")))
            .collect();
        let names = (0..rng.range(1, 4))
            .map(|n| EnvironmentName::new(format!("environment-{n}")).expect("a name"))
            .collect();
        store
            .update(|tx| {
                for (n, host) in hosts.iter().enumerate() {
                    // There are always hosts of both kinds.
                    let zone = if n % 2 == 0 { "a" } else { "b" };
                    tx.put(&HostRecord {
                        id: host.id.clone(),
                        name: HostName::new(host.name.clone()).expect("a name"),
                        local: false,
                        ssh: None,
                        jump: None,
                        host_key: None,
                        fingerprint: None,
                        instance_address: crate::address_of(&host.id),
                        labels: [("zone".to_owned(), zone.to_owned())].into(),
                        draining: false,
                        removing: false,
                        edge: None,
                        agent: None,
                        taken: None,
                        no_install: false,
                        added_at: Timestamp::from_millis(START_MS),
                    })?;
                }
                tx.put(&ApplicationRecord {
                    name: ApplicationName::new("app").expect("a name"),
                    description: String::new(),
                    root: false,
                    created_at: Timestamp::from_millis(START_MS),
                })
            })
            .expect("memory");
        let pace = engine
            .start_time(reading(START_MS, MOST_BEHIND_MS))
            .expect("memory");
        let mut world = Self {
            rng,
            now: START_MS,
            ahead: MOST_BEHIND_MS,
            pace,
            store,
            engine,
            config,
            observed: Observed::default(),
            hosts,
            proxies,
            messages: BTreeMap::new(),
            sent: 0,
            faulty: true,
            wake_at: 0,
            woken: true,
            versions: 0,
            names,
            turns: 0,
            checks: Checks::default(),
            verbose: std::env::var_os("BEANPOLE_SIM_VERBOSE").is_some(),
            told: BTreeSet::new(),
        };
        world.register();
        world
    }

    fn at(&self) -> Timestamp {
        self.pace.now(self.reading().steady)
    }

    fn reading(&self) -> Reading {
        reading(self.now, self.ahead)
    }

    /// What the controller does at its start.
    fn register(&mut self) {
        self.observed = Observed::default();
        let now = self.at();
        for host in &self.hosts {
            self.observed.register_host(&host.id, now);
        }
        for proxy in &self.proxies {
            self.observed.register_proxy(&proxy.name, now);
        }
    }

    fn live(&mut self, outcome: &mut Outcome) -> Result<(), String> {
        // In one seed of four only messages get lost: there, not one request may meet a process that
        // is not there.
        let calm = self.rng.chance(250);
        while self.now < START_MS + FAULTS_MS {
            if !calm {
                let before = self.parts();
                self.faults();
                self.tell_faults(&before);
            }
            self.users(calm);
            self.tick()?;
            let refused: u64 = self.proxies.iter().map(|proxy| proxy.refused).sum();
            if calm && refused > 0 {
                let at = self.now - START_MS;
                return Err(format!(
                    "at {at} ms: a request met nobody, with no fault around"
                ));
            }
        }
        self.heal();
        let rest = self.now;
        let mut settled_since = None;
        while self.now < rest + REST_MS {
            self.tick()?;
            if !(self.now / TICK_MS).is_multiple_of(4) {
                continue;
            }
            match self.unsettled() {
                Some(_) => settled_since = None,
                None => {
                    let since = *settled_since.get_or_insert(self.now);
                    if self.now >= since + 10_000 {
                        outcome.converged_after_ms = since - rest;
                        return Ok(());
                    }
                }
            }
        }
        outcome.stuck = self.unsettled();
        outcome.converged_after_ms = self.now - rest;
        Ok(())
    }

    /// Everything that can go wrong by itself.
    fn faults(&mut self) {
        for n in 0..self.hosts.len() {
            if self.rng.chance(2) {
                self.hosts[n].link = !self.hosts[n].link;
            }
            if !self.hosts[n].link && self.rng.chance(15) {
                self.hosts[n].link = true;
            }
            if self.hosts[n].up && self.rng.chance(1) {
                self.hosts[n].crash();
            } else if !self.hosts[n].up && self.rng.chance(12) {
                self.hosts[n].up = true;
            }
            if !self.hosts[n].up && self.rng.chance(3) {
                self.hosts[n].wipe();
            }
            if self.rng.chance(4) {
                self.hosts[n].slowness = *self.rng.pick(&[1, 1, 1, 5, 30]);
            }
            if self.rng.chance(2) {
                self.hosts[n].full = true;
            } else if self.hosts[n].full && self.rng.chance(20) {
                self.hosts[n].full = false;
            }
        }
        for n in 0..self.proxies.len() {
            if self.rng.chance(2) {
                self.proxies[n].restart();
            }
            if self.proxies[n].up && self.rng.chance(1) {
                self.proxies[n].up = false;
            } else if !self.proxies[n].up && self.rng.chance(30) {
                self.proxies[n].restart();
            }
            if self.rng.chance(2) {
                self.proxies[n].link = false;
            } else if !self.proxies[n].link && self.rng.chance(40) {
                self.proxies[n].link = true;
            }
        }
        if self.rng.chance(8) {
            self.restart_controller();
        }
        if self.rng.chance(3) {
            self.jump();
        }
        if self.rng.chance(1) {
            self.forget_host();
        }
    }

    /// The controller's clock is set, or its machine was asleep.
    fn jump(&mut self) {
        let by = *self.rng.pick(&[
            -3_600_000, -60_000, -3_000, 3_000, 60_000, 900_000, 7_200_000,
        ]);
        self.ahead = self.ahead.saturating_add_signed(by);
        self.woken = true;
        self.tell(&format!("the clock jumps by {by} ms"));
    }

    /// A host is forgotten by force, whatever runs there, and added again with nothing on it.
    fn forget_host(&mut self) {
        let n = self.rng.range(0, self.hosts.len() as u64) as usize;
        let old = self.hosts[n].id.clone();
        let fresh = HostId::from_bits(self.rng.bits());
        self.hosts[n].wipe();
        self.hosts[n].id = fresh.clone();
        self.observed.hosts.remove(&old);
        let result: Result<(), StoreError> = self.store.update(|tx| {
            let key = HostRecord::key_of(&old);
            if let Some(mut record) = tx.get::<HostRecord>(&key)? {
                tx.delete::<HostRecord>(&key)?;
                tx.delete::<HostOrdersRecord>(&HostOrdersRecord::key_of(&old))?;
                record.id = fresh.clone();
                record.instance_address = crate::address_of(&fresh);
                tx.put(&record)?;
            }
            Ok(())
        });
        result.expect("memory");
        let now = self.at();
        self.observed.register_host(&fresh, now);
        // What is under way to or from the old one never arrives.
        self.messages.retain(|_, message| {
            !matches!(message, Message::Orders(to, _) | Message::HostReport(to, _) if *to == n)
        });
        self.woken = true;
        self.tell(&format!("host-{n} is forgotten and comes back empty"));
    }

    /// The controller dies and is started again: what is in the store is all it knows.
    fn restart_controller(&mut self) {
        self.engine = Engine::new(self.store.clone(), self.config.clone());
        self.pace = self.engine.start_time(self.reading()).expect("memory");
        self.checks.restarted();
        self.register();
        self.messages.clear();
        self.woken = true;
    }

    fn heal(&mut self) {
        self.faulty = false;
        for host in &mut self.hosts {
            host.up = true;
            host.link = true;
            host.slowness = 1;
            host.full = false;
        }
        for proxy in &mut self.proxies {
            proxy.link = true;
            proxy.up = true;
        }
        self.set_draining(None);
    }

    fn set_draining(&mut self, which: Option<usize>) {
        let result: Result<(), StoreError> = self.store.update(|tx| {
            for (n, host) in self.hosts.iter().enumerate() {
                let key = HostRecord::key_of(&host.id);
                if let Some(mut record) = tx.get::<HostRecord>(&key)? {
                    record.draining = which == Some(n);
                    tx.put(&record)?;
                }
            }
            Ok(())
        });
        result.expect("memory");
        self.woken = true;
    }

    /// What people do.
    fn users(&mut self, calm: bool) {
        for n in 0..self.names.len() {
            let name = self.names[n].clone();
            if !self.rng.chance(25) {
                continue;
            }
            let bits = self.rng.bits();
            let dice = self.rng.range(0, 100);
            let label = self.new_version(calm);
            let sizes = self.rng.range(1, 6) as u32;
            let policy = *self.rng.pick(&[
                None,
                None,
                Some(DeploymentPolicy::AllAtOnce),
                Some(DeploymentPolicy::Rolling),
                Some(DeploymentPolicy::RollingWithAdditionalBatch),
                Some(DeploymentPolicy::Immutable),
                Some(DeploymentPolicy::TrafficSplitting),
                Some(DeploymentPolicy::TrafficSplitting),
            ]);
            let batch = *self.rng.pick(&[
                None,
                Some(BatchSize::Fixed(1)),
                Some(BatchSize::Percentage(50)),
            ]);
            let no_auto_rollback = self.rng.chance(100);
            // Only this version answers there. What is left after a failure without a way back runs under
            // settings that nobody chose for it.
            let own_check = !no_auto_rollback && self.rng.chance(400);
            let worker = self.rng.chance(150);
            let drained = self.rng.range(0, self.hosts.len() as u64) as usize;
            let resume = self.rng.chance(500);
            let labels = *self.rng.pick(&["", "zone=a", "zone=b"]);
            let moves = self.rng.chance(300);
            let limits = self.rng.chance(300);
            let limit = *self.rng.pick(&["0", "0", "60", "240"]);
            let update = *self.rng.pick(&["Health", "Health", "Immutable"]);
            let queue = self.rng.chance(400);
            let unready = Behaviour::of(label.as_str()) == Behaviour::Unready;
            let ready = if unready || self.rng.chance(300) {
                READY
            } else {
                ""
            };
            let call = Call {
                request_id: RequestId::from_bits(bits),
                now: self.at(),
                bits,
                observed: &self.observed,
            };
            let exists = self.engine.environment_id(&name).is_ok();
            let mut settings = OptionSettings::default();
            settings.set(options::COMMAND, "Timeout", "60");
            settings.set(options::PROCESS, "DeregistrationDelay", "5");
            settings.set(options::CONNECTIONS, "LingerLimit", limit);
            settings.set(options::ASG, "MinSize", sizes.to_string());
            if !worker && bits.is_multiple_of(5) {
                settings.set(options::ASG, "MinSize", "0");
                settings.set(options::PROXY, "IdleTime", "20");
            }
            settings.set(options::INSTANCE, "ReadyCommand", ready);
            if !worker && bits.is_multiple_of(3) {
                two_processes(&mut settings);
            }
            let mut check = OptionSettings::default();
            let path = if own_check { label.as_str() } else { "" };
            check.set(options::PROCESS, "HealthCheckPath", format!("/{path}"));
            check.set(options::INSTANCE, "ReadyCommand", ready);
            if bits.is_multiple_of(7) {
                two_processes(&mut check);
            }
            let result = match dice {
                _ if !exists => self.engine.create_environment(
                    &call,
                    api::CreateEnvironment {
                        application: ApplicationName::new("app").expect("a name"),
                        name: name.clone(),
                        cname: None,
                        description: String::new(),
                        tier: if worker { Tier::Worker } else { Tier::Web },
                        platform: beanpole_protocol::agent::Platform::Procfile,
                        settings,
                        version: (dice < 80).then_some(label),
                        new_application: None,
                    },
                ),
                0..45 => self.engine.deploy(
                    &call,
                    &name,
                    api::Deploy {
                        version: Some(label),
                        policy: if calm { None } else { policy },
                        batch: batch.filter(|_| policy != Some(DeploymentPolicy::TrafficSplitting)),
                        split: (policy == Some(DeploymentPolicy::TrafficSplitting) && !calm)
                            .then(|| "10%:20s,50%:90s".parse().expect("steps")),
                        no_auto_rollback,
                        settings: check,
                        queue,
                    },
                ),
                45..58 => self.engine.scale(
                    &call,
                    &name,
                    api::Scale {
                        instances: sizes,
                        queue,
                    },
                ),
                58..59 => self.engine.abort_queued(&call, &name),
                59..66 => self.engine.abort(&call, &name),
                66..68 => self.engine.promote(&call, &name),
                68..76 => self.engine.rollback(
                    &call,
                    &name,
                    &api::Rollback {
                        queue,
                        ..Default::default()
                    },
                ),
                76..84 => self.engine.restart(&call, &name),
                84..92 => {
                    let mut set = OptionSettings::default();
                    if moves {
                        set.set(options::PLACEMENT, "HostLabels", labels);
                    } else if limits {
                        set.set(options::CONNECTIONS, "LingerLimit", limit);
                    } else if resume {
                        let memory = 64 + bits % 64;
                        set.set(options::INSTANCE, "MemoryMax", memory.to_string());
                        set.set(options::UPDATE, "RollingUpdateType", update);
                    } else if own_check {
                        let path = if bits.is_multiple_of(2) { "/" } else { NOWHERE };
                        set.set(options::PROCESS, "HealthCheckPath", path);
                    } else {
                        set.set(options::PROPERTIES, "N", bits.to_string());
                    }
                    self.engine.update_settings(
                        &call,
                        &name,
                        api::UpdateSettings {
                            set,
                            remove: BTreeMap::new(),
                            queue,
                        },
                    )
                }
                92..96 => {
                    self.set_draining((!resume).then_some(drained));
                    continue;
                }
                96..97 => {
                    let body = api::EndLingering::default();
                    if let Err(problem) = self.engine.end_lingering(&call, &name, &body) {
                        assert!(problem.status < 500, "{problem}");
                    }
                    self.woken = true;
                    continue;
                }
                _ => self.engine.terminate(&call, &name),
            };
            match result {
                Ok(operation) => {
                    let (kind, lines) = (operation.kind, &operation.plan.lines);
                    self.tell(&format!("{name}: {kind} accepted {lines:?}"));
                    self.woken = true;
                }
                Err(problem) => {
                    self.tell(&format!("{name}: {problem}"));
                    assert!(problem.status < 500, "{problem}");
                }
            }
        }
    }

    fn new_version(&mut self, calm: bool) -> VersionLabel {
        self.versions += 1;
        let words: &[&str] = if calm {
            &["good"]
        } else {
            &[
                "good", "good", "good", "good", "good", "worse", "worse", "slow", "nobuild",
                "sick", "unready", "badhook", "crash", "dies", "flaps1", "flaps4", "flaps9",
            ]
        };
        let commands: &[&str] = if calm {
            &["", "", "-migrates"]
        } else {
            &["", "", "", "", "-migrates", "-migrates", "-fails", "-hangs"]
        };
        let (word, command) = (*self.rng.pick(words), *self.rng.pick(commands));
        let label = format!("{word}-{}{command}", self.versions);
        // Every other version has its command for the leader among its container commands.
        let mut release_command = Command::of(&label).map(|_| "./migrate".to_owned());
        let mut container_commands = ContainerCommands::default();
        if self.versions.is_multiple_of(2) {
            container_commands.leader.extend(release_command.take());
        }
        let label = VersionLabel::new(label).expect("a label");
        let record = VersionRecord {
            application: ApplicationName::new("app").expect("a name"),
            label: label.clone(),
            description: String::new(),
            bundle: crate::digest(),
            bundle_size: 1,
            release_command,
            container_commands,
            site: None,
            options: Default::default(),
            manifest: Default::default(),
            options_passed_over: Vec::new(),
            processes: None,
            created_at: self.at(),
        };
        self.store.update(|tx| tx.put(&record)).expect("memory");
        label
    }

    fn send(&mut self, message: Message) {
        let copies = if self.faulty && self.rng.chance(30) {
            2
        } else {
            1
        };
        if self.faulty && self.rng.chance(30) {
            return;
        }
        let delay = if self.faulty && self.rng.chance(50) {
            self.rng.range(1_000, 20_000)
        } else {
            self.rng.range(1, 300)
        };
        self.sent += 1;
        if copies == 2 {
            let again = match &message {
                Message::Orders(n, orders) => Message::Orders(*n, orders.clone()),
                Message::Table(n, table) => Message::Table(*n, table.clone()),
                Message::HostReport(n, report) => Message::HostReport(*n, report.clone()),
                Message::ProxyReport(n, report) => Message::ProxyReport(*n, report.clone()),
            };
            self.messages
                .insert((self.now + delay * 3, self.sent), again);
            self.sent += 1;
        }
        self.messages.insert((self.now + delay, self.sent), message);
    }

    fn tick(&mut self) -> Result<(), String> {
        self.now += TICK_MS;
        let now = self.now;
        self.deliver()?;
        let periodic = (now / TICK_MS).is_multiple_of(8);
        for n in 0..self.hosts.len() {
            let changed = self.hosts[n].step(now, &mut self.rng);
            if self.hosts[n].up && self.hosts[n].link && (changed || periodic) {
                let report = self.hosts[n].report(now);
                self.send(Message::HostReport(n, Box::new(report)));
            }
        }
        // Nobody asks for anything for a minute, now and then.
        let asked = !self.faulty || (now / 60_000).is_multiple_of(2);
        for n in 0..self.proxies.len() {
            let changed = self.proxies[n].step(now, &self.hosts, &mut self.rng, asked);
            if let Some(what) = self.proxies[n].astray.take() {
                return Err(format!("at {} ms: {what}", now - START_MS));
            }
            if self.proxies[n].up && self.proxies[n].link && (changed || periodic) {
                let report = self.proxies[n].report(Timestamp::from_millis(now));
                self.send(Message::ProxyReport(n, report));
            }
        }
        self.resend();
        if self.woken || self.at().as_millis() >= self.wake_at {
            self.woken = false;
            self.turn()?;
        }
        Ok(())
    }

    fn deliver(&mut self) -> Result<(), String> {
        let due: Vec<(u64, u64)> = self
            .messages
            .range(..=(self.now, u64::MAX))
            .map(|(key, _)| *key)
            .collect();
        let at = self.at();
        for key in due {
            match self.messages.remove(&key) {
                Some(Message::Orders(n, orders)) if self.hosts[n].up && self.hosts[n].link => {
                    self.hosts[n].order(orders)?;
                }
                Some(Message::Table(n, table)) if self.proxies[n].up && self.proxies[n].link => {
                    self.tell_table(n, &table);
                    let fresh = self.proxies[n].put_table(table)?;
                    if fresh {
                        let report = self.proxies[n].report(at);
                        self.send(Message::ProxyReport(n, report));
                    }
                }
                Some(Message::HostReport(n, report)) if self.hosts[n].link => {
                    let id = self.hosts[n].id.clone();
                    self.observed.host_report(&id, *report, at);
                    self.woken = true;
                }
                Some(Message::ProxyReport(n, report)) if self.proxies[n].link => {
                    let name = self.proxies[n].name.clone();
                    self.observed.proxy_report(&name, report, at);
                    self.woken = true;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Links send again what was not confirmed.
    fn resend(&mut self) {
        if !(self.now / TICK_MS).is_multiple_of(12) {
            return;
        }
        for n in 0..self.hosts.len() {
            let orders = self.engine.host_orders(&self.hosts[n].id).expect("memory");
            if orders.generation > self.hosts[n].generation() {
                self.send(Message::Orders(n, orders));
            }
        }
        let table = self.engine.routing_table().expect("memory");
        for n in 0..self.proxies.len() {
            if table.generation > self.proxies[n].table.generation {
                self.send(Message::Table(n, table.clone()));
            }
        }
    }

    fn turn(&mut self) -> Result<(), String> {
        let commits = self.store.commits();
        let kept = self
            .engine
            .keep_time(&self.pace, self.reading())
            .map_err(|error| format!("the time was not kept: {error:?}"))?;
        if let Some((before, now)) = kept.moved {
            self.observed.moved(before, now);
        }
        self.pace = kept.pace;
        self.checks.before(&self.store);
        let at = self.at();
        self.checks
            .time_is_steady(self.now, at)
            .map_err(|what| format!("at {} ms: {what}", self.now - START_MS))?;
        // Now and then the controller dies between two transactions.
        let dies = self.faulty && self.rng.chance(10);
        let transactions = if dies { self.rng.range(1, 3) } else { u64::MAX };
        let rng = &mut self.rng;
        let turn = self
            .engine
            .turn_at_most(&self.observed, at, &mut || rng.bits(), transactions)
            .map_err(|error| format!("a turn failed: {error:?}"))?;
        self.turns += 1;
        self.wake_at = turn.wake_at.map_or(u64::MAX, Timestamp::as_millis);
        if self.store.commits() == commits {
            return Ok(());
        }
        self.tell_journal();
        self.checks
            .after(&self.store, &self.hosts, &self.proxies, &self.observed, at)
            .and_then(|()| {
                if dies {
                    return Ok(());
                }
                checks::the_table_says_what_the_records_say(&self.store, &self.observed)
            })
            .map_err(|what| format!("at {} ms: {what}", self.now - START_MS))?;
        if self.verbose {
            for line in self.checks.news(&self.store) {
                self.tell(&line);
            }
        }
        if dies {
            self.restart_controller();
            return Ok(());
        }
        for id in turn.hosts_changed {
            let orders = self.engine.host_orders(&id).expect("memory");
            if let Some(n) = self.hosts.iter().position(|host| host.id == id) {
                self.send(Message::Orders(n, orders));
            }
        }
        if turn.table_changed {
            let table = self.engine.routing_table().expect("memory");
            for n in 0..self.proxies.len() {
                self.send(Message::Table(n, table.clone()));
            }
        }
        Ok(())
    }

    /// What is not as it should be, now that nothing goes wrong any more.
    fn unsettled(&self) -> Option<String> {
        for environment in self.store.list::<EnvironmentRecord>().expect("memory") {
            if environment.status == EnvironmentStatus::Terminated {
                continue;
            }
            let view = self
                .engine
                .environment(&environment.name, &self.observed, self.at())
                .expect("it exists");
            if let Some(operation) = view.operation.or(view.queued) {
                return Some(format!(
                    "{}: {} is {}: {:?}",
                    view.name, operation.kind, operation.status, operation.waiting
                ));
            }
            if let Some(one) = view.lingering.first() {
                return Some(format!("{}: {} lingers", view.name, one.id));
            }
            if view.status != EnvironmentStatus::Ready {
                return Some(format!("{} is {}", view.name, view.status));
            }
            let Some(version) = &view.version else {
                continue;
            };
            if environment.hold || !Behaviour::of(version.as_str()).stays_well() {
                continue;
            }
            if view.instances.len() != view.size as usize {
                return Some(format!(
                    "{} has {} of {} instances",
                    view.name,
                    view.instances.len(),
                    view.size
                ));
            }
            let labels = environment.settings.host_labels();
            for instance in &view.instances {
                let key = HostRecord::key_of(&instance.host_id);
                let Some(host) = self.store.get::<HostRecord>(&key).expect("memory") else {
                    return Some(format!("{} is on a host that was removed", instance.id));
                };
                if labels
                    .iter()
                    .any(|(name, value)| host.labels.get(name) != Some(value))
                {
                    return Some(format!(
                        "{}: {} is on {}, which lacks {labels:?}",
                        view.name, instance.id, instance.host
                    ));
                }
                if instance.release != view.release
                    || instance.health != api::InstanceHealth::Healthy
                {
                    return Some(format!(
                        "{}: {} on release {:?} is {}: {:?}",
                        view.name, instance.id, instance.release, instance.health, instance.reason
                    ));
                }
            }
        }
        checks::left_over(&self.store, &self.hosts)
    }
}

/// Has an environment have a second process, which gets a part of its paths.
fn two_processes(settings: &mut OptionSettings) {
    for (namespace, name, value) in [
        (
            "aws:elasticbeanstalk:environment:process:api",
            "Port",
            "8080",
        ),
        ("aws:elbv2:listener:default", "Rules", "api"),
        ("aws:elbv2:listenerrule:api", "PathPatterns", "/api/*"),
        ("aws:elbv2:listenerrule:api", "Process", "api"),
    ] {
        settings.set(namespace, name, value);
    }
}
