//! Records a journal entry: what it wants of instances, how far the plan is, and the event that tells
//! of it, all in one transaction.

use crate::events::{Draft, emit_for};
use crate::{EngineError, linger, read};
use beanpole_planner::{
    Action, Batch, ChangeState, Detour, Growth, Happened, Joins, OTHER_PORTS, Plan, Progress,
    Serving, Split, Stage, World, apply,
};
use beanpole_protocol::agent::{INSTANCE_PORTS as PORTS, OncePhase};
use beanpole_protocol::api::{Leftover, OperationFailure, OperationKind};
use beanpole_protocol::event::Severity;
use beanpole_protocol::options::DeploymentPolicy;
use beanpole_protocol::proxy::{TargetMode, said};
use beanpole_protocol::{HostId, HostName, Incarnation, InstanceId, ReleaseNumber, Timestamp};
use beanpole_store::model::{
    EnvironmentRecord, InstanceRecord, JournalRecord, LingererRecord, OperationRecord, SplitRecord,
};
use beanpole_store::{StoreError, Tx};
use std::collections::{BTreeMap, BTreeSet};

/// An operation being taken further within one transaction.
pub(crate) struct Scene<'s, 't> {
    pub tx: &'s mut Tx<'t>,
    pub environment: &'s mut EnvironmentRecord,
    pub operation: &'s mut OperationRecord,
    pub now: Timestamp,
    /// Ports in use, read once per transaction.
    pub ports: Option<BTreeMap<HostId, BTreeSet<u16>>>,
}

impl Scene<'_, '_> {
    /// Writes an event of the operation.
    pub fn say(
        &mut self,
        severity: Severity,
        code: &str,
        message: impl Into<String>,
    ) -> Result<(), StoreError> {
        let draft = Draft::new(severity, code, message, self.now).operation(self.operation);
        self.say_draft(draft)
    }

    pub fn say_draft(&mut self, draft: Draft) -> Result<(), StoreError> {
        emit_for(self.tx, self.environment, draft).map(|_| ())
    }

    /// Records one entry.
    pub fn record(&mut self, world: &World<'_>, entry: &Happened) -> Result<(), EngineError> {
        let (plan, progress) = self.operation.under_way();
        let (plan, progress) = (plan.into_owned(), progress.clone());
        let back = self.operation.back.is_some();
        if let Happened::Removed {
            instance,
            unreached: true,
        } = entry
        {
            self.note_leftover(world, &plan, instance);
        }
        self.tell(world, &plan, &progress, entry)?;
        self.want(world, &plan, entry)?;
        let progress = apply(progress, self.now, entry)?;
        if back {
            self.operation.back_progress = progress;
        } else {
            self.operation.progress = progress;
        }
        self.operation.entries += 1;
        self.tx.put(&JournalRecord {
            operation: self.operation.id.clone(),
            number: self.operation.entries,
            at: self.now,
            back,
            entry: entry.clone(),
        })?;
        Ok(())
    }

    /// Notes an instance whose host did not say that it is gone.
    fn note_leftover(&mut self, world: &World<'_>, plan: &Plan, id: &InstanceId) {
        let change = plan.changes().find(|(_, change)| change.instance == *id);
        if let Some((_, change)) = change
            && let Ok(host) = HostName::new(world.host_name(&change.host))
        {
            self.operation.leftovers.push(Leftover {
                instance: id.clone(),
                host,
            });
        }
    }

    /// Changes what is wanted of an instance.
    fn want(&mut self, world: &World<'_>, plan: &Plan, entry: &Happened) -> Result<(), StoreError> {
        match entry {
            Happened::DrainStarted { instance } => self.instance(instance, |record| {
                record.mode = Some(TargetMode::Drain);
                record.routed = None;
            }),
            Happened::ProbeStarted { instance } => self.instance(instance, |record| {
                record.mode = Some(TargetMode::Probe);
                record.routed = None;
            }),
            Happened::PutIn { instance, .. } => self.instance(instance, |record| {
                record.mode = Some(TargetMode::Serve);
                record.withdrawn = false;
                record.routed = None;
            }),
            Happened::StopOrdered { instance } => self.instance(instance, |record| {
                record.mode = None;
                record.run = false;
                record.routed = None;
                record.ordered = None;
            }),
            Happened::Removed { instance, .. } => {
                let key = InstanceRecord::key_of(&self.environment.id, instance);
                self.tx.delete::<InstanceRecord>(&key)
            }
            Happened::Lingers {
                instance,
                since,
                until,
                ..
            } => self.let_linger(instance, *since, *until),
            Happened::Switched { instance } => self.switch(world, plan, instance),
            Happened::ShareSet { percent } => self.share(plan, *percent),
            // A share is a split's, and ends with it: what serves from then on serves alike.
            Happened::StageStarted { stage }
                if !matches!(plan.stages.get(*stage), Some(Stage::Split(_))) =>
            {
                self.environment.split = None;
                Ok(())
            }
            Happened::PortTaken { instance, .. } => self.change_port(world, instance),
            _ => Ok(()),
        }
    }

    /// Gives the plan's release a share. Its instances wait for the table that says so.
    fn share(&mut self, plan: &Plan, percent: u8) -> Result<(), StoreError> {
        let Some(release) = plan.release else {
            return Ok(());
        };
        self.environment.split = Some(SplitRecord { release, percent });
        let prefix = InstanceRecord::prefix(&self.environment.id);
        for mut record in self.tx.list_prefix::<InstanceRecord>(&prefix)? {
            if record.release == release {
                record.routed = None;
                self.tx.put(&record)?;
            }
        }
        Ok(())
    }

    fn instance(
        &mut self,
        id: &InstanceId,
        change: impl FnOnce(&mut InstanceRecord),
    ) -> Result<(), StoreError> {
        let key = InstanceRecord::key_of(&self.environment.id, id);
        if let Some(mut record) = self.tx.get::<InstanceRecord>(&key)? {
            change(&mut record);
            self.tx.put(&record)?;
        }
        Ok(())
    }

    /// Takes an instance out of the environment's: its requests may go on, and nobody waits for them.
    fn let_linger(
        &mut self,
        id: &InstanceId,
        since: Timestamp,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        let key = InstanceRecord::key_of(&self.environment.id, id);
        let Some(instance) = self.tx.get::<InstanceRecord>(&key)? else {
            return Ok(());
        };
        self.tx.delete::<InstanceRecord>(&key)?;
        self.tx.put(&LingererRecord {
            instance,
            operation: self.operation.id.clone(),
            since,
            until,
            ended_by: None,
            stopping_since: None,
        })
    }

    fn switch(
        &mut self,
        world: &World<'_>,
        plan: &Plan,
        id: &InstanceId,
    ) -> Result<(), StoreError> {
        let Some((_, change)) = plan.changes().find(|(_, change)| change.instance == *id) else {
            return Ok(());
        };
        let key = InstanceRecord::key_of(&self.environment.id, id);
        let release = match change.action {
            Action::Launch { release } | Action::Replace { release } => Some(release),
            _ => None,
        };
        let mut record = match self.tx.get::<InstanceRecord>(&key)? {
            Some(mut record) => {
                record.release = release.unwrap_or(record.release);
                record.incarnation = record.incarnation.next();
                record.run = true;
                record.mode = None;
                record.routed = None;
                record.ordered = None;
                record
            }
            None => InstanceRecord {
                id: id.clone(),
                environment: self.environment.id.clone(),
                host: change.host.clone(),
                port: self.free_port(world, &change.host)?,
                ports: BTreeMap::new(),
                release: release.unwrap_or_default(),
                incarnation: Incarnation(1),
                run: true,
                mode: None,
                withdrawn: false,
                routed: None,
                ordered: None,
                told: None,
                created_at: self.now,
            },
        };
        self.give_ports(world, &mut record)?;
        self.tx.put(&record)
    }

    /// Has an instance have a port for each further process of its release that takes requests: those that it has,
    /// as far as they are still wanted.
    fn give_ports(
        &mut self,
        world: &World<'_>,
        record: &mut InstanceRecord,
    ) -> Result<(), StoreError> {
        let release = read::release(self.tx, &record.environment, record.release)?;
        let Some(release) = release else {
            return Ok(());
        };
        let processes = release.settings.processes();
        (record.ports).retain(|process, _| processes.contains(&process.as_str()));
        for process in processes {
            if !record.ports.contains_key(process) {
                let port = self.free_port(world, &record.host)?;
                record.ports.insert(process.to_owned(), port);
            }
        }
        Ok(())
    }

    /// The next incarnation, on other ports.
    fn change_port(&mut self, world: &World<'_>, id: &InstanceId) -> Result<(), StoreError> {
        let key = InstanceRecord::key_of(&self.environment.id, id);
        let Some(mut record) = self.tx.get::<InstanceRecord>(&key)? else {
            return Ok(());
        };
        record.port = self.free_port(world, &record.host)?;
        record.ports.clear();
        self.give_ports(world, &mut record)?;
        record.incarnation = record.incarnation.next();
        record.run = true;
        record.mode = None;
        record.routed = None;
        record.ordered = None;
        self.tx.put(&record)
    }

    fn free_port(&mut self, world: &World<'_>, host: &HostId) -> Result<u16, StoreError> {
        if self.ports.is_none() {
            let mut used: BTreeMap<HostId, BTreeSet<u16>> = BTreeMap::new();
            for instance in linger::with_lingering(self.tx)? {
                let ports: Vec<u16> = instance.all_ports().collect();
                used.entry(instance.host).or_default().extend(ports);
            }
            self.ports = Some(used);
        }
        let used = self
            .ports
            .get_or_insert_default()
            .entry(host.clone())
            .or_default();
        // What other programs of the host listen on would keep the instance from starting.
        if let Some(report) = world.hosts.get(host).and_then(|seen| seen.report) {
            used.extend(&report.facts.listening);
        }
        // Each in turn instead of the lowest free one: an instance that was given up while its host
        // could not be reached may run on there for a while, and would answer the checks of its
        // successor on the same port.
        let width = u64::from(PORTS.end() - PORTS.start()) + 1;
        let mut port = *PORTS.start();
        for _ in 0..width {
            let turn = self.tx.counter(&format!("port {host}"))? - 1;
            port = PORTS.start() + u16::try_from(turn % width).unwrap_or(0);
            if !used.contains(&port) {
                break;
            }
        }
        used.insert(port);
        Ok(port)
    }

    /// Writes the events that an entry gives rise to, in the words of Elastic Beanstalk where it has
    /// some.
    fn tell(
        &mut self,
        world: &World<'_>,
        plan: &Plan,
        progress: &Progress,
        entry: &Happened,
    ) -> Result<(), StoreError> {
        let stage = plan.stages.get(progress.stage);
        if let Happened::PutIn {
            instance,
            forced: true,
            ..
        } = entry
            && plan.ignore_health
        {
            let text = format!(
                "{instance} is put into service though it is not healthy: IgnoreHealthCheck is set."
            );
            self.say(Severity::Warn, "health-ignored", text)?;
        }
        match (entry, stage) {
            (Happened::Detoured { detour }, _) => self.tell_detour(world, detour),
            (Happened::Grew { growth }, _) => self.tell_growth(world, growth),
            (Happened::StageStarted { .. }, Some(Stage::Prepare { release, hosts, .. })) => {
                let names: Vec<String> = hosts.iter().map(|host| world.host_name(host)).collect();
                let text = format!("Preparing release {release} on {}.", names.join(", "));
                self.say(Severity::Info, "release-preparing", text)
            }
            (Happened::StageFinished { .. }, Some(Stage::Prepare { release, .. })) => {
                let text = format!("Release {release} is ready on every host.");
                self.say(Severity::Info, "release-ready", text)
            }
            (
                Happened::StageStarted { .. },
                Some(Stage::Once {
                    release,
                    host,
                    command,
                    ..
                }),
            ) => {
                let name = world.host_name(host);
                let text = format!("Running {command} of release {release} once, on {name}.");
                self.say(Severity::Info, "release-command-starting", text)
            }
            (
                Happened::StageFinished { .. },
                Some(Stage::Once {
                    tree,
                    host,
                    command,
                    ..
                }),
            ) => self.tell_once_succeeded(world, *tree, host, command),
            (Happened::StageStarted { .. }, Some(Stage::TryCheck { check })) => {
                let text = format!("Trying {} on every instance in service.", check.probe);
                self.say(Severity::Info, "check-tried", text)
            }
            (Happened::StageFinished { .. }, Some(Stage::TryCheck { check })) => {
                let mut all = world.instances.keys();
                let how = if all.any(|id| world.serving(id) == Serving::Yes) {
                    "What is in service passes"
                } else {
                    "Nothing is well that could say whether it passes"
                };
                let text = format!(
                    "{how} {}: the load balancer checks by it from now on.",
                    check.probe
                );
                self.say(Severity::Info, "check-passed", text)
            }
            (Happened::StageStarted { .. }, Some(Stage::Swap { with })) => {
                let text = format!(
                    "Swapping CNAMEs for environments '{}' and '{with}'.",
                    self.environment.name
                );
                self.say(Severity::Info, "swapping", text)
            }
            (Happened::StageFinished { .. }, Some(Stage::Swap { .. })) => self.tell_swapped(),
            (Happened::RoutesUnconfirmed { who }, _) => {
                let text = format!(
                    "Not everywhere yet: {who} has not confirmed the exchange, and carries it out when it \
                     can be reached. Until then requests that come to it go where they went before."
                );
                self.say(Severity::Warn, "routes-unconfirmed", text)
            }
            (Happened::StageStarted { .. }, Some(Stage::Batch(batch))) => {
                self.tell_batch_started(plan, batch)
            }
            (Happened::StageFinished { .. }, Some(Stage::Batch(batch))) => {
                self.tell_batch_finished(plan, progress, batch)
            }
            (_, Some(Stage::Split(split))) if !matches!(entry, Happened::Failed { .. }) => {
                self.tell_of_split(progress, split, entry)
            }
            (Happened::DrainStarted { .. }, Some(Stage::Batch(batch)))
                if batch_in(progress, batch, |_| true) == 0 =>
            {
                let text = format!(
                    "Batch {}: De-registering instance(s) from the load balancer and waiting for them to go out of service.",
                    batch.number
                );
                self.say(Severity::Info, "batch-deregistering", text)
            }
            (Happened::Switched { .. }, Some(Stage::Batch(batch)))
                if batch_in(progress, batch, started) == 0 && replaces(batch) =>
            {
                let text = format!(
                    "Batch {}: Starting application deployment command execution.",
                    batch.number
                );
                self.say(Severity::Info, "batch-executing", text)
            }
            (Happened::PutIn { instance, .. }, Some(Stage::Batch(batch)))
                if batch.enters.first().map_or_else(
                    || batch_in(progress, batch, put_in) == 0,
                    |first| first == instance,
                ) =>
            {
                let text = format!(
                    "Batch {}: Registering instance(s) with the load balancer and waiting for them to be healthy.",
                    batch.number
                );
                self.say(Severity::Info, "batch-registering", text)
            }
            _ => self.tell_of_instance(progress, entry),
        }
    }

    /// What starts where instead, what stays, and who runs what runs once.
    fn tell_detour(&mut self, world: &World<'_>, detour: &Detour) -> Result<(), StoreError> {
        let host = world.host_name(&detour.host);
        let mut parts = Vec::new();
        for moved in &detour.moved {
            let (from, to) = (&moved.from, &moved.to);
            let on = world.host_name(&moved.host);
            parts.push(format!("{to} starts on {on} in the place of {from}"));
        }
        for one in &detour.stand_ins {
            let on = world.host_name(&one.host);
            parts.push(format!(
                "{} starts on {on} with release {} and stands in for {}",
                one.to, one.release, one.from
            ));
        }
        for left in &detour.left_out {
            parts.push(format!(
                "{} is left out, because no other host can take it",
                left.instance
            ));
        }
        if let Some(leader) = &detour.leader {
            let leader = world.host_name(leader);
            let once = self
                .operation
                .plan
                .stages
                .iter()
                .find_map(|stage| match stage {
                    Stage::Once { command, .. } => Some(command),
                    _ => None,
                });
            if let Some(command) = once {
                parts.push(format!("{leader} runs {command}"));
            }
        }
        let text = format!("Host {host} {}: {}.", detour.why, parts.join("; "));
        self.say(Severity::Warn, "host-given-up", text)
    }

    fn tell_swapped(&mut self) -> Result<(), StoreError> {
        let name = self.environment.name.clone();
        let cname = self.environment.cname.iter().map(ToString::to_string);
        let domains = self.environment.domains.iter();
        let domains = domains.map(|record| record.domain.name.to_string());
        for host in cname.chain(domains).collect::<Vec<_>>() {
            let text = format!("The hostname '{host}' now leads to the environment '{name}'.");
            self.say(Severity::Info, "points-to", text)?;
        }
        Ok(())
    }

    /// What joins the two sides of a split.
    fn tell_growth(&mut self, world: &World<'_>, growth: &Growth) -> Result<(), StoreError> {
        let side = |joins: &[Joins]| -> String {
            let each = joins
                .iter()
                .map(|one| format!("{} on {}", one.instance, world.host_name(&one.host)));
            let each: Vec<String> = each.collect();
            let release = joins.first().map(|one| one.release).unwrap_or_default();
            format!("{} with release {release}", each.join(", "))
        };
        let text = format!(
            "The environment grows: {}; {}.",
            side(&growth.new),
            side(&growth.old)
        );
        self.say(Severity::Info, "environment-grows", text)
    }

    fn tell_of_split(
        &mut self,
        progress: &Progress,
        split: &Split,
        entry: &Happened,
    ) -> Result<(), StoreError> {
        let to = self.operation.to.unwrap_or_default();
        let percent = split.percent;
        let (code, text) = match entry {
            Happened::ShareSet { .. } => (
                "share-set",
                format!("Traffic splitting: giving release {to} {percent} % of the requests."),
            ),
            Happened::ShareConfirmed { .. } => (
                "share-confirmed",
                format!(
                    "Every load balancer gives release {to} {percent} % of the requests, for {} s.",
                    split.wait_ms / 1_000
                ),
            ),
            Happened::Promoted => (
                "promoted",
                format!("Release {to} is promoted: it gets all requests without further waiting."),
            ),
            // One that was passed over by a promotion had nothing.
            Happened::StageFinished { stage }
                if progress.share.is_some_and(|share| share.stage == *stage) =>
            {
                let seen = self.operation.guard.evidence.total.told();
                let seen = seen.map_or_else(String::new, |told| format!(": {told}"));
                let text = format!("Release {to} had {percent} % of the requests{seen}.");
                ("split-step-completed", text)
            }
            _ => return self.tell_of_instance(progress, entry),
        };
        self.say(Severity::Info, code, text)
    }

    /// Also with what it wrote, which is nowhere else by then.
    fn tell_once_succeeded(
        &mut self,
        world: &World<'_>,
        tree: ReleaseNumber,
        host: &HostId,
        command: &str,
    ) -> Result<(), StoreError> {
        let seen = world
            .hosts
            .get(host)
            .and_then(|host| host.release(&world.environment, tree))
            .and_then(|seen| seen.once.as_ref());
        let log = match seen.map(|once| &once.phase) {
            Some(OncePhase::Succeeded { log }) => log.clone(),
            _ => Vec::new(),
        };
        let text = format!("Succeeded: {command}.");
        let draft = Draft::new(Severity::Info, "release-command-succeeded", text, self.now)
            .operation(self.operation)
            .details(log);
        self.say_draft(draft)
    }

    fn tell_of_instance(
        &mut self,
        progress: &Progress,
        entry: &Happened,
    ) -> Result<(), StoreError> {
        let (severity, code, instance, text) = match entry {
            Happened::Drained { instance, cut } if *cut > 0 => {
                let text = format!(
                    "{instance} still had {cut} open request{} when its time to finish them was up.",
                    if *cut == 1 { "" } else { "s" }
                );
                (Severity::Warn, "requests-cut", instance, text)
            }
            Happened::Lingers {
                instance,
                open,
                until,
                ..
            } => {
                let plural = if *open == 1 { "" } else { "s" };
                let text = format!(
                    "{instance} leaves with {open} open request{plural}, which may go on until {until}. \
                     Nothing waits for that."
                );
                (Severity::Info, "instance-lingers", instance, text)
            }
            Happened::PortTaken { instance, message } => {
                let before = progress.taken.get(instance).copied().unwrap_or(0);
                let text = format!(
                    "{message} {instance} gets another port ({} of at most {OTHER_PORTS}).",
                    before + 1
                );
                (Severity::Warn, "port-taken", instance, text)
            }
            Happened::InService { instance } => {
                let forced = matches!(
                    progress.of(instance),
                    ChangeState::Serving { forced: true, .. }
                );
                let text = if forced {
                    format!("{instance} is in service; whether it is healthy was not waited for.")
                } else {
                    format!("{instance} is healthy and in service.")
                };
                (Severity::Info, "instance-in-service", instance, text)
            }
            Happened::Removed {
                instance,
                unreached: false,
            } => {
                let text = format!("{instance} is gone.");
                (Severity::Info, "instance-removed", instance, text)
            }
            Happened::Removed {
                instance,
                unreached: true,
            } => {
                let text = match self
                    .operation
                    .leftovers
                    .iter()
                    .find(|l| l.instance == *instance)
                {
                    Some(left) => left.to_string(),
                    None => format!("{instance} could not be reached."),
                };
                (Severity::Warn, "instance-left", instance, text)
            }
            Happened::Failed { failure } => return self.tell_failure(failure),
            _ => return Ok(()),
        };
        let draft = Draft::new(severity, code, text, self.now)
            .operation(self.operation)
            .instance(Some(instance));
        self.say_draft(draft)
    }

    fn tell_failure(&mut self, failure: &OperationFailure) -> Result<(), StoreError> {
        let mut text = match &failure.instance {
            Some(id) => format!("[Instance: {id}] {}", failure.message),
            None => failure.message.clone(),
        };
        if let (Some(probe), Some(answer)) = (&failure.probe, &failure.answer) {
            text = format!("{text} {}.", said(probe, answer));
        }
        let draft = Draft::new(Severity::Error, &failure.code, text, self.now)
            .operation(self.operation)
            .instance(failure.instance.as_ref())
            .details(failure.log.clone());
        self.say_draft(draft)
    }

    fn tell_batch_started(&mut self, plan: &Plan, batch: &Batch) -> Result<(), StoreError> {
        let ids: Vec<&str> = batch.changes.iter().map(|c| c.instance.as_str()).collect();
        let ids = ids.join(", ");
        let number = batch.number;
        let word = batch.changes.first().map_or("", |c| c.action.word());
        let policy = plan.policy.unwrap_or_default();
        let sets = matches!(
            policy,
            DeploymentPolicy::Immutable | DeploymentPolicy::TrafficSplitting
        );
        let text = match word {
            // All that it was to change has moved elsewhere.
            "" if batch.enters.is_empty() => return Ok(()),
            _ if !batch.enters.is_empty() => {
                "Successfully launched all instances. Moving all traffic to them at once."
                    .to_owned()
            }
            "launch" if batch.hold && number == 1 && sets => format!(
                "{policy} deployment policy enabled. Launching one instance with the new settings to verify health [{ids}]."
            ),
            "launch" if batch.hold && sets => format!(
                "Test instance passed health checks. Launching remaining new instances [{ids}]."
            ),
            "launch" => format!("Batch {number}: Launching instance(s) [{ids}]."),
            "remove" => format!("Batch {number}: Removing instance(s) [{ids}]."),
            "return" => format!("Batch {number}: Returning instance(s) [{ids}] to service."),
            "restart" => {
                format!("Batch {number}: Restarting application server(s) on instance(s) [{ids}].")
            }
            _ if plan.policy == Some(DeploymentPolicy::AllAtOnce) => {
                "Deploying new version to instance(s).".to_owned()
            }
            _ => format!("Batch {number}: Starting application deployment on instance(s) [{ids}]."),
        };
        self.say(Severity::Info, "batch-started", text)
    }

    fn tell_batch_finished(
        &mut self,
        plan: &Plan,
        progress: &Progress,
        batch: &Batch,
    ) -> Result<(), StoreError> {
        let number = batch.number;
        if replaces(batch) && self.operation.kind != OperationKind::Terminate {
            let all: Vec<_> = plan
                .changes()
                .filter(|(_, change)| change.action != Action::Remove)
                .collect();
            let of = all.len();
            let done = all
                .iter()
                .filter(|(_, change)| {
                    let state = progress.of(&change.instance);
                    matches!(state, ChangeState::Done | ChangeState::Held)
                })
                .count();
            let text =
                format!("Command execution completed on {done} of {of} instances in environment.");
            self.say(Severity::Info, "commands-completed", text)?;
        }
        let text = match batch.changes.first().map(|change| change.action) {
            Some(Action::Remove) => format!("Batch {number}: Removed instance(s)."),
            Some(Action::Return) => format!("Batch {number}: Returned instance(s) to service."),
            _ => format!("Batch {number}: Completed application deployment."),
        };
        self.say(Severity::Info, "batch-completed", text)
    }
}

fn replaces(batch: &Batch) -> bool {
    batch.changes.iter().any(|change| {
        matches!(
            change.action,
            Action::Launch { .. } | Action::Replace { .. } | Action::Restart
        )
    })
}

/// How many of a batch have been touched and are in such a state.
fn batch_in(progress: &Progress, batch: &Batch, is: fn(&ChangeState) -> bool) -> usize {
    batch
        .changes
        .iter()
        .filter_map(|change| progress.changes.get(&change.instance))
        .filter(|state| is(state))
        .count()
}

fn started(state: &ChangeState) -> bool {
    matches!(
        state,
        ChangeState::Starting { .. }
            | ChangeState::Checking { .. }
            | ChangeState::Held
            | ChangeState::Serving { .. }
            | ChangeState::Done
    )
}

fn put_in(state: &ChangeState) -> bool {
    matches!(state, ChangeState::Serving { .. } | ChangeState::Done)
}
