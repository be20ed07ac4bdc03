//! Reading: the same questions to the store and to a transaction, and the planner's view of it all.

use crate::{Engine, Observed, linger};
use beanpole_planner::Gate;
use beanpole_planner::{
    HostState, InstanceState, Place, ProxyState, Reach, Rules, Timeouts, World,
};
use beanpole_protocol::api::{EnvironmentStatus, Tier};
use beanpole_protocol::options::{INSTANCE, OptionSettings};
use beanpole_protocol::{EnvironmentId, EnvironmentName, HostId, ReleaseNumber, Timestamp};
use beanpole_store::model::{
    EnvironmentRecord, HostRecord, InstanceRecord, OperationRecord, ReleaseRecord,
};
use beanpole_store::{Record, Store, StoreError, Tx};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a worker has to run before it counts as started, in milliseconds: longer than the first
/// restart pause, so that an app that ends at once is noticed.
pub(crate) const SETTLE_MS: u64 = 3_000;

/// What both the store and a transaction can be asked.
pub trait Reader {
    /// The record of that key.
    fn one<R: Record>(&self, key: &[u8]) -> Result<Option<R>, StoreError>;
    /// Every record of that kind.
    fn all<R: Record>(&self) -> Result<Vec<R>, StoreError>;
    /// Every record of that kind whose key begins so.
    fn under<R: Record>(&self, prefix: &[u8]) -> Result<Vec<R>, StoreError>;
}

impl Reader for Store {
    fn one<R: Record>(&self, key: &[u8]) -> Result<Option<R>, StoreError> {
        self.get(key)
    }
    fn all<R: Record>(&self) -> Result<Vec<R>, StoreError> {
        self.list()
    }
    fn under<R: Record>(&self, prefix: &[u8]) -> Result<Vec<R>, StoreError> {
        self.list_prefix(prefix)
    }
}

impl Reader for Tx<'_> {
    fn one<R: Record>(&self, key: &[u8]) -> Result<Option<R>, StoreError> {
        self.get(key)
    }
    fn all<R: Record>(&self) -> Result<Vec<R>, StoreError> {
        self.list()
    }
    fn under<R: Record>(&self, prefix: &[u8]) -> Result<Vec<R>, StoreError> {
        self.list_prefix(prefix)
    }
}

/// The environment of that name that is not terminated.
pub(crate) fn find_environment(
    reader: &impl Reader,
    name: &EnvironmentName,
) -> Result<Option<EnvironmentRecord>, StoreError> {
    Ok(reader
        .all::<EnvironmentRecord>()?
        .into_iter()
        .find(|env| env.name == *name && env.status != EnvironmentStatus::Terminated))
}

/// A release of an environment.
pub(crate) fn release(
    reader: &impl Reader,
    environment: &EnvironmentId,
    number: ReleaseNumber,
) -> Result<Option<ReleaseRecord>, StoreError> {
    reader.one(&ReleaseRecord::key_of(environment, number))
}

/// What is known of a release before a plan puts it on instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repute {
    /// It never was live: its instances have to stay up for a while before they get traffic.
    New,
    /// It was live: good checks are enough, so that going back takes no longer than a restart.
    Live,
}

/// What holds for plans that lead to these settings from those that `leaves`.
pub(crate) fn rules(
    settings: &OptionSettings,
    leaves: &OptionSettings,
    tier: Tier,
    repute: Repute,
) -> Rules {
    let deployment = settings.deployment();
    let check = settings.health_check();
    let up_ms = match repute {
        Repute::New => deployment.min_uptime_ms,
        Repute::Live => 0,
    };
    let (gate, proof_ms) = match tier {
        Tier::Web => (
            Gate::Proxies {
                good_checks: check.healthy_threshold,
                bad_checks: check.unhealthy_threshold,
                up_ms,
                // Who asks for a time means it for every instance.
                every: settings.get(INSTANCE, "MinUptime").is_some(),
            },
            // Checks far apart must not eat up the time that the app has to start.
            std::iter::once("")
                .chain(settings.processes())
                .map(|process| settings.health_check_of(process))
                .map(|check| u64::from(check.healthy_threshold) * check.interval_ms)
                .max()
                .unwrap_or(0),
        ),
        Tier::Worker => {
            let for_ms = up_ms.max(SETTLE_MS);
            (Gate::Settle { for_ms }, 0)
        }
    };
    Rules {
        gate,
        timeouts: Timeouts {
            prepare_ms: deployment.timeout_ms,
            batch_ms: deployment.start_grace_ms + deployment.start_timeout_ms + proof_ms,
            drain_ms: deployment.drain_timeout_ms,
            // Whichever of the two is being stopped.
            stop_ms: settings.stop_grace_ms().max(leaves.stop_grace_ms()),
            linger_ms: settings.linger_ms(),
        },
        ignore_health: deployment.ignore_health_check,
        split: settings.split().0,
        guard: settings.guard(),
        overlap: settings.overlap(),
        renews: false,
        in_service: 0,
        needs: Place {
            memory: settings.limits().memory_bytes,
            labels: settings.host_labels(),
        },
    }
}

/// The trees of releases whose configuration files have something done on hosts, and whether that is more than
/// container commands; of those that plans of an environment can be about:
/// the newest, which a deployment is on its way to, the live one, and what instances run.
fn with_commands<'i>(
    reader: &impl Reader,
    environment: &EnvironmentRecord,
    instances: impl Iterator<Item = &'i InstanceState>,
) -> Result<BTreeMap<ReleaseNumber, bool>, StoreError> {
    let numbers: BTreeSet<ReleaseNumber> = instances
        .map(|instance| instance.release)
        .chain(environment.live)
        .chain([environment.last_release])
        .collect();
    let mut trees = BTreeMap::new();
    for number in numbers {
        let release = release(reader, &environment.id, number)?;
        trees.extend(
            release
                .filter(|release| !release.container_commands.is_empty())
                .map(|release| (release.tree, release.container_commands.sets_up)),
        );
    }
    Ok(trees)
}

impl Engine {
    /// An environment as the planner sees it. `whole` also counts what all hosts hold, which only
    /// placement needs.
    pub(crate) fn world<'o>(
        &self,
        reader: &impl Reader,
        environment: &EnvironmentRecord,
        observed: &'o Observed,
        now: Timestamp,
        whole: bool,
    ) -> Result<World<'o>, StoreError> {
        let mut hosts: BTreeMap<HostId, HostState<'o>> = BTreeMap::new();
        let records = reader.all::<HostRecord>()?;
        let edges = records.iter().any(|host| host.edge.is_some());
        for host in records {
            let mut state = self.host_state(&host, observed, now);
            // Load balancers on other machines would meet themselves there.
            state.draining |=
                edges && environment.tier == Tier::Web && host.is_reached_from_itself_alone();
            hosts.insert(host.id.clone(), state);
        }
        if whole {
            let mut limits: BTreeMap<(EnvironmentId, ReleaseNumber), u64> = BTreeMap::new();
            for instance in linger::with_lingering(reader)? {
                let key = (instance.environment.clone(), instance.release);
                if !limits.contains_key(&key) {
                    let memory = release(reader, &key.0, key.1)?
                        .and_then(|release| release.settings.limits().memory_bytes);
                    limits.insert(key.clone(), memory.unwrap_or(0));
                }
                if let Some(host) = hosts.get_mut(&instance.host) {
                    host.instances += 1;
                    host.promised_memory += limits[&key];
                }
            }
        }
        let mut instances = BTreeMap::new();
        let mut asks_ready: BTreeMap<ReleaseNumber, bool> = BTreeMap::new();
        for instance in reader.under::<InstanceRecord>(&InstanceRecord::prefix(&environment.id))? {
            let id = instance.id.clone();
            let runs = hosts
                .get(&instance.host)
                .and_then(|host| host.instance(&id))
                .filter(|seen| seen.incarnation == instance.incarnation)
                .and_then(|seen| seen.release);
            let asks = match asks_ready.get(&instance.release) {
                Some(asks) => *asks,
                None => release(reader, &environment.id, instance.release)?
                    .is_some_and(|release| release.settings.ready().is_some()),
            };
            asks_ready.insert(instance.release, asks);
            let mut state = instance_state(instance, asks);
            // It was recorded, restored from a backup, and had been changed in between: what it runs
            // is told by its host.
            if let Some(tree) = runs.filter(|tree| *tree != state.release)
                && release(reader, &environment.id, state.release)?
                    .is_some_and(|recorded| recorded.tree != tree)
            {
                state.release = tree;
            }
            instances.insert(id, state);
        }
        let with_commands = with_commands(reader, environment, instances.values())?;
        // Where two releases share the requests, so far as that was looked at.
        let evidence = match (&environment.operation, environment.split) {
            (Some(id), Some(_)) => reader
                .one::<OperationRecord>(&OperationRecord::key_of(id))?
                .map(|operation| operation.guard.evidence),
            _ => None,
        };
        Ok(World {
            environment: environment.id.clone(),
            operation: environment.operation.clone(),
            instances,
            hosts,
            proxies: observed
                .counting(now, self.config.unreachable_after_ms)
                .map(|(name, seen)| {
                    ProxyState::new(name.clone(), seen.last_seen, seen.report.as_ref())
                })
                .collect(),
            left_out: observed.left_out(now, self.config.unreachable_after_ms),
            web: environment.tier == Tier::Web,
            replace_after: Duration::from_millis(self.config.replace_after_ms),
            evidence,
            with_commands,
            routed: environment.routed,
        })
    }

    pub(crate) fn host_state<'o>(
        &self,
        host: &HostRecord,
        observed: &'o Observed,
        now: Timestamp,
    ) -> HostState<'o> {
        let seen = observed.hosts.get(&host.id);
        HostState {
            name: host.name.to_string(),
            reach: if host.removing {
                Reach::Leaving(now)
            } else {
                observed.reach(&host.id, now, self.config.unreachable_after_ms)
            },
            draining: host.draining || host.removing,
            labels: host.labels.clone(),
            instances: 0,
            promised_memory: 0,
            heard: seen.and_then(|seen| seen.last_seen),
            report: seen.and_then(|seen| seen.report.as_ref()),
            cannot: seen.and_then(|seen| seen.cannot.as_deref()),
        }
    }
}

fn instance_state(instance: InstanceRecord, asks_ready: bool) -> InstanceState {
    InstanceState {
        host: instance.host,
        release: instance.release,
        incarnation: instance.incarnation,
        mode: instance.mode,
        routed: instance.routed,
        ordered: instance.ordered,
        asks_ready,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beanpole_protocol::options::INSTANCE;

    #[test]
    fn the_time_out_of_a_start_begins_when_its_grace_is_over() {
        let mut settings = OptionSettings::default();
        let may_take = |settings: &OptionSettings| {
            let rules = rules(settings, settings, Tier::Web, Repute::New);
            rules.timeouts.batch_ms
        };
        let without = may_take(&settings);
        settings.set(INSTANCE, "StartGrace", "90");
        assert_eq!(may_take(&settings), without + 90_000);
    }
}
