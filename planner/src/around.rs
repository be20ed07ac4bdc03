//! The way around a host that is lost while a plan is under way: what was to run there starts elsewhere, and
//! the plan goes on.
//!
//! A plan is never edited. A detour is an entry of the journal that says all of what changes; the plan as it
//! is walked from then on is the stored one with its detours put in ([`Plan::around`]).

use crate::next::gone;
use crate::{
    Action, Batch, Change, ChangeState, Happened, Plan, Progress, Reach, Skipped, Stage, World,
    place,
};
use beanpole_protocol::proxy::TargetMode;
use beanpole_protocol::{HostId, InstanceId, ReleaseNumber, Timestamp};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Hosts that one plan goes around at most. A fleet that loses more while one plan runs has a trouble of its
/// own, and the plan fails by the next.
pub const MOST_DETOURS: usize = 8;

/// Ids that are looked at for a new instance: of 16^17, the first is free.
const TRIES: u128 = 1_000;

/// Why an instance on a lost host is left as it is, in a sentence without its end.
pub const FOLLOWS: &str = "its host is unreachable; it follows when the host is back";

/// What changes in a plan because a host was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detour {
    /// The host.
    pub host: HostId,
    /// What became of it, to be read after its name.
    pub why: String,
    /// The stage that was under way, counted from 0.
    pub stage: usize,
    /// Instances that start elsewhere.
    #[serde(default)]
    pub moved: Vec<Moved>,
    /// Instances that stay as they are, because no host can take them.
    #[serde(default)]
    pub left_out: Vec<Skipped>,
    /// Instances of the release before that serve, until the plan removes them, for old ones of a split.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stand_ins: Vec<Moved>,
    /// The host that runs the release command instead, where it was to run on the lost one.
    #[serde(default)]
    pub leader: Option<HostId>,
}

/// An instance that another takes the place of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// The one on the lost host. It is removed: proxies may well reach it, so that it is drained first.
    pub from: InstanceId,
    /// The new one.
    pub to: InstanceId,
    /// Where that starts.
    pub host: HostId,
    /// What it runs.
    pub release: ReleaseNumber,
    /// The stage that it starts in, counted from 0.
    pub stage: usize,
    /// The one on the lost host had not been made yet: there is nothing to remove.
    #[serde(default)]
    pub unmade: bool,
}

impl Plan {
    /// The plan as it is walked: with what has joined it, and its detours.
    pub fn around(&self, progress: &Progress) -> Cow<'_, Self> {
        if progress.detours.is_empty() && progress.growths.is_empty() {
            return Cow::Borrowed(self);
        }
        let mut plan = self.clone();
        // First: a detour may be around the host of what has joined.
        for growth in &progress.growths {
            plan.put_in_growth(growth);
        }
        for detour in &progress.detours {
            plan.put_in(detour);
        }
        Cow::Owned(plan)
    }

    fn put_in(&mut self, detour: &Detour) {
        let moved: BTreeMap<&InstanceId, &InstanceId> =
            detour.moved.iter().map(|m| (&m.from, &m.to)).collect();
        let left_out: BTreeSet<&InstanceId> =
            detour.left_out.iter().map(|one| &one.instance).collect();
        self.stand_in(detour);
        for (number, stage) in self.stages.iter_mut().enumerate() {
            let joins = detour.moved.iter().filter(|one| one.stage == number);
            let joins = joins.flat_map(|one| {
                let leaves = (!one.unmade).then(|| Change {
                    instance: one.from.clone(),
                    host: detour.host.clone(),
                    action: Action::Remove,
                });
                let starts = Change {
                    instance: one.to.clone(),
                    host: one.host.clone(),
                    action: Action::Launch {
                        release: one.release,
                    },
                };
                [Some(starts), leaves].into_iter().flatten()
            });
            match stage {
                Stage::Prepare { hosts, .. } => {
                    hosts.retain(|host| *host != detour.host || number < detour.stage);
                    for moved in &detour.moved {
                        if !hosts.contains(&moved.host) {
                            hosts.push(moved.host.clone());
                        }
                    }
                }
                Stage::TryCheck { .. } | Stage::Swap { .. } => {}
                Stage::Once { host, .. } => {
                    if let Some(leader) = &detour.leader {
                        leader.clone_into(host);
                    }
                }
                Stage::Batch(batch) => {
                    let stays = |change: &Change| {
                        !moved.contains_key(&change.instance)
                            && !left_out.contains(&change.instance)
                    };
                    batch.changes.retain(stays);
                    batch.changes.extend(joins);
                    instead(&mut batch.enters, &moved);
                }
                Stage::Split(split) => {
                    split
                        .changes
                        .retain(|change| !moved.contains_key(&change.instance));
                    split.changes.extend(joins);
                    instead(&mut split.enters, &moved);
                }
            }
        }
        self.skipped.extend(detour.left_out.iter().cloned());
    }
}

impl Plan {
    /// Stand-ins start in the stage under way, and leave with the instances that they stand in for, whose
    /// removal stays in the plan: they may be back by then. It is the one case of two changes for an
    /// instance; what is done of the first is forgotten when its stage is, see [`crate::apply`].
    fn stand_in(&mut self, detour: &Detour) {
        for one in &detour.stand_ins {
            let change = |action| Change {
                instance: one.to.clone(),
                host: one.host.clone(),
                action,
            };
            for (number, stage) in self.stages.iter_mut().enumerate() {
                match stage {
                    Stage::Split(split) if number == one.stage => {
                        split.changes.push(change(Action::Launch {
                            release: one.release,
                        }));
                    }
                    Stage::Batch(batch) if removes(batch, &one.from) => {
                        batch.changes.push(change(Action::Remove));
                    }
                    _ => {}
                }
            }
        }
    }
}

fn removes(batch: &Batch, id: &InstanceId) -> bool {
    let mut changes = batch.changes.iter();
    changes.any(|change| change.instance == *id && change.action == Action::Remove)
}

fn instead(enters: &mut [InstanceId], moved: &BTreeMap<&InstanceId, &InstanceId>) {
    for id in enters {
        if let Some(to) = moved.get(id) {
            (*to).clone_into(id);
        }
    }
}

/// The next detour that a plan, as it is walked, has to make; none while it can go on as it is, or when no way
/// leads around.
pub(crate) fn detour(
    plan: &Plan,
    progress: &Progress,
    world: &World<'_>,
    now: Timestamp,
) -> Option<Happened> {
    if progress.detours.len() >= MOST_DETOURS {
        return None;
    }
    let look = Look {
        plan,
        progress,
        world,
    };
    let lost: BTreeSet<&HostId> = look.hosts().filter(|host| world.host_lost(host)).collect();
    lost.into_iter()
        .find_map(|host| look.detour(host, now))
        .or_else(|| look.stand_ins(now))
}

/// Until when others wait to stand in for the old instances of a split on hosts that are lost; none where
/// there is nothing to wait for.
pub(crate) fn stand_ins_at(
    plan: &Plan,
    progress: &Progress,
    world: &World<'_>,
) -> Option<Timestamp> {
    let look = Look {
        plan,
        progress,
        world,
    };
    let at = |(_, host): (_, &HostId)| match world.hosts.get(host)?.reach {
        Reach::Lost(since) => Some(since.after(world.replace_after)),
        _ => None,
    };
    look.old_ones().filter_map(at).min()
}

const fn starts(action: Action) -> bool {
    matches!(
        action,
        Action::Launch { .. } | Action::Replace { .. } | Action::Restart
    )
}

/// A plan, as it is walked, and where it is.
struct Look<'l, 'w> {
    plan: &'l Plan,
    progress: &'l Progress,
    world: &'l World<'w>,
}

impl<'l> Look<'l, '_> {
    /// The way around a host, where that changes anything.
    fn detour(&self, lost: &HostId, now: Timestamp) -> Option<Happened> {
        let (moved, left_out) = self.places(lost);
        let leader = self.other_leader(lost);
        if moved.is_empty() && left_out.is_empty() && leader.is_none() {
            return None;
        }
        if self.leads(lost) && leader.is_none() {
            return None;
        }
        // What was to be new has to be somewhere, and a plan that would change nothing any more has not
        // succeeded.
        let is_left_out = |id: &InstanceId| left_out.iter().any(|one| one.instance == *id);
        let (mut new_is_nowhere, mut none_left) = (false, true);
        for (_, change) in self.plan.changes().filter(|(_, c)| starts(c.action)) {
            let is_out = is_left_out(&change.instance);
            none_left &= is_out;
            new_is_nowhere |= is_out && matches!(change.action, Action::Launch { .. });
        }
        if new_is_nowhere || none_left {
            return None;
        }
        let detour = Detour {
            host: lost.clone(),
            why: self.why(lost, now),
            stage: self.progress.stage,
            moved,
            left_out,
            leader,
            stand_ins: Vec::new(),
        };
        Some(Happened::Detoured { detour })
    }

    /// Old instances that get requests in the split under way, with their hosts, and that nobody stands in
    /// for.
    fn old_ones(&self) -> impl Iterator<Item = (&'l InstanceId, &'l HostId)> {
        let (plan, world) = (self.plan, self.world);
        let splits = matches!(plan.stages.get(self.progress.stage), Some(Stage::Split(_)));
        let splits = splits && !self.progress.promoted;
        let leave: BTreeSet<&InstanceId> = plan
            .changes()
            .filter(|(_, change)| splits && change.action == Action::Remove)
            .map(|(_, change)| &change.instance)
            .collect();
        let detours = self.progress.detours.iter();
        let stood_in: BTreeSet<&InstanceId> = detours
            .flat_map(|detour| &detour.stand_ins)
            .map(|one| &one.from)
            .collect();
        let old = world.instances.iter().filter(move |(id, instance)| {
            leave.contains(id)
                && !stood_in.contains(id)
                && Some(instance.release) != plan.release
                && instance.mode == Some(TargetMode::Serve)
        });
        old.map(|(id, instance)| (id, &instance.host))
    }

    /// Who stands in for the old instances on a host that was lost for as long as an environment at rest
    /// waits. A split may take hours, and its old side goes on with most of the requests.
    fn stand_ins(&self, now: Timestamp) -> Option<Happened> {
        let given_up = |host: &HostId| match self.world.hosts.get(host).map(|host| host.reach) {
            Some(Reach::Here | Reach::Silent(_)) => false,
            Some(Reach::Lost(since)) => now >= since.after(self.world.replace_after),
            None | Some(Reach::Taken(_) | Reach::Leaving(_)) => true,
        };
        let lost = self.old_ones().map(|(_, host)| host);
        let lost = lost.filter(|host| given_up(host)).min()?;
        let old: Vec<&InstanceId> = self
            .old_ones()
            .filter(|(_, host)| *host == lost)
            .map(|(id, _)| id)
            .collect();
        let mut stand_ins: Vec<Moved> = Vec::new();
        for (from, host) in old.iter().zip(self.room_for(old.len())) {
            stand_ins.push(Moved {
                from: (*from).clone(),
                to: self.successor(from, &stand_ins),
                host,
                release: self.world.instances[*from].release,
                stage: self.progress.stage,
                unmade: false,
            });
        }
        if stand_ins.is_empty() {
            return None;
        }
        let detour = Detour {
            host: lost.clone(),
            why: self.why(lost, now),
            stage: self.progress.stage,
            moved: Vec::new(),
            left_out: Vec::new(),
            leader: None,
            stand_ins,
        };
        Some(Happened::Detoured { detour })
    }

    /// Hosts for as many new instances as there is room for, `count` at most.
    fn room_for(&self, count: usize) -> Vec<HostId> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let hosts = (0..=count)
            .rev()
            .find_map(|count| place(self.world, count, &self.plan.needs, &BTreeMap::new()).ok());
        hosts.unwrap_or_default()
    }

    /// What became of a host, to be read after its name.
    fn why(&self, lost: &HostId, now: Timestamp) -> String {
        let host = self.world.hosts.get(lost);
        let why = host.and_then(|host| gone(host.reach, now));
        why.unwrap_or_else(|| "was removed".to_owned())
    }

    /// The hosts that what is left of the plan needs.
    fn hosts(&self) -> impl Iterator<Item = &'l HostId> {
        let progress = self.progress;
        let joins = self.joins().is_some();
        let changes = self.plan.changes().map(|(_, change)| change);
        let needed = changes.filter(move |change| joins && starts(change.action));
        let left = self.plan.stages.iter().skip(progress.stage);
        let leads = left.filter_map(move |stage| match stage {
            Stage::Once { host, .. } if progress.once_by.is_none() => Some(host),
            _ => None,
        });
        needed.map(|change| &change.host).chain(leads)
    }

    /// The stage that what is moved starts in: the one under way, or the next that starts anything. None
    /// where all that is new serves already and the rest only leaves: whoever keeps the number of instances
    /// right does so afterwards.
    fn joins(&self) -> Option<usize> {
        let stages = self.plan.stages.iter().enumerate();
        let mut left = stages.skip(self.progress.stage);
        let (at, stage) =
            left.find(|(_, stage)| matches!(stage, Stage::Batch(_) | Stage::Split(_)))?;
        if let Stage::Batch(batch) = stage {
            let entered = |id: &InstanceId| self.progress.of(id) == ChangeState::Done;
            if !batch.enters.is_empty() && batch.enters.iter().all(entered) {
                return None;
            }
        }
        Some(at)
    }

    /// Where each instance of a lost host starts instead, and those that no host can take.
    fn places(&self, lost: &HostId) -> (Vec<Moved>, Vec<Skipped>) {
        let Some(joins) = self.joins() else {
            return (Vec::new(), Vec::new());
        };
        let stages = self.plan.stages.iter().enumerate();
        let mut affected: Vec<(usize, &Change)> = stages
            .flat_map(|(at, stage)| stage.changes().iter().map(move |change| (at, change)))
            .filter(|(_, change)| change.host == *lost && starts(change.action))
            // Others stand in for a stand-in as they do for any old one.
            .filter(|(_, change)| self.progress.stand_in(&change.instance).is_none())
            .collect();
        let is_done = |change: &Change| self.progress.of(&change.instance) == ChangeState::Done;
        // Those that are new have nowhere else to be; those that are done hold nobody up.
        affected.sort_by_key(|(_, change)| {
            let launches = matches!(change.action, Action::Launch { .. });
            (is_done(change), !launches)
        });
        let mut hosts = self.room_for(affected.len()).into_iter();
        let mut moved: Vec<Moved> = Vec::new();
        let mut left_out = Vec::new();
        for (at, change) in affected {
            let made = self.world.instances.get(&change.instance);
            let release = match change.action {
                Action::Launch { release } | Action::Replace { release } => Some(release),
                _ => made.map(|instance| instance.release),
            };
            if let Some((host, release)) = hosts.next().zip(release) {
                let to = self.successor(&change.instance, &moved);
                moved.push(Moved {
                    from: change.instance.clone(),
                    to,
                    host,
                    release,
                    stage: if made.is_none() && self.comes_later(at) {
                        at.max(joins)
                    } else {
                        joins
                    },
                    unmade: made.is_none(),
                });
            } else if !is_done(change) {
                left_out.push(Skipped {
                    instance: change.instance.clone(),
                    host: lost.clone(),
                    reason: FOLLOWS.to_owned(),
                });
            }
        }
        (moved, left_out)
    }

    /// Whether new instances of a stage have to wait for those of stages before. All others serve as soon as
    /// they can: the capacity of the lost host is missing.
    fn comes_later(&self, stage: usize) -> bool {
        matches!(self.plan.stages.get(stage), Some(Stage::Batch(batch)) if batch.hold)
    }

    /// Whether a host is to run the release command, and was not told to.
    fn leads(&self, lost: &HostId) -> bool {
        let mut left = self.plan.stages.iter().skip(self.progress.stage);
        self.progress.once_by.is_none()
            && left.any(|stage| matches!(stage, Stage::Once { host, .. } if host == lost))
    }

    /// Another host that the release is prepared on.
    fn other_leader(&self, lost: &HostId) -> Option<HostId> {
        if !self.leads(lost) {
            return None;
        }
        let prepared = self.plan.stages.iter().filter_map(|stage| match stage {
            Stage::Prepare { hosts, .. } => Some(hosts),
            _ => None,
        });
        let others = prepared.flatten().filter(|host| *host != lost);
        others
            .filter(|host| !self.world.host_lost(host))
            .min_by_key(|host| (self.world.host_name(host), (*host).clone()))
            .cloned()
    }

    /// An id that nobody has, the same whenever the same is decided.
    fn successor(&self, of: &InstanceId, moved: &[Moved]) -> InstanceId {
        let digits = of.as_str().trim_start_matches("i-");
        let seed = u128::from_str_radix(digits, 16).unwrap_or_default();
        let made: Vec<InstanceId> = moved.iter().map(|one| one.to.clone()).collect();
        free_id(self.plan, self.world, seed, &made)
    }
}

/// An id that nobody has in a world and a plan, nor in `made`: the same for the same seed.
pub(crate) fn free_id(
    plan: &Plan,
    world: &World<'_>,
    seed: u128,
    made: &[InstanceId],
) -> InstanceId {
    let is_taken = |id: &InstanceId| {
        world.instances.contains_key(id)
            || plan.changes().any(|(_, change)| change.instance == *id)
            || made.contains(id)
    };
    (1..=TRIES)
        .map(|n| InstanceId::from_bits(crate::draft::spread(seed, n)))
        .find(|id| !is_taken(id))
        .unwrap_or_else(|| InstanceId::from_bits(seed))
}
