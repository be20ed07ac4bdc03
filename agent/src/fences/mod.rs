//! What keeps instances apart from each other and from the host: a user per application, limits
//! by cgroup, a private `/tmp`, no way to more privileges.
//!
//! Root gets them all. Without root, or inside a container that forbids some, the same code runs
//! with fewer, and [`Fences::report`] says which and why.

pub mod cgroups;
pub mod users;

use beanpole_protocol::ApplicationName;
use beanpole_protocol::agent::{Fence, Uninstalled};
use cgroups::Cgroups;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use users::User;

/// How long processes that were killed may take to be gone when their users go for good.
const LAST_PROCESSES: Duration = Duration::from_secs(5);
/// How often they are looked for meanwhile.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Why a fence could not be put up.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// No user could be made for an application.
    #[error("cannot make a system user for the application: {0}")]
    User(String),
    /// A file of the system could not be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// The fences that this agent can put up, found out once at its start. An error says why not.
#[derive(Clone, Debug)]
pub struct Fences {
    /// In the names of its users and cgroups.
    tag: String,
    root: bool,
    users: Result<(), String>,
    cgroups: Result<Cgroups, String>,
    private_tmp: Result<(), String>,
}

impl Fences {
    /// Finds out what is possible here for instances whose files are below `data`.
    pub fn detect(data: &Path) -> Self {
        let root = rustix::process::geteuid().is_root();
        let tag = users::tag_of(&std::path::absolute(data).unwrap_or_else(|_| data.to_owned()));
        let not_root = || "the agent does not run as root".to_owned();
        Self {
            root,
            users: if root {
                reachable(data)
            } else {
                Err(not_root())
            },
            cgroups: if root {
                Cgroups::detect(&tag)
            } else {
                Err(not_root())
            },
            private_tmp: if root {
                tmp_can_be_private(data)
            } else {
                Err(not_root())
            },
            tag,
        }
    }

    /// No fence at all, beyond those that need no rights. For tests.
    pub fn none() -> Self {
        let off = || "switched off".to_owned();
        Self {
            tag: String::new(),
            root: false,
            users: Err(off()),
            cgroups: Err(off()),
            private_tmp: Err(off()),
        }
    }

    /// Which fences are in force, and how or why not.
    pub fn report(&self) -> Vec<Fence> {
        let fence = |name: &str, state: Result<String, String>| Fence {
            name: name.to_owned(),
            active: state.is_ok(),
            detail: state.unwrap_or_else(|why| why),
        };
        let limit = |controller: &str| {
            let trees = self.cgroups.as_ref().map_err(Clone::clone)?;
            Ok(format!("cgroup {}", trees.version_for(controller)?))
        };
        let how = |state: &Result<(), String>, how: &str| match state {
            Ok(()) => Ok(how.to_owned()),
            Err(why) => Err(why.clone()),
        };
        vec![
            fence(
                "own user",
                how(&self.users, "a system user for each application"),
            ),
            fence("memory limit", limit("memory")),
            fence("CPU limit", limit("cpu")),
            fence("process limit", limit("pids")),
            fence("open files limit", Ok("RLIMIT_NOFILE".to_owned())),
            fence(
                "private tmp",
                how(&self.private_tmp, "a /tmp of its own for each instance"),
            ),
            fence(
                "no new privileges",
                Ok("PR_SET_NO_NEW_PRIVS; set-user-ID programs gain nothing".to_owned()),
            ),
            fence(
                "builds end whole",
                match (&self.cgroups, self.root) {
                    (Ok(_), _) => Ok("all that a build started is killed by its cgroup".to_owned()),
                    (Err(_), true) => {
                        Ok("all that a build started is killed by its guard process".to_owned())
                    }
                    (Err(why), false) => Err(format!(
                        "a build that kills its own guard process can leave others behind: {why}"
                    )),
                },
            ),
            fence(
                "no capabilities",
                if self.root {
                    Ok("all given up before a process starts".to_owned())
                } else {
                    Err("not needed: the agent has none to give".to_owned())
                },
            ),
        ]
    }

    /// The user for an application's builds and processes, made if it is not there; none where
    /// they run as the agent's own user.
    pub fn user(&self, application: &ApplicationName) -> Result<Option<User>, FenceError> {
        match self.users {
            Ok(()) => users::ensure(&self.tag, application).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// The user of the load balancer, made if it is not there; none where it runs as the agent's own user.
    pub fn edge_user(&self) -> Result<Option<User>, FenceError> {
        match self.users {
            Ok(()) => users::ensure_edge(&self.tag).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Removes the users that this agent made for applications other than these, once none of their
    /// processes lives; whether none of them is left. Call it only while nothing is started or
    /// prepared for others.
    ///
    /// The load balancer's stays with `edge`.
    pub fn keep_users(&self, applications: &BTreeSet<ApplicationName>, edge: bool) -> bool {
        if self.users.is_err() {
            return true;
        }
        let needed = applications
            .iter()
            .map(|application| users::name_for(&self.tag, application))
            .chain(edge.then(|| users::edge_name(&self.tag)))
            .collect();
        match users::remove_others(&self.tag, &needed) {
            Ok(users) => {
                if !users.removed.is_empty() {
                    tracing::info!(names = ?users.removed, "removed users that no application needs");
                }
                users.left.is_empty()
            }
            Err(error) => {
                tracing::warn!(%error, "users that no application needs stay");
                false
            }
        }
    }

    /// The trees for limits, where there are any.
    pub fn cgroups(&self) -> Option<&Cgroups> {
        self.cgroups.as_ref().ok()
    }

    /// Whether instances get a `/tmp` of their own by a mount.
    pub fn private_tmp(&self) -> bool {
        self.private_tmp.is_ok()
    }

    /// Whether the agent is root.
    pub fn root(&self) -> bool {
        self.root
    }

    /// Removes the users that this agent made, but for those with a process, and the cgroups. Lines for
    /// people. Blocks for as long as the last processes take to end.
    pub fn remove_all(&self) -> Uninstalled {
        let mut gone = Uninstalled::default();
        if let Ok(trees) = &self.cgroups {
            let groups = trees.remove_all();
            let lines = groups.iter().map(|g| format!("cgroup {}", g.display()));
            gone.removed.extend(lines);
        }
        if self.root {
            let end = Instant::now() + LAST_PROCESSES;
            loop {
                match users::remove_others(&self.tag, &BTreeSet::new()) {
                    Ok(users) => {
                        let lines = users.removed.iter().map(|name| format!("user {name}"));
                        gone.removed.extend(lines);
                        if !users.left.is_empty() && Instant::now() < end {
                            std::thread::sleep(LOOK_PAUSE);
                            continue;
                        }
                        let lines = users.left.iter().map(|name| {
                            format!("user {name}: processes or files of it are still there")
                        });
                        gone.left.extend(lines);
                    }
                    Err(error) => gone.left.push(format!("users of applications: {error}")),
                }
                break;
            }
        }
        gone
    }
}

/// Another user can only run what it can reach: every directory above must let it through.
fn reachable(data: &Path) -> Result<(), String> {
    let full = std::path::absolute(data).map_err(|error| error.to_string())?;
    let above: Vec<&Path> = full.ancestors().skip(1).collect();
    for directory in above.into_iter().rev() {
        if let Ok(found) = directory.metadata()
            && found.mode() & 0o001 == 0
        {
            return Err(format!(
                "other users cannot enter {}: instances run as root, without capabilities",
                directory.display()
            ));
        }
    }
    Ok(())
}

/// Whether a data directory, as a full path, lies where instances would get a directory of their own:
/// then they get none.
pub fn lies_in_tmp(data: &Path) -> bool {
    data.starts_with("/tmp") || data.starts_with("/var/tmp")
}

/// Tries it in a thread of its own, whose view of the mounts ends with it.
fn tmp_can_be_private(data: &Path) -> Result<(), String> {
    let full = std::path::absolute(data).map_err(|error| error.to_string())?;
    if lies_in_tmp(&full) {
        return Err("the data directory itself is in /tmp: TMPDIR is set instead".to_owned());
    }
    std::thread::spawn(|| {
        crate::sys::unshare_mounts()
            .and_then(|()| Ok(hide_mounts()?))
            .map_err(|error| format!("mount namespaces are not allowed here: {error}"))
    })
    .join()
    .unwrap_or_else(|_| Err("mount namespaces could not be tried".to_owned()))
}

/// Lets mounts of the host come in, and none of ours go out.
pub(crate) fn hide_mounts() -> rustix::io::Result<()> {
    use rustix::mount::MountPropagationFlags;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
}

/// Sends a signal to a process; one that is gone is no matter.
pub(crate) fn signal(pid: i32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}
