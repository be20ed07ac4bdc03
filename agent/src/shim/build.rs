//! `beanpole shim -`: runs one command of a build and ends everything that it started.
//!
//! The agent hands the [`BuildSpec`] over on standard input, a socket, and reads the [`BuildEnd`]
//! from it. This process is between the two: whatever the command starts, in whatever session, has
//! it as its last parent, and is in the build's cgroup where there are any. When the command has
//! ended, when the agent closes the socket, and when the agent dies (which closes it as well),
//! everything is killed until nothing is left. Then this process ends, never before.

use super::proc;
use crate::fences::cgroups::Group;
use crate::fences::users::User;
use crate::sys::{self, ChildFence, Children};
use beanpole_protocol::agent::{Limits, Properties};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// In the place of a spec's path: a build, whose spec is on standard input.
pub const BUILD: &str = "-";

/// The longest spec, in bytes: it holds the environment's properties.
const LONGEST_SPEC: u64 = 16 << 20;
/// How long SIGKILL may take. A process in an uninterruptible wait needs longer than anything.
const PATIENCE: Duration = Duration::from_secs(10);
/// While something is left to kill, look again after this time.
const KILL_AGAIN: Duration = Duration::from_millis(5);

/// What to run. Never on disk: it holds the application's secrets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BuildSpec {
    /// The program, as an absolute path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where it starts.
    pub directory: PathBuf,
    /// Its whole environment.
    pub environment: Properties,
    /// Who it runs as; none: as this process does.
    pub user: Option<User>,
    /// Its cgroup, made here with the limits and removed in the end.
    pub cgroup: Option<Group>,
    /// What it may use.
    pub limits: Limits,
    /// What it has for `/tmp` and `/var/tmp`; none: those of the host.
    pub private_tmp: Option<PathBuf>,
    /// Whether it keeps all that root may do. Never for what comes from a bundle by itself.
    #[serde(default)]
    pub whole_root: bool,
}

/// How it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildEnd {
    /// The command's exit code, if it exited.
    pub code: Option<i32>,
    /// The signal that killed it, if one did.
    pub signal: Option<i32>,
    /// How many of its processes the kernel killed for memory.
    pub oom_kills: u64,
    /// Why it could not be started or fenced in.
    pub error: Option<String>,
    /// Processes that SIGKILL did not end.
    pub left: Vec<i32>,
}

/// Runs the build that standard input tells of.
pub(super) fn run() -> ExitCode {
    let _ = rustix::thread::set_name(c"beanpole-build");
    let outcome = (|| {
        let mut agent = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let Some(spec) = read_spec(&agent)? else {
            return Ok(());
        };
        let end = guard(&spec, &agent);
        let mut line = serde_json::to_vec(&end)?;
        line.push(b'\n');
        // An agent that is gone does not care any more.
        let _ = agent.write_all(&line);
        Ok::<_, io::Error>(())
    })();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(io::stderr(), "beanpole shim: {why}");
            ExitCode::FAILURE
        }
    }
}

/// None when the agent went away before it said anything.
fn read_spec(agent: &UnixStream) -> io::Result<Option<BuildSpec>> {
    let mut line = Vec::new();
    BufReader::new(agent.take(LONGEST_SPEC)).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Ok(None);
    }
    // The error must not quote the line: it holds secrets.
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(|_| io::Error::other("the order for the build cannot be read"))
}

fn guard(spec: &BuildSpec, agent: &UnixStream) -> BuildEnd {
    let failed = |why: String| BuildEnd {
        error: Some(why),
        ..BuildEnd::default()
    };
    let signals = match set_up(spec) {
        Ok(signals) => signals,
        Err(why) => return failed(why),
    };
    let kills_before = spec.cgroup.as_ref().map_or(0, Group::oom_kills);
    let started = start(spec);
    let mut end = match &started {
        Ok(command) => follow(*command, &signals, agent),
        Err(why) => failed(why.clone()),
    };
    end.left = end_all(spec.cgroup.as_ref());
    if let Some(group) = &spec.cgroup {
        end.oom_kills = group.oom_kills().saturating_sub(kills_before);
        // Busy for a moment longer than its processes live.
        let _ = group.remove(Duration::from_secs(1));
    }
    end
}

fn set_up(spec: &BuildSpec) -> Result<OwnedFd, String> {
    // Out of the reach of a terminal's Ctrl-C: that ends the agent, and by that the build.
    rustix::process::setsid().map_err(|error| format!("setsid: {error}"))?;
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
        .map_err(|error| format!("subreaper: {error}"))?;
    // Without it nobody ends the build; refused without root, which is no matter.
    let _ = fs::write("/proc/self/oom_score_adj", "-900");
    if let Some(group) = &spec.cgroup {
        group.create(&spec.limits)?;
        group.stand_back();
    }
    if let Some(directory) = &spec.private_tmp {
        super::mount_private_tmp(directory).map_err(|error| format!("private /tmp: {error}"))?;
    }
    sys::signal_fd(&[
        Signal::CHILD.as_raw(),
        Signal::TERM.as_raw(),
        Signal::INT.as_raw(),
        Signal::HUP.as_raw(),
    ])
    .map_err(|error| format!("signals: {error}"))
}

/// Starts the command, with this process's standard output and error.
fn start(spec: &BuildSpec) -> Result<i32, String> {
    let doors = match &spec.cgroup {
        Some(group) => group.doors()?,
        None => Vec::new(),
    };
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.arguments)
        .current_dir(&spec.directory)
        .env_clear()
        .envs(&spec.environment.0)
        .stdin(Stdio::null());
    let fence = ChildFence {
        cgroups: doors,
        user: spec.user.as_ref().map(|user| (user.uid, user.gid)),
        root: rustix::process::geteuid().is_root(),
        open_files: spec.limits.open_files,
        first_to_go: true,
        low_ports: false,
        whole_root: spec.whole_root,
    };
    sys::fence(&mut command, fence);
    let child = command.spawn().map_err(|error| error.to_string())?;
    // From now on its output ends when the last of its processes does.
    if let Ok(null) = fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    Ok(child.id().cast_signed())
}

/// Waits until the command has ended, or until it shall not go on. Orphans are reaped meanwhile.
fn follow(command: i32, signals: &OwnedFd, agent: &UnixStream) -> BuildEnd {
    loop {
        while let Children::Ended(ended) = sys::children() {
            sys::reap(ended.pid);
            if ended.pid == command {
                return BuildEnd {
                    code: ended.code,
                    signal: ended.signal,
                    ..BuildEnd::default()
                };
            }
        }
        let mut fds = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(agent, PollFlags::IN),
        ];
        // Without a bound: the agent has one, and closes the socket when it is over.
        let _ = poll(&mut fds, None);
        // It has nothing more to say: this is its end.
        let agent_is_gone = !fds[1].revents().is_empty();
        let mut told = agent_is_gone;
        while let Some(signal) = sys::next_signal(signals) {
            told |= signal != Signal::CHILD.as_raw();
        }
        if told {
            return BuildEnd::default();
        }
    }
}

/// Kills everything below this process and in the cgroup, and waits until it is gone. What is left
/// after that cannot be killed.
fn end_all(group: Option<&Group>) -> Vec<i32> {
    let me = std::process::id().cast_signed();
    let end = Instant::now() + PATIENCE;
    loop {
        while let Children::Ended(ended) = sys::children() {
            sys::reap(ended.pid);
        }
        let mut left = proc::descendants(me);
        left.extend(group.map(Group::processes).unwrap_or_default());
        let none = sys::children() == Children::None;
        if none && left.is_empty() {
            return left;
        }
        if Instant::now() > end {
            return left;
        }
        if let Some(group) = group {
            group.kill();
        }
        for pid in left {
            crate::fences::signal(pid, Signal::KILL);
        }
        std::thread::sleep(KILL_AGAIN);
    }
}
