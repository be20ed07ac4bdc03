//! How environments, instances, operations and releases look from outside: records joined with what
//! was last seen.

use crate::health::{colour, health, seen};
use crate::read::{self, Reader};
use crate::services::{content, existing, no_release};
use crate::sleep::wanted_size;
use crate::turn::decide;
use crate::{Engine, Fault, Observed, linger, network, traffic};
use beanpole_planner::guard::Sample;
use beanpole_planner::{Action, ChangeState, Decision, Stage, World};
use beanpole_protocol::api::{
    self, EnvironmentHealth, EnvironmentStatus, InstanceProgress, OperationStatus,
};
use beanpole_protocol::options::{OptionSettings, PROPERTIES};
use beanpole_protocol::problem::Problem;
use beanpole_protocol::{
    ApplicationName, EnvironmentId, EnvironmentName, HostId, HostName, InstanceId, OperationId,
    ReleaseNumber, Timestamp,
};
use beanpole_store::StoreError;
use beanpole_store::model::{
    DomainRecord, EnvironmentRecord, HostRecord, InstanceRecord, LingererRecord,
    OperationIndexRecord, OperationRecord, ReceiptRecord, ReleaseRecord,
};
use std::collections::BTreeMap;
use std::time::Duration;

impl Engine {
    /// An environment and how it is.
    pub fn environment(
        &self,
        name: &EnvironmentName,
        observed: &Observed,
        now: Timestamp,
    ) -> Result<api::Environment, Problem> {
        let view = || {
            let environment = existing(&self.store, name)?;
            self.view(&environment, observed, now)
        };
        view().map_err(Problem::from)
    }

    /// Every environment, by name.
    pub fn environments(
        &self,
        application: Option<&ApplicationName>,
        observed: &Observed,
        now: Timestamp,
    ) -> Result<Vec<api::Environment>, Problem> {
        let view = || {
            let mut views = Vec::new();
            for environment in self.store.all::<EnvironmentRecord>()? {
                if environment.status != EnvironmentStatus::Terminated
                    && application.is_none_or(|name| environment.application == *name)
                {
                    views.push(self.view(&environment, observed, now)?);
                }
            }
            views.sort_by(|a, b| a.name.cmp(&b.name));
            Ok::<_, Fault>(views)
        };
        view().map_err(Problem::from)
    }

    /// An environment's health in one answer.
    pub fn environment_health(
        &self,
        name: &EnvironmentName,
        observed: &Observed,
        now: Timestamp,
    ) -> Result<EnvironmentHealth, Problem> {
        let view = self.environment(name, observed, now)?;
        Ok(EnvironmentHealth {
            traffic: traffic::of_environment(&view.id, observed),
            environment: view.name,
            status: view.status,
            health: view.health,
            causes: view.causes,
            instances: view.instances,
        })
    }

    /// The id of the environment of that name.
    pub fn environment_id(&self, name: &EnvironmentName) -> Result<EnvironmentId, Problem> {
        Ok(existing(&self.store, name).map_err(Problem::from)?.id)
    }

    /// An environment's settings, with the values of its properties.
    pub fn settings(&self, name: &EnvironmentName) -> Result<OptionSettings, Problem> {
        Ok(existing(&self.store, name).map_err(Problem::from)?.settings)
    }

    /// An operation, how far it is and what it waits for.
    pub fn operation(
        &self,
        id: &OperationId,
        observed: &Observed,
        now: Timestamp,
    ) -> Result<api::Operation, Problem> {
        let view = || {
            let found: Option<OperationRecord> = self.store.one(&OperationRecord::key_of(id))?;
            let operation = found.ok_or_else(|| Problem::not_found("operation", id))?;
            self.view_operation(&operation, observed, now)
        };
        view().map_err(Problem::from)
    }

    /// An environment's operations, newest first.
    pub fn operations(
        &self,
        name: &EnvironmentName,
        limit: usize,
        observed: &Observed,
        now: Timestamp,
    ) -> Result<Vec<api::Operation>, Problem> {
        let view = || {
            let environment = existing(&self.store, name)?;
            let prefix = OperationIndexRecord::prefix(&environment.id);
            let mut views = Vec::new();
            let list = self.store.under::<OperationIndexRecord>(&prefix)?;
            for index in list.iter().rev().take(limit) {
                let key = OperationRecord::key_of(&index.operation);
                if let Some(operation) = self.store.one::<OperationRecord>(&key)? {
                    views.push(self.view_operation(&operation, observed, now)?);
                }
            }
            Ok::<_, Fault>(views)
        };
        view().map_err(Problem::from)
    }

    /// An environment's releases, newest first.
    pub fn releases(&self, name: &EnvironmentName) -> Result<Vec<api::Release>, Problem> {
        let view = || {
            let environment = existing(&self.store, name)?;
            let prefix = ReleaseRecord::prefix(&environment.id);
            let receipts: BTreeMap<_, _> = self
                .store
                .under::<ReceiptRecord>(&prefix)?
                .into_iter()
                .map(|kept| (kept.release, kept.deployment.receipt.summary()))
                .collect();
            let mut releases: Vec<api::Release> = self
                .store
                .under::<ReleaseRecord>(&prefix)?
                .into_iter()
                .map(|release| {
                    let receipt = receipts.get(&release.number).cloned();
                    view_release(&environment, release, receipt)
                })
                .collect();
            releases.reverse();
            Ok::<_, Fault>(releases)
        };
        view().map_err(Problem::from)
    }

    /// One release of an environment, and how it was deployed.
    pub fn release(
        &self,
        name: &EnvironmentName,
        number: ReleaseNumber,
    ) -> Result<api::ReleaseDetail, Problem> {
        let view = || {
            let environment = existing(&self.store, name)?;
            let release = read::release(&self.store, &environment.id, number)?
                .ok_or_else(|| no_release(number, name))?;
            let key = ReceiptRecord::key_of(&environment.id, number);
            let kept: Option<ReceiptRecord> = self.store.one(&key)?;
            let deployment = kept.map(|kept| kept.deployment);
            let receipt = deployment.as_ref().map(|one| one.receipt.summary());
            Ok::<_, Fault>(api::ReleaseDetail {
                release: view_release(&environment, release, receipt),
                deployment,
            })
        };
        view().map_err(Problem::from)
    }

    fn view(
        &self,
        environment: &EnvironmentRecord,
        observed: &Observed,
        now: Timestamp,
    ) -> Result<api::Environment, Fault> {
        let world = self.world(&self.store, environment, observed, now, false)?;
        let hosts: BTreeMap<HostId, HostRecord> = self
            .store
            .all::<HostRecord>()?
            .into_iter()
            .map(|host| (host.id.clone(), host))
            .collect();
        let releases: BTreeMap<_, _> = self
            .store
            .under::<ReleaseRecord>(&ReleaseRecord::prefix(&environment.id))?
            .into_iter()
            .map(|release| (release.number, release.version))
            .collect();
        let mut records = self
            .store
            .under::<InstanceRecord>(&InstanceRecord::prefix(&environment.id))?;
        records.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        let instances: Vec<api::Instance> = records
            .iter()
            .map(|record| {
                let address = hosts.get(&record.host).map(|host| &host.instance_address);
                let instance = view_instance(&world, environment, record, address, now);
                api::Instance {
                    version: instance
                        .release
                        .and_then(|release| releases.get(&release).cloned()),
                    ..instance
                }
            })
            .collect();
        let mut lingering = self
            .store
            .under::<LingererRecord>(&LingererRecord::prefix(&environment.id))?;
        lingering.sort_by(|a, b| (a.since, &a.instance.id).cmp(&(b.since, &b.instance.id)));
        let lingering: Vec<api::LingeringInstance> = lingering
            .into_iter()
            .map(|record| {
                let instance = &record.instance;
                let address = hosts.get(&instance.host).map(|host| &host.instance_address);
                api::LingeringInstance {
                    id: instance.id.clone(),
                    host: host_name(&world, &instance.host),
                    host_id: instance.host.clone(),
                    address: reached_at(address, instance),
                    release: instance.release,
                    version: releases.get(&instance.release).cloned(),
                    open: linger::open(instance, observed),
                    since: record.since,
                    until: record.until,
                    ending: record.stopping_since.is_some(),
                    operation: record.operation,
                }
            })
            .collect();
        let size = wanted_size(environment);
        let failed = self.failed(environment)?;
        let (mut colour, mut causes) = colour(environment, &instances, size, failed.as_ref());
        let listeners = network::view_listeners(environment, observed, &self.config.domain);
        network::worsen(&mut colour, &mut causes, &listeners);
        causes.extend(next_mending(environment, &instances, size, now));
        let left_out = observed.left_out(now, self.config.unreachable_after_ms);
        causes.extend(left_out.iter().map(|name| {
            format!("The load balancer {name} was not heard of for long: where it runs, it serves by an older table.")
        }));
        causes.extend(content::closed(environment));
        let operation = match &environment.operation {
            Some(id) => self
                .store
                .one::<OperationRecord>(&OperationRecord::key_of(id))?,
            None => None,
        };
        let queued = match &environment.next {
            Some(id) => self
                .store
                .one::<OperationRecord>(&OperationRecord::key_of(id))?,
            None => None,
        };
        Ok(api::Environment {
            id: environment.id.clone(),
            name: environment.name.clone(),
            application: environment.application.clone(),
            description: environment.description.clone(),
            tier: environment.tier,
            platform: environment.platform,
            cname: environment.cname.clone(),
            url: environment
                .cname
                .as_ref()
                .filter(|_| !environment.settings.is_network())
                .map(|cname| self.url_of(&format!("{cname}.{}", self.config.domain), "")),
            listeners,
            domains: self.view_domains(environment, observed, now),
            maintenance: content::view_maintenance(
                environment,
                self.is_routed(environment, observed, now),
            ),
            status: environment.status,
            health: colour,
            causes,
            release: environment.live,
            version: environment
                .live
                .and_then(|live| releases.get(&live).cloned()),
            failed,
            options_of_version: environment.brought.also_in(&environment.settings).names(),
            operation: operation
                .map(|operation| self.view_operation(&operation, observed, now))
                .transpose()?,
            queued: queued
                .map(|operation| self.view_operation(&operation, observed, now))
                .transpose()?,
            size,
            instances,
            lingering,
            created_at: environment.created_at,
            updated_at: environment.updated_at,
        })
    }

    /// Where a host is met.
    fn url_of(&self, host: &str, path: &str) -> String {
        let port = match self.config.http_port {
            None | Some(80) => String::new(),
            Some(port) => format!(":{port}"),
        };
        format!("http://{host}{port}{path}")
    }

    /// Whether every load balancer that is connected has an environment's routes as they are.
    pub(crate) fn is_routed(
        &self,
        environment: &EnvironmentRecord,
        observed: &Observed,
        now: Timestamp,
    ) -> bool {
        environment.routed.is_some_and(|routed| {
            let counting = observed.counting(now, self.config.unreachable_after_ms);
            let mut reports = counting.map(|(_, seen)| seen.report.as_ref());
            !observed.proxies.is_empty()
                && reports.all(|report| report.is_some_and(|report| report.generation >= routed))
        })
    }

    /// The domains of an environment.
    pub(crate) fn view_domains(
        &self,
        environment: &EnvironmentRecord,
        observed: &Observed,
        now: Timestamp,
    ) -> Vec<api::DomainView> {
        let in_force = self.is_routed(environment, observed, now);
        let records = environment.domains.iter();
        records
            .map(|DomainRecord { domain, since }| {
                let name = &domain.name;
                let exact = !environment.settings.is_network()
                    && !name.is_wildcard()
                    && !name.path().contains(['*', '?']);
                api::DomainView {
                    name: name.clone(),
                    redirect_to: domain.redirect_to.clone(),
                    only_https: domain.only_https,
                    url: exact.then(|| self.url_of(name.host(), name.path())),
                    in_force,
                    since: *since,
                }
            })
            .collect()
    }

    /// The last attempt at another release, when it did not succeed.
    fn failed(
        &self,
        environment: &EnvironmentRecord,
    ) -> Result<Option<api::FailedRelease>, StoreError> {
        let prefix = OperationIndexRecord::prefix(&environment.id);
        for index in self
            .store
            .under::<OperationIndexRecord>(&prefix)?
            .iter()
            .rev()
        {
            let key = OperationRecord::key_of(&index.operation);
            let Some(operation) = self.store.one::<OperationRecord>(&key)? else {
                continue;
            };
            let succeeded = operation.status == OperationStatus::Succeeded;
            if succeeded && operation.kind == api::OperationKind::Rollback {
                // It has also taken back what was left for a look.
                return Ok(None);
            }
            let Some(release) = operation.to.filter(|to| operation.from != Some(*to)) else {
                continue;
            };
            if !operation.status.is_over() {
                continue;
            }
            return Ok((!succeeded).then(|| api::FailedRelease {
                release,
                version: operation.version,
                operation: operation.id,
                status: operation.status,
                reason: match operation.failure {
                    Some(failure) => failure.message,
                    None => "It was aborted.".to_owned(),
                },
                at: operation.finished_at,
            }));
        }
        Ok(None)
    }

    fn view_operation(
        &self,
        operation: &OperationRecord,
        observed: &Observed,
        now: Timestamp,
    ) -> Result<api::Operation, Fault> {
        let environment: Option<EnvironmentRecord> = self
            .store
            .one(&EnvironmentRecord::key_of(&operation.environment))?;
        let environment = environment
            .ok_or_else(|| Problem::not_found("environment", &operation.environment_name))?;
        let world = self.world(&self.store, &environment, observed, now, false)?;
        let mut reasons: Vec<(Option<InstanceId>, String)> = Vec::new();
        let mut marks = operation.traffic.clone();
        if operation.status == OperationStatus::Queued {
            reasons.push((None, self.waits_behind(&environment)?));
        } else if !operation.status.is_over() {
            match decide(operation, &world, now) {
                Decision::Wait { reasons: now, .. } => reasons = now,
                Decision::Finished if linger::any(&self.store, &operation.environment)? => {
                    let text = "Waiting for instances that lingered to stop.".to_owned();
                    reasons.push((None, text));
                }
                _ => {}
            }
            if let Err(full) = self.store.room() {
                let text = format!("Waiting for room on the controller's disk: {full}.");
                reasons.push((None, text));
            }
            traffic::advance(&mut marks, &operation.environment, observed, &|_| false);
        }
        let plan = operation.way_there().view(&|host| world.host_name(host));
        Ok(api::Operation {
            id: operation.id.clone(),
            environment: operation.environment.clone(),
            environment_name: operation.environment_name.clone(),
            kind: operation.kind,
            status: operation.status,
            request_id: operation.request_id.clone(),
            from: operation.from,
            to: operation.to,
            version: operation.version.clone(),
            plan,
            instances: progress(operation, &world, &reasons),
            waiting: reasons.into_iter().map(|(_, text)| text).collect(),
            message: operation.message.clone(),
            failure: operation.failure.clone(),
            queued_at: operation.queued_at,
            started_at: operation.started_at,
            finished_at: operation.finished_at,
            deadline: operation.deadline,
            leftovers: operation.leftovers.clone(),
            split: split_view(operation),
            requests_served: marks.served,
            requests_failed: marks.failed,
            receipt: operation.receipt.clone(),
        })
    }
}

impl Engine {
    /// What a queued operation waits for.
    fn waits_behind(&self, environment: &EnvironmentRecord) -> Result<String, StoreError> {
        let running = match &environment.operation {
            Some(id) => self
                .store
                .one::<OperationRecord>(&OperationRecord::key_of(id))?,
            None => None,
        };
        Ok(running.map_or_else(
            || "It begins now.".to_owned(),
            |running| {
                format!(
                    "It begins when the {} ({}) has ended.",
                    running.kind, running.id
                )
            },
        ))
    }
}

fn view_release(
    environment: &EnvironmentRecord,
    release: ReleaseRecord,
    receipt: Option<api::ReceiptSummary>,
) -> api::Release {
    api::Release {
        number: release.number,
        version: release.version,
        created_at: release.created_at,
        reason: release.reason,
        outcome: release.outcome,
        live: environment.live == Some(release.number),
        settings: without_values(release.settings),
        receipt,
    }
}

/// The split that an operation is in, if it is in one.
fn split_view(operation: &OperationRecord) -> Option<api::SplitView> {
    let share = operation.progress.share?;
    if operation.status != OperationStatus::Running {
        return None;
    }
    let plan = operation.way_there();
    let stages = &plan.stages;
    let Some(Stage::Split(split)) = stages.get(operation.progress.stage) else {
        return None;
    };
    let count = |stages: &[Stage]| {
        let splits = stages.iter().filter(|s| matches!(s, Stage::Split(_)));
        u32::try_from(splits.count()).unwrap_or(u32::MAX)
    };
    let side = |sample: &Sample| api::SideView {
        requests: sample.requests,
        errors: sample.errors,
        p95_us: sample.latency.percentile_us(95),
    };
    let seen = &operation.guard.evidence.total;
    let confirmed_at = share
        .confirmed
        .filter(|_| share.stage == operation.progress.stage);
    Some(api::SplitView {
        percent: share.percent,
        step: count(&stages[..=operation.progress.stage]),
        steps: count(stages),
        confirmed_at,
        until: confirmed_at.map(|at| at.after(Duration::from_millis(split.wait_ms))),
        promoted: operation.progress.promoted,
        new: side(&seen.new),
        old: side(&seen.old),
    })
}

fn without_values(mut settings: OptionSettings) -> OptionSettings {
    if let Some(properties) = settings.0.get_mut(PROPERTIES) {
        for value in properties.values_mut() {
            "***".clone_into(value);
        }
    }
    settings
}

/// An instance, but for the version of its release.
fn view_instance(
    world: &World<'_>,
    environment: &EnvironmentRecord,
    record: &InstanceRecord,
    address: Option<&String>,
    now: Timestamp,
) -> api::Instance {
    let (health, reason) = health(world, environment, record, now);
    let targets = || {
        world
            .proxies
            .iter()
            .filter_map(|proxy| proxy.target(&record.id, record.incarnation))
    };
    api::Instance {
        id: record.id.clone(),
        host: host_name(world, &record.host),
        host_id: record.host.clone(),
        address: reached_at(address, record),
        // What its host says that it runs, where records that were brought back say another.
        release: Some(
            world
                .instances
                .get(&record.id)
                .map_or(record.release, |state| state.release),
        ),
        version: None,
        health,
        reason,
        processes: seen(world, record)
            .map(|seen| seen.processes.clone())
            .unwrap_or_default(),
        last_check: targets()
            .filter_map(|target| target.last_check.clone())
            .max_by_key(|check| check.at),
        in_flight: targets().map(|target| target.in_flight).sum(),
        traffic: traffic::sum(targets().map(|target| target.traffic)),
        targets: view_processes(world, record, address),
    }
}

/// The processes of an instance that take requests, where there are several.
fn view_processes(
    world: &World<'_>,
    record: &InstanceRecord,
    address: Option<&String>,
) -> Vec<api::ProcessTarget> {
    if record.ports.is_empty() {
        return Vec::new();
    }
    let address = address.map_or("?", String::as_str);
    let further = record.ports.iter();
    let further = further.map(|(process, port)| (process.as_str(), *port));
    std::iter::once(("", record.port))
        .chain(further)
        .map(|(process, port)| {
            let seen = || {
                let proxies = world.proxies.iter();
                let whole = proxies.filter_map(|one| one.target(&record.id, record.incarnation));
                whole.filter_map(|target| target.of_process(process))
            };
            api::ProcessTarget {
                process: if process.is_empty() { "web" } else { process }.to_owned(),
                address: format!("{address}:{port}"),
                healthy: (seen().next()).map(|_| seen().all(|target| target.healthy)),
                last_check: seen()
                    .filter_map(|target| target.last_check.clone())
                    .max_by_key(|check| check.at),
                in_flight: seen().map(|target| target.in_flight).sum(),
                traffic: traffic::sum(seen().map(|target| target.traffic)),
            }
        })
        .collect()
}

fn reached_at(address: Option<&String>, record: &InstanceRecord) -> String {
    format!("{}:{}", address.map_or("?", String::as_str), record.port)
}

fn host_name(world: &World<'_>, host: &HostId) -> HostName {
    HostName::new(world.host_name(host))
        .or_else(|_| HostName::new(host.as_str()))
        .expect("a host's id is a valid name")
}

/// When what is not as it should be is tried again to be put right; none where nothing waits for that.
fn next_mending(
    environment: &EnvironmentRecord,
    instances: &[api::Instance],
    size: u32,
    now: Timestamp,
) -> Option<String> {
    let live = environment.live.filter(|_| !environment.hold)?;
    let after = environment.mend_after.filter(|after| *after > now)?;
    let is_right = |one: &api::Instance| {
        one.release == Some(live) && one.health != api::InstanceHealth::Pending
    };
    let all_right = instances.iter().all(is_right) && instances.len() == size as usize;
    let waits = environment.status == EnvironmentStatus::Ready && !all_right;
    let seconds = after.since(now).as_secs() + 1;
    waits.then(|| {
        let why = environment.failed_by.as_ref();
        let why = why.map_or_else(String::new, |why| format!(" The last try: {why}"));
        // To scale one that sleeps would have it stay awake.
        let at_once = match environment.settings.sleeps_after_ms() {
            None => format!(
                ", or at once by `beanpole scale {} {size}`",
                environment.name
            ),
            Some(_) => String::new(),
        };
        format!("It is tried again to put that right in {seconds} s{at_once}.{why}")
    })
}

/// Each instance that an operation touches; the way back wins over the way there.
fn progress(
    operation: &OperationRecord,
    world: &World<'_>,
    reasons: &[(Option<InstanceId>, String)],
) -> Vec<InstanceProgress> {
    let mut rows: Vec<InstanceProgress> = Vec::new();
    let ways = [
        Some((operation.way_there(), &operation.progress)),
        operation
            .way_back()
            .map(|back| (back, &operation.back_progress)),
    ];
    for (plan, progress) in ways.into_iter().flatten() {
        let preparing = matches!(
            plan.stages.get(progress.stage),
            Some(Stage::Prepare { .. } | Stage::Once { .. })
        );
        for (batch, change) in plan.changes().filter(|(_, c)| progress.is_of(c)) {
            let detail = reasons
                .iter()
                .find(|(id, _)| id.as_ref() == Some(&change.instance))
                .map(|(_, text)| text.clone());
            let state = match progress.of(&change.instance) {
                ChangeState::Pending if preparing => "preparing",
                ChangeState::Pending => "pending",
                ChangeState::Draining { .. } | ChangeState::Drained => "draining",
                ChangeState::Stopping { .. } => "stopping",
                ChangeState::Starting { .. } => "starting",
                ChangeState::Checking { .. } | ChangeState::Serving { .. } => "checking",
                ChangeState::Held => "ready",
                ChangeState::Done if change.action == Action::Remove => "removed",
                ChangeState::Done => "done",
            };
            let failed = [&progress.failed]
                .into_iter()
                .flatten()
                .find(|failure| failure.instance.as_ref() == Some(&change.instance));
            let row = InstanceProgress {
                instance: change.instance.clone(),
                host: host_name(world, &change.host),
                batch,
                state: failed.map_or(state, |_| "failed").to_owned(),
                detail: failed.map(|failure| failure.message.clone()).or(detail),
            };
            match rows.iter_mut().find(|old| old.instance == row.instance) {
                Some(old) => *old = row,
                None => rows.push(row),
            }
        }
    }
    rows
}
