//! Why a plan cannot go on, with the evidence.

use super::proxies::last_answer;
use super::{Step, Turn};
use crate::{Change, Gate, HostState, ProxyState, Reach};
use beanpole_protocol::agent::{
    Failure, INSTANCE_PORTS, InstancePhase, InstanceReport, PortUse, ProcessReport, Startup,
};
use beanpole_protocol::api::OperationFailure;
use beanpole_protocol::options::port_variable;
use beanpole_protocol::proxy::TargetReport;
use beanpole_protocol::{HostName, InstanceId, ReleaseNumber, Timestamp};
use std::time::Duration;

/// An app that ended that often in one incarnation will not come up: no reason to wait for the
/// time-out.
pub const RESTARTS_THAT_FAIL: u32 = 3;

/// The code of an instance whose time is up before its readiness command has succeeded.
pub(super) const NOT_READY: &str = "not-ready";

/// A host that was heard of that long after checks had begun to get no connection was there meanwhile: its
/// last report of before is not on the way any more. Agents report every five seconds at least.
const ON_THE_WAY: Duration = Duration::from_millis(500);

/// Log lines that a failure carries at most.
const LOG_LINES: usize = 20;

impl Turn<'_, '_> {
    /// Fails at once when it will not come up, instead of waiting for the time-out.
    pub(super) fn crashed(&self, change: &Change, seen: &InstanceReport) -> Step<()> {
        let why = match (&seen.phase, &seen.startup) {
            (InstancePhase::Failed(why), _) | (_, Some(Startup::Failed(why))) => Some(why),
            _ => None,
        };
        if let Some(why) = why {
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
            let how = how_it_ended(process)
                .map_or_else(String::new, |how| format!(", the last time {how}"));
            // The last time it was not started again yet.
            let times = process.restarts + u32::from(process.pid.is_none());
            let text = format!(
                "Process `{}` of {} ended {times} times{how}.",
                process.name, change.instance
            );
            return Err(self.failure(change, "crashing", text));
        }
        Ok(())
    }

    /// Fails when an instance that passed the gate has ended or lost its health since: a release that
    /// does not stay up must not go on to the other instances.
    pub(super) fn watch(&self) -> Step<()> {
        if !self.plan.watch || self.plan.ignore_health {
            return Ok(());
        }
        for (_, change) in self.plan.changes() {
            let id = &change.instance;
            // How it does says nothing about the new release.
            if self.progress.stand_in(id).is_some() {
                continue;
            }
            let (Some(before), Some(instance), Some(host)) = (
                self.progress.proven.get(id),
                self.world.instances.get(id),
                self.world.hosts.get(&change.host),
            ) else {
                continue;
            };
            if let Some(seen) = host
                .instance(id)
                .filter(|seen| seen.incarnation == instance.incarnation)
            {
                self.stayed_up(change, seen, *before)?;
            }
            // One that is not well because its host is cut off says nothing about the release.
            let bad_checks = match self.plan.gate {
                Gate::Proxies { bad_checks, .. } if host.reach == Reach::Here => bad_checks,
                _ => continue,
            };
            let sick = self
                .seen_by_proxies(id)
                .find(|(_, target)| !target.healthy && target.bad_checks >= bad_checks)
                .filter(|(proxy, sick)| self.is_there(host, proxy, sick));
            if let Some((_, sick)) = sick {
                let text = format!(
                    "{id} had passed its checks and is not well any more: {}.",
                    last_answer(sick)
                );
                return Err(self.failure(change, "unhealthy", text));
            }
        }
        Ok(())
    }

    /// Whether a host is known to be there though an instance on it gives no connection: it says so within
    /// seconds, or is lost before long.
    fn is_there(&self, host: &HostState<'_>, proxy: &ProxyState<'_>, sick: &TargetReport) -> bool {
        let connected = sick.last_check.as_ref().is_none_or(|check| check.connected);
        connected || self.heard_since(host, proxy, sick)
    }

    /// Whether a host was heard of since the first of the bad checks in a row, by the time here.
    fn heard_since(
        &self,
        host: &HostState<'_>,
        proxy: &ProxyState<'_>,
        sick: &TargetReport,
    ) -> bool {
        let said = proxy.last_seen.unwrap_or(self.now).as_millis();
        let first = Timestamp::from_millis(said.saturating_sub(sick.bad_for_ms));
        host.heard
            .is_some_and(|heard| heard >= first.after(ON_THE_WAY))
    }

    fn stayed_up(&self, change: &Change, seen: &InstanceReport, before: u32) -> Step<()> {
        if matches!(seen.phase, InstancePhase::Failed(_)) {
            return self.crashed(change, seen);
        }
        if restarts(seen) <= before && seen.phase != InstancePhase::Restarting {
            return Ok(());
        }
        let ended = seen
            .processes
            .iter()
            .max_by_key(|process| process.last_exit.as_ref().map(|exit| exit.at));
        let (name, how) = ended.map_or(("", None), |process| {
            (process.name.as_str(), how_it_ended(process))
        });
        let how = how.map_or_else(String::new, |how| format!(" {how}"));
        let text = format!(
            "Process `{name}` of {} ended{how} after it had passed its checks.",
            change.instance
        );
        Err(self.failure(change, "crashing", text))
    }

    /// A failure of an instance, with everything that is known of it.
    pub(super) fn failure(
        &self,
        change: &Change,
        code: &str,
        message: String,
    ) -> Box<OperationFailure> {
        let id = &change.instance;
        let host = self.world.hosts.get(&change.host);
        let seen = host.and_then(|host| host.instance(id));
        let log = seen.map(|seen| last_lines(&seen.log)).unwrap_or_default();
        let check = self
            .seen_by_proxies(id)
            .filter_map(|seen| Some((seen, seen.1.last_check.as_ref()?)))
            // How it answers its checks is another question.
            .filter(|_| code != NOT_READY)
            .min_by_key(|(_, check)| check.good);
        let unreached =
            seen.zip(host)
                .zip(check)
                .is_some_and(|((seen, host), ((proxy, target), _))| {
                    listens_unreached(seen, target) && self.heard_since(host, proxy, target)
                });
        let silent = check.and_then(|((_, target), check)| {
            let silent = !check.connected && !target.process.is_empty();
            silent.then_some(target.process.as_str())
        });
        let check = check.map(|(_, check)| check);
        let message = if let Some(process) = silent {
            let variable = port_variable(process);
            format!(
                "{message} Process `{process}` has a port of its own: the one that has a line `{process}:` in the Procfile finds it in \
                 PORT, and every process in {variable}. It has to listen there on all addresses; where there is no such \
                 line, `web` has to."
            )
        } else if unreached {
            let (first, last) = (INSTANCE_PORTS.start(), INSTANCE_PORTS.end());
            format!(
                "{message} The app does listen on its port there: either on 127.0.0.1 alone, or a \
                 firewall keeps the load balancer out, which has to reach TCP {first} to {last} of \
                 every host."
            )
        } else {
            message
        };
        Box::new(OperationFailure {
            code: code.to_owned(),
            message,
            instance: Some(id.clone()),
            host: host_name(&self.world.host_name(&change.host)),
            probe: check.map(|check| check.asked.clone()),
            answer: check.map(|check| check.answer.clone()),
            log,
        })
    }

    pub(super) fn host_lost(&self, change: &Change) -> Box<OperationFailure> {
        let name = self.world.host_name(&change.host);
        let why = match self.world.hosts.get(&change.host).map(|host| host.reach) {
            None => "was removed".to_owned(),
            Some(Reach::Silent(since)) => unheard(since, self.now),
            Some(reach) => gone(reach, self.now).unwrap_or_else(|| "lost the instance".to_owned()),
        };
        lost(&name, Some(&change.instance), &why)
    }
}

/// Whether an instance listens on the port of its web process by its host's word, and a load balancer that asked
/// that one got no connection.
pub fn listens_unreached(seen: &InstanceReport, target: &TargetReport) -> bool {
    let check = target.last_check.as_ref();
    seen.phase == InstancePhase::Running
        && seen.port == PortUse::Own
        && target.process.is_empty()
        && check.is_some_and(|check| !check.good && !check.connected)
}

/// How often the processes of an instance were restarted.
pub fn restarts(seen: &InstanceReport) -> u32 {
    seen.processes
        .iter()
        .fold(0, |sum, process| sum.saturating_add(process.restarts))
}

/// How a process ended the last time, to be read after "ended".
pub fn how_it_ended(process: &ProcessReport) -> Option<String> {
    let exit = process.last_exit.as_ref()?;
    match (exit.oom, exit.code, exit.signal) {
        (true, ..) => Some("by the kernel, for using too much memory".to_owned()),
        (_, Some(code), _) => Some(format!("with exit code {code}")),
        (_, _, Some(signal)) => Some(format!("by signal {signal}")),
        _ => None,
    }
}

/// What became of a host that does nothing for this controller any more, to be read after its name.
pub(crate) fn gone(reach: Reach, now: Timestamp) -> Option<String> {
    match reach {
        Reach::Lost(since) => Some(unheard(since, now)),
        Reach::Taken(_) => Some("belongs to another controller now".to_owned()),
        Reach::Leaving(_) => Some("is being removed".to_owned()),
        Reach::Here | Reach::Silent(_) => None,
    }
}

pub(super) fn lost(name: &str, instance: Option<&InstanceId>, why: &str) -> Box<OperationFailure> {
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

pub(super) fn prepare_failed(
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

pub(super) fn host_name(name: &str) -> Option<HostName> {
    HostName::new(name).ok()
}

pub(super) fn last_lines(lines: &[String]) -> Vec<String> {
    lines[lines.len().saturating_sub(LOG_LINES)..].to_vec()
}

pub(super) fn unheard(since: Timestamp, now: Timestamp) -> String {
    format!("has not been heard of for {} s", now.since(since).as_secs())
}
