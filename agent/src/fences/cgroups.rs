//! Limits by cgroup, version 1 or 2: one group per instance, `beanpole/ID`, at the top of each
//! tree. At the top, because a group inside the agent's own unit would end with that unit.

use beanpole_protocol::InstanceId;
use beanpole_protocol::agent::Limits;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Everything of ours is below this directory of each tree.
const PARENT: &str = "beanpole";
/// Where the shims are, outside of the limits of what they supervise.
const SHIMS: &str = "shims";
/// The period over which CPU time is shared out, in microseconds; the kernel's own default.
const PERIOD_US: u64 = 100_000;

/// The trees of this machine that can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    unified: Option<PathBuf>,
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
    pids: Option<PathBuf>,
}

impl Cgroups {
    /// Finds the trees that this process may make groups in, or says why there is none.
    pub fn detect() -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
        let found = Self::mounted(&mounts);
        let mut why = "no cgroup tree is mounted here".to_owned();
        let usable = |root: Option<PathBuf>, why: &mut String| {
            let root = root?;
            match fs::create_dir(root.join(PARENT)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    *why = format!("{}: {error}", root.display());
                    None
                }
                _ if rustix::fs::access(root.join(PARENT), rustix::fs::Access::WRITE_OK)
                    .is_err() =>
                {
                    *why = format!("{} belongs to another user", root.join(PARENT).display());
                    None
                }
                _ => Some(root),
            }
        };
        let cgroups = Self {
            memory: usable(found.memory, &mut why),
            cpu: usable(found.cpu, &mut why),
            pids: usable(found.pids, &mut why),
            unified: found
                .unified
                .filter(|root| has_controllers(root))
                .and_then(|root| usable(Some(root), &mut why))
                .and_then(|root| match delegate(&root) {
                    Ok(()) => Some(root),
                    Err(error) => {
                        why = format!("{}: {error}", root.display());
                        None
                    }
                }),
        };
        if cgroups == Self::default() {
            Err(why)
        } else {
            Ok(cgroups)
        }
    }

    /// Reads the mount points from the text of `/proc/self/mountinfo`.
    fn mounted(mountinfo: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(point) = left.split(' ').nth(4) else {
                continue;
            };
            let mut right = right.split(' ');
            let (kind, options) = (right.next(), right.nth(1).unwrap_or_default());
            let has = |name: &str| options.split(',').any(|option| option == name);
            let point = || Some(PathBuf::from(point));
            match kind {
                Some("cgroup2") if found.unified.is_none() => found.unified = point(),
                Some("cgroup") => {
                    for (name, slot) in [
                        ("memory", &mut found.memory),
                        ("cpu", &mut found.cpu),
                        ("pids", &mut found.pids),
                    ] {
                        if has(name) && slot.is_none() {
                            *slot = point();
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Which limits can be put in force: memory, CPU, processes.
    pub fn limits(&self) -> [bool; 3] {
        let unified = self.unified.is_some();
        [
            unified || self.memory.is_some(),
            unified || self.cpu.is_some(),
            unified || self.pids.is_some(),
        ]
    }

    /// `v1`, `v2`.
    pub fn version(&self) -> &'static str {
        if self.unified.is_some() { "v2" } else { "v1" }
    }

    /// The group of an instance, which need not exist.
    pub fn group(&self, id: &InstanceId) -> Group {
        let below = |root: &Option<PathBuf>, name: &str| {
            root.as_ref().map(|root| root.join(PARENT).join(name))
        };
        // A controller is in one tree only: where version 2 has them, version 1 has not.
        Group {
            unified: below(&self.unified, id.as_str()),
            memory: below(&self.memory, id.as_str()),
            cpu: below(&self.cpu, id.as_str()),
            pids: below(&self.pids, id.as_str()),
        }
    }

    /// Removes everything of ours that is empty. Returns what was removed.
    pub fn remove_all(&self) -> Vec<PathBuf> {
        let mut removed = Vec::new();
        for root in [&self.unified, &self.memory, &self.cpu, &self.pids]
            .into_iter()
            .flatten()
        {
            let parent = root.join(PARENT);
            for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(entry.path());
            }
            if fs::remove_dir(&parent).is_ok() {
                removed.push(parent);
            }
        }
        removed
    }
}

fn has_controllers(root: &Path) -> bool {
    fs::read_to_string(root.join("cgroup.controllers"))
        .is_ok_and(|list| list.split_whitespace().any(|name| name == "memory"))
}

/// Lets groups below `beanpole` use the controllers (version 2).
fn delegate(root: &Path) -> io::Result<()> {
    for directory in [root.to_owned(), root.join(PARENT)] {
        fs::write(
            directory.join("cgroup.subtree_control"),
            "+memory +cpu +pids",
        )?;
    }
    Ok(())
}

/// The group of one instance: a directory in each tree. Written into the shim's spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// In the tree of version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unified: Option<PathBuf>,
    /// In version 1's memory tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<PathBuf>,
    /// In version 1's CPU tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<PathBuf>,
    /// In version 1's pids tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<PathBuf>,
}

impl Group {
    fn directories(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.unified, &self.pids, &self.memory, &self.cpu]
            .into_iter()
            .flatten()
    }

    /// Makes the group with its limits. The error names the file.
    pub fn create(&self, limits: &Limits) -> Result<(), String> {
        for directory in self.directories() {
            fs::create_dir_all(directory)
                .map_err(|error| format!("{}: {error}", directory.display()))?;
        }
        let number = |limit: Option<u64>, none: &str| {
            limit.map_or_else(|| none.to_owned(), |limit| limit.to_string())
        };
        let quota = limits
            .cpu_millis
            // The kernel refuses a quota under a millisecond.
            .map(|millis| (millis * PERIOD_US / 1000).max(1_000));
        if let Some(group) = &self.unified {
            put(group, "memory.max", &number(limits.memory_bytes, "max"))?;
            if limits.memory_bytes.is_some() {
                // Swap would hide a leak until the whole machine crawls. Absent without swap.
                let _ = put(group, "memory.swap.max", "0");
            }
            put(group, "pids.max", &number(limits.pids, "max"))?;
            let quota = format!("{} {PERIOD_US}", number(quota, "max"));
            put(group, "cpu.max", &quota)?;
        }
        if let Some(group) = &self.memory {
            let limit = number(limits.memory_bytes, "-1");
            // The sum with swap may never be the smaller one, so the order depends on the way.
            let swap_first = put(group, "memory.memsw.limit_in_bytes", &limit).is_ok();
            put(group, "memory.limit_in_bytes", &limit)?;
            if !swap_first {
                let _ = put(group, "memory.memsw.limit_in_bytes", &limit);
            }
        }
        if let Some(group) = &self.cpu {
            put(group, "cpu.cfs_period_us", &PERIOD_US.to_string())?;
            put(group, "cpu.cfs_quota_us", &number(quota, "-1"))?;
        }
        if let Some(group) = &self.pids {
            put(group, "pids.max", &number(limits.pids, "max"))?;
        }
        Ok(())
    }

    /// The `cgroup.procs` files, open for a child to write itself into.
    pub(crate) fn doors(&self) -> Result<Vec<Arc<OwnedFd>>, String> {
        self.directories()
            .map(|directory| {
                let path = directory.join("cgroup.procs");
                fs::OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .map(|file| Arc::new(OwnedFd::from(file)))
                    .map_err(|error| format!("{}: {error}", path.display()))
            })
            .collect()
    }

    /// Puts this process among the shims, out of any limit and out of the agent's unit.
    pub(crate) fn shelter_shim(&self) {
        for directory in self.directories() {
            if let Some(parent) = directory.parent() {
                let shims = parent.join(SHIMS);
                let _ = fs::create_dir_all(&shims);
                let _ = fs::write(shims.join("cgroup.procs"), "0\n");
            }
        }
    }

    /// Every process in the group.
    pub fn processes(&self) -> Vec<i32> {
        let mut all: Vec<i32> = self
            .directories()
            .filter_map(|directory| fs::read_to_string(directory.join("cgroup.procs")).ok())
            .flat_map(|text| {
                text.lines()
                    .filter_map(|l| l.parse().ok())
                    .collect::<Vec<_>>()
            })
            .filter(|pid| *pid > 0)
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Sends SIGKILL to every process in the group, once; call it until [`Group::processes`] is
    /// empty, as a process may fork meanwhile.
    pub fn kill(&self) {
        if let Some(group) = &self.unified {
            // Linux 5.14 and later: all at once, forks included.
            if fs::write(group.join("cgroup.kill"), "1").is_ok() {
                return;
            }
        }
        for pid in self.processes() {
            super::signal(pid, rustix::process::Signal::KILL);
        }
    }

    /// How often the kernel killed a process of this group for memory.
    pub fn oom_kills(&self) -> u64 {
        let count = |directory: &Option<PathBuf>, file: &str| {
            let text = fs::read_to_string(directory.as_ref()?.join(file)).ok()?;
            text.lines()
                .find_map(|line| line.strip_prefix("oom_kill "))?
                .trim()
                .parse()
                .ok()
        };
        count(&self.unified, "memory.events")
            .or_else(|| count(&self.memory, "memory.oom_control"))
            .unwrap_or(0)
    }

    /// Removes the group. An empty group may be busy for a moment after its last process ended:
    /// tries until `patience` is over.
    pub fn remove(&self, patience: Duration) -> io::Result<()> {
        let end = Instant::now() + patience;
        for directory in self.directories() {
            loop {
                match fs::remove_dir(directory) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) if Instant::now() >= end => return Err(error),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        }
        Ok(())
    }
}

fn put(group: &Path, file: &str, value: &str) -> Result<(), String> {
    let path = group.join(file);
    fs::write(&path, value).map_err(|error| format!("{} = {value}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_found_in_mountinfo() {
        let text = "30 20 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                    31 20 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                    32 20 0:28 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n\
                    33 20 0:29 / /proc rw - proc proc rw\n";
        let found = Cgroups::mounted(text);
        assert_eq!(found.memory, Some("/sys/fs/cgroup/memory".into()));
        assert_eq!(found.cpu, Some("/sys/fs/cgroup/cpu,cpuacct".into()));
        assert_eq!(found.pids, None);
        assert_eq!(found.unified, Some("/sys/fs/cgroup/unified".into()));
    }
}
