//! Ending what a dead shim left behind.
//!
//! A shim that was killed cannot end its processes, and they cannot be adopted: nobody reads
//! their output any more and their exit codes are lost. They are found by their cgroup; else by
//! what the state file recorded, guarded against reused process ids by the start time; else,
//! because one may have daemonised, by the instance's id in their environment.

use crate::fences::signal;
use crate::shim::proc;
use crate::shim::spec::{ShimSpec, VERSION, files};
use crate::shim::wire::{GateStatus, Identity, Stage, Status};
use beanpole_daemon::clock::now;
use beanpole_protocol::agent::MemoryKills;
use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long SIGKILL may take. A process in an uninterruptible wait needs longer than anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// Names the instance in the environment of its processes.
pub(super) const MARK: &str = "BEANPOLE_INSTANCE";

/// What the state file of an instance says. Nothing that ran in an earlier boot runs in this one,
/// whatever the file says and whoever has those process ids now.
pub(super) fn last_status(directory: &Path) -> Option<Status> {
    let read = beanpole_daemon::files::read_json(&directory.join(files::STATE));
    let mut status: Status = read.unwrap_or_else(|error| {
        tracing::warn!(%error, "the state file of an instance is of no use");
        None
    })?;
    if status.boot_id != proc::boot_id() {
        status.shim = NOBODY;
        for process in &mut status.processes {
            process.running = None;
            process.starts_at = None;
        }
    }
    Some(status)
}

/// No process has this.
const NOBODY: Identity = Identity { pid: 0, start: 0 };

/// For an instance that has a spec and no state: it has stopped before it ran. Seen like this, it is
/// started or removed as ordered; unseen, it would stay for good.
pub(super) fn never_started(directory: &Path) -> Option<Status> {
    let spec: ShimSpec = beanpole_daemon::files::read_json(&directory.join(files::SPEC)).ok()??;
    Some(Status {
        v: VERSION,
        instance: spec.instance,
        release: spec.release,
        incarnation: spec.incarnation,
        shim: NOBODY,
        boot_id: proc::boot_id(),
        stage: Stage::Stopped,
        since: now(),
        processes: Vec::new(),
        lines_lost: 0,
        memory_kills: MemoryKills::default(),
        gate: GateStatus::default(),
    })
}

/// Kills everything of an instance, its shim included, and waits until it is gone. Blocks.
/// The error says what is left.
pub(super) fn clean(directory: &Path, spec: &ShimSpec) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    let status = last_status(directory).filter(|status| status.boot_id == proc::boot_id());
    if let Some(shim) = status.as_ref().map(|status| status.shim)
        && shim.lives()
    {
        signal(shim.pid, Signal::KILL);
    }
    loop {
        let left = leftovers(spec, status.as_ref());
        if left.is_empty() {
            break;
        }
        if Instant::now() > end {
            return Err(format!("processes {left:?} do not end"));
        }
        if let Some(group) = &spec.cgroup {
            group.kill();
        }
        for pid in left {
            signal(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    if let Some(group) = &spec.cgroup {
        // Busy for a moment longer than its processes live; a new shim can use it as it is.
        let _ = group.remove(Duration::from_millis(200));
    }
    Ok(())
}

fn leftovers(spec: &ShimSpec, status: Option<&Status>) -> Vec<i32> {
    let mut left = Vec::new();
    if let Some(group) = &spec.cgroup {
        left.extend(group.processes().into_iter().filter(|pid| alive(*pid)));
    }
    if let Some(status) = status {
        let running = status.processes.iter().filter_map(|p| p.running);
        left.extend(running.filter(|one| one.lives()).map(|one| one.pid));
        if status.shim.lives() {
            left.push(status.shim.pid);
        }
    }
    if spec.cgroup.is_none() {
        let mark = format!("{MARK}={}", spec.instance);
        left.extend(
            proc::all()
                .into_iter()
                .filter(|pid| proc::carries(*pid, &mark)),
        );
    }
    left.sort_unstable();
    left.dedup();
    left
}

fn alive(pid: i32) -> bool {
    proc::Stat::of(pid).is_some_and(|stat| stat.alive())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::wire::ProcessStatus;
    use beanpole_protocol::{Incarnation, InstanceId, ReleaseNumber};

    #[test]
    fn what_ran_before_the_machine_was_booted_does_not_run_any_more() {
        let directory = tempfile::tempdir().expect("directory");
        let this = Identity::of(std::process::id().cast_signed()).expect("this process");
        let status = |boot_id: String| Status {
            v: VERSION,
            instance: InstanceId::from_bits(1),
            release: ReleaseNumber(1),
            incarnation: Incarnation(1),
            shim: this,
            boot_id,
            stage: Stage::Supervising,
            since: now(),
            processes: vec![ProcessStatus {
                name: "web".to_owned(),
                running: Some(this),
                started_at: Some(now()),
                restarts: 0,
                last_exit: None,
                ended_at: Vec::new(),
                starts_at: None,
            }],
            lines_lost: 0,
            memory_kills: MemoryKills::default(),
            gate: GateStatus::default(),
        };
        let read = |status: &Status| {
            let path = directory.path().join(files::STATE);
            beanpole_daemon::files::write_json(&path, status, 0o600).expect("write");
            last_status(directory.path()).expect("a status")
        };
        let same = status(proc::boot_id());
        assert_eq!(read(&same), same);
        let earlier = read(&status("another boot".to_owned()));
        assert_eq!(earlier.processes[0].running, None);
        assert!(!earlier.shim.lives());
        assert_eq!(earlier.stage, Stage::Supervising, "it shall run again");
    }
}
