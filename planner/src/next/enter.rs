//! The way into service: started, checked without traffic, put in.

use super::failure::{NOT_READY, restarts, unheard};
use super::prepare::OUTDATED;
use super::proxies::last_answer;
use super::{Bound, Step, Turn};
use crate::{Batch, Change, ChangeState, Gate, Happened, HostState, Reach, Serving, unready};
use beanpole_protocol::agent::{InstancePhase, InstanceReport, PortUse};
use beanpole_protocol::proxy::TargetMode;
use beanpole_protocol::{InstanceId, ReleaseNumber, Timestamp};
use std::time::Duration;

/// How long good answers wait for the agent to see the socket. It looks many times a second.
const LISTENER_SEEN_WITHIN: Duration = Duration::from_secs(10);

/// How long good answers of a port that its agent still calls free have to last after that: by then it
/// would have found another program there, which takes it three looks. It looks less often at an
/// instance that started longer ago than [`YOUNG`].
const STRANGER_FOUND_WITHIN: Duration = Duration::from_secs(2);
const YOUNG: Duration = Duration::from_mins(2);
const STRANGER_FOUND_WITHIN_LATER: Duration = Duration::from_secs(12);

/// What agents call it when another program has an instance's port.
const PORT_TAKEN: &str = "port-taken";

/// Other ports that an instance is given when its own turns out taken, before the plan fails: whatever
/// takes four in a row will take the fifth.
pub const OTHER_PORTS: u32 = 3;

impl Turn<'_, '_> {
    /// Waits for the new incarnation to run, then has it checked, then for it to prove well. Checks
    /// begin only once it runs: before, they would meet the incarnation before on the same port, and
    /// its good answers would count for the new one.
    pub(super) fn starting(
        &mut self,
        batch: &Batch,
        change: &Change,
        bound: Bound,
        checked: bool,
    ) -> Step<()> {
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
                _ if host.cannot.is_none() && host.instance(id).is_some() => {
                    "the processes before are ending".to_owned()
                }
                _ => host.not_begun(),
            };
            let text = format!("Waiting for {id} on {}: {how}.", host.name);
            return self.blocked(change, bound, "start-timeout", text);
        };
        if let InstancePhase::Failed(why) = &seen.phase
            && why.code == PORT_TAKEN
            && self.progress.taken.get(id).copied().unwrap_or(0) < OTHER_PORTS
        {
            self.entries.push(Happened::PortTaken {
                instance: id.clone(),
                message: why.message.clone(),
            });
            return Ok(());
        }
        self.crashed(change, seen)?;
        if seen.phase != InstancePhase::Running {
            self.prepared(change, host)?;
            let how = match &seen.phase {
                InstancePhase::Waiting => "its release is not ready there",
                InstancePhase::Restarting => "a process ended and is started again",
                InstancePhase::Stopping => "the processes before are ending",
                _ => "it is being started",
            };
            let text = format!("Waiting for {id} on {}: {how}.", host.name);
            return self.blocked(change, bound, "start-timeout", text);
        }
        if !checked && matches!(self.plan.gate, Gate::Proxies { .. }) {
            self.entries.push(Happened::ProbeStarted {
                instance: id.clone(),
            });
            return Ok(());
        }
        self.ran_its_commands(change, host)?;
        if instance.asks_ready && seen.startup.is_none() {
            let text = format!(
                "The agent on {} is of a version that runs no readiness command; \
                 `beanpole host upgrade {}` brings it up to date.",
                host.name, host.name
            );
            return Err(self.failure(change, OUTDATED, text));
        }
        let said_at = host.report.map_or(Timestamp::EPOCH, |report| report.now);
        let unready = unready(seen).map(|how| format!("Waiting for {id}: {how}."));
        let code = if unready.is_some() {
            NOT_READY
        } else {
            "unhealthy"
        };
        let waiting = unready.or_else(|| match self.plan.gate {
            Gate::Proxies {
                good_checks,
                up_ms,
                every,
                ..
            } => {
                // The first has shown that its release stays up, and is watched like all that pass. One that
                // was put in because it was alone has not, before it was up for as long.
                let has_stood = self.progress.proven.keys().any(|other| {
                    let runs = world.instances.get(other).map(|other| other.release);
                    runs == Some(instance.release) && self.stood(other, up_ms) == Some(Ok(()))
                });
                // While no other release serves, waiting protects nobody: it is watched for as long in service.
                let is_alone =
                    self.plan.watch && !batch.hold && !self.another_serves(instance.release);
                let up_ms = if !every && (has_stood || is_alone) {
                    0
                } else {
                    up_ms
                };
                self.unproven(id, good_checks)
                    .or_else(|| Self::unsettled(id, seen, said_at, up_ms))
            }
            Gate::Settle { for_ms } => Self::unsettled(id, seen, said_at, for_ms),
        });
        let waiting = waiting.or_else(|| self.unseen(id, host, seen, bound));
        let restarts = match waiting {
            None => Some(restarts(seen)),
            Some(_) if self.late(bound) && self.plan.ignore_health => None,
            Some(text) => return self.blocked(change, bound, code, text),
        };
        let instance = id.clone();
        self.entries
            .push(if batch.hold || batch.enters.contains(id) {
                Happened::Held { instance, restarts }
            } else {
                Happened::PutIn {
                    instance,
                    forced: restarts.is_none(),
                    restarts,
                }
            });
        Ok(())
    }

    /// Puts all of `enters` into service at once, and takes all out that leaves with them; whether they
    /// serve.
    pub(super) fn enter(&mut self, enters: &[InstanceId], leaves: &[Change]) -> Step<bool> {
        let (all, held) = self.entering(enters)?;
        if held.is_empty() {
            return Ok(all);
        }
        for change in leaves {
            let id = &change.instance;
            let instance = self.world.instances.get(id);
            if self.progress.of(id) == ChangeState::Pending
                && instance.is_some_and(|instance| instance.mode == Some(TargetMode::Serve))
            {
                self.entries.push(Happened::DrainStarted {
                    instance: id.clone(),
                });
            }
        }
        Ok(false)
    }

    /// Puts those of `enters` in that wait, once all of them are as well as they were; whether all serve,
    /// and which were put in.
    pub(super) fn entering(&mut self, enters: &[InstanceId]) -> Step<(bool, Vec<InstanceId>)> {
        let plan = self.plan;
        let changes: Vec<&Change> = plan
            .changes()
            .map(|(_, change)| change)
            .filter(|change| enters.contains(&change.instance))
            .collect();
        let mut all = true;
        let mut ready = true;
        let mut held = Vec::new();
        for change in changes {
            let state = self.progress.of(&change.instance);
            all &= state == ChangeState::Done;
            match state {
                ChangeState::Held => held.push(change),
                ChangeState::Serving { since, forced } => self.put_in(change, since, forced)?,
                ChangeState::Done => {}
                // One that took the place of another is still on its way.
                _ => ready = false,
            }
        }
        for change in &held {
            ready &= self.still_proven(change)?;
        }
        if !ready {
            return Ok((all, Vec::new()));
        }
        for change in &held {
            let restarts = self.progress.proven.get(&change.instance).copied();
            self.entries.push(Happened::PutIn {
                instance: change.instance.clone(),
                forced: restarts.is_none(),
                restarts,
            });
        }
        let ids = held.into_iter().map(|change| change.instance.clone());
        Ok((all, ids.collect()))
    }

    /// Whether one that waits is as well as it was when it passed the gate.
    fn still_proven(&mut self, change: &Change) -> Step<bool> {
        let id = &change.instance;
        let world = self.world;
        let Some(host) = world.hosts.get(&change.host).filter(|host| !host.lost()) else {
            return Err(self.host_lost(change));
        };
        let Some(instance) = world.instances.get(id) else {
            return Err(self.host_lost(change));
        };
        let seen = host
            .instance(id)
            .filter(|seen| seen.incarnation == instance.incarnation);
        if let Some(seen) = seen {
            self.crashed(change, seen)?;
        }
        let ignored = self.plan.ignore_health && !self.progress.proven.contains_key(id);
        let waiting = match self.plan.gate {
            Gate::Proxies { good_checks, .. } if !ignored => self.unproven(id, good_checks),
            _ => None,
        };
        match waiting {
            None => Ok(true),
            Some(text) => {
                let bound = self.stage_bound();
                self.blocked(change, bound, "unhealthy", text)?;
                Ok(false)
            }
        }
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
                    "Waiting for {id}{}: {} of {good_checks} good checks, {}.",
                    self.silent_host(id),
                    target.good_checks,
                    last_answer(target)
                )),
                None => Some(format!(
                    "Waiting for {id}: proxy {} does not check it yet.",
                    proxy.name
                )),
            })
    }

    /// Where an instance runs, when its host is not heard of: that may be why it answers nothing.
    fn silent_host(&self, id: &InstanceId) -> String {
        let instance = self.world.instances.get(id);
        let host = instance.and_then(|instance| self.world.hosts.get(&instance.host));
        match host.map(|host| (host, host.reach)) {
            Some((host, Reach::Silent(since))) => {
                format!(" (host {} {})", host.name, unheard(since, self.now))
            }
            _ => String::new(),
        }
    }

    /// Good answers from a port on which its host has not seen the instance listen may be those of
    /// another program. Its agent is about to say; for a listener that it cannot see, the answers have
    /// to do, once a report says that the port still counts as free after they have lasted.
    fn unseen(
        &mut self,
        id: &InstanceId,
        host: &HostState<'_>,
        seen: &InstanceReport,
        bound: Bound,
    ) -> Option<String> {
        if !self.world.web || seen.port != PortUse::Free {
            return None;
        }
        let patience = bound.since.after(LISTENER_SEEN_WITHIN);
        if self.now < patience {
            self.wake_at(patience);
        } else {
            let said_at = host.report.map_or(Timestamp::EPOCH, |report| report.now);
            let sure = if said_at.since(seen.since) < YOUNG {
                STRANGER_FOUND_WITHIN
            } else {
                STRANGER_FOUND_WITHIN_LATER
            };
            let answered = self.answered_since(id);
            if host
                .heard
                .is_some_and(|heard| heard >= answered.after(sure))
            {
                return None;
            }
        }
        Some(format!(
            "Waiting for {id}: its host has not seen it listen on its port yet."
        ))
    }

    /// When the last of the proxies got its first good answer, by the time here.
    fn answered_since(&self, id: &InstanceId) -> Timestamp {
        self.world
            .proxies
            .iter()
            .zip(self.targets(id))
            .map(|(proxy, target)| {
                let said = proxy.last_seen.unwrap_or(self.now).as_millis();
                let lasted = target.map_or(0, |target| target.good_for_ms);
                Timestamp::from_millis(said.saturating_sub(lasted))
            })
            .max()
            .unwrap_or(self.now)
    }

    /// Whether an instance of another release serves.
    fn another_serves(&self, release: ReleaseNumber) -> bool {
        let mut all = self.world.instances.iter();
        all.any(|(id, one)| one.release != release && self.world.serving(id) == Serving::Yes)
    }

    /// Whether an instance has been up for that long, else for how long it still has to stay up, in words; none
    /// where nobody can say: it is cut off.
    pub(super) fn stood(&self, id: &InstanceId, for_ms: u64) -> Option<Result<(), String>> {
        let instance = self.world.instances.get(id)?;
        let host = self.world.hosts.get(&instance.host)?;
        let seen = host.instance(id).filter(|_| host.reach == Reach::Here)?;
        let said_at = host.report?.now;
        let is_it = seen.incarnation == instance.incarnation;
        is_it.then(|| Self::unsettled(id, seen, said_at, for_ms).map_or(Ok(()), Err))
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
        (left > 0).then(|| {
            format!(
                "Waiting for {id} to stay up for {} s more.",
                left.div_ceil(1_000)
            )
        })
    }

    /// Waits for the proxies to confirm that the instance serves.
    pub(super) fn put_in(&mut self, change: &Change, since: Timestamp, forced: bool) -> Step<()> {
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
        let timeouts = self.plan.timeouts;
        let (may_take, code, text) = if let Some(who) = self.unconfirmed(instance.routed) {
            let text = format!("Putting {id} into service: {who} has not confirmed yet.");
            (timeouts.confirmed_ms(), "proxy-silent", text)
        } else if let Some(sick) = self
            .targets(id)
            .find(|target| target.is_none_or(|target| !target.healthy))
            .filter(|_| !forced)
        {
            let how = sick.map_or_else(|| "it is not checked yet".to_owned(), last_answer);
            let text = format!("Putting {id} into service: {how}.");
            (timeouts.batch_ms, "unhealthy", text)
        } else {
            self.entries.push(Happened::InService {
                instance: id.clone(),
            });
            return Ok(());
        };
        let bound = self.bound(since, may_take);
        self.blocked(change, bound, code, text)
    }
}
