//! A fake host: an agent that obeys its orders as the real one does, and apps that behave as the
//! label of their version says.

use crate::rng::Rng;
use beanpole_protocol::agent::{
    ExitReport, Failure, HostFacts, HostOrders, HostReport, InstanceOrder, InstancePhase,
    InstanceReport, MemoryKills, OnceOrder, OncePhase, OnceReport, PortUse, ProcessReport,
    ReleaseKey, ReleaseOrder, ReleasePhase, ReleaseReport, Startup,
};
use beanpole_protocol::api::Tier;
use beanpole_protocol::{
    AgentId, EnvironmentId, Generation, HostId, Incarnation, InstanceId, OperationId,
    ReleaseNumber, Timestamp,
};
use std::collections::BTreeMap;

/// How an app behaves; the first word of its version label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    Good,
    /// Comes up late.
    Slow,
    /// Its build fails.
    NoBuild,
    /// Runs and answers 500.
    Sick,
    /// Ends again and again.
    Crash,
    /// Good at first, sick after a while.
    Dies,
    /// Answers its checks well, and a fifth of the requests with an error.
    Worse,
    /// Answers well, and its readiness command never succeeds.
    Unready,
    /// Answers well, and a hook fails in each of its instances.
    BadHook,
    /// Answers well, and ends that many milliseconds after each start.
    Flaps(u64),
}

/// What ends sooner than this after each start is never put into service as a new release: the default
/// of `MinUptime`.
const MIN_UPTIME_MS: u64 = 5_000;

/// What a release command does; said after the last hyphen of a version's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Succeeds.
    Migrates,
    /// Fails.
    Fails,
    /// Takes longer than its time.
    Hangs,
}

impl Command {
    /// The one of a version, if it has one.
    pub fn of(label: &str) -> Option<Self> {
        match label.rsplit('-').next()? {
            "migrates" => Some(Self::Migrates),
            "fails" => Some(Self::Fails),
            "hangs" => Some(Self::Hangs),
            _ => None,
        }
    }
}

/// A release command that really was started, whatever its agent knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    pub operation: OperationId,
    pub environment: EnvironmentId,
    pub version: String,
    pub succeeded: bool,
}

/// The readiness command of those that have one.
pub const READY: &str = "./ready";

/// After that long a failed preparation is tried again.
const TRIED_AGAIN_MS: u64 = 10_000;

/// What agents call it when another program has an instance's port.
const PORT_TAKEN: &str = "port-taken";

impl Behaviour {
    pub fn of(label: &str) -> Self {
        match label.split('-').next() {
            Some("slow") => Self::Slow,
            Some("nobuild") => Self::NoBuild,
            Some("sick") => Self::Sick,
            Some("crash") => Self::Crash,
            Some("dies") => Self::Dies,
            Some("worse") => Self::Worse,
            Some("unready") => Self::Unready,
            Some("badhook") => Self::BadHook,
            Some("flaps1") => Self::Flaps(1_000),
            Some("flaps4") => Self::Flaps(4_000),
            Some("flaps9") => Self::Flaps(9_000),
            _ => Self::Good,
        }
    }

    /// Whether an instance of it may ever be put into service.
    pub fn may_serve(self) -> bool {
        match self {
            Self::Good | Self::Slow | Self::Dies | Self::Worse => true,
            Self::Flaps(lives_ms) => lives_ms > MIN_UPTIME_MS,
            Self::NoBuild | Self::Sick | Self::Crash | Self::Unready | Self::BadHook => false,
        }
    }

    /// Whether a deployment of it may end well: nobody asks a worker how it is.
    pub fn may_start(self, tier: Tier) -> bool {
        self.may_serve() || (self == Self::Sick && tier == Tier::Worker)
    }

    /// Whether it is sure to be well in the end.
    pub fn stays_well(self) -> bool {
        self.may_serve() && !matches!(self, Self::Dies | Self::Flaps(_))
    }

    fn lives_ms(self) -> Option<u64> {
        match self {
            Self::Crash => Some(700),
            Self::Flaps(lives_ms) => Some(lives_ms),
            _ => None,
        }
    }
}

pub struct FakeHost {
    pub id: HostId,
    pub name: String,
    /// Whether the machine runs.
    pub up: bool,
    /// Whether the controller can reach it.
    pub link: bool,
    /// Everything takes that many times as long.
    pub slowness: u64,
    /// Its disk is full: nothing more can be prepared.
    pub full: bool,
    /// How far its clock is ahead, in milliseconds.
    pub ahead: u64,
    pub orders: HostOrders,
    releases: BTreeMap<ReleaseKey, Prepared>,
    pub instances: BTreeMap<InstanceId, Fake>,
    sequence: u64,
    /// Of its disk: another one after that was replaced.
    agent: AgentId,
    disks: u64,
    /// Release commands, as its disk knows them.
    once: BTreeMap<ReleaseKey, Once>,
    /// Release commands, as they really were: no disk forgets them.
    pub ran: Vec<Ran>,
}

/// A release command, as its agent has it on disk.
struct Once {
    report: OnceReport,
    until: u64,
}

struct Prepared {
    phase: ReleasePhase,
    since: u64,
    until: u64,
    /// The operation that asked when the attempt began.
    asked_by: Option<OperationId>,
}

/// What answers on a port.
pub struct Answer<'h> {
    pub instance: &'h InstanceId,
    pub incarnation: Incarnation,
    pub version: &'h str,
    pub good: bool,
}

pub struct Fake {
    pub incarnation: Incarnation,
    pub release: Option<ReleaseNumber>,
    /// The last incarnation whose process really ran.
    pub ran: Incarnation,
    /// The last incarnation that was ready, too.
    pub readied: Incarnation,
    /// When its readiness command succeeds, where it has one.
    ready_at: Option<u64>,
    pub phase: InstancePhase,
    pub behaviour: Behaviour,
    /// The label of the version it was started with.
    pub version: String,
    pub port: u16,
    /// Those of its further processes, which do as the first does.
    pub further: Vec<u16>,
    since: u64,
    until: u64,
    started: u64,
    restarts: u32,
    gone: bool,
}

impl FakeHost {
    pub fn new(id: HostId, name: String) -> Self {
        Self {
            agent: agent_of(&name, 0),
            disks: 0,
            once: BTreeMap::new(),
            ran: Vec::new(),
            id,
            name,
            up: true,
            link: true,
            slowness: 1,
            full: false,
            ahead: 0,
            orders: HostOrders::default(),
            releases: BTreeMap::new(),
            instances: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// What the agent does with new orders; the text of a violation when they are impossible.
    pub fn order(&mut self, orders: HostOrders) -> Result<(), String> {
        if orders.generation < self.orders.generation {
            return Ok(());
        }
        if orders.generation == self.orders.generation {
            return if orders == self.orders {
                Ok(())
            } else {
                Err(format!(
                    "orders of {} reuse generation {}",
                    self.name, orders.generation
                ))
            };
        }
        for instance in &orders.instances {
            let known = orders.releases.iter().any(|release| {
                release.key.environment == instance.environment
                    && release.key.number == instance.release
            });
            if !known {
                return Err(format!("{} is ordered without its release", instance.id));
            }
        }
        self.orders = orders;
        Ok(())
    }

    /// The machine loses its power: every process is gone, orders and prepared releases are on disk.
    pub fn crash(&mut self) {
        self.up = false;
        for fake in self.instances.values_mut() {
            if !matches!(fake.phase, InstancePhase::Stopped) {
                fake.phase = InstancePhase::Waiting;
                fake.restarts = 0;
            }
        }
        // What the agent will find when it is started again.
        for once in self.once.values_mut() {
            if once.report.phase == OncePhase::Running {
                once.report.phase = failed("release-command-interrupted");
            }
        }
        for order in &self.orders.releases {
            if let Some(wanted) = self.told(order) {
                let known = self.once.get(&order.key);
                if known.is_none_or(|once| once.report.operation != wanted.operation) {
                    let report = OnceReport {
                        operation: wanted.operation.clone(),
                        phase: failed("release-command-not-started"),
                        since: Timestamp::EPOCH,
                    };
                    let once = Once { report, until: 0 };
                    self.once.insert(order.key.clone(), once);
                }
            }
        }
    }

    fn told<'o>(&self, order: &'o ReleaseOrder) -> Option<&'o OnceOrder> {
        let wanted = order.run_once.as_ref();
        wanted.filter(|wanted| wanted.agent == self.agent)
    }

    /// Release commands: each is started once for its operation, and ended when nobody wants it.
    fn run_once(&mut self, now: u64, rng: &mut Rng) -> bool {
        let mut changed = false;
        for order in self.orders.releases.clone() {
            let wanted = self.told(&order).cloned();
            let ready = self
                .releases
                .get(&order.key)
                .is_some_and(|prepared| prepared.phase == ReleasePhase::Ready);
            let known = self.once.get_mut(&order.key);
            let operation = known.as_ref().map(|once| once.report.operation.clone());
            match (known, wanted) {
                (Some(once), wanted)
                    if once.report.phase == OncePhase::Running
                        && wanted.as_ref().map(|one| &one.operation) != operation.as_ref() =>
                {
                    once.report.phase = failed("release-command-ended");
                    changed = true;
                }
                (Some(once), Some(_))
                    if once.report.phase == OncePhase::Running && now >= once.until =>
                {
                    let does = Command::of(order.version.as_str());
                    let succeeded = does == Some(Command::Migrates);
                    once.report.phase = if succeeded {
                        OncePhase::Succeeded { log: Vec::new() }
                    } else {
                        failed("release-command-failed")
                    };
                    for ran in &mut self.ran {
                        ran.succeeded |= succeeded && Some(&ran.operation) == operation.as_ref();
                    }
                    changed = true;
                }
                (_, Some(wanted)) if ready && operation.as_ref() != Some(&wanted.operation) => {
                    let takes = match Command::of(order.version.as_str()) {
                        Some(Command::Hangs) => order.prepare_timeout_ms,
                        _ => rng.range(100, 6_000) * self.slowness,
                    };
                    self.ran.push(Ran {
                        operation: wanted.operation.clone(),
                        environment: order.key.environment.clone(),
                        version: order.version.to_string(),
                        succeeded: false,
                    });
                    let report = OnceReport {
                        operation: wanted.operation,
                        phase: OncePhase::Running,
                        since: Timestamp::from_millis(now + self.ahead),
                    };
                    let until = now + takes.min(order.prepare_timeout_ms);
                    self.once.insert(order.key, Once { report, until });
                    changed = true;
                }
                _ => {}
            }
        }
        changed
    }

    /// The disk is replaced by an empty one: the agent knows nothing any more.
    pub fn wipe(&mut self) {
        self.orders = HostOrders::default();
        self.releases.clear();
        self.instances.clear();
        self.once.clear();
        self.sequence = 0;
        self.disks += 1;
        self.agent = agent_of(&self.name, self.disks);
    }

    /// One look at everything; true when something changed.
    pub fn step(&mut self, now: u64, rng: &mut Rng) -> bool {
        if !self.up {
            return false;
        }
        let mut changed = self.prepare(now, rng);
        changed |= self.run_once(now, rng);
        let orders: Vec<InstanceOrder> = self.orders.instances.clone();
        for order in &orders {
            changed |= self.instance(order, now, rng);
        }
        let slowness = self.slowness;
        for (id, fake) in &mut self.instances {
            if orders.iter().any(|order| order.id == *id) {
                continue;
            }
            changed = true;
            match fake.phase {
                InstancePhase::Running | InstancePhase::Restarting => {
                    fake.go(
                        InstancePhase::Stopping,
                        now,
                        rng.range(100, 1_500) * slowness,
                    );
                }
                InstancePhase::Stopping if now < fake.until => {}
                _ => fake.gone = true,
            }
        }
        self.instances.retain(|_, fake| !fake.gone);
        changed
    }

    fn prepare(&mut self, now: u64, rng: &mut Rng) -> bool {
        let mut changed = false;
        let wanted: Vec<ReleaseOrder> = self.orders.releases.clone();
        self.releases
            .retain(|key, _| wanted.iter().any(|order| order.key == *key));
        for order in wanted {
            let takes = rng.range(200, 2_500) * self.slowness;
            let prepared = self.releases.entry(order.key.clone()).or_insert_with(|| {
                changed = true;
                Prepared {
                    phase: ReleasePhase::NeedsBundle,
                    since: now,
                    until: now + takes,
                    asked_by: order.asked_by.clone(),
                }
            });
            let failed = matches!(prepared.phase, ReleasePhase::Failed(_));
            let asked_anew = order.asked_by.is_some() && order.asked_by != prepared.asked_by;
            if now < prepared.until && !(failed && asked_anew) {
                continue;
            }
            let next = match &prepared.phase {
                ReleasePhase::NeedsBundle if self.full => ReleasePhase::Failed(Failure {
                    code: "disk-full".to_owned(),
                    message: "The disk is full.".to_owned(),
                    log: Vec::new(),
                }),
                // Tried again by itself, and at once for whoever asks.
                ReleasePhase::Failed(_) => {
                    prepared.asked_by.clone_from(&order.asked_by);
                    ReleasePhase::NeedsBundle
                }
                ReleasePhase::NeedsBundle => ReleasePhase::Building {
                    command: "make".to_owned(),
                },
                ReleasePhase::Building { .. } => {
                    if Behaviour::of(order.version.as_str()) == Behaviour::NoBuild {
                        ReleasePhase::Failed(Failure {
                            code: "build-failed".to_owned(),
                            message: "`make` ended with 2.".to_owned(),
                            log: vec!["no rule to make target".to_owned()],
                        })
                    } else {
                        ReleasePhase::Ready
                    }
                }
                _ => continue,
            };
            let pause = match next {
                ReleasePhase::Failed(_) => TRIED_AGAIN_MS,
                _ => takes,
            };
            prepared.phase = next;
            prepared.since = now;
            prepared.until = now + pause;
            changed = true;
        }
        changed
    }

    fn instance(&mut self, order: &InstanceOrder, now: u64, rng: &mut Rng) -> bool {
        let key = ReleaseKey {
            environment: order.environment.clone(),
            number: order.release,
        };
        let ready = self
            .releases
            .get(&key)
            .is_some_and(|prepared| prepared.phase == ReleasePhase::Ready);
        let version = self
            .orders
            .releases
            .iter()
            .find(|release| release.key == key)
            .map_or_else(String::new, |release| release.version.to_string());
        let behaviour = Behaviour::of(&version);
        let slowness = self.slowness;
        let fake = self.instances.entry(order.id.clone()).or_insert(Fake {
            incarnation: Incarnation(0),
            release: None,
            ran: Incarnation(0),
            readied: Incarnation(0),
            ready_at: None,
            phase: InstancePhase::Stopped,
            behaviour,
            version: version.clone(),
            port: order.port,
            further: Vec::new(),
            since: now,
            until: now,
            started: now,
            restarts: 0,
            gone: false,
        });
        let alive = matches!(
            fake.phase,
            InstancePhase::Running | InstancePhase::Restarting
        );
        let outdated = fake.incarnation < order.incarnation;
        match fake.phase {
            _ if alive && (outdated || !order.run) => {
                fake.go(
                    InstancePhase::Stopping,
                    now,
                    rng.range(100, 1_500) * slowness,
                );
                true
            }
            InstancePhase::Stopping if now < fake.until => false,
            InstancePhase::Stopping => {
                fake.go(InstancePhase::Stopped, now, 0);
                true
            }
            InstancePhase::Waiting | InstancePhase::Failed(_) if !order.run => {
                fake.go(InstancePhase::Stopped, now, 0);
                true
            }
            _ if outdated => {
                fake.incarnation = order.incarnation;
                fake.release = Some(order.release);
                fake.port = order.port;
                fake.further = order.ports.values().copied().collect();
                fake.behaviour = behaviour;
                fake.version = version;
                fake.restarts = 0;
                let next = if order.run {
                    InstancePhase::Waiting
                } else {
                    InstancePhase::Stopped
                };
                fake.go(next, now, rng.range(50, 500) * slowness);
                true
            }
            // Another program has its port, for a while; it answers well.
            InstancePhase::Waiting if ready && now >= fake.until && rng.chance(20) => {
                let failure = Failure {
                    code: PORT_TAKEN.to_owned(),
                    message: format!("Port {} is taken by another program.", fake.port),
                    log: Vec::new(),
                };
                fake.go(InstancePhase::Failed(failure), now, 20_000);
                true
            }
            InstancePhase::Failed(_) if now >= fake.until => {
                fake.go(InstancePhase::Waiting, now, 0);
                true
            }
            InstancePhase::Waiting if ready && now >= fake.until => {
                fake.go(
                    InstancePhase::Running,
                    now,
                    fake.behaviour.lives_ms().unwrap_or(0),
                );
                fake.started = now;
                fake.ran = fake.incarnation;
                fake.begin_ready(order, now, rng.range(300, 3_000) * slowness);
                true
            }
            InstancePhase::Running if fake.behaviour.lives_ms().is_some() && now >= fake.until => {
                fake.go(InstancePhase::Restarting, now, 500);
                fake.restarts += 1;
                true
            }
            InstancePhase::Restarting if now >= fake.until => {
                fake.go(
                    InstancePhase::Running,
                    now,
                    fake.behaviour.lives_ms().unwrap_or(0),
                );
                fake.started = now;
                fake.begin_ready(order, now, rng.range(300, 3_000) * slowness);
                true
            }
            InstancePhase::Running
                if fake.behaviour != Behaviour::BadHook
                    && fake.readied < fake.incarnation
                    && fake.ready_at.is_none_or(|at| now >= at) =>
            {
                fake.readied = fake.incarnation;
                true
            }
            _ => false,
        }
    }

    /// What a connection to a port finds: nobody, or who runs what there and whether the answer is good.
    pub fn answers(&self, port: u16, now: u64) -> Option<Answer<'_>> {
        if !self.up {
            return None;
        }
        let (id, fake) = self.instances.iter().find(|(_, fake)| {
            (fake.port == port || fake.further.contains(&port))
                && matches!(
                    fake.phase,
                    InstancePhase::Running | InstancePhase::Stopping | InstancePhase::Failed(_)
                )
        })?;
        let answer = |good| Answer {
            instance: id,
            incarnation: fake.incarnation,
            version: &fake.version,
            good,
        };
        if matches!(fake.phase, InstancePhase::Failed(_)) {
            return Some(answer(true));
        }
        let age = now - fake.started;
        let listens = match fake.behaviour {
            Behaviour::Slow => 8_000,
            Behaviour::Crash => 10_000,
            _ => 300,
        };
        if age < listens {
            return None;
        }
        let good = match fake.behaviour {
            Behaviour::Good
            | Behaviour::Slow
            | Behaviour::Unready
            | Behaviour::BadHook
            | Behaviour::Flaps(_) => true,
            Behaviour::Dies => age < 25_000,
            _ => false,
        };
        Some(answer(good))
    }

    pub fn report(&mut self, now: u64) -> HostReport {
        self.sequence += 1;
        let ahead = self.ahead;
        let clock = |at: u64| Timestamp::from_millis(at + ahead);
        let now = clock(now);
        HostReport {
            edge: None,
            sequence: self.sequence,
            agent_version: "0".to_owned(),
            agent_digest: None,
            agent: Some(self.agent.clone()),
            owner: None,
            now,
            generation: self.orders.generation,
            facts: HostFacts {
                hostname: self.name.clone(),
                memory_total_bytes: 4 << 30,
                memory_available_bytes: 3 << 30,
                ports_by_process: true,
                ..HostFacts::default()
            },
            releases: self
                .releases
                .iter()
                .map(|(key, prepared)| ReleaseReport {
                    key: key.clone(),
                    phase: prepared.phase.clone(),
                    bundle: crate::digest(),
                    bundle_have: 0,
                    since: clock(prepared.since),
                    asked_by: prepared.asked_by.clone(),
                    again_at: matches!(prepared.phase, ReleasePhase::Failed(_))
                        .then(|| clock(prepared.until)),
                    has_release_command: prepared.phase == ReleasePhase::Ready,
                    ran_container_commands: prepared.phase == ReleasePhase::Ready,
                    set_up: prepared.phase == ReleasePhase::Ready,
                    once: self.once.get(key).map(|once| once.report.clone()),
                })
                .collect(),
            instances: self
                .instances
                .iter()
                .map(|(id, fake)| InstanceReport {
                    id: id.clone(),
                    release: fake.release,
                    incarnation: fake.incarnation,
                    phase: fake.phase.clone(),
                    since: clock(fake.since),
                    processes: vec![ProcessReport {
                        name: "web".to_owned(),
                        pid: (fake.phase == InstancePhase::Running).then_some(1),
                        started_at: Some(clock(fake.since)),
                        restarts: fake.restarts,
                        last_exit: (fake.restarts > 0).then_some(ExitReport {
                            code: Some(1),
                            signal: None,
                            oom: false,
                            at: now,
                        }),
                        ended_at: Vec::new(),
                        memory_bytes: None,
                    }],
                    log: vec!["a line".to_owned()],
                    port: PortUse::Unknown,
                    memory_kills: MemoryKills::default(),
                    startup: fake.startup(now.as_millis() - ahead),
                })
                .collect(),
        }
    }

    pub fn generation(&self) -> Generation {
        self.orders.generation
    }
}

/// Each disk of each host has another agent.
fn agent_of(name: &str, disks: u64) -> AgentId {
    let host = name.bytes().fold(7_u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    });
    AgentId::from_bits((u128::from(host) << 64) | u128::from(disks))
}

fn failed(code: &str) -> OncePhase {
    OncePhase::Failed(Failure {
        code: code.to_owned(),
        message: "It failed.".to_owned(),
        log: Vec::new(),
    })
}

impl Fake {
    fn begin_ready(&mut self, order: &InstanceOrder, now: u64, takes: u64) {
        let never = self.behaviour == Behaviour::Unready;
        let at = if never { u64::MAX } else { now + takes };
        let waits = order.ready.is_some() || self.behaviour == Behaviour::BadHook;
        self.ready_at = waits.then_some(at);
    }

    fn startup(&self, now: u64) -> Option<Startup> {
        let at = self.ready_at?;
        if now >= at && self.behaviour == Behaviour::BadHook {
            return Some(Startup::Failed(Failure {
                code: "hook-failed".to_owned(),
                message: "The hook exited with 1.".to_owned(),
                log: Vec::new(),
            }));
        }
        if now >= at {
            return Some(Startup::Passed);
        }
        Some(Startup::Ready {
            command: READY.to_owned(),
            tries: 1,
            last: Some("exited with 1".to_owned()),
        })
    }

    fn go(&mut self, phase: InstancePhase, now: u64, takes: u64) {
        self.phase = phase;
        self.since = now;
        self.until = now + takes;
    }
}
