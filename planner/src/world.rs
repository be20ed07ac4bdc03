//! What the planner looks at: instances as they are wanted, hosts and proxies as they were last seen.

use crate::guard::Evidence;
use beanpole_protocol::agent::{
    HostReport, InstancePhase, InstanceReport, ReleaseKey, ReleasePhase, ReleaseReport, Startup,
};
use beanpole_protocol::proxy::{ProxyReport, TargetMode, TargetReport};
use beanpole_protocol::{
    EnvironmentId, Generation, HostId, Incarnation, InstanceId, OperationId, ReleaseNumber,
    Timestamp,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// One environment and everything around it.
#[derive(Clone, Debug)]
pub struct World<'a> {
    /// The environment.
    pub environment: EnvironmentId,
    /// The operation that runs on it, if one does.
    pub operation: Option<OperationId>,
    /// Its instances, as they are wanted.
    pub instances: BTreeMap<InstanceId, InstanceState>,
    /// All hosts.
    pub hosts: BTreeMap<HostId, HostState<'a>>,
    /// All proxies. With none, an environment with traffic can do nothing but wait.
    pub proxies: Vec<ProxyState<'a>>,
    /// Names of proxies besides these that nothing was heard of for long: nobody waits for them.
    pub left_out: Vec<String>,
    /// Whether the environment gets requests through the proxies.
    pub web: bool,
    /// How long a lost host is waited for before others take the place of what ran there.
    pub replace_after: Duration,
    /// What a split has shown so far.
    pub evidence: Option<Evidence>,
    /// Releases whose bundle's configuration files have something done on hosts, by the number of their prepared tree;
    /// whether that is more than container commands.
    pub with_commands: BTreeMap<ReleaseNumber, bool>,
    /// The first table that has its hostnames as they are; absent while none was made.
    pub routed: Option<Generation>,
}

/// An instance as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceState {
    /// Its host.
    pub host: HostId,
    /// The release it shall run.
    pub release: ReleaseNumber,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// What it is in the table for.
    pub mode: Option<TargetMode>,
    /// The first table that says so; absent while none was made.
    pub routed: Option<Generation>,
    /// The first orders of its host that say what is wanted of it; absent while none were made.
    pub ordered: Option<Generation>,
    /// Its release has a readiness command.
    pub asks_ready: bool,
}

/// Whether a host can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It was heard of lately.
    Here,
    /// Not heard of since then, but not for long.
    Silent(Timestamp),
    /// Not heard of for so long that it counts as Unreachable.
    Lost(Timestamp),
    /// Another controller's since then: it does nothing for this one any more.
    Taken(Timestamp),
    /// It is being removed, together with what runs there.
    Leaving(Timestamp),
}

/// A host.
#[derive(Clone, Debug)]
pub struct HostState<'a> {
    /// Its name.
    pub name: String,
    /// Whether it can be reached.
    pub reach: Reach,
    /// It gets no new instances.
    pub draining: bool,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// Instances of all environments there.
    pub instances: u32,
    /// The sum of their memory limits, in bytes.
    pub promised_memory: u64,
    /// When its agent said something last.
    pub heard: Option<Timestamp>,
    /// What its agent said last.
    pub report: Option<&'a HostReport>,
    /// Why it does not take its orders; absent while it does.
    pub cannot: Option<&'a str>,
}

/// A proxy.
#[derive(Clone, Debug)]
pub struct ProxyState<'a> {
    /// Its name.
    pub name: String,
    /// When it was last heard of.
    pub last_seen: Option<Timestamp>,
    /// What it said last.
    pub report: Option<&'a ProxyReport>,
    /// The same, by instance.
    targets: BTreeMap<&'a InstanceId, &'a TargetReport>,
}

impl<'a> ProxyState<'a> {
    /// A proxy and what it said last.
    pub fn new(
        name: String,
        last_seen: Option<Timestamp>,
        report: Option<&'a ProxyReport>,
    ) -> Self {
        let targets = report
            .map(|report| report.targets.iter().map(|t| (&t.instance, t)).collect())
            .unwrap_or_default();
        Self {
            name,
            last_seen,
            report,
            targets,
        }
    }

    /// What it says of one run of an instance.
    pub fn target(
        &self,
        instance: &InstanceId,
        incarnation: Incarnation,
    ) -> Option<&'a TargetReport> {
        self.targets
            .get(instance)
            .copied()
            .filter(|target| target.incarnation == incarnation)
    }

    /// Whether its table is at least as new as `wanted`. A table that was not made yet is not there.
    pub fn confirmed(&self, wanted: Option<Generation>) -> bool {
        matches!((self.report, wanted), (Some(report), Some(wanted)) if report.generation >= wanted)
    }
}

impl HostState<'_> {
    /// Whether it counts as Unreachable.
    pub fn lost(&self) -> bool {
        matches!(
            self.reach,
            Reach::Lost(_) | Reach::Taken(_) | Reach::Leaving(_)
        )
    }

    /// Why nothing is done there that is not done yet.
    pub(crate) fn not_begun(&self) -> String {
        match self.cannot {
            Some(why) => format!("it cannot take orders: {why}"),
            None => "its agent has not begun".to_owned(),
        }
    }

    /// What the agent says of an instance.
    pub fn instance(&self, id: &InstanceId) -> Option<&InstanceReport> {
        self.report?.instances.iter().find(|seen| seen.id == *id)
    }

    /// Why a release that is ready there is not what it should be: its agent knows of no container
    /// commands, or of nothing else that configuration files tell (`sets_up`).
    pub(crate) fn ran_no_commands(&self, seen: &ReleaseReport, sets_up: bool) -> Option<String> {
        let lacks = if !seen.ran_container_commands {
            "runs no container commands"
        } else if sets_up && !seen.set_up {
            "carries out no packages, files or commands of .ebextensions"
        } else {
            return None;
        };
        (seen.phase == ReleasePhase::Ready).then(|| {
            format!(
                "The agent on {} is of a version that {lacks}; \
                 `beanpole host upgrade {}` brings it up to date. Then deploy again.",
                self.name, self.name
            )
        })
    }

    /// What the agent says of a release.
    pub fn release(
        &self,
        environment: &EnvironmentId,
        number: ReleaseNumber,
    ) -> Option<&ReleaseReport> {
        let key = ReleaseKey {
            environment: environment.clone(),
            number,
        };
        self.report?.releases.iter().find(|seen| seen.key == key)
    }
}

/// What an instance whose processes run has not passed yet before it counts as started, to be read after
/// its name and a colon; none when there is nothing.
pub fn unready(seen: &InstanceReport) -> Option<String> {
    seen.startup.as_ref().and_then(Startup::waits_for)
}

/// What is known of an instance that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// It is meant to serve, and everyone who looks finds it well.
    Yes,
    /// It is known not to serve.
    No,
    /// Somebody who should say has not.
    Unknown,
}

impl World<'_> {
    /// Whether an instance serves.
    pub fn serving(&self, id: &InstanceId) -> Serving {
        let Some(instance) = self.instances.get(id) else {
            return Serving::No;
        };
        if instance.mode != Some(TargetMode::Serve) {
            return Serving::No;
        }
        // Nobody will ever say anything of an instance whose host was removed.
        let Some(host) = self.hosts.get(&instance.host) else {
            return Serving::No;
        };
        if !self.web {
            return match host.instance(id) {
                Some(seen)
                    if seen.incarnation == instance.incarnation
                        && seen.phase == InstancePhase::Running
                        && unready(seen).is_none() =>
                {
                    Serving::Yes
                }
                Some(_) => Serving::No,
                None => Serving::Unknown,
            };
        }
        let mut worst = if self.proxies.is_empty() {
            Serving::Unknown
        } else {
            Serving::Yes
        };
        for proxy in &self.proxies {
            match proxy.target(id, instance.incarnation) {
                Some(target) if target.healthy => {}
                Some(_) if proxy.confirmed(instance.routed) => return Serving::No,
                _ => worst = Serving::Unknown,
            }
        }
        worst
    }

    /// How many instances serve and are well.
    pub fn serving_count(&self) -> u32 {
        let count = self
            .instances
            .keys()
            .filter(|id| self.serving(id) == Serving::Yes)
            .count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// A host's name, for people.
    pub fn host_name(&self, host: &HostId) -> String {
        self.hosts
            .get(host)
            .map_or_else(|| host.to_string(), |host| host.name.clone())
    }

    /// Whether a host is gone for good or counts as Unreachable.
    pub fn host_lost(&self, host: &HostId) -> bool {
        self.hosts.get(host).is_none_or(HostState::lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of it must not hold up mending for ever.
    #[test]
    fn an_instance_whose_host_was_removed_does_not_serve() {
        let id = InstanceId::from_bits(1);
        let instance = InstanceState {
            host: HostId::from_bits(1),
            release: ReleaseNumber(1),
            incarnation: Incarnation(1),
            mode: Some(TargetMode::Serve),
            routed: Some(Generation(1)),
            ordered: Some(Generation(1)),
            asks_ready: false,
        };
        for web in [true, false] {
            let world = World {
                left_out: Vec::new(),
                environment: EnvironmentId::from_bits(1),
                operation: None,
                instances: [(id.clone(), instance.clone())].into(),
                hosts: BTreeMap::new(),
                proxies: vec![ProxyState::new("proxy".to_owned(), None, None)],
                web,
                replace_after: Duration::from_mins(5),
                evidence: None,
                with_commands: Default::default(),
                routed: None,
            };
            assert_eq!(world.serving(&id), Serving::No);
        }
    }
}
