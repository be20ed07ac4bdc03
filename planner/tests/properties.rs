//! Properties that hold for every plan, whatever the environment, the goal and what goes wrong.

use beanpole_planner::{
    Action, Decision, Gate, Goal, Happened, HostState, InstanceState, Place, Plan, Progress,
    ProxyState, Reach, Rules, Timeouts, World, apply, next, plan, plan_back,
};
use beanpole_protocol::agent::{
    HostFacts, HostReport, InstancePhase, InstanceReport, MemoryKills, PortUse, ProcessReport,
    ReleaseKey, ReleasePhase, ReleaseReport,
};
use beanpole_protocol::options::{BatchSize, DeploymentPolicy, SplitStep};
use beanpole_protocol::proxy::{ProxyReport, TargetMode, TargetReport, Traffic};
use beanpole_protocol::{
    Digest, EnvironmentId, Generation, HostId, Incarnation, InstanceId, ReleaseNumber, Timestamp,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const OLD: ReleaseNumber = ReleaseNumber(1);
const NEW: ReleaseNumber = ReleaseNumber(2);
const GOOD_CHECKS: u32 = 2;
const UP_MS: u64 = 3_000;

/// What a case is about.
#[derive(Clone, Debug)]
struct Case {
    hosts: u8,
    instances: u8,
    unhealthy: BTreeSet<u8>,
    goal: u8,
    size: u32,
    batch: u32,
    /// Of [`DeploymentPolicy::ALL`].
    policy: usize,
    /// The new release never becomes healthy on hosts with these numbers.
    sick_on: BTreeSet<u8>,
    /// The new release answers well on this host and ends between any two looks at it.
    ends_on: Option<u8>,
    /// Every instance has requests that never end, which may outlast the plan.
    lingers: bool,
    /// Which part of the world moves, in turn.
    moves: Vec<u8>,
}

fn cases() -> impl Strategy<Value = Case> {
    (
        1_u8..5,
        0_u8..9,
        prop::collection::btree_set(0_u8..9, 0..3),
        0_u8..4,
        1_u32..9,
        1_u32..5,
        0..DeploymentPolicy::ALL.len(),
        prop::collection::btree_set(0_u8..5, 0..2),
        prop::option::weighted(0.2, 0_u8..5),
        prop::bool::weighted(0.3),
        prop::collection::vec(0_u8..6, 1..40),
    )
        .prop_map(
            |(
                hosts,
                instances,
                unhealthy,
                goal,
                size,
                batch,
                policy,
                sick_on,
                ends_on,
                lingers,
                moves,
            )| Case {
                hosts,
                instances,
                unhealthy,
                goal,
                size,
                batch,
                policy,
                sick_on,
                ends_on,
                lingers,
                moves,
            },
        )
}

/// A world that does what it is told, some of it late, some of it never.
struct Fake {
    environment: EnvironmentId,
    instances: BTreeMap<InstanceId, InstanceState>,
    reports: BTreeMap<HostId, HostReport>,
    proxy: ProxyReport,
    generation: Generation,
    sick_on: BTreeSet<HostId>,
    ends_on: Option<HostId>,
    /// Requests that are open at each instance, and never end.
    open: u32,
    /// Instances that linger.
    lingering: BTreeSet<InstanceId>,
    now: u64,
    /// A host that is cut off once that many entries are recorded.
    loses: Option<(HostId, usize)>,
    recorded: usize,
    /// Somebody promotes a split as soon as it has begun.
    promotes: bool,
    /// The share of the new release.
    share: Option<u8>,
    /// Every share that it had, with the time at which proxies confirmed it and at which it was over.
    shares: Vec<(u8, u64, u64)>,
    /// One of the plan's instances was up for long enough.
    stood: bool,
    /// How many instances there were.
    old: usize,
    /// Somebody aborts after that many entries.
    aborted_after: Option<usize>,
    /// What went against a property.
    broken: Vec<String>,
}

fn host(n: u8) -> HostId {
    HostId::from_bits(u128::from(n) + 1)
}

impl Fake {
    fn new(case: &Case) -> Self {
        let mut fake = Self {
            environment: EnvironmentId::from_bits(1),
            instances: BTreeMap::new(),
            reports: (0..case.hosts).map(|n| (host(n), empty_report())).collect(),
            proxy: ProxyReport {
                sequence: 1,
                run: String::new(),
                version: String::new(),
                generation: Generation(1),
                now: Timestamp::EPOCH,
                targets: Vec::new(),
                environments: Vec::new(),
                releases: Vec::new(),
                listeners: Vec::new(),
                streams: Vec::new(),
            },
            generation: Generation(1),
            sick_on: case.sick_on.iter().map(|n| host(*n)).collect(),
            ends_on: case.ends_on.map(host),
            open: u32::from(case.lingers),
            lingering: BTreeSet::new(),
            now: 1_000_000,
            loses: None,
            recorded: 0,
            promotes: false,
            share: None,
            shares: Vec::new(),
            stood: false,
            old: usize::from(case.instances),
            aborted_after: None,
            broken: Vec::new(),
        };
        for n in 0..case.instances {
            let id = InstanceId::from_bits(u128::from(n) + 1_000);
            let on = host(n % case.hosts);
            fake.instances.insert(
                id.clone(),
                InstanceState {
                    host: on.clone(),
                    release: OLD,
                    incarnation: Incarnation(1),
                    mode: Some(TargetMode::Serve),
                    routed: Some(Generation(1)),
                    ordered: Some(Generation(1)),
                    asks_ready: false,
                },
            );
            fake.run_instance(&id);
            fake.show_target(&id, !case.unhealthy.contains(&n));
        }
        fake
    }

    /// A failure has left that many instances without requests.
    fn leave(&mut self, count: u8) {
        let hosts = u8::try_from(self.reports.len()).expect("few hosts");
        for n in 0..count {
            let id = InstanceId::from_bits(u128::from(n) + 2_000);
            let left = InstanceState {
                host: host(n % hosts),
                release: ReleaseNumber(9),
                incarnation: Incarnation(1),
                mode: None,
                routed: Some(Generation(1)),
                ordered: Some(Generation(1)),
                asks_ready: false,
            };
            self.instances.insert(id.clone(), left);
            self.run_instance(&id);
        }
    }

    /// Where what serves is.
    fn serving_on(&self) -> Vec<HostId> {
        let all = self.instances.values();
        let serving = all.filter(|one| one.mode == Some(TargetMode::Serve));
        serving.map(|one| one.host.clone()).collect()
    }

    /// The host that is cut off by now.
    fn lost(&self) -> Option<HostId> {
        let (host, _) = self.loses.as_ref()?;
        self.is_lost(host).then(|| host.clone())
    }

    fn is_lost(&self, host: &HostId) -> bool {
        let loses = self.loses.as_ref();
        loses.is_some_and(|(lost, at)| lost == host && self.recorded >= *at)
    }

    fn world(&self) -> World<'_> {
        let mut counts: BTreeMap<&HostId, u32> = BTreeMap::new();
        for instance in self.instances.values() {
            *counts.entry(&instance.host).or_default() += 1;
        }
        World {
            left_out: Vec::new(),
            environment: self.environment.clone(),
            operation: None,
            instances: self.instances.clone(),
            hosts: self
                .reports
                .iter()
                .map(|(id, report)| {
                    let state = HostState {
                        name: id.to_string(),
                        reach: if self.is_lost(id) {
                            Reach::Lost(Timestamp::EPOCH)
                        } else {
                            Reach::Here
                        },
                        draining: false,
                        labels: BTreeMap::new(),
                        instances: counts.get(id).copied().unwrap_or(0),
                        promised_memory: 0,
                        heard: None,
                        report: Some(report),
                        cannot: None,
                    };
                    (id.clone(), state)
                })
                .collect(),
            proxies: vec![ProxyState::new("p".to_owned(), None, Some(&self.proxy))],
            web: true,
            replace_after: std::time::Duration::from_mins(5),
            evidence: None,
            with_commands: Default::default(),
            routed: None,
        }
    }

    fn run_instance(&mut self, id: &InstanceId) {
        let instance = self.instances[id].clone();
        if self.is_lost(&instance.host) {
            return;
        }
        let report = self.reports.get_mut(&instance.host).expect("a host");
        report.now = Timestamp::from_millis(self.now);
        let before = report
            .instances
            .iter()
            .find(|seen| seen.id == *id && seen.incarnation == instance.incarnation)
            .cloned();
        let ends = instance.release == NEW && self.ends_on.as_ref() == Some(&instance.host);
        let restarts = before.as_ref().map_or(0, |seen| {
            seen.processes.iter().map(|one| one.restarts).sum::<u32>() + u32::from(ends)
        });
        let since = match before {
            Some(before) if !ends => before.since,
            _ => Timestamp::from_millis(self.now),
        };
        report.instances.retain(|seen| seen.id != *id);
        report.instances.push(InstanceReport {
            id: id.clone(),
            release: Some(instance.release),
            incarnation: instance.incarnation,
            phase: InstancePhase::Running,
            since,
            processes: vec![ProcessReport {
                name: "web".to_owned(),
                pid: None,
                started_at: None,
                restarts,
                last_exit: None,
                ended_at: Vec::new(),
                memory_bytes: None,
            }],
            log: Vec::new(),
            port: PortUse::Unknown,
            memory_kills: MemoryKills::default(),
            startup: None,
        });
    }

    fn show_target(&mut self, id: &InstanceId, healthy: bool) {
        let instance = &self.instances[id];
        self.proxy.targets.retain(|seen| seen.instance != *id);
        let Some(mode) = instance.mode else { return };
        self.proxy.targets.push(TargetReport {
            process: String::new(),
            processes: Vec::new(),
            instance: id.clone(),
            incarnation: instance.incarnation,
            mode,
            healthy,
            good_checks: if healthy { GOOD_CHECKS } else { 0 },
            good_for_ms: 0,
            bad_checks: u32::from(!healthy),
            bad_for_ms: 0,
            last_check: None,
            in_flight: self.open,
            traffic: Traffic::default(),
            tried: None,
            ejected: None,
        });
    }

    /// One part of the world catches up with what is wanted.
    fn step(&mut self, part: u8) {
        self.now += 1_000;
        match part {
            0 => {
                let lost = self.lost();
                for (_, report) in self
                    .reports
                    .iter_mut()
                    .filter(|(id, _)| Some(*id) != lost.as_ref())
                {
                    report.generation = self.generation;
                    report.releases = [OLD, NEW]
                        .map(|number| ReleaseReport {
                            key: ReleaseKey {
                                environment: self.environment.clone(),
                                number,
                            },
                            phase: ReleasePhase::Ready,
                            bundle: Digest::new("0".repeat(64)).expect("a digest"),
                            bundle_have: 0,
                            since: Timestamp::EPOCH,
                            asked_by: None,
                            again_at: None,
                            has_release_command: false,
                            ran_container_commands: true,
                            set_up: true,
                            once: None,
                        })
                        .to_vec();
                }
            }
            1 => {
                for id in self.instances.keys().cloned().collect::<Vec<_>>() {
                    self.run_instance(&id);
                }
            }
            2 => {
                // Those that are stopped are seen to be gone.
                let lost = self.lost();
                for (_, report) in self
                    .reports
                    .iter_mut()
                    .filter(|(id, _)| Some(*id) != lost.as_ref())
                {
                    report.instances.retain(|seen| {
                        self.instances
                            .get(&seen.id)
                            .is_some_and(|wanted| wanted.mode.is_some() || wanted.ordered.is_none())
                    });
                    report.generation = self.generation;
                }
            }
            3 | 4 => {
                self.proxy.generation = self.generation;
                for id in self.instances.keys().cloned().collect::<Vec<_>>() {
                    let instance = &self.instances[&id];
                    let sick = self.is_lost(&instance.host)
                        || instance.release == NEW && self.sick_on.contains(&instance.host);
                    let was_bad = self.proxy.targets.iter().any(|target| {
                        target.instance == id
                            && target.incarnation == instance.incarnation
                            && target.incarnation == Incarnation(1)
                            && !target.healthy
                    });
                    self.show_target(&id, !sick && !was_bad);
                }
            }
            _ => {}
        }
    }

    /// What the engine does with an entry, and what may be seen to be wrong with it.
    fn record(&mut self, plan: &Plan, entry: &Happened) {
        let serving_before = self.world().serving_count();
        let generation = self.generation.next();
        match entry {
            Happened::DrainStarted { instance } => {
                let world = self.world();
                let served = world.serving(instance) == beanpole_planner::Serving::Yes;
                let forced = plan.stages.iter().any(
                    |stage| matches!(stage, beanpole_planner::Stage::Batch(batch) if batch.force),
                );
                // Its successors are in the same table in which it is drained.
                let entered = plan.stages.iter().any(|stage| {
                    matches!(stage, beanpole_planner::Stage::Batch(batch)
                        if batch.changes.iter().any(|c| c.instance == *instance)
                            && !batch.enters.is_empty()
                            && batch.enters.iter().all(|id| self.routed_to(id)))
                });
                let floor = plan.floor_in(&world);
                if served && !forced && !entered && serving_before <= floor {
                    self.broken.push(format!(
                        "{instance} left {serving_before} - 1 below the floor"
                    ));
                }
                self.want(instance, |wanted| wanted.mode = Some(TargetMode::Drain));
            }
            Happened::PutIn {
                instance, forced, ..
            } => {
                let wanted = &self.instances[instance];
                let proven = self.proxy.targets.iter().any(|target| {
                    target.instance == *instance
                        && target.incarnation == wanted.incarnation
                        && target.good_checks >= GOOD_CHECKS
                });
                if !proven && !forced {
                    self.broken.push(format!("{instance} serves unproven"));
                }
                let mut stages = plan.stages.iter();
                let splits = stages.any(|s| matches!(s, beanpole_planner::Stage::Split(_)));
                let launched = plan.changes().any(|(_, change)| {
                    change.instance == *instance && change.action == Action::Launch { release: NEW }
                });
                let old_serves = self.instances.values().any(|i| i.release == OLD);
                if splits
                    && launched
                    && old_serves
                    && self.share.is_none()
                    && self.shares.is_empty()
                {
                    self.broken
                        .push(format!("{instance} serves without a share"));
                }
                let report = &self.reports[&wanted.host];
                let up = report.instances.iter().any(|seen| {
                    seen.id == *instance
                        && seen.incarnation == wanted.incarnation
                        && u64::try_from(report.now.since(seen.since).as_millis())
                            .is_ok_and(|up| up >= UP_MS)
                });
                // Where the first has been up for so long, the others need not be.
                // Nor need any where nothing serves.
                self.stood |= serving_before == 0;
                if !up && !forced && !self.stood {
                    self.broken.push(format!("{instance} serves too young"));
                }
                self.stood |= up;
                self.want(instance, |wanted| wanted.mode = Some(TargetMode::Serve));
            }
            Happened::Held { restarts, .. } => {
                self.stood |= restarts.is_some();
                return;
            }
            Happened::ProbeStarted { instance } => {
                self.want(instance, |wanted| wanted.mode = Some(TargetMode::Probe));
            }
            Happened::Switched { instance } => {
                self.undrained(plan, instance);
                let change = plan
                    .changes()
                    .find(|(_, change)| change.instance == *instance);
                let (_, change) = change.expect("it is in the plan");
                let release = match change.action {
                    Action::Launch { release } | Action::Replace { release } => release,
                    _ => self.instances[instance].release,
                };
                let host = change.host.clone();
                let wanted = self
                    .instances
                    .entry(instance.clone())
                    .or_insert(InstanceState {
                        host,
                        release,
                        incarnation: Incarnation(0),
                        mode: None,
                        routed: None,
                        ordered: None,
                        asks_ready: false,
                    });
                wanted.release = release;
                wanted.incarnation = wanted.incarnation.next();
                wanted.mode = None;
            }
            Happened::StopOrdered { instance } => {
                self.undrained(plan, instance);
                self.want(instance, |wanted| wanted.mode = None);
            }
            Happened::Removed { instance, .. } => {
                self.instances.remove(instance);
            }
            Happened::Drained { instance, cut } if *cut > 0 => {
                let goes = plan.changes().any(|(_, change)| {
                    change.instance == *instance && change.action == Action::Remove
                });
                if goes && plan.timeouts.linger_ms > 0 {
                    self.broken.push(format!("{instance} was cut"));
                }
                return;
            }
            Happened::Lingers {
                instance,
                since,
                until,
                ..
            } => {
                self.undrained(plan, instance);
                let limit = since.after(std::time::Duration::from_millis(plan.timeouts.linger_ms));
                if plan.timeouts.linger_ms == 0 || *until != limit {
                    self.broken.push(format!("{instance} lingers for ever"));
                }
                self.instances.remove(instance);
                self.lingering.insert(instance.clone());
            }
            Happened::ShareSet { percent } => {
                if self.share.is_some_and(|before| before >= *percent) {
                    self.broken.push(format!("the share falls to {percent} %"));
                }
                self.share = Some(*percent);
                for instance in self.instances.values_mut() {
                    if instance.release == NEW {
                        instance.routed = Some(generation);
                    }
                }
            }
            Happened::ShareConfirmed { percent } => {
                let new = self
                    .instances
                    .values()
                    .filter(|i| i.release == NEW && i.mode == Some(TargetMode::Serve));
                let routed = new.filter_map(|i| i.routed).max();
                if routed.is_some_and(|routed| self.proxy.generation < routed) {
                    self.broken.push(format!("{percent} % confirmed by nobody"));
                }
                self.shares.push((*percent, self.now, 0));
                return;
            }
            Happened::StageFinished { stage } => {
                if let (Some(beanpole_planner::Stage::Split(_)), Some(last)) =
                    (plan.stages.get(*stage), self.shares.last_mut())
                {
                    last.2 = self.now;
                    self.old_side_is_whole();
                }
                return;
            }
            Happened::StageStarted { stage } => {
                if !matches!(plan.stages[*stage], beanpole_planner::Stage::Split(_)) {
                    self.share = None;
                }
                return;
            }
            _ => return,
        }
        self.generation = generation;
        if let Happened::DrainStarted { instance }
        | Happened::PutIn { instance, .. }
        | Happened::ProbeStarted { instance }
        | Happened::Switched { instance }
        | Happened::StopOrdered { instance } = entry
        {
            self.want(instance, |wanted| {
                wanted.routed = Some(generation);
                wanted.ordered = Some(generation);
            });
        }
    }

    /// After a while, others stand in for what a split lost of its old side.
    fn old_side_is_whole(&mut self) {
        let loses = self.loses.as_ref();
        if loses.is_none_or(|(_, at)| self.recorded < at + 20) {
            return;
        }
        let serve = self.instances.values().filter(|one| {
            one.release == OLD && one.mode == Some(TargetMode::Serve) && !self.is_lost(&one.host)
        });
        let count = serve.count();
        if count < self.old {
            self.broken
                .push(format!("{count} of {} old ones are left", self.old));
        }
    }

    fn routed_to(&self, id: &InstanceId) -> bool {
        let wanted = self.instances.get(id);
        wanted.is_some_and(|wanted| wanted.mode == Some(TargetMode::Serve))
    }

    fn undrained(&mut self, plan: &Plan, instance: &InstanceId) {
        let in_draining_batch = plan.stages.iter().any(|stage| {
            matches!(stage, beanpole_planner::Stage::Batch(batch)
                if batch.drain && !batch.force && batch.changes.iter().any(|c| c.instance == *instance))
        });
        let Some(wanted) = self.instances.get(instance) else {
            return;
        };
        let may_get_requests = self.proxy.targets.iter().any(|target| {
            target.instance == *instance
                && target.incarnation == wanted.incarnation
                && target.mode == TargetMode::Serve
        });
        if in_draining_batch && may_get_requests {
            self.broken
                .push(format!("{instance} is stopped while it may get requests"));
        }
    }

    fn want(&mut self, id: &InstanceId, change: impl FnOnce(&mut InstanceState)) {
        if let Some(wanted) = self.instances.get_mut(id) {
            change(wanted);
        }
    }

    /// Carries a plan out; true when it finished, false when it failed.
    fn carry_out(&mut self, plan: &Plan, moves: &[u8]) -> (bool, Progress) {
        let mut progress = Progress::default();
        self.stood = false;
        let mut idle = 0;
        for turn in 0..20_000 {
            let now = Timestamp::from_millis(self.now);
            if self.promotes && progress.share.is_some() && !progress.promoted {
                progress = apply(progress, now, &Happened::Promoted).expect("a legal entry");
            }
            if self
                .aborted_after
                .is_some_and(|after| self.recorded >= after)
            {
                self.aborted_after = None;
                return (false, progress);
            }
            let world = self.world();
            let decision = next(plan, &progress, &world, now);
            assert_eq!(decision, next(plan, &progress, &world, now), "same input");
            match decision {
                Decision::Record(entries) => {
                    idle = 0;
                    for entry in entries {
                        self.recorded += 1;
                        self.record(&plan.around(&progress), &entry);
                        progress = apply(progress, now, &entry).expect("a legal entry");
                    }
                }
                Decision::Wait { until, reasons } => {
                    assert!(!reasons.is_empty(), "a wait without a reason");
                    assert!(until > now, "a wait until the past: {reasons:?}");
                    self.step(moves[turn % moves.len()]);
                    idle += 1;
                    if idle > 50 {
                        // Nothing happens for long: the deadline comes.
                        self.now = self.now.max(until.as_millis());
                    }
                }
                Decision::Finished => return (true, progress),
                Decision::Failed(failure) => {
                    assert!(failure.message.ends_with('.'), "{}", failure.message);
                    return (false, progress);
                }
            }
        }
        panic!("it never ends: {progress:?}");
    }
}

fn empty_report() -> HostReport {
    HostReport {
        edge: None,
        sequence: 1,
        agent_version: String::new(),
        agent_digest: None,
        agent: None,
        owner: None,
        now: Timestamp::EPOCH,
        generation: Generation(1),
        facts: HostFacts {
            memory_total_bytes: 8 << 30,
            memory_available_bytes: 8 << 30,
            ..HostFacts::default()
        },
        releases: Vec::new(),
        instances: Vec::new(),
    }
}

fn rules() -> Rules {
    Rules {
        gate: Gate::Proxies {
            good_checks: GOOD_CHECKS,
            bad_checks: 3,
            up_ms: UP_MS,
            every: false,
        },
        timeouts: Timeouts {
            prepare_ms: 60_000,
            batch_ms: 60_000,
            drain_ms: 5_000,
            stop_ms: 5_000,
            linger_ms: 0,
        },
        ignore_health: false,
        split: steps(),
        guard: None,
        overlap: false,
        renews: false,
        in_service: 0,
        needs: Place::default(),
    }
}

fn rules_of(case: &Case) -> Rules {
    let mut rules = rules();
    if case.lingers {
        rules.timeouts.linger_ms = 3_600_000;
    }
    rules
}

fn steps() -> Vec<SplitStep> {
    [(5, 60), (50, 120)]
        .map(|(percent, wait_s)| SplitStep {
            percent,
            wait_s: Some(wait_s),
        })
        .to_vec()
}

fn goal(case: &Case) -> Goal {
    let policy = DeploymentPolicy::ALL[case.policy];
    let batch = BatchSize::Fixed(case.batch);
    match case.goal {
        0 => Goal::Scale {
            release: OLD,
            tree: OLD,
            size: case.size,
        },
        1 => Goal::Restart {
            live: OLD,
            policy,
            batch,
        },
        2 => Goal::Terminate,
        _ => Goal::Deploy {
            release: NEW,
            tree: NEW,
            size: case.size,
            policy,
            batch,
        },
    }
}

/// Goes there, and back when that fails; everything that went against a property on the way.
fn there_and_back(case: &Case) -> Result<Vec<String>, TestCaseError> {
    let mut fake = Fake::new(case);
    let made = match plan(&fake.world(), &goal(case), &rules_of(case), 7) {
        Ok(made) => made,
        Err(refusal) => {
            prop_assert!(fake.instances.is_empty(), "refused: {refusal}");
            return Ok(Vec::new());
        }
    };
    prop_assert_eq!(
        &made,
        &plan(&fake.world(), &goal(case), &rules_of(case), 7).expect("there is room")
    );
    let (finished, progress) = fake.carry_out(&made, &case.moves);
    if finished && case.goal == 3 {
        let all_new = fake.instances.values().all(|i| i.release == NEW);
        prop_assert!(all_new, "one version at the end");
        let ends = fake
            .instances
            .values()
            .any(|i| fake.ends_on.as_ref() == Some(&i.host));
        prop_assert!(!ends, "a release that does not stay up went live");
        prop_assert_eq!(fake.instances.len(), case.size as usize);
    }
    if !finished && case.goal == 3 {
        let world = fake.world();
        let back = plan_back(
            &world,
            &made,
            &progress,
            Some((OLD, OLD)),
            &rules_of(case),
            8,
        );
        // On the way back the world does all it is asked.
        let (finished, _) = fake.carry_out(&back, &[0, 1, 2, 3, 4, 5]);
        let stubborn = !case.unhealthy.is_empty();
        prop_assert!(finished || stubborn, "the way back failed: {back:?}");
        if finished {
            let all_old = fake.instances.values().all(|i| i.release == OLD);
            prop_assert!(all_old, "one version after going back");
        }
    }
    let mut left = fake.lingering.iter();
    prop_assert!(!left.any(|id| fake.instances.contains_key(id)));
    Ok(fake.broken)
}

/// Two of four instances were left on another release by a deployment before; the next one, which makes do
/// with two, is aborted after each of its entries.
#[test]
fn an_abort_leaves_nothing_on_a_release_that_nobody_goes_back_to() {
    for policy in 0..DeploymentPolicy::ALL.len() {
        for aborted_after in 0..120 {
            let case = Case {
                hosts: 2,
                instances: 4,
                unhealthy: BTreeSet::new(),
                goal: 3,
                size: 2,
                batch: 1,
                policy,
                sick_on: BTreeSet::new(),
                ends_on: None,
                lingers: false,
                moves: vec![0, 1, 2, 3],
            };
            let mut fake = Fake::new(&case);
            for stray in fake.instances.values_mut().take(2) {
                stray.release = ReleaseNumber(9);
            }
            let made = plan(&fake.world(), &goal(&case), &rules(), 7).expect("there is room");
            fake.aborted_after = Some(aborted_after);
            let (finished, progress) = fake.carry_out(&made, &case.moves);
            if finished {
                break;
            }
            let touched: BTreeSet<InstanceId> = progress.changes.keys().cloned().collect();
            let back = plan_back(
                &fake.world(),
                &made,
                &progress,
                Some((OLD, OLD)),
                &rules(),
                8,
            );
            let (finished, went) = fake.carry_out(&back, &case.moves);
            assert!(finished, "the way back failed: {:?}", went.failed);
            for (id, one) in &fake.instances {
                let is_well = one.release == OLD || !touched.contains(id) && one.release != NEW;
                assert!(is_well, "{id} is on {} after {aborted_after}", one.release);
            }
        }
    }
}

proptest! {
    #[test]
    fn capacity_never_below_floor(case in cases()) {
        let broken = there_and_back(&case)?;
        prop_assert!(!broken.iter().any(|what| what.contains("floor")), "{broken:?}");
    }

    #[test]
    fn no_traffic_before_healthy(case in cases()) {
        let broken = there_and_back(&case)?;
        prop_assert!(!broken.iter().any(|what| what.contains("unproven")), "{broken:?}");
    }

    #[test]
    fn no_traffic_before_up_for_long_enough(case in cases()) {
        let broken = there_and_back(&case)?;
        prop_assert!(!broken.iter().any(|what| what.contains("young")), "{broken:?}");
    }

    #[test]
    fn drained_before_stopped(case in cases()) {
        let broken = there_and_back(&case)?;
        prop_assert!(!broken.iter().any(|what| what.contains("stopped")), "{broken:?}");
    }

    #[test]
    fn nothing_is_cut_where_it_may_linger(case in cases()) {
        let broken = there_and_back(&Case { lingers: true, ..case })?;
        prop_assert!(broken.is_empty(), "{broken:?}");
    }

    #[test]
    fn long_connections_hold_no_deployment_up_and_none_is_changed_in_place(case in cases()) {
        let case = Case {
            unhealthy: BTreeSet::new(), sick_on: BTreeSet::new(), ends_on: None, lingers: true, ..case
        };
        let mut fake = Fake::new(&case);
        let before: Vec<InstanceId> = fake.instances.keys().cloned().collect();
        let Ok(made) = plan(&fake.world(), &goal(&case), &rules_of(&case), 7) else { return Ok(()) };
        prop_assert!(made.in_place.is_empty(), "there is room: {made:?}");
        let (finished, _) = fake.carry_out(&made, &[0, 1, 2, 3]);
        prop_assert!(finished);
        prop_assert!(fake.broken.is_empty(), "{:?}", fake.broken);
        for id in before {
            let stays = fake.instances.contains_key(&id);
            let ends = case.goal == 2;
            prop_assert!(stays || ends || fake.lingering.contains(&id), "{id} was stopped");
        }
        // Once that is over, another plan sees nothing of what lingers.
        let lingering = fake.lingering.clone();
        let size = fake.instances.len();
        if size == 0 {
            return Ok(());
        }
        fake.open = 0;
        let again = Goal::Restart { live: OLD, policy: DeploymentPolicy::Rolling, batch: BatchSize::Fixed(1) };
        let made = plan(&fake.world(), &again, &rules_of(&case), 9).expect("it can");
        prop_assert!(!made.changes().any(|(_, change)| lingering.contains(&change.instance)));
        let (finished, _) = fake.carry_out(&made, &[0, 1, 2, 3]);
        prop_assert!(finished);
        prop_assert_eq!(fake.instances.len(), size);
    }

    #[test]
    fn every_plan_finishes_or_rolls_back(case in cases()) {
        there_and_back(&case)?;
    }

    #[test]
    fn same_input_same_plan(case in cases(), seed in any::<u128>()) {
        let fake = Fake::new(&case);
        let one = plan(&fake.world(), &goal(&case), &rules(), seed);
        let two = plan(&fake.world(), &goal(&case), &rules(), seed);
        prop_assert_eq!(one, two);
    }

    #[test]
    fn what_a_timeline_foretells_is_how_it_ends(case in cases()) {
        let case = Case { sick_on: BTreeSet::new(), ends_on: None, ..case };
        let mut fake = Fake::new(&case);
        let Ok(made) = plan(&fake.world(), &goal(&case), &rules(), 7) else { return Ok(()) };
        let moments = made.timeline(&fake.world());
        prop_assert_eq!(moments.len(), made.stages.len());
        let drains = |stage: usize| {
            !matches!(&made.stages[stage],
                beanpole_planner::Stage::Batch(batch) if !batch.drain || batch.force)
        };
        for moment in &moments {
            let floor = made.floor.min(moment.serving_before);
            prop_assert!(!drains(moment.stage) || moment.serving_lowest >= floor, "{moment:?}");
        }
        let (finished, _) = fake.carry_out(&made, &case.moves);
        if let Some(last) = moments.last().filter(|_| finished) {
            prop_assert_eq!(fake.instances.len(), last.running_after as usize);
            prop_assert!(fake.world().serving_count() >= last.serving_after.min(made.floor));
        }
    }

    #[test]
    fn an_immutable_plan_touches_nothing_before_all_that_is_new_is_well(case in cases()) {
        let case = Case { goal: 3, policy: 3, ..case };
        let mut fake = Fake::new(&case);
        prop_assume!(!fake.instances.is_empty());
        let before = fake.instances.clone();
        let made = plan(&fake.world(), &goal(&case), &rules(), 7).expect("there is room");
        let (finished, progress) = fake.carry_out(&made, &case.moves);
        let moved = progress.changes.keys().any(|id| before.contains_key(id));
        prop_assert!(!finished || moved);
        if !moved {
            for (id, instance) in &before {
                prop_assert_eq!(&fake.instances[id], instance);
            }
            // Nothing new has had a request, nor has one when it went back.
            let served = progress.changes.values().any(|state| {
                matches!(state, beanpole_planner::ChangeState::Serving { .. })
            });
            prop_assert!(!served, "{progress:?}");
        }
    }

    #[test]
    fn a_split_goes_step_by_step_and_keeps_what_serves_until_its_end(case in cases()) {
        let case = Case { goal: 3, policy: 4, ..case };
        let mut fake = Fake::new(&case);
        prop_assume!(!fake.instances.is_empty());
        let before = fake.instances.clone();
        let made = plan(&fake.world(), &goal(&case), &rules(), 7).expect("there is room");
        let (finished, progress) = fake.carry_out(&made, &case.moves);
        prop_assert!(fake.broken.is_empty(), "{:?}", fake.broken);
        let touched = progress.changes.keys().any(|id| before.contains_key(id));
        let full: Vec<u8> = fake.shares.iter().map(|(percent, ..)| *percent).collect();
        if touched {
            prop_assert_eq!(full, vec![5, 50]);
            for ((.., from, to), step) in fake.shares.iter().zip(steps()) {
                prop_assert!(to - from >= step.wait_s.expect("a wait") * 1_000);
            }
        } else {
            prop_assert!(!finished);
            let back = plan_back(&fake.world(), &made, &progress, Some((OLD, OLD)), &rules(), 8);
            let (finished, _) = fake.carry_out(&back, &[0, 1, 2, 3, 4, 5]);
            prop_assert!(finished);
            for (id, instance) in &before {
                prop_assert_eq!(fake.instances.get(id), Some(instance));
            }
        }
    }

    #[test]
    fn a_promoted_split_waits_no_longer(instances in 1_u8..6, hosts in 1_u8..4) {
        let case = Case {
            hosts, instances, unhealthy: BTreeSet::new(), goal: 3, size: u32::from(instances), batch: 1,
            policy: 4, sick_on: BTreeSet::new(), ends_on: None, lingers: false,
            moves: vec![0, 1, 2, 3],
        };
        let mut fake = Fake::new(&case);
        let made = plan(&fake.world(), &goal(&case), &rules(), 7).expect("there is room");
        fake.promotes = true;
        let (finished, _) = fake.carry_out(&made, &case.moves);
        prop_assert!(finished);
        prop_assert!(fake.broken.is_empty(), "{:?}", fake.broken);
        prop_assert_eq!(fake.shares.len(), 1);
        prop_assert!(fake.instances.values().all(|i| i.release == NEW));
    }

    #[test]
    fn the_only_instance_serves_until_its_successor_does(
        hosts in 1_u8..4, policy in 0_usize..2, ends_on in prop::option::weighted(0.3, 0_u8..4),
        left in 0_u8..3, restarts in any::<bool>(), moves in prop::collection::vec(0_u8..6, 1..40),
    ) {
        let case = Case {
            hosts, instances: 1, unhealthy: BTreeSet::new(), goal: if restarts { 1 } else { 3 }, size: 1,
            batch: 1, policy, sick_on: BTreeSet::new(), ends_on, lingers: false, moves,
        };
        let mut fake = Fake::new(&case);
        fake.leave(left);
        let rules = Rules { overlap: true, ..rules() };
        let made = plan(&fake.world(), &goal(&case), &rules, 7).expect("there is room");
        prop_assert_eq!(made.floor, 1);
        let hosts_before = fake.serving_on();
        let (finished, progress) = fake.carry_out(&made, &case.moves);
        prop_assert!(fake.broken.is_empty(), "{:?}", fake.broken);
        let stays = if restarts { left } else { 0 };
        prop_assert!(!finished || fake.instances.len() == usize::from(stays) + 1);
        if !finished {
            let back = plan_back(&fake.world(), &made, &progress, Some((OLD, OLD)), &rules, 8);
            let (finished, _) = fake.carry_out(&back, &[0, 1, 2, 3, 4, 5]);
            prop_assert!(finished);
        }
        prop_assert_eq!(hosts_before, fake.serving_on(), "on the same host");
    }

    #[test]
    fn a_batch_leaves_some_in_service_if_it_was_meant_to_whatever_a_failure_has_left(
        hosts in 1_u8..4, instances in 1_u8..6, left in 1_u8..4, batch in 1_u32..9, policy in 1_usize..3,
        restarts in any::<bool>(), moves in prop::collection::vec(0_u8..6, 1..40),
    ) {
        let meant = u32::from(if restarts { instances + left } else { instances });
        let case = Case {
            hosts, instances, unhealthy: BTreeSet::new(), goal: if restarts { 1 } else { 3 },
            size: u32::from(instances), batch, policy, sick_on: BTreeSet::new(), ends_on: None,
            lingers: false, moves: [moves, vec![0, 1, 2, 3]].concat(),
        };
        let mut fake = Fake::new(&case);
        fake.leave(left);
        let rules = Rules { overlap: true, ..rules() };
        let mut made = plan(&fake.world(), &goal(&case), &rules, 7).expect("there is room");
        if batch < meant {
            // Whatever it promises.
            made.floor = made.floor.max(1);
        }
        let (finished, _) = fake.carry_out(&made, &case.moves);
        prop_assert!(finished);
        prop_assert!(fake.broken.is_empty(), "{:?}", fake.broken);
    }

    #[test]
    fn instances_that_cannot_take_on_what_changes_are_replaced_while_all_serve(
        hosts in 1_u8..4, instances in 2_u8..9, batch in 1_u32..5,
        moves in prop::collection::vec(0_u8..6, 1..40),
    ) {
        let case = Case {
            hosts, instances, unhealthy: BTreeSet::new(), goal: 3, size: u32::from(instances), batch,
            policy: 1, sick_on: BTreeSet::new(), ends_on: None, lingers: false,
            moves: [moves, vec![0, 1, 2, 3]].concat(),
        };
        let mut fake = Fake::new(&case);
        let rules = Rules { renews: true, overlap: true, ..rules() };
        let mut made = plan(&fake.world(), &goal(&case), &rules, 7).expect("there is room");
        let before = fake.instances.clone();
        prop_assert!(made.in_place.is_empty());
        // It promises less than it does.
        made.floor = u32::from(instances);
        let (finished, _) = fake.carry_out(&made, &case.moves);
        prop_assert!(finished);
        prop_assert!(fake.broken.is_empty(), "{:?}", fake.broken);
        prop_assert_eq!(fake.instances.len(), usize::from(instances));
        prop_assert!(fake.instances.keys().all(|id| !before.contains_key(id)));
    }

    #[test]
    fn a_plan_goes_around_a_host_that_is_lost_on_the_way(
        hosts in 2_u8..5, instances in 1_u8..9, size in 1_u32..9, batch in 1_u32..5,
        policy in 0..DeploymentPolicy::ALL.len(), lost in 0_u8..5, at in 0_usize..120, lingers in any::<bool>(),
        moves in prop::collection::vec(0_u8..6, 1..40),
    ) {
        let case = Case {
            hosts, instances, unhealthy: BTreeSet::new(), goal: 3, size, batch,
            policy, sick_on: BTreeSet::new(), ends_on: None, lingers, moves: [moves, vec![0, 1, 2, 3]].concat(),
        };
        let mut fake = Fake::new(&case);
        let made = plan(&fake.world(), &goal(&case), &rules_of(&case), 7).expect("there is room");
        let lost = host(lost % hosts);
        fake.loses = Some((lost.clone(), at));
        let (finished, progress) = fake.carry_out(&made, &case.moves);
        // Nobody can keep what is open on a host that is lost.
        fake.broken.retain(|what| !what.ends_with("was cut"));
        prop_assert!(fake.broken.is_empty(), "{:?}", fake.broken);
        // The surplus that keeps an additional batch's floor is lost with what was to leave.
        let surplus_is_lost = policy == 2
            && made.changes().any(|(_, c)| c.action == Action::Remove && c.host == lost);
        prop_assert!(finished || surplus_is_lost, "{:?}", progress.failed);
        if !finished {
            return Ok(());
        }
        prop_assert_eq!(fake.instances.len(), size as usize);
        prop_assert!(fake.instances.values().all(|i| i.release == NEW), "{:?}", fake.instances);
        // What is still there was done before the host was lost.
        if let Some(detour) = progress.detours.first() {
            // What is new, and what others stand in for.
            let parts = 1 + usize::from(DeploymentPolicy::ALL[policy] == DeploymentPolicy::TrafficSplitting);
            prop_assert!(progress.detours.len() <= parts);
            prop_assert!(progress.detours.iter().all(|detour| detour.host == lost));
            prop_assert!(detour.left_out.is_empty());
            prop_assert!(fake.instances.values().all(|i| i.host != lost));
        }
    }

    #[test]
    fn a_plan_that_lost_a_host_and_fails_goes_back_to_one_version(
        hosts in 2_u8..5, instances in 1_u8..9, batch in 1_u32..5,
        policy in 0..DeploymentPolicy::ALL.len(), lost in 0_u8..5, sick in 0_u8..5, at in 0_usize..60,
        lingers in any::<bool>(),
    ) {
        let case = Case {
            hosts, instances, unhealthy: BTreeSet::new(), goal: 3, size: u32::from(instances), batch,
            policy, sick_on: BTreeSet::from([sick % hosts]), ends_on: None, lingers, moves: vec![0, 1, 2, 3],
        };
        let mut fake = Fake::new(&case);
        let made = plan(&fake.world(), &goal(&case), &rules_of(&case), 7).expect("there is room");
        fake.loses = Some((host(lost % hosts), at));
        let (finished, progress) = fake.carry_out(&made, &case.moves);
        if !finished {
            let back = plan_back(&fake.world(), &made, &progress, Some((OLD, OLD)), &rules_of(&case), 8);
            let (finished, went) = fake.carry_out(&back, &[0, 1, 2, 3, 4, 5]);
            prop_assert!(finished, "the way back failed: {:?}", went.failed);
            let skipped = |id: &InstanceId| back.skipped.iter().any(|one| one.instance == *id);
            let mixed = fake.instances.iter().any(|(id, i)| i.release != OLD && !skipped(id));
            prop_assert!(!mixed, "{:?}", fake.instances);
        }
        // Nobody can keep what is open on a host that is lost.
        fake.broken.retain(|what| !what.ends_with("was cut"));
        prop_assert!(fake.broken.is_empty(), "{:?}", fake.broken);
    }

    #[test]
    fn a_split_that_lost_a_host_and_is_aborted_keeps_what_stands_in_for_its_old_side(
        hosts in 2_u8..5, instances in 1_u8..9, lost in 0_u8..5, at in 0_usize..60, more in 1_usize..80,
        moves in prop::collection::vec(0_u8..6, 1..40),
    ) {
        let case = Case {
            hosts, instances, unhealthy: BTreeSet::new(), goal: 3, size: u32::from(instances), batch: 1,
            policy: 4, sick_on: BTreeSet::new(), ends_on: None, lingers: false,
            moves: [moves, vec![0, 1, 2, 3]].concat(),
        };
        let mut fake = Fake::new(&case);
        let made = plan(&fake.world(), &goal(&case), &rules(), 7).expect("there is room");
        fake.loses = Some((host(lost % hosts), at));
        fake.aborted_after = Some(at + more);
        let (finished, progress) = fake.carry_out(&made, &case.moves);
        if finished {
            return Ok(());
        }
        let serves = |fake: &Fake| {
            let all = fake.instances.values();
            let old = all.filter(|one| one.release == OLD && one.mode == Some(TargetMode::Serve));
            old.filter(|one| !fake.is_lost(&one.host)).count()
        };
        let before = serves(&fake);
        let back = plan_back(&fake.world(), &made, &progress, Some((OLD, OLD)), &rules(), 8);
        let (finished, went) = fake.carry_out(&back, &[0, 1, 2, 3, 4, 5]);
        prop_assert!(finished, "the way back failed: {:?}", went.failed);
        prop_assert!(fake.instances.values().all(|one| one.release == OLD), "{:?}", fake.instances);
        prop_assert!(serves(&fake) >= before, "{:?}", fake.instances);
        prop_assert!(fake.broken.is_empty(), "{:?}", fake.broken);
    }

    #[test]
    fn an_additional_batch_keeps_all_in_service(
        instances in 1_u8..9, batch in 1_u32..9, hosts in 1_u8..4,
    ) {
        let case = Case {
            hosts, instances, unhealthy: BTreeSet::new(), goal: 3, size: u32::from(instances), batch,
            policy: 2, sick_on: BTreeSet::new(), ends_on: None, lingers: false,
            moves: vec![0, 1, 2, 3],
        };
        let mut fake = Fake::new(&case);
        let made = plan(&fake.world(), &goal(&case), &rules(), 1).expect("there is room");
        prop_assert_eq!(made.floor, u32::from(instances));
        let (finished, _) = fake.carry_out(&made, &case.moves);
        prop_assert!(finished);
        prop_assert_eq!(fake.instances.len(), usize::from(instances));
        prop_assert!(fake.broken.is_empty(), "{:?}", fake.broken);
    }

    #[test]
    fn a_rolling_plan_keeps_all_but_one_batch(
        instances in 1_u8..9, batch in 1_u32..9, hosts in 1_u8..4,
    ) {
        let case = Case {
            hosts, instances, unhealthy: BTreeSet::new(), goal: 3, size: u32::from(instances), batch,
            policy: 1, sick_on: BTreeSet::new(), ends_on: None, lingers: false, moves: vec![0],
        };
        let fake = Fake::new(&case);
        let made = plan(&fake.world(), &goal(&case), &rules(), 1).expect("there is room");
        let expected = u32::from(instances) - batch.min(u32::from(instances));
        prop_assert_eq!(made.floor, expected);
    }
}
