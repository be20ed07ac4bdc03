//! From a goal to a plan.

use crate::around::FOLLOWS;
use crate::draft::Draft;
use crate::world::Serving;
use crate::{
    Action, Batch, Change, Gate, Place, Plan, Refusal, Skipped, Split, Stage, Timeouts, World,
};
use beanpole_protocol::options::{BatchSize, DeploymentPolicy, GuardLimits, SplitStep};
use beanpole_protocol::proxy::TargetMode;
use beanpole_protocol::{HostId, InstanceId, ReleaseNumber};
use std::collections::{BTreeMap, BTreeSet};

/// What shall be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// `size` instances, all on `release`.
    Deploy {
        /// The release.
        release: ReleaseNumber,
        /// The release whose prepared tree it uses.
        tree: ReleaseNumber,
        /// The instances there shall be.
        size: u32,
        /// How.
        policy: DeploymentPolicy,
        /// How many at a time under Rolling.
        batch: BatchSize,
    },
    /// `size` instances; those that stay are not touched.
    Scale {
        /// What new ones run.
        release: ReleaseNumber,
        /// The release whose prepared tree it uses.
        tree: ReleaseNumber,
        /// The instances there shall be.
        size: u32,
    },
    /// Every instance started afresh, but for those of other releases that get no requests.
    Restart {
        /// The release that is live.
        live: ReleaseNumber,
        /// How.
        policy: DeploymentPolicy,
        /// How many at a time under Rolling.
        batch: BatchSize,
    },
    /// As it should be: `size` instances on `release` that serve, none of them in `away`.
    Mend {
        /// The release.
        release: ReleaseNumber,
        /// The release whose prepared tree it uses.
        tree: ReleaseNumber,
        /// The instances there shall be.
        size: u32,
        /// Hosts that shall have none.
        away: BTreeSet<HostId>,
        /// How those that are on another release change.
        policy: DeploymentPolicy,
        /// How many at a time under Rolling.
        batch: BatchSize,
    },
    /// No instances.
    Terminate,
}

/// What holds for a plan whatever the goal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// When a started instance may serve.
    pub gate: Gate,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Go on with instances that run but are not healthy in time.
    pub ignore_health: bool,
    /// The steps of a split, each with its time, where the policy has some.
    pub split: Vec<SplitStep>,
    /// How much worse a release may be in a split.
    pub guard: Option<GuardLimits>,
    /// The only instance of an environment may run beside its successor for a moment.
    pub overlap: bool,
    /// Instances that run cannot take on what changes: new ones take their place.
    pub renews: bool,
    /// Instances that have to serve at any time, as far as there are so many.
    pub in_service: u32,
    /// What a new instance asks of its host.
    pub needs: Place,
}

/// Makes a plan. Ids of new instances come from `seed`.
pub fn plan(world: &World<'_>, goal: &Goal, rules: &Rules, seed: u128) -> Result<Plan, Refusal> {
    let mut draft = Draft::new(world, rules, seed);
    match goal {
        Goal::Deploy {
            release,
            tree,
            size,
            policy,
            batch,
        } => {
            draft.plan.policy = Some(*policy);
            draft.plan.release = Some(*release);
            draft.plan.watch = true;
            // Where there is nothing to keep, a new set is what every policy makes.
            let splits = *policy == DeploymentPolicy::TrafficSplitting;
            if (splits || *policy == DeploymentPolicy::Immutable) && !world.instances.is_empty() {
                draft.whole_set(*release, *tree, *size, splits)?;
                return Ok(draft.plan);
            }
            let in_place = matches!(
                policy,
                DeploymentPolicy::AllAtOnce | DeploymentPolicy::Rolling
            );
            if in_place
                && *size == 1
                && let Some(only) = draft.only_serving()
            {
                // What a failure has left without requests goes together with it.
                let all: Vec<InstanceId> = world.instances.keys().cloned().collect();
                if draft.beside(&only, *release, Some(*tree), &all) {
                    return Ok(draft.plan);
                }
            }
            let touched = draft.reachable(FOLLOWS);
            let (removed, missing) = draft.leavers(*size, &BTreeSet::new());
            let stay: Vec<InstanceId> = touched
                .into_iter()
                .filter(|id| !removed.contains(id))
                .collect();
            // The last batch of what is there makes room for the additional one instead of changing.
            let (stay, makes_room) = draft.additional(stay, *policy, *batch);
            let more = u32::try_from(makes_room.len()).unwrap_or(u32::MAX);
            let new = draft.places(missing.saturating_add(more), &BTreeMap::new())?;
            if stay.is_empty() && new.is_empty() {
                return Err(Refusal::Unreachable);
            }
            draft.prepare(*release, *tree, &stay, &new);
            let action = Action::Replace { release: *release };
            draft.launch(*release, &new);
            // Where none stays, what serves now goes only when its successors serve.
            let capacity = world.serving_count().min(*size);
            draft.plan.floor = capacity;
            draft.change(&stay, action, *policy, *batch, *size);
            if more > 0 {
                draft.plan.floor = capacity;
            }
            let leave: Vec<InstanceId> = removed.into_iter().chain(makes_room).collect();
            draft.remove(&leave, false);
        }
        Goal::Scale {
            release,
            tree,
            size,
        } => {
            draft.plan.release = Some(*release);
            // What a failed deployment has left without requests stays, and is none of them.
            let idle: BTreeSet<InstanceId> = draft.idle(*release);
            let have = (world.instances.len() - idle.len()) as u32;
            let (removed, missing) = draft.leavers(*size, &idle);
            let new = draft.places(missing, &BTreeMap::new())?;
            draft.prepare(*release, *tree, &[], &new);
            draft.launch(*release, &new);
            // Nothing but the wanted reduction may lower what serves.
            draft.plan.floor = world
                .serving_count()
                .saturating_sub(have.saturating_sub(*size));
            draft.remove(&removed, false);
        }
        Goal::Restart {
            live,
            policy,
            batch,
        } => {
            if world.instances.is_empty() {
                return Err(Refusal::NoInstance);
            }
            draft.plan.policy = Some(*policy);
            let mut touched = draft.reachable("its host is unreachable");
            draft.leave_idle(&mut touched, *live);
            if touched.is_empty() {
                return Err(Refusal::Unreachable);
            }
            if let Some(only) = draft
                .only_serving()
                .filter(|only| touched == [only.clone()])
            {
                let release = world.instances[&only].release;
                if draft.beside(&only, release, None, &touched) {
                    return Ok(draft.plan);
                }
            }
            let all = u32::try_from(world.instances.len()).unwrap_or(u32::MAX);
            draft.change(&touched, Action::Restart, *policy, *batch, all);
        }
        Goal::Mend {
            release,
            tree,
            size,
            away,
            policy,
            batch,
        } => draft.mend(*release, *tree, *size, away, (*policy, *batch))?,
        Goal::Terminate => {
            // Nothing outlives its environment.
            draft.plan.timeouts.linger_ms = 0;
            let all: Vec<InstanceId> = world.instances.keys().cloned().collect();
            draft.remove(&all, true);
        }
    }
    Ok(draft.plan)
}

impl Draft<'_, '_> {
    fn mend(
        &mut self,
        release: ReleaseNumber,
        tree: ReleaseNumber,
        size: u32,
        away: &BTreeSet<HostId>,
        (policy, batch): (DeploymentPolicy, BatchSize),
    ) -> Result<(), Refusal> {
        let world = self.world;
        self.plan.release = Some(release);
        let mut leave: Vec<InstanceId> = Vec::new();
        let mut stale: Vec<InstanceId> = Vec::new();
        let mut leaving: BTreeMap<HostId, u32> = BTreeMap::new();
        for (id, instance) in &world.instances {
            if away.contains(&instance.host) || !world.hosts.contains_key(&instance.host) {
                leave.push(id.clone());
                *leaving.entry(instance.host.clone()).or_default() += 1;
            } else if !world.host_lost(&instance.host)
                && (instance.release != release || world_mode_is_off(instance))
            {
                stale.push(id.clone());
            }
        }
        let staying = (world.instances.len() - leave.len()) as u32;
        let mut surplus = staying.saturating_sub(size);
        let mut by_want = self.least_wanted(world.instances.len() as u32, &BTreeSet::new());
        // What serves stays, whatever it runs; of each kind what is right.
        by_want.sort_by_key(|id| {
            let serves = world.serving(id) == Serving::Yes;
            (serves, world.instances[id].release == release)
        });
        for id in by_want {
            if surplus > 0 && !leave.contains(&id) {
                surplus -= 1;
                stale.retain(|other| *other != id);
                leave.push(id);
            }
        }
        let new = self.places(size.saturating_sub(staying), &leaving)?;
        if leave.is_empty() && stale.is_empty() && new.is_empty() {
            return Err(Refusal::Nothing);
        }
        self.prepare(release, tree, &stale, &new);
        // What serves now serves until its successor does.
        let count = world.serving_count();
        let action = Action::Replace { release };
        self.change(&stale, action, policy, batch, size);
        self.launch(release, &new);
        self.remove(&leave, false);
        let changed = stale.len() as u32;
        let at_once = match policy {
            DeploymentPolicy::AllAtOnce => changed,
            _ => batch.of(changed).min(changed),
        };
        self.plan.floor = count.min(size).saturating_sub(at_once);
        Ok(())
    }

    /// A new set: one instance first, then the others, then one change of routes (or, where it `splits`, a
    /// share of the requests, step by step); the old set goes.
    fn whole_set(
        &mut self,
        release: ReleaseNumber,
        tree: ReleaseNumber,
        size: u32,
        splits: bool,
    ) -> Result<(), Refusal> {
        let old: Vec<InstanceId> = self.world.instances.keys().cloned().collect();
        let mut leaving: BTreeMap<HostId, u32> = BTreeMap::new();
        for instance in self.world.instances.values() {
            *leaving.entry(instance.host.clone()).or_default() += 1;
        }
        let new = self.places(size, &leaving)?;
        self.prepare(release, tree, &[], &new);
        let (first, others) = new.split_at(new.len().min(1));
        for part in [first, others] {
            self.launch(release, part);
            if let Some(Stage::Batch(batch)) = self.plan.stages.last_mut() {
                batch.hold = true;
            }
        }
        self.plan.floor = self.world.serving_count().min(size);
        let mut enters: Vec<InstanceId> = new.into_iter().map(|change| change.instance).collect();
        if splits {
            self.plan.guard = self.rules.guard;
            for step in &self.rules.split {
                self.plan.stages.push(Stage::Split(Split {
                    percent: step.percent,
                    wait_ms: step.wait_s.unwrap_or(0) * 1_000,
                    enters: std::mem::take(&mut enters),
                    changes: Vec::new(),
                }));
            }
        }
        self.plan.stages.push(Stage::Batch(Batch {
            number: self.batches() + 1,
            drain: true,
            force: false,
            hold: false,
            enters,
            changes: self.removals(&old),
        }));
        Ok(())
    }

    /// The only instance that serves, if it may serve until its successor does: changing it in place would
    /// interrupt the service, and the application may run twice for a moment.
    fn only_serving(&self) -> Option<InstanceId> {
        let world = self.world;
        if !self.rules.overlap || !world.web || world.serving_count() != 1 {
            return None;
        }
        let mut all = world.instances.keys();
        all.find(|id| world.serving(id) == Serving::Yes).cloned()
    }

    /// The successor of the only instance that serves on another port of the same host, then one change of
    /// routes, with which `leave` go. Whether the host can take it, and those that leave can be reached.
    fn beside(
        &mut self,
        only: &InstanceId,
        release: ReleaseNumber,
        tree: Option<ReleaseNumber>,
        leave: &[InstanceId],
    ) -> bool {
        let world = self.world;
        let host = &world.instances[only].host;
        let lost = |id: &InstanceId| world.host_lost(&world.instances[id].host);
        if self.takes_one_more(host).is_err() || leave.iter().any(lost) {
            return false;
        }
        let new = Change {
            instance: self.new_id(),
            host: host.clone(),
            action: Action::Launch { release },
        };
        if let Some(tree) = tree {
            self.prepare(release, tree, &[], std::slice::from_ref(&new));
        }
        let enters = vec![new.instance.clone()];
        self.plan.floor = 1;
        self.batch(vec![new], true, false);
        if let Some(Stage::Batch(batch)) = self.plan.stages.last_mut() {
            batch.hold = true;
        }
        self.batch(self.removals(leave), true, false);
        if let Some(Stage::Batch(batch)) = self.plan.stages.last_mut() {
            batch.enters = enters;
        }
        true
    }

    /// Under RollingWithAdditionalBatch as many of `stay` as a batch has do not change but leave, those
    /// that are missed least.
    fn additional(
        &self,
        stay: Vec<InstanceId>,
        policy: DeploymentPolicy,
        batch: BatchSize,
    ) -> (Vec<InstanceId>, Vec<InstanceId>) {
        if policy != DeploymentPolicy::RollingWithAdditionalBatch || stay.is_empty() {
            return (stay, Vec::new());
        }
        let count = batch.of(u32::try_from(stay.len()).unwrap_or(u32::MAX));
        let all = self.world.instances.keys();
        let others: BTreeSet<InstanceId> = all.filter(|id| !stay.contains(id)).cloned().collect();
        let leave = self.least_wanted(count, &others);
        let stay = stay.into_iter().filter(|id| !leave.contains(id)).collect();
        (stay, leave)
    }

    /// The instances that can be changed; the others are left out, with the reason.
    fn reachable(&mut self, reason: &str) -> Vec<InstanceId> {
        let mut reachable = Vec::new();
        for (id, instance) in &self.world.instances {
            if self.world.host_lost(&instance.host) {
                self.plan.skipped.push(Skipped {
                    instance: id.clone(),
                    host: instance.host.clone(),
                    reason: reason.to_owned(),
                });
            } else {
                reachable.push(id.clone());
            }
        }
        reachable
    }

    /// Leaves out what a failed deployment has left without requests: started afresh, it would get some.
    fn leave_idle(&mut self, touched: &mut Vec<InstanceId>, live: ReleaseNumber) {
        let idle = self.idle(live);
        for id in touched.iter().filter(|id| idle.contains(*id)) {
            self.plan.skipped.push(Skipped {
                instance: id.clone(),
                host: self.world.instances[id].host.clone(),
                reason: "it gets no requests, and its release is not live".to_owned(),
            });
        }
        touched.retain(|id| !idle.contains(id));
    }

    /// Instances of other releases than the live one that get no requests; none where no other is there.
    fn idle(&self, live: ReleaseNumber) -> BTreeSet<InstanceId> {
        let all = self.world.instances.iter();
        let idle = all.filter(|(_, one)| one.release != live && world_mode_is_off(one));
        let idle: BTreeSet<InstanceId> = idle.map(|(id, _)| id.clone()).collect();
        if idle.len() == self.world.instances.len() {
            return BTreeSet::new();
        }
        idle
    }

    /// The instances that go so that `size` are left where they may be: those on hosts without the
    /// labels, and the surplus. How many are missing then.
    fn leavers(&self, size: u32, but: &BTreeSet<InstanceId>) -> (Vec<InstanceId>, u32) {
        let misplaced: BTreeSet<InstanceId> = self
            .world
            .instances
            .iter()
            .filter(|(id, instance)| {
                let host = self.world.hosts.get(&instance.host);
                // One that cannot be reached is given time to come back first.
                let lacks = host.is_some_and(|host| {
                    !host.lost() && !self.rules.needs.labels_missing(host).is_empty()
                });
                lacks && !but.contains(*id)
            })
            .map(|(id, _)| id.clone())
            .collect();
        let others: BTreeSet<InstanceId> = misplaced.union(but).cloned().collect();
        let staying = (self.world.instances.len() - others.len()) as u32;
        let mut leave = self.least_wanted(staying.saturating_sub(size), &others);
        leave.extend(misplaced);
        (leave, size.saturating_sub(staying))
    }

    /// The `count` instances that are missed least, of those that are not in `but`: not serving, on lost or draining hosts, on the
    /// host with the most of them; then by id.
    fn least_wanted(&self, count: u32, but: &BTreeSet<InstanceId>) -> Vec<InstanceId> {
        let world = self.world;
        let mut left: BTreeMap<&InstanceId, &crate::InstanceState> = world
            .instances
            .iter()
            .filter(|(id, _)| !but.contains(*id))
            .collect();
        let mut chosen = Vec::new();
        while (chosen.len() as u32) < count {
            let mut per_host: BTreeMap<&HostId, usize> = BTreeMap::new();
            for instance in left.values() {
                *per_host.entry(&instance.host).or_default() += 1;
            }
            let next = left
                .iter()
                .min_by_key(|(id, instance)| {
                    (
                        world.serving(id) == Serving::Yes,
                        !world.host_lost(&instance.host),
                        !world
                            .hosts
                            .get(&instance.host)
                            .is_some_and(|host| host.draining),
                        std::cmp::Reverse(per_host[&instance.host]),
                        std::cmp::Reverse(*id),
                    )
                })
                .map(|(id, _)| *id);
            let Some(id) = next else { break };
            left.remove(id);
            chosen.push(id.clone());
        }
        chosen
    }
}

fn world_mode_is_off(instance: &crate::InstanceState) -> bool {
    instance.mode != Some(TargetMode::Serve)
}
