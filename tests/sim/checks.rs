//! The invariants, looked at after every turn.

use crate::host::{Behaviour, FakeHost};
use crate::proxy::FakeProxy;
use beanpole_engine::{Observed, with_lingering};
use beanpole_planner::{Progress, Reach, Stage};
use beanpole_protocol::agent::InstancePhase;
use beanpole_protocol::api::{EnvironmentStatus, OperationKind, OperationStatus, Tier};
use beanpole_protocol::options::DeploymentPolicy;
use beanpole_protocol::proxy::TargetMode;
use beanpole_protocol::{EnvironmentId, EventId, InstanceId, OperationId, Timestamp};
use beanpole_store::Store;
use beanpole_store::model::{
    EnvironmentRecord, EventIndexRecord, EventRecord, HostOrdersRecord, HostRecord, InstanceRecord,
    JournalRecord, LingererRecord, OperationRecord, ReleaseRecord, TableRecord,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Looks in a row, four a second, at an instance that lingers past its bound.
const MOST_OVERDUE: u32 = 40;
/// As the engine has it, in milliseconds.
const UNREACHABLE_AFTER_MS: u64 = 30_000;

#[derive(Default)]
pub struct Checks {
    /// How often in a row an instance that lingers was found past its bound.
    overdue: BTreeMap<InstanceId, u32>,
    /// Those that linger included.
    instances: BTreeMap<InstanceId, InstanceRecord>,
    lingering: BTreeMap<InstanceId, LingererRecord>,
    operations: BTreeMap<EnvironmentId, OperationRecord>,
    generations: BTreeMap<String, u64>,
    told: EventId,
    event_times: BTreeMap<EnvironmentId, (EventId, Timestamp)>,
    ended: BTreeMap<OperationId, bool>,
    /// What the world's time and the engine's were at the last turn, while something was under way.
    times: Option<(u64, Timestamp, BTreeSet<OperationId>)>,
    /// The controller was started again since.
    restarted: bool,
    /// Operations that were queued when they were last looked at.
    queued: BTreeSet<OperationId>,
}

fn lingering(store: &Store) -> BTreeMap<InstanceId, LingererRecord> {
    let lingering = store.list::<LingererRecord>().expect("memory");
    lingering
        .into_iter()
        .map(|record| (record.instance.id.clone(), record))
        .collect()
}

/// Every instance, those that linger included.
fn instances(store: &Store) -> BTreeMap<InstanceId, InstanceRecord> {
    with_lingering(store)
        .expect("memory")
        .into_iter()
        .map(|record| (record.id.clone(), record))
        .collect()
}

impl Checks {
    pub fn before(&mut self, store: &Store) {
        self.instances = instances(store);
        self.lingering = lingering(store);
        self.operations = store
            .list::<EnvironmentRecord>()
            .expect("memory")
            .into_iter()
            .filter_map(|environment| environment.operation)
            .filter_map(|id| {
                store
                    .get::<OperationRecord>(&OperationRecord::key_of(&id))
                    .expect("memory")
            })
            .map(|operation| (operation.environment.clone(), operation))
            .collect();
    }

    pub fn after(
        &mut self,
        store: &Store,
        hosts: &[FakeHost],
        proxies: &[FakeProxy],
        observed: &Observed,
        at: Timestamp,
    ) -> Result<(), String> {
        let now = instances(store);
        // What nobody hears of for long may go on by its last table, and is not waited for.
        let left_out = observed.left_out(at, UNREACHABLE_AFTER_MS);
        let proxies: Vec<&FakeProxy> = proxies
            .iter()
            .filter(|proxy| !left_out.contains(&proxy.name))
            .collect();
        let proxies = proxies.as_slice();
        let environments: BTreeMap<EnvironmentId, EnvironmentRecord> = store
            .list::<EnvironmentRecord>()
            .expect("memory")
            .into_iter()
            .map(|record| (record.id.clone(), record))
            .collect();
        self.never_stopped_while_routed(store, &now, hosts, proxies, &environments)?;
        self.no_traffic_before_healthy(store, &now, hosts, proxies, observed, &environments, at)?;
        self.capacity_never_below_floor(store, &now, observed, &environments, at)?;
        self.generations_only_rise(store)?;
        self.events_are_in_order(store, &environments)?;
        let mut own = now.clone();
        own.retain(|id, _| !lingering(store).contains_key(id));
        self.operations_end_with_one_version(store, &own, &environments, observed)?;
        self.what_lingers_gets_nothing_and_ends(store, at)?;
        nothing_outlives_its_environment(store, &now, &environments)?;
        self.what_runs_on_is_told(store, &now, hosts)?;
        operations_end_in_time(store, &environments, at)?;
        self.what_is_queued_waits_for_its_turn(store, &environments)?;
        splits_are_whole(store, &environments)?;
        self.what_is_worse_is_not_live(store)?;
        release_commands_run_once_and_first(store, &now, hosts)?;
        Ok(())
    }

    /// What is queued is the next operation of its environment, until it begins or ends.
    fn what_is_queued_waits_for_its_turn(
        &mut self,
        store: &Store,
        environments: &BTreeMap<EnvironmentId, EnvironmentRecord>,
    ) -> Result<(), String> {
        let next = environments.values().filter_map(|env| env.next.clone());
        self.queued.extend(next);
        for id in std::mem::take(&mut self.queued) {
            let key = OperationRecord::key_of(&id);
            let Some(operation) = store.get::<OperationRecord>(&key).expect("memory") else {
                return Err(format!("{id} was queued and is lost"));
            };
            let environment = &environments[&operation.environment];
            let waits = operation.status == OperationStatus::Queued;
            if waits != (environment.next.as_ref() == Some(&id))
                || waits != operation.wish.is_some()
            {
                return Err(format!("{id} is {} out of turn", operation.status));
            }
            if waits && environment.operation.as_ref() == Some(&id) {
                return Err(format!("{id} is queued behind itself"));
            }
            if waits {
                self.queued.insert(id);
            }
        }
        Ok(())
    }

    /// A release that the guard could see to be worse goes live only when somebody says so.
    fn what_is_worse_is_not_live(&self, store: &Store) -> Result<(), String> {
        for before in self.operations.values() {
            let key = OperationRecord::key_of(&before.id);
            let Some(operation) = store.get::<OperationRecord>(&key).expect("memory") else {
                continue;
            };
            let worse = operation
                .version
                .as_ref()
                .is_some_and(|version| Behaviour::of(version.as_str()) == Behaviour::Worse);
            let seen = &operation.guard.evidence.total;
            if worse
                && operation.status == OperationStatus::Succeeded
                && operation.promoted_by.is_none()
                && seen.new.requests >= 100
                && seen.old.errors == 0
            {
                return Err(format!(
                    "{} went live with {} of {} requests failed",
                    operation.id, seen.new.errors, seen.new.requests
                ));
            }
        }
        Ok(())
    }

    /// A controller that was started again looked away for a moment.
    pub fn restarted(&mut self) {
        self.restarted = true;
    }

    /// While something is under way, the engine's time goes on as the world's, whatever is done to the
    /// controller's clock: no deadline comes early or late by it.
    pub fn time_is_steady(&mut self, world: u64, at: Timestamp) -> Result<(), String> {
        let restarted = std::mem::take(&mut self.restarted);
        let under_way: BTreeSet<OperationId> = self
            .operations
            .values()
            .map(|operation| operation.id.clone())
            .collect();
        let last = self.times.replace((world, at, under_way.clone()));
        // Between one operation and the next, the machine's clock may have been taken over.
        let Some((then, before, _)) = last.filter(|(.., ids)| !ids.is_disjoint(&under_way)) else {
            return Ok(());
        };
        let due = before.after(Duration::from_millis(world - then));
        let off = due.since(at).max(at.since(due));
        // It does not know the moments since it last recorded its time, and counts some for the restart.
        // Two seconds are drift, which is taken over at any time.
        let most = Duration::from_secs(if restarted { 20 } else { 2 });
        if off > most {
            return Err(format!(
                "the time of what is under way went from {before} to {at} in {} ms",
                world - then
            ));
        }
        Ok(())
    }

    /// The operation that acted on an environment in this turn, as it is now.
    fn acting(&self, store: &Store, environment: &EnvironmentId) -> Option<OperationRecord> {
        let id = self
            .operations
            .get(environment)
            .map(|operation| operation.id.clone())
            .or_else(|| {
                let key = EnvironmentRecord::key_of(environment);
                store
                    .get::<EnvironmentRecord>(&key)
                    .expect("memory")?
                    .operation
            })?;
        store.get(&OperationRecord::key_of(&id)).expect("memory")
    }

    /// An incarnation ends by our doing only when no proxy would give it a request.
    fn never_stopped_while_routed(
        &self,
        store: &Store,
        now: &BTreeMap<InstanceId, InstanceRecord>,
        hosts: &[FakeHost],
        proxies: &[&FakeProxy],
        environments: &BTreeMap<EnvironmentId, EnvironmentRecord>,
    ) -> Result<(), String> {
        for (id, old) in &self.instances {
            let ended = now
                .get(id)
                .is_none_or(|new| new.incarnation != old.incarnation || (old.run && !new.run));
            // What is to be stopped already is gone now.
            if !ended || !old.run || environments[&old.environment].tier == Tier::Worker {
                continue;
            }
            // What does not run is not stopped: its host was removed, or its port is another's.
            let host = hosts.iter().find(|host| host.id == old.host);
            let fake = host.and_then(|host| host.instances.get(id));
            if fake.is_none_or(|fake| matches!(fake.phase, InstancePhase::Failed(_))) {
                continue;
            }
            let operation = self.acting(store, &old.environment);
            let excused = operation.as_ref().is_some_and(|operation| {
                let (plan, _) = operation.under_way();
                operation.kind == OperationKind::Terminate
                    || plan.policy == Some(DeploymentPolicy::AllAtOnce)
            });
            if excused {
                continue;
            }
            for proxy in proxies {
                if proxy.mode(id, old.incarnation) == Some(TargetMode::Serve) {
                    return Err(format!(
                        "{id} was stopped or switched while {} sends it requests ({:?})",
                        proxy.name,
                        operation.map(|operation| operation.kind)
                    ));
                }
            }
        }
        Ok(())
    }

    /// An instance that is forgotten while it runs on is named by the operation that gave it up.
    fn what_runs_on_is_told(
        &self,
        store: &Store,
        now: &BTreeMap<InstanceId, InstanceRecord>,
        hosts: &[FakeHost],
    ) -> Result<(), String> {
        for (id, old) in &self.instances {
            let host = hosts.iter().find(|host| host.id == old.host);
            let runs = host
                .and_then(|host| host.instances.get(id))
                .is_some_and(|fake| {
                    matches!(
                        fake.phase,
                        InstancePhase::Running | InstancePhase::Restarting
                    )
                });
            if now.contains_key(id) || !runs {
                continue;
            }
            if self.lingering.contains_key(id) {
                let events = store.list::<EventRecord>().expect("memory");
                let told = |event: &EventRecord| {
                    event.0.instance.as_ref() == Some(id)
                        && matches!(event.0.code.as_str(), "instance-left" | "lingering-ended")
                };
                if !events.iter().any(told) {
                    return Err(format!("{id} lingers no more, and nobody is told"));
                }
                continue;
            }
            let operation = self.acting(store, &old.environment);
            if operation.is_none_or(|operation| {
                !operation.leftovers.iter().any(|left| left.instance == *id)
            }) {
                return Err(format!("{id} is forgotten and runs on, and nobody is told"));
            }
        }
        Ok(())
    }

    /// An instance that lingers never comes back, gets nothing new, and ends by its limit.
    fn what_lingers_gets_nothing_and_ends(
        &mut self,
        store: &Store,
        at: Timestamp,
    ) -> Result<(), String> {
        let own = store.list::<InstanceRecord>().expect("memory");
        if let Some(back) = own.iter().find(|one| self.lingering.contains_key(&one.id)) {
            return Err(format!("{} lingered and is back", back.id));
        }
        for (id, record) in lingering(store) {
            let gets = matches!(
                record.instance.mode,
                Some(TargetMode::Serve | TargetMode::Probe)
            );
            if gets || own.iter().any(|one| one.id == id) {
                return Err(format!("{id} lingers and may get requests"));
            }
            // From the order to stop, its grace period and a minute.
            let bound = match record.stopping_since {
                Some(since) => since.after(Duration::from_secs(75)),
                None => record.until.after(Duration::from_secs(5)),
            };
            // A controller that starts with nothing under way takes the machine's clock as it is, and needs a
            // turn to see what that means.
            let looks = self.overdue.entry(id.clone()).or_default();
            *looks = if at > bound { *looks + 1 } else { 0 };
            if *looks > MOST_OVERDUE {
                return Err(format!("{id} lingers for too long: {record:?}"));
            }
        }
        Ok(())
    }

    /// Nothing is put into service but what really was found well.
    #[expect(clippy::too_many_arguments, reason = "all that there is to look at")]
    fn no_traffic_before_healthy(
        &self,
        store: &Store,
        now: &BTreeMap<InstanceId, InstanceRecord>,
        hosts: &[FakeHost],
        proxies: &[&FakeProxy],
        observed: &Observed,
        environments: &BTreeMap<EnvironmentId, EnvironmentRecord>,
        at: Timestamp,
    ) -> Result<(), String> {
        for (id, new) in now {
            let served = self.instances.get(id).is_some_and(|old| {
                matches!(old.mode, Some(TargetMode::Serve | TargetMode::Drain))
                    && old.incarnation == new.incarnation
            });
            if new.mode != Some(TargetMode::Serve) || served {
                continue;
            }
            let release: ReleaseRecord = store
                .get(&ReleaseRecord::key_of(&new.environment, new.release))
                .expect("memory")
                .ok_or_else(|| format!("{id} has no release"))?;
            let behaviour = Behaviour::of(release.version.as_str());
            let worker = environments[&new.environment].tier == Tier::Worker;
            let tier = environments[&new.environment].tier;
            // Where nothing else serves, one that does not stay up is watched in service.
            let is_alone = || {
                let mut others = self.instances.values();
                others.all(|other| {
                    other.environment != new.environment
                        || other.release == new.release
                        || other.mode != Some(TargetMode::Serve)
                        || !is_well(other, observed, at)
                })
            };
            let flaps = matches!(behaviour, Behaviour::Flaps(_));
            if !(behaviour.may_start(tier) || flaps && is_alone()) {
                return Err(format!("{id} is put into service with {}", release.version));
            }
            let host = hosts.iter().find(|host| host.id == new.host);
            // Reports are late: a machine may have lost its power since, and its disk. But what it last
            // ran must have been this.
            if host.is_some_and(|host| !host.up && host.instances.is_empty()) {
                continue;
            }
            let fake = host.and_then(|host| host.instances.get(id));
            if fake.is_none_or(|fake| {
                fake.ran != new.incarnation || fake.release != Some(release.tree)
            }) {
                return Err(format!(
                    "{id} is put into service and never ran {}",
                    new.incarnation
                ));
            }
            if fake.is_some_and(|fake| fake.readied != new.incarnation) {
                return Err(format!("{id} is put into service and never was ready"));
            }
            if !worker
                && proxies
                    .iter()
                    .any(|proxy| proxy.mode(id, new.incarnation).is_none())
            {
                return Err(format!("{id} is put into service unchecked"));
            }
        }
        Ok(())
    }

    /// What serves and is well by everything that is known stays at or above the floor.
    fn capacity_never_below_floor(
        &self,
        store: &Store,
        now: &BTreeMap<InstanceId, InstanceRecord>,
        observed: &Observed,
        environments: &BTreeMap<EnvironmentId, EnvironmentRecord>,
        at: Timestamp,
    ) -> Result<(), String> {
        for (id, environment) in environments {
            if environment.tier == Tier::Worker {
                continue;
            }
            let well = |record: &InstanceRecord| is_well(record, observed, at);
            let serves = |record: &&InstanceRecord| {
                record.environment == *id && record.mode == Some(TargetMode::Serve) && well(record)
            };
            let taken: Vec<&InstanceRecord> = self
                .instances
                .values()
                .filter(serves)
                // An instance of a host that was removed is lost already.
                .filter(|old| {
                    let key = HostRecord::key_of(&old.host);
                    store.get::<HostRecord>(&key).expect("memory").is_some()
                })
                .filter(|old| {
                    now.get(&old.id)
                        .is_none_or(|new| new.mode != Some(TargetMode::Serve))
                })
                .collect();
            if taken.is_empty() {
                continue;
            }
            let Some(operation) = self.acting(store, id) else {
                return Err(format!(
                    "{}: taken out without an operation",
                    environment.name
                ));
            };
            if operation.kind == OperationKind::Terminate {
                continue;
            }
            // A release that failed its trial, and is left for a look, gets no requests.
            if operation.status == OperationStatus::Failed && operation.no_auto_rollback {
                continue;
            }
            let (plan, _) = operation.under_way();
            // Taking down what was new on the way there waits for others, but not for ever.
            let forced = self.operations.get(id).is_some_and(|before| {
                let (plan, progress) = before.under_way();
                let stage = plan.stages.get(progress.stage);
                matches!(stage, Some(Stage::Batch(batch)) if batch.force)
                    && progress
                        .since
                        .is_some_and(|since| at.since(since).as_secs() >= 60)
            });
            if forced {
                continue;
            }
            let left = now.values().filter(serves).count();
            // On the way back, what is lost with its host does not count.
            let is_lost = |record: &&InstanceRecord| {
                let key = HostRecord::key_of(&record.host);
                let reach = observed.reach(&record.host, at, UNREACHABLE_AFTER_MS);
                record.environment == *id
                    && record.mode == Some(TargetMode::Serve)
                    && !well(record)
                    && plan
                        .changes()
                        .all(|(_, change)| change.instance != record.id)
                    && (store.get::<HostRecord>(&key).expect("memory").is_none()
                        || matches!(reach, Reach::Lost(_) | Reach::Taken(_)))
            };
            let lost = now
                .values()
                .filter(is_lost)
                .filter(|_| plan.insists)
                .count();
            if left + lost < plan.floor as usize {
                return Err(format!(
                    "{}: {} took {} out of service and left {left} with {lost} lost, below the floor {}",
                    environment.name,
                    operation.kind,
                    taken.len(),
                    plan.floor
                ));
            }
            let count = operation.plan.changes().count() as u32;
            if operation.plan.policy == Some(DeploymentPolicy::Rolling)
                && operation.back.is_none()
                && count > 1
                && operation
                    .plan
                    .changes()
                    .all(|(_, change)| change.action.word() == "replace")
                && plan.floor == 0
                && plan.stages.len() > 2
            {
                return Err(format!("{}: a rolling plan has no floor", environment.name));
            }
        }
        Ok(())
    }

    fn generations_only_rise(&mut self, store: &Store) -> Result<(), String> {
        let mut seen: Vec<(String, u64)> = store
            .list::<HostOrdersRecord>()
            .expect("memory")
            .into_iter()
            .map(|record| (record.host.to_string(), record.orders.generation.0))
            .collect();
        for record in store.list::<TableRecord>().expect("memory") {
            seen.push(("table".to_owned(), record.table.generation.0));
        }
        for (what, generation) in seen {
            let before = self.generations.insert(what.clone(), generation);
            if before.is_some_and(|before| before > generation) {
                return Err(format!("the generation of {what} fell to {generation}"));
            }
        }
        Ok(())
    }

    fn events_are_in_order(
        &mut self,
        store: &Store,
        environments: &BTreeMap<EnvironmentId, EnvironmentRecord>,
    ) -> Result<(), String> {
        for id in environments.keys() {
            let (last, mut at) = self
                .event_times
                .get(id)
                .copied()
                .unwrap_or((EventId(0), Timestamp::EPOCH));
            let mut newest = last;
            let after = EventIndexRecord::key_of(id, last);
            for index in store
                .page::<EventIndexRecord>(&EventIndexRecord::prefix(id), Some(&after), 10_000)
                .expect("memory")
            {
                let event: EventRecord = store
                    .get(&EventRecord::key_of(index.event))
                    .expect("memory")
                    .ok_or("an event is missing")?;
                if event.0.at <= at {
                    return Err(format!("event times do not rise: {}", event.0.message));
                }
                if event.0.request_id.is_none() && event.0.operation.is_some() {
                    return Err(format!("an event has no request id: {}", event.0.message));
                }
                at = event.0.at;
                newest = index.event;
            }
            self.event_times.insert(id.clone(), (newest, at));
        }
        Ok(())
    }

    /// An operation that ended well left one version; its journal gives its progress again.
    fn operations_end_with_one_version(
        &mut self,
        store: &Store,
        now: &BTreeMap<InstanceId, InstanceRecord>,
        environments: &BTreeMap<EnvironmentId, EnvironmentRecord>,
        observed: &Observed,
    ) -> Result<(), String> {
        for old in self.operations.values() {
            let Some(operation) = store
                .get::<OperationRecord>(&OperationRecord::key_of(&old.id))
                .expect("memory")
            else {
                continue;
            };
            if !operation.status.is_over()
                || self.ended.insert(operation.id.clone(), true).is_some()
            {
                continue;
            }
            let mut folded = [Progress::default(), Progress::default()];
            for entry in store
                .list_prefix::<JournalRecord>(&JournalRecord::prefix(&operation.id))
                .expect("memory")
            {
                let which = usize::from(entry.back);
                folded[which] =
                    beanpole_planner::apply(folded[which].clone(), entry.at, &entry.entry)
                        .map_err(|error| error.to_string())?;
            }
            if folded[0] != operation.progress || folded[1] != operation.back_progress {
                return Err(format!(
                    "the journal of {} tells another story",
                    operation.id
                ));
            }
            if let Some(what) = receipt_tells_another_story(&operation) {
                return Err(format!("the receipt of {} {what}", operation.id));
            }
            let wanted = match (operation.kind, operation.status) {
                (
                    OperationKind::Deploy
                    | OperationKind::Rollback
                    | OperationKind::Create
                    | OperationKind::Configure,
                    OperationStatus::Succeeded,
                ) => operation.to,
                (_, OperationStatus::RolledBack) => operation.from,
                _ => continue,
            };
            // Settings that need no restart leave what runs as it is.
            if operation.to == operation.from {
                continue;
            }
            let Some(wanted) = wanted else { continue };
            let release: Option<ReleaseRecord> = store
                .get(&ReleaseRecord::key_of(&operation.environment, wanted))
                .expect("memory");
            let tier = environments[&operation.environment].tier;
            if let Some(release) = release
                && operation.status == OperationStatus::Succeeded
                && operation
                    .plan
                    .changes()
                    .any(|(_, change)| change.action.word() != "remove")
                && !Behaviour::of(release.version.as_str()).may_start(tier)
            {
                return Err(format!(
                    "{} succeeded with {}, which does not stay up",
                    operation.kind, release.version
                ));
            }
            if environments[&operation.environment].live != Some(wanted) {
                return Err(format!("{} ended and is not live", operation.id));
            }
            for instance in now
                .values()
                .filter(|i| i.environment == operation.environment)
            {
                let skipped = operation
                    .ways()
                    .any(|plan| plan.skipped.iter().any(|one| one.instance == instance.id));
                let heard = observed
                    .hosts
                    .get(&instance.host)
                    .and_then(|host| host.last_seen);
                let silent = heard.is_none_or(|seen| {
                    operation
                        .finished_at
                        .is_some_and(|end| end.since(seen).as_secs() >= 5)
                });
                // Going back undoes what this operation did, not what an earlier one left.
                let touched = operation.status == OperationStatus::Succeeded
                    || operation.progress.changes.contains_key(&instance.id);
                if instance.release != wanted && touched && !skipped && !silent {
                    return Err(format!(
                        "{} {} ended on release {wanted}, {} is on {}",
                        operation.kind, operation.status, instance.id, instance.release
                    ));
                }
            }
        }
        Ok(())
    }

    /// Events since the last call, for people.
    pub fn news(&mut self, store: &Store) -> Vec<String> {
        let after = EventRecord::key_of(self.told);
        store
            .page::<EventRecord>(b"", Some(&after), 10_000)
            .expect("memory")
            .into_iter()
            .map(|event| {
                self.told = event.0.id;
                format!(
                    "{} {}",
                    event
                        .0
                        .environment_name
                        .map_or_else(String::new, String::from),
                    event.0.message
                )
            })
            .collect()
    }
}

/// A terminated environment has no instance.
fn nothing_outlives_its_environment(
    store: &Store,
    now: &BTreeMap<InstanceId, InstanceRecord>,
    environments: &BTreeMap<EnvironmentId, EnvironmentRecord>,
) -> Result<(), String> {
    for (id, record) in now {
        let environment = &environments[&record.environment];
        if environment.status == EnvironmentStatus::Terminated {
            return Err(format!("{id} outlived {}", environment.name));
        }
        let release = ReleaseRecord::key_of(&record.environment, record.release);
        if store
            .get::<ReleaseRecord>(&release)
            .expect("memory")
            .is_none()
        {
            return Err(format!("{id} runs a release that was forgotten"));
        }
    }
    Ok(())
}

/// A release command is started once for its operation at most, and nothing of its version starts in an
/// environment before it has succeeded there.
fn release_commands_run_once_and_first(
    store: &Store,
    now: &BTreeMap<InstanceId, InstanceRecord>,
    hosts: &[FakeHost],
) -> Result<(), String> {
    let ran = || hosts.iter().flat_map(|host| &host.ran);
    let mut operations = BTreeSet::new();
    for one in ran() {
        if !operations.insert(&one.operation) {
            return Err(format!(
                "the release command of {} ran twice for {}",
                one.version, one.operation
            ));
        }
    }
    for (id, record) in now {
        let release: Option<ReleaseRecord> = store
            .get(&ReleaseRecord::key_of(&record.environment, record.release))
            .expect("memory");
        let runs_once = |one: &ReleaseRecord| {
            one.release_command.is_some() || !one.container_commands.leader.is_empty()
        };
        let Some(release) = release.filter(runs_once) else {
            continue;
        };
        let version = release.version.as_str();
        if !ran().any(|one| {
            one.succeeded && one.environment == record.environment && one.version == version
        }) {
            return Err(format!(
                "{id} runs {version}, whose release command has not succeeded"
            ));
        }
    }
    Ok(())
}

/// Every operation ends by the deadline that it was shown with.
fn operations_end_in_time(
    store: &Store,
    environments: &BTreeMap<EnvironmentId, EnvironmentRecord>,
    at: Timestamp,
) -> Result<(), String> {
    for id in environments
        .values()
        .filter_map(|env| env.operation.as_ref())
    {
        let key = OperationRecord::key_of(id);
        if let Some(operation) = store.get::<OperationRecord>(&key).expect("memory")
            && at > operation.deadline
        {
            return Err(format!(
                "{} of {} goes on {} s after its deadline",
                operation.kind,
                operation.environment_name,
                at.since(operation.deadline).as_secs()
            ));
        }
    }
    Ok(())
}

/// The table holds exactly the instances that shall be in it, as they shall be. Looked at after a
/// whole turn only: a controller that died may have decided and not derived.
pub fn the_table_says_what_the_records_say(
    store: &Store,
    observed: &Observed,
) -> Result<(), String> {
    let records = instances(store);
    let Some(table) = store
        .get::<TableRecord>(&TableRecord::the_key())
        .expect("memory")
    else {
        return Ok(());
    };
    for target in table.table.pools.iter().flat_map(|pool| &pool.targets) {
        let id = &target.instance;
        let Some(record) = records.get(id) else {
            return Err(format!("the table points to {id}, which is gone"));
        };
        let port = match target.process.as_str() {
            "" => Some(record.port),
            process => record.ports.get(process).copied(),
        };
        if target.incarnation != record.incarnation
            || record.target_mode() != Some(target.mode)
            || Some(target.address.port()) != port
        {
            return Err(format!("the table has {target:?} for {record:?}"));
        }
        if target.mode == TargetMode::Serve && !record.run {
            return Err(format!("the table points to {id}, which shall not run"));
        }
        let seen = observed
            .hosts
            .get(&record.host)
            .and_then(|host| host.report.as_ref())
            .and_then(|report| report.instances.iter().find(|seen| seen.id == *id))
            .filter(|seen| seen.incarnation == record.incarnation);
        if target.mode == TargetMode::Serve
            && seen.is_some_and(|seen| seen.phase == InstancePhase::Restarting)
        {
            return Err(format!("{id} gets requests while its process does not run"));
        }
    }
    Ok(())
}

/// Hosts hold what is recorded and nothing else; said once everything has come to rest.
pub fn left_over(store: &Store, hosts: &[FakeHost]) -> Option<String> {
    let records = instances(store);
    hosts.iter().find_map(|host| {
        let stray = host.instances.keys().find(|id| {
            !records
                .values()
                .any(|record| record.id == **id && record.host == host.id)
        });
        stray.map(|id| format!("{id} is left on {}", host.name))
    })
}

/// What is wrong with the receipt of an operation that is over, if anything is.
fn receipt_tells_another_story(operation: &OperationRecord) -> Option<String> {
    if operation.plan.stages.is_empty() && operation.back.is_none() {
        return None;
    }
    let Some(receipt) = &operation.receipt else {
        return Some("is missing".to_owned());
    };
    let spent: u64 = receipt.phases.iter().map(|of| of.ms).sum();
    if spent != receipt.took_ms {
        return Some(format!("tells of {spent} of {} ms", receipt.took_ms));
    }
    let mut all: BTreeSet<InstanceId> = BTreeSet::new();
    for plan in operation.ways() {
        all.extend(plan.changes().map(|(_, change)| change.instance.clone()));
    }
    let detours = operation.progress.detours.iter();
    let left_out = detours.flat_map(|detour| &detour.left_out);
    all.extend(left_out.map(|one| one.instance.clone()));
    let told = receipt.instances.iter().map(|one| one.instance.clone());
    let told: BTreeSet<InstanceId> = told.collect();
    if all != told {
        return Some("leaves instances out".to_owned());
    }
    let succeeded = operation.status == OperationStatus::Succeeded;
    let undone = |result: &str| matches!(result, "failed" | "unfinished" | "untouched");
    let mut results = receipt.instances.iter().map(|one| one.result.as_str());
    (succeeded && results.any(undone)).then(|| "tells of what was not done".to_owned())
}

/// A share belongs to an operation that splits; the table shares all requests, each side with its own
/// release.
fn splits_are_whole(
    store: &Store,
    environments: &BTreeMap<EnvironmentId, EnvironmentRecord>,
) -> Result<(), String> {
    for environment in environments.values() {
        if environment.split.is_some() && environment.operation.is_none() {
            return Err(format!("{} is split for nobody", environment.name));
        }
    }
    for record in store.list::<TableRecord>().expect("memory") {
        for route in &record.table.routes {
            let rules = route.rules.iter().map(|rule| &rule.pools);
            for pools in rules.chain([&route.pools]) {
                let sum: u32 = pools.iter().map(|pool| pool.weight).sum();
                if sum != if pools.len() == 1 { 1 } else { 100 } {
                    return Err(format!("{} shares {sum} of 100", route.host));
                }
            }
        }
        for pool in &record.table.pools {
            let Some((_, release)) = pool.name.split_once('@') else {
                continue;
            };
            if pool
                .targets
                .iter()
                .any(|target| target.release.to_string() != release)
            {
                return Err(format!("{} holds another release", pool.name));
            }
        }
    }
    Ok(())
}

/// Whether every load balancer finds an instance well, and its host does not say that it failed: another
/// program's good answers make nothing well.
fn is_well(record: &InstanceRecord, observed: &Observed, at: Timestamp) -> bool {
    let report = observed.hosts.get(&record.host);
    let report = report.and_then(|host| host.report.as_ref());
    let failed = report.is_some_and(|report| {
        let mut instances = report.instances.iter();
        instances.any(|seen| seen.id == record.id && matches!(seen.phase, InstancePhase::Failed(_)))
    });
    let mut proxies = observed.counting(at, UNREACHABLE_AFTER_MS);
    !failed
        && proxies.all(|(_, proxy)| {
            proxy.report.as_ref().is_some_and(|report| {
                report.targets.iter().any(|target| {
                    target.instance == record.id
                        && target.incarnation == record.incarnation
                        && target.healthy
                })
            })
        })
}
