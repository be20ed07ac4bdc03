//! Limits by cgroup, version 1 or 2: one group per instance, `beanpole/ID-TAG`, and one per build, at
//! the top of each tree. At the top, because a group inside the agent's own unit would end with that
//! unit. The tag is the agent's: several may share a machine, and each clears away its own.

use beanpole_protocol::InstanceId;
use beanpole_protocol::agent::{Limits, ReleaseKey};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Everything of ours is below this directory of each tree.
const PARENT: &str = "beanpole";
/// What the names of builds' groups begin with.
const BUILD: &str = "build-";
/// Where the shims are, outside of the limits of what they supervise.
const SHIMS: &str = "shims";
/// The period over which CPU time is shared out, in microseconds; the kernel's own default.
const PERIOD_US: u64 = 100_000;

/// How long the processes of a group that nobody owns may take to end.
const END: Duration = Duration::from_secs(10);

/// What limits memory, CPU and processes, by the names of version 2.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// Whose a group is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// An instance.
    Instance(InstanceId),
    /// A build: `ENVIRONMENT-NUMBER`, as its record is called.
    Build(String),
}

/// The trees of this machine that can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    /// In the names of its groups.
    tag: String,
    unified: Option<PathBuf>,
    /// Controllers that version 2's tree has not to offer.
    lacks: Vec<String>,
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
    pids: Option<PathBuf>,
}

impl Cgroups {
    /// Finds the trees that this process may make groups in, for the agent of this tag, or says why
    /// there is none.
    pub fn detect(tag: &str) -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
        Self::usable(Self {
            tag: tag.to_owned(),
            ..Self::mounted(&mounts)
        })
    }

    /// Those of the trees that were found which groups can be made in.
    fn usable(found: Self) -> Result<Self, String> {
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
        let tag = found.tag;
        let mut cgroups = Self {
            memory: usable(found.memory, &mut why),
            cpu: usable(found.cpu, &mut why),
            pids: usable(found.pids, &mut why),
            ..Self::default()
        };
        // Beside the trees of version 1 there is often one of version 2 with nothing in it.
        let unified = found.unified.filter(|root| has_controllers(root));
        if let Some(root) = usable(unified, &mut why) {
            match delegate(&root) {
                Ok(lacks) => (cgroups.unified, cgroups.lacks) = (Some(root), lacks),
                Err(reason) => why = reason,
            }
        }
        if cgroups == Self::default() {
            Err(why)
        } else {
            Ok(Self { tag, ..cgroups })
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

    /// By which version, `v1` or `v2`, limits of a kind can be put in force: `memory`, `cpu`,
    /// `pids`. Or why they cannot.
    pub fn version_for(&self, controller: &str) -> Result<&'static str, String> {
        let old = match controller {
            "memory" => &self.memory,
            "cpu" => &self.cpu,
            _ => &self.pids,
        };
        if old.is_some() {
            Ok("v1")
        } else if self.unified.is_none() {
            Err(format!(
                "no cgroup tree with `{controller}` is mounted here"
            ))
        } else if !self.lacks.iter().any(|lacked| lacked == controller) {
            Ok("v2")
        } else if controller == "memory" {
            // As Raspberry Pi OS comes.
            Err(
                "the cgroup controller `memory` is off here: boot with cgroup_enable=memory"
                    .to_owned(),
            )
        } else {
            Err(format!("the cgroup controller `{controller}` is off here"))
        }
    }

    /// The group of an instance, which need not exist.
    pub fn group(&self, id: &InstanceId) -> Group {
        self.named(&format!("{id}-{}", self.tag))
    }

    /// The group of a release's build, which need not exist.
    pub fn build(&self, key: &ReleaseKey) -> Group {
        let ReleaseKey {
            environment,
            number,
        } = key;
        self.named(&format!("{BUILD}{environment}-{number}-{}", self.tag))
    }

    /// The group of a release's release command, which need not exist.
    pub fn once(&self, key: &ReleaseKey) -> Group {
        let ReleaseKey {
            environment,
            number,
        } = key;
        self.named(&format!("{BUILD}{environment}-{number}-once-{}", self.tag))
    }

    /// Groups of this agent that are there.
    fn owned(&self) -> Vec<(Owner, Group)> {
        let mut names = BTreeSet::new();
        for root in self.roots() {
            let entries = fs::read_dir(root.join(PARENT)).into_iter().flatten();
            names.extend(
                entries
                    .flatten()
                    .filter_map(|entry| entry.file_name().into_string().ok()),
            );
        }
        let ending = format!("-{}", self.tag);
        let owner = |name: &String| {
            let name = name.strip_suffix(&ending)?;
            match name.strip_prefix(BUILD) {
                Some(build) => Some(Owner::Build(build.to_owned())),
                None => InstanceId::new(name).ok().map(Owner::Instance),
            }
        };
        names
            .iter()
            .filter_map(|name| Some((owner(name)?, self.named(name))))
            .collect()
    }

    /// Removes groups of this agent whose owner is not there any more, with all that runs in them.
    /// Only while no instance and no build is started. Blocks. Returns how many have gone.
    pub fn end_ownerless(&self, is_there: impl Fn(&Owner) -> bool) -> usize {
        let gone = |(owner, group): &(Owner, Group)| {
            if is_there(owner) {
                return false;
            }
            let end = Instant::now() + END;
            while !group.processes().is_empty() && Instant::now() < end {
                group.kill();
                std::thread::sleep(Duration::from_millis(5));
            }
            let removed = group.remove(Duration::from_millis(200));
            if let Err(error) = &removed {
                tracing::warn!(?owner, %error, "a cgroup that nobody owns stays");
            }
            removed.is_ok()
        };
        self.owned().iter().filter(|one| gone(one)).count()
    }

    /// Removes those among them that are empty, at any time: a group that is just being made for a
    /// new owner is not taken for one of them, since its owner comes first.
    pub fn remove_ownerless(&self, is_there: impl Fn(&Owner) -> bool) -> usize {
        let gone = |(owner, group): &(Owner, Group)| {
            !is_there(owner) && group.remove(Duration::ZERO).is_ok()
        };
        self.owned().iter().filter(|one| gone(one)).count()
    }

    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.unified, &self.memory, &self.cpu, &self.pids]
            .into_iter()
            .flatten()
    }

    fn named(&self, name: &str) -> Group {
        let below = |root: &Option<PathBuf>| root.as_ref().map(|root| root.join(PARENT).join(name));
        // A controller is in one tree only: where version 2 has them, version 1 has not.
        Group {
            unified: below(&self.unified),
            lacks: self.lacks.clone(),
            memory: below(&self.memory),
            cpu: below(&self.cpu),
            pids: below(&self.pids),
        }
    }

    /// Removes everything of ours that is empty. Returns what was removed.
    pub fn remove_all(&self) -> Vec<PathBuf> {
        let mut removed = Vec::new();
        for root in self.roots() {
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
    fs::read_to_string(root.join("cgroup.controllers")).is_ok_and(|list| {
        list.split_whitespace()
            .any(|name| CONTROLLERS.contains(&name))
    })
}

/// Lets groups below `beanpole` use the controllers (version 2). Returns those that cannot be had,
/// or why none can. Once they are on for groups below `beanpole`, the kernel refuses to take them
/// away at the top, so that systemd does not either.
fn delegate(root: &Path) -> Result<Vec<String>, String> {
    let (mut lacks, mut why) = (Vec::new(), String::new());
    let listed = |path: &Path, name: &str| {
        fs::read_to_string(path).is_ok_and(|list| list.split_whitespace().any(|one| one == name))
    };
    for name in CONTROLLERS {
        let enabled = [root.to_owned(), root.join(PARENT)]
            .into_iter()
            .try_for_each(|directory| {
                let path = directory.join("cgroup.subtree_control");
                if listed(&path, name) {
                    return Ok(());
                }
                // One by one: the kernel takes all of a line or nothing.
                fs::write(&path, format!("+{name}"))
                    .map_err(|error| format!("{}: {error}", path.display()))
            });
        if let Err(error) = enabled {
            lacks.push(name.to_owned());
            why = error;
        }
    }
    if lacks.len() == CONTROLLERS.len() {
        Err(why)
    } else {
        Ok(lacks)
    }
}

/// The group of one instance: a directory in each tree. Written into the shim's spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// In the tree of version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unified: Option<PathBuf>,
    /// Controllers that version 2's tree has not: limits of theirs are not put in force by it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<String>,
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
    /// Its name, which is the same in every tree; none for a group that is in no tree.
    pub fn name(&self) -> Option<String> {
        [&self.unified, &self.memory, &self.cpu, &self.pids]
            .into_iter()
            .flatten()
            .find_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
    }

    /// Its directories, one in each tree.
    pub fn directories(&self) -> impl Iterator<Item = &PathBuf> {
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
            let has = |controller: &str| !self.lacks.iter().any(|lacked| lacked == controller);
            if has("memory") {
                put(group, "memory.max", &number(limits.memory_bytes, "max"))?;
                // Swap would hide a leak until the whole machine crawls. Absent without swap.
                let swap = limits.memory_bytes.map_or("max", |_| "0");
                let _ = put(group, "memory.swap.max", swap);
            }
            if has("pids") {
                put(group, "pids.max", &number(limits.pids, "max"))?;
            }
            if has("cpu") {
                let quota = format!("{} {PERIOD_US}", number(quota, "max"));
                put(group, "cpu.max", &quota)?;
            }
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

    /// Has the group wait where others want the CPU, too: a fifth of a usual group's share.
    pub(crate) fn stand_back(&self) {
        if let Some(group) = &self.unified {
            let _ = put(group, "cpu.weight", "20");
        }
        if let Some(group) = &self.cpu {
            let _ = put(group, "cpu.shares", "205");
        }
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

    /// A tree of version 2 on paper: the kernel's files are plain ones.
    fn unified_tree(controllers: &str) -> (tempfile::TempDir, Cgroups) {
        let root = tempfile::tempdir().expect("temporary directory");
        fs::write(root.path().join("cgroup.controllers"), controllers).expect("write");
        let found = Cgroups {
            tag: "tag".to_owned(),
            unified: Some(root.path().to_owned()),
            ..Cgroups::default()
        };
        (root, found)
    }

    fn limits() -> Limits {
        Limits {
            memory_bytes: Some(64 << 20),
            cpu_millis: Some(500),
            pids: Some(100),
            ..Limits::default()
        }
    }

    #[test]
    fn version_2_takes_the_limits_in_its_own_words() {
        let (root, found) = unified_tree("cpuset cpu io memory pids\n");
        let trees = Cgroups::usable(found).expect("usable");
        let id = InstanceId::from_bits(7);
        let group = trees.group(&id);
        group.create(&limits()).expect("create");
        let read = |file: &str| {
            let path = root
                .path()
                .join(PARENT)
                .join(format!("{id}-tag"))
                .join(file);
            fs::read_to_string(path).expect("written")
        };
        assert_eq!(read("memory.max"), "67108864");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("cpu.max"), "50000 100000");
        assert_eq!(read("pids.max"), "100");
        // Without limits the next incarnation has none.
        group.create(&Limits::default()).expect("create");
        assert_eq!(read("memory.max"), "max");
        assert_eq!(read("memory.swap.max"), "max");
        assert_eq!(read("cpu.max"), "max 100000");
        for controller in CONTROLLERS {
            assert_eq!(trees.version_for(controller), Ok("v2"));
        }
    }

    #[test]
    fn a_controller_that_is_off_takes_only_its_own_limit_away() {
        let (root, found) = unified_tree("cpu pids\n");
        // The kernel refuses what it does not have.
        let trees = Cgroups {
            lacks: vec!["memory".to_owned()],
            ..found
        };
        let group = trees.group(&InstanceId::from_bits(7));
        group.create(&limits()).expect("create");
        let directory = group.unified.clone().expect("version 2");
        assert!(!directory.join("memory.max").exists());
        assert!(directory.join("cpu.max").exists());
        assert_eq!(trees.version_for("cpu"), Ok("v2"));
        let why = trees.version_for("memory").expect_err("off");
        assert!(why.contains("cgroup_enable=memory"), "{why}");
        drop(root);
    }

    #[test]
    fn an_empty_tree_of_version_2_beside_those_of_version_1_is_not_used() {
        let (_root, found) = unified_tree("hugetlb\n");
        let old = tempfile::tempdir().expect("temporary directory");
        let trees = Cgroups::usable(Cgroups {
            memory: Some(old.path().to_owned()),
            ..found
        })
        .expect("usable");
        assert_eq!(trees.unified, None);
        assert_eq!(trees.version_for("memory"), Ok("v1"));
        assert!(trees.version_for("cpu").is_err());
    }

    #[test]
    fn the_kernels_count_of_kills_is_read_and_not_the_one_of_whole_groups() {
        let (_root, found) = unified_tree("memory\n");
        let trees = Cgroups::usable(found).expect("usable");
        let group = trees.group(&InstanceId::from_bits(7));
        group.create(&limits()).expect("create");
        assert_eq!(group.oom_kills(), 0, "no file, no kill");
        let events = "low 0\nhigh 0\nmax 31\noom 3\noom_kill 2\noom_group_kill 1\n";
        let directory = group.unified.clone().expect("version 2");
        fs::write(directory.join("memory.events"), events).expect("write");
        assert_eq!(group.oom_kills(), 2);
    }

    #[test]
    fn an_agent_removes_its_own_groups_and_no_others() {
        let (root, found) = unified_tree("memory\n");
        let trees = Cgroups::usable(found).expect("usable");
        let (here, gone) = (InstanceId::from_bits(7), InstanceId::from_bits(8));
        let named = |name: String| root.path().join(PARENT).join(name);
        let others = named(format!("{gone}-another"));
        let shims = named("shims".to_owned());
        let (mine, stray) = (named(format!("{here}-tag")), named(format!("{gone}-tag")));
        let (build, old_build) = (
            named("build-e-1-2-tag".into()),
            named("build-e-1-1-tag".into()),
        );
        for directory in [&others, &shims, &mine, &stray, &build, &old_build] {
            fs::create_dir_all(directory).expect("make");
        }
        let owners = [Owner::Instance(here), Owner::Build("e-1-2".to_owned())];
        assert_eq!(trees.remove_ownerless(|owner| owners.contains(owner)), 2);
        assert!(!stray.exists() && !old_build.exists());
        for directory in [&others, &shims, &mine, &build] {
            assert!(directory.exists(), "{}", directory.display());
        }
        assert_eq!(trees.end_ownerless(|_| false), 2);
        assert!(others.exists() && shims.exists() && !mine.exists());
    }
}
