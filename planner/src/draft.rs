//! A plan being made: batches one after the other, and where what is new goes.

use crate::place::room;
use crate::world::Serving;
use crate::{Action, Batch, Change, Lack, Plan, Refusal, Rules, Skipped, Stage, World, place};
use beanpole_protocol::options::{BatchSize, DeploymentPolicy};
use beanpole_protocol::proxy::TargetMode;
use beanpole_protocol::{HostId, InstanceId, ReleaseNumber};
use std::collections::{BTreeMap, BTreeSet};

/// A plan being made.
pub(crate) struct Draft<'w, 'a> {
    pub(crate) world: &'w World<'a>,
    pub(crate) rules: &'w Rules,
    seed: u128,
    made: u128,
    /// New instances that hosts were given so far.
    given: BTreeMap<HostId, u32>,
    pub(crate) plan: Plan,
}

impl<'w, 'a> Draft<'w, 'a> {
    pub(crate) fn new(world: &'w World<'a>, rules: &'w Rules, seed: u128) -> Self {
        let plan = Plan {
            gate: rules.gate,
            timeouts: rules.timeouts,
            ignore_health: rules.ignore_health,
            needs: rules.needs.clone(),
            ..Plan::default()
        };
        Self {
            world,
            rules,
            seed,
            made: 0,
            given: BTreeMap::new(),
            plan,
        }
    }

    pub(crate) fn places(
        &mut self,
        count: u32,
        leaving: &BTreeMap<HostId, u32>,
    ) -> Result<Vec<Change>, Refusal> {
        let hosts = place(self.world, count, &self.rules.needs, leaving)?;
        for host in &hosts {
            *self.given.entry(host.clone()).or_default() += 1;
        }
        Ok(hosts
            .into_iter()
            .map(|host| Change {
                instance: self.new_id(),
                host,
                action: Action::Launch {
                    release: ReleaseNumber(0),
                },
            })
            .collect())
    }

    pub(crate) fn new_id(&mut self) -> InstanceId {
        loop {
            self.made += 1;
            let id = InstanceId::from_bits(spread(self.seed, self.made));
            if !self.world.instances.contains_key(&id) {
                return id;
            }
        }
    }

    pub(crate) fn prepare(
        &mut self,
        release: ReleaseNumber,
        tree: ReleaseNumber,
        changed: &[InstanceId],
        new: &[Change],
    ) {
        let hosts: BTreeSet<HostId> = changed
            .iter()
            .map(|id| self.world.instances[id].host.clone())
            .chain(new.iter().map(|change| change.host.clone()))
            .collect();
        if !hosts.is_empty() {
            self.plan.stages.push(Stage::Prepare {
                release,
                tree,
                hosts: hosts.into_iter().collect(),
                commands: Vec::new(),
            });
        }
    }

    pub(crate) fn launch(&mut self, release: ReleaseNumber, new: &[Change]) {
        let changes = new
            .iter()
            .map(|change| Change {
                action: Action::Launch { release },
                ..change.clone()
            })
            .collect();
        self.batch(changes, true, false);
    }

    /// Changes existing instances, by the policy, and sets the floor for it. Those that do not serve go
    /// first: they have nothing to lose, and may be what the change is to mend.
    ///
    /// They change in place. Where connections shall outlast the deployment, each batch launches
    /// successors instead, beside those that they succeed, which leave once these serve.
    ///
    /// `meant`: of how many instances a batch was meant to be a part. Where some of them do not take part, it
    /// is a part of the others all the same.
    pub(crate) fn change(
        &mut self,
        instances: &[InstanceId],
        action: Action,
        policy: DeploymentPolicy,
        batch: BatchSize,
        meant: u32,
    ) {
        let world = self.world;
        let count = instances.len() as u32;
        if count == 0 {
            return;
        }
        let mut order: Vec<&InstanceId> = instances.iter().collect();
        order.sort_by_key(|id| {
            (
                world.serving(id) == Serving::Yes,
                world.host_name(&world.instances[*id].host),
                (*id).clone(),
            )
        });
        let (size, drain) = match policy {
            DeploymentPolicy::AllAtOnce => (count, false),
            // Restarts and settings change no set of instances: they roll.
            DeploymentPolicy::Rolling
            | DeploymentPolicy::RollingWithAdditionalBatch
            | DeploymentPolicy::Immutable
            | DeploymentPolicy::TrafficSplitting => {
                let most = if batch.of(meant) < meant {
                    count.saturating_sub(1).max(1)
                } else {
                    count
                };
                (batch.of(count).min(most), true)
            }
        };
        self.plan.floor = (count - size).max(self.rules.in_service.min(count.saturating_sub(1)));
        let order = spread_over_hosts(world, order);
        let successors = self.successors(&order, action);
        // Where connections matter, what leaves is drained, whatever the policy.
        let drain = drain || !successors.is_empty() || !self.plan.in_place.is_empty();
        for part in order.chunks(size as usize) {
            let launches = part.iter().filter_map(|id| successors.get(*id).cloned());
            self.batch(launches.collect(), true, false);
            let changes = part
                .iter()
                .map(|id| Change {
                    instance: (*id).clone(),
                    host: world.instances[*id].host.clone(),
                    action: match successors.get(*id) {
                        Some(_) => Action::Remove,
                        None => action,
                    },
                })
                .collect();
            self.batch(changes, drain, false);
        }
    }

    /// Whether a host has room for one more new instance, or what it lacks.
    pub(crate) fn takes_one_more(&self, host: &HostId) -> Result<(), Lack> {
        let given = self.given.get(host).copied().unwrap_or(0);
        room(self.world, host, given, &self.rules.needs).map(|_| ())
    }

    /// The host with the fewest instances that has room for one more.
    fn other_with_room(&self) -> Option<HostId> {
        let hosts = self.world.hosts.iter();
        let with_room = hosts.filter(|(id, _)| self.takes_one_more(id).is_ok());
        let least = with_room.min_by_key(|(id, host)| {
            let given = self.given.get(*id).copied().unwrap_or(0);
            (host.instances + given, &host.name)
        });
        least.map(|(id, _)| id.clone())
    }

    /// Has the release prepared on a host more.
    fn prepare_too(&mut self, host: &HostId) {
        for stage in &mut self.plan.stages {
            if let Stage::Prepare { hosts, .. } = stage
                && !hosts.contains(host)
            {
                hosts.push(host.clone());
            }
        }
    }

    /// Who starts beside which instance, so that its connections may outlast the plan. Hosts without room
    /// for both have theirs changed in place, which the plan says.
    ///
    /// A successor stays on the host: its release is prepared there, and instances stay spread as they are.
    /// Where it asks more of a host than the one before, any host that has room will do. There has to be room
    /// for all of them at once, because all that they succeed may linger.
    fn successors(
        &mut self,
        order: &[&InstanceId],
        action: Action,
    ) -> BTreeMap<InstanceId, Change> {
        let mut successors = BTreeMap::new();
        let world = self.world;
        let lingers = world.web && self.plan.timeouts.linger_ms > self.plan.timeouts.drain_ms;
        // The only one of an application that must not run twice changes in place.
        let renews = self.rules.renews && (self.rules.overlap || world.instances.len() > 1);
        if !lingers && !renews {
            return successors;
        }
        for id in order {
            let old = &world.instances[*id];
            // One that gets no requests has no connections to keep.
            if !renews && !matches!(old.mode, Some(TargetMode::Serve | TargetMode::Drain)) {
                continue;
            }
            let mut host = old.host.clone();
            let mut room = self.takes_one_more(&host);
            if renews
                && room.is_err()
                && let Some(other) = self.other_with_room()
            {
                (host, room) = (other, Ok(()));
            }
            if let Err(lack) = room {
                self.plan.in_place.push(Skipped {
                    instance: (*id).clone(),
                    reason: format!(
                        "{} {lack}, so no successor starts beside it",
                        world.host_name(&host)
                    ),
                    host,
                });
                continue;
            }
            *self.given.entry(host.clone()).or_default() += 1;
            self.prepare_too(&host);
            let release = match action {
                Action::Replace { release } => release,
                _ => old.release,
            };
            let launch = Change {
                instance: self.new_id(),
                host,
                action: Action::Launch { release },
            };
            successors.insert((*id).clone(), launch);
        }
        successors
    }

    pub(crate) fn remove(&mut self, instances: &[InstanceId], force: bool) {
        self.batch(self.removals(instances), true, force);
    }

    pub(crate) fn removals(&self, instances: &[InstanceId]) -> Vec<Change> {
        instances
            .iter()
            .map(|id| Change {
                instance: id.clone(),
                host: self.world.instances[id].host.clone(),
                action: Action::Remove,
            })
            .collect()
    }

    /// How many batches there are so far.
    pub(crate) fn batches(&self) -> u32 {
        let stages = self.plan.stages.iter();
        let batches = stages.filter(|stage| matches!(stage, Stage::Batch(_)));
        u32::try_from(batches.count()).unwrap_or(u32::MAX)
    }

    pub(crate) fn batch(&mut self, changes: Vec<Change>, drain: bool, force: bool) {
        if changes.is_empty() {
            return;
        }
        self.plan.stages.push(Stage::Batch(Batch {
            number: self.batches() + 1,
            drain,
            force,
            hold: false,
            enters: Vec::new(),
            changes,
        }));
    }
}

/// Keeps the order of "serves not" before "serves", and within each takes hosts in turn, so that a
/// batch does not empty one host while others stand by.
fn spread_over_hosts<'i>(world: &World<'_>, order: Vec<&'i InstanceId>) -> Vec<&'i InstanceId> {
    let mut turn: BTreeMap<(bool, HostId), usize> = BTreeMap::new();
    let mut keyed: Vec<(bool, usize, String, &InstanceId)> = order
        .into_iter()
        .map(|id| {
            let host = world.instances[id].host.clone();
            let serves = world.serving(id) == Serving::Yes;
            let name = world.host_name(&host);
            let count = turn.entry((serves, host)).or_default();
            *count += 1;
            (serves, *count, name, id)
        })
        .collect();
    keyed.sort();
    keyed.into_iter().map(|(.., id)| id).collect()
}

/// Bits for the `n`th new id: a fixed permutation of seed and number (splitmix64's finisher on both
/// halves), so that ids of one plan differ in every digit.
pub(crate) fn spread(seed: u128, n: u128) -> u128 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let n = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let high = mix((seed >> 64) as u64 ^ n);
    let low = mix((seed as u64).wrapping_add(n) ^ high);
    (u128::from(high) << 64) | u128::from(low)
}
