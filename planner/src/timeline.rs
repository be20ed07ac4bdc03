//! What a plan leaves in service at each moment, folded ahead of time: nothing is carried out for it.
//!
//! It goes by what a plan does on purpose. Instances that fail on the way are not foreseen, nor those of
//! other operations.

use crate::{Action, Batch, Plan, Serving, Stage, World};
use beanpole_protocol::{HostId, InstanceId};
use std::collections::{BTreeMap, BTreeSet};

/// One stage, and what is in service around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Which stage, counted from 0.
    pub stage: usize,
    /// The number of its batch, where it is one.
    pub batch: Option<u32>,
    /// The share of requests that the new release gets, in per cent, where that is what the stage is about.
    pub share: Option<u8>,
    /// What happens: the word for it, where, and to how many instances (0 for what is done to a host).
    pub changes: Vec<(&'static str, HostId, u32)>,
    /// Healthy instances in service when it begins.
    pub serving_before: u32,
    /// The fewest while it lasts.
    pub serving_lowest: u32,
    /// When it is done.
    pub serving_after: u32,
    /// The most instances there are while it lasts, in service or not.
    pub running_most: u32,
    /// Instances there are when it is done.
    pub running_after: u32,
}

impl Plan {
    /// Every stage in order, begun from how things are in `world`.
    pub fn timeline(&self, world: &World<'_>) -> Vec<Moment> {
        let serving = world
            .instances
            .keys()
            .filter(|id| world.serving(id) == Serving::Yes);
        let mut capacity = Capacity {
            serving: serving.cloned().collect(),
            running: world.instances.keys().cloned().collect(),
            floor: self.floor as usize,
        };
        let stages = self.stages.iter().enumerate();
        stages
            .map(|(stage, what)| {
                let before = capacity.serving.len();
                let (batch, changes, around) = match what {
                    Stage::Prepare { hosts, .. } => {
                        let hosts = hosts.iter().map(|host| ("prepare", host.clone(), 0));
                        (None, hosts.collect(), capacity.unchanged())
                    }
                    Stage::Once { host, .. } => {
                        let changes = vec![("run", host.clone(), 0)];
                        (None, changes, capacity.unchanged())
                    }
                    Stage::TryCheck { .. } | Stage::Swap { .. } => {
                        (None, Vec::new(), capacity.unchanged())
                    }
                    Stage::Split(split) => {
                        // What enters serves beside what is there.
                        let around = capacity.unchanged();
                        capacity.serving.extend(split.enters.iter().cloned());
                        (None, Vec::new(), around)
                    }
                    Stage::Batch(batch) => {
                        let around = capacity.through(batch);
                        (Some(batch.number), places(batch), around)
                    }
                };
                Moment {
                    stage,
                    batch,
                    share: match what {
                        Stage::Split(split) => Some(split.percent),
                        _ => None,
                    },
                    changes,
                    serving_before: count(before),
                    serving_lowest: count(around.lowest.min(before)),
                    serving_after: count(capacity.serving.len()),
                    running_most: count(around.most),
                    running_after: count(capacity.running.len()),
                }
            })
            .collect()
    }
}

/// What there is at one moment.
struct Capacity {
    serving: BTreeSet<InstanceId>,
    running: BTreeSet<InstanceId>,
    /// Instances in service that a draining batch leaves.
    floor: usize,
}

/// The extremes within a stage.
struct Around {
    lowest: usize,
    most: usize,
}

impl Capacity {
    /// A stage that changes no instance.
    fn unchanged(&self) -> Around {
        Around {
            lowest: self.serving.len(),
            most: self.running.len(),
        }
    }

    /// Takes a batch as done.
    fn through(&mut self, batch: &Batch) -> Around {
        // What enters does so in the same change of routes in which others leave.
        self.serving.extend(batch.enters.iter().cloned());
        let before = self.serving.len();
        let leaving = batch
            .changes
            .iter()
            .filter(|change| self.serving.contains(&change.instance))
            .count();
        let without = before - leaving;
        // A batch that drains takes one out only while others are enough, and waits otherwise.
        let lowest = if batch.drain && !batch.force {
            without.max(self.floor.min(before))
        } else {
            without
        };
        let mut most = self.running.len();
        for change in &batch.changes {
            let id = change.instance.clone();
            match change.action {
                Action::Remove => {
                    self.serving.remove(&id);
                    self.running.remove(&id);
                }
                Action::Launch { .. } => {
                    if self.running.insert(id.clone()) {
                        most += 1;
                    }
                    if !batch.hold {
                        self.serving.insert(id);
                    }
                }
                Action::Replace { .. } | Action::Restart | Action::Return => {
                    self.serving.insert(id);
                }
            }
        }
        Around { lowest, most }
    }
}

/// What happens on which host to how many, in the order of the batch.
fn places(batch: &Batch) -> Vec<(&'static str, HostId, u32)> {
    let mut order: Vec<(&'static str, HostId)> = Vec::new();
    let mut counts: BTreeMap<(&'static str, HostId), u32> = BTreeMap::new();
    for change in &batch.changes {
        let key = (change.action.word(), change.host.clone());
        if !order.contains(&key) {
            order.push(key.clone());
        }
        *counts.entry(key).or_default() += 1;
    }
    order
        .into_iter()
        .map(|key| {
            let number = counts.get(&key).copied().unwrap_or(0);
            (key.0, key.1, number)
        })
        .collect()
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Goal, HostState, InstanceState, ProxyState, Reach, Rules, plan};
    use beanpole_protocol::agent::{HostFacts, HostReport};
    use beanpole_protocol::options::{BatchSize, DeploymentPolicy, SplitStep};
    use beanpole_protocol::proxy::{ProxyReport, TargetMode, TargetReport, Traffic};
    use beanpole_protocol::{EnvironmentId, Generation, Incarnation, ReleaseNumber, Timestamp};

    fn report(instances: u128) -> ProxyReport {
        let targets = (0..instances).map(|n| TargetReport {
            process: String::new(),
            processes: Vec::new(),
            instance: InstanceId::from_bits(n),
            incarnation: Incarnation(1),
            mode: TargetMode::Serve,
            healthy: true,
            good_checks: 9,
            good_for_ms: 9_000,
            bad_checks: 0,
            bad_for_ms: 0,
            last_check: None,
            in_flight: 0,
            traffic: Traffic::default(),
            tried: None,
            ejected: None,
        });
        ProxyReport {
            sequence: 1,
            run: String::new(),
            version: String::new(),
            generation: Generation(1),
            now: Timestamp::EPOCH,
            targets: targets.collect(),
            environments: Vec::new(),
            releases: Vec::new(),
            listeners: Vec::new(),
            streams: Vec::new(),
        }
    }

    fn agent() -> HostReport {
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
                memory_available_bytes: 8 << 30,
                ..HostFacts::default()
            },
            releases: Vec::new(),
            instances: Vec::new(),
        }
    }

    /// Healthy instances on two hosts, by turns.
    fn world<'w>(instances: u128, report: &'w ProxyReport, agent: &'w HostReport) -> World<'w> {
        let host = |n: u128| HostId::from_bits(n % 2);
        let state = |n| InstanceState {
            host: host(n),
            release: ReleaseNumber(1),
            incarnation: Incarnation(1),
            mode: Some(TargetMode::Serve),
            routed: Some(Generation(1)),
            ordered: Some(Generation(1)),
            asks_ready: false,
        };
        let seen = |n: u128| HostState {
            name: format!("h{n}"),
            reach: Reach::Here,
            draining: false,
            labels: BTreeMap::new(),
            instances: 0,
            promised_memory: 0,
            heard: Some(Timestamp::EPOCH),
            report: Some(agent),
            cannot: None,
        };
        World {
            left_out: Vec::new(),
            environment: EnvironmentId::from_bits(1),
            operation: None,
            instances: (0..instances)
                .map(|n| (InstanceId::from_bits(n), state(n)))
                .collect(),
            hosts: (0..2).map(|n| (host(n), seen(n))).collect(),
            proxies: vec![ProxyState::new("local".to_owned(), None, Some(report))],
            web: true,
            replace_after: std::time::Duration::from_mins(5),
            evidence: None,
            with_commands: Default::default(),
            routed: None,
        }
    }

    /// Before, the fewest and after in service, the most and after there at all, stage by stage.
    fn capacity(policy: DeploymentPolicy, size: u32) -> Vec<[u32; 5]> {
        let (report, agent) = (report(4), agent());
        let world = world(4, &report, &agent);
        let goal = Goal::Deploy {
            release: ReleaseNumber(2),
            tree: ReleaseNumber(2),
            size,
            policy,
            batch: BatchSize::Fixed(2),
        };
        let step = SplitStep {
            percent: 10,
            wait_s: Some(60),
        };
        let rules = Rules {
            split: vec![step],
            ..Rules::default()
        };
        let plan = plan(&world, &goal, &rules, 7).expect("there is a way");
        let moments = plan.timeline(&world);
        let figures = moments.iter().map(|moment| {
            [
                moment.serving_before,
                moment.serving_lowest,
                moment.serving_after,
                moment.running_most,
                moment.running_after,
            ]
        });
        figures.collect()
    }

    #[test]
    fn a_rolling_batch_lowers_capacity_by_its_size_for_as_long_as_it_lasts() {
        let steps = capacity(DeploymentPolicy::Rolling, 4);
        assert_eq!(
            steps,
            [[4, 4, 4, 4, 4], [4, 2, 4, 4, 4], [4, 2, 4, 4, 4]],
            "prepared, then two at a time"
        );
    }

    #[test]
    fn all_at_once_leaves_nothing_in_service() {
        let steps = capacity(DeploymentPolicy::AllAtOnce, 4);
        assert_eq!(steps, [[4, 4, 4, 4, 4], [4, 0, 4, 4, 4]]);
    }

    #[test]
    fn an_additional_batch_keeps_capacity() {
        let steps = capacity(DeploymentPolicy::RollingWithAdditionalBatch, 4);
        assert!(steps.iter().all(|step| step[1] >= 4), "{steps:?}");
        assert!(steps.iter().any(|step| step[3] == 6), "{steps:?}");
        assert_eq!(steps.last().expect("the last")[2..], [4, 6, 4]);
    }

    #[test]
    fn a_whole_new_set_serves_before_the_old_one_goes() {
        let steps = capacity(DeploymentPolicy::Immutable, 4);
        assert!(steps.iter().all(|step| step[1] >= 4), "{steps:?}");
        assert_eq!(
            steps.last().expect("the last"),
            &[4, 4, 4, 8, 4],
            "all routes at once"
        );
    }

    #[test]
    fn both_sides_of_a_split_serve_until_the_old_one_goes() {
        let steps = capacity(DeploymentPolicy::TrafficSplitting, 4);
        assert!(steps.iter().all(|step| step[1] >= 4), "{steps:?}");
        assert_eq!(steps.last().expect("the last")[2..], [4, 8, 4], "{steps:?}");
    }

    #[test]
    fn fewer_instances_end_in_less_capacity() {
        let steps = capacity(DeploymentPolicy::Rolling, 3);
        let last = steps.last().expect("the last");
        assert_eq!((last[2], last[4]), (3, 3), "{steps:?}");
    }
}
