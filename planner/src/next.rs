//! The step after this one: what to record now, what to wait for, or how it ended.

use crate::world::Serving;
use crate::{
    Action, Batch, Change, ChangeState, Gate, Happened, Plan, Progress, Reach, Stage, World,
};
use beanpole_protocol::agent::{Failure, InstancePhase, InstanceReport, ReleasePhase};
use beanpole_protocol::api::OperationFailure;
use beanpole_protocol::proxy::{TargetMode, TargetReport};
use beanpole_protocol::{InstanceId, ReleaseNumber, Timestamp};
use std::time::Duration;

/// An app that ended that often in one incarnation will not come up: no reason to wait for the
/// time-out.
pub const RESTARTS_THAT_FAIL: u32 = 3;

/// Log lines that a failure carries at most.
const LOG_LINES: usize = 20;

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Record these, with what they want of instances, then ask again.
    Record(Vec<Happened>),
    /// Nothing until something new is seen, or that time.
    Wait {
        /// When to ask again at the latest.
        until: Timestamp,
        /// What is waited for, one sentence each, with the instance where it is one.
        reasons: Vec<(Option<InstanceId>, String)>,
    },
    /// All is done.
    Finished,
    /// It cannot go on; the journal says why.
    Failed(OperationFailure),
}

/// Decides what comes next.
pub fn next(plan: &Plan, progress: &Progress, world: &World<'_>, now: Timestamp) -> Decision {
    if let Some(failure) = &progress.failed {
        return Decision::Failed(failure.clone());
    }
    let Some(stage) = plan.stages.get(progress.stage) else {
        return Decision::Finished;
    };
    let Some(since) = progress.since else {
        return Decision::Record(vec![Happened::StageStarted {
            stage: progress.stage,
        }]);
    };
    let mut turn = Turn {
        plan,
        progress,
        world,
        now,
        deadline: since.after(Duration::from_millis(plan.stage_ms(progress.stage))),
        entries: Vec::new(),
        reasons: Vec::new(),
        wake: None,
    };
    let done = match stage {
        Stage::Prepare {
            release,
            tree,
            hosts,
        } => turn.prepare(*release, *tree, hosts),
        Stage::Batch(batch) => turn.batch(batch),
    };
    let done = match done {
        Ok(done) => done,
        Err(failure) => {
            // What was seen before still counts; the failure is the last entry.
            turn.entries.push(Happened::Failed { failure: *failure });
            return Decision::Record(turn.entries);
        }
    };
    if done {
        turn.entries.push(Happened::StageFinished {
            stage: progress.stage,
        });
    }
    if turn.entries.is_empty() {
        let until = turn.wake.map_or(turn.deadline, |at| at.min(turn.deadline));
        Decision::Wait {
            until,
            reasons: turn.reasons,
        }
    } else {
        Decision::Record(turn.entries)
    }
}

/// One look at a stage.
struct Turn<'t, 'w> {
    plan: &'t Plan,
    progress: &'t Progress,
    world: &'t World<'w>,
    now: Timestamp,
    deadline: Timestamp,
    entries: Vec<Happened>,
    reasons: Vec<(Option<InstanceId>, String)>,
    wake: Option<Timestamp>,
}

type Step<T> = Result<T, Box<OperationFailure>>;

impl Turn<'_, '_> {
    fn late(&self) -> bool {
        self.now >= self.deadline
    }

    fn wait(&mut self, instance: Option<&InstanceId>, reason: String) {
        self.reasons.push((instance.cloned(), reason));
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |other| other.min(at)));
    }

    /// Whether the release is ready on every host.
    fn prepare(
        &mut self,
        release: ReleaseNumber,
        tree: ReleaseNumber,
        hosts: &[beanpole_protocol::HostId],
    ) -> Step<bool> {
        let mut all = true;
        for id in hosts {
            let name = self.world.host_name(id);
            let Some(host) = self.world.hosts.get(id) else {
                return Err(lost(&name, None, "was removed"));
            };
            let seen = host.release(&self.world.environment, tree);
            let how = match seen.map(|seen| &seen.phase) {
                Some(ReleasePhase::Ready) => continue,
                Some(ReleasePhase::Failed(failure)) => {
                    return Err(prepare_failed(release, &name, None, failure));
                }
                Some(ReleasePhase::NeedsBundle) => format!(
                    "the bundle is on its way ({} bytes arrived)",
                    seen.map_or(0, |seen| seen.bundle_have)
                ),
                Some(ReleasePhase::Unpacking) => "the bundle is being unpacked".to_owned(),
                Some(ReleasePhase::Building { command }) => format!("`{command}` runs"),
                None => "its agent has not begun".to_owned(),
            };
            if let Reach::Lost(since) = host.reach {
                return Err(lost(&name, None, &unheard(since, self.now)));
            }
            all = false;
            let how = match host.reach {
                Reach::Silent(since) => format!("{how}; the host {}", unheard(since, self.now)),
                _ => how,
            };
            self.wait(
                None,
                format!("Waiting for release {release} on {name}: {how}."),
            );
            if self.late() {
                return Err(Box::new(OperationFailure {
                    code: "prepare-timeout".to_owned(),
                    message: format!(
                        "Release {release} was not ready on {name} within {} s: {how}.",
                        self.plan.timeouts.prepare_ms / 1_000
                    ),
                    instance: None,
                    host: host_name(&name),
                    probe: None,
                    answer: None,
                    log: Vec::new(),
                }));
            }
        }
        Ok(all)
    }

    /// Whether every change of the batch is done.
    fn batch(&mut self, batch: &Batch) -> Step<bool> {
        let mut serving = self.world.serving_count();
        let mut all = true;
        for change in &batch.changes {
            let id = &change.instance;
            let state = self.progress.of(id);
            all &= state == ChangeState::Done;
            match state {
                ChangeState::Done => {}
                ChangeState::Pending => self.begin(batch, change, &mut serving)?,
                ChangeState::Draining { since } => self.draining(batch, change, since)?,
                ChangeState::Drained => self.act(change)?,
                ChangeState::Stopping { since } => self.stopping(change, since),
                ChangeState::Starting { .. } => self.starting(change, false)?,
                ChangeState::Checking { .. } => self.starting(change, true)?,
                ChangeState::Serving { forced, .. } => self.put_in(change, forced)?,
            }
        }
        Ok(all)
    }

    /// Takes an instance out of the load balancer first, where it is in and that can be afforded.
    fn begin(&mut self, batch: &Batch, change: &Change, serving: &mut u32) -> Step<()> {
        let id = &change.instance;
        let Some(instance) = self.world.instances.get(id) else {
            match change.action {
                Action::Launch { .. } => return self.act(change),
                // Somebody else removed it: nothing is left to do.
                _ => {
                    self.entries.push(Happened::Removed {
                        instance: id.clone(),
                    });
                    return Ok(());
                }
            }
        };
        if change.action == Action::Return {
            self.entries.push(Happened::PutIn {
                instance: id.clone(),
                forced: true,
            });
            return Ok(());
        }
        let routed = matches!(instance.mode, Some(TargetMode::Serve | TargetMode::Drain));
        if !routed || !batch.drain {
            return self.act(change);
        }
        if instance.mode == Some(TargetMode::Serve) {
            match self.world.serving(id) {
                Serving::No => {}
                Serving::Yes if *serving > self.plan.floor => *serving -= 1,
                _ if batch.force => {}
                Serving::Yes => {
                    let text = format!(
                        "{id} stays in service: without it {} of at least {} healthy instances would serve.",
                        serving.saturating_sub(1),
                        self.plan.floor
                    );
                    return self.blocked(change, "too-few-healthy", text);
                }
                Serving::Unknown => {
                    let text = format!("{id}: {}.", self.who_is_silent(id));
                    return self.blocked(change, "proxy-silent", text);
                }
            }
        }
        self.entries.push(Happened::DrainStarted {
            instance: id.clone(),
        });
        Ok(())
    }

    fn blocked(&mut self, change: &Change, code: &str, text: String) -> Step<()> {
        if self.late() {
            let mut failure = self.failure(change, code, text);
            failure.message = format!("The batch ran out of time. {}", failure.message);
            return Err(failure);
        }
        self.wait(Some(&change.instance), text);
        Ok(())
    }

    /// Waits until every proxy has confirmed that it gives the instance nothing new, and until its
    /// requests are over or out of time. A proxy that does not answer may still send requests by its
    /// old table, so nothing is done behind its back.
    fn draining(&mut self, batch: &Batch, change: &Change, since: Timestamp) -> Step<()> {
        let id = &change.instance;
        let Some(instance) = self.world.instances.get(id) else {
            self.entries.push(Happened::Drained {
                instance: id.clone(),
                cut: 0,
            });
            return Ok(());
        };
        let silent = self.unconfirmed(instance.routed);
        let in_flight: u32 = self
            .targets(id)
            .filter_map(|target| target.map(|target| target.in_flight))
            .sum();
        let over = since.after(Duration::from_millis(self.plan.timeouts.drain_ms));
        match silent {
            Some(who) if !(batch.force && self.late()) => self.blocked(
                change,
                "proxy-silent",
                format!("Draining {id}: {who} has not confirmed yet."),
            ),
            _ if in_flight == 0 || self.now >= over => {
                self.entries.push(Happened::Drained {
                    instance: id.clone(),
                    cut: in_flight,
                });
                Ok(())
            }
            _ => {
                self.wake_at(over);
                self.wait(
                    Some(id),
                    format!("Draining {id}: {in_flight} requests are under way."),
                );
                Ok(())
            }
        }
    }

    /// The change itself, now that no requests are lost by it.
    fn act(&mut self, change: &Change) -> Step<()> {
        let instance = change.instance.clone();
        let lost_host = self.world.host_lost(&change.host);
        match change.action {
            Action::Return => self.entries.push(Happened::PutIn {
                instance,
                forced: true,
            }),
            Action::Remove if lost_host => self.entries.push(Happened::Removed { instance }),
            Action::Remove => self.entries.push(Happened::StopOrdered { instance }),
            _ if lost_host => return Err(self.host_lost(change)),
            _ => self.entries.push(Happened::Switched { instance }),
        }
        Ok(())
    }

    fn stopping(&mut self, change: &Change, since: Timestamp) {
        let id = &change.instance;
        let gone = match (
            self.world.instances.get(id),
            self.world.hosts.get(&change.host),
        ) {
            (Some(instance), Some(host)) => match host.report {
                Some(report) if instance.ordered.is_some_and(|at| report.generation >= at) => host
                    .instance(id)
                    .is_none_or(|seen| seen.phase == InstancePhase::Stopped),
                _ => false,
            },
            _ => true,
        };
        if gone || self.late() || self.world.host_lost(&change.host) {
            self.entries.push(Happened::Removed {
                instance: id.clone(),
            });
        } else {
            let seconds = self.now.since(since).as_secs();
            self.wait(
                Some(id),
                format!("Waiting for {id} to stop, for {seconds} s."),
            );
        }
    }

    /// Waits for the new incarnation to run, then has it checked, then for it to prove well. Checks
    /// begin only once it runs: before, they would meet the incarnation before on the same port, and
    /// its good answers would count for the new one.
    fn starting(&mut self, change: &Change, checked: bool) -> Step<()> {
        let id = &change.instance;
        let world = self.world;
        let (Some(instance), Some(host)) = (world.instances.get(id), world.hosts.get(&change.host))
        else {
            return Err(self.host_lost(change));
        };
        if host.lost() {
            return Err(self.host_lost(change));
        }
        let seen = host
            .instance(id)
            .filter(|seen| seen.incarnation == instance.incarnation);
        let Some(seen) = seen else {
            let how = match host.reach {
                Reach::Silent(since) => format!("the host {}", unheard(since, self.now)),
                _ => "its agent has not begun".to_owned(),
            };
            let text = format!("Waiting for {id} on {}: {how}.", host.name);
            return self.blocked(change, "start-timeout", text);
        };
        self.crashed(change, seen)?;
        if seen.phase != InstancePhase::Running {
            let how = match &seen.phase {
                InstancePhase::Waiting => "its release is not ready there",
                InstancePhase::Restarting => "a process ended and is started again",
                InstancePhase::Stopping => "the processes before are ending",
                _ => "it is being started",
            };
            let text = format!("Waiting for {id} on {}: {how}.", host.name);
            return self.blocked(change, "start-timeout", text);
        }
        if !checked && matches!(self.plan.gate, Gate::Proxies { .. }) {
            self.entries.push(Happened::ProbeStarted {
                instance: id.clone(),
            });
            return Ok(());
        }
        let waiting = match self.plan.gate {
            Gate::Proxies { good_checks } => self.unproven(id, good_checks),
            Gate::Settle { for_ms } => {
                let said_at = host.report.map_or(Timestamp::EPOCH, |report| report.now);
                Self::unsettled(id, seen, said_at, for_ms)
            }
        };
        let Some(text) = waiting else {
            self.entries.push(Happened::PutIn {
                instance: id.clone(),
                forced: false,
            });
            return Ok(());
        };
        if self.late() && self.plan.ignore_health {
            self.entries.push(Happened::PutIn {
                instance: id.clone(),
                forced: true,
            });
            return Ok(());
        }
        self.blocked(change, "unhealthy", text)
    }

    /// What a proxy still misses before the instance may serve.
    fn unproven(&self, id: &InstanceId, good_checks: u32) -> Option<String> {
        if self.world.proxies.is_empty() {
            return Some(format!("Waiting for {id}: no proxy has reported yet."));
        }
        self.world
            .proxies
            .iter()
            .zip(self.targets(id))
            .find_map(|(proxy, target)| match target {
                Some(target) if target.good_checks >= good_checks => None,
                Some(target) => Some(format!(
                    "Waiting for {id}: {} of {good_checks} good checks, {}.",
                    target.good_checks,
                    last_answer(target)
                )),
                None => Some(format!(
                    "Waiting for {id}: proxy {} does not check it yet.",
                    proxy.name
                )),
            })
    }

    /// How long it still has to stay up, by its host's own clock: a report that says how long it ran
    /// is proof, the time that passed here since an old report is none.
    fn unsettled(
        id: &InstanceId,
        seen: &InstanceReport,
        said_at: Timestamp,
        for_ms: u64,
    ) -> Option<String> {
        let up = said_at.since(seen.since).as_millis();
        let left = u128::from(for_ms).saturating_sub(up);
        (left > 0).then(|| format!("Waiting for {id} to stay up for {left} ms more."))
    }

    /// Waits for the proxies to confirm that the instance serves.
    fn put_in(&mut self, change: &Change, forced: bool) -> Step<()> {
        let id = &change.instance;
        let Some(instance) = self.world.instances.get(id) else {
            return Err(self.host_lost(change));
        };
        if !self.world.web {
            self.entries.push(Happened::InService {
                instance: id.clone(),
            });
            return Ok(());
        }
        if !forced
            && let Some(seen) = self
                .world
                .hosts
                .get(&change.host)
                .and_then(|host| host.instance(id))
                .filter(|seen| seen.incarnation == instance.incarnation)
        {
            self.crashed(change, seen)?;
        }
        let text = if let Some(who) = self.unconfirmed(instance.routed) {
            format!("Putting {id} into service: {who} has not confirmed yet.")
        } else if let Some(sick) = self
            .targets(id)
            .find(|target| target.is_none_or(|target| !target.healthy))
            .filter(|_| !forced)
        {
            format!(
                "Putting {id} into service: {}.",
                sick.map_or_else(|| "it is not checked yet".to_owned(), last_answer)
            )
        } else {
            self.entries.push(Happened::InService {
                instance: id.clone(),
            });
            return Ok(());
        };
        self.blocked(change, "unhealthy", text)
    }

    /// A proxy that has not put a table in force, if there is one.
    fn unconfirmed(&self, wanted: Option<beanpole_protocol::Generation>) -> Option<String> {
        if !self.world.web {
            return None;
        }
        if self.world.proxies.is_empty() {
            return Some("the proxy".to_owned());
        }
        let proxy = self
            .world
            .proxies
            .iter()
            .find(|proxy| !proxy.confirmed(wanted))?;
        Some(match proxy.last_seen {
            Some(seen) if self.now.since(seen) > Duration::from_secs(5) => {
                format!("proxy {} ({})", proxy.name, unheard(seen, self.now))
            }
            _ => format!("proxy {}", proxy.name),
        })
    }

    fn who_is_silent(&self, id: &InstanceId) -> String {
        if !self.world.web {
            return "its host has not reported it".to_owned();
        }
        let incarnation = self.world.instances.get(id).map(|i| i.incarnation);
        self.world
            .proxies
            .iter()
            .find(|proxy| {
                incarnation.is_none_or(|incarnation| proxy.target(id, incarnation).is_none())
            })
            .map_or_else(
                || "no proxy has said yet how it is".to_owned(),
                |proxy| format!("proxy {} has not said yet how it is", proxy.name),
            )
    }

    /// What each proxy says of the present run of an instance.
    fn targets(&self, id: &InstanceId) -> impl Iterator<Item = Option<&TargetReport>> {
        let incarnation = self
            .world
            .instances
            .get(id)
            .map(|instance| instance.incarnation)
            .unwrap_or_default();
        let id = id.clone();
        self.world
            .proxies
            .iter()
            .map(move |proxy| proxy.target(&id, incarnation))
    }

    /// Fails at once when it will not come up, instead of waiting for the time-out.
    fn crashed(&self, change: &Change, seen: &InstanceReport) -> Step<()> {
        if let InstancePhase::Failed(why) = &seen.phase {
            let mut failure = self.failure(change, &why.code, why.message.clone());
            if !why.log.is_empty() {
                failure.log = last_lines(&why.log);
            }
            return Err(failure);
        }
        let crashing = seen
            .processes
            .iter()
            .filter(|process| process.restarts >= RESTARTS_THAT_FAIL)
            .max_by_key(|process| process.restarts);
        if let Some(process) = crashing {
            let how = process.last_exit.as_ref().map_or_else(String::new, |exit| {
                match (exit.oom, exit.code, exit.signal) {
                    (true, ..) => ", the last time killed for using too much memory".to_owned(),
                    (_, Some(code), _) => format!(", the last time with exit code {code}"),
                    (_, _, Some(signal)) => format!(", the last time by signal {signal}"),
                    _ => String::new(),
                }
            });
            let text = format!(
                "Process `{}` of {} ended {} times{how}.",
                process.name, change.instance, process.restarts
            );
            return Err(self.failure(change, "crashing", text));
        }
        Ok(())
    }

    /// A failure of an instance, with everything that is known of it.
    fn failure(&self, change: &Change, code: &str, message: String) -> Box<OperationFailure> {
        let id = &change.instance;
        let log = self
            .world
            .hosts
            .get(&change.host)
            .and_then(|host| host.instance(id))
            .map(|seen| last_lines(&seen.log))
            .unwrap_or_default();
        let check = self
            .targets(id)
            .flatten()
            .filter_map(|target| target.last_check.as_ref())
            .min_by_key(|check| check.good);
        Box::new(OperationFailure {
            code: code.to_owned(),
            message,
            instance: Some(id.clone()),
            host: host_name(&self.world.host_name(&change.host)),
            // The engine knows what is asked; it fills this in.
            probe: None,
            answer: check.map(|check| check.answer.clone()),
            log,
        })
    }

    fn host_lost(&self, change: &Change) -> Box<OperationFailure> {
        let name = self.world.host_name(&change.host);
        let why = match self.world.hosts.get(&change.host).map(|host| host.reach) {
            Some(Reach::Lost(since) | Reach::Silent(since)) => unheard(since, self.now),
            Some(Reach::Here) => "lost the instance".to_owned(),
            None => "was removed".to_owned(),
        };
        lost(&name, Some(&change.instance), &why)
    }
}

fn lost(name: &str, instance: Option<&InstanceId>, why: &str) -> Box<OperationFailure> {
    Box::new(OperationFailure {
        code: "host-lost".to_owned(),
        message: match instance {
            Some(id) => format!("Host {name}, which holds {id}, {why}."),
            None => format!("Host {name} {why}."),
        },
        instance: instance.cloned(),
        host: host_name(name),
        probe: None,
        answer: None,
        log: Vec::new(),
    })
}

fn prepare_failed(
    release: ReleaseNumber,
    name: &str,
    instance: Option<&InstanceId>,
    failure: &Failure,
) -> Box<OperationFailure> {
    Box::new(OperationFailure {
        code: failure.code.clone(),
        message: format!(
            "Release {release} could not be prepared on {name}: {}",
            failure.message
        ),
        instance: instance.cloned(),
        host: host_name(name),
        probe: None,
        answer: None,
        log: last_lines(&failure.log),
    })
}

fn host_name(name: &str) -> Option<beanpole_protocol::HostName> {
    beanpole_protocol::HostName::new(name).ok()
}

fn last_lines(lines: &[String]) -> Vec<String> {
    lines[lines.len().saturating_sub(LOG_LINES)..].to_vec()
}

fn last_answer(target: &TargetReport) -> String {
    target.last_check.as_ref().map_or_else(
        || "no answer yet".to_owned(),
        |check| format!("last answer {}", check.answer),
    )
}

fn unheard(since: Timestamp, now: Timestamp) -> String {
    format!("has not been heard of for {} s", now.since(since).as_secs())
}
