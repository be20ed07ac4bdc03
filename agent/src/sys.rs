//! The few calls to the system that no safe interface offers, and all of this crate's unsafe code.
//!
//! They serve the shim, which has one thread: forking and changing the signal mask are sound there
//! and nowhere else. What is done in a child before it becomes a program is sound anywhere.
#![expect(
    unsafe_code,
    reason = "fork, signalfd, waitid with WNOWAIT, unshare and pre_exec have no safe interface"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Closes what this process was started with beyond the standard streams. Only first thing in
/// `main`.
pub(crate) fn close_inherited() {
    // SAFETY: nothing in this process owns a descriptor yet.
    unsafe { beanpole_daemon::inherited::close() };
}

/// Which side of a fork this is.
pub(crate) enum Side {
    /// The caller.
    Parent,
    /// Its copy.
    Child,
}

/// Forks this process. Only for a process with a single thread.
pub(crate) fn fork() -> io::Result<Side> {
    // SAFETY: the caller has one thread, so no lock can be held by a thread that the copy lacks.
    let pid = check(unsafe { libc::fork() })?;
    Ok(if pid == 0 { Side::Child } else { Side::Parent })
}

/// Blocks `signals` for this thread and returns a descriptor that becomes readable when one comes.
pub(crate) fn signal_fd(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is used; signalfd returns a new
    // descriptor that nobody else owns.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            check(libc::sigaddset(&raw mut set, *signal))?;
        }
        check(libc::sigprocmask(
            libc::SIG_BLOCK,
            &raw const set,
            std::ptr::null_mut(),
        ))?;
        let fd = check(libc::signalfd(
            -1,
            &raw const set,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Takes one signal from a descriptor made by [`signal_fd`]; none when none waits.
pub(crate) fn next_signal(fd: &OwnedFd) -> Option<i32> {
    let mut bytes = [0_u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut bytes) {
        // ssi_signo is the first field, a u32.
        Ok(length) if length == bytes.len() => {
            Some(i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        }
        _ => None,
    }
}

/// What became of the children of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Children {
    /// There are none, so none of their descendants lives either (this process is a subreaper).
    None,
    /// All of them run.
    Running,
    /// This one has ended; it stays a zombie, and its pid its own, until [`reap`].
    Ended(Ended),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Its process id.
    pub pid: i32,
    /// Its exit code, if it exited.
    pub code: Option<i32>,
    /// The signal that killed it, if one did.
    pub signal: Option<i32>,
}

/// Looks for a child that has ended, without reaping it.
pub(crate) fn children() -> Children {
    // SAFETY: siginfo_t is plain data; waitid fills it in, and si_pid and si_status are valid
    // after it returned 0 for WEXITED (si_pid stays 0 when no child has changed).
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        if libc::waitid(libc::P_ALL, 0, &raw mut info, options) < 0 {
            return if io::Error::last_os_error().raw_os_error() == Some(libc::ECHILD) {
                Children::None
            } else {
                Children::Running
            };
        }
        if info.si_pid() == 0 {
            return Children::Running;
        }
        let status = info.si_status();
        let exited = info.si_code == libc::CLD_EXITED;
        Children::Ended(Ended {
            pid: info.si_pid(),
            code: exited.then_some(status),
            signal: (!exited).then_some(status),
        })
    }
}

/// Reaps an ended child.
pub(crate) fn reap(pid: i32) {
    // SAFETY: a null status pointer is allowed.
    unsafe {
        libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG);
    }
}

/// Gives this thread (and what it starts) its own view of the mounts. Needs CAP_SYS_ADMIN.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: takes no pointers; affects only this thread's file-system namespace.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }).map(|_| ())
}

/// What a child does to itself between fork and exec.
#[derive(Clone, Default)]
pub(crate) struct ChildFence {
    /// `cgroup.procs` files to write itself into, open for writing.
    pub cgroups: Vec<Arc<OwnedFd>>,
    /// User and group to become; all other groups are given up.
    pub user: Option<(u32, u32)>,
    /// Whether this process is root: then capabilities are given up as well.
    pub root: bool,
    /// The most open files, soft and hard.
    pub open_files: Option<u64>,
    /// Whether the kernel, when the whole machine is out of memory, shall end this before others.
    pub first_to_go: bool,
    /// Whether it keeps root's right to listen on ports below 1024, whoever it becomes.
    pub low_ports: bool,
    /// Whether it stays root with all that root may: what installs packages.
    pub whole_root: bool,
}

/// What lets a process listen on ports below 1024 (capability.h).
const CAP_NET_BIND_SERVICE: libc::c_int = 10;

/// Makes `command` put up `fence` around itself before it becomes the program.
pub(crate) fn fence(command: &mut Command, fence: ChildFence) {
    // SAFETY: the closure runs in the forked child and only makes async-signal-safe system calls
    // on values prepared before the fork; it neither allocates nor takes locks.
    unsafe {
        command.pre_exec(move || apply(&fence));
    }
}

/// Makes `command` run with this soft limit of open files, or the hard one where that is lower.
pub(crate) fn allow_open_files(command: &mut Command, most: u64) {
    // SAFETY: as in `fence`: two system calls on locals.
    unsafe {
        command.pre_exec(move || {
            let mut limit: libc::rlimit = std::mem::zeroed();
            check(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit))?;
            limit.rlim_cur = most.min(limit.rlim_max);
            check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)).map(|_| ())
        });
    }
}

/// The order matters: cgroups while still root and before anything is used; users last.
fn apply(fence: &ChildFence) -> io::Result<()> {
    // SAFETY: see `fence`; every pointer is to a live local or null.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::setpgid(0, 0);
        for group in &fence.cgroups {
            write_all(group.as_raw_fd(), b"0\n")?;
        }
        // The shim may be protected from the kernel's out-of-memory killer; its processes are not.
        let adjust = libc::open(
            c"/proc/self/oom_score_adj".as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC,
        );
        if adjust >= 0 {
            let score: &[u8] = if fence.first_to_go { b"500\n" } else { b"0\n" };
            let _ = write_all(adjust, score);
            libc::close(adjust);
        }
        let no_core = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        check(libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core))?;
        if let Some(most) = fence.open_files {
            set_open_files(most)?;
        }
        if fence.whole_root {
            libc::umask(0o022);
            return Ok(());
        }
        libc::umask(0o027);
        if fence.root {
            // Up to the first capability that this kernel does not know.
            for capability in 0..64 {
                if fence.low_ports && capability == CAP_NET_BIND_SERVICE {
                    continue;
                }
                if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 {
                    break;
                }
            }
        }
        let keeps_one = fence.root && fence.low_ports;
        if keeps_one {
            // Else the change of user below gives up all that is permitted.
            check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0))?;
        }
        if let Some((user, group)) = fence.user {
            check(libc::setgroups(0, std::ptr::null()))?;
            check(libc::setresgid(group, group, group))?;
            check(libc::setresuid(user, user, user))?;
        }
        if keeps_one {
            keep_one_capability(CAP_NET_BIND_SERVICE)?;
        }
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
    }
    Ok(())
}

/// The header of capset(2), version 3: of this thread.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: libc::c_int,
}

/// One half of what capset(2) takes, 32 capabilities each.
#[repr(C)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up all capabilities but this one (below 32), and has it survive the program that comes next: as an ambient
/// one, since no file grants it.
fn keep_one_capability(capability: libc::c_int) -> io::Result<()> {
    let one = 1_u32 << capability;
    let header = CapHeader {
        version: 0x2008_0522,
        pid: 0,
    };
    let data = [
        CapData {
            effective: one,
            permitted: one,
            inheritable: one,
        },
        CapData {
            effective: 0,
            permitted: 0,
            inheritable: 0,
        },
    ];
    // SAFETY: both pointers are to live locals of the layout that version 3 has: two halves.
    unsafe {
        let done = libc::syscall(libc::SYS_capset, &raw const header, &raw const data);
        check(libc::c_int::try_from(done).unwrap_or(-1))?;
        let (raise, none) = (libc::PR_CAP_AMBIENT_RAISE, 0 as libc::c_ulong);
        let number = libc::c_ulong::from(capability.unsigned_abs());
        let raised = libc::prctl(libc::PR_CAP_AMBIENT, raise, number, none, none);
        check(raised).map(|_| ())
    }
}

/// Without CAP_SYS_RESOURCE the hard limit cannot be raised: then what is allowed is taken.
fn set_open_files(most: u64) -> io::Result<()> {
    // SAFETY: both structures are live locals.
    unsafe {
        let wanted = libc::rlimit {
            rlim_cur: most,
            rlim_max: most,
        };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) == 0 {
            return Ok(());
        }
        let mut now: libc::rlimit = std::mem::zeroed();
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut now))?;
        let allowed = most.min(now.rlim_max);
        let lower = libc::rlimit {
            rlim_cur: allowed,
            rlim_max: allowed,
        };
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const lower)).map(|_| ())
    }
}

fn write_all(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the slice is valid for its length.
    let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    if written == bytes.len() as isize {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
