//! Who listens on an instance's port: itself, nobody yet, or another program.
//!
//! The load balancer checks an address. When an app does not come to listen, whatever else listens
//! there answers instead, and a stranger's good answers would make the instance healthy. So the kernel
//! is asked: the listening sockets of the port (`/proc/net/tcp` and `tcp6`) against the open files of
//! the instance's own processes: often while an instance starts, and now and then later, for a process may stop
//! to listen without ending.
//!
//! Sockets in another network namespace are not seen: such an instance counts as not listening yet,
//! which nobody holds against it for long.

use crate::fences::cgroups::Group;
use crate::shim::proc;
use beanpole_protocol::agent::{Failure, PortUse};
use std::collections::BTreeSet;
use std::fs;

/// Programs that listen in the name of an app that runs in a container of its own making, such as
/// `web: docker run --publish $PORT:80 …`.
const FORWARDERS: &[&str] = &[
    "docker-proxy",
    "rootlessport",
    "rootlesskit",
    "conmon",
    "slirp4netns",
    "pasta",
];

/// A socket that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listener {
    inode: u64,
    uid: u32,
}

/// Who holds a socket that is not the instance's own.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Holder {
    /// A program that could be seen.
    Program {
        /// Its name.
        name: String,
        /// Its process id.
        pid: i32,
    },
    /// One that this agent may not look into.
    Hidden {
        /// Whose it is.
        uid: u32,
    },
}

/// What a look found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// Who uses the port.
    pub port: PortUse,
    /// Who it is, when it is somebody else.
    holder: Option<Holder>,
}

impl Look {
    /// Why the instance cannot have its port.
    pub fn failure(&self, port: u16) -> Failure {
        let who = match &self.holder {
            Some(Holder::Program { name, pid }) => {
                format!("another program: {name} (process {pid})")
            }
            Some(Holder::Hidden { uid }) => format!("a program of user {uid}"),
            None => "another program".to_owned(),
        };
        Failure {
            code: "port-taken".to_owned(),
            message: format!("Port {port} is taken by {who}."),
            log: Vec::new(),
        }
    }
}

/// Looks at a port before an instance starts: whoever listens is a stranger. Blocks.
pub(super) fn look_before(port: u16) -> Look {
    match listeners(port).first() {
        None => Look {
            port: PortUse::Free,
            holder: None,
        },
        Some(listener) => Look {
            port: PortUse::Taken,
            holder: Some(holder(*listener)),
        },
    }
}

/// Looks at the port of an instance that runs under the shim with this process id. Blocks.
pub(crate) fn look(port: u16, shim: i32, group: Option<&Group>) -> Look {
    // Sockets first: a process that is born after the other look has none of these.
    let listeners = listeners(port);
    if listeners.is_empty() {
        return verdict(&listeners, &BTreeSet::new(), true, holder);
    }
    let mut own: BTreeSet<i32> = proc::descendants(shim).into_iter().collect();
    own.extend(group.map(Group::processes).unwrap_or_default());
    let mut sockets = BTreeSet::new();
    let mut all_seen = true;
    for pid in own {
        match sockets_of(pid) {
            Some(found) => sockets.extend(found),
            // It ended, or it may not be looked into.
            None => all_seen &= proc::Stat::of(pid).is_none_or(|stat| !stat.alive()),
        }
    }
    verdict(&listeners, &sockets, all_seen, holder)
}

/// Who uses a port with these listeners, of an instance that holds these sockets.
fn verdict(
    listeners: &[Listener],
    own: &BTreeSet<u64>,
    all_seen: bool,
    holder: impl Fn(Listener) -> Holder,
) -> Look {
    let plain = |port| Look { port, holder: None };
    if listeners.is_empty() {
        return plain(PortUse::Free);
    }
    // With SO_REUSEPORT a stranger can share a port; the kernel would give it some of the requests.
    let Some(stranger) = listeners.iter().find(|one| !own.contains(&one.inode)) else {
        return plain(PortUse::Own);
    };
    if !all_seen {
        return plain(PortUse::Unknown);
    }
    let holder = holder(*stranger);
    let forwards = match &holder {
        Holder::Program { name, .. } => FORWARDERS.contains(&name.as_str()),
        // Without root the forwarder of a Docker of root cannot be seen.
        Holder::Hidden { uid } => *uid == 0,
    };
    if forwards {
        return plain(PortUse::Unknown);
    }
    Look {
        port: PortUse::Taken,
        holder: Some(holder),
    }
}

fn listeners(port: u16) -> Vec<Listener> {
    [procfs::net::tcp(), procfs::net::tcp6()]
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.state == procfs::net::TcpState::Listen)
        .filter(|entry| entry.local_address.port() == port)
        .map(|entry| Listener {
            inode: entry.inode,
            uid: entry.uid,
        })
        .collect()
}

/// The sockets that a process holds open; none when that cannot be seen.
fn sockets_of(pid: i32) -> Option<Vec<u64>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let inode = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        let target = target.to_str()?;
        let inode = target.strip_prefix("socket:[")?.strip_suffix(']')?;
        inode.parse().ok()
    };
    Some(entries.flatten().filter_map(inode).collect())
}

fn holder(listener: Listener) -> Holder {
    let found = proc::all()
        .into_iter()
        .find(|pid| sockets_of(*pid).is_some_and(|own| own.contains(&listener.inode)));
    match found {
        Some(pid) => Holder::Program {
            name: fs::read_to_string(format!("/proc/{pid}/comm"))
                .map_or_else(|_| "?".to_owned(), |name| name.trim().to_owned()),
            pid,
        },
        None => Holder::Hidden { uid: listener.uid },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(inode: u64) -> Listener {
        Listener { inode, uid: 1000 }
    }

    fn program(name: &'static str) -> impl Fn(Listener) -> Holder {
        move |_| Holder::Program {
            name: name.to_owned(),
            pid: 7,
        }
    }

    #[test]
    fn a_port_is_free_own_or_taken() {
        let own = BTreeSet::from([1, 2]);
        let of = |listeners: &[Listener]| verdict(listeners, &own, true, program("nginx")).port;
        assert_eq!(of(&[]), PortUse::Free);
        assert_eq!(of(&[at(1)]), PortUse::Own);
        assert_eq!(of(&[at(1), at(2)]), PortUse::Own);
        assert_eq!(of(&[at(9)]), PortUse::Taken);
        assert_eq!(of(&[at(1), at(9)]), PortUse::Taken);
    }

    #[test]
    fn what_cannot_be_told_is_held_against_nobody() {
        let none = BTreeSet::new();
        let unseen = verdict(&[at(9)], &none, false, program("nginx"));
        assert_eq!(unseen.port, PortUse::Unknown);
        let docker = verdict(&[at(9)], &none, true, program("docker-proxy"));
        assert_eq!(docker.port, PortUse::Unknown);
        let hidden = verdict(&[at(9)], &none, true, |_| Holder::Hidden { uid: 0 });
        assert_eq!(hidden.port, PortUse::Unknown);
        let other = verdict(&[at(9)], &none, true, |_| Holder::Hidden { uid: 1234 });
        assert_eq!(other.port, PortUse::Taken);
    }

    #[test]
    fn a_stranger_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let look = look_before(port);
        assert_eq!(look.port, PortUse::Taken);
        let failure = look.failure(port);
        assert_eq!(failure.code, "port-taken");
        let me = format!("(process {}).", std::process::id());
        assert!(failure.message.ends_with(&me), "{}", failure.message);
        drop(listener);
        assert_eq!(look_before(port).port, PortUse::Free);
    }

    #[test]
    fn a_socket_of_another_process_is_not_the_instances() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        // Nothing runs below a process that does not exist.
        let look = look(port, i32::MAX, None);
        assert_eq!(look.port, PortUse::Taken);
    }
}
