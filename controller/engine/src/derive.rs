//! From records to what hosts shall hold and where requests go. Derived afresh every turn; a new
//! generation only where the content differs from what is stored.

use crate::turn::Turn;
use crate::{Engine, EngineError, Observed, kept};
use beanpole_planner::{Change, Reach, Stage};
use beanpole_protocol::agent::{HostOrders, InstanceOrder, OnceOrder, ReleaseKey, ReleaseOrder};
use beanpole_protocol::api::EnvironmentStatus;
use beanpole_protocol::options::OptionSettings;
use beanpole_protocol::proxy::RoutingTable;
use beanpole_protocol::{
    ApplicationName, EnvironmentId, Generation, HostId, OperationId, ReleaseNumber, Timestamp,
};
use beanpole_store::StoreError;
use beanpole_store::model::{
    ApplicationRecord, EnvironmentRecord, HostOrdersRecord, HostRecord, InstanceRecord,
    LingererRecord, OperationRecord, ReleaseRecord, TableRecord,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

/// Everything that orders and the table are made from.
pub(crate) struct Records {
    pub(crate) environments: BTreeMap<EnvironmentId, EnvironmentRecord>,
    pub(crate) hosts: BTreeMap<HostId, HostRecord>,
    instances: Vec<InstanceRecord>,
    lingering: Vec<LingererRecord>,
    pub(crate) releases: BTreeMap<(EnvironmentId, ReleaseNumber), ReleaseRecord>,
    /// Applications that may act as root on hosts.
    root: BTreeSet<ApplicationName>,
    pub(crate) operations: Vec<OperationRecord>,
}

/// What a derivation was made from and what came of it.
#[derive(Debug)]
pub(crate) struct Derived {
    commits: u64,
    orders: BTreeMap<HostId, Generation>,
    table: Generation,
}

impl Derived {
    /// Whether another derivation would give the same: no record changed, and nobody holds a newer
    /// generation than was given out.
    fn holds(&self, commits: u64, observed: &Observed) -> bool {
        // What is 0 waits for a word of those who shall have it.
        let all_made = self.table.0 > 0 && self.orders.values().all(|given| given.0 > 0);
        all_made
            && self.commits == commits
            && self.orders.iter().all(|(host, given)| {
                observed.hosts.get(host).is_none_or(|seen| {
                    let report = seen.report.as_ref();
                    report.is_none_or(|report| report.generation <= *given)
                        && seen.reused.is_none_or(|reused| reused < *given)
                })
            })
            && observed.proxies.values().all(|seen| {
                seen.report
                    .as_ref()
                    .is_none_or(|report| report.generation <= self.table)
            })
    }
}

impl Engine {
    /// Derives orders and the table, where something may have changed since the last time.
    pub(crate) fn derive(
        &self,
        observed: &Observed,
        now: Timestamp,
        turn: &mut Turn,
    ) -> Result<(), EngineError> {
        let mut derived = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
        let commits = self.store.commits();
        if derived
            .as_ref()
            .is_some_and(|last| last.holds(commits, observed))
        {
            return Ok(());
        }
        *derived = Some(self.derive_afresh(commits, observed, now, turn)?);
        Ok(())
    }

    fn derive_afresh(
        &self,
        commits: u64,
        observed: &Observed,
        now: Timestamp,
        turn: &mut Turn,
    ) -> Result<Derived, EngineError> {
        let mut records = self.records()?;
        let went_on = records.follow_hosts(observed);
        let (orders_changed, orders_now) = self.fresh_orders(&records, observed)?;
        let (table, table_changed) = self.fresh_table(&records, observed, now)?;
        let mut marked = records.marked(&orders_now, table.generation);
        let lingering = records.lingering_marked(&orders_now, table.generation);
        let unrouted = records.unrouted(table.generation);
        let noted: BTreeSet<_> = marked.iter().map(|record| record.id.clone()).collect();
        marked.extend(went_on.into_iter().filter(|one| !noted.contains(&one.id)));
        let derived = Derived {
            // What is written below counts as a change: the next turn derives once more and finds
            // nothing.
            commits,
            orders: orders_now,
            table: table.generation,
        };
        let none_marked = marked.is_empty() && lingering.is_empty() && unrouted.is_empty();
        if orders_changed.is_empty() && !table_changed && none_marked {
            return Ok(derived);
        }
        self.store.update(|tx| {
            for record in &orders_changed {
                tx.put(record)?;
            }
            if table_changed {
                tx.put(&TableRecord {
                    table: table.clone(),
                })?;
            }
            for record in &marked {
                tx.put(record)?;
            }
            for record in &lingering {
                tx.put(record)?;
            }
            for before in &unrouted {
                let key = EnvironmentRecord::key_of(&before.id);
                // A call may have changed it meanwhile: then this table is not of what is wanted now.
                if let Some(mut record) = tx.get::<EnvironmentRecord>(&key)?
                    && record == *before
                {
                    record.routed = Some(table.generation);
                    tx.put(&record)?;
                }
            }
            Ok::<_, StoreError>(())
        })?;
        turn.hosts_changed = orders_changed.into_iter().map(|r| r.host).collect();
        turn.table_changed = table_changed;
        Ok(derived)
    }

    /// The orders that differ from what is stored, and the generation of each host's.
    fn fresh_orders(
        &self,
        records: &Records,
        observed: &Observed,
    ) -> Result<(Vec<HostOrdersRecord>, BTreeMap<HostId, Generation>), EngineError> {
        let mut changed: Vec<HostOrdersRecord> = Vec::new();
        let mut generations: BTreeMap<HostId, Generation> = BTreeMap::new();
        for id in records.hosts.keys() {
            let stored = self.host_orders(id)?;
            let mut fresh = records.orders(id);
            fresh.generation = stored.generation;
            fresh.controller.clone_from(&self.config.controller);
            if let Some(edge) = &mut fresh.edge {
                edge.domain.clone_from(&self.config.domain);
            }
            let seen = observed.hosts.get(id);
            let held = seen
                .and_then(|seen| seen.report.as_ref())
                .map_or(Generation(0), |report| report.generation);
            let reused = seen.and_then(|seen| seen.reused);
            // A host that holds a newer generation than was ever given out, or other orders of the
            // last one, met a store that was restored from a backup, or another run of this
            // controller: outrun it, or it would refuse everything.
            let behind = held > stored.generation || reused >= Some(stored.generation);
            // Restored: it may run what is newer than these records, and says so before it is told anything.
            let restored = stored.generation.0 == 0 && !stored.instances.is_empty();
            if restored && seen.is_none_or(|seen| seen.report.is_none()) {
                generations.insert(id.clone(), stored.generation);
                continue;
            }
            let held = held.max(reused.unwrap_or_default());
            if fresh != stored || stored.generation.0 == 0 || behind {
                fresh.generation = stored.generation.max(held).next();
                changed.push(HostOrdersRecord {
                    host: id.clone(),
                    orders: fresh.clone(),
                });
            }
            generations.insert(id.clone(), fresh.generation);
        }
        Ok((changed, generations))
    }

    /// The table, and whether it differs from what is stored.
    fn fresh_table(
        &self,
        records: &Records,
        observed: &Observed,
        now: Timestamp,
    ) -> Result<(RoutingTable, bool), EngineError> {
        let stored = self.routing_table()?;
        let mut table = records.table(&self.config.domain);
        table.generation = stored.generation;
        let held = observed
            .proxies
            .values()
            .filter_map(|seen| seen.report.as_ref())
            .map(|report| report.generation)
            .max()
            .unwrap_or_default();
        // After a restore: what the proxies hold is newer than the records, and right, until they and the
        // hosts have said what they do. A table of the records alone would name incarnations that are gone.
        let restored = stored.generation.0 == 0 && !stored.pools.is_empty();
        let mut waited = observed.counting(now, self.config.unreachable_after_ms);
        let told = waited.all(|(_, seen)| seen.report.is_some());
        if restored && (!told || self.unheard(records, observed, now)) {
            return Ok((stored, false));
        }
        let changed = table != stored || stored.generation.0 == 0 || held > stored.generation;
        if changed {
            table.generation = stored.generation.max(held).next();
        }
        Ok((table, changed))
    }

    /// Whether a host with instances has not reported yet and does not count as Unreachable.
    fn unheard(&self, records: &Records, observed: &Observed, now: Timestamp) -> bool {
        records.all().any(|instance| {
            let seen = observed.hosts.get(&instance.host);
            seen.is_none_or(|seen| seen.report.is_none())
                && matches!(
                    observed.reach(&instance.host, now, self.config.unreachable_after_ms),
                    Reach::Here | Reach::Silent(_)
                )
        })
    }

    fn records(&self) -> Result<Records, StoreError> {
        let environments: BTreeMap<_, _> = self
            .store
            .list::<EnvironmentRecord>()?
            .into_iter()
            .filter(|env| env.status != EnvironmentStatus::Terminated)
            .map(|env| (env.id.clone(), env))
            .collect();
        let mut operations = Vec::new();
        for id in environments.values().filter_map(|e| e.operation.as_ref()) {
            operations.extend(
                self.store
                    .get::<OperationRecord>(&OperationRecord::key_of(id))?,
            );
        }
        Ok(Records {
            environments,
            hosts: self
                .store
                .list::<HostRecord>()?
                .into_iter()
                .map(|host| (host.id.clone(), host))
                .collect(),
            instances: self.store.list()?,
            lingering: self.store.list()?,
            releases: self
                .store
                .list::<ReleaseRecord>()?
                .into_iter()
                .map(|release| ((release.environment.clone(), release.number), release))
                .collect(),
            root: self
                .store
                .list::<ApplicationRecord>()?
                .into_iter()
                .filter(|application| application.root)
                .map(|application| application.name)
                .collect(),
            operations,
        })
    }
}

impl Records {
    /// Takes over what hosts have gone on to while these records stood still: a host that runs a later
    /// incarnation of an instance than was ever recorded met a store that was restored from a backup.
    /// Were it told the recorded one, every instance would be changed at once; told its own, it goes on,
    /// and mending takes one after the other to the recorded release. Gives the records that changed.
    fn follow_hosts(&mut self, observed: &Observed) -> Vec<InstanceRecord> {
        let mut changed = Vec::new();
        for record in &mut self.instances {
            let seen = observed
                .hosts
                .get(&record.host)
                .filter(|seen| seen.taken.is_none())
                .and_then(|seen| seen.report.as_ref())
                .and_then(|report| report.instances.iter().find(|one| one.id == record.id));
            if let Some(seen) = seen
                && seen.incarnation > record.incarnation
            {
                record.incarnation = seen.incarnation;
                changed.push(record.clone());
            }
        }
        changed
    }

    /// The instances whose first orders or table these are.
    fn marked(
        &self,
        orders: &BTreeMap<HostId, Generation>,
        table: Generation,
    ) -> Vec<InstanceRecord> {
        let instances = self.instances.iter();
        instances
            .filter_map(|instance| marked(instance, orders, table))
            .collect()
    }

    /// The environments whose first table this is, with their hostnames as they are.
    fn unrouted(&self, table: Generation) -> Vec<EnvironmentRecord> {
        let environments = self.environments.values();
        let unrouted = environments.filter(|one| one.routed.is_none() && one.cname.is_some());
        unrouted.filter(|_| table.0 > 0).cloned().collect()
    }

    /// The same, of those that linger.
    fn lingering_marked(
        &self,
        orders: &BTreeMap<HostId, Generation>,
        table: Generation,
    ) -> Vec<LingererRecord> {
        let lingering = self.lingering.iter();
        lingering
            .filter_map(|one| {
                Some(LingererRecord {
                    instance: marked(&one.instance, orders, table)?,
                    ..one.clone()
                })
            })
            .collect()
    }

    /// Every instance that hosts and proxies hold, those that linger included.
    pub(crate) fn all(&self) -> impl Iterator<Item = &InstanceRecord> {
        let lingering = self.lingering.iter().map(|one| &one.instance);
        self.instances.iter().chain(lingering)
    }

    fn orders(&self, host: &HostId) -> HostOrders {
        let mut wanted: BTreeMap<(EnvironmentId, ReleaseNumber), Option<OperationId>> =
            BTreeMap::new();
        let mut once: BTreeMap<(EnvironmentId, ReleaseNumber), OnceOrder> = BTreeMap::new();
        let mut instances = Vec::new();
        for instance in self.all().filter(|i| i.host == *host) {
            if !self.environments.contains_key(&instance.environment) {
                continue;
            }
            let key = (instance.environment.clone(), instance.release);
            let Some(release) = self.releases.get(&key) else {
                continue;
            };
            wanted.insert((key.0, release.tree), None);
            instances.push(InstanceOrder {
                id: instance.id.clone(),
                environment: instance.environment.clone(),
                release: release.tree,
                incarnation: instance.incarnation,
                run: instance.run,
                port: instance.port,
                ports: instance.ports.clone(),
                stop_grace_ms: release.settings.stop_grace_ms(),
                limits: release.settings.limits(),
                ready: release.settings.ready(),
            });
        }
        // Where something only lingers, no release is kept for the next time.
        let own = self.instances.iter().filter(|i| i.host == *host);
        let present: BTreeSet<&EnvironmentId> = own
            .filter_map(|instance| self.environments.get(&instance.environment))
            .map(|environment| &environment.id)
            .chain(self.sleepers_at(host))
            .collect();
        for operation in &self.operations {
            let (plan, progress) = operation.under_way();
            for (number, stage) in plan.stages.iter().enumerate() {
                if let Stage::Prepare { tree, hosts, .. } = stage
                    && hosts.contains(host)
                {
                    let asked = wanted
                        .entry((operation.environment.clone(), *tree))
                        .or_default();
                    // Only while it is waited for: where it is ready already, nothing changes.
                    let joins = |change: &Change| {
                        change.host == *host && progress.is_moved(&change.instance)
                    };
                    if number == progress.stage || plan.changes().any(|(_, c)| joins(c)) {
                        *asked = Some(operation.id.clone());
                    }
                }
                if let (Stage::Once { tree, host: on, .. }, Some(agent)) =
                    (stage, &progress.once_by)
                    && on == host
                    && number == progress.stage
                {
                    let order = OnceOrder {
                        operation: operation.id.clone(),
                        agent: agent.clone(),
                    };
                    once.insert((operation.environment.clone(), *tree), order);
                }
            }
        }
        for id in present {
            let keep = self.environments[id].settings.deployment().keep_releases as usize;
            let releases = self
                .releases
                .range((id.clone(), ReleaseNumber(0))..=(id.clone(), ReleaseNumber(u64::MAX)))
                .map(|(_, release)| release);
            let trees = kept::prepared(releases, keep);
            for tree in trees {
                wanted.entry((id.clone(), tree)).or_default();
            }
        }
        let releases = wanted
            .into_iter()
            .filter_map(|(key, asked_by)| {
                let run_once = once.remove(&key);
                let order = self.release_order(&key, asked_by)?;
                let install = self.hosts.get(host).is_some_and(HostRecord::installs);
                Some(ReleaseOrder {
                    run_once,
                    install,
                    ..order
                })
            })
            .collect();
        HostOrders {
            generation: Generation(0),
            controller: None,
            releases,
            instances,
            edge: self.hosts.get(host).and_then(|host| host.edge.clone()),
        }
    }

    /// The environments that sleep and had instances on a host.
    fn sleepers_at<'a>(&'a self, host: &'a HostId) -> impl Iterator<Item = &'a EnvironmentId> {
        let slept = |environment: &&EnvironmentRecord| {
            let asleep = environment.asleep.as_ref();
            asleep.is_some_and(|asleep| asleep.hosts.contains(host))
        };
        self.environments.values().filter(slept).map(|one| &one.id)
    }

    fn release_order(
        &self,
        key: &(EnvironmentId, ReleaseNumber),
        asked_by: Option<OperationId>,
    ) -> Option<ReleaseOrder> {
        let environment = self.environments.get(&key.0)?;
        let release = self.releases.get(key)?;
        Some(ReleaseOrder {
            key: ReleaseKey {
                environment: key.0.clone(),
                number: key.1,
            },
            application: environment.application.clone(),
            environment_name: environment.name.clone(),
            version: release.version.clone(),
            bundle: release.bundle.clone(),
            bundle_size: release.bundle_size,
            platform: release.platform,
            properties: release.settings.properties(),
            options: release.settings.platform_options(),
            install: false,
            configures: release.is_of_settings(),
            prepare_timeout_ms: release.settings.deployment().timeout_ms,
            // As it is now, also for a release of before: who took it back means it.
            root: self.root.contains(&environment.application),
            asked_by,
            run_once: None,
        })
    }

    /// The settings under which an instance runs: its release's. The environment's are already those of
    /// the release on its way.
    pub(crate) fn settings_of<'r>(
        &'r self,
        environment: &'r EnvironmentRecord,
        instance: &InstanceRecord,
    ) -> &'r OptionSettings {
        let key = (environment.id.clone(), instance.release);
        let release = self.releases.get(&key);
        release.map_or(&environment.settings, |release| &release.settings)
    }
}

/// An instance with its first orders and its first table, where these are news of it.
fn marked(
    instance: &InstanceRecord,
    orders: &BTreeMap<HostId, Generation>,
    table: Generation,
) -> Option<InstanceRecord> {
    let ordered = || orders.get(&instance.host).copied().filter(|at| at.0 > 0);
    let fresh = InstanceRecord {
        routed: instance.routed.or((table.0 > 0).then_some(table)),
        ordered: instance.ordered.or_else(ordered),
        ..instance.clone()
    };
    (fresh != *instance).then_some(fresh)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::services::NewOperation;
    use crate::{Call, EngineConfig};
    use beanpole_planner::{Plan, Timeouts};
    use beanpole_protocol::agent::{
        ControllerIdentity, Failure, HostFacts, HostReport, OncePhase, OnceReport, Platform,
        ReleasePhase, ReleaseReport,
    };
    use beanpole_protocol::api::{OperationKind, Tier};
    use beanpole_protocol::edge::EdgeOrders;
    use beanpole_protocol::options::{PROCESS, PROXY, STATIC_FILES};
    use beanpole_protocol::proxy::{Algorithm, HashBy, PoolRules, Stickiness, TargetMode};
    use beanpole_protocol::{
        AgentId, ApplicationName, Cname, ControllerId, Digest, EnvironmentName, HostName,
        Incarnation, InstanceId, RequestId, VersionLabel,
    };
    use beanpole_store::model::SplitRecord;
    use beanpole_store::{Store, Tx};

    pub(crate) fn host(id: &HostId) -> HostRecord {
        HostRecord {
            id: id.clone(),
            name: HostName::new("h1").expect("a name"),
            local: false,
            ssh: None,
            jump: None,
            host_key: None,
            fingerprint: None,
            instance_address: "127.0.0.1".to_owned(),
            labels: BTreeMap::new(),
            draining: false,
            removing: false,
            edge: None,
            agent: None,
            taken: None,
            no_install: false,
            added_at: Timestamp::EPOCH,
        }
    }

    pub(crate) fn environment() -> EnvironmentRecord {
        EnvironmentRecord {
            id: EnvironmentId::from_bits(1),
            name: EnvironmentName::new("shop-prod").expect("a name"),
            application: ApplicationName::new("shop").expect("a name"),
            description: String::new(),
            tier: Tier::Worker,
            platform: Platform::Auto,
            cname: None,
            domains: Vec::new(),
            content: Default::default(),
            routed: None,
            status: EnvironmentStatus::Ready,
            settings: OptionSettings::default(),
            brought: OptionSettings::default(),
            live: None,
            last_release: ReleaseNumber(1),
            operation: None,
            next: None,
            counted_after: None,
            hold: false,
            split: None,
            mend_after: None,
            mend_failures: 0,
            failed_by: None,
            asleep: None,
            closed_ports: Vec::new(),
            created_at: Timestamp::EPOCH,
            updated_at: Timestamp::EPOCH,
            terminated_at: None,
            last_event_at: Timestamp::EPOCH,
        }
    }

    /// An instance that serves.
    pub(crate) fn instance(number: u128) -> InstanceRecord {
        InstanceRecord {
            id: InstanceId::from_bits(number),
            environment: environment().id,
            host: HostId::from_bits(1),
            port: 20_000,
            ports: BTreeMap::new(),
            release: ReleaseNumber(1),
            incarnation: Incarnation(1),
            run: true,
            mode: Some(beanpole_protocol::proxy::TargetMode::Serve),
            withdrawn: false,
            routed: None,
            ordered: None,
            told: None,
            created_at: Timestamp::from_millis(10_000),
        }
    }

    pub(crate) fn release(environment: &EnvironmentRecord) -> ReleaseRecord {
        ReleaseRecord {
            environment: environment.id.clone(),
            number: ReleaseNumber(1),
            tree: ReleaseNumber(1),
            version: VersionLabel::new("v1").expect("a label"),
            bundle: Digest::new("0".repeat(64)).expect("a digest"),
            bundle_size: 0,
            platform: Platform::Auto,
            settings: OptionSettings::default(),
            brought: OptionSettings::default(),
            reason: "deploy".to_owned(),
            release_command: None,
            container_commands: Default::default(),
            site: None,
            outcome: None,
            live_at: None,
            ill: None,
            created_at: Timestamp::EPOCH,
        }
    }

    /// What a host says that has nothing.
    pub(crate) fn reported() -> HostReport {
        HostReport {
            edge: None,
            sequence: 1,
            agent_version: String::new(),
            agent_digest: None,
            agent: None,
            owner: None,
            now: Timestamp::EPOCH,
            generation: Generation(0),
            facts: HostFacts::default(),
            releases: Vec::new(),
            instances: Vec::new(),
        }
    }

    /// What a host says whose preparation of the release failed when `asked_by` waited for it.
    fn failed(asked_by: Option<&OperationId>) -> HostReport {
        HostReport {
            releases: vec![ReleaseReport {
                key: ReleaseKey {
                    environment: EnvironmentId::from_bits(1),
                    number: ReleaseNumber(1),
                },
                phase: ReleasePhase::Failed(Failure {
                    code: "build-failed".to_owned(),
                    message: "The registry said 503.".to_owned(),
                    log: Vec::new(),
                }),
                bundle: Digest::new("0".repeat(64)).expect("a digest"),
                bundle_have: 0,
                since: Timestamp::EPOCH,
                asked_by: asked_by.cloned(),
                again_at: Some(Timestamp::from_millis(600_000)),
                has_release_command: false,
                ran_container_commands: true,
                set_up: true,
                once: None,
            }],
            ..reported()
        }
    }

    #[test]
    fn an_operation_asks_for_what_failed_before_and_takes_no_answer_but_its_own() {
        let store = Store::in_memory();
        let id = HostId::from_bits(1);
        let now = Timestamp::from_millis(1);
        let mut environment = environment();
        let plan = Plan {
            stages: vec![Stage::Prepare {
                release: ReleaseNumber(1),
                tree: ReleaseNumber(1),
                hosts: vec![id.clone()],
                commands: Vec::new(),
            }],
            timeouts: Timeouts {
                prepare_ms: 600_000,
                ..Timeouts::default()
            },
            ..Plan::default()
        };
        let mut observed = Observed::default();
        let call = Call {
            request_id: RequestId::from_bits(1),
            now,
            bits: 1,
            observed: &Observed::default(),
        };
        store
            .update(|tx| {
                tx.put(&host(&id))?;
                tx.put(&release(&environment))?;
                NewOperation::new(OperationKind::Rollback, plan).write(tx, &mut environment, &call)
            })
            .expect("memory");
        let operation = environment.operation.clone();
        let engine = Engine::new(store, EngineConfig::default());
        let running = |observed: &Observed| {
            engine.turn(observed, now, &mut || 1).expect("a turn");
            let key = EnvironmentRecord::key_of(&environment.id);
            let stored: Option<EnvironmentRecord> = engine.store.get(&key).expect("memory");
            stored.expect("it is there").operation
        };
        observed.host_report(&id, failed(None), now);
        assert_eq!(
            running(&observed),
            operation,
            "it waits for its own attempt"
        );
        let orders = engine.host_orders(&id).expect("orders");
        assert_eq!(orders.releases[0].asked_by, operation);
        observed.host_report(&id, failed(operation.as_ref()), now);
        assert_eq!(running(&observed), None, "its own attempt failed");
    }

    #[test]
    fn a_release_command_is_ordered_from_one_agent_and_only_while_it_is_waited_for() {
        let store = Store::in_memory();
        let id = HostId::from_bits(1);
        let now = Timestamp::from_millis(1);
        let mut environment = environment();
        let plan = Plan {
            stages: vec![Stage::Once {
                release: ReleaseNumber(1),
                tree: ReleaseNumber(1),
                host: id.clone(),
                command: "the release command `./migrate`".to_owned(),
            }],
            timeouts: Timeouts {
                prepare_ms: 600_000,
                ..Timeouts::default()
            },
            ..Plan::default()
        };
        let call = Call {
            request_id: RequestId::from_bits(1),
            now,
            bits: 1,
            observed: &Observed::default(),
        };
        store
            .update(|tx| {
                tx.put(&host(&id))?;
                tx.put(&InstanceRecord {
                    id: InstanceId::from_bits(1),
                    environment: environment.id.clone(),
                    host: id.clone(),
                    port: 20_000,
                    ports: BTreeMap::new(),
                    release: ReleaseNumber(1),
                    incarnation: Incarnation(1),
                    run: true,
                    mode: None,
                    withdrawn: false,
                    routed: None,
                    ordered: None,
                    told: None,
                    created_at: now,
                })?;
                tx.put(&release(&environment))?;
                NewOperation::new(OperationKind::Deploy, plan).write(tx, &mut environment, &call)
            })
            .expect("memory");
        let operation = environment.operation.clone().expect("it runs");
        let engine = Engine::new(store, EngineConfig::default());
        let mut observed = Observed::default();
        let mut ordered_after = |report: HostReport| {
            observed.host_report(&id, report, now);
            engine.turn(&observed, now, &mut || 1).expect("a turn");
            let orders = engine.host_orders(&id).expect("orders");
            orders.releases[0].run_once.clone()
        };
        let mut report = failed(None);
        report.agent = Some(AgentId::from_bits(1));
        report.releases[0].phase = ReleasePhase::Ready;
        report.releases[0].has_release_command = true;
        let order = OnceOrder {
            operation: operation.clone(),
            agent: AgentId::from_bits(1),
        };
        assert_eq!(ordered_after(report.clone()), Some(order.clone()));
        report.sequence = 2;
        report.releases[0].once = Some(OnceReport {
            operation: operation.clone(),
            phase: OncePhase::Running,
            since: now,
        });
        assert_eq!(ordered_after(report.clone()), Some(order));
        report.sequence = 3;
        report.releases[0].once = Some(OnceReport {
            operation,
            phase: OncePhase::Succeeded { log: Vec::new() },
            since: now,
        });
        assert_eq!(ordered_after(report), None, "it has succeeded");
    }

    #[test]
    fn options_say_who_gets_the_next_request() {
        let store = Store::in_memory();
        let mut environment = EnvironmentRecord {
            tier: Tier::Web,
            cname: Some(Cname::new("shop-prod").expect("a name")),
            ..environment()
        };
        for (namespace, name, value) in [
            (PROXY, "Algorithm", "consistent-hash"),
            (PROXY, "HashBy", "cookie:sid"),
            (PROXY, "SlowStart", "30"),
            (PROCESS, "StickinessEnabled", "true"),
        ] {
            environment.settings.set(namespace, name, value);
        }
        environment.settings.validate().expect("they are known");
        store.update(|tx| tx.put(&environment)).expect("memory");
        let engine = Engine::new(store, EngineConfig::default());
        let now = Timestamp::from_millis(1);
        let turn = engine.turn(&Observed::default(), now, &mut || 1);
        turn.expect("a turn");
        let table = engine.routing_table().expect("a table");
        let pool = &table.pools[0];
        assert_eq!(pool.algorithm, Algorithm::ConsistentHash);
        let wanted = PoolRules {
            hash_by: HashBy::Cookie("sid".to_owned()),
            sticky: Some(Stickiness::Cookie { lasts_s: 86_400 }),
            outliers: None,
            slow_start_ms: 30_000,
        };
        assert_eq!(pool.rules, wanted);
        assert_eq!(table.routes[0].sticky, None, "there is one side");
    }

    /// What load balancers are told of static files, pool by pool: release, `coming` or not.
    fn told_of_files(engine: &Engine) -> Vec<Vec<(u64, bool)>> {
        let now = Timestamp::from_millis(1);
        let turn = engine.turn(&Observed::default(), now, &mut || 1);
        turn.expect("a turn");
        let table = engine.routing_table().expect("a table");
        let pools = table.pools.iter().map(|pool| {
            let files = pool.content.static_files.iter();
            files.map(|one| (one.release.0, one.coming)).collect()
        });
        pools.collect()
    }

    #[test]
    fn static_files_are_told_of_releases_in_service_and_of_those_that_come() {
        let store = Store::in_memory();
        let id = HostId::from_bits(1);
        let environment = EnvironmentRecord {
            tier: Tier::Web,
            cname: Some(Cname::new("shop-prod").expect("a name")),
            live: Some(ReleaseNumber(1)),
            ..environment()
        };
        let put = |tx: &mut Tx<'_>, number: u64, mode: TargetMode| {
            let mut settings = OptionSettings::default();
            settings.set(STATIC_FILES, "/assets", "static");
            let bundle = Digest::of(&number.to_be_bytes());
            tx.put(&ReleaseRecord {
                number: ReleaseNumber(number),
                bundle,
                settings,
                ..release(&environment)
            })?;
            tx.put(&InstanceRecord {
                ports: BTreeMap::new(),
                id: InstanceId::from_bits(u128::from(number)),
                environment: environment.id.clone(),
                host: id.clone(),
                port: 20_000,
                release: ReleaseNumber(number),
                incarnation: Incarnation(1),
                run: true,
                mode: Some(mode),
                withdrawn: false,
                routed: None,
                ordered: None,
                told: None,
                created_at: Timestamp::EPOCH,
            })
        };
        store
            .update(|tx| {
                tx.put(&host(&id))?;
                tx.put(&environment)?;
                put(tx, 1, TargetMode::Serve)?;
                put(tx, 2, TargetMode::Probe)
            })
            .expect("memory");
        let engine = Engine::new(store, EngineConfig::default());
        assert_eq!(told_of_files(&engine), [[(1, false), (2, true)]]);
        let both = engine.store.update(|tx| put(tx, 2, TargetMode::Serve));
        both.expect("memory");
        assert_eq!(told_of_files(&engine), [[(2, false), (1, false)]]);
        let split = engine.store.update(|tx| {
            tx.put(&EnvironmentRecord {
                split: Some(SplitRecord {
                    release: ReleaseNumber(2),
                    percent: 10,
                }),
                ..environment.clone()
            })
        });
        split.expect("memory");
        let sides = [[(1, false), (2, false)], [(2, false), (1, false)]];
        assert_eq!(told_of_files(&engine), sides, "each side its own first");
        let gone = engine.store.update(|tx| {
            put(tx, 2, TargetMode::Drain)?;
            tx.put(&EnvironmentRecord {
                live: Some(ReleaseNumber(2)),
                ..environment.clone()
            })?;
            let key = InstanceRecord::key_of(&environment.id, &InstanceId::from_bits(1));
            tx.delete::<InstanceRecord>(&key)
        });
        gone.expect("memory");
        assert_eq!(told_of_files(&engine), [[(2, false)]]);
    }

    #[test]
    fn orders_that_a_host_has_with_other_content_are_stepped_over_once() {
        let store = Store::in_memory();
        let id = HostId::from_bits(1);
        store.update(|tx| tx.put(&host(&id))).expect("memory");
        let controller = ControllerIdentity {
            id: ControllerId::from_bits(1),
            name: "here".to_owned(),
        };
        let engine = Engine::new(
            store,
            EngineConfig {
                controller: Some(controller.clone()),
                ..EngineConfig::default()
            },
        );
        let mut observed = Observed::default();
        let turn = |observed: &Observed| {
            engine
                .turn(observed, Timestamp::from_millis(1), &mut || 1)
                .expect("a turn");
            engine.host_orders(&id).expect("orders")
        };
        let first = turn(&observed);
        assert_eq!(first.controller, Some(controller));
        assert_eq!(turn(&observed).generation, first.generation);
        observed.generation_reused(&id, first.generation);
        let second = turn(&observed);
        assert!(second.generation > first.generation);
        assert_eq!(turn(&observed).generation, second.generation);
    }

    #[test]
    fn orders_have_the_load_balancer_of_their_host_and_the_domain_of_the_controller() {
        let store = Store::in_memory();
        let id = HostId::from_bits(1);
        let edge = EdgeOrders {
            http: vec!["0.0.0.0:80".parse().expect("an address")],
            ..EdgeOrders::default()
        };
        let put = |edge: Option<EdgeOrders>| {
            let host = HostRecord { edge, ..host(&id) };
            store.update(|tx| tx.put(&host)).expect("memory");
        };
        let engine = Engine::new(store.clone(), EngineConfig::default());
        let orders = || {
            let mut bits = || 1;
            engine
                .turn(&Observed::default(), Timestamp::EPOCH, &mut bits)
                .expect("a turn");
            engine.host_orders(&id).expect("orders")
        };
        put(Some(edge.clone()));
        let first = orders();
        let ordered = first.edge.expect("a load balancer");
        assert_eq!(ordered.domain, EngineConfig::default().domain);
        assert_eq!((ordered.http, ordered.restart), (edge.http.clone(), 0));
        assert_eq!(orders().generation, first.generation, "nothing has changed");
        put(Some(EdgeOrders { restart: 1, ..edge }));
        let again = orders();
        assert!(again.generation > first.generation);
        put(None);
        let none = orders();
        assert!(none.edge.is_none() && none.generation > again.generation);
    }
}
