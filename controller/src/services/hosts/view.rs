//! A host as people see it: its record with what its link and its agent last said.

use super::local::LOCAL;
use crate::app::App;
use crate::services::edges;
use beanpole_fleet::bootstrap::Paths;
use beanpole_protocol::agent::HostFacts;
use beanpole_protocol::api::{Host, HostStatus};
use beanpole_store::model::{HostRecord, InstanceRecord};
use std::time::Duration;

/// A host not heard of for that long is Unreachable, in milliseconds.
const UNREACHABLE_AFTER_MS: u64 = 30_000;
/// A clock that differs by more gets a warning, in milliseconds.
const GREATEST_SKEW_MS: i64 = 2_000;

/// Below that many bytes free an agent takes no bundle (it keeps 64 MiB for orders and records), or
/// will take none soon.
const DISK_SHORT_BYTES: u64 = 128 << 20;
/// A big disk gets a warning earlier: when one part in so many is left, if that is less than this.
const DISK_SHORT_PART: u64 = 20;
const DISK_PLENTY_BYTES: u64 = 2 << 30;

/// What is to be said of the disk that holds an agent's data, if it is full or nearly so.
fn disk_warning(facts: &HostFacts) -> Option<String> {
    let (total, free) = (facts.disk_total_bytes, facts.disk_available_bytes);
    let short =
        free < DISK_SHORT_BYTES || (free < DISK_PLENTY_BYTES && free < total / DISK_SHORT_PART);
    if total == 0 || !short {
        return None;
    }
    let how = if free < 1 << 20 {
        "full"
    } else {
        "nearly full"
    };
    Some(format!(
        "Its disk is {how}: {} of {} MiB are free where its agent keeps its data.",
        free >> 20,
        total >> 20
    ))
}

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
    if let Some(words) = &state.not_taken {
        warnings.push(format!(
            "It cannot take orders: {words} What it holds goes on; nothing new is done there until it can."
        ));
    }
    if let Some(refused) = &state.refused {
        warnings.push(format!("Its agent refused orders: {refused}"));
    }
    warnings.extend(report.and_then(|report| disk_warning(&report.facts)));
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
    warnings.extend(edges::warnings(app, host, &observed));
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
        installs: host.installs(),
        instances: instances.iter().filter(|i| i.host == host.id).count() as u32,
        added_at: host.added_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(total_mib: u64, free_mib: u64) -> Option<String> {
        disk_warning(&HostFacts {
            disk_total_bytes: total_mib << 20,
            disk_available_bytes: free_mib << 20,
            ..HostFacts::default()
        })
    }

    #[test]
    fn a_disk_that_is_full_or_nearly_so_is_warned_of() {
        assert_eq!(of(0, 0), None, "nothing is known of it");
        assert_eq!(of(20_480, 4_096), None);
        assert_eq!(of(1_024, 200), None, "small, but not full");
        assert_eq!(of(2_000_000, 3_000), None, "big enough in itself");
        let nearly = of(20_480, 900).expect("a warning");
        assert!(nearly.contains("nearly full: 900 of 20480 MiB"), "{nearly}");
        let full = of(48, 0).expect("a warning");
        assert!(full.contains("is full: 0 of 48 MiB"), "{full}");
    }
}
