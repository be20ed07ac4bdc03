//! A host as people see it: its record with what its link and its agent last said.

use super::local::LOCAL;
use crate::app::App;
use beanpole_fleet::bootstrap::Paths;
use beanpole_protocol::api::{Host, HostStatus};
use beanpole_store::model::{HostRecord, InstanceRecord};
use std::time::Duration;

/// A host not heard of for that long is Unreachable, in milliseconds.
const UNREACHABLE_AFTER_MS: u64 = 30_000;
/// A clock that differs by more gets a warning, in milliseconds.
const GREATEST_SKEW_MS: i64 = 2_000;

pub(super) fn view(app: &App, host: &HostRecord, instances: &[InstanceRecord]) -> Host {
    let observed = app.observations.snapshot();
    let seen = observed.hosts.get(&host.id);
    let state = app.links.state(&host.id);
    let report = seen.and_then(|seen| seen.report.as_ref());
    let connected = seen.is_some_and(|seen| seen.connected);
    let last_seen = seen.and_then(|seen| seen.last_seen);
    let quiet = last_seen
        .is_none_or(|at| app.time.now().since(at) >= Duration::from_millis(UNREACHABLE_AFTER_MS));
    let status = if host.taken.is_some() {
        HostStatus::TakenOver
    } else if state.shown_key.is_some() {
        HostStatus::KeyChanged
    } else if report.is_none() && !quiet {
        HostStatus::Connecting
    } else if quiet {
        HostStatus::Unreachable
    } else if host.draining || host.removing {
        HostStatus::Draining
    } else {
        HostStatus::Ready
    };
    let mut warnings = Vec::new();
    if let Some(owner) = &host.taken {
        let what_next = if host.local {
            "If that one is gone: remove agent/owner.json in the data directory of this machine's agent and start it again; what it holds for that one ends then.".to_owned()
        } else {
            format!(
                "Forget it: beanpole host remove {} --force. Or take it back, which ends all that it holds there: beanpole host add … --take-over",
                host.name
            )
        };
        warnings.push(format!(
            "It belongs to the controller {} since {}, and does nothing for this one ({}). {what_next}",
            owner.controller, owner.since, app.identity
        ));
    }
    if !connected {
        warnings.extend(state.trouble.clone());
    }
    if let Some(shown) = &state.shown_key {
        warnings.push(format!(
            "If you know why its key changed: beanpole host accept-key {} --host-key {shown}",
            host.name
        ));
    }
    if let Some(skew) = state
        .clock_skew_ms
        .filter(|skew| skew.abs() > GREATEST_SKEW_MS)
    {
        warnings.push(format!(
            "Its clock is {:.1} s {} the controller's.",
            skew.unsigned_abs() as f64 / 1000.0,
            if skew > 0 { "ahead of" } else { "behind" }
        ));
    }
    let agent_version = report.map(|report| report.agent_version.clone());
    if let Some(theirs) = &agent_version
        && *theirs != app.executables.version
    {
        warnings.push(format!(
            "Its agent has version {theirs}, the controller {}: beanpole host upgrade {}",
            app.executables.version, host.name
        ));
    }
    if let Some(report) = report
        && !host.local
        && report.facts.started_at_boot_by.is_none()
    {
        warnings.push(format!(
            "Nothing of ours starts its agent after a reboot. Have the machine's own init run {} at boot, or add the host again then.",
            Paths::default().start_agent().display()
        ));
    }
    if let Some(refused) = &state.refused {
        warnings.push(format!("Its agent refused orders: {refused}"));
    }
    Host {
        id: host.id.clone(),
        name: host.name.clone(),
        address: host
            .ssh
            .as_ref()
            .map_or_else(|| LOCAL.to_owned(), ToString::to_string),
        host_key: host.fingerprint.clone(),
        status,
        warnings,
        last_seen: last_seen.filter(|_| report.is_some()),
        agent_version,
        clock_skew_ms: state.clock_skew_ms,
        facts: report.map(|report| report.facts.clone()),
        labels: host.labels.clone(),
        instances: instances.iter().filter(|i| i.host == host.id).count() as u32,
        added_at: host.added_at,
    }
}
